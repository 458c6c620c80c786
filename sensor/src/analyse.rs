//! What a worker does with frames, whether they come from a ring or from a file.
//!
//! Frames are taken in vectors: all are parsed and their table lines requested before the first
//! table is touched, so that the cache misses of a flood overlap.

use packet::frame::Frame;
use packet::{self, Kind, Packet, protocol, tcp};
use wire::units::UnixNanos;

use crate::connections::{ConnectionLog, NewConnection, Seen};
use crate::counters::{Counter, PacketCounters, WorkerSet};
use crate::evidence::{
    self, Contact, ContactHash, ContactKey, ContactTable, EvidenceCounters, Observation, Published,
};
use crate::flood::{self, TargetCounters, TargetTable};
use crate::flow::{Change, EndedFlow, FlowCounters, FlowKey, FlowLimit, FlowTable, Timeouts};

/// Frames of one vector: their packets and table lines fit the first-level cache together.
pub const VECTOR: usize = 32;

/// Sizes and habits of an [`Analyser`].
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Write new connections.
    pub new_connections: bool,
    /// At most so many in a second of packet time.
    pub connections_per_second: u32,
    /// New contacts that the table takes between two publishes.
    pub contacts: usize,
    /// The table of flows; `None`: there is none.
    pub flows: Option<FlowSettings>,
    /// The directions of a flow may come to different workers.
    pub splits_flows: bool,
    /// Seed of all hashes: random, or fixed for repeatable runs.
    pub key: u64,
}

/// Sizes and habits of a worker's table of flows.
#[derive(Clone, Copy, Debug)]
pub struct FlowSettings {
    /// Flows that it holds.
    pub flows: usize,
    /// It begins small, and [`Analyser::make_room`] is called.
    pub grows: bool,
    /// When flows end.
    pub timeouts: Timeouts,
    /// At most so many ended flows are handed out in a second of packet time; `None`: none, as nobody wants them.
    pub per_second: Option<u32>,
}

/// The analysis of one worker: its tables. Allocates only when it is made.
pub struct Analyser {
    contacts: ContactTable,
    targets: TargetTable,
    connections: Option<ConnectionLog>,
    flows: Option<Flows>,
    splits_flows: bool,
    counters: WorkerSet,
    /// What tables before these had counted: a worker makes new ones after a panic.
    before: EvidenceCounters,
    targets_before: TargetCounters,
    packets: [Packet; VECTOR],
    observed: [Observed; VECTOR],
}

/// The table of flows and what goes with it.
struct Flows {
    table: FlowTable,
    limit: FlowLimit,
    keys: [Option<FlowKey>; VECTOR],
    /// What tables before this one had counted.
    before: FlowCounters,
}

/// What one packet of a vector says about a contact. Its key is read from the packet again when the
/// table wants it, which under a flood is seldom.
#[derive(Clone, Copy)]
struct Observed {
    hash: ContactHash,
    packet: u8,
    observation: Observation,
}

const _: () = assert!(VECTOR <= u8::MAX as usize);

/// What the first pass found in a vector.
struct Parsed {
    /// Frames.
    count: usize,
    /// Packets with evidence.
    observed: usize,
    /// Bit of each packet that targets are to count.
    drawn: u32,
    /// Bit of each packet whose source is to be told apart from others.
    sources: u32,
}

const _: () = assert!(VECTOR <= u32::BITS as usize);

impl Analyser {
    /// Empty tables.
    #[must_use]
    pub fn new(settings: &Settings, counters: WorkerSet) -> Self {
        let nothing = Observed {
            hash: ContactHash::default(),
            packet: 0,
            observation: Observation::Attempted,
        };
        Self {
            contacts: ContactTable::new(settings.contacts, settings.key),
            targets: TargetTable::new(settings.key),
            connections: settings
                .new_connections
                .then(|| ConnectionLog::new(settings.connections_per_second, settings.key)),
            flows: settings.flows.map(|flows| Flows {
                table: match flows.grows {
                    true => FlowTable::growing(flows.flows, flows.timeouts, settings.key),
                    false => FlowTable::new(flows.flows, flows.timeouts, settings.key),
                },
                limit: FlowLimit::new(flows.per_second),
                keys: [None; VECTOR],
                before: counters.worker.flows.begin_anew(),
            }),
            splits_flows: settings.splits_flows,
            before: EvidenceCounters {
                published: counters.worker.contacts_published.read(),
                gated: counters.worker.contacts_gated.read(),
                engaged: counters.worker.doors_engaged.read(),
                evicted_unpublished: counters.worker.evidence_lost.read(),
                ..EvidenceCounters::default()
            },
            targets_before: TargetCounters {
                published: counters.worker.targets_published.read(),
                evicted: counters.worker.targets_evicted.read(),
            },
            counters,
            packets: [Packet::default(); VECTOR],
            observed: [nothing; VECTOR],
        }
    }

    /// Takes the next frames of one ring or file out of `source`, at most [`VECTOR`], puts them into
    /// `vector`, analyses them, and gives their packets, in the same order; none if there are no more.
    /// They count under the place `slot` of the list of counters; connections and flows have the
    /// interface of their frames. `connection` is called for each new connection to be written, `ended`
    /// for each flow that ends by a packet.
    ///
    /// A ring asks for the memory of frames some steps ahead. Each step here has the work of a frame
    /// beside it, so that the memory is there when it is needed: taking all frames of a vector first
    /// waits for it.
    #[inline]
    pub fn analyse<'a>(
        &mut self,
        slot: usize,
        source: &mut impl Iterator<Item = Frame<'a>>,
        vector: &mut [Frame<'a>; VECTOR],
        mut connection: impl FnMut(NewConnection),
        mut ended: impl FnMut(EndedFlow),
    ) -> &[Packet] {
        let Parsed { count, observed, drawn, sources } = self.parse(slot, source, vector);
        let frames = &vector[..count];
        if let Some(Flows { table, keys, .. }) = &mut self.flows {
            keys[..frames.len()].iter_mut().flatten().for_each(|key| table.locate(key));
        }
        for Observed { hash, packet, observation } in &self.observed[..observed] {
            if self.contacts.holds_back(*hash, *observation) {
                continue;
            }
            let number = usize::from(*packet);
            if let Some((key, _)) = evidence::observe(&self.packets[number]) {
                self.contacts.take_in(*hash, &key, *observation, frames[number].time);
            }
        }
        self.targets.count(drawn, sources, &self.packets, frames);
        self.log_connections(frames, &mut connection);
        self.count_flows(frames, &mut ended);
        &self.packets[..frames.len()]
    }

    /// First pass: take, parse, count, request table lines, draw samples.
    #[inline]
    fn parse<'a>(
        &mut self,
        slot: usize,
        source: &mut impl Iterator<Item = Frame<'a>>,
        vector: &mut [Frame<'a>; VECTOR],
    ) -> Parsed {
        let counters = &self.counters.interfaces[slot];
        let mut flows = self.flows.as_mut();
        let (mut count, mut observed) = (0, 0);
        let (mut drawn, mut sources) = (0_u32, 0_u32);
        let mut bytes = 0;
        let mut truncated = 0;
        let (mut ip, mut ipv4, mut vlan) = (0, 0, 0);
        let (mut tunnelled, mut first_fragments) = (0, 0);
        for (number, (slot, packet)) in vector.iter_mut().zip(&mut self.packets).enumerate() {
            let Some(taken) = source.next() else { break };
            *slot = taken;
            count += 1;
            let frame = &*slot;
            packet::parse_into(packet, frame);
            bytes += u64::from(frame.wire_len.0);
            truncated += u64::from(frame.data.len() < frame.wire_len.0 as usize);
            kind_counter(&counters.packets, packet).add(1);
            let is_ip = !matches!(packet.kind, Kind::Arp { .. } | Kind::Other | Kind::Malformed(_));
            ip += u64::from(is_ip);
            ipv4 += u64::from(is_ip && packet.tuple.source.is_v4());
            vlan += u64::from(packet.vlan_ids != [0, 0]);
            tunnelled += u64::from(packet.tunnel_depth != 0);
            first_fragments += u64::from(packet.is_fragment && packet.kind != Kind::LaterFragment);
            drawn |= u32::from(self.targets.draws(packet, frame.time)) << number;
            if let Some(Flows { table, keys, .. }) = &mut flows {
                let mut key = table.key(packet, frame.interface, frame.time);
                key.iter_mut().for_each(|key| table.prefetch(key));
                keys[number] = key;
            }
            if let Some((key, observation)) = evidence::observe(packet) {
                let hash = self.contacts.hash(&key);
                self.contacts.prefetch(hash, observation);
                sources |= u32::from(TargetTable::draws_source(hash.source())) << number;
                self.observed[observed] = Observed { hash, packet: number as u8, observation };
                observed += 1;
            }
        }
        counters.analysed.add(count as u64);
        counters.analysed_bytes.add(bytes);
        counters.truncated.add(truncated);
        counters.ipv4.add(ipv4);
        counters.ipv6.add(ip - ipv4);
        counters.vlan.add(vlan);
        counters.tunnelled.add(tunnelled);
        counters.first_fragments.add(first_fragments);
        Parsed { count, observed, drawn, sources }
    }

    /// Second pass over the packets, in which a connection may be written.
    #[inline]
    fn log_connections(
        &mut self,
        frames: &[Frame<'_>],
        connection: &mut impl FnMut(NewConnection),
    ) {
        let Some(log) = &mut self.connections else { return };
        let (mut connections, mut over_limit) = (0, 0);
        for (frame, packet) in frames.iter().zip(&self.packets) {
            match log.observe(packet, frame.interface, frame.time) {
                Seen::Nothing => {}
                Seen::OverLimit => over_limit += 1,
                Seen::Connection(new) => {
                    connections += 1;
                    connection(new);
                }
            }
        }
        self.counters.worker.connections.add(connections + over_limit);
        self.counters.worker.connections_over_limit.add(over_limit);
    }

    /// Last pass: each packet in its flow, and what that says about a contact.
    #[inline]
    fn count_flows(&mut self, frames: &[Frame<'_>], ended: &mut impl FnMut(EndedFlow)) {
        let Some(Flows { table, limit, keys, .. }) = &mut self.flows else {
            return self.count_answers(frames);
        };
        let (contacts, targets) = (&mut self.contacts, &mut self.targets);
        let mut ended = limit.apply(&self.counters.worker.flows, ended);
        for ((frame, packet), key) in frames.iter().zip(&self.packets).zip(keys) {
            if let Some(key) = key {
                let Frame { interface, wire_len, time, .. } = *frame;
                let change = table.observe(key, packet, interface, wire_len, time, &mut ended);
                if change != Change::Nothing {
                    take_in(contacts, evidence::observe_change(packet, change), time);
                    if self.splits_flows {
                        take_in(contacts, evidence::observe_other_half(packet, change), time);
                    }
                    match change {
                        Change::Completed => targets.complete(packet.tuple.target, time),
                        Change::Claimed => targets.claim(packet.tuple.target, time),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Without a table of flows nothing is known of handshakes: an answer counts as a completed one.
    fn count_answers(&mut self, frames: &[Frame<'_>]) {
        const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
        for (frame, packet) in frames.iter().zip(&self.packets) {
            if let Kind::Tcp { flags, .. } = packet.kind
                && flags & (SYN_ACK | tcp::RST | tcp::FIN) == SYN_ACK
            {
                self.targets.complete(packet.tuple.source, frame.time);
            }
        }
    }

    /// Lets tables that grow do so, if it is time to. For which flow there is no room all the same, it ends
    /// at `now`.
    pub fn make_room(&mut self, now: UnixNanos, mut ended: impl FnMut(EndedFlow)) {
        let Some(Flows { table, limit, .. }) = &mut self.flows else { return };
        table.make_room(now, &mut limit.apply(&self.counters.worker.flows, &mut ended));
    }

    /// Ends the flows that had no packet for too long; a share of the table each time. `now` is the
    /// time up to which all packets were seen.
    pub fn end_idle_flows(&mut self, now: UnixNanos, mut ended: impl FnMut(EndedFlow)) {
        let Some(Flows { table, limit, before, .. }) = &mut self.flows else { return };
        table.sweep(now, &mut limit.apply(&self.counters.worker.flows, &mut ended));
        self.counters.worker.flows.show(table, before);
    }

    /// Ends every flow: no further packet comes. The limit of a second does not hold here.
    pub fn end_all_flows(&mut self, now: UnixNanos, mut ended: impl FnMut(EndedFlow)) {
        let Some(Flows { table, limit, before, .. }) = &mut self.flows else { return };
        let is_wanted = limit.is_wanted();
        table.finish(now, &mut |flow| {
            if is_wanted {
                ended(flow);
            }
        });
        self.counters.worker.flows.show(table, before);
    }

    /// Hands out the evidence that is new since the last call. `sink` gives `false` when it is full.
    pub fn publish(&mut self, sink: impl FnMut(&Contact) -> bool) -> Published {
        let published = self.contacts.publish(sink);
        let counted = self.contacts.counters();
        let worker = &self.counters.worker;
        let before = &self.before;
        worker.contacts_published.set(before.published + counted.published);
        worker.contacts_gated.set(before.gated + counted.gated);
        worker.doors_engaged.set(before.engaged + counted.engaged);
        worker.door.set(self.contacts.door_asks_for());
        let lost = counted.evicted_unpublished + counted.answers_dropped;
        worker.evidence_lost.set(before.evicted_unpublished + lost);
        published
    }

    /// Hands out what arrived at targets since the last call. `sink` gives `false` when it is full; says
    /// whether it took all.
    pub fn publish_targets(&mut self, sink: impl FnMut(&flood::Report) -> bool) -> bool {
        let is_complete = self.targets.publish(sink);
        let TargetCounters { published, evicted } = self.targets.counters();
        let (worker, before) = (&self.counters.worker, &self.targets_before);
        worker.targets_published.set(before.published + published);
        worker.targets_evicted.set(before.evicted + evicted);
        is_complete
    }
}

/// Takes in what a packet says about a contact, if anything, without having asked for its line before.
fn take_in(
    contacts: &mut ContactTable,
    observed: Option<(ContactKey, Observation)>,
    time: UnixNanos,
) {
    let Some((key, observation)) = observed else { return };
    let hash = contacts.hash(&key);
    if !contacts.holds_back(hash, observation) {
        contacts.take_in(hash, &key, observation, time);
    }
}

/// The counter of what a packet is.
#[inline]
fn kind_counter<'a>(counters: &'a PacketCounters, packet: &Packet) -> &'a Counter {
    match packet.kind {
        Kind::Tcp { .. } => &counters.tcp,
        Kind::Udp => &counters.udp,
        Kind::Sctp { .. } => &counters.sctp,
        Kind::Icmp { .. } if packet.tuple.protocol == protocol::ICMPV6 => &counters.icmpv6,
        Kind::Icmp { .. } => &counters.icmp,
        Kind::LaterFragment => &counters.later_fragment,
        Kind::OtherIp => &counters.other_ip,
        Kind::Arp { .. } => &counters.arp,
        Kind::Other => &counters.other,
        Kind::Malformed(reason) => &counters.malformed[reason as usize],
    }
}
