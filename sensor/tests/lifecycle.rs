//! What happens to interfaces and workers while the sensor runs, and that no frame is lost to it in
//! silence. Each scenario has network namespaces and a sensor of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use perf::process::Process;
use perf::sensor::Sensor;
use perf::tools;

const PATIENCE: Duration = Duration::from_secs(20);
/// After this, every contact without an answer has been found silent: 3 s, ticks, and a busy machine.
const ALL_SILENT: Duration = Duration::from_millis(4500);

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

/// Makes the pair that a test deletes: what is sent into `d1` comes in on `d0`.
fn make_pair(namespace: &Namespace) {
    namespace.ip("link add d0 type veth peer name d1");
    namespace.ip("link set d1 up");
    namespace.ip("link set d0 up");
}

/// SYNs of so many flows, from this port on.
fn syns(first: u16, count: u16) -> impl Iterator<Item = Vec<u8>> {
    (first..first + count).map(|port| {
        let source = format!("198.18.0.1:{port}").parse().unwrap();
        frames::padded(frames::tcp(source, "198.19.0.2:80".parse().unwrap(), SYN, b""), 60)
    })
}

fn inject(namespace: &Namespace, interface: &str, first: u16, count: u16) {
    let mut injector = Injector::within(namespace, interface);
    injector.send_all(syns(first, count), None).unwrap();
}

/// Sum of all values of a metric whose row begins so.
fn metric(namespace: &Namespace, row: &str) -> u64 {
    let text = Sensor::ask(namespace, "/metrics").body;
    let rows = text.lines().filter(|line| line.starts_with(row));
    rows.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

fn problems(namespace: &Namespace) -> Vec<String> {
    let health = Sensor::ask(namespace, "/healthz").json();
    let problems = health["problems"].as_array().unwrap().iter();
    problems.map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn analysed(namespace: &Namespace) -> u64 {
    metric(namespace, "ringwatch_analysed_packets_total")
}

fn wait_for_change(sensor: &mut Sensor, name: &str, count: usize) {
    sensor.wait_for(name, |events| events.anomalies(name).len() == count);
}

const SMALL: &str = "[capture]\nring_mib = 16\nreserve_sockets = 64\n";

// Interfaces.

#[test]
fn an_interface_that_was_made_anew_is_read_again_and_every_frame_counts() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, SMALL);
    inject(host, "d1", 1, 500);
    host.ip("link del d0");
    wait_for_change(&mut sensor, "interface_gone", 1);
    wait_until("health names it", || problems(host) == ["interface d0 was deleted"]);
    make_pair(host);
    wait_for_change(&mut sensor, "interface_back", 1);
    wait_until("all is well", || problems(host).is_empty());
    let mut injector = Injector::within(host, "d1");
    for port in 1..=20 {
        let target = format!("198.19.0.3:{port}").parse().unwrap();
        let probe = frames::tcp("198.18.0.7:4000".parse().unwrap(), target, SYN, b"");
        injector.send(&frames::padded(probe, 60)).unwrap();
    }
    thread::sleep(ALL_SILENT);
    let missed = metric(host, "ringwatch_uncaptured_milliseconds_total{interface=\"d0\"}");
    assert!(missed > 0);
    let events = sensor.stop(Signal::SIGINT);
    let ledger = events.ledger();
    assert_eq!(ledger.interfaces[0].analysed, 520, "{ledger:#?}");
    assert_eq!(ledger.interfaces[0].kernel_packets, 520);
    let alerts = events.alerts();
    let scan = alerts.iter().find(|alert| alert.source == "198.18.0.7").unwrap();
    assert_eq!((scan.kind.as_str(), scan.count("distinct_ports")), ("vertical", 20));
}

/// File descriptors, mappings and threads of a process.
fn holdings(process: u32) -> (usize, usize, usize) {
    let folder = Path::new("/proc").join(process.to_string());
    let count = |name| fs::read_dir(folder.join(name)).unwrap().count();
    let maps = fs::read_to_string(folder.join("maps")).unwrap();
    let rings = maps.lines().filter(|line| line.contains("socket:")).count();
    (count("fd"), rings, count("task"))
}

#[test]
fn an_interface_that_comes_and_goes_twenty_times_leaks_nothing() {
    const ROUNDS: usize = 20;
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, SMALL);
    let before = holdings(sensor.process().id());
    assert_eq!(before.1, 2, "one ring for each worker");
    for round in 1..=ROUNDS {
        inject(host, "d1", 1, 10);
        host.ip("link del d0");
        wait_for_change(&mut sensor, "interface_gone", round);
        make_pair(host);
        wait_for_change(&mut sensor, "interface_back", round);
    }
    assert_eq!(metric(host, "ringwatch_reserve_sockets"), 64 - 2 * ROUNDS as u64);
    // What was reserved and is used up was a descriptor before, and is closed now.
    let (descriptors, rings, threads) = before;
    let expected = (descriptors - 2 * ROUNDS, rings, threads);
    let process = sensor.process().id();
    wait_until("old rings are closed", || holdings(process) == expected);
    let ledger = sensor.stop(Signal::SIGINT).ledger();
    assert_eq!(ledger.interfaces[0].analysed, 10 * ROUNDS as u64, "{ledger:#?}");
}

#[test]
fn an_empty_reserve_is_said_with_the_remedy() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let small = "[capture]\nring_mib = 16\nreserve_sockets = 1\n";
    let mut sensor = Sensor::start(host, "d0", 1, small);
    // The supervisor says so at its next look after the worker has begun.
    wait_until("nothing is wrong", || problems(host).is_empty());
    host.ip("link del d0");
    wait_for_change(&mut sensor, "interface_gone", 1);
    make_pair(host);
    wait_for_change(&mut sensor, "interface_back", 1);
    wait_until("the last socket is used", || metric(host, "ringwatch_reserve_sockets") == 0);
    let said = problems(host);
    assert!(said.len() == 1 && said[0].contains("capture.reserve_sockets"), "{said:?}");
    host.ip("link del d0");
    wait_for_change(&mut sensor, "interface_gone", 2);
    make_pair(host);
    wait_until("it cannot be read", || {
        problems(host).iter().any(|problem| problem.starts_with("interface d0 is not read"))
    });
    sensor.stop(Signal::SIGINT);
}

/// Makes `d0` as a device without Ethernet, out of which nothing comes by itself.
fn make_tunnel(namespace: &Namespace) -> Process {
    let mut tunnel = Command::new("socat");
    tunnel.args(["TUN:192.0.2.1/24,iff-no-pi,iff-up,tun-name=d0", "PIPE"]);
    namespace.spawn(&tunnel)
}

/// A sensor with this filter whose interface is deleted, and comes back as a tunnel.
fn with_a_tunnel_instead(filter: &str, check: impl FnOnce(&Namespace, &mut Sensor)) {
    if !tools::require(&["socat", "tcpdump"]) {
        return;
    }
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, &format!("{SMALL}filter = '{filter}'\n"));
    inject(host, "d1", 1, 10);
    host.ip("link del d0");
    wait_for_change(&mut sensor, "interface_gone", 1);
    let _tunnel = make_tunnel(host);
    check(host, &mut sensor);
}

#[test]
fn an_interface_that_comes_back_without_ethernet_is_filtered_as_what_it_is() {
    with_a_tunnel_instead("udp dst port 53", |host, sensor| {
        wait_for_change(sensor, "interface_back", 1);
        let socket = host.within(|| UdpSocket::bind("192.0.2.1:0")).unwrap();
        for port in [53, 54, 53, 55] {
            socket.send_to(b"out of the tunnel", ("192.0.2.2", port)).unwrap();
        }
        // The pipe behind the tunnel sends each back, or several in one, as it came.
        wait_until("frames", || analysed(host) >= 2);
        let events = sensor.stop(Signal::SIGINT);
        let flows = events.of_type("flow");
        assert!(!flows.is_empty() && flows.iter().all(|flow| flow["dest_port"] == 53), "{flows:?}");
    });
}

#[test]
fn an_interface_that_comes_back_without_what_the_filter_asks_for_is_refused_by_name() {
    with_a_tunnel_instead("ether host 02:00:00:00:00:01", |host, sensor| {
        let begun =
            |problem: &str| problem.starts_with("interface d0 is not read: d0 has link type 101");
        wait_until("it is refused", || problems(host).iter().any(|one| begun(one)));
        let said = problems(host).into_iter().find(|one| begun(one)).unwrap();
        assert!(said.contains("ether host") && said.contains("restart the sensor"), "{said}");
        let reserve = || metric(host, "ringwatch_reserve_sockets");
        wait_until("the sockets are back", || reserve() == 64);
        assert_eq!(sensor.stop(Signal::SIGINT).ledger().kernel_packets(), 10);
    });
}

#[test]
fn an_interface_that_moves_to_another_namespace_is_gone() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, SMALL);
    inject(host, "d1", 1, 10);
    wait_until("frames", || analysed(host) == 10);
    host.ip(&format!("link set d0 netns {}", lab.generator().name()));
    wait_for_change(&mut sensor, "interface_gone", 1);
    lab.generator().ip(&format!("link set d0 netns {}", host.name()));
    host.ip("link set d0 up");
    wait_for_change(&mut sensor, "interface_back", 1);
    wait_until("the link is up", || problems(host).is_empty());
    inject(host, "d1", 100, 10);
    wait_until("frames", || analysed(host) == 20);
    assert_eq!(sensor.stop(Signal::SIGINT).ledger().kernel_packets(), 20);
}

#[test]
fn an_interface_that_comes_back_down_costs_no_socket_until_it_is_up() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, SMALL);
    host.ip("link del d0");
    wait_for_change(&mut sensor, "interface_gone", 1);
    host.ip("link add d0 type veth peer name d1");
    let said = ["interface d0 is there again, but down: set it up"];
    wait_until("health names it", || problems(host) == said);
    assert_eq!(metric(host, "ringwatch_reserve_sockets"), 64);
    host.ip("link set d1 up");
    host.ip("link set d0 up");
    wait_for_change(&mut sensor, "interface_back", 1);
    wait_until("all is well", || problems(host).is_empty());
    inject(host, "d1", 1, 10);
    wait_until("frames", || analysed(host) == 10);
    assert_eq!(metric(host, "ringwatch_reserve_sockets"), 62);
    assert_eq!(sensor.stop(Signal::SIGINT).ledger().kernel_packets(), 10);
}

#[test]
fn changes_of_mtu_address_and_name_are_said_and_capture_goes_on() {
    let Some(lab) = quiet_lab() else { return };
    let host = lab.sensor();
    make_pair(host);
    let mut sensor = Sensor::start(host, "d0", 2, SMALL);
    host.ip("link set d0 mtu 9000");
    wait_for_change(&mut sensor, "mtu_changed", 1);
    host.ip("link set d0 address 02:00:00:00:00:77");
    wait_for_change(&mut sensor, "mac_changed", 1);
    inject(host, "d1", 1, 10);
    wait_until("frames", || analysed(host) == 10);
    host.ip("link set d0 down");
    wait_for_change(&mut sensor, "link_down", 1);
    host.ip("link set d0 name other");
    wait_for_change(&mut sensor, "interface_renamed", 1);
    host.ip("link set other name d0");
    host.ip("link set d0 up");
    wait_for_change(&mut sensor, "link_up", 1);
    inject(host, "d1", 100, 10);
    wait_until("frames", || analysed(host) == 20);
    assert_eq!(metric(host, "ringwatch_interface_changes_total{"), 5);
    assert_eq!(sensor.stop(Signal::SIGINT).ledger().kernel_packets(), 20);
}

// Workers.

/// One thread of another process, held up until this goes.
struct HeldUp(Pid);

impl HeldUp {
    /// Stops the thread of this name.
    fn new(process: u32, name: &str) -> Self {
        let tasks: PathBuf = Path::new("/proc").join(process.to_string()).join("task");
        let mut tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path());
        let is_it = |task: &PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.find(is_it).unwrap();
        let thread: i32 = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let thread = Pid::from_raw(thread);
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        // It fails if the process is ending; then its tracer has to take note of that.
        if ptrace::detach(self.0, None).is_err() {
            let _ = waitpid(self.0, Some(WaitPidFlag::__WALL));
        }
    }
}

/// A worker that stands still loses no share for long, whatever the way of dealing, and comes back.
fn a_worker_that_stands_still_is_replaced(interface: &str, fanout: &str) {
    let Some(lab) = quiet_lab() else { return };
    let (host, generator) = (lab.sensor(), lab.generator());
    let mut sensor = Sensor::start(host, interface, 2, &format!("{SMALL}fanout = '{fanout}'\n"));
    inject(generator, "g0", 1, 500);
    wait_until("the first frames", || analysed(host) == 500);
    let held_up = HeldUp::new(sensor.process().id(), "worker-1");
    // Some of these lie in its ring until it returns.
    inject(generator, "g0", 1001, 500);
    wait_for_change(&mut sensor, "worker_stalled", 1);
    wait_until("worker 0 reads all", || {
        let expected = format!("worker 1 does not read interface {interface}, others do");
        problems(host).contains(&expected)
    });
    // Its ring must keep its silence, also where a glob makes the rings follow.
    make_pair(host);
    let row = format!("ringwatch_analysed_packets_total{{interface={interface:?},worker=\"0\"}}");
    let before = metric(host, &row);
    inject(generator, "g0", 2001, 500);
    wait_until("worker 0 reads all", || metric(host, &row) == before + 500);
    let row = format!("ringwatch_uncaptured_milliseconds_total{{interface={interface:?}}}");
    let missed = metric(host, &row);
    assert!((2500..10_000).contains(&missed), "{missed} ms");
    drop(held_up);
    wait_for_change(&mut sensor, "worker_resumed", 1);
    wait_until("all is well", || problems(host).is_empty());
    inject(generator, "g0", 3001, 500);
    wait_until("all frames", || analysed(host) == 2000);
    let ledger = sensor.stop(Signal::SIGINT).ledger();
    let of = &ledger.interfaces[0];
    assert_eq!(of.kernel_packets, 2000 + of.not_wanted, "{fanout}: {ledger:#?}");
    assert_eq!(of.analysed, 2000);
}

#[test]
fn a_worker_that_stands_still_is_replaced_by_the_others_and_comes_back() {
    a_worker_that_stands_still_is_replaced("s0", "hash");
}

#[test]
fn a_worker_that_stands_still_is_replaced_where_the_order_matters() {
    a_worker_that_stands_still_is_replaced("s0", "cpu");
}

#[test]
fn a_worker_that_stands_still_is_replaced_where_rings_are_on_all_interfaces() {
    a_worker_that_stands_still_is_replaced("s*", "hash");
}

#[test]
fn the_only_worker_goes_on_with_its_ring_after_it_stood_still() {
    let Some(lab) = quiet_lab() else { return };
    let (host, generator) = (lab.sensor(), lab.generator());
    let mut sensor = Sensor::start(host, "s0", 1, SMALL);
    let held_up = HeldUp::new(sensor.process().id(), "worker-0");
    inject(generator, "g0", 1, 500);
    wait_for_change(&mut sensor, "worker_stalled", 1);
    assert!(!problems(host).is_empty());
    drop(held_up);
    wait_for_change(&mut sensor, "worker_resumed", 1);
    wait_until("all is well", || problems(host).is_empty());
    assert_eq!(metric(host, "ringwatch_reserve_sockets"), 64, "no ring was opened anew");
    // All that lay in the ring was in its hands at once.
    let of_ring = "{interface=\"s0\",worker=\"0\"";
    let full = metric(host, &format!("ringwatch_ring_blocks_full_total{of_ring}"));
    let timed_out = metric(host, &format!("ringwatch_ring_blocks_timed_out_total{of_ring}"));
    assert!(full + timed_out > 0, "{full}, {timed_out}");
    let text = Sensor::ask(host, "/metrics").body;
    for window in ["10s", "run"] {
        let row = format!("ringwatch_ring_occupancy_ratio{of_ring},window=\"{window}\"}} ");
        let ratio = text.lines().find_map(|line| line.strip_prefix(&row)).unwrap();
        let ratio: f64 = ratio.parse().unwrap();
        assert!(ratio > 0.0 && ratio <= 1.0, "{window}: {ratio}");
    }
    assert_eq!(sensor.stop(Signal::SIGINT).ledger().interfaces[0].analysed, 500);
}

#[test]
fn the_end_does_not_wait_for_a_worker_that_stands_still() {
    let Some(lab) = quiet_lab() else { return };
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, SMALL);
    let held_up = HeldUp::new(sensor.process().id(), "worker-1");
    wait_for_change(&mut sensor, "worker_stalled", 1);
    sensor.process().signal(Signal::SIGINT);
    sensor.process().wait_for_line("stands still and is not waited for", PATIENCE);
    // A process that is traced does not end before its tracer lets it.
    drop(held_up);
    assert_eq!(sensor.process().wait(PATIENCE).code(), Some(1));
    assert_eq!(sensor.events().all().last().unwrap()["event_type"], "stats");
}

// Ways of dealing.

#[test]
fn all_ways_of_dealing_raise_the_same_alert() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let found = ["hash", "cpu", "queue", "peer"].map(|fanout| {
        let lab = Lab::new()?;
        let capture = format!("[capture]\nring_mib = 16\nfanout = '{fanout}'\n");
        let configuration = format!("{capture}[api]\nlisten = ''\n");
        let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
        lab.generator().run("nmap", &["-n", "-Pn", "-sS", "-p1-300", "10.99.0.2"]);
        thread::sleep(ALL_SILENT);
        let alerts = sensor.stop(Signal::SIGINT).alerts();
        assert_eq!(alerts.len(), 1, "{fanout}: {alerts:#?}");
        let alert = &alerts[0];
        let (source, target) = (alert.source.clone(), alert.target.clone());
        Some((alert.kind.clone(), source, target, alert.count("distinct_ports")))
    });
    let [Some(hash), others @ ..] = found else { return };
    assert_eq!(hash.3, 300);
    assert!(others.into_iter().all(|other| other.as_ref() == Some(&hash)));
}
