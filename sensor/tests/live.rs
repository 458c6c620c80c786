//! The sensor on live interfaces: what it finds, what it counts, and how it ends. Each scenario has
//! network namespaces and a fresh sensor of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod settled;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames::{self, ACK, DOT1AD, DOT1Q, SYN};
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use perf::process::Process;
use perf::sensor::Sensor;
use perf::{programs, tools};
use settled::{alerts_before, all_silent, is_of_last_sweep, syn};

const PATIENCE: Duration = Duration::from_secs(20);
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs the scenario once with each number of workers, at the same time, in a lab of its own.
fn with_workers(scenario: impl Fn(&Lab, u16) + Sync) {
    thread::scope(|scope| {
        let runs = [1, 2].map(|workers| {
            let lab = Lab::new()?;
            let scenario = &scenario;
            let name = thread::current().name().unwrap_or("test").to_owned();
            let builder = thread::Builder::new().name(format!("{name} {workers}"));
            Some(builder.spawn_scoped(scope, move || scenario(&lab, workers)).unwrap())
        });
        for run in runs.into_iter().flatten() {
            if let Err(panic) = run.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Lets an interface carry only what the test sends: without IPv6, no stack says anything by itself.
fn make_quiet(lab: &Lab) {
    for namespace in [lab.sensor(), lab.generator()] {
        namespace.run("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    }
}

// Scans.

struct Expected {
    kind: &'static str,
    target: Option<&'static str>,
    /// Which number is checked, to 5 in 100.
    count: (&'static str, u64),
}

/// Runs nmap beside a fresh sensor and checks that it raises one alert, the one expected.
fn scan(nmap: &[&str], expected: &Expected) {
    if !tools::require(&["nmap"]) {
        return;
    }
    with_workers(|lab, workers| {
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, Sensor::SMALL);
        lab.generator().run("nmap", &[&["-n", "-Pn"], nmap].concat());
        all_silent(lab, &mut sensor);
        let alerts = alerts_before(&sensor.stop(Signal::SIGINT));
        assert_eq!(alerts.len(), 1, "{workers} workers: {alerts:#?}");
        let alert = &alerts[0];
        assert_eq!((alert.kind.as_str(), alert.source.as_str()), (expected.kind, "10.99.0.1"));
        assert_eq!(alert.target.as_deref(), expected.target);
        assert_eq!(alert.phases.last().map(String::as_str), Some("close"));
        let (name, wanted) = expected.count;
        let found = alert.count(name);
        let is_near = found.abs_diff(wanted) * 100 <= wanted * 5;
        assert!(is_near, "{workers} workers: {found} {name} for {wanted}");
    });
}

#[test]
fn a_syn_scan_of_1000_ports_is_one_vertical_alert() {
    let count = ("distinct_ports", 1000);
    let expected = Expected { kind: "vertical", target: Some("10.99.0.2"), count };
    scan(&["-sS", "-p1-1000", "10.99.0.2"], &expected);
}

#[test]
fn a_connect_scan_of_100_ports_is_one_vertical_alert() {
    let count = ("distinct_ports", 100);
    let expected = Expected { kind: "vertical", target: Some("10.99.0.2"), count };
    scan(&["-sT", "-p1-100", "10.99.0.2"], &expected);
}

#[test]
fn a_sweep_of_hosts_that_refuse_is_one_horizontal_alert() {
    let expected = Expected { kind: "horizontal", target: None, count: ("distinct_hosts", 64) };
    scan(&["-sS", "-p443", "10.98.0.0/26"], &expected);
}

#[test]
fn a_sweep_of_hosts_that_stay_silent_is_one_horizontal_alert() {
    let expected = Expected { kind: "horizontal", target: None, count: ("distinct_hosts", 64) };
    scan(&["-sS", "-p443", "10.98.1.0/26"], &expected);
}

#[test]
fn tagged_scans_are_seen_with_their_vlans() {
    with_workers(|lab, workers| {
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, Sensor::SMALL);
        let mut injector = Injector::within(lab.generator(), "g0");
        for port in 1..=15 {
            let target = format!("198.19.0.2:{port}");
            let one = frames::tagged(&syn("198.18.0.1:4000", &target), &[(DOT1Q, 0x2064)]);
            let tags = [(DOT1AD, 10), (DOT1Q, 20)];
            // Of another host: two that do the same at once to one are decoys.
            let other = format!("198.19.0.3:{port}");
            let two = frames::tagged(&syn("198.18.0.2:4000", &other), &tags);
            injector.send(&one).unwrap();
            injector.send(&two).unwrap();
        }
        all_silent(lab, &mut sensor);
        let events = sensor.stop(Signal::SIGINT);
        let flows = events.connections();
        for (source, vlan) in [("198.18.0.1", vec![0x064]), ("198.18.0.2", vec![10, 20])] {
            let vlans: Vec<_> =
                flows.iter().filter(|flow| flow["src_ip"] == source).map(|f| &f["vlan"]).collect();
            assert_eq!(vlans, vec![&serde_json::json!(vlan); 15], "{source}, {workers} workers");
            let alerts = alerts_before(&events);
            let alert = alerts.iter().find(|alert| alert.source == source).unwrap();
            assert_eq!((alert.kind.as_str(), alert.count("distinct_ports")), ("vertical", 15));
        }
        assert_eq!(alerts_before(&events).len(), 2);
        assert_eq!(events.last_stats()["stats"]["decoder"]["vlan"], 30);
    });
}

// Traffic that is no scan.

/// Serves connections in a namespace until the test ends: `serve` gets each on a thread of its own.
fn serve(namespace: &Namespace, address: &str, serve: fn(TcpStream)) {
    let listener = namespace.within(|| TcpListener::bind(address).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
}

/// Answers a request over HTTP.
fn http(mut stream: TcpStream) {
    let mut request = [0; 4096];
    if matches!(stream.read(&mut request), Ok(1..)) {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\nConnection: close\r\n\r\n";
        // The client may be gone.
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&[b'x'; 20_000]);
    }
}

/// Gives back what it gets, as a shell would show what is typed.
fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// Answers datagrams in a namespace until the test ends.
fn answer_datagrams(namespace: &Namespace, address: &str) {
    let socket = namespace.within(|| UdpSocket::bind(address).unwrap());
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..count], from);
        }
    });
}

/// Asks once from a fresh port, as a resolver does.
fn ask_datagram(namespace: &Namespace, address: &str) {
    let socket = namespace.within(|| UdpSocket::bind("10.99.0.1:0").unwrap());
    socket.send_to(&[7; 48], address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.recv(&mut [0; 512]).unwrap();
}

/// Types, waits longer than silence takes, types again.
fn long_session(namespace: &Namespace) {
    let mut stream = namespace.within(|| TcpStream::connect("10.99.0.2:22").unwrap());
    for pause in [0, 4, 0] {
        thread::sleep(Duration::from_secs(pause));
        stream.write_all(b"ls\n").unwrap();
        stream.read_exact(&mut [0; 3]).unwrap();
    }
}

/// Fetches many pages, 20 at a time, from several servers and over both versions of IP.
fn browse(namespace: &Namespace) {
    for url in ["http://10.99.0.2:[8000-8005]/[1-25]", "http://[fd99::2]:8000/[1-40]"] {
        let arguments = ["-sS", "--parallel", "--parallel-max", "20", "--parallel-immediate"];
        let output = namespace.run("curl", &[&arguments[..], &[url]].concat());
        assert!(output.stdout.len() >= 40 * 20_000);
    }
}

#[test]
fn ordinary_traffic_raises_nothing() {
    if !tools::require(&["curl", "iperf3"]) {
        return;
    }
    with_workers(|lab, workers| {
        let (near, far) = (lab.generator(), lab.sensor());
        for port in 8000..=8005 {
            serve(far, &format!("[::]:{port}"), http);
        }
        serve(far, "10.99.0.2:22", echo);
        answer_datagrams(far, "10.99.0.2:53");
        answer_datagrams(far, "10.99.0.2:123");
        let mut server = far.spawn(Command::new("iperf3").args(["-s", "-1", "--forceflush"]));
        server.wait_for_line("listening", PATIENCE);
        let mut sensor = Sensor::start(far, "s0", workers, Sensor::SMALL);
        thread::scope(|scope| {
            scope.spawn(|| browse(near));
            scope.spawn(|| long_session(near));
            scope.spawn(|| (0..200).for_each(|_| ask_datagram(near, "10.99.0.2:53")));
            scope.spawn(|| (0..5).for_each(|_| ask_datagram(near, "10.99.0.2:123")));
            let iperf3 = ["-c", "10.99.0.2", "-t", "2", "-P", "4", "-b", "50M"];
            scope.spawn(move || near.run("iperf3", &iperf3));
            // Services that are not there: fewer than a scan tries.
            scope.spawn(|| {
                for port in 9000..9005 {
                    let refused = near.within(|| TcpStream::connect(("10.99.0.2", port)));
                    assert!(refused.is_err());
                }
            });
        });
        all_silent(lab, &mut sensor);
        let events = sensor.stop(Signal::SIGINT);
        assert_eq!(alerts_before(&events), [], "{workers} workers");
        let mut connections = events.connections();
        connections.retain(|flow| !is_of_last_sweep(flow));
        // 150 and 40 pages, 5 streams of iperf3, the session, 5 that were refused.
        assert_eq!(connections.len(), 201, "{workers} workers");
    });
}

// Connections.

#[test]
fn each_connection_is_one_flow_event_over_both_versions_of_ip() {
    with_workers(|lab, workers| {
        serve(lab.sensor(), "[::]:8000", echo);
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, Sensor::SMALL);
        let targets = ["10.99.0.2:8000", "[fd99::2]:8000", "10.99.0.2:9"].repeat(20);
        let mut expected = Vec::new();
        for target in targets {
            let target: SocketAddr = target.parse().unwrap();
            let stream = lab.generator().within(|| TcpStream::connect(target));
            // One that is refused leaves no socket to ask for its port.
            let source = stream.as_ref().ok().map(|stream| stream.local_addr().unwrap());
            expected.push((source.map(|source| source.port()), target));
        }
        let events = sensor.stop(Signal::SIGTERM);
        let flows = events.connections();
        assert_eq!(flows.len(), expected.len(), "{workers} workers");
        for (port, target) in expected {
            let mut found = flows.iter().filter(|flow| {
                flow["dest_ip"] == target.ip().to_string().as_str()
                    && flow["dest_port"] == target.port()
                    && port.is_none_or(|port| flow["src_port"] == port)
            });
            let flow = found.next().unwrap();
            assert_eq!(found.count(), if port.is_none() { 19 } else { 0 });
            let from = if target.is_ipv4() { "10.99.0.1" } else { "fd99::1" };
            assert_eq!(
                (flow["src_ip"].as_str(), flow["proto"].as_str()),
                (Some(from), Some("TCP"))
            );
            assert_eq!((&flow["in_iface"], &flow["flow"]["state"]), (&"s0".into(), &"new".into()));
            assert!(flow["community_id"].as_str().unwrap().starts_with("1:"), "{flow}");
        }
        let ids: std::collections::BTreeSet<_> =
            flows.iter().map(|flow| flow["flow_id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), flows.len());
    });
}

#[test]
fn connections_beyond_the_limit_of_a_second_are_counted_and_summarised() {
    with_workers(|lab, workers| {
        let limit = "[events]\nconnections_per_second = 10\n";
        let configuration = format!("{}{limit}", Sensor::SMALL);
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, &configuration);
        let mut injector = Injector::within(lab.generator(), "g0");
        let frames = (1..=500).map(|port| syn(&format!("198.18.0.1:{port}"), "198.19.0.2:80"));
        injector.send_all(frames, Some(500)).unwrap();
        let events = sensor.stop(Signal::SIGINT);
        let mut by_second: BTreeMap<&str, u64> = BTreeMap::new();
        for flow in events.connections() {
            *by_second.entry(&flow["timestamp"].as_str().unwrap()[..19]).or_default() += 1;
        }
        assert!(by_second.values().all(|count| *count <= 10), "{by_second:?}");
        let summaries = events.anomalies("connections_summarised");
        let summarised = summaries.iter().map(|one| one["ringwatch"]["connections"].as_u64());
        let summarised: u64 = summarised.map(Option::unwrap).sum();
        let written: u64 = by_second.values().sum();
        assert_eq!(written + summarised, 500, "{workers} workers: {by_second:?}");
        assert!(summaries.len() <= by_second.len() + 1, "{summaries:#?}");
    });
}

#[test]
fn a_frame_on_loopback_is_counted_once() {
    with_workers(|lab, workers| {
        let receiver = lab.sensor().within(|| UdpSocket::bind("127.0.0.1:7").unwrap());
        let sender = lab.sensor().within(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut sensor = Sensor::start(lab.sensor(), "lo", workers, Sensor::SMALL);
        for _ in 0..100 {
            sender.send_to(b"once", receiver.local_addr().unwrap()).unwrap();
        }
        let events = sensor.stop(Signal::SIGINT);
        assert_eq!(events.last_stats()["stats"]["decoder"]["udp"], 100, "{workers} workers");
        assert_eq!(events.ledger().kernel_packets(), 100);
    });
}

// Beginning and end.

#[test]
fn a_link_that_goes_down_and_up_is_said_and_capture_resumes() {
    with_workers(|lab, workers| {
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, Sensor::SMALL);
        let mut injector = Injector::within(lab.generator(), "g0");
        injector.send(&syn("198.18.0.1:1", "198.19.0.2:80")).unwrap();
        sensor.wait_for("flow", |events| events.connections().len() == 1);
        for round in 1..=2 {
            lab.sensor().ip("link set s0 down");
            sensor.wait_for("link_down", |events| events.anomalies("link_down").len() == round);
            lab.sensor().ip("link set s0 up");
            sensor.wait_for("link_up", |events| events.anomalies("link_up").len() == round);
            let source = format!("198.18.0.1:{}", 100 + round);
            injector.send(&syn(&source, "198.19.0.2:80")).unwrap();
            sensor.wait_for("flow", |events| events.connections().len() == 1 + round);
        }
        let events = sensor.stop(Signal::SIGINT);
        for name in ["link_down", "link_up"] {
            let said = events.anomalies(name);
            assert_eq!(said.len(), 2, "{name}, {workers} workers");
            assert!(said.iter().all(|event| event["ringwatch"]["interface"] == "s0"), "{said:?}");
        }
    });
}

/// Sends frames to a sensor that is held up, then the signal: its rings are full of frames that it has
/// not looked at.
fn everything_sent_is_in_the_last_ledger(signal: Signal, ring_mib: u32, must_drop: bool) {
    const FRAMES: u64 = 20_000;
    with_workers(|lab, workers| {
        make_quiet(lab);
        let configuration = format!("[capture]\nring_mib = {ring_mib}\n[api]\nlisten = ''\n");
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, &configuration);
        let before = received(lab);
        let mut injector = Injector::within(lab.generator(), "g0");
        let made: Vec<_> =
            (1..=500).map(|port| syn(&format!("198.18.0.1:{port}"), "198.19.0.2:80")).collect();
        sensor.process().signal(Signal::SIGSTOP);
        injector.send_all(made.iter().cycle().take(FRAMES as usize), None).unwrap();
        sensor.process().signal(signal);
        let events = sensor.stop(Signal::SIGCONT);
        assert_eq!(received(lab) - before, FRAMES, "the link lost frames");
        let ledger = events.ledger();
        let interface = &ledger.interfaces[0];
        assert_eq!(interface.analysed + interface.kernel_drops, FRAMES, "{workers} workers");
        assert_eq!(interface.kernel_packets, FRAMES);
        assert_eq!(interface.corrupt, 0);
        assert!(!must_drop || interface.kernel_drops > 1000, "{ledger:#?}");
    });
}

/// Frames that the sensor's interface has received.
fn received(lab: &Lab) -> u64 {
    let output = lab.sensor().run("cat", &["/sys/class/net/s0/statistics/rx_packets"]);
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn the_last_event_says_how_late_frames_were_and_what_the_interface_itself_counted() {
    const FRAMES: u64 = 2000;
    with_workers(|lab, workers| {
        make_quiet(lab);
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, "[api]\nlisten = ''\n");
        let mut injector = Injector::within(lab.generator(), "g0");
        let made: Vec<_> =
            (1..=500).map(|port| syn(&format!("198.18.0.1:{port}"), "198.19.0.2:80")).collect();
        injector.send_all(made.iter().cycle().take(FRAMES as usize), None).unwrap();
        let events = sensor.stop(Signal::SIGINT);
        let said = &events.last_stats()["ringwatch"];
        assert_eq!(said["devices"]["s0"]["packets"], FRAMES, "{said:#}");
        let latency = |name: &str| said["latency_us"][name].as_u64().unwrap();
        assert!(latency("p50") > 0 && latency("p50") <= latency("p99"), "{said:#}");
        assert!(latency("p99") <= latency("max") && latency("max") < 20_000_000, "{said:#}");
    });
}

#[test]
fn sigint_drains_the_rings_and_every_frame_is_accounted_for() {
    everything_sent_is_in_the_last_ledger(Signal::SIGINT, 128, false);
}

#[test]
fn sigterm_drains_the_rings_and_every_frame_is_accounted_for_also_when_rings_overflow() {
    everything_sent_is_in_the_last_ledger(Signal::SIGTERM, 1, true);
}

#[test]
fn a_signal_amid_traffic_ends_with_a_ledger_that_adds_up() {
    with_workers(|lab, _| {
        let mut sensor = Sensor::start(lab.sensor(), "s0", 2, Sensor::SMALL);
        let mut injector = Injector::within(lab.generator(), "g0");
        let frame = syn("198.18.0.1:1", "198.19.0.2:80");
        let before = received(lab);
        thread::scope(|scope| {
            let traffic = scope.spawn(move || {
                injector.send_all(std::iter::repeat_n(&frame, 40_000), Some(20_000)).unwrap()
            });
            wait_until("traffic", || received(lab) > before + 5000);
            assert!(!traffic.is_finished(), "it is amid the traffic that the signal comes");
            assert!(sensor.stop(Signal::SIGINT).ledger().kernel_packets() > 1000);
            traffic.join().unwrap();
        });
    });
}

/// A sensor whose events nobody takes, so that it cannot end in order.
fn stuck_sensor(lab: &Lab) -> std::process::Child {
    let mut command = programs::sensor();
    command.args(["-i", "s0", "--workers", "1"]);
    let mut command = lab.sensor().wrap(&command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Opening a large ring takes more than a second on a busy machine.
    let mut said = std::io::BufReader::new(child.stderr.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains("capturing") {
        line.clear();
        let bytes = std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert!(bytes > 0, "it ended before it captured");
    }
    let mut injector = Injector::within(lab.generator(), "g0");
    let frames = (1..=2000).map(|port| syn(&format!("198.18.0.1:{port}"), "198.19.0.2:80"));
    injector.send_all(frames, None).unwrap();
    wait_until("its events find no room", || is_in_write(child.id(), "recorder"));
    child
}

/// A thread of a process waits for a pipe that is full.
fn is_in_write(process: u32, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default();
    tasks.into_iter().any(|task| {
        read(task.join("comm")).trim() == name && read(task.join("wchan")).contains("pipe_write")
    })
}

#[test]
fn a_second_signal_ends_at_once() {
    let Some(lab) = Lab::new() else { return };
    let mut child = stuck_sensor(&lab);
    let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(id, Signal::SIGINT).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None, "it waits for the reader of its events");
    nix::sys::signal::kill(id, Signal::SIGTERM).unwrap();
    // By itself it would never end.
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        let is_late = Instant::now() > deadline;
        if is_late {
            child.kill().unwrap();
        }
        assert!(!is_late, "the second signal did not end it");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn it_ends_when_the_reader_of_its_events_is_gone() {
    let Some(lab) = Lab::new() else { return };
    let program = programs::path("ringwatch-sensor");
    let script = format!(
        "'{}' -i s0 --stats-interval 1 | head -1; echo ${{PIPESTATUS[0]}}",
        program.display()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    let mut shell: Process = lab.sensor().spawn(&command);
    assert!(shell.wait(PATIENCE).success());
    let lines = shell.stdout_lines();
    assert_eq!(lines.len(), 2, "{}", shell.describe());
    assert_eq!(Events::parse(&format!("{}\n", lines[0])).all()[0]["event_type"], "stats");
    assert_eq!(lines[1], "0", "{}", shell.describe());
}

// The local API.

/// Sum of a metric over its labels.
fn metric(text: &str, name: &str) -> u64 {
    let rows = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let values: Vec<f64> =
        rows.map(|row| row.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} in\n{text}");
    values.iter().sum::<f64>() as u64
}

#[test]
fn metrics_and_health_are_served_on_loopback_and_agree_with_the_last_event() {
    with_workers(|lab, workers| {
        make_quiet(lab);
        let configuration = "[capture]\nring_mib = 16\n";
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, configuration);
        let mut injector = Injector::within(lab.generator(), "g0");
        for port in 1..=300 {
            injector.send(&syn(&format!("198.18.0.1:{port}"), "198.19.0.2:80")).unwrap();
        }
        sensor.wait_for("flows", |events| events.connections().len() == 300);
        // Kernel counters are read four times a second.
        wait_until("counters", || {
            let text = Sensor::ask(lab.sensor(), "/metrics").body;
            metric(&text, "ringwatch_kernel_packets_total") == 300
        });
        let reply = Sensor::ask(lab.sensor(), "/metrics");
        assert_eq!(reply.status, 200);
        let health = Sensor::ask(lab.sensor(), "/healthz");
        assert_eq!((health.status, &health.json()["status"]), (200, &"ok".into()));
        lab.sensor().ip("link set s0 down");
        sensor.wait_for("link_down", |events| !events.anomalies("link_down").is_empty());
        let health = Sensor::ask(lab.sensor(), "/healthz");
        assert_eq!((health.status, &health.json()["status"]), (503, &"degraded".into()));
        let events = sensor.stop(Signal::SIGINT);
        let (ledger, decoder) = (events.ledger(), &events.last_stats()["stats"]["decoder"]);
        for (name, value) in [
            ("ringwatch_kernel_packets_total", ledger.kernel_packets()),
            ("ringwatch_kernel_drops_total", ledger.kernel_drops()),
            ("ringwatch_analysed_packets_total", ledger.interfaces[0].analysed),
            ("ringwatch_analysed_bytes_total", decoder["bytes"].as_u64().unwrap()),
            ("ringwatch_frames_not_selected_total", ledger.interfaces[0].not_selected),
            ("ringwatch_new_connections_total", 300),
        ] {
            assert_eq!(metric(&reply.body, name), value, "{name}, {workers} workers");
        }
        assert_eq!(ledger.kernel_packets(), 300);
    });
}

#[test]
fn answers_that_the_kernel_dropped_are_not_taken_for_silence() {
    with_workers(|lab, workers| {
        make_quiet(lab);
        let configuration = "[capture]\nring_mib = 16\n[api]\nlisten = ''\n";
        let mut sensor = Sensor::start(lab.sensor(), "s0", workers, configuration);
        let mut injector = Injector::within(lab.generator(), "g0");
        let host = |number: u8| format!("198.19.1.{number}:443");
        let attempts: Vec<_> =
            (1..=100).map(|number| syn("198.18.0.1:40000", &host(number))).collect();
        let answers: Vec<_> = (1..=100)
            .map(|number| {
                let (from, to) = (host(number), "198.18.0.1:40000");
                frames::tcp(from.parse().unwrap(), to.parse().unwrap(), SYN | ACK, b"")
            })
            .collect();
        let others: Vec<_> = (1..=500)
            .map(|port| {
                let (from, to) = (format!("198.18.0.9:{port}"), "198.19.0.9:9");
                frames::udp(from.parse().unwrap(), to.parse().unwrap(), &[0; 18])
            })
            .collect();
        // Held up, the rings take the attempts amid the rest; the answers find them full. The drops are
        // noticed while the worker still reads what came long before them.
        sensor.process().signal(Signal::SIGSTOP);
        injector.send_all(others.iter().cycle().take(60_000), None).unwrap();
        injector.send_all(attempts.iter(), None).unwrap();
        injector.send_all(others.iter().cycle().take(250_000), None).unwrap();
        injector.send_all(answers.iter(), None).unwrap();
        sensor.process().signal(Signal::SIGCONT);
        // Silence would be found after 3 s.
        thread::sleep(Duration::from_secs(5));
        let events = sensor.stop(Signal::SIGINT);
        assert!(events.ledger().kernel_drops() > 1000, "{workers} workers");
        assert!(events.alerts().is_empty(), "{workers} workers: {:#?}", events.alerts());
    });
}
