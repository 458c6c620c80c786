//! What the event loops know together: who is connected where, what each sensor has brought, whom the
//! collector takes, and what was logged.
//!
//! A connection belongs to one event loop from its first byte to its end. What must hold for all of
//! them together is here, behind locks that are held for microseconds; none of them is taken for a
//! message but that of the sensor's own [`Account`], which nobody else wants.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mio::Waker;
use mio::net::TcpStream;
use trust::{CollectorTls, Keeper};

use super::allowance::Allowance;
use super::capacity::{Admission, Place};
use super::connection::CloseReason;
use super::intake::TakenMarks;
use crate::config::Rates;
use crate::limit::LineLimit;
use crate::status::{Shared, add};

/// See the module.
pub struct Roster {
    /// Status and counters.
    pub shared: Arc<Shared>,
    admission: Mutex<Admission>,
    rates: Rates,
    identity: Mutex<Keeper<CollectorTls>>,
    /// By name of the sensor: as many as the authority issued certificates.
    accounts: Mutex<BTreeMap<String, Arc<Mutex<Account>>>>,
    lines: Mutex<Lines>,
    inboxes: Box<[Inbox]>,
}

/// What one sensor has brought, over all its connections.
#[derive(Debug)]
pub struct Account {
    /// The one connection that may bring something. A newer one of the same sensor takes its place, in
    /// whichever event loop it is; from then on the older one brings nothing more.
    pub holder: Option<Place>,
    /// How far the sensor was taken.
    pub taken: TakenMarks,
    /// What is left of its share.
    pub allowance: Allowance,
}

/// What an event loop is to do.
pub enum Errand {
    /// Serve a new connection.
    Serve(Newcomer),
    /// Close a connection, if it is still there.
    Close(u64, CloseReason),
}

/// A connection that was just accepted.
pub struct Newcomer {
    /// Its number.
    pub id: u64,
    /// The other end.
    pub peer: SocketAddr,
    /// Registered nowhere yet.
    pub socket: TcpStream,
    /// By whose rules its certificate is to be verified.
    pub identity: Arc<CollectorTls>,
}

/// Errands of one event loop.
pub struct Inbox {
    /// Bounded: newcomers by the door, which looks at [`Inbox::is_full`] first; what is to be closed by
    /// the number of connections.
    errands: Mutex<Vec<Errand>>,
    waker: Arc<Waker>,
}

#[derive(Default)]
struct Lines {
    faults: LineLimit,
    /// For sensors that come again and again, so that they use up no line about a fault.
    replaced: LineLimit,
}

impl Roster {
    /// Nobody is connected. Each event loop is woken by its own one of `wakers`.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        identity: Keeper<CollectorTls>,
        rates: Rates,
        most_connections: usize,
        wakers: impl IntoIterator<Item = Arc<Waker>>,
    ) -> Self {
        let inbox = |waker| Inbox { errands: Mutex::default(), waker };
        let inboxes: Box<[Inbox]> = wakers.into_iter().map(inbox).collect();
        Self {
            shared,
            admission: Mutex::new(Admission::new(inboxes.len(), most_connections)),
            rates,
            identity: Mutex::new(identity),
            accounts: Mutex::default(),
            lines: Mutex::default(),
            inboxes,
        }
    }

    /// Who is connected, for reading and changing.
    pub fn admission(&self) -> MutexGuard<'_, Admission> {
        locked(&self.admission)
    }

    /// What the sensor of this name has brought; nothing so far if it was not known.
    #[must_use]
    pub fn account(&self, sensor: &str, now: Instant) -> Arc<Mutex<Account>> {
        let mut accounts = locked(&self.accounts);
        if let Some(account) = accounts.get(sensor) {
            return Arc::clone(account);
        }
        let account = Arc::new(Mutex::new(Account {
            holder: None,
            taken: TakenMarks::default(),
            allowance: Allowance::new(self.rates, now),
        }));
        accounts.insert(sensor.to_owned(), Arc::clone(&account));
        account
    }

    /// The identity in use, after a look at its files.
    #[must_use]
    pub fn fresh_identity(&self, now: Instant) -> Arc<CollectorTls> {
        let mut keeper = locked(&self.identity);
        keeper.refresh(now);
        Arc::clone(keeper.current())
    }

    /// The identity in use; its files are looked at now and then.
    #[must_use]
    pub fn identity(&self, now: Instant) -> Arc<CollectorTls> {
        let mut keeper = locked(&self.identity);
        keeper.refresh_if_due(now);
        Arc::clone(keeper.current())
    }

    /// How many event loops there are.
    #[must_use]
    pub const fn loops(&self) -> usize {
        self.inboxes.len()
    }

    /// The errands of an event loop.
    ///
    /// # Panics
    /// If there is no such loop.
    #[must_use]
    pub fn inbox(&self, event_loop: usize) -> &Inbox {
        &self.inboxes[event_loop]
    }

    /// Has a connection closed by whoever has it.
    pub fn close(&self, place: Place, reason: CloseReason) {
        self.inbox(place.event_loop).put(Errand::Close(place.id, reason));
    }

    /// Counts and logs the end of a connection. Asked by the thread that shook hands with it.
    pub fn note_close(&self, peer: SocketAddr, sensor: Option<&str>, reason: &CloseReason) {
        if let Some(failure) = reason.handshake_failure() {
            self.shared.handshakes.count(failure);
        }
        if matches!(reason, CloseReason::Replaced) {
            add(&self.shared.counters.replaced, 1);
            if locked(&self.lines).replaced.allow(peer.ip(), Instant::now()).is_none() {
                add(&self.shared.counters.suppressed_lines, 1);
                return;
            }
        }
        let cause = match reason.tls_error() {
            Some(error) => Some(locked(&self.identity).explain(error)),
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
    pub fn warn(&self, peer: SocketAddr, sensor: Option<&str>, reason: &str, cause: &str) {
        match self.allows_line(peer.ip()) {
            Some(suppressed) => {
                tracing::warn!(%peer, sensor, reason, cause, suppressed, "connection refused");
            }
            None => add(&self.shared.counters.suppressed_lines, 1),
        }
    }

    /// Whether there may be a line about this peer, see [`LineLimit::allow`].
    #[must_use]
    pub fn allows_line(&self, peer: IpAddr) -> Option<u64> {
        locked(&self.lines).faults.allow(peer, Instant::now())
    }
}

impl Inbox {
    /// Adds an errand.
    pub fn put(&self, errand: Errand) {
        self.put_all([errand]);
    }

    /// Adds several, which are done in this order.
    pub fn put_all(&self, errands: impl IntoIterator<Item = Errand>) {
        locked(&self.errands).extend(errands);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake an event loop");
        }
    }

    /// Whether there are so many that the loop should get no newcomer before it has done some.
    #[must_use]
    pub fn is_full(&self) -> bool {
        locked(&self.errands).len() >= MOST_ERRANDS
    }

    /// All errands since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Errand> {
        std::mem::take(&mut *locked(&self.errands))
    }
}

/// Locks; what a thread left behind that panicked ends the collector, and is read only until then.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Errands of a loop from which on it gets no newcomer. Each may hold a file that is not among the
/// connections any more, or not yet.
const MOST_ERRANDS: usize = 16;
