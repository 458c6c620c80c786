//! What is told of a flow that ended.

use packet::FiveTuple;
use wire::units::UnixNanos;

use super::hot::Totals;
use super::life::State;
use super::slots::Whole;

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EndReason {
    /// No packet for longer than its state allows.
    Timeout,
    /// There was no room: it was worth least among its neighbours.
    Forced,
    /// Capture ended.
    Shutdown,
    /// A closed TCP connection whose addresses and ports opened a new one.
    Reuse,
}

impl EndReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Timeout, Self::Forced, Self::Shutdown, Self::Reuse];

    /// The word in metrics and events: that of EVE.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Forced => "forced",
            Self::Shutdown => "shutdown",
            Self::Reuse => "tcp_reuse",
        }
    }
}

/// A flow that ended. Pairs are of the opener first, of the other side second. Ordered by time, then by
/// whose flow it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndedFlow {
    /// When it ended: when that was noticed, not its last packet.
    pub time: UnixNanos,
    /// Of its last packet.
    pub last: UnixNanos,
    /// Of its first packet.
    pub first: UnixNanos,
    /// From the opener to the other side: as the first packet seen has it, but that of a SYN+ACK the
    /// other way. Without ports where the protocol has none, and for fragments.
    pub tuple: FiveTuple,
    /// VLAN ids, outer first; 0 where there is none.
    pub vlan_ids: [u16; 2],
    /// Index of the interface in the sensor's list.
    pub interface: u32,
    /// Type and code of the first packet, if it was ICMP or ICMPv6.
    pub icmp: Option<(u8, u8)>,
    /// It consists of the fragments between two addresses, whatever their ports.
    pub is_fragments: bool,
    /// Why it ended.
    pub reason: EndReason,
    /// How far it had come.
    pub state: State,
    /// TCP flags seen; 0 for other protocols.
    pub flags: [u8; 2],
    /// Packets.
    pub packets: [u64; 2],
    /// Bytes on the wire, link-layer headers included.
    pub bytes: [u64; 2],
}

impl EndedFlow {
    pub(super) fn new(flow: &Whole, reason: EndReason, time: UnixNanos) -> Self {
        let Totals { packets, bytes } = flow.totals();
        let Whole { hot, cold, .. } = flow;
        Self {
            time,
            last: hot.last,
            first: cold.first,
            tuple: cold.tuple,
            vlan_ids: cold.vlan_ids,
            interface: cold.interface,
            icmp: cold.icmp,
            is_fragments: cold.is_fragments,
            reason,
            state: hot.state(),
            flags: hot.flags(),
            packets,
            bytes,
        }
    }
}
