//! The rules and the dashboard that are shipped ask for metrics that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use perf::inject::Injector;
use perf::tools;

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::traffic;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name)
}

/// Every word that begins like a metric of ours.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = text.split(|character| !is_part(character));
    words.filter(|word| word.starts_with("ringwatch_")).collect()
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_the_programs_have() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let mut injector = Injector::within(site.lab.generator(), "g0");
    injector.send_all(traffic::conversations(10, 10), None).unwrap();
    // What is known of a sensor when it has sent something.
    let of_collector = || site.ask_collector("/metrics").body;
    let is_known = || {
        let metrics = of_collector();
        ["last_record_timestamp_seconds{", "last_frame_timestamp_seconds{", "clock_offset_seconds{"]
            .iter()
            .all(|name| metrics.contains(name))
    };
    wait_until("metrics of the sensor", PATIENCE, is_known, of_collector);
    let scraped = [site.ask_sensor(&sensor, "/metrics"), site.ask_collector("/metrics")];
    let scraped = scraped.map(|answer| answer.body).concat();
    // A family without a sample yet has a line about its type.
    let families: BTreeSet<&str> = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let is_there = |metric: &str| {
        let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
        suffixes.iter().any(|suffix| {
            metric.strip_suffix(suffix).is_some_and(|family| families.contains(family))
        })
    };
    for file in ["prometheus/ringwatch.rules.yml", "grafana/ringwatch.json"] {
        let text = std::fs::read_to_string(shipped(file)).unwrap();
        let asked = metrics_in(&text);
        assert!(asked.len() > 10, "{file}: {asked:?}");
        let missing: Vec<_> = asked.into_iter().filter(|metric| !is_there(metric)).collect();
        assert_eq!(missing, [""; 0], "{file} asks for them");
    }
    site.finish(vec![sensor], collector);
}

#[test]
fn rules_fire_when_they_should_and_not_before() {
    assert!(tools::require(&["promtool"]), "promtool is needed (package prometheus)");
    for (command, file) in [("check", "ringwatch.rules.yml"), ("test", "ringwatch.rules.test.yml")]
    {
        let output = Command::new("promtool")
            .current_dir(shipped("prometheus"))
            .args([command, "rules", file])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("SUCCESS"), "{output:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let text = std::fs::read_to_string(shipped("grafana/ringwatch.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let graphs = || panels.iter().filter(|panel| panel["type"] != "row");
    assert!(graphs().count() > 10);
    for panel in graphs() {
        let targets = panel["targets"].as_array().unwrap();
        let has_query = |target: &serde_json::Value| {
            target["expr"].as_str().is_some_and(|query| query.contains("ringwatch_"))
        };
        assert!(!targets.is_empty() && targets.iter().all(has_query), "{panel:#}");
    }
}
