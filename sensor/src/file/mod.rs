//! Capture files (pcap and pcapng) as a source of frames.
//!
//! ```text
//!   chunk      a piece of the file, read at once; frames are left where they lie
//!     ▲  │
//!     │  └──▶  scan    finds the records of each piece, in the order of the file
//!   reader              pcap     microseconds, nanoseconds, both byte orders, the patched libpcap's
//!   (any thread,        pcapng   any number of sections and interfaces; unknown blocks are skipped
//!   a file from         kind     names files of other kinds
//!   any place)          deal     which worker gets a frame
//! ```
//!
//! The reader takes nothing on trust: lengths are checked against limits before anything is read by
//! them, and memory is the same for a file of any size. It writes no files and follows none.

mod chunk;
mod deal;
mod error;
mod kind;
mod order;
mod pcap;
mod pcapng;
mod scan;
#[cfg(test)]
mod tests;

use wire::units::{UnixNanos, WireLen};

pub use self::chunk::Chunk;
pub use self::deal::{worker_of, worker_of_frame};
pub use self::error::{Fault, FileError};
pub use self::scan::{CaptureFile, Piece, Pieces};
use packet::frame::{Frame, LinkType};

/// Longest frame in a file, in bytes: what libpcap takes for one that was written by mistake too.
pub const MAX_CAPTURED: u32 = 262_144;

/// Longest pcapng block with something that is used, in bytes. Other blocks may have any length.
pub const MAX_BLOCK: usize = 1024 * 1024;

/// Interfaces of one file, so that a file cannot make us take memory without bound.
const MAX_INTERFACES: usize = 65_536;

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

/// What is found at one place of a file.
enum Step {
    /// A record with a frame.
    Frame(Record),
    /// Nothing of use in so many bytes, which need not be there yet.
    Skip { bytes: u64 },
    /// Fewer bytes than are needed to tell.
    More { needed: usize },
}

/// Where a frame lies in its record, and what the record says.
struct Record {
    /// Bytes before the frame.
    start: usize,
    captured: u32,
    /// Bytes of the whole record.
    total: usize,
    wire_len: WireLen,
    time: UnixNanos,
    link: LinkType,
    interface: u32,
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
