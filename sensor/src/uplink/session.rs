//! What is said on a connection, without the connection: time is an argument, bytes go in and out.
//!
//! ```text
//!            connected            CollectorHello
//!   Away ───────────────▶ Greeting ─────────────▶ Open ──┐
//!    ▲                       │                     │     │ alerts, records, frames; acknowledgements;
//!    └──── disconnected ─────┴─────────────────────┘◀────┘ heartbeats every 5 s
//! ```
//!
//! Nothing is sent before the collector's hello. Alerts go before other records, records before frames.
//! Records are kept in the [`Spool`] until they are acknowledged, over any number of connections. Frames
//! are sent once. Every record and frame that was ever handed in is acknowledged, in flight or lost for
//! a reason, at any time; what is lost is told to the collector in gaps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::codec::EncodeError;
use wire::frames::FrameBatchWriter;
use wire::header::{Kind, MAX_FRAME_BATCH, MAX_PAYLOAD, MINOR, Stream};
use wire::ledger::Ledger;
use wire::message::{
    Ack, CollectorHello, Control, Echo, Gap, Goodbye, Heartbeat, Interfaces, Limits, Message,
    RecordGap, Resume, SensorHello,
};
use wire::records::RecordKind;
use wire::units::{Sequence, UnixNanos};

use super::delivery::{Deliveries, LossReason};
use super::gaps::FrameGaps;
use super::queue::BatchesInFlight;
use crate::interfaces::InterfaceNames;
use crate::spool::{Hole, Spool, SpoolError};

/// Interfaces of one message: at 15 bytes a name, each of which JSON may write as six, they stay far
/// below the longest message.
const PER_DECLARATION: usize = 512;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For waiting.
    pub monotonic: Instant,
    /// For telling others.
    pub unix: UnixNanos,
}

/// How long a session waits.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// A peer that neither acknowledges nor beats for so long is given up.
    pub silence: Duration,
    /// The first dial, and the one after a connection that was lost, are put off by up to so much, so that
    /// the sensors of a collector that was restarted do not all come back at once.
    pub spread: Duration,
    /// Mean time between two attempts to go back to the preferred collector.
    pub preferred: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            spread: Duration::from_secs(3),
            preferred: Duration::from_secs(600),
        }
    }
}

/// Why a session ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The collector neither acknowledged nor beat.
    #[error("no heartbeat and no acknowledgement for {silence:?}")]
    TimedOut {
        /// For how long.
        silence: Duration,
    },
    /// The collector calls itself other than its certificate does.
    #[error("collector says it is {said:?}, its certificate says {certified:?}")]
    WrongName {
        /// In the hello.
        said: String,
        /// In the certificate.
        certified: String,
    },
    /// The collector accepts less than this sensor sends.
    #[error("collector accepts too little: {limits:?}")]
    LimitsTooSmall {
        /// What it accepts.
        limits: Limits,
    },
    /// The collector does not know the stream of alerts, and would skip them.
    #[error(
        "collector speaks version 1.{minor} of the wire format, this sensor 1.{MINOR}; upgrade it first \
         (records wait until then)"
    )]
    TooOld {
        /// Minor version that the collector speaks.
        minor: u16,
    },
    /// A message that does not belong here.
    #[error("unexpected {kind:?}")]
    Unexpected {
        /// Its kind.
        kind: Kind,
    },
    /// The collector acknowledges what was never sent.
    #[error("collector acknowledges {stream:?} up to {sequence}, which was never sent")]
    ImpossibleAck {
        /// The stream.
        stream: Stream,
        /// The position.
        sequence: Sequence,
    },
    /// The collector ends the connection.
    #[error("collector says goodbye: {reason:?}")]
    Goodbye {
        /// Its reason.
        reason: String,
    },
    /// A control message could not be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// One sensor's side of all its connections, one after the other.
pub struct Session {
    hello: SensorHello,
    interfaces: Arc<InterfaceNames>,
    snaplen: u32,
    /// So many of the interfaces were declared on this connection.
    declared: usize,
    timing: Timing,
    link: Link,
    spool: Spool,
    gaps: FrameGaps,
    /// A goodbye was said on this connection: nothing follows it.
    is_leaving: bool,
    /// The time, when it was told last.
    now: Option<Now>,
    batches: BatchesInFlight,
    /// Control messages that wait to be sent, in bytes. Bounded: heartbeats and ledgers are added
    /// only when it is empty.
    control: Vec<u8>,
}

#[derive(Debug)]
enum Link {
    Away,
    Greeting { collector: String, since: Instant },
    Open(Open),
}

#[derive(Debug)]
struct Open {
    last_heard: Instant,
    last_beat: Instant,
    /// The collector's last heartbeat, and when it came.
    heard_beat: Option<(Heartbeat, Instant)>,
    round_trip: Option<Duration>,
    /// The collector's clock minus ours, in nanoseconds.
    clock_offset: Option<i64>,
}

impl Session {
    /// A session without a connection. Frames refer to these interfaces and have so many bytes at most;
    /// records wait in `spool`, whose name goes into the hello.
    #[must_use]
    pub fn new(
        hello: SensorHello,
        (interfaces, snaplen): (Arc<InterfaceNames>, u32),
        timing: Timing,
        spool: Spool,
    ) -> Self {
        Self {
            hello: SensorHello { spool_epoch: spool.epoch(), ..hello },
            interfaces,
            snaplen,
            declared: 0,
            timing,
            link: Link::Away,
            spool,
            gaps: FrameGaps::default(),
            is_leaving: false,
            now: None,
            batches: BatchesInFlight::new(),
            control: Vec::new(),
        }
    }

    /// A connection is up to a collector whose certificate has this name.
    pub fn connected(&mut self, now: Now, collector: String) {
        self.link = Link::Greeting { collector, since: now.monotonic };
        (self.is_leaving, self.now) = (false, Some(now));
    }

    /// The connection is gone. What was sent and not acknowledged stays in flight until the next
    /// hello tells what arrived.
    pub fn disconnected(&mut self) {
        self.link = Link::Away;
        self.control.clear();
        self.gaps.disconnected();
        self.spool.rewind();
    }

    /// After a panic: begins anew, with what the disk has of the records.
    ///
    /// # Errors
    /// The spool cannot be opened again.
    pub fn start_over(&mut self, now: Now) -> Result<(), SpoolError> {
        self.link = Link::Away;
        self.control.clear();
        self.gaps.disconnected();
        self.batches.give_up_all(LossReason::UplinkPanicked);
        self.spool.start_over(now)?;
        self.hello.spool_epoch = self.spool.epoch();
        Ok(())
    }

    /// Takes a message of the collector.
    ///
    /// # Errors
    /// Any [`SessionError`] but [`SessionError::TimedOut`]; the connection has to be closed.
    pub fn receive(&mut self, now: Now, message: &Message<'_>) -> Result<(), SessionError> {
        let control = match message {
            Message::Control(control) => control,
            Message::Records(_) => return Err(SessionError::Unexpected { kind: Kind::Records }),
            Message::Frames(_) => return Err(SessionError::Unexpected { kind: Kind::Frames }),
        };
        match (&mut self.link, control) {
            (Link::Greeting { .. }, Control::CollectorHello(hello)) => self.greet(now, hello),
            (Link::Open(open), Control::Ack(ack)) => {
                open.last_heard = now.monotonic;
                self.acknowledge(*ack)
            }
            (Link::Open(open), Control::Heartbeat(heartbeat)) => {
                open.take_heartbeat(now, *heartbeat);
                heartbeat.echo.iter().for_each(|echo| self.gaps.answered(echo.sent_at));
                Ok(())
            }
            (Link::Greeting { .. } | Link::Open(_), Control::Goodbye(Goodbye { reason })) => {
                Err(SessionError::Goodbye { reason: reason.clone() })
            }
            (_, control) => Err(SessionError::Unexpected { kind: control.kind() }),
        }
    }

    /// Gives up a silent peer, and beats when it is time.
    ///
    /// # Errors
    /// [`SessionError::TimedOut`], [`SessionError::Encode`]; the connection has to be closed.
    pub fn tick(&mut self, now: Now) -> Result<(), SessionError> {
        let last_heard = match &self.link {
            Link::Away => return Ok(()),
            Link::Greeting { since, .. } => *since,
            Link::Open(open) => open.last_heard,
        };
        if now.monotonic.saturating_duration_since(last_heard) >= self.timing.silence {
            return Err(SessionError::TimedOut { silence: self.timing.silence });
        }
        if let Link::Open(open) = &mut self.link
            && self.control.is_empty()
            && now.monotonic.saturating_duration_since(open.last_beat) >= self.timing.heartbeat
        {
            let heartbeat = open.beat(now);
            self.gaps.beat(heartbeat.sent_at);
            Control::Heartbeat(heartbeat).encode(&mut self.control)?;
        }
        Ok(())
    }

    /// Takes a record, to be kept until a collector has it.
    pub fn push_record(&mut self, now: Now, kind: RecordKind, json: Vec<u8>) {
        self.spool.push(kind, json, now.unix);
    }

    /// Does what is due in the spool. To be called in each turn, after the records that came in it.
    pub fn keep_records(&mut self, now: Now) {
        self.now = Some(now);
        self.spool.work(now);
    }

    /// Sends the sensor's ledger, and what it shows of lost frames since the last one, if a collector
    /// listens and the last one has left.
    ///
    /// # Errors
    /// [`SessionError::Encode`]; the connection has to be closed.
    pub fn report_ledger(&mut self, now: Now, ledger: Ledger) -> Result<(), SessionError> {
        if self.is_open() && self.control.is_empty() {
            for gap in self.gaps.since_last(&ledger, now.unix) {
                Control::Gap(gap.clone()).encode(&mut self.control)?;
            }
            Control::LedgerReport(ledger).encode(&mut self.control)?;
        }
        Ok(())
    }

    /// Announces the end of the connection; it is the last message.
    ///
    /// # Errors
    /// [`SessionError::Encode`]; the connection has to be closed.
    pub fn say_goodbye(&mut self) -> Result<(), SessionError> {
        if self.is_open() {
            let goodbye = Goodbye { reason: "shutdown".to_owned() };
            Control::Goodbye(goodbye).encode(&mut self.control)?;
            self.is_leaving = true;
        }
        Ok(())
    }

    /// Appends what has to be sent next to `out`: waiting control messages, else one batch of
    /// records, and before it the holes in their numbers. False if there is nothing.
    ///
    /// # Errors
    /// [`SessionError::Encode`]; the connection has to be closed.
    pub fn next_output(&mut self, out: &mut Vec<u8>) -> Result<bool, SessionError> {
        if !self.is_open() {
            return Ok(false);
        }
        if !self.control.is_empty() {
            out.append(&mut self.control);
            return Ok(true);
        }
        let Some(now) = self.now.filter(|_| !self.is_leaving) else { return Ok(false) };
        let Some(batch) = self.spool.next_batch(now.monotonic) else { return Ok(false) };
        for hole in &batch.holes {
            Control::Gap(gap(batch.stream, hole, now)).encode(out)?;
        }
        self.spool.finish_batch(&batch, out);
        Ok(true)
    }

    /// May a frame batch be sent now? Only on an open connection, after all records, and while the
    /// collector keeps up with its acknowledgements.
    #[must_use]
    pub fn can_send_frames(&self) -> bool {
        self.is_open()
            && !self.is_leaving
            && self.control.is_empty()
            && !self.spool.has_unsent()
            && !self.batches.is_full()
    }

    /// Numbers a batch and gives the bytes to send. They must all be sent, or the connection closed.
    pub fn send_frames<'a>(&mut self, batch: &'a mut FrameBatchWriter) -> &'a [u8] {
        let sequence = self.batches.send(batch.frames());
        batch.finish(sequence)
    }

    /// Appends what the collector has to know of interfaces before the next batch: those that came since
    /// the last one. To be called with the batch in hand, as its frames may refer to the very last.
    ///
    /// # Errors
    /// [`SessionError::Encode`]; the connection has to be closed.
    pub fn declare(&mut self, out: &mut Vec<u8>) -> Result<(), SessionError> {
        if self.interfaces.load().len() == self.declared {
            return Ok(());
        }
        let declaration = self.interfaces.declaration(self.declared, self.snaplen);
        self.declared += declaration.len();
        for interfaces in declaration.chunks(PER_DECLARATION) {
            let interfaces = Interfaces { interfaces: interfaces.to_vec() };
            Control::Interfaces(interfaces).encode(out)?;
        }
        Ok(())
    }

    /// Counts a batch that cannot be sent.
    pub fn lose_frames(&mut self, batch: &FrameBatchWriter, reason: LossReason) {
        self.batches.lose(batch.frames(), reason);
    }

    /// The sensor stops: gives up everything that is not acknowledged, but for the records that are on the
    /// disk.
    pub fn abandon(&mut self, now: Now) {
        self.spool.close(now);
        self.batches.abandon(LossReason::Shutdown);
    }

    /// Is it known what is to be sent first? Until then, nobody is to be dialled.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.spool.is_ready()
    }

    /// Has the collector said hello?
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Is everything sent, and acknowledged?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.control.is_empty() && self.spool.is_empty() && self.batches.is_empty()
    }

    /// Time from a heartbeat to its echo on this connection, without what the collector held it.
    #[must_use]
    pub const fn round_trip(&self) -> Option<Duration> {
        match &self.link {
            Link::Open(open) => open.round_trip,
            Link::Away | Link::Greeting { .. } => None,
        }
    }

    /// The collector's clock minus this one, in nanoseconds, if both ways take the same time.
    #[must_use]
    pub const fn clock_offset(&self) -> Option<i64> {
        match &self.link {
            Link::Open(open) => open.clock_offset,
            Link::Away | Link::Greeting { .. } => None,
        }
    }

    /// Sends no more data on this connection: it is about to be given up for a better one. True once all
    /// frames that were sent are acknowledged.
    pub fn wind_down(&mut self) -> bool {
        self.is_leaving = true;
        self.batches.is_empty()
    }

    /// What became of everything that was handed in.
    #[must_use]
    pub const fn deliveries(&self) -> Deliveries {
        Deliveries { frames: self.batches.delivery(), records: self.spool.delivery() }
    }

    fn greet(&mut self, now: Now, hello: &CollectorHello) -> Result<(), SessionError> {
        if let Link::Greeting { collector, .. } = &self.link
            && *collector != hello.collector
        {
            return Err(SessionError::WrongName {
                said: hello.collector.clone(),
                certified: collector.clone(),
            });
        }
        if hello.minor < MINOR {
            return Err(SessionError::TooOld { minor: hello.minor });
        }
        let Limits { max_payload, max_raw, max_frame_batch } = hello.limits;
        if max_payload < MAX_PAYLOAD || max_raw < MAX_PAYLOAD || max_frame_batch < MAX_FRAME_BATCH {
            return Err(SessionError::LimitsTooSmall { limits: hello.limits });
        }
        self.resume(hello.resume)?;
        Control::SensorHello(self.hello.clone()).encode(&mut self.control)?;
        self.declared = 0;
        let mut declaration = Vec::new();
        self.declare(&mut declaration)?;
        self.control.append(&mut declaration);
        self.link = Link::Open(Open {
            last_heard: now.monotonic,
            last_beat: now.monotonic,
            heard_beat: None,
            round_trip: None,
            clock_offset: None,
        });
        Ok(())
    }

    /// Settles what was in flight when the connection before broke.
    fn resume(&mut self, resume: Option<Resume>) -> Result<(), SessionError> {
        let stored = resume.filter(|resume| resume.record_epoch() == self.spool.epoch());
        if let Some(Resume { records, alerts, .. }) = stored {
            for (stream, sequence) in [(Stream::Alerts, alerts), (Stream::Records, records)] {
                if !self.spool.meet(stream, sequence) {
                    return Err(SessionError::ImpossibleAck { stream, sequence });
                }
            }
        }
        if let Some(Resume { frames: sequence, .. }) =
            resume.filter(|resume| resume.boot_epoch == self.hello.boot_epoch)
        {
            self.acknowledge(Ack { stream: Stream::Frames, sequence, count: 0 })?;
        }
        self.batches.abandon(LossReason::Disconnected);
        Ok(())
    }

    fn acknowledge(&mut self, ack: Ack) -> Result<(), SessionError> {
        let Ack { stream, sequence, count: _ } = ack;
        let is_possible = match stream {
            Stream::Records | Stream::Alerts => self.spool.acknowledge(stream, sequence),
            Stream::Frames => self.batches.acknowledge(sequence),
            Stream::Control => false,
        };
        if is_possible { Ok(()) } else { Err(SessionError::ImpossibleAck { stream, sequence }) }
    }
}

/// What the collector is told of a hole in the numbers of records.
fn gap(stream: Stream, hole: &Hole, now: Now) -> Gap {
    let Hole { first, last, reason } = *hole;
    Gap {
        stage: "spool".to_owned(),
        reason: reason.to_owned(),
        frames: 0,
        bytes: 0,
        from: now.unix,
        to: now.unix,
        records: Some(RecordGap { stream, first, last }),
    }
}

/// How far the clock of a peer is ahead that wrote `sent_at` into an answer to a heartbeat of ours, which
/// left at one time and was held for another; the answer came at `now`.
fn clock_offset(
    now: UnixNanos,
    sent_at: UnixNanos,
    (left_at, held): (UnixNanos, Duration),
) -> Option<i64> {
    let nanos = |time: UnixNanos| i128::from(time.0);
    let both_ways = nanos(now) - nanos(left_at) - i128::try_from(held.as_nanos()).ok()?;
    i64::try_from(nanos(sent_at) - (nanos(now) - both_ways / 2)).ok()
}

impl Open {
    fn take_heartbeat(&mut self, now: Now, heartbeat: Heartbeat) {
        self.last_heard = now.monotonic;
        self.heard_beat = Some((heartbeat, now.monotonic));
        if let Some(Echo { sent_at, held_for }) = heartbeat.echo {
            let held = Duration::from_nanos(held_for);
            self.round_trip = Some(now.unix.since(sent_at).saturating_sub(held));
            self.clock_offset = clock_offset(now.unix, heartbeat.sent_at, (sent_at, held));
        }
    }

    fn beat(&mut self, now: Now) -> Heartbeat {
        self.last_beat = now.monotonic;
        // Each heartbeat is echoed once: a second echo would only show how long it was held.
        let echo = self.heard_beat.take().map(|(heartbeat, heard_at)| Echo {
            sent_at: heartbeat.sent_at,
            held_for: now.monotonic.saturating_duration_since(heard_at).as_nanos() as u64,
        });
        Heartbeat { sent_at: now.unix, echo }
    }
}

#[cfg(test)]
mod tests;
