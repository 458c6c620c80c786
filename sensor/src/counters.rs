//! Counters that one thread writes and anyone reads: a plain load and store, no locked instruction.
//!
//! A worker owns one [`InterfaceCounters`] for each interface that it reads, alone on its cache
//! lines. The [`Counters`] of the program hold them all, sum them up and lay out the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use packet::Malformed;
use wire::ledger::{InterfaceLedger, Ledger, LostByReason};

use crate::event::DecoderStats;
use crate::flow::{EndReason, FlowCounters, FlowTable, State};

/// A count with a single writer. It only grows, except where it is [set](Counter::set).
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. To be called by the one thread that owns the counter: two writers lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        // No read-modify-write: with one writer a load and a store are enough, and cost nothing.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the count by a sum that the owner keeps elsewhere.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count as it was a moment ago.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts on one interface. Unit: frames, where nothing else is said.
#[derive(Debug, Default)]
pub struct InterfaceCounters {
    /// Offered by the kernel to this worker's ring, the dropped ones included.
    pub kernel_packets: Counter,
    /// Dropped by the kernel because the ring was full.
    pub kernel_drops: Counter,
    /// Times that the ring became full.
    pub ring_freezes: Counter,
    /// Blocks that the kernel handed over because no further frame had room. Unit: blocks.
    pub blocks_full: Counter,
    /// Blocks that the kernel handed over because their time was up. Unit: blocks.
    pub blocks_timed_out: Counter,
    /// The most blocks that were filled and not given back, of the last ten seconds. Unit: thousandths
    /// of the ring. May fall.
    pub occupancy_recent: Counter,
    /// The same since the start.
    pub occupancy_most: Counter,
    /// Frames that lost their end because they were longer than a block.
    pub cut: Counter,
    /// Ring entries that failed the checks at the border.
    pub corrupt: Counter,
    /// Blocks in which something failed the checks. Unit: blocks.
    pub corrupt_blocks: Counter,
    /// Stored in a ring that was given up before they were read: the worker panicked, or the kernel did
    /// not hand them over in time.
    pub unread: Counter,
    /// Frames of interfaces that are not captured, in a ring on all interfaces: the filter did not know
    /// them yet, or has no room for them.
    pub not_wanted: Counter,
    /// Taken into analysis.
    pub analysed: Counter,
    /// Bytes on the wire of the analysed frames.
    pub analysed_bytes: Counter,
    /// Analysed frames that were captured shorter than they were.
    pub truncated: Counter,
    /// Whole packets over IPv4.
    pub ipv4: Counter,
    /// Whole packets over IPv6.
    pub ipv6: Counter,
    /// Analysed frames with a VLAN id; a tag that only gives a priority does not count.
    pub vlan: Counter,
    /// Analysed packets out of a tunnel: the inner one is what counts everywhere else.
    pub tunnelled: Counter,
    /// First fragments, which count as what their transport header says.
    pub first_fragments: Counter,
    /// Not wanted by export: off, or not in the sample.
    pub not_selected: Counter,
    /// Not exported because they go to a collector or come from one.
    pub own_uplink: Counter,
    /// Copied into a batch.
    pub exported: Counter,
    /// Wanted by export, but no batch was free.
    pub lost_pool_empty: Counter,
    /// Wanted by export, but of a conversation that is left out while the collector is slow.
    pub lost_degraded: Counter,
    /// Analysed, but the worker panicked before export had decided.
    pub lost_worker_panicked: Counter,
    /// What the packets were.
    pub packets: PacketCounters,
}

impl InterfaceCounters {
    /// After a panic of the worker that writes these counters, and after its rings were closed: what is
    /// missing in the sums was lost with it. To be called by that worker.
    pub fn settle_after_panic(&self) {
        let [seen, drops, corrupt, not_wanted, analysed] = [
            &self.kernel_packets,
            &self.kernel_drops,
            &self.corrupt,
            &self.not_wanted,
            &self.analysed,
        ]
        .map(Counter::read);
        self.unread.set(seen.saturating_sub(drops + corrupt + not_wanted + analysed));
        let decided = [
            &self.not_selected,
            &self.own_uplink,
            &self.exported,
            &self.lost_pool_empty,
            &self.lost_degraded,
        ];
        let decided: u64 = decided.map(Counter::read).iter().sum();
        self.lost_worker_panicked.set(analysed.saturating_sub(decided));
    }
}

/// What the analysed packets of one interface were. Each packet counts once.
#[derive(Debug, Default)]
pub struct PacketCounters {
    /// TCP.
    pub tcp: Counter,
    /// UDP.
    pub udp: Counter,
    /// ICMP over IPv4.
    pub icmp: Counter,
    /// ICMPv6.
    pub icmpv6: Counter,
    /// SCTP.
    pub sctp: Counter,
    /// Fragments without a transport header.
    pub later_fragment: Counter,
    /// Other IP protocols.
    pub other_ip: Counter,
    /// ARP.
    pub arp: Counter,
    /// Neither IP nor ARP.
    pub other: Counter,
    /// Cut short or contradictory, by reason, in the order of [`Malformed::ALL`].
    pub malformed: [Counter; Malformed::ALL.len()],
}

/// What one worker counts, whatever the interface.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// New TCP connections seen (SYN without ACK, retransmissions collapsed).
    pub connections: Counter,
    /// New connections above the limit of a second: counted here, not handed to the recorder.
    pub connections_over_limit: Counter,
    /// New connections that found the queue to the recorder full.
    pub connections_queue_full: Counter,
    /// Contacts handed to the detector.
    pub contacts_published: Counter,
    /// Ticks at which the queue to the detector had no room for all; the rest follows at the next one.
    pub ticks_deferred: Counter,
    /// Contacts that were pushed out before they were published: evidence that is gone.
    pub evidence_lost: Counter,
    /// Attempts held back under pressure: first contacts of new sources, and repeats.
    pub contacts_gated: Counter,
    /// Targets of which the detector was told what arrived there.
    pub targets_published: Counter,
    /// Targets that gave way before it was told: what arrived there is not counted.
    pub targets_evicted: Counter,
    /// Times that pressure began, from which on they are held back.
    pub doors_engaged: Counter,
    /// Contacts that a new source must have before it counts: 1 without pressure, then 2, then 3. May fall.
    pub door: Counter,
    /// The flows.
    pub flows: WorkerFlows,
    /// How much is exported, by the number of the [`Level`](crate::export::Level). May fall.
    pub export_level: Counter,
    /// Passes over the rings, one a tick at most. Whoever watches goes by whether it changes.
    pub heartbeat: Counter,
}

/// What one worker counts of flows. Unit: flows, unless said.
#[derive(Debug, Default)]
pub struct WorkerFlows {
    /// In the table, half-open ones not included. May fall.
    pub live: Counter,
    /// Half-open ones. May fall.
    pub half_open: Counter,
    /// Begun.
    pub begun: Counter,
    /// Ended, by reason, in the order of [`EndReason::ALL`].
    pub ended: [Counter; EndReason::ALL.len()],
    /// Of the ended ones, those for which there was no room, in the order of [`State::ALL`].
    pub evicted: [Counter; State::ALL.len()],
    /// Half-open ones that gave way to newer ones: ended, but not handed out.
    pub half_open_evicted: Counter,
    /// Packets that open or close a connection and were counted in no flow, for pressure. Unit: packets.
    pub openings_skipped: Counter,
    /// Ended ones above the limit of a second: counted here, not handed to the recorder.
    pub over_limit: Counter,
    /// Ended ones that found the queue to the recorder full.
    pub queue_full: Counter,
    /// In the tables of this worker when it panicked: neither ended nor handed out.
    pub lost_worker_panicked: Counter,
}

impl WorkerFlows {
    /// Takes over what the table counted; `before` is what tables before it had counted.
    pub fn show(&self, table: &FlowTable, before: &FlowCounters) {
        let FlowCounters { begun, ended, evicted, half_open_evicted, openings_skipped } =
            table.counters();
        self.live.set(table.live() as u64);
        self.half_open.set(table.half_open() as u64);
        self.begun.set(before.begun + begun);
        let set = |counters: &[Counter], before: &[u64], counts: &[u64]| {
            let sums = before.iter().zip(counts).map(|(before, count)| before + count);
            counters.iter().zip(sums).for_each(|(counter, sum)| counter.set(sum));
        };
        set(&self.ended, &before.ended, &ended);
        set(&self.evicted, &before.evicted, &evicted);
        self.half_open_evicted.set(before.half_open_evicted + half_open_evicted);
        self.openings_skipped.set(before.openings_skipped + openings_skipped);
    }

    /// A new table begins: gives what those before it had counted. What they still held is lost.
    pub fn begin_anew(&self) -> FlowCounters {
        self.lost_worker_panicked.add(self.live.read() + self.half_open.read());
        self.live.set(0);
        self.half_open.set(0);
        FlowCounters {
            begun: self.begun.read(),
            ended: std::array::from_fn(|reason| self.ended[reason].read()),
            evicted: std::array::from_fn(|state| self.evicted[state].read()),
            half_open_evicted: self.half_open_evicted.read(),
            openings_skipped: self.openings_skipped.read(),
        }
    }
}

/// The counters of all workers, and the names of what they count on.
#[derive(Debug)]
pub struct Counters {
    interfaces: Vec<String>,
    workers: Vec<WorkerSet>,
}

/// The counters of one worker.
#[derive(Clone, Debug)]
pub struct WorkerSet {
    /// Independent of the interface.
    pub worker: Arc<CachePadded<WorkerCounters>>,
    /// In the order of the interfaces.
    pub interfaces: Vec<Arc<CachePadded<InterfaceCounters>>>,
}

impl Counters {
    /// Counters at zero for so many workers on these interfaces.
    #[must_use]
    pub fn new(interfaces: Vec<String>, workers: usize) -> Self {
        let set = || WorkerSet {
            worker: Arc::default(),
            interfaces: interfaces.iter().map(|_| Arc::default()).collect(),
        };
        let workers = (0..workers).map(|_| set()).collect();
        Self { interfaces, workers }
    }

    /// Names of the interfaces.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The counters of each worker.
    #[must_use]
    pub fn workers(&self) -> &[WorkerSet] {
        &self.workers
    }

    /// Sum of one counter of all workers.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&WorkerCounters) -> &Counter) -> u64 {
        self.workers.iter().map(|set| of(&set.worker).read()).sum()
    }

    /// Sum over all workers of one counter of an interface.
    #[must_use]
    pub fn interface_sum(
        &self,
        interface: usize,
        of: impl Fn(&InterfaceCounters) -> &Counter,
    ) -> u64 {
        let counters = self.workers.iter().filter_map(|set| set.interfaces.get(interface));
        counters.map(|counters| of(counters).read()).sum()
    }

    /// The part of the ledger that the workers keep; exact once they have ended.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let interfaces = self.interfaces.iter().enumerate();
        Ledger {
            interfaces: interfaces
                .map(|(index, name)| self.interface_ledger(index, name))
                .collect(),
            ..Ledger::default()
        }
    }

    /// The same while workers run. Their counters are read one after the other, and those of the kernel
    /// are older, so frames count as analysed once it is decided what becomes of them, and as seen
    /// by the kernel once they are analysed.
    #[must_use]
    pub fn running_ledger(&self) -> Ledger {
        let mut ledger = self.ledger();
        for one in &mut ledger.interfaces {
            one.analysed = one.not_selected + one.exported + one.lost.values().sum::<u64>();
            let read = one.kernel_drops + one.corrupt + one.unread + one.not_wanted + one.analysed;
            one.kernel_packets = one.kernel_packets.max(read);
        }
        ledger
    }

    /// The part of the counters that EVE knows.
    #[must_use]
    pub fn decoder_stats(&self) -> DecoderStats {
        let sum = |of: fn(&InterfaceCounters) -> u64| -> u64 {
            self.workers.iter().flat_map(|set| &set.interfaces).map(|one| of(one)).sum()
        };
        DecoderStats {
            packets: sum(|c| c.analysed.read()),
            bytes: sum(|c| c.analysed_bytes.read()),
            invalid: sum(|c| c.packets.malformed.iter().map(|one| one.read()).sum()),
            ipv4: sum(|c| c.ipv4.read()),
            ipv6: sum(|c| c.ipv6.read()),
            tcp: sum(|c| c.packets.tcp.read()),
            udp: sum(|c| c.packets.udp.read()),
            sctp: sum(|c| c.packets.sctp.read()),
            icmpv4: sum(|c| c.packets.icmp.read()),
            icmpv6: sum(|c| c.packets.icmpv6.read()),
            arp: sum(|c| c.packets.arp.read()),
            vlan: sum(|c| c.vlan.read()),
        }
    }

    fn interface_ledger(&self, index: usize, name: &str) -> InterfaceLedger {
        let sum = |of: fn(&InterfaceCounters) -> &Counter| self.interface_sum(index, of);
        let pool_empty = sum(|c| &c.lost_pool_empty);
        let degraded = sum(|c| &c.lost_degraded);
        let worker_panicked = sum(|c| &c.lost_worker_panicked);
        let reasons = [
            ("pool_empty", pool_empty),
            ("degraded", degraded),
            ("worker_panicked", worker_panicked),
        ];
        let counted = reasons.into_iter().filter(|(_, frames)| *frames > 0);
        let lost: LostByReason = counted.map(|(why, frames)| (why.into(), frames)).collect();
        InterfaceLedger {
            name: name.to_owned(),
            kernel_packets: sum(|c| &c.kernel_packets),
            kernel_drops: sum(|c| &c.kernel_drops),
            corrupt: sum(|c| &c.corrupt),
            unread: sum(|c| &c.unread),
            not_wanted: sum(|c| &c.not_wanted),
            analysed: sum(|c| &c.analysed),
            not_selected: sum(|c| &c.not_selected) + sum(|c| &c.own_uplink),
            exported: sum(|c| &c.exported),
            lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_sums_all_workers_and_adds_up() {
        let counters = Counters::new(vec!["a".into(), "b".into()], 2);
        for (index, set) in counters.workers().iter().enumerate() {
            let counted = &set.interfaces[1];
            counted.kernel_packets.add(18 + index as u64);
            counted.kernel_drops.add(3);
            counted.unread.add(2);
            counted.not_wanted.add(5);
            counted.analysed.add(8 + index as u64);
            counted.not_selected.add(4 + index as u64);
            counted.lost_worker_panicked.add(1);
            counted.own_uplink.add(1);
            counted.lost_pool_empty.add(1);
            counted.lost_degraded.add(1);
        }
        let ledger = counters.ledger();
        assert_eq!(ledger.check(), Ok(()));
        assert_eq!(ledger.interfaces[1].kernel_packets, 37);
        assert_eq!(ledger.interfaces[1].not_wanted, 10);
        assert_eq!(ledger.interfaces[1].unread, 4);
        assert_eq!(ledger.interfaces[1].not_selected, 11);
        assert_eq!(ledger.interfaces[1].lost["pool_empty"], 2);
        assert_eq!(ledger.interfaces[1].lost["degraded"], 2);
        assert_eq!(ledger.interfaces[1].lost["worker_panicked"], 2);
        assert_eq!(ledger.interfaces[0].kernel_packets, 0);
    }
}
