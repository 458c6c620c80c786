//! A buffer of fixed size that slides over a reader.

use std::io::{ErrorKind, Read};

use super::{Fault, FileError, MAX_BLOCK};

/// Bytes asked of the reader at once: few system calls, and still in the second-level cache.
const READ: usize = 256 * 1024;

/// The buffer, the reader, and where in the file we are. Its memory is [`MAX_BLOCK`] and one read,
/// however long the file is.
pub(super) struct Window {
    reader: Box<dyn Read + Send>,
    /// Stands in error messages.
    name: String,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Position of `start` in the file.
    offset: u64,
    is_cut: bool,
}

impl Window {
    pub(super) fn new(reader: Box<dyn Read + Send>, name: String) -> Self {
        let buffer = vec![0; MAX_BLOCK + READ].into_boxed_slice();
        Self { reader, name, buffer, start: 0, end: 0, offset: 0, is_cut: false }
    }

    /// Did the file end where more was asked for than was left of it?
    pub(super) const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What lies in the window. At least what the last [`Window::fill`] asked for, if that said yes.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Has the window at least `len` bytes, after reading on where necessary? `len` is at most
    /// [`MAX_BLOCK`].
    #[inline]
    pub(super) fn fill(&mut self, len: usize) -> Result<bool, FileError> {
        if self.end - self.start >= len { Ok(true) } else { self.read_on(len) }
    }

    #[cold]
    fn read_on(&mut self, len: usize) -> Result<bool, FileError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < len {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            let count = READ.min(room.len());
            match self.reader.read(&mut room[..count]) {
                Ok(0) => {
                    self.is_cut |= self.end > 0;
                    return Ok(false);
                }
                Ok(count) => self.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset + self.end as u64;
                    return Err(FileError::Read { file: self.name.clone(), offset, source });
                }
            }
        }
        Ok(true)
    }

    /// Leaves bytes behind that the window has.
    #[inline]
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.end - self.start);
        self.start += len;
        self.offset += len as u64;
    }

    /// Leaves any number of bytes behind. False if the file has fewer.
    pub(super) fn skip(&mut self, mut len: u64) -> Result<bool, FileError> {
        loop {
            let here = len.min((self.end - self.start) as u64);
            self.consume(here as usize);
            len -= here;
            if len == 0 {
                return Ok(true);
            }
            if !self.fill(1)? {
                return Ok(false);
            }
        }
    }

    /// The file ended within a record of which nothing is left in the window.
    pub(super) const fn note_cut(&mut self) {
        self.is_cut = true;
    }

    /// The error that the record at the start of the window has this fault.
    pub(super) fn corrupt(&self, fault: Fault) -> FileError {
        FileError::Corrupt { file: self.name.clone(), offset: self.offset, fault }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// How a file lays out its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    #[inline]
    pub(super) const fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    #[inline]
    pub(super) const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    pub(super) const fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }

    /// The `index`th 32-bit word, 0 beyond the end.
    #[inline]
    pub(super) fn word(self, bytes: &[u8], index: usize) -> u32 {
        bytes.get(index * 4..).and_then(<[u8]>::first_chunk).map_or(0, |word| self.u32(*word))
    }
}
