//! Stored events are found again, over HTTP.

use serde_json::Value;
use wire::records::RecordKind;

use crate::lab::{Collector, Lab, wait_until};
use crate::sensor::Sensor;

/// A flow to a port, so many seconds into 2023-11-14 22:13:20.
fn flow(seconds: u64, source: &str, port: u64) -> (RecordKind, String) {
    let seconds = 20 + seconds;
    let json = format!(
        r#"{{"timestamp":"2023-11-14T22:13:{seconds}.000000+0000","event_type":"flow","src_ip":"{source}","src_port":40000,"dest_ip":"192.0.2.250","dest_port":{port},"proto":"TCP"}}"#
    );
    (RecordKind::Flow, json)
}

fn alert(revision: u64) -> (RecordKind, String) {
    let json = format!(
        r#"{{"timestamp":"2023-11-14T22:13:30.000000+0000","event_type":"alert","src_ip":"192.0.2.1","alert":{{"severity":2,"context":{{"alert_id":"a-1-a1","revision":{revision},"kind":"vertical"}}}}}}"#
    );
    (RecordKind::Alert, json)
}

/// A sensor with these records stored.
fn store(lab: &Lab, collector: &Collector, name: &str, records: &[(RecordKind, String)]) {
    let (own, ca) = (lab.authority.sensor(name), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, name, 5);
    let first = sensor.hello.resume.map_or(1, |resume| resume.records.0 + 1);
    let records: Vec<_> = records.iter().map(|(kind, json)| (*kind, json.as_str())).collect();
    sensor.send_records(first, &records);
    sensor.wait_for_ack(first + records.len() as u64 - 1, 0);
}

fn wait_for_index(collector: &Collector) {
    collector
        .wait_for_status("index that is complete", |status| status["store"]["index_behind"] == 0);
}

fn ask(collector: &Collector, path: &str) -> (u16, Value) {
    let (status, body) = collector.get(&format!("/api/v1/{path}"));
    let json = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    (status, json)
}

/// What a question finds, by a field.
fn found(collector: &Collector, path: &str, field: &str) -> Vec<u64> {
    let (status, answer) = ask(collector, path);
    assert_eq!(status, 200, "{answer}");
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|item| item.pointer(field).unwrap().as_u64().unwrap()).collect()
}

#[test]
fn events_are_found_by_time_sensor_host_port_kind_and_name() {
    let lab = Lab::new();
    let collector = lab.start();
    let dns = r#"{"timestamp":"2023-11-14T22:13:21.000000+0000","event_type":"dns","dns":{"version":2,"type":"query","rrname":"www.example.org"}}"#;
    let dns = (RecordKind::Dns, dns.to_owned());
    store(&lab, &collector, "web-1", &[flow(1, "192.0.2.1", 80), alert(1), dns, alert(2)]);
    store(&lab, &collector, "web-2", &[flow(2, "2001:db8::7", 443), flow(3, "192.0.2.3", 80)]);
    wait_for_index(&collector);
    let ports = |query: &str| found(&collector, &format!("flows{query}"), "/dest_port");
    assert_eq!(ports(""), [80, 443, 80]);
    assert_eq!(ports("?order=oldest&limit=2"), [80, 443]);
    assert_eq!(ports("?sensor=web-2&port=443"), [443]);
    assert_eq!(ports("?host=2001:db8:0::7"), [443]);
    assert_eq!(ports("?host=192.0.2.250&from=2023-11-14T22:13:22Z&to=1700000002"), [443]);
    assert_eq!(ports("?to=1999-01-01T00:00:00Z"), [0; 0]);
    let revision = "/alert/context/revision";
    assert_eq!(found(&collector, "alerts?kind=vertical&severity=2", revision), [2]);
    assert_eq!(found(&collector, "alerts?revisions=all", revision), [2, 1]);
    assert_eq!(found(&collector, "alerts?severity=1", revision), [0; 0]);
    assert_eq!(found(&collector, "dns?name=*.example.org", "/dns/version"), [2]);

    // As it was sent, in pages.
    let (_, first) = ask(&collector, "flows?limit=2");
    let next = first["next"].as_str().unwrap();
    let (_, second) = ask(&collector, &format!("flows?limit=2&cursor={next}"));
    let sent: Value = serde_json::from_str(&flow(1, "192.0.2.1", 80).1).unwrap();
    assert_eq!((&second["items"][0], &second["next"]), (&sent, &Value::Null));
}

#[test]
fn none_unknown_wrong_and_expired_are_told_apart() {
    let lab = Lab::new();
    let collector = lab.start();
    store(&lab, &collector, "web-1", &[flow(1, "192.0.2.1", 80)]);
    let error = |collector: &Collector, path: &str| {
        let (status, answer) = ask(collector, path);
        (status, answer["error"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(&collector, "alerts").1["items"], Value::Array(Vec::new()));
    assert_eq!(error(&collector, "flows?sensor=web-9"), (404, "sensor_unknown".into()));
    assert_eq!(error(&collector, "flows?hots=1"), (400, "bad_request".into()));
    assert_eq!(error(&collector, "flows?kind=vertical"), (400, "bad_request".into()));
    assert_eq!(error(&collector, "alerts?from=later"), (400, "bad_request".into()));
    assert_eq!(error(&collector, "flows?to=2001-01-01T00:00:00Z"), (200, String::new()));
    collector.stop();

    // What retention does, without the time that it takes.
    let collector = lab.start();
    store(&lab, &collector, "web-1", &[flow(2, "192.0.2.1", 81)]);
    collector.stop();
    std::fs::remove_file(lab.store().join("records/00000000000000000001.log")).unwrap();
    let collector = lab.start();
    wait_for_index(&collector);
    assert_eq!(error(&collector, "flows?to=2001-01-01T00:00:00Z"), (410, "expired".into()));
    assert_eq!(found(&collector, "flows", "/dest_port"), [81]);
    // The sensor is known as long as its marks are.
    assert_eq!(error(&collector, "flows?sensor=web-1"), (200, String::new()));
}

#[test]
fn an_index_that_is_gone_or_broken_is_made_anew_by_itself() {
    let lab = Lab::new();
    let collector = lab.start();
    let flows: Vec<_> = (0..20).map(|port| flow(1, "192.0.2.1", port)).collect();
    store(&lab, &collector, "a", &flows);
    wait_for_index(&collector);
    let file = || {
        let mut entries = std::fs::read_dir(lab.store().join("index")).unwrap();
        let is_index = |path: &std::path::Path| path.extension().is_some_and(|it| it == "sqlite");
        entries.find_map(|entry| Some(entry.unwrap().path()).filter(|path| is_index(path))).unwrap()
    };
    let is_whole = |collector: &Collector| {
        // The question that finds the damage says so, or finds less.
        let (_, answer) = ask(collector, "flows");
        (answer["items"].as_array().is_some_and(|items| items.len() == 20)).then_some(())
    };
    std::fs::remove_file(file()).unwrap();
    wait_until("index made anew", || is_whole(&collector), || collector.log());
    collector.stop();
    std::fs::write(file(), "SQLite format 3, or not").unwrap();
    let collector = lab.start();
    wait_until("index made anew", || is_whole(&collector), || collector.log());
    collector.wait_for_line("the index is damaged");
    collector.stop();
}

#[test]
fn a_question_holds_up_no_acknowledgement() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let flows: Vec<_> = (0..500).map(|port| flow(1, "192.0.2.1", port)).collect();
    let records: Vec<_> = flows.iter().map(|(kind, json)| (*kind, json.as_str())).collect();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..20 {
                // Looks at every flow.
                let (status, _) = ask(&collector, "flows?port=65000");
                assert!(status == 200 || status == 429, "{status}");
            }
        });
        for batch in 0..60 {
            sensor.send_records(1 + 500 * batch, &records);
        }
        sensor.wait_for_ack(60 * 500, 0);
        asking.join().unwrap();
    });
    wait_for_index(&collector);
    assert_eq!(found(&collector, "flows?port=499&limit=1000", "/dest_port").len(), 60);
}
