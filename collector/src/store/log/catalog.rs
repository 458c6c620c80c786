//! Which segments there are and how much of each is on the disk: what readers of the log may read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wire::units::UnixNanos;

/// Nanoseconds of a day.
const DAY: u64 = 24 * 3600 * 1_000_000_000;

/// A day in UTC, counted from 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

impl Day {
    /// The day of this time.
    #[must_use]
    pub const fn of(time: UnixNanos) -> Self {
        // u64::MAX nanoseconds are 584 years.
        Self((time.0 / DAY) as u32)
    }

    /// When it begins.
    #[must_use]
    pub const fn start(self) -> UnixNanos {
        UnixNanos(self.0 as u64 * DAY)
    }
}

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Bytes of it that are on the disk: as far as it may be read.
    pub length: u64,
    /// When its first batch was stored.
    pub stored_at: UnixNanos,
    /// Number of the record behind its last one.
    pub next_number: u64,
}

impl SegmentInfo {
    /// The day that it belongs to: that of its first batch. The last ones may be some milliseconds past
    /// the end of the day.
    #[must_use]
    pub const fn day(&self) -> Day {
        Day::of(self.stored_at)
    }
}

/// What all who read the log share with the one who writes it.
#[derive(Debug, Default)]
pub struct Catalog {
    content: Mutex<Content>,
    has_grown: Condvar,
    /// Bytes of the log that are no batches.
    pub damaged_bytes: AtomicU64,
    /// Records that were in them, as far as the numbers of the others tell.
    pub damaged_records: AtomicU64,
}

/// See [`Catalog`].
#[derive(Debug, Default)]
pub struct Content {
    /// By number of the first record.
    pub segments: BTreeMap<u64, SegmentInfo>,
    /// Number of the next record that is stored.
    pub next_number: u64,
    /// Records in front of this number have their marks in a copy that is on the disk.
    pub checkpointed: u64,
    /// Nothing follows.
    pub is_closed: bool,
    /// Where damages begin that were counted: segment and place.
    damages: BTreeSet<(u64, u64)>,
}

impl Catalog {
    /// For reading and changing.
    pub fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More is on the disk.
    pub fn grow(&self, segment: u64, info: SegmentInfo) {
        let mut content = self.lock();
        content.segments.insert(segment, info);
        content.next_number = info.next_number;
        drop(content);
        self.has_grown.notify_all();
    }

    /// Nothing follows: readers end when they have read it all.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.has_grown.notify_all();
    }

    /// Waits until there may be records from `number` on, nothing follows, or time is up.
    pub fn wait_for(&self, number: u64, patience: Duration) {
        let is_idle = |content: &mut Content| content.next_number <= number && !content.is_closed;
        drop(self.has_grown.wait_timeout_while(self.lock(), patience, is_idle));
    }

    /// Waits until nothing follows, or time is up.
    pub fn wait_for_end(&self, patience: Duration) {
        let is_open = |content: &mut Content| !content.is_closed;
        drop(self.has_grown.wait_timeout_while(self.lock(), patience, is_open));
    }

    /// Counts bytes that are no batch, once. True if they were not known.
    pub fn note_damage(&self, segment: u64, at: u64, bytes: u64) -> bool {
        let is_new = self.lock().damages.insert((segment, at));
        if is_new {
            self.damaged_bytes.fetch_add(bytes, Ordering::Relaxed);
            tracing::error!(segment, at, bytes, "the record log is damaged; goes on behind it");
        }
        is_new
    }

    /// Counts records that were in damaged bytes.
    pub fn note_lost(&self, records: u64) {
        self.damaged_records.fetch_add(records, Ordering::Relaxed);
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().segments.values().map(|info| info.length).sum()
    }

    /// Records in the log from `number` on.
    #[must_use]
    pub fn behind(&self, number: u64) -> u64 {
        self.lock().next_number.saturating_sub(number)
    }
}
