//! Turns what happened into event lines, for the local output and for the uplink.
//!
//! Event lines get their number here and nowhere else. New connections have a limit in a second of
//! their own time; what goes beyond is counted and told in one event when the second is over.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use packet::{self, Kind, Packet, tcp};
use wire::ledger::Ledger;
use wire::records::RecordKind;
use wire::units::UnixNanos;

use crate::connections::{NewConnection, begins_second};
use crate::counters::{Counters, WorkerCounters};
use crate::detect::{Alert, AlertSummary};
use crate::event::{
    self, DecoderStats, Event, EventWriter, FlowEnd, InterfaceChange, LiveStats, WorkerChange,
};
use crate::flow::{EndedFlow, FlowLimit};
use crate::interfaces::InterfaceNames;
use crate::metrics::{Families, Source};
use crate::output::{Output, OutputError};
use crate::strain::DetectorChange;
use crate::uplink::OutgoingRecord;

/// A local output that fails is said this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Writes events.
pub struct Recorder {
    writer: EventWriter,
    output: Output,
    uplink: Option<Sender<OutgoingRecord>>,
    flow_lines: FlowLines,
    /// Threads that write the lines of flows.
    writers: usize,
    /// With several of them: what they are to write next, before any other event.
    waiting: Vec<FlowEvent>,
    /// The lines of each thread. Kept, as memory that is new to the process costs more than the lines in it.
    written: Vec<Vec<u8>>,
    limit: SecondLimit,
    flows: FlowLimit,
    unwritten_flows: UnwrittenFlows,
    /// The second that [`Recorder::unwritten_flows`] is about.
    flow_second: u64,
    line: Vec<u8>,
    counters: Arc<RecorderCounters>,
    /// When it was last said that the local output fails.
    output_said: Option<Instant>,
    reader_gone: bool,
}

/// An event of type `flow`.
#[derive(Clone, Copy, Debug)]
enum FlowEvent {
    New(NewConnection),
    Ended(EndedFlow),
}

/// What the lines of flows are made with.
#[derive(Debug)]
struct FlowLines {
    interfaces: Arc<InterfaceNames>,
    flow_key: u64,
}

/// So many lines are worth a thread: it writes them in some milliseconds.
const LINES_OF_THREAD: usize = 4096;

/// More threads than this do not write, so that what waits stays below 30 MB.
const MOST_WRITERS: usize = 8;

/// What most lines of flows have at most.
const BYTES_OF_LINE: usize = 700;

/// What a [`Recorder`] counts. Unit: events.
#[derive(Debug, Default)]
pub struct RecorderCounters {
    connections: AtomicU64,
    connections_limited: AtomicU64,
    flows: AtomicU64,
    flows_limited: AtomicU64,
    alerts: AtomicU64,
    anomalies: AtomicU64,
    stats: AtomicU64,
    output_lost: AtomicU64,
    uplink_queue_full: AtomicU64,
}

/// What a [`Recorder`] needs to know.
pub struct Settings {
    /// Name of the sensor.
    pub sensor: String,
    /// Start of this run; part of each event's id.
    pub boot_epoch: u64,
    /// Names of the interfaces.
    pub interfaces: Arc<InterfaceNames>,
    /// New connections written in a second, of all workers together.
    pub connections_per_second: u32,
    /// Ended flows written in a second, of all workers together.
    pub flows_per_second: u32,
    /// Seed of flow ids: random, or fixed for repeatable runs.
    pub flow_key: u64,
    /// Threads that write the lines of flows, where there are many and no uplink: for runs on a file, in
    /// which nothing else waits for a processor meanwhile.
    pub writers: usize,
}

impl Recorder {
    /// A recorder that writes to `output` and, if there is one, to the uplink.
    #[must_use]
    pub fn new(
        settings: Settings,
        output: Output,
        uplink: Option<Sender<OutgoingRecord>>,
        counters: Arc<RecorderCounters>,
    ) -> Self {
        let Settings {
            sensor,
            boot_epoch,
            interfaces,
            connections_per_second,
            flows_per_second,
            flow_key,
            writers,
        } = settings;
        Self {
            writer: EventWriter::new(&sensor, boot_epoch),
            output,
            writers: if uplink.is_some() { 1 } else { writers.clamp(1, MOST_WRITERS) },
            uplink,
            flow_lines: FlowLines { interfaces, flow_key },
            waiting: Vec::new(),
            written: Vec::new(),
            limit: SecondLimit::new(connections_per_second),
            flows: FlowLimit::new(Some(flows_per_second)),
            unwritten_flows: UnwrittenFlows::default(),
            flow_second: 0,
            line: Vec::with_capacity(4096),
            counters,
            output_said: None,
            reader_gone: false,
        }
    }

    /// Nobody reads standard output any more: time to end.
    #[must_use]
    pub const fn is_reader_gone(&self) -> bool {
        self.reader_gone
    }

    /// A new connection, unless this second has had its share.
    pub fn connection(&mut self, new: &NewConnection) {
        if let Some((time, connections)) = self.limit.second_over(new.time) {
            self.connections_summarised(time, connections);
        }
        if !self.limit.admits(new.time) {
            self.counters.connections_limited.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.write_flow(FlowEvent::New(*new));
    }

    /// Connections that workers counted beyond their own limit; told with those of this recorder.
    pub fn connections_not_written(&mut self, count: u64) {
        self.limit.not_written += count;
    }

    /// A flow that ended, unless this second has had its share.
    pub fn flow(&mut self, flow: &EndedFlow) {
        self.flow_second_over(flow.time);
        if !self.flows.admits(flow) {
            self.counters.flows_limited.fetch_add(1, Ordering::Relaxed);
            self.unwritten_flows.flows += 1;
            return;
        }
        self.counters.flows.fetch_add(1, Ordering::Relaxed);
        self.write_flow(FlowEvent::Ended(*flow));
    }

    /// Flows that workers could not hand out; told with those of this recorder.
    pub const fn flows_not_written(&mut self, flows: UnwrittenFlows) {
        self.unwritten_flows.add(flows);
    }

    /// Tells of the flows that a second left unwritten when it is over.
    fn flow_second_over(&mut self, now: UnixNanos) {
        let second = now.seconds();
        if begins_second(self.flow_second, second) {
            self.flow_second = second;
            self.flows_summarised(now);
        }
    }

    fn flows_summarised(&mut self, time: UnixNanos) {
        let unwritten = std::mem::take(&mut self.unwritten_flows);
        if unwritten != UnwrittenFlows::default() {
            let UnwrittenFlows { flows, half_open_evicted } = unwritten;
            self.anomaly(&Event::FlowsSummarised { time, flows, half_open_evicted });
        }
    }

    /// A step in the life of an alert.
    pub fn alert(&mut self, alert: &Alert) {
        self.counters.alerts.fetch_add(1, Ordering::Relaxed);
        self.write(&Event::Alert(alert), RecordKind::Alert);
    }

    /// Alerts that could not be told one by one.
    pub fn alerts_summarised(&mut self, time: UnixNanos, summary: AlertSummary) {
        self.anomaly(&Event::AlertsSummarised { time, summary });
    }

    /// Something happened to an interface.
    pub fn interface(&mut self, time: UnixNanos, interface: &str, change: InterfaceChange) {
        self.anomaly(&Event::Interface { time, interface, change });
    }

    /// Something happened to a worker.
    pub fn worker(&mut self, time: UnixNanos, worker: usize, change: WorkerChange) {
        self.anomaly(&Event::Worker { time, worker, change });
    }

    /// The detector has not room for all evidence, or has again.
    pub fn detector(&mut self, time: UnixNanos, change: DetectorChange) {
        self.anomaly(&Event::Detector { time, change });
    }

    /// Where every frame and record went.
    pub fn stats(
        &mut self,
        time: UnixNanos,
        uptime_seconds: u64,
        decoder: DecoderStats,
        ledger: &Ledger,
        live: Option<&LiveStats<'_>>,
    ) {
        self.counters.stats.fetch_add(1, Ordering::Relaxed);
        let event = Event::Stats { time, uptime_seconds, decoder, ledger, live };
        self.write(&event, RecordKind::Stats);
    }

    /// Tells what the second that `now` lies behind left untold.
    pub fn second_over(&mut self, now: UnixNanos) {
        if let Some((time, connections)) = self.limit.second_over(now) {
            self.connections_summarised(time, connections);
        }
        self.flow_second_over(now);
    }

    /// Tells what is left untold, whatever the time.
    pub fn finish(&mut self, now: UnixNanos) {
        let connections = std::mem::take(&mut self.limit.not_written);
        if connections > 0 {
            self.connections_summarised(now, connections);
        }
        self.flows_summarised(now);
        self.flush();
    }

    /// Writes what was collected for the local output.
    pub fn flush(&mut self) {
        self.write_waiting();
        let flushed = self.output.flush();
        self.note(flushed);
    }

    fn connections_summarised(&mut self, time: UnixNanos, connections: u64) {
        self.anomaly(&Event::ConnectionsSummarised { time, connections });
    }

    fn anomaly(&mut self, event: &Event<'_>) {
        self.counters.anomalies.fetch_add(1, Ordering::Relaxed);
        self.write(event, RecordKind::Anomaly);
    }

    fn write_flow(&mut self, event: FlowEvent) {
        if self.writers > 1 {
            self.waiting.push(event);
            if self.waiting.len() >= self.writers * LINES_OF_THREAD {
                self.write_waiting();
            }
            return;
        }
        self.line.clear();
        self.flow_lines.write(&event, &mut self.writer, &mut self.line);
        self.emit(RecordKind::Flow);
    }

    /// Writes the lines of flows that wait, on as many threads as they are worth. They come out as if one
    /// had written them all.
    fn write_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut written = std::mem::take(&mut self.written);
        let Self { writer, flow_lines, waiting, .. } = self;
        let flow_lines = &*flow_lines;
        let share = waiting.len().div_ceil(self.writers).max(LINES_OF_THREAD);
        let shares = waiting.chunks(share);
        written.resize_with(written.len().max(shares.len()), Vec::new);
        thread::scope(|scope| {
            let mut shares = shares.zip(&mut written);
            let last = shares.next_back();
            for (events, lines) in shares {
                let mut own = writer.clone();
                writer.skip(events.len() as u64);
                scope.spawn(move || flow_lines.all(events, &mut own, lines));
            }
            last.into_iter().for_each(|(events, lines)| flow_lines.all(events, writer, lines));
        });
        self.waiting.clear();
        for lines in written.iter_mut().filter(|lines| !lines.is_empty()) {
            let result = self.output.lines(lines);
            self.note(result);
            lines.clear();
        }
        self.written = written;
    }

    fn write(&mut self, event: &Event<'_>, kind: RecordKind) {
        self.write_waiting();
        self.line.clear();
        self.writer.write(event, &mut self.line);
        self.emit(kind);
    }

    fn emit(&mut self, kind: RecordKind) {
        let written = self.output.lines(&self.line);
        self.note(written);
        let Some(uplink) = &self.uplink else { return };
        // 65 536 records wait at most (see pipeline.rs); the uplink takes them out whether it is
        // connected or not, so a full queue means a stalled uplink thread.
        let json = self.line.trim_ascii_end().to_vec();
        match uplink.try_send(OutgoingRecord { kind, json }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.uplink_queue_full.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts what the local output lost; says so once a minute at most.
    fn note(&mut self, written: Result<(), OutputError>) {
        match written {
            Ok(()) => {}
            Err(OutputError::ReaderGone) => self.reader_gone = true,
            Err(error) => {
                if let OutputError::Write { lines, .. } = &error {
                    self.counters.output_lost.fetch_add(*lines as u64, Ordering::Relaxed);
                }
                if self.output_said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
                    self.output_said = Some(Instant::now());
                    let why = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(why, "{error}; further losses are only counted for a minute");
                }
            }
        }
    }
}

/// Whatever ends the run, what was recorded is written: of a thread that panicked, the events so far
/// count.
impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}

impl FlowLines {
    fn all(&self, events: &[FlowEvent], writer: &mut EventWriter, lines: &mut Vec<u8>) {
        lines.reserve(events.len() * BYTES_OF_LINE);
        events.iter().for_each(|event| self.write(event, writer, lines));
    }

    fn write(&self, event: &FlowEvent, writer: &mut EventWriter, line: &mut Vec<u8>) {
        match event {
            FlowEvent::New(new) => self.write_new(new, writer, line),
            FlowEvent::Ended(flow) => self.write_ended(flow, writer, line),
        }
    }

    fn write_new(&self, new: &NewConnection, writer: &mut EventWriter, line: &mut Vec<u8>) {
        let NewConnection { time, tuple, vlan_ids, interface } = *new;
        let kind = Kind::Tcp { flags: tcp::SYN, sequence: 0, acknowledgement: 0 };
        let packet = Packet { tuple, kind, ..Packet::default() };
        let community_id = packet::community_id(&packet).unwrap_or_default();
        let names = self.interfaces.load();
        let interface = names.get(interface as usize).map_or("", |one| &one.name);
        let event = Event::NewConnection(event::NewConnection {
            time,
            tuple,
            vlan_ids,
            interface,
            community_id: &community_id,
            flow_id: tuple.flow_hash(self.flow_key),
        });
        writer.write(&event, line);
    }

    fn write_ended(&self, flow: &EndedFlow, writer: &mut EventWriter, line: &mut Vec<u8>) {
        let kind = match flow.icmp {
            Some((kind, code)) => Kind::Icmp { kind, code, quoted: None },
            None if flow.is_fragments => Kind::LaterFragment,
            None => Kind::OtherIp,
        };
        let packet = Packet { tuple: flow.tuple, kind, ..Packet::default() };
        let community_id = packet::community_id(&packet).unwrap_or_default();
        let names = self.interfaces.load();
        let interface = names.get(flow.interface as usize).map_or("", |one| &one.name);
        let event = Event::FlowEnd(FlowEnd {
            flow,
            interface,
            community_id: &community_id,
            flow_id: flow.tuple.flow_hash(self.flow_key),
        });
        writer.write(&event, line);
    }
}

impl RecorderCounters {
    /// Records that never reached the uplink because its queue was full.
    #[must_use]
    pub fn uplink_queue_full(&self) -> u64 {
        self.uplink_queue_full.load(Ordering::Relaxed)
    }

    /// Events written, of any type.
    #[must_use]
    pub fn written(&self) -> u64 {
        let kinds = [&self.connections, &self.flows, &self.alerts, &self.anomalies, &self.stats];
        kinds.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

impl Source for RecorderCounters {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let Self {
            connections,
            connections_limited,
            flows,
            flows_limited,
            alerts,
            anomalies,
            stats,
            output_lost,
            uplink_queue_full,
        } = self;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kinds = [
            ("flow", read(connections) + read(flows)),
            ("alert", read(alerts)),
            ("anomaly", read(anomalies)),
            ("stats", read(stats)),
        ];
        let rows = kinds.map(|(kind, count)| (vec![("type", kind.to_owned())], count));
        families.counter("ringwatch_events", "Events written, by their type", rows)?;
        families.counter(
            "ringwatch_connections_limited",
            "New connections not written because the second had its share",
            [(vec![], read(connections_limited))],
        )?;
        families.counter(
            "ringwatch_flows_limited",
            "Ended flows not written because the second had its share",
            [(vec![], read(flows_limited))],
        )?;
        let lost = [("output", output_lost), ("uplink_queue", uplink_queue_full)];
        let rows = lost.map(|(place, counter)| (vec![("place", place.to_owned())], read(counter)));
        families.counter("ringwatch_events_lost", "Events lost on this host, by place", rows)
    }
}

/// Flows that ended without an event of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwrittenFlows {
    /// Over a limit, without room in a queue, or lost with a worker.
    pub flows: u64,
    /// Half-open ones that gave way to newer ones.
    pub half_open_evicted: u64,
}

impl UnwrittenFlows {
    /// What the workers counted until now.
    #[must_use]
    pub fn of(counters: &Counters) -> Self {
        let mut all = Self::default();
        counters.workers().iter().for_each(|set| all.add(Self::of_worker(&set.worker)));
        all
    }

    /// What one worker counted until now.
    #[must_use]
    pub fn of_worker(counted: &WorkerCounters) -> Self {
        let flows = &counted.flows;
        Self {
            flows: flows.over_limit.read()
                + flows.queue_full.read()
                + flows.lost_worker_panicked.read(),
            half_open_evicted: flows.half_open_evicted.read(),
        }
    }

    /// Adds those of another worker.
    pub const fn add(&mut self, more: Self) {
        self.flows += more.flows;
        self.half_open_evicted += more.half_open_evicted;
    }

    /// What came since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            flows: self.flows - before.flows,
            half_open_evicted: self.half_open_evicted - before.half_open_evicted,
        }
    }
}

/// A limit for each second of event time.
#[derive(Debug)]
struct SecondLimit {
    per_second: u32,
    second: u64,
    admitted: u32,
    /// In the second before the one at hand: events of several workers come a little out of order.
    admitted_before: u32,
    not_written: u64,
}

impl SecondLimit {
    const fn new(per_second: u32) -> Self {
        Self { per_second, second: 0, admitted: 0, admitted_before: 0, not_written: 0 }
    }

    /// Has the second ended at `now`? Gives what it left unwritten, if anything. Times that lie
    /// a little behind end nothing.
    fn second_over(&mut self, now: UnixNanos) -> Option<(UnixNanos, u64)> {
        let second = now.seconds();
        if !begins_second(self.second, second) {
            return None;
        }
        let is_next = second == self.second + 1;
        self.admitted_before = if is_next { self.admitted } else { 0 };
        self.second = second;
        self.admitted = 0;
        let not_written = std::mem::take(&mut self.not_written);
        (not_written > 0).then_some((now, not_written))
    }

    /// May an event of this time be written? Counts it, either way. Times that lie further behind than
    /// the second before count as of that one.
    fn admits(&mut self, time: UnixNanos) -> bool {
        let admitted = if time.seconds() < self.second {
            &mut self.admitted_before
        } else {
            &mut self.admitted
        };
        let is_admitted = *admitted < self.per_second;
        *admitted += u32::from(is_admitted);
        self.not_written += u64::from(!is_admitted);
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;
    use crate::config::EventOutput;
    use packet::FiveTuple;
    use packet::frame::LinkType;

    /// What so many threads write of many connections and of an event between them.
    fn written_by(writers: usize) -> String {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("eve.json");
        let settings = Settings {
            sensor: "test".into(),
            boot_epoch: 1,
            interfaces: Arc::new(InterfaceNames::new([("eth0", LinkType::ETHERNET)])),
            connections_per_second: u32::MAX,
            flows_per_second: 0,
            flow_key: 7,
            writers,
        };
        let output = Output::open(&EventOutput::File(path.clone())).unwrap();
        let mut recorder = Recorder::new(settings, output, None, Arc::default());
        for number in 0..5 * LINES_OF_THREAD as u64 {
            let tuple = FiveTuple { source_port: number as u16, ..FiveTuple::default() };
            let time = UnixNanos(number);
            recorder.connection(&NewConnection { time, tuple, vlan_ids: [0; 2], interface: 0 });
            if number == 10_000 {
                recorder.interface(time, "eth0", InterfaceChange::LinkDown);
            }
        }
        recorder.finish(UnixNanos(0));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn lines_are_the_same_however_many_threads_write_them() {
        let one = written_by(1);
        assert_eq!(one.lines().count(), 5 * LINES_OF_THREAD + 1);
        assert!(one.lines().nth(10_001).unwrap().contains("link_down"));
        for writers in [2, 3, 64] {
            assert!(written_by(writers) == one, "{writers} threads");
        }
    }

    #[test]
    fn what_a_second_leaves_unwritten_is_told_once() {
        let mut limit = SecondLimit::new(2);
        let second = |n: u64| UnixNanos(n * 1_000_000_000);
        assert_eq!(limit.second_over(second(1)), None);
        assert_eq!((0..5).filter(|_| limit.admits(second(1))).count(), 2);
        assert_eq!(limit.second_over(second(1)), None);
        assert_eq!(limit.second_over(second(2)), Some((second(2), 3)));
        assert_eq!(limit.second_over(second(3)), None);
    }

    #[test]
    fn what_comes_late_counts_in_its_own_second() {
        let mut limit = SecondLimit::new(2);
        let second = |n: u64| UnixNanos(n * 1_000_000_000);
        let times = [1, 1, 2, 1, 2, 2, 3, 2, 3, 3, 7, 6, 6, 6];
        let mut written = BTreeMap::new();
        let mut not_written = 0;
        for time in times.map(second) {
            not_written += limit.second_over(time).map_or(0, |(_, count)| count);
            *written.entry(time.seconds()).or_insert(0) += u32::from(limit.admits(time));
        }
        assert_eq!(written, BTreeMap::from([(1, 2), (2, 2), (3, 2), (6, 2), (7, 1)]));
        assert_eq!(not_written + limit.not_written, 5);
    }
}
