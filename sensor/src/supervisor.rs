//! Watches over workers and interfaces, and calls workers together to open rings when something has
//! changed: an interface was made anew, a worker panicked, stands still, or came back.
//!
//! Its thread decides, the workers act (see [`gathering`](crate::gathering)). It looks at everything ten
//! times a second, and every few milliseconds while rings come together. The rules, for each interface:
//!
//! ```text
//!   a gathering is under way            all have joined: silence what is left behind, release it
//!   the interface is not there          said; workers empty and close their rings by themselves
//!   nobody reads it, it is another      a new group of all workers that are fit
//!   one, or a reader stands still
//!   cpu, queue: the order is wrong,     the same, as only a group that was made and joined in the order
//!   or a worker has come back           of the CPUs deals by them
//!   hash, peer: a worker has come back  its ring joins the group that there is
//! ```
//!
//! Where the configuration has a glob, its rings are on all interfaces and nothing of this happens when
//! one of them goes: a [`Lookout`] tells the workers which is which.
//!
//! Every new ring takes a socket out of the reserve. What cannot be done for want of sockets, health
//! names with the remedy.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{self, InterfaceFlags};

use crate::afpacket::{self, Fanout, Interface, OpenError, Reserve, Scope, Symmetry, Unbound};
use crate::announce::Announcer;
use crate::counters::Counters;
use crate::event::{InterfaceChange, WorkerChange};
use crate::gathering::{Board, Gathering, Stage};
use crate::health::{Health, Link};
use crate::interfaces::Lookout;
use crate::metrics::{Families, Source};
pub use rules::STALL_AFTER;
use rules::{Action, Presence, Pulse, Retry, Sight, Situation, Tended, Unread};

/// How often the supervisor looks around, at rest and while rings come together.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_SOON: Duration = Duration::from_millis(5);
/// How often it asks the system for interfaces.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A look that comes later than this was held up itself: silence of the workers says nothing.
const HELD_UP: Duration = Duration::from_secs(1);
/// Watches over workers and interfaces.
pub struct Supervisor {
    board: Arc<Board>,
    counters: Arc<Counters>,
    health: Arc<Health>,
    announcer: Arc<Announcer>,
    status: Arc<SupervisorStatus>,
    reserve: Reserve,
    fanout: Option<Fanout>,
    interfaces: Vec<Watched>,
    /// Looks after what a glob matches, where there is one.
    lookout: Option<Lookout>,
    workers: Vec<Tended>,
    looked: Instant,
    asked: Instant,
}

/// What a [`Supervisor`] is made with.
pub struct Parts {
    /// Where it calls the workers.
    pub board: Arc<Board>,
    /// The workers' heartbeats.
    pub counters: Arc<Counters>,
    /// What is wrong.
    pub health: Arc<Health>,
    /// Says what happens.
    pub announcer: Arc<Announcer>,
    /// What it counts.
    pub status: Arc<SupervisorStatus>,
    /// Sockets for all rings.
    pub reserve: Reserve,
    /// How frames are dealt; `None` for one worker.
    pub fanout: Option<Fanout>,
    /// What the rings of each place listen to, as it is at the start, and what it is called.
    pub scopes: Vec<(String, Scope)>,
    /// Looks after what a glob matches, where there is one.
    pub lookout: Option<Lookout>,
}

/// What the supervisor counts, for metrics.
#[derive(Debug)]
pub struct SupervisorStatus {
    interfaces: Vec<String>,
    /// Time in which frames of the interface, or of a part of its flows, were not read. Nanoseconds.
    uncaptured: Vec<AtomicU64>,
    reserve_left: AtomicU64,
    /// Both directions of a flow reach one worker; `None` where that was not tested.
    is_symmetric: Option<bool>,
}

/// An interface under watch.
struct Watched {
    /// Its name as it was configured, or the patterns.
    name: String,
    /// The interface as it was when it was looked up last, or all.
    scope: Scope,
    /// Its hardware address.
    mac: Option<[u8; 6]>,
    presence: Presence,
    /// The newest gathering of each worker.
    calls: Vec<Option<Arc<Gathering>>>,
    /// What the newest group of all replaces: read on until somebody has taken over.
    before: Vec<Option<Arc<Gathering>>>,
    /// Rings of workers that stand still, to be silenced when the others begin.
    left_behind: Vec<(usize, Arc<Gathering>)>,
    /// The rings are those of an interface that is not there any more, or their order is wrong.
    is_other: bool,
    /// It is administratively up, as far as the system says.
    is_up: bool,
    /// Its link was down when it was looked at last.
    was_down: bool,
    retry: Retry,
    /// The failure of the newest gathering was taken into account.
    is_failure_noted: bool,
    unread: Unread,
}

impl Supervisor {
    /// Watches from now on.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { board, counters, health, announcer, status, reserve, fanout, .. } = parts;
        let now = Instant::now();
        let workers = counters.workers().len();
        let properties = properties_by_name();
        let watched = parts.scopes.into_iter().map(|(name, scope)| Watched {
            mac: properties.get(&name).and_then(|it| it.mac),
            is_up: true,
            name,
            scope,
            presence: Presence::There,
            calls: vec![None; workers],
            before: vec![None; workers],
            left_behind: Vec::new(),
            is_other: false,
            was_down: false,
            retry: Retry::default(),
            is_failure_noted: false,
            unread: Unread::new(now),
        });
        Self {
            interfaces: watched.collect(),
            lookout: parts.lookout,
            workers: (0..workers).map(|_| Tended::new(now)).collect(),
            board,
            counters,
            health,
            announcer,
            status,
            reserve,
            fanout,
            looked: now,
            asked: now,
        }
    }

    /// The thread body: calls all workers, then watches until `stop` is set. Gives whether every worker
    /// was at work at the end.
    #[must_use]
    pub fn run(mut self, stop: &AtomicBool) -> bool {
        while !stop.load(Ordering::Relaxed) {
            let is_gathering = self.look(Instant::now());
            let pause = if is_gathering { LOOK_SOON } else { LOOK_EVERY };
            match &mut self.lookout {
                Some(lookout) => lookout.wait(pause),
                None => thread::sleep(pause),
            }
        }
        self.workers.iter().all(Tended::is_fit)
    }

    /// Looks at everything once; says whether rings are coming together.
    fn look(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.looked);
        self.looked = now;
        if since > HELD_UP {
            self.workers.iter_mut().for_each(|worker| worker.excuse(now));
        }
        for worker in 0..self.workers.len() {
            self.look_at_worker(worker, now);
        }
        if now.duration_since(self.asked) >= ASK_EVERY {
            self.asked = now;
            self.look_at_interfaces();
        }
        if let Some(lookout) = &mut self.lookout {
            // A glob makes the interfaces share one place.
            let say = &mut |name: &str, change| self.announcer.interface_of(0, name, change);
            lookout.look_if_due(now, say);
        }
        let mut is_gathering = false;
        for interface in 0..self.interfaces.len() {
            self.check_order_after_flap(interface);
            is_gathering |= self.gather(interface, now);
            self.count_unread(interface, now);
        }
        self.note_returns(now);
        self.status.reserve_left.store(self.reserve.left() as u64, Ordering::Relaxed);
        self.health.set_watch(self.problems(now));
        is_gathering
    }

    /// Notices when a worker stops, goes on, or panics.
    fn look_at_worker(&mut self, index: usize, now: Instant) {
        let worker = &mut self.workers[index];
        let heartbeat = self.counters.workers()[index].worker.heartbeat.read();
        let is_opening =
            self.interfaces.iter().any(|watched| watched.stage(index) == Stage::Called);
        let pulse = worker.hear(heartbeat, is_opening, now);
        if worker.note_panics(self.board.panics(index), now) {
            self.announcer.worker(index, WorkerChange::Panicked);
        }
        match pulse {
            Pulse::Same => {}
            Pulse::Resumed => {
                self.announcer.worker(index, WorkerChange::Resumed);
                // Where nobody could take over, it goes on with the ring that it has.
                for watched in &mut self.interfaces {
                    watched.left_behind.retain(|(worker, _)| *worker != index);
                }
            }
            Pulse::Stalled(since) => {
                self.announcer.worker(index, WorkerChange::Stalled);
                self.replace(index, since);
            }
        }
    }

    /// The rings of a worker that stands still are given up for lost: its threads cannot be ended, and
    /// unmapping a ring that it may be reading would be undefined behaviour.
    fn replace(&mut self, index: usize, since: Instant) {
        for watched in &mut self.interfaces {
            let Some(call) = watched.calls[index].clone() else { continue };
            match call.stage(index) {
                Stage::Live => {
                    watched.unread.note_stall(since);
                    watched.left_behind.push((index, call));
                }
                Stage::Called | Stage::Opened | Stage::Joined => call.dismiss(index),
                Stage::Absent | Stage::Failed | Stage::Left => {}
            }
        }
    }

    /// Notices when an interface goes, comes back, or changes.
    fn look_at_interfaces(&mut self) {
        // Those of a glob are the lookout's.
        if self.lookout.is_some() {
            return;
        }
        let properties = properties_by_name();
        for (index, watched) in self.interfaces.iter_mut().enumerate() {
            let Scope::One(interface) = &watched.scope else { continue };
            let found = match Interface::find(&interface.name) {
                Ok(found) => Some(found),
                // The system gave no answer (no descriptor left, say): nothing is known.
                Err(OpenError::System { .. }) => continue,
                Err(_) => None,
            };
            let before = watched.presence;
            let (presence, change) = before.after(sight(interface, found.as_ref()));
            watched.presence = presence;
            if let Some(change) = change {
                self.announcer.interface(index, change);
            }
            if presence == Presence::Gone && before != Presence::Gone {
                self.health.set_link(index, Link::Gone);
            }
            let Some(found) = found else { continue };
            let is_other = before == Presence::Gone || found.index != interface.index;
            if is_other {
                watched.is_other = true;
                watched.retry = Retry::default();
                watched.mac = None;
                self.health.set_link(index, Link::Up);
            } else if presence == Presence::There && found.mtu != interface.mtu {
                self.announcer.interface(index, InterfaceChange::MtuChanged);
            }
            let Properties { mac, is_up } =
                properties.get(&found.name).copied().unwrap_or_default();
            if mac != watched.mac && watched.mac.is_some() && mac.is_some() {
                self.announcer.interface(index, InterfaceChange::MacChanged);
            }
            watched.mac = mac.or(watched.mac);
            watched.is_up = is_up;
            watched.scope = Scope::One(found);
        }
    }

    /// After its link was down, the kernel has linked the members of a group in the order in which
    /// their sockets were made, whatever the order in which they had joined.
    fn check_order_after_flap(&mut self, interface: usize) {
        let watched = &mut self.interfaces[interface];
        let is_down = self.health.link(interface) == Link::Down;
        let is_up_again = std::mem::replace(&mut watched.was_down, is_down) && !is_down;
        let is_ordered = matches!(self.fanout, Some(Fanout::Cpu | Fanout::Queue));
        if !is_up_again || !is_ordered || watched.is_in_order() {
            return;
        }
        if self.reserve.left() < watched.live().len() {
            // Whoever finds no socket would lose its ring: rather a wrong order than fewer readers.
            tracing::warn!(
                name = watched.name,
                "the link came up with the rings in another order than that of the workers, and the \
                 reserve has no sockets for a new group; restart the sensor to put them in order"
            );
        } else {
            tracing::warn!(
                name = watched.name,
                "the link came up with the rings in another order than that of the workers; \
                 a new group is made"
            );
            watched.is_other = true;
        }
    }

    /// Calls workers together where it is needed; says whether rings are coming together.
    fn gather(&mut self, interface: usize, now: Instant) -> bool {
        let watched = &mut self.interfaces[interface];
        if watched.release_complete(self.board.is_open()) {
            return true;
        }
        watched.note_settled(interface, &self.announcer, now);
        watched.give_back_sockets(&self.reserve);
        if watched.presence == Presence::Gone || !watched.retry.is_due(now) {
            return false;
        }
        let fit: Vec<usize> = (0..self.workers.len())
            .filter(|worker| self.workers[*worker].may_be_called(now))
            .collect();
        let situation = Situation {
            fit: &fit,
            live: &watched.live(),
            is_stale: watched.is_stale(),
            is_ordered: matches!(self.fanout, Some(Fanout::Cpu | Fanout::Queue)),
            sockets: self.reserve.left(),
        };
        match situation.action() {
            Action::Nothing => false,
            _ if !watched.can_be_opened(self.fanout.is_some()) => false,
            Action::CallAll => self.call_all(interface, &fit),
            Action::CallMissing(missing) => self.call_missing(interface, &missing),
        }
    }

    /// A new group. Whoever stands still, or finds no socket, has no place in it.
    fn call_all(&mut self, interface: usize, fit: &[usize]) -> bool {
        let Some(sockets) = self.sockets(fit) else { return false };
        let watched = &mut self.interfaces[interface];
        let scope = watched.scope.clone();
        let gathering = Arc::new(Gathering::new(scope, self.fanout.clone(), sockets));
        watched.is_other = false;
        watched.is_failure_noted = false;
        // Of several tries, the rings before the first are those that are read on.
        if !watched.live().is_empty() {
            watched.before.clone_from(&watched.calls);
        }
        for call in &mut watched.calls {
            *call = Some(Arc::clone(&gathering));
        }
        self.board.call(interface, &gathering, 0..self.workers.len());
        true
    }

    /// Further members of the group that there is.
    fn call_missing(&mut self, interface: usize, missing: &[usize]) -> bool {
        let watched = &self.interfaces[interface];
        let readers = watched.calls.iter().enumerate();
        let mut groups = readers.filter_map(|(worker, call)| {
            call.as_ref().filter(|call| call.stage(worker) == Stage::Live).cloned()
        });
        let Some(of) = groups.next() else { return false };
        let Some(sockets) = self.sockets(missing) else { return false };
        let called: Vec<usize> = (0..sockets.len()).filter(|w| sockets[*w].is_some()).collect();
        let gathering = Arc::new(Gathering::joining(&of, sockets));
        let watched = &mut self.interfaces[interface];
        watched.is_failure_noted = false;
        for worker in &called {
            watched.calls[*worker] = Some(Arc::clone(&gathering));
        }
        self.board.call(interface, &gathering, called);
        true
    }

    /// A socket for each of these workers, as far as the reserve goes; `None` if it is empty.
    fn sockets(&self, workers: &[usize]) -> Option<Vec<Option<Unbound>>> {
        let mut sockets: Vec<Option<Unbound>> = self.workers.iter().map(|_| None).collect();
        for worker in workers {
            sockets[*worker] = self.reserve.take();
        }
        sockets.iter().any(Option::is_some).then_some(sockets)
    }

    /// Adds up the time in which something of an interface was not read.
    fn count_unread(&mut self, interface: usize, now: Instant) {
        let watched = &mut self.interfaces[interface];
        let has_readers = !watched.live().is_empty() || watched.is_read_on();
        let is_unread = watched.is_stale() || watched.presence == Presence::Gone || !has_readers;
        let missed = watched.unread.look(is_unread, now);
        let nanos = u64::try_from(missed.as_nanos()).unwrap_or(u64::MAX);
        self.status.uncaptured[interface].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Notices workers that read all their rings again after a panic.
    fn note_returns(&mut self, now: Instant) {
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let is_back = |watched: &Watched| {
                watched.presence == Presence::Gone || watched.stage(index) == Stage::Live
            };
            let is_back = worker.may_be_called(now) && self.interfaces.iter().all(is_back);
            if is_back && worker.note_return() {
                self.announcer.worker(index, WorkerChange::Restarted);
            }
        }
    }

    /// What is wrong beyond links, in words.
    fn problems(&self, now: Instant) -> Vec<String> {
        let workers = self.workers.iter().enumerate();
        let mut problems: Vec<String> =
            workers.filter_map(|(index, worker)| worker.problem(index, now)).collect();
        for watched in self.interfaces.iter().filter(|one| one.presence != Presence::Gone) {
            problems.extend(watched.problem(&self.workers));
        }
        if self.reserve.left() == 0 {
            problems.push(
                "the reserve of packet sockets is empty: no ring can be opened any more; restart the \
                 sensor, and set capture.reserve_sockets higher if that happens often"
                    .into(),
            );
        }
        problems
    }
}

impl Watched {
    fn stage(&self, worker: usize) -> Stage {
        self.calls[worker].as_ref().map_or(Stage::Absent, |call| call.stage(worker))
    }

    /// The workers that read the interface.
    fn live(&self) -> Vec<usize> {
        (0..self.calls.len()).filter(|worker| self.stage(*worker) == Stage::Live).collect()
    }

    /// Older rings are read while those of a new group are opened, or could not be.
    fn is_read_on(&self) -> bool {
        self.before.iter().zip(&self.calls).enumerate().any(|(worker, (before, call))| {
            let has_ring = before.as_ref().is_some_and(|it| it.stage(worker) == Stage::Live);
            has_ring && call.as_ref().is_none_or(|call| !call.has_taken_over())
        })
    }

    /// The group must be made anew: the interface is another one, or a share of it is not read.
    fn is_stale(&self) -> bool {
        self.is_other || !self.left_behind.is_empty()
    }

    /// The sockets of its rings were made in the order of the workers, as far as that can be read.
    fn is_in_order(&self) -> bool {
        let inode = |worker: usize| self.calls[worker].as_ref()?.inode(worker);
        let inodes: Vec<u64> = self.live().into_iter().filter_map(inode).collect();
        afpacket::creation_order(&inodes).is_ok_and(|order| order.is_sorted())
    }

    /// Rings can be opened on it: otherwise sockets would be wasted.
    fn can_be_opened(&self, is_group: bool) -> bool {
        // At the start, whatever is wrong is to be said at once.
        let is_first_call = self.calls.iter().all(Option::is_none);
        is_first_call || self.is_current() && !self.waits_for_link(is_group)
    }

    /// It is still what it was when it was looked up. Rings may notice earlier than this thread that
    /// it is gone.
    fn is_current(&self) -> bool {
        let Scope::One(interface) = &self.scope else { return true };
        if_::if_nametoindex(interface.name.as_str()) == Ok(interface.index)
            || self.presence == Presence::Renamed && has_another_name(interface)
    }

    /// While the interface is down, kernels before 6.13 let no ring join a group.
    fn waits_for_link(&self, is_group: bool) -> bool {
        is_group && !self.is_up
    }

    /// Releases gatherings in which nobody is missing; says whether one is under way.
    fn release_complete(&mut self, may_begin: bool) -> bool {
        let mut is_under_way = false;
        for call in self.calls.iter().flatten().filter(|call| !call.is_settled()) {
            is_under_way = true;
            if may_begin && call.is_complete() && !call.is_released() {
                // What the old group still deals to a ring that nobody reads would be counted twice.
                for (worker, old) in self.left_behind.drain(..) {
                    if let Some(Err(error)) = old.rejector(worker).map(|it| it.reject_all()) {
                        tracing::warn!(worker, %error, "cannot silence the ring of a worker");
                    }
                }
                call.release();
            }
        }
        is_under_way
    }

    /// Draws the conclusions once nobody has a step left to take.
    fn note_settled(&mut self, interface: usize, announcer: &Announcer, now: Instant) {
        // A gathering in which nobody is left lets those go who have no place in it.
        self.calls.iter().flatten().for_each(|call| call.release());
        let has_failed = (0..self.calls.len()).any(|worker| self.stage(worker) == Stage::Failed);
        if has_failed {
            if !std::mem::replace(&mut self.is_failure_noted, true) {
                self.retry.after_failure(now);
            }
        } else if !self.live().is_empty() {
            self.retry = Retry::default();
        }
        if !self.live().is_empty() {
            self.before.fill(None);
        }
        // Rings of the interface before may not have noticed yet that it is gone.
        let is_back = self.presence == Presence::Returning && !self.is_other;
        if is_back && !self.live().is_empty() {
            self.presence = Presence::There;
            announcer.interface(interface, InterfaceChange::Back);
        }
    }

    /// Sockets of which no ring came, for whatever reason, serve again.
    fn give_back_sockets(&self, reserve: &Reserve) {
        // The oldest is to be the first again: their order is that of the workers.
        for (worker, call) in self.calls.iter().enumerate().rev() {
            let Some(call) = call else { continue };
            if matches!(call.stage(worker), Stage::Failed | Stage::Absent) {
                call.take_socket(worker).into_iter().for_each(|socket| reserve.give_back(socket));
            }
        }
    }

    fn problem(&self, workers: &[Tended]) -> Option<String> {
        let name = &self.name;
        let live = self.live();
        let why = self.calls.iter().enumerate().find_map(|(worker, call)| {
            call.as_ref()?.failure(worker).map(|why| format!(": {why}"))
        });
        if live.is_empty() && !self.is_read_on() {
            if self.presence == Presence::Returning && !self.is_up {
                return Some(format!("interface {name} is there again, but down: set it up"));
            }
            return Some(format!("interface {name} is not read{}", why.unwrap_or_default()));
        }
        if self.is_stale() {
            return Some(format!("a part of the flows of interface {name} is not read"));
        }
        if live.is_empty() {
            let why = why.unwrap_or_default();
            return Some(format!("rings of interface {name} are to be replaced{why}"));
        }
        let missing = (0..workers.len()).find(|worker| !live.contains(worker))?;
        let why = self.calls[missing].as_ref().and_then(|call| call.failure(missing));
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!("worker {missing} does not read interface {name}, others do{why}"))
    }
}

/// What became of an interface, given what has its name now.
fn sight(interface: &Interface, found: Option<&Interface>) -> Sight {
    match found {
        Some(found) if found.index == interface.index => Sight::Same,
        Some(_) => Sight::Other,
        None if has_another_name(interface) => Sight::OtherName,
        None => Sight::Nothing,
    }
}

/// The interface is there, and called otherwise.
fn has_another_name(interface: &Interface) -> bool {
    // For an index that nobody has, this version of nix gives an empty name and no error.
    if_::if_indextoname(interface.index)
        .is_ok_and(|name| !name.is_empty() && name.to_bytes() != interface.name.as_bytes())
}

/// What the system says of an interface beside what [`Interface`] has.
#[derive(Clone, Copy, Debug)]
struct Properties {
    mac: Option<[u8; 6]>,
    is_up: bool,
}

impl Default for Properties {
    /// Nothing is known: nothing is held against it.
    fn default() -> Self {
        Self { mac: None, is_up: true }
    }
}

/// The properties of all interfaces; empty if the system does not say.
fn properties_by_name() -> BTreeMap<String, Properties> {
    let Ok(addresses) = getifaddrs() else { return BTreeMap::new() };
    let mut properties: BTreeMap<String, Properties> = BTreeMap::new();
    for one in addresses {
        let mac = one.address.as_ref().and_then(|it| it.as_link_addr()).and_then(|it| it.addr());
        let of_interface = properties.entry(one.interface_name).or_default();
        of_interface.mac = of_interface.mac.or(mac);
        of_interface.is_up = one.flags.contains(InterfaceFlags::IFF_UP);
    }
    properties
}

impl SupervisorStatus {
    /// Counts of these interfaces, at zero, and what the test of the kernel's hash gave.
    #[must_use]
    pub fn new(interfaces: Vec<String>, symmetry: Option<&Symmetry>) -> Self {
        let is_symmetric = match symmetry {
            Some(Symmetry::Symmetric { .. }) => Some(true),
            Some(Symmetry::Asymmetric { .. }) => Some(false),
            Some(Symmetry::NotTested { .. }) | None => None,
        };
        Self {
            is_symmetric,
            uncaptured: interfaces.iter().map(|_| AtomicU64::new(0)).collect(),
            interfaces,
            reserve_left: AtomicU64::new(0),
        }
    }
}

impl Source for SupervisorStatus {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let rows = self
            .interfaces
            .iter()
            .zip(&self.uncaptured)
            .map(|(name, nanos)| (vec![("interface", name.clone())], read(nanos) / 1_000_000));
        families.counter(
            "ringwatch_uncaptured_milliseconds",
            "Time in which an interface, or a part of its flows, was not read, up to 0.1 s too much each time",
            rows,
        )?;
        families.gauge(
            "ringwatch_reserve_sockets",
            "Packet sockets left for rings that are opened later",
            [(vec![], read(&self.reserve_left) as f64)],
        )?;
        families.gauge(
            "ringwatch_fanout_symmetric",
            "1 if the kernel's hash keeps both directions of a flow together, 0 if not",
            self.is_symmetric.map(|is_so| (vec![], f64::from(u8::from(is_so)))),
        )
    }
}
