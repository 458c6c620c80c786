//! A worker's evidence: which contacts were attempted, answered, refused.
//!
//! ```text
//!   mod     a contact, its flags, how contacts merge
//!   observe what one packet says about one contact
//!   table   the worker's fixed-size table: collapses repeats, hands out what changed
//!   door    under a flood of new sources: a source's first contact is only noted
//! ```
//!
//! A contact is (source, target, service of the target). Its flags merge by OR and its times by minimum
//! and maximum, so it does not matter which worker saw which half of a handshake, nor how often.
//! This module decides nothing: outcomes are derived where the evidence of all workers meets.

mod door;
mod observe;
mod table;
#[cfg(test)]
mod tests;

use wire::units::UnixNanos;

pub use observe::{observe, observe_change, observe_other_half};
pub use table::{ContactHash, ContactTable, EvidenceCounters, Published};

use packet::Address;

/// What is attempted: a service of a target, by a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContactKey {
    /// Who attempts.
    pub source: Address,
    /// Who is attempted.
    pub target: Address,
    /// What kind of service.
    pub class: Class,
    /// Port of the target; of [`Class::Ip`]: the protocol number; of the others that have no ports: 0.
    pub port: u16,
}

impl ContactKey {
    /// Class and port in one number.
    #[must_use]
    pub const fn service(&self) -> u64 {
        (self.class as u64) << u16::BITS | self.port as u64
    }
}

/// Kinds of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// A TCP port.
    #[default]
    Tcp,
    /// A UDP port.
    Udp,
    /// The host itself, by a request of ICMP or ICMPv6: echo, timestamp, address mask.
    Icmp,
    /// The host itself, by ARP.
    Arp,
    /// An IP protocol.
    Ip,
}

/// What one packet says about one contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Observation {
    /// The source sent a SYN; of other classes: the first packet.
    Attempted,
    /// The target answered, of TCP with a SYN+ACK.
    Answered,
    /// The target sent an RST, or somebody says that it cannot be reached.
    Refused,
    /// The source acknowledged an answer of the target, or says so: only with [`Observation::Answered`] is the
    /// handshake complete.
    Completed,
    /// A router says that the packet travelled too far: a step of a traceroute.
    Exceeded,
    /// The source sent a segment without any flag.
    Null,
    /// The source sent a lone FIN.
    Fin,
    /// The source sent FIN, PSH and URG.
    Xmas,
    /// The source sent SYN and FIN at once.
    SynFin,
    /// The source sent FIN and ACK of no connection that is known.
    Maimon,
    /// The source sent an ACK of no connection that is known.
    Ack,
    /// As [`Observation::Completed`], and the source sent data.
    Carried,
}

impl Observation {
    /// Does the source attempt something by it?
    #[must_use]
    pub const fn is_attempt(self) -> bool {
        Flags::ATTEMPTS & Flags::of(self).0 != 0
    }
}

/// A set of [`Observation`]s. Sets merge by union.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags(u16);

impl Flags {
    /// No observation.
    pub const NONE: Self = Self(0);

    const ATTEMPTS: u16 = Self::of(Observation::Attempted).0 | Self::ODD;
    const ODD: u16 = Self::of(Observation::Null).0
        | Self::of(Observation::Fin).0
        | Self::of(Observation::Xmas).0
        | Self::of(Observation::SynFin).0
        | Self::of(Observation::Maimon).0
        | Self::of(Observation::Ack).0;

    /// Is `observation` in the set?
    #[must_use]
    pub const fn has(self, observation: Observation) -> bool {
        self.0 & Self::of(observation).0 != 0
    }

    /// Did the source attempt anything?
    #[must_use]
    pub const fn has_attempt(self) -> bool {
        self.0 & Self::ATTEMPTS != 0
    }

    /// Is there anything that is not about attempts?
    #[must_use]
    pub const fn has_answer(self) -> bool {
        self.0 & !Self::ATTEMPTS != 0
    }

    /// Did the source acknowledge an answer, or claim to have had one?
    #[must_use]
    pub const fn has_completed(self) -> bool {
        self.has(Observation::Completed) || self.has(Observation::Carried)
    }

    /// Did the source attempt anything by an odd technique?
    #[must_use]
    pub const fn has_odd(self) -> bool {
        self.0 & Self::ODD != 0
    }

    /// The set of one observation.
    #[must_use]
    pub const fn of(observation: Observation) -> Self {
        Self(1 << observation as u8)
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
        let (mine, theirs) = (self.flags.has_attempt(), other.flags.has_attempt());
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
