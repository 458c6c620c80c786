//! The classic capture file: one header, then records of one interface.
//!
//! Source: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>

use packet::frame::LinkType;
use wire::units::{UnixNanos, WireLen};

use super::order::ByteOrder;
use super::{Fault, Interface, MAX_CAPTURED, Record, Step, link_type};

/// Bytes of the file header.
pub(super) const HEADER_LEN: usize = 24;

/// How the records of a file are to be read.
pub(super) struct Pcap {
    order: ByteOrder,
    nanos_per_tick: u64,
    /// 16, or 24 with the interface index that a patched libpcap once wrote.
    record_header_len: usize,
    /// Files older than version 2.4 have the two lengths in either order.
    has_lengths_in_any_order: bool,
    link: LinkType,
}

impl Pcap {
    /// For a file that begins with these bytes; `None` if it is of another kind. The version and the
    /// interface are for [`Pcap::read_header`].
    pub(super) fn of_magic(magic: [u8; 4]) -> Option<Self> {
        let (order, nanos_per_tick, record_header_len) = match magic {
            [0xd4, 0xc3, 0xb2, 0xa1] => (ByteOrder::Little, 1_000, 16),
            [0xa1, 0xb2, 0xc3, 0xd4] => (ByteOrder::Big, 1_000, 16),
            [0x4d, 0x3c, 0xb2, 0xa1] => (ByteOrder::Little, 1, 16),
            [0xa1, 0xb2, 0x3c, 0x4d] => (ByteOrder::Big, 1, 16),
            [0x34, 0xcd, 0xb2, 0xa1] => (ByteOrder::Little, 1_000, 24),
            [0xa1, 0xb2, 0xcd, 0x34] => (ByteOrder::Big, 1_000, 24),
            _ => return None,
        };
        Some(Self {
            order,
            nanos_per_tick,
            record_header_len,
            has_lengths_in_any_order: false,
            link: LinkType::NULL,
        })
    }

    /// Reads the whole file header.
    pub(super) fn read_header(&mut self, header: &[u8; HEADER_LEN]) -> Result<Interface, Fault> {
        let [_, _, _, _, j0, j1, n0, n1, ..] = *header;
        let (major, minor) = (self.order.u16([j0, j1]), self.order.u16([n0, n1]));
        if major != 2 {
            return Err(Fault::Version { major, minor });
        }
        self.has_lengths_in_any_order = minor < 4;
        self.link = link_type(self.order.word(header, 5));
        Ok(Interface { name: None, link: self.link, snaplen: self.order.word(header, 4) })
    }

    /// Reads the record that begins here.
    #[inline]
    pub(super) fn step(&self, bytes: &[u8]) -> Result<Step, Fault> {
        let Some(header) = bytes.first_chunk::<16>() else {
            return Ok(Step::More { needed: self.record_header_len });
        };
        let word = |index| self.order.word(header, index);
        let (seconds, ticks, mut captured, mut wire_len) = (word(0), word(1), word(2), word(3));
        if self.has_lengths_in_any_order && captured > wire_len {
            std::mem::swap(&mut captured, &mut wire_len);
        }
        if bytes.len() < self.record_header_len {
            return Ok(Step::More { needed: self.record_header_len });
        }
        if captured > MAX_CAPTURED {
            return Err(Fault::TooLong { length: captured, limit: MAX_CAPTURED });
        }
        let total = self.record_header_len + captured as usize;
        if bytes.len() < total {
            return Ok(Step::More { needed: total });
        }
        Ok(Step::Frame(Record {
            start: self.record_header_len,
            captured,
            total,
            wire_len: WireLen(wire_len.max(captured)),
            time: UnixNanos(
                u64::from(seconds) * 1_000_000_000 + u64::from(ticks) * self.nanos_per_tick,
            ),
            link: self.link,
            interface: 0,
        }))
    }
}
