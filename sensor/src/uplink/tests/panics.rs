//! The uplink starts over after a panic.

use super::*;

#[test]
fn after_a_panic_the_uplink_starts_over_with_what_is_on_the_disk() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let status = Arc::new(UplinkStatus::default());
    let settings = crate::spool::SpoolSettings {
        path: pki.path("spool"),
        max_bytes: 1 << 24,
        max_age: Duration::from_secs(3600),
    };
    let disk = Arc::new(crate::spool::disk::RealDisk);
    let spool =
        Spool::open(settings, disk, RECORD_QUEUE_BYTES, read_clocks(), Arc::clone(&status.spool));
    let uplink =
        Running::start_with(&pki, &[collector.address()], quick(), (spool.unwrap(), status));
    let mut peer = collector.meet(None);
    for json in ["[0]", "[1]", "[2]"] {
        uplink.record(RecordKind::Flow, json);
        assert!(matches!(peer.next_but_beats(), Seen::Records { .. }));
    }
    peer.ack(Stream::Records, 1);
    eventually("acknowledged", || uplink.status.deliveries().records.to_ledger().acknowledged == 1);
    uplink.panics.store(true, Ordering::Relaxed);
    eventually("panic", || uplink.status.fitness.panics() == 1);
    uplink.record(RecordKind::Flow, "[3]");
    drop(peer);

    let mut peer = collector.meet(None);
    let said = "the uplink panicked less than a minute ago, and starts over";
    assert_eq!(uplink.status.problems(), [said]);
    assert!(uplink.status.fitness.is_running());
    let mut texts = Vec::new();
    let mut last = 0;
    while texts.last().is_none_or(|text| text != "[3]") {
        // What the collector is told of numbers that no record has comes between.
        let Seen::Records { first, json } = peer.next_but_beats() else { continue };
        last = first + json.len() as u64 - 1;
        texts.extend(json);
    }
    // The collector has the first one, but did not say so on this connection.
    assert_eq!(texts[texts.len() - 3..], ["[1]", "[2]", "[3]"]);
    peer.ack(Stream::Records, last);
    eventually("delivered", || uplink.status.deliveries().records.in_flight() == 0);
    let inherited = uplink.status.spool.inherited();
    let records = uplink.stop(PATIENCE).records.to_ledger();
    assert_eq!(records.produced, 4 + inherited);
    assert_eq!(records.acknowledged, 4 + inherited, "{records:?}");
}

#[test]
fn after_a_panic_without_a_disk_what_waited_is_counted() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let mut uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    uplink.record(RecordKind::Flow, "[0]");
    assert!(matches!(peer.next_but_beats(), Seen::Records { .. }));
    assert!(uplink.frames(5));
    assert!(matches!(peer.next_but_beats(), Seen::Frames { .. }));
    uplink.panics.store(true, Ordering::Relaxed);
    eventually("panic", || uplink.status.fitness.panics() == 1);
    drop(peer);
    let mut peer = collector.meet(None);
    uplink.record(RecordKind::Flow, "[1]");
    peer.expect_records(1, &["[1]"]);
    peer.ack(Stream::Records, 1);
    eventually("delivered", || uplink.status.deliveries().records.in_flight() == 0);
    let Deliveries { frames, records } = uplink.stop(PATIENCE);
    assert_eq!(records.lost(LossReason::UplinkPanicked), 1);
    assert_eq!(records.to_ledger().acknowledged, 1);
    assert_eq!(frames.lost(LossReason::UplinkPanicked), 5);
    assert_eq!((frames.in_flight(), records.in_flight()), (0, 0));
}
