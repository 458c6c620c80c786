//! The detector behind real worker tables: thresholds, outcomes, life cycle, and that nothing depends
//! on how packets are dealt to workers.

use std::time::Duration;

use packet::{Address, mix};
use wire::units::UnixNanos;

use super::oracle::{Sighting, Told, expected};
use super::{
    Alert, AllowList, Confidence, Detector, DetectorConfig, Held, Kind, Phase, Profile, Thresholds,
};
use crate::evidence::{Class, Contact, ContactKey, ContactTable, Observation};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const TICK: u64 = 250 * MS;

use Observation::{Answered, Attempted, Refused};

fn source(n: u8) -> Address {
    Address::from_v4([192, 0, 2, n])
}

fn target(n: u8) -> Address {
    Address::from_v4([198, 51, 100, n])
}

fn contact(from: u8, to: u8, port: u16) -> ContactKey {
    ContactKey { source: source(from), target: target(to), class: Class::Tcp, port }
}

/// Workers' tables and a detector, fed as the pipeline feeds them.
struct Sensor {
    tables: Vec<ContactTable>,
    detector: Detector,
    alerts: Vec<Alert>,
    shuffle: u64,
}

impl Sensor {
    fn new(workers: usize, config: DetectorConfig) -> Self {
        let key = config.key;
        let tables = (0..workers as u64).map(|n| ContactTable::new(1 << 14, mix(key, n)));
        Self {
            tables: tables.collect(),
            detector: Detector::new(config),
            alerts: Vec::new(),
            shuffle: key,
        }
    }

    fn run(
        &mut self,
        sightings: &[Sighting],
        until: u64,
        deal: impl Fn(usize, &Sighting) -> usize,
    ) {
        let mut rest = sightings.iter().enumerate().peekable();
        for now in (TICK..=until).step_by(TICK as usize) {
            while let Some((place, sighting)) = rest.next_if(|(_, sighting)| sighting.0 < now) {
                let worker = deal(place, sighting) % self.tables.len();
                let table = &mut self.tables[worker];
                let hash = table.hash(&sighting.1);
                table.prefetch(hash, sighting.2);
                if !table.holds_back(hash, sighting.2) {
                    table.take_in(hash, &sighting.1, sighting.2, UnixNanos(sighting.0));
                }
            }
            self.meet(now);
        }
    }

    fn meet(&mut self, now: u64) {
        let mut deltas: Vec<(usize, Contact)> = Vec::new();
        for (worker, table) in self.tables.iter_mut().enumerate() {
            let published = table.publish(|contact| {
                deltas.push((worker, *contact));
                true
            });
            assert!(!published.answers_lost);
        }
        self.shuffle = mix(self.shuffle, now);
        let shuffle = self.shuffle;
        deltas.sort_by_key(|(worker, delta)| {
            mix(shuffle ^ *worker as u64, delta.key.target.low() ^ u64::from(delta.key.port))
        });
        for (worker, delta) in deltas {
            self.detector.merge(worker, &delta);
        }
        self.detector.tick(UnixNanos(now), &mut self.alerts);
    }
}

fn told(alert: &Alert) -> Told {
    Told {
        time: alert.time.0,
        source: alert.source.unwrap_or_default(),
        target: alert.target,
        phase: alert.phase,
        totals: [alert.attempted, alert.answered, alert.refused, alert.silent],
        distinct_ports: alert.distinct_ports,
        distinct_hosts: alert.distinct_hosts,
    }
}

/// All alerts of one run on one worker, which runs on until nothing is open.
fn alerts_of(config: DetectorConfig, sightings: &[Sighting]) -> Vec<Alert> {
    let mut sensor = Sensor::new(1, config);
    let last = sightings.last().map_or(0, |sighting| sighting.0);
    sensor.run(sightings, last + 17 * 60 * SECOND, |_, _| 0);
    assert!(sensor.detector.is_idle(), "nothing stays open");
    assert_eq!(sensor.detector.counters().evidence_lost.total(), 0);
    sensor.alerts
}

fn opened(sightings: &[Sighting]) -> usize {
    kinds(sightings).len()
}

/// Kinds of the alerts that open.
fn kinds(sightings: &[Sighting]) -> Vec<Kind> {
    let alerts = alerts_of(DetectorConfig::default(), sightings);
    alerts.iter().filter(|alert| alert.phase == Phase::Open).map(|alert| alert.kind).collect()
}

/// `ports` attempts on one target, 10 ms apart, each followed by `answer` after `delay`.
fn scan(ports: u16, answer: Option<(Observation, u64)>) -> Vec<Sighting> {
    let mut sightings = Vec::new();
    for port in 1..=ports {
        let time = SECOND + u64::from(port) * 10 * MS;
        sightings.push((time, contact(1, 1, port), Attempted));
        sightings.extend(answer.map(|(what, delay)| (time + delay, contact(1, 1, port), what)));
    }
    sightings.sort_unstable();
    sightings
}

/// The same, over hosts.
fn sweep(hosts: u8, port: u16) -> Vec<Sighting> {
    (1..=hosts)
        .map(|host| (SECOND + u64::from(host) * 10 * MS, contact(1, host, port), Attempted))
        .collect()
}

#[test]
fn ten_failed_ports_are_a_vertical_scan_and_nine_are_none() {
    for answer in [None, Some((Refused, MS))] {
        assert_eq!(opened(&scan(9, answer)), 0, "{answer:?}");
        assert_eq!(opened(&scan(10, answer)), 1, "{answer:?}");
    }
}

#[test]
fn ten_failed_hosts_on_one_port_are_a_horizontal_scan_and_nine_are_none() {
    assert_eq!(opened(&sweep(9, 443)), 0);
    let alerts = alerts_of(DetectorConfig::default(), &sweep(10, 443));
    assert_eq!(alerts.len(), 2);
    assert_eq!((alerts[0].kind, alerts[0].phase), (Kind::Horizontal, Phase::Open));
    assert_eq!((alerts[0].source, alerts[0].target), (Some(source(1)), None));
    assert_eq!((alerts[0].distinct_hosts, alerts[0].distinct_ports), (10, 1));
    assert_eq!(alerts[0].sample_ports, [443]);
}

#[test]
fn ports_that_answer_in_time_are_no_evidence() {
    assert_eq!(opened(&scan(200, Some((Answered, 2_900 * MS)))), 0);
}

#[test]
fn ports_that_answer_too_late_are_taken_back() {
    let alerts = alerts_of(DetectorConfig::default(), &scan(20, Some((Answered, 4 * SECOND))));
    let [open, close] = &alerts[..] else { panic!("{alerts:#?}") };
    assert_eq!((open.phase, open.answered), (Phase::Open, 0));
    assert!(open.silent >= 10);
    assert_eq!((close.phase, close.silent, close.answered), (Phase::Close, 0, 20));
}

#[test]
fn answers_dominate_refusals() {
    let mut sightings = scan(20, Some((Answered, MS)));
    sightings.extend((1..=20).map(|port| (2 * SECOND, contact(1, 1, port), Refused)));
    assert_eq!(opened(&sightings), 0);
}

#[test]
fn repeats_never_count() {
    let mut sightings: Vec<Sighting> = Vec::new();
    for round in 0..50 {
        for port in 1..=9 {
            let time = SECOND + round * 1_100 * MS + port * MS;
            sightings.push((time, contact(1, 1, port as u16), Attempted));
            sightings.push((time + MS / 2, contact(1, 1, port as u16), Refused));
        }
    }
    sightings.sort_unstable();
    assert_eq!(opened(&sightings), 0);
}

#[test]
fn backscatter_is_no_evidence() {
    let sightings: Vec<Sighting> = (1..5000)
        .map(|n| (SECOND + n * MS, contact(1, 1, n as u16), [Answered, Refused][n as usize % 2]))
        .collect();
    assert_eq!(opened(&sightings), 0);
}

#[test]
fn slow_attempts_leave_the_window_before_they_add_up_and_are_a_slow_scan() {
    let every = |gap: u64| -> Vec<Sighting> {
        (1..=40).map(|n| (n * gap, contact(1, 1, n as u16), Attempted)).collect()
    };
    // Nine in 60 s, of which the last is not yet silent.
    assert_eq!(kinds(&every(7 * SECOND)), [Kind::Slow]);
    assert_eq!(kinds(&every(36 * SECOND)), [Kind::Slow], "25 in a quarter of an hour");
    assert_eq!(kinds(&every(40 * SECOND)), []);
    // Twelve in 60 s.
    assert_eq!(kinds(&every(5 * SECOND)), [Kind::Vertical]);
}

#[test]
fn the_life_of_an_alert_is_open_updates_and_close_under_one_id() {
    let alerts = alerts_of(DetectorConfig::default(), &scan(1000, Some((Refused, MS))));
    let life: Vec<_> = alerts.iter().map(|alert| (alert.phase, alert.revision)).collect();
    let update = Phase::Update;
    assert_eq!(life, [(Phase::Open, 1), (update, 2), (update, 3), (Phase::Close, 4)]);
    assert!(alerts.iter().all(|alert| alert.id == alerts[0].id));
    let close = &alerts[3];
    assert_eq!((close.distinct_ports, close.attempted, close.refused), (1000, 1000, 1000));
    assert_eq!((close.answered, close.silent, close.is_estimated), (0, 0, false));
    assert_eq!(close.sample_ports, (1..=20).collect::<Vec<u16>>());
    assert_eq!((close.start.0, close.end.0), (SECOND + 10 * MS, 11 * SECOND));
    assert_eq!(close.time.0, 71 * SECOND, "60 s after the last attempt");
    assert_eq!((close.confidence, close.spoofable), (Confidence::High, true));
}

#[test]
fn every_port_of_a_target_is_counted_exactly() {
    let sightings: Vec<Sighting> = (0..=u16::MAX)
        .map(|port| (SECOND + u64::from(port) * MS / 2, contact(1, 1, port), Attempted))
        .collect();
    let alerts = alerts_of(DetectorConfig::default(), &sightings);
    let close = alerts.last().unwrap();
    assert_eq!((close.attempted, close.silent, close.is_estimated), (65_536, 65_536, false));
    assert_eq!(alerts.iter().filter(|alert| alert.phase == Phase::Open).count(), 1);
}

#[test]
fn several_ports_swept_by_one_source_fold_into_one_alert() {
    let mut sightings: Vec<Sighting> =
        [22, 80, 443].into_iter().flat_map(|p| sweep(9, p)).collect();
    sightings.extend([22, 80, 443].map(|port| (2 * SECOND, contact(1, 77, port), Attempted)));
    sightings.sort_unstable();
    let alerts = alerts_of(DetectorConfig::default(), &sightings);
    assert_eq!(alerts.len(), 2, "{alerts:#?}");
    assert_eq!(alerts[1].sample_ports, [22, 80, 443]);
    assert_eq!((alerts[1].distinct_hosts, alerts[1].attempted), (10, 30));
}

#[test]
fn ports_that_answered_are_listed() {
    let mut sightings = scan(30, Some((Refused, MS)));
    sightings.retain(|&(_, key, what)| !([22, 25].contains(&key.port) && what == Refused));
    sightings.extend([22, 25].map(|port| (SECOND + 500 * MS, contact(1, 1, port), Answered)));
    sightings.sort_unstable();
    let alerts = alerts_of(DetectorConfig::default(), &sightings);
    assert_eq!(alerts.last().unwrap().answered_ports, [22, 25]);
    assert_eq!(alerts.last().unwrap().answered, 2);
}

#[test]
fn strict_counts_ports_by_syn_alone() {
    let strict = || DetectorConfig { profile: Profile::Strict, ..DetectorConfig::default() };
    assert_eq!(alerts_of(strict(), &scan(3, Some((Answered, MS)))), []);
    let alerts = alerts_of(strict(), &scan(4, Some((Answered, MS))));
    assert_eq!(alerts.len(), 2);
    assert_eq!((alerts[0].confidence, alerts[0].distinct_ports), (Confidence::Low, 4));
}

#[test]
fn allowed_sources_never_count() {
    let allow = AllowList::new(vec!["192.0.2.0/28".parse().unwrap()], Vec::new());
    let config = DetectorConfig { allow, ..DetectorConfig::default() };
    assert_eq!(alerts_of(config, &scan(100, None)), []);
}

#[test]
fn silence_while_frames_are_lost_is_no_evidence_and_refusal_is() {
    for (answer, expected) in [(None, 0), (Some((Refused, MS)), 2)] {
        let mut sensor = Sensor::new(1, DetectorConfig::default());
        sensor.detector.note_loss(UnixNanos(3 * SECOND), UnixNanos(3 * SECOND + MS));
        sensor.run(&scan(50, answer), 130 * SECOND, |_, _| 0);
        assert_eq!(sensor.alerts.len(), expected, "{answer:?}");
    }
}

#[test]
fn what_falls_due_in_a_gap_between_ticks_is_found() {
    let mut sensor = Sensor::new(1, DetectorConfig::default());
    sensor.run(&scan(50, None), 2 * SECOND, |_, _| 0);
    assert_eq!(sensor.alerts, []);
    sensor.meet(3600 * SECOND);
    let phases: Vec<_> = sensor.alerts.iter().map(|alert| (alert.phase, alert.time.0)).collect();
    assert_eq!(phases, [(Phase::Open, 4250 * MS), (Phase::Close, 61_500 * MS)]);
}

#[test]
fn finish_closes_what_is_open() {
    let mut sensor = Sensor::new(1, DetectorConfig::default());
    sensor.run(&scan(50, Some((Refused, MS))), 2 * SECOND, |_, _| 0);
    let mut out = Vec::new();
    sensor.detector.finish(UnixNanos(2 * SECOND), &mut out);
    assert_eq!(out.iter().map(|alert| alert.phase).collect::<Vec<_>>(), [Phase::Close]);
    assert_eq!(sensor.detector.counters().open, 0);
}

#[test]
fn beyond_the_limit_alerts_wait_and_are_summarised_and_none_is_lost() {
    let mut sensor = Sensor::new(1, DetectorConfig::default());
    let mut sightings: Vec<Sighting> = Vec::new();
    for scanner in 0..250 {
        for port in 0..10 {
            sightings.push((SECOND, contact(scanner, scanner, port), Attempted));
            sightings.push((SECOND + MS, contact(scanner, scanner, port), Refused));
        }
    }
    sightings.sort_unstable();
    sensor.run(&sightings, 1250 * MS, |_, _| 0);
    assert_eq!(sensor.alerts.len(), 100);
    assert_eq!(sensor.detector.take_summary().unwrap().delayed, 150);
    (6..=20).for_each(|tick| sensor.meet(tick * TICK));
    assert_eq!(sensor.alerts.len(), 250);
    (20..=300).for_each(|tick| sensor.meet(tick * TICK));
    assert_eq!(sensor.alerts.len(), 500, "every opening has its closing");
}

#[test]
fn a_full_table_gives_up_the_least_evidence_and_counts_it() {
    let config = DetectorConfig { memory_mib: 1, ..DetectorConfig::default() };
    let mut detector = Detector::new(config);
    let capacity = detector.budget().contacts as u64;
    let mut alerts = Vec::new();
    let merge = |detector: &mut Detector, key, what, time| {
        detector.merge(0, &Contact::new(key, what, UnixNanos(time)));
    };
    for port in 0..9 {
        merge(&mut detector, contact(1, 1, port), Attempted, SECOND);
        merge(&mut detector, contact(1, 1, port), Refused, SECOND);
    }
    detector.tick(UnixNanos(SECOND + 250 * MS), &mut alerts);
    for n in 0..20 * capacity {
        let flood = ContactKey {
            class: Class::Tcp,
            source: Address::from_v4((0x0a00_0000 | n as u32).to_be_bytes()),
            target: target(1),
            port: n as u16,
        };
        merge(&mut detector, flood, Attempted, 2 * SECOND);
        if n % 1000 == 0 {
            detector.tick(UnixNanos(2 * SECOND), &mut alerts);
        }
    }
    let lost = detector.counters().evidence_lost;
    assert!(lost.of(Held::Little) >= 19 * capacity, "{lost:?}");
    assert_eq!(
        lost.total(),
        lost.of(Held::Little),
        "the sources of the flood held little: {lost:?}"
    );
    // Groups run out first, as each contact of the flood has its own.
    assert!((capacity / 2..=capacity).contains(&detector.counters().contacts));
    merge(&mut detector, contact(1, 1, 9), Attempted, 2 * SECOND);
    merge(&mut detector, contact(1, 1, 9), Refused, 2 * SECOND);
    detector.tick(UnixNanos(2 * SECOND + 250 * MS), &mut alerts);
    assert_eq!(alerts.len(), 1, "the scanner's nine ports outlived the flood");
    assert_eq!(alerts[0].distinct_ports, 10);
}

#[test]
fn what_gives_way_is_counted_by_how_close_its_source_was_to_a_threshold() {
    // So many ports of each source are attempted and refused, or wait for their answer.
    for (ports, is_refused, held) in [
        (1, true, Held::Little),
        (5, false, Held::Half),
        (8, true, Held::Near),
        (8, false, Held::Near),
        (12, true, Held::Reached),
    ] {
        let config = DetectorConfig { memory_mib: 1, ..DetectorConfig::default() };
        let mut detector = Detector::new(config);
        for n in 0..2 * detector.budget().contacts as u32 {
            let source = Address::from_v4((0x0a00_0000 + n / ports).to_be_bytes());
            let key = ContactKey { source, ..contact(1, 1, (n % ports) as u16) };
            let time = UnixNanos(SECOND + u64::from(n));
            detector.merge(0, &Contact::new(key, Attempted, time));
            if is_refused {
                detector.merge(0, &Contact::new(key, Refused, time));
            }
            if n % 60 == 0 {
                detector.tick(UnixNanos(SECOND + MS), &mut Vec::new());
            }
        }
        let lost = detector.counters().evidence_lost;
        // With each contact that goes its source holds less.
        let most = Held::ALL.into_iter().rev().find(|held| lost.of(*held) > 0);
        assert!(most == Some(held) && lost.of(held) > 50, "{ports} ports: {lost:?}");
    }
}

/// Vertical scans found by silence, while answers that nobody asked for push each other out of the table.
fn silent_scans_beside_forgotten_answers(splits_flows: bool, answer: Observation) -> usize {
    let mut detector =
        Detector::new(DetectorConfig { memory_mib: 1, splits_flows, ..DetectorConfig::default() });
    let capacity = detector.budget().contacts as u64;
    let mut alerts = Vec::new();
    for port in 0..12 {
        detector.merge(0, &Contact::new(contact(1, 1, port), Attempted, UnixNanos(SECOND)));
    }
    for tick in 4..=20 {
        for n in 0..capacity / 4 {
            let number = (tick * capacity + n) as u32;
            let source = Address::from_v4((0x0a00_0000 | number).to_be_bytes());
            let key = ContactKey { source, ..contact(1, 2, 80) };
            detector.merge(0, &Contact::new(key, answer, UnixNanos(tick * TICK)));
        }
        detector.tick(UnixNanos(tick * TICK), &mut alerts);
    }
    assert!(detector.counters().evidence_lost.of(Held::Nothing) > capacity);
    alerts.iter().filter(|alert| alert.phase == Phase::Open).count()
}

#[test]
fn a_forgotten_answer_makes_silence_doubtful_only_where_its_attempt_may_come_from_another_worker() {
    assert_eq!(silent_scans_beside_forgotten_answers(true, Answered), 0);
    assert_eq!(silent_scans_beside_forgotten_answers(false, Answered), 1);
    assert_eq!(silent_scans_beside_forgotten_answers(true, Refused), 1, "both are failures");
}

/// The rules that the oracle knows.
fn only_vertical_and_horizontal() -> Thresholds {
    Thresholds {
        block_contacts: u32::MAX,
        sequential_hosts: u32::MAX,
        slow_contacts: u32::MAX,
        slow_day_contacts: u32::MAX,
        distributed_ports: u32::MAX,
        ..Thresholds::default()
    }
}

#[test]
fn alerts_open_and_close_exactly_as_exact_sets_say() {
    let (mut opened, mut quiet) = (0, 0);
    for seed in 0..300 {
        let sightings = traffic(seed);
        let until = (sightings.last().unwrap().0 / TICK + 4 * 130) * TICK;
        let mut expected = expected(&sightings, until);
        let config = DetectorConfig {
            key: mix(seed, 99),
            thresholds: only_vertical_and_horizontal(),
            ..DetectorConfig::default()
        };
        let mut sensor = Sensor::new(1, config);
        sensor.run(&sightings, until, |_, _| 0);
        let is_ladder = |alert: &&Alert| alert.phase != Phase::Update;
        let mut found: Vec<_> = sensor.alerts.iter().filter(is_ladder).map(told).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "seed {seed}");
        assert!(sensor.detector.is_idle(), "seed {seed}: all closed, all forgotten");
        opened += found.len() / 2;
        quiet += usize::from(found.is_empty());
    }
    assert!(opened > 300 && quiet > 10, "{opened} alerts, {quiet} runs without: both are tested");
}

#[test]
fn alerts_do_not_depend_on_workers_nor_on_how_packets_are_dealt() {
    let run = |seed, workers, key, deal: &dyn Fn(usize, &Sighting) -> usize| {
        let sightings = traffic(seed);
        let until = (sightings.last().unwrap().0 / TICK + 4 * 130) * TICK;
        let mut sensor = Sensor::new(workers, DetectorConfig { key, ..DetectorConfig::default() });
        sensor.run(&sightings, until, deal);
        sensor.alerts.iter_mut().for_each(|alert| alert.workers = 0);
        sensor.alerts
    };
    for seed in 0..60 {
        let one = run(seed, 1, 7, &|_, _| 0);
        for workers in [1, 2, 4, 8] {
            let by_flow = |_: usize, sighting: &Sighting| {
                mix(sighting.1.source.low() ^ sighting.1.target.low(), 3) as usize
            };
            assert_eq!(run(seed, workers, seed, &by_flow), one, "seed {seed}, {workers} by flow");
            let at_random = |place: usize, _: &Sighting| mix(place as u64, seed) as usize;
            assert_eq!(run(seed, workers, seed, &at_random), one, "seed {seed}, {workers} random");
        }
    }
}

/// Random traffic near the thresholds: scans, sweeps, good connections, late answers, repeats long
/// after, and backscatter.
fn traffic(seed: u64) -> Vec<Sighting> {
    let mut state = mix(seed, 0x5eed);
    let mut below = |limit: u64| {
        state = mix(state, 0x1234_5678_9abc_def1);
        (state >> 11) % limit
    };
    let mut sightings = Vec::new();
    for _ in 0..4 + below(5) {
        let (from, fixed) = (below(3) as u8, below(4));
        let is_vertical = below(2) == 0;
        let (start, gap) = (below(150 * SECOND), 1 + below(7 * SECOND));
        for n in 0..6 + below(9) {
            let key = match is_vertical {
                true => contact(from, fixed as u8, n as u16),
                false => contact(from, n as u8, fixed as u16),
            };
            let mut time = start + n * gap;
            for _ in 0..1 + below(3) {
                sightings.push((time, key, Attempted));
                match below(12) {
                    0 => sightings.push((time + below(6 * SECOND), key, Answered)),
                    1..=4 => sightings.push((time + below(4 * SECOND), key, Refused)),
                    _ => {}
                }
                let longest = if below(4) == 0 { 90 * SECOND } else { 4 * SECOND };
                time += below(longest);
            }
        }
    }
    for _ in 0..below(30) {
        let key = contact(below(3) as u8, below(14) as u8, below(14) as u16);
        let what = [Answered, Refused][below(2) as usize];
        sightings.push((below(250 * SECOND), key, what));
    }
    sightings.sort_unstable();
    sightings
}

#[test]
fn thresholds_and_times_are_those_of_the_configuration() {
    let config = || DetectorConfig {
        thresholds: Thresholds { vertical_ports: 3, ..Thresholds::default() },
        window: Duration::from_secs(10),
        silent_after: Duration::from_secs(1),
        close_after: Duration::from_secs(5),
        ..DetectorConfig::default()
    };
    let alerts = alerts_of(config(), &scan(3, None));
    assert_eq!(alerts.len(), 2);
    assert_eq!((alerts[0].time.0, alerts[1].time.0), (2250 * MS, 6250 * MS));
    let slow: Vec<Sighting> =
        (1..20).map(|n| (n * 5 * SECOND, contact(1, 1, n as u16), Attempted)).collect();
    assert_eq!(alerts_of(config(), &slow), []);
}
#[test]
fn tables_stay_within_the_configured_memory() {
    for memory_mib in [1, 4, 64] {
        let detector = Detector::new(DetectorConfig { memory_mib, ..DetectorConfig::default() });
        let budget = detector.budget();
        assert_eq!(budget.bytes, (memory_mib as usize) << 20);
        assert!((budget.bytes / 900..budget.bytes / 500).contains(&budget.contacts), "{budget:?}");
        assert!((budget.bytes / 40_000..).contains(&budget.alerts), "{budget:?}");
    }
}

#[test]
fn after_a_restart_ids_go_on_and_old_contacts_are_forgotten() {
    let mut detector = Detector::new(DetectorConfig::default());
    let refused = |port: u16, time: u64| {
        let (source, target) = (Address::from_v4([192, 0, 2, 1]), Address::from_v4([192, 0, 2, 2]));
        let key = ContactKey { source, target, class: Class::Tcp, port };
        let mut contact = Contact::new(key, Observation::Attempted, UnixNanos(time));
        contact.merge(&Contact::new(key, Observation::Refused, UnixNanos(time)));
        contact
    };
    let mut told = Vec::new();
    let late = 10_000 * SECOND;
    (1..=10).for_each(|port| detector.merge(0, &refused(port, late)));
    detector.tick(UnixNanos(late + TICK), &mut told);
    detector.restart(UnixNanos(late + TICK), &mut told);
    let steps: Vec<_> = told.iter().map(|alert| (alert.id, alert.phase)).collect();
    assert_eq!(steps, [(1, Phase::Open), (1, Phase::Close)]);

    // An hour back: nine ports are no scan, whatever was seen before; the tenth makes another alert.
    told.clear();
    let early = late - 3600 * SECOND;
    (1..=9).for_each(|port| detector.merge(0, &refused(port, early)));
    detector.tick(UnixNanos(early + TICK), &mut told);
    assert_eq!(told, []);
    detector.merge(0, &refused(10, early + TICK));
    detector.tick(UnixNanos(early + 2 * TICK), &mut told);
    assert_eq!(told.iter().map(|alert| alert.id).collect::<Vec<_>>(), [2]);
    assert_eq!(detector.counters().opened, 2);
}

#[test]
fn what_an_alert_told_is_no_slow_scan_when_it_is_over() {
    let config =
        DetectorConfig { close_after: Duration::from_secs(5), ..DetectorConfig::default() };
    let kinds: Vec<Kind> = alerts_of(config, &scan(1000, Some((Refused, MS))))
        .iter()
        .filter(|alert| alert.phase == Phase::Open)
        .map(|alert| alert.kind)
        .collect();
    assert_eq!(kinds, [Kind::Vertical]);
}

#[test]
fn a_port_that_is_scanned_by_two_techniques_counts_once_for_each() {
    for techniques in [[Observation::Fin, Attempted], [Attempted, Observation::Fin]] {
        let mut sightings: Vec<Sighting> = Vec::new();
        for (round, technique) in techniques.into_iter().enumerate() {
            for port in 1..=20 {
                let time = (round as u64 * 10 + 1) * SECOND + u64::from(port) * MS;
                sightings.push((time, contact(1, 1, port), technique));
                sightings.push((time + MS / 2, contact(1, 1, port), Refused));
            }
        }
        let alerts = alerts_of(DetectorConfig::default(), &sightings);
        let mut closed: Vec<_> = alerts
            .iter()
            .filter(|alert| alert.phase == Phase::Close)
            .map(|alert| (alert.kind, alert.distinct_ports))
            .collect();
        closed.sort_unstable();
        assert_eq!(closed, [(Kind::Vertical, 20), (Kind::Stealth, 20)]);
    }
}
