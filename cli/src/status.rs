//! `ringwatch status`: a collector and its sensors as a table.

use std::fmt::Write as _;

use crate::api::{Balance, Sensor, Status, Store};
use crate::text::{clock, counted, grouped, harmless, scaled, table};

/// The state of a collector for people.
#[must_use]
pub fn render(status: &Status) -> String {
    let uptime =
        clock(std::time::Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default());
    let store = &status.store;
    let mut text = format!(
        "collector {} (version {}), up {uptime}\n\
         store     {}: {} frames ({}), {} records, {} sealed, {} free\n\
         events    {}\n\n",
        harmless(&status.collector, 64),
        harmless(&status.version, 32),
        harmless(&store.path, 200),
        grouped(store.frames),
        scaled(store.frame_bytes as f64, "B"),
        grouped(store.records),
        counted(store.segments_sealed, "segment"),
        scaled(store.free_bytes as f64, "B"),
        harmless(&store.events, 200),
    );
    text.push_str(&trouble(store));
    if status.sensors.is_empty() {
        text.push_str("no sensor has connected yet\n");
    } else {
        let rows: Vec<_> = status.sensors.iter().map(row).collect();
        text.push_str(&table(HEADS, RIGHT, &rows));
        text.push_str(&both_ends(&status.sensors));
    }
    for sensor in &status.sensors {
        if let Balance::Off(imbalance) = sensor.balance() {
            let _ = writeln!(text, "! {}: {imbalance}", harmless(&sensor.name, 64));
        }
    }
    for problem in &status.problems {
        let _ = writeln!(text, "! {}", harmless(problem, 400));
    }
    let refused: Vec<_> = status
        .refused
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{} {}", harmless(reason, 40), grouped(*count)))
        .collect();
    if !refused.is_empty() {
        let _ = writeln!(text, "\nrefused   {}", refused.join(", "));
    }
    text
}

/// In place of what a sensor has not said to this collector yet.
const NOTHING_SAID: &str = "–";

/// What sensors say became of frames and records, beside what the collector has: the ledger of both ends.
fn both_ends(sensors: &[Sensor]) -> String {
    let rows: Vec<_> = sensors
        .iter()
        .flat_map(|sensor| {
            let ledger = sensor.ledger.as_ref();
            let frames = ledger.map(|ledger| &ledger.frames);
            let records = ledger.map(|ledger| &ledger.records);
            let kinds = [
                ("frames", frames, sensor.frames, sensor.gap_frames),
                ("records", records, sensor.records, sensor.gap_records),
            ];
            kinds.map(|(kind, said, stored, told)| {
                let [produced, acknowledged, in_flight, lost] = said.map_or_else(
                    || std::array::from_fn(|_| NOTHING_SAID.to_owned()),
                    |said| {
                        let lost = said.lost.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
                        [said.produced, said.acknowledged, said.in_flight, lost].map(grouped)
                    },
                );
                let (name, kind) = (harmless(&sensor.name, 64), kind.to_owned());
                let [stored, told] = [stored, told].map(grouped);
                [name, kind, produced, acknowledged, in_flight, lost, stored, told]
            })
        })
        .collect();
    let mut text = String::from(
        "\nwhat this run of each sensor says, and what the collector has since it was started; told lost is with what \
         kernel and export lost of frames\n",
    );
    text.push_str(&table(LEDGER_HEADS, LEDGER_RIGHT, &rows));
    for sensor in sensors.iter().filter(|sensor| sensor.missing > 0) {
        let (name, missing) = (harmless(&sensor.name, 64), grouped(sensor.missing));
        let _ = writeln!(
            text,
            "! {name}: {missing} records or batches never came, and nobody said why"
        );
    }
    text
}

/// What is not as it should be with the records, a line each.
fn trouble(store: &Store) -> String {
    let mut text = String::new();
    for (behind, what) in
        [(store.events_behind, "the event log"), (store.index_behind, "the index of events")]
    {
        // What came within a second or so is no trouble.
        if behind > FEW {
            let _ = writeln!(text, "! {what} is {} behind", counted(behind, "record"));
        }
    }
    if store.damaged_bytes > 0 {
        let damaged = scaled(store.damaged_bytes as f64, "B");
        let _ = writeln!(text, "! {damaged} of the record log cannot be read; look at the disk");
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Records that what is made from the record log may be behind by.
const FEW: u64 = 100_000;
const LEDGER_COLUMNS: usize = 8;
const LEDGER_HEADS: [&str; LEDGER_COLUMNS] =
    ["SENSOR", "WHAT", "PRODUCED", "ACKNOWLEDGED", "IN FLIGHT", "LOST", "STORED", "TOLD LOST"];
const LEDGER_RIGHT: [bool; LEDGER_COLUMNS] = [false, false, true, true, true, true, true, true];
const COLUMNS: usize = 10;
const HEADS: [&str; COLUMNS] = [
    "SENSOR", "STATE", "PEER", "FRAMES", "FRAMES/S", "BYTES/S", "RECORDS", "ALERTS", "DROPPED",
    "LEDGER",
];
const RIGHT: [bool; COLUMNS] = [false, false, false, true, true, true, true, true, true, false];

fn row(sensor: &Sensor) -> [String; COLUMNS] {
    let drops = sensor.ledger.as_ref().map_or_else(|| "?".into(), |l| grouped(l.kernel_drops()));
    [
        harmless(&sensor.name, 64),
        if sensor.connected { "connected" } else { "away" }.to_owned(),
        harmless(sensor.peer.as_deref().unwrap_or("-"), 64),
        grouped(sensor.frames),
        format!("{:.1}", sensor.frames_per_second),
        scaled(sensor.bytes_per_second, "B"),
        grouped(sensor.records),
        grouped(sensor.alerts),
        drops,
        balance_in_words(&sensor.balance()),
    ]
}

/// What the ledger says, in a few words.
#[must_use]
pub fn balance_in_words(balance: &Balance) -> String {
    match balance {
        Balance::AddsUp => "adds up".to_owned(),
        Balance::Waiting(frames) => format!("adds up, {} waiting", grouped(*frames)),
        Balance::Off(imbalance) => format!("does not add up ({})", imbalance.place),
        Balance::Unknown => "none yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ledger::{InterfaceLedger, Ledger};

    fn status() -> Status {
        let eth0 = InterfaceLedger { name: "eth0".into(), kernel_packets: 5, ..Default::default() };
        let ledger = Ledger { interfaces: vec![eth0], ..Default::default() };
        let web =
            Sensor { name: "web".into(), ledger: Some(ledger), ended: true, ..Default::default() };
        let refused = [("bad_crc".to_owned(), 2), ("bad_magic".to_owned(), 0)].into();
        Status { collector: "ids".into(), sensors: vec![web], refused, ..Default::default() }
    }

    #[test]
    fn an_imbalance_is_named_below_the_table() {
        let text = render(&status());
        assert!(text.contains("does not add up (eth0)"), "{text}");
        assert!(text.contains("! web: ledger of eth0 does not add up: kernel_packets 5"), "{text}");
    }

    #[test]
    fn a_sensor_that_has_said_nothing_yet_has_no_numbers_of_its_own() {
        let mut status = status();
        let web = &mut status.sensors[0];
        (web.ledger, web.frames) = (None, 9);
        let text = render(&status);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected = ["web", "frames", "–", "–", "–", "–", "9", "0"];
        assert!(text.lines().any(|line| words(line) == expected), "{text}");
    }

    #[test]
    fn the_ledger_of_both_ends_stands_side_by_side() {
        let mut status = status();
        let web = &mut status.sensors[0];
        let lost = [("disconnected".to_owned(), 3), ("own_traffic".to_owned(), 4)].into();
        let frames =
            wire::ledger::DeliveryLedger { produced: 1507, acknowledged: 1498, in_flight: 2, lost };
        web.ledger = Some(Ledger { frames, ..Ledger::default() });
        (web.frames, web.gap_frames, web.missing) = (1498, 7, 5);
        let text = render(&status);
        let words = |line: &str| {
            line.split("  ")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let lines: Vec<_> = text.lines().map(words).collect();
        let found = |expected: &[&str]| lines.iter().any(|line| line == expected);
        assert!(found(&LEDGER_HEADS), "{text}");
        assert!(found(&["web", "frames", "1 507", "1 498", "2", "7", "1 498", "7"]), "{text}");
        assert!(found(&["web", "records", "0", "0", "0", "0", "0", "0"]), "{text}");
        assert!(
            text.contains("! web: 5 records or batches never came, and nobody said why"),
            "{text}"
        );
    }

    #[test]
    fn only_reasons_that_happened_are_shown() {
        let text = render(&status());
        assert!(text.contains("refused   bad_crc 2\n"), "{text}");
        assert!(!text.contains("bad_magic"), "{text}");
    }

    #[test]
    fn what_has_to_be_done_is_said() {
        let problems = vec!["ids.pem expires at 2026-12-01T00:00:00Z: renew it".to_owned()];
        let text = render(&Status { problems, ..status() });
        assert!(text.contains("\n! ids.pem expires at 2026-12-01T00:00:00Z: renew it\n"), "{text}");
    }

    #[test]
    fn records_that_are_behind_or_damaged_are_named() {
        let mut status = status();
        assert!(!render(&status).contains("behind"));
        status.store = Store { index_behind: 2_000_000, damaged_bytes: 80, ..Store::default() };
        let text = render(&status);
        assert!(text.contains("\n! the index of events is 2 000 000 records behind\n"), "{text}");
        assert!(text.contains("\n! 80 B of the record log cannot be read; look"), "{text}");
    }

    #[test]
    fn a_collector_without_sensors_says_so() {
        assert!(render(&Status::default()).contains("no sensor has connected yet"));
    }

    #[test]
    fn names_of_peers_cannot_steer_the_terminal() {
        let mut status = status();
        status.sensors[0].name = "\u{1b}[31mweb".into();
        assert!(!render(&status).contains('\u{1b}'));
    }
}
