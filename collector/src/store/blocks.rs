//! The blocks of a segment, read back. Of everything that pcapng allows this knows what
//! [`pcapng`](super::pcapng) writes.

use wire::units::{UnixNanos, WireLen};

use super::pcapng::{ENHANCED_PACKET, INTERFACE_DESCRIPTION, SEGMENT_INDEX};

/// A block, borrowed from where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// An interface; its number is its position among those of the file.
    Interface(FileInterface<'a>),
    /// A frame.
    Packet(StoredFrame<'a>),
    /// The index of the segment, see [`index`](super::index).
    Index(&'a [u8]),
    /// Any other.
    Other,
}

/// An interface as a segment describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInterface<'a> {
    /// `SENSOR/INTERFACE`.
    pub name: &'a str,
    /// LINKTYPE_ number of its frames.
    pub linktype: u16,
    /// What a reader has to know of its frames.
    pub description: &'a str,
}

/// A frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredFrame<'a> {
    /// Number of its interface in the file.
    pub interface: u32,
    /// When it was seen.
    pub time: UnixNanos,
    /// Its length on the wire.
    pub wire_len: WireLen,
    /// What was captured of it.
    pub data: &'a [u8],
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A whole block of so many bytes.
    Whole(Block<'a>, usize),
    /// The beginning of a block of so many bytes; if even that is cut off, of at least [`HEAD`].
    Cut(usize),
    /// No block.
    Broken,
}

/// Bytes that tell how long a block is.
pub const HEAD: usize = 8;
/// Bytes of a block without body.
const OVERHEAD: usize = 12;
/// Bytes of an enhanced packet's body in front of its data.
const PACKET_HEAD: usize = 20;
/// Bytes of an interface description's body in front of its options.
const INTERFACE_HEAD: usize = 8;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;

/// The block at the beginning of `bytes`.
#[must_use]
pub fn next(bytes: &[u8]) -> Next<'_> {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Next::Cut(HEAD) };
    let kind = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if length < OVERHEAD || !length.is_multiple_of(4) {
        return Next::Broken;
    }
    let Some(whole) = bytes.get(..length) else { return Next::Cut(length) };
    let (body, again) = whole[HEAD..].split_at(length - OVERHEAD);
    if u32_at(again, 0) != Some(length as u32) {
        return Next::Broken;
    }
    let block = match kind {
        ENHANCED_PACKET => packet(body).map(Block::Packet),
        INTERFACE_DESCRIPTION => interface(body).map(Block::Interface),
        SEGMENT_INDEX => Some(Block::Index(body)),
        _ => Some(Block::Other),
    };
    block.map_or(Next::Broken, |block| Next::Whole(block, length))
}

/// Bytes of the damaged block at the beginning of `bytes`: those that it says, if whole blocks follow it up
/// to the end. Less is no proof, as what is in frames is anybody's choice.
#[must_use]
pub fn damaged_length(bytes: &[u8]) -> Option<usize> {
    let length = u32_at(bytes, 4)? as usize;
    let mut rest = bytes.get(length.max(OVERHEAD)..)?;
    while let Next::Whole(_, length) = next(rest) {
        rest = &rest[length..];
    }
    rest.is_empty().then_some(length.max(OVERHEAD))
}

fn packet(body: &[u8]) -> Option<StoredFrame<'_>> {
    let (head, data) = body.split_at_checked(PACKET_HEAD)?;
    let captured = u32_at(head, 12)? as usize;
    Some(StoredFrame {
        interface: u32_at(head, 0)?,
        time: UnixNanos(u64::from(u32_at(head, 4)?) << 32 | u64::from(u32_at(head, 8)?)),
        wire_len: WireLen(u32_at(head, 16)?),
        data: data.get(..captured)?,
    })
}

fn interface(body: &[u8]) -> Option<FileInterface<'_>> {
    let (head, mut options) = body.split_at_checked(INTERFACE_HEAD)?;
    let linktype = u16::from_le_bytes(*head.first_chunk()?);
    let (mut name, mut description) = ("", "");
    while let Some((option, rest)) = options.split_first_chunk::<4>() {
        let code = u16::from_le_bytes([option[0], option[1]]);
        let length = usize::from(u16::from_le_bytes([option[2], option[3]]));
        let value = rest.get(..length)?;
        match code {
            IF_NAME => name = std::str::from_utf8(value).ok()?,
            IF_DESCRIPTION => description = std::str::from_utf8(value).ok()?,
            _ => {}
        }
        options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(FileInterface { name, linktype, description })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::pcapng;

    fn blocks(mut bytes: &[u8]) -> Vec<Block<'_>> {
        let mut found = Vec::new();
        while let Next::Whole(block, length) = next(bytes) {
            found.push(block);
            bytes = &bytes[length..];
        }
        assert!(bytes.is_empty(), "{} bytes are left", bytes.len());
        found
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        pcapng::push_section_header(&mut bytes);
        pcapng::push_interface(&mut bytes, "web-1/eth0", 113, "1 conversation in 8");
        let frame = StoredFrame {
            interface: 7,
            time: UnixNanos(0x1122_3344_5566_7788),
            wire_len: WireLen(1514),
            data: b"frame",
        };
        pcapng::push_frame(&mut bytes, &frame);
        pcapng::push_index(&mut bytes, b"ten bytes.");
        let description = "1 conversation in 8";
        let interface = FileInterface { name: "web-1/eth0", linktype: 113, description };
        let expected = [
            Block::Other,
            Block::Interface(interface),
            Block::Packet(frame),
            Block::Index(b"ten bytes.\0\0"),
        ];
        assert_eq!(blocks(&bytes), expected);
    }

    #[test]
    fn a_block_whose_two_lengths_differ_is_broken() {
        let mut bytes = Vec::new();
        pcapng::push_interface(&mut bytes, "a/b", 1, "");
        let last = bytes.len() - 4;
        bytes[last] ^= 4;
        assert_eq!(next(&bytes), Next::Broken);
    }

    proptest! {
        #[test]
        fn a_cut_block_says_how_long_it_is(data in prop::collection::vec(any::<u8>(), 0..99)) {
            let mut bytes = Vec::new();
            let wire_len = WireLen(99);
            let frame = StoredFrame { interface: 0, time: UnixNanos(1), wire_len, data: &data };
            pcapng::push_frame(&mut bytes, &frame);
            for cut in 0..bytes.len() {
                let expected = if cut < HEAD { HEAD } else { bytes.len() };
                prop_assert_eq!(next(&bytes[..cut]), Next::Cut(expected));
            }
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = next(&bytes);
            for kind in [ENHANCED_PACKET, INTERFACE_DESCRIPTION, SEGMENT_INDEX] {
                let length = (bytes.len().next_multiple_of(4) + OVERHEAD) as u32;
                let mut block = [kind.to_le_bytes(), length.to_le_bytes()].concat();
                block.extend_from_slice(&bytes);
                block.resize(length as usize - 4, 0);
                block.extend_from_slice(&length.to_le_bytes());
                prop_assert!(!matches!(next(&block), Next::Cut(_)));
            }
        }
    }
}
