//! Capture files (pcap and pcapng) as a source of frames.
//!
//! ```text
//!   reader ─▶ window     fixed buffer that slides over the file; records are read where they lie
//!             pcap       microseconds, nanoseconds, both byte orders, the patched libpcap's records
//!             pcapng     any number of sections and interfaces; unknown blocks are skipped
//!             deal       which worker gets a frame
//! ```
//!
//! The reader takes nothing on trust: lengths are checked against limits before anything is read by
//! them, and memory is the same for a file of any size. It writes no files and follows none.

mod deal;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;
mod window;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use wire::units::{UnixNanos, WireLen};

pub use self::deal::worker_of;
use self::pcap::Pcap;
use self::pcapng::Pcapng;
use self::window::Window;
use crate::frame::{Frame, LinkType};

/// Longest frame in a file, in bytes: what libpcap takes for one that was written by mistake too.
pub const MAX_CAPTURED: u32 = 262_144;

/// Longest pcapng block with something that is used, in bytes. Other blocks may have any length.
pub const MAX_BLOCK: usize = 1024 * 1024;

/// A capture file, read from its start to its end.
pub struct CaptureFile {
    window: Window,
    format: Format,
    interfaces: Vec<Interface>,
    /// Bytes of the record that the last frame lies in: left behind when the next is asked for.
    used: usize,
}

enum Format {
    Pcap(Pcap),
    Pcapng(Pcapng),
}

/// An interface that a file has frames of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, where the file gives one; at most 255 characters are kept.
    pub name: Option<String>,
    /// How its frames begin.
    pub link: LinkType,
    /// Bytes to which frames were cut when they were captured, 0 for no limit.
    pub snaplen: u32,
}

/// A frame of a file.
#[derive(Clone, Copy, Debug)]
pub struct FileFrame<'a> {
    /// The frame. One without a time (a simple packet block) has that of the one before it.
    pub frame: Frame<'a>,
    /// Index into [`CaptureFile::interfaces`].
    pub interface: u32,
}

/// Where a frame lies in the window, and what its record says.
struct Record {
    data: Range<usize>,
    /// Bytes of the whole record.
    total: usize,
    wire_len: WireLen,
    time: UnixNanos,
    interface: u32,
}

impl CaptureFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`FileError::Open`] and those of [`CaptureFile::from_reader`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::from_reader(file, name),
            Err(source) => Err(FileError::Open { file: name, source }),
        }
    }

    /// Reads from anything, standard input for one. `name` stands in error messages.
    ///
    /// # Errors
    /// [`FileError::NotCapture`] if it begins like no capture file, [`FileError::Corrupt`] if its
    /// header is cut short or of an unknown version, [`FileError::Read`] if reading fails.
    pub fn from_reader(
        reader: impl Read + Send + 'static,
        name: impl Into<String>,
    ) -> Result<Self, FileError> {
        let mut window = Window::new(Box::new(reader), name.into());
        window.fill(4)?;
        if let Some((pcap, interface)) = Pcap::open(&mut window)? {
            let (format, interfaces) = (Format::Pcap(pcap), vec![interface]);
            return Ok(Self { window, format, interfaces, used: 0 });
        }
        if let Some(pcapng) = Pcapng::open(&mut window)? {
            let (format, interfaces) = (Format::Pcapng(pcapng), Vec::new());
            return Ok(Self { window, format, interfaces, used: 0 });
        }
        let found = window.bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Err(FileError::NotCapture { file: window.name().to_owned(), found })
    }

    /// The next frame, `None` at the end of the file: then [`CaptureFile::truncated`] tells whether
    /// the last record was whole.
    ///
    /// # Errors
    /// [`FileError::Corrupt`] if the next record makes no sense, [`FileError::Read`] if reading
    /// fails. The file cannot be read on after that.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<FileFrame<'_>>, FileError> {
        self.window.consume(self.used);
        self.used = 0;
        let record = match &mut self.format {
            Format::Pcap(pcap) => pcap.next_record(&mut self.window),
            Format::Pcapng(pcapng) => pcapng.next_record(&mut self.window, &mut self.interfaces),
        };
        let Some(Record { data, total, wire_len, time, interface }) = record? else {
            return Ok(None);
        };
        self.used = total;
        let link = self.interfaces.get(interface as usize).map_or(LinkType::NULL, |of| of.link);
        let data = self.window.bytes().get(data).unwrap_or_default();
        Ok(Some(FileFrame { frame: Frame { data, wire_len, time, vlan: None, link }, interface }))
    }

    /// The interfaces of all sections, in the order of the file, as far as it was read.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Did the file end within a record? The frames before it were all delivered.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        self.window.is_cut()
    }
}

/// The link type that a file's number stands for.
fn link_type(number: u32) -> LinkType {
    match number as u16 {
        // Raw IP as libpcap on Linux once numbered it in files.
        12 => LinkType::RAW,
        // The upper half holds the length of the frame check sequence.
        number => LinkType(number),
    }
}

/// Why a capture file cannot be read, or read on.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened.
    #[error("cannot open {file}")]
    Open {
        /// Name of the file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system cannot read on.
    #[error("cannot read {file} at byte {offset}")]
    Read {
        /// Name of the file.
        file: String,
        /// Bytes that were read before.
        offset: u64,
        /// What the system says.
        source: io::Error,
    },
    /// It does not begin like a capture file.
    #[error("{file} is no pcap or pcapng file: it begins with `{found}`")]
    NotCapture {
        /// Name of the file.
        file: String,
        /// The first four bytes in hexadecimal, fewer if there are no more.
        found: String,
    },
    /// A record makes no sense.
    #[error("{file} is corrupt at byte {offset}: {fault}")]
    Corrupt {
        /// Name of the file.
        file: String,
        /// Where the record begins.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file ends within its header.
    #[error("the file ends within its header")]
    HeaderTruncated,
    /// The format's version is not known.
    #[error("version {major}.{minor} of the format is not known")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The byte-order magic of a section header is none.
    #[error("the section header has no byte order")]
    ByteOrder,
    /// A record or a frame in it is longer than any should be.
    #[error("a length of {length} bytes is above the limit of {limit}")]
    TooLong {
        /// Bytes that the file gives.
        length: u32,
        /// The most that is read.
        limit: u32,
    },
    /// A block's length cannot be.
    #[error("a block length of {length} is below 12 or no multiple of 4")]
    BlockLength {
        /// Bytes that the file gives.
        length: u32,
    },
    /// The lengths before and after a block differ.
    #[error("the block length is {length} before the block and {trailer} after it")]
    Trailer {
        /// Bytes according to the field before.
        length: u32,
        /// Bytes according to the field after.
        trailer: u32,
    },
    /// A block has no room for its fixed fields.
    #[error("the block is shorter than its fixed fields")]
    BodyTooShort,
    /// A frame does not fit in its block.
    #[error("a frame of {length} bytes is in a block with room for {room}")]
    CapturedLength {
        /// Bytes of the frame.
        length: u32,
        /// Bytes that the block has for it.
        room: usize,
    },
    /// An option is longer than what is left of its block.
    #[error("option {code} of {length} bytes exceeds its block")]
    Option {
        /// Option code.
        code: u16,
        /// Bytes of its value.
        length: u16,
    },
    /// A packet names an interface that its section has not described.
    #[error("interface {interface} is not described")]
    UnknownInterface {
        /// Index within the section.
        interface: u32,
    },
    /// There are more interfaces than are kept.
    #[error("there are more than {limit} interfaces")]
    TooManyInterfaces {
        /// The most that are kept.
        limit: usize,
    },
}
