//! The parser through tunnels, MPLS and PPPoE: the inner flow is that of the bare frame.

use std::net::{IpAddr, SocketAddr};

use packet::frame::{Frame, LinkType};
use packet::{FiveTuple, Kind, Malformed, Packet, parse, protocol};
use perf::frames;
use perf::tunnels::{self, Tunnel};
use proptest::collection::vec;
use proptest::prelude::*;
use wire::units::{UnixNanos, WireLen};

/// Tunnels within each other that are entered.
const MAX_TUNNELS: usize = 4;

fn frame(data: &[u8]) -> Frame<'_> {
    let wire_len = WireLen(data.len() as u32);
    Frame { data, wire_len, time: UnixNanos(0), vlan: None, link: LinkType::ETHERNET, interface: 0 }
}

fn parsed(data: &[u8]) -> Packet {
    parse(&frame(data))
}

fn ends(is_v4: bool, host: u8) -> (IpAddr, IpAddr) {
    if is_v4 {
        ([203, 0, 113, host].into(), [203, 0, 113, host ^ 1].into())
    } else {
        ([0xfd, 0, 0, 0, 0, 0, 0, host.into()].into(), [0xfd, 0, 0, 0, 0, 0, 1, 7].into())
    }
}

/// A frame as it is outside of any tunnel.
fn bare() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), any::<u8>(), any::<(u16, u16)>(), 0..4, vec(any::<u8>(), 0..40)).prop_map(
        |(is_v4, host, ports, kind, payload)| {
            let (source, target) = ends(is_v4, host);
            let pair = (SocketAddr::new(source, ports.0), SocketAddr::new(target, ports.1));
            match kind {
                0 => frames::tcp(pair.0, pair.1, frames::SYN, &payload),
                1 if ![tunnels::VXLAN, tunnels::GENEVE].contains(&ports.1) => {
                    frames::udp(pair.0, pair.1, &payload)
                }
                2 => {
                    let answered = frames::tcp(pair.1, pair.0, frames::SYN, &payload);
                    frames::port_unreachable(source, &answered)
                }
                _ => {
                    let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
                    let segment = [&ports[..], &[1; 8], &[3, 0, 0, 4]].concat();
                    frames::ip(source, target, protocol::SCTP, &segment)
                }
            }
        },
    )
}

fn tunnel() -> impl Strategy<Value = (Tunnel, bool)> {
    (prop::sample::select(Tunnel::ALL.to_vec()), any::<bool>())
}

fn wrapped(bare: &[u8], around: &[(Tunnel, bool)]) -> Vec<u8> {
    let wrap =
        |inner: Vec<u8>, (tunnel, is_v4): &(Tunnel, bool)| tunnel.around(ends(*is_v4, 200), &inner);
    around.iter().fold(bare.to_vec(), wrap)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_frame_in_tunnels_has_the_flow_of_the_bare_frame(
        bare in bare(),
        around in vec(tunnel(), 0..=MAX_TUNNELS),
    ) {
        let expected = Packet { tunnel_depth: around.len() as u8, ..parsed(&bare) };
        prop_assert!(!matches!(expected.kind, Kind::Malformed(_)));
        prop_assert_eq!(parsed(&wrapped(&bare, &around)), expected, "{:?}", around);
    }

    #[test]
    fn labels_and_sessions_under_the_tunnels_change_nothing(
        bare in bare(),
        around in vec(tunnel(), 0..=2),
        labels in vec(0..1_u32 << 20, 1..=16),
        has_labels in any::<bool>(),
        tag in 1..4095_u16,
    ) {
        let inner = wrapped(&bare, &around);
        let under =
            if has_labels { tunnels::mpls(&inner, &labels) } else { tunnels::pppoe(&inner) };
        let tagged = frames::tagged(&under, &[(frames::DOT1Q, tag)]);
        let tunnel_depth = around.len() as u8;
        let expected = Packet { tunnel_depth, vlan_ids: [tag, 0], ..parsed(&bare) };
        prop_assert_eq!(parsed(&tagged), expected);
    }

    #[test]
    fn a_cut_tunnel_yields_the_flow_of_one_of_its_levels(
        bare in bare(),
        around in vec(tunnel(), 1..=3),
    ) {
        let whole = wrapped(&bare, &around);
        let mut flows = vec![FiveTuple::default()];
        for count in 0..=around.len() {
            let level = parsed_level(&bare, &around[..count]);
            flows.extend([level, FiveTuple { source_port: 0, target_port: 0, ..level }]);
        }
        for len in 0..whole.len() {
            let cut = parse(&Frame { data: &whole[..len], ..frame(&whole) });
            prop_assert!(without_chain(&flows, cut.tuple), "{cut:?} of {around:?} at {len}");
            prop_assert!(usize::from(cut.tunnel_depth) <= around.len());
        }
    }

    #[test]
    fn damaged_tunnels_are_parsed_without_panic(
        bare in bare(),
        around in vec(tunnel(), 1..=6),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut data = wrapped(&bare, &around);
        for (place, value) in damage {
            let place = place.index(data.len());
            data[place] = value;
        }
        let packet = parse(&Frame { data: &data[..cut.index(data.len())], ..frame(&data) });
        prop_assert!(usize::from(packet.tunnel_depth) <= MAX_TUNNELS);
    }
}

/// The flow of the tunnel itself: what carries a frame that holds no IP.
fn parsed_level(bare: &[u8], around: &[(Tunnel, bool)]) -> FiveTuple {
    let Some(((tunnel, is_v4), _)) = around.split_last() else { return parsed(bare).tuple };
    let inner =
        frames::udp(SocketAddr::new(ends(true, 1).0, 1), SocketAddr::new(ends(true, 1).1, 2), b"");
    let carrier = tunnel.around(ends(*is_v4, 200), &inner);
    let packet = &carrier[14..];
    let address = |at: usize| {
        if *is_v4 {
            IpAddr::from(*packet[at..].first_chunk::<4>().expect("an IPv4 header"))
        } else {
            IpAddr::from(*packet[at..].first_chunk::<16>().expect("an IPv6 header"))
        }
    };
    let (source, target, protocol, header) = if *is_v4 {
        (address(12), address(16), packet[9], 20)
    } else {
        (address(8), address(24), packet[6], 40)
    };
    let port = |at: usize| u16::from_be_bytes([packet[header + at], packet[header + at + 1]]);
    let is_udp = protocol == protocol::UDP;
    FiveTuple {
        source: source.into(),
        target: target.into(),
        source_port: if is_udp { port(0) } else { 0 },
        target_port: if is_udp { port(2) } else { 0 },
        protocol,
    }
}

/// Is `seen` one of the flows? IP in IP may carry either version, so 4 and 41 are alike here.
fn without_chain(flows: &[FiveTuple], seen: FiveTuple) -> bool {
    let alike = |protocol: u8| if protocol == protocol::IPV6 { protocol::IPV4 } else { protocol };
    flows.iter().any(|flow| {
        FiveTuple { protocol: alike(flow.protocol), ..*flow }
            == FiveTuple { protocol: alike(seen.protocol), ..seen }
    })
}

fn syn() -> Vec<u8> {
    let (source, target) = ends(true, 10);
    frames::tcp(SocketAddr::new(source, 1000), SocketAddr::new(target, 22), frames::SYN, b"")
}

#[test]
fn every_tunnel_is_entered_over_both_versions_of_ip() {
    for tunnel in Tunnel::ALL {
        for is_v4 in [true, false] {
            let packet = parsed(&tunnel.around(ends(is_v4, 200), &syn()));
            let expected = Packet { tunnel_depth: 1, ..parsed(&syn()) };
            assert_eq!(packet, expected, "{tunnel:?} over {is_v4}");
        }
    }
}

#[test]
fn a_tunnel_too_deep_is_counted_with_the_flow_of_the_last_one_entered() {
    for tunnel in Tunnel::ALL {
        let around = vec![(tunnel, true); MAX_TUNNELS + 1];
        let packet = parsed(&wrapped(&syn(), &around));
        assert_eq!(packet.kind, Kind::Malformed(Malformed::TunnelDepth), "{tunnel:?}");
        assert_eq!(usize::from(packet.tunnel_depth), MAX_TUNNELS);
        assert_eq!(packet.tuple.source, ends(true, 200).0.into());
        // Hundreds more of them cost nothing.
        let many = wrapped(&syn(), &vec![(tunnel, true); 500]);
        assert_eq!(parsed(&many), packet, "{tunnel:?}");
    }
}

#[test]
fn a_datagram_to_a_tunnel_port_is_no_tunnel_unless_every_header_is_sound() {
    let sockets = || {
        let (source, target) = ends(true, 200);
        (SocketAddr::new(source, 50_000), target)
    };
    let check = |port: u16, payload: &[u8]| {
        let (source, target) = sockets();
        let packet = parsed(&frames::udp(source, SocketAddr::new(target, port), payload));
        assert_eq!((packet.kind, packet.tunnel_depth), (Kind::Udp, 0), "{payload:02x?}");
        assert_eq!((packet.tuple.source_port, packet.tuple.target_port), (50_000, port));
    };
    for tunnel in [Tunnel::Vxlan, Tunnel::Geneve, Tunnel::GeneveIp] {
        let whole = tunnel.around(ends(true, 200), &syn());
        let port = if tunnel == Tunnel::Vxlan { tunnels::VXLAN } else { tunnels::GENEVE };
        let payload = &whole[42..];
        let ip = payload.len() - 40;
        // Reserved bits, an unknown version, another EtherType, an IP header of another version, a
        // header length below the least, a total length above what is there.
        let first_flag = if tunnel == Tunnel::Vxlan { 0 } else { 1 };
        for (place, value) in [
            (0, 0x40),
            (first_flag, 0x80 ^ u8::from(tunnel == Tunnel::Vxlan)),
            (7, 1),
            (if tunnel == Tunnel::GeneveIp { 2 } else { ip - 2 }, 0x99),
            (ip, 0x65),
            (ip, 0x44),
            (ip + 2, 0x7f),
            (ip + 3, 19),
        ] {
            let mut damaged = payload.to_vec();
            damaged[place] = value;
            check(port, &damaged);
        }
        for len in 0..ip + 20 {
            check(port, &payload[..len]);
        }
    }
    check(tunnels::VXLAN, &[0xff; 100]);
    check(tunnels::GENEVE, b"any payload at all, as long as it takes to hold all those headers");
}

#[test]
fn a_tunnel_that_carries_no_ip_is_itself_the_flow() {
    let arp = frames::arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let length_in_place_of_type = [&[2; 12][..], &[0, 38, 0x42, 0x42, 3], &[0; 35]].concat();
    for inner in [arp, length_in_place_of_type] {
        for (tunnel, kind, protocol) in [
            (Tunnel::GreEthernet, Kind::OtherIp, protocol::GRE),
            (Tunnel::Erspan2, Kind::OtherIp, protocol::GRE),
            (Tunnel::Vxlan, Kind::Udp, protocol::UDP),
            (Tunnel::Geneve, Kind::Udp, protocol::UDP),
        ] {
            let packet = parsed(&tunnel.around(ends(false, 200), &inner));
            assert_eq!((packet.kind, packet.tunnel_depth), (kind, 0), "{tunnel:?}");
            assert_eq!(packet.tuple.protocol, protocol);
            assert_eq!(packet.tuple.source, ends(false, 200).0.into());
        }
    }
}

#[test]
fn fragments_of_a_tunnel_are_the_tunnels_flow_and_fragments_inside_are_the_inner_one() {
    for tunnel in Tunnel::ALL {
        let [first, later, ..] =
            &frames::ipv4_fragments(&tunnel.around(ends(true, 200), &syn()), 32)[..]
        else {
            panic!("{tunnel:?} is too short to be cut");
        };
        let (first, later) = (parsed(first), parsed(later));
        assert!(first.is_fragment && later.is_fragment);
        assert_eq!((first.tunnel_depth, later.tunnel_depth), (0, 0), "{tunnel:?}");
        assert!(matches!(first.kind, Kind::Udp | Kind::OtherIp), "{tunnel:?}: {first:?}");
        assert_eq!(later.kind, Kind::LaterFragment);
        assert_eq!(first.tuple.source, ends(true, 200).0.into());

        let inside = frames::ipv4_fragments(&syn(), 16);
        let later = parsed(&tunnel.around(ends(true, 200), &inside[1]));
        assert_eq!(later, Packet { tunnel_depth: 1, ..parsed(&inside[1]) }, "{tunnel:?}");
    }
}

#[test]
fn inner_tags_are_followed_and_not_kept() {
    let tagged = frames::tagged(&syn(), &[(frames::DOT1AD, 5), (frames::DOT1Q, 6)]);
    for tunnel in [Tunnel::GreEthernet, Tunnel::Erspan3, Tunnel::Vxlan, Tunnel::Geneve] {
        let outer = tunnel.around(ends(true, 200), &tagged);
        let packet = parsed(&frames::tagged(&outer, &[(frames::DOT1Q, 9)]));
        let expected = Packet { tunnel_depth: 1, vlan_ids: [9, 0], ..parsed(&syn()) };
        assert_eq!(packet, expected, "{tunnel:?}");
    }
}

#[test]
fn an_error_on_the_way_of_a_tunnel_quotes_the_tunnel() {
    let probe = Tunnel::Vxlan.around(ends(true, 200), &syn());
    let packet = parsed(&frames::port_unreachable([192, 0, 2, 9].into(), &probe));
    let Kind::Icmp { quoted: Some(quoted), .. } = packet.kind else { panic!("{packet:?}") };
    assert_eq!((quoted.source, quoted.target_port), (ends(true, 200).0.into(), tunnels::VXLAN));
    assert_eq!(packet.tunnel_depth, 0);
}

#[test]
fn each_fault_of_a_carrier_has_its_reason() {
    let check = |data: &[u8], expected: Malformed| {
        assert_eq!(parsed(data).kind, Kind::Malformed(expected), "{data:02x?}");
    };
    let (source, target) = ends(true, 200);
    let gre = |bytes: &[u8]| frames::ip(source, target, protocol::GRE, bytes);
    check(&gre(&[0, 0, 8]), Malformed::GreHeader);
    check(&gre(&[0xb0, 0, 8, 0, 1, 1, 1, 1]), Malformed::GreHeader);
    check(
        &gre(&[[0x40, 0, 8, 0].as_slice(), &[8, 0, 0, 0].repeat(40)].concat()),
        Malformed::GreHeader,
    );
    check(&gre(&[0x30, 1, 0x88, 0x0b, 0, 9, 0]), Malformed::GreHeader);
    check(&gre(&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 0, 0x10, 0, 0]), Malformed::GreHeader);
    check(&gre(&[0, 0, 0x65, 0x58, 1, 2, 3]), Malformed::LinkTruncated);
    check(&gre(&[0, 0, 8, 0, 0x65, 0]), Malformed::Ipv4Header);
    check(&frames::ip(source, target, protocol::IPV4, &[0x60; 40]), Malformed::IpVersion);
    check(&frames::ip(source, target, protocol::IPV6, &[0x40; 40]), Malformed::IpVersion);
    check(&frames::ip(source, target, protocol::IPV6, &[0x60; 39]), Malformed::Ipv6Header);
    check(&frames::ip(source, target, protocol::SCTP, &[0; 11]), Malformed::SctpHeader);
    check(&tunnels::mpls(&syn(), &[7; 17]), Malformed::MplsStack);
    check(&frames::ethernet(0x8847, &[0, 0, 0]), Malformed::MplsStack);
    check(&frames::ethernet(0x8864, &[0x11, 0, 0, 7, 0]), Malformed::PppoeHeader);
    check(&frames::ethernet(0x8864, &[0x11, 0, 0, 7, 0, 1, 0]), Malformed::PppoeHeader);
    check(&frames::ethernet(0x8864, &[0x12, 0, 0, 7, 0, 2, 0, 0x21]), Malformed::PppoeHeader);
}

#[test]
fn what_is_behind_labels_or_in_a_session_without_ip_is_not_looked_at() {
    // A pseudo-wire with a control word, one without that begins with the nibble of IPv6 or IPv4, and
    // the end of a PPP negotiation.
    let control_word = [[0, 1, 1, 64].as_slice(), &[0; 4], &syn()].concat();
    let mac = |first: u8| [[0, 1, 1, 64, first].as_slice(), &syn()[1..]].concat();
    let link_control = [0x11, 0, 0, 7, 0, 8, 0xc0, 0x21, 1, 1, 0, 4, 0, 0];
    for data in [
        frames::ethernet(0x8847, &control_word),
        frames::ethernet(0x8847, &mac(0x60)),
        frames::ethernet(0x8847, &mac(0x46)),
        frames::ethernet(0x8864, &link_control),
        frames::ethernet(0x8863, &[0x11, 9, 0, 0, 0, 0]),
    ] {
        assert_eq!(parsed(&data), Packet::default(), "{data:02x?}");
    }
}
