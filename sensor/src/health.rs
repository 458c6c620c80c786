//! Is the sensor doing its work? Asked by `/healthz`, answered from what the supervisor says, and from link
//! states. No answer depends on the wall clock, which may be set at any time, but for that about certificates.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use trust::KeeperStatus;
use wire::units::UnixNanos;

use crate::counters::Counters;
use crate::supervisor::STALL_AFTER;
use crate::uplink::UplinkStatus;

/// What `/healthz` looks at.
#[derive(Debug)]
pub struct Health {
    counters: Arc<Counters>,
    /// A [`Link`] each.
    links: Vec<AtomicU8>,
    /// What the supervisor says is wrong.
    watch: ArcSwap<Vec<String>>,
    /// When it said so, in nanoseconds since `started`; 0 before it did.
    watched: AtomicU64,
    /// How the uplink and its spool are.
    uplink: Arc<UplinkStatus>,
    /// What is known about the uplink's certificates; empty without an uplink.
    certificates: OnceLock<Arc<KeeperStatus>>,
    started: Instant,
}

/// The link of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// Frames come in.
    Up,
    /// No frames come in until it is up again.
    Down,
    /// The interface was deleted: no frames come in until there is one of its name again.
    Gone,
}

impl Health {
    /// Healthy until something else is said; links count as up.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        let links = counters.interfaces().iter().map(|_| AtomicU8::new(Link::Up as u8)).collect();
        Self {
            counters,
            links,
            watch: ArcSwap::default(),
            watched: AtomicU64::new(0),
            uplink: Arc::default(),
            certificates: OnceLock::new(),
            started: Instant::now(),
        }
    }

    /// Looks at this uplink as well.
    #[must_use]
    pub fn with_uplink(self, uplink: &Arc<UplinkStatus>) -> Self {
        Self { uplink: Arc::clone(uplink), ..self }
    }

    /// Notes the link of an interface; gives what it was if that is another state.
    pub fn set_link(&self, interface: usize, link: Link) -> Option<Link> {
        let before = self.links.get(interface)?.swap(link as u8, Ordering::Relaxed);
        let before = Link::read(before);
        (before != link).then_some(before)
    }

    /// The link of an interface, as it was noted last.
    #[must_use]
    pub fn link(&self, interface: usize) -> Link {
        let link =
            self.links.get(interface).map_or(Link::Gone as u8, |it| it.load(Ordering::Relaxed));
        Link::read(link)
    }

    /// From now on certificates that expire soon are a problem as well.
    pub fn watch_certificates(&self, certificates: Arc<KeeperStatus>) {
        // There is one uplink, started once.
        let _ = self.certificates.set(certificates);
    }

    /// Replaces what the supervisor says is wrong.
    pub fn set_watch(&self, problems: Vec<String>) {
        let since_start = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.watched.store(since_start.max(1), Ordering::Relaxed);
        if **self.watch.load() != problems {
            self.watch.store(Arc::new(problems));
        }
    }

    /// What is wrong, in words; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, link) in self.counters.interfaces().iter().zip(&self.links) {
            match Link::read(link.load(Ordering::Relaxed)) {
                Link::Up => {}
                Link::Down => problems.push(format!("interface {name} is down")),
                Link::Gone => problems.push(format!("interface {name} was deleted")),
            }
        }
        problems.extend(self.uplink.problems());
        problems.extend(self.watch.load().iter().cloned());
        problems.extend(self.silent_supervisor(self.started.elapsed()));
        if let Some(certificates) = self.certificates.get() {
            problems.extend(certificates.problems(now_seconds()));
        }
        problems
    }

    fn silent_supervisor(&self, since_start: Duration) -> Option<String> {
        let watched = self.watched.load(Ordering::Relaxed);
        let silence = since_start.saturating_sub(Duration::from_nanos(watched));
        (watched > 0 && silence > STALL_AFTER).then(|| {
            format!(
                "the supervisor has not looked for {} s: what fails now does not come back; restart \
                 the sensor",
                silence.as_secs()
            )
        })
    }
}

impl Link {
    const fn read(stored: u8) -> Self {
        match stored {
            0 => Self::Up,
            1 => Self::Down,
            _ => Self::Gone,
        }
    }
}

/// The wall clock, in seconds since 1970.
#[must_use]
pub fn now_seconds() -> i64 {
    i64::try_from(now().0 / 1_000_000_000).unwrap_or(i64::MAX)
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
    fn a_supervisor_that_is_gone_is_named() {
        let health = Health::new(Arc::new(Counters::new(Vec::new(), 0)));
        assert_eq!(health.problems(), Vec::<String>::new(), "it has not begun");
        health.set_watch(vec!["something".into()]);
        assert_eq!(health.problems(), ["something"]);
        let said = health.silent_supervisor(health.started.elapsed() + STALL_AFTER * 2).unwrap();
        assert!(said.starts_with("the supervisor has not looked for "), "{said}");
    }

    #[test]
    fn a_downed_link_is_named() {
        let health = Health::new(Arc::new(Counters::new(vec!["eth0".into()], 2)));
        assert_eq!(health.set_link(0, Link::Down), Some(Link::Up));
        assert_eq!(health.set_link(0, Link::Down), None, "said once only");
        assert_eq!(health.problems(), ["interface eth0 is down"]);
        assert_eq!(health.set_link(0, Link::Gone), Some(Link::Down));
        assert_eq!(health.problems(), ["interface eth0 was deleted"]);
        health.set_link(0, Link::Up);
        assert_eq!(health.problems(), Vec::<String>::new());
    }
}
