//! `/metrics`: what the sensor counts, in the text format of Prometheus.
//!
//! Nothing is counted here. A scrape reads the counters where their owners keep them.

use std::fmt;
use std::sync::Arc;

use packet::Malformed;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::counters::{Counter, Counters, InterfaceCounters, PacketCounters, WorkerCounters};
use crate::flow::{EndReason, State};

/// Content type of what [`render`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A source of metrics beside the workers' counters: the detector, the recorder, the uplink.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Writes its metrics.
    ///
    /// # Errors
    /// The text cannot grow.
    fn write(&self, families: &mut Families<'_>) -> fmt::Result;
}

/// Makes the registry that [`render`] reads.
#[must_use]
pub fn registry(counters: Arc<Counters>, sources: Vec<Arc<dyn Source>>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(SensorCollector { counters, sources }));
    registry
}

/// All metrics as text.
#[must_use]
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail; what a failing source left out would show as missing.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

#[derive(Debug)]
struct SensorCollector {
    counters: Arc<Counters>,
    sources: Vec<Arc<dyn Source>>,
}

impl Collector for SensorCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families { encoder };
        self.interfaces(&mut families)?;
        self.occupancy(&mut families)?;
        self.packets(&mut families)?;
        self.workers(&mut families)?;
        self.flows(&mut families)?;
        self.sources.iter().try_for_each(|source| source.write(&mut families))
    }
}

/// Writes metric families.
pub struct Families<'a> {
    encoder: DescriptorEncoder<'a>,
}

/// Labels of one metric: names and values.
pub type Labels = Vec<(&'static str, String)>;

impl Families<'_> {
    /// A counter with a value for each set of labels. The text format adds `_total` to the name.
    ///
    /// # Errors
    /// The text cannot grow.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            family
                .encode_family(&labels)?
                .encode_counter::<[(&str, &str); 0], u64, f64>(&value, None)?;
        }
        Ok(())
    }

    /// A gauge with a value for each set of labels.
    ///
    /// # Errors
    /// The text cannot grow.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A histogram for each set of labels: sum, count, and for each bucket its upper bound and how many
    /// values lie between it and the one before. The last bound is infinity.
    ///
    /// # Errors
    /// The text cannot grow.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        rows: impl IntoIterator<Item = (Labels, f64, u64, Vec<(f64, u64)>)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, sum, count, buckets) in rows {
            family
                .encode_family(&labels)?
                .encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

type OfInterface = fn(&InterfaceCounters) -> &Counter;
type OfPackets = fn(&PacketCounters) -> &Counter;
type OfWorker = fn(&WorkerCounters) -> &Counter;

/// Metrics with the labels `interface` and `worker`.
const INTERFACE: &[(&str, &str, OfInterface)] = &[
    (
        "ringwatch_kernel_packets",
        "Frames that the kernel offered to the ring, dropped ones included",
        |c| &c.kernel_packets,
    ),
    ("ringwatch_kernel_drops", "Frames that the kernel dropped because the ring was full", |c| {
        &c.kernel_drops
    }),
    ("ringwatch_ring_freezes", "Times that the ring became full", |c| &c.ring_freezes),
    ("ringwatch_ring_blocks_full", "Blocks that the kernel handed over full", |c| &c.blocks_full),
    (
        "ringwatch_ring_blocks_timed_out",
        "Blocks that the kernel handed over because their time was up, however empty",
        |c| &c.blocks_timed_out,
    ),
    (
        "ringwatch_ring_frames_cut",
        "Frames that lost their end: they were longer than a block",
        |c| &c.cut,
    ),
    ("ringwatch_ring_corrupt_blocks", "Blocks in which something failed the checks", |c| {
        &c.corrupt_blocks
    }),
    ("ringwatch_ring_corrupt", "Ring entries that failed the checks at the border", |c| &c.corrupt),
    ("ringwatch_unread_frames", "Frames in rings that were given up before they were read", |c| {
        &c.unread
    }),
    (
        "ringwatch_not_wanted_frames",
        "Frames of interfaces that are not captured, which passed the filter of a ring on all",
        |c| &c.not_wanted,
    ),
    ("ringwatch_analysed_packets", "Frames taken into analysis", |c| &c.analysed),
    ("ringwatch_analysed_bytes", "Bytes on the wire of the frames taken into analysis", |c| {
        &c.analysed_bytes
    }),
    ("ringwatch_truncated_packets", "Frames captured shorter than they were", |c| &c.truncated),
    ("ringwatch_tunnelled_packets", "Analysed packets that lay in a tunnel", |c| &c.tunnelled),
    (
        "ringwatch_first_fragments",
        "First fragments of IP packets, which count as what their transport header says",
        |c| &c.first_fragments,
    ),
    ("ringwatch_frames_not_selected", "Frames that export did not want", |c| &c.not_selected),
    (
        "ringwatch_frames_own_uplink",
        "Frames not exported because they go to a collector or come from one",
        |c| &c.own_uplink,
    ),
    ("ringwatch_frames_exported", "Frames copied into a batch for the collector", |c| &c.exported),
    (
        "ringwatch_frames_lost_pool_empty",
        "Frames that export wanted while no batch was free",
        |c| &c.lost_pool_empty,
    ),
    (
        "ringwatch_frames_lost_degraded",
        "Frames of conversations that were left out while the collector was slow",
        |c| &c.lost_degraded,
    ),
    (
        "ringwatch_frames_lost_worker_panicked",
        "Frames whose worker panicked before export had decided",
        |c| &c.lost_worker_panicked,
    ),
];

/// Values of the label `kind` of `ringwatch_packets_total`.
const PACKETS: &[(&str, OfPackets)] = &[
    ("tcp", |c| &c.tcp),
    ("udp", |c| &c.udp),
    ("sctp", |c| &c.sctp),
    ("icmp", |c| &c.icmp),
    ("icmpv6", |c| &c.icmpv6),
    ("later_fragment", |c| &c.later_fragment),
    ("other_ip", |c| &c.other_ip),
    ("arp", |c| &c.arp),
    ("other", |c| &c.other),
];

/// Metrics with the label `worker`.
const WORKER: &[(&str, &str, OfWorker)] = &[
    (
        "ringwatch_new_connections",
        "New TCP connections seen: SYN without ACK; retransmissions count above the limit only",
        |c| &c.connections,
    ),
    (
        "ringwatch_connections_over_limit",
        "SYNs above the limit of a second: counted, not written",
        |c| &c.connections_over_limit,
    ),
    (
        "ringwatch_connections_queue_full",
        "New connections that found the queue to the recorder full",
        |c| &c.connections_queue_full,
    ),
    ("ringwatch_contacts_published", "Contacts handed to the detector", |c| &c.contacts_published),
    (
        "ringwatch_evidence_ticks_deferred",
        "Ticks at which the queue to the detector had no room for all evidence",
        |c| &c.ticks_deferred,
    ),
    ("ringwatch_evidence_lost", "Contacts pushed out before they were published", |c| {
        &c.evidence_lost
    }),
    (
        "ringwatch_contacts_gated",
        "Attempts held back under pressure: first contacts of new sources, and repeats",
        |c| &c.contacts_gated,
    ),
    ("ringwatch_flood_targets_published", "Targets told to the detector of floods", |c| {
        &c.targets_published
    }),
    (
        "ringwatch_flood_targets_evicted",
        "Targets that gave way before the detector of floods was told",
        |c| &c.targets_evicted,
    ),
    ("ringwatch_evidence_pressure", "Times that attempts began to be held back", |c| {
        &c.doors_engaged
    }),
    ("ringwatch_flows_begun", "Flows that began", |c| &c.flows.begun),
    (
        "ringwatch_flows_half_open_evicted",
        "Half-open flows that gave way to newer ones: they ended without an event of their own",
        |c| &c.flows.half_open_evicted,
    ),
    (
        "ringwatch_flow_openings_skipped",
        "Packets that open or close a connection and were counted in no flow, for want of room",
        |c| &c.flows.openings_skipped,
    ),
    (
        "ringwatch_flows_over_limit",
        "Ended flows above the limit of a second: counted, not written",
        |c| &c.flows.over_limit,
    ),
    (
        "ringwatch_flows_lost_worker_panicked",
        "Flows that were in the tables of a worker when it panicked",
        |c| &c.flows.lost_worker_panicked,
    ),
    ("ringwatch_flows_queue_full", "Ended flows that found the queue to the recorder full", |c| {
        &c.flows.queue_full
    }),
];

impl SensorCollector {
    fn interfaces(&self, families: &mut Families<'_>) -> fmt::Result {
        for (name, help, of) in INTERFACE {
            let row = |interface: usize, worker: usize| {
                let value = of(&self.counters.workers()[worker].interfaces[interface]).read();
                let labels = vec![
                    ("interface", self.counters.interfaces()[interface].clone()),
                    ("worker", worker.to_string()),
                ];
                (labels, value)
            };
            let interfaces = 0..self.counters.interfaces().len();
            let workers = 0..self.counters.workers().len();
            let rows =
                interfaces.flat_map(|interface| workers.clone().map(move |w| (interface, w)));
            families.counter(name, help, rows.map(|(interface, worker)| row(interface, worker)))?;
        }
        Ok(())
    }

    fn occupancy(&self, families: &mut Families<'_>) -> fmt::Result {
        let workers = self.counters.workers().iter().enumerate();
        let rows = workers.flat_map(|(worker, set)| {
            let interfaces = self.counters.interfaces().iter().zip(&set.interfaces);
            interfaces.flat_map(move |(name, counted)| {
                let marks = [("10s", &counted.occupancy_recent), ("run", &counted.occupancy_most)];
                marks.map(|(window, thousandths)| {
                    let labels = vec![
                        ("interface", name.clone()),
                        ("worker", worker.to_string()),
                        ("window", window.to_owned()),
                    ];
                    (labels, thousandths.read() as f64 / 1000.0)
                })
            })
        });
        families.gauge(
            "ringwatch_ring_occupancy_ratio",
            "The most of a ring that was filled and not given back at once; at 1 frames are dropped",
            rows,
        )
    }

    fn packets(&self, families: &mut Families<'_>) -> fmt::Result {
        let counters = &self.counters;
        let interfaces = || counters.interfaces().iter().enumerate();
        let rows = interfaces().flat_map(|(index, name)| {
            PACKETS.iter().map(move |(kind, of)| {
                let value = counters.interface_sum(index, |c| of(&c.packets));
                (vec![("interface", name.clone()), ("kind", (*kind).to_owned())], value)
            })
        });
        families.counter("ringwatch_packets", "Analysed packets by what they are", rows)?;
        let rows = interfaces().flat_map(|(index, name)| {
            Malformed::ALL.into_iter().map(move |reason| {
                let of = |c: &InterfaceCounters| c.packets.malformed[reason as usize].read();
                let sets = counters.workers().iter();
                let value = sets.map(|set| of(&set.interfaces[index])).sum();
                (vec![("interface", name.clone()), ("reason", reason.name().to_owned())], value)
            })
        });
        families.counter(
            "ringwatch_malformed_packets",
            "Packets that do not parse, by reason",
            rows,
        )
    }

    fn flows(&self, families: &mut Families<'_>) -> fmt::Result {
        let sum = |of: OfWorker| self.counters.sum(of);
        let live = [("live", sum(|c| &c.flows.live)), ("half_open", sum(|c| &c.flows.half_open))];
        let label = |name: &'static str, value: &str| vec![(name, value.to_owned())];
        families.gauge(
            "ringwatch_flows",
            "Flows in the tables now",
            live.map(|(table, count)| (label("table", table), count as f64)),
        )?;
        let ended = EndReason::ALL.map(|reason| {
            let count = self.counters.sum(|c| &c.flows.ended[reason as usize]);
            (label("reason", reason.name()), count)
        });
        families.counter("ringwatch_flows_ended", "Flows that ended, by reason", ended)?;
        let evicted = State::ALL.map(|state| {
            let count = self.counters.sum(|c| &c.flows.evicted[state as usize]);
            (label("state", state.name()), count)
        });
        families.counter(
            "ringwatch_flows_evicted",
            "Flows that ended because there was no room, by how far they had come",
            evicted,
        )
    }

    fn workers(&self, families: &mut Families<'_>) -> fmt::Result {
        for (name, help, of) in WORKER {
            let sets = self.counters.workers().iter().enumerate();
            let rows = sets
                .map(|(index, set)| (vec![("worker", index.to_string())], of(&set.worker).read()));
            families.counter(name, help, rows)?;
        }
        let sets = self.counters.workers().iter().enumerate();
        families.gauge(
            "ringwatch_evidence_door",
            "Contacts that a new source must have before it counts: 1, and more under pressure",
            // Before a worker's first tick there is no pressure.
            sets.map(|(index, set)| {
                let asks_for = set.worker.door.read().max(1);
                (vec![("worker", index.to_string())], asks_for as f64)
            }),
        )?;
        let sets = self.counters.workers().iter().enumerate();
        families.gauge(
            "ringwatch_export_level",
            "How much is exported: 0 all that is configured, 1 truncated, 2 sampled, 3 headers",
            sets.map(|(index, set)| {
                (vec![("worker", index.to_string())], set.worker.export_level.read() as f64)
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted_with_its_labels() {
        let counters = Arc::new(Counters::new(vec!["eth0".into()], 2));
        counters.workers()[1].interfaces[0].kernel_drops.add(7);
        counters.workers()[0].interfaces[0].packets.malformed[3].add(2);
        counters.workers()[0].worker.connections.add(5);
        counters.workers()[1].interfaces[0].occupancy_recent.set(125);
        counters.workers()[1].worker.door.set(3);
        counters.workers()[1].interfaces[0].occupancy_most.set(1000);
        let text = render(&registry(counters, Vec::new()));
        for line in [
            "ringwatch_kernel_drops_total{interface=\"eth0\",worker=\"1\"} 7",
            "ringwatch_malformed_packets_total{interface=\"eth0\",reason=\"ipv4_header\"} 2",
            "ringwatch_new_connections_total{worker=\"0\"} 5",
            "ringwatch_evidence_door{worker=\"0\"} 1.0",
            "ringwatch_evidence_door{worker=\"1\"} 3.0",
            "ringwatch_ring_occupancy_ratio{interface=\"eth0\",worker=\"1\",window=\"10s\"} 0.125",
            "ringwatch_ring_occupancy_ratio{interface=\"eth0\",worker=\"1\",window=\"run\"} 1.0",
            "# TYPE ringwatch_kernel_drops counter",
        ] {
            assert!(text.lines().any(|has| has == line), "no {line} in\n{text}");
        }
    }
}
