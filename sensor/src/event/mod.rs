//! What happened, as Suricata EVE JSON lines.
//!
//! ```text
//!   mod      the kinds of events, and the writer that numbers them
//!   flow     a flow that ended
//!   json     escaping and number formatting into a reused buffer
//! ```
//!
//! Everything of ours sits in one extra top-level object, `ringwatch`; the rest of every line follows
//! the EVE schema. A line is ASCII and ends with a line feed.

mod flow;
mod json;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use packet::FiveTuple;
use wire::ledger::Ledger;
use wire::units::UnixNanos;

use crate::detect::{Alert, AlertSummary, GivenWay, Held, Technique};
use crate::devices::DeviceCounters;
use crate::strain::{Degradation, DetectorChange, REMEDY};
use crate::timing::Latency;
pub use flow::FlowEnd;
use json::Json;

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
    /// SCTP.
    pub sctp: u64,
    /// ICMP.
    pub icmpv4: u64,
    /// ICMPv6.
    pub icmpv6: u64,
    /// ARP.
    pub arp: u64,
    /// With at least one VLAN tag.
    pub vlan: u64,
}

/// What lies around the rings of a live capture.
#[derive(Clone, Debug)]
pub struct LiveStats<'a> {
    /// Of all frames since the start.
    pub latency: Latency,
    /// The interfaces' own counters since the start, by name.
    pub devices: BTreeMap<&'a str, DeviceCounters>,
}

/// What happened. Each is one line.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A connection is attempted: a `flow` event in state `new`.
    NewConnection(NewConnection<'a>),
    /// A flow ended: a `flow` event with its counts.
    FlowEnd(FlowEnd<'a>),
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
        /// Of a live capture: what lies around the rings.
        live: Option<&'a LiveStats<'a>>,
    },
    /// Something happened to an interface: an `anomaly` event.
    Interface {
        /// When.
        time: UnixNanos,
        /// Which interface.
        interface: &'a str,
        /// What.
        change: InterfaceChange,
    },
    /// Something happened to a worker: an `anomaly` event.
    Worker {
        /// When.
        time: UnixNanos,
        /// Its number.
        worker: usize,
        /// What.
        change: WorkerChange,
    },
    /// The detector has not room for all evidence, or has again: an `anomaly` event.
    Detector {
        /// When.
        time: UnixNanos,
        /// What.
        change: DetectorChange,
    },
    /// New connections beyond the limit, over a span of time: an `anomaly` event.
    ConnectionsSummarised {
        /// When.
        time: UnixNanos,
        /// Connections that have no event of their own.
        connections: u64,
    },
    /// Flows that ended and have no event of their own, over a span of time: an `anomaly` event.
    FlowsSummarised {
        /// When.
        time: UnixNanos,
        /// Flows beyond the limit of a second, or that found a queue full.
        flows: u64,
        /// Half-open flows that gave way to newer ones.
        half_open_evicted: u64,
    },
    /// Alerts beyond the limit, over a span of time: an `anomaly` event.
    AlertsSummarised {
        /// When.
        time: UnixNanos,
        /// How many, by what became of them.
        summary: AlertSummary,
    },
}

/// What can happen to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceChange {
    /// Its link came up: frames come in again.
    LinkUp,
    /// Its link went down.
    LinkDown,
    /// It was deleted, or moved to another network namespace.
    Gone,
    /// There is an interface of this name again, and its frames are read.
    Back,
    /// It goes by another name; its frames are read as before, with a glob if that matches the new
    /// name too.
    Renamed,
    /// Its maximum transmission unit changed.
    MtuChanged,
    /// Its hardware address changed.
    MacChanged,
    /// It matches a glob and was not there before; its frames are read.
    New,
}

impl InterfaceChange {
    /// Every change, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::LinkUp,
        Self::LinkDown,
        Self::Gone,
        Self::Back,
        Self::Renamed,
        Self::MtuChanged,
        Self::MacChanged,
        Self::New,
    ];

    /// Its name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkUp => "link_up",
            Self::LinkDown => "link_down",
            Self::Gone => "interface_gone",
            Self::Back => "interface_back",
            Self::Renamed => "interface_renamed",
            Self::MtuChanged => "mtu_changed",
            Self::MacChanged => "mac_changed",
            Self::New => "interface_new",
        }
    }
}

/// What can happen to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerChange {
    /// It panicked: its rings were closed and its tables thrown away.
    Panicked,
    /// It reads rings again, with fresh tables.
    Restarted,
    /// It stands still; others read its share.
    Stalled,
    /// It goes on.
    Resumed,
}

impl WorkerChange {
    /// Its name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Panicked => "worker_panicked",
            Self::Restarted => "worker_restarted",
            Self::Stalled => "worker_stalled",
            Self::Resumed => "worker_resumed",
        }
    }
}

/// Writes events as lines and numbers them.
#[derive(Clone, Debug)]
pub struct EventWriter {
    sensor: String,
    /// What every id of this run begins with: sensor and boot epoch.
    prefix: String,
    sequence: u64,
}

/// What the EVE fields `alert.gid` and `alert.rev` say of every alert.
const GENERATOR: u64 = 1;
const RULE_REVISION: u64 = 1;

/// `alert.signature_id` of the first kind. Far from the ranges that public rule sets use.
const FIRST_SIGNATURE: u64 = 4_750_001;

/// Of a flow id only these bits are kept.
const FLOW_ID: u64 = (1 << 53) - 1;

impl EventWriter {
    /// A writer for one run of one sensor: `sensor` and `boot_epoch` make its ids unique. The first
    /// event has sequence 1.
    #[must_use]
    pub fn new(sensor: &str, boot_epoch: u64) -> Self {
        let prefix = format!("{sensor}-{boot_epoch}-");
        Self { sensor: sensor.to_owned(), prefix, sequence: 0 }
    }

    /// Sequence of the latest event; 0 before the first.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on behind so many events, which another writer of this run writes.
    pub const fn skip(&mut self, events: u64) {
        self.sequence += events;
    }

    /// Appends `event` as one line to `line`. Allocates nothing for a connection if `line` has room.
    pub fn write(&mut self, event: &Event<'_>, line: &mut Vec<u8>) {
        self.sequence += 1;
        let mut json = Json::begin(line);
        match event {
            Event::NewConnection(connection) => self.new_connection(&mut json, connection),
            Event::FlowEnd(end) => {
                flow::write(&mut json, end);
                self.ours(&mut json, |_| {});
            }
            Event::Alert(alert) => self.alert(&mut json, alert),
            Event::Stats { time, uptime_seconds, decoder, ledger, live } => {
                json.time("timestamp", *time);
                json.string("event_type", "stats");
                write_stats(&mut json, *uptime_seconds, decoder, ledger);
                self.ours(&mut json, |json| {
                    json.value("ledger", ledger);
                    if let Some(LiveStats { latency, devices }) = live {
                        json.value("latency_us", latency);
                        json.value("devices", devices);
                    }
                });
            }
            Event::Interface { time, interface, change } => {
                json.time("timestamp", *time);
                json.string("in_iface", interface);
                write_anomaly(&mut json, change.name());
                self.ours(&mut json, |json| json.string("interface", interface));
            }
            Event::Worker { time, worker, change } => {
                json.time("timestamp", *time);
                write_anomaly(&mut json, change.name());
                self.ours(&mut json, |json| json.number("worker", *worker as u64));
            }
            Event::Detector { time, change } => {
                json.time("timestamp", *time);
                write_anomaly(&mut json, change.name());
                self.ours(&mut json, |json| write_degradation(json, *change));
            }
            Event::ConnectionsSummarised { time, connections } => {
                json.time("timestamp", *time);
                write_anomaly(&mut json, "connections_summarised");
                self.ours(&mut json, |json| json.number("connections", *connections));
            }
            Event::FlowsSummarised { time, flows, half_open_evicted } => {
                json.time("timestamp", *time);
                write_anomaly(&mut json, "flows_summarised");
                self.ours(&mut json, |json| {
                    json.number("flows", *flows);
                    json.number("half_open_evicted", *half_open_evicted);
                });
            }
            Event::AlertsSummarised { time, summary } => {
                json.time("timestamp", *time);
                write_anomaly(&mut json, "alerts_summarised");
                self.ours(&mut json, |json| {
                    json.number("delayed", summary.delayed);
                    json.number("skipped_updates", summary.skipped_updates);
                    json.number("not_opened", summary.not_opened);
                });
            }
        }
        json.end();
    }

    fn new_connection(&self, json: &mut Json<'_>, connection: &NewConnection<'_>) {
        let tuple = &connection.tuple;
        json.time("timestamp", connection.time);
        json.number("flow_id", connection.flow_id & FLOW_ID);
        json.string("in_iface", connection.interface);
        json.string("event_type", "flow");
        json.vlan(connection.vlan_ids);
        json.address("src_ip", tuple.source);
        json.number("src_port", u64::from(tuple.source_port));
        json.address("dest_ip", tuple.target);
        json.number("dest_port", u64::from(tuple.target_port));
        json.number("ip_v", if tuple.source.is_v4() { 4 } else { 6 });
        json.string("proto", "TCP");
        json.string("community_id", connection.community_id);
        json.enter("flow", b'{');
        json.time("start", connection.time);
        json.string("state", "new");
        json.leave(b'}');
        self.ours(json, |_| {});
    }

    fn alert(&self, json: &mut Json<'_>, alert: &Alert) {
        json.time("timestamp", alert.time);
        json.string("event_type", "alert");
        for (key, address) in [("src_ip", alert.source), ("dest_ip", alert.target)] {
            if let Some(address) = address {
                json.address(key, address);
            }
        }
        if let Some(transport) = alert.technique.and_then(Technique::transport) {
            json.string("proto", transport);
        }
        json.enter("alert", b'{');
        json.string("action", "allowed");
        json.number("gid", GENERATOR);
        json.number("signature_id", FIRST_SIGNATURE + alert.kind as u64);
        json.number("rev", RULE_REVISION);
        json.string("signature", alert.kind.signature());
        json.string(
            "category",
            match alert.kind.is_flood() {
                true => "Attempted Denial of Service",
                false => "Detection of a Network Scan",
            },
        );
        json.number("severity", u64::from(alert.severity));
        json.enter("metadata", b'{');
        json.list_of_one("confidence", alert.confidence.name());
        let attack = alert.kind.attack();
        json.list_of_one("mitre_tactic_id", attack.tactic);
        json.list_of_one("mitre_tactic_name", attack.tactic_name);
        json.list_of_one("mitre_technique_id", attack.technique);
        json.list_of_one("mitre_technique_name", attack.technique_name);
        json.leave(b'}');
        self.alert_context(json, alert);
        json.leave(b'}');
        self.ours(json, |json| json.bits("workers", alert.workers));
    }

    fn alert_context(&self, json: &mut Json<'_>, alert: &Alert) {
        json.enter("context", b'{');
        json.numbered("alert_id", &[&self.prefix, "a"], alert.id);
        json.number("revision", u64::from(alert.revision));
        json.string("phase", alert.phase.name());
        json.string("kind", alert.kind.name());
        if let Some(technique) = alert.technique {
            json.string("technique", technique.name());
        }
        json.string("mitre_technique", alert.kind.attack().technique);
        json.number("distinct_ports", alert.distinct_ports);
        json.number("distinct_hosts", alert.distinct_hosts);
        json.number("distinct_sources", alert.distinct_sources);
        json.number("attempted", alert.attempted);
        json.number("answered", alert.answered);
        json.number("refused", alert.refused);
        json.number("silent", alert.silent);
        json.boolean("estimated", alert.is_estimated);
        json.string("confidence", alert.confidence.name());
        json.boolean("spoofable", alert.spoofable);
        json.boolean("one_way", alert.is_one_way);
        json.boolean("losses", alert.had_losses);
        if let Some(flood) = alert.flood {
            json.number("packets", flood.packets);
            json.number("peak_pps", flood.peak_pps);
            json.number("completed", flood.completed);
        }
        json.time("start", alert.start);
        json.time("end", alert.end);
        json.ports("ports", &alert.sample_ports);
        json.addresses("hosts", &alert.sample_hosts);
        json.ports("answered_ports", &alert.answered_ports);
        json.addresses("sources", &alert.sample_sources);
        json.leave(b'}');
    }

    /// The one top-level object that is not in the EVE schema.
    fn ours(&self, json: &mut Json<'_>, detail: impl FnOnce(&mut Json<'_>)) {
        json.enter("ringwatch", b'{');
        json.numbered("event_id", &[&self.prefix], self.sequence);
        json.string("sensor", &self.sensor);
        detail(json);
        json.leave(b'}');
    }
}

fn write_anomaly(json: &mut Json<'_>, event: &str) {
    json.string("event_type", "anomaly");
    json.enter("anomaly", b'{');
    json.string("type", "ringwatch");
    json.string("event", event);
    json.leave(b'}');
}

fn write_degradation(json: &mut Json<'_>, change: DetectorChange) {
    let Degradation {
        contacts,
        contacts_room,
        evidence_lost,
        held,
        slow_sources_lost,
        alerts_not_opened,
    } = change.degradation();
    json.number("contacts", contacts);
    json.number("contacts_room", contacts_room);
    json.number("evidence_lost", evidence_lost);
    write_given_way(json, "evidence_lost_by_held", &held);
    json.number("slow_sources_lost", slow_sources_lost.total());
    write_given_way(json, "slow_sources_lost_by_held", &slow_sources_lost);
    json.number("alerts_not_opened", alerts_not_opened);
    json.string("remedy", REMEDY);
}

fn write_given_way(json: &mut Json<'_>, name: &str, lost: &GivenWay) {
    json.enter(name, b'{');
    Held::ALL.into_iter().for_each(|held| json.number(held.name(), lost.of(held)));
    json.leave(b'}');
}

fn write_stats(json: &mut Json<'_>, uptime_seconds: u64, decoder: &DecoderStats, ledger: &Ledger) {
    // Destructured in full, so that a new counter cannot be forgotten here.
    let DecoderStats {
        packets,
        bytes,
        invalid,
        ipv4,
        ipv6,
        tcp,
        udp,
        sctp,
        icmpv4,
        icmpv6,
        arp,
        vlan,
    } = *decoder;
    json.enter("stats", b'{');
    json.number("uptime", uptime_seconds);
    json.enter("capture", b'{');
    json.number("kernel_packets", ledger.kernel_packets());
    json.number("kernel_drops", ledger.kernel_drops());
    json.leave(b'}');
    json.enter("decoder", b'{');
    for (key, count) in [
        ("pkts", packets),
        ("bytes", bytes),
        ("invalid", invalid),
        ("ipv4", ipv4),
        ("ipv6", ipv6),
        ("tcp", tcp),
        ("udp", udp),
        ("sctp", sctp),
        ("icmpv4", icmpv4),
        ("icmpv6", icmpv6),
        ("arp", arp),
        ("vlan", vlan),
    ] {
        json.number(key, count);
    }
    json.leave(b'}');
    json.leave(b'}');
}
