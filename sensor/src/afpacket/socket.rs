//! A packet socket with its ring, set up in the one order that lets no foreign frame in.
//!
//! The socket is made with protocol 0 and so receives nothing until `bind`; a filter that rejects
//! everything is attached before that. So the ring is empty and its statistics are zero when
//! [`accept`](PacketSocket::accept) exchanges the filter. Nothing after `socket(2)` needs a capability.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use libc::{SOL_PACKET, c_int, fanout_args, sock_filter, sockaddr_ll, tpacket_req3};

use super::error::{OpenError, Step};
use super::fanout::{FanoutGroup, USUAL_MEMBERS};
use super::filter;
use super::ring::RingConfig;
use super::scope::Scope;
use super::sys::{self, InterfaceRequest, Mapping};

/// Room in front of each frame for a VLAN tag that export puts back.
const VLAN_TAG_BYTES: c_int = 4;

/// Frames have no fixed size in TPACKET_V3; the kernel only checks that this divides a block.
const NOMINAL_FRAME_BYTES: u32 = 2048;

const _: () = assert!(size_of::<tpacket_req3>() == 28 && size_of::<sockaddr_ll>() == 20);
const _: () = assert!(offset_of!(sockaddr_ll, sll_pkttype) == 10);

/// A packet socket that belongs to no interface yet (protocol 0), and so receives nothing. To make
/// one needs CAP_NET_RAW; to make a ring of it needs no capability.
#[derive(Debug)]
pub struct Unbound {
    fd: OwnedFd,
}

impl Unbound {
    /// Makes one in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`OpenError::Permission`], or [`OpenError::System`] at [`Step::Socket`].
    pub fn new() -> Result<Self, OpenError> {
        match sys::socket(libc::AF_PACKET, libc::SOCK_RAW) {
            Ok(fd) => Ok(Self { fd }),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => OpenError::Permission,
                _ => OpenError::at(Step::Socket, "any interface", error),
            }),
        }
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
}

impl PacketSocket {
    /// Sets up, maps and binds. Nothing is received before [`PacketSocket::accept`].
    pub(super) fn open(
        socket: Unbound,
        config: &RingConfig,
        scope: &Scope,
    ) -> Result<(Self, Mapping), OpenError> {
        let failed = |step| move |error| OpenError::at(step, scope.name(), error);
        let socket = Self { fd: Arc::new(socket.fd) };
        let set = |name, value: c_int| sys::set_option(socket.as_fd(), SOL_PACKET, name, &value);
        set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as c_int)
            .map_err(failed(Step::Version))?;
        set(libc::PACKET_RESERVE, VLAN_TAG_BYTES).map_err(failed(Step::Reserve))?;
        set(libc::PACKET_TIMESTAMP, libc::SOF_TIMESTAMPING_SOFTWARE as c_int)
            .map_err(failed(Step::Timestamp))?;
        reject_all(&socket.fd).map_err(failed(Step::Filter))?;
        let mapping = socket.make_ring(config, scope)?;
        if config.promiscuous {
            for index in scope.to_be_promiscuous() {
                match socket.be_promiscuous(index) {
                    // Of all interfaces, one may be deleted meanwhile.
                    Err(error)
                        if matches!(scope, Scope::All { .. })
                            && error.raw_os_error() == Some(libc::ENODEV) => {}
                    other => other.map_err(failed(Step::Promiscuous))?,
                }
            }
        }
        socket.bind(scope.index()).map_err(failed(Step::Bind))?;
        Ok((socket, mapping))
    }

    fn make_ring(&self, config: &RingConfig, scope: &Scope) -> Result<Mapping, OpenError> {
        let request = tpacket_req3 {
            tp_block_size: config.block_bytes,
            tp_block_nr: config.block_count,
            tp_frame_size: NOMINAL_FRAME_BYTES,
            tp_frame_nr: (config.block_bytes / NOMINAL_FRAME_BYTES)
                .saturating_mul(config.block_count),
            tp_retire_blk_tov: config.retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let name = scope.name();
        let bytes = config.ring_bytes();
        let failed = |step, error: io::Error| match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EAGAIN) => {
                OpenError::Memory { interface: name.to_owned(), bytes }
            }
            _ => OpenError::at(step, name, error),
        };
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_RX_RING, &request)
            .map_err(|error| failed(Step::RxRing, error))?;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        Mapping::new(self.as_fd(), length).map_err(|error| failed(Step::Map, error))
    }

    /// Sees all frames of the interface from now on, until the socket is closed or it is deleted.
    pub(super) fn be_promiscuous(&self, index: u32) -> io::Result<()> {
        let membership = libc::packet_mreq {
            mr_ifindex: signed(index),
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
    }

    fn bind(&self, index: u32) -> io::Result<()> {
        let address = sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
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

    /// From now on the frames enter the ring that `program` accepts.
    pub(super) fn accept(&self, program: &[sock_filter]) -> io::Result<()> {
        sys::attach_filter(self.as_fd(), program)
    }

    /// A way to silence the ring from another thread.
    pub(super) fn rejector(&self) -> Rejector {
        Rejector { fd: Arc::downgrade(&self.fd) }
    }

    /// Counters since the last call, which this one clears.
    pub(super) fn take_statistics(&self) -> io::Result<libc::tpacket_stats_v3> {
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

    /// The interface `name` is administratively up.
    pub(super) fn is_up(&self, name: &str) -> bool {
        sys::interface(self.as_fd(), name, InterfaceRequest::Flags)
            .is_ok_and(|flags| flags & libc::IFF_UP != 0)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The right to silence a ring from another thread, and nothing else. Keeps no ring alive: a socket
/// that lives on would stay in its fanout group.
#[derive(Clone, Debug)]
pub struct Rejector {
    fd: Weak<OwnedFd>,
}

impl Rejector {
    /// Lets no further frame into the ring, if it still exists.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reject_all(&self) -> io::Result<()> {
        self.fd.upgrade().map_or(Ok(()), |fd| reject_all(&fd))
    }
}

fn reject_all(fd: &OwnedFd) -> io::Result<()> {
    sys::attach_filter(fd.as_fd(), &filter::reject_all())
}

/// An interface index as the kernel's calls take it. Indexes are positive `int`s.
fn signed(index: u32) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}
