//! Bytes to messages, incrementally.
//!
//! ```text
//!   socket ──▶ Decoder::spare / filled ──▶ header checked ──▶ payload complete ──▶ crc ──▶ Message
//! ```
//!
//! The decoder holds at most one payload of [`MAX_PAYLOAD`](crate::header::MAX_PAYLOAD) bytes or
//! [`READ_BUFFER`] bytes, whichever is more, and one decompressed record batch. It never panics,
//! whatever the bytes.

use crate::header::{HEADER_LEN, Header, Kind, check_magic};
use crate::message::Message;

/// What the decoder buffers at most of messages that are shorter, in bytes: a few frame batches, so that
/// one read fills several and the rest that has to be moved to the front is small beside them.
pub const READ_BUFFER: usize = 256 << 10;
/// Bytes that a decoder buffers at least, once something has arrived.
const SMALLEST_BUFFER: usize = 1 << 10;

/// Why a peer's bytes are no message. The connection has to be closed: nothing after a fault can be
/// trusted to begin where it seems to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes do not begin with the magic.
    #[error("bad magic {found:02x?}")]
    BadMagic {
        /// What stood there.
        found: [u8; 4],
    },
    /// Another major version.
    #[error("unsupported version {found}, this is version {}", crate::header::VERSION)]
    UnsupportedVersion {
        /// The peer's version.
        found: u8,
    },
    /// A length in the header is above its limit.
    #[error("message of kind {kind} has {len} bytes, the limit is {limit}")]
    TooLong {
        /// Number of the kind.
        kind: u8,
        /// The length in the header.
        len: u32,
        /// What is allowed.
        limit: usize,
    },
    /// The two lengths in the header contradict each other.
    #[error("message of kind {kind} cannot have {raw_len} bytes packed into {wire_len}")]
    BadRawLen {
        /// Number of the kind.
        kind: u8,
        /// Length once decompressed.
        raw_len: u32,
        /// Length as sent.
        wire_len: u32,
    },
    /// The checksum does not fit header and payload.
    #[error("message of kind {kind} has checksum {found:#010x}, computed {computed:#010x}")]
    BadCrc {
        /// Number of the kind.
        kind: u8,
        /// The checksum in the header.
        found: u32,
        /// The checksum of what arrived.
        computed: u32,
    },
    /// The payload is not what its kind requires.
    #[error("malformed {kind:?} message: {detail}")]
    Malformed {
        /// The kind.
        kind: Kind,
        /// What is wrong with it.
        detail: String,
    },
}

impl DecodeError {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BadMagic { .. } => "bad_magic",
            Self::UnsupportedVersion { .. } => "unsupported_version",
            Self::TooLong { .. } => "too_long",
            Self::BadRawLen { .. } => "bad_raw_len",
            Self::BadCrc { .. } => "bad_crc",
            Self::Malformed { .. } => "malformed",
        }
    }
}

/// Why a message could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The body is longer than a peer accepts.
    #[error("message body has {len} bytes, the limit is {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The body has no JSON form.
    #[error("cannot write message body")]
    Json(#[source] serde_json::Error),
}

/// Turns a byte stream, cut anywhere, into messages.
#[derive(Debug)]
pub struct Decoder {
    /// `buffer[start..end]` arrived and is not consumed.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes that the message at `start` has in all, as far as known.
    needed: usize,
    /// A decompressed record batch.
    scratch: Vec<u8>,
    failed: Option<DecodeError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            needed: HEADER_LEN,
            scratch: Vec::new(),
            failed: None,
        }
    }

    /// Space to read into. Empty only while a complete message waits in the buffer: call
    /// [`Decoder::next_message`] until it gives none, then read.
    pub fn spare(&mut self) -> &mut [u8] {
        self.spare_for(READ_BUFFER)
    }

    /// Gives back the memory of the buffers if nothing waits in them. They are made anew when something
    /// arrives.
    pub fn rest(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.buffer = Vec::new();
            self.scratch = Vec::new();
        }
    }

    /// Space to read into, and no more of it than `wanted` bytes ask for: who sends a heartbeat now and
    /// then takes little memory.
    fn spare_for(&mut self, wanted: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let waiting = self.end - self.start;
        let wanted = (waiting + wanted).clamp(SMALLEST_BUFFER, READ_BUFFER).next_power_of_two();
        if self.buffer.len() < wanted {
            let mut larger = vec![0; wanted];
            larger[..waiting].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = larger;
            (self.start, self.end) = (0, waiting);
        }
        let is_tight = self.start + self.needed > self.buffer.len();
        if is_tight || self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, waiting);
        }
        // `needed` comes from a header whose lengths were checked.
        if self.needed > self.buffer.len() {
            self.buffer.resize(self.needed, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that the first `len` bytes of [`Decoder::spare`] were filled. More than there is space
    /// for counts as all of it.
    pub fn filled(&mut self, len: usize) {
        self.end = self.buffer.len().min(self.end.saturating_add(len));
    }

    /// Copies as many bytes as there is space for, and says how many. Zero only while a complete
    /// message waits.
    #[must_use]
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare_for(bytes.len());
        let len = spare.len().min(bytes.len());
        spare[..len].copy_from_slice(&bytes[..len]);
        self.filled(len);
        len
    }

    /// The next complete message; none until more bytes arrive. Kinds that this version does not
    /// know are skipped.
    ///
    /// # Errors
    /// Any [`DecodeError`]; the decoder then gives the same error for ever.
    pub fn next_message(&mut self) -> Result<Option<Message<'_>>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let next = match self.next_payload() {
            Ok(next) => next,
            Err(error) => {
                self.failed = Some(error.clone());
                return Err(error);
            }
        };
        let Some((kind, header, payload)) = next else { return Ok(None) };
        match Message::decode(kind, &header, &self.buffer[payload], &mut self.scratch) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Consumes messages up to the first of a known kind, and says where its payload lies.
    fn next_payload(
        &mut self,
    ) -> Result<Option<(Kind, Header, std::ops::Range<usize>)>, DecodeError> {
        loop {
            let arrived = &self.buffer[self.start..self.end];
            if let Some(magic) = arrived.first_chunk() {
                check_magic(*magic)?;
            }
            let Some((bytes, behind)) = arrived.split_first_chunk::<HEADER_LEN>() else {
                self.needed = HEADER_LEN;
                return Ok(None);
            };
            let header = Header::from_bytes(bytes)?;
            let len = header.wire_len as usize;
            self.needed = HEADER_LEN + len;
            let Some(payload) = behind.get(..len) else { return Ok(None) };
            header.check_crc(bytes, payload)?;
            let begin = self.start + HEADER_LEN;
            self.start = begin + len;
            self.needed = HEADER_LEN;
            if let Some(kind) = Kind::from_u8(header.kind) {
                return Ok(Some((kind, header, begin..begin + len)));
            }
        }
    }
}
