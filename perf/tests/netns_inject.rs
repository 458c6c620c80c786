//! The program `ringwatch-inject` in a namespace.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use perf::frames;
use perf::lab::Lab;
use perf::pcap::{CaptureFile, Format};
use perf::process::Process;

/// Runs the program in the generator's namespace; returns its exit code and what it printed.
fn inject(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch-inject"));
    command.args(arguments);
    let mut child = lab.generator().spawn(&command);
    let status = child.wait(Duration::from_secs(20));
    (status.code(), child.stdout() + &child.stderr())
}

fn received(lab: &Lab) -> u64 {
    let output = lab.sensor().run("cat", &["/sys/class/net/s0/statistics/rx_packets"]);
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn generated_frames_and_files_reach_the_other_side() {
    let Some(lab) = Lab::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("two.pcap");
    let frame = frames::ethernet(frames::ARP, &[0; 46]);
    let capture = CaptureFile::of(Format::USUAL, [(0, &frame), (1, &frame)]);
    fs::write(&file, capture.bytes()).unwrap();
    let file = file.to_string_lossy();
    let runs: [(&[&str], u64); 4] = [
        (&["-i", "g0", "syn", "--count", "300", "--ports", "100"], 300),
        (&["-i", "g0", "udp", "--count", "70", "--sources", "7", "--rate", "10000"], 70),
        (&["-i", "g0", "udp", "--count", "9", "--size", "512", "--vlan", "8100:20"], 9),
        (&["-i", "g0", "file", &file, "--repeat", "5"], 10),
    ];
    for (arguments, count) in runs {
        let before = received(&lab);
        let (code, output) = inject(&lab, arguments);
        assert_eq!(code, Some(0), "{output}");
        assert!(output.contains(&format!("\"frames\":{count},")), "{output}");
        let arrived = received(&lab) - before;
        assert!((count..count + 20).contains(&arrived), "{arrived} of {count}: {arguments:?}");
    }
}

#[test]
fn bad_use_and_unknown_interface_are_told_apart() {
    let Some(lab) = Lab::new() else { return };
    let (code, output) = inject(&lab, &["-i", "nosuch0", "syn"]);
    assert_eq!(code, Some(1));
    assert!(output.contains("nosuch0"), "{output}");
    let (code, output) = inject(&lab, &["-i", "g0", "udp", "--vlan", "eight"]);
    assert_eq!(code, Some(2));
    assert!(output.contains("PROTOCOL:CONTROL"), "{output}");
    let (code, output) = inject(&lab, &["-i", "g0", "file", "/dev/null"]);
    assert_eq!(code, Some(1));
    assert!(output.contains("neither a pcap nor a pcapng file"), "{output}");
}

#[test]
fn help_has_examples() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch-inject"));
    command.arg("--help");
    let mut child = Process::spawn(command);
    assert!(child.wait(Duration::from_secs(5)).success());
    assert!(child.stdout().contains("ringwatch-inject -i g0 syn"), "{}", child.stdout());
}
