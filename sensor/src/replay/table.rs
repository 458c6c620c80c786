//! What the workers share: the file, the pieces of it that go round, and what they told.
//!
//! ```text
//!   free ──read──▶ (at its turn) scan ──deal──▶ dealt ──analysed by every worker──▶ free
//! ```
//!
//! There is no thread but the workers: each does the next thing that can be done, and waits only if
//! there is none. Reading, dealing and analysing go on side by side; only scanning, which is the least
//! of it, is done by one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::ReplayError;
use super::clock::{Clock, Meeting};
use super::merge::{Merge, Told};
use crate::file::{self, CaptureFile, Chunk, Pieces};
use crate::filter::{FileFilter, FilterError};

/// Pieces that go round, for each worker: one that it reads, one that it works on, and some in
/// between, so that others go on while one merges. Those that were used last are used next, so that as a rule
/// a few are in the cache and the others take no memory. No more are ever made, so that memory is bounded:
/// about 0.5 MiB each, and 3 MiB where records are as long or as short as can be.
const PIECES: usize = 16;

/// Frames whose headers are on their way while one is looked at.
pub(super) const AHEAD: usize = 8;

/// A piece of the file with what was found in it.
#[derive(Default)]
pub(super) struct Part {
    pub(super) chunk: Chunk,
    pub(super) meetings: Vec<Meeting>,
    /// Whose frames they are. Not used by one worker alone.
    pub(super) shares: Shares,
}

/// Of each worker the indexes of its frames in a chunk.
#[derive(Default)]
pub(super) struct Shares {
    /// Room for a whole chunk for each worker, one behind the other.
    indexes: Vec<u32>,
    counts: Vec<usize>,
    chunk_len: usize,
}

impl Shares {
    /// Deals all frames of a chunk.
    pub(super) fn deal(&mut self, chunk: &Chunk, workers: usize) {
        self.chunk_len = chunk.len();
        self.indexes.resize(self.indexes.len().max(workers * chunk.len()), 0);
        self.counts.clear();
        self.counts.resize(workers, 0);
        for (index, frame) in chunk.frames().enumerate() {
            chunk.prefetch(index + AHEAD);
            let worker = file::worker_of_frame(&frame, workers);
            let count = &mut self.counts[worker];
            // A chunk has far fewer frames than a `u32` can count.
            self.indexes[worker * self.chunk_len + *count] = index as u32;
            *count += 1;
        }
    }

    /// The indexes of one worker's frames, in order.
    pub(super) fn of(&self, worker: usize) -> &[u32] {
        let count = self.counts.get(worker).map_or(0, |count| *count);
        self.indexes.get(worker * self.chunk_len..).map_or(&[], |rest| &rest[..count])
    }
}

/// The file, and what its scan goes on from.
pub(super) struct Front {
    pub(super) file: CaptureFile,
    /// Which frames are looked at; `None`: all.
    pub(super) filter: Option<FileFilter>,
    /// Why the filter could not go on: the file ends there.
    pub(super) fault: Option<FilterError>,
    pub(super) clock: Clock,
}

impl Front {
    pub(super) fn new(file: CaptureFile, filter: Option<FileFilter>) -> Self {
        Self { file, filter, fault: None, clock: Clock::default() }
    }

    /// Takes out of the next chunk what the filter does not let in. As with a ring, that was not there:
    /// it is in no counter, and the clock does not see it.
    pub(super) fn filter(&mut self, chunk: &mut Chunk) {
        if let Some(filter) = &mut self.filter {
            self.fault = chunk.retain(|frame| filter.lets_in(frame)).err();
        }
    }

    fn has_ended(&self) -> bool {
        self.fault.is_some() || self.file.has_ended()
    }
}

/// Shared by all workers.
pub(super) struct Table {
    state: Mutex<State>,
    changed: Condvar,
    workers: usize,
}

struct State {
    /// Not there while a worker scans.
    front: Option<Box<Front>>,
    /// Where a file is read on; none for a stream, which is read by the one who scans it.
    pieces: Option<Pieces>,
    /// Pieces that were given out to be read.
    claimed: u64,
    /// Pieces that were scanned.
    scanned: u64,
    has_ended: bool,
    free: Vec<Part>,
    /// By number: pieces that some worker has yet to take, and how many have.
    dealt: BTreeMap<u64, (Arc<Part>, usize)>,
    /// Of each worker: what it told at meetings, not merged yet.
    told: Vec<VecDeque<(Meeting, Told)>>,
    /// Not there while a worker merges.
    merge: Option<Merge>,
    waiting: usize,
    is_worker_gone: bool,
}

/// What a worker is to do next.
pub(super) enum Task {
    /// Read this piece, which has this number, and [hold](Seat::hold) it.
    Read(u64, file::Piece, Part),
    /// Read on and scan.
    ReadOn(Box<Front>, Part),
    /// Scan the piece that was read.
    Scan(Box<Front>, Part),
    /// Analyse one's share.
    Analyse(Arc<Part>),
    /// Nothing is left.
    End,
}

/// A worker's place at the table.
pub(super) struct Seat<'a> {
    table: &'a Table,
    worker: usize,
    /// The piece that was read, with its number, until its turn comes.
    read: Option<(u64, Part)>,
    /// Number of the next piece to analyse.
    next: u64,
}

impl Table {
    pub(super) fn new(front: Front, merge: Merge, workers: usize) -> Self {
        let state = State {
            pieces: front.file.pieces(),
            front: Some(Box::new(front)),
            claimed: 0,
            scanned: 0,
            has_ended: false,
            free: (0..workers * PIECES).map(|_| Part::default()).collect(),
            dealt: BTreeMap::new(),
            told: (0..workers).map(|_| VecDeque::new()).collect(),
            merge: Some(merge),
            waiting: 0,
            is_worker_gone: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), workers }
    }

    pub(super) const fn seat(&self, worker: usize) -> Seat<'_> {
        Seat { table: self, worker, read: None, next: 0 }
    }

    /// When all workers are gone: what is to be ended.
    pub(super) fn clear(self) -> Result<(Box<Front>, Merge), ReplayError> {
        let state = self.state.into_inner().map_err(|_| ReplayError::WorkerGone)?;
        state.front.zip(state.merge).ok_or(ReplayError::WorkerGone)
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, ReplayError> {
        self.state.lock().map_err(|_| ReplayError::WorkerGone)
    }

    /// Something changed that others may wait for.
    fn announce(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }
}

impl Drop for Seat<'_> {
    /// Nobody is to wait for a worker that panicked.
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Ok(mut state) = self.table.state.lock() {
                state.is_worker_gone = true;
            }
            // Whoever finds the state poisoned ends as well.
            self.table.changed.notify_all();
        }
    }
}

impl Seat<'_> {
    /// What to do next; waits until there is something.
    pub(super) fn next_task(&mut self) -> Result<Task, ReplayError> {
        let mut state = self.table.lock()?;
        loop {
            if state.is_worker_gone {
                return Err(ReplayError::WorkerGone);
            }
            if let Some(task) = self.task(&mut state) {
                return Ok(task);
            }
            state.waiting += 1;
            state = self.table.changed.wait(state).map_err(|_| ReplayError::WorkerGone)?;
            state.waiting -= 1;
        }
    }

    fn task(&mut self, state: &mut State) -> Option<Task> {
        let is_turn = self.read.as_ref().is_some_and(|(number, _)| *number == state.scanned);
        if state.has_ended {
            self.read = None;
        } else if is_turn && let Some(front) = state.front.take() {
            let (_, part) = self.read.take()?;
            return Some(Task::Scan(front, part));
        }
        if let Some((part, taken)) = state.dealt.get_mut(&self.next) {
            *taken += 1;
            let (part, is_last) = (Arc::clone(part), *taken == self.table.workers);
            if is_last {
                state.dealt.remove(&self.next);
            }
            self.next += 1;
            return Some(Task::Analyse(part));
        }
        if state.has_ended {
            return (self.next == state.scanned).then_some(Task::End);
        }
        self.claim(state)
    }

    /// A piece to be read, if there is a free place to read it into.
    fn claim(&mut self, state: &mut State) -> Option<Task> {
        if self.read.is_some() || state.free.is_empty() {
            return None;
        }
        match &mut state.pieces {
            Some(pieces) => {
                let (number, piece) = (state.claimed, pieces.claim());
                state.claimed += 1;
                Some(Task::Read(number, piece, state.free.pop()?))
            }
            None => {
                let front = state.front.take()?;
                Some(Task::ReadOn(front, state.free.pop()?))
            }
        }
    }

    /// Keeps a piece that was read until it is its turn to be scanned.
    pub(super) fn hold(&mut self, number: u64, part: Part) {
        self.read = Some((number, part));
    }

    /// The next piece was scanned: others may scan on. Gives its number.
    pub(super) fn pass_on(&self, front: Box<Front>) -> Result<u64, ReplayError> {
        let mut state = self.table.lock()?;
        let number = state.scanned;
        state.scanned += 1;
        state.has_ended = front.has_ended();
        state.front = Some(front);
        self.table.announce(&state);
        Ok(number)
    }

    /// The piece with this number is ready to be analysed by all.
    pub(super) fn hand_out(&self, number: u64, part: Part) -> Result<(), ReplayError> {
        let part = Arc::new(part);
        let mut state = self.table.lock()?;
        state.dealt.insert(number, (part, 0));
        self.table.announce(&state);
        Ok(())
    }

    /// One's share of a piece was analysed. Whoever completes a meeting merges it, and all that are
    /// completed meanwhile; the others go on.
    pub(super) fn hand_in(
        &self,
        part: Arc<Part>,
        told: Vec<(Meeting, Told)>,
    ) -> Result<(), ReplayError> {
        let mut state = self.table.lock()?;
        if let Some(part) = Arc::into_inner(part) {
            state.free.push(part);
            self.table.announce(&state);
        }
        if told.is_empty() {
            return Ok(());
        }
        state.told[self.worker].extend(told);
        let Some(mut merge) = state.merge.take() else { return Ok(()) };
        while let Some((meeting, told)) = state.complete_meeting() {
            drop(state);
            merge.meet(&meeting, told);
            state = self.table.lock()?;
        }
        state.merge = Some(merge);
        Ok(())
    }
}

impl State {
    /// The next meeting, if all workers have been there. All meet at the same places of the file.
    fn complete_meeting(&mut self) -> Option<(Meeting, Vec<Told>)> {
        if self.told.iter().any(VecDeque::is_empty) {
            return None;
        }
        let told = self.told.iter_mut().filter_map(VecDeque::pop_front);
        let (meetings, told): (Vec<_>, Vec<_>) = told.unzip();
        meetings.first().map(|meeting| (*meeting, told))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::config::EventOutput;
    use crate::detect::{Detector, DetectorConfig};
    use crate::interfaces::InterfaceNames;
    use crate::output::Output;
    use crate::recorder::{Recorder, Settings};
    use packet::frame::LinkType;

    /// A table for two workers at a stream without frames.
    fn table() -> Table {
        let header = [[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0], [0; 8], [0, 0, 0, 0, 1, 0, 0, 0]];
        let file = CaptureFile::from_reader(Cursor::new(header.concat()), "test").unwrap();
        let settings = Settings {
            sensor: String::new(),
            boot_epoch: 0,
            interfaces: Arc::new(InterfaceNames::new([("test", LinkType::ETHERNET)])),
            connections_per_second: 0,
            flows_per_second: 0,
            flow_key: 0,
            writers: 1,
        };
        let output = Output::open(&EventOutput::None).unwrap();
        let recorder = Recorder::new(settings, output, None, Arc::default());
        let merge = Merge::new(Detector::new(DetectorConfig::default()), recorder, 0);
        Table::new(Front::new(file, None), merge, 2)
    }

    /// What a worker that waits finds when the other one panics in `work`.
    fn found_beside(work: fn(&Table)) -> Result<Task, ReplayError> {
        // Leaked, so that a thread that waits for ever cannot hold up the test.
        let table: &'static Table = Box::leak(Box::new(table()));
        let (sender, receiver) = mpsc::channel();
        let (mut first, mut second) = (table.seat(0), table.seat(1));
        let task = first.next_task().unwrap();
        assert!(matches!(task, Task::ReadOn(..)));
        thread::spawn(move || drop(sender.send(second.next_task())));
        while table.state.lock().unwrap().waiting == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let worker = thread::spawn(move || {
            let _seat = first;
            work(table);
        });
        assert!(worker.join().is_err());
        receiver.recv_timeout(Duration::from_secs(20)).expect("it does not wait for ever")
    }

    #[test]
    fn nobody_waits_for_a_worker_that_panicked() {
        let found = found_beside(|_| panic!("while it works"));
        assert!(matches!(found, Err(ReplayError::WorkerGone)));
        let found = found_beside(|table| {
            let _state = table.state.lock().unwrap();
            panic!("while nobody else may look");
        });
        assert!(matches!(found, Err(ReplayError::WorkerGone)));
    }
}
