//! The worker's table: what it counts, that tallies merge, and who gives way.

use packet::{Address, FiveTuple, Kind, Packet, mix, tcp};
use wire::units::UnixNanos;

use super::{Class, Report, SAMPLED_ONE_IN, TARGETS, Tally, TargetTable};

const KEY: u64 = 0x5eed;

fn host(n: u64) -> Address {
    Address::from_v4((0x0a00_0000 + n as u32).to_be_bytes())
}

fn packet(source: u64, target: u64, kind: Kind) -> Packet {
    let tuple = FiveTuple {
        source: host(source),
        target: host(target),
        source_port: source as u16,
        target_port: (source % 5) as u16,
        protocol: 6,
    };
    Packet { tuple, kind, ..Packet::default() }
}

const SYN: Kind = Kind::Tcp { flags: tcp::SYN, sequence: 0, acknowledgement: 0 };

fn taken(table: &mut TargetTable) -> Vec<Tally> {
    let mut tallies = Vec::new();
    assert!(table.publish(|report| {
        if let Report::Target(tally) = report {
            tallies.push(*tally);
        }
        true
    }));
    tallies.sort_by_key(|tally| tally.target);
    tallies
}

#[test]
fn packets_are_counted_by_class_and_handed_out_once() {
    let mut table = TargetTable::new(KEY);
    let kinds = [
        (SYN, Class::Syn),
        (Kind::Udp, Class::Udp),
        (Kind::Icmp { kind: 8, code: 0, quoted: None }, Class::Icmp),
        (Kind::Tcp { flags: tcp::RST, sequence: 0, acknowledgement: 0 }, Class::Rst),
        (Kind::LaterFragment, Class::Fragment),
    ];
    for n in 0..100_000 {
        for (place, (kind, _)) in kinds.iter().enumerate() {
            table.feed(&packet(mix(n, 1) % 1000, place as u64, *kind), UnixNanos(1000 + n * 700));
        }
        let data = Kind::Tcp { flags: tcp::ACK, sequence: 0, acknowledgement: 0 };
        table.feed(&packet(n, 9, data), UnixNanos(1000 + n * 700));
    }
    table.complete(host(0), UnixNanos(500));
    let tallies = taken(&mut table);
    assert_eq!(tallies.len(), kinds.len());
    for (tally, (_, class)) in tallies.iter().zip(kinds) {
        let counted = u64::from(tally.counts[class as usize]) * SAMPLED_ONE_IN;
        assert!(counted.abs_diff(100_000) < 5000, "{class:?}: {counted}");
        assert_eq!(tally.counts.iter().filter(|count| **count > 0).count(), 1);
        assert!(tally.senders[class as usize].sample().is_some());
    }
    assert_eq!((tallies[0].completed, tallies[0].first), (1, UnixNanos(500)));
    assert_eq!(tallies[0].ports.estimate(), 5);
    let sources = tallies[0].sources.estimate() * SAMPLED_ONE_IN;
    assert!(sources.abs_diff(1000) < 400, "{sources}");
    assert_eq!(tallies[2].echo_requests, tallies[2].counts[Class::Icmp as usize]);
    assert_eq!(taken(&mut table), []);
}

#[test]
fn a_first_fragment_counts_as_what_it_carries_besides() {
    let mut table = TargetTable::new(KEY);
    for n in 0..1000 {
        let fragment = Packet { is_fragment: true, ..packet(n, 1, Kind::Udp) };
        table.feed(&fragment, UnixNanos(1000 + n * 700));
    }
    let tally = taken(&mut table)[0];
    assert!(tally.counts[Class::Udp as usize] > 30);
    assert_eq!(tally.counts[Class::Udp as usize], tally.counts[Class::Fragment as usize]);
}

#[test]
fn the_tallies_of_all_workers_are_those_of_one() {
    for seed in 0..20 {
        let mut whole = TargetTable::new(KEY);
        let mut parts: Vec<_> = (0..7).map(|_| TargetTable::new(KEY)).collect();
        for n in 0..20_000 {
            let random = mix(seed, n);
            let kind = [SYN, Kind::Udp, Kind::LaterFragment][random as usize % 3];
            let packet = packet(random >> 8 & 0xfff, random >> 20 & 0x1f, kind);
            let time = UnixNanos(1000 + n * 900);
            whole.feed(&packet, time);
            parts[(random >> 32) as usize % 7].feed(&packet, time);
        }
        let mut merged: Vec<Tally> = Vec::new();
        for tally in parts.iter_mut().rev().flat_map(taken) {
            match merged.iter_mut().find(|one| one.target == tally.target) {
                Some(one) => one.merge(&tally),
                None => merged.push(tally),
            }
        }
        merged.sort_by_key(|tally| tally.target);
        assert_eq!(merged, taken(&mut whole), "seed {seed}");
    }
}

#[test]
fn a_target_of_many_packets_stays_among_targets_of_one() {
    let mut table = TargetTable::new(KEY);
    for n in 0..200_000 {
        let target = if n % 50 == 0 { 1 } else { 1000 + mix(n, 2) % 1_000_000 };
        table.feed(&packet(n, target, Kind::Udp), UnixNanos(1000 + n * 700));
    }
    let tallies = taken(&mut table);
    assert!(tallies.len() <= TARGETS);
    let counted = tallies.iter().find(|tally| tally.target == host(1)).unwrap().counts[1];
    assert!(u64::from(counted) * SAMPLED_ONE_IN > 3000, "{counted} of the sample of 4000");
    assert!(table.counters().evicted > 10_000);
}

#[test]
fn what_finds_no_room_is_handed_out_the_next_time() {
    let mut table = TargetTable::new(KEY);
    for n in 0..10_000 {
        table.feed(&packet(n, n % 40, Kind::Udp), UnixNanos(1000 + n * 700));
    }
    let (mut room, mut count) = (15, 0);
    let mut sink = |report: &Report| {
        room -= 1;
        count += match report {
            Report::Target(tally) if room >= 0 => tally.counts[Class::Udp as usize],
            _ => 0,
        };
        room >= 0
    };
    assert!(!table.publish(&mut sink));
    let rest: u32 = taken(&mut table).iter().map(|tally| tally.counts[1]).sum();
    assert_eq!(count + rest, {
        let mut table = TargetTable::new(KEY);
        for n in 0..10_000 {
            table.feed(&packet(n, n % 40, Kind::Udp), UnixNanos(1000 + n * 700));
        }
        taken(&mut table).iter().map(|tally| tally.counts[1]).sum::<u32>()
    });
}

#[test]
fn a_sender_of_more_than_half_is_found_by_its_bucket_and_others_are_not() {
    let mut table = TargetTable::new(KEY);
    for n in 0..50_000 {
        let source = if n % 5 < 3 { 77 } else { 1000 + mix(n, 3) % 5000 };
        table.feed(&packet(source, 1, Kind::Udp), UnixNanos(1000 + n * 700));
    }
    let senders = taken(&mut table)[0].senders[Class::Udp as usize];
    assert!(senders.may_be_most_of(host(77), KEY));
    let others = (1000..2000).filter(|n| senders.may_be_most_of(host(*n), KEY)).count();
    assert!(others < 200, "{others} of 1000 share its bucket");
}
