//! What the collector knows about itself and its sensors: written by the threads that do the work,
//! once per batch, and read by the API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use trust::KeeperStatus;
use wire::header::Stream;
use wire::ledger::Ledger;
use wire::message::{Resume, SensorHello};
use wire::units::{Sequence, UnixNanos};

use crate::archive::Progress;
use crate::archive::retention::Removed;
use crate::beats::Beats;
use crate::store::catalog::Catalog;
use crate::store::log::catalog::Catalog as RecordCatalog;
use crate::store::log::marks::Marks as AllMarks;
use crate::store::pcapng::KernelStatistics;
use crate::store::segment::Group;

/// What all threads share.
pub struct Shared {
    /// Name of this collector.
    pub name: String,
    /// When it was started.
    pub started: UnixNanos,
    /// Folder of the store.
    pub store_path: PathBuf,
    /// The event log.
    pub events_path: PathBuf,
    /// The hidden files of the open segments.
    open_segments: Mutex<BTreeMap<Group, PathBuf>>,
    /// All segments.
    pub catalog: Catalog,
    /// What is known about the files of our TLS identity; empty before the start has come so far.
    pub tls: OnceLock<Arc<KeeperStatus>>,
    /// The same for the certificate of the API, where it has one of its own.
    pub api_tls: OnceLock<Arc<KeeperStatus>>,
    /// All counters that belong to no sensor.
    pub counters: Counters,
    /// The store takes nothing at the moment.
    pub is_store_failing: AtomicBool,
    /// Too little of the disk is free, and there is no segment left to delete.
    pub is_disk_short: AtomicBool,
    /// Bytes that a process without privileges could still write in the store when the sealer looked; 0 if there is no
    /// telling. Whoever asks does not wait for the disk.
    pub free_bytes: AtomicU64,
    /// Segments that are due cannot be deleted.
    pub is_deletion_failing: AtomicBool,
    /// Which threads work.
    pub beats: Beats,
    /// Somebody asked for the event log to be opened anew; the thread that writes it takes it back.
    pub is_reopen_asked: AtomicBool,
    /// Segments that were deleted, by what ended their life.
    pub expired: Reasons,
    /// What is in the record log.
    pub record_log: Arc<RecordCatalog>,
    /// What is stored of all streams of all sensors.
    marks: Mutex<AllMarks>,
    /// How far the event log is.
    pub events: Following,
    /// How the index is doing; how far it is, is in `index_progress`.
    pub index: Following,
    /// How far the index is.
    pub index_progress: Arc<Progress>,
    /// Records that are in the index by their time only: a field of theirs is not as EVE has it.
    pub index_unreadable: AtomicU64,
    /// Records that were removed.
    pub removed: Removed,
    /// How removing them is doing.
    pub removal: Following,
    /// Why connections were closed or refused, by reason.
    pub refused: Reasons,
    /// Why TLS handshakes failed, by reason; all of them count once in `refused` as well.
    pub handshakes: Reasons,
    /// Callers of the API.
    pub api: Callers,
    /// What the event loops have done, by number; empty before the start has come so far.
    pub loops: OnceLock<Box<[EventLoop]>>,
    sensors: Mutex<BTreeMap<String, Arc<Sensor>>>,
}

/// Connections of the API.
#[derive(Debug)]
pub struct Callers {
    /// Connections that found a place.
    pub accepted: AtomicU64,
    /// Times that callers waited because all places were taken.
    pub full: AtomicU64,
    /// Why connections were closed, by reason.
    pub refused: Reasons,
}

/// What one event loop has done.
#[derive(Debug, Default)]
pub struct EventLoop {
    /// Connections that it has now.
    pub connections: AtomicU64,
    /// Bytes that it has read from sockets.
    pub bytes: AtomicU64,
    /// Time in which it did not wait, in nanoseconds.
    pub busy_nanos: AtomicU64,
}

/// Counters that belong to no sensor. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted from the listening socket.
    pub connections: AtomicU64,
    /// Connections that were ended because their sensor came again.
    pub replaced: AtomicU64,
    /// Segments sealed.
    pub segments_sealed: AtomicU64,
    /// Segments that could not be sealed; they stay hidden until the next start.
    pub segments_unsealed: AtomicU64,
    /// Segments of an earlier run that were repaired and sealed at start.
    pub segments_repaired: AtomicU64,
    /// Bytes of segments that were deleted.
    pub expired_bytes: AtomicU64,
    /// Questions for frames.
    pub frame_questions: AtomicU64,
    /// Frames sent in answers.
    pub frames_answered: AtomicU64,
    /// Answers that lacked frames because segments are damaged, or were deleted when their turn came.
    pub answers_incomplete: AtomicU64,
    /// Frames in damaged parts of segments that answers came upon; each time anew.
    pub frames_unreadable: AtomicU64,
    /// Bytes that the repair of segments, record log and event log cut off.
    pub torn_bytes: AtomicU64,
    /// Failed operations of the store; each was tried again.
    pub store_errors: AtomicU64,
    /// Times that a sensor was not read because the queue to the store was full.
    pub store_waits: AtomicU64,
    /// Log lines that were left out because their peer had one within the minute.
    pub suppressed_lines: AtomicU64,
}

/// How far something is that is made from the record log.
#[derive(Debug, Default)]
pub struct Following {
    /// Number of the first record that is not in it.
    pub next_number: AtomicU64,
    /// Failed operations; each was tried again.
    pub errors: AtomicU64,
    /// Records that will never be in it: they were gone before.
    pub lost: AtomicU64,
    /// It takes nothing at the moment.
    pub is_failing: AtomicBool,
    /// Since when many records are not in it, by [`Beats::now`]; 0 if they are few.
    pub behind_since: AtomicU64,
}

impl Following {
    /// Takes note of how many records are not in it.
    pub fn note_backlog(&self, records: u64, now: u64) {
        if records < MANY {
            self.behind_since.store(0, Ordering::Relaxed);
        } else if self.behind_since.load(Ordering::Relaxed) == 0 {
            self.behind_since.store(now.max(1), Ordering::Relaxed);
        }
    }

    /// For how long it is far behind at this time. Unit: seconds.
    #[must_use]
    pub fn behind_for(&self, now: u64) -> u64 {
        match read(&self.behind_since) {
            0 => 0,
            since => now.saturating_sub(since),
        }
    }
}

/// Records that may wait: those of some seconds under full load.
const MANY: u64 = 100_000;

/// Counts by reason. Reasons are words of a fixed set.
#[derive(Debug, Default)]
pub struct Reasons(Mutex<BTreeMap<&'static str, u64>>);

impl Reasons {
    /// All of `names`, at zero, so that a reader sees which ones there are.
    #[must_use]
    pub fn new(names: &[&'static str]) -> Self {
        Self(Mutex::new(names.iter().map(|name| (*name, 0)).collect()))
    }

    /// Counts one more.
    pub fn count(&self, name: &'static str) {
        *locked(&self.0).entry(name).or_default() += 1;
    }

    /// The counts so far.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.0).clone()
    }
}

/// One sensor, known by the name in its certificate. Never forgotten: there are as many as the
/// authority issued certificates.
#[derive(Debug)]
pub struct Sensor {
    name: String,
    number: usize,
    collector_started: UnixNanos,
    /// Number of the event loop that has its session, and one; 0 before its first session.
    place: AtomicUsize,
    state: Mutex<SensorState>,
}

/// What is known about a sensor.
#[derive(Clone, Debug, Default)]
pub struct SensorState {
    /// The live connection.
    pub connection: Option<Connection>,
    /// Since when it is connected, or is not.
    pub since: UnixNanos,
    /// It said goodbye on its last connection: everything that it had to say came before.
    pub has_ended: bool,
    /// Its run; the sequence of frames belongs to it.
    pub boot_epoch: u64,
    /// Its spool; the sequences of records belong to it. A sensor of minor version 0 has none, and its
    /// run stands here.
    pub spool_epoch: u64,
    /// Its host name.
    pub host: String,
    /// Its version.
    pub version: String,
    /// When the certificate of its last connection expires, in seconds since 1970.
    pub certificate_until: Option<i64>,
    /// What is stored, since the collector was started.
    pub stored: Stored,
    /// Last record and frame batch stored; records count when they are on the disk.
    pub marks: Marks,
    /// What was stored of one connection.
    pub on_connection: OnConnection,
    /// Records and frame batches that were stored already when they came.
    pub duplicates: u64,
    /// Times that it was not read for a moment because it had brought its share of a second.
    pub pauses: u64,
    /// Records and frame batches that never came, seen by a hole in the sequence.
    pub missing: u64,
    /// Frames that the sensor itself reported as missing.
    pub gap_frames: u64,
    /// Up to when it did so, in this run.
    pub told_gaps: ToldGaps,
    /// Records that the sensor itself reported as missing.
    pub gap_records: u64,
    /// The sensor's clock minus ours, in nanoseconds.
    pub clock_offset: Option<i64>,
    /// Its last ledger.
    pub ledger: Option<Ledger>,
    /// Frames stored when the ledger came.
    pub frames_at_ledger: u64,
    /// Since when each ledger says that frames are on their way, and none is stored.
    pub frames_held_since: Option<UnixNanos>,
}

/// Stages and reasons of gaps that are remembered of a sensor. There are about twenty.
const MOST_PLACES: usize = 64;

/// Up to when a sensor told its gaps, by stage and reason: after a connection that broke it tells the last ones
/// again, with the same times.
#[derive(Clone, Debug, Default)]
pub struct ToldGaps(BTreeMap<(String, String), UnixNanos>);

impl ToldGaps {
    /// So many of the frames of a gap were not told before.
    pub fn take(
        &mut self,
        place: (String, String),
        (from, to): (UnixNanos, UnixNanos),
        frames: u64,
    ) -> u64 {
        if frames == 0 {
            return 0;
        }
        if let Some(told) = self.0.get_mut(&place) {
            // A sensor that tells nothing again may have had its clock set back.
            if from <= to && to <= *told {
                return 0;
            }
            *told = to;
        } else if self.0.len() < MOST_PLACES {
            self.0.insert(place, to);
        }
        frames
    }
}

/// A live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Unique within this run of the collector.
    pub id: u64,
    /// The other end.
    pub peer: SocketAddr,
}

/// Totals of what is stored of a sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Frames.
    pub frames: u64,
    /// Captured bytes of these frames.
    pub frame_bytes: u64,
    /// Records, alerts included.
    pub records: u64,
    /// Alert records.
    pub alerts: u64,
    /// When the last frame was stored.
    pub last_frame: Option<UnixNanos>,
    /// When the last record was stored.
    pub last_record: Option<UnixNanos>,
}

/// Positions in the streams of a sensor, of records in its spool, of frames in its run; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Last record of [`Stream::Records`].
    pub records: Sequence,
    /// Last record of [`Stream::Alerts`].
    pub alerts: Sequence,
    /// Last frame batch.
    pub frames: Sequence,
}

impl Marks {
    /// The position in one stream. [`Stream::Control`] has none: 0.
    #[must_use]
    pub const fn of(&self, stream: Stream) -> Sequence {
        match stream {
            Stream::Records => self.records,
            Stream::Alerts => self.alerts,
            Stream::Frames => self.frames,
            Stream::Control => Sequence(0),
        }
    }

    /// Sets the position in one stream; nothing for [`Stream::Control`].
    pub const fn set(&mut self, stream: Stream, position: Sequence) {
        match stream {
            Stream::Records => self.records = position,
            Stream::Alerts => self.alerts = position,
            Stream::Frames => self.frames = position,
            Stream::Control => {}
        }
    }
}

/// What was stored of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnConnection {
    /// The connection.
    pub id: u64,
    /// Records of [`Stream::Records`] on the disk.
    pub records: u64,
    /// Records of [`Stream::Alerts`] on the disk.
    pub alerts: u64,
    /// Frames written.
    pub frames: u64,
}

impl OnConnection {
    /// What was stored of one stream: records, or frames (not batches).
    #[must_use]
    pub const fn of(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Records => self.records,
            Stream::Alerts => self.alerts,
            Stream::Frames => self.frames,
            Stream::Control => 0,
        }
    }
}

impl Shared {
    /// Nothing known yet but where things are.
    #[must_use]
    pub fn new(name: String, started: UnixNanos, store_path: PathBuf) -> Self {
        Self {
            name,
            started,
            events_path: store_path.join("events").join("eve.json"),
            store_path,
            open_segments: Mutex::default(),
            catalog: Catalog::default(),
            tls: OnceLock::new(),
            api_tls: OnceLock::new(),
            counters: Counters::default(),
            is_store_failing: AtomicBool::new(false),
            is_disk_short: AtomicBool::new(false),
            free_bytes: AtomicU64::new(0),
            is_deletion_failing: AtomicBool::new(false),
            beats: Beats::default(),
            is_reopen_asked: AtomicBool::new(false),
            expired: Reasons::new(EXPIRED),
            record_log: Arc::default(),
            marks: Mutex::default(),
            events: Following::default(),
            index: Following::default(),
            index_progress: Arc::default(),
            index_unreadable: AtomicU64::new(0),
            removed: Removed::default(),
            removal: Following::default(),
            refused: Reasons::new(REFUSED),
            handshakes: Reasons::new(HANDSHAKES),
            api: Callers {
                accepted: AtomicU64::new(0),
                full: AtomicU64::new(0),
                refused: Reasons::new(CALLERS_REFUSED),
            },
            loops: OnceLock::new(),
            sensors: Mutex::default(),
        }
    }

    /// The sensor of this name; it is known from now on.
    #[must_use]
    pub fn sensor(&self, name: &str) -> Arc<Sensor> {
        let mut sensors = locked(&self.sensors);
        if let Some(sensor) = sensors.get(name) {
            return Arc::clone(sensor);
        }
        let sensor = Arc::new(Sensor {
            name: name.to_owned(),
            number: sensors.len(),
            collector_started: self.started,
            place: AtomicUsize::new(0),
            state: Mutex::default(),
        });
        sensors.insert(name.to_owned(), Arc::clone(&sensor));
        sensor
    }

    /// All sensors, by name.
    #[must_use]
    pub fn sensors(&self) -> Vec<Arc<Sensor>> {
        locked(&self.sensors).values().cloned().collect()
    }

    /// What is stored of all streams, for reading and changing. Never locked together with the state
    /// of a sensor, but by [`SensorState::greet`].
    pub fn marks(&self) -> MutexGuard<'_, AllMarks> {
        locked(&self.marks)
    }

    /// The hidden files of the open segments, for reading and changing.
    pub fn open_segments(&self) -> MutexGuard<'_, BTreeMap<Group, PathBuf>> {
        locked(&self.open_segments)
    }
}

impl Sensor {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number among the sensors of this run, in the order in which they became known.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }

    /// The event loop that has its session, or had its last one.
    #[must_use]
    pub fn place(&self) -> Option<usize> {
        // Ordered by the lock of the state, which both sides take: see `Mailboxes::post`.
        self.place.load(Ordering::Relaxed).checked_sub(1)
    }

    /// A session of it begins in this event loop.
    pub fn settle(&self, place: usize) {
        self.place.store(place + 1, Ordering::Relaxed);
    }

    /// What is known about it, for reading and changing.
    pub fn state(&self) -> MutexGuard<'_, SensorState> {
        locked(&self.state)
    }

    /// What its kernel counted on one interface. Zero for a sensor that was started after the
    /// collector and has not reported yet; `None` if there is no telling.
    #[must_use]
    pub fn kernel_statistics(&self, interface: &str) -> Option<KernelStatistics> {
        let state = self.state();
        let Some(ledger) = &state.ledger else {
            let is_new = state.boot_epoch >= self.collector_started.0;
            return is_new.then(KernelStatistics::default);
        };
        let entry = ledger.interfaces.iter().find(|entry| entry.name == interface)?;
        Some(KernelStatistics { packets: entry.kernel_packets, drops: entry.kernel_drops })
    }
}

impl SensorState {
    /// Takes note of its ledger.
    pub fn take_ledger(&mut self, ledger: Ledger, now: UnixNanos) {
        let has_new = self.stored.frames > self.frames_at_ledger;
        self.frames_at_ledger = self.stored.frames;
        self.frames_held_since = match ledger.frames.in_flight > 0 && !has_new {
            true => self.frames_held_since.or(Some(now)),
            false => None,
        };
        self.ledger = Some(ledger);
    }

    /// Takes note of the sensor's hello. A new run begins the sequence of frames anew, a new spool those
    /// of records; of a run or spool that was here before, `marks` tell where it was.
    pub fn greet(&mut self, hello: &SensorHello, marks: &AllMarks) {
        let last = |stream, epoch| marks.last(&hello.sensor, stream, epoch);
        if self.boot_epoch != hello.boot_epoch {
            self.boot_epoch = hello.boot_epoch;
            self.marks.frames = last(Stream::Frames, self.boot_epoch);
            self.ledger = None;
            self.frames_held_since = None;
            self.told_gaps = ToldGaps::default();
        }
        if self.spool_epoch != hello.record_epoch() {
            self.spool_epoch = hello.record_epoch();
            self.marks.records = last(Stream::Records, self.spool_epoch);
            self.marks.alerts = last(Stream::Alerts, self.spool_epoch);
        }
        self.host.clone_from(&hello.host);
        self.version.clone_from(&hello.version);
    }

    /// Takes over what an earlier run of the collector stored of the sensor's latest run and spool. The
    /// spool of a sensor of minor version 0 is its run; that of another one is not younger than its run.
    pub fn restore(&mut self, sensor: &str, marks: &AllMarks) {
        let epoch = |streams: &[Stream]| marks.latest(sensor, streams).map_or(0, |mark| mark.epoch);
        self.spool_epoch = epoch(&[Stream::Records, Stream::Alerts]);
        self.boot_epoch = self.spool_epoch.max(epoch(&[Stream::Frames]));
        let last = |stream, epoch| marks.last(sensor, stream, epoch);
        self.marks = Marks {
            records: last(Stream::Records, self.spool_epoch),
            alerts: last(Stream::Alerts, self.spool_epoch),
            frames: last(Stream::Frames, self.boot_epoch),
        };
    }

    /// What was stored of this connection; begins at zero with each new one.
    pub fn on_connection(&mut self, id: u64) -> &mut OnConnection {
        if self.on_connection.id != id {
            self.on_connection = OnConnection { id, ..OnConnection::default() };
        }
        &mut self.on_connection
    }

    /// What a sensor is told to go on from; `None` if nothing is stored of it.
    #[must_use]
    pub fn resume(&self) -> Option<Resume> {
        let Marks { records, alerts, frames } = self.marks;
        let Self { boot_epoch, spool_epoch, .. } = *self;
        let is_known = boot_epoch != 0;
        is_known.then_some(Resume { boot_epoch, records, frames, spool_epoch, alerts })
    }
}

/// One more, or several.
pub fn add(counter: &AtomicU64, more: u64) {
    // Nothing is derived from the order in which counters are seen to move.
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The value of a counter.
#[must_use]
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Locks; what a thread left behind that panicked is still a valid count.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why segments are deleted; always shown, also at zero. See [`crate::store::retention::Cause`].
const EXPIRED: &[&str] = &["bytes", "age", "free_space"];

/// Reasons that connections are closed for; always shown, also at zero.
const REFUSED: &[&str] = &[
    "tls_handshake",
    "handshake_timeout",
    "handshake_crowded",
    "closed_in_handshake",
    "accept_failed",
    "too_many_connections",
    "distrusted",
    "tls",
    "bad_magic",
    "unsupported_version",
    "too_long",
    "bad_raw_len",
    "bad_crc",
    "malformed",
    "name_mismatch",
    "wrong_order",
    "unknown_interface",
    "too_many_interfaces",
    "too_many_link_types",
    "bad_record",
    "silent",
    "cannot_encode",
];

/// What handshakes fail for; always shown, also at zero. See [`trust::words::failure`].
const HANDSHAKES: &[&str] = &[
    "no_certificate",
    "unknown_issuer",
    "expired",
    "not_valid_yet",
    "revoked",
    "wrong_purpose",
    "bad_certificate",
    "wrong_role",
    "not_tls",
    "refused_by_peer",
    "incompatible",
    "other",
];

/// Why connections of the API are closed; always shown, also at zero.
const CALLERS_REFUSED: &[&str] =
    &["too_many_of_address", "handshake", "handshake_timeout", "request_timeout", "idle"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_is_told_again_counts_once() {
        let mut told = ToldGaps::default();
        let place = |reason: &str| ("kernel".to_owned(), reason.to_owned());
        let time = |from, to| (UnixNanos(from), UnixNanos(to));
        assert_eq!(told.take(place("drops"), time(10, 20), 5), 5);
        assert_eq!(told.take(place("corrupt"), time(10, 20), 2), 2, "of the same moment");
        assert_eq!(told.take(place("drops"), time(20, 30), 7), 7);
        // The connection broke.
        assert_eq!(told.take(place("drops"), time(10, 20), 5), 0);
        assert_eq!(told.take(place("drops"), time(20, 30), 7), 0);
        assert_eq!(told.take(place("drops"), time(30, 40), 1), 1);
        let set_back = time(40, 15);
        assert_eq!(told.take(place("drops"), set_back, 3), 3, "of an older sensor");
        for number in 0..200 {
            assert_eq!(told.take(place(&number.to_string()), time(1, 2), 1), 1);
        }
        assert_eq!(told.0.len(), MOST_PLACES);
    }
}
