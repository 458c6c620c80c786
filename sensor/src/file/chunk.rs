//! A piece of a file, read at once, and where the frames in it lie.
//!
//! ```text
//!   ┌── room ──┬──────── read at once ────────┐
//!   │     ▒▒▒▒▒│record│record│record│record│rec▒
//!   └─────▲────┴──────────────────────────▲───┘
//!         the rest of the piece before    goes into the room of the next piece
//! ```
//!
//! The buffers go round: nothing is allocated for a piece, and no frame is copied. A file is read
//! with system calls and not mapped: one that becomes shorter meanwhile would end the program.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use wire::units::{UnixNanos, WireLen};

use crate::hardware::prefetch;
use packet::frame::{Frame, LinkType};

/// Bytes read at once: few system calls, and still in the second-level cache when the frames are
/// looked at.
pub(super) const READ: usize = 256 * 1024;

/// Room before them, for the rest of the piece before. It grows where a record is longer.
const ROOM: usize = 64 * 1024;

/// A piece of a file with the whole records that begin in it or in the piece before.
///
/// Its memory is `READ`, `ROOM` and 24 bytes for each frame in it; while a file has longer
/// records, up to [`MAX_BLOCK`](super::MAX_BLOCK) more.
pub struct Chunk {
    buffer: Vec<u8>,
    /// First byte, the rest of the piece before included.
    start: usize,
    end: usize,
    /// The file ends behind this piece, or cannot be read on.
    last: Option<io::Result<()>>,
    entries: Vec<Entry>,
}

/// Where a frame lies in its chunk, and what its record says.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) time: UnixNanos,
    /// Position in the chunk's buffer.
    pub(super) start: u32,
    /// Captured bytes.
    pub(super) len: u32,
    pub(super) wire_len: WireLen,
    pub(super) link: LinkType,
    /// Index into the interfaces of the file, of which there are no more than this can tell.
    pub(super) interface: u16,
}

impl Entry {
    #[inline]
    fn frame<'a>(&self, buffer: &'a [u8]) -> Frame<'a> {
        let &Self { time, start, len, wire_len, link, .. } = self;
        let data = buffer.get(start as usize..).and_then(|rest| rest.get(..len as usize));
        Frame { data: data.unwrap_or_default(), wire_len, time, vlan: None, link, interface: 0 }
    }
}

impl Default for Chunk {
    fn default() -> Self {
        let (buffer, entries) = (vec![0; ROOM + READ], Vec::new());
        Self { buffer, start: ROOM, end: ROOM, last: None, entries }
    }
}

impl Chunk {
    /// Number of frames.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Are there no frames in it?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All frames, in the order of the file.
    #[inline]
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.entries.iter().map(|entry| entry.frame(&self.buffer))
    }

    /// The frame with this index.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline]
    #[must_use]
    pub fn frame(&self, index: usize) -> Frame<'_> {
        self.entries[index].frame(&self.buffer)
    }

    /// Starts loading the headers of the frame with this index, if there is one: those who look at frames
    /// that another thread read ask for them some frames ahead.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        /// Bytes of the headers of most frames.
        const HEADERS: usize = 54;
        let Some(entry) = self.entries.get(index) else { return };
        let start = entry.start as usize;
        if let Some([first, .., last]) = self.buffer.get(start..start + HEADERS) {
            prefetch(first);
            prefetch(last);
        }
    }

    /// Forgets the frames that are not to be kept; after an error that frame and all behind it.
    ///
    /// # Errors
    /// That of `is_wanted`.
    pub fn retain<E>(
        &mut self,
        mut is_wanted: impl FnMut(&Frame<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        let Self { buffer, entries, .. } = self;
        let mut ended = Ok(());
        entries.retain(|entry| {
            if ended.is_err() {
                return false;
            }
            is_wanted(&entry.frame(buffer)).unwrap_or_else(|error| {
                ended = Err(error);
                false
            })
        });
        ended
    }

    /// The times of all frames, in the order of the file, to be corrected.
    pub fn times_mut(&mut self) -> impl Iterator<Item = &mut UnixNanos> {
        self.entries.iter_mut().map(|entry| &mut entry.time)
    }

    /// Index of the interface of a frame.
    pub(super) fn interface(&self, index: usize) -> u32 {
        self.entries.get(index).map_or(0, |entry| u32::from(entry.interface))
    }

    /// Reads a piece from a place in a file; less than a whole one is the last.
    pub(super) fn read_at(&mut self, file: &File, offset: u64) {
        self.clear();
        while self.end < ROOM + READ && self.last.is_none() {
            let done = (self.end - self.start) as u64;
            let room = self.buffer.get_mut(self.end..ROOM + READ).unwrap_or_default();
            let read = file.read_at(room, offset + done);
            self.note_read(read);
        }
    }

    /// Reads what there is, at most a piece, but on until there are `needed` bytes.
    pub(super) fn read_from(&mut self, reader: &mut dyn Read, needed: usize) {
        self.clear();
        let limit = ROOM + needed.max(READ);
        self.buffer.resize(limit.max(self.buffer.len()), 0);
        while self.end - self.start < needed && self.last.is_none() {
            let room = self.buffer.get_mut(self.end..limit).unwrap_or_default();
            let read = reader.read(room);
            self.note_read(read);
        }
    }

    fn clear(&mut self) {
        (self.start, self.end, self.last) = (ROOM, ROOM, None);
        self.entries.clear();
    }

    fn note_read(&mut self, read: io::Result<usize>) {
        match read {
            Ok(0) => self.last = Some(Ok(())),
            Ok(count) => self.end += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => self.last = Some(Err(error)),
        }
    }

    /// Puts the rest of the piece before in front of this one.
    pub(super) fn put_in_front(&mut self, rest: &[u8]) {
        let read = self.end - self.start;
        if rest.len() > self.start {
            self.buffer.resize(self.buffer.len().max(rest.len() + read), 0);
            self.buffer.copy_within(self.start..self.end, rest.len());
            (self.start, self.end) = (rest.len(), rest.len() + read);
        }
        self.start -= rest.len();
        self.buffer[self.start..][..rest.len()].copy_from_slice(rest);
    }

    /// Where the bytes lie in the buffer, the buffer, and the list of frames to be filled.
    pub(super) fn parts(&mut self) -> (Range<usize>, &[u8], &mut Vec<Entry>) {
        (self.start..self.end, &self.buffer, &mut self.entries)
    }

    /// Is this the last piece, and if so, because of an error?
    pub(super) const fn take_last(&mut self) -> Option<io::Result<()>> {
        self.last.take()
    }
}
