//! Is the collector doing its work, and will it tomorrow? What an operator has to do something about.

use std::sync::atomic::Ordering;

use trust::words::utc;

use crate::status::{SensorState, Shared};

/// What is wrong, in words; empty when all is well. `now` is in seconds since 1970.
#[must_use]
pub fn problems(shared: &Shared, now: i64) -> Vec<String> {
    let mut problems = Vec::new();
    if shared.is_store_failing.load(Ordering::Relaxed) {
        problems.push("the store fails".to_owned());
    }
    if shared.is_disk_short.load(Ordering::Relaxed) {
        problems.push("the disk of the store is nearly full".to_owned());
    }
    if shared.events.is_failing.load(Ordering::Relaxed) {
        problems.push("the event log cannot be written".to_owned());
    }
    if shared.index.is_failing.load(Ordering::Relaxed) {
        problems.push("the index of events cannot be written; searches lack the newest".to_owned());
    }
    for sensor in shared.sensors() {
        problems.extend(of_sensor(sensor.name(), &sensor.state(), now));
    }
    if let Some(api) = shared.api_tls.get() {
        problems.extend(api.problems(now));
    }
    let Some(tls) = shared.tls.get() else { return problems };
    problems.extend(tls.problems(now));
    let warning = i64::try_from(tls.warning().as_secs()).unwrap_or(i64::MAX);
    for sensor in shared.sensors() {
        let state = sensor.state();
        // A sensor that is away may have its new certificate already.
        let until = state.certificate_until.filter(|_| state.connection.is_some());
        drop(state);
        if let Some(until) = until.filter(|until| until.saturating_sub(now) < warning) {
            let (name, when) = (sensor.name(), utc(until));
            problems.push(format!(
                "the certificate of sensor {name} expires at {when}: ringwatch pki renew DIR {name}"
            ));
        }
    }
    problems
}

/// A sensor that is away for so long, without having said goodbye, is a problem. Unit: seconds.
const AWAY: u64 = 5 * 60;
/// One that is away for so long is taken for one that is no more. Unit: seconds.
const GONE: u64 = 24 * 3600;
/// A connected sensor sends counters every minute, unless it is told otherwise. Unit: seconds.
const SILENT: u64 = 5 * 60;
/// Clocks further apart make a puzzle of what happened when. Unit: nanoseconds.
const SKEW: u64 = 10_000_000_000;

/// What is wrong with a sensor.
fn of_sensor(name: &str, state: &SensorState, now: i64) -> Vec<String> {
    let now = u64::try_from(now).unwrap_or_default();
    let since = state.since.seconds();
    let ago = |time: u64| now.saturating_sub(time);
    let mut problems = Vec::new();
    // Of a sensor of an earlier run of this collector it is not known since when it is away.
    let is_known = since > 0 && !state.has_ended;
    if state.connection.is_none() && is_known && (AWAY..GONE).contains(&ago(since)) {
        problems.push(format!("sensor {name} is away for {} minutes", ago(since) / 60));
    }
    let heard = state.stored.last_record.map_or(since, |time| time.seconds().max(since));
    if state.connection.is_some() && ago(heard) >= SILENT {
        problems.push(format!(
            "sensor {name} is connected and has sent no event for {} minutes",
            ago(heard) / 60
        ));
    }
    if let Some(offset) = state.clock_offset.filter(|offset| offset.unsigned_abs() >= SKEW) {
        let which = if offset > 0 { "ahead" } else { "behind" };
        let seconds = offset.unsigned_abs() / 1_000_000_000;
        problems.push(format!(
            "the clock of sensor {name} is {seconds} s {which}: synchronise both clocks"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use wire::units::UnixNanos;

    use super::*;
    use crate::status::Connection;

    const NOW: i64 = 1_000_000;

    fn at(seconds_ago: u64) -> UnixNanos {
        UnixNanos((NOW.cast_unsigned() - seconds_ago) * 1_000_000_000)
    }

    fn connected(since: u64) -> SensorState {
        let peer = "192.0.2.1:5".parse().unwrap();
        let connection = Some(Connection { id: 1, peer });
        SensorState { connection, since: at(since), ..SensorState::default() }
    }

    #[test]
    fn a_sensor_that_is_away_is_a_problem_until_it_is_taken_for_gone() {
        let away = |since| SensorState { connection: None, ..connected(since) };
        assert_eq!(of_sensor("a", &away(AWAY - 1), NOW), [""; 0]);
        assert_eq!(of_sensor("a", &away(AWAY), NOW), ["sensor a is away for 5 minutes"]);
        assert_eq!(of_sensor("a", &away(GONE), NOW), [""; 0]);
        let ended = SensorState { has_ended: true, ..away(AWAY) };
        assert_eq!(of_sensor("a", &ended, NOW), [""; 0], "it said goodbye");
        assert_eq!(of_sensor("a", &SensorState::default(), NOW), [""; 0], "of an earlier run");
    }

    #[test]
    fn a_sensor_that_is_connected_and_silent_is_a_problem() {
        assert_eq!(of_sensor("a", &connected(SILENT - 1), NOW), [""; 0]);
        let said = "sensor a is connected and has sent no event for 5 minutes";
        assert_eq!(of_sensor("a", &connected(SILENT), NOW), [said]);
        let mut heard = connected(SILENT * 2);
        heard.stored.last_record = Some(at(SILENT - 1));
        assert_eq!(of_sensor("a", &heard, NOW), [""; 0]);
    }

    #[test]
    fn clocks_that_are_far_apart_are_a_problem() {
        let offset = |nanos| SensorState { clock_offset: Some(nanos), ..connected(1) };
        assert_eq!(of_sensor("a", &offset(9_999_999_999), NOW), [""; 0]);
        let said = "the clock of sensor a is 600 s behind: synchronise both clocks";
        assert_eq!(of_sensor("a", &offset(-600_000_000_000), NOW), [said]);
    }
}
