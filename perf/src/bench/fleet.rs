//! A thousand simulated sensors on one collector: how fast they come back, what a session that says
//! nothing costs, and whether what they send is stored and indexed as fast as it comes.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Scale;
use super::place::{processor_time, resident_kib};
use super::report::Table;
use crate::fleet::{Fleet, Report, Site, stop_collector};
use crate::process::Process;

/// How long the fleet may take to come back; it is an error when it takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time in which sessions come to rest.
const REST: Duration = Duration::from_secs(10);
/// Time between two looks at what is stored and not indexed.
const LOOK: Duration = Duration::from_secs(1);

/// One collector, restarted in order and killed, then under load.
///
/// # Errors
/// None; what fails is a panic that shows what the programs said.
pub fn fleet(scale: &Scale) -> Result<String, String> {
    let site = Site::new(scale.sensors);
    let mut collector = site.start_collector();
    thread::sleep(Duration::from_secs(2));
    let empty = resident_kib(collector.id());
    let mut fleet = site.start_fleet();
    let mut restarts = Table::new(&[
        "after",
        "all connected, s",
        "failed dials",
        "crowded",
        "KiB, none",
        "KiB, all",
        "KiB a session",
    ]);
    let mut add = |what: &str, back: (Duration, u64), resident: u64| {
        let each = resident.saturating_sub(empty) as f64 / f64::from(scale.sensors);
        let crowded =
            site.metric("ringwatch_refused_connections_total{reason=\"handshake_crowded\"}");
        let row = [
            what.to_owned(),
            format!("{:.1}", back.0.as_secs_f64()),
            back.1.to_string(),
            format!("{crowded:.0}"),
            empty.to_string(),
            resident.to_string(),
            format!("{each:.1}"),
        ];
        eprintln!("{}", row.join(" | "));
        restarts.add(row);
    };
    let begin = (Instant::now(), Report::default());
    let back = wait_until_back(&mut fleet, begin, scale.sensors);
    thread::sleep(REST);
    add("the fleet's start", back, resident_kib(collector.id()));
    for (what, signal) in [("SIGTERM, start", Signal::SIGTERM), ("SIGKILL, start", Signal::SIGKILL)]
    {
        let before = fleet.report();
        collector.stop(signal, PATIENCE);
        let begin = (Instant::now(), before);
        collector = site.start_collector();
        let back = wait_until_back(&mut fleet, begin, scale.sensors);
        thread::sleep(REST);
        add(what, back, resident_kib(collector.id()));
    }
    let mut text = String::from("\n## Fleet\n\n");
    let _ = writeln!(
        text,
        "{} sensors, each with its certificate, from one address, on one collector, both on all processors of this machine. \
         `crowded`: handshakes that had to make way. Resident memory {} s later.\n\n{}",
        scale.sensors,
        REST.as_secs(),
        restarts.text()
    );
    text.push_str(&load(&site, &mut fleet, &collector, scale));
    fleet.stop();
    stop_collector(&mut collector);
    Ok(text)
}

/// Waits until all are connected that were not at the begin; for how long, and attempts that failed.
fn wait_until_back(
    fleet: &mut Fleet,
    (start, before): (Instant, Report),
    sensors: u32,
) -> (Duration, u64) {
    let all = u64::from(sensors);
    let report = fleet.wait_for("whole fleet", PATIENCE, |report| {
        report.connects >= before.connects + all && report.connected == all
    });
    (start.elapsed(), report.failed_dials - before.failed_dials)
}

/// Records at a rate, and how far the store and what is made from it are behind.
fn load(site: &Site, fleet: &mut Fleet, collector: &Process, scale: &Scale) -> String {
    let processors = |fleet: &mut Fleet| {
        [collector.id(), fleet.process().id()].map(|id| processor_time(id).as_secs_f64())
    };
    let (before, used) = (fleet.report(), processors(fleet));
    fleet.set_rate(scale.records_per_second);
    let start = Instant::now();
    let (mut most_events, mut most_index) = (0.0_f64, 0.0_f64);
    while start.elapsed() < scale.fleet_load {
        thread::sleep(LOOK);
        most_events = most_events.max(site.metric("ringwatch_events_behind_records"));
        most_index = most_index.max(site.metric("ringwatch_index_behind_records"));
    }
    let (after, used_after) = (fleet.report(), processors(fleet));
    let seconds = (after.unix_ms - before.unix_ms) as f64 / 1e3;
    let peak = resident_kib(collector.id());
    fleet.set_rate(0);
    let made = fleet.report().made;
    let end = fleet.wait_for("last acknowledgement", PATIENCE, |report| {
        report.made >= made && report.acknowledged + report.lost >= report.made
    });
    let drained = start.elapsed() - scale.fleet_load;
    while site.metric("ringwatch_index_behind_records") > 0.0
        && start.elapsed() < scale.fleet_load + PATIENCE
    {
        thread::sleep(Duration::from_millis(50));
    }
    let indexed = start.elapsed() - scale.fleet_load;
    let behind = site.metric("ringwatch_index_behind_records");
    let rate = |value: fn(&Report) -> u64| {
        format!("{:.0}", (value(&after) - value(&before)) as f64 / seconds)
    };
    let mut table = Table::new(&["what", "value"]);
    let cores = |index: usize| format!("{:.2}", (used_after[index] - used[index]) / seconds);
    for (what, value) in [
        ("seconds of load", format!("{seconds:.1}")),
        ("records made a second", rate(|report| report.made)),
        ("records acknowledged a second, in this time", rate(|report| report.acknowledged)),
        ("last acknowledgement after the load's end, s", format!("{:.1}", drained.as_secs_f64())),
        ("all indexed after the load's end, s", format!("{:.1}", indexed.as_secs_f64())),
        ("records not indexed then", format!("{behind:.0}")),
        ("most records stored and not in eve.json", format!("{most_events:.0}")),
        ("most records stored and not indexed", format!("{most_index:.0}")),
        ("records lost by sensors", end.lost.to_string()),
        ("connections lost meanwhile", (end.connects - before.connects).to_string()),
        ("processors, collector", cores(0)),
        ("processors, fleet", cores(1)),
        ("resident memory at the load's end, KiB", peak.to_string()),
    ] {
        eprintln!("{what}: {value}");
        table.add([what.to_owned(), value]);
    }
    let intended = scale.records_per_second;
    format!("\nFlow records of about 700 bytes, {intended} a second.\n\n{}", table.text())
}
