//! A sensor and a collector that somebody looks after as systemd does: what ends is started again.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::programs::{self, HttpReply};
use serde_json::Value;
use wire::ledger::Ledger;

use super::accepted::{Runs, Witness};
use super::load::{RATE, RECORD_RATE, frame};
use super::plan::{Fault, Round, Victim};
use crate::disk::SmallDisk;
use crate::site::{Collector, PATIENCE, Sensor, Settings, Site, find, sum_of};
use crate::traffic::Load;

/// Between two looks at the programs.
const LOOK: Duration = Duration::from_millis(50);
/// How long a program that ended by itself stays down, as in its unit.
const RESTART: Duration = Duration::from_secs(1);
/// How long things take that end by themselves: the wait for another dial grows to 30 s, and then a
/// backlog is delivered.
pub const LONG: Duration = Duration::from_secs(240);
/// More records than this do not wait for the collector; the load stands still then.
const MOST_BACKLOG: u64 = 15 * RECORD_RATE;

/// See the module. Fields are dropped in this order: programs before their disks.
pub struct Appliance {
    sensor: Sensor,
    collector: Collector,
    load: Option<Load>,
    pub witness: Witness,
    spool_disk: SmallDisk,
    store_disk: SmallDisk,
    settings: Settings,
    pub site: Site,
    /// Frames sent so far.
    pub sent: u64,
    /// Since when there is load, and for how long there was before.
    loading: (Instant, Duration),
    /// Runs of the sensor that found the disk of the spool full.
    pub full: BTreeSet<String>,
    /// The sensor may find the disk full, or may not have found out that it is not.
    may_be_full: bool,
    /// At least so many frames were acknowledged to runs that were killed.
    pub acknowledged: u64,
    /// Times that a program ended by itself.
    pub ended: u32,
}

impl Appliance {
    /// Starts everything, on disks of these sizes in MiB.
    pub fn start(site: Site, spool_mib: u64, store_mib: u64) -> Self {
        let spool_folder = PathBuf::from(site.path("disk"));
        let spool_disk = SmallDisk::mount(&spool_folder, (spool_mib + 64) << 10);
        let store_disk = SmallDisk::mount(Path::new(&site.path("store")), store_mib << 10);
        let witness = Witness::start(&spool_folder.join("spool"), &spool_folder.join("kept"));
        let settings = Settings {
            spool: format!("path = \"disk/spool\"\nmax_mib = {spool_mib}"),
            export: "frames = \"all\"\nsnaplen = 64\n".to_owned(),
            more: "connections_per_second = 1000000\nflows = false\n\
                   [detect]\nprofile = \"strict\"\nmemory_mib = 16\n"
                .to_owned(),
            ..Settings::frames("all")
        };
        let collector = site.start_collector_with("min_free_percent = 0\n");
        let sensor = site.start_sensor(&settings);
        Self {
            sensor,
            collector,
            load: None,
            witness,
            spool_disk,
            store_disk,
            settings,
            site,
            sent: 0,
            loading: (Instant::now(), Duration::ZERO),
            full: BTreeSet::new(),
            may_be_full: false,
            acknowledged: 0,
            ended: 0,
        }
    }

    /// Sends the load from where it stopped.
    pub fn go(&mut self) {
        if self.load.is_none() {
            self.load = Some(Load::made(&self.site.lab, 0, self.sent, RATE, frame));
            self.loading.0 = Instant::now();
        }
    }

    /// Ends the load.
    pub fn halt(&mut self) {
        if let Some(load) = self.load.take() {
            self.sent += load.stop();
            self.loading.1 += self.loading.0.elapsed();
        }
    }

    /// How long there was load, when there is none.
    pub const fn loaded(&self) -> Duration {
        self.loading.1
    }

    /// One round, at the end of which everything is started again and no fault is left.
    pub fn round(&mut self, round: Round) {
        if round.is_calm {
            self.wait("calm", Self::is_well);
        }
        if self.backlog().is_some_and(|records| records > MOST_BACKLOG) {
            self.halt();
            self.wait("shorter backlog", |own| {
                own.backlog().is_some_and(|records| records < MOST_BACKLOG / 10)
            });
        }
        self.go();
        self.pass(round.moment, None);
        let (fault, mut left) = round.fault.unzip();
        if let Some(fault) = fault {
            self.begin(fault);
        }
        if let Some((victim, after, down)) = round.kill {
            self.pass(after, fault);
            left = left.map(|left| left.saturating_sub(after));
            self.kill(victim);
            self.spend(down, fault);
            self.revive(victim);
        }
        if let Some((fault, left)) = fault.zip(left) {
            self.pass(left, Some(fault));
            self.end(fault);
        }
    }

    /// Lets time pass, and looks after the programs.
    fn pass(&mut self, time: Duration, fault: Option<Fault>) {
        let until = Instant::now() + time;
        loop {
            self.tend();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.spend(left.min(LOOK), fault);
        }
    }

    /// Lets time pass in which a disk stays full.
    fn spend(&self, time: Duration, fault: Option<Fault>) {
        let until = Instant::now() + time;
        loop {
            match fault {
                Some(Fault::SpoolFull) => self.spool_disk.fill(),
                Some(Fault::StoreFull) => self.store_disk.fill(),
                Some(Fault::Silence | Fault::Reset) | None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(5)));
        }
    }

    fn begin(&mut self, fault: Fault) {
        let verdict = match fault {
            Fault::SpoolFull => {
                self.may_be_full = true;
                return self.spool_disk.fill();
            }
            Fault::StoreFull => return self.store_disk.fill(),
            Fault::Silence => "drop",
            Fault::Reset => "reject with tcp reset",
        };
        for rule in [
            "add table inet cut".to_owned(),
            "add chain inet cut out { type filter hook output priority 0; }".to_owned(),
            "add chain inet cut in { type filter hook input priority 0; }".to_owned(),
            format!("add rule inet cut out tcp dport 4750 {verdict}"),
            format!("add rule inet cut in tcp sport 4750 {verdict}"),
        ] {
            self.site.lab.sensor().run("nft", &[&rule]);
        }
    }

    fn end(&self, fault: Fault) {
        match fault {
            Fault::SpoolFull => self.spool_disk.make_room(),
            Fault::StoreFull => self.store_disk.make_room(),
            Fault::Silence | Fault::Reset => {
                self.site.lab.sensor().run("nft", &["delete table inet cut"]);
            }
        }
    }

    fn kill(&mut self, victim: Victim) {
        if victim.is_sensor() {
            let known = self.sensor_metrics().map_or(0, |metrics| acknowledged_frames(&metrics));
            self.note_run();
            self.sensor.process.kill();
            assert_unharmed(&self.sensor.process.stderr());
            self.acknowledged += known;
        }
        if victim.is_collector() {
            self.status().as_ref().map(assert_nothing_missed);
            self.collector.process.kill();
            assert_unharmed(&self.collector.process.stderr());
        }
    }

    /// Starts what was killed, and waits for nothing.
    fn revive(&mut self, victim: Victim) {
        if victim.is_collector() {
            self.collector = self.site.spawn_collector("min_free_percent = 0\n");
        }
        if victim.is_sensor() {
            self.witness.copy(&self.site.path(""));
            // Nobody reads the sensor's own file but to know its run.
            File::create(self.events_file()).unwrap();
            self.sensor = self.site.spawn_sensor(self.site.lab.sensor(), &self.settings);
        }
    }

    /// Starts what ended by itself.
    fn tend(&mut self) {
        let is_down = (!self.sensor.process.is_running(), !self.collector.process.is_running());
        let (victim, process) = match is_down {
            (false, false) => return self.note_run(),
            (true, false) => (Victim::Sensor, &mut self.sensor.process),
            (_, true) => (Victim::Collector, &mut self.collector.process),
        };
        let status = process.wait(PATIENCE);
        println!("{victim:?} ended with {status}: {}", process.describe());
        assert_unharmed(&process.stderr());
        // 2 is a bad configuration, and none a crash. Where a disk is full or the machine has no time, they end by 1.
        assert_eq!(status.code(), Some(1), "{}", process.describe());
        self.ended += 1;
        std::thread::sleep(RESTART);
        self.revive(victim);
    }

    /// Remembers which run of the sensor finds the disk of its spool full.
    fn note_run(&mut self) {
        if !self.may_be_full {
            return;
        }
        self.full.extend(last_run(&self.events_file()));
        let is_failing = |metrics: String| sum_of(&metrics, "ringwatch_spool_failing", "") > 0;
        let space = nix::sys::statvfs::statvfs(self.site.path("disk").as_str()).unwrap();
        if space.blocks_free() > 0 && self.sensor_metrics().is_some_and(|it| !is_failing(it)) {
            self.may_be_full = false;
        }
    }

    /// Waits until `holds`, and looks after the programs meanwhile.
    pub fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !holds(self) {
            let context = || {
                format!(
                    "{}\n{}\n{:#}",
                    self.sensor.process.describe(),
                    self.collector.process.describe(),
                    self.status().unwrap_or_default()
                )
            };
            assert!(Instant::now() < deadline, "no {what} within {LONG:?}: {}", context());
            self.tend();
            std::thread::sleep(LOOK);
        }
    }

    /// Everything runs, is connected and finds nothing wrong.
    fn is_well(&self) -> bool {
        let is_connected = self.sensor_metrics().is_some_and(|metrics| {
            sum_of(&metrics, "ringwatch_uplink_connected", "") == 1
                && sum_of(&metrics, "ringwatch_spool_failing", "") == 0
        });
        is_connected
            && self.status().is_some_and(|status| status["problems"] == Value::Array(Vec::new()))
    }

    /// Records that wait for the collector.
    fn backlog(&self) -> Option<u64> {
        Some(sum_of(&self.sensor_metrics()?, "ringwatch_spool_records", ""))
    }

    /// All that was accepted is stored, and all that is made of it is up to date.
    pub fn is_drained(&self) -> bool {
        // The `stats` event of every other second is a record too.
        let is_stored = self.backlog().is_some_and(|records| records < 3);
        is_stored
            && self.is_well()
            && self.status().is_some_and(|status| {
                let store = &status["store"];
                store["events_behind"].as_u64() < Some(3)
                    && store["index_behind"].as_u64() < Some(3)
            })
    }

    fn sensor_metrics(&self) -> Option<String> {
        let reply = self.ask(self.site.lab.sensor(), "http://127.0.0.1:8475/metrics")?;
        Some(reply.body)
    }

    /// The collector's status, if it answers.
    pub fn status(&self) -> Option<Value> {
        let reply = self.ask(self.site.lab.generator(), "http://127.0.0.1:8480/api/v1/status")?;
        Some(reply.json())
    }

    fn ask(&self, namespace: &perf::lab::Namespace, url: &str) -> Option<HttpReply> {
        namespace.within(|| programs::http_get(url)).ok()
    }

    /// Frames that the running sensor knows to be stored, and those that the running collector stored.
    pub fn frames(&self) -> Option<(u64, u64)> {
        let acknowledged = acknowledged_frames(&self.sensor_metrics()?);
        let status = self.status()?;
        Some((acknowledged, find(&status, "web-0")["frames"].as_u64()?))
    }

    fn events_file(&self) -> PathBuf {
        self.site.path("web-0.json").into()
    }

    /// Ends the sensor and then the collector by SIGINT. Gives the ledger that the sensor ended with, and what the
    /// collector showed last.
    pub fn stop(mut self) -> Ended {
        let status = self.sensor.process.stop(Signal::SIGINT, PATIENCE);
        let log = self.sensor.process.stderr();
        // A machine with too much to do may not let a worker run for longer than the sensor waits for one.
        let expected = i32::from(log.contains("worker stands still"));
        assert_eq!(status.code(), Some(expected), "{}", self.sensor.process.describe());
        assert!(log.contains("the ledger adds up"), "{log}");
        assert_unharmed(&log);
        let last: Value = serde_json::from_slice(&last_line(&self.events_file()).unwrap()).unwrap();
        let ledger = serde_json::from_value(last["ringwatch"]["ledger"].clone()).unwrap();
        self.wait_away();
        let shown = self.status().unwrap();
        assert_unharmed(&self.collector.process.stderr());
        // Dropped from the last to the first.
        let Self { site, store_disk, spool_disk, witness, collector, acknowledged, .. } = self;
        let store = collector.end();
        Ended {
            ledger,
            shown,
            store,
            witness,
            acknowledged,
            _disks: [spool_disk, store_disk],
            _site: site,
        }
    }

    fn wait_away(&self) {
        let is_away =
            || self.status().is_some_and(|status| find(&status, "web-0")["connected"] == false);
        crate::site::wait_until("goodbye", PATIENCE, is_away, || format!("{:#?}", self.status()));
    }
}

/// What an appliance left behind.
pub struct Ended {
    /// As the last `stats` event has it.
    pub ledger: Ledger,
    /// The collector's last status.
    pub shown: Value,
    pub store: PathBuf,
    pub witness: Witness,
    pub acknowledged: u64,
    _disks: [SmallDisk; 2],
    _site: Site,
}

fn acknowledged_frames(metrics: &str) -> u64 {
    sum_of(metrics, "ringwatch_uplink_frames_total", "outcome=\"acknowledged\"")
}

/// The collector misses nothing, and was told of no record that is lost.
pub fn assert_nothing_missed(status: &Value) {
    for sensor in status["sensors"].as_array().unwrap() {
        let missed = (&sensor["missing"], &sensor["gap_records"]);
        assert_eq!(missed, (&0.into(), &0.into()), "{status:#}");
    }
    assert_eq!(status["store"]["damaged_bytes"], 0, "{status:#}");
}

fn assert_unharmed(log: &str) {
    assert!(!log.contains("panicked"), "{log}");
}

/// The last whole line of a file.
fn last_line(path: &Path) -> Option<Vec<u8>> {
    let mut file = OpenOptions::new().read(true).open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    tail.truncate(tail.iter().rposition(|byte| *byte == b'\n')?);
    let begin = tail.iter().rposition(|byte| *byte == b'\n')?;
    Some(tail[begin + 1..].to_vec())
}

/// The run that wrote the last line of a file of events.
fn last_run(path: &Path) -> Option<String> {
    Some(Runs::default().id_of(&last_line(path)?).run.to_string())
}
