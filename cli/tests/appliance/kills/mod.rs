//! Sensor and collector are killed, cut off and left without a disk at random moments under load; in the
//! end, what the spool accepted is what the collector stored: all of it, once, in order.
//!
//! ```text
//!   load ──▶ sensor ──▶ spool ──TLS──▶ collector ──▶ event log
//!                         │                              │
//!              witness: a second name          compare: each line against
//!              for every segment               what the witness has
//! ```
//!
//! `RINGWATCH_KILL_ROUNDS` sets how many rounds, of which each set of 20 is an appliance of its own;
//! `RINGWATCH_KILL_SEED` with which seed they begin. Each set prints its seed, which repeats it: the same faults
//! after the same times; the scheduler does the rest.

mod accepted;
mod appliance;
mod compare;
mod load;
mod plan;

use std::time::{Duration, Instant, SystemTime};

use perf::tools;

use self::appliance::{Appliance, Ended, assert_nothing_missed};
use self::compare::{compare, stored_frames};
use self::load::{RATE, RECORD_RATE};
use self::plan::{Dice, Round};
use crate::site::{Site, find};

/// Rounds of one appliance.
const SET: u64 = 20;
/// Disks, in MiB.
const SPOOL_MIB: u64 = 1024;
const STORE_MIB: u64 = 6 << 10;

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[test]
fn over_many_kills_the_store_has_what_the_spool_accepted_once_and_in_order() {
    if !tools::require(&["nft", "ip"]) {
        return;
    }
    let rounds = number_of("RINGWATCH_KILL_ROUNDS").unwrap_or(SET);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let first = number_of("RINGWATCH_KILL_SEED").unwrap_or(now.as_secs());
    for (set, seed) in (0..rounds.div_ceil(SET)).zip(first..) {
        let Some(site) = Site::new(1) else { return };
        let rounds = (rounds - set * SET).min(SET);
        println!(
            "{rounds} rounds with RINGWATCH_KILL_SEED={seed}: {RECORD_RATE} records/s, {RATE} frames/s"
        );
        endure(site, &mut Dice::new(seed), rounds);
    }
}

fn endure(site: Site, dice: &mut Dice, rounds: u64) {
    let begin = Instant::now();
    let mut appliance = Appliance::start(site, SPOOL_MIB, STORE_MIB);
    for number in 1..=rounds {
        let round = Round::draw(dice);
        println!("{:7.1?} round {number}: {round:?}", begin.elapsed());
        appliance.round(round);
    }
    appliance.halt();
    appliance.wait("drain", Appliance::is_drained);
    println!("{:7.1?} drained", begin.elapsed());
    count_undisturbed(&mut appliance);
    let (full, sent, loaded, ended) =
        (appliance.full.clone(), appliance.sent, appliance.loaded(), appliance.ended);
    let outcome = appliance.stop();
    check_ledgers(&outcome);
    let Ended { store, witness, acknowledged, .. } = outcome;
    let frames = stored_frames(&store);
    let found = compare(&store.join("events/eve.json"), witness.stop(), &full);
    println!(
        "{:7.1?} {found:?}; load for {loaded:.1?}: {:.0} frames/s sent, {:.0} records/s; {frames} frames \
         stored, at least {acknowledged} acknowledged; {ended} programs ended by themselves",
        begin.elapsed(),
        sent as f64 / loaded.as_secs_f64(),
        found.accepted as f64 / loaded.as_secs_f64(),
    );
    assert!(frames >= acknowledged, "{frames} frames of {acknowledged} acknowledged");
    assert!(found.accepted > rounds * RECORD_RATE / 4 && found.runs as u64 > rounds / 8);
    assert!(found.first > 0, "no alert");
}

/// With nothing in the way, the collector has as many frames more as the sensor knows to be stored.
fn count_undisturbed(appliance: &mut Appliance) {
    let before = appliance.frames().unwrap();
    appliance.go();
    std::thread::sleep(Duration::from_secs(1));
    appliance.halt();
    appliance.wait("as many frames at both ends", |own| {
        let Some(after) = own.frames() else { return false };
        let [sensor, collector] = [after.0 - before.0, after.1 - before.1];
        sensor == collector && sensor > RATE / 10
    });
    appliance.wait("drain", Appliance::is_drained);
}

/// Both ends have the same ledger, and it adds up.
fn check_ledgers(outcome: &Ended) {
    let Ended { ledger, shown, .. } = outcome;
    ledger.check().unwrap_or_else(|imbalance| panic!("{imbalance}: {ledger:#?}"));
    let sensor = find(shown, "web-0");
    let theirs: wire::ledger::Ledger = serde_json::from_value(sensor["ledger"].clone()).unwrap();
    theirs.check().unwrap_or_else(|imbalance| panic!("{imbalance}: {theirs:#?}"));
    assert_eq!(theirs.frames, ledger.frames, "{shown:#}");
    assert_eq!(theirs.interfaces, ledger.interfaces, "{shown:#}");
    // The event that tells the ledger is in none.
    assert_eq!(theirs.records.produced, ledger.records.produced + 1, "{shown:#}");
    assert_eq!(theirs.records.in_flight, 0, "{shown:#}");
    assert!(theirs.records.lost.is_empty(), "{shown:#}");
    assert_nothing_missed(shown);
    println!("frames of the last run: {:?}", ledger.frames);
}
