//! A worker: one pinned thread with a ring on each interface.
//!
//! It analyses frames in place, counts, publishes evidence four times a second, and copies the frames
//! that are wanted. For a packet it never allocates, locks, waits or makes a system call; it waits
//! only when all its rings are empty.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use wire::text::error_chain;
use wire::units::UnixNanos;

use crate::afpacket::{
    self, Block, Fanout, FanoutGroup, Interface, LinkEvent, OpenError, Ring, RingConfig, Scope,
    Unbound, Wake,
};
use crate::analyse::{Analyser, VECTOR};
use crate::connections::NewConnection;
use crate::counters::{InterfaceCounters, WorkerSet};
use crate::detect::Detector;
use crate::detection::Evidence;
use crate::export::Exporter;
use crate::frame::Frame;
use crate::health::{self, Health, Link};
use crate::pipeline::ToRecorder;
use crate::sandbox::{self, SandboxError};
use crate::uplink::{OwnConnections, OwnSnapshot};

/// Blocks taken from one ring before the next ring has its turn.
const BLOCKS_PER_TURN: usize = 8;
/// After the last frame was let in, the kernel hands over a partly filled block within the retire
/// time (a second at most, by configuration); after twice that, what is missing will not come.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// A packet that passed the old filter is in the ring within a softirq; this is many.
const STRAGGLERS: Duration = Duration::from_millis(20);
/// The kernel's timers are late by up to two of its ticks (250 Hz or more).
const TIMER_SLACK: Duration = Duration::from_millis(20);
/// The wall clock may be corrected by so much without notice.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// What a worker is made of; travels into its thread.
pub struct Plan {
    /// Number of the worker.
    pub index: usize,
    /// The CPU it runs on.
    pub cpu: usize,
    /// Interfaces, one ring each.
    pub interfaces: Vec<Interface>,
    /// Sizes of each ring.
    pub ring: RingConfig,
    /// Fanout groups to join, one for each interface; empty: this worker makes them.
    pub groups: Vec<FanoutGroup>,
    /// How many workers there are; more than one need groups.
    pub workers: u32,
    /// Tables.
    pub analyser: Analyser,
    /// What the worker counts.
    pub counters: WorkerSet,
    /// Frames on their way out.
    pub exporter: Exporter,
    /// Ways out of the worker; none of them is ever waited for.
    pub outlets: Outlets,
    /// Set when capture is to end.
    pub stop: Arc<AtomicBool>,
}

/// Ways out of a worker.
pub struct Outlets {
    /// To the detector.
    pub evidence: rtrb::Producer<Evidence>,
    /// To the recorder: [`CONNECTION_RING`] entries, then `connections_queue_full`.
    pub connections: rtrb::Producer<NewConnection>,
    /// Rare news for the recorder.
    pub news: Sender<ToRecorder>,
    /// Link states.
    pub health: Arc<Health>,
    /// Connections of this sensor itself, which are never exported.
    pub own: Arc<OwnConnections>,
}

/// Entries of the ring for new connections between a worker and the recorder: 104 bytes each.
pub const CONNECTION_RING: usize = 1 << 14;

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

/// A worker with its rings open and its privileges gone.
struct Worker {
    slots: Vec<Slot>,
    analyser: Analyser,
    counters: WorkerSet,
    exporter: Exporter,
    outlets: Outlets,
    stop: Arc<AtomicBool>,
    retire: Duration,
    next_tick: Instant,
    /// Time up to which the evidence was complete at the last tick.
    told: UnixNanos,
    /// When the rings were last looked at: what came later may not have been seen.
    turn_began: UnixNanos,
    /// Losses that the detector has not been told of yet.
    untold_loss: Option<(UnixNanos, UnixNanos)>,
    connections_lost: u64,
}

/// One ring and what is known of it.
struct Slot {
    interface: usize,
    /// `None` once the interface was deleted and all that it had brought was worked through.
    ring: Option<Ring>,
    /// The interface was deleted; the ring still holds frames.
    is_closing: bool,
    /// Nothing was left in the ring at the end of the last turn.
    is_drained: bool,
    last_frame: UnixNanos,
    drops: u64,
}

/// The thread body. Tells `opened` how it went; begins when `begin`, a channel without room, says so,
/// and takes from it once more when it has begun; ends when the plan's `stop` is set, after all that
/// the kernel took was analysed.
pub fn run(
    plan: Plan,
    opened: &Sender<Result<Vec<FanoutGroup>, WorkerError>>,
    begin: &Receiver<()>,
) {
    let index = plan.index;
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: plan.cpu });
    if !pinned {
        tracing::warn!(worker = plan.index, cpu = plan.cpu, "cannot pin worker; it may move");
    }
    match Worker::open(plan) {
        Err(error) => {
            let _ = opened.send(Err(error));
        }
        Ok((mut worker, groups)) => {
            let _ = opened.send(Ok(groups));
            // A pipeline that gives up before the start drops the sender.
            if begin.recv().is_ok() {
                // The one place where a panic is caught: the rings close, the other workers of each
                // group take over this one's flows, and health names the worker that stands still.
                let captured = panic::catch_unwind(AssertUnwindSafe(|| worker.capture(begin)));
                if let Err(panic) = captured {
                    tracing::error!(worker = index, "worker panicked; restart the sensor");
                    drop(worker);
                    panic::resume_unwind(panic);
                }
            }
        }
    }
}

impl Worker {
    fn open(plan: Plan) -> Result<(Self, Vec<FanoutGroup>), WorkerError> {
        let mut slots = Vec::with_capacity(plan.interfaces.len());
        let mut groups = Vec::with_capacity(plan.interfaces.len());
        for (index, interface) in plan.interfaces.iter().enumerate() {
            let ring = Ring::open(Unbound::new()?, &plan.ring, &Scope::One(interface.clone()))?;
            match plan.groups.get(index) {
                Some(group) => ring.join(group)?,
                None if plan.workers > 1 => {
                    groups.push(ring.start_group(&Fanout::Hash, plan.workers)?);
                }
                None => {}
            }
            slots.push(Slot {
                interface: index,
                ring: Some(ring),
                is_closing: false,
                is_drained: true,
                last_frame: UnixNanos(0),
                drops: 0,
            });
        }
        sandbox::give_up_privileges()?;
        let Plan { analyser, counters, exporter, outlets, stop, ring, .. } = plan;
        let worker = Self {
            slots,
            analyser,
            counters,
            exporter,
            outlets,
            stop,
            retire: Duration::from_millis(u64::from(ring.retire_ms)),
            next_tick: Instant::now() + Detector::TICK,
            told: health::now(),
            turn_began: health::now(),
            untold_loss: None,
            connections_lost: 0,
        };
        Ok((worker, groups))
    }

    fn capture(&mut self, begin: &Receiver<()>) {
        for slot in &mut self.slots {
            let Some(ring) = &mut slot.ring else { continue };
            if let Err(error) = ring.begin() {
                // Its filter still rejects everything: nothing is captured, and health says so.
                let interface = ring.scope().name();
                tracing::error!(interface, error = %error_chain(&error), "cannot begin to capture");
                self.outlets.health.set_link(slot.interface, Link::Down);
            }
        }
        self.counters.worker.heartbeat.set(health::now().0);
        // Nobody is told that the sensor captures before it does.
        let _ = begin.recv();
        while !self.stop.load(Ordering::Relaxed) {
            let is_busy = self.turn();
            let now = Instant::now();
            if now >= self.next_tick {
                self.regular_tick();
                self.next_tick = now + Detector::TICK;
            }
            if !is_busy {
                self.wait();
            }
        }
        self.drain();
    }

    /// Lets each ring have its turn; says whether any had a block.
    fn turn(&mut self) -> bool {
        let mut is_busy = false;
        self.turn_began = health::now();
        let Self { slots, analyser, counters, exporter, outlets, connections_lost, .. } = self;
        for slot in slots {
            let Some(ring) = &mut slot.ring else { continue };
            slot.is_drained = false;
            let counted = &counters.interfaces[slot.interface];
            for _ in 0..BLOCKS_PER_TURN {
                let Some(block) = ring.next_block() else {
                    slot.is_drained = true;
                    break;
                };
                is_busy = true;
                // After the block was granted: a connection whose packets are in it is in the list.
                let own = outlets.own.load();
                let mut desk = Desk {
                    interface: slot.interface,
                    analyser,
                    exporter,
                    counted,
                    connections: &mut outlets.connections,
                    connections_lost,
                };
                slot.last_frame = slot.last_frame.max(desk.work_through(&block, &own));
            }
            counted.corrupt.set(ring.corrupt());
        }
        is_busy
    }

    /// Publishes what is new: evidence, statistics, link states, batches that are not full. Says
    /// whether the detector was told all there is.
    fn tick(&mut self, until: UnixNanos) -> bool {
        let evidence = &mut self.outlets.evidence;
        let mut is_complete = true;
        let published = self.analyser.publish(|contact| {
            is_complete = evidence.push(Evidence::Contact(*contact)).is_ok();
            is_complete
        });
        if published.answers_lost {
            self.note_loss();
        }
        let worker = &self.counters.worker;
        worker.connections_queue_full.set(self.connections_lost);
        worker.heartbeat.set(health::now().0);
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
        self.exporter.flush();
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
        let complete = self.slots.iter().filter(|slot| slot.ring.is_some() && !slot.is_drained);
        complete.map(|slot| slot.last_frame).fold(drained, UnixNanos::min).max(self.told)
    }

    /// After the wall clock was set back, time goes on from there: the detector starts over.
    fn follow_clock(&mut self) {
        let now = self.turn_began;
        if now.plus(CLOCK_SLACK) < self.told {
            let seconds = self.told.since(now).as_secs();
            tracing::warn!(seconds, "the clock was set back; detection starts over");
            self.told = now;
            self.slots.iter_mut().for_each(|slot| slot.last_frame = slot.last_frame.min(now));
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
        for slot in &mut self.slots {
            let Some(ring) = &mut slot.ring else { continue };
            let Some(event) = ring.link_event() else { continue };
            let link = match event {
                LinkEvent::Up => Link::Up,
                LinkEvent::Down | LinkEvent::Failed(_) => Link::Down,
                LinkEvent::Gone => Link::Gone,
            };
            if let Some(before) = self.outlets.health.set_link(slot.interface, link) {
                say(ring.scope().name(), event);
                let is_up = link == Link::Up;
                if is_up != (before == Link::Up) {
                    // 1 024 news wait at most; what finds no room is in health and in the next event.
                    let news = ToRecorder::Link(health::now(), slot.interface, is_up);
                    let _ = self.outlets.news.try_send(news);
                }
            }
            slot.is_closing |= event == LinkEvent::Gone;
        }
    }

    fn wait(&mut self) {
        let until_tick = self.next_tick.saturating_duration_since(Instant::now());
        // At least a millisecond, which is what poll counts in: zero would spin.
        let timeout = until_tick.max(Duration::from_millis(1));
        // The ring of a deleted interface has an error to tell for ever; it is looked at every tick.
        let rings = self.slots.iter().filter(|slot| !slot.is_closing);
        match afpacket::wait(rings.filter_map(|slot| slot.ring.as_ref()), timeout) {
            Ok(Wake::Block | Wake::Idle) => {}
            Ok(Wake::Link) => self.look_at_links(),
            Err(error) => {
                tracing::error!(%error, "cannot wait for frames");
                std::thread::sleep(timeout);
            }
        }
    }

    /// Lets no further frame in and works through what the kernel took.
    fn drain(&mut self) {
        for slot in &mut self.slots {
            if let Some(Err(error)) = slot.ring.as_mut().map(Ring::reject_all) {
                tracing::warn!(%error, "cannot stop the ring; the last frames may be missing");
            }
        }
        let begun = Instant::now();
        // A frame that was on its way through the old filter may still come.
        while begun.elapsed() < STRAGGLERS || self.waiting() > 0 && begun.elapsed() < DRAIN_LIMIT {
            while self.turn() {}
            self.refresh_statistics();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.publish_the_rest();
    }

    /// Frames that the kernel put into the rings and that were not read yet.
    fn waiting(&self) -> u64 {
        self.slots.iter().filter_map(|slot| slot.ring.as_ref()).map(Ring::waiting).sum()
    }

    /// The last tick: nothing older can come, so all is told up to this moment.
    fn publish_the_rest(&mut self) {
        let begun = Instant::now();
        while !self.tick(health::now().max(self.told)) && begun.elapsed() < DRAIN_LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Slot {
    /// Reads the kernel's counters; says whether frames were dropped since the last time.
    fn refresh_statistics(&mut self, counted: &InterfaceCounters) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        let Ok(statistics) = ring.refresh_statistics() else { return false };
        counted.kernel_packets.set(statistics.packets);
        counted.kernel_drops.set(statistics.drops);
        counted.ring_freezes.set(statistics.freezes);
        counted.corrupt.set(ring.corrupt());
        if self.is_closing && ring.waiting() == 0 {
            self.ring = None;
        }
        statistics.drops > std::mem::replace(&mut self.drops, statistics.drops)
    }
}

/// Where the frames of one block are worked on.
struct Desk<'a> {
    interface: usize,
    analyser: &'a mut Analyser,
    exporter: &'a mut Exporter,
    counted: &'a InterfaceCounters,
    connections: &'a mut rtrb::Producer<NewConnection>,
    connections_lost: &'a mut u64,
}

impl Desk<'_> {
    /// Gives the time of the block's last frame.
    #[inline]
    fn work_through(&mut self, block: &Block<'_>, own: &OwnSnapshot) -> UnixNanos {
        let mut vector = [Frame::EMPTY; VECTOR];
        let mut len = 0;
        let mut last = UnixNanos(0);
        for captured in block.frames() {
            vector[len] = captured.frame;
            last = captured.frame.time;
            len += 1;
            if len == VECTOR {
                self.vector(&vector, own);
                len = 0;
            }
        }
        self.vector(&vector[..len], own);
        last
    }

    #[inline]
    fn vector(&mut self, frames: &[Frame<'_>], own: &OwnSnapshot) {
        let connections = &mut *self.connections;
        let lost = &mut *self.connections_lost;
        let packets = self.analyser.analyse(self.interface, frames, |connection| {
            *lost += u64::from(connections.push(connection).is_err());
        });
        // An index of a list with one entry for each interface; it fits by far.
        let interface = self.interface as u32;
        self.exporter.take(interface, frames, packets, self.counted, |tuple| own.contains(tuple));
    }
}

fn say(interface: &str, event: LinkEvent) {
    match event {
        LinkEvent::Up => tracing::info!(interface, "link is up, capture goes on"),
        LinkEvent::Down => tracing::warn!(interface, "link is down"),
        LinkEvent::Gone => {
            tracing::error!(interface, "interface was deleted; restart the sensor when it is back");
        }
        LinkEvent::Failed(errno) => {
            let why = std::io::Error::from_raw_os_error(errno);
            tracing::error!(interface, %why, "ring reports an error");
        }
    }
}
