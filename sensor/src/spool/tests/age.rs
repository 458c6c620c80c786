//! How old the records of an earlier run are, by a clock that may be wrong.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A spool that keeps records for ten hours, with an event and an alert; the sensor ends, and starts again six
/// hours later with a clock that is off by so many seconds.
fn restarted_with_clock_off(seconds: i64) -> Bench {
    let mut bench = Bench::with(1 << 30, 10 * HOUR);
    bench.push(Flow, 0);
    bench.push(Alert, 1);
    bench.turn();
    bench.kill();
    bench.passed += 6 * HOUR;
    bench.clock_off = seconds;
    bench.open();
    bench.turn();
    bench
}

#[test]
fn after_a_restart_the_age_goes_on() {
    let mut bench = restarted_with_clock_off(0);
    bench.pass(4 * HOUR - MINUTE);
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    bench.pass(2 * MINUTE);
    assert_eq!(bench.lost(LossReason::SpoolAged), 2);
}

#[test]
fn a_clock_far_ahead_at_the_start_costs_no_record_once_it_is_set_right() {
    const YEARS: i64 = 12 * 365 * 86_400;
    let mut bench = restarted_with_clock_off(YEARS);
    for _ in 0..9 {
        bench.pass(MINUTE);
    }
    assert_eq!(status::read(&bench.status.is_age_doubted), 1);
    bench.clock_off = 0;
    bench.pass(MINUTE);
    assert_eq!(status::read(&bench.status.is_age_doubted), 0);
    assert_eq!(status::read(&bench.status.clock_steps), 1);
    bench.pass(HOUR);
    bench.spool().rewind();
    assert_eq!(bench.texts(), ["1", "0"]);
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    // At the time at which they would have gone anyway.
    bench.pass(3 * HOUR);
    assert_eq!(bench.lost(LossReason::SpoolAged), 2);
}

#[test]
fn a_clock_that_stays_ahead_is_believed_after_ten_minutes() {
    let mut bench = restarted_with_clock_off(86_400);
    bench.pass(clock::STEADY - Duration::from_secs(1));
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.lost(LossReason::SpoolAged), 2);
}

#[test]
fn records_taken_by_a_clock_far_behind_are_not_too_old_once_it_is_set_right() {
    let mut bench = restarted_with_clock_off(0);
    // As a machine without a clock of its own starts.
    bench.clock_off = -(START as i64 / 1_000_000_000);
    bench.push(Flow, "by a clock that was never set");
    bench.turn();
    bench.kill();
    bench.clock_off = -86_400;
    bench.open();
    bench.push(Flow, "by a clock that is a day behind");
    bench.turn();
    bench.kill();
    bench.clock_off = 0;
    bench.open();
    bench.pass(HOUR);
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    assert_eq!(bench.texts().len(), 4);
    // All that lies before a record is older. What was never right goes by the clock that is never set.
    bench.pass(4 * HOUR);
    assert_eq!(bench.lost(LossReason::SpoolAged), 4);
}

#[test]
fn a_spool_of_a_clock_that_was_never_set_is_kept_for_its_time() {
    let mut bench = Bench::with(1 << 30, 10 * HOUR);
    bench.clock_off = -(START as i64 / 1_000_000_000);
    bench.push(Flow, 0);
    bench.turn();
    bench.kill();
    bench.clock_off = 0;
    bench.open();
    bench.pass(9 * HOUR);
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    bench.pass(HOUR);
    assert_eq!(bench.lost(LossReason::SpoolAged), 1);
}
