//! Frame batches that are under way.

use std::collections::VecDeque;

use wire::units::Sequence;

use super::delivery::{Delivery, LossReason};

/// Most frame batches under way: about 256 MiB. Beyond it nothing more is sent until the collector
/// acknowledges; then the pool runs dry, and workers count `lost{pool_empty}`.
const MAX_BATCHES_IN_FLIGHT: usize = 4096;

/// Frame batches that were sent and are not acknowledged. Their bytes are gone: they cannot be sent
/// again.
#[derive(Debug)]
pub(super) struct BatchesInFlight {
    batches: VecDeque<(Sequence, u32)>,
    next: Sequence,
    delivery: Delivery,
}

impl BatchesInFlight {
    pub(super) fn new() -> Self {
        Self {
            batches: VecDeque::with_capacity(MAX_BATCHES_IN_FLIGHT),
            next: Sequence(1),
            delivery: Delivery::default(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.batches.len() >= MAX_BATCHES_IN_FLIGHT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The number of a batch that is sent now.
    pub(super) fn send(&mut self, frames: u32) -> Sequence {
        let sequence = self.next;
        self.next = sequence.next();
        self.delivery.produce(u64::from(frames));
        self.batches.push_back((sequence, frames));
        sequence
    }

    /// A batch that is not sent.
    pub(super) fn lose(&mut self, frames: u32, reason: LossReason) {
        self.delivery.produce(u64::from(frames));
        self.delivery.lose(u64::from(frames), reason);
    }

    /// Everything up to `through` is stored. False if so much was never sent.
    pub(super) fn acknowledge(&mut self, through: Sequence) -> bool {
        if through >= self.next {
            return false;
        }
        while let Some(&(sequence, frames)) = self.batches.front()
            && sequence <= through
        {
            self.batches.pop_front();
            self.delivery.acknowledge(u64::from(frames));
        }
        true
    }

    /// Gives up all that is under way.
    pub(super) fn abandon(&mut self, reason: LossReason) {
        for (_, frames) in self.batches.drain(..) {
            self.delivery.lose(u64::from(frames), reason);
        }
    }

    /// After a panic: whatever is under way is given up, and whatever was being counted.
    pub(super) fn give_up_all(&mut self, reason: LossReason) {
        self.batches.clear();
        self.delivery.lose(self.delivery.in_flight(), reason);
    }

    pub(super) const fn delivery(&self) -> Delivery {
        self.delivery
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        assert!(!BatchesInFlight::new().acknowledge(Sequence(1)));
    }
}
