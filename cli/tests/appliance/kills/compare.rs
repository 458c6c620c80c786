//! What the collector stored, against what the spool accepted.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::accepted::{Accepted, AllAccepted, EventId, LANES, fingerprint, lane_of};
use crate::site::files_of;

/// What was found in the event log of the collector.
#[derive(Debug, Default)]
pub struct Found {
    /// Records that a segment had.
    pub accepted: u64,
    /// Records that went from memory to the collector, while the disk of the spool was full.
    pub from_memory: u64,
    /// Runs of the sensor.
    pub runs: usize,
    /// Alerts, and other records that go first.
    pub first: u64,
}

/// One run of the sensor in one lane.
#[derive(Debug, Default)]
struct Place {
    /// Its records so far.
    count: u64,
    last_event: u64,
}

/// Reads the event log line by line.
///
/// In each lane, the records of a run have numbers without a hole from the number with which the run began, and
/// stand in this order. So where a stored record was in a segment, its number says exactly how many of
/// its run have to stand before it; these may be unseen in segments only in runs whose disk was `full`.
///
/// # Panics
/// Where this does not hold; if a record is stored twice or otherwise than accepted; and if one that was
/// accepted is not there.
pub fn compare(events: &Path, mut all: AllAccepted, full: &BTreeSet<String>) -> Found {
    let mut places: HashMap<(Arc<str>, usize), Place> = HashMap::new();
    let mut last = [0; LANES.len()];
    let mut found = Found::default();
    let mut lines = BufReader::with_capacity(1 << 20, File::open(events).unwrap());
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).unwrap() > 0 {
        let text = line.strip_suffix(b"\n").expect("a torn line at the end of the event log");
        let id = all.runs.id_of(text);
        let known = all.records.remove(&id);
        let lane = known.as_ref().map_or_else(|| lane_of(text), |record| record.lane);
        let place = places.entry((Arc::clone(&id.run), lane)).or_default();
        assert!(id.number > place.last_event, "{id:?} after {place:?}: twice, or out of order");
        place.last_event = id.number;
        if let Some(record) = known {
            check(&record, &id, text, place, &mut last[lane]);
            found.accepted += 1;
        } else {
            assert!(full.contains(&*id.run), "{id:?} is stored, and was in no segment");
            found.from_memory += 1;
        }
        found.first += u64::from(lane == 0);
        place.count += 1;
        line.clear();
    }
    let mut missing: Vec<_> = all.records.into_iter().collect();
    missing.sort_by_key(|(_, record)| (record.lane, record.sequence));
    assert!(missing.is_empty(), "{} accepted and not stored, from {:?}", missing.len(), missing[0]);
    found.runs = places.keys().map(|(run, _)| run).collect::<BTreeSet<_>>().len();
    found
}

fn check(record: &Accepted, id: &EventId, line: &[u8], place: &Place, last: &mut u64) {
    assert_eq!(record.fingerprint, fingerprint(line), "{id:?} is stored otherwise than accepted");
    assert_eq!(
        record.sequence,
        record.run_begins + place.count,
        "{id:?}: a hole, or one too many, before {record:?}; {place:?}"
    );
    assert!(record.sequence > *last, "{id:?}: {record:?} stands behind number {last}");
    *last = record.sequence;
}

/// Frames of the sealed segments.
///
/// # Panics
/// If there is anything else but what was cut off from segments that a kill had left torn.
pub fn stored_frames(store: &Path) -> u64 {
    let folder = store.join("frames");
    let names = files_of(&folder);
    let (segments, others): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| name.ends_with(".pcapng") && !name.starts_with('.'));
    assert!(others.iter().all(|name| name.ends_with(".pcapng.torn")), "{others:?} are left");
    segments.iter().map(|name| packets_of(&fs::read(folder.join(name)).unwrap())).sum()
}

/// Enhanced packet blocks of a pcapng file.
fn packets_of(bytes: &[u8]) -> u64 {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut packets) = (0, 0);
    while at < bytes.len() {
        packets += u64::from(word(at) == 6);
        at += word(at + 4) as usize;
    }
    packets
}
