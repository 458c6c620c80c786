//! Where the frames of one block are worked on.

use wire::units::UnixNanos;

use crate::afpacket::Block;
use crate::analyse::{Analyser, VECTOR};
use crate::connections::NewConnection;
use crate::counters::{InterfaceCounters, WorkerCounters};
use crate::export::Exporter;
use crate::flow::EndedFlow;
use crate::frame::Frame;
use crate::interfaces::{Finder, PlaceMap};
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
        let mut vector = [Frame::EMPTY; VECTOR];
        let mut len = 0;
        let mut last = UnixNanos(0);
        // An index of a list with one entry for each interface; it fits by far.
        let mut finder = Finder::new(self.places, self.interface as u32);
        for captured in block.frames() {
            last = captured.frame.time;
            let Some(interface) = finder.id_of(&captured) else {
                self.counted.not_wanted.add(1);
                continue;
            };
            vector[len] = Frame { interface, ..captured.frame };
            len += 1;
            if len == VECTOR {
                self.vector(&vector, own);
                len = 0;
            }
        }
        self.vector(&vector[..len], own);
        last
    }

    #[inline]
    fn vector(&mut self, frames: &[Frame<'_>], own: &OwnSnapshot) {
        let connections = &mut *self.connections;
        let lost = &mut *self.connections_lost;
        let (flows, counted) = (&mut *self.flows, self.worker);
        let packets = self.analyser.analyse(
            self.interface,
            frames,
            |connection| *lost += u64::from(connections.push(connection).is_err()),
            |flow| hand_out(flows, flow, counted),
        );
        #[cfg(test)]
        super::tests::fail_on_purpose(frames);
        self.exporter.take(frames, packets, self.counted, |tuple| own.contains(tuple));
    }
}
