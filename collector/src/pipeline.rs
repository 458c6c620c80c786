//! The only place where threads and queues are made.
//!
//! ```text
//!   thread      takes from                          gives to
//!   door        listening socket                    inboxes of the event loops (16 newcomers each)
//!   ingest-N    sockets, inbox, mailbox             queue (16384 batches, 64 MiB), sockets
//!   committer   queue                               record log, open segment, mailboxes, sealer's queue
//!   events      record log                          eve.json
//!   index       record log                          index by day; removes what is too old
//!   sealer      its queue (4 segments)              the disk; deletes what is not to be kept
//!   api         HTTP requests                       HTTP answers; frames and events by threads of their own (4 each)
//! ```
//!
//! A stop goes the same way: the door closes, the last event loop closes the queue, the committer
//! stores what is in it and closes the sealer's queue and the record log, the event loops tell the
//! sensors what was stored last, and end; what follows the record log ends with it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::api;
use crate::archive::query::Archive;
use crate::committer::{self, Committer, Mailboxes};
use crate::config::{ApiConfig, Config};
use crate::following;
use crate::ingest::{self, Entrance, EventLoop, Ingest};
use crate::preflight::Checked;
use crate::status::Shared;
use crate::store::{self, Store};

/// Why the collector cannot start, or ended in disorder.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A socket cannot be opened.
    #[error("cannot listen on {address} for {purpose}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Who would connect there.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store")]
    Store(#[from] store::OpenError),
    /// The system refuses a thread or a poll.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread ended by a panic: a bug.
    #[error("thread {name} panicked")]
    Panicked {
        /// The thread.
        name: &'static str,
    },
    /// The disk failed until the end.
    #[error("{batches} batches could not be stored; sensors were not told that they were")]
    NotStored {
        /// How many.
        batches: u64,
    },
    /// The record log did not reach the disk.
    #[error(
        "cannot bring {} to the disk; records that were not acknowledged are sent again after a restart",
        path.display()
    )]
    NotSynced {
        /// Folder of the record log.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A running collector.
pub struct Pipeline {
    shared: Arc<Shared>,
    is_stopping: Arc<AtomicBool>,
    mailboxes: Mailboxes,
    bell: Arc<mio::Waker>,
    door: JoinHandle<io::Result<()>>,
    loops: Vec<JoinHandle<io::Result<()>>>,
    committer: JoinHandle<io::Result<u64>>,
    sealer: JoinHandle<()>,
    events: JoinHandle<()>,
    index: JoinHandle<()>,
    api: Option<(JoinHandle<io::Result<()>>, oneshot::Sender<()>)>,
}

impl Pipeline {
    /// Opens sockets and store, then starts the threads.
    ///
    /// # Errors
    /// See [`PipelineError`]; nothing runs then.
    pub fn start(config: &Config, checked: Checked) -> Result<Self, PipelineError> {
        let Checked { identity, name, api_identity, gate } = checked;
        let (sensors, api_socket) = listen(config)?;
        let shared =
            Arc::new(Shared::new(name, committer::wall_clock(), config.store.path.clone()));
        // Set once, here, before anything reads it.
        let _ = shared.tls.set(identity.status());
        if let Some(own) = api_identity.as_ref().filter(|_| has_own_certificate(config)) {
            let _ = shared.api_tls.set(own.status());
        }
        let store = Store::open(&config.store, Arc::clone(&shared))?;
        let events = store.event_log()?;
        let (index, retention) = store.index()?;
        let archive = store.archive();
        let (own, api_own) = (address(&sensors), api_socket.as_ref().map(address));
        let is_stopping = Arc::new(AtomicBool::new(false));
        let loops = config.loops.unwrap_or_else(ingest::loops_for_this_machine);
        let (queue, queue_end) = committer::queue(loops);
        // Full after four segments: the disk is slower than the sensors for minutes, and waiting for
        // it is all that is left; sensors count what they lose meanwhile.
        let (to_sealer, segments) = crossbeam_channel::bounded(4);

        let entrance = Entrance { listener: sensors, identity, rates: config.sensor_rates, loops };
        let ingest = Ingest::new(entrance, &queue, &shared, &is_stopping);
        let Ingest { door, loops, mailboxes } =
            ingest.map_err(system("watch the listening socket"))?;
        announce(&shared, &own, api_own);
        // Each event loop has one: the committer ends when all of them are gone.
        drop(queue);
        let committer = Committer::new(
            store,
            queue_end,
            mailboxes.clone(),
            to_sealer,
            Arc::clone(&shared),
            Arc::clone(&is_stopping),
        );
        let for_events = Arc::clone(&shared);
        let events = spawn("events", move || following::write_events(events, &for_events))?;
        let for_index = Arc::clone(&shared);
        let index = spawn("index", move || following::index_events(index, &retention, &for_index))?;
        let (for_sealer, limits) = (Arc::clone(&shared), config.store.limits);
        let sealer =
            spawn("sealer", move || committer::keep_segments(&segments, &limits, &for_sealer))?;
        let committer = spawn("committer", move || committer.run())?;
        let loops = start_loops(loops)?;
        let bell = door.waker();
        let door = spawn("door", move || door.run())?;
        let entrance = api_socket.zip(gate).map(|(listener, gate)| api::Entrance {
            listener,
            identity: api_identity,
            gate,
        });
        let api = entrance
            .map(|entrance| start_api(entrance, Arc::clone(&shared), archive))
            .transpose()?;
        Ok(Self {
            shared,
            is_stopping,
            mailboxes,
            bell,
            door,
            loops,
            committer,
            sealer,
            events,
            index,
            api,
        })
    }

    /// Whether a thread has ended that should not.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        let is_api_gone = self.api.as_ref().is_some_and(|(thread, _)| thread.is_finished());
        let is_loop_gone =
            self.door.is_finished() || self.loops.iter().any(JoinHandle::is_finished);
        let is_data_gone = is_loop_gone || self.committer.is_finished();
        let is_output_gone =
            self.sealer.is_finished() || self.events.is_finished() || self.index.is_finished();
        is_data_gone || is_output_gone || is_api_gone
    }

    /// Has the event log opened anew within a second, if it was renamed or removed.
    pub fn reopen_events(&self) {
        self.shared.is_reopen_asked.store(true, Ordering::Relaxed);
    }

    /// Stops in order: nothing new is taken, all that was taken is stored and acknowledged, the open
    /// segment is sealed.
    ///
    /// # Errors
    /// What went wrong, now or before.
    pub fn stop(self) -> Result<(), PipelineError> {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.bell.wake() {
            // It looks around by itself, a little later.
            tracing::error!(%error, "cannot wake the door");
        }
        let door = join("door", self.door);
        self.mailboxes.wake();
        let not_stored = join("committer", self.committer);
        self.mailboxes.close();
        // The committer has done so, unless it failed.
        self.shared.record_log.close();
        let loops: Vec<_> = self.loops.into_iter().map(|own| join("ingest", own)).collect();
        let sealer = join("sealer", self.sealer);
        let events = join("events", self.events);
        let index = join("index", self.index);
        let api = self.api.map(|(thread, stop)| {
            // The thread may have ended already; joining tells why.
            let _ = stop.send(());
            join("api", thread)
        });
        for ended in loops.into_iter().chain([door]) {
            ended?.map_err(system("wait for sensors"))?;
        }
        if let Some(result) = api {
            result?.map_err(system("serve the API"))?;
        }
        sealer?;
        events?;
        index?;
        let path = self.shared.store_path.join("records");
        let not_synced = |source| PipelineError::NotSynced { path, source };
        match not_stored?.map_err(not_synced)? {
            0 => Ok(()),
            batches => Err(PipelineError::NotStored { batches }),
        }
    }
}

fn start_loops(loops: Vec<EventLoop>) -> Result<Vec<JoinHandle<io::Result<()>>>, PipelineError> {
    let start =
        |(number, own): (usize, EventLoop)| spawn(format!("ingest-{number}"), move || own.run());
    loops.into_iter().enumerate().map(start).collect()
}

/// Serves the API; what comes with the thread stops it.
fn start_api(
    entrance: api::Entrance,
    shared: Arc<Shared>,
    archive: Archive,
) -> Result<(JoinHandle<io::Result<()>>, oneshot::Sender<()>), PipelineError> {
    let (stop, stopped) = oneshot::channel();
    let serve = move || api::serve(entrance, shared, archive, stopped);
    Ok((spawn("api", serve)?, stop))
}

/// Whether the API has another certificate than that for sensors, which is looked after anyway.
fn has_own_certificate(config: &Config) -> bool {
    let api = config.api.as_ref().and_then(|api| api.tls.as_ref());
    api.is_some_and(|files| files.certificate != config.tls.certificate)
}

/// The sockets of sensors and of the API, if there is one.
fn listen(config: &Config) -> Result<(TcpListener, Option<TcpListener>), PipelineError> {
    let refused =
        |address, purpose| move |source| PipelineError::Listen { address, purpose, source };
    let sensors = TcpListener::bind(config.sensors).map_err(refused(config.sensors, "sensors"))?;
    let api = config
        .api
        .as_ref()
        .map(|ApiConfig { address, .. }| api::bind(*address).map_err(refused(*address, "the API")));
    Ok((sensors, api.transpose()?))
}

fn address(listener: &TcpListener) -> String {
    listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
}

/// Says where everything is, with the ports that the system gave where the configuration has 0.
fn announce(shared: &Shared, sensors: &str, api: Option<String>) {
    let store = shared.store_path.display();
    tracing::info!(name = shared.name, sensors, api, %store, "collector started");
}

fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, PipelineError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    thread.map_err(system("start a thread"))
}

fn join<T>(name: &'static str, thread: JoinHandle<T>) -> Result<T, PipelineError> {
    thread.join().map_err(|_| PipelineError::Panicked { name })
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> PipelineError {
    move |source| PipelineError::System { action, source }
}
