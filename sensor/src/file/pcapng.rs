//! The newer capture file: sections of blocks, with any number of interfaces.
//!
//! Source: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/>

use packet::frame::LinkType;
use wire::units::{UnixNanos, WireLen};

use super::order::ByteOrder;
use super::{Fault, Interface, MAX_BLOCK, MAX_CAPTURED, MAX_INTERFACES, Record, Step, link_type};

/// Characters kept of an interface's name, for the same reason.
const MAX_NAME: usize = 255;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length before a block's body, and the length again after it.
const FRAMING: usize = 12;

/// How a file begins, in either byte order.
pub(super) const MAGIC: [u8; 4] = SECTION_HEADER.to_be_bytes();

/// Bytes of a section header without options, which every file has at least.
pub(super) const SHORTEST_FILE: usize = 28;

/// State of the section that is being read.
#[derive(Default)]
pub(super) struct Pcapng {
    /// Every file begins with a section header, which replaces this.
    order: ByteOrder,
    /// Where the interfaces of this section begin among those of the file.
    section_start: usize,
    /// How each interface of the file counts time, and how its frames begin.
    clocks: Vec<(Clock, LinkType)>,
    /// Time of the last packet that had one: packets without take it over.
    latest: UnixNanos,
    /// Length of the block that was skipped, which is to be found once more behind it.
    due_trailer: Option<u32>,
}

impl Pcapng {
    /// Is the end of a block yet to come?
    pub(super) const fn is_within_block(&self) -> bool {
        self.due_trailer.is_some()
    }

    /// Reads the block that begins here.
    #[inline]
    pub(super) fn step(
        &mut self,
        bytes: &[u8],
        interfaces: &mut Vec<Interface>,
    ) -> Result<Step, Fault> {
        if let Some(length) = self.due_trailer {
            return self.end_of_skipped(bytes, length);
        }
        let Some(framing) = bytes.first_chunk::<FRAMING>() else {
            return Ok(Step::More { needed: FRAMING });
        };
        let kind = self.order.word(framing, 0);
        if kind == SECTION_HEADER {
            self.order = section_order(framing)?;
        }
        let length = self.order.word(framing, 1);
        if length < FRAMING as u32 || !length.is_multiple_of(4) {
            return Err(Fault::BlockLength { length });
        }
        if !is_known(kind) {
            self.due_trailer = Some(length);
            return Ok(Step::Skip { bytes: u64::from(length) - 4 });
        }
        if length > MAX_BLOCK as u32 {
            return Err(Fault::TooLong { length, limit: MAX_BLOCK as u32 });
        }
        match bytes.get(..length as usize) {
            Some(block) => self.read_block(kind, block, interfaces),
            None => Ok(Step::More { needed: length as usize }),
        }
    }

    /// Behind the body of a block of an unknown kind.
    fn end_of_skipped(&mut self, bytes: &[u8], length: u32) -> Result<Step, Fault> {
        let Some(trailer) = bytes.first_chunk() else { return Ok(Step::More { needed: 4 }) };
        let trailer = self.order.u32(*trailer);
        if trailer != length {
            return Err(Fault::Trailer { length, trailer });
        }
        self.due_trailer = None;
        Ok(Step::Skip { bytes: 4 })
    }

    /// Reads one block of a known kind, framing included.
    #[inline]
    fn read_block(
        &mut self,
        kind: u32,
        block: &[u8],
        interfaces: &mut Vec<Interface>,
    ) -> Result<Step, Fault> {
        let body_end = block.len() - 4;
        let length = block.len() as u32;
        let trailer = self.order.word(block, body_end / 4);
        if trailer != length {
            return Err(Fault::Trailer { length, trailer });
        }
        let body = block.get(8..body_end).unwrap_or_default();
        match kind {
            ENHANCED_PACKET => return self.enhanced_packet(body).map(Step::Frame),
            OBSOLETE_PACKET => return self.obsolete_packet(body).map(Step::Frame),
            SIMPLE_PACKET => return self.simple_packet(body, interfaces).map(Step::Frame),
            INTERFACE => self.interface(body, interfaces)?,
            _ => self.section_header(body)?,
        }
        Ok(Step::Skip { bytes: u64::from(length) })
    }

    fn section_header(&mut self, body: &[u8]) -> Result<(), Fault> {
        let Some([_, _, _, _, j0, j1, n0, n1, ..]) = body.first_chunk::<16>() else {
            return Err(Fault::BodyTooShort);
        };
        let (major, minor) = (self.order.u16([*j0, *j1]), self.order.u16([*n0, *n1]));
        if major != 1 {
            return Err(Fault::Version { major, minor });
        }
        self.section_start = self.clocks.len();
        Ok(())
    }

    fn interface(&mut self, body: &[u8], interfaces: &mut Vec<Interface>) -> Result<(), Fault> {
        let Some((fixed, mut options)) = body.split_first_chunk::<8>() else {
            return Err(Fault::BodyTooShort);
        };
        if interfaces.len() >= MAX_INTERFACES {
            return Err(Fault::TooManyInterfaces { limit: MAX_INTERFACES });
        }
        let link = self.order.u16([fixed[0], fixed[1]]);
        let mut interface = Interface {
            name: None,
            link: link_type(u32::from(link)),
            snaplen: self.order.word(fixed, 1),
        };
        let mut clock = Clock::default();
        while let Some((code, value)) = self.option(&mut options)? {
            match (code, value) {
                (2, name) => interface.name = Some(shortened(name)),
                (9, [resolution, ..]) => clock.resolution = Resolution::from_option(*resolution),
                (14, offset) if let Some(offset) = offset.first_chunk() => {
                    clock.offset_seconds = self.order.u64(*offset).cast_signed();
                }
                _ => {}
            }
        }
        self.clocks.push((clock, interface.link));
        interfaces.push(interface);
        Ok(())
    }

    /// Takes the next option off; `None` after the last.
    fn option<'a>(&self, options: &mut &'a [u8]) -> Result<Option<(u16, &'a [u8])>, Fault> {
        let Some(([c0, c1, l0, l1], rest)) = options.split_first_chunk() else { return Ok(None) };
        let (code, length) = (self.order.u16([*c0, *c1]), self.order.u16([*l0, *l1]));
        if code == 0 {
            return Ok(None);
        }
        let value = rest.get(..usize::from(length)).ok_or(Fault::Option { code, length })?;
        *options = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        Ok(Some((code, value)))
    }

    #[inline]
    fn enhanced_packet(&mut self, body: &[u8]) -> Result<Record, Fault> {
        let Some((fixed, data)) = body.split_first_chunk::<20>() else {
            return Err(Fault::BodyTooShort);
        };
        let interface = self.order.word(fixed, 0);
        self.packet(interface, fixed, data)
    }

    fn obsolete_packet(&mut self, body: &[u8]) -> Result<Record, Fault> {
        let Some((fixed, data)) = body.split_first_chunk::<20>() else {
            return Err(Fault::BodyTooShort);
        };
        let interface = self.order.u16([fixed[0], fixed[1]]);
        self.packet(u32::from(interface), fixed, data)
    }

    /// A packet of either kind: they differ in the first word only.
    #[inline]
    fn packet(&mut self, interface: u32, fixed: &[u8; 20], data: &[u8]) -> Result<Record, Fault> {
        let word = |index| self.order.word(fixed, index);
        let ticks = u64::from(word(1)) << 32 | u64::from(word(2));
        let (captured, wire_len) = (word(3), word(4));
        let index = self.section_start + interface as usize;
        let (clock, link) = self.clocks.get(index).ok_or(Fault::UnknownInterface { interface })?;
        self.latest = clock.time(ticks);
        self.record(*link, index, 28, captured, wire_len, data.len())
    }

    fn simple_packet(&self, body: &[u8], interfaces: &[Interface]) -> Result<Record, Fault> {
        let Some((fixed, data)) = body.split_first_chunk::<4>() else {
            return Err(Fault::BodyTooShort);
        };
        let interface =
            interfaces.get(self.section_start).ok_or(Fault::UnknownInterface { interface: 0 })?;
        let wire_len = self.order.u32(*fixed);
        let limit = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
        self.record(
            interface.link,
            self.section_start,
            12,
            wire_len.min(limit),
            wire_len,
            data.len(),
        )
    }

    /// A record of `captured` bytes, `start` bytes into its block, where there is `room` for it.
    #[inline]
    fn record(
        &self,
        link: LinkType,
        interface: usize,
        start: usize,
        captured: u32,
        wire_len: u32,
        room: usize,
    ) -> Result<Record, Fault> {
        if captured > MAX_CAPTURED {
            return Err(Fault::TooLong { length: captured, limit: MAX_CAPTURED });
        }
        if captured as usize > room {
            return Err(Fault::CapturedLength { length: captured, room });
        }
        Ok(Record {
            start,
            captured,
            // Body before the data, the data and what follows it in the body, the second length.
            total: start + room + 4,
            wire_len: WireLen(wire_len.max(captured)),
            time: self.latest,
            link,
            interface: interface as u32,
        })
    }
}

const fn is_known(kind: u32) -> bool {
    matches!(kind, SECTION_HEADER | INTERFACE | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET)
}

/// The byte order of the section whose header begins with these bytes.
fn section_order(framing: &[u8; FRAMING]) -> Result<ByteOrder, Fault> {
    match framing {
        [.., 0x4d, 0x3c, 0x2b, 0x1a] => Ok(ByteOrder::Little),
        [.., 0x1a, 0x2b, 0x3c, 0x4d] => Ok(ByteOrder::Big),
        _ => Err(Fault::ByteOrder),
    }
}

/// The beginning of a name, as text.
fn shortened(name: &[u8]) -> String {
    String::from_utf8_lossy(name).trim_end_matches('\0').chars().take(MAX_NAME).collect()
}

/// How an interface counts time.
#[derive(Clone, Copy, Default)]
struct Clock {
    resolution: Resolution,
    /// Added to every time.
    offset_seconds: i64,
}

impl Clock {
    #[inline]
    fn time(self, ticks: u64) -> UnixNanos {
        let nanos = match self.resolution {
            Resolution::NanosPerTick(nanos) => ticks.saturating_mul(nanos),
            Resolution::TicksPerNano(count) => ticks / count,
            // Below 2^64 × 10^9, which fits.
            Resolution::PowerOfTwo(shift) => {
                u64::try_from((u128::from(ticks) * 1_000_000_000) >> shift).unwrap_or(u64::MAX)
            }
        };
        UnixNanos(nanos.saturating_add_signed(self.offset_seconds.saturating_mul(1_000_000_000)))
    }
}

#[derive(Clone, Copy)]
enum Resolution {
    NanosPerTick(u64),
    /// Never 0.
    TicksPerNano(u64),
    /// 2^n ticks a second, n below 128.
    PowerOfTwo(u32),
}

impl Default for Resolution {
    /// Microseconds.
    fn default() -> Self {
        Self::NanosPerTick(1_000)
    }
}

impl Resolution {
    /// From the option `if_tsresol`: a power of two with the highest bit, of ten without.
    fn from_option(value: u8) -> Self {
        let exponent = u32::from(value & 0x7f);
        match (value & 0x80, exponent) {
            (0, 0..=9) => Self::NanosPerTick(10_u64.pow(9 - exponent)),
            (0, _) => Self::TicksPerNano(10_u64.checked_pow(exponent - 9).unwrap_or(u64::MAX)),
            _ => Self::PowerOfTwo(exponent),
        }
    }
}
