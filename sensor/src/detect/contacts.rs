//! Every contact of the window, and the groups that it is in.
//!
//! ```text
//!   index   key → number                     (source, target, port)
//!   entries number → contact and its state ──┬─▶ group (source, target): its ports
//!                                            └─▶ group (source, port): its hosts
//! ```
//!
//! Memory is fixed. When it is full, of a few entries the one with the least evidence gives way:
//! a contact nobody attempted, then one that was answered, then one alone in its groups.

use hashbrown::HashTable;

use super::outcomes::Outcome;
use super::wheel::Wheel;
use crate::evidence::{Contact, ContactKey, Observation};
use crate::hardware::take;
use crate::packet::{Address, mix};

/// Contacts, groups and timers.
pub(super) struct Contacts {
    index: HashTable<u32>,
    pub(super) entries: Vec<Entry>,
    pub(super) groups: Groups,
    pub(super) wheel: Wheel,
    free: Vec<u32>,
    capacity: usize,
    /// Where the next search for the least evidence begins.
    hand: usize,
    key: u64,
}

/// A contact of the window and its state.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// What all workers said, merged.
    pub(super) contact: Contact,
    /// Which workers said it, one bit each.
    pub(super) workers: u64,
    /// Groups (source, target) and (source, port); [`NONE`] before the first attempt is counted.
    pub(super) groups: [u32; 2],
    /// The entry holds a contact.
    pub(super) is_live: bool,
    /// Waits for the next tick.
    pub(super) is_touched: bool,
    /// It was due without an answer.
    pub(super) is_silent: bool,
    /// It was due, but an answer could have been lost.
    pub(super) is_undecidable: bool,
    /// Its groups count it as failed.
    pub(super) is_failed: bool,
}

/// The contacts that a threshold is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum GroupKey {
    /// Ports of one target.
    Vertical { source: Address, target: Address },
    /// Hosts on one port.
    Horizontal { source: Address, port: u16 },
}

/// A group of contacts that were attempted.
#[derive(Clone, Copy)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    /// Contacts in it.
    pub(super) attempted: u32,
    /// Of those: failed.
    pub(super) failed: u32,
    /// Alert that tells about it; 0 is none.
    pub(super) alert: u64,
    /// Waits to be compared with its threshold.
    pub(super) has_grown: bool,
    /// Its contacts are about to be told to its alert.
    pub(super) is_fresh: bool,
}

/// Groups, found by their key. As many as all contacts can have: two each.
pub(super) struct Groups {
    index: HashTable<u32>,
    slab: Vec<Group>,
    free: Vec<u32>,
    key: u64,
}

/// No group.
pub(super) const NONE: u32 = u32::MAX;

/// Entries that are compared when one has to give way.
const SAMPLE: usize = 8;

impl Entry {
    pub(super) const fn is_attempted(&self) -> bool {
        self.contact.flags.has(Observation::Attempted)
    }

    /// Attempted, and failed for all that is known.
    pub(super) fn has_failed(&self) -> bool {
        self.is_attempted() && matches!(self.outcome(), Outcome::Refused | Outcome::Silent)
    }

    /// Attempted, and waiting for an answer.
    pub(super) fn is_undecided(&self) -> bool {
        self.is_attempted() && self.outcome() == Outcome::Undecided && !self.is_undecidable
    }

    pub(super) const fn outcome(&self) -> Outcome {
        if self.contact.flags.has(Observation::Answered) {
            Outcome::Answered
        } else if self.contact.flags.has(Observation::Refused) {
            Outcome::Refused
        } else if self.is_silent {
            Outcome::Silent
        } else {
            Outcome::Undecided
        }
    }
}

impl Contacts {
    /// Contacts that fit into `bytes`.
    pub(super) fn fitting(bytes: usize) -> usize {
        let mut capacity = bytes / 128;
        while capacity > 64 && Self::memory(capacity) > bytes {
            capacity -= capacity / 64;
        }
        capacity
    }

    /// Memory of tables for `capacity` contacts. Unit: bytes.
    pub(super) fn memory(capacity: usize) -> usize {
        let number = size_of::<u32>();
        // An index is at most 7/8 full, its size a power of two, one control byte for each number.
        let index = |entries: usize| (entries * 8 / 7).next_power_of_two() * (number + 1);
        let groups = 2 * capacity;
        // Four lists of numbers: free ones, those that wait for the tick, and two groups of each.
        capacity * (size_of::<Entry>() + 4 * number + Wheel::BYTES)
            + groups * (size_of::<Group>() + number)
            + index(capacity)
            + index(groups)
    }

    pub(super) fn new(capacity: usize, key: u64) -> Self {
        let groups = 2 * capacity;
        Self {
            index: HashTable::with_capacity(capacity),
            entries: Vec::with_capacity(capacity),
            groups: Groups {
                index: HashTable::with_capacity(groups),
                slab: Vec::with_capacity(groups),
                free: Vec::with_capacity(groups),
                key,
            },
            wheel: Wheel::new(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
            hand: 0,
            key,
        }
    }

    /// Has the system give all memory now.
    pub(super) fn take_memory(&mut self) {
        let Self { index, entries, groups, wheel, free, .. } = self;
        take(entries.spare_capacity_mut());
        take(free.spare_capacity_mut());
        take(groups.slab.spare_capacity_mut());
        take(groups.free.spare_capacity_mut());
        wheel.take_memory();
        for index in [index, &mut groups.index] {
            let hash = |&number: &u32| mix(u64::from(number), 0);
            for number in 0..index.capacity() as u32 {
                index.insert_unique(hash(&number), number, hash);
            }
            index.clear();
        }
    }

    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Contacts held now.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Number of the contact with this key.
    pub(super) fn find(&self, key: &ContactKey) -> Option<u32> {
        let entries = &self.entries;
        let is_it = |&number: &u32| entries[number as usize].contact.key == *key;
        self.index.find(hash_contact(key, self.key), is_it).copied()
    }

    /// Takes in a contact that is not held. Returns its number, and whether another gave way.
    pub(super) fn insert(&mut self, contact: &Contact) -> (u32, bool) {
        let mut entry = Entry {
            contact: *contact,
            workers: 0,
            groups: [NONE; 2],
            is_live: true,
            is_touched: false,
            is_silent: false,
            is_undecidable: false,
            is_failed: false,
        };
        let is_full = self.index.len() == self.capacity;
        if is_full {
            let victim = self.least_evidence();
            // The new entry waits in the place of the old one.
            entry.is_touched = self.entries[victim as usize].is_touched;
            self.remove(victim);
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        let (key, entries) = (self.key, &self.entries);
        let hash = |&number: &u32| hash_contact(&entries[number as usize].contact.key, key);
        self.index.insert_unique(hash_contact(&contact.key, key), number, hash);
        (number, is_full)
    }

    /// Forgets a contact: its timer, its part in its groups, itself.
    pub(super) fn remove(&mut self, number: u32) {
        let entry = self.entries[number as usize];
        self.wheel.cancel(number);
        for group in entry.groups.into_iter().filter(|&group| group != NONE) {
            self.groups.leave(group, entry.is_failed);
        }
        let hash = hash_contact(&entry.contact.key, self.key);
        if let Ok(held) = self.index.find_entry(hash, |&held| held == number) {
            held.remove();
        }
        self.entries[number as usize].is_live = false;
        self.free.push(number);
    }

    /// Of a few entries, in turn, the one with the least evidence. There must be an entry.
    fn least_evidence(&mut self) -> u32 {
        let hand = self.hand;
        self.hand = (hand + 1) % self.entries.len();
        // Far apart: neighbours came together and are often of one source.
        let stride = self.entries.len() / SAMPLE + 1;
        let sample = (0..SAMPLE).map(|step| (hand + step * stride) % self.entries.len());
        let least = sample.min_by_key(|&number| self.evidence(&self.entries[number]));
        least.unwrap_or(hand) as u32
    }

    /// How much an entry is worth: the size of its larger group, if it may count at all.
    fn evidence(&self, entry: &Entry) -> u32 {
        if !entry.is_attempted() {
            return 0;
        }
        if entry.outcome() == Outcome::Answered {
            return 1;
        }
        let groups = entry.groups.into_iter().filter(|&group| group != NONE);
        2 + groups.map(|group| self.groups.slab[group as usize].attempted).max().unwrap_or(0)
    }
}

impl Groups {
    /// Counts a contact in the group with this key, which is made if need be. Returns its number, and
    /// whether it was made.
    pub(super) fn join(&mut self, key: GroupKey) -> (u32, bool) {
        let (slab, seed) = (&self.slab, self.key);
        let hash = hash_group(&key, seed);
        let found = self.index.find(hash, |&number| slab[number as usize].key == key).copied();
        let number = found.unwrap_or_else(|| self.make(key, hash));
        self.slab[number as usize].attempted += 1;
        (number, found.is_none())
    }

    fn make(&mut self, key: GroupKey, hash: u64) -> u32 {
        let group =
            Group { key, attempted: 0, failed: 0, alert: 0, has_grown: false, is_fresh: false };
        let number = match self.free.pop() {
            Some(number) => {
                self.slab[number as usize] = group;
                number
            }
            None => {
                self.slab.push(group);
                (self.slab.len() - 1) as u32
            }
        };
        let (slab, seed) = (&self.slab, self.key);
        let hash_of = |&number: &u32| hash_group(&slab[number as usize].key, seed);
        self.index.insert_unique(hash, number, hash_of);
        number
    }

    fn leave(&mut self, number: u32, was_failed: bool) {
        let group = &mut self.slab[number as usize];
        group.attempted -= 1;
        group.failed -= u32::from(was_failed);
        if group.attempted > 0 {
            return;
        }
        (group.has_grown, group.is_fresh) = (false, false);
        let hash = hash_group(&group.key, self.key);
        if let Ok(held) = self.index.find_entry(hash, |&held| held == number) {
            held.remove();
        }
        self.free.push(number);
    }

    pub(super) fn of(&mut self, number: u32) -> &mut Group {
        &mut self.slab[number as usize]
    }
}

const fn hash_contact(key: &ContactKey, seed: u64) -> u64 {
    let source = mix(key.source.low() ^ seed, key.source.high() ^ seed.rotate_left(21));
    let target = mix(key.target.low() ^ source, key.target.high() ^ seed.rotate_left(42));
    mix(target, key.port as u64 ^ seed)
}

const fn hash_group(key: &GroupKey, seed: u64) -> u64 {
    let (source, low, high) = match key {
        GroupKey::Vertical { source, target } => (source, target.low(), target.high()),
        GroupKey::Horizontal { source, port } => (source, *port as u64, u64::MAX),
    };
    let source = mix(source.low() ^ seed, source.high() ^ seed.rotate_left(21));
    mix(low ^ source, high ^ seed.rotate_left(42))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_the_memory_changes_no_size_and_leaves_the_tables_empty() {
        let mut contacts = Contacts::new(1000, 7);
        let room = |it: &Contacts| {
            let Contacts { index, entries, groups, free, .. } = it;
            let lists = [entries.capacity(), free.capacity(), groups.slab.capacity()];
            (index.capacity(), groups.index.capacity(), lists, groups.free.capacity())
        };
        let before = room(&contacts);
        contacts.take_memory();
        assert_eq!(room(&contacts), before);
        assert_eq!((contacts.len(), contacts.groups.index.len()), (0, 0));
        assert!(contacts.entries.is_empty() && contacts.groups.slab.is_empty());
    }
}
