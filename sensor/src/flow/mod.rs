//! A worker's flows: who talks to whom, how much each way, and when it ended.
//!
//! ```text
//!   mod      the table: what a packet does to a flow, how flows end
//!   key      the keyed hash of a flow, which both directions share
//!   slots    fixed memory: a flow is found and counted in one line of the cache
//!   hot      what every packet of a flow touches
//!   life     states, time-outs, and what a flow is worth when memory is short
//!   limit    how many ended flows are told in a second
//!   record   what is told of a flow that ended
//!
//!              SYN, or anything that opens or closes, of an unknown flow
//!   packet ──▶ half-open   4 096 slots, stays in the second-level cache; newest replaces oldest
//!      │           │ the other side answers, or a second packet comes
//!      │           ▼
//!      └─────▶ flows       sized at start; found, counted, ended by time
//! ```
//!
//! A flow is known by a 64-bit keyed hash of addresses, ports, protocol, VLAN ids and interface: by its
//! home, which the upper bits give, and by the lower 45 bits, of which one is set. The full key lies in
//! a cold line, is written once and read when the flow ends: comparing it for every packet would cost
//! that second cold line. Two flows that are alive together are taken for one with a probability of
//! about n² / 2⁶⁴: once in 18 million tables of a million flows, in 180 thousand tables of ten million.
//! They would then be counted as one. The key is random in a live sensor, so nobody can look for such
//! pairs.
//!
//! A flood of SYNs does not reach the flows. It fills the half-open table; when that has replaced as
//! many openings within a second as it holds, further SYNs of that second touch no table at all and are
//! counted. A connection that opens meanwhile is a flow from the answer to its SYN on.
//!
//! Nothing here decides when: time comes from the packets and from [`FlowTable::sweep`].

mod hot;
mod key;
mod life;
mod limit;
mod record;
mod slots;
#[cfg(test)]
mod tests;

use std::mem;
use std::time::Duration;

use packet::{Kind, Packet, tcp};
use wire::units::{UnixNanos, WireLen};

pub use key::FlowKey;
pub use life::{Change, State, Timeouts};
pub use limit::FlowLimit;
pub use record::{EndReason, EndedFlow};

use crate::connections::begins_second;
use hot::{Hot, Sight};
use life::Worth;
use slots::{Cold, Slots, Whole};

/// Slots for flows of which only an opening or a closing was seen: 516 KiB a worker.
const HALF_OPEN_SLOTS: usize = 4096;

/// Room of a table that is to grow: 2 MiB.
const FLOWS_AT_FIRST: usize = 12_224;

/// The flows of one worker. Fixed memory, no allocation but in [`FlowTable::new`] and
/// [`FlowTable::make_room`].
pub struct FlowTable {
    flows: Slots,
    /// Slots that `flows` may grow to.
    most: usize,
    half_open: Slots,
    timeouts: Timeouts,
    key: u64,
    pressure: Pressure,
    /// Up to when flows were looked at for their end.
    swept: UnixNanos,
    counters: FlowCounters,
}

/// What a [`FlowTable`] counted since it was made. Unit: flows, unless said. At any time
/// `begun` = `ended` + `half_open_evicted` + the flows that are [live](FlowTable::live).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Begun.
    pub begun: u64,
    /// Ended and handed out, by reason, in the order of [`EndReason::ALL`].
    pub ended: [u64; EndReason::ALL.len()],
    /// Of those that were ended because there was no room: by state, in the order of
    /// [`State::ALL`].
    pub evicted: [u64; State::ALL.len()],
    /// Half-open flows that gave way to newer ones: counted here, not handed out.
    pub half_open_evicted: u64,
    /// Packets that open a connection and were counted in no flow, because the half-open table was
    /// under pressure. Unit: packets.
    pub openings_skipped: u64,
}

/// How fast the half-open table is being overrun.
#[derive(Default)]
struct Pressure {
    second: u64,
    evictions: usize,
}

impl FlowTable {
    /// Memory of a table for so many flows (rounded as [`FlowTable::new`] does). Unit: bytes.
    #[must_use]
    pub const fn memory(flows: usize) -> usize {
        Slots::memory(slots(flows)) + Slots::memory(HALF_OPEN_SLOTS)
    }

    /// A table that holds `flows` flows: with so many of them alive, one new flow in two hundred finds its
    /// neighbourhood full and makes the least valuable flow there give way. `key` seeds the hash:
    /// random, or fixed for repeatable runs.
    #[must_use]
    pub fn new(flows: usize, timeouts: Timeouts, key: u64) -> Self {
        Self {
            flows: Slots::new(slots(flows)),
            most: slots(flows),
            half_open: Slots::new(HALF_OPEN_SLOTS),
            timeouts,
            key,
            pressure: Pressure::default(),
            swept: UnixNanos(0),
            counters: FlowCounters::default(),
        }
    }

    /// As [`FlowTable::new`], but it begins small: to be given [room](FlowTable::make_room) as it fills. For
    /// files, of which most have few flows; an interface is given its memory at the start.
    #[must_use]
    pub fn growing(flows: usize, timeouts: Timeouts, key: u64) -> Self {
        Self { most: slots(flows), ..Self::new(flows.min(FLOWS_AT_FIRST), timeouts, key) }
    }

    /// Doubles a table that may grow and is half full. Not while keys are held that were
    /// [prefetched](FlowTable::prefetch).
    pub fn make_room(&mut self, now: UnixNanos, ended: &mut impl FnMut(EndedFlow)) {
        let slots = self.flows.len();
        if slots == self.most || self.flows.live() <= slots / 2 {
            return;
        }
        let larger = Slots::new((slots * 2).min(self.most));
        let smaller = mem::replace(&mut self.flows, larger);
        for (worth, flow) in smaller.flows() {
            let slot = self.room(flow.home_hash(), now, ended);
            self.flows.put(slot, &flow);
            self.flows.set_worth(slot, worth);
        }
    }

    /// What was counted since the table was made.
    #[must_use]
    pub const fn counters(&self) -> FlowCounters {
        self.counters
    }

    /// Flows in the table, the half-open ones not included.
    #[must_use]
    pub const fn live(&self) -> usize {
        self.flows.live()
    }

    /// Flows of which only an opening or a closing was seen.
    #[must_use]
    pub const fn half_open(&self) -> usize {
        self.half_open.live()
    }

    /// The key of the flow that `packet` belongs to, for the other methods. `None`, counted, for a SYN
    /// that is not looked at; `None` for packets that belong to no flow: malformed ones, ARP, no IP.
    #[inline]
    #[must_use]
    pub fn key(&mut self, packet: &Packet, interface: u32, time: UnixNanos) -> Option<FlowKey> {
        if opens(packet) && self.pressure.is_on(time) {
            self.counters.openings_skipped += 1;
            return None;
        }
        FlowKey::of(packet, interface, self.key)
    }

    /// Starts loading the line where the flow most likely is. For vectors of packets: this for all of
    /// them, then [`FlowTable::locate`] for all of them, then [`FlowTable::observe`].
    #[inline]
    pub fn prefetch(&self, key: &mut FlowKey) {
        key.slot = self.flows.prefetch(key.hash());
    }

    /// Finds where the flow lives, and starts loading that line if it is not the one of its home.
    #[inline]
    pub fn locate(&self, key: &mut FlowKey) {
        key.slot = self.flows.locate(key.slot, key.hash());
    }

    /// Counts one packet in its flow, which it may begin; tells what is new about the flow by it. `ended` is called for each flow that ends by
    /// that: one that was idle for too long, one that is reused, one that gives way.
    #[inline]
    pub fn observe(
        &mut self,
        key: &FlowKey,
        packet: &Packet,
        interface: u32,
        len: WireLen,
        time: UnixNanos,
        ended: &mut impl FnMut(EndedFlow),
    ) -> Change {
        let seen = Seen { key, packet, interface, len, time };
        let is_opening = opens(packet);
        if is_opening && self.pressure.is_on(time) {
            // Since the key was taken: what is skipped must not depend on where vectors begin.
            self.counters.openings_skipped += 1;
            return Change::Nothing;
        }
        match self.flows.find_at(key.slot as usize, key.hash()) {
            Some(slot) => {
                let flow = self.flows.hot(slot);
                match self.timeouts.end_of(flow, time, is_opening) {
                    None => self.flows.count(slot, key, &seen.sight()),
                    Some(reason) => {
                        let over = self.flows.remove(slot);
                        self.end(&over, reason, time, ended);
                        self.begin(&seen, ended)
                    }
                }
            }
            None => self.observe_unknown(&seen, ended),
        }
    }

    /// A packet whose flow is not in the main table.
    fn observe_unknown(&mut self, seen: &Seen<'_>, ended: &mut impl FnMut(EndedFlow)) -> Change {
        let Some(flags) = tcp_flags(seen.packet) else { return self.begin(seen, ended) };
        let Some(slot) = self.half_open.find(seen.key.hash()) else {
            return self.begin(seen, ended);
        };
        let opening = self.half_open.hot(slot);
        if let Some(reason) = self.timeouts.end_of(opening, seen.time, opens(seen.packet)) {
            let over = self.half_open.remove(slot);
            self.end(&over, reason, seen.time, ended);
            return self.begin(seen, ended);
        }
        let is_repeat = opening.way(seen.key) == 0 && flags & tcp::SYN != 0;
        if is_repeat || flags & tcp::RST != 0 {
            return self.half_open.count(slot, seen.key, &seen.sight());
        }
        let opening = self.half_open.remove(slot);
        let slot = self.room(seen.key.hash(), seen.time, ended);
        self.flows.put(slot, &opening);
        self.flows.count(slot, seen.key, &seen.sight())
    }

    /// The first packet of a flow.
    fn begin(&mut self, seen: &Seen<'_>, ended: &mut impl FnMut(EndedFlow)) -> Change {
        const OPENS_OR_CLOSES: u8 = tcp::SYN | tcp::FIN | tcp::RST;
        let is_half_open = tcp_flags(seen.packet).is_some_and(|flags| flags & OPENS_OR_CLOSES != 0);
        if !is_half_open {
            let slot = self.room(seen.key.hash(), seen.time, ended);
            self.counters.begun += 1;
            self.flows.put(slot, &seen.begins());
            self.flows.count(slot, seen.key, &seen.sight());
            return Change::Began;
        }
        let slot = self.half_open.choose(seen.key.hash());
        if self.half_open.is_taken(slot) {
            if self.pressure.is_on(seen.time) {
                self.counters.openings_skipped += 1;
                return Change::Nothing;
            }
            self.pressure.note_eviction(seen.time);
            self.counters.half_open_evicted += 1;
            self.half_open.take(slot);
        }
        self.counters.begun += 1;
        self.half_open.put(slot, &seen.begins());
        self.half_open.count(slot, seen.key, &seen.sight());
        Change::Began
    }

    /// An empty slot of the main table; the least valuable flow in the neighbourhood may give way.
    fn room(&mut self, hash: u64, time: UnixNanos, ended: &mut impl FnMut(EndedFlow)) -> usize {
        let slot = self.flows.choose(hash);
        if self.flows.is_taken(slot) {
            let over = self.flows.take(slot);
            let reason = self.timeouts.end_of(&over.hot, time, false);
            if reason.is_none() {
                self.counters.evicted[over.hot.state() as usize] += 1;
            }
            self.end(&over, reason.unwrap_or(EndReason::Forced), time, ended);
        }
        slot
    }

    fn end(
        &mut self,
        over: &Whole,
        reason: EndReason,
        time: UnixNanos,
        ended: &mut impl FnMut(EndedFlow),
    ) {
        self.counters.ended[reason as usize] += 1;
        ended(EndedFlow::new(over, reason, time));
    }

    /// Looks at the share of the flows that is due since the last call, and ends those that were idle
    /// for too long. Every flow is looked at once within the shortest time-out; half-open ones at every
    /// call. Which flows are due depends on their hashes and on `now`, not on the size of the table.
    pub fn sweep(&mut self, now: UnixNanos, ended: &mut impl FnMut(EndedFlow)) {
        let pass = self.timeouts.shortest();
        let since = now.since(self.swept);
        let (from, to) = (part_of_pass(self.swept, pass), part_of_pass(now, pass));
        self.swept = now;
        if since.is_zero() {
            // No time has passed, or the clock was set back: from here on.
            return;
        }
        self.sweep_half_open(now, ended);
        if since >= pass {
            self.sweep_flows(0, u32::MAX, now, ended);
        } else if from < to {
            self.sweep_flows(from, to - 1, now, ended);
        } else if from > to {
            self.sweep_flows(from, u32::MAX, now, ended);
            if to > 0 {
                self.sweep_flows(0, to - 1, now, ended);
            }
        }
    }

    fn sweep_half_open(&mut self, now: UnixNanos, ended: &mut impl FnMut(EndedFlow)) {
        let Self { half_open, timeouts, counters, .. } = self;
        half_open.sweep(0, u32::MAX, |hot| settle(timeouts, hot, now), &mut |flow| {
            counters.ended[EndReason::Timeout as usize] += 1;
            ended(EndedFlow::new(flow, EndReason::Timeout, now));
        });
    }

    /// Flows whose turn is from `from` to `to`, both included.
    fn sweep_flows(
        &mut self,
        from: u32,
        to: u32,
        now: UnixNanos,
        ended: &mut impl FnMut(EndedFlow),
    ) {
        let Self { flows, timeouts, counters, .. } = self;
        flows.sweep(from, to, |hot| settle(timeouts, hot, now), &mut |flow| {
            counters.ended[EndReason::Timeout as usize] += 1;
            ended(EndedFlow::new(flow, EndReason::Timeout, now));
        });
    }

    /// Ends every flow: capture is over.
    pub fn finish(&mut self, now: UnixNanos, ended: &mut impl FnMut(EndedFlow)) {
        let Self { flows, half_open, counters, .. } = self;
        for slots in [flows, half_open] {
            slots.sweep(0, u32::MAX, |_| None, &mut |flow| {
                counters.ended[EndReason::Shutdown as usize] += 1;
                ended(EndedFlow::new(flow, EndReason::Shutdown, now));
            });
        }
    }
}

/// One packet and what is known of it.
struct Seen<'a> {
    key: &'a FlowKey,
    packet: &'a Packet,
    interface: u32,
    len: WireLen,
    time: UnixNanos,
}

impl Seen<'_> {
    /// A flow that begins with this packet, which is not counted yet.
    fn begins(&self) -> Whole {
        let Self { key, packet, interface, time, .. } = *self;
        const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
        let flags = tcp_flags(packet);
        // The answer to an opening that was not seen: the other side is the opener.
        let is_answer = flags.is_some_and(|flags| flags & SYN_ACK == SYN_ACK);
        let hot = Hot::new(key, is_answer, flags.is_some(), time);
        Whole::new(hot, Cold::new(key, packet, is_answer, interface, time))
    }

    #[inline]
    const fn sight(&self) -> Sight {
        Sight { flags: tcp_flags(self.packet), len: self.len, time: self.time }
    }
}

/// What a flow is worth now; `None`: its time is over.
fn settle(timeouts: &Timeouts, hot: &mut Hot, now: UnixNanos) -> Option<Worth> {
    if hot.last > now.plus(CLOCK_SLACK) {
        // The clock was set back: without this the flow would stay until it is late again.
        hot.last = now;
    }
    let idle = now.since(hot.last);
    (idle <= timeouts.of(hot.state())).then(|| Worth::of(hot, idle))
}

/// The wall clock may be corrected by so much without notice.
const CLOCK_SLACK: Duration = Duration::from_secs(10);

/// Is it a SYN without ACK?
#[inline]
const fn opens(packet: &Packet) -> bool {
    const DECISIVE: u8 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
    matches!(tcp_flags(packet), Some(flags) if flags & DECISIVE == tcp::SYN)
}

/// The flags of a whole TCP packet.
#[inline]
const fn tcp_flags(packet: &Packet) -> Option<u8> {
    match packet.kind {
        Kind::Tcp { flags, .. } if !packet.is_fragment => Some(flags),
        _ => None,
    }
}

impl Pressure {
    /// Has the half-open table been replaced once in this second?
    #[inline]
    const fn is_on(&self, time: UnixNanos) -> bool {
        self.evictions >= HALF_OPEN_SLOTS && !begins_second(self.second, time.seconds())
    }

    fn note_eviction(&mut self, time: UnixNanos) {
        if begins_second(self.second, time.seconds()) {
            *self = Self { second: time.seconds(), evictions: 0 };
        }
        self.evictions += 1;
    }
}

/// How far the hand is at `time` on its way through all hashes, which takes one `pass`.
const fn part_of_pass(time: UnixNanos, pass: Duration) -> u32 {
    let pass = pass.as_nanos();
    (((time.0 as u128 % pass) << u32::BITS) / pass) as u32
}

/// Slots for so many flows: three of four are taken then.
const fn slots(flows: usize) -> usize {
    (flows / 3 * 4 + 64).next_multiple_of(slots::GROUP)
}
