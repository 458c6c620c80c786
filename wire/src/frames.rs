//! A batch of captured frames.
//!
//! ```text
//!   ┌──────────┬──────────────────────────────────────────────┬───────────────────────────────────
//!   │ header   │ count u32 · sample_one_in u32 · snaplen u32  │ frame … frame …
//!   │ 32 bytes │ reserved u32                                 │
//!   └──────────┴──────────────────────────────────────────────┴───────────────────────────────────
//!   frame: time u64 · wire_len u32 · captured_len u32 · interface u32 · reserved u32 · data, padded
//!          to a multiple of 4
//! ```
//!
//! A worker copies each frame once, into a buffer that has room for the header in front; the uplink
//! gives the batch its number and sends that very buffer.

use crate::header::{HEADER_LEN, Header, Kind, MAX_FRAME_BATCH, seal};
use crate::units::{Sequence, UnixNanos, WireLen};

/// Most bytes kept of one frame.
pub const MAX_SNAPLEN: u32 = 65535;
/// Bytes in front of the first frame of a payload.
const PREFIX_LEN: usize = 16;
/// Bytes in front of the data of a frame.
const ENTRY_LEN: usize = 24;
const ALIGNMENT: usize = 4;
const DATA_START: usize = HEADER_LEN + PREFIX_LEN;

const _: () = assert!(
    PREFIX_LEN + ENTRY_LEN + (MAX_SNAPLEN as usize).next_multiple_of(ALIGNMENT) <= MAX_FRAME_BATCH
);

/// The frame does not fit into what is left of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch is full")]
pub struct BatchFull;

/// Writes frames into one fixed buffer, and is itself what travels from worker to uplink and back.
/// Allocates only when it is made.
#[derive(Debug)]
pub struct FrameBatchWriter {
    /// Wire header, prefix, frames, unused rest.
    buffer: Box<[u8]>,
    /// Where the next frame goes.
    end: usize,
    frames: u32,
    frame_bytes: u64,
    sample_one_in: u32,
    snaplen: u32,
}

impl FrameBatchWriter {
    /// Bytes that a batch of the largest size takes in memory.
    pub const CAPACITY: usize = HEADER_LEN + MAX_FRAME_BATCH;

    /// An empty batch of [`FrameBatchWriter::CAPACITY`] bytes. `sample_one_in` (1: every flow) and
    /// `snaplen` (bytes kept of a frame, at most [`MAX_SNAPLEN`]) are told to the reader.
    #[must_use]
    pub fn new(sample_one_in: u32, snaplen: u32) -> Self {
        Self {
            buffer: vec![0; Self::CAPACITY].into_boxed_slice(),
            end: DATA_START,
            frames: 0,
            frame_bytes: 0,
            sample_one_in,
            snaplen: snaplen.min(MAX_SNAPLEN),
        }
    }

    /// Changes what is told to the reader, and what frames are cut to, as in [`FrameBatchWriter::new`]. For an
    /// empty batch: of one with frames it would not be true.
    pub fn set_rate(&mut self, sample_one_in: u32, snaplen: u32) {
        debug_assert!(self.is_empty(), "the frames in it have another rate");
        (self.sample_one_in, self.snaplen) = (sample_one_in, snaplen.min(MAX_SNAPLEN));
    }

    /// Appends a frame made of `parts`, cut to the snap length. `wire_len` is the length on the wire
    /// of the frame as it is written here (a VLAN tag put back counts); `interface` is an id of
    /// [`Interfaces`](crate::message::Interfaces).
    ///
    /// # Errors
    /// [`BatchFull`]; never for an empty batch.
    #[inline]
    pub fn try_push(
        &mut self,
        time: UnixNanos,
        wire_len: WireLen,
        interface: u32,
        parts: &[&[u8]],
    ) -> Result<(), BatchFull> {
        let whole: usize = parts.iter().map(|part| part.len()).sum();
        let captured = whole.min(self.snaplen as usize);
        let padded = captured.next_multiple_of(ALIGNMENT);
        let Some(space) = self.buffer[self.end..].get_mut(..ENTRY_LEN + padded) else {
            return Err(BatchFull);
        };
        let (entry, mut data) = space.split_at_mut(ENTRY_LEN);
        // At most MAX_SNAPLEN.
        let captured_len = captured as u32;
        // A frame has at least the bytes that were captured of it, whatever its source says.
        let wire_len = wire_len.0.max(u32::try_from(whole).unwrap_or(u32::MAX));
        entry[..8].copy_from_slice(&time.0.to_le_bytes());
        entry[8..12].copy_from_slice(&wire_len.to_le_bytes());
        entry[12..16].copy_from_slice(&captured_len.to_le_bytes());
        entry[16..20].copy_from_slice(&interface.to_le_bytes());
        entry[20..24].fill(0);
        let mut left = captured;
        for part in parts {
            let part = &part[..part.len().min(left)];
            let (space, rest) = data.split_at_mut(part.len());
            space.copy_from_slice(part);
            left -= part.len();
            data = rest;
        }
        data.fill(0);
        self.end += ENTRY_LEN + padded;
        self.frames += 1;
        self.frame_bytes += captured as u64;
        Ok(())
    }

    /// What was captured of the first frame in the batch.
    #[must_use]
    pub fn first_frame(&self) -> Option<&[u8]> {
        let entry = self.buffer[..self.end].get(DATA_START..)?.first_chunk::<ENTRY_LEN>()?;
        let captured = le_u32(entry, 12) as usize;
        self.buffer[..self.end].get(DATA_START + ENTRY_LEN..)?.get(..captured)
    }

    /// Frames in the batch.
    #[must_use]
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// Captured bytes of these frames.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Is there no frame in it?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Forgets the frames; the buffer stays.
    pub const fn clear(&mut self) {
        self.end = DATA_START;
        self.frames = 0;
        self.frame_bytes = 0;
    }

    /// Fills in header, prefix and checksum, and gives the bytes to send.
    pub fn finish(&mut self, sequence: Sequence) -> &[u8] {
        let (header_space, payload) = self.buffer[..self.end].split_at_mut(HEADER_LEN);
        payload[..4].copy_from_slice(&self.frames.to_le_bytes());
        payload[4..8].copy_from_slice(&self.sample_one_in.to_le_bytes());
        payload[8..12].copy_from_slice(&self.snaplen.to_le_bytes());
        payload[12..16].fill(0);
        // At most MAX_FRAME_BATCH.
        let header = Header::plain(Kind::Frames, sequence, payload.len() as u32);
        header_space.copy_from_slice(&seal(header, payload));
        &self.buffer[..self.end]
    }
}

/// A batch of captured frames, checked once, borrowed from where it lies.
#[derive(Clone, Copy, Debug)]
pub struct FrameBatch<'a> {
    /// Position in the stream of frame batches.
    pub sequence: Sequence,
    /// One flow in this many was exported; 1 means all.
    pub sample_one_in: u32,
    /// Most bytes kept of a frame.
    pub snaplen: u32,
    count: u32,
    entries: &'a [u8],
}

/// One frame of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchedFrame<'a> {
    /// When it was seen.
    pub time: UnixNanos,
    /// Its length on the wire.
    pub wire_len: WireLen,
    /// The interface, see [`Interfaces`](crate::message::Interfaces).
    pub interface: u32,
    /// What was captured of it; not longer than `wire_len`.
    pub data: &'a [u8],
}

impl<'a> FrameBatch<'a> {
    /// Checks a payload: every frame lies within it, no frame is longer than on the wire, their
    /// number is the stated one and nothing follows them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(sequence: Sequence, payload: &'a [u8]) -> Result<Self, &'static str> {
        let Some((prefix, entries)) = payload.split_at_checked(PREFIX_LEN) else {
            return Err("payload shorter than its prefix");
        };
        let batch = Self {
            sequence,
            count: le_u32(prefix, 0),
            sample_one_in: le_u32(prefix, 4),
            snaplen: le_u32(prefix, 8),
            entries,
        };
        let mut frames = batch.iter();
        let mut found = 0;
        for frame in &mut frames {
            if frame.data.len() > frame.wire_len.0 as usize {
                return Err("frame captured longer than it was");
            }
            found += 1;
        }
        if !frames.rest.is_empty() {
            return Err("frame reaches beyond the payload");
        }
        if found != batch.count {
            return Err("number of frames is not the stated one");
        }
        // The last number is kept free, so that the one after any batch exists.
        if sequence.0 == 0 || sequence.0 == u64::MAX {
            return Err("sequence out of range");
        }
        Ok(batch)
    }

    /// Number of frames.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Is there no frame in it?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The frames, in the order in which the worker saw them.
    #[must_use]
    pub const fn iter(&self) -> Frames<'a> {
        Frames { rest: self.entries }
    }
}

impl<'a> IntoIterator for &FrameBatch<'a> {
    type Item = BatchedFrame<'a>;
    type IntoIter = Frames<'a>;

    fn into_iter(self) -> Frames<'a> {
        self.iter()
    }
}

/// Iterator over the frames of a batch.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = BatchedFrame<'a>;

    /// Ends at the first entry that is cut short; [`FrameBatch::parse`] has seen that there is none.
    #[inline]
    fn next(&mut self) -> Option<BatchedFrame<'a>> {
        let (entry, behind) = self.rest.split_first_chunk::<ENTRY_LEN>()?;
        let captured = le_u32(entry, 12) as usize;
        let (padded, rest) = behind.split_at_checked(captured.next_multiple_of(ALIGNMENT))?;
        self.rest = rest;
        let time = u64::from(le_u32(entry, 0)) | u64::from(le_u32(entry, 4)) << 32;
        Some(BatchedFrame {
            time: UnixNanos(time),
            wire_len: WireLen(le_u32(entry, 8)),
            interface: le_u32(entry, 16),
            data: &padded[..captured],
        })
    }
}

/// Reads four bytes; the callers' slices are longer than `at + 4`.
#[inline]
fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}
