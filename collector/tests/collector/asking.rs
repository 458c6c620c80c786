//! Stored frames are found again.

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, OptionCode, PcapBlockOwned, PcapError, PcapNGReader};
use wire::frames::FrameBatchWriter;
use wire::units::{Sequence, UnixNanos, WireLen};

use crate::lab::{Collector, Lab, wait_until};
use crate::sensor::Sensor;
use crate::storing::read_segment;

/// Frames of one conversation each, seen a second apart.
fn frames(count: u16) -> Vec<Vec<u8>> {
    let host = |last: u16, port| format!("192.0.2.{last}:{port}").parse().unwrap();
    let frame = |number| perf::frames::udp(host(number + 1, 40_000), host(250, 53), b"question");
    (0..count).map(frame).collect()
}

/// A sensor with these frames stored.
fn store(lab: &Lab, collector: &Collector, name: &str, frames: &[Vec<u8>]) {
    let own = lab.authority.sensor(name);
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, name, 5);
    let mut batch = FrameBatchWriter::new(1, 65_535);
    for (second, frame) in (1000..).zip(frames) {
        let wire_len = WireLen(u32::try_from(frame.len()).unwrap());
        batch.try_push(UnixNanos(second * 1_000_000_000), wire_len, 7, &[frame]).unwrap();
    }
    sensor.send_bytes(batch.finish(Sequence(1)));
    sensor.wait_for_ack(0, 1);
}

/// Status, header `ringwatch-expired`, body.
fn ask(collector: &Collector, query: &str) -> (u16, Option<String>, Vec<u8>) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let url = format!("http://{}/api/v1/frames?{query}", collector.api);
    let bearer = format!("Bearer {}", collector.token);
    let mut answer = agent.get(&url).header("Authorization", bearer).call().unwrap();
    let expired = answer.headers().get("ringwatch-expired").map(|v| v.to_str().unwrap().to_owned());
    (answer.status().as_u16(), expired, answer.body_mut().read_to_vec().unwrap())
}

/// Frames of an answer, as a program that is not ours reads them.
fn found(collector: &Collector, query: &str) -> (Vec<String>, Vec<Vec<u8>>) {
    let (status, _, body) = ask(collector, query);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), body).unwrap();
    let (names, packets) = read_segment(file.path());
    (names, packets.into_iter().map(|(_, data)| data).collect())
}

#[test]
fn frames_are_found_in_open_and_in_sealed_segments_by_time_sensor_host_and_filter() {
    let lab = Lab::new();
    let all = frames(10);
    let collector = lab.start();
    store(&lab, &collector, "web-1", &all[..5]);
    collector.stop();
    let collector = lab.start();
    store(&lab, &collector, "web-2", &all[5..]);
    // The first is sealed, the other open.
    assert_eq!(lab.segments().len(), 1);
    let (names, packets) = found(&collector, "");
    assert_eq!(names, ["web-1/eth0", "web-2/eth0"]);
    assert_eq!(packets.len(), 10);
    let expected = [&all[1], &all[6], &all[2], &all[7]].map(Clone::clone);
    assert_eq!(found(&collector, "from=1001&to=1002").1, expected, "in the order of time");
    assert_eq!(found(&collector, "sensor=web-2&limit=2").1, all[5..7]);
    assert_eq!(found(&collector, "host=192.0.2.3").1, [all[2].clone()]);
    assert_eq!(found(&collector, "port=53&sensor=web-1").1, all[..5]);
    assert_eq!(found(&collector, "filter=src+host+192.0.2.8").1, [all[7].clone()]);
    collector.stop();
}

#[test]
fn an_answer_that_lacks_frames_of_a_damaged_segment_is_cut_off_and_says_what_is_missing() {
    let lab = Lab::new();
    let all = frames(10);
    let collector = lab.start();
    store(&lab, &collector, "web-1", &all);
    collector.stop();
    let [segment] = &lab.segments()[..] else { panic!("one segment") };
    let whole = std::fs::read(segment).unwrap();
    let fourth = whole.windows(all[3].len()).position(|bytes| bytes == all[3]).unwrap();
    let mut damaged = whole.clone();
    // The number of its interface.
    damaged[fourth - 20] = 0xff;
    std::fs::write(segment, &damaged).unwrap();
    let collector = lab.start();
    let answer = collector.bytes("/api/v1/frames");
    let head = b"HTTP/1.1 200 OK\r\n";
    assert!(answer.starts_with(head), "{}", String::from_utf8_lossy(&answer));
    assert!(!answer.ends_with(b"0\r\n\r\n"), "the last piece was sent, as if that were all");
    for (number, frame) in all.iter().enumerate() {
        let is_there = answer.windows(frame.len()).any(|bytes| bytes == frame);
        assert_eq!(is_there, number != 3, "frame {number}");
    }
    let name = segment.file_name().unwrap().to_string_lossy();
    let said = format!("not complete: 1 frame in 1 damaged part of {name} cannot be read");
    assert!(answer.windows(said.len()).any(|bytes| bytes == said.as_bytes()));
    let metrics = collector.get("/metrics").1;
    for line in
        ["ringwatch_incomplete_frame_answers_total 1\n", "ringwatch_unreadable_frames_total 1\n"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // Where nothing of what was asked for can be read, it is no file.
    damaged = whole;
    damaged.truncate(100);
    std::fs::write(segment, &damaged).unwrap();
    let (status, _, body) = ask(&collector, "");
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let said = format!("not complete: 10 frames in 1 damaged part of {name} cannot be read");
    assert_eq!(
        (status, body["error"].as_str(), body["detail"].as_str().unwrap()),
        (500, Some("unreadable"), &*said)
    );
    collector.stop();
}

#[test]
fn why_there_is_no_answer_is_told_apart() {
    let lab = Lab::new();
    let collector = lab.start();
    store(&lab, &collector, "web-1", &frames(3));
    let said = |query: &str| {
        let (status, _, body) = ask(&collector, query);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        (status, body["error"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(said("from=5000"), (204, String::new()));
    assert_eq!(said("host=203.0.113.1"), (204, String::new()));
    assert_eq!(said("sensor=web-9"), (404, "sensor_unknown".to_owned()));
    assert_eq!(said("hots=203.0.113.1"), (400, "bad_request".to_owned()));
    assert_eq!(said("filter=hots+1"), (400, "bad_request".to_owned()));
    collector.stop();
}

#[test]
fn what_the_disk_has_no_room_for_is_deleted_and_told_as_expired() {
    let lab = Lab::new();
    // More than is free on any disk: every sealed segment goes.
    lab.configure("segment_age = \"1s\"\nmin_free_percent = 90");
    let collector = lab.start();
    store(&lab, &collector, "web-1", &frames(3));
    let deleted = "ringwatch_expired_segments_total{reason=\"free_space\"} 1\n";
    let metrics = || collector.get("/metrics").1;
    wait_until("deleted segment", || metrics().contains(deleted).then_some(()), metrics);
    assert_eq!(lab.segments(), [] as [std::path::PathBuf; 0]);
    let (status, expired, _) = ask(&collector, "from=1000&to=2000");
    assert_eq!(status, 410);
    assert!(expired.is_some_and(|time| time.starts_with("20")));
    assert_eq!(ask(&collector, "from=4000000000").0, 204, "the future is not deleted");
    collector.stop();
}

#[test]
fn who_asked_for_frames_is_written_down() {
    let lab = Lab::new();
    let collector = lab.start();
    store(&lab, &collector, "web-1", &frames(1));
    let (status, ..) = ask(&collector, "host=192.0.2.1");
    assert_eq!(status, 200);
    let text = std::fs::read_to_string(lab.store().join("audit.json")).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    let detail = &line["ringwatch"];
    assert_eq!(detail["caller"], "test");
    assert_eq!(detail["query"], "host=192.0.2.1");
    assert_eq!(detail["outcome"], "allowed");
}

/// Names and descriptions of the interfaces of a file, as a program that is not ours reads them.
fn interfaces(file: &[u8]) -> Vec<(String, String)> {
    let mut reader = PcapNGReader::new(1 << 20, file).unwrap();
    let mut found = Vec::new();
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                if let PcapBlockOwned::NG(Block::InterfaceDescription(block)) = block {
                    let text = |code| {
                        let value = block.options.iter().rfind(|option| option.code == code);
                        let value = value.map(|option| option.value.trim_ascii_end().to_vec());
                        let text = String::from_utf8(value.unwrap_or_default()).unwrap();
                        text.trim_end_matches('\0').to_owned()
                    };
                    found.push((text(OptionCode::IfName), text(OptionCode::IfDescription)));
                }
                reader.consume(offset);
            }
            Err(PcapError::Eof) => return found,
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn frames_of_another_rate_have_an_interface_of_their_own_that_says_so() {
    let lab = Lab::new();
    let collector = lab.start();
    let own = lab.authority.sensor("web-1");
    let ca = lab.authority.certificate();
    let mut sensor = Sensor::join(&collector.sensors, &ca, &own, "web-1", 5);
    for (number, rate) in [(1, (1, 65_535)), (2, (8, 256)), (3, (1, 65_535))] {
        let mut batch = FrameBatchWriter::new(rate.0, rate.1);
        batch.try_push(UnixNanos(number), WireLen(60), 7, &[&[0; 60]]).unwrap();
        sensor.send_bytes(batch.finish(Sequence(number)));
    }
    sensor.wait_for_ack(0, 3);
    let (status, _, answer) = ask(&collector, "");
    collector.stop();
    assert_eq!(status, 200);
    let expected =
        [("web-1/eth0", ""), ("web-1/eth0", "1 conversation in 8, 256 bytes of each frame")]
            .map(|(name, description)| (name.to_owned(), description.to_owned()));
    assert_eq!(interfaces(&answer), expected);
    let segment = std::fs::read(&lab.segments()[0]).unwrap();
    assert_eq!(interfaces(&segment), expected);
}
