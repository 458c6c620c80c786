//! The walk over a block, driven over any bytes: for the fuzz target, and for the replay of its corpus.

use std::ptr::NonNull;

use packet;

use super::block::{Block, Tally};

/// Least size of a block in words: its descriptor.
const LEAST_WORDS: usize = 6;

/// Walks over a block that holds these bytes, and parses every frame in it.
///
/// # Panics
/// If the walk leaves the block or its counts do not add up.
pub fn walk(input: &[u8]) {
    let mut memory = vec![0_u64; input.len().div_ceil(8).max(LEAST_WORDS)];
    for (word, bytes) in memory.iter_mut().zip(input.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    // The status is the first half of the second word: granted, whatever the input says.
    let mut second = memory[1].to_ne_bytes();
    second[..4].copy_from_slice(&libc::TP_STATUS_USER.to_ne_bytes());
    memory[1] = u64::from_ne_bytes(second);
    let bytes = memory.len() * 8;
    let start = NonNull::from(memory.as_mut_slice()).cast::<u8>();
    let range = start.addr().get()..start.addr().get() + bytes;

    let mut tally = Tally::default();
    // SAFETY: `memory` is aligned to 8, holds `bytes` bytes, at least a descriptor's, outlives the block
    // and is touched by nobody else until the block is dropped; there is one block of it.
    let block = unsafe { Block::take(start, bytes, &mut tally) };
    let block = block.expect("the status grants it");
    let mut readable = 0;
    for captured in block.frames() {
        let data = captured.frame.data.as_ptr_range();
        // A frame without bytes may lie at the very end.
        assert!(data.start.addr() >= range.start && data.end.addr() <= range.end);
        assert!(captured.frame.data.len() <= captured.frame.wire_len.0 as usize);
        std::hint::black_box(packet::parse(&captured.frame));
        readable += 1;
    }
    drop(block);
    assert_eq!(tally.claimed, readable + tally.corrupt);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn every_block_of_the_fuzz_corpus_is_walked_to_its_end() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/ring_block");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            super::walk(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 4, "{count} blocks");
    }
}
