//! How much one sensor may bring in a second: whoever brings more waits, and the others do not
//! notice.

use std::time::{Duration, Instant};

use crate::config::Rates;

/// What is left of a sensor's share. It outlives the sensor's connections: to come again is no way
/// to get more.
#[derive(Debug)]
pub struct Allowance {
    bytes: Bucket,
    records: Bucket,
    is_paused: bool,
}

impl Allowance {
    /// A full share.
    #[must_use]
    pub const fn new(rates: Rates, now: Instant) -> Self {
        Self {
            bytes: Bucket::new(rates.bytes, now),
            records: Bucket::new(rates.records, now),
            is_paused: false,
        }
    }

    /// Takes what came off the share. What is taken may be more than is left, by what one read of a
    /// socket can bring; the sensor then waits until that is made up for.
    pub fn take(&mut self, bytes: u64, records: u64) {
        self.bytes.take(bytes);
        self.records.take(records);
    }

    /// Whether the sensor may be read now, and if not, whether it could before.
    pub fn ask(&mut self, now: Instant) -> Answer {
        self.bytes.fill(now);
        self.records.fill(now);
        let is_open = self.bytes.level > 0 && self.records.level > 0;
        let was_paused = std::mem::replace(&mut self.is_paused, !is_open);
        match (is_open, was_paused) {
            (true, _) => Answer::Go,
            (false, false) => Answer::Pause,
            (false, true) => Answer::Wait,
        }
    }
}

/// What [`Allowance::ask`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There is something left.
    Go,
    /// There is nothing left, since just now.
    Pause,
    /// There is still nothing left.
    Wait,
}

/// Fills at its rate, and holds what comes in one second.
#[derive(Debug)]
struct Bucket {
    /// In a second.
    rate: u64,
    level: i64,
    filled: Instant,
}

impl Bucket {
    const fn new(rate: u64, now: Instant) -> Self {
        Self { rate, level: clamped(rate), filled: now }
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).min(Duration::from_secs(3600));
        let more = u128::from(self.rate) * elapsed.as_micros() / 1_000_000;
        // Time that gave nothing yet goes on to count.
        if let Some(more) = i64::try_from(more).ok().filter(|more| *more > 0) {
            self.level = self.level.saturating_add(more).min(clamped(self.rate));
            self.filled = now;
        }
    }

    const fn take(&mut self, amount: u64) {
        self.level = self.level.saturating_sub(clamped(amount));
    }
}

const fn clamped(amount: u64) -> i64 {
    if amount > i64::MAX as u64 { i64::MAX } else { amount as i64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that get in within ten seconds, asked for in pieces every `step`.
    fn bytes_in_ten_seconds(piece: u64, step: Duration) -> u64 {
        let start = Instant::now();
        let mut allowance = Allowance::new(Rates { bytes: 1_000_000, records: 1000 }, start);
        let (mut now, mut total) = (start, 0);
        while now < start + Duration::from_secs(10) {
            while allowance.ask(now) == Answer::Go {
                allowance.take(piece, 0);
                total += piece;
            }
            now += step;
        }
        total
    }

    #[test]
    fn a_sensor_gets_its_rate_and_one_second_more_at_once() {
        for (piece, step) in [(1000, 10), (128 << 10, 10), (1000, 400), (7, 1)] {
            let total = bytes_in_ten_seconds(piece, Duration::from_millis(step));
            assert!((10_400_000..=11_140_000).contains(&total), "{piece}, {step}: {total}");
        }
    }

    #[test]
    fn records_count_as_well_as_bytes() {
        let start = Instant::now();
        let mut allowance = Allowance::new(Rates { bytes: 1_000_000, records: 10 }, start);
        allowance.take(100, 11);
        assert_eq!(allowance.ask(start), Answer::Pause);
        assert_eq!(allowance.ask(start + Duration::from_millis(50)), Answer::Wait);
        assert_eq!(allowance.ask(start + Duration::from_millis(250)), Answer::Go);
    }

    #[test]
    fn a_rate_of_one_in_a_second_fills_however_often_it_is_asked() {
        let start = Instant::now();
        let mut allowance = Allowance::new(Rates { bytes: 1, records: 1 }, start);
        allowance.take(1, 0);
        let mut asks = (1..=2000).map(|ms| allowance.ask(start + Duration::from_millis(ms)));
        assert!(asks.any(|answer| answer == Answer::Go));
    }
}
