//! The spool on a disk that forgets and fails, against a model.

mod age;
mod damage;
mod failing;
mod model;
mod reading;
mod replay;

use wire::codec::Decoder;
use wire::message::{Message, UNUSED};

use super::disk::{Disk, RealDisk};
use super::testing::MemoryDisk;
use super::*;

const MEMORY: usize = 1 << 20;
const START: u64 = 1_700_000_000_000_000_000;
use RecordKind::{Alert, Flow};

/// Opens a spool that has no threads: all is read, and each sync made, at once.
fn open(
    settings: SpoolSettings,
    disk: Arc<dyn Disk>,
    memory: usize,
    now: Now,
    status: Arc<SpoolStatus>,
) -> Result<Spool, SpoolError> {
    let (mut spool, task) = Spool::prepare(settings, disk, memory, now, status)?;
    spool.go_on_from(task.run(), now);
    Ok(spool)
}

/// A spool in virtual time, on a disk in memory.
struct Bench {
    disk: MemoryDisk,
    begin: Instant,
    passed: Duration,
    /// The wall clock is ahead by so many seconds.
    clock_off: i64,
    settings: SpoolSettings,
    memory: usize,
    spool: Option<Spool>,
    status: Arc<SpoolStatus>,
}

impl Bench {
    fn new() -> Self {
        Self::with(1 << 30, Duration::from_secs(3600))
    }

    fn with(max_bytes: u64, max_age: Duration) -> Self {
        let settings = SpoolSettings { path: "/spool".into(), max_bytes, max_age };
        let mut bench = Self {
            disk: MemoryDisk::default(),
            begin: Instant::now(),
            passed: Duration::ZERO,
            clock_off: 0,
            settings,
            memory: MEMORY,
            spool: None,
            status: Arc::default(),
        };
        bench.open();
        bench
    }

    fn now(&self) -> Now {
        let seconds = Duration::from_secs(self.clock_off.unsigned_abs()).as_nanos() as u64;
        let right = UnixNanos(START).plus(self.passed).0;
        let unix = if self.clock_off < 0 { right - seconds } else { right + seconds };
        Now { monotonic: self.begin + self.passed, unix: UnixNanos(unix) }
    }

    fn open(&mut self) {
        self.status = Arc::default();
        let (disk, status) = (Arc::new(self.disk.clone()), Arc::clone(&self.status));
        let spool = open(self.settings.clone(), disk, self.memory, self.now(), status);
        self.spool = Some(spool.unwrap());
    }

    /// The process ends at once; what it wrote is there.
    fn kill(&mut self) {
        self.spool = None;
        self.disk.kill();
        // A clock that stands still would be no help to anybody.
        self.passed += Duration::from_millis(1);
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().unwrap()
    }

    fn push(&mut self, kind: RecordKind, text: impl ToString) {
        let now = self.now().unix;
        self.spool().push(kind, text.to_string().into_bytes(), now);
    }

    /// A turn of the uplink.
    fn turn(&mut self) {
        let now = self.now();
        self.spool().work(now);
    }

    fn pass(&mut self, time: Duration) {
        self.passed += time;
        self.turn();
    }

    /// All that is sent now: stream, number, text.
    fn sent(&mut self) -> Vec<(Stream, u64, String)> {
        let mut all = Vec::new();
        let mut decoder = Decoder::new();
        let now = self.now().monotonic;
        while let Some(batch) = self.spool().next_batch(now) {
            let mut out = Vec::new();
            self.spool().finish_batch(&batch, &mut out);
            assert_eq!(decoder.push(&out), out.len());
            while let Some(message) = decoder.next_message().unwrap() {
                let Message::Records(records) = message else { panic!("{message:?}") };
                assert_eq!(records.stream, batch.stream);
                all.extend(records.iter().map(|it| (batch.stream, it.sequence.0, it.json.into())));
            }
        }
        all
    }

    fn texts(&mut self) -> Vec<String> {
        self.sent().into_iter().map(|(_, _, text)| text).collect()
    }

    /// What is sent now, and the holes that the collector is told of.
    fn holes(&mut self) -> Vec<(Stream, u64, u64, &'static str)> {
        let mut all = Vec::new();
        let now = self.now().monotonic;
        while let Some(batch) = self.spool().next_batch(now) {
            let holes = batch.holes.iter().map(|it| (it.first.0, it.last.0, it.reason));
            all.extend(holes.map(|(first, last, reason)| (batch.stream, first, last, reason)));
            self.spool().finish_batch(&batch, &mut Vec::new());
        }
        all
    }

    fn acknowledge_all(&mut self, sent: &[(Stream, u64, String)]) {
        for stream in [Stream::Alerts, Stream::Records] {
            let last = sent.iter().filter(|it| it.0 == stream).map(|it| it.1).max();
            if let Some(last) = last {
                assert!(self.spool().acknowledge(stream, Sequence(last)));
            }
        }
    }

    fn lost(&self, reason: LossReason) -> u64 {
        self.spool.as_ref().unwrap().delivery().lost(reason)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let paths = self.disk.paths().into_iter();
        paths.filter(|path| path.extension().is_some_and(|it| it == "seg")).collect()
    }
}

#[test]
fn alerts_are_sent_before_events_each_by_its_own_numbers() {
    let mut bench = Bench::new();
    let kinds =
        [Flow, Alert, RecordKind::Stats, RecordKind::Anomaly, RecordKind::Dns, RecordKind::Audit];
    for (number, kind) in kinds.into_iter().enumerate() {
        bench.push(kind, number);
    }
    bench.turn();
    let sent = bench.sent();
    let expected = [
        (Stream::Alerts, 1, "1"),
        (Stream::Alerts, 2, "3"),
        (Stream::Alerts, 3, "5"),
        (Stream::Records, 1, "0"),
        (Stream::Records, 2, "2"),
        (Stream::Records, 3, "4"),
    ];
    assert_eq!(sent, expected.map(|(stream, number, text)| (stream, number, text.to_owned())));
    assert!(!bench.spool().has_unsent());
    bench.acknowledge_all(&sent);
    assert!(bench.spool().is_empty());
    assert_eq!(bench.spool().delivery().to_ledger().acknowledged, 6);
}

#[test]
fn what_is_not_acknowledged_is_sent_again_under_the_same_numbers() {
    let mut bench = Bench::new();
    for number in 0..1000 {
        bench.push(Flow, number);
        bench.turn();
    }
    let first = bench.sent();
    assert_eq!(first.len(), 1000);
    assert!(bench.spool().acknowledge(Stream::Records, Sequence(400)));
    bench.spool().rewind();
    assert_eq!(bench.sent(), first[400..]);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    assert!(!bench.spool().acknowledge(Stream::Records, Sequence(1)));
    assert!(!bench.spool().acknowledge(Stream::Frames, Sequence(0)));
    bench.sent();
    assert!(!bench.spool().acknowledge(Stream::Alerts, Sequence(1)));
    assert!(bench.spool().acknowledge(Stream::Records, Sequence(1)));
}

#[test]
fn a_killed_sensor_delivers_what_it_had_under_the_same_numbers_and_begins_behind_them() {
    let mut bench = Bench::new();
    for number in 0..10 {
        bench.push(if number % 3 == 0 { Alert } else { Flow }, number);
    }
    bench.turn();
    let first = bench.sent();
    let epoch = bench.spool().epoch();
    bench.kill();
    bench.open();
    assert_eq!(bench.spool().epoch(), epoch);
    assert_eq!(bench.status.inherited(), 10);
    let ledger = bench.spool().delivery().to_ledger();
    assert_eq!((ledger.produced, ledger.in_flight), (10, 10));
    bench.push(Alert, "new");
    bench.push(Flow, "new");
    bench.turn();
    let again = bench.sent();
    let (old, new): (Vec<_>, Vec<_>) = again.into_iter().partition(|it| it.2 != "new");
    assert_eq!(old, first);
    // Numbers that the earlier run may have used and that are not on the disk are left out.
    assert!(new.iter().all(|(_, number, _)| *number > RESERVED_NUMBERS), "{new:?}");
    bench.acknowledge_all(&old);
    bench.acknowledge_all(&new);
    assert!(bench.spool().is_empty());
}

#[test]
fn the_numbers_that_a_run_left_out_are_told_as_unused() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    bench.kill();
    bench.open();
    bench.push(Flow, 1);
    bench.turn();
    let next = bench.spool().lanes[1].next().0;
    assert_eq!(bench.holes(), [(Stream::Records, 2, next - 2, UNUSED)]);
    // On the next connection again, until the record behind is acknowledged.
    bench.spool().rewind();
    assert_eq!(bench.holes(), [(Stream::Records, 2, next - 2, UNUSED)]);
    assert!(bench.spool().acknowledge(Stream::Records, Sequence(next - 1)));
    bench.push(Flow, 2);
    bench.turn();
    assert_eq!(bench.holes(), []);
}

#[test]
fn numbers_between_runs_are_unused_however_many_runs_there_were() {
    let mut bench = Bench::new();
    for run in 0..4 {
        bench.push(Flow, run);
        bench.turn();
        bench.kill();
        bench.open();
    }
    let (last, next) = (bench.spool().lanes[1].next(), 3);
    let holes = bench.holes();
    assert_eq!(holes.len(), next, "{holes:?}");
    assert!(holes.iter().all(|hole| hole.3 == UNUSED && hole.2 < last.0), "{holes:?}");
}

#[test]
fn numbers_are_told_as_unused_where_all_was_acknowledged_and_nothing_synced() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    let sent = bench.sent();
    bench.acknowledge_all(&sent);
    bench.kill();
    // As a segment that was full would have been, it is removed.
    for path in bench.segments() {
        bench.disk.remove(&path).unwrap();
    }
    bench.open();
    assert!(bench.spool().meet(Stream::Records, Sequence(1)));
    bench.push(Flow, 1);
    bench.turn();
    let first = bench.spool().lanes[1].next().0 - 1;
    // The collector counts only what lies behind the one that it has.
    assert_eq!(bench.holes(), [(Stream::Records, 1, first - 1, UNUSED)]);
}

#[test]
fn numbers_are_never_used_twice_even_where_the_position_could_not_be_written() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    let mut last = 1;
    for fault in [None, Some(io::ErrorKind::ReadOnlyFilesystem), None, None] {
        bench.kill();
        bench.passed += Duration::from_secs(2);
        bench.disk.fail(fault);
        bench.open();
        bench.push(Flow, "x");
        bench.turn();
        let numbers: Vec<_> = bench.sent().into_iter().map(|it| it.1).collect();
        let newest = *numbers.last().unwrap();
        assert!(newest > last, "{numbers:?}");
        last = newest;
    }
}

#[test]
fn acknowledged_segments_are_removed_and_stay_removed() {
    let mut bench = Bench::with(4 << 20, Duration::from_secs(3600));
    for number in 0..3000 {
        bench.push(Flow, format!("{number:0100}"));
        bench.turn();
    }
    assert!(bench.segments().len() > 4, "{:?}", bench.segments());
    let sent = bench.sent();
    bench.acknowledge_all(&sent);
    assert_eq!(bench.segments().len(), 1, "the one that is written");
    bench.pass(INTERVAL);
    bench.kill();
    bench.open();
    assert_eq!(bench.status.inherited(), 0);
    assert_eq!(bench.segments().len(), 0);
    assert_eq!(bench.spool().delivery().to_ledger().produced, 0);
}

#[test]
fn when_it_is_full_the_oldest_events_go_before_any_alert() {
    let mut bench = Bench::with(4 << 20, Duration::from_secs(3600));
    for number in 0..20_000 {
        bench.push(if number % 10 == 0 { Alert } else { Flow }, format!("{number:0300}"));
        if number % 100 == 0 {
            bench.turn();
        }
    }
    bench.turn();
    let bytes = bench.spool().lanes.iter().map(Lane::disk_bytes).sum::<u64>();
    assert!(bytes <= 4 << 20 && bytes > 3 << 20, "{bytes}");
    let lost = bench.lost(LossReason::SpoolFull);
    let sent = bench.sent();
    assert_eq!(sent.len() as u64 + lost, 20_000);
    let alerts = sent.iter().filter(|it| it.0 == Stream::Alerts).count();
    assert_eq!(alerts, 2000, "no alert was given up");
    let oldest = sent.iter().find(|it| it.0 == Stream::Records).unwrap().1;
    assert_eq!(oldest, lost + 1, "the oldest events");
    bench.spool().rewind();
    let holes = bench.holes();
    assert_eq!(holes, [(Stream::Records, 1, lost, "spool_full")]);
}

#[test]
fn alerts_alone_are_given_up_only_when_they_fill_it_all() {
    let mut bench = Bench::with(4 << 20, Duration::from_secs(3600));
    for number in 0..20_000 {
        bench.push(Alert, format!("{number:0300}"));
        bench.turn();
    }
    let lost = bench.lost(LossReason::SpoolFull);
    assert!(lost > 0);
    assert_eq!(bench.sent().len() as u64 + lost, 20_000);
}

#[test]
fn events_alone_leave_a_share_to_alerts() {
    let mut bench = Bench::with(4 << 20, Duration::from_secs(3600));
    for number in 0..20_000 {
        bench.push(Flow, format!("{number:0300}"));
        bench.turn();
    }
    let bytes = bench.spool().lanes[1].disk_bytes();
    assert!(bytes <= (4 << 20) / 8 * 7, "{bytes}");
}

#[test]
fn records_too_old_are_given_up_whatever_the_wall_clock_does() {
    let mut bench = Bench::with(1 << 30, Duration::from_secs(100));
    bench.push(Flow, 0);
    bench.push(Alert, 1);
    bench.turn();
    bench.pass(Duration::from_secs(99));
    assert_eq!(bench.lost(LossReason::SpoolAged), 0);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.lost(LossReason::SpoolAged), 2);
    assert!(bench.spool().is_empty());
}

#[test]
fn smaller_limits_hold_from_the_start_on() {
    let mut bench = Bench::with(16 << 20, Duration::from_secs(3600));
    for number in 0..30_000 {
        bench.push(Flow, format!("{number:0300}"));
        bench.turn();
    }
    bench.kill();
    bench.settings.max_bytes = 4 << 20;
    bench.open();
    let bytes = bench.spool().lanes.iter().map(Lane::disk_bytes).sum::<u64>();
    assert!(bytes <= 4 << 20, "{bytes}");
    let lost = bench.lost(LossReason::SpoolFull);
    assert_eq!(bench.sent().len() as u64 + lost, 30_000);
}

#[test]
fn a_record_beyond_the_limit_of_the_format_is_counted_and_not_kept() {
    let mut bench = Bench::new();
    bench.push(Flow, "x".repeat(MAX_RECORD + 1));
    bench.push(Flow, "x".repeat(MAX_RECORD));
    bench.turn();
    assert_eq!(bench.lost(LossReason::TooLong), 1);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn while_the_disk_is_full_records_are_sent_from_memory_and_all_recovers_by_itself() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    bench.disk.fill_up(Some(40));
    for number in 1..10 {
        bench.push(if number % 2 == 0 { Alert } else { Flow }, number);
    }
    bench.turn();
    let problems = bench.status.problems();
    assert!(problems[0].ends_with("no storage space; records wait in memory"), "{problems:?}");
    // What was on the disk, and what is in memory.
    assert_eq!(bench.texts(), ["2", "4", "6", "8", "0", "1", "3", "5", "7", "9"]);
    // Tried again a second later, not before.
    bench.disk.fill_up(None);
    bench.pass(Duration::from_millis(900));
    assert_eq!(bench.status.problems().len(), 1);
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.status.problems(), Vec::<String>::new());
    bench.kill();
    bench.open();
    assert_eq!(bench.texts(), ["2", "4", "6", "8", "0", "1", "3", "5", "7", "9"]);
}

#[test]
fn while_the_disk_fails_memory_is_bounded_and_alerts_are_given_up_last() {
    let mut bench = Bench::new();
    bench.memory = 100 * 300;
    bench.kill();
    bench.open();
    bench.disk.fail(Some(io::ErrorKind::StorageFull));
    for number in 0..1000 {
        bench.push(if number % 20 == 0 { Alert } else { Flow }, format!("{number:0200}"));
        bench.turn();
    }
    assert!(bench.spool().lanes.iter().map(Lane::waiting_bytes).sum::<usize>() <= 30_000);
    let lost = bench.lost(LossReason::SpoolFailed);
    bench.disk.fail(None);
    bench.pass(INTERVAL * 2);
    let sent = bench.sent();
    assert_eq!(sent.len() as u64 + lost, 1000);
    assert_eq!(sent.iter().filter(|it| it.0 == Stream::Alerts).count(), 50);
    bench.spool().rewind();
    let told: u64 = bench
        .holes()
        .into_iter()
        .filter(|hole| hole.3 == "spool_failed")
        .map(|hole| hole.2 - hole.1 + 1)
        .sum();
    assert_eq!(told, lost);
}

#[test]
fn a_read_only_disk_delivers_what_is_on_it() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    bench.kill();
    bench.disk.fail(Some(io::ErrorKind::ReadOnlyFilesystem));
    bench.open();
    bench.push(Flow, 1);
    bench.turn();
    assert_eq!(bench.status.problems().len(), 1);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    // Written again, it goes on as if nothing had been.
    bench.disk.fail(None);
    bench.pass(INTERVAL * 2);
    assert_eq!(bench.status.problems(), Vec::<String>::new());
    bench.pass(INTERVAL);
    bench.kill();
    bench.open();
    assert_eq!(bench.sent(), sent);
}

#[test]
fn a_vanished_folder_is_made_again_and_what_was_in_it_is_counted() {
    let mut bench = Bench::new();
    for number in 0..5 {
        bench.push(Flow, number);
    }
    bench.turn();
    bench.disk.wipe();
    bench.push(Alert, "after");
    bench.pass(INTERVAL * 2);
    assert_eq!(bench.lost(LossReason::SpoolFailed), 5);
    bench.push(Flow, "later");
    bench.pass(INTERVAL * 2);
    assert_eq!(bench.status.problems(), Vec::<String>::new());
    assert_eq!(bench.texts(), ["after", "later"]);
    bench.kill();
    bench.open();
    assert_eq!(bench.texts(), ["after", "later"]);
}

#[test]
fn a_second_sensor_is_refused() {
    let bench = Bench::new();
    let disk = Arc::new(bench.disk.clone());
    let (settings, now) = (bench.settings.clone(), bench.now());
    let refused = open(settings, disk, MEMORY, now, Arc::default());
    let said = refused.err().unwrap().to_string();
    assert_eq!(said, "another sensor uses the spool /spool; give each its own spool.path");
}

#[test]
fn segments_of_others_and_damaged_ones_are_set_aside() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    bench.kill();
    let own = bench.segments()[0].clone();
    let mut foreign = bench.disk.content(&own);
    foreign[20] ^= 1;
    let numbered = |number: u64| PathBuf::from(format!("/spool/events/{number:020}.seg"));
    bench.disk.put(&numbered(3), &foreign);
    bench
        .disk
        .put(&numbered(4), b"RWSPOOL1 and then nothing of the kind, for long enough to be read...");
    bench.disk.put(&numbered(5), b"RWSP");
    let other = SegmentHeaderOf { epoch: 99 }.bytes();
    bench.disk.put(&numbered(6), &other);
    bench.disk.put("/spool/events/notes.txt".as_ref(), b"not ours");
    bench.open();
    assert_eq!(status::read(&bench.status.set_aside), 3);
    assert_eq!(bench.texts(), ["0"]);
    let paths = bench.disk.paths();
    for number in [3, 4, 6] {
        assert!(paths.contains(&numbered(number).with_extension("aside")), "{paths:?}");
    }
    assert!(!paths.contains(&numbered(5)), "nothing was ever in it");
    assert!(paths.contains(&"/spool/events/notes.txt".into()));
}

/// The header of a segment of another spool.
struct SegmentHeaderOf {
    epoch: u64,
}

impl SegmentHeaderOf {
    fn bytes(&self) -> Vec<u8> {
        let header = format::SegmentHeader {
            spool_epoch: self.epoch,
            lane: LaneName::Events,
            first: Sequence(1),
            made_at: UnixNanos(1),
            run_begins: Sequence(1),
        };
        header.to_bytes().to_vec()
    }
}

#[test]
fn without_its_position_a_spool_goes_on_under_its_own_name() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    let epoch = bench.spool().epoch();
    bench.kill();
    bench.disk.put("/spool/position".as_ref(), b"gone");
    bench.open();
    assert_eq!(bench.spool().epoch(), epoch);
    bench.push(Flow, 1);
    bench.turn();
    let sent = bench.sent();
    assert_eq!((sent[0].1, sent[0].2.as_str()), (1, "0"));
    assert!(sent[1].1 >= START / 1000, "{sent:?}");
}

#[test]
fn an_orderly_end_leaves_all_on_the_disk() {
    let mut bench = Bench::new();
    for number in 0..10 {
        bench.push(Flow, number);
    }
    let now = bench.now();
    bench.spool().close(now);
    assert_eq!(bench.spool().delivery().in_flight(), 10);
    bench.spool = None;
    bench.disk.cut_power(|_| 0);
    bench.passed += Duration::from_secs(1);
    bench.open();
    assert_eq!(bench.texts().len(), 10);
}

#[test]
fn without_a_disk_the_end_gives_up_what_is_not_acknowledged() {
    let mut spool = Spool::in_memory(5, 10 * (lane::OVERHEAD + 2), Arc::default());
    for _ in 0..12 {
        spool.push(Flow, b"{}".to_vec(), UnixNanos(1));
    }
    assert_eq!(spool.delivery().lost(LossReason::QueueFull), 2);
    let now = Now { monotonic: Instant::now(), unix: UnixNanos(1) };
    spool.close(now);
    assert_eq!(spool.delivery().lost(LossReason::Shutdown), 10);
    assert_eq!((spool.epoch(), spool.delivery().in_flight()), (5, 0));
}

#[test]
fn a_spool_put_back_from_a_copy_goes_on_behind_what_the_collector_has() {
    let mut bench = Bench::new();
    bench.push(Flow, 0);
    bench.turn();
    let far = Sequence(1 << 60);
    assert!(!bench.spool().acknowledge(Stream::Records, far));
    assert!(bench.spool().meet(Stream::Records, far));
    bench.push(Flow, 1);
    bench.turn();
    assert_eq!(bench.sent(), [(Stream::Records, far.0 + 1, "1".to_owned())]);
    // What follows must have numbers, too.
    assert!(!bench.spool().meet(Stream::Records, Sequence(1 << 61)));
    assert!(!bench.spool().meet(Stream::Records, Sequence(u64::MAX)));
}

#[test]
fn what_one_collector_has_another_one_is_not_to_miss() {
    let mut bench = Bench::new();
    for number in 0..10 {
        bench.push(Flow, number);
    }
    bench.turn();
    bench.sent();
    assert!(bench.spool().acknowledge(Stream::Records, Sequence(7)));
    // Another one, which had the first three when it was met last.
    bench.spool().rewind();
    assert!(bench.spool().meet(Stream::Records, Sequence(3)));
    assert_eq!(bench.holes(), [(Stream::Records, 4, 7, UNUSED)]);
    bench.spool().rewind();
    assert!(bench.spool().meet(Stream::Records, Sequence(7)));
    assert_eq!(bench.holes(), []);
}

#[test]
fn what_was_synced_outlasts_a_power_cut_and_numbers_go_on() {
    let mut bench = Bench::new();
    for number in 0..100 {
        bench.push(Flow, number);
    }
    bench.pass(INTERVAL);
    assert!(bench.disk.syncs() > 0);
    for number in 100..150 {
        bench.push(Flow, number);
        bench.turn();
    }
    let sent = bench.sent();
    assert_eq!(sent.len(), 150);
    bench.kill();
    bench.disk.cut_power(|_| 0);
    bench.open();
    assert_eq!(bench.sent(), sent[..100]);
    bench.push(Flow, "new");
    bench.turn();
    // Those that were lost may have been sent: their numbers are not used again.
    assert!(bench.sent()[0].1 > 150);
}

#[test]
fn a_segment_in_which_nothing_could_be_written_shifts_no_numbers() {
    let mut bench = Bench::new();
    bench.push(Alert, "0");
    bench.turn();
    bench.disk.fill_up(Some(0));
    bench.push(Alert, "1");
    bench.turn();
    bench.kill();
    bench.open();
    bench.push(Alert, "2");
    bench.turn();
    let sent = bench.sent();
    bench.disk.fill_up(None);
    bench.pass(INTERVAL * 2);
    bench.spool().rewind();
    assert_eq!(bench.sent(), sent);
}
