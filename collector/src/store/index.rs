//! The index of a segment: what is in it, so that a question for frames reads no more of the file than it
//! must. It is the last block of a sealed segment, of a type for local use that other readers skip; of an
//! open one it is made when it is needed.
//!
//! ```text
//!   version u32 · crc32c u32 · first u64 · last u64 · frames u64
//!   interfaces u32 · strides u32 · addresses u32 · ports u32
//!   interfaces: link type u16 · length u16 · name · length u16 · description
//!   strides:    offset u64 · length u32 · frames u32 · first u64 · last u64
//!   addresses:  crc32c of each distinct one, u32, in order; none and the number 2³²-1: too many to list
//!   ports:      each distinct one, u16, in order
//! ```
//!
//! Little-endian; times in nanoseconds since 1970. Addresses and ports are those of the innermost packet, as
//! the sensor's events have them. What the index says of them may be too much (two addresses may have one
//! checksum), never too little.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use packet::frame::{Frame, LinkType};
use packet::{Address, protocol};
use wire::units::UnixNanos;

use super::blocks::{self, Block, Next, StoredFrame};
use super::pcapng;

/// Of a segment so much is read at once.
const STRIDE: usize = 1 << 20;
/// Distinct addresses that are listed; a segment with more says nothing of its addresses.
const MOST_ADDRESSES: usize = 1 << 18;
const VERSION: u32 = 1;
/// Bytes in front of the interfaces.
const HEAD: usize = 48;
/// Longest index: every port, most addresses, strides of 16 GiB, and some MiB of names.
const LONGEST: u64 = 8 << 20;
/// In place of the number of addresses: there were too many.
const TOO_MANY: u32 = u32::MAX;

/// What is in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Its interfaces, by number.
    pub interfaces: Vec<IndexedInterface>,
    /// Its parts that have frames, in the order of the file.
    pub strides: Vec<Stride>,
    /// `None`: too many to list.
    addresses: Option<Vec<u32>>,
    ports: Vec<u16>,
}

/// What a walk over a segment comes to.
#[derive(Debug)]
pub struct Walk {
    /// What is in it.
    pub index: Index,
    /// An index lies among the blocks.
    pub has_index: bool,
    /// Where whole blocks end.
    pub end: u64,
}

/// An interface of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IndexedInterface {
    /// `SENSOR/INTERFACE`.
    pub name: String,
    /// LINKTYPE_ number.
    pub linktype: u16,
    /// What a reader has to know of its frames.
    pub description: String,
}

impl IndexedInterface {
    /// The sensor whose interface it is.
    #[must_use]
    pub fn sensor(&self) -> &str {
        self.name.split_once('/').map_or(self.name.as_str(), |(sensor, _)| sensor)
    }
}

/// A part of a segment: whole blocks, of which the last is a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u32,
    /// Its frames, at least one.
    pub frames: u32,
    /// Time of its earliest frame.
    pub first: UnixNanos,
    /// Time of its latest frame.
    pub last: UnixNanos,
}

/// What an index says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Time of the earliest frame.
    pub first: UnixNanos,
    /// Time of the latest frame.
    pub last: UnixNanos,
    /// How many there are.
    pub frames: u64,
}

/// Who talks to whom in a frame: of the innermost packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source and target; `None` for what has no addresses.
    pub addresses: Option<[Address; 2]>,
    /// Source and target; `None` for what has no ports, later fragments too.
    pub ports: Option<[u16; 2]>,
}

impl Ends {
    /// The ends of a frame.
    #[must_use]
    pub fn of(frame: &StoredFrame<'_>, linktype: u16) -> Self {
        let StoredFrame { data, wire_len, time, .. } = *frame;
        let link = LinkType(linktype);
        let packet = packet::parse(&Frame { data, wire_len, time, vlan: None, link, interface: 0 });
        let tuple = packet.tuple;
        let has_ports = matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
            && packet.kind != packet::Kind::LaterFragment;
        let addresses = [tuple.source, tuple.target];
        Self {
            addresses: (addresses != [Address::default(); 2]).then_some(addresses),
            ports: has_ports.then_some([tuple.source_port, tuple.target_port]),
        }
    }
}

impl Index {
    /// Reads the first `length` bytes of a segment and says what is in them. Stops where whole blocks end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(file: &File, length: u64) -> io::Result<Walk> {
        let mut builder = Builder::default();
        let mut buffer = vec![0; STRIDE];
        let mut offset = 0;
        while offset < length {
            let want = usize::try_from(length - offset).unwrap_or(STRIDE).min(STRIDE);
            file.read_exact_at(&mut buffer[..want], offset)?;
            let (used, next) = builder.take(offset, &buffer[..want]);
            offset += used as u64;
            match next {
                // A block longer than a stride holds no frame.
                Next::Cut(block) if used == 0 && offset + block as u64 <= length => {
                    builder.has_index |= block > STRIDE;
                    offset += block as u64;
                }
                Next::Cut(_) if used > 0 => {}
                Next::Cut(_) | Next::Broken | Next::Whole(..) => break,
            }
        }
        Ok(Walk { index: builder.index(), has_index: builder.has_index, end: offset })
    }

    /// Reads the index of a sealed segment; `None` if it has none, or a damaged one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let Some((offset, length)) = place(file)? else { return Ok(None) };
        let mut block = vec![0; length];
        file.read_exact_at(&mut block, offset)?;
        match blocks::next(&block) {
            Next::Whole(Block::Index(body), _) => Ok(Self::decode(body)),
            _ => Ok(None),
        }
    }

    /// Time of the first and the last frame; `None` if there is no frame.
    #[must_use]
    pub fn span(&self) -> Option<Span> {
        Some(Span {
            first: self.strides.iter().map(|stride| stride.first).min()?,
            last: self.strides.iter().map(|stride| stride.last).max()?,
            frames: self.strides.iter().map(|stride| u64::from(stride.frames)).sum(),
        })
    }

    /// May there be a frame from or to this host, and one from or to this port?
    #[must_use]
    pub fn may_have(&self, host: Option<Address>, port: Option<u16>) -> bool {
        let has_host = |host| {
            let listed = self.addresses.as_ref();
            listed.is_none_or(|addresses| addresses.binary_search(&checksum(host)).is_ok())
        };
        host.is_none_or(has_host) && port.is_none_or(|port| self.ports.binary_search(&port).is_ok())
    }

    /// The body of its block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Span { first, last, frames } =
            self.span().unwrap_or(Span { first: UnixNanos(0), last: UnixNanos(0), frames: 0 });
        let mut out = [VERSION.to_le_bytes(), [0; 4]].concat();
        for number in [first.0, last.0, frames] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        // All of them fit into LONGEST bytes.
        let addresses = self.addresses.as_ref();
        let counts = [
            self.interfaces.len() as u32,
            self.strides.len() as u32,
            addresses.map_or(TOO_MANY, |addresses| addresses.len() as u32),
            self.ports.len() as u32,
        ];
        counts.iter().for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
        for IndexedInterface { name, linktype, description } in &self.interfaces {
            out.extend_from_slice(&linktype.to_le_bytes());
            for text in [name, description] {
                // As long as an option of pcapng can be.
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
            }
        }
        for Stride { offset, length, frames, first, last } in &self.strides {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&frames.to_le_bytes());
            out.extend_from_slice(&first.0.to_le_bytes());
            out.extend_from_slice(&last.0.to_le_bytes());
        }
        for address in addresses.into_iter().flatten() {
            out.extend_from_slice(&address.to_le_bytes());
        }
        self.ports.iter().for_each(|port| out.extend_from_slice(&port.to_le_bytes()));
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The index in the body of a block, which may be padded; `None` if it is none of this version, or damaged.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields { rest: body };
        let (version, crc) = (fields.u32()?, fields.u32()?);
        let checked = fields.rest;
        fields.take(HEAD - 24)?;
        let [interfaces, strides, addresses, ports] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let interfaces = (0..interfaces).map(|_| fields.interface()).collect::<Option<_>>()?;
        let strides = (0..strides).map(|_| fields.stride()).collect::<Option<_>>()?;
        let addresses = match addresses {
            TOO_MANY => None,
            count => Some((0..count).map(|_| fields.u32()).collect::<Option<_>>()?),
        };
        let ports = (0..ports).map(|_| fields.u16()).collect::<Option<_>>()?;
        let used = checked.len() - fields.rest.len();
        let is_sound = version == VERSION && crc32c::crc32c(&checked[..used]) == crc;
        is_sound.then_some(Self { interfaces, strides, addresses, ports })
    }
}

impl Span {
    /// What the index of a sealed segment says first, without reading the rest of it; `None` if it has none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let Some((offset, _)) = place(file)? else { return Ok(None) };
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, offset + blocks::HEAD as u64)?;
        let mut fields = Fields { rest: &head };
        let is_known = fields.u32() == Some(VERSION) && fields.u32().is_some();
        let read = |fields: &mut Fields<'_>| {
            Some(Self {
                first: UnixNanos(fields.u64()?),
                last: UnixNanos(fields.u64()?),
                frames: fields.u64()?,
            })
        };
        Ok(read(&mut fields).filter(|_| is_known))
    }
}

/// Where the block of the index begins, and its bytes.
fn place(file: &File) -> io::Result<Option<(u64, usize)>> {
    let length = file.metadata()?.len();
    let Some(tail) = length.checked_sub(4) else { return Ok(None) };
    let mut size = [0; 4];
    file.read_exact_at(&mut size, tail)?;
    let size = u64::from(u32::from_le_bytes(size));
    if !(HEAD as u64 + 12..=LONGEST).contains(&size) || size > length {
        return Ok(None);
    }
    let mut kind = [0; 4];
    file.read_exact_at(&mut kind, length - size)?;
    let is_index = u32::from_le_bytes(kind) == pcapng::SEGMENT_INDEX;
    Ok(is_index.then_some((length - size, size as usize)))
}

/// What is said of an address. Anybody could find two with the same one, to make a reader read more than it must.
fn checksum(address: Address) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&address.high().to_le_bytes()),
        &address.low().to_le_bytes(),
    )
}

/// Collects what is in a segment.
struct Builder {
    interfaces: Vec<IndexedInterface>,
    strides: Vec<Stride>,
    addresses: Option<HashSet<u32>>,
    /// A bit for each port.
    ports: Vec<u64>,
    has_index: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            strides: Vec::new(),
            addresses: Some(HashSet::new()),
            ports: vec![0; (1 << 16) / 64],
            has_index: false,
        }
    }
}

impl Builder {
    /// Takes in the whole blocks of a stride at `offset`. Returns their bytes, and what follows them.
    fn take<'a>(&mut self, offset: u64, bytes: &'a [u8]) -> (usize, Next<'a>) {
        let mut stride =
            Stride { offset, length: 0, frames: 0, first: UnixNanos(u64::MAX), last: UnixNanos(0) };
        let mut used = 0;
        let end = loop {
            match blocks::next(&bytes[used..]) {
                Next::Whole(block, length) => {
                    used += length;
                    if self.take_block(block, &mut stride) {
                        // At most STRIDE.
                        stride.length = used as u32;
                    }
                }
                end => break end,
            }
        };
        if stride.frames > 0 {
            self.strides.push(stride);
        }
        (used, end)
    }

    /// Says whether it is a frame.
    fn take_block(&mut self, block: Block<'_>, stride: &mut Stride) -> bool {
        match block {
            Block::Interface(interface) => self.interfaces.push(IndexedInterface {
                name: interface.name.to_owned(),
                linktype: interface.linktype,
                description: interface.description.to_owned(),
            }),
            Block::Packet(frame) => {
                stride.frames += 1;
                stride.first = stride.first.min(frame.time);
                stride.last = stride.last.max(frame.time);
                let interface = self.interfaces.get(frame.interface as usize);
                if let Some(linktype) = interface.map(|interface| interface.linktype) {
                    self.note(&Ends::of(&frame, linktype));
                }
                return true;
            }
            Block::Index(_) => self.has_index = true,
            Block::Other => {}
        }
        false
    }

    fn note(&mut self, ends: &Ends) {
        if let Some(listed) = &mut self.addresses {
            listed.extend(ends.addresses.iter().flatten().map(|address| checksum(*address)));
            if listed.len() > MOST_ADDRESSES {
                self.addresses = None;
            }
        }
        for port in ends.ports.iter().flatten() {
            self.ports[usize::from(*port) / 64] |= 1 << (port % 64);
        }
    }

    fn index(&mut self) -> Index {
        let addresses = self.addresses.take().map(|listed| {
            let mut addresses: Vec<_> = listed.into_iter().collect();
            addresses.sort_unstable();
            addresses
        });
        let is_used = |port: &u16| self.ports[usize::from(*port) / 64] & 1 << (port % 64) != 0;
        Index {
            interfaces: std::mem::take(&mut self.interfaces),
            strides: std::mem::take(&mut self.strides),
            addresses,
            ports: (0..=u16::MAX).filter(is_used).collect(),
        }
    }
}

/// Numbers out of bytes.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn interface(&mut self) -> Option<IndexedInterface> {
        let linktype = self.u16()?;
        let (name, description) = (self.text()?, self.text()?);
        Some(IndexedInterface { name, linktype, description })
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u16()?;
        let text = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        Some(text.to_owned())
    }

    fn stride(&mut self) -> Option<Stride> {
        let stride = Stride {
            offset: self.u64()?,
            length: self.u32()?,
            frames: self.u32()?,
            first: UnixNanos(self.u64()?),
            last: UnixNanos(self.u64()?),
        };
        // It is read as a whole.
        (stride.length as usize <= STRIDE).then_some(stride)
    }
}

#[cfg(test)]
mod tests;
