//! The newer capture file: sections of blocks, with any number of interfaces.
//!
//! Source: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcapng/>

use wire::units::{UnixNanos, WireLen};

use super::window::{ByteOrder, Window};
use super::{Fault, FileError, Interface, MAX_BLOCK, MAX_CAPTURED, Record, link_type};

/// Interfaces of one file, so that a file cannot make us take memory without bound.
const MAX_INTERFACES: usize = 65_536;
/// Characters kept of an interface's name, for the same reason.
const MAX_NAME: usize = 255;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length before a block's body, and the length again after it.
const FRAMING: usize = 12;

/// State of the section that is being read.
pub(super) struct Pcapng {
    order: ByteOrder,
    /// Where the interfaces of this section begin among those of the file.
    section_start: usize,
    /// How each interface of the file counts time.
    clocks: Vec<Clock>,
    /// Time of the last packet that had one: packets without take it over.
    latest: UnixNanos,
}

impl Pcapng {
    /// Does the file begin as this kind does? The section header itself is read as a block.
    pub(super) fn open(window: &mut Window) -> Result<Option<Self>, FileError> {
        if window.bytes().first_chunk() != Some(&SECTION_HEADER.to_be_bytes()) {
            return Ok(None);
        }
        if !window.fill(28)? {
            return Err(window.corrupt(Fault::HeaderTruncated));
        }
        let (clocks, latest) = (Vec::new(), UnixNanos(0));
        let order = section_order(window)?;
        Ok(Some(Self { order, section_start: 0, clocks, latest }))
    }

    /// The next packet; what lies before it is read and, if unknown, skipped.
    #[inline]
    pub(super) fn next_record(
        &mut self,
        window: &mut Window,
        interfaces: &mut Vec<Interface>,
    ) -> Result<Option<Record>, FileError> {
        while window.fill(FRAMING)? {
            let kind = self.order.word(window.bytes(), 0);
            if kind == SECTION_HEADER {
                self.order = section_order(window)?;
            }
            let total = self.order.word(window.bytes(), 1);
            if total < FRAMING as u32 || !total.is_multiple_of(4) {
                return Err(window.corrupt(Fault::BlockLength { length: total }));
            }
            if !is_known(kind) {
                if !self.skip_block(window, total)? {
                    return Ok(None);
                }
                continue;
            }
            if total > MAX_BLOCK as u32 {
                let fault = Fault::TooLong { length: total, limit: MAX_BLOCK as u32 };
                return Err(window.corrupt(fault));
            }
            let total = total as usize;
            if !window.fill(total)? {
                return Ok(None);
            }
            let block = window.bytes().get(..total).unwrap_or_default();
            match self.read_block(kind, block, interfaces) {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => window.consume(total),
                Err(fault) => return Err(window.corrupt(fault)),
            }
        }
        Ok(None)
    }

    /// False if the file ends within the block.
    fn skip_block(&self, window: &mut Window, total: u32) -> Result<bool, FileError> {
        if !window.skip(u64::from(total) - 4)? || !window.fill(4)? {
            window.note_cut();
            return Ok(false);
        }
        let trailer = self.order.word(window.bytes(), 0);
        if trailer != total {
            return Err(window.corrupt(Fault::Trailer { length: total, trailer }));
        }
        window.consume(4);
        Ok(true)
    }

    /// Reads one block of a known kind, framing included.
    #[inline]
    fn read_block(
        &mut self,
        kind: u32,
        block: &[u8],
        interfaces: &mut Vec<Interface>,
    ) -> Result<Option<Record>, Fault> {
        let body_end = block.len() - 4;
        let length = block.len() as u32;
        let trailer = self.order.word(block, body_end / 4);
        if trailer != length {
            return Err(Fault::Trailer { length, trailer });
        }
        let body = block.get(8..body_end).unwrap_or_default();
        match kind {
            ENHANCED_PACKET => self.enhanced_packet(body).map(Some),
            OBSOLETE_PACKET => self.obsolete_packet(body).map(Some),
            SIMPLE_PACKET => self.simple_packet(body, interfaces).map(Some),
            INTERFACE => self.interface(body, interfaces).map(|()| None),
            _ => self.section_header(body).map(|()| None),
        }
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
        interfaces.push(interface);
        self.clocks.push(clock);
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
        let clock = self.clocks.get(index).ok_or(Fault::UnknownInterface { interface })?;
        self.latest = clock.time(ticks);
        self.record(index, 28, captured, wire_len, data.len())
    }

    fn simple_packet(&self, body: &[u8], interfaces: &[Interface]) -> Result<Record, Fault> {
        let Some((fixed, data)) = body.split_first_chunk::<4>() else {
            return Err(Fault::BodyTooShort);
        };
        let interface =
            interfaces.get(self.section_start).ok_or(Fault::UnknownInterface { interface: 0 })?;
        let wire_len = self.order.u32(*fixed);
        let limit = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
        self.record(self.section_start, 12, wire_len.min(limit), wire_len, data.len())
    }

    /// A record of `captured` bytes, `start` bytes into its block, where there is `room` for it.
    #[inline]
    fn record(
        &self,
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
            data: start..start + captured as usize,
            // Body before the data, the data and what follows it in the body, the second length.
            total: start + room + 4,
            wire_len: WireLen(wire_len.max(captured)),
            time: self.latest,
            interface: interface as u32,
        })
    }
}

const fn is_known(kind: u32) -> bool {
    matches!(kind, SECTION_HEADER | INTERFACE | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET)
}

/// The byte order of the section whose header is at the start of the window.
fn section_order(window: &Window) -> Result<ByteOrder, FileError> {
    match window.bytes().get(8..12) {
        Some([0x4d, 0x3c, 0x2b, 0x1a]) => Ok(ByteOrder::Little),
        Some([0x1a, 0x2b, 0x3c, 0x4d]) => Ok(ByteOrder::Big),
        _ => Err(window.corrupt(Fault::ByteOrder)),
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
