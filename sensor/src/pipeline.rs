//! The only place where threads and the queues between them are made.
//!
//! ```text
//!   supervisor ◀─heartbeats, stages─ worker 0..N-1   calls to open rings ─▶ worker (see gathering)
//!   worker 0..N-1 ──evidence──▶ detector ──alerts──┐
//!      │  │  └─────new connections────────────────▶ recorder ──records──▶ uplink ══▶ collector
//!      │  ├──────ended flows──────────────────────▶    │
//!      │  └────────news, of the supervisor too────▶    │                   ▲
//!      │                                               └─▶ local output    │
//!      └───────────filled batches ──────────────────────────────────────────┘
//!      ◀───────────empty batches ────────────────────────────────────────────
//!   api  reads counters, asks the detector about sources
//!
//!   queue            size                         when full                       counter
//!   evidence         65 536 a worker (SPSC)       stays with the worker           ticks_deferred
//!   new connections  16 384 a worker (SPSC)       the connection is not written   connections_queue_full
//!   ended flows      16 384 a worker (SPSC)       the flow is not written         flows_queue_full
//!   news, alerts     1 024                        workers drop, detector waits    (health keeps the state)
//!   questions        4                            the API refuses, status 503
//!   records          65 536                       the record is lost              events_lost{uplink_queue}
//!   spool            spool.max_mib on the disk    oldest events, then alerts go   uplink_records{lost_spool_full}
//!   spool's jobs     1                            the next one has it all
//!   batches          export.pool_mib, all made    less, then nothing is exported  frames_lost_degraded, _pool_empty
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

use crate::afpacket::{
    self, Fanout, OpenError, Promiscuity, Reserve, RingConfig, Symmetry, Unbound,
};
use crate::analyse;
use crate::announce::Announcer;
use crate::api::{Api, ApiError};
use crate::config::Config;
use crate::connections::NewConnection;
use crate::counters::Counters;
use crate::detect::{Alert, AlertSummary, Budget, Detector, DetectorConfig};
use crate::detection::{
    self, DetectionCounters, EVIDENCE_RING, Feeds, Outside, QUESTIONS, Question,
};
use crate::devices::Devices;
use crate::event::{InterfaceChange, WorkerChange};
use crate::export::Exporter;
use crate::filter::RingFilter;
use crate::flood::TargetTable;
use crate::flow::{EndedFlow, FlowTable};
use crate::gathering::Board;
use crate::hardware;
use crate::health::{self, Health};
use crate::interfaces::{InterfaceNames, Lookout, Places};
use crate::ledger::LedgerView;
use crate::metrics::{self, Source};
use crate::output::{Output, OutputError};
use crate::recorder::{self, Recorder, RecorderCounters};
use crate::recording::RecorderDesk;
use crate::sandbox::{self, SandboxError};
use crate::setup::{self, Captured};
use crate::strain::DetectorChange;
use crate::supervisor::{self, Supervisor, SupervisorStatus};
use crate::timing::Timing;
use crate::uplink::{BatchRing, UplinkStatus};
use crate::uplink_thread::{self, UplinkStartError, UplinkThread};
use crate::worker::{
    self, CONNECTION_RING, FLOW_RING, Milestone, Outlets, Plan, TARGET_RING, WorkerError,
};

/// What the recorder is told beside new connections.
#[derive(Debug)]
pub enum ToRecorder {
    /// A step in the life of an alert.
    Alert(Box<Alert>),
    /// Alerts that could not be told one by one.
    AlertsSummarised(UnixNanos, AlertSummary),
    /// Something happened to the interface of this name.
    Interface(UnixNanos, String, InterfaceChange),
    /// Something happened to a worker.
    Worker(UnixNanos, usize, WorkerChange),
    /// The detector has not room for all evidence, or has again.
    Detector(UnixNanos, DetectorChange),
    /// Everyone else has ended: write what is left.
    Finish,
}

/// Why the sensor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sockets for the rings cannot be made.
    #[error(transparent)]
    Reserve(#[from] OpenError),
    /// A worker could not begin.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The events file cannot be opened.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The local API cannot serve.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The system does not say which interfaces there are.
    #[error("cannot list the interfaces")]
    Interfaces(#[source] std::io::Error),
    /// The uplink cannot start.
    #[error(transparent)]
    Uplink(#[from] UplinkStartError),
    /// The starting thread kept privileges.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system has no more threads.
    #[error(
        "cannot start thread {name}; raise the limit of tasks (TasksMax= of the unit, ulimit -u)"
    )]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A worker did not come so far in time.
    #[error(
        "worker {worker} has not opened its rings within {seconds} s: is the machine overloaded, or \
         capture.ring_mib too large?"
    )]
    WorkerSilent {
        /// Its number.
        worker: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A worker's thread ended before it said how the start went.
    #[error("worker {0} ended before it began; its message stands above")]
    WorkerGone(usize),
}

/// A running sensor.
pub struct Pipeline {
    stop_workers: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    stop_supervisor: Arc<AtomicBool>,
    supervisor: JoinHandle<bool>,
    /// Set when the detector is not to wait for workers that stand still.
    stop_detector: Arc<AtomicBool>,
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
    /// What is captured on.
    pub captured: Captured,
    /// CPUs of the workers; their number is that of the workers.
    pub cpus: Vec<usize>,
    /// Sizes of each ring.
    pub ring: RingConfig,
    /// Filter of the rings, in the order of [`Captured::names`].
    pub filters: Vec<RingFilter>,
    /// Time between `stats` events.
    pub stats_interval: Duration,
}

impl Start {
    /// What asks the interfaces of a glob for all frames, if that is configured. Rings on one interface do
    /// so themselves.
    fn promiscuity(&self) -> Result<Option<Promiscuity>, OpenError> {
        let is_needed = matches!(self.captured, Captured::Matching(_)) && self.ring.promiscuous;
        is_needed.then(Promiscuity::new).transpose()
    }
}

const NEWS_QUEUE: usize = 1024;
/// How long the start waits for each step of a worker: longer than the supervisor, which says who stands
/// still.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How long the end waits for the workers: they drain their rings and publish for two seconds each at
/// most, after the turn that they are in.
const WORKERS_LIMIT: Duration = Duration::from_secs(15);
/// How long the end waits for the collector to acknowledge what is under way.
pub const DELIVERY_LIMIT: Duration = Duration::from_secs(5);

impl Pipeline {
    /// Makes the sockets, gives up all privileges, starts every thread, opens the rings, and lets frames
    /// in.
    ///
    /// # Errors
    /// See [`StartError`]; the program is to end then.
    pub fn start(start: Start) -> Result<Self, StartError> {
        let output = Output::open(&start.config.events.output)?;
        let rings = start.captured.names().len() * start.cpus.len();
        let reserve = Reserve::fill(setup::reserve_sockets(&start.config.capture, rings))?;
        let symmetry = test_symmetry(&start)?;
        let promiscuity = start.promiscuity()?;
        // Threads inherit what this one has: from here on nobody has any privilege.
        sandbox::give_up_privileges()?;
        let (to_recorder, news) = bounded(NEWS_QUEUE);
        let common = Common::new(&start, &to_recorder, symmetry.as_ref());
        let lookout = common.lookout(&start, promiscuity)?;
        let crew = Crew::hire(&start, &common)?;
        let stop_supervisor = Arc::new(AtomicBool::new(false));
        let supervisor = common.start_supervisor(&start, reserve, lookout, &stop_supervisor)?;
        wait_for(&crew.said, Milestone::Joined, START_LIMIT)?;
        // Its tables take their time. Whoever sees the uplink connected may expect that frames are let in.
        let stop_detector = Arc::new(AtomicBool::new(false));
        let (ask, questions) = bounded(QUESTIONS);
        let detector = common.start_detector(
            &start,
            crew.evidence,
            (to_recorder.clone(), questions),
            Arc::clone(&stop_detector),
        )?;
        let uplink = common.start_uplink(&start, crew.batches)?;
        let recorder = common.recorder(&start, output, uplink.as_ref());
        let reader_gone = Arc::new(AtomicBool::new(false));
        let desk = RecorderDesk {
            recorder,
            news,
            connections: crew.connections,
            flows: crew.flows,
            unwritten_flows: Default::default(),
            ledger: common.ledger.clone(),
            timing: Arc::clone(&common.timing),
            devices: Arc::clone(&common.devices),
            started: Instant::now(),
            stats_interval: start.stats_interval,
            unwritten_by_workers: 0,
            reader_gone: Arc::clone(&reader_gone),
        };
        let recorder = spawn("recorder", move || desk.run())?;
        let api = common.start_api(&start, uplink.as_ref(), ask)?;
        common.board.open();
        wait_for(&crew.said, Milestone::Live, START_LIMIT)?;
        Ok(Self {
            stop_workers: common.stop,
            workers: crew.threads,
            stop_supervisor,
            supervisor,
            stop_detector,
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

    /// Ends in the direction of the stream. A worker that stands still is not waited for: the ledger is
    /// then that of a running sensor.
    #[must_use]
    pub fn stop(self) -> Stopped {
        self.stop_supervisor.store(true, Ordering::Relaxed);
        // Calls that are under way end with the workers.
        let are_fit = self.supervisor.join().unwrap_or(false);
        if !are_fit {
            tracing::error!("a worker had not come back, as the log says");
        }
        self.stop_workers.store(true, Ordering::Relaxed);
        let have_ended = join_workers(self.workers);
        if have_ended {
            self.ledger.workers_ended();
        }
        self.stop_detector.store(true, Ordering::Relaxed);
        let mut is_whole = are_fit && have_ended;
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
    board: Arc<Board>,
    interfaces: Arc<InterfaceNames>,
    /// Where frames belong, where a ring has several interfaces.
    places: Option<Arc<Places>>,
    announcer: Arc<Announcer>,
    supervision: Arc<SupervisorStatus>,
    timing: Arc<Timing>,
    devices: Arc<Devices>,
}

impl Common {
    fn new(start: &Start, news: &Sender<ToRecorder>, symmetry: Option<&Symmetry>) -> Self {
        let names = start.captured.names();
        let workers = start.cpus.len();
        let counters = Arc::new(Counters::new(names.clone(), workers));
        let recorder_counters = Arc::new(RecorderCounters::default());
        let uplink = Arc::new(UplinkStatus::default());
        let ledger = LedgerView::new(
            Arc::clone(&counters),
            Arc::clone(&recorder_counters),
            start.config.uplink.as_ref().map(|_| Arc::clone(&uplink)),
        );
        Self {
            health: Arc::new(Health::new(Arc::clone(&counters)).with_uplink(&uplink)),
            counters,
            recorder_counters,
            detection_counters: Arc::default(),
            uplink,
            ledger,
            stop: Arc::default(),
            keys: Keys::random(),
            boot_epoch: health::now().0,
            board: Arc::new(Board::new(workers, names.len())),
            interfaces: Arc::new(start.captured.interface_names()),
            places: matches!(start.captured, Captured::Matching(_)).then(Arc::default),
            announcer: Arc::new(Announcer::new(names.clone(), workers, news.clone())),
            timing: Arc::new(Timing::new(workers)),
            devices: Arc::new(Devices::new(names.clone(), start.captured.patterns().cloned())),
            supervision: Arc::new(SupervisorStatus::new(names, symmetry)),
        }
    }

    /// Looks for the first time at what a glob matches, before any frame comes.
    fn lookout(
        &self,
        start: &Start,
        promiscuity: Option<Promiscuity>,
    ) -> Result<Option<Lookout>, StartError> {
        let (Captured::Matching(patterns), Some(places)) = (&start.captured, &self.places) else {
            return Ok(None);
        };
        let (names, places) = (Arc::clone(&self.interfaces), Arc::clone(places));
        let lookout = Lookout::new(patterns.clone(), names, places, promiscuity);
        let lookout = lookout.map_err(StartError::Interfaces)?;
        let interfaces: Vec<&str> = lookout.captured().collect();
        match interfaces.as_slice() {
            [] => tracing::info!(patterns = patterns.name(), "no interface matches yet; waiting"),
            _ => tracing::info!(?interfaces, "captured now; those that come later will be too"),
        }
        Ok(Some(lookout))
    }

    fn start_supervisor(
        &self,
        start: &Start,
        reserve: Reserve,
        lookout: Option<Lookout>,
        stop: &Arc<AtomicBool>,
    ) -> Result<JoinHandle<bool>, StartError> {
        let supervisor = Supervisor::new(supervisor::Parts {
            board: Arc::clone(&self.board),
            counters: Arc::clone(&self.counters),
            health: Arc::clone(&self.health),
            announcer: Arc::clone(&self.announcer),
            status: Arc::clone(&self.supervision),
            reserve,
            fanout: setup::fanout(&start.config, start.cpus.len()),
            scopes: start.captured.names().into_iter().zip(start.captured.scopes()).collect(),
            lookout,
        });
        let stop = Arc::clone(stop);
        let body = move || {
            // It inherited none, and is to be as sure of that as every thread is.
            sandbox::give_up_privileges().is_ok() && supervisor.run(&stop)
        };
        spawn("supervisor", body)
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
            interfaces: Arc::clone(&self.interfaces),
            snaplen: start.config.export.snaplen,
        };
        let (ledger, status) = (self.ledger.clone(), Arc::clone(&self.uplink));
        let settings = (settings, start.config.spool.as_ref());
        let uplink = UplinkThread::start(settings, &about, batches, ledger, status)?;
        if let Some(certificates) = self.uplink.certificates.get() {
            self.health.watch_certificates(Arc::clone(certificates));
        }
        Ok(Some(uplink))
    }

    fn recorder(&self, start: &Start, output: Output, uplink: Option<&UplinkThread>) -> Recorder {
        let settings = recorder::Settings {
            sensor: start.sensor.clone(),
            boot_epoch: self.boot_epoch,
            interfaces: Arc::clone(&self.interfaces),
            connections_per_second: start.config.events.connections_per_second,
            flows_per_second: start.config.events.flows_per_second,
            flow_key: self.keys.flow,
            writers: 1,
        };
        let records = uplink.map(UplinkThread::records);
        Recorder::new(settings, output, records, Arc::clone(&self.recorder_counters))
    }

    fn start_detector(
        &self,
        start: &Start,
        evidence: Vec<Feeds>,
        (recorder, questions): (Sender<ToRecorder>, Receiver<Question>),
        stop: Arc<AtomicBool>,
    ) -> Result<JoinHandle<()>, StartError> {
        let splits_flows = setup::splits_flows(&start.config, evidence.len());
        let config = setup::detector(&start.config.detect, self.keys.table, true);
        let mut detector = Detector::new(DetectorConfig { splits_flows, ..config });
        detector.take_memory();
        let Budget { contacts, alerts, bytes } = detector.budget();
        tracing::info!(contacts, alerts, bytes, "memory of the detector");
        let bytes = Detector::FLOOD_MEMORY + TargetTable::MEMORY * evidence.len();
        tracing::info!(bytes, "memory of floods");
        let counters = Arc::clone(&self.detection_counters);
        let workers = Arc::clone(&self.counters);
        spawn("detector", move || {
            let outside = Outside { recorder: &recorder, questions: &questions, workers: &workers };
            detection::run(detector, evidence, &outside, &counters, &stop);
        })
    }

    fn start_api(
        &self,
        start: &Start,
        uplink: Option<&UplinkThread>,
        ask: Sender<Question>,
    ) -> Result<Option<Api>, StartError> {
        let Some(address) = start.config.api_listen else { return Ok(None) };
        let recorder: Arc<dyn Source> = Arc::clone(&self.recorder_counters) as _;
        let mut sources = vec![
            recorder,
            Arc::clone(&self.detection_counters) as _,
            Arc::clone(&self.announcer) as _,
            Arc::clone(&self.supervision) as _,
            Arc::clone(&self.interfaces) as _,
            Arc::clone(&self.timing) as _,
            Arc::clone(&self.devices) as _,
        ];
        sources.extend(uplink.map(UplinkThread::metrics));
        let registry = Arc::new(metrics::registry(Arc::clone(&self.counters), sources));
        Ok(Some(Api::start(address, registry, Arc::clone(&self.health), ask)?))
    }
}

/// Where frames are dealt by hash: does this kernel keep both directions of a flow together?
fn test_symmetry(start: &Start) -> Result<Option<Symmetry>, OpenError> {
    if setup::fanout(&start.config, start.cpus.len()) != Some(Fanout::Hash) {
        return Ok(None);
    }
    let symmetry = afpacket::probe_symmetry([Unbound::new()?, Unbound::new()?]);
    match &symmetry {
        Symmetry::Symmetric { flows } => tracing::debug!(flows, "the fanout hash is symmetric"),
        Symmetry::Asymmetric { flows, split } => tracing::warn!(
            flows,
            split,
            "this kernel deals the two directions of a flow to different workers; alerts are the \
             same; set capture.fanout = \"peer\" to keep them together"
        ),
        Symmetry::NotTested { reason } => {
            tracing::info!(reason, "whether the fanout hash is symmetric is not known");
        }
    }
    Ok(Some(symmetry))
}

/// What a worker says of its start.
type Said = Receiver<Result<Milestone, WorkerError>>;

/// The workers, and the other ends of their outlets.
#[derive(Default)]
struct Crew {
    threads: Vec<JoinHandle<()>>,
    said: Vec<Said>,
    evidence: Vec<Feeds>,
    connections: Vec<rtrb::Consumer<NewConnection>>,
    flows: Vec<rtrb::Consumer<EndedFlow>>,
    batches: Vec<BatchRing>,
}

impl Crew {
    fn hire(start: &Start, common: &Common) -> Result<Self, StartError> {
        let mut crew = Self::default();
        setup::warn_without_flows(&start.config);
        if let Some(flows) = setup::flows(&start.config, start.cpus.len()) {
            let bytes = FlowTable::memory(flows.flows) * start.cpus.len();
            tracing::info!(flows = flows.flows * start.cpus.len(), bytes, "memory of flows");
        }
        for index in 0..start.cpus.len() {
            let plan = crew.plan(start, common, index);
            // Room for the milestones and for one failure.
            let (say, said) = bounded(3);
            let builder = std::thread::Builder::new().name(format!("worker-{index}"));
            let thread = builder
                .spawn(move || worker::run(plan, say))
                .map_err(|source| StartError::Thread { name: "worker", source })?;
            crew.threads.push(thread);
            crew.said.push(said);
        }
        Ok(crew)
    }

    /// Makes a worker's plan and keeps the other ends of its outlets.
    fn plan(&mut self, start: &Start, common: &Common, index: usize) -> Plan {
        let Start { config, filters, cpus, ring, .. } = start;
        let (evidence, evidence_out) = queue(EVIDENCE_RING);
        let (targets, targets_out) = queue(TARGET_RING);
        let (connections, connections_out) = queue(CONNECTION_RING);
        let (flows, flows_out) = queue(FLOW_RING);
        let pool_bytes = ((config.export.pool_mib as usize) << 20) / cpus.len();
        let (exporter, batches) = Exporter::new(&config.export, common.keys.sample, pool_bytes);
        self.evidence.push(Feeds { evidence: evidence_out, targets: targets_out });
        self.connections.push(connections_out);
        self.flows.push(flows_out);
        self.batches.push(batches);
        let tables = analyse::Settings {
            new_connections: config.events.new_connections,
            connections_per_second: config.events.connections_per_second,
            contacts: setup::contacts(&config.detect, cpus.len()),
            flows: setup::flows(config, cpus.len()),
            splits_flows: setup::splits_flows(config, cpus.len()),
            key: common.keys.table,
        };
        let outlets = Outlets {
            evidence,
            targets,
            connections,
            flows,
            announcer: Arc::clone(&common.announcer),
            health: Arc::clone(&common.health),
            own: Arc::clone(&common.uplink.own),
        };
        Plan {
            index,
            cpu: cpus[index],
            ring: *ring,
            filters: filters.clone(),
            busy_poll: Duration::from_micros(u64::from(config.capture.busy_poll_us)),
            tables,
            counters: common.counters.workers()[index].clone(),
            exporter,
            stopwatch: common.timing.stopwatch(index),
            outlets,
            board: Arc::clone(&common.board),
            places: common.places.clone(),
            stop: Arc::clone(&common.stop),
        }
    }
}

/// Waits until every worker has come so far.
fn wait_for(said: &[Said], milestone: Milestone, limit: Duration) -> Result<(), StartError> {
    for (worker, said) in said.iter().enumerate() {
        let next = || {
            said.recv_timeout(limit).map_err(|error| match error {
                RecvTimeoutError::Disconnected => StartError::WorkerGone(worker),
                RecvTimeoutError::Timeout => {
                    StartError::WorkerSilent { worker, seconds: limit.as_secs() }
                }
            })
        };
        while next()?? != milestone {}
    }
    Ok(())
}

/// A queue whose memory is taken now.
fn queue<T>(capacity: usize) -> (rtrb::Producer<T>, rtrb::Consumer<T>) {
    let (mut producer, consumer) = rtrb::RingBuffer::new(capacity);
    if let Ok(mut room) = producer.write_chunk_uninit(capacity) {
        let (room, rest) = room.as_mut_slices();
        hardware::take(room);
        hardware::take(rest);
    }
    (producer, consumer)
}

fn spawn<T: Send + 'static>(
    name: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    let builder = std::thread::Builder::new().name(name.into());
    builder.spawn(body).map_err(|source| StartError::Thread { name, source })
}

/// Waits for the workers to drain their rings; says whether all have ended as they should.
fn join_workers(workers: Vec<JoinHandle<()>>) -> bool {
    let deadline = Instant::now() + WORKERS_LIMIT;
    while Instant::now() < deadline && !workers.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut have_ended = true;
    for (index, worker) in workers.into_iter().enumerate() {
        if worker.is_finished() {
            have_ended &= join("worker", worker);
        } else {
            tracing::error!(worker = index, "worker stands still and is not waited for");
            have_ended = false;
        }
    }
    have_ended
}

/// Waits for a thread; says whether it ended as it should.
fn join(name: &str, thread: JoinHandle<()>) -> bool {
    let ended = thread.join();
    if ended.is_err() {
        tracing::error!(thread = name, "thread panicked; its message stands above");
    }
    ended.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_for_no_worker_without_end() {
        let (say, first) = bounded(3);
        let (_silent, second) = bounded(3);
        let said = [first, second];
        say.send(Ok(Milestone::Joined)).unwrap();
        let error = wait_for(&said, Milestone::Joined, Duration::ZERO).unwrap_err();
        assert!(matches!(error, StartError::WorkerSilent { worker: 1, .. }), "{error}");
        drop(say);
        let error = wait_for(&said, Milestone::Live, Duration::ZERO).unwrap_err();
        assert!(matches!(error, StartError::WorkerGone(0)), "{error}");
    }
}
