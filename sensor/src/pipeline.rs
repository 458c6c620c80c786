//! The only place where threads and the queues between them are made.
//!
//! ```text
//!   worker 0..N-1 ──evidence──▶ detector ──alerts──┐
//!      │  │  └─────new connections────────────────▶ recorder ──records──▶ uplink ══▶ collector
//!      │  └────────news (link up, down)───────────▶    │                   ▲
//!      │                                               └─▶ local output    │
//!      └───────────filled batches ──────────────────────────────────────────┘
//!      ◀───────────empty batches ────────────────────────────────────────────
//!   api  reads counters
//!
//!   queue            size                         when full                       counter
//!   evidence         65 536 a worker (SPSC)       stays with the worker           contacts_deferred
//!   new connections  16 384 a worker (SPSC)       the connection is not written   connections_queue_full
//!   news, alerts     1 024                        workers drop, detector waits    (health keeps the state)
//!   records          65 536                       the record is lost              events_lost{uplink_queue}
//!   batches          export.pool_mib, all made    the frame is not exported       frames_lost_pool_empty
//!                    at start
//! ```
//!
//! Nothing here can make a worker wait. The end runs with the stream: workers drain their rings, the
//! detector closes its alerts, the recorder writes what is left, the uplink delivers it.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use wire::ledger::Ledger;
use wire::units::UnixNanos;

use crate::afpacket::{FanoutGroup, Interface, RingConfig};
use crate::analyse::{self, Analyser};
use crate::api::{Api, ApiError};
use crate::config::Config;
use crate::connections::NewConnection;
use crate::counters::Counters;
use crate::detect::{Alert, AlertSummary, Detector};
use crate::detection::{self, DetectionCounters, EVIDENCE_RING, Evidence};
use crate::event::DecoderStats;
use crate::export::Exporter;
use crate::health::{self, Health};
use crate::ledger::LedgerView;
use crate::metrics::{self, Source};
use crate::output::{Output, OutputError};
use crate::recorder::{self, Recorder, RecorderCounters};
use crate::sandbox::{self, SandboxError};
use crate::setup;
use crate::uplink::{BatchRing, OwnConnections, UplinkStatus};
use crate::uplink_thread::{self, UplinkStartError, UplinkThread};
use crate::worker::{self, CONNECTION_RING, Outlets, Plan, WorkerError};

/// What the recorder is told beside new connections.
#[derive(Debug)]
pub enum ToRecorder {
    /// A step in the life of an alert.
    Alert(Box<Alert>),
    /// Alerts that could not be told one by one.
    AlertsSummarised(UnixNanos, AlertSummary),
    /// The link of the interface with this index went down or up.
    Link(UnixNanos, usize, bool),
    /// Everyone else has ended: write what is left.
    Finish,
}

/// Why the sensor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A worker could not begin.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The events file cannot be opened.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The local API cannot serve.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The uplink cannot start.
    #[error(transparent)]
    Uplink(#[from] UplinkStartError),
    /// The starting thread kept privileges.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system has no more threads.
    #[error("cannot start thread {name}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A worker's thread ended before it said how the start went.
    #[error("worker {0} ended before it began; its message stands above")]
    WorkerGone(usize),
}

/// A running sensor.
pub struct Pipeline {
    stop_workers: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    detector: JoinHandle<()>,
    recorder: JoinHandle<()>,
    to_recorder: Sender<ToRecorder>,
    uplink: Option<UplinkThread>,
    api: Option<Api>,
    ledger: LedgerView,
    reader_gone: Arc<AtomicBool>,
}

/// What is known before the pipeline is made.
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// Name of the sensor.
    pub sensor: String,
    /// The interfaces, looked up.
    pub interfaces: Vec<Interface>,
    /// CPUs of the workers; their number is that of the workers.
    pub cpus: Vec<usize>,
    /// Sizes of each ring.
    pub ring: RingConfig,
    /// Time between `stats` events.
    pub stats_interval: Duration,
}

const NEWS_QUEUE: usize = 1024;
/// How often the recorder looks for new connections; bounds how old a line is when it is written.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the end waits for the collector to acknowledge what is under way.
const DELIVERY_LIMIT: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Opens the rings, gives up all privileges, starts every thread, and lets frames in.
    ///
    /// # Errors
    /// See [`StartError`]; whatever was started has ended again.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let Start { config, sensor, interfaces, cpus, ring, stats_interval } = start;
        let names: Vec<String> = interfaces.iter().map(|one| one.name.clone()).collect();
        let counters = Arc::new(Counters::new(names.clone(), cpus.len()));
        let health = Arc::new(Health::new(Arc::clone(&counters)));
        let status = Arc::new(UplinkStatus::default());
        let own = Arc::clone(&status.own);
        let output = Output::open(&config.events.output)?;
        let (to_recorder, news) = bounded(NEWS_QUEUE);
        let mut crew = Crew::default();
        let keys = Keys::random();
        for (index, cpu) in cpus.iter().enumerate() {
            let plan = WorkerPlanner {
                config: &config,
                counters: &counters,
                keys: &keys,
                workers: cpus.len(),
                stop: &crew.stop,
                news: &to_recorder,
                health: &health,
                own: &own,
            };
            let (plan, ends) = plan.make(index, *cpu, &interfaces, ring, crew.groups.clone());
            crew.open(plan, ends)?;
        }
        // Threads inherit what this one has: from here on nobody has any privilege.
        sandbox::give_up_privileges()?;

        let boot_epoch = health::now().0;
        let Crew { stop, threads, begin, evidence, connections, batches, .. } = crew;
        let recorder_counters = Arc::new(RecorderCounters::default());
        let status = config.uplink.is_some().then_some(status);
        let ledger =
            LedgerView::new(Arc::clone(&counters), Arc::clone(&recorder_counters), status.clone());
        let uplink = match (&config.uplink, status) {
            (Some(settings), Some(status)) => {
                let about = uplink_thread::About {
                    sensor: &sensor,
                    boot_epoch,
                    interfaces: &interfaces,
                    snaplen: config.export.snaplen,
                };
                Some(UplinkThread::start(settings, &about, batches, ledger.clone(), status)?)
            }
            _ => None,
        };
        let records = uplink.as_ref().map(UplinkThread::records);
        let recorder = Recorder::new(
            recorder::Settings {
                sensor,
                boot_epoch,
                interfaces: names,
                connections_per_second: config.events.connections_per_second,
                flow_key: keys.flow,
            },
            output,
            records,
            Arc::clone(&recorder_counters),
        );
        let detection_counters = Arc::new(DetectionCounters::default());
        let detector = Detector::new(setup::detector(&config.detect, keys.table, true));
        tracing::info!(budget = ?detector.budget(), "detector memory");
        let detector = spawn("detector", {
            let (recorder, counters) = (to_recorder.clone(), Arc::clone(&detection_counters));
            move || detection::run(detector, evidence, &recorder, &counters)
        })?;
        let reader_gone = Arc::new(AtomicBool::new(false));
        let desk = RecorderDesk {
            recorder,
            news,
            connections,
            ledger: ledger.clone(),
            started: Instant::now(),
            stats_interval,
            unwritten_by_workers: 0,
            reader_gone: Arc::clone(&reader_gone),
        };
        let recorder = spawn("recorder", move || desk.run())?;
        let mut sources: Vec<Arc<dyn Source>> =
            vec![recorder_counters, Arc::new(detection_counters)];
        if let Some(uplink) = &uplink {
            sources.push(uplink.metrics());
        }
        let api = match config.api_listen {
            Some(address) => {
                let registry = Arc::new(metrics::registry(Arc::clone(&counters), sources));
                Some(Api::start(address, registry, health)?)
            }
            None => None,
        };
        for begin in begin {
            // A worker that is gone by now is missed by the watch over heartbeats.
            let _ = begin.send(());
        }
        Ok(Self {
            stop_workers: stop,
            workers: threads,
            detector,
            recorder,
            to_recorder,
            uplink,
            api,
            ledger,
            reader_gone,
        })
    }

    /// The ledger as it stands.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.ledger.read()
    }

    /// Whoever read the events on standard output is gone.
    #[must_use]
    pub fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// Ends in the direction of the stream, and gives the last ledger.
    #[must_use]
    pub fn stop(self) -> Ledger {
        self.stop_workers.store(true, Ordering::Relaxed);
        for worker in self.workers {
            join("worker", worker);
        }
        join("detector", self.detector);
        let _ = self.to_recorder.send(ToRecorder::Finish);
        join("recorder", self.recorder);
        if let Some(uplink) = self.uplink {
            uplink.stop(DELIVERY_LIMIT);
        }
        if let Some(api) = self.api {
            api.stop();
        }
        self.ledger.read()
    }
}

/// Seeds of the hashes of this run: chosen at random, so that no peer can prepare collisions.
struct Keys {
    table: u64,
    flow: u64,
    sample: u64,
}

impl Keys {
    fn random() -> Self {
        // The standard library seeds this hasher from the system's random numbers.
        let state = std::hash::RandomState::new();
        let key = |purpose: &str| state.hash_one(purpose);
        Self { table: key("table"), flow: key("flow"), sample: key("sample") }
    }
}

/// The workers while they are being started.
#[derive(Default)]
struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    begin: Vec<Sender<()>>,
    groups: Vec<FanoutGroup>,
    evidence: Vec<rtrb::Consumer<Evidence>>,
    connections: Vec<rtrb::Consumer<NewConnection>>,
    batches: Vec<BatchRing>,
}

/// The other ends of a worker's outlets.
struct OtherEnds {
    evidence: rtrb::Consumer<Evidence>,
    connections: rtrb::Consumer<NewConnection>,
    batches: BatchRing,
}

impl Crew {
    /// Starts one worker and waits until its rings are open: members of a fanout group join in order.
    fn open(&mut self, plan: Plan, ends: OtherEnds) -> Result<(), StartError> {
        let index = plan.index;
        let (say_opened, opened) = bounded(1);
        let (begin, wait_for_begin) = bounded(1);
        let builder = std::thread::Builder::new().name(format!("worker-{index}"));
        let thread = builder
            .spawn(move || worker::run(plan, &say_opened, &wait_for_begin))
            .map_err(|source| StartError::Thread { name: "worker", source })?;
        self.threads.push(thread);
        self.begin.push(begin);
        let groups = opened.recv().map_err(|_| StartError::WorkerGone(index))??;
        if index == 0 {
            self.groups = groups;
        }
        let OtherEnds { evidence, connections, batches } = ends;
        self.evidence.push(evidence);
        self.connections.push(connections);
        self.batches.push(batches);
        Ok(())
    }
}

/// What all workers have in common.
struct WorkerPlanner<'a> {
    config: &'a Config,
    counters: &'a Counters,
    keys: &'a Keys,
    workers: usize,
    stop: &'a Arc<AtomicBool>,
    news: &'a Sender<ToRecorder>,
    health: &'a Arc<Health>,
    own: &'a Arc<OwnConnections>,
}

impl WorkerPlanner<'_> {
    fn make(
        &self,
        index: usize,
        cpu: usize,
        interfaces: &[Interface],
        ring: RingConfig,
        groups: Vec<FanoutGroup>,
    ) -> (Plan, OtherEnds) {
        let (evidence_in, evidence_out) = rtrb::RingBuffer::new(EVIDENCE_RING);
        let (connections_in, connections_out) = rtrb::RingBuffer::new(CONNECTION_RING);
        let pool_bytes = (self.config.export.pool_mib as usize) << 20;
        let (exporter, batches) =
            Exporter::new(&self.config.export, self.keys.sample, pool_bytes / self.workers);
        let settings = analyse::Settings {
            new_connections: self.config.events.new_connections,
            connections_per_second: self.config.events.connections_per_second,
            contacts: setup::contacts(&self.config.detect, self.workers),
            key: self.keys.table,
        };
        let counters = self.counters.workers()[index].clone();
        let plan = Plan {
            index,
            cpu,
            interfaces: interfaces.to_vec(),
            ring,
            groups,
            is_shared: self.workers > 1,
            analyser: Analyser::new(&settings, counters.clone()),
            counters,
            exporter,
            outlets: Outlets {
                evidence: evidence_in,
                connections: connections_in,
                news: self.news.clone(),
                health: Arc::clone(self.health),
                own: Arc::clone(self.own),
            },
            stop: Arc::clone(self.stop),
        };
        (plan, OtherEnds { evidence: evidence_out, connections: connections_out, batches })
    }
}

fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let builder = std::thread::Builder::new().name(name.into());
    builder.spawn(body).map_err(|source| StartError::Thread { name, source })
}

fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(thread = name, "thread panicked; its message stands above");
    }
}

/// The recorder's thread: where events come together.
struct RecorderDesk {
    recorder: Recorder,
    news: Receiver<ToRecorder>,
    connections: Vec<rtrb::Consumer<NewConnection>>,
    ledger: LedgerView,
    started: Instant,
    stats_interval: Duration,
    /// Connections over the limit or without room in the queue, of all workers, as last seen.
    unwritten_by_workers: u64,
    reader_gone: Arc<AtomicBool>,
}

impl RecorderDesk {
    fn run(mut self) {
        let mut next_stats = self.started + self.stats_interval;
        loop {
            let is_last = match self.news.recv_timeout(LOOK_EVERY) {
                Ok(ToRecorder::Finish) | Err(RecvTimeoutError::Disconnected) => true,
                Ok(news) => {
                    self.take(news);
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
            };
            self.take_connections();
            if Instant::now() >= next_stats {
                self.stats();
                next_stats += self.stats_interval;
            }
            if is_last {
                break;
            }
            if self.news.is_empty() {
                self.recorder.second_over(health::now());
                self.recorder.flush();
            }
            if self.recorder.is_reader_gone() {
                self.reader_gone.store(true, Ordering::Relaxed);
            }
        }
        self.recorder.finish(health::now());
        self.wait_for_delivery();
        self.stats();
        self.recorder.flush();
    }

    fn take(&mut self, news: ToRecorder) {
        match news {
            ToRecorder::Alert(alert) => self.recorder.alert(&alert),
            ToRecorder::AlertsSummarised(time, summary) => {
                self.recorder.alerts_summarised(time, summary);
            }
            ToRecorder::Link(time, interface, is_up) => self.recorder.link(time, interface, is_up),
            ToRecorder::Finish => {}
        }
    }

    fn take_connections(&mut self) {
        for ring in &mut self.connections {
            while let Ok(connection) = ring.pop() {
                self.recorder.connection(&connection);
            }
        }
        let counters = self.ledger.counters();
        let unwritten = counters.sum(|c| &c.connections_over_limit)
            + counters.sum(|c| &c.connections_queue_full);
        self.recorder.connections_not_written(unwritten - self.unwritten_by_workers);
        self.unwritten_by_workers = unwritten;
    }

    fn stats(&mut self) {
        let decoder = decoder_stats(self.ledger.counters());
        let ledger = self.ledger.read();
        self.recorder.stats(health::now(), self.started.elapsed().as_secs(), decoder, &ledger);
    }

    /// The last `stats` event is to show what became of everything before it.
    fn wait_for_delivery(&self) {
        let limit = Instant::now() + DELIVERY_LIMIT;
        while self.ledger.is_delivering() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The part of the counters that EVE knows.
#[must_use]
pub fn decoder_stats(counters: &Counters) -> DecoderStats {
    let sum = |of: fn(&crate::counters::InterfaceCounters) -> u64| -> u64 {
        counters.workers().iter().flat_map(|set| &set.interfaces).map(|one| of(one)).sum()
    };
    DecoderStats {
        packets: sum(|c| c.analysed.read()),
        bytes: sum(|c| c.analysed_bytes.read()),
        invalid: sum(|c| c.packets.malformed.iter().map(|one| one.read()).sum()),
        tcp: sum(|c| c.packets.tcp.read()),
        udp: sum(|c| c.packets.udp.read()),
        icmpv4: sum(|c| c.packets.icmp.read()),
        icmpv6: sum(|c| c.packets.icmpv6.read()),
        arp: sum(|c| c.packets.arp.read()),
        ..DecoderStats::default()
    }
}
