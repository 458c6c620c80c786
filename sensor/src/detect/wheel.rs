//! When a contact falls due, to 250 ms: a ring of lists threaded through one array.

use wire::units::UnixNanos;

use super::Detector;
use crate::hardware::take;

/// One timer for each contact, by its number. Fixed memory.
pub(super) struct Wheel {
    /// First timer of each slot.
    heads: Vec<u32>,
    links: Vec<Link>,
    /// Slot of the latest drain: nothing waits in an earlier one.
    cursor: u64,
    due: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// Where this timer waits; [`NONE`] if it does not.
    slot: u32,
}

/// No timer, no slot.
const NONE: u32 = u32::MAX;

/// 128 s. A timer that is due later falls due early and is set again.
const SLOTS: u64 = 512;

impl Wheel {
    /// Bytes for each timer.
    pub(super) const BYTES: usize = size_of::<Link>() + size_of::<u32>();

    /// A wheel for timers 0 to `timers - 1`.
    pub(super) fn new(timers: usize) -> Self {
        Self {
            heads: vec![NONE; SLOTS as usize],
            links: vec![Link { next: NONE, previous: NONE, slot: NONE }; timers],
            cursor: 0,
            due: Vec::with_capacity(timers),
        }
    }

    /// Has the system give all memory now.
    pub(super) fn take_memory(&mut self) {
        take(self.due.spare_capacity_mut());
    }

    /// Sets `timer` to `due`, at the earliest to the next drain. It must not be set.
    pub(super) fn set(&mut self, timer: u32, due: UnixNanos) {
        let slot = slot(due).clamp(self.cursor, self.cursor + SLOTS - 1) % SLOTS;
        let next = std::mem::replace(&mut self.heads[slot as usize], timer);
        self.links[timer as usize] = Link { next, previous: NONE, slot: slot as u32 };
        if next != NONE {
            self.links[next as usize].previous = timer;
        }
    }

    /// Unsets `timer`, if it is set.
    pub(super) fn cancel(&mut self, timer: u32) {
        let Link { next, previous, slot } = self.links[timer as usize];
        if slot == NONE {
            return;
        }
        self.links[timer as usize].slot = NONE;
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        match previous {
            NONE => self.heads[slot as usize] = next,
            _ => self.links[previous as usize].next = next,
        }
    }

    /// Unsets and hands out every timer that may be due at `now`, in no particular order; some are due
    /// up to 250 ms later. Give the list back to [`Wheel::recycle`].
    pub(super) fn drain(&mut self, now: UnixNanos) -> Vec<u32> {
        let mut due = std::mem::take(&mut self.due);
        let last = slot(now).max(self.cursor);
        for slot in self.cursor..=last.min(self.cursor + SLOTS - 1) {
            let mut timer = std::mem::replace(&mut self.heads[(slot % SLOTS) as usize], NONE);
            while timer != NONE {
                due.push(timer);
                let link = &mut self.links[timer as usize];
                link.slot = NONE;
                timer = link.next;
            }
        }
        self.cursor = last;
        due
    }

    /// Takes the list of [`Wheel::drain`] back, so that it need not be allocated again.
    pub(super) fn recycle(&mut self, mut due: Vec<u32>) {
        due.clear();
        self.due = due;
    }
}

const fn slot(time: UnixNanos) -> u64 {
    time.0 / Detector::TICK.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> UnixNanos {
        UnixNanos(seconds * 1_000_000_000)
    }

    fn drained(wheel: &mut Wheel, now: UnixNanos) -> Vec<u32> {
        let mut due = wheel.drain(now);
        due.sort_unstable();
        let drained = due.clone();
        wheel.recycle(due);
        drained
    }

    #[test]
    fn timers_fall_due_in_their_slot_and_not_before() {
        let mut wheel = Wheel::new(4);
        drained(&mut wheel, seconds(1000));
        for (timer, due) in [(0, 1001), (1, 1001), (2, 1100), (3, 990)] {
            wheel.set(timer, seconds(due));
        }
        assert_eq!(drained(&mut wheel, seconds(1000)), [3], "a time that has passed");
        assert_eq!(drained(&mut wheel, UnixNanos(seconds(1001).0 - 1)), [] as [u32; 0]);
        assert_eq!(drained(&mut wheel, seconds(1001)), [0, 1]);
        assert_eq!(drained(&mut wheel, seconds(1099)), [] as [u32; 0]);
        assert_eq!(drained(&mut wheel, seconds(5000)), [2]);
    }

    #[test]
    fn cancelled_timers_never_fall_due() {
        let mut wheel = Wheel::new(3);
        (0..3).for_each(|timer| wheel.set(timer, seconds(1)));
        wheel.cancel(1);
        wheel.cancel(1);
        wheel.cancel(2);
        assert_eq!(drained(&mut wheel, seconds(2)), [0]);
        wheel.cancel(0);
        assert_eq!(drained(&mut wheel, seconds(3)), [] as [u32; 0]);
    }

    #[test]
    fn timers_beyond_the_horizon_fall_due_early_and_never_get_lost() {
        let mut wheel = Wheel::new(1);
        wheel.set(0, seconds(100_000));
        assert_eq!(drained(&mut wheel, seconds(128)), [0]);
    }
}
