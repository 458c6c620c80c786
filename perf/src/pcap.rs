//! Capture files: a writer for every byte order and resolution that readers must take, and a reader of
//! what the load generator sends.
//!
//! Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

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

    /// The file so far.
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
        const TIME_RESOLUTION: u16 = 9;
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
}

/// The bytes of all frames of a pcap or pcapng file.
///
/// # Errors
/// See [`ReadError`].
pub fn frames(file: &[u8]) -> Result<Vec<&[u8]>, ReadError> {
    let mut reader = Reader { file, offset: 0, is_big_endian: false };
    let magic = reader.peek().map_err(|_| ReadError::Magic)?;
    match magic {
        SECTION_HEADER => reader.pcapng(),
        PCAP_MICRO | PCAP_NANO => reader.pcap(),
        _ if [PCAP_MICRO, PCAP_NANO].contains(&magic.swap_bytes()) => {
            reader.is_big_endian = true;
            reader.pcap()
        }
        _ => Err(ReadError::Magic),
    }
}

struct Reader<'a> {
    file: &'a [u8],
    offset: usize,
    is_big_endian: bool,
}

impl<'a> Reader<'a> {
    fn pcap(&mut self) -> Result<Vec<&'a [u8]>, ReadError> {
        let mut frames = Vec::new();
        self.take(24)?;
        while self.offset < self.file.len() {
            self.take(8)?;
            let captured = self.u32()?;
            self.take(4)?;
            frames.push(self.take(captured)?);
        }
        Ok(frames)
    }

    fn pcapng(&mut self) -> Result<Vec<&'a [u8]>, ReadError> {
        let mut frames = Vec::new();
        while self.offset < self.file.len() {
            let start = self.offset;
            if self.peek()? == SECTION_HEADER {
                let order = Reader { file: self.file, offset: start + 8, is_big_endian: true };
                let order = order.peek().map_err(|_| ReadError::Damaged { offset: start })?;
                self.is_big_endian = order == BYTE_ORDER;
            }
            let kind = self.u32()?;
            let length = self.u32()?;
            let body = length.checked_sub(12).ok_or(ReadError::Damaged { offset: start })?;
            let file = self.take(body)?;
            self.take(4)?;
            let mut block = Reader { file, offset: 0, is_big_endian: self.is_big_endian };
            let damaged = |_| ReadError::Damaged { offset: start };
            match kind {
                ENHANCED_PACKET => frames.push(block.enhanced_packet().map_err(damaged)?),
                SIMPLE_PACKET => frames.push(block.simple_packet().map_err(damaged)?),
                _ => {}
            }
        }
        Ok(frames)
    }

    fn enhanced_packet(&mut self) -> Result<&'a [u8], ReadError> {
        self.take(12)?;
        let captured = self.u32()?;
        self.take(4)?;
        self.take(captured)
    }

    fn simple_packet(&mut self) -> Result<&'a [u8], ReadError> {
        let wire_len = self.u32()?;
        let stored = word(self.file.len() - self.offset);
        self.take(wire_len.min(stored))
    }

    fn peek(&self) -> Result<u32, ReadError> {
        Reader { ..*self }.u32()
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
            assert_eq!(frames(file.bytes()).unwrap(), given, "{format:?}");
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
                match frames(&file.bytes()[..end]) {
                    Ok(frames) => assert!(frames.len() < 2, "{format:?} {end}"),
                    Err(ReadError::Magic) => assert!(end < 4),
                    Err(ReadError::Damaged { offset }) => assert!(offset <= end),
                }
            }
        }
        assert_eq!(frames(b"GET / HTTP/1.1"), Err(ReadError::Magic));
    }
}
