//! Captured frames out of files, and which conversation they belong to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader};

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Captured {
    /// Nanoseconds since 1970.
    pub time: u64,
    pub wire_len: u32,
    pub data: Vec<u8>,
}

/// Frames of a pcapng file by interface. Every interface has one block.
///
/// # Panics
/// If it is damaged, or an interface is not described in nanoseconds.
pub fn read_pcapng(path: &Path) -> Vec<(String, Vec<Captured>)> {
    let mut reader = PcapNGReader::new(1 << 20, fs::File::open(path).unwrap()).unwrap();
    let mut interfaces: Vec<(String, Vec<Captured>)> = Vec::new();
    // By number in the file: one of the same name for each rate of export.
    let mut places = Vec::new();
    loop {
        match reader.next() {
            Ok((offset, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                        assert_eq!(block.if_tsresol, 9);
                        let name = block.if_name().unwrap().unwrap().to_owned();
                        let known = interfaces.iter().position(|(known, _)| *known == name);
                        places.push(known.unwrap_or(interfaces.len()));
                        if known.is_none() {
                            interfaces.push((name, Vec::new()));
                        }
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                        interfaces[places[block.if_id as usize]].1.push(Captured {
                            time: u64::from(block.ts_high) << 32 | u64::from(block.ts_low),
                            wire_len: block.origlen,
                            data: block.data[..block.caplen as usize].to_vec(),
                        });
                    }
                    _ => {}
                }
                reader.consume(offset);
            }
            Err(PcapError::Eof) => return interfaces,
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(error) => panic!("{}: {error:?}", path.display()),
        }
    }
}

/// Frames of a pcap file with nanoseconds in our byte order, as tcpdump writes it; a frame that is
/// cut off at the end is left out.
pub fn read_pcap(path: &Path) -> Vec<Captured> {
    let bytes = fs::read(path).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_3c4d, "nanoseconds, our byte order");
    let mut frames = Vec::new();
    let mut at = 24;
    while at + 16 <= bytes.len() {
        let end = at + 16 + word(at + 8) as usize;
        let Some(data) = bytes.get(at + 16..end) else { break };
        let time = u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4));
        frames.push(Captured { time, wire_len: word(at + 12), data: data.to_vec() });
        at = end;
    }
    frames
}

/// What makes a conversation: EtherType behind all tags, protocol, both ends. Fragments have no
/// ports. Frames that are not IP are one conversation for each EtherType.
pub type Conversation = (u16, u8, Vec<Vec<u8>>);

/// The conversation of a frame, either direction.
pub fn conversation(frame: &[u8]) -> Conversation {
    let word =
        |at: usize| frame.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let mut at = 12;
    while matches!(word(at), 0x8100 | 0x88a8) {
        at += 4;
    }
    let (kind, ip) = (word(at), at + 2);
    let (protocol, addresses, ports) = match kind {
        0x0800 if frame.len() >= ip + 20 => {
            let is_fragment = word(ip + 6) & 0x3fff != 0;
            let ports = ip + usize::from(frame[ip] & 15) * 4;
            (frame[ip + 9], ip + 12..ip + 20, (!is_fragment).then_some(ports))
        }
        0x86dd if frame.len() >= ip + 40 => (frame[ip + 6], ip + 8..ip + 40, Some(ip + 40)),
        _ => return (kind, 0, Vec::new()),
    };
    let ports = ports.filter(|_| matches!(protocol, 6 | 17));
    let addresses = &frame[addresses];
    let (source, target) = addresses.split_at(addresses.len() / 2);
    let port = |at: Option<usize>| at.and_then(|at| frame.get(at..at + 2)).unwrap_or(&[]);
    let mut ends =
        vec![[source, port(ports)].concat(), [target, port(ports.map(|at| at + 2))].concat()];
    ends.sort();
    (kind, protocol, ends)
}

/// Frames by conversation, in their order.
pub fn grouped(frames: &[Captured]) -> BTreeMap<Conversation, Vec<&Captured>> {
    let mut groups: BTreeMap<Conversation, Vec<&Captured>> = BTreeMap::new();
    for frame in frames {
        groups.entry(conversation(&frame.data)).or_default().push(frame);
    }
    groups
}
