//! The parser against `etherparse`, frame by frame, over every capture of the corpus.
//!
//! The oracle enters no tunnel by itself: where the parser did, it is asked again about the bytes behind
//! the tunnel's header. Whether that is a tunnel at all is what `parser_tshark.rs` compares.
//!
//! The corpus is found by `RINGWATCH_CORPUS`; without it only the
//! frames made here are compared, and the test says so.

mod corpus;

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::err::Layer;
use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket, LenSource, TransportSlice};
use packet::frame::{Frame, LinkType};
use packet::{Address, FiveTuple, Kind, Malformed, Packet, parse, protocol};
use perf::tunnels::Tunnel;
use sensor::file::CaptureFile;
use wire::units::{UnixNanos, WireLen};

/// What the oracle says of a frame.
enum Oracle {
    /// IP, read to the end of what the oracle knows.
    Ip {
        tuple: FiveTuple,
        is_fragment: bool,
        /// The length in the IP header cannot be, and the oracle took that of the frame.
        has_ignored_length: bool,
    },
    /// It found no IP header.
    NoIp,
    /// It stopped at this layer.
    Stopped(Layer),
}

/// How the two agree on a frame.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Same,
    /// Both found a fault, or neither found IP.
    NothingToCompare,
    /// One says more than the other, for a reason that is right.
    Explained(&'static str),
    /// They contradict each other.
    Contradiction(String),
}

#[test]
fn addresses_ports_and_protocol_are_those_of_the_oracle() {
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    let mut note = |frame: &Frame<'_>, place: &str| {
        let verdict = match compare(frame) {
            Verdict::Contradiction(text) => Verdict::Contradiction(format!("{place}: {text}")),
            verdict => verdict,
        };
        *verdicts.entry(verdict).or_default() += 1;
    };
    own_frames(&mut note);
    for path in corpus::captures() {
        let place = path.display().to_string();
        let Ok(mut file) = CaptureFile::open(&path) else { continue };
        let mut number = 0;
        while let Ok(Some(found)) = file.next_frame() {
            number += 1;
            note(&found.frame, &format!("{place} #{number}"));
        }
    }
    let contradictions: Vec<_> =
        verdicts.keys().filter(|key| matches!(key, Verdict::Contradiction(_))).collect();
    assert!(contradictions.is_empty(), "{contradictions:#?}");
    assert!(verdicts.get(&Verdict::Same).is_some_and(|count| *count >= 100), "{verdicts:#?}");
    eprintln!("{verdicts:#?}");
}

/// TCP, UDP and ICMP over both versions of IP, written by the oracle's own builder.
fn own_frames(note: &mut impl FnMut(&Frame<'_>, &str)) {
    for port in 0..50 {
        let ethernet = || etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frames = Vec::new();
        let v4 = || ethernet().ipv4([192, 0, 2, port], [198, 51, 100, 1], 64);
        let v6 = || ethernet().ipv6([port; 16], [9; 16], 64);
        let mut write = |build: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            build(&mut bytes);
            frames.push(bytes);
        };
        let (source, target) = (u16::from(port), 60_000 - u16::from(port));
        write(&|bytes| {
            v4().tcp(source, target, 7, 8).write(bytes, b"payload").expect("a vector takes all")
        });
        write(&|bytes| {
            v6().tcp(source, target, 7, 8).write(bytes, b"payload").expect("a vector takes all")
        });
        write(&|bytes| {
            v4().udp(source, target).write(bytes, b"payload").expect("a vector takes all")
        });
        write(&|bytes| {
            v6().udp(source, target).write(bytes, b"payload").expect("a vector takes all")
        });
        write(&|bytes| {
            v4().icmpv4_echo_request(source, 1)
                .write(bytes, b"payload")
                .expect("a vector takes all")
        });
        write(&|bytes| {
            v6().icmpv6_echo_reply(source, 1).write(bytes, b"payload").expect("a vector takes all")
        });
        let ends = ([203, 0, 113, 1].into(), [203, 0, 113, 2].into());
        let in_tunnels: Vec<_> = frames
            .iter()
            .flat_map(|frame| Tunnel::ALL.map(|tunnel| tunnel.around(ends, frame)))
            .collect();
        frames.extend(in_tunnels);
        for data in &frames {
            let wire_len = WireLen(data.len() as u32);
            let link = LinkType::ETHERNET;
            let frame =
                Frame { data, wire_len, time: UnixNanos(0), vlan: None, link, interface: 0 };
            note(&frame, "own frame");
        }
    }
}

fn compare(frame: &Frame<'_>) -> Verdict {
    let ours = parse(frame);
    let is_fault = matches!(ours.kind, Kind::Malformed(_));
    // ARP has addresses, and no IP.
    let is_arp = matches!(ours.kind, Kind::Arp { .. });
    let has_ip = !is_arp && ours.tuple != FiveTuple::default();
    let Some(sliced) = slice(frame) else { return Verdict::NothingToCompare };
    let sliced = match sliced.map(|outermost| descend(outermost, ours.tunnel_depth)) {
        Some(Some(innermost)) => innermost,
        Some(None) => return Verdict::Explained("the oracle cannot be led into this tunnel"),
        None if is_fault => return Verdict::NothingToCompare,
        None => return compare_stopped(frame, &ours, Layer::Ethernet2Header),
    };
    let oracle = ask(&sliced);
    match oracle {
        Oracle::Stopped(_) if is_fault => Verdict::NothingToCompare,
        Oracle::Stopped(layer) => compare_stopped(frame, &ours, layer),
        Oracle::NoIp if !has_ip => Verdict::NothingToCompare,
        Oracle::NoIp => Verdict::Contradiction(format!("the oracle sees no IP: {ours:?}")),
        Oracle::Ip { tuple, is_fragment, .. } if has_ip && !is_fault => {
            compare_ip(&ours, tuple, is_fragment)
        }
        Oracle::Ip { .. } if ours.kind == Kind::Malformed(Malformed::IpVersion) => {
            Verdict::Explained("the oracle believes the version, not the EtherType beside it")
        }
        Oracle::Ip { has_ignored_length: true, .. } => {
            Verdict::Explained("the oracle reads on where the IP header says that it ends")
        }
        Oracle::Ip { .. } if is_macsec(frame) => Verdict::Explained("we do not enter MACsec"),
        Oracle::Ip { .. } => Verdict::Contradiction(format!("only the oracle sees IP: {ours:?}")),
    }
}

/// We read on where the oracle stopped.
fn compare_stopped(frame: &Frame<'_>, ours: &Packet, layer: Layer) -> Verdict {
    match (layer, ours.kind) {
        (Layer::TcpHeader, Kind::Tcp { .. }) => {
            Verdict::Explained("a TCP header that is cut within its options serves us")
        }
        (Layer::Icmpv4 | Layer::Icmpv6, Kind::Icmp { .. }) => {
            Verdict::Explained("an ICMP header that is cut after its type and code serves us")
        }
        (Layer::Igmp | Layer::IpAuthHeader, Kind::OtherIp) => {
            Verdict::Explained("we do not look into this protocol")
        }
        (Layer::IpAuthHeader, _) => {
            Verdict::Explained("we follow an authentication header of length 0, as Linux does")
        }
        (Layer::Ipv6HopByHopHeader, _) => {
            Verdict::Explained("we follow hop-by-hop options that are not the first header")
        }
        _ if is_macsec(frame) => Verdict::Explained("we do not enter MACsec"),
        (layer, _) => Verdict::Contradiction(format!("the oracle stopped at {layer:?}: {ours:?}")),
    }
}

fn is_macsec(frame: &Frame<'_>) -> bool {
    frame.link == LinkType::ETHERNET && frame.data.get(12..14) == Some(&[0x88, 0xe5])
}

fn compare_ip(ours: &Packet, tuple: FiveTuple, is_fragment: bool) -> Verdict {
    if (ours.tuple, ours.is_fragment) == (tuple, is_fragment) {
        return Verdict::Same;
    }
    if let Kind::Malformed(Malformed::TunnelDepth) = ours.kind {
        return Verdict::Explained("the oracle is not led deeper than we go");
    }
    let without_ports = FiveTuple { source_port: 0, target_port: 0, ..ours.tuple };
    if (without_ports, ours.is_fragment) != (tuple, is_fragment) {
        return Verdict::Contradiction(format!("{ours:?} / {tuple:?} {is_fragment}"));
    }
    if is_fragment {
        Verdict::Explained("the oracle reads no ports in a first fragment")
    } else if tuple.protocol == protocol::SCTP {
        Verdict::Explained("the oracle does not read SCTP")
    } else {
        Verdict::Contradiction(format!("only we see ports: {ours:?}"))
    }
}

/// `None` for link types that the oracle cannot be asked about, `Some(None)` for frames in which it
/// finds no link-layer header.
fn slice<'a>(frame: &Frame<'a>) -> Option<Option<LaxSlicedPacket<'a>>> {
    let data = frame.data;
    let ether_type = |offset: usize, start: usize| {
        let number = data.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
        Some(LaxSlicedPacket::from_ether_type(EtherType(number), data.get(start..)?))
    };
    Some(match frame.link {
        LinkType::ETHERNET => LaxSlicedPacket::from_ethernet(data).ok(),
        LinkType::RAW => LaxSlicedPacket::from_ip(data).ok(),
        LinkType::IPV4 => Some(LaxSlicedPacket::from_ether_type(EtherType::IPV4, data)),
        LinkType::IPV6 => Some(LaxSlicedPacket::from_ether_type(EtherType::IPV6, data)),
        LinkType::LINUX_SLL => ether_type(14, 16),
        LinkType::LINUX_SLL2 => ether_type(0, 20),
        _ => return None,
    })
}

/// The packet that lies in so many tunnels; `None` if one of them cannot be opened here. Labels and
/// sessions are passed wherever they are.
fn descend(outermost: LaxSlicedPacket<'_>, tunnels: u8) -> Option<LaxSlicedPacket<'_>> {
    let mut sliced = behind_labels(outermost);
    for _ in 0..tunnels {
        sliced = behind_labels(inside(&sliced)?);
    }
    Some(sliced)
}

/// What lies behind MPLS labels or a PPPoE header, or the packet itself.
fn behind_labels(sliced: LaxSlicedPacket<'_>) -> LaxSlicedPacket<'_> {
    let Some(payload) = sliced.ether_payload() else { return sliced };
    let bytes = payload.payload;
    let inner = match payload.ether_type.0 {
        0x8847 | 0x8848 => bytes
            .chunks_exact(4)
            .position(|label| label[2] & 1 == 1)
            .and_then(|last| LaxSlicedPacket::from_ip(&bytes[last * 4 + 4..]).ok()),
        // Version and type, code, session, length; then the PPP number of IPv4 or IPv6.
        0x8864 => match bytes {
            [0x11, 0, _, _, _, _, 0, 0x21 | 0x57, packet @ ..] => {
                LaxSlicedPacket::from_ip(packet).ok()
            }
            _ => None,
        },
        _ => None,
    };
    inner.unwrap_or(sliced)
}

/// What a packet carries, if it is a tunnel.
fn inside<'a>(sliced: &LaxSlicedPacket<'a>) -> Option<LaxSlicedPacket<'a>> {
    if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
        let payload = udp.payload();
        let (ether_type, header_len) = match udp.destination_port() {
            4789 => (0x6558, 8),
            6081 => {
                let options = usize::from(payload.first()? & 0x3f) * 4;
                (u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]), 8 + options)
            }
            _ => return None,
        };
        return of_ether_type(ether_type, payload.get(header_len..)?);
    }
    let payload = sliced.ip_payload()?;
    match payload.ip_number.0 {
        protocol::IPV4 | protocol::IPV6 => LaxSlicedPacket::from_ip(payload.payload).ok(),
        protocol::GRE => {
            let [flags, version, t0, t1, rest @ ..] = payload.payload else { return None };
            let optional = (flags & 0xb0).count_ones() as usize * 4;
            // No source routes and no PPTP.
            (flags & 0x40 == 0 && version & 7 == 0)
                .then(|| of_ether_type(u16::from_be_bytes([*t0, *t1]), rest.get(optional..)?))?
        }
        _ => None,
    }
}

fn of_ether_type(ether_type: u16, bytes: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    match ether_type {
        0x6558 => LaxSlicedPacket::from_ethernet(bytes).ok(),
        0x0800 | 0x86dd | 0x8847 => {
            Some(LaxSlicedPacket::from_ether_type(EtherType(ether_type), bytes))
        }
        _ => None,
    }
}

fn ask(sliced: &LaxSlicedPacket<'_>) -> Oracle {
    let (source, target, payload): (IpAddr, IpAddr, _) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload())
        }
        Some(LaxNetSlice::Arp(_)) => return Oracle::NoIp,
        None => {
            return match &sliced.stop_err {
                Some((_, layer)) => Oracle::Stopped(*layer),
                None => Oracle::NoIp,
            };
        }
    };
    if let Some((_, layer)) = &sliced.stop_err {
        return Oracle::Stopped(*layer);
    }
    let (source_port, target_port) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    let tuple = FiveTuple {
        source: Address::from(source),
        target: Address::from(target),
        source_port,
        target_port,
        protocol: payload.ip_number.0,
    };
    let has_ignored_length = payload.len_source == LenSource::Slice;
    Oracle::Ip { tuple, is_fragment: payload.fragmented, has_ignored_length }
}
