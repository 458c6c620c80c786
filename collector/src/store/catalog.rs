//! Which segments there are, and of what time: where every question for frames begins, and every deletion.
//!
//! A segment is in the catalog from its creation to its deletion, under the name that it has when it is sealed.
//! Small: of each segment only the time of its frames is kept, the rest is read from its
//! [index](super::index) when somebody asks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wire::units::UnixNanos;

use super::index::Span;
use super::segment;

/// All segments.
#[derive(Debug, Default)]
pub struct Catalog {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the name of the sealed file, so in the order in which they were begun.
    segments: BTreeMap<PathBuf, Entry>,
    /// What came before this was deleted.
    expired: UnixNanos,
}

/// What the catalog knows of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name that it has, or will have, when it is sealed.
    pub path: PathBuf,
    /// `None` while it is open.
    pub sealed: Option<Sealed>,
}

/// A segment that no longer grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its size.
    pub bytes: u64,
    /// When it was sealed, by the collector's clock.
    pub at: UnixNanos,
    /// The time of its frames; `None` where it has no index.
    pub span: Option<Span>,
}

impl Entry {
    /// May it have frames between these times, both included?
    #[must_use]
    pub fn may_have(&self, from: UnixNanos, to: UnixNanos) -> bool {
        let span = self.sealed.and_then(|sealed| sealed.span);
        span.is_none_or(|span| span.frames > 0 && span.first <= to && from <= span.last)
    }

    /// Opens it for reading, wherever it is just now.
    ///
    /// # Errors
    /// What the file system says; [`io::ErrorKind::NotFound`] if it was deleted meanwhile.
    pub fn open(&self) -> io::Result<File> {
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It may be sealed between the two.
                File::open(segment::hidden_path(&self.path)).or_else(|_| File::open(&self.path))
            }
            opened => opened,
        }
    }
}

/// The file in a folder of segments that keeps up to when they were deleted.
const EXPIRED: &str = "expired";

impl Catalog {
    /// Takes in the sealed segments of a folder; `now` is for one of which nothing is known. One that cannot be read is
    /// kept and deleted as the others are, and questions that come upon it say so.
    ///
    /// # Errors
    /// What the file system says of the folder.
    pub fn load(&self, folder: &Path, now: UnixNanos) -> io::Result<()> {
        let mut state = self.state();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if segment::is_sealed(&path) {
                let sealed = Sealed::read(&path).unwrap_or_else(|error| {
                    tracing::error!(segment = %path.display(), %error, "cannot read a segment");
                    Sealed::unread(&path, now)
                });
                let sealed = Some(sealed);
                state.segments.insert(path.clone(), Entry { path, sealed });
            }
        }
        state.expired = read_expired(folder)?;
        Ok(())
    }

    /// A segment begins, which will be sealed under this name.
    pub fn begin(&self, path: PathBuf) {
        self.state().segments.insert(path.clone(), Entry { path, sealed: None });
    }

    /// A segment is sealed.
    pub fn seal(&self, path: PathBuf, sealed: Sealed) {
        self.state().segments.insert(path.clone(), Entry { path, sealed: Some(sealed) });
    }

    /// All segments, in the order in which they were begun.
    #[must_use]
    pub fn segments(&self) -> Vec<Entry> {
        self.state().segments.values().cloned().collect()
    }

    /// The sealed segment that was begun first, and the bytes of all sealed ones.
    #[must_use]
    pub fn oldest(&self) -> (Option<Entry>, u64) {
        let state = self.state();
        let sealed = || state.segments.values().filter_map(|entry| Some((entry, entry.sealed?)));
        let bytes = sealed().map(|(_, sealed)| sealed.bytes).sum();
        (sealed().next().map(|(entry, _)| entry.clone()), bytes)
    }

    /// Deletes a sealed segment, and takes note that what came before it is gone. False: somebody else had
    /// deleted or moved it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn delete(&self, entry: &Entry) -> io::Result<bool> {
        let expired = entry.sealed.map_or(UnixNanos(0), |sealed| sealed.at).max(self.expired());
        // First, so that a crash in between makes no deleted frame one that never was.
        write_expired(&entry.path, expired)?;
        let is_deleted = match std::fs::remove_file(&entry.path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        state.segments.remove(&entry.path);
        state.expired = expired;
        Ok(is_deleted)
    }

    /// Frames that came before this time, by the collector's clock, may be deleted already; 1970 if none are.
    #[must_use]
    pub fn expired(&self) -> UnixNanos {
        self.state().expired
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sealed {
    /// What there is to say of a sealed segment.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let at = modified(&metadata)?;
        Ok(Self { bytes: metadata.len(), at, span: Span::read(&file)? })
    }

    /// What there is to say of one that cannot be read; `now` if not even its folder says when it was written.
    fn unread(path: &Path, now: UnixNanos) -> Self {
        let Ok(metadata) = std::fs::metadata(path) else {
            return Self { bytes: 0, at: now, span: None };
        };
        Self { bytes: metadata.len(), at: modified(&metadata).unwrap_or(now), span: None }
    }
}

/// When a file was written last.
fn modified(metadata: &std::fs::Metadata) -> io::Result<UnixNanos> {
    let since = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(UnixNanos(since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))))
}

fn read_expired(folder: &Path) -> io::Result<UnixNanos> {
    match std::fs::read_to_string(folder.join(EXPIRED)) {
        // A damaged one is as good as none: then "expired" is told as "none".
        Ok(text) => Ok(UnixNanos(text.trim().parse().unwrap_or(0))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(UnixNanos(0)),
        Err(error) => Err(error),
    }
}

/// Nanoseconds since 1970, as text.
fn write_expired(segment: &Path, expired: UnixNanos) -> io::Result<()> {
    let part = segment.with_file_name(format!(".{EXPIRED}.part"));
    let mut file = File::create(&part)?;
    writeln!(file, "{}", expired.0)?;
    file.sync_data()?;
    std::fs::rename(&part, segment.with_file_name(EXPIRED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(at: u64, span: Option<(u64, u64)>) -> Sealed {
        let span = span.map(|(first, last)| Span {
            first: UnixNanos(first),
            last: UnixNanos(last),
            frames: 1,
        });
        Sealed { bytes: 100, at: UnixNanos(at), span }
    }

    #[test]
    fn a_segment_without_index_may_have_anything_and_an_empty_one_nothing() {
        let may_have = |sealed| {
            let entry = Entry { path: PathBuf::new(), sealed };
            entry.may_have(UnixNanos(10), UnixNanos(20))
        };
        assert!(may_have(None));
        assert!(may_have(Some(sealed(1, None))));
        assert!(may_have(Some(sealed(1, Some((0, 10))))));
        assert!(may_have(Some(sealed(1, Some((20, 30))))));
        assert!(!may_have(Some(sealed(1, Some((21, 30))))));
        assert!(!may_have(Some(sealed(1, Some((0, 9))))));
        let empty = Span { first: UnixNanos(0), last: UnixNanos(u64::MAX), frames: 0 };
        assert!(!may_have(Some(Sealed { span: Some(empty), ..sealed(1, None) })));
    }

    #[test]
    fn what_was_deleted_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::default();
        for (name, at) in [("1.pcapng", 100), ("2.pcapng", 200)] {
            let path = folder.path().join(name);
            std::fs::write(&path, b"").unwrap();
            catalog.begin(path.clone());
            assert_eq!(catalog.segments().last().unwrap().sealed, None);
            catalog.seal(path, sealed(at, None));
        }
        let (oldest, bytes) = catalog.oldest();
        assert_eq!(bytes, 200);
        let oldest = oldest.unwrap();
        assert!(catalog.delete(&oldest).unwrap());
        assert!(!catalog.delete(&oldest).unwrap(), "it is gone already");
        assert_eq!(catalog.expired(), UnixNanos(100));
        let again = Catalog::default();
        // One that cannot be read keeps nobody from starting, and is as old as it is.
        let unreadable = folder.path().join("0.pcapng");
        std::fs::create_dir(&unreadable).unwrap();
        let written = std::fs::metadata(&unreadable).unwrap().modified().unwrap();
        let written = written.duration_since(std::time::UNIX_EPOCH).unwrap();
        again.load(folder.path(), UnixNanos(u64::MAX)).unwrap();
        assert_eq!(again.expired(), UnixNanos(100));
        let left: Vec<_> = again.segments().into_iter().map(|entry| entry.path).collect();
        assert_eq!(left, ["0.pcapng", "2.pcapng"].map(|name| folder.path().join(name)));
        let of_it = again.segments()[0].sealed.unwrap();
        assert_eq!((u128::from(of_it.at.0), of_it.span), (written.as_nanos(), None));
        // What was deleted before stays deleted, whatever is deleted next.
        let entry = Entry { path: folder.path().join("2.pcapng"), sealed: Some(sealed(50, None)) };
        assert!(again.delete(&entry).unwrap());
        assert_eq!(read_expired(folder.path()).unwrap(), UnixNanos(100));
    }

    #[test]
    fn an_open_segment_is_read_under_its_hidden_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.pcapng");
        let entry = Entry { path: path.clone(), sealed: None };
        assert_eq!(entry.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(segment::hidden_path(&path), b"hidden").unwrap();
        assert_eq!(io::read_to_string(entry.open().unwrap()).unwrap(), "hidden");
        std::fs::rename(segment::hidden_path(&path), &path).unwrap();
        assert_eq!(io::read_to_string(entry.open().unwrap()).unwrap(), "hidden");
    }
}
