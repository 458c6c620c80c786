//! Several event loops: what holds for one of them holds for all together.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wire::records::RecordKind;

use crate::lab::{Collector, Issued, Lab};
use crate::sensor::Sensor;

/// A collector with so many event loops, and `more` in its first section.
fn start(lab: &Lab, loops: usize, more: &str) -> Collector {
    lab.configure_listen(&format!("loops = {loops}\n{more}"), "segment_age = \"24h\"");
    lab.start()
}

/// Connections of each event loop, by number.
fn connections(collector: &Collector) -> Vec<u64> {
    let metrics = collector.get("/metrics").1;
    let lines = metrics.lines().filter(|line| line.starts_with("ringwatch_loop_connections{"));
    let mut counts: Vec<(String, u64)> = lines
        .map(|line| {
            let (label, count) = line.split_once("} ").unwrap();
            (label.to_owned(), count.parse().unwrap())
        })
        .collect();
    counts.sort();
    counts.into_iter().map(|(_, count)| count).collect()
}

fn join(lab: &Lab, collector: &Collector, own: &Issued, name: &str) -> Sensor {
    Sensor::join(&collector.sensors, &lab.authority.certificate(), own, name, 5)
}

#[test]
fn sessions_are_spread_evenly_over_the_event_loops_and_all_are_served() {
    let lab = Lab::new();
    let collector = start(&lab, 3, "");
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut sensors: Vec<_> = names
        .iter()
        .map(|name| join(&lab, &collector, &lab.authority.sensor(name), name))
        .collect();
    assert_eq!(connections(&collector), [2, 2, 2]);
    for sensor in &mut sensors {
        sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
        sensor.send_alerts(1, &[(RecordKind::Alert, "{}")]);
        sensor.send_frames(1, &[vec![1; 60]]);
    }
    for sensor in &mut sensors {
        sensor.wait_for_ack(1, 1);
        sensor.wait_for_alert(1);
    }
    // Two of the same event loop go, two others come: they go where there is room.
    sensors.remove(3).leave();
    sensors.remove(0).leave();
    collector.wait_for_status("two gone", |status| {
        let sensors = status["sensors"].as_array().unwrap();
        sensors.iter().filter(|sensor| sensor["connected"] == true).count() == 4
    });
    let _newer = ["g", "h"].map(|name| join(&lab, &collector, &lab.authority.sensor(name), name));
    assert_eq!(connections(&collector), [2, 2, 2]);
    let metrics = collector.get("/metrics").1;
    for number in 0..3 {
        for name in ["loop_bytes", "loop_busy_seconds"] {
            let begin = format!("ringwatch_{name}_total{{event_loop=\"{number}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&begin)).unwrap();
            assert!(line.parse::<f64>().unwrap() > 0.0, "{begin}{line}");
        }
    }
}

#[test]
fn a_sensor_that_comes_again_at_another_event_loop_ends_its_older_session() {
    let lab = Lab::new();
    let collector = start(&lab, 2, "");
    let own = lab.authority.sensor("a");
    let mut older = join(&lab, &collector, &own, "a");
    older.send_records(1, &[(RecordKind::Flow, "{}")]);
    older.wait_for_ack(1, 0);
    assert_eq!(connections(&collector), [1, 0]);
    let mut newer = join(&lab, &collector, &own, "a");
    older.read_to_end();
    assert_eq!(connections(&collector), [0, 1]);
    assert_eq!(newer.hello.resume.unwrap().records.0, 1);
    newer.send_records(2, &[(RecordKind::Flow, "{}")]);
    newer.wait_for_ack(2, 0);
    assert_eq!(newer.counts, (1, 0), "what was stored of this connection");
    let line = collector.wait_for_line("sensor disconnected");
    assert!(line.contains("replaced by a newer connection"), "{line}");
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_replaced_connections_total 1"), "{metrics}");
    assert_eq!(collector.status()["sensors"][0]["connected"], true);
}

#[test]
fn records_are_stored_once_and_in_order_however_often_their_sensor_changes_its_event_loop() {
    let lab = Lab::new();
    let collector = start(&lab, 3, "");
    let own = lab.authority.sensor("a");
    let mut sent = 0;
    let mut older = Vec::new();
    // Nobody waits for an acknowledgement or says goodbye: each session finds the one before it alive,
    // with batches on their way to the store.
    for _ in 0..60 {
        let mut sensor = join(&lab, &collector, &own, "a");
        let stored = sensor.hello.resume.map_or(0, |resume| resume.records.0);
        assert!(stored <= sent, "{stored} of {sent}");
        for number in stored + 1..=stored + 40 {
            let json = format!("{{\"n\":{number}}}");
            sensor.send_records(number, &[(RecordKind::Flow, &json)]);
            sent = sent.max(number);
        }
        older.push(sensor);
    }
    let mut last = older.pop().unwrap();
    last.wait_for_ack(sent, 0);
    let expected: String = (1..=sent).map(|number| format!("{{\"n\":{number}}}\n")).collect();
    assert!(sent > 100, "hardly anything was under way: {sent}");
    assert_eq!(lab.events_of(&collector), expected);
    assert_eq!(connections(&collector).iter().sum::<u64>(), 1);
    let sensor = &collector.status()["sensors"][0];
    assert_eq!(sensor["missing"], 0, "{sensor}");
}

#[test]
fn to_come_again_at_another_event_loop_is_no_way_to_bring_more() {
    let lab = Lab::new();
    let collector = start(&lab, 2, "sensor_records_per_second = 50\n");
    let own = lab.authority.sensor("a");
    let mut sensor = join(&lab, &collector, &own, "a");
    let batch = [(RecordKind::Flow, "{}"); 200];
    sensor.send_records(1, &batch);
    sensor.wait_for_ack(200, 0);
    let start = Instant::now();
    let mut again = join(&lab, &collector, &own, "a");
    sensor.read_to_end();
    assert_eq!(connections(&collector), [0, 1]);
    again.send_records(201, &batch[..1]);
    again.wait_for_ack(201, 0);
    assert!(start.elapsed() > Duration::from_millis(2500), "{:?}", start.elapsed());
}

#[test]
fn certificates_that_expire_end_the_sessions_of_every_event_loop() {
    let lab = Lab::new();
    let collector = start(&lab, 3, "");
    let mut sensors = ["a", "b", "c"].map(|name| {
        let own = lab.authority.sensor_until(name, 4);
        join(&lab, &collector, &own, name)
    });
    assert_eq!(connections(&collector), [1, 1, 1]);
    for sensor in &mut sensors {
        sensor.read_to_end();
        assert_eq!(sensor.goodbye.as_deref(), Some("certificate no longer trusted"));
    }
    collector.wait_for_status("three cut off", |status| status["refused"]["distrusted"] == 3);
    assert_eq!(connections(&collector), [0, 0, 0]);
}

#[test]
fn a_stop_stores_and_acknowledges_what_every_event_loop_has_taken() {
    let lab = Lab::new();
    let mut collector = start(&lab, 3, "");
    let mut sensors =
        ["a", "b", "c"].map(|name| join(&lab, &collector, &lab.authority.sensor(name), name));
    for sensor in &mut sensors {
        for number in 1..=50 {
            sensor.send_records(number, &[(RecordKind::Flow, "{}")]);
        }
    }
    // Something of each was taken, and much of it is not on the disk yet.
    collector.wait_for_status("all three", |status| {
        let sensors = status["sensors"].as_array().unwrap();
        sensors.iter().all(|sensor| sensor["records"].as_u64().unwrap() > 0)
    });
    collector.signal(Signal::SIGTERM);
    let mut acknowledged = 0;
    for sensor in &mut sensors {
        sensor.read_to_end();
        assert_eq!(sensor.goodbye.as_deref(), Some("shutdown"));
        acknowledged += sensor.acknowledged.0;
    }
    assert_eq!(collector.wait().code(), Some(0), "{}", collector.log());
    let stored = lab.events().lines().count() as u64;
    assert_eq!(stored, acknowledged, "stored and acknowledged are the same");
    assert!(acknowledged >= 3, "{acknowledged}");
}
