//! Records outlast whatever becomes of the sensor and of the disk that they wait on.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use perf::frames::{self, SYN};
use serde_json::Value;

use crate::disk::SmallDisk;
use crate::site::{Collector, Lanes, PATIENCE, Sensor, Settings, Site, Stored, lanes, wait_until};
use crate::traffic::{self, Load};

/// How long things take that end by themselves.
const LONG: Duration = Duration::from_secs(60);
/// Frames a second: each is a new connection, and so a record.
const RATE: u64 = 4000;

/// SYNs of many clients, each from an address of its own.
fn connections(net: u8) -> Vec<Vec<u8>> {
    let made = (0..60_000).map(|number: u16| {
        let [high, low] = number.to_be_bytes();
        let client = SocketAddr::from(([net, high, low, 1], 30_000));
        frames::tcp(client, SocketAddr::from(([203, 0, 113, 5], 443)), SYN, b"")
    });
    made.collect()
}

/// Whole lines of a file that killed processes may have left torn, at the end and in the middle: there the
/// first line of the next run follows at once.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let begin = line.rfind("{\"timestamp\"")?;
        serde_json::from_str::<Value>(&line[begin..]).is_ok().then(|| &line[begin..])
    })
}

fn spooled(site: &Site, sensor: &Sensor) -> u64 {
    site.metric(sensor, "ringwatch_spool_records", "")
}

/// Waits until the sensor has read what an earlier run left.
fn wait_read(site: &Site, sensor: &Sensor) {
    let is_read = || site.metric(sensor, "ringwatch_spool_reading", "") == 0;
    wait_until("spool that is read", LONG, is_read, || sensor.process.describe());
}

/// Waits until a collector has all that the sensor's spool holds.
fn wait_delivered(site: &Site, sensor: &Sensor) {
    site.wait_connected(sensor);
    // The `stats` event of every other second is a record too.
    let is_empty = || spooled(site, sensor) < 3;
    wait_until("empty spool", LONG, is_empty, || sensor.process.describe());
}

fn problems(site: &Site, sensor: &Sensor) -> String {
    let reply = site.ask_sensor(sensor, "/healthz");
    if reply.status == 200 { String::new() } else { reply.json()["problems"].to_string() }
}

fn end(sensor: Sensor, collector: Collector) -> (Stored, String) {
    let local = sensor.events();
    let mut sensor = sensor;
    let status = sensor.process.stop(nix::sys::signal::Signal::SIGINT, PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", sensor.process.describe());
    let log = sensor.process.stderr();
    assert!(log.contains("the ledger adds up") && !log.contains("panicked"), "{log}");
    let local = if sensor.events().len() > local.len() { sensor.events() } else { local };
    (Stored::read(&collector.stop()), local)
}

#[test]
fn a_sensor_killed_under_load_delivers_once_and_in_order_what_its_spool_had() {
    let Some(site) = Site::new(1) else { return };
    let mut least = 0;
    for round in 0..4 {
        let mut sensor = site.start_sensor(&Settings::frames("none"));
        let load = Load::start(&site.lab, 0, connections(20 + round), RATE);
        // At another place of the second in each round.
        let wanted = least + 500 + 700 * u64::from(round);
        let has_enough = || spooled(&site, &sensor) > wanted;
        wait_until("records", PATIENCE, has_enough, || sensor.process.describe());
        least = spooled(&site, &sensor);
        sensor.process.kill();
        drop(load);
    }
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("none"));
    wait_read(&site, &sensor);
    let recovered = site.metric(&sensor, "ringwatch_spool_recovered_records_total", "");
    assert!(recovered >= least, "{recovered} of {least} at least");
    wait_delivered(&site, &sensor);
    let shown = site.status();
    let shown = crate::site::find(&shown, "web-0");
    assert_eq!((&shown["missing"], &shown["duplicates"]), (&0.into(), &0.into()), "{shown:#}");
    let (store, local) = end(sensor, collector);

    let stored = lanes(store.lines_of("web-0"));
    check_lanes(&stored, &lanes(whole_lines(&local)), 4);
    let all: usize = stored.values().map(Vec::len).sum();
    assert!(all as u64 >= recovered, "{all} stored, {recovered} recovered");
}

#[test]
fn a_sensor_killed_beside_its_collector_is_stored_once_and_in_order() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let mut stored = 0;
    for round in 0..5 {
        let mut sensor = site.start_sensor(&Settings::frames("all"));
        let load = Load::start(&site.lab, 0, connections(40 + round), RATE);
        // In the middle of delivery, at another moment in each round.
        let wanted = stored + 300 + 400 * u64::from(round);
        let records = || crate::site::find(&site.status(), "web-0")["records"].as_u64().unwrap();
        site.wait_connected(&sensor);
        wait_until("records", PATIENCE, || records() > wanted, || site.status().to_string());
        stored = records();
        sensor.process.kill();
        drop(load);
    }
    let sensor = site.start_sensor(&Settings::frames("none"));
    wait_delivered(&site, &sensor);
    let shown = site.status();
    let shown = crate::site::find(&shown, "web-0");
    assert_eq!((&shown["missing"], &shown["gap_records"]), (&0.into(), &0.into()), "{shown:#}");
    let (store, local) = end(sensor, collector);
    // A run may end before it had an event of its own, while it delivered those of the one before.
    check_lanes(&lanes(store.lines_of("web-0")), &lanes(whole_lines(&local)), 3);
}

/// Of each run, what is stored is what the sensor itself wrote, from the beginning to where the kill took
/// what was on the way to the spool, or to the local file: never from the middle.
fn check_lanes(stored: &Lanes, local: &Lanes, least_runs: usize) {
    let runs = stored.keys().filter(|(_, is_first)| !is_first).count();
    assert!(runs >= least_runs, "{:?}", stored.keys());
    for (lane, stored) in stored {
        let empty = Vec::new();
        let local = local.get(lane).unwrap_or(&empty);
        let both = stored.iter().zip(local);
        let same = both.take_while(|(stored, local)| stored == local).count();
        assert!(
            same == stored.len() || same == local.len(),
            "{lane:?} of {} stored and {} local lines differs at {same}: {:?} and {:?}",
            stored.len(),
            local.len(),
            stored.get(same),
            local.get(same)
        );
    }
}

#[test]
fn a_full_disk_under_the_spool_costs_no_record_and_recovers_by_itself() {
    let Some(site) = Site::new(1) else { return };
    let mut disk = SmallDisk::mount(Path::new(&site.path("disk")), 256);
    let spool = "path = \"disk/spool\"\nmax_mib = 16".to_owned();
    let settings = Settings { spool, ..Settings::frames("none") };
    let sensor = site.start_sensor(&settings);
    let load = Load::start(&site.lab, 0, connections(20), RATE);
    let is_full = || problems(&site, &sensor).contains("No space left on device");
    wait_until("full disk", PATIENCE, is_full, || sensor.process.describe());
    let before = spooled(&site, &sensor);
    let goes_on = || spooled(&site, &sensor) > before + 5000;
    wait_until("records in memory", PATIENCE, goes_on, || sensor.process.describe());
    drop(load);
    disk.resize(64 << 10);
    let is_well = || problems(&site, &sensor).is_empty();
    wait_until("recovery", PATIENCE, is_well, || problems(&site, &sensor));
    // Nothing waits in memory any more, so even a kill costs nothing.
    let is_written = || site.metric(&sensor, "ringwatch_spool_waiting_bytes", "") == 0;
    wait_until("all written", PATIENCE, is_written, || sensor.process.describe());
    let log = sensor.process.stderr();
    assert_eq!(log.matches("cannot write to the spool").count(), 1, "{log}");
    assert_eq!(log.matches("the spool takes records again").count(), 1, "{log}");
    let kept = spooled(&site, &sensor);
    let mut sensor = sensor;
    sensor.process.kill();
    drop(sensor);

    let collector = site.start_collector();
    let sensor = site.start_sensor(&settings);
    wait_delivered(&site, &sensor);
    let (store, local) = end(sensor, collector);
    let stored = store.lines_of("web-0");
    assert!(stored.len() as u64 >= kept, "{} of {kept}", stored.len());
    let flows = |lanes: Lanes| -> Vec<String> {
        lanes.into_iter().filter(|((_, is_alert), _)| !is_alert).flat_map(|(_, it)| it).collect()
    };
    let (stored, local) = (flows(lanes(stored)), flows(lanes(whole_lines(&local))));
    assert_eq!(stored.len(), local.len());
    assert!(stored == local, "the same records in the same order");
}

#[test]
fn a_spool_that_vanishes_is_made_again_and_its_records_are_counted_as_lost() {
    let Some(site) = Site::new(1) else { return };
    let sensor = site.start_sensor(&Settings::frames("none"));
    let load = Load::start(&site.lab, 0, connections(20), RATE);
    let has_some = || spooled(&site, &sensor) > 2000;
    wait_until("records", PATIENCE, has_some, || sensor.process.describe());
    drop(load);
    let folder = site.path("web-0.spool");
    fs::remove_dir_all(&folder).unwrap();
    let lost = || site.metric(&sensor, "ringwatch_uplink_records_total", "\"lost_spool_failed\"");
    wait_until("loss", PATIENCE, || lost() >= 2000, || sensor.process.describe());
    assert!(Path::new(&folder).join("events").is_dir());
    assert_eq!(problems(&site, &sensor), "");
    let load = Load::start(&site.lab, 0, connections(30), RATE);
    wait_until("records", PATIENCE, has_some, || sensor.process.describe());
    drop(load);
    let collector = site.start_collector();
    wait_delivered(&site, &sensor);
    // The collector knows nothing of what lies before, but is told.
    let told = || crate::site::find(&site.status(), "web-0")["gap_records"].clone();
    assert_eq!(told(), lost(), "{}", site.status());
    let lost = lost();
    let (store, local) = end(sensor, collector);
    let stored = store.lines_of("web-0").len();
    assert_eq!(stored as u64 + lost, whole_lines(&local).count() as u64);
}

#[test]
fn capture_does_not_wait_for_a_spool_that_takes_long_to_read() {
    let Some(site) = Site::new(1) else { return };
    let mut sensor = site.start_sensor(&Settings::frames("none"));
    traffic::connection(&site.lab, 0, 7101);
    let has_some = || sensor.events().contains("\"dest_port\":7101") && spooled(&site, &sensor) > 0;
    wait_until("records", PATIENCE, has_some, || sensor.process.describe());
    sensor.process.kill();
    drop(sensor);
    // Zeros for minutes behind the last record, as some file systems leave them when the power goes.
    let events = Path::new(&site.path("web-0.spool")).join("events");
    let segment = fs::read_dir(events).unwrap().next().unwrap().unwrap().path();
    let set_len =
        |len| fs::File::options().write(true).open(&segment).unwrap().set_len(len).unwrap();
    let len = fs::metadata(&segment).unwrap().len();
    set_len(1 << 36);

    let mut sensor = site.start_sensor(&Settings::frames("none"));
    traffic::connection(&site.lab, 0, 7102);
    let is_seen = || sensor.events().contains("\"dest_port\":7102");
    wait_until("event", PATIENCE, is_seen, || sensor.process.describe());
    assert_eq!(site.metric(&sensor, "ringwatch_spool_reading", ""), 1);
    let waits = || site.metric(&sensor, "ringwatch_spool_waiting_bytes", "") > 0;
    wait_until("record in memory", PATIENCE, waits, || sensor.process.describe());
    let status = sensor.process.stop(nix::sys::signal::Signal::SIGINT, PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", sensor.process.describe());
    assert!(
        sensor.process.stderr().contains("the ledger adds up"),
        "{}",
        sensor.process.describe()
    );
    drop(sensor);

    set_len(len);
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("none"));
    wait_delivered(&site, &sensor);
    let (store, _) = end(sensor, collector);
    let lines = store.lines_of("web-0");
    assert!(lines.iter().any(|line| line.contains("\"dest_port\":7101")), "{lines:#?}");
}

#[test]
fn a_second_sensor_on_the_same_spool_ends_and_says_why() {
    let Some(site) = Site::new(1) else { return };
    let _first = site.start_sensor(&Settings::frames("none"));
    let mut second = site.spawn_sensor(
        &site.lab.links()[0].sensor,
        &Settings { more: "[api]\nlisten = \"\"".into(), ..Settings::frames("none") },
    );
    let status = second.process.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", second.process.describe());
    let said = second.process.stderr();
    assert!(said.contains("another sensor uses the spool"), "{said}");
    assert!(said.contains("give each its own spool.path"), "{said}");
}
