//! More frames than a worker can read: what it did not read is counted, frame by frame.

use nix::sys::signal::Signal;
use perf::blast;
use perf::flood::{Flood, Kind, Order};
use perf::frames;
use perf::inject::Limit;
use perf::lab::Lab;
use perf::sensor::Sensor;

/// The smallest ring that is allowed.
const TINY: &str = "[capture]\nring_mib = 1\n[api]\nlisten = ''\n";
const FRAMES: u64 = 500_000;

#[test]
fn every_frame_of_an_overload_was_analysed_or_is_counted_as_dropped() {
    let Some(lab) = Lab::new() else { return };
    lab.silence();
    let mut sensor = Sensor::start(lab.sensor(), "s0", 1, TINY);
    let flood = Flood {
        kind: Kind::Udp,
        size: None,
        source: [198, 18, 0, 0].into(),
        target: [198, 19, 0, 2].into(),
        source_port: 1024,
        target_port: 53,
        sources: 1 << 16,
        targets: 1,
        source_ports: 1,
        target_ports: 1,
        order: Order::Random,
        flows: None,
        mac: frames::SOURCE_MAC,
        vlan: Vec::new(),
    };
    let sent = lab.sensor().within(|| blast::run(&flood, "s0", Limit::Frames(FRAMES), None));
    let sent = sent.unwrap_or_else(|error| panic!("{error}"));
    let events = sensor.stop(Signal::SIGTERM);
    let ledger = events.ledger();
    let interface = &ledger.interfaces[0];
    assert_eq!(sent.frames, FRAMES);
    assert!(interface.kernel_drops > 0, "no overload: {interface:?}");
    assert_eq!(interface.corrupt, 0, "{interface:?}");
    assert_eq!(interface.analysed + interface.kernel_drops, FRAMES, "{interface:?}");
}
