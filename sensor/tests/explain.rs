//! `ringwatch-sensor explain` by the real program.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Output;

use perf::frames::{self, ACK, RST, SYN};
use perf::pcap::{CaptureFile, Format};
use perf::programs;
use serde_json::{Value, json};
use tempfile::TempDir;

const SCANNER: &str = "192.0.2.1";

/// A capture in which the scanner is refused at ports 1 to `ports` of one host, ten a second.
fn refused_scan(folder: &TempDir, ports: u16) -> PathBuf {
    let frames = (1..=ports).flat_map(|port| {
        let time = 1_700_000_000_000_000_000 + u64::from(port) * 100_000_000;
        let source = SocketAddr::new(SCANNER.parse().unwrap(), 40_000);
        let target = SocketAddr::new("198.51.100.9".parse().unwrap(), port);
        let answer = frames::tcp(target, source, RST | ACK, b"");
        [(time, frames::tcp(source, target, SYN, b"")), (time + 1000, answer)]
    });
    let path = folder.path().join("scan.pcap");
    std::fs::write(&path, CaptureFile::of(Format::USUAL, frames).bytes()).unwrap();
    path
}

fn explain(arguments: &[&str]) -> Output {
    programs::sensor().arg("explain").args(arguments).output().unwrap()
}

/// What is printed for a file.
#[track_caller]
fn of_file(ports: u16, arguments: &[&str]) -> String {
    let folder = TempDir::new().unwrap();
    let file = refused_scan(&folder, ports);
    let read = ["--read", file.to_str().unwrap(), "--source", SCANNER];
    let output = explain(&[&read, arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_scan_that_alerted_is_explained_for_a_person() {
    let text = of_file(12, &[]);
    for line in [
        "192.0.2.1 over the whole file",
        "  counts, with the thresholds as configured",
        "  tcp   12 attempted: 0 answered, 12 refused, 0 silent",
        "  ports of 198.51.100.9 by SYN                 12 of 12, threshold 10, \
         at 2023-11-14T22:13:21.250Z: alert 1",
    ] {
        assert!(text.lines().any(|has| has == line), "no {line:?} in\n{text}");
    }
    let alert = "  1  vertical by SYN of 198.51.100.9, opened 2023-11-14T22:13:21.250Z, packets from \
                 2023-11-14T22:13:20.100Z to 2023-11-14T22:13:21.200Z: 12 attempted, 0 answered, \
                 12 refused, 0 silent";
    assert!(text.lines().any(|has| has == alert), "no {alert:?} in\n{text}");
}

#[test]
fn what_was_missing_is_said_to_machines_with_the_configuration_in_force() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("sensor.toml");
    let text = "[detect]\nvertical_ports = 5\n[[detect.network]]\nnetwork = '192.0.2.0/24'\n\
                factor = 3.0\n";
    std::fs::write(&config, text).unwrap();
    let line = of_file(12, &["--json", "--config", config.to_str().unwrap()]);
    let value: Value = serde_json::from_str(&line).unwrap();
    let vertical = value["counts"].as_array().unwrap().iter().find(|it| it["group"] == "ports");
    let vertical = vertical.unwrap();
    assert_eq!((&vertical["configured"], &vertical["threshold"]), (&json!(5), &json!(15)));
    assert_eq!((&vertical["counted"], &vertical["missing"]), (&json!(12), &json!(3)));
    assert_eq!(value["standing"]["network"]["factor"], json!(3.0));
    assert_eq!(value["alerts"], json!([]));
}

#[test]
fn an_allowed_source_is_told_the_rule() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("sensor.toml");
    std::fs::write(&config, "[detect]\nallow = ['192.0.2.0/24']\n").unwrap();
    let text = of_file(12, &["--config", config.to_str().unwrap()]);
    assert!(text.contains("never counts: detect.allow has \"192.0.2.0/24\"\n"), "{text}");
    assert!(text.contains("12 contacts did not count for that\n"), "{text}");
}

#[test]
fn wrong_uses_end_with_2_and_a_sensor_that_does_not_answer_with_1() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let closed = closed.to_string();
    for (arguments, code, word) in [
        (vec!["--source", "web"], 2, "invalid IP address"),
        (vec!["--read", "a.pcap"], 2, "--source"),
        (vec!["--read", "/nowhere/a.pcap", "--source", SCANNER], 2, "/nowhere/a.pcap"),
        (vec!["--source", SCANNER, "--api", "here"], 2, "--api"),
        (vec!["--source", SCANNER, "--api", &closed], 1, "no sensor answers on"),
    ] {
        let output = explain(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    let help = explain(&["--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("Examples:"));
}
