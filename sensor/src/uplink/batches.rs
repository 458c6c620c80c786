//! Frame batches from the workers, and empty ones back to them.

use rtrb::{Consumer, Producer};
use wire::frames::FrameBatchWriter;

/// The two rings between a worker and the uplink. The buffers of a worker's pool go round in them;
/// none is made or freed on the way.
#[derive(Debug)]
pub struct BatchRing {
    /// Filled batches. Bounded by the pool; when the pool is dry, the worker counts
    /// `lost{pool_empty}`.
    pub filled: Consumer<FrameBatchWriter>,
    /// Batches to fill again. Must have room for the whole pool.
    pub empty: Producer<FrameBatchWriter>,
}

/// The rings of all workers, served in turn.
#[derive(Debug)]
pub(super) struct BatchRings {
    rings: Vec<BatchRing>,
    turn: usize,
}

impl BatchRings {
    pub(super) const fn new(rings: Vec<BatchRing>) -> Self {
        Self { rings, turn: 0 }
    }

    /// Takes the next filled batch, lets `use_it` have it, and gives the buffer back. False if no
    /// worker has one.
    pub(super) fn serve_one(&mut self, use_it: impl FnOnce(&mut FrameBatchWriter)) -> bool {
        for _ in 0..self.rings.len() {
            self.turn = (self.turn + 1) % self.rings.len();
            let ring = &mut self.rings[self.turn];
            if let Ok(mut batch) = ring.filled.pop() {
                use_it(&mut batch);
                batch.clear();
                // There is room for the whole pool; a worker that is gone needs no buffers.
                let _ = ring.empty.push(batch);
                return true;
            }
        }
        false
    }

    pub(super) fn are_empty(&self) -> bool {
        self.rings.iter().all(|ring| ring.filled.is_empty())
    }
}
