//! The doorkeeper: under a flood of new sources, a source's first contact is only noted.
//!
//! Random spoofed sources come once; scanners come again. While engaged, the door remembers of each
//! source one contact, in a word that the hash of the source chooses: the newest source has it. A source
//! that comes with another contact than the one that is remembered passes, and becomes a suspect: so do all its
//! contacts from then on. Where another suspect has its place, it takes a third contact. When so many sources come twice that the log fills all the same, the
//! door is raised: a source then passes with its third contact.
//!
//! ```text
//!   word      18 bits of the source │ 2 bits: other contacts before │ 12 bits of its latest contact
//!             1 MiB: second-level cache
//!   suspect   32 bits of the source                                      8 KiB: first-level cache
//! ```
//!
//! A false "seen before" (one new source in 262 144) only lets a contact in early; a false "same
//! contact" holds back one contact in 4096. When as many new sources came since as there are words, a
//! source is still remembered with probability 37 %. At 3 million new sources a second at one worker that
//! is after 90 ms: a scanner of ten probes a second is a suspect within its first half second, one of four
//! a second within five seconds, on average; one of a single probe a second takes a day.
//!
//! Who knows of the door gets by: sources that come three times, with three contacts, pass, and become suspects
//! in the place of others. Such a flood costs the same packets, makes a third of its packets contacts, and then
//! the log loses its oldest, counted. The hash is keyed, so nobody can aim at the word of one source.

use crate::hardware::{Table, prefetch};

/// What is remembered of sources that came lately.
pub(super) struct Door {
    words: Table<u32>,
    /// The upper half of a source's hash, at a place that it chooses itself; a newer one replaces it.
    suspects: Box<[u32]>,
    engaged: bool,
    /// Other contacts after which a source passes.
    bar: u32,
}

const SUSPECTS: usize = 2048;

/// At most so many words, 1 MiB: they stay in the second-level cache beside the frames that stream
/// through it. Measured on 2026-11-21 under 3 million random sources a second (2 cores of a Xeon VM, 2 MiB
/// of such cache each): processor time per frame 55.6 ns with 8 MiB, 47.8 ns with 1 MiB.
const MOST_WORDS: usize = 1 << 18;

/// Bits of a word that belong to the contact.
const CONTACT_BITS: u32 = 12;

/// Other contacts that a word can count.
const MOST_OTHERS: u32 = 3;

/// Other contacts after which a source takes the place of another suspect: one more than it takes to pass, so that
/// sources that come twice do not take the places of scanners.
const OTHERS_THAT_DISPLACE: u32 = 2;

/// Where the bits of the source begin.
const SOURCE_SHIFT: u32 = CONTACT_BITS + 2;

impl Door {
    /// Memory of a door for a log of `slots`. Unit: bytes.
    pub(super) const fn memory(slots: usize) -> usize {
        Table::<u32>::memory(words(slots)) + SUSPECTS * size_of::<u32>()
    }

    pub(super) fn new(slots: usize) -> Self {
        Self {
            words: Table::new(words(slots), 0),
            suspects: vec![0; SUSPECTS].into_boxed_slice(),
            engaged: false,
            bar: 1,
        }
    }

    pub(super) const fn is_engaged(&self) -> bool {
        self.engaged
    }

    /// Contacts that a new source must have before it counts.
    pub(super) const fn asks_for(&self) -> u64 {
        if self.engaged { 1 + self.bar as u64 } else { 1 }
    }

    /// Begins without suspects.
    pub(super) fn engage(&mut self) {
        self.suspects.fill(0);
        self.engaged = true;
        self.bar = 1;
    }

    /// Too many sources pass: from now on until it is engaged again it takes a contact more.
    pub(super) const fn raise(&mut self) {
        self.bar = 2;
    }

    pub(super) const fn disengage(&mut self) {
        self.engaged = false;
    }

    /// Starts loading the line that [`Door::admits`] will need.
    #[inline]
    pub(super) fn prefetch(&self, source: u64) {
        prefetch(&self.words[self.word(source)]);
    }

    /// Is this source a suspect, or did it come lately with as many other contacts as the bar asks for? From
    /// now on this contact is remembered.
    #[inline]
    pub(super) fn admits(&mut self, source: u64, contact: u64) -> bool {
        // The lower bits of the hash choose the word.
        let (word, upper) = (self.word(source), (source >> 32) as u32);
        let suspect = &mut self.suspects[upper as usize % SUSPECTS];
        if *suspect == upper {
            return true;
        }
        let contact = (contact >> (64 - CONTACT_BITS)) as u32;
        let before = self.words[word];
        let is_known = before >> SOURCE_SHIFT == upper >> SOURCE_SHIFT;
        let others_before = if is_known { before >> CONTACT_BITS & MOST_OTHERS } else { 0 };
        let is_other = is_known && before & ((1 << CONTACT_BITS) - 1) != contact;
        let others = (others_before + u32::from(is_other)).min(MOST_OTHERS);
        self.words[word] = upper >> SOURCE_SHIFT << SOURCE_SHIFT | others << CONTACT_BITS | contact;
        let passes = is_other && others >= self.bar;
        if passes && (*suspect == 0 || others >= OTHERS_THAT_DISPLACE) {
            *suspect = upper;
        }
        passes
    }

    fn word(&self, source: u64) -> usize {
        source as usize & (self.words.len() - 1)
    }
}

/// Four words for each record of the log.
const fn words(slots: usize) -> usize {
    let words = slots * 4;
    if words < MOST_WORDS { words } else { MOST_WORDS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::mix;

    #[test]
    fn second_distinct_contact_of_a_source_passes_and_a_repeat_does_not() {
        let mut door = Door::new(1024);
        let source = mix(1, 2);
        assert!(!door.admits(source, mix(3, 4)), "first contact");
        assert!(!door.admits(source, mix(3, 4)), "repeat of the first contact");
        assert!(door.admits(source, mix(5, 6)), "second contact");
    }

    #[test]
    fn a_suspect_passes_however_many_others_come_in_between() {
        let mut door = Door::new(1024);
        let source = mix(1, 2);
        door.admits(source, mix(3, 4));
        door.admits(source, mix(5, 6));
        (0..100_000).for_each(|n| _ = door.admits(mix(n, 77), mix(n, 78)));
        assert!(door.admits(source, mix(7, 8)));
        door.engage();
        (0..100_000).for_each(|n| _ = door.admits(mix(n, 79), mix(n, 80)));
        assert!(!door.admits(source, mix(9, 10)), "a new flood begins without suspects");
    }

    #[test]
    fn a_source_is_remembered_among_a_tenth_of_the_words_of_others_nine_times_in_ten() {
        let mut door = Door::new(1 << 16);
        let others = words(1 << 16) as u64 / 10;
        let is_remembered = |round: u64| {
            door.admits(mix(round, 1), mix(round, 2));
            (0..others).for_each(|n| _ = door.admits(mix(round * others + n, 77), mix(n, 78)));
            door.admits(mix(round, 1), mix(round, 3))
        };
        let remembered = (0..100).map(is_remembered).filter(|known| *known).count();
        assert!((80..=99).contains(&remembered), "{remembered} of 100");
    }

    #[test]
    fn sources_that_come_once_hardly_ever_pass_however_many_they_are() {
        let mut door = Door::new(1024);
        let count = 4_000_000;
        let passed = (0..count).filter(|&n| door.admits(mix(n, 77), mix(n, 78))).count();
        assert!(passed < 40, "{passed} of {count} passed");
    }

    #[test]
    fn while_the_door_is_raised_sources_that_come_twice_do_not_pass_and_a_scanner_does() {
        let mut door = Door::new(1 << 16);
        assert_eq!(door.asks_for(), 1);
        door.engage();
        assert_eq!(door.asks_for(), 2);
        door.raise();
        assert_eq!(door.asks_for(), 3);
        let pairs = (0..1_000_000).flat_map(|n| [(n, 1), (n, 2)]);
        let passed = pairs.filter(|&(n, port)| door.admits(mix(n, 77), mix(n, port))).count();
        assert!(passed < 100, "{passed} of 2 000 000 passed");
        let of_scanner: Vec<_> = (0..6).map(|port| door.admits(mix(1, 5), mix(9, port))).collect();
        assert_eq!(of_scanner, [false, false, true, true, true, true]);
        door.engage();
        assert!(!door.admits(mix(1, 6), mix(9, 1)) && door.admits(mix(1, 6), mix(9, 2)));
    }

    #[test]
    fn sources_that_come_twice_take_no_place_of_a_suspect() {
        let mut door = Door::new(1 << 16);
        let source = mix(11, 5);
        (0..3).for_each(|contact| _ = door.admits(source, mix(contact, 4)));
        let pairs = (0..100_000).flat_map(|n| [(n, 1), (n, 2)]);
        let passed = pairs.filter(|&(n, port)| door.admits(mix(n, 77), mix(n, port))).count();
        assert!(passed > 90_000, "{passed}: each passes with its second contact");
        assert!(door.admits(source, mix(9, 9)));
    }
}
