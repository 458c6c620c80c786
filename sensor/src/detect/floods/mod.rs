//! Floods: more arrives at a target than it answers, or than is usual there.
//!
//! ```text
//!   mod       what the tallies of all workers say, tick by tick; rules, once a second
//!   targets   what is known of each target
//!   episode   one flood, from the first tick of it to its last
//! ```
//!
//! A **SYN flood** is decided on what becomes of the SYNs: the non-parametric CUSUM of SYNs that no
//! handshake completes, against the handshakes that are usual there, and a rate, and that hardly any is
//! completed. It needs many sources, or many SYNs for each port: a fast scan of many ports, by one source, is none.
//! **Other floods** are far above what is usual for the target and above a rate that no single
//! stream of an ordinary network has. What answers somebody who asked for it is none.
//!
//! Counts come from one packet in sixteen (see [`crate::flood`]), but for handshakes: of a thousand packets they
//! are wrong by some 13 %, of a million by 0.4 %. A rule needs two seconds in a row, so a rate that is really
//! half of the threshold passes it once in many years of seconds.
//!
//! Source: Wang, Zhang, Shin: Detecting SYN flooding attacks (INFOCOM 2002) for the CUSUM.

mod episode;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use packet::Address;
use wire::units::UnixNanos;

use super::{Alert, DetectorConfig, Kind, Phase};
use crate::evidence;
use crate::flood::{Asked, Class, Report, SAMPLED_ONE_IN};
use episode::Episode;
use targets::{State, Targets};

/// When a flood is one. A rate of 0 turns its kind off. Unit of rates: packets a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloodConfig {
    /// Rates of SYN, UDP, ICMP, RST, fragments below which there is no flood, in the order of [`Class::ALL`].
    pub rates: [u32; Class::ALL.len()],
    /// A SYN flood completes less than so many handshakes for a hundred SYNs.
    pub syn_completion: u32,
    /// A SYN flood has so many sources, or comes often to the same ports.
    pub syn_sources: u32,
    /// Other floods are so many times what is usual for the target.
    pub ratio: u32,
    /// For so long after the start nothing but what is usual is learnt, but for SYN floods. Unit: s.
    pub learning: u64,
}

impl Default for FloodConfig {
    fn default() -> Self {
        Self {
            rates: [500, 100_000, 5_000, 5_000, 100_000],
            syn_completion: 20,
            syn_sources: 64,
            ratio: 10,
            learning: 10,
        }
    }
}

/// SYNs of the sample for each of its distinct ports, from which on even a single source makes no scan: a scan
/// of many ports that repeats each ten times has fewer than two.
const SYNS_FOR_A_PORT: u64 = 8;
/// Handshakes a second that every target is taken to complete at least.
const LEAST_COMPLETED: f64 = 50.0;
/// The CUSUM falls by so much each second, and a flood lifts it above the bound; it is not let grow without end.
const DRIFT: f64 = 0.35;
const BOUND: f64 = 2.0;
const CEILING: f64 = 20.0;
/// Seconds in a row in which a flood must be seen.
const SECONDS: u8 = 2;
/// Episodes at one time.
const EPISODES: usize = 1024;
/// Below this share of its threshold a flood is quiet: a tenth. One of SYNs is quiet, too, when most of them
/// complete.
const QUIET: u64 = 10;
const TICKS_A_SECOND: u64 = 4;

/// Finds floods. Fixed memory but for what is told.
pub struct Floods {
    config: DetectorConfig,
    targets: Targets,
    /// By target and class, open or not.
    episodes: BTreeMap<(Address, Class), Episode>,
    /// Who asked, in this second.
    asked: Asked,
    /// When the rules were last looked at.
    evaluated: UnixNanos,
    /// Seconds that were looked at.
    seconds: u64,
    counters: FloodCounters,
}

/// What the detector of floods counted since they were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodCounters {
    /// Targets that are known now.
    pub targets: u64,
    /// Targets that were forgotten, or not taken in, because there was no room.
    pub forgotten: u64,
    /// Floods that are open now.
    pub open: u64,
    /// Alerts closed.
    pub closed: u64,
    /// Floods that found no room because there were too many, each second anew.
    pub not_opened: u64,
}

/// What a source has to do with a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// There is none, or it sends little of it.
    None,
    /// It sends much of what may become one.
    MayBecome,
    /// It may send a good part of one: so does whoever shares its bucket.
    Some,
    /// It sends most of one.
    Most,
}

/// A SYN flood that is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynFlood {
    /// Who sends more than half of it, if there is one.
    pub dominant: Option<Address>,
}

impl Floods {
    /// Memory of the tables. Unit: bytes.
    pub const MEMORY: usize = Targets::MEMORY + EPISODES * Episode::MEMORY;

    /// Nothing is known yet.
    #[must_use]
    pub fn new(config: &DetectorConfig) -> Self {
        Self {
            config: config.clone(),
            targets: Targets::new(config.key),
            episodes: BTreeMap::new(),
            asked: Asked::default(),
            evaluated: UnixNanos(0),
            seconds: 0,
            counters: FloodCounters::default(),
        }
    }

    /// Takes over the counts of those before it.
    pub const fn go_on_from(&mut self, before: &Self) {
        self.counters = before.counters;
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> FloodCounters {
        FloodCounters {
            targets: self.targets.len() as u64,
            forgotten: self.targets.forgotten(),
            open: self.episodes.values().filter(|episode| episode.is_open()).count() as u64,
            ..self.counters
        }
    }

    /// Takes in what `worker` saw. Within a tick the order does not matter.
    pub fn merge(&mut self, worker: usize, report: &Report) {
        match report {
            Report::Asked(asked) => self.asked.merge(asked),
            Report::Target(tally) => self.targets.merge(worker, tally),
        }
    }

    /// Nothing is going on that could become more without further packets.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.episodes.is_empty()
    }

    /// A SYN flood on `target` that was seen in the latest second, told or not.
    #[must_use]
    pub fn is_flooded(&self, target: Address) -> Option<SynFlood> {
        let episode = self.episodes.get(&(target, Class::Syn))?;
        (episode.is_open() || episode.seconds > 0)
            .then(|| SynFlood { dominant: episode.dominant(self.config.key) })
    }

    /// Is there a flood on `target`, told or not, of what contacts of this class are attempted by?
    pub(super) fn is_under(&self, target: Address, by: evidence::Class) -> bool {
        let class = match by {
            evidence::Class::Tcp => Class::Syn,
            evidence::Class::Udp => Class::Udp,
            _ => return false,
        };
        let episode = self.episodes.get(&(target, class));
        episode.is_some_and(|episode| episode.is_open() || episode.seconds > 0)
    }

    /// What `source` has to do with a flood of datagrams on `target`.
    pub(super) fn part_in_udp(&self, source: Address, target: Address) -> Part {
        let Some(episode) = self.episodes.get(&(target, Class::Udp)) else { return Part::None };
        let key = self.config.key;
        match episode.may_be_flooder(source, key) {
            true if !episode.is_open() => Part::MayBecome,
            _ if episode.dominant(key) == Some(source) => Part::Most,
            true => Part::Some,
            false => Part::None,
        }
    }

    /// Lets time pass to `now` and tells what is new, in an order that the packets alone decide. `id` gives
    /// the id of the next alert.
    pub fn tick(&mut self, now: UnixNanos, id: &mut impl FnMut() -> u64, out: &mut Vec<Alert>) {
        self.settle_tick();
        if now.seconds() != self.evaluated.seconds() {
            self.evaluate(now);
            self.open(now, id, out);
        }
        self.update_and_close(now, out);
    }

    /// Closes what is open.
    pub fn finish(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        for ((target, class), mut episode) in std::mem::take(&mut self.episodes) {
            if episode.is_open() {
                self.counters.closed += 1;
                out.push(episode.tell(target, class, Phase::Close, now, self.config.key));
            }
        }
    }

    /// What came in this tick: where floods begin, and how they go on.
    fn settle_tick(&mut self) {
        let Self { targets, episodes, config, seconds, .. } = self;
        let config = &config.floods;
        let is_learning = *seconds < config.learning;
        targets.settle_tick(|state| {
            for class in Class::ALL {
                let count = u64::from(state.tick.counts[class as usize]) * SAMPLED_ONE_IN;
                if count == 0 {
                    continue;
                }
                let threshold = threshold(config, state, class, is_learning);
                let key = (state.second.target, class);
                let is_loud = threshold.is_some_and(|least| count * TICKS_A_SECOND >= least);
                if !state.has_episode(class) && is_loud && episodes.len() < EPISODES {
                    state.set_episode(class, true);
                    episodes.insert(key, Episode::new(state.tick.first, threshold.unwrap_or(1)));
                }
                if state.has_episode(class)
                    && let Some(episode) = episodes.get_mut(&key)
                    && count * TICKS_A_SECOND * QUIET >= episode.threshold
                    && !(episode.is_open() && class == Class::Syn && state.is_calm())
                {
                    episode.grow(state, class, count, is_loud);
                } else if is_loud && !state.has_episode(class) {
                    state.set_left_out(class);
                }
            }
        });
    }

    /// A second is over: what is a flood in it, and what is usual.
    fn evaluate(&mut self, now: UnixNanos) {
        let passed = now.seconds().saturating_sub(self.evaluated.seconds()).max(1);
        let passed = if self.evaluated == UnixNanos(0) { 1 } else { passed };
        self.evaluated = now;
        let is_learning = self.seconds < self.config.floods.learning;
        self.targets.take_rates();
        for (&(target, class), episode) in &mut self.episodes {
            if let Some(state) = self.targets.find(target) {
                episode.end_second(state, class);
            }
        }
        self.asked_for();
        let Self { targets, episodes, config, seconds, .. } = self;
        let config = &config.floods;
        let mut left_out = 0;
        targets.retain(|state| {
            state.note_syns(passed);
            left_out += u64::from(state.take_left_out());
            for class in Class::ALL {
                let least = threshold(config, state, class, is_learning);
                let is_going_on = state.has_episode(class) && {
                    let key = (state.second.target, class);
                    let goes_on = episodes.get_mut(&key).is_some_and(|episode| {
                        let is_flood = match class {
                            Class::Syn => is_syn_flood(config, state, episode),
                            _ => least.is_some_and(|least| state.excess(class) >= least),
                        };
                        episode.note_flood(is_flood);
                        is_flood || episode.is_open()
                    });
                    if !goes_on && !episodes.get_mut(&key).is_some_and(Episode::begin_anew) {
                        episodes.remove(&key);
                        state.set_episode(class, false);
                    }
                    goes_on
                };
                if !is_going_on {
                    state.learn(class, *seconds, config.learning, passed);
                }
            }
            let is_known = state.end_second(config, passed);
            is_known || state.has_episodes()
        });
        self.seconds += passed;
        self.counters.not_opened += left_out;
        self.asked = Asked::default();
    }

    /// Takes out of the rates what answers somebody who asked for it.
    fn asked_for(&mut self) {
        let Self { targets, asked, config, episodes, .. } = self;
        let key = config.key;
        let mut answers = Vec::new();
        for (&(target, class), episode) in &*episodes {
            let Some(state) = targets.find(target) else { continue };
            let is_answer = match class {
                Class::Syn | Class::Fragment => false,
                Class::Rst => asked.by(target, key) * 2 >= state.rates[class as usize],
                // Nobody asks for requests.
                Class::Icmp => {
                    asked.by(target, key) * 2 >= state.rates[class as usize]
                        && state.echo_requests() * 2 < state.rates[class as usize]
                }
                Class::Udp => answers_a_flood(targets, episodes, (target, episode), key),
            };
            if is_answer {
                answers.push((target, class));
            }
        }
        for (target, class) in answers {
            targets.set_answered(target, class);
        }
    }

    /// Opens an alert for each flood that lasts.
    fn open(&mut self, now: UnixNanos, id: &mut impl FnMut() -> u64, out: &mut Vec<Alert>) {
        for (&(target, class), episode) in &mut self.episodes {
            if episode.is_open() || episode.seconds < SECONDS {
                continue;
            }
            let Self { config, .. } = self;
            // Who is allowed but for a port is not allowed here.
            let never_counts =
                |source| config.allow.contains(source, 0) || config.factor(source).is_none();
            if episode.dominant(config.key).is_some_and(never_counts) {
                continue;
            }
            episode.open(id());
            out.push(episode.tell(target, class, Phase::Open, now, config.key));
        }
    }

    fn update_and_close(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        let Self { episodes, targets, counters, config, .. } = self;
        let (close_after, key) = (config.close_after, config.key);
        episodes.retain(|&(target, class), episode| {
            if !episode.is_open() {
                return true;
            }
            let is_over = now >= episode.end.plus(close_after);
            if is_over {
                counters.closed += 1;
                out.push(episode.tell(target, class, Phase::Close, now, key));
                targets.forget_episode(target, class);
            } else if episode.has_climbed() {
                out.push(episode.tell(target, class, Phase::Update, now, key));
            }
            !is_over
        });
    }
}

/// What a flood of this class is called.
const fn kind(class: Class) -> Kind {
    match class {
        Class::Syn => Kind::SynFlood,
        Class::Udp => Kind::UdpFlood,
        Class::Icmp => Kind::IcmpFlood,
        Class::Rst => Kind::RstFlood,
        Class::Fragment => Kind::FragmentFlood,
    }
}

/// Packets a second of a class from which on a target may be flooded; `None`: it cannot be now.
fn threshold(config: &FloodConfig, state: &State, class: Class, is_learning: bool) -> Option<u64> {
    let least = u64::from(config.rates[class as usize]);
    if least == 0 || is_learning && class != Class::Syn {
        return None;
    }
    Some(match class {
        Class::Syn => least,
        _ => least.max((state.usual(class) * f64::from(config.ratio)) as u64),
    })
}

/// As many SYNs as connections that are usual there, and no more than some repeats of each: a service that is
/// down, and no flood.
const TIMES_USUAL_COMPLETED: f64 = 3.0;

/// Is what came in this second a SYN flood, or a part of one?
fn is_syn_flood(config: &FloodConfig, state: &State, episode: &Episode) -> bool {
    let rate = state.rates[Class::Syn as usize];
    if rate < u64::from(config.rates[Class::Syn as usize])
        || state.completed * 100 >= rate * u64::from(config.syn_completion)
        || state.cusum <= BOUND
        || (rate as f64) < state.usual_completed() * TIMES_USUAL_COMPLETED
    {
        return false;
    }
    // Of the episode so far: the sketches of a second at a low rate hold too few.
    episode.sources() >= u64::from(config.syn_sources)
        || episode.sampled() >= episode.ports() * SYNS_FOR_A_PORT
}

/// Do these datagrams answer as many that this target sends to whoever sends them?
fn answers_a_flood(
    targets: &Targets,
    episodes: &BTreeMap<(Address, Class), Episode>,
    (target, episode): (Address, &Episode),
    key: u64,
) -> bool {
    let Some(other) = episode.dominant(key) else { return false };
    let Some(asked) = episodes.get(&(other, Class::Udp)) else { return false };
    let rate = |address| targets.find(address).map_or(0, |state| state.rates[Class::Udp as usize]);
    // The question comes before the answer.
    asked.dominant(key) == Some(target)
        && (asked.start, other) < (episode.start, target)
        && rate(other) * 2 >= rate(target)
}
