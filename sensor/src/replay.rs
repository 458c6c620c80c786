//! `--read FILE`: the analysis of a live sensor on a capture file, by the file's own clock.
//!
//! ```text
//!   reader ──deals of frames──▶ worker 0..N-1     frames dealt as the kernel's fanout would deal them
//!     │    ◀──evidence, connections──             all meet at each 250 ms of packet clock
//!     └─▶ detector, recorder                      merged in an order that no thread decides
//! ```
//!
//! The clock of a file is the latest time seen: it never runs backwards. At the end of the file
//! virtual time runs on until nothing can fall due any more. Two runs print the same bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use wire::ledger::Ledger;
use wire::units::{UnixNanos, WireLen};

use crate::analyse::{self, Analyser, FlowSettings, VECTOR};
use crate::config::Config;
use crate::connections::NewConnection;
use crate::counters::Counters;
use crate::detect::{Alert, Detector};
use crate::evidence::{Contact, Published};
use crate::file::{self, CaptureFile, FileError, FileFrame};
use crate::flow::EndedFlow;
use crate::frame::{Frame, LinkType};
use crate::output::{Output, OutputError};
use crate::packet;
use crate::recorder::{self, Recorder, UnwrittenFlows};
use crate::setup;

/// Why a file could not be analysed to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read, or not read on. What was read before was analysed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The events file cannot be opened.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A worker's thread ended early.
    #[error("a worker ended early; its message stands above")]
    WorkerGone,
}

/// Bytes of frames that go to a worker at once.
const DEAL_BYTES: usize = 1 << 20;
/// Frames that go to a worker at once, however small.
const DEAL_FRAMES: usize = 1 << 14;
/// Deals of one worker: one being filled, one waiting, one being worked on. No more are ever made, so
/// that memory is bounded and neither channel can be full.
const DEALS: usize = 3;
/// Hash seed of every run: the same file gives the same bytes.
const KEY: u64 = 0x5269_6e67_7761_7463;
/// Later times are taken as this one, so that a wrong time stamp cannot end the run of time: the
/// year 2500.
const LATEST: UnixNanos = UnixNanos(16_725_225_600_000_000_000);

/// Analyses a file (`-`: standard input) with so many workers and writes events as configured. Gives
/// the ledger, which the last event shows too.
///
/// # Errors
/// See [`ReplayError`]. An error in the middle of a file comes after the events of what was read.
pub fn run(
    config: &Config,
    sensor: &str,
    path: &Path,
    workers: usize,
) -> Result<Ledger, ReplayError> {
    let mut file = if path.as_os_str() == "-" {
        CaptureFile::from_reader(std::io::stdin(), "standard input")?
    } else {
        CaptureFile::open(path)?
    };
    let name = path.file_name().map_or("-".into(), |name| name.to_string_lossy().into_owned());
    let counters = Arc::new(Counters::new(vec![name.clone()], workers));
    let recorder = recorder(config, sensor, name)?;
    std::thread::scope(|scope| {
        let desks = (0..workers).map(|index| {
            let (to_worker, work) = bounded(DEALS);
            let (done, from_worker) = bounded(DEALS);
            let settings = analyse::Settings {
                new_connections: config.events.new_connections,
                connections_per_second: config.events.connections_per_second,
                contacts: setup::contacts(&config.detect, workers),
                flows: flow_settings(config, path, workers),
                key: KEY,
            };
            let analyser = Analyser::new(&settings, counters.workers()[index].clone());
            scope.spawn(move || work_through(analyser, &work, &done));
            Desk::new(to_worker, from_worker)
        });
        let detector = Detector::new(setup::detector(&config.detect, KEY, false));
        let replay = Replay {
            counters: &counters,
            over_limit: 0,
            desks: desks.collect(),
            detector,
            recorder,
            clock: None,
            next_tick: UnixNanos(0),
            frames: 0,
            connections: Vec::new(),
            flows: Vec::new(),
            flows_per_second: config.events.flows_per_second,
            unwritten_flows: UnwrittenFlows::default(),
            alerts: Vec::new(),
        };
        replay.run(&mut file)
    })
}

/// The table of flows of one worker: no larger than the file can need, so that a small file costs little.
fn flow_settings(config: &Config, path: &Path, workers: usize) -> Option<FlowSettings> {
    /// A record header of 16 bytes and a link-layer header.
    const LEAST_RECORD: u64 = 30;
    let packets = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    let packets = packets.and_then(|file| usize::try_from(file.len() / LEAST_RECORD).ok());
    setup::flows(config, workers).map(|flows| FlowSettings {
        flows: flows.flows.min(packets.unwrap_or(usize::MAX)),
        // The limit of a second is kept where the flows of all workers are in order.
        per_second: None,
        ..flows
    })
}

fn recorder(config: &Config, sensor: &str, name: String) -> Result<Recorder, OutputError> {
    let settings = recorder::Settings {
        sensor: sensor.to_owned(),
        boot_epoch: 0,
        interfaces: vec![name],
        connections_per_second: config.events.connections_per_second,
        flows_per_second: config.events.flows_per_second,
        flow_key: KEY,
    };
    Ok(Recorder::new(settings, Output::open(&config.events.output)?, None, Arc::default()))
}

/// The reader's side: deals frames, keeps the clock, merges.
struct Replay<'a> {
    counters: &'a Counters,
    /// Connections over the limit of a second, of all workers, as last seen.
    over_limit: u64,
    desks: Vec<Desk>,
    detector: Detector,
    recorder: Recorder,
    /// Latest time seen; none before the first frame.
    clock: Option<UnixNanos>,
    next_tick: UnixNanos,
    frames: u64,
    connections: Vec<NewConnection>,
    flows: Vec<EndedFlow>,
    flows_per_second: u32,
    /// Flows without an event of their own, of all workers, as last seen.
    unwritten_flows: UnwrittenFlows,
    alerts: Vec<Alert>,
}

impl Replay<'_> {
    fn run(mut self, file: &mut CaptureFile) -> Result<Ledger, ReplayError> {
        let mut begun = UnixNanos(0);
        let ended = loop {
            match file.next_frame() {
                Ok(Some(frame)) => {
                    if self.clock.is_none() {
                        begun = frame.frame.time.min(LATEST);
                    }
                    self.deal(&frame)?;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if file.truncated() {
            tracing::warn!(frames = self.frames, "the file ends within a record");
        }
        let ended_at = self.run_out()?;
        // What the kernel is to a ring, the file is to this run: it offered what was read.
        let counted = &self.counters.workers()[0].interfaces[0];
        counted.kernel_packets.set(self.frames);
        counted.not_selected.set(self.frames);
        let ledger = self.counters.ledger();
        let seconds = ended_at.since(begun).as_secs();
        self.recorder.stats(ended_at, seconds, self.counters.decoder_stats(), &ledger);
        self.recorder.flush();
        ended?;
        Ok(ledger)
    }

    fn deal(&mut self, file_frame: &FileFrame<'_>) -> Result<(), ReplayError> {
        let seen = file_frame.frame.time.min(LATEST);
        let clock = self.clock.map_or(seen, |clock| clock.max(seen));
        match self.clock {
            None => self.next_tick = tick_after(clock),
            Some(_) if clock >= self.next_tick => self.ticks_until(clock)?,
            Some(_) => {}
        }
        self.clock = Some(clock);
        self.frames += 1;
        let frame = Frame { time: clock, ..file_frame.frame };
        let worker = match self.desks.len() {
            1 => 0,
            workers => file::worker_of(&packet::parse(&frame), workers),
        };
        let Self { desks, connections, flows, .. } = self;
        desks[worker].put(&frame, connections, flows)
    }

    /// Lets time pass in ticks until the next one lies behind `clock`.
    fn ticks_until(&mut self, clock: UnixNanos) -> Result<(), ReplayError> {
        self.meet(Ask::Publish(tick_after(clock).minus(Detector::TICK)))?;
        while self.next_tick <= clock {
            self.tick(self.next_tick);
            self.next_tick = if self.detector.is_idle() {
                // Nothing can happen before the next frame: a gap of years costs one step.
                let next = tick_after(clock);
                self.tick(next.minus(Detector::TICK));
                next
            } else {
                self.next_tick.plus(Detector::TICK)
            };
        }
        self.tell_flows();
        Ok(())
    }

    /// All workers finish what they have and tell what they learnt.
    fn meet(&mut self, ask: Ask) -> Result<(), ReplayError> {
        for desk in &mut self.desks {
            desk.ask(ask, &mut self.connections, &mut self.flows)?;
        }
        for (worker, desk) in self.desks.iter_mut().enumerate() {
            let Told { contacts, answers_lost } =
                desk.collect(&mut self.connections, &mut self.flows)?;
            if answers_lost {
                let since = self.next_tick.minus(Detector::TICK);
                self.detector.note_loss(since, self.next_tick);
            }
            contacts.iter().for_each(|contact| self.detector.merge(worker, contact));
        }
        // The order of frames at one time is not known across workers; addresses give one.
        self.connections.sort_unstable_by_key(|new| (new.time, new.tuple));
        for connection in self.connections.drain(..) {
            self.recorder.connection(&connection);
        }
        let over_limit = self.counters.sum(|counted| &counted.connections_over_limit);
        self.recorder.connections_not_written(over_limit - self.over_limit);
        self.over_limit = over_limit;
        Ok(())
    }

    /// Writes the flows that ended until now, in an order that no thread decides.
    fn tell_flows(&mut self) {
        self.flows.sort_unstable();
        for flow in self.flows.drain(..) {
            self.recorder.flow(&flow);
        }
        let unwritten = UnwrittenFlows::of(self.counters);
        self.recorder.flows_not_written(unwritten.since(self.unwritten_flows));
        self.unwritten_flows = unwritten;
    }

    /// Writes the flows that are left at `now`. Each second of virtual time from then on takes what its
    /// limit allows, however many of them had a single packet. Gives the time when all are told.
    fn tell_last_flows(&mut self, now: UnixNanos) -> UnixNanos {
        self.flows.sort_unstable();
        let (mut last, share) = (now, (self.flows_per_second / 2).max(1));
        for (place, flow) in self.flows.iter_mut().enumerate() {
            last = now.plus(Duration::from_secs(1 + place as u64 / u64::from(share)));
            flow.time = last;
        }
        self.tell_flows();
        last
    }

    fn tick(&mut self, now: UnixNanos) {
        self.detector.tick(now, &mut self.alerts);
        self.tell(now);
    }

    fn tell(&mut self, now: UnixNanos) {
        for alert in self.alerts.drain(..) {
            self.recorder.alert(&alert);
        }
        if let Some(summary) = self.detector.take_summary() {
            self.recorder.alerts_summarised(now, summary);
        }
    }

    /// The end of the file: time runs on until nothing can fall due. Gives the time then.
    fn run_out(&mut self) -> Result<UnixNanos, ReplayError> {
        self.meet(Ask::Publish(self.next_tick))?;
        while self.clock.is_some() && !self.detector.is_idle() {
            self.tick(self.next_tick);
            self.next_tick = self.next_tick.plus(Detector::TICK);
        }
        let now = self.clock.map_or(UnixNanos(0), |clock| clock.max(self.next_tick));
        self.detector.finish(now, &mut self.alerts);
        self.tell(now);
        self.meet(Ask::Finish(now))?;
        let now = self.tell_last_flows(now);
        self.recorder.finish(now);
        Ok(now)
    }
}

/// The first whole tick behind a time.
fn tick_after(time: UnixNanos) -> UnixNanos {
    let tick = Detector::TICK.as_nanos() as u64;
    UnixNanos((time.0 / tick + 1) * tick)
}

/// Frames on their way to a worker, copied out of the reader's window.
#[derive(Default)]
struct Deal {
    bytes: Vec<u8>,
    frames: Vec<Dealt>,
}

/// One frame of a deal.
struct Dealt {
    /// Where its bytes end; they begin where those of the one before end.
    end: usize,
    wire_len: WireLen,
    time: UnixNanos,
    link: LinkType,
}

struct Work {
    deal: Deal,
    ask: Option<Ask>,
}

/// What a worker is to do behind a deal.
#[derive(Clone, Copy)]
enum Ask {
    /// Tell what is new, and end the flows that are idle for too long by this time.
    Publish(UnixNanos),
    /// The same, and end all flows: at this time nothing more comes.
    Finish(UnixNanos),
}

/// A worker's answer to one [`Work`].
struct Done {
    /// Empty again.
    deal: Deal,
    connections: Vec<NewConnection>,
    flows: Vec<EndedFlow>,
    /// If it was asked for.
    told: Option<Told>,
}

/// The evidence of one worker since it was last asked.
struct Told {
    contacts: Vec<Contact>,
    /// The table had no room for some answers: silence then proves nothing.
    answers_lost: bool,
}

/// The reader's end of one worker.
struct Desk {
    to_worker: Sender<Work>,
    from_worker: Receiver<Done>,
    current: Deal,
    free: Vec<Deal>,
}

impl Desk {
    fn new(to_worker: Sender<Work>, from_worker: Receiver<Done>) -> Self {
        let free = (1..DEALS).map(|_| Deal::default()).collect();
        Self { to_worker, from_worker, current: Deal::default(), free }
    }

    fn put(
        &mut self,
        frame: &Frame<'_>,
        connections: &mut Vec<NewConnection>,
        flows: &mut Vec<EndedFlow>,
    ) -> Result<(), ReplayError> {
        self.current.bytes.extend_from_slice(frame.data);
        let Frame { wire_len, time, link, .. } = *frame;
        self.current.frames.push(Dealt { end: self.current.bytes.len(), wire_len, time, link });
        if self.current.bytes.len() < DEAL_BYTES && self.current.frames.len() < DEAL_FRAMES {
            return Ok(());
        }
        self.send(None, connections, flows)
    }

    fn ask(
        &mut self,
        ask: Ask,
        connections: &mut Vec<NewConnection>,
        flows: &mut Vec<EndedFlow>,
    ) -> Result<(), ReplayError> {
        self.send(Some(ask), connections, flows)
    }

    /// Waits for the answer to [`Desk::ask`].
    fn collect(
        &mut self,
        connections: &mut Vec<NewConnection>,
        flows: &mut Vec<EndedFlow>,
    ) -> Result<Told, ReplayError> {
        loop {
            if let Some(told) = self.take_back(connections, flows)? {
                return Ok(told);
            }
        }
    }

    /// Waits for one deal to come back.
    fn take_back(
        &mut self,
        connections: &mut Vec<NewConnection>,
        flows: &mut Vec<EndedFlow>,
    ) -> Result<Option<Told>, ReplayError> {
        let Done { deal, connections: new, flows: ended, told } = self.receive()?;
        flows.extend(ended);
        self.free.push(deal);
        connections.extend(new);
        Ok(told)
    }

    /// Sends the deal that was filled and goes on with a free one, for which it may have to wait. What
    /// was asked to publish is collected before the next send, so what comes back here tells nothing.
    fn send(
        &mut self,
        ask: Option<Ask>,
        connections: &mut Vec<NewConnection>,
        flows: &mut Vec<EndedFlow>,
    ) -> Result<(), ReplayError> {
        if self.free.is_empty() {
            self.take_back(connections, flows)?;
        }
        let next = self.free.pop().unwrap_or_default();
        let deal = std::mem::replace(&mut self.current, next);
        self.to_worker.send(Work { deal, ask }).map_err(|_| ReplayError::WorkerGone)
    }

    fn receive(&self) -> Result<Done, ReplayError> {
        self.from_worker.recv().map_err(|_| ReplayError::WorkerGone)
    }
}

/// The body of a worker's thread.
fn work_through(mut analyser: Analyser, work: &Receiver<Work>, done: &Sender<Done>) {
    for Work { mut deal, ask } in work {
        let (mut connections, mut flows) = (Vec::new(), Vec::new());
        deal.for_each_vector(|frames| {
            let connection = |connection| connections.push(connection);
            analyser.analyse(0, frames, connection, |flow| flows.push(flow));
        });
        match ask {
            None => {}
            Some(Ask::Publish(now)) => analyser.end_idle_flows(now, |flow| flows.push(flow)),
            Some(Ask::Finish(now)) => analyser.end_all_flows(now, |flow| flows.push(flow)),
        }
        let told = ask.map(|_| {
            let mut contacts = Vec::new();
            let Published { answers_lost, .. } = analyser.publish(|contact| {
                contacts.push(*contact);
                true
            });
            Told { contacts, answers_lost }
        });
        deal.bytes.clear();
        deal.frames.clear();
        if done.send(Done { deal, connections, flows, told }).is_err() {
            return;
        }
    }
}

impl Deal {
    fn for_each_vector(&self, mut body: impl FnMut(&[Frame<'_>])) {
        let mut vector = [Frame::EMPTY; VECTOR];
        let mut start = 0;
        for dealt in self.frames.chunks(VECTOR) {
            for (slot, Dealt { end, wire_len, time, link }) in vector.iter_mut().zip(dealt) {
                let data = &self.bytes[start..*end];
                *slot = Frame { data, wire_len: *wire_len, time: *time, vlan: None, link: *link };
                start = *end;
            }
            body(&vector[..dealt.len()]);
        }
    }
}
