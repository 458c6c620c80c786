//! What the sensor says of traffic that it reads from a capture file.

use std::path::PathBuf;

use perf::events::Events;
use perf::pcap::{CaptureFile, Container, Format, Resolution};
use perf::programs;
use serde_json::Value;
use tempfile::TempDir;

use super::Stage;

/// Nanoseconds since 1970 at which captures begin, within a tick of 250 ms, not at its start.
pub const BEGIN: u64 = 1_700_000_000_100_000_000;

/// Capture files of the tests: times are kept to the nanosecond.
const FORMAT: Format = Format {
    container: Container::Pcap,
    resolution: Resolution::Nano,
    is_big_endian: false,
    link_type: 1,
};

/// Most bytes of a capture file, so that a debug build reads it in seconds.
const MOST_BYTES: usize = 12 << 20;

/// A capture file; gone when dropped.
#[derive(Debug)]
pub struct Capture {
    folder: TempDir,
    path: PathBuf,
}

impl Capture {
    /// The frames of a stage, in the order of their times.
    ///
    /// # Panics
    /// If the file is too large, or cannot be written.
    pub fn of(stage: &mut Stage) -> Self {
        let frames = stage.frames_in_order().iter();
        let file = CaptureFile::of(FORMAT, frames.map(|one| (BEGIN + one.time, &one.frame)));
        assert!(file.bytes().len() <= MOST_BYTES, "{} bytes of capture", file.bytes().len());
        let folder = TempDir::new().expect("a temporary folder can be made");
        let path = folder.path().join("capture.pcap");
        std::fs::write(&path, file.bytes()).expect("a capture can be written");
        Self { folder, path }
    }

    /// Where it lies.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// What the program says of it with so many workers, and `configuration` as the text of its file.
    ///
    /// # Panics
    /// If it does not read it to its end.
    pub fn events(&self, workers: usize, configuration: &str) -> Events {
        let file = self.folder.path().join("sensor.toml");
        // Connections are not looked at here.
        let events = "[events]\nfile = '-'\nnew_connections = false\n";
        std::fs::write(&file, format!("{events}{configuration}")).expect("a file can be written");
        let mut command = programs::sensor();
        command.arg("--config").arg(&file).arg("--read").arg(&self.path);
        command.args(["--workers", &workers.to_string()]);
        let output = command.output().expect("the sensor can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", output.status);
        let events = Events::parse(&String::from_utf8_lossy(&output.stdout));
        let _ = events.ledger();
        events
    }
}

/// The alerts as they were written, but for what tells workers and other events apart.
pub fn alerts_without_workers(events: &Events) -> Vec<Value> {
    let mut alerts: Vec<_> = events.of_type("alert").into_iter().cloned().collect();
    for ours in alerts.iter_mut().filter_map(|alert| alert["ringwatch"].as_object_mut()) {
        ours.remove("workers");
        ours.remove("event_id");
    }
    alerts
}
