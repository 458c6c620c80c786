//! What the tests of rings against the real kernel share.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::thread;
use std::time::{Duration, Instant};

use perf::frames;
use perf::inject::Injector;
use perf::lab::Lab;
use sensor::afpacket::{Captured, Fanout, Interface, Ring, RingConfig, Scope, Unbound, wait};

/// Room for 16 MiB, or for more than a second of few frames that nobody reads.
pub const CONFIG: RingConfig = RingConfig {
    block_bytes: 64 * 1024,
    block_count: 256,
    least_blocks: 1,
    retire_ms: 5,
    snaplen: 65535,
    promiscuous: true,
};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A frame of the tests. Interfaces also carry what the IP stacks say on their own account.
pub fn is_ours(captured: &Captured<'_>) -> bool {
    captured.frame.data.starts_with(&frames::TARGET_MAC)
}

pub fn udp(source: &str, target: &str, payload: &[u8]) -> Vec<u8> {
    frames::udp(source.parse().unwrap(), target.parse().unwrap(), payload)
}

pub fn probe() -> Vec<u8> {
    udp("198.18.0.1:1000", "198.19.0.1:2000", b"ringwatch")
}

pub fn interface(name: &str) -> Interface {
    Interface::find(name).unwrap()
}

pub fn open(config: &RingConfig, scope: &Scope) -> Ring {
    Ring::open(Unbound::new().unwrap(), config, scope).unwrap()
}

pub fn open_on(config: &RingConfig, name: &str) -> Ring {
    open(config, &Scope::One(interface(name)))
}

pub fn started(config: &RingConfig, scope: &Scope) -> Ring {
    let mut ring = open(config, scope);
    ring.begin().unwrap();
    ring
}

pub fn started_on(config: &RingConfig, name: &str) -> Ring {
    started(config, &Scope::One(interface(name)))
}

/// A group of rings, all started.
pub fn group_of(scope: &Scope, fanout: &Fanout, count: u32) -> Vec<Ring> {
    let mut rings: Vec<_> = (0..count).map(|_| open(&CONFIG, scope)).collect();
    let group = rings[0].start_group(fanout, count).unwrap();
    for ring in &rings[1..] {
        ring.join(&group).unwrap();
    }
    for ring in &mut rings {
        ring.begin().unwrap();
    }
    rings
}

pub fn group(name: &str, fanout: &Fanout, count: u32) -> Vec<Ring> {
    group_of(&Scope::One(interface(name)), fanout, count)
}

/// Stops the ring and reads what is left, as a worker does at its end. Returns the frames read.
pub fn drain(ring: &mut Ring, each: impl FnMut(&Captured<'_>)) -> u64 {
    stop(std::slice::from_mut(ring));
    read_the_rest(ring, each)
}

/// Lets no further frame in. One that was on its way is in the ring soon after, and so here.
pub fn stop(rings: &mut [Ring]) {
    rings.iter_mut().for_each(|ring| ring.reject_all().unwrap());
    thread::sleep(Duration::from_millis(20));
}

/// Reads what is left in a ring that was stopped. Returns the frames read.
pub fn read_the_rest(ring: &mut Ring, mut each: impl FnMut(&Captured<'_>)) -> u64 {
    let mut analysed = 0;
    let begin = Instant::now();
    loop {
        while let Some(block) = ring.next_block() {
            for captured in block.frames() {
                analysed += 1;
                each(&captured);
            }
        }
        ring.refresh_statistics().unwrap();
        if ring.waiting() == 0 {
            return analysed;
        }
        assert!(begin.elapsed() < PATIENCE, "{} frames never came", ring.waiting());
        wait([&*ring], Duration::from_millis(5)).unwrap();
    }
}

/// The far side of a veth pair learns a little later that its carrier is back.
pub fn wait_for_carrier(lab: &Lab) {
    let carrier = || lab.generator().run("cat", &["/sys/class/net/g0/carrier"]).stdout;
    let begin = Instant::now();
    while carrier() != b"1\n" {
        assert!(begin.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }
}

/// Reads until `count` of our frames came, and gives each to `each`.
pub fn read_ours(ring: &mut Ring, count: u64, mut each: impl FnMut(&Captured<'_>)) {
    let begin = Instant::now();
    let mut seen = 0;
    while seen < count {
        assert!(begin.elapsed() < PATIENCE, "{seen} of {count} frames came");
        wait([&*ring], Duration::from_millis(10)).unwrap();
        while let Some(block) = ring.next_block() {
            for captured in block.frames().filter(is_ours) {
                seen += 1;
                each(&captured);
            }
        }
    }
    assert_eq!(seen, count);
}

#[track_caller]
pub fn assert_ledger(ring: &Ring, analysed: u64) {
    let statistics = ring.statistics();
    assert_eq!(statistics.packets, statistics.drops + analysed + ring.corrupt(), "{statistics:?}");
}

pub fn send(lab: &Lab, frame: &[u8], count: usize) {
    send_all(lab, std::iter::repeat_n(frame, count));
}

/// Sends without a pause: each `retire_ms` with a frame in it uses up a block while nobody reads.
pub fn send_all<F: AsRef<[u8]>>(lab: &Lab, frames: impl IntoIterator<Item = F>) {
    Injector::within(lab.generator(), "g0").send_all(frames, None).unwrap();
}
