//! The record log: what sensors told, stored once. Everything else that the collector says of records
//! (the event log, the index) is made from it and can be made anew.
//!
//! ```text
//!   records/00000000000000000001.log   a segment, named after its first record
//!   records/00000000000000048213.log   the next one
//!   records/marks.json                 last record of each stream, up to a place in the log
//!
//!   stage ──▶ pending ── write ──▶ segment ── sync ──▶ catalog: readers see it, sensors are told
//! ```
//!
//! A segment is a row of [batches](batch). The header of a batch is the mark that keeps its records from
//! being stored twice: both get to the disk in one write and one sync, or neither does. A segment ends
//! when it is large enough and at the end of a day (UTC), and with the collector: what was there at a
//! start is only read. Readers see what is on the disk, nothing else.
//!
//! ```text
//!   batch      one batch as bytes
//!   disk       the file operations
//!   scan       batch after batch out of one segment
//!   marks      marks, and the file that keeps a copy
//!   recovery   what a start makes of the log that it finds
//!   catalog    which segments there are
//!   reader     follows the log
//! ```

pub mod batch;
pub mod catalog;
pub mod disk;
pub mod marks;
pub mod reader;
mod recovery;
pub mod scan;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use wire::units::UnixNanos;

use batch::{NewBatch, Placed};
use catalog::{Catalog, Day, SegmentInfo};
use disk::{Disk, DiskFile};
use marks::{Checkpoint, CheckpointError, Marks, Position};
pub use recovery::Recovery;

/// What the name of a segment ends with.
pub const SUFFIX: &str = ".log";

/// The log, to be written. There is one writer.
pub struct RecordLog {
    disk: Arc<dyn Disk>,
    catalog: Arc<Catalog>,
    /// Size from which a segment is sealed.
    segment_bytes: u64,
    open: Option<Open>,
    /// Batches that are not written yet.
    pending: Vec<u8>,
    /// When the first of them was staged.
    pending_since: UnixNanos,
    next_number: u64,
}

/// The segment that is written.
struct Open {
    file: Box<dyn DiskFile>,
    /// Number of its first record.
    first: u64,
    stored_at: UnixNanos,
    /// Bytes written, to be overwritten where a write failed.
    written: u64,
    /// Bytes on the disk for certain.
    synced: u64,
    /// Number of the record behind what is written.
    next_number: u64,
}

impl RecordLog {
    /// Opens the log, and cuts off what a crash left torn. The empty `catalog` becomes its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(
        disk: Arc<dyn Disk>,
        catalog: Arc<Catalog>,
        segment_bytes: u64,
    ) -> io::Result<(Self, Recovery)> {
        let checkpoint = Checkpoint::read(&*disk).or_else(|error| match error {
            CheckpointError::Unreadable(source) => Err(source),
            CheckpointError::Damaged(_) | CheckpointError::Unsupported { .. } => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "reading the whole record log instead");
                Ok(Checkpoint::default())
            }
        })?;
        let recovery = recovery::recover(&*disk, checkpoint, &catalog)?;
        let log = Self {
            disk,
            catalog,
            segment_bytes,
            open: None,
            pending: Vec::new(),
            pending_since: UnixNanos(0),
            next_number: recovery.next_number,
        };
        Ok((log, recovery))
    }

    /// What readers of the log need: the disk, and what may be read of it.
    #[must_use]
    pub fn source(&self) -> (Arc<dyn Disk>, Arc<Catalog>) {
        (Arc::clone(&self.disk), Arc::clone(&self.catalog))
    }

    /// Takes a batch. It is stored when [`RecordLog::write`] and [`RecordLog::sync`] have succeeded.
    pub fn stage(&mut self, batch: &NewBatch<'_>, now: UnixNanos) {
        if self.pending.is_empty() {
            self.pending_since = now;
        }
        let synced = self.open.as_ref().map_or(0, |open| open.synced);
        let placed = Placed { number: self.next_number, stored_at: now, synced };
        batch.encode(placed, &mut self.pending);
        self.next_number += u64::from(batch.count);
    }

    /// Bytes that are staged and not written.
    #[must_use]
    pub const fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes what was staged.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn write(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let first = self.catalog.lock().next_number.max(1);
                let file = self.disk.create(&file_name(first))?;
                self.disk.sync_names()?;
                let stored_at = self.pending_since;
                let (written, synced, next_number) = (0, 0, first);
                self.open.insert(Open { file, first, stored_at, written, synced, next_number })
            }
        };
        open.file.write_at(&self.pending, open.written)?;
        open.written += self.pending.len() as u64;
        open.next_number = self.next_number;
        self.pending.clear();
        Ok(())
    }

    /// Brings what was written to the disk: it may be acknowledged then, and readers see it.
    ///
    /// # Errors
    /// What the system says. The log must not be used any more then: see [`DiskFile::sync`].
    pub fn sync(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.synced < open.written {
            open.file.sync()?;
            open.synced = open.written;
            let Open { first, stored_at, written: length, next_number, .. } = *open;
            self.catalog.grow(first, SegmentInfo { length, stored_at, next_number });
        }
        Ok(())
    }

    /// Whether the open segment is to be sealed: for its size, or because its day is over.
    #[must_use]
    pub fn is_due(&self, now: UnixNanos) -> bool {
        self.open.as_ref().is_some_and(|open| {
            open.written >= self.segment_bytes || Day::of(open.stored_at) != Day::of(now)
        })
    }

    /// Seals the open segment, all of which must be synced: what follows goes into a new one.
    pub fn seal(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.synced == open.written) {
            self.open = None;
        }
    }

    /// Keeps a copy of the marks, which must speak of what is synced and of nothing else.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn write_checkpoint(&self, marks: &Marks) -> io::Result<()> {
        let content = self.catalog.lock();
        let last = content.segments.last_key_value();
        let number = content.next_number;
        let position = last.map_or(Position::default(), |(segment, info)| Position {
            segment: *segment,
            offset: info.length,
            number,
        });
        drop(content);
        let position = Position { number, ..position };
        Checkpoint { position, marks: marks.clone() }.write(&*self.disk)?;
        self.catalog.lock().checkpointed = number;
        Ok(())
    }
}

/// Name of the segment with this first record.
#[must_use]
pub fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// The first record of the segment with this name; `None` for other files.
fn first_number(name: &str) -> Option<u64> {
    let first = name.strip_suffix(SUFFIX)?.parse().ok()?;
    (file_name(first) == name).then_some(first)
}

/// The whole content of a small file.
fn read_all(disk: &dyn Disk, name: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let mut content = vec![0; usize::try_from(file.length()?).unwrap_or(0)];
    let mut filled = 0;
    while filled < content.len() {
        match file.read_at(&mut content[filled..], filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    content.truncate(filled);
    Ok(content)
}

/// Replaces a file as a whole; when this returns, the new content is on the disk.
fn replace(disk: &dyn Disk, hidden: &str, name: &str, content: &[u8]) -> io::Result<()> {
    let file = disk.create(hidden)?;
    file.set_len(0)?;
    file.write_at(content, 0)?;
    file.sync()?;
    disk.rename(hidden, name)?;
    disk.sync_names()
}
