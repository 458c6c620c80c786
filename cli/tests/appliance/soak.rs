//! Three sensors under load, and a collector that is killed. `RINGWATCH_SOAK_SECONDS` makes it
//! longer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use perf::frames::{self, SYN};
use serde_json::Value;

use crate::site::{Sensor, Settings, Site, wait_until};
use crate::traffic::Load;

const SENSORS: u8 = 3;
const RATE: u64 = 3000;
/// What a program may grow by after the first half, MiB. Sensors: their buffers were full while the
/// collector was away. The collector: its queue holds 64 MiB while the machine gives it no time.
fn growth_mib(program: &str) -> u64 {
    if program == "collector" { 72 } else { 8 }
}

fn duration() -> Duration {
    let seconds = std::env::var("RINGWATCH_SOAK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(16, |text| text.parse().unwrap()))
}

/// Connections of many clients to a few servers, and datagrams: records and frames.
fn load() -> Vec<Vec<u8>> {
    let address = |net: u8, number: u16, port: u16| {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([10, net, high, low], port))
    };
    // A client connects again before anybody forgets it: nearly every SYN is to be a new one.
    let made = (0..40_000).map(|number: u16| {
        let (client, server) = (address(11, number, 30_000), address(12, number % 5, 443));
        match number % 10 {
            0 => frames::tcp(client, server, SYN, b""),
            1..=4 => frames::udp(client, server, &[1; 200]),
            _ => frames::udp(server, client, &[2; 900]),
        }
    });
    made.collect()
}

/// Resident memory of a process, MiB.
fn resident_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn event_id(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    event["ringwatch"]["event_id"].as_str().unwrap().to_owned()
}

#[test]
fn three_sensors_outlive_their_collector_and_every_ledger_adds_up() {
    let Some(site) = Site::new(SENSORS) else { return };
    let collector = site.start_collector();
    let sensors: Vec<Sensor> = (0..SENSORS).map(|number| start(&site, number)).collect();
    sensors.iter().for_each(|sensor| site.wait_connected(sensor));
    let loads: Vec<Load> = (0..SENSORS)
        .map(|number| Load::start(&site.lab, usize::from(number), load(), RATE))
        .collect();
    let phase = duration() / 4;
    std::thread::sleep(phase);
    collector.kill();
    std::thread::sleep(Duration::from_secs(1));
    let collector = site.start_collector();
    for sensor in &sensors {
        let connects = || site.metric(sensor, "ringwatch_uplink_connects_total", "");
        let limit = Duration::from_secs(30);
        wait_until("reconnection", limit, || connects() == 2, || sensor.process.describe());
    }
    let begin = Instant::now();
    std::thread::sleep(phase);
    let processes = || {
        let own = sensors.iter().map(|sensor| (sensor.name.clone(), sensor.process.id()));
        own.chain([("collector".to_owned(), collector.process.id())])
    };
    let memory =
        || processes().map(|(name, id)| (name, resident_mib(id))).collect::<BTreeMap<_, _>>();
    let before = memory();
    std::thread::sleep((phase * 3).saturating_sub(begin.elapsed()));
    let after = memory();
    println!("resident MiB: {before:?}, then {after:?}");
    for (name, before) in &before {
        let after = after[name];
        assert!(after <= before + growth_mib(name), "{name} grows: {before} to {after} MiB");
    }
    let sent: Vec<u64> = loads.into_iter().map(Load::stop).collect();
    let outcome = site.finish(sensors, collector);
    for (ended, sent) in outcome.ended.iter().zip(sent) {
        let ledger = &ended.ledger;
        assert!(ledger.kernel_packets() >= sent, "{}: {sent} sent, {ledger:#?}", ended.name);
        assert_eq!(ledger.records.acknowledged, ledger.records.produced, "{ledger:#?}");
        // Stored at least once: what was on the disk when the collector was killed, and of which
        // it had told nobody yet, may be there twice.
        let stored = outcome.store.lines_of(&ended.name);
        let mut ids = BTreeSet::new();
        let twice = stored.iter().filter(|line| !ids.insert(event_id(line))).count();
        let own: BTreeSet<String> = ended.lines.iter().map(|line| event_id(line)).collect();
        assert_eq!(ids, own, "{}: events that are missing or nobody wrote", ended.name);
        let in_half_a_second = RATE as usize / 10 / 2;
        println!(
            "{}: {sent} frames sent, {} stored, lost {:?}; {} events stored, {twice} of them twice",
            ended.name,
            ledger.frames.acknowledged,
            ledger.frames.lost,
            stored.len()
        );
        assert!(twice <= in_half_a_second, "{}: {twice} events are stored twice", ended.name);
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
