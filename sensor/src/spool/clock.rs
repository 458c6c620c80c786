//! Whether the wall clock can be believed.
//!
//! It says how old the records of an earlier run are, and nothing else does. But a machine may start with
//! a clock that is years off until somebody sets it, and one wrong clock must not give up all that waits.
//! So age counts only once the clock has gone as the other one does, which is never set, for [`STEADY`].

use std::time::{Duration, Instant};

use wire::units::UnixNanos;

use crate::uplink::session::Now;

/// So long the wall clock must not have been set before it is believed: what sets clocks at a start has
/// done so by then.
pub const STEADY: Duration = Duration::from_secs(600);
/// Both clocks may differ by so much between two looks. More is a clock that was set, or a machine that
/// slept.
const TOLERANCE: Duration = Duration::from_secs(10);
/// No record was taken before: 2023-11-14. A clock that says so has never been set.
pub const EARLIEST: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// What both clocks said at the last look.
    seen: Now,
    steady_since: Instant,
}

impl WallClock {
    /// A clock that is looked at for the first time.
    pub const fn new(now: Now) -> Self {
        Self { seen: now, steady_since: now.monotonic }
    }

    /// Compares both clocks. Says by how many seconds the wall clock was set since the last look, if it was.
    pub fn look(&mut self, now: Now) -> Option<i64> {
        let passed = now.monotonic.saturating_duration_since(self.seen.monotonic);
        let expected = i128::from(self.seen.unix.plus(passed).0);
        self.seen = now;
        let nanos = i128::from(now.unix.0) - expected;
        if nanos.unsigned_abs() <= TOLERANCE.as_nanos() {
            return None;
        }
        self.steady_since = now.monotonic;
        i64::try_from(nanos / 1_000_000_000).ok()
    }

    /// Is it to be believed?
    pub fn is_steady(&self) -> bool {
        self.seen.monotonic.saturating_duration_since(self.steady_since) >= STEADY
    }
}
