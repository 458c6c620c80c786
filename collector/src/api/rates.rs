//! Rates over the last seconds, from samples of the totals.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::status::{Sensor, Stored};

/// Time between samples.
pub const STEP: Duration = Duration::from_secs(1);
/// Samples kept: rates are over the last five seconds.
const KEPT: usize = 6;

/// Samples of every sensor's totals.
#[derive(Debug, Default)]
pub struct Rates {
    samples: VecDeque<(Instant, BTreeMap<usize, Stored>)>,
}

/// What a sensor stored per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Frames per second.
    pub frames: f64,
    /// Captured bytes per second.
    pub bytes: f64,
    /// Records per second.
    pub records: f64,
}

impl Rates {
    /// Takes a sample.
    pub fn sample(&mut self, sensors: &[Arc<Sensor>], now: Instant) {
        let totals = sensors.iter().map(|sensor| (sensor.number(), sensor.state().stored));
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back((now, totals.collect()));
    }

    /// The rate of one sensor; zero before there are two samples.
    #[must_use]
    pub fn of(&self, sensor: &Sensor) -> Rate {
        let (Some((start, first)), Some((end, last))) = (self.samples.front(), self.samples.back())
        else {
            return Rate::default();
        };
        let seconds = end.duration_since(*start).as_secs_f64();
        let number = sensor.number();
        let Some(last) = last.get(&number).filter(|_| seconds > 0.0) else {
            return Rate::default();
        };
        // A sensor that was not there at first had stored nothing.
        let first = first.get(&number).copied().unwrap_or_default();
        let per_second = |first: u64, last: u64| last.saturating_sub(first) as f64 / seconds;
        Rate {
            frames: per_second(first.frames, last.frames),
            bytes: per_second(first.frame_bytes, last.frame_bytes),
            records: per_second(first.records, last.records),
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::units::UnixNanos;

    use super::*;
    use crate::status::Shared;

    #[test]
    fn rates_are_over_the_last_five_seconds() {
        let shared = Shared::new("c".into(), UnixNanos(0), "/".into());
        let sensor = shared.sensor("a");
        let (mut rates, start) = (Rates::default(), Instant::now());
        for second in 0..=20_u32 {
            sensor.state().stored.frames = u64::from(second) * if second <= 10 { 0 } else { 10 };
            rates.sample(&shared.sensors(), start + STEP * second);
        }
        assert_eq!(rates.of(&sensor), Rate { frames: 10.0, bytes: 0.0, records: 0.0 });
    }

    #[test]
    fn one_sample_gives_no_rate() {
        let shared = Shared::new("c".into(), UnixNanos(0), "/".into());
        let sensor = shared.sensor("a");
        let mut rates = Rates::default();
        assert_eq!(rates.of(&sensor), Rate::default());
        rates.sample(&shared.sensors(), Instant::now());
        assert_eq!(rates.of(&sensor), Rate::default());
    }
}
