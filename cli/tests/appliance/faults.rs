//! The collector is away, and the link between is cut.

use std::time::{Duration, Instant};

use perf::lab::Lab;
use perf::{frames, tools};

use crate::site::{Collector, PATIENCE, Sensor, Settings, Site, wait_until};
use crate::traffic::{self, Load};

/// Longest time until the silence of a collector is noticed, and until a sensor that backs off
/// dials again and its SYN is sent again.
const GIVEN_UP: Duration = Duration::from_secs(18);
const BACK: Duration = Duration::from_secs(45);

/// Drops everything between the first sensor and the collector, silently and in both directions.
fn cut(lab: &Lab) {
    let rules = "table inet cut {
        chain input { type filter hook input priority 0; iifname m0 drop; }
        chain output { type filter hook output priority 0; oifname m0 drop; }
    }";
    lab.generator().run("nft", &[rules]);
}

fn mend(lab: &Lab) {
    lab.generator().run("nft", &["delete table inet cut"]);
}

/// How often a sensor said that its collector is away.
fn complaints(sensor: &Sensor) -> usize {
    sensor.process.stderr().matches("collector is away").count()
}

/// Cuts the link, waits until the collector is given up, and mends the link.
fn cut_until_given_up(site: &Site, collector: &Collector, sensor: &Sensor) {
    cut(&site.lab);
    let begin = Instant::now();
    let timed_out =
        || site.metric(sensor, "ringwatch_uplink_disconnects_total", "reason=\"timed_out\"");
    wait_until("end of patience", GIVEN_UP, || timed_out() == 1, || sensor.process.describe());
    let waited = begin.elapsed();
    // The last heartbeat came up to 5 s before the cut.
    assert!(waited >= Duration::from_secs(9), "given up after {waited:?}");
    assert_eq!(complaints(sensor), 1, "{}", sensor.process.stderr());
    assert_eq!(site.metric(sensor, "ringwatch_uplink_connected", ""), 0);
    traffic::connection(&site.lab, 0, 7003);
    let is_written = || sensor.events().contains("\"dest_port\":7003");
    wait_until("event during the cut", PATIENCE, is_written, || sensor.process.describe());
    assert!(!collector.events().contains("\"dest_port\":7003"));
    mend(&site.lab);
    let connects = || site.metric(sensor, "ringwatch_uplink_connects_total", "");
    wait_until("new connection", BACK, || connects() == 2, || sensor.process.describe());
    collector.wait_for_event(&["\"dest_port\":7003", "web-0"]);
    // The collector gave it up as well, unless the new connection came first and replaced it.
    let is_given_up = site.status()["refused"]["silent"] == 1;
    let log = collector.process.stderr();
    assert!(is_given_up || log.contains("replaced by a newer connection"), "{log}");
}

#[test]
fn a_link_that_is_cut_while_idle_is_noticed_and_dialled_again() {
    if !tools::require(&["nft"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("none"));
    site.wait_connected(&sensor);
    cut_until_given_up(&site, &collector, &sensor);
    site.finish(vec![sensor], collector).assert_delivered();
}

#[test]
fn a_link_that_is_cut_while_busy_is_noticed_and_dialled_again() {
    if !tools::require(&["nft"]) {
        return;
    }
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let export = "frames = \"all\"\npool_mib = 2\n".to_owned();
    let sensor = site.start_sensor(&Settings { export, ..Settings::frames("all") });
    site.wait_connected(&sensor);
    let (here, there) = (traffic::at("192.0.2.1:1"), traffic::at("192.0.2.2:2"));
    let load = Load::start(&site.lab, 0, vec![frames::udp(here, there, &[1; 1400])], 2000);
    let stored = || site.status()["store"]["frames"].as_u64().unwrap();
    wait_until("frames", PATIENCE, || stored() > 1000, || site.status().to_string());
    cut_until_given_up(&site, &collector, &sensor);
    let before = stored();
    wait_until("frames", PATIENCE, || stored() > before + 500, || site.status().to_string());
    assert!(load.stop() > 10_000);
    let outcome = site.finish(vec![sensor], collector);
    let ended = &outcome.ended[0];
    assert_eq!(ended.ledger.records.acknowledged, ended.ledger.records.produced);
    assert_eq!(outcome.store.lines_of("web-0"), ended.lines, "each record once, in order");
    // First the socket was full, then the pool filled, and less was exported; then nobody was connected.
    let lost = |reason| ended.ledger.interfaces[0].lost.get(reason).copied().unwrap_or(0);
    assert!(lost("pool_empty") + lost("degraded") > 0, "{:#?}", ended.ledger);
    assert!(ended.lost_frames("disconnected") > 0, "{:#?}", ended.ledger);
    assert!(ended.lost_frames("not_connected") > 0, "{:#?}", ended.ledger);
}

/// The sensor works on and says once that its collector is away. What it saw meanwhile arrives.
fn work_alone(site: &Site, sensor: &Sensor, port: u16) {
    let analysed = || site.metric(sensor, "ringwatch_analysed_packets_total", "");
    let refused = || site.metric(sensor, "ringwatch_uplink_failed_dials_total", "\"connect\"");
    let (said, seen, dialled) = (complaints(sensor), analysed(), refused());
    wait_until("three dials", BACK, || refused() >= dialled + 3, || sensor.process.describe());
    traffic::connection(&site.lab, 0, port);
    let is_written = || sensor.events().contains(&format!("\"dest_port\":{port}"));
    wait_until("event", PATIENCE, is_written, || sensor.process.describe());
    assert!(analysed() > seen);
    assert_eq!(complaints(sensor), said, "{}", sensor.process.stderr());
}

#[test]
fn without_a_collector_a_sensor_works_on_says_so_once_and_comes_back_by_itself() {
    let Some(site) = Site::new(1) else { return };
    let mut sensor = site.start_sensor(&Settings::frames("all"));
    sensor.process.wait_for_line("collector is away", PATIENCE);
    work_alone(&site, &sensor, 7004);
    assert_eq!(complaints(&sensor), 1);
    let healthy = site.ask_sensor(&sensor, "/healthz");
    assert_eq!(healthy.status, 200, "{}", healthy.body);

    let collector = site.start_collector();
    wait_until(
        "connection",
        BACK,
        || sensor_is_connected(&site, &sensor),
        || sensor.process.describe(),
    );
    collector.wait_for_event(&["\"dest_port\":7004", "web-0"]);

    // Away again, this time from a living connection and without a goodbye.
    collector.kill();
    wait_until("complaint", PATIENCE, || complaints(&sensor) > 1, || sensor.process.describe());
    work_alone(&site, &sensor, 7005);
    assert_eq!(complaints(&sensor), 2, "{}", sensor.process.stderr());
    let collector = site.start_collector();
    wait_until(
        "connection",
        BACK,
        || sensor_is_connected(&site, &sensor),
        || sensor.process.describe(),
    );
    collector.wait_for_event(&["\"dest_port\":7005", "web-0"]);
    let outcome = site.finish(vec![sensor], collector);
    let ended = &outcome.ended[0];
    assert!(ended.lost_frames("not_connected") > 0, "{:#?}", ended.ledger);
    assert_eq!(ended.ledger.records.acknowledged, ended.ledger.records.produced);
}

fn sensor_is_connected(site: &Site, sensor: &Sensor) -> bool {
    site.metric(sensor, "ringwatch_uplink_connected", "") == 1
}
