//! What the collector stores of the frames is what went over the interface.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use perf::frames;
use perf::inject::Injector;
use perf::tools;

use crate::captures::{Captured, conversation, grouped};
use crate::site::{
    CAPTURED, CAPTURED_V6, NAMED, Outcome, PATIENCE, Sensor, Settings, Site, Stored, sum_of,
    wait_until,
};
use crate::traffic::{self, Tcpdump, marker};

const BEGIN: &[u8] = b"here begins what is compared";
const END: &[u8] = b"here ends what is compared";
/// Between two taps on one interface: each takes its own time.
const MOMENT: Duration = Duration::from_millis(100);
const TOOLS: [&str; 6] = ["tcpdump", "tshark", "capinfos", "iperf3", "nmap", "ip"];

/// The frames from the first to the last marker, by time.
fn between_markers(frames: &[Captured]) -> Vec<Captured> {
    let time_of = |mark: &[u8]| {
        let found = frames.iter().find(|frame| frame.data.ends_with(mark));
        found.unwrap_or_else(|| panic!("{:?} is missing", String::from_utf8_lossy(mark))).time
    };
    let (begin, end) = (time_of(BEGIN), time_of(END));
    frames.iter().filter(|frame| (begin..=end).contains(&frame.time)).cloned().collect()
}

/// Same frames with the same bytes and lengths, those of each conversation in the same order, at
/// the same time but for the moment between two taps.
fn assert_same(stored: &[Captured], written: &[Captured]) {
    let (stored_by, written_by) = (grouped(stored), grouped(written));
    for (key, frames) in &written_by {
        let own = stored_by.get(key).map_or(&[][..], Vec::as_slice);
        assert_eq!(own.len(), frames.len(), "frames of {key:?}");
        let differs = |(stored, written): (&&Captured, &&Captured)| {
            let apart = Duration::from_nanos(stored.time.abs_diff(written.time));
            (&stored.data, stored.wire_len) != (&written.data, written.wire_len) || apart > MOMENT
        };
        if let Some(at) = own.iter().zip(frames).position(differs) {
            let around = at.saturating_sub(2)..own.len().min(at + 5);
            panic!(
                "frame {at} of {key:?} differs\nstored  {}\nwritten {}",
                glimpse(&own[around.clone()]),
                glimpse(&frames[around])
            );
        }
    }
    assert_eq!(stored_by.len(), written_by.len(), "conversations that tcpdump did not see");
    assert_eq!(stored.len(), written.len());
}

/// Time, length and first bytes behind the addresses, for the message of a failing test.
fn glimpse(frames: &[&Captured]) -> String {
    let one = |frame: &&Captured| {
        let head = &frame.data[12..frame.data.len().min(42)];
        format!("{} {} {head:02x?}", frame.time, frame.wire_len)
    };
    frames.iter().map(one).collect::<Vec<_>>().join("\n        ")
}

/// Runs a program over a file; it must end well and say nothing on standard error.
fn read_by(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_known = |line: &&str| line.contains("as user") || line.starts_with("reading from file");
    let complaints: Vec<_> = errors.lines().filter(|line| !is_known(line)).collect();
    assert!(output.status.success() && complaints.is_empty(), "{program}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Other programs read the segments, and find as many frames as we do.
fn assert_readable(outcome: &Outcome) {
    let stored: usize = outcome.store.frames.values().map(Vec::len).sum();
    let mut found = [0; 3];
    for segment in &outcome.store.segments {
        let infos = read_by("capinfos", &["-M"], segment);
        assert!(infos.contains("Number of interfaces in file: 1\n"), "{infos}");
        assert!(infos.contains("Name = web-0/s0"), "{infos}");
        let packets = infos.lines().find_map(|line| line.strip_prefix("Number of packets:"));
        found[0] += packets.unwrap().trim().parse::<usize>().unwrap();
        found[1] += read_by("tcpdump", &["-n", "-t", "-q", "-r"], segment)
            .lines()
            .filter(|line| !line.starts_with(char::is_whitespace))
            .count();
        found[2] += read_by("tshark", &["-n", "-T", "fields", "-e", "frame.number", "-r"], segment)
            .lines()
            .count();
    }
    assert_eq!(found, [stored; 3], "capinfos, tcpdump, tshark");
}

/// Captures mixed traffic with the sensor and with tcpdump, and gives both.
fn capture_side_by_side(settings: &Settings) -> Option<(Vec<Captured>, Outcome)> {
    if !tools::require(&TOOLS) {
        return None;
    }
    let site = Site::new(1)?;
    for (namespace, interface) in [(site.lab.generator(), "g0"), (site.lab.sensor(), "s0")] {
        namespace.ip(&format!("link set {interface} mtu 9000"));
    }
    let collector = site.start_collector();
    let sensor = site.start_sensor(settings);
    site.wait_connected(&sensor);
    let tcpdump = Tcpdump::start(site.lab.sensor(), "s0", &site.path("tcpdump.pcap"));
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send(&marker(BEGIN)).unwrap();
    traffic::mixed(&site.lab);
    // Longer than two taps are apart.
    std::thread::sleep(MOMENT);
    injector.send(&marker(END)).unwrap();
    let written = tcpdump.stop_behind(END);
    let outcome = site.finish(vec![sensor], collector);
    outcome.assert_complete();
    assert_readable(&outcome);
    Some((written, outcome))
}

#[test]
fn stored_frames_are_those_that_tcpdump_wrote() {
    let settings = Settings::frames("all");
    let Some((written, outcome)) = capture_side_by_side(&settings) else { return };
    let stored = between_markers(&outcome.store.frames["web-0/s0"]);
    let written = between_markers(&written);
    assert_same(&stored, &written);
    // The laboratory made what it was to make.
    let kinds = |kind: u16| written.iter().filter(|f| conversation(&f.data).0 == kind).count();
    assert!(kinds(0x0800) > 300 && kinds(0x86dd) > 100 && kinds(0x0806) > 2);
    assert!(written.iter().any(|frame| frame.data.len() > 9018), "no super-frame");
    let tagged = |tag: &[u8]| written.iter().filter(|f| f.data[12..].starts_with(tag)).count();
    assert!(tagged(&[0x81, 0, 0x60, 0]) > 0 && tagged(&[0x88, 0xa8, 0, 10]) > 0);
}

fn is_uplink(frame: &Captured) -> bool {
    let (_, protocol, ends) = conversation(&frame.data);
    let port = 4750_u16.to_be_bytes();
    protocol == 6 && ends.iter().any(|end| end.ends_with(&port))
}

#[test]
fn the_uplink_on_the_captured_link_is_left_out_and_does_not_feed_on_itself() {
    let settings = Settings { collector: CAPTURED.to_owned(), ..Settings::frames("all") };
    let Some((written, outcome)) = capture_side_by_side(&settings) else { return };
    let stored = between_markers(&outcome.store.frames["web-0/s0"]);
    let mut written = between_markers(&written);
    assert!(!stored.iter().any(is_uplink));
    let all = written.len();
    written.retain(|frame| !is_uplink(frame));
    assert!(all > written.len() + 100, "the uplink was not on this link");
    assert_same(&stored, &written);
}

/// The uplink goes over an interface that is captured as well, as all are.
#[test]
fn with_all_interfaces_each_has_its_frames_in_the_store_and_the_uplink_is_in_none() {
    const FRAMES: u16 = 200;
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let settings = Settings {
        collector: CAPTURED.to_owned(),
        interface: "\"*\"".to_owned(),
        ..Settings::frames("all")
    };
    let sensor = site.start_sensor(&settings);
    site.wait_connected(&sensor);
    let namespace = site.lab.sensor();
    namespace.ip("link add d0 type veth peer name d1");
    namespace.ip("link set d1 up");
    namespace.ip("link set d0 up");
    std::thread::sleep(Duration::from_secs(1));
    let datagrams = |source: &'static str| {
        (1..=FRAMES).map(move |port| {
            let source = format!("{source}:{port}").parse().unwrap();
            frames::udp(source, "198.19.0.2:5000".parse().unwrap(), b"counted")
        })
    };
    let send = |namespace, interface: &str, source| {
        let mut injector = Injector::within(namespace, interface);
        injector.send_all(datagrams(source), Some(5000)).unwrap();
    };
    send(site.lab.generator(), "g0", "198.18.0.1");
    send(namespace, "d1", "198.18.0.2");
    let outcome = site.finish(vec![sensor], collector);
    outcome.assert_complete();
    let stored = &outcome.store.frames;
    let counted = |interface: &str| {
        let frames = stored.get(&format!("web-0/{interface}")).map_or(&[][..], Vec::as_slice);
        frames.iter().filter(|frame| frame.data.ends_with(b"counted")).count()
    };
    let expected = usize::from(FRAMES);
    assert_eq!(["s0", "d0", "d1", "*"].map(counted), [expected, expected, expected, 0]);
    assert!(stored.contains_key("web-0/lo"), "{:?}", stored.keys());
    assert!(!stored.values().flatten().any(is_uplink));
    let [ended] = outcome.ended.as_slice() else { panic!("one sensor") };
    let name = &ended.ledger.interfaces[0].name;
    assert_eq!((name.as_str(), ended.ledger.interfaces.len()), ("*", 1));
}

/// How long there is to be no traffic: `RINGWATCH_IDLE_SECONDS` makes it longer.
fn idle_seconds() -> u64 {
    std::env::var("RINGWATCH_IDLE_SECONDS").map_or(4, |text| text.parse().unwrap())
}

/// By how much a sensor's figures grow in some seconds without traffic, after some: frames exported, bytes sent to the collector,
/// frames left out because they are of an uplink.
fn growth_without_traffic(site: &Site, sensor: &Sensor) -> [u64; 3] {
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(100, 10), Some(5000)).unwrap();
    let figures = || {
        let metrics = site.ask_sensor(sensor, "/metrics").body;
        [
            "ringwatch_frames_exported_total",
            "ringwatch_uplink_sent_bytes_total",
            "ringwatch_frames_own_uplink_total",
        ]
        .map(|name| sum_of(&metrics, name, ""))
    };
    std::thread::sleep(Duration::from_secs(2));
    let before = figures();
    std::thread::sleep(Duration::from_secs(idle_seconds()));
    let after = figures();
    std::array::from_fn(|place| after[place] - before[place])
}

/// Neighbours ask for each other now and then. Ledger and `stats` go on, some kB a second. Where loopback is captured as well, so
/// is the answer with these figures.
fn assert_nothing_is_forwarded(site: &Site, sensor: &Sensor) {
    let grown = growth_without_traffic(site, sensor);
    println!("in {} s without traffic: frames, bytes, own frames {grown:?}", idle_seconds());
    let is_flat = grown[0] < 10 * idle_seconds() && grown[1] < 15_000 * idle_seconds();
    assert!(is_flat, "grown by {grown:?}");
    assert!(grown[2] > 0, "the uplink was not on a captured link");
}

#[test]
fn without_traffic_nothing_is_forwarded() {
    for (address, interface) in
        [(CAPTURED, "\"s0\""), (CAPTURED, "\"*\""), (CAPTURED_V6, "\"s0\""), (CAPTURED_V6, "\"*\"")]
    {
        let Some(site) = Site::new(1) else { return };
        site.add_ipv6();
        let collector = site.start_collector();
        let settings = Settings {
            collector: address.to_owned(),
            interface: interface.to_owned(),
            ..Settings::frames("all")
        };
        let sensor = site.start_sensor(&settings);
        site.wait_connected(&sensor);
        assert_nothing_is_forwarded(&site, &sensor);
        let outcome = site.finish(vec![sensor], collector);
        assert!(!outcome.store.frames.values().flatten().any(is_uplink), "{address} {interface}");
    }
}

#[test]
fn without_traffic_nothing_is_forwarded_when_the_collectors_name_moves_to_another_address() {
    let Some(site) = Site::new(1) else { return };
    site.name_collector("10.150.0.1");
    let collector = site.start_collector();
    let settings = Settings {
        collector: NAMED.to_owned(),
        interface: "\"*\"".to_owned(),
        ..Settings::frames("all")
    };
    let sensor = site.start_sensor(&settings);
    site.wait_connected(&sensor);
    assert_nothing_is_forwarded(&site, &sensor);
    site.name_collector("10.99.0.1");
    // The old address ends, and with it the connection.
    site.lab.generator().ip("addr del 10.150.0.1/24 dev m0");
    let connects = || site.metric(&sensor, "ringwatch_uplink_connects_total", "");
    wait_until("second connection", PATIENCE * 2, || connects() == 2, || connects().to_string());
    assert_nothing_is_forwarded(&site, &sensor);
    sensor.stop();
    assert!(!Stored::read(&collector.stop()).frames.values().flatten().any(is_uplink));
}

#[test]
fn an_uplink_that_is_rewritten_on_its_way_does_not_feed_on_itself() {
    assert!(tools::require(&["nft"]), "nft is needed");
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    // As by the virtual address of a service: dialled is one address, on the wire there is another.
    for command in [
        "add table ip rewrite",
        "add chain ip rewrite out { type nat hook output priority -100; }",
        "add rule ip rewrite out ip daddr 10.150.0.1 tcp dport 4750 dnat to 10.99.0.1:4750",
    ] {
        site.lab.sensor().run("nft", &[command]);
    }
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    assert_nothing_is_forwarded(&site, &sensor);
    assert!(site.metric(&sensor, "ringwatch_uplink_loops_total", "") > 0, "nobody noticed");
    let metrics = site.ask_sensor(&sensor, "/metrics").body;
    // Nothing but the copies is left out: what comes now is delivered.
    let before = sum_of(&metrics, "ringwatch_frames_exported_total", "");
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(100, 10), Some(5000)).unwrap();
    let exported = || site.metric(&sensor, "ringwatch_frames_exported_total", "");
    wait_until("frames", PATIENCE, || exported() >= before + 1000, || exported().to_string());
    site.finish(vec![sensor], collector);
}

#[test]
fn a_sample_is_whole_conversations_both_ways() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let export = "frames = \"sampled\"\nsample_one_in = 4\n".to_owned();
    let sensor = site.start_sensor(&Settings { export, ..Settings::frames("sampled") });
    site.wait_connected(&sensor);
    let (count, steps) = (600, 6);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(count, steps), Some(5000)).unwrap();
    wait_for_frames(&site, &sensor, u64::from(count * steps));
    let outcome = site.finish(vec![sensor], collector);
    outcome.assert_complete();
    let ledger = &outcome.ended[0].ledger.interfaces[0];
    assert_eq!(ledger.analysed, ledger.exported + ledger.not_selected, "{ledger:?}");
    let stored = grouped(&outcome.store.frames["web-0/s0"]);
    let ours =
        stored.iter().filter(|((_, _, ends), _)| ends.iter().any(|end| end.ends_with(&[0, 53])));
    let mut chosen = 0;
    for (key, frames) in ours {
        let steps_seen: Vec<u8> = frames.iter().map(|frame| *frame.data.last().unwrap()).collect();
        assert_eq!(steps_seen, [0, 1, 2, 3, 4, 5], "{key:?}");
        chosen += 1;
    }
    // One in 4 of 600: 150, standard deviation 10.6.
    assert!((90..210).contains(&chosen), "{chosen} of {count} conversations for one in 4");
}

/// Waits until the sensor has analysed so many frames.
fn wait_for_frames(site: &Site, sensor: &Sensor, count: u64) {
    let analysed = || site.metric(sensor, "ringwatch_analysed_packets_total", "");
    wait_until("frames", PATIENCE, || analysed() >= count, || analysed().to_string());
}
