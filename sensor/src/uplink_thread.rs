//! The uplink's thread: how it is started and stopped, and what it shows.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use trust::{FileError, Keeper, SensorTls};
use wire::message::SensorHello;

use crate::config::Uplink;
use crate::health;
use crate::host;
use crate::interfaces::InterfaceNames;
use crate::ledger::LedgerView;
use crate::metrics::{Families, Source};
use crate::spool::disk::RealDisk;
use crate::spool::status::{SpoolStatus, read};
use crate::spool::{Spool, SpoolError, SpoolSettings};
use crate::uplink::session::Timing;
use crate::uplink::{
    self, BatchRing, EndReason, OutgoingRecord, RECORD_QUEUE_BYTES, UplinkConfig, UplinkInputs,
    UplinkStatus,
};

/// Records between recorder and uplink; the uplink takes them out whether it is connected or not.
const RECORD_QUEUE: usize = 1 << 16;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The running uplink.
pub struct UplinkThread {
    records: Sender<OutgoingRecord>,
    stop: Sender<Duration>,
    thread: JoinHandle<()>,
    status: Arc<UplinkStatus>,
}

/// What the sensor says of itself.
pub struct About<'a> {
    /// Its name.
    pub sensor: &'a str,
    /// Start of this run.
    pub boot_epoch: u64,
    /// Its interfaces, those that come later too.
    pub interfaces: Arc<InterfaceNames>,
    /// Most bytes of a frame that are exported.
    pub snaplen: u32,
}

/// Why the uplink could not start.
#[derive(Debug, thiserror::Error)]
pub enum UplinkStartError {
    /// The certificates can be read with the rights of the start, and no longer without them.
    #[error(
        "once it has given up its privileges, the sensor cannot use its certificates; it must own them"
    )]
    Identity(#[from] FileError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The system has no more threads.
    #[error("cannot start thread uplink")]
    Thread(#[source] std::io::Error),
}

impl UplinkThread {
    /// Starts dialling.
    ///
    /// # Errors
    /// See [`UplinkStartError`].
    pub fn start(
        (settings, spool): (&Uplink, Option<&SpoolSettings>),
        about: &About<'_>,
        batches: Vec<BatchRing>,
        ledger: LedgerView,
        status: Arc<UplinkStatus>,
    ) -> Result<Self, UplinkStartError> {
        let (records, records_out) = bounded(RECORD_QUEUE);
        let (stop, stopped) = bounded(1);
        // They are read again when they change, by a thread without any privilege, such as this.
        let warning = DAY * settings.expiry_warning_days;
        let identity = Keeper::<SensorTls>::open(settings.tls.clone(), warning)?;
        // Set once, here, before anything reads it.
        let _ = status.certificates.set(identity.status());
        let config = UplinkConfig {
            collectors: settings.collectors.clone(),
            identity,
            hello: hello(about),
            interfaces: Arc::clone(&about.interfaces),
            snaplen: about.snaplen,
            timing: Timing::default(),
        };
        let spool = open_spool(spool, about.boot_epoch, &status.spool)?;
        let inputs = UplinkInputs {
            spool,
            records: records_out,
            batches,
            ledger: Box::new(move || ledger.read()),
            stop: stopped,
        };
        let shared = Arc::clone(&status);
        let thread = std::thread::Builder::new()
            .name("uplink".into())
            .spawn(move || {
                if let Err(error) = uplink::run(config, inputs, shared) {
                    let error = wire::text::error_chain(&error);
                    tracing::error!(error, "the uplink cannot run; nothing reaches a collector");
                }
            })
            .map_err(UplinkStartError::Thread)?;
        Ok(Self { records, stop, thread, status })
    }

    /// Where records go in.
    #[must_use]
    pub fn records(&self) -> Sender<OutgoingRecord> {
        self.records.clone()
    }

    /// Its metrics.
    #[must_use]
    pub fn metrics(&self) -> Arc<dyn Source> {
        Arc::new(UplinkMetrics(Arc::clone(&self.status)))
    }

    /// Delivers what is under way, for so long at most, and ends.
    pub fn stop(self, limit: Duration) {
        // A thread that ended early has said why.
        let _ = self.stop.send(limit);
        if self.thread.join().is_err() {
            tracing::error!("uplink panicked; its message stands above");
        }
    }
}

fn open_spool(
    settings: Option<&SpoolSettings>,
    boot_epoch: u64,
    status: &Arc<SpoolStatus>,
) -> Result<Spool, SpoolError> {
    let status = Arc::clone(status);
    match settings {
        None => Ok(Spool::in_memory(boot_epoch, RECORD_QUEUE_BYTES, status)),
        Some(settings) => {
            let (disk, now) = (Arc::new(RealDisk), uplink::read_clocks());
            Spool::open(settings.clone(), disk, RECORD_QUEUE_BYTES, now, status)
        }
    }
}

fn hello(about: &About<'_>) -> SensorHello {
    SensorHello {
        minor: wire::header::MINOR,
        sensor: about.sensor.to_owned(),
        boot_epoch: about.boot_epoch,
        // The session puts the name of its spool here.
        spool_epoch: about.boot_epoch,
        host: host::name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

#[derive(Debug)]
struct UplinkMetrics(Arc<UplinkStatus>);

impl Source for UplinkMetrics {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let metrics = &self.0.metrics;
        let by_reason = |count: fn(&uplink::Metrics, EndReason) -> u64| {
            EndReason::ALL
                .map(|reason| (vec![("reason", reason.name().to_owned())], count(metrics, reason)))
        };
        let connected = f64::from(u8::from(metrics.is_connected()));
        let round_trip = metrics.round_trip().map_or(0.0, |time| time.as_secs_f64());
        families.gauge(
            "ringwatch_uplink_connected",
            "1 while a collector is connected",
            [(vec![], connected)],
        )?;
        families.gauge(
            "ringwatch_uplink_round_trip_seconds",
            "Last round trip to the collector",
            [(vec![], round_trip)],
        )?;
        families.gauge(
            "ringwatch_uplink_clock_offset_seconds",
            "The collector's clock minus the sensor's",
            [(vec![], metrics.clock_offset_ns() as f64 / 1e9)],
        )?;
        families.counter(
            "ringwatch_uplink_connects",
            "Connections to a collector",
            [(vec![], metrics.connects_total())],
        )?;
        families.counter(
            "ringwatch_uplink_sent_bytes",
            "Bytes sent to collectors, TLS included",
            [(vec![], metrics.bytes_sent_total())],
        )?;
        families.counter(
            "ringwatch_uplink_failed_dials",
            "Attempts that ended before the collector said hello, by reason",
            by_reason(uplink::Metrics::failed_dials_total),
        )?;
        families.counter(
            "ringwatch_uplink_disconnects",
            "Connections that ended, by reason",
            by_reason(uplink::Metrics::disconnects_total),
        )?;
        families.gauge(
            "ringwatch_uplink_running",
            "1 while the uplink's thread runs",
            [(vec![], f64::from(u8::from(self.0.fitness.is_running())))],
        )?;
        families.counter(
            "ringwatch_uplink_panics",
            "Times that the uplink panicked and started over",
            [(vec![], self.0.fitness.panics())],
        )?;
        families.counter(
            "ringwatch_uplink_loops",
            "Times that a copy of the uplink's own traffic was among the frames to be sent",
            [(vec![], metrics.loops_total())],
        )?;
        write_certificates(&self.0, families)?;
        write_spool(&self.0.spool, families)?;
        write_deliveries(&self.0, families)
    }
}

/// What became of frames and records.
fn write_deliveries(status: &UplinkStatus, families: &mut Families<'_>) -> fmt::Result {
    let deliveries = status.deliveries();
    for (name, help, delivery) in [
        (
            "ringwatch_uplink_frames",
            "Frames by what became of them at the uplink",
            deliveries.frames.to_ledger(),
        ),
        (
            "ringwatch_uplink_records",
            "Records by what became of them at the uplink",
            deliveries.records.to_ledger(),
        ),
    ] {
        let mut rows = vec![(vec![("outcome", "acknowledged".to_owned())], delivery.acknowledged)];
        let lost = delivery.lost.into_iter();
        rows.extend(
            lost.map(|(reason, count)| (vec![("outcome", format!("lost_{reason}"))], count)),
        );
        families.counter(name, help, rows)?;
    }
    Ok(())
}

/// How the spool is. Without a folder, what waits in memory.
fn write_spool(status: &SpoolStatus, families: &mut Families<'_>) -> fmt::Result {
    const LANES: [&str; 2] = ["alerts", "events"];
    let now = crate::health::now();
    let by_lane = |value: &dyn Fn(usize) -> f64| {
        [0, 1].map(|lane| (vec![("lane", LANES[lane].to_owned())], value(lane)))
    };
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    families.gauge(
        "ringwatch_spool_bytes",
        "Bytes of the spool on the disk, by lane",
        by_lane(&|lane| read(&status.disk_bytes[lane]) as f64),
    )?;
    families.gauge(
        "ringwatch_spool_segments",
        "Segments of the spool, by lane",
        by_lane(&|lane| read(&status.segments[lane]) as f64),
    )?;
    families.gauge(
        "ringwatch_spool_records",
        "Records that wait for an acknowledgement, on the disk or in memory, by lane",
        by_lane(&|lane| read(&status.records[lane]) as f64),
    )?;
    families.gauge(
        "ringwatch_spool_oldest_age_seconds",
        "Age of the oldest of them, by lane",
        by_lane(&|lane| status.oldest_age(lane, now).as_secs_f64()),
    )?;
    families.gauge(
        "ringwatch_spool_waiting_bytes",
        "Bytes of records that wait in memory",
        [(vec![], read(&status.waiting_bytes) as f64)],
    )?;
    families.gauge(
        "ringwatch_spool_last_sync_seconds",
        "How long it last took to bring records to the disk",
        [(vec![], seconds(read(&status.last_sync_ns)))],
    )?;
    families.gauge(
        "ringwatch_spool_failing",
        "1 while the disk of the spool fails",
        [(vec![], f64::from(u8::from(!status.problems().is_empty())))],
    )?;
    families.gauge(
        "ringwatch_spool_reading",
        "1 while what an earlier run left is being read; no collector is dialled before",
        [(vec![], read(&status.is_reading) as f64)],
    )?;
    families.gauge(
        "ringwatch_spool_age_doubted",
        "1 while records of an earlier run are too old by a clock that is not believed yet",
        [(vec![], read(&status.is_age_doubted) as f64)],
    )?;
    for (name, help, value) in [
        ("ringwatch_spool_clock_steps", "Times that the wall clock was set", &status.clock_steps),
        ("ringwatch_spool_recovered_records", "Records of an earlier run", &status.recovered),
        ("ringwatch_spool_torn_bytes", "Unfinished bytes found at the start", &status.torn_bytes),
        (
            "ringwatch_spool_set_aside",
            "Segments set aside as foreign or damaged",
            &status.set_aside,
        ),
        ("ringwatch_spool_write_errors", "Failed attempts to write", &status.write_errors),
        ("ringwatch_spool_sync_errors", "Failed attempts to sync", &status.sync_errors),
        ("ringwatch_spool_syncs", "Times that records were brought to the disk", &status.syncs),
    ] {
        families.counter(name, help, [(vec![], read(value))])?;
    }
    Ok(())
}

/// When the files of the sensor's identity expire, and what became of those that changed.
fn write_certificates(status: &UplinkStatus, families: &mut Families<'_>) -> fmt::Result {
    let Some(certificates) = status.certificates.get() else { return Ok(()) };
    let (known, now) = (certificates.read(), health::now_seconds());
    families.gauge(
        "ringwatch_tls_expiry_seconds",
        "Seconds until a file of our identity expires",
        known.expiry.all().into_iter().map(|(file, until)| {
            (vec![("file", file.name().to_owned())], until.saturating_sub(now) as f64)
        }),
    )?;
    families.counter(
        "ringwatch_tls_reloads",
        "Times that changed certificates came into use",
        [(vec![], known.reloads)],
    )?;
    families.counter(
        "ringwatch_tls_reload_failures",
        "Times that changed certificates were refused",
        [(vec![], known.refusals)],
    )
}
