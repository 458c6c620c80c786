use super::super::disk::Disk;
use super::super::testing::MemoryDisk;
use super::*;

const HEADER: SegmentHeader = SegmentHeader {
    spool_epoch: 7,
    lane: LaneName::Events,
    first: Sequence(5),
    made_at: UnixNanos(9),
    run_begins: Sequence(3),
};

/// A segment with these records, and where each of them begins.
fn segment(records: &[(u64, &str)]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = HEADER.to_bytes().to_vec();
    let mut places = Vec::new();
    for (sequence, json) in records {
        places.push(bytes.len());
        SpooledRecord {
            sequence: Sequence(*sequence),
            kind: RecordKind::Flow,
            taken_at: UnixNanos(*sequence * 10),
            json: json.as_bytes(),
        }
        .write(&mut bytes);
    }
    (bytes, places)
}

/// Numbers of the whole records, the damaged bytes before each, and the end.
fn read(bytes: &[u8]) -> (Vec<(u64, u64)>, Tail) {
    let disk = MemoryDisk::default();
    disk.put("/segment".as_ref(), bytes);
    let file = disk.open("/segment".as_ref()).unwrap();
    let mut records = Records::new(SEGMENT_HEADER as u64, bytes.len() as u64, Sequence(4));
    let mut found = Vec::new();
    loop {
        match records.next(file.as_ref()).unwrap() {
            Step::Record { record, damaged } => {
                assert_eq!(record.taken_at.0, record.sequence.0 * 10);
                found.push((record.sequence.0, damaged));
            }
            Step::End(tail) => return (found, tail),
        }
    }
}

const THREE: &[(u64, &str)] = &[(5, "{\"a\":1}"), (6, ""), (9, "{\"event_type\":\"flow\"}")];

#[test]
fn the_layout_of_a_segment_is_the_documented_one() {
    let (bytes, places) = segment(&[(5, "{}")]);
    assert_eq!(places, [64]);
    let mut expected = b"RWSPOOL1\x01\0\x01\0\0\0\0\0\x07\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0".to_vec();
    expected.extend_from_slice(b"\x09\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
    expected.resize(60, 0);
    expected.extend(crc32c::crc32c(&expected).to_le_bytes());
    let mut record = b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x32\0\0\0\0\0\0\0{}".to_vec();
    let crc = crc32c::crc32c(&record).to_le_bytes();
    record.splice(0..0, crc);
    expected.extend(record);
    assert_eq!(bytes, expected);
    assert_eq!(SegmentHeader::from_bytes(&bytes), Ok(HEADER));
}

#[test]
fn a_header_with_any_bit_flipped_or_cut_off_is_no_header() {
    let bytes = HEADER.to_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentHeader::from_bytes(&damaged).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert_eq!(SegmentHeader::from_bytes(&bytes[..len]), Err(HeaderError::Short));
    }
}

#[test]
fn a_segment_cut_off_at_any_byte_gives_every_record_before() {
    let (bytes, places) = segment(THREE);
    for len in SEGMENT_HEADER..bytes.len() {
        let whole = places[1..].iter().filter(|end| **end <= len).count();
        let good_end = if whole == 0 { SEGMENT_HEADER } else { places[whole] };
        let (found, tail) = read(&bytes[..len]);
        assert_eq!(found.len(), whole, "{len}");
        assert_eq!((tail.good_end, tail.torn), (good_end as u64, (len - good_end) as u64));
        assert!(!tail.has_record, "{len}: no record was ever whole there");
    }
}

#[test]
fn any_bit_of_a_record_flipped_costs_that_record_and_no_other() {
    let (bytes, places) = segment(THREE);
    for (victim, begin) in places.iter().enumerate() {
        let end = places.get(victim + 1).copied().unwrap_or(bytes.len());
        for bit in begin * 8..end * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (found, tail) = read(&damaged);
            let mut expected: Vec<_> = THREE.iter().map(|(number, _)| *number).collect();
            expected.remove(victim);
            let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, expected, "bit {bit}");
            let lost = (end - begin) as u64;
            let all_damaged = found.iter().map(|(_, damaged)| damaged).sum::<u64>() + tail.torn;
            assert_eq!(all_damaged, lost, "bit {bit}");
        }
    }
}

#[test]
fn the_last_record_with_its_text_damaged_counts_as_one_that_was_whole_once() {
    let (mut bytes, places) = segment(THREE);
    bytes[places[2] + RECORD_HEADER] ^= 1;
    assert!(read(&bytes).1.has_record);
}

#[test]
fn text_that_looks_like_a_record_is_found_only_where_its_own_record_is_damaged() {
    let (inner, places) = segment(&[(7, "{}")]);
    let inside = &inner[places[0]..];
    let mut bytes = HEADER.to_bytes().to_vec();
    for (sequence, json) in [(5, inside), (8, b"{}")] {
        let (kind, taken_at) = (RecordKind::Flow, UnixNanos(sequence * 10));
        SpooledRecord { sequence: Sequence(sequence), kind, taken_at, json }.write(&mut bytes);
    }
    assert_eq!(read(&bytes).0, [(5, 0), (8, 0)]);
    bytes[SEGMENT_HEADER] ^= 1;
    assert_eq!(read(&bytes).0, [(7, 32), (8, 0)]);
}

#[test]
fn records_longer_than_the_format_allows_are_passed_over() {
    let (mut bytes, _) = segment(&[(5, "{}")]);
    let mut oversize = bytes[SEGMENT_HEADER..].to_vec();
    oversize[4..8].copy_from_slice(&(MAX_RECORD as u32 + 1).to_le_bytes());
    let crc = crc32c::crc32c(&oversize[4..]).to_le_bytes();
    oversize[..4].copy_from_slice(&crc);
    bytes.splice(SEGMENT_HEADER..SEGMENT_HEADER, oversize);
    assert_eq!(read(&bytes).0, [(5, 34)]);
}

#[test]
fn what_was_written_twice_is_given_once() {
    let (bytes, _) = segment(&[(5, "{}"), (6, "{}"), (6, "{}"), (5, "{}"), (7, "{}")]);
    let (found, tail) = read(&bytes);
    assert_eq!(found, [(5, 0), (6, 0), (7, 0)]);
    assert_eq!(tail.torn, 0);
}

#[test]
fn zeros_at_the_end_are_no_records() {
    let (mut bytes, _) = segment(THREE);
    let whole = bytes.len() as u64;
    bytes.resize(bytes.len() + (3 << 20), 0);
    let (found, tail) = read(&bytes);
    assert_eq!((found.len(), tail.good_end, tail.torn), (3, whole, 3 << 20));
    assert!(!tail.has_record);
}

#[test]
fn the_longest_records_are_read_however_they_lie_in_the_buffer() {
    let long = "x".repeat(MAX_RECORD);
    let records: Vec<_> = (5..15).map(|number| (number, long.as_str())).collect();
    let (mut bytes, places) = segment(&records);
    assert_eq!(read(&bytes).0.len(), 10);
    bytes[places[4] + 1000] ^= 1;
    let (found, tail) = read(&bytes);
    assert_eq!(found.len(), 9);
    assert_eq!(found[4], (10, (RECORD_HEADER + MAX_RECORD) as u64));
    assert_eq!(tail.torn, 0);
}

#[test]
fn a_record_that_was_put_back_comes_again_and_a_reader_goes_on_where_the_file_grew() {
    let disk = MemoryDisk::default();
    let (bytes, places) = segment(THREE);
    disk.put("/segment".as_ref(), &bytes);
    let file = disk.open("/segment".as_ref()).unwrap();
    let mut records = Records::new(SEGMENT_HEADER as u64, places[2] as u64, Sequence(0));
    let mut next = |end: Option<usize>, again: bool| {
        end.iter().for_each(|end| records.grown_to(*end as u64));
        let number = match records.next(file.as_ref()).unwrap() {
            Step::Record { record, .. } => Some(record.sequence.0),
            Step::End(_) => None,
        };
        if again {
            records.put_back();
        }
        number
    };
    let said = [
        next(None, false),
        next(None, true),
        next(None, true),
        next(None, false),
        next(None, false),
        next(Some(bytes.len()), false),
    ];
    assert_eq!(said, [Some(5), Some(6), Some(6), Some(6), None, Some(9)]);
}
