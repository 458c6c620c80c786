//! Alerts do not depend on how frames are dealt to workers: by flow, by direction of a flow as `cpu`
//! and `queue` do, or each frame at random.

use std::path::Path;
use std::time::Duration;

use packet::frame::Frame;
use packet::parse;
use sensor::analyse::{Analyser, FlowSettings, Settings, VECTOR};
use sensor::counters::Counters;
use sensor::detect::{Alert, Detector, DetectorConfig, Phase};
use sensor::file::{CaptureFile, worker_of};
use sensor::flow::{State, Timeouts};
use wire::units::UnixNanos;

/// How frames come to workers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Deal {
    /// Both directions of a flow to one worker.
    Flow,
    /// Each direction of a flow to a worker of its own.
    Direction,
    /// Each frame to any worker.
    Random,
}

/// Numbers that look random.
const fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (value >> 29)
}

impl Deal {
    fn worker(self, number: u64, frame: &Frame<'_>, workers: usize) -> usize {
        let packet = parse(frame);
        match self {
            Self::Flow => worker_of(&packet, workers),
            Self::Direction => {
                let tuple = packet.tuple;
                let ends = tuple.source.low().rotate_left(7) ^ tuple.target.low();
                let ports = u64::from(tuple.source_port) << 16 | u64::from(tuple.target_port);
                mixed(mixed(ends) ^ ports) as usize % workers
            }
            Self::Random => mixed(number) as usize % workers,
        }
    }
}

/// The analysis of some workers and the detector where their evidence meets.
struct Sensor {
    workers: Vec<Analyser>,
    detector: Detector,
    alerts: Vec<Alert>,
}

impl Sensor {
    fn new(workers: usize, deal: Deal) -> Self {
        let counters = Counters::new(vec!["file".into()], workers);
        let settings = Settings {
            new_connections: false,
            connections_per_second: 0,
            contacts: 1 << 12,
            flows: Some(FlowSettings {
                flows: 1 << 12,
                grows: false,
                timeouts: Timeouts::new([Duration::from_secs(60); State::ALL.len()]),
                per_second: Some(u32::MAX),
            }),
            splits_flows: deal != Deal::Flow,
            key: 7,
        };
        let analyser = |set: &_| Analyser::new(&settings, Clone::clone(set));
        Self {
            workers: counters.workers().iter().map(analyser).collect(),
            detector: Detector::new(DetectorConfig {
                memory_mib: 4,
                splits_flows: deal != Deal::Flow,
                ..DetectorConfig::default()
            }),
            alerts: Vec::new(),
        }
    }

    fn analyse(&mut self, worker: usize, frame: Frame<'_>) {
        let nothing = Frame { data: &[], ..frame };
        self.workers[worker].analyse(
            0,
            &mut std::iter::once(frame),
            &mut [nothing; VECTOR],
            |_| {},
            |_| {},
        );
    }

    fn tick(&mut self, now: UnixNanos) {
        for (worker, analyser) in self.workers.iter_mut().enumerate() {
            analyser.end_idle_flows(now, |_| {});
            let published = analyser.publish(|contact| {
                self.detector.merge(worker, contact);
                true
            });
            assert!(!published.answers_lost);
        }
        self.detector.tick(now, &mut self.alerts);
    }
}

/// All alerts of a file, without who contributed.
fn alerts_of(path: &Path, workers: usize, deal: Deal) -> Vec<Alert> {
    const TICK: u64 = Detector::TICK.as_nanos() as u64;
    let mut file = CaptureFile::open(path).expect("the file can be read");
    let mut sensor = Sensor::new(workers, deal);
    let (mut clock, mut number) = (UnixNanos(0), 0);
    while let Ok(Some(found)) = file.next_frame() {
        let time = found.frame.time.max(clock);
        let tick = UnixNanos((clock.0 / TICK + 1) * TICK);
        if clock != UnixNanos(0) && time >= tick {
            sensor.tick(tick);
        }
        clock = time;
        let frame = Frame { time, interface: 0, ..found.frame };
        let worker = deal.worker(number, &frame, workers);
        sensor.analyse(worker, frame);
        number += 1;
        if number == 1 {
            sensor.detector.tick(time, &mut sensor.alerts);
        }
    }
    let mut tick = UnixNanos((clock.0 / TICK + 1) * TICK);
    sensor.tick(tick);
    while !sensor.detector.is_idle() {
        tick = tick.plus(Detector::TICK);
        sensor.detector.tick(tick, &mut sensor.alerts);
    }
    sensor.detector.finish(tick, &mut sensor.alerts);
    for alert in &mut sensor.alerts {
        alert.workers = 0;
    }
    sensor.alerts
}

#[test]
fn alerts_of_the_corpus_do_not_depend_on_how_frames_are_dealt() {
    let Some(folder) = perf::corpus::folder() else { return };
    let mut opened = 0;
    for entry in std::fs::read_dir(folder.join("scans")).unwrap() {
        let path = entry.unwrap().path();
        let one = alerts_of(&path, 1, Deal::Flow);
        opened += one.iter().filter(|alert| alert.phase == Phase::Open).count();
        for workers in [1, 2, 4, 8] {
            for deal in [Deal::Flow, Deal::Direction, Deal::Random] {
                let others = alerts_of(&path, workers, deal);
                assert_eq!(others, one, "{}: {workers} workers, {deal:?}", path.display());
            }
        }
    }
    assert_eq!(opened, 8, "alerts in the corpus");
}
