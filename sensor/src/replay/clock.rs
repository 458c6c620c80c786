//! The clock of a file: the latest time seen, which never runs backwards.

use wire::units::UnixNanos;

use crate::detect::Detector;
use crate::file::Chunk;

/// Later times are taken as this one, so that a wrong time stamp cannot end the run of time: the
/// year 2500.
const LATEST: UnixNanos = UnixNanos(16_725_225_600_000_000_000);

/// What time it is in the file, as far as it was scanned.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// First and latest time; none before the first frame.
    pub(super) seen: Option<(UnixNanos, UnixNanos)>,
    /// The first whole tick behind the latest time.
    pub(super) next_tick: UnixNanos,
    /// Frames that were scanned.
    pub(super) frames: u64,
}

/// A place in the file where a tick of the packet clock is over: all workers tell what they learnt
/// from the frames before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meeting {
    /// Index of the first frame behind it, in its chunk.
    pub(super) frame: usize,
    /// The tick that is over.
    pub(super) tick: UnixNanos,
    /// Time of that frame; any number of ticks may lie before it.
    pub(super) clock: UnixNanos,
}

impl Clock {
    /// Gives all frames of the next chunk the time of this clock, and finds the meetings in it.
    pub(super) fn pass(&mut self, chunk: &mut Chunk, meetings: &mut Vec<Meeting>) {
        meetings.clear();
        self.frames += chunk.len() as u64;
        let mut times = chunk.times_mut().enumerate();
        let (begun, mut clock) = match self.seen {
            Some(seen) => seen,
            None => {
                let Some((_, time)) = times.next() else { return };
                *time = (*time).min(LATEST);
                self.next_tick = tick_after(*time);
                (*time, *time)
            }
        };
        for (frame, time) in times {
            clock = clock.max((*time).min(LATEST));
            *time = clock;
            if clock >= self.next_tick {
                meetings.push(Meeting { frame, tick: self.next_tick, clock });
                self.next_tick = tick_after(clock);
            }
        }
        self.seen = Some((begun, clock));
    }
}

/// The first whole tick behind a time.
pub(super) fn tick_after(time: UnixNanos) -> UnixNanos {
    let tick = Detector::TICK.as_nanos() as u64;
    UnixNanos((time.0 / tick + 1) * tick)
}
