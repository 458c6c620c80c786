//! A packet socket with its ring, set up in the one order that lets no foreign frame in.
//!
//! The socket is made with protocol 0 and so receives nothing until `bind`; a filter that rejects
//! everything is attached before that. So the ring is empty and its statistics are zero when
//! [`accept`](PacketSocket::accept) exchanges the filter.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{SOL_PACKET, c_int, sockaddr_ll, tpacket_req3};

use super::error::{OpenError, Step};
use super::fanout::FanoutGroup;
use super::filter;
use super::interface::Interface;
use super::ring::RingConfig;
use super::sys::{self, InterfaceRequest, Mapping};

/// Room in front of each frame for a VLAN tag that export puts back.
const VLAN_TAG_BYTES: c_int = 4;

/// Frames have no fixed size in TPACKET_V3; the kernel only checks that this divides a block.
const NOMINAL_FRAME_BYTES: u32 = 2048;

const _: () = assert!(size_of::<tpacket_req3>() == 28 && size_of::<sockaddr_ll>() == 20);
const _: () = assert!(offset_of!(sockaddr_ll, sll_pkttype) == 10);

/// A bound packet socket.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens, sets up, maps and binds. Nothing is received before [`PacketSocket::accept`].
    pub(super) fn open(
        config: &RingConfig,
        interface: &Interface,
    ) -> Result<(Self, Mapping), OpenError> {
        let failed = |step| move |error| OpenError::at(step, &interface.name, error);
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW).map_err(failed(Step::Socket))?;
        let socket = Self { fd };
        let set = |name, value: c_int| sys::set_option(socket.as_fd(), SOL_PACKET, name, &value);
        set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as c_int)
            .map_err(failed(Step::Version))?;
        set(libc::PACKET_RESERVE, VLAN_TAG_BYTES).map_err(failed(Step::Reserve))?;
        set(libc::PACKET_TIMESTAMP, libc::SOF_TIMESTAMPING_SOFTWARE as c_int)
            .map_err(failed(Step::Timestamp))?;
        if interface.is_loopback {
            set(libc::PACKET_IGNORE_OUTGOING, 1).map_err(failed(Step::IgnoreOutgoing))?;
        }
        socket.reject_all().map_err(failed(Step::Filter))?;
        let mapping = socket.make_ring(config, interface)?;
        if config.promiscuous && !interface.is_loopback {
            socket.be_promiscuous(interface.index).map_err(failed(Step::Promiscuous))?;
        }
        socket.bind(interface.index).map_err(failed(Step::Bind))?;
        Ok((socket, mapping))
    }

    fn make_ring(&self, config: &RingConfig, interface: &Interface) -> Result<Mapping, OpenError> {
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
        let name = &interface.name;
        let bytes = config.ring_bytes();
        let failed = |step, error: io::Error| match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EAGAIN) => {
                OpenError::Memory { interface: name.clone(), bytes }
            }
            _ => OpenError::at(step, name, error),
        };
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_RX_RING, &request)
            .map_err(|error| failed(Step::RxRing, error))?;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        Mapping::new(self.as_fd(), length).map_err(|error| failed(Step::Map, error))
    }

    fn be_promiscuous(&self, index: u32) -> io::Result<()> {
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

    /// Joins a new group whose id nobody has, and returns it.
    pub(super) fn start_group(&self, ignores_outgoing: bool) -> io::Result<FanoutGroup> {
        self.fanout(FanoutGroup::start_argument(ignores_outgoing))?;
        let answer: c_int = sys::option(self.as_fd(), SOL_PACKET, libc::PACKET_FANOUT)?;
        let [low, high, ..] = answer.to_le_bytes();
        Ok(FanoutGroup::new(u16::from_le_bytes([low, high]), ignores_outgoing))
    }

    /// Joins a group.
    pub(super) fn join(&self, group: FanoutGroup) -> io::Result<()> {
        self.fanout(group.join_argument())
    }

    fn fanout(&self, argument: u32) -> io::Result<()> {
        sys::set_option(self.as_fd(), SOL_PACKET, libc::PACKET_FANOUT, &argument.cast_signed())
    }

    /// From now on no frame enters the ring, nor any statistics.
    pub(super) fn reject_all(&self) -> io::Result<()> {
        sys::attach_filter(self.as_fd(), &filter::reject_all())
    }

    /// From now on every frame enters the ring, cut to `snaplen` bytes.
    pub(super) fn accept(&self, snaplen: u32) -> io::Result<()> {
        sys::attach_filter(self.as_fd(), &filter::accept(snaplen))
    }

    /// From now on the frames that a program lets in enter the ring.
    pub(super) fn filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        sys::attach_filter(self.as_fd(), program)
    }

    /// Counters since the last call, which this one clears.
    pub(super) fn take_statistics(&self) -> io::Result<libc::tpacket_stats_v3> {
        sys::option(self.as_fd(), SOL_PACKET, libc::PACKET_STATISTICS)
    }

    /// The pending error, which this call clears; 0 if there is none.
    pub(super) fn take_error(&self) -> io::Result<c_int> {
        sys::take_error(&self.fd)
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

/// An interface index as the kernel's calls take it. Indexes are positive `int`s.
fn signed(index: u32) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}
