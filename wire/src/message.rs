//! The messages behind the header. Control messages are JSON, so that fields can be added; batches
//! of records and frames are binary.

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, EncodeError};
use crate::frames::FrameBatch;
use crate::header::{self, HEADER_LEN, Header, Kind, MAX_CONTROL, Stream, seal};
use crate::ledger::Ledger;
use crate::records::RecordBatch;
use crate::units::{Sequence, UnixNanos};

/// One message, batches borrowed from the decoder.
#[derive(Debug)]
pub enum Message<'a> {
    /// Anything but data.
    Control(Control),
    /// Event records, of either stream.
    Records(RecordBatch<'a>),
    /// Captured frames.
    Frames(FrameBatch<'a>),
}

/// Messages whose body is JSON. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    /// First message of a connection, from the collector.
    CollectorHello(CollectorHello),
    /// The sensor's answer to it.
    SensorHello(SensorHello),
    /// Interfaces whose frames will follow.
    Interfaces(Interfaces),
    /// What the collector has stored.
    Ack(Ack),
    /// Proof of life.
    Heartbeat(Heartbeat),
    /// What is missing at this place.
    Gap(Gap),
    /// The sensor's ledger, about once a second.
    LedgerReport(Ledger),
    /// Last message of an orderly end.
    Goodbye(Goodbye),
}

/// The collector greets first: nothing leaves the sensor before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorHello {
    /// Minor version that the collector speaks.
    pub minor: u16,
    /// Name of the collector, the one in its certificate.
    pub collector: String,
    /// What the collector accepts.
    #[serde(default)]
    pub limits: Limits,
    /// What the collector stored last of this sensor; none if it knows nothing of it.
    #[serde(default)]
    pub resume: Option<Resume>,
}

/// Longest messages that the collector accepts, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Payload as sent.
    pub max_payload: usize,
    /// Payload of records, decompressed.
    pub max_raw: usize,
    /// Payload of a frame batch.
    pub max_frame_batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: header::MAX_PAYLOAD,
            max_raw: header::MAX_RAW,
            max_frame_batch: header::MAX_FRAME_BATCH,
        }
    }
}

/// What the collector stored last, of one run of the sensor and of one spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The run of the sensor that the position of frames belongs to.
    pub boot_epoch: u64,
    /// Last record stored on stream [`Stream::Records`]; 0 for none.
    pub records: Sequence,
    /// Last frame batch stored; 0 for none.
    pub frames: Sequence,
    /// The spool that the positions of records belong to. 0 from minor version 0: see
    /// [`Resume::record_epoch`].
    #[serde(default)]
    pub spool_epoch: u64,
    /// Last record stored on stream [`Stream::Alerts`]; 0 for none.
    #[serde(default)]
    pub alerts: Sequence,
}

impl Resume {
    /// What the positions of records belong to: the spool, or with minor version 0 the run.
    #[must_use]
    pub const fn record_epoch(&self) -> u64 {
        record_epoch(self.spool_epoch, self.boot_epoch)
    }
}

/// The sensor's answer to the collector's hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SensorHello {
    /// Minor version that the sensor speaks.
    pub minor: u16,
    /// Name of the sensor; must be the one in its certificate.
    pub sensor: String,
    /// Identifies this run of the sensor: its start in nanoseconds since 1970. The sequence of frames
    /// starts anew with it.
    pub boot_epoch: u64,
    /// Identifies the spool that numbers the records, over all runs for as long as it exists; the
    /// `boot_epoch` of a sensor that keeps none. 0 from minor version 0: see
    /// [`SensorHello::record_epoch`].
    #[serde(default)]
    pub spool_epoch: u64,
    /// Host name, for people.
    #[serde(default)]
    pub host: String,
    /// Version of the program, for people.
    #[serde(default)]
    pub version: String,
}

impl SensorHello {
    /// What the sequences of records belong to: the spool, or with minor version 0 the run.
    #[must_use]
    pub const fn record_epoch(&self) -> u64 {
        record_epoch(self.spool_epoch, self.boot_epoch)
    }
}

const fn record_epoch(spool_epoch: u64, boot_epoch: u64) -> u64 {
    if spool_epoch == 0 { boot_epoch } else { spool_epoch }
}

/// Most interfaces that a sensor declares on one connection: a host with this many is far beyond what
/// exists.
pub const MAX_INTERFACES: usize = 4096;

/// Interfaces that the frames of following batches refer to. A later message adds to an earlier
/// one, or replaces entries of the same id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// The interfaces.
    pub interfaces: Vec<Interface>,
}

/// One interface of a sensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The number that frames carry; unique within a run of the sensor.
    pub id: u32,
    /// Name, such as `eth0`.
    pub name: String,
    /// LINKTYPE_ number of capture files.
    pub linktype: u16,
    /// Most bytes kept of a frame.
    pub snaplen: u32,
}

/// Everything up to `sequence` is stored: records are on disk, frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Which stream.
    pub stream: Stream,
    /// Last position stored.
    pub sequence: Sequence,
    /// Records, or frames (not batches), taken on this connection so far, so that both ends can
    /// compare their counts.
    #[serde(default)]
    pub count: u64,
}

/// Proof of life. Each end sends one at least every 5 s and gives the other up after 15 s of
/// silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Sender's clock.
    pub sent_at: UnixNanos,
    /// The last heartbeat that the sender received, for round-trip time and clock offset.
    #[serde(default)]
    pub echo: Option<Echo>,
}

/// A received heartbeat, sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// Its `sent_at`.
    pub sent_at: UnixNanos,
    /// How long it was held before this answer, in nanoseconds.
    pub held_for: u64,
}

/// Frames or records that are missing, so that a reader sees the hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Where: `kernel`, `export`, `uplink`, `spool`.
    pub stage: String,
    /// Why: the reason in the ledger.
    pub reason: String,
    /// How many frames.
    pub frames: u64,
    /// How many bytes; 0 if unknown.
    pub bytes: u64,
    /// First time of the hole.
    pub from: UnixNanos,
    /// Last time of the hole.
    pub to: UnixNanos,
    /// The records that will not come, if it is about records. Since minor version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<RecordGap>,
}

/// The [`Gap::reason`] of numbers that no record ever had, or that no collector needs: nothing is lost.
pub const UNUSED: &str = "unused";

/// A hole in the numbers of records. It is said before the record behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordGap {
    /// Which stream.
    pub stream: Stream,
    /// First number of the hole.
    pub first: Sequence,
    /// Last number of the hole.
    pub last: Sequence,
}

/// Why the sender ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// A word: `shutdown`.
    pub reason: String,
}

impl Control {
    /// The kind in the header.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::CollectorHello(_) => Kind::CollectorHello,
            Self::SensorHello(_) => Kind::SensorHello,
            Self::Interfaces(_) => Kind::Interfaces,
            Self::Ack(_) => Kind::Ack,
            Self::Heartbeat(_) => Kind::Heartbeat,
            Self::Gap(_) => Kind::Gap,
            Self::LedgerReport(_) => Kind::LedgerReport,
            Self::Goodbye(_) => Kind::Goodbye,
        }
    }

    /// Appends the message, header included, to `out`. On error `out` is as it was.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] above [`MAX_CONTROL`], [`EncodeError::Json`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        let finished = self.write_body(out).map_err(EncodeError::Json).and_then(|()| {
            let len = out.len() - start - HEADER_LEN;
            match u32::try_from(len) {
                Ok(len_u32) if len <= MAX_CONTROL => Ok(len_u32),
                _ => Err(EncodeError::TooLong { len, limit: MAX_CONTROL }),
            }
        });
        match finished {
            Ok(len) => {
                let header = Header::plain(self.kind(), Sequence(0), len);
                let (header_space, payload) = out[start..].split_at_mut(HEADER_LEN);
                header_space.copy_from_slice(&seal(header, payload));
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    fn write_body(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        match self {
            Self::CollectorHello(body) => serde_json::to_writer(out, body),
            Self::SensorHello(body) => serde_json::to_writer(out, body),
            Self::Interfaces(body) => serde_json::to_writer(out, body),
            Self::Ack(body) => serde_json::to_writer(out, body),
            Self::Heartbeat(body) => serde_json::to_writer(out, body),
            Self::Gap(body) => serde_json::to_writer(out, body),
            Self::LedgerReport(body) => serde_json::to_writer(out, body),
            Self::Goodbye(body) => serde_json::to_writer(out, body),
        }
    }
}

impl<'a> Message<'a> {
    /// Reads the payload behind a checked header.
    pub(crate) fn decode(
        kind: Kind,
        header: &Header,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<Self, DecodeError> {
        let malformed = |detail: String| DecodeError::Malformed { kind, detail };
        let json = |error: serde_json::Error| malformed(error.to_string());
        let is_packable = matches!(kind, Kind::Records | Kind::Alerts);
        let known_flags = if is_packable { header::flags::LZ4 } else { 0 };
        if header.flags & !known_flags != 0 {
            return Err(malformed(format!("unknown flags {:#04x}", header.flags)));
        }
        if header.stream != kind.stream() as u8 {
            return Err(malformed(format!("stream {} is not its own", header.stream)));
        }
        Ok(Self::Control(match kind {
            Kind::Records | Kind::Alerts => {
                let raw = crate::records::unpack(header, payload, scratch).map_err(malformed)?;
                return RecordBatch::parse(kind.stream(), header.sequence, raw)
                    .map(Self::Records)
                    .map_err(|fault| malformed(fault.to_owned()));
            }
            Kind::Frames => {
                return FrameBatch::parse(header.sequence, payload)
                    .map(Self::Frames)
                    .map_err(|fault| malformed(fault.to_owned()));
            }
            Kind::CollectorHello => {
                Control::CollectorHello(serde_json::from_slice(payload).map_err(json)?)
            }
            Kind::SensorHello => {
                Control::SensorHello(serde_json::from_slice(payload).map_err(json)?)
            }
            Kind::Interfaces => Control::Interfaces(serde_json::from_slice(payload).map_err(json)?),
            Kind::Ack => Control::Ack(serde_json::from_slice(payload).map_err(json)?),
            Kind::Heartbeat => Control::Heartbeat(serde_json::from_slice(payload).map_err(json)?),
            Kind::Gap => Control::Gap(serde_json::from_slice(payload).map_err(json)?),
            Kind::LedgerReport => {
                Control::LedgerReport(serde_json::from_slice(payload).map_err(json)?)
            }
            Kind::Goodbye => Control::Goodbye(serde_json::from_slice(payload).map_err(json)?),
        }))
    }
}
