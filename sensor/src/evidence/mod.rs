//! A worker's evidence: which contacts were attempted, answered, refused.
//!
//! ```text
//!   mod     a contact, its three flags, and what one packet says about one contact
//!   table   the worker's fixed-size table: collapses repeats, hands out what changed
//!   door    under a flood of new sources: a source's first contact is only noted
//! ```
//!
//! A contact is (source, target, port of the target). Its flags merge by OR and its times by minimum
//! and maximum, so it does not matter which worker saw which half of a handshake, nor how often.
//! This module decides nothing: outcomes are derived where the evidence of all workers meets.

mod door;
mod table;
#[cfg(test)]
mod tests;

use wire::units::UnixNanos;

pub use table::{ContactHash, ContactTable, EvidenceCounters, Published};

use crate::packet::{Address, FiveTuple, Kind, Packet, protocol, tcp};

/// What is attempted: a TCP port of a target, by a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContactKey {
    /// Who attempts.
    pub source: Address,
    /// Who is attempted.
    pub target: Address,
    /// TCP port of the target.
    pub port: u16,
}

/// What one packet says about one contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Observation {
    /// The source sent a SYN.
    Attempted,
    /// The target sent a SYN+ACK.
    Answered,
    /// The target sent an RST, or somebody says that it cannot be reached.
    Refused,
}

/// A set of [`Observation`]s. Sets merge by union.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No observation.
    pub const NONE: Self = Self(0);

    /// Is `observation` in the set?
    #[must_use]
    pub const fn has(self, observation: Observation) -> bool {
        self.0 & Self::of(observation).0 != 0
    }

    /// The set of one observation.
    #[must_use]
    pub const fn of(observation: Observation) -> Self {
        Self(match observation {
            Observation::Attempted => 1,
            Observation::Answered => 2,
            Observation::Refused => 4,
        })
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is the set empty?
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a worker learnt about a contact since it last handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contact {
    /// The contact.
    pub key: ContactKey,
    /// What was observed.
    pub flags: Flags,
    /// The earliest attempt; of a contact without attempt: the earliest observation.
    pub first: UnixNanos,
    /// The earliest attempt within the newest [`pane`] that has one; of a contact without attempt:
    /// the earliest observation within its newest pane. Repeats within a pane are not handed out, so
    /// this is the newest time that does not depend on which worker saw which repeat.
    pub last: UnixNanos,
}

impl Contact {
    /// One observation at one time.
    #[must_use]
    pub const fn new(key: ContactKey, observation: Observation, time: UnixNanos) -> Self {
        Self { key, flags: Flags::of(observation), first: time, last: time }
    }

    /// Takes in what another worker, or a later packet, says about the same contact. The result does
    /// not depend on the order in which contacts are merged.
    pub fn merge(&mut self, other: &Self) {
        let mine = self.flags.has(Observation::Attempted);
        let theirs = other.flags.has(Observation::Attempted);
        self.flags = self.flags.union(other.flags);
        match (mine, theirs) {
            // Times of attempts are worth more than times of answers.
            (true, false) => {}
            (false, true) => (self.first, self.last) = (other.first, other.last),
            (true, true) | (false, false) => {
                self.first = self.first.min(other.first);
                self.last = newest(self.last, other.last);
            }
        }
    }
}

/// Of two times the one in the later pane; within one pane the earlier one.
fn newest(one: UnixNanos, other: UnixNanos) -> UnixNanos {
    match pane(one).cmp(&pane(other)) {
        std::cmp::Ordering::Less => other,
        std::cmp::Ordering::Equal => one.min(other),
        std::cmp::Ordering::Greater => one,
    }
}

/// The pane of time in which a repeat says nothing new: one second. It bounds the error of the
/// sliding window of detection, and how often a busy contact is handed out.
#[must_use]
pub const fn pane(time: UnixNanos) -> u64 {
    time.0 / PANE_NANOS
}

/// Length of a [`pane`].
pub const PANE_NANOS: u64 = 1_000_000_000;

/// What `packet` says about a contact, if anything. Pure.
///
/// An RST speaks about the contact *from* the receiver of the packet, as an answer does; one that ends
/// a good connection, or that a scanner sends to drop a port it found open, meets no attempt, or one
/// that was answered, and is then no evidence.
///
/// Source: RFC 9293 section 3.10.7.1 (RST answers a closed port), RFC 792 (type 3), RFC 4443 (type 1).
#[inline]
#[must_use]
pub fn observe(packet: &Packet) -> Option<(ContactKey, Observation)> {
    match packet.kind {
        Kind::Tcp { flags, .. } => {
            const DECISIVE: u8 = tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN;
            const SYN_ACK: u8 = tcp::SYN | tcp::ACK;
            const RST_ACK: u8 = tcp::RST | tcp::ACK;
            match flags & DECISIVE {
                tcp::SYN => Some((contact_of(&packet.tuple), Observation::Attempted)),
                SYN_ACK => Some((contact_of(&packet.tuple.reversed()), Observation::Answered)),
                tcp::RST | RST_ACK => {
                    Some((contact_of(&packet.tuple.reversed()), Observation::Refused))
                }
                _ => None,
            }
        }
        Kind::Icmp { kind, quoted: Some(quoted), .. } => {
            const V4_UNREACHABLE: u8 = 3;
            const V6_UNREACHABLE: u8 = 1;
            let unreachable = match packet.tuple.protocol {
                protocol::ICMP => kind == V4_UNREACHABLE,
                protocol::ICMPV6 => kind == V6_UNREACHABLE,
                _ => false,
            };
            (unreachable && quoted.protocol == protocol::TCP)
                .then(|| (contact_of(&quoted), Observation::Refused))
        }
        _ => None,
    }
}

const fn contact_of(tuple: &FiveTuple) -> ContactKey {
    ContactKey { source: tuple.source, target: tuple.target, port: tuple.target_port }
}
