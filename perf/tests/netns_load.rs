//! The program `ringwatch-load` in a namespace.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use perf::frames;
use perf::lab::{Lab, Namespace};
use perf::pcap::{self, CaptureFile, Format};
use perf::process::Process;
use perf::tools;
use serde_json::Value;
use tempfile::TempDir;

/// More than the kernel has memory for at once, so that it uses the same again.
const COUNT: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

fn program(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch-load"));
    command.args(arguments.split_whitespace());
    command
}

/// Runs the program in a namespace; returns its exit code and what it printed.
fn load(namespace: &Namespace, arguments: &str) -> (Option<i32>, String) {
    let mut child = namespace.spawn(&program(arguments));
    let status = child.wait(PATIENCE);
    (status.code(), child.stdout() + &child.stderr())
}

/// The same for a run that has to succeed; its report.
fn report(namespace: &Namespace, arguments: &str) -> Value {
    let (code, output) = load(namespace, arguments);
    assert_eq!(code, Some(0), "{arguments}: {output}");
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

fn received(lab: &Lab) -> u64 {
    let output = lab.sensor().run("cat", &["/sys/class/net/s0/statistics/rx_packets"]);
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// tcpdump on `s0`, which takes frames with the mark only.
struct Marked {
    tcpdump: Process,
    folder: TempDir,
}

impl Marked {
    const MARK: &str = "02:77:00:00:00:01";

    fn start(lab: &Lab, count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("tcpdump");
        command.args(["-ni", "s0", "-B", "16384", "-Z", "root", "-c", &count.to_string(), "-w"]);
        command.arg(folder.path().join("marked.pcap")).args(["ether", "src", Self::MARK]);
        let mut tcpdump = lab.sensor().spawn(&command);
        tcpdump.wait_for_line("listening on s0", PATIENCE);
        Self { tcpdump, folder }
    }

    /// The file, as soon as all frames are in it.
    fn file(mut self) -> Vec<u8> {
        assert!(self.tcpdump.wait(PATIENCE).success(), "{}", self.tcpdump.describe());
        fs::read(self.folder.path().join("marked.pcap")).unwrap()
    }
}

#[test]
fn frames_of_a_blast_are_exactly_those_described() {
    let Some(lab) = Lab::new().filter(|_| tools::require(&["tcpdump"])) else { return };
    for (words, flows) in [
        ("--kind syn --sources 16 --target-ports 16", 200),
        ("--kind udp --sources 16 --source-ports 16 --size 300", 100),
        ("--kind ack --source fd00::1 --target fd00::2 --targets 16 --target-ports 16", 256),
        ("--kind icmp --source-ports 256", 256),
        ("--kind udp --vlan 88a8:7 --vlan 8100:20 --sources 256", 256),
    ] {
        let marked = Marked::start(&lab, COUNT);
        let words = format!("--order sequential --flows {flows} --mac {} {words}", Marked::MARK);
        let report = report(lab.sensor(), &format!("blast -i s0 --count {COUNT} {words}"));
        assert_eq!(report["frames"], COUNT, "{report}");
        let captured = marked.file();
        let frames: Vec<_> =
            pcap::packets(&captured).unwrap().iter().map(|packet| packet.frame).collect();

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("same.pcap");
        let written = program(&format!("pcap {} --count {COUNT} {words}", file.display())).output();
        assert!(written.unwrap().status.success());
        let bytes = fs::read(file).unwrap();
        let expected = pcap::packets(&bytes).unwrap();
        assert_eq!(frames.len(), expected.len());
        for (frame, expected) in frames.iter().zip(&expected) {
            assert_eq!(without_checksums(frame), without_checksums(expected.frame), "{words}");
        }
        let different: HashSet<_> = frames.iter().collect();
        assert_eq!(different.len(), flows, "{words}");
    }
}

/// The kernel makes every frame out of the first: checksums stay those of the first.
fn without_checksums(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let tags = if frame[12..14] == [0x88, 0xa8] { 8 } else { 0 };
    let (transport, protocol) = match frame[12 + tags..14 + tags] {
        [0x08, 0x00] => {
            frame[24 + tags..26 + tags].fill(0);
            (34 + tags, frame[23 + tags])
        }
        _ => (54, frame[20]),
    };
    let checksum = transport
        + match protocol {
            frames::TCP => 16,
            frames::UDP => 6,
            _ => 2,
        };
    frame[checksum..checksum + 2].fill(0);
    frame
}

#[test]
fn a_blast_keeps_to_its_rate_and_its_time() {
    let Some(lab) = Lab::new() else { return };
    let paced = report(lab.sensor(), "blast -i s0 --kind udp --count 2000 --rate 1000");
    assert_eq!(paced["frames"], 2000, "{paced}");
    assert!(paced["seconds"].as_f64().unwrap() >= 1.99, "{paced}");
    let timed = report(lab.sensor(), "blast -i s0 --kind udp --seconds 1 --rate 10000");
    assert!(timed["frames"].as_u64().unwrap() <= 10_000, "{timed}");
    assert!((0.99..10.0).contains(&timed["seconds"].as_f64().unwrap()), "{timed}");
    let free = report(lab.sensor(), "blast -i s0 --kind udp --seconds 1");
    assert!((0.99..10.0).contains(&free["seconds"].as_f64().unwrap()), "{free}");
}

#[test]
fn frames_and_files_sent_through_a_raw_socket_reach_the_other_side() {
    let Some(lab) = Lab::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("three.pcap");
    let frame = frames::ethernet(frames::ARP, &[0; 46]);
    let long = frames::ethernet(frames::ARP, &[0; 1600]);
    let times = [0, 100_000_000, 200_000_000];
    let capture = CaptureFile::of(Format::USUAL, times.into_iter().zip([&frame, &long, &frame]));
    fs::write(&file, capture.bytes()).unwrap();
    let file = file.display();
    for (arguments, frames, refused, least_seconds) in [
        (
            "blast -i g0 --raw --count 300 --target-ports 128 --order sequential".to_owned(),
            300,
            0,
            0.0,
        ),
        (
            "blast -i g0 --raw --kind udp --count 70 --sources 8 --rate 10000".to_owned(),
            70,
            0,
            0.006,
        ),
        ("blast -i g0 --raw --count 9 --size 512 --vlan 8100:20".to_owned(), 9, 0, 0.0),
        ("blast -i g0 --raw --count 9 --size 1600".to_owned(), 0, 9, 0.0),
        (format!("replay -i g0 {file} --speed 10 --loop 3"), 6, 3, 0.079),
        (format!("replay -i g0 {file} --speed max --loop 5"), 10, 5, 0.0),
    ] {
        let before = received(&lab);
        let report = report(lab.generator(), &arguments);
        assert_eq!(report["frames"], frames, "{arguments}: {report}");
        assert_eq!(report["refused"], refused, "{arguments}: {report}");
        assert!(report["seconds"].as_f64().unwrap() >= least_seconds, "{report}");
        let arrived = received(&lab) - before;
        assert!((frames..frames + 20).contains(&arrived), "{arrived} of {frames}: {arguments}");
    }
}

#[test]
fn a_capture_file_has_the_frames_that_fit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.pcap");
    let arguments = format!("pcap {} --bytes 100000 --kind udp --size 64", file.display());
    let output = program(&arguments).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = fs::read(file).unwrap();
    let packets = pcap::packets(&bytes).unwrap();
    assert_eq!(packets.len(), (100_000 - 24) / (16 + 64));
    assert_eq!(report["frames"], packets.len());
    assert_eq!(report["bytes"], bytes.len());
    assert_eq!(packets[1].time - packets[0].time, 1000);
}

#[test]
fn bad_use_and_unknown_interface_are_told_apart() {
    let Some(lab) = Lab::new() else { return };
    for (arguments, code, said) in [
        ("blast -i nosuch0", 1, "nosuch0"),
        ("blast -i nosuch0 --raw", 1, "nosuch0"),
        ("blast -i s0 --size 20", 1, "no room"),
        ("blast -i s0 --vlan eight", 2, "PROTOCOL:CONTROL"),
        ("blast -i s0 --sources 3", 2, "power of two"),
        ("replay -i s0 /dev/null", 1, "neither a pcap nor a pcapng file"),
        ("replay -i s0 /dev/null --speed 0", 2, "above 0"),
        ("pcap /dev/null", 2, "--count"),
    ] {
        let (exit, output) = load(lab.sensor(), arguments);
        assert_eq!(exit, Some(code), "{arguments}: {output}");
        assert!(output.contains(said), "{arguments}: {output}");
    }
}

#[test]
fn help_has_examples() {
    let mut child = Process::spawn(program("--help"));
    assert!(child.wait(PATIENCE).success());
    assert!(child.stdout().contains("ringwatch-load blast -i s0"), "{}", child.stdout());
}
