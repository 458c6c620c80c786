//! The spool: records on their way to a collector, kept on the disk until one has stored them.
//!
//! ```text
//!   PATH/lock                          held while a sensor runs
//!   PATH/position                      which spool this is, what is acknowledged, numbers in use
//!   PATH/alerts/NUMBER.seg             alert, anomaly, audit: sent first
//!   PATH/events/NUMBER.seg             flow, dns, stats, other
//!   PATH/*/NUMBER.aside                segments that were foreign or damaged
//!
//!                     uplink's thread                         spool-sync
//!   recorder ─push─▶ memory ─flush, each turn─▶ segments ──▶ fdatasync, about once a second
//!                                                  │
//!   collector ◀────────────── fill ────────────────┘          acknowledge ─▶ whole segments removed
//! ```
//!
//! Each lane numbers its records by itself, over all runs, for as long as the spool exists
//! (`spool_epoch`); a run begins behind every number that an earlier one may have used. So a
//! collector knows a record that it has when it comes again, and never mistakes a new one for an old
//! one.
//!
//! When the bytes or the age of the whole are over their limits, the oldest segment of events goes, and
//! an alert only when there are no events left. When the disk fails (full, read-only, gone), records
//! wait in bounded memory, the oldest events go first, and writing is tried again every second. All that
//! is given up is counted by reason, and told to the collector as a hole. Capture and detection never
//! learn of it.
//!
//! The logic knows the disk by [`disk::Disk`] alone.

mod clock;
pub mod disk;
mod format;
mod lane;
mod open;
mod position;
mod reading;
mod recover;
mod runs;
pub mod status;
mod store;
mod syncer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wire::header::Stream;
use wire::records::{MAX_RECORD, RecordBatchWriter, RecordKind};
use wire::units::{Sequence, UnixNanos};

use self::format::{LAST_NUMBER, LaneName};
use self::lane::{Filled, Lane, Segment};
pub use self::open::{SpoolError, check};
use self::position::Position;
use self::reading::Reading;
pub use self::runs::Hole;
use self::status::{SpoolStatus, add, set};
use self::store::{Reads, Store};
use crate::uplink::session::Now;
use crate::uplink::{Delivery, LossReason};

/// What the spool may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of all segments.
    pub max_bytes: u64,
    /// Older records are given up.
    pub max_age: Duration,
}

/// One in so many bytes is for alerts alone.
const RESERVED_SHARE: u64 = 8;
/// Numbers that a run may use before the position is written anew.
const RESERVED_NUMBERS: u64 = 1 << 24;
/// Between two attempts to write to a disk that fails, and between two syncs.
const INTERVAL: Duration = Duration::from_secs(1);
/// Failed attempts to read before a segment is given up.
const READ_ATTEMPTS: u32 = 10;

/// See the module.
pub struct Spool {
    epoch: u64,
    /// By [`LaneName`].
    lanes: [Lane; 2],
    batches: [RecordBatchWriter; 2],
    /// Records in memory are given up above so many bytes.
    memory_bytes: usize,
    /// Where records are kept; none: in memory alone.
    store: Option<Store>,
    /// What an earlier run left is being read. Until it is, numbers begin at 1 for the time being, and nothing
    /// is sent or written.
    reading: Option<Reading>,
    /// After a panic: so many records were under way, and are among those that are found.
    under_way: u64,
    delivery: Delivery,
    status: Arc<SpoolStatus>,
}

/// A message of records that is ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The stream of its records.
    pub stream: Stream,
    /// What the collector is to be told before it.
    pub holes: Vec<Hole>,
    /// The number of its first record.
    first: Sequence,
    lane: LaneName,
}

impl Spool {
    /// A spool in memory, which ends with this run. `epoch` names it.
    #[must_use]
    pub fn in_memory(epoch: u64, memory_bytes: usize, status: Arc<SpoolStatus>) -> Self {
        Self {
            epoch,
            lanes: LaneName::ALL.map(|name| Lane::new(name, Sequence(1))),
            batches: batches(),
            memory_bytes,
            store: None,
            reading: None,
            under_way: 0,
            delivery: Delivery::default(),
            status,
        }
    }

    /// Names the spool.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a record.
    pub fn push(&mut self, kind: RecordKind, json: Vec<u8>, now: UnixNanos) {
        self.delivery.produce(1);
        if json.len() > MAX_RECORD {
            self.delivery.lose(1, LossReason::TooLong);
            return;
        }
        self.lanes[LaneName::of(kind) as usize].push(kind, json, now);
        self.bound_memory();
    }

    /// Records beyond what memory holds are given up: the oldest events, then the oldest alerts.
    fn bound_memory(&mut self) {
        let [alerts, events] = &mut self.lanes;
        if alerts.waiting_bytes() + events.waiting_bytes() <= self.memory_bytes {
            return;
        }
        let has_disk = self.store.is_some() && self.reading.is_none();
        let reason = if has_disk { LossReason::SpoolFailed } else { LossReason::QueueFull };
        let left_for_events = self.memory_bytes.saturating_sub(alerts.waiting_bytes());
        let lost = events.give_up_waiting(left_for_events, reason)
            + alerts.give_up_waiting(self.memory_bytes, reason);
        self.delivery.lose(lost, reason);
    }

    /// Does what is due: writes what waits, keeps to the limits, and has data brought to the disk. To be
    /// called in each turn, after the records that came in it.
    pub fn work(&mut self, now: Now) {
        if let Some(found) = self.reading.as_ref().and_then(Reading::take) {
            self.reading = None;
            self.go_on_from(found, now);
        }
        if self.is_ready() {
            self.flush(now);
            self.look(now);
        }
        self.publish();
    }

    /// Is it known what comes first? Until then, nothing can be sent.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.reading.is_none()
    }

    fn flush(&mut self, now: Now) {
        let Some(store) = &mut self.store else { return };
        store.watch(now.monotonic);
        if !self.lanes.iter().any(Lane::has_waiting)
            || store.retry_at.is_some_and(|due| now.monotonic < due)
        {
            return;
        }
        if store.is_stuck {
            return self.disk_failed(now.monotonic, &does_not_answer());
        }
        match store.write(&mut self.lanes, now.monotonic) {
            Ok(()) => {
                self.disk_recovered();
                self.enforce_limits(Some(now));
            }
            Err(error) => self.disk_failed(now.monotonic, &error),
        }
    }

    /// Once a second: is the folder still there, is something too old, what is to be synced.
    fn look(&mut self, now: Now) {
        let Some(store) = &mut self.store else { return };
        if now.monotonic < store.next_look {
            return;
        }
        store.next_look = now.monotonic + INTERVAL;
        if store.is_stuck {
            return self.disk_failed(now.monotonic, &does_not_answer());
        }
        if store.is_gone() {
            let lost: u64 =
                self.lanes.iter_mut().map(|lane| lane.forget_missing(store.disk.as_ref())).sum();
            self.delivery.lose(lost, LossReason::SpoolFailed);
            match store.make() {
                Ok(()) => {
                    tracing::warn!(
                        path = %store.settings.path.display(), lost,
                        "the folder of the spool was gone, and was made again"
                    );
                    self.disk_recovered();
                }
                Err(error) => return self.disk_failed(now.monotonic, &error),
            }
        } else if store.retry_at.is_some() && !self.lanes.iter().any(Lane::has_waiting) {
            // Nothing waits that would show whether the disk is well again.
            match store.save_position(now.unix) {
                Ok(()) => self.disk_recovered(),
                Err(error) => return self.disk_failed(now.monotonic, &error),
            }
        }
        self.watch_clock(now);
        self.enforce_limits(Some(now));
        self.sync(now);
    }

    /// Says when the wall clock was set, and when it makes records too old but is not believed yet.
    fn watch_clock(&mut self, now: Now) {
        let Some(store) = &mut self.store else { return };
        if let Some(seconds) = store.clock.look(now) {
            add(&self.status.clock_steps, 1);
            tracing::warn!(seconds, "the clock was set; negative: back");
        }
        let oldest = self.lanes.iter().filter_map(|lane| lane.oldest_segment()?.newest).min();
        let age = oldest.map_or(Duration::ZERO, |oldest| now.unix.since(oldest));
        let is_doubted = !store.clock.is_steady() && age >= store.settings.max_age;
        let was_doubted =
            self.status.is_age_doubted.swap(is_doubted.into(), Ordering::Relaxed) == 1;
        if is_doubted && !was_doubted {
            tracing::warn!(
                age_hours = age.as_secs() / 3600,
                "by the clock, records of an earlier run are older than spool.max_age; they are kept until the \
                 clock has not been set for 10 minutes. Is it right?"
            );
        }
    }

    /// Gives up what is beyond the limits: events before alerts. Without a time, only by bytes.
    fn enforce_limits(&mut self, now: Option<Now>) {
        let Some(store) = &mut self.store else { return };
        let (disk, SpoolSettings { max_bytes: max, max_age, .. }) =
            (store.disk.as_ref(), &store.settings);
        let (max, max_age, is_steady) = (*max, *max_age, store.clock.is_steady());
        let is_too_old = |segment: &Segment, now: Now| {
            let is_so_by_wall = |newest| is_steady && now.unix.since(newest) >= max_age;
            segment.expires <= now.monotonic || segment.newest.is_some_and(is_so_by_wall)
        };
        let [alerts, events] = &mut self.lanes;
        let mut lose = |lane: &mut Lane, reason| {
            let lost = lane.drop_oldest(disk, reason)?;
            store.has_new_names = true;
            self.delivery.lose(lost, reason);
            Some(())
        };
        loop {
            let is_over = alerts.disk_bytes() + events.disk_bytes() > max
                || events.disk_bytes() > max - max / RESERVED_SHARE;
            if !is_over
                || (lose(events, LossReason::SpoolFull).is_none()
                    && lose(alerts, LossReason::SpoolFull).is_none())
            {
                break;
            }
        }
        for lane in [alerts, events] {
            while let Some(now) = now
                && lane.oldest_segment().is_some_and(|it| it.bytes > 0 && is_too_old(it, now))
                && lose(lane, LossReason::SpoolAged).is_some()
            {}
        }
    }

    fn sync(&mut self, now: Now) {
        let Some(store) = &mut self.store else { return };
        let errors = self.status.sync_errors.load(Ordering::Relaxed);
        if errors != store.seen_sync_errors {
            store.seen_sync_errors = errors;
            // The kernel says a failed write-back once and forgets the pages: what follows goes into
            // other files.
            self.lanes.iter_mut().for_each(Lane::end_segment);
            (store.has_new_names, store.synced) = (true, Position::default());
        }
        store.sync(&mut self.lanes, &self.status, now);
    }

    fn disk_failed(&mut self, now: Instant, error: &io::Error) {
        let Some(store) = &mut self.store else { return };
        add(&self.status.write_errors, 1);
        let path = store.settings.path.display();
        if store.retry_at.is_none() {
            tracing::error!(%path, %error, "cannot write to the spool; records wait in memory");
        }
        store.retry_at = Some(now + INTERVAL);
        let problem = format!("spool {path}: {error}; records wait in memory");
        self.status.set_write_problem(Some(problem));
    }

    fn disk_recovered(&mut self) {
        if let Some(store) = &mut self.store
            && store.retry_at.take().is_some()
        {
            let path = store.settings.path.display();
            tracing::info!(%path, "the spool takes records again");
            self.status.set_write_problem(None);
        }
    }

    /// The records that are to be sent next: alerts, then others. `None` if there are none, or they
    /// cannot be read now.
    pub fn next_batch(&mut self, now: Instant) -> Option<Outgoing> {
        if !self.is_ready() {
            return None;
        }
        LaneName::ALL.into_iter().find_map(|name| {
            let due = self.store.as_ref().and_then(|store| store.reads[name as usize].due);
            let lane = &mut self.lanes[name as usize];
            if !lane.has_unsent() || due.is_some_and(|due| now < due) {
                return None;
            }
            let disk = self.store.as_ref().and_then(Store::disk);
            let (filled, damaged) = lane.fill(disk, &mut self.batches[name as usize]);
            self.delivery.lose(damaged, LossReason::SpoolCorrupt);
            match filled {
                Ok(filled) => {
                    let Filled { first, holes } = filled?;
                    let stream = match name {
                        LaneName::Alerts => Stream::Alerts,
                        LaneName::Events => Stream::Records,
                    };
                    Some(Outgoing { stream, holes, first, lane: name })
                }
                Err(error) => {
                    self.read_failed(name, now, &error);
                    None
                }
            }
        })
    }

    /// Appends the message itself to `out`. `batch` is what [`Spool::next_batch`] gave last.
    pub fn finish_batch(&mut self, batch: &Outgoing, out: &mut Vec<u8>) {
        if let Some(store) = &mut self.store {
            store.reads[batch.lane as usize] = Reads::default();
        }
        self.batches[batch.lane as usize].finish(batch.first, out);
    }

    /// A segment that cannot be read time and again must not hold up all that is behind it.
    fn read_failed(&mut self, name: LaneName, now: Instant, error: &io::Error) {
        let Some(store) = &mut self.store else { return };
        let reads = &mut store.reads[name as usize];
        reads.failures += 1;
        reads.due = Some(now + INTERVAL);
        let is_gone = error.kind() == io::ErrorKind::NotFound;
        if reads.failures < READ_ATTEMPTS && !is_gone {
            return;
        }
        *reads = Reads::default();
        let lane = &mut self.lanes[name as usize];
        let lost = lane.drop_unreadable(store.disk.as_ref(), LossReason::SpoolFailed);
        self.delivery.lose(lost, LossReason::SpoolFailed);
        let lane = name.name();
        tracing::error!(lane, lost, %error, "a segment of the spool cannot be read and is given up");
    }

    /// Is there something to send? What cannot be read now, because the disk fails or does not answer, is not.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        let can_be_read = |name: LaneName| {
            self.store
                .as_ref()
                .is_none_or(|it| !it.is_stuck && it.reads[name as usize].due.is_none())
        };
        LaneName::ALL.into_iter().any(|name| {
            let lane = &self.lanes[name as usize];
            lane.has_unsent() && (!lane.has_unsent_on_disk() || can_be_read(name))
        })
    }

    /// Is everything acknowledged or lost?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    /// A collector is connected that has everything of a stream of this spool up to `mark`. False if so much
    /// was never sent.
    ///
    /// Where the folder was put back from a copy, that may be: new records then get numbers beyond it.
    pub fn meet(&mut self, stream: Stream, mark: Sequence) -> bool {
        let is_known = self.acknowledge(stream, mark)
            || (self.skip_beyond(stream, mark) && self.acknowledge(stream, mark));
        if let Some(lane) = lane_of(stream) {
            self.lanes[lane as usize].meet(mark);
        }
        is_known
    }

    /// Everything of a stream up to `through` is stored by a collector. False if so much was never sent.
    pub fn acknowledge(&mut self, stream: Stream, through: Sequence) -> bool {
        let Some(lane) = lane_of(stream) else { return false };
        let disk = self.store.as_ref().and_then(Store::disk);
        let settled = self.lanes[lane as usize].acknowledge(through, disk);
        self.delivery.acknowledge(settled.unwrap_or(0));
        settled.is_some()
    }

    /// Without a disk, or beyond what numbers there are, it cannot be, and false is said.
    fn skip_beyond(&mut self, stream: Stream, number: Sequence) -> bool {
        let (Some(lane), Some(store)) = (lane_of(stream), &self.store) else { return false };
        // Half of them: what follows must have numbers, too.
        if number.0 >= LAST_NUMBER.0 / 2 {
            return false;
        }
        let path = store.settings.path.display();
        tracing::warn!(%path, "the spool is older than what the collector has: was it restored?");
        self.lanes[lane as usize].skip_beyond(number);
        true
    }

    /// Everything that is not acknowledged has to be sent (again).
    pub fn rewind(&mut self) {
        // What was put into a batch and not sent is sent again too.
        self.batches = batches();
        self.lanes.iter_mut().for_each(Lane::rewind);
    }

    /// The sensor stops: what is on the disk stays there for the next run, what is not is given up.
    pub fn close(&mut self, now: Now) {
        // The numbers of what waits are not known, so it cannot be written, and nor can the position.
        let is_read = self.reading.take().map(Reading::stop).is_none();
        if let Some(store) = &mut self.store {
            store.retry_at = None;
        }
        if is_read {
            self.flush(now);
        }
        for lane in &mut self.lanes {
            let lost = lane.give_up_waiting(0, LossReason::Shutdown);
            self.delivery.lose(lost, LossReason::Shutdown);
        }
        match &mut self.store {
            Some(store) if is_read => store.close(&mut self.lanes, &self.status, now),
            _ => self.store = None,
        }
        self.publish();
    }

    /// What became of all records.
    #[must_use]
    pub const fn delivery(&self) -> Delivery {
        self.delivery
    }

    fn pending(&self) -> u64 {
        self.lanes.iter().map(Lane::pending).sum()
    }

    fn publish(&self) {
        let status = &self.status;
        for (at, lane) in self.lanes.iter().enumerate() {
            set(&status.disk_bytes[at], lane.disk_bytes());
            set(&status.segments[at], lane.segments() as u64);
            set(&status.records[at], lane.pending());
            set(&status.oldest[at], lane.oldest().map_or(0, |oldest| oldest.0));
        }
        let waiting: usize = self.lanes.iter().map(Lane::waiting_bytes).sum();
        set(&status.waiting_bytes, waiting as u64);
    }
}

/// Empty batches, by [`LaneName`].
const fn batches() -> [RecordBatchWriter; 2] {
    [RecordBatchWriter::of_alerts(), RecordBatchWriter::new()]
}

/// The lane whose records go on a stream.
const fn lane_of(stream: Stream) -> Option<LaneName> {
    match stream {
        Stream::Alerts => Some(LaneName::Alerts),
        Stream::Records => Some(LaneName::Events),
        Stream::Control | Stream::Frames => None,
    }
}

fn does_not_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer")
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
