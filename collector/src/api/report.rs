//! The body of `/api/v1/status`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use wire::ledger::Ledger;
use wire::units::UnixNanos;

use super::now_seconds;
use super::rates::{Rate, Rates};
use crate::committer::wall_clock;
use crate::health;
use crate::status::{Sensor, SensorState, Shared, Stored, read};

/// The collector as a whole. Names of fields are read by other programs: keep them.
#[derive(Debug, Serialize)]
pub struct Status {
    collector: String,
    version: &'static str,
    started: String,
    uptime_seconds: f64,
    /// As `/healthz` says it; empty when all is well.
    problems: Vec<String>,
    store: Store,
    sensors: Vec<SensorReport>,
    refused: BTreeMap<&'static str, u64>,
    handshake_failures: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct Store {
    path: String,
    events: String,
    /// Records that are stored and not in `events` yet.
    events_behind: u64,
    /// Records that are stored and not in the index yet.
    index_behind: u64,
    /// Bytes of the record log.
    record_bytes: u64,
    /// Bytes of it that are damaged.
    damaged_bytes: u64,
    segments_sealed: u64,
    /// The first of them.
    open_segment: Option<String>,
    open_segments: Vec<String>,
    frames: u64,
    frame_bytes: u64,
    records: u64,
    free_bytes: u64,
    errors: u64,
}

#[derive(Debug, Serialize)]
struct SensorReport {
    name: String,
    connected: bool,
    peer: Option<String>,
    since: Option<String>,
    ended: bool,
    boot_epoch: u64,
    host: String,
    version: String,
    frames: u64,
    frame_bytes: u64,
    records: u64,
    alerts: u64,
    frames_per_second: f64,
    bytes_per_second: f64,
    records_per_second: f64,
    last_frame: Option<String>,
    last_record: Option<String>,
    duplicates: u64,
    pauses: u64,
    missing: u64,
    gap_frames: u64,
    gap_records: u64,
    clock_offset_ms: Option<f64>,
    certificate_until: Option<String>,
    ledger: Option<Ledger>,
}

/// The state of everything, now.
#[must_use]
pub fn status(shared: &Shared, rates: &Rates) -> Status {
    let sensors = shared.sensors();
    let totals: Vec<Stored> = sensors.iter().map(|sensor| sensor.state().stored).collect();
    let open_segments: Vec<String> =
        shared.open_segments().values().map(|path| path.display().to_string()).collect();
    Status {
        collector: shared.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        started: rfc3339(shared.started),
        uptime_seconds: wall_clock().since(shared.started).as_secs_f64(),
        problems: health::problems(shared, now_seconds()),
        store: Store {
            path: shared.store_path.display().to_string(),
            events: shared.events_path.display().to_string(),
            events_behind: shared.record_log.behind(read(&shared.events.next_number)),
            index_behind: shared.index_progress.behind(&shared.record_log),
            record_bytes: shared.record_log.bytes(),
            damaged_bytes: read(&shared.record_log.damaged_bytes),
            segments_sealed: read(&shared.counters.segments_sealed),
            open_segment: open_segments.first().cloned(),
            open_segments,
            frames: totals.iter().map(|stored| stored.frames).sum(),
            frame_bytes: totals.iter().map(|stored| stored.frame_bytes).sum(),
            records: totals.iter().map(|stored| stored.records).sum(),
            free_bytes: read(&shared.free_bytes),
            errors: read(&shared.counters.store_errors),
        },
        sensors: sensors.iter().map(|sensor| report(sensor, rates.of(sensor))).collect(),
        refused: shared.refused.snapshot(),
        handshake_failures: shared.handshakes.snapshot(),
    }
}

fn report(sensor: &Sensor, rate: Rate) -> SensorReport {
    let state = sensor.state().clone();
    let SensorState { connection, since, stored, clock_offset, ledger, .. } = state;
    SensorReport {
        name: sensor.name().to_owned(),
        connected: connection.is_some(),
        peer: connection.map(|connection| written(connection.peer)),
        since: (since != UnixNanos(0)).then(|| rfc3339(since)),
        ended: state.has_ended,
        boot_epoch: state.boot_epoch,
        host: state.host,
        version: state.version,
        frames: stored.frames,
        frame_bytes: stored.frame_bytes,
        records: stored.records,
        alerts: stored.alerts,
        frames_per_second: rate.frames,
        bytes_per_second: rate.bytes,
        records_per_second: rate.records,
        last_frame: stored.last_frame.map(rfc3339),
        last_record: stored.last_record.map(rfc3339),
        duplicates: state.duplicates,
        pauses: state.pauses,
        missing: state.missing,
        gap_frames: state.gap_frames,
        gap_records: state.gap_records,
        clock_offset_ms: clock_offset.map(|nanos| nanos as f64 / 1e6),
        certificate_until: state.certificate_until.map(trust::words::utc),
        ledger,
    }
}

/// An address as people write it, also where the socket listens for both families.
fn written(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}

fn rfc3339(time: UnixNanos) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(time.0))
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc3339_in_utc_with_microseconds() {
        assert_eq!(rfc3339(UnixNanos(1_700_000_000_123_456_789)), "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn an_ipv4_peer_of_a_socket_for_both_families_is_written_as_such() {
        for (peer, expected) in [
            ("[::ffff:192.0.2.7]:4711", "192.0.2.7:4711"),
            ("[2001:db8::7]:4711", "[2001:db8::7]:4711"),
        ] {
            assert_eq!(written(peer.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_sensor_of_an_earlier_run_is_shown_as_away() {
        let shared = Shared::new("c".into(), UnixNanos(1), "/".into());
        shared.sensor("a").state().boot_epoch = 7;
        crate::store::retention::measure(&shared);
        let json = serde_json::to_value(status(&shared, &Rates::default())).unwrap();
        let sensor = &json["sensors"][0];
        assert_eq!((&sensor["name"], &sensor["connected"]), (&"a".into(), &false.into()));
        assert!(sensor["since"].is_null() && sensor["peer"].is_null());
        assert_eq!(json["refused"]["bad_crc"], 0);
        assert!(json["store"]["free_bytes"].as_u64().unwrap() > 0);
    }
}
