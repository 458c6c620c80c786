//! A small fleet on one collector, which is restarted: a thousand are measured by the bench.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use perf::fleet::{Site, stop_collector};

const SENSORS: u32 = 50;
const RATE: u64 = 1000;

#[test]
fn a_fleet_comes_back_after_each_restart_and_every_record_is_stored_once() {
    let site = Site::new(SENSORS);
    let mut collector = site.start_collector();
    let mut fleet = site.start_fleet();
    let all = u64::from(SENSORS);
    fleet.wait_for("fleet", Duration::from_secs(30), |report| report.connected == all);
    fleet.set_rate(RATE);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let before = fleet.report();
        fleet.wait_for("records", Duration::from_secs(20), |report| {
            report.acknowledged >= before.acknowledged + RATE
        });
        collector.stop(signal, Duration::from_secs(20));
        collector = site.start_collector();
        fleet.wait_for("fleet after a restart", Duration::from_secs(60), |report| {
            report.connects >= before.connects + all && report.connected == all
        });
    }
    fleet.set_rate(0);
    fleet.wait_for("last acknowledgement", Duration::from_secs(20), |report| {
        report.made > 2 * RATE && report.acknowledged == report.made
    });
    assert!(site.metric("ringwatch_loop_connections") >= f64::from(SENSORS));
    let end = fleet.stop();
    assert_eq!((end.lost, end.not_taken), (0, 0), "{end:?}");
    stop_collector(&mut collector);

    let events = fs::read_to_string(site.folder().join("store/events/eve.json")).unwrap();
    let ids = events.lines().map(|line| {
        let (_, rest) = line.split_once("\"event_id\":\"").unwrap();
        rest.split_once('"').unwrap().0
    });
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids.len() as u64, end.made);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "stored twice");
}
