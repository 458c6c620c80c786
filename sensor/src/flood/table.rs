//! The worker's table of targets.
//!
//! ```text
//!   sets      64 lines: 8 × (tag, score)                4 KiB, stay in the first-level cache
//!     │
//!     ▼
//!   tallies   512 × 576 bytes                           288 KiB, stay in the second-level cache
//! ```
//!
//! One packet in [sixteen](SAMPLED_ONE_IN) is looked at, chosen by a keyed hash of its time and sender: of
//! a flood, which has thousands, that is enough, and it costs a multiplication for the others. Of n packets a
//! second the count is wrong by about 4 / √n of them. Distinct sources are those of one source in sixteen,
//! chosen by a keyed hash of its own, so that they can be scaled up; handshakes are counted one by one. A target that
//! finds its set full takes the place of the one with the lowest score, and takes over that score (Metwally,
//! Agrawal, El Abbadi: Space-Saving, ICDT 2005): so of the targets of a set, each with more than an eighth
//! of the set's packets since the last hand-out is in it. Whoever gives way is counted, and what was not handed
//! out of it is lost: floods then count too few packets, or are not found. That needs more than some 300
//! targets at one worker within 250 ms, of which those with the fewest packets give way.

use packet::frame::Frame;
use packet::{Address, Packet, mix};
use wire::units::UnixNanos;

use super::senders::SAMPLED_ONE_IN;
use super::{Asked, Class, Report, Tally, hash, is_echo_request};
use crate::hardware::Table;

const WAYS: usize = 8;
const SETS: usize = 64;

/// Targets of one worker.
pub const TARGETS: usize = WAYS * SETS;

/// A worker's targets. One writer, fixed memory, no allocation after [`TargetTable::new`].
pub struct TargetTable {
    sets: Table<Set>,
    tallies: Table<Tally>,
    asked: Asked,
    /// The target of the latest packet that mattered.
    current: usize,
    key: u64,
    /// Chooses the sample; odd.
    draw_key: u64,
    counters: TargetCounters,
}

/// What a [`TargetTable`] counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetCounters {
    /// Tallies handed out.
    pub published: u64,
    /// Targets that gave way before their tally was handed out.
    pub evicted: u64,
}

/// One cache line: what it takes to find a target of a set, and to choose one that gives way.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set {
    tags: [u32; WAYS],
    /// Packets since the last hand-out, with those of the targets that gave way to this one.
    scores: [u32; WAYS],
}

const _: () = assert!(size_of::<Set>() == 64);

impl TargetTable {
    /// Memory of a table. Unit: bytes.
    pub const MEMORY: usize = Table::<Set>::memory(SETS) + Table::<Tally>::memory(TARGETS);

    /// An empty table. `key` seeds the hashes and chooses the samples: random, or fixed for repeatable
    /// runs, and the same for all workers and the detector.
    #[must_use]
    pub fn new(key: u64) -> Self {
        Self {
            sets: Table::new(SETS, Set::default()),
            tallies: Table::new(TARGETS, Tally::default()),
            asked: Asked::default(),
            current: 0,
            key,
            draw_key: mix(key, 0x7361_6d70_6c65) | 1,
            counters: TargetCounters::default(),
        }
    }

    /// What was counted since the table was made.
    #[must_use]
    pub const fn counters(&self) -> TargetCounters {
        self.counters
    }

    /// Does this packet belong to the sample? By its time, and its sender where times stand still.
    #[inline(always)]
    #[must_use]
    pub const fn draws(&self, packet: &Packet, time: UnixNanos) -> bool {
        self.draw(packet, time) >> (u64::BITS - SAMPLED_ONE_IN.ilog2()) == 0
    }

    /// Does this hash of a source, keyed as that of a contact, belong to the sample of sources?
    #[inline(always)]
    #[must_use]
    pub const fn draws_source(source: u64) -> bool {
        source >> (u64::BITS - SAMPLED_ONE_IN.ilog2()) == 0
    }

    /// Counts the packets of a vector that belong to a sample: bit `n` of `drawn` and `sources` is that of
    /// packet `n`.
    #[inline(never)]
    pub fn count(&mut self, drawn: u32, sources: u32, packets: &[Packet], frames: &[Frame<'_>]) {
        for number in bits(drawn) {
            if let (Some(packet), Some(frame)) = (packets.get(number), frames.get(number)) {
                self.count_one(packet, frame.time);
            }
        }
        for number in bits(sources) {
            if let (Some(packet), Some(frame)) = (packets.get(number), frames.get(number)) {
                self.note_source(packet, frame.time);
            }
        }
    }

    /// Counts one packet, if it belongs to a sample, as a worker does.
    #[cfg(test)]
    pub fn feed(&mut self, packet: &Packet, time: UnixNanos) {
        if self.draws(packet, time) {
            self.count_one(packet, time);
        }
        if Self::draws_source(hash(packet.tuple.source, self.key)) {
            self.note_source(packet, time);
        }
    }

    /// A handshake with `target` was completed.
    pub fn complete(&mut self, target: Address, time: UnixNanos) {
        let tally = self.tally_of(target, time);
        tally.completed = tally.completed.saturating_add(1);
    }

    /// A handshake with `target` was completed, if its client is to be believed: no answer was seen.
    pub fn claim(&mut self, target: Address, time: UnixNanos) {
        let tally = self.tally_of(target, time);
        tally.claimed = tally.claimed.saturating_add(1);
    }

    /// Hands out what is new. When `sink` returns `false` it has no room: it did not take that report, and
    /// what is left is handed out next time. Says whether all was taken.
    pub fn publish(&mut self, mut sink: impl FnMut(&Report) -> bool) -> bool {
        for (place, tally) in self.tallies.iter_mut().enumerate() {
            if tally.is_empty() {
                continue;
            }
            if !sink(&Report::Target(*tally)) {
                return false;
            }
            self.counters.published += 1;
            tally.clear();
            self.sets[place / WAYS].scores[place % WAYS] = 0;
        }
        if !self.asked.is_empty() {
            if !sink(&Report::Asked(self.asked)) {
                return false;
            }
            self.asked = Asked::default();
        }
        true
    }

    #[inline(always)]
    const fn draw(&self, packet: &Packet, time: UnixNanos) -> u64 {
        (time.0 ^ packet.tuple.source.low().rotate_left(17)).wrapping_mul(self.draw_key)
    }

    #[inline(always)]
    fn count_one(&mut self, packet: &Packet, time: UnixNanos) {
        let Some(class) = Class::of(packet) else { return };
        let (source, key) = (packet.tuple.source, self.key);
        let is_echo_request = is_echo_request(packet);
        if matches!(class, Class::Syn | Class::Udp) || is_echo_request {
            self.asked.add(source, key);
        }
        let rank = mix(self.draw(packet, time), key) as u32;
        let tally = self.tally_of(packet.tuple.target, time);
        tally.add(class);
        if packet.is_fragment && class != Class::Fragment {
            tally.add(Class::Fragment);
        }
        tally.echo_requests = tally.echo_requests.saturating_add(u32::from(is_echo_request));
        tally.senders[class as usize].insert(source, rank, key);
        if class == Class::Syn {
            tally.ports.insert(mix(u64::from(packet.tuple.target_port), key));
        }
    }

    #[inline(always)]
    fn note_source(&mut self, packet: &Packet, time: UnixNanos) {
        if Class::of(packet) != Some(Class::Syn) {
            return;
        }
        // Another hash than the one that chose the sample, of which the upper bits are known.
        let hash = hash(packet.tuple.source, self.key.rotate_left(13));
        let tally = self.tally_of(packet.tuple.target, time);
        tally.used |= 1 << Class::Syn as u8;
        tally.has_sources = true;
        tally.sources.insert(hash);
    }

    /// The tally of a target, which gets a packet.
    fn tally_of(&mut self, target: Address, time: UnixNanos) -> &mut Tally {
        let place = self.place_of(target);
        let score = &mut self.sets[place / WAYS].scores[place % WAYS];
        *score = score.saturating_add(1);
        let tally = &mut self.tallies[place];
        tally.note_times(time, time);
        tally
    }

    /// Where the tally of a target is, which may take the place of another.
    #[inline]
    fn place_of(&mut self, target: Address) -> usize {
        if self.tallies[self.current].target == target {
            return self.current;
        }
        let hash = hash(target, self.key);
        let set_at = hash as usize % SETS;
        let tag = (hash >> 32) as u32 | 1;
        let set = &self.sets[set_at];
        for way in 0..WAYS {
            if set.tags[way] == tag && self.tallies[set_at * WAYS + way].target == target {
                self.current = set_at * WAYS + way;
                return self.current;
            }
        }
        self.current = self.take_place(set_at, tag, target);
        self.current
    }

    fn take_place(&mut self, set_at: usize, tag: u32, target: Address) -> usize {
        let set = &mut self.sets[set_at];
        let mut way = 0;
        for other in 1..WAYS {
            if set.scores[other] < set.scores[way] {
                way = other;
            }
        }
        set.tags[way] = tag;
        let tally = &mut self.tallies[set_at * WAYS + way];
        if !tally.is_empty() {
            self.counters.evicted += 1;
            tally.clear();
        }
        tally.target = target;
        set_at * WAYS + way
    }
}

/// The numbers of the bits that are set, in order.
#[inline]
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (lowest < u32::BITS).then_some(lowest as usize)
    })
}
