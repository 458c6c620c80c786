//! Where the frames of one block are worked on.

use packet::frame::Frame;
use wire::units::UnixNanos;

use crate::afpacket::Block;
use crate::analyse::{Analyser, VECTOR};
use crate::connections::NewConnection;
use crate::counters::{InterfaceCounters, WorkerCounters};
use crate::export::Exporter;
use crate::flow::EndedFlow;
use crate::interfaces::{Finder, PlaceMap};
use crate::timing::Stopwatch;
use crate::uplink::OwnSnapshot;

/// What a worker needs to work on the frames of one ring.
pub(super) struct Desk<'a> {
    pub(super) interface: usize,
    /// For a ring on all interfaces.
    pub(super) places: Option<&'a PlaceMap>,
    pub(super) analyser: &'a mut Analyser,
    pub(super) exporter: &'a mut Exporter,
    pub(super) counted: &'a InterfaceCounters,
    pub(super) connections: &'a mut rtrb::Producer<NewConnection>,
    pub(super) connections_lost: &'a mut u64,
    pub(super) flows: &'a mut rtrb::Producer<EndedFlow>,
    pub(super) worker: &'a WorkerCounters,
    pub(super) stopwatch: &'a mut Stopwatch,
    /// When the block was granted.
    pub(super) granted: UnixNanos,
}

/// Hands a flow to the recorder, or counts that there was no room.
pub(super) fn hand_out(
    flows: &mut rtrb::Producer<EndedFlow>,
    flow: EndedFlow,
    counted: &WorkerCounters,
) {
    counted.flows.queue_full.add(u64::from(flows.push(flow).is_err()));
}

impl Desk<'_> {
    /// Gives the time of the block's last frame.
    #[inline]
    pub(super) fn work_through(&mut self, block: &Block<'_>, own: &OwnSnapshot) -> UnixNanos {
        let Some(places) = self.places else {
            // An index of a list with one entry for each interface; it fits by far.
            let interface = self.interface as u32;
            return self.vectors(block.frames().map(|it| Frame { interface, ..it.frame }), own);
        };
        let (mut finder, not_wanted) = (Finder::new(places), &self.counted.not_wanted);
        let mut last = UnixNanos(0);
        let wanted = block.frames().filter_map(|captured| {
            last = captured.frame.time;
            let interface = finder.id_of(&captured);
            not_wanted.add(u64::from(interface.is_none()));
            Some(Frame { interface: interface?, ..captured.frame })
        });
        let last_wanted = self.vectors(wanted, own);
        last.max(last_wanted)
    }

    /// Gives the time of the last frame.
    #[inline]
    fn vectors<'a>(
        &mut self,
        mut frames: impl Iterator<Item = Frame<'a>>,
        own: &OwnSnapshot,
    ) -> UnixNanos {
        let mut vector = [Frame::EMPTY; VECTOR];
        let mut last = UnixNanos(0);
        while let Some(time) = self.vector(&mut frames, &mut vector, own) {
            last = time;
        }
        last
    }

    /// Gives the time of the last frame of the vector; `None` if there is no frame left.
    #[inline]
    fn vector<'a>(
        &mut self,
        source: &mut impl Iterator<Item = Frame<'a>>,
        vector: &mut [Frame<'a>; VECTOR],
        own: &OwnSnapshot,
    ) -> Option<UnixNanos> {
        let connections = &mut *self.connections;
        let lost = &mut *self.connections_lost;
        let (flows, counted) = (&mut *self.flows, self.worker);
        let packets = self.analyser.analyse(
            self.interface,
            source,
            vector,
            |connection| *lost += u64::from(connections.push(connection).is_err()),
            |flow| hand_out(flows, flow, counted),
        );
        let frames = &vector[..packets.len()];
        #[cfg(test)]
        super::tests::fail_on_purpose(frames);
        self.exporter.take(frames, packets, self.counted, |tuple| own.contains(tuple));
        let (first, last) = (frames.first()?, frames.last()?);
        // Half of a vector is taken as late as its first frame, half as its last: at high rates they are
        // microseconds apart, at low ones a vector has few frames.
        let (older, newer) = (frames.len() as u64 / 2, frames.len().div_ceil(2) as u64);
        self.stopwatch.frames(self.granted.since(first.time), older);
        self.stopwatch.frames(self.granted.since(last.time), newer);
        Some(last.time)
    }
}
