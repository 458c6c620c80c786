//! The one thread that writes: takes batches from the queue, appends them, brings them to the disk
//! and says what is stored.
//!
//! ```text
//!   queue ──▶ frames:  written ─────────────▶ acknowledged
//!         └─▶ records: appended ──▶ fsync ──▶ acknowledged      one fsync for all of 100 ms
//!                                    └──▶ marks
//! ```
//!
//! When the disk fails, a batch is tried again until it is written: the queue fills, sensors are no
//! longer read, nothing is acknowledged, and each sensor keeps or counts what it cannot deliver.
//! So a failing disk costs no record and hides no frame. A stop gives up after a while; what comes
//! behind a batch that was given up is dropped as well, because acknowledgements are cumulative.
//!
//! A failed fsync is another matter: the kernel says a failed write-back once and then forgets the
//! pages, so that a second fsync would succeed with the records lost. It ends the collector; what
//! was not acknowledged is sent again to the next one.

mod queue;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use wire::header::Stream;
use wire::message::Interface;
use wire::units::UnixNanos;

use crate::session::{NewRecords, Now};
use crate::status::{Marks, OnConnection, Sensor, Shared, add};
use crate::store::catalog::Sealed;
use crate::store::marks::Marks as AllMarks;
use crate::store::retention::{self, Limits};
use crate::store::segment::{self, Group, Segment};
use crate::store::{self, Store, pcapng};
pub use queue::{Body, Command, Frames, Mailbox, Queue, QueueEnd, queue};

/// See the module.
pub struct Committer {
    store: Store,
    queue: QueueEnd,
    mailbox: Arc<Mailbox>,
    /// Bounded, see `pipeline`; when full the committer waits for a segment to reach the disk.
    sealer: Sender<Segment>,
    shared: Arc<Shared>,
    is_stopping: Arc<AtomicBool>,
    /// Marks as they go into the file.
    marks: AllMarks,
    /// Sensors of which something is stored that the event loop does not know yet.
    changed: BTreeMap<usize, Arc<Sensor>>,
    /// Appended records that are not on the disk yet, by number of the sensor.
    uncommitted: BTreeMap<usize, Uncommitted>,
    has_new_marks: bool,
    last_commit: Instant,
    /// When retrying at a stop ends; set when it begins.
    give_up_at: Option<Instant>,
    /// Batches given up at a stop because the disk failed, and those behind them.
    given_up: u64,
    /// Why the event log can no longer be trusted; nothing is stored or acknowledged after it.
    sync_failure: Option<io::Error>,
    last_error_line: Option<Instant>,
}

/// Records of one sensor that are appended and not yet on the disk.
struct Uncommitted {
    sensor: Arc<Sensor>,
    connection: u64,
    spool_epoch: u64,
    /// Last record of each stream; 0 for a stream without any.
    last: Marks,
    /// Records by stream.
    counts: OnConnection,
    /// How many of them are alerts.
    alerts: u64,
}

impl Committer {
    /// A committer for `queue`. `marks` are those that the store was opened with.
    #[must_use]
    pub fn new(
        store: Store,
        queue: QueueEnd,
        mailbox: Arc<Mailbox>,
        sealer: Sender<Segment>,
        shared: Arc<Shared>,
        is_stopping: Arc<AtomicBool>,
    ) -> Self {
        let marks = store.read_marks();
        for (name, resume) in &marks {
            shared.sensor(name).state().restore(resume);
        }
        Self {
            store,
            queue,
            mailbox,
            sealer,
            shared,
            is_stopping,
            marks,
            changed: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            has_new_marks: false,
            last_commit: Instant::now(),
            give_up_at: None,
            given_up: 0,
            sync_failure: None,
            last_error_line: None,
        }
    }

    /// Stores until the queue is closed and empty. Returns the number of batches that could not be
    /// stored before the end; they were not acknowledged.
    ///
    /// # Errors
    /// The event log could not be brought to the disk. It ends at once, without sealing the open
    /// segment, which the next start does.
    pub fn run(mut self) -> io::Result<u64> {
        let commands = self.queue.commands.clone();
        loop {
            match commands.recv_deadline(self.next_deadline()) {
                Ok(command) => {
                    self.take(command);
                    commands.try_iter().take(MOST_AT_ONCE).for_each(|more| self.take(more));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.keep_time();
            if let Some(error) = self.sync_failure {
                return Err(error);
            }
            self.publish();
        }
        self.commit();
        if let Some(error) = self.sync_failure {
            return Err(error);
        }
        self.mailbox.post(&mut self.changed, true);
        for group in self.store.groups() {
            self.seal(group);
        }
        Ok(self.given_up)
    }

    fn take(&mut self, command: Command) {
        self.queue.bytes.fetch_sub(command.body.size(), Ordering::Relaxed);
        // Storing what follows would acknowledge what was given up.
        if self.given_up > 0 || self.sync_failure.is_some() {
            self.given_up += 1;
            return;
        }
        let Command { sensor, connection, boot_epoch, spool_epoch, body } = command;
        match body {
            Body::Frames(frames) => self.take_frames(sensor, connection, boot_epoch, frames),
            Body::Records(records) => self.take_records(sensor, connection, spool_epoch, &records),
        }
    }

    fn take_frames(
        &mut self,
        sensor: Arc<Sensor>,
        connection: u64,
        boot_epoch: u64,
        frames: Frames,
    ) {
        let Frames { sequence, interfaces, blocks, count, bytes } = frames;
        for (group, mut blocks) in split(blocks, &sensor, &interfaces) {
            if !self.persist(|store| store.ensure_segment(group, wall_clock(), Instant::now())) {
                return;
            }
            self.store.stage(group, &sensor, &interfaces, &mut blocks);
            if !self.persist(|store| store.write(group, &blocks)) {
                return;
            }
            blocks.clear();
            // Full: there are spare buffers enough.
            let _ = self.queue.spare.try_send(blocks);
        }
        let mut state = sensor.state();
        state.stored.frames += count;
        state.stored.frame_bytes += bytes;
        state.stored.last_frame = Some(wall_clock());
        state.on_connection(connection).frames += count;
        if state.boot_epoch == boot_epoch {
            state.marks.frames = sequence;
        }
        drop(state);
        self.has_new_marks = true;
        self.changed.insert(sensor.number(), sensor);
        self.seal_due();
    }

    fn take_records(
        &mut self,
        sensor: Arc<Sensor>,
        connection: u64,
        spool_epoch: u64,
        records: &NewRecords,
    ) {
        if !self.persist(|store| store.append_events(&records.lines)) {
            return;
        }
        let number = sensor.number();
        let is_other = |earlier: &Uncommitted| {
            (earlier.connection, earlier.spool_epoch) != (connection, spool_epoch)
        };
        if self.uncommitted.get(&number).is_some_and(is_other) {
            self.commit();
        }
        let entry = self.uncommitted.entry(number).or_insert_with(|| Uncommitted {
            sensor,
            connection,
            spool_epoch,
            last: Marks::default(),
            counts: OnConnection::default(),
            alerts: 0,
        });
        entry.last.set(records.stream, records.last);
        match records.stream {
            Stream::Alerts => entry.counts.alerts += records.count,
            _ => entry.counts.records += records.count,
        }
        entry.alerts += records.alerts;
    }

    /// Commits, seals and reopens what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.commit_due().is_some_and(|due| due <= now) {
            self.commit();
        }
        self.seal_due();
        if self.shared.is_reopen_asked.swap(false, Ordering::Relaxed) {
            self.commit();
            if self.sync_failure.is_none() {
                self.persist(Store::reopen_events);
            }
        }
    }

    fn next_deadline(&self) -> Instant {
        let due = [self.commit_due(), self.store.segment_due()].into_iter().flatten().min();
        let idle = Instant::now() + IDLE;
        due.map_or(idle, |due| due.min(idle))
    }

    fn commit_due(&self) -> Option<Instant> {
        if !self.uncommitted.is_empty() {
            return Some(self.last_commit + COMMIT_INTERVAL);
        }
        self.has_new_marks.then(|| self.last_commit + MARKS_INTERVAL)
    }

    /// Brings all appended records to the disk, then the marks.
    fn commit(&mut self) {
        if self.sync_failure.is_some() || self.uncommitted.is_empty() && !self.has_new_marks {
            return;
        }
        if let Err(error) = self.store.sync_events() {
            self.sync_failure = Some(error);
            return;
        }
        let mut marks = self.marks.clone();
        for sensor in self.shared.sensors() {
            if let Some(resume) = sensor.state().resume() {
                marks.insert(sensor.name().to_owned(), resume);
            }
        }
        for entry in self.uncommitted.values() {
            if let Some(resume) = marks.get_mut(entry.sensor.name())
                && resume.spool_epoch == entry.spool_epoch
            {
                resume.records = resume.records.max(entry.last.records);
                resume.alerts = resume.alerts.max(entry.last.alerts);
            }
        }
        self.last_commit = Instant::now();
        if !self.persist(|store| store.write_marks(&marks)) {
            return;
        }
        self.marks = marks;
        self.has_new_marks = false;
        for (number, entry) in std::mem::take(&mut self.uncommitted) {
            entry.publish();
            self.changed.insert(number, entry.sensor);
        }
    }

    fn publish(&mut self) {
        if !self.changed.is_empty() {
            self.mailbox.post(&mut self.changed, false);
        }
    }

    fn seal_due(&mut self) {
        while let Some(group) = self.store.due_segment(Instant::now()) {
            if !self.seal(group) {
                return;
            }
        }
    }

    /// Completes an open segment and hands it to the sealer. False if that was given up.
    fn seal(&mut self, group: Group) -> bool {
        let mut taken = None;
        let is_done = self.persist(|store| {
            taken = store.take_segment(group, wall_clock())?;
            Ok(())
        });
        if let Some(segment) = taken.filter(|_| is_done) {
            // Fails only when the sealer is gone; the segment is then repaired at the next start.
            if self.sealer.send(segment).is_err() {
                add(&self.shared.counters.segments_unsealed, 1);
            }
        }
        is_done
    }

    /// Repeats an operation until it succeeds. False if it was given up, which only a stop does.
    fn persist(&mut self, mut operation: impl FnMut(&mut Store) -> io::Result<()>) -> bool {
        loop {
            let Err(error) = operation(&mut self.store) else {
                if self.shared.is_store_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store takes data again");
                }
                return true;
            };
            self.note_failure(&error);
            if self.has_given_up() {
                self.given_up += 1;
                return false;
            }
            std::thread::sleep(RETRY);
        }
    }

    fn note_failure(&mut self, error: &io::Error) {
        add(&self.shared.counters.store_errors, 1);
        self.shared.is_store_failing.store(true, Ordering::Relaxed);
        let is_quiet = self.last_error_line.is_some_and(|last| last.elapsed() < ERROR_LINES);
        if !is_quiet {
            self.last_error_line = Some(Instant::now());
            let path = self.shared.store_path.display();
            tracing::error!(%path, %error, "the store fails; sensors wait, trying again");
        }
    }

    /// Whether a stop was asked for, and the time to get everything written has passed.
    fn has_given_up(&mut self) -> bool {
        if !self.is_stopping.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        *self.give_up_at.get_or_insert(now + STOP_PATIENCE) <= now
    }
}

/// Packets by the segment that they belong in: nearly always the batch as it is.
fn split(blocks: Vec<u8>, sensor: &Sensor, interfaces: &[Interface]) -> BTreeMap<Group, Vec<u8>> {
    let mut groups = interfaces.iter().map(|interface| Group::of(sensor, interface));
    let first = groups.next();
    match first.filter(|first| groups.all(|group| group == *first)) {
        Some(only) => BTreeMap::from([(only, blocks)]),
        None => pcapng::split(&blocks, |id| {
            let declared = interfaces.iter().find(|interface| interface.id == id);
            declared.map_or_else(
                || Group::of(sensor, &segment::undeclared(id)),
                |interface| Group::of(sensor, interface),
            )
        }),
    }
}

impl Uncommitted {
    /// Counts the records as stored.
    fn publish(&self) {
        let mut state = self.sensor.state();
        state.stored.records += self.counts.records + self.counts.alerts;
        state.stored.alerts += self.alerts;
        state.stored.last_record = Some(wall_clock());
        let on_connection = state.on_connection(self.connection);
        on_connection.records += self.counts.records;
        on_connection.alerts += self.counts.alerts;
        if state.spool_epoch == self.spool_epoch {
            state.marks.records = state.marks.records.max(self.last.records);
            state.marks.alerts = state.marks.alerts.max(self.last.alerts);
        }
    }
}

/// Seals segments until there are no more, and deletes those that are not to be kept. Runs in a thread of its
/// own: bringing a segment to the disk takes seconds on a slow one, and the committer must not wait that
/// long.
pub fn keep_segments(segments: &Receiver<Segment>, limits: &Limits, shared: &Shared) {
    let folder = shared.store_path.join(store::FRAMES);
    loop {
        match segments.recv_timeout(RETENTION) {
            Ok(segment) => seal(segment, shared),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        retention::apply(limits, &shared.catalog, &folder, shared, wall_clock());
    }
}

fn seal(segment: Segment, shared: &Shared) {
    let hidden = segment.path().to_owned();
    let sealed = segment.seal().and_then(|path| Ok((Sealed::read(&path)?, path)));
    match sealed {
        Ok((sealed, path)) => {
            add(&shared.counters.segments_sealed, 1);
            let bytes = sealed.bytes;
            tracing::info!(segment = %path.display(), bytes, "segment sealed");
            shared.catalog.seal(path, sealed);
        }
        Err(error) => {
            add(&shared.counters.segments_unsealed, 1);
            let segment = hidden.display();
            tracing::error!(%segment, %error, "cannot seal a segment until the next start");
        }
    }
}

/// The time by both clocks.
#[must_use]
pub fn now() -> Now {
    Now { instant: Instant::now(), wall: wall_clock() }
}

/// Nanoseconds since 1970 by the system's clock; 0 before that.
#[must_use]
pub fn wall_clock() -> UnixNanos {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixNanos(since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
}

/// Batches taken before sensors are told what is stored.
const MOST_AT_ONCE: usize = 32;
/// Time between two fsyncs of the event log.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two writings of the marks while only frames come.
const MARKS_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which the committer looks around although nothing happens.
const IDLE: Duration = Duration::from_secs(1);
/// Time between two looks at what is to be kept, if no segment is sealed before.
const RETENTION: Duration = Duration::from_secs(5);
/// Pause before a failed operation is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two log lines about a failing store.
const ERROR_LINES: Duration = Duration::from_secs(60);
/// How long a stop waits for a failing disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
