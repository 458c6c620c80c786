//! All open alerts, and the limit on what is told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use packet::Address;
use wire::units::UnixNanos;

use super::Technique;
use super::alert::{Alert, AlertSummary, Phase};
use super::contacts::Entry;
use super::groups::GroupKey;
use super::open::{AlertKey, Circumstances, OpenAlert, Span, Sweep};
use super::outcomes::OutcomeSet;
use super::slow::Past;

/// All open alerts.
pub(super) struct Alerts {
    /// By id, so that what is told is in the order of opening.
    open: BTreeMap<u64, OpenAlert>,
    by_key: BTreeMap<AlertKey, u64>,
    /// Scans of ports that ended lately, by their source: up to as many as can be open.
    over: BTreeMap<Address, Span>,
    capacity: usize,
    /// Room for contacts and ports that the sets of all alerts share.
    spare: usize,
    close_after: Duration,
    last_id: u64,
    /// Alerts that end at once, as another tells about what they told.
    ending: Vec<u64>,
    /// The second of packet time that `told` is about.
    second: u64,
    told: u32,
    summary: AlertSummary,
    summarised: u64,
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) not_opened: u64,
}

/// Steps of alerts told in one second. Openings and closings beyond it wait, updates are left out;
/// the summary counts both.
const TOLD_PER_SECOND: u32 = 100;

impl Alerts {
    pub(super) fn new(bytes: usize, close_after: Duration) -> Self {
        // Half for the alerts themselves, half for the sets of those that have many contacts.
        Self {
            open: BTreeMap::new(),
            by_key: BTreeMap::new(),
            over: BTreeMap::new(),
            capacity: bytes / 2 / OpenAlert::BYTES,
            spare: bytes / 2 / OutcomeSet::BYTES,
            close_after,
            last_id: 0,
            ending: Vec::new(),
            second: 0,
            told: 0,
            summary: AlertSummary::default(),
            summarised: 0,
            opened: 0,
            closed: 0,
            not_opened: 0,
        }
    }

    /// Takes over ids and counts, so that no id is used twice in a run.
    pub(super) const fn go_on_from(&mut self, before: &Self) {
        self.last_id = before.last_id;
        self.opened = before.opened;
        self.closed = before.closed;
        self.not_opened = before.not_opened;
    }

    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Every open alert, in the order of opening.
    pub(super) fn all(&self) -> impl Iterator<Item = &OpenAlert> {
        self.open.values()
    }

    /// When the alert reached its threshold, if that is known.
    pub(super) fn crossed(&self, id: u64) -> Option<UnixNanos> {
        self.open.get(&id).and_then(|alert| alert.crossed)
    }

    /// An alert that nobody was told about reached its threshold then.
    pub(super) fn note_crossing(&mut self, id: u64, time: Option<UnixNanos>) {
        if let Some(alert) = self.open.get_mut(&id).filter(|alert| alert.is_untold()) {
            alert.crossed = alert.crossed.or(time);
        }
    }

    pub(super) fn is_open(&self, id: u64) -> bool {
        self.open.contains_key(&id)
    }

    /// Id of the open alert under `key`; 0 if there is none.
    pub(super) fn under(&self, key: AlertKey) -> u64 {
        self.by_key.get(&key).copied().unwrap_or(0)
    }

    /// Id of the open alert that tells about `group`; 0 if none does.
    pub(super) fn covering(&self, group: GroupKey) -> u64 {
        if self.open.is_empty() {
            return 0;
        }
        let id = self.under(AlertKey::from(group));
        self.open.get(&id).filter(|alert| alert.covers(group)).map_or(0, |_| id)
    }

    /// Id of the open alert about a scan of protocols; 0 if there is none.
    pub(super) fn of_protocols(&self, source: Address, target: Address) -> u64 {
        if self.open.is_empty() {
            return 0;
        }
        self.under(AlertKey::Ports { source, target, technique: Technique::Ip })
    }

    /// From when to when alerts told that `source` scans ports fast: those that are open, and those that closed lately.
    pub(super) fn scanned(&self, source: Address) -> Option<Span> {
        if self.open.is_empty() && self.over.is_empty() {
            return None;
        }
        let others = [AlertKey::Block { source }, AlertKey::Sweep { source, by: Sweep::Ports }];
        let of_ports = self.by_key.range(AlertKey::all_ports_of(source)).map(|(_, id)| id);
        let open = of_ports.chain(others.iter().filter_map(|key| self.by_key.get(key)));
        let open = open.filter_map(|id| self.open.get(id)).map(OpenAlert::span);
        open.chain(self.over.get(&source).copied()).reduce(Span::with)
    }

    /// Forgets scans that ended so long before `now`.
    pub(super) fn forget_scanned(&mut self, now: UnixNanos, after: Duration) {
        self.over.retain(|_, span| span.end.plus(after) > now);
    }

    fn note_over(&mut self, source: Address, span: Span) {
        if self.over.len() < self.capacity || self.over.contains_key(&source) {
            self.over.entry(source).and_modify(|over| *over = over.with(span)).or_insert(span);
        }
    }

    /// Opens an alert under `key`, for `group` if it is about one, or extends the one that is open. Returns its id;
    /// 0 if there is no room.
    pub(super) fn open_or_extend(
        &mut self,
        key: AlertKey,
        group: Option<GroupKey>,
        circumstances: Circumstances,
    ) -> u64 {
        let Self { open, spare, .. } = self;
        if let Some(id) = self.by_key.get(&key)
            && let Some(alert) = open.get_mut(id)
            && group.is_none_or(|group| alert.cover(group, spare))
        {
            return *id;
        }
        if self.by_key.contains_key(&key) || self.open.len() >= self.capacity {
            self.not_opened += 1;
            self.summary.not_opened += 1;
            return 0;
        }
        let id = self.next_id();
        let mut alert = OpenAlert::new(id, key, circumstances);
        // The first group always has room.
        group.map(|group| alert.cover(group, &mut self.spare));
        self.by_key.insert(key, id);
        self.open.insert(id, alert);
        id
    }

    /// The id of an alert that opens now.
    pub(super) const fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.opened += 1;
        self.last_id
    }

    /// A source scans many ports of many hosts: of its open alerts about ports, the oldest becomes
    /// one about that, and the others end. Returns its id; 0 if there was none.
    pub(super) fn become_block(&mut self, source: Address) -> u64 {
        let sweep = self.by_key.get(&AlertKey::Sweep { source, by: Sweep::Ports });
        let of_ports = self.by_key.range(AlertKey::all_ports_of(source));
        let parts = of_ports.filter(|(key, _)| key.is_by_ordinary_ports()).map(|(_, id)| id);
        let parts: BTreeSet<u64> = parts
            .chain(sweep)
            .filter(|&id| self.open.get(id).is_some_and(|alert| alert.decoys.is_empty()))
            .copied()
            .collect();
        let mut parts = parts.into_iter();
        let Some(oldest) = parts.next() else { return 0 };
        parts.for_each(|id| self.ending.push(id));
        if let Some(alert) = self.open.get_mut(&oldest) {
            self.by_key.remove(&alert.key);
            alert.becomes_block(source);
            self.by_key.insert(alert.key, oldest);
        }
        oldest
    }

    /// Open alerts about ports of `target` by SYN, with the sources that they are about.
    pub(super) fn verticals_of(&self, target: Address) -> impl Iterator<Item = (u64, Address)> {
        self.by_key.iter().filter_map(move |(key, &id)| match key {
            AlertKey::Ports { source, target: of, technique: Technique::Syn } if *of == target => {
                Some((id, *source))
            }
            _ => None,
        })
    }

    /// Several sources scan `target`, each of which has an alert, or would have one as `source`: those alerts. The
    /// oldest is told as one about all of them from now on, unless there is one, and the others end. Returns its id; 0 if
    /// there is none, or no room.
    pub(super) fn become_distributed(
        &mut self,
        (source, target): (Address, Address),
        parts: &BTreeSet<u64>,
    ) -> u64 {
        let key = AlertKey::Distributed { target };
        let of_parts = parts.iter().filter_map(|id| self.open.get(id)?.key.source());
        let scanners: Vec<Address> = of_parts.chain([source]).collect();
        let mut parts = parts.iter().copied();
        let story = match self.under(key) {
            0 => parts.next().unwrap_or(0),
            open => open,
        };
        let Some(alert) = self.open.get_mut(&story) else { return 0 };
        if !alert.is_of_scans() {
            let before = alert.key;
            alert.becomes_distributed(target);
            self.by_key.remove(&before);
            self.by_key.insert(key, story);
        }
        if !scanners.into_iter().all(|one| alert.has_scanner(one) || alert.takes_scanner(one)) {
            return 0;
        }
        for part in parts {
            self.end(part);
        }
        story
    }

    /// Is there an open alert about several scans of `target`?
    pub(super) fn has_scans_of(&self, target: Address) -> bool {
        let id = self.under(AlertKey::Distributed { target });
        self.open.get(&id).is_some_and(OpenAlert::is_of_scans)
    }

    /// Id of the open alert about several scans of `target`, that of `source` among them; 0 if there is none.
    pub(super) fn of_scans(&self, source: Address, target: Address) -> u64 {
        let id = self.under(AlertKey::Distributed { target });
        self.open.get(&id).filter(|alert| alert.has_scanner(source)).map_or(0, |_| id)
    }

    /// Another alert tells what this one told: it ends, and is not told if nobody knows of it.
    fn end(&mut self, id: u64) {
        if self.open.get(&id).is_some_and(OpenAlert::is_untold) {
            self.forget(id);
            self.opened -= 1;
            self.closed -= 1;
        } else {
            self.ending.push(id);
        }
    }

    /// Scans of `target` by SYN by one source each, found since `since`.
    pub(super) fn lone_scans_of(&self, target: Address, since: UnixNanos) -> BTreeSet<u64> {
        let ids = self.verticals_of(target).map(|(id, _)| id);
        ids.filter(|id| self.open.get(id).is_some_and(|alert| alert.is_lone_scan(since))).collect()
    }

    /// The alert is about `source` as well, which does the same under `key`. Returns its id; 0 if there is no room.
    pub(super) fn become_decoy(&mut self, id: u64, key: AlertKey, source: Address) -> u64 {
        if !self.open.get_mut(&id).is_some_and(|alert| alert.becomes_decoy(source)) {
            return 0;
        }
        self.by_key.insert(key, id);
        id
    }

    /// Tells an alert about one of its contacts. Returns its id; 0 if it is no longer open.
    pub(super) fn record(&mut self, id: u64, entry: &Entry, group: &GroupKey) -> u64 {
        self.open.get_mut(&id).map_or(0, |alert| {
            alert.record(entry, group, &mut self.spare);
            id
        })
    }

    /// Tells an alert about a contact that left the window.
    pub(super) fn record_past(&mut self, id: u64, past: &Past) {
        if let Some(alert) = self.open.get_mut(&id) {
            alert.record_past(past, &mut self.spare);
        }
    }

    /// Tells an alert about a scan of protocols of one more.
    pub(super) fn record_protocol(&mut self, id: u64, entry: &Entry) {
        if let Some(alert) = self.open.get_mut(&id) {
            alert.record_protocol(entry, &mut self.spare);
        }
    }

    /// Tells every step that is due, as far as the limit allows.
    pub(super) fn tell(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        let second = now.seconds();
        if second != self.second {
            (self.second, self.told) = (second, 0);
        }
        let mut over = Vec::new();
        for (&id, alert) in &mut self.open {
            let is_over = self.ending.contains(&id) || alert.is_over(now, self.close_after);
            for phase in [Phase::Open, Phase::Update, Phase::Close] {
                let is_due = match phase {
                    Phase::Open => alert.is_untold(),
                    Phase::Update => !is_over && alert.has_climbed(),
                    Phase::Close => is_over && !alert.is_untold(),
                };
                if !is_due {
                    continue;
                }
                if self.told < TOLD_PER_SECOND {
                    self.told += 1;
                    out.push(alert.tell(phase, now));
                    if phase == Phase::Close {
                        over.push(id);
                    }
                } else if phase == Phase::Update {
                    alert.skip_rung();
                    self.summary.skipped_updates += 1;
                } else {
                    self.summary.delayed += u64::from(alert.starts_to_wait());
                }
            }
        }
        self.ending.retain(|id| !over.contains(id));
        over.into_iter().for_each(|id| self.forget(id));
    }

    /// Closes every alert, without limit.
    pub(super) fn close_all(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        while let Some((&id, alert)) = self.open.iter_mut().next() {
            if alert.is_untold() {
                out.push(alert.tell(Phase::Open, now));
            }
            out.push(alert.tell(Phase::Close, now));
            self.forget(id);
        }
    }

    /// What could not be told one by one, once a second.
    pub(super) fn take_summary(&mut self, now: UnixNanos) -> Option<AlertSummary> {
        let second = now.seconds();
        if self.summary == AlertSummary::default() || second == self.summarised {
            return None;
        }
        self.summarised = second;
        Some(std::mem::take(&mut self.summary))
    }

    fn forget(&mut self, id: u64) {
        if let Some(alert) = self.open.remove(&id) {
            self.by_key.remove(&alert.key);
            if let Some(source) = alert.key.source()
                && alert.key.is_fast_scan()
            {
                self.note_over(source, alert.span());
            }
            for &source in &alert.decoys {
                if let Some(target) = alert.key.target() {
                    self.by_key.remove(&AlertKey::vertical(source, target));
                    self.note_over(source, alert.span());
                }
            }
            self.spare += alert.room_taken();
            self.closed += 1;
        }
    }
}
