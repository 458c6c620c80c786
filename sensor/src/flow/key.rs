//! The keyed hash of a flow, which both directions share, and the direction of a packet in it.

use packet::{Address, Kind, Packet, icmp_ports, mix};

/// What a flow is found by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    hash: u64,
    /// Where the flow most likely lives; what [`super::FlowTable::locate`] found.
    pub(super) slot: u32,
    /// The packet goes from the end with the lower hash to the other one.
    is_forward: bool,
}

impl FlowKey {
    /// The key of the flow that `packet` belongs to; `None` for packets that belong to none. Fragments,
    /// the first ones too, belong to the flow of their addresses and protocol without ports: the kernel
    /// deals them to workers by addresses alone, so the flow of their ports may be elsewhere.
    #[inline]
    pub(super) fn of(packet: &Packet, interface: u32, key: u64) -> Option<Self> {
        let tuple = &packet.tuple;
        let (source_port, target_port) = match packet.kind {
            Kind::Arp { .. } | Kind::Other | Kind::Malformed(_) => return None,
            _ if packet.is_fragment => (0, 0),
            Kind::Icmp { kind, code, .. } => match icmp_ports(tuple.protocol, kind, code) {
                // A message without counterpart, of which both directions would look the same.
                (kind, code) if kind == code => (kind, code | 0x100),
                ports => ports,
            },
            Kind::Tcp { .. }
            | Kind::Udp
            | Kind::Sctp { .. }
            | Kind::OtherIp
            | Kind::LaterFragment => (tuple.source_port, tuple.target_port),
        };
        let end = |address: Address, port: u16| {
            mix(address.low() ^ key, address.high() ^ (u64::from(port) << 32 | 0x9e37_79b9))
        };
        let (source, target) = (end(tuple.source, source_port), end(tuple.target, target_port));
        let place = u64::from(packet.is_fragment) << 63
            | u64::from(packet.vlan_ids[0]) << 48
            | u64::from(packet.vlan_ids[1]) << 32
            | u64::from(interface) << 8
            | u64::from(tuple.protocol);
        // Addition commutes, so the ends need no sorting.
        let hash = mix(source.wrapping_add(target) ^ key.rotate_left(32), place ^ SPREAD);
        // Of an empty slot, the last bit is 0.
        Some(Self { hash: hash | 1, slot: 0, is_forward: source <= target })
    }

    /// Of a packet that goes one way in a flow with this hash: for tests of those who never see packets.
    #[cfg(test)]
    pub(super) const fn of_hash(hash: u64, is_forward: bool) -> Self {
        Self { hash, slot: 0, is_forward }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) const fn is_forward(&self) -> bool {
        self.is_forward
    }
}

const SPREAD: u64 = 0xa076_1d64_78bd_642f;
