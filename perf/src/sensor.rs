//! A sensor that captures in a namespace, with its configuration and its events in files.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::events::Events;
use crate::lab::Namespace;
use crate::process::Process;
use crate::programs::{self, HttpReply};

/// How long anything may take that a sensor does.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running sensor; killed when dropped.
#[derive(Debug)]
pub struct Sensor {
    process: Process,
    folder: TempDir,
}

impl Sensor {
    /// A configuration with small rings and tables and no API, so that many sensors can run at once.
    pub const SMALL: &str = "[capture]\nring_mib = 16\n[flow]\nflows = 20000\n[api]\nlisten = ''\n";

    /// Starts a sensor and waits until it captures. `configuration` is the text of its file; the
    /// events go to a file of its own.
    ///
    /// # Panics
    /// If it does not come to capture; shows what it said.
    #[must_use]
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        workers: u16,
        configuration: &str,
    ) -> Self {
        let folder = TempDir::new().unwrap_or_else(|error| panic!("temporary folder: {error}"));
        let file = folder.path().join("sensor.toml");
        fs::write(&file, configuration).unwrap_or_else(|error| panic!("{error}"));
        let mut command = programs::sensor();
        command.arg("--config").arg(file).args(["-i", interface]);
        command.args(["--workers", &workers.to_string()]);
        command.arg("--events").arg(folder.path().join("eve.json"));
        let mut process = namespace.spawn(&command);
        process.wait_for_line("capturing", PATIENCE);
        Self { process, folder }
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Where the events go.
    #[must_use]
    pub fn events_path(&self) -> PathBuf {
        self.folder.path().join("eve.json")
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::parse(&fs::read_to_string(self.events_path()).unwrap_or_default())
    }

    /// Waits until the events are as `is_enough` wants them.
    ///
    /// # Panics
    /// If they do not become so.
    pub fn wait_for(&mut self, what: &str, is_enough: impl Fn(&Events) -> bool) -> Events {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_late = Instant::now() >= deadline;
            let events = self.events();
            if is_enough(&events) {
                return events;
            }
            assert!(!is_late, "no {what} in {:#?}{}", events.all(), self.process.describe());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks its API, which is on port 8475 of loopback.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn ask(namespace: &Namespace, path: &str) -> HttpReply {
        let url = format!("http://127.0.0.1:8475{path}");
        let reply = namespace.within(|| programs::http_get(&url));
        reply.unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// Sends a signal and gives all events. The sensor ends with exit code 0, and the last event is a
    /// `stats` event whose ledger adds up.
    ///
    /// # Panics
    /// If not; shows what the sensor said.
    pub fn stop(&mut self, signal: Signal) -> Events {
        let status = self.process.stop(signal, PATIENCE);
        assert!(status.success(), "{status}{}", self.process.describe());
        let events = self.events();
        let _ = events.ledger();
        events
    }
}
