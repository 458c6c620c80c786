//! The detector's thread: takes in what workers publish, lets the detector's time pass, hands its
//! alerts to the recorder.
//!
//! The detector's time is the time up to which *every* worker has published: an answer that lies in a
//! ring not yet read must not be taken for silence. A worker that says nothing for
//! two seconds is no longer waited for.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;
use wire::units::UnixNanos;

use crate::detect::{Alert, Detector, DetectorCounters, Explanation};
use crate::evidence::Contact;
use crate::metrics::{Families, Source};
use crate::packet::Address;
use crate::pipeline::ToRecorder;

/// What a worker tells the detector. The ring holds [`EVIDENCE_RING`] of them; what finds no room
/// stays with the worker until its next tick (`ticks_deferred`).
#[derive(Clone, Copy, Debug)]
pub enum Evidence {
    /// What is new about a contact.
    Contact(Contact),
    /// Frames or answers were lost between two times: silence then proves nothing.
    Loss {
        /// From.
        from: UnixNanos,
        /// To.
        to: UnixNanos,
    },
    /// Everything up to this time has been told.
    Tick(UnixNanos),
}

/// What the local API asks the detector.
#[derive(Debug)]
pub struct Question {
    /// What is known of this source?
    pub source: Address,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Explanation>,
}

/// Questions that wait; further ones are refused.
pub const QUESTIONS: usize = 4;

/// Entries of the ring between a worker and the detector: 72 bytes each.
pub const EVIDENCE_RING: usize = 1 << 16;

/// A worker that has not published for so long is not waited for.
const LAGGARD_AFTER: Duration = Duration::from_secs(2);
/// A clock that was set back by more than this makes the detector start over.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// How often the rings are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// One worker, as the detector sees it.
struct Feed {
    ring: rtrb::Consumer<Evidence>,
    /// Published up to here.
    clock: UnixNanos,
    /// Published since the detector's last tick.
    is_fresh: bool,
    heard: Instant,
}

/// What the detector counts, for metrics; written by its thread after each tick.
#[derive(Debug, Default)]
pub struct DetectionCounters {
    detector: Mutex<DetectorCounters>,
    laggard_ticks: AtomicU64,
}

/// The thread body: runs until every worker has ended, then closes what is open. Once `stop` is set,
/// workers that stand still are not waited for.
pub fn run(
    mut detector: Detector,
    rings: Vec<rtrb::Consumer<Evidence>>,
    (recorder, questions): (&Sender<ToRecorder>, &Receiver<Question>),
    counters: &DetectionCounters,
    stop: &AtomicBool,
) {
    let started = Instant::now();
    let feed = |ring| Feed { ring, clock: UnixNanos(0), is_fresh: false, heard: started };
    let mut feeds: Vec<Feed> = rings.into_iter().map(feed).collect();
    let mut alerts = Vec::new();
    let mut last = UnixNanos(0);
    while !feeds.is_empty() {
        for (worker, feed) in feeds.iter_mut().enumerate() {
            feed.take_in(worker, &mut detector);
        }
        // An ended worker counts no more; the others keep the place that is their number only for the
        // `workers` field of alerts, which is why ended ones are dropped all at once.
        let is_stopped = stop.load(Ordering::Relaxed);
        if feeds.iter().all(|feed| feed.has_ended() || is_stopped && feed.is_laggard()) {
            break;
        }
        if let Some(now) = due(&feeds, counters) {
            if now.plus(CLOCK_SLACK) < last {
                detector.restart(last, &mut alerts);
                last = now;
            }
            last = last.max(now);
            for feed in feeds.iter().filter(|feed| !feed.has_ended() && feed.is_laggard()) {
                // What it has not told may hold the answers.
                detector.note_loss(feed.clock, last);
            }
            detector.tick(last, &mut alerts);
            feeds.iter_mut().for_each(|feed| feed.is_fresh = false);
            hand_over(&mut detector, &mut alerts, last, recorder);
            counters.copy(detector.counters());
        }
        for Question { source, answer } in questions.try_iter() {
            // Whoever asked may have gone.
            let _ = answer.send(detector.explain(source));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let last = feeds.iter().map(|feed| feed.clock).fold(last, UnixNanos::max);
    detector.finish(last, &mut alerts);
    hand_over(&mut detector, &mut alerts, last, recorder);
    counters.copy(detector.counters());
}

impl Feed {
    fn take_in(&mut self, worker: usize, detector: &mut Detector) {
        while let Ok(evidence) = self.ring.pop() {
            match evidence {
                Evidence::Contact(contact) => detector.merge(worker, &contact),
                Evidence::Loss { from, to } => detector.note_loss(from, to),
                Evidence::Tick(clock) => {
                    self.clock = clock;
                    self.is_fresh = true;
                    self.heard = Instant::now();
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ring.is_abandoned() && self.ring.is_empty()
    }

    fn is_laggard(&self) -> bool {
        self.heard.elapsed() > LAGGARD_AFTER
    }
}

/// The time up to which all have published, once all have since the last tick.
fn due(feeds: &[Feed], counters: &DetectionCounters) -> Option<UnixNanos> {
    let waited_for = || feeds.iter().filter(|feed| !feed.has_ended() && !feed.is_laggard());
    if !waited_for().all(|feed| feed.is_fresh) {
        return None;
    }
    if feeds.iter().any(|feed| !feed.has_ended() && feed.is_laggard()) {
        counters.laggard_ticks.fetch_add(1, Ordering::Relaxed);
    }
    waited_for().map(|feed| feed.clock).min()
}

fn hand_over(
    detector: &mut Detector,
    alerts: &mut Vec<Alert>,
    now: UnixNanos,
    recorder: &Sender<ToRecorder>,
) {
    // The detector may wait: workers keep what it does not take. A recorder that is gone has said why.
    for alert in alerts.drain(..) {
        let _ = recorder.send(ToRecorder::Alert(Box::new(alert)));
    }
    if let Some(summary) = detector.take_summary() {
        let _ = recorder.send(ToRecorder::AlertsSummarised(now, summary));
    }
}

impl DetectionCounters {
    fn copy(&self, counters: DetectorCounters) {
        *self.detector.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

impl Source for DetectionCounters {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let counters = *self.detector.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counter = |name, help, value| families.counter(name, help, [(vec![], value)]);
        counter(
            "ringwatch_detector_contacts_merged",
            "Contacts that the detector took in",
            counters.merged,
        )?;
        counter(
            "ringwatch_detector_contacts_allowed",
            "Contacts of sources that never alert",
            counters.allowed,
        )?;
        counter(
            "ringwatch_detector_evidence_lost",
            "Contacts that gave way to newer ones before their time",
            counters.evidence_lost,
        )?;
        counter(
            "ringwatch_detector_slow_sources_lost",
            "Sources with failed contacts that gave way in the table of slow scans",
            counters.slow_lost,
        )?;
        counter("ringwatch_alerts_opened", "Alerts opened", counters.opened)?;
        counter("ringwatch_alerts_closed", "Alerts closed", counters.closed)?;
        counter(
            "ringwatch_alerts_not_opened",
            "Scans that opened no alert because too many were open",
            counters.not_opened,
        )?;
        counter(
            "ringwatch_detector_laggard_ticks",
            "Ticks that did not wait for a stalled worker",
            self.laggard_ticks.load(Ordering::Relaxed),
        )?;
        let mut gauge =
            |name, help, value: u64| families.gauge(name, help, [(vec![], value as f64)]);
        gauge("ringwatch_alerts_open", "Alerts open now", counters.open)?;
        gauge("ringwatch_detector_contacts", "Contacts in the window now", counters.contacts)?;
        gauge(
            "ringwatch_detector_contacts_room",
            "Contacts that the window has room for",
            counters.contacts_room,
        )?;
        gauge(
            "ringwatch_detector_slow_sources",
            "Sources in the table of slow scans",
            counters.slow_sources,
        )?;
        gauge(
            "ringwatch_detector_one_way",
            "1: handshakes complete without their answers being seen, thresholds are higher",
            counters.one_way,
        )
    }
}
