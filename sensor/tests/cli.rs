//! What `ringwatch-sensor` says and how it ends when something is wrong with what it is given.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::Command;

use perf::lab::Lab;
use perf::{programs, tools};
use tempfile::TempDir;

/// How a run ended: exit code, standard output, standard error.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn sensor(arguments: &[&str]) -> Ended {
    let mut command = programs::sensor();
    command.args(arguments);
    run(command)
}

/// A configuration file, and the folder that it goes with.
fn configuration(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("sensor.toml");
    std::fs::write(&file, text).unwrap();
    (folder, file)
}

#[track_caller]
fn assert_said(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
    for word in words {
        assert!(ended.stderr.contains(word), "{word:?} is not said:\n{}", ended.stderr);
    }
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let ended = sensor(&["--help"]);
    assert_eq!(ended.code, Some(0));
    for word in ["Examples:", "ringwatch-sensor -i eth0", "--read capture.pcapng", "Exit codes:"] {
        assert!(ended.stdout.contains(word), "{word:?} is not in:\n{}", ended.stdout);
    }
}

#[test]
fn wrong_arguments_are_bad_usage() {
    assert_said(&sensor(&["--intreface", "lo"]), 2, &["--intreface", "--interface"]);
    assert_said(&sensor(&["--read", "a.pcap", "-i", "lo"]), 2, &["--interface"]);
    assert_said(&sensor(&["-i", "lo", "--workers", "0"]), 2, &["--workers"]);
}

#[test]
fn an_unknown_interface_is_bad_usage_and_those_that_exist_are_named() {
    let Some(lab) = Lab::new() else { return };
    let mut command = programs::sensor();
    command.args(["-i", "eth77"]);
    let ended = run(lab.sensor().wrap(&command));
    assert_said(&ended, 2, &["eth77", "s0", "lo"]);
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named_with_the_remedy() {
    let Some(lab) = Lab::new() else { return };
    let text = "[capture]\nring_mib = 16\nreserve_sockets = 500\n[api]\nlisten = ''\n";
    let (_folder, file) = configuration(text);
    let mut command = Command::new("sh");
    let program = programs::path("ringwatch-sensor");
    let script =
        format!("ulimit -n 100; exec {} -i s0 --config {}", program.display(), file.display());
    command.args(["-c", &script]);
    let ended = run(lab.sensor().wrap(&command));
    assert_said(&ended, 1, &["limit of open files", "LimitNOFILE", "capture.reserve_sockets"]);
}

#[test]
fn no_interface_is_bad_usage_and_those_that_exist_are_named() {
    let Some(lab) = Lab::new() else { return };
    let ended = run(lab.sensor().wrap(&programs::sensor()));
    assert_said(&ended, 2, &["-i IFACE", "s0", "lo"]);
}

/// Text, line of the fault, and what must be said of it.
const BAD_CONFIGURATIONS: &[(&str, u32, &[&str])] = &[
    ("[capture]\nring_mb = 64\n", 2, &["ring_mb", "[capture]", "did you mean `ring_mib`"]),
    ("\n\n[detct]\n", 3, &["detct", "did you mean `detect`"]),
    ("[capture]\nretire_ms = 0\n", 2, &["capture.retire_ms = 0", "1 to 1000"]),
    ("[detect]\n\nwindow = 'long'\n", 3, &["detect.window = long", "60s"]),
    ("[detect]\nprofile = 'loud'\n", 2, &["detect.profile = loud", "default, strict"]),
    ("[detect]\nallow = ['10.0.0.0/8', '10.0.0.0/40']\n", 2, &["detect.allow", "10.0.0.0/40"]),
    ("[export]\nframes = 'all'\n", 2, &["export.frames = all", "uplink.collectors"]),
    ("[api]\nlisten = '0.0.0.0:8475'\n", 2, &["api.listen = 0.0.0.0:8475", "loopback"]),
    ("[capture]\ninterface = 'lo\n", 2, &["capture.interface"]),
];

#[test]
fn a_bad_configuration_is_named_with_file_line_key_and_value_before_anything_starts() {
    for (text, line, words) in BAD_CONFIGURATIONS {
        let (_folder, file) = configuration(text);
        let file = file.to_str().unwrap();
        let checked = sensor(&["check-config", "--config", file]);
        assert_said(&checked, 2, words);
        assert_said(&checked, 2, &[&format!("{file}:{line}:")]);
        assert_eq!(checked.stdout, "", "{text}");
        let started = sensor(&["--config", file, "-i", "lo"]);
        assert_eq!((started.code, started.stderr), (checked.code, checked.stderr), "{text}");
    }
}

#[test]
fn check_config_names_what_cannot_be_used_beside_the_file() {
    let (folder, file) = configuration("");
    let missing = folder.path().join("nowhere.toml");
    let ended = sensor(&["check-config", "--config", missing.to_str().unwrap()]);
    assert_said(&ended, 2, &["nowhere.toml", "No such file"]);
    let text = "[uplink]\ncollectors = ['ids']\nca = 'a'\ncertificate = 'no-cert.pem'\nkey = 'c'\n";
    std::fs::write(&file, text).unwrap();
    let ended = sensor(&["check-config", "--config", file.to_str().unwrap()]);
    assert_said(&ended, 2, &["no-cert.pem"]);
}

#[test]
fn check_config_accepts_a_good_file_without_interface_or_privilege() {
    let (_folder, file) = configuration("[capture]\ninterface = 'eth77'\nworkers = 2\n");
    let ended = sensor(&["check-config", "--config", file.to_str().unwrap()]);
    assert_said(&ended, 0, &[]);
    assert!(ended.stdout.contains("is good"), "{}", ended.stdout);
}

#[test]
fn without_cap_net_raw_the_capability_and_its_remedy_are_named() {
    if !tools::require_root() || !tools::require(&["setpriv"]) {
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"]);
    command.arg(programs::path("ringwatch-sensor")).args(["-i", "lo"]);
    let ended = run(command);
    let program = programs::path("ringwatch-sensor");
    let remedy = format!("setcap cap_net_raw=ep {}", program.display());
    assert_said(&ended, 3, &["CAP_NET_RAW", &remedy]);
    assert_eq!(ended.stdout, "");
}

#[test]
fn what_cannot_be_read_as_a_capture_is_bad_usage() {
    let (_folder, file) = configuration("this is text\nand no capture\n");
    let file = file.to_str().unwrap();
    let ended = sensor(&["--read", file]);
    assert_said(&ended, 2, &[file]);
    assert_eq!(ended.stdout, "");
    assert_said(&sensor(&["--read", "/nowhere/a.pcap"]), 2, &["/nowhere/a.pcap", "No such file"]);
}

#[test]
fn an_events_file_that_cannot_be_opened_is_named() {
    let (folder, _file) = configuration("");
    let events = folder.path().join("missing/eve.json");
    let capture = folder.path().join("empty.pcap");
    std::fs::write(&capture, perf::pcap::CaptureFile::new(perf::pcap::Format::USUAL).bytes())
        .unwrap();
    let read = ["--read", capture.to_str().unwrap(), "--events", events.to_str().unwrap()];
    assert_said(&sensor(&read), 1, &["missing/eve.json", "No such file"]);
}
