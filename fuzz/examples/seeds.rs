//! Writes the seeds of the targets into `corpus/`: frames in all tunnels, small capture files, ring
//! blocks as the kernel fills them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use perf::frames;
use perf::pcap::{CaptureFile, Format};
use perf::tunnels::{self, Tunnel};

fn main() -> std::io::Result<()> {
    let frames = all_frames();
    let headers = |link: u8, tag: u8| [link, tag, 0, 0];
    for (number, frame) in frames.iter().enumerate() {
        let input = [&headers(0, (number % 3) as u8), &frame[..]].concat();
        write("parser", &format!("ethernet-{number:02}"), &input)?;
    }
    let packet = &frames[0][14..];
    for (link, name, header) in [
        (1, "raw", vec![]),
        (4, "null", vec![2, 0, 0, 0]),
        (5, "sll", [&[0; 14][..], &[8, 0]].concat()),
        (6, "sll2", [&[8, 0][..], &[0; 18]].concat()),
    ] {
        write("parser", name, &[&headers(link, 0), &header[..], packet].concat())?;
    }
    for (number, format) in Format::all().into_iter().enumerate() {
        let few = frames.iter().take(3).map(|frame| (1_700_000_000_000_000_000, frame));
        let file = CaptureFile::of(format, few);
        write("capture_file", &format!("format-{number}"), file.bytes())?;
    }
    for (minor, text) in [
        include_str!("../../wire/tests/golden/minor0.hex"),
        include_str!("../../wire/tests/golden/minor1.hex"),
    ]
    .into_iter()
    .enumerate()
    {
        for (number, message) in golden(text).into_iter().enumerate() {
            // Whole, with its checksum mended after each change.
            let input = [&[0xff][..], &message].concat();
            write("wire_decoder", &format!("minor{minor}-{number:02}"), &input)?;
        }
    }
    for count in [0, 1, 2, 5] {
        write("ring_block", &format!("frames-{count}"), &block(&frames[..count]))?;
    }
    Ok(())
}

/// The messages of a golden file.
fn golden(text: &str) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    for line in text.lines() {
        if line.starts_with("## ") {
            messages.push(Vec::new());
        }
        let digits = line.split('#').next().unwrap_or_default().trim();
        if let Some(message) = messages.last_mut() {
            let pairs = (0..digits.len() / 2).map(|at| &digits[2 * at..2 * at + 2]);
            message.extend(pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()));
        }
    }
    messages
}

fn all_frames() -> Vec<Vec<u8>> {
    let pair: [SocketAddr; 2] = [([192, 0, 2, 1], 1000).into(), ([192, 0, 2, 2], 22).into()];
    let pair6: [SocketAddr; 2] = [([0xfd; 16], 1000).into(), ([0xfc; 16], 22).into()];
    let tcp = frames::tcp(pair[0], pair[1], frames::SYN, b"");
    let udp = frames::udp(pair6[0], pair6[1], b"x");
    let router: (IpAddr, IpAddr) = ([192, 0, 2, 254].into(), [0xfb; 16].into());
    let sctp = [&[0, 7, 0, 9][..], &[0; 8], &[1, 0, 0, 4]].concat();
    let mut all = vec![
        tcp.clone(),
        udp.clone(),
        frames::tagged(&udp, &[(frames::DOT1AD, 5), (frames::DOT1Q, 6)]),
        frames::port_unreachable(router.0, &tcp),
        frames::port_unreachable(router.1, &udp),
        frames::arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
        frames::ip(pair[0].ip(), pair[1].ip(), 132, &sctp),
        extension_headers(),
        tunnels::mpls(&tcp, &[16, 17]),
        tunnels::pppoe(&udp),
    ];
    all.extend(frames::ipv4_fragments(&tcp, 16));
    let outer = ([203, 0, 113, 1].into(), [203, 0, 113, 2].into());
    all.extend(Tunnel::ALL.map(|tunnel| tunnel.around(outer, &tcp)));
    all.push(Tunnel::ALL.iter().take(5).fold(tcp, |inner, tunnel| tunnel.around(outer, &inner)));
    all
}

/// Hop-by-hop options, routing, destination options, a fragment header, and UDP.
fn extension_headers() -> Vec<u8> {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = [17, 0, 0, 1, 0, 0, 0, 7];
    let udp = [0, 7, 0, 9, 0, 8, 0, 0];
    let chain = [options(43), options(60), options(44), fragment, udp].concat();
    frames::ip([0xfd; 16].into(), [0xfc; 16].into(), 0, &chain)
}

/// A block as the kernel fills it. Source: Linux `include/uapi/linux/if_packet.h`.
fn block(frames: &[Vec<u8>]) -> Vec<u8> {
    const BLOCK_HEADER: usize = 48;
    const FRAME: usize = 86;
    let word = |number: usize| (number as u32).to_ne_bytes();
    let mut block = vec![0; BLOCK_HEADER];
    block[12..16].copy_from_slice(&word(frames.len()));
    block[16..20].copy_from_slice(&word(BLOCK_HEADER));
    for frame in frames {
        let length = (FRAME + frame.len()).next_multiple_of(16);
        let mut entry = vec![0; length];
        for (at, value) in [(0, length), (12, frame.len()), (16, frame.len())] {
            entry[at..at + 4].copy_from_slice(&word(value));
        }
        entry[24..26].copy_from_slice(&(FRAME as u16).to_ne_bytes());
        entry[FRAME..FRAME + frame.len()].copy_from_slice(frame);
        block.extend(entry);
    }
    block
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
