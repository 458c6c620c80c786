//! Fanout groups: rings that share the frames of one interface, or of all.

use std::net::IpAddr;

use libc::{
    PACKET_FANOUT_CBPF, PACKET_FANOUT_CPU, PACKET_FANOUT_FLAG_UNIQUEID, PACKET_FANOUT_HASH,
    PACKET_FANOUT_QM, fanout_args, sock_filter,
};

use super::peer;

/// How the kernel deals frames to the rings of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fanout {
    /// By a symmetric hash of addresses and ports: both directions of a flow reach the same ring.
    /// Fragments go by the addresses alone.
    Hash,
    /// By the CPU that took the frame from the interface, modulo the number of rings. Join in CPU
    /// order, and make the sockets in that order: after the link was down the kernel links them anew,
    /// in the order in which they were made.
    Cpu,
    /// By the interface's receive queue, modulo the number of rings. Order as with [`Fanout::Cpu`].
    Queue,
    /// By the address of the peer, so that all frames of one source reach one ring. What is not IP
    /// goes to the first ring.
    Peer(PeerRule),
}

/// Which of the two addresses of a frame is the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRule {
    /// On a host's own interface: the source of incoming frames, the target of outgoing ones. On a
    /// tap, where all frames come in, the two directions of a flow would part.
    Direction,
    /// On a tap: the address that is in none of these networks (address and prefix length). If both
    /// are, or neither, the pair of addresses decides.
    Outside(Vec<(IpAddr, u8)>),
}

impl Fanout {
    fn kind(&self) -> u32 {
        match self {
            Self::Hash => PACKET_FANOUT_HASH,
            Self::Cpu => PACKET_FANOUT_CPU,
            Self::Queue => PACKET_FANOUT_QM,
            Self::Peer(_) => PACKET_FANOUT_CBPF,
        }
    }

    /// The program that deals, where it is ours.
    pub(super) fn program(&self) -> Option<Vec<sock_filter>> {
        match self {
            Self::Peer(rule) => Some(peer::program(rule)),
            Self::Hash | Self::Cpu | Self::Queue => None,
        }
    }
}

/// A fanout group of one interface, or of all, and of one network namespace. Made by the first ring
/// that joins ([`Ring::start_group`](super::Ring::start_group)); the others join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanoutGroup {
    id: u16,
    kind: u16,
    members: u32,
}

/// Members that a group may have if nothing else is asked for, which kernels before 5.15 cannot.
pub(super) const USUAL_MEMBERS: u32 = 256;

impl FanoutGroup {
    /// A group of up to `members` rings that has no id yet.
    pub(super) fn new(fanout: &Fanout, members: u32) -> Self {
        // The numbers of the types are below 256.
        Self { id: 0, kind: fanout.kind() as u16, members }
    }

    /// The same group, with the id that the kernel gave it.
    pub(super) fn with_id(self, id: u16) -> Self {
        Self { id, ..self }
    }

    /// The argument of `PACKET_FANOUT` with which the first ring asks for an id that nobody has.
    pub(super) fn start_argument(self) -> fanout_args {
        let type_flags = self.kind | PACKET_FANOUT_FLAG_UNIQUEID as u16;
        fanout_args { id: 0, type_flags, max_num_members: self.members }
    }

    /// The argument of `PACKET_FANOUT` with which a further ring joins.
    pub(super) fn join_argument(self) -> fanout_args {
        fanout_args { id: self.id, type_flags: self.kind, max_num_members: self.members }
    }
}
