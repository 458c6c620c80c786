//! The disk of a spool and how it is: folders, lock, position, what is to be synced.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::units::{Sequence, UnixNanos};

use super::clock::WallClock;
use super::disk::{Disk, DiskFile, Lock};
use super::format::LaneName;
use super::lane::{Lane, Writing};
use super::position::Position;
use super::recover::{self, Found};
use super::status::SpoolStatus;
use super::syncer::{Place, SyncJob, Syncer};
use super::{INTERVAL, RESERVED_NUMBERS, SpoolError, SpoolSettings};
use crate::uplink::session::Now;

/// Limits of the size of a segment: few files, and yet little is given up at once.
const SEGMENT_BYTES: (u64, u64) = (64 << 10, 8 << 20);
/// How long the end waits for the disk.
const LAST_SYNC: Duration = Duration::from_secs(2);

/// How reading a lane goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reads {
    /// Attempts that failed in a row, one a second.
    pub failures: u32,
    /// Set after one: when it is tried again.
    pub due: Option<Instant>,
}

/// The disk, and how it is.
pub struct Store {
    pub disk: Arc<dyn Disk>,
    pub settings: SpoolSettings,
    /// By [`LaneName`].
    pub folders: [PathBuf; 2],
    pub lock: Option<Arc<dyn Lock>>,
    /// Times that folders and lock were made.
    made: u64,
    pub position_file: Option<Arc<dyn DiskFile>>,
    pub position: Position,
    /// Nobody knows of it yet.
    pub is_new: bool,
    pub clock: WallClock,
    /// `None` in tests: syncs are then made at once.
    pub syncer: Option<Syncer>,
    /// Folders have names that are not on the disk yet.
    pub has_new_names: bool,
    /// What the position file says already.
    pub synced: Position,
    pub seen_sync_errors: u64,
    pub next_look: Instant,
    /// Set while the disk fails: when it is tried again.
    pub retry_at: Option<Instant>,
    /// By [`LaneName`].
    pub reads: [Reads; 2],
    /// The disk does not answer. Nothing is asked of it until it does.
    pub is_stuck: bool,
}

impl Store {
    /// Makes the folders, takes the lock and reads the position. The error is one that may pass.
    pub fn open(
        settings: SpoolSettings,
        disk: Arc<dyn Disk>,
        now: Now,
    ) -> Result<(Self, Option<io::Error>), SpoolError> {
        let folders = LaneName::ALL.map(|name| settings.path.join(name.name()));
        let mut store = Self {
            disk,
            folders,
            settings,
            lock: None,
            made: 0,
            position_file: None,
            position: Position::default(),
            is_new: false,
            clock: WallClock::new(now),
            syncer: None,
            has_new_names: true,
            synced: Position::default(),
            seen_sync_errors: 0,
            next_look: now.monotonic + INTERVAL,
            retry_at: None,
            reads: Default::default(),
            is_stuck: false,
        };
        let path = store.settings.path.clone();
        let failure = match store.make() {
            Ok(()) => None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(SpoolError::InUse { path });
            }
            Err(error) => Some(SpoolError::unless_disk_fails(&path, error)?),
        };
        let place = path.join("position");
        let file = store.position_file.clone().or_else(|| store.disk.open(&place).ok());
        let read = file.and_then(|file| Position::read(file.as_ref()).ok()).flatten();
        match read {
            Some(position) => (store.position, store.synced) = (position, position),
            None => {
                let [alerts, events] = &store.folders;
                let epoch = recover::epoch_of_segments(store.disk.as_ref(), [alerts, events]);
                store.position.spool_epoch = epoch.unwrap_or(0);
                store.is_new = epoch.is_none();
            }
        }
        Ok((store, failure))
    }

    /// Makes folders, lock and position file where they are missing.
    pub fn make(&mut self) -> io::Result<()> {
        self.disk.make_folder(&self.settings.path)?;
        self.lock = None;
        self.lock = Some(self.disk.lock(&self.lock_path())?.into());
        self.made += 1;
        for folder in &self.folders {
            self.disk.make_folder(folder)?;
        }
        self.position_file = None;
        self.has_new_names = true;
        self.synced = Position::default();
        let path = self.settings.path.join("position");
        let file = self.disk.open_to_write(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => self.disk.create(&path),
            _ => Err(error),
        })?;
        self.position_file = Some(file);
        Ok(())
    }

    /// The number of the first record of this run: above all that earlier ones may have used. A run that
    /// could not write the position began here too, at an earlier time, and no run uses more than one
    /// number in a microsecond. Where the position is lost, the time since 1970 is above all.
    pub fn next_number(&self, lane: LaneName, found: &Found, now: UnixNanos) -> Sequence {
        if self.is_new {
            return Sequence(1);
        }
        let Position { acked, bound, written_at, .. } = self.position;
        let used = bound[lane as usize].max(found.last).max(acked[lane as usize]);
        // Without a position, `written_at` is 1970.
        let since = now.since(written_at).as_micros();
        let skipped = u64::try_from(since).unwrap_or(0).max(1);
        Sequence(used.0.saturating_add(skipped))
    }

    /// Writes the position and waits until it is on the disk.
    pub fn save_position(&mut self, now: UnixNanos) -> io::Result<()> {
        if self.position_file.is_none() || self.lock.is_none() {
            self.make()?;
        }
        let Some(file) = &self.position_file else { return Ok(()) };
        let generation = self.position.generation + 1;
        let next = Position { generation, written_at: now, ..self.position };
        next.write(file.as_ref())?;
        file.sync()?;
        // Without its name the spool would be another one after a crash.
        self.disk.sync_folder(&self.settings.path)?;
        (self.position, self.synced) = (next, next);
        Ok(())
    }

    pub fn write(&mut self, lanes: &mut [Lane; 2], now: Instant) -> io::Result<()> {
        if self.lock.is_none() || self.position_file.is_none() {
            self.make()?;
        }
        let writing = Writing {
            spool_epoch: self.position.spool_epoch,
            segment_bytes: (self.settings.max_bytes / 64).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1),
            max_age: self.settings.max_age,
            now,
        };
        for (lane, folder) in lanes.iter_mut().zip(&self.folders) {
            let before = lane.segments();
            let flushed = lane.flush(self.disk.as_ref(), folder, &writing);
            self.has_new_names |= lane.segments() != before;
            flushed?;
        }
        Ok(())
    }

    fn lock_path(&self) -> PathBuf {
        self.settings.path.join("lock")
    }

    fn place(&self) -> Option<Place> {
        let lock = (Arc::clone(self.lock.as_ref()?), self.lock_path());
        Some(Place { made: self.made, lock, folders: self.folders.clone() })
    }

    /// Has the folder been removed, or another put in its place, as far as is known?
    pub fn is_gone(&self) -> bool {
        match &self.syncer {
            Some(syncer) => syncer.gone() == self.made && self.lock.is_some(),
            None => self.place().is_some_and(|place| place.is_gone(self.disk.as_ref())),
        }
    }

    /// Notes whether the disk still answers.
    pub fn watch(&mut self, now: Instant) {
        self.is_stuck = self.syncer.as_ref().is_some_and(|syncer| syncer.is_stuck(now));
    }

    /// The disk, unless it does not answer.
    pub fn disk(&self) -> Option<&dyn Disk> {
        (!self.is_stuck).then_some(self.disk.as_ref())
    }

    /// Has what was written brought to the disk, unless that is under way.
    pub fn sync(&mut self, lanes: &mut [Lane; 2], status: &SpoolStatus, now: Now) {
        if self.syncer.as_ref().is_some_and(Syncer::is_busy) {
            return;
        }
        let Some(job) = self.sync_job(lanes, now.unix) else { return };
        match &mut self.syncer {
            Some(syncer) => syncer.hand_over(job, now.monotonic),
            None => job.run_noted(self.disk.as_ref(), status),
        }
    }

    /// What is to be done now. At least the look at the folder.
    fn sync_job(&mut self, lanes: &mut [Lane; 2], now: UnixNanos) -> Option<SyncJob> {
        let (place, file) = (self.place()?, self.position_file.clone()?);
        let acked = [lanes[0].acked(), lanes[1].acked()];
        let mut bound = self.position.bound;
        for (bound, lane) in bound.iter_mut().zip(&*lanes) {
            let next = lane.next().0;
            if bound.0 < next + RESERVED_NUMBERS / 2 {
                *bound = Sequence(next + RESERVED_NUMBERS);
            }
        }
        let files: Vec<_> = lanes.iter_mut().flat_map(Lane::take_dirty).collect();
        let has_moved = (acked, bound) != (self.synced.acked, self.synced.bound);
        let has_work = !files.is_empty() || has_moved || self.has_new_names;
        if has_work {
            let generation = self.position.generation + 1;
            self.position = Position { generation, acked, bound, written_at: now, ..self.position };
            self.synced = self.position;
        }
        let mut folders = Vec::new();
        if std::mem::take(&mut self.has_new_names) {
            folders.extend(self.folders.iter().cloned());
            folders.push(self.settings.path.clone());
        }
        let position = has_work.then_some((file, self.position));
        Some(SyncJob { files, folders, position, place })
    }

    /// Ends the syncer and gives the lock back.
    pub fn give_up(self) -> (SpoolSettings, Arc<dyn Disk>) {
        if let Some(syncer) = self.syncer {
            syncer.stop(LAST_SYNC);
        }
        (self.settings, self.disk)
    }

    /// The last sync of this run.
    pub fn close(&mut self, lanes: &mut [Lane; 2], status: &SpoolStatus, now: Now) {
        match self.syncer.take() {
            None => self.sync(lanes, status, now),
            Some(mut syncer) => {
                let deadline = Instant::now() + LAST_SYNC;
                while syncer.is_busy() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(2));
                }
                if !syncer.is_busy()
                    && let Some(job) = self.sync_job(lanes, now.unix)
                {
                    syncer.hand_over(job, Instant::now());
                }
                syncer.stop(LAST_SYNC);
            }
        }
        self.lock = None;
    }
}
