//! A scan, from the first packet to the collector's event log.

use perf::tools;
use serde_json::Value;

use crate::site::{PATIENCE, Settings, Site, wait_until};

#[test]
fn a_scan_is_one_alert_from_open_to_close_in_the_collectors_log() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let more = "[detect]\nclose_after = \"5s\"\n".to_owned();
    let sensor = site.start_sensor(&Settings { more, ..Settings::frames("sampled") });
    site.wait_connected(&sensor);
    site.lab.generator().run("nmap", &["-n", "-Pn", "-sS", "-p1-1000", "10.99.0.2"]);
    // The collector has it while the scan is still open.
    collector.wait_for_event(&["\"phase\":\"open\"", "\"kind\":\"vertical\""]);
    collector.wait_for_event(&["\"phase\":\"close\""]);
    let shown = || crate::site::find(&site.status(), "web-0")["alerts"].as_u64().unwrap();
    wait_until("alerts in the status", PATIENCE, || shown() >= 2, || site.status().to_string());
    let outcome = site.finish(vec![sensor], collector);
    outcome.assert_complete();

    let events = outcome.store.lines.iter().map(|line| serde_json::from_str(line).unwrap());
    let alerts: Vec<Value> =
        events.filter(|event: &Value| event["event_type"] == "alert").collect();
    for alert in &alerts {
        assert_eq!(alert["src_ip"], "10.99.0.1", "{alert}");
        assert_eq!(alert["dest_ip"], "10.99.0.2", "{alert}");
        assert_eq!(alert["ringwatch"]["sensor"], "web-0", "{alert}");
    }
    let context: Vec<&Value> = alerts.iter().map(|alert| &alert["alert"]["context"]).collect();
    assert!(context.iter().all(|one| one["alert_id"] == context[0]["alert_id"]), "{context:#?}");
    let revisions: Vec<u64> = context.iter().map(|one| one["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, (1..=context.len() as u64).collect::<Vec<_>>());
    let phases: Vec<&str> = context.iter().map(|one| one["phase"].as_str().unwrap()).collect();
    let (open, rest) = phases.split_first().unwrap();
    let (close, updates) = rest.split_last().unwrap();
    assert_eq!((*open, *close), ("open", "close"), "{phases:?}");
    assert!(updates.iter().all(|phase| *phase == "update"), "{phases:?}");
    let last = context.last().unwrap();
    let ports = last["distinct_ports"].as_u64().unwrap();
    assert!((950..=1050).contains(&ports), "{last:#}");
    assert_eq!(last["refused"], last["attempted"], "{last:#}");
}
