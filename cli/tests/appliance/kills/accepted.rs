//! What the sensor's spool accepted, seen from outside.
//!
//! The spool accepts a record by writing it whole into a segment: from then on the end of the process costs
//! nothing, as the kernel has what was written. Each segment gets a second name as soon as it is there, so
//! that what was in it can be read although the sensor removes it once it is acknowledged. It is read here by
//! code of its own, after the description in `sensor/src/spool/format.rs`.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

/// The folders of the spool's two streams.
pub const LANES: [&str; 2] = ["alerts", "events"];
/// Far less than a segment lives: what is in it has to reach the collector's disk first.
const LOOK: Duration = Duration::from_millis(2);

/// Who wrote a record: the run of the sensor, and its number among the events of that run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    pub run: Arc<str>,
    pub number: u64,
}

/// Names of runs, each kept once.
#[derive(Debug, Default)]
pub struct Runs(HashMap<String, Arc<str>>);

impl Runs {
    /// Reads the id of an event line.
    ///
    /// # Panics
    /// If it has none.
    pub fn id_of(&mut self, line: &[u8]) -> EventId {
        const MARK: &[u8] = b"\"event_id\":\"";
        // It stands near the end.
        let begin = line.windows(MARK.len()).rposition(|part| part == MARK).unwrap() + MARK.len();
        let length = line[begin..].iter().position(|byte| *byte == b'"').unwrap();
        let text = std::str::from_utf8(&line[begin..begin + length]).unwrap();
        let (run, number) = text.rsplit_once('-').unwrap();
        let run = self.0.entry(run.to_owned()).or_insert_with(|| run.into());
        EventId { run: Arc::clone(run), number: number.parse().unwrap() }
    }
}

/// A fingerprint of an event line.
pub fn fingerprint(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

/// A record that was whole in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// An index of [`LANES`].
    pub lane: usize,
    /// Its number in the lane.
    pub sequence: u64,
    /// The number with which its run began.
    pub run_begins: u64,
    /// Of its line.
    pub fingerprint: u64,
}

/// All that was accepted.
#[derive(Debug, Default)]
pub struct AllAccepted {
    pub records: HashMap<EventId, Accepted>,
    pub runs: Runs,
    by_number: HashMap<(usize, u64), EventId>,
}

impl AllAccepted {
    /// Takes in the whole records of a segment.
    ///
    /// # Panics
    /// If a number was given to two records, or a record has two numbers.
    fn read(&mut self, path: &Path) {
        let bytes = fs::read(path).unwrap();
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        // One that was killed before it had a header has nothing.
        if bytes.len() < 64 {
            return;
        }
        assert_eq!(&bytes[..8], b"RWSPOOL1", "{}", path.display());
        let (lane, run_begins) = (usize::from(bytes[10]), u64_at(40));
        let (mut at, mut last) = (64, 0);
        while let Some(len) = whole_record(&bytes[at..]) {
            let (sequence, line) = (u64_at(at + 16), &bytes[at + 32..at + len]);
            at += len;
            // Otherwise it is left of an attempt that failed on a full disk and was made again.
            if sequence > last {
                last = sequence;
                let fingerprint = fingerprint(line);
                self.add(line, Accepted { lane, sequence, run_begins, fingerprint });
            }
        }
    }

    fn add(&mut self, line: &[u8], record: Accepted) {
        let id = self.runs.id_of(line);
        let place = (record.lane, record.sequence);
        let other = self.by_number.entry(place).or_insert_with(|| id.clone());
        assert_eq!(*other, id, "the number {place:?} was given to both");
        let known = self.records.entry(id.clone()).or_insert_with(|| record.clone());
        assert_eq!(*known, record, "{id:?} was accepted twice");
    }
}

/// The length of the record at the beginning of `bytes`, if it is whole.
fn whole_record(bytes: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = 32 + word(4)? as usize;
    let covered = bytes.get(4..len)?;
    (len > 32 && word(0)? == crc32c::crc32c(covered)).then_some(len)
}

/// Looks after the segments of a spool.
pub struct Witness {
    folders: [PathBuf; 2],
    /// Segments to be read.
    complete: Option<mpsc::Sender<PathBuf>>,
    copies: AtomicU64,
    is_over: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
    reading: Option<JoinHandle<AllAccepted>>,
}

impl Witness {
    /// Begins before the sensor does. `kept` is made, and must be on the disk of the spool.
    pub fn start(spool: &Path, kept: &Path) -> Self {
        fs::create_dir_all(kept).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let (complete, segments) = mpsc::channel();
        let folders = LANES.map(|lane| spool.join(lane));
        let mut watch = Watch {
            folders: folders.clone(),
            kept: kept.to_owned(),
            held: HashMap::new(),
            count: 0,
            complete: complete.clone(),
        };
        let watching = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                watch.look();
                thread::sleep(LOOK);
            }
            watch.finish();
        });
        let reading = thread::spawn(move || {
            let mut all = AllAccepted::default();
            for path in segments {
                all.read(&path);
                fs::remove_file(path).unwrap();
            }
            all
        });
        Self {
            folders,
            complete: Some(complete),
            copies: AtomicU64::new(0),
            is_over,
            watching: Some(watching),
            reading: Some(reading),
        }
    }

    /// Reads what a sensor that was killed left, before the next one cuts off of it what is torn. Copies go to a
    /// folder that has room, and are removed.
    pub fn copy(&self, room: &str) {
        for folder in &self.folders {
            // The first sensor may have been killed before it made it.
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.map(Result::unwrap) {
                let number = self.copies.fetch_add(1, Ordering::Relaxed);
                let copy = PathBuf::from(format!("{room}/copy-{number}"));
                fs::copy(entry.path(), &copy).unwrap();
                self.complete.iter().for_each(|complete| complete.send(copy.clone()).unwrap());
            }
        }
    }

    /// Ends, and gives what was accepted. The sensor must have ended before.
    pub fn stop(mut self) -> AllAccepted {
        self.complete = None;
        self.is_over.store(true, Ordering::Relaxed);
        self.watching.take().unwrap().join().unwrap();
        self.reading.take().unwrap().join().unwrap()
    }
}

/// A test that fails ends it before the disk goes.
impl Drop for Witness {
    fn drop(&mut self) {
        self.complete = None;
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.watching.take().map(JoinHandle::join);
        let _ = self.reading.take().map(JoinHandle::join);
    }
}

struct Watch {
    folders: [PathBuf; 2],
    kept: PathBuf,
    /// Second names, by the number of the file.
    held: HashMap<u64, PathBuf>,
    count: u64,
    /// Segments that the sensor is done with.
    complete: mpsc::Sender<PathBuf>,
}

impl Watch {
    fn look(&mut self) {
        for lane in 0..self.folders.len() {
            let Ok(entries) = fs::read_dir(&self.folders[lane]) else { continue };
            for path in entries.map_while(Result::ok).map(|entry| entry.path()) {
                self.hold(&path);
            }
        }
        let complete = self.held.extract_if(|_, path| is_last_name(path));
        complete.for_each(|(_, path)| self.complete.send(path).unwrap());
    }

    /// Gives a file that is new a second name. One that vanishes meanwhile is missed: its records then are
    /// stored without having been seen here, which the comparison does not let pass.
    fn hold(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        if self.held.contains_key(&metadata.ino()) {
            return;
        }
        let name = self.kept.join(self.count.to_string());
        if fs::hard_link(path, &name).is_ok() {
            self.count += 1;
            self.held.insert(fs::metadata(&name).unwrap().ino(), name);
        }
    }

    fn finish(mut self) {
        self.look();
        self.held.drain().for_each(|(_, path)| self.complete.send(path).unwrap());
    }
}

/// Has the sensor removed its own name?
fn is_last_name(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.nlink() == 1)
}

/// Does the event go first, as alerts do? Of a line that no segment had.
pub fn lane_of(line: &[u8]) -> usize {
    let event: Value = serde_json::from_slice(line).unwrap();
    usize::from(!matches!(event["event_type"].as_str(), Some("alert" | "anomaly" | "audit")))
}
