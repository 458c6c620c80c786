//! How a spool begins: its folder is checked and made, what an earlier run left is taken over.

use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wire::units::{Sequence, UnixNanos};

use super::disk::{self, Disk, RealDisk};
use super::format::LaneName;
use super::reading::{Reading, Task};
use super::recover::Found;
use super::status::{SpoolStatus, add};
use super::store::Store;
use super::syncer::Syncer;
use super::{RESERVED_NUMBERS, Spool, SpoolSettings};
use crate::uplink::LossReason;
use crate::uplink::session::Now;

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another sensor has it.
    #[error("another sensor uses the spool {}; give each its own spool.path", path.display())]
    InUse {
        /// Its folder.
        path: PathBuf,
    },
    /// The folder is not for this user, or is no folder.
    #[error(
        "cannot use the spool {}; make the folder for the sensor's user, or set spool.path (\"\" keeps \
         records in memory)",
        path.display()
    )]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no more threads.
    #[error("cannot start thread {name}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl SpoolError {
    /// A disk that is full or failing may recover; what only a human can mend is an error.
    pub(super) fn unless_disk_fails(path: &Path, error: io::Error) -> Result<io::Error, Self> {
        match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::InvalidFilename => {
                Err(Self::Unusable { path: path.to_owned(), source: error })
            }
            _ => Ok(error),
        }
    }
}

/// Can this process keep a spool in this folder, or make the folder? Nothing is left behind, not even the
/// folder: whoever checks may be another user than the sensor. Whether another sensor uses it is not
/// asked: that one may be about to be restarted.
///
/// # Errors
/// [`SpoolError::Unusable`].
pub fn check(folder: &Path) -> Result<(), SpoolError> {
    let there = folder.ancestors().find(|above| above.exists()).unwrap_or(folder);
    // Root may check on behalf of another user, who is not known here.
    let user = Some(nix::unistd::geteuid()).filter(|user| !user.is_root());
    let is_safe = if there == folder { disk::check_folder(folder, user) } else { Ok(()) };
    let tried = is_safe.and_then(|()| probe(there));
    // That a disk is full now does not stand against a start.
    tried.or_else(|error| SpoolError::unless_disk_fails(folder, error).map(|_| ()))
}

/// Makes a file in a folder and removes it.
fn probe(folder: &Path) -> io::Result<()> {
    let number = std::process::id();
    // An earlier one of the same number may have left the first behind.
    let names = [format!("{number}"), format!("{number}-{:x}", new_epoch(UnixNanos(0)))];
    let mut tried = Ok(());
    for name in names {
        let file = folder.join(format!(".ringwatch-check-{name}"));
        tried = RealDisk.make(&file).and_then(|()| RealDisk.remove(&file));
        if !matches!(&tried, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    tried
}

impl Spool {
    /// Opens the spool of this folder. What an earlier run left in it is read by a thread of its own, and taken
    /// over by [`Spool::work`] when it is read.
    ///
    /// # Errors
    /// See [`SpoolError`]. A disk that fails is no error: records wait in memory until it recovers.
    pub fn open(
        settings: SpoolSettings,
        disk: Arc<dyn Disk>,
        memory_bytes: usize,
        now: Now,
        status: Arc<SpoolStatus>,
    ) -> Result<Self, SpoolError> {
        let thread = |name| move |source| SpoolError::Thread { name, source };
        let (mut spool, task) =
            Self::prepare(settings, Arc::clone(&disk), memory_bytes, now, status)?;
        let syncer =
            Syncer::start(disk, Arc::clone(&spool.status)).map_err(thread("spool-sync"))?;
        if let Some(store) = &mut spool.store {
            store.syncer = Some(syncer);
        }
        spool.reading = Some(Reading::start(task).map_err(thread("spool-read"))?);
        Ok(spool)
    }

    /// Opens the spool, and says what is to be read of it.
    pub(super) fn prepare(
        settings: SpoolSettings,
        disk: Arc<dyn Disk>,
        memory_bytes: usize,
        now: Now,
        status: Arc<SpoolStatus>,
    ) -> Result<(Self, Task), SpoolError> {
        let (mut store, failure) = Store::open(settings, disk, now)?;
        if store.is_new {
            store.position.spool_epoch = new_epoch(now.unix);
        }
        let epoch = store.position.spool_epoch;
        let task = Task {
            disk: Arc::clone(&store.disk),
            folders: store.folders.clone(),
            epoch,
            acked: store.position.acked,
            expires: now.monotonic + store.settings.max_age,
            has_failed: failure.is_some(),
            status: Arc::clone(&status),
            is_stopped: Arc::default(),
        };
        let mut spool = Self::in_memory(epoch, memory_bytes, status);
        spool.store = Some(store);
        if let Some(error) = failure {
            spool.disk_failed(now.monotonic, &error);
        }
        Ok((spool, task))
    }

    /// Takes over what an earlier run left: it comes before all that was pushed meanwhile.
    pub(super) fn go_on_from(&mut self, found: [Found; 2], now: Now) {
        let Some(store) = &mut self.store else { return };
        let corrupt = found.iter().map(|found| found.corrupt).sum();
        let mut count = 0;
        for ((name, found), lane) in LaneName::ALL.into_iter().zip(found).zip(&mut self.lanes) {
            let next = store.next_number(name, &found, now.unix);
            let found = found.into_lane(name, store.position.acked[name as usize], next);
            count += found.pending();
            let early = std::mem::replace(lane, found);
            lane.follow_with(early);
            store.position.bound[name as usize] = Sequence(lane.next().0 + RESERVED_NUMBERS);
        }
        let saved = if store.retry_at.is_none() { store.save_position(now.unix) } else { Ok(()) };
        self.begin(count, corrupt);
        if let Err(error) = saved {
            self.disk_failed(now.monotonic, &error);
        }
    }

    /// Counts what an earlier run left, or this one before a panic.
    fn begin(&mut self, found: u64, corrupt: u64) {
        self.delivery.lose(corrupt, LossReason::SpoolCorrupt);
        if self.under_way == 0 {
            self.delivery.produce(found + corrupt);
            add(&self.status.recovered, found);
            add(&self.status.damaged, corrupt);
        } else {
            let under_way = std::mem::take(&mut self.under_way);
            self.delivery
                .lose(under_way.saturating_sub(found + corrupt), LossReason::UplinkPanicked);
            // What could not be removed when it was acknowledged.
            let again = (found + corrupt).saturating_sub(under_way);
            self.delivery.produce(again);
            add(&self.status.recovered, again);
        }
        self.enforce_limits(None);
        self.publish();
        if found + corrupt > 0 {
            tracing::info!(records = found, damaged = corrupt, "records of an earlier run found");
        }
    }

    /// After a panic: all that is in memory may be anything, and is dropped. What is on the disk is read again; the
    /// rest is lost, and counted.
    ///
    /// # Errors
    /// As [`Spool::open`].
    pub fn start_over(&mut self, now: Now) -> Result<(), SpoolError> {
        let (delivery, status) = (self.delivery, Arc::clone(&self.status));
        let under_way = delivery.in_flight();
        // What failed before is tried anew, and said anew if it fails again.
        status.set_write_problem(None);
        if let Some(reading) = self.reading.take() {
            reading.stop();
        }
        let Some(store) = self.store.take() else {
            *self = Self::in_memory(new_epoch(now.unix), self.memory_bytes, status);
            self.delivery = delivery;
            self.delivery.lose(under_way, LossReason::UplinkPanicked);
            return Ok(());
        };
        // Ends the syncer and gives the lock back.
        let (settings, disk) = store.give_up();
        *self = Self::open(settings, disk, self.memory_bytes, now, status)?;
        (self.delivery, self.under_way) = (delivery, under_way);
        Ok(())
    }
}

/// A name for a new spool: random, so that two spools of one sensor never have the same.
fn new_epoch(now: UnixNanos) -> u64 {
    // The standard library seeds this hasher from the system's random numbers.
    let random = std::hash::RandomState::new().hash_one(now.0);
    // Some readers of JSON keep 53 bits of a number.
    (random >> 11).max(1)
}
