//! One event loop: a thread with a share of the connections, which it serves from their first byte on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use trust::CollectorTls;

use super::connection::{CloseReason, Common, Connection, Wish};
use super::roster::{Errand, Newcomer, Roster};
use crate::committer::{Mailboxes, Queue, now};
use crate::status::{self, add};

/// See the module.
pub struct EventLoop {
    number: usize,
    poll: Poll,
    identity: Arc<CollectorTls>,
    mailboxes: Mailboxes,
    is_stopping: Arc<AtomicBool>,
    connections: BTreeMap<Token, Connection>,
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
    last_tick: Instant,
    /// When the last wait ended.
    awake_since: Instant,
    /// None once a stop was asked for: that tells the committer that nothing follows.
    common: Option<Common>,
    roster: Arc<Roster>,
}

/// What becomes an event loop, once all of them can be woken.
pub struct Bare {
    poll: Poll,
    waker: Arc<Waker>,
}

impl Bare {
    /// A poll and its waker.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self { poll, waker })
    }

    /// What wakes it.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }
}

impl EventLoop {
    /// The event loop with this number, among those that `roster` and `mailboxes` know.
    #[must_use]
    pub fn new(
        (number, bare): (usize, Bare),
        roster: Arc<Roster>,
        queue: Queue,
        mailboxes: Mailboxes,
        is_stopping: Arc<AtomicBool>,
    ) -> Self {
        let start = Instant::now();
        let common = Common { roster: Arc::clone(&roster), number, queue, scratch: Vec::new() };
        Self {
            number,
            poll: bare.poll,
            identity: roster.identity(start),
            mailboxes,
            is_stopping,
            connections: BTreeMap::new(),
            sensors: BTreeMap::new(),
            turns: BTreeSet::new(),
            waiting: BTreeSet::new(),
            resting: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            last_tick: start,
            awake_since: start,
            common: Some(common),
            roster,
        }
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
        while !self.mailboxes.of(self.number).is_drained() {
            self.wait(&mut events)?;
            self.take_mail();
        }
        self.take_mail();
        self.say_goodbye(&mut events)
    }

    /// One round: wait, do errands, read from each connection that has something.
    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        // Whoever waits for the store is served as soon as that has stored something; what it stored
        // until it was asked to say so, it did not say.
        if !self.waiting.is_empty() && self.mailboxes.of(self.number).ask_for_room() {
            self.turns.append(&mut self.waiting);
        }
        self.wait(events)?;
        let mut has_mail = false;
        for event in events.iter() {
            match event.token() {
                WAKER => has_mail = true,
                // A connection that waits for the store is served when that has taken something, and
                // one that rests is served anyway.
                token if self.waiting.contains(&token) || self.resting.contains(&token) => {}
                token => _ = self.turns.insert(token),
            }
        }
        if has_mail {
            self.do_errands();
            self.take_mail();
            self.turns.append(&mut self.waiting);
        }
        self.turns.append(&mut self.resting);
        let mut handshakes = 0;
        for token in std::mem::take(&mut self.turns) {
            if self.connections.get(&token).is_some_and(|connection| connection.sensor().is_none())
            {
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
        let is_idle = self.turns.is_empty() && self.doubtful.is_empty();
        let patience = match (is_idle, self.resting.is_empty()) {
            (false, _) => Duration::ZERO,
            (true, false) => REST,
            (true, true) => TICK,
        };
        self.count(self.awake_since.elapsed());
        let result = self.poll.poll(events, Some(patience));
        self.awake_since = Instant::now();
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// Says what it has done.
    fn count(&self, busy: Duration) {
        if let Some(own) = self.status() {
            add(&own.busy_nanos, u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn status(&self) -> Option<&status::EventLoop> {
        self.roster.shared.loops.get().and_then(|loops| loops.get(self.number))
    }

    fn do_errands(&mut self) {
        for errand in self.roster.inbox(self.number).take() {
            match errand {
                Errand::Serve(newcomer) => self.welcome(newcomer),
                Errand::Close(id, reason) => self.close(token(id), &reason),
            }
        }
    }

    fn welcome(&mut self, newcomer: Newcomer) {
        let Newcomer { id, peer, mut socket, identity } = newcomer;
        let token = token(id);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let _ = socket.set_nodelay(true);
        let registered = self.poll.registry().register(&mut socket, token, interest);
        match (registered, Connection::new(id, peer, socket, identity, now())) {
            (Ok(()), Ok(connection)) => {
                self.connections.insert(token, connection);
                self.turns.insert(token);
                self.count_connections();
            }
            (registered, connection) => {
                self.roster.admission().leave(id);
                self.roster.shared.refused.count("accept_failed");
                let cause = registered.err().map(|error| error.to_string());
                let cause = cause.or(connection.err().map(|error| error.to_string()));
                self.roster.warn(peer, None, "accept_failed", &cause.unwrap_or_default());
            }
        }
    }

    fn count_connections(&self) {
        if let Some(own) = self.status() {
            own.connections.store(self.connections.len() as u64, Ordering::Relaxed);
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
        let newcomer = connection.sensor().filter(|_| !was_known).map(ToOwned::to_owned);
        let older = connection.take_older();
        if let Some(sensor) = newcomer {
            self.roster.admission().introduce(id(token));
            self.sensors.insert(sensor, token);
        }
        match result {
            Ok(Wish::Readiness) => {}
            Ok(Wish::Turn) => _ = self.turns.insert(token),
            Ok(Wish::Room) => _ = self.waiting.insert(token),
            Ok(Wish::Rest) => _ = self.resting.insert(token),
            Err(reason) => self.close(token, &reason),
        }
        match older {
            Some(older) if older.event_loop == self.number => {
                self.close(self::token(older.id), &CloseReason::Replaced);
            }
            Some(older) => self.roster.close(older, CloseReason::Replaced),
            None => {}
        }
    }

    /// Verifies the certificates of a limited number of live sessions, so that sensors are served in
    /// between.
    fn verify_some(&mut self) {
        for _ in 0..MOST_VERIFIED {
            let Some(token) = self.doubtful.pop_first() else { return };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if let Err(reason) = connection.verify(&self.identity) {
                self.close(token, &reason);
            }
        }
    }

    /// Tells sensors what is stored now.
    fn take_mail(&mut self) {
        for sensor in self.mailboxes.of(self.number).take().into_values() {
            let Some(&token) = self.sensors.get(sensor.name()) else { continue };
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if let Err(reason) = connection.acknowledge() {
                self.close(token, &reason);
            }
        }
    }

    fn tick(&mut self) {
        self.last_tick = Instant::now();
        // The committer says when something is stored, not when there is room.
        self.turns.extend(&self.waiting);
        self.identity = self.roster.identity(self.last_tick);
        let now = now();
        let tokens: Vec<Token> = self.connections.keys().copied().collect();
        for token in tokens {
            let is_listening = !self.waiting.contains(&token) && !self.resting.contains(&token);
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            if connection.is_verification_due(&self.identity, now) {
                self.doubtful.insert(token);
            }
            if let Err(reason) = connection.tick(is_listening, now) {
                self.close(token, &reason);
            }
        }
    }

    fn close(&mut self, token: Token, reason: &CloseReason) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
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
        self.roster.admission().leave(id(token));
        self.count_connections();
        self.roster.note_close(peer, sensor.as_deref(), reason);
    }

    /// A stop: nothing more is read. What is in decoders and was not taken is
    /// not acknowledged either; sensors send it again.
    fn stop_taking(&mut self) {
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

fn token(id: u64) -> Token {
    // As wide as an address, on what we run on.
    Token(usize::try_from(id).unwrap_or(usize::MAX))
}

const fn id(token: Token) -> u64 {
    token.0 as u64
}

/// Ids of connections count from 1.
const WAKER: Token = Token(0);
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
