//! A worker's place on one interface: the ring that it reads, one that is on its way into a group, and
//! those that are being emptied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use packet::frame::LinkType;
use packet::libpcap::Program;
use wire::text::error_chain;
use wire::units::UnixNanos;

use super::WorkerError;
use super::occupancy::Occupancy;
use crate::afpacket::{LinkEvent, OpenError, Ring, RingConfig, Scope, Statistics, Unbound};
use crate::counters::{Counter, InterfaceCounters};
use crate::filter::RingFilter;
use crate::gathering::{Board, Gathering, Stage};
use crate::interfaces::PlaceMap;
use crate::setup;

/// A packet that passed the old filter is in the ring within a softirq; this is many.
pub(super) const STRAGGLERS: Duration = Duration::from_millis(20);
/// After the last frame was let in, the kernel hands over a partly filled block within the retire
/// time (a second at most, by configuration); after twice that, what is missing will not come.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// A worker's place on one interface.
pub(super) struct Slot {
    pub(super) interface: usize,
    worker: usize,
    /// What its rings let in.
    filter: RingFilter,
    /// The gathering that was answered last.
    call: Option<Arc<Gathering>>,
    /// Opened for that gathering, not yet begun.
    next: Option<Next>,
    /// Rings that are read: at most one that is not closing.
    pub(super) readings: Vec<Reading>,
    occupancy: Occupancy,
}

/// A ring on its way into a group. Rejects all frames.
struct Next {
    ring: Ring,
    /// Its socket, as long as that could serve again: a member of a group cannot.
    spare: Option<Unbound>,
}

/// A ring that is read, and what was told of it.
pub(super) struct Reading {
    pub(super) ring: Ring,
    /// The gathering in which it began.
    call: Arc<Gathering>,
    /// Nothing was left in the ring at the end of the last turn.
    pub(super) is_drained: bool,
    pub(super) last_frame: UnixNanos,
    /// It lets no further frame in since then, and goes when it is empty.
    closing_since: Option<Instant>,
    told: Told,
    /// What a ring on all interfaces was told to reject last.
    unwanted: Vec<u32>,
    /// It was said that the filter has no room for all interfaces that are not wanted.
    is_room_said: bool,
}

/// What a ring has counted so far, as it was told to the worker's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    statistics: Statistics,
    corrupt: u64,
    corrupt_blocks: u64,
    unread: u64,
    cut: u64,
}

/// What a step of a slot brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that matters to others.
    None,
    /// A ring began, or one was closed: frames may have been missed in between.
    Changed,
}

impl Slot {
    pub(super) fn new(worker: usize, interface: usize, filter: RingFilter) -> Self {
        Self {
            interface,
            worker,
            filter,
            call: None,
            next: None,
            readings: Vec::with_capacity(2),
            occupancy: Occupancy::new(Instant::now()),
        }
    }

    /// Takes the next step of the newest gathering, if it is time for it.
    ///
    /// # Errors
    /// The ring cannot be opened, or cannot join; the slot has left the gathering.
    pub(super) fn attend(
        &mut self,
        board: &Board,
        config: &RingConfig,
    ) -> Result<Progress, WorkerError> {
        self.answer(board);
        let Some(call) = self.call.clone() else { return Ok(Progress::None) };
        let step = match call.stage(self.worker) {
            Stage::Called => self.open(&call, config).map(|()| Progress::None),
            Stage::Opened if call.is_turn_of(self.worker) => {
                self.join(&call).and_then(|()| self.begin_if_released(&call))
            }
            Stage::Joined => self.begin_if_released(&call),
            Stage::Absent | Stage::Failed if call.has_taken_over() => Ok(self.retire()),
            _ => Ok(Progress::None),
        };
        step.map_err(|error| {
            if let Some(Next { ring, spare }) = self.next.take() {
                drop(ring);
                self.give_back(&call, spare);
            }
            call.fail(self.worker, error_chain(&error));
            WorkerError::Open(error)
        })
    }

    /// Turns to the newest gathering. A ring that was opened for an older one goes.
    fn answer(&mut self, board: &Board) {
        let newest = board.call_of(self.worker, self.interface);
        let is_same = match (&newest, &self.call) {
            (Some(newest), Some(call)) => Arc::ptr_eq(newest, call),
            (newest, call) => newest.is_none() && call.is_none(),
        };
        if !is_same {
            self.next = None;
            self.call = newest;
        }
    }

    fn open(&mut self, call: &Gathering, config: &RingConfig) -> Result<(), OpenError> {
        let filter = self.filter_for(&call.scope)?;
        let Some(socket) = call.take_socket(self.worker) else { return Ok(()) };
        let spare = socket.spare();
        // Of all interfaces, only those that are wanted are to be promiscuous: the lookout asks them.
        let is_one = matches!(call.scope, Scope::One(_));
        let config = &RingConfig { promiscuous: config.promiscuous && is_one, ..*config };
        let mut ring = match Ring::open(socket, config, &call.scope) {
            Ok(ring) => ring,
            Err(error) => {
                self.give_back(call, Some(spare));
                return Err(error);
            }
        };
        if let Some(filter) = filter {
            // Before it begins it is only kept.
            ring.set_filter(filter.instructions())?;
        }
        let (got, wanted) = (ring.config().block_count, config.block_count);
        if got < wanted {
            let (bytes, wanted_bytes) = (ring.config().ring_bytes(), config.ring_bytes());
            let name = call.scope.name();
            tracing::warn!(
                name,
                worker = self.worker,
                bytes,
                wanted_bytes,
                stall_tolerance_ms = setup::stall_tolerance_ms(ring.config()),
                "memory is short: the ring is smaller than configured"
            );
        }
        call.keep_rejector(self.worker, ring.rejector());
        if let Ok(inode) = ring.inode() {
            call.keep_inode(self.worker, inode);
        }
        if call.advance(self.worker, Stage::Called, Stage::Opened) {
            self.next = Some(Next { ring, spare: Some(spare) });
        }
        Ok(())
    }

    /// A socket of which no ring came serves again, if it can.
    fn give_back(&self, call: &Gathering, spare: Option<Unbound>) {
        if let Some(spare) = spare.filter(|spare| spare.reset(&call.scope).is_ok()) {
            call.put_back(self.worker, spare);
        }
    }

    fn filter_for(&self, scope: &Scope) -> Result<Option<&Program>, OpenError> {
        // A ring on all interfaces needs a program that looks at the hardware of each frame.
        let link = match scope {
            Scope::One(interface) => interface.link,
            Scope::All { .. } => LinkType::ETHERNET,
        };
        self.filter.for_link(link).map_err(|reason| OpenError::LinkType {
            interface: scope.name().to_owned(),
            link,
            reason: reason.to_owned(),
        })
    }

    fn join(&mut self, call: &Gathering) -> Result<(), OpenError> {
        let Some(Next { ring, spare }) = &mut self.next else { return Ok(()) };
        match (&call.fanout, call.group()) {
            (None, _) => {}
            (Some(_), Some(group)) => ring.join(group)?,
            (Some(fanout), None) => {
                let group = ring.start_group(fanout, call.places())?;
                if !call.found(group) {
                    // Dismissed while it made the group: another has made one since.
                    self.next = None;
                    return Ok(());
                }
            }
        }
        if call.fanout.is_some() {
            *spare = None;
        }
        if !call.advance(self.worker, Stage::Opened, Stage::Joined) {
            self.next = None;
        }
        Ok(())
    }

    fn begin_if_released(&mut self, call: &Arc<Gathering>) -> Result<Progress, OpenError> {
        if call.is_released() { self.begin(call) } else { Ok(Progress::None) }
    }

    /// The ring before this one lets nothing in any more; a moment later this one does.
    fn begin(&mut self, call: &Arc<Gathering>) -> Result<Progress, OpenError> {
        let Some(Next { mut ring, spare }) = self.next.take() else { return Ok(Progress::None) };
        self.retire();
        if let Err(error) = ring.begin() {
            // Whoever is told of it takes care of the socket.
            self.next = Some(Next { ring, spare });
            return Err(error);
        }
        let mut reading = Reading {
            ring,
            call: Arc::clone(call),
            is_drained: true,
            last_frame: UnixNanos(0),
            closing_since: None,
            told: Told::default(),
            unwanted: Vec::new(),
            is_room_said: false,
        };
        if !call.advance(self.worker, Stage::Joined, Stage::Live) {
            // The others went on without this worker meanwhile.
            reading.close();
        }
        self.readings.push(reading);
        Ok(Progress::Changed)
    }

    /// The rings that are read let nothing in any more, and go when they are empty.
    pub(super) fn retire(&mut self) -> Progress {
        let mut progress = Progress::None;
        for reading in self.readings.iter_mut().filter(|one| !one.is_closing()) {
            reading.close();
            reading.call.leave(self.worker, Stage::Left);
            progress = Progress::Changed;
        }
        progress
    }

    /// Lets the rings on all interfaces see those that are wanted and, as far as the filter has room, no
    /// others.
    pub(super) fn follow(&mut self, map: &PlaceMap) {
        let open = self.readings.iter_mut().filter(|one| !one.is_closing());
        for reading in open.filter(|one| matches!(one.ring.scope(), Scope::All { .. })) {
            reading.exclude(map.unwanted());
        }
    }

    /// There is something to do soon.
    pub(super) fn is_pending(&self) -> bool {
        self.next.is_some()
            || self.readings.iter().any(Reading::is_closing)
            || self.call.as_ref().is_some_and(|call| match call.stage(self.worker) {
                Stage::Called | Stage::Opened | Stage::Joined => true,
                Stage::Absent | Stage::Failed => !self.readings.is_empty(),
                Stage::Live | Stage::Left => false,
            })
    }

    /// How far the slot is in the newest gathering.
    pub(super) fn stage(&self) -> Stage {
        self.call.as_ref().map_or(Stage::Absent, |call| call.stage(self.worker))
    }

    /// Reads the kernel's counters; says whether frames were dropped since the last time.
    pub(super) fn refresh_statistics(&mut self, counted: &InterfaceCounters) -> bool {
        let mut is_lossy = false;
        let mut thousandths = 0;
        for reading in &mut self.readings {
            is_lossy |= reading.refresh_statistics(counted);
            thousandths = thousandths.max(reading.take_occupancy());
        }
        let marks = self.occupancy.note(thousandths, Instant::now());
        counted.occupancy_recent.set(marks.recent);
        counted.occupancy_most.set(marks.most);
        is_lossy
    }

    /// Closes the rings that are done.
    pub(super) fn close_empty(&mut self, counted: &InterfaceCounters) {
        self.readings.retain_mut(|reading| {
            if !reading.is_closing() {
                return true;
            }
            // A partly filled block is handed over in time; until then it counts as waiting.
            reading.refresh_statistics(counted);
            let is_done = reading.is_done();
            if is_done {
                reading.settle(counted);
            }
            !is_done
        });
    }

    /// Closes the accounts of all rings: nothing more can come.
    pub(super) fn settle(&mut self, counted: &InterfaceCounters) {
        self.readings.iter_mut().for_each(|reading| reading.settle(counted));
    }

    /// Closes all rings at once: their worker panicked. What lies in them stays unread.
    pub(super) fn abandon(&mut self, counted: &InterfaceCounters) {
        self.next = None;
        for reading in &mut self.readings {
            reading.close();
            reading.refresh_statistics(counted);
            reading.call.leave(self.worker, Stage::Left);
        }
        self.readings.clear();
        if let Some(call) = &self.call {
            call.leave(self.worker, Stage::Left);
        }
    }

    /// What happened to the link. The ring of an interface that is gone closes by itself.
    pub(super) fn link_event(&mut self) -> Option<LinkEvent> {
        let mut said = None;
        for reading in &mut self.readings {
            let event = reading.ring.link_event();
            if event == Some(LinkEvent::Gone) {
                reading.call.leave(self.worker, Stage::Left);
                reading.close();
            }
            // The newest ring is the last, and knows best.
            said = event.or(said);
        }
        said
    }
}

impl Reading {
    pub(super) const fn is_closing(&self) -> bool {
        self.closing_since.is_some()
    }

    fn close(&mut self) {
        if let Err(error) = self.ring.reject_all() {
            let name = self.ring.scope().name();
            tracing::warn!(name, %error, "cannot stop the ring; the last frames may be missing");
        }
        self.closing_since.get_or_insert_with(Instant::now);
    }

    /// Rejects the frames of these interfaces, or of as many as the filter has room for.
    fn exclude(&mut self, unwanted: &[u32]) {
        if self.unwanted == unwanted {
            return;
        }
        let mut count = unwanted.len();
        let mut has_made_room = false;
        loop {
            match self.ring.set_excluded(&unwanted[..count]) {
                Ok(()) => break,
                // The filter before counts until it is replaced: without exclusions it leaves more room.
                Err(OpenError::FilterTooLong { .. }) if !has_made_room => {
                    has_made_room = true;
                    let _ = self.ring.set_excluded(&[]);
                }
                Err(OpenError::FilterTooLong { .. }) if count > 0 => count -= count.div_ceil(4),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, "cannot change the filter of the ring");
                    return;
                }
            }
        }
        self.unwanted = unwanted.to_vec();
        let left = unwanted.len() - count;
        if left > 0 && !std::mem::replace(&mut self.is_room_said, true) {
            tracing::warn!(
                rejected = count,
                left,
                "the filter has no room for all interfaces that are not wanted; the worker takes the \
                 frames of the others out and counts them as not_wanted"
            );
        }
    }

    /// Nothing can come any more, or it takes too long.
    fn is_done(&self) -> bool {
        self.closing_since.is_some_and(|since| {
            let elapsed = since.elapsed();
            let is_empty = self.ring.waiting() == 0 || elapsed >= DRAIN_LIMIT;
            elapsed >= STRAGGLERS && self.is_drained && is_empty
        })
    }

    /// What still lies in the ring counts as unread.
    fn settle(&mut self, counted: &InterfaceCounters) {
        if let Err(error) = self.ring.settle() {
            let name = self.ring.scope().name();
            tracing::warn!(name, %error, "cannot read the last statistics of the ring");
        }
        self.refresh_statistics(counted);
    }

    /// A new ring's counters start at zero: what is new is added to those of all rings before.
    fn refresh_statistics(&mut self, counted: &InterfaceCounters) -> bool {
        // Without an answer of the kernel, its part is what it was.
        let statistics = self.ring.refresh_statistics().unwrap_or(self.ring.statistics());
        let now = Told {
            statistics,
            corrupt: self.ring.corrupt(),
            corrupt_blocks: self.ring.corrupt_blocks(),
            unread: self.ring.unread(),
            cut: self.ring.cut().frames,
        };
        let told = std::mem::replace(&mut self.told, now);
        now.add_since(&told, counted);
        now.statistics.drops > told.statistics.drops
    }

    /// The most blocks that were ours at once since the last call, in thousandths of the ring.
    fn take_occupancy(&mut self) -> u64 {
        let blocks = u64::from(self.ring.config().block_count.max(1));
        u64::from(self.ring.take_high_water()) * 1000 / blocks
    }
}

impl Told {
    /// Adds what is new since `before`.
    fn add_since(&self, before: &Self, counted: &InterfaceCounters) {
        let (now, then) = (&self.statistics, &before.statistics);
        // Wrapping: the end of a ring takes back what a block counted as corrupt that was never stored.
        let add = |counter: &Counter, now: u64, then: u64| counter.add(now.wrapping_sub(then));
        add(&counted.kernel_packets, now.packets, then.packets);
        add(&counted.kernel_drops, now.drops, then.drops);
        add(&counted.ring_freezes, now.freezes, then.freezes);
        add(&counted.blocks_full, now.blocks_full, then.blocks_full);
        add(&counted.blocks_timed_out, now.blocks_timed_out, then.blocks_timed_out);
        add(&counted.corrupt, self.corrupt, before.corrupt);
        add(&counted.corrupt_blocks, self.corrupt_blocks, before.corrupt_blocks);
        add(&counted.unread, self.unread, before.unread);
        add(&counted.cut, self.cut, before.cut);
    }
}

#[cfg(test)]
mod tests {
    use perf::lab::Lab;

    use super::*;
    use crate::afpacket::{Fanout, Interface};
    use crate::config::Config;

    #[test]
    fn rings_that_cannot_be_made_cost_no_socket() {
        let Some(lab) = Lab::new() else { return };
        lab.sensor().within(|| {
            let there = Interface::find("s0").unwrap();
            let gone = Interface { index: there.index + 1000, ..there.clone() };
            let mut config = Config::without_file();
            config.capture.ring_mib = 2;
            let ring = setup::ring(&config.capture, 2).unwrap();
            let filter = setup::filters_by_link(&config, [there.link]).unwrap().remove(0);
            let board = Board::new(2, 1);
            let mut slot = Slot::new(0, 0, filter);
            let mut attend = |interface: &Interface, socket, members| {
                // Of a group that cannot be: the kernel knows no more than 65536 members.
                let fanout = (members > 1).then_some(Fanout::Hash);
                let mut sockets = vec![Some(socket)];
                sockets.resize_with(members, || None);
                let scope = Scope::One(interface.clone());
                let call = Arc::new(Gathering::new(scope, fanout, sockets));
                board.call(0, &call, [0]);
                let steps = [(); 3].map(|()| slot.attend(&board, &ring).is_ok());
                (steps.iter().all(|is_ok| *is_ok), call)
            };
            let mut socket = Unbound::new().unwrap();
            for (interface, members) in [(&gone, 1), (&there, 1 << 17)] {
                for round in 0..20 {
                    let (is_open, call) = attend(interface, socket, members);
                    assert!(!is_open && call.failure(0).is_some());
                    socket = call.take_socket(0).unwrap_or_else(|| panic!("after {round}"));
                }
            }
            let (is_open, call) = attend(&there, socket, 1);
            assert!(is_open, "{:?}", call.failure(0));
            assert_eq!((call.stage(0), call.take_socket(0).is_none()), (Stage::Joined, true));
        });
    }

    #[test]
    fn the_counters_of_rings_add_up_though_a_ring_takes_back_what_was_never_stored() {
        let counted = InterfaceCounters::default();
        let statistics = |packets, blocks_full| Statistics {
            packets,
            drops: packets / 10,
            freezes: 1,
            blocks_full,
            blocks_timed_out: 2,
        };
        // A block claimed four frames more than there were; the account that is closed knows better.
        let first = Told {
            statistics: statistics(100, 5),
            corrupt: 4,
            corrupt_blocks: 1,
            unread: 0,
            cut: 3,
        };
        let end = Told { corrupt: 2, unread: 5, ..first };
        first.add_since(&Told::default(), &counted);
        end.add_since(&first, &counted);
        // The next ring begins at zero.
        let next = Told { statistics: statistics(50, 1), cut: 1, ..Told::default() };
        next.add_since(&Told::default(), &counted);
        let read = |of: fn(&InterfaceCounters) -> &Counter| of(&counted).read();
        assert_eq!((read(|c| &c.kernel_packets), read(|c| &c.kernel_drops)), (150, 15));
        assert_eq!((read(|c| &c.blocks_full), read(|c| &c.blocks_timed_out)), (6, 4));
        assert_eq!((read(|c| &c.corrupt), read(|c| &c.corrupt_blocks)), (2, 1));
        assert_eq!((read(|c| &c.cut), read(|c| &c.ring_freezes)), (4, 2));
        assert_eq!(read(|c| &c.unread), 5);
    }
}
