//! The order of a tick: contacts that changed, contacts that fell due, thresholds, alerts.

use std::time::Duration;

use wire::units::UnixNanos;

use super::alerts::Alerts;
use super::contacts::{Contacts, GroupKey, NONE};
use super::losses::Losses;
use super::open::AlertKey;
use super::{Alert, AlertSummary, DetectorConfig, Profile};
use crate::evidence::{Class, Contact, Observation, PANE_NANOS, pane};

/// Merges the evidence of all workers and finds scans in it.
pub struct Detector {
    config: DetectorConfig,
    window_panes: u64,
    now: UnixNanos,
    contacts: Contacts,
    /// The memory of contacts was taken, not only reserved.
    has_memory: bool,
    alerts: Alerts,
    losses: Losses,
    /// Contacts that changed since the last tick, each once.
    touched: Vec<u32>,
    /// Groups that grew in this tick, each once.
    grown: Vec<u32>,
    merged: u64,
    allowed: u64,
    evidence_lost: u64,
}

/// What the detector's memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Contacts in the window at one time.
    pub contacts: usize,
    /// Alerts open at one time.
    pub alerts: usize,
    /// All of it. Unit: bytes.
    pub bytes: usize,
}

/// What a [`Detector`] counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetectorCounters {
    /// Contacts taken in.
    pub merged: u64,
    /// Of those: their source is allowed.
    pub allowed: u64,
    /// Contacts that gave way to newer ones before their time.
    pub evidence_lost: u64,
    /// Alerts opened.
    pub opened: u64,
    /// Alerts closed.
    pub closed: u64,
    /// Scans that opened no alert, because too many are open.
    pub not_opened: u64,
    /// Contacts in the window now.
    pub contacts: u64,
    /// Alerts open now.
    pub open: u64,
}

/// How long an answer waits for the attempt that it answers, which another worker may have seen.
const ORPHAN_PANES: u64 = 10;

/// More than three ports of one target make a scan of profile `strict`.
const STRICT_PORTS: u32 = 4;

impl Detector {
    /// Time between two ticks.
    pub const TICK: Duration = Duration::from_millis(250);

    /// Makes a detector. Its tables are reserved here and never grow.
    #[must_use]
    pub fn new(config: DetectorConfig) -> Self {
        let bytes = (config.memory_mib.max(1) as usize) << 20;
        let capacity = Contacts::fitting(bytes / 4 * 3);
        Self {
            window_panes: config.window.as_secs().max(1),
            now: UnixNanos(0),
            contacts: Contacts::new(capacity, config.key),
            has_memory: false,
            alerts: Alerts::new(bytes / 4, config.close_after),
            losses: Losses::new(config.silent_after),
            // Bounded by the contacts: a contact is in it once.
            touched: Vec::new(),
            grown: Vec::new(),
            merged: 0,
            allowed: 0,
            evidence_lost: 0,
            config,
        }
    }

    /// Has the system give the memory of contacts now, and not as they come. A file needs little of it.
    pub fn take_memory(&mut self) {
        self.contacts.take_memory();
        self.has_memory = true;
    }

    /// Starts over after the clock was set back: closes what is open, at `now`, and forgets all
    /// contacts. Ids and counts go on.
    pub fn restart(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.finish(now, out);
        let mut fresh = Self::new(self.config.clone());
        if self.has_memory {
            fresh.take_memory();
        }
        let before = std::mem::replace(self, fresh);
        self.alerts.go_on_from(&before.alerts);
        (self.merged, self.allowed) = (before.merged, before.allowed);
        self.evidence_lost = before.evidence_lost;
    }

    /// What the detector's memory holds.
    #[must_use]
    pub fn budget(&self) -> Budget {
        let bytes = (self.config.memory_mib.max(1) as usize) << 20;
        Budget { contacts: self.contacts.capacity(), alerts: self.alerts.capacity(), bytes }
    }

    /// What was counted since the detector was made.
    #[must_use]
    pub fn counters(&self) -> DetectorCounters {
        DetectorCounters {
            merged: self.merged,
            allowed: self.allowed,
            evidence_lost: self.evidence_lost,
            opened: self.alerts.opened,
            closed: self.alerts.closed,
            not_opened: self.alerts.not_opened,
            contacts: self.contacts.len() as u64,
            open: self.alerts.len() as u64,
        }
    }

    /// Takes in what `worker` learnt about a contact. Within a tick the order does not matter.
    pub fn merge(&mut self, worker: usize, contact: &Contact) {
        self.merged += 1;
        if self.config.allow.contains(contact.key.source) {
            self.allowed += 1;
            return;
        }
        if contact.key.class != Class::Tcp || contact.flags.has_odd() {
            return;
        }
        let number = match self.contacts.find(&contact.key) {
            Some(number) => {
                self.contacts.entries[number as usize].contact.merge(contact);
                number
            }
            None => {
                let (number, another_gave_way) = self.contacts.insert(contact);
                self.evidence_lost += u64::from(another_gave_way);
                number
            }
        };
        let entry = &mut self.contacts.entries[number as usize];
        entry.workers |= 1 << worker.min(63);
        if !entry.is_touched {
            entry.is_touched = true;
            self.touched.push(number);
        }
    }

    /// Frames, or answers, were lost between `from` and `to`: silence in that time proves nothing.
    /// Say it before the tick that follows `to`.
    pub fn note_loss(&mut self, from: UnixNanos, to: UnixNanos) {
        self.losses.note(from, to);
    }

    /// Lets time pass to `now` (which never goes backwards) and tells what is new, in an order that
    /// depends on the evidence alone. Call it every [`Detector::TICK`] of packet time, after merging
    /// what was seen before `now`: an answer that is merged later than that can come too late to
    /// prevent an alert.
    pub fn tick(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        const TICK: u64 = Detector::TICK.as_nanos() as u64;
        let now = now.max(self.now);
        // After a gap, time passes in the same steps as ever, so that what fell due in it is found.
        while self.now != UnixNanos(0) && !self.is_idle() {
            let next = UnixNanos((self.now.0 / TICK + 1) * TICK);
            if next >= now {
                break;
            }
            self.step(next, out);
        }
        self.step(now, out);
    }

    /// Lets time pass to `now` and closes what is open.
    pub fn finish(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.tick(now, out);
        self.alerts.close_all(self.now, out);
    }

    /// Nothing is open and nothing can fall due: time may pass without ticks.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.contacts.len() == 0 && self.alerts.len() == 0
    }

    /// What could not be told one by one; at most once a second of ticks.
    pub fn take_summary(&mut self) -> Option<AlertSummary> {
        self.alerts.take_summary(self.now)
    }

    fn step(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.now = now;
        self.settle_touched();
        let due = self.contacts.wheel.drain(now);
        for &number in &due {
            self.fall_due(number);
        }
        self.contacts.wheel.recycle(due);
        self.losses.forget(now);
        self.open_alerts();
        self.alerts.tell(now, out);
    }

    /// Contacts that changed: into their groups, their new outcome to their alerts.
    fn settle_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&number| {
            let entry = &mut self.contacts.entries[number as usize];
            if !entry.is_live || !entry.is_touched {
                return false;
            }
            if entry.contact.first > self.now {
                return true;
            }
            entry.is_touched = false;
            self.join_groups(number);
            self.settle(number);
            self.contacts.wheel.cancel(number);
            self.set_timer(number);
            false
        });
        self.touched = touched;
    }

    /// An attempt counts in its groups, once.
    fn join_groups(&mut self, number: u32) {
        let entry = self.contacts.entries[number as usize];
        if !entry.is_attempted() || entry.groups[0] != NONE {
            return;
        }
        let key = entry.contact.key;
        let keys = [
            GroupKey::Vertical { source: key.source, target: key.target },
            GroupKey::Horizontal { source: key.source, port: key.port },
        ];
        for (place, key) in keys.into_iter().enumerate() {
            let (group, is_new) = self.contacts.groups.join(key);
            if is_new {
                self.contacts.groups.of(group).alert = self.alerts.covering(key);
            }
            self.contacts.entries[number as usize].groups[place] = group;
            if self.config.profile == Profile::Strict {
                self.note_growth(group);
            }
        }
    }

    /// Brings the groups and alerts of a contact up to its outcome.
    fn settle(&mut self, number: u32) {
        let entry = &mut self.contacts.entries[number as usize];
        if entry.groups[0] == NONE {
            return;
        }
        let was_failed = entry.is_failed;
        entry.is_failed = entry.has_failed();
        let entry = *entry;
        for group in entry.groups {
            let state = self.contacts.groups.of(group);
            match (was_failed, entry.is_failed) {
                (true, false) => state.failed -= 1,
                (false, true) => {
                    state.failed += 1;
                    self.note_growth(group);
                }
                _ => {}
            }
            let state = self.contacts.groups.of(group);
            if state.alert != 0 {
                state.alert = self.alerts.record(state.alert, &entry);
            }
        }
    }

    fn note_growth(&mut self, group: u32) {
        let state = self.contacts.groups.of(group);
        if !state.has_grown {
            state.has_grown = true;
            self.grown.push(group);
        }
    }

    /// A timer fell due: the contact is silent now, or leaves the window, or waits on.
    fn fall_due(&mut self, number: u32) {
        let entry = self.contacts.entries[number as usize];
        if self.leaves_at(number) <= self.now {
            self.contacts.remove(number);
            return;
        }
        let first = entry.contact.first;
        let due = first.plus(self.config.silent_after);
        if entry.is_undecided() && due <= self.now {
            let is_undecidable = self.losses.touch(first, due);
            let entry = &mut self.contacts.entries[number as usize];
            (entry.is_silent, entry.is_undecidable) = (!is_undecidable, is_undecidable);
            self.settle(number);
        }
        self.set_timer(number);
    }

    fn set_timer(&mut self, number: u32) {
        let entry = &self.contacts.entries[number as usize];
        let silent = entry.contact.first.plus(self.config.silent_after);
        let leaves = self.leaves_at(number);
        let due = if entry.is_undecided() { silent.min(leaves) } else { leaves };
        self.contacts.wheel.set(number, due);
    }

    /// When a contact leaves the window: on a pane boundary, never later than the window is long.
    fn leaves_at(&self, number: u32) -> UnixNanos {
        let contact = &self.contacts.entries[number as usize].contact;
        let is_attempted = contact.flags.has(Observation::Attempted);
        let panes = if is_attempted { self.window_panes } else { ORPHAN_PANES };
        UnixNanos((pane(contact.last) + panes).saturating_mul(PANE_NANOS))
    }

    /// Groups that grew past their threshold get their alert, with every contact of the window.
    fn open_alerts(&mut self) {
        let mut fresh: Vec<(GroupKey, u32)> = Vec::new();
        for group in std::mem::take(&mut self.grown) {
            let state = self.contacts.groups.of(group);
            if !std::mem::take(&mut state.has_grown) {
                continue;
            }
            let (key, state) = (state.key, *state);
            if !self.alerts.is_open(state.alert) && self.passes(&state) {
                fresh.push((key, group));
            }
        }
        // In the order of the keys, whatever the order of the evidence was.
        fresh.sort_unstable();
        fresh.retain(|&(key, group)| {
            let by_syn_alone =
                self.config.profile == Profile::Strict && matches!(key, GroupKey::Vertical { .. });
            let alert = self.alerts.open_or_extend(AlertKey::from(key), key, by_syn_alone);
            let state = self.contacts.groups.of(group);
            (state.alert, state.is_fresh) = (alert, alert != 0);
            alert != 0
        });
        if !fresh.is_empty() {
            self.tell_all_contacts();
        }
        for (_, group) in fresh {
            self.contacts.groups.of(group).is_fresh = false;
        }
    }

    fn passes(&self, group: &super::contacts::Group) -> bool {
        match (group.key, self.config.profile) {
            (GroupKey::Vertical { .. }, Profile::Strict) => group.attempted >= STRICT_PORTS,
            (GroupKey::Vertical { .. }, Profile::Default) => {
                group.failed >= self.config.vertical_ports
            }
            (GroupKey::Horizontal { .. }, _) => group.failed >= self.config.horizontal_hosts,
        }
    }

    /// One walk over the window for all alerts that opened in this tick.
    fn tell_all_contacts(&mut self) {
        for entry in &self.contacts.entries {
            if !entry.is_live {
                continue;
            }
            for group in entry.groups.into_iter().filter(|&group| group != NONE) {
                let state = self.contacts.groups.of(group);
                if state.is_fresh {
                    self.alerts.record(state.alert, entry);
                }
            }
        }
    }
}
