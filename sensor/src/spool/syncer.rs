//! Brings what was written to the disk, about once a second, in a thread of its own: that takes a slow
//! disk seconds, and the uplink must not wait that long.
//!
//! Records are sent before they are on the disk: an alert does not wait for it, and the collector
//! acknowledges only what is on its own. What a crash of the machine takes is at most what the last second
//! and the sync that was under way had not brought to the disk. The end of the process alone takes
//! nothing: the kernel has what was written.
//!
//! There is one job at a time, so nothing queues up behind a slow disk: what was written meanwhile is in
//! the next one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::disk::{Disk, DiskFile};
use super::position::Position;
use super::status::{SpoolStatus, add, set};

/// What is brought to the disk.
pub struct SyncJob {
    /// Files that were written to.
    pub files: Vec<Arc<dyn DiskFile>>,
    /// Folders in which files were made or removed.
    pub folders: Vec<PathBuf>,
    /// The position file, and what it is to say.
    pub position: (Arc<dyn DiskFile>, Position),
}

impl SyncJob {
    /// Does it. The position comes last: it speaks of what is on the disk before.
    ///
    /// # Errors
    /// What the disk says.
    pub fn run(&self, disk: &dyn Disk) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.sync())?;
        self.folders.iter().try_for_each(|folder| disk.sync_folder(folder))?;
        let (file, position) = &self.position;
        position.write(file.as_ref())?;
        file.sync()
    }

    /// Does it and notes how it went.
    pub fn run_noted(&self, disk: &dyn Disk, status: &SpoolStatus) {
        let begin = Instant::now();
        let result = self.run(disk);
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        set(&status.last_sync_ns, took);
        match result {
            Ok(()) => {
                add(&status.syncs, 1);
                status.set_sync_problem(None);
            }
            Err(error) => {
                add(&status.sync_errors, 1);
                let problem = format!("spool: what was written may not be on the disk: {error}");
                status.set_sync_problem(Some(problem));
            }
        }
    }
}

/// The thread.
pub struct Syncer {
    jobs: Sender<SyncJob>,
    is_busy: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Syncer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(disk: Arc<dyn Disk>, status: Arc<SpoolStatus>) -> io::Result<Self> {
        // One job at a time: `is_busy` keeps a second one out.
        let (jobs, to_do) = bounded(1);
        let is_busy = Arc::new(AtomicBool::new(false));
        let busy = Arc::clone(&is_busy);
        let body = move || work(&to_do, disk.as_ref(), &status, &busy);
        let thread = std::thread::Builder::new().name("spool-sync".into()).spawn(body)?;
        Ok(Self { jobs, is_busy, thread })
    }

    /// Is a job under way?
    pub fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    /// Hands a job over. There must be none under way.
    pub fn hand_over(&self, job: SyncJob) {
        self.is_busy.store(true, Ordering::Release);
        if self.jobs.try_send(job).is_err() {
            // The thread is gone. The kernel still writes back what it has.
            self.is_busy.store(false, Ordering::Release);
        }
    }

    /// Waits until the job that is under way is done, for so long at most, and ends the thread.
    pub fn stop(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.is_busy() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.is_busy() {
            // It hangs in the kernel, and ends with the process.
            return tracing::warn!("the disk of the spool does not answer");
        }
        drop(self.jobs);
        if self.thread.join().is_err() {
            tracing::error!("spool-sync panicked; its message stands above");
        }
    }
}

fn work(jobs: &Receiver<SyncJob>, disk: &dyn Disk, status: &SpoolStatus, is_busy: &AtomicBool) {
    for job in jobs {
        job.run_noted(disk, status);
        is_busy.store(false, Ordering::Release);
    }
}
