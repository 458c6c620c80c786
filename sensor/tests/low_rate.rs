//! A frame now and then: none may be lost, and none may wait in a block that does not fill.
//!
//! `RINGWATCH_SOAK_SECONDS` of 60 or more makes it a frame a second for a minute; otherwise it is five a
//! second for twelve seconds.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::Lab;
use perf::sensor::Sensor;
use serde_json::Value;

/// Long beside everything else on the way to an event, so that it is what is measured.
const RETIRE: Duration = Duration::from_millis(200);

/// Frames, and the time between two.
fn pace() -> (u16, Duration) {
    let seconds = std::env::var("RINGWATCH_SOAK_SECONDS").ok();
    match seconds.and_then(|seconds| seconds.parse::<u32>().ok()) {
        Some(60..) => (60, Duration::from_secs(1)),
        _ => (60, Duration::from_millis(200)),
    }
}

fn now_micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// Time of an event, in microseconds since 1970.
fn time_of(event: &Value) -> u64 {
    let text = event["timestamp"].as_str().unwrap();
    let time = jiff::Timestamp::strptime("%Y-%m-%dT%H:%M:%S%.f%z", text).unwrap();
    u64::try_from(time.as_microsecond()).unwrap()
}

/// Of each source port the time of its frame, and the time at which its line was there.
type Times = BTreeMap<u64, (u64, u64)>;

/// Reads the events as they are written, until `count` connections came. Gives their times, and by how
/// much a pause of a millisecond was longer at worst: what the machine does to any program.
fn watch(path: &std::path::Path, count: usize, limit: Duration) -> (Times, Duration) {
    let mut reader = BufReader::new(File::open(path).unwrap());
    let mut found = BTreeMap::new();
    let mut line = String::new();
    let mut held_up = Duration::ZERO;
    let begin = Instant::now();
    while found.len() < count && begin.elapsed() < limit {
        // A line may come in parts.
        if reader.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
            let pause = Instant::now();
            thread::sleep(Duration::from_millis(1));
            held_up = held_up.max(pause.elapsed().saturating_sub(Duration::from_millis(1)));
            continue;
        }
        let seen = now_micros();
        let event: Value = serde_json::from_str(&line).unwrap();
        if event["event_type"] == "flow" {
            found.insert(event["src_port"].as_u64().unwrap(), (time_of(&event), seen));
        }
        line.clear();
    }
    (found, held_up)
}

#[test]
fn lone_frames_are_all_there_within_twice_the_retire_time() {
    let Some(lab) = Lab::new() else { return };
    let (count, pause) = pace();
    let configuration = format!(
        "[capture]\nring_mib = 16\nretire_ms = {}\n[api]\nlisten = ''\n",
        RETIRE.as_millis()
    );
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
    let mut injector = Injector::within(lab.generator(), "g0");
    let path = sensor.events_path();
    let limit = pause * u32::from(count) + Duration::from_secs(10);
    let (found, held_up) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&path, usize::from(count), limit));
        let begin = Instant::now();
        for number in 1..=count {
            // A third of a retire time more or less: no frame falls into step with the kernel's timer.
            let shift = RETIRE * u32::from(number % 3) / 3;
            let due = pause * u32::from(number) + shift;
            thread::sleep(due.saturating_sub(begin.elapsed()));
            let source = format!("198.18.0.1:{number}");
            let (source, target) = (source.parse().unwrap(), "198.19.0.2:80".parse().unwrap());
            injector.send(&frames::tcp(source, target, SYN, b"")).unwrap();
        }
        watcher.join().unwrap()
    });
    assert_eq!(found.len(), usize::from(count), "some never became an event");
    let mut waits: Vec<u64> =
        found.values().map(|(frame, line)| line.saturating_sub(*frame)).collect();
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("from frame to event, in µs: median {median}, longest {longest}; held up {held_up:?}");
    // Frames must have waited for the kernel's timer, or it is not that which was measured.
    assert!(median > RETIRE.as_micros() as u64 / 10, "{waits:?}");
    // On the way are worker, recorder and this watch: on a busy machine each of them waits its turn.
    let most = 2 * RETIRE + 3 * held_up;
    assert!(longest <= most.as_micros() as u64, "{waits:?}, held up for {held_up:?}");
    let ledger = sensor.stop(Signal::SIGINT).ledger();
    assert_eq!(ledger.kernel_drops(), 0);
    assert!(ledger.interfaces[0].analysed >= u64::from(count), "{ledger:#?}");
}
