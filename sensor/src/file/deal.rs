//! Deals the frames of a file to workers in the way the kernel deals those of an interface.

use packet::frame::{Frame, LinkType};
use packet::{self, Address, FiveTuple, Kind, Packet, protocol};

/// The same in every run, so that runs can be compared. What an attacker could gain from knowing
/// it, uneven work among the workers of an analysis at a desk, is of no use to him.
const KEY: u64 = 0x52_69_6e_67_77_61_74_63;

/// Which of `workers` workers gets this packet, from 0 on: like PACKET_FANOUT_HASH, both directions
/// of a flow go to the same one.
///
/// A fragment goes by its two addresses, the first one too, so that a packet stays together; an
/// ICMP error by those of its own header, so it may well meet another worker than the packet that
/// it quotes. What is no IP goes to worker 0.
///
/// Source: `fanout_demux_hash` in net/packet/af_packet.c of Linux, for the behaviour; the hash is
/// another.
#[must_use]
pub fn worker_of(packet: &Packet, workers: usize) -> usize {
    let tuple = match packet.kind {
        Kind::Other | Kind::Arp { .. } => return 0,
        _ if packet.tuple == FiveTuple::default() => return 0,
        _ if packet.is_fragment => FiveTuple {
            source: packet.tuple.source,
            target: packet.tuple.target,
            ..FiveTuple::default()
        },
        _ => packet.tuple,
    };
    worker_of_flow(&tuple, workers)
}

/// [`worker_of`] what the parser makes of a frame, at a fraction of the cost for most frames.
#[inline]
#[must_use]
pub fn worker_of_frame(frame: &Frame<'_>, workers: usize) -> usize {
    match plain_flow(frame) {
        Some(flow) => worker_of_flow(&flow, workers),
        None => worker_of(&packet::parse(frame), workers),
    }
}

#[inline]
fn worker_of_flow(flow: &FiveTuple, workers: usize) -> usize {
    // Sum and difference of the two ends are the same from either side. One multiplication is enough:
    // nothing but evenness depends on it, and it is paid for every frame.
    let (one, other) = (end(flow.source, flow.source_port), end(flow.target, flow.target_port));
    let protocol = u64::from(flow.protocol) << 56;
    let hash = packet::mix(one.wrapping_add(other) ^ KEY, (one ^ other) ^ protocol);
    // Scaled, not divided: as `reciprocal_scale` does. Below `workers`, so it fits.
    (((hash >> 32) * workers as u64) >> 32) as usize
}

/// An end of a flow in one number: of IPv4 all of it, one for each end.
#[inline]
const fn end(address: Address, port: u16) -> u64 {
    let high = address.high().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (address.low() ^ high).rotate_left(16) ^ port as u64
}

/// The flow of a frame that is as most are: untagged Ethernet, IPv4 without options and unfragmented,
/// whole TCP or UDP header, no port of a tunnel. `None` leaves the frame to the parser.
#[inline]
fn plain_flow(frame: &Frame<'_>) -> Option<FiveTuple> {
    #[rustfmt::skip]
    let [
        _, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00,
        0x45, _, total0, total1, _, _, fragment0, fragment1, _, protocol, _, _,
        s0, s1, s2, s3, t0, t1, t2, t3,
        sp0, sp1, tp0, tp1, _, _, _, _, _, _, _, _, offset, ..
    ] = *frame.data.first_chunk::<54>()? else { return None };
    let is_whole = u16::from_be_bytes([total0, total1]) >= 40;
    // All but "don't fragment".
    let is_fragment = u16::from_be_bytes([fragment0, fragment1]) & 0xbfff != 0;
    let [source_port, target_port] = [[sp0, sp1], [tp0, tp1]].map(u16::from_be_bytes);
    let is_plain = match protocol {
        protocol::TCP => offset >> 4 >= 5,
        protocol::UDP => !is_tunnel(source_port) && !is_tunnel(target_port),
        _ => false,
    };
    if !is_plain || !is_whole || is_fragment || frame.link != LinkType::ETHERNET {
        return None;
    }
    Some(FiveTuple {
        source: Address::from_v4([s0, s1, s2, s3]),
        target: Address::from_v4([t0, t1, t2, t3]),
        source_port,
        target_port,
        protocol,
    })
}

/// Is it a UDP port behind which a parser may look for a packet: GTP-U, Teredo, VXLAN, GENEVE, VXLAN as
/// Linux first had it?
const fn is_tunnel(port: u16) -> bool {
    matches!(port, 2152 | 3544 | 4789 | 6081 | 8472)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use perf::frames;

    use super::*;
    use packet::{Address, protocol};

    fn packet(source: &str, target: &str, ports: (u16, u16), kind: Kind) -> Packet {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let tuple = FiveTuple {
            source: address(source),
            target: address(target),
            source_port: ports.0,
            target_port: ports.1,
            protocol: protocol::UDP,
        };
        Packet { tuple, kind, ..Packet::default() }
    }

    #[test]
    fn both_directions_of_a_flow_go_to_one_worker() {
        for port in 1..500 {
            let there = packet("192.0.2.1", "2001:db8::1", (port, 53), Kind::Udp);
            let back = Packet { tuple: there.tuple.reversed(), ..there };
            for workers in 1..9 {
                assert_eq!(worker_of(&there, workers), worker_of(&back, workers));
                assert!(worker_of(&there, workers) < workers);
            }
        }
    }

    #[test]
    fn flows_are_spread_evenly() {
        let mut load = [0_u32; 4];
        for port in 1..=40_000 {
            load[worker_of(&packet("192.0.2.1", "192.0.2.2", (port, 80), Kind::Udp), 4)] += 1;
        }
        assert!(load.iter().all(|count| (9_500..10_500).contains(count)), "{load:?}");
    }

    /// Frames as they are and with a few bytes changed, cut anywhere.
    #[test]
    fn a_frame_goes_where_its_packet_goes() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as usize
        };
        let mut plain = 0;
        for round in 0..200_000 {
            let source = SocketAddr::from(([10, next() as u8, 0, 1], next() as u16));
            let target = SocketAddr::from(([10, 0, next() as u8, 1], [53, 4789, 80][next() % 3]));
            let mut bytes = match round % 3 {
                0 => frames::tcp(source, target, frames::ACK, &[0; 30]),
                1 => frames::udp(source, target, &[0; 30]),
                _ => frames::tagged(&frames::udp(source, target, &[1; 9]), &[(0x8100, 7)]),
            };
            for _ in 0..next() % 3 {
                let position = next() % bytes.len();
                bytes[position] = next() as u8;
            }
            bytes.truncate(if round % 5 == 0 { next() % 70 } else { usize::MAX });
            let frame = Frame { data: &bytes, ..Frame::EMPTY };
            plain += usize::from(plain_flow(&frame).is_some());
            let packet = packet::parse(&frame);
            assert_eq!(worker_of_frame(&frame, 64), worker_of(&packet, 64), "{frame:?} {packet:?}");
        }
        assert!((60_000..140_000).contains(&plain), "{plain}");
    }

    #[test]
    fn fragments_of_a_packet_stay_together() {
        for port in 1..100 {
            let first = packet("192.0.2.1", "192.0.2.2", (port, 80), Kind::Udp);
            let first = Packet { is_fragment: true, ..first };
            let later = packet("192.0.2.1", "192.0.2.2", (0, 0), Kind::LaterFragment);
            let later = Packet { is_fragment: true, ..later };
            assert_eq!(worker_of(&first, 8), worker_of(&later, 8));
        }
    }

    #[test]
    fn what_is_no_ip_goes_to_the_first_worker() {
        for kind in [Kind::Arp { operation: 1 }, Kind::Other] {
            assert_eq!(worker_of(&Packet { kind, ..Packet::default() }, 8), 0);
        }
    }
}
