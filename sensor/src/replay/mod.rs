//! `--read FILE`: the analysis of a live sensor on a capture file, by the file's own clock.
//!
//! ```text
//!   file ──▶ table ──pieces──▶ worker 0..N-1    frames dealt as the kernel's fanout would deal them
//!              ▲                  │             all meet at each 250 ms of packet clock
//!              └──────told────────┘             merged in an order that no thread decides
//!              └─▶ detector, recorder
//! ```
//!
//! The workers are all the threads there are, but where thousands of flows are to be written at once, which
//! the recorder shares out. Each reads, deals and analyses in turn, as there is something to do; nobody
//! waits at a meeting: what a worker learnt by then it tells, and whoever tells it last has it merged.
//!
//! The clock of a file is the latest time seen: it never runs backwards. At the end of the file
//! virtual time runs on until nothing can fall due any more. Two runs print the same bytes; of standard
//! input but for a flow that has to give way just when its table doubles, which what each read gave decides.

mod clock;
mod merge;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::path::Path;
use std::sync::Arc;

use packet::Address;
use packet::frame::LinkType;
use wire::ledger::Ledger;
use wire::units::UnixNanos;

use self::merge::Merge;
use self::table::{Front, Table};
use self::worker::{Connections, Worker};
use crate::analyse::{self, Analyser, FlowSettings};
use crate::config::Config;
use crate::config::{EventOutput, Events};
use crate::counters::Counters;
use crate::detect::{Detector, Explanation};
use crate::file::{CaptureFile, FileError};
use crate::filter::{FileFilter, FilterError};
use crate::interfaces::InterfaceNames;
use crate::output::{Output, OutputError};
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
    /// A worker's thread panicked.
    #[error(
        "a worker panicked, which is a bug: its message stands above, and the events are not all; keep \
         the file and report it"
    )]
    WorkerGone,
}

/// Hash seed of every run: the same file gives the same bytes.
const KEY: u64 = 0x5269_6e67_7761_7463;

/// Analyses a file (`-`: standard input) with so many workers and writes events as configured. Gives
/// the ledger, which the last event shows too.
///
/// # Errors
/// See [`ReplayError`]. An error in the middle of a file comes after the events of what was read; one
/// by a panic, after those that were found until then.
pub fn run(
    config: &Config,
    sensor: &str,
    path: &Path,
    workers: usize,
) -> Result<Ledger, ReplayError> {
    let detector = Detector::new(setup::detector(&config.detect, KEY, false));
    analyse_file(config, sensor, path, workers, detector).map(|(ledger, _)| ledger)
}

/// Analyses a file as [`run`] does, without events, and says what the detector knows of a source in the end.
///
/// # Errors
/// See [`ReplayError`].
///
/// # Panics
/// Never: the source is watched.
pub fn explain(config: &Config, path: &Path, source: Address) -> Result<Explanation, ReplayError> {
    let events = Events {
        output: EventOutput::None,
        new_connections: false,
        flows_per_second: 0,
        ..config.events.clone()
    };
    let config = Config { events, ..config.clone() };
    let mut detector = Detector::new(setup::detector(&config.detect, KEY, false));
    detector.watch(source);
    let (_, detector) = analyse_file(&config, "", path, 1, detector)?;
    Ok(detector.explain_watched().expect("the source was watched from the beginning"))
}

fn analyse_file(
    config: &Config,
    sensor: &str,
    path: &Path,
    workers: usize,
    detector: Detector,
) -> Result<(Ledger, Detector), ReplayError> {
    let file = if path.as_os_str() == "-" {
        CaptureFile::from_reader(std::io::stdin(), "standard input")?
    } else {
        CaptureFile::open(path)?
    };
    let filter = config.capture.filter.as_ref().map(|expression| {
        FileFilter::new(expression, file.interfaces().iter().map(|one| one.link))
    });
    let front = Front::new(file, filter.transpose()?);
    let name = path.file_name().map_or("-".into(), |name| name.to_string_lossy().into_owned());
    let counters = Counters::new(vec![name.clone()], workers);
    setup::warn_without_flows(config);
    let recorder = recorder(config, sensor, name, workers)?;
    let merge = Merge::new(detector, recorder, config.events.flows_per_second);
    let table = Table::new(front, merge, workers);
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|index| {
                let (seat, counters) = (table.seat(index), &counters);
                // Tables are made where they are used: finding memory for them takes as long as
                // reading a small file.
                scope.spawn(move || worker(config, path, (index, workers), counters).run(seat))
            })
            .collect();
        let ended = threads.into_iter().map(|thread| {
            // A panic was said when it happened.
            thread.join().map_err(|_| ReplayError::WorkerGone).flatten()
        });
        // All are waited for before the first error counts.
        ended.collect::<Vec<_>>().into_iter().collect::<Result<Vec<_>, _>>()
    })?;
    let (front, merge) = table.clear()?;
    end(*front, merge, ended, &counters)
}

/// Worker `index` of `workers`.
fn worker(
    config: &Config,
    path: &Path,
    (index, workers): (usize, usize),
    counters: &Counters,
) -> Worker {
    let packets = most_packets(path);
    let contacts = setup::contacts(&config.detect, workers);
    let settings = analyse::Settings {
        new_connections: config.events.new_connections,
        // The limit of a second is kept where the connections of all workers are in order.
        connections_per_second: u32::MAX,
        // At twice the packets it is as if there were no end of room.
        contacts: contacts.min(packets.saturating_mul(2)),
        flows: setup::flows(config, workers).map(|flows| FlowSettings {
            grows: true,
            // As that of connections.
            per_second: flows.per_second.map(|_| u32::MAX),
            ..flows
        }),
        // Frames are dealt by flow.
        splits_flows: false,
        key: KEY,
    };
    let counters = counters.workers()[index].clone();
    let analyser = Analyser::new(&settings, counters.clone());
    let connections = Connections::new(config.events.connections_per_second);
    Worker { index, workers, analyser, counters, connections, flows: Vec::new() }
}

/// Packets that a file can have at most, for tables no larger than it can need: a small file costs little.
fn most_packets(path: &Path) -> usize {
    /// A record header of 16 bytes and a link-layer header.
    const LEAST_RECORD: u64 = 30;
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    file.and_then(|file| usize::try_from(file.len() / LEAST_RECORD).ok()).unwrap_or(usize::MAX)
}

/// Lets time run out and writes the last events. An error in the file comes after them.
fn end(
    front: Front,
    mut merge: Merge,
    mut workers: Vec<Worker>,
    counters: &Counters,
) -> Result<(Ledger, Detector), ReplayError> {
    let Front { mut file, filter, fault, clock } = front;
    if file.truncated() {
        tracing::warn!(frames = clock.frames, "the file ends within a record");
    }
    if let Some(filter) = filter {
        tracing::info!(frames = clock.frames, skipped = filter.skipped(), "filtered the file");
    }
    let told = workers.iter_mut().map(|worker| worker.tell(clock.next_tick)).collect();
    let latest = clock.seen.map(|(_, latest)| latest);
    let now = merge.run_out(latest, clock.next_tick, told);
    let told = std::thread::scope(|scope| {
        // Time runs on for the detector alone: no flow had the chance to be idle for so long.
        let end_of_file = latest.unwrap_or_default();
        let end = |worker: Worker| scope.spawn(move || worker.finish(end_of_file));
        let threads: Vec<_> = workers.into_iter().map(end).collect();
        let told = threads.into_iter().map(|thread| thread.join());
        told.collect::<Result<Vec<_>, _>>().map_err(|_| ReplayError::WorkerGone)
    })?;
    let ended_at = merge.finish(now, told);
    // What the kernel is to a ring, the file is to this run: it offered what was read.
    let counted = &counters.workers()[0].interfaces[0];
    counted.kernel_packets.set(clock.frames);
    counted.not_selected.set(clock.frames);
    let ledger = counters.ledger();
    let begun = clock.seen.map_or(UnixNanos(0), |(begun, _)| begun);
    let seconds = ended_at.since(begun).as_secs();
    merge.recorder.stats(ended_at, seconds, counters.decoder_stats(), &ledger, None);
    merge.recorder.flush();
    if let Some(fault) = fault {
        return Err(fault.into());
    }
    file.end()?;
    Ok((ledger, merge.detector))
}

fn recorder(
    config: &Config,
    sensor: &str,
    name: String,
    writers: usize,
) -> Result<Recorder, OutputError> {
    let settings = recorder::Settings {
        sensor: sensor.to_owned(),
        boot_epoch: 0,
        interfaces: Arc::new(InterfaceNames::new([(name, LinkType::ETHERNET)])),
        connections_per_second: config.events.connections_per_second,
        flows_per_second: config.events.flows_per_second,
        flow_key: KEY,
        writers,
    };
    Ok(Recorder::new(settings, Output::open(&config.events.output)?, None, Arc::default()))
}
