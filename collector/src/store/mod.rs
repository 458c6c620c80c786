//! The store: records in a log, what is made from it, and frames in segments.
//!
//! ```text
//!   PATH/lock                     held while a collector runs
//!   PATH/records/NUMBER.log       the record log
//!   PATH/records/marks.json       last record and frame batch of each sensor
//!   PATH/events/eve.json          events, JSON lines
//!   PATH/events/eve.cursor        how far the record log is in it
//!   PATH/index/DAY.sqlite         index of the records that were stored on a day
//!   PATH/frames/TIME.pcapng       sealed segments
//!   PATH/frames/TIME.pcapng.torn  what a repair cut off from one
//!   PATH/frames/.TIME.pcapng.part open segments, one for each group
//!   PATH/frames/expired           up to when segments were deleted, see `catalog`
//! ```
//!
//! Nothing here waits for anything but the disk, and nothing panics when it fails: a failed call can
//! be made again, but for a failed fsync of the record log. The one who writes records and frames is
//! [`crate::committer`]; threads of their own follow the log.

pub mod blocks;
pub mod catalog;
pub mod events;
pub mod index;
pub mod log;
pub mod pcapng;
pub mod retention;
pub mod segment;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::message::Interface;
use wire::units::UnixNanos;

use crate::archive::query::Archive;
use crate::archive::retention::{RecordLimits, Retention};
use crate::archive::{Index, IndexError};
use crate::config::StoreConfig;
use crate::status::{Sensor, Shared, add};
use events::EventLog;
use log::disk::Folder;
use log::{RecordLog, Recovery};
use segment::{Group, Rate, Repair, Segment};

/// The open store.
pub struct Store {
    log: RecordLog,
    /// Open segments. Bounded: beyond `MOST_OPEN`, the oldest one is due to be sealed.
    segments: BTreeMap<Group, Segment>,
    frames_folder: PathBuf,
    index_folder: PathBuf,
    limits: RecordLimits,
    segment_bytes: u64,
    segment_age: Duration,
    shared: Arc<Shared>,
    /// Keeps a second collector out, until the store is dropped.
    _lock: File,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A folder or file is not usable.
    #[error("cannot {action} {}", path.display())]
    Unusable {
        /// What was tried.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The index is not usable.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Another collector has it.
    #[error("another collector uses the store {}", path.display())]
    InUse {
        /// Folder of the store.
        path: PathBuf,
    },
}

impl Store {
    /// Opens the store, makes what is missing, and repairs what a killed collector left behind.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &StoreConfig, shared: Arc<Shared>) -> Result<Self, OpenError> {
        let frames_folder = config.path.join(FRAMES);
        make(&config.path).map_err(unusable("create", &config.path))?;
        for name in ["records", "events", "index", FRAMES] {
            let folder = config.path.join(name);
            make(&folder).map_err(unusable("create", &folder))?;
        }
        let lock = lock(&config.path)?;
        let records_folder = config.path.join("records");
        let unreadable = unusable("read", &records_folder);
        take_over_marks(&config.path, &records_folder)
            .map_err(unusable("move marks.json into", &records_folder))?;
        let disk = Arc::new(Folder::new(records_folder.clone()));
        let catalog = Arc::clone(&shared.record_log);
        let (log, recovery) = RecordLog::open(disk, catalog, SEGMENT_BYTES).map_err(unreadable)?;
        note_recovery(&shared, recovery);
        let repairs =
            segment::repair_all(&frames_folder).map_err(unusable("repair", &frames_folder))?;
        repairs.iter().for_each(|repair| note_repair(&shared, repair));
        let now = crate::committer::wall_clock();
        shared.catalog.load(&frames_folder, now).map_err(unusable("read", &frames_folder))?;
        retention::measure(&shared);
        Ok(Self {
            log,
            segments: BTreeMap::new(),
            frames_folder,
            index_folder: config.path.join("index"),
            limits: config.record_limits,
            segment_bytes: config.segment_bytes,
            segment_age: config.segment_age,
            shared,
            _lock: lock,
        })
    }

    /// The record log, for writing.
    pub const fn log(&mut self) -> &mut RecordLog {
        &mut self.log
    }

    /// Nothing follows in the record log: what reads it ends when it has read it all.
    pub fn close_log(&self) {
        self.shared.record_log.close();
    }

    /// The event log, to be written by a thread of its own.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn event_log(&self) -> Result<EventLog, OpenError> {
        let (disk, catalog) = self.log.source();
        let path = &self.shared.events_path;
        let (events, cut) = EventLog::open(path, disk, catalog).map_err(unusable("open", path))?;
        if cut > 0 {
            tracing::warn!(bytes = cut, "cut off the torn end of the event log");
            add(&self.shared.counters.torn_bytes, cut);
        }
        Ok(events)
    }

    /// The index, to be written by a thread of its own, and what keeps to the limits there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn index(&self) -> Result<(Index, Retention), OpenError> {
        let Archive { folder, disk, catalog, progress } = self.archive();
        let (disks, catalogs) = (Arc::clone(&disk), Arc::clone(&catalog));
        let index = Index::open(folder, disks, catalogs, Arc::clone(&progress))?;
        Ok((index, Retention::new(self.limits, disk, catalog, progress)))
    }

    /// Where questions about records are answered from.
    #[must_use]
    pub fn archive(&self) -> Archive {
        let (disk, catalog) = self.log.source();
        let progress = Arc::clone(&self.shared.index_progress);
        Archive { folder: self.index_folder.clone(), disk, catalog, progress }
    }

    /// Opens a segment of this group unless one is open.
    ///
    /// # Errors
    /// What the file system says.
    pub fn ensure_segment(
        &mut self,
        group: Group,
        now: UnixNanos,
        instant: Instant,
    ) -> io::Result<()> {
        if !self.segments.contains_key(&group) {
            let segment = Segment::create(&self.frames_folder, now, instant)?;
            self.shared.open_segments().insert(group, segment.path().to_owned());
            self.shared.catalog.begin(segment.sealed_path());
            self.segments.insert(group, segment);
        }
        Ok(())
    }

    /// Prepares the packets in `blocks` for the open segment of their group; to be called once
    /// for each batch.
    pub fn stage(
        &mut self,
        group: Group,
        sensor: &Arc<Sensor>,
        interfaces: &[Interface],
        rate: Rate,
        blocks: &mut [u8],
    ) {
        if let Some(segment) = self.segments.get_mut(&group) {
            segment.stage(sensor, interfaces, rate, blocks);
        }
    }

    /// Writes staged packets.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn write(&mut self, group: Group, blocks: &[u8]) -> io::Result<()> {
        self.segments.get_mut(&group).map_or(Ok(()), |segment| segment.write(blocks))
    }

    /// When the first of the open segments is old enough to be sealed, if nothing else seals it
    /// before.
    #[must_use]
    pub fn segment_due(&self) -> Option<Instant> {
        self.segments.values().map(|segment| segment.opened() + self.segment_age).min()
    }

    /// Group of an open segment that is to be sealed: for its size, its age, its number of
    /// interfaces, or because too many are open.
    #[must_use]
    pub fn due_segment(&self, now: Instant) -> Option<Group> {
        let due = self.segments.iter().find(|(_, segment)| {
            segment.length() >= self.segment_bytes
                || segment.opened() + self.segment_age <= now
                || segment.interfaces() >= MOST_INTERFACES
        });
        let oldest = || self.segments.iter().min_by_key(|(_, segment)| segment.opened());
        let due = due.or_else(|| oldest().filter(|_| self.segments.len() > MOST_OPEN));
        due.map(|(group, _)| *group)
    }

    /// Groups of all open segments.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.segments.keys().copied().collect()
    }

    /// Writes the statistics of an open segment and gives it away to be sealed.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn take_segment(&mut self, group: Group, now: UnixNanos) -> io::Result<Option<Segment>> {
        if let Some(segment) = self.segments.get_mut(&group) {
            segment.finish(now)?;
        }
        self.shared.open_segments().remove(&group);
        Ok(self.segments.remove(&group))
    }
}

/// The folder of segments, in that of the store.
pub const FRAMES: &str = "frames";
/// Size from which a segment of the record log is sealed.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Open segments, each of another group. There are one or two where no sensor has a RAW interface. No sensor may have
/// more groups: of those, each batch could seal segments that the one before began.
pub const MOST_OPEN: usize = 64;
/// Interfaces of one segment: readers keep each of them in memory.
const MOST_INTERFACES: usize = 4096;

/// Makes a folder that lasts, unless it is there.
fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
    sync_folder_of(folder)
}

/// Makes the name of a file or folder last.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Takes the lock of the store, which ends with the process.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join("lock");
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).mode(0o640).open(&path);
    let file = opened.map_err(unusable("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: folder.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(OpenError::Unusable { action: "lock", path, source })
        }
    }
}

/// Earlier versions kept the marks in the folder of the store.
fn take_over_marks(store: &Path, records: &Path) -> io::Result<()> {
    let (earlier, now) = (store.join("marks.json"), records.join("marks.json"));
    if earlier.exists() && !now.exists() {
        std::fs::rename(&earlier, &now)?;
    }
    Ok(())
}

/// Takes over what was found in the record log.
fn note_recovery(shared: &Shared, recovery: Recovery) {
    let Recovery { marks, torn_bytes, missing_bytes, .. } = recovery;
    if torn_bytes > 0 {
        tracing::warn!(bytes = torn_bytes, "cut off the torn end of the record log");
        add(&shared.counters.torn_bytes, torn_bytes);
    }
    if missing_bytes > 0 {
        tracing::error!(bytes = missing_bytes, "the record log is shorter than it was");
        add(&shared.record_log.damaged_bytes, missing_bytes);
    }
    for name in marks.sensors() {
        shared.sensor(name).state().restore(name, &marks);
    }
    *shared.marks() = marks;
}

fn note_repair(shared: &Shared, repair: &Repair) {
    match repair {
        Repair::Sealed { path, cut, lost } => {
            tracing::warn!(segment = %path.display(), cut, "sealed a segment of an earlier run");
            if let Some(error) = lost {
                tracing::warn!(%error, cut, "could not keep what was cut off");
            }
            add(&shared.counters.segments_repaired, 1);
            add(&shared.counters.torn_bytes, *cut);
        }
        Repair::Renamed { path } => {
            tracing::warn!(path = %path.display(), "renamed a segment without a whole block");
        }
        Repair::Failed { path, error } => {
            let segment = path.display();
            tracing::error!(%segment, %error, "cannot seal a segment of an earlier run");
            add(&shared.counters.segments_unsealed, 1);
        }
        Repair::Removed { path } => {
            tracing::info!(segment = %path.display(), "removed an empty segment");
        }
    }
}

fn unusable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Unusable { action, path, source }
}
