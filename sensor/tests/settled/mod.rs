//! When is everything decided that a live sensor saw? Silence takes its time, and there is nothing to wait
//! for when no alert is to come.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use perf::events::{AlertLife, Events};
use perf::frames::{self, SYN};
use perf::inject::Injector;
use perf::lab::Lab;
use perf::sensor::Sensor;

/// Sweeps hosts that are silent, after everything else.
const LAST: &str = "198.18.255.1";

/// Waits until every contact without an answer has been found silent: those of a sweep that comes after
/// all others are, so its alert is the last.
pub fn all_silent(lab: &Lab, sensor: &mut Sensor) {
    let mut injector = Injector::within(lab.generator(), "g0");
    // More than make a sweep: after a flood the first ones of a source are held back.
    for host in 1..=40 {
        let target = format!("198.19.255.{host}:443");
        injector.send(&syn(&format!("{LAST}:40000"), &target)).unwrap();
    }
    sensor.wait_for("alert of the last sweep", |events| {
        events.alerts().iter().any(|alert| alert.source == LAST)
    });
}

/// The alerts but that of [`all_silent`].
pub fn alerts_before(events: &Events) -> Vec<AlertLife> {
    let mut alerts = events.alerts();
    alerts.retain(|alert| alert.source != LAST);
    alerts
}

/// Is it a packet of [`all_silent`]?
pub fn is_of_last_sweep(flow: &serde_json::Value) -> bool {
    flow["src_ip"] == LAST
}

/// A SYN as long as a frame on a wire is.
pub fn syn(source: &str, target: &str) -> Vec<u8> {
    frames::padded(frames::tcp(source.parse().unwrap(), target.parse().unwrap(), SYN, b""), 60)
}
