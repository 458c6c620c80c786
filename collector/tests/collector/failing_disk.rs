//! A disk that is full: nothing is lost in silence, and all goes on once there is room again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;
use wire::message::Control;
use wire::records::RecordKind;

use crate::lab::{Lab, wait_until};
use crate::sensor::{Sensor, hello};

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
    assert_eq!(lab.events_of(&collector), "{}\n".repeat(30));
    assert_eq!(collector.get("/healthz").0, 200);
    collector.stop();
    assert_eq!(crate::storing::read_segment(&lab.segments()[0]).1.len(), 30 * 40);
}

#[test]
fn a_collector_killed_with_a_full_disk_starts_on_it_and_goes_on_when_there_is_room() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "8m");
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let join = |collector: &crate::lab::Collector| {
        Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5)
    };
    let mut sensor = join(&collector);
    for number in 1..=30 {
        sensor.send_frames(number, &[vec![1; 1500]]);
        sensor.send_records(number, &[(RecordKind::Flow, "{}")]);
    }
    sensor.wait_for_ack(30, 30);
    let filler = disk.path.join("filler");
    std::fs::write(&filler, vec![0; 16 << 20]).unwrap_err();
    collector.kill();

    let collector = lab.start();
    let mut sensor = join(&collector);
    assert_eq!(sensor.hello.resume.unwrap().records.0, 30);
    sensor.send_records(31, &[(RecordKind::Flow, "{}")]);
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    std::fs::remove_file(&filler).unwrap();
    sensor.wait_for_ack(31, 0);
    assert_eq!(lab.events_of(&collector), "{}\n".repeat(31));
    collector.stop();
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

#[test]
fn nothing_behind_a_batch_that_was_given_up_is_acknowledged() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "1m");
    let mut collector = lab.start();
    std::fs::write(disk.path.join("filler"), vec![0; 800 << 10]).unwrap();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    // The numbers do not pack.
    let numbers = (0..80_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 100_000);
    let numbers: Vec<_> = numbers.map(|number| number.to_string()).collect();
    let large = format!("{{\"pad\":[{}]}}", numbers.join(","));
    sensor.send_records(1, &[(RecordKind::Flow, &large)]);
    sensor.send_records(2, &[(RecordKind::Flow, "{}")]);
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    std::thread::sleep(Duration::from_millis(300));
    collector.signal(Signal::SIGINT);
    assert_eq!(collector.wait().code(), Some(1));
    assert!(collector.log().contains("2 batches could not be stored"), "{}", collector.log());
    sensor.read_to_end();
    assert_eq!(sensor.acknowledged, (0, 0));
    assert_eq!(lab.events(), "");
}

#[test]
fn a_record_log_that_cannot_be_synced_ends_the_collector_without_an_acknowledgement() {
    let lab = Lab::new();
    let mut collector = lab.start();
    // Takes every write, and refuses fsync.
    let segment = lab.store().join("records/00000000000000000001.log");
    std::os::unix::fs::symlink("/dev/null", segment).unwrap();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    sensor.send_records(1, &[(RecordKind::Flow, "{}")]);
    assert_eq!(collector.wait().code(), Some(1));
    let log = collector.log();
    assert!(log.contains("records to the disk; records that were not acknowledged"), "{log}");
    sensor.read_to_end();
    assert_eq!(sensor.acknowledged, (0, 0));
    assert_eq!(lab.events(), "");
}

#[test]
fn an_event_log_without_room_holds_up_no_acknowledgement_and_catches_up() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    std::fs::create_dir_all(lab.store()).unwrap();
    let disk = SmallDisk::mount(&lab.store().join("events"), "1m");
    let filler = disk.path.join("filler");
    std::fs::write(&filler, vec![0; 1000 << 10]).unwrap();
    let collector = lab.start();
    let own = lab.authority.sensor("a");
    let mut sensor = Sensor::join(&collector.sensors, &lab.authority.certificate(), &own, "a", 5);
    let event = |number: u64| format!("{{\"n\":{number},\"pad\":\"{}\"}}", "x".repeat(1000));
    for number in 1..=100 {
        sensor.send_records(number, &[(RecordKind::Flow, &event(number))]);
    }
    sensor.wait_for_ack(100, 0);
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing event log", is_failing, || collector.log());
    collector.wait_for_line("the event log cannot be written");
    assert!(collector.status()["store"]["events_behind"].as_u64().unwrap() > 0);
    std::fs::remove_file(&filler).unwrap();
    let sent: String = (1..=100).map(|number| event(number) + "\n").collect();
    assert_eq!(lab.events_of(&collector), sent);
    assert_eq!(collector.get("/healthz").0, 200);
    collector.stop();
    assert_eq!(lab.events(), sent);
}

#[test]
fn a_sensor_that_comes_again_is_greeted_when_all_that_was_taken_is_stored() {
    if !perf::tools::require_root() {
        return;
    }
    let lab = Lab::new();
    let disk = SmallDisk::mount(&lab.store(), "1m");
    let collector = lab.start();
    let filler = disk.path.join("filler");
    std::fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    let (own, ca) = (lab.authority.sensor("a"), lab.authority.certificate());
    let mut older = Sensor::join(&collector.sensors, &ca, &own, "a", 5);
    for number in 1..=10 {
        older.send_frames(number, &[vec![1; 1500]]);
        older.send_records(number, &[(RecordKind::Flow, "{}")]);
    }
    let is_failing = || (collector.get("/healthz").0 == 503).then_some(());
    wait_until("failing store", is_failing, || collector.log());
    std::thread::sleep(Duration::from_millis(300));
    std::thread::scope(|scope| {
        let newer = scope.spawn(|| Sensor::connect(&collector.sensors, &ca, &own).unwrap());
        older.read_to_end();
        assert_eq!(older.acknowledged, (0, 0));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!newer.is_finished(), "greeted before all was stored");
        std::fs::remove_file(&filler).unwrap();
        let mut newer = newer.join().unwrap();
        let resume = newer.hello.resume.unwrap();
        assert_eq!((resume.records.0, resume.frames.0), (10, 10));
        newer.send(&Control::SensorHello(hello("a", 5)));
        newer.send_records(10, &[(RecordKind::Flow, "{}"), (RecordKind::Flow, "{}")]);
        newer.wait_for_ack(11, 0);
        assert_eq!(newer.counts, (1, 0), "counts are those of this connection");
    });
    assert_eq!(lab.events_of(&collector), "{}\n".repeat(11));
}
