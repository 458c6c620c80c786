//! Newtypes for numbers that would otherwise be swapped in silence.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970-01-01 00:00 UTC. Good until the year 2554.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// The time `later` after this one; stops at the end of the range.
    #[must_use]
    pub const fn plus(self, later: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(later)))
    }

    /// The time `earlier` before this one; stops at 1970.
    #[must_use]
    pub const fn minus(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(nanoseconds(earlier)))
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// How long this is after `start`; zero if it is before.
    #[must_use]
    pub const fn since(self, start: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(start.0))
    }
}

/// A duration in nanoseconds; durations above 584 years become 584 years.
const fn nanoseconds(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

/// Bytes of a frame that were captured (at most its [`WireLen`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapturedLen(pub u32);

/// Bytes that a frame had on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireLen(pub u32);

/// Position in a stream of one sensor run, or of one spool: starts at 1, grows, never repeats.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_arithmetic_stops_at_the_ends_of_the_range() {
        assert_eq!(UnixNanos(5).minus(Duration::from_secs(1)), UnixNanos(0));
        assert_eq!(UnixNanos(u64::MAX).plus(Duration::from_secs(1)), UnixNanos(u64::MAX));
        assert_eq!(UnixNanos(1).since(UnixNanos(7)), Duration::ZERO);
        assert_eq!(UnixNanos(7).since(UnixNanos(1)), Duration::from_nanos(6));
    }
}
