//! Floods behind real worker tables: what is one, what is none, and that nothing depends on how packets
//! are dealt to workers.

use packet::{Address, FiveTuple, Kind as PacketKind, Packet, mix, protocol, tcp};
use wire::units::UnixNanos;

use super::{FloodConfig, Floods};
use crate::detect::{Alert, AllowList, DetectorConfig, Kind, NetworkRule, Phase};
use crate::flood::TargetTable;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const TICK: u64 = 250 * MS;
/// Floods begin after what is usual was learnt.
const LATER: u64 = BEGIN + 12 * SECOND;
const BEGIN: u64 = 1_700_000_000 * SECOND;

/// A packet, or the handshake that it completes.
#[derive(Clone, Copy)]
enum What {
    Packet(Packet),
    Completed(Address),
}

type Traffic = Vec<(u64, What)>;

/// Rates a hundredth of the default, but for SYN, so that tests are quick.
fn config() -> DetectorConfig {
    let floods = FloodConfig { rates: [500, 1000, 1000, 1000, 1000], ..FloodConfig::default() };
    DetectorConfig { floods, key: 7, ..DetectorConfig::default() }
}

fn host(n: u32) -> Address {
    Address::from_v4((0x0a00_0000 + n).to_be_bytes())
}

fn packet(source: Address, target: Address, ports: (u16, u16), kind: PacketKind) -> Packet {
    let protocol = match kind {
        PacketKind::Udp | PacketKind::LaterFragment => protocol::UDP,
        PacketKind::Icmp { .. } => protocol::ICMP,
        _ => protocol::TCP,
    };
    let tuple = FiveTuple { source, target, source_port: ports.0, target_port: ports.1, protocol };
    Packet { tuple, kind, ..Packet::default() }
}

const fn segment(flags: u8) -> PacketKind {
    PacketKind::Tcp { flags, sequence: 0, acknowledgement: 0 }
}

const fn echo(kind: u8) -> PacketKind {
    PacketKind::Icmp { kind, code: 0, quoted: None }
}

const SYN: PacketKind = segment(tcp::SYN);
const RST: PacketKind = segment(tcp::RST | tcp::ACK);

/// `rate` packets a second, evenly but not exactly, from `begin` on.
fn stream(
    begin: u64,
    seconds: u64,
    rate: u64,
    packet: impl Fn(u64) -> Packet,
) -> impl Iterator<Item = (u64, What)> {
    (0..seconds * rate).map(move |n| {
        let jitter = mix(n, rate) % (SECOND / rate / 2);
        (begin + n * SECOND / rate + jitter, What::Packet(packet(n)))
    })
}

/// SYNs from everywhere to one port.
fn random_sources(begin: u64, seconds: u64, rate: u64) -> Traffic {
    stream(begin, seconds, rate, |n| {
        let source = Address::from_v4((mix(n, 3) as u32).to_be_bytes());
        packet(source, host(1), (n as u16, 443), SYN)
    })
    .collect()
}

/// Runs until nothing is open any more.
fn run_on(workers: usize, config: &DetectorConfig, mut traffic: Traffic) -> Vec<Alert> {
    traffic.sort_by_key(|(time, _)| *time);
    let mut tables: Vec<_> = (0..workers).map(|_| TargetTable::new(config.key)).collect();
    let mut floods = Floods::new(config);
    let (mut alerts, mut last_id) = (Vec::new(), 0);
    let mut rest = traffic.iter().enumerate().peekable();
    let last = traffic.last().unwrap().0.max(LATER);
    for now in (BEGIN..last + 70 * SECOND).step_by(TICK as usize) {
        while let Some((place, (time, what))) = rest.next_if(|(_, (time, _))| *time < now) {
            let table = &mut tables[mix(place as u64, 5) as usize % workers];
            match what {
                What::Packet(packet) => table.feed(packet, UnixNanos(*time)),
                What::Completed(target) => table.complete(*target, UnixNanos(*time)),
            }
        }
        for (worker, table) in tables.iter_mut().enumerate() {
            assert!(table.publish(|report| {
                floods.merge(worker, report);
                true
            }));
        }
        let mut id = || {
            last_id += 1;
            last_id
        };
        floods.tick(UnixNanos(now), &mut id, &mut alerts);
    }
    assert!(tables.iter().all(|table| table.counters().evicted == 0));
    assert!(floods.is_idle(), "nothing stays open");
    alerts
}

fn run(traffic: Traffic) -> Vec<Alert> {
    run_on(1, &config(), traffic)
}

/// Kind, target, packets of each alert that closed; each opened once, and steps count up.
fn floods_in(alerts: &[Alert]) -> Vec<(Kind, Address, u64)> {
    let closed = alerts.iter().filter(|alert| alert.phase == Phase::Close);
    closed
        .map(|last| {
            let life: Vec<_> = alerts.iter().filter(|alert| alert.id == last.id).collect();
            assert_eq!(life[0].phase, Phase::Open);
            assert!(life.iter().zip(1..).all(|(alert, revision)| alert.revision == revision));
            assert!(life.iter().all(|alert| alert.source.is_none() && alert.severity <= 2));
            (last.kind, last.target.unwrap(), last.flood.unwrap().packets)
        })
        .collect()
}

#[track_caller]
fn one_flood(alerts: &[Alert], kind: Kind, target: Address, packets: u64) -> &Alert {
    let [(found, at, counted)] = floods_in(alerts)[..] else { panic!("{alerts:#?}") };
    assert_eq!((found, at), (kind, target));
    assert!(counted.abs_diff(packets) * 100 <= packets * 8, "{counted} packets of {packets}");
    alerts.last().unwrap()
}

#[test]
fn syns_from_everywhere_are_one_flood() {
    let alerts = run(random_sources(LATER + 600 * MS, 5, 4000));
    let last = one_flood(&alerts, Kind::SynFlood, host(1), 20_000);
    assert_eq!((last.severity, last.distinct_ports, last.spoofable), (1, 1, true));
    assert!(last.distinct_sources.abs_diff(20_000) < 6000, "{}", last.distinct_sources);
    assert!(last.flood.unwrap().peak_pps.abs_diff(4000) < 400, "{last:?}");
    assert!(last.start.0.abs_diff(LATER + 600 * MS) <= TICK, "{last:?}");
    assert!(last.end.0.abs_diff(LATER + 5600 * MS) <= TICK, "{last:?}");
    assert!(last.sample_sources.len() >= 10, "{last:?}");
    let opened = alerts[0].time.0;
    assert!(opened <= LATER + 600 * MS + 3 * SECOND, "told within three seconds");
    assert_eq!(alerts[1].phase, Phase::Update, "at ten thousand");
}

#[test]
fn syns_from_one_source_to_one_port_are_one_flood_and_its_resets_are_none() {
    let mut traffic: Traffic =
        stream(LATER, 4, 3000, |n| packet(host(9), host(1), (n as u16, 80), SYN)).collect();
    traffic.extend(stream(LATER + MS, 4, 3000, |n| packet(host(1), host(9), (80, n as u16), RST)));
    let alerts = run(traffic);
    let last = one_flood(&alerts, Kind::SynFlood, host(1), 12_000);
    assert_eq!((last.distinct_sources, &last.sample_sources[..]), (1, &[host(9)][..]));
}

#[test]
fn fast_scans_are_no_floods() {
    let scan = |ports: u64, rate| -> Traffic {
        let seconds = ports.div_ceil(rate).max(1);
        let traffic = stream(LATER, seconds, rate, move |n| {
            packet(host(9), host(1), (40_000, (n % ports) as u16), SYN)
        });
        traffic.collect()
    };
    assert!(run(scan(1000, 5000)).is_empty(), "a thousand ports, five times each, in a second");
    assert!(run(scan(65_536, 13_000)).is_empty(), "all ports in five seconds");
}

#[test]
fn connections_that_complete_are_no_flood_and_a_flood_among_them_is_one() {
    let mut traffic: Traffic = stream(BEGIN, 18, 2000, |n| {
        packet(host(100 + n as u32 % 500), host(1), (n as u16, 443), SYN)
    })
    .collect();
    let completed = traffic.iter().map(|(time, _)| (time + 20 * MS, What::Completed(host(1))));
    traffic.extend(completed.collect::<Vec<_>>());
    assert!(run(traffic.clone()).is_empty());
    traffic.extend(random_sources(LATER, 4, 20_000));
    let alerts = run(traffic);
    let last = one_flood(&alerts, Kind::SynFlood, host(1), 88_000);
    // The second in which it ends is not quiet yet.
    assert!(last.flood.unwrap().completed.abs_diff(9000) <= 1500, "{last:?}");
}

fn udp(begin: u64, seconds: u64, rate: u64) -> Traffic {
    stream(begin, seconds, rate, |_| packet(host(9), host(1), (5201, 5201), PacketKind::Udp))
        .collect()
}

#[test]
fn datagrams_far_above_what_is_usual_are_a_flood() {
    let mut traffic = udp(BEGIN, 20, 40);
    traffic.extend(udp(LATER, 4, 5000));
    let alerts = run(traffic);
    one_flood(&alerts, Kind::UdpFlood, host(1), 20_160);
}

#[test]
fn a_stream_below_the_rate_is_no_flood() {
    assert!(run(udp(LATER, 6, 800)).is_empty());
}

#[test]
fn a_start_in_the_middle_of_heavy_traffic_finds_nothing() {
    assert!(run(udp(BEGIN, 30, 5000)).is_empty());
}

#[test]
fn what_begins_while_the_sensor_learns_is_found_afterwards() {
    let alerts = run(udp(BEGIN + 4 * SECOND, 20, 5000));
    assert_eq!(floods_in(&alerts).len(), 1, "{alerts:#?}");
}

#[test]
fn a_flood_of_requests_for_an_echo_is_one_and_the_replies_are_none() {
    let mut traffic: Traffic =
        stream(LATER, 4, 3000, |_| packet(host(9), host(1), (0, 0), echo(8))).collect();
    traffic.extend(stream(LATER + MS, 4, 3000, |_| packet(host(1), host(9), (0, 0), echo(0))));
    one_flood(&run(traffic), Kind::IcmpFlood, host(1), 12_000);
}

#[test]
fn the_answers_to_a_flood_of_datagrams_are_none() {
    let mut traffic = udp(LATER, 4, 5000);
    traffic.extend(stream(LATER + MS, 4, 5000, |_| {
        packet(host(1), host(9), (5201, 5201), PacketKind::Udp)
    }));
    one_flood(&run(traffic), Kind::UdpFlood, host(1), 20_000);
}

#[test]
fn resets_that_nobody_asked_for_are_a_flood_and_those_that_end_connections_are_none() {
    let resets =
        || stream(LATER, 4, 3000, |n| packet(host(500 + n as u32 % 99), host(1), (80, 9), RST));
    one_flood(&run(resets().collect()), Kind::RstFlood, host(1), 12_000);
    let mut traffic: Traffic = resets().collect();
    traffic.extend(
        stream(LATER, 4, 3000, |_| packet(host(9), host(1), (1, 80), SYN))
            .map(|(time, _)| (time, What::Completed(host(1)))),
    );
    assert!(run(traffic).is_empty());
}

#[test]
fn resets_of_many_hosts_to_one_that_sweeps_them_are_no_flood() {
    let mut traffic: Traffic = stream(LATER, 4, 4000, |n| {
        packet(host(9), host(1000 + n as u32 % 200), (40_000, (n / 200) as u16), SYN)
    })
    .collect();
    traffic.extend(stream(LATER + MS, 4, 4000, |n| {
        packet(host(1000 + n as u32 % 200), host(9), ((n / 200) as u16, 40_000), RST)
    }));
    assert!(run(traffic).is_empty());
}

#[test]
fn fragments_are_a_flood_of_their_own() {
    let traffic =
        stream(LATER, 4, 4000, |_| packet(host(9), host(1), (0, 0), PacketKind::LaterFragment));
    one_flood(&run(traffic.collect()), Kind::FragmentFlood, host(1), 16_000);
}

#[test]
fn a_flood_that_comes_again_within_the_minute_is_the_same_and_later_another() {
    let mut traffic = random_sources(LATER, 4, 4000);
    traffic.extend(random_sources(LATER + 50 * SECOND, 4, 4000));
    traffic.extend(random_sources(LATER + 130 * SECOND, 4, 4000));
    let floods = floods_in(&run(traffic));
    assert_eq!(floods.len(), 2, "{floods:?}");
    assert!(floods[0].2 > 28_000 && floods[1].2 < 18_000, "{floods:?}");
}

#[test]
fn a_rate_of_zero_turns_a_kind_off_and_an_allowed_source_makes_no_flood() {
    let mut off = config();
    off.floods.rates[1] = 0;
    assert!(run_on(1, &off, udp(LATER, 4, 5000)).is_empty());
    let mut allowed = config();
    allowed.allow = AllowList::new(Vec::new(), vec![host(9)]);
    assert!(run_on(1, &allowed, udp(LATER, 4, 5000)).is_empty());
    let mut never_counts = config();
    never_counts.networks = vec![NetworkRule { network: host(9).into(), factor: None }];
    assert!(run_on(1, &never_counts, udp(LATER, 4, 5000)).is_empty());
}

#[test]
fn a_syn_flood_is_known_before_it_is_told_with_its_dominant_source() {
    let config = config();
    let mut table = TargetTable::new(config.key);
    let mut floods = Floods::new(&config);
    let traffic = stream(LATER, 2, 4000, |n| packet(host(9), host(1), (n as u16, 80), SYN));
    let mut traffic = traffic.peekable();
    for now in (LATER..=LATER + SECOND).step_by(TICK as usize) {
        while let Some((time, What::Packet(packet))) = traffic.next_if(|(time, _)| *time < now) {
            table.feed(&packet, UnixNanos(time));
        }
        assert!(table.publish(|report| {
            floods.merge(0, report);
            true
        }));
        let mut alerts = Vec::new();
        floods.tick(UnixNanos(now), &mut || unreachable!("too early"), &mut alerts);
        assert_eq!(alerts, []);
    }
    assert_eq!(floods.is_flooded(host(1)).unwrap().dominant, Some(host(9)));
    assert_eq!(floods.is_flooded(host(9)), None);
}

/// A mix by seed: floods and ordinary traffic at a few targets.
fn mixture(seed: u64) -> Traffic {
    let random = |n: u64| mix(seed, n);
    let mut traffic = Traffic::new();
    for part in 0..12 {
        let (begin, rate) = (BEGIN + random(part) % (20 * SECOND), 50 + random(part + 50) % 3000);
        let target = host(random(part + 100) as u32 % 4);
        let kind = [SYN, PacketKind::Udp, echo(8), RST, PacketKind::LaterFragment, SYN]
            [random(part + 200) as usize % 6];
        let spread = [1, 3, 1000][random(part + 300) as usize % 3];
        let packets = stream(begin, 1 + random(part + 400) % 6, rate, move |n| {
            packet(host(10 + (mix(n, part) % spread) as u32), target, (7, (n % 9) as u16), kind)
        });
        traffic.extend(packets);
        let completed = random(part + 500) % 400 + 1;
        let completions = stream(begin, 4, completed, |_| Packet::default());
        traffic.extend(completions.map(|(time, _)| (time, What::Completed(target))));
    }
    traffic
}

#[test]
fn any_number_of_workers_finds_what_one_finds() {
    let mut found = 0;
    for seed in 0..24 {
        let traffic = mixture(seed);
        let whole = run_on(1, &config(), traffic.clone());
        found += floods_in(&whole).len();
        for workers in [2, 5, 8] {
            let mut alerts = run_on(workers, &config(), traffic.clone());
            alerts.iter_mut().for_each(|alert| alert.workers = 1);
            assert_eq!(alerts, whole, "seed {seed}, {workers} workers");
        }
    }
    assert!(found > 24, "{found}");
}

#[test]
fn the_memory_is_what_the_manual_says() {
    let queue = crate::worker::TARGET_RING * size_of::<crate::flood::Report>();
    assert_eq!((TargetTable::MEMORY + queue) >> 10, 868);
    assert_eq!(Floods::MEMORY >> 10, 4992);
}
