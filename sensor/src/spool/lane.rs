//! One lane: records in segments on the disk, and behind them those that wait in memory.
//!
//! ```text
//!     segments, oldest first              waiting
//!   ┌──────────┬──────────┬──────────┐  ┌─────────────┐
//!   │ 1 … 90   │ 91 … 170 │ 171 …    │  │ 181 182 183 │ ◀── push
//!   └──────────┴──────────┴──────────┘  └─────────────┘
//!        acked ▲      cursor ▲      flush ◀──┘
//! ```
//!
//! A record is pushed into memory and flushed to the disk in the same turn of the uplink; it is sent from
//! where it is. Where there is no disk, or the disk fails, all that waits is kept in memory.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::message::UNUSED;
use wire::records::{PushError, RecordBatchWriter, RecordKind};
use wire::units::{Sequence, UnixNanos};

use super::disk::{Disk, DiskFile};
use super::format::{LaneName, Records, SEGMENT_HEADER, SegmentHeader, SpooledRecord, Step};
use super::runs::{Hole, Holes, Runs};
use crate::uplink::LossReason;

/// What a waiting record costs beside its text, in bytes: its entry in the queue, and what the allocator
/// keeps beside the text.
pub const OVERHEAD: usize = size_of::<Waiting>() + 16;
/// Ended segments that wait to be brought to the disk at most: each is an open file.
const MOST_UNSYNCED: usize = 32;
/// Bytes that are written at once.
const WRITE: usize = 256 << 10;

/// A segment on the disk.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// No record in it has a lower number.
    pub first: Sequence,
    /// Its last record.
    pub last: Sequence,
    /// Bytes, up to the end of its last record.
    pub bytes: u64,
    /// When its first record was taken.
    pub oldest: UnixNanos,
    /// When its records are too old, by the clock that is never set, whatever the other one says.
    pub expires: Instant,
    /// Of an earlier run: when its last record was taken, or later. None if that is not known.
    pub newest: Option<UnixNanos>,
}

/// A record that waits in memory.
#[derive(Debug)]
struct Waiting {
    sequence: Sequence,
    kind: RecordKind,
    taken_at: UnixNanos,
    json: Vec<u8>,
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.json.capacity() + OVERHEAD
    }

    fn as_spooled(&self) -> SpooledRecord<'_> {
        let Self { sequence, kind, taken_at, json } = self;
        SpooledRecord { sequence: *sequence, kind: *kind, taken_at: *taken_at, json }
    }
}

/// The segment that is written.
struct Active {
    file: Arc<dyn DiskFile>,
    is_dirty: bool,
}

/// Where sending has come to on the disk.
struct Reader {
    /// Its segment.
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    records: Records,
}

/// Records that were put into a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Filled {
    /// The first of them.
    pub first: Sequence,
    /// Holes before it that the collector was not told of on this connection.
    pub holes: Vec<Hole>,
}

/// How segments are written.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// The spool that they belong to.
    pub spool_epoch: u64,
    /// A segment of so many bytes is followed by another.
    pub segment_bytes: u64,
    /// A record is too old after so long.
    pub max_age: Duration,
    /// The clock that is never set.
    pub now: Instant,
}

/// What a batch has: records without a hole in their numbers.
#[derive(Clone, Copy)]
struct Taken {
    first: Sequence,
    last: Sequence,
}

impl Taken {
    fn add(taken: &mut Option<Self>, number: Sequence) {
        let first = taken.map_or(number, |taken| taken.first);
        *taken = Some(Self { first, last: number });
    }
}

/// See the module.
pub struct Lane {
    name: LaneName,
    segments: VecDeque<Segment>,
    /// The last of `segments` is written to.
    active: Option<Active>,
    /// Ended segments that were not brought to the disk yet.
    unsynced: Vec<Arc<dyn DiskFile>>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// All that is neither acknowledged nor lost.
    pending: Runs,
    holes: Holes,
    /// Number of the next record.
    next: Sequence,
    /// Number of the first record of this run.
    begin: Sequence,
    /// Everything up to this one is acknowledged.
    acked: Sequence,
    /// Everything before this one was sent on this connection.
    cursor: Sequence,
    /// The collector was told on this connection of everything up to this one.
    told: Sequence,
    /// The highest number that an earlier run or this one may have sent.
    sent: Sequence,
    reader: Option<Reader>,
    /// Bytes of all segments.
    disk_bytes: u64,
    /// What is written next.
    buffer: Vec<u8>,
}

impl Lane {
    /// An empty lane whose next record has this number.
    pub fn new(name: LaneName, next: Sequence) -> Self {
        let before = Sequence(next.0.saturating_sub(1));
        Self {
            name,
            segments: VecDeque::new(),
            active: None,
            unsynced: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            pending: Runs::default(),
            holes: Holes::default(),
            next,
            begin: next,
            acked: Sequence(0),
            cursor: Sequence(1),
            told: Sequence(0),
            sent: before,
            reader: None,
            disk_bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// Takes over what recovery found, in ascending order. `acked` is what the position file says.
    pub fn restore(&mut self, acked: Sequence, segments: VecDeque<Segment>, found: Runs) {
        self.disk_bytes = segments.iter().map(|segment| segment.bytes).sum();
        (self.segments, self.pending) = (segments, found);
        (self.acked, self.told) = (acked, acked);
        self.cursor = acked.next();
    }

    /// Remembers a hole that recovery found.
    pub fn note_hole(&mut self, hole: Hole) {
        self.holes.push(hole);
    }

    /// Takes over what came before it was known how this lane goes on: records and holes of an `early` lane,
    /// whose numbers begin at 1.
    pub fn follow_with(&mut self, early: Self) {
        let shift = self.next.0 - 1;
        self.next = Sequence(early.next.0 + shift);
        self.pending.extend(early.pending, shift);
        self.holes.extend(early.holes, shift);
        self.waiting_bytes += early.waiting_bytes;
        self.waiting.extend(early.waiting.into_iter().map(|mut record| {
            record.sequence.0 += shift;
            record
        }));
    }

    /// Takes a record.
    pub fn push(&mut self, kind: RecordKind, json: Vec<u8>, taken_at: UnixNanos) {
        let record = Waiting { sequence: self.next, kind, taken_at, json };
        self.pending.push(self.next);
        self.next = self.next.next();
        self.waiting_bytes += record.bytes();
        self.waiting.push_back(record);
    }

    /// Writes what waits. Whatever could not be written still waits, and the call may be made again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn flush(&mut self, disk: &dyn Disk, folder: &Path, writing: &Writing) -> io::Result<()> {
        let Writing { spool_epoch, segment_bytes, max_age, now } = *writing;
        while let Some(next) = self.waiting.front() {
            let (first, taken_at) = (next.sequence, next.taken_at);
            let is_full = self.segments.back().is_some_and(|it| it.bytes >= segment_bytes);
            if is_full || self.active.is_none() {
                self.begin_segment(disk, folder, first, now)?;
            }
            let (Some(segment), Some(active)) = (self.segments.back_mut(), &mut self.active) else {
                return Ok(());
            };
            self.buffer.clear();
            if segment.bytes == 0 {
                let (lane, made_at, run_begins) = (self.name, taken_at, self.begin);
                let header = SegmentHeader { spool_epoch, lane, first, made_at, run_begins };
                self.buffer.extend_from_slice(&header.to_bytes());
            }
            let mut count = 0;
            for record in &self.waiting {
                let bytes = segment.bytes + self.buffer.len() as u64;
                if count > 0 && (self.buffer.len() >= WRITE || bytes >= segment_bytes) {
                    break;
                }
                record.as_spooled().write(&mut self.buffer);
                count += 1;
            }
            active.is_dirty = true;
            active.file.write_at(&self.buffer, segment.bytes)?;
            if segment.bytes == 0 {
                (segment.first, segment.oldest) = (first, taken_at);
            }
            segment.expires = now + max_age;
            segment.bytes += self.buffer.len() as u64;
            self.disk_bytes += self.buffer.len() as u64;
            for record in self.waiting.drain(..count) {
                self.waiting_bytes -= record.bytes();
                segment.last = record.sequence;
            }
        }
        Ok(())
    }

    /// Begins a segment.
    fn begin_segment(
        &mut self,
        disk: &dyn Disk,
        folder: &Path,
        first: Sequence,
        now: Instant,
    ) -> io::Result<()> {
        let path = folder.join(format!("{:020}.seg", first.0));
        let file = disk.create(&path)?;
        self.end_segment();
        // One in which nothing could be written: it may be the very file that was made now.
        while let Some(empty) = self.segments.pop_back_if(|segment| segment.bytes == 0) {
            if empty.path != path {
                // What stays of it is removed at the next start.
                let _ = disk.remove(&empty.path);
            }
        }
        self.active = Some(Active { file, is_dirty: true });
        let last = Sequence(first.0 - 1);
        let oldest = UnixNanos(0);
        let (expires, newest) = (now, None);
        self.segments.push_back(Segment { path, first, last, bytes: 0, oldest, expires, newest });
        Ok(())
    }

    /// Puts the records that are to be sent next into `batch`: as many as it takes and as have numbers
    /// without a hole. `None` if there are none. The number says how many turned out to be damaged on the
    /// disk; they are lost.
    ///
    /// # Errors
    /// A segment cannot be read. The call may be made again.
    pub fn fill(
        &mut self,
        disk: Option<&dyn Disk>,
        batch: &mut RecordBatchWriter,
    ) -> (io::Result<Option<Filled>>, u64) {
        let mut damaged = 0;
        let mut taken = None;
        let read =
            disk.map_or(Ok(()), |disk| self.fill_from_disk(disk, batch, &mut taken, &mut damaged));
        if read.is_ok() && !self.has_unsent_on_disk() {
            self.fill_from_memory(batch, &mut taken);
        }
        let Some(Taken { first, last }) = taken else { return (read.map(|()| None), damaged) };
        let (begin, end) = (self.told.next(), self.acked);
        let elsewhere = (begin <= end).then_some(Hole { first: begin, last: end, reason: UNUSED });
        let holes = self.holes.between(self.told.max(end), first).copied();
        let holes = elsewhere.into_iter().chain(holes).collect();
        self.sent = self.sent.max(last);
        self.told = last;
        // What failed is tried again at the next call.
        (Ok(Some(Filled { first, holes })), damaged)
    }

    fn fill_from_disk(
        &mut self,
        disk: &dyn Disk,
        batch: &mut RecordBatchWriter,
        taken: &mut Option<Taken>,
        damaged: &mut u64,
    ) -> io::Result<()> {
        while self.has_unsent_on_disk() {
            let at = self.segments.partition_point(|segment| segment.last < self.cursor);
            let Some(segment) = self.segments.get(at) else { break };
            let (end, last) = (segment.bytes, segment.last);
            let reader = match &mut self.reader {
                Some(reader) if reader.path == segment.path => reader,
                place => {
                    let is_last = at + 1 == self.segments.len();
                    let file = match &self.active {
                        Some(active) if is_last => Arc::clone(&active.file),
                        _ => disk.open(&segment.path)?,
                    };
                    let begin = SEGMENT_HEADER as u64;
                    let records = Records::new(begin, end, Sequence(self.cursor.0 - 1));
                    place.insert(Reader { path: segment.path.clone(), file, records })
                }
            };
            reader.records.grown_to(end);
            let sequence = match reader.records.next(reader.file.as_ref())? {
                Step::End(_) => {
                    // What should have been there is damaged.
                    let hole = (self.cursor, last);
                    self.reader = None;
                    self.cursor = last.next();
                    *damaged += self.lose(hole.0, hole.1, LossReason::SpoolCorrupt);
                    continue;
                }
                // It was sent from memory before it was written.
                Step::Record { record, .. } if record.sequence < self.cursor => continue,
                Step::Record { record, .. } => {
                    let is_next = taken.is_none_or(|it| it.last.next() == record.sequence);
                    let pushed = is_next.then(|| batch.try_push(record.kind, record.json));
                    if !matches!(pushed, Some(Ok(()))) {
                        // `push` refused what is too long, so the batch is full or there is a hole.
                        reader.records.put_back();
                        return Ok(());
                    }
                    record.sequence
                }
            };
            let before = Sequence(sequence.0 - 1);
            let hole = (self.cursor, before);
            Taken::add(taken, sequence);
            self.cursor = sequence.next();
            *damaged += self.lose(hole.0, hole.1, LossReason::SpoolCorrupt);
        }
        Ok(())
    }

    fn fill_from_memory(&mut self, batch: &mut RecordBatchWriter, taken: &mut Option<Taken>) {
        let at = self.waiting.partition_point(|record| record.sequence < self.cursor);
        for record in self.waiting.range(at..) {
            let is_next = taken.is_none_or(|it| it.last.next() == record.sequence);
            match is_next.then(|| batch.try_push(record.kind, &record.json)) {
                Some(Ok(())) => {}
                Some(Err(PushError::BatchFull | PushError::TooLong { .. })) | None => break,
            }
            Taken::add(taken, record.sequence);
            self.cursor = record.sequence.next();
        }
    }

    /// Gives up what is pending between two numbers, both included.
    fn lose(&mut self, first: Sequence, last: Sequence, reason: LossReason) -> u64 {
        if first > last {
            return 0;
        }
        let lost = self.pending.remove(first, last);
        if lost > 0 {
            self.holes.push(Hole { first, last, reason: reason.name() });
        }
        lost
    }

    /// Everything up to `through` is stored by a collector. Says how many records that settles, or
    /// nothing if so much was never sent.
    pub fn acknowledge(&mut self, through: Sequence, disk: Option<&dyn Disk>) -> Option<u64> {
        if through > self.sent {
            return None;
        }
        if through > self.acked {
            self.acked = through;
            self.cursor = self.cursor.max(through.next());
            self.told = self.told.max(through);
            self.holes.forget_through(through);
        }
        let settled = self.pending.remove_through(through);
        while self.waiting.front().is_some_and(|record| record.sequence <= through) {
            self.pop_waiting();
        }
        while let (Some(disk), Some(segment)) = (disk, self.segments.front())
            && segment.last <= through
            && !(self.active.is_some() && self.segments.len() == 1)
        {
            self.remove_oldest(disk);
        }
        Some(settled)
    }

    /// A collector that has everything up to `mark` of this spool is connected. What another one has beyond
    /// that it will not get, and is not to miss.
    pub fn meet(&mut self, mark: Sequence) {
        self.told = mark.min(self.acked);
    }

    /// Everything that is not acknowledged has to be sent (again).
    pub fn rewind(&mut self) {
        self.cursor = self.acked.next();
        self.told = self.acked;
        self.reader = None;
    }

    /// Lets the next record have a number above this one, which a collector has already.
    pub fn skip_beyond(&mut self, number: Sequence) {
        self.next = self.next.max(number.next());
        self.sent = self.sent.max(number);
    }

    /// Gives up the oldest segment. Says how many records are lost with it, or nothing if there is no
    /// segment.
    pub fn drop_oldest(&mut self, disk: &dyn Disk, reason: LossReason) -> Option<u64> {
        let &Segment { first, last, .. } = self.segments.front()?;
        self.remove_oldest(disk);
        Some(self.lose(first, last, reason))
    }

    /// Gives up the segment that is to be sent next. Says how many records are lost with it.
    pub fn drop_unreadable(&mut self, disk: &dyn Disk, reason: LossReason) -> u64 {
        let at = self.segments.partition_point(|segment| segment.last < self.cursor);
        let Some(segment) = self.segments.remove(at) else { return 0 };
        if at == self.segments.len() {
            self.end_segment();
        }
        self.reader = None;
        self.disk_bytes -= segment.bytes;
        // What cannot be read may not be removed either; it is found again at the next start.
        let _ = disk.remove(&segment.path);
        self.lose(segment.first, segment.last, reason)
    }

    /// Removes the oldest segment and forgets it. A file that cannot be removed is found again at the next
    /// start, and then removed or delivered again.
    fn remove_oldest(&mut self, disk: &dyn Disk) {
        let Some(segment) = self.segments.pop_front() else { return };
        self.disk_bytes -= segment.bytes;
        if self.reader.as_ref().is_some_and(|reader| reader.path == segment.path) {
            self.reader = None;
        }
        if self.segments.is_empty() {
            self.active = None;
        }
        if let Err(error) = disk.remove(&segment.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %segment.path.display(), %error, "cannot remove a segment");
        }
    }

    /// Gives up waiting records, the oldest first, until at most `most` bytes of them are left. Says how
    /// many.
    pub fn give_up_waiting(&mut self, most: usize, reason: LossReason) -> u64 {
        let mut range: Option<(Sequence, Sequence)> = None;
        while self.waiting_bytes > most {
            let Some(record) = self.pop_waiting() else { break };
            let first = range.map_or(record.sequence, |(first, _)| first);
            range = Some((first, record.sequence));
        }
        range.map_or(0, |(first, last)| self.lose(first, last, reason))
    }

    fn pop_waiting(&mut self) -> Option<Waiting> {
        let record = self.waiting.pop_front()?;
        self.waiting_bytes -= record.bytes();
        Some(record)
    }

    /// Forgets the segments whose files are gone. Says how many records are lost with them.
    pub fn forget_missing(&mut self, disk: &dyn Disk) -> u64 {
        self.end_segment();
        self.unsynced.clear();
        self.reader = None;
        let mut lost = 0;
        for segment in std::mem::take(&mut self.segments) {
            let is_gone =
                disk.open(&segment.path).is_err_and(|it| it.kind() == io::ErrorKind::NotFound);
            if is_gone {
                self.disk_bytes -= segment.bytes;
                lost += self.lose(segment.first, segment.last, LossReason::SpoolFailed);
            } else {
                self.segments.push_back(segment);
            }
        }
        lost
    }

    /// Ends the segment that is written; the next record begins another.
    pub fn end_segment(&mut self) {
        self.unsynced.extend(self.active.take().filter(|it| it.is_dirty).map(|it| it.file));
        // Whatever is wrong with the disk then, the kernel writes them back on its own.
        let excess = self.unsynced.len().saturating_sub(MOST_UNSYNCED);
        self.unsynced.drain(..excess);
    }

    /// The files that were written to since they were last brought to the disk. They count as brought
    /// there.
    pub fn take_dirty(&mut self) -> Vec<Arc<dyn DiskFile>> {
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(active) = self.active.as_mut().filter(|active| active.is_dirty) {
            active.is_dirty = false;
            files.push(Arc::clone(&active.file));
        }
        files
    }

    /// Is there something to send that is to be read from the disk first?
    pub fn has_unsent_on_disk(&self) -> bool {
        self.segments.back().is_some_and(|segment| segment.last >= self.cursor)
    }

    /// Is there something to send?
    pub fn has_unsent(&self) -> bool {
        self.pending.last().is_some_and(|last| last >= self.cursor)
    }

    /// Records that are neither acknowledged nor lost.
    pub const fn pending(&self) -> u64 {
        self.pending.count()
    }

    /// Bytes of the segments.
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes of what waits in memory.
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Is there something that the disk does not have?
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The oldest segment.
    pub fn oldest_segment(&self) -> Option<&Segment> {
        self.segments.front()
    }

    /// When the oldest record that is kept was taken.
    pub fn oldest(&self) -> Option<UnixNanos> {
        let on_disk = self.segments.front().map(|segment| segment.oldest);
        let kept = on_disk.or_else(|| self.waiting.front().map(|record| record.taken_at));
        kept.filter(|_| self.pending.count() > 0)
    }

    /// The number of the next record.
    pub const fn next(&self) -> Sequence {
        self.next
    }

    /// Everything up to this one is acknowledged.
    pub const fn acked(&self) -> Sequence {
        self.acked
    }
}
