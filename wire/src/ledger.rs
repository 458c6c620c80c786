//! The ledger: where every frame and every record of one sensor run went.
//!
//! Counters only grow, except what waits (`waiting`, `in_flight`). Three sums hold, exactly after a
//! stop and at any time up to what still waits in the rings:
//!
//! ```text
//!   kernel_packets = kernel_drops + corrupt + unread + not_wanted + analysed      per interface
//!                    (+ waiting)
//!   analysed       = not_selected + exported + Σ lost{reason}                     per interface
//!   exported       = acknowledged + in_flight + Σ lost{reason}                    frames, all interfaces
//!   produced       = acknowledged + in_flight + Σ lost{reason}                    records
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Frames or records lost, by reason. Reasons are words of a fixed set, such as `pool_empty`.
pub type LostByReason = BTreeMap<String, u64>;

/// Where every frame and every record of one sensor run went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// One entry per captured interface, or one for all that match a glob, by its patterns (for a capture
    /// file: one, with the file's name).
    pub interfaces: Vec<InterfaceLedger>,
    /// What became of the frames that workers copied out.
    pub frames: DeliveryLedger,
    /// What became of the event records.
    pub records: DeliveryLedger,
}

/// What the kernel saw on one interface, and what the workers did with it. Unit: frames.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceLedger {
    /// Name of the interface, such as `eth0`.
    pub name: String,
    /// Frames that the kernel offered to the rings, those it dropped included.
    pub kernel_packets: u64,
    /// Frames that the kernel dropped because a ring was full.
    pub kernel_drops: u64,
    /// Frames whose ring entry failed the checks at the border (see `afpacket::block`).
    pub corrupt: u64,
    /// Frames that lay in a ring which was given up before a worker could read them: the worker
    /// panicked, or the kernel did not hand them over in time. Senders before this field never lost one
    /// so.
    pub unread: u64,
    /// Frames of interfaces that are not captured, in a ring on all interfaces. Senders before this
    /// field had no such rings.
    pub not_wanted: u64,
    /// Frames that a worker took into analysis.
    pub analysed: u64,
    /// Analysed frames that export did not want: export off, not sampled, or our own uplink.
    pub not_selected: u64,
    /// Analysed frames that were copied into a batch.
    pub exported: u64,
    /// Analysed frames that export wanted and could not take, or whose worker panicked before it was
    /// decided.
    pub lost: LostByReason,
}

/// What became of the things handed to the uplink. Unit: frames, or records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeliveryLedger {
    /// Handed over (frames: the `exported` of all interfaces; records: written by the recorder).
    pub produced: u64,
    /// Acknowledged by the collector.
    pub acknowledged: u64,
    /// In queues, in the socket, or sent and not yet acknowledged.
    pub in_flight: u64,
    /// Given up.
    pub lost: LostByReason,
}

/// A sum that does not hold: what should be equal, and both sides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ledger of {place} does not add up: {left_name} {left}, but {right_name} {right}")]
pub struct Imbalance {
    /// Interface name, `frames` or `records`.
    pub place: String,
    /// What stands on the left, in words.
    pub left_name: &'static str,
    /// The left side.
    pub left: u64,
    /// What stands on the right, in words.
    pub right_name: &'static str,
    /// The right side.
    pub right: u64,
}

impl Ledger {
    /// Checks all sums as they must hold after a stop: nothing waits in a ring.
    ///
    /// # Errors
    /// The first sum that does not hold.
    pub fn check(&self) -> Result<(), Imbalance> {
        for interface in &self.interfaces {
            interface.check()?;
        }
        let exported = sum(self.interfaces.iter().map(|interface| interface.exported));
        balance("frames", "exported by interfaces", exported, "produced", self.frames.produced)?;
        self.frames.check("frames")?;
        self.records.check("records")
    }

    /// Frames dropped by the kernel on all interfaces.
    #[must_use]
    pub fn kernel_drops(&self) -> u64 {
        sum(self.interfaces.iter().map(|interface| interface.kernel_drops))
    }

    /// Frames offered by the kernel on all interfaces.
    #[must_use]
    pub fn kernel_packets(&self) -> u64 {
        sum(self.interfaces.iter().map(|interface| interface.kernel_packets))
    }
}

impl InterfaceLedger {
    fn check(&self) -> Result<(), Imbalance> {
        let Self { kernel_drops, corrupt, unread, not_wanted, analysed, .. } = *self;
        let accounted = sum([kernel_drops, corrupt, unread, not_wanted, analysed]);
        balance(
            &self.name,
            "kernel_packets",
            self.kernel_packets,
            "kernel_drops + corrupt + unread + not_wanted + analysed",
            accounted,
        )?;
        let accounted = sum([self.not_selected, self.exported, sum(self.lost.values().copied())]);
        balance(&self.name, "analysed", self.analysed, "not_selected + exported + lost", accounted)
    }
}

impl DeliveryLedger {
    fn check(&self, place: &str) -> Result<(), Imbalance> {
        let accounted = sum([self.acknowledged, self.in_flight, sum(self.lost.values().copied())]);
        balance(place, "produced", self.produced, "acknowledged + in_flight + lost", accounted)
    }
}

/// A ledger may come from a peer: numbers that do not add up to 64 bits must not panic.
fn sum(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

fn balance(
    place: &str,
    left_name: &'static str,
    left: u64,
    right_name: &'static str,
    right: u64,
) -> Result<(), Imbalance> {
    if left == right {
        return Ok(());
    }
    Err(Imbalance { place: place.to_owned(), left_name, left, right_name, right })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced() -> Ledger {
        Ledger {
            interfaces: vec![InterfaceLedger {
                name: "eth0".into(),
                kernel_packets: 15,
                kernel_drops: 2,
                corrupt: 1,
                unread: 2,
                not_wanted: 3,
                analysed: 7,
                not_selected: 1,
                exported: 4,
                lost: LostByReason::from([("pool_empty".into(), 2)]),
            }],
            frames: DeliveryLedger {
                produced: 4,
                acknowledged: 1,
                in_flight: 1,
                lost: LostByReason::from([("disconnected".into(), 2)]),
            },
            records: DeliveryLedger { produced: 3, acknowledged: 3, ..Default::default() },
        }
    }

    #[test]
    fn a_ledger_that_adds_up_passes() {
        assert_eq!(balanced().check(), Ok(()));
    }

    #[test]
    fn one_missing_frame_is_named_with_its_place() {
        let mut ledger = balanced();
        ledger.interfaces[0].analysed -= 1;
        assert_eq!(
            ledger.check().unwrap_err().to_string(),
            "ledger of eth0 does not add up: kernel_packets 15, \
             but kernel_drops + corrupt + unread + not_wanted + analysed 14"
        );
    }

    #[test]
    fn one_missing_record_is_found() {
        let mut ledger = balanced();
        ledger.records.acknowledged -= 1;
        assert_eq!(ledger.check().unwrap_err().place, "records");
    }

    #[test]
    fn numbers_of_a_peer_that_overflow_are_an_imbalance_and_no_panic() {
        let mut ledger = balanced();
        ledger.interfaces[0].kernel_drops = u64::MAX;
        ledger.records.in_flight = u64::MAX;
        assert!(ledger.check().is_err());
        assert_eq!(ledger.kernel_drops(), u64::MAX);
    }

    #[test]
    fn unknown_and_missing_fields_are_tolerated_across_versions() {
        let ledger: Ledger = serde_json::from_str(r#"{"frames":{"produced":1},"new":2}"#).unwrap();
        assert_eq!(ledger.frames.produced, 1);
    }
}
