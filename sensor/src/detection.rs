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
use hdrhistogram::Histogram;
use packet::Address;
use tokio::sync::oneshot;
use wire::units::UnixNanos;

use crate::counters::Counters;
use crate::detect::{
    Alert, Detector, DetectorCounters, Explanation, FloodCounters, GivenWay, Held, Phase,
};
use crate::evidence::Contact;
use crate::flood;
use crate::health;
use crate::metrics::{Families, Source};
use crate::pipeline::ToRecorder;
use crate::strain::Strain;
use crate::timing;

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

/// What the detector's thread deals with beside its workers' rings.
#[derive(Clone, Copy)]
pub struct Outside<'a> {
    /// Where alerts go.
    pub recorder: &'a Sender<ToRecorder>,
    /// What the local API asks.
    pub questions: &'a Receiver<Question>,
    /// What workers counted.
    pub workers: &'a Counters,
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

/// The other ends of what a worker tells the detector.
pub struct Feeds {
    /// Contacts, losses and ticks.
    pub evidence: rtrb::Consumer<Evidence>,
    /// What arrived at targets; told before the tick that it belongs to.
    pub targets: rtrb::Consumer<flood::Report>,
}

/// One worker, as the detector sees it.
struct Feed {
    ring: rtrb::Consumer<Evidence>,
    targets: rtrb::Consumer<flood::Report>,
    /// Published up to here.
    clock: UnixNanos,
    /// Published since the detector's last tick.
    is_fresh: bool,
    heard: Instant,
}

/// What the detector counts, for metrics; written by its thread after each tick.
#[derive(Debug)]
pub struct DetectionCounters {
    detector: Mutex<DetectorCounters>,
    laggard_ticks: AtomicU64,
    floods: Mutex<FloodCounters>,
    /// The detector's time, in nanoseconds since 1970; 0 before its first tick.
    time: AtomicU64,
    /// From the packet that crossed the threshold until the recorder had the alert. Unit: microseconds.
    time_to_alert: Mutex<Histogram<u64>>,
}

/// Upper bounds of the buckets of the time to an alert. Unit: microseconds.
const ALERT_BUCKETS: [u64; 9] =
    [50_000, 100_000, 200_000, 300_000, 400_000, 500_000, 750_000, 1_000_000, 10_000_000];

/// The thread body: runs until every worker has ended, then closes what is open. Once `stop` is set,
/// workers that stand still are not waited for.
pub fn run(
    mut detector: Detector,
    rings: Vec<Feeds>,
    outside: &Outside<'_>,
    counters: &DetectionCounters,
    stop: &AtomicBool,
) {
    let started = Instant::now();
    let feed = |Feeds { evidence: ring, targets }| {
        let clock = UnixNanos(0);
        Feed { ring, targets, clock, is_fresh: false, heard: started }
    };
    let mut feeds: Vec<Feed> = rings.into_iter().map(feed).collect();
    let mut alerts = Vec::new();
    let mut last = UnixNanos(0);
    let mut strain = Strain::default();
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
            hand_over(&mut detector, &mut alerts, last, outside.recorder, counters);
            let counted = detector.counters();
            let lost_by_workers = outside.workers.sum(|worker| &worker.evidence_lost);
            if let Some(change) = strain.look(last, &counted, lost_by_workers) {
                let _ = outside.recorder.send(ToRecorder::Detector(last, change));
            }
            counters.copy(last, counted, detector.flood_counters());
        }
        for Question { source, answer } in outside.questions.try_iter() {
            // Whoever asked may have gone.
            let _ = answer.send(detector.explain(source));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let last = feeds.iter().map(|feed| feed.clock).fold(last, UnixNanos::max);
    detector.finish(last, &mut alerts);
    hand_over(&mut detector, &mut alerts, last, outside.recorder, counters);
    counters.copy(last, detector.counters(), detector.flood_counters());
}

impl Feed {
    fn take_in(&mut self, worker: usize, detector: &mut Detector) {
        while let Ok(evidence) = self.ring.pop() {
            match evidence {
                Evidence::Contact(contact) => detector.merge(worker, &contact),
                Evidence::Loss { from, to } => detector.note_loss(from, to),
                Evidence::Tick(clock) => {
                    while let Ok(report) = self.targets.pop() {
                        detector.merge_target(worker, &report);
                    }
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
    counters: &DetectionCounters,
) {
    // The detector may wait: workers keep what it does not take. A recorder that is gone has said why.
    for alert in alerts.drain(..) {
        let crossed = detector.crossed(alert.id).filter(|_| alert.phase == Phase::Open);
        let _ = recorder.send(ToRecorder::Alert(Box::new(alert)));
        crossed.into_iter().for_each(|time| counters.alerted(time));
    }
    if let Some(summary) = detector.take_summary() {
        let _ = recorder.send(ToRecorder::AlertsSummarised(now, summary));
    }
}

impl Default for DetectionCounters {
    fn default() -> Self {
        Self {
            detector: Mutex::default(),
            floods: Mutex::default(),
            laggard_ticks: AtomicU64::new(0),
            time: AtomicU64::new(0),
            time_to_alert: Mutex::new(timing::empty()),
        }
    }
}

impl DetectionCounters {
    /// The recorder has an alert whose threshold was crossed at `time`.
    fn alerted(&self, time: UnixNanos) {
        let micros = timing::micros(health::now().since(time));
        let mut histogram = self.time_to_alert.lock().unwrap_or_else(PoisonError::into_inner);
        histogram.saturating_record(micros);
    }

    fn copy(&self, time: UnixNanos, counters: DetectorCounters, floods: FloodCounters) {
        self.time.store(time.0, Ordering::Relaxed);
        *self.detector.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        *self.floods.lock().unwrap_or_else(PoisonError::into_inner) = floods;
    }
}

impl DetectionCounters {
    fn write_floods(families: &mut Families<'_>, floods: FloodCounters) -> fmt::Result {
        let mut counter = |name, help, value| families.counter(name, help, [(vec![], value)]);
        counter(
            "ringwatch_flood_targets_forgotten",
            "Targets that gave way to others in the detector of floods, or found no room",
            floods.forgotten,
        )?;
        counter(
            "ringwatch_floods_not_opened",
            "Floods that found no room because there were too many, each second anew",
            floods.not_opened,
        )?;
        families.gauge(
            "ringwatch_flood_targets",
            "Targets that the detector of floods knows now",
            [(vec![], floods.targets as f64)],
        )
    }
}

impl Source for DetectionCounters {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let counters = *self.detector.lock().unwrap_or_else(PoisonError::into_inner);
        let floods = *self.floods.lock().unwrap_or_else(PoisonError::into_inner);
        Self::write_floods(families, floods)?;
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
        counter("ringwatch_alerts_opened", "Alerts opened", counters.opened)?;
        counter("ringwatch_alerts_closed", "Alerts closed", counters.closed + floods.closed)?;
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
        show_lost(&counters, families)?;
        show_fill(&counters, &floods, families)?;
        let time = UnixNanos(self.time.load(Ordering::Relaxed));
        let lag = if time == UnixNanos(0) { Duration::ZERO } else { health::now().since(time) };
        families.gauge(
            "ringwatch_detector_lag_seconds",
            "How far the detector's time is behind the clock",
            [(vec![], lag.as_secs_f64())],
        )?;
        let read = self.time_to_alert.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let buckets = timing::buckets(&read, &ALERT_BUCKETS);
        families.histogram(
            "ringwatch_alert_delay_seconds",
            "Time from the packet that crossed the threshold until the recorder had the alert",
            [(vec![], timing::sum_seconds(&read), read.len(), buckets)],
        )
    }
}

/// What gave way, by how much evidence its source held.
fn show_lost(counters: &DetectorCounters, families: &mut Families<'_>) -> fmt::Result {
    let rows = |lost: GivenWay| {
        Held::ALL.map(|held| (vec![("held", held.name().to_owned())], lost.of(held)))
    };
    families.counter(
        "ringwatch_detector_evidence_lost",
        "Contacts that gave way to newer ones before their time, by the evidence of their source",
        rows(counters.evidence_lost),
    )?;
    families.counter(
        "ringwatch_detector_slow_sources_lost",
        "Sources with failed contacts that gave way in the table of slow scans, by their evidence",
        rows(counters.slow_lost),
    )
}

/// How full the tables are now.
fn show_fill(
    counters: &DetectorCounters,
    floods: &FloodCounters,
    families: &mut Families<'_>,
) -> fmt::Result {
    let mut gauge = |name, help, value: u64| families.gauge(name, help, [(vec![], value as f64)]);
    gauge("ringwatch_alerts_open", "Alerts open now", counters.open + floods.open)?;
    gauge("ringwatch_detector_contacts", "Contacts in the window now", counters.contacts)?;
    gauge(
        "ringwatch_detector_contacts_room",
        "Contacts that the window has room for",
        counters.contacts_room,
    )?;
    gauge("ringwatch_detector_groups", "Groups of contacts in the window now", counters.groups)?;
    gauge("ringwatch_detector_groups_room", "Groups that there is room for", counters.groups_room)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::detect::DetectorConfig;
    use crate::evidence::{Class, ContactKey, Observation};
    use crate::metrics;

    /// What the recorder is told about these contacts, and a scrape after that.
    fn told(contacts: impl Iterator<Item = Contact>) -> (Vec<ToRecorder>, String) {
        let detector = Detector::new(DetectorConfig { memory_mib: 1, ..DetectorConfig::default() });
        let counters = Arc::new(DetectionCounters::default());
        let workers = Arc::new(Counters::new(Vec::new(), 1));
        let (recorder, news) = bounded(1000);
        let (_ask, questions) = bounded(1);
        let (mut ring, feed) = rtrb::RingBuffer::new(EVIDENCE_RING);
        let (_, targets) = rtrb::RingBuffer::new(1);
        contacts.for_each(|contact| ring.push(Evidence::Contact(contact)).unwrap());
        ring.push(Evidence::Tick(health::now())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let outside =
                    Outside { recorder: &recorder, questions: &questions, workers: &workers };
                let feeds = vec![Feeds { evidence: feed, targets }];
                run(detector, feeds, &outside, &counters, &AtomicBool::new(false));
            });
            // The tick is taken before the end.
            while counters.time.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(ring);
        });
        let scrape = metrics::render(&metrics::registry(workers, vec![counters as _]));
        (news.try_iter().collect(), scrape)
    }

    fn refused(source: u32, port: u16) -> Contact {
        let address = |n: u32| Address::from_v4(n.to_be_bytes());
        let key =
            ContactKey { source: address(source), target: address(1), class: Class::Tcp, port };
        let now = health::now().minus(Duration::from_millis(100));
        let mut contact = Contact::new(key, Observation::Attempted, now);
        contact.merge(&Contact::new(key, Observation::Refused, now));
        contact
    }

    #[test]
    fn the_time_from_the_deciding_packet_to_the_alert_is_measured_and_the_lag_shown() {
        let (news, scrape) = told((1..=10).map(|port| refused(7, port)));
        let opened = news
            .iter()
            .filter(|news| matches!(news, ToRecorder::Alert(alert) if alert.phase == Phase::Open));
        assert_eq!(opened.count(), 1);
        let delay = "ringwatch_alert_delay_seconds";
        for (metric, rest) in [
            (delay, "_count{} 1"),
            (delay, "_bucket{le=\"0.05\"} 0"),
            ("ringwatch_detector_groups_room", "{} "),
            ("ringwatch_detector_lag_seconds", "{} "),
        ] {
            let line = &format!("{metric}{rest}");
            assert!(scrape.lines().any(|has| has.starts_with(line)), "no {line} in\n{scrape}");
        }
    }

    #[test]
    fn evidence_that_is_lost_is_told_in_one_event() {
        let (news, scrape) = told((0..20_000).map(|source| refused(source + 100, 80)));
        let degraded: Vec<_> = news
            .iter()
            .filter_map(|news| match news {
                ToRecorder::Detector(_, change) => Some((change.name(), change.degradation())),
                _ => None,
            })
            .collect();
        let [(name, degradation)] = degraded.as_slice() else { panic!("{degraded:?}") };
        assert_eq!(*name, "detector.degraded");
        // In a flood groups run out before contacts do.
        assert_eq!(degradation.contacts + degradation.evidence_lost, 20_000);
        assert!(degradation.contacts * 2 > degradation.contacts_room, "{degradation:?}");
        // A single refusal is little.
        let lost = degradation.held.of(Held::Little);
        assert_eq!(lost, degradation.evidence_lost);
        for (held, lost) in [("little", lost), ("near", 0)] {
            let line = format!("ringwatch_detector_evidence_lost_total{{held=\"{held}\"}} {lost}");
            assert!(scrape.lines().any(|has| has == line), "no {line} in\n{scrape}");
        }
    }
}
