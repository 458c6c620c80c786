//! A disk that is full: nothing is lost in silence, and all goes on once there is room again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use wire::records::RecordKind;

use crate::lab::{Lab, wait_until};
use crate::sensor::Sensor;

/// A small file system in memory, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir(path).unwrap();
        let options = format!("size={size}");
        let none = None::<&str>;
        mount(none, path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { path: path.to_owned() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The collector may have files open still; the folder then stays, and that is all.
        let _ = umount(&self.path);
    }
}

#[test]
fn a_full_disk_is_said_and_costs_neither_frame_nor_record() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "4m");
    let filler = disk.path.join("filler");
    std::fs::write(&filler, vec![0; 3 << 20]).unwrap();
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    let frames: Vec<_> = (0..40).map(|number| vec![number; 1500]).collect();
    for number in 1..=30 {
        sensor.send_frames(number, &frames);
        sensor.send_records(number, &[(RecordKind::Flow, "{}")]);
    }

    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    assert!(collector.status()["store"]["errors"].as_u64().unwrap() > 0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(collector.log().matches("the store fails").count(), 1, "{}", collector.log());
    assert_eq!(collector.status()["sensors"][0]["connected"], true);

    std::fs::remove_file(&filler).unwrap();
    sensor.wait_for_ack(30, 30);
    assert_eq!(sensor.counts, (30, 30 * 40));
    assert_eq!(lab.events(), "{}\n".repeat(30));
    assert_eq!(collector.get("/healthz").0, 200);
    collector.stop();
    assert_eq!(crate::storing::read_segment(&lab.segments()[0]).1.len(), 30 * 40);
}

#[test]
fn a_second_signal_ends_at_once() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "1m");
    let mut collector = lab.start();
    std::fs::write(disk.path.join("filler"), vec![0; 2 << 20]).unwrap_err();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    sensor.send_frames(1, &[vec![1; 1500]]);
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    collector.signal(Signal::SIGTERM);
    collector.wait_for_line("stopping");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    collector.signal(Signal::SIGINT);
    assert_eq!(collector.wait().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_stop_with_a_full_disk_ends_and_says_what_was_not_stored() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "1m");
    let mut collector = lab.start();
    std::fs::write(disk.path.join("filler"), vec![0; 2 << 20]).unwrap_err();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    sensor.send_frames(1, &[vec![1; 1500]]);
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    collector.signal(Signal::SIGTERM);
    assert_eq!(collector.wait().code(), Some(1));
    assert!(collector.log().contains("batches could not be stored"), "{}", collector.log());
    sensor.read_to_end();
    assert_eq!(sensor.acknowledged, (0, 0));
}
