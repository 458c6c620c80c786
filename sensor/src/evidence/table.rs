//! The worker's table of contacts.
//!
//! ```text
//!   index    buckets of one cache line: 8 × (tag, position)       finds a contact: one cold line
//!      │
//!      ▼
//!   log      ring of one-line records, written in order           no cold line to write or read
//!            ┌───────────────┬──────────────────┐
//!            │ handed out    │ not yet           │
//!            └───────────────┴──────────────────┘
//!            oldest          published          head
//! ```
//!
//! A contact that says something new gets a record at the head of the log, unless its record is not
//! yet handed out: then that one grows. Publishing walks from `published` to `head`, in order, so it
//! costs what is new and not what the table holds. Records that were handed out stay only to
//! recognise repeats, and the head overwrites the oldest of them; memory never grows.
//!
//! Under pressure, in this order: the oldest records already handed out give way; then answers
//! without an attempt here (backscatter) may fill half of the log and no more; then a source's first
//! contact is only noted (see [`super::door`]); then the oldest record not yet handed out gives way.
//! All but the first are counted. While the door decides, it is asked before the index, so that a flood
//! costs one cold line a packet: a repeated attempt is then held back as well, and its contact may leave
//! the window of detection early. That can hide a scan, and never makes one up.

use packet::mix;
use wire::units::UnixNanos;

use super::door::Door;
use super::{Contact, ContactKey, Flags, Observation, newest, pane};
use crate::hardware::{Table, prefetch};

/// A worker's contacts. One writer, fixed memory, no allocation after [`ContactTable::new`].
pub struct ContactTable {
    index: Table<Bucket>,
    log: Table<Record>,
    /// Position after the newest record. Positions wrap; slot = position modulo log length.
    head: u32,
    /// Position of the oldest record that was not handed out.
    published: u32,
    door: Door,
    /// Contacts attempted since the last publish that were not known.
    new_attempts: u32,
    quiet_ticks: u32,
    answers_lost: bool,
    key: u64,
    counters: EvidenceCounters,
}

/// What a [`ContactTable`] counted since it was made. Unit: observations, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvidenceCounters {
    /// Taken in, repeats included.
    pub observed: u64,
    /// Contacts handed out.
    pub published: u64,
    /// Attempts held back under pressure: their source was new and is now noted, or they were repeats.
    pub gated: u64,
    /// Answers and refusals that found no attempt here and no room.
    pub answers_dropped: u64,
    /// Contacts lost because the log was full before they could be handed out.
    pub evicted_unpublished: u64,
    /// Times that pressure began.
    pub engaged: u64,
}

/// What one [`ContactTable::publish`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Published {
    /// Contacts handed out.
    pub contacts: u32,
    /// An answer or refusal was lost since the last publish: silence in that time proves nothing.
    pub answers_lost: bool,
}

/// Keyed hash of a contact and of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContactHash {
    contact: u64,
    source: u64,
}

impl ContactHash {
    /// That of the source.
    #[inline]
    #[must_use]
    pub const fn source(self) -> u64 {
        self.source
    }
}

const WAYS: usize = 8;

/// One cache line of the index. A way is stale when its position left the log.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Bucket {
    tags: [u32; WAYS],
    positions: [u32; WAYS],
}

/// One cache line of the log.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Record {
    key: ContactKey,
    first: UnixNanos,
    last: UnixNanos,
    /// Newest pane (modulo 2^32) with an observation, and what was observed in it.
    pane: u32,
    seen: Flags,
    /// What was observed since the contact was last handed out.
    flags: Flags,
}

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Record>() == 64);

/// New contacts between two publishes that no ordinary traffic of one worker brings: 65 536 a second.
/// What comes before the door engages costs the detector a microsecond each.
const MOST_NEW_CONTACTS: u32 = 1 << 14;

/// Publishes without pressure before the door opens again: 2 s at one publish each 250 ms.
const QUIET_TICKS: u32 = 8;

impl ContactTable {
    /// Memory of a table for `capacity` contacts (rounded as [`ContactTable::new`] does). Unit: bytes.
    #[must_use]
    pub fn memory(capacity: usize) -> usize {
        let slots = slots(capacity);
        Table::<Record>::memory(slots)
            + Table::<Bucket>::memory(buckets(slots))
            + Door::memory(slots)
    }

    /// Makes a table that takes up to `capacity` new contacts between two publishes (rounded up to a
    /// power of two, from 64 to 2^24). `key` seeds the hash: random, or fixed for repeatable runs.
    #[must_use]
    pub fn new(capacity: usize, key: u64) -> Self {
        let slots = slots(capacity);
        let start = slots as u32 + 1;
        Self {
            index: Table::new(buckets(slots), Bucket::default()),
            log: Table::new(slots, Record::default()),
            // Position 0, which every way of an empty index holds, is stale from the beginning.
            head: start,
            published: start,
            door: Door::new(slots),
            new_attempts: 0,
            quiet_ticks: 0,
            answers_lost: false,
            key,
            counters: EvidenceCounters::default(),
        }
    }

    /// What was counted since the table was made.
    #[must_use]
    pub const fn counters(&self) -> EvidenceCounters {
        self.counters
    }

    /// Contacts that a new source must have before it counts: 1 without pressure, then 2, under the heaviest 3.
    #[must_use]
    pub const fn door_asks_for(&self) -> u64 {
        self.door.asks_for()
    }

    /// The keyed hash of `key`, for [`ContactTable::prefetch`] and [`ContactTable::take_in`].
    #[inline]
    #[must_use]
    pub const fn hash(&self, key: &ContactKey) -> ContactHash {
        let source = mix(key.source.low() ^ self.key, key.source.high() ^ self.key.rotate_left(21));
        let target = mix(key.target.low() ^ source, key.target.high() ^ self.key.rotate_left(42));
        ContactHash { contact: mix(target, key.service() ^ self.key), source }
    }

    /// Starts loading the cache lines that taking in will need. For vectors of
    /// packets: hash and prefetch all of them, then observe all of them.
    #[inline]
    pub fn prefetch(&self, hash: ContactHash, observation: Observation) {
        if self.is_gated(observation) {
            self.door.prefetch(hash.source);
        } else {
            prefetch(&self.index[self.bucket(hash)]);
        }
    }

    /// Does the door decide about this observation, before the index is looked at? A flood then costs
    /// one cold line a packet. What passes is looked up without prefetch; that is one in hundreds.
    #[inline]
    fn is_gated(&self, observation: Observation) -> bool {
        self.door.is_engaged() && observation.is_attempt()
    }

    /// Is this observation held back, under pressure? It is counted then. What is not held back is to be
    /// [taken in](ContactTable::take_in).
    #[inline]
    pub fn holds_back(&mut self, hash: ContactHash, observation: Observation) -> bool {
        self.counters.observed += 1;
        let is_held = self.is_gated(observation) && !self.door.admits(hash.source, hash.contact);
        if is_held {
            self.new_attempts = self.new_attempts.saturating_add(1);
            self.counters.gated += 1;
        }
        is_held
    }

    /// Takes in one observation that is not held back. `hash` is that of `key`.
    pub fn take_in(
        &mut self,
        hash: ContactHash,
        key: &ContactKey,
        observation: Observation,
        time: UnixNanos,
    ) {
        match self.find(hash, key) {
            Some(way) => self.observe_known(hash, way, observation, time),
            None => self.observe_new(hash, key, observation, time),
        }
    }

    /// Hands out every contact that says something new, oldest first. When `sink` returns `false` it
    /// has no room: it did not take that contact, which is handed out again next time.
    pub fn publish(&mut self, mut sink: impl FnMut(&Contact) -> bool) -> Published {
        let mut contacts = 0;
        while self.published != self.head {
            if !sink(&self.log[self.slot(self.published)].contact()) {
                break;
            }
            self.published = self.published.wrapping_add(1);
            contacts += 1;
        }
        self.counters.published += u64::from(contacts);
        self.settle_door();
        Published { contacts, answers_lost: std::mem::take(&mut self.answers_lost) }
    }

    /// The door closes in [`ContactTable::observe_new`]; it opens here, after quiet.
    fn settle_door(&mut self) {
        if self.new_attempts > self.pressure() / 2 {
            self.quiet_ticks = 0;
        } else if self.door.is_engaged() {
            self.quiet_ticks += 1;
            if self.quiet_ticks >= QUIET_TICKS {
                self.door.disengage();
            }
        }
        self.new_attempts = 0;
    }

    fn observe_known(
        &mut self,
        hash: ContactHash,
        way: usize,
        observation: Observation,
        time: UnixNanos,
    ) {
        let bucket = self.bucket(hash);
        let position = self.index[bucket].positions[way];
        let slot = self.slot(position);
        let is_pending = self.head.wrapping_sub(position) <= self.pending();
        let record = &mut self.log[slot];
        if is_pending {
            record.add(observation, time);
            return;
        }
        let same_pane = record.pane == pane_u32(time);
        if same_pane && record.seen.has(observation) {
            return;
        }
        let seen = if same_pane { record.seen } else { Flags::NONE };
        let key = record.key;
        if let Some(position) = self.append(&key, observation, time, seen) {
            self.index[bucket].positions[way] = position;
        }
    }

    fn observe_new(
        &mut self,
        hash: ContactHash,
        key: &ContactKey,
        observation: Observation,
        time: UnixNanos,
    ) {
        if observation.is_attempt() {
            self.new_attempts = self.new_attempts.saturating_add(1);
            if self.new_attempts > self.pressure() && !self.door.is_engaged() {
                self.door.engage();
                self.quiet_ticks = 0;
                self.counters.engaged += 1;
            }
        }
        let Some(position) = self.append(key, observation, time, Flags::NONE) else { return };
        let head = self.head;
        let bucket = self.bucket(hash);
        let bucket = &mut self.index[bucket];
        let mut oldest = 0;
        for way in 1..WAYS {
            let age = |way: usize| head.wrapping_sub(bucket.positions[way]);
            if age(way) > age(oldest) {
                oldest = way;
            }
        }
        bucket.tags[oldest] = tag(hash);
        bucket.positions[oldest] = position;
    }

    /// Writes a record at the head and returns its position; `None` for an answer without room.
    fn append(
        &mut self,
        key: &ContactKey,
        observation: Observation,
        time: UnixNanos,
        seen: Flags,
    ) -> Option<u32> {
        let pending = self.pending();
        if pending >= self.budget() {
            if !observation.is_attempt() {
                self.counters.answers_dropped += 1;
                self.answers_lost = true;
                return None;
            }
            if self.door.is_engaged() && pending as usize >= self.log.len() / 4 * 3 {
                self.door.raise();
            }
            if pending as usize == self.log.len() {
                let lost = self.log[self.slot(self.published)].flags;
                self.answers_lost |= lost.has_answer();
                self.counters.evicted_unpublished += 1;
                self.published = self.published.wrapping_add(1);
            }
        }
        let position = self.head;
        let slot = self.slot(position);
        self.log[slot] = Record {
            key: *key,
            first: time,
            last: time,
            pane: pane_u32(time),
            seen: seen.union(Flags::of(observation)),
            flags: Flags::of(observation),
        };
        self.head = self.head.wrapping_add(1);
        Some(position)
    }

    fn find(&self, hash: ContactHash, key: &ContactKey) -> Option<usize> {
        let bucket = &self.index[self.bucket(hash)];
        let tag = tag(hash);
        (0..WAYS).find(|&way| {
            bucket.tags[way] == tag
                && self.head.wrapping_sub(bucket.positions[way]) as usize <= self.log.len()
                && self.log[self.slot(bucket.positions[way])].key == *key
        })
    }

    fn bucket(&self, hash: ContactHash) -> usize {
        hash.contact as usize & (self.index.len() - 1)
    }

    fn slot(&self, position: u32) -> usize {
        position as usize & (self.log.len() - 1)
    }

    const fn pending(&self) -> u32 {
        self.head.wrapping_sub(self.published)
    }

    /// Records that wait to be handed out, above which answers without an attempt find no room: half of
    /// the log.
    fn budget(&self) -> u32 {
        self.log.len() as u32 / 2
    }

    /// New contacts between two publishes that are no pressure yet.
    fn pressure(&self) -> u32 {
        self.budget().min(MOST_NEW_CONTACTS)
    }
}

impl Record {
    fn add(&mut self, observation: Observation, time: UnixNanos) {
        match (self.flags.has_attempt(), observation.is_attempt()) {
            (true, false) => {}
            (false, true) => (self.first, self.last) = (time, time),
            (true, true) | (false, false) => {
                self.first = self.first.min(time);
                self.last = newest(self.last, time);
            }
        }
        let pane = pane_u32(time);
        if pane != self.pane {
            (self.pane, self.seen) = (pane, Flags::NONE);
        }
        self.seen = self.seen.union(Flags::of(observation));
        self.flags = self.flags.union(Flags::of(observation));
    }

    const fn contact(&self) -> Contact {
        Contact { key: self.key, flags: self.flags, first: self.first, last: self.last }
    }
}

/// Never 0, which an empty way has. The bucket uses the lower bits of the hash, the tag the upper.
const fn tag(hash: ContactHash) -> u32 {
    (hash.contact >> 32) as u32 | 1
}

const fn pane_u32(time: UnixNanos) -> u32 {
    pane(time) as u32
}

fn slots(capacity: usize) -> usize {
    capacity.clamp(64, 1 << 24).next_power_of_two()
}

/// Two ways per record, so that buckets seldom overflow.
const fn buckets(slots: usize) -> usize {
    slots * 2 / WAYS
}
