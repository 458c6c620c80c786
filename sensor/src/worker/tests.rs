//! What a panic of a worker costs, and that it comes back: the whole pipeline in this process, with a
//! frame that makes its worker fail on purpose.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use packet::frame::Frame;
use perf::events::Events;
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::Lab;

use crate::afpacket::RingConfig;
use crate::config::{Config, EventOutput, ExportFrames, FanoutMode};
use crate::pipeline::{Pipeline, Start};
use crate::setup;

/// A frame with these bytes makes the worker panic that works on it.
pub(crate) const POISON: &[u8] = b"this frame makes its worker panic";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn fail_on_purpose(frames: &[Frame<'_>]) {
    let is_poison = |frame: &Frame<'_>| frame.data.windows(POISON.len()).any(|it| it == POISON);
    assert!(!frames.iter().any(is_poison), "on purpose");
}

/// Lets an interface carry only what the test sends: without IPv6, no stack says anything by itself.
fn make_quiet(lab: &Lab) {
    for namespace in [lab.sensor(), lab.generator()] {
        namespace.run("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    }
}

/// A ring with a retire time of its own, in milliseconds.
fn start_retiring(
    lab: &Lab,
    interface: &str,
    (fanout, workers): (FanoutMode, usize),
    events: &Path,
    retire_ms: Option<u32>,
) -> Pipeline {
    lab.sensor().within(|| {
        let mut config = Config::without_file();
        config.capture.interfaces = vec![interface.into()];
        config.capture.ring_mib = 16;
        config.capture.fanout = fanout;
        config.events.output = EventOutput::File(events.to_owned());
        config.api_listen = None;
        config.export.frames = ExportFrames::All;
        let captured = setup::captured(&config.capture).unwrap();
        let ring = setup::ring(&config.capture, workers).unwrap();
        let ring = RingConfig { retire_ms: retire_ms.unwrap_or(ring.retire_ms), ..ring };
        let (sensor, stats_interval) = ("test".to_owned(), Duration::from_secs(60));
        let cpus = vec![0; workers];
        let filters = setup::filters(&config, &captured).unwrap();
        let start = Start { config, sensor, captured, filters, cpus, ring, stats_interval };
        Pipeline::start(start).unwrap()
    })
}

fn start(lab: &Lab, interface: &str, group: (FanoutMode, usize), events: &Path) -> Pipeline {
    start_retiring(lab, interface, group, events, None)
}

fn wait_for(events: &Path, what: &str, is_so: impl Fn(&Events) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Events::parse(&fs::read_to_string(events).unwrap_or_default());
        if is_so(&now) {
            return;
        }
        assert!(Instant::now() < deadline, "no {what} in {:#?}", now.all());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn syns(ports: std::ops::Range<u16>) -> impl Iterator<Item = Vec<u8>> {
    ports.map(|port| {
        let source = format!("198.18.0.1:{port}").parse().unwrap();
        frames::tcp(source, "198.19.0.2:80".parse().unwrap(), SYN, b"")
    })
}

/// Frames, one that makes its worker panic amid others, and frames again once it is back.
fn a_worker_that_panics_comes_back(interface: &str, fanout: FanoutMode, workers: usize) {
    let Some(lab) = Lab::new() else { return };
    make_quiet(&lab);
    let folder = tempfile::TempDir::new().unwrap();
    let events = folder.path().join("eve.json");
    let pipeline = start(&lab, interface, (fanout, workers), &events);
    let mut injector = Injector::within(lab.generator(), "g0");
    injector.send_all(syns(1..101), None).unwrap();
    wait_for(&events, "flows", |events| events.of_type("flow").len() == 100);
    let (from, to) = ("198.18.0.1:7".parse().unwrap(), "198.19.0.2:7".parse().unwrap());
    let poison = frames::udp(from, to, POISON);
    let around = syns(1001..1201).chain([poison]).chain(syns(2001..2201));
    injector.send_all(around, None).unwrap();
    wait_for(&events, "panic", |events| events.anomalies("worker_panicked").len() == 1);
    wait_for(&events, "restart", |events| events.anomalies("worker_restarted").len() == 1);
    injector.send_all(syns(3001..3501), None).unwrap();
    let is_new = |port: &serde_json::Value| port.as_u64().is_some_and(|port| port > 3000);
    wait_for(&events, "flows after the restart", |events| {
        events.of_type("flow").iter().filter(|flow| is_new(&flow["src_port"])).count() == 500
    });
    let stopped = pipeline.stop();
    let mut ledger = stopped.ledger;
    assert!(stopped.is_whole, "it came back");
    // Nobody takes here what was exported.
    ledger.frames.produced = ledger.interfaces[0].exported;
    ledger.frames.in_flight = ledger.frames.produced;
    assert_eq!(ledger.check(), Ok(()));
    let interface = &ledger.interfaces[0];
    assert!(interface.lost["worker_panicked"] >= 1, "{interface:#?}");
    // Frames that came while no ring was there, or just as one was closed, were never the kernel's to
    // give: all others are accounted for.
    let seen = interface.analysed + interface.unread + interface.not_wanted;
    assert_eq!(seen, interface.kernel_packets);
    assert!((601..=1001).contains(&seen), "{interface:#?}");
    // Those before the panic, and those after it.
    assert!(interface.exported >= 600, "{interface:#?}");
}

#[test]
fn a_worker_that_panics_comes_back_into_its_group_and_the_ledger_stays_exact() {
    a_worker_that_panics_comes_back("s0", FanoutMode::Hash, 2);
}

#[test]
fn a_worker_that_panics_comes_back_where_the_order_matters() {
    a_worker_that_panics_comes_back("s0", FanoutMode::Cpu, 2);
}

#[test]
fn the_only_worker_comes_back_after_a_panic() {
    a_worker_that_panics_comes_back("s0", FanoutMode::Hash, 1);
}

#[test]
fn a_worker_that_panics_comes_back_to_all_interfaces() {
    a_worker_that_panics_comes_back("*", FanoutMode::Hash, 2);
}

#[test]
fn what_the_kernel_does_not_hand_over_before_the_end_is_unread() {
    let Some(lab) = Lab::new() else { return };
    make_quiet(&lab);
    let folder = tempfile::TempDir::new().unwrap();
    let events = folder.path().join("eve.json");
    let pipeline = start_retiring(&lab, "s0", (FanoutMode::Hash, 1), &events, Some(600_000));
    Injector::within(lab.generator(), "g0").send_all(syns(1..101), None).unwrap();
    let stopped = pipeline.stop();
    let interface = &stopped.ledger.interfaces[0];
    assert!(stopped.is_whole);
    assert_eq!(stopped.ledger.check(), Ok(()));
    assert_eq!(
        (interface.kernel_packets, interface.unread, interface.corrupt, interface.analysed),
        (100, 100, 0, 0)
    );
}
