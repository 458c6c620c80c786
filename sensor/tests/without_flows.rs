//! Whether flows are told is a matter of output, not of detection. Who turns off the table itself is told what is
//! not found.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::net::SocketAddr;

use perf::events::Events;
use perf::programs;
use scenarios::ordinary::Fate;
use scenarios::probing::{Pace, Technique, ports_of};
use scenarios::replayed::Capture;
use scenarios::{MS, SECOND, Stage, host};

const VICTIM: &str = "198.51.100.250";

/// Scans that nothing but the flows shows, by a source each, and one that shows without them.
fn scans() -> Stage {
    let mut stage = Stage::new(1);
    let server = SocketAddr::new(host(VICTIM, 1), 443);
    (0..20).for_each(|n| _ = stage.connection(n * SECOND, host("10.1.1.1", 0), server, 2));
    let contacts = ports_of(host(VICTIM, 0), 1..=50);
    let pace = Pace { at: 5 * SECOND, gap: 20 * MS };
    let by_ports = [Technique::Udp, Technique::Ack, Technique::Maimon, Technique::Syn];
    for (number, technique) in (0..).zip(by_ports) {
        let ends = (host("192.0.2.10", number), &contacts[..]);
        stage.scan("scan", technique, ends, pace, |_| Fate::Refused);
    }
    stage.protocol_scan(host("192.0.2.20", 0), host(VICTIM, 0), 0..50, pace, true);
    stage
}

/// Kinds and techniques of the alerts, in order.
fn found(events: &Events) -> Vec<(String, String)> {
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> = events
        .alerts()
        .into_iter()
        .map(|alert| (alert.kind, word(&alert.context["technique"])))
        .collect();
    found.sort();
    found
}

#[test]
fn scans_are_found_whether_flows_are_told_or_not() {
    let capture = Capture::of(&mut scans());
    let with = capture.events(2, "");
    let without = capture.events(2, "flows = false\n");
    assert_eq!(found(&with).len(), 5, "{:#?}", with.alerts());
    assert_eq!(found(&without), found(&with));
    let flows = |events: &Events| events.of_type("flow").len();
    assert!(flows(&with) > 200 && flows(&without) == 0, "{}, {}", flows(&with), flows(&without));
    let summaries = |event: &&&serde_json::Value| event["anomaly"]["event"] == "flows_summarised";
    assert_eq!(without.of_type("anomaly").iter().filter(summaries).count(), 0);
}

#[test]
fn who_has_no_table_of_flows_is_told_what_is_not_found() {
    let capture = Capture::of(&mut scans());
    let events = capture.events(1, "[flow]\nflows = 0\n");
    assert_eq!(found(&events), [("vertical".to_owned(), "SYN".to_owned())]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensor.toml");
    for (flows, is_said) in [(0, true), (1024, false)] {
        std::fs::write(&file, format!("[flow]\nflows = {flows}\n")).unwrap();
        let mut command = programs::sensor();
        command.arg("--config").arg(&file).arg("--read").arg(capture.path());
        let output = command.output().expect("the sensor can be started");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert_eq!(log.contains("no table of flows"), is_said, "{log}");
    }
}
