//! What is taken is stored, once, and acknowledged.

use std::process::Command;

use nix::sys::signal::Signal;
use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader};
use wire::header::Stream;
use wire::ledger::{InterfaceLedger, Ledger};
use wire::message::{Control, Gap, Interface, Interfaces, RecordGap, SensorHello};
use wire::records::RecordKind;
use wire::units::{Sequence, UnixNanos, WireLen};

use crate::lab::{Lab, wait_until};
use crate::sensor::Sensor;

/// Frames of many lengths, so that every padding occurs.
fn frames(count: u8) -> Vec<Vec<u8>> {
    (0..count).map(|number| vec![number; 60 + usize::from(number) % 37]).collect()
}

/// Interface names and packets (interface, data) of a segment.
pub fn read_segment(path: &std::path::Path) -> (Vec<String>, Vec<(u32, Vec<u8>)>) {
    let file = std::fs::File::open(path).unwrap();
    let mut reader = PcapNGReader::new(1 << 20, file).unwrap();
    let (mut names, mut packets) = (Vec::new(), Vec::new());
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                        assert_eq!(block.if_tsresol, 9);
                        let name = block.if_name().unwrap().unwrap();
                        names.push(name.to_owned());
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                        let data = &block.data[..block.caplen as usize];
                        packets.push((block.if_id, data.to_vec()));
                    }
                    _ => {}
                }
                reader.consume(offset);
            }
            Err(PcapError::Eof) => return (names, packets),
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(error) => panic!("{}: {error:?}", path.display()),
        }
    }
}

fn event(sensor: &str, number: u64) -> String {
    format!(r#"{{"event_type":"flow","ringwatch":{{"sensor":"{sensor}","n":{number}}}}}"#)
}

/// Waits until this stands in the copy of the marks.
fn wait_for_mark(lab: &Lab, mark: &str) {
    let marks = lab.store().join("records/marks.json");
    let text = || std::fs::read_to_string(&marks).unwrap_or_default();
    wait_until("mark", || text().contains(mark).then_some(()), text);
}

#[test]
fn frames_and_records_are_stored_as_sent_and_acknowledged() {
    let lab = Lab::new();
    let collector = lab.start();
    let own = lab.authority.sensor("web-1");
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "web-1", 5);
    assert_eq!((sensor.hello.collector.as_str(), sensor.hello.resume), ("ids", None));

    sensor.send_frames(1, &frames(100));
    sensor.send_frames(2, &frames(3));
    let alert = event("web-1", 2);
    sensor.send_records(1, &[(RecordKind::Flow, r#"{"a":1}"#), (RecordKind::Alert, &alert)]);
    let interface = InterfaceLedger {
        name: "eth0".into(),
        kernel_packets: 110,
        kernel_drops: 7,
        analysed: 103,
        exported: 103,
        ..Default::default()
    };
    let ledger = Ledger { interfaces: vec![interface], ..Default::default() };
    sensor.send(&Control::LedgerReport(ledger.clone()));
    sensor.wait_for_ack(2, 2);

    assert_eq!(sensor.counts, (2, 103));
    assert_eq!(lab.events_of(&collector), format!("{{\"a\":1}}\n{alert}\n"));
    let status = collector.wait_for_status("ledger", |status| {
        status["sensors"][0]["ledger"]["interfaces"][0]["kernel_drops"] == 7
    });
    let shown = &status["sensors"][0];
    assert_eq!(shown["connected"], true);
    assert_eq!(shown["frames"], 103);
    assert_eq!(shown["records"], 2);
    assert_eq!(shown["alerts"], 1);
    assert_eq!(shown["host"], "host");
    assert_eq!(status["store"]["frames"], 103);
    let open = status["store"]["open_segment"].as_str().unwrap().to_owned();
    assert!(open.ends_with(".pcapng.part"), "{open}");
    assert_eq!(collector.get("/healthz"), (200, "ok\n".to_owned()));
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_stored_frames_total{sensor=\"web-1\"} 103"), "{metrics}");

    let log = collector.stop();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    sensor.read_to_end();
    assert_eq!(sensor.goodbye.as_deref(), Some("shutdown"));
    let segments = lab.segments();
    assert_eq!(segments.len(), 1);
    let (names, packets) = read_segment(&segments[0]);
    assert_eq!(names, ["web-1/eth0"]);
    let sent: Vec<_> = frames(100).into_iter().chain(frames(3)).map(|frame| (0, frame)).collect();
    assert_eq!(packets, sent);
}

#[test]
fn capinfos_and_tshark_read_a_segment_without_complaint() {
    if !perf::tools::require(&["capinfos", "tshark"]) {
        return;
    }
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    for name in ["a", "b"] {
        let own = lab.authority.sensor(name);
        let mut sensor = Sensor::join(&collector.sensors, &ca, &own, name, 5);
        sensor.send_frames(1, &frames(50));
        let interface =
            InterfaceLedger { name: "eth0".into(), kernel_drops: 3, ..Default::default() };
        let ledger = Ledger { interfaces: vec![interface], ..Default::default() };
        sensor.send(&Control::LedgerReport(ledger));
        sensor.wait_for_ack(0, 1);
        sensor.leave();
    }
    collector.wait_for_status("two ledgers", |status| {
        let sensors = status["sensors"].as_array().unwrap();
        sensors.len() == 2 && sensors.iter().all(|sensor| sensor["connected"] == false)
    });
    collector.stop();
    let segment = &lab.segments()[0];
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).arg(segment).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {errors}");
        // tshark says so when it runs as root.
        let errors: Vec<_> = errors.lines().filter(|line| !line.contains("as user")).collect();
        assert!(errors.is_empty(), "{program}: {errors:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let infos = run("capinfos", &[]);
    for part in [
        "Number of packets:   100",
        "File timestamp precision:  nanoseconds (9)",
        "Name = a/eth0",
        "Name = b/eth0",
        "Time precision = nanoseconds (9)",
        "Number of stat entries = 1",
    ] {
        assert!(infos.contains(part), "{part:?} is not in {infos}");
    }
    let times = run("tshark", &["-T", "fields", "-e", "frame.time_epoch", "-c", "1", "-r"]);
    assert_eq!(times.trim(), "1700000000.000000001");
}

#[test]
fn tcpdump_reads_segments_of_sensors_with_other_snap_lengths_and_link_types() {
    if !perf::tools::require(&["capinfos", "tcpdump"]) {
        return;
    }
    const RAW: u16 = 101;
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    for (name, snaplen) in [("a", 65535), ("b", 96)] {
        let mut sensor =
            Sensor::join(&collector.sensors, &ca, &lab.authority.sensor(name), name, 5);
        let interface = |id, linktype| Interface {
            id,
            name: format!("eth{id}"),
            linktype,
            snaplen: snaplen + id,
        };
        let interfaces = vec![interface(1, 1), interface(2, RAW), interface(3, 1)];
        sensor.send(&Control::Interfaces(Interfaces { interfaces }));
        let mut batch = wire::frames::FrameBatchWriter::new(1, 65535);
        for number in 0..60 {
            let frame = vec![0x45; 60];
            let id = 1 + number % 3;
            batch.try_push(UnixNanos(1), WireLen(60), id, &[&frame]).unwrap();
        }
        sensor.send_bytes(batch.finish(Sequence(1)));
        sensor.wait_for_ack(0, 1);
        assert_eq!(sensor.counts.1, 60);
    }
    let open = collector.status()["store"]["open_segments"].as_array().unwrap().len();
    assert_eq!(open, 3);
    collector.stop();
    let mut counts = Vec::new();
    for segment in lab.segments() {
        let output = Command::new("tcpdump").args(["-nn", "-r"]).arg(&segment).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        let link = ["EN10MB", "RAW"].into_iter().find(|link| errors.contains(link)).unwrap();
        // A packet that tcpdump shows in hexadecimal takes further lines, which are indented.
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        counts.push((link, lines.lines().filter(|line| !line.starts_with('\t')).count()));
        let infos = Command::new("capinfos").arg(&segment).output().unwrap();
        assert!(infos.status.success() && infos.stderr.is_empty(), "{infos:?}");
    }
    counts.sort_unstable();
    assert_eq!(counts, [("EN10MB", 80), ("RAW", 20), ("RAW", 20)]);
}

#[test]
fn two_sensors_at_once_are_kept_apart() {
    let lab = Lab::new();
    let collector = lab.start();
    let ca = lab.authority.certificate();
    std::thread::scope(|scope| {
        for (name, batches) in [("a", 40), ("b", 60)] {
            let own = lab.authority.sensor(name);
            let (address, ca) = (&collector.sensors, &ca);
            scope.spawn(move || {
                let mut sensor = Sensor::join(address, ca, &own, name, 5);
                for number in 1..=batches {
                    sensor.send_frames(number, &frames(100));
                    sensor.send_records(number, &[(RecordKind::Flow, &event(name, number))]);
                }
                sensor.wait_for_ack(batches, batches);
                assert_eq!(sensor.counts, (batches, batches * 100));
            });
        }
    });
    collector.stop();
    let (names, packets) = read_segment(&lab.segments()[0]);
    for (name, batches) in [("a/eth0", 40), ("b/eth0", 60)] {
        let number = names.iter().position(|known| known == name).unwrap();
        let own: Vec<_> = packets.iter().filter(|(id, _)| *id as usize == number).collect();
        assert_eq!(own.len(), batches * 100);
        let sent: Vec<_> = (0..batches).flat_map(|_| frames(100)).collect();
        assert!(own.iter().zip(&sent).all(|((_, stored), sent)| stored == sent));
    }
    let events = lab.events();
    for (name, count) in [("a", 40), ("b", 60)] {
        let own: Vec<_> =
            events.lines().filter(|line| line.contains(&format!("{name:?}"))).collect();
        let sent: Vec<_> = (1..=count).map(|number| event(name, number)).collect();
        assert_eq!(own, sent);
    }
}

#[test]
fn a_full_segment_is_sealed_and_the_next_one_describes_its_interfaces_again() {
    let lab = Lab::new();
    lab.configure("segment_mib = 1");
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    let large: Vec<_> = (0..40).map(|number| vec![number; 1500]).collect();
    for number in 1..=50 {
        sensor.send_frames(number, &large);
    }
    sensor.wait_for_ack(0, 50);
    collector
        .wait_for_status("two sealed segments", |status| status["store"]["segments_sealed"] == 2);
    collector.stop();
    let segments = lab.segments();
    assert_eq!(segments.len(), 3);
    let mut total = 0;
    for segment in &segments {
        let (names, packets) = read_segment(segment);
        assert_eq!(names, ["a/eth0"]);
        total += packets.len();
    }
    assert_eq!(total, 50 * 40);
}

#[test]
fn a_segment_is_sealed_when_it_is_old_enough() {
    let lab = Lab::new();
    lab.configure("segment_age = \"1s\"");
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    sensor.send_frames(1, &frames(1));
    sensor.wait_for_ack(0, 1);
    let find = || lab.segments().first().cloned();
    let segment = wait_until("sealed segment", find, || collector.log());
    assert_eq!(read_segment(&segment).1.len(), 1);
    assert!(collector.status()["store"]["open_segment"].is_null());
}

#[test]
fn what_was_acknowledged_survives_a_kill_and_is_stored_once() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    for number in 1..=20 {
        sensor.send_records(number, &[(RecordKind::Flow, &event("a", number))]);
        sensor.send_frames(number, &frames(10));
    }
    sensor.wait_for_ack(20, 20);
    // Marks of frames alone are written once a second.
    wait_for_mark(&lab, r#""stream":"frames","epoch":5,"last":20}"#);
    collector.kill();
    drop(sensor);

    let collector = lab.start();
    assert!(collector.log().contains("sealed a segment of an earlier run"), "{}", collector.log());
    assert_eq!(collector.status()["sensors"][0]["connected"], false);
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    let resume = sensor.hello.resume.unwrap();
    assert_eq!((resume.boot_epoch, resume.records.0, resume.frames.0), (5, 20, 20));
    // The sensor has not heard of the last acknowledgements and sends again.
    let again: Vec<_> = (19..=22).map(|number| event("a", number)).collect();
    let records: Vec<_> = again.iter().map(|json| (RecordKind::Flow, json.as_str())).collect();
    sensor.send_records(19, &records);
    sensor.send_frames(20, &frames(10));
    sensor.send_frames(21, &frames(10));
    sensor.wait_for_ack(22, 21);
    let status = collector.status();
    assert_eq!(status["sensors"][0]["duplicates"], 3);
    collector.stop();

    let sent: Vec<_> = (1..=22).map(|number| event("a", number)).collect();
    assert_eq!(lab.events().lines().collect::<Vec<_>>(), sent);
    let stored: usize = lab.segments().iter().map(|path| read_segment(path).1.len()).sum();
    assert_eq!(stored, 21 * 10);
}

#[test]
fn a_torn_segment_and_a_torn_line_are_cut_at_the_next_start() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    sensor.send_records(1, &[(RecordKind::Flow, &event("a", 1))]);
    sensor.send_frames(1, &frames(10));
    sensor.wait_for_ack(1, 1);
    let open = collector.status()["store"]["open_segment"].as_str().unwrap().to_owned();
    lab.events_of(&collector);
    collector.kill();
    let events = lab.store().join("events/eve.json");
    for (path, torn) in [
        (open.as_ref(), &b"\x06\0\0\0\x40\0\0\0half a packet"[..]),
        (events.as_path(), b"{\"torn\""),
    ] {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(torn).unwrap();
    }
    let no_segment = lab.store().join("frames/.20200101T000000.000000Z.pcapng.part");
    std::fs::write(&no_segment, "not a block").unwrap();
    let collector = lab.start();
    assert_eq!(lab.events_of(&collector), event("a", 1) + "\n");
    let segment = &lab.segments()[0];
    assert_eq!(read_segment(segment).1.len(), 10);
    let torn = std::fs::read(segment.with_extension("pcapng.torn")).unwrap();
    assert_eq!(torn, b"\x06\0\0\0\x40\0\0\0half a packet");
    let renamed = lab.store().join("frames/20200101T000000.000000Z.pcapng.torn");
    assert_eq!(std::fs::read(renamed).unwrap(), b"not a block");
    let metrics = collector.get("/metrics").1;
    assert!(metrics.contains("ringwatch_torn_bytes_total 28"), "{metrics}");
    collector.stop();
}

#[test]
fn a_new_run_of_a_sensor_begins_its_sequences_anew() {
    let lab = Lab::new();
    let collector = lab.start();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    for boot_epoch in [5, 6] {
        let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "a", boot_epoch);
        sensor.send_records(1, &[(RecordKind::Flow, &event("a", boot_epoch))]);
        sensor.wait_for_ack(1, 0);
        sensor.leave();
    }
    assert_eq!(lab.events_of(&collector), format!("{}\n{}\n", event("a", 5), event("a", 6)));
    assert_eq!(collector.status()["sensors"][0]["duplicates"], 0);
}

#[test]
fn the_records_of_a_spool_are_stored_once_over_restarts_of_both_ends() {
    let lab = Lab::new();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let run = |boot_epoch| SensorHello {
        minor: 1,
        // No spool is younger than the run that uses it.
        spool_epoch: 3,
        ..crate::sensor::hello("a", boot_epoch)
    };
    let collector = lab.start();
    let mut sensor = Sensor::introduce(&collector.sensors, &ca, &own, run(5));
    sensor.send_alerts(1, &[(RecordKind::Alert, &event("a", 1))]);
    sensor.send_records(1, &[(RecordKind::Flow, &event("a", 2))]);
    sensor.send_frames(9, &frames(1));
    sensor.wait_for_alert(1);
    sensor.wait_for_ack(1, 9);
    wait_for_mark(&lab, r#""stream":"frames","epoch":5,"last":9}"#);
    collector.kill();
    drop(sensor);

    let collector = lab.start();
    let mut sensor = Sensor::introduce(&collector.sensors, &ca, &own, run(6));
    let resume = sensor.hello.resume.unwrap();
    assert_eq!((sensor.hello.minor, resume.boot_epoch, resume.spool_epoch), (1, 5, 3));
    assert_eq!((resume.records.0, resume.alerts.0), (1, 1));
    // It had not heard of either acknowledgement.
    let again = [1, 3].map(|number| event("a", number));
    let alerts: Vec<_> = again.iter().map(|json| (RecordKind::Alert, json.as_str())).collect();
    sensor.send_alerts(1, &alerts);
    sensor.send_records(1, &[(RecordKind::Flow, &event("a", 2))]);
    // Another run begins its frames anew.
    sensor.send_frames(1, &frames(1));
    sensor.send(&Control::Gap(Gap {
        stage: "spool".into(),
        reason: "spool_full".into(),
        frames: 0,
        bytes: 0,
        from: UnixNanos(1),
        to: UnixNanos(2),
        records: Some(RecordGap { stream: Stream::Records, first: Sequence(2), last: Sequence(4) }),
    }));
    sensor.send_records(5, &[(RecordKind::Flow, &event("a", 4))]);
    sensor.wait_for_alert(2);
    sensor.wait_for_ack(5, 1);
    let sensors = &collector.status()["sensors"][0];
    assert_eq!((&sensors["duplicates"], &sensors["missing"]), (&2.into(), &0.into()));
    assert_eq!(sensors["gap_records"], 3);
    collector.stop();
    let expected: String = (1..=4).map(|number| event("a", number) + "\n").collect();
    assert_eq!(lab.events(), expected);
}

#[test]
fn a_hole_in_the_sequence_is_counted_and_no_reason_to_stop() {
    let lab = Lab::new();
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    // Nothing is known of this run: what lies before is not the collector's to miss.
    sensor.send_frames(101, &frames(1));
    sensor.send_records(101, &[(RecordKind::Flow, "{}")]);
    sensor.send_frames(105, &frames(1));
    sensor.send_records(112, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(112, 105);
    assert_eq!(collector.status()["sensors"][0]["missing"], 13);
    let last = u64::MAX - 1;
    sensor.send_frames(last, &frames(1));
    sensor.send_records(last, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(last, last);
    assert_eq!(collector.status()["sensors"][0]["missing"], u64::MAX);
}

#[test]
fn all_that_was_sent_before_a_stop_is_stored_or_not_acknowledged() {
    let lab = Lab::new();
    let mut collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    for number in 1..=100 {
        sensor.send_frames(number, &frames(100));
        sensor.send_records(number, &[(RecordKind::Flow, &event("a", number))]);
    }
    collector.signal(Signal::SIGINT);
    sensor.read_to_end();
    assert_eq!(collector.wait().code(), Some(0), "{}", collector.log());
    let stored: usize = lab.segments().iter().map(|path| read_segment(path).1.len()).sum();
    let (records, batches) = sensor.acknowledged;
    assert_eq!(lab.events().lines().count() as u64, records);
    assert_eq!(stored as u64, batches * 100);
}

#[test]
fn the_event_log_can_be_rotated() {
    let lab = Lab::new();
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    let path = lab.store().join("events/eve.json");
    let older = path.with_extension("json.1");
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(1, 0);
    lab.events_of(&collector);
    std::fs::rename(&path, &older).unwrap();
    collector.signal(Signal::SIGHUP);
    let is_there = || path.exists().then_some(());
    wait_until("new event log", is_there, || collector.log());
    sensor.send_records(2, &[(RecordKind::Flow, "{ }")]);
    sensor.wait_for_ack(2, 0);
    assert_eq!(lab.events_of(&collector), "{ }\n");
    // Without a signal.
    std::fs::remove_file(&path).unwrap();
    sensor.send_records(3, &[(RecordKind::Flow, "{  }")]);
    sensor.wait_for_ack(3, 0);
    assert_eq!(lab.events_of(&collector), "{  }\n");
    // As logrotate does with copytruncate.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    sensor.send_records(4, &[(RecordKind::Flow, "{   }")]);
    sensor.wait_for_ack(4, 0);
    assert_eq!(lab.events_of(&collector), "{   }\n");
    assert_eq!(std::fs::read_to_string(&older).unwrap(), "{}\n");
    collector.stop();
}

#[test]
fn a_record_is_on_the_disk_before_its_sensor_is_told() {
    if !perf::tools::require(&["strace"]) || !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(1, 0);
    let trace = lab.path().join("trace");
    let process = collector.id().to_string();
    let mut strace = Command::new(perf::tools::find("strace").unwrap())
        .args(["-f", "-y", "-e", "trace=pwrite64,fdatasync,sendto,write", "-p", &process, "-o"])
        .arg(&trace)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let threads = || std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let is_traced = |entry: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        !status.contains("TracerPid:\t0")
    };
    let all = || threads().all(is_traced).then_some(());
    wait_until("traced threads", all, || process.clone());
    sensor.send_records(2, &[(RecordKind::Flow, "{}")]);
    sensor.wait_for_ack(2, 0);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(strace.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    strace.wait().unwrap();

    let trace = std::fs::read_to_string(trace).unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    let is_log = |line: &str| line.contains("/records/0000") && line.contains(".log>");
    let written = lines.iter().position(|line| line.contains("pwrite64") && is_log(line)).unwrap();
    let asked = lines.iter().position(|line| line.contains("fdatasync") && is_log(line)).unwrap();
    // Interrupted in the trace by what other threads do meanwhile, or not.
    let is_done = |line: &&str| line.contains("fdatasync") && line.ends_with("= 0");
    let synced = asked + lines[asked..].iter().position(is_done).unwrap();
    let tells = |line: &&str| line.contains("sendto(");
    let early = lines[written..synced].iter().filter(|line| tells(line)).count();
    let told = lines[synced..].iter().filter(|line| tells(line)).count();
    assert!(written < asked && early == 0 && told > 0, "{trace}");
}
