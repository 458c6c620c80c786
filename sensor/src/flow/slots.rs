//! Fixed memory for flows: found by hash, one line of the cache a packet.
//!
//! ```text
//!   lines    ┌──────────┬──────────┬────────────┐ 64 bytes
//!            │ hot flow │ hot flow │ guests × 8 │ two slots
//!            └──────────┴──────────┴────────────┘
//!              24         24         16
//!   cold     full key, first time: written when a flow begins, read when it ends             64 bytes
//!   spilled  counts that outgrew the hot flow: once in a thousand packets, or in 4 MiB       32 bytes
//!   worth    what a flow is worth, 0 empty; 64 of them are a group and a line                1 byte
//! ```
//!
//! A flow has a home line, which its hash gives. Where both slots of that are taken, it lives as a guest
//! in another line of the same group, the next one if there is room, and its home has a mark of it: ten
//! bits of its hash and its place. When a slot of its home becomes free, it comes home: otherwise three
//! flows in five would live elsewhere after a while, as others come and go. So a packet of a known flow
//! costs its home and, for about one flow in four, the line where it lives; a packet of an unknown
//! flow costs its home. Nothing is searched for.
//!
//! What limits a large table is how many lines stay in the cache of the processor, so the lines that
//! packets touch hold nothing else.

use std::hint::select_unpredictable;
use std::time::Duration;

use packet::{FiveTuple, Kind, Packet};
use wire::units::{UnixNanos, WireLen};

use super::hot::{Hot, Sight, Totals};
use super::key::FlowKey;
use super::life::{Change, Worth};
use crate::hardware::{Table, prefetch};

/// Slots that share a line of worths: where a flow can live.
pub(super) const GROUP: usize = 64;
/// Slots of a line.
const PAIR: usize = 2;
/// Flows that live elsewhere and have the same home. At three flows for four slots, a few new flows in a
/// million find no mark left, and then the least valuable of them gives way.
const GUESTS: usize = 8;

/// Two slots, and marks of the flows that have their home here and live elsewhere.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line {
    flows: [Hot; PAIR],
    guests: Guests,
}

/// What is written when a flow begins, and read when it ends.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Cold {
    pub(super) tuple: FiveTuple,
    pub(super) vlan_ids: [u16; 2],
    pub(super) interface: u32,
    pub(super) first: UnixNanos,
    /// The upper half of the flow's hash: its home, and when the sweep looks at it.
    hash_high: u32,
    pub(super) icmp: Option<(u8, u8)>,
    pub(super) is_fragments: bool,
}

/// All that is known of a flow, out of its slot.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub(super) hot: Hot,
    pub(super) cold: Cold,
    spilled: Totals,
}

impl Whole {
    /// The upper half of the flow's hash, which says where its home is, in its place.
    pub(super) const fn home_hash(&self) -> u64 {
        (self.cold.hash_high as u64) << u32::BITS
    }
}

/// Worths of the flows of one group.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Group([Worth; GROUP]);

const _: () = assert!(size_of::<Line>() == 64 && size_of::<Cold>() == 64);
const _: () = assert!(size_of::<Totals>() == 32 && size_of::<Group>() == 64);

/// Slots of flows.
pub(super) struct Slots {
    lines: Table<Line>,
    cold: Table<Cold>,
    spilled: Table<Totals>,
    worth: Table<Group>,
    live: usize,
}

impl Slots {
    /// Memory of so many slots, a multiple of [`GROUP`]. Unit: bytes.
    pub(super) const fn memory(slots: usize) -> usize {
        Table::<Line>::memory(slots / PAIR)
            + Table::<Cold>::memory(slots)
            + Table::<Totals>::memory(slots)
            + Table::<Group>::memory(slots / GROUP)
    }

    /// # Panics
    /// If there are none, no whole groups, or more than [`u32::MAX`].
    pub(super) fn new(slots: usize) -> Self {
        assert!(u32::try_from(slots).is_ok(), "{slots} slots are too many");
        assert!(slots > 0 && slots.is_multiple_of(GROUP), "{slots} slots are no whole groups");
        Self {
            lines: Table::new(slots / PAIR, Line::default()),
            cold: Table::new(slots, Cold::default()),
            spilled: Table::new(slots, Totals::default()),
            worth: Table::new(slots / GROUP, Group([Worth::NOTHING; GROUP])),
            live: 0,
        }
    }

    pub(super) const fn live(&self) -> usize {
        self.live
    }

    /// Slots, taken ones and others.
    pub(super) fn len(&self) -> usize {
        self.cold.len()
    }

    /// All flows, with what they are worth.
    pub(super) fn flows(&self) -> impl Iterator<Item = (Worth, Whole)> {
        let taken = (0..self.len()).filter(|slot| self.is_taken(*slot));
        taken.map(|slot| (self.worth[slot / GROUP].0[slot % GROUP], self.whole(slot)))
    }

    /// The flow in a slot that is taken.
    fn whole(&self, slot: usize) -> Whole {
        let (hot, cold) = (*self.hot(slot), self.cold[slot]);
        let spilled = if hot.has_spilled() { self.spilled[slot] } else { Totals::default() };
        Whole { hot, cold, spilled }
    }

    #[inline]
    pub(super) fn hot(&self, slot: usize) -> &Hot {
        &self.lines[slot / PAIR].flows[slot % PAIR]
    }

    #[inline]
    fn hot_mut(&mut self, slot: usize) -> &mut Hot {
        &mut self.lines[slot / PAIR].flows[slot % PAIR]
    }

    pub(super) fn is_taken(&self, slot: usize) -> bool {
        self.worth[slot / GROUP].0[slot % GROUP] != Worth::NOTHING
    }

    #[inline]
    pub(super) fn set_worth(&mut self, slot: usize, worth: Worth) {
        self.worth[slot / GROUP].0[slot % GROUP] = worth;
    }

    /// Starts loading the home of a flow with this hash; gives its first slot.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) -> u32 {
        let home = self.home(hash);
        prefetch(&self.lines[home]);
        (home * PAIR) as u32
    }

    /// The slot where the flow with this hash most likely lives, by the first one of its home; starts
    /// loading its line. To be called when the line of its home is there. In which slot a flow lives no
    /// processor can predict, so there is no branch on that.
    #[inline]
    pub(super) fn locate(&self, first: u32, hash: u64) -> u32 {
        let first = first as usize;
        let line = &self.lines[first / PAIR];
        let [is_first, is_second] = [0, 1].map(|index| line.flows[index].is_of(hash));
        let (is_guest, place) = line.guests.place(hash);
        let elsewhere = select_unpredictable(is_guest, neighbour(first, place), first);
        let here = first + usize::from(is_second);
        let slot = select_unpredictable(is_first | is_second, here, elsewhere);
        prefetch(&self.lines[slot / PAIR]);
        if !(is_first | is_second | is_guest) {
            // It will begin here: what decides who gives way, and the one that most likely does.
            prefetch(&self.worth[first / GROUP]);
            prefetch(&self.cold[first]);
        }
        slot as u32
    }

    /// The slot where the flow with this hash lives; `likely` is looked at first.
    #[inline]
    pub(super) fn find_at(&self, likely: usize, hash: u64) -> Option<usize> {
        match self.lines.get(likely / PAIR) {
            Some(line) if line.flows[likely % PAIR].is_of(hash) => Some(likely),
            _ => self.find(hash),
        }
    }

    /// The slot where the flow with this hash lives.
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        let first = self.home(hash) * PAIR;
        let guests = &self.lines[first / PAIR].guests;
        let guests = guests.places(hash).map(|place| neighbour(first, place));
        (first..first + PAIR).chain(guests).find(|slot| self.hot(*slot).is_of(hash))
    }

    /// The slot that a new flow with this hash, of which the upper half counts, is to have: one that is
    /// empty, or else that of the neighbour which is worth least. Among equals, the one nearest to its home.
    pub(super) fn choose(&self, hash: u64) -> usize {
        let home = self.home(hash);
        let first = home * PAIR;
        let slot = self.worth[first / GROUP].least(first);
        let guests = &self.lines[home].guests;
        if slot / PAIR == home || !guests.is_full() {
            return slot;
        }
        // No room for another mark: one of those that have their home here, or who lives here.
        let worth = |slot: usize| self.worth[slot / GROUP].0[slot % GROUP];
        let kin = guests.all().map(|place| neighbour(first, place)).chain(first..first + PAIR);
        kin.min_by_key(|slot| worth(*slot)).unwrap_or(first)
    }

    /// Puts a flow into an empty slot that [`Slots::choose`] gave for its hash.
    pub(super) fn put(&mut self, slot: usize, flow: &Whole) {
        debug_assert!(!self.is_taken(slot), "slot {slot} is taken");
        let Whole { hot, cold, spilled } = flow;
        self.live += 1;
        self.set_worth(slot, Worth::of(hot, Duration::ZERO));
        let home = self.home_by_high(cold.hash_high);
        if slot / PAIR != home {
            self.lines[home].guests.add(hot.tag(), slot % GROUP);
        }
        *self.hot_mut(slot) = *hot;
        self.cold[slot] = *cold;
        if hot.has_spilled() {
            self.spilled[slot] = *spilled;
        }
    }

    /// Takes the flow out of a slot that is taken, for good: guests of this home move in.
    pub(super) fn remove(&mut self, slot: usize) -> Whole {
        let over = self.take(slot);
        self.call_home(slot);
        over
    }

    /// Lets a guest that has its home here move into an empty slot, and others into the one that it
    /// leaves.
    fn call_home(&mut self, mut slot: usize) {
        while let Some(place) = self.lines[slot / PAIR].guests.all().next() {
            let from = neighbour(slot, place);
            let worth = self.worth[from / GROUP].0[from % GROUP];
            let guest = self.take(from);
            self.put(slot, &guest);
            self.set_worth(slot, worth);
            slot = from;
        }
    }

    /// Takes the flow out of a slot that is taken, to put another one there.
    pub(super) fn take(&mut self, slot: usize) -> Whole {
        let over = self.whole(slot);
        self.live -= 1;
        self.set_worth(slot, Worth::NOTHING);
        self.hot_mut(slot).clear();
        let home = self.home_by_high(over.cold.hash_high);
        if slot / PAIR != home {
            self.lines[home].guests.remove(over.hot.tag(), slot % GROUP);
        }
        over
    }

    /// Counts a packet of the flow in a slot that is taken. Tells what is new about the flow by it.
    #[inline(always)]
    pub(super) fn count(&mut self, slot: usize, key: &FlowKey, sight: &Sight) -> Change {
        let flow = self.hot_mut(slot);
        let before = (flow.state(), flow.is_single());
        let way = flow.way(key);
        let change = flow.see(way, sight);
        let is_counted = flow.count(way, sight.len);
        if before.1 || before.0 != flow.state() {
            let worth = Worth::of(flow, Duration::ZERO);
            self.set_worth(slot, worth);
        }
        if !is_counted {
            self.spill(slot, way, sight.len);
        }
        change
    }

    /// Counts a packet for which the hot flow has no room; it has room again then.
    #[cold]
    fn spill(&mut self, slot: usize, way: usize, len: WireLen) {
        let mut totals = self.hot(slot).totals(&self.spilled[slot]);
        totals.packets[way] += 1;
        totals.bytes[way] += u64::from(len.0);
        self.spilled[slot] = totals;
        self.hot_mut(slot).spill();
    }

    /// Asks `settle` about the flows whose turn is from `from` to `to`, both included, by the upper half
    /// of their hashes: it gives the worth of the flow from now on, or `None` if the flow is over; `ended`
    /// gets it then. Neighbours may be asked about too, and do not end.
    pub(super) fn sweep(
        &mut self,
        from: u32,
        to: u32,
        mut settle: impl FnMut(&mut Hot) -> Option<Worth>,
        ended: &mut impl FnMut(&Whole),
    ) {
        if self.live == 0 {
            return;
        }
        let group = |high| self.home_by_high(high) * PAIR / GROUP;
        for group in group(from)..=group(to) {
            if self.worth[group].0 == [Worth::NOTHING; GROUP] {
                continue;
            }
            let mut vacated = 0_u64;
            for index in 0..GROUP {
                let slot = group * GROUP + index;
                if self.worth[group].0[index] == Worth::NOTHING {
                    continue;
                }
                match settle(self.hot_mut(slot)) {
                    Some(worth) => self.worth[group].0[index] = worth,
                    None if (from..=to).contains(&self.cold[slot].hash_high) => {
                        ended(&self.take(slot));
                        vacated |= 1 << index;
                    }
                    None => {}
                }
            }
            // Not before all were asked: whoever moves to a place that was passed would be left out.
            for index in (0..GROUP).filter(|index| vacated >> index & 1 == 1) {
                self.call_home(group * GROUP + index);
            }
        }
    }

    /// The home of a flow. Growing hashes have growing homes.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        self.home_by_high((hash >> u32::BITS) as u32)
    }

    /// The home of a flow, by the upper half of its hash.
    #[inline]
    fn home_by_high(&self, high: u32) -> usize {
        ((u64::from(high) * self.lines.len() as u64) >> u32::BITS) as usize
    }
}

/// Slots of the other flows of a home: the place in the group in the lower six bits, above them ten
/// bits of the hash, of which one is set; 0: none. Four of them in a number, so that they are compared at
/// once.
#[derive(Clone, Copy, Default)]
struct Guests([u64; GUESTS / LANES]);

/// Marks in one number.
const LANES: usize = 4;

impl Guests {
    const LANE_BITS: u32 = u64::BITS / LANES as u32;
    const ONES: u64 = u64::MAX / (u16::MAX as u64);
    const HIGHS: u64 = Self::ONES << (Self::LANE_BITS - 1);
    const PLACE: u16 = GROUP as u16 - 1;

    /// The mark of a flow with this hash, or with a tag of its lower bits, without a place.
    #[inline]
    const fn mark(hash: u64) -> u16 {
        (hash as u16 | 1) << GROUP.ilog2()
    }

    /// Is there a guest with a mark of this hash, and the place of the first one if there is.
    #[inline]
    fn place(self, hash: u64) -> (bool, usize) {
        let marks = Self::ONES * u64::from(Self::mark(hash));
        // The highest bit of each lane that agrees. Borrows from the lane above are harmless, as the
        // lowest one is right, and that is taken.
        let [lower, upper] = self.0.map(|guests| {
            let differences = (guests ^ marks) & !(Self::ONES * u64::from(Self::PLACE));
            differences.wrapping_sub(Self::ONES) & !differences & Self::HIGHS
        });
        let (guests, agree) =
            select_unpredictable(lower != 0, (self.0[0], lower), (self.0[1], upper));
        let lane = agree.trailing_zeros() & !(Self::LANE_BITS - 1);
        let place = guests.wrapping_shr(lane) as usize % GROUP;
        (lower | upper != 0, place)
    }

    fn lanes(self) -> impl Iterator<Item = u16> {
        self.0.into_iter().flat_map(|four| {
            (0..LANES as u32).map(move |lane| (four >> (lane * Self::LANE_BITS)) as u16)
        })
    }

    /// The places of all guests with a mark of this hash.
    fn places(self, hash: u64) -> impl Iterator<Item = usize> {
        let marked = self.lanes().filter(move |lane| lane & !Self::PLACE == Self::mark(hash));
        marked.map(|lane| usize::from(lane & Self::PLACE))
    }

    /// The places of all guests.
    fn all(self) -> impl Iterator<Item = usize> {
        self.lanes().filter(|lane| *lane != 0).map(|lane| usize::from(lane & Self::PLACE))
    }

    fn is_full(self) -> bool {
        self.lanes().all(|lane| lane != 0)
    }

    fn add(&mut self, tag: u64, place: usize) {
        self.replace(0, Self::mark(tag) | place as u16);
    }

    fn remove(&mut self, tag: u64, place: usize) {
        self.replace(Self::mark(tag) | place as u16, 0);
    }

    /// Puts `new` in the place of the first `old`, of which there is one.
    fn replace(&mut self, old: u16, new: u16) {
        if let Some(lane) = self.lanes().position(|lane| lane == old) {
            let shift = (lane % LANES) as u32 * Self::LANE_BITS;
            self.0[lane / LANES] ^= u64::from(old ^ new) << shift;
        }
    }
}

impl Group {
    /// The slot of this group that is worth least; among equals, the one nearest to `slot`.
    fn least(&self, slot: usize) -> usize {
        let own = (slot % GROUP) as i16;
        // Worth above, distance below, in one number each: the compiler takes the least of many at
        // once.
        let ranked =
            |(index, worth): (usize, &Worth)| i16::from(worth.0) << 6 | (index as i16 ^ own);
        let least = self.0.iter().enumerate().map(ranked).fold(i16::MAX, i16::min);
        neighbour(slot, (least as usize % GROUP) ^ (slot % GROUP))
    }
}

/// The slot at `place` of the group of `slot`.
#[inline]
const fn neighbour(slot: usize, place: usize) -> usize {
    slot / GROUP * GROUP + place
}

impl Cold {
    /// Of a flow that begins with `packet`.
    pub(super) const fn new(
        key: &FlowKey,
        packet: &Packet,
        is_answer: bool,
        interface: u32,
        time: UnixNanos,
    ) -> Self {
        let Packet { mut tuple, vlan_ids, is_fragment, .. } = *packet;
        if is_fragment {
            (tuple.source_port, tuple.target_port) = (0, 0);
        }
        Self {
            tuple: if is_answer { tuple.reversed() } else { tuple },
            vlan_ids,
            interface,
            first: time,
            hash_high: (key.hash() >> u32::BITS) as u32,
            icmp: match packet.kind {
                Kind::Icmp { kind, code, .. } if !is_fragment => Some((kind, code)),
                _ => None,
            },
            is_fragments: is_fragment,
        }
    }
}

impl Whole {
    /// A flow without packets.
    pub(super) fn new(hot: Hot, cold: Cold) -> Self {
        Self { hot, cold, spilled: Totals::default() }
    }

    /// Packets and bytes of all its life.
    pub(super) fn totals(&self) -> Totals {
        self.hot.totals(&self.spilled)
    }
}

#[cfg(test)]
mod tests;
