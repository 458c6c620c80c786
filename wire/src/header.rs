//! The fixed header in front of every message.
//!
//! ```text
//!   0        4     5      6      7       8          16         20         24      28         32
//!   ├────────┼─────┼──────┼──────┼───────┼──────────┼──────────┼──────────┼───────┼──────────┤
//!   │ "RWF1" │ ver │ kind │flags │stream │ sequence │ raw_len  │ wire_len │ crc32c│ reserved │ payload …
//!   └────────┴─────┴──────┴──────┴───────┴──────────┴──────────┴──────────┴───────┴──────────┘
//! ```
//!
//! Little-endian. Lengths are checked here, before anything is allocated or waited for.

use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;
use crate::units::Sequence;

/// First four bytes of every message.
pub const MAGIC: [u8; 4] = *b"RWF1";
/// Major version. A receiver refuses any other; minor versions are exchanged in the hellos.
pub const VERSION: u8 = 1;
/// Minor version of this build. A higher minor version only adds kinds and fields.
///
/// 0 had one stream of records, numbered anew with each run of the sensor. 1 adds
/// [`Kind::Alerts`] on a stream of its own, records numbered by the sensor's spool, and what gaps say
/// of records.
pub const MINOR: u16 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 32;
/// Longest payload of any message, in bytes as sent.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Longest payload of a record batch once decompressed, in bytes.
pub const MAX_RAW: usize = 4 << 20;
/// Longest payload of a control message (JSON), in bytes.
pub const MAX_CONTROL: usize = 256 << 10;
/// Longest payload of a frame batch, in bytes: 64 KiB of frames, so that an alert never waits long
/// behind one, and 1 KiB more, so that one frame of [`MAX_SNAPLEN`] bytes always fits.
///
/// [`MAX_SNAPLEN`]: crate::frames::MAX_SNAPLEN
pub const MAX_FRAME_BATCH: usize = 65 << 10;
/// LZ4 cannot make anything shorter than 1/255 of its length (Source: LZ4 block format).
const MAX_LZ4_RATIO: usize = 255;

const CRC_OFFSET: usize = 24;

/// What a message is. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First message of a connection, from the collector.
    CollectorHello = 1,
    /// The sensor's answer to it.
    SensorHello = 2,
    /// Interfaces whose frames will follow.
    Interfaces = 3,
    /// A batch of event records.
    Records = 4,
    /// A batch of captured frames.
    Frames = 5,
    /// What the collector has stored.
    Ack = 6,
    /// Proof of life, both ways.
    Heartbeat = 7,
    /// Frames or records that are missing at this place.
    Gap = 8,
    /// The sensor's ledger.
    LedgerReport = 9,
    /// Last message of an orderly end.
    Goodbye = 10,
    /// A batch of records that come before others: alerts, anomalies, audit. Since minor version 1.
    Alerts = 11,
}

impl Kind {
    /// The kind of this number, if this version knows it.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::CollectorHello,
            2 => Self::SensorHello,
            3 => Self::Interfaces,
            4 => Self::Records,
            5 => Self::Frames,
            6 => Self::Ack,
            7 => Self::Heartbeat,
            8 => Self::Gap,
            9 => Self::LedgerReport,
            10 => Self::Goodbye,
            11 => Self::Alerts,
            _ => return None,
        })
    }

    /// The stream that messages of this kind belong to.
    #[must_use]
    pub const fn stream(self) -> Stream {
        match self {
            Self::Records => Stream::Records,
            Self::Frames => Stream::Frames,
            Self::Alerts => Stream::Alerts,
            _ => Stream::Control,
        }
    }

    /// Longest payload of this kind, in bytes as sent.
    #[must_use]
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Records | Self::Alerts => MAX_PAYLOAD,
            Self::Frames => MAX_FRAME_BATCH,
            _ => MAX_CONTROL,
        }
    }
}

/// A sequence of its own within the connection. The number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Stream {
    /// Hellos, acknowledgements, heartbeats: not numbered, sequence 0.
    Control = 0,
    /// Event records; one number per record.
    Records = 1,
    /// Captured frames; one number per batch.
    Frames = 2,
    /// Records that come before others; one number per record. Since minor version 1.
    Alerts = 3,
}

/// How a payload is packed: bits of the header's `flags`.
pub mod flags {
    /// The payload is one LZ4 block; `raw_len` is its length once decompressed.
    pub const LZ4: u8 = 0x01;
}

/// A header whose lengths are within their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the [`Kind`]; may be one that this version does not know.
    pub kind: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Number of the [`Stream`].
    pub stream: u8,
    /// Position in the stream; 0 for control messages.
    pub sequence: Sequence,
    /// Length of the payload once decompressed, in bytes.
    pub raw_len: u32,
    /// Length of the payload as sent, in bytes.
    pub wire_len: u32,
    /// CRC-32C of the header with this field zero, followed by the payload.
    pub crc: u32,
}

impl Header {
    /// Header of an uncompressed message; its checksum is set by [`seal`].
    pub(crate) const fn plain(kind: Kind, sequence: Sequence, len: u32) -> Self {
        Self {
            kind: kind as u8,
            flags: 0,
            stream: kind.stream() as u8,
            sequence,
            raw_len: len,
            wire_len: len,
            crc: 0,
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let Self { kind, flags, stream, sequence, raw_len, wire_len, crc } = self;
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[VERSION, kind, flags, stream]);
        bytes[8..16].copy_from_slice(&sequence.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&raw_len.to_le_bytes());
        bytes[20..24].copy_from_slice(&wire_len.to_le_bytes());
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header and checks magic, version and lengths. The checksum needs the payload, see
    /// [`Header::check_crc`].
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`], [`DecodeError::UnsupportedVersion`], [`DecodeError::TooLong`],
    /// [`DecodeError::BadRawLen`].
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, DecodeError> {
        let &[
            m0,
            m1,
            m2,
            m3,
            version,
            kind,
            flags,
            stream, //
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7, //
            r0,
            r1,
            r2,
            r3,
            w0,
            w1,
            w2,
            w3, //
            c0,
            c1,
            c2,
            c3,
            _,
            _,
            _,
            _,
        ] = bytes;
        check_magic([m0, m1, m2, m3])?;
        if version != VERSION {
            return Err(DecodeError::UnsupportedVersion { found: version });
        }
        let header = Self {
            kind,
            flags,
            stream,
            sequence: Sequence(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
            raw_len: u32::from_le_bytes([r0, r1, r2, r3]),
            wire_len: u32::from_le_bytes([w0, w1, w2, w3]),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        header.check_lengths()?;
        Ok(header)
    }

    fn check_lengths(&self) -> Result<(), DecodeError> {
        let Self { kind, flags, raw_len, wire_len, .. } = *self;
        let limit = Kind::from_u8(kind).map_or(MAX_PAYLOAD, Kind::max_payload);
        for (len, limit) in [(wire_len, limit), (raw_len, MAX_RAW)] {
            if len as usize > limit {
                return Err(DecodeError::TooLong { kind, len, limit });
            }
        }
        let is_plausible = if flags & flags::LZ4 == 0 {
            raw_len == wire_len
        } else {
            raw_len as usize <= wire_len as usize * MAX_LZ4_RATIO
        };
        // An unknown kind may use its lengths as it likes: it is skipped by `wire_len`.
        if !is_plausible && Kind::from_u8(kind).is_some() {
            return Err(DecodeError::BadRawLen { kind, raw_len, wire_len });
        }
        Ok(())
    }

    /// Compares the checksum with the payload that followed.
    ///
    /// # Errors
    /// [`DecodeError::BadCrc`].
    pub fn check_crc(&self, bytes: &[u8; HEADER_LEN], payload: &[u8]) -> Result<(), DecodeError> {
        let computed = checksum(bytes, payload);
        if computed == self.crc {
            return Ok(());
        }
        Err(DecodeError::BadCrc { kind: self.kind, found: self.crc, computed })
    }
}

/// Are these the first bytes of a message?
///
/// # Errors
/// [`DecodeError::BadMagic`].
pub(crate) fn check_magic(found: [u8; 4]) -> Result<(), DecodeError> {
    if found == MAGIC { Ok(()) } else { Err(DecodeError::BadMagic { found }) }
}

/// The header's bytes with the checksum over them and `payload` filled in.
pub(crate) fn seal(header: Header, payload: &[u8]) -> [u8; HEADER_LEN] {
    let bytes = Header { crc: 0, ..header }.to_bytes();
    Header { crc: checksum(&bytes, payload), ..header }.to_bytes()
}

fn checksum(header: &[u8; HEADER_LEN], payload: &[u8]) -> u32 {
    let mut zeroed = *header;
    zeroed[CRC_OFFSET..CRC_OFFSET + 4].fill(0);
    crc32c::crc32c_append(crc32c::crc32c(&zeroed), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header::plain(Kind::Frames, Sequence(0x0102_0304_0506_0708), 100)
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = Header { crc: 0xa1a2_a3a4, flags: 0, ..header() }.to_bytes();
        let expected = [
            b'R', b'W', b'F', b'1', 1, 5, 0, 2, // magic, version, kind, flags, stream
            8, 7, 6, 5, 4, 3, 2, 1, // sequence
            100, 0, 0, 0, 100, 0, 0, 0, // raw_len, wire_len
            0xa4, 0xa3, 0xa2, 0xa1, 0, 0, 0, 0, // crc32c, reserved
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        assert_eq!(Header::from_bytes(&header().to_bytes()), Ok(header()));
    }

    #[test]
    fn lengths_beyond_their_limits_are_refused_by_kind() {
        let long = |kind: u8, len: usize| {
            let len = u32::try_from(len).unwrap();
            Header::from_bytes(&Header { kind, raw_len: len, wire_len: len, ..header() }.to_bytes())
        };
        for (kind, limit) in [
            (Kind::Frames as u8, MAX_FRAME_BATCH),
            (Kind::Records as u8, MAX_PAYLOAD),
            (Kind::Alerts as u8, MAX_PAYLOAD),
            (Kind::Ack as u8, MAX_CONTROL),
            (200, MAX_PAYLOAD),
        ] {
            assert!(long(kind, limit).is_ok(), "{kind}");
            let error = long(kind, limit + 1).unwrap_err();
            assert!(
                matches!(error, DecodeError::TooLong { limit: l, .. } if l == limit),
                "{error}"
            );
        }
    }

    #[test]
    fn a_decompressed_length_that_lz4_cannot_reach_is_refused() {
        let compressed = |raw_len, wire_len| {
            let header =
                Header { kind: 4, stream: 1, flags: flags::LZ4, raw_len, wire_len, ..header() };
            Header::from_bytes(&header.to_bytes())
        };
        assert!(compressed(2550, 10).is_ok());
        assert!(matches!(compressed(2551, 10), Err(DecodeError::BadRawLen { .. })));
        assert!(matches!(compressed(5 << 20, 1 << 20), Err(DecodeError::TooLong { .. })));
    }

    #[test]
    fn plain_payloads_have_one_length() {
        let bytes = Header { raw_len: 99, ..header() }.to_bytes();
        assert!(matches!(Header::from_bytes(&bytes), Err(DecodeError::BadRawLen { .. })));
    }
}
