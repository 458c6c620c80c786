//! Is there one sender that sends most, and who is it?
//!
//! A vote that a worker could take by itself (Boyer, Moore) depends on the order of packets, and so on which
//! worker saw which. Instead, one packet in sixteen, chosen by a keyed hash of its time and sender, is
//! counted in one of eleven buckets by a hash of its sender; that of the lowest hash of all leaves its sender's address.
//! Buckets merge by sum and the lowest by minimum, exactly.
//!
//! What it gives: a sender of more than half of the packets has more than half in its bucket, but for the error
//! of a sample (n packets counted: about 1/√n of them), and is the address that is left with a probability
//! as large as its share. Of an address the bucket tells whether it may be that sender: where many
//! send, it has an eleventh.

use packet::Address;

use super::hash;

/// One packet in so many is looked at.
pub const SAMPLED_ONE_IN: u64 = 16;

/// A sample of packets by their senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Senders {
    buckets: [u32; Self::BUCKETS],
    /// Of the packets of the sample the lowest rank, and its sender.
    lowest: u32,
    sender: Address,
}

const _: () = assert!(size_of::<Senders>() == 64);

impl Default for Senders {
    fn default() -> Self {
        Self { buckets: [0; Self::BUCKETS], lowest: u32::MAX, sender: Address::default() }
    }
}

impl Senders {
    const BUCKETS: usize = 11;

    /// Takes in a packet of the sample. `rank` is a hash of the packet, `key` the same everywhere.
    pub fn insert(&mut self, sender: Address, rank: u32, key: u64) {
        let bucket = &mut self.buckets[Self::bucket(sender, key)];
        *bucket = bucket.saturating_add(1);
        // Below that of an empty sample.
        self.leave(rank >> 1, sender);
    }

    /// Takes in what another sample has.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.leave(other.lowest, other.sender);
    }

    /// A packet of the sample: its rank, and who sent it.
    #[must_use]
    pub fn sample(&self) -> Option<(u32, Address)> {
        (self.lowest != u32::MAX).then_some((self.lowest, self.sender))
    }

    /// May `sender` have sent more than half of the packets?
    #[must_use]
    pub fn may_be_most_of(&self, sender: Address, key: u64) -> bool {
        u64::from(self.buckets[Self::bucket(sender, key)]) * 2 > self.total()
    }

    /// May `sender` have sent an eighth of the packets, which is more than the share of a bucket?
    #[must_use]
    pub fn may_be_an_eighth_of(&self, sender: Address, key: u64) -> bool {
        u64::from(self.buckets[Self::bucket(sender, key)]) * 8 >= self.total().max(1)
    }

    /// Was nothing counted?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    fn total(&self) -> u64 {
        self.buckets.iter().map(|count| u64::from(*count)).sum()
    }

    fn leave(&mut self, rank: u32, sender: Address) {
        if (rank, sender) < (self.lowest, self.sender) {
            (self.lowest, self.sender) = (rank, sender);
        }
    }

    const fn bucket(sender: Address, key: u64) -> usize {
        (hash(sender, key.rotate_left(40)) % Self::BUCKETS as u64) as usize
    }
}
