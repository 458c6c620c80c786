//! Brings what was written to the disk, and looks whether the folder is still there, about once a second, in a
//! thread of its own: that takes a slow disk seconds, and the uplink must not wait that long.
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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::disk::{Disk, DiskFile, Lock};
use super::position::Position;
use super::status::{SpoolStatus, add, set};

/// A disk that has not done a job after so long does not answer. Nothing else is asked of it until it has: so
/// a collector does not miss the heartbeats of whoever waits for a disk.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// What is brought to the disk, and looked at there: whatever may take a disk long that does not answer.
pub struct SyncJob {
    /// Files that were written to.
    pub files: Vec<Arc<dyn DiskFile>>,
    /// Folders in which files were made or removed.
    pub folders: Vec<PathBuf>,
    /// The position file, and what it is to say, if that is something new.
    pub position: Option<(Arc<dyn DiskFile>, Position)>,
    /// Whether this is still there.
    pub place: Place,
}

/// Where the spool is.
#[derive(Clone)]
pub struct Place {
    /// Grows each time that it is made.
    pub made: u64,
    /// The lock, and its path.
    pub lock: (Arc<dyn Lock>, PathBuf),
    /// Those of the lanes.
    pub folders: [PathBuf; 2],
}

impl Place {
    /// Has the folder been removed, or another put in its place?
    pub fn is_gone(&self, disk: &dyn Disk) -> bool {
        let (lock, path) = &self.lock;
        !lock.is_at(path) || !self.folders.iter().all(|folder| disk.is_folder(folder))
    }
}

impl SyncJob {
    fn has_work(&self) -> bool {
        !self.files.is_empty() || !self.folders.is_empty() || self.position.is_some()
    }

    /// Does all of it that can be done. The position comes last: it speaks of what is on the disk before. Says how
    /// much could not be done, and why the first of it.
    fn run(&self, disk: &dyn Disk) -> (u64, Option<io::Error>) {
        let files = self.files.iter().map(|file| file.sync());
        let folders = self.folders.iter().map(|folder| disk.sync_folder(folder));
        let position = self.position.iter().map(|(file, position)| {
            position.write(file.as_ref())?;
            file.sync()
        });
        let mut failures = files.chain(folders).chain(position).filter_map(Result::err);
        let first = failures.next();
        (u64::from(first.is_some()) + failures.count() as u64, first)
    }

    /// Does it and notes how it went.
    pub fn run_noted(&self, disk: &dyn Disk, status: &SpoolStatus) {
        if !self.has_work() {
            return;
        }
        let begin = Instant::now();
        let (failures, first) = self.run(disk);
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        set(&status.last_sync_ns, took);
        add(&status.sync_errors, failures);
        if first.is_none() {
            add(&status.syncs, 1);
        }
        let problem = |error| format!("spool: what was written may not be on the disk: {error}");
        status.set_sync_problem(first.map(problem));
    }
}

/// The thread.
pub struct Syncer {
    jobs: Sender<SyncJob>,
    is_busy: Arc<AtomicBool>,
    /// When the last job was handed over.
    begun: Option<Instant>,
    /// The place that was found to be gone last, by [`Place::made`].
    gone: Arc<AtomicU64>,
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
        let (is_busy, gone) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (busy, found_gone) = (Arc::clone(&is_busy), Arc::clone(&gone));
        let body = move || work(&to_do, disk.as_ref(), &status, (&busy, &found_gone));
        let thread = std::thread::Builder::new().name("spool-sync".into()).spawn(body)?;
        Ok(Self { jobs, is_busy, begun: None, gone, thread })
    }

    /// Is a job under way?
    pub fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    /// Has the job that is under way taken too long for a disk that still answers?
    pub fn is_stuck(&self, now: Instant) -> bool {
        let is_long = |begun| now.saturating_duration_since(begun) >= ANSWERS_WITHIN;
        self.is_busy() && self.begun.is_some_and(is_long)
    }

    /// The place that was found to be gone last, by [`Place::made`]; 0 if none was.
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Acquire)
    }

    /// Hands a job over. There must be none under way.
    pub fn hand_over(&mut self, job: SyncJob, now: Instant) {
        self.begun = Some(now);
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

fn work(
    jobs: &Receiver<SyncJob>,
    disk: &dyn Disk,
    status: &SpoolStatus,
    (is_busy, gone): (&AtomicBool, &AtomicU64),
) {
    for job in jobs {
        job.run_noted(disk, status);
        if job.place.is_gone(disk) {
            gone.store(job.place.made, Ordering::Release);
        }
        is_busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::MemoryDisk;
    use super::*;

    struct Broken;

    impl DiskFile for Broken {
        fn size(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Err(io::Error::other("on purpose"))
        }
    }

    #[test]
    fn what_fails_in_a_job_is_counted_and_holds_up_nothing_behind_it() {
        let disk = MemoryDisk::default();
        let (file, position_file) =
            (disk.create("/a".as_ref()).unwrap(), disk.create("/position".as_ref()).unwrap());
        file.write_at(b"what was written", 0).unwrap();
        let place = Place {
            made: 1,
            lock: (disk.lock("/lock".as_ref()).unwrap().into(), "/lock".into()),
            folders: ["/alerts".into(), "/events".into()],
        };
        let position = Position { generation: 1, spool_epoch: 7, ..Position::default() };
        let job = SyncJob {
            files: vec![Arc::new(Broken), file, Arc::new(Broken)],
            folders: vec!["/".into()],
            position: Some((Arc::clone(&position_file), position)),
            place,
        };
        let status = SpoolStatus::default();
        job.run_noted(&disk, &status);
        assert_eq!((status.sync_errors.into_inner(), status.syncs.into_inner()), (2, 0));
        disk.cut_power(|_| 0);
        assert_eq!(disk.content("/a".as_ref()), b"what was written");
        assert_eq!(Position::read(position_file.as_ref()).unwrap(), Some(position));
    }
}
