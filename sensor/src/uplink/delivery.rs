//! What became of everything that was handed to the uplink: its part of the ledger.

use wire::ledger::DeliveryLedger;

/// Why the uplink gave something up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LossReason {
    /// The queue in memory was full, and this was the oldest of the least value. Where there is a spool, and what an
    /// earlier run left in it is read, see [`LossReason::SpoolFailed`].
    QueueFull,
    /// A record longer than the wire format allows.
    TooLong,
    /// Frames that came while no collector was connected.
    NotConnected,
    /// Frames sent on a connection that broke before they were stored.
    Disconnected,
    /// Not acknowledged when the sensor stopped, and not on the disk.
    Shutdown,
    /// Frames in a batch with a copy of the uplink's own traffic, and those of the minute after it.
    OwnTraffic,
    /// The spool had all the bytes that it may take, and this was the oldest of the least value.
    SpoolFull,
    /// The record was older than the spool may keep it.
    SpoolAged,
    /// The record was damaged on the disk.
    SpoolCorrupt,
    /// The disk of the spool failed, and memory could not hold what waited for it; or what was on it is
    /// gone.
    SpoolFailed,
    /// The uplink panicked, and this was neither acknowledged nor on the disk.
    UplinkPanicked,
}

impl LossReason {
    const ALL: [Self; 11] = [
        Self::QueueFull,
        Self::TooLong,
        Self::NotConnected,
        Self::Disconnected,
        Self::Shutdown,
        Self::OwnTraffic,
        Self::SpoolFull,
        Self::SpoolAged,
        Self::SpoolCorrupt,
        Self::SpoolFailed,
        Self::UplinkPanicked,
    ];

    /// The word in the ledger and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLong => "too_long",
            Self::NotConnected => "not_connected",
            Self::Disconnected => "disconnected",
            Self::Shutdown => "shutdown",
            Self::OwnTraffic => "own_traffic",
            Self::SpoolFull => "spool_full",
            Self::SpoolAged => "spool_aged",
            Self::SpoolCorrupt => "spool_corrupt",
            Self::SpoolFailed => "spool_failed",
            Self::UplinkPanicked => "uplink_panicked",
        }
    }
}

/// Counters of one stream. What is neither acknowledged nor lost is in flight, so that the sum
/// always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    produced: u64,
    acknowledged: u64,
    lost: [u64; LossReason::ALL.len()],
}

impl Delivery {
    pub(crate) const fn produce(&mut self, count: u64) {
        self.produced += count;
    }

    pub(crate) const fn acknowledge(&mut self, count: u64) {
        self.acknowledged += count;
    }

    pub(crate) const fn lose(&mut self, count: u64, reason: LossReason) {
        self.lost[reason as usize] += count;
    }

    /// Handed over, neither acknowledged nor lost.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.produced - self.acknowledged - self.lost_total()
    }

    /// Acknowledged by a collector.
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Given up for any reason.
    #[must_use]
    pub fn lost_total(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// Given up for this reason.
    #[must_use]
    pub const fn lost(&self, reason: LossReason) -> u64 {
        self.lost[reason as usize]
    }

    /// As the ledger has it; reasons that never occurred are left out.
    #[must_use]
    pub fn to_ledger(&self) -> DeliveryLedger {
        let lost = LossReason::ALL
            .iter()
            .filter(|reason| self.lost(**reason) > 0)
            .map(|reason| (reason.name().to_owned(), self.lost(*reason)));
        DeliveryLedger {
            produced: self.produced,
            acknowledged: self.acknowledged,
            in_flight: self.in_flight(),
            lost: lost.collect(),
        }
    }
}

/// Both streams of the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// Captured frames.
    pub frames: Delivery,
    /// Event records.
    pub records: Delivery,
}
