//! Packet filters: what the kernel lets into the rings, what is taken from a file, and what is said
//! of an expression that cannot be used.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames::{self, DOT1Q, SYN};
use perf::inject::Injector;
use perf::lab::Lab;
use perf::pcap::{CaptureFile, Format};
use perf::sensor::Sensor;
use perf::{programs, tools};
use sensor::afpacket::{Ring, Scope, Unbound};
use sensor::config::{Capture, Config};
use sensor::filter::Expression;
use sensor::setup;
use tempfile::TempDir;

/// Ten SYNs to port 80 (four of them behind a VLAN tag), twenty to port 443, thirty UDP datagrams, and
/// two ARP requests.
fn traffic() -> Vec<Vec<u8>> {
    let syn = |port: u16, target: &str| {
        let source = format!("198.18.0.1:{port}");
        frames::tcp(source.parse().unwrap(), target.parse().unwrap(), SYN, b"")
    };
    let mut made = Vec::new();
    made.extend((1..=6).map(|port| syn(port, "198.19.0.2:80")));
    made.extend((7..=10).map(|port| frames::tagged(&syn(port, "198.19.0.2:80"), &[(DOT1Q, 10)])));
    made.extend((1..=20).map(|port| syn(port, "198.19.0.3:443")));
    made.extend((1..=30).map(|port| {
        let source = format!("198.18.0.9:{port}");
        frames::udp(source.parse().unwrap(), "198.19.0.9:53".parse().unwrap(), &[0; 100])
    }));
    let arp = frames::arp_request("198.18.0.1".parse().unwrap(), "198.18.0.2".parse().unwrap());
    made.extend([arp.clone(), arp]);
    made
}

/// Whether libpcap is here: the package of tcpdump brings it.
fn has_libpcap() -> bool {
    tools::require(&["tcpdump"])
}

/// A configuration with this filter.
fn configuration(filter: &str) -> String {
    format!("[capture]\nring_mib = 16\nfilter = '{filter}'\n[api]\nlisten = ''\n")
}

fn written(folder: &TempDir, name: &str, text: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn run(arguments: &[&str]) -> Output {
    programs::sensor().args(arguments).output().unwrap()
}

#[track_caller]
fn assert_said(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not said:\n{said}");
    }
}

/// Frames of [`traffic`] that a live sensor with this filter was offered by the kernel.
fn seen_live(filter: &str, workers: u16) -> Option<u64> {
    let lab = Lab::new()?;
    let mut sensor = Sensor::start(lab.sensor(), "s0", workers, &configuration(filter));
    let mut injector = Injector::within(lab.generator(), "g0");
    injector.send_all(traffic(), None).unwrap();
    let ledger = sensor.stop(Signal::SIGINT).ledger();
    let interface = &ledger.interfaces[0];
    assert_eq!(interface.analysed, interface.kernel_packets);
    Some(interface.kernel_packets)
}

/// Events of a file with a filter.
fn events_of(file: &Path, filter: Option<&str>) -> (String, u64) {
    let mut arguments = vec!["--read", file.to_str().unwrap()];
    arguments.extend(filter.map(|filter| ["--filter", filter]).into_iter().flatten());
    let output = run(&arguments);
    assert_said(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let ledger = Events::parse(&text).ledger();
    assert_eq!(ledger.interfaces[0].analysed, ledger.kernel_packets());
    (text, ledger.kernel_packets())
}

fn capture() -> CaptureFile {
    let frames = traffic().into_iter().enumerate();
    let timed =
        frames.map(|(at, frame)| (1_700_000_000_000_000_000 + at as u64 * 1_000_000, frame));
    CaptureFile::of(Format::USUAL, timed)
}

#[test]
fn rings_count_only_what_the_filter_lets_in() {
    if !has_libpcap() {
        return;
    }
    for (filter, workers, frames) in [
        ("host 198.19.0.9", 1, 30),
        ("udp port 53 and src portrange 1-12", 2, 12),
        // The tag is not in the bytes that the filter sees.
        ("tcp dst port 80", 2, 10),
        ("inbound and host 198.19.0.3", 1, 20),
        ("outbound and host 198.19.0.3", 1, 0),
    ] {
        let Some(seen) = seen_live(filter, workers) else { return };
        assert_eq!(seen, frames, "{filter}");
    }
}

#[test]
fn a_ring_on_all_interfaces_filters_each_by_its_hardware() {
    if !has_libpcap() {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let capture = Capture {
        filter: Some(Expression { text: "udp port 53".into(), origin: "test".into() }),
        ..Config::without_file().capture
    };
    let filter = setup::filter_for_all(&capture).unwrap().unwrap();
    let config = setup::ring(&Capture { ring_mib: 16, ..capture }, 1).unwrap();
    lab.sensor().within(|| {
        let scope = Scope::All { excluded: Vec::new() };
        let mut ring = Ring::open(Unbound::new().unwrap(), &config, &scope).unwrap();
        ring.set_filter(filter.instructions()).unwrap();
        ring.begin().unwrap();
        Injector::within(lab.generator(), "g0").send_all(traffic(), None).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [53, 54, 53] {
            // Nobody listens there; the refusals that come back are no UDP.
            let _ = socket.send_to(b"x", ("127.0.0.1", port));
        }
        ring.reject_all().unwrap();
        let statistics = ring.refresh_statistics().unwrap();
        assert_eq!(statistics.packets, 30 + 2, "{statistics:?}");
    });
}

#[test]
fn the_filter_stays_when_the_link_was_down() {
    if !has_libpcap() {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration("host 198.19.0.9"));
    let mut injector = Injector::within(lab.generator(), "g0");
    for round in 1..=2 {
        injector.send_all(traffic(), None).unwrap();
        lab.sensor().ip("link set s0 down");
        sensor.wait_for("link_down", |events| events.anomalies("link_down").len() == round);
        lab.sensor().ip("link set s0 up");
        sensor.wait_for("link_up", |events| events.anomalies("link_up").len() == round);
    }
    injector.send_all(traffic(), None).unwrap();
    assert_eq!(sensor.stop(Signal::SIGINT).ledger().kernel_packets(), 90);
}

#[test]
fn a_file_gives_what_tcpdump_would_have_left_of_it() {
    if !has_libpcap() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let whole = written(&folder, "whole.pcap", capture().bytes());
    fs::create_dir(folder.path().join("cut")).unwrap();
    // Of the same name, because it stands in the events.
    let cut = folder.path().join("cut/whole.pcap");
    for (filter, frames) in [
        ("host 198.19.0.9", 30),
        ("tcp dst port 80", 6),
        ("vlan 10 and tcp dst port 80", 4),
        ("not vlan", 58),
        ("len > 100", 30),
        ("arp or (tcp[tcpflags] & tcp-syn != 0)", 28),
    ] {
        let mut tcpdump = Command::new(tools::find("tcpdump").unwrap());
        tcpdump.arg("-r").arg(&whole).arg("-w").arg(&cut).arg(filter);
        let done = tcpdump.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let (events, count) = events_of(&whole, Some(filter));
        assert_eq!(count, frames, "{filter}");
        assert_eq!((events, count), events_of(&cut, None), "{filter}");
    }
}

#[test]
fn the_log_says_how_many_frames_of_a_file_were_skipped() {
    if !has_libpcap() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let file = written(&folder, "whole.pcap", capture().bytes());
    let output = run(&["--read", file.to_str().unwrap(), "--filter", "udp"]);
    assert_said(&output, 0, &["frames=30", "skipped=32"]);
}

/// Expressions that no sensor can use, and what is said of them.
const REFUSED: [(&str, &str); 3] = [
    ("tcp prot 80", "syntax error"),
    ("vlan 10", "it tests a VLAN tag"),
    ("not ether proto 0x8100", "it tests a VLAN tag"),
];

#[test]
fn an_expression_that_cannot_be_used_is_named_with_its_place_before_anything_starts() {
    if !has_libpcap() {
        return;
    }
    for (filter, reason) in REFUSED {
        let folder = TempDir::new().unwrap();
        let file = written(&folder, "sensor.toml", configuration(filter).as_bytes());
        let file = file.to_str().unwrap();
        let place = format!("{file}:3: capture.filter = {filter:?}: ");
        let checked = run(&["check-config", "--config", file]);
        assert_said(&checked, 2, &[&place, reason]);
        let started = run(&["--config", file, "-i", "lo"]);
        assert_eq!(started.status.code(), Some(2));
        assert_eq!(started.stderr, checked.stderr, "{filter}");
        assert!(started.stdout.is_empty() && checked.stdout.is_empty());
        let given = run(&["-i", "lo", "--filter", filter]);
        assert_said(&given, 2, &[&format!("--filter = {filter:?}: "), reason]);
    }
}

#[test]
fn a_file_refuses_what_it_does_not_say_of_its_frames() {
    if !has_libpcap() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let file = written(&folder, "whole.pcap", capture().bytes());
    let file = file.to_str().unwrap();
    let output = run(&["--read", file, "--filter", "inbound"]);
    assert_said(&output, 2, &["--filter = \"inbound\"", "direction"]);
    let output = run(&["--read", file, "--filter", "tcp prot 80"]);
    assert_said(&output, 2, &["--filter = \"tcp prot 80\"", "syntax error"]);
}

#[test]
fn without_libpcap_its_package_is_named_and_only_a_filter_needs_it() {
    let folder = TempDir::new().unwrap();
    // Found before the real ones.
    written(&folder, "libpcap.so.0.8", b"no library");
    written(&folder, "libpcap.so.1", b"no library");
    let file = written(&folder, "whole.pcap", capture().bytes());
    let toml = written(&folder, "sensor.toml", configuration("tcp").as_bytes());
    let without = |arguments: &[&str]| {
        let mut command = programs::sensor();
        command.args(arguments).env("LD_LIBRARY_PATH", folder.path()).output().unwrap()
    };
    let words = ["libpcap0.8", "libpcap0.8t64"];
    let file = file.to_str().unwrap();
    assert_said(&without(&["--read", file, "--filter", "tcp"]), 4, &words);
    assert_said(&without(&["-i", "lo", "--filter", "tcp"]), 4, &words);
    let checked = without(&["check-config", "--config", toml.to_str().unwrap()]);
    assert_said(&checked, 4, &words);
    assert_said(&checked, 4, &["sensor.toml:3: capture.filter"]);
    assert_said(&without(&["--read", file]), 0, &[]);
}
