//! A disk that fails, or does not answer.

use super::*;

/// Waits for the threads of the spool to have done what is asked.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A spool with its threads, on a disk in memory.
fn with_threads() -> Bench {
    let mut bench = Bench::new();
    bench.kill();
    let (settings, disk, now) = (bench.settings.clone(), Arc::new(bench.disk.clone()), bench.now());
    let spool = Spool::open(settings, disk, MEMORY, now, Arc::clone(&bench.status));
    bench.spool = Some(spool.unwrap());
    wait_for("reading", || {
        bench.turn();
        bench.spool().is_ready()
    });
    bench
}

fn is_syncing(bench: &mut Bench) -> bool {
    bench.spool().store.as_ref().unwrap().syncer.as_ref().unwrap().is_busy()
}

#[test]
fn a_disk_that_does_not_answer_holds_up_neither_what_waits_in_memory_nor_frames() {
    let mut bench = with_threads();
    bench.push(Flow, "on the disk");
    bench.turn();
    bench.disk.hang(true);
    bench.pass(INTERVAL);
    assert!(is_syncing(&mut bench));
    bench.push(Flow, "written, while the disk is only slow");
    bench.pass(Duration::from_secs(9));
    assert_eq!(bench.status.problems(), Vec::<String>::new());
    bench.pass(INTERVAL);
    let said = "spool /spool: the disk does not answer; records wait in memory";
    assert_eq!(bench.status.problems(), [said]);
    bench.push(Alert, "in memory");
    bench.push(Flow, "behind what is on the disk");
    for _ in 0..3 {
        bench.pass(INTERVAL);
    }
    // The disk would not answer whoever asked it.
    assert_eq!(bench.texts(), ["in memory"]);
    assert!(!bench.spool().has_unsent(), "frames are not to wait for what cannot be read");
    assert!(bench.spool().acknowledge(Stream::Alerts, Sequence(1)));

    bench.disk.hang(false);
    wait_for("answer", || !is_syncing(&mut bench));
    bench.pass(INTERVAL * 2);
    assert_eq!(bench.status.problems(), Vec::<String>::new());
    assert!(bench.spool().has_unsent());
    assert_eq!(bench.texts().len(), 3);
    assert_eq!(status::read(&bench.status.waiting_bytes), 0);
}

#[test]
fn a_folder_that_vanished_is_noticed_by_the_thread_that_looks() {
    let mut bench = with_threads();
    bench.push(Flow, 0);
    bench.turn();
    bench.disk.wipe();
    bench.pass(INTERVAL);
    wait_for("look", || !is_syncing(&mut bench));
    bench.pass(INTERVAL);
    assert_eq!(bench.lost(LossReason::SpoolFailed), 1);
    bench.push(Flow, "after");
    for _ in 0..3 {
        bench.pass(INTERVAL);
        wait_for("look", || !is_syncing(&mut bench));
    }
    assert_eq!(bench.lost(LossReason::SpoolFailed), 1);
    assert_eq!(bench.texts(), ["after"]);
    assert_eq!(bench.status.problems(), Vec::<String>::new());
}

#[test]
fn frames_do_not_wait_for_a_segment_that_cannot_be_read() {
    let mut bench = Bench::new();
    bench.push(Flow, "0");
    bench.turn();
    bench.kill();
    bench.open();
    bench.disk.break_reads(true);
    assert!(bench.spool().has_unsent());
    assert_eq!(bench.sent(), []);
    assert!(!bench.spool().has_unsent());
    bench.disk.break_reads(false);
    bench.pass(INTERVAL);
    assert_eq!(bench.texts(), ["0"]);
}

#[test]
fn one_lane_that_cannot_be_read_holds_up_only_itself() {
    let mut bench = Bench::new();
    bench.push(Alert, "alert");
    bench.push(Flow, "flow");
    bench.turn();
    bench.kill();
    bench.open();
    let alerts =
        bench.segments().into_iter().find(|path| path.starts_with("/spool/alerts")).unwrap();
    bench.disk.remove(&alerts).unwrap();
    bench.disk.break_reads(true);
    // Both fail; that of alerts is gone, and is given up at once.
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.lost(LossReason::SpoolFailed), 1);
    // Nine further failures of the other one.
    for _ in 0..READ_ATTEMPTS - 2 {
        bench.pass(INTERVAL);
        assert_eq!(bench.sent(), []);
    }
    // What arrives on one lane says nothing about the other one.
    bench.push(Alert, "meanwhile");
    bench.disk.break_reads(false);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.texts(), ["meanwhile"]);
    assert_eq!(bench.spool().store.as_ref().unwrap().reads[1].failures, READ_ATTEMPTS - 1);
    bench.disk.break_reads(true);
    bench.pass(INTERVAL);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.lost(LossReason::SpoolFailed), 2, "given up after {READ_ATTEMPTS} failures");
}

#[test]
fn an_empty_segment_is_not_begun_twice() {
    let mut bench = Bench::new();
    bench.disk.fill_up(Some(0));
    bench.push(Flow, "0");
    bench.turn();
    // A sync that fails ends the segment that is written.
    bench.disk.fail(Some(io::ErrorKind::Other));
    bench.pass(INTERVAL);
    bench.disk.fail(None);
    for _ in 0..3 {
        bench.pass(INTERVAL);
    }
    assert!(status::read(&bench.status.sync_errors) > 0);
    assert_eq!(bench.segments().len(), 1, "{:?}", bench.segments());
    assert_eq!(bench.spool().lanes[1].segments(), 1);
    bench.disk.fill_up(None);
    bench.pass(INTERVAL * 2);
    assert_eq!(bench.segments().len(), 1);
    assert_eq!(bench.texts(), ["0"]);
}
