//! Whether the threads that work for themselves still do: each says so at least every few seconds, and
//! one that does not is held up, mostly by a disk that does not answer. One that ended is another
//! matter: that ends the collector.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A thread that says that it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// Writes what sensors send.
    Committer,
    /// Seals and deletes segments of frames.
    Sealer,
    /// Writes the event log.
    Events,
    /// Writes the index of events, and deletes records.
    Index,
}

/// All of them, with what they do and how long they may be silent. A segment of some GiB takes its time to get to
/// the disk.
const WORKERS: [(Worker, &str, u64); 4] = [
    (Worker::Committer, "storing what sensors send", 30),
    (Worker::Sealer, "sealing and deleting segments of frames", 600),
    (Worker::Events, "writing the event log", 120),
    (Worker::Index, "indexing events", 120),
];

/// When each of them said so last.
#[derive(Debug)]
pub struct Beats {
    begun: Instant,
    /// Seconds since `begun`, and one; 0 before it runs.
    last: [AtomicU64; WORKERS.len()],
}

impl Default for Beats {
    fn default() -> Self {
        Self { begun: Instant::now(), last: Default::default() }
    }
}

impl Beats {
    /// It works.
    pub fn beat(&self, worker: Worker) {
        self.last[worker as usize].store(self.now() + 1, Ordering::Relaxed);
    }

    /// Time by a clock that nobody sets. Unit: seconds since the collector was started.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    /// Those that are held up at this time, in words.
    pub fn problems(&self, now: u64) -> impl Iterator<Item = String> {
        WORKERS.into_iter().filter_map(move |(worker, what, patience)| {
            let last = self.last[worker as usize].load(Ordering::Relaxed).checked_sub(1)?;
            let silent = now.saturating_sub(last);
            (silent >= patience).then(|| {
                let silent = humantime::format_duration(Duration::from_secs(silent));
                format!("{what} stands still for {silent}: does the disk answer?")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_say_that_it_works_is_held_up_and_who_does_not_run_is_not() {
        let beats = Beats::default();
        let at = |seconds| beats.problems(seconds).collect::<Vec<_>>();
        assert_eq!(at(1_000_000), [""; 0]);
        beats.beat(Worker::Committer);
        assert_eq!(at(29), [""; 0]);
        let said = "storing what sensors send stands still for 30s: does the disk answer?";
        assert_eq!(at(30), [said]);
        beats.beat(Worker::Index);
        assert_eq!(at(120).len(), 2);
        let said = "indexing events stands still for 2m: does the disk answer?";
        assert_eq!(at(120)[1], said);
    }

    #[test]
    fn each_worker_has_its_own_place() {
        for (place, (worker, ..)) in WORKERS.into_iter().enumerate() {
            assert_eq!(worker as usize, place);
        }
    }
}
