//! The doorkeeper: under a flood of new sources, a source's first contact is only noted.
//!
//! Random spoofed sources come once; scanners come again. While engaged, the door keeps a blocked
//! Bloom filter: a source and its contact leave four bits each in one cache line, so a packet costs
//! one cold line. A source that left its bits before, with another contact, passes. A false "seen
//! before" only lets a contact in early; a false "same contact" holds back one contact in 400.
//!
//! ```text
//!   block     4 words of one generation │ 4 words of the other       one bit per word and item
//! ```

use crate::hardware::{self, prefetch};

/// The filter, in two generations so that a source is remembered for at least one of them.
pub(super) struct Door {
    blocks: Box<[Block]>,
    /// Which half of every block is being written.
    current: usize,
    engaged: bool,
    noted: usize,
    ticks: u32,
}

/// Two generations of a filter of 256 bits.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Block([Bits; 2]);

/// One bit in each word for each item.
type Bits = [u64; 4];

/// At this many sources per block, on average, two of nine bits are set, one source in 400 passes by
/// chance, and one generation gives way to the next.
const SOURCES_PER_BLOCK: usize = 8;

/// Publishes after which a generation ends in any case: 10 s.
const GENERATION_TICKS: u32 = 40;

impl Door {
    /// Memory of a door for a log of `slots`. Unit: bytes.
    pub(super) const fn memory(slots: usize) -> usize {
        blocks(slots) * size_of::<Block>()
    }

    pub(super) fn new(slots: usize) -> Self {
        let blocks = hardware::table(blocks(slots), Block::default());
        Self { blocks, current: 0, engaged: false, noted: 0, ticks: 0 }
    }

    pub(super) const fn is_engaged(&self) -> bool {
        self.engaged
    }

    /// Begins with an empty filter.
    pub(super) fn engage(&mut self) {
        self.engaged = true;
        self.blocks.fill(Block::default());
        (self.noted, self.ticks) = (0, 0);
    }

    pub(super) const fn disengage(&mut self) {
        self.engaged = false;
    }

    /// Ends the generation when it is old.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.engaged && self.ticks >= GENERATION_TICKS {
            self.rotate();
        }
    }

    /// Starts loading the line that [`Door::admits`] will need.
    pub(super) fn prefetch(&self, source: u64) {
        prefetch(&self.blocks[self.block(source)]);
    }

    /// Did this source come before with another contact? Notes it if it did not come at all.
    pub(super) fn admits(&mut self, source: u64, contact: u64) -> bool {
        let (source_bits, contact_bits) = (bits(source), bits(contact));
        let current = self.current;
        let block = self.block(source);
        let block = &mut self.blocks[block];
        for generation in [current, 1 - current] {
            if has(&block.0[generation], &source_bits) {
                return !has(&block.0[generation], &contact_bits);
            }
        }
        for word in 0..4 {
            block.0[current][word] |= source_bits[word] | contact_bits[word];
        }
        self.noted += 1;
        if self.noted > SOURCES_PER_BLOCK * self.blocks.len() {
            self.rotate();
        }
        false
    }

    fn rotate(&mut self) {
        self.current = 1 - self.current;
        for block in &mut self.blocks {
            block.0[self.current] = Bits::default();
        }
        (self.noted, self.ticks) = (0, 0);
    }

    const fn block(&self, source: u64) -> usize {
        source as usize & (self.blocks.len() - 1)
    }
}

/// The bits of one item, from the upper 24 bits of its hash (the lower ones choose the block).
const fn bits(hash: u64) -> Bits {
    [1 << (hash >> 40 & 63), 1 << (hash >> 46 & 63), 1 << (hash >> 52 & 63), 1 << (hash >> 58)]
}

fn has(set: &Bits, item: &Bits) -> bool {
    (0..4).fold(0, |missing, word| missing | (item[word] & !set[word])) == 0
}

/// Two blocks for each record of the log: a generation has sixteen times as many sources as the log
/// has records.
const fn blocks(slots: usize) -> usize {
    slots * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::mix;

    fn engaged() -> Door {
        let mut door = Door::new(1024);
        door.engage();
        door
    }

    #[test]
    fn second_distinct_contact_of_a_source_passes_and_a_repeat_does_not() {
        let mut door = engaged();
        let source = mix(1, 2);
        assert!(!door.admits(source, mix(3, 4)), "first contact");
        assert!(!door.admits(source, mix(3, 4)), "repeat of the first contact");
        assert!(door.admits(source, mix(5, 6)), "second contact");
    }

    #[test]
    fn sources_are_remembered_for_a_generation_and_forgotten_after_two() {
        let mut door = engaged();
        let source = mix(1, 2);
        door.admits(source, mix(3, 4));
        (0..GENERATION_TICKS).for_each(|_| door.tick());
        assert!(door.admits(source, mix(5, 6)), "one generation later");
        (0..GENERATION_TICKS).for_each(|_| door.tick());
        assert!(!door.admits(source, mix(7, 8)), "two generations later");
    }

    #[test]
    fn sources_that_come_once_seldom_pass_however_many_they_are() {
        let mut door = engaged();
        let count = 1_000_000;
        let passed = (0..count).filter(|&n| door.admits(mix(n, 77), mix(n, 78))).count();
        assert!(passed < 5_000, "{passed} of {count} passed");
    }
}
