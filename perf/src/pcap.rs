//! Capture files: a writer for every byte order and resolution that readers must take, and a reader of
//! what the load generator plays.
//!
//! Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

use std::io;

/// What kind of capture file to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// pcap or pcapng.
    pub container: Container,
    /// Resolution of the time stamps.
    pub resolution: Resolution,
    /// Most significant byte first.
    pub is_big_endian: bool,
    /// LINKTYPE_ number; 1 is Ethernet.
    pub link_type: u16,
}

impl Format {
    /// Ethernet in the usual format: pcap, little-endian, microseconds.
    pub const USUAL: Self = Self {
        container: Container::Pcap,
        resolution: Resolution::Micro,
        is_big_endian: false,
        link_type: 1,
    };

    /// Ethernet in both containers, both resolutions and both byte orders.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for container in [Container::Pcap, Container::Pcapng] {
            for resolution in [Resolution::Micro, Resolution::Nano] {
                for is_big_endian in [false, true] {
                    all.push(Self { container, resolution, is_big_endian, link_type: 1 });
                }
            }
        }
        all
    }
}

/// The two families of capture files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// The classic format.
    Pcap,
    /// Blocks; one section with one interface.
    Pcapng,
}

/// Resolution of time stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Microseconds.
    Micro,
    /// Nanoseconds.
    Nano,
}

const SNAPLEN: u32 = 262_144;
const PCAP_MICRO: u32 = 0xa1b2_c3d4;
const PCAP_NANO: u32 = 0xa1b2_3c4d;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Option of an interface: ticks of its time stamps.
const TIME_RESOLUTION: u16 = 9;
const ETHERNET: u32 = 1;

/// A capture file in memory.
#[derive(Clone, Debug)]
pub struct CaptureFile {
    format: Format,
    bytes: Vec<u8>,
}

impl CaptureFile {
    /// An empty file.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let mut file = Self { format, bytes: Vec::new() };
        match format.container {
            Container::Pcap => file.pcap_header(),
            Container::Pcapng => file.pcapng_header(),
        }
        file
    }

    /// A file of whole frames, with times in nanoseconds since 1970.
    #[must_use]
    pub fn of<F: AsRef<[u8]>>(format: Format, frames: impl IntoIterator<Item = (u64, F)>) -> Self {
        let mut file = Self::new(format);
        for (time, frame) in frames {
            file.add(time, frame.as_ref());
        }
        file
    }

    /// Adds a whole frame, seen at `time` nanoseconds since 1970.
    pub fn add(&mut self, time: u64, frame: &[u8]) {
        self.add_cut(time, frame, word(frame.len()));
    }

    /// Adds what was captured of a frame that had `wire_len` bytes.
    pub fn add_cut(&mut self, time: u64, captured: &[u8], wire_len: u32) {
        let unit = self.nanoseconds_per_tick();
        match self.format.container {
            Container::Pcap => {
                self.u32(low(time / 1_000_000_000));
                self.u32(low(time % 1_000_000_000 / unit));
                self.u32(word(captured.len()));
                self.u32(wire_len);
                self.bytes.extend(captured);
            }
            Container::Pcapng => {
                let ticks = time / unit;
                let body = [0, low(ticks >> 32), low(ticks), word(captured.len()), wire_len];
                let mut body = self.words(&body);
                body.extend(captured);
                self.block(ENHANCED_PACKET, &body);
            }
        }
    }

    /// Writes out what was added since the last call, and forgets it.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_to(&mut self, writer: &mut impl io::Write) -> io::Result<()> {
        writer.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    /// The file so far, but for what was written out.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pcap_header(&mut self) {
        let magic = match self.format.resolution {
            Resolution::Micro => PCAP_MICRO,
            Resolution::Nano => PCAP_NANO,
        };
        self.u32(magic);
        self.u16(2); // version 2.4
        self.u16(4);
        self.u32(0);
        self.u32(0);
        self.u32(SNAPLEN);
        self.u32(u32::from(self.format.link_type));
    }

    fn pcapng_header(&mut self) {
        let mut section = self.words(&[BYTE_ORDER]);
        section.extend(self.halves(&[1, 0])); // version 1.0
        section.extend([0xff; 8]); // length of the section: not known
        self.block(SECTION_HEADER, &section);
        let mut interface = self.halves(&[self.format.link_type, 0]);
        interface.extend(self.words(&[SNAPLEN]));
        if self.format.resolution == Resolution::Nano {
            interface.extend(self.halves(&[TIME_RESOLUTION, 1]));
            interface.extend([9, 0, 0, 0]); // 10^-9 s, padded
            interface.extend([0; 4]); // end of options
        }
        self.block(INTERFACE_DESCRIPTION, &interface);
    }

    fn block(&mut self, kind: u32, body: &[u8]) {
        let padding = body.len().next_multiple_of(4) - body.len();
        let length = word(12 + body.len() + padding);
        self.u32(kind);
        self.u32(length);
        self.bytes.extend(body);
        self.bytes.extend(std::iter::repeat_n(0, padding));
        self.u32(length);
    }

    fn nanoseconds_per_tick(&self) -> u64 {
        match self.format.resolution {
            Resolution::Micro => 1000,
            Resolution::Nano => 1,
        }
    }

    fn u32(&mut self, value: u32) {
        let bytes = self.words(&[value]);
        self.bytes.extend(bytes);
    }

    fn u16(&mut self, value: u16) {
        let bytes = self.halves(&[value]);
        self.bytes.extend(bytes);
    }

    fn words(&self, values: &[u32]) -> Vec<u8> {
        let big = self.format.is_big_endian;
        values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect()
    }

    fn halves(&self, values: &[u16]) -> Vec<u8> {
        let big = self.format.is_big_endian;
        values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect()
    }
}

/// Why a capture file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It begins like no capture file.
    #[error("this is neither a pcap nor a pcapng file")]
    Magic,
    /// It ends within a header, or a length in it points beyond its end.
    #[error("capture file is cut off or damaged at byte {offset}")]
    Damaged {
        /// Where the part begins that does not fit.
        offset: usize,
    },
    /// Its frames are none that an Ethernet interface could have.
    #[error("capture file has frames of link type {link_type}, not Ethernet (1)")]
    LinkType {
        /// LINKTYPE_ number.
        link_type: u32,
    },
}

/// A frame of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// When it was seen, in nanoseconds since 1970. Simple packets of pcapng have no time: 0.
    pub time: u64,
    /// What was captured of it.
    pub frame: &'a [u8],
    /// Its bytes on the wire.
    pub wire_len: u32,
}

/// All Ethernet frames of a pcap or pcapng file, in their order.
///
/// # Errors
/// See [`ReadError`].
pub fn packets(file: &[u8]) -> Result<Vec<Packet<'_>>, ReadError> {
    let mut reader = Reader { file, offset: 0, is_big_endian: false };
    let magic = reader.peek().map_err(|_| ReadError::Magic)?;
    if magic == SECTION_HEADER {
        return reader.pcapng();
    }
    reader.is_big_endian = [PCAP_MICRO, PCAP_NANO].contains(&magic.swap_bytes());
    match reader.peek()? {
        PCAP_MICRO => reader.pcap(1000),
        PCAP_NANO => reader.pcap(1),
        _ => Err(ReadError::Magic),
    }
}

struct Reader<'a> {
    file: &'a [u8],
    offset: usize,
    is_big_endian: bool,
}

impl<'a> Reader<'a> {
    fn pcap(&mut self, nanoseconds_per_tick: u64) -> Result<Vec<Packet<'a>>, ReadError> {
        let mut packets = Vec::new();
        self.take(20)?;
        // Above the link type are flags.
        check_link_type(self.u32()? & 0xffff)?;
        while self.offset < self.file.len() {
            let seconds = u64::from(self.u32()?);
            let ticks = u64::from(self.u32()?);
            let captured = self.u32()?;
            let wire_len = self.u32()?;
            let time = seconds * 1_000_000_000 + ticks * nanoseconds_per_tick;
            packets.push(Packet { time, frame: self.take(captured)?, wire_len });
        }
        Ok(packets)
    }

    fn pcapng(&mut self) -> Result<Vec<Packet<'a>>, ReadError> {
        let mut packets = Vec::new();
        // Ticks per second of each interface of the section.
        let mut interfaces = Vec::new();
        while self.offset < self.file.len() {
            let start = self.offset;
            if self.peek()? == SECTION_HEADER {
                let order = Reader { file: self.file, offset: start + 8, is_big_endian: true };
                let order = order.peek().map_err(|_| ReadError::Damaged { offset: start })?;
                self.is_big_endian = order == BYTE_ORDER;
                interfaces.clear();
            }
            let kind = self.u32()?;
            let length = self.u32()?;
            let body = length.checked_sub(12).ok_or(ReadError::Damaged { offset: start })?;
            let file = self.take(body)?;
            self.take(4)?;
            let mut block = Reader { file, offset: 0, is_big_endian: self.is_big_endian };
            // Offsets in errors count from the begin of the file.
            let damaged = |error| match error {
                ReadError::Damaged { .. } => ReadError::Damaged { offset: start },
                other => other,
            };
            match kind {
                INTERFACE_DESCRIPTION => interfaces.push(block.interface().map_err(damaged)?),
                ENHANCED_PACKET => {
                    packets.push(block.enhanced_packet(&interfaces).map_err(damaged)?);
                }
                SIMPLE_PACKET => packets.push(block.simple_packet().map_err(damaged)?),
                _ => {}
            }
        }
        Ok(packets)
    }

    /// Ticks per second of the interface that is described.
    fn interface(&mut self) -> Result<u64, ReadError> {
        check_link_type(u32::from(self.u16()?))?;
        self.take(6)?;
        while self.offset < self.file.len() {
            let (code, length) = (self.u16()?, u32::from(self.u16()?));
            let value = self.take(length.next_multiple_of(4))?;
            if code == TIME_RESOLUTION && length == 1 {
                let exponent = u32::from(value[0] & 0x7f);
                let base: u64 = if value[0] & 0x80 == 0 { 10 } else { 2 };
                let damaged = ReadError::Damaged { offset: self.offset };
                return base.checked_pow(exponent).ok_or(damaged);
            }
        }
        Ok(1_000_000)
    }

    fn enhanced_packet(&mut self, interfaces: &[u64]) -> Result<Packet<'a>, ReadError> {
        let interface = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let ticks_per_second = interfaces.get(interface);
        let ticks_per_second = *ticks_per_second.ok_or(ReadError::Damaged { offset: 0 })?;
        let ticks = u64::from(self.u32()?) << 32 | u64::from(self.u32()?);
        let time = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second);
        let captured = self.u32()?;
        let wire_len = self.u32()?;
        let time = u64::try_from(time).unwrap_or(u64::MAX);
        Ok(Packet { time, frame: self.take(captured)?, wire_len })
    }

    fn simple_packet(&mut self) -> Result<Packet<'a>, ReadError> {
        let wire_len = self.u32()?;
        let stored = word(self.file.len() - self.offset);
        Ok(Packet { time: 0, frame: self.take(wire_len.min(stored))?, wire_len })
    }

    fn peek(&self) -> Result<u32, ReadError> {
        Reader { ..*self }.u32()
    }

    fn u16(&mut self) -> Result<u16, ReadError> {
        let bytes = self.take(2)?;
        let bytes = [bytes[0], bytes[1]];
        Ok(if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&mut self) -> Result<u32, ReadError> {
        let bytes = self.take(4)?;
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        Ok(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn take(&mut self, bytes: u32) -> Result<&'a [u8], ReadError> {
        let rest = self.file.get(self.offset..).unwrap_or_default();
        let taken = usize::try_from(bytes).ok().and_then(|bytes| rest.get(..bytes));
        let taken = taken.ok_or(ReadError::Damaged { offset: self.offset })?;
        self.offset += taken.len();
        Ok(taken)
    }
}

fn check_link_type(link_type: u32) -> Result<(), ReadError> {
    if link_type == ETHERNET { Ok(()) } else { Err(ReadError::LinkType { link_type }) }
}

fn word(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn low(value: u64) -> u32 {
    (value & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: u64 = 1_700_000_000_123_456_789;

    #[test]
    fn frames_come_back_from_every_format() {
        let given = [vec![1; 60], vec![2; 61], vec![]];
        for format in Format::all() {
            let file = CaptureFile::of(format, given.iter().map(|frame| (TIME, frame)));
            let packets = packets(file.bytes()).unwrap();
            let frames: Vec<_> = packets.iter().map(|packet| packet.frame).collect();
            assert_eq!(frames, given, "{format:?}");
            let cut = if format.resolution == Resolution::Micro { 789 } else { 0 };
            assert!(packets.iter().all(|packet| packet.time == TIME - cut), "{packets:?}");
        }
    }

    #[test]
    fn headers_are_those_of_the_formats() {
        let file = CaptureFile::of(Format::USUAL, [(TIME, b"abc")]);
        assert_eq!(file.bytes()[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        let time = u64::from(u32::from_le_bytes(file.bytes()[24..28].try_into().unwrap()));
        assert_eq!(time, TIME / 1_000_000_000);
        assert_eq!(u32::from_le_bytes(file.bytes()[28..32].try_into().unwrap()), 123_456);
    }

    #[test]
    fn every_cut_is_an_error_or_a_shorter_file() {
        for format in Format::all() {
            let file = CaptureFile::of(format, [(TIME, [1; 20]), (TIME, [2; 20])]);
            for end in 0..file.bytes().len() {
                match packets(&file.bytes()[..end]) {
                    Ok(packets) => assert!(packets.len() < 2, "{format:?} {end}"),
                    Err(ReadError::Magic) => assert!(end < 4),
                    Err(ReadError::Damaged { offset }) => assert!(offset <= end),
                    Err(other @ ReadError::LinkType { .. }) => panic!("{other}"),
                }
            }
        }
        assert_eq!(packets(b"GET / HTTP/1.1"), Err(ReadError::Magic));
    }

    #[test]
    fn frames_of_another_link_type_are_refused() {
        for container in [Container::Pcap, Container::Pcapng] {
            let raw_ip = CaptureFile::new(Format { container, link_type: 101, ..Format::USUAL });
            let expected = Err(ReadError::LinkType { link_type: 101 });
            assert_eq!(packets(raw_ip.bytes()), expected);
        }
    }
}
