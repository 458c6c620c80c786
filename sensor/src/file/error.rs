//! Why a capture file cannot be read, or read on.

use std::io;

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
    #[error("{file} is no pcap or pcapng file: it begins with `{found}`{remark}")]
    NotCapture {
        /// Name of the file.
        file: String,
        /// The first four bytes in hexadecimal, fewer if there are no more.
        found: String,
        /// What begins so, and what to do with it; empty if that is not known.
        remark: &'static str,
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
