//! Tunnels, followed to the flow in them: IP in IP, GRE, ERSPAN, VXLAN, GENEVE.
//!
//! Two rules say what a packet is when the inside gives trouble:
//!
//! - An IP protocol number (4, 41, 47) says for sure that this is a tunnel: what cannot be parsed in
//!   there is malformed. A UDP port says little: a datagram counts as a tunnel only if the tunnel's header
//!   is as its specification wants it (reserved bits included) and a sound IP header follows. Else it
//!   is an ordinary datagram, whatever its payload.
//! - A tunnel that carries no IP packet (ARP, spanning tree, keep-alives), one that nobody here knows, and
//!   every fragment is itself the flow.
//!
//! Modules call each other in a circle: [`parse::ipv4`] enters a tunnel, which has it parse the next
//! header. [`MAX_TUNNELS`] bounds that.

use super::link::{self, Carried, ether_type};
use super::{Malformed, Packet, parse, protocol};
use crate::frame::Frame;

/// Tunnels within each other that are entered. What lies deeper is counted, not looked at.
pub(super) const MAX_TUNNELS: u8 = 4;

/// UDP port of VXLAN. Source: RFC 7348 section 5.
pub(super) const VXLAN_PORT: u16 = 4789;

/// UDP port of GENEVE. Source: RFC 8926 section 3.3.
pub(super) const GENEVE_PORT: u16 = 6081;

/// Source route entries of a GRE header that are skipped.
const MAX_ROUTES: usize = 8;

/// Enters the tunnel that the IP protocol of `packet` stands for. `bytes` follow its IP header.
pub(super) fn enter_ip_protocol(
    packet: &mut Packet,
    bytes: &[u8],
    frame: &Frame<'_>,
) -> Result<(), Malformed> {
    if packet.is_fragment {
        return Ok(());
    }
    let carried = match packet.tuple.protocol {
        protocol::IPV4 => Carried::Ipv4(bytes),
        protocol::IPV6 => Carried::Ipv6(bytes),
        _ => gre(bytes, frame)?,
    };
    match carried {
        Carried::Ipv4(inner) => parse::check_ipv4(inner, frame)?,
        Carried::Ipv6(inner) => parse::check_ipv6(inner)?,
        Carried::Arp(_) | Carried::Other => return Ok(()),
    }
    enter(packet, carried, frame)
}

/// Enters the tunnel that the UDP port of `packet` may stand for. `bytes` begin with the UDP header.
#[inline(never)]
pub(super) fn enter_udp(
    packet: &mut Packet,
    bytes: &[u8],
    frame: &Frame<'_>,
) -> Result<(), Malformed> {
    if packet.is_fragment {
        return Ok(());
    }
    let payload = bytes.get(8..).unwrap_or_default();
    let carried = match packet.tuple.target_port {
        VXLAN_PORT => vxlan(payload, frame),
        _ => geneve(payload, frame),
    };
    match carried {
        Some(Carried::Ipv4(inner)) if parse::is_sound_ipv4(inner, frame) => {
            enter(packet, Carried::Ipv4(inner), frame)
        }
        Some(Carried::Ipv6(inner)) if parse::is_sound_ipv6(inner, frame) => {
            enter(packet, Carried::Ipv6(inner), frame)
        }
        _ => Ok(()),
    }
}

/// Makes the inner packet the packet.
fn enter(packet: &mut Packet, inner: Carried<'_>, frame: &Frame<'_>) -> Result<(), Malformed> {
    if packet.tunnel_depth == MAX_TUNNELS {
        return Err(Malformed::TunnelDepth);
    }
    packet.tunnel_depth += 1;
    match inner {
        Carried::Ipv4(bytes) => parse::ipv4(packet, bytes, frame),
        Carried::Ipv6(bytes) => parse::ipv6(packet, bytes, frame),
        Carried::Arp(_) | Carried::Other => Ok(()),
    }
}

/// What a GRE packet carries. Source: RFC 2784, RFC 2890; for the routing field RFC 1701.
fn gre<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    const FAULT: Malformed = Malformed::GreHeader;
    const CHECKSUM: u16 = 0x8000;
    const ROUTING: u16 = 0x4000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    let ([f0, f1, t0, t1], rest) = parse::split(bytes, FAULT)?;
    let flags = u16::from_be_bytes([*f0, *f1]);
    let carried_type = u16::from_be_bytes([*t0, *t1]);
    match flags & 0x0007 {
        0 => {}
        1 if carried_type == gre::PPP => return pptp(flags, rest, frame),
        _ => return Ok(Carried::Other),
    }
    let has_checksum = flags & (CHECKSUM | ROUTING) != 0;
    let words = [has_checksum, flags & KEY != 0, flags & SEQUENCE != 0];
    let optional_len = words.iter().filter(|is_there| **is_there).count() * 4;
    let mut inner = rest.get(optional_len..).ok_or(FAULT)?;
    if flags & ROUTING != 0 {
        inner = skip_routes(inner).ok_or(FAULT)?;
    }
    match carried_type {
        ether_type::ETHERNET => link::follow_inner_ethernet(inner, frame),
        // Only type II of ERSPAN has a sequence number, and a header.
        gre::ERSPAN if flags & SEQUENCE == 0 => link::follow_inner_ethernet(inner, frame),
        gre::ERSPAN => erspan_2(inner, frame),
        gre::ERSPAN_3 => erspan_3(inner, frame),
        other => link::follow_inner(other, inner, frame),
    }
}

/// What follows the source route entries, the last of which is empty.
fn skip_routes(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    for _ in 0..MAX_ROUTES {
        let ([family0, family1, _, len], behind) = rest.split_first_chunk()?;
        rest = behind.get(usize::from(*len)..)?;
        if [*family0, *family1, *len] == [0; 3] {
            return Some(rest);
        }
    }
    None
}

/// What a PPTP packet carries: GRE of version 1, in which the key holds length and call.
///
/// Source: RFC 2637 section 4.1.
fn pptp<'a>(flags: u16, bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    const FAULT: Malformed = Malformed::GreHeader;
    const SEQUENCE: u16 = 0x1000;
    const ACKNOWLEDGEMENT: u16 = 0x0080;
    let ([len0, len1, _, _], rest) = parse::split(bytes, FAULT)?;
    if flags & SEQUENCE == 0 {
        // An acknowledgement alone.
        return Ok(Carried::Other);
    }
    let optional_len = if flags & ACKNOWLEDGEMENT == 0 { 4 } else { 8 };
    let rest = rest.get(optional_len..).ok_or(FAULT)?;
    let len = usize::from(u16::from_be_bytes([*len0, *len1]));
    // Shorter where the capture was cut.
    let payload = rest.get(..len).unwrap_or(rest);
    // Address and control field, which the ends may agree to leave out.
    let payload = payload.strip_prefix(&[0xff, 0x03]).unwrap_or(payload);
    link::ppp(payload, frame).ok_or(FAULT)?
}

/// What a mirrored frame of ERSPAN type II is. Source: draft-foschiano-erspan-03 section 4.1.
fn erspan_2<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    let ([version, ..], inner) = parse::split::<8>(bytes, Malformed::GreHeader)?;
    match version >> 4 {
        1 => link::follow_inner_ethernet(inner, frame),
        _ => Ok(Carried::Other),
    }
}

/// What a mirrored frame of ERSPAN type III is. Source: draft-foschiano-erspan-03 section 4.2.
fn erspan_3<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    const FAULT: Malformed = Malformed::GreHeader;
    let ([version, .., kind, last], inner) = parse::split::<12>(bytes, FAULT)?;
    if version >> 4 != 2 {
        return Ok(Carried::Other);
    }
    let has_platform_header = last & 1 == 1;
    let inner = inner.get(if has_platform_header { 8 } else { 0 }..).ok_or(FAULT)?;
    // The frame type stands in five bits from the second of its byte on.
    match kind >> 2 & 0x1f {
        0 => link::follow_inner_ethernet(inner, frame),
        2 => Ok(match inner.first().map(|first| first >> 4) {
            Some(6) => Carried::Ipv6(inner),
            _ => Carried::Ipv4(inner),
        }),
        _ => Ok(Carried::Other),
    }
}

/// What a VXLAN packet carries, `None` if this is none.
///
/// Source: RFC 7348 section 5, draft-smith-vxlan-group-policy-05 section 2.1,
/// draft-ietf-nvo3-vxlan-gpe-13 section 3.1.
fn vxlan<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Option<Carried<'a>> {
    let (header, inner) = bytes.split_first_chunk::<8>()?;
    match header {
        // Nothing but a network id, one with a group, one that names Ethernet as its next protocol.
        [0x08, 0, 0, 0, _, _, _, 0] | [0x88, _, _, _, _, _, _, 0] | [0x0c, 0, 0, 3, _, _, _, 0] => {
            link::follow_inner_ethernet(inner, frame).ok()
        }
        _ => None,
    }
}

/// What a GENEVE packet carries, `None` if this is none, or one of its control packets.
///
/// Source: RFC 8926 section 3.4.
fn geneve<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Option<Carried<'a>> {
    const CONTROL_AND_RESERVED: u8 = 0xbf;
    let ([version_and_len, flags, t0, t1, _, _, _, reserved], rest) = bytes.split_first_chunk()?;
    if version_and_len >> 6 != 0 || flags & CONTROL_AND_RESERVED != 0 || *reserved != 0 {
        return None;
    }
    let options_len = usize::from(version_and_len & 0x3f) * 4;
    let inner = rest.get(options_len..)?;
    match u16::from_be_bytes([*t0, *t1]) {
        ether_type::ETHERNET => link::follow_inner_ethernet(inner, frame).ok(),
        ether_type::IPV4 => Some(Carried::Ipv4(inner)),
        ether_type::IPV6 => Some(Carried::Ipv6(inner)),
        other => link::follow_inner(other, inner, frame).ok(),
    }
}

/// What GRE carries besides EtherTypes.
mod gre {
    /// Source: RFC 2637 section 4.1.
    pub(super) const PPP: u16 = 0x880b;
    /// Types I and II. Source: draft-foschiano-erspan-03 section 4.1.
    pub(super) const ERSPAN: u16 = 0x88be;
    /// Source: draft-foschiano-erspan-03 section 4.2.
    pub(super) const ERSPAN_3: u16 = 0x22eb;
}
