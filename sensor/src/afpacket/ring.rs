//! A ring: its socket and its memory, from opening to the last block.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use libc::sock_filter;

use super::block::{Block, Cut, Tally};
use super::error::{OpenError, Step};
use super::fanout::{Fanout, FanoutGroup};
use super::filter::Filter;
use super::scope::Scope;
use super::socket::{PacketSocket, Rejector, Unbound};
use super::stats::Statistics;
use super::sys::{self, Mapping};

/// Sizes and habits of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Bytes of a block: a multiple of the page size. 256 KiB at least hold any frame that the kernel
    /// puts together out of segments.
    pub block_bytes: u32,
    /// Blocks of the ring. At low rates a block is used up per `retire_ms`, however empty.
    pub block_count: u32,
    /// Blocks to make do with if there is no memory for `block_count`: at least 1, at most that.
    pub least_blocks: u32,
    /// Milliseconds after which a partly filled block is handed over.
    pub retire_ms: u32,
    /// Bytes kept of each frame, at least 1.
    pub snaplen: u32,
    /// See frames that are for other hosts, on the interfaces that exist when the ring is opened
    /// ([`Promiscuity`](super::Promiscuity) for those that come later). Without effect on loopback.
    pub promiscuous: bool,
}

impl RingConfig {
    /// Bytes of the whole ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        u64::from(self.block_bytes) * u64::from(self.block_count)
    }

    fn check(&self) -> Result<(), OpenError> {
        let Self { block_bytes, block_count, least_blocks, retire_ms, snaplen, .. } = *self;
        let page = sys::page_bytes();
        let refuse = |key, value, reason: String| Err(OpenError::Setting { key, value, reason });
        if block_bytes == 0 || block_bytes % page != 0 {
            let reason = format!("it must be a multiple of this machine's page size, {page}");
            return refuse("block_bytes", block_bytes, reason);
        }
        for (key, value) in [
            ("block_count", block_count),
            ("least_blocks", least_blocks),
            ("retire_ms", retire_ms),
            ("snaplen", snaplen),
        ] {
            if value == 0 {
                return refuse(key, value, "it must be at least 1".to_owned());
            }
        }
        if least_blocks > block_count {
            let reason = format!("it must be at most block_count, {block_count}");
            return refuse("least_blocks", least_blocks, reason);
        }
        Ok(())
    }
}

/// A ring on one interface, or on all. Made and read by one thread (it is not `Send`): the kernel takes its
/// memory from that thread's NUMA node.
///
/// Life: [`open`](Ring::open), [`start_group`](Ring::start_group) or [`join`](Ring::join) if there
/// are several, [`begin`](Ring::begin) once all have joined, [`next_block`](Ring::next_block) ...,
/// [`reject_all`](Ring::reject_all), further blocks until [`waiting`](Ring::waiting) is 0, drop.
#[derive(Debug)]
pub struct Ring {
    // Drop order: the memory goes before the socket. Either alone would keep the ring in its group.
    blocks: Blocks,
    _mapping: Mapping,
    socket: PacketSocket,
    config: RingConfig,
    scope: Scope,
    filter: Filter,
    /// Frames were let in, and not shut out again.
    is_open: bool,
    statistics: Statistics,
    link: Link,
}

/// The link of a ring, as far as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Up,
    Down,
    Gone,
}

impl Ring {
    /// Makes a ring of `socket`; it rejects every frame until [`begin`](Ring::begin). Needs no
    /// capability.
    ///
    /// # Errors
    /// See [`OpenError`]; each names its step. If there is no memory for all blocks, the ring has
    /// fewer, see [`config`](Ring::config).
    pub fn open(socket: Unbound, config: &RingConfig, scope: &Scope) -> Result<Self, OpenError> {
        config.check()?;
        let (socket, mapping, block_count) = PacketSocket::open(socket, config, scope)?;
        let config = RingConfig { block_count, ..*config };
        let blocks = Blocks {
            start: mapping.start(),
            block_bytes: config.block_bytes as usize,
            block_count: config.block_count as usize,
            next: 0,
            high_water: 0,
            tally: Tally::default(),
        };
        let filter = Filter {
            snaplen: config.snaplen,
            has_loopback: scope.has_loopback(),
            excluded: scope.excluded().to_vec(),
            user: Vec::new(),
        };
        Ok(Self {
            blocks,
            _mapping: mapping,
            socket,
            config,
            scope: scope.clone(),
            filter,
            is_open: false,
            statistics: Statistics::default(),
            link: Link::Up,
        })
    }

    /// Makes a fanout group for up to `members` rings with this ring as its first member.
    ///
    /// # Errors
    /// [`OpenError::System`] at [`Step::Fanout`] or [`Step::FanoutProgram`]; [`OpenError::Down`];
    /// [`OpenError::FilterTooLong`] for too many home networks. What would be wrong with the filter in
    /// [`begin`](Ring::begin) is told here: a member of a group cannot leave it.
    pub fn start_group(&self, fanout: &Fanout, members: u32) -> Result<FanoutGroup, OpenError> {
        self.try_filter()?;
        let program = fanout.program();
        if let Some(program) = &program {
            self.check_length(program)?;
        }
        let group = self.socket.start_group(FanoutGroup::new(fanout, members));
        let group = group.map_err(|error| self.failed_to_join(error))?;
        if let Some(program) = &program {
            let set = self.socket.set_fanout_program(program);
            set.map_err(self.failed(Step::FanoutProgram))?;
        }
        Ok(group)
    }

    /// Joins a fanout group of the same scope.
    ///
    /// # Errors
    /// [`OpenError::System`] at [`Step::Fanout`], for instance if its interface is another one;
    /// [`OpenError::Down`]; what would be wrong with the filter in [`begin`](Ring::begin).
    pub fn join(&self, group: &FanoutGroup) -> Result<(), OpenError> {
        self.try_filter()?;
        self.socket.join(*group).map_err(|error| self.failed_to_join(error))
    }

    /// Lets frames in. Call once, after the last member has joined: members that join later would
    /// take flows over from this ring.
    ///
    /// # Errors
    /// [`OpenError::System`] at [`Step::Statistics`] or [`Step::Filter`];
    /// [`OpenError::FilterTooLong`].
    pub fn begin(&mut self) -> Result<(), OpenError> {
        while self.next_block().is_some() {}
        self.socket.take_statistics().map_err(self.failed(Step::Statistics))?;
        self.statistics = Statistics::default();
        self.blocks.tally = Tally::default();
        self.blocks.high_water = 0;
        self.accept()?;
        self.is_open = true;
        Ok(())
    }

    /// Puts a classic BPF program in front of the ring, in place of the one before; an empty one
    /// lets everything in. Before [`begin`](Ring::begin) it is kept until then. Where it returns a
    /// constant above the ring's `snaplen`, that counts instead; what it computes is left as it is.
    ///
    /// # Errors
    /// [`OpenError::System`] at [`Step::Filter`] if the kernel refuses the program;
    /// [`OpenError::FilterTooLong`]. The filter before stays then.
    pub fn set_filter(&mut self, program: &[sock_filter]) -> Result<(), OpenError> {
        let before = std::mem::replace(&mut self.filter.user, program.to_vec());
        self.renew_filter().inspect_err(|_| self.filter.user = before)
    }

    /// Rejects the frames of these interfaces, in place of those before: [`Scope::All`]'s list.
    ///
    /// # Errors
    /// As [`set_filter`](Ring::set_filter). The list before stays then.
    pub fn set_excluded(&mut self, indexes: &[u32]) -> Result<(), OpenError> {
        let before = std::mem::replace(&mut self.filter.excluded, indexes.to_vec());
        self.renew_filter().inspect_err(|_| self.filter.excluded = before)
    }

    fn renew_filter(&mut self) -> Result<(), OpenError> {
        if self.is_open { self.accept() } else { Ok(()) }
    }

    fn accept(&self) -> Result<(), OpenError> {
        let program = self.filter.program();
        self.check_length(&program)?;
        self.socket.accept(&program).map_err(|error| self.refused(&program, error))
    }

    /// Would the kernel take the filter? Tried on a socket that gets nothing.
    fn try_filter(&self) -> Result<(), OpenError> {
        let program = self.filter.program();
        self.check_length(&program)?;
        let socket = sys::query_socket().map_err(self.failed(Step::Filter))?;
        sys::attach_filter(socket.as_fd(), &program).map_err(|error| self.refused(&program, error))
    }

    fn refused(&self, program: &[sock_filter], error: io::Error) -> OpenError {
        match error.raw_os_error() {
            // The memory for options of a socket has a limit of its own.
            Some(libc::ENOMEM) => self.too_long(program),
            _ => OpenError::at(Step::Filter, self.scope.name(), error),
        }
    }

    fn check_length(&self, program: &[sock_filter]) -> Result<(), OpenError> {
        const MOST_INSTRUCTIONS: usize = libc::BPF_MAXINSNS as usize;
        if program.len() > MOST_INSTRUCTIONS { Err(self.too_long(program)) } else { Ok(()) }
    }

    fn too_long(&self, program: &[sock_filter]) -> OpenError {
        let interface = self.scope.name().to_owned();
        OpenError::FilterTooLong { interface, instructions: program.len() }
    }

    /// A way to silence this ring from another thread. No later change of the filter lets frames in
    /// again.
    #[must_use]
    pub fn rejector(&self) -> Rejector {
        self.socket.rejector()
    }

    /// The inode number of the socket, by which [`creation_order`](super::creation_order) knows it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(nix::sys::stat::fstat(self.as_fd())?.st_ino)
    }

    /// The next block in ring order, if the kernel has released it. Never waits.
    #[inline]
    pub fn next_block(&mut self) -> Option<Block<'_>> {
        // SAFETY: `blocks` describes `_mapping`, which lives as long as `self`; the kernel writes to a
        // block with the status USER only after it was given back.
        unsafe { self.blocks.next() }
    }

    /// Reads the kernel's counters and adds them up. They have 32 bits: call at least once a minute.
    ///
    /// # Errors
    /// The kernel's.
    pub fn refresh_statistics(&mut self) -> io::Result<Statistics> {
        let delta = self.socket.take_statistics()?;
        self.statistics.add(delta);
        Ok(self.statistics())
    }

    /// The counters: the kernel's as of the last [`refresh_statistics`](Ring::refresh_statistics).
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let Tally { full, timed_out, .. } = self.blocks.tally;
        Statistics { blocks_full: full, blocks_timed_out: timed_out, ..self.statistics }
    }

    /// Frames that blocks claimed to hold and that could not be read, since [`begin`](Ring::begin).
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.blocks.tally.corrupt
    }

    /// Blocks in which something could not be read, since [`begin`](Ring::begin). What could be read
    /// in front of it was.
    #[must_use]
    pub fn corrupt_blocks(&self) -> u64 {
        self.blocks.tally.corrupt_blocks
    }

    /// Frames that the kernel put into the ring and that were still there when the account was closed, by
    /// [`settle`](Ring::settle).
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.blocks.tally.unread
    }

    /// Frames that were longer than a block, since [`begin`](Ring::begin).
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.blocks.tally.cut
    }

    /// The most blocks that were in our hands at once since the last call, or are: how close the
    /// ring came to dropping frames.
    pub fn take_high_water(&mut self) -> u32 {
        // SAFETY: as in `next_block`.
        unsafe { self.blocks.note_occupancy() };
        // No more than `block_count`, which is a u32.
        u32::try_from(std::mem::take(&mut self.blocks.high_water)).unwrap_or(u32::MAX)
    }

    /// Closes the account, after [`reject_all`](Ring::reject_all): what still lies in the ring is given
    /// back and counts as unread. What a block that lied about its frames kept from us counts as
    /// corrupt.
    ///
    /// # Errors
    /// The kernel's, if it does not give the last statistics.
    pub fn settle(&mut self) -> io::Result<()> {
        // No more blocks than there are, whatever the kernel goes on to fill.
        for _ in 0..self.config.block_count {
            let Some(block) = self.next_block() else { break };
            let unread = u64::from(block.claimed());
            drop(block);
            self.blocks.tally.unread += unread;
        }
        let stored = self.refresh_statistics()?.stored();
        self.blocks.tally.settle(stored);
        Ok(())
    }

    /// Frames that the kernel put into the ring, by the last
    /// [`refresh_statistics`](Ring::refresh_statistics), and that no block has brought yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.statistics.stored().saturating_sub(self.blocks.tally.claimed)
    }

    /// Lets no further frame in. What lies in a partly filled block comes within `retire_ms`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reject_all(&mut self) -> io::Result<()> {
        self.socket.reject_all()?;
        self.is_open = false;
        Ok(())
    }

    /// What happened to the link since the last call. Clears the error that makes [`wait`] return at
    /// once; call it when [`wait`] says [`Wake::Link`], and now and then to learn of
    /// [`LinkEvent::Up`], which the kernel does not announce.
    pub fn link_event(&mut self) -> Option<LinkEvent> {
        let error = self.socket.take_error().unwrap_or(libc::EBADF);
        // The kernel tells a ring on all interfaces of none of them.
        let Scope::One(interface) = &self.scope else { return None };
        if error == 0 && self.link != Link::Down {
            return None;
        }
        // Of an interface that goes down and is deleted then, the kernel announces only the first.
        if !self.socket.has_interface() {
            let was_told = std::mem::replace(&mut self.link, Link::Gone) == Link::Gone;
            return (!was_told).then_some(LinkEvent::Gone);
        }
        if error != 0 {
            self.link = Link::Down;
            return Some(match error {
                libc::ENETDOWN => LinkEvent::Down,
                other => LinkEvent::Failed(other),
            });
        }
        self.socket.is_up(interface.index).then(|| {
            self.link = Link::Up;
            LinkEvent::Up
        })
    }

    /// The sizes of the ring; `block_count` is what there was memory for.
    #[must_use]
    pub fn config(&self) -> &RingConfig {
        &self.config
    }

    /// What the ring listens to, as it was when the ring was opened.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    fn failed_to_join(&self, error: io::Error) -> OpenError {
        let is_up = match &self.scope {
            Scope::One(interface) => self.socket.is_up(interface.index),
            Scope::All { .. } => true,
        };
        OpenError::at_fanout(self.scope.name(), is_up, error)
    }

    fn failed(&self, step: Step) -> impl Fn(io::Error) -> OpenError {
        let name = self.scope.name().to_owned();
        move |error| OpenError::at(step, &name, error)
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What happened to the link of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The interface went down. The same ring goes on when it comes up again.
    Down,
    /// The interface is up again, and frames come in.
    Up,
    /// The interface was deleted. Drop the ring; one of the same name needs a new ring.
    Gone,
    /// Another error of the socket, by its `errno`.
    Failed(i32),
}

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// A ring has a block.
    Block,
    /// A ring has an error to tell: call [`Ring::link_event`] on each, and look for blocks as well.
    Link,
    /// Nothing, for as long as the timeout or until a signal.
    Idle,
}

/// Waits until one of `rings` has a block or an error, at most for `timeout` (whole milliseconds,
/// rounded up). Watches the first 64 rings; those behind are served when it returns.
///
/// # Errors
/// The kernel's.
pub fn wait<'a>(rings: impl IntoIterator<Item = &'a Ring>, timeout: Duration) -> io::Result<Wake> {
    const MAX_RINGS: usize = 64; // on the stack: a worker does not allocate
    const ERROR: libc::c_short = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; MAX_RINGS];
    let mut used = 0;
    for (entry, ring) in fds.iter_mut().zip(rings) {
        entry.fd = ring.as_fd().as_raw_fd();
        used += 1;
    }
    let fds = &mut fds[..used];
    sys::poll(fds, timeout)?;
    let events = fds.iter().fold(0, |all, entry| all | entry.revents);
    Ok(match events {
        _ if events & ERROR != 0 => Wake::Link,
        0 => Wake::Idle,
        _ => Wake::Block,
    })
}

/// The memory of a ring and the place in it. Tests make it over plain memory.
#[derive(Debug)]
struct Blocks {
    start: NonNull<u8>,
    block_bytes: usize,
    block_count: usize,
    next: usize,
    /// Most blocks from `next` on that were ours at once.
    high_water: usize,
    tally: Tally,
}

impl Blocks {
    /// # Safety
    /// `start` is aligned to 8 and valid for reads and writes of `block_count` blocks while the
    /// returned value lives, and every block follows the rule of [`Block::take`].
    #[inline]
    unsafe fn next(&mut self) -> Option<Block<'_>> {
        // SAFETY: the caller's promise.
        unsafe { self.note_occupancy() };
        // SAFETY: `next` < `block_count`, so the block lies in the memory that the caller promises.
        let start = unsafe { self.start.add(self.next * self.block_bytes) };
        // SAFETY: the caller's promise; `block_bytes` is a multiple of a page; the borrow of `self` in
        // the result keeps a second `Block` from being made.
        let block = unsafe { Block::take(start, self.block_bytes, &mut self.tally) }?;
        self.next += 1;
        if self.next == self.block_count {
            self.next = 0;
        }
        Some(block)
    }

    /// Raises the high-water mark. The kernel releases blocks in ring order, so one look at the first
    /// block that would raise it is enough: one load for each block that is read.
    ///
    /// # Safety
    /// As [`Blocks::next`].
    #[inline]
    unsafe fn note_occupancy(&mut self) {
        while self.high_water < self.block_count {
            let index = (self.next + self.high_water) % self.block_count;
            // SAFETY: `index` < `block_count`, so the block lies in the memory of the caller's promise.
            let is_ours = unsafe { Block::is_released(self.start.add(index * self.block_bytes)) };
            if !is_ours {
                break;
            }
            self.high_water += 1;
        }
    }
}

impl Tally {
    /// What was stored and not read is unread, as the kernel still has it; where blocks have lied, only
    /// what is known to have been left in the ring, and the rest is corrupt.
    fn settle(&mut self, stored: u64) {
        let read = self.claimed.saturating_sub(self.corrupt + self.unread);
        let missing = stored.saturating_sub(read);
        let most = if self.corrupt_blocks == 0 { missing } else { self.unread };
        self.unread = most.min(missing);
        self.corrupt = missing - self.unread;
        self.claimed = stored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afpacket::fake::{FakeFrame, FakeRing};
    use std::sync::atomic::Ordering;
    use std::thread;

    const BLOCK_BYTES: usize = 4096;

    fn blocks(ring: &FakeRing, block_count: usize) -> Blocks {
        Blocks {
            start: ring.block(0),
            block_bytes: BLOCK_BYTES,
            block_count,
            next: 0,
            high_water: 0,
            tally: Tally::default(),
        }
    }

    fn first_frame(blocks: &mut Blocks) -> Option<Vec<u8>> {
        // SAFETY: the fake ring outlives `blocks` in every test, and writes to a block only while its
        // status says that it is the kernel's.
        let block = unsafe { blocks.next() }?;
        block.frames().next().map(|captured| captured.frame.data.to_vec())
    }

    #[test]
    fn blocks_come_in_ring_order_whatever_is_ready() {
        let ring = FakeRing::new(BLOCK_BYTES, 3);
        let mut blocks = blocks(&ring, 3);
        for index in [0_u8, 1, 2] {
            ring.fill(usize::from(index), &[FakeFrame::whole(&[index])]);
        }
        ring.hand_over(1);
        assert_eq!(first_frame(&mut blocks), None);
        ring.hand_over(0);
        assert_eq!(first_frame(&mut blocks), Some(vec![0]));
        assert_eq!(first_frame(&mut blocks), Some(vec![1]));
        assert_eq!(first_frame(&mut blocks), None);
        ring.hand_over(2);
        ring.hand_over(0);
        assert_eq!(first_frame(&mut blocks), Some(vec![2]));
        assert_eq!(first_frame(&mut blocks), Some(vec![0]));
        assert_eq!(blocks.tally.claimed, 4);
    }

    #[test]
    fn high_water_is_the_most_blocks_that_waited() {
        let ring = FakeRing::new(BLOCK_BYTES, 3);
        let mut blocks = blocks(&ring, 3);
        let hand_over = |indexes: &[usize]| {
            for index in indexes {
                ring.fill(*index, &[FakeFrame::whole(b"frame")]);
                ring.hand_over(*index);
            }
        };
        assert_eq!((first_frame(&mut blocks), blocks.high_water), (None, 0));
        hand_over(&[0]);
        assert!(first_frame(&mut blocks).is_some());
        assert_eq!(blocks.high_water, 1);
        hand_over(&[1, 2, 0]);
        while first_frame(&mut blocks).is_some() {}
        assert_eq!(blocks.high_water, 3);
        blocks.high_water = 0;
        hand_over(&[1, 2]);
        // SAFETY: as in `first_frame`.
        unsafe { blocks.note_occupancy() };
        assert_eq!(blocks.high_water, 2);
    }

    #[test]
    fn capture_goes_on_behind_blocks_that_cannot_be_read() {
        const COUNT: usize = 8 + std::mem::offset_of!(libc::tpacket_hdr_v1, num_pkts);
        const FIRST: usize = 8 + std::mem::offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt);
        let ring = FakeRing::new(BLOCK_BYTES, 3);
        let mut blocks = blocks(&ring, 3);
        for index in 0..3 {
            ring.fill(index, &[FakeFrame::whole(b"first"), FakeFrame::whole(b"second")]);
        }
        ring.put(0, COUNT, u32::MAX);
        ring.put(1, FIRST, u32::MAX);
        (0..3).for_each(|index| ring.hand_over(index));
        let mut read = 0;
        for _ in 0..3 {
            // SAFETY: as in `first_frame`.
            read += unsafe { blocks.next() }.unwrap().frames().count() as u64;
        }
        assert_eq!((read, blocks.tally.corrupt, blocks.tally.corrupt_blocks), (2, 2, 2));
        // The kernel stored six frames: what is not read is corrupt, no more and no less.
        blocks.tally.settle(6);
        assert_eq!(read + blocks.tally.corrupt, 6);
        (0..3).for_each(|index| {
            assert_eq!(ring.status(index).load(Ordering::Acquire), libc::TP_STATUS_KERNEL);
        });
    }

    #[test]
    fn account_is_exact_though_blocks_lied() {
        // Stored, claimed, corrupt by the blocks' own word; corrupt in the end.
        for (stored, claimed, corrupt, settled) in
            [(10, 10, 0, 0), (10, 10, 3, 3), (10, 7, 0, 3), (10, 12, 2, 0), (10, 12, 4, 2)]
        {
            let mut tally = Tally { claimed, corrupt, corrupt_blocks: 1, ..Tally::default() };
            tally.settle(stored);
            assert_eq!((tally.corrupt, tally.unread), (settled, 0));
            assert_eq!(tally.claimed, stored);
        }
    }

    #[test]
    fn what_was_left_in_the_ring_is_unread_and_not_corrupt() {
        // Stored, claimed, and of that left in blocks; corrupt by the blocks' own word, and how many lied;
        // unread and corrupt in the end.
        for (stored, claimed, left, (corrupt, corrupt_blocks), expected) in [
            (10, 10, 4, (0, 0), (4, 0)),
            // Two more lie in a block that the kernel has not handed over.
            (10, 8, 4, (0, 0), (6, 0)),
            (10, 8, 0, (0, 0), (2, 0)),
            // A block lied: it may have held what is missing.
            (10, 8, 4, (1, 1), (4, 3)),
            (10, 14, 4, (1, 1), (1, 0)),
        ] {
            let unread = left;
            let mut tally = Tally { claimed, corrupt, corrupt_blocks, unread, ..Tally::default() };
            let read = claimed - left - corrupt;
            tally.settle(stored);
            assert_eq!((tally.unread, tally.corrupt), expected);
            assert_eq!(read + tally.unread + tally.corrupt, stored);
        }
    }

    #[test]
    fn a_kernel_on_another_thread_and_a_reader_never_disturb_each_other() {
        const ROUNDS: u32 = 20_000;
        let ring = FakeRing::new(BLOCK_BYTES, 2);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let index = round as usize % 2;
                    while ring.status(index).load(Ordering::Acquire) != libc::TP_STATUS_KERNEL {
                        thread::yield_now();
                    }
                    let frame = FakeFrame::whole(&round.to_ne_bytes().repeat(1 + index));
                    ring.fill(index, &vec![frame; 1 + round as usize % 5]);
                    ring.hand_over(index);
                }
            });
            let mut blocks = blocks(&ring, 2);
            for round in 0..ROUNDS {
                let block = loop {
                    // SAFETY: as in `first_frame`.
                    match unsafe { blocks.next() } {
                        Some(block) => break block,
                        None => thread::yield_now(),
                    }
                };
                assert_eq!(block.frames().count(), 1 + round as usize % 5);
                for captured in block.frames() {
                    assert_eq!(captured.frame.data[..4], round.to_ne_bytes());
                }
            }
            assert_eq!(blocks.tally.corrupt, 0);
        });
    }

    #[test]
    fn sizes_that_no_kernel_takes_are_refused_by_name() {
        let good = RingConfig {
            block_bytes: sys::page_bytes(),
            block_count: 2,
            least_blocks: 1,
            retire_ms: 1,
            snaplen: 1,
            promiscuous: false,
        };
        assert!(good.check().is_ok());
        let cases = [
            ("block_bytes", RingConfig { block_bytes: good.block_bytes + 1000, ..good }),
            ("block_bytes", RingConfig { block_bytes: 0, ..good }),
            ("block_count", RingConfig { block_count: 0, ..good }),
            ("least_blocks", RingConfig { least_blocks: 0, ..good }),
            ("least_blocks", RingConfig { least_blocks: 3, ..good }),
            ("retire_ms", RingConfig { retire_ms: 0, ..good }),
            ("snaplen", RingConfig { snaplen: 0, ..good }),
        ];
        for (name, config) in cases {
            let Err(OpenError::Setting { key, .. }) = config.check() else { panic!("{name}") };
            assert_eq!(key, name);
        }
    }
}
