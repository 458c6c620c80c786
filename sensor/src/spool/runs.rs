//! Which numbers are still to be delivered, and which never will be.

use std::collections::VecDeque;

use wire::units::Sequence;

/// A set of numbers, as runs without a hole, ascending. There are as many runs as there are holes, and
/// holes come from losses alone, which take whole segments or the front of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// First and last number of each.
    runs: VecDeque<(u64, u64)>,
    count: u64,
}

impl Runs {
    /// Adds a number above all others. One that is not above them is left out.
    pub fn push(&mut self, number: Sequence) {
        match self.runs.back_mut() {
            Some((_, last)) if *last >= number.0 => return,
            Some((_, last)) if *last + 1 == number.0 => *last = number.0,
            _ => self.runs.push_back((number.0, number.0)),
        }
        self.count += 1;
    }

    /// Adds the numbers of another set, each higher by `shift` and then above all of this one.
    pub fn extend(&mut self, other: Self, shift: u64) {
        self.count += other.count;
        self.runs.extend(other.runs.into_iter().map(|(first, last)| (first + shift, last + shift)));
    }

    /// Takes out all numbers up to `through`, and says how many they were.
    pub fn remove_through(&mut self, through: Sequence) -> u64 {
        let mut removed = 0;
        while let Some((first, last)) = self.runs.front_mut()
            && *first <= through.0
        {
            if *last <= through.0 {
                removed += *last - *first + 1;
                self.runs.pop_front();
            } else {
                removed += through.0 - *first + 1;
                *first = through.0 + 1;
            }
        }
        self.count -= removed;
        removed
    }

    /// Takes out all numbers from `first` to `last`, and says how many they were.
    pub fn remove(&mut self, first: Sequence, last: Sequence) -> u64 {
        let mut removed = 0;
        let mut kept = VecDeque::with_capacity(self.runs.len() + 1);
        for (begin, end) in self.runs.drain(..) {
            let (from, to) = (begin.max(first.0), end.min(last.0));
            if from > to {
                kept.push_back((begin, end));
                continue;
            }
            removed += to - from + 1;
            if begin < from {
                kept.push_back((begin, from - 1));
            }
            if end > to {
                kept.push_back((to + 1, end));
            }
        }
        self.runs = kept;
        self.count -= removed;
        removed
    }

    /// How many numbers.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The highest number.
    #[must_use]
    pub fn last(&self) -> Option<Sequence> {
        self.runs.back().map(|(_, last)| Sequence(*last))
    }
}

/// A run of numbers that will not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// First number.
    pub first: Sequence,
    /// Last number.
    pub last: Sequence,
    /// Why, as the ledger says.
    pub reason: &'static str,
}

/// Holes that are remembered. Beyond them the oldest is forgotten: the collector then counts its numbers
/// as missing, without a reason.
const MOST_HOLES: usize = 1024;

/// The holes that the collector is told of, ascending.
#[derive(Clone, Debug, Default)]
pub struct Holes(VecDeque<Hole>);

impl Holes {
    /// Adds a hole. It joins its neighbours of the same reason.
    pub fn push(&mut self, hole: Hole) {
        let at = self.0.partition_point(|other| other.first < hole.first);
        let joins = |before: &Hole, after: &Hole| {
            before.reason == after.reason && before.last.0 + 1 >= after.first.0
        };
        if let Some(before) = at.checked_sub(1).and_then(|at| self.0.get_mut(at))
            && joins(before, &hole)
        {
            before.last = before.last.max(hole.last);
        } else if let Some(after) = self.0.get_mut(at)
            && joins(&hole, after)
        {
            after.first = hole.first;
        } else {
            self.0.insert(at, hole);
        }
        if self.0.len() > MOST_HOLES {
            self.0.pop_front();
        }
    }

    /// Adds the holes of another list, their numbers higher by `shift`.
    pub fn extend(&mut self, other: Self, shift: u64) {
        for Hole { first, last, reason } in other.0 {
            let [first, last] = [first, last].map(|number| Sequence(number.0 + shift));
            self.push(Hole { first, last, reason });
        }
    }

    /// Forgets what lies at `through` or before.
    pub fn forget_through(&mut self, through: Sequence) {
        while self.0.front().is_some_and(|hole| hole.last <= through) {
            self.0.pop_front();
        }
    }

    /// The holes between two numbers, both excluded.
    pub fn between(&self, after: Sequence, before: Sequence) -> impl Iterator<Item = &Hole> {
        self.0.iter().filter(move |hole| hole.last > after && hole.first < before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_set_of_their_numbers(
            steps in proptest::collection::vec((0u8..4, 0u64..40, 0u64..10), 0..80),
        ) {
            let (mut runs, mut model) = (Runs::default(), std::collections::BTreeSet::new());
            let mut next = 1;
            for (step, a, b) in steps {
                match step {
                    0 => {
                        next += b;
                        runs.push(Sequence(next));
                        model.insert(next);
                        next += 1;
                    }
                    1 => {
                        let gone = model.iter().filter(|number| **number <= a).count() as u64;
                        prop_assert_eq!(runs.remove_through(Sequence(a)), gone);
                        model.retain(|number| *number > a);
                    }
                    2 => {
                        let range = a..=a + b;
                        let gone = model.range(range.clone()).count() as u64;
                        prop_assert_eq!(runs.remove(Sequence(a), Sequence(a + b)), gone);
                        model.retain(|number| !range.contains(number));
                    }
                    _ => runs.push(Sequence(a.min(model.last().copied().unwrap_or(0)))),
                }
                if step == 3 && model.is_empty() {
                    // A number was pushed into an empty set.
                    model.extend(runs.runs.front().map(|(first, _)| *first));
                    next = next.max(a + 1);
                }
                prop_assert_eq!(runs.count(), model.len() as u64);
                prop_assert_eq!(runs.runs.front().map(|it| it.0), model.first().copied());
                prop_assert_eq!(runs.last().map(|it| it.0), model.last().copied());
            }
        }
    }

    fn hole(first: u64, last: u64, reason: &'static str) -> Hole {
        Hole { first: Sequence(first), last: Sequence(last), reason }
    }

    #[test]
    fn holes_of_one_reason_that_touch_become_one() {
        let mut holes = Holes::default();
        holes.push(hole(5, 6, "a"));
        holes.push(hole(7, 9, "a"));
        holes.push(hole(3, 4, "a"));
        holes.push(hole(10, 11, "b"));
        let all: Vec<_> = holes.between(Sequence(0), Sequence(100)).copied().collect();
        assert_eq!(all, [hole(3, 9, "a"), hole(10, 11, "b")]);
        assert_eq!(holes.between(Sequence(9), Sequence(100)).count(), 1);
        holes.forget_through(Sequence(9));
        assert_eq!(holes.0, [hole(10, 11, "b")]);
    }

    #[test]
    fn holes_without_end_are_forgotten_from_the_oldest_on() {
        let mut holes = Holes::default();
        for number in 0..2000 {
            holes.push(hole(10 * number + 1, 10 * number + 2, "a"));
        }
        assert_eq!(holes.0.len(), MOST_HOLES);
        assert_eq!(holes.0.back(), Some(&hole(19_991, 19_992, "a")));
    }
}
