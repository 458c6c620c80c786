//! Globs of interfaces: one ring for each worker on all of them, those that come later included. Each
//! scenario has network namespaces and a sensor of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use perf::sensor::Sensor;
use perf::{programs, tools};
use wire::ledger::InterfaceLedger;

const PATIENCE: Duration = Duration::from_secs(20);
/// After this, every contact without an answer has been found silent: 3 s, ticks, and a busy machine.
const ALL_SILENT: Duration = Duration::from_millis(4500);
/// A new interface was looked at, and the filters of all rings know what is not wanted: an announcement,
/// a look, a tick, and a busy machine.
const SETTLED: Duration = Duration::from_millis(1000);

/// A lab in which no stack says anything by itself.
fn quiet_lab() -> Option<Lab> {
    let lab = Lab::new()?;
    for namespace in [lab.sensor(), lab.generator()] {
        for which in ["all", "default"] {
            let key = format!("net.ipv6.conf.{which}.disable_ipv6=1");
            namespace.run("sysctl", &["-qw", &key]);
        }
    }
    Some(lab)
}

/// A pair of interfaces: what is sent into one comes in on the other.
fn make_pair(namespace: &Namespace, near: &str, far: &str) {
    namespace.ip(&format!("link add {near} type veth peer name {far}"));
    namespace.ip(&format!("link set {far} up"));
    namespace.ip(&format!("link set {near} up"));
}

/// Datagrams of so many flows.
fn inject(namespace: &Namespace, interface: &str, count: u16) {
    let datagrams = (1..=count).map(|port| {
        let source = format!("198.18.0.1:{port}").parse().unwrap();
        frames::udp(source, "198.19.0.2:5000".parse().unwrap(), &[0; 18])
    });
    Injector::within(namespace, interface).send_all(datagrams, None).unwrap();
}

/// SYNs of one source to so many ports of one target.
fn scan(namespace: &Namespace, interface: &str, ports: u16) {
    let mut injector = Injector::within(namespace, interface);
    for port in 1..=ports {
        let target = format!("198.19.0.3:{port}").parse().unwrap();
        let probe = frames::tcp("198.18.0.7:4000".parse().unwrap(), target, SYN, b"");
        injector.send(&frames::padded(probe, 60)).unwrap();
    }
}

/// How many flows ended on each interface, by the name in the events.
fn flows(events: &Events) -> BTreeMap<String, usize> {
    let mut flows = BTreeMap::new();
    for flow in events.ended_flows() {
        *flows.entry(flow["in_iface"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    flows
}

fn expect<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

/// The one entry of the ledger of a sensor that has ended.
fn the_interface(events: &Events) -> InterfaceLedger {
    let ledger = events.ledger();
    assert_eq!(ledger.interfaces.len(), 1, "{ledger:#?}");
    ledger.interfaces[0].clone()
}

fn changes(events: &Events, change: &str) -> Vec<String> {
    let names = events.anomalies(change).into_iter();
    names.map(|event| event["in_iface"].as_str().unwrap_or_default().to_owned()).collect()
}

fn wait_for_new(sensor: &mut Sensor, name: &str) {
    sensor.wait_for(name, |events| changes(events, "interface_new").iter().any(|one| one == name));
}

/// How many have asked an interface for all frames that it sees.
fn promiscuity(namespace: &Namespace, name: &str) -> u32 {
    let said = namespace.ip(&format!("-d -j link show {name}")).stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    said[0]["promiscuity"].as_u64().unwrap() as u32
}

fn configuration(more: &str) -> String {
    format!("[capture]\nring_mib = 16\n{more}\n")
}

#[test]
fn all_interfaces_are_captured_also_those_that_come_later_and_each_flow_has_its_own() {
    for (workers, fanout) in [(1, "hash"), (2, "hash"), (2, "peer")] {
        let Some(lab) = quiet_lab() else { return };
        let host = lab.sensor();
        let settings = configuration(&format!("fanout = {fanout:?}"));
        let mut sensor = Sensor::start(host, "*", workers, &settings);
        inject(lab.generator(), "g0", 100);
        host.within(|| {
            let receiver = UdpSocket::bind("127.0.0.1:5000").unwrap();
            for _ in 0..10 {
                let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
                sender.send_to(b"here", receiver.local_addr().unwrap()).unwrap();
            }
        });
        make_pair(host, "d0", "d1");
        wait_for_new(&mut sensor, "d0");
        wait_for_new(&mut sensor, "d1");
        inject(host, "d1", 200);
        let events = sensor.stop(Signal::SIGINT);
        // What goes into one end of the pair comes out of the other: two frames, two flows.
        assert_eq!(flows(&events), expect([("s0", 100), ("lo", 10), ("d0", 200), ("d1", 200)]));
        // Of loopback, each frame is seen once.
        let sent = |flow: &serde_json::Value| flow["flow"]["pkts_toserver"] == 1;
        assert!(events.ended_flows().into_iter().all(sent), "{workers} {fanout}");
        let ledger = the_interface(&events);
        assert_eq!(ledger.name, "*");
        assert_eq!((ledger.kernel_packets, ledger.analysed), (510, 510), "{ledger:#?}");
    }
}

#[test]
fn what_is_excluded_by_name_or_glob_does_not_reach_the_rings() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host, "d0", "d1");
    make_pair(host, "x0", "x1");
    let settings = configuration("exclude = [\"lo\", \"d1\", \"x*\"]");
    let mut sensor = Sensor::start(host, "*", 2, &settings);
    make_pair(host, "xlate0", "late0");
    wait_for_new(&mut sensor, "late0");
    thread::sleep(SETTLED);
    // Those that are wanted are asked for all frames, once for all workers.
    let asked = ["s0", "d0", "late0", "d1", "x0", "xlate0"].map(|name| promiscuity(host, name));
    assert_eq!(asked, [1, 1, 1, 0, 0, 0]);
    for far in ["d1", "x1", "late0"] {
        inject(host, far, 50);
    }
    inject(lab.generator(), "g0", 50);
    // On the loopback interface, which is excluded as well.
    assert_eq!(Sensor::ask(host, "/healthz").status, 200);
    let events = sensor.stop(Signal::SIGINT);
    assert_eq!(flows(&events), expect([("s0", 50), ("d0", 50), ("late0", 50)]));
    let ledger = the_interface(&events);
    assert_eq!((ledger.kernel_packets, ledger.analysed, ledger.not_wanted), (150, 150, 0));
    assert_eq!(changes(&events, "interface_new"), ["late0"]);
}

#[test]
fn a_glob_that_matches_nothing_waits_and_names_beside_it_are_captured() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("sensor.toml");
    let events = folder.path().join("eve.json");
    let text = configuration("interface = [\"d[0-9]\", \"later\"]\nworkers = 2");
    fs::write(&file, format!("{text}[events]\nfile = {events:?}\n")).unwrap();
    let mut check = programs::sensor();
    check.args(["check-config", "--config"]).arg(&file);
    assert!(check.status().unwrap().success());
    let mut command = programs::sensor();
    command.arg("--config").arg(&file);
    let mut process = host.spawn(&command);
    process.wait_for_line("no interface matches yet", PATIENCE);
    process.wait_for_line("capturing;", PATIENCE);
    inject(lab.generator(), "g0", 20);
    make_pair(host, "d0", "dx");
    make_pair(host, "later", "other");
    thread::sleep(SETTLED);
    inject(host, "dx", 30);
    inject(host, "other", 40);
    assert!(process.stop(Signal::SIGINT, PATIENCE).success(), "{}", process.describe());
    let events = Events::parse(&fs::read_to_string(events).unwrap());
    assert_eq!(flows(&events), expect([("d0", 30), ("later", 40)]));
    assert_eq!(the_interface(&events).name, "d[0-9],later");
    let mut new = changes(&events, "interface_new");
    new.sort();
    assert_eq!(new, ["d0", "later"]);
}

#[test]
fn a_scan_over_an_interface_that_came_later_is_found() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    let mut sensor = Sensor::start(host, "d*", 2, &configuration("exclude = \"d1\""));
    make_pair(host, "d0", "d1");
    wait_for_new(&mut sensor, "d0");
    scan(host, "d1", 20);
    thread::sleep(ALL_SILENT);
    let events = sensor.stop(Signal::SIGINT);
    let alerts = events.alerts();
    let [alert] = alerts.as_slice() else { panic!("{alerts:#?}") };
    assert_eq!((alert.kind.as_str(), alert.count("distinct_ports")), ("vertical", 20));
    let connections = events.connections();
    assert_eq!(connections.len(), 20);
    assert!(connections.iter().all(|one| one["in_iface"] == "d0"));
}

#[test]
fn a_forwarded_packet_is_a_flow_on_each_interface_and_counts_once_as_evidence() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host, "in0", "in1");
    make_pair(host, "out0", "out1");
    // A bridge that snoops says so by IGMP, some time after it was set up.
    host.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0");
    for member in ["in0", "out0"] {
        host.ip(&format!("link set {member} master br0"));
    }
    host.ip("link set br0 up");
    let settings = configuration("exclude = [\"*1\", \"lo\"]");
    let mut sensor = Sensor::start(host, "*", 2, &settings);
    scan(host, "in1", 12);
    thread::sleep(ALL_SILENT);
    let events = sensor.stop(Signal::SIGINT);
    let seen = flows(&events);
    // The bridge itself has the frames for everyone else too.
    assert_eq!((seen["in0"], seen["out0"]), (12, 12), "{seen:?}");
    let alerts = events.alerts();
    let [alert] = alerts.as_slice() else { panic!("{alerts:#?}") };
    for count in ["distinct_ports", "attempted", "silent"] {
        assert_eq!(alert.count(count), 12, "{count}");
    }
}

#[test]
fn an_interface_goes_comes_back_changes_and_is_renamed_and_that_is_said() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    let mut sensor = Sensor::start(host, "d*", 1, &configuration("exclude = \"dpeer\""));
    host.ip("link add d0 type veth peer name dpeer");
    host.ip("link set dpeer up");
    wait_for_new(&mut sensor, "d0");
    let mut step = |command: &str, change: &str| {
        host.ip(command);
        sensor.wait_for(change, |events| changes(events, change) == ["d0"]);
    };
    step("link set d0 up", "link_up");
    step("link set d0 down", "link_down");
    step("link set d0 address 02:00:00:00:00:77", "mac_changed");
    step("link set d0 mtu 1400", "mtu_changed");
    step("link set d0 name d7", "interface_renamed");
    wait_for_new(&mut sensor, "d7");
    host.ip("link del d7");
    sensor.wait_for("d7 gone", |events| changes(events, "interface_gone") == ["d7"]);
    make_pair(host, "d0", "dpeer");
    sensor.wait_for("d0 back", |events| changes(events, "interface_back") == ["d0"]);
    inject(host, "dpeer", 5);
    let health = Sensor::ask(host, "/healthz");
    assert_eq!(health.status, 200, "{}", health.body);
    let counted = Sensor::ask(host, "/metrics").body;
    let row = "ringwatch_interface_changes_total{interface=\"d*\",change=\"interface_new\"} 2";
    assert!(counted.lines().any(|line| line == row), "{counted}");
    let events = sensor.stop(Signal::SIGINT);
    assert_eq!(flows(&events), expect([("d0", 5)]));
}

/// File descriptors, mappings of rings and threads of a process.
fn holdings(process: u32) -> (usize, usize, usize) {
    let folder = Path::new("/proc").join(process.to_string());
    let count = |name| fs::read_dir(folder.join(name)).unwrap().count();
    let maps = fs::read_to_string(folder.join("maps")).unwrap();
    let rings = maps.lines().filter(|line| line.contains("socket:")).count();
    (count("fd"), rings, count("task"))
}

#[test]
fn fifty_interfaces_that_come_and_go_leave_nothing_behind() {
    const COUNT: usize = 50;
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    let settings = configuration("exclude = [\"far*\", \"lo\", \"s0\"]");
    let mut sensor = Sensor::start(host, "*", 2, &settings);
    let before = holdings(sensor.process().id());
    let mut expected = BTreeMap::new();
    for number in 0..COUNT {
        let near = format!("near{number}");
        make_pair(host, &near, "far");
        wait_for_new(&mut sensor, &near);
        inject(host, "far", 10);
        // What still waits in the kernel's own queues goes with the interface, before any ring sees it.
        thread::sleep(Duration::from_millis(50));
        host.ip(&format!("link del {near}"));
        expected.insert(near, 10);
    }
    let gone = |events: &Events| events.anomalies("interface_gone").len() == COUNT;
    sensor.wait_for("end of them all", gone);
    assert_eq!(holdings(sensor.process().id()), before);
    let events = sensor.stop(Signal::SIGINT);
    let ledger = the_interface(&events);
    assert_eq!(flows(&events), expected, "{ledger:#?}");
    assert_eq!(ledger.analysed, 10 * COUNT as u64, "{ledger:#?}");
    assert_eq!(ledger.kernel_packets, ledger.analysed + ledger.not_wanted);
}

/// A filter that lets everything of these tests in and is so long that there is hardly any room beside
/// it.
fn long_filter() -> String {
    let kinds: Vec<String> = (0..2080).map(|n| format!("ether proto {}", 40_000 + n)).collect();
    format!("not ({})", kinds.join(" or "))
}

#[test]
fn what_the_filter_has_no_room_for_is_taken_out_by_the_worker_and_counted() {
    const PAIRS: usize = 100;
    let Some(lab) = quiet_lab() else { return };
    if !tools::require(&["tcpdump"]) {
        return;
    }
    let host = lab.sensor();
    let folder = tempfile::TempDir::new().unwrap();
    let batch = folder.path().join("batch");
    let lines = (0..PAIRS).map(|n| {
        format!("link add x{n} type veth peer name y{n}\nlink set x{n} up\nlink set y{n} up\n")
    });
    fs::write(&batch, lines.collect::<String>()).unwrap();
    host.run("ip", &["-batch", batch.to_str().unwrap()]);
    let settings =
        configuration(&format!("exclude = [\"lo\", \"x*\", \"y*\"]\nfilter = {:?}", long_filter()));
    let mut sensor = Sensor::start(host, "*", 1, &settings);
    sensor.process().wait_for_line("no room for all interfaces", PATIENCE);
    for number in 0..PAIRS {
        inject(host, &format!("x{number}"), 3);
    }
    inject(lab.generator(), "g0", 20);
    let events = sensor.stop(Signal::SIGINT);
    assert_eq!(flows(&events), expect([("s0", 20)]));
    let ledger = the_interface(&events);
    assert_eq!(ledger.analysed, 20, "{ledger:#?}");
    // Each frame passes two interfaces that are not wanted; some of them are in the filter.
    assert!(ledger.not_wanted > 0 && ledger.not_wanted < 6 * PAIRS as u64, "{ledger:#?}");
    assert_eq!(ledger.kernel_packets, 20 + ledger.not_wanted);
}

#[test]
fn a_filter_that_fits_is_replaced_though_there_is_no_room_for_both_at_once() {
    const PAIRS: usize = 60;
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    // Since Linux 6.8 each namespace has a limit of its own. The longer filter needs about two thirds.
    host.run("sysctl", &["-qw", "net.core.optmem_max=3072"]);
    for number in 0..PAIRS {
        make_pair(host, &format!("x{number}"), &format!("y{number}"));
    }
    let settings = configuration("exclude = [\"lo\", \"x*\", \"y*\"]");
    let mut sensor = Sensor::start(host, "*", 1, &settings);
    thread::sleep(SETTLED);
    make_pair(host, "xlate", "ylate");
    thread::sleep(SETTLED);
    for number in 0..PAIRS {
        inject(host, &format!("x{number}"), 3);
    }
    inject(host, "xlate", 3);
    inject(lab.generator(), "g0", 20);
    let events = sensor.stop(Signal::SIGINT);
    assert_eq!(flows(&events), expect([("s0", 20)]));
    let ledger = the_interface(&events);
    assert_eq!((ledger.kernel_packets, ledger.analysed, ledger.not_wanted), (20, 20, 0));
}

#[test]
fn frames_come_in_while_fifty_interfaces_are_made_and_deleted_and_every_one_is_accounted_for() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host, "d0", "d1");
    let settings = configuration("exclude = [\"lo\", \"x*\"]");
    let mut sensor = Sensor::start(host, "*", 2, &settings);
    let until = Instant::now() + Duration::from_secs(4);
    let sent = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..50 {
                make_pair(host, &format!("x{number}"), &format!("v{number}"));
                host.ip(&format!("link del x{number}"));
            }
        });
        let mut sent = 0;
        while Instant::now() < until {
            inject(host, "d1", 500);
            sent += 500;
        }
        sent
    });
    let events = sensor.stop(Signal::SIGINT);
    let ledger = the_interface(&events);
    // Each is seen where it goes in and where it comes out.
    assert_eq!(ledger.analysed, 2 * sent, "{ledger:#?}");
    assert_eq!(flows(&events), expect([("d0", 500), ("d1", 500)]));
}
