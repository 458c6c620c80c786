//! The detector as one would write it without bounds on memory and time: exact sets, everything
//! counted anew at each tick. It shares no code with the detector but the types of its input.

use std::collections::{BTreeMap, BTreeSet};

use packet::Address;

use super::Phase;
use crate::evidence::{ContactKey, Observation};

/// One packet, as far as evidence goes. Time in nanoseconds.
pub(super) type Sighting = (u64, ContactKey, Observation);

/// What an alert says that does not depend on how it is computed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Told {
    pub(super) time: u64,
    pub(super) source: Address,
    pub(super) target: Option<Address>,
    pub(super) phase: Phase,
    /// Attempted, answered, refused, silent.
    pub(super) totals: [u64; 4],
    pub(super) distinct_ports: u64,
    pub(super) distinct_hosts: u64,
}

#[derive(Default)]
struct State {
    attempts: Vec<u64>,
    others: Vec<u64>,
    answered: bool,
    refused: bool,
}

#[derive(Default)]
struct Open {
    ports: BTreeSet<u16>,
    outcomes: BTreeMap<(Address, u16), u8>,
    active: u64,
}

type AlertKey = (Address, Option<Address>);

const SECOND: u64 = 1_000_000_000;
const TICK: u64 = 250_000_000;

/// Opens and closes of vertical and horizontal alerts, thresholds 10 and 10, window 60 s, silence 3 s,
/// close 60 s. `sightings` are in the order of time.
pub(super) fn expected(sightings: &[Sighting], until: u64) -> Vec<Told> {
    let mut contacts: BTreeMap<ContactKey, State> = BTreeMap::new();
    let mut alerts: BTreeMap<AlertKey, Open> = BTreeMap::new();
    let mut told = Vec::new();
    let mut rest = sightings.iter().peekable();
    for now in (TICK..=until).step_by(TICK as usize) {
        while let Some((time, key, observation)) = rest.next_if(|sighting| sighting.0 < now) {
            let state = contacts.entry(*key).or_default();
            match observation {
                Observation::Attempted => state.attempts.push(*time),
                Observation::Answered => state.answered = true,
                Observation::Refused => state.refused = true,
                _ => continue,
            }
            state.others.push(*time);
        }
        contacts.retain(|_, state| match state.attempts.last() {
            Some(last) => last / SECOND + 60 > now / SECOND,
            None => state.others.last().is_some_and(|last| last / SECOND + 10 > now / SECOND),
        });
        open(&contacts, &mut alerts, now, &mut told);
        record(&contacts, &mut alerts, now);
        close(&mut alerts, now, &mut told);
        fill_opened(&alerts, now, &mut told);
    }
    told
}

fn outcome(state: &State, now: u64) -> u8 {
    match state.attempts.first() {
        _ if state.answered => 3,
        _ if state.refused => 2,
        Some(first) if now >= first + 3 * SECOND => 1,
        _ => 0,
    }
}

fn open(
    contacts: &BTreeMap<ContactKey, State>,
    alerts: &mut BTreeMap<AlertKey, Open>,
    now: u64,
    told: &mut Vec<Told>,
) {
    let mut vertical: BTreeMap<(Address, Address), BTreeSet<u16>> = BTreeMap::new();
    let mut horizontal: BTreeMap<(Address, u16), BTreeSet<Address>> = BTreeMap::new();
    let mut attempted: BTreeMap<(Address, u16), usize> = BTreeMap::new();
    for (key, state) in contacts {
        if !state.attempts.is_empty() {
            *attempted.entry((key.source, key.port)).or_default() += 1;
        }
        if !state.attempts.is_empty() && matches!(outcome(state, now), 1 | 2) {
            vertical.entry((key.source, key.target)).or_default().insert(key.port);
            horizontal.entry((key.source, key.port)).or_default().insert(key.target);
        }
    }
    let mut begin = |key: AlertKey, alerts: &mut BTreeMap<AlertKey, Open>| {
        alerts.entry(key).or_insert_with(|| {
            told.push(of(key, &Open::default(), now, Phase::Open));
            Open::default()
        });
    };
    for ((source, target), _) in vertical.into_iter().filter(|(_, ports)| ports.len() >= 10) {
        begin((source, Some(target)), alerts);
    }
    horizontal.retain(|key, hosts| hosts.len() >= 10 && hosts.len() * 2 > attempted[key]);
    for ((source, port), _) in horizontal {
        begin((source, None), alerts);
        alerts.get_mut(&(source, None)).unwrap().ports.insert(port);
    }
}

fn record(contacts: &BTreeMap<ContactKey, State>, alerts: &mut BTreeMap<AlertKey, Open>, now: u64) {
    for (key, state) in contacts.iter().filter(|(_, state)| !state.attempts.is_empty()) {
        for alert_key in [(key.source, Some(key.target)), (key.source, None)] {
            let Some(alert) = alerts.get_mut(&alert_key) else { continue };
            if alert_key.1.is_none() && !alert.ports.contains(&key.port) {
                continue;
            }
            let new = outcome(state, now);
            let held = alert.outcomes.entry((key.target, key.port)).or_default();
            *held = (*held).max(new);
            if matches!(new, 1 | 2) {
                let pane = state.attempts.last().unwrap() / SECOND;
                let last = *state.attempts.iter().find(|&&time| time / SECOND == pane).unwrap();
                alert.active = alert.active.max(last);
            }
        }
    }
}

fn close(alerts: &mut BTreeMap<AlertKey, Open>, now: u64, told: &mut Vec<Told>) {
    alerts.retain(|&key, alert| {
        let is_over = now >= alert.active + 60 * SECOND;
        if is_over {
            told.push(of(key, alert, now, Phase::Close));
        }
        !is_over
    });
}

fn fill_opened(alerts: &BTreeMap<AlertKey, Open>, now: u64, told: &mut [Told]) {
    for opened in told.iter_mut().filter(|told| told.time == now && told.phase == Phase::Open) {
        let key = (opened.source, opened.target);
        *opened = of(key, &alerts[&key], now, Phase::Open);
    }
}

fn of((source, target): AlertKey, alert: &Open, time: u64, phase: Phase) -> Told {
    let count = |outcome| alert.outcomes.values().filter(|&&held| held == outcome).count() as u64;
    let hosts: BTreeSet<Address> = alert.outcomes.keys().map(|key| key.0).collect();
    let ports: BTreeSet<u16> = alert.outcomes.keys().map(|key| key.1).collect();
    Told {
        time,
        source,
        target,
        phase,
        totals: [alert.outcomes.len() as u64, count(3), count(2), count(1)],
        distinct_ports: ports.len() as u64,
        distinct_hosts: hosts.len() as u64,
    }
}
