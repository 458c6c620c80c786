//! What happens to interfaces and workers is said in three places at once: the log, an event, a metric.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::Sender;

use crate::event::{InterfaceChange, WorkerChange};
use crate::health;
use crate::metrics::{Families, Source};
use crate::pipeline::ToRecorder;

/// Says what happens. Shared by the workers and the supervisor; never waits.
#[derive(Debug)]
pub struct Announcer {
    interfaces: Vec<String>,
    /// For each interface, in the order of [`InterfaceChange::ALL`].
    changes: Vec<[AtomicU64; InterfaceChange::ALL.len()]>,
    workers: Vec<WorkerChanges>,
    news: Sender<ToRecorder>,
}

/// How often what happened to one worker.
#[derive(Debug, Default)]
struct WorkerChanges {
    panics: AtomicU64,
    restarts: AtomicU64,
    stalls: AtomicU64,
}

impl Announcer {
    /// Says things of these interfaces and so many workers, events to `news`.
    #[must_use]
    pub fn new(interfaces: Vec<String>, workers: usize, news: Sender<ToRecorder>) -> Self {
        Self {
            changes: interfaces.iter().map(|_| Default::default()).collect(),
            interfaces,
            workers: (0..workers).map(|_| WorkerChanges::default()).collect(),
            news,
        }
    }

    /// Name of an interface, as it was configured.
    #[must_use]
    pub fn name(&self, interface: usize) -> &str {
        self.interfaces.get(interface).map_or("", String::as_str)
    }

    /// Is this one of the names and globs, divided by commas, that make up the name of a place?
    fn is_named(&self, interface: usize, name: &str) -> bool {
        self.name(interface).split(',').any(|one| one == name)
    }

    /// Says what happened to an interface that is captured by its name.
    pub fn interface(&self, interface: usize, change: InterfaceChange) {
        self.interface_of(interface, self.name(interface), change);
    }

    /// Says what happened to one of the interfaces that are captured together under the place
    /// `interface`, which is where it counts.
    pub fn interface_of(&self, interface: usize, name: &str, change: InterfaceChange) {
        match change {
            InterfaceChange::LinkUp => tracing::info!(name, "link is up, capture goes on"),
            InterfaceChange::LinkDown => tracing::warn!(name, "link is down"),
            InterfaceChange::Gone if self.is_named(interface, name) => {
                tracing::error!(name, "interface was deleted; capture goes on when it is back");
            }
            // Those that a glob matches come and go, as those of containers do.
            InterfaceChange::Gone => tracing::info!(name, "interface was deleted"),
            InterfaceChange::Back => tracing::info!(name, "interface is back, capture goes on"),
            InterfaceChange::Renamed => {
                tracing::warn!(name, "interface goes by another name; its ring goes on");
            }
            InterfaceChange::New => tracing::info!(name, "new interface is captured"),
            InterfaceChange::MtuChanged => tracing::info!(name, "mtu changed"),
            InterfaceChange::MacChanged => tracing::info!(name, "hardware address changed"),
        }
        if let Some(counts) = self.changes.get(interface) {
            counts[change as usize].fetch_add(1, Ordering::Relaxed);
        }
        // 1 024 news wait at most; what finds no room is in the metrics, and in health while it lasts.
        let _ = self.news.try_send(ToRecorder::Interface(health::now(), name.to_owned(), change));
    }

    /// Says what happened to a worker.
    pub fn worker(&self, worker: usize, change: WorkerChange) {
        let Some(counts) = self.workers.get(worker) else { return };
        let count = match change {
            WorkerChange::Panicked => Some(&counts.panics),
            WorkerChange::Restarted => Some(&counts.restarts),
            WorkerChange::Stalled => Some(&counts.stalls),
            WorkerChange::Resumed => None,
        };
        match change {
            WorkerChange::Panicked => {
                tracing::error!(worker, "worker panicked; its rings are closed, it will restart");
            }
            WorkerChange::Restarted => tracing::info!(worker, "worker reads its rings again"),
            WorkerChange::Stalled => {
                tracing::error!(
                    worker,
                    "worker stands still; if there are others, they take over its share"
                );
            }
            WorkerChange::Resumed => tracing::warn!(worker, "worker that stood still goes on"),
        }
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // As above.
        let _ = self.news.try_send(ToRecorder::Worker(health::now(), worker, change));
    }
}

impl Source for Announcer {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let rows = self.interfaces.iter().zip(&self.changes).flat_map(|(name, counts)| {
            InterfaceChange::ALL.into_iter().map(move |change| {
                let labels =
                    vec![("interface", name.clone()), ("change", change.name().to_owned())];
                (labels, read(&counts[change as usize]))
            })
        });
        families.counter(
            "ringwatch_interface_changes",
            "What happened to interfaces, by what it was",
            rows,
        )?;
        let of_workers = |of: fn(&WorkerChanges) -> &AtomicU64| {
            let workers = self.workers.iter().enumerate();
            workers.map(move |(number, counts)| {
                (vec![("worker", number.to_string())], read(of(counts)))
            })
        };
        families.counter(
            "ringwatch_worker_panics",
            "Panics of a worker",
            of_workers(|w| &w.panics),
        )?;
        families.counter(
            "ringwatch_worker_restarts",
            "Times that a worker came back after a panic",
            of_workers(|w| &w.restarts),
        )?;
        families.counter(
            "ringwatch_worker_stalls",
            "Times that a worker stood still and was replaced",
            of_workers(|w| &w.stalls),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_numbered_as_they_are_listed() {
        for (number, change) in InterfaceChange::ALL.into_iter().enumerate() {
            assert_eq!(change as usize, number, "{change:?}");
        }
    }

    #[test]
    fn a_name_beside_globs_is_named_and_what_only_a_glob_matches_is_not() {
        let (news, _) = crossbeam_channel::bounded(1);
        let announcer = Announcer::new(vec!["veth*,eth0".into(), "eth1".into()], 1, news);
        let is_named = [(0, "eth0"), (0, "veth7"), (0, "eth"), (1, "eth1"), (2, "eth1")]
            .map(|(place, name)| announcer.is_named(place, name));
        assert_eq!(is_named, [true, false, false, true, false]);
    }
}
