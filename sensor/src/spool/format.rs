//! The bytes of a segment: a header, then records one behind the other.
//!
//! ```text
//!   header, 64 bytes
//!   0          8        10     11  16            24               32        40          48  60      64
//!   ├──────────┼────────┼──────┼───┼─────────────┼────────────────┼─────────┼───────────┼───┼───────┤
//!   │"RWSPOOL1"│ version│ lane │ 0 │ spool_epoch │ first sequence │ made at │ run begins│ 0 │ crc32c│
//!
//!   record, 32 bytes and its JSON
//!   0        4        8      9        16         24         32          32 + length
//!   ├────────┼────────┼──────┼────────┼──────────┼──────────┼───────────┤
//!   │ crc32c │ length │ kind │ 0      │ sequence │ taken at │ JSON …    │
//! ```
//!
//! Little-endian. The checksum of a record covers all of it behind the checksum itself. Sequences grow
//! from record to record, with holes where records were given up. Those below the number with which the run began, that
//! wrote the segment, and above the last one of the run before were never used.
//!
//! Nothing here is trusted: a segment may be cut off, zeroed or scribbled over at any place.
//! [`Records`] finds every whole record, says how many bytes lie between, and never holds more than one
//! record and a read buffer, however long the segment is.

use std::io;

use wire::records::{MAX_RECORD, RecordKind};
use wire::units::{Sequence, UnixNanos};

use super::disk::DiskFile;

/// First eight bytes of a segment.
const MAGIC: &[u8; 8] = b"RWSPOOL1";
/// Version of the layout. Another is set aside, not guessed at.
const VERSION: u16 = 1;
/// Length of a segment's header, in bytes.
pub const SEGMENT_HEADER: usize = 64;
/// Length of a record without its JSON, in bytes.
pub const RECORD_HEADER: usize = 32;
/// No record has this number or a higher one: it leaves room for all that is added to numbers.
pub const LAST_NUMBER: Sequence = Sequence(1 << 62);
/// What is read at once, in bytes. The longest record fits.
const READ: usize = 1 << 20;
const _: () = assert!(READ >= RECORD_HEADER + MAX_RECORD);

/// Which queue a record is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum LaneName {
    /// What must arrive first: alerts, anomalies, audit.
    Alerts = 0,
    /// All else.
    Events = 1,
}

impl LaneName {
    /// Both, in the order in which they are sent.
    pub const ALL: [Self; 2] = [Self::Alerts, Self::Events];

    /// The lane of records of this kind.
    #[must_use]
    pub const fn of(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Alert | RecordKind::Anomaly | RecordKind::Audit => Self::Alerts,
            RecordKind::Flow | RecordKind::Dns | RecordKind::Stats | RecordKind::Other => {
                Self::Events
            }
        }
    }

    /// The name of its folder, and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alerts => "alerts",
            Self::Events => "events",
        }
    }
}

/// What stands at the beginning of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The spool that it belongs to.
    pub spool_epoch: u64,
    /// Its lane.
    pub lane: LaneName,
    /// No record in it has a lower number.
    pub first: Sequence,
    /// When it was begun.
    pub made_at: UnixNanos,
    /// The number with which the run began that wrote it.
    pub run_begins: Sequence,
}

/// Why a file is no segment of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It ends within the header: the file was being made when the sensor ended.
    #[error("it ends within its header")]
    Short,
    /// Its first bytes are others.
    #[error("it does not begin as a segment does")]
    BadMagic,
    /// Another version wrote it.
    #[error("it has version {found}, this program knows version {VERSION}")]
    Unsupported {
        /// Its version.
        found: u16,
    },
    /// It is damaged.
    #[error("the checksum of its header does not fit")]
    BadCrc,
    /// There is no such lane.
    #[error("it is of lane {found}, which there is not")]
    BadLane {
        /// The number.
        found: u8,
    },
}

impl SegmentHeader {
    /// The bytes on the disk.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = self.lane as u8;
        bytes[16..24].copy_from_slice(&self.spool_epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.made_at.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.run_begins.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER>() else {
            return Err(HeaderError::Short);
        };
        if bytes[..8] != *MAGIC {
            return Err(HeaderError::BadMagic);
        }
        let found = u16::from_le_bytes([bytes[8], bytes[9]]);
        if found != VERSION {
            return Err(HeaderError::Unsupported { found });
        }
        if u64_at(bytes, 60) as u32 != crc32c::crc32c(&bytes[..60]) {
            return Err(HeaderError::BadCrc);
        }
        let lane = match bytes[10] {
            0 => LaneName::Alerts,
            1 => LaneName::Events,
            found => return Err(HeaderError::BadLane { found }),
        };
        Ok(Self {
            spool_epoch: u64_at(bytes, 16),
            lane,
            first: Sequence(u64_at(bytes, 24)),
            made_at: UnixNanos(u64_at(bytes, 32)),
            run_begins: Sequence(u64_at(bytes, 40)),
        })
    }
}

/// Up to eight bytes at an offset, as a number; what is beyond the end counts as zero.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut eight = [0; 8];
    let there = bytes.get(offset..).unwrap_or_default();
    let len = there.len().min(8);
    eight[..len].copy_from_slice(&there[..len]);
    u64::from_le_bytes(eight)
}

/// A record, its text borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpooledRecord<'a> {
    /// Its number.
    pub sequence: Sequence,
    /// What it tells.
    pub kind: RecordKind,
    /// When the spool took it.
    pub taken_at: UnixNanos,
    /// One JSON object.
    pub json: &'a [u8],
}

impl SpooledRecord<'_> {
    /// Appends the bytes on the disk to `out`. The text must not be longer than [`MAX_RECORD`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // At most MAX_RECORD.
        let len = self.json.len() as u32;
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&len.to_le_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(&[0; 7]);
        out.extend_from_slice(&self.sequence.0.to_le_bytes());
        out.extend_from_slice(&self.taken_at.0.to_le_bytes());
        out.extend_from_slice(self.json);
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What comes next in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole record, with a higher number than all before.
    Record {
        /// The record.
        record: SpooledRecord<'a>,
        /// Bytes between the record before and this one that are no record.
        damaged: u64,
    },
    /// There is no further record.
    End(Tail),
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// Where the last whole record ends.
    pub good_end: u64,
    /// Bytes behind it that are no record.
    pub torn: u64,
    /// These bytes are as many as a record that begins there would have, or more: it was complete once.
    pub has_record: bool,
}

/// The records of a segment, one after the other.
pub struct Records {
    /// Offset of `buffer[0]` in the file.
    offset: u64,
    buffer: Vec<u8>,
    /// `buffer[start..]` is not looked at yet.
    start: usize,
    /// The file is read up to here.
    end: u64,
    last: Sequence,
    /// Where the last whole record ended.
    good_end: u64,
    /// `start`, `last` and `good_end` before the last record was given.
    before: (usize, Sequence, u64),
}

impl Records {
    /// The records of a file between two offsets, with higher numbers than `last`.
    #[must_use]
    pub const fn new(begin: u64, end: u64, last: Sequence) -> Self {
        let before = (0, last, begin);
        Self { offset: begin, buffer: Vec::new(), start: 0, end, last, good_end: begin, before }
    }

    /// Lets the reader see what was appended since.
    pub const fn grown_to(&mut self, end: u64) {
        self.end = end;
    }

    /// Gives the last record again. To be called at once after [`Records::next`] gave it.
    pub const fn put_back(&mut self) {
        (self.start, self.last, self.good_end) = self.before;
    }

    /// The next record, or the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self, file: &dyn DiskFile) -> io::Result<Step<'_>> {
        let (at, len, damaged) = loop {
            let found = self.find(file)?;
            let Some((at, len)) = found else { return Ok(Step::End(self.tail(file)?)) };
            let damaged = self.offset + at as u64 - self.good_end;
            self.start = at + len;
            self.good_end = self.offset + self.start as u64;
            let sequence = view(&self.buffer[at..]).sequence;
            // Otherwise it was written twice, because the first attempt was thought to have failed.
            if sequence > self.last {
                self.before = (at, self.last, self.offset + at as u64);
                self.last = sequence;
                break (at, len, damaged);
            }
        };
        Ok(Step::Record { record: view(&self.buffer[at..at + len]), damaged })
    }

    /// Place and length in the buffer of the next whole record. Where the bytes are no record, every
    /// later byte may be where one begins.
    fn find(&mut self, file: &dyn DiskFile) -> io::Result<Option<(usize, usize)>> {
        loop {
            let needed = self.needed();
            if self.buffer.len() - self.start < needed && !self.fill(file)? {
                return Ok(None);
            }
            if let Some(len) = whole_record(&self.buffer[self.start..]) {
                return Ok(Some((self.start, len)));
            }
            if self.buffer.len() - self.start >= self.needed() {
                self.start += 1;
            }
        }
    }

    /// Bytes from `start` on that tell whether a record begins there.
    fn needed(&self) -> usize {
        match self.buffer.get(self.start..self.start + RECORD_HEADER) {
            Some(header) => plausible_len(header).map_or(RECORD_HEADER, |len| RECORD_HEADER + len),
            None => RECORD_HEADER,
        }
    }

    /// Reads on. False if there are no more bytes than the buffer has; then a record that is not whole
    /// is passed over by one byte, as long as a shorter one may follow.
    fn fill(&mut self, file: &dyn DiskFile) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.offset += self.start as u64;
        self.start = 0;
        let have = self.buffer.len();
        let left = self.end.saturating_sub(self.offset + have as u64);
        let wanted = (READ.saturating_sub(have) as u64).min(left) as usize;
        self.buffer.resize(have + wanted, 0);
        let read = match file.read_at(&mut self.buffer[have..], self.offset + have as u64) {
            Ok(read) => read,
            Err(error) => {
                self.buffer.truncate(have);
                return Err(error);
            }
        };
        self.buffer.truncate(have + read);
        if read > 0 {
            return Ok(true);
        }
        // The end: nothing that needs more bytes than there are can be a record.
        while self.buffer.len() - self.start >= RECORD_HEADER {
            if whole_record(&self.buffer[self.start..]).is_some() {
                return Ok(true);
            }
            self.start += 1;
        }
        Ok(false)
    }

    fn tail(&mut self, file: &dyn DiskFile) -> io::Result<Tail> {
        let good_end = self.good_end;
        let torn = self.end.saturating_sub(good_end);
        let mut header = [0; RECORD_HEADER];
        let read = file.read_at(&mut header, good_end)?;
        let len = plausible_len(&header[..read]).filter(|_| read == RECORD_HEADER);
        let has_record = len.is_some_and(|len| (RECORD_HEADER + len) as u64 <= torn);
        // What is appended later is read from here.
        (self.offset, self.start) = (good_end, 0);
        self.buffer.clear();
        Ok(Tail { good_end, torn, has_record })
    }
}

/// The length of the text of a record with this header, if it can be one.
fn plausible_len(header: &[u8]) -> Option<usize> {
    let has_padding = header.get(9..16)?.iter().all(|byte| *byte == 0);
    let len = u64_at(header, 4) as u32 as usize;
    let has_number = (1..LAST_NUMBER.0).contains(&u64_at(header, 16));
    (has_padding && has_number && len <= MAX_RECORD).then_some(len)
}

/// The length of the record at the beginning of `bytes`, if it is whole.
fn whole_record(bytes: &[u8]) -> Option<usize> {
    let len = RECORD_HEADER + plausible_len(bytes.get(..RECORD_HEADER)?)?;
    let all = bytes.get(..len)?;
    (u64_at(all, 0) as u32 == crc32c::crc32c(&all[4..])).then_some(len)
}

/// A record that is whole.
fn view(bytes: &[u8]) -> SpooledRecord<'_> {
    SpooledRecord {
        sequence: Sequence(u64_at(bytes, 16)),
        kind: RecordKind::from_u8(bytes.get(8).copied().unwrap_or(0)),
        taken_at: UnixNanos(u64_at(bytes, 24)),
        json: bytes.get(RECORD_HEADER..).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
