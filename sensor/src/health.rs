//! Is the sensor doing its work? Asked by `/healthz`, answered from heartbeats and link states.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wire::units::UnixNanos;

use crate::counters::Counters;

/// A worker that made no pass over its rings for so long is stalled. It makes at least four a second.
const STALL_AFTER: Duration = Duration::from_secs(3);

/// What `/healthz` looks at.
#[derive(Debug)]
pub struct Health {
    counters: Arc<Counters>,
    link_down: Vec<AtomicBool>,
}

impl Health {
    /// Healthy until something else is said; links count as up.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        let link_down = counters.interfaces().iter().map(|_| AtomicBool::new(false)).collect();
        Self { counters, link_down }
    }

    /// Notes that the link of an interface went down or up; says whether that is news.
    pub fn set_link_down(&self, interface: usize, is_down: bool) -> bool {
        let state = self.link_down.get(interface);
        state.is_some_and(|state| state.swap(is_down, Ordering::Relaxed) != is_down)
    }

    /// What is wrong, in words; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.stalled_workers(now());
        for (name, state) in self.counters.interfaces().iter().zip(&self.link_down) {
            if state.load(Ordering::Relaxed) {
                problems.push(format!("interface {name} is down"));
            }
        }
        problems
    }

    fn stalled_workers(&self, now: UnixNanos) -> Vec<String> {
        let silence = |heartbeat| now.since(UnixNanos(heartbeat));
        let workers = self.counters.workers().iter().enumerate();
        let heartbeats = workers.map(|(index, set)| (index, silence(set.worker.heartbeat.read())));
        let stalled = heartbeats.filter(|(_, silence)| *silence > STALL_AFTER);
        let said = stalled.map(|(index, silence)| {
            format!("worker {index} has not read its rings for {} s", silence.as_secs())
        });
        said.collect()
    }
}

/// The wall clock.
#[must_use]
pub fn now() -> UnixNanos {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixNanos(0).plus(since_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_worker_and_a_downed_link_are_named() {
        let counters = Arc::new(Counters::new(vec!["eth0".into()], 2));
        counters.workers()[0].worker.heartbeat.set(now().0);
        let health = Health::new(Arc::clone(&counters));
        assert!(health.set_link_down(0, true));
        assert!(!health.set_link_down(0, true), "said once only");
        let problems = health.problems();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("worker 1 has not read its rings"));
        assert_eq!(problems[1], "interface eth0 is down");
        counters.workers()[1].worker.heartbeat.set(now().0);
        health.set_link_down(0, false);
        assert_eq!(health.problems(), Vec::<String>::new());
    }
}
