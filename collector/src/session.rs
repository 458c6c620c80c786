//! What the collector says to one sensor, and what it makes of the answers. No I/O and no clock:
//! time is an argument, messages come in, messages go out.
//!
//! ```text
//!   collector                                   sensor
//!      ── CollectorHello (resume point) ──────────▶
//!      ◀────────────────────────── SensorHello ───     name = the certificate's, or closed
//!      ◀── Interfaces, Records, Frames, Gap, LedgerReport ───
//!      ── Ack (stored) ───────────────────────────▶
//!      ◀────────────── Heartbeat, every 5 s ──────▶    15 s of silence: closed
//!      ◀───────────────────────────── Goodbye ────     orderly end
//! ```
//!
//! Three streams are numbered, each by itself: alerts and records (by the sensor's spool, over its
//! restarts), and batches of frames (by its run). What is not beyond the last position taken was stored already (the sensor did not learn
//! it before its connection broke); it is skipped and acknowledged. A hole is counted and accepted:
//! the sensor gave up what is missing; holes of records that it announces by a gap are counted apart.
//! What lies before the first batch that is known of a stream is no hole: another collector may have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use wire::codec::{DecodeError, EncodeError};
use wire::frames::FrameBatch;
use wire::header::{MINOR, Stream};
use wire::ledger::Ledger;
use wire::message::{
    Ack, CollectorHello, Control, Echo, Gap, Goodbye, Heartbeat, Interface, Limits, MAX_INTERFACES,
    Message, RecordGap, Resume, SensorHello, UNUSED,
};
use wire::records::{RecordBatch, RecordKind};
use wire::units::{Sequence, UnixNanos};

use crate::status::{Marks, OnConnection};
use crate::store::MOST_OPEN as MOST_GROUPS;
use crate::store::log::batch::push_record;
use crate::store::segment;

/// Silence after which a sensor is given up.
pub const SILENCE: Duration = Duration::from_secs(15);
/// How often a heartbeat is sent.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Longest name of an interface, in bytes: a file name, when a capture file is read.
const LONGEST_INTERFACE: usize = 255;

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub instant: Instant,
    /// For people and other machines.
    pub wall: UnixNanos,
}

/// Why a session ends in disorder.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer's bytes are no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message of ours cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The sensor calls itself by another name than its certificate.
    #[error("sensor calls itself {claimed:?}, its certificate says {certified:?}")]
    NameMismatch {
        /// The name in its hello or in an event.
        claimed: String,
        /// The name in its certificate.
        certified: String,
    },
    /// A message at a time when it must not come.
    #[error("{found} instead of {wanted}")]
    WrongOrder {
        /// What came.
        found: &'static str,
        /// What should have come.
        wanted: &'static str,
    },
    /// A frame of an interface that was not declared.
    #[error("frame of undeclared interface {id}")]
    UnknownInterface {
        /// The number in the frame.
        id: u32,
    },
    /// More interfaces, or longer names, than any host has.
    #[error("{count} interfaces, or one with an unusable name")]
    TooManyInterfaces {
        /// How many there would be.
        count: usize,
    },
    /// More link types, or interfaces whose frames are kept apart, than segments may be open.
    #[error(
        "{count} link types and raw IP interfaces, {MOST_GROUPS} can be stored: name fewer in the sensor's \
         capture.interface"
    )]
    TooManyLinkTypes {
        /// How many there would be.
        count: usize,
    },
    /// A record that is not a JSON object.
    #[error("record {sequence} is no event")]
    BadRecord {
        /// Its position.
        sequence: Sequence,
    },
    /// Nothing came for [`SILENCE`].
    #[error("nothing received for {} s", .silence.as_secs())]
    Silent {
        /// How long.
        silence: Duration,
    },
}

impl SessionError {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Decode(error) => error.name(),
            Self::Encode(_) => "cannot_encode",
            Self::NameMismatch { .. } => "name_mismatch",
            Self::WrongOrder { .. } => "wrong_order",
            Self::UnknownInterface { .. } => "unknown_interface",
            Self::TooManyInterfaces { .. } => "too_many_interfaces",
            Self::TooManyLinkTypes { .. } => "too_many_link_types",
            Self::BadRecord { .. } => "bad_record",
            Self::Silent { .. } => "silent",
        }
    }
}

/// What a message asks the caller to do.
#[derive(Debug)]
pub enum Intake<'m> {
    /// Nothing.
    Nothing,
    /// The sensor introduced itself. The caller answers with [`Session::resume_after`].
    Hello(SensorHello),
    /// Frames to store; `missing` batches before them never came.
    Frames {
        /// The frames.
        batch: FrameBatch<'m>,
        /// Batches that never came.
        missing: u64,
    },
    /// Records to store.
    Records(NewRecords),
    /// A batch that was stored already.
    Duplicate {
        /// Records, or batches of frames.
        count: u64,
    },
    /// The sensor's ledger.
    Ledger(Ledger),
    /// What the sensor lost.
    Gap {
        /// Frames. They count only where the gap was not told before.
        frames: u64,
        /// Stage and reason.
        place: (String, String),
        /// When it began and ended, by the sensor's clock.
        time: (UnixNanos, UnixNanos),
        /// Records; 0 for numbers that no record ever had.
        records: u64,
        /// Records before the hole that never came.
        missing: u64,
    },
    /// The sensor's clock minus ours, in nanoseconds.
    ClockOffset(i64),
    /// Orderly end.
    Goodbye(Goodbye),
}

/// Records that are not stored yet.
#[derive(Debug, PartialEq, Eq)]
pub struct NewRecords {
    /// [`Stream::Records`] or [`Stream::Alerts`].
    pub stream: Stream,
    /// The records, see [`push_record`].
    pub records: Vec<u8>,
    /// How many.
    pub count: u32,
    /// How many of them are alerts.
    pub alerts: u64,
    /// Position of the first one.
    pub first: Sequence,
    /// Position of the last one.
    pub last: Sequence,
    /// Records before them that never came.
    pub missing: u64,
    /// Records in front of the batch that were stored already.
    pub duplicates: u64,
}

/// The conversation with one sensor.
#[derive(Debug)]
pub struct Session {
    /// Name in the sensor's certificate.
    sensor: String,
    is_greeted: bool,
    is_over: bool,
    /// A frame batch was taken on this connection.
    has_frames: bool,
    /// In the order of their numbers. Shared with the batches that are on their way to the store.
    interfaces: Arc<Vec<Interface>>,
    /// What was taken, stored or still on its way to the disk.
    taken: Marks,
    /// Holes in the numbers of records that the sensor announced end here.
    announced: Marks,
    /// What the sensor was told to be stored.
    acknowledged: Marks,
    /// Records and frames of this connection that the sensor was told to be stored.
    counts: OnConnection,
    last_heard: Instant,
    last_beat: Instant,
    /// The sensor's last heartbeat, to be echoed, and when it came.
    heartbeat: Option<(UnixNanos, Instant)>,
    /// Encoded messages for the sensor.
    output: Vec<u8>,
}

impl Session {
    /// A new session; the hello of `collector` is its first output. `resume` is what is stored of
    /// this sensor.
    ///
    /// # Errors
    /// [`SessionError::Encode`], never with names of the allowed length.
    pub fn open(
        sensor: String,
        collector: &str,
        resume: Option<Resume>,
        now: Now,
    ) -> Result<Self, SessionError> {
        let mut session = Self {
            sensor,
            is_greeted: false,
            is_over: false,
            has_frames: false,
            interfaces: Arc::default(),
            taken: Marks::default(),
            announced: Marks::default(),
            acknowledged: Marks::default(),
            counts: OnConnection::default(),
            last_heard: now.instant,
            last_beat: now.instant,
            heartbeat: None,
            output: Vec::new(),
        };
        let collector = collector.to_owned();
        let limits = Limits::default();
        session.send(Control::CollectorHello(CollectorHello {
            minor: MINOR,
            collector,
            limits,
            resume,
        }))?;
        Ok(session)
    }

    /// Takes one message.
    ///
    /// # Errors
    /// See [`SessionError`]; the connection is to be closed then.
    pub fn receive<'m>(
        &mut self,
        message: Message<'m>,
        now: Now,
    ) -> Result<Intake<'m>, SessionError> {
        self.last_heard = now.instant;
        if !self.is_greeted {
            return match message {
                Message::Control(Control::SensorHello(hello)) => self.greet(hello, now),
                other => Err(out_of_order(&other, "sensor_hello")),
            };
        }
        match message {
            Message::Frames(batch) => self.take_frames(batch),
            Message::Records(batch) => self.take_records(&batch),
            Message::Control(control) => self.take_control(control, now),
        }
    }

    /// Says where this sensor stands: `taken` is what reached the committer already, on this
    /// connection or an earlier one, `announced` the ends of the holes that were announced, `stored`
    /// what is stored.
    pub const fn resume_after(&mut self, taken: Marks, announced: Marks, stored: Marks) {
        self.taken = taken;
        self.announced = announced;
        self.acknowledged = stored;
    }

    /// Takes note of what is stored, and acknowledges what is new. `counts` is what was stored of this
    /// connection.
    ///
    /// # Errors
    /// [`SessionError::Encode`].
    pub fn acknowledge(&mut self, stored: Marks, counts: OnConnection) -> Result<(), SessionError> {
        self.counts = counts;
        for stream in [Stream::Alerts, Stream::Records, Stream::Frames] {
            if stored.of(stream) > self.acknowledged.of(stream) {
                self.acknowledged.set(stream, stored.of(stream));
                self.send_ack(stream)?;
            }
        }
        Ok(())
    }

    /// Does what the passing of time asks for: heartbeats, and giving up a silent sensor.
    /// `is_listening` is false while we ourselves do not read from it.
    ///
    /// # Errors
    /// [`SessionError::Silent`].
    pub fn tick(&mut self, now: Now, is_listening: bool) -> Result<(), SessionError> {
        if !is_listening {
            self.last_heard = now.instant;
        }
        let silence = now.instant.duration_since(self.last_heard);
        if silence >= SILENCE {
            return Err(SessionError::Silent { silence });
        }
        if now.instant.duration_since(self.last_beat) >= HEARTBEAT {
            self.beat(now)?;
        }
        Ok(())
    }

    /// Says goodbye to the sensor.
    ///
    /// # Errors
    /// [`SessionError::Encode`].
    pub fn close(&mut self, reason: &str) -> Result<(), SessionError> {
        self.send(Control::Goodbye(Goodbye { reason: reason.to_owned() }))
    }

    /// Encoded messages that wait to be sent. The caller takes them out.
    pub const fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Interfaces that the sensor declared.
    #[must_use]
    pub const fn interfaces(&self) -> &Arc<Vec<Interface>> {
        &self.interfaces
    }

    /// What was taken so far.
    #[must_use]
    pub const fn taken(&self) -> Marks {
        self.taken
    }

    /// Where the last announced hole of each stream ends.
    #[must_use]
    pub const fn announced(&self) -> Marks {
        self.announced
    }

    /// Whether the sensor said goodbye.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// The first heartbeat leaves at once, so that its echo soon tells how far the clocks are apart.
    fn greet<'m>(&mut self, hello: SensorHello, now: Now) -> Result<Intake<'m>, SessionError> {
        if hello.sensor != self.sensor {
            return Err(self.mismatch(hello.sensor));
        }
        self.is_greeted = true;
        self.beat(now)?;
        Ok(Intake::Hello(hello))
    }

    fn take_frames<'m>(&mut self, batch: FrameBatch<'m>) -> Result<Intake<'m>, SessionError> {
        if batch.sequence <= self.taken.frames {
            self.repeat_ack(Stream::Frames, batch.sequence)?;
            return Ok(Intake::Duplicate { count: 1 });
        }
        let mut last = None;
        for frame in &batch {
            let id = frame.interface;
            if last != Some(id) && segment::interface(&self.interfaces, id).is_none() {
                return Err(SessionError::UnknownInterface { id });
            }
            last = Some(id);
        }
        // What was under way when a connection ended is lost with it, and the sensor says so by a gap. After a
        // collector was killed, some of it is stored: the copy of the mark is up to a second old.
        let is_first = !std::mem::replace(&mut self.has_frames, true);
        let missing = if is_first { 0 } else { missing_before(self.taken.frames, batch.sequence) };
        self.taken.frames = batch.sequence;
        Ok(Intake::Frames { batch, missing })
    }

    fn take_records<'m>(&mut self, batch: &RecordBatch<'_>) -> Result<Intake<'m>, SessionError> {
        let (stream, last) = (batch.stream, batch.last());
        let taken = self.taken.of(stream);
        if last <= taken {
            self.repeat_ack(stream, last)?;
            return Ok(Intake::Duplicate { count: u64::from(batch.len()) });
        }
        let expected = taken.next();
        let missing = missing_before(taken.max(self.announced.of(stream)), batch.first);
        let (mut records, mut count, mut alerts) = (Vec::new(), 0, 0);
        for record in batch.iter().filter(|record| record.sequence >= expected) {
            self.check_event(record.sequence, record.json)?;
            push_record(&mut records, record.kind, record.json);
            count += 1;
            alerts += u64::from(record.kind == RecordKind::Alert);
        }
        self.taken.set(stream, last);
        let first = batch.first.max(expected);
        let duplicates = u64::from(batch.len() - count);
        let new = NewRecords { stream, records, count, alerts, first, last, missing, duplicates };
        Ok(Intake::Records(new))
    }

    /// A hole that the sensor announces. It may say so again, on the next connection.
    fn take_gap<'m>(&mut self, gap: Gap) -> Intake<'m> {
        let (mut records, mut missing) = (0, 0);
        if let Some(RecordGap {
            stream: stream @ (Stream::Records | Stream::Alerts),
            first,
            last,
        }) = gap.records
        {
            let known = self.taken.of(stream).max(self.announced.of(stream));
            let begin = first.max(Sequence(known.0.saturating_add(1)));
            if last >= begin {
                records = (last.0 - begin.0).saturating_add(1);
                missing = missing_before(known, begin);
                self.announced.set(stream, last);
            }
        }
        let records = if gap.reason == UNUSED { 0 } else { records };
        let Gap { stage, reason, frames, from, to, .. } = gap;
        Intake::Gap { frames, place: (stage, reason), time: (from, to), records, missing }
    }

    /// A record must be a JSON object, and must not claim to be another sensor's.
    fn check_event(&self, sequence: Sequence, json: &str) -> Result<(), SessionError> {
        #[derive(Deserialize)]
        struct Event<'e> {
            #[serde(borrow)]
            ringwatch: Option<Origin<'e>>,
        }
        #[derive(Deserialize)]
        struct Origin<'e> {
            #[serde(borrow)]
            sensor: Option<std::borrow::Cow<'e, str>>,
        }
        // An array would be read as the fields of the struct, in order.
        if !json.starts_with('{') {
            return Err(SessionError::BadRecord { sequence });
        }
        let event: Event<'_> =
            serde_json::from_str(json).map_err(|_| SessionError::BadRecord { sequence })?;
        match event.ringwatch.and_then(|origin| origin.sensor) {
            Some(claimed) if claimed != self.sensor => Err(self.mismatch(claimed.into_owned())),
            _ => Ok(()),
        }
    }

    fn take_control<'m>(&mut self, control: Control, now: Now) -> Result<Intake<'m>, SessionError> {
        match control {
            Control::Interfaces(declared) => {
                self.declare(declared.interfaces)?;
                Ok(Intake::Nothing)
            }
            Control::Heartbeat(heartbeat) => self.take_heartbeat(heartbeat, now),
            Control::LedgerReport(ledger) => Ok(Intake::Ledger(ledger)),
            Control::Gap(gap) => Ok(self.take_gap(gap)),
            Control::Goodbye(goodbye) => {
                self.is_over = true;
                Ok(Intake::Goodbye(goodbye))
            }
            other @ (Control::CollectorHello(_) | Control::SensorHello(_) | Control::Ack(_)) => {
                Err(out_of_order(&Message::Control(other), "data"))
            }
        }
    }

    /// Adds interfaces, or replaces those of the same number. What is said again costs nothing: the list may be
    /// shared, and long.
    fn declare(&mut self, declared: Vec<Interface>) -> Result<(), SessionError> {
        let mut has_changed = false;
        for interface in declared {
            let place = self.interfaces.binary_search_by_key(&interface.id, |known| known.id);
            if place.is_ok_and(|at| self.interfaces[at] == interface) {
                continue;
            }
            let count = self.interfaces.len() + usize::from(place.is_err());
            let is_usable = interface.name.len() <= LONGEST_INTERFACE
                && !interface.name.chars().any(char::is_control);
            if count > MAX_INTERFACES || !is_usable {
                return Err(SessionError::TooManyInterfaces { count });
            }
            has_changed = true;
            let interfaces = Arc::make_mut(&mut self.interfaces);
            match place {
                Ok(at) => interfaces[at] = interface,
                Err(at) => interfaces.insert(at, interface),
            }
        }
        let count = if has_changed { segment::count_groups(&self.interfaces) } else { 0 };
        if count > MOST_GROUPS { Err(SessionError::TooManyLinkTypes { count }) } else { Ok(()) }
    }

    /// Remembers a heartbeat for the answer; the echo of ours in it tells how far the clocks are
    /// apart, if both ways took the same time.
    fn take_heartbeat<'m>(
        &mut self,
        heartbeat: Heartbeat,
        now: Now,
    ) -> Result<Intake<'m>, SessionError> {
        self.heartbeat = Some((heartbeat.sent_at, now.instant));
        let Some(echo) = heartbeat.echo else {
            self.beat(now)?;
            return Ok(Intake::Nothing);
        };
        let both_ways =
            i128::from(now.wall.0) - i128::from(echo.sent_at.0) - i128::from(echo.held_for);
        let here_when_sent = i128::from(now.wall.0) - both_ways / 2;
        let offset = i128::from(heartbeat.sent_at.0) - here_when_sent;
        Ok(i64::try_from(offset).map_or(Intake::Nothing, Intake::ClockOffset))
    }

    fn beat(&mut self, now: Now) -> Result<(), SessionError> {
        self.last_beat = now.instant;
        let echo = self.heartbeat.take().map(|(sent_at, received)| {
            let held = now.instant.duration_since(received).as_nanos();
            Echo { sent_at, held_for: u64::try_from(held).unwrap_or(u64::MAX) }
        });
        self.send(Control::Heartbeat(Heartbeat { sent_at: now.wall, echo }))
    }

    /// Says again that something is stored, unless it is only on its way there.
    fn repeat_ack(&mut self, stream: Stream, sequence: Sequence) -> Result<(), SessionError> {
        if sequence <= self.acknowledged.of(stream) { self.send_ack(stream) } else { Ok(()) }
    }

    fn send_ack(&mut self, stream: Stream) -> Result<(), SessionError> {
        let (sequence, count) = (self.acknowledged.of(stream), self.counts.of(stream));
        self.send(Control::Ack(Ack { stream, sequence, count }))
    }

    fn send(&mut self, message: Control) -> Result<(), SessionError> {
        Ok(message.encode(&mut self.output)?)
    }

    fn mismatch(&self, claimed: String) -> SessionError {
        SessionError::NameMismatch { claimed, certified: self.sensor.clone() }
    }
}

/// Positions between the last one known, 0 if none is known of this stream, and the next one.
const fn missing_before(taken: Sequence, next: Sequence) -> u64 {
    if taken.0 == 0 { 0 } else { next.0.saturating_sub(taken.0).saturating_sub(1) }
}

fn out_of_order(found: &Message<'_>, wanted: &'static str) -> SessionError {
    let found = match found {
        Message::Frames(_) => "frames",
        Message::Records(_) => "records",
        Message::Control(control) => match control {
            Control::CollectorHello(_) => "collector_hello",
            Control::SensorHello(_) => "second sensor_hello",
            Control::Interfaces(_) => "interfaces",
            Control::Ack(_) => "ack",
            Control::Heartbeat(_) => "heartbeat",
            Control::Gap(_) => "gap",
            Control::LedgerReport(_) => "ledger_report",
            Control::Goodbye(_) => "goodbye",
        },
    };
    SessionError::WrongOrder { found, wanted }
}

#[cfg(test)]
mod tests {
    use wire::codec::Decoder;
    use wire::frames::FrameBatchWriter;
    use wire::message::Interfaces;
    use wire::records::RecordBatchWriter;
    use wire::units::WireLen;

    use super::*;

    /// A session in virtual time, and what the sensor receives from it.
    struct Link {
        session: Session,
        start: Instant,
        elapsed: Duration,
        decoder: Decoder,
    }

    const WALL: UnixNanos = UnixNanos(1_000_000_000_000);

    impl Link {
        fn new(resume: Option<Resume>) -> Self {
            let start = Instant::now();
            let now = Now { instant: start, wall: WALL };
            let session = Session::open("a".into(), "ids", resume, now).unwrap();
            Self { session, start, elapsed: Duration::ZERO, decoder: Decoder::new() }
        }

        /// A link whose sensor has said hello and has interface 1.
        fn greeted() -> Self {
            let mut link = Self::new(None);
            link.control(Control::SensorHello(hello("a"))).unwrap();
            let interface = Interface { id: 1, name: "e".into(), linktype: 1, snaplen: 9 };
            link.control(Control::Interfaces(Interfaces { interfaces: vec![interface] })).unwrap();
            link.sent();
            link
        }

        fn now(&self) -> Now {
            Now { instant: self.start + self.elapsed, wall: WALL.plus(self.elapsed) }
        }

        fn control(&mut self, control: Control) -> Result<Intake<'static>, SessionError> {
            let now = self.now();
            self.session.receive(Message::Control(control), now)
        }

        fn records(&mut self, first: u64, records: &[&str]) -> Result<Intake<'_>, SessionError> {
            self.batch(RecordBatchWriter::new(), first, records)
        }

        fn alerts(&mut self, first: u64, records: &[&str]) -> Result<Intake<'_>, SessionError> {
            self.batch(RecordBatchWriter::of_alerts(), first, records)
        }

        /// Announces a hole; gives the records in it that count.
        fn gap(&mut self, reason: &str, stream: Stream, first: u64, last: u64) -> u64 {
            let gap = Gap {
                stage: "spool".into(),
                reason: reason.into(),
                frames: 0,
                bytes: 0,
                from: WALL,
                to: WALL,
                records: Some(RecordGap { stream, first: Sequence(first), last: Sequence(last) }),
            };
            match self.control(Control::Gap(gap)).unwrap() {
                Intake::Gap { frames: 0, records, missing: 0, .. } => records,
                other => panic!("{other:?}"),
            }
        }

        fn batch(
            &mut self,
            mut batch: RecordBatchWriter,
            first: u64,
            records: &[&str],
        ) -> Result<Intake<'_>, SessionError> {
            for json in records {
                batch.try_push(RecordKind::Flow, json.as_bytes()).unwrap();
            }
            let mut bytes = Vec::new();
            batch.finish(Sequence(first), &mut bytes);
            self.message(&bytes)
        }

        fn frames(&mut self, sequence: u64, interface: u32) -> Result<Intake<'_>, SessionError> {
            let mut batch = FrameBatchWriter::new(1, 9);
            batch.try_push(UnixNanos(1), WireLen(1), interface, &[&[0]]).unwrap();
            let bytes = batch.finish(Sequence(sequence)).to_vec();
            self.message(&bytes)
        }

        fn message(&mut self, bytes: &[u8]) -> Result<Intake<'_>, SessionError> {
            let now = self.now();
            assert_eq!(self.decoder.push(bytes), bytes.len());
            let message = self.decoder.next_message()?.unwrap();
            self.session.receive(message, now)
        }

        /// Lets time pass, with a tick each second.
        fn pass(&mut self, seconds: u64, is_listening: bool) -> Result<(), SessionError> {
            for _ in 0..seconds {
                self.elapsed += Duration::from_secs(1);
                let now = self.now();
                self.session.tick(now, is_listening)?;
            }
            Ok(())
        }

        /// What the collector sent since the last call.
        fn sent(&mut self) -> Vec<Control> {
            let bytes = std::mem::take(self.session.output());
            let mut decoder = Decoder::new();
            assert_eq!(decoder.push(&bytes), bytes.len());
            let mut sent = Vec::new();
            while let Some(message) = decoder.next_message().unwrap() {
                match message {
                    Message::Control(control) => sent.push(control),
                    other => panic!("unexpected {other:?}"),
                }
            }
            sent
        }
    }

    fn hello(name: &str) -> SensorHello {
        SensorHello {
            minor: 0,
            sensor: name.into(),
            boot_epoch: 5,
            spool_epoch: 0,
            host: String::new(),
            version: String::new(),
        }
    }

    fn marks(records: u64, frames: u64) -> Marks {
        Marks { records: Sequence(records), frames: Sequence(frames), alerts: Sequence(0) }
    }

    fn counts(records: u64, frames: u64) -> OnConnection {
        OnConnection { records, frames, ..OnConnection::default() }
    }

    fn ack(stream: Stream, sequence: u64, count: u64) -> Control {
        Control::Ack(Ack { stream, sequence: Sequence(sequence), count })
    }

    fn check_records(intake: &Intake<'_>, lines: &str, missing: u64, duplicates: u64) {
        let Intake::Records(records) = intake else { panic!("{intake:?}") };
        let stored = RecordBatch::parse(records.stream, records.first, &records.records).unwrap();
        let stored: String = stored.iter().map(|record| format!("{}\n", record.json)).collect();
        assert_eq!(stored, lines);
        assert_eq!((records.missing, records.duplicates), (missing, duplicates));
    }

    #[test]
    fn interfaces_may_be_declared_until_there_are_as_many_as_a_sensor_has_at_most() {
        let mut link = Link::greeted();
        for first in (0..MAX_INTERFACES as u32).step_by(512) {
            let interfaces = (first..first + 512).map(|id| Interface {
                id,
                name: format!("veth{id}"),
                linktype: 1,
                snaplen: 9,
            });
            let interfaces = interfaces.collect();
            link.control(Control::Interfaces(Interfaces { interfaces })).unwrap();
            assert!(link.frames(u64::from(first) + 1, first + 511).is_ok());
        }
        let error = link.frames(1 << 40, MAX_INTERFACES as u32).unwrap_err();
        assert_eq!(error.name(), "unknown_interface");
    }

    #[test]
    fn the_first_word_is_the_collectors_and_says_where_to_go_on() {
        let resume = Resume {
            boot_epoch: 5,
            records: Sequence(3),
            frames: Sequence(4),
            spool_epoch: 6,
            alerts: Sequence(2),
        };
        let mut link = Link::new(Some(resume));
        let sent = link.sent();
        let [Control::CollectorHello(hello)] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!((hello.collector.as_str(), hello.resume), ("ids", Some(resume)));
    }

    #[test]
    fn records_already_taken_are_skipped_and_the_others_kept() {
        let mut link = Link::greeted();
        check_records(&link.records(1, &["{}", "{ }"]).unwrap(), "{}\n{ }\n", 0, 0);
        check_records(&link.records(2, &["{ }", "{\"c\":3}"]).unwrap(), "{\"c\":3}\n", 0, 1);
        assert!(matches!(link.records(1, &["{}"]).unwrap(), Intake::Duplicate { count: 1 }));
        check_records(&link.records(6, &["{}"]).unwrap(), "{}\n", 2, 0);
    }

    #[test]
    fn a_duplicate_is_acknowledged_only_when_it_is_stored() {
        let mut link = Link::greeted();
        link.records(1, &["{}"]).unwrap();
        link.records(1, &["{}"]).unwrap();
        assert_eq!(link.sent(), []);
        link.session.acknowledge(marks(1, 0), counts(1, 0)).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Records, 1, 1)]);
        link.records(1, &["{}"]).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Records, 1, 1)]);
    }

    #[test]
    fn each_stream_is_acknowledged_when_it_has_moved() {
        let mut link = Link::greeted();
        link.session.acknowledge(marks(3, 0), counts(3, 0)).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Records, 3, 3)]);
        link.session.acknowledge(marks(3, 2), counts(3, 20)).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Frames, 2, 20)]);
        link.session.acknowledge(marks(3, 2), counts(3, 20)).unwrap();
        assert_eq!(link.sent(), []);
    }

    #[test]
    fn what_an_earlier_connection_handed_over_is_not_taken_again() {
        let mut link = Link::greeted();
        link.session.resume_after(marks(10, 4), Marks::default(), marks(8, 4));
        assert!(matches!(link.records(9, &["{}", "{}"]).unwrap(), Intake::Duplicate { count: 2 }));
        assert!(matches!(link.frames(4, 1).unwrap(), Intake::Duplicate { .. }));
        assert_eq!(link.sent(), [ack(Stream::Frames, 4, 0)]);
        // Batch 5 went with the connection; the sensor tells how many frames it had.
        assert!(matches!(link.frames(6, 1).unwrap(), Intake::Frames { missing: 0, .. }));
        assert!(matches!(link.frames(8, 1).unwrap(), Intake::Frames { missing: 1, .. }));
    }

    #[test]
    fn what_lies_before_the_first_batch_of_an_unknown_run_is_no_hole() {
        let mut link = Link::greeted();
        check_records(&link.records(u64::MAX - 9, &["{}"]).unwrap(), "{}\n", 0, 0);
        assert!(matches!(link.frames(1000, 1).unwrap(), Intake::Frames { missing: 0, .. }));
        assert!(matches!(link.frames(1003, 1).unwrap(), Intake::Frames { missing: 2, .. }));
    }

    #[test]
    fn alerts_and_records_are_numbered_acknowledged_and_missed_each_by_themselves() {
        let mut link = Link::greeted();
        check_records(&link.alerts(1, &["{}", "{ }"]).unwrap(), "{}\n{ }\n", 0, 0);
        check_records(&link.records(1, &["{}"]).unwrap(), "{}\n", 0, 0);
        check_records(&link.alerts(5, &["{}"]).unwrap(), "{}\n", 2, 0);
        check_records(&link.records(3, &["{}"]).unwrap(), "{}\n", 1, 0);
        assert!(matches!(link.alerts(4, &["{}", "{}"]).unwrap(), Intake::Duplicate { count: 2 }));
        check_records(&link.records(2, &["{}", "{}", "{\"n\":4}"]).unwrap(), "{\"n\":4}\n", 0, 2);
        let stored = Marks { alerts: Sequence(5), records: Sequence(3), frames: Sequence(0) };
        let counts = OnConnection { alerts: 3, records: 2, ..OnConnection::default() };
        link.session.acknowledge(stored, counts).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Alerts, 5, 3), ack(Stream::Records, 3, 2)]);
        link.alerts(5, &["{}"]).unwrap();
        assert_eq!(link.sent(), [ack(Stream::Alerts, 5, 3)]);
    }

    #[test]
    fn a_hole_that_was_announced_is_counted_once_and_not_as_missing() {
        let mut link = Link::greeted();
        link.records(1, &["{}"]).unwrap();
        assert_eq!(link.gap("spool_full", Stream::Records, 2, 4), 3);
        assert_eq!(link.gap("spool_full", Stream::Records, 2, 4), 0, "said again");
        assert_eq!(link.gap("spool_full", Stream::Records, 3, 6), 2, "two of it are new");
        check_records(&link.records(8, &["{}"]).unwrap(), "{}\n", 1, 0);
        assert_eq!(link.gap("spool_full", Stream::Records, 5, 8), 0, "taken meanwhile");
        assert_eq!(link.gap(UNUSED, Stream::Records, 9, 1 << 40), 0, "nothing was lost");
        check_records(&link.records((1 << 40) + 1, &["{}"]).unwrap(), "{}\n", 0, 0);
        // The other stream has its own holes.
        link.alerts(1, &["{}"]).unwrap();
        check_records(&link.alerts(4, &["{}"]).unwrap(), "{}\n", 2, 0);
        assert_eq!(link.gap("spool_full", Stream::Frames, 1, 9), 0, "frames are not numbered so");
        assert_eq!(link.gap("spool_full", Stream::Alerts, 0, u64::MAX), u64::MAX - 4);
    }

    #[test]
    fn what_lies_before_an_announced_hole_and_never_came_is_missing() {
        let mut link = Link::greeted();
        link.records(1, &["{}"]).unwrap();
        let records =
            Some(RecordGap { stream: Stream::Records, first: Sequence(5), last: Sequence(6) });
        let (stage, reason) = ("spool".into(), "spool_aged".into());
        let gap = Gap { stage, reason, frames: 0, bytes: 0, from: WALL, to: WALL, records };
        let intake = link.control(Control::Gap(gap)).unwrap();
        assert!(matches!(intake, Intake::Gap { records: 2, missing: 3, .. }), "{intake:?}");
        check_records(&link.records(7, &["{}"]).unwrap(), "{}\n", 0, 0);
    }

    #[test]
    fn a_heartbeat_leaves_every_five_seconds() {
        let mut link = Link::greeted();
        link.pass(14, true).unwrap();
        let beats = link.sent();
        let times: Vec<_> = beats
            .iter()
            .map(|beat| match beat {
                Control::Heartbeat(beat) => beat.sent_at.since(WALL).as_secs(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(times, [5, 10]);
    }

    #[test]
    fn fifteen_seconds_of_silence_end_the_session_before_and_after_the_hello() {
        for mut link in [Link::new(None), Link::greeted()] {
            link.pass(14, true).unwrap();
            assert_eq!(link.pass(1, true).unwrap_err().name(), "silent");
        }
    }

    #[test]
    fn silence_that_is_our_own_fault_does_not_count() {
        let mut link = Link::greeted();
        link.pass(100, false).unwrap();
        link.pass(14, true).unwrap();
        assert_eq!(link.pass(1, true).unwrap_err().name(), "silent");
    }

    #[test]
    fn an_echo_tells_how_far_the_clocks_are_apart() {
        let mut link = Link::greeted();
        link.pass(5, true).unwrap();
        let beat_left = WALL.plus(Duration::from_secs(5));
        // 2 s to the sensor, held for 1 s, 2 s back; the sensor's clock is 100 s ahead.
        link.pass(4, true).unwrap();
        link.pass(1, true).unwrap();
        let sent_at = beat_left.plus(Duration::from_secs(3 + 100));
        let echo = Some(Echo { sent_at: beat_left, held_for: 1_000_000_000 });
        let intake = link.control(Control::Heartbeat(Heartbeat { sent_at, echo })).unwrap();
        let Intake::ClockOffset(offset) = intake else { panic!("{intake:?}") };
        assert_eq!(offset, 100_000_000_000);
    }

    #[test]
    fn each_heartbeat_is_echoed_once_with_the_time_it_was_held() {
        let mut link = Link::greeted();
        link.pass(3, true).unwrap();
        let echo = Some(Echo { sent_at: WALL, held_for: 0 });
        let beat = Heartbeat { sent_at: UnixNanos(77), echo };
        link.control(Control::Heartbeat(beat)).unwrap();
        link.pass(7, true).unwrap();
        let echoes: Vec<_> = link
            .sent()
            .into_iter()
            .map(|beat| match beat {
                Control::Heartbeat(beat) => beat.echo,
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = Echo { sent_at: UnixNanos(77), held_for: 2_000_000_000 };
        assert_eq!(echoes, [Some(expected), None]);
    }

    #[test]
    fn an_interface_declared_again_replaces_the_earlier_one() {
        let mut link = Link::greeted();
        let renamed = Interface { id: 1, name: "new".into(), linktype: 1, snaplen: 9 };
        let interfaces = vec![renamed.clone()];
        link.control(Control::Interfaces(Interfaces { interfaces })).unwrap();
        assert_eq!(link.session.interfaces().as_slice(), [renamed]);
        assert_eq!(link.frames(1, 2).unwrap_err().name(), "unknown_interface");
    }

    #[test]
    fn more_link_types_or_raw_interfaces_than_segments_may_be_open_are_refused() {
        const RAW: u16 = 101;
        let declare = |link: &mut Link, ids: std::ops::Range<u32>, linktype: fn(u32) -> u16| {
            let interface = |id| {
                let name = format!("tun{id}");
                Interface { id, name, linktype: linktype(id), snaplen: 9 }
            };
            let interfaces = ids.map(interface).collect();
            link.control(Control::Interfaces(Interfaces { interfaces })).map(|_| ())
        };
        let most = MOST_GROUPS as u32;
        for linktype in [|id| 200 + id as u16, |_| RAW] {
            let mut link = Link::greeted();
            // Ethernet, of which there may be any number, is one of them.
            declare(&mut link, 1000..2000, |_| 1).unwrap();
            declare(&mut link, 0..most - 1, linktype).unwrap();
            declare(&mut link, 0..most - 1, linktype).unwrap();
            let error = declare(&mut link, most..most + 1, linktype).unwrap_err();
            assert_eq!(error.name(), "too_many_link_types");
            let said = "65 link types and raw IP interfaces, 64 can be stored: name fewer in the \
                        sensor's capture.interface";
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn interfaces_that_are_said_again_are_not_copied_and_may_be_replaced() {
        let mut link = Link::greeted();
        let interface =
            |id: u32, linktype| Interface { id, name: format!("eth{id}"), linktype, snaplen: 9 };
        let mut declare = |all: &[(u32, u16)]| {
            let interfaces = all.iter().map(|(id, linktype)| interface(*id, *linktype)).collect();
            link.control(Control::Interfaces(Interfaces { interfaces })).unwrap();
            Arc::clone(link.session.interfaces())
        };
        let first = declare(&[(9, 1), (7, 1), (8, 1)]);
        let again = declare(&[(8, 1), (9, 1)]);
        assert!(Arc::ptr_eq(&first, &again));
        let other = declare(&[(8, 113)]);
        let types: Vec<_> = other.iter().map(|known| (known.id, known.linktype)).collect();
        assert_eq!(types, [(1, 1), (7, 1), (8, 113), (9, 1)], "with that of the greeting");
    }

    #[test]
    fn interfaces_without_end_or_with_control_characters_are_refused() {
        let interface = |id: usize, name: &str| Interface {
            id: u32::try_from(id).unwrap(),
            name: name.into(),
            linktype: 1,
            snaplen: 9,
        };
        for interfaces in [
            (0..=MAX_INTERFACES).map(|id| interface(id, "e")).collect(),
            vec![interface(1, "line\nbreak")],
            vec![interface(1, &"x".repeat(256))],
        ] {
            let mut link = Link::greeted();
            let error = link.control(Control::Interfaces(Interfaces { interfaces })).unwrap_err();
            assert_eq!(error.name(), "too_many_interfaces");
        }
    }
}
