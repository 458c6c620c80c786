//! How late a worker sees frames, and how long it keeps blocks: distributions, summed over the run.
//!
//! ```text
//!   kernel stamps the frame ──latency──▶ block granted ──hold──▶ block given back
//! ```
//!
//! A worker keeps its own distributions and hands them over four times a second, unless somebody is
//! just reading: then it keeps them until the next time. It never waits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::metrics::{Families, Source};

/// Latency of frames and hold time of blocks. Unit: microseconds, to two digits, 60 s at most.
#[derive(Clone, Debug)]
struct Distributions {
    latency: Histogram<u64>,
    hold: Histogram<u64>,
}

const MOST_MICROS: u64 = 60_000_000;
const DIGITS: u8 = 2;

impl Distributions {
    fn new() -> Self {
        Self { latency: empty(), hold: empty() }
    }

    fn add(&mut self, other: &Self) {
        let added = self.latency.add(&other.latency).and_then(|()| self.hold.add(&other.hold));
        added.expect("all have the same bounds");
    }

    fn reset(&mut self) {
        self.latency.reset();
        self.hold.reset();
    }
}

/// A worker's end: takes measurements, allocates and waits for nothing.
#[derive(Debug)]
pub struct Stopwatch {
    own: Distributions,
    shared: Arc<Mutex<Distributions>>,
}

impl Stopwatch {
    /// Frames that were stamped so long before their block was granted.
    #[inline]
    pub fn frames(&mut self, latency: Duration, frames: u64) {
        self.own.latency.saturating_record_n(micros(latency), frames);
    }

    /// A block that was in the worker's hands for so long.
    #[inline]
    pub fn block(&mut self, hold: Duration) {
        self.own.hold.saturating_record(micros(hold));
    }

    /// Hands over what was measured since the last time.
    pub fn hand_over(&mut self) {
        // Readers hold the lock while they copy; what finds it taken is handed over at the next tick.
        let mut shared = match self.shared.try_lock() {
            Ok(shared) => shared,
            // A worker that panicked while it added left whole histograms behind.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        shared.add(&self.own);
        self.own.reset();
    }
}

/// A distribution of times. Unit: microseconds.
pub(crate) fn empty() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, MOST_MICROS, DIGITS);
    made.expect("the bounds are constants that the histogram takes")
}

/// As a distribution takes it.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(MOST_MICROS).clamp(1, MOST_MICROS)
}

/// The distributions of all workers.
#[derive(Debug)]
pub struct Timing {
    workers: Vec<Arc<Mutex<Distributions>>>,
}

/// Quantiles of the latency of all frames. Unit: microseconds; 0 before the first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of the frames were seen within this.
    pub p50: u64,
    /// All but one in a hundred.
    pub p99: u64,
    /// The latest.
    pub max: u64,
}

/// Upper bounds of the buckets that a scrape shows. Unit: microseconds.
const BUCKETS: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000,
];

impl Timing {
    /// Empty distributions for so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let empty = || Arc::new(Mutex::new(Distributions::new()));
        Self { workers: (0..workers).map(|_| empty()).collect() }
    }

    /// The end of one worker.
    ///
    /// # Panics
    /// There is no such worker.
    #[must_use]
    pub fn stopwatch(&self, worker: usize) -> Stopwatch {
        Stopwatch { own: Distributions::new(), shared: Arc::clone(&self.workers[worker]) }
    }

    /// Quantiles of the latency of all frames so far.
    #[must_use]
    pub fn latency(&self) -> Latency {
        let mut all = Distributions::new();
        (0..self.workers.len()).for_each(|worker| all.add(&self.read(worker)));
        let Distributions { latency, .. } = all;
        Latency {
            p50: latency.value_at_quantile(0.5),
            p99: latency.value_at_quantile(0.99),
            max: latency.max(),
        }
    }

    fn read(&self, worker: usize) -> Distributions {
        // A worker that panicked while it added left whole histograms behind.
        self.workers[worker].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rows(&self, of: fn(&Distributions) -> &Histogram<u64>) -> Vec<Row> {
        let row = |worker: usize| {
            let read = self.read(worker);
            let histogram = of(&read);
            Row {
                worker,
                sum_seconds: sum_seconds(histogram),
                count: histogram.len(),
                buckets: buckets(histogram, &BUCKETS),
            }
        };
        (0..self.workers.len()).map(row).collect()
    }
}

/// What a scrape shows of one worker.
struct Row {
    worker: usize,
    sum_seconds: f64,
    count: u64,
    /// Upper bounds in seconds, and how many lie in each bucket.
    buckets: Vec<(f64, u64)>,
}

pub(crate) fn sum_seconds(histogram: &Histogram<u64>) -> f64 {
    histogram.mean() * histogram.len() as f64 / 1e6
}

/// Upper bounds in seconds, and how many lie in each bucket; `bounds` are microseconds.
pub(crate) fn buckets(histogram: &Histogram<u64>, bounds: &[u64]) -> Vec<(f64, u64)> {
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(bounds.len() + 1);
    for &bound in bounds {
        let up_to = histogram.count_between(0, bound).max(below);
        buckets.push((bound as f64 / 1e6, up_to - below));
        below = up_to;
    }
    buckets.push((f64::INFINITY, histogram.len().saturating_sub(below)));
    buckets
}

impl Source for Timing {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let shown = |rows: Vec<Row>| {
            rows.into_iter().map(|Row { worker, sum_seconds, count, buckets }| {
                (vec![("worker", worker.to_string())], sum_seconds, count, buckets)
            })
        };
        families.histogram(
            "ringwatch_capture_latency_seconds",
            "Time from the kernel's stamp on a frame until its block was granted to the worker",
            shown(self.rows(|all| &all.latency)),
        )?;
        families.histogram(
            "ringwatch_block_hold_seconds",
            "Time for which a worker kept a block",
            shown(self.rows(|all| &all.hold)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::metrics;

    #[test]
    fn quantiles_are_those_of_all_workers_together() {
        let timing = Timing::new(2);
        let (mut one, mut other) = (timing.stopwatch(0), timing.stopwatch(1));
        one.frames(Duration::from_micros(100), 98);
        other.frames(Duration::from_micros(9_000), 2);
        assert_eq!(timing.latency(), Latency { p50: 0, p99: 0, max: 0 }, "nothing handed over");
        one.hand_over();
        other.hand_over();
        one.hand_over();
        let Latency { p50, p99, max } = timing.latency();
        assert!((99..=101).contains(&p50), "{p50}");
        assert!((8_900..=9_100).contains(&p99) && max >= p99, "{p99} {max}");
    }

    #[test]
    fn what_is_measured_while_somebody_reads_is_handed_over_later() {
        let timing = Timing::new(1);
        let mut stopwatch = timing.stopwatch(0);
        stopwatch.frames(Duration::from_micros(100), 5);
        let reader = timing.workers[0].lock().unwrap();
        stopwatch.hand_over();
        drop(reader);
        stopwatch.hand_over();
        assert_eq!(timing.read(0).latency.len(), 5);
    }

    #[test]
    fn a_scrape_shows_buckets_in_seconds() {
        let timing = Arc::new(Timing::new(1));
        let mut stopwatch = timing.stopwatch(0);
        stopwatch.frames(Duration::from_micros(300), 4);
        stopwatch.frames(Duration::from_secs(90), 1);
        stopwatch.block(Duration::from_micros(700));
        stopwatch.hand_over();
        let text = metrics::render(&metrics::registry(
            Arc::new(Counters::new(Vec::new(), 1)),
            vec![timing as _],
        ));
        let latency = "ringwatch_capture_latency_seconds";
        for (metric, line) in [
            (latency, "_bucket{le=\"0.00025\",worker=\"0\"} 0"),
            (latency, "_bucket{le=\"0.0005\",worker=\"0\"} 4"),
            (latency, "_bucket{le=\"10.0\",worker=\"0\"} 4"),
            (latency, "_bucket{le=\"+Inf\",worker=\"0\"} 5"),
            (latency, "_count{worker=\"0\"} 5"),
            ("ringwatch_block_hold_seconds", "_bucket{le=\"0.001\",worker=\"0\"} 1"),
        ] {
            let line = format!("{metric}{line}");
            assert!(text.lines().any(|has| has == line), "no {line} in\n{text}");
        }
    }
}
