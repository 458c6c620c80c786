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
//!   evidence         65 536 a worker (SPSC)       stays with the worker           ticks_deferred
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

use crossbeam_channel::{Sender, bounded};
use wire::ledger::Ledger;
use wire::units::UnixNanos;

use crate::afpacket::{FanoutGroup, Interface, RingConfig};
use crate::analyse::{self, Analyser};
use crate::api::{Api, ApiError};
use crate::config::Config;
use crate::connections::NewConnection;
use crate::counters::Counters;
use crate::detect::{Alert, AlertSummary, Budget, Detector};
use crate::detection::{self, DetectionCounters, EVIDENCE_RING, Evidence};
use crate::export::Exporter;
use crate::health::{self, Health};
use crate::ledger::LedgerView;
use crate::metrics::{self, Source};
use crate::output::{Output, OutputError};
use crate::recorder::{self, Recorder, RecorderCounters};
use crate::recording::RecorderDesk;
use crate::sandbox::{self, SandboxError};
use crate::setup;
use crate::uplink::{BatchRing, UplinkStatus};
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

/// How a run ended.
pub struct Stopped {
    /// The last ledger.
    pub ledger: Ledger,
    /// Every thread ended as it should; otherwise the log says which did not.
    pub is_whole: bool,
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
/// How long the end waits for the collector to acknowledge what is under way.
pub const DELIVERY_LIMIT: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Opens the rings, gives up all privileges, starts every thread, and lets frames in.
    ///
    /// # Errors
    /// See [`StartError`]; the program is to end then.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let output = Output::open(&start.config.events.output)?;
        let common = Common::new(&start);
        let (to_recorder, news) = bounded(NEWS_QUEUE);
        let crew = Crew::hire(&start, &common, &to_recorder)?;
        // Threads inherit what this one has: from here on nobody has any privilege.
        sandbox::give_up_privileges()?;
        let uplink = common.start_uplink(&start, crew.batches)?;
        let recorder = common.recorder(&start, output, uplink.as_ref());
        let reader_gone = Arc::new(AtomicBool::new(false));
        let desk = RecorderDesk {
            recorder,
            news,
            connections: crew.connections,
            ledger: common.ledger.clone(),
            started: Instant::now(),
            stats_interval: start.stats_interval,
            unwritten_by_workers: 0,
            reader_gone: Arc::clone(&reader_gone),
        };
        let recorder = spawn("recorder", move || desk.run())?;
        let detector = common.start_detector(&start, crew.evidence, to_recorder.clone())?;
        let api = common.start_api(&start, uplink.as_ref())?;
        // Once to begin, and once more, which is taken when the worker has let frames in. A worker
        // that is gone by now is missed by the watch over heartbeats.
        for begin in crew.begin.iter().chain(&crew.begin) {
            let _ = begin.send(());
        }
        Ok(Self {
            stop_workers: common.stop,
            workers: crew.threads,
            detector,
            recorder,
            to_recorder,
            uplink,
            api,
            ledger: common.ledger,
            reader_gone,
        })
    }

    /// Whoever read the events on standard output is gone.
    #[must_use]
    pub fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Relaxed)
    }

    /// Ends in the direction of the stream.
    #[must_use]
    pub fn stop(self) -> Stopped {
        self.stop_workers.store(true, Ordering::Relaxed);
        let mut is_whole = true;
        for worker in self.workers {
            is_whole &= join("worker", worker);
        }
        self.ledger.workers_ended();
        is_whole &= join("detector", self.detector);
        let _ = self.to_recorder.send(ToRecorder::Finish);
        is_whole &= join("recorder", self.recorder);
        if let Some(uplink) = self.uplink {
            uplink.stop(DELIVERY_LIMIT);
        }
        if let Some(api) = self.api {
            api.stop();
        }
        Stopped { ledger: self.ledger.read(), is_whole }
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

/// What several threads share.
struct Common {
    counters: Arc<Counters>,
    recorder_counters: Arc<RecorderCounters>,
    detection_counters: Arc<DetectionCounters>,
    health: Arc<Health>,
    uplink: Arc<UplinkStatus>,
    ledger: LedgerView,
    stop: Arc<AtomicBool>,
    keys: Keys,
    boot_epoch: u64,
}

impl Common {
    fn new(start: &Start) -> Self {
        let names = start.interfaces.iter().map(|one| one.name.clone()).collect();
        let counters = Arc::new(Counters::new(names, start.cpus.len()));
        let recorder_counters = Arc::new(RecorderCounters::default());
        let uplink = Arc::new(UplinkStatus::default());
        let ledger = LedgerView::new(
            Arc::clone(&counters),
            Arc::clone(&recorder_counters),
            start.config.uplink.as_ref().map(|_| Arc::clone(&uplink)),
        );
        Self {
            health: Arc::new(Health::new(Arc::clone(&counters))),
            counters,
            recorder_counters,
            detection_counters: Arc::default(),
            uplink,
            ledger,
            stop: Arc::default(),
            keys: Keys::random(),
            boot_epoch: health::now().0,
        }
    }

    fn start_uplink(
        &self,
        start: &Start,
        batches: Vec<BatchRing>,
    ) -> Result<Option<UplinkThread>, StartError> {
        let Some(settings) = &start.config.uplink else { return Ok(None) };
        let about = uplink_thread::About {
            sensor: &start.sensor,
            boot_epoch: self.boot_epoch,
            interfaces: &start.interfaces,
            snaplen: start.config.export.snaplen,
        };
        let (ledger, status) = (self.ledger.clone(), Arc::clone(&self.uplink));
        Ok(Some(UplinkThread::start(settings, &about, batches, ledger, status)?))
    }

    fn recorder(&self, start: &Start, output: Output, uplink: Option<&UplinkThread>) -> Recorder {
        let settings = recorder::Settings {
            sensor: start.sensor.clone(),
            boot_epoch: self.boot_epoch,
            interfaces: self.counters.interfaces().to_vec(),
            connections_per_second: start.config.events.connections_per_second,
            flow_key: self.keys.flow,
        };
        let records = uplink.map(UplinkThread::records);
        Recorder::new(settings, output, records, Arc::clone(&self.recorder_counters))
    }

    fn start_detector(
        &self,
        start: &Start,
        evidence: Vec<rtrb::Consumer<Evidence>>,
        recorder: Sender<ToRecorder>,
    ) -> Result<JoinHandle<()>, StartError> {
        let detector = Detector::new(setup::detector(&start.config.detect, self.keys.table, true));
        let Budget { contacts, alerts, bytes } = detector.budget();
        tracing::info!(contacts, alerts, bytes, "memory of the detector");
        let counters = Arc::clone(&self.detection_counters);
        spawn("detector", move || detection::run(detector, evidence, &recorder, &counters))
    }

    fn start_api(
        &self,
        start: &Start,
        uplink: Option<&UplinkThread>,
    ) -> Result<Option<Api>, StartError> {
        let Some(address) = start.config.api_listen else { return Ok(None) };
        let recorder: Arc<dyn Source> = Arc::clone(&self.recorder_counters) as _;
        let mut sources = vec![recorder, Arc::clone(&self.detection_counters) as _];
        sources.extend(uplink.map(UplinkThread::metrics));
        let registry = Arc::new(metrics::registry(Arc::clone(&self.counters), sources));
        Ok(Some(Api::start(address, registry, Arc::clone(&self.health))?))
    }
}

/// The workers, and the other ends of their outlets.
#[derive(Default)]
struct Crew {
    threads: Vec<JoinHandle<()>>,
    begin: Vec<Sender<()>>,
    evidence: Vec<rtrb::Consumer<Evidence>>,
    connections: Vec<rtrb::Consumer<NewConnection>>,
    batches: Vec<BatchRing>,
}

impl Crew {
    /// Starts the workers one after the other: members of a fanout group join in order.
    fn hire(start: &Start, common: &Common, news: &Sender<ToRecorder>) -> Result<Self, StartError> {
        let mut crew = Self::default();
        let mut groups = Vec::new();
        for index in 0..start.cpus.len() {
            let plan = crew.plan(start, common, news, index, groups.clone());
            let made = crew.open(plan)?;
            if index == 0 {
                groups = made;
            }
        }
        Ok(crew)
    }

    /// Makes a worker's plan and keeps the other ends of its outlets.
    fn plan(
        &mut self,
        start: &Start,
        common: &Common,
        news: &Sender<ToRecorder>,
        index: usize,
        groups: Vec<FanoutGroup>,
    ) -> Plan {
        let Start { config, interfaces, cpus, ring, .. } = start;
        let (evidence, evidence_out) = rtrb::RingBuffer::new(EVIDENCE_RING);
        let (connections, connections_out) = rtrb::RingBuffer::new(CONNECTION_RING);
        let pool_bytes = ((config.export.pool_mib as usize) << 20) / cpus.len();
        let (exporter, batches) = Exporter::new(&config.export, common.keys.sample, pool_bytes);
        self.evidence.push(evidence_out);
        self.connections.push(connections_out);
        self.batches.push(batches);
        let settings = analyse::Settings {
            new_connections: config.events.new_connections,
            connections_per_second: config.events.connections_per_second,
            contacts: setup::contacts(&config.detect, cpus.len()),
            key: common.keys.table,
        };
        let counters = common.counters.workers()[index].clone();
        let outlets = Outlets {
            evidence,
            connections,
            news: news.clone(),
            health: Arc::clone(&common.health),
            own: Arc::clone(&common.uplink.own),
        };
        Plan {
            index,
            cpu: cpus[index],
            interfaces: interfaces.clone(),
            ring: *ring,
            groups,
            // At most as many as the host has CPUs.
            workers: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
            analyser: Analyser::new(&settings, counters.clone()),
            counters,
            exporter,
            outlets,
            stop: Arc::clone(&common.stop),
        }
    }

    /// Starts one worker, waits until its rings are open, and gives the groups that it made.
    fn open(&mut self, plan: Plan) -> Result<Vec<FanoutGroup>, StartError> {
        let index = plan.index;
        let (say_opened, opened) = bounded(1);
        let (begin, wait_for_begin) = bounded(0);
        let builder = std::thread::Builder::new().name(format!("worker-{index}"));
        let thread = builder
            .spawn(move || worker::run(plan, &say_opened, &wait_for_begin))
            .map_err(|source| StartError::Thread { name: "worker", source })?;
        self.threads.push(thread);
        self.begin.push(begin);
        Ok(opened.recv().map_err(|_| StartError::WorkerGone(index))??)
    }
}

fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let builder = std::thread::Builder::new().name(name.into());
    builder.spawn(body).map_err(|source| StartError::Thread { name, source })
}

/// Waits for a thread; says whether it ended as it should.
fn join(name: &str, thread: JoinHandle<()>) -> bool {
    let ended = thread.join();
    if ended.is_err() {
        tracing::error!(thread = name, "thread panicked; its message stands above");
    }
    ended.is_ok()
}
