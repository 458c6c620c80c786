//! The order of a tick.

use std::time::Duration;

use wire::units::UnixNanos;

use super::{Alert, AlertSummary, DetectorConfig};
use crate::evidence::Contact;

/// Merges the evidence of all workers and finds scans in it.
pub struct Detector {
    config: DetectorConfig,
    now: UnixNanos,
}

/// What the detector's memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Contacts in the window at one time.
    pub contacts: usize,
    /// Alerts open at one time.
    pub alerts: usize,
    /// All of it. Unit: bytes.
    pub bytes: usize,
}

/// What a [`Detector`] counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetectorCounters {
    /// Contacts taken in.
    pub merged: u64,
    /// Of those: their source is allowed.
    pub allowed: u64,
    /// Contacts that gave way to newer ones before their time.
    pub evidence_lost: u64,
    /// Alerts opened.
    pub opened: u64,
    /// Alerts closed.
    pub closed: u64,
    /// Scans that opened no alert, because too many are open.
    pub not_opened: u64,
    /// Contacts in the window now.
    pub contacts: u64,
    /// Alerts open now.
    pub open: u64,
}

impl Detector {
    /// Time between two ticks.
    pub const TICK: Duration = Duration::from_millis(250);

    /// Makes a detector; its tables are allocated here.
    #[must_use]
    pub fn new(config: DetectorConfig) -> Self {
        Self { config, now: UnixNanos(0) }
    }

    /// What the detector's memory holds.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget { contacts: 0, alerts: 0, bytes: self.config.memory_mib as usize }
    }

    /// What was counted since the detector was made.
    #[must_use]
    pub fn counters(&self) -> DetectorCounters {
        DetectorCounters::default()
    }

    /// Takes in what `worker` learnt about a contact.
    pub fn merge(&mut self, worker: usize, contact: &Contact) {
        let _ = (worker, contact);
    }

    /// Frames, or answers, were lost between `from` and `to`: silence in that time proves nothing.
    pub fn note_loss(&mut self, from: UnixNanos, to: UnixNanos) {
        let _ = (from, to);
    }

    /// Lets time pass to `now` (which never goes backwards) and tells what is new. Call it every
    /// [`Detector::TICK`], after merging what all workers published before `now`.
    pub fn tick(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.now = self.now.max(now);
        let _ = out;
    }

    /// Closes what is open, at `now`.
    pub fn finish(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.tick(now, out);
    }

    /// Nothing is open and nothing can fall due: time may pass without ticks.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        true
    }

    /// What could not be told one by one, at most once a second of ticks.
    pub fn take_summary(&mut self) -> Option<AlertSummary> {
        None
    }
}
