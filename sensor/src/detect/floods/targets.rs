//! What is known of each target.

use packet::{Address, mix};

use super::{CEILING, DRIFT, FloodConfig, LEAST_COMPLETED};
use crate::flood::{Class, SAMPLED_ONE_IN, Tally};
use crate::hardware::Table;

const WAYS: usize = 8;
const SETS: usize = 512;

/// What is usual is learnt to the extent of a sixty-fourth each second.
const LEARNT: f64 = 1.0 / 64.0;
/// Handshakes follow their usual number faster.
const LEARNT_OF_HANDSHAKES: f64 = 1.0 / 16.0;
/// A target without packets for so many seconds is forgotten, if nothing of it is above the thresholds.
const QUIET_SECONDS: u64 = 10;
/// After so many, in any case.
const FORGOTTEN_SECONDS: u64 = 3600;

/// Targets of the latest time: 4 096, in sets of eight. Where a ninth comes to a set, the one with the fewest packets
/// in the latest seconds gives way, unless an episode is about it; its baselines are forgotten.
pub(super) struct Targets {
    states: Table<State>,
    /// Places of those that got something in this tick, each once.
    touched: Vec<u32>,
    len: usize,
    forgotten: u64,
    key: u64,
}

/// What is known of one target.
#[derive(Clone, Copy)]
pub(super) struct State {
    is_live: bool,
    /// All of this second.
    pub(super) second: Tally,
    /// Counts and times of this tick.
    pub(super) tick: TickCounts,
    /// Packets in the second that is over, by class.
    pub(super) rates: [u64; Class::ALL.len()],
    /// Handshakes completed in it.
    pub(super) completed: u64,
    pub(super) cusum: f64,
    usual: [f64; Class::ALL.len()],
    usual_completed: f64,
    quiet: u64,
    /// How much came in the latest seconds: what it is worth to keep it.
    worth: u64,
    episodes: u8,
    left_out: u8,
    answered: u8,
}

/// What came in a tick.
#[derive(Clone, Copy, Default)]
pub(super) struct TickCounts {
    pub(super) counts: [u32; Class::ALL.len()],
    pub(super) completed: u32,
    pub(super) first: wire::units::UnixNanos,
    pub(super) last: wire::units::UnixNanos,
    pub(super) workers: u64,
}

impl State {
    fn of(target: Address) -> Self {
        Self {
            is_live: false,
            second: Tally::of(target),
            tick: TickCounts::default(),
            rates: [0; Class::ALL.len()],
            completed: 0,
            cusum: 0.0,
            usual: [0.0; Class::ALL.len()],
            usual_completed: 0.0,
            quiet: 0,
            worth: 0,
            episodes: 0,
            left_out: 0,
            answered: 0,
        }
    }

    pub(super) const fn has_episodes(&self) -> bool {
        self.episodes != 0
    }

    pub(super) const fn has_episode(&self, class: Class) -> bool {
        self.episodes & 1 << class as u8 != 0
    }

    pub(super) const fn set_episode(&mut self, class: Class, is_so: bool) {
        self.episodes = self.episodes & !(1 << class as u8) | (is_so as u8) << class as u8;
    }

    /// There was no room for an episode.
    pub(super) const fn set_left_out(&mut self, class: Class) {
        self.left_out |= 1 << class as u8;
    }

    /// Floods of this second for which there was no room.
    pub(super) const fn take_left_out(&mut self) -> u32 {
        std::mem::replace(&mut self.left_out, 0).count_ones()
    }

    /// Handshakes that are usual in a second.
    pub(super) const fn usual_completed(&self) -> f64 {
        self.usual_completed
    }

    /// Packets of a class that are usual in a second.
    pub(super) const fn usual(&self, class: Class) -> f64 {
        self.usual[class as usize]
    }

    /// Requests for an echo in the second that is over.
    pub(super) fn echo_requests(&self) -> u64 {
        u64::from(self.second.echo_requests) * SAMPLED_ONE_IN
    }

    /// Half of the SYNs of the second that is over were answered to the end, at least.
    pub(super) const fn is_calm(&self) -> bool {
        self.completed * 2 > self.rates[Class::Syn as usize]
    }

    /// Packets of a class that nobody asked for, in the second that is over.
    pub(super) const fn excess(&self, class: Class) -> u64 {
        let rate = self.rates[class as usize];
        match class {
            _ if self.answered & 1 << class as u8 != 0 => 0,
            // A client may end each connection that it made by a reset.
            Class::Rst => rate.saturating_sub(self.completed),
            _ => rate,
        }
    }

    /// Counts, by the time in which they came: after a pause of a worker that is more than a second.
    fn take_rates(&mut self) {
        const SECOND: u64 = 1_000_000_000;
        let nanos = (self.second.last.since(self.second.first).as_nanos() as u64).max(SECOND);
        let rate = |count: u64| (u128::from(count) * u128::from(SECOND) / u128::from(nanos)) as u64;
        for (rate_of_class, count) in self.rates.iter_mut().zip(&self.second.counts) {
            *rate_of_class = rate(u64::from(*count) * SAMPLED_ONE_IN);
        }
        self.completed = rate(u64::from(self.second.completed));
        self.answered = 0;
    }

    /// The CUSUM of SYNs that no handshake completes. `passed` seconds are over, of which all but the first
    /// were without packets.
    pub(super) fn note_syns(&mut self, passed: u64) {
        let syns = self.rates[Class::Syn as usize] as f64;
        let completed = self.completed as f64;
        let missing = (syns - completed) / self.usual_completed.max(LEAST_COMPLETED);
        self.cusum = (self.cusum + missing - DRIFT).clamp(0.0, CEILING);
        self.cusum = (self.cusum - DRIFT * (passed - 1) as f64).max(0.0);
    }

    /// Learns what is usual, of a class that is not flooded: in the first seconds the least of each, so that
    /// what does not last is not learnt, then slowly. The very first second is not whole. `passed` seconds are
    /// over, of which all but the first were without packets.
    pub(super) fn learn(&mut self, class: Class, seconds: u64, learning: u64, passed: u64) {
        let rate = self.rates[class as usize] as f64;
        let usual = &mut self.usual[class as usize];
        if seconds < learning {
            // Who comes later than the second one had none in that.
            *usual = if seconds <= 1 { rate } else { usual.min(rate) };
            if passed > 1 {
                *usual = 0.0;
            }
        } else {
            *usual += (rate - *usual) * LEARNT;
        }
        *usual *= (1.0 - LEARNT).powi((passed - 1).min(10_000) as i32);
        if class == Class::Syn {
            let completed = self.completed as f64;
            self.usual_completed += (completed - self.usual_completed) * LEARNT_OF_HANDSHAKES;
            let idle = (passed - 1).min(10_000) as i32;
            self.usual_completed *= (1.0 - LEARNT_OF_HANDSHAKES).powi(idle);
        }
    }

    /// Begins the next second; says whether the target is to be kept.
    pub(super) fn end_second(&mut self, config: &FloodConfig, passed: u64) -> bool {
        let packets: u64 = self.rates.iter().sum();
        self.worth = self.worth / 2 + packets + self.completed;
        let is_quiet = self.second.is_empty();
        self.quiet = if is_quiet { self.quiet + passed } else { passed - 1 };
        self.second.clear();
        let matters = |class: Class| {
            let least = f64::from(config.rates[class as usize]);
            least > 0.0 && self.usual[class as usize] * f64::from(config.ratio) > least
        };
        let is_known = Class::ALL[1..].iter().any(|class| matters(*class));
        self.quiet < if is_known { FORGOTTEN_SECONDS } else { QUIET_SECONDS }
    }
}

impl Targets {
    pub(super) const MEMORY: usize = Table::<State>::memory(WAYS * SETS);

    pub(super) fn new(key: u64) -> Self {
        Self {
            states: Table::new(WAYS * SETS, State::of(Address::default())),
            touched: Vec::with_capacity(WAYS * SETS),
            len: 0,
            forgotten: 0,
            key,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Takes in what a worker saw at a target.
    pub(super) fn merge(&mut self, worker: usize, tally: &Tally) {
        let Some(place) = self.place_of(tally.target) else { return };
        let state = &mut self.states[place];
        if state.tick.workers == 0 {
            self.touched.push(place as u32);
        }
        let tick = &mut state.tick;
        for (mine, theirs) in tick.counts.iter_mut().zip(&tally.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        tick.completed = tick.completed.saturating_add(tally.completed);
        tick.first = if tick.workers == 0 { tally.first } else { tick.first.min(tally.first) };
        tick.last = tick.last.max(tally.last);
        tick.workers |= 1 << worker.min(63);
        state.second.merge(tally);
    }

    /// Calls for each that got something in this tick.
    pub(super) fn settle_tick(&mut self, mut settle: impl FnMut(&mut State)) {
        for place in self.touched.drain(..) {
            let state = &mut self.states[place as usize];
            settle(state);
            state.tick = TickCounts::default();
        }
    }

    pub(super) fn take_rates(&mut self) {
        self.states.iter_mut().filter(|state| state.is_live).for_each(State::take_rates);
    }

    pub(super) fn find(&self, target: Address) -> Option<&State> {
        let set = self.set_of(target);
        self.states[set..set + WAYS]
            .iter()
            .find(|state| state.is_live && state.second.target == target)
    }

    fn find_mut(&mut self, target: Address) -> Option<&mut State> {
        let set = self.set_of(target);
        self.states[set..set + WAYS]
            .iter_mut()
            .find(|state| state.is_live && state.second.target == target)
    }

    /// What came in the second that is over was asked for.
    pub(super) fn set_answered(&mut self, target: Address, class: Class) {
        if let Some(state) = self.find_mut(target) {
            state.answered |= 1 << class as u8;
        }
    }

    pub(super) fn forget_episode(&mut self, target: Address, class: Class) {
        if let Some(state) = self.find_mut(target) {
            state.set_episode(class, false);
        }
    }

    /// Keeps those that are to be kept.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut State) -> bool) {
        for state in self.states.iter_mut().filter(|state| state.is_live) {
            if !keep(state) {
                state.is_live = false;
                self.len -= 1;
            }
        }
    }

    fn set_of(&self, target: Address) -> usize {
        let hash = mix(target.low() ^ self.key, target.high() ^ self.key.rotate_left(11));
        hash as usize % SETS * WAYS
    }

    /// Where a target is, which may take the place of another. `None`: there is an episode about every other.
    fn place_of(&mut self, target: Address) -> Option<usize> {
        let set = self.set_of(target);
        let ways = set..set + WAYS;
        let is_it = |place: &usize| {
            self.states[*place].is_live && self.states[*place].second.target == target
        };
        if let Some(place) = ways.clone().find(is_it) {
            return Some(place);
        }
        let worth = |place: &usize| match &self.states[*place] {
            state if !state.is_live => None,
            state => {
                Some(state.worth + state.second.counts.iter().map(|n| u64::from(*n)).sum::<u64>())
            }
        };
        // One that has something in this tick is in the list of those, and cannot go.
        let may_go = |place: &usize| {
            let state = &self.states[*place];
            !state.is_live || !state.has_episodes() && state.tick.workers == 0
        };
        let Some(place) = ways.filter(may_go).min_by_key(worth) else {
            self.forgotten += 1;
            return None;
        };
        if self.states[place].is_live {
            self.forgotten += 1;
        } else {
            self.len += 1;
        }
        self.states[place] = State::of(target);
        self.states[place].is_live = true;
        Some(place)
    }
}
