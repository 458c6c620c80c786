//! One open alert: what it counted, and what it tells.

use std::collections::BTreeSet;
use std::time::Duration;

use wire::units::UnixNanos;

use super::alert::{Alert, Confidence, Kind, Phase, SAMPLES, Technique};
use super::contacts::{Entry, GroupKey};
use super::outcomes::{Outcome, OutcomeSet};
use crate::evidence::ContactKey;
use crate::packet::{Address, mix};

/// One alert for each of these at a time. Ports that one source sweeps fold into one alert.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AlertKey {
    Vertical { source: Address, target: Address },
    Horizontal { source: Address },
}

impl From<GroupKey> for AlertKey {
    fn from(key: GroupKey) -> Self {
        match key {
            GroupKey::Vertical { source, target } => Self::Vertical { source, target },
            GroupKey::Horizontal { source, .. } => Self::Horizontal { source },
        }
    }
}

/// An open alert.
pub(super) struct OpenAlert {
    pub(super) key: AlertKey,
    id: u64,
    /// Steps that were told.
    revision: u32,
    /// Distinct ports or hosts at which the next update is due: a power of ten.
    rung: u64,
    /// The profile counts SYNs, whatever became of them.
    by_syn_alone: bool,
    contacts: OutcomeSet,
    /// Hosts of a horizontal scan.
    hosts: OutcomeSet,
    /// Ports of a horizontal scan that passed the threshold.
    swept: BTreeSet<u16>,
    ports: Lowest<u16>,
    addresses: Lowest<Address>,
    answered: Lowest<u16>,
    start: UnixNanos,
    end: UnixNanos,
    /// Last attempt that counts as evidence.
    active: UnixNanos,
    workers: u64,
    /// A step of it waits until the limit allows to tell it.
    is_waiting: bool,
}

impl OpenAlert {
    /// Memory without its sets, and the least that those take. Unit: bytes.
    pub(super) const BYTES: usize =
        size_of::<Self>() + SAMPLES * size_of::<Address>() + 2 * OutcomeSet::LEAST_BYTES + 256;

    pub(super) fn new(id: u64, key: AlertKey, by_syn_alone: bool) -> Self {
        Self {
            key,
            id,
            revision: 0,
            rung: 0,
            by_syn_alone,
            contacts: OutcomeSet::default(),
            hosts: OutcomeSet::default(),
            swept: BTreeSet::new(),
            ports: Lowest::default(),
            addresses: Lowest::default(),
            answered: Lowest::default(),
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            active: UnixNanos(0),
            workers: 0,
            is_waiting: false,
        }
    }

    /// Does this alert tell about that group?
    pub(super) fn covers(&self, group: GroupKey) -> bool {
        match group {
            GroupKey::Vertical { .. } => true,
            GroupKey::Horizontal { port, .. } => self.swept.contains(&port),
        }
    }

    /// Takes a group in, before its contacts. Returns whether there was room for its port.
    pub(super) fn cover(&mut self, group: GroupKey, spare: &mut usize) -> bool {
        let GroupKey::Horizontal { port, .. } = group else { return true };
        if *spare == 0 && !self.swept.is_empty() {
            return false;
        }
        if self.swept.insert(port) && self.swept.len() > 1 {
            *spare -= 1;
        }
        true
    }

    /// Takes in a contact of a covered group, or what changed about it.
    pub(super) fn record(&mut self, entry: &Entry, spare: &mut usize) {
        let ContactKey { target, port, .. } = entry.contact.key;
        let outcome = entry.outcome();
        self.contacts.record(fingerprint(target, u64::from(port) + 1), outcome, spare);
        if matches!(self.key, AlertKey::Horizontal { .. }) {
            self.hosts.record(fingerprint(target, 0), Outcome::Undecided, spare);
        }
        self.ports.insert(port);
        self.addresses.insert(target);
        if outcome == Outcome::Answered {
            self.answered.insert(port);
        }
        self.start = self.start.min(entry.contact.first);
        self.end = self.end.max(entry.contact.last);
        if entry.is_failed || self.by_syn_alone || self.active == UnixNanos(0) {
            self.active = self.active.max(entry.contact.last);
        }
        self.workers |= entry.workers;
    }

    /// Nobody was told about it yet.
    pub(super) const fn is_untold(&self) -> bool {
        self.revision == 0
    }

    /// It grew to the next rung.
    pub(super) fn has_climbed(&self) -> bool {
        !self.is_untold() && self.size() >= self.rung
    }

    /// Leaves an update out: the next one is due at the next rung.
    pub(super) fn skip_rung(&mut self) {
        self.rung = next_rung(self.size());
    }

    /// Its next step cannot be told now. Returns whether that is new.
    pub(super) const fn starts_to_wait(&mut self) -> bool {
        !std::mem::replace(&mut self.is_waiting, true)
    }

    /// Was it quiet for long enough?
    pub(super) fn is_over(&self, now: UnixNanos, close_after: Duration) -> bool {
        now >= self.active.plus(close_after)
    }

    /// Room that its sets took from what all sets share.
    pub(super) fn room_taken(&self) -> usize {
        let ports = self.swept.len().saturating_sub(1);
        ports + self.contacts.room_taken() + self.hosts.room_taken()
    }

    /// The next step of its life, to be told.
    pub(super) fn tell(&mut self, phase: Phase, time: UnixNanos) -> Alert {
        self.revision += 1;
        self.is_waiting = false;
        self.skip_rung();
        let count = |outcome| self.contacts.count(outcome);
        let (answered, refused) = (count(Outcome::Answered), count(Outcome::Refused));
        let confidence = match (self.by_syn_alone, answered + refused) {
            (true, _) => Confidence::Low,
            (false, 0) => Confidence::Medium,
            (false, _) => Confidence::High,
        };
        let (kind, source, target) = match self.key {
            AlertKey::Vertical { source, target } => (Kind::Vertical, source, Some(target)),
            AlertKey::Horizontal { source } => (Kind::Horizontal, source, None),
        };
        let (distinct_ports, distinct_hosts) = match kind {
            Kind::Vertical => (self.contacts.total(), 1),
            _ => (self.swept.len() as u64, self.hosts.total()),
        };
        Alert {
            id: self.id,
            revision: self.revision,
            phase,
            kind,
            technique: Some(Technique::Syn),
            source: Some(source),
            target,
            confidence,
            severity: if self.by_syn_alone { 3 } else { 2 },
            // A SYN proves nothing about its source. What would (the last step of a handshake) is
            // no evidence here.
            spoofable: true,
            distinct_ports,
            distinct_hosts,
            distinct_sources: 1,
            attempted: self.contacts.total(),
            answered,
            refused,
            silent: count(Outcome::Silent),
            is_estimated: self.contacts.is_estimated() || self.hosts.is_estimated(),
            sample_ports: self.ports.0.clone(),
            sample_hosts: self.addresses.0.clone(),
            answered_ports: self.answered.0.clone(),
            sample_sources: Vec::new(),
            flood: None,
            is_one_way: false,
            had_losses: false,
            start: self.start,
            end: self.end,
            time,
            workers: self.workers,
        }
    }

    /// What the ladder of updates counts.
    fn size(&self) -> u64 {
        match self.key {
            AlertKey::Vertical { .. } => self.contacts.total(),
            AlertKey::Horizontal { .. } => self.hosts.total(),
        }
    }
}

/// The least power of ten above `size`, from ten on.
fn next_rung(size: u64) -> u64 {
    let mut rung = 10;
    while rung <= size {
        rung *= 10;
    }
    rung
}

/// Not keyed: estimates, which depend on it, shall not depend on a random key.
const fn fingerprint(target: Address, port: u64) -> u64 {
    mix(mix(target.low(), target.high()), port)
}

/// The lowest few distinct values, in order.
#[derive(Default)]
struct Lowest<T>(Vec<T>);

impl<T: Ord> Lowest<T> {
    fn insert(&mut self, value: T) {
        if let Err(place) = self.0.binary_search(&value)
            && place < SAMPLES
        {
            self.0.truncate(SAMPLES - 1);
            self.0.insert(place, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_the_powers_of_ten_above() {
        for (size, rung) in [(0, 10), (4, 10), (9, 10), (10, 100), (99, 100), (1000, 10_000)] {
            assert_eq!(next_rung(size), rung, "above {size}");
        }
    }

    #[test]
    fn samples_are_the_lowest_distinct_values_in_order() {
        let mut lowest = Lowest::default();
        (0..100_u16).rev().chain(0..100).for_each(|value| lowest.insert(value));
        assert_eq!(lowest.0, (0..SAMPLES as u16).collect::<Vec<_>>());
    }
}
