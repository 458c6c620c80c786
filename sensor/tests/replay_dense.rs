//! `--read FILE` where a lot happens in one tick: much data, tiny frames, floods, limits.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use perf::events::Events;
use perf::frames::{self, ACK, SYN};
use perf::pcap::{CaptureFile, Format};
use perf::programs;
use tempfile::TempDir;

const BEGIN: u64 = 1_700_000_000_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// Runs the sensor over a capture; a run that hangs is ended and fails the test.
#[track_caller]
fn events_of(capture: &CaptureFile, arguments: &[&str]) -> Events {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("capture");
    std::fs::write(&path, capture.bytes()).unwrap();
    let output = std::fs::File::create(folder.path().join("out")).unwrap();
    let mut command = programs::sensor();
    let mut child =
        command.arg("--read").arg(&path).args(arguments).stdout(output).spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("still running after a minute");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(0));
    let events = Events::parse(&std::fs::read_to_string(folder.path().join("out")).unwrap());
    let _ = events.ledger();
    events
}

fn address(number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(number).into(), port)
}

#[test]
fn a_file_with_much_data_in_every_tick_is_read_to_its_end() {
    let payload = vec![0; 60_000];
    let mut capture = CaptureFile::new(Format::USUAL);
    let frame = frames::udp(address(0x0a00_0001, 1), address(0x0a00_0002, 2), &payload);
    for number in 0..2000 {
        // 160 frames, 9.6 MB, in each tick of 250 ms.
        capture.add(BEGIN + number * 250 * MILLISECOND / 160, &frame);
    }
    for workers in ["1", "2"] {
        let events = events_of(&capture, &["--workers", workers]);
        assert_eq!(events.ledger().interfaces[0].analysed, 2000);
    }
}

#[test]
fn answers_that_found_no_room_are_not_taken_for_silence() {
    // A client opens 100 good connections. Before the answers come, a flood of random sources fills
    // the worker's table within one tick, so that answers to unknown attempts are given up.
    let (client, server) = (0x0a00_0001, 0xc633_6407);
    let mut capture = CaptureFile::new(Format::USUAL);
    let end = |host: u32| address(server + host, 443);
    for host in 0..100 {
        let syn = frames::tcp(address(client, 40_000), end(host), SYN, b"");
        capture.add(BEGIN + u64::from(host) * 1000, &syn);
    }
    for number in 0..150_000_u32 {
        let source = address(0x2000_0000 + number.wrapping_mul(2_654_435_761) % 0x4000_0000, 1024);
        let syn = frames::tcp(source, address(0xc612_0001, 80), SYN, b"");
        capture.add(BEGIN + 300 * MILLISECOND + u64::from(number) * 1000, &syn);
    }
    for host in 0..100 {
        let answer = frames::tcp(end(host), address(client, 40_000), SYN | ACK, b"");
        capture.add(BEGIN + 470 * MILLISECOND + u64::from(host) * 1000, &answer);
    }
    for workers in ["1", "2", "4"] {
        let arguments = ["--workers", workers];
        let of_the_client: Vec<_> = events_of(&capture, &arguments)
            .alerts()
            .into_iter()
            .filter(|alert| format!("{alert:?}").contains("10.0.0.1"))
            .collect();
        assert!(of_the_client.is_empty(), "{workers} workers: {of_the_client:#?}");
    }
}

#[test]
fn connections_over_the_limit_are_summarised_whatever_the_number_of_workers() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("sensor.toml");
    std::fs::write(&config, "[events]\nfile = '-'\nconnections_per_second = 100\n").unwrap();
    let config = config.to_str().unwrap();
    let mut capture = CaptureFile::new(Format::USUAL);
    for number in 0..3000_u32 {
        let syn = frames::tcp(address(0x0a01_0000 + number, 9), address(1, 80), SYN, b"");
        capture.add(BEGIN + u64::from(number) * 1000, &syn);
    }
    for workers in ["1", "2", "4"] {
        let events = events_of(&capture, &["--config", config, "--workers", workers]);
        let all = events.all();
        let flows = events.connections().len();
        let told: u64 =
            all.iter().filter_map(|event| event["ringwatch"]["connections"].as_u64()).sum();
        assert_eq!((flows, told), (100, 2900), "{workers} workers");
    }
}
