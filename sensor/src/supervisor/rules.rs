//! The rules of the supervisor, without the system, threads or a clock of their own.

use std::time::{Duration, Instant};

use crate::event::InterfaceChange;

/// A worker that made no pass over its rings for so long stands still. It makes at least four a second.
pub const STALL_AFTER: Duration = Duration::from_secs(3);
/// A worker that opens a ring may take so long.
pub(super) const OPENING_LIMIT: Duration = Duration::from_secs(60);
/// A worker that panicked, or rings that could not be opened, are tried again after the first time,
/// then after twice as long each time, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A worker that has run for so long since its panic is well.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// What is known of an interface when it is decided who opens rings on it.
pub(super) struct Situation<'a> {
    /// Workers that can be called.
    pub(super) fit: &'a [usize],
    /// Workers that read it.
    pub(super) live: &'a [usize],
    /// The group must be made anew: it is another interface, or a share of it is not read.
    pub(super) is_stale: bool,
    /// The group deals by the places of its members.
    pub(super) is_ordered: bool,
    /// Sockets in the reserve.
    pub(super) sockets: usize,
}

/// Who opens rings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nobody.
    Nothing,
    /// All that are fit, for a new group.
    CallAll,
    /// These, for the group that there is.
    CallMissing(Vec<usize>),
}

impl Situation<'_> {
    pub(super) fn action(&self) -> Action {
        let missing = self.fit.iter().copied().filter(|one| !self.live.contains(one));
        let missing: Vec<usize> = missing.collect();
        let has_need = !missing.is_empty() || self.is_stale;
        if self.fit.is_empty() || self.sockets == 0 || !has_need {
            return Action::Nothing;
        }
        // The order is worth a new group only if all find a place in it.
        let needs_order = self.is_ordered && self.sockets >= self.fit.len();
        if self.is_stale || self.live.is_empty() || needs_order {
            Action::CallAll
        } else {
            Action::CallMissing(missing)
        }
    }
}

/// When to try again what failed.
#[derive(Debug, Default)]
pub(super) struct Retry {
    not_before: Option<Instant>,
    failures: u32,
}

impl Retry {
    pub(super) fn after_failure(&mut self, now: Instant) {
        let (least, most) = RETRY;
        let delay = least.saturating_mul(1 << self.failures.min(6)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + delay);
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }
}

/// A worker under watch.
#[derive(Debug)]
pub(super) struct Tended {
    heartbeat: u64,
    /// When the heartbeat changed.
    heard: Instant,
    is_stalled: bool,
    panics: u64,
    panicked: Option<Instant>,
    retry: Retry,
    /// It panicked and has not been back on all interfaces since.
    is_away: bool,
}

/// What a worker turned out to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulse {
    /// What it did before.
    Same,
    /// It stands still, since then.
    Stalled(Instant),
    /// It goes on after it stood still.
    Resumed,
}

impl Tended {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heartbeat: 0,
            heard: now,
            is_stalled: false,
            panics: 0,
            panicked: None,
            retry: Retry::default(),
            is_away: false,
        }
    }

    /// The watch was held up itself: silence before `now` says nothing.
    pub(super) fn excuse(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Notes the heartbeat of a worker that opens a ring just now, or does not.
    pub(super) fn hear(&mut self, heartbeat: u64, is_opening: bool, now: Instant) -> Pulse {
        if std::mem::replace(&mut self.heartbeat, heartbeat) != heartbeat {
            self.heard = now;
            if std::mem::take(&mut self.is_stalled) {
                return Pulse::Resumed;
            }
        }
        // A large ring takes the kernel its time.
        let limit = if is_opening { OPENING_LIMIT } else { STALL_AFTER };
        if !self.is_stalled && now.saturating_duration_since(self.heard) > limit {
            self.is_stalled = true;
            return Pulse::Stalled(self.heard);
        }
        Pulse::Same
    }

    /// Notes how often the worker has panicked; says whether it did since the last time.
    pub(super) fn note_panics(&mut self, panics: u64, now: Instant) -> bool {
        if std::mem::replace(&mut self.panics, panics) == panics {
            return false;
        }
        if !self.was_unwell(now) {
            self.retry = Retry::default();
        }
        self.retry.after_failure(now);
        self.panicked = Some(now);
        self.is_away = true;
        true
    }

    /// It reads all its rings again; says whether it had been away.
    pub(super) fn note_return(&mut self) -> bool {
        std::mem::take(&mut self.is_away)
    }

    pub(super) fn is_fit(&self) -> bool {
        !self.is_stalled && !self.is_away
    }

    pub(super) fn may_be_called(&self, now: Instant) -> bool {
        !self.is_stalled && self.retry.is_due(now)
    }

    /// What is wrong with it.
    pub(super) fn problem(&self, index: usize, now: Instant) -> Option<String> {
        if self.is_stalled {
            let silence = now.saturating_duration_since(self.heard).as_secs();
            Some(format!("worker {index} has not read its rings for {silence} s"))
        } else if self.is_away {
            Some(format!("worker {index} panicked and is not back yet"))
        } else if self.was_unwell(now) {
            Some(format!("worker {index} panicked less than a minute ago"))
        } else {
            None
        }
    }

    fn was_unwell(&self, now: Instant) -> bool {
        self.panicked.is_some_and(|at| now.saturating_duration_since(at) < WELL_AFTER)
    }
}

/// Where an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Renamed,
    Gone,
    /// There again, its rings are not open yet.
    Returning,
}

/// What a look at an interface by its configured name gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// One of that name is there, and it is the one that was there before.
    Same,
    /// One of that name is there, and it is another one.
    Other,
    /// None of that name is there, but the one from before is, under another name.
    OtherName,
    /// Neither.
    Nothing,
}

impl Presence {
    /// Where it is after this look, and what is to be said of it.
    pub(super) fn after(self, sight: Sight) -> (Self, Option<InterfaceChange>) {
        match (self, sight) {
            (Self::Gone, Sight::Same | Sight::Other) => (Self::Returning, None),
            (_, Sight::Other) => (Self::Returning, Some(InterfaceChange::Gone)),
            (Self::Renamed, Sight::Same) => (Self::There, None),
            (Self::Gone, Sight::OtherName | Sight::Nothing) | (_, Sight::Same) => (self, None),
            (Self::Renamed, Sight::OtherName) => (self, None),
            (_, Sight::OtherName) => (Self::Renamed, Some(InterfaceChange::Renamed)),
            (_, Sight::Nothing) => (Self::Gone, Some(InterfaceChange::Gone)),
        }
    }
}

/// Adds up the time in which something of an interface was not read: no less than it was, and at each
/// end of such a time more by one look at most.
#[derive(Debug)]
pub(super) struct Unread {
    looked: Instant,
    was_unread: bool,
    /// A worker has stood still since then, as it turned out.
    stalled_since: Option<Instant>,
    /// All of it was read at some time: what was not read before is no loss.
    has_begun: bool,
}

impl Unread {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, was_unread: false, stalled_since: None, has_begun: false }
    }

    /// A reader stands still, since then.
    pub(super) fn note_stall(&mut self, since: Instant) {
        self.stalled_since.get_or_insert(since);
    }

    /// Gives the time to be added at this look.
    pub(super) fn look(&mut self, is_unread: bool, now: Instant) -> Duration {
        let looked = std::mem::replace(&mut self.looked, now);
        let was_unread = std::mem::replace(&mut self.was_unread, is_unread);
        let stalled_since = self.stalled_since.take().filter(|_| !was_unread);
        let had_begun = self.has_begun;
        self.has_begun |= !is_unread;
        if had_begun && (is_unread || was_unread) {
            now.saturating_duration_since(stalled_since.unwrap_or(looked))
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LOOK: Duration = Duration::from_millis(100);

    fn situation<'a>(fit: &'a [usize], live: &'a [usize]) -> Situation<'a> {
        Situation { fit, live, is_stale: false, is_ordered: false, sockets: 8 }
    }

    #[test]
    fn nobody_is_called_while_all_that_are_fit_read() {
        assert_eq!(situation(&[0, 1], &[0, 1]).action(), Action::Nothing);
        assert_eq!(situation(&[1], &[0, 1]).action(), Action::Nothing);
        assert_eq!(situation(&[], &[]).action(), Action::Nothing);
    }

    #[test]
    fn a_device_made_anew_or_a_share_that_nobody_reads_needs_a_new_group() {
        let stale = Situation { is_stale: true, ..situation(&[0, 1], &[0, 1]) };
        assert_eq!(stale.action(), Action::CallAll);
        assert_eq!(situation(&[0, 1], &[]).action(), Action::CallAll, "its rings have closed");
        let nobody = Situation { is_stale: true, ..situation(&[], &[0]) };
        assert_eq!(nobody.action(), Action::Nothing, "nobody can take over");
    }

    #[test]
    fn a_worker_that_comes_back_joins_unless_the_order_matters() {
        let back = situation(&[0, 1, 2], &[0, 2]);
        assert_eq!(back.action(), Action::CallMissing(vec![1]));
        let ordered = Situation { is_ordered: true, ..back };
        assert_eq!(ordered.action(), Action::CallAll);
        let scarce = Situation { sockets: 2, ..ordered };
        assert_eq!(scarce.action(), Action::CallMissing(vec![1]), "some would find no place");
    }

    #[test]
    fn an_empty_reserve_calls_nobody() {
        for (is_stale, is_ordered) in [(false, false), (true, false), (false, true), (true, true)] {
            let empty = Situation { is_stale, is_ordered, sockets: 0, ..situation(&[0, 1], &[0]) };
            assert_eq!(empty.action(), Action::Nothing);
        }
    }

    #[test]
    fn a_worker_that_panics_again_and_again_waits_1_2_4_to_60_seconds() {
        let mut now = Instant::now();
        let mut worker = Tended::new(now);
        assert!(worker.may_be_called(now) && worker.is_fit());
        for (panics, seconds) in (1..).zip([1, 2, 4, 8, 16, 32, 60, 60, 60]) {
            assert!(worker.note_panics(panics, now));
            assert!(!worker.note_panics(panics, now), "said once");
            assert!(!worker.is_fit());
            assert!(!worker.may_be_called(now + seconds * SECOND - LOOK), "{panics}");
            // It comes back when it may, and panics at once.
            now += seconds * SECOND;
            assert!(worker.may_be_called(now), "{panics}");
            assert!(worker.note_return() && !worker.note_return());
            now -= LOOK;
        }
    }

    #[test]
    fn a_worker_that_ran_for_a_minute_is_well_again() {
        let now = Instant::now();
        let mut worker = Tended::new(now);
        (1..=5).for_each(|panics| assert!(worker.note_panics(panics, now)));
        assert_eq!(worker.problem(3, now).unwrap(), "worker 3 panicked and is not back yet");
        assert!(worker.note_return());
        let later = now + 59 * SECOND;
        assert_eq!(worker.problem(3, later).unwrap(), "worker 3 panicked less than a minute ago");
        let later = now + 60 * SECOND;
        assert_eq!(worker.problem(3, later), None);
        assert!(worker.note_panics(6, later));
        assert!(worker.may_be_called(later + SECOND), "as after the first panic");
    }

    #[test]
    fn a_worker_stands_still_after_three_seconds_and_after_a_minute_while_it_opens_a_ring() {
        for (is_opening, limit) in [(false, STALL_AFTER), (true, OPENING_LIMIT)] {
            let start = Instant::now();
            let mut worker = Tended::new(start);
            assert_eq!(worker.hear(1, is_opening, start), Pulse::Same);
            assert_eq!(worker.hear(1, is_opening, start + limit), Pulse::Same);
            let late = start + limit + LOOK;
            assert_eq!(worker.hear(1, is_opening, late), Pulse::Stalled(start));
            assert!(!worker.is_fit() && !worker.may_be_called(late));
            let said = format!("worker 7 has not read its rings for {} s", limit.as_secs());
            assert_eq!(worker.problem(7, late), Some(said));
            assert_eq!(worker.hear(1, is_opening, late + LOOK), Pulse::Same, "said once");
            // Any other heartbeat is a sign of life.
            assert_eq!(worker.hear(0, is_opening, late + SECOND), Pulse::Resumed);
            assert!(worker.is_fit() && worker.may_be_called(late + SECOND));
        }
    }

    #[test]
    fn a_watch_that_was_held_up_itself_blames_nobody() {
        let start = Instant::now();
        let mut worker = Tended::new(start);
        let woken = start + 3600 * SECOND;
        worker.excuse(woken);
        assert_eq!(worker.hear(0, false, woken), Pulse::Same);
        assert_eq!(worker.hear(0, false, woken + STALL_AFTER), Pulse::Same);
        assert_eq!(worker.hear(0, false, woken + 4 * SECOND), Pulse::Stalled(woken));
    }

    #[test]
    fn an_interface_that_goes_comes_or_changes_is_said_once() {
        use InterfaceChange::{Gone as SaidGone, Renamed as SaidRenamed};
        use Presence::{Gone, Renamed, Returning, There};
        use Sight::{Nothing, Other, OtherName, Same};
        for (before, sight, after, said) in [
            (There, Same, There, None),
            (There, Nothing, Gone, Some(SaidGone)),
            (There, OtherName, Renamed, Some(SaidRenamed)),
            // Deleted and made again between two looks.
            (There, Other, Returning, Some(SaidGone)),
            (Gone, Nothing, Gone, None),
            (Gone, Other, Returning, None),
            // A number that is given again, as by a move to a namespace and back.
            (Gone, Same, Returning, None),
            // It was deleted; whatever has its number now is none of ours.
            (Gone, OtherName, Gone, None),
            (Renamed, OtherName, Renamed, None),
            (Renamed, Same, There, None),
            (Renamed, Nothing, Gone, Some(SaidGone)),
            (Renamed, Other, Returning, Some(SaidGone)),
            (Returning, Same, Returning, None),
            (Returning, Nothing, Gone, Some(SaidGone)),
            (Returning, Other, Returning, Some(SaidGone)),
        ] {
            assert_eq!(before.after(sight), (after, said), "{before:?}, {sight:?}");
        }
    }

    #[test]
    fn uncaptured_time_is_never_less_than_it_was() {
        let start = Instant::now();
        let mut unread = Unread::new(start);
        let mut look = |is_unread, tick: u32| unread.look(is_unread, start + tick * LOOK);
        assert_eq!(look(true, 1), Duration::ZERO, "nothing was read yet: no loss");
        assert_eq!(look(false, 2), Duration::ZERO);
        assert_eq!(look(false, 3), Duration::ZERO);
        // Its rings closed at some time since the last look, and open again before the last one.
        assert_eq!((look(true, 4), look(true, 5), look(false, 6)), (LOOK, LOOK, LOOK));
        assert_eq!(look(false, 7), Duration::ZERO);
    }

    #[test]
    fn the_share_of_a_worker_that_stands_still_counts_from_its_last_heartbeat() {
        let start = Instant::now();
        let mut unread = Unread::new(start);
        unread.look(false, start + LOOK);
        unread.look(false, start + 30 * LOOK);
        unread.note_stall(start + LOOK);
        assert_eq!(unread.look(true, start + 31 * LOOK), 30 * LOOK);
        // A second one, while time is counted anyhow.
        unread.note_stall(start + 2 * LOOK);
        assert_eq!(unread.look(true, start + 32 * LOOK), LOOK);
    }

    #[test]
    fn what_was_taken_over_within_one_look_counts_nevertheless() {
        let start = Instant::now();
        let mut unread = Unread::new(start);
        unread.look(false, start);
        unread.note_stall(start);
        assert_eq!(unread.look(true, start + 40 * LOOK), 40 * LOOK);
        assert_eq!(unread.look(false, start + 41 * LOOK), LOOK);
        assert_eq!(unread.look(false, start + 42 * LOOK), Duration::ZERO);
    }
}
