//! Removes the oldest records, a segment at a time, so that the record log and its index keep to their
//! limits. The newest segment always stays.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wire::units::UnixNanos;

use super::Progress;
use crate::store::log::catalog::{Catalog, SegmentInfo};
use crate::store::log::disk::Disk;
use crate::store::log::file_name;

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordLimits {
    /// Bytes of record log and index; 0: any number.
    pub bytes: u64,
    /// Time since they were stored; zero: for ever.
    pub age: Duration,
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Removed {
    /// Segments.
    pub segments: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Records in them that were not in the index yet: there was no more room.
    pub unindexed: AtomicU64,
}

/// Keeps to the limits.
pub struct Retention {
    limits: RecordLimits,
    disk: Arc<dyn Disk>,
    catalog: Arc<Catalog>,
    progress: Arc<Progress>,
}

impl Retention {
    /// Retention of this log and index.
    #[must_use]
    pub const fn new(
        limits: RecordLimits,
        disk: Arc<dyn Disk>,
        catalog: Arc<Catalog>,
        progress: Arc<Progress>,
    ) -> Self {
        Self { limits, disk, catalog, progress }
    }

    /// Removes the oldest segment, if a limit asks for it. For its age, it goes when it is in the index
    /// and in the event log, which has all records in front of `written`; for want of room, it goes.
    ///
    /// # Errors
    /// What the system says.
    pub fn turn(&self, now: UnixNanos, written: u64, removed: &Removed) -> io::Result<bool> {
        let content = self.catalog.lock();
        let mut segments = content.segments.iter();
        let (Some((&segment, &info)), Some((_, following))) = (segments.next(), segments.next())
        else {
            return Ok(false);
        };
        // Its marks would be forgotten.
        let is_needed = info.next_number > content.checkpointed;
        let last_stored = following.stored_at;
        drop(content);
        if is_needed {
            return Ok(false);
        }
        let is_indexed = self.progress.has(info.day(), info.next_number);
        let is_read = is_indexed && written >= info.next_number;
        let RecordLimits { age, .. } = self.limits;
        let is_old = !age.is_zero() && now.since(last_stored) > age;
        let is_due = self.is_too_large(self.catalog.bytes()) || (is_old && is_read);
        if is_due {
            self.remove(segment, info, removed)?;
        }
        Ok(is_due)
    }

    fn remove(&self, segment: u64, info: SegmentInfo, removed: &Removed) -> io::Result<()> {
        let unindexed = self.progress.missing(info.day(), segment, info.next_number);
        let records = info.next_number.saturating_sub(segment);
        // While it cannot be deleted, it is there, and is tried again.
        match self.disk.remove(&file_name(segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.disk.sync_names()?,
        }
        self.catalog.lock().segments.remove(&segment);
        removed.segments.fetch_add(1, Ordering::Relaxed);
        removed.records.fetch_add(records, Ordering::Relaxed);
        removed.unindexed.fetch_add(unindexed, Ordering::Relaxed);
        if unindexed > 0 {
            tracing::warn!(segment, records, unindexed, "removed records that were not indexed");
        } else {
            tracing::info!(segment, records, "removed the oldest records");
        }
        Ok(())
    }

    /// The index goes by days, so that removing a segment makes it no smaller: it does not count.
    const fn is_too_large(&self, bytes: u64) -> bool {
        let RecordLimits { bytes: most, .. } = self.limits;
        most > 0 && bytes > most
    }
}
