//! The clock of a file: the latest time seen, which never runs backwards.

use wire::units::UnixNanos;

use crate::detect::Detector;
use crate::file::Chunk;

/// Later times are taken as this one, so that a wrong time stamp cannot end the run of time: the
/// year 2500.
const LATEST: UnixNanos = UnixNanos(16_725_225_600_000_000_000);

/// After so many frames workers meet at the latest, whatever the clock does: in a file whose times stand
/// still, for one that lies years ahead or because there are none, what workers learn would gather without
/// bound. A gigabit of the smallest frames is 1.5 million in a second, so most files never get there.
const MOST_FRAMES: u64 = 1 << 19;

/// What time it is in the file, as far as it was scanned.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    /// First and latest time; none before the first frame.
    pub(super) seen: Option<(UnixNanos, UnixNanos)>,
    /// The first whole tick behind the latest time.
    pub(super) next_tick: UnixNanos,
    /// Frames that were scanned.
    pub(super) frames: u64,
    /// Frames before the latest meeting.
    met: u64,
}

/// A place in the file where a tick of the packet clock is over, or [`MOST_FRAMES`] after the one before:
/// all workers tell what they learnt from the frames before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meeting {
    /// Index of the first frame behind it, in its chunk.
    pub(super) frame: usize,
    /// The tick that is over, or, where the clock is not there yet, the one that goes on.
    pub(super) tick: UnixNanos,
    /// Time of that frame; any number of ticks may lie before it.
    pub(super) clock: UnixNanos,
}

impl Clock {
    /// Gives all frames of the next chunk the time of this clock, and finds the meetings in it.
    pub(super) fn pass(&mut self, chunk: &mut Chunk, meetings: &mut Vec<Meeting>) {
        meetings.clear();
        let before = self.frames;
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
            let here = before + frame as u64;
            if clock >= self.next_tick || here - self.met >= MOST_FRAMES {
                self.met = here;
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::file::CaptureFile;

    /// Places, counted from the start of the file, of the meetings in a capture of empty frames.
    fn meetings(records: &[(u32, usize)]) -> Vec<u64> {
        let head: [&[u8]; 3] = [&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0], &[0; 12], &[1, 0, 0, 0]];
        let mut bytes = head.concat();
        for (second, count) in records {
            for _ in 0..*count {
                bytes.extend_from_slice(&second.to_le_bytes());
                bytes.extend_from_slice(&[0; 12]);
            }
        }
        let mut file = CaptureFile::from_reader(Cursor::new(bytes), "test").unwrap();
        let (mut clock, mut chunk) = (Clock::default(), Chunk::default());
        let (mut here, mut found) = (Vec::new(), Vec::new());
        while !file.has_ended() {
            file.next_chunk(&mut chunk);
            let before = clock.frames;
            clock.pass(&mut chunk, &mut here);
            found.extend(here.iter().map(|meeting| before + meeting.frame as u64));
        }
        found
    }

    #[test]
    fn workers_meet_at_each_tick_and_where_time_stands_still_after_so_many_frames() {
        let most = MOST_FRAMES as usize;
        assert_eq!(meetings(&[(10, 3), (11, 2), (9, 5), (4000, 1)]), [3, 10]);
        assert!(meetings(&[(10, most)]).is_empty());
        let years_ahead_first = meetings(&[(4_000_000_000, 1), (10, 2 * most), (11, 5)]);
        assert_eq!(years_ahead_first, [MOST_FRAMES, 2 * MOST_FRAMES]);
        assert_eq!(meetings(&[(10, 7), (11, most + 1)]), [7, 7 + MOST_FRAMES]);
    }
}
