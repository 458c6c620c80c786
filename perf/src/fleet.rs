//! A collector, and a fleet of simulated sensors on it (`ringwatch-fleet`), over loopback.

use std::fs;
use std::io::{PipeWriter, Write, pipe};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::programs;

/// How long a program may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A folder with certificates, and with the store of a collector, which can be started any number of
/// times.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    sensors: u32,
    /// Where sensors connect, and the API.
    ports: [u16; 2],
}

/// The simulated sensors.
#[derive(Debug)]
pub struct Fleet {
    process: Process,
    orders: PipeWriter,
}

/// What the fleet says of itself: since its start, but for `connected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Sensors that are connected.
    pub connected: u64,
    /// Connections that the collector greeted.
    pub connects: u64,
    /// Attempts that it did not.
    pub failed_dials: u64,
    /// Records that the sensors made.
    pub made: u64,
    /// Records that an uplink did not take.
    pub not_taken: u64,
    /// Records that the collector acknowledged.
    pub acknowledged: u64,
    /// Records that were given up.
    pub lost: u64,
}

impl Site {
    /// Makes certificates for a collector and so many sensors.
    ///
    /// # Panics
    /// If that fails; shows what was said.
    #[must_use]
    pub fn new(sensors: u32) -> Self {
        let folder = TempDir::new().unwrap_or_else(|error| panic!("temporary folder: {error}"));
        let mut command = Command::new(programs::path("ringwatch-fleet"));
        command.arg("prepare").arg(folder.path()).args(["--sensors", &sensors.to_string()]);
        let mut prepare = Process::spawn(command);
        let status = prepare.wait(PATIENCE);
        assert!(status.success(), "{}", prepare.describe());
        let ports = free_ports();
        let text = format!(
            "[listen]\nsensors = \"127.0.0.1:{}\"\napi = \"127.0.0.1:{}\"\n\
             [tls]\nca = \"ca.pem\"\ncertificate = \"collector.pem\"\nkey = \"collector.key.pem\"\n\
             [store]\npath = \"store\"\n",
            ports[0], ports[1]
        );
        let config = folder.path().join("collector.toml");
        fs::write(&config, text).unwrap_or_else(|error| panic!("{}: {error}", config.display()));
        Self { folder, sensors, ports }
    }

    /// The folder; the collector's store is `store` in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the collector, and waits until it listens.
    #[must_use]
    pub fn start_collector(&self) -> Process {
        let mut command = programs::collector();
        command.arg("--config").arg(self.folder().join("collector.toml"));
        let mut collector = Process::spawn(command);
        collector.wait_for_line("collector started", PATIENCE);
        collector
    }

    /// Starts all sensors.
    ///
    /// # Panics
    /// If the system has no pipe for their orders.
    #[must_use]
    pub fn start_fleet(&self) -> Fleet {
        let mut command = Command::new(programs::path("ringwatch-fleet"));
        command.arg("run").arg(self.folder());
        command.args(["--sensors", &self.sensors.to_string()]);
        command.args(["--collector", &format!("127.0.0.1:{}", self.ports[0])]);
        let (input, orders) = pipe().unwrap_or_else(|error| panic!("a pipe: {error}"));
        Fleet { process: Process::spawn_with_input(command, input.into()), orders }
    }

    /// What the collector's API says at this path.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn ask(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.ports[1]);
        programs::http_get(&url).unwrap_or_else(|error| panic!("{url}: {error}")).body
    }

    /// The sum of all values of a metric of the collector.
    #[must_use]
    pub fn metric(&self, name: &str) -> f64 {
        let is_it = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let value =
            |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        self.ask("/metrics").lines().filter(is_it).filter_map(value).sum()
    }
}

impl Fleet {
    /// Its process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it said last; nothing so far at the begin.
    #[must_use]
    pub fn report(&self) -> Report {
        self.process.stdout_lines().last().map(|line| Report::read(line)).unwrap_or_default()
    }

    /// Waits until what it says satisfies `is_good`.
    ///
    /// # Panics
    /// If that is not so within `limit`.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        is_good: impl Fn(&Report) -> bool,
    ) -> Report {
        let deadline = Instant::now() + limit;
        loop {
            let report = self.report();
            if is_good(&report) {
                return report;
            }
            assert!(self.process.is_running(), "the fleet ended{}", self.process.describe());
            assert!(Instant::now() < deadline, "no {what} within {limit:?}: {report:?}");
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// From now on all sensors together make so many records a second.
    pub fn set_rate(&mut self, rate: u64) {
        self.order(&format!("rate {rate}"));
    }

    /// Has the sensors deliver what waits and end; gives what they said last.
    ///
    /// # Panics
    /// If they do not end in order.
    pub fn stop(mut self) -> Report {
        self.order("stop");
        let status = self.process.wait(PATIENCE);
        assert!(status.success(), "{}", self.process.describe());
        self.report()
    }

    fn order(&mut self, order: &str) {
        let written = writeln!(self.orders, "{order}");
        written.unwrap_or_else(|error| panic!("{order}: {error}{}", self.process.describe()));
    }
}

impl Report {
    fn read(line: &str) -> Self {
        let value: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"));
        Self {
            unix_ms: number("unix_ms"),
            connected: number("connected"),
            connects: number("connects"),
            failed_dials: number("failed_dials"),
            made: number("made"),
            not_taken: number("not_taken"),
            acknowledged: number("acknowledged"),
            lost: number("lost"),
        }
    }
}

/// Ends a collector in order.
///
/// # Panics
/// If it does not end so.
pub fn stop_collector(collector: &mut Process) {
    let status = collector.stop(Signal::SIGTERM, PATIENCE);
    assert!(status.success(), "{}", collector.describe());
}

/// Two ports that nobody listens at now: a collector that is started again must be where it was.
fn free_ports() -> [u16; 2] {
    let listen =
        || TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("a free port: {error}"));
    let listeners = [listen(), listen()];
    listeners.map(|listener| {
        listener.local_addr().unwrap_or_else(|error| panic!("its port: {error}")).port()
    })
}
