//! Says when the detector has not room for all evidence, and when that is over.

use std::time::Duration;

use wire::units::UnixNanos;

use crate::detect::{DetectorCounters, GivenWay};

/// What happened to the detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetectorChange {
    /// Its tables are nearly full, or evidence was lost: scans may be missed.
    Degraded(Degradation),
    /// For a minute there was room for everything. What was lost since it began.
    Recovered(Degradation),
}

impl DetectorChange {
    /// Its name in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Degraded(_) => "detector.degraded",
            Self::Recovered(_) => "detector.recovered",
        }
    }

    /// How full it is, and what was lost.
    #[must_use]
    pub const fn degradation(self) -> Degradation {
        match self {
            Self::Degraded(degradation) | Self::Recovered(degradation) => degradation,
        }
    }
}

/// What helps.
pub const REMEDY: &str = "set detect.memory_mib higher";

/// How full the tables are, and what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Degradation {
    /// Contacts in the window now.
    pub contacts: u64,
    /// Contacts that there is room for.
    pub contacts_room: u64,
    /// Contacts that gave way in the detector, or in a worker before they were handed out; answers that a
    /// worker had no room for.
    pub evidence_lost: u64,
    /// Of those: the ones that gave way in the detector, by how much evidence their source held. Nobody knows of what
    /// a worker lost.
    pub held: GivenWay,
    /// Sources with failed contacts that gave way in the table of slow scans.
    pub slow_sources_lost: GivenWay,
    /// Scans that opened no alert, because too many are open.
    pub alerts_not_opened: u64,
}

/// Watches the counters of the detector.
#[derive(Debug, Default)]
pub struct Strain {
    /// What was lost until the last look.
    seen: Lost,
    /// What was lost until it was last said.
    said: Lost,
    /// What was lost until this strain began.
    began: Lost,
    said_at: Option<UnixNanos>,
    /// The last look that found any; `None` while all is well.
    strained_at: Option<UnixNanos>,
}

/// Everything that was lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    by_workers: u64,
    evidence: GivenWay,
    slow_sources: GivenWay,
    not_opened: u64,
}

/// At most so often is it said; so long must all be well before it is over.
const MINUTE: Duration = Duration::from_secs(60);

impl Strain {
    /// What is to be said at `now`, if anything. `lost_by_workers` is their evidence since the start.
    pub fn look(
        &mut self,
        now: UnixNanos,
        counters: &DetectorCounters,
        lost_by_workers: u64,
    ) -> Option<DetectorChange> {
        let lost = Lost {
            by_workers: lost_by_workers,
            evidence: counters.evidence_lost,
            slow_sources: counters.slow_lost,
            not_opened: counters.not_opened,
        };
        let before = std::mem::replace(&mut self.seen, lost);
        let is_strained = lost != before || is_nearly_full(counters);
        if is_strained {
            if self.strained_at.replace(now).is_none() {
                (self.began, self.said) = (before, before);
            }
            let is_due = self.said_at.is_none_or(|said| now >= said.plus(MINUTE));
            return is_due.then(|| {
                self.said_at = Some(now);
                let said = std::mem::replace(&mut self.said, lost);
                DetectorChange::Degraded(lost.since(said, counters))
            });
        }
        self.strained_at.filter(|at| now >= at.plus(MINUTE))?;
        self.strained_at = None;
        // It was said: the one before ended a minute of quiet ago.
        Some(DetectorChange::Recovered(lost.since(self.began, counters)))
    }
}

fn is_nearly_full(counters: &DetectorCounters) -> bool {
    let DetectorCounters { contacts, contacts_room, groups, groups_room, .. } = *counters;
    contacts * 10 > contacts_room * 9 || groups * 10 > groups_room * 9
}

impl Lost {
    fn since(self, before: Self, counters: &DetectorCounters) -> Degradation {
        let held = self.evidence.since(&before.evidence);
        let by_workers = self.by_workers.saturating_sub(before.by_workers);
        Degradation {
            contacts: counters.contacts,
            contacts_room: counters.contacts_room,
            evidence_lost: held.total() + by_workers,
            held,
            slow_sources_lost: self.slow_sources.since(&before.slow_sources),
            alerts_not_opened: self.not_opened.saturating_sub(before.not_opened),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Held;

    fn counters(contacts: u64, lost: u64) -> DetectorCounters {
        let mut evidence_lost = GivenWay::default();
        (0..lost).for_each(|_| evidence_lost.note(Held::Near));
        DetectorCounters {
            contacts,
            contacts_room: 100,
            groups_room: 400,
            evidence_lost,
            ..DetectorCounters::default()
        }
    }

    fn at(seconds: u64) -> UnixNanos {
        UnixNanos(seconds * 1_000_000_000)
    }

    fn lost(change: Option<DetectorChange>) -> (&'static str, u64) {
        let change = change.unwrap();
        (change.name(), change.degradation().evidence_lost)
    }

    #[test]
    fn full_tables_are_said_once_a_minute_and_their_end_after_a_quiet_one() {
        let mut strain = Strain::default();
        assert_eq!(strain.look(at(0), &counters(90, 0), 0), None, "ninety per cent are not more");
        let said = strain.look(at(1), &counters(91, 0), 0).unwrap();
        let degradation = Degradation { contacts: 91, contacts_room: 100, ..Default::default() };
        assert_eq!(said, DetectorChange::Degraded(degradation));
        assert_eq!(strain.look(at(60), &counters(100, 7), 0), None, "a minute is not over");
        let again = strain.look(at(61), &counters(100, 9), 3);
        assert_eq!(lost(again), ("detector.degraded", 12));
        let held = again.unwrap().degradation().held;
        assert_eq!((held.total(), held.of(Held::Near)), (9, 9), "three were lost by workers");
        assert_eq!(strain.look(at(120), &counters(10, 9), 3), None, "not quiet for a minute");
        let over = strain.look(at(121), &counters(10, 9), 3);
        assert_eq!(lost(over), ("detector.recovered", 12));
        assert_eq!(strain.look(at(500), &counters(10, 9), 3), None);
    }

    #[test]
    fn what_is_lost_counts_whatever_the_fill_and_wherever_it_was_lost() {
        let mut strain = Strain::default();
        assert_eq!(lost(strain.look(at(1), &counters(0, 0), 5)), ("detector.degraded", 5));
        assert_eq!(lost(strain.look(at(70), &counters(0, 2), 5)), ("detector.degraded", 2));
        let groups = DetectorCounters { groups: 361, ..counters(0, 2) };
        assert_eq!(lost(strain.look(at(140), &groups, 5)), ("detector.degraded", 0));
        assert_eq!(lost(strain.look(at(200), &counters(0, 2), 5)), ("detector.recovered", 7));
    }

    #[test]
    fn a_strain_after_one_that_is_over_is_a_new_one() {
        let mut strain = Strain::default();
        assert_eq!(lost(strain.look(at(1), &counters(0, 1), 0)), ("detector.degraded", 1));
        assert_eq!(lost(strain.look(at(61), &counters(0, 1), 0)), ("detector.recovered", 1));
        assert_eq!(lost(strain.look(at(61), &counters(0, 2), 0)), ("detector.degraded", 1));
    }
}
