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
//! So a failing disk costs no record and hides no frame.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use wire::message::Interface;
use wire::units::{Sequence, UnixNanos};

use crate::session::{NewRecords, Now};
use crate::status::{Sensor, Shared, add};
use crate::store::Store;
use crate::store::marks::Marks;
use crate::store::segment::Segment;

/// Something to store, and whose it is.
pub struct Command {
    /// The sensor.
    pub sensor: Arc<Sensor>,
    /// The connection that it came on.
    pub connection: u64,
    /// The run of the sensor that its sequence belongs to.
    pub boot_epoch: u64,
    /// What to store.
    pub body: Body,
}

/// What to store.
pub enum Body {
    /// A batch of frames.
    Frames(Frames),
    /// Records, as lines.
    Records(NewRecords),
}

/// A batch of frames, laid out as pcapng packets.
pub struct Frames {
    /// Position of the batch.
    pub sequence: Sequence,
    /// Interfaces that the packets refer to.
    pub interfaces: Arc<Vec<Interface>>,
    /// The packets, see [`crate::store::pcapng::push_frames`].
    pub blocks: Vec<u8>,
    /// How many.
    pub count: u64,
    /// Their captured bytes.
    pub bytes: u64,
}

impl Body {
    /// Bytes that this holds while it waits.
    fn size(&self) -> usize {
        match self {
            Self::Frames(frames) => frames.blocks.capacity(),
            Self::Records(records) => records.lines.capacity(),
        }
    }
}

/// The way to the committer.
///
/// Bounded: `MOST_COMMANDS` batches and `MOST_BYTES`. When full, the event loop stops reading
/// from the sensor that has the next batch, until there is room; `store_waits` counts that.
pub struct Queue {
    commands: Sender<Command>,
    bytes: Arc<AtomicUsize>,
    /// Buffers that were written. Bounded: `MOST_SPARE`; when full, a buffer is freed instead.
    spare: Receiver<Vec<u8>>,
}

/// The committer's end of the queue.
pub struct QueueEnd {
    commands: Receiver<Command>,
    bytes: Arc<AtomicUsize>,
    spare: Sender<Vec<u8>>,
}

/// Both ends of a new queue.
#[must_use]
pub fn queue() -> (Queue, QueueEnd) {
    let (commands, commands_end) = crossbeam_channel::bounded(MOST_COMMANDS);
    let (spare_end, spare) = crossbeam_channel::bounded(MOST_SPARE);
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue = Queue { commands, bytes: Arc::clone(&bytes), spare };
    (queue, QueueEnd { commands: commands_end, bytes, spare: spare_end })
}

impl Queue {
    /// Whether the next [`Queue::send`] finds room. Only true for a single sender.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < MOST_BYTES && !self.commands.is_full()
    }

    /// Hands a batch over. Waits if there is no room; ask [`Queue::has_room`] first.
    pub fn send(&self, command: Command) {
        self.bytes.fetch_add(command.body.size(), Ordering::Relaxed);
        // Fails only when the committer is gone, which ends the process: nothing is acknowledged.
        let _ = self.commands.send(command);
        if self.commands.len() >= BEHIND {
            std::thread::yield_now();
        }
    }

    /// An empty buffer for the packets of a batch.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_default()
    }
}

/// Tells the event loop for which sensors more is stored now.
pub struct Mailbox {
    /// Bounded by the number of sensors: each is in it at most once.
    changed: Mutex<BTreeMap<usize, Arc<Sensor>>>,
    is_drained: AtomicBool,
    waker: mio::Waker,
}

impl Mailbox {
    /// An empty mailbox; `waker` wakes its reader.
    #[must_use]
    pub const fn new(waker: mio::Waker) -> Self {
        let changed = Mutex::new(BTreeMap::new());
        Self { changed, is_drained: AtomicBool::new(false), waker }
    }

    /// The sensors of which more is stored since the last call.
    #[must_use]
    pub fn take(&self) -> BTreeMap<usize, Arc<Sensor>> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the committer has stored all there was, and ended.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        // Acquire, with the Release in `post`: what was posted before is seen by the `take` after.
        self.is_drained.load(Ordering::Acquire)
    }

    /// Says that nothing more comes, whatever became of the committer.
    pub fn close(&self) {
        self.is_drained.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the reader, whether there is anything for it or not.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the event loop");
        }
    }

    fn post(&self, changed: &mut BTreeMap<usize, Arc<Sensor>>, is_last: bool) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(changed);
        self.is_drained.fetch_or(is_last, Ordering::Release);
        self.wake();
    }
}

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
    marks: Marks,
    /// Sensors of which something is stored that the event loop does not know yet.
    changed: BTreeMap<usize, Arc<Sensor>>,
    /// Appended records that are not on the disk yet, by number of the sensor.
    uncommitted: BTreeMap<usize, Uncommitted>,
    has_new_marks: bool,
    last_commit: Instant,
    /// When retrying at a stop ends; set when it begins.
    give_up_at: Option<Instant>,
    /// Batches given up at a stop because the disk failed.
    given_up: u64,
    last_error_line: Option<Instant>,
}

/// Records of one sensor that are appended and not yet on the disk.
struct Uncommitted {
    sensor: Arc<Sensor>,
    connection: u64,
    boot_epoch: u64,
    last: Sequence,
    count: u64,
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
            last_error_line: None,
        }
    }

    /// Stores until the queue is closed and empty. Returns the number of batches that could not be
    /// stored before the end; they were not acknowledged.
    #[must_use]
    pub fn run(mut self) -> u64 {
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
            self.publish();
        }
        self.commit();
        self.mailbox.post(&mut self.changed, true);
        self.seal();
        self.given_up
    }

    fn take(&mut self, command: Command) {
        self.queue.bytes.fetch_sub(command.body.size(), Ordering::Relaxed);
        let Command { sensor, connection, boot_epoch, body } = command;
        match body {
            Body::Frames(frames) => self.take_frames(sensor, connection, boot_epoch, frames),
            Body::Records(records) => self.take_records(sensor, connection, boot_epoch, &records),
        }
    }

    fn take_frames(
        &mut self,
        sensor: Arc<Sensor>,
        connection: u64,
        boot_epoch: u64,
        frames: Frames,
    ) {
        let Frames { sequence, interfaces, mut blocks, count, bytes } = frames;
        if !self.persist(|store| store.ensure_segment(wall_clock(), Instant::now())) {
            return;
        }
        self.store.stage(&sensor, &interfaces, &mut blocks);
        if !self.persist(|store| store.write(&blocks)) {
            return;
        }
        blocks.clear();
        // Full: there are spare buffers enough.
        let _ = self.queue.spare.try_send(blocks);
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
        if self.store.is_segment_due(Instant::now()) {
            self.seal();
        }
    }

    fn take_records(
        &mut self,
        sensor: Arc<Sensor>,
        connection: u64,
        boot_epoch: u64,
        records: &NewRecords,
    ) {
        if !self.persist(|store| store.append_events(&records.lines)) {
            return;
        }
        let number = sensor.number();
        let is_other = |earlier: &Uncommitted| {
            (earlier.connection, earlier.boot_epoch) != (connection, boot_epoch)
        };
        if self.uncommitted.get(&number).is_some_and(is_other) {
            self.commit();
        }
        let entry = self.uncommitted.entry(number).or_insert_with(|| Uncommitted {
            sensor,
            connection,
            boot_epoch,
            last: Sequence(0),
            count: 0,
            alerts: 0,
        });
        entry.last = records.last;
        entry.count += records.count;
        entry.alerts += records.alerts;
    }

    /// Commits and seals what is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.commit_due().is_some_and(|due| due <= now) {
            self.commit();
        }
        if self.store.is_segment_due(now) {
            self.seal();
        }
    }

    fn next_deadline(&self) -> Instant {
        let due = [self.commit_due(), self.store.segment_due()].into_iter().flatten().min();
        due.unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn commit_due(&self) -> Option<Instant> {
        if !self.uncommitted.is_empty() {
            return Some(self.last_commit + COMMIT_INTERVAL);
        }
        self.has_new_marks.then(|| self.last_commit + MARKS_INTERVAL)
    }

    /// Brings all appended records to the disk, then the marks.
    fn commit(&mut self) {
        if self.uncommitted.is_empty() && !self.has_new_marks {
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
                && resume.boot_epoch == entry.boot_epoch
            {
                resume.records = entry.last;
            }
        }
        self.last_commit = Instant::now();
        if !self.persist(|store| store.commit(&marks)) {
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

    /// Completes the open segment and hands it to the sealer.
    fn seal(&mut self) {
        let mut taken = None;
        let is_done = self.persist(|store| {
            taken = store.take_segment(wall_clock())?;
            Ok(())
        });
        if let Some(segment) = taken.filter(|_| is_done) {
            // Fails only when the sealer is gone; the segment is then repaired at the next start.
            if self.sealer.send(segment).is_err() {
                add(&self.shared.counters.segments_unsealed, 1);
            }
        }
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

impl Uncommitted {
    /// Counts the records as stored.
    fn publish(&self) {
        let mut state = self.sensor.state();
        state.stored.records += self.count;
        state.stored.alerts += self.alerts;
        state.stored.last_record = Some(wall_clock());
        state.on_connection(self.connection).records += self.count;
        if state.boot_epoch == self.boot_epoch {
            state.marks.records = self.last;
        }
    }
}

/// Seals segments until there are no more. Runs in a thread of its own: bringing a segment to the
/// disk takes seconds on a slow one, and the committer must not wait that long.
pub fn seal_segments(segments: &Receiver<Segment>, shared: &Shared) {
    for segment in segments {
        let hidden = segment.path().to_owned();
        let bytes = segment.length();
        match segment.seal() {
            Ok(path) => {
                add(&shared.counters.segments_sealed, 1);
                tracing::info!(segment = %path.display(), bytes, "segment sealed");
            }
            Err(error) => {
                add(&shared.counters.segments_unsealed, 1);
                let segment = hidden.display();
                tracing::error!(%segment, %error, "cannot seal a segment until the next start");
            }
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

/// Batches in the queue: some milliseconds at full rate.
const MOST_COMMANDS: usize = 1024;
/// Batches from which on the committer is given the processor, in case it shares one with the event
/// loop: it then finds the batches still in the cache.
const BEHIND: usize = 8;
/// Bytes in the queue. One batch may exceed it, by at most 4 MiB.
const MOST_BYTES: usize = 64 << 20;
/// Written buffers kept for reuse.
const MOST_SPARE: usize = 64;
/// Batches taken before sensors are told what is stored.
const MOST_AT_ONCE: usize = 32;
/// Time between two fsyncs of the event log.
const COMMIT_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two writings of the marks while only frames come.
const MARKS_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which the committer looks around although nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// Pause before a failed operation is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two log lines about a failing store.
const ERROR_LINES: Duration = Duration::from_secs(60);
/// How long a stop waits for a failing disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
