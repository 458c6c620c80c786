//! Where sensors arrive: a thread that accepts connections and hands each to an event loop.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::capacity::Entry;
use super::connection::{CloseReason, HANDSHAKE};
use super::roster::{Errand, Newcomer, Roster};
use crate::status::{add, read};

/// A connection that was accepted.
struct Caller {
    socket: TcpStream,
    peer: SocketAddr,
    since: Instant,
}

/// See the module.
pub struct Door {
    poll: Poll,
    waker: Arc<Waker>,
    listener: TcpListener,
    roster: Arc<Roster>,
    is_stopping: Arc<AtomicBool>,
    /// More callers may wait at the listening socket.
    has_callers: bool,
    /// Callers that wait for a handshake to end, in the order in which they came.
    ///
    /// Bounded: [`MOST_WAITING`], and a quarter of the connections. When full, the first one gets in
    /// at once, in the place of the oldest handshake that is in its way. One that has waited for as
    /// long as a handshake may take is closed, and counted as `handshake_crowded`.
    waiting: VecDeque<Caller>,
    most_waiting: usize,
    /// How busy each event loop was between the last two looks: its time, and how much of that was new.
    burdens: Vec<(u64, u64)>,
    last_look: Instant,
}

impl Door {
    /// A door to the event loops that `roster` knows.
    ///
    /// # Errors
    /// What the system says about registering the socket.
    pub fn new(
        listener: std::net::TcpListener,
        roster: Arc<Roster>,
        is_stopping: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let most_waiting = (roster.admission().most_connections() / 4).min(MOST_WAITING);
        Ok(Self {
            waiting: VecDeque::new(),
            most_waiting,
            poll,
            waker,
            listener,
            roster,
            is_stopping,
            has_callers: false,
            burdens: Vec::new(),
            last_look: Instant::now(),
        })
    }

    /// Wakes it, so that it sees that a stop was asked for.
    #[must_use]
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Accepts until a stop is asked for. Who calls after that is refused by the system.
    ///
    /// # Errors
    /// What the system says about waiting for events.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        while !self.is_stopping.load(Ordering::Relaxed) {
            let is_idle = !self.has_callers && self.waiting.is_empty();
            let patience = if is_idle { TICK } else { PAUSE };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            self.has_callers |= events.iter().any(|event| event.token() == LISTENER);
            if self.last_look.elapsed() >= TICK {
                self.look();
            }
            self.let_in();
            if self.has_callers {
                self.accept();
            }
        }
        Ok(())
    }

    /// Takes note of how busy the event loops are. After a failure it calls for callers again.
    fn look(&mut self) {
        self.last_look = Instant::now();
        self.has_callers = true;
        let loops = self.roster.shared.loops.get().map_or(&[][..], |loops| loops);
        self.burdens.resize(loops.len(), (0, 0));
        for (burden, event_loop) in self.burdens.iter_mut().zip(loops) {
            let busy = read(&event_loop.busy_nanos);
            *burden = (busy, busy - burden.0);
        }
    }

    fn accept(&mut self) {
        while !self.is_stopping.load(Ordering::Relaxed) && !self.is_any_inbox_full() {
            match self.listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.has_callers = false;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of file descriptors, say. `look` calls again.
                    self.has_callers = false;
                    self.roster.shared.refused.count("accept_failed");
                    if self.roster.allows_line(SELF).is_some() {
                        tracing::error!(%error, "cannot accept connections");
                    }
                    return;
                }
            }
        }
    }

    /// A loop that has many newcomers to look at holds up the door: callers wait in the kernel, and
    /// no file is open for them.
    fn is_any_inbox_full(&self) -> bool {
        let loops = 0..self.roster.loops();
        loops.into_iter().any(|number| self.roster.inbox(number).is_full())
    }

    /// Lets those in that have waited long enough.
    fn let_in(&mut self) {
        // Of the same address nobody overtakes.
        let mut shut = BTreeSet::new();
        for caller in std::mem::take(&mut self.waiting) {
            let now = Instant::now();
            let is_shut = self.is_any_inbox_full() || shut.contains(&caller.peer.ip());
            if now.duration_since(caller.since) >= HANDSHAKE {
                self.roster.note_close(caller.peer, None, &CloseReason::Crowded);
            } else if is_shut || shut.contains(&ALL) {
                self.waiting.push_back(caller);
            } else if let Some((caller, shut_for)) = self.enter(caller, (now, false)) {
                shut.insert(shut_for);
                self.waiting.push_back(caller);
            }
        }
    }

    /// Takes a caller, or lets it wait behind those of its address that do.
    fn admit(&mut self, socket: TcpStream, peer: SocketAddr) {
        // A socket for both families gives IPv4 addresses within IPv6 ones.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        add(&self.roster.shared.counters.connections, 1);
        let now = Instant::now();
        let caller = Caller { socket, peer, since: now };
        let is_behind = self.waiting.iter().any(|other| other.peer.ip() == peer.ip());
        let left = if is_behind {
            Some(caller)
        } else {
            self.enter(caller, (now, false)).map(|(caller, _)| caller)
        };
        let Some(caller) = left else { return };
        self.waiting.push_back(caller);
        if self.waiting.len() > self.most_waiting
            && let Some(first) = self.waiting.pop_front()
        {
            // One that is urgent does not wait.
            let _ = self.enter(first, (now, true));
        }
    }

    /// Gives a caller to an event loop. If it must wait, it comes back, with the address whose callers
    /// must wait with it, or [`ALL`].
    fn enter(&self, caller: Caller, when: (Instant, bool)) -> Option<(Caller, IpAddr)> {
        let Caller { peer, .. } = caller;
        let burden = |number: usize| self.burdens.get(number).map_or(0, |burden| burden.1);
        let mut admission = self.roster.admission();
        let entry = admission.enter(peer.ip(), when, burden);
        let most = admission.most_connections();
        drop(admission);
        let (displaced, place) = match entry {
            Entry::Free(place) => (None, place),
            Entry::After(oldest, place) => {
                (Some(Errand::Close(oldest, CloseReason::Crowded)), place)
            }
            Entry::Later => return Some((caller, peer.ip())),
            Entry::LaterForAll => return Some((caller, ALL)),
            Entry::Full => {
                self.roster.shared.refused.count("too_many_connections");
                self.roster.warn(peer, None, "too_many_connections", &format!("limit {most}"));
                return None;
            }
        };
        let identity = self.roster.fresh_identity(Instant::now());
        let newcomer = Newcomer { id: place.id, peer, socket: caller.socket, identity };
        let errands = displaced.into_iter().chain([Errand::Serve(newcomer)]);
        self.roster.inbox(place.event_loop).put_all(errands);
        None
    }
}

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// How often the event loops are looked at, and a socket that failed is tried again.
const TICK: Duration = Duration::from_millis(500);
/// Callers that wait for a handshake to end.
const MOST_WAITING: usize = 256;
/// Stands for every address: nobody calls from it.
const ALL: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
/// Pause for event loops that have newcomers enough, and for handshakes that are in the way.
const PAUSE: Duration = Duration::from_millis(1);
/// Whom log lines about ourselves are limited by.
const SELF: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
