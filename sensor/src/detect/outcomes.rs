//! Distinct contacts of one alert with their outcome: exact up to a limit, then a sample.
//!
//! Each contact is a 62-bit fingerprint with two bits of outcome. When the set is full, it keeps only
//! those fingerprints that begin with one more zero bit, and each then stands for twice as many
//! (Source: Flajolet, "On adaptive sampling", Computing 43, 1990). Which contacts stay depends on the
//! contacts alone, so that the counts are the same in whatever order they arrive.

use hashbrown::HashTable;

/// What became of a contact. A later one of the list overrules an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Outcome {
    /// Not decided yet, or not decidable.
    Undecided,
    /// No answer in time.
    Silent,
    /// Refused and not answered.
    Refused,
    /// Answered.
    Answered,
}

/// Distinct contacts with their outcome.
#[derive(Default)]
pub(super) struct OutcomeSet {
    /// Fingerprint with the outcome in the lower two bits.
    table: HashTable<u64>,
    counts: [u64; OUTCOMES],
    /// Contacts that the table may hold now. Doubles from [`LEAST`] to [`EXACT`].
    room: usize,
    /// Each contact in the table stands for 2^level.
    level: u32,
}

/// Contacts that are counted one by one: every port of a host.
const EXACT: usize = 65_536;

/// Contacts that a set may hold even when all sets together have no room.
const LEAST: usize = 64;

const OUTCOMES: usize = 4;

const OUTCOME: u64 = OUTCOMES as u64 - 1;

impl OutcomeSet {
    /// Bytes for each contact that there is room for: a table is at most half full, and has a control
    /// byte for each place.
    pub(super) const BYTES: usize = 2 * (size_of::<u64>() + 1);

    /// Memory of a set that took no room from the others. Unit: bytes.
    pub(super) const LEAST_BYTES: usize = LEAST * Self::BYTES;

    /// Takes in a contact; its outcome only moves up. `spare` is the room for contacts that all sets
    /// share: what this set allocates is taken from it.
    pub(super) fn record(&mut self, fingerprint: u64, outcome: Outcome, spare: &mut usize) {
        if !is_sampled(fingerprint, self.level) {
            return;
        }
        let word = fingerprint & !OUTCOME | outcome as u64;
        if let Some(held) = self.table.find_mut(hash(word), |held| (held ^ word) & !OUTCOME == 0) {
            let before = (*held & OUTCOME) as usize;
            if outcome as usize > before {
                *held = word;
                self.counts[before] -= 1;
                self.counts[outcome as usize] += 1;
            }
            return;
        }
        self.make_room(spare);
        if is_sampled(fingerprint, self.level) {
            self.table.insert_unique(hash(word), word, |&word| hash(word));
            self.counts[outcome as usize] += 1;
        }
    }

    /// All contacts.
    pub(super) fn total(&self) -> u64 {
        self.counts.iter().sum::<u64>() << self.level
    }

    /// Contacts with this outcome.
    pub(super) const fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize] << self.level
    }

    /// Are the counts estimates?
    pub(super) const fn is_estimated(&self) -> bool {
        self.level > 0
    }

    /// Room for contacts that this set took from what all sets share.
    pub(super) const fn room_taken(&self) -> usize {
        self.room.saturating_sub(LEAST)
    }

    fn make_room(&mut self, spare: &mut usize) {
        if self.room == 0 {
            self.room = LEAST;
            self.table.reserve(LEAST, |&word| hash(word));
        }
        while self.table.len() >= self.room {
            if self.room < EXACT && *spare >= self.room {
                *spare -= self.room;
                self.table.reserve(self.room * 2 - self.table.len(), |&word| hash(word));
                self.room *= 2;
            } else {
                self.thin();
            }
        }
    }

    fn thin(&mut self) {
        self.level += 1;
        self.counts = [0; OUTCOMES];
        // A new table: removing from the old one would leave marks that take its room.
        let mut table = HashTable::with_capacity(self.room);
        for &word in self.table.iter().filter(|&&word| is_sampled(word, self.level)) {
            self.counts[(word & OUTCOME) as usize] += 1;
            table.insert_unique(hash(word), word, |&word| hash(word));
        }
        self.table = table;
    }
}

/// The table's hash of a word: without its outcome, and with the bits that [`is_sampled`] looks at
/// where the table does not look.
const fn hash(word: u64) -> u64 {
    (word | OUTCOME).rotate_left(31)
}

const fn is_sampled(fingerprint: u64, level: u32) -> bool {
    fingerprint >> 2 & ((1 << level) - 1) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::mix;

    const PLENTY: usize = 1 << 20;

    #[test]
    fn outcomes_only_move_up_and_repeats_never_count() {
        let mut set = OutcomeSet::default();
        for outcome in [
            Outcome::Undecided,
            Outcome::Refused,
            Outcome::Silent,
            Outcome::Answered,
            Outcome::Refused,
        ] {
            set.record(mix(1, 2), outcome, &mut { PLENTY });
        }
        assert_eq!((set.total(), set.count(Outcome::Answered)), (1, 1));
    }

    #[test]
    fn every_port_of_a_host_is_counted_exactly() {
        let mut set = OutcomeSet::default();
        for port in 0..65_536 {
            set.record(mix(port, 9), Outcome::Silent, &mut { PLENTY });
        }
        assert_eq!((set.total(), set.is_estimated()), (65_536, false));
    }

    #[test]
    fn beyond_the_limit_counts_are_close_and_said_to_be_estimates() {
        let mut set = OutcomeSet::default();
        for contact in 0..1_000_000 {
            let outcome = if contact % 4 == 0 { Outcome::Refused } else { Outcome::Silent };
            set.record(mix(contact, 9), outcome, &mut { PLENTY });
        }
        assert!(set.is_estimated());
        for (count, truth) in [(set.total(), 1e6), (set.count(Outcome::Refused), 250e3)] {
            let error = (count as f64 - truth).abs() / truth;
            assert!(error < 0.02, "{count} for {truth}");
        }
    }

    #[test]
    fn without_room_a_set_stays_small_and_estimates() {
        let (mut set, mut spare) = (OutcomeSet::default(), 0);
        for contact in 0..10_000 {
            set.record(mix(contact, 9), Outcome::Silent, &mut spare);
        }
        assert_eq!(set.room_taken(), 0);
        assert!(set.is_estimated() && (6_000..14_000).contains(&set.total()), "{}", set.total());
    }

    #[test]
    fn counts_do_not_depend_on_the_order() {
        let count = |contacts: &mut dyn Iterator<Item = u64>| {
            let (mut set, mut spare) = (OutcomeSet::default(), 1000);
            contacts.for_each(|n| set.record(mix(n, 9), Outcome::Silent, &mut spare));
            set.total()
        };
        assert_eq!(count(&mut (0..200_000)), count(&mut (0..200_000).rev()));
    }
}
