//! Every line that the sensor writes is Suricata EVE: it validates against the schema of EVE with exactly
//! one more property at the top, `ringwatch`.
//!
//! Schema and captures are found by `RINGWATCH_CORPUS`, or else beside the checkout; without them there
//! is nothing to compare with, and the tests say so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use jsonschema::Validator;
use nix::sys::signal::Signal;
use perf::events::Events;
use perf::frames::{self, DOT1AD, DOT1Q, SYN};
use perf::inject::Injector;
use perf::lab::Lab;
use perf::programs;
use perf::sensor::Sensor;
use serde_json::{Value, json};

/// The schema, with `ringwatch` in it.
fn validator() -> Option<Validator> {
    let path = corpus::folder()?.join("eve/schema.json");
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(schema["additionalProperties"], false, "the schema of EVE is closed");
    assert!(schema["properties"]["ringwatch"].is_null());
    schema["properties"]["ringwatch"] = json!({
        "type": "object",
        "required": ["event_id", "sensor"],
        "properties": { "event_id": { "type": "string" }, "sensor": { "type": "string" } },
    });
    Some(jsonschema::validator_for(&schema).unwrap())
}

/// Kinds of events, and how many of each were found valid.
type Seen = BTreeMap<String, u64>;

#[track_caller]
fn check(validator: &Validator, events: &Events, origin: &str, seen: &mut Seen) {
    let mut ids = std::collections::BTreeSet::new();
    for event in events.all() {
        let errors: Vec<_> = validator.iter_errors(event).map(|one| one.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{origin}: {event:#}");
        assert!(ids.insert(event["ringwatch"]["event_id"].to_string()), "{origin}: {event:#}");
        let event_type = event["event_type"].as_str().unwrap();
        let detail = match event_type {
            "alert" => format!(".{}", event["alert"]["context"]["kind"].as_str().unwrap()),
            "flow" => format!(".{}", event["flow"]["reason"].as_str().unwrap_or("new")),
            "anomaly" => format!(".{}", event["anomaly"]["event"].as_str().unwrap()),
            _ => String::new(),
        };
        *seen.entry(format!("{event_type}{detail}")).or_default() += 1;
    }
}

#[test]
fn every_line_of_every_capture_is_eve() {
    let Some(validator) = validator() else { return };
    let (captures, seen) = (corpus::captures(), Mutex::new(Seen::new()));
    let next = Mutex::new(captures.iter());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let path = next.lock().unwrap().next();
                    let Some(path) = path else { break };
                    let output = programs::sensor().arg("--read").arg(path).output().unwrap();
                    let events = Events::parse(&String::from_utf8(output.stdout).unwrap());
                    let origin = path.display().to_string();
                    check(&validator, &events, &origin, &mut seen.lock().unwrap());
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    for kind in ["flow.new", "flow.shutdown", "alert.vertical", "alert.horizontal", "stats"] {
        assert!(seen.contains_key(kind), "no {kind} in {seen:?}");
    }
    assert!(seen["stats"] >= captures.len() as u64);
}

#[test]
fn every_line_of_a_live_sensor_is_eve() {
    let Some(validator) = validator() else { return };
    let Some(lab) = Lab::new() else { return };
    let limit = "[events]\nconnections_per_second = 50\n";
    let configuration = format!("{}{limit}", Sensor::SMALL);
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
    let mut injector = Injector::within(lab.generator(), "g0");
    for (scanner, tags) in [
        ("198.18.0.1", &[][..]),
        ("2001:db8::1", &[(DOT1Q, 7)]),
        ("198.18.0.3", &[(DOT1AD, 7), (DOT1Q, 8)]),
    ] {
        for port in 1..=30 {
            let host = if scanner.contains(':') { "[2001:db8::2]" } else { "198.19.0.2" };
            let source = std::net::SocketAddr::new(scanner.parse().unwrap(), 4000 + port);
            let target = format!("{host}:{port}").parse().unwrap();
            let frame = frames::tcp(source, target, SYN, b"");
            injector.send(&frames::tagged(&frame, tags)).unwrap();
        }
    }
    thread::sleep(Duration::from_millis(4000));
    lab.sensor().ip("link set s0 down");
    sensor.wait_for("link_down", |events| !events.anomalies("link_down").is_empty());
    lab.sensor().ip("link set s0 up");
    sensor.wait_for("link_up", |events| !events.anomalies("link_up").is_empty());
    let mut seen = Seen::new();
    check(&validator, &sensor.stop(Signal::SIGINT), "live", &mut seen);
    let anomalies = ["anomaly.link_down", "anomaly.link_up"];
    let kinds = ["flow.new", "flow.shutdown", "alert.vertical", "stats"];
    for kind in kinds.into_iter().chain(anomalies).chain(["anomaly.connections_summarised"]) {
        assert!(seen.contains_key(kind), "no {kind} in {seen:?}");
    }
}

#[test]
fn a_property_that_eve_does_not_know_is_refused() {
    let Some(validator) = validator() else { return };
    let ours = json!({ "event_id": "a-1", "sensor": "a" });
    let time = "2026-11-21T08:00:00.123456+0000";
    let mut event = json!({ "timestamp": time, "event_type": "flow", "ringwatch": ours });
    assert!(validator.is_valid(&event));
    event["colour"] = json!("blue");
    assert!(!validator.is_valid(&event));
}
