//! Several interfaces at once: what the sensor counts on each is what the interface counted and what
//! was sent.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames;
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use perf::process::Process;
use perf::programs;
use perf::sensor::Sensor;

const PATIENCE: Duration = Duration::from_secs(20);
/// The generator's side, the sensor's side, frames for the sensor, and frames that it sends itself.
const LINKS: [(&str, &str, u64, u64); 3] =
    [("g0", "s0", 5000, 0), ("ga", "sa", 20_000, 700), ("gb", "sb", 1, 3)];

/// Links of [`LINKS`] that the lab does not have by itself, and no frame but those of the test.
fn prepare(lab: &Lab) {
    for namespace in [lab.generator(), lab.sensor()] {
        namespace.run("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
        namespace.run("sysctl", &["-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    }
    for (far, near, ..) in &LINKS[1..] {
        let other = lab.sensor().name();
        lab.generator().ip(&format!("link add {far} type veth peer name {near} netns {other}"));
        lab.generator().ip(&format!("link set {far} up"));
        lab.sensor().ip(&format!("link set {near} up"));
    }
}

/// Frames of each interface, received and sent, as the kernel counts them in `/proc/net/dev`.
fn counted_by_interfaces(namespace: &Namespace) -> BTreeMap<String, (u64, u64)> {
    let output = namespace.run("cat", &["/proc/net/dev"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    rows.map(|(name, rest)| {
        let numbers: Vec<u64> = rest.split_whitespace().map(|word| word.parse().unwrap()).collect();
        // Received: bytes, packets, 6 more; sent: bytes, packets, ...
        (name.trim().to_owned(), (numbers[1], numbers[9]))
    })
    .collect()
}

/// Sum of a metric over the workers, for one interface.
fn metric(text: &str, name: &str, interface: &str) -> u64 {
    let label = format!("interface=\"{interface}\"");
    let rows = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(&label))
    });
    let values: Vec<u64> =
        rows.map(|row| row.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(values.len(), 2, "{name} of {interface} has a row for each worker in\n{text}");
    values.iter().sum()
}

/// A sensor with two workers on all interfaces of [`LINKS`], serving its API.
fn start(lab: &Lab) -> Process {
    let mut command = programs::sensor();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("sensor.toml");
    std::fs::write(&file, "[capture]\nring_mib = 32\n").unwrap();
    command.arg("--config").arg(&file).args(["--workers", "2", "--events", "-"]);
    for (_, near, ..) in LINKS {
        command.args(["-i", near]);
    }
    let mut process = lab.sensor().spawn(&command);
    process.wait_for_line("capturing", PATIENCE);
    process
}

#[test]
fn metrics_interfaces_and_sender_agree_for_each_interface() {
    let Some(lab) = Lab::new() else { return };
    prepare(&lab);
    let mut sensor = start(&lab);
    let before = counted_by_interfaces(lab.sensor());
    let frame = |number: u64| {
        let source = format!("198.18.0.1:{}", 1 + number % 60_000);
        frames::udp(source.parse().unwrap(), "198.19.0.2:53".parse().unwrap(), &[0; 18])
    };
    thread::scope(|scope| {
        for (far, near, to_sensor, from_sensor) in LINKS {
            let lab = &lab;
            scope.spawn(move || {
                let rate = Some(20_000);
                let mut inward = Injector::within(lab.generator(), far);
                assert_eq!(
                    inward.send_all((0..to_sensor).map(frame), rate).unwrap().frames,
                    to_sensor
                );
                let mut outward = Injector::within(lab.sensor(), near);
                outward.send_all((0..from_sensor).map(frame), rate).unwrap();
            });
        }
    });
    let after = counted_by_interfaces(lab.sensor());
    let sent: u64 = LINKS.iter().map(|(_, _, inward, outward)| inward + outward).sum();
    // The kernel's counters are read four times a second.
    let deadline = Instant::now() + PATIENCE;
    let metrics = loop {
        let reply = Sensor::ask(lab.sensor(), "/metrics").body;
        let name = "ringwatch_analysed_packets_total";
        let total: u64 = LINKS.iter().map(|(_, near, ..)| metric(&reply, name, near)).sum();
        let seen = "ringwatch_kernel_packets_total";
        let offered: u64 = LINKS.iter().map(|(_, near, ..)| metric(&reply, seen, near)).sum();
        if total >= sent && offered >= sent || Instant::now() > deadline {
            break reply;
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert!(sensor.stop(Signal::SIGINT, PATIENCE).success(), "{}", sensor.describe());
    let ledger = Events::parse(&sensor.stdout()).ledger();
    for (_, near, to_sensor, from_sensor) in LINKS {
        let frames = to_sensor + from_sensor;
        let (rx, tx) = (after[near].0 - before[near].0, after[near].1 - before[near].1);
        assert_eq!((rx, tx), (to_sensor, from_sensor), "{near}: the interface saw other frames");
        for name in ["ringwatch_kernel_packets_total", "ringwatch_analysed_packets_total"] {
            assert_eq!(metric(&metrics, name, near), frames, "{name} of {near}");
        }
        assert_eq!(metric(&metrics, "ringwatch_kernel_drops_total", near), 0, "{near}");
        let of = ledger.interfaces.iter().find(|one| one.name == near).unwrap();
        assert_eq!((of.kernel_packets, of.analysed), (frames, frames), "{near}: {ledger:#?}");
    }
}
