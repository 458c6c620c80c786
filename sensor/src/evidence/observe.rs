//! What one packet says about one contact.

use packet::{Address, FiveTuple, Kind, Packet, protocol, tcp};

use super::{Class, ContactKey, Observation};
use crate::flow::Change;

/// What `packet` says about a contact, if anything, whatever was seen before. Pure.
///
/// An RST speaks about the contact *from* the receiver of the packet, as an answer does; one that ends
/// a good connection, or that a scanner sends to drop a port it found open, meets no attempt, or one
/// that was answered, and is then no evidence.
///
/// Source: RFC 9293 section 3.10.7.1 (RST answers a closed port), RFC 792 (types 3 and 11), RFC 4443 (types 1,
/// 3 and 4), RFC 826 (ARP).
#[inline]
#[must_use]
pub fn observe(packet: &Packet) -> Option<(ContactKey, Observation)> {
    match packet.kind {
        Kind::Tcp { flags, .. } => segment(&packet.tuple, flags),
        Kind::Icmp { kind, code, quoted: None } => request_or_reply(&packet.tuple, kind, code),
        // An error goes to whoever sent what it quotes; one that goes elsewhere is made up.
        Kind::Icmp { kind, code, quoted: Some(quoted) } if quoted.source == packet.tuple.target => {
            error(packet.tuple.protocol, kind, code, &quoted)
        }
        Kind::Arp { operation } => arp(&packet.tuple, operation),
        Kind::Malformed(_) => bare_protocol(&packet.tuple),
        _ => None,
    }
}

/// What `packet` says about a contact by the `change` that it makes to its flow, if anything. Pure.
#[must_use]
pub fn observe_change(packet: &Packet, change: Change) -> Option<(ContactKey, Observation)> {
    let tuple = &packet.tuple;
    match (change, packet.kind) {
        (Change::Began, Kind::Udp) => first_datagram(tuple),
        (Change::Began, Kind::Tcp { flags, .. }) => stray_segment(tuple, flags),
        (Change::Began, Kind::OtherIp | Kind::Sctp { .. }) => {
            (!is_multicast(tuple.target)).then(|| (protocol_of(tuple), Observation::Attempted))
        }
        (Change::Answered, _) => answer(packet),
        (Change::Completed | Change::Claimed, Kind::Tcp { flags, .. }) if flags & tcp::PSH == 0 => {
            Some((port_of(Class::Tcp, tuple), Observation::Completed))
        }
        (Change::Completed | Change::Claimed | Change::Carried, Kind::Tcp { .. }) => {
            Some((port_of(Class::Tcp, tuple), Observation::Carried))
        }
        _ => None,
    }
}

/// What the first `packet` of a flow that one worker sees may be besides: an answer to a packet that another
/// worker saw. Where both directions of a flow come to one worker, nobody needs it. Pure.
#[must_use]
pub fn observe_other_half(packet: &Packet, change: Change) -> Option<(ContactKey, Observation)> {
    match (change, packet.kind) {
        (Change::Began, Kind::Tcp { flags, .. }) if flags & (tcp::SYN | tcp::RST) != 0 => None,
        (Change::Began, _) => answer(packet),
        _ => None,
    }
}

/// The contact that `packet` answers, if it is an answer.
fn answer(packet: &Packet) -> Option<(ContactKey, Observation)> {
    let back = packet.tuple.reversed();
    let key = match packet.kind {
        Kind::Udp => port_of(Class::Udp, &back),
        Kind::Tcp { .. } => port_of(Class::Tcp, &back),
        Kind::OtherIp | Kind::Sctp { .. } => protocol_of(&back),
        _ => return None,
    };
    Some((key, Observation::Answered))
}

/// A TCP segment, by its flags alone.
#[inline]
fn segment(tuple: &FiveTuple, flags: u8) -> Option<(ContactKey, Observation)> {
    const DECISIVE: u8 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
    const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
    const RST_ACK: u8 = tcp::RST | tcp::ACK;
    const SYN_FIN: u8 = tcp::SYN | tcp::FIN;
    const PSH_URG: u8 = tcp::PSH | tcp::URG;
    let observation = match flags & DECISIVE {
        tcp::SYN => Observation::Attempted,
        SYN_ACK => Observation::Answered,
        tcp::RST | RST_ACK => Observation::Refused,
        SYN_FIN => Observation::SynFin,
        tcp::FIN if flags & PSH_URG == 0 => Observation::Fin,
        tcp::FIN if flags & PSH_URG == PSH_URG => Observation::Xmas,
        0 if flags & PSH_URG == 0 => Observation::Null,
        _ => return None,
    };
    let is_answer = matches!(observation, Observation::Answered | Observation::Refused);
    let tuple = if is_answer { &tuple.reversed() } else { tuple };
    Some((port_of(Class::Tcp, tuple), observation))
}

/// A segment of no connection that is known.
fn stray_segment(tuple: &FiveTuple, flags: u8) -> Option<(ContactKey, Observation)> {
    const DECISIVE: u8 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
    const FIN_ACK: u8 = tcp::FIN | tcp::ACK;
    let observation = match flags & DECISIVE {
        tcp::ACK => Observation::Ack,
        FIN_ACK => Observation::Maimon,
        _ => return None,
    };
    // What a server sends to a client on a connection that nobody here remembers is no question.
    let is_from_service = tuple.source_port < FIRST_EPHEMERAL_PORT;
    (tuple.target_port < FIRST_EPHEMERAL_PORT || !is_from_service)
        .then(|| (port_of(Class::Tcp, tuple), observation))
}

/// Ports from this one on are those that systems give to clients (Linux; RFC 6335 has 49 152).
const FIRST_EPHEMERAL_PORT: u16 = 32_768;

/// Ports that traceroute counts up from, one for each probe.
const TRACEROUTE: std::ops::RangeInclusive<u16> = 33_434..=33_534;

/// Ports below this one are those of services.
const FIRST_USER_PORT: u16 = 1024;

/// Services that are asked by multicast and answer from an address of their own: WS-Discovery, SSDP, mDNS,
/// LLMNR.
const ANSWERED_FROM_ELSEWHERE: [u16; 4] = [3702, 1900, 5353, 5355];

/// The first datagram of a flow: an attempt, unless it comes from a service, whose client then asked
/// before anybody looked, or is a step of a traceroute, or goes to many.
fn first_datagram(tuple: &FiveTuple) -> Option<(ContactKey, Observation)> {
    if is_multicast(tuple.target) || TRACEROUTE.contains(&tuple.target_port) {
        return None;
    }
    let is_from_service =
        tuple.source_port < FIRST_USER_PORT || ANSWERED_FROM_ELSEWHERE.contains(&tuple.source_port);
    if is_from_service && tuple.target_port >= FIRST_USER_PORT {
        return Some((port_of(Class::Udp, &tuple.reversed()), Observation::Answered));
    }
    Some((port_of(Class::Udp, tuple), Observation::Attempted))
}

/// Requests and replies of ICMP and ICMPv6.
fn request_or_reply(tuple: &FiveTuple, kind: u8, code: u8) -> Option<(ContactKey, Observation)> {
    let is_request = match (tuple.protocol, kind, code) {
        (protocol::ICMP, 8 | 13 | 17, 0) | (protocol::ICMPV6, 128, 0) => true,
        (protocol::ICMP, 0 | 14 | 18, 0) | (protocol::ICMPV6, 129, 0) => false,
        _ => return None,
    };
    if is_multicast(tuple.target) {
        return None;
    }
    Some(if is_request {
        (host_of(Class::Icmp, tuple), Observation::Attempted)
    } else {
        (host_of(Class::Icmp, &tuple.reversed()), Observation::Answered)
    })
}

/// An error message of ICMP or ICMPv6, about the packet that it quotes.
fn error(by: u8, kind: u8, code: u8, quoted: &FiveTuple) -> Option<(ContactKey, Observation)> {
    const FRAGMENTATION_NEEDED: u8 = 4;
    const UNKNOWN_NEXT_HEADER: u8 = 1;
    let observation = match (by, kind) {
        (protocol::ICMP, 3) if code != FRAGMENTATION_NEEDED => Observation::Refused,
        (protocol::ICMPV6, 1) => Observation::Refused,
        (protocol::ICMPV6, 4) if code == UNKNOWN_NEXT_HEADER => Observation::Refused,
        (protocol::ICMP, 11) | (protocol::ICMPV6, 3) if code == 0 => Observation::Exceeded,
        _ => return None,
    };
    const PROTOCOL_UNREACHABLE: u8 = 2;
    let key = match quoted.protocol {
        _ if by == protocol::ICMP && kind == 3 && code == PROTOCOL_UNREACHABLE => {
            protocol_of(quoted)
        }
        protocol::TCP => port_of(Class::Tcp, quoted),
        protocol::UDP => port_of(Class::Udp, quoted),
        protocol::ICMP | protocol::ICMPV6 => host_of(Class::Icmp, quoted),
        _ => protocol_of(quoted),
    };
    Some((key, observation))
}

/// ARP: a request for another's address, and the reply.
fn arp(tuple: &FiveTuple, operation: u16) -> Option<(ContactKey, Observation)> {
    const UNSPECIFIED: Address = Address::from_v4([0; 4]);
    const NONE: Address = Address::from_v6([0; 16]);
    let FiveTuple { source, target, .. } = *tuple;
    // Who looks for its own address, or has none yet, only makes sure that it is free.
    if source == target || [UNSPECIFIED, NONE].contains(&source) {
        return None;
    }
    match operation {
        1 => Some((host_of(Class::Arp, tuple), Observation::Attempted)),
        2 => Some((host_of(Class::Arp, &tuple.reversed()), Observation::Answered)),
        _ => None,
    }
}

/// A header of an IP protocol with nothing, or nonsense, behind it.
fn bare_protocol(tuple: &FiveTuple) -> Option<(ContactKey, Observation)> {
    match tuple.protocol {
        0 | protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 => None,
        _ if is_multicast(tuple.target) => None,
        _ => Some((protocol_of(tuple), Observation::Attempted)),
    }
}

const fn port_of(class: Class, tuple: &FiveTuple) -> ContactKey {
    ContactKey { source: tuple.source, target: tuple.target, class, port: tuple.target_port }
}

const fn host_of(class: Class, tuple: &FiveTuple) -> ContactKey {
    ContactKey { source: tuple.source, target: tuple.target, class, port: 0 }
}

const fn protocol_of(tuple: &FiveTuple) -> ContactKey {
    let FiveTuple { source, target, protocol, .. } = *tuple;
    ContactKey { source, target, class: Class::Ip, port: protocol as u16 }
}

/// An address of many: multicast (RFC 5771, RFC 4291 section 2.7), or the limited broadcast.
const fn is_multicast(address: Address) -> bool {
    if address.is_v4() {
        let low = address.low() as u32;
        low >> 28 == 0xe || low == u32::MAX
    } else {
        address.high() >> 56 == 0xff
    }
}
