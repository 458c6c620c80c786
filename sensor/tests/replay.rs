//! `--read FILE` by the real program: captures with known content, and small ones made here.
//!
//! The corpus is found by `RINGWATCH_CORPUS`; without it only the captures
//! made here are read, and the tests say so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use perf::events::{AlertLife, Events};
use perf::frames::{self, ACK, FIN, RST, SYN};
use perf::pcap::{CaptureFile, Format, Resolution};
use perf::programs;
use serde_json::Value;
use tempfile::TempDir;

/// What a run printed, and how it ended.
#[derive(Debug, PartialEq)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn events(&self) -> Events {
        Events::parse(&self.stdout)
    }
}

fn replay(path: &Path, arguments: &[&str]) -> Run {
    let mut command = programs::sensor();
    let output = command.arg("--read").arg(path).args(arguments).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A run over a file that is read to its end.
#[track_caller]
fn events_of(path: &Path, arguments: &[&str]) -> Events {
    let run = replay(path, arguments);
    assert_eq!(run.code, Some(0), "{}: {}", path.display(), run.stderr);
    let events = run.events();
    let _ = events.ledger();
    events
}

/// The same events, whichever workers contributed to them.
fn without_workers(events: &Events) -> Vec<Value> {
    let mut all = events.all().to_vec();
    for event in &mut all {
        if let Some(ours) = event["ringwatch"].as_object_mut() {
            ours.remove("workers");
        }
    }
    all
}

/// Calls `check` for every item, on a few threads.
fn on_threads<T: Sync>(items: &[T], check: impl Fn(&T) + Sync) {
    let next = Mutex::new(items.iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let item = next.lock().unwrap().next();
                    let Some(item) = item else { break };
                    check(item);
                }
            });
        }
    });
}

// Captures made here.

/// Seconds since 1970 at which they begin, within a tick of 250 ms, not at its start.
const BEGIN: f64 = 1_700_000_000.1;

/// A capture in the making: frames with times in seconds from [`BEGIN`].
#[derive(Default)]
struct Capture(Vec<(u64, Vec<u8>)>);

impl Capture {
    fn add(&mut self, seconds: f64, frame: Vec<u8>) {
        // Whole microseconds: every format can hold them.
        self.0.push((((BEGIN + seconds) * 1e6).round() as u64 * 1000, frame));
    }

    fn save(&self, folder: &TempDir, format: Format) -> PathBuf {
        let path = folder.path().join("capture");
        let frames = self.0.iter().map(|(time, frame)| (*time, frame));
        std::fs::write(&path, CaptureFile::of(format, frames).bytes()).unwrap();
        path
    }

    #[track_caller]
    fn events(&self, arguments: &[&str]) -> Events {
        let folder = TempDir::new().unwrap();
        events_of(&self.save(&folder, Format::USUAL), arguments)
    }
}

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

const SCANNER: &str = "203.0.113.9";
const VICTIM: &str = "198.51.100.7";

/// One SYN to each port, and what answers it.
fn scan_of_ports(capture: &mut Capture, begin: f64, ports: u16, answer: Option<u8>) {
    for number in 0..ports {
        let time = begin + f64::from(number) * 0.01;
        let (source, target) = (socket(SCANNER, 40_000 + number), socket(VICTIM, 1000 + number));
        capture.add(time, frames::tcp(source, target, SYN, b""));
        if let Some(flags) = answer {
            capture.add(time + 0.001, frames::tcp(target, source, flags, b""));
        }
    }
}

#[track_caller]
fn only_alert(events: &Events) -> AlertLife {
    let mut alerts = events.alerts();
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    let alert = alerts.remove(0);
    let phase = |phase: Option<&String>| phase.map(String::as_str).unwrap_or_default().to_owned();
    let ends = (phase(alert.phases.first()), phase(alert.phases.last()));
    assert_eq!(ends, ("open".into(), "close".into()), "{alert:#?}");
    alert
}

#[test]
fn refused_and_silent_ports_make_a_vertical_scan() {
    for (answer, outcome) in [(Some(RST | ACK), "refused"), (None, "silent")] {
        let mut capture = Capture::default();
        scan_of_ports(&mut capture, 0.0, 30, answer);
        let alert = only_alert(&capture.events(&[]));
        assert_eq!(alert.kind, "vertical");
        assert_eq!((alert.source.as_str(), alert.target.as_deref()), (SCANNER, Some(VICTIM)));
        assert_eq!((alert.count("distinct_ports"), alert.count("distinct_hosts")), (30, 1));
        assert_eq!((alert.count("attempted"), alert.count(outcome)), (30, 30), "{alert:#?}");
    }
}

#[test]
fn one_port_of_many_silent_hosts_makes_a_horizontal_scan_also_over_ipv6() {
    for network in ["198.51.100.", "2001:db8::"] {
        let scanner = if network.contains(':') { "2001:db8:1::9" } else { SCANNER };
        let mut capture = Capture::default();
        for host in 1..=40_u16 {
            let target = socket(&format!("{network}{host}"), 445);
            let time = f64::from(host) * 0.05;
            capture.add(time, frames::tcp(socket(scanner, 50_000 + host), target, SYN, b""));
        }
        let alert = only_alert(&capture.events(&[]));
        assert_eq!((alert.kind.as_str(), alert.source.as_str()), ("horizontal", scanner));
        assert_eq!(alert.target, None);
        assert_eq!((alert.count("distinct_hosts"), alert.count("distinct_ports")), (40, 1));
        assert_eq!(alert.context["ports"], serde_json::json!([445]));
    }
}

#[test]
fn icmp_port_unreachable_counts_as_refused() {
    let mut capture = Capture::default();
    for port in 1..=12 {
        let probe = frames::tcp(socket(SCANNER, 40_000 + port), socket(VICTIM, port), SYN, b"");
        let answer = frames::port_unreachable(VICTIM.parse().unwrap(), &probe);
        capture.add(f64::from(port) * 0.01, probe);
        capture.add(f64::from(port) * 0.01 + 0.002, answer);
    }
    for workers in ["1", "4"] {
        let alert = only_alert(&capture.events(&["--workers", workers]));
        assert_eq!((alert.count("refused"), alert.count("silent")), (12, 0), "{workers} workers");
    }
}

#[test]
fn what_is_answered_or_below_the_threshold_or_spread_wide_raises_nothing() {
    let mut answered = Capture::default();
    scan_of_ports(&mut answered, 0.0, 200, Some(SYN | ACK));
    let mut few = Capture::default();
    scan_of_ports(&mut few, 0.0, 9, None);
    let mut slow = Capture::default();
    for port in 1..=24 {
        let frame = frames::tcp(socket(SCANNER, 4000), socket(VICTIM, port), SYN, b"");
        slow.add(f64::from(port) * 10.0, frame);
    }
    let mut backscatter = Capture::default();
    for port in 1..=200 {
        let (source, target) = (socket(VICTIM, 80), socket(SCANNER, port));
        backscatter.add(0.0, frames::tcp(source, target, SYN | ACK, b""));
        backscatter.add(0.1, frames::tcp(source, target, RST, b""));
    }
    for (name, capture) in
        [("answered", answered), ("few", few), ("slow", slow), ("backscatter", backscatter)]
    {
        assert_eq!(capture.events(&[]).alerts(), [], "{name}");
    }
}

#[test]
fn silence_at_the_end_of_a_file_alerts_in_virtual_time() {
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 10, None);
    let events = capture.events(&[]);
    let alert = only_alert(&events);
    assert_eq!(alert.count("silent"), 10);
    let times = events.of_type("alert").into_iter().map(|event| event["timestamp"].to_string());
    let times: Vec<_> = times.collect();
    // The last of ten SYNs is at 22:13:20.19; it is silent 3 s later and closed a minute after that.
    assert!(times[0].contains("22:13:23"), "{times:?}");
    assert!(times[1].contains("22:14:2"), "{times:?}");
}

#[test]
fn time_never_runs_backwards_in_what_is_printed() {
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 100.0, 10, None);
    scan_of_ports(&mut capture, 0.0, 30, None);
    scan_of_ports(&mut capture, 50.0, 12, Some(RST | ACK));
    let events = capture.events(&[]);
    assert_eq!(only_alert(&events).count("distinct_ports"), 30);
    let times = events.all().iter().map(|event| event["timestamp"].as_str().unwrap());
    let times: Vec<_> = times.collect();
    assert!(times.is_sorted(), "{times:#?}");
}

#[test]
fn a_gap_of_ten_years_costs_no_time() {
    const TEN_YEARS: f64 = 10.0 * 365.0 * 86_400.0;
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 12, None);
    scan_of_ports(&mut capture, TEN_YEARS, 12, None);
    scan_of_ports(&mut capture, 2.0 * TEN_YEARS, 3, None);
    let started = Instant::now();
    let events = capture.events(&[]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let alerts = events.alerts();
    assert_eq!(alerts.len(), 2, "{alerts:#?}");
}

#[test]
fn the_profile_strict_counts_syns_alone() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("strict.toml");
    std::fs::write(&file, "[detect]\nprofile = 'strict'\n[events]\nfile = '-'\n").unwrap();
    let arguments = ["--config", file.to_str().unwrap()];
    for (ports, is_found) in [(3, false), (4, true)] {
        let mut capture = Capture::default();
        scan_of_ports(&mut capture, 0.0, ports, Some(SYN | ACK));
        let alerts = capture.events(&arguments).alerts();
        assert_eq!(alerts.len(), usize::from(is_found), "{ports} ports: {alerts:#?}");
        if let Some(alert) = alerts.first() {
            assert_eq!((alert.kind.as_str(), alert.count("distinct_ports")), ("vertical", 4));
        }
    }
}

#[test]
fn an_allowed_source_raises_nothing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("allow.toml");
    std::fs::write(&file, "[detect]\nallow = ['203.0.113.0/24']\n[events]\nfile = '-'\n").unwrap();
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 100, None);
    let events = capture.events(&["--config", file.to_str().unwrap()]);
    assert_eq!((events.alerts(), events.connections().len()), (vec![], 100));
}

#[test]
fn every_format_of_the_same_frames_gives_the_same_events() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 15, None);
    scan_of_ports(&mut capture, 30.0, 15, Some(RST | ACK));
    let expected = events_of(&capture.save(&folder, Format::USUAL), &[]);
    assert_eq!(only_alert(&expected).count("attempted"), 15);
    for format in Format::all() {
        let events = events_of(&capture.save(&folder, format), &[]);
        assert_eq!(events, expected, "{format:?}");
    }
}

#[test]
fn nanoseconds_are_kept_and_cut_only_when_printed() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    let frame = frames::tcp(socket(SCANNER, 1), socket(VICTIM, 2), SYN, b"");
    capture.0.push((1_700_000_000_123_456_789, frame));
    let path = capture.save(&folder, Format { resolution: Resolution::Nano, ..Format::USUAL });
    let events = events_of(&path, &[]);
    assert_eq!(events.connections()[0]["timestamp"], "2023-11-14T22:13:20.123456+0000");
}

#[test]
fn standard_input_is_read_like_a_file() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 12, None);
    let path = capture.save(&folder, Format::USUAL);
    let mut command = programs::sensor();
    let input = std::fs::File::open(&path).unwrap();
    let output = command.args(["--read", "-"]).stdin(input).output().unwrap();
    assert!(output.status.success());
    let events = Events::parse(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(events.ledger().kernel_packets(), 12);
    assert_eq!(events.alerts().len(), 1);
}

#[test]
fn a_corrupt_file_is_read_up_to_its_fault_and_the_place_is_named() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 12, None);
    let path = capture.save(&folder, Format::USUAL);
    let mut bytes = std::fs::read(&path).unwrap();
    let whole = bytes.len();
    bytes.extend([0xff; 64]);
    std::fs::write(&path, &bytes).unwrap();
    let run = replay(&path, &[]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("corrupt at byte {whole}")), "{}", run.stderr);
    assert_eq!(run.events().ledger().kernel_packets(), 12);
    assert_eq!(run.events().alerts().len(), 1);
}

#[test]
fn a_file_that_ends_within_a_record_is_read_as_far_as_it_goes() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    scan_of_ports(&mut capture, 0.0, 12, None);
    for format in Format::all() {
        let path = capture.save(&folder, format);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let run = replay(&path, &[]);
        assert_eq!(run.code, Some(0), "{format:?} {}", run.stderr);
        assert!(run.stderr.contains("ends within a record"), "{format:?} {}", run.stderr);
        assert_eq!(run.events().ledger().kernel_packets(), 11, "{format:?}");
    }
}

#[test]
fn an_empty_capture_ends_with_its_statistics() {
    for format in Format::all() {
        let folder = TempDir::new().unwrap();
        let events = events_of(&Capture::default().save(&folder, format), &[]);
        assert_eq!((events.all().len(), events.ledger().kernel_packets()), (1, 0), "{format:?}");
    }
}

#[test]
fn statistics_count_packets_by_kind() {
    let mut capture = Capture::default();
    let v6 = [socket("2001:db8::1", 1), socket("2001:db8::2", 2)];
    let v4 = [socket(SCANNER, 1), socket(VICTIM, 2)];
    capture.add(0.0, frames::tcp(v4[0], v4[1], ACK, b"x"));
    capture.add(0.0, frames::udp(v4[0], v4[1], b"x"));
    capture.add(0.0, frames::icmp(v4[0].ip(), v4[1].ip(), 8, 0, &[0; 4]));
    capture.add(0.0, frames::udp(v6[0], v6[1], b"x"));
    let tagged = frames::tagged(&frames::udp(v6[0], v6[1], b"y"), &[(frames::DOT1Q, 7)]);
    capture.add(0.0, tagged);
    capture.add(0.0, frames::icmp(v6[0].ip(), v6[1].ip(), 128, 0, &[0; 4]));
    capture.add(0.0, frames::arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
    let bytes: usize = capture.0.iter().map(|(_, frame)| frame.len()).sum();
    let events = capture.events(&[]);
    assert_eq!(
        events.last_stats()["stats"]["decoder"],
        serde_json::json!({
            "pkts": 7, "bytes": bytes, "invalid": 0, "ipv4": 3, "ipv6": 3, "tcp": 1, "udp": 3,
            "sctp": 0, "icmpv4": 1, "icmpv6": 1, "arp": 1, "vlan": 1,
        })
    );
}

// The corpus.

#[track_caller]
fn assert_as_expected(file: &str, expected: &Value, alerts: &[AlertLife]) {
    let expected = expected.as_array().unwrap();
    assert_eq!(alerts.len(), expected.len(), "{file}: {alerts:#?}");
    for wanted in expected {
        let fits = |alert: &&AlertLife| {
            wanted["kind"] == alert.kind.as_str()
                && (wanted["technique"].is_null()
                    || wanted["technique"] == alert.context["technique"])
                && wanted["src"] == alert.source.as_str()
                && wanted["dst"].as_str() == alert.target.as_deref()
                && ["distinct_ports", "distinct_hosts"]
                    .iter()
                    .all(|count| wanted[count].is_null() || wanted[count] == alert.count(count))
                && (wanted["port"].is_null()
                    || alert.context["ports"] == Value::Array(vec![wanted["port"].clone()]))
        };
        assert!(alerts.iter().any(|alert| fits(&alert)), "{file}: {wanted} is not in {alerts:#?}");
    }
}

#[test]
fn the_scans_of_the_corpus_are_found_alike_by_up_to_eight_workers() {
    let Some(folder) = corpus::folder() else { return };
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    on_threads(manifest.as_array().unwrap(), |entry| {
        let file = entry["file"].as_str().unwrap();
        let path = folder.join("scans").join(file);
        let one = events_of(&path, &["--workers", "1"]);
        if entry["expect"] != "any" {
            assert_as_expected(file, &entry["expect"], &one.alerts());
        }
        for workers in ["2", "4", "8"] {
            let several = events_of(&path, &["--workers", workers]);
            assert_eq!(without_workers(&several), without_workers(&one), "{file}, {workers}");
        }
    });
}

/// A file of the corpus may be corrupt; then the error names the place.
fn check_ending(path: &Path, run: &Run) {
    let is_explained =
        run.code == Some(0) || (run.code == Some(1) && run.stderr.contains("at byte "));
    assert!(is_explained, "{}: {:?} {}", path.display(), run.code, run.stderr);
    let ledger = run.events().ledger();
    assert_eq!(ledger.kernel_drops(), 0);
}

#[test]
fn every_file_of_the_corpus_is_read_to_its_end_and_twice_alike() {
    let captures = corpus::captures();
    let started = Instant::now();
    on_threads(&captures, |path| {
        let one = replay(path, &["--workers", "1"]);
        check_ending(path, &one);
        let four = replay(path, &["--workers", "4"]);
        let (events, of_four) = (one.events(), four.events());
        let place = path.display();
        assert_eq!(without_workers(&of_four), without_workers(&events), "{place}");
        assert_eq!(replay(path, &["--workers", "1"]), one, "{place}");
        assert_eq!(replay(path, &["--workers", "4"]), four, "{place}");
        if !path.parent().unwrap().ends_with("scans") {
            assert_eq!(events.alerts(), [], "{place}");
        }
    });
    eprintln!("{} files in {:?}", captures.len(), started.elapsed());
}

// Flows.

/// What the tests look at: who, how much each way, state, reason, time of the last packet.
fn told_flows(events: &Events) -> Vec<String> {
    let text = |value: &Value| value.to_string().replace('"', "");
    let mut told: Vec<String> = events
        .ended_flows()
        .iter()
        .map(|event| {
            let flow = &event["flow"];
            let ends =
                ["src_ip", "src_port", "dest_ip", "dest_port", "proto"].map(|k| text(&event[k]));
            let counts = ["pkts_toserver", "pkts_toclient", "bytes_toserver", "bytes_toclient"];
            let counts = counts.map(|name| text(&flow[name]));
            let ended = ["state", "reason", "end"].map(|name| text(&flow[name]));
            format!("{} | {} | {}", ends.join(" "), counts.join(" "), ended.join(" "))
        })
        .collect();
    told.sort_unstable();
    told
}

#[test]
fn flows_have_exactly_what_their_packets_had() {
    let (client, server) = (socket("192.0.2.1", 40_000), socket("192.0.2.2", 443));
    let (v6, dns) = (socket("2001:db8::1", 5353), socket("2001:db8::2", 53));
    let mut capture = Capture::default();
    let tcp = |source, target, flags, payload: usize| {
        frames::tcp(source, target, flags, &vec![0; payload])
    };
    for (time, frame) in [
        (0.0, tcp(client, server, SYN, 0)),
        (0.1, tcp(server, client, SYN | ACK, 0)),
        (0.2, tcp(client, server, ACK, 0)),
        (0.3, tcp(client, server, ACK, 100)),
        (0.4, tcp(server, client, ACK, 1000)),
        (0.5, frames::udp(v6, dns, &[0; 30])),
        (0.6, frames::udp(dns, v6, &[0; 300])),
        (0.7, tcp(server, client, FIN | ACK, 0)),
        (0.8, tcp(client, server, FIN | ACK, 0)),
        // Nobody answers.
        (1.0, tcp(client, socket("192.0.2.3", 80), SYN, 0)),
        (2.0, tcp(client, socket("192.0.2.3", 80), SYN, 0)),
        // Long after all these are over; the same addresses again are another flow.
        (400.0, frames::udp(v6, dns, &[0; 30])),
    ] {
        capture.add(time, frame);
    }
    let events = capture.events(&[]);
    assert_eq!(
        told_flows(&events),
        [
            "192.0.2.1 40000 192.0.2.2 443 TCP | 4 3 316 1162 | closed timeout \
             2023-11-14T22:13:20.900000+0000",
            "192.0.2.1 40000 192.0.2.3 80 TCP | 2 0 108 0 | new timeout \
             2023-11-14T22:13:22.100000+0000",
            "2001:db8::1 5353 2001:db8::2 53 UDP | 1 0 92 0 | new shutdown \
             2023-11-14T22:20:00.100000+0000",
            "2001:db8::1 5353 2001:db8::2 53 UDP | 1 1 92 362 | established timeout \
             2023-11-14T22:13:20.700000+0000",
        ]
    );
    // A connection and its end are two events of one flow.
    let id_of = |events: Vec<&Value>| {
        let mut ids = events.into_iter().filter(|event| event["dest_port"] == 443);
        ids.next().unwrap()["flow_id"].clone()
    };
    assert_eq!(id_of(events.connections()), id_of(events.ended_flows()));
}

#[test]
fn flows_are_the_same_whatever_the_number_of_workers() {
    let folder = TempDir::new().unwrap();
    let mut capture = Capture::default();
    for number in 0..6000_u16 {
        let time = f64::from(number) * 0.02;
        let (source, target) = (socket(SCANNER, 1000 + number), socket(VICTIM, number % 7));
        capture.add(time, frames::udp(source, target, &[0; 9]));
        if number % 3 == 0 {
            capture.add(time + 0.001, frames::tcp(target, source, SYN | ACK, b""));
            capture.add(time + 0.002, frames::tcp(source, target, ACK, b""));
        }
    }
    let path = capture.save(&folder, Format::USUAL);
    let one = events_of(&path, &["--workers", "1"]);
    assert_eq!(one.ended_flows().len(), 8000);
    for workers in ["2", "3", "4"] {
        let several = events_of(&path, &["--workers", workers]);
        assert_eq!(without_workers(&several), without_workers(&one), "{workers} workers");
    }
}

#[test]
fn connections_beyond_the_limit_are_the_same_whatever_the_number_of_workers() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("sensor.toml");
    std::fs::write(&config, "[events]\nfile = '-'\nconnections_per_second = 10\n").unwrap();
    let mut capture = Capture::default();
    // All at one time: no order but that of addresses and ports says which ten are written.
    for number in 0..300_u16 {
        let (source, target) = (socket(SCANNER, 9000 - number), socket(VICTIM, 53));
        capture.add(0.0, frames::tcp(source, target, SYN, b""));
    }
    let path = capture.save(&folder, Format::USUAL);
    let run = |workers: &str| {
        events_of(&path, &["--config", config.to_str().unwrap(), "--workers", workers])
    };
    let one = run("1");
    assert_eq!(one.connections().len(), 10);
    let summaries = one.anomalies("connections_summarised");
    assert_eq!(summaries[0]["ringwatch"]["connections"], 290, "{summaries:#?}");
    for workers in ["2", "4"] {
        assert_eq!(without_workers(&run(workers)), without_workers(&one), "{workers} workers");
    }
}

#[test]
fn flows_beyond_the_limit_are_summarised_whatever_the_number_of_workers() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("sensor.toml");
    std::fs::write(&config, "[events]\nfile = '-'\nflows_per_second = 10\n").unwrap();
    let mut capture = Capture::default();
    for number in 0..300_u16 {
        let (source, target) = (socket(SCANNER, 1000 + number), socket(VICTIM, 53));
        capture.add(0.0, frames::udp(source, target, b""));
    }
    // Time passes, so that the flows end by time, within the ten seconds of one sweep.
    capture.add(100.0, frames::udp(socket(VICTIM, 1), socket(SCANNER, 1), b""));
    let path = capture.save(&folder, Format::USUAL);
    for workers in ["1", "3"] {
        let events =
            events_of(&path, &["--config", config.to_str().unwrap(), "--workers", workers]);
        let summaries = events.anomalies("flows_summarised");
        let told: u64 =
            summaries.iter().map(|one| one["ringwatch"]["flows"].as_u64().unwrap()).sum();
        let written = events.ended_flows().len() as u64;
        assert_eq!((written, told), (6, 295), "{workers} workers: flows of one packet get half");
    }
}
