//! The sensors of one thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, TrySendError, bounded};
use packet::frame::LinkType;
use sensor::interfaces::InterfaceNames;
use sensor::spool::Spool;
use sensor::uplink::session::Timing;
use sensor::uplink::{
    Deliveries, EndReason, OutgoingRecord, RECORD_QUEUE_BYTES, Uplink, UplinkConfig, UplinkInputs,
    UplinkStatus,
};
use trust::Keeper;
use wire::ledger::{InterfaceLedger, Ledger};
use wire::message::SensorHello;
use wire::records::RecordKind;

use crate::{Orders, pki};

/// Who is to connect where.
pub struct Fleet {
    /// Certificates, see [`pki::prepare`].
    pub folder: PathBuf,
    /// HOST:PORT.
    pub collector: String,
    /// How many sensors there are.
    pub sensors: u32,
}

/// What the sensors of a thread have done, all together.
#[derive(Default)]
pub struct Count {
    /// Sensors that are connected now.
    pub connected: AtomicU64,
    /// Connections that were greeted by the collector.
    pub connects: AtomicU64,
    /// Attempts that were not.
    pub failed_dials: AtomicU64,
    /// Records that were made and handed to an uplink.
    pub made: AtomicU64,
    /// Records that an uplink had no room for.
    pub not_taken: AtomicU64,
    /// Records that the collector has acknowledged.
    pub acknowledged: AtomicU64,
    /// Records that an uplink gave up.
    pub lost: AtomicU64,
}

/// One simulated sensor.
struct Simulated {
    name: String,
    epoch: u64,
    uplink: Uplink,
    status: Arc<UplinkStatus>,
    records: Sender<OutgoingRecord>,
    stop: Sender<Duration>,
    made: u64,
    is_over: bool,
}

/// Runs every sensor whose number is `group` modulo `groups`, until a stop is asked for and all that
/// waits is delivered.
pub fn run(
    fleet: &Fleet,
    (group, groups): (u32, u32),
    orders: &Orders,
    count: &Count,
) -> Result<(), String> {
    let own = (0..fleet.sensors).filter(|sensor| sensor % groups == group);
    let mut sensors = own.map(|number| start(fleet, number)).collect::<Result<Vec<_>, _>>()?;
    let mut due = Due { since: Instant::now(), rate: 0, made: 0 };
    let mut is_stopping = false;
    while !sensors.iter().all(|sensor| sensor.is_over) {
        let round = Instant::now();
        if !is_stopping && orders.is_stopping.load(Ordering::Relaxed) {
            is_stopping = true;
            // Each has room for one.
            sensors.iter().for_each(|sensor| _ = sensor.stop.try_send(DRAIN));
        }
        if !is_stopping {
            let share = orders.rate.load(Ordering::Relaxed) / u64::from(groups);
            due.make(&mut sensors, share, count);
        }
        for sensor in sensors.iter_mut().filter(|sensor| !sensor.is_over) {
            sensor.uplink.wait_for(Duration::ZERO);
            sensor.is_over = sensor.uplink.turn();
        }
        tell(&sensors, count);
        thread::sleep(ROUND.saturating_sub(round.elapsed()));
    }
    let ends = sensors.into_iter().map(|sensor| sensor.uplink.finish());
    let (acknowledged, lost) = ends.fold((0, 0), |(acknowledged, lost), end| {
        (acknowledged + end.records.acknowledged(), lost + end.records.lost_total())
    });
    count.connected.store(0, Ordering::Relaxed);
    count.acknowledged.store(acknowledged, Ordering::Relaxed);
    count.lost.store(lost, Ordering::Relaxed);
    Ok(())
}

/// Which records are to be made.
struct Due {
    since: Instant,
    /// Records a second.
    rate: u64,
    made: u64,
}

impl Due {
    /// Makes what is due, by the sensors in turn.
    fn make(&mut self, sensors: &mut [Simulated], rate: u64, count: &Count) {
        if rate != self.rate {
            *self = Self { since: Instant::now(), rate, made: 0 };
        }
        let due = (u128::from(rate) * self.since.elapsed().as_micros() / 1_000_000) as u64;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6f+0000").to_string();
        for number in self.made..due {
            let sensor = &mut sensors[(number % sensors.len() as u64) as usize];
            sensor.made += 1;
            let json = flow(&now, &sensor.name, sensor.epoch, sensor.made);
            match sensor.records.try_send(OutgoingRecord { kind: RecordKind::Flow, json }) {
                Ok(()) => count.made.fetch_add(1, Ordering::Relaxed),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    count.not_taken.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
        self.made = due;
    }
}

fn start(fleet: &Fleet, number: u32) -> Result<Simulated, String> {
    let name = pki::name(number);
    let files = pki::files(&fleet.folder, number);
    let identity = Keeper::open(files, Duration::ZERO)
        .map_err(|error| format!("{error}: run `ringwatch-fleet prepare` first"))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let address = fleet.collector.parse();
    let config = UplinkConfig {
        collectors: vec![address.map_err(|error| format!("{}: {error}", fleet.collector))?],
        identity,
        hello: SensorHello {
            minor: wire::header::MINOR,
            sensor: name.clone(),
            boot_epoch: epoch,
            spool_epoch: epoch,
            host: name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        interfaces: Arc::new(InterfaceNames::new([("eth0", LinkType::ETHERNET)])),
        snaplen: 65535,
        timing: Timing::default(),
    };
    let status = Arc::new(UplinkStatus::default());
    let (records, records_out) = bounded(RECORD_QUEUE);
    let (stop, stopped) = bounded(1);
    let for_ledger = Arc::clone(&status);
    let inputs = UplinkInputs {
        spool: Spool::in_memory(epoch, RECORD_QUEUE_BYTES, Arc::clone(&status.spool)),
        records: records_out,
        batches: Vec::new(),
        ledger: Box::new(move || ledger(&for_ledger)),
        stop: stopped,
    };
    let uplink = Uplink::new(config, inputs, Arc::clone(&status));
    let uplink = uplink.map_err(|error| error.to_string())?;
    Ok(Simulated { name, epoch, uplink, status, records, stop, made: 0, is_over: false })
}

/// That of a sensor with one interface, on which nothing happens.
fn ledger(status: &UplinkStatus) -> Ledger {
    let Deliveries { frames, records } = status.deliveries();
    let interface = InterfaceLedger { name: "eth0".to_owned(), ..InterfaceLedger::default() };
    Ledger { interfaces: vec![interface], frames: frames.to_ledger(), records: records.to_ledger() }
}

fn tell(sensors: &[Simulated], count: &Count) {
    let (mut connected, mut connects, mut failed, mut acknowledged, mut lost) = (0, 0, 0, 0, 0);
    for sensor in sensors {
        let metrics = &sensor.status.metrics;
        connected += u64::from(metrics.is_connected());
        connects += metrics.connects_total();
        failed +=
            EndReason::ALL.map(|reason| metrics.failed_dials_total(reason)).iter().sum::<u64>();
        let records = sensor.status.deliveries().records;
        acknowledged += records.acknowledged();
        lost += records.lost_total();
    }
    for (counter, value) in [
        (&count.connected, connected),
        (&count.connects, connects),
        (&count.failed_dials, failed),
        (&count.acknowledged, acknowledged),
        (&count.lost, lost),
    ] {
        counter.store(value, Ordering::Relaxed);
    }
}

/// A flow as sensors write it, of some 700 bytes: hosts of its own, and others.
fn flow(now: &str, sensor: &str, epoch: u64, number: u64) -> Vec<u8> {
    let mixed = (epoch ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let (own, other) = (mixed % 4000, (mixed >> 12) % 50_000);
    let (port, packets, bytes) = (1024 + mixed % 60_000, mixed % 50, mixed % 50_000);
    format!(
        r#"{{"timestamp":"{now}","flow_id":{mixed},"in_iface":"eth0","event_type":"flow","src_ip":"10.0.{}.{}","src_port":{port},"dest_ip":"198.{}.{}.7","dest_port":443,"ip_v":4,"proto":"TCP","community_id":"1:{mixed:027x}=","flow":{{"pkts_toserver":{packets},"pkts_toclient":{packets},"bytes_toserver":{bytes},"bytes_toclient":{bytes},"start":"{now}","end":"{now}","age":59,"state":"closed","reason":"fin","alerted":false}},"tcp":{{"tcp_flags":"1b","tcp_flags_ts":"1b","tcp_flags_tc":"1b","syn":true,"fin":true,"psh":true,"ack":true,"state":"closed"}},"ringwatch":{{"event_id":"{sensor}-{epoch}-{number}","sensor":"{sensor}"}}}}"#,
        own / 250,
        own % 250,
        other / 250,
        other % 250,
    )
    .into_bytes()
}

/// Time between two looks at a sensor.
const ROUND: Duration = Duration::from_millis(20);
/// How long a stop may take.
const DRAIN: Duration = Duration::from_secs(10);
/// Records between what makes them and the uplink.
const RECORD_QUEUE: usize = 1 << 12;
