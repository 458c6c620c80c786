//! Messages of every minor version, as another program wrote them: they are decoded for ever.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use wire::codec::Decoder;
use wire::header::{HEADER_LEN, Stream};
use wire::ledger::{DeliveryLedger, InterfaceLedger, Ledger, LostByReason};
use wire::message::{
    Ack, CollectorHello, Control, Echo, Gap, Goodbye, Heartbeat, Interface, Interfaces, Limits,
    Message, RecordGap, Resume, SensorHello,
};
use wire::records::RecordKind::{Alert, Audit, Flow};
use wire::units::{Sequence, UnixNanos};

const RUN: u64 = 1_700_000_000_000_000_000;
const SPOOL: u64 = 1_690_000_000_000_000_000;
const MINOR_0: &str = include_str!("golden/minor0.hex");
const MINOR_1: &str = include_str!("golden/minor1.hex");

/// Name and bytes of the messages of a file, in their order.
fn messages(text: &str) -> Vec<(&str, Vec<u8>)> {
    let mut messages: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            messages.push((name, Vec::new()));
        } else if let Some((_, bytes)) = messages.last_mut() {
            let digits = line.split('#').next().unwrap().trim();
            assert_eq!(digits.len() % 2, 0, "{line}");
            let pairs = digits.as_bytes().chunks_exact(2);
            let text = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
            bytes.extend(text.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
        }
    }
    messages
}

/// What a message says, in words that can be compared.
fn say(message: &Message<'_>) -> String {
    match message {
        Message::Control(control) => format!("{control:?}"),
        Message::Records(batch) => {
            let records: Vec<_> =
                batch.iter().map(|it| (it.sequence.0, it.kind, it.json)).collect();
            format!("{:?} {records:?}", batch.stream)
        }
        Message::Frames(batch) => {
            let frames: Vec<_> = batch
                .iter()
                .map(|it| (it.time.0, it.wire_len.0, it.interface, it.data.to_vec()))
                .collect();
            let (sequence, snaplen) = (batch.sequence.0, batch.snaplen);
            format!("{sequence} 1/{} {snaplen} {frames:?}", batch.sample_one_in)
        }
    }
}

fn check(text: &str, expected: &[(&str, String)]) {
    let messages = messages(text);
    let names: Vec<_> = messages.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for ((name, bytes), (_, expected)) in messages.iter().zip(expected) {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.push(bytes), bytes.len());
        let message = decoder.next_message().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(say(&message.unwrap()), *expected, "{name}");
        assert!(decoder.next_message().unwrap().is_none(), "{name}: bytes are left");
    }
}

/// The two hellos of a collector and the one of a sensor.
fn hellos(minor: u16, spool_epoch: u64, alerts: u64) -> Vec<(&'static str, String)> {
    let collector = |resume| {
        let (collector, limits) = ("ids".to_owned(), Limits::default());
        format!(
            "{:?}",
            Control::CollectorHello(CollectorHello { minor, collector, limits, resume })
        )
    };
    let resume = Resume {
        boot_epoch: RUN,
        records: Sequence(120),
        frames: Sequence(7),
        spool_epoch,
        alerts: Sequence(alerts),
    };
    let sensor = Control::SensorHello(SensorHello {
        minor,
        sensor: "edge".into(),
        boot_epoch: RUN,
        spool_epoch,
        host: "edge.example".into(),
        version: "0.1.0".into(),
    });
    vec![
        ("hello of a collector that knows nothing of the sensor", collector(None)),
        ("hello of a collector", collector(Some(resume))),
        ("hello of a sensor", format!("{sensor:?}")),
    ]
}

fn ack(stream: Stream, sequence: u64, count: u64) -> String {
    format!("{:?}", Control::Ack(Ack { stream, sequence: Sequence(sequence), count }))
}

fn gap(stage: &str, reason: &str, frames: u64, records: Option<RecordGap>) -> String {
    let (from, to) = (UnixNanos(RUN), UnixNanos(RUN + 1_000_000_000));
    let (stage, reason) = (stage.to_owned(), reason.to_owned());
    format!("{:?}", Control::Gap(Gap { stage, reason, frames, bytes: 0, from, to, records }))
}

fn ledger() -> String {
    let ledger = Ledger {
        interfaces: vec![InterfaceLedger {
            name: "eth0".into(),
            kernel_packets: 10,
            kernel_drops: 1,
            analysed: 9,
            not_selected: 4,
            exported: 4,
            lost: LostByReason::from([("pool_empty".into(), 1)]),
            ..InterfaceLedger::default()
        }],
        frames: DeliveryLedger { produced: 4, acknowledged: 2, in_flight: 2, ..Default::default() },
        records: DeliveryLedger { produced: 3, acknowledged: 3, ..Default::default() },
    };
    assert_eq!(ledger.check(), Ok(()));
    format!("{:?}", Control::LedgerReport(ledger))
}

/// What both minor versions have.
fn common() -> Vec<(&'static str, String)> {
    let interface = Interface { id: 0, name: "eth0".into(), linktype: 1, snaplen: 65535 };
    let interfaces = Control::Interfaces(Interfaces { interfaces: vec![interface] });
    let records = |first: u64| {
        let alert = (first, Alert, r#"{"event_type":"alert"}"#);
        let flow = (first + 1, Flow, r#"{"event_type":"flow"}"#);
        format!("{:?} {:?}", Stream::Records, [alert, flow])
    };
    let first = (1_000_000_000_u64, 60, 0, vec![0xaa_u8, 0xbb, 0xcc]);
    let second = (1_000_000_500_u64, 4, 0, vec![1_u8, 2, 3, 4]);
    let frames = [first, second];
    let beat =
        |echo| format!("{:?}", Control::Heartbeat(Heartbeat { sent_at: UnixNanos(RUN + 5), echo }));
    let echo = Echo { sent_at: UnixNanos(RUN), held_for: 30_000_000 };
    let goodbye = Control::Goodbye(Goodbye { reason: "shutdown".into() });
    vec![
        ("interfaces", format!("{interfaces:?}")),
        ("records, plain", records(7)),
        ("records, packed", records(9)),
        ("frames", format!("3 1/1 65535 {frames:?}")),
        ("acknowledgement of records", ack(Stream::Records, 8, 8)),
        ("acknowledgement of frames", ack(Stream::Frames, 3, 5)),
        ("heartbeat", beat(None)),
        ("heartbeat with an echo", beat(Some(echo))),
        ("gap of frames", gap("uplink", "not_connected", 12, None)),
        ("ledger", ledger()),
        ("goodbye", format!("{goodbye:?}")),
    ]
}

#[test]
fn messages_of_minor_version_0_are_decoded() {
    // It knew neither spool nor alerts.
    check(MINOR_0, &[hellos(0, 0, 0), common()].concat());
}

#[test]
fn messages_of_minor_version_1_are_decoded() {
    let alerts = |first: u64| {
        let alert = (first, Alert, r#"{"event_type":"alert"}"#);
        let audit = (first + 1, Audit, r#"{"event_type":"stats"}"#);
        format!("{:?} {:?}", Stream::Alerts, [alert, audit])
    };
    let hole = RecordGap { stream: Stream::Records, first: Sequence(121), last: Sequence(150) };
    let new = vec![
        ("alerts, plain", alerts(12)),
        ("alerts, packed", alerts(14)),
        ("acknowledgement of alerts", ack(Stream::Alerts, 13, 2)),
        ("gap of records", gap("spool", "spool_full", 0, Some(hole))),
    ];
    check(MINOR_1, &[hellos(1, SPOOL, 11), common(), new].concat());
}

#[test]
fn what_this_version_writes_is_what_the_golden_file_says() {
    let mut controls = 0;
    for (name, bytes) in messages(MINOR_1) {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.push(&bytes), bytes.len());
        if let Some(Message::Control(control)) = decoder.next_message().unwrap() {
            let mut written = Vec::new();
            control.encode(&mut written).unwrap();
            let body = String::from_utf8_lossy(&written[HEADER_LEN..]);
            assert_eq!(written, bytes, "{name}: {body}");
            controls += 1;
        }
    }
    assert_eq!(controls, 13);
}

#[test]
fn positions_of_records_belong_to_the_run_where_there_is_no_spool() {
    let said: Vec<_> = [MINOR_0, MINOR_1]
        .map(|text| {
            let (_, bytes) = messages(text).remove(1);
            let mut decoder = Decoder::new();
            assert_eq!(decoder.push(&bytes), bytes.len());
            let message = decoder.next_message().unwrap();
            let Some(Message::Control(Control::CollectorHello(hello))) = message else { panic!() };
            hello.resume.unwrap().record_epoch()
        })
        .into();
    assert_eq!(said, [RUN, SPOOL]);
}
