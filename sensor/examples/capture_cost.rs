//! What it costs to see every frame of an interface: one ring, or one `read(2)` a frame through the
//! crate `afpacket`. Reads three bytes of each frame, as the least that any use needs.
//!
//! ```text
//! capture_cost ring|read INTERFACE SECONDS
//! ```
//!
//! Prints one JSON line: frames read, frames dropped by the kernel, processor time per frame read.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use afpacket::sync::RawPacketStream;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use sensor::afpacket::{Interface, Ring, RingConfig, Scope, Unbound, wait};

const MIB: u32 = 1024 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [mode, interface, seconds] = arguments.as_slice() else {
        return Err("usage: capture_cost ring|read INTERFACE SECONDS".into());
    };
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    let (frames, drops, spent) = match mode.as_str() {
        "ring" => ring(interface, until)?,
        "read" => read(interface, until)?,
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

fn ring(interface: &str, until: Instant) -> Result<(u64, Option<u64>, i64), Box<dyn Error>> {
    let config = RingConfig {
        block_bytes: MIB,
        block_count: 128,
        least_blocks: 1,
        retire_ms: 10,
        snaplen: 65535,
        promiscuous: true,
        busy_poll_us: 0,
    };
    let mut ring = Ring::open(Unbound::new()?, &config, &Scope::One(Interface::find(interface)?))?;
    ring.begin()?;
    let before = processor_nanoseconds()?;
    let mut frames = 0;
    while Instant::now() < until {
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
fn read(interface: &str, until: Instant) -> Result<(u64, Option<u64>, i64), Box<dyn Error>> {
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
    thread::sleep(until.saturating_duration_since(Instant::now()));
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
