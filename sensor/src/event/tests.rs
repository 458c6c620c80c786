//! Every kind of event against the EVE schema, and the fields that others rely on.

use packet::{Address, protocol};
use serde_json::{Value, json};
use wire::ledger::{InterfaceLedger, LostByReason};

use super::*;
use crate::detect::{Confidence, Phase};
use crate::detect::{FloodFigures, Kind};
use crate::flow::{EndReason, EndedFlow, State};

const TIME: UnixNanos = UnixNanos(1_790_000_000_123_456_789);

fn connection() -> NewConnection<'static> {
    NewConnection {
        time: TIME,
        tuple: FiveTuple {
            source: Address::from_v4([192, 0, 2, 1]),
            target: Address::from_v4([198, 51, 100, 2]),
            source_port: 40_000,
            target_port: 443,
            protocol: protocol::TCP,
        },
        vlan_ids: [7, 9],
        interface: "eth0",
        community_id: "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        flow_id: u64::MAX,
    }
}

fn ended_flow() -> EndedFlow {
    EndedFlow {
        time: UnixNanos(TIME.0 + 600_000_000_000),
        last: UnixNanos(TIME.0 + 2_900_000_000),
        first: TIME,
        tuple: connection().tuple,
        vlan_ids: [7, 9],
        interface: 0,
        icmp: None,
        is_fragments: false,
        reason: EndReason::Timeout,
        state: State::TcpEstablished,
        flags: [0x1a, 0x12],
        packets: [4, 3],
        bytes: [772, 1654],
    }
}

/// Flows of every protocol, state and reason.
fn ended_flows() -> Vec<EndedFlow> {
    let flow = ended_flow();
    let tuple = |protocol| FiveTuple { protocol, ..flow.tuple };
    let mut flows = vec![flow, EndedFlow { is_fragments: true, ..flow }];
    flows.extend(State::ALL.map(|state| EndedFlow { state, ..flow }));
    flows.extend(EndReason::ALL.map(|reason| EndedFlow { reason, ..flow }));
    flows.extend((0..=255).map(|protocol| EndedFlow { tuple: tuple(protocol), ..flow }));
    flows.push(EndedFlow { tuple: tuple(protocol::ICMP), icmp: Some((8, 0)), ..flow });
    flows
}

fn alert(kind: Kind) -> Alert {
    Alert {
        id: 3,
        revision: 2,
        phase: Phase::Update,
        kind,
        technique: (kind != Kind::Block).then_some(Technique::Syn),
        source: (!kind.is_flood()).then_some(Address::from_v4([192, 0, 2, 1])),
        target: (kind != Kind::Horizontal).then_some(Address::from_v6([0x20; 16])),
        confidence: Confidence::High,
        severity: 2,
        spoofable: true,
        distinct_ports: 100,
        distinct_hosts: 1,
        distinct_sources: 1,
        attempted: 100,
        answered: 2,
        refused: 90,
        silent: 8,
        is_estimated: false,
        sample_ports: (1..=20).collect(),
        sample_hosts: vec![Address::from_v4([198, 51, 100, 2])],
        answered_ports: vec![22, 80],
        sample_sources: vec![Address::from_v4([198, 51, 100, 9])],
        flood: kind.is_flood().then_some(FloodFigures { packets: 9, peak_pps: 8, completed: 7 }),
        is_one_way: false,
        had_losses: true,
        start: UnixNanos(TIME.0 - 2_000_000_000),
        end: TIME,
        time: TIME,
        workers: 0b101,
    }
}

fn ledger() -> Ledger {
    let lost = LostByReason::from([("pool_empty".to_owned(), 3)]);
    let name = "väth0".to_owned();
    let interface =
        InterfaceLedger { name, kernel_packets: 10, kernel_drops: 2, lost, ..Default::default() };
    Ledger { interfaces: vec![interface], ..Default::default() }
}

/// Each kind of event, as value and as line.
fn every_kind() -> Vec<Value> {
    let (alerts, ledger) = (Kind::ALL.map(alert), ledger());
    let untagged = NewConnection { vlan_ids: [0, 0], ..connection() };
    let tagged = NewConnection { vlan_ids: [5, 0], ..connection() };
    let decoder = DecoderStats { packets: 8, bytes: 512, tcp: 7, ..Default::default() };
    let flows = ended_flows();
    let flow_end = |flow| {
        let community_id = connection().community_id;
        Event::FlowEnd(FlowEnd { flow, interface: "eth0", community_id, flow_id: u64::MAX })
    };
    let summary = AlertSummary { delayed: 1, skipped_updates: 2, not_opened: 3 };
    let mut held = GivenWay::default();
    held.note(Held::Near);
    let degradation = Degradation {
        contacts: 95,
        contacts_room: 100,
        evidence_lost: 1,
        held,
        ..Default::default()
    };
    let events = [
        Event::NewConnection(connection()),
        Event::NewConnection(untagged),
        Event::NewConnection(tagged),
        Event::Alert(&alerts[0]),
        Event::Alert(&alerts[1]),
        Event::Stats { time: TIME, uptime_seconds: 60, decoder, ledger: &ledger, live: None },
        Event::Interface { time: TIME, interface: "eth0", change: InterfaceChange::LinkUp },
        Event::Interface { time: TIME, interface: "eth\"0", change: InterfaceChange::Gone },
        Event::Worker { time: TIME, worker: 1, change: WorkerChange::Stalled },
        Event::Detector { time: TIME, change: DetectorChange::Degraded(degradation) },
        Event::Detector { time: TIME, change: DetectorChange::Recovered(degradation) },
        Event::ConnectionsSummarised { time: TIME, connections: 17 },
        Event::AlertsSummarised { time: TIME, summary },
        Event::FlowsSummarised { time: TIME, flows: 17, half_open_evicted: 4096 },
    ];
    let events = events.into_iter().chain(alerts[2..].iter().map(Event::Alert));
    let events = events.chain(flows.iter().map(flow_end));
    let mut writer = EventWriter::new("web-1", 42);
    let mut parse = |event: &Event<'_>| {
        let mut line = Vec::new();
        writer.write(event, &mut line);
        assert!(line.is_ascii());
        assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
        serde_json::from_slice(&line).unwrap()
    };
    events.map(|event| parse(&event)).collect()
}

/// The EVE schema, with exactly one more top-level property; `None` (said) where there is no corpus.
fn schema() -> Option<Value> {
    let path = perf::corpus::folder()?.join("eve/schema.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    let object = json!({"type": "object", "required": ["event_id", "sensor"]});
    schema["properties"]["ringwatch"] = object;
    Some(schema)
}

#[test]
fn every_kind_of_event_is_valid_eve() {
    let Some(schema) = schema() else { return };
    let validator = jsonschema::validator_for(&schema).unwrap();
    for event in every_kind() {
        let errors: Vec<String> =
            validator.iter_errors(&event).map(|error| error.to_string()).collect();
        assert_eq!(errors, [] as [&str; 0], "{event:#}");
    }
    let mut wrong = every_kind().remove(0);
    wrong["flow"]["colour"] = json!("blue");
    assert!(!validator.is_valid(&wrong), "the schema is closed");
}

#[test]
fn top_level_names_are_those_of_eve_and_one_of_ours() {
    let allowed = [
        "timestamp",
        "event_type",
        "flow_id",
        "in_iface",
        "vlan",
        "src_ip",
        "src_port",
        "dest_ip",
        "dest_port",
        "ip_v",
        "proto",
        "community_id",
        "icmp_type",
        "icmp_code",
        "flow",
        "tcp",
        "alert",
        "stats",
        "anomaly",
        "ringwatch",
    ];
    for event in every_kind() {
        for name in event.as_object().unwrap().keys() {
            assert!(allowed.contains(&name.as_str()), "{name}");
        }
        let body = event["event_type"].as_str().unwrap();
        assert!(event[body].is_object(), "{event}");
    }
}

#[test]
fn a_degraded_detector_says_how_much_evidence_gave_way_with_what_it_lost() {
    let events = every_kind();
    let is_it = |event: &&Value| event["anomaly"]["event"] == "detector.degraded";
    let ours = &events.iter().find(is_it).unwrap()["ringwatch"];
    let by_held = json!({"none": 0, "little": 0, "half": 0, "near": 1, "reached": 0});
    assert_eq!((&ours["evidence_lost"], &ours["evidence_lost_by_held"]), (&json!(1), &by_held));
    assert_eq!(ours["slow_sources_lost_by_held"]["near"], 0);
}

#[test]
fn ids_are_sensor_boot_epoch_and_sequence() {
    let ids: Vec<String> = every_kind()
        .iter()
        .map(|event| event["ringwatch"]["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((ids[0].as_str(), ids[9].as_str()), ("web-1-42-1", "web-1-42-10"));
    assert!(every_kind().iter().all(|event| event["ringwatch"]["sensor"] == "web-1"));
}

#[test]
fn a_new_connection_has_its_tuple_interface_and_tags() {
    let events = every_kind();
    let expected = json!({
        "timestamp": "2026-09-21T14:13:20.123456+0000",
        "flow_id": (1_u64 << 53) - 1,
        "in_iface": "eth0",
        "event_type": "flow",
        "vlan": [7, 9],
        "src_ip": "192.0.2.1",
        "src_port": 40_000,
        "dest_ip": "198.51.100.2",
        "dest_port": 443,
        "ip_v": 4,
        "proto": "TCP",
        "community_id": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        "flow": {"start": "2026-09-21T14:13:20.123456+0000", "state": "new"},
        "ringwatch": {"event_id": "web-1-42-1", "sensor": "web-1"},
    });
    assert_eq!(events[0], expected);
    assert_eq!((&events[1]["vlan"], &events[2]["vlan"]), (&Value::Null, &json!([5])));
}

#[test]
fn an_ended_flow_has_what_suricata_writes_of_it() {
    let events = every_kind();
    let ended = events.iter().find(|event| event["flow"]["reason"].is_string()).unwrap();
    let expected = json!({
        "timestamp": "2026-09-21T14:23:20.123456+0000",
        "flow_id": (1_u64 << 53) - 1,
        "in_iface": "eth0",
        "event_type": "flow",
        "vlan": [7, 9],
        "src_ip": "192.0.2.1",
        "src_port": 40_000,
        "dest_ip": "198.51.100.2",
        "dest_port": 443,
        "ip_v": 4,
        "proto": "TCP",
        "community_id": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
        "flow": {
            "pkts_toserver": 4,
            "pkts_toclient": 3,
            "bytes_toserver": 772,
            "bytes_toclient": 1654,
            "start": "2026-09-21T14:13:20.123456+0000",
            "end": "2026-09-21T14:13:23.023456+0000",
            "age": 3,
            "state": "established",
            "reason": "timeout",
            "alerted": false,
        },
        "tcp": {
            "tcp_flags": "1a",
            "tcp_flags_ts": "1a",
            "tcp_flags_tc": "12",
            "syn": true,
            "psh": true,
            "ack": true,
            "state": "established",
        },
        "ringwatch": {"event_id": ended["ringwatch"]["event_id"], "sensor": "web-1"},
    });
    assert_eq!(*ended, expected);
    let ping = events.iter().find(|event| event["icmp_type"].is_number()).unwrap();
    assert_eq!((&ping["icmp_type"], &ping["icmp_code"]), (&json!(8), &json!(0)));
    assert_eq!((&ping["src_port"], &ping["tcp"]), (&Value::Null, &Value::Null));
    let protocols: Vec<_> = events.iter().filter_map(|event| event["proto"].as_str()).collect();
    assert!(protocols.contains(&"GRE") && protocols.contains(&"200"), "{protocols:?}");
}

#[test]
fn an_alert_tells_who_what_and_how_much() {
    let events = every_kind();
    let (vertical, horizontal) = (&events[3], &events[4]);
    assert_eq!(vertical["dest_ip"], "2020:2020:2020:2020:2020:2020:2020:2020");
    assert_eq!(horizontal["dest_ip"], Value::Null);
    assert_eq!(vertical["alert"]["metadata"]["mitre_technique_id"], json!(["T1046"]));
    assert_eq!(vertical["ringwatch"]["workers"], json!([0, 2]));
    assert_ne!(vertical["alert"]["signature_id"], horizontal["alert"]["signature_id"]);
    let context = &vertical["alert"]["context"];
    for (name, expected) in [
        ("alert_id", json!("web-1-42-a3")),
        ("revision", json!(2)),
        ("phase", json!("update")),
        ("kind", json!("vertical")),
        ("technique", json!("SYN")),
        ("mitre_technique", json!("T1046")),
        ("distinct_ports", json!(100)),
        ("distinct_hosts", json!(1)),
        ("attempted", json!(100)),
        ("answered", json!(2)),
        ("refused", json!(90)),
        ("silent", json!(8)),
        ("estimated", json!(false)),
        ("confidence", json!("high")),
        ("spoofable", json!(true)),
        ("start", json!("2026-09-21T14:13:18.123456+0000")),
        ("answered_ports", json!([22, 80])),
        ("hosts", json!(["198.51.100.2"])),
    ] {
        assert_eq!(context[name], expected, "{name}");
    }
    assert_eq!(context["ports"].as_array().unwrap().len(), 20);
}

#[test]
fn stats_carry_the_whole_ledger() {
    let stats = &every_kind()[5];
    assert_eq!(stats["stats"]["capture"], json!({"kernel_packets": 10, "kernel_drops": 2}));
    assert_eq!(stats["stats"]["decoder"]["pkts"], 8);
    let back: Ledger = serde_json::from_value(stats["ringwatch"]["ledger"].clone()).unwrap();
    assert_eq!(back, ledger());
}
