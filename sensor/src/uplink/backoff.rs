//! How long to wait before dialling again.

use std::time::Duration;

/// Exponential back-off with full jitter: each wait is drawn evenly from zero up to a bound that
/// doubles. Many sensors that lost one collector so come back spread over time.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    random: u64,
}

/// Bound of the first wait.
const FIRST: Duration = Duration::from_millis(250);
/// Bound of every wait.
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that lasted this long proves that the collector is well; a shorter one might be a
/// collector that fails for each sensor that comes.
const LASTED: Duration = Duration::from_secs(10);

impl Backoff {
    /// Sensors need different seeds, or they all come back at once.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { failures: 0, random: seed }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.spread(bound)
    }

    /// A time drawn evenly from zero up to a bound.
    pub fn spread(&mut self, bound: Duration) -> Duration {
        // The upper 32 bits as a fraction of one.
        let fraction = (self.next_random() >> 32) as f64 / (1u64 << 32) as f64;
        bound.mul_f64(fraction)
    }

    /// Says how long the last connection was open.
    pub fn connection_ended(&mut self, after: Duration) {
        if after >= LASTED {
            self.failures = 0;
        }
    }

    /// SplitMix64: one addition and a mix, any seed will do.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_bound_that_doubles_up_to_thirty_seconds() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(seed);
            for bound_ms in [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000] {
                assert!(backoff.next_wait() <= Duration::from_millis(bound_ms), "seed {seed}");
            }
        }
    }

    #[test]
    fn waits_are_spread_over_their_whole_range() {
        let waits: Vec<_> = (0..1000).map(|seed| Backoff::new(seed).next_wait()).collect();
        let mean = waits.iter().sum::<Duration>() / 1000;
        assert!((100..150).contains(&mean.as_millis()), "{mean:?}");
        assert!(waits.iter().any(|wait| wait.as_millis() < 10));
        assert!(waits.iter().any(|wait| wait.as_millis() > 240));
    }

    #[test]
    fn a_fleet_of_a_thousand_is_spread_over_seconds() {
        let spread = Duration::from_secs(3);
        let mut by_second = [0; 3];
        for sensor in 0..1000 {
            // They start at different nanoseconds.
            let first = Backoff::new(1_700_000_000_000_000_000 + sensor * 1_000_003).spread(spread);
            by_second[first.as_secs() as usize] += 1;
        }
        assert!(by_second.iter().all(|count| (280..390).contains(count)), "{by_second:?}");
    }

    #[test]
    fn only_a_connection_that_lasted_resets_the_bound() {
        let mut backoff = Backoff::new(1);
        for _ in 0..10 {
            backoff.next_wait();
        }
        backoff.connection_ended(Duration::from_secs(9));
        assert_eq!(backoff.failures, 10);
        backoff.connection_ended(Duration::from_secs(10));
        assert!(backoff.next_wait() <= FIRST);
    }
}
