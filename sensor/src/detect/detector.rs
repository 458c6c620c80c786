//! The order of a tick: contacts that changed, contacts that fell due, thresholds, alerts.

use std::time::Duration;

use packet::Address;
use wire::units::UnixNanos;

use super::alerts::Alerts;
use super::contacts::{Contacts, Entry, SLOTS, SOURCE};
use super::explain::Watch;
use super::floods::{FloodCounters, Floods, SynFlood};
use super::groups::{GroupKey, NONE};
use super::held::GivenWay;
use super::losses::Losses;
use super::slow::{Past, QUARTER, SlowTable};
use super::view::{Due, View};
use super::{Alert, AlertSummary, DetectorConfig, Profile, Technique};
use crate::evidence::{Class, Contact, PANE_NANOS, pane};
use crate::flood::Report;

/// Merges the evidence of all workers and finds scans in it.
pub struct Detector {
    pub(super) config: DetectorConfig,
    window_panes: u64,
    pub(super) now: UnixNanos,
    pub(super) contacts: Contacts,
    /// The memory of contacts was taken, not only reserved.
    has_memory: bool,
    pub(super) alerts: Alerts,
    pub(super) slow: SlowTable,
    /// Contacts that left the window since then, for that table.
    past: Vec<Past>,
    pub(super) view: View,
    losses: Losses,
    pub(super) floods: Floods,
    /// A source that somebody wants explained.
    pub(super) watch: Option<Box<Watch>>,
    /// Contacts that changed since the last tick, each once.
    touched: Vec<u32>,
    /// Groups that grew in this tick, each once.
    pub(super) grown: Vec<u32>,
    merged: u64,
    allowed: u64,
    evidence_lost: GivenWay,
    pub(super) slow_lost: GivenWay,
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
    /// Contacts that gave way to newer ones before their time, or found no place in a group.
    pub evidence_lost: GivenWay,
    /// Sources with failed contacts that gave way in the table of slow scans.
    pub slow_lost: GivenWay,
    /// Alerts opened.
    pub opened: u64,
    /// Alerts closed.
    pub closed: u64,
    /// Scans that opened no alert, because too many are open.
    pub not_opened: u64,
    /// Contacts in the window now.
    pub contacts: u64,
    /// Contacts that there is room for.
    pub contacts_room: u64,
    /// Groups of contacts now.
    pub groups: u64,
    /// Groups that there is room for.
    pub groups_room: u64,
    /// Sources in the table of slow scans.
    pub slow_sources: u64,
    /// Alerts open now.
    pub open: u64,
    /// Answers are not seen here: 1, or 0.
    pub one_way: u64,
}

/// How long an answer waits for the attempt that it answers, which another worker may have seen.
const ORPHAN_PANES: u64 = 10;

impl Detector {
    /// Time between two ticks.
    pub const TICK: Duration = Duration::from_millis(250);

    /// Memory of the tables of floods, which comes on top of the [budget](Detector::budget). Unit: bytes.
    pub const FLOOD_MEMORY: usize = Floods::MEMORY;

    /// Makes a detector. Its tables are reserved here and never grow.
    #[must_use]
    pub fn new(config: DetectorConfig) -> Self {
        let bytes = (config.memory_mib.max(1) as usize) << 20;
        let capacity = Contacts::fitting(bytes / 8 * 5);
        Self {
            window_panes: config.window.as_secs().max(1),
            now: UnixNanos(0),
            contacts: Contacts::new(capacity, config.key),
            has_memory: false,
            alerts: Alerts::new(bytes / 4, config.close_after),
            slow: SlowTable::new(bytes / 8, config.key),
            past: Vec::new(),
            view: View::default(),
            losses: Losses::new(config.silent_after),
            floods: Floods::new(&config),
            watch: None,
            // Bounded by the contacts: a contact is in it once.
            touched: Vec::new(),
            grown: Vec::new(),
            merged: 0,
            allowed: 0,
            evidence_lost: GivenWay::default(),
            slow_lost: GivenWay::default(),
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
        self.slow_lost = before.slow_lost;
        self.floods.go_on_from(&before.floods);
        (self.merged, self.allowed) = (before.merged, before.allowed);
        self.evidence_lost = before.evidence_lost;
        self.watch = before.watch;
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
            slow_lost: self.slow_lost,
            opened: self.alerts.opened,
            closed: self.alerts.closed,
            not_opened: self.alerts.not_opened,
            contacts: self.contacts.len() as u64,
            contacts_room: self.contacts.capacity() as u64,
            groups: self.contacts.groups.len() as u64,
            groups_room: self.contacts.groups.capacity() as u64,
            slow_sources: self.slow.len() as u64,
            open: self.alerts.len() as u64,
            one_way: u64::from(self.view.is_one_way()),
        }
    }

    /// When the contact counted with which the alert `id` reached its threshold: its attempt, or the moment in
    /// which its silence was long enough. `None` of alerts that are closed, and of kinds for which more than
    /// one count decides.
    #[must_use]
    pub fn crossed(&self, id: u64) -> Option<UnixNanos> {
        self.alerts.crossed(id)
    }

    /// Takes in what `worker` learnt about a contact. Within a tick the order does not matter.
    pub fn merge(&mut self, worker: usize, contact: &Contact) {
        self.merged += 1;
        let source = contact.key.source;
        if self.config.allow.contains(source, contact.key.port)
            || self.config.factor(source).is_none()
        {
            self.allowed += 1;
            if let Some(watch) = &mut self.watch {
                watch.note_allowed(&contact.key, contact.flags);
            }
            return;
        }
        let number = match self.contacts.find(&contact.key) {
            Some(number) => {
                self.contacts.entries[number as usize].merge(contact);
                number
            }
            None => self.insert(contact),
        };
        let entry = &mut self.contacts.entries[number as usize];
        entry.workers |= 1 << worker.min(63);
        if !entry.is_touched {
            entry.is_touched = true;
            self.touched.push(number);
        }
    }

    fn insert(&mut self, contact: &Contact) -> u32 {
        if !self.contacts.is_full() {
            return self.contacts.insert(contact);
        }
        let victim = self.contacts.least_evidence();
        // The new entry waits in the place of the old one.
        let is_touched = self.contacts.entries[victim as usize].is_touched;
        self.give_way(victim);
        let number = self.contacts.insert(contact);
        self.contacts.entries[number as usize].is_touched = is_touched;
        number
    }

    /// Takes in what `worker` saw arrive at a target. Within a tick the order does not matter.
    pub fn merge_target(&mut self, worker: usize, report: &Report) {
        match report {
            // Where answers may not be seen, clients are believed, lest a busy service be taken for a flooded one.
            Report::Target(tally)
                if tally.claimed > 0
                    && (self.config.splits_flows || self.view.misses_answers()) =>
            {
                let believed = Report::Target(tally.believing_clients());
                self.floods.merge(worker, &believed);
            }
            _ => self.floods.merge(worker, report),
        }
    }

    /// The SYN flood on `target` that is going on, if there is one.
    #[must_use]
    pub fn syn_flood_on(&self, target: Address) -> Option<SynFlood> {
        self.floods.is_flooded(target)
    }

    /// What was counted of floods.
    #[must_use]
    pub fn flood_counters(&self) -> FloodCounters {
        self.floods.counters()
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

    /// Lets time pass to `now` and closes what is open. What the window still holds counts for slow scans.
    pub fn finish(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        self.tick(now, out);
        let live = (0..self.contacts.entries.len() as u32)
            .filter(|&number| self.contacts.entries[number as usize].is_live);
        live.collect::<Vec<_>>().into_iter().for_each(|number| self.note_past(number));
        self.note_all_past();
        self.alerts.tell(self.now, out);
        self.look_at_watched();
        self.floods.finish(self.now, out);
        self.alerts.close_all(self.now, out);
    }

    /// Nothing is open and nothing can fall due: time may pass without ticks.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.contacts.len() == 0 && self.alerts.len() == 0 && self.floods.is_idle()
    }

    /// What could not be told one by one; at most once a second of ticks.
    pub fn take_summary(&mut self) -> Option<AlertSummary> {
        self.alerts.take_summary(self.now)
    }

    fn step(&mut self, now: UnixNanos, out: &mut Vec<Alert>) {
        const HOUR: u64 = 3600;
        let hour_before = self.now.seconds() / HOUR;
        self.now = now;
        if now.seconds() / HOUR != hour_before {
            self.slow.forget(now);
        }
        self.settle_touched();
        let due = self.contacts.wheel.drain(now);
        for &number in &due {
            self.fall_due(number);
        }
        self.contacts.wheel.recycle(due);
        self.losses.forget(now);
        // Contacts come here a window after their last attempt, which is a window after the scan at the latest.
        self.alerts.forget_scanned(now, self.config.window * 2 + Self::TICK * 8);
        self.note_all_past();
        // First, so that it is known which scans are made by a flood.
        self.floods.tick(now, &mut || self.alerts.next_id(), out);
        self.open_alerts();
        self.alerts.tell(now, out);
        self.look_at_watched();
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

    /// A contact counts in its groups, in each once.
    fn join_groups(&mut self, number: u32) {
        let entry = self.contacts.entries[number as usize];
        let keys = entry.group_keys();
        let missing = keys.iter().zip(entry.groups).filter(|(key, group)| {
            key.is_some_and(|key| *group == NONE && self.contacts.groups.find(&key).is_none())
        });
        let missing = missing.count();
        self.make_room_for_groups(number, missing);
        for (slot, key) in keys.into_iter().enumerate() {
            let Some(key) = key else { continue };
            if entry.groups[slot] != NONE {
                continue;
            }
            let Some((group, is_new)) = self.contacts.join(number, slot, key) else {
                let held = self.held_with(number);
                self.evidence_lost.note(held);
                continue;
            };
            if is_new {
                self.contacts.groups.of(group).alert = self.alerts.covering(key);
            }
            if self.is_by_syn_alone(&key) {
                self.note_growth(group);
            }
        }
    }

    /// Lets others give way until there is room for the groups of this contact. A few tries: who gives way may
    /// have shared all of its groups.
    fn make_room_for_groups(&mut self, number: u32, needed: usize) {
        const TRIES: usize = 32;
        for _ in 0..TRIES {
            let groups = &self.contacts.groups;
            if groups.len() + needed <= groups.capacity() {
                return;
            }
            let victim = self.contacts.least_in_groups();
            if victim != number && self.contacts.entries[victim as usize].is_live {
                self.give_way(victim);
            }
        }
    }

    /// Does the profile count attempts of this group, whatever became of them?
    pub(super) fn is_by_syn_alone(&self, key: &GroupKey) -> bool {
        self.config.profile == Profile::Strict
            && matches!(key, GroupKey::Ports { technique: Technique::Syn, .. })
    }

    /// Brings the groups and alerts of a contact up to its outcome.
    fn settle(&mut self, number: u32) {
        let mut entry = self.contacts.entries[number as usize];
        let of_source = match entry.groups[SOURCE] {
            NONE => None,
            group => Some(self.contacts.groups.of(group)),
        };
        self.view.settle(&mut entry.seen, entry.contact.flags, of_source);
        let failed_before = entry.failed_in;
        for slot in 0..SLOTS {
            let group = entry.groups[slot];
            if group == NONE {
                continue;
            }
            let key = self.contacts.groups.get(group).key;
            let bit = 1 << slot;
            entry.failed_in &= !bit;
            if entry.fails_in(&key) {
                entry.failed_in |= bit;
            }
            let state = self.contacts.groups.of(group);
            match (failed_before & bit != 0, entry.failed_in & bit != 0) {
                (true, false) => {
                    state.failed -= 1;
                    state.look_again();
                }
                (false, true) => {
                    state.failed += 1;
                    self.note_growth(group);
                }
                _ => {}
            }
            let state = self.contacts.groups.of(group);
            if state.alert != 0 {
                state.alert = self.alerts.record(state.alert, &entry, &key);
                entry.is_told |= state.alert != 0;
            }
        }
        self.contacts.entries[number as usize] = entry;
        if let Some(watch) = &mut self.watch {
            watch.note(&entry);
        }
        let key = entry.contact.key;
        if !matches!(key.class, Class::Ip | Class::Arp) && entry.is_attempted() {
            let alert = self.alerts.of_protocols(key.source, key.target);
            self.alerts.record_protocol(alert, &entry);
        }
    }

    pub(super) fn note_growth(&mut self, group: u32) {
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
            self.forget(number);
            return;
        }
        let first = entry.contact.first;
        let due = first.plus(self.config.silent_after);
        if entry.is_undecided() && due <= self.now {
            self.contacts.entries[number as usize].due = match self.losses.touch(first, due) {
                true => Due::Lost,
                false => self.view.of_unanswered(entry.contact.flags),
            };
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
        let panes = if contact.flags.has_attempt() { self.window_panes } else { ORPHAN_PANES };
        UnixNanos((pane(contact.last) + panes).saturating_mul(PANE_NANOS))
    }

    /// A contact gives way before its time.
    fn give_way(&mut self, number: u32) {
        let entry = self.contacts.entries[number as usize];
        // Where one worker sees both directions, it tells of the attempt together with the answer.
        if self.config.splits_flows && entry.is_orphan() {
            self.losses.note(entry.contact.first, entry.contact.last);
        }
        let held = self.held_with(number);
        self.evidence_lost.note(held);
        self.forget(number);
    }

    /// The contact leaves the window, before its time or not.
    fn forget(&mut self, number: u32) {
        self.note_past(number);
        let Entry { seen, groups, .. } = self.contacts.entries[number as usize];
        if groups[SOURCE] != NONE {
            self.view.forget(seen, self.contacts.groups.of(groups[SOURCE]));
        }
        self.contacts.remove(number);
    }

    /// What counts for slow scans: ports of hosts that no alert tells about.
    fn note_past(&mut self, number: u32) {
        let entry = self.contacts.entries[number as usize];
        if entry.is_told || !entry.counts_for_slow_scans() {
            return;
        }
        let Contact { key, first, last, .. } = entry.contact;
        if self.floods.is_under(key.target, key.class) || self.is_beside_fast_scan(key.source, last)
        {
            // It is part of that, or hidden in it: fast, in any case.
            return;
        }
        self.past.push(Past { key, first, last, outcome: entry.outcome() });
    }

    /// Did alerts tell, at about that time, that this source scans ports? Who keeps one going for as long as slow
    /// scans take cannot hide one behind it.
    fn is_beside_fast_scan(&self, source: Address, time: UnixNanos) -> bool {
        self.alerts.scanned(source).is_some_and(|span| {
            span.holds(time, self.config.window) && span.end.since(span.start) < QUARTER
        })
    }

    /// What left the window in this tick, in an order that the contacts alone decide.
    fn note_all_past(&mut self) {
        let mut all = std::mem::take(&mut self.past);
        all.sort_unstable_by_key(|past| (past.key.source, past.last, past.key));
        for of_source in all.chunk_by(|one, other| one.key.source == other.key.source) {
            self.note_slow(of_source);
        }
        all.clear();
        self.past = all;
    }
}
