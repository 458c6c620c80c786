//! Every contact of the window, and the groups that it is in.
//!
//! ```text
//!   index   key → number                     (source, target, service)
//!   entries number → contact and its state ──┬─▶ group of its source, which lists its contacts
//!                                            ├─▶ group of its target, which lists its contacts
//!                                            ├─▶ group (source, service): its hosts
//!                                            └─▶ groups (source, target, technique): its ports
//! ```
//!
//! Memory is fixed. When it is full, of a few entries the one with the least evidence gives way:
//! a contact nobody attempted, then one whose source has few, of equals one that was answered.

use hashbrown::HashTable;
use packet::mix;

use super::Technique;
use super::groups::{GroupKey, Groups, NONE, take_index};
use super::outcomes::Outcome;
use super::view::{Due, Handshake};
use super::wheel::Wheel;
use crate::evidence::{Class, Contact, ContactKey, Flags, Observation};
use crate::hardware::take;

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
    /// Its groups, by slot; [`NONE`] before it counts there.
    pub(super) groups: [u32; SLOTS],
    /// Neighbours in the lists of its source and of its target: the one before, the one after.
    links: [[u32; 2]; LISTS],
    /// The slots of groups that count it as failed, one bit each.
    pub(super) failed_in: u16,
    /// The entry holds a contact.
    pub(super) is_live: bool,
    /// Waits for the next tick.
    pub(super) is_touched: bool,
    /// What it is without an answer.
    pub(super) due: Due,
    /// An alert told about it.
    pub(super) is_told: bool,
    /// What was seen of its handshake.
    pub(super) seen: Handshake,
}

/// Groups that a contact can be in: source, target, hosts, and ports by each technique, of which each has a slot of
/// its own, so that it does not matter which came first.
pub(super) const SLOTS: usize = PORTS + TECHNIQUES;
/// The slot of the source's group.
pub(super) const SOURCE: usize = 0;
/// The slot of the target's group.
pub(super) const TARGET: usize = 1;
const HOSTS: usize = 2;
const PORTS: usize = 3;
/// The ordinary one, and the odd ones of TCP.
const TECHNIQUES: usize = 7;

/// Slots of groups that list their contacts: the first ones.
const LISTS: usize = 2;

/// Groups for each contact that there is room for. Contacts of a scan share most of theirs; in a flood each
/// has four of its own, and contacts give way before all have groups.
const GROUPS: usize = 2;

/// Entries that are compared when one has to give way.
const SAMPLE: usize = 8;

impl Entry {
    /// Takes in what a worker says about the contact.
    pub(super) fn merge(&mut self, contact: &Contact) {
        let claims = |flags: Flags| (flags.has_completed(), flags.has(Observation::Carried));
        let before = claims(self.contact.flags);
        self.contact.merge(contact);
        if claims(self.contact.flags) != before && matches!(self.due, Due::Silent | Due::Unclear) {
            // By what its source says now it may have been answered: to be looked at again.
            self.due = Due::NotYet;
        }
    }

    /// An answer to an attempt that is not known yet: whoever forgets it makes the attempt look silent. Of a refusal
    /// that would be no matter, as both are failures.
    pub(super) const fn is_orphan(&self) -> bool {
        self.contact.flags.has(Observation::Answered) && !self.contact.flags.has_attempt()
    }

    pub(super) const fn is_attempted(&self) -> bool {
        self.contact.flags.has_attempt()
    }

    /// Attempted, and waiting for an answer.
    pub(super) fn is_undecided(&self) -> bool {
        self.is_attempted()
            && self.outcome() == Outcome::Undecided
            && self.due == Due::NotYet
            && !self.contact.flags.has(Observation::Exceeded)
    }

    pub(super) const fn outcome(&self) -> Outcome {
        let flags = self.contact.flags;
        if flags.has(Observation::Answered) {
            Outcome::Answered
        } else if flags.has(Observation::Refused) {
            Outcome::Refused
        } else {
            // What the source sends by itself, an acknowledgement included, makes no success of it.
            match self.due {
                Due::Unseen => Outcome::Answered,
                Due::Silent if !flags.has(Observation::Exceeded) => Outcome::Silent,
                _ => Outcome::Undecided,
            }
        }
    }

    /// The handshake was completed, and the target did not take it back: answers reach the source.
    pub(super) const fn proves_source(&self) -> bool {
        let flags = self.contact.flags;
        flags.has_completed()
            && flags.has(Observation::Answered)
            && !flags.has(Observation::Refused)
    }

    /// An ordinary attempt at a port of a host, with a known end.
    pub(super) fn counts_for_slow_scans(&self) -> bool {
        self.groups[TARGET] != NONE && self.outcome() != Outcome::Undecided
    }

    /// Neither answered nor undecided.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome(), Outcome::Refused | Outcome::Silent)
    }

    /// Is it evidence against its source in the group with this key?
    pub(super) fn fails_in(&self, key: &GroupKey) -> bool {
        let flags = self.contact.flags;
        let is_ordinary = flags.has(Observation::Attempted) && self.has_failed();
        match key {
            GroupKey::Source { .. } | GroupKey::Target { .. } => is_ordinary,
            GroupKey::Hosts { .. } => is_ordinary || has_impossible(flags),
            GroupKey::Ports { technique, .. } => match technique {
                Technique::Null | Technique::Fin | Technique::Xmas | Technique::SynFin => true,
                // Ordinary as such: only that nobody knows the connection tells.
                Technique::Maimon | Technique::Ack => self.outcome() == Outcome::Refused,
                _ => is_ordinary,
            },
        }
    }

    /// The groups that it belongs to, by slot, for all that is known.
    pub(super) fn group_keys(&self) -> [Option<GroupKey>; SLOTS] {
        let ContactKey { source, target, class, port } = self.contact.key;
        let flags = self.contact.flags;
        let is_ordinary = flags.has(Observation::Attempted);
        let has_ports = matches!(class, Class::Tcp | Class::Udp);
        let has_hosts = class != Class::Ip && (is_ordinary || has_impossible(flags));
        let mut keys = [None; SLOTS];
        keys[SOURCE] = flags.has_attempt().then_some(GroupKey::Source { source });
        keys[TARGET] = (is_ordinary && has_ports).then_some(GroupKey::Target { target });
        keys[HOSTS] = has_hosts.then_some(GroupKey::Hosts { source, class, port });
        for technique in techniques(class, flags) {
            keys[slot_of(technique)] = Some(GroupKey::Ports { source, target, technique });
        }
        keys
    }
}

/// Techniques that no ordinary segment has.
const IMPOSSIBLE: [(Observation, Technique); 4] = [
    (Observation::Null, Technique::Null),
    (Observation::Fin, Technique::Fin),
    (Observation::Xmas, Technique::Xmas),
    (Observation::SynFin, Technique::SynFin),
];

/// The slot of the group of ports by this technique.
const fn slot_of(technique: Technique) -> usize {
    match technique {
        Technique::Null => PORTS + 1,
        Technique::Fin => PORTS + 2,
        Technique::Xmas => PORTS + 3,
        Technique::SynFin => PORTS + 4,
        Technique::Maimon => PORTS + 5,
        Technique::Ack => PORTS + 6,
        // A contact has one class, so one of these.
        Technique::Syn | Technique::Udp | Technique::Echo | Technique::Arp | Technique::Ip => PORTS,
    }
}

fn has_impossible(flags: Flags) -> bool {
    flags.has_odd() && IMPOSSIBLE.iter().any(|(observation, _)| flags.has(*observation))
}

/// By what its ports are attempted.
pub(super) fn techniques(class: Class, flags: Flags) -> impl Iterator<Item = Technique> {
    let ordinary = match class {
        Class::Tcp => Some(Technique::Syn),
        Class::Udp => Some(Technique::Udp),
        Class::Ip => Some(Technique::Ip),
        Class::Icmp | Class::Arp => None,
    };
    let others = [(Observation::Maimon, Technique::Maimon), (Observation::Ack, Technique::Ack)];
    let odd = IMPOSSIBLE.into_iter().chain(others);
    ordinary
        .filter(move |_| flags.has(Observation::Attempted))
        .into_iter()
        .chain(odd.filter(move |(observation, _)| flags.has(*observation)).map(|(_, by)| by))
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
        let index = |entries: usize| (2 * entries * 8 / 7).next_power_of_two() * (number + 1);
        let groups = GROUPS * capacity;
        // Lists of numbers: free ones, those that wait for the tick, and groups that grew.
        capacity * (size_of::<Entry>() + (2 + GROUPS) * number + Wheel::BYTES)
            + groups * Groups::BYTES
            + index(capacity)
            + index(groups)
    }

    pub(super) fn new(capacity: usize, key: u64) -> Self {
        Self {
            // Twice as much: a table that is less than half full never grows, however often it changes.
            index: HashTable::with_capacity(2 * capacity),
            entries: Vec::with_capacity(capacity),
            groups: Groups::new(GROUPS * capacity, key),
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
        groups.take_memory();
        wheel.take_memory();
        take_index(index);
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

    /// Is there no room for another contact?
    pub(super) fn is_full(&self) -> bool {
        self.index.len() == self.capacity
    }

    /// Takes in a contact that is not held. Returns its number. There must be room.
    pub(super) fn insert(&mut self, contact: &Contact) -> u32 {
        let entry = Entry {
            contact: *contact,
            workers: 0,
            groups: [NONE; SLOTS],
            links: [[NONE; 2]; LISTS],
            failed_in: 0,
            is_live: true,
            is_touched: false,
            due: Due::NotYet,
            is_told: false,
            seen: Handshake::None,
        };
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
        number
    }

    /// Counts a contact in a group. Returns the group's number, and whether it was made; `None` if there is no
    /// room for it.
    pub(super) fn join(&mut self, number: u32, slot: usize, key: GroupKey) -> Option<(u32, bool)> {
        let (group, is_new) = self.groups.join(key)?;
        self.entries[number as usize].groups[slot] = group;
        if slot < LISTS {
            let head = std::mem::replace(&mut self.groups.of(group).head, number);
            self.entries[number as usize].links[slot] = [NONE, head];
            if head != NONE {
                self.entries[head as usize].links[slot][0] = number;
            }
        }
        Some((group, is_new))
    }

    /// Notes of the contacts of `group`, found in the list of their source or target, that they were told.
    pub(super) fn note_told(&mut self, slot: usize, list: u32, group: u32) {
        let mut next = self.groups.get(list).head;
        while let Some(entry) = self.entries.get_mut(next as usize) {
            entry.is_told |= entry.groups.contains(&group);
            next = entry.links[slot][1];
        }
    }

    /// Contacts of the group of a source or a target.
    pub(super) fn list(&self, slot: usize, group: u32) -> impl Iterator<Item = &Entry> {
        let mut next = self.groups.get(group).head;
        std::iter::from_fn(move || {
            let entry = self.entries.get(next as usize)?;
            next = entry.links[slot][1];
            Some(entry)
        })
    }

    /// Forgets a contact: its timer, its part in its groups, itself.
    pub(super) fn remove(&mut self, number: u32) {
        let entry = self.entries[number as usize];
        self.wheel.cancel(number);
        for (slot, group) in entry.groups.into_iter().enumerate() {
            if group == NONE {
                continue;
            }
            if slot < LISTS {
                self.unlink(slot, group, entry.links[slot]);
            }
            self.groups.leave(group, entry.failed_in >> slot & 1 == 1);
        }
        let hash = hash_contact(&entry.contact.key, self.key);
        if let Ok(held) = self.index.find_entry(hash, |&held| held == number) {
            held.remove();
        }
        self.entries[number as usize].is_live = false;
        self.free.push(number);
    }

    fn unlink(&mut self, slot: usize, group: u32, [before, after]: [u32; 2]) {
        match before {
            NONE => self.groups.of(group).head = after,
            before => self.entries[before as usize].links[slot][1] = after,
        }
        if after != NONE {
            self.entries[after as usize].links[slot][0] = before;
        }
    }

    /// Of a few entries, in turn, the one with the least evidence. There must be an entry.
    pub(super) fn least_evidence(&mut self) -> u32 {
        self.least_of(|_| true)
    }

    /// As [`Contacts::least_evidence`], of those that are in groups.
    pub(super) fn least_in_groups(&mut self) -> u32 {
        self.least_of(|entry| entry.groups[SOURCE] != NONE)
    }

    fn least_of(&mut self, is_asked_for: impl Fn(&Entry) -> bool) -> u32 {
        let hand = self.hand;
        self.hand = (hand + 1) % self.entries.len();
        // Far apart: neighbours came together and are often of one source.
        let stride = self.entries.len() / SAMPLE + 1;
        let walk = (0..SAMPLE * SAMPLE).map(|step| (hand + step * stride) % self.entries.len());
        let is_candidate = |&number: &usize| {
            let entry = &self.entries[number];
            entry.is_live && is_asked_for(entry)
        };
        let sample = walk.filter(is_candidate).take(SAMPLE);
        let least = sample.min_by_key(|&number| self.evidence(&self.entries[number]));
        least.unwrap_or(hand) as u32
    }

    /// How much an entry is worth: the size of the largest group of its source, if it may count at all.
    fn evidence(&self, entry: &Entry) -> u32 {
        if !entry.is_attempted() {
            return 0;
        }
        let groups = entry.groups.into_iter().filter(|&group| group != NONE);
        let of_source = groups.map(|group| self.groups.get(group));
        let sizes = of_source.filter(|group| group.key.source().is_some());
        let of_known = sizes.map(|group| group.attempted).max();
        // One that is new is worth what its source has.
        let source = entry.contact.key.source;
        let of_new = || self.groups.find(&GroupKey::Source { source });
        let size = of_known.or_else(|| of_new().map(|group| self.groups.get(group).attempted));
        let size = size.unwrap_or(0);
        // A success is worth as much as its source's failures nearly: who mostly succeeds must stay who mostly
        // succeeds.
        if entry.outcome() == Outcome::Answered { 1 + size / 2 } else { 2 + size }
    }
}

const fn hash_contact(key: &ContactKey, seed: u64) -> u64 {
    let source = mix(key.source.low() ^ seed, key.source.high() ^ seed.rotate_left(21));
    let target = mix(key.target.low() ^ source, key.target.high() ^ seed.rotate_left(42));
    mix(target, key.service() ^ seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_the_memory_changes_no_size_and_leaves_the_tables_empty() {
        let mut contacts = Contacts::new(1000, 7);
        let room = |it: &Contacts| {
            let Contacts { index, entries, groups, free, .. } = it;
            ([index.capacity(), entries.capacity(), free.capacity()], groups.room())
        };
        let before = room(&contacts);
        contacts.take_memory();
        assert_eq!(room(&contacts), before);
        assert_eq!((contacts.len(), contacts.groups.room()[0]), (0, 0));
        assert!(contacts.entries.is_empty());
    }
}
