//! Three sensors under mixed load, and a collector that is killed: afterwards nothing grows, and every record
//! is stored once. `RINGWATCH_SOAK_SECONDS` says how long it takes; two minutes in CI.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use perf::frames::{self, ACK, SYN};
use perf::tools;
use serde_json::Value;

use crate::site::{Sensor, Settings, Site, wait_until};
use crate::traffic::{self, Load};

const SENSORS: u8 = 3;
/// Frames a second, for each sensor.
const RATE: u64 = 1500;
/// What a program may grow by from the first third of the looks to the last, MiB. The collector's queue holds
/// 64 MiB while the machine gives it no time.
fn growth_mib(program: &str) -> u64 {
    if program == "collector" { 72 } else { 8 }
}
/// Descriptors that come and go: a question that is answered just now, a segment that is sealed.
const PASSING_DESCRIPTORS: u64 = 4;

fn duration() -> Duration {
    let seconds = std::env::var("RINGWATCH_SOAK_SECONDS").ok();
    let usual = if std::env::var_os("CI").is_some() { 120 } else { 16 };
    Duration::from_secs(seconds.map_or(usual, |text| text.parse().unwrap()))
}

/// Lasting conversations, and in each twentieth frame a client that is new.
fn load() -> Vec<Vec<u8>> {
    let address = |net: u8, number: u16, port: u16| {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([10, net, high, low], port))
    };
    let made = (0..40_000).map(|number: u16| {
        let server = address(12, number % 5, 443);
        let (passing, lasting) = (address(11, number, 30_000), address(13, number % 199, 40_000));
        match number % 20 {
            0 => frames::tcp(passing, server, SYN, b""),
            10 => frames::udp(passing, server, &[1; 200]),
            1..=5 => frames::tcp(lasting, server, ACK, &[3; 120]),
            6..=12 => frames::udp(lasting, server, &[1; 40]),
            _ => frames::udp(server, lasting, &[2; 300]),
        }
    });
    made.collect()
}

/// What else happens on a network for so long: connections, now and then a scan, and people who ask the
/// collector. Does `look` once a second.
fn live(site: &Site, duration: Duration, mut look: impl FnMut()) {
    let begin = Instant::now();
    for second in 0_u64.. {
        traffic::connection(&site.lab, 1, 8080);
        if second.is_multiple_of(20) {
            let scan = ["-n", "-Pn", "-sS", "-p1-60", "10.99.0.2"];
            site.lab.generator().run("nmap", &scan);
        }
        if second.is_multiple_of(5) {
            site.ringwatch(&["alerts", "--from", "1h", "--limit", "20"]);
            site.ringwatch(&["flows", "--sensor", "web-1", "--limit", "100", "--json"]);
            site.status();
        }
        look();
        match duration.checked_sub(begin.elapsed()) {
            Some(left) => std::thread::sleep(left.min(Duration::from_secs(1))),
            None => return,
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Vitals {
    resident_mib: u64,
    descriptors: u64,
    threads: u64,
}

impl Vitals {
    fn of(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64;
        let (resident_mib, threads) = (number("VmRSS:") / 1024, number("Threads:"));
        Self { resident_mib, descriptors, threads }
    }

    /// The least of each: what passes is not in it.
    fn least(looks: &[Self]) -> Self {
        let least = |of: fn(&Self) -> u64| looks.iter().map(of).min().unwrap();
        Self {
            resident_mib: least(|vitals| vitals.resident_mib),
            descriptors: least(|vitals| vitals.descriptors),
            threads: least(|vitals| vitals.threads),
        }
    }
}

/// Fails if a program holds more in the last third of the looks than in the first.
fn assert_flat(name: &str, looks: &[Vitals]) {
    let third = looks.len() / 3;
    let (first, last) = (Vitals::least(&looks[..third]), Vitals::least(&looks[2 * third..]));
    println!("{name}: {first:?}, at the end {last:?}");
    let is_flat = last.resident_mib <= first.resident_mib + growth_mib(name)
        && last.descriptors <= first.descriptors + PASSING_DESCRIPTORS
        && last.threads <= first.threads;
    assert!(is_flat, "{name} grows: {looks:#?}");
}

fn event_id(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    event["ringwatch"]["event_id"].as_str().unwrap().to_owned()
}

#[test]
fn three_sensors_outlive_their_collector_and_every_ledger_adds_up() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let Some(site) = Site::new(SENSORS) else { return };
    let collector = site.start_collector();
    let sensors: Vec<Sensor> = (0..SENSORS).map(|number| start(&site, number)).collect();
    sensors.iter().for_each(|sensor| site.wait_connected(sensor));
    let loads: Vec<Load> = (0..SENSORS)
        .map(|number| Load::start(&site.lab, usize::from(number), load(), RATE))
        .collect();
    let phase = duration() / 4;
    live(&site, phase, || {});
    collector.kill();
    std::thread::sleep(Duration::from_secs(1));
    let collector = site.start_collector();
    for sensor in &sensors {
        let connects = || site.metric(sensor, "ringwatch_uplink_connects_total", "");
        let limit = Duration::from_secs(30);
        wait_until("reconnection", limit, || connects() == 2, || sensor.process.describe());
    }
    let own = sensors.iter().map(|sensor| (sensor.name.as_str(), sensor.process.id()));
    let processes: Vec<_> = own.chain([("collector", collector.process.id())]).collect();
    // What the programs put off while the collector was away is done by then.
    live(&site, phase / 2, || {});
    let mut looks: BTreeMap<&str, Vec<Vitals>> = BTreeMap::new();
    live(&site, phase * 5 / 2, || {
        for (name, process) in &processes {
            looks.entry(name).or_default().push(Vitals::of(*process));
        }
    });
    looks.iter().for_each(|(name, looks)| assert_flat(name, looks));
    let sent: Vec<u64> = loads.into_iter().map(Load::stop).collect();
    let outcome = site.finish(sensors, collector);
    for (ended, sent) in outcome.ended.iter().zip(sent) {
        let ledger = &ended.ledger;
        assert!(ledger.kernel_packets() >= sent, "{}: {sent} sent, {ledger:#?}", ended.name);
        assert_eq!(ledger.records.acknowledged, ledger.records.produced, "{ledger:#?}");
        let stored = outcome.store.lines_of(&ended.name);
        let ids: BTreeSet<String> = stored.iter().map(|line| event_id(line)).collect();
        let own: BTreeSet<String> = ended.lines.iter().map(|line| event_id(line)).collect();
        assert_eq!(ids, own, "{}: events that are missing or nobody wrote", ended.name);
        assert_eq!(stored.len(), ids.len(), "{}: events are stored twice", ended.name);
        println!(
            "{}: {sent} frames sent, {} stored, lost {:?}; {} events stored",
            ended.name,
            ledger.frames.acknowledged,
            ledger.frames.lost,
            stored.len()
        );
        assert!(outcome.store.frames.contains_key(&format!("{}/s0", ended.name)));
    }
}

fn start(site: &Site, number: u8) -> Sensor {
    let settings = Settings {
        collector: format!("10.{}.0.1:4750", 150 + number),
        export: "frames = \"all\"\npool_mib = 4\n".to_owned(),
        more: "[detect]\nmemory_mib = 16\n".to_owned(),
        name: format!("web-{number}"),
        ..Settings::frames("all")
    };
    site.start_sensor_in(&site.lab.links()[usize::from(number)].sensor, &settings)
}
