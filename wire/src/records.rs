//! A batch of event records: `kind u8 · len u32 · JSON` for each, one LZ4 block for all.
//!
//! Record batches are numbered by record: the header has the sequence of the first, the others
//! follow one by one. So a batch may be cut differently when it is sent again.

use crate::header::{HEADER_LEN, Header, Kind, MAX_PAYLOAD, MAX_RAW, Stream, flags, seal};
use crate::units::Sequence;

/// Longest record, in bytes of JSON.
pub const MAX_RECORD: usize = 512 << 10;
/// A batch takes no further record once it has this many bytes: enough for LZ4 to find repetitions,
/// little enough not to delay what follows.
const BATCH_TARGET: usize = 256 << 10;
/// Bytes in front of the JSON.
const ENTRY_LEN: usize = 5;

// Even if LZ4 finds nothing, the batch fits.
const _: () = assert!(BATCH_TARGET + ENTRY_LEN + MAX_RECORD <= MAX_PAYLOAD);
const _: () = assert!(MAX_PAYLOAD <= MAX_RAW);

/// What a record tells. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A kind that this version does not know.
    Other = 0,
    /// A scan or flood: opened, updated or closed.
    Alert = 1,
    /// A connection.
    Flow = 2,
    /// A DNS message.
    Dns = 3,
    /// Counters.
    Stats = 4,
    /// Something odd in traffic, or in the sensor itself.
    Anomaly = 5,
    /// What somebody did.
    Audit = 6,
}

impl RecordKind {
    /// The kind of this number; [`RecordKind::Other`] for numbers that this version does not know.
    #[must_use]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::Alert,
            2 => Self::Flow,
            3 => Self::Dns,
            4 => Self::Stats,
            5 => Self::Anomaly,
            6 => Self::Audit,
            _ => Self::Other,
        }
    }

    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Alert => "alert",
            Self::Flow => "flow",
            Self::Dns => "dns",
            Self::Stats => "stats",
            Self::Anomaly => "anomaly",
            Self::Audit => "audit",
        }
    }
}

/// Why a record was not taken into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The batch has its size; it takes the record once it was finished.
    #[error("batch is full")]
    BatchFull,
    /// No batch takes this record.
    #[error("record has {len} bytes, the limit is {MAX_RECORD}")]
    TooLong {
        /// Its length.
        len: usize,
    },
}

/// Collects records and packs them into one message. Keeps its buffers from batch to batch.
#[derive(Debug)]
pub struct RecordBatchWriter {
    kind: Kind,
    raw: Vec<u8>,
    records: u32,
}

impl Default for RecordBatchWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordBatchWriter {
    /// An empty batch of stream [`Stream::Records`].
    #[must_use]
    pub const fn new() -> Self {
        Self { kind: Kind::Records, raw: Vec::new(), records: 0 }
    }

    /// An empty batch of stream [`Stream::Alerts`].
    #[must_use]
    pub const fn of_alerts() -> Self {
        Self { kind: Kind::Alerts, raw: Vec::new(), records: 0 }
    }

    /// Appends a record: one JSON object, UTF-8, without a line break.
    ///
    /// # Errors
    /// [`PushError`]; [`PushError::BatchFull`] never for an empty batch.
    pub fn try_push(&mut self, kind: RecordKind, json: &[u8]) -> Result<(), PushError> {
        if json.len() > MAX_RECORD {
            return Err(PushError::TooLong { len: json.len() });
        }
        if self.raw.len() >= BATCH_TARGET {
            return Err(PushError::BatchFull);
        }
        // At most MAX_RECORD.
        let len = json.len() as u32;
        self.raw.push(kind as u8);
        self.raw.extend_from_slice(&len.to_le_bytes());
        self.raw.extend_from_slice(json);
        self.records += 1;
        Ok(())
    }

    /// Records in the batch.
    #[must_use]
    pub const fn records(&self) -> u32 {
        self.records
    }

    /// Appends the message to `out`, with `first` as the sequence of its first record, and begins a
    /// new batch. Writes nothing for an empty batch.
    pub fn finish(&mut self, first: Sequence, out: &mut Vec<u8>) {
        if self.records == 0 {
            return;
        }
        let start = out.len();
        let most = lz4_flex::block::get_maximum_output_size(self.raw.len());
        out.resize(start + HEADER_LEN + most, 0);
        // Fails only for lack of space, which there is; then the batch goes uncompressed.
        let packed = lz4_flex::block::compress_into(&self.raw, &mut out[start + HEADER_LEN..])
            .ok()
            .filter(|packed| *packed < self.raw.len());
        let wire_len = packed.unwrap_or(self.raw.len());
        if packed.is_none() {
            out[start + HEADER_LEN..start + HEADER_LEN + wire_len].copy_from_slice(&self.raw);
        }
        out.truncate(start + HEADER_LEN + wire_len);
        let header = Header {
            flags: if packed.is_some() { flags::LZ4 } else { 0 },
            // At most MAX_PAYLOAD, as is `wire_len`.
            raw_len: self.raw.len() as u32,
            ..Header::plain(self.kind, first, wire_len as u32)
        };
        let (header_space, payload) = out[start..].split_at_mut(HEADER_LEN);
        header_space.copy_from_slice(&seal(header, payload));
        self.raw.clear();
        self.records = 0;
    }
}

/// Decompresses the payload of a record batch into `scratch` where it is compressed.
pub(crate) fn unpack<'a>(
    header: &Header,
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], String> {
    if header.flags & flags::LZ4 == 0 {
        return Ok(payload);
    }
    // `raw_len` was checked against MAX_RAW and against what LZ4 can reach.
    let raw_len = header.raw_len as usize;
    scratch.resize(raw_len, 0);
    let unpacked =
        lz4_flex::block::decompress_into(payload, scratch).map_err(|error| error.to_string())?;
    if unpacked != raw_len {
        return Err(format!("unpacked to {unpacked} bytes instead of {raw_len}"));
    }
    Ok(scratch)
}

/// A batch of records, checked once, borrowed from where it lies.
#[derive(Clone, Copy, Debug)]
pub struct RecordBatch<'a> {
    /// [`Stream::Records`] or [`Stream::Alerts`].
    pub stream: Stream,
    /// Sequence of the first record.
    pub first: Sequence,
    count: u32,
    entries: &'a [u8],
}

/// One record of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its position in its stream.
    pub sequence: Sequence,
    /// What it tells.
    pub kind: RecordKind,
    /// One JSON object without a line break; its syntax is not checked.
    pub json: &'a str,
}

impl<'a> RecordBatch<'a> {
    /// Checks a decompressed payload: every record lies within it, is UTF-8 and has no line break
    /// (a record could otherwise forge others in a log of lines), and nothing follows them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(stream: Stream, first: Sequence, raw: &'a [u8]) -> Result<Self, &'static str> {
        let mut rest = raw;
        let mut count = 0;
        while !rest.is_empty() {
            let (_, json, behind) = split_entry(rest).ok_or("record reaches beyond the payload")?;
            if json.len() > MAX_RECORD {
                return Err("record longer than its limit");
            }
            if json.contains(&b'\n') {
                return Err("line break in a record");
            }
            std::str::from_utf8(json).map_err(|_| "record is not UTF-8")?;
            count += 1;
            rest = behind;
        }
        if count == 0 {
            return Err("batch without a record");
        }
        // Room for the sequence of every record, and for the one after them.
        if first.0 == 0 || first.0.checked_add(u64::from(count)).is_none() {
            return Err("sequence out of range");
        }
        Ok(Self { stream, first, count, entries: raw })
    }

    /// Number of records; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a batch always has a record")]
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Sequence of the last record.
    #[must_use]
    pub const fn last(&self) -> Sequence {
        Sequence(self.first.0 + self.count as u64 - 1)
    }

    /// The records.
    #[must_use]
    pub const fn iter(&self) -> Records<'a> {
        Records { sequence: self.first, rest: self.entries }
    }
}

impl<'a> IntoIterator for &RecordBatch<'a> {
    type Item = Record<'a>;
    type IntoIter = Records<'a>;

    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

/// Iterator over the records of a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    sequence: Sequence,
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    /// Ends at the first entry that is cut short or no text; [`RecordBatch::parse`] has seen that
    /// there is none.
    fn next(&mut self) -> Option<Record<'a>> {
        let (kind, json, behind) = split_entry(self.rest)?;
        let json = std::str::from_utf8(json).ok()?;
        let record = Record { sequence: self.sequence, kind: RecordKind::from_u8(kind), json };
        self.rest = behind;
        self.sequence = self.sequence.next();
        Some(record)
    }
}

/// Kind and JSON of the first entry, and what follows it.
fn split_entry(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, l0, l1, l2, l3], behind) = bytes.split_first_chunk::<ENTRY_LEN>()?;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let (json, rest) = behind.split_at_checked(len)?;
    Some((kind, json, rest))
}
