//! The identity in use: read anew when one of its files changes, and kept when the new one is no
//! good.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::UnixTime;

use crate::files::{FileError, FileKind, Files};
use crate::identity::{Expiry, Identity};
use crate::words::{explain, utc};

/// How long files may be at odds with each other before that is a fault: a certificate and its key
/// are two files, and hardly ever change in the same moment.
const SETTLE: Duration = Duration::from_secs(2);
/// Time between two attempts to read files that are at odds: a flood of handshakes, each of which
/// asks, does not read them each time.
const RETRY: Duration = Duration::from_millis(250);
/// Time between two looks at the files where no handshake asks for one.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The identity in use.
#[derive(Debug)]
pub struct Keeper<I> {
    files: Files,
    current: Arc<I>,
    /// The files that `current` was made of.
    taken: Stamps,
    /// Other files, which gave no identity so far.
    other: Option<Other>,
    looked: Instant,
    status: Arc<KeeperStatus>,
}

/// Files that are other than those in use.
#[derive(Debug)]
struct Other {
    stamps: Stamps,
    since: Instant,
    tried: Instant,
    /// They are no good.
    is_refused: bool,
    /// It was said that they cannot be used.
    is_told: bool,
}

/// What a look at the files found.
#[derive(Debug)]
pub enum Look {
    /// Nothing to be said.
    Same,
    /// The files changed, and a new identity is in use.
    Changed,
    /// The files changed and are no good; the identity before stays in use. Said once for each
    /// change.
    Refused(FileError),
}

/// What is known about the files, for metrics and health of the whole program.
#[derive(Debug)]
pub struct KeeperStatus {
    files: Files,
    /// How long before it expires a file is a problem.
    warning: Duration,
    known: Mutex<Known>,
}

/// See [`KeeperStatus`].
#[derive(Clone, Debug)]
pub struct Known {
    /// When the files in use expire.
    pub expiry: Expiry,
    /// Times that a new identity came into use.
    pub reloads: u64,
    /// Times that changed files were refused.
    pub refusals: u64,
    /// Why the files as they are now are not in use.
    pub fault: Option<String>,
}

impl<I: Identity> Keeper<I> {
    /// Reads the files for the first time. One that expires within `warning` is a problem.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn open(files: Files, warning: Duration) -> Result<Self, FileError> {
        // The first random number of a process takes the library 46 ms (2026-11-22, VM of 2 cores),
        // in which it gathers entropy; all later ones, in every thread, some microseconds. Here it
        // holds up nobody; in an event loop it would be the first handshake. Without random numbers
        // there is no handshake either, which says so.
        let _ = crate::random::<1>();
        // Looked at before they are read: what changes in between is seen by the next look.
        let taken = Stamps::take(&files);
        let current = Arc::new(I::load(&files)?);
        let known = Known { expiry: *current.expiry(), reloads: 0, refusals: 0, fault: None };
        let status = KeeperStatus { files: files.clone(), warning, known: Mutex::new(known) };
        Ok(Self {
            files,
            current,
            taken,
            other: None,
            looked: Instant::now(),
            status: Arc::new(status),
        })
    }

    /// The identity in use.
    #[must_use]
    pub const fn current(&self) -> &Arc<I> {
        &self.current
    }

    /// What is known about them, for other threads.
    #[must_use]
    pub fn status(&self) -> Arc<KeeperStatus> {
        Arc::clone(&self.status)
    }

    /// Looks at the files, as [`Keeper::look`] does, and logs what came of it.
    pub fn refresh(&mut self, now: Instant) {
        match self.look(now) {
            Look::Same => {}
            Look::Changed => {
                let until = utc(self.current.expiry().certificate.until);
                tracing::info!(certificate_until = until, "certificates were read anew");
            }
            Look::Refused(error) => tracing::error!(
                file = error.file().name(),
                %error,
                "changed certificates are no good; those before stay in use"
            ),
        }
    }

    /// [`Keeper::refresh`], unless the files were looked at within two seconds.
    pub fn refresh_if_due(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked) >= LOOK_EVERY {
            self.refresh(now);
        }
    }

    /// What an operator reads about a failure of TLS.
    #[must_use]
    pub fn explain(&self, error: &rustls::Error) -> String {
        let own = self.current.expiry().certificate;
        let text = explain(error, I::ROLE.peer(), own, UnixTime::now());
        match (error, self.current.take_refused()) {
            (rustls::Error::InvalidCertificate(_), Some(name)) => {
                format!("{text} (it is in the name of {name})")
            }
            _ => text,
        }
    }

    /// Looks whether the files changed, and reads them if they did. Costs a `stat` for each file
    /// where they did not.
    pub fn look(&mut self, now: Instant) -> Look {
        self.looked = now;
        let stamps = Stamps::take(&self.files);
        if stamps == self.taken {
            self.other = None;
            self.status.lock().fault = None;
            return Look::Same;
        }
        let other = match &mut self.other {
            Some(other) if other.stamps == stamps => {
                let is_tried = now.saturating_duration_since(other.tried) < RETRY;
                if other.is_refused || is_tried {
                    return Look::Same;
                }
                other.tried = now;
                other
            }
            other => other.insert(Other {
                stamps,
                since: now,
                tried: now,
                is_refused: false,
                is_told: false,
            }),
        };
        match load::<I>(&self.files, self.current.name()) {
            Ok(identity) if Stamps::take(&self.files) == other.stamps => {
                self.taken = other.stamps;
                self.other = None;
                self.current = Arc::new(identity);
                let mut known = self.status.lock();
                known.expiry = *self.current.expiry();
                known.reloads += 1;
                known.fault = None;
                Look::Changed
            }
            // They changed while they were read.
            Ok(_) => Look::Same,
            Err(_) if now.saturating_duration_since(other.since) < SETTLE => Look::Same,
            Err(error) => {
                // What cannot be read now may be readable soon, without being changed.
                other.is_refused = !matches!(error, FileError::Unreadable { .. });
                if std::mem::replace(&mut other.is_told, true) {
                    return Look::Same;
                }
                let mut known = self.status.lock();
                known.refusals += 1;
                known.fault = Some(error.to_string());
                Look::Refused(error)
            }
        }
    }
}

fn load<I: Identity>(files: &Files, name: &str) -> Result<I, FileError> {
    let identity = I::load(files)?;
    if identity.name() == name {
        return Ok(identity);
    }
    Err(FileError::Renamed {
        path: files.certificate.clone(),
        before: name.to_owned(),
        found: identity.name().to_owned(),
    })
}

impl KeeperStatus {
    /// What is known now.
    #[must_use]
    pub fn read(&self) -> Known {
        self.lock().clone()
    }

    /// How long before it expires a certificate or list is a problem.
    #[must_use]
    pub const fn warning(&self) -> Duration {
        self.warning
    }

    /// What an operator has to do something about, in words. `now` is in seconds since 1970.
    #[must_use]
    pub fn problems(&self, now: i64) -> Vec<String> {
        let known = self.read();
        let mut problems = Vec::new();
        if let Some(fault) = &known.fault {
            problems.push(format!("changed files of the TLS identity are not in use: {fault}"));
        }
        let warning = i64::try_from(self.warning.as_secs()).unwrap_or(i64::MAX);
        for (kind, until) in known.expiry.all() {
            if until.saturating_sub(now) >= warning {
                continue;
            }
            let (path, remedy) = match kind {
                FileKind::Ca => (&self.files.ca, "see \"Changing the authority\" in the manual"),
                FileKind::Certificate => (&self.files.certificate, "ringwatch pki renew DIR NAME"),
                // Keys do not expire.
                FileKind::Key => continue,
                FileKind::Crl => {
                    (self.files.crl.as_ref().unwrap_or(&self.files.ca), "ringwatch pki crl DIR")
                }
            };
            let state = if until < now { "expired" } else { "expires" };
            problems.push(format!("{} {state} at {}: {remedy}", path.display(), utc(until)));
        }
        problems
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells a file from an earlier one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamps of all files; `None` for one that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamps([Option<Stamp>; 4]);

impl Stamps {
    fn take(files: &Files) -> Self {
        let Files { ca, certificate, key, crl } = files;
        Self([
            Stamp::of(ca),
            Stamp::of(certificate),
            Stamp::of(key),
            crl.as_deref().and_then(Stamp::of),
        ])
    }
}

impl Stamp {
    /// Of what the name leads to in the end: secrets of Kubernetes are symbolic links. `None`: there
    /// is nothing.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
