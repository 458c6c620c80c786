//! Where sensors arrive: a door that accepts connections, and event loops that serve them.
//!
//! ```text
//!            door ──┬─▶ event loop 0:  socket ──▶ TLS (secure) ──▶ decoder, session (intake) ──▶ queue ──▶ committer
//!   (capacity)      ├─▶ event loop 1          ◀───────────── acknowledgements ◀── mailbox ◀─────────────────┘
//!                   └─▶ …                roster: what they know together
//! ```
//!
//! A connection is read a piece at a time, in turn with the others of its loop. One that misbehaves is
//! closed with a named reason; the others do not notice. Why connections are handed over, and not
//! accepted by each loop: `docs/decisions/0014-event-loops.md`.

mod allowance;
mod capacity;
mod connection;
mod door;
mod event_loop;
mod intake;
mod roster;
mod secure;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use trust::{CollectorTls, Keeper};

use crate::committer::{Mailbox, Mailboxes, Queue};
use crate::config::Rates;
use crate::status::{self, Shared};
pub use door::Door;
use event_loop::Bare;
pub use event_loop::EventLoop;
use roster::Roster;

/// Most event loops: beyond that, what they decrypt is more than one committer stores.
pub const MOST_LOOPS: usize = 16;

/// An event loop for each processor that this process may use.
#[must_use]
pub fn loops_for_this_machine() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_LOOPS)
}

/// What stands between the network and the event loops.
pub struct Entrance {
    /// Where sensors connect.
    pub listener: TcpListener,
    /// Who we are, and whom we take.
    pub identity: Keeper<CollectorTls>,
    /// What one sensor may bring.
    pub rates: Rates,
    /// How many event loops there are.
    pub loops: usize,
}

/// What takes in what sensors send; nothing runs yet.
pub struct Ingest {
    /// To be run by a thread of its own.
    pub door: Door,
    /// To be run by one thread each.
    pub loops: Vec<EventLoop>,
    /// How the loops learn what is stored.
    pub mailboxes: Mailboxes,
}

impl Ingest {
    /// A door and the event loops behind it, which give to `queue`. Raises the process's limit of open
    /// files.
    ///
    /// # Errors
    /// What the system says about polls and about registering the socket.
    pub fn new(
        entrance: Entrance,
        queue: &Queue,
        shared: &Arc<Shared>,
        is_stopping: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let Entrance { listener, identity, rates, loops } = entrance;
        let bare = (0..loops).map(|_| Bare::new()).collect::<io::Result<Vec<_>>>()?;
        // Set once, here, before anything reads it.
        let _ = shared.loops.set((0..loops).map(|_| status::EventLoop::default()).collect());
        let mailboxes = Mailboxes::new(bare.iter().map(|bare| Mailbox::new(bare.waker())));
        let most = capacity::most_connections();
        let wakers = bare.iter().map(Bare::waker);
        let roster = Arc::new(Roster::new(Arc::clone(shared), identity, rates, most, wakers));
        let door = Door::new(listener, Arc::clone(&roster), Arc::clone(is_stopping))?;
        let event_loop = |(number, bare)| {
            let (roster, queue) = (Arc::clone(&roster), queue.clone());
            let is_stopping = Arc::clone(is_stopping);
            EventLoop::new((number, bare), roster, queue, mailboxes.clone(), is_stopping)
        };
        let loops = bare.into_iter().enumerate().map(event_loop).collect();
        Ok(Self { door, loops, mailboxes })
    }
}
