//! Is the collector doing its work, and will it tomorrow? What an operator has to do something about.

use std::sync::atomic::Ordering;

use trust::words::utc;

use crate::status::{SensorState, Shared, read};

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
    if shared.is_deletion_failing.load(Ordering::Relaxed) {
        problems.push("segments of frames that are due cannot be deleted".to_owned());
    }
    if shared.removal.is_failing.load(Ordering::Relaxed) {
        problems.push("records that are due cannot be deleted".to_owned());
    }
    let unsealed = read(&shared.counters.segments_unsealed);
    if unsealed > 0 {
        problems.push(format!(
            "segments of frames that could not be sealed: {unsealed}; a restart tries again"
        ));
    }
    let up = shared.beats.now();
    problems.extend(shared.beats.problems(up));
    problems.extend(backlogs(shared, up));
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

/// What is made from the record log and has been far behind it for long.
fn backlogs(shared: &Shared, up: u64) -> impl Iterator<Item = String> {
    let events = shared.record_log.behind(read(&shared.events.next_number));
    let index = shared.index_progress.behind(&shared.record_log);
    let both = [
        (&shared.events, events, "the event log", "disk or processor are too slow"),
        (&shared.index, index, "the index of events", "searches lack them"),
    ];
    both.into_iter().filter_map(move |(following, records, what, why)| {
        let since = following.behind_for(up);
        let minutes = since / 60;
        (since >= BEHIND)
            .then(|| format!("{what} is {records} records behind, for {minutes} minutes: {why}"))
    })
}

/// What is far behind for so long does not catch up by itself. Unit: seconds.
const BEHIND: u64 = 5 * 60;
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
    let held = state.frames_held_since.filter(|_| state.connection.is_some());
    // What it held when an earlier connection ended may have gone since.
    let held = held.map(|from| ago(from.seconds().max(since)));
    if let Some(held) = held.filter(|held| *held >= SILENT) {
        let minutes = held / 60;
        problems
            .push(format!("sensor {name} has frames to send, and none came for {minutes} minutes"));
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
    fn frames_that_a_sensor_has_and_that_do_not_come_are_a_problem() {
        use wire::ledger::{DeliveryLedger, Ledger};
        let ledger = |in_flight| {
            let frames = DeliveryLedger { in_flight, ..DeliveryLedger::default() };
            Ledger { frames, ..Ledger::default() }
        };
        let mut state = connected(SILENT * 3);
        state.stored.last_record = Some(at(0));
        state.take_ledger(ledger(7), at(SILENT));
        assert_eq!(of_sensor("a", &state, NOW - 1), [""; 0]);
        state.take_ledger(ledger(9), at(SILENT / 2));
        let said = "sensor a has frames to send, and none came for 5 minutes";
        assert_eq!(of_sensor("a", &state, NOW), [said]);
        let mut some_came = state.clone();
        some_came.stored.frames += 1;
        some_came.take_ledger(ledger(9), at(1));
        assert_eq!(of_sensor("a", &some_came, NOW), [""; 0]);
        // A quiet link is none.
        state.take_ledger(ledger(0), at(1));
        assert_eq!(of_sensor("a", &state, NOW), [""; 0]);
    }

    #[test]
    fn a_collector_that_cannot_do_its_work_says_each_part_that_it_cannot_do() {
        let shared = Shared::new("c".into(), UnixNanos(0), "/".into());
        assert_eq!(problems(&shared, NOW), [""; 0]);
        for (flag, said) in [
            (&shared.is_store_failing, "the store fails"),
            (&shared.is_disk_short, "the disk of the store is nearly full"),
            (&shared.events.is_failing, "the event log cannot be written"),
            (
                &shared.index.is_failing,
                "the index of events cannot be written; searches lack the newest",
            ),
            (&shared.is_deletion_failing, "segments of frames that are due cannot be deleted"),
            (&shared.removal.is_failing, "records that are due cannot be deleted"),
        ] {
            flag.store(true, Ordering::Relaxed);
            assert_eq!(problems(&shared, NOW), [said]);
            flag.store(false, Ordering::Relaxed);
        }
        shared.counters.segments_unsealed.store(2, Ordering::Relaxed);
        let said = "segments of frames that could not be sealed: 2; a restart tries again";
        assert_eq!(problems(&shared, NOW), [said]);
    }

    #[test]
    fn what_does_not_catch_up_with_the_records_is_a_problem_after_a_while() {
        let shared = Shared::new("c".into(), UnixNanos(0), "/".into());
        shared.record_log.lock().next_number = 200_001;
        shared.events.next_number.store(1, Ordering::Relaxed);
        let at = |up| backlogs(&shared, up).collect::<Vec<_>>();
        shared.events.note_backlog(99_999, 10);
        assert_eq!(at(1000), [""; 0]);
        shared.events.note_backlog(200_000, 20);
        shared.events.note_backlog(300_000, 25);
        assert_eq!(at(319), [""; 0]);
        let said = "the event log is 200000 records behind, for 5 minutes: disk or processor are \
                    too slow";
        assert_eq!(at(320), [said]);
        shared.index.note_backlog(200_000, 20);
        assert_eq!(at(320).len(), 2);
        shared.events.note_backlog(5, 330);
        shared.index.note_backlog(5, 330);
        assert_eq!(at(1000), [""; 0]);
    }

    #[test]
    fn clocks_that_are_far_apart_are_a_problem() {
        let offset = |nanos| SensorState { clock_offset: Some(nanos), ..connected(1) };
        assert_eq!(of_sensor("a", &offset(9_999_999_999), NOW), [""; 0]);
        let said = "the clock of sensor a is 600 s behind: synchronise both clocks";
        assert_eq!(of_sensor("a", &offset(-600_000_000_000), NOW), [said]);
    }
}
