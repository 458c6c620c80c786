//! What the flow table costs a packet: vectors of random packets over so many live flows, as a worker
//! takes them. One run measures every load in turn, several times over, so that the loads can be
//! compared on a machine that others use as well; the least of each counts.
//!
//! ```text
//! flow_cost [FLOWS ...]        default: 1000 10000 100000 1000000 10000000
//! ```
//!
//! Prints one JSON line for each load: nanoseconds of processor time a packet for known flows with the table sized for
//! them, for the same without the second prefetch, for one-packet flows that fill the table, for SYNs
//! from random sources, and the sweep's nanoseconds a flow.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use packet::{Address, FiveTuple, Kind, Packet, protocol, tcp};
use sensor::flow::{FlowKey, FlowTable, State, Timeouts};
use wire::units::{UnixNanos, WireLen};

const VECTOR: usize = 32;
const PACKETS: u64 = 1 << 22;
const ROUNDS: usize = 5;
const BEGIN: u64 = 1_700_000_000_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut loads =
        env::args().skip(1).map(|text| text.parse()).collect::<Result<Vec<u64>, _>>()?;
    if loads.is_empty() {
        loads = vec![1_000, 10_000, 100_000, 1_000_000, 10_000_000];
    }
    let mut runs: Vec<Run> = loads.into_iter().map(Run::new).collect();
    let mut best = vec![[f64::MAX; 5]; runs.len()];
    for _ in 0..ROUNDS {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let figures = run.measure();
            for (best, figure) in best.iter_mut().zip(figures) {
                *best = best.min(figure);
            }
        }
    }
    for (run, [known, without, new, syn, sweep]) in runs.iter().zip(best) {
        let report = serde_json::json!({
            "flows": run.flows,
            "mib": FlowTable::memory(run.flows as usize) >> 20,
            "live": run.table.live(),
            "known_ns": known,
            "known_one_prefetch_ns": without,
            "new_udp_ns": new,
            "syn_flood_ns": syn,
            "sweep_ns_per_flow": sweep,
        });
        println!("{report}");
    }
    Ok(())
}

struct Run {
    flows: u64,
    table: FlowTable,
    /// For floods: apart, so that the flows above stay as they are.
    flooded: FlowTable,
    clock: u64,
    random: u64,
}

impl Run {
    fn new(flows: u64) -> Self {
        let timeouts = [3600; State::ALL.len()].map(Duration::from_secs);
        let table =
            |flows| FlowTable::new(flows as usize, Timeouts::new(timeouts), 0x1234_5678_9abc);
        let flooded = table(flows.min(1_000_000));
        let mut run = Self { flows, table: table(flows), flooded, clock: BEGIN, random: flows };
        let mut number = 0;
        while number < flows {
            let packets = std::array::from_fn(|index| udp((number + index as u64) % flows));
            run.clock += 32 * 400;
            vector(&mut run.table, &packets, run.clock, true);
            number += VECTOR as u64;
        }
        run
    }

    fn measure(&mut self) -> [f64; 5] {
        let (flows, mut number) = (self.flows, u64::from(self.random as u32) << 24);
        let known = self.timed(false, true, |random| udp(random % flows));
        let without = self.timed(false, false, |random| udp(random % flows));
        let nothing = self.base(|random| udp(random % flows));
        let new = self.timed(true, true, |_| {
            number += 1;
            udp(number)
        });
        let syn = self.timed(true, true, |random| Packet {
            kind: Kind::Tcp { flags: tcp::SYN, sequence: 0, acknowledgement: 0 },
            ..udp(random)
        });
        self.clock += 1_000_000;
        let now = UnixNanos(self.clock);
        self.table.sweep(now, &mut |_| {});
        let begun = processor_time();
        // An eighth of the way of an hour.
        self.clock += 450_000_000_000;
        self.table.sweep(UnixNanos(self.clock), &mut |_| {});
        let sweep = (processor_time() - begun).as_nanos() as f64 / (flows as f64 / 8.0);
        [known - nothing, without - nothing, new - nothing, syn - nothing, sweep]
    }

    /// Nanoseconds a packet.
    fn timed(&mut self, is_flood: bool, twice: bool, mut packet: impl FnMut(u64) -> Packet) -> f64 {
        let begun = processor_time();
        for _ in 0..PACKETS / VECTOR as u64 {
            let packets = std::array::from_fn(|_| packet(next(&mut self.random)));
            self.clock += 32 * 400;
            let table = if is_flood { &mut self.flooded } else { &mut self.table };
            vector(table, &packets, self.clock, twice);
        }
        (processor_time() - begun).as_nanos() as f64 / PACKETS as f64
    }

    /// What it costs to make up the packets.
    fn base(&mut self, mut packet: impl FnMut(u64) -> Packet) -> f64 {
        let begun = processor_time();
        for _ in 0..PACKETS / VECTOR as u64 {
            let packets: [Packet; VECTOR] = std::array::from_fn(|_| packet(next(&mut self.random)));
            black_box(&packets);
        }
        (processor_time() - begun).as_nanos() as f64 / PACKETS as f64
    }
}

fn vector(table: &mut FlowTable, packets: &[Packet; VECTOR], clock: u64, twice: bool) {
    let time = UnixNanos(clock);
    let mut keys = [None::<FlowKey>; VECTOR];
    for (key, packet) in keys.iter_mut().zip(packets) {
        *key = table.key(black_box(packet), 0, time);
        if let Some(key) = key {
            table.prefetch(key);
        }
    }
    if twice {
        keys.iter_mut().flatten().for_each(|key| table.locate(key));
    }
    for (key, packet) in keys.iter().zip(packets) {
        if let Some(key) = key {
            table.observe(key, packet, 0, WireLen(60), time, &mut |flow| {
                black_box(&flow);
            });
        }
    }
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    *random >> 20
}

/// The packet of one flow of 2^44.
fn udp(flow: u64) -> Packet {
    let tuple = FiveTuple {
        source: Address::from_v4((flow as u32).to_be_bytes()),
        target: Address::from_v4([198, 19, 0, 1]),
        source_port: (flow >> 32) as u16,
        target_port: 53,
        protocol: protocol::UDP,
    };
    Packet { tuple, kind: Kind::Udp, ..Packet::default() }
}

/// Processor time of this thread: what other programs take does not count.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
