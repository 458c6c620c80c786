//! Counters of one ring. Reading the kernel's clears them and they have 32 bits: one reader sums them.

/// What one ring brought since [`Ring::begin`](super::Ring::begin). Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the filter accepted, those dropped for want of room included.
    pub packets: u64,
    /// Frames that were dropped because every block was in our hands.
    pub drops: u64,
    /// How often the kernel stopped because the next block was in our hands: events, not frames.
    pub freezes: u64,
    /// Blocks that were handed to us full.
    pub blocks_full: u64,
    /// Blocks that were handed to us because their retire time was up, however empty.
    pub blocks_timed_out: u64,
}

impl Statistics {
    /// Frames that the kernel put into the ring.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.packets.saturating_sub(self.drops)
    }

    /// Adds what one reading of `PACKET_STATISTICS` gave.
    pub(super) fn add(&mut self, delta: libc::tpacket_stats_v3) {
        self.packets += u64::from(delta.tp_packets);
        self.drops += u64::from(delta.tp_drops);
        self.freezes += u64::from(delta.tp_freeze_q_cnt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_beyond_32_bits() {
        let mut sum = Statistics::default();
        for _ in 0..3 {
            sum.add(libc::tpacket_stats_v3 {
                tp_packets: u32::MAX,
                tp_drops: u32::MAX,
                tp_freeze_q_cnt: 1,
            });
        }
        assert_eq!(sum.packets, 3 * u64::from(u32::MAX));
        assert_eq!((sum.drops, sum.freezes), (sum.packets, 3));
    }
}
