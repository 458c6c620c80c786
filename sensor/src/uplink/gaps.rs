//! Which frames were lost since the collector was told last: read off the ledger, once a second.
//!
//! A gap is told for good when the collector has answered a heartbeat that left behind it. Those that were not are told
//! again on the next connection, word for word, so that the collector knows one that it has by its time: the times of
//! gaps with one stage and reason never overlap, whatever the clock does.

use std::collections::{BTreeMap, VecDeque};

use wire::ledger::{Ledger, LostByReason};
use wire::message::Gap;
use wire::units::UnixNanos;

/// Gaps that may wait for an answer: at one a second and reason, many minutes. Beyond them the oldest count as told.
const MOST_UNANSWERED: usize = 1024;
/// Heartbeats that may wait for an answer. A collector that is silent for longer is given up.
const MOST_BEATS: usize = 16;

/// Frames lost so far by stage and reason, as the collector was told.
#[derive(Debug, Default)]
pub struct FrameGaps {
    told: BTreeMap<(&'static str, String), u64>,
    told_at: Option<UnixNanos>,
    /// Gaps of which nobody knows whether the collector has them, oldest first.
    unanswered: VecDeque<Gap>,
    /// So many of them were told on this connection.
    on_connection: usize,
    /// Heartbeats of this connection: when each left, and how many of the gaps left before it.
    beats: VecDeque<(UnixNanos, usize)>,
}

impl FrameGaps {
    /// What is to be told now: what the connection before may have lost, and one gap for each stage and reason that
    /// has lost more frames since the last call. What was lost while no collector listened is in the first one after
    /// it.
    pub fn since_last(&mut self, ledger: &Ledger, now: UnixNanos) -> impl Iterator<Item = &Gap> {
        let from = self.told_at.unwrap_or(now);
        // Later than the gap before, also where the clock was set back.
        let to = now.max(UnixNanos(from.0.saturating_add(u64::from(self.told_at.is_some()))));
        self.told_at = Some(to);
        for (place, lost) in lost_frames(ledger) {
            let told = self.told.entry(place.clone()).or_default();
            let frames = lost.saturating_sub(*told);
            *told = lost.max(*told);
            if frames > 0 {
                let (stage, reason) = (place.0.to_owned(), place.1);
                let gap = Gap { stage, reason, frames, bytes: 0, from, to, records: None };
                self.unanswered.push_back(gap);
            }
        }
        let excess = self.unanswered.len().saturating_sub(MOST_UNANSWERED);
        self.settle(excess);
        let begin = std::mem::replace(&mut self.on_connection, self.unanswered.len());
        self.unanswered.range(begin..)
    }

    /// A heartbeat leaves, behind all that was told.
    pub fn beat(&mut self, sent_at: UnixNanos) {
        if self.beats.len() == MOST_BEATS {
            self.beats.pop_front();
        }
        self.beats.push_back((sent_at, self.on_connection));
    }

    /// The collector answers the heartbeat that left at this time.
    pub fn answered(&mut self, sent_at: UnixNanos) {
        let Some(at) = self.beats.iter().position(|beat| beat.0 == sent_at) else { return };
        let count = self.beats.drain(..=at).next_back().map_or(0, |beat| beat.1);
        self.settle(count);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.beats.clear();
        self.on_connection = 0;
    }

    /// The oldest ones are told for good.
    fn settle(&mut self, count: usize) {
        self.unanswered.drain(..count);
        self.on_connection = self.on_connection.saturating_sub(count);
        self.beats.iter_mut().for_each(|beat| beat.1 = beat.1.saturating_sub(count));
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
            let gaps = gaps.since_last(&ledger, UnixNanos(at)).cloned();
            gaps.map(|gap| (gap.stage, gap.reason, gap.frames, gap.from.0)).collect()
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
    fn told(gaps: &mut FrameGaps, drops: u64, at: u64) -> Vec<(u64, u64, u64)> {
        let ledger = ledger(drops, 0, 0);
        let gaps = gaps.since_last(&ledger, UnixNanos(at));
        gaps.map(|gap| (gap.frames, gap.from.0, gap.to.0)).collect()
    }

    #[test]
    fn a_gap_is_told_again_word_for_word_until_a_heartbeat_behind_it_is_answered() {
        let mut gaps = FrameGaps::default();
        assert_eq!(told(&mut gaps, 1, 10), [(2, 10, 10)]);
        gaps.beat(UnixNanos(11));
        assert_eq!(told(&mut gaps, 2, 12), [(2, 10, 12)]);
        gaps.beat(UnixNanos(13));
        assert_eq!(told(&mut gaps, 3, 14), [(2, 12, 14)]);
        gaps.answered(UnixNanos(13));
        gaps.disconnected();
        let again = [(2, 12, 14), (4, 14, 16)];
        assert_eq!(told(&mut gaps, 5, 16), again);
        // An answer on a connection before says nothing about this one.
        gaps.answered(UnixNanos(11));
        gaps.disconnected();
        assert_eq!(told(&mut gaps, 5, 17), again);
        gaps.beat(UnixNanos(18));
        gaps.answered(UnixNanos(18));
        gaps.disconnected();
        assert_eq!(told(&mut gaps, 5, 19), []);
    }

    #[test]
    fn times_of_gaps_do_not_overlap_where_the_clock_is_set_back() {
        let mut gaps = FrameGaps::default();
        assert_eq!(told(&mut gaps, 1, 100), [(2, 100, 100)]);
        assert_eq!(told(&mut gaps, 2, 50), [(2, 100, 101)]);
        assert_eq!(told(&mut gaps, 3, 60), [(2, 101, 102)]);
    }

    #[test]
    fn gaps_that_nobody_answers_are_bounded() {
        let mut gaps = FrameGaps::default();
        for number in 1..=2 * MOST_UNANSWERED as u64 {
            assert_eq!(told(&mut gaps, number, 10 * number).len(), 1);
            gaps.beat(UnixNanos(10 * number + 1));
        }
        assert_eq!((gaps.unanswered.len(), gaps.beats.len()), (MOST_UNANSWERED, MOST_BEATS));
        gaps.disconnected();
        assert_eq!(told(&mut gaps, 0, u64::MAX).len(), MOST_UNANSWERED);
    }
}
