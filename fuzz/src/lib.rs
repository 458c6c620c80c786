//! What the fuzz targets call. The sensor's tests include this file and replay every seed and every
//! crash of the past with it, so it names nothing but the sensor's public items.

use std::io::Cursor;

use packet::frame::{Frame, LinkType, VlanTag};
use packet::{FiveTuple, Kind, parse};
use sensor::file::CaptureFile;
use wire::codec::Decoder;
use wire::header::HEADER_LEN;
use wire::message::Message;
use wire::units::{UnixNanos, WireLen};

/// Link types by the first byte of the input, one that is not supported included.
const LINKS: [LinkType; 8] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::NULL,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType(147),
];

/// The parser: a byte for the link type, one for a tag of the kernel (0: none), two for the bytes that
/// were on the wire and not captured; then the frame.
///
/// # Panics
/// If the parser says what cannot be.
pub fn parser(input: &[u8]) {
    let Some(([link, tag, cut0, cut1], data)) = input.split_first_chunk() else { return };
    let link = LINKS[usize::from(*link) % LINKS.len()];
    let vlan = (*tag != 0).then(|| VlanTag { protocol: 0x8100, control: u16::from(*tag) });
    let wire_len = data.len() as u32 + u32::from(u16::from_le_bytes([*cut0, *cut1]));
    check_frame(&Frame {
        data,
        wire_len: WireLen(wire_len),
        time: UnixNanos(0),
        vlan,
        link,
        interface: 0,
    });
}

/// The reader of capture files: the input is a file.
///
/// # Panics
/// If the reader hands out what the file cannot hold.
pub fn capture_file(input: &[u8]) {
    let Ok(mut file) = CaptureFile::from_reader(Cursor::new(input.to_vec()), "input") else {
        return;
    };
    let mut bytes = 0;
    while let Ok(Some(found)) = file.next_frame() {
        check_frame(&found.frame);
        bytes += found.frame.data.len();
        let (interface, link) = (found.interface as usize, found.frame.link);
        assert_eq!(file.interfaces()[interface].link, link);
    }
    assert!(bytes <= input.len(), "{bytes} bytes of frames in a file of {}", input.len());
}

/// The decoder of the wire format: a byte that says in what pieces the rest arrives, and (lowest bit)
/// whether each message is given the checksum that it should have, so that what lies behind is reached.
///
/// # Panics
/// If the decoder says what cannot be.
pub fn wire_decoder(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        reseal(&mut bytes);
    }
    let piece = 1 + usize::from(*mode >> 1) * 37;
    let (mut decoder, mut rest, mut found) = (Decoder::new(), &bytes[..], 0);
    while !rest.is_empty() {
        let taken = decoder.push(&rest[..piece.min(rest.len())]);
        rest = &rest[taken..];
        loop {
            match decoder.next_message() {
                Ok(None) => break,
                Ok(Some(message)) => {
                    check_message(&message);
                    found += 1;
                }
                Err(error) => return assert_eq!(decoder.next_message().err(), Some(error)),
            }
        }
        assert!(taken > 0, "no space although no message waits");
    }
    assert!(found * HEADER_LEN <= bytes.len(), "{found} messages in {} bytes", bytes.len());
}

fn check_message(message: &Message<'_>) {
    match message {
        Message::Control(_) => {}
        Message::Records(batch) => {
            assert_eq!(batch.iter().count(), batch.len() as usize);
            assert_eq!(batch.iter().last().map(|it| it.sequence), Some(batch.last()));
        }
        Message::Frames(batch) => assert_eq!(batch.iter().count(), batch.len() as usize),
    }
}

fn reseal(bytes: &mut [u8]) {
    let mut rest = bytes;
    while rest.len() >= HEADER_LEN {
        let len = u32::from_le_bytes([rest[20], rest[21], rest[22], rest[23]]) as usize;
        let Some((message, behind)) = rest.split_at_mut_checked(HEADER_LEN + len) else { return };
        message[24..28].fill(0);
        let crc = crc32c::crc32c(message).to_le_bytes();
        message[24..28].copy_from_slice(&crc);
        rest = behind;
    }
}

/// A frame is parsed to something that holds together.
///
/// # Panics
/// If it is not.
pub fn check_frame(frame: &Frame<'_>) {
    assert!(frame.data.len() <= frame.wire_len.0 as usize);
    let packet = parse(frame);
    assert_eq!(packet, parse(frame));
    assert!(packet.tunnel_depth <= 4, "{packet:?}");
    let has_ip = packet.tuple != FiveTuple::default();
    match packet.kind {
        Kind::Arp { .. } => assert_eq!(packet.tuple.protocol, 0, "{packet:?}"),
        Kind::Other => assert!(!has_ip, "{packet:?}"),
        Kind::LaterFragment => assert!(packet.is_fragment, "{packet:?}"),
        Kind::Icmp { .. } | Kind::OtherIp => {
            assert_eq!((packet.tuple.source_port, packet.tuple.target_port), (0, 0));
        }
        Kind::Tcp { .. } | Kind::Udp | Kind::Sctp { .. } | Kind::Malformed(_) => {}
    }
}
