//! `check-interface` beside what ethtool and ip say of the same interfaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::process::Command;

use perf::lab::{Lab, Namespace};
use perf::{programs, tools};
use serde_json::Value;

/// Exit code and report.
fn check(namespace: &Namespace, interface: &str) -> (i32, BTreeMap<String, Value>) {
    let mut command = programs::sensor();
    command.args(["check-interface", interface, "--json", "--workers", "2"]);
    let output = namespace.wrap(&command).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["interface"], interface);
    let items = report["items"].as_array().unwrap();
    let items = items.iter().map(|one| (one["item"].as_str().unwrap().to_owned(), one.clone()));
    (output.status.code().unwrap(), items.collect())
}

/// What `ethtool SWITCH` says, as name and value of each line.
fn ethtool(namespace: &Namespace, switch: &str, interface: &str) -> BTreeMap<String, String> {
    let output = namespace.run("ethtool", &[switch, interface]);
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    // The last of two lines of one name counts: `ethtool -l` shows the most first, then what is.
    rows.map(|(name, value)| {
        let value = value.split_whitespace().next().unwrap_or_default();
        (name.trim().to_owned(), value.to_owned())
    })
    .collect()
}

#[test]
fn features_and_queues_agree_with_ethtool() {
    let Some(lab) = Lab::new() else { return };
    if !tools::require(&["ethtool"]) {
        return;
    }
    for interface in ["s0", "lo"] {
        let (_, items) = check(lab.sensor(), interface);
        let said = ethtool(lab.sensor(), "-k", interface);
        for (item, feature) in [
            ("gro", "generic-receive-offload"),
            ("lro", "large-receive-offload"),
            ("hw-gro", "rx-gro-hw"),
            ("rx-vlan-offload", "rx-vlan-offload"),
        ] {
            assert_eq!(items[item]["found"], said[feature].as_str(), "{interface} {item}");
        }
        assert_eq!(items["numa"]["verdict"], "good");
    }
    let queues: usize = ethtool(lab.sensor(), "-l", "s0")
        .iter()
        .filter(|(name, _)| ["RX", "Combined"].contains(&name.as_str()))
        .map(|(_, count)| count.parse().unwrap_or(0))
        .sum();
    let (_, items) = check(lab.sensor(), "s0");
    assert_eq!(items["queues"]["found"], format!("{queues} for 2 workers"));
    let driver = ethtool(lab.sensor(), "-i", "s0");
    assert_eq!(items["driver"]["found"], driver["driver"].as_str());
}

#[test]
fn the_remedy_of_merged_frames_works_and_the_exit_code_follows() {
    let Some(lab) = Lab::new() else { return };
    if !tools::require(&["ethtool"]) {
        return;
    }
    lab.sensor().run("ethtool", &["-K", "s0", "gro", "on"]);
    let (code, items) = check(lab.sensor(), "s0");
    assert_eq!((code, &items["gro"]["verdict"]), (1, &"warning".into()), "{items:#?}");
    let remedy = items["gro"]["remedy"].as_str().unwrap();
    assert_eq!(remedy, "ethtool -K s0 gro off");
    lab.sensor().run("sh", &["-c", remedy]);
    let (code, items) = check(lab.sensor(), "s0");
    assert_eq!((code, &items["gro"]["verdict"]), (0, &"good".into()), "{items:#?}");
}

#[test]
fn a_link_that_is_down_is_a_warning_until_its_remedy_was_run() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().ip("link set s0 down");
    let (code, items) = check(lab.sensor(), "s0");
    assert_eq!((code, &items["link"]["found"]), (1, &"down".into()));
    lab.sensor().run("sh", &["-c", items["link"]["remedy"].as_str().unwrap()]);
    let (code, items) = check(lab.sensor(), "s0");
    assert_eq!(code, 0, "{items:#?}");
    assert!(items["link"]["found"].as_str().unwrap().starts_with("up, 10000 Mbit/s, full"));
}

#[test]
fn it_changes_nothing_and_needs_no_privilege() {
    let Some(lab) = Lab::new() else { return };
    if !tools::require(&["setpriv"]) {
        return;
    }
    let state = || lab.sensor().run("ip", &["-d", "link", "show", "s0"]).stdout;
    let before = state();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    command.arg(programs::path("ringwatch-sensor")).args(["check-interface", "s0", "--json"]);
    let output = lab.sensor().wrap(&command).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code <= 1), "{output:?}");
    let items: Value = serde_json::from_slice(&output.stdout).unwrap();
    for item in items["items"].as_array().unwrap() {
        assert_ne!(item["verdict"], "unknown", "{item}");
    }
    assert_eq!(state(), before);
}

#[test]
fn an_interface_that_is_not_there_is_bad_usage() {
    let Some(lab) = Lab::new() else { return };
    let mut command = programs::sensor();
    command.args(["check-interface", "eth77"]);
    let output = lab.sensor().wrap(&command).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("eth77") && said.contains("s0"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_log_of_a_starting_sensor_says_what_is_not_good() {
    let Some(lab) = Lab::new() else { return };
    if !tools::require(&["ethtool"]) {
        return;
    }
    lab.sensor().run("ethtool", &["-K", "s0", "gro", "on"]);
    let mut sensor =
        perf::sensor::Sensor::start(lab.sensor(), "s0", 1, perf::sensor::Sensor::SMALL);
    let said = sensor.process().stderr();
    let lines: Vec<_> = said.lines().filter(|line| line.contains("set up")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains("ethtool -K s0 gro off"), "{said}");
    sensor.stop(nix::sys::signal::Signal::SIGINT);
}
