//! What arrives at each address, for the detection of floods.
//!
//! ```text
//!   mod      what is counted of a packet, and of a target: a [`Tally`]; how tallies merge
//!   sketch   how many distinct ones there were
//!   senders  is there one sender that sends most, and who
//!   table    the worker's table of fixed size: one tally for each target, handed out every tick
//! ```
//!
//! Tallies merge by sum, minimum and maximum, and what is looked at only now and then is chosen by a
//! keyed hash of the packet. So it does not matter which worker saw which packet, as long as no table
//! had to let a target go, which is counted. This module decides nothing: that is up to
//! [`detect`](crate::detect), where the tallies of all workers meet.

mod senders;
mod sketch;
mod table;
#[cfg(test)]
mod tests;

use wire::units::UnixNanos;

pub use senders::{SAMPLED_ONE_IN, Senders};
pub use sketch::Sketch;
pub use table::{TARGETS, TargetCounters, TargetTable};

use packet::{Address, Kind, Packet, mix, protocol, tcp};

/// What a target can be flooded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// SYN without ACK.
    Syn,
    /// Datagrams.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// RST, with or without ACK.
    Rst,
    /// Fragments, the first ones too, which count as what they carry besides.
    Fragment,
}

impl Class {
    /// Every class, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Udp, Self::Icmp, Self::Rst, Self::Fragment];

    /// What `packet` is one of, if it matters. A first fragment is a [`Class::Fragment`] as well.
    #[inline]
    #[must_use]
    pub const fn of(packet: &Packet) -> Option<Self> {
        const DECISIVE: u8 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
        match packet.kind {
            Kind::Tcp { flags, .. } if flags & DECISIVE == tcp::SYN => Some(Self::Syn),
            Kind::Tcp { flags, .. } if flags & tcp::RST != 0 => Some(Self::Rst),
            Kind::Udp => Some(Self::Udp),
            Kind::Icmp { .. } => Some(Self::Icmp),
            Kind::LaterFragment => Some(Self::Fragment),
            _ => None,
        }
    }
}

/// Is it a packet that asks for an echo?
#[inline]
const fn is_echo_request(packet: &Packet) -> bool {
    const ICMP_ECHO: u8 = 8;
    const ICMPV6_ECHO: u8 = 128;
    match packet.kind {
        Kind::Icmp { kind, .. } => {
            let is_v6 = packet.tuple.protocol == protocol::ICMPV6;
            kind == if is_v6 { ICMPV6_ECHO } else { ICMP_ECHO }
        }
        _ => false,
    }
}

/// What arrived at one target in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Tally {
    /// Where it arrived.
    pub target: Address,
    /// Time of the first packet; 0 if there was none.
    pub first: UnixNanos,
    /// Time of the last packet.
    pub last: UnixNanos,
    /// Packets of the sample, by [`Class`]: one in [`SAMPLED_ONE_IN`].
    pub counts: [u32; Class::ALL.len()],
    /// Handshakes that were completed, all of them.
    pub completed: u32,
    /// Of the ICMP in the sample: requests for an echo.
    pub echo_requests: u32,
    /// Bit of each class of which `senders` has something; of [`Class::Syn`] the sketches, too.
    used: u8,
    /// There are sources that no packet of the sample has.
    has_sources: bool,
    /// Handshakes that were completed by the word of their clients, all of them.
    pub claimed: u16,
    /// Who sent it, by [`Class`].
    pub senders: [Senders; Class::ALL.len()],
    /// Distinct ports of the SYNs of the sample.
    pub ports: Sketch<64>,
    /// Distinct sources of the SYNs, of one source in [`SAMPLED_ONE_IN`].
    pub sources: Sketch<128>,
}

const _: () = assert!(size_of::<Tally>() == 9 * 64);

impl Tally {
    /// Nothing arrived there yet.
    #[must_use]
    pub fn of(target: Address) -> Self {
        Self { target, ..Self::default() }
    }

    /// Nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts == [0; Class::ALL.len()]
            && self.completed == 0
            && self.claimed == 0
            && !self.has_sources
    }

    /// Takes in what another worker saw, or what came later. The order does not matter.
    pub fn merge(&mut self, other: &Self) {
        self.note_times(other.first, other.last);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        self.completed = self.completed.saturating_add(other.completed);
        self.claimed = self.claimed.saturating_add(other.claimed);
        self.echo_requests = self.echo_requests.saturating_add(other.echo_requests);
        self.used |= other.used;
        self.has_sources |= other.has_sources;
        for class in Class::ALL {
            if other.used & 1 << class as u8 != 0 {
                self.senders[class as usize].merge(&other.senders[class as usize]);
            }
        }
        if other.used & 1 << Class::Syn as u8 != 0 {
            self.ports.merge(&other.ports);
            self.sources.merge(&other.sources);
        }
    }

    /// The same, with clients believed that say that they were answered.
    #[must_use]
    pub const fn believing_clients(mut self) -> Self {
        self.completed = self.completed.saturating_add(self.claimed as u32);
        self
    }

    /// Forgets what was counted, and keeps the target.
    #[inline]
    pub fn clear(&mut self) {
        let used = std::mem::take(&mut self.used);
        (self.first, self.last) = (UnixNanos(0), UnixNanos(0));
        self.counts = [0; Class::ALL.len()];
        (self.completed, self.claimed) = (0, 0);
        (self.echo_requests, self.has_sources) = (0, false);
        // A flood to random targets takes a new tally for each packet, of which most need no cleaning.
        if used != 0 {
            self.clear_used(used);
        }
    }

    fn clear_used(&mut self, used: u8) {
        for class in Class::ALL {
            if used & 1 << class as u8 != 0 {
                self.senders[class as usize] = Senders::default();
            }
        }
        if used & 1 << Class::Syn as u8 != 0 {
            (self.ports, self.sources) = (Sketch::default(), Sketch::default());
        }
    }

    fn add(&mut self, class: Class) {
        let count = &mut self.counts[class as usize];
        *count = count.saturating_add(1);
        self.used |= 1 << class as u8;
    }

    #[inline]
    fn note_times(&mut self, first: UnixNanos, last: UnixNanos) {
        if self.first == UnixNanos(0) || first < self.first {
            self.first = first;
        }
        self.last = self.last.max(last);
    }
}

/// How much each address asks for: a sample of the SYNs, datagrams and echo requests, by sender. Cells are
/// shared: a count is never too low.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked([u32; Self::CELLS]);

impl Default for Asked {
    fn default() -> Self {
        Self([0; Self::CELLS])
    }
}

impl Asked {
    const CELLS: usize = 128;

    fn add(&mut self, sender: Address, key: u64) {
        let cell = &mut self.0[Self::cell(sender, key)];
        *cell = cell.saturating_add(1);
    }

    /// Packets by which `sender` asked, estimated: too many where others share its cell.
    #[must_use]
    pub fn by(&self, sender: Address, key: u64) -> u64 {
        u64::from(self.0[Self::cell(sender, key)]) * SAMPLED_ONE_IN
    }

    /// Takes in what another worker saw.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    const fn cell(sender: Address, key: u64) -> usize {
        hash(sender, key.rotate_left(7)) as usize % Self::CELLS
    }
}

/// What a worker tells the detector about floods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// What arrived at a target since it was last told.
    Target(Tally),
    /// Who asked, since that was last told.
    Asked(Asked),
}

/// The keyed hash of an address.
#[inline]
const fn hash(address: Address, key: u64) -> u64 {
    mix(address.low() ^ key, address.high() ^ key.rotate_left(21))
}
