//! One block of a ring: the right to read it, and the checked walk over its frames.
//!
//! ```text
//!   block  ┌──────────────────┐ 0
//!          │ tpacket_block_desc  status, num_pkts, offset_to_first_pkt
//!          ├──────────────────┤ offset_to_first_pkt
//!          │ tpacket3_hdr     │ tp_next_offset to the next one, tp_mac, tp_snaplen
//!          │ sockaddr_ll      │ interface, hardware, direction
//!          │ (gap)            │
//!          │ frame            │ at tp_mac, tp_snaplen bytes
//!          ├──────────────────┤ + tp_next_offset
//!          │ tpacket3_hdr ... │
//!          └──────────────────┘ block size
//! ```

use std::cell::Cell;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{
    sockaddr_ll, tpacket_bd_ts, tpacket_block_desc, tpacket_hdr_v1, tpacket_hdr_variant1,
    tpacket3_hdr,
};
use packet::frame::{Frame, VlanTag};
use wire::units::{UnixNanos, WireLen};

use super::interface;

/// Where `sockaddr_ll` lies behind a frame's header.
const ADDRESS_OFFSET: usize = 48;
/// Bytes that the kernel puts in front of every frame, at least.
const FRAME_HEADER_BYTES: usize = ADDRESS_OFFSET + size_of::<sockaddr_ll>();
/// Bytes in front of a block's first frame, at least.
const BLOCK_HEADER_BYTES: usize = size_of::<tpacket_block_desc>();

// The layouts of include/uapi/linux/if_packet.h, which is a stable interface of the kernel.
const _: () = {
    assert!(usize::BITS >= 64, "sums of offsets, which have 32 bits, must not overflow");
    assert!(size_of::<tpacket3_hdr>() == ADDRESS_OFFSET);
    assert!(offset_of!(tpacket3_hdr, tp_next_offset) == 0 && offset_of!(tpacket3_hdr, tp_sec) == 4);
    assert!(offset_of!(tpacket3_hdr, tp_nsec) == 8 && offset_of!(tpacket3_hdr, tp_len) == 16);
    assert!(offset_of!(tpacket3_hdr, tp_status) == 20);
    assert!(offset_of!(tpacket3_hdr, tp_snaplen) == 12 && offset_of!(tpacket3_hdr, tp_mac) == 24);
    assert!(offset_of!(tpacket3_hdr, hv1) == 28);
    assert!(offset_of!(tpacket_hdr_variant1, tp_vlan_tci) == 4);
    assert!(offset_of!(tpacket_hdr_variant1, tp_vlan_tpid) == 8);
    assert!(BLOCK_HEADER_BYTES == 48 && offset_of!(tpacket_block_desc, hdr) == 8);
    assert!(offset_of!(tpacket_hdr_v1, block_status) == 0);
    assert!(offset_of!(tpacket_hdr_v1, num_pkts) == 4);
    assert!(offset_of!(tpacket_hdr_v1, offset_to_first_pkt) == 8);
    assert!(offset_of!(tpacket_hdr_v1, blk_len) == 12);
    assert!(offset_of!(tpacket_hdr_v1, seq_num) == 16);
    assert!(offset_of!(tpacket_hdr_v1, ts_last_pkt) == 32 && size_of::<tpacket_bd_ts>() == 8);
    assert!(size_of::<sockaddr_ll>() == 20 && offset_of!(sockaddr_ll, sll_ifindex) == 4);
    assert!(offset_of!(sockaddr_ll, sll_hatype) == 8);
    assert!(offset_of!(sockaddr_ll, sll_pkttype) == 10);
};

/// What the blocks of a ring brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Frames in the blocks that were granted, by the blocks' own count where that is possible.
    pub(super) claimed: u64,
    /// Of those: frames that could not be read.
    pub(super) corrupt: u64,
    /// Frames that nobody looked at before the account was closed.
    pub(super) unread: u64,
    /// Blocks in which something could not be read.
    pub(super) corrupt_blocks: u64,
    /// Blocks that the kernel handed over because no further frame had room.
    pub(super) full: u64,
    /// Blocks that the kernel handed over because their time was up.
    pub(super) timed_out: u64,
    /// Frames that were cut.
    pub(super) cut: Cut,
}

/// Frames that were longer than a block, and lost their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// How many.
    pub frames: u64,
    /// Length of the longest on the wire, in bytes.
    pub longest_bytes: u32,
}

/// The right to read one block. Dropping it gives the block back to the kernel.
///
/// Belongs to the thread that reads the ring, as do the frames in it:
///
/// ```compile_fail
/// fn needs_send<T: Send>() {}
/// needs_send::<sensor::afpacket::Block<'static>>();
/// ```
#[derive(Debug)]
pub struct Block<'ring> {
    start: NonNull<u8>,
    bytes: usize,
    claimed: u32,
    /// Set by the last walk; added to the tally on drop.
    walk: Cell<Walk>,
    tally: &'ring mut Tally,
}

/// What a walk over a block met.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    /// Frames that could not be read.
    corrupt: u32,
    cut: Cut,
}

impl<'ring> Block<'ring> {
    /// Takes the block at `start` if the kernel has released it.
    ///
    /// # Safety
    /// `start` is aligned to 8 and valid for reads and writes of `bytes` bytes during `'ring`, and
    /// `bytes` is at least [`BLOCK_HEADER_BYTES`]. While its status has the bit TP_STATUS_USER, nobody
    /// else writes to it, and no other `Block` of it exists.
    #[inline]
    pub(super) unsafe fn take(
        start: NonNull<u8>,
        bytes: usize,
        tally: &'ring mut Tally,
    ) -> Option<Self> {
        // SAFETY: the caller promises an aligned, valid block header.
        let status = unsafe { status_of(start) };
        // Acquire pairs with the write barrier before the status in the kernel's prb_flush_block():
        // whoever sees USER sees the frames that were written before it.
        let status = status.load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let header = header_of(start);
        // SAFETY: valid for reads by the caller's promise, and ours since the load above.
        let mut claimed = unsafe { (&raw const (*header).num_pkts).read() };
        if claimed as usize > (bytes - BLOCK_HEADER_BYTES) / FRAME_HEADER_BYTES {
            // More than any block can hold: nothing in it is believed. How many frames are lost with
            // it, the kernel's counters tell at the end (`Ring::settle`).
            claimed = 0;
            tally.corrupt_blocks += 1;
        }
        let has_timed_out = status & libc::TP_STATUS_BLK_TMO != 0;
        tally.timed_out += u64::from(has_timed_out);
        tally.full += u64::from(!has_timed_out);
        tally.claimed += u64::from(claimed);
        Some(Self { start, bytes, claimed, walk: Cell::default(), tally })
    }

    /// The kernel has released the block at `start`, and may be about to take it back.
    ///
    /// # Safety
    /// `start` is aligned to 8 and valid for reads and writes of a block header.
    #[inline]
    pub(super) unsafe fn is_released(start: NonNull<u8>) -> bool {
        // SAFETY: the caller promises an aligned, valid block header.
        let status = unsafe { status_of(start) };
        // Relaxed: nothing is read on the strength of it.
        status.load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0
    }

    /// When the newest frame of the block was seen: the time that passes until now is the delay of
    /// the ring. In a block without frames: when it was closed.
    #[inline]
    #[must_use]
    pub fn last_frame(&self) -> UnixNanos {
        let header = header_of(self.start);
        // SAFETY: valid for reads by the promise of `take`, and ours while `self` lives.
        let time = unsafe { (&raw const (*header).ts_last_pkt).read() };
        // The kernel's structure calls the member ts_usec or ts_nsec; TPACKET_V3 has nanoseconds.
        UnixNanos(u64::from(time.ts_sec) * 1_000_000_000 + u64::from(time.ts_usec))
    }

    /// How many frames the block claims to hold.
    #[must_use]
    pub fn claimed(&self) -> u32 {
        self.claimed
    }

    /// The frames, in the order of their arrival. Ends early at the first thing that cannot be read;
    /// that frame and those behind it count as corrupt.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> Frames<'_> {
        let header = header_of(self.start);
        // SAFETY: valid for reads by the promise of `take`, and ours while `self` lives.
        let first = unsafe { (&raw const (*header).offset_to_first_pkt).read() } as usize;
        self.walk.set(Walk::default());
        let mut frames = Frames {
            start: self.start,
            bytes: self.bytes,
            offset: first,
            left: self.claimed,
            walk: &self.walk,
            block: PhantomData,
        };
        if first < BLOCK_HEADER_BYTES && frames.left > 0 {
            frames.give_up();
        }
        frames
    }
}

impl Drop for Block<'_> {
    /// Gives the block back to the kernel.
    #[inline]
    fn drop(&mut self) {
        let Walk { corrupt, cut } = self.walk.get();
        self.tally.corrupt += u64::from(corrupt);
        self.tally.corrupt_blocks += u64::from(corrupt > 0);
        self.tally.cut.frames += cut.frames;
        self.tally.cut.longest_bytes = self.tally.cut.longest_bytes.max(cut.longest_bytes);
        // SAFETY: the promise of `take` holds while `self` lives.
        let status = unsafe { status_of(self.start) };
        // Release: all our reads of the block come before this store, which the kernel's
        // prb_curr_blk_in_use() waits for before it writes into the block again.
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// Walks over the frames of a block. Always ends, and never leaves the block, whatever is in it.
#[derive(Debug)]
pub struct Frames<'block> {
    start: NonNull<u8>,
    bytes: usize,
    offset: usize,
    left: u32,
    walk: &'block Cell<Walk>,
    block: PhantomData<&'block [u8]>,
}

impl Frames<'_> {
    /// Nothing behind this point can be found.
    #[cold]
    fn give_up(&mut self) {
        self.walk.set(Walk { corrupt: self.left, ..self.walk.get() });
        self.left = 0;
    }

    /// The frame was longer than a block.
    #[cold]
    fn note_cut(&self, wire_bytes: u32) {
        let mut walk = self.walk.get();
        walk.cut.frames += 1;
        walk.cut.longest_bytes = walk.cut.longest_bytes.max(wire_bytes);
        self.walk.set(walk);
    }
}

impl<'block> Iterator for Frames<'block> {
    type Item = Captured<'block>;

    #[inline]
    fn next(&mut self) -> Option<Captured<'block>> {
        if self.left == 0 {
            return None;
        }
        // A sum of two u32 and a u16 at most, so nothing below can overflow.
        if self.offset + FRAME_HEADER_BYTES > self.bytes {
            self.give_up();
            return None;
        }
        // SAFETY: `offset` + FRAME_HEADER_BYTES lies in the block (checked above), which is valid for
        // reads while the `Block` behind 'block lives; read_unaligned asks for no alignment.
        let (header, address) = unsafe {
            let at = self.start.add(self.offset);
            let address = at.add(ADDRESS_OFFSET).cast::<sockaddr_ll>();
            (at.cast::<tpacket3_hdr>().read_unaligned(), address.read_unaligned())
        };
        let mac = usize::from(header.tp_mac);
        let captured = header.tp_snaplen as usize;
        let end = self.offset + mac + captured;
        let plausible = (mac >= FRAME_HEADER_BYTES)
            & (end <= self.bytes)
            & (header.tp_snaplen <= header.tp_len);
        if !plausible {
            self.give_up();
            return None;
        }
        // SAFETY: offset + mac + captured <= bytes (checked above), so the slice lies in the block;
        // nobody writes to the block while the `Block` behind 'block lives.
        let data =
            unsafe { slice::from_raw_parts(self.start.add(self.offset + mac).as_ptr(), captured) };
        // The kernel cuts what is longer than a block at exactly this length, and says so nowhere.
        if mac + captured == self.bytes - BLOCK_HEADER_BYTES && header.tp_snaplen < header.tp_len {
            self.note_cut(header.tp_len);
        }
        self.advance(header.tp_next_offset as usize);
        Some(Captured {
            frame: frame(data, &header, &address),
            packet_type: address.sll_pkttype,
            interface_index: address.sll_ifindex.cast_unsigned(),
        })
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, usize::try_from(self.left).ok())
    }
}

impl FusedIterator for Frames<'_> {}

impl Frames<'_> {
    /// Steps to the next header. It must lie behind this one, so that every walk ends.
    #[inline]
    fn advance(&mut self, next_offset: usize) {
        self.left -= 1;
        self.offset += next_offset;
        self.prefetch(next_offset);
        if next_offset < FRAME_HEADER_BYTES && self.left > 0 {
            self.give_up();
        }
    }
}

impl Frames<'_> {
    /// Asks for the lines of a header some frames on, while this frame is worked on: short frames lie
    /// densely, so a fixed distance finds them; long ones are guessed to be as long as this one.
    ///
    /// Measured on 2026-11-21 with the example `capture_cost` (2 cores of a Xeon VM, kernel 6.18), ns
    /// per frame without and with it: 64 bytes 25 and 14, 1500 bytes 96 and 66.
    #[inline]
    fn prefetch(&self, next_offset: usize) {
        const SHORT: usize = 512;
        const SHORT_DISTANCE: usize = 3072;
        const LONG_FRAMES: usize = 3;
        const HEADER_LINES: usize = 3; // ring header, link, network and transport header
        let distance = if next_offset < SHORT { SHORT_DISTANCE } else { LONG_FRAMES * next_offset };
        let at = self.start.as_ptr().wrapping_add(self.offset + distance);
        for line in 0..HEADER_LINES {
            prefetch_line(at.wrapping_add(line * 64));
        }
    }
}

/// A hint to load a cache line; any address will do.
#[inline]
fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it never faults, reads no value and writes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[inline]
fn frame<'block>(
    data: &'block [u8],
    header: &tpacket3_hdr,
    address: &sockaddr_ll,
) -> Frame<'block> {
    Frame {
        data,
        wire_len: WireLen(header.tp_len),
        time: UnixNanos(u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec)),
        vlan: vlan(header),
        // A type of hardware that `Interface::find` refuses has a link type that no parser knows.
        link: interface::link_type(address.sll_hatype).unwrap_or(interface::UNKNOWN_LINK),
        interface: 0,
    }
}

/// The outer tag, which the kernel always moves out of the bytes. Its presence is in the status: a
/// priority tag has the control word 0. Kernels before 3.14 do not give the protocol.
#[inline]
fn vlan(header: &tpacket3_hdr) -> Option<VlanTag> {
    const DOT1Q: u16 = 0x8100;
    if header.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let has_protocol = header.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let protocol = if has_protocol { header.hv1.tp_vlan_tpid } else { DOT1Q };
    Some(VlanTag { protocol, control: header.hv1.tp_vlan_tci as u16 })
}

/// One frame of a block, with what only the ring knows about it.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'block> {
    /// The frame, borrowed from the block.
    pub frame: Frame<'block>,
    /// What the kernel says of its destination and direction: a `PACKET_` number.
    pub packet_type: u8,
    /// Index of the interface that it passed.
    pub interface_index: u32,
}

impl Captured<'_> {
    /// Which way the frame went.
    #[inline]
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.packet_type == libc::PACKET_OUTGOING {
            Direction::Outgoing
        } else {
            Direction::Incoming
        }
    }
}

/// Which way a frame went, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received from the link, for whomever it was.
    Incoming,
    /// Sent by this host.
    Outgoing,
}

/// The status word of a block.
///
/// # Safety
/// `start` is aligned to 8 and valid for reads and writes of a block header during `'any`; the
/// word at its status is otherwise accessed atomically only (the kernel's accesses are).
#[inline]
unsafe fn status_of<'any>(start: NonNull<u8>) -> &'any AtomicU32 {
    let header = header_of(start);
    // SAFETY: valid and aligned by the caller's promise: the word lies at offset 8 of the block.
    unsafe { AtomicU32::from_ptr(&raw mut (*header).block_status) }
}

#[inline]
fn header_of(start: NonNull<u8>) -> *mut tpacket_hdr_v1 {
    let descriptor = start.as_ptr().cast::<tpacket_block_desc>();
    // The one member of the union begins at its offset.
    descriptor.wrapping_byte_add(offset_of!(tpacket_block_desc, hdr)).cast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::afpacket::fake::{FakeFrame, FakeRing, MAC_OFFSET};
    use packet::frame::LinkType;
    use proptest::prelude::*;

    const BYTES: usize = 4096;

    fn take<'a>(ring: &'a FakeRing, tally: &'a mut Tally) -> Option<Block<'a>> {
        // SAFETY: the fake ring is aligned memory of whole blocks that outlives the result, and no
        // test writes to a block that it handed over, or takes one twice.
        unsafe { Block::take(ring.block(0), BYTES, tally) }
    }

    fn three_frames() -> (FakeRing, Vec<usize>) {
        let ring = FakeRing::new(BYTES, 1);
        let frames = [b"first".as_slice(), b"second", b"third"].map(FakeFrame::whole);
        let offsets = ring.fill(0, &frames);
        (ring, offsets)
    }

    #[test]
    fn frames_come_in_order_with_what_the_kernel_says_of_them() {
        let ring = FakeRing::new(BYTES, 1);
        let tagged = FakeFrame {
            data: b"second".to_vec(),
            wire_len: 900,
            seconds: u32::MAX,
            nanoseconds: 999_999_999,
            status: libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID,
            vlan: (0x88a8, 0),
            packet_type: libc::PACKET_OUTGOING,
            interface: (7, libc::ARPHRD_CAN),
        };
        ring.fill(0, &[FakeFrame::whole(b"first"), tagged]);
        ring.hand_over(0);
        let mut tally = Tally::default();
        let block = take(&ring, &mut tally).unwrap();
        let frames: Vec<_> = block.frames().collect();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].frame.data, frames[0].frame.vlan), (b"first".as_slice(), None));
        assert_eq!(frames[0].direction(), Direction::Incoming);
        let Frame { data, wire_len, time, vlan, link, .. } = frames[1].frame;
        assert_eq!(
            (data, wire_len, link),
            (b"second".as_slice(), WireLen(900), interface::UNKNOWN_LINK)
        );
        assert_eq!(time, UnixNanos(4_294_967_295_999_999_999));
        assert_eq!(vlan, Some(VlanTag { protocol: 0x88a8, control: 0 }));
        assert_eq!(frames[1].direction(), Direction::Outgoing);
        assert_eq!((frames[0].interface_index, frames[1].interface_index), (3, 7));
        assert_eq!(frames[0].frame.link, LinkType::ETHERNET);
        drop(block);
        assert_eq!(tally, Tally { claimed: 2, full: 1, ..Tally::default() });
    }

    #[test]
    fn block_of_the_kernel_is_not_granted() {
        let (ring, _) = three_frames();
        let mut tally = Tally::default();
        assert!(take(&ring, &mut tally).is_none());
        ring.status(0).store(libc::TP_STATUS_LOSING, Ordering::Release);
        assert!(take(&ring, &mut tally).is_none());
        assert_eq!(tally, Tally::default());
    }

    #[test]
    fn block_returns_to_kernel_when_dropped() {
        let (ring, _) = three_frames();
        ring.hand_over(0);
        let mut tally = Tally::default();
        drop(take(&ring, &mut tally).unwrap());
        assert_eq!(ring.status(0).load(Ordering::Acquire), libc::TP_STATUS_KERNEL);
        assert!(take(&ring, &mut tally).is_none());
    }

    #[test]
    fn what_cannot_be_read_is_counted_and_skipped() {
        const COUNT: usize = 8 + offset_of!(tpacket_hdr_v1, num_pkts);
        const FIRST: usize = 8 + offset_of!(tpacket_hdr_v1, offset_to_first_pkt);
        const NEXT: usize = offset_of!(tpacket3_hdr, tp_next_offset);
        const SNAPLEN: usize = offset_of!(tpacket3_hdr, tp_snaplen);
        const LENGTH: usize = offset_of!(tpacket3_hdr, tp_len);
        const MAC: usize = offset_of!(tpacket3_hdr, tp_mac);
        let (_, headers) = three_frames();
        let second = headers[1];
        let room = u32::try_from(BYTES - second - MAC_OFFSET).unwrap();
        // Where, what, and how many frames can still be read and how many cannot.
        let cases = [
            (COUNT, 0, 0, 0),
            (COUNT, 4, 3, 1),
            (COUNT, 60, 0, 0),
            (COUNT, u32::MAX, 0, 0),
            (FIRST, 0, 0, 3),
            (FIRST, 47, 0, 3),
            (FIRST, 4096 - 67, 0, 3),
            (FIRST, u32::MAX, 0, 3),
            (second + NEXT, 0, 2, 1),
            (second + NEXT, 67, 2, 1),
            (second + NEXT, 4096, 2, 1),
            (second + NEXT, u32::MAX, 2, 1),
            (second + SNAPLEN, room + 1, 1, 2),
            (second + SNAPLEN, u32::MAX, 1, 2),
            (second + LENGTH, 5, 1, 2),
            (second + MAC, 67, 1, 2),
            (second + MAC, 0xffff, 1, 2),
        ];
        for (offset, value, readable, corrupt) in cases {
            let (ring, _) = three_frames();
            ring.put(0, offset, value);
            ring.hand_over(0);
            let mut tally = Tally::default();
            let block = take(&ring, &mut tally).unwrap();
            assert_eq!(block.frames().count(), readable, "{value} at {offset}");
            assert_eq!(block.frames().count(), readable, "walked again: {value} at {offset}");
            drop(block);
            assert_eq!(tally.corrupt, corrupt, "{value} at {offset}");
            let is_impossible = offset == COUNT && value > 59;
            assert_eq!(tally.corrupt_blocks, u64::from(corrupt > 0 || is_impossible));
            assert_eq!(tally.claimed, readable as u64 + corrupt);
        }
    }

    /// Walks a block and checks that every frame lies in it and that each claimed frame is accounted for.
    fn check(ring: &FakeRing) {
        ring.hand_over(0);
        let block_range = ring.block(0).addr().get()..ring.block(0).addr().get() + BYTES;
        let mut tally = Tally::default();
        let block = take(ring, &mut tally).unwrap();
        let mut readable = 0;
        for captured in block.frames() {
            let data = captured.frame.data.as_ptr_range();
            assert!(data.start.addr() >= block_range.start + BLOCK_HEADER_BYTES);
            assert!(data.end.addr() <= block_range.end);
            assert!(captured.frame.data.len() as u64 <= u64::from(captured.frame.wire_len.0));
            std::hint::black_box(captured.frame.data.iter().fold(0_u8, |sum, byte| sum ^ byte));
            readable += 1;
        }
        assert!(readable <= BYTES as u64 / FRAME_HEADER_BYTES as u64);
        drop(block);
        assert_eq!(tally.claimed, readable + tally.corrupt);
    }

    proptest! {
        #[test]
        fn walk_over_any_bytes_ends_inside_the_block(
            mut bytes in proptest::collection::vec(any::<u8>(), BYTES),
            first in 0_u32..200,
        ) {
            bytes[8 + offset_of!(tpacket_hdr_v1, offset_to_first_pkt)..][..4]
                .copy_from_slice(&first.to_ne_bytes());
            let ring = FakeRing::new(BYTES, 1);
            ring.overwrite(0, 0, &bytes);
            check(&ring);
        }

        #[test]
        fn walk_over_damaged_headers_ends_inside_the_block(
            sizes in proptest::collection::vec(0_usize..200, 1..14),
            damage in proptest::collection::vec((0_usize..BYTES / 4, damaged_word()), 0..6),
        ) {
            let ring = FakeRing::new(BYTES, 1);
            let frames: Vec<_> =
                sizes.iter().map(|size| FakeFrame::whole(&vec![7; *size])).collect();
            ring.fill(0, &frames);
            for (word, value) in damage {
                ring.put(0, word * 4, value);
            }
            check(&ring);
        }
    }

    /// Small numbers, numbers around the size of a block, and any.
    fn damaged_word() -> impl Strategy<Value = u32> {
        prop_oneof![0_u32..128, 4000_u32..4200, any::<u32>()]
    }
}
