//! The classic capture file: one header, then records of one interface.
//!
//! Source: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>

use wire::units::{UnixNanos, WireLen};

use super::window::{ByteOrder, Window};
use super::{Fault, FileError, Interface, MAX_CAPTURED, Record, link_type};

const HEADER_LEN: usize = 24;

/// How the records of a file are to be read.
pub(super) struct Pcap {
    order: ByteOrder,
    nanos_per_tick: u64,
    /// 16, or 24 with the interface index that a patched libpcap once wrote.
    record_header_len: usize,
    /// Files older than version 2.4 have the two lengths in either order.
    has_lengths_in_any_order: bool,
}

impl Pcap {
    /// Reads the file header if the file begins as a classic capture file does.
    pub(super) fn open(window: &mut Window) -> Result<Option<(Self, Interface)>, FileError> {
        let Some(magic) = window.bytes().first_chunk::<4>() else { return Ok(None) };
        let (order, nanos_per_tick, record_header_len) = match magic {
            [0xd4, 0xc3, 0xb2, 0xa1] => (ByteOrder::Little, 1_000, 16),
            [0xa1, 0xb2, 0xc3, 0xd4] => (ByteOrder::Big, 1_000, 16),
            [0x4d, 0x3c, 0xb2, 0xa1] => (ByteOrder::Little, 1, 16),
            [0xa1, 0xb2, 0x3c, 0x4d] => (ByteOrder::Big, 1, 16),
            [0x34, 0xcd, 0xb2, 0xa1] => (ByteOrder::Little, 1_000, 24),
            [0xa1, 0xb2, 0xcd, 0x34] => (ByteOrder::Big, 1_000, 24),
            _ => return Ok(None),
        };
        if !window.fill(HEADER_LEN)? {
            return Err(window.corrupt(Fault::HeaderTruncated));
        }
        let header = window.bytes();
        let [major, minor] = [4, 6].map(|offset| {
            header.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |half| order.u16(*half))
        });
        if major != 2 {
            return Err(window.corrupt(Fault::Version { major, minor }));
        }
        let interface = Interface {
            name: None,
            link: link_type(order.word(header, 5)),
            snaplen: order.word(header, 4),
        };
        window.consume(HEADER_LEN);
        let has_lengths_in_any_order = minor < 4;
        let pcap = Self { order, nanos_per_tick, record_header_len, has_lengths_in_any_order };
        Ok(Some((pcap, interface)))
    }

    #[inline]
    pub(super) fn next_record(&self, window: &mut Window) -> Result<Option<Record>, FileError> {
        if !window.fill(self.record_header_len)? {
            return Ok(None);
        }
        let word = |index| self.order.word(window.bytes(), index);
        let (seconds, ticks, mut captured, mut wire_len) = (word(0), word(1), word(2), word(3));
        if self.has_lengths_in_any_order && captured > wire_len {
            std::mem::swap(&mut captured, &mut wire_len);
        }
        if captured > MAX_CAPTURED {
            let fault = Fault::TooLong { length: captured, limit: MAX_CAPTURED };
            return Err(window.corrupt(fault));
        }
        let total = self.record_header_len + captured as usize;
        if !window.fill(total)? {
            return Ok(None);
        }
        Ok(Some(Record {
            data: self.record_header_len..total,
            total,
            wire_len: WireLen(wire_len.max(captured)),
            time: UnixNanos(
                u64::from(seconds) * 1_000_000_000 + u64::from(ticks) * self.nanos_per_tick,
            ),
            interface: 0,
        }))
    }
}
