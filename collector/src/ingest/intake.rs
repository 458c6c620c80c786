//! From a sensor's bytes to commands for the store: decoder, session and queue of one connection.

use std::sync::Arc;

use wire::codec::Decoder;
use wire::frames::FrameBatch;
use wire::message::{Goodbye, Interface, SensorHello};
use wire::units::UnixNanos;

use crate::committer::{Body, Command, Frames, Queue};
use crate::session::{Intake, Now, Session, SessionError};
use crate::status::{Connection, Marks, Sensor, SensorState, Shared};
use crate::store::pcapng;
use crate::store::segment::Rate;

/// The conversation with an authenticated sensor.
pub struct Conversation {
    sensor: Arc<Sensor>,
    connection: u64,
    boot_epoch: u64,
    spool_epoch: u64,
    decoder: Decoder,
    session: Session,
    /// Records that were taken, of which nobody has asked yet.
    records: u64,
    /// Decrypted bytes that the decoder had no room for: at most what one read of the socket gave,
    /// because nothing is read while there are any.
    overflow: Vec<u8>,
}

/// How far the conversation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All that arrived was taken.
    Drained,
    /// The queue to the store is full; what arrived waits.
    Waiting,
    /// The sensor said goodbye.
    Over,
}

impl Conversation {
    /// Greets a sensor whose certificate has been verified.
    ///
    /// # Errors
    /// See [`Session::open`].
    pub fn open(
        sensor: Arc<Sensor>,
        collector: &str,
        connection: Connection,
        now: Now,
    ) -> Result<Self, SessionError> {
        let mut state = sensor.state();
        let resume = state.resume();
        state.connection = Some(connection);
        state.since = now.wall;
        state.has_ended = false;
        drop(state);
        let session = Session::open(sensor.name().to_owned(), collector, resume, now)?;
        Ok(Self {
            sensor,
            connection: connection.id,
            boot_epoch: 0,
            spool_epoch: 0,
            decoder: Decoder::new(),
            session,
            records: 0,
            overflow: Vec::new(),
        })
    }

    /// The session.
    pub const fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Gives back the memory of buffers in which nothing waits.
    pub fn rest(&mut self) {
        self.decoder.rest();
        if self.overflow.is_empty() {
            self.overflow = Vec::new();
        }
        let output = self.session.output();
        if output.is_empty() {
            *output = Vec::new();
        }
    }

    /// Takes decrypted bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let taken = if self.overflow.is_empty() { self.decoder.push(bytes) } else { 0 };
        self.overflow.extend_from_slice(&bytes[taken..]);
    }

    /// Takes messages out of what arrived, as long as the queue has room. `taken` is how far earlier
    /// connections of this sensor got, by run.
    ///
    /// # Errors
    /// See [`SessionError`]; the connection is to be closed.
    pub fn digest(
        &mut self,
        queue: &Queue,
        shared: &Shared,
        taken: &mut TakenMarks,
        now: Now,
    ) -> Result<Progress, SessionError> {
        loop {
            if !queue.has_room() {
                return Ok(Progress::Waiting);
            }
            let Some(message) = self.decoder.next_message()? else {
                if self.overflow.is_empty() {
                    return Ok(Progress::Drained);
                }
                let moved = self.decoder.push(&self.overflow);
                self.overflow.drain(..moved);
                continue;
            };
            let body = match self.session.receive(message, now)? {
                Intake::Frames { batch, missing } => {
                    let mut state = self.sensor.state();
                    state.missing = state.missing.saturating_add(missing);
                    drop(state);
                    Body::Frames(lay_out(&batch, self.session.interfaces(), queue))
                }
                Intake::Records(records) => {
                    let mut state = self.sensor.state();
                    state.missing = state.missing.saturating_add(records.missing);
                    state.duplicates += records.duplicates;
                    drop(state);
                    // Those that were stored already cost the same work.
                    self.records += u64::from(records.count) + records.duplicates;
                    Body::Records(records)
                }
                Intake::Hello(hello) => {
                    self.greet(&hello, taken, shared);
                    continue;
                }
                Intake::Goodbye(Goodbye { reason }) => {
                    self.sensor.state().has_ended = true;
                    tracing::info!(sensor = self.sensor.name(), reason, "sensor says goodbye");
                    return Ok(Progress::Over);
                }
                other => {
                    note(&self.sensor, other, now.wall);
                    taken.announced = self.session.announced();
                    continue;
                }
            };
            taken.marks = self.session.taken();
            let (sensor, connection) = (Arc::clone(&self.sensor), self.connection);
            let Self { boot_epoch, spool_epoch, .. } = *self;
            queue.send(Command { sensor, connection, boot_epoch, spool_epoch, body });
        }
    }

    /// Records that were taken since the last call.
    pub const fn count_records(&mut self) -> u64 {
        std::mem::replace(&mut self.records, 0)
    }

    /// Tells the sensor what is stored now. Nothing once a newer connection of the sensor is greeted:
    /// what is counted from then on is that one's.
    ///
    /// # Errors
    /// See [`Session::acknowledge`].
    pub fn acknowledge(&mut self) -> Result<(), SessionError> {
        let mut state = self.sensor.state();
        let is_ours = state.connection.is_some_and(|known| known.id == self.connection);
        let epochs = (state.boot_epoch, state.spool_epoch);
        if !is_ours || epochs != (self.boot_epoch, self.spool_epoch) {
            return Ok(());
        }
        let (marks, counts) = (state.marks, *state.on_connection(self.connection));
        drop(state);
        self.session.acknowledge(marks, counts)
    }

    /// Takes note that the connection is gone.
    pub fn close(&self, wall: UnixNanos) {
        let mut state = self.sensor.state();
        if state.connection.is_some_and(|connection| connection.id == self.connection) {
            state.connection = None;
            state.since = wall;
        }
    }

    fn greet(&mut self, hello: &SensorHello, taken: &mut TakenMarks, shared: &Shared) {
        let mut state = self.sensor.state();
        state.greet(hello, &shared.marks());
        let stored = state.marks;
        drop(state);
        (self.boot_epoch, self.spool_epoch) = (hello.boot_epoch, hello.record_epoch());
        taken.greet(self.boot_epoch, self.spool_epoch, stored);
        self.session.resume_after(taken.marks, taken.announced, stored);
        tracing::info!(
            sensor = self.sensor.name(),
            host = hello.host,
            version = hello.version,
            alerts = stored.alerts.0,
            records = stored.records.0,
            frames = stored.frames.0,
            "sensor connected"
        );
    }
}

/// How far one run and one spool of a sensor were taken into the queue, over all its connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct TakenMarks {
    boot_epoch: u64,
    spool_epoch: u64,
    marks: Marks,
    /// Ends of the holes that the sensor announced.
    announced: Marks,
}

impl TakenMarks {
    /// Whether all of it is stored, as far as it is of the run and the spool that `state` speaks of.
    #[must_use]
    pub fn is_stored(&self, state: &SensorState) -> bool {
        let are_frames =
            self.boot_epoch != state.boot_epoch || self.marks.frames <= state.marks.frames;
        let are_records = self.spool_epoch != state.spool_epoch
            || (self.marks.records <= state.marks.records
                && self.marks.alerts <= state.marks.alerts);
        are_frames && are_records
    }

    /// Begins with what is stored where run or spool are others than before.
    fn greet(&mut self, boot_epoch: u64, spool_epoch: u64, stored: Marks) {
        if self.boot_epoch != boot_epoch {
            self.boot_epoch = boot_epoch;
            self.marks.frames = stored.frames;
        }
        if self.spool_epoch != spool_epoch {
            self.spool_epoch = spool_epoch;
            self.marks.records = stored.records;
            self.marks.alerts = stored.alerts;
            self.announced = Marks::default();
        }
    }
}

/// A batch as the store writes it.
fn lay_out(batch: &FrameBatch<'_>, interfaces: &Arc<Vec<Interface>>, queue: &Queue) -> Frames {
    let mut blocks = queue.buffer();
    let bytes = pcapng::push_frames(&mut blocks, batch);
    Frames {
        sequence: batch.sequence,
        interfaces: Arc::clone(interfaces),
        rate: Rate { one_in: batch.sample_one_in, snaplen: batch.snaplen },
        blocks,
        count: u64::from(batch.len()),
        bytes,
    }
}

/// Takes note of what is not stored.
fn note(sensor: &Sensor, intake: Intake<'_>, wall: UnixNanos) {
    let mut state = sensor.state();
    match intake {
        Intake::Duplicate { count } => state.duplicates += count,
        Intake::Ledger(ledger) => state.take_ledger(ledger, wall),
        Intake::ClockOffset(offset) => state.clock_offset = Some(offset),
        Intake::Gap { frames, place, time, records, missing } => {
            let frames = state.told_gaps.take(place, time, frames);
            state.missing = state.missing.saturating_add(missing);
            state.gap_frames = state.gap_frames.saturating_add(frames);
            state.gap_records = state.gap_records.saturating_add(records);
        }
        Intake::Nothing
        | Intake::Hello(_)
        | Intake::Frames { .. }
        | Intake::Records(_)
        | Intake::Goodbye(_) => {}
    }
}
