//! New TCP connections: one for each SYN without ACK, retransmissions collapsed, bounded in a second.

use wire::units::UnixNanos;

use packet::{FiveTuple, Kind, Packet, mix, tcp};

/// A new TCP connection, as its first SYN shows it. Ordered by time, then by whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewConnection {
    /// When the SYN was seen.
    pub time: UnixNanos,
    /// From the one who opens to the one who listens.
    pub tuple: FiveTuple,
    /// VLAN ids, outer first; 0 where there is none.
    pub vlan_ids: [u16; 2],
    /// Index of the interface in the sensor's list.
    pub interface: u32,
}

/// What became of a packet in the [`ConnectionLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It opens no connection, or repeats a SYN that was seen.
    Nothing,
    /// It opens a connection that is to be written.
    Connection(NewConnection),
    /// It opens a connection above the limit of this second.
    OverLimit,
}

/// Finds new connections among the packets of one worker. Fixed memory: 512 KiB.
#[derive(Debug)]
pub struct ConnectionLog {
    /// Fingerprints of SYNs seen lately, at a slot that their hash chooses; a newer one replaces an
    /// older one. A retransmission finds its own fingerprint. After a collision it is written twice.
    recent: Box<[u64]>,
    key: u64,
    limit_per_second: u32,
    second: u64,
    written_in_second: u32,
}

const RECENT_SLOTS: usize = 1 << 16;

impl ConnectionLog {
    /// A log that hands out at most `limit_per_second` connections in a second of packet time.
    /// `key` seeds the hash, so that a peer cannot choose collisions.
    #[must_use]
    pub fn new(limit_per_second: u32, key: u64) -> Self {
        Self {
            recent: vec![0; RECENT_SLOTS].into_boxed_slice(),
            key,
            limit_per_second,
            second: 0,
            written_in_second: 0,
        }
    }

    /// Looks at one packet. `time` is that of the packet.
    #[inline]
    pub fn observe(&mut self, packet: &Packet, interface: u32, time: UnixNanos) -> Seen {
        let Kind::Tcp { flags, sequence, .. } = packet.kind else { return Seen::Nothing };
        if flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) != tcp::SYN {
            return Seen::Nothing;
        }
        let second = time.seconds();
        if begins_second(self.second, second) {
            self.second = second;
            self.written_in_second = 0;
        }
        if self.written_in_second >= self.limit_per_second {
            // Under a flood this is the way out before any memory is touched.
            return Seen::OverLimit;
        }
        if self.is_repeated(&packet.tuple, sequence) {
            return Seen::Nothing;
        }
        self.written_in_second += 1;
        let Packet { tuple, vlan_ids, .. } = *packet;
        Seen::Connection(NewConnection { time, tuple, vlan_ids, interface })
    }

    fn is_repeated(&mut self, tuple: &FiveTuple, sequence: u32) -> bool {
        let hash = mix(tuple.flow_hash(self.key), u64::from(sequence) ^ tuple.source.low());
        let slot = hash as usize % RECENT_SLOTS;
        std::mem::replace(&mut self.recent[slot], hash) == hash
    }
}

/// Does a time in `second` end the second at hand? Packets of several rings come a little out of
/// order; a time far behind means that the clock was set back.
pub(crate) const fn begins_second(at_hand: u64, second: u64) -> bool {
    const OUT_OF_ORDER_SECONDS: u64 = 10;
    second > at_hand || at_hand - second > OUT_OF_ORDER_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::{Address, protocol};

    fn packet(source_port: u16, flags: u8) -> Packet {
        Packet {
            tuple: FiveTuple {
                source: Address::from_v4([192, 0, 2, 1]),
                target: Address::from_v4([192, 0, 2, 2]),
                source_port,
                target_port: 443,
                protocol: protocol::TCP,
            },
            kind: Kind::Tcp { flags, sequence: 7, acknowledgement: 0 },
            ..Packet::default()
        }
    }

    fn written(log: &mut ConnectionLog, packet: &Packet, second: u64) -> bool {
        matches!(log.observe(packet, 0, UnixNanos(second * 1_000_000_000)), Seen::Connection(_))
    }

    #[test]
    fn only_a_syn_without_ack_opens_a_connection() {
        let mut log = ConnectionLog::new(100, 1);
        assert!(written(&mut log, &packet(1, tcp::SYN), 1));
        for flags in [0, tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::SYN | tcp::FIN] {
            assert!(!written(&mut log, &packet(2, flags), 1), "{flags:#x}");
        }
    }

    #[test]
    fn a_repeated_syn_is_the_same_connection() {
        let mut log = ConnectionLog::new(100, 1);
        assert!(written(&mut log, &packet(1, tcp::SYN), 1));
        assert!(!written(&mut log, &packet(1, tcp::SYN), 4));
        let mut again = packet(1, tcp::SYN);
        again.kind = Kind::Tcp { flags: tcp::SYN, sequence: 8, acknowledgement: 0 };
        assert!(written(&mut log, &again, 5), "another sequence number is another connection");
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_log() {
        let mut log = ConnectionLog::new(1, 1);
        assert!(written(&mut log, &packet(1, tcp::SYN), 10_000));
        assert!(!written(&mut log, &packet(2, tcp::SYN), 9_999), "a little late");
        assert!(written(&mut log, &packet(3, tcp::SYN), 6_400), "an hour back");
    }

    #[test]
    fn a_second_has_its_limit_and_the_next_one_a_new_one() {
        let mut log = ConnectionLog::new(2, 1);
        let count = |log: &mut ConnectionLog, ports: std::ops::Range<u16>, second| {
            ports.filter(|port| written(log, &packet(*port, tcp::SYN), second)).count()
        };
        assert_eq!(count(&mut log, 0..10, 1), 2);
        assert_eq!(
            log.observe(&packet(11, tcp::SYN), 0, UnixNanos(1_500_000_000)),
            Seen::OverLimit
        );
        assert_eq!(count(&mut log, 20..30, 2), 2);
    }
}
