//! How full rings were: the most of late, and the most ever. Several readers may ask, each as often as
//! it likes: nobody's look resets what the next one sees.

use std::time::{Duration, Instant};

/// A mark stands for ten seconds at least, and for the rest of its own second.
const SECONDS: usize = 10 + 1;

/// The marks of one worker on one interface. Unit: thousandths of the ring's blocks.
#[derive(Debug)]
pub(super) struct Occupancy {
    /// The most of each of the last seconds, the one that runs included.
    seconds: [u64; SECONDS],
    /// The second that runs, and when it began.
    running: usize,
    began: Instant,
    most: u64,
}

/// The marks, as they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// The most of the last ten seconds.
    pub(super) recent: u64,
    /// The most ever.
    pub(super) most: u64,
}

impl Occupancy {
    pub(super) fn new(now: Instant) -> Self {
        Self { seconds: [0; SECONDS], running: 0, began: now, most: 0 }
    }

    /// Since the last call, so many thousandths were in use at most.
    pub(super) fn note(&mut self, thousandths: u64, now: Instant) -> Marks {
        let passed = now.saturating_duration_since(self.began).as_secs();
        for _ in 0..passed.min(SECONDS as u64) {
            self.running = (self.running + 1) % SECONDS;
            self.seconds[self.running] = 0;
        }
        self.began += Duration::from_secs(passed);
        self.seconds[self.running] = self.seconds[self.running].max(thousandths);
        self.most = self.most.max(thousandths);
        Marks { recent: self.seconds.iter().copied().max().unwrap_or(0), most: self.most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stands_for_ten_seconds_and_the_most_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut occupancy = Occupancy::new(start);
        assert_eq!(occupancy.note(3, at(100)), Marks { recent: 3, most: 3 });
        assert_eq!(occupancy.note(700, at(900)), Marks { recent: 700, most: 700 });
        for tick in 4..43 {
            assert_eq!(occupancy.note(5, at(tick * 250)).recent, 700, "{tick}");
        }
        for tick in 44..60 {
            assert_eq!(occupancy.note(5, at(tick * 250)), Marks { recent: 5, most: 700 });
        }
    }

    #[test]
    fn a_worker_that_was_held_up_forgets_all_seconds_at_once() {
        let start = Instant::now();
        let mut occupancy = Occupancy::new(start);
        occupancy.note(900, start);
        let later = start + Duration::from_secs(86_400);
        assert_eq!(occupancy.note(1, later), Marks { recent: 1, most: 900 });
        assert_eq!(occupancy.note(2, start).recent, 2, "a clock that goes back changes nothing");
    }
}
