//! Which groups of contacts are a scan, and of what kind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use packet::Address;
use wire::units::UnixNanos;

use super::contacts::{Entry, SOURCE, TARGET};
use super::detector::Detector;
use super::floods::Part;
use super::groups::{Group, GroupKey, NONE};
use super::held::Held;
use super::open::{AlertKey, Circumstances};
use super::outcomes::Outcome;
use super::slow::{KEPT, Past, SlowCounts};
use super::{Profile, Technique, Thresholds};
use crate::evidence::{Class, Observation};

/// More than three ports of one target make a scan of profile `strict`.
pub(super) const STRICT_PORTS: u32 = 4;

/// A block scan attempts more hosts, and more ports, than this.
pub(super) const BLOCK_SIDE: usize = 5;

/// A scan of many ports attempts so many of each host, on average.
const CONTACTS_OF_HOST: usize = 3;

/// Open verticals of a target that another one is compared with.
const MOST_PEERS: usize = 64;

/// After so long it is known whether a target is flooded.
const FLOOD_IS_KNOWN: Duration = Duration::from_secs(3);

/// Who sends a good part of a flood, to so many ports of its target, does not look for any of them.
const PORTS_OF_FLOOD: u32 = 1000;

/// Contacts of a source that gives way that are looked at.
const MOST_LOOKED_AT: usize = 64;

/// So many sources that scan one target at a time, each as much as a vertical scan takes, do so together.
const SCANS_OF_ONE: usize = 3;

/// Where answers are not seen, thresholds are so many times higher.
const ONE_WAY_FACTOR: f64 = 3.0;

/// Decoys and their scanner send the same probe within this time.
const AT_ONCE: Duration = Duration::from_millis(50);

/// What a closer look at the failed contacts of a source found.
#[derive(Default)]
pub(super) struct OfSource {
    pub(super) pairs: usize,
    pub(super) hosts: BTreeSet<Address>,
    pub(super) ports: BTreeSet<(Class, u16)>,
    pub(super) answered: BTreeSet<Address>,
    pub(super) answered_pairs: usize,
}

impl Detector {
    /// Groups that grew past their threshold get their alert, with every contact of the window.
    pub(super) fn open_alerts(&mut self) {
        let mut grown: Vec<(GroupKey, u32)> = Vec::new();
        for group in std::mem::take(&mut self.grown) {
            let state = self.contacts.groups.of(group);
            if std::mem::take(&mut state.has_grown) {
                grown.push((state.key, group));
            }
        }
        // In the order of the keys, whatever the order of the evidence was. Of a source first: a block scan
        // takes precedence.
        grown.sort_unstable();
        for (key, group) in grown {
            let state = *self.contacts.groups.get(group);
            if self.alerts.is_open(state.alert) {
                continue;
            }
            match key {
                GroupKey::Source { source } => self.open_block(source, group, &state),
                GroupKey::Target { target } => self.open_distributed(target, group, &state),
                GroupKey::Ports { source, target, technique } => {
                    if self.passes(&state) && self.told_by(&key) == 0 {
                        match technique {
                            _ if self.is_of_flood(&state) => {}
                            Technique::Syn => self.open_vertical(source, target, group),
                            Technique::Udp => self.open_udp((source, target), group),
                            _ => self.open_for(group),
                        }
                    }
                }
                GroupKey::Hosts { .. } => {
                    if self.told_by(&key) == 0 && self.passes(&state) {
                        self.open_for(group);
                    }
                }
            }
        }
    }

    /// Id of the open alert that takes precedence over one about this group; 0 if there is none.
    pub(super) fn told_by(&self, key: &GroupKey) -> u64 {
        use Technique::{Syn, Udp};
        let by_block = |source| self.alerts.under(AlertKey::Block { source });
        let by_all = |source, target| self.alerts.of_scans(source, target);
        match *key {
            GroupKey::Ports { source, target, technique: Syn } => match by_block(source) {
                0 => by_all(source, target),
                block => block,
            },
            GroupKey::Ports { source, technique: Udp, .. }
            | GroupKey::Hosts { source, class: Class::Tcp | Class::Udp, .. } => by_block(source),
            _ => 0,
        }
    }

    /// Are these ports attempted because their target is flooded, by their source?
    pub(super) fn is_of_flood(&self, group: &Group) -> bool {
        let GroupKey::Ports { source, target, technique } = group.key else { return false };
        match technique {
            Technique::Syn => {
                self.syn_flood_on(target).is_some_and(|flood| flood.dominant == Some(source))
            }
            Technique::Udp => match self.floods.part_in_udp(source, target) {
                Part::Most => true,
                Part::Some => group.attempted >= PORTS_OF_FLOOD,
                Part::MayBecome | Part::None => false,
            },
            _ => false,
        }
    }

    /// Has a group reached the threshold of its kind?
    pub(super) fn passes(&self, group: &Group) -> bool {
        let Some(source) = group.key.source() else { return false };
        if self.is_by_syn_alone(&group.key) {
            return group.attempted >= STRICT_PORTS;
        }
        let Some(configured) = self.configured(&group.key) else { return false };
        let has_reached = group.failed >= self.threshold(configured, source);
        // Who succeeds more often than not has business there.
        let may_succeed = matches!(
            group.key,
            GroupKey::Ports { technique, .. } if technique != Technique::Udp
        );
        has_reached && (may_succeed || group.failed * 2 > group.attempted)
    }

    /// How much evidence the source of a contact holds: of the groups of the contact, in the one that is closest to
    /// its threshold. What may yet fail counts as failed.
    pub(super) fn held_with(&self, number: u32) -> Held {
        let entry = &self.contacts.entries[number as usize];
        let groups = entry.groups.into_iter().filter(|&group| group != NONE);
        let held = groups.map(|group| self.held_in(group)).max();
        let may_count = entry.is_undecided() || entry.is_attempted() && entry.has_failed();
        held.unwrap_or(match may_count {
            true => Held::Little,
            false => Held::Nothing,
        })
    }

    fn held_in(&self, group: u32) -> Held {
        let Group { key, attempted, failed, .. } = *self.contacts.groups.get(group);
        let Some(source) = key.source() else { return Held::Nothing };
        let configured = self.configured(&key).unwrap_or(self.config.thresholds.block_contacts);
        let list = self.contacts.groups.find(&GroupKey::Source { source });
        let members = list.into_iter().flat_map(|list| self.contacts.list(SOURCE, list));
        // Of a source with very many the first ones will do; a source of a flood has one or two.
        let waiting = members
            .take(MOST_LOOKED_AT)
            .filter(|entry| entry.is_undecided() && entry.groups.contains(&group))
            .count() as u32;
        Held::of((failed + waiting).min(attempted), self.threshold(configured, source))
    }

    fn held_by_slow(&self, source: Address, counts: SlowCounts) -> Held {
        let Thresholds { slow_contacts, slow_day_contacts, .. } = self.config.thresholds;
        Held::of(counts.quarter, self.slow_threshold(slow_contacts, source))
            .max(Held::of(counts.day, self.slow_threshold(slow_day_contacts, source)))
    }

    /// The threshold of a group about ports or hosts as it is configured.
    pub(super) fn configured(&self, key: &GroupKey) -> Option<u32> {
        let Thresholds { vertical_ports, horizontal_hosts, .. } = self.config.thresholds;
        let Thresholds { stealth_ports, udp_ports, protocols, .. } = self.config.thresholds;
        let Thresholds { icmp_hosts, arp_hosts, .. } = self.config.thresholds;
        match key {
            GroupKey::Ports { technique, .. } => Some(match technique {
                Technique::Syn => vertical_ports,
                Technique::Udp => udp_ports,
                Technique::Ip => protocols,
                // Single segments of connections that nobody knows look like these.
                Technique::Ack | Technique::Maimon => vertical_ports,
                _ => stealth_ports,
            }),
            GroupKey::Hosts { class, .. } => Some(match class {
                Class::Icmp => icmp_hosts,
                Class::Arp => arp_hosts,
                Class::Tcp | Class::Udp | Class::Ip => horizontal_hosts,
            }),
            GroupKey::Source { .. } | GroupKey::Target { .. } => None,
        }
    }

    /// The threshold of this source.
    pub(super) fn threshold(&self, threshold: u32, source: Address) -> u32 {
        let one_way = if self.view.is_one_way() { ONE_WAY_FACTOR } else { 1.0 };
        let factor = self.config.factor(source).unwrap_or(1.0) * one_way;
        // Saturates; a threshold of zero would be no threshold.
        ((f64::from(threshold) * factor).ceil() as u32).max(1)
    }

    fn circumstances(&self, key: &GroupKey) -> Circumstances {
        Circumstances {
            by_syn_alone: self.is_by_syn_alone(key),
            is_one_way: self.view.is_one_way(),
            ..Circumstances::default()
        }
    }

    /// Opens the alert of a group, or takes it into the one that is open.
    fn open_for(&mut self, group: u32) {
        let key = self.contacts.groups.get(group).key;
        let circumstances = self.circumstances(&key);
        let alert = self.alerts.open_or_extend(AlertKey::from(key), Some(key), circumstances);
        if alert == 0 {
            return;
        }
        let crossed = self.crossed_at(group);
        self.alerts.note_crossing(alert, crossed);
        self.tell_contacts(group, alert);
    }

    /// When the contact counted with which a group of ports or hosts reached its threshold.
    fn crossed_at(&self, group: u32) -> Option<UnixNanos> {
        let state = self.contacts.groups.get(group);
        let source = state.key.source()?;
        let by_attempts = self.is_by_syn_alone(&state.key);
        let threshold = match by_attempts {
            true => STRICT_PORTS,
            false => self.threshold(self.configured(&state.key)?, source),
        };
        let list = self.contacts.groups.find(&GroupKey::Source { source })?;
        let members = self.contacts.list(SOURCE, list).filter(|it| it.groups.contains(&group));
        let counted = members.filter(|it| by_attempts || it.fails_in(&state.key));
        let mut times: Vec<UnixNanos> = counted
            .map(|entry| match entry.outcome() {
                Outcome::Silent if !by_attempts && !entry.contact.flags.has_odd() => {
                    entry.contact.first.plus(self.config.silent_after)
                }
                // The newest attempt is what was refused.
                Outcome::Refused => entry.contact.last,
                _ => entry.contact.first,
            })
            .collect();
        times.sort_unstable();
        times.get(threshold as usize - 1).copied()
    }

    /// The group belongs to that alert from now on, with every contact of the window.
    fn tell_contacts(&mut self, group: u32, alert: u64) {
        let state = self.contacts.groups.of(group);
        state.alert = alert;
        if alert == 0 {
            return;
        }
        let key = state.key;
        let (slot, list) = match (key, key.source()) {
            (GroupKey::Target { .. }, _) | (_, None) => (TARGET, Some(group)),
            (GroupKey::Source { .. }, _) => (SOURCE, Some(group)),
            (_, Some(source)) => (SOURCE, self.contacts.groups.find(&GroupKey::Source { source })),
        };
        let Some(list) = list else { return };
        for entry in self.contacts.list(slot, list) {
            if entry.groups.contains(&group) {
                self.alerts.record(alert, entry, &key);
            } else if let GroupKey::Ports { target, technique: Technique::Ip, .. } = key
                && entry.contact.key.target == target
                && entry.is_attempted()
            {
                self.alerts.record_protocol(alert, entry);
            }
        }
        self.contacts.note_told(slot, list, group);
    }

    /// A vertical scan, or one of the decoys of one that is open.
    fn open_vertical(&mut self, source: Address, target: Address, group: u32) {
        let peers: Vec<(u64, Address)> =
            self.alerts.verticals_of(target).take(MOST_PEERS).collect();
        if !peers.is_empty() {
            let mine = self.probes(source, target);
            for (alert, peer) in peers {
                if is_same_scan(&mine, &self.probes(peer, target)) {
                    let key = AlertKey::vertical(source, target);
                    let alert = self.alerts.become_decoy(alert, key, source);
                    if alert != 0 {
                        self.tell_contacts(group, alert);
                        return;
                    }
                }
            }
        }
        if !self.open_of_scans(source, target) {
            self.open_for(group);
        }
    }

    /// One more source scans a target that others scan: with all of them, if they are many enough, or are told as one.
    fn open_of_scans(&mut self, source: Address, target: Address) -> bool {
        let parts = self.alerts.lone_scans_of(target, self.now.minus(self.config.window));
        let are_many = parts.len() + 1 >= SCANS_OF_ONE || self.alerts.has_scans_of(target);
        if !are_many || self.config.profile == Profile::Strict {
            return false;
        }
        let alert = self.alerts.become_distributed((source, target), &parts);
        if alert == 0 {
            return false;
        }
        if let Some(group) = self.contacts.groups.find(&GroupKey::Target { target }) {
            self.tell_contacts(group, alert);
        }
        alert != 0
    }

    /// A scan by datagrams, unless they may become a flood of the target within moments.
    fn open_udp(&mut self, (source, target): (Address, Address), group: u32) {
        match self.floods.part_in_udp(source, target) {
            Part::MayBecome if self.now.since(self.first_of(source, group)) < FLOOD_IS_KNOWN => {
                self.note_growth(group);
            }
            _ => self.open_for(group),
        }
    }

    /// The first attempt that counts in a group of a source.
    fn first_of(&self, source: Address, group: u32) -> UnixNanos {
        let list = self.contacts.groups.find(&GroupKey::Source { source });
        let members = list.into_iter().flat_map(|list| self.contacts.list(SOURCE, list));
        let members = members.filter(|entry| entry.groups.contains(&group));
        members.map(|entry| entry.contact.first).min().unwrap_or(self.now)
    }

    /// Ports of a target that a source attempts by SYN, with the time of each.
    fn probes(&self, source: Address, target: Address) -> BTreeMap<u16, u64> {
        let group = self.contacts.groups.find(&GroupKey::Source { source });
        let contacts = group.into_iter().flat_map(|group| self.contacts.list(SOURCE, group));
        let is_probe = |entry: &&Entry| {
            let key = entry.contact.key;
            key.target == target
                && key.class == Class::Tcp
                && entry.contact.flags.has(Observation::Attempted)
        };
        contacts
            .filter(is_probe)
            .map(|entry| (entry.contact.key.port, entry.contact.first.0))
            .collect()
    }

    /// Many ports of many hosts: by their number, or because hardly a first contact succeeds. The latter is the
    /// random walk of Jung et al. ("Fast portscan detection using sequential hypothesis testing", IEEE S&P 2004):
    /// with θ0 = 0.8, θ1 = 0.2, α = 1e-5, nine more failures than successes decide.
    fn open_block(&mut self, source: Address, group: u32, state: &Group) {
        let pairs = self.threshold(self.config.thresholds.block_contacts, source);
        let hosts = self.threshold(self.config.thresholds.sequential_hosts, source) as usize;
        if (state.failed as usize) < hosts || state.failed < state.look_at {
            return;
        }
        let mut found = OfSource::default();
        for entry in self.contacts.list(SOURCE, group) {
            found.take_in(entry);
        }
        // Not again before there is a tenth more.
        self.contacts.groups.of(group).look_at = state.failed + state.failed / 10 + 1;
        // Who succeeds more often than not has business there.
        let by_number = found.pairs >= pairs as usize && found.pairs > found.answered_pairs;
        let by_sequence = found.hosts.len() >= found.answered.len() + hosts;
        let is_wide = found.hosts.len() > BLOCK_SIDE && found.ports.len() > BLOCK_SIDE;
        if !is_wide || !(by_number || by_sequence) {
            return;
        }
        let mut alert = self.alerts.become_block(source);
        if alert == 0 {
            let key = GroupKey::Source { source };
            let is_thin = found.pairs < CONTACTS_OF_HOST * found.hosts.len();
            let circumstances = Circumstances { is_thin, ..self.circumstances(&key) };
            alert = self.alerts.open_or_extend(AlertKey::Block { source }, None, circumstances);
        }
        self.tell_contacts(group, alert);
    }

    /// One target, by many sources of which each stays below the threshold of a vertical scan.
    fn open_distributed(&mut self, target: Address, group: u32, state: &Group) {
        let Thresholds { distributed_sources, distributed_ports, vertical_ports, .. } =
            self.config.thresholds;
        let one_way = if self.view.is_one_way() { ONE_WAY_FACTOR as u32 } else { 1 };
        let ports_needed = distributed_ports.saturating_mul(one_way);
        if state.failed < ports_needed || state.failed < state.look_at {
            return;
        }
        if self.syn_flood_on(target).is_some() {
            return;
        }
        let mut first = self.now;
        let mut by_source: BTreeMap<Address, BTreeSet<u16>> = BTreeMap::new();
        for entry in self.contacts.list(TARGET, group) {
            if entry.fails_in(&state.key) && entry.contact.key.class == Class::Tcp {
                let key = entry.contact.key;
                first = first.min(entry.contact.first);
                by_source.entry(key.source).or_default().insert(key.port);
            }
        }
        self.contacts.groups.of(group).look_at = state.failed + state.failed / 10 + 1;
        // Somebody with a single contact may be anybody, and any address in a flood.
        by_source.retain(|_, ports| ports.len() >= 2 && ports.len() < vertical_ports as usize);
        let ports: BTreeSet<u16> = by_source.values().flatten().copied().collect();
        if by_source.len() >= distributed_sources as usize && ports.len() >= ports_needed as usize {
            if self.now.since(first) < FLOOD_IS_KNOWN {
                self.contacts.groups.of(group).look_at = 0;
                self.note_growth(group);
                return;
            }
            let key = AlertKey::Distributed { target };
            let circumstances = self.circumstances(&state.key);
            let alert = self.alerts.open_or_extend(key, None, circumstances);
            self.tell_contacts(group, alert);
        }
    }

    /// The threshold of this source for slow scans, within what is kept of it.
    pub(super) fn slow_threshold(&self, threshold: u32, source: Address) -> u32 {
        self.threshold(threshold, source).min(KEPT as u32 - 1)
    }

    /// Contacts of one source left the window unnoticed: they may be too many over a longer time.
    pub(super) fn note_slow(&mut self, contacts: &[Past]) {
        let Some(latest) = contacts.last() else { return };
        let source = latest.key.source;
        let key = AlertKey::Slow { source };
        let open = self.alerts.under(key);
        for past in contacts {
            match open {
                0 => {
                    if let Some((lost, counts)) = self.slow.note(past) {
                        let held = self.held_by_slow(lost, counts);
                        self.slow_lost.note(held);
                    }
                }
                open => self.alerts.record_past(open, past),
            }
        }
        if open != 0 || !contacts.iter().any(Past::has_failed) {
            return;
        }
        let counts = self.slow.counts(source, latest.last);
        let Thresholds { slow_contacts, slow_day_contacts, .. } = self.config.thresholds;
        let is_of_a_day = counts.quarter < self.slow_threshold(slow_contacts, source);
        if is_of_a_day && counts.day < self.slow_threshold(slow_day_contacts, source) {
            return;
        }
        let is_one_way = self.view.is_one_way();
        let circumstances = Circumstances { is_one_way, is_of_a_day, ..Circumstances::default() };
        let alert = self.alerts.open_or_extend(key, None, circumstances);
        if alert != 0 {
            self.look_at_slow_if_watched(source);
            // What is told counts for no other alert.
            for past in self.slow.take(source) {
                self.alerts.record_past(alert, &past);
            }
        }
    }
}

impl OfSource {
    pub(super) fn take_in(&mut self, entry: &Entry) {
        let key = entry.contact.key;
        let has_ports = entry.groups[TARGET] != NONE;
        if !has_ports {
            return;
        }
        match entry.outcome() {
            Outcome::Refused | Outcome::Silent => {
                self.pairs += 1;
                self.hosts.insert(key.target);
                self.ports.insert((key.class, key.port));
            }
            Outcome::Answered => {
                self.answered_pairs += 1;
                self.answered.insert(key.target);
            }
            Outcome::Undecided => {}
        }
    }
}

/// Do most ports of the smaller one come in both, at the same time?
fn is_same_scan(one: &BTreeMap<u16, u64>, other: &BTreeMap<u16, u64>) -> bool {
    let at_once = AT_ONCE.as_nanos() as u64;
    let is_shared = |(port, time): &(&u16, &u64)| {
        other.get(port).is_some_and(|theirs| theirs.abs_diff(**time) <= at_once)
    };
    let shared = one.iter().filter(is_shared).count();
    shared > 0 && shared * 5 >= one.len().min(other.len()) * 4
}
