//! What it costs to see every frame of an interface: one ring, or one `read(2)` a frame through the
//! crate `afpacket`. Reads three bytes of each frame, as the least that any use needs.
//!
//! ```text
//! capture_cost ring|read INTERFACE [SECONDS]
//! ```
//!
//! Ends after that time, or with Ctrl-C. Prints one JSON line: frames read, frames dropped by the kernel,
//! processor time per frame read.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use afpacket::sync::RawPacketStream;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use sensor::afpacket::{Interface, Ring, RingConfig, Scope, Unbound, wait};
use signal_hook::consts::SIGINT;

const MIB: u32 = 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let (mode, interface, seconds) = match arguments.as_slice() {
        [mode, interface] => (mode, interface, None),
        [mode, interface, seconds] => (mode, interface, Some(seconds.parse()?)),
        _ => return Err("usage: capture_cost ring|read INTERFACE [SECONDS]".into()),
    };
    let end = End::new(seconds.map(Duration::from_secs))?;
    let (frames, drops, spent) = match mode.as_str() {
        "ring" => ring(interface, &end)?,
        "read" => read(interface, &end)?,
        other => return Err(format!("unknown mode {other:?}").into()),
    };
    let report = serde_json::json!({
        "mode": mode,
        "frames": frames,
        "drops": drops,
        "ns_per_frame": spent as f64 / frames.max(1) as f64,
    });
    println!("{report}");
    Ok(())
}

/// When to end.
struct End {
    time: Option<Instant>,
    stopped: Arc<AtomicBool>,
}

impl End {
    fn new(after: Option<Duration>) -> Result<Self, Box<dyn Error>> {
        let stopped = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGINT, Arc::clone(&stopped))?;
        Ok(Self { time: after.map(|after| Instant::now() + after), stopped })
    }

    fn is_reached(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.time.is_some_and(|time| Instant::now() >= time)
    }
}

fn ring(interface: &str, end: &End) -> Result<(u64, Option<u64>, i64), Box<dyn Error>> {
    let config = RingConfig {
        block_bytes: MIB,
        block_count: 128,
        least_blocks: 1,
        retire_ms: 10,
        snaplen: 65535,
        promiscuous: true,
    };
    let mut ring = Ring::open(Unbound::new()?, &config, &Scope::One(Interface::find(interface)?))?;
    ring.begin()?;
    let before = processor_nanoseconds()?;
    let mut frames = 0;
    while !end.is_reached() {
        while let Some(block) = ring.next_block() {
            for captured in block.frames() {
                look_at(captured.frame.data);
                frames += 1;
            }
        }
        wait([&ring], Duration::from_millis(100))?;
    }
    let spent = processor_nanoseconds()? - before;
    Ok((frames, Some(ring.refresh_statistics()?.drops), spent))
}

/// The crate gives no statistics: what it loses shows in the difference to what was sent.
fn read(interface: &str, end: &End) -> Result<(u64, Option<u64>, i64), Box<dyn Error>> {
    let mut socket = RawPacketStream::new()?;
    socket.bind(interface)?;
    let before = processor_nanoseconds()?;
    // The type has no time-out and no poll: a thread that stops the process is the simplest end.
    let frames = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&frames);
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(length) = socket.read(&mut buffer) {
            look_at(&buffer[..length]);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    while !end.is_reached() {
        thread::sleep(Duration::from_millis(10));
    }
    Ok((frames.load(Ordering::Relaxed), None, processor_nanoseconds()? - before))
}

#[inline]
fn look_at(frame: &[u8]) {
    for offset in [12, 23, 36] {
        black_box(frame.get(offset));
    }
}

fn processor_nanoseconds() -> Result<i64, Box<dyn Error>> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.num_nanoseconds())
}
