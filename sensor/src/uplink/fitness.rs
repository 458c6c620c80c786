//! Whether the uplink does its work, and what it does after a panic: it starts over, as a worker does, with a fresh
//! session, a fresh connection, and the records that are on the disk. Nobody is to learn of a panic by records that
//! do not come.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An uplink that has run for so long since its panic is well.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// An uplink that has not come round for so long stands still. It looks at its inputs a hundred times a second.
const STANDS_STILL_AFTER: Duration = Duration::from_secs(8);
/// The longest pause after one of many panics in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How the uplink is, as others may ask.
#[derive(Debug, Default)]
pub struct Fitness(Mutex<State>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    panics: u64,
    /// Those without a minute of peace between them.
    in_a_row: u32,
    panicked: Option<Instant>,
    /// When it last came round.
    turned: Option<Instant>,
    is_running: bool,
    has_failed: bool,
}

impl Fitness {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Times that it panicked.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.state().panics
    }

    /// Does its thread run?
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state().is_running
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn problem(&self, now: Instant) -> Option<String> {
        let State { panicked, has_failed, turned, is_running, .. } = *self.state();
        if has_failed {
            let said = "the uplink has ended, as the log says: nothing reaches a collector, and records are lost; \
                        restart the sensor";
            return Some(said.to_owned());
        }
        let silence = turned.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if is_running && silence >= STANDS_STILL_AFTER {
            return Some(format!(
                "the uplink has stood still for {} s: does the disk of the spool hang? Records wait in the queue, \
                 frames are lost",
                silence.as_secs()
            ));
        }
        let is_recent = |at| now.saturating_duration_since(at) < WELL_AFTER;
        panicked
            .is_some_and(is_recent)
            .then(|| "the uplink panicked less than a minute ago, and starts over".to_owned())
    }

    /// The thread begins. Whatever ends it before [`Running::stop`] is a failure.
    pub(super) fn begin(&self) -> Running<'_> {
        self.state().is_running = true;
        Running(self)
    }

    /// It has come round.
    pub(super) fn note_turn(&self, now: Instant) {
        self.state().turned = Some(now);
    }

    /// It panicked. Says how long it is to wait before it dials again.
    pub(super) fn note_panic(&self, now: Instant) -> Duration {
        let mut state = self.state();
        let is_recent = |at| now.saturating_duration_since(at) < WELL_AFTER + LONGEST_PAUSE;
        state.in_a_row = if state.panicked.is_some_and(is_recent) { state.in_a_row + 1 } else { 0 };
        state.panics += 1;
        state.panicked = Some(now);
        LONGEST_PAUSE.min(Duration::from_secs(1 << state.in_a_row.min(6)))
    }
}

/// Lives as long as the uplink runs.
pub(super) struct Running<'f>(&'f Fitness);

impl Running<'_> {
    /// It ends because the sensor stops.
    pub(super) fn stop(self) {
        self.0.state().is_running = false;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.has_failed = state.is_running;
        state.is_running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ends_by_itself_is_a_problem_and_a_stop_is_none() {
        let (fitness, now) = (Fitness::default(), Instant::now());
        assert_eq!(fitness.problem(now), None, "there is no uplink");
        fitness.begin().stop();
        assert_eq!((fitness.problem(now), fitness.is_running()), (None, false));
        drop(fitness.begin());
        let said = fitness.problem(now).unwrap();
        assert!(said.starts_with("the uplink has ended") && !fitness.is_running(), "{said}");
    }

    #[test]
    fn an_uplink_that_stands_still_is_a_problem_until_it_goes_on_or_ends() {
        let (fitness, now) = (Fitness::default(), Instant::now());
        let running = fitness.begin();
        fitness.note_turn(now);
        assert_eq!(fitness.problem(now + Duration::from_secs(7)), None);
        let said = fitness.problem(now + Duration::from_secs(9)).unwrap();
        assert!(said.starts_with("the uplink has stood still for 9 s: does the disk"), "{said}");
        fitness.note_turn(now + Duration::from_secs(10));
        assert_eq!(fitness.problem(now + Duration::from_secs(11)), None);
        running.stop();
        assert_eq!(fitness.problem(now + Duration::from_secs(3600)), None);
    }

    #[test]
    fn after_panics_in_a_row_the_pause_grows_to_a_minute() {
        let (fitness, mut now) = (Fitness::default(), Instant::now());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = fitness.note_panic(now);
            assert_eq!(pause, Duration::from_secs(seconds));
            now += pause;
        }
        assert!(fitness.problem(now - Duration::from_secs(1)).unwrap().contains("starts over"));
        assert_eq!(fitness.problem(now + WELL_AFTER), None);
        assert_eq!(fitness.note_panic(now + WELL_AFTER * 2), Duration::from_secs(1));
        assert_eq!(fitness.panics(), 9);
    }
}
