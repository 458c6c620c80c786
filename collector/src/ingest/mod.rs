//! Where sensors arrive: one thread, one event loop, all connections.
//!
//! ```text
//!   socket ──▶ TLS (secure) ──▶ decoder, session (intake) ──▶ queue ──▶ committer
//!          ◀──────────────── acknowledgements ◀── mailbox ◀────────────────┘
//! ```
//!
//! A connection is read a piece at a time, in turn with the others. One that misbehaves is closed
//! with a named reason; the others do not notice.

mod allowance;
mod capacity;
mod connection;
mod intake;
mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use trust::{CollectorTls, Keeper};

use crate::committer::{Mailbox, Queue, now};
use crate::config::Rates;
use crate::limit::LineLimit;
use crate::status::{Shared, add};
use capacity::Handshakes;
use connection::{CloseReason, Common, Connection, Wish};

/// The event loop. See the module.
pub struct Ingest {
    poll: Poll,
    /// None once a stop was asked for.
    listener: Option<TcpListener>,
    identity: Keeper<CollectorTls>,
    mailbox: Arc<Mailbox>,
    is_stopping: Arc<AtomicBool>,
    connections: BTreeMap<Token, Connection>,
    /// Those of them whose peer is not known yet.
    handshakes: Handshakes,
    /// Most connections at once; see [`capacity::most_connections`].
    most_connections: usize,
    /// More callers may wait at the listening socket.
    has_callers: bool,
    /// The connection of each sensor, by name.
    sensors: BTreeMap<String, Token>,
    /// Connections that may have something to read.
    turns: BTreeSet<Token>,
    /// Connections that wait for the store.
    waiting: BTreeSet<Token>,
    /// Connections whose sensor has had its share of the second.
    resting: BTreeSet<Token>,
    /// Sessions whose sensor's certificate is to be verified anew.
    doubtful: BTreeSet<Token>,
    next_token: usize,
    last_tick: Instant,
    limit: LineLimit,
    /// For sensors that come again and again, so that they use up no line about a fault.
    limit_of_replaced: LineLimit,
    /// None once a stop was asked for: that tells the committer that nothing follows.
    common: Option<Common>,
    shared: Arc<Shared>,
}

/// What stands between the network and the event loop.
pub struct Door {
    /// Where sensors connect.
    pub listener: std::net::TcpListener,
    /// Who we are, and whom we take.
    pub identity: Keeper<CollectorTls>,
    /// What one sensor may bring.
    pub rates: Rates,
}

/// The waker of an event loop's poll has this token.
pub const WAKER: Token = Token(1);

impl Ingest {
    /// An event loop behind `door`, whose `poll` has a waker with the token [`WAKER`]. Raises the
    /// process's limit of open files.
    ///
    /// # Errors
    /// What the system says about registering the socket.
    pub fn new(
        poll: Poll,
        door: Door,
        queue: Queue,
        mailbox: Arc<Mailbox>,
        shared: Arc<Shared>,
        is_stopping: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let Door { listener, identity, rates } = door;
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let common = Common {
            shared: Arc::clone(&shared),
            queue,
            taken: BTreeMap::new(),
            rates,
            allowances: BTreeMap::new(),
            scratch: Vec::new(),
        };
        Ok(Self {
            poll,
            listener: Some(listener),
            identity,
            mailbox,
            is_stopping,
            connections: BTreeMap::new(),
            handshakes: Handshakes::default(),
            most_connections: capacity::most_connections(),
            has_callers: false,
            sensors: BTreeMap::new(),
            turns: BTreeSet::new(),
            waiting: BTreeSet::new(),
            resting: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            next_token: WAKER.0 + 1,
            last_tick: Instant::now(),
            limit: LineLimit::default(),
            limit_of_replaced: LineLimit::default(),
            common: Some(common),
            shared,
        })
    }

    /// Serves sensors until a stop is asked for; then waits until all that was taken is stored, says
    /// so to the sensors, and ends.
    ///
    /// # Errors
    /// What the system says about waiting for events.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.is_stopping.load(Ordering::Relaxed) {
            self.turn(&mut events)?;
        }
        self.stop_taking();
        while !self.mailbox.is_drained() {
            self.wait(&mut events)?;
            self.take_mail();
        }
        self.take_mail();
        self.say_goodbye(&mut events)
    }

    /// One round: wait, accept, read from each connection that has something.
    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        self.wait(events)?;
        let mut has_mail = false;
        for event in events.iter() {
            match event.token() {
                LISTENER => self.has_callers = true,
                WAKER => has_mail = true,
                // A connection that waits for the store is served when that has taken something, and
                // one that rests is served anyway.
                token if self.waiting.contains(&token) || self.resting.contains(&token) => {}
                token => _ = self.turns.insert(token),
            }
        }
        if has_mail {
            self.take_mail();
            self.turns.append(&mut self.waiting);
        }
        if self.has_callers {
            self.accept();
        }
        self.turns.append(&mut self.resting);
        let mut handshakes = 0;
        for token in std::mem::take(&mut self.turns) {
            if self.handshakes.contains(token) {
                handshakes += 1;
                if handshakes > MOST_HANDSHAKES_SERVED {
                    self.turns.insert(token);
                    continue;
                }
            }
            self.serve(token);
        }
        self.verify_some();
        if self.last_tick.elapsed() >= TICK {
            self.tick();
        }
        Ok(())
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let is_idle = self.turns.is_empty() && self.doubtful.is_empty() && !self.has_callers;
        let patience = match (is_idle, self.resting.is_empty()) {
            (false, _) => Duration::ZERO,
            (true, false) => REST,
            (true, true) => TICK,
        };
        match self.poll.poll(events, Some(patience)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// Accepts a limited number of callers, so that known sensors are served in between.
    fn accept(&mut self) {
        for _ in 0..MOST_ACCEPTED {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_callers = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of file descriptors, say. `tick` calls again.
                    self.has_callers = false;
                    self.shared.refused.count("accept_failed");
                    if self.limit.allow(SELF, Instant::now()).is_some() {
                        tracing::error!(%error, "cannot accept connections");
                    }
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        // A socket for both families gives IPv4 addresses within IPv6 ones.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        add(&self.shared.counters.connections, 1);
        let is_full = self.connections.len() >= self.most_connections;
        if let Some(oldest) = self.handshakes.in_the_way(peer.ip(), is_full) {
            self.close(oldest, &CloseReason::Crowded);
        } else if is_full {
            self.shared.refused.count("too_many_connections");
            let limit = format!("limit {}", self.most_connections);
            self.warn(peer, None, "too_many_connections", &limit);
            return;
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let _ = socket.set_nodelay(true);
        let registered = self.poll.registry().register(&mut socket, token, interest);
        self.identity.refresh(Instant::now());
        let identity = Arc::clone(self.identity.current());
        match (registered, Connection::new(token.0 as u64, peer, socket, identity, now())) {
            (Ok(()), Ok(connection)) => {
                self.connections.insert(token, connection);
                self.handshakes.begin(token, peer.ip());
                self.turns.insert(token);
            }
            (registered, connection) => {
                self.shared.refused.count("accept_failed");
                let cause = registered.err().map(|error| error.to_string());
                let cause = cause.or(connection.err().map(|error| error.to_string()));
                self.warn(peer, None, "accept_failed", &cause.unwrap_or_default());
            }
        }
    }

    /// Serves one connection and does with it what comes of that.
    fn serve(&mut self, token: Token) {
        let (Some(connection), Some(common)) = (self.connections.get_mut(&token), &mut self.common)
        else {
            return;
        };
        self.waiting.remove(&token);
        let was_known = connection.sensor().is_some();
        let result = connection.serve(common, now());
        let newcomer = match connection.sensor() {
            Some(sensor) if !was_known => {
                self.handshakes.end(token);
                Some(sensor.to_owned())
            }
            _ => None,
        };
        match result {
            Ok(Wish::Readiness) => {}
            Ok(Wish::Turn) => _ = self.turns.insert(token),
            Ok(Wish::Room) => _ = self.waiting.insert(token),
            Ok(Wish::Rest) => _ = self.resting.insert(token),
            Err(reason) => self.close(token, &reason),
        }
        if let Some(sensor) = newcomer
            && self.connections.contains_key(&token)
            && let Some(older) = self.sensors.insert(sensor, token)
        {
            self.close(older, &CloseReason::Replaced);
        }
    }

    /// Verifies the certificates of a limited number of live sessions, so that sensors are served in
    /// between.
    fn verify_some(&mut self) {
        for _ in 0..MOST_VERIFIED {
            let Some(token) = self.doubtful.pop_first() else { return };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if let Err(reason) = connection.verify(self.identity.current()) {
                self.close(token, &reason);
            }
        }
    }

    /// Tells sensors what is stored now.
    fn take_mail(&mut self) {
        for sensor in self.mailbox.take().into_values() {
            let Some(&token) = self.sensors.get(sensor.name()) else { continue };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if let Err(reason) = connection.acknowledge() {
                self.close(token, &reason);
            }
        }
    }

    fn tick(&mut self) {
        self.last_tick = Instant::now();
        self.accept();
        // The committer says when something is stored, not when there is room.
        self.turns.extend(&self.waiting);
        self.identity.refresh_if_due(self.last_tick);
        let now = now();
        let tokens: Vec<Token> = self.connections.keys().copied().collect();
        for token in tokens {
            let is_listening = !self.waiting.contains(&token) && !self.resting.contains(&token);
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if connection.is_verification_due(self.identity.current(), now) {
                self.doubtful.insert(token);
            }
            if let Err(reason) = connection.tick(is_listening, now) {
                self.close(token, &reason);
            }
        }
    }

    fn close(&mut self, token: Token, reason: &CloseReason) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        self.handshakes.end(token);
        self.turns.remove(&token);
        self.waiting.remove(&token);
        self.resting.remove(&token);
        self.doubtful.remove(&token);
        let sensor = connection.sensor().map(ToOwned::to_owned);
        if let Some(sensor) = &sensor
            && self.sensors.get(sensor) == Some(&token)
        {
            self.sensors.remove(sensor);
        }
        // The socket is closed in any case, which unregisters it as well.
        let _ = self.poll.registry().deregister(connection.socket());
        let peer = connection.peer();
        connection.close(now());
        self.note_close(peer, sensor.as_deref(), reason);
    }

    fn note_close(&mut self, peer: SocketAddr, sensor: Option<&str>, reason: &CloseReason) {
        if let Some(failure) = reason.handshake_failure() {
            self.shared.handshakes.count(failure);
        }
        if matches!(reason, CloseReason::Replaced) {
            add(&self.shared.counters.replaced, 1);
            if self.limit_of_replaced.allow(peer.ip(), Instant::now()).is_none() {
                add(&self.shared.counters.suppressed_lines, 1);
                return;
            }
        }
        let cause = match reason.tls_error() {
            Some(error) => Some(self.identity.explain(error)),
            None => reason.source().map(ToString::to_string),
        };
        match (reason.name(), sensor) {
            (Some(name), _) => {
                self.warn(peer, sensor, name, &cause.unwrap_or_else(|| reason.to_string()));
                self.shared.refused.count(name);
            }
            (None, Some(sensor)) => {
                tracing::info!(sensor, %peer, reason = %reason, cause, "sensor disconnected");
            }
            // Whoever connects and leaves before saying who he is: a port scanner, a health check.
            (None, None) => self.shared.refused.count("closed_in_handshake"),
        }
    }

    /// One line per peer and minute about what was refused.
    fn warn(&mut self, peer: SocketAddr, sensor: Option<&str>, reason: &str, cause: &str) {
        match self.limit.allow(peer.ip(), Instant::now()) {
            Some(suppressed) => {
                tracing::warn!(%peer, sensor, reason, cause, suppressed, "connection refused");
            }
            None => add(&self.shared.counters.suppressed_lines, 1),
        }
    }

    /// A stop: no new connections, nothing more is read. What is in decoders and was not taken is
    /// not acknowledged either; sensors send it again.
    fn stop_taking(&mut self) {
        self.listener = None;
        self.has_callers = false;
        self.common = None;
        self.turns.clear();
        self.resting.clear();
        self.doubtful.clear();
    }

    /// Sends what there is to send, for a limited time.
    fn say_goodbye(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = Instant::now() + FAREWELL;
        for connection in self.connections.values_mut() {
            // It is closed next in any case.
            let _ = connection.say_goodbye();
        }
        loop {
            self.connections
                .retain(|_, connection| connection.flush().is_ok() && connection.has_output());
            if self.connections.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            self.wait(events)?;
        }
    }
}

const LISTENER: Token = Token(0);
/// Callers accepted in one round.
const MOST_ACCEPTED: usize = 64;
/// Handshakes that are moved on in one round. Each takes the time of a signature, and whoever connects can
/// ask for one; known sensors are served in between.
const MOST_HANDSHAKES_SERVED: usize = 4;
/// How often sensors that have had their share are looked at, if there is nothing else to do.
const REST: Duration = Duration::from_millis(10);
/// Certificates verified in one round, a tenth of a millisecond each.
const MOST_VERIFIED: usize = 16;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(500);
/// Time for the last acknowledgements to leave at a stop.
const FAREWELL: Duration = Duration::from_secs(2);
/// Whom log lines about ourselves are limited by.
const SELF: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
