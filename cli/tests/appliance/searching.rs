//! What a sensor found, searched for by the operator.

use std::path::Path;

use perf::inject::Injector;
use perf::tools;
use serde_json::Value;

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::{captures, traffic};

#[test]
fn an_operator_finds_a_scan_and_its_flows() {
    if !tools::require(&["nmap"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let more = "[detect]\nclose_after = \"5s\"\n".to_owned();
    let sensor = site.start_sensor(&Settings { more, ..Settings::frames("none") });
    site.wait_connected(&sensor);
    site.lab.generator().run("nmap", &["-n", "-Pn", "-sS", "-p1-1000", "10.99.0.2"]);
    let table = || {
        let arguments = ["alerts", "--from", "1h", "--host", "10.99.0.1", "--kind", "vertical"];
        site.ringwatch(&arguments)
    };
    wait_until("closed alert in the table", PATIENCE, || table().contains(" close "), table);
    let shown = table();
    let line = shown.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().skip(2).take(6).collect();
    assert_eq!(words, ["web-0", "2", "vertical", "close", "10.99.0.1", "10.99.0.2"], "{shown}");
    assert_eq!(shown.lines().count(), 2, "one line for all revisions: {shown}");
    let all = ["alerts", "--kind", "vertical", "--all-revisions", "--oldest-first", "--json"];
    let revisions: Vec<u64> = site
        .ringwatch(&all)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|alert| alert["alert"]["context"]["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>());
    let flows = site.ringwatch(&["flows", "--port", "443", "--sensor", "web-0", "--json"]);
    assert!(flows.lines().all(|line| line.contains("\"dest_port\":443")), "{flows}");
    assert!(flows.lines().count() > 0);
    site.finish(vec![sensor], collector).assert_complete();
}

#[test]
fn an_operator_saves_the_frames_of_a_conversation() {
    let Some(site) = Site::new(1) else { return };
    let tokens = site.path("tokens");
    let token = site.ringwatch(&["token", "create", &tokens, "ann", "analyst"]);
    let token_file = site.path("ann.token");
    std::fs::write(&token_file, token.trim()).unwrap();
    let collector = site.start_collector_with(&format!("[api]\ntokens = {tokens:?}\n"));
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(100, 10), Some(5000)).unwrap();
    let file = site.path("saved.pcapng");
    let save = |more: &[&str]| {
        let _ = std::fs::remove_file(&file);
        let mut arguments = vec!["frames", "--token-file", &token_file, "-w", &file];
        arguments.extend(more);
        site.ringwatch(&arguments);
        std::fs::exists(&file).unwrap().then(|| captures::read_pcapng(Path::new(&file)))
    };
    let count = |more: &[&str]| -> usize {
        save(more).iter().flatten().map(|(_, frames)| frames.len()).sum()
    };
    let all = ["--sensor", "web-0", "--filter", "udp port 53"];
    wait_until("frames", PATIENCE, || count(&all) == 1000, || count(&all).to_string());
    assert_eq!(count(&["--filter", "udp port 53", "--limit", "7"]), 7);
    assert_eq!(count(&["--host", "203.0.113.99"]), 0, "and no file is made");
    sensor.stop();
    collector.stop();
    let audit = std::fs::read_to_string(site.path("store/audit.json")).unwrap();
    assert!(audit.lines().count() > 2 && audit.contains("\"ann\""), "{audit}");
}
