//! Community ID: the name of a flow that Suricata, Zeek, Arkime and Wireshark share.
//!
//! Source: <https://github.com/corelight/community-id-spec>, version 1.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::{Address, FiveTuple, Kind, Packet, protocol};

/// The Community ID of the flow that a packet belongs to, with seed 0. `None` without IP, and for
/// packets whose header does not tell: later fragments and malformed ones.
#[must_use]
pub fn community_id(packet: &Packet) -> Option<String> {
    match packet.kind {
        Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } | Kind::OtherIp => {
            Some(community_id_of_flow(&packet.tuple))
        }
        Kind::Icmp { kind, code, .. } => Some(community_id_of_icmp(&packet.tuple, kind, code)),
        Kind::LaterFragment | Kind::Arp { .. } | Kind::Other | Kind::Malformed(_) => None,
    }
}

/// The Community ID of a flow, with seed 0: the same for both directions. Ports count for TCP, UDP
/// and SCTP. Not for ICMP and ICMPv6, whose types take part.
#[must_use]
pub fn community_id_of_flow(tuple: &FiveTuple) -> String {
    match tuple.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let source = (tuple.source, tuple.source_port);
            let target = (tuple.target, tuple.target_port);
            let (low, high) = if source <= target { (source, target) } else { (target, source) };
            name((low.0, high.0), tuple.protocol, Some((low.1, high.1)))
        }
        _ => {
            let ends = (tuple.source.min(tuple.target), tuple.source.max(tuple.target));
            name(ends, tuple.protocol, None)
        }
    }
}

fn community_id_of_icmp(tuple: &FiveTuple, kind: u8, code: u8) -> String {
    let (source_port, target_port) = icmp_ports(tuple.protocol, kind, code);
    let (source, target) = ((tuple.source, source_port), (tuple.target, target_port));
    let has_reply = icmp_reply(tuple.protocol, kind).is_some();
    let (low, high) =
        if source <= target || !has_reply { (source, target) } else { (target, source) };
    name((low.0, high.0), tuple.protocol, Some((low.1, high.1)))
}

/// What stands in the place of the ports of an ICMP or ICMPv6 message. Requests and their replies are
/// one flow: the types stand there. Messages that have no counterpart are flows of one direction: type
/// and code.
#[must_use]
pub const fn icmp_ports(protocol: u8, kind: u8, code: u8) -> (u16, u16) {
    match icmp_reply(protocol, kind) {
        Some(counterpart) => (kind as u16, counterpart as u16),
        None => (kind as u16, code as u16),
    }
}

const fn icmp_reply(protocol: u8, kind: u8) -> Option<u8> {
    match protocol {
        protocol::ICMP => icmp_counterpart(kind),
        _ => icmpv6_counterpart(kind),
    }
}

const fn icmp_counterpart(kind: u8) -> Option<u8> {
    match kind {
        // Echo.
        0 => Some(8),
        8 => Some(0),
        // Router advertisement and solicitation.
        9 => Some(10),
        10 => Some(9),
        // Timestamp, information, address mask.
        13 | 15 | 17 => Some(kind + 1),
        14 | 16 | 18 => Some(kind - 1),
        _ => None,
    }
}

const fn icmpv6_counterpart(kind: u8) -> Option<u8> {
    match kind {
        // Echo, multicast listener, who are you, home agent discovery.
        128 | 130 | 144 => Some(kind + 1),
        129 | 131 | 145 => Some(kind - 1),
        139 => Some(140),
        140 => Some(139),
        // Router and neighbor solicitation.
        133 | 135 => Some(kind + 1),
        134 | 136 => Some(kind - 1),
        _ => None,
    }
}

fn name(ends: (Address, Address), protocol: u8, ports: Option<(u16, u16)>) -> String {
    let mut hash = Sha1::new();
    hash.update(SEED.to_be_bytes());
    for end in [ends.0, ends.1] {
        match end.to_ip() {
            IpAddr::V4(v4) => hash.update(v4.octets()),
            IpAddr::V6(v6) => hash.update(v6.octets()),
        }
    }
    hash.update([protocol, 0]);
    if let Some((low, high)) = ports {
        hash.update(low.to_be_bytes());
        hash.update(high.to_be_bytes());
    }
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

/// What everybody uses unless told otherwise.
const SEED: u16 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, target: &str, protocol: u8, ports: (u16, u16)) -> FiveTuple {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        FiveTuple {
            source: address(source),
            target: address(target),
            source_port: ports.0,
            target_port: ports.1,
            protocol,
        }
    }

    #[test]
    fn flows_have_the_names_that_the_specification_gives_them() {
        let tcp = tuple("128.232.110.120", "66.35.250.204", protocol::TCP, (34_855, 80));
        assert_eq!(community_id_of_flow(&tcp), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        assert_eq!(community_id_of_flow(&tcp.reversed()), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        let udp = tuple("192.168.1.52", "8.8.8.8", protocol::UDP, (54_585, 53));
        assert_eq!(community_id_of_flow(&udp), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        let sctp = tuple("192.168.170.8", "192.168.170.56", protocol::SCTP, (7, 7));
        assert_eq!(community_id_of_flow(&sctp), "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=");
        let rsvp = tuple("10.1.12.1", "10.1.12.2", 46, (0, 0));
        assert_eq!(community_id_of_flow(&rsvp), "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw=");
        let v6 = "2001:470:e5bf:dead:4957:2174:e82c:4887";
        let v6 = tuple(v6, "2607:f8b0:400c:c03::1a", protocol::TCP, (63_943, 25));
        assert_eq!(community_id_of_flow(&v6), "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=");
    }

    #[test]
    fn an_icmp_request_and_its_reply_are_one_flow() {
        let echo = tuple("192.168.0.89", "192.168.0.1", protocol::ICMP, (0, 0));
        let icmp = |tuple, kind| Packet {
            tuple,
            kind: Kind::Icmp { kind, code: 0, quoted: None },
            ..Packet::default()
        };
        let expected = Some("1:X0snYXpgwiv9TZtqg64sgzUn6Dk=".to_owned());
        assert_eq!(community_id(&icmp(echo, 8)), expected);
        assert_eq!(community_id(&icmp(echo.reversed(), 0)), expected);
    }

    #[test]
    fn every_counterpart_has_its_counterpart() {
        for kind in 0..=u8::MAX {
            for counterpart in [icmp_counterpart, icmpv6_counterpart] {
                if let Some(other) = counterpart(kind) {
                    assert_eq!(counterpart(other), Some(kind));
                }
            }
        }
    }

    #[test]
    fn packets_that_do_not_tell_their_flow_have_no_name() {
        for kind in [Kind::LaterFragment, Kind::Arp { operation: 1 }, Kind::Other] {
            assert_eq!(community_id(&Packet { kind, ..Packet::default() }), None);
        }
    }
}
