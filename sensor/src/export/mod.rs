//! Frames on their way out: chosen by conversation, copied once into pooled batches.
//!
//! ```text
//!            filled batches ─────────▶
//!   worker                              uplink
//!            ◀───────── empty batches
//! ```
//!
//! The batches are made at start and go round for ever. Both rings hold all batches of the worker, so
//! neither can be full. While few are left, less of each frame is taken, and of fewer conversations: see
//! `pressure`. When no empty batch is left the frame is counted as `pool_empty` and forgotten. The
//! worker never waits.

mod pressure;

use packet::frame::Frame;
use packet::{FiveTuple, Packet};
use wire::frames::FrameBatchWriter;
use wire::units::{UnixNanos, WireLen};

use crate::config::{Export, ExportFrames};
use crate::counters::{InterfaceCounters, WorkerCounters};
use crate::uplink::BatchRing;

pub use self::pressure::Level;
use self::pressure::Pressure;

/// A worker's end of the batch cycle.
pub struct Exporter {
    selection: Selection,
    /// Bytes of a frame, where there is no pressure.
    snaplen: u32,
    /// Batches of the pool.
    batches: usize,
    pressure: Pressure,
    /// Of the current batch.
    level: Level,
    current: Option<FrameBatchWriter>,
    filled: rtrb::Producer<FrameBatchWriter>,
    empty: EmptyBatches,
}

/// The empty batches of a worker. The one that came back last is filled first: it is still in the cache, while
/// the others of a pool of many MiB are not.
struct EmptyBatches {
    /// Those that the uplink gave back.
    returned: rtrb::Consumer<FrameBatchWriter>,
    /// Has room for the whole pool.
    stack: Vec<FrameBatchWriter>,
}

impl EmptyBatches {
    fn len(&self) -> usize {
        self.stack.len() + self.returned.slots()
    }

    fn pop(&mut self) -> Option<FrameBatchWriter> {
        while let Ok(batch) = self.returned.pop() {
            self.stack.push(batch);
        }
        self.stack.pop()
    }
}

/// What becomes of a frame that is wanted.
enum Fate {
    /// It is in a batch.
    Exported,
    /// Its conversation is left out while the collector is slow.
    Degraded,
    /// There is no batch for it.
    PoolEmpty,
}

/// Which frames are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    frames: ExportFrames,
    key: u64,
}

impl Selection {
    /// The configured selection; `key` seeds the hash of conversations and is the same in all
    /// workers, so that a conversation that is spread over them stays whole.
    #[must_use]
    pub const fn new(frames: ExportFrames, key: u64) -> Self {
        Self { frames, key }
    }

    /// One conversation in so many is exported; 1 is all.
    #[must_use]
    pub const fn one_in(&self) -> u32 {
        match self.frames {
            ExportFrames::OneIn(one_in) => one_in,
            ExportFrames::None | ExportFrames::All => 1,
        }
    }

    #[inline]
    fn wants(&self, packet: &Packet) -> bool {
        match self.frames {
            ExportFrames::None => false,
            ExportFrames::All => true,
            ExportFrames::OneIn(one_in) => self.is_one_in(one_in, packet),
        }
    }

    /// Of so many conversations, is this one of those that are chosen? Those that are chosen of more are among them,
    /// where `one_in` divides the other number.
    #[inline]
    fn is_one_in(&self, one_in: u32, packet: &Packet) -> bool {
        conversation(packet).flow_hash(self.key).is_multiple_of(u64::from(one_in))
    }
}

/// The tuple by which a packet is chosen. Only the first fragment of a datagram has ports, and over IPv6
/// maybe the protocol; without them all its fragments go the same way.
#[inline]
fn conversation(packet: &Packet) -> FiveTuple {
    let tuple = packet.tuple;
    if !packet.is_fragment {
        return tuple;
    }
    FiveTuple { source: tuple.source, target: tuple.target, ..FiveTuple::default() }
}

impl Exporter {
    /// A worker's end and the uplink's end of a cycle of batches that take `pool_bytes` together (at
    /// least two batches).
    #[must_use]
    pub fn new(export: &Export, key: u64, pool_bytes: usize) -> (Self, BatchRing) {
        let batches = (pool_bytes / FrameBatchWriter::CAPACITY).max(2);
        let (filled_in, filled_out) = rtrb::RingBuffer::new(batches);
        let (empty_in, empty_out) = rtrb::RingBuffer::new(batches);
        let selection = Selection::new(export.frames, key);
        let make = || FrameBatchWriter::new(selection.one_in(), export.snaplen);
        let empty =
            EmptyBatches { returned: empty_out, stack: (0..batches).map(|_| make()).collect() };
        let worker = Self {
            selection,
            snaplen: export.snaplen,
            batches,
            pressure: Pressure::default(),
            level: Level::default(),
            current: None,
            filled: filled_in,
            empty,
        };
        (worker, BatchRing { filled: filled_out, empty: empty_in })
    }

    /// Takes the frames of one vector that are wanted, and counts what became of each.
    #[inline]
    pub fn take(
        &mut self,
        frames: &[Frame<'_>],
        packets: &[Packet],
        counters: &InterfaceCounters,
        is_own: impl Fn(&FiveTuple) -> bool,
    ) {
        if matches!(self.selection.frames, ExportFrames::None) {
            counters.not_selected.add(frames.len() as u64);
            return;
        }
        for (frame, packet) in frames.iter().zip(packets) {
            let counter = if !self.selection.wants(packet) {
                &counters.not_selected
            } else if is_own(&packet.tuple) {
                &counters.own_uplink
            } else {
                match self.export(frame, packet) {
                    Fate::Exported => &counters.exported,
                    Fate::Degraded => &counters.lost_degraded,
                    Fate::PoolEmpty => &counters.lost_pool_empty,
                }
            };
            counter.add(1);
        }
    }

    /// Hands over what lies in a batch that is not full, so that it does not grow old.
    pub fn flush(&mut self) {
        if self.current.as_ref().is_some_and(|batch| !batch.is_empty()) {
            self.hand_over();
        }
    }

    /// Some time has passed. Hands over what lies in a batch that is not full, and decides anew how much is
    /// exported: where nobody is of a conversation that is left, no batch would ever begin.
    pub fn tick(&mut self, now: UnixNanos, counters: &WorkerCounters) {
        self.flush();
        if let Some(batch) = self.current.take().or_else(|| self.empty.pop()) {
            self.begin(batch, now);
        }
        counters.export_level.set(self.level as u64);
    }

    /// Makes sure that there is a batch to write to. Its first frame is of the time `now`.
    #[inline]
    fn begin_batch(&mut self, now: UnixNanos) -> bool {
        if self.current.is_some() {
            return true;
        }
        let Some(batch) = self.empty.pop() else { return false };
        self.begin(batch, now);
        true
    }

    /// Begins with an empty batch.
    fn begin(&mut self, mut batch: FrameBatchWriter, now: UnixNanos) {
        self.level = self.pressure.at_batch(self.empty.len() + 1, self.batches, now);
        let one_in = self.selection.one_in().saturating_mul(self.level.one_in());
        batch.set_rate(one_in, self.level.snaplen(self.snaplen));
        self.current = Some(batch);
    }

    /// Is this wanted frame of one of the conversations that the level of the current batch leaves?
    #[inline]
    fn is_in_level(&self, packet: &Packet) -> bool {
        let one_in = self.level.one_in();
        one_in == 1 || {
            let one_in = self.selection.one_in().saturating_mul(one_in);
            self.selection.is_one_in(one_in, packet)
        }
    }

    /// Copies a frame that is wanted.
    #[inline]
    fn export(&mut self, frame: &Frame<'_>, packet: &Packet) -> Fate {
        // Twice at most: a frame that does not fit into the current batch fits into an empty one, which may be
        // of another level.
        for _ in 0..2 {
            if !self.begin_batch(frame.time) {
                break;
            }
            if !self.is_in_level(packet) {
                return Fate::Degraded;
            }
            if self.current.as_mut().is_some_and(|batch| write(batch, frame)) {
                return Fate::Exported;
            }
            self.hand_over();
        }
        Fate::PoolEmpty
    }

    fn hand_over(&mut self) {
        let Some(batch) = self.current.take() else { return };
        if let Err(rtrb::PushError::Full(batch)) = self.filled.push(batch) {
            // Cannot be: the ring has room for all batches. Kept, so that not even this loses one.
            self.current = Some(batch);
        }
    }
}

/// What a worker that ends early had taken is still delivered, as it is counted.
impl Drop for Exporter {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Copies a frame, with the VLAN tag back in its place behind the two MAC addresses.
#[inline]
fn write(batch: &mut FrameBatchWriter, frame: &Frame<'_>) -> bool {
    const MAC_ADDRESSES: usize = 12;
    const TAG: u32 = 4;
    let pushed = match (frame.vlan, frame.data.split_at_checked(MAC_ADDRESSES)) {
        (Some(vlan), Some((addresses, rest))) => {
            let [p0, p1] = vlan.protocol.to_be_bytes();
            let [c0, c1] = vlan.control.to_be_bytes();
            let wire_len = WireLen(frame.wire_len.0.saturating_add(TAG));
            batch.try_push(
                frame.time,
                wire_len,
                frame.interface,
                &[addresses, &[p0, p1, c0, c1], rest],
            )
        }
        _ => batch.try_push(frame.time, frame.wire_len, frame.interface, &[frame.data]),
    };
    pushed.is_ok()
}

#[cfg(test)]
mod tests {
    use wire::frames::FrameBatch;
    use wire::header::HEADER_LEN;
    use wire::units::{Sequence, UnixNanos};

    use super::*;
    use crate::counters::Counter;
    use packet::frame::{LinkType, VlanTag};
    use packet::{Address, Kind, protocol};

    fn frame(data: &[u8], vlan: Option<VlanTag>) -> Frame<'_> {
        let wire_len = WireLen(data.len() as u32);
        Frame { data, wire_len, time: UnixNanos(1), vlan, link: LinkType::ETHERNET, interface: 0 }
    }

    fn packet(source_port: u16) -> Packet {
        let tuple = FiveTuple {
            source: Address::from_v4([192, 0, 2, 1]),
            target: Address::from_v4([192, 0, 2, 2]),
            source_port,
            target_port: 80,
            protocol: protocol::TCP,
        };
        Packet { tuple, kind: Kind::Udp, ..Packet::default() }
    }

    fn exporter(frames: ExportFrames, pool_bytes: usize) -> (Exporter, BatchRing) {
        Exporter::new(&Export { frames, snaplen: 65_535, pool_mib: 1 }, 7, pool_bytes)
    }

    fn sent(cycle: &mut BatchRing) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Ok(mut batch) = cycle.filled.pop() {
            let bytes = &batch.finish(Sequence(1))[HEADER_LEN..];
            let parsed = FrameBatch::parse(Sequence(1), bytes).unwrap();
            frames.extend(parsed.iter().map(|frame| frame.data.to_vec()));
            batch.clear();
            cycle.empty.push(batch).unwrap();
        }
        frames
    }

    #[test]
    fn the_vlan_tag_is_put_back_where_the_kernel_took_it() {
        let (mut exporter, mut cycle) = exporter(ExportFrames::All, 0);
        let bytes: Vec<u8> = (0..20).collect();
        let tag = VlanTag { protocol: 0x88a8, control: 0x2064 };
        let counters = InterfaceCounters::default();
        exporter.take(&[frame(&bytes, Some(tag))], &[packet(1)], &counters, |_| false);
        exporter.flush();
        let expected = [&bytes[..12], &[0x88, 0xa8, 0x20, 0x64], &bytes[12..]].concat();
        assert_eq!(sent(&mut cycle), [expected]);
    }

    #[test]
    fn every_frame_ends_in_one_counter_also_when_no_batch_is_left() {
        let (mut exporter, mut cycle) = exporter(ExportFrames::All, 0);
        let bytes = vec![0; 1500];
        let counters = InterfaceCounters::default();
        for _ in 0..100 {
            exporter.take(&[frame(&bytes, None)], &[packet(1)], &counters, |_| false);
        }
        exporter.take(&[frame(&bytes, None)], &[packet(1)], &counters, |_| true);
        exporter.flush();
        let (exported, lost) = (counters.exported.read(), counters.lost_pool_empty.read());
        assert_eq!((exported + lost, counters.own_uplink.read()), (100, 1));
        assert!(lost > 0 && exported > 0, "{exported} exported, {lost} lost");
        assert_eq!(sent(&mut cycle).len() as u64, exported);
        exporter.take(&[frame(&bytes, None)], &[packet(1)], &counters, |_| false);
        assert_eq!(counters.exported.read(), exported + 1, "batches go round");
    }

    #[test]
    fn a_slow_uplink_gets_less_of_each_frame_then_fewer_conversations_and_each_batch_says_so() {
        let pool = 40 * FrameBatchWriter::CAPACITY;
        let (mut exporter, mut cycle) = exporter(ExportFrames::All, pool);
        let bytes = vec![0; 1500];
        let counters = InterfaceCounters::default();
        let mut sent = 0;
        for port in 0..65_535_u16 {
            exporter.take(&[frame(&bytes, None)], &[packet(port)], &counters, |_| false);
            sent += 1;
            if counters.lost_pool_empty.read() > 0 {
                break;
            }
        }
        let [exported, degraded] = [&counters.exported, &counters.lost_degraded].map(Counter::read);
        assert_eq!(exported + degraded + counters.lost_pool_empty.read(), sent);
        let mut rates = Vec::new();
        let mut kept = 0;
        while let Ok(mut batch) = cycle.filled.pop() {
            let bytes = &batch.finish(Sequence(1))[HEADER_LEN..];
            let parsed = FrameBatch::parse(Sequence(1), bytes).unwrap();
            assert!(parsed.iter().all(|frame| frame.data.len() as u32 == parsed.snaplen.min(1500)));
            kept += u64::from(parsed.len());
            rates.push((parsed.snaplen, parsed.sample_one_in));
            batch.clear();
            cycle.empty.push(batch).unwrap();
        }
        assert_eq!(kept, exported);
        rates.dedup();
        assert_eq!(rates, [(65_535, 1), (256, 1), (256, 8), (128, 8)]);
        let share = exported as f64 / (exported + degraded) as f64;
        assert!((0.1..0.5).contains(&share), "{exported} of {sent}");
    }

    #[test]
    fn where_no_conversation_is_left_time_alone_brings_all_of_them_back() {
        let pool = 40 * FrameBatchWriter::CAPACITY;
        let (mut exporter, mut cycle) = exporter(ExportFrames::All, pool);
        let bytes = vec![0; 1500];
        let (counters, worker) = (InterfaceCounters::default(), WorkerCounters::default());
        // One that is left out when fewer are exported.
        let left_out = (0..).map(packet).find(|packet| !exporter.selection.is_one_in(8, packet));
        let left_out = left_out.unwrap();
        while counters.lost_degraded.read() == 0 {
            exporter.take(&[frame(&bytes, None)], &[left_out], &counters, |_| false);
        }
        while let Ok(mut batch) = cycle.filled.pop() {
            batch.clear();
            cycle.empty.push(batch).unwrap();
        }
        for second in 1..=4 {
            exporter.tick(UnixNanos(second * 2_000_000_000), &worker);
        }
        assert_eq!(worker.export_level.read(), Level::Whole as u64);
        let exported = counters.exported.read();
        exporter.take(&[frame(&bytes, None)], &[left_out], &counters, |_| false);
        assert_eq!(counters.exported.read(), exported + 1);
    }

    #[test]
    fn a_panic_amid_frames_costs_only_those_that_were_not_decided() {
        let (mut exporter, mut cycle) = exporter(ExportFrames::All, 0);
        let bytes: Vec<Vec<u8>> = (0..10).map(|number| vec![number; 60]).collect();
        let frames: Vec<_> = bytes.iter().map(|bytes| frame(bytes, None)).collect();
        let packets: Vec<_> = (0..10).map(packet).collect();
        let counters = InterfaceCounters::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let is_own = |tuple: &FiveTuple| {
                assert_ne!(tuple.source_port, 4, "on purpose");
                false
            };
            exporter.take(&frames, &packets, &counters, is_own);
        }));
        assert!(panicked.is_err());
        assert_eq!(counters.exported.read(), 4);
        // The worker goes on with the same exporter.
        exporter.take(&frames[8..], &packets[8..], &counters, |_| false);
        exporter.flush();
        assert_eq!(counters.exported.read(), 6);
        let expected = [&bytes[..4], &bytes[8..]].concat();
        assert_eq!(sent(&mut cycle), expected);
    }

    #[test]
    fn a_sample_keeps_both_directions_and_all_fragments_of_a_conversation() {
        let selection = Selection::new(ExportFrames::OneIn(8), 99);
        let mut chosen = 0;
        for port in 0..8000 {
            let there = packet(port);
            let back = Packet { tuple: there.tuple.reversed(), ..there };
            assert_eq!(selection.wants(&there), selection.wants(&back));
            // Behind destination options, the protocol is told by the first fragment alone.
            let first = Packet { is_fragment: true, ..there };
            let tuple = FiveTuple { source_port: 0, target_port: 0, protocol: 60, ..there.tuple };
            let later = Packet { tuple, kind: Kind::LaterFragment, ..first };
            assert_eq!(selection.wants(&first), selection.wants(&later));
            chosen += u32::from(selection.wants(&there));
        }
        assert!((800..1200).contains(&chosen), "{chosen} of 8000 conversations for one in 8");
    }
}
