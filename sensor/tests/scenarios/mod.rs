//! Traffic with known truth: ordinary sites and scans, made frame by frame from a seed, damaged as taps
//! and networks damage it, and given to the sensor as a capture file.
//!
//! ```text
//!   random     the numbers that a seed gives
//!   ordinary   one connection, question, ping, traceroute
//!   probing    scans, each with the truth about itself
//!   sites      an hour of ordinary traffic of one sort
//!   damage     loss, reordering, repeats, one-way taps, starts in the middle
//!   replayed   what the sensor says of it
//! ```
//!
//! Times count in nanoseconds from the begin of the capture.

pub mod damage;
pub mod ordinary;
pub mod probing;
pub mod random;
pub mod replayed;
pub mod sites;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use random::Random;

/// A millisecond.
pub const MS: u64 = 1_000_000;
/// A second.
pub const SECOND: u64 = 1000 * MS;
/// A minute.
pub const MINUTE: u64 = 60 * SECOND;
/// An hour.
pub const HOUR: u64 = 60 * MINUTE;

/// A frame on its way past the tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passing {
    /// When.
    pub time: u64,
    /// All of it.
    pub frame: Vec<u8>,
    /// The contact of a scan that it is a probe of, by number.
    pub contact: Option<u32>,
}

/// Frames in the making, and the numbers that decide about them.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Frames, in any order until they are put [in order](Self::frames_in_order).
    pub frames: Vec<Passing>,
    /// What decides.
    pub random: Random,
    /// Contacts of scans so far.
    contacts: u32,
    /// Ephemeral ports so far.
    ports: u16,
}

impl Stage {
    /// Nothing yet.
    pub fn new(seed: u64) -> Self {
        Self { frames: Vec::new(), random: Random::new(seed), contacts: 0, ports: 0 }
    }

    /// Adds a frame.
    pub fn add(&mut self, time: u64, frame: Vec<u8>) {
        self.frames.push(Passing { time, frame, contact: None });
    }

    /// Adds a probe of a scan.
    pub fn add_probe(&mut self, time: u64, frame: Vec<u8>, contact: u32) {
        self.frames.push(Passing { time, frame, contact: Some(contact) });
    }

    /// Numbers for the contacts of a scan.
    pub fn number_contacts(&mut self, count: usize) -> Range<u32> {
        let begin = self.contacts;
        self.contacts +=
            u32::try_from(count).expect("a scan of that many contacts is none of ours");
        begin..self.contacts
    }

    /// The next port that a client takes; 28 000 later it comes again.
    pub fn ephemeral_port(&mut self) -> u16 {
        self.ports = (self.ports + 1) % 28_000;
        32_768 + self.ports
    }

    /// Sorts the frames by time; those of one time stay in their order.
    pub fn frames_in_order(&mut self) -> &[Passing] {
        self.frames.sort_by_key(|passing| passing.time);
        &self.frames
    }

    /// Those of these contacts that have a probe among the frames.
    pub fn visible_contacts(&self, contacts: &Range<u32>) -> BTreeSet<u32> {
        let seen = self.frames.iter().filter_map(|passing| passing.contact);
        seen.filter(|contact| contacts.contains(contact)).collect()
    }
}

/// The host that comes so many addresses after `base`.
///
/// # Panics
/// If `base` is no address.
pub fn host(base: &str, number: u32) -> IpAddr {
    match base.parse().expect("an address") {
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base) + number).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(number)).into(),
    }
}
