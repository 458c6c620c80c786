//! Link-layer headers: what a capture begins with, VLAN tags, MPLS label stacks, PPPoE sessions.

use super::{Malformed, parse};
use crate::frame::{Frame, LinkType};

/// VLAN tags that are followed, those that the kernel took out included.
const MAX_TAGS: usize = 3;

/// MPLS labels that are followed. Stacks of real networks hold up to five or so, twice that with
/// entropy labels.
const MAX_LABELS: usize = 16;

/// What link-layer headers lead to, with the bytes behind them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Carried<'a> {
    Ipv4(&'a [u8]),
    Ipv6(&'a [u8]),
    Arp(&'a [u8]),
    /// Nothing that is looked at.
    Other,
}

/// VLAN tags as they are met.
pub(super) struct Tags {
    /// The ids of the first two.
    pub(super) ids: [u16; 2],
    /// How many there were.
    pub(super) count: usize,
}

/// Follows a frame's link-layer headers to what they carry.
pub(super) fn follow<'a>(frame: &Frame<'a>, tags: &mut Tags) -> Result<Carried<'a>, Malformed> {
    let (ether_type, rest) = header(frame)?;
    follow_ether_type(ether_type, rest, frame, tags)
}

/// Follows an Ethernet frame that lies in a tunnel. Ids of tags in there are not kept.
pub(super) fn follow_inner_ethernet<'a>(
    bytes: &'a [u8],
    frame: &Frame<'_>,
) -> Result<Carried<'a>, Malformed> {
    let ([.., t0, t1], rest) = parse::split::<14>(bytes, Malformed::LinkTruncated)?;
    follow_inner(u16::from_be_bytes([*t0, *t1]), rest, frame)
}

/// Follows what a tunnel says to be of this EtherType.
pub(super) fn follow_inner<'a>(
    ether_type: u16,
    bytes: &'a [u8],
    frame: &Frame<'_>,
) -> Result<Carried<'a>, Malformed> {
    follow_ether_type(ether_type, bytes, frame, &mut Tags { ids: [0; 2], count: 0 })
}

fn follow_ether_type<'a>(
    mut ether_type: u16,
    mut rest: &'a [u8],
    frame: &Frame<'_>,
    tags: &mut Tags,
) -> Result<Carried<'a>, Malformed> {
    while is_tag(ether_type) && tags.count < MAX_TAGS {
        let ([c0, c1, t0, t1], inner) = parse::split(rest, Malformed::LinkTruncated)?;
        if let Some(id) = tags.ids.get_mut(tags.count) {
            *id = u16::from_be_bytes([*c0, *c1]) & 0x0fff;
        }
        ether_type = u16::from_be_bytes([*t0, *t1]);
        rest = inner;
        tags.count += 1;
    }
    match ether_type {
        ether_type::IPV4 => Ok(Carried::Ipv4(rest)),
        ether_type::IPV6 => Ok(Carried::Ipv6(rest)),
        ether_type::ARP => Ok(Carried::Arp(rest)),
        ether_type::MPLS | ether_type::MPLS_UPSTREAM => mpls(rest, frame),
        ether_type::PPPOE_SESSION => pppoe(rest, frame),
        // Also IEEE 802.3 frames, whose length stands in the place of the type (below 0x0600).
        _ => Ok(Carried::Other),
    }
}

/// The EtherType that a link-layer header gives, and what follows the header.
fn header<'a>(frame: &Frame<'a>) -> Result<(u16, &'a [u8]), Malformed> {
    const FAULT: Malformed = Malformed::LinkTruncated;
    match frame.link {
        LinkType::ETHERNET => {
            let ([.., t0, t1], rest) = parse::split::<14>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::LINUX_SLL => {
            let ([.., t0, t1], rest) = parse::split::<16>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::LINUX_SLL2 => {
            let ([t0, t1, ..], rest) = parse::split::<20>(frame.data, FAULT)?;
            Ok((u16::from_be_bytes([*t0, *t1]), rest))
        }
        LinkType::NULL => {
            let (family, rest) = parse::split::<4>(frame.data, FAULT)?;
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

/// What lies under a label stack. The stack does not say, so the version nibble must be borne out by a
/// sound IP header: an Ethernet pseudo-wire without control word may begin with a MAC address of that
/// nibble (RFC 8469). One with a control word begins with 0 (RFC 4385) and is not looked at.
///
/// Source: RFC 3032 section 2.1.
fn mpls<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    let mut rest = bytes;
    for _ in 0..MAX_LABELS {
        let ([_, _, bottom, _], inner) = parse::split(rest, Malformed::MplsStack)?;
        rest = inner;
        if bottom & 1 == 1 {
            let version = rest.first().map_or(0, |first| first >> 4);
            return Ok(match version {
                4 if parse::is_sound_ipv4(rest, frame) => Carried::Ipv4(rest),
                6 if parse::is_sound_ipv6(rest, frame) => Carried::Ipv6(rest),
                _ => Carried::Other,
            });
        }
    }
    Err(Malformed::MplsStack)
}

/// What a PPPoE session carries. Source: RFC 2516 section 4.
fn pppoe<'a>(bytes: &'a [u8], frame: &Frame<'_>) -> Result<Carried<'a>, Malformed> {
    let ([version_and_type, code, _, _, len0, len1], rest) =
        parse::split(bytes, Malformed::PppoeHeader)?;
    if *version_and_type != 0x11 {
        return Err(Malformed::PppoeHeader);
    }
    if *code != 0 {
        return Ok(Carried::Other);
    }
    let len = usize::from(u16::from_be_bytes([*len0, *len1]));
    // Shorter where the capture was cut.
    let payload = rest.get(..len).unwrap_or(rest);
    ppp(payload, frame).ok_or(Malformed::PppoeHeader)?
}

/// What a PPP frame carries, from its protocol number on; `None` if that is cut short. A number whose
/// first byte is odd has only that one.
///
/// Source: RFC 1661 section 6.5, IANA PPP numbers.
pub(super) fn ppp<'a>(
    bytes: &'a [u8],
    frame: &Frame<'_>,
) -> Option<Result<Carried<'a>, Malformed>> {
    let (&first, rest) = bytes.split_first()?;
    let (number, rest) = if first & 1 == 1 {
        (u16::from(first), rest)
    } else {
        let (&second, rest) = rest.split_first()?;
        (u16::from_be_bytes([first, second]), rest)
    };
    Some(match number {
        ppp::IPV4 => Ok(Carried::Ipv4(rest)),
        ppp::IPV6 => Ok(Carried::Ipv6(rest)),
        ppp::MPLS => mpls(rest, frame),
        _ => Ok(Carried::Other),
    })
}

/// EtherTypes (Source: IEEE registration authority).
pub(super) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(super) const ARP: u16 = 0x0806;
    /// An Ethernet frame, in the header of a tunnel.
    pub(crate) const ETHERNET: u16 = 0x6558;
    pub(super) const VLAN: u16 = 0x8100;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(super) const MPLS: u16 = 0x8847;
    /// With labels that the upstream router gave out; once "multicast" (RFC 5332).
    pub(super) const MPLS_UPSTREAM: u16 = 0x8848;
    pub(super) const PPPOE_SESSION: u16 = 0x8864;
    pub(super) const SERVICE_VLAN: u16 = 0x88a8;
    /// For outer tags, from before 802.1ad.
    pub(super) const OLD_QINQ: u16 = 0x9100;
}

/// PPP protocol numbers (Source: IANA).
mod ppp {
    pub(super) const IPV4: u16 = 0x0021;
    pub(super) const IPV6: u16 = 0x0057;
    pub(super) const MPLS: u16 = 0x0281;
}
