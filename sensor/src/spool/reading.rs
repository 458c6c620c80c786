//! What an earlier run left is read in a thread of its own: that takes a large spool many seconds, and
//! capture, detection and whatever else begins with the sensor are not to wait for it.
//!
//! Until it is read, records wait in memory, and no collector is dialled: what comes first is to be
//! delivered first. How it goes on is logged every [`SAID_EVERY`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use wire::units::Sequence;

use super::disk::{Disk, DiskFile};
use super::format::LaneName;
use super::recover::{self, Found};
use super::status::{SpoolStatus, set};

/// Time between two lines of the log.
const SAID_EVERY: Duration = Duration::from_secs(5);
/// How long the end waits for the reader: it stops at its next read.
const LAST_READ: Duration = Duration::from_secs(2);

/// What is to be read.
pub struct Task {
    pub disk: Arc<dyn Disk>,
    /// By [`LaneName`].
    pub folders: [PathBuf; 2],
    pub epoch: u64,
    /// By [`LaneName`].
    pub acked: [Sequence; 2],
    /// When what is found is too old, by the clock that is never set.
    pub expires: Instant,
    /// The disk has failed already, and it was said.
    pub has_failed: bool,
    pub status: Arc<SpoolStatus>,
    pub is_stopped: Arc<AtomicBool>,
}

impl Task {
    /// Reads both lanes. What was found when it is stopped is no good.
    pub fn run(&self) -> [Found; 2] {
        let Self { disk, epoch, expires, status, .. } = self;
        let mut progress = Progress::new(self);
        LaneName::ALL.map(|name| {
            let (folder, acked) = (&self.folders[name as usize], self.acked[name as usize]);
            let lane = (name, folder.as_path());
            recover::lane(disk.as_ref(), lane, (*epoch, acked), *expires, status, &mut progress)
                .unwrap_or_else(|error| {
                    if !self.has_failed {
                        tracing::warn!(path = %folder.display(), %error, "cannot read the spool");
                    }
                    Found::default()
                })
        })
    }
}

/// How far reading has come.
pub struct Progress<'a> {
    is_stopped: &'a AtomicBool,
    path: PathBuf,
    segments: usize,
    read: usize,
    begun: Instant,
    said: Instant,
}

impl<'a> Progress<'a> {
    fn new(task: &'a Task) -> Self {
        let count =
            |folder| recover::segments_in(task.disk.as_ref(), folder).map_or(0, |it| it.len());
        let now = Instant::now();
        Self {
            is_stopped: &task.is_stopped,
            path: task.folders[0].parent().map(Into::into).unwrap_or_default(),
            segments: task.folders.iter().map(|folder| count(folder)).sum(),
            read: 0,
            begun: now,
            said: now,
        }
    }

    /// A segment is read.
    pub fn note_segment(&mut self) {
        self.read += 1;
        if self.said.elapsed() >= SAID_EVERY {
            self.said = Instant::now();
            tracing::info!(
                path = %self.path.display(),
                read = self.read,
                segments = self.segments,
                seconds = self.begun.elapsed().as_secs(),
                "reading what an earlier run left in the spool; records wait in memory meanwhile"
            );
        }
    }

    /// Nobody waits for it any more.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// `file`, which fails once nobody waits any more.
    pub fn watch<'f>(&'f self, file: &'f dyn DiskFile) -> impl DiskFile + 'f {
        Stoppable { file, is_stopped: self.is_stopped }
    }
}

struct Stoppable<'f> {
    file: &'f dyn DiskFile,
    is_stopped: &'f AtomicBool,
}

impl DiskFile for Stoppable<'_> {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.is_stopped.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// The thread.
pub struct Reading {
    found: Receiver<[Found; 2]>,
    is_stopped: Arc<AtomicBool>,
    status: Arc<SpoolStatus>,
    thread: JoinHandle<()>,
}

impl Reading {
    /// Starts it.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(task: Task) -> io::Result<Self> {
        let (tell, found) = bounded(1);
        let (is_stopped, status) = (Arc::clone(&task.is_stopped), Arc::clone(&task.status));
        set(&status.is_reading, 1);
        let body = move || {
            // Nobody waits any more where the sensor has stopped.
            let _ = tell.send(task.run());
        };
        let thread = std::thread::Builder::new().name("spool-read".into()).spawn(body)?;
        Ok(Self { found, is_stopped, status, thread })
    }

    /// What was found, once all is read.
    pub fn take(&self) -> Option<[Found; 2]> {
        let found = match self.found.try_recv() {
            Ok(found) => found,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => {
                tracing::error!(
                    "reading the spool panicked, as the message above says; what an earlier run left there \
                     stays for the next start"
                );
                Default::default()
            }
        };
        set(&self.status.is_reading, 0);
        Some(found)
    }

    /// Ends it, whatever it has found.
    pub fn stop(self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + LAST_READ;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.thread.is_finished() {
            // It hangs in the kernel, and ends with the process.
            tracing::warn!("the disk of the spool does not answer");
        }
    }
}
