//! How rings of one interface come together: at the start, after the interface was made anew, after a
//! worker came back, and when the share of one that stands still is taken over.
//!
//! ```text
//!   supervisor                               workers that are called, each in its own pinned thread
//!   makes the gathering, a socket for each ─▶ Called   opens its ring at once
//!                                             Opened   waits until those before it have joined
//!                                             Joined   a member of the fanout group; rejects all frames
//!   all have joined: silences the ring of
//!   one that stands still, and releases  ───▶ Live     lets frames in, closes the ring it had before
//! ```
//!
//! Everything here is atomic: a thread that stops for good at any place keeps nobody waiting, as the
//! supervisor dismisses it. No worker waits for another while it has rings to read; it looks here a few
//! times a tick while it is called.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;

use crate::afpacket::{Fanout, FanoutGroup, Rejector, Scope, Unbound};

/// How far a worker is in a gathering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// It is not called, or was dismissed: it has no part in this.
    Absent,
    /// It is to open a ring.
    Called,
    /// Its ring is open.
    Opened,
    /// Its ring is in the group.
    Joined,
    /// It reads its ring.
    Live,
    /// It could not open or join.
    Failed,
    /// It closed its ring: the interface is gone, or the worker panicked.
    Left,
}

/// Rings of one interface that begin together.
#[derive(Debug)]
pub struct Gathering {
    /// What the rings listen to.
    pub scope: Scope,
    /// How frames are dealt; `None` where there is only one worker ever.
    pub fanout: Option<Fanout>,
    /// Made by the first member that joins. Shared with later gatherings that join the same group.
    group: Arc<OnceLock<FanoutGroup>>,
    /// One for each worker.
    members: Vec<Member>,
    is_released: AtomicBool,
}

/// One worker's place in a gathering.
#[derive(Debug)]
struct Member {
    stage: AtomicU8,
    /// Locked by the worker, and by the supervisor once the worker has no part in this any more.
    socket: Mutex<Option<Unbound>>,
    /// Silences the ring while it exists.
    rejector: OnceLock<Rejector>,
    /// Inode number of the ring's socket.
    inode: OnceLock<u64>,
    failure: OnceLock<String>,
}

impl Member {
    fn new(stage: Stage, socket: Option<Unbound>) -> Self {
        Self {
            stage: AtomicU8::new(stage as u8),
            socket: Mutex::new(socket),
            rejector: OnceLock::new(),
            inode: OnceLock::new(),
            failure: OnceLock::new(),
        }
    }
}

impl Gathering {
    /// A new group. `sockets` has an entry for each worker, empty for those that are not called; they
    /// are in the order in which they were made, as `cpu` and `queue` need it.
    #[must_use]
    pub fn new(scope: Scope, fanout: Option<Fanout>, sockets: Vec<Option<Unbound>>) -> Self {
        Self::of(scope, fanout, Arc::default(), sockets)
    }

    /// Further rings of the group that another gathering made. It is released from the start: from the
    /// moment in which a ring has joined, its share of the frames is rejected until it begins.
    #[must_use]
    pub fn joining(other: &Self, sockets: Vec<Option<Unbound>>) -> Self {
        let group = Arc::clone(&other.group);
        let gathering = Self::of(other.scope.clone(), other.fanout.clone(), group, sockets);
        gathering.release();
        gathering
    }

    fn of(
        scope: Scope,
        fanout: Option<Fanout>,
        group: Arc<OnceLock<FanoutGroup>>,
        sockets: Vec<Option<Unbound>>,
    ) -> Self {
        let member = |socket: Option<Unbound>| {
            let stage = if socket.is_some() { Stage::Called } else { Stage::Absent };
            Member::new(stage, socket)
        };
        let members = sockets.into_iter().map(member).collect();
        Self { scope, fanout, group, members, is_released: AtomicBool::new(false) }
    }

    /// How many rings the group has at most.
    #[must_use]
    pub fn places(&self) -> u32 {
        // One for each worker, of which a configuration has 256 at most.
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    /// How far a worker is.
    #[must_use]
    pub fn stage(&self, worker: usize) -> Stage {
        self.members.get(worker).map_or(Stage::Absent, |member| {
            match member.stage.load(Ordering::Acquire) {
                1 => Stage::Called,
                2 => Stage::Opened,
                3 => Stage::Joined,
                4 => Stage::Live,
                5 => Stage::Failed,
                6 => Stage::Left,
                _ => Stage::Absent,
            }
        })
    }

    /// Moves a worker on; `false` if it was dismissed meanwhile.
    #[must_use]
    pub fn advance(&self, worker: usize, from: Stage, to: Stage) -> bool {
        self.members.get(worker).is_some_and(|member| {
            let (from, to) = (from as u8, to as u8);
            member.stage.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// A worker leaves for good, wherever it was, if it was in at all.
    pub fn leave(&self, worker: usize, to: Stage) {
        if let Some(member) = self.members.get(worker)
            && self.stage(worker) != Stage::Absent
        {
            member.stage.store(to as u8, Ordering::Release);
        }
    }

    /// A worker could not open or join.
    pub fn fail(&self, worker: usize, why: String) {
        if let Some(member) = self.members.get(worker) {
            // The first reason is the one.
            let _ = member.failure.set(why);
        }
        self.leave(worker, Stage::Failed);
    }

    /// Why a worker failed.
    #[must_use]
    pub fn failure(&self, worker: usize) -> Option<&str> {
        self.members.get(worker)?.failure.get().map(String::as_str)
    }

    /// The supervisor goes on without a worker.
    pub fn dismiss(&self, worker: usize) {
        if let Some(member) = self.members.get(worker) {
            member.stage.store(Stage::Absent as u8, Ordering::Release);
        }
    }

    /// The socket for a worker's ring, if it was not taken before, or was put back.
    #[must_use]
    pub fn take_socket(&self, worker: usize) -> Option<Unbound> {
        let socket = &self.members.get(worker)?.socket;
        socket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives back a socket of which no ring could be made.
    pub fn put_back(&self, worker: usize, socket: Unbound) {
        if let Some(member) = self.members.get(worker) {
            *member.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
        }
    }

    /// All before this worker have joined, or have no part in it any more.
    #[must_use]
    pub fn is_turn_of(&self, worker: usize) -> bool {
        let before = 0..worker.min(self.members.len());
        before.into_iter().all(|one| !matches!(self.stage(one), Stage::Called | Stage::Opened))
    }

    /// The group, once its first member has made it.
    #[must_use]
    pub fn group(&self) -> Option<&FanoutGroup> {
        self.group.get()
    }

    /// The first member made the group; `false` if another had, so that this one is in a group of its
    /// own.
    #[must_use]
    pub fn found(&self, group: FanoutGroup) -> bool {
        self.group.set(group).is_ok()
    }

    /// Nobody is missing any more: all have joined, or have no part in it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_turn_of(self.members.len())
    }

    /// Nobody has a step left to take.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_complete() && self.workers_at(Stage::Joined).next().is_none()
    }

    /// Lets the members begin.
    pub fn release(&self) {
        self.is_released.store(true, Ordering::Release);
    }

    /// The members may begin.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.is_released.load(Ordering::Acquire)
    }

    /// It was released, and somebody begins or reads in it: older rings are not needed any more, and
    /// would count frames a second time.
    #[must_use]
    pub fn has_taken_over(&self) -> bool {
        let mut begun = self.workers_at(Stage::Joined).chain(self.workers_at(Stage::Live));
        self.is_released() && begun.next().is_some()
    }

    /// The workers that are at a stage.
    pub fn workers_at(&self, stage: Stage) -> impl Iterator<Item = usize> + '_ {
        (0..self.members.len()).filter(move |worker| self.stage(*worker) == stage)
    }

    /// Keeps what silences a worker's ring; the first is kept.
    pub fn keep_rejector(&self, worker: usize, rejector: Rejector) {
        if let Some(member) = self.members.get(worker) {
            // A worker opens one ring in a gathering.
            let _ = member.rejector.set(rejector);
        }
    }

    /// Keeps the inode number of the socket of a worker's ring; the first is kept.
    pub fn keep_inode(&self, worker: usize, inode: u64) {
        if let Some(member) = self.members.get(worker) {
            let _ = member.inode.set(inode);
        }
    }

    /// The inode number of the socket of a worker's ring.
    #[must_use]
    pub fn inode(&self, worker: usize) -> Option<u64> {
        self.members.get(worker)?.inode.get().copied()
    }

    /// What silences a worker's ring, once it is open. It keeps no ring from being closed.
    #[must_use]
    pub fn rejector(&self, worker: usize) -> Option<&Rejector> {
        self.members.get(worker)?.rejector.get()
    }
}

/// Where workers find the gatherings that they are called to.
#[derive(Debug)]
pub struct Board {
    version: AtomicU64,
    /// Gatherings may be released.
    is_open: AtomicBool,
    /// For each worker and interface the newest gathering.
    calls: Vec<Vec<ArcSwapOption<Gathering>>>,
    /// Panics of each worker.
    panics: Vec<AtomicU64>,
}

impl Board {
    /// An empty board.
    #[must_use]
    pub fn new(workers: usize, interfaces: usize) -> Self {
        let row = || (0..interfaces).map(|_| ArcSwapOption::empty()).collect();
        Self {
            version: AtomicU64::new(0),
            is_open: AtomicBool::new(false),
            calls: (0..workers).map(|_| row()).collect(),
            panics: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Whoever takes what the workers find is ready: gatherings may be released from now on.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// Gatherings may be released.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Grows with every call.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The newest gathering of a worker on an interface.
    #[must_use]
    pub fn call_of(&self, worker: usize, interface: usize) -> Option<Arc<Gathering>> {
        self.calls.get(worker)?.get(interface)?.load_full()
    }

    /// Calls workers to a gathering; those that it has no place for give up their rings of the
    /// interface when it is released.
    pub fn call(
        &self,
        interface: usize,
        gathering: &Arc<Gathering>,
        workers: impl IntoIterator<Item = usize>,
    ) {
        for worker in workers {
            if let Some(place) = self.calls.get(worker).and_then(|row| row.get(interface)) {
                place.store(Some(Arc::clone(gathering)));
            }
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// A worker panicked and has closed its rings.
    pub fn note_panic(&self, worker: usize) {
        if let Some(count) = self.panics.get(worker) {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How often a worker panicked.
    #[must_use]
    pub fn panics(&self, worker: usize) -> u64 {
        self.panics.get(worker).map_or(0, |count| count.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afpacket::Interface;

    /// A gathering of which the first `called` workers are called, without sockets.
    fn gathering(called: usize, workers: usize) -> Gathering {
        let scope = Scope::One(Interface::find("lo").unwrap());
        let mut gathering =
            Gathering::new(scope, None, (0..workers).map(|_| None).collect::<Vec<_>>());
        for member in &mut gathering.members[..called] {
            *member = Member::new(Stage::Called, None);
        }
        gathering
    }

    #[test]
    fn members_join_in_their_order_and_begin_together() {
        let gathering = gathering(3, 3);
        for worker in 0..3 {
            assert!(gathering.advance(worker, Stage::Called, Stage::Opened));
        }
        for worker in 0..3 {
            let turns: Vec<bool> = (0..3).map(|one| gathering.is_turn_of(one)).collect();
            let expected: Vec<bool> = (0..3).map(|one| one <= worker).collect();
            assert_eq!(turns, expected);
            assert!(!gathering.is_complete());
            assert!(gathering.advance(worker, Stage::Opened, Stage::Joined));
        }
        assert!(gathering.is_complete() && !gathering.is_settled() && !gathering.is_released());
        gathering.release();
        for worker in 0..3 {
            assert!(gathering.advance(worker, Stage::Joined, Stage::Live));
        }
        assert!(gathering.is_settled());
    }

    #[test]
    fn a_member_that_dies_or_is_dismissed_keeps_nobody_waiting() {
        let gathering = gathering(3, 4);
        assert!(gathering.advance(2, Stage::Called, Stage::Opened));
        assert!(!gathering.is_turn_of(2));
        gathering.fail(0, "no memory".into());
        assert!(!gathering.is_turn_of(2));
        gathering.dismiss(1);
        assert!(gathering.is_turn_of(2));
        assert!(!gathering.advance(1, Stage::Called, Stage::Opened), "it was dismissed");
        assert!(gathering.advance(2, Stage::Opened, Stage::Joined));
        assert!(gathering.is_complete());
        assert_eq!(gathering.failure(0), Some("no memory"));
        assert_eq!(gathering.workers_at(Stage::Joined).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn who_joins_a_group_that_reads_begins_without_waiting_for_others() {
        let group = gathering(2, 2);
        let sockets = (0..2).map(|_| None).collect();
        assert!(!group.is_released());
        assert!(Gathering::joining(&group, sockets).is_released());
    }

    #[test]
    fn older_rings_go_only_when_somebody_has_taken_over() {
        let gathering = gathering(2, 3);
        gathering.release();
        gathering.fail(0, "no memory".into());
        assert!(!gathering.has_taken_over());
        gathering.fail(1, "no memory".into());
        assert!(!gathering.has_taken_over(), "all failed: the rings before are all there is");
        for stage in [Stage::Joined, Stage::Live] {
            gathering.members[1].stage.store(stage as u8, Ordering::Release);
            assert!(gathering.has_taken_over());
        }
    }

    #[test]
    fn only_who_was_in_can_leave() {
        let gathering = gathering(1, 2);
        gathering.leave(0, Stage::Left);
        gathering.leave(1, Stage::Left);
        assert_eq!((gathering.stage(0), gathering.stage(1)), (Stage::Left, Stage::Absent));
    }

    #[test]
    fn the_board_shows_the_newest_call_to_those_who_are_called() {
        let board = Board::new(2, 1);
        let (first, second) = (Arc::new(gathering(2, 2)), Arc::new(gathering(1, 2)));
        board.call(0, &first, 0..2);
        let version = board.version();
        board.call(0, &second, [1]);
        assert!(board.version() > version);
        assert!(Arc::ptr_eq(&board.call_of(0, 0).unwrap(), &first));
        assert!(Arc::ptr_eq(&board.call_of(1, 0).unwrap(), &second));
        assert!(board.call_of(2, 0).is_none() && board.call_of(0, 1).is_none());
    }
}
