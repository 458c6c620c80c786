//! Contacts that have something in common, counted together.

use hashbrown::HashTable;
use packet::{Address, mix};

use super::Technique;
use crate::evidence::Class;
use crate::hardware::take;

/// What contacts have in common. The order is that in which alerts are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum GroupKey {
    /// All that a source attempts.
    Source { source: Address },
    /// Ports, or protocols, of one target by one technique.
    Ports { source: Address, target: Address, technique: Technique },
    /// Hosts, by one service.
    Hosts { source: Address, class: Class, port: u16 },
    /// All that is attempted at a target.
    Target { target: Address },
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
    /// First contact of the list, of sources and targets.
    pub(super) head: u32,
    /// Failed contacts from which on a closer look is worth it.
    pub(super) look_at: u32,
    /// Of a source: contacts on which it sent data that nobody was seen to answer.
    pub(super) one_way: u32,
    /// Waits to be compared with its threshold.
    pub(super) has_grown: bool,
}

/// Groups, found by their key.
pub(super) struct Groups {
    index: HashTable<u32>,
    slab: Vec<Group>,
    free: Vec<u32>,
    capacity: usize,
    key: u64,
}

/// No group, no contact.
pub(super) const NONE: u32 = u32::MAX;

impl Group {
    /// After it shrank a lot, what grows anew is worth a look as soon as before.
    pub(super) const fn look_again(&mut self) {
        if self.failed < self.look_at / 2 {
            self.look_at = 0;
        }
    }
}

impl GroupKey {
    /// Who attempts; `None` of a group of many sources.
    pub(super) const fn source(self) -> Option<Address> {
        match self {
            Self::Source { source } | Self::Ports { source, .. } | Self::Hosts { source, .. } => {
                Some(source)
            }
            Self::Target { .. } => None,
        }
    }
}

impl Groups {
    /// Memory of so many groups, without their index. Unit: bytes.
    pub(super) const BYTES: usize = size_of::<Group>() + size_of::<u32>();

    pub(super) fn new(capacity: usize, key: u64) -> Self {
        Self {
            // Twice as much, so that it never grows.
            index: HashTable::with_capacity(2 * capacity),
            slab: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            capacity,
            key,
        }
    }

    /// Has the system give all memory now.
    pub(super) fn take_memory(&mut self) {
        take(self.slab.spare_capacity_mut());
        take(self.free.spare_capacity_mut());
        take_index(&mut self.index);
    }

    pub(super) fn find(&self, key: &GroupKey) -> Option<u32> {
        let slab = &self.slab;
        let is_it = |&number: &u32| slab[number as usize].key == *key;
        self.index.find(hash(key, self.key), is_it).copied()
    }

    /// Counts a contact in the group with this key, which is made if need be. Returns its number, and
    /// whether it was made; `None` if there is no room for another group.
    pub(super) fn join(&mut self, key: GroupKey) -> Option<(u32, bool)> {
        let found = self.find(&key);
        let number = match found {
            Some(number) => number,
            None if self.index.len() == self.capacity => return None,
            None => self.make(key),
        };
        self.slab[number as usize].attempted += 1;
        Some((number, found.is_none()))
    }

    fn make(&mut self, key: GroupKey) -> u32 {
        let group = Group {
            key,
            attempted: 0,
            failed: 0,
            alert: 0,
            head: NONE,
            look_at: 0,
            one_way: 0,
            has_grown: false,
        };
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
        let hash_of = |&number: &u32| hash(&slab[number as usize].key, seed);
        self.index.insert_unique(hash(&key, seed), number, hash_of);
        number
    }

    pub(super) fn leave(&mut self, number: u32, has_failed: bool) {
        let group = &mut self.slab[number as usize];
        group.attempted -= 1;
        group.failed -= u32::from(has_failed);
        group.look_again();
        if group.attempted > 0 {
            return;
        }
        group.has_grown = false;
        let hash = hash(&group.key, self.key);
        if let Ok(held) = self.index.find_entry(hash, |&held| held == number) {
            held.remove();
        }
        self.free.push(number);
    }

    /// Groups held now.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn of(&mut self, number: u32) -> &mut Group {
        &mut self.slab[number as usize]
    }

    pub(super) fn get(&self, number: u32) -> &Group {
        &self.slab[number as usize]
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> [usize; 4] {
        let Self { index, slab, free, .. } = self;
        [index.len(), index.capacity(), slab.capacity(), free.capacity()]
    }
}

/// Has the system give the memory of an empty index now.
pub(super) fn take_index(index: &mut HashTable<u32>) {
    let hash = |&number: &u32| mix(u64::from(number), 0);
    for number in 0..index.capacity() as u32 {
        index.insert_unique(hash(&number), number, hash);
    }
    index.clear();
}

fn hash(key: &GroupKey, seed: u64) -> u64 {
    let (address, other, rest) = match *key {
        GroupKey::Source { source } => (source, Address::default(), 1),
        GroupKey::Target { target } => (target, Address::default(), 2),
        GroupKey::Ports { source, target, technique } => (source, target, 3 + technique as u64),
        GroupKey::Hosts { source, class, port } => {
            (source, Address::default(), (class as u64 + 1) << 32 | u64::from(port))
        }
    };
    let first = mix(address.low() ^ seed, address.high() ^ seed.rotate_left(21));
    let second = mix(other.low() ^ first, other.high() ^ seed.rotate_left(42));
    mix(second, rest ^ seed)
}
