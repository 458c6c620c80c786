//! What the detector knows of one source, and why it did or did not alert.
//!
//! A running detector is asked for what it knows now. Over a file, a [`Watch`] looks at the end of each step
//! in which the source did anything, just after alerts were decided, and keeps the highest of each count.
//! Without a watch nothing is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use packet::Address;
use wire::units::UnixNanos;

use super::contacts::{Entry, SOURCE, TARGET, techniques};
use super::decide::{BLOCK_SIDE, OfSource, STRICT_PORTS};
use super::detector::Detector;
use super::groups::{Group, GroupKey, NONE};
use super::open::AlertKey;
use super::outcomes::Outcome;
use super::slow::{DAY, QUARTER};
use super::view::Due;
use super::{Allowed, Kind, NetworkRule, Technique};
use crate::evidence::{Class, ContactKey, Flags, Observation};

/// What the detector knows of a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The source.
    pub source: Address,
    /// What this is about.
    pub covers: Covers,
    /// Time of the detector.
    pub now: UnixNanos,
    /// How long a contact counts.
    pub window: Duration,
    /// How the source is looked at.
    pub standing: Standing,
    /// Its distinct contacts, by class. A contact that came again counts as what it became last.
    pub contacts: Vec<ContactCounts>,
    /// Contacts that did not count because the source is allowed or off; known over a whole run only.
    pub not_counted: u64,
    /// What was compared with a threshold, the closest to it first, up to [`MOST_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Those beyond that.
    pub findings_left_out: usize,
    /// Alerts about it, or with its part, that opened; of a running sensor: that are open.
    pub alerts: Vec<AlertBrief>,
    /// Contacts, of any source, that gave way before their time: counts may be too low.
    pub evidence_lost: u64,
}

/// What an [`Explanation`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covers {
    /// What is in the window now.
    Now,
    /// All of a run: counts are the highest at any time.
    WholeRun,
}

/// How a source is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// It is an address of this host: it never counts.
    pub is_own: bool,
    /// Entries of the list of allowed sources that it is in.
    pub allowed: Vec<Allowed>,
    /// The network that it has thresholds of.
    pub network: Option<NetworkRule>,
}

impl Standing {
    /// Nothing that it does counts.
    #[must_use]
    pub fn never_counts(&self) -> bool {
        self.is_own
            || self.allowed.iter().any(|rule| rule.port.is_none())
            || self.network.is_some_and(|rule| rule.factor.is_none())
    }
}

/// Distinct contacts of one class by what became of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactCounts {
    /// The class.
    pub class: Class,
    /// All.
    pub attempted: u64,
    /// Of those: answered.
    pub answered: u64,
    /// Of those: refused and not answered.
    pub refused: u64,
    /// Of those: neither, and old enough.
    pub silent: u64,
    /// Of those: no evidence, as frames were lost while an answer could have come.
    pub lost: u64,
    /// Of those: no evidence, as the source acknowledges an answer that may have taken another way.
    pub unclear: u64,
    /// Of those: no evidence, as a router said that they travelled too far.
    pub exceeded: u64,
    /// Of those: not old enough to be silent.
    pub waiting: u64,
    /// The source acknowledged an answer.
    pub completed: u64,
    /// Attempted by techniques that no connection begins with.
    pub odd: BTreeMap<Technique, u64>,
}

/// What contacts were counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grouping {
    /// Ports, or protocols, of a target by one technique.
    Ports {
        /// The target.
        target: Address,
        /// The technique.
        technique: Technique,
    },
    /// Hosts by one service.
    Hosts {
        /// The class of the service.
        class: Class,
        /// Its port; 0 where it has none.
        port: u16,
    },
    /// Pairs of host and port.
    Block,
    /// Pairs that were in no other alert, within 15 minutes.
    Slow,
    /// The same within 24 hours.
    SlowDay,
}

/// A count beside its threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What was counted.
    pub grouping: Grouping,
    /// Contacts in it.
    pub attempted: u32,
    /// What was compared with the threshold: those that failed; of profile `strict` by SYN: all.
    pub counted: u32,
    /// The threshold then.
    pub threshold: u32,
    /// The threshold as configured, before it was multiplied.
    pub configured: u32,
    /// Thresholds were multiplied because answers were not seen.
    pub is_one_way: bool,
    /// When the highest count was reached.
    pub at: UnixNanos,
    /// Of a block: how wide it was.
    pub breadth: Option<Breadth>,
    /// The alert that tells about it.
    pub alert: Option<u64>,
    /// Why there is none.
    pub held_back: Option<HeldBack>,
}

/// How wide the failed contacts of a source are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breadth {
    /// Hosts of which a contact failed.
    pub hosts: usize,
    /// Ports of which one failed.
    pub ports: usize,
    /// Hosts that answered.
    pub answered_hosts: usize,
    /// More hosts must have failed than answered, by this, if there are few pairs.
    pub sequential_hosts: u32,
}

/// Why a count led to no alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBack {
    /// So many more were needed.
    Missing(u32),
    /// Too many others were answered.
    MostlySucceeds,
    /// Of a block: too few hosts, or too few ports.
    Narrow,
    /// This alert tells about it already.
    ToldBy(u64),
    /// A flood of the target, by this source, tells about it.
    Flood,
    /// As many alerts are open as there is room for.
    NoRoom,
    /// It is looked at with the next contact that fails.
    Waits,
}

/// An alert in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertBrief {
    /// Its id, as in events.
    pub id: u64,
    /// Its kind, as it was last.
    pub kind: Kind,
    /// By what; `None` of several.
    pub technique: Option<Technique>,
    /// Against whom; `None` of many.
    pub target: Option<Address>,
    /// When it was told; `None` if it was not yet.
    pub opened: Option<UnixNanos>,
    /// First packet.
    pub start: UnixNanos,
    /// Last attempt so far.
    pub end: UnixNanos,
    /// Distinct contacts so far.
    pub attempted: u64,
    /// Of those: answered.
    pub answered: u64,
    /// Of those: refused.
    pub refused: u64,
    /// Of those: silent.
    pub silent: u64,
}

/// Findings of an explanation at most.
pub const MOST_FINDINGS: usize = 50;

/// What was seen of one source so far.
pub(super) struct Watch {
    source: Address,
    contacts: BTreeMap<ContactKey, Known>,
    findings: BTreeMap<Grouping, Finding>,
    alerts: BTreeMap<u64, AlertBrief>,
    not_counted: BTreeSet<ContactKey>,
    /// The source did something since the last look.
    is_due: bool,
}

#[derive(Clone, Copy)]
struct Known {
    flags: Flags,
    fate: Fate,
}

/// What became of a contact.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    Lost,
    Unclear,
    Exceeded,
    Silent,
    Refused,
    Answered,
}

impl Watch {
    fn new(source: Address) -> Self {
        Self {
            source,
            contacts: BTreeMap::new(),
            findings: BTreeMap::new(),
            alerts: BTreeMap::new(),
            not_counted: BTreeSet::new(),
            is_due: false,
        }
    }

    /// A contact changed.
    pub(super) fn note(&mut self, entry: &Entry) {
        let key = entry.contact.key;
        if key.source != self.source || !entry.is_attempted() {
            return;
        }
        self.is_due = true;
        let flags = entry.contact.flags;
        let fate = match entry.outcome() {
            Outcome::Answered => Fate::Answered,
            Outcome::Refused => Fate::Refused,
            Outcome::Silent => Fate::Silent,
            Outcome::Undecided if flags.has(Observation::Exceeded) => Fate::Exceeded,
            Outcome::Undecided if entry.due == Due::Lost => Fate::Lost,
            Outcome::Undecided if entry.due == Due::Unclear => Fate::Unclear,
            Outcome::Undecided => Fate::Waiting,
        };
        let known = self.contacts.entry(key).or_insert(Known { flags, fate });
        known.flags = known.flags.union(flags);
        if fate != Fate::Waiting {
            known.fate = fate;
        }
    }

    /// A contact did not count.
    pub(super) fn note_allowed(&mut self, key: &ContactKey, flags: Flags) {
        if key.source == self.source && flags.has_attempt() {
            self.not_counted.insert(*key);
        }
    }

    fn note_finding(&mut self, new: Finding) {
        let held = self.findings.entry(new.grouping).or_insert_with(|| new.clone());
        let alert = new.alert.or(held.alert);
        if new.counted > held.counted {
            *held = new;
        }
        held.alert = alert;
        if alert.is_some() {
            held.held_back = None;
        }
    }

    fn contact_counts(&self) -> Vec<ContactCounts> {
        let mut by_class: BTreeMap<Class, ContactCounts> = BTreeMap::new();
        for (key, known) in &self.contacts {
            by_class.entry(key.class).or_insert_with(|| ContactCounts::new(key.class)).add(known);
        }
        by_class.into_values().collect()
    }
}

impl ContactCounts {
    const fn new(class: Class) -> Self {
        Self {
            class,
            attempted: 0,
            answered: 0,
            refused: 0,
            silent: 0,
            lost: 0,
            unclear: 0,
            exceeded: 0,
            waiting: 0,
            completed: 0,
            odd: BTreeMap::new(),
        }
    }

    fn add(&mut self, known: &Known) {
        self.attempted += 1;
        let count = match known.fate {
            Fate::Waiting => &mut self.waiting,
            Fate::Lost => &mut self.lost,
            Fate::Unclear => &mut self.unclear,
            Fate::Exceeded => &mut self.exceeded,
            Fate::Silent => &mut self.silent,
            Fate::Refused => &mut self.refused,
            Fate::Answered => &mut self.answered,
        };
        *count += 1;
        let is_completed = known.fate == Fate::Answered && known.flags.has_completed();
        self.completed += u64::from(is_completed);
        let is_odd = |technique: &Technique| {
            !matches!(technique, Technique::Syn | Technique::Udp | Technique::Ip)
        };
        for technique in techniques(self.class, known.flags).filter(is_odd) {
            *self.odd.entry(technique).or_default() += 1;
        }
    }
}

impl Finding {
    /// How far it came on the way to its threshold.
    fn closeness(&self) -> f64 {
        f64::from(self.counted) / f64::from(self.threshold.max(1))
    }
}

impl Detector {
    /// Keeps from now on what is to be known of `source`, for [`Detector::explain_watched`].
    pub fn watch(&mut self, source: Address) {
        self.watch = Some(Box::new(Watch::new(source)));
    }

    /// What was seen of the source that is watched; `None` if none is.
    #[must_use]
    pub fn explain_watched(&self) -> Option<Explanation> {
        self.watch.as_deref().map(|watch| self.explanation(watch, Covers::WholeRun))
    }

    /// What is known of `source` now.
    #[must_use]
    pub fn explain(&self, source: Address) -> Explanation {
        let mut watch = Watch::new(source);
        for entry in self.contacts_of(source) {
            watch.note(entry);
        }
        self.look(&mut watch);
        self.explanation(&watch, Covers::Now)
    }

    /// Alerts were decided and told: the time to look at the source that is watched, if one is.
    pub(super) fn look_at_watched(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            self.look(&mut watch);
            self.watch = Some(watch);
        }
    }

    /// A slow scan was found, and what it was found by is about to be forgotten.
    pub(super) fn look_at_slow_if_watched(&mut self, source: Address) {
        if let Some(mut watch) = self.watch.take() {
            if watch.source == source {
                self.look_at_slow(&mut watch);
            }
            self.watch = Some(watch);
        }
    }

    fn contacts_of(&self, source: Address) -> impl Iterator<Item = &Entry> {
        let group = self.contacts.groups.find(&GroupKey::Source { source });
        group.into_iter().flat_map(|group| self.contacts.list(SOURCE, group))
    }

    fn look(&self, watch: &mut Watch) {
        let source = watch.source;
        self.look_at_slow(watch);
        let mut alerts = BTreeSet::new();
        if std::mem::take(&mut watch.is_due) {
            let mut groups = BTreeSet::new();
            for entry in self.contacts_of(source) {
                groups.extend(entry.groups.into_iter().filter(|&group| group != NONE));
                // Of a distributed scan, who failed at its target has a part in it.
                if entry.failed_in & 1 << TARGET != 0 {
                    alerts.insert(self.contacts.groups.get(entry.groups[TARGET]).alert);
                }
            }
            for group in groups {
                let group = self.contacts.groups.get(group);
                self.finding(source, group).into_iter().for_each(|it| watch.note_finding(it));
            }
        }
        for alert in self.alerts.all().filter(|alert| {
            alert.key.source() == Some(source)
                || alert.decoys.contains(&source)
                || alerts.contains(&alert.id())
        }) {
            watch.alerts.insert(alert.id(), alert.brief());
        }
    }

    fn finding(&self, source: Address, group: &Group) -> Option<Finding> {
        let grouping = match group.key {
            GroupKey::Ports { target, technique, .. } => Grouping::Ports { target, technique },
            GroupKey::Hosts { class, port, .. } => Grouping::Hosts { class, port },
            GroupKey::Source { .. } => return Some(self.block_finding(source, group)),
            GroupKey::Target { .. } => return None,
        };
        let by_attempts = self.is_by_syn_alone(&group.key);
        let (configured, threshold) = if by_attempts {
            (STRICT_PORTS, STRICT_PORTS)
        } else {
            let configured = self.configured(&group.key)?;
            (configured, self.threshold(configured, source))
        };
        let counted = if by_attempts { group.attempted } else { group.failed };
        let held_back = if counted < threshold {
            HeldBack::Missing(threshold - counted)
        } else if !self.passes(group) {
            HeldBack::MostlySucceeds
        } else if self.is_of_flood(group) {
            HeldBack::Flood
        } else {
            self.precedence(self.told_by(&group.key))
        };
        let alert = (group.alert != 0).then_some(group.alert);
        Some(Finding {
            grouping,
            attempted: group.attempted,
            counted,
            threshold,
            configured,
            is_one_way: self.view.is_one_way() && !by_attempts,
            at: self.now,
            breadth: None,
            alert,
            held_back: Some(held_back).filter(|_| alert.is_none()),
        })
    }

    /// Why something that passes its threshold has no alert of its own.
    fn precedence(&self, told_by: u64) -> HeldBack {
        match told_by {
            0 if self.alerts.len() >= self.alerts.capacity() => HeldBack::NoRoom,
            0 => HeldBack::Waits,
            id => HeldBack::ToldBy(id),
        }
    }

    fn block_finding(&self, source: Address, group: &Group) -> Finding {
        let mut found = OfSource::default();
        self.contacts_of(source).for_each(|entry| found.take_in(entry));
        let configured = self.config.thresholds.block_contacts;
        let threshold = self.threshold(configured, source);
        let breadth = Breadth {
            hosts: found.hosts.len(),
            ports: found.ports.len(),
            answered_hosts: found.answered.len(),
            sequential_hosts: self.threshold(self.config.thresholds.sequential_hosts, source),
        };
        let counted = found.pairs as u32;
        let held_back = if breadth.hosts <= BLOCK_SIDE || breadth.ports <= BLOCK_SIDE {
            HeldBack::Narrow
        } else if counted < threshold {
            HeldBack::Missing(threshold - counted)
        } else if found.pairs <= found.answered_pairs {
            HeldBack::MostlySucceeds
        } else {
            self.precedence(0)
        };
        let alert = self.alerts.under(AlertKey::Block { source });
        let alert = (alert != 0).then_some(alert);
        Finding {
            grouping: Grouping::Block,
            attempted: group.attempted,
            counted,
            threshold,
            configured,
            is_one_way: self.view.is_one_way(),
            at: self.now,
            breadth: Some(breadth),
            alert,
            held_back: Some(held_back).filter(|_| alert.is_none()),
        }
    }

    fn look_at_slow(&self, watch: &mut Watch) {
        let source = watch.source;
        let past = self.slow.of(source).unwrap_or_default();
        // As of the latest of them: that is when it is decided.
        let Some(latest) = past.iter().map(|past| past.last).max() else { return };
        let thresholds = &self.config.thresholds;
        for (grouping, horizon, configured) in [
            (Grouping::Slow, QUARTER, thresholds.slow_contacts),
            (Grouping::SlowDay, DAY, thresholds.slow_day_contacts),
        ] {
            let (failed, others) = self.slow.tally(source, latest, horizon);
            let threshold = self.slow_threshold(configured, source);
            let open = self.alerts.under(AlertKey::Slow { source });
            let alert = (open != 0 && failed >= threshold).then_some(open);
            let held_back = if failed < threshold {
                HeldBack::Missing(threshold - failed)
            } else if self.slow.counts(source, latest).of(horizon) == 0 {
                HeldBack::MostlySucceeds
            } else {
                self.precedence(0)
            };
            watch.note_finding(Finding {
                grouping,
                attempted: failed + others,
                counted: failed,
                threshold,
                configured,
                is_one_way: self.view.is_one_way(),
                at: latest,
                breadth: None,
                alert,
                held_back: Some(held_back).filter(|_| alert.is_none()),
            });
        }
    }

    fn explanation(&self, watch: &Watch, covers: Covers) -> Explanation {
        let source = watch.source;
        let mut findings: Vec<Finding> = watch.findings.values().cloned().collect();
        // Those with an alert first, then the closest to one; equals stay in the order of their groups.
        findings.sort_by(|one, other| {
            let order = other.alert.is_some().cmp(&one.alert.is_some());
            order.then(other.closeness().total_cmp(&one.closeness()))
        });
        let findings_left_out = findings.len().saturating_sub(MOST_FINDINGS);
        findings.truncate(MOST_FINDINGS);
        Explanation {
            source,
            covers,
            now: self.now,
            window: self.config.window,
            standing: Standing {
                is_own: self.config.allow.holds(source),
                allowed: self.config.allow.rules_of(source).collect(),
                network: self.config.network_of(source).copied(),
            },
            contacts: watch.contact_counts(),
            not_counted: watch.not_counted.len() as u64,
            findings,
            findings_left_out,
            alerts: watch.alerts.values().cloned().collect(),
            evidence_lost: self.counters().evidence_lost.total(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{Alert, AllowList, DetectorConfig, Kind};
    use crate::evidence::Contact;
    use Observation::{Answered, Attempted, Null, Refused};

    const SECOND: u64 = 1_000_000_000;

    fn address(n: u8) -> Address {
        Address::from_v4([192, 0, 2, n])
    }

    fn contact(target: u8, port: u16) -> ContactKey {
        ContactKey { source: address(1), target: address(target), class: Class::Tcp, port }
    }

    /// What is known of the source after the run, each sighting at its second.
    fn watched(
        config: DetectorConfig,
        sightings: &[(u64, ContactKey, Observation)],
    ) -> (Explanation, Vec<Alert>) {
        let mut detector = Detector::new(DetectorConfig { memory_mib: 2, ..config });
        detector.watch(address(1));
        let (mut now, mut alerts) = (1000, Vec::new());
        detector.tick(UnixNanos(now * SECOND), &mut alerts);
        for &(second, key, observation) in sightings {
            while now < 1000 + second {
                now += 1;
                detector.tick(UnixNanos(now * SECOND), &mut alerts);
            }
            let time = UnixNanos(now * SECOND + 1);
            detector.merge(0, &Contact::new(key, observation, time));
        }
        detector.finish(UnixNanos((now + 200) * SECOND), &mut alerts);
        (detector.explain_watched().unwrap(), alerts)
    }

    fn refused(keys: impl Iterator<Item = ContactKey>) -> Vec<(u64, ContactKey, Observation)> {
        keys.flat_map(|key| [(0, key, Attempted), (0, key, Refused)]).collect()
    }

    fn finding(explanation: &Explanation, grouping: Grouping) -> &Finding {
        explanation.findings.iter().find(|it| it.grouping == grouping).unwrap()
    }

    const PORTS: fn(u8, Technique) -> Grouping =
        |target, technique| Grouping::Ports { target: address(target), technique };

    #[test]
    fn a_scan_is_explained_by_its_highest_count_and_its_alert_long_after_it_left_the_window() {
        let sightings = refused((1..=12).map(|port| contact(9, port)));
        let (explanation, alerts) = watched(DetectorConfig::default(), &sightings);
        let vertical = finding(&explanation, PORTS(9, Technique::Syn));
        assert_eq!((vertical.counted, vertical.attempted, vertical.threshold), (12, 12, 10));
        assert_eq!((vertical.alert, vertical.held_back), (Some(1), None));
        let counts = &explanation.contacts[0];
        assert_eq!((counts.attempted, counts.refused, counts.silent), (12, 12, 0));
        let [brief] = explanation.alerts.as_slice() else { panic!("one alert") };
        assert_eq!((brief.id, brief.kind, brief.attempted), (1, Kind::Vertical, 12));
        assert_eq!(brief.opened, Some(alerts[0].time));
    }

    #[test]
    fn what_was_missing_is_said_with_the_factor_of_the_network() {
        let sightings = refused((1..=12).map(|port| contact(9, port)));
        let rule = NetworkRule { network: "192.0.2.0/24".parse().unwrap(), factor: Some(2.0) };
        let config = DetectorConfig { networks: vec![rule], ..DetectorConfig::default() };
        let (explanation, alerts) = watched(config, &sightings);
        assert_eq!(alerts, []);
        let vertical = finding(&explanation, PORTS(9, Technique::Syn));
        assert_eq!((vertical.configured, vertical.threshold), (10, 20));
        assert_eq!(vertical.held_back, Some(HeldBack::Missing(8)));
        let hosts = finding(&explanation, Grouping::Hosts { class: Class::Tcp, port: 3 });
        assert_eq!((hosts.counted, hosts.held_back), (1, Some(HeldBack::Missing(19))));
        assert_eq!(finding(&explanation, Grouping::Block).held_back, Some(HeldBack::Narrow));
        assert_eq!(explanation.standing.network, Some(rule));
    }

    #[test]
    fn an_allowed_source_is_told_the_rule_and_how_much_did_not_count() {
        let sightings = refused((1..=12).map(|port| contact(9, port)));
        let rules = ["192.0.2.0/24 port 7", "192.0.0.0/16"].map(|text| text.parse().unwrap());
        let allow = AllowList::new(rules.to_vec(), Vec::new());
        let config = DetectorConfig { allow, ..DetectorConfig::default() };
        let (explanation, _) = watched(config, &sightings);
        assert_eq!(explanation.standing.allowed, rules);
        assert!(explanation.standing.never_counts());
        assert_eq!((explanation.not_counted, explanation.contacts.len()), (12, 0));
    }

    #[test]
    fn who_mostly_succeeds_is_told_so() {
        let mut sightings = refused((0..11).map(|host| contact(10 + host, 22)));
        for host in 0..12 {
            sightings.push((0, contact(50 + host, 22), Attempted));
            sightings.push((0, contact(50 + host, 22), Answered));
        }
        let (explanation, alerts) = watched(DetectorConfig::default(), &sightings);
        assert_eq!(alerts, []);
        let hosts = finding(&explanation, Grouping::Hosts { class: Class::Tcp, port: 22 });
        assert_eq!((hosts.counted, hosts.attempted), (11, 23));
        assert_eq!(hosts.held_back, Some(HeldBack::MostlySucceeds));
    }

    #[test]
    fn precedence_names_the_alert_that_tells() {
        let block = (0..40).map(|n| contact(20 + n % 8, u16::from(n / 8)));
        let ports = (1..=12).map(|port| contact(9, 100 + port));
        let sightings = refused(block.chain(ports));
        let (explanation, alerts) = watched(DetectorConfig::default(), &sightings);
        assert_eq!(alerts[0].kind, Kind::Block);
        let vertical = finding(&explanation, PORTS(9, Technique::Syn));
        assert_eq!((vertical.counted, vertical.held_back), (12, Some(HeldBack::ToldBy(1))));
        let odd = watched(DetectorConfig::default(), &[(0, contact(9, 1), Null)]).0;
        assert_eq!(odd.contacts[0].odd, BTreeMap::from([(Technique::Null, 1)]));
    }

    #[test]
    fn slow_counts_stand_beside_both_thresholds() {
        let attempts = (0..30).map(|n| (n * 70, contact(9, 1000 + n as u16)));
        let sightings: Vec<_> =
            attempts.flat_map(|(at, key)| [(at, key, Attempted), (at, key, Refused)]).collect();
        let (explanation, alerts) = watched(DetectorConfig::default(), &sightings);
        assert_eq!(alerts, []);
        let (quarter, day) =
            (finding(&explanation, Grouping::Slow), finding(&explanation, Grouping::SlowDay));
        assert_eq!((quarter.counted, quarter.held_back), (13, Some(HeldBack::Missing(12))));
        assert_eq!((day.counted, day.held_back), (30, Some(HeldBack::Missing(20))));
    }

    #[test]
    fn a_slow_scan_that_alerted_is_explained_by_the_count_that_it_was_found_by() {
        let attempts = (0..30).map(|n| (n * 20, contact(9 + (n % 20) as u8, 1000 + n as u16)));
        let sightings: Vec<_> =
            attempts.flat_map(|(at, key)| [(at, key, Attempted), (at, key, Refused)]).collect();
        let (explanation, _) = watched(DetectorConfig::default(), &sightings);
        let quarter = finding(&explanation, Grouping::Slow);
        assert_eq!((quarter.counted, quarter.alert, quarter.held_back), (25, Some(1), None));
        let day = finding(&explanation, Grouping::SlowDay);
        assert_eq!((day.counted, day.held_back), (25, Some(HeldBack::Missing(25))));
        assert_eq!(explanation.alerts[0].kind, Kind::Slow);
    }

    #[test]
    fn an_alert_knows_when_its_threshold_was_crossed_until_it_is_closed() {
        let mut detector = Detector::new(DetectorConfig { memory_mib: 2, ..Default::default() });
        let mut alerts = Vec::new();
        detector.tick(UnixNanos(1000 * SECOND), &mut alerts);
        for port in 1..=12 {
            let time = UnixNanos(1000 * SECOND + u64::from(port));
            detector.merge(0, &Contact::new(contact(9, port), Attempted, time));
            let of_other = ContactKey { source: address(2), ..contact(9, port) };
            detector.merge(0, &Contact::new(of_other, Attempted, time));
            detector.merge(0, &Contact::new(of_other, Refused, time));
        }
        detector.tick(UnixNanos(1001 * SECOND), &mut alerts);
        assert_eq!(alerts[0].source, Some(address(2)));
        assert_eq!(detector.crossed(1), Some(UnixNanos(1000 * SECOND + 10)), "the tenth, refused");
        detector.tick(UnixNanos(1004 * SECOND), &mut alerts);
        assert_eq!(detector.crossed(2), None, "a decoy of the first has no alert of its own");
        detector.tick(UnixNanos(1200 * SECOND), &mut alerts);
        assert_eq!(detector.crossed(1), None, "closed");
        for port in 1..=12 {
            let time = UnixNanos(1300 * SECOND + u64::from(port));
            detector.merge(0, &Contact::new(contact(8, port), Attempted, time));
        }
        detector.tick(UnixNanos(1304 * SECOND), &mut alerts);
        assert_eq!(detector.crossed(2), Some(UnixNanos(1303 * SECOND + 10)), "the tenth, silent");
    }

    #[test]
    fn a_running_detector_says_what_is_in_the_window_now() {
        let mut detector = Detector::new(DetectorConfig { memory_mib: 2, ..Default::default() });
        let mut alerts = Vec::new();
        for (_, key, observation) in refused((1..=10).map(|port| contact(9, port))) {
            detector.merge(0, &Contact::new(key, observation, UnixNanos(1000 * SECOND)));
        }
        let waiting = Contact::new(contact(9, 80), Attempted, UnixNanos(1000 * SECOND));
        detector.merge(0, &waiting);
        detector.tick(UnixNanos(1001 * SECOND), &mut alerts);
        let explanation = detector.explain(address(1));
        assert_eq!(explanation.covers, Covers::Now);
        let counts = &explanation.contacts[0];
        assert_eq!((counts.attempted, counts.refused, counts.waiting), (11, 10, 1));
        assert_eq!(finding(&explanation, PORTS(9, Technique::Syn)).alert, Some(1));
        assert_eq!(explanation.alerts.len(), 1);
        let other = detector.explain(address(2));
        assert_eq!((other.contacts.len(), other.findings.len(), other.alerts.len()), (0, 0, 0));
        detector.tick(UnixNanos(1300 * SECOND), &mut alerts);
        assert_eq!(detector.explain(address(1)).contacts, []);
    }
}
