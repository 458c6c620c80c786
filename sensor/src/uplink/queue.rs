//! Records that no collector has acknowledged, and frame batches that are under way.

use std::collections::VecDeque;

use wire::records::{MAX_RECORD, PushError, RecordBatchWriter, RecordKind};
use wire::units::Sequence;

use super::delivery::{Delivery, LossReason};

/// What a record costs beside its text, in bytes: its entry in the queue, and what the allocator
/// keeps beside the text.
const OVERHEAD: usize = size_of::<Queued>() + 16;

/// Records from the recorder until the collector has acknowledged them.
///
/// Bounded by bytes. When full, the oldest record that is no alert goes (sent or not), then the
/// oldest alert; each counts as `lost{queue_full}`.
#[derive(Debug)]
pub(super) struct RecordQueue {
    alerts: Lane,
    others: Lane,
    /// Number of the next record.
    next: Sequence,
    /// Highest number that ever was sent.
    sent: Sequence,
    bytes: usize,
    limit_bytes: usize,
    delivery: Delivery,
}

/// Records in the order of their numbers; those before `unsent` were sent on this connection.
#[derive(Debug, Default)]
struct Lane {
    records: VecDeque<Queued>,
    unsent: usize,
}

#[derive(Debug)]
struct Queued {
    sequence: Sequence,
    kind: RecordKind,
    json: Vec<u8>,
}

impl Queued {
    fn bytes(&self) -> usize {
        self.json.capacity() + OVERHEAD
    }
}

impl Lane {
    fn pop_front(&mut self) -> Option<Queued> {
        let record = self.records.pop_front()?;
        self.unsent = self.unsent.saturating_sub(1);
        Some(record)
    }

    fn next_unsent(&self) -> Option<&Queued> {
        self.records.get(self.unsent)
    }
}

impl RecordQueue {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self {
            alerts: Lane::default(),
            others: Lane::default(),
            next: Sequence(1),
            sent: Sequence(0),
            bytes: 0,
            limit_bytes,
            delivery: Delivery::default(),
        }
    }

    /// Takes a record, and gives up others if there is no room.
    pub(super) fn push(&mut self, kind: RecordKind, json: Vec<u8>) {
        self.delivery.produce(1);
        if json.len() > MAX_RECORD {
            self.delivery.lose(1, LossReason::TooLong);
            return;
        }
        let record = Queued { sequence: self.next, kind, json };
        self.next = self.next.next();
        self.bytes += record.bytes();
        let lane = if kind == RecordKind::Alert { &mut self.alerts } else { &mut self.others };
        lane.records.push_back(record);
        while self.bytes > self.limit_bytes {
            let Some(oldest) = self.others.pop_front().or_else(|| self.alerts.pop_front()) else {
                break;
            };
            self.bytes -= oldest.bytes();
            self.delivery.lose(1, LossReason::QueueFull);
        }
    }

    /// Appends one message with the next unsent records to `out`: as many as a batch takes and
    /// as have numbers without a hole. False if there is none.
    pub(super) fn send(&mut self, writer: &mut RecordBatchWriter, out: &mut Vec<u8>) -> bool {
        let mut first = None;
        let mut last = Sequence(0);
        loop {
            let lane = match (self.alerts.next_unsent(), self.others.next_unsent()) {
                (None, None) => break,
                (Some(alert), Some(other)) if alert.sequence > other.sequence => &mut self.others,
                (None, Some(_)) => &mut self.others,
                (Some(_), _) => &mut self.alerts,
            };
            let Some(record) = lane.next_unsent() else { break };
            if first.is_some() && record.sequence != last.next() {
                break;
            }
            match writer.try_push(record.kind, &record.json) {
                Ok(()) => {}
                // `push` has refused what is too long.
                Err(PushError::BatchFull | PushError::TooLong { .. }) => break,
            }
            first.get_or_insert(record.sequence);
            last = record.sequence;
            lane.unsent += 1;
        }
        let Some(first) = first else { return false };
        self.sent = self.sent.max(last);
        writer.finish(first, out);
        true
    }

    /// Everything up to `through` is stored. False if so much was never sent.
    pub(super) fn acknowledge(&mut self, through: Sequence) -> bool {
        if through > self.sent {
            return false;
        }
        for lane in [&mut self.alerts, &mut self.others] {
            while lane.records.front().is_some_and(|record| record.sequence <= through) {
                if let Some(record) = lane.pop_front() {
                    self.bytes -= record.bytes();
                    self.delivery.acknowledge(1);
                }
            }
        }
        true
    }

    /// Everything that is not acknowledged has to be sent (again).
    pub(super) fn rewind(&mut self) {
        self.alerts.unsent = 0;
        self.others.unsent = 0;
    }

    /// Gives up all that is left.
    pub(super) fn abandon(&mut self, reason: LossReason) {
        let left = self.alerts.records.len() + self.others.records.len();
        self.delivery.lose(left as u64, reason);
        self.alerts = Lane::default();
        self.others = Lane::default();
        self.bytes = 0;
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.alerts.next_unsent().is_some() || self.others.next_unsent().is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alerts.records.is_empty() && self.others.records.is_empty()
    }

    pub(super) const fn delivery(&self) -> Delivery {
        self.delivery
    }
}

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

    pub(super) const fn delivery(&self) -> Delivery {
        self.delivery
    }
}

#[cfg(test)]
mod tests {
    use wire::codec::Decoder;
    use wire::message::Message;

    use super::*;

    /// Numbers of the records of all messages that the queue sends now, one list per message.
    fn sent(queue: &mut RecordQueue) -> Vec<Vec<u64>> {
        let mut out = Vec::new();
        let mut writer = RecordBatchWriter::new();
        while queue.send(&mut writer, &mut out) {}
        let mut decoder = Decoder::new();
        assert_eq!(decoder.push(&out), out.len());
        let mut messages = Vec::new();
        while let Some(message) = decoder.next_message().unwrap() {
            let Message::Records(batch) = message else { panic!("{message:?}") };
            messages.push(batch.iter().map(|record| record.sequence.0).collect());
        }
        messages
    }

    fn push(queue: &mut RecordQueue, kinds: &[RecordKind]) {
        for kind in kinds {
            queue.push(*kind, b"{}".to_vec());
        }
    }

    use RecordKind::{Alert, Flow};

    #[test]
    fn records_of_both_lanes_are_sent_in_the_order_of_their_numbers() {
        let mut queue = RecordQueue::new(1 << 20);
        push(&mut queue, &[Flow, Alert, Flow, Flow, Alert]);
        assert_eq!(sent(&mut queue), [[1, 2, 3, 4, 5]]);
        assert_eq!(sent(&mut queue), [[0u64; 0]; 0]);
        push(&mut queue, &[Flow]);
        assert_eq!(sent(&mut queue), [[6]]);
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_under_the_same_numbers() {
        let mut queue = RecordQueue::new(1 << 20);
        push(&mut queue, &[Flow, Alert, Flow]);
        sent(&mut queue);
        assert!(queue.acknowledge(Sequence(1)));
        queue.rewind();
        assert_eq!(sent(&mut queue), [[2, 3]]);
        assert!(queue.acknowledge(Sequence(3)));
        assert!(queue.is_empty());
        assert_eq!(queue.bytes, 0);
        assert_eq!(queue.delivery().to_ledger().acknowledged, 3);
    }

    #[test]
    fn a_full_queue_gives_up_the_oldest_flows_and_keeps_the_alerts() {
        let mut queue = RecordQueue::new(4 * (OVERHEAD + 2));
        push(&mut queue, &[Alert, Flow, Flow, Alert, Flow, Flow]);
        assert_eq!(queue.delivery().lost(LossReason::QueueFull), 2);
        // A batch ends where the numbers have a hole.
        assert_eq!(sent(&mut queue), [vec![1], vec![4, 5, 6]]);
        push(&mut queue, &[Alert, Alert, Alert]);
        queue.rewind();
        assert_eq!(sent(&mut queue), [vec![4], vec![7, 8, 9]]);
        assert_eq!(queue.delivery().in_flight(), 4);
    }

    #[test]
    fn giving_up_a_sent_record_does_not_send_others_twice() {
        let mut queue = RecordQueue::new(3 * (OVERHEAD + 2));
        push(&mut queue, &[Flow, Flow, Flow]);
        sent(&mut queue);
        push(&mut queue, &[Flow]);
        assert_eq!(sent(&mut queue), [[4]]);
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let mut queue = RecordQueue::new(1 << 20);
        push(&mut queue, &[Flow]);
        assert!(!queue.acknowledge(Sequence(2)));
        assert!(!BatchesInFlight::new().acknowledge(Sequence(1)));
    }

    #[test]
    fn a_record_beyond_the_limit_of_the_format_is_counted_and_not_queued() {
        let mut queue = RecordQueue::new(1 << 30);
        queue.push(Flow, vec![b' '; MAX_RECORD + 1]);
        assert_eq!(queue.delivery().lost(LossReason::TooLong), 1);
        assert!(queue.is_empty());
    }
}
