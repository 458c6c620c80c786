//! How long frames are kept: bytes, age, and what is to stay free on the disk, whichever ends first. One segment
//! is deleted at a time, the one that was begun first, and everything is measured anew before the next.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use wire::units::UnixNanos;

use super::catalog::{Catalog, Entry};
use crate::status::{Shared, add};

/// How long frames are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all sealed segments; 0: any number.
    pub bytes: u64,
    /// Time since a segment was sealed; zero: for ever.
    pub age: Duration,
    /// Of the file system, in percent of its size, as much stays free; 0: nothing.
    pub free_percent: u8,
}

/// Why a segment has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There are more bytes than are to be kept.
    Bytes,
    /// It is older than it is to be kept.
    Age,
    /// Too little is free on the disk, whoever filled it.
    Free,
}

impl Cause {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Free => "free_space",
        }
    }
}

impl Limits {
    /// Why this segment, the oldest, has to go, if it has to. `bytes`: of all segments; `free`: percent of the
    /// file system, if it can be told.
    #[must_use]
    pub fn cause(
        &self,
        oldest: &Entry,
        bytes: u64,
        free: Option<f64>,
        now: UnixNanos,
    ) -> Option<Cause> {
        let sealed = oldest.sealed?;
        if self.age > Duration::ZERO && now.since(sealed.at) > self.age {
            return Some(Cause::Age);
        }
        if self.bytes > 0 && bytes > self.bytes {
            return Some(Cause::Bytes);
        }
        free.is_some_and(|free| free < f64::from(self.free_percent)).then_some(Cause::Free)
    }
}

/// Takes note of how much room there is.
pub fn measure(shared: &Shared) {
    let bytes = statvfs(&shared.store_path)
        .map_or(0, |space| space.blocks_available().saturating_mul(space.fragment_size()));
    shared.free_bytes.store(bytes, Ordering::Relaxed);
}

/// Deletes what is not to be kept.
pub fn apply(limits: &Limits, catalog: &Catalog, folder: &Path, shared: &Shared, now: UnixNanos) {
    while let (Some(oldest), bytes) = catalog.oldest() {
        let Some(cause) = limits.cause(&oldest, bytes, free_percent(folder), now) else { break };
        let segment = oldest.path.display();
        let size = oldest.sealed.map_or(0, |sealed| sealed.bytes);
        match catalog.delete(&oldest) {
            Ok(true) => {
                tracing::info!(%segment, bytes = size, cause = cause.name(), "segment deleted");
                shared.expired.count(cause.name());
                add(&shared.counters.expired_bytes, size);
                if cause == Cause::Free {
                    // Some file systems give back the room a while later: one a round.
                    break;
                }
            }
            Ok(false) => tracing::info!(%segment, "segment was moved or deleted by somebody else"),
            Err(error) => {
                add(&shared.counters.store_errors, 1);
                if !shared.is_deletion_failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%segment, %error, "cannot delete a segment; trying again");
                }
                return;
            }
        }
    }
    if shared.is_deletion_failing.swap(false, Ordering::Relaxed) {
        tracing::info!("segments can be deleted again");
    }
    let is_short = free_percent(folder).is_some_and(|free| free < f64::from(limits.free_percent));
    if is_short && !shared.is_disk_short.swap(is_short, Ordering::Relaxed) {
        let free = limits.free_percent;
        tracing::error!(
            folder = %folder.display(),
            "less than {free} % of the disk is free although no segment is left to delete; make room"
        );
    }
    shared.is_disk_short.store(is_short, Ordering::Relaxed);
}

/// What is free of the file system that a folder is on, for whoever is not root. Unit: percent.
fn free_percent(folder: &Path) -> Option<f64> {
    let space = statvfs(folder).ok()?;
    (space.blocks() > 0).then(|| space.blocks_available() as f64 * 100.0 / space.blocks() as f64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::store::catalog::Sealed;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: Limits = Limits { bytes: 1000, age: HOUR, free_percent: 5 };

    fn cause(limits: Limits, bytes: u64, free: f64, age: Duration) -> Option<Cause> {
        let now = UnixNanos(1 << 60);
        let sealed = Some(Sealed { bytes: 100, at: now.minus(age), span: None });
        limits.cause(&Entry { path: PathBuf::new(), sealed }, bytes, Some(free), now)
    }

    #[test]
    fn each_limit_ends_the_life_of_a_segment() {
        assert_eq!(cause(LIMITS, 1000, 5.0, HOUR), None);
        assert_eq!(cause(LIMITS, 1001, 5.0, HOUR), Some(Cause::Bytes));
        assert_eq!(cause(LIMITS, 1000, 4.9, HOUR), Some(Cause::Free));
        assert_eq!(cause(LIMITS, 1000, 5.0, HOUR * 2), Some(Cause::Age));
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let none = Limits { bytes: 0, age: Duration::ZERO, free_percent: 0 };
        assert_eq!(cause(none, u64::MAX, 0.0, HOUR * 10_000), None);
    }

    #[test]
    fn an_open_segment_is_never_deleted() {
        let open = Entry { path: PathBuf::new(), sealed: None };
        assert_eq!(LIMITS.cause(&open, u64::MAX, Some(0.0), UnixNanos(0)), None);
    }

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_must() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::default();
        let now = UnixNanos(1 << 60);
        for number in 0..5_u64 {
            let path = folder.path().join(format!("{number}.pcapng"));
            std::fs::write(&path, b"").unwrap();
            catalog.seal(path, Sealed { bytes: 300, at: now.minus(HOUR / 2), span: None });
        }
        let shared = Shared::new("c".to_owned(), UnixNanos(0), folder.path().to_owned());
        let limits = Limits { free_percent: 0, ..LIMITS };
        apply(&limits, &catalog, folder.path(), &shared, now);
        let names: Vec<_> = catalog.segments().into_iter().map(|entry| entry.path).collect();
        assert_eq!(
            names,
            [
                folder.path().join("2.pcapng"),
                folder.path().join("3.pcapng"),
                folder.path().join("4.pcapng")
            ]
        );
        assert_eq!(shared.expired.snapshot()["bytes"], 2);
        assert_eq!(catalog.expired(), now.minus(HOUR / 2));
    }
}
