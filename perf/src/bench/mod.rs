//! Ringwatch beside its peers, in one run: the same load for each in turn, and what each costs and
//! loses.
//!
//! ```text
//!   place     the lab, silent but for the load; processors; processor time; the generator
//!   program   what is measured, and how it says what it saw and lost
//!   sections  the experiments
//!   fire      one more: a scan hidden in a flood
//!   alerts    and one: how long an alert takes
//!   fleet     and one without a lab: a thousand simulated sensors on a collector
//!   report    medians, tables, and what machine and commit they are of
//! ```
//!
//! A program that does not start, or ends too early, is a panic that shows what it said: a run with a
//! hole in it is no run.

pub mod alerts;
pub mod fire;
pub mod fleet;
pub mod place;
pub mod program;
pub mod report;
pub mod sections;

use std::time::Duration;

use clap::ValueEnum;

/// An experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Cost of a frame and losses, beside tcpdump, netsniff-ng and the bare walk over a ring
    Capture,
    /// Cost of a frame with 1 000 to 10 000 000 live flows
    Flows,
    /// Cost of a frame and losses with 1 worker on either of two processors, and 2, 4 and 8 on both
    Rings,
    /// Frames a second that two processors take and read, by how frames are dealt to rings
    Fanout,
    /// Frames a second out of a capture file, beside tcpdump and suricata
    Read,
    /// Resident memory before and during a flood from random sources
    Memory,
    /// A scan hidden in a flood: what is found, and what is kept
    Fire,
    /// Time from the frame that makes a scan one to the alert on disk
    Alerts,
    /// A thousand simulated sensors on one collector: restarts, memory, 30 000 records a second
    Fleet,
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Frames of one load.
    pub frames: u64,
    /// Frames of the flood of [`Section::Memory`].
    pub flood_frames: u64,
    /// Frames of a flood of [`Section::Fire`].
    pub fire_frames: u64,
    /// Scans of [`Section::Alerts`].
    pub scans: u32,
    /// Sensors of [`Section::Fleet`].
    pub sensors: u32,
    /// Records that they make in a second, all together, and for how long.
    pub records_per_second: u64,
    /// See `records_per_second`.
    pub fleet_load: Duration,
    /// Bytes of a capture file.
    pub file_bytes: u64,
    /// How often each program takes its turn.
    pub rounds: u32,
    /// Time after the last frame that still counts, for what falls due later.
    pub settle: Duration,
}

impl Scale {
    /// For results that are kept.
    pub const FULL: Self = Self {
        frames: 30_000_000,
        flood_frames: 100_000_000,
        fire_frames: 20_000_000,
        scans: 300,
        sensors: 1000,
        records_per_second: 30_000,
        fleet_load: Duration::from_secs(60),
        file_bytes: 1_000_000_000,
        rounds: 3,
        settle: Duration::from_secs(5),
    };

    /// To see whether something has changed a lot.
    pub const QUICK: Self = Self {
        frames: 3_000_000,
        flood_frames: 10_000_000,
        fire_frames: 12_000_000,
        scans: 30,
        sensors: 1000,
        records_per_second: 30_000,
        fleet_load: Duration::from_secs(10),
        file_bytes: 100_000_000,
        rounds: 1,
        settle: Duration::from_secs(5),
    };
}
