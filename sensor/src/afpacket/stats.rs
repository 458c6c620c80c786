//! The kernel's counters of one ring. Reading clears them and they have 32 bits: one reader sums them.

/// What the kernel counted on one ring since [`Ring::begin`](super::Ring::begin). Only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the filter accepted, those dropped for want of room included.
    pub packets: u64,
    /// Frames that were dropped because every block was in our hands.
    pub drops: u64,
    /// How often the kernel stopped because the next block was in our hands: events, not frames.
    pub freezes: u64,
}

impl Statistics {
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
