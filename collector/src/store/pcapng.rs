//! The blocks of a pcapng file, little-endian. No I/O but reading, for the repair of a torn file.
//!
//! ```text
//!   section header │ interface │ enhanced packet … │ interface │ enhanced packet … │ statistics …
//!
//!   block: type u32 · length u32 · body, padded to 4 · length u32 once more
//!   enhanced packet body: interface u32 · time high u32 · time low u32 · captured u32 · on wire u32 · data
//! ```
//!
//! Source: PCAP Next Generation (pcapng) Capture File Format, draft-ietf-opsawg-pcapng, section 4.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

use wire::frames::{BatchedFrame, FrameBatch};
use wire::units::UnixNanos;

use super::blocks::StoredFrame;

/// Bytes of an enhanced packet block besides its data.
const PACKET_OVERHEAD: usize = 32;
/// Bytes of a block without body.
const BLOCK_OVERHEAD: u32 = 12;
/// Where the interface stands in an enhanced packet block.
const INTERFACE_OFFSET: usize = 8;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
pub(super) const ENHANCED_PACKET: u32 = 6;
/// Ours: numbers from 2 to the power of 31 on are for local use, and readers skip what they do not know.
pub(super) const SEGMENT_INDEX: u32 = 0x8000_5257;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const OPTION_END: u16 = 0;
const COMMENT: u16 = 1;
const SHB_USER_APPLICATION: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const ISB_START: u16 = 2;
const ISB_END: u16 = 3;
const ISB_RECEIVED: u16 = 4;
const ISB_DROPPED: u16 = 5;
const ISB_DELIVERED: u16 = 8;
/// Time stamps count nanoseconds: 10 to the power of minus this.
const NANOSECONDS: u8 = 9;

/// Statistics of one interface over one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// When the file began.
    pub start: UnixNanos,
    /// When it ended.
    pub end: UnixNanos,
    /// Frames that the kernel saw and dropped meanwhile; `None` where the sensor did not say.
    pub kernel: Option<KernelStatistics>,
    /// Frames in this file.
    pub delivered: u64,
}

/// Frames that the kernel saw and dropped on one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelStatistics {
    /// Frames offered to the rings, dropped ones included.
    pub packets: u64,
    /// Frames dropped because a ring was full.
    pub drops: u64,
}

/// Appends the block that begins a file.
pub fn push_section_header(out: &mut Vec<u8>) {
    block(out, SECTION_HEADER, |out| {
        put_u32(out, BYTE_ORDER_MAGIC);
        put_u16(out, 1);
        put_u16(out, 0);
        // The length of the section is not known in advance.
        out.extend_from_slice(&u64::MAX.to_le_bytes());
        let program = concat!("ringwatch-collector ", env!("CARGO_PKG_VERSION"));
        option(out, SHB_USER_APPLICATION, program.as_bytes());
        option(out, OPTION_END, &[]);
    });
}

/// Appends an interface. Packets refer to it by its position among the interfaces of the file. `description` says
/// what a reader has to know of its frames; empty: nothing.
///
/// Its snap length is written as 0, unlimited: libpcap refuses a file whose interfaces differ in it,
/// or in their link type, which is up to the caller.
pub fn push_interface(out: &mut Vec<u8>, name: &str, linktype: u16, description: &str) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        put_u16(out, linktype);
        put_u16(out, 0);
        put_u32(out, 0);
        option(out, IF_NAME, name.as_bytes());
        if !description.is_empty() {
            option(out, IF_DESCRIPTION, description.as_bytes());
        }
        option(out, IF_TSRESOL, &[NANOSECONDS]);
        option(out, OPTION_END, &[]);
    });
}

/// Appends the statistics of an interface.
pub fn push_statistics(out: &mut Vec<u8>, interface: u32, statistics: &Statistics) {
    let Statistics { start, end, kernel, delivered } = *statistics;
    block(out, INTERFACE_STATISTICS, |out| {
        put_u32(out, interface);
        out.extend_from_slice(&timestamp(end));
        option(out, ISB_START, &timestamp(start));
        option(out, ISB_END, &timestamp(end));
        if let Some(KernelStatistics { packets, drops }) = kernel {
            option(out, ISB_RECEIVED, &packets.to_le_bytes());
            option(out, ISB_DROPPED, &drops.to_le_bytes());
        }
        option(out, ISB_DELIVERED, &delivered.to_le_bytes());
        option(out, OPTION_END, &[]);
    });
}

/// Appends what a reader has to know of the file, in the only block of which there may be any number: statistics
/// of an interface, without any.
pub fn push_comment(out: &mut Vec<u8>, interface: u32, time: UnixNanos, comment: &str) {
    block(out, INTERFACE_STATISTICS, |out| {
        put_u32(out, interface);
        out.extend_from_slice(&timestamp(time));
        option(out, COMMENT, comment.as_bytes());
        option(out, OPTION_END, &[]);
    });
}

/// Appends the frames of a batch, each still with the interface number that the sensor gave it.
/// Returns the sum of their captured bytes.
pub fn push_frames(out: &mut Vec<u8>, batch: &FrameBatch<'_>) -> u64 {
    let mut bytes = 0;
    for BatchedFrame { time, wire_len, interface, data } in batch {
        push_frame(out, &StoredFrame { interface, time, wire_len, data });
        bytes += data.len() as u64;
    }
    bytes
}

/// Appends one frame, shorter than 2 GiB.
#[inline]
pub fn push_frame(out: &mut Vec<u8>, frame: &StoredFrame<'_>) {
    let padding = frame.data.len().next_multiple_of(4) - frame.data.len();
    let length = (PACKET_OVERHEAD + frame.data.len() + padding) as u32;
    let captured = frame.data.len() as u32;
    let mut head = [0; 28];
    let time = timestamp(frame.time);
    for (space, number) in head.chunks_exact_mut(4).zip([
        ENHANCED_PACKET.to_le_bytes(),
        length.to_le_bytes(),
        frame.interface.to_le_bytes(),
        [time[0], time[1], time[2], time[3]],
        [time[4], time[5], time[6], time[7]],
        captured.to_le_bytes(),
        frame.wire_len.0.to_le_bytes(),
    ]) {
        space.copy_from_slice(&number);
    }
    out.extend_from_slice(&head);
    out.extend_from_slice(frame.data);
    out.extend_from_slice(&[0; 3][..padding]);
    out.extend_from_slice(&length.to_le_bytes());
}

/// Appends the index of a segment.
pub fn push_index(out: &mut Vec<u8>, index: &[u8]) {
    block(out, SEGMENT_INDEX, |out| {
        out.extend_from_slice(index);
        out.resize(out.len().next_multiple_of(4), 0);
    });
}

/// Sorts the packets in `blocks`, which [`push_frames`] wrote, by what `class` makes of their
/// interface number. Packets of one class keep their order.
#[must_use]
pub fn split<K: Ord>(blocks: &[u8], class: impl Fn(u32) -> K) -> BTreeMap<K, Vec<u8>> {
    let mut parts = BTreeMap::<K, Vec<u8>>::new();
    let mut rest = blocks;
    while let Some(head) = rest.first_chunk::<{ INTERFACE_OFFSET + 4 }>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let interface = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        let (packet, others) = rest.split_at(length.max(PACKET_OVERHEAD).min(rest.len()));
        parts.entry(class(interface)).or_default().extend_from_slice(packet);
        rest = others;
    }
    parts
}

/// Replaces the interface number of each packet in `blocks`, which [`push_frames`] wrote, by what
/// `number` makes of it.
pub fn renumber_interfaces(blocks: &mut [u8], mut number: impl FnMut(u32) -> u32) {
    let mut rest = blocks;
    while let Some(head) = rest.first_chunk_mut::<{ INTERFACE_OFFSET + 4 }>() {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let interface = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        head[INTERFACE_OFFSET..].copy_from_slice(&number(interface).to_le_bytes());
        // No packet is shorter, so this ends whatever the bytes are.
        rest = rest.get_mut(length.max(PACKET_OVERHEAD)..).unwrap_or_default();
    }
}

/// How many bytes at the start of a file of this length are whole blocks; 0 if it does not begin as a
/// pcapng file of ours. `file` stands at its start, and is read forward only.
///
/// # Errors
/// What reading gives.
pub fn whole_blocks(file: &mut (impl Read + Seek), length: u64) -> io::Result<u64> {
    let mut position = 0;
    loop {
        let Some(end) = block_end(file, position, length)? else { return Ok(position) };
        position = end;
    }
}

/// Where the block at `position`, which is where `file` stands, ends, if it is whole; `file` then
/// stands there.
fn block_end(file: &mut (impl Read + Seek), position: u64, length: u64) -> io::Result<Option<u64>> {
    if position + u64::from(BLOCK_OVERHEAD) > length {
        return Ok(None);
    }
    let mut head = [0; 8];
    file.read_exact(&mut head)?;
    let kind = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let end = position + u64::from(size);
    let is_first = position == 0;
    let is_ours = match kind {
        SECTION_HEADER => is_first,
        INTERFACE_DESCRIPTION | INTERFACE_STATISTICS | ENHANCED_PACKET | SEGMENT_INDEX => !is_first,
        _ => false,
    };
    if !is_ours || size < BLOCK_OVERHEAD || !size.is_multiple_of(4) || end > length {
        return Ok(None);
    }
    let mut tail = [0; 4];
    // Unlike an absolute one, this stays within what a buffered reader has read.
    file.seek_relative(i64::from(size - BLOCK_OVERHEAD))?;
    file.read_exact(&mut tail)?;
    Ok((u32::from_le_bytes(tail) == size).then_some(end))
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put_u32(out, kind);
    put_u32(out, 0);
    body(out);
    // Blocks made by this function have a few hundred bytes, or some MiB.
    let length = (out.len() - start + 4) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    put_u32(out, length);
}

/// Appends an option, padded; a value longer than an option can be is cut.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = &value[..usize::from(length)];
    put_u16(out, code);
    put_u16(out, length);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A time as pcapng writes it: the upper half first.
fn timestamp(time: UnixNanos) -> [u8; 8] {
    time.0.rotate_left(32).to_le_bytes()
}

fn put_u16(out: &mut Vec<u8>, number: u16) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use pcap_parser::traits::PcapReaderIterator;
    use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader};
    use proptest::prelude::*;
    use wire::frames::FrameBatchWriter;
    use wire::units::{Sequence, WireLen};

    use super::*;

    /// Length of the last block of [`file`].
    const STATISTICS: usize = 88;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Packet {
        time: u64,
        wire_len: u32,
        interface: u32,
        data: Vec<u8>,
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let data = prop::collection::vec(any::<u8>(), 0..200);
        (0..u64::MAX / 2, any::<u16>(), 0_u32..3, data).prop_map(|(time, more, interface, data)| {
            let wire_len = u32::try_from(data.len()).unwrap() + u32::from(more);
            Packet { time, wire_len, interface, data }
        })
    }

    /// A file of three interfaces with these packets and statistics.
    fn file(packets: &[Packet]) -> Vec<u8> {
        let mut batch = FrameBatchWriter::new(1, 65535);
        for Packet { time, wire_len, interface, data } in packets {
            batch.try_push(UnixNanos(*time), WireLen(*wire_len), *interface, &[data]).unwrap();
        }
        let bytes = batch.finish(Sequence(1)).to_vec();
        let payload = &bytes[wire::header::HEADER_LEN..];
        let mut out = Vec::new();
        push_section_header(&mut out);
        for number in 0..3 {
            push_interface(&mut out, &format!("a/eth{number}"), 1, "");
        }
        push_frames(&mut out, &FrameBatch::parse(Sequence(1), payload).unwrap());
        let kernel = Some(KernelStatistics { packets: 9, drops: 2 });
        let (start, end) = (UnixNanos(1 << 40), UnixNanos(1 << 41));
        push_statistics(&mut out, 2, &Statistics { start, end, kernel, delivered: 7 });
        out
    }

    /// The packets of a file, read by a program that is not ours.
    fn read(bytes: &[u8]) -> Vec<Packet> {
        let mut reader = PcapNGReader::new(1 << 16, Cursor::new(bytes)).unwrap();
        let mut packets = Vec::new();
        loop {
            match reader.next() {
                Ok((offset, block)) => {
                    if let PcapBlockOwned::NG(Block::EnhancedPacket(block)) = block {
                        packets.push(Packet {
                            time: u64::from(block.ts_high) << 32 | u64::from(block.ts_low),
                            wire_len: block.origlen,
                            interface: block.if_id,
                            data: block.data[..block.caplen as usize].to_vec(),
                        });
                    }
                    reader.consume(offset);
                }
                Err(PcapError::Eof) => return packets,
                Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn whole(bytes: &[u8]) -> u64 {
        whole_blocks(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    #[test]
    fn statistics_are_laid_out_as_specified() {
        let file = file(&[]);
        let block = &file[file.len() - STATISTICS..];
        assert_eq!(block[..12], [5, 0, 0, 0, 88, 0, 0, 0, 2, 0, 0, 0]);
        // Upper half first: 2^41 is 0x200 times 2^32.
        assert_eq!(block[12..20], [0, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[20..32], [2, 0, 8, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[44..56], [4, 0, 8, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[56..68], [5, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(block[68..80], [8, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_file_that_is_not_ours_has_no_whole_block() {
        assert_eq!(whole(b""), 0);
        assert_eq!(whole(&[0; 4096]), 0);
        assert_eq!(whole(b"{\"event_type\":\"flow\"}, and more than a header"), 0);
    }

    proptest! {
        #[test]
        fn packets_survive_the_round_trip(packets in prop::collection::vec(packet(), 0..50)) {
            prop_assert_eq!(read(&file(&packets)), packets);
        }

        #[test]
        fn renumbering_changes_interfaces_and_nothing_else(
            packets in prop::collection::vec(packet(), 0..50)
        ) {
            let start = file(&[]).len() - STATISTICS;
            let mut bytes = file(&packets);
            let end = bytes.len() - STATISTICS;
            renumber_interfaces(&mut bytes[start..end], |number| 2 - number);
            let expected: Vec<_> = packets
                .into_iter()
                .map(|packet| Packet { interface: 2 - packet.interface, ..packet })
                .collect();
            prop_assert_eq!(read(&bytes), expected);
        }

        #[test]
        fn a_file_cut_anywhere_keeps_its_whole_blocks(
            packets in prop::collection::vec(packet(), 1..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = file(&packets);
            let cut = cut.index(bytes.len());
            let kept = usize::try_from(whole(&bytes[..cut])).unwrap();
            prop_assert!(kept <= cut);
            prop_assert!(cut < 300 + kept);
            prop_assert_eq!(whole(&bytes[..kept]), kept as u64);
            if kept > 0 {
                let rest = read(&bytes[..kept]);
                prop_assert_eq!(&rest[..], &packets[..rest.len()]);
            }
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut after_header = file(&[]);
            after_header.extend_from_slice(&bytes);
            prop_assert!(whole(&after_header) >= file(&[]).len() as u64);
            for bytes in [bytes, vec![0; 100]] {
                let mut copy = bytes.clone();
                renumber_interfaces(&mut copy, |number| number);
                prop_assert_eq!(copy, bytes);
            }
        }
    }
}
