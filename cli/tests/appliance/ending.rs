//! The end: what is under way is delivered, and what cannot be delivered is counted.

use std::time::Instant;

use perf::inject::Injector;
use serde_json::Value;

use crate::site::{PATIENCE, Settings, Site, Stored, wait_until};
use crate::traffic;

#[test]
fn what_came_just_before_the_end_is_stored_and_the_last_word_is_the_ledger() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    traffic::connection(&site.lab, 0, 7001);
    let frames = traffic::conversations(20, 2);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    // Far less than a batch, and no tick of a worker between it and the signal.
    injector.send_all(&frames, None).unwrap();
    let outcome = site.finish(vec![sensor], collector);
    outcome.assert_complete();
    let stored = &outcome.store.frames["web-0/s0"];
    for frame in &frames {
        let copies = stored.iter().filter(|one| one.data == *frame).count();
        assert_eq!(copies, 1, "{frame:02x?}");
    }
    let lines = outcome.store.lines_of("web-0");
    assert!(lines.iter().any(|line| line.contains("\"dest_port\":7001")));
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(last["event_type"], "stats");
    assert_eq!(last["ringwatch"]["ledger"]["frames"]["in_flight"], 0, "{last}");
}

#[test]
fn a_sensor_whose_collector_ended_first_ends_at_once_and_counts_what_it_kept() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(100, 4), Some(5000)).unwrap();
    collector.wait_for_event(&["\"event_type\":\"stats\"", "web-0"]);
    let stored = || site.status()["store"]["frames"].as_u64().unwrap();
    wait_until("frames", PATIENCE, || stored() >= 400, || site.status().to_string());
    // Acknowledges what it took, seals its segment, says goodbye.
    let store = collector.stop();
    let mut sensor = sensor;
    let line = sensor.process.wait_for_line("collector is away", PATIENCE);
    assert!(line.contains("goodbye"), "{line}");
    traffic::connection(&site.lab, 0, 7002);
    injector.send_all(traffic::conversations(100, 4), Some(5000)).unwrap();
    let begin = Instant::now();
    let ended = sensor.stop();
    assert!(begin.elapsed().as_secs() < 8, "{:?}", begin.elapsed());
    assert!(ended.lost_frames("not_connected") >= 400, "{:#?}", ended.ledger);
    // Records that waited: the last `stats` event was written before they were given up.
    let records = &ended.ledger.records;
    assert!(records.in_flight > 0 && records.lost.is_empty(), "{records:#?}");
    let store = Stored::read(&store);
    let stored = store.frames["web-0/s0"].len() as u64;
    assert_eq!(stored, ended.ledger.frames.acknowledged, "{:#?}", ended.ledger);
    assert_eq!(store.lines_of("web-0").len() as u64, records.acknowledged, "{records:#?}");
    assert!(!store.lines.iter().any(|line| line.contains("\"dest_port\":7002")));
}

/// The numbers of one line of the ledger that `ringwatch status` shows, by the heads of their columns.
fn shown_ledger(table: &str, kind: &str) -> Vec<u64> {
    let is_row = |line: &&str| line.split_whitespace().take(2).eq(["web-0", kind]);
    let row = table.lines().find(is_row).unwrap_or_else(|| panic!("no {kind} in {table}"));
    let cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).skip(2);
    cells.map(|cell| cell.replace(' ', "").parse().unwrap()).collect()
}

#[test]
fn after_a_drain_status_shows_the_same_numbers_for_both_ends() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(300, 4), Some(5000)).unwrap();
    traffic::connection(&site.lab, 0, 7003);
    collector.wait_for_event(&["\"dest_port\":7003"]);
    let ended = sensor.stop();
    let is_over = || site.status()["sensors"][0]["ended"] == true;
    wait_until("goodbye", PATIENCE, is_over, || site.status().to_string());
    let table = site.ringwatch(&["status"]);
    for kind in ["frames", "records"] {
        let numbers = shown_ledger(&table, kind);
        let &[produced, acknowledged, in_flight, lost, stored, told] = &numbers[..] else {
            panic!("{table}")
        };
        assert_eq!((produced, in_flight), (acknowledged + lost, 0), "{table}");
        assert_eq!((acknowledged, lost), (stored, told), "the two ends: {table}");
        assert!(stored > if kind == "frames" { 1200 } else { 3 }, "{table}");
    }
    // And so does what either of them says by itself, and what lies in the store.
    let [frames, records] = ["frames", "records"].map(|kind| shown_ledger(&table, kind));
    assert_eq!(frames[1], ended.ledger.frames.acknowledged);
    let store = Stored::read(&collector.stop());
    assert_eq!(store.frames["web-0/s0"].len() as u64, frames[4]);
    assert_eq!(store.lines_of("web-0").len() as u64, records[4]);
}
