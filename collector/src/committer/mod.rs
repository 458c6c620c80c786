//! The one thread that writes: takes batches from the queue, appends them, brings them to the disk
//! and says what is stored.
//!
//! ```text
//!   queue ──▶ frames:  written ──────────────────────▶ acknowledged
//!         └─▶ records: staged ──▶ written ──▶ fsync ──▶ acknowledged     one fsync for all of 100 ms
//!                                              └──▶ event log, index
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
use wire::units::{Sequence, UnixNanos};

use crate::beats::Worker;
use crate::session::{NewRecords, Now};
use crate::status::{Marks, OnConnection, Sensor, Shared, add};
use crate::store::catalog::Sealed;
use crate::store::log::batch::NewBatch;
use crate::store::retention::{self, Limits};
use crate::store::segment::{self, Group, Segment};
use crate::store::{self, Store, pcapng};
pub use queue::{Body, Command, Frames, Mailbox, Mailboxes, Queue, QueueEnd, queue};

/// See the module.
pub struct Committer {
    store: Store,
    queue: QueueEnd,
    mailboxes: Mailboxes,
    /// Bounded, see `pipeline`; when full the committer waits for a segment to reach the disk.
    sealer: Sender<Segment>,
    shared: Arc<Shared>,
    is_stopping: Arc<AtomicBool>,
    /// Sensors of which something is stored that its event loop does not know yet.
    changed: BTreeMap<usize, Arc<Sensor>>,
    /// Staged records that are not on the disk yet, by number of the sensor.
    uncommitted: BTreeMap<usize, Uncommitted>,
    /// Batches of them.
    staged: u64,
    last_commit: Instant,
    /// There are marks of which no copy is on the disk: of frames, or of a segment that was sealed.
    has_new_marks: bool,
    last_checkpoint: Instant,
    /// When retrying at a stop ends; set when it begins.
    give_up_at: Option<Instant>,
    /// Batches given up at a stop because the disk failed, and those behind them.
    given_up: u64,
    /// Why the record log can no longer be trusted; nothing is stored or acknowledged after it.
    sync_failure: Option<io::Error>,
    last_error_line: Option<Instant>,
}

/// Records of one sensor that are staged and not yet on the disk.
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
    /// A committer for `queue`.
    #[must_use]
    pub fn new(
        store: Store,
        queue: QueueEnd,
        mailboxes: Mailboxes,
        sealer: Sender<Segment>,
        shared: Arc<Shared>,
        is_stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            store,
            queue,
            mailboxes,
            sealer,
            shared,
            is_stopping,
            changed: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            staged: 0,
            last_commit: Instant::now(),
            has_new_marks: false,
            last_checkpoint: Instant::now(),
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
    /// The record log could not be brought to the disk. It ends at once, without sealing the open
    /// segment, which the next start does.
    pub fn run(mut self) -> io::Result<u64> {
        let commands = self.queue.commands.clone();
        loop {
            self.shared.beats.beat(Worker::Committer);
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
        self.store.close_log();
        self.mailboxes.post(&mut self.changed);
        self.mailboxes.close();
        for group in self.store.groups() {
            self.seal(group);
        }
        self.checkpoint();
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
        let Frames { sequence, interfaces, rate, blocks, count, bytes } = frames;
        for (group, mut blocks) in split(blocks, &sensor, &interfaces) {
            if !self.persist(|store| store.ensure_segment(group, wall_clock(), Instant::now())) {
                self.given_up += 1;
                return;
            }
            self.store.stage(group, &sensor, &interfaces, rate, &mut blocks);
            if !self.persist(|store| store.write(group, &blocks)) {
                self.given_up += 1;
                return;
            }
            blocks.clear();
            self.queue.spare.put(blocks);
            self.seal_due();
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
        self.shared.marks().advance(sensor.name(), Stream::Frames, boot_epoch, sequence);
        self.has_new_marks = true;
        self.changed.insert(sensor.number(), sensor);
    }

    fn take_records(
        &mut self,
        sensor: Arc<Sensor>,
        connection: u64,
        spool_epoch: u64,
        records: &NewRecords,
    ) {
        let number = sensor.number();
        let is_other = |earlier: &Uncommitted| {
            (earlier.connection, earlier.spool_epoch) != (connection, spool_epoch)
        };
        if self.uncommitted.get(&number).is_some_and(is_other) && !self.commit() {
            self.given_up += 1;
            return;
        }
        let NewRecords { first, last, count, alerts, .. } = *records;
        let batch = NewBatch {
            sensor: sensor.name(),
            stream: records.stream,
            epoch: spool_epoch,
            first,
            last,
            count,
            records: &records.records,
        };
        self.store.log().stage(&batch, wall_clock());
        self.staged += 1;
        let entry = self.uncommitted.entry(number).or_insert_with(|| Uncommitted {
            sensor,
            connection,
            spool_epoch,
            last: Marks::default(),
            counts: OnConnection::default(),
            alerts: 0,
        });
        entry.last.set(records.stream, last);
        match records.stream {
            Stream::Alerts => entry.counts.alerts += u64::from(count),
            _ => entry.counts.records += u64::from(count),
        }
        entry.alerts += alerts;
        if self.store.log().pending() >= MOST_PENDING {
            self.write_staged();
        }
    }

    /// Commits and seals what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.commit_due().is_some_and(|due| due <= now) {
            self.commit();
        }
        if self.uncommitted.is_empty() {
            self.seal_log();
        }
        self.seal_due();
        if self.checkpoint_due().is_some_and(|due| due <= now) {
            self.checkpoint();
        }
    }

    fn next_deadline(&self) -> Instant {
        let due = [self.commit_due(), self.checkpoint_due(), self.store.segment_due()];
        let idle = Instant::now() + IDLE;
        due.into_iter().flatten().min().map_or(idle, |due| due.min(idle))
    }

    fn commit_due(&self) -> Option<Instant> {
        (!self.uncommitted.is_empty()).then(|| self.last_commit + COMMIT_INTERVAL)
    }

    fn checkpoint_due(&self) -> Option<Instant> {
        self.has_new_marks.then(|| self.last_checkpoint + CHECKPOINT_INTERVAL)
    }

    /// Writes what is staged. False if it was given up.
    fn write_staged(&mut self) -> bool {
        if self.given_up > 0 {
            return false;
        }
        let is_done = self.persist(|store| store.log().write());
        if !is_done {
            self.given_up += self.staged;
        }
        is_done
    }

    /// Brings all staged records to the disk. False if that failed for ever.
    fn commit(&mut self) -> bool {
        if self.uncommitted.is_empty() {
            return true;
        }
        if self.sync_failure.is_some() || !self.write_staged() {
            return false;
        }
        if let Err(error) = self.store.log().sync() {
            self.sync_failure = Some(error);
            return false;
        }
        self.last_commit = Instant::now();
        self.staged = 0;
        for (number, entry) in std::mem::take(&mut self.uncommitted) {
            for stream in [Stream::Records, Stream::Alerts] {
                let (name, last) = (entry.sensor.name(), entry.last.of(stream));
                if last > Sequence(0) {
                    self.shared.marks().advance(name, stream, entry.spool_epoch, last);
                }
            }
            entry.publish();
            self.changed.insert(number, entry.sensor);
        }
        self.seal_log();
        true
    }

    /// Seals the open segment of the record log, all of which is on the disk, if it is due.
    fn seal_log(&mut self) {
        if self.store.log().is_due(wall_clock()) {
            self.store.log().seal();
            self.has_new_marks = true;
        }
    }

    /// Keeps a copy of the marks. A disk that refuses it costs nothing but time at the next start.
    fn checkpoint(&mut self) {
        self.last_checkpoint = Instant::now();
        let marks = self.shared.marks().clone();
        match self.store.log().write_checkpoint(&marks) {
            Ok(()) => self.has_new_marks = false,
            Err(error) => self.note_failure(&error),
        }
    }

    fn publish(&mut self) {
        if !self.changed.is_empty() {
            self.mailboxes.post(&mut self.changed);
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
        self.given_up += u64::from(!is_done);
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
            self.shared.beats.beat(Worker::Committer);
            if self.has_given_up() {
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
            segment::interface(interfaces, id).map_or_else(
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
        shared.beats.beat(Worker::Sealer);
        match segments.recv_timeout(RETENTION) {
            Ok(segment) => seal(segment, shared),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        retention::apply(limits, &shared.catalog, &folder, shared, wall_clock());
        retention::measure(shared);
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
/// Time between two fsyncs of the record log.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of staged records that are written before their time.
const MOST_PENDING: usize = 1 << 20;
/// Time between two copies of the marks: where frames come, a killed collector forgets no more.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
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
