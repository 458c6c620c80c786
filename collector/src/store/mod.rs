//! The store: frames in segments, events in a log, marks of what is stored.
//!
//! ```text
//!   PATH/lock                     held while a collector runs
//!   PATH/marks.json               last record and frame batch of each sensor
//!   PATH/events/eve.json          events, JSON lines
//!   PATH/frames/TIME.pcapng       sealed segments
//!   PATH/frames/TIME.pcapng.torn  what a repair cut off from one
//!   PATH/frames/.TIME.pcapng.part open segments, one for each group
//!   PATH/frames/expired           up to when segments were deleted, see `catalog`
//! ```
//!
//! Nothing here waits for anything but the disk, and nothing panics when it fails: a failed call can
//! be made again, but for a failed fsync of the event log. The one caller is [`crate::committer`].

pub mod blocks;
pub mod catalog;
pub mod events;
pub mod index;
pub mod log;
pub mod marks;
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

use crate::config::StoreConfig;
use crate::status::{Sensor, Shared, add};
use events::EventLog;
use marks::{Marks, MarksFile};
use segment::{Group, Repair, Segment};

/// The open store.
pub struct Store {
    events: EventLog,
    marks: MarksFile,
    /// Open segments. Bounded: beyond `MOST_OPEN`, the oldest one is due to be sealed.
    segments: BTreeMap<Group, Segment>,
    frames_folder: PathBuf,
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
        for folder in [&config.path, &config.path.join("events"), &frames_folder] {
            make(folder).map_err(unusable("create", folder))?;
        }
        let lock = lock(&config.path)?;
        let (events, torn) =
            EventLog::open(&shared.events_path).map_err(unusable("open", &shared.events_path))?;
        if torn > 0 {
            tracing::warn!(bytes = torn, "cut off the torn last line of the event log");
            add(&shared.counters.torn_bytes, torn);
        }
        let repairs =
            segment::repair_all(&frames_folder).map_err(unusable("repair", &frames_folder))?;
        repairs.iter().for_each(|repair| note_repair(&shared, repair));
        shared.catalog.load(&frames_folder).map_err(unusable("read", &frames_folder))?;
        Ok(Self {
            events,
            marks: MarksFile::new(&config.path),
            segments: BTreeMap::new(),
            frames_folder,
            segment_bytes: config.segment_bytes,
            segment_age: config.segment_age,
            shared,
            _lock: lock,
        })
    }

    /// What an earlier run stored last of each sensor. Damaged marks are said and forgotten: then
    /// sensors send again what they still have, and it is stored twice.
    #[must_use]
    pub fn read_marks(&self) -> Marks {
        self.marks.read().unwrap_or_else(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(%error, cause, "starting without marks: records may be stored twice");
            Marks::new()
        })
    }

    /// Appends event lines.
    ///
    /// # Errors
    /// What the file system says; nothing was appended.
    pub fn append_events(&mut self, lines: &[u8]) -> io::Result<()> {
        self.events.append(lines)
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
        blocks: &mut [u8],
    ) {
        if let Some(segment) = self.segments.get_mut(&group) {
            segment.stage(sensor, interfaces, blocks);
        }
    }

    /// Writes staged packets.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn write(&mut self, group: Group, blocks: &[u8]) -> io::Result<()> {
        self.segments.get_mut(&group).map_or(Ok(()), |segment| segment.write(blocks))
    }

    /// Brings the events to the disk.
    ///
    /// # Errors
    /// What the file system says. What was appended since the last success may be lost then, and a
    /// later call can succeed without it: see [`EventLog::sync`].
    pub fn sync_events(&mut self) -> io::Result<()> {
        self.events.sync()
    }

    /// Makes a new event log if it was renamed or removed. [`Store::sync_events`] must come before.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn reopen_events(&mut self) -> io::Result<()> {
        self.events.reopen_if_moved()
    }

    /// Brings marks to the disk. The events that they speak of must be there already.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn write_marks(&self, marks: &Marks) -> io::Result<()> {
        self.marks.write(marks)
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
/// Open segments, each of another group. There are one or two where no sensor has a RAW interface.
const MOST_OPEN: usize = 64;
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
        Repair::Removed { path } => {
            tracing::info!(segment = %path.display(), "removed an empty segment");
        }
    }
}

fn unusable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Unusable { action, path, source }
}
