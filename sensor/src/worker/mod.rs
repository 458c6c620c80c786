//! A worker: one pinned thread with a ring on each interface.
//!
//! ```text
//!   mod        the loop: turns, ticks, waiting, and what happens after a panic
//!   slot       its place on one interface: rings that come, are read, and go
//!   occupancy  how full they were
//!   desk       the frames of one block, through analysis and export
//! ```
//!
//! It analyses frames in place, counts, publishes evidence four times a second, and copies the frames
//! that are wanted. For a packet it never allocates, locks, waits or makes a system call; it waits
//! only when all its rings are empty. Rings are opened when the supervisor calls for them (see
//! [`gathering`](crate::gathering)), at ticks.

mod desk;
mod occupancy;
mod slot;
#[cfg(test)]
pub(crate) mod tests;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use wire::text::error_chain;
use wire::units::UnixNanos;

use crate::afpacket::{self, LinkEvent, OpenError, RingConfig, Wake};
use crate::analyse::{self, Analyser};
use crate::announce::Announcer;
use crate::connections::NewConnection;
use crate::counters::WorkerSet;
use crate::detect::Detector;
use crate::detection::Evidence;
use crate::event::InterfaceChange;
use crate::export::Exporter;
use crate::filter::RingFilter;
use crate::flood;
use crate::flow::EndedFlow;
use crate::gathering::{Board, Stage};
use crate::health::{self, Health, Link};
use crate::interfaces::Places;
use crate::sandbox::{self, SandboxError};
use crate::timing::Stopwatch;
use crate::uplink::OwnConnections;
use desk::{Desk, hand_out};
use slot::{DRAIN_LIMIT, Progress, Reading, STRAGGLERS, Slot};

/// Blocks taken from one ring before the next ring has its turn.
const BLOCKS_PER_TURN: usize = 8;
/// The kernel's timers are late by up to two of its ticks (250 Hz or more).
const TIMER_SLACK: Duration = Duration::from_millis(20);
/// The wall clock may be corrected by so much without notice.
const CLOCK_SLACK: Duration = Duration::from_secs(1);
/// How often a worker looks at a gathering that it takes part in.
const ATTEND_EVERY: Duration = Duration::from_millis(5);

/// What a worker is made of; travels into its thread.
pub struct Plan {
    /// Number of the worker.
    pub index: usize,
    /// The CPU it runs on.
    pub cpu: usize,
    /// Sizes of each ring.
    pub ring: RingConfig,
    /// Filter of the ring of each interface.
    pub filters: Vec<RingFilter>,
    /// An idle worker looks for frames for so long before it sleeps.
    pub busy_poll: Duration,
    /// Sizes of its tables.
    pub tables: analyse::Settings,
    /// What the worker counts, on each interface.
    pub counters: WorkerSet,
    /// Frames on their way out.
    pub exporter: Exporter,
    /// How late frames are, and how long blocks are kept.
    pub stopwatch: Stopwatch,
    /// Ways out of the worker; none of them is ever waited for.
    pub outlets: Outlets,
    /// Where it is called to open rings.
    pub board: Arc<Board>,
    /// Which frames of a ring on all interfaces passed which; `None`: each ring has one interface.
    pub places: Option<Arc<Places>>,
    /// Set when capture is to end.
    pub stop: Arc<AtomicBool>,
}

/// Ways out of a worker.
pub struct Outlets {
    /// To the detector.
    pub evidence: rtrb::Producer<Evidence>,
    /// To the detector: [`TARGET_RING`] entries; what finds no room waits for the next tick.
    pub targets: rtrb::Producer<flood::Report>,
    /// To the recorder: [`CONNECTION_RING`] entries, then `connections_queue_full`.
    pub connections: rtrb::Producer<NewConnection>,
    /// To the recorder: [`FLOW_RING`] entries, then `queue_full` of the flows.
    pub flows: rtrb::Producer<EndedFlow>,
    /// Rare news of interfaces.
    pub announcer: Arc<Announcer>,
    /// Link states.
    pub health: Arc<Health>,
    /// Connections of this sensor itself, which are never exported.
    pub own: Arc<OwnConnections>,
}

/// Entries of the ring for what arrived at targets: 576 bytes each, and all that a worker has of a tick.
pub const TARGET_RING: usize = 1 << 10;

/// Entries of the ring for new connections between a worker and the recorder: 104 bytes each.
pub const CONNECTION_RING: usize = 1 << 14;

/// Entries of the ring for ended flows between a worker and the recorder: 144 bytes each. More than
/// the limit of a second by default, and emptied fifty times a second.
pub const FLOW_RING: usize = 1 << 14;

/// Why a worker could not begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A ring could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The worker kept privileges that it was to give up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// How far the start of a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// Its rings have joined their groups.
    Joined,
    /// Frames come in.
    Live,
}

/// A worker at work.
struct Worker {
    index: usize,
    slots: Vec<Slot>,
    analyser: Analyser,
    tables: analyse::Settings,
    counters: WorkerSet,
    exporter: Exporter,
    stopwatch: Stopwatch,
    outlets: Outlets,
    board: Arc<Board>,
    /// Version of the board that was answered last.
    answered: u64,
    places: Option<Arc<Places>>,
    /// Version of the places that the rings' filters follow.
    followed: u64,
    ring: RingConfig,
    busy_poll: Duration,
    stop: Arc<AtomicBool>,
    retire: Duration,
    next_tick: Instant,
    /// When to look at pending gatherings.
    next_look: Instant,
    /// A ring is opened, joins, or is emptied.
    is_pending: bool,
    /// Told how the start goes, until it is over.
    start: Option<Start>,
    /// Time up to which the evidence was complete at the last tick.
    told: UnixNanos,
    /// When the rings were last looked at: what came later may not have been seen.
    turn_began: UnixNanos,
    /// Losses that the detector has not been told of yet.
    untold_loss: Option<(UnixNanos, UnixNanos)>,
    connections_lost: u64,
}

/// Who waits for the start of a worker, and what they know.
struct Start {
    said: Sender<Result<Milestone, WorkerError>>,
    has_joined: bool,
}

/// The thread body. Tells `said`, a channel with room for all of it, how the start goes; a start that
/// fails ends it. Ends when the plan's `stop` is set, after all that the kernel took was analysed.
pub fn run(plan: Plan, said: Sender<Result<Milestone, WorkerError>>) {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: plan.cpu });
    if !pinned {
        tracing::warn!(worker = plan.index, cpu = plan.cpu, "cannot pin worker; it may move");
    }
    if let Err(error) = sandbox::give_up_privileges() {
        let _ = said.send(Err(error.into()));
        return;
    }
    let mut worker = Worker::new(plan, said);
    // Beside the uplink, the one place where a panic is caught. A panic in what follows it ends the thread, which the
    // supervisor sees as a worker that stands still.
    while panic::catch_unwind(AssertUnwindSafe(|| worker.capture())).is_err() {
        worker.start_over();
    }
}

impl Worker {
    fn new(plan: Plan, said: Sender<Result<Milestone, WorkerError>>) -> Self {
        let Plan { index, cpu: _, ring, busy_poll, tables, counters, .. } = plan;
        let filters = plan.filters.into_iter().enumerate();
        Self {
            index,
            slots: filters.map(|(at, filter)| Slot::new(index, at, filter)).collect(),
            analyser: Analyser::new(&tables, counters.clone()),
            tables,
            counters,
            exporter: plan.exporter,
            stopwatch: plan.stopwatch,
            outlets: plan.outlets,
            board: plan.board,
            answered: 0,
            places: plan.places,
            followed: 0,
            ring,
            busy_poll,
            stop: plan.stop,
            retire: Duration::from_millis(u64::from(ring.retire_ms)),
            next_tick: Instant::now() + Detector::TICK,
            next_look: Instant::now(),
            is_pending: true,
            start: Some(Start { said, has_joined: false }),
            told: health::now(),
            turn_began: health::now(),
            untold_loss: None,
            connections_lost: 0,
        }
    }

    fn capture(&mut self) {
        self.counters.worker.heartbeat.add(1);
        while !self.stop.load(Ordering::Relaxed) {
            let is_busy = self.turn();
            let now = Instant::now();
            if now >= self.next_tick {
                self.regular_tick();
                self.next_tick = now + Detector::TICK;
            }
            let is_called = self.board.version() != self.answered;
            if (is_called || self.is_pending && now >= self.next_look) && !self.look_at_calls() {
                return;
            }
            // After the look at the board: a ring that another worker took over keeps its silence.
            self.follow_places();
            if !is_busy {
                self.wait();
            }
        }
        self.drain();
    }

    /// After a panic: the tables may hold anything, and so may the ring that was read. Rings are closed,
    /// what lay in them is counted, tables are made anew; the supervisor will call again.
    fn start_over(&mut self) {
        // In this order: a ring that is gone for this reason must not look like an interface that is.
        self.board.note_panic(self.index);
        for slot in &mut self.slots {
            let counted = &self.counters.interfaces[slot.interface];
            slot.abandon(counted);
            counted.settle_after_panic();
        }
        self.note_loss();
        self.analyser = Analyser::new(&self.tables, self.counters.clone());
        // The exporter goes on: a batch takes a frame as a whole or not at all, and what is in it counts as
        // exported already.
        self.start = None;
        // Should it be the tick that panics, it does so a few times a second and no more.
        self.next_tick = Instant::now() + Detector::TICK;
    }

    /// Takes the next step of every gathering, and closes rings that are empty; `false` if the start
    /// failed, which ends the worker.
    fn look_at_calls(&mut self) -> bool {
        self.answered = self.board.version();
        self.next_look = Instant::now() + ATTEND_EVERY;
        self.is_pending = false;
        let mut has_changed = false;
        let mut failure = None;
        for slot in &mut self.slots {
            match slot.attend(&self.board, &self.ring) {
                Ok(Progress::None) => {}
                Ok(Progress::Changed) => {
                    has_changed = true;
                    // A ring that has just begun knows of no interface.
                    self.followed = 0;
                }
                Err(error) => {
                    let name = self.outlets.announcer.name(slot.interface);
                    tracing::error!(name, worker = self.index, error = %error_chain(&error),
                        "cannot read the interface");
                    failure = Some(error);
                }
            }
            slot.close_empty(&self.counters.interfaces[slot.interface]);
            self.is_pending |= slot.is_pending();
        }
        if has_changed {
            self.note_loss();
        }
        self.tell_start(failure)
    }

    /// Lets the rings on all interfaces follow when interfaces come and go.
    fn follow_places(&mut self) {
        let Some(places) = &self.places else { return };
        let version = places.version();
        if std::mem::replace(&mut self.followed, version) != version {
            let map = places.load();
            self.slots.iter_mut().for_each(|slot| slot.follow(&map));
        }
    }

    /// Tells how the start goes; `false` if it failed.
    fn tell_start(&mut self, failure: Option<WorkerError>) -> bool {
        let Some(start) = &mut self.start else { return true };
        if let Some(error) = failure {
            let _ = start.said.send(Err(error));
            return false;
        }
        let all = |stages: &[Stage]| self.slots.iter().all(|slot| stages.contains(&slot.stage()));
        if !start.has_joined && all(&[Stage::Joined, Stage::Live]) {
            start.has_joined = true;
            let _ = start.said.send(Ok(Milestone::Joined));
        }
        if all(&[Stage::Live]) {
            let _ = start.said.send(Ok(Milestone::Live));
            self.start = None;
        }
        true
    }

    /// Lets each ring have its turn; says whether any had a block.
    fn turn(&mut self) -> bool {
        let mut is_busy = false;
        self.turn_began = health::now();
        let Self { slots, analyser, counters, exporter, stopwatch, outlets, .. } = self;
        let connections_lost = &mut self.connections_lost;
        let places = self.places.as_deref();
        for slot in slots {
            for reading in &mut slot.readings {
                reading.is_drained = false;
                let counted = &counters.interfaces[slot.interface];
                for _ in 0..BLOCKS_PER_TURN {
                    let Some(block) = reading.ring.next_block() else {
                        reading.is_drained = true;
                        break;
                    };
                    is_busy = true;
                    let granted = health::now();
                    // After the block was granted: a connection whose packets are in it is in the list.
                    let own = outlets.own.load();
                    let places = places.map(Places::load);
                    let mut desk = Desk {
                        interface: slot.interface,
                        places: places.as_ref().map(|map| &***map),
                        analyser,
                        exporter,
                        counted,
                        connections: &mut outlets.connections,
                        connections_lost,
                        flows: &mut outlets.flows,
                        worker: &counters.worker,
                        stopwatch,
                        granted,
                    };
                    let last = desk.work_through(&block, &own);
                    reading.last_frame = reading.last_frame.max(last);
                    drop(block);
                    stopwatch.block(health::now().since(granted));
                }
            }
        }
        is_busy
    }

    /// Publishes what is new: evidence, statistics, link states, batches that are not full. Says
    /// whether the detector was told all there is.
    fn tick(&mut self, until: UnixNanos) -> bool {
        self.stopwatch.hand_over();
        let evidence = &mut self.outlets.evidence;
        let mut is_complete = true;
        let published = self.analyser.publish(|contact| {
            is_complete = evidence.push(Evidence::Contact(*contact)).is_ok();
            is_complete
        });
        if published.answers_lost {
            self.note_loss();
        }
        // Before the tick that makes the detector look at them.
        let targets = &mut self.outlets.targets;
        is_complete &= self.analyser.publish_targets(|one| targets.push(*one).is_ok());
        let worker = &self.counters.worker;
        let flows = &mut self.outlets.flows;
        self.analyser.end_idle_flows(until, |flow| hand_out(flows, flow, worker));
        worker.connections_queue_full.set(self.connections_lost);
        worker.heartbeat.add(1);
        // A tick says that all is told; with contacts or losses left over it would make silence of
        // answers.
        let is_told = self.tell_loss()
            && is_complete
            && self.outlets.evidence.push(Evidence::Tick(until)).is_ok();
        if is_told {
            self.told = until;
        } else {
            self.counters.worker.ticks_deferred.add(1);
        }
        self.exporter.tick(until, &self.counters.worker);
        is_told
    }

    /// What is done four times a second while frames come in.
    fn regular_tick(&mut self) {
        self.follow_clock();
        self.refresh_statistics();
        self.tell_loss();
        self.tick(self.complete_until());
        self.look_at_links();
    }

    /// The time up to which every frame has been seen. A drained ring holds nothing that is older than
    /// its open block, which the kernel hands over within the retire time, give or take a timer tick.
    fn complete_until(&self) -> UnixNanos {
        let drained = self.turn_began.minus((self.retire * 2).max(TIMER_SLACK));
        let unread = self.readings().filter(|reading| !reading.is_drained);
        unread.map(|reading| reading.last_frame).fold(drained, UnixNanos::min).max(self.told)
    }

    /// After the wall clock was set back, time goes on from there: the detector starts over.
    fn follow_clock(&mut self) {
        let now = self.turn_began;
        if now.plus(CLOCK_SLACK) < self.told {
            let seconds = self.told.since(now).as_secs();
            tracing::warn!(seconds, "the clock was set back; detection starts over");
            self.told = now;
            let readings = self.slots.iter_mut().flat_map(|slot| &mut slot.readings);
            readings.for_each(|reading| reading.last_frame = reading.last_frame.min(now));
        }
    }

    fn refresh_statistics(&mut self) {
        let mut is_lossy = false;
        for slot in &mut self.slots {
            is_lossy |= slot.refresh_statistics(&self.counters.interfaces[slot.interface]);
        }
        if is_lossy {
            self.note_loss();
        }
    }

    /// Something was lost since the last tick. Frames that the kernel dropped are newer than those in
    /// the ring, so the span reaches to this moment, whatever has been read.
    fn note_loss(&mut self) {
        let from = self.told.minus((self.retire * 2).max(TIMER_SLACK));
        let from = self.untold_loss.map_or(from, |(earlier, _)| earlier.min(from));
        self.untold_loss = Some((from, health::now()));
    }

    /// Tells the detector of losses; says whether none is left untold.
    fn tell_loss(&mut self) -> bool {
        let Some((from, to)) = self.untold_loss else { return true };
        let is_told = self.outlets.evidence.push(Evidence::Loss { from, to }).is_ok();
        if is_told {
            self.untold_loss = None;
        }
        is_told
    }

    fn look_at_links(&mut self) {
        let mut is_gone = false;
        for slot in &mut self.slots {
            let (link, change) = match slot.link_event() {
                None => continue,
                Some(LinkEvent::Gone) => {
                    // The supervisor says so, as it looks whether there is another of that name.
                    is_gone = true;
                    continue;
                }
                Some(LinkEvent::Up) => (Link::Up, InterfaceChange::LinkUp),
                Some(LinkEvent::Down) => (Link::Down, InterfaceChange::LinkDown),
                Some(LinkEvent::Failed(errno)) => {
                    let why = std::io::Error::from_raw_os_error(errno);
                    let name = self.outlets.announcer.name(slot.interface);
                    tracing::error!(name, %why, "ring reports an error");
                    continue;
                }
            };
            if self.outlets.health.set_link(slot.interface, link).is_some() {
                self.outlets.announcer.interface(slot.interface, change);
            }
        }
        if is_gone {
            self.is_pending = true;
            self.note_loss();
        }
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while began.elapsed() < self.busy_poll {
            if self.turn() {
                return;
            }
            std::hint::spin_loop();
        }
        let until =
            if self.is_pending { self.next_tick.min(self.next_look) } else { self.next_tick };
        let until = until.saturating_duration_since(Instant::now());
        // At least a millisecond, which is what poll counts in: zero would spin.
        let timeout = until.max(Duration::from_millis(1));
        // The ring of a deleted interface has an error to tell for ever; it is looked at every tick.
        let rings = self.readings().filter(|reading| !reading.is_closing());
        match afpacket::wait(rings.map(|reading| &reading.ring), timeout) {
            Ok(Wake::Block | Wake::Idle) => {}
            Ok(Wake::Link) => self.look_at_links(),
            Err(error) => {
                tracing::error!(%error, "cannot wait for frames");
                std::thread::sleep(timeout);
            }
        }
    }

    fn readings(&self) -> impl Iterator<Item = &Reading> {
        self.slots.iter().flat_map(|slot| &slot.readings)
    }

    /// Lets no further frame in and works through what the kernel took.
    fn drain(&mut self) {
        for slot in &mut self.slots {
            slot.retire();
        }
        let begun = Instant::now();
        // A frame that was on its way through the old filter may still come.
        while begun.elapsed() < STRAGGLERS || self.waiting() > 0 && begun.elapsed() < DRAIN_LIMIT {
            while self.turn() {}
            self.refresh_statistics();
            std::thread::sleep(Duration::from_millis(1));
        }
        for slot in &mut self.slots {
            slot.settle(&self.counters.interfaces[slot.interface]);
        }
        self.publish_the_rest();
    }

    /// Frames that the kernel put into the rings and that were not read yet.
    fn waiting(&self) -> u64 {
        self.readings().map(|reading| reading.ring.waiting()).sum()
    }

    /// The last tick: nothing older can come, so all is told up to this moment.
    fn publish_the_rest(&mut self) {
        let begun = Instant::now();
        while !self.tick(health::now().max(self.told)) && begun.elapsed() < DRAIN_LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (flows, worker) = (&mut self.outlets.flows, &self.counters.worker);
        self.analyser.end_all_flows(health::now(), |flow| hand_out(flows, flow, worker));
    }
}
