//! The doorkeeper: under a flood of new sources, a source's first contact is only noted.
//!
//! Random spoofed sources come once; scanners come again. While engaged, the door keeps a blocked
//! Bloom filter: one cache line per source, in which both the source and its contact leave three bits.
//! A source that left its bits before, with another contact, passes. A false "seen before" only lets
//! a contact in early; a false "same contact" holds one back, with a few per cent probability.

/// The filter, in two generations so that a source is remembered for at least one of them.
pub(super) struct Door {
    current: Box<[Block]>,
    previous: Box<[Block]>,
    engaged: bool,
    noted: usize,
    ticks: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Block([u64; 8]);

/// A source leaves six bits in a block of 512: at this many sources per block, on average, three of
/// ten bits are set and one generation gives way to the next.
const SOURCES_PER_BLOCK: usize = 32;

/// Publishes after which a generation ends in any case: 10 s.
const GENERATION_TICKS: u32 = 40;

impl Door {
    /// Memory of a door for a log of `slots`. Unit: bytes.
    pub(super) const fn memory(slots: usize) -> usize {
        2 * blocks(slots) * size_of::<Block>()
    }

    pub(super) fn new(slots: usize) -> Self {
        let blocks = vec![Block::default(); blocks(slots)].into_boxed_slice();
        Self { previous: blocks.clone(), current: blocks, engaged: false, noted: 0, ticks: 0 }
    }

    pub(super) const fn is_engaged(&self) -> bool {
        self.engaged
    }

    pub(super) fn engage(&mut self) {
        self.engaged = true;
        self.rotate();
        self.rotate();
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

    pub(super) fn prefetch(&self, source: u64) {
        std::hint::black_box(self.current[self.block(source)].0[0]);
        std::hint::black_box(self.previous[self.block(source)].0[0]);
    }

    /// Did this source come before with another contact? Notes it if it did not come at all.
    pub(super) fn admits(&mut self, source: u64, contact: u64) -> bool {
        let block = self.block(source);
        for generation in [&self.current[block], &self.previous[block]] {
            if generation.has(source) {
                return !generation.has(contact);
            }
        }
        self.current[block].add(source);
        self.current[block].add(contact);
        self.noted += 1;
        if self.noted > SOURCES_PER_BLOCK * self.current.len() {
            self.rotate();
        }
        false
    }

    fn rotate(&mut self) {
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.fill(Block::default());
        (self.noted, self.ticks) = (0, 0);
    }

    const fn block(&self, source: u64) -> usize {
        source as usize & (self.current.len() - 1)
    }
}

impl Block {
    fn has(&self, hash: u64) -> bool {
        bits(hash).all(|(word, bit)| self.0[word] & bit != 0)
    }

    fn add(&mut self, hash: u64) {
        for (word, bit) in bits(hash) {
            self.0[word] |= bit;
        }
    }
}

/// Three bits of a block, from the upper 27 bits of `hash` (the lower ones choose the block).
fn bits(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    [37, 46, 55].into_iter().map(move |shift| {
        let position = hash >> shift;
        ((position >> 6) as usize & 7, 1 << (position & 63))
    })
}

/// One block for each two records of the log: sixteen times as many sources as records.
const fn blocks(slots: usize) -> usize {
    slots / 2
}
