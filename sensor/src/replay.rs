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

use crossbeam_channel::{Receiver, Sender, bounded};
use wire::ledger::Ledger;
use wire::units::{UnixNanos, WireLen};

use crate::analyse::{self, Analyser, VECTOR};
use crate::config::Config;
use crate::connections::NewConnection;
use crate::counters::Counters;
use crate::detect::{Alert, Detector};
use crate::evidence::{Contact, Published};
use crate::file::{self, CaptureFile, FileError, FileFrame};
use crate::filter::{FileFilter, FilterError};
use crate::frame::{Frame, LinkType};
use crate::output::{Output, OutputError};
use crate::packet;
use crate::recorder::{self, Recorder};
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
    /// The filter cannot be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
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
    let filter = config.capture.filter.as_ref().map(|expression| {
        FileFilter::new(expression, file.interfaces().iter().map(|one| one.link))
    });
    let filter = filter.transpose()?;
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
            filter,
            detector,
            recorder,
            clock: None,
            next_tick: UnixNanos(0),
            frames: 0,
            connections: Vec::new(),
            alerts: Vec::new(),
        };
        replay.run(&mut file)
    })
}

fn recorder(config: &Config, sensor: &str, name: String) -> Result<Recorder, OutputError> {
    let settings = recorder::Settings {
        sensor: sensor.to_owned(),
        boot_epoch: 0,
        interfaces: vec![name],
        connections_per_second: config.events.connections_per_second,
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
    /// Which frames are looked at; `None`: all.
    filter: Option<FileFilter>,
    detector: Detector,
    recorder: Recorder,
    /// Latest time seen; none before the first frame.
    clock: Option<UnixNanos>,
    next_tick: UnixNanos,
    frames: u64,
    connections: Vec<NewConnection>,
    alerts: Vec<Alert>,
}

impl Replay<'_> {
    fn run(mut self, file: &mut CaptureFile) -> Result<Ledger, ReplayError> {
        let mut begun = UnixNanos(0);
        let ended = loop {
            match file.next_frame() {
                Ok(Some(frame)) => {
                    // As with a ring, what the filter does not let in was not there: it is in no
                    // counter, and the clock does not see it.
                    let lets_in = self.filter.as_mut().map(|filter| filter.lets_in(&frame.frame));
                    match lets_in.transpose() {
                        Ok(Some(false)) => continue,
                        Ok(_) => {}
                        Err(error) => break Err(error.into()),
                    }
                    if self.clock.is_none() {
                        begun = frame.frame.time.min(LATEST);
                    }
                    self.deal(&frame)?;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(ReplayError::from(error)),
            }
        };
        if file.truncated() {
            tracing::warn!(frames = self.frames, "the file ends within a record");
        }
        if let Some(filter) = &self.filter {
            tracing::info!(frames = self.frames, skipped = filter.skipped(), "filtered the file");
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
        ended.map(|()| ledger)
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
        let Self { desks, connections, .. } = self;
        desks[worker].put(&frame, connections)
    }

    /// Lets time pass in ticks until the next one lies behind `clock`.
    fn ticks_until(&mut self, clock: UnixNanos) -> Result<(), ReplayError> {
        self.meet()?;
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
        Ok(())
    }

    /// All workers finish what they have and tell what they learnt.
    fn meet(&mut self) -> Result<(), ReplayError> {
        for desk in &mut self.desks {
            desk.ask_to_publish(&mut self.connections)?;
        }
        for (worker, desk) in self.desks.iter_mut().enumerate() {
            let Told { contacts, answers_lost } = desk.collect(&mut self.connections)?;
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
        self.meet()?;
        while self.clock.is_some() && !self.detector.is_idle() {
            self.tick(self.next_tick);
            self.next_tick = self.next_tick.plus(Detector::TICK);
        }
        let now = self.clock.map_or(UnixNanos(0), |clock| clock.max(self.next_tick));
        self.detector.finish(now, &mut self.alerts);
        self.tell(now);
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
    publish: bool,
}

/// A worker's answer to one [`Work`].
struct Done {
    /// Empty again.
    deal: Deal,
    connections: Vec<NewConnection>,
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
    ) -> Result<(), ReplayError> {
        self.current.bytes.extend_from_slice(frame.data);
        let Frame { wire_len, time, link, .. } = *frame;
        self.current.frames.push(Dealt { end: self.current.bytes.len(), wire_len, time, link });
        if self.current.bytes.len() < DEAL_BYTES && self.current.frames.len() < DEAL_FRAMES {
            return Ok(());
        }
        self.send(false, connections)
    }

    fn ask_to_publish(&mut self, connections: &mut Vec<NewConnection>) -> Result<(), ReplayError> {
        self.send(true, connections)
    }

    /// Waits for the answer to [`Desk::ask_to_publish`].
    fn collect(&mut self, connections: &mut Vec<NewConnection>) -> Result<Told, ReplayError> {
        loop {
            if let Some(told) = self.take_back(connections)? {
                return Ok(told);
            }
        }
    }

    /// Waits for one deal to come back.
    fn take_back(
        &mut self,
        connections: &mut Vec<NewConnection>,
    ) -> Result<Option<Told>, ReplayError> {
        let Done { deal, connections: new, told } = self.receive()?;
        self.free.push(deal);
        connections.extend(new);
        Ok(told)
    }

    /// Sends the deal that was filled and goes on with a free one, for which it may have to wait. What
    /// was asked to publish is collected before the next send, so what comes back here tells nothing.
    fn send(
        &mut self,
        publish: bool,
        connections: &mut Vec<NewConnection>,
    ) -> Result<(), ReplayError> {
        if self.free.is_empty() {
            self.take_back(connections)?;
        }
        let next = self.free.pop().unwrap_or_default();
        let deal = std::mem::replace(&mut self.current, next);
        self.to_worker.send(Work { deal, publish }).map_err(|_| ReplayError::WorkerGone)
    }

    fn receive(&self) -> Result<Done, ReplayError> {
        self.from_worker.recv().map_err(|_| ReplayError::WorkerGone)
    }
}

/// The body of a worker's thread.
fn work_through(mut analyser: Analyser, work: &Receiver<Work>, done: &Sender<Done>) {
    for Work { mut deal, publish } in work {
        let mut connections = Vec::new();
        deal.for_each_vector(|frames| {
            analyser.analyse(0, frames, |connection| connections.push(connection));
        });
        let told = publish.then(|| {
            let mut contacts = Vec::new();
            let Published { answers_lost, .. } = analyser.publish(|contact| {
                contacts.push(*contact);
                true
            });
            Told { contacts, answers_lost }
        });
        deal.bytes.clear();
        deal.frames.clear();
        if done.send(Done { deal, connections, told }).is_err() {
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
