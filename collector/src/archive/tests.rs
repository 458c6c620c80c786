use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use wire::header::Stream;
use wire::records::RecordKind;
use wire::units::{Sequence, UnixNanos};

use super::query::{Archive, Filter, Page, QueryError};
use super::*;
use crate::archive::retention::{RecordLimits, Removed, Retention};
use crate::store::log::RecordLog;
use crate::store::log::batch::{NewBatch, push_record};
use crate::store::log::disk::{Disk, DiskFile, Folder};
use crate::store::log::marks::Marks;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 24 * 3600 * SECOND;
/// 2023-11-14, in the evening.
const NOW: u64 = 1_700_000_000 * SECOND;

/// A store in a folder of its own.
struct Lab {
    folder: tempfile::TempDir,
    log: RecordLog,
    progress: Arc<Progress>,
    sequence: u64,
    index: Option<Index>,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["records", "index"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let disk = Arc::new(Folder::new(folder.path().join("records")));
        let (log, _) = RecordLog::open(disk, Arc::default(), 4000).unwrap();
        let mut lab = Self { folder, log, progress: Arc::default(), sequence: 0, index: None };
        lab.open_index();
        lab
    }

    fn index_folder(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    fn open_index(&mut self) {
        self.index = None;
        self.progress = Arc::default();
        let (disk, catalog) = self.log.source();
        let progress = Arc::clone(&self.progress);
        self.index = Some(Index::open(self.index_folder(), disk, catalog, progress).unwrap());
    }

    /// Stores records of a sensor at a time.
    fn store(&mut self, sensor: &str, now: u64, records: &[(RecordKind, String)]) {
        let now = UnixNanos(now);
        if self.log.is_due(now) {
            self.log.seal();
        }
        let mut bytes = Vec::new();
        records.iter().for_each(|(kind, json)| push_record(&mut bytes, *kind, json));
        let first = Sequence(self.sequence + 1);
        self.sequence += records.len() as u64;
        let (last, count) = (Sequence(self.sequence), u32::try_from(records.len()).unwrap());
        let (stream, epoch, records) = (Stream::Records, 1, &bytes);
        let batch = NewBatch { sensor, stream, epoch, first, last, count, records };
        self.log.stage(&batch, now);
        self.log.write().unwrap();
        self.log.sync().unwrap();
    }

    fn turn(&mut self) -> Indexed {
        self.index.as_mut().unwrap().turn().unwrap()
    }

    /// Indexes all there is.
    fn index(&mut self) {
        while !self.turn().is_done {}
        assert_eq!(self.progress.behind(&self.log.source().1), 0);
    }

    fn archive(&self) -> Archive {
        let (disk, catalog) = self.log.source();
        let progress = Arc::clone(&self.progress);
        Archive { folder: self.index_folder(), disk, catalog, progress }
    }

    fn find(&self, kind: RecordKind, filter: &Filter, limit: usize) -> Result<Page, QueryError> {
        let deadline = Instant::now() + Duration::from_secs(20);
        self.archive().find(kind, filter, None, limit, deadline)
    }

    /// All items in pages of `limit`.
    fn pages(&self, kind: RecordKind, filter: &Filter, limit: usize) -> Vec<String> {
        let (mut items, mut after) = (Vec::new(), None);
        loop {
            let deadline = Instant::now() + Duration::from_secs(20);
            let page = self.archive().find(kind, filter, after, limit, deadline).unwrap();
            assert_eq!((page.unreadable, page.behind), (0, 0));
            assert!(page.items.len() <= limit);
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return items,
            }
        }
    }
}

fn time(nanos: u64) -> String {
    let nanos = i128::from(nanos);
    jiff::Timestamp::from_nanosecond(nanos)
        .unwrap()
        .strftime("%Y-%m-%dT%H:%M:%S.%6f+0000")
        .to_string()
}

fn flow(at: u64, source: &str, target: &str, port: u16) -> (RecordKind, String) {
    let json = format!(
        r#"{{"timestamp":"{}","event_type":"flow","src_ip":"{source}","src_port":40000,"dest_ip":"{target}","dest_port":{port},"proto":"TCP"}}"#,
        time(at)
    );
    (RecordKind::Flow, json)
}

fn dns(at: u64, name: &str) -> (RecordKind, String) {
    let time = time(at);
    let json = format!(r#"{{"timestamp":"{time}","dns":{{"version":2,"rrname":"{name}"}}}}"#);
    (RecordKind::Dns, json)
}

fn alert(at: u64, id: &str, revision: u32, kind: &str, severity: u8) -> (RecordKind, String) {
    let json = format!(
        r#"{{"timestamp":"{}","src_ip":"192.0.2.1","alert":{{"severity":{severity},"context":{{"alert_id":"{id}","revision":{revision},"kind":"{kind}"}}}}}}"#,
        time(at)
    );
    (RecordKind::Alert, json)
}

fn numbers(items: &[String], key: &str) -> Vec<u64> {
    let read = |item: &String| serde_json::from_str::<serde_json::Value>(item).unwrap();
    items.iter().map(|item| read(item).pointer(key).unwrap().as_u64().unwrap()).collect()
}

#[test]
fn each_filter_finds_what_it_says_and_nothing_else() {
    let mut lab = Lab::new();
    let second = |n: u64| NOW + n * SECOND;
    lab.store(
        "a",
        NOW,
        &[
            flow(second(1), "192.0.2.1", "192.0.2.2", 1),
            flow(second(2), "192.0.2.2", "2001:db8::1", 2),
            dns(second(2), "www.example.org"),
        ],
    );
    lab.store("b", NOW, &[flow(second(3), "192.0.2.3", "192.0.2.3", 3), dns(second(4), "a.b_c.d")]);
    lab.index();
    let ports = |filter: Filter| {
        let ascending = Filter { is_ascending: true, ..filter };
        numbers(&lab.pages(RecordKind::Flow, &ascending, 2), "/dest_port")
    };
    let host = |text: &str| Filter { host: text.parse().ok(), ..Filter::default() };
    let at = |n: u64| Some(day::signed(second(n)));
    assert_eq!(ports(Filter::default()), [1, 2, 3]);
    assert_eq!(ports(host("192.0.2.2")), [1, 2]);
    assert_eq!(ports(host("2001:db8::1")), [2]);
    assert_eq!(ports(host("192.0.2.3")), [3]);
    assert!(ports(host("192.0.2.9")).is_empty());
    assert_eq!(ports(Filter { port: Some(2), ..host("192.0.2.2") }), [2]);
    assert_eq!(ports(Filter { port: Some(40000), ..Filter::default() }), [1, 2, 3]);
    assert_eq!(ports(Filter { sensor: Some("b".into()), ..Filter::default() }), [3]);
    assert_eq!(ports(Filter { from: at(2), ..Filter::default() }), [2, 3]);
    assert_eq!(ports(Filter { from: at(2), to: at(3), ..Filter::default() }), [2]);
    assert_eq!(ports(Filter { to: at(2), ..host("192.0.2.2") }), [1]);
    let names = |name: &str| {
        let filter = Filter { name: Some(name.into()), ..Filter::default() };
        lab.pages(RecordKind::Dns, &filter, 9).len()
    };
    assert_eq!(names("WWW.example.org."), 1);
    assert_eq!(names("*.example.org"), 1);
    assert_eq!(names("*"), 2);
    assert_eq!(names("example.org"), 0);
    assert_eq!(names("a.b_c.d"), 1);
    assert_eq!(names("a.bxc.d"), 0);
}

#[test]
fn of_an_alert_the_latest_revision_is_found_over_the_end_of_days() {
    let mut lab = Lab::new();
    lab.store(
        "a",
        NOW,
        &[alert(NOW, "a-1", 1, "vertical", 2), alert(NOW + 1, "a-2", 1, "block", 1)],
    );
    lab.store("a", NOW + DAY, &[alert(NOW + DAY, "a-1", 2, "decoy", 1)]);
    lab.store("a", NOW + 3 * DAY, &[alert(NOW + 3 * DAY, "a-1", 3, "decoy", 3)]);
    lab.index();
    let revisions = |filter: &Filter| {
        numbers(&lab.pages(RecordKind::Alert, filter, 1), "/alert/context/revision")
    };
    assert_eq!(revisions(&Filter::default()), [3, 1]);
    let all = Filter { has_all_revisions: true, ..Filter::default() };
    assert_eq!(revisions(&all), [3, 2, 1, 1]);
    // As it was known then.
    let then = Filter { to: Some(day::signed(NOW + 2 * DAY)), ..Filter::default() };
    assert_eq!(revisions(&then), [2, 1]);
    let kind = |kind: &str| Filter { alert_kind: Some(kind.into()), ..Filter::default() };
    assert_eq!(revisions(&kind("decoy")), [3]);
    assert!(revisions(&kind("vertical")).is_empty());
    assert_eq!(revisions(&Filter { severity: Some(1), ..Filter::default() }), [1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn pages_of_any_size_have_everything_once_in_order(
        times in proptest::collection::vec((0..40_u64, 0..3_u64), 1..120),
        limit in 1..40_usize,
        is_ascending in any::<bool>(),
        has_host in any::<bool>(),
    ) {
        let mut lab = Lab::new();
        let mut expected = Vec::new();
        let mut days = times.clone();
        // Sensors send late what they could not send before.
        days.sort_by_key(|(_, day)| *day);
        for (number, (hour, day)) in days.iter().enumerate() {
            let at = NOW + hour * 3600 * SECOND;
            let port = u16::try_from(number).unwrap();
            lab.store("a", NOW + day * DAY, &[flow(at, "192.0.2.1", "192.0.2.2", port)]);
            expected.push((*hour, number as u64));
        }
        lab.index();
        expected.sort_unstable();
        if !is_ascending {
            expected.reverse();
        }
        let host = has_host.then(|| "192.0.2.2".parse().unwrap());
        let filter = Filter { is_ascending, host, ..Filter::default() };
        let found = numbers(&lab.pages(RecordKind::Flow, &filter, limit), "/dest_port");
        let expected: Vec<_> = expected.into_iter().map(|(_, number)| number).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn what_comes_between_two_pages_disturbs_neither() {
    let mut lab = Lab::new();
    for number in 1..=6 {
        lab.store("a", NOW, &[flow(NOW + u64::from(number), "192.0.2.1", "192.0.2.2", number)]);
    }
    lab.index();
    let page = lab.find(RecordKind::Flow, &Filter::default(), 2).unwrap();
    assert_eq!(numbers(&page.items, "/dest_port"), [6, 5]);
    lab.store("a", NOW, &[flow(NOW + 9, "192.0.2.1", "192.0.2.2", 9)]);
    lab.index();
    let deadline = Instant::now() + Duration::from_secs(20);
    let after = page.next;
    let page = lab.archive().find(RecordKind::Flow, &Filter::default(), after, 2, deadline);
    assert_eq!(numbers(&page.unwrap().items, "/dest_port"), [4, 3]);
}

#[test]
fn an_index_that_is_missing_damaged_or_foreign_is_made_anew() {
    let mut lab = Lab::new();
    for number in 1..=300 {
        lab.store("a", NOW, &[flow(NOW + u64::from(number), "192.0.2.1", "192.0.2.2", number)]);
    }
    lab.index();
    let file = day::file_path(&lab.index_folder(), Day::of(UnixNanos(NOW)));
    let count = |lab: &Lab| lab.pages(RecordKind::Flow, &Filter::default(), 100).len();
    assert_eq!(count(&lab), 300);

    // While nobody looks.
    lab.index.take().unwrap().close();
    for damage in ["missing", "no database", "half", "other version"] {
        match damage {
            "missing" => std::fs::remove_file(&file).unwrap(),
            "no database" => std::fs::write(&file, vec![b'x'; 10_000]).unwrap(),
            "half" => {
                let mut content = std::fs::read(&file).unwrap();
                let length = content.len();
                content[100..length / 2].fill(0x55);
                std::fs::write(&file, content).unwrap();
            }
            _ => {
                let connection = rusqlite::Connection::open(&file).unwrap();
                connection.execute_batch("PRAGMA user_version = 77").unwrap();
            }
        }
        lab.open_index();
        lab.index();
        assert_eq!(count(&lab), 300, "{damage}");
        lab.index.take().unwrap().close();
    }

    // While it is used: the first question finds the damage, the next one the answer.
    lab.open_index();
    lab.index();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(lab.find(RecordKind::Flow, &Filter::default(), 1).unwrap().items.len(), 0);
    lab.index();
    assert_eq!(count(&lab), 300);
}

#[test]
fn a_killed_index_goes_on_where_its_last_transaction_ended() {
    let mut lab = Lab::new();
    for number in 1..=50 {
        lab.store("a", NOW, &[flow(NOW + u64::from(number), "192.0.2.1", "192.0.2.2", number)]);
    }
    assert_eq!(lab.turn().rows, 50);
    // Neither closed nor at rest.
    std::mem::forget(lab.index.take());
    lab.store("a", NOW, &[flow(NOW, "192.0.2.1", "192.0.2.2", 51)]);
    lab.open_index();
    assert!(!lab.turn().is_done);
    assert!(lab.turn().is_done);
    assert_eq!(lab.pages(RecordKind::Flow, &Filter::default(), 100).len(), 51);
}

#[test]
fn today_goes_before_days_whose_index_is_made_anew() {
    let mut lab = Lab::new();
    lab.store("a", NOW, &[flow(NOW, "192.0.2.1", "192.0.2.2", 1)]);
    lab.store("a", NOW + DAY, &[flow(NOW + DAY, "192.0.2.1", "192.0.2.2", 2)]);
    assert_eq!(lab.turn().rows, 1);
    let page = lab.find(RecordKind::Flow, &Filter::default(), 9).unwrap();
    assert_eq!(numbers(&page.items, "/dest_port"), [2]);
    assert_eq!(page.behind, 1);
    lab.index();
    assert_eq!(lab.pages(RecordKind::Flow, &Filter::default(), 9).len(), 2);
}

#[test]
fn a_clock_that_is_set_back_over_midnight_costs_no_record() {
    let mut lab = Lab::new();
    for (port, day) in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 0)] {
        lab.store("a", NOW + day * DAY, &[flow(NOW + day * DAY, "192.0.2.1", "192.0.2.2", port)]);
    }
    lab.index();
    let mut ports = numbers(&lab.pages(RecordKind::Flow, &Filter::default(), 2), "/dest_port");
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3, 4, 5]);
}

#[test]
fn a_record_that_is_no_eve_is_counted_and_stops_nothing() {
    let mut lab = Lab::new();
    let odd = (RecordKind::Flow, r#"{"src_port":"http"}"#.to_owned());
    lab.store("a", NOW, &[odd, flow(NOW, "192.0.2.1", "192.0.2.2", 1)]);
    let indexed = lab.turn();
    assert_eq!((indexed.rows, indexed.unreadable), (2, 1));
    assert_eq!(lab.pages(RecordKind::Flow, &Filter::default(), 9).len(), 2);
}

#[test]
fn a_question_whose_time_is_up_ends() {
    let mut lab = Lab::new();
    for _ in 0..20 {
        let flows: Vec<_> = (0..500).map(|n| flow(NOW, "192.0.2.1", "192.0.2.2", n)).collect();
        lab.store("a", NOW, &flows);
    }
    lab.index();
    let filter = Filter { port: Some(50_000), ..Filter::default() };
    let result = lab.archive().find(RecordKind::Flow, &filter, None, 9, Instant::now());
    assert!(matches!(result, Err(QueryError::TooSlow)), "{result:?}");
}

/// A disk that takes its time to open a file, counts the bytes that are read, and may refuse to remove anything.
struct Slow {
    folder: Folder,
    wait: Duration,
    read: Arc<std::sync::atomic::AtomicU64>,
    /// Nothing can be removed.
    is_stuck: Arc<AtomicBool>,
}

/// A file of it.
struct Counted(Box<dyn DiskFile>, Arc<std::sync::atomic::AtomicU64>);

impl Disk for Slow {
    fn names(&self) -> io::Result<Vec<String>> {
        self.folder.names()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.folder.create(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        std::thread::sleep(self.wait);
        Ok(Box::new(Counted(self.folder.open(name)?, Arc::clone(&self.read))))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.folder.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.folder.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.folder.sync_names()
    }
}

impl DiskFile for Counted {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = self.0.read_at(buffer, offset)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl Lab {
    /// What asks, on a disk that takes its time; and the bytes that were read from it.
    fn slow_archive(&self, wait: Duration) -> (Archive, Arc<std::sync::atomic::AtomicU64>) {
        let read = Arc::default();
        let folder = Folder::new(self.folder.path().join("records"));
        let is_stuck = Arc::default();
        let disk = Arc::new(Slow { folder, wait, read: Arc::clone(&read), is_stuck });
        (Archive { disk, ..self.archive() }, read)
    }
}

#[test]
fn reading_what_was_found_ends_when_the_time_is_up_and_the_next_page_goes_on() {
    let mut lab = Lab::new();
    for port in 1..=40 {
        lab.store("a", NOW, &[flow(NOW + u64::from(port), "192.0.2.1", "192.0.2.2", port)]);
    }
    lab.index();
    // Two seconds for all.
    let (archive, _) = lab.slow_archive(Duration::from_millis(50));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(500);
        let page = archive.find(RecordKind::Flow, &Filter::default(), after, 40, deadline);
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
        let page = page.unwrap();
        assert!((1..40).contains(&page.items.len()), "{}", page.items.len());
        found.extend(numbers(&page.items, "/dest_port"));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, (1..=40).rev().collect::<Vec<_>>());
}

#[test]
fn a_damaged_batch_costs_its_records_and_one_read() {
    let mut lab = Lab::new();
    // Of bytes that cannot be packed, so that a segment is large.
    let mut random = 7_u64;
    let mut noise = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("{random:016x}")
    };
    let flows: Vec<_> = (0..100)
        .map(|port| {
            let (kind, json) = flow(NOW + u64::from(port), "192.0.2.1", "192.0.2.2", port);
            let noise: String = (0..1000).map(|_| noise()).collect();
            (kind, json.replace("\"proto\"", &format!("\"x\":\"{noise}\",\"proto\"")))
        })
        .collect();
    lab.store("a", NOW, &flows);
    lab.index();
    let name = crate::store::log::file_name(1);
    let path = lab.folder.path().join("records").join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let length = bytes.len() as u64;
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (archive, read) = lab.slow_archive(Duration::ZERO);
    let deadline = Instant::now() + Duration::from_secs(20);
    let page = archive.find(RecordKind::Flow, &Filter::default(), None, 100, deadline).unwrap();
    assert_eq!((page.items.len(), page.unreadable, page.next), (0, 100, None));
    let read = read.load(Ordering::Relaxed);
    assert!(read <= length, "{read} bytes read of {length}");
}

#[test]
fn over_an_older_copy_of_the_record_log_the_index_is_made_anew() {
    let mut lab = Lab::new();
    let store = |lab: &mut Lab, ports: std::ops::RangeInclusive<u16>| {
        for port in ports {
            lab.store("a", NOW, &[flow(NOW + u64::from(port), "192.0.2.1", "192.0.2.2", port)]);
        }
    };
    store(&mut lab, 1..=20);
    let records = lab.folder.path().join("records");
    let list = || std::fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path());
    let copy: Vec<_> = list().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    store(&mut lab, 21..=90);
    lab.index();
    lab.index.take().unwrap().close();
    list().for_each(|path| std::fs::remove_file(path).unwrap());
    copy.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let disk = Arc::new(Folder::new(records.clone()));
    (lab.log, _) = RecordLog::open(disk, Arc::default(), 4000).unwrap();
    lab.open_index();
    // Before the index looks: more than it knew, with the same numbers.
    store(&mut lab, 101..=200);
    lab.index();
    let found = numbers(&lab.pages(RecordKind::Flow, &Filter::default(), 50), "/dest_port");
    assert_eq!(found, (101..=200).rev().chain((1..=20).rev()).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_cannot_be_deleted_stays_and_is_tried_again() {
    let mut lab = Lab::new();
    lab.store("a", NOW, &[flow(NOW, "192.0.2.1", "192.0.2.2", 1)]);
    lab.store("a", NOW + DAY, &[flow(NOW + DAY, "192.0.2.1", "192.0.2.2", 2)]);
    lab.index();
    lab.log.write_checkpoint(&Marks::default()).unwrap();
    let (archive, _) = lab.slow_archive(Duration::ZERO);
    let (removed, is_stuck) = (Removed::default(), Arc::new(AtomicBool::new(true)));
    let folder = Folder::new(lab.folder.path().join("records"));
    let disk = Slow { folder, wait: Duration::ZERO, read: Arc::default(), is_stuck };
    let is_stuck = Arc::clone(&disk.is_stuck);
    let (limits, progress) = (RecordLimits { bytes: 1, age: Duration::ZERO }, archive.progress);
    let retention = Retention::new(limits, Arc::new(disk), Arc::clone(&archive.catalog), progress);
    let now = UnixNanos(NOW + DAY);
    for _ in 0..2 {
        let error = retention.turn(now, 3, &removed).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(archive.catalog.lock().segments.len(), 2);
        // What is there is found, and counts.
        lab.index.as_mut().unwrap().remove_old_days().unwrap();
        assert_eq!(lab.pages(RecordKind::Flow, &Filter::default(), 9).len(), 2);
    }
    assert_eq!(removed.segments.load(Ordering::Relaxed), 0);
    is_stuck.store(false, Ordering::Relaxed);
    assert!(retention.turn(now, 3, &removed).unwrap());
    assert_eq!(archive.catalog.lock().segments.len(), 1);
    assert_eq!(removed.records.load(Ordering::Relaxed), 1);
    // One that somebody else deleted is gone as well.
    lab.store("a", NOW + 2 * DAY, &[flow(NOW, "192.0.2.1", "192.0.2.2", 3)]);
    lab.log.write_checkpoint(&Marks::default()).unwrap();
    let oldest = crate::store::log::file_name(2);
    std::fs::remove_file(lab.folder.path().join("records").join(oldest)).unwrap();
    assert!(retention.turn(now, 4, &removed).unwrap());
    assert_eq!(removed.segments.load(Ordering::Relaxed), 2);
}

#[test]
fn a_question_has_the_index_of_one_day_open_and_finds_what_is_in_all() {
    let mut lab = Lab::new();
    for day in 0..30 {
        let at = NOW + day * DAY;
        let (id, other) = (format!("own-{day}"), format!("long-{}", day / 3));
        let alerts =
            [alert(at, &id, 1, "block", 1), alert(at + 1, &other, day as u32 + 1, "block", 1)];
        lab.store("a", at, &alerts);
    }
    lab.index();
    lab.index.take().unwrap().close();
    let folder = std::fs::canonicalize(lab.index_folder()).unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let (known, path) = (Arc::clone(&is_done), folder);
    let watch = std::thread::spawn(move || {
        let is_index = |entry: io::Result<std::fs::DirEntry>| {
            let target = entry.ok().and_then(|entry| std::fs::read_link(entry.path()).ok());
            target.is_some_and(|target| {
                target.starts_with(&path) && target.extension().is_some_and(|end| end == "sqlite")
            })
        };
        let mut most = 0;
        while !known.load(Ordering::Relaxed) {
            let open = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| is_index(entry).then_some(()));
            most = most.max(open.count());
        }
        most
    });
    for _ in 0..3 {
        assert_eq!(lab.pages(RecordKind::Alert, &Filter::default(), 7).len(), 40);
    }
    is_done.store(true, Ordering::Relaxed);
    let most = watch.join().unwrap();
    assert!((1..=2).contains(&most), "{most} indexes were open at a time");
}

#[test]
fn the_oldest_segments_go_and_what_is_asked_of_them_is_expired() {
    let mut lab = Lab::new();
    for day in 0..4 {
        for number in 0..40 {
            let at = NOW + day * DAY + number;
            let port = u16::try_from(day).unwrap();
            lab.store("a", NOW + day * DAY, &[flow(at, "192.0.2.1", "192.0.2.2", port)]);
        }
    }
    let (disk, catalog) = lab.log.source();
    let removed = Removed::default();
    let age = RecordLimits { age: Duration::from_secs(36 * 3600), ..RecordLimits::default() };
    let retention = |limits, lab: &Lab| {
        let (disk, catalog) = (Arc::clone(&disk), Arc::clone(&catalog));
        Retention::new(limits, disk, catalog, Arc::clone(&lab.progress))
    };
    let now = UnixNanos(NOW + 3 * DAY + SECOND);
    let end = catalog.lock().next_number;
    // Nothing goes whose marks would be forgotten, that is not indexed, or not in the event log.
    let by_age = retention(age, &lab);
    assert!(!by_age.turn(now, end, &removed).unwrap());
    lab.log.write_checkpoint(&Marks::default()).unwrap();
    assert!(!by_age.turn(now, end, &removed).unwrap());
    lab.index();
    assert!(!by_age.turn(now, 1, &removed).unwrap());
    while by_age.turn(now, end, &removed).unwrap() {}
    assert_eq!(removed.unindexed.load(Ordering::Relaxed), 0);
    assert!(removed.segments.load(Ordering::Relaxed) > 2);
    lab.index.as_mut().unwrap().remove_old_days().unwrap();
    assert!(!day::file_path(&lab.index_folder(), Day::of(UnixNanos(NOW))).exists());
    let items = lab.pages(RecordKind::Flow, &Filter::default(), 100);
    let days = numbers(&items, "/dest_port");
    assert_eq!(days.iter().filter(|day| **day == 3).count(), 40);
    assert!(!days.contains(&0));
    let page = lab.find(RecordKind::Flow, &Filter::default(), 1).unwrap();
    assert!(page.kept_since.is_some());
    let old = Filter { to: Some(day::signed(NOW + DAY / 2)), ..Filter::default() };
    let result = lab.find(RecordKind::Flow, &old, 9);
    assert!(matches!(result, Err(QueryError::Expired { .. })), "{result:?}");

    // Want of room waits for nobody.
    lab.store("a", NOW + 4 * DAY, &[flow(NOW, "192.0.2.1", "192.0.2.2", 9)]);
    lab.store("a", NOW + 5 * DAY, &[flow(NOW, "192.0.2.1", "192.0.2.2", 9)]);
    lab.log.write_checkpoint(&Marks::default()).unwrap();
    let by_size = retention(RecordLimits { bytes: 1, ..RecordLimits::default() }, &lab);
    while by_size.turn(now, 1, &removed).unwrap() {}
    assert_eq!(catalog.lock().segments.len(), 1);
    assert_eq!(removed.unindexed.load(Ordering::Relaxed), 1);
    assert_eq!(std::fs::read_dir(lab.folder.path().join("records")).unwrap().count(), 2);
}
