//! The connection to the collector: one thread, which never waits for anything but its poll.
//!
//! ```text
//!   recorder ── records, bounded channel ──────▶ ┌──────────────┐
//!   worker 0 ── filled batches, SPSC ring ─────▶ │    uplink    │ ── TLS ──▶ collector
//!            ◀─ empty batches, SPSC ring ─────── │              │ ◀─ acknowledgements
//!   worker 1 ── …                                └──────────────┘
//! ```
//!
//! `session` is the protocol without I/O, `connection` one TCP and TLS connection, `queue`,
//! `delivery` and `gaps` keep what is under way, count what became of it and tell the collector, `own`
//! tells the workers which packets are the uplink's. While the collector is away, records wait in the
//! spool ([`crate::spool`]) and batches go back to their workers at once; both are counted.
//!
//! The thread looks at its rings and channels every [`TICK`] and whenever the socket is ready.
//! Nobody wakes it: a worker would have to make a system call for that, which costs it more than
//! the hundred wake-ups a second cost this thread; and what gathers in a tick is sent together.
//! While there is more to send, it does not wait at all.

mod backoff;
mod batches;
mod connection;
mod delivery;
mod fitness;
mod gaps;
mod guard;
mod home;
mod metrics;
mod own;
mod queue;
pub mod session;
mod target;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, TryRecvError};
use mio::{Events, Poll, Token};
use trust::{Keeper, KeeperStatus, SensorTls};
use wire::ledger::Ledger;
use wire::message::SensorHello;
use wire::records::RecordKind;
use wire::text::error_chain;
use wire::units::UnixNanos;

use self::backoff::Backoff;
use self::batches::BatchRings;
use self::connection::{Connection, ConnectionError, Load, Written};
use self::guard::LoopGuard;
use self::home::Home;
use self::own::OwnRegister;
use self::session::{Now, Session, Timing};

use crate::interfaces::InterfaceNames;
use crate::spool::status::SpoolStatus;
use crate::spool::{Spool, SpoolError};

pub use self::batches::BatchRing;
pub use self::delivery::{Deliveries, Delivery, LossReason};
pub use self::fitness::Fitness;
pub use self::metrics::{EndReason, Metrics};
pub use self::own::{OwnConnections, OwnSnapshot};
pub use self::target::{AddressError, CollectorAddress};

/// Longest time between two looks at the inputs.
pub const TICK: Duration = Duration::from_millis(10);
/// Bytes of records that wait in memory: without a spool while the collector is away or slow, with one
/// while it is read at the start or its disk fails. When they are more, the oldest events are given up before any alert, and
/// counted as `lost{queue_full}` or `lost{spool_failed}`.
pub const RECORD_QUEUE_BYTES: usize = 64 << 20;
/// How long a stop waits for acknowledgements, unless it is told otherwise.
pub const DRAIN: Duration = Duration::from_secs(5);

const LEDGER_INTERVAL: Duration = Duration::from_secs(1);
/// Records taken from the channel before the socket is looked at again.
const RECORDS_PER_TURN: usize = 4096;
/// How long a goodbye may take to leave.
const GOODBYE: Duration = Duration::from_millis(200);
const SOCKET: Token = Token(0);

/// What the uplink shares with the rest of the sensor.
#[derive(Debug, Default)]
pub struct UplinkStatus {
    /// Packets to and from collectors are not exported.
    pub own: Arc<OwnConnections>,
    /// Counters.
    pub metrics: Metrics,
    /// How the spool is.
    pub spool: Arc<SpoolStatus>,
    /// Whether the thread does its work.
    pub fitness: Fitness,
    /// What is known about the sensor's certificates, once the uplink was started.
    pub certificates: OnceLock<Arc<KeeperStatus>>,
    deliveries: Mutex<Deliveries>,
}

impl UplinkStatus {
    /// What became of all frames and records that the uplink has taken from its inputs. What still
    /// waits in rings and channel is not in it.
    #[must_use]
    pub fn deliveries(&self) -> Deliveries {
        *self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong, in words; empty when all is well.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.spool.problems();
        problems.extend(self.fitness.problem(Instant::now()));
        problems
    }
}

/// How the uplink behaves.
#[derive(Debug)]
pub struct UplinkConfig {
    /// Collectors, tried in turn.
    pub collectors: Vec<CollectorAddress>,
    /// Certificates; read anew when they change, so that they can be replaced.
    pub identity: Keeper<SensorTls>,
    /// What the sensor says of itself. The name must be that of its certificate.
    pub hello: SensorHello,
    /// Interfaces that the frames refer to, those that come later too.
    pub interfaces: Arc<InterfaceNames>,
    /// Most bytes of a frame that are exported.
    pub snaplen: u32,
    /// How long it waits for the peer.
    pub timing: Timing,
}

/// An event on its way to the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRecord {
    /// What it tells; alerts are kept longest.
    pub kind: RecordKind,
    /// One JSON object, without a line break.
    pub json: Vec<u8>,
}

/// What the uplink takes in.
pub struct UplinkInputs {
    /// Where records wait until a collector has them.
    pub spool: Spool,
    /// Events. The recorder must not wait when the channel is full.
    pub records: Receiver<OutgoingRecord>,
    /// One for each worker.
    pub batches: Vec<BatchRing>,
    /// Gives the ledger of the whole sensor, once a second. May read [`UplinkStatus::deliveries`].
    pub ledger: Box<dyn FnMut() -> Ledger + Send>,
    /// Says that the sensor stops, and how long the uplink may take (normally [`DRAIN`]). Workers
    /// and recorder must have stopped before, so that nothing comes in after it. A closed channel
    /// means the same, with no time left.
    pub stop: Receiver<Duration>,
}

/// Why the uplink could not begin.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// No poll.
    #[error("cannot poll sockets")]
    Poll(#[source] io::Error),
    /// There is nowhere to connect to.
    #[error("no collector is configured")]
    NoCollector,
    /// After a panic, the spool cannot be opened anew.
    #[error("cannot start over after a panic")]
    Spool(#[from] SpoolError),
}

/// Runs the uplink until it is stopped. The body of a thread.
///
/// # Errors
/// [`UplinkError`]; everything else that happens later is dealt with, counted and logged. A panic makes it
/// start over.
pub fn run(
    config: UplinkConfig,
    inputs: UplinkInputs,
    status: Arc<UplinkStatus>,
) -> Result<Deliveries, UplinkError> {
    let running = status.fitness.begin();
    let mut uplink = Uplink::new(config, inputs, Arc::clone(&status))?;
    let turns = |uplink: &mut Uplink| {
        while !uplink.turn() {
            uplink.wait();
        }
    };
    while panic::catch_unwind(AssertUnwindSafe(|| turns(&mut uplink))).is_err() {
        uplink.start_over()?;
    }
    let deliveries = uplink.finish();
    running.stop();
    Ok(deliveries)
}

/// The uplink, a turn at a time: for who runs many of them. A sensor [`run`]s one.
pub struct Uplink {
    config: UplinkConfig,
    records: Receiver<OutgoingRecord>,
    batches: BatchRings,
    ledger: Box<dyn FnMut() -> Ledger + Send>,
    stop: Receiver<Duration>,
    status: Arc<UplinkStatus>,
    session: Session,
    own: OwnRegister,
    guard: LoopGuard,
    poll: Poll,
    events: Events,
    link: Link,
    /// The collector that is dialled, an index of `config.collectors`.
    target: usize,
    /// Collectors not yet tried since the last wait.
    untried: usize,
    /// Further addresses of the collector that is dialled, next one last.
    addresses: Vec<SocketAddr>,
    backoff: Backoff,
    home: Home,
    /// Where the preferred collector is, while that is asked.
    home_answer: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    /// Set while a connection is wound down for the preferred collector: when it is given up.
    leave_at: Option<Instant>,
    ledger_due: Instant,
    /// Set once the sensor stops: when to give up.
    deadline: Option<Instant>,
    has_more: bool,
    /// What was said since the collector was last connected, one bit each; see [`Uplink::say`].
    said: u32,
}

enum Link {
    Waiting { until: Instant },
    Resolving { answer: Receiver<io::Result<Vec<SocketAddr>>> },
    Up(Box<Connection>),
}

impl Uplink {
    /// An uplink that has not dialled yet.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn new(
        config: UplinkConfig,
        inputs: UplinkInputs,
        status: Arc<UplinkStatus>,
    ) -> Result<Self, UplinkError> {
        if config.collectors.is_empty() {
            return Err(UplinkError::NoCollector);
        }
        let session = Session::new(
            config.hello.clone(),
            (Arc::clone(&config.interfaces), config.snaplen),
            config.timing,
            inputs.spool,
        );
        let now = Instant::now();
        // Sensors start at different nanoseconds.
        let mut backoff = Backoff::new(config.hello.boot_epoch);
        let until = now + backoff.spread(config.timing.spread);
        Ok(Self {
            own: OwnRegister::new(status.own.clone(), now),
            guard: LoopGuard::default(),
            records: inputs.records,
            batches: BatchRings::new(inputs.batches),
            ledger: inputs.ledger,
            stop: inputs.stop,
            session,
            poll: Poll::new().map_err(UplinkError::Poll)?,
            events: Events::with_capacity(8),
            link: Link::Waiting { until },
            target: 0,
            untried: config.collectors.len(),
            addresses: Vec::new(),
            backoff,
            home: Home::new(config.timing.preferred),
            home_answer: None,
            leave_at: None,
            ledger_due: now,
            deadline: None,
            has_more: false,
            said: 0,
            config,
            status,
        })
    }

    /// After a panic: session, spool and connection may hold anything, so they are made anew. What the disk has
    /// of the records is delivered, and what it has not is counted.
    fn start_over(&mut self) -> Result<(), UplinkError> {
        /// Should each turn panic, they do so a few times a second and no more.
        const LEAST_PAUSE: Duration = Duration::from_millis(250);
        let now = read_clocks();
        let pause = self.status.fitness.note_panic(now.monotonic);
        tracing::error!(?pause, "the uplink panicked, as the message above says, and starts over");
        let was_open = self.session.is_open();
        self.status.metrics.connection_ended(was_open, EndReason::Panic);
        self.link = Link::Waiting { until: now.monotonic + pause };
        self.poll = Poll::new().map_err(UplinkError::Poll)?;
        (self.guard, self.home) = (LoopGuard::default(), Home::new(self.config.timing.preferred));
        (self.leave_at, self.home_answer, self.addresses) = (None, None, Vec::new());
        (self.target, self.untried) = (0, self.config.collectors.len());
        self.session.start_over(now)?;
        std::thread::sleep(LEAST_PAUSE);
        Ok(())
    }

    /// Does all that can be done without waiting. True when the sensor stops and nothing more can
    /// be delivered.
    pub fn turn(&mut self) -> bool {
        let now = read_clocks();
        self.status.fitness.note_turn(now.monotonic);
        self.take_stop(now);
        self.take_records(now);
        let connected = match &self.link {
            Link::Up(connection) => Some(connection.address()),
            Link::Waiting { .. } | Link::Resolving { .. } => None,
        };
        self.own.refresh(now.monotonic, &self.config.collectors, connected);
        self.config.identity.refresh_if_due(now.monotonic);
        self.drive_link(now);
        if !self.session.is_open() {
            while self.batches.serve_one(|batch| {
                self.session.lose_frames(batch, LossReason::NotConnected);
            }) {}
        }
        self.publish();
        self.is_done(now)
    }

    fn take_stop(&mut self, now: Now) {
        let allowed = match self.stop.try_recv() {
            Ok(allowed) => allowed,
            Err(TryRecvError::Disconnected) if self.deadline.is_none() => Duration::ZERO,
            Err(_) => return,
        };
        self.deadline = Some(now.monotonic + allowed);
        // One last attempt, if there is something to deliver.
        if let Link::Waiting { until } = &mut self.link {
            *until = now.monotonic;
        }
    }

    fn take_records(&mut self, now: Now) {
        for OutgoingRecord { kind, json } in self.records.try_iter().take(RECORDS_PER_TURN) {
            self.session.push_record(now, kind, json);
        }
        self.session.keep_records(now);
    }

    fn is_done(&self, now: Now) -> bool {
        let Some(deadline) = self.deadline else { return false };
        let is_delivered =
            self.records.is_empty() && self.batches.are_empty() && self.session.is_settled();
        let is_hopeless = matches!(self.link, Link::Waiting { until } if until > now.monotonic);
        is_delivered || is_hopeless || now.monotonic >= deadline
    }

    fn wait(&mut self) {
        self.wait_for(if self.has_more { Duration::ZERO } else { TICK });
    }

    /// Waits until the socket is ready, for so long at most.
    pub fn wait_for(&mut self, timeout: Duration) {
        if let Err(error) = self.poll.poll(&mut self.events, Some(timeout))
            && error.kind() != io::ErrorKind::Interrupted
        {
            // Without a poll the sockets are tried at every tick.
            std::thread::sleep(timeout);
        }
        if let Link::Up(connection) = &mut self.link {
            self.events.iter().for_each(|event| connection.ready(event));
        }
    }

    /// Moves the link on: waits, resolves, dials, reads, writes.
    fn drive_link(&mut self, now: Now) {
        self.has_more = false;
        match &mut self.link {
            Link::Waiting { until } if *until > now.monotonic || !self.session.is_ready() => {}
            Link::Waiting { .. } => {
                let answer = self.config.collectors[self.target].resolve();
                self.link = Link::Resolving { answer };
                self.has_more = true;
            }
            Link::Resolving { answer } => match answer.try_recv() {
                Ok(Ok(mut addresses)) if !addresses.is_empty() => {
                    self.own.know(now.monotonic, &addresses);
                    addresses.reverse();
                    self.addresses = addresses;
                    self.dial(now);
                }
                Ok(Err(error)) => self.failed(now, EndReason::Resolve, &error),
                Err(TryRecvError::Empty) => {}
                Ok(Ok(_)) | Err(TryRecvError::Disconnected) => {
                    self.failed(now, EndReason::Resolve, &io::Error::from(io::ErrorKind::NotFound));
                }
            },
            Link::Up(_) => {
                if let Err(error) = self.drive_connection(now) {
                    self.failed(now, error.reason(), &error);
                } else if self.session.is_open() && self.target != 0 {
                    self.look_home(now);
                }
            }
        }
    }

    /// Goes back to the preferred collector when it is there again.
    fn look_home(&mut self, now: Now) {
        /// How long acknowledgements of frames are waited for.
        const WIND_DOWN: Duration = Duration::from_secs(2);
        let preferred = &self.config.collectors[0];
        if self.home.is_due(now.monotonic) {
            self.home_answer = Some(preferred.resolve());
        }
        if let Some(answer) = &self.home_answer
            && let Ok(addresses) = answer.try_recv()
        {
            self.home_answer = None;
            let addresses = addresses.unwrap_or_default();
            // Before the first packet leaves.
            self.own.know(now.monotonic, &addresses);
            self.home.knock(addresses);
        }
        if self.home.has_opened(now.monotonic, &mut self.backoff) {
            tracing::info!(collector = %preferred, "the preferred collector is there again");
            self.leave_at = Some(now.monotonic + WIND_DOWN);
        }
        if let Some(leave_at) = self.leave_at
            && (self.session.wind_down() || now.monotonic >= leave_at)
        {
            self.hang_up(now, EndReason::Preferred);
            (self.target, self.untried) = (0, self.config.collectors.len());
            self.addresses.clear();
            self.link = Link::Waiting { until: now.monotonic };
        }
    }

    fn dial(&mut self, now: Now) {
        let Some(address) = self.addresses.pop() else { return };
        let collector = &self.config.collectors[self.target];
        self.config.identity.refresh(now.monotonic);
        let dialled = Connection::dial(
            now.monotonic,
            address,
            collector.server_name().clone(),
            Arc::clone(self.config.identity.current()),
            (self.poll.registry(), SOCKET),
        );
        match dialled {
            Ok(connection) => self.link = Link::Up(Box::new(connection)),
            Err(error) => self.failed(now, error.reason(), &error),
        }
    }

    fn drive_connection(&mut self, now: Now) -> Result<(), ConnectionError> {
        let Link::Up(connection) = &mut self.link else { return Ok(()) };
        let was_open = self.session.is_open();
        connection.check_setup(now.monotonic, self.config.timing.silence)?;
        let identity = &self.config.identity;
        connection.check_trust(now, identity).map_err(|error| explained(identity, error))?;
        let read = connection.read(now, &mut self.session);
        read.map_err(|error| explained(identity, error))?;
        if self.session.is_open() && !was_open {
            self.status.metrics.connection_opened();
            self.said = 0;
            let collector = &self.config.collectors[self.target];
            tracing::info!(%collector, "collector connected");
            self.home.connected(now.monotonic, self.target == 0, &mut self.backoff);
        }
        self.session.tick(now)?;
        if let Some(round_trip) = self.session.round_trip() {
            self.status.metrics.round_trip_measured(round_trip);
        }
        if let Some(offset) = self.session.clock_offset() {
            self.status.metrics.clock_offset_measured(offset);
        }
        let written = self.write(now)?;
        self.has_more = written == Written::More;
        if now.monotonic >= self.ledger_due {
            self.ledger_due = now.monotonic + LEDGER_INTERVAL;
            self.session.report_ledger(now, (self.ledger)())?;
        }
        Ok(())
    }

    /// Writes what there is to the connection, if there is one.
    fn write(&mut self, now: Now) -> Result<Written, ConnectionError> {
        let Link::Up(connection) = &mut self.link else { return Ok(Written::All) };
        connection.write(&mut Load {
            now: now.monotonic,
            session: &mut self.session,
            batches: &mut self.batches,
            guard: &mut self.guard,
            own: &mut self.own,
            metrics: &self.status.metrics,
        })
    }

    /// An attempt failed, or a connection ended: counts it, says it once, and chooses what to dial
    /// next and when.
    fn failed(&mut self, now: Now, reason: EndReason, error: &dyn Error) {
        let was_open = self.session.is_open();
        self.say(reason, error);
        self.hang_up(now, reason);
        if was_open {
            // The same collector first: it knows what it has.
            (self.untried, self.addresses) = (self.config.collectors.len(), Vec::new());
        } else if !self.addresses.is_empty() {
            return self.dial(now);
        } else {
            self.target = (self.target + 1) % self.config.collectors.len();
            self.untried = self.untried.saturating_sub(1);
        }
        let is_round_over = was_open || self.untried == 0;
        let mut wait = if is_round_over { self.backoff.next_wait() } else { Duration::ZERO };
        if was_open {
            wait = wait.max(self.backoff.spread(self.config.timing.spread));
        }
        if self.untried == 0 {
            self.untried = self.config.collectors.len();
        }
        self.link = Link::Waiting { until: now.monotonic + wait };
    }

    /// Closes the connection, if there is one, and counts its end.
    fn hang_up(&mut self, now: Now, reason: EndReason) {
        (self.leave_at, self.home_answer) = (None, None);
        let was_open = self.session.is_open();
        let waiting = Link::Waiting { until: now.monotonic };
        if let Link::Up(mut connection) = std::mem::replace(&mut self.link, waiting) {
            connection.deregister(self.poll.registry());
            if was_open {
                self.backoff.connection_ended(connection.age(now.monotonic));
            }
        }
        self.session.disconnected();
        self.status.metrics.connection_ended(was_open, reason);
    }

    /// Says that the collector is away, once until it is back: how that shows (closed, refused,
    /// silent) changes while it stays away. What somebody has to mend is said for itself.
    fn say(&mut self, reason: EndReason, error: &dyn Error) {
        let collector = &self.config.collectors[self.target];
        let said_for = match reason {
            EndReason::Resolve | EndReason::Tls | EndReason::Protocol => reason,
            EndReason::Connect
            | EndReason::Io
            | EndReason::Closed
            | EndReason::Goodbye
            | EndReason::TimedOut
            | EndReason::Shutdown
            | EndReason::Preferred
            | EndReason::Panic => EndReason::Connect,
        };
        let bit = 1 << said_for as u32;
        let error = error_chain(error);
        if self.said & bit == 0 {
            tracing::warn!(%collector, reason = reason.name(), error, "collector is away");
        } else {
            tracing::debug!(%collector, reason = reason.name(), error, "collector is still away");
        }
        self.said |= bit;
    }

    fn publish(&self) {
        let mut shared = self.status.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
        *shared = self.session.deliveries();
    }

    /// Says goodbye if somebody listens, and counts what was not delivered.
    #[must_use]
    pub fn finish(mut self) -> Deliveries {
        let now = read_clocks();
        while let Ok(OutgoingRecord { kind, json }) = self.records.try_recv() {
            self.session.push_record(now, kind, json);
        }
        while self.batches.serve_one(|batch| self.session.lose_frames(batch, LossReason::Shutdown))
        {
        }
        self.session.abandon(now);
        self.publish();
        let now = read_clocks();
        if self.session.is_open() && self.say_goodbye(now).is_err() {
            tracing::debug!("connection broke during goodbye");
        }
        if matches!(self.link, Link::Up(_)) {
            self.hang_up(now, EndReason::Shutdown);
        }
        self.session.deliveries()
    }

    /// Sends the last ledger, a goodbye and TLS's close_notify, and waits shortly for the peer to
    /// close, so that the kernel does not throw away what is on its way.
    fn say_goodbye(&mut self, now: Now) -> Result<(), ConnectionError> {
        self.session.report_ledger(now, (self.ledger)())?;
        self.session.say_goodbye()?;
        let until = now.monotonic + GOODBYE;
        let mut is_notified = false;
        while Instant::now() < until {
            let written = self.write(now)?;
            let Link::Up(connection) = &mut self.link else { return Ok(()) };
            if written == Written::All && !is_notified {
                connection.send_close_notify();
                is_notified = true;
            } else if written == Written::All {
                connection.finish_writing();
                connection.read(read_clocks(), &mut self.session)?;
            }
            self.has_more = written == Written::More || !is_notified;
            self.wait();
        }
        Ok(())
    }
}

/// With words for the operator where certificates are to blame.
fn explained(identity: &Keeper<SensorTls>, error: ConnectionError) -> ConnectionError {
    match error {
        ConnectionError::Tls(error) => ConnectionError::Refused(identity.explain(&error)),
        error => error,
    }
}

/// The time by both clocks.
#[must_use]
pub fn read_clocks() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { monotonic: Instant::now(), unix: UnixNanos(0).plus(unix) }
}

#[cfg(test)]
mod tests;
