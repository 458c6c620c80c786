//! Every byte of the tail, every bit of a batch.

use super::*;

/// A log of one segment: two commits of two batches each, the second synced or not.
fn two_commits() -> (Memory, String, Vec<u64>) {
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    let mut ends = Vec::new();
    let mut next = [1, 1];
    for _ in 0..2 {
        for (index, sensor) in ["a", "b"].into_iter().enumerate() {
            stage(&mut log, sensor, 7, next[index], 2, UnixNanos(5));
            next[index] += 2;
            log.write().unwrap();
            ends.push(disk.content(&crate::store::log::file_name(1)).len() as u64);
        }
        log.sync().unwrap();
    }
    (disk, crate::store::log::file_name(1), ends)
}

/// Opens what is left of a log, checks what is in it, stores more and looks again.
fn check_tail(disk: &Memory, whole_batches: usize, torn: u64) {
    let (mut log, recovery) = open(disk);
    assert_eq!(recovery.torn_bytes, torn);
    assert_eq!(recovery.missing_bytes, 0);
    let expected = [(0, 0), (2, 0), (2, 2), (4, 2), (4, 4)][whole_batches];
    let marks = &recovery.marks;
    let last = |sensor: &str| marks.last(sensor, Stream::Records, 7).0;
    assert_eq!((last("a"), last("b")), expected);
    assert_stored_once(&log, marks);
    let (a, b) = (last("a"), last("b"));
    stage(&mut log, "a", 7, a + 1, 3, UnixNanos(6));
    stage(&mut log, "b", 7, b + 1, 3, UnixNanos(6));
    commit(&mut log);
    drop(log);
    let (log, recovery) = open(disk);
    assert_eq!(recovery.torn_bytes, 0);
    assert_eq!(recovery.marks.last("a", Stream::Records, 7).0, a + 3);
    let stored = assert_stored_once(&log, &recovery.marks);
    assert_eq!(stored.len(), 2);
    let (_, catalog) = log.source();
    assert_eq!(catalog.damaged_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_log_that_ends_at_any_byte_keeps_all_whole_batches_and_goes_on() {
    let (disk, name, ends) = two_commits();
    let content = disk.content(&name);
    for length in 0..=content.len() {
        let torn = disk.copy();
        torn.set_content(&name, content[..length].to_vec());
        let whole = ends.iter().filter(|&&end| end <= length as u64).count();
        let end = if whole == 0 { 0 } else { ends[whole - 1] };
        check_tail(&torn, whole, length as u64 - end);
    }
}

#[test]
fn a_log_whose_last_batch_has_any_bit_flipped_keeps_all_others_and_goes_on() {
    let (disk, name, ends) = two_commits();
    let content = disk.content(&name);
    let start = ends[2] as usize;
    for bit in start * 8..content.len() * 8 {
        let torn = disk.copy();
        let mut flipped = content.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        torn.set_content(&name, flipped);
        check_tail(&torn, 3, ends[3] - ends[2]);
    }
}

#[test]
fn behind_the_first_torn_batch_of_what_was_never_synced_nothing_stays() {
    let (disk, name, ends) = two_commits();
    let mut content = disk.content(&name);
    content[ends[1] as usize + 20] ^= 1;
    disk.set_content(&name, content);
    check_tail(&disk, 2, ends[3] - ends[1]);
}

#[test]
fn any_bit_flipped_in_what_was_synced_costs_its_batch_and_no_other() {
    let (disk, name, ends) = two_commits();
    let content = disk.content(&name);
    for bit in (ends[0] as usize) * 8..(ends[1] as usize) * 8 {
        let damaged = disk.copy();
        let mut flipped = content.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        damaged.set_content(&name, flipped);
        let (log, recovery) = open(&damaged);
        assert_eq!(recovery.torn_bytes, 0);
        assert_eq!(recovery.next_number, 9);
        let (stored, missed) = read(&log);
        assert_eq!(missed, 2);
        assert_eq!(stored[&("a".into(), 7)], [1, 2, 3, 4]);
        assert_eq!(stored[&("b".into(), 7)], [3, 4]);
        // They were acknowledged: nobody sends them again.
        assert_eq!(recovery.marks.last("b", Stream::Records, 7).0, 4);
        let (_, catalog) = log.source();
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert_eq!(count(&catalog.damaged_bytes), ends[1] - ends[0]);
        assert_eq!(count(&catalog.damaged_records), 2);
    }
}

#[test]
fn records_in_a_damage_at_the_end_of_a_segment_are_counted_by_the_number_that_follows() {
    for damaged in [1, 2] {
        let disk = Memory::default();
        let (mut log, _) = open(&disk);
        for (segment, first) in [(1, 1), (2, 7), (3, 13)] {
            for (first, count) in [(first, 2), (first + 2, 4)] {
                stage(&mut log, "a", 7, first, count, UnixNanos(segment));
                commit(&mut log);
            }
            log.seal();
        }
        drop(log);
        // The last batch of the first segment; or all of the second one, of which nothing is left.
        let name = crate::store::log::file_name(if damaged == 1 { 1 } else { 7 });
        let mut content = disk.content(&name);
        let length = content.len();
        match damaged {
            1 => content[length - 1] ^= 1,
            _ => content.fill(0x55),
        }
        disk.set_content(&name, content);
        let (log, recovery) = open(&disk);
        assert_eq!((recovery.torn_bytes, recovery.next_number), (0, 19));
        let lost = if damaged == 1 { 4 } else { 6 };
        let (_, catalog) = log.source();
        let count = || catalog.damaged_records.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(count(), lost);
        // A reader that comes there does not count them again.
        let (stored, missed) = read(&log);
        assert_eq!((stored[&("a".into(), 7)].len() as u64, missed), (18 - lost, lost));
        assert_eq!(count(), lost);
    }
}

#[test]
fn a_log_cut_short_behind_its_checkpoint_is_said_to_be_and_stores_nothing_twice() {
    let (disk, name, ends) = two_commits();
    let (log, recovery) = open(&disk);
    log.write_checkpoint(&recovery.marks).unwrap();
    drop(log);
    let content = disk.content(&name);
    disk.set_content(&name, content[..ends[2] as usize].to_vec());
    let (mut log, recovery) = open(&disk);
    assert_eq!(recovery.missing_bytes, ends[3] - ends[2]);
    assert_eq!(recovery.marks.last("b", Stream::Records, 7).0, 4);
    assert_eq!(recovery.next_number, 9);
    stage(&mut log, "b", 7, 5, 1, UnixNanos(7));
    commit(&mut log);
    let (stored, missed) = read(&log);
    assert_eq!(stored[&("b".into(), 7)], [1, 2, 5]);
    assert_eq!(missed, 2);
}

#[test]
fn a_batch_inside_the_records_of_a_sensor_is_not_taken_for_one() {
    // A whole batch, as far as it can be in a text: its first and last magic byte cannot.
    let disk = Memory::default();
    let (mut log, _) = open(&disk);
    let mut forged = Vec::new();
    stage(&mut log, "victim", 7, 900, 1, UnixNanos(1));
    forged.extend_from_slice(&log.pending);
    log.pending.clear();
    log.next_number = 1;
    let text = String::from_utf8_lossy(&forged).into_owned();
    let mut records = Vec::new();
    push_record(&mut records, RecordKind::Flow, &text.replace('\n', " "));
    let (first, last) = (Sequence(1), Sequence(1));
    let stream = Stream::Records;
    let batch =
        NewBatch { sensor: "evil", stream, epoch: 7, first, last, count: 1, records: &records };
    log.stage(&batch, UnixNanos(1));
    commit(&mut log);
    stage(&mut log, "a", 7, 1, 1, UnixNanos(1));
    commit(&mut log);
    drop(log);
    let name = crate::store::log::file_name(1);
    let mut content = disk.content(&name);
    content[0] ^= 1;
    disk.set_content(&name, content);
    let (log, recovery) = open(&disk);
    assert_eq!(recovery.marks.last("victim", Stream::Records, 7), Sequence(0));
    let (_, catalog) = log.source();
    assert!(catalog.lock().segments.len() == 1);
}
