//! The sensor when something around it fails: disk, collector, interface, traffic itself. And what
//! it gives up before it looks at the first frame.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::Lab;
use perf::programs;
use perf::sensor::Sensor;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// Sends SYNs from these ports, one connection each.
fn connect(lab: &Lab, ports: std::ops::Range<u16>) {
    let mut injector = Injector::within(lab.generator(), "g0");
    for port in ports {
        let source = format!("198.18.0.1:{port}").parse().unwrap();
        let frame = frames::tcp(source, "198.19.0.2:80".parse().unwrap(), SYN, b"");
        injector.send(&frame).unwrap();
    }
}

/// The value of a metric with these labels, 0 if there is none.
fn metric(lab: &Lab, name: &str) -> u64 {
    let text = Sensor::ask(lab.sensor(), "/metrics").body;
    let row = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    row.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

const OUTPUT_LOST: &str = "ringwatch_events_lost_total{place=\"output\"}";

#[test]
fn a_full_disk_costs_events_that_are_counted_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    let mut command = programs::sensor();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sensor.toml");
    fs::write(&file, "[capture]\nring_mib = 16\n[events]\nfile = '/dev/full'\n").unwrap();
    command.arg("--config").arg(&file).args(["-i", "s0", "--workers", "2"]);
    let mut sensor = lab.sensor().spawn(&command);
    sensor.wait_for_line("capturing", PATIENCE);
    connect(&lab, 1..101);
    wait_until("100 events lost", || metric(&lab, OUTPUT_LOST) >= 100);
    connect(&lab, 101..151);
    wait_until("150 events lost", || metric(&lab, OUTPUT_LOST) >= 150);
    assert_eq!(Sensor::ask(lab.sensor(), "/healthz").status, 200);
    assert!(sensor.stop(Signal::SIGINT, PATIENCE).success());
    let said = sensor.stderr();
    assert_eq!(said.matches("cannot write").count(), 1, "{said}");
    assert!(said.contains("/dev/full") && said.contains("No space left"), "{said}");
    assert!(said.contains("the ledger adds up"), "{said}");
}

#[test]
fn a_disk_that_was_full_takes_whole_lines_again() {
    let Some(lab) = Lab::new() else { return };
    let folder = TempDir::new().unwrap();
    let place = folder.path().to_str().unwrap();
    fs::write(
        folder.path().join("sensor.toml"),
        "[capture]\nring_mib = 16\n[events]\nflows = false\n",
    )
    .unwrap();
    // The mount is seen by nobody else: `ip netns exec` gives each program mounts of its own.
    let script = format!(
        "cp {place}/sensor.toml /tmp/sensor-{pid}.toml; mount -t tmpfs -o size=128k none {place}
         mv /tmp/sensor-{pid}.toml {place}/sensor.toml
         exec {} --config {place}/sensor.toml -i s0 --workers 1 --events {place}/eve.json",
        programs::path("ringwatch-sensor").display(),
        pid = std::process::id(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let mut sensor = lab.sensor().spawn(&command);
    sensor.wait_for_line("capturing", PATIENCE);
    let inside = Path::new("/proc").join(sensor.id().to_string()).join("root").join(&place[1..]);
    connect(&lab, 1..1001);
    wait_until("events lost", || metric(&lab, OUTPUT_LOST) > 0);
    let flows = "ringwatch_events_total{type=\"flow\"}";
    wait_until("all connections handled", || metric(&lab, flows) == 1000);
    let mut text = fs::read_to_string(inside.join("eve.json")).unwrap();
    // What an operator does: the old file goes, its successor is the same one, cut to nothing.
    fs::write(inside.join("eve.json"), "").unwrap();
    let lost = metric(&lab, OUTPUT_LOST);
    connect(&lab, 1001..1101);
    wait_until("all connections handled", || metric(&lab, flows) == 1100);
    wait_until("lines again", || {
        fs::read_to_string(inside.join("eve.json")).unwrap().lines().count() >= 100
    });
    text += &fs::read_to_string(inside.join("eve.json")).unwrap();
    assert!(text.ends_with('\n'), "torn: {:?}", &text[text.len() - 80..]);
    let written = Events::parse(&text).connections().len() as u64;
    assert_eq!(written + lost, 1100);
    assert_eq!(metric(&lab, OUTPUT_LOST), lost);
    assert!(sensor.stop(Signal::SIGINT, PATIENCE).success());
}

#[test]
fn a_collector_that_is_away_is_said_once_and_dialled_again_while_analysis_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let folder = TempDir::new().unwrap();
    let pki = folder.path().join("pki").to_str().unwrap().to_owned();
    for arguments in [&["init", &pki][..], &["issue", &pki, "sensor", "web"]] {
        let output = programs::ringwatch().arg("pki").args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // Nobody listens on this port.
    let uplink = format!(
        "[spool]\npath = ''\n[uplink]\ncollectors = ['127.0.0.1:4750']\nca = '{pki}/ca.pem'\n\
         certificate = '{pki}/web.pem'\nkey = '{pki}/web.key.pem'\n"
    );
    let export = "[export]\nframes = 'all'\npool_mib = 1\n";
    let configuration = format!("[capture]\nring_mib = 16\n{uplink}{export}");
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
    let dials = "ringwatch_uplink_failed_dials_total";
    let dialled = || {
        let text = Sensor::ask(lab.sensor(), "/metrics").body;
        let rows = text.lines().filter(|line| line.starts_with(dials));
        rows.map(|row| row.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    // More frames than the pool holds.
    for _ in 0..5 {
        connect(&lab, 1..5001);
    }
    wait_until("dialled three times", || dialled() >= 3.0);
    connect(&lab, 6000..6013);
    let is_found =
        |events: &Events| events.connections().iter().any(|flow| flow["src_port"] == 6012);
    sensor.wait_for("flow event", is_found);
    assert_eq!(metric(&lab, "ringwatch_uplink_connected"), 0);
    let ended = Instant::now();
    let events = sensor.stop(Signal::SIGINT);
    assert!(ended.elapsed() < Duration::from_secs(4), "nobody to wait for: {:?}", ended.elapsed());
    let said = sensor.process().stderr();
    assert_eq!(said.matches("collector is away").count(), 1, "{said}");
    let ledger = events.ledger();
    assert_eq!((ledger.frames.acknowledged, ledger.records.acknowledged), (0, 0));
    let interface = &ledger.interfaces[0];
    assert!(interface.analysed >= 25_013, "{ledger:#?}");
    assert_eq!(interface.not_selected, 0, "{ledger:#?}");
    // The last event cannot tell of itself.
    assert_eq!(ledger.records.produced, events.all().len() as u64 - 1);
}

#[test]
fn an_interface_that_is_deleted_is_said_and_the_others_go_on() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().ip("link add d0 type veth peer name d1");
    lab.sensor().ip("link set d0 up");
    lab.sensor().ip("link set d1 up");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sensor.toml");
    fs::write(&file, "[capture]\nring_mib = 16\n").unwrap();
    let events = folder.path().join("eve.json");
    let mut command = programs::sensor();
    command.arg("--config").arg(&file).args(["-i", "d0", "-i", "s0", "--workers", "2"]);
    command.arg("--events").arg(&events);
    let mut sensor = lab.sensor().spawn(&command);
    sensor.wait_for_line("capturing", PATIENCE);
    let read = || Events::parse(&fs::read_to_string(&events).unwrap_or_default());
    lab.sensor().ip("link del d0");
    sensor.wait_for_line("was deleted", PATIENCE);
    let health = Sensor::ask(lab.sensor(), "/healthz");
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["problems"], serde_json::json!(["interface d0 was deleted"]));
    connect(&lab, 1..11);
    wait_until("flows of s0", || read().connections().len() == 10);
    assert!(sensor.stop(Signal::SIGINT, PATIENCE).success());
    let events = read();
    assert_eq!(events.anomalies("interface_gone").len(), 1);
    let ledger = events.ledger();
    assert_eq!(ledger.interfaces.len(), 2);
    let said = sensor.stderr();
    assert_eq!(said.matches("was deleted").count(), 1, "{said}");
}

#[test]
fn frames_of_random_bytes_are_counted_and_raise_nothing() {
    let Some(lab) = Lab::new() else { return };
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, Sensor::SMALL);
    let mut injector = Injector::within(lab.generator(), "g0");
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) as usize
    };
    let ether_types = [frames::IPV4, frames::IPV6, frames::ARP, frames::DOT1Q, 0x8847, 0x8864];
    for number in 0..5000 {
        // The kernel itself drops frames that end within a VLAN tag.
        let payload: Vec<u8> = (0..4 + next() % 1476).map(|_| next() as u8).collect();
        injector.send(&frames::ethernet(ether_types[number % 6], &payload)).unwrap();
    }
    let events = sensor.stop(Signal::SIGINT);
    assert!(events.ledger().interfaces[0].analysed >= 5000);
    let invalid = events.last_stats()["stats"]["decoder"]["invalid"].as_u64().unwrap();
    assert!(invalid > 1500, "{invalid}");
    assert_eq!(events.alerts(), []);
}

#[test]
fn no_thread_keeps_a_privilege_although_root_started_it() {
    let Some(lab) = Lab::new() else { return };
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, "[capture]\nring_mib = 16\n");
    let tasks = Path::new("/proc").join(sensor.process().id().to_string()).join("task");
    let mut names = BTreeSet::new();
    for task in fs::read_dir(tasks).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        names.insert(field("Name"));
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set} of {}", field("Name"));
        }
        assert_eq!(field("NoNewPrivs"), "1", "{}", field("Name"));
    }
    for name in ["worker-0", "worker-1", "detector", "recorder", "api"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    sensor.stop(Signal::SIGINT);
}
