//! What the spool shows: written by the uplink's thread and the syncer, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use wire::units::UnixNanos;

/// Numbers and problems of the spool. All zero where there is none.
#[derive(Debug, Default)]
pub struct SpoolStatus {
    /// Bytes of the segments, by lane.
    pub disk_bytes: [AtomicU64; 2],
    /// Segments, by lane.
    pub segments: [AtomicU64; 2],
    /// Records that are neither acknowledged nor lost, by lane, on the disk or in memory.
    pub records: [AtomicU64; 2],
    /// When the oldest of them was taken, by lane, in nanoseconds since 1970; 0 if there is none.
    pub oldest: [AtomicU64; 2],
    /// Bytes that wait in memory.
    pub waiting_bytes: AtomicU64,
    /// 1 while what an earlier run left is being read.
    pub is_reading: AtomicU64,
    /// Records of an earlier run that were found and were to be delivered.
    pub recovered: AtomicU64,
    /// Records of an earlier run that were found damaged.
    pub damaged: AtomicU64,
    /// Bytes at the ends of segments that a crash had left unfinished.
    pub torn_bytes: AtomicU64,
    /// Segments that were foreign or damaged, and were set aside.
    pub set_aside: AtomicU64,
    /// Times that the wall clock was set.
    pub clock_steps: AtomicU64,
    /// 1 while records of an earlier run are too old by a wall clock that is not believed yet.
    pub is_age_doubted: AtomicU64,
    /// Failed attempts to write.
    pub write_errors: AtomicU64,
    /// Failed attempts to bring data to the disk.
    pub sync_errors: AtomicU64,
    /// Times that data was brought to the disk.
    pub syncs: AtomicU64,
    /// How long the last one took, in nanoseconds.
    pub last_sync_ns: AtomicU64,
    /// Why records cannot be written.
    write_problem: Mutex<Option<String>>,
    /// Why the last attempt to bring data to the disk failed.
    sync_problem: Mutex<Option<String>>,
}

impl SpoolStatus {
    /// Records that an earlier run left: this one accounts for them too.
    #[must_use]
    pub fn inherited(&self) -> u64 {
        read(&self.recovered) + read(&self.damaged)
    }

    /// What is wrong, in words; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        [&self.write_problem, &self.sync_problem]
            .into_iter()
            .filter_map(|problem| problem.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect()
    }

    /// Age of the oldest record of a lane; zero if there is none.
    #[must_use]
    pub fn oldest_age(&self, lane: usize, now: UnixNanos) -> Duration {
        match self.oldest.get(lane).map_or(0, read) {
            0 => Duration::ZERO,
            oldest => now.since(UnixNanos(oldest)),
        }
    }

    pub(super) fn set_write_problem(&self, problem: Option<String>) {
        *self.write_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    pub(super) fn set_sync_problem(&self, problem: Option<String>) {
        *self.sync_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// The value of a counter.
#[must_use]
pub fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Counts more.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    // Nothing is derived from the order in which counters are seen to move.
    counter.fetch_add(more, Ordering::Relaxed);
}

pub(super) fn set(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}
