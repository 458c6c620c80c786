//! The collector is killed in the middle of its work: what it acknowledged is stored, once.

use std::time::Duration;

use wire::records::RecordKind;

use crate::lab::Lab;
use crate::sensor::{Sensor, record_batch};

/// Records of one batch.
const BATCH: u64 = 50;

fn event(number: u64) -> String {
    let filler = "x".repeat((number % 97) as usize);
    format!(r#"{{"event_type":"flow","n":{number},"filler":"{filler}"}}"#)
}

/// Sends batch after batch from `first` on until the connection breaks. Returns what was acknowledged.
fn send_until_cut(sensor: &mut Sensor, first: u64) -> u64 {
    let mut next = first;
    loop {
        let events: Vec<_> = (next..next + BATCH).map(event).collect();
        let records: Vec<_> = events.iter().map(|json| (RecordKind::Flow, &**json)).collect();
        if sensor.exchange(&record_batch(next, &records)).is_err() {
            return sensor.acknowledged.0;
        }
        next += BATCH;
    }
}

#[test]
fn what_is_stored_over_many_kills_is_all_that_was_acknowledged_and_nothing_twice() {
    let lab = Lab::new();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut acknowledged = 0;
    for milliseconds in [40, 390, 120, 1250, 5, 260, 700, 180] {
        let collector = lab.start();
        let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
        let stored = sensor.hello.resume.map_or(0, |resume| resume.records.0);
        assert!(stored >= acknowledged, "{stored} of {acknowledged} acknowledged records");
        let sending = std::thread::spawn(move || send_until_cut(&mut sensor, stored + 1));
        std::thread::sleep(Duration::from_millis(milliseconds));
        collector.kill();
        acknowledged = sending.join().unwrap().max(acknowledged);
    }
    assert!(acknowledged > 20 * BATCH, "{acknowledged} records in all");
    let collector = lab.start();
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let stored = sensor.hello.resume.unwrap().records.0;
    assert!(stored >= acknowledged, "{stored} of {acknowledged} acknowledged records");
    sensor.send_records(stored + 1, &[(RecordKind::Flow, &event(stored + 1))]);
    sensor.wait_for_ack(stored + 1, 0);
    collector
        .wait_for_status("index that is complete", |status| status["store"]["index_behind"] == 0);
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/flows?order=oldest&limit=1000{cursor}");
        let answer: serde_json::Value = serde_json::from_str(&collector.get(&path).1).unwrap();
        found
            .extend(answer["items"].as_array().unwrap().iter().map(|it| it["n"].as_u64().unwrap()));
        match answer["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert!(found.iter().copied().eq(1..=stored + 1), "the index has not every record once");
    collector.stop();
    let events = lab.events();
    for (line, number) in events.lines().zip(1..) {
        assert_eq!(line, event(number));
    }
    assert_eq!(events.lines().count() as u64, stored + 1);
}
