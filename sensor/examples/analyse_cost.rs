//! What the flow table adds to the analysis of a frame: the same frames through a worker's analysis with
//! and without the table, in turn, several times over; the least of each counts.
//!
//! ```text
//! analyse_cost [FLOWS ...]     default: 1000 100000 1000000
//! ```
//!
//! Prints one JSON line for each number of UDP flows, and one for a flood of SYNs from random sources:
//! nanoseconds of processor time a frame.

use std::env;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use packet::frame::{Frame, LinkType};
use perf::frames::{self, SYN};
use sensor::analyse::{Analyser, FlowSettings, Settings, VECTOR};
use sensor::counters::Counters;
use sensor::flow::{State, Timeouts};
use wire::units::{UnixNanos, WireLen};

const FRAMES: u64 = 1 << 22;
const ROUNDS: usize = 5;
const FRAME_BYTES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut loads =
        env::args().skip(1).map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    if loads.is_empty() {
        loads = vec![1_000, 100_000, 1_000_000];
    }
    for flows in loads {
        println!(
            "{}",
            measure(&format!("udp {flows}"), flows, |random| {
                frames::udp(socket(random % flows), socket(0), b"")
            })
        );
    }
    println!(
        "{}",
        measure("syn flood", 1_000_000, |random| {
            frames::tcp(socket(random), socket(0), SYN, b"")
        })
    );
    Ok(())
}

fn measure(name: &str, flows: u64, frame: impl Fn(u64) -> Vec<u8>) -> serde_json::Value {
    let (mut bytes, mut random) = (Vec::with_capacity(FRAMES as usize * FRAME_BYTES), 1);
    for _ in 0..FRAMES {
        let begin = bytes.len();
        bytes.extend(frame(next(&mut random)));
        bytes.resize(begin + FRAME_BYTES, 0);
    }
    let mut desks = [None, Some(flows)].map(desk);
    let mut best = [f64::MAX; 2];
    let mut clock = 1_700_000_000_000_000_000;
    for _ in 0..ROUNDS {
        for (analyser, best) in desks.iter_mut().zip(&mut best) {
            let begun = processor_time();
            run(analyser, &bytes, &mut clock);
            *best = best.min((processor_time() - begun).as_nanos() as f64 / FRAMES as f64);
        }
    }
    let [without, with] = best;
    serde_json::json!({ "load": name, "without_ns": without, "with_ns": with, "more_ns": with - without })
}

fn desk(flows: Option<u64>) -> Analyser {
    let counters = Counters::new(vec!["eth0".into()], 1);
    let settings = Settings {
        new_connections: true,
        connections_per_second: 10_000,
        contacts: 1 << 16,
        flows: flows.map(|flows| FlowSettings {
            flows: flows as usize,
            grows: false,
            timeouts: Timeouts::new([600; State::ALL.len()].map(Duration::from_secs)),
            per_second: Some(10_000),
        }),
        splits_flows: false,
        key: 0x1234_5678_9abc,
    };
    Analyser::new(&settings, counters.workers()[0].clone())
}

/// The frames once, at two and a half million a second of their clock.
fn run(analyser: &mut Analyser, bytes: &[u8], clock: &mut u64) {
    let mut vector = [Frame::EMPTY; VECTOR];
    for (number, chunk) in bytes.chunks_exact(VECTOR * FRAME_BYTES).enumerate() {
        let mut frames = chunk.chunks_exact(FRAME_BYTES).map(|data| {
            *clock += 400;
            let (time, wire_len) = (UnixNanos(*clock), WireLen(FRAME_BYTES as u32));
            Frame { data, wire_len, time, vlan: None, link: LinkType::ETHERNET, interface: 0 }
        });
        analyser.analyse(0, &mut frames, &mut vector, |_| {}, |_| {});
        if number % 20_000 == 0 {
            let _ = analyser.publish(|_| true);
            analyser.end_idle_flows(UnixNanos(*clock), |_| {});
        }
    }
}

fn socket(number: u64) -> SocketAddr {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + number as u32);
    SocketAddr::new(IpAddr::V4(address), 1024 + (number >> 32) as u16)
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    *random >> 20
}

/// Processor time of this thread: what other programs take does not count.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
