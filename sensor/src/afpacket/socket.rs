//! A packet socket with its ring, set up in the one order that lets no foreign frame in.
//!
//! The socket is made with protocol 0 and so receives nothing until `bind`; a filter that rejects
//! everything is attached before that. So the ring is empty and its statistics are zero when
//! [`Ring::begin`](super::Ring::begin) exchanges the filter. Nothing after `socket(2)` needs a capability.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use libc::{
    SOL_PACKET, c_int, fanout_args, packet_mreq, sock_filter, sock_fprog, sockaddr_ll,
    tpacket_req3, tpacket_stats_v3,
};

use super::error::{OpenError, Step};
use super::fanout::{FanoutGroup, USUAL_MEMBERS};
use super::filter;
use super::ring::RingConfig;
use super::scope::Scope;
use super::sys::{self, InterfaceRequest, Mapping};

/// Room in front of each frame for a VLAN tag that export puts back.
const VLAN_TAG_BYTES: c_int = 4;

/// Reserved by IANA. A socket that was bound cannot be unbound on all kernels; by this protocol it gets
/// nothing, and costs the frames of others nothing.
const PROTOCOL_OF_NO_FRAME: u16 = 0xffff;

/// The request that gives a ring back.
const NO_RING: tpacket_req3 = tpacket_req3 {
    tp_block_size: 0,
    tp_block_nr: 0,
    tp_frame_size: 0,
    tp_frame_nr: 0,
    tp_retire_blk_tov: 0,
    tp_sizeof_priv: 0,
    tp_feature_req_word: 0,
};

/// Frames have no fixed size in TPACKET_V3; the kernel only checks that this divides a block.
const NOMINAL_FRAME_BYTES: u32 = 2048;

// The layouts of include/uapi/linux/{if_packet,filter}.h, which are stable interfaces of the kernel.
const _: () = {
    assert!(size_of::<tpacket_req3>() == 28 && offset_of!(tpacket_req3, tp_retire_blk_tov) == 16);
    assert!(size_of::<tpacket_stats_v3>() == 12);
    assert!(offset_of!(tpacket_stats_v3, tp_drops) == 4);
    assert!(offset_of!(tpacket_stats_v3, tp_freeze_q_cnt) == 8);
    assert!(size_of::<sockaddr_ll>() == 20 && offset_of!(sockaddr_ll, sll_protocol) == 2);
    assert!(offset_of!(sockaddr_ll, sll_ifindex) == 4);
    assert!(size_of::<packet_mreq>() == 16 && offset_of!(packet_mreq, mr_type) == 4);
    assert!(size_of::<fanout_args>() == 8 && offset_of!(fanout_args, max_num_members) == 4);
    assert!(size_of::<sock_filter>() == 8 && offset_of!(sock_filter, k) == 4);
    assert!(size_of::<sock_fprog>() == 16 && offset_of!(sock_fprog, filter) == 8);
};

/// A packet socket that belongs to no interface yet (protocol 0), and so receives nothing. To make
/// one needs CAP_NET_RAW; to make a ring of it needs no capability.
#[derive(Debug)]
pub struct Unbound {
    fd: Arc<OwnedFd>,
}

impl Unbound {
    /// Makes one in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`OpenError::Permission`], [`OpenError::Files`], [`OpenError::NoPacketSockets`], or
    /// [`OpenError::System`] at [`Step::Socket`].
    pub fn new() -> Result<Self, OpenError> {
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW).map_err(OpenError::at_socket)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// The same socket once more, to be kept while a ring is made of it: if nothing comes of that,
    /// another can be made of it after a [`reset`](Unbound::reset). Drop it once the ring has begun or
    /// joined: it would keep a ring that is dropped in its fanout group.
    #[must_use]
    pub fn spare(&self) -> Self {
        Self { fd: Arc::clone(&self.fd) }
    }

    /// Takes back what was done to the socket to make a ring of it on `scope`, after that ring was
    /// dropped: it can serve again.
    ///
    /// # Errors
    /// The kernel's. The socket cannot serve again: it is in a fanout group, say, which it leaves only
    /// by being closed.
    pub fn reset(&self, scope: &Scope) -> io::Result<()> {
        let socket = PacketSocket { fd: Arc::clone(&self.fd), is_silenced: Arc::default() };
        socket.reject_all()?;
        // In this order: a member of a group is refused here, and loses nothing.
        socket.bind(0, PROTOCOL_OF_NO_FRAME)?;
        socket.request_ring(NO_RING)?;
        for index in scope.to_be_promiscuous()? {
            // It may not have been asked for, or be gone with its interface.
            let _ = promiscuous(socket.as_fd(), libc::PACKET_DROP_MEMBERSHIP, index);
        }
        socket.take_error()?;
        Ok(())
    }
}

#[cfg(test)]
impl Unbound {
    /// Any file in the place of a socket: for tests of those who pass sockets on.
    pub(crate) fn of_file() -> Self {
        let file = std::fs::File::open("/dev/null").unwrap();
        Self { fd: Arc::new(file.into()) }
    }
}

/// A reserve of unbound sockets, shared by all threads of the process: rings are made of them after
/// the capabilities are gone.
#[derive(Clone, Debug, Default)]
pub struct Reserve {
    sockets: Arc<Mutex<Vec<Unbound>>>,
}

impl Reserve {
    /// A reserve of `count` sockets.
    ///
    /// # Errors
    /// As [`Unbound::new`].
    pub fn fill(count: usize) -> Result<Self, OpenError> {
        let sockets = (0..count).map(|_| Unbound::new()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { sockets: Arc::new(Mutex::new(sockets)) })
    }

    /// One of them, if any is left. The first that was made comes first: members of a fanout group
    /// stand in the order in which their sockets were made after the link was down.
    #[must_use]
    pub fn take(&self) -> Option<Unbound> {
        let mut sockets = self.lock();
        (!sockets.is_empty()).then(|| sockets.remove(0))
    }

    /// Takes back one that no ring could be made of. It comes first again.
    pub fn give_back(&self, socket: Unbound) {
        self.lock().insert(0, socket);
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Unbound>> {
        // Nothing panics while it is locked; whatever happened, the list is whole.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bound packet socket.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: Arc<OwnedFd>,
    /// Another thread silenced the ring.
    is_silenced: Arc<AtomicBool>,
}

impl PacketSocket {
    /// Sets up, maps and binds; gives the number of blocks that there was memory for. Nothing is
    /// received before another filter is attached.
    pub(super) fn open(
        socket: Unbound,
        config: &RingConfig,
        scope: &Scope,
    ) -> Result<(Self, Mapping, u32), OpenError> {
        let failed = |step| move |error| OpenError::at(step, scope.name(), error);
        let socket = Self { fd: socket.fd, is_silenced: Arc::default() };
        let set = |name, value: c_int| sys::set_option(socket.as_fd(), SOL_PACKET, name, &value);
        set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as c_int)
            .map_err(failed(Step::Version))?;
        set(libc::PACKET_RESERVE, VLAN_TAG_BYTES).map_err(failed(Step::Reserve))?;
        set(libc::PACKET_TIMESTAMP, libc::SOF_TIMESTAMPING_SOFTWARE as c_int)
            .map_err(failed(Step::Timestamp))?;
        reject_all(&socket.fd).map_err(failed(Step::Filter))?;
        let (mapping, block_count) = socket.make_ring(config, scope)?;
        if config.promiscuous {
            socket.make_promiscuous(scope).map_err(failed(Step::Promiscuous))?;
        }
        socket.bind(scope.index(), libc::ETH_P_ALL as u16).map_err(failed(Step::Bind))?;
        Ok((socket, mapping, block_count))
    }

    fn make_promiscuous(&self, scope: &Scope) -> io::Result<()> {
        for index in scope.to_be_promiscuous()? {
            let made = promiscuous(self.as_fd(), libc::PACKET_ADD_MEMBERSHIP, index);
            let is_gone = made.as_ref().is_err_and(|error| {
                // Of all interfaces, one may have been deleted since they were listed.
                matches!(scope, Scope::All { .. }) && error.raw_os_error() == Some(libc::ENODEV)
            });
            if !is_gone {
                made?;
            }
        }
        Ok(())
    }

    /// Makes and maps the ring, with fewer blocks if there is no memory for all.
    fn make_ring(&self, config: &RingConfig, scope: &Scope) -> Result<(Mapping, u32), OpenError> {
        let made = shrinking(config.block_count, config.least_blocks, |block_count| {
            self.request_ring(request(config, block_count))
                .map_err(|error| (Step::RxRing, error))?;
            let bytes = u64::from(config.block_bytes) * u64::from(block_count);
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            Mapping::new(self.as_fd(), length).map_err(|error| {
                // The kernel takes the next size only after the ring before is gone.
                match self.request_ring(NO_RING) {
                    Ok(()) => (Step::Map, error),
                    Err(error) => (Step::RxRing, error),
                }
            })
        });
        made.map_err(|(step, error)| {
            let block = u64::from(config.block_bytes);
            let (bytes, least_bytes) =
                (config.ring_bytes(), block * u64::from(config.least_blocks));
            match is_memory(&error) {
                true => {
                    OpenError::Memory { interface: scope.name().to_owned(), bytes, least_bytes }
                }
                false => OpenError::at(step, scope.name(), error),
            }
        })
    }

    /// Makes a ring, or gives it back.
    fn request_ring(&self, request: tpacket_req3) -> io::Result<()> {
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_RX_RING, &request)
    }

    fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
        let address = sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: protocol.to_be(),
            sll_ifindex: signed(index),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        sys::bind(self.as_fd(), &address)
    }

    /// Joins a new group whose id nobody has, and returns it with that id.
    pub(super) fn start_group(&self, group: FanoutGroup) -> io::Result<FanoutGroup> {
        self.fanout(group.start_argument())?;
        let answer: c_int = sys::option(self.as_fd(), SOL_PACKET, libc::PACKET_FANOUT)?;
        // The id stands in the lower half.
        Ok(group.with_id((answer.cast_unsigned() & 0xffff) as u16))
    }

    /// Sets the program by which the group deals that this socket is a member of.
    pub(super) fn set_fanout_program(&self, program: &[sock_filter]) -> io::Result<()> {
        sys::set_fanout_program(self.as_fd(), program)
    }

    /// Joins a group.
    pub(super) fn join(&self, group: FanoutGroup) -> io::Result<()> {
        self.fanout(group.join_argument())
    }

    fn fanout(&self, argument: fanout_args) -> io::Result<()> {
        let fanout_args { id, type_flags, max_num_members } = argument;
        if max_num_members > USUAL_MEMBERS {
            return sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_FANOUT, &argument);
        }
        // Older kernels take this form alone.
        let word = (u32::from(type_flags) << 16 | u32::from(id)).cast_signed();
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_FANOUT, &word)
    }

    /// From now on no frame enters the ring, nor any statistics.
    pub(super) fn reject_all(&self) -> io::Result<()> {
        reject_all(&self.fd)
    }

    /// From now on the frames enter the ring that `program` accepts, unless it was silenced.
    pub(super) fn accept(&self, program: &[sock_filter]) -> io::Result<()> {
        sys::attach_filter(self.as_fd(), program)?;
        // Whoever silences it says so first: either this sees it, or their filter comes after this one.
        if self.is_silenced.load(Ordering::SeqCst) { self.reject_all() } else { Ok(()) }
    }

    /// A way to silence the ring from another thread.
    pub(super) fn rejector(&self) -> Rejector {
        Rejector { fd: Arc::downgrade(&self.fd), is_silenced: Arc::clone(&self.is_silenced) }
    }

    /// Counters since the last call, which this one clears.
    pub(super) fn take_statistics(&self) -> io::Result<tpacket_stats_v3> {
        sys::option(self.as_fd(), SOL_PACKET, libc::PACKET_STATISTICS)
    }

    /// The pending error, which this call clears; 0 if there is none.
    pub(super) fn take_error(&self) -> io::Result<c_int> {
        sys::take_error(self.fd.as_ref())
    }

    /// The interface still exists. The kernel unties a socket from one that was deleted, and does not
    /// tie it to another of the same name.
    pub(super) fn has_interface(&self) -> bool {
        sys::bound_address(self.as_fd()).is_ok_and(|address| address.sll_ifindex > 0)
    }

    /// The interface `index` is administratively up, under whatever name it has now.
    pub(super) fn is_up(&self, index: u32) -> bool {
        let flags = sys::interface_name(self.as_fd(), signed(index))
            .and_then(|name| sys::interface(self.as_fd(), &name, InterfaceRequest::Flags));
        flags.is_ok_and(|flags| flags & libc::IFF_UP != 0)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Asks interfaces for all frames that pass them, those to other hosts too. Once anybody has asked, an
/// interface shows them to every packet socket, so one of these serves all rings of a process. Ends when
/// it is dropped. Receives nothing itself.
#[derive(Debug)]
pub struct Promiscuity {
    socket: Unbound,
}

impl Promiscuity {
    /// Asks nobody yet. Needs CAP_NET_RAW, and nothing afterwards.
    ///
    /// # Errors
    /// As [`Unbound::new`].
    pub fn new() -> Result<Self, OpenError> {
        Ok(Self { socket: Unbound::new()? })
    }

    /// Asks the interface `index`, until it is deleted. It is counted how often.
    ///
    /// # Errors
    /// The kernel's; `ENODEV` if there is none.
    pub fn begin(&self, index: u32) -> io::Result<()> {
        promiscuous(self.socket.fd.as_fd(), libc::PACKET_ADD_MEMBERSHIP, index)
    }

    /// Takes back that it was asked once; nothing happens if it was not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&self, index: u32) -> io::Result<()> {
        promiscuous(self.socket.fd.as_fd(), libc::PACKET_DROP_MEMBERSHIP, index)
    }
}

/// All frames of the interface `index`, or not, until the socket is closed or it is deleted.
fn promiscuous(socket: BorrowedFd<'_>, change: c_int, index: u32) -> io::Result<()> {
    let membership = packet_mreq {
        mr_ifindex: signed(index),
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    sys::set_option(socket, SOL_PACKET, change, &membership)
}

/// The right to silence a ring from another thread, and nothing else. Keeps no ring alive: a socket
/// that lives on would stay in its fanout group.
#[derive(Clone, Debug)]
pub struct Rejector {
    fd: Weak<OwnedFd>,
    is_silenced: Arc<AtomicBool>,
}

impl Rejector {
    /// Lets no further frame into the ring, if it still exists, whatever its own thread does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reject_all(&self) -> io::Result<()> {
        self.is_silenced.store(true, Ordering::SeqCst);
        self.fd.upgrade().map_or(Ok(()), |fd| reject_all(&fd))
    }
}

/// The request for a ring of `block_count` blocks.
const fn request(config: &RingConfig, block_count: u32) -> tpacket_req3 {
    tpacket_req3 {
        tp_block_size: config.block_bytes,
        tp_block_nr: block_count,
        tp_frame_size: NOMINAL_FRAME_BYTES,
        tp_frame_nr: (config.block_bytes / NOMINAL_FRAME_BYTES).saturating_mul(block_count),
        tp_retire_blk_tov: config.retire_ms,
        ..NO_RING
    }
}

fn reject_all(fd: &OwnedFd) -> io::Result<()> {
    sys::attach_filter(fd.as_fd(), &filter::reject_all())
}

/// Tries sizes from `most` down to `least`, a sixteenth less each time, until there is memory.
fn shrinking<T>(
    most: u32,
    least: u32,
    mut attempt: impl FnMut(u32) -> Result<T, (Step, io::Error)>,
) -> Result<(T, u32), (Step, io::Error)> {
    let mut count = most;
    loop {
        match attempt(count) {
            Ok(made) => return Ok((made, count)),
            Err((_, error)) if is_memory(&error) && count > least => {
                count = (count - (count / 16).max(1)).max(least);
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN))
}

/// An interface index as the kernel's calls take it. Indexes are positive `int`s.
fn signed(index: u32) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(most: u32, least: u32, room: u32) -> (Option<u32>, Vec<u32>) {
        let mut tried = Vec::new();
        let made = shrinking(most, least, |count| {
            tried.push(count);
            let full = io::Error::from_raw_os_error(libc::ENOMEM);
            if count > room { Err((Step::RxRing, full)) } else { Ok(()) }
        });
        (made.ok().map(|((), count)| count), tried)
    }

    #[test]
    fn ring_shrinks_step_by_step_and_not_below_its_floor() {
        assert_eq!(attempts(256, 16, 256), (Some(256), vec![256]));
        let (got, tried) = attempts(256, 16, 200);
        assert_eq!((got, tried), (Some(198), vec![256, 240, 225, 211, 198]));
        assert_eq!(attempts(3, 1, 1), (Some(1), vec![3, 2, 1]));
        assert_eq!(attempts(20, 18, 1), (None, vec![20, 19, 18]));
        let (got, tried) = attempts(64, 64, 1);
        assert_eq!((got, tried), (None, vec![64]));
    }

    #[test]
    fn other_errors_end_the_attempts() {
        let mut count = 0;
        let refused = shrinking(9, 1, |_| -> Result<(), _> {
            count += 1;
            Err((Step::RxRing, io::Error::from_raw_os_error(libc::EINVAL)))
        });
        assert!(refused.is_err());
        assert_eq!(count, 1);
    }

    #[test]
    fn empty_reserve_gives_nothing() {
        let reserve = Reserve::default();
        assert_eq!((reserve.take().is_none(), reserve.left()), (true, 0));
    }
}
