//! What it costs to store records, to write the event log and to index, one after the other in one
//! thread, so that the processor time of each can be told.
//!
//! ```text
//!   cargo run --release -p ringwatch-collector --example record_rates [-- RECORDS [FOLDER]]
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collector::archive::Index;
use collector::archive::query::{Archive, Filter};
use collector::committer::wall_clock;
use collector::store::events::{EventLog, Turn};
use collector::store::log::RecordLog;
use collector::store::log::batch::{NewBatch, push_record};
use collector::store::log::disk::Folder;
use nix::sys::resource::{UsageWho, getrusage};
use wire::header::Stream;
use wire::records::RecordKind;
use wire::units::Sequence;

/// Records of one batch: what a busy sensor sends at once.
const BATCH: u64 = 500;
/// Batches of one commit: 30 000 records/s, ten commits a second.
const COMMIT: u64 = 6;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let records: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let folder = arguments.next().unwrap_or_else(|| "record-rates".to_owned());
    let folder = Path::new(&folder);
    for name in ["records", "index"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let disk = Arc::new(Folder::new(folder.join("records")));
    let (mut log, _) = RecordLog::open(disk, Arc::default(), 64 << 20)?;

    let batches: Vec<_> = (0..64).map(|number| batch(number * BATCH)).collect();
    let bytes: usize = batches.iter().map(Vec::len).sum();
    println!("{records} records of {} bytes", bytes as u64 / (64 * BATCH));
    let total = records / BATCH;
    measured("store: pack, write, fsync", records, || {
        for number in 0..total {
            stage(&mut log, number, &batches[number as usize % batches.len()]);
            if number % COMMIT == COMMIT - 1 || number == total - 1 {
                log.write()?;
                log.sync()?;
                if log.is_due(wall_clock()) {
                    log.seal();
                }
            }
        }
        Ok(())
    })?;
    let (disk, catalog) = log.source();
    println!("  {} bytes a record on the disk", catalog.bytes() / records);

    measured("write the event log", records, || {
        let (disk, catalog) = log.source();
        let (mut events, _) = EventLog::open(&folder.join("eve.json"), disk, catalog)?;
        while events.turn()? != Turn::Idle {}
        Ok(())
    })?;

    let progress = Arc::default();
    let archive = Archive { folder: folder.join("index"), disk, catalog, progress };
    measured("index", records, || {
        let Archive { folder, disk, catalog, progress } = archive.clone();
        let mut index = Index::open(folder, disk, catalog, progress)?;
        while !index.turn()?.is_done {}
        index.close();
        Ok(())
    })?;
    let mut size = 0;
    for entry in std::fs::read_dir(folder.join("index"))? {
        size += entry?.metadata()?.len();
    }
    println!("  {} bytes a record in the index", size / records);

    for (what, filter) in [
        ("the newest 100 flows", Filter::default()),
        ("100 flows of a host", Filter { host: Some("10.0.3.7".parse()?), ..Filter::default() }),
        ("flows of a port that nobody uses", Filter { port: Some(9), ..Filter::default() }),
    ] {
        let start = Instant::now();
        let deadline = start + Duration::from_secs(60);
        let page = archive.find(RecordKind::Flow, &filter, None, 100, deadline)?;
        println!("{what}: {} found in {:.1?}", page.items.len(), start.elapsed());
    }
    Ok(())
}

/// Wall-clock and processor time of something, and what that is for each record.
fn measured(
    what: &str,
    records: u64,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (start, used) = (Instant::now(), processor_time()?);
    act()?;
    let (wall, used) = (start.elapsed(), processor_time()? - used);
    let each = used.as_secs_f64() * 1e6 / records as f64;
    println!(
        "{what}: {:.1} s, {:.2} µs of processor a record, {:.0} % of a core at 30 000/s",
        wall.as_secs_f64(),
        each,
        each * 30_000.0 / 1e4
    );
    Ok(())
}

fn processor_time() -> Result<Duration, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec())
        .sum::<i64>();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn stage(log: &mut RecordLog, number: u64, records: &[u8]) {
    let (first, last) = (Sequence(number * BATCH + 1), Sequence((number + 1) * BATCH));
    let (sensor, stream, epoch) = ("web-1", Stream::Records, 1);
    let batch = NewBatch { sensor, stream, epoch, first, last, count: BATCH as u32, records };
    log.stage(&batch, wall_clock());
}

/// Flows as a sensor sends them: 4 000 hosts of its own, 50 000 others.
fn batch(first: u64) -> Vec<u8> {
    let mut records = Vec::new();
    for number in first..first + BATCH {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let (own, other) = (mixed % 4000, (mixed >> 12) % 50_000);
        let json = format!(
            r#"{{"timestamp":"2026-11-21T10:15:{:02}.{:06}+0000","flow_id":{mixed},"in_iface":"eth0","event_type":"flow","src_ip":"10.0.{}.{}","src_port":{},"dest_ip":"198.{}.{}.7","dest_port":443,"ip_v":4,"proto":"TCP","community_id":"1:{:027x}=","flow":{{"pkts_toserver":{},"pkts_toclient":{},"bytes_toserver":{},"bytes_toclient":{},"start":"2026-11-21T10:14:01.000000+0000","end":"2026-11-21T10:15:00.000000+0000","age":59,"state":"closed","reason":"fin","alerted":false}},"tcp":{{"tcp_flags":"1b","tcp_flags_ts":"1b","tcp_flags_tc":"1b","syn":true,"fin":true,"psh":true,"ack":true,"state":"closed"}},"ringwatch":{{"event_id":"web-1-1700000000000000000-{number}","sensor":"web-1"}}}}"#,
            number / BATCH % 60,
            number % 1_000_000,
            own / 250,
            own % 250,
            1024 + mixed % 60_000,
            other / 250,
            other % 250,
            mixed,
            mixed % 50,
            mixed % 60,
            mixed % 50_000,
            mixed % 90_000,
        );
        push_record(&mut records, RecordKind::Flow, &json);
    }
    records
}
