//! What an earlier run left is read beside everything else.

use super::*;

/// A spool with three records, killed, and opened again on a disk that does not answer.
fn opened_on_a_slow_disk(memory: usize) -> Bench {
    let mut bench = Bench::new();
    bench.memory = memory;
    for text in ["old 0", "old 1", "old 2"] {
        bench.push(Flow, text);
    }
    bench.turn();
    bench.kill();
    bench.status = Arc::default();
    let disk: Arc<dyn Disk> = Arc::new(bench.disk.clone());
    let (settings, now, status) = (bench.settings.clone(), bench.now(), Arc::clone(&bench.status));
    // The position is read at once.
    let (mut spool, task) = Spool::prepare(settings, disk, memory, now, status).unwrap();
    bench.disk.hang(true);
    spool.reading = Some(Reading::start(task).unwrap());
    bench.spool = Some(spool);
    bench
}

fn wait_until_read(bench: &mut Bench) {
    bench.disk.hang(false);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !bench.spool().is_ready() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
        bench.turn();
    }
}

#[test]
fn while_it_is_read_records_are_taken_and_come_behind_what_is_found() {
    let mut bench = opened_on_a_slow_disk(MEMORY);
    for text in ["new 0", "new 1"] {
        bench.push(Flow, text);
        bench.turn();
    }
    assert!(!bench.spool().is_ready());
    assert_eq!(bench.sent(), [], "before it is known what comes first");
    assert_eq!(status::read(&bench.status.is_reading), 1);
    let ledger = bench.spool().delivery().to_ledger();
    assert_eq!((ledger.produced, ledger.in_flight, bench.status.inherited()), (2, 2, 0));
    wait_until_read(&mut bench);
    assert_eq!(status::read(&bench.status.is_reading), 0);
    let ledger = bench.spool().delivery().to_ledger();
    assert_eq!((ledger.produced, ledger.in_flight, bench.status.inherited()), (5, 5, 3));
    bench.push(Flow, "new 2");
    bench.turn();
    let sent = bench.sent();
    let texts: Vec<_> = sent.iter().map(|it| it.2.as_str()).collect();
    assert_eq!(texts, ["old 0", "old 1", "old 2", "new 0", "new 1", "new 2"]);
    // It is on the disk under the numbers that were sent.
    bench.kill();
    bench.open();
    assert_eq!(bench.sent(), sent);
}

#[test]
fn what_memory_cannot_hold_meanwhile_is_counted_and_told() {
    let mut bench = opened_on_a_slow_disk(100 * 300);
    for number in 0..1000 {
        let kind = if number % 20 == 0 { Alert } else { Flow };
        bench.push(kind, format!("{number:0200}"));
        bench.turn();
    }
    let lost = bench.lost(LossReason::QueueFull);
    assert!((850..950).contains(&lost), "{lost}");
    wait_until_read(&mut bench);
    let holes = bench.holes().into_iter().filter(|hole| hole.3 == "queue_full");
    let told: u64 = holes.map(|(_, first, last, _)| last - first + 1).sum();
    assert_eq!(told, lost);
    bench.spool().rewind();
    let sent = bench.sent();
    assert_eq!(sent.len() as u64 + lost, 1003);
    let alerts = sent.iter().filter(|it| it.0 == Stream::Alerts).count();
    assert_eq!(alerts, 50, "no alert was given up");
}

#[test]
fn a_stop_meanwhile_leaves_all_that_is_there_to_the_next_run() {
    let mut bench = opened_on_a_slow_disk(MEMORY);
    bench.push(Flow, "new");
    bench.turn();
    let before = bench.disk.content("/spool/position".as_ref());
    let (now, disk) = (bench.now(), bench.disk.clone());
    let waker = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        disk.hang(false);
    });
    bench.spool().close(now);
    waker.join().unwrap();
    assert_eq!(bench.lost(LossReason::Shutdown), 1);
    assert_eq!(bench.spool().delivery().in_flight(), 0);
    assert!(bench.disk.content("/spool/position".as_ref()) == before);
    bench.kill();
    bench.open();
    assert_eq!(bench.texts(), ["old 0", "old 1", "old 2"]);
    assert_eq!(bench.status.problems(), Vec::<String>::new());
}
