//! Fixed memory for flows: found by hash, one cold line a packet.
//!
//! ```text
//!   hot     ┌──────┬──────┬─────────────┬─────────────┬───────┬───────┬────────┬─────────────┐ 64 bytes
//!           │ hash │ last │ packets × 2 │ bytes × 2   │flags×2│ state │ opener │ guests × 6  │ a flow
//!           └──────┴──────┴─────────────┴─────────────┴───────┴───────┴────────┴─────────────┘
//!             8      8      16            16            2       1       1        12
//!   cold    full key, first time: written when a flow begins, read when it ends              64 bytes
//!   worth   one byte a flow: what it is worth, 0 empty; 64 of them are a group and a line    1 byte
//! ```
//!
//! A flow has a home slot, which its hash gives. Where that is taken, it lives as a guest in another
//! slot of the same group, and its home has a mark of it: ten bits of its hash and its place. So a
//! packet of a known flow costs the line of its home and, for one flow in three, the line where it
//! lives; a packet of an unknown flow costs its home. Nothing is ever moved or searched for.

use std::time::Duration;

use wire::units::{UnixNanos, WireLen};

use super::key::FlowKey;
use super::life::{State, Worth};
use crate::hardware;
use crate::packet::{FiveTuple, Kind, Packet};

/// Slots that share a line of worths: where a flow can live.
pub(super) const GROUP: usize = 64;
/// Flows that live elsewhere and have the same home. At three flows for four slots, one home in a
/// million has more, and then the least valuable of them gives way.
const GUESTS: usize = 6;

/// What every packet of a flow touches. Pairs are of the opener first, of the other side second.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Hot {
    /// 0: empty.
    hash: u64,
    pub(super) last: UnixNanos,
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) flags: [u8; 2],
    pub(super) state: State,
    /// The opener is the end with the lower hash.
    is_opener_forward: bool,
    /// Marks of the flows that have their home here and live elsewhere; 0: none. They belong to the
    /// slot, not to the flow that lives in it.
    guests: [u16; GUESTS],
}

/// What is written when a flow begins, and read when it ends.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Cold {
    pub(super) tuple: FiveTuple,
    pub(super) vlan_ids: [u16; 2],
    pub(super) interface: u32,
    pub(super) first: UnixNanos,
    pub(super) icmp: Option<(u8, u8)>,
    pub(super) is_fragments: bool,
}

/// Worths of the flows of one group.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Group([Worth; GROUP]);

const _: () = assert!(size_of::<Hot>() == 64 && size_of::<Cold>() == 64);
const _: () = assert!(size_of::<Group>() == 64);

/// Slots of flows.
pub(super) struct Slots {
    hot: Box<[Hot]>,
    cold: Box<[Cold]>,
    worth: Box<[Group]>,
    live: usize,
}

impl Slots {
    /// Memory of so many slots, a multiple of [`GROUP`]. Unit: bytes.
    pub(super) const fn memory(slots: usize) -> usize {
        slots * (size_of::<Hot>() + size_of::<Cold>() + size_of::<Worth>())
    }

    /// # Panics
    /// If there are none, no whole groups, or more than [`u32::MAX`].
    pub(super) fn new(slots: usize) -> Self {
        assert!(u32::try_from(slots).is_ok(), "{slots} slots are too many");
        assert!(slots > 0 && slots.is_multiple_of(GROUP), "{slots} slots are no whole groups");
        Self {
            hot: hardware::table(slots, Hot::default()),
            cold: hardware::table(slots, Cold::default()),
            worth: hardware::table(slots / GROUP, Group([Worth::NOTHING; GROUP])),
            live: 0,
        }
    }

    pub(super) const fn live(&self) -> usize {
        self.live
    }

    #[inline]
    pub(super) fn hot(&self, slot: usize) -> &Hot {
        &self.hot[slot]
    }

    #[inline]
    pub(super) fn hot_mut(&mut self, slot: usize) -> &mut Hot {
        &mut self.hot[slot]
    }

    pub(super) fn is_taken(&self, slot: usize) -> bool {
        self.worth[slot / GROUP].0[slot % GROUP] != Worth::NOTHING
    }

    #[inline]
    pub(super) fn set_worth(&mut self, slot: usize, worth: Worth) {
        self.worth[slot / GROUP].0[slot % GROUP] = worth;
    }

    /// Starts loading the home of a flow with this hash; gives the slot.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) -> u32 {
        let home = self.home(hash);
        hardware::prefetch(&self.hot[home]);
        home as u32
    }

    /// The slot where the flow with this hash most likely lives, by its `home`; starts loading its line.
    /// To be called when the line of its home is there. One flow in three is a guest, which no processor
    /// can predict, so there is no branch on that.
    #[inline]
    pub(super) fn locate(&self, home: u32, hash: u64) -> u32 {
        let home = home as usize;
        let line = &self.hot[home];
        let guest =
            guest_place(&line.guests, hash).map_or(home, |place| home / GROUP * GROUP + place);
        let slot = if line.hash == hash { home } else { guest };
        hardware::prefetch(&self.hot[slot]);
        if slot == home && line.hash != hash {
            // It will begin here: what decides who gives way, and the one that most likely does.
            hardware::prefetch(&self.worth[home / GROUP]);
            hardware::prefetch(&self.cold[home]);
        }
        slot as u32
    }

    /// The slot where the flow with this hash lives; `likely` is looked at first.
    #[inline]
    pub(super) fn find_at(&self, likely: usize, hash: u64) -> Option<usize> {
        match self.hot.get(likely) {
            Some(line) if line.hash == hash => Some(likely),
            _ => self.find(hash),
        }
    }

    /// The slot where the flow with this hash lives.
    pub(super) fn find(&self, hash: u64) -> Option<usize> {
        let home = self.home(hash);
        let line = &self.hot[home];
        if line.hash == hash {
            return Some(home);
        }
        let marks = line.guests.iter().filter(|guest| is_mark_of(**guest, hash));
        marks.map(|guest| place(home, *guest)).find(|slot| self.hot[*slot].hash == hash)
    }

    /// The slot that a new flow with this hash is to have: one that is empty, or else that of the
    /// neighbour which is worth least. Among equals, the one nearest to its home.
    pub(super) fn choose(&self, hash: u64) -> usize {
        let home = self.home(hash);
        let slot = self.worth[home / GROUP].least(home);
        let guests = &self.hot[home].guests;
        if slot == home || guests.contains(&0) {
            return slot;
        }
        // No room for another mark: one of those that have their home here, or who lives here.
        let worth = |slot: usize| self.worth[slot / GROUP].0[slot % GROUP];
        let kin = guests.iter().map(|guest| place(home, *guest)).chain([home]);
        kin.min_by_key(|slot| worth(*slot)).unwrap_or(home)
    }

    /// Puts a flow into an empty slot that [`Slots::choose`] gave for its hash.
    pub(super) fn put(&mut self, slot: usize, hot: Hot, cold: Cold) {
        debug_assert!(!self.is_taken(slot), "slot {slot} is taken");
        self.live += 1;
        self.set_worth(slot, Worth::of(&hot, Duration::ZERO));
        let home = self.home(hot.hash);
        if slot != home
            && let Some(free) = self.hot[home].guests.iter_mut().find(|guest| **guest == 0)
        {
            *free = mark(hot.hash, slot);
        }
        let guests = self.hot[slot].guests;
        self.hot[slot] = Hot { guests, ..hot };
        self.cold[slot] = cold;
    }

    /// Takes the flow out of a slot that is taken.
    pub(super) fn take(&mut self, slot: usize) -> (Hot, Cold) {
        let hot = self.hot[slot];
        self.live -= 1;
        self.set_worth(slot, Worth::NOTHING);
        self.hot[slot].hash = 0;
        let home = self.home(hot.hash);
        if slot != home {
            let own = mark(hot.hash, slot);
            if let Some(guest) = self.hot[home].guests.iter_mut().find(|guest| **guest == own) {
                *guest = 0;
            }
        }
        (hot, self.cold[slot])
    }

    /// Asks `settle` about each flow with a hash from `from` to `to`, both included: it gives the worth
    /// of the flow from now on, or `None` if the flow is over; `ended` gets it then.
    pub(super) fn sweep(
        &mut self,
        from: u64,
        to: u64,
        mut settle: impl FnMut(&mut Hot) -> Option<Worth>,
        ended: &mut impl FnMut(&Hot, &Cold),
    ) {
        if self.live == 0 {
            return;
        }
        for group in self.home(from) / GROUP..=self.home(to) / GROUP {
            if self.worth[group].0 == [Worth::NOTHING; GROUP] {
                continue;
            }
            for index in 0..GROUP {
                let slot = group * GROUP + index;
                if self.worth[group].0[index] == Worth::NOTHING
                    || !(from..=to).contains(&self.hot[slot].hash)
                {
                    continue;
                }
                match settle(&mut self.hot[slot]) {
                    Some(worth) => self.worth[group].0[index] = worth,
                    None => {
                        let (hot, cold) = self.take(slot);
                        ended(&hot, &cold);
                    }
                }
            }
        }
    }

    /// Growing hashes have growing homes.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.hot.len() as u128) >> 64) as usize
    }
}

impl Group {
    /// The slot of this group that is worth least; among equals, the one nearest to `home`.
    fn least(&self, home: usize) -> usize {
        let own = (home % GROUP) as i16;
        // Worth above, distance below, in one number each: the compiler takes the least of many at
        // once.
        let ranked =
            |(index, worth): (usize, &Worth)| i16::from(worth.0) << 6 | (index as i16 ^ own);
        let least = self.0.iter().enumerate().map(ranked).fold(i16::MAX, i16::min);
        home / GROUP * GROUP + ((least as usize % GROUP) ^ (home % GROUP))
    }
}

/// The mark of a flow that lives in `slot`: ten bits of its hash, never 0, and the place in the group.
const fn mark(hash: u64, slot: usize) -> u16 {
    tag(hash) | (slot % GROUP) as u16
}

const fn tag(hash: u64) -> u16 {
    ((hash as u16 & 0x3ff) | 1) << 6
}

#[inline]
const fn is_mark_of(guest: u16, hash: u64) -> bool {
    guest & !(GROUP as u16 - 1) == tag(hash)
}

/// The place in the group of the first guest with a mark of this hash. All marks are compared at once:
/// a lane of 16 bits is zero where tag and mark agree, and borrows from the lane above are harmless, as
/// the lowest such lane counts.
#[inline]
fn guest_place(guests: &[u16; GUESTS], hash: u64) -> Option<usize> {
    const ONES: u128 = 0x0001_0001_0001_0001_0001_0001;
    const PLACES: u128 = ONES * (GROUP as u128 - 1);
    const LANE: u32 = u16::BITS;
    let marks = guests.iter().rev().fold(0_u128, |all, mark| all << LANE | u128::from(*mark));
    let differences = (marks ^ (ONES * u128::from(tag(hash)))) & !PLACES;
    let zeros = differences.wrapping_sub(ONES) & !differences & (ONES << (LANE - 1));
    if zeros == 0 {
        return None;
    }
    let lane = zeros.trailing_zeros() / LANE;
    Some(guests[lane as usize % GUESTS] as usize % GROUP)
}

/// Where the guest with this mark lives.
#[inline]
const fn place(home: usize, guest: u16) -> usize {
    home / GROUP * GROUP + guest as usize % GROUP
}

impl Hot {
    /// A flow without packets. `is_answer`: the packet that begins it comes from the other side.
    pub(super) const fn new(key: &FlowKey, is_answer: bool, time: UnixNanos) -> Self {
        Self {
            hash: key.hash(),
            last: time,
            packets: [0; 2],
            bytes: [0; 2],
            flags: [0; 2],
            state: State::New,
            is_opener_forward: key.is_forward() != is_answer,
            guests: [0; GUESTS],
        }
    }

    /// Which way a packet goes: 0 from the opener, 1 to it.
    #[inline]
    pub(super) const fn way(&self, key: &FlowKey) -> usize {
        (key.is_forward() != self.is_opener_forward) as usize
    }

    /// Counts a packet. Says whether the flow may be worth something else now.
    #[inline]
    pub(super) fn count(
        &mut self,
        key: &FlowKey,
        packet: &Packet,
        len: WireLen,
        time: UnixNanos,
    ) -> bool {
        let way = self.way(key);
        let before = (self.state, self.packets);
        self.packets[way] += 1;
        self.bytes[way] += u64::from(len.0);
        self.last = self.last.max(time);
        self.state = match super::tcp_flags(packet) {
            Some(flags) => {
                self.flags[way] |= flags;
                State::of_tcp(self.flags)
            }
            None if self.packets[0] > 0 && self.packets[1] > 0 => State::Established,
            None => State::New,
        };
        before.0 != self.state || before.1[0] + before.1[1] <= 1
    }
}

impl Cold {
    /// Of a flow that begins with `packet`.
    pub(super) const fn new(
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
            icmp: match packet.kind {
                Kind::Icmp { kind, code, .. } if !is_fragment => Some((kind, code)),
                _ => None,
            },
            is_fragments: is_fragment,
        }
    }
}
