//! What every packet of a flow touches, in 24 bytes.

use packet::tcp;
use wire::units::{UnixNanos, WireLen};

use super::key::FlowKey;
use super::life::{Change, State};

/// A flow as its packets see it. Ways: 0 from the opener, 1 to it.
///
/// ```text
///   who      63 ─ 19  hash, its lowest 45 bits, of which the last is 1
///            18       counts were spilled before
///            17       of TCP, and not of fragments
///            16       the opener is the end with the lower hash
///            15 ─ 0   TCP flags seen, of each way; of other protocols: whether a packet was
///   last     time of the last packet
///   counts   31 ─ 22  packets, 21 ─ 0  bytes: of each way, since the last spill
/// ```
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Hot {
    /// 0: empty.
    who: u64,
    pub(super) last: UnixNanos,
    counts: [Counts; 2],
}

const _: () = assert!(size_of::<Hot>() == 24);

const TAG_SHIFT: u32 = 19;
const HAS_SPILLED: u64 = 1 << 18;
const IS_TCP: u64 = 1 << 17;
const IS_OPENER_FORWARD: u64 = 1 << 16;
const FLAGS: u64 = 0xffff;

impl Hot {
    /// A flow without packets. `is_answer`: the packet that begins it comes from the other side.
    pub(super) const fn new(key: &FlowKey, is_answer: bool, is_tcp: bool, time: UnixNanos) -> Self {
        let mut who = key.hash() << TAG_SHIFT;
        if is_tcp {
            who |= IS_TCP;
        }
        if key.is_forward() != is_answer {
            who |= IS_OPENER_FORWARD;
        }
        Self { who, last: time, counts: [Counts(0); 2] }
    }

    /// Is it the flow with this hash?
    #[inline]
    pub(super) const fn is_of(&self, hash: u64) -> bool {
        (self.who ^ hash << TAG_SHIFT) < 1 << TAG_SHIFT
    }

    /// The lowest 45 bits of its hash.
    pub(super) const fn tag(&self) -> u64 {
        self.who >> TAG_SHIFT
    }

    /// Nobody lives here.
    pub(super) const fn clear(&mut self) {
        self.who = 0;
    }

    /// Which way a packet goes.
    #[inline]
    pub(super) const fn way(&self, key: &FlowKey) -> usize {
        (key.is_forward() != (self.who & IS_OPENER_FORWARD != 0)) as usize
    }

    /// Which TCP flags were seen each way; none of other protocols.
    pub(super) const fn flags(&self) -> [u8; 2] {
        if self.who & IS_TCP == 0 { [0; 2] } else { self.seen() }
    }

    #[inline]
    const fn seen(&self) -> [u8; 2] {
        ((self.who & FLAGS) as u16).to_le_bytes()
    }

    /// How far it has come.
    #[inline]
    pub(super) const fn state(&self) -> State {
        let seen = self.seen();
        if self.who & IS_TCP != 0 {
            State::of_tcp(seen)
        } else if seen[0] != 0 && seen[1] != 0 {
            State::Established
        } else {
            State::New
        }
    }

    /// It had one packet, or none.
    #[inline]
    pub(super) const fn is_single(&self) -> bool {
        self.counts[0].packets() + self.counts[1].packets() <= 1 && !self.has_spilled()
    }

    /// Notes a packet, its counts apart. Tells what is new about the flow by it.
    #[inline]
    pub(super) fn see(&mut self, way: usize, sight: &Sight) -> Change {
        let before = self.who;
        self.who |= u64::from(sight.flags.unwrap_or(1)) << (8 * way);
        self.last = self.last.max(sight.time);
        if self.who == before { Change::Nothing } else { self.change(before, way) }
    }

    /// What is new, `before` something was seen that way which had not been.
    #[inline(never)]
    fn change(&self, before: u64, way: usize) -> Change {
        let seen = ((before & FLAGS) as u16).to_le_bytes();
        let flags = self.flags();
        let is_opened = (seen[0] | seen[1]) & tcp::SYN != 0;
        let is_reset = (flags[0] | flags[1]) & tcp::RST != 0;
        let new = flags[0] & !seen[0];
        match way {
            0 if !is_opened || is_reset => Change::Nothing,
            0 if new & tcp::ACK != 0 && seen[1] != 0 => Change::Completed,
            0 if new & tcp::ACK != 0 => Change::Claimed,
            0 if new & tcp::PSH != 0 && seen[1] == 0 => Change::Carried,
            1 if seen[1] != 0 || flags[1] & tcp::RST != 0 => Change::Nothing,
            // A SYN+ACK tells by itself that it answers a SYN.
            1 if !is_opened || flags[1] & tcp::SYN == 0 => Change::Answered,
            _ => Change::Nothing,
        }
    }

    /// Counts a packet; `false`: there is no room, what was counted must be [spilled](Hot::spill) first.
    #[inline]
    pub(super) const fn count(&mut self, way: usize, len: WireLen) -> bool {
        let counts = &mut self.counts[way];
        let is_room = counts.packets() < Counts::MOST && len.0 <= Counts::BYTES - counts.bytes();
        if is_room {
            counts.0 += Counts::PACKET + len.0;
        }
        is_room
    }

    /// What was counted, and what was spilled before.
    pub(super) fn totals(&self, spilled: &Totals) -> Totals {
        let mut totals = if self.has_spilled() { *spilled } else { Totals::default() };
        for (way, counts) in self.counts.iter().enumerate() {
            totals.packets[way] += u64::from(counts.packets());
            totals.bytes[way] += u64::from(counts.bytes());
        }
        totals
    }

    /// Counts from zero again: what was counted is kept elsewhere.
    pub(super) const fn spill(&mut self) {
        self.who |= HAS_SPILLED;
        self.counts = [Counts(0); 2];
    }

    /// Counts were taken out before.
    #[inline]
    pub(super) const fn has_spilled(&self) -> bool {
        self.who & HAS_SPILLED != 0
    }
}

/// What one packet adds to its flow.
pub(super) struct Sight {
    /// Of TCP, whole packets alone.
    pub(super) flags: Option<u8>,
    pub(super) len: WireLen,
    pub(super) time: UnixNanos,
}

/// Counts of both ways.
#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    pub(super) packets: [u64; 2],
    pub(super) bytes: [u64; 2],
}

/// Packets and bytes of one way, in one number.
#[derive(Clone, Copy, Default)]
struct Counts(u32);

impl Counts {
    const PACKET: u32 = 1 << 22;
    const BYTES: u32 = Self::PACKET - 1;
    const MOST: u32 = u32::MAX / Self::PACKET;

    #[inline]
    const fn packets(self) -> u32 {
        self.0 / Self::PACKET
    }

    #[inline]
    const fn bytes(self) -> u32 {
        self.0 & Self::BYTES
    }
}
