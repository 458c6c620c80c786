//! What the workers learnt, merged in an order that no thread decides.

use wire::units::UnixNanos;

use super::clock::{Meeting, tick_after};
use crate::connections::NewConnection;
use crate::detect::{Alert, Detector};
use crate::evidence::Contact;
use crate::recorder::Recorder;

/// What one worker learnt since the meeting before.
#[derive(Default)]
pub(super) struct Told {
    pub(super) contacts: Vec<Contact>,
    pub(super) connections: Vec<NewConnection>,
    /// The table had no room for some answers: silence then proves nothing.
    pub(super) answers_lost: bool,
    /// Connections over the limit of a second, since the start.
    pub(super) over_limit: u64,
}

/// The detector, the recorder, and the time that is over for them.
pub(super) struct Merge {
    pub(super) detector: Detector,
    pub(super) recorder: Recorder,
    /// Connections over the limit of a second, of all workers, as last told.
    over_limit: u64,
    connections: Vec<NewConnection>,
    alerts: Vec<Alert>,
}

impl Merge {
    pub(super) fn new(detector: Detector, recorder: Recorder) -> Self {
        let (connections, alerts) = (Vec::new(), Vec::new());
        Self { detector, recorder, over_limit: 0, connections, alerts }
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
    }

    /// Takes in what all workers learnt in the tick that ends at `tick`.
    fn take_in(&mut self, tick: UnixNanos, told: Vec<Told>) {
        let mut over_limit = 0;
        for (worker, told) in told.into_iter().enumerate() {
            if told.answers_lost {
                self.detector.note_loss(tick.minus(Detector::TICK), tick);
            }
            told.contacts.iter().for_each(|contact| self.detector.merge(worker, contact));
            self.connections.extend(told.connections);
            over_limit += told.over_limit;
        }
        // The order of frames at one time is not known across workers; addresses give one.
        self.connections.sort_unstable_by_key(|new| (new.time, new.tuple));
        for connection in self.connections.drain(..) {
            self.recorder.connection(&connection);
        }
        self.recorder.connections_not_written(over_limit - self.over_limit);
        self.over_limit = over_limit;
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
        self.recorder.finish(now);
        now
    }
}
