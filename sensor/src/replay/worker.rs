//! The body of a worker's thread.

use std::mem;

use packet::frame::Frame;
use wire::units::UnixNanos;

use super::ReplayError;
use super::clock::{Meeting, tick_after};
use super::merge::Told;
use super::table::{AHEAD, Front, Part, Seat, Task};
use crate::analyse::{Analyser, VECTOR};
use crate::connections::NewConnection;
use crate::counters::WorkerSet;
use crate::detect::Detector;
use crate::evidence::Published;
use crate::flow::EndedFlow;
use crate::recorder::UnwrittenFlows;

/// Analyses one's share of a file.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) workers: usize,
    pub(super) analyser: Analyser,
    pub(super) counters: WorkerSet,
    /// Found since the last meeting.
    pub(super) connections: Connections,
    /// Ended since the last meeting.
    pub(super) flows: Vec<EndedFlow>,
}

/// New connections since the last meeting, those left out that the limit of a second shuts out whatever
/// other workers found: so many came before them.
pub(super) struct Connections {
    limit: u64,
    /// The second at hand, and those that were kept of it.
    second: u64,
    kept: u64,
    list: Vec<NewConnection>,
    latest: UnixNanos,
    left_out: u64,
}

impl Worker {
    /// Works until the file has ended. Gives itself back: it still has what it learnt since the last
    /// meeting, and the flows that are alive.
    pub(super) fn run(mut self, mut seat: Seat<'_>) -> Result<Self, ReplayError> {
        loop {
            match seat.next_task()? {
                Task::Read(number, piece, mut part) => {
                    piece.read(&mut part.chunk);
                    seat.hold(number, part);
                }
                Task::ReadOn(mut front, mut part) => {
                    front.file.next_chunk(&mut part.chunk);
                    self.deal(&seat, front, part)?;
                }
                Task::Scan(mut front, mut part) => {
                    front.file.scan(&mut part.chunk);
                    self.deal(&seat, front, part)?;
                }
                Task::Analyse(part) => {
                    let told = self.analyse(&part);
                    seat.hand_in(part, told)?;
                }
                Task::End => return Ok(self),
            }
        }
    }

    /// Deals the frames of a scanned piece to all workers, after others may go on scanning.
    fn deal(&self, seat: &Seat<'_>, mut front: Box<Front>, part: Part) -> Result<(), ReplayError> {
        let Part { mut chunk, mut meetings, mut shares } = part;
        front.filter(&mut chunk);
        front.clock.pass(&mut chunk, &mut meetings);
        let number = seat.pass_on(front)?;
        if self.workers > 1 {
            shares.deal(&chunk, self.workers);
        }
        seat.hand_out(number, Part { chunk, meetings, shares })
    }

    /// Analyses one's share of a piece; gives what was learnt up to each meeting in it.
    fn analyse(&mut self, part: &Part) -> Vec<(Meeting, Told)> {
        let Part { chunk, meetings, shares } = part;
        let mut told = Vec::new();
        let mut done = 0;
        let share = shares.of(self.index);
        let mut frames_until = |worker: &mut Self, end: usize| {
            if worker.workers == 1 {
                worker.analyse_frames((done..end).map(|index| chunk.frame(index)));
                done = end;
            } else {
                let rest = &share[done..];
                let here = rest.partition_point(|index| (*index as usize) < end);
                let frames = rest[..here].iter().enumerate().map(|(place, index)| {
                    rest.get(place + AHEAD).inspect(|ahead| chunk.prefetch(**ahead as usize));
                    chunk.frame(*index as usize)
                });
                worker.analyse_frames(frames);
                done += here;
            }
        };
        for meeting in meetings {
            frames_until(self, meeting.frame);
            told.push((*meeting, self.tell(tick_after(meeting.clock).minus(Detector::TICK))));
        }
        frames_until(self, chunk.len());
        told
    }

    fn analyse_frames<'a>(&mut self, mut frames: impl Iterator<Item = Frame<'a>>) {
        let Self { analyser, connections, flows, .. } = self;
        let mut vector = [Frame::EMPTY; VECTOR];
        loop {
            let packets = analyser.analyse(
                0,
                &mut frames,
                &mut vector,
                |connection| connections.push(connection),
                |flow| flows.push(flow),
            );
            let count = packets.len();
            let Some(last) = vector[..count].last() else { return };
            analyser.make_room(last.time, |flow| flows.push(flow));
            #[cfg(test)]
            crate::worker::tests::fail_on_purpose(&vector[..count]);
        }
    }

    /// What was learnt since the last meeting; ends the flows that are idle for too long at `now`.
    pub(super) fn tell(&mut self, now: UnixNanos) -> Told {
        let Self { analyser, flows, .. } = self;
        analyser.end_idle_flows(now, |flow| flows.push(flow));
        let mut contacts = Vec::new();
        let Published { answers_lost, .. } = self.analyser.publish(|contact| {
            contacts.push(*contact);
            true
        });
        let mut targets = Vec::new();
        self.analyser.publish_targets(|report| {
            targets.push(*report);
            true
        });
        let (connections, connections_left_out) = self.connections.take();
        let mut flows = mem::take(&mut self.flows);
        flows.sort_unstable();
        let unwritten_flows = UnwrittenFlows::of_worker(&self.counters.worker);
        Told {
            contacts,
            targets,
            connections,
            connections_left_out,
            flows,
            answers_lost,
            unwritten_flows,
        }
    }

    /// Ends every flow: at this time nothing more comes.
    pub(super) fn finish(mut self, now: UnixNanos) -> Told {
        let mut told = self.tell(now);
        self.analyser.end_all_flows(now, |flow| told.flows.push(flow));
        told.flows.sort_unstable();
        told.unwritten_flows = UnwrittenFlows::of_worker(&self.counters.worker);
        told
    }
}

impl Connections {
    /// At most so many are told in a second.
    pub(super) const fn new(limit: u32) -> Self {
        // One is kept in any case: it tells that its second has begun.
        let limit = if limit == 0 { 1 } else { limit as u64 };
        let latest = UnixNanos(0);
        Self { limit, second: 0, kept: 0, list: Vec::new(), latest, left_out: 0 }
    }

    /// Takes the next one; time never runs backwards.
    fn push(&mut self, new: NewConnection) {
        let second = new.time.seconds();
        if second != self.second {
            (self.second, self.kept) = (second, 0);
        }
        // Which of one time come first, their addresses say.
        if self.kept >= self.limit && new.time != self.latest {
            self.left_out += 1;
            return;
        }
        self.kept += 1;
        self.latest = new.time;
        self.list.push(new);
    }

    /// Those that were kept, in order, and the number of the others.
    fn take(&mut self) -> (Vec<NewConnection>, u64) {
        let mut list = mem::take(&mut self.list);
        list.sort_unstable();
        (list, mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::FiveTuple;

    #[test]
    fn connections_behind_the_limit_of_a_second_are_counted_and_those_at_its_time_are_kept() {
        let mut found = Connections::new(2);
        let mut push = |time, source_port| {
            let tuple = FiveTuple { source_port, ..FiveTuple::default() };
            found.push(NewConnection {
                time: UnixNanos(time),
                tuple,
                vlan_ids: [0; 2],
                interface: 0,
            });
        };
        [(5, 9), (7, 4), (7, 3), (8, 1), (9, 1), (1_000_000_000, 2)]
            .into_iter()
            .for_each(|(time, port)| push(time, port));
        let (kept, left_out) = found.take();
        let kept: Vec<_> = kept.iter().map(|new| (new.time.0, new.tuple.source_port)).collect();
        assert_eq!(kept, [(5, 9), (7, 3), (7, 4), (1_000_000_000, 2)]);
        assert_eq!((left_out, found.take()), (2, (Vec::new(), 0)));
    }
}
