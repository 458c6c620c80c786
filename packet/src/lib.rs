//! What sensor and collector know of packets: a captured frame, the parser that reads it in place, and
//! tcpdump's language of filters.
//!
//! ```text
//!   frame      one captured frame, borrowed from where it lies
//!   address    one 128-bit type for IPv4 and IPv6
//!   parse      bytes to [`Packet`]: total, no allocation, no error object
//!   link       link-layer headers, VLAN tags, MPLS, PPPoE
//!   tunnel     IP in IP, GRE, VXLAN, GENEVE: how they are entered
//!   community  Community ID of a 5-tuple
//!   libpcap    packet filters, compiled and run by libpcap: the one place with unsafe code
//! ```

mod address;
mod community;
pub mod frame;
pub mod libpcap;
mod link;
mod parse;
mod tunnel;

pub use address::Address;
pub use community::{community_id, community_id_of_flow, icmp_ports};
pub use parse::{parse, parse_into};

/// What analysis needs of one packet. Plain data, no borrow.
///
/// Of a packet in a tunnel it is the innermost packet that is described. An own connection is found by
/// that, in whatever tunnel it goes: no TCP connection is itself a tunnel to the parser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Innermost addresses, ports and protocol. Of ARP for IPv4: its protocol addresses. Of other packets
    /// without IP: all zero.
    pub tuple: FiveTuple,
    /// What the packet is, with the fields that its kind has.
    pub kind: Kind,
    /// VLAN ids, outer first; 0 where there is no tag. Those of the frame, not of one in a tunnel.
    pub vlan_ids: [u16; 2],
    /// The packet is a fragment (IPv4 or IPv6). Only the first one has ports.
    pub is_fragment: bool,
    /// IP headers around the one in `tuple`, at most 4: how many tunnels were entered. IP in IP, GRE
    /// (PPTP and ERSPAN too), VXLAN and GENEVE are; MPLS and PPPoE have no IP header of their own and do
    /// not count. Fragments are not put together, so a fragment of a tunnel is itself the packet, and so is
    /// a tunnel that carries no IP.
    pub tunnel_depth: u8,
}

// A worker holds the packets of a vector at once, beside the table lines that they ask for.
const _: () = assert!(size_of::<Packet>() <= 104);

/// What a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// TCP, with what decides outcomes.
    Tcp {
        /// Flags, see [`tcp`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
    },
    /// UDP.
    Udp,
    /// SCTP.
    Sctp {
        /// Type of the first chunk, if it was captured.
        first_chunk: Option<u8>,
    },
    /// ICMP or ICMPv6 (the protocol in the tuple tells which).
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Of an error message: the tuple of the packet that it answers, as that packet had it.
        quoted: Option<FiveTuple>,
    },
    /// A fragment other than the first: no transport header.
    LaterFragment,
    /// Another IP protocol; its number is in the tuple.
    OtherIp,
    /// ARP (RFC 826).
    Arp {
        /// 1: who has the target's address; 2: the sender has its own.
        operation: u16,
    },
    /// Not IP and not ARP; nothing is looked at.
    #[default]
    Other,
    /// Cut short or contradictory. Fields that were read before the fault are set.
    Malformed(Malformed),
}

/// Why a packet could not be parsed to its end. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Malformed {
    /// The link-layer header or a VLAN tag is cut short.
    LinkTruncated,
    /// The link type is not supported.
    LinkUnsupported,
    /// The version nibble of the IP header contradicts the EtherType.
    IpVersion,
    /// The IPv4 header is cut short or its length field is below 20.
    Ipv4Header,
    /// The IPv4 total length is below the header length.
    Ipv4TotalLength,
    /// The fixed IPv6 header is cut short.
    Ipv6Header,
    /// An IPv6 extension header is cut short, or there are more than the parser follows.
    Ipv6Extension,
    /// The TCP header is cut short or its data offset is below 5.
    TcpHeader,
    /// The UDP header is cut short.
    UdpHeader,
    /// The ICMP or ICMPv6 header is cut short.
    IcmpHeader,
    /// The ARP packet is cut short.
    ArpHeader,
    /// The SCTP header is cut short.
    SctpHeader,
    /// The MPLS label stack is cut short, or longer than the parser follows.
    MplsStack,
    /// The PPPoE header or the protocol behind it is cut short, or of another version or type than 1.
    PppoeHeader,
    /// The GRE header, or one of PPTP or ERSPAN behind it, is cut short, or has more routing entries than
    /// the parser follows.
    GreHeader,
    /// There are more tunnels within each other than the parser follows. The fields are those of the
    /// innermost packet that was reached.
    TunnelDepth,
}

impl Malformed {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::LinkTruncated,
        Self::LinkUnsupported,
        Self::IpVersion,
        Self::Ipv4Header,
        Self::Ipv4TotalLength,
        Self::Ipv6Header,
        Self::Ipv6Extension,
        Self::TcpHeader,
        Self::UdpHeader,
        Self::IcmpHeader,
        Self::ArpHeader,
        Self::SctpHeader,
        Self::MplsStack,
        Self::PppoeHeader,
        Self::GreHeader,
        Self::TunnelDepth,
    ];

    /// The word in metrics and events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkTruncated => "link_truncated",
            Self::LinkUnsupported => "link_unsupported",
            Self::IpVersion => "ip_version",
            Self::Ipv4Header => "ipv4_header",
            Self::Ipv4TotalLength => "ipv4_total_length",
            Self::Ipv6Header => "ipv6_header",
            Self::Ipv6Extension => "ipv6_extension",
            Self::TcpHeader => "tcp_header",
            Self::UdpHeader => "udp_header",
            Self::IcmpHeader => "icmp_header",
            Self::ArpHeader => "arp_header",
            Self::SctpHeader => "sctp_header",
            Self::MplsStack => "mpls_stack",
            Self::PppoeHeader => "pppoe_header",
            Self::GreHeader => "gre_header",
            Self::TunnelDepth => "tunnel_depth",
        }
    }
}

/// Addresses, ports and protocol of a packet, in its own direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub target: Address,
    /// Port of the sender; 0 where the protocol has none.
    pub source_port: u16,
    /// Port of the receiver; 0 where the protocol has none.
    pub target_port: u16,
    /// IP protocol number; 0 for a packet without IP.
    pub protocol: u8,
}

impl FiveTuple {
    /// The tuple of a packet that travels the other way.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.target,
            target: self.source,
            source_port: self.target_port,
            target_port: self.source_port,
            protocol: self.protocol,
        }
    }

    /// A keyed hash that both directions of a flow share. Not for tables whose key has a direction.
    #[must_use]
    pub fn flow_hash(&self, key: u64) -> u64 {
        // Addition commutes, so the ends need no sorting; each end is mixed on its own first.
        let end = |address: Address, port: u16| {
            mix(address.low() ^ key, address.high() ^ (u64::from(port) << 32 | 0x9e37_79b9))
        };
        let ends =
            end(self.source, self.source_port).wrapping_add(end(self.target, self.target_port));
        mix(ends ^ key.rotate_left(32), u64::from(self.protocol) | 0xa076_1d64_78bd_0000)
    }
}

/// Folded 64 × 64 → 128 bit multiplication: the mixing step of the wyhash family.
#[must_use]
pub const fn mix(a: u64, b: u64) -> u64 {
    let product = (a ^ 0x2d35_8dcc_aa6c_78a5) as u128 * (b ^ 0x8bb8_4b93_962e_acc9) as u128;
    (product as u64) ^ (product >> 64) as u64
}

/// IP protocol numbers (Source: IANA protocol numbers).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// GRE.
    pub const GRE: u8 = 47;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flag bits (Source: RFC 9293 section 3.1).
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Data is to be handed on at once.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is meaningful.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is meaningful.
    pub const URG: u8 = 0x20;
}
