//! What the workers learnt, merged in an order that no thread decides.

use std::time::Duration;

use wire::units::UnixNanos;

use super::clock::{Meeting, tick_after};
use crate::connections::NewConnection;
use crate::detect::{Alert, Detector};
use crate::evidence::Contact;
use crate::flood;
use crate::flow::EndedFlow;
use crate::recorder::{Recorder, UnwrittenFlows};

/// What one worker learnt since the meeting before.
pub(super) struct Told {
    pub(super) contacts: Vec<Contact>,
    /// What arrived at targets.
    pub(super) targets: Vec<flood::Report>,
    /// In order.
    pub(super) connections: Vec<NewConnection>,
    /// Those that are surely beyond the limit of their second.
    pub(super) connections_left_out: u64,
    /// In order.
    pub(super) flows: Vec<EndedFlow>,
    /// The table had no room for some answers: silence then proves nothing.
    pub(super) answers_lost: bool,
    /// Flows without an event of their own, since the start.
    pub(super) unwritten_flows: UnwrittenFlows,
}

/// The detector, the recorder, and the time that is over for them.
pub(super) struct Merge {
    pub(super) detector: Detector,
    pub(super) recorder: Recorder,
    /// Flows to be told, as the workers told them.
    flows: Vec<Vec<EndedFlow>>,
    flows_per_second: u32,
    /// Flows without an event of their own, of all workers, as last told.
    unwritten_flows: UnwrittenFlows,
    alerts: Vec<Alert>,
}

impl Merge {
    pub(super) fn new(detector: Detector, recorder: Recorder, flows_per_second: u32) -> Self {
        Self {
            detector,
            recorder,
            flows: Vec::new(),
            flows_per_second,
            unwritten_flows: UnwrittenFlows::default(),
            alerts: Vec::new(),
        }
    }

    /// All workers have told what they learnt before a meeting: lets time pass in ticks until the
    /// next one lies behind the clock.
    pub(super) fn meet(&mut self, meeting: &Meeting, told: Vec<Told>) {
        self.take_in(meeting.tick, told);
        let mut next_tick = meeting.tick;
        while next_tick <= meeting.clock {
            self.tick(next_tick);
            next_tick = if self.detector.is_idle() {
                // Nothing can happen before the next frame: a gap of years costs one step.
                let next = tick_after(meeting.clock);
                self.tick(next.minus(Detector::TICK));
                next
            } else {
                next_tick.plus(Detector::TICK)
            };
        }
        self.tell_flows();
    }

    /// Takes in what all workers learnt in the tick that ends at `tick`.
    fn take_in(&mut self, tick: UnixNanos, told: Vec<Told>) {
        let mut unwritten_flows = UnwrittenFlows::default();
        let (mut connections, mut left_out) = (Vec::new(), 0);
        for (worker, told) in told.into_iter().enumerate() {
            if told.answers_lost {
                self.detector.note_loss(tick.minus(Detector::TICK), tick);
            }
            told.contacts.iter().for_each(|contact| self.detector.merge(worker, contact));
            told.targets.iter().for_each(|one| self.detector.merge_target(worker, one));
            connections.push(told.connections);
            left_out += told.connections_left_out;
            self.flows.push(told.flows);
            unwritten_flows.add(told.unwritten_flows);
        }
        for connection in in_order(&connections) {
            self.recorder.connection(connection);
        }
        self.recorder.connections_not_written(left_out);
        self.recorder.flows_not_written(unwritten_flows.since(self.unwritten_flows));
        self.unwritten_flows = unwritten_flows;
    }

    /// Writes the flows that ended until now, in an order that no thread decides.
    fn tell_flows(&mut self) {
        for flow in in_order(&self.flows) {
            self.recorder.flow(flow);
        }
        self.flows.clear();
    }

    fn tick(&mut self, now: UnixNanos) {
        self.detector.tick(now, &mut self.alerts);
        self.tell(now);
    }

    fn tell(&mut self, now: UnixNanos) {
        for alert in self.alerts.drain(..) {
            self.recorder.alert(&alert);
        }
        if let Some(summary) = self.detector.take_summary() {
            self.recorder.alerts_summarised(now, summary);
        }
    }

    /// The end of the file: time runs on until nothing can fall due. Gives the time then. `latest` is
    /// that of the last frame, if there was one.
    pub(super) fn run_out(
        &mut self,
        latest: Option<UnixNanos>,
        mut next_tick: UnixNanos,
        told: Vec<Told>,
    ) -> UnixNanos {
        self.take_in(next_tick, told);
        while latest.is_some() && !self.detector.is_idle() {
            self.tick(next_tick);
            next_tick = next_tick.plus(Detector::TICK);
        }
        let now = latest.map_or(UnixNanos(0), |latest| latest.max(next_tick));
        self.detector.finish(now, &mut self.alerts);
        self.tell(now);
        now
    }

    /// Writes the flows that are left at `now`, and what else was not told. Each second of virtual time
    /// from then on takes what its limit allows, however many of them had a single packet. Gives the time
    /// when all are told.
    pub(super) fn finish(&mut self, now: UnixNanos, told: Vec<Told>) -> UnixNanos {
        self.take_in(now, told);
        let (mut last, share) = (now, (self.flows_per_second / 2).max(1));
        for (place, flow) in in_order(&self.flows).enumerate() {
            last = now.plus(Duration::from_secs(1 + place as u64 / u64::from(share)));
            self.recorder.flow(&EndedFlow { time: last, ..*flow });
        }
        self.recorder.finish(last);
        last
    }
}

/// All items of lists that are in order, in order.
fn in_order<T: Ord>(lists: &[Vec<T>]) -> impl Iterator<Item = &T> {
    let mut rest: Vec<_> = lists.iter().map(Vec::as_slice).collect();
    std::iter::from_fn(move || {
        let some = rest.iter_mut().filter(|list| !list.is_empty());
        let list = some.min_by(|one, other| one.first().cmp(&other.first()))?;
        let (first, others) = list.split_first()?;
        *list = others;
        Some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_order_are_told_in_one_order() {
        let lists = [vec![1, 4, 4, 9], vec![], vec![2, 4], vec![0, 10]];
        assert!(in_order(&lists).eq(&[0, 1, 2, 4, 4, 4, 9, 10]));
    }
}
