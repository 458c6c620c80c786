//! Frames of all segments in the order of time.
//!
//! Of every stride it is known when its first frame was seen, so what is earlier than the first frame of all strides
//! that are left can go. What is not waits here, up to [`MOST_WAITING`] bytes: where the clocks of sensors are hours
//! apart, the earliest that wait then go all the same, and frames that are found later count as late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use wire::units::{UnixNanos, WireLen};

use crate::store::blocks::StoredFrame;
use crate::store::index::IndexedInterface;

/// Bytes of frames that wait for others.
pub(super) const MOST_WAITING: usize = 64 << 20;
/// What a frame that waits takes beside its bytes, about.
const OVERHEAD: usize = 96;

/// Frames that wait.
#[derive(Default)]
pub(super) struct Merge {
    waiting: BinaryHeap<Reverse<Waiting>>,
    bytes: usize,
    pushed: u64,
    /// Time of the latest frame that went.
    latest: UnixNanos,
    late: u64,
}

/// A frame that waits.
pub(super) struct Waiting {
    time: UnixNanos,
    /// Those of the same time stay in the order in which they are stored.
    order: u64,
    wire_len: WireLen,
    data: Box<[u8]>,
    pub(super) interface: Rc<IndexedInterface>,
}

impl Waiting {
    /// The frame, as one of interface number `interface`.
    pub(super) const fn frame(&self, interface: u32) -> StoredFrame<'_> {
        StoredFrame { interface, time: self.time, wire_len: self.wire_len, data: &self.data }
    }
}

impl Merge {
    pub(super) fn push(&mut self, interface: &Rc<IndexedInterface>, frame: &StoredFrame<'_>) {
        self.bytes += frame.data.len() + OVERHEAD;
        self.waiting.push(Reverse(Waiting {
            time: frame.time,
            order: self.pushed,
            wire_len: frame.wire_len,
            data: frame.data.into(),
            interface: Rc::clone(interface),
        }));
        self.pushed += 1;
    }

    /// The next frame that goes: nothing before `earliest` will be pushed any more.
    pub(super) fn pop(&mut self, earliest: UnixNanos) -> Option<Waiting> {
        let is_full = self.bytes > MOST_WAITING;
        let Reverse(next) = self.waiting.peek()?;
        if next.time >= earliest && !is_full && earliest != UnixNanos(u64::MAX) {
            return None;
        }
        let Reverse(next) = self.waiting.pop()?;
        self.bytes -= next.data.len() + OVERHEAD;
        self.late += u64::from(next.time < self.latest);
        self.latest = self.latest.max(next.time);
        Some(next)
    }

    /// Frames that went behind a later one.
    pub(super) const fn late(&self) -> u64 {
        self.late
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        (self.time, self.order) == (other.time, other.order)
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time, self.order).cmp(&(other.time, other.order))
    }
}
