//! Segments torn at every byte, and with every bit of a record flipped.

use super::*;

/// A spool with three events, killed.
fn three_events() -> (Bench, PathBuf, Vec<u8>) {
    let mut bench = Bench::new();
    for text in ["{\"a\":0}", "{\"b\":1}", "{\"c\":2}"] {
        bench.push(Flow, text);
        bench.turn();
    }
    bench.kill();
    let path = bench.segments()[0].clone();
    let content = bench.disk.content(&path);
    (bench, path, content)
}

#[test]
fn a_segment_torn_at_any_byte_costs_no_whole_record_and_is_counted() {
    let (bench, path, content) = three_events();
    for len in 0..content.len() {
        let mut torn = Bench { disk: bench.disk.copy(), ..Bench::new() };
        torn.kill();
        torn.disk.put(&path, &content[..len]);
        torn.open();
        let whole = len.saturating_sub(format::SEGMENT_HEADER) / (format::RECORD_HEADER + 7);
        torn.push(Flow, "new");
        torn.turn();
        assert_eq!(torn.texts().len(), whole + 1, "{len}");
        let ledger = torn.spool().delivery().to_ledger();
        assert_eq!((ledger.produced, ledger.in_flight), (whole as u64 + 1, whole as u64 + 1));
        let kept = if len < format::SEGMENT_HEADER {
            0
        } else {
            format::SEGMENT_HEADER + whole * (format::RECORD_HEADER + 7)
        };
        let said = status::read(&torn.status.torn_bytes);
        // A header that is not whole is no segment.
        assert_eq!(said, (len - kept) as u64, "{len}");
        // The next start finds nothing torn.
        torn.kill();
        torn.open();
        assert_eq!(status::read(&torn.status.torn_bytes), 0);
        assert_eq!(torn.texts().len(), whole + 1, "{len}");
    }
}

#[test]
fn any_bit_of_the_last_record_flipped_costs_that_record_alone_and_is_counted() {
    let (bench, path, content) = three_events();
    let begin = content.len() - format::RECORD_HEADER - 7;
    for bit in begin * 8..content.len() * 8 {
        let mut damaged = Bench { disk: bench.disk.copy(), ..Bench::new() };
        damaged.kill();
        let mut bytes = content.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        damaged.disk.put(&path, &bytes);
        damaged.open();
        assert_eq!(damaged.texts(), ["{\"a\":0}", "{\"b\":1}"], "bit {bit}");
        let torn = status::read(&damaged.status.torn_bytes);
        assert_eq!(torn, (format::RECORD_HEADER + 7) as u64, "bit {bit}");
        // Unless its length, its padding or its number is what was hit, it is known to have been one.
        let field = bit / 8 - begin;
        let lost = damaged.lost(LossReason::SpoolCorrupt);
        assert!(lost <= 1, "bit {bit}");
        assert!(lost == 1 || (4..8).contains(&field) || (9..24).contains(&field), "bit {bit}");
    }
}

#[test]
fn a_record_damaged_in_the_middle_is_counted_and_told() {
    let (mut bench, path, mut content) = three_events();
    content[format::SEGMENT_HEADER + format::RECORD_HEADER + 7 + 33] ^= 1;
    bench.disk.put(&path, &content);
    bench.open();
    assert_eq!(bench.lost(LossReason::SpoolCorrupt), 1);
    let ledger = bench.spool().delivery().to_ledger();
    assert_eq!((ledger.produced, ledger.in_flight), (3, 2));
    assert_eq!(bench.holes(), [(Stream::Records, 2, 2, "spool_corrupt")]);
}

#[test]
fn a_record_that_is_damaged_while_the_sensor_runs_is_counted_and_told() {
    let mut bench = Bench::new();
    for number in 0..3 {
        bench.push(Flow, number);
    }
    bench.turn();
    let path = bench.segments()[0].clone();
    let file = bench.disk.open(&path).unwrap();
    let text_of_the_second = format::SEGMENT_HEADER + format::RECORD_HEADER + 1 + 32;
    file.write_at(b"?", text_of_the_second as u64).unwrap();
    assert_eq!(bench.holes(), [(Stream::Records, 2, 2, "spool_corrupt")]);
    assert_eq!(bench.lost(LossReason::SpoolCorrupt), 1);
    bench.spool().rewind();
    assert_eq!(bench.texts(), ["0", "2"]);
    bench.spool().rewind();
    assert_eq!(bench.holes(), [(Stream::Records, 2, 2, "spool_corrupt")]);
    assert_eq!(bench.lost(LossReason::SpoolCorrupt), 1, "counted once");
}
