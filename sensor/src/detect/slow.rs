//! What sources attempted over a day, a few contacts at a time.
//!
//! A contact comes here when it leaves the window of the fast rules without having been in an alert. Of a
//! source the newest 64 distinct contacts are kept, with the time at which each was attempted last.
//! That is exact: both thresholds lie below 64. When all sources have a place, the one with the
//! fewest failed contacts gives way.

use std::time::Duration;

use hashbrown::HashTable;
use packet::{Address, mix};
use wire::units::UnixNanos;

use super::outcomes::Outcome;
use crate::evidence::ContactKey;

/// Contacts of a source that are kept.
pub(super) const KEPT: usize = 64;

/// The shorter horizon.
pub(super) const QUARTER: Duration = Duration::from_secs(15 * 60);
/// The longer one.
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Sources that are compared when one has to give way.
const SAMPLE: usize = 8;

/// A contact of the past.
#[derive(Clone, Copy)]
pub(super) struct Past {
    pub(super) key: ContactKey,
    pub(super) first: UnixNanos,
    pub(super) last: UnixNanos,
    pub(super) outcome: Outcome,
}

/// One source.
struct Slow {
    source: Address,
    contacts: Vec<Past>,
    /// Successes that gave way to newer contacts; halved each hour.
    others: u32,
}

/// All sources.
pub(super) struct SlowTable {
    index: HashTable<u32>,
    sources: Vec<Slow>,
    capacity: usize,
    hand: usize,
    key: u64,
}

/// What a source did in both horizons, by failed contacts that its others do not outweigh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlowCounts {
    /// Failed within a quarter of an hour.
    pub(super) quarter: u32,
    /// Failed within a day.
    pub(super) day: u32,
}

impl SlowCounts {
    /// The count of one of the two horizons.
    pub(super) fn of(self, horizon: Duration) -> u32 {
        if horizon == QUARTER { self.quarter } else { self.day }
    }
}

impl Past {
    pub(super) const fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Refused | Outcome::Silent)
    }

    fn is_within(&self, now: UnixNanos, horizon: Duration) -> bool {
        self.last.plus(horizon) > now
    }
}

impl SlowTable {
    /// A table in `bytes`.
    pub(super) fn new(bytes: usize, key: u64) -> Self {
        let each = size_of::<Slow>() + KEPT * size_of::<Past>() + 4 * size_of::<u32>();
        let capacity = (bytes / each).max(1);
        Self {
            index: HashTable::with_capacity(2 * capacity),
            sources: Vec::with_capacity(capacity),
            capacity,
            hand: 0,
            key,
        }
    }

    /// Takes in a contact that left the window. Returns the source that gave way for it, if one with failed contacts
    /// did, and what it had done.
    pub(super) fn note(&mut self, past: &Past) -> Option<(Address, SlowCounts)> {
        let (number, gave_way) = self.place_of(past);
        self.note_at(number, past);
        gave_way.filter(|(_, counts)| counts.day > 0)
    }

    fn note_at(&mut self, number: usize, past: &Past) {
        let Slow { contacts, others, .. } = &mut self.sources[number];
        if let Some(held) = contacts.iter_mut().find(|held| held.key == past.key) {
            // What it became last counts: a service that is gone is no success.
            (held.outcome, held.last) = match past.last >= held.last {
                true => (past.outcome, past.last),
                false => (held.outcome, held.last),
            };
            held.first = held.first.min(past.first);
            return;
        }
        if contacts.len() == KEPT {
            let oldest = |(_, held): &(usize, &Past)| (held.has_failed(), held.last, held.key);
            let (place, _) = contacts.iter().enumerate().min_by_key(oldest).unwrap_or((0, past));
            *others += u32::from(!contacts[place].has_failed());
            contacts.swap_remove(place);
        }
        contacts.push(*past);
    }

    /// What a source did up to `now`.
    pub(super) fn counts(&self, source: Address, now: UnixNanos) -> SlowCounts {
        let within = |horizon| {
            // More than seven of ten failed: otherwise it is somebody with much to do.
            let (failed, others) = self.tally(source, now, horizon);
            if failed * 3 > others * 7 { failed } else { 0 }
        };
        SlowCounts { quarter: within(QUARTER), day: within(DAY) }
    }

    /// Contacts of a source within `horizon` before `now`: those that failed, and the others.
    pub(super) fn tally(&self, source: Address, now: UnixNanos, horizon: Duration) -> (u32, u32) {
        let contacts = self.of(source).unwrap_or_default();
        let count = |has_failed| {
            let is_counted =
                |past: &&Past| past.has_failed() == has_failed && past.is_within(now, horizon);
            contacts.iter().filter(is_counted).count() as u32
        };
        let gone = self.find(source).map_or(0, |number| self.sources[number].others);
        (count(true), count(false) + gone)
    }

    /// What is kept of a source.
    pub(super) fn of(&self, source: Address) -> Option<&[Past]> {
        self.find(source).map(|number| &*self.sources[number].contacts)
    }

    /// What was kept of a source, which is forgotten.
    pub(super) fn take(&mut self, source: Address) -> Vec<Past> {
        let Some(number) = self.find(source) else { return Vec::new() };
        self.sources[number].others = 0;
        std::mem::take(&mut self.sources[number].contacts)
    }

    /// Sources that have a place.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Forgets what is older than a day. To be called each hour.
    pub(super) fn forget(&mut self, now: UnixNanos) {
        for slow in &mut self.sources {
            slow.contacts.retain(|past| past.is_within(now, DAY));
            slow.others /= 2;
        }
    }

    fn find(&self, source: Address) -> Option<usize> {
        let is_it = |&number: &u32| self.sources[number as usize].source == source;
        self.index.find(hash(source, self.key), is_it).map(|&number| number as usize)
    }

    /// Where the source of `past` has its place, and who gave way for it.
    fn place_of(&mut self, past: &Past) -> (usize, Option<(Address, SlowCounts)>) {
        let source = past.key.source;
        if let Some(number) = self.find(source) {
            return (number, None);
        }
        let (number, gave_way) = if self.sources.len() < self.capacity {
            self.sources.push(Slow { source, contacts: Vec::new(), others: 0 });
            (self.sources.len() - 1, None)
        } else {
            let (number, gave_way) = self.make_way(past);
            (number, Some(gave_way))
        };
        let (key, sources) = (self.key, &self.sources);
        let rehash = |&number: &u32| hash(sources[number as usize].source, key);
        self.index.insert_unique(hash(source, key), number as u32, rehash);
        (number, gave_way)
    }

    /// Of a few sources, in turn, the one with the fewest failed contacts gives its place.
    fn make_way(&mut self, past: &Past) -> (usize, (Address, SlowCounts)) {
        let hand = self.hand;
        self.hand = (hand + 1) % self.sources.len();
        let stride = self.sources.len() / SAMPLE + 1;
        let sample = (0..SAMPLE).map(|step| (hand + step * stride) % self.sources.len());
        let failed = |slow: &Slow| slow.contacts.iter().filter(|past| past.has_failed()).count();
        let number = sample.min_by_key(|&number| failed(&self.sources[number])).unwrap_or(hand);
        let before = self.sources[number].source;
        let failed_within = |horizon| self.tally(before, past.last, horizon).0;
        let counts = SlowCounts { quarter: failed_within(QUARTER), day: failed_within(DAY) };
        if let Ok(held) =
            self.index.find_entry(hash(before, self.key), |&held| held as usize == number)
        {
            held.remove();
        }
        let slow = &mut self.sources[number];
        slow.source = past.key.source;
        slow.contacts.clear();
        slow.others = 0;
        (number, (before, counts))
    }
}

const fn hash(source: Address, key: u64) -> u64 {
    mix(source.low() ^ key, source.high() ^ key.rotate_left(21))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Class;

    const MINUTE: u64 = 60_000_000_000;

    fn past(source: u32, port: u16, minute: u64, outcome: Outcome) -> Past {
        let address = |n: u32| Address::from_v4(n.to_be_bytes());
        let key =
            ContactKey { source: address(source), target: address(9), class: Class::Tcp, port };
        let time = UnixNanos(minute * MINUTE);
        Past { key, first: time, last: time, outcome }
    }

    fn counts(table: &SlowTable, source: u32, minute: u64) -> (u32, u32) {
        let counts = table
            .counts(past(source, 0, 0, Outcome::Silent).key.source, UnixNanos(minute * MINUTE));
        (counts.quarter, counts.day)
    }

    #[test]
    fn distinct_failed_contacts_count_for_a_quarter_of_an_hour_and_for_a_day() {
        let mut table = SlowTable::new(1 << 20, 7);
        for port in 0..40 {
            table.note(&past(1, port, u64::from(port), Outcome::Refused));
            table.note(&past(1, port, u64::from(port), Outcome::Refused));
        }
        assert_eq!(counts(&table, 1, 39), (15, 40));
        assert_eq!(counts(&table, 1, 60), (0, 40));
        assert_eq!(counts(&table, 1, 20 + 24 * 60), (0, 19));
        assert_eq!(counts(&table, 2, 39), (0, 0));
    }

    #[test]
    fn who_mostly_succeeds_is_no_scanner() {
        let mut table = SlowTable::new(1 << 20, 7);
        for port in 0..60 {
            let outcome = if port % 3 == 0 { Outcome::Answered } else { Outcome::Silent };
            table.note(&past(1, port, 1, outcome));
        }
        assert_eq!(counts(&table, 1, 1), (0, 0));
        (0..20).for_each(|port| _ = table.note(&past(1, 3 * port, 2, Outcome::Refused)));
        assert_eq!(counts(&table, 1, 2), (60, 60));
    }

    #[test]
    fn successes_give_way_to_failures_and_count_all_the_same() {
        let mut table = SlowTable::new(1 << 20, 7);
        (0..64).for_each(|port| _ = table.note(&past(1, port, 1, Outcome::Answered)));
        (100..160).for_each(|port| _ = table.note(&past(1, port, 2, Outcome::Silent)));
        assert_eq!(counts(&table, 1, 2), (0, 0), "fewer than half failed");
        (0..2).for_each(|_| table.forget(UnixNanos(2 * MINUTE)));
        assert_eq!(counts(&table, 1, 2), (60, 60), "two hours later");
        assert_eq!(table.of(past(1, 0, 0, Outcome::Silent).key.source).unwrap().len(), KEPT);
    }

    #[test]
    fn sources_with_little_evidence_give_way() {
        let mut table = SlowTable::new(200_000, 7);
        let room = table.capacity as u32;
        (0..30).for_each(|port| _ = table.note(&past(1, port, 1, Outcome::Refused)));
        let lost = (2..20 * room).filter_map(|n| table.note(&past(n, 1, 1, Outcome::Refused)));
        let lost: Vec<SlowCounts> = lost.map(|(_, counts)| counts).collect();
        assert_eq!(counts(&table, 1, 1), (30, 30));
        assert!(lost.len() > 10 * room as usize && table.len() <= room as usize);
        assert!(lost.iter().all(|counts| *counts == SlowCounts { quarter: 1, day: 1 }));
    }
}
