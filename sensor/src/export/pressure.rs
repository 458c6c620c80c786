//! How much is exported while the collector is slower than the traffic: less of everything before nothing of something.
//!
//! ```text
//!   batches free   level       of a frame      conversations
//!   half           whole       snaplen         as configured
//!   a quarter      truncated   256 bytes       as configured
//!   an eighth      sampled     256 bytes       one in eight of them
//!   fewer          headers     128 bytes       one in eight of them
//!   none           –           frames are lost: `pool_empty`
//! ```
//!
//! A worker decides when it begins a batch, by what is free in its own pool. It becomes worse at once, and better a step at a
//! time: when three quarters are free and a second has passed. Each batch says what its frames were cut to, and
//! of how many conversations they are one, so that whoever reads can scale.

use std::time::Duration;

use wire::units::UnixNanos;

/// What is exported now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// As configured.
    #[default]
    Whole,
    /// The beginning of each frame.
    Truncated,
    /// The beginning of each frame of fewer conversations.
    Sampled,
    /// Their headers.
    Headers,
}

/// Bytes of a frame that is truncated: headers, and how the payload begins.
const TRUNCATED: u32 = 256;
/// Bytes of a frame of which the headers are wanted: Ethernet, two tags, IPv6, TCP with options.
const HEADERS: u32 = 128;
/// One conversation in so many of those that are wanted.
const ONE_IN: u32 = 8;
/// Time between two steps for the better.
const PATIENCE: Duration = Duration::from_secs(1);

impl Level {
    /// Most bytes of a frame, where `configured` are wanted.
    #[must_use]
    pub fn snaplen(self, configured: u32) -> u32 {
        match self {
            Self::Whole => configured,
            Self::Truncated | Self::Sampled => configured.min(TRUNCATED),
            Self::Headers => configured.min(HEADERS),
        }
    }

    /// One conversation in so many, of those that are wanted.
    #[must_use]
    pub const fn one_in(self) -> u32 {
        match self {
            Self::Whole | Self::Truncated => 1,
            Self::Sampled | Self::Headers => ONE_IN,
        }
    }

    const fn better(self) -> Self {
        match self {
            Self::Headers => Self::Sampled,
            Self::Sampled => Self::Truncated,
            Self::Truncated | Self::Whole => Self::Whole,
        }
    }
}

/// Decides on the level.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    level: Level,
    changed: UnixNanos,
}

impl Pressure {
    /// A batch begins at `now`, while `free` of the pool's `total` are there. Returns its level.
    pub(super) fn at_batch(&mut self, free: usize, total: usize, now: UnixNanos) -> Level {
        let wanted = match free {
            _ if free * 2 >= total => Level::Whole,
            _ if free * 4 >= total => Level::Truncated,
            _ if free * 8 >= total => Level::Sampled,
            _ => Level::Headers,
        };
        // A clock that was set back costs no more than another step's time.
        self.changed = self.changed.min(now);
        let may_improve = free * 4 >= total * 3 && now.since(self.changed) >= PATIENCE;
        if wanted > self.level {
            (self.level, self.changed) = (wanted, now);
        } else if wanted < self.level && may_improve {
            (self.level, self.changed) = (self.level.better(), now);
        }
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn less_is_exported_at_once_and_more_again_step_by_step() {
        let mut pressure = Pressure::default();
        let mut at = |free, time| pressure.at_batch(free, 100, UnixNanos(time));
        assert_eq!(
            [at(100, 0), at(50, 1), at(49, 2)],
            [Level::Whole, Level::Whole, Level::Truncated]
        );
        assert_eq!([at(24, 3), at(12, 4)], [Level::Sampled, Level::Headers]);
        assert_eq!(at(74, 10 * SECOND), Level::Headers, "not enough is free");
        assert_eq!(at(75, 10 * SECOND), Level::Sampled);
        assert_eq!(at(100, 11 * SECOND - 1), Level::Sampled, "too early");
        assert_eq!(at(100, 11 * SECOND), Level::Truncated);
        assert_eq!(at(20, 11 * SECOND), Level::Sampled, "worse at once");
        assert_eq!(at(100, 12 * SECOND), Level::Truncated);
        assert_eq!(at(100, 13 * SECOND), Level::Whole);
    }

    #[test]
    fn a_clock_that_is_set_back_delays_the_return_by_one_step_and_does_no_more() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.at_batch(1, 100, UnixNanos(9000 * SECOND)), Level::Headers);
        assert_eq!(pressure.at_batch(100, 100, UnixNanos(5 * SECOND)), Level::Headers);
        assert_eq!(pressure.at_batch(100, 100, UnixNanos(6 * SECOND)), Level::Sampled);
    }

    #[test]
    fn no_level_asks_for_more_than_is_configured() {
        for level in [Level::Whole, Level::Truncated, Level::Sampled, Level::Headers] {
            assert_eq!(level.snaplen(96), 96);
            assert!(level.snaplen(65_535) <= level.better().snaplen(65_535));
        }
    }
}
