//! Which frames were lost since the collector was told last: read off the ledger, once a second.

use std::collections::BTreeMap;

use wire::ledger::{Ledger, LostByReason};
use wire::message::Gap;
use wire::units::UnixNanos;

/// Frames lost so far by stage and reason, as the collector was told.
#[derive(Debug, Default)]
pub struct FrameGaps {
    told: BTreeMap<(&'static str, String), u64>,
    told_at: Option<UnixNanos>,
}

impl FrameGaps {
    /// One gap for each stage and reason that has lost more frames since the last call. What was lost while
    /// no collector listened is in the first one after it.
    pub fn since_last(&mut self, ledger: &Ledger, now: UnixNanos) -> Vec<Gap> {
        let from = self.told_at.replace(now).unwrap_or(now);
        let mut gaps = Vec::new();
        for (place, lost) in lost_frames(ledger) {
            let told = self.told.entry(place.clone()).or_default();
            let frames = lost.saturating_sub(*told);
            *told = lost.max(*told);
            if frames > 0 {
                let (stage, reason) = (place.0.to_owned(), place.1);
                gaps.push(Gap { stage, reason, frames, bytes: 0, from, to: now, records: None });
            }
        }
        gaps
    }
}

/// All losses of frames that the ledger knows, over all interfaces.
fn lost_frames(ledger: &Ledger) -> BTreeMap<(&'static str, String), u64> {
    let mut lost = BTreeMap::new();
    let mut add = |stage, reason: &str, frames: u64| {
        let entry: &mut u64 = lost.entry((stage, reason.to_owned())).or_default();
        *entry = entry.saturating_add(frames);
    };
    for interface in &ledger.interfaces {
        add("kernel", "drops", interface.kernel_drops);
        add("kernel", "corrupt", interface.corrupt);
        add("kernel", "unread", interface.unread);
        each(&interface.lost, |reason, frames| add("export", reason, frames));
    }
    each(&ledger.frames.lost, |reason, frames| add("uplink", reason, frames));
    lost
}

fn each(lost: &LostByReason, mut add: impl FnMut(&str, u64)) {
    lost.iter().for_each(|(reason, frames)| add(reason, *frames));
}

#[cfg(test)]
mod tests {
    use wire::ledger::{DeliveryLedger, InterfaceLedger};

    use super::*;

    fn ledger(drops: u64, pool_empty: u64, disconnected: u64) -> Ledger {
        let interface = InterfaceLedger {
            kernel_drops: drops,
            lost: LostByReason::from([("pool_empty".into(), pool_empty)]),
            ..InterfaceLedger::default()
        };
        let lost = LostByReason::from([("disconnected".into(), disconnected)]);
        Ledger {
            interfaces: vec![interface.clone(), interface],
            frames: DeliveryLedger { lost, ..DeliveryLedger::default() },
            ..Ledger::default()
        }
    }

    #[test]
    fn each_loss_is_told_once_by_stage_and_reason_over_all_interfaces() {
        let mut gaps = FrameGaps::default();
        let mut tell = |ledger, at| -> Vec<(String, String, u64, u64)> {
            let gaps = gaps.since_last(&ledger, UnixNanos(at));
            gaps.into_iter().map(|gap| (gap.stage, gap.reason, gap.frames, gap.from.0)).collect()
        };
        let gap = |stage: &str, reason: &str, frames, from| {
            (stage.to_owned(), reason.to_owned(), frames, from)
        };
        assert_eq!(tell(ledger(0, 0, 0), 5), []);
        let first = [gap("export", "pool_empty", 4, 5), gap("kernel", "drops", 6, 5)];
        assert_eq!(tell(ledger(3, 2, 0), 6), first);
        assert_eq!(tell(ledger(3, 2, 0), 7), []);
        let later = [gap("export", "pool_empty", 2, 7), gap("uplink", "disconnected", 9, 7)];
        assert_eq!(tell(ledger(3, 3, 9), 8), later);
    }
}
