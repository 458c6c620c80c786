//! The body of `/metrics`: OpenMetrics text, made anew for each request from the counters that the
//! status keeps.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::now_seconds;
use crate::status::{Reasons, SensorState, Shared, read};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySensor {
    sensor: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFile {
    file: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLoop {
    event_loop: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// All metrics as text.
///
/// # Errors
/// When formatting fails, which it does only for want of memory.
pub fn render(shared: &Shared) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("ringwatch");
    register_sensors(&mut registry, shared);
    register_collector(&mut registry, shared);
    register_loops(&mut registry, shared);
    register_records(&mut registry, shared);
    register_tls(&mut registry, shared, now_seconds());
    register_callers(&mut registry, shared);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn register_sensors(registry: &mut Registry, shared: &Shared) {
    let sensors = shared.sensors();
    let mut register = |name: &str, help: &str, value: fn(&SensorState) -> u64| {
        let family = Family::<BySensor, Counter>::default();
        for sensor in &sensors {
            let labels = BySensor { sensor: sensor.name().to_owned() };
            family.get_or_create(&labels).inc_by(value(&sensor.state()));
        }
        registry.register(name, help, family);
    };
    register("stored_frames", "Frames stored", |state| state.stored.frames);
    register("stored_frame_bytes", "Captured bytes of stored frames", |state| {
        state.stored.frame_bytes
    });
    register("stored_records", "Event records stored", |state| state.stored.records);
    register("stored_alerts", "Alert records stored", |state| state.stored.alerts);
    register("duplicates", "Records and frame batches that were stored already", |state| {
        state.duplicates
    });
    register("sensor_pauses", "Times that it waited after it had brought its share", |state| {
        state.pauses
    });
    register("missing", "Records and frame batches that never came", |state| state.missing);
    register("gap_frames", "Frames that the sensor reported as lost", |state| state.gap_frames);
    register("gap_records", "Records that the sensor reported as lost", |state| state.gap_records);
    let connected = Family::<BySensor, Gauge>::default();
    for sensor in &sensors {
        let labels = BySensor { sensor: sensor.name().to_owned() };
        let is_connected = sensor.state().connection.is_some();
        connected.get_or_create(&labels).set(i64::from(is_connected));
    }
    registry.register("sensor_connected", "Whether the sensor is connected", connected);
    let mut seconds = |name: &str, help: &str, value: fn(&SensorState) -> Option<f64>| {
        let family = Family::<BySensor, Gauge<f64, AtomicU64>>::default();
        for sensor in &sensors {
            if let Some(value) = value(&sensor.state()) {
                let labels = BySensor { sensor: sensor.name().to_owned() };
                family.get_or_create(&labels).set(value);
            }
        }
        registry.register(name, help, family);
    };
    seconds("last_record_timestamp_seconds", "When its last event was stored", |state| {
        state.stored.last_record.map(|time| time.0 as f64 / 1e9)
    });
    seconds("last_frame_timestamp_seconds", "When its last frame was stored", |state| {
        state.stored.last_frame.map(|time| time.0 as f64 / 1e9)
    });
    seconds("clock_offset_seconds", "The sensor's clock minus the collector's", |state| {
        state.clock_offset.map(|offset| offset as f64 / 1e9)
    });
}

fn register_collector(registry: &mut Registry, shared: &Shared) {
    let counters = &shared.counters;
    let plain: [(&str, &str, &AtomicU64); 14] = [
        ("accepted_connections", "Connections accepted", &counters.connections),
        (
            "replaced_connections",
            "Connections ended as their sensor came again",
            &counters.replaced,
        ),
        ("sealed_segments", "Segments sealed", &counters.segments_sealed),
        ("unsealed_segments", "Segments that could not be sealed", &counters.segments_unsealed),
        ("repaired_segments", "Segments repaired at start", &counters.segments_repaired),
        ("torn_bytes", "Bytes cut off by repairs at start", &counters.torn_bytes),
        ("store_errors", "Failed operations of the store", &counters.store_errors),
        ("store_waits", "Times that a sensor waited for the store", &counters.store_waits),
        ("expired_bytes", "Bytes of segments deleted", &counters.expired_bytes),
        ("frame_questions", "Questions for frames", &counters.frame_questions),
        ("answered_frames", "Frames sent in answers", &counters.frames_answered),
        (
            "incomplete_frame_answers",
            "Answers that lacked frames of damaged or deleted segments",
            &counters.answers_incomplete,
        ),
        (
            "unreadable_frames",
            "Frames of damaged segments, counted by each answer that lacked them",
            &counters.frames_unreadable,
        ),
        ("suppressed_lines", "Log lines left out by the rate limit", &counters.suppressed_lines),
    ];
    register_counters(registry, &plain);
    let refused = by_reason(&shared.refused);
    registry.register("refused_connections", "Connections refused or closed for a fault", refused);
    let handshakes = by_reason(&shared.handshakes);
    registry.register("handshake_failures", "Failed TLS handshakes", handshakes);
    let expired = by_reason(&shared.expired);
    registry.register("expired_segments", "Segments deleted, by what ended their life", expired);
    let (oldest, bytes) = shared.catalog.oldest();
    let kept = Gauge::<i64>::default();
    kept.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    registry.register("segment_bytes", "Bytes of sealed segments", kept);
    let span = oldest.and_then(|entry| entry.sealed).and_then(|sealed| sealed.span);
    let first = Gauge::<i64>::default();
    first.set(i64::try_from(span.map_or(0, |span| span.first.seconds())).unwrap_or(i64::MAX));
    registry.register("oldest_frame_timestamp_seconds", "Time of the oldest frame kept", first);
    register_gauges(
        registry,
        &[("store_free_bytes", "Bytes free in the store", read(&shared.free_bytes))],
    );
}

/// The event loops.
fn register_loops(registry: &mut Registry, shared: &Shared) {
    let connections = Family::<ByLoop, Gauge>::default();
    let bytes = Family::<ByLoop, Counter>::default();
    let busy = Family::<ByLoop, Counter<f64, AtomicU64>>::default();
    let loops = shared.loops.get().map_or(&[][..], |loops| loops);
    for (event_loop, own) in (0..).zip(loops) {
        let label = ByLoop { event_loop };
        let open = i64::try_from(read(&own.connections)).unwrap_or(i64::MAX);
        connections.get_or_create(&label).set(open);
        bytes.get_or_create(&label).inc_by(read(&own.bytes));
        busy.get_or_create(&label).inc_by(read(&own.busy_nanos) as f64 / 1e9);
    }
    registry.register("loop_connections", "Connections of an event loop", connections);
    registry.register("loop_bytes", "Bytes that an event loop read from sensors", bytes);
    registry.register("loop_busy_seconds", "Time in which an event loop did not wait", busy);
}

/// The record log, and what is made from it.
fn register_records(registry: &mut Registry, shared: &Shared) {
    let plain: [(&str, &str, &AtomicU64); 10] = [
        (
            "damaged_bytes",
            "Bytes of the record log that cannot be read",
            &shared.record_log.damaged_bytes,
        ),
        ("damaged_records", "Records that were in them", &shared.record_log.damaged_records),
        ("events_errors", "Failed operations of the event log", &shared.events.errors),
        (
            "events_lost_records",
            "Records that were gone before they got into the event log",
            &shared.events.lost,
        ),
        ("index_errors", "Failed operations of the index", &shared.index.errors),
        (
            "index_unreadable_records",
            "Records that are in the index by their time only",
            &shared.index_unreadable,
        ),
        ("removal_errors", "Failed deletions of records", &shared.removal.errors),
        ("removed_record_segments", "Segments of records removed", &shared.removed.segments),
        ("removed_records", "Records removed for age or want of room", &shared.removed.records),
        (
            "removed_unindexed_records",
            "Records removed before they were indexed",
            &shared.removed.unindexed,
        ),
    ];
    register_counters(registry, &plain);
    let behind = shared.record_log.behind(read(&shared.events.next_number));
    let unindexed = shared.index_progress.behind(&shared.record_log);
    let gauges = [
        ("record_log_bytes", "Bytes of the record log", shared.record_log.bytes()),
        ("events_behind_records", "Stored records that are not in the event log yet", behind),
        ("index_behind_records", "Stored records that are not in the index yet", unindexed),
    ];
    register_gauges(registry, &gauges);
}

fn register_counters(registry: &mut Registry, counters: &[(&str, &str, &AtomicU64)]) {
    for (name, help, value) in counters {
        let counter = Counter::<u64>::default();
        counter.inc_by(read(value));
        registry.register(*name, *help, counter);
    }
}

fn register_gauges(registry: &mut Registry, gauges: &[(&str, &str, u64)]) {
    for (name, help, value) in gauges {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(*value).unwrap_or(i64::MAX));
        registry.register(*name, *help, gauge);
    }
}

/// Connections of the API.
fn register_callers(registry: &mut Registry, shared: &Shared) {
    let plain = [
        ("api_accepted_connections", "Connections of callers of the API", &shared.api.accepted),
        ("api_full", "Times that callers waited as all places were taken", &shared.api.full),
    ];
    register_counters(registry, &plain);
    let refused = by_reason(&shared.api.refused);
    let help = "Connections of callers that were refused, or closed for want of a request";
    registry.register("api_refused_connections", help, refused);
}

/// When certificates expire, ours and the sensors', and what became of files that changed.
fn register_tls(registry: &mut Registry, shared: &Shared, now: i64) {
    let left = Family::<BySensor, Gauge>::default();
    for sensor in shared.sensors() {
        if let Some(until) = sensor.state().certificate_until {
            let labels = BySensor { sensor: sensor.name().to_owned() };
            left.get_or_create(&labels).set(until.saturating_sub(now));
        }
    }
    let help = "Seconds until the certificate of the sensor's last connection expires";
    registry.register("sensor_certificate_expiry_seconds", help, left);
    let Some(tls) = shared.tls.get() else { return };
    let known = tls.read();
    let own = Family::<ByFile, Gauge>::default();
    for (file, until) in known.expiry.all() {
        own.get_or_create(&ByFile { file: file.name() }).set(until.saturating_sub(now));
    }
    registry.register("tls_expiry_seconds", "Seconds until a file of our identity expires", own);
    for (name, help, value) in [
        ("tls_reloads", "Times that changed certificates came into use", known.reloads),
        ("tls_reload_failures", "Times that changed certificates were refused", known.refusals),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
}

fn by_reason(reasons: &Reasons) -> Family<ByReason, Counter> {
    let family = Family::<ByReason, Counter>::default();
    for (reason, count) in reasons.snapshot() {
        family.get_or_create(&ByReason { reason }).inc_by(count);
    }
    family
}

#[cfg(test)]
mod tests {
    use wire::units::UnixNanos;

    use super::*;

    #[test]
    fn counters_of_sensors_and_reasons_are_in_the_text() {
        let shared = Shared::new("c".into(), UnixNanos(0), "/".into());
        shared.sensor("web-1").state().stored.frames = 5;
        shared.refused.count("bad_crc");
        let text = render(&shared).unwrap();
        for line in [
            "ringwatch_stored_frames_total{sensor=\"web-1\"} 5\n",
            "ringwatch_sensor_connected{sensor=\"web-1\"} 0\n",
            "ringwatch_refused_connections_total{reason=\"bad_crc\"} 1\n",
            "ringwatch_refused_connections_total{reason=\"bad_magic\"} 0\n",
            "ringwatch_refused_connections_total{reason=\"tls\"} 0\n",
            "ringwatch_refused_connections_total{reason=\"cannot_encode\"} 0\n",
            "ringwatch_refused_connections_total{reason=\"handshake_crowded\"} 0\n",
            "ringwatch_handshake_failures_total{reason=\"wrong_role\"} 0\n",
            "ringwatch_replaced_connections_total 0\n",
            "ringwatch_store_errors_total 0\n",
            "ringwatch_expired_segments_total{reason=\"free_space\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
