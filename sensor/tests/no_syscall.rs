//! A worker makes no system call for a packet: strace beside a running sensor, whose calls are counted
//! under two loads.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::frames;
use perf::inject::Injector;
use perf::lab::Lab;
use perf::process::Process;
use perf::sensor::Sensor;
use perf::tools;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long each load lasts.
const SECONDS: u64 = 2;

/// Thread id of the only worker.
fn worker(process: u32) -> u32 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    let workers: Vec<_> = ids
        .filter(|id| {
            let name = fs::read_to_string(format!("/proc/{process}/task/{id}/comm")).unwrap();
            name.trim() == "worker-0"
        })
        .collect();
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0].parse().unwrap()
}

/// System calls that a thread makes while `work` runs, by name.
fn calls_during(thread: u32, work: impl FnOnce()) -> BTreeMap<String, u64> {
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("calls");
    let mut command = Command::new(tools::find("strace").unwrap());
    // Without -f: this thread alone.
    command.args(["-p", &thread.to_string(), "-o"]).arg(&file);
    let mut strace = Process::spawn(command);
    strace.wait_for_line("attached", PATIENCE);
    work();
    strace.stop(Signal::SIGINT, PATIENCE);
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(&file).unwrap().lines() {
        // `name(arguments) = result`; notes on signals and exits have no such beginning.
        let name = line.split('(').next().unwrap();
        if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            *calls.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    calls
}

#[test]
fn ten_times_the_frames_cost_no_more_system_calls() {
    ten_times_the_frames("s0");
}

#[test]
fn ten_times_the_frames_of_all_interfaces_cost_no_more_system_calls() {
    ten_times_the_frames("*");
}

fn ten_times_the_frames(interface: &str) {
    if !tools::require(&["strace"]) {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let mut sensor = Sensor::start(lab.sensor(), interface, 1, Sensor::SMALL);
    let thread = worker(sensor.process().id());
    let mut injector = Injector::within(lab.generator(), "g0");
    let made: Vec<_> = (1..=1000)
        .map(|port| {
            let source = format!("198.18.0.1:{port}");
            frames::udp(source.parse().unwrap(), "198.19.0.2:53".parse().unwrap(), &[0; 18])
        })
        .collect();
    let mut sent = 0;
    let mut load = |rate: u64| {
        let begin = Instant::now();
        let calls = calls_during(thread, || {
            let frames = rate * SECONDS;
            injector.send_all(made.iter().cycle().take(frames as usize), Some(rate)).unwrap();
            sent += frames;
        });
        let total: u64 = calls.values().sum();
        (total as f64 / begin.elapsed().as_secs_f64(), total, calls)
    };
    let (few_rate, few, few_calls) = load(2_000);
    let (many_rate, many, many_calls) = load(20_000);
    let described = format!(
        "2 000 frames/s: {few} calls, {few_rate:.0}/s {few_calls:?}; \
         20 000 frames/s: {many} calls, {many_rate:.0}/s {many_calls:?}"
    );
    println!("{described}");
    // A block every 10 ms is a poll, and four ticks a second read the statistics.
    assert!(few > 20 && many > 20, "strace saw nothing; {described}");
    assert!(many_rate < 1.5 * few_rate + 50.0, "{described}");
    let per_frame = many as f64 / (20_000 * SECONDS) as f64;
    assert!(per_frame < 0.05, "{per_frame} calls per frame; {described}");
    let ledger = sensor.stop(Signal::SIGINT).ledger();
    assert!(ledger.interfaces[0].analysed >= sent, "{ledger:#?}");
    assert_eq!(ledger.kernel_drops(), 0);
}
