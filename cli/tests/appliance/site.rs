//! One collector and its sensors on one machine.
//!
//! ```text
//!   generator, with the collector          sensor 0
//!     g0  10.99.0.1   ── captured ──         s0  10.99.0.2
//!     m0  10.150.0.1  ── management ──       m0  10.150.0.2        sensor 1: 10.100, 10.151, …
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::lab::{Lab, Namespace};
use perf::process::Process;
use perf::programs::{self, HttpReply};
use serde_json::Value;
use tempfile::TempDir;
use wire::ledger::Ledger;

use crate::captures::{self, Captured};

/// How long anything may take that takes no time by itself. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The collector's address on the management link of the first sensor.
pub const MANAGEMENT: &str = "10.150.0.1:4750";
/// The collector's address on the captured link of the first sensor.
pub const CAPTURED: &str = "10.99.0.1:4750";
/// The same by IPv6, once [`Site::add_ipv6`] was called.
pub const CAPTURED_V6: &str = "[fd00:99::1]:4750";
/// A name of the collector, once [`Site::name_collector`] gave it an address.
pub const NAMED: &str = "ids.test:4750";

/// Namespaces with a captured and a management link for each sensor, and a folder with
/// certificates, configuration and store. All gone when dropped.
pub struct Site {
    pub lab: Lab,
    folder: TempDir,
}

/// What differs between sensors. The rest stands in [`Site::start_sensor`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the collector is.
    pub collector: String,
    /// Section `export`.
    pub export: String,
    /// More sections, or nothing.
    pub more: String,
    /// Name of the certificate.
    pub name: String,
    /// Interfaces, as TOML.
    pub interface: String,
    /// Section `spool`; empty: a folder of the sensor's own.
    pub spool: String,
}

impl Settings {
    /// The first sensor, exporting these frames over the management link.
    pub fn frames(frames: &str) -> Self {
        Self {
            collector: MANAGEMENT.to_owned(),
            export: format!("frames = {frames:?}\n"),
            more: String::new(),
            name: "web-0".to_owned(),
            interface: "\"s0\"".to_owned(),
            spool: String::new(),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Made by few of them.
        let _ = fs::remove_dir_all(self.hosts_folder());
    }
}

impl Site {
    /// A site with so many sensors, called `web-0`, `web-1`, … `None` where the machine cannot have
    /// one.
    pub fn new(sensors: u8) -> Option<Self> {
        let mut lab = Lab::new()?;
        for _ in 1..sensors {
            lab.add_sensor();
        }
        let site = Self { lab, folder: tempfile::tempdir().unwrap() };
        let pki = site.path("pki");
        site.ringwatch(&["pki", "init", &pki]);
        let mut issue = vec!["pki".to_owned(), "issue".into(), pki.clone()];
        issue.extend(
            ["collector", "ids", "--host", "ids.test", "--host", "fd00:99::1"].map(str::to_owned),
        );
        for number in 0..sensors {
            site.add_management_link(number);
            for network in [99, 150] {
                issue.extend(["--host".into(), format!("10.{}.0.1", network + number)]);
            }
            site.ringwatch(&["pki", "issue", &pki, "sensor", &format!("web-{number}")]);
        }
        let issue: Vec<&str> = issue.iter().map(String::as_str).collect();
        site.ringwatch(&issue);
        Some(site)
    }

    fn add_management_link(&self, number: u8) {
        let (near, far) = (self.lab.generator(), &self.lab.links()[usize::from(number)].sensor);
        near.ip(&format!("link add m{number} type veth peer name m0 netns {}", far.name()));
        let network = 150 + number;
        for (namespace, interface, host) in [(near, format!("m{number}"), 1), (far, "m0".into(), 2)]
        {
            namespace.ip(&format!("addr add 10.{network}.0.{host}/24 dev {interface}"));
            namespace.ip(&format!("link set {interface} up"));
        }
    }

    /// Gives both ends of the captured link of the first sensor an IPv6 address.
    pub fn add_ipv6(&self) {
        for (namespace, interface, host) in
            [(self.lab.generator(), "g0", 1), (self.lab.sensor(), "s0", 2)]
        {
            let parameter = format!("net/ipv6/conf/{interface}/disable_ipv6");
            namespace.set_kernel_parameter(&parameter, "0");
            namespace.ip(&format!("addr add fd00:99::{host}/64 dev {interface} nodad"));
        }
    }

    /// Makes the collector's name lead to this address, for sensors that are started afterwards. May be called
    /// again: they then ask anew.
    pub fn name_collector(&self, address: &str) {
        let folder = self.hosts_folder();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts"), format!("{address} ids.test\n")).unwrap();
    }

    /// What `ip netns exec` puts in the place of files in `/etc`.
    fn hosts_folder(&self) -> PathBuf {
        Path::new("/etc/netns").join(self.lab.sensor().name())
    }

    /// A path in the folder of this site.
    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs `ringwatch` to its end where the collector is, and gives what it printed.
    pub fn ringwatch(&self, arguments: &[&str]) -> String {
        let program = programs::path("ringwatch");
        let output = self.lab.generator().run(program.to_str().unwrap(), arguments);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the collector and waits until it listens.
    pub fn start_collector(&self) -> Collector {
        self.start_collector_with("")
    }

    /// Starts the collector with further sections in its configuration.
    pub fn start_collector_with(&self, more: &str) -> Collector {
        let mut collector = self.spawn_collector(more);
        collector.process.wait_for_line("collector started", PATIENCE);
        collector
    }

    /// Starts the collector, which may refuse to run. `more` begins within section `store`.
    pub fn spawn_collector(&self, more: &str) -> Collector {
        let text = format!(
            "[listen]\nsensors = \"[::]:4750\"\napi = \"127.0.0.1:8480\"\n\
             [tls]\n{}\n[store]\npath = {:?}\nsegment_age = \"24h\"\n{more}",
            self.tls("ids"),
            self.path("store"),
        );
        let config = self.path("collector.toml");
        fs::write(&config, text).unwrap();
        let mut command = programs::collector();
        command.args(["--config", &config]);
        let process = self.lab.generator().spawn(&command);
        Collector { process, store: self.path("store").into() }
    }

    /// Starts the first sensor and waits until it captures.
    pub fn start_sensor(&self, settings: &Settings) -> Sensor {
        self.start_sensor_in(&self.lab.links()[0].sensor, settings)
    }

    /// Starts a sensor in its namespace and waits until it captures.
    pub fn start_sensor_in(&self, namespace: &Namespace, settings: &Settings) -> Sensor {
        let mut sensor = self.spawn_sensor(namespace, settings);
        sensor.process.wait_for_line("capturing;", PATIENCE);
        sensor
    }

    /// Starts a sensor, which may refuse to run.
    pub fn spawn_sensor(&self, namespace: &Namespace, settings: &Settings) -> Sensor {
        let Settings { collector, export, more, name, interface, spool } = settings;
        let events = self.path(&format!("{name}.json"));
        let own_spool = format!("path = \"{name}.spool\"");
        let spool = if spool.is_empty() { &own_spool } else { spool };
        let text = format!(
            "[capture]\ninterface = {interface}\nworkers = 2\nring_mib = 64\nblock_kib = 256\n\
             [export]\n{export}\n\
             [uplink]\ncollectors = [{collector:?}]\n{}\n\
             [spool]\n{spool}\n\
             [events]\nfile = {events:?}\n{more}\n",
            self.tls(name),
        );
        let config = self.path(&format!("{name}.toml"));
        fs::write(&config, text).unwrap();
        let mut command = programs::sensor();
        command.args(["--config", &config, "--stats-interval", "2"]);
        Sensor {
            process: namespace.spawn(&command),
            name: name.clone(),
            namespace: namespace.name().to_owned(),
            events: events.into(),
        }
    }

    fn tls(&self, name: &str) -> String {
        for kind in ["ca", "crl"] {
            if !fs::exists(self.host_file(name, kind)).unwrap() {
                self.copy_to_host(name, kind);
            }
        }
        let file = |name: &str| self.path(&format!("pki/{name}"));
        format!(
            "ca = {:?}\ncrl = {:?}\ncertificate = {:?}\nkey = {:?}",
            self.host_file(name, "ca"),
            self.host_file(name, "crl"),
            file(&format!("{name}.pem")),
            file(&format!("{name}.key.pem")),
        )
    }

    /// Where the program called `name` has its own copy of the authority's `ca` or `crl`.
    pub fn host_file(&self, name: &str, kind: &str) -> String {
        self.path(&format!("{name}.{kind}.pem"))
    }

    /// Copies the authority's `ca` or `crl` to where the program called `name` has it.
    pub fn copy_to_host(&self, name: &str, kind: &str) {
        self.write_to_host(
            name,
            kind,
            &fs::read_to_string(self.path(&format!("pki/{kind}.pem"))).unwrap(),
        );
    }

    /// Writes the `ca` or `crl` of the program called `name`, at once.
    pub fn write_to_host(&self, name: &str, kind: &str, text: &str) {
        let draft = self.path("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.host_file(name, kind)).unwrap();
    }

    /// What a sensor's HTTP interface says.
    pub fn ask_sensor(&self, sensor: &Sensor, path: &str) -> HttpReply {
        let links = self.lab.links();
        let link = links.iter().find(|link| link.sensor.name() == sensor.namespace).unwrap();
        ask(&link.sensor, 8475, path)
    }

    /// What the collector's HTTP interface says.
    pub fn ask_collector(&self, path: &str) -> HttpReply {
        ask(self.lab.generator(), 8480, path)
    }

    /// The collector's status.
    pub fn status(&self) -> Value {
        self.ask_collector("/api/v1/status").json()
    }

    /// The sum of a metric of a sensor over all labels that contain `labels`.
    pub fn metric(&self, sensor: &Sensor, name: &str, labels: &str) -> u64 {
        sum_of(&self.ask_sensor(sensor, "/metrics").body, name, labels)
    }

    /// Waits until a sensor is connected.
    pub fn wait_connected(&self, sensor: &Sensor) {
        let is_connected = || self.metric(sensor, "ringwatch_uplink_connected", "") == 1;
        wait_until("connection", PATIENCE, is_connected, || sensor.process.describe());
    }

    /// Sensors, then the collector: ends them, and checks the ledger of each against the store.
    pub fn finish(&self, sensors: Vec<Sensor>, collector: Collector) -> Outcome {
        let ended: Vec<Ended> = sensors.into_iter().map(Sensor::stop).collect();
        self.check_shown_ledgers(&ended);
        let store = collector.stop();
        let outcome = Outcome { ended, store: Stored::read(&store) };
        outcome.check();
        outcome
    }

    /// The collector shows the last ledger of every sensor that said goodbye.
    fn check_shown_ledgers(&self, ended: &[Ended]) {
        let is_away = || {
            let status = self.status();
            status["sensors"].as_array().unwrap().iter().all(|sensor| sensor["connected"] == false)
        };
        wait_until("goodbye of all sensors", PATIENCE, is_away, || self.status().to_string());
        let status = self.status();
        for sensor in ended {
            let shown = find(&status, &sensor.name);
            let ledger: Ledger = serde_json::from_value(shown["ledger"].clone()).unwrap();
            ledger.check().unwrap();
            // One later than the `stats` event: that event itself is in it.
            assert_eq!(ledger.frames, sensor.ledger.frames, "{shown:#}");
            assert_eq!(ledger.interfaces, sensor.ledger.interfaces, "{shown:#}");
            assert_eq!(ledger.records.produced, sensor.ledger.records.produced + 1, "{shown:#}");
            assert_eq!(ledger.records.in_flight, 0, "{shown:#}");
        }
    }
}

fn ask(namespace: &Namespace, port: u16, path: &str) -> HttpReply {
    let url = format!("http://127.0.0.1:{port}{path}");
    namespace.within(|| programs::http_get(&url)).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// The entry of a sensor in a collector's status.
pub fn find<'a>(status: &'a Value, name: &str) -> &'a Value {
    let sensors = status["sensors"].as_array().unwrap();
    let found = sensors.iter().find(|sensor| sensor["name"] == name);
    found.unwrap_or_else(|| panic!("no sensor {name} in {status:#}"))
}

/// Sum of a metric over all its lines whose labels contain `labels`.
pub fn sum_of(metrics: &str, name: &str, labels: &str) -> u64 {
    let lines = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let own = series.strip_prefix(name)?;
        let is_own = own.is_empty() || own.starts_with('{');
        (is_own && own.contains(labels)).then(|| value.parse::<f64>().unwrap())
    });
    lines.sum::<f64>() as u64
}

/// Waits until `holds`; fails with what `context` says.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> bool,
    context: impl Fn() -> String,
) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "no {what} within {limit:?}: {}", context());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A running sensor; killed when dropped.
pub struct Sensor {
    pub process: Process,
    pub name: String,
    namespace: String,
    events: PathBuf,
}

impl Sensor {
    /// Lines of its own event file so far.
    pub fn events(&self) -> String {
        fs::read_to_string(&self.events).unwrap_or_default()
    }

    /// Ends it by SIGINT: exit code 0, a last `stats` event, a ledger that adds up, no panic.
    pub fn stop(mut self) -> Ended {
        let status = self.process.stop(Signal::SIGINT, PATIENCE);
        let said = self.process.stderr();
        assert_eq!(status.code(), Some(0), "{}", self.process.describe());
        assert!(!said.contains("panicked"), "{}", self.process.describe());
        let text = self.events();
        assert!(text.ends_with('\n'), "the last event is torn: {text:?}");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!(last["event_type"], "stats", "{last}");
        let ledger: Ledger = serde_json::from_value(last["ringwatch"]["ledger"].clone()).unwrap();
        ledger.check().unwrap_or_else(|imbalance| panic!("{imbalance}: {last:#}"));
        assert!(said.contains("the ledger adds up"), "{said}");
        // The last event cannot know of itself.
        assert_eq!(ledger.records.produced, lines.len() as u64 - 1, "{last:#}");
        Ended { name: self.name.clone(), ledger, lines, log: said }
    }
}

/// What a sensor left behind.
pub struct Ended {
    pub name: String,
    /// As the last `stats` event has it.
    pub ledger: Ledger,
    /// All events, as the sensor itself wrote them.
    pub lines: Vec<String>,
    pub log: String,
}

impl Ended {
    /// Frames given up for this reason.
    pub fn lost_frames(&self, reason: &str) -> u64 {
        self.ledger.frames.lost.get(reason).copied().unwrap_or(0)
    }
}

/// A running collector; killed when dropped.
pub struct Collector {
    pub process: Process,
    store: PathBuf,
}

impl Collector {
    /// The event log.
    pub fn events(&self) -> String {
        fs::read_to_string(self.store.join("events/eve.json")).unwrap_or_default()
    }

    /// Waits for an event line of the store that contains all `parts`.
    pub fn wait_for_event(&self, parts: &[&str]) {
        let is_there =
            || self.events().lines().any(|line| parts.iter().all(|part| line.contains(part)));
        wait_until(&format!("event with {parts:?}"), PATIENCE, is_there, || self.events());
    }

    /// Ends it by SIGINT: exit code 0, nothing but segments left, no panic. Gives the store's folder.
    pub fn stop(self) -> PathBuf {
        let store = self.end();
        for name in files_of(&store.join("frames")) {
            assert!(name.ends_with(".pcapng") && !name.starts_with('.'), "{name} is left");
        }
        store
    }

    /// Ends it by SIGINT: exit code 0, no panic. Gives the store's folder.
    pub fn end(mut self) -> PathBuf {
        let status = self.process.stop(Signal::SIGINT, PATIENCE);
        assert_eq!(status.code(), Some(0), "{}", self.process.describe());
        assert!(!self.process.stderr().contains("panicked"), "{}", self.process.describe());
        self.store.clone()
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        assert!(!self.process.stderr().contains("panicked"), "{}", self.process.describe());
        self.process.kill();
    }
}

/// Names of the files in a folder.
pub fn files_of(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What lies in a store after the end.
pub struct Stored {
    /// Sealed segments, oldest first.
    pub segments: Vec<PathBuf>,
    /// Frames by `SENSOR/INTERFACE`, in the order of the files.
    pub frames: BTreeMap<String, Vec<Captured>>,
    /// Event lines.
    pub lines: Vec<String>,
}

impl Stored {
    /// Reads a store that nobody writes to any more.
    pub fn read(store: &Path) -> Self {
        let entries = fs::read_dir(store.join("frames")).unwrap();
        let mut segments: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        segments.sort();
        let mut frames: BTreeMap<String, Vec<Captured>> = BTreeMap::new();
        for segment in &segments {
            for (interface, found) in captures::read_pcapng(segment) {
                frames.entry(interface).or_default().extend(found);
            }
        }
        let lines = fs::read_to_string(store.join("events/eve.json")).unwrap_or_default();
        Self { segments, frames, lines: lines.lines().map(str::to_owned).collect() }
    }

    /// Event lines of one sensor.
    pub fn lines_of(&self, sensor: &str) -> Vec<&str> {
        let mark = format!("\"sensor\":{sensor:?}");
        self.lines.iter().filter(|line| line.contains(&mark)).map(String::as_str).collect()
    }

    fn frames_of(&self, sensor: &str) -> u64 {
        let prefix = format!("{sensor}/");
        let own = self.frames.iter().filter(|(name, _)| name.starts_with(&prefix));
        own.map(|(_, frames)| frames.len() as u64).sum()
    }
}

/// Event lines of one run and one stream, each in its order: those that go first (alerts, anomalies), or
/// all others.
pub type Lanes = BTreeMap<(String, bool), Vec<String>>;

/// Event lines by run and stream: between streams there is no order.
pub fn lanes<'l>(lines: impl IntoIterator<Item = &'l str>) -> Lanes {
    let mut lanes = Lanes::new();
    for line in lines {
        let event: Value = serde_json::from_str(line).unwrap();
        let id = event["ringwatch"]["event_id"].as_str().unwrap();
        let run = id.rsplit_once('-').unwrap().0.to_owned();
        let is_first = matches!(event["event_type"].as_str(), Some("alert" | "anomaly"));
        lanes.entry((run, is_first)).or_default().push(line.to_owned());
    }
    lanes
}

/// Everything that an appliance left behind.
pub struct Outcome {
    pub ended: Vec<Ended>,
    pub store: Stored,
}

impl Outcome {
    /// What each ledger says of the collector is what the collector has.
    fn check(&self) {
        for sensor in &self.ended {
            let Ended { name, ledger, lines, .. } = sensor;
            let stored = self.store.frames_of(name);
            let unheard = sensor.lost_frames("disconnected");
            let acknowledged = ledger.frames.acknowledged;
            assert!(
                (acknowledged..=acknowledged + unheard).contains(&stored),
                "{name}: {stored} frames stored, {ledger:#?}"
            );
            let known = self.store.lines_of(name);
            if ledger.records.lost.is_empty() {
                let stored: std::collections::BTreeSet<&str> = known.iter().copied().collect();
                let missing: Vec<_> =
                    lines.iter().filter(|line| !stored.contains(line.as_str())).collect();
                assert!(missing.is_empty(), "{name}: not stored: {missing:#?}");
            }
            assert!(known.len() as u64 >= ledger.records.acknowledged, "{name}: {ledger:#?}");
        }
    }

    /// Nothing of any sensor was lost, neither a frame nor a record, and nothing is stored twice;
    /// but frames that came before the sensor was connected (neighbours greet each other) are not
    /// stored.
    pub fn assert_complete(&self) {
        for Ended { log, .. } in &self.ended {
            assert!(!log.contains("collector is away"), "{log}");
        }
        self.assert_delivered();
    }

    /// As [`Outcome::assert_complete`], but frames that came while the collector was away are not
    /// stored either.
    pub fn assert_delivered(&self) {
        for Ended { name, ledger, lines, .. } in &self.ended {
            assert_eq!(ledger.kernel_drops(), 0, "{name}: {ledger:#?}");
            assert!(ledger.interfaces.iter().all(|one| one.lost.is_empty()), "{ledger:#?}");
            let early = ledger.frames.lost.get("not_connected").copied().unwrap_or(0);
            let delivered = ledger.frames.acknowledged;
            assert_eq!(delivered + early, ledger.frames.produced, "{name}: {ledger:#?}");
            assert_eq!(ledger.records.acknowledged, ledger.records.produced, "{name}");
            assert_eq!(self.store.frames_of(name), delivered, "{name}");
            let written = lines.iter().map(String::as_str);
            let is_same = lanes(self.store.lines_of(name)) == lanes(written);
            assert!(is_same, "{name}: events differ");
        }
    }
}
