//! What the operator sees: `ringwatch pki`, `status` and `up`, and the metrics.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use perf::lab::Namespace;
use perf::process::Process;
use perf::{programs, tools};
use serde_json::Value;

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::traffic;

#[test]
fn status_and_pki_show_the_running_appliance() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    assert!(site.ringwatch(&["status"]).contains("no sensor has connected yet"));
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    traffic::connection(&site.lab, 0, 7201);
    collector.wait_for_event(&["\"dest_port\":7201"]);
    let shown = || site.ringwatch(&["status"]);
    wait_until("a ledger", PATIENCE, || shown().contains("adds up"), shown);
    let table = shown();
    let row = table.lines().find(|line| line.starts_with("web-0 ")).unwrap();
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert!(columns[1] == "connected" && columns[2].starts_with("10.150.0.2:"), "{table}");
    assert!(table.starts_with("collector ids (version "), "{table}");

    let json: Value = serde_json::from_str(&site.ringwatch(&["status", "--json"])).unwrap();
    assert_eq!(json["sensors"][0]["name"], "web-0");
    assert!(json["sensors"][0]["frames"].as_u64().unwrap() > 5, "{json:#}");
    assert_eq!(json["sensors"][0]["ledger"]["interfaces"][0]["name"], "s0");
    assert!(json["handshake_failures"].is_object(), "fields that the command does not know");

    let list = site.ringwatch(&["pki", "list", &site.path("pki")]);
    for part in ["authority ", "collector/ids ", "sensor/web-0 ", "10.150.0.1"] {
        assert!(list.contains(part), "{part:?} is not in {list}");
    }
    site.finish(vec![sensor], collector).assert_complete();
}

#[test]
fn every_metric_is_documented_and_the_text_is_open_metrics() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    traffic::connection(&site.lab, 0, 7202);
    let both = [site.ask_sensor(&sensor, "/metrics"), site.ask_collector("/metrics")];
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let manual = fs::read_to_string(manual).unwrap();
    for reply in &both {
        assert_eq!(reply.status, 200);
        let mut names = check_open_metrics(&reply.body);
        assert!(names.len() > 15, "{names:?}");
        names.retain(|name| !manual.contains(&format!("`{name}`")));
        assert!(names.is_empty(), "not in docs/operations.md: {names:?}");
    }
    let is_well = || site.ask_sensor(&sensor, "/healthz").status == 200;
    wait_until("health", PATIENCE, is_well, || site.ask_sensor(&sensor, "/healthz").body);
    assert_eq!(site.ask_collector("/healthz").status, 200);
    site.finish(vec![sensor], collector).assert_complete();
}

/// Checks the whole text against the OpenMetrics format as far as counters, gauges and histograms go,
/// and gives the names of all samples, of a histogram that of its family. Source: OpenMetrics 1.0.0,
/// "Text format".
fn check_open_metrics(text: &str) -> BTreeSet<String> {
    let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end: {text}"));
    let mut families: Vec<(&str, &str)> = Vec::new();
    let (mut series, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut helped = BTreeSet::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(helped.insert(name), "described twice: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.iter().all(|(known, _)| *known != name), "declared twice: {line}");
            families.push((name, kind));
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let name = check_sample(line, families.last().unwrap());
            assert!(series.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
            names.insert(name.to_owned());
        }
    }
    assert!(families.iter().all(|(name, _)| helped.contains(name)), "{families:?}");
    names
}

/// A sample belongs to the family before it, has well-formed labels and a number. Gives its name.
fn check_sample<'a>(line: &'a str, (family, kind): &(&'a str, &str)) -> &'a str {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let suffixes: &[&str] = match *kind {
        "counter" => &["_total"],
        "gauge" => &[""],
        _ => &["_bucket", "_sum", "_count"],
    };
    let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("of no family: {line}"));
    assert!(suffixes.contains(&suffix), "{line}");
    assert!(is_name(name), "{line}");
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
    assert!(value.is_finite() && (value >= 0.0 || *kind == "gauge"), "{line}");
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
    let mut known = BTreeSet::new();
    // No label here has a comma, a quote or a backslash in its value.
    for label in labels.split(',').filter(|_| !labels.is_empty()) {
        let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
        let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        assert!(inner.is_some_and(|inner| !inner.contains(['"', '\\'])), "{line}");
        assert!(is_name(key) && known.insert(key), "{line}");
    }
    assert_eq!(suffix == "_bucket", known.contains("le"), "{line}");
    if *kind == "histogram" { family } else { name }
}

fn is_name(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_word)
}

/// `ringwatch up` in a namespace; its folder is `data` of the site.
fn up(site: &Site, namespace: &Namespace, arguments: &[&str]) -> Process {
    let mut command = Command::new(programs::path("ringwatch"));
    command.args(["up", "--data", &site.path("data")]).args(arguments);
    namespace.spawn(&command)
}

/// Nobody runs in the namespace any more, and its segments are sealed.
fn assert_nothing_is_left(site: &Site, namespace: &Namespace) {
    let pids = || {
        let output = Command::new("ip").args(["netns", "pids", namespace.name()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // The watchdog ends when it sees that nobody is left.
    wait_until("end of all programs", PATIENCE, || pids().is_empty(), pids);
    for entry in fs::read_dir(site.path("data/store/frames")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.ends_with(".pcapng") && !name.starts_with('.'), "{name} is left");
    }
    for program in ["sensor", "collector"] {
        let log = fs::read_to_string(site.path(&format!("data/log/{program}.log"))).unwrap();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    }
    let sensor = fs::read_to_string(site.path("data/log/sensor.log")).unwrap();
    assert!(sensor.contains("the ledger adds up"), "{sensor}");
    assert_ledger_of_up(site);
}

/// The last `stats` event in the store has a ledger that adds up, and speaks of what is stored.
fn assert_ledger_of_up(site: &Site) {
    let text = fs::read_to_string(site.path("data/store/events/eve.json")).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["event_type"], "stats", "{last}");
    let ledger: wire::ledger::Ledger =
        serde_json::from_value(last["ringwatch"]["ledger"].clone()).unwrap();
    ledger.check().unwrap();
    assert_eq!(text.lines().count() as u64, ledger.records.produced + 1, "{last:#}");
    let stored = crate::site::Stored::read(std::path::Path::new(&site.path("data/store")));
    let frames: usize = stored.frames.values().map(Vec::len).sum();
    assert_eq!(frames as u64, ledger.frames.acknowledged, "{last:#}");
}

#[test]
fn up_shows_the_traffic_of_loopback_and_leaves_nothing_behind() {
    let Some(site) = Site::new(1) else { return };
    let namespace = site.lab.sensor();
    let mut up = up(&site, namespace, &["-i", "lo", "--duration", "8", "--frames", "all"]);
    up.wait_for_line("sensor        on lo, connected", PATIENCE);
    let listener = namespace.within(|| std::net::TcpListener::bind("127.0.0.1:7301")).unwrap();
    for _ in 0..50 {
        drop(namespace.within(|| std::net::TcpStream::connect("127.0.0.1:7301")).unwrap());
        drop(listener.accept().unwrap());
    }
    let status = up.wait(Duration::from_secs(40));
    let said = up.stdout();
    assert_eq!(status.code(), Some(0), "{}", up.describe());
    for part in ["certificates  made now", "collector     http://127.0.0.1:8480", "ending"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert_nothing_is_left(&site, namespace);
    let events = fs::read_to_string(site.path("data/store/events/eve.json")).unwrap();
    let seen = events.lines().filter(|line| line.contains("\"dest_port\":7301"));
    // Each connection once when it began and once when it was over: only the latter has a reason.
    let (over, begun): (Vec<_>, Vec<_>) = seen.partition(|line| line.contains("\"reason\":"));
    assert_eq!((begun.len(), over.len()), (50, 50));
}

#[test]
fn up_shows_a_scan_opening_and_closing() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let namespace = site.lab.sensor();
    let mut up = up(&site, namespace, &["-i", "s0", "-i", "lo"]);
    up.wait_for_line("sensor        on s0, lo, connected", PATIENCE);
    site.lab.generator().run("nmap", &["-n", "-Pn", "-sS", "-p1-200", "10.99.0.2"]);
    let opened = up.wait_for_line("10.99.0.1", PATIENCE);
    assert!(opened.contains("10.99.0.2"), "{opened}");
    let status = up.stop(Signal::SIGINT, Duration::from_secs(40));
    assert_eq!(status.code(), Some(0), "{}", up.describe());
    let said = up.stdout();
    let about: Vec<&str> = said.lines().filter(|line| line.contains("10.99.0.1")).collect();
    assert!(about.len() >= 2, "{said}");
    assert_nothing_is_left(&site, namespace);
}
