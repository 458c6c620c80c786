//! One open alert: what it counted, and what it tells.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use packet::{Address, mix, protocol};
use wire::units::UnixNanos;

use super::alert::{Alert, Confidence, Kind, Phase, SAMPLES, Technique};
use super::contacts::Entry;
use super::explain::AlertBrief;
use super::groups::GroupKey;
use super::outcomes::{Outcome, OutcomeSet};
use super::slow::Past;
use super::view::Due;
use crate::evidence::{Class, ContactKey};

/// One alert for each of these at a time. Ports that one source sweeps fold into one alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AlertKey {
    Block { source: Address },
    Ports { source: Address, target: Address, technique: Technique },
    Sweep { source: Address, by: Sweep },
    Distributed { target: Address },
    Slow { source: Address },
}

/// What hosts are swept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sweep {
    Ports,
    Icmp,
    Arp,
}

impl From<GroupKey> for AlertKey {
    fn from(key: GroupKey) -> Self {
        match key {
            GroupKey::Source { source } => Self::Block { source },
            GroupKey::Ports { source, target, technique } => {
                Self::Ports { source, target, technique }
            }
            GroupKey::Hosts { source, class, .. } => Self::Sweep {
                source,
                by: match class {
                    Class::Icmp => Sweep::Icmp,
                    Class::Arp => Sweep::Arp,
                    Class::Tcp | Class::Udp | Class::Ip => Sweep::Ports,
                },
            },
            GroupKey::Target { target } => Self::Distributed { target },
        }
    }
}

impl AlertKey {
    const fn kind(self) -> Kind {
        match self {
            Self::Block { .. } => Kind::Block,
            Self::Ports { technique, .. } => match technique {
                Technique::Udp => Kind::Udp,
                Technique::Ip => Kind::Protocol,
                Technique::Syn | Technique::Echo | Technique::Arp => Kind::Vertical,
                _ => Kind::Stealth,
            },
            Self::Sweep { by: Sweep::Ports, .. } => Kind::Horizontal,
            Self::Sweep { by: Sweep::Icmp, .. } => Kind::IcmpSweep,
            Self::Sweep { by: Sweep::Arp, .. } => Kind::ArpSweep,
            Self::Distributed { .. } => Kind::Distributed,
            Self::Slow { .. } => Kind::Slow,
        }
    }

    /// The key of a vertical scan.
    pub(super) const fn vertical(source: Address, target: Address) -> Self {
        Self::Ports { source, target, technique: Technique::Syn }
    }

    /// All keys about ports that a source attempts.
    pub(super) fn all_ports_of(source: Address) -> RangeInclusive<Self> {
        let [first, last] = [[0; 16], [0xff; 16]].map(Address::from_v6);
        let key = |target, technique| Self::Ports { source, target, technique };
        key(first, Technique::Null)..=key(last, Technique::Ip)
    }

    /// Is it about ports that its source attempts, fast?
    pub(super) const fn is_fast_scan(self) -> bool {
        matches!(
            self,
            Self::Block { .. } | Self::Ports { .. } | Self::Sweep { by: Sweep::Ports, .. }
        )
    }

    /// Is it about ports that are attempted as they are by connections?
    pub(super) const fn is_by_ordinary_ports(self) -> bool {
        matches!(self, Self::Ports { technique: Technique::Syn | Technique::Udp, .. })
    }

    pub(super) const fn source(self) -> Option<Address> {
        match self {
            Self::Block { source }
            | Self::Ports { source, .. }
            | Self::Sweep { source, .. }
            | Self::Slow { source } => Some(source),
            Self::Distributed { .. } => None,
        }
    }

    pub(super) const fn target(self) -> Option<Address> {
        match self {
            Self::Ports { target, .. } | Self::Distributed { target } => Some(target),
            _ => None,
        }
    }
}

/// Under what circumstances an alert opens.
#[derive(Clone, Copy, Default)]
pub(super) struct Circumstances {
    /// The profile counts SYNs, whatever became of them.
    pub(super) by_syn_alone: bool,
    /// Thresholds were raised, as answers are not seen here.
    pub(super) is_one_way: bool,
    /// Hardly more than a contact of each host: a client whose peers are gone does the same.
    pub(super) is_thin: bool,
    /// Of a slow scan: it took more than a quarter of an hour.
    pub(super) is_of_a_day: bool,
}

/// An open alert.
pub(super) struct OpenAlert {
    pub(super) key: AlertKey,
    kind: Kind,
    /// It is told as this from its next step on.
    becomes: Option<Kind>,
    id: u64,
    /// When it was told for the first time.
    opened: Option<UnixNanos>,
    /// When it reached its threshold, if one count decided.
    pub(super) crossed: Option<UnixNanos>,
    /// Steps that were told.
    revision: u32,
    /// Distinct ports or hosts at which the next update is due: a power of ten.
    rung: u64,
    circumstances: Circumstances,
    contacts: OutcomeSet,
    hosts: OutcomeSet,
    distinct_ports: OutcomeSet,
    distinct_sources: OutcomeSet,
    /// Services of a sweep that passed the threshold.
    swept: BTreeSet<(Class, u16)>,
    /// The sources that it is about, where each would have an alert of its own.
    scanners: BTreeSet<Address>,
    /// Of a distributed scan that began as a vertical one: by this source.
    grew_from: Option<Address>,
    /// Sources beside the one in the key, that do the same.
    pub(super) decoys: BTreeSet<Address>,
    techniques: BTreeSet<Technique>,
    ports: Lowest<u16>,
    addresses: Lowest<Address>,
    sources: Lowest<Address>,
    answered: Lowest<u16>,
    start: UnixNanos,
    end: UnixNanos,
    /// Last attempt that counts as evidence.
    active: UnixNanos,
    workers: u64,
    proves_source: bool,
    had_losses: bool,
    /// A step of it waits until the limit allows to tell it.
    is_waiting: bool,
}

/// How long a scan took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: UnixNanos,
    pub(super) end: UnixNanos,
}

impl Span {
    /// Both, and what lies between.
    pub(super) fn with(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Is that time within it, or at most `slack` before or after?
    pub(super) fn holds(&self, time: UnixNanos, slack: Duration) -> bool {
        time.plus(slack) >= self.start && time <= self.end.plus(slack)
    }
}

/// Decoys of one alert: beyond these, verticals open on their own.
const MOST_DECOYS: usize = 256;

impl OpenAlert {
    /// Memory of an alert about ports or a sweep, and the least that its sets take. The few others take twice as
    /// much. Unit: bytes.
    pub(super) const BYTES: usize =
        size_of::<Self>() + 2 * SAMPLES * size_of::<Address>() + 2 * OutcomeSet::LEAST_BYTES + 256;

    pub(super) fn new(id: u64, key: AlertKey, circumstances: Circumstances) -> Self {
        Self {
            key,
            kind: key.kind(),
            becomes: None,
            id,
            opened: None,
            crossed: None,
            revision: 0,
            rung: 0,
            circumstances,
            contacts: OutcomeSet::default(),
            hosts: OutcomeSet::default(),
            distinct_ports: OutcomeSet::default(),
            distinct_sources: OutcomeSet::default(),
            swept: BTreeSet::new(),
            scanners: BTreeSet::new(),
            grew_from: None,
            decoys: BTreeSet::new(),
            techniques: BTreeSet::new(),
            ports: Lowest::default(),
            addresses: Lowest::default(),
            sources: Lowest::default(),
            answered: Lowest::default(),
            start: UnixNanos(u64::MAX),
            end: UnixNanos(0),
            active: UnixNanos(0),
            workers: 0,
            proves_source: false,
            had_losses: false,
            is_waiting: false,
        }
    }

    /// Does this alert tell about that group?
    pub(super) fn covers(&self, group: GroupKey) -> bool {
        match group {
            GroupKey::Hosts { class, port, .. } => self.swept.contains(&(class, port)),
            _ => true,
        }
    }

    /// Takes a group in, before its contacts. Returns whether there was room for its service.
    pub(super) fn cover(&mut self, group: GroupKey, spare: &mut usize) -> bool {
        let GroupKey::Hosts { class, port, .. } = group else { return true };
        if *spare == 0 && !self.swept.is_empty() {
            return false;
        }
        if self.swept.insert((class, port)) && self.swept.len() > 1 {
            *spare -= 1;
        }
        true
    }

    /// It is a block scan from now on, of the same source.
    pub(super) fn becomes_block(&mut self, source: Address) {
        self.key = AlertKey::Block { source };
        self.becomes = Some(Kind::Block);
    }

    /// Many sources scan `target`, of which it told one so far, or some.
    pub(super) fn becomes_distributed(&mut self, target: Address) {
        if let Some(source) = self.key.source() {
            self.grew_from = Some(source);
            self.scanners.insert(source);
            self.key = AlertKey::Distributed { target };
            self.becomes = Some(Kind::Distributed);
        }
    }

    /// Is it about sources each of which would have an alert of its own?
    pub(super) fn is_of_scans(&self) -> bool {
        !self.scanners.is_empty()
    }

    /// Is it about a scan of this source among others?
    pub(super) fn has_scanner(&self, source: Address) -> bool {
        self.scanners.contains(&source)
    }

    /// One more source scans its target, which the next update tells. Returns whether there was room for it.
    pub(super) fn takes_scanner(&mut self, source: Address) -> bool {
        if self.scanners.len() > MOST_DECOYS {
            return false;
        }
        self.becomes = Some(Kind::Distributed);
        self.scanners.insert(source)
    }

    /// A scan of one source that another may be a part of: it was found at `since` at the earliest.
    pub(super) fn is_lone_scan(&self, since: UnixNanos) -> bool {
        self.decoys.is_empty()
            && !self.circumstances.by_syn_alone
            && self.opened.is_none_or(|opened| opened >= since)
    }

    /// Another source does the same. Returns whether there was room for it.
    pub(super) fn becomes_decoy(&mut self, source: Address) -> bool {
        if self.decoys.len() == MOST_DECOYS {
            return false;
        }
        self.becomes = Some(Kind::Decoy);
        self.decoys.insert(source)
    }

    /// Takes in a contact of a covered group, or what changed about it.
    pub(super) fn record(&mut self, entry: &Entry, group: &GroupKey, spare: &mut usize) {
        if matches!(self.key, AlertKey::Block { .. } | AlertKey::Distributed { .. })
            && entry.groups[super::contacts::TARGET] == super::groups::NONE
        {
            // Of a source, or at a target, but no port of a host.
            return;
        }
        let ContactKey { source, target, class, port } = entry.contact.key;
        if matches!(self.key, AlertKey::Distributed { .. })
            && (class != Class::Tcp || !entry.fails_in(group))
        {
            // Others have business there.
            return;
        }
        if self.grew_from.is_some() && !self.has_scanner(source) {
            // Passers-by are no part of the scans, and do not keep the alert open.
            return;
        }
        let times = (entry.contact.first, entry.contact.last);
        self.take_in(source, target, class, port, entry.outcome(), times, spare);
        self.techniques.insert(match group {
            GroupKey::Ports { technique, .. } => *technique,
            _ => technique_of(class),
        });
        let is_evidence = entry.fails_in(group) || self.circumstances.by_syn_alone;
        if is_evidence {
            self.active = self.active.max(entry.contact.last);
        }
        self.workers |= entry.workers;
        self.proves_source |= entry.proves_source();
        self.had_losses |= entry.due == Due::Lost;
    }

    /// Takes in a contact that left the window long ago.
    pub(super) fn record_past(&mut self, past: &Past, spare: &mut usize) {
        let ContactKey { source, target, class, port } = past.key;
        self.take_in(source, target, class, port, past.outcome, (past.first, past.last), spare);
        self.techniques.insert(technique_of(class));
        self.active = self.active.max(past.last);
    }

    /// Of a scan of protocols: one that has ports, or is ICMP.
    pub(super) fn record_protocol(&mut self, entry: &Entry, spare: &mut usize) {
        let ContactKey { source, target, class, .. } = entry.contact.key;
        let number = match class {
            Class::Tcp => protocol::TCP,
            Class::Udp => protocol::UDP,
            Class::Icmp if target.is_v4() => protocol::ICMP,
            Class::Icmp => protocol::ICMPV6,
            Class::Ip | Class::Arp => return,
        };
        let times = (entry.contact.first, entry.contact.last);
        let outcome = entry.outcome();
        self.take_in(source, target, Class::Ip, u16::from(number), outcome, times, spare);
    }

    #[expect(clippy::too_many_arguments, reason = "a contact, out of two kinds of records")]
    fn take_in(
        &mut self,
        source: Address,
        target: Address,
        class: Class,
        port: u16,
        outcome: Outcome,
        (first, last): (UnixNanos, UnixNanos),
        spare: &mut usize,
    ) {
        let service = (class as u64) << u16::BITS | u64::from(port);
        // Decoys do the same as their scanner: each port counts once.
        let who = match self.key {
            // What the first one did is counted already, as a scan of its own counts.
            AlertKey::Distributed { .. } if self.grew_from != Some(source) => source,
            _ => target,
        };
        self.contacts.record(fingerprint(who, service + 1), outcome, spare);
        let undecided = Outcome::Undecided;
        match self.key {
            AlertKey::Sweep { .. } => self.hosts.record(fingerprint(target, 0), undecided, spare),
            AlertKey::Block { .. } | AlertKey::Slow { .. } => {
                self.hosts.record(fingerprint(target, 0), undecided, spare);
                let port = fingerprint(Address::default(), service + 1);
                self.distinct_ports.record(port, undecided, spare);
            }
            AlertKey::Distributed { .. } => {
                let port = fingerprint(Address::default(), service + 1);
                self.distinct_ports.record(port, undecided, spare);
                self.distinct_sources.record(fingerprint(source, 0), undecided, spare);
                self.sources.insert(source);
            }
            AlertKey::Ports { .. } => {}
        }
        if class != Class::Icmp && class != Class::Arp {
            self.ports.insert(port);
            if outcome == Outcome::Answered {
                self.answered.insert(port);
            }
        }
        self.addresses.insert(target);
        self.start = self.start.min(first);
        self.end = self.end.max(last);
    }

    /// From its first packet to its last evidence.
    pub(super) const fn span(&self) -> Span {
        Span { start: self.start, end: self.active }
    }

    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// What it counted so far, in short.
    pub(super) fn brief(&self) -> AlertBrief {
        AlertBrief {
            id: self.id,
            kind: self.becomes.unwrap_or(self.kind),
            technique: self.technique(),
            target: self.key.target(),
            opened: self.opened,
            start: self.start,
            end: self.end,
            attempted: self.contacts.total(),
            answered: self.contacts.count(Outcome::Answered),
            refused: self.contacts.count(Outcome::Refused),
            silent: self.contacts.count(Outcome::Silent),
        }
    }

    /// Nobody was told about it yet.
    pub(super) const fn is_untold(&self) -> bool {
        self.revision == 0
    }

    /// It grew to the next rung, or is something else now.
    pub(super) fn has_climbed(&self) -> bool {
        !self.is_untold() && (self.becomes.is_some() || self.size() >= self.rung)
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
        // A slow scan is quiet most of the time.
        let times = match (self.kind, self.circumstances.is_of_a_day) {
            (Kind::Slow, false) => 15,
            (Kind::Slow, true) => 3 * 60,
            _ => 1,
        };
        now >= self.active.plus(close_after * times)
    }

    /// Room that its sets took from what all sets share.
    pub(super) fn room_taken(&self) -> usize {
        let Self { contacts, hosts, distinct_ports, distinct_sources, .. } = self;
        let sets = [contacts, hosts, distinct_ports, distinct_sources];
        let ports = self.swept.len().saturating_sub(1);
        ports + sets.into_iter().map(OutcomeSet::room_taken).sum::<usize>()
    }

    /// The next step of its life, to be told.
    pub(super) fn tell(&mut self, phase: Phase, time: UnixNanos) -> Alert {
        if !self.is_untold() {
            self.kind = self.becomes.take().unwrap_or(self.kind);
        }
        self.opened.get_or_insert(time);
        self.revision += 1;
        self.is_waiting = false;
        self.skip_rung();
        let count = |outcome| self.contacts.count(outcome);
        let (answered, refused) = (count(Outcome::Answered), count(Outcome::Refused));
        let is_decoy = self.kind == Kind::Decoy;
        let sources = match self.key.source().filter(|_| is_decoy) {
            Some(source) => self.decoys.iter().copied().chain([source]).collect(),
            None if self.grew_from.is_some() => self.scanners.iter().copied().collect(),
            None => self.sources.0.clone(),
        };
        let (distinct_ports, distinct_hosts, distinct_sources) = self.distinct();
        let sets = [&self.contacts, &self.hosts, &self.distinct_ports, &self.distinct_sources];
        Alert {
            id: self.id,
            revision: self.revision,
            phase,
            kind: self.kind,
            technique: self.technique(),
            source: self.key.source().filter(|_| !is_decoy),
            target: self.key.target(),
            confidence: self.confidence(answered + refused),
            severity: self.severity(),
            spoofable: is_decoy || !self.proves_source,
            distinct_ports,
            distinct_hosts,
            distinct_sources,
            attempted: self.contacts.total(),
            answered,
            refused,
            silent: count(Outcome::Silent),
            is_estimated: sets.into_iter().any(OutcomeSet::is_estimated),
            sample_ports: self.ports.0.clone(),
            sample_hosts: self.addresses.0.clone(),
            answered_ports: self.answered.0.clone(),
            sample_sources: sorted(sources),
            flood: None,
            is_one_way: self.circumstances.is_one_way,
            had_losses: self.had_losses,
            start: self.start,
            end: self.end,
            time,
            workers: self.workers,
        }
    }

    /// The only technique, if there was one.
    fn technique(&self) -> Option<Technique> {
        self.techniques.first().copied().filter(|_| self.techniques.len() == 1)
    }

    fn distinct(&self) -> (u64, u64, u64) {
        match self.key {
            AlertKey::Ports { .. } => (self.contacts.total(), 1, 1 + self.decoys.len() as u64),
            AlertKey::Sweep { by: Sweep::Ports, .. } => {
                (self.swept.len() as u64, self.hosts.total(), 1)
            }
            AlertKey::Sweep { .. } => (0, self.hosts.total(), 1),
            AlertKey::Block { .. } | AlertKey::Slow { .. } => {
                (self.distinct_ports.total(), self.hosts.total(), 1)
            }
            AlertKey::Distributed { .. } => {
                (self.distinct_ports.total(), 1, self.distinct_sources.total())
            }
        }
    }

    /// `decisive` answers and refusals were seen.
    const fn confidence(&self, decisive: u64) -> Confidence {
        let Circumstances { by_syn_alone, is_one_way, is_thin, .. } = self.circumstances;
        match (by_syn_alone || is_one_way || is_thin, decisive) {
            (true, _) => Confidence::Low,
            (false, 0) => Confidence::Medium,
            (false, _) => Confidence::High,
        }
    }

    const fn severity(&self) -> u8 {
        let Circumstances { by_syn_alone, is_thin, .. } = self.circumstances;
        match self.kind {
            Kind::IcmpSweep | Kind::ArpSweep | Kind::Slow => 3,
            _ if by_syn_alone || is_thin => 3,
            _ => 2,
        }
    }

    /// What the ladder of updates counts.
    fn size(&self) -> u64 {
        match self.key {
            AlertKey::Sweep { .. } => self.hosts.total(),
            _ => self.contacts.total(),
        }
    }
}

/// By what an ordinary contact of this class is attempted.
const fn technique_of(class: Class) -> Technique {
    match class {
        Class::Tcp => Technique::Syn,
        Class::Udp => Technique::Udp,
        Class::Icmp => Technique::Echo,
        Class::Arp => Technique::Arp,
        Class::Ip => Technique::Ip,
    }
}

fn sorted(mut addresses: Vec<Address>) -> Vec<Address> {
    addresses.sort_unstable();
    addresses
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
