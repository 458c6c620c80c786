//! One batch of records as it lies in the log.
//!
//! ```text
//!   0       4     5      6      7       8        16      24      32     40        48       56
//!   ├───────┼─────┼──────┼──────┼───────┼────────┼───────┼───────┼──────┼─────────┼────────┼─
//!   │ magic │ ver │stream│flags │ name  │ number │ epoch │ first │ last │ stored  │ synced │
//!   │       │  1  │      │      │ length│        │       │       │      │   at    │        │
//!   └───────┴─────┴──────┴──────┴───────┴────────┴───────┴───────┴──────┴─────────┴────────┴─
//!   56      60        64           68       72
//!   ├───────┼─────────┼────────────┼────────┼─────────────┬───────────────────────────┐
//!   │ count │ raw len │ packed len │ crc32c │ sensor name │ records, one LZ4 block    │
//!   └───────┴─────────┴────────────┴────────┴─────────────┴───────────────────────────┘
//! ```
//!
//! Little-endian. The checksum covers everything but itself. `number` is the position of the first
//! record among all records of the log, `first` and `last` are the sensor's: they are the mark that
//! keeps a record from being stored twice, written with the records in one go. `synced` is how much of
//! the segment was on the disk for certain when the batch was written: see `recovery`.
//!
//! The records are laid out as on the wire: `kind u8 · len u32 · JSON` for each.
//!
//! The first and last byte of the magic are in no UTF-8 text, so that no sensor can have a record that
//! reads as a batch when the reader looks for the next one behind a damage.

use wire::header::{MAX_RAW, Stream};
use wire::records::{RecordBatch, RecordKind};
use wire::units::{Sequence, UnixNanos};

/// What every batch begins with.
pub const MAGIC: [u8; 4] = [0xfe, b'R', b'W', 0xff];
/// Bytes in front of the name.
pub const HEADER_LEN: usize = 72;
/// Longest batch.
pub const MAX_BATCH: usize = HEADER_LEN + MAX_NAME + MAX_RAW;

const VERSION: u8 = 1;
const PACKED: u8 = 1;
const CRC_AT: usize = 68;
/// Longest name of a sensor: its length is one byte.
const MAX_NAME: usize = 255;

/// Records of one sensor that are to be stored together.
#[derive(Clone, Copy, Debug)]
pub struct NewBatch<'a> {
    /// Whose they are.
    pub sensor: &'a str,
    /// In which of its streams.
    pub stream: Stream,
    /// What its sequence belongs to.
    pub epoch: u64,
    /// Position of the first record in that stream.
    pub first: Sequence,
    /// Position of the last one.
    pub last: Sequence,
    /// How many.
    pub count: u32,
    /// The records, see [`push_record`].
    pub records: &'a [u8],
}

/// Where and when a batch is stored.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Position of its first record in the log.
    pub number: u64,
    /// When.
    pub stored_at: UnixNanos,
    /// Bytes of the segment that are on the disk for certain.
    pub synced: u64,
}

/// A batch that was read and whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Whose records these are.
    pub sensor: &'a str,
    /// In which of its streams.
    pub stream: Stream,
    /// What its sequence belongs to.
    pub epoch: u64,
    /// Position of the first record in that stream.
    pub first: Sequence,
    /// Position of the last one.
    pub last: Sequence,
    /// How many.
    pub count: u32,
    /// Where it is, and since when.
    pub placed: Placed,
    raw_len: usize,
    is_packed: bool,
    body: &'a [u8],
}

/// Why bytes are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may be one of this many bytes, and not all of them are here.
    Short(usize),
    /// It is none.
    Damaged(&'static str),
}

/// Appends one record to the records of a batch.
pub fn push_record(records: &mut Vec<u8>, kind: RecordKind, json: &str) {
    records.push(kind as u8);
    // Records come out of a message of at most MAX_RAW bytes.
    records.extend_from_slice(&(json.len() as u32).to_le_bytes());
    records.extend_from_slice(json.as_bytes());
}

impl NewBatch<'_> {
    /// Appends the batch to `out`.
    pub fn encode(&self, placed: Placed, out: &mut Vec<u8>) {
        let start = out.len();
        let name = &self.sensor.as_bytes()[..self.sensor.len().min(MAX_NAME)];
        out.resize(start + HEADER_LEN, 0);
        out.extend_from_slice(name);
        let body_at = out.len();
        let most = lz4_flex::block::get_maximum_output_size(self.records.len());
        out.resize(body_at + most, 0);
        // Fails only for lack of space, which there is; then the records go as they are.
        let packed = lz4_flex::block::compress_into(self.records, &mut out[body_at..])
            .ok()
            .filter(|packed| *packed < self.records.len());
        let packed_len = packed.unwrap_or(self.records.len());
        if packed.is_none() {
            out[body_at..body_at + packed_len].copy_from_slice(self.records);
        }
        out.truncate(body_at + packed_len);

        let header = &mut out[start..start + HEADER_LEN];
        header[..4].copy_from_slice(&MAGIC);
        // The name was cut to what one byte can tell.
        let flags = if packed.is_some() { PACKED } else { 0 };
        header[4..8].copy_from_slice(&[VERSION, self.stream as u8, flags, name.len() as u8]);
        let numbers = [
            placed.number,
            self.epoch,
            self.first.0,
            self.last.0,
            placed.stored_at.0,
            placed.synced,
        ];
        for (place, number) in header[8..56].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        // At most MAX_RAW, both of them.
        let lengths = [self.count, self.records.len() as u32, packed_len as u32];
        for (place, number) in header[56..CRC_AT].chunks_exact_mut(4).zip(lengths) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(&out[start..]);
        out[start + CRC_AT..start + HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }
}

impl<'a> Batch<'a> {
    /// Reads the batch at the beginning of `bytes`, and says how long it is.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), Fault> {
        let (batch, length) = Self::read(bytes)?;
        let mut crc = [0; 4];
        crc.copy_from_slice(&bytes[CRC_AT..HEADER_LEN]);
        if checksum(&bytes[..length]) != u32::from_le_bytes(crc) {
            return Err(Fault::Damaged("wrong checksum"));
        }
        Ok((batch, length))
    }

    /// Like [`Batch::parse`], of bytes whose checksum was found right before.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn read(bytes: &'a [u8]) -> Result<(Self, usize), Fault> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            let known = bytes.len().min(MAGIC.len());
            return Err(match bytes[..known] == MAGIC[..known] {
                true => Fault::Short(HEADER_LEN),
                false => Fault::Damaged("no magic"),
            });
        };
        if header[..4] != MAGIC {
            return Err(Fault::Damaged("no magic"));
        }
        let [version, stream, flags, name_len] = [header[4], header[5], header[6], header[7]];
        let [count, raw_len, packed_len] = [56, 60, 64].map(|at| u32_at(header, at));
        let [number, epoch, first, last, stored_at, synced] =
            [8, 16, 24, 32, 40, 48].map(|at| u64_at(header, at));
        let stream = stream_of(stream).ok_or(Fault::Damaged("unknown stream"))?;
        if version != VERSION || flags & !PACKED != 0 {
            return Err(Fault::Damaged("unknown version or flag"));
        }
        let (raw_len, packed_len) = (raw_len as usize, packed_len as usize);
        if raw_len > MAX_RAW || packed_len > raw_len {
            return Err(Fault::Damaged("length out of range"));
        }
        let is_counted = count > 0 && first > 0 && first <= last && number > 0;
        if !is_counted || number.checked_add(u64::from(count)).is_none() {
            return Err(Fault::Damaged("position out of range"));
        }
        let length = HEADER_LEN + usize::from(name_len) + packed_len;
        let content = rest.get(..length - HEADER_LEN).ok_or(Fault::Short(length))?;
        let (name, body) = content.split_at(usize::from(name_len));
        let sensor = std::str::from_utf8(name).map_err(|_| Fault::Damaged("name is no text"))?;
        let placed = Placed { number, stored_at: UnixNanos(stored_at), synced };
        let (first, last, is_packed) = (Sequence(first), Sequence(last), flags & PACKED != 0);
        let batch =
            Self { sensor, stream, epoch, first, last, count, placed, raw_len, is_packed, body };
        Ok((batch, length))
    }

    /// Position in the log of what follows.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.placed.number + self.count as u64
    }

    /// Bytes that it takes in the log.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (HEADER_LEN + self.sensor.len() + self.body.len()) as u64
    }

    /// The records, unpacked into `scratch` where they are packed.
    ///
    /// # Errors
    /// What is wrong with them; not to be expected behind a right checksum.
    pub fn records<'s>(&self, scratch: &'s mut Vec<u8>) -> Result<RecordBatch<'s>, &'static str>
    where
        'a: 's,
    {
        let raw: &'s [u8] = if self.is_packed {
            scratch.resize(self.raw_len, 0);
            let unpacked = lz4_flex::block::decompress_into(self.body, scratch)
                .map_err(|_| "records cannot be unpacked")?;
            if unpacked != self.raw_len {
                return Err("records have another length");
            }
            scratch
        } else {
            self.body
        };
        let records = RecordBatch::parse(self.stream, self.first, raw)?;
        if records.len() != self.count {
            return Err("batch has another number of records");
        }
        Ok(records)
    }
}

/// The stream of this number, if it has records.
const fn stream_of(number: u8) -> Option<Stream> {
    match number {
        1 => Some(Stream::Records),
        3 => Some(Stream::Alerts),
        _ => None,
    }
}

/// Over the whole batch, without the place of the checksum itself.
fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&batch[..CRC_AT]), &batch[HEADER_LEN..])
}

fn u32_at(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACED: Placed = Placed { number: 7, stored_at: UnixNanos(8), synced: 9 };

    fn packed(records: &[(RecordKind, String)]) -> Vec<u8> {
        let mut raw = Vec::new();
        records.iter().for_each(|(kind, json)| push_record(&mut raw, *kind, json));
        let mut bytes = Vec::new();
        let count = u32::try_from(records.len()).unwrap();
        let last = Sequence(u64::from(count) + 4);
        let stream = Stream::Records;
        let batch = NewBatch {
            sensor: "web-1",
            stream,
            epoch: 3,
            first: Sequence(5),
            last,
            count,
            records: &raw,
        };
        batch.encode(PLACED, &mut bytes);
        bytes
    }

    fn any_records() -> impl Strategy<Value = Vec<(RecordKind, String)>> {
        let kind = (0..=6_u8).prop_map(RecordKind::from_u8);
        proptest::collection::vec((kind, "[^\n]{0,40}"), 1..40)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(records in any_records(), behind in any::<Vec<u8>>()) {
            let mut bytes = packed(&records);
            let length = bytes.len();
            bytes.extend_from_slice(&behind);
            let (batch, found) = Batch::parse(&bytes).unwrap();
            prop_assert_eq!(found, length);
            prop_assert_eq!((batch.sensor, batch.epoch, batch.first), ("web-1", 3, Sequence(5)));
            let placed = batch.placed;
            prop_assert_eq!((placed.number, placed.stored_at.0, placed.synced), (7, 8, 9));
            prop_assert_eq!(batch.next_number(), 7 + records.len() as u64);
            let mut scratch = Vec::new();
            let read = batch.records(&mut scratch).unwrap();
            let read: Vec<_> = read.iter().map(|one| (one.kind, one.json.to_owned())).collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn a_batch_with_any_bit_flipped_is_none(records in any_records(), bit in any::<usize>()) {
            let mut bytes = packed(&records);
            let bit = bit % (8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Batch::parse(&bytes).is_err());
        }

        #[test]
        fn a_batch_cut_short_is_said_to_be_so(records in any_records(), cut in any::<usize>()) {
            let bytes = packed(&records);
            let kept = cut % bytes.len();
            match Batch::parse(&bytes[..kept]) {
                Err(Fault::Short(wanted)) => prop_assert!(wanted > kept && wanted <= bytes.len()),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in any::<Vec<u8>>(), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() > 5 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = VERSION;
            }
            let _ = Batch::parse(&bytes);
        }
    }

    #[test]
    fn records_that_do_not_pack_are_kept_as_they_are() {
        let bytes = packed(&[(RecordKind::Flow, "{}".into())]);
        assert!(bytes.ends_with(b"\x02\x02\0\0\0{}"), "{bytes:?}");
    }

    #[test]
    fn a_batch_longer_than_any_is_none() {
        let mut bytes = packed(&[(RecordKind::Flow, "{}".into())]);
        for at in [60, 64] {
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        }
        assert_eq!(Batch::parse(&bytes).unwrap_err(), Fault::Damaged("length out of range"));
    }
}
