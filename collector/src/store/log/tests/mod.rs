//! The log over a disk in memory: torn at every byte, flipped at every bit, and cut from power at any
//! moment.

mod damage;
mod memory;
mod model;

use std::collections::BTreeMap;
use std::sync::Arc;

use wire::header::Stream;
use wire::records::RecordKind;
use wire::units::{Sequence, UnixNanos};

use super::batch::{NewBatch, push_record};
use super::disk::Disk;
use super::marks::{Marks, Position};
use super::reader::{Next, Reader};
use super::{RecordLog, Recovery};
use memory::Memory;

/// Records by sensor and epoch, in the order of the log.
type Stored = BTreeMap<(String, u64), Vec<u64>>;

fn json(sensor: &str, epoch: u64, sequence: u64) -> String {
    format!("{{\"sensor\":\"{sensor}\",\"epoch\":{epoch},\"sequence\":{sequence}}}")
}

/// Stages `count` records from `first` on.
fn stage(log: &mut RecordLog, sensor: &str, epoch: u64, first: u64, count: u32, now: UnixNanos) {
    let mut records = Vec::new();
    let last = first + u64::from(count) - 1;
    for sequence in first..=last {
        push_record(&mut records, RecordKind::Flow, &json(sensor, epoch, sequence));
    }
    let (first, last) = (Sequence(first), Sequence(last));
    let stream = Stream::Records;
    let batch = NewBatch { sensor, stream, epoch, first, last, count, records: &records };
    log.stage(&batch, now);
}

fn commit(log: &mut RecordLog) {
    log.write().unwrap();
    log.sync().unwrap();
}

fn open(disk: &Memory) -> (RecordLog, Recovery) {
    RecordLog::open(Arc::new(disk.clone()), Arc::default(), 2000).unwrap()
}

/// All that a reader finds, and how many records it misses.
fn read(log: &RecordLog) -> (Stored, u64) {
    let (disk, catalog) = log.source();
    let mut reader = Reader::new(disk, catalog, Position { number: 1, ..Position::default() });
    let (mut stored, mut missed) = (Stored::new(), 0);
    let mut scratch = Vec::new();
    loop {
        match reader.read().unwrap() {
            Next::Batch { batch, gone, .. } => {
                missed += gone;
                for record in batch.records(&mut scratch).unwrap().iter() {
                    assert_eq!(record.json, json(batch.sensor, batch.epoch, record.sequence.0));
                    let key = (batch.sensor.to_owned(), batch.epoch);
                    stored.entry(key).or_default().push(record.sequence.0);
                }
            }
            Next::Nothing | Next::End => return (stored, missed),
        }
    }
}

/// Every stream is stored from 1 up to its mark, in order and once.
fn assert_stored_once(log: &RecordLog, marks: &Marks) -> Stored {
    let (stored, missed) = read(log);
    assert_eq!(missed, 0);
    for ((sensor, epoch), sequences) in &stored {
        let last = marks.last(sensor, Stream::Records, *epoch).0;
        assert_eq!(*sequences, (1..=last).collect::<Vec<_>>(), "{sensor} {epoch}");
    }
    stored
}

#[test]
fn what_was_synced_is_read_in_order_and_the_rest_is_not() {
    let disk = Memory::default();
    let (mut log, recovery) = open(&disk);
    assert_eq!(recovery, Recovery { next_number: 1, ..Recovery::default() });
    stage(&mut log, "a", 1, 1, 3, UnixNanos(1));
    stage(&mut log, "b", 1, 1, 2, UnixNanos(1));
    assert_eq!(read(&log).0, Stored::new());
    log.write().unwrap();
    assert_eq!(read(&log).0, Stored::new());
    log.sync().unwrap();
    let (stored, _) = read(&log);
    assert_eq!(stored[&("a".into(), 1)], [1, 2, 3]);
    assert_eq!(stored[&("b".into(), 1)], [1, 2]);
    assert_eq!(log.source().1.lock().next_number, 6);
}

#[test]
fn a_log_goes_on_in_a_new_segment_when_it_is_full_when_the_day_ends_and_after_a_start() {
    const DAY: u64 = 24 * 3600 * 1_000_000_000;
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    let mut next = 1;
    let mut store = |log: &mut RecordLog, count: u32, now: u64| {
        stage(log, "a", 1, next, count, UnixNanos(now));
        next += u64::from(count);
        commit(log);
        if log.is_due(UnixNanos(now)) {
            log.seal();
        }
    };
    store(&mut log, 5, DAY - 2);
    assert!(!log.is_due(UnixNanos(DAY - 1)));
    assert!(log.is_due(UnixNanos(DAY)));
    log.seal();
    store(&mut log, 1, DAY);
    for _ in 0..40 {
        store(&mut log, 1, DAY + 1);
    }
    let full = log.source().1.lock().segments.len();
    assert!(full > 2, "{full} segments");
    drop(log);
    let (mut log, recovery) = open(&disk);
    assert_eq!((recovery.next_number, recovery.torn_bytes), (47, 0));
    store(&mut log, 1, DAY + 2);
    let (_, catalog) = log.source();
    let segments = catalog.lock().segments.clone();
    assert_eq!(segments.len(), full + 1);
    assert_eq!(*segments.last_key_value().unwrap().0, 47);
    assert_eq!(segments.values().filter(|info| info.day().0 == 0).count(), 1);
    assert_eq!(read(&log).0[&("a".into(), 1)], (1..=47).collect::<Vec<_>>());
}

#[test]
fn a_start_reads_only_what_is_behind_the_checkpoint() {
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    let mut marks = Marks::default();
    for sequence in 1..=50 {
        stage(&mut log, "a", 1, sequence, 1, UnixNanos(1));
        commit(&mut log);
        if log.is_due(UnixNanos(1)) {
            log.seal();
        }
    }
    marks.advance("a", Stream::Records, 1, Sequence(50));
    // What a sensor had stored whose records are long gone.
    marks.advance("gone", Stream::Records, 9, Sequence(7));
    log.write_checkpoint(&marks).unwrap();
    stage(&mut log, "b", 1, 1, 1, UnixNanos(1));
    commit(&mut log);
    drop(log);
    // In front of the checkpoint, and behind the first batch, which tells the day.
    let name = super::file_name(1);
    let mut content = disk.content(&name);
    let length = content.len();
    content[length - 1] ^= 1;
    disk.set_content(&name, content);
    let (log, recovery) = open(&disk);
    marks.advance("b", Stream::Records, 1, Sequence(1));
    assert_eq!(recovery.marks, marks);
    assert_eq!(recovery.next_number, 52);
    let (_, catalog) = log.source();
    let damaged = || catalog.damaged_bytes.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(damaged(), 0);
    assert_eq!(read(&log).1, 1);
    assert!(damaged() > 0);
}

#[test]
fn without_its_checkpoint_a_log_is_read_from_the_beginning() {
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    stage(&mut log, "a", 1, 1, 3, UnixNanos(1));
    commit(&mut log);
    log.write_checkpoint(&Marks::default()).unwrap();
    drop(log);
    disk.create("marks.json").unwrap().write_at(b"{{", 0).unwrap();
    let (log, recovery) = open(&disk);
    assert_eq!(recovery.marks.last("a", Stream::Records, 1), Sequence(3));
    assert_stored_once(&log, &recovery.marks);
}

#[test]
fn a_write_that_failed_half_way_is_made_good_by_the_next() {
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    stage(&mut log, "a", 1, 1, 5, UnixNanos(1));
    disk.fail_writes(true);
    log.write().unwrap_err();
    log.write().unwrap_err();
    disk.fail_writes(false);
    stage(&mut log, "b", 1, 1, 5, UnixNanos(1));
    commit(&mut log);
    let (stored, missed) = read(&log);
    assert_eq!((stored.len(), missed), (2, 0));
    drop(log);
    let (log, recovery) = open(&disk);
    assert_eq!(recovery.torn_bytes, 0);
    assert_stored_once(&log, &recovery.marks);
}
