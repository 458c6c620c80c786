//! Headers parsed in place: link layer, VLAN tags, IPv4 or IPv6, transport.
//!
//! Total on any bytes: every header is taken by a checked split, so there is no panic, and no
//! allocation, no recursion and no loop without a bound. What a frame carries beyond the length
//! that its IP header gives (padding, a frame check sequence) is never read as payload. Nothing is
//! reassembled, no checksum is verified, no tunnel is entered.

use super::{Address, FiveTuple, Kind, Malformed, Packet, protocol};
use crate::frame::{Frame, LinkType};

#[cfg(test)]
mod tests;

/// VLAN tags that are followed, those that the kernel took out included.
const MAX_TAGS: usize = 3;

/// IPv6 extension headers that are followed. RFC 8200 section 4.1 allows for seven.
const MAX_EXTENSIONS: usize = 8;

/// Longest Ethernet frame without jumbo frames: header, two tags, 1500 bytes, frame check sequence.
const MAX_ORDINARY_FRAME: usize = 1526;

/// Parses the headers of one frame.
///
/// A frame that was cut when it was captured is parsed as far as its headers reach. The third and
/// any further VLAN id is not kept.
///
/// Source: IEEE 802.3, IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443, RFC 826.
#[inline]
#[must_use]
pub fn parse(frame: &Frame<'_>) -> Packet {
    let mut packet = Packet::default();
    parse_into(&mut packet, frame);
    packet
}

/// [`parse`] into memory that is there already, whatever was in it. Saves the copy of a result.
#[inline]
pub fn parse_into(packet: &mut Packet, frame: &Frame<'_>) {
    *packet = Packet::default();
    if let Some(tag) = frame.vlan {
        packet.vlan_ids[0] = tag.id();
    }
    let parsed = if frame.link == LinkType::ETHERNET
        && let Some(([.., 0x08, 0x00], rest)) = frame.data.split_first_chunk::<14>()
    {
        ipv4(packet, rest, frame)
    } else {
        uncommon(packet, frame)
    };
    if let Err(fault) = parsed {
        packet.kind = Kind::Malformed(fault);
    }
}

/// All that is not plain IPv4 on Ethernet.
#[inline(never)]
fn uncommon(packet: &mut Packet, frame: &Frame<'_>) -> Result<(), Malformed> {
    let (mut ether_type, mut rest) = link_header(frame)?;
    let mut depth = usize::from(frame.vlan.is_some());
    while is_tag(ether_type) && depth < MAX_TAGS {
        let ([c0, c1, t0, t1], inner) = split(rest, Malformed::LinkTruncated)?;
        if let Some(id) = packet.vlan_ids.get_mut(depth) {
            *id = u16::from_be_bytes([*c0, *c1]) & 0x0fff;
        }
        ether_type = u16::from_be_bytes([*t0, *t1]);
        rest = inner;
        depth += 1;
    }
    match ether_type {
        ether_type::IPV4 => ipv4(packet, rest, frame),
        ether_type::IPV6 => ipv6(packet, rest, frame),
        ether_type::ARP => arp(packet, rest),
        // Also IEEE 802.3 frames, whose length stands in the place of the type (below 0x0600).
        _ => Ok(()),
    }
}

/// The EtherType that a link-layer header gives, and what follows the header.
fn link_header<'a>(frame: &Frame<'a>) -> Result<(u16, &'a [u8]), Malformed> {
    const FAULT: Malformed = Malformed::LinkTruncated;
    match frame.link {
        LinkType::ETHERNET => {
            let ([.., t0, t1], rest) = split::<14>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::LINUX_SLL => {
            let ([.., t0, t1], rest) = split::<16>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::LINUX_SLL2 => {
            let ([t0, t1, ..], rest) = split::<20>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::NULL => {
            let (family, rest) = split::<4>(frame.data, FAULT)?;
            Ok((ether_type_of_family(*family), rest))
        }
        LinkType::RAW => match frame.data.first().ok_or(FAULT)? >> 4 {
            4 => Ok((ether_type::IPV4, frame.data)),
            6 => Ok((ether_type::IPV6, frame.data)),
            _ => Err(Malformed::IpVersion),
        },
        LinkType::IPV4 => Ok((ether_type::IPV4, frame.data)),
        LinkType::IPV6 => Ok((ether_type::IPV6, frame.data)),
        _ => Err(Malformed::LinkUnsupported),
    }
}

/// The EtherType for an address family in either byte order, 0 for one that is not IP. AF_INET6
/// differs between systems. Source: <https://www.tcpdump.org/linktypes/LINKTYPE_NULL.html>
const fn ether_type_of_family(family: [u8; 4]) -> u16 {
    match family {
        [2, 0, 0, 0] | [0, 0, 0, 2] => ether_type::IPV4,
        [10 | 24 | 28 | 30, 0, 0, 0] | [0, 0, 0, 10 | 24 | 28 | 30] => ether_type::IPV6,
        _ => 0,
    }
}

const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ether_type::VLAN | ether_type::SERVICE_VLAN | ether_type::OLD_QINQ)
}

/// Is the ARP packet all there? Its addresses are not needed.
fn arp(packet: &mut Packet, bytes: &[u8]) -> Result<(), Malformed> {
    let ([.., hardware_len, protocol_len, _, _], addresses) =
        split::<8>(bytes, Malformed::ArpHeader)?;
    let needed = 2 * (usize::from(*hardware_len) + usize::from(*protocol_len));
    if addresses.len() < needed {
        return Err(Malformed::ArpHeader);
    }
    packet.kind = Kind::Arp;
    Ok(())
}

/// The fixed part of an IPv4 header.
struct Ipv4Header {
    version: u8,
    /// Bytes, options included.
    header_len: usize,
    /// Bytes, header included.
    total_len: usize,
    more_fragments: bool,
    /// In units of 8 bytes.
    fragment_offset: u16,
    /// Without ports.
    tuple: FiveTuple,
}

impl Ipv4Header {
    #[inline]
    fn read(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        #[rustfmt::skip]
        let [
            version_and_len, _, total0, total1,
            _, _, fragment0, fragment1,
            _, protocol, _, _,
            s0, s1, s2, s3,
            t0, t1, t2, t3,
        ] = *header;
        let fragment = u16::from_be_bytes([fragment0, fragment1]);
        Some(Self {
            version: version_and_len >> 4,
            header_len: usize::from(version_and_len & 0x0f) * 4,
            total_len: usize::from(u16::from_be_bytes([total0, total1])),
            more_fragments: fragment & 0x2000 != 0,
            fragment_offset: fragment & 0x1fff,
            tuple: FiveTuple {
                source: Address::from_v4([s0, s1, s2, s3]),
                target: Address::from_v4([t0, t1, t2, t3]),
                protocol,
                ..FiveTuple::default()
            },
        })
    }
}

#[inline]
fn ipv4(packet: &mut Packet, bytes: &[u8], frame: &Frame<'_>) -> Result<(), Malformed> {
    let header = Ipv4Header::read(bytes).ok_or(Malformed::Ipv4Header)?;
    if header.version != 4 {
        return Err(Malformed::IpVersion);
    }
    packet.tuple = header.tuple;
    if header.header_len < 20 || header.header_len > bytes.len() {
        return Err(Malformed::Ipv4Header);
    }
    let end = match header.total_len {
        0 if is_unsegmented(frame) => bytes.len(),
        total => total.min(bytes.len()),
    };
    // Not there if `end` lies before the end of the header.
    let payload = bytes.get(header.header_len..end).ok_or(Malformed::Ipv4TotalLength)?;
    packet.is_fragment = header.more_fragments || header.fragment_offset != 0;
    if header.fragment_offset != 0 {
        packet.kind = Kind::LaterFragment;
        return Ok(());
    }
    match header.tuple.protocol {
        protocol::TCP => tcp(packet, payload),
        protocol::UDP => udp(packet, payload),
        protocol::ICMP => icmp(packet, payload),
        _ => {
            other(packet, payload);
            Ok(())
        }
    }
}

/// Can a length of 0 in the IP header mean "more than the field holds"? So it does in frames that
/// are yet to be segmented by the network card, which exceed any that go over a wire as they are.
fn is_unsegmented(frame: &Frame<'_>) -> bool {
    frame.wire_len.0 as usize > MAX_ORDINARY_FRAME
}

/// The fixed IPv6 header.
struct Ipv6Header {
    version: u8,
    /// Bytes after this header.
    payload_len: usize,
    /// Without ports; the protocol is the type of the next header.
    tuple: FiveTuple,
}

impl Ipv6Header {
    /// The header, and what follows it.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([first, _, _, _, len0, len1, next, _], rest) = bytes.split_first_chunk()?;
        let (source, rest) = rest.split_first_chunk()?;
        let (target, rest) = rest.split_first_chunk()?;
        let header = Self {
            version: first >> 4,
            payload_len: usize::from(u16::from_be_bytes([*len0, *len1])),
            tuple: FiveTuple {
                source: Address::from_v6(*source),
                target: Address::from_v6(*target),
                protocol: *next,
                ..FiveTuple::default()
            },
        };
        Some((header, rest))
    }
}

fn ipv6(packet: &mut Packet, bytes: &[u8], frame: &Frame<'_>) -> Result<(), Malformed> {
    let (header, rest) = Ipv6Header::read(bytes).ok_or(Malformed::Ipv6Header)?;
    if header.version != 6 {
        return Err(Malformed::IpVersion);
    }
    packet.tuple = header.tuple;
    let end = match header.payload_len {
        // A jumbo payload (RFC 2675); its own length, 65 536 or more, does not matter here.
        0 if is_unsegmented(frame) => rest.len(),
        len => len.min(rest.len()),
    };
    let chain = Chain::follow(header.tuple.protocol, rest.get(..end).unwrap_or(rest))?;
    packet.tuple.protocol = chain.protocol;
    packet.is_fragment = chain.is_fragment;
    if chain.is_later_fragment {
        packet.kind = Kind::LaterFragment;
        return Ok(());
    }
    match chain.protocol {
        protocol::TCP => tcp(packet, chain.payload),
        protocol::UDP => udp(packet, chain.payload),
        protocol::ICMPV6 => icmpv6(packet, chain.payload),
        _ => {
            other(packet, chain.payload);
            Ok(())
        }
    }
}

/// Where a chain of IPv6 extension headers ends.
struct Chain<'a> {
    /// What follows: a transport protocol, mobility (135), or nothing (59).
    protocol: u8,
    is_fragment: bool,
    is_later_fragment: bool,
    payload: &'a [u8],
}

impl<'a> Chain<'a> {
    /// Follows the headers from the one of type `protocol` on.
    fn follow(protocol: u8, payload: &'a [u8]) -> Result<Self, Malformed> {
        const FAULT: Malformed = Malformed::Ipv6Extension;
        let mut chain = Self { protocol, is_fragment: false, is_later_fragment: false, payload };
        for _ in 0..=MAX_EXTENSIONS {
            let header_type = chain.protocol;
            if !is_extension(header_type) || chain.is_later_fragment {
                return Ok(chain);
            }
            let [next, len, o0, o1, ..] = *chain.payload.first_chunk::<8>().ok_or(FAULT)?;
            let header_len = match header_type {
                extension::FRAGMENT => 8,
                extension::AUTHENTICATION => (usize::from(len) + 2) * 4,
                _ => (usize::from(len) + 1) * 8,
            };
            if header_type == extension::FRAGMENT {
                let offset_and_more = u16::from_be_bytes([o0, o1]);
                chain.is_later_fragment = offset_and_more & 0xfff8 != 0;
                // A fragment that is the whole packet is none (RFC 6946).
                chain.is_fragment |= offset_and_more & 0xfff9 != 0;
            }
            chain.protocol = next;
            chain.payload = chain.payload.get(header_len..).ok_or(FAULT)?;
        }
        Err(FAULT)
    }
}

const fn is_extension(header_type: u8) -> bool {
    matches!(
        header_type,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

#[inline]
fn tcp(packet: &mut Packet, bytes: &[u8]) -> Result<(), Malformed> {
    let header: &[u8; 20] = bytes.first_chunk().ok_or(Malformed::TcpHeader)?;
    let [s0, s1, t0, t1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, ..] = *header;
    if offset >> 4 < 5 {
        return Err(Malformed::TcpHeader);
    }
    packet.tuple.source_port = u16::from_be_bytes([s0, s1]);
    packet.tuple.target_port = u16::from_be_bytes([t0, t1]);
    packet.kind = Kind::Tcp {
        flags,
        sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
    };
    Ok(())
}

#[inline]
fn udp(packet: &mut Packet, bytes: &[u8]) -> Result<(), Malformed> {
    let [s0, s1, t0, t1, ..] = *bytes.first_chunk::<8>().ok_or(Malformed::UdpHeader)?;
    packet.tuple.source_port = u16::from_be_bytes([s0, s1]);
    packet.tuple.target_port = u16::from_be_bytes([t0, t1]);
    packet.kind = Kind::Udp;
    Ok(())
}

/// SCTP has its ports where TCP has them; other protocols have none.
fn other(packet: &mut Packet, bytes: &[u8]) {
    if let Some(tuple) = with_ports(packet.tuple, bytes) {
        packet.tuple = tuple;
    }
    packet.kind = Kind::OtherIp;
}

fn icmp(packet: &mut Packet, bytes: &[u8]) -> Result<(), Malformed> {
    let [kind, code, ..] = *bytes.first_chunk::<4>().ok_or(Malformed::IcmpHeader)?;
    // Unreachable, source quench, redirect, time exceeded, parameter problem.
    let is_error = matches!(kind, 3 | 4 | 5 | 11 | 12);
    let quoted = if is_error { bytes.get(8..).and_then(quoted_ipv4) } else { None };
    packet.kind = Kind::Icmp { kind, code, quoted };
    Ok(())
}

fn icmpv6(packet: &mut Packet, bytes: &[u8]) -> Result<(), Malformed> {
    let [kind, code, ..] = *bytes.first_chunk::<4>().ok_or(Malformed::IcmpHeader)?;
    // Unreachable, packet too big, time exceeded, parameter problem.
    let is_error = matches!(kind, 1..=4);
    let quoted = if is_error { bytes.get(8..).and_then(quoted_ipv6) } else { None };
    packet.kind = Kind::Icmp { kind, code, quoted };
    Ok(())
}

/// The tuple of the packet that begins here; its lengths are not those of the quotation.
fn quoted_ipv4(bytes: &[u8]) -> Option<FiveTuple> {
    let header = Ipv4Header::read(bytes)?;
    if header.version != 4 || header.header_len < 20 || header.fragment_offset != 0 {
        return None;
    }
    with_ports(header.tuple, bytes.get(header.header_len..)?)
}

/// The tuple of the packet that begins here; its lengths are not those of the quotation.
fn quoted_ipv6(bytes: &[u8]) -> Option<FiveTuple> {
    let (header, rest) = Ipv6Header::read(bytes)?;
    let chain = Chain::follow(header.tuple.protocol, rest).ok()?;
    if header.version != 6 || chain.is_later_fragment {
        return None;
    }
    with_ports(FiveTuple { protocol: chain.protocol, ..header.tuple }, chain.payload)
}

/// The tuple with the ports that its protocol has, `None` if they are missing.
fn with_ports(tuple: FiveTuple, bytes: &[u8]) -> Option<FiveTuple> {
    if !matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return Some(tuple);
    }
    let [s0, s1, t0, t1] = *bytes.first_chunk()?;
    Some(FiveTuple {
        source_port: u16::from_be_bytes([s0, s1]),
        target_port: u16::from_be_bytes([t0, t1]),
        ..tuple
    })
}

#[inline]
fn split<const N: usize>(bytes: &[u8], fault: Malformed) -> Result<(&[u8; N], &[u8]), Malformed> {
    bytes.split_first_chunk().ok_or(fault)
}

/// EtherTypes (Source: IEEE registration authority).
mod ether_type {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const ARP: u16 = 0x0806;
    pub(super) const VLAN: u16 = 0x8100;
    pub(super) const IPV6: u16 = 0x86dd;
    pub(super) const SERVICE_VLAN: u16 = 0x88a8;
    /// For outer tags, from before 802.1ad.
    pub(super) const OLD_QINQ: u16 = 0x9100;
}

/// IPv6 extension headers that something can follow (Source: IANA protocol numbers). "No next
/// header" (59) and the mobility header, which nothing may follow (RFC 6275 section 6.1.1), end a
/// chain like a transport protocol.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}
