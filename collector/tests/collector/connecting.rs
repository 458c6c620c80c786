//! Who is let in, and what becomes of those that misbehave.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use wire::message::{Control, Goodbye, Heartbeat, Interface, Interfaces};
use wire::records::RecordKind;
use wire::units::UnixNanos;

use crate::lab::{Authority, Collector, Issued, Lab};
use crate::sensor::{Sensor, frame_batch, handshake, handshake_over, hello, record_batch};

/// Waits until exactly one connection was refused, for this reason, and said so once.
fn check_refused(collector: &Collector, reason: &str) {
    let status = collector.wait_for_status(reason, |status| {
        let refused = status["refused"].as_object().unwrap();
        refused.values().map(|count| count.as_u64().unwrap()).sum::<u64>() > 0
    });
    assert_eq!(status["refused"][reason], 1, "{}", status["refused"]);
    let log = collector.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains(&format!("reason={reason:?}")), "{log}");
}

/// A handshake with this certificate fails for this reason, and others still get in.
fn check_handshake(lab: &Lab, own: Option<&Issued>, failure: &str) {
    let collector = lab.start();
    let ca = lab.authority.certificate();
    // The client's part of a TLS 1.3 handshake ends before the server has seen its certificate.
    if let Ok(mut stream) = handshake(&collector.sensors, &ca, own) {
        let mut bytes = Vec::new();
        assert!(stream.read_to_end(&mut bytes).is_err(), "not refused");
        assert_eq!(bytes, b"", "something was said before the certificate was known");
    }
    check_refused(&collector, "tls_handshake");
    assert_eq!(collector.status()["handshake_failures"][failure], 1, "{}", collector.status());
    Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("good"), "good", 5);
}

/// These bytes of a sensor close its connection for this reason; another one goes on.
fn check_misbehaviour(bytes: &[u8], reason: &str) {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let mut good = Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("good"), "good", 5);
    let mut bad = Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("bad"), "bad", 5);
    bad.send_bytes(bytes);
    bad.read_to_end();
    check_refused(&collector, reason);
    good.send_records(1, &[(RecordKind::Flow, "{}")]);
    good.wait_for_ack(1, 0);
    assert_eq!(lab.events_of(&collector), "{}\n");
}

fn encoded(control: Control) -> Vec<u8> {
    let mut bytes = Vec::new();
    control.encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn no_certificate_is_refused() {
    check_handshake(&Lab::new(), None, "no_certificate");
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let stranger = Authority::new().sensor("a");
    check_handshake(&Lab::new(), Some(&stranger), "unknown_issuer");
}

#[test]
fn a_collectors_certificate_is_no_sensors() {
    let lab = Lab::new();
    let own = lab.authority.collector("other");
    check_handshake(&lab, Some(&own), "wrong_purpose");
}

#[test]
fn a_client_certificate_for_another_role_is_refused() {
    let lab = Lab::new();
    let uris = ["ringwatch://collector/a"];
    let own = lab.authority.issue(&uris, &[ExtendedKeyUsagePurpose::ClientAuth]);
    check_handshake(&lab, Some(&own), "wrong_role");
}

#[test]
fn a_certificate_with_two_identities_is_refused() {
    let lab = Lab::new();
    let uris = ["ringwatch://sensor/a", "ringwatch://sensor/b"];
    let own = lab.authority.issue(&uris, &[ExtendedKeyUsagePurpose::ClientAuth]);
    check_handshake(&lab, Some(&own), "wrong_role");
}

#[test]
fn a_certificate_with_a_further_uri_of_another_kind_is_refused() {
    let lab = Lab::new();
    let uris = ["ringwatch://sensor/a", "https://example.org/"];
    let own = lab.authority.issue(&uris, &[ExtendedKeyUsagePurpose::ClientAuth]);
    check_handshake(&lab, Some(&own), "wrong_role");
}

#[test]
fn a_certificate_that_allows_more_than_a_client_is_refused() {
    for purposes in [
        &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth][..],
        &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any],
        &[],
    ] {
        let lab = Lab::new();
        let own = lab.authority.issue(&["ringwatch://sensor/a"], purposes);
        check_handshake(&lab, Some(&own), "wrong_role");
    }
}

#[test]
fn a_sensor_that_calls_itself_by_another_name_is_closed() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::connect(&collector.sensors, &ca, &lab.authority.sensor("a")).unwrap();
    sensor.send(&Control::SensorHello(hello("b", 5)));
    sensor.read_to_end();
    check_refused(&collector, "name_mismatch");
    let said = "sensor calls itself \\\"b\\\", its certificate says \\\"a\\\"";
    assert!(collector.log().contains(said), "{}", collector.log());
}

#[test]
fn garbage_instead_of_tls_is_closed() {
    let lab = Lab::new();
    let collector = lab.start();
    let mut stream = TcpStream::connect(&collector.sensors).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    check_refused(&collector, "tls_handshake");
    assert_eq!(collector.status()["handshake_failures"]["not_tls"], 1);
}

#[test]
fn many_refused_connections_of_one_peer_are_one_log_line() {
    let lab = Lab::new();
    lab.configure_listen("loops = 3\n", "");
    let collector = lab.start();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&collector.sensors).unwrap();
        stream.write_all(b"garbage garbage garbage").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    collector.wait_for_status("50 refusals", |status| status["refused"]["tls_handshake"] == 50);
    assert_eq!(collector.log().matches("WARN").count(), 1, "{}", collector.log());
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_suppressed_lines_total 49"), "{metrics}");
}

#[test]
fn garbage_within_tls_is_closed() {
    check_misbehaviour(b"garbage instead of a header, long enough", "bad_magic");
}

#[test]
fn a_wrong_checksum_is_closed() {
    let mut bytes = frame_batch(1, &[vec![1; 60]]);
    *bytes.last_mut().unwrap() ^= 1;
    check_misbehaviour(&bytes, "bad_crc");
}

#[test]
fn a_message_longer_than_the_limit_is_closed_before_it_arrives() {
    let mut bytes = frame_batch(1, &[vec![1; 60]]);
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    check_misbehaviour(&bytes[..32], "too_long");
}

#[test]
fn another_version_is_closed() {
    let mut bytes = frame_batch(1, &[vec![1; 60]]);
    bytes[4] = 9;
    check_misbehaviour(&bytes, "unsupported_version");
}

#[test]
fn frames_of_an_undeclared_interface_are_closed() {
    let mut bytes = encoded(Control::Interfaces(Interfaces {
        interfaces: vec![Interface { id: 8, name: "x".into(), linktype: 1, snaplen: 1 }],
    }));
    let mut batch = wire::frames::FrameBatchWriter::new(1, 1);
    batch.try_push(UnixNanos(1), wire::units::WireLen(1), 9, &[&[0]]).unwrap();
    bytes.extend_from_slice(batch.finish(wire::units::Sequence(1)));
    check_misbehaviour(&bytes, "unknown_interface");
}

#[test]
fn a_record_that_is_no_object_is_closed() {
    check_misbehaviour(&record_batch(1, &[(RecordKind::Flow, "[1]")]), "bad_record");
}

#[test]
fn an_event_in_the_name_of_another_sensor_is_closed() {
    let forged = r#"{"ringwatch":{"sensor":"good"}}"#;
    check_misbehaviour(&record_batch(1, &[(RecordKind::Alert, forged)]), "name_mismatch");
}

#[test]
fn a_second_hello_is_closed() {
    check_misbehaviour(&encoded(Control::SensorHello(hello("bad", 5))), "wrong_order");
}

#[test]
fn data_before_the_hello_is_closed() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::connect(&collector.sensors, &ca, &lab.authority.sensor("a")).unwrap();
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    sensor.read_to_end();
    check_refused(&collector, "wrong_order");
    assert_eq!(lab.events_of(&collector), "");
}

#[test]
fn a_sensor_that_connects_again_replaces_its_older_connection() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut older = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    older.send_records(1, &[(RecordKind::Flow, "{}")]);
    older.wait_for_ack(1, 0);
    let mut newer = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    older.read_to_end();
    newer.send_records(2, &[(RecordKind::Flow, "{}")]);
    newer.wait_for_ack(2, 0);
    assert_eq!(newer.counts, (1, 0));
    let line = collector.wait_for_line("sensor disconnected");
    assert!(line.contains("replaced by a newer connection"), "{line}");
    assert_eq!(collector.status()["sensors"][0]["connected"], true);
    for _ in 0..5 {
        newer = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    }
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_replaced_connections_total 6"), "{metrics}");
    assert_eq!(collector.log().matches("replaced by a newer").count(), 1, "{}", collector.log());
    assert_eq!(collector.status()["sensors"][0]["ended"], false);
    newer.send(&Control::Goodbye(Goodbye { reason: "shutdown".into() }));
    newer.read_to_end();
    collector.wait_for_status("end", |status| status["sensors"][0]["ended"] == true);
    let _newest = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    assert_eq!(collector.status()["sensors"][0]["ended"], false);
}

#[test]
fn a_heartbeat_is_answered_at_once_and_tells_the_clock_offset() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    sensor.send(&Control::Heartbeat(Heartbeat { sent_at: UnixNanos(77), echo: None }));
    // The first one comes with the greeting, the second is the answer.
    while sensor.heartbeats.len() < 2 {
        sensor.receive().unwrap();
    }
    let beat = sensor.heartbeats[1];
    assert_eq!(beat.echo.unwrap().sent_at, UnixNanos(77));
    // A sensor whose clock is two seconds ahead.
    let echo = wire::message::Echo { sent_at: beat.sent_at, held_for: 0 };
    let sent_at = beat.sent_at.plus(Duration::from_secs(2));
    sensor.send(&Control::Heartbeat(Heartbeat { sent_at, echo: Some(echo) }));
    let status = collector
        .wait_for_status("offset", |status| status["sensors"][0]["clock_offset_ms"].is_number());
    let offset = status["sensors"][0]["clock_offset_ms"].as_f64().unwrap();
    assert!((1500.0..=2500.0).contains(&offset), "{offset}");
}

#[test]
fn a_sensor_whose_clock_is_ten_minutes_behind_is_a_problem_with_its_remedy() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    while sensor.heartbeats.is_empty() {
        sensor.receive().unwrap();
    }
    let theirs = sensor.heartbeats[0].sent_at;
    let echo = wire::message::Echo { sent_at: theirs, held_for: 0 };
    let sent_at = UnixNanos(theirs.0 - 600_000_000_000);
    sensor.send(&Control::Heartbeat(Heartbeat { sent_at, echo: Some(echo) }));
    collector
        .wait_for_status("offset", |status| status["sensors"][0]["clock_offset_ms"].is_number());
    let (status, body) = collector.get("/healthz");
    assert_eq!(status, 503, "{body}");
    let said = ["599", "600", "601"].map(|seconds| {
        format!("the clock of sensor a is {seconds} s behind: synchronise both clocks")
    });
    assert!(said.iter().any(|said| body.contains(said)), "{body}");
}

/// Connections of one loopback address that say nothing.
fn silent_peers(collector: &Collector, address: [u8; 4], count: usize) -> Vec<socket2::Socket> {
    let target: std::net::SocketAddr = collector.sensors.parse().unwrap();
    let connect = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&std::net::SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&target.into()).unwrap();
        socket
    };
    (0..count).map(connect).collect()
}

#[test]
fn peers_that_only_hold_their_place_are_displaced_by_newer_ones() {
    let lab = Lab::new();
    lab.configure_listen("loops = 4\n", "");
    let collector = lab.start();
    let _of_one = silent_peers(&collector, [127, 0, 0, 2], 20);
    collector.wait_for_status("4 displaced", |status| status["refused"]["handshake_crowded"] == 4);
    // With the 16 of above 144 connections; 128 may be in their handshake.
    let _others: Vec<_> =
        (3..=10).map(|last| silent_peers(&collector, [127, 0, 0, last], 16)).collect();
    collector.wait_for_status("20 in all", |status| status["refused"]["handshake_crowded"] == 20);
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(1, 0);
}

#[test]
fn sensors_of_one_address_that_come_together_do_not_throw_each_other_out() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    // More than 16; all are connected before the first one goes on.
    let callers: Vec<_> = (0..24)
        .map(|number| {
            let own = lab.authority.sensor(&format!("s{number}"));
            (TcpStream::connect(&collector.sensors).unwrap(), own)
        })
        .collect();
    std::thread::scope(|scope| {
        for (socket, own) in callers {
            let ca = &ca;
            scope.spawn(move || {
                // The collector's first word comes after it has verified the certificate.
                let mut stream = handshake_over(socket, ca, Some(&own)).unwrap();
                assert!(stream.read(&mut [0; 16]).unwrap() > 0);
            });
        }
    });
    let refused = &collector.status()["refused"];
    assert_eq!(refused["handshake_crowded"], 0, "{refused}");
}

#[test]
fn sensors_get_in_although_silent_peers_hold_every_connection() {
    let lab = Lab::new();
    let collector = lab.start_after("ulimit -Sn 100; ulimit -Hn 144");
    assert_eq!(collector.file_limits(), ("144".to_owned(), "144".to_owned()));
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let _peers = [2, 3].map(|last| silent_peers(&collector, [127, 0, 0, last], 15));
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let _peers = [4, 5].map(|last| silent_peers(&collector, [127, 0, 0, last], 15));
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(1, 0);
    let refused = &collector.status()["refused"];
    assert_eq!(refused["too_many_connections"], 0, "{refused}");
    assert_eq!(refused["accept_failed"], 0, "{refused}");
}

#[test]
fn a_peer_that_does_not_shake_hands_is_closed_after_ten_seconds() {
    let lab = Lab::new();
    let collector = lab.start();
    let start = Instant::now();
    let mut stream = TcpStream::connect(&collector.sensors).unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    let waited = start.elapsed();
    assert!((10..13).contains(&waited.as_secs()), "{waited:?}");
    check_refused(&collector, "handshake_timeout");
}

#[test]
fn a_silent_sensor_is_given_up_after_fifteen_seconds() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let start = Instant::now();
    sensor.read_to_end();
    let waited = start.elapsed();
    assert!((14..18).contains(&waited.as_secs()), "{waited:?}");
    assert!(sensor.heartbeats.len() >= 3, "{}", sensor.heartbeats.len());
    check_refused(&collector, "silent");
}

/// Sends `bytes` one by one, a second apart, until the collector closes; for how long that took.
fn dribble(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            break;
        }
        match stream.read(&mut [0; 64]) {
            Ok(0) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
            Ok(_) => panic!("the collector answers half a message"),
        }
    }
    start.elapsed()
}

#[test]
fn a_handshake_byte_by_byte_is_closed_after_ten_seconds() {
    let lab = Lab::new();
    let collector = lab.start();
    let mut stream = TcpStream::connect(&collector.sensors).unwrap();
    // A TLS record of 512 bytes, the first of which are those of a ClientHello.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0);
    let waited = dribble(&mut stream, &hello);
    assert!((9..14).contains(&waited.as_secs()), "{waited:?}");
    check_refused(&collector, "handshake_timeout");
}

#[test]
fn a_message_byte_by_byte_is_closed_after_fifteen_seconds() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let message = frame_batch(1, &[vec![1; 600]]);
    let start = Instant::now();
    for byte in message {
        sensor.send_bytes(&[byte]);
        std::thread::sleep(Duration::from_millis(500));
        if collector.status()["refused"]["silent"] == 1 {
            break;
        }
    }
    let waited = start.elapsed();
    assert!((13..19).contains(&waited.as_secs()), "{waited:?}");
    check_refused(&collector, "silent");
}

#[test]
fn a_sensor_that_brings_more_than_its_share_is_read_more_slowly_and_others_are_not() {
    let lab = Lab::new();
    lab.configure_listen("sensor_records_per_second = 100\n", "segment_age = \"24h\"");
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let mut greedy =
        Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("greedy"), "greedy", 5);
    let mut modest =
        Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("modest"), "modest", 5);
    let start = Instant::now();
    for sequence in 1..=500 {
        greedy.send_records(sequence, &[(RecordKind::Flow, "{}")]);
    }
    modest.send_records(1, &[(RecordKind::Flow, "{}")]);
    modest.wait_for_ack(1, 0);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    greedy.wait_for_ack(500, 0);
    // A hundred at once, and a hundred a second; records of one read of the socket are taken whole.
    let waited = start.elapsed();
    let metrics = collector.get("/metrics").1;
    let pauses = |name: &str| format!("ringwatch_sensor_pauses_total{{sensor=\"{name}\"}} ");
    assert!(metrics.contains(&format!("{}0\n", pauses("modest"))), "{metrics}");
    assert!(!metrics.contains(&format!("{}0\n", pauses("greedy"))), "{metrics}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    assert_eq!(collector.status()["refused"]["silent"], 0);
}

#[test]
fn to_come_again_is_no_way_to_bring_more() {
    let lab = Lab::new();
    lab.configure_listen("sensor_records_per_second = 50\n", "segment_age = \"24h\"");
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let batch = [(RecordKind::Flow, "{}"); 200];
    sensor.send_records(1, &batch);
    sensor.wait_for_ack(200, 0);
    let start = Instant::now();
    // The share is overdrawn by 150 records, which takes three seconds.
    let mut again = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    again.send_records(201, &batch[..1]);
    again.wait_for_ack(201, 0);
    assert!(start.elapsed() > Duration::from_millis(2500), "{:?}", start.elapsed());
}

#[test]
fn a_session_ends_when_its_certificate_expires() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor_until("a", 3), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let start = Instant::now();
    sensor.read_to_end();
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(6), "{waited:?}");
    assert_eq!(sensor.goodbye.as_deref(), Some("certificate no longer trusted"));
    check_refused(&collector, "distrusted");
    let line = collector.wait_for_line("distrusted");
    assert!(line.contains("the sensor's certificate expired at"), "{line}");
    assert!(line.contains("sensor=\"a\""), "{line}");
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_sensor_certificate_expiry_seconds{sensor=\"a\"} -"));
}

#[test]
fn a_certificate_of_a_sensor_that_expires_soon_is_a_problem_while_it_is_connected() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let day = 24 * 3600;
    let _late = Sensor::join(
        &collector.sensors,
        &ca,
        &lab.authority.sensor_until("late", 15 * day),
        "late",
        5,
    );
    assert_eq!(collector.get("/healthz"), (200, "ok\n".to_owned()));
    let own = lab.authority.sensor_until("soon", 13 * day);
    let mut soon = Sensor::join(&collector.sensors, &ca, &own, "soon", 5);
    let (status, body) = collector.get("/healthz");
    assert_eq!(status, 503);
    assert!(body.starts_with("the certificate of sensor soon expires at "), "{body}");
    assert!(body.ends_with(": ringwatch pki renew DIR soon\n"), "{body}");
    let status = collector.status();
    assert_eq!(format!("{}\n", status["problems"][0].as_str().unwrap()), body);
    soon.send(&Control::Goodbye(Goodbye { reason: "shutdown".into() }));
    soon.read_to_end();
    collector.wait_for_status("away", |status| status["problems"] == serde_json::json!([]));
}

#[test]
fn a_flood_of_handshakes_neither_stops_a_sensor_nor_takes_memory() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::join(&collector.sensors, &ca, &lab.authority.sensor("a"), "a", 5);
    let before = collector.resident_kib();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // Far enough to cost the collector a signature; it is refused without a certificate.
                    let _ = handshake(&collector.sensors, &ca, None);
                }
            });
        }
        for sequence in 1..=100 {
            sensor.send_records(sequence, &[(RecordKind::Flow, "{}")]);
            sensor.wait_for_ack(sequence, 0);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let refused = collector.status()["handshake_failures"]["no_certificate"].as_u64().unwrap();
    assert!(refused > 50, "{refused}");
    let growth = collector.resident_kib().saturating_sub(before);
    // 128 handshakes of 64 KiB at most; hundreds were made.
    assert!(growth < 32 << 10, "{growth} KiB after {refused} handshakes");
}
