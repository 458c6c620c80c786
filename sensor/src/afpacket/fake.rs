//! A ring in plain memory, with the kernel's side of it: tests drive the walk without a kernel.

use std::alloc::{self, Layout};
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{sockaddr_ll, tpacket_block_desc, tpacket_hdr_v1, tpacket3_hdr};

/// Bytes from a frame's header to the frame, as the kernel lays them out with 4 bytes of reserve.
pub(super) const MAC_OFFSET: usize = 86;
const FIRST_FRAME: usize = 48;

/// Memory of a ring, aligned like that of mmap.
pub(super) struct FakeRing {
    start: NonNull<u8>,
    layout: Layout,
    block_bytes: usize,
}

// SAFETY: this is memory behind a pointer; every access is unsafe and follows the status words.
unsafe impl Send for FakeRing {}
// SAFETY: as above; shared access happens through the atomic status words first.
unsafe impl Sync for FakeRing {}

/// What the fake kernel puts into a block.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeFrame {
    pub(super) data: Vec<u8>,
    pub(super) wire_len: u32,
    pub(super) seconds: u32,
    pub(super) nanoseconds: u32,
    pub(super) status: u32,
    pub(super) vlan: (u16, u16),
    pub(super) packet_type: u8,
    /// Index and ARPHRD_ number.
    pub(super) interface: (u32, u16),
}

impl FakeFrame {
    pub(super) fn whole(data: &[u8]) -> Self {
        let wire_len = u32::try_from(data.len()).unwrap();
        let interface = (3, libc::ARPHRD_ETHER);
        Self { data: data.to_vec(), wire_len, interface, ..Self::default() }
    }
}

impl FakeRing {
    pub(super) fn new(block_bytes: usize, block_count: usize) -> Self {
        let layout = Layout::from_size_align(block_bytes * block_count, 4096).unwrap();
        // SAFETY: the tests ask for at least one block, so the size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).unwrap();
        Self { start, layout, block_bytes }
    }

    pub(super) fn block(&self, index: usize) -> NonNull<u8> {
        assert!((index + 1) * self.block_bytes <= self.layout.size());
        // SAFETY: within the allocation (asserted above).
        unsafe { self.start.add(index * self.block_bytes) }
    }

    pub(super) fn status(&self, index: usize) -> &AtomicU32 {
        let descriptor = self.block(index).cast::<tpacket_block_desc>().as_ptr();
        // SAFETY: aligned and valid memory of the block; only atomics touch this word after `new`.
        unsafe { AtomicU32::from_ptr(&raw mut (*descriptor).hdr.bh1.block_status) }
    }

    pub(super) fn hand_over(&self, index: usize) {
        self.status(index).store(libc::TP_STATUS_USER, Ordering::Release);
    }

    /// Writes any bytes over a block that the kernel owns; the status word keeps its value.
    pub(super) fn overwrite(&self, index: usize, offset: usize, bytes: &[u8]) {
        assert_eq!(self.status(index).load(Ordering::Acquire), libc::TP_STATUS_KERNEL);
        assert!(offset + bytes.len() <= self.block_bytes);
        // SAFETY: within the block (asserted above), which the reader does not touch: it is the kernel's.
        unsafe { self.block(index).add(offset).as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
        self.status(index).store(libc::TP_STATUS_KERNEL, Ordering::Relaxed);
    }

    /// Fills a block as the kernel does, without handing it over. Returns the offsets of the headers.
    pub(super) fn fill(&self, index: usize, frames: &[FakeFrame]) -> Vec<usize> {
        let mut offsets = Vec::new();
        let mut offset = FIRST_FRAME;
        for (number, frame) in frames.iter().enumerate() {
            let length = (MAC_OFFSET + frame.data.len()).next_multiple_of(16);
            let next = if number + 1 < frames.len() { length } else { 0 };
            offsets.push(offset);
            self.put_header(index, offset, frame, u32::try_from(next).unwrap());
            self.overwrite(index, offset + MAC_OFFSET, &frame.data);
            offset += length;
        }
        let count = u32::try_from(frames.len()).unwrap();
        self.put(index, 8 + offset_of!(tpacket_hdr_v1, num_pkts), count);
        self.put(index, 8 + offset_of!(tpacket_hdr_v1, offset_to_first_pkt), 48);
        offsets
    }

    fn put_header(&self, index: usize, at: usize, frame: &FakeFrame, next: u32) {
        let captured = u32::try_from(frame.data.len()).unwrap();
        let fields = [
            (offset_of!(tpacket3_hdr, tp_next_offset), next),
            (offset_of!(tpacket3_hdr, tp_sec), frame.seconds),
            (offset_of!(tpacket3_hdr, tp_nsec), frame.nanoseconds),
            (offset_of!(tpacket3_hdr, tp_snaplen), captured),
            (offset_of!(tpacket3_hdr, tp_len), frame.wire_len),
            (offset_of!(tpacket3_hdr, tp_status), frame.status),
            (offset_of!(tpacket3_hdr, tp_mac), MAC_OFFSET as u32),
            (offset_of!(tpacket3_hdr, hv1.tp_vlan_tci), u32::from(frame.vlan.1)),
            (offset_of!(tpacket3_hdr, hv1.tp_vlan_tpid), u32::from(frame.vlan.0)),
        ];
        for (field, value) in fields {
            self.put(index, at + field, value);
        }
        let address = at + 48;
        let (interface, hardware) = frame.interface;
        self.put(index, address + offset_of!(sockaddr_ll, sll_ifindex), interface);
        let hardware_at = address + offset_of!(sockaddr_ll, sll_hatype);
        self.overwrite(index, hardware_at, &hardware.to_ne_bytes());
        let packet_type = address + offset_of!(sockaddr_ll, sll_pkttype);
        self.overwrite(index, packet_type, &[frame.packet_type]);
    }

    /// Writes one word into a block that the kernel owns.
    pub(super) fn put(&self, index: usize, offset: usize, value: u32) {
        self.overwrite(index, offset, &value.to_ne_bytes());
    }
}

impl Drop for FakeRing {
    fn drop(&mut self) {
        // SAFETY: pointer and layout are those of the allocation in `new`.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}
