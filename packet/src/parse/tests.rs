//! Frames are built from a description; parsing them must give the description back.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use wire::units::{UnixNanos, WireLen};

use super::super::tcp;
use super::*;
use crate::frame::VlanTag;

const LINKS: [LinkType; 8] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::NULL,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType(147),
];

fn frame(link: LinkType, vlan: Option<VlanTag>, data: &[u8]) -> Frame<'_> {
    Frame {
        data,
        wire_len: WireLen(data.len() as u32),
        time: UnixNanos(0),
        vlan,
        link,
        interface: 0,
    }
}

fn parse_ethernet(data: &[u8]) -> Packet {
    parse(&frame(LinkType::ETHERNET, None, data))
}

/// What a generated frame holds.
#[derive(Clone, Debug)]
struct Description {
    link: LinkType,
    kernel_tag: Option<VlanTag>,
    tags: Vec<(u16, u16)>,
    network: Network,
    transport: Transport,
    padding: usize,
}

#[derive(Clone, Debug)]
enum Network {
    V4 { source: [u8; 4], target: [u8; 4], option_words: usize, fragment: u16 },
    V6 { source: [u8; 16], target: [u8; 16], extensions: Vec<(u8, usize)>, fragment: Option<u16> },
}

#[derive(Clone, Debug)]
enum Transport {
    Tcp {
        ports: (u16, u16),
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        option_words: u8,
    },
    Udp {
        ports: (u16, u16),
    },
    Sctp {
        ports: (u16, u16),
    },
    Icmp {
        kind: u8,
        code: u8,
        quoted_ports: Option<(u16, u16)>,
    },
    /// Of this protocol.
    Other(u8),
}

/// Offset 0 with "more fragments", a later fragment, or no fragment at all.
fn ipv4_fragment() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(0x4000u16), 1 => Just(0x2000u16), 1 => 1u16..0x1fff]
}

fn network() -> impl Strategy<Value = Network> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>(), 0usize..=10, ipv4_fragment()).prop_map(
        |(source, target, option_words, fragment)| Network::V4 {
            source,
            target,
            option_words,
            fragment,
        },
    );
    let extension = (prop::sample::select(vec![0u8, 43, 60, 51]), 0usize..3);
    let fragment = prop::option::weighted(0.3, prop_oneof![Just(0u16), Just(1u16), 8u16..0xfff8]);
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>(), vec(extension, 0..4), fragment).prop_map(
        |(source, target, extensions, fragment)| Network::V6 {
            source,
            target,
            extensions,
            fragment,
        },
    );
    prop_oneof![v4, v6]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (any::<(u16, u16)>(), any::<u8>(), any::<u32>(), any::<u32>(), 0u8..=10).prop_map(
            |(ports, flags, sequence, acknowledgement, option_words)| Transport::Tcp {
                ports,
                flags,
                sequence,
                acknowledgement,
                option_words,
            }
        ),
        any::<(u16, u16)>().prop_map(|ports| Transport::Udp { ports }),
        any::<(u16, u16)>().prop_map(|ports| Transport::Sctp { ports }),
        (1u8..=14, any::<u8>(), prop::option::of(any::<(u16, u16)>()))
            .prop_map(|(kind, code, quoted_ports)| Transport::Icmp { kind, code, quoted_ports }),
        prop::sample::select(vec![253u8, 135, 59]).prop_map(Transport::Other),
    ]
}

fn description() -> impl Strategy<Value = Description> {
    let kernel_tag = prop::option::weighted(
        0.3,
        (prop::sample::select(vec![0x8100u16, 0x88a8, 0x1234]), any::<u16>())
            .prop_map(|(protocol, control)| VlanTag { protocol, control }),
    );
    let tag = (prop::sample::select(vec![0x8100u16, 0x88a8, 0x9100]), any::<u16>());
    (
        prop::sample::select(LINKS[..7].to_vec()),
        kernel_tag,
        vec(tag, 0..=2),
        network(),
        transport(),
        0usize..=46,
    )
        .prop_map(|(link, kernel_tag, tags, network, transport, padding)| {
            let link = match (link, &network) {
                (LinkType::IPV4, Network::V6 { .. }) => LinkType::IPV6,
                (LinkType::IPV6, Network::V4 { .. }) => LinkType::IPV4,
                (link, _) => link,
            };
            let has_tags = matches!(link.0, 1 | 113 | 276);
            let tags = if has_tags { tags } else { Vec::new() };
            Description { link, kernel_tag, tags, network, transport, padding }
        })
}

impl Description {
    fn is_v4(&self) -> bool {
        matches!(self.network, Network::V4 { .. })
    }

    /// What the parser must say.
    fn expected(&self) -> Packet {
        let (tuple, is_fragment, is_later) = self.network_facts();
        let kind = match self.transport {
            _ if is_later => Kind::LaterFragment,
            Transport::Tcp { flags, sequence, acknowledgement, .. } => {
                Kind::Tcp { flags, sequence, acknowledgement }
            }
            Transport::Udp { .. } => Kind::Udp,
            Transport::Sctp { .. } => Kind::Sctp { first_chunk: Some(1) },
            Transport::Other(_) => Kind::OtherIp,
            Transport::Icmp { kind, code, quoted_ports } => {
                let is_error = if self.is_v4() {
                    [3, 4, 5, 11, 12].contains(&kind)
                } else {
                    [1, 2, 3, 4].contains(&kind)
                };
                let quoted = quoted_ports.filter(|_| is_error).map(|ports| FiveTuple {
                    source_port: ports.0,
                    target_port: ports.1,
                    protocol: protocol::TCP,
                    ..FiveTuple { source_port: 0, target_port: 0, ..tuple }.reversed()
                });
                Kind::Icmp { kind, code, quoted }
            }
        };
        Packet { tuple, kind, vlan_ids: self.vlan_ids(), is_fragment, tunnel_depth: 0 }
    }

    /// Tuple with the ports that can be seen, "is a fragment", "is a later one".
    fn network_facts(&self) -> (FiveTuple, bool, bool) {
        let (source, target, is_fragment, is_later) = match &self.network {
            Network::V4 { source, target, fragment, .. } => (
                Address::from_v4(*source),
                Address::from_v4(*target),
                fragment & 0x3fff != 0,
                fragment & 0x1fff != 0,
            ),
            Network::V6 { source, target, fragment, .. } => (
                Address::from_v6(*source),
                Address::from_v6(*target),
                fragment.is_some_and(|bits| bits & 0xfff9 != 0),
                fragment.is_some_and(|bits| bits & 0xfff8 != 0),
            ),
        };
        let ports = match self.transport {
            Transport::Tcp { ports, .. } | Transport::Udp { ports } | Transport::Sctp { ports }
                if !is_later =>
            {
                ports
            }
            _ => (0, 0),
        };
        let protocol = self.protocol();
        let (source_port, target_port) = ports;
        (FiveTuple { source, target, source_port, target_port, protocol }, is_fragment, is_later)
    }

    fn vlan_ids(&self) -> [u16; 2] {
        let kernel = self.kernel_tag.iter().map(|tag| tag.id());
        let mut ids = kernel.chain(self.tags.iter().map(|(_, control)| control & 0xfff));
        [ids.next().unwrap_or(0), ids.next().unwrap_or(0)]
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Sctp { .. } => 132,
            Transport::Icmp { .. } => {
                if self.is_v4() {
                    1
                } else {
                    58
                }
            }
            Transport::Other(protocol) => protocol,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let ip = self.ip_packet(self.protocol(), &self.transport_bytes());
        let mut ether_types: Vec<u16> = self.tags.iter().map(|(protocol, _)| *protocol).collect();
        ether_types.push(if self.is_v4() { 0x0800 } else { 0x86dd });
        let mut bytes = match self.link {
            LinkType::ETHERNET => [[2u8; 12].as_slice(), &ether_types[0].to_be_bytes()].concat(),
            LinkType::LINUX_SLL => [[0u8; 14].as_slice(), &ether_types[0].to_be_bytes()].concat(),
            LinkType::LINUX_SLL2 => [ether_types[0].to_be_bytes().as_slice(), &[0; 18]].concat(),
            LinkType::NULL => vec![if self.is_v4() { 2 } else { 30 }, 0, 0, 0],
            _ => Vec::new(),
        };
        for ((_, control), next) in self.tags.iter().zip(&ether_types[1..]) {
            bytes.extend(control.to_be_bytes());
            bytes.extend(next.to_be_bytes());
        }
        bytes.extend(ip);
        bytes.extend(vec![0xaa; self.padding]);
        bytes
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let ports = |(source, target): (u16, u16)| (u32::from(source) << 16) | u32::from(target);
        match self.transport {
            Transport::Tcp { ports: pair, flags, sequence, acknowledgement, option_words } => {
                let words = [ports(pair), sequence, acknowledgement];
                let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
                bytes.extend([(5 + option_words) << 4, flags, 1, 0, 0, 0, 0, 0]);
                bytes.extend(vec![1; usize::from(option_words) * 4]);
                bytes.extend(*b"payload");
                bytes
            }
            Transport::Udp { ports: pair } => {
                [ports(pair).to_be_bytes().as_slice(), &[0, 12, 0, 0], b"data"].concat()
            }
            Transport::Sctp { ports: pair } => {
                // A chunk INIT follows the header.
                [ports(pair).to_be_bytes().as_slice(), &[0; 8], &[1, 0, 0, 4]].concat()
            }
            Transport::Icmp { kind, code, quoted_ports } => {
                let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
                if let Some(pair) = quoted_ports {
                    let quoted = [ports(pair).to_be_bytes(), [0; 4]].concat();
                    bytes.extend(self.quoted_network().ip_packet(protocol::TCP, &quoted));
                }
                bytes
            }
            Transport::Other(_) => vec![0xff; 11],
        }
    }

    /// The same network layer in the other direction, and in one piece.
    fn quoted_network(&self) -> Self {
        let mut quoted = self.clone();
        match &mut quoted.network {
            Network::V4 { source, target, fragment, .. } => {
                std::mem::swap(source, target);
                *fragment = 0;
            }
            Network::V6 { source, target, fragment, .. } => {
                std::mem::swap(source, target);
                *fragment = None;
            }
        }
        quoted
    }

    fn ip_packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match &self.network {
            Network::V4 { source, target, option_words, fragment } => {
                let header_len = 20 + option_words * 4;
                let total = (header_len + payload.len()) as u16;
                let mut bytes = vec![0x40 | (header_len / 4) as u8, 0];
                bytes.extend(total.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([64, protocol, 0, 0]);
                bytes.extend(source.iter().chain(target));
                bytes.extend(vec![1; option_words * 4]);
                bytes.extend(payload);
                bytes
            }
            Network::V6 { source, target, extensions, fragment } => {
                let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
                kinds.extend(fragment.map(|_| 44));
                kinds.push(protocol);
                let mut chain = Vec::new();
                for ((kind, words), next) in extensions.iter().zip(&kinds[1..]) {
                    // The authentication header counts in words of 4 bytes, less 2.
                    let len = if *kind == 51 { words * 2 } else { *words };
                    chain.extend([*next, len as u8]);
                    chain.extend(vec![0; 6 + words * 8]);
                }
                if let Some(bits) = fragment {
                    chain.extend([protocol, 0]);
                    chain.extend(bits.to_be_bytes());
                    chain.extend([0; 4]);
                }
                chain.extend(payload);
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend((chain.len() as u16).to_be_bytes());
                bytes.extend([kinds[0], 64]);
                bytes.extend(source.iter().chain(target));
                bytes.extend(chain);
                bytes
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_parsed_without_panic(
        data in vec(any::<u8>(), 0..200),
        link in prop::sample::select(LINKS.to_vec()),
        tag in prop::option::of((any::<u16>(), any::<u16>())),
    ) {
        let vlan = tag.map(|(protocol, control)| VlanTag { protocol, control });
        let packet = parse(&frame(link, vlan, &data));
        prop_assert_eq!(
            link == LinkType(147),
            packet.kind == Kind::Malformed(Malformed::LinkUnsupported)
        );
    }

    #[test]
    fn a_built_frame_parses_to_what_was_put_in(description in description()) {
        let data = description.bytes();
        let packet = parse(&frame(description.link, description.kernel_tag, &data));
        prop_assert_eq!(packet, description.expected());
    }

    #[test]
    fn a_cut_frame_never_yields_other_addresses_or_ports(description in description()) {
        let data = description.bytes();
        let whole = frame(description.link, description.kernel_tag, &data);
        let full = parse(&whole);
        for len in 0..data.len() {
            let cut = parse(&Frame { data: &data[..len], ..whole });
            let (seen, real) = (cut.tuple, full.tuple);
            prop_assert!(seen.source == real.source || seen.source == Address::default());
            prop_assert!(seen.target == real.target || seen.target == Address::default());
            prop_assert!([0, real.source_port].contains(&seen.source_port));
            prop_assert!([0, real.target_port].contains(&seen.target_port));
            match (cut.kind, full.kind) {
                (Kind::Malformed(_), _) => {}
                (Kind::Sctp { first_chunk: None }, Kind::Sctp { .. }) => {}
                (Kind::Icmp { quoted: None, kind, code }, Kind::Icmp { kind: k, code: c, .. }) => {
                    prop_assert_eq!((kind, code), (k, c));
                }
                (seen, real) => prop_assert_eq!(seen, real),
            }
        }
    }
}

#[test]
fn damaged_frames_are_parsed_without_panic_and_in_time() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = description();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let started = Instant::now();
    for _ in 0..4_000 {
        let description = strategy.new_tree(&mut runner).unwrap().current();
        let mut data = description.bytes();
        for _ in 0..50 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let position = (random >> 32) as usize % data.len();
            data[position] = random as u8 ^ (random >> 56) as u8;
            let len = data.len() - (random >> 48) as usize % data.len() / 4;
            let _ = parse(&frame(description.link, description.kernel_tag, &data[..len]));
        }
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// Ethernet and IPv4 headers in front of a payload.
fn ipv4_frame(total_len: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut data = vec![2; 12];
    data.extend([0x08, 0x00, 0x45, 0]);
    data.extend(total_len.to_be_bytes());
    data.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    data.extend(payload);
    data
}

const SYN: [u8; 20] = [0, 80, 1, 187, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, tcp::SYN, 0, 0, 0, 0, 0, 0];

#[test]
fn padding_of_a_short_frame_is_no_payload() {
    // A TCP header would fit if the padding counted.
    let data = ipv4_frame(20 + 8, protocol::TCP, &SYN);
    assert_eq!(parse_ethernet(&data).kind, Kind::Malformed(Malformed::TcpHeader));
}

#[test]
fn each_fault_has_its_reason() {
    let whole = ipv4_frame(40, protocol::TCP, &SYN);
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: Malformed| {
        let mut data = whole.clone();
        change(&mut data);
        assert_eq!(parse_ethernet(&data).kind, Kind::Malformed(expected));
    };
    check(&|data| data.truncate(13), Malformed::LinkTruncated);
    check(
        &|data| {
            data[12] = 0x81;
            data.truncate(17);
        },
        Malformed::LinkTruncated,
    );
    check(&|data| data[14] = 0x65, Malformed::IpVersion);
    check(&|data| data.truncate(33), Malformed::Ipv4Header);
    check(&|data| data[14] = 0x44, Malformed::Ipv4Header);
    check(&|data| data[14] = 0x4f, Malformed::Ipv4Header);
    check(&|data| data[17] = 19, Malformed::Ipv4TotalLength);
    check(&|data| data[17] = 0, Malformed::Ipv4TotalLength);
    check(&|data| data.truncate(53), Malformed::TcpHeader);
    check(&|data| data[46] = 0x40, Malformed::TcpHeader);
    check(&|data| data[17] = 27, Malformed::TcpHeader);
    check(
        &|data| {
            data[23] = protocol::UDP;
            data[17] = 27;
        },
        Malformed::UdpHeader,
    );
    check(
        &|data| {
            data[23] = protocol::ICMP;
            data[17] = 23;
        },
        Malformed::IcmpHeader,
    );
    check(
        &|data| {
            data[13] = 6;
            data.truncate(20);
        },
        Malformed::ArpHeader,
    );
    check(
        &|data| {
            data[12..14].copy_from_slice(&[0x86, 0xdd]);
            data.truncate(53);
        },
        Malformed::Ipv6Header,
    );
}

#[test]
fn a_chain_of_extension_headers_is_followed_so_far_and_no_further() {
    let chain = |count: usize| {
        let mut data = vec![2; 12];
        data.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, (count * 8 + 20) as u8, 60, 64]);
        data.extend([1; 32]);
        for header in 1..=count {
            data.extend([if header == count { 6 } else { 60 }, 0, 0, 0, 0, 0, 0, 0]);
        }
        data.extend(SYN);
        parse_ethernet(&data)
    };
    assert_eq!(chain(MAX_EXTENSIONS).tuple.source_port, 80);
    let beyond = chain(MAX_EXTENSIONS + 1);
    assert_eq!(beyond.kind, Kind::Malformed(Malformed::Ipv6Extension));
    assert_ne!(beyond.tuple.source, Address::default(), "fields before the fault are kept");
}

#[test]
fn frames_that_a_card_has_yet_to_segment_have_no_total_length() {
    let mut data = ipv4_frame(0, protocol::TCP, &SYN);
    data.resize(70_000, 0);
    assert!(matches!(parse_ethernet(&data).kind, Kind::Tcp { flags: tcp::SYN, .. }));
}

#[test]
fn icmp_of_the_other_ip_version_is_not_taken_for_icmp() {
    let data = ipv4_frame(28, protocol::ICMPV6, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse_ethernet(&data).kind, Kind::OtherIp);
}

#[test]
fn a_quotation_without_ports_or_of_a_later_fragment_is_none() {
    let quote = |fragment: [u8; 2], ports: &[u8]| {
        let mut payload = vec![3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 40, 0, 0];
        payload.extend(fragment);
        payload.extend([64, protocol::TCP, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
        payload.extend(ports);
        match parse_ethernet(&ipv4_frame(1000, protocol::ICMP, &payload)).kind {
            Kind::Icmp { kind: 3, code: 3, quoted } => quoted.map(|tuple| tuple.target_port),
            kind => panic!("{kind:?}"),
        }
    };
    assert_eq!(quote([0x40, 0], &[0, 80, 1, 187]), Some(443));
    assert_eq!(quote([0x40, 0], &[0, 80, 1]), None);
    assert_eq!(quote([0, 1], &[0, 80, 1, 187]), None);
}

/// An IPv6 fragment whose fragmentable part begins with eight bytes of destination options. `len` is what
/// these say of their length.
fn fragment_with_options(offset_and_more: u16, len: u8, rest: &[u8]) -> Packet {
    let mut data = vec![2; 12];
    data.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    data.extend((16 + rest.len() as u16).to_be_bytes());
    data.extend([44, 64]);
    data.extend([[1; 16], [2; 16]].concat());
    data.extend([60, 0]);
    data.extend(offset_and_more.to_be_bytes());
    data.extend([0, 0, 0, 7]);
    data.extend([protocol::TCP, len, 1, 4, 0, 0, 0, 0]);
    data.extend(rest);
    parse_ethernet(&data)
}

#[test]
fn extension_headers_behind_a_fragment_header_are_followed_in_the_first_fragment_only() {
    // RFC 8200 section 4.5: all of them are in the first fragment.
    let first = fragment_with_options(1, 0, &SYN);
    assert!(matches!(first.kind, Kind::Tcp { flags: tcp::SYN, .. }) && first.is_fragment);
    assert_eq!(first.tuple.protocol, protocol::TCP);
    assert_ne!(first.tuple.source_port, 0);
    let whole = fragment_with_options(0, 0, &SYN);
    assert!(matches!(whole.kind, Kind::Tcp { flags: tcp::SYN, .. }) && !whole.is_fragment);
    // What begins a later one is no header, whatever the fragment header says of the first one.
    let later = fragment_with_options(8, 0, &SYN);
    assert!(later.kind == Kind::LaterFragment && later.is_fragment);
    assert_eq!((later.tuple.protocol, later.tuple.source_port), (60, 0));
    // RFC 7112: a first fragment without all headers is to be discarded.
    let torn = fragment_with_options(1, 9, &SYN);
    assert_eq!(torn.kind, Kind::Malformed(Malformed::Ipv6Extension));
}

#[test]
fn a_fourth_tag_ends_the_search() {
    let mut data = vec![2; 12];
    data.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 0x81, 0, 0, 4, 0x08, 0x00]);
    data.extend([0x45; 60]);
    let packet = parse_ethernet(&data);
    assert_eq!((packet.kind, packet.vlan_ids), (Kind::Other, [1, 2]));
}

#[test]
fn a_length_in_the_place_of_the_type_is_no_ip() {
    let mut data = vec![2; 12];
    data.extend([0, 46, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
    data.extend([0x45; 40]);
    assert_eq!(parse_ethernet(&data), Packet { kind: Kind::Other, ..Packet::default() });
}

#[test]
fn arp_of_ipv4_has_its_addresses_and_other_arp_has_none() {
    let mut data = vec![0xff; 12];
    data.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    data.extend([7; 6]);
    data.extend([192, 0, 2, 1]);
    data.extend([8; 6]);
    data.extend([192, 0, 2, 9]);
    let kind = Kind::Arp { operation: 2 };
    let tuple = FiveTuple {
        source: Address::from_v4([192, 0, 2, 1]),
        target: Address::from_v4([192, 0, 2, 9]),
        ..FiveTuple::default()
    };
    assert_eq!(parse_ethernet(&data), Packet { tuple, kind, ..Packet::default() });
    data[16] = 0x86;
    assert_eq!(parse_ethernet(&data), Packet { kind, ..Packet::default() });
}
