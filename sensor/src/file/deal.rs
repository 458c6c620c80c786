//! Deals the frames of a file to workers in the way the kernel deals those of an interface.

use crate::packet::{FiveTuple, Kind, Packet};

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
        Kind::Other | Kind::Arp => return 0,
        _ if packet.tuple == FiveTuple::default() => return 0,
        _ if packet.is_fragment => FiveTuple {
            source: packet.tuple.source,
            target: packet.tuple.target,
            ..FiveTuple::default()
        },
        _ => packet.tuple,
    };
    // Scaled, not divided: as `reciprocal_scale` does. Below `workers`, so it fits.
    ((u128::from(tuple.flow_hash(KEY)) * workers as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::packet::{Address, protocol};

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
        for kind in [Kind::Arp, Kind::Other] {
            assert_eq!(worker_of(&Packet { kind, ..Packet::default() }, 8), 0);
        }
    }
}
