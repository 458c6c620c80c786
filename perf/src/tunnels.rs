//! Frames in tunnels, and behind MPLS labels and PPPoE headers.

use std::net::{IpAddr, SocketAddr};

use crate::frames;

/// A way to carry a frame, or the IP packet in it, within IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// IPv4 or IPv6 in IPv4 or IPv6 (protocols 4 and 41).
    IpInIp,
    /// GRE, as short as it can be, around an IP packet.
    Gre,
    /// GRE with checksum, key and sequence number.
    GreWithAllFields,
    /// GRE with a source route (RFC 1701).
    GreRouted,
    /// GRE around an Ethernet frame.
    GreEthernet,
    /// GRE around an MPLS packet with two labels.
    GreMpls,
    /// PPTP: GRE of version 1 around PPP, with an acknowledgement.
    Pptp,
    /// PPTP with a compressed PPP header and no acknowledgement.
    PptpCompressed,
    /// ERSPAN type I: a mirrored frame right behind the GRE header.
    Erspan1,
    /// ERSPAN type II.
    Erspan2,
    /// ERSPAN type III.
    Erspan3,
    /// ERSPAN type III with its optional header.
    Erspan3WithPlatform,
    /// VXLAN.
    Vxlan,
    /// VXLAN with a group.
    VxlanWithGroup,
    /// VXLAN that names its next protocol, Ethernet.
    VxlanWithProtocol,
    /// GENEVE around an Ethernet frame.
    Geneve,
    /// GENEVE with options.
    GeneveWithOptions,
    /// GENEVE around an IP packet.
    GeneveIp,
}

impl Tunnel {
    /// Every one.
    pub const ALL: [Self; 18] = [
        Self::IpInIp,
        Self::Gre,
        Self::GreWithAllFields,
        Self::GreRouted,
        Self::GreEthernet,
        Self::GreMpls,
        Self::Pptp,
        Self::PptpCompressed,
        Self::Erspan1,
        Self::Erspan2,
        Self::Erspan3,
        Self::Erspan3WithPlatform,
        Self::Vxlan,
        Self::VxlanWithGroup,
        Self::VxlanWithProtocol,
        Self::Geneve,
        Self::GeneveWithOptions,
        Self::GeneveIp,
    ];

    /// The frame of a tunnel between two ends, around an untagged IP frame.
    ///
    /// # Panics
    /// If one end is IPv4 and the other IPv6, `inner` is no such frame, or the result is longer than an
    /// IP packet can be.
    #[must_use]
    pub fn around(self, ends: (IpAddr, IpAddr), inner: &[u8]) -> Vec<u8> {
        let (ether_type, packet) = (&inner[12..14], &inner[14..]);
        let is_v4 = ether_type == frames::IPV4.to_be_bytes();
        let (source, target) = ends;
        let gre = |header: &[&[u8]], body: &[u8]| {
            frames::ip(source, target, GRE, &[&header.concat(), body].concat())
        };
        let udp = |port: u16, header: &[&[u8]], body: &[u8]| {
            let (source, target) = (SocketAddr::new(source, 50_000), SocketAddr::new(target, port));
            frames::udp(source, target, &[&header.concat(), body].concat())
        };
        let ppp: [u8; 2] = if is_v4 { [0x00, 0x21] } else { [0x00, 0x57] };
        // A length for PPTP, which counts what follows its header.
        let length = |bytes: usize| u16::try_from(bytes).expect("an IP packet").to_be_bytes();
        match self {
            Self::IpInIp => frames::ip(source, target, if is_v4 { 4 } else { 41 }, packet),
            Self::Gre => gre(&[&[0, 0], ether_type], packet),
            Self::GreWithAllFields => gre(&[&[0xb0, 0], ether_type, &[7; 12]], packet),
            Self::GreRouted => {
                let route = [0x08, 0, 0, 4, 192, 0, 2, 1];
                // Checksum and offset, an entry, and the empty one that ends the route.
                gre(&[&[0x40, 0], ether_type, &[0; 4], &route, &[0; 4]], packet)
            }
            Self::GreEthernet => gre(&[&[0, 0, 0x65, 0x58]], inner),
            Self::GreMpls => gre(&[&[0, 0, 0x88, 0x47], &labels(&[16, 17])], packet),
            Self::Pptp => {
                let body = [&[0xff, 0x03], &ppp[..], packet].concat();
                gre(&[&[0x30, 0x81, 0x88, 0x0b], &length(body.len()), &[9; 10]], &body)
            }
            Self::PptpCompressed => {
                let body = [&ppp[1..], packet].concat();
                gre(&[&[0x30, 0x01, 0x88, 0x0b], &length(body.len()), &[9; 6]], &body)
            }
            Self::Erspan1 => gre(&[&[0, 0, 0x88, 0xbe]], inner),
            Self::Erspan2 => {
                gre(&[&[0x10, 0, 0x88, 0xbe], &[7; 4], &[0x10, 1, 0, 1, 0, 0, 0, 0]], inner)
            }
            Self::Erspan3 => {
                gre(&[&[0x10, 0, 0x22, 0xeb], &[7; 4], &[0x20, 1, 0, 1], &[0; 8]], inner)
            }
            Self::Erspan3WithPlatform => {
                let header = [&[0x20, 1, 0, 1][..], &[0; 7], &[1], &[9; 8]].concat();
                gre(&[&[0x10, 0, 0x22, 0xeb], &[7; 4], &header], inner)
            }
            Self::Vxlan => udp(VXLAN, &[&[0x08, 0, 0, 0, 0, 0, 42, 0]], inner),
            Self::VxlanWithGroup => udp(VXLAN, &[&[0x88, 0, 0, 9, 0, 0, 42, 0]], inner),
            Self::VxlanWithProtocol => udp(VXLAN, &[&[0x0c, 0, 0, 3, 0, 0, 42, 0]], inner),
            Self::Geneve => udp(GENEVE, &[&[0, 0, 0x65, 0x58, 0, 0, 42, 0]], inner),
            Self::GeneveWithOptions => udp(
                GENEVE,
                &[&[2, 0x40, 0x65, 0x58, 0, 0, 42, 0], &[1, 2, 0x80, 1, 5, 6, 7, 8]],
                inner,
            ),
            Self::GeneveIp => udp(GENEVE, &[&[0, 0], ether_type, &[0, 0, 42, 0]], packet),
        }
    }
}

const GRE: u8 = 47;
/// UDP port of VXLAN.
pub const VXLAN: u16 = 4789;
/// UDP port of GENEVE.
pub const GENEVE: u16 = 6081;

/// An untagged frame's packet behind MPLS labels, the first one on top.
///
/// # Panics
/// If `frame` is shorter than an Ethernet header.
#[must_use]
pub fn mpls(frame: &[u8], labels_of: &[u32]) -> Vec<u8> {
    frames::ethernet(0x8847, &[&labels(labels_of), &frame[14..]].concat())
}

fn labels(labels: &[u32]) -> Vec<u8> {
    let last = labels.len().saturating_sub(1);
    let entry = |(place, label): (usize, &u32)| {
        let bottom = u32::from(place == last) << 8;
        (label << 12 | bottom | 64).to_be_bytes()
    };
    labels.iter().enumerate().flat_map(entry).collect()
}

/// An untagged IP frame's packet in a PPPoE session.
///
/// # Panics
/// If `frame` is shorter than an Ethernet header or longer than an IP packet can be.
#[must_use]
pub fn pppoe(frame: &[u8]) -> Vec<u8> {
    let (ether_type, packet) = (&frame[12..14], &frame[14..]);
    let protocol = if ether_type == frames::IPV4.to_be_bytes() { 0x21 } else { 0x57 };
    let length = u16::try_from(2 + packet.len()).expect("an IP packet").to_be_bytes();
    frames::ethernet(0x8864, &[&[0x11, 0, 0, 7], &length[..], &[0, protocol], packet].concat())
}
