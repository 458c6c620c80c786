//! The program that deals frames by the address of the peer.
//!
//! It runs for each frame of a group, in the kernel, before the frame is given to a member. It sees the
//! bytes of incoming frames from the network header on (the link header and an outer VLAN tag are behind
//! it), and those of outgoing frames from the link header on; what it loads is found wherever it lies in
//! the frame's memory. A load beyond the end of the frame ends it with 0, the first ring.
//!
//! ```text
//!   Ethernet   incoming: protocol known, X = 0      outgoing: protocol at 12, X = 14
//!              up to two VLAN tags: X += 4 each
//!   raw IP     version in the first four bits, X = 0
//!   ──▶ IPv4, IPv6: hash of the peer's address      anything else: the first ring
//! ```

use std::hash::BuildHasher;
use std::net::IpAddr;

use libc::{SKF_AD_HATYPE, SKF_AD_PKTTYPE, SKF_AD_PROTOCOL, sock_filter};

use super::fanout::PeerRule;
use super::program::{Label, Program, Slot};

const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
const ETHERNET_HEADER_BYTES: u32 = 14;
const ETHER_TYPE_AT: u32 = 12;
const TAG_BYTES: u32 = 4;
const IPV4: u32 = libc::ETH_P_IP as u32;
const IPV6: u32 = libc::ETH_P_IPV6 as u32;
const TAGS: [u32; 3] = [0x8100, 0x88a8, 0x9100];

/// Where the network header begins.
const BASE: Slot = Slot(0);
/// A hash in the making.
const HASH: Slot = Slot(1);
/// The hash of the source.
const SOURCE: Slot = Slot(2);

/// An address of a header: where it begins behind the header, and how long it is.
#[derive(Clone, Copy)]
struct Field {
    offset: u32,
    words: u32,
}

/// Source and destination of a header.
#[derive(Clone, Copy)]
struct Fields {
    source: Field,
    target: Field,
}

const IPV4_FIELDS: Fields =
    Fields { source: Field { offset: 12, words: 1 }, target: Field { offset: 16, words: 1 } };
const IPV6_FIELDS: Fields =
    Fields { source: Field { offset: 8, words: 4 }, target: Field { offset: 24, words: 4 } };

/// Numbers that nobody outside knows, so that no sender can aim at one ring.
#[derive(Clone, Copy, Debug)]
struct Seed {
    key: u32,
    factor: u32,
}

/// The program of `rule`. It gives a number, of which the kernel takes the remainder by the number of
/// members.
pub(super) fn program(rule: &PeerRule) -> Vec<sock_filter> {
    // The standard library seeds this hasher from the system's random numbers.
    let random = std::hash::RandomState::new().hash_one("peer");
    let seed = Seed { key: random as u32, factor: (random >> 32) as u32 | 1 };
    let mut program = Program::default();
    let [ipv4, ipv6, other, mix] = std::array::from_fn(|_| program.label());
    find_network_header(&mut program, ipv4, ipv6, other);
    for (label, fields) in [(ipv4, IPV4_FIELDS), (ipv6, IPV6_FIELDS)] {
        program.place(label);
        program.store_x(BASE);
        match rule {
            PeerRule::Direction => by_direction(&mut program, fields, seed, mix),
            PeerRule::Outside(home) => outside(&mut program, fields, home, seed, mix),
        }
    }
    program.place(mix);
    // The lowest bits of a product know only the lowest bits of its factors.
    program.store(HASH);
    program.shift_right(16);
    program.recall_x(HASH);
    program.xor_x();
    program.give_a();
    program.place(other);
    program.give(0);
    program.finish()
}

/// Sets X to where the network header begins, and goes to the label of its protocol.
fn find_network_header(program: &mut Program, ipv4: Label, ipv6: Label, other: Label) {
    let [ethernet, outgoing, tags] = std::array::from_fn(|_| program.label());
    program.load(SKF_AD_HATYPE);
    program.jump_if(u32::from(libc::ARPHRD_ETHER), ethernet);
    program.jump_if(u32::from(libc::ARPHRD_LOOPBACK), ethernet);
    program.set_x(0);
    program.load_byte(0);
    program.and(0xf0);
    program.jump_if(0x40, ipv4);
    program.jump_if(0x60, ipv6);
    program.jump(other);
    program.place(ethernet);
    program.load(SKF_AD_PKTTYPE);
    program.jump_if(OUTGOING, outgoing);
    program.set_x(0);
    program.load(SKF_AD_PROTOCOL);
    program.jump(tags);
    program.place(outgoing);
    program.set_x(ETHERNET_HEADER_BYTES);
    program.load_half(ETHER_TYPE_AT);
    program.place(tags);
    for _ in 0..2 {
        step_over_tag(program);
    }
    program.jump_if(IPV4, ipv4);
    program.jump_if(IPV6, ipv6);
    program.jump(other);
}

/// If A is the protocol of a VLAN tag: steps over it, and A becomes the protocol behind it.
fn step_over_tag(program: &mut Program) {
    let [tagged, plain] = std::array::from_fn(|_| program.label());
    for protocol in TAGS {
        program.jump_if(protocol, tagged);
    }
    program.jump(plain);
    program.place(tagged);
    program.load_half_behind_x(2);
    program.store(HASH);
    program.advance_x(TAG_BYTES);
    program.recall(HASH);
    program.place(plain);
}

/// The peer is whoever is not this host: the source of what comes in, the target of what goes out.
fn by_direction(program: &mut Program, fields: Fields, seed: Seed, mix: Label) {
    let outgoing = program.label();
    program.load(SKF_AD_PKTTYPE);
    program.jump_if(OUTGOING, outgoing);
    hash(program, fields.source, seed);
    program.jump(mix);
    program.place(outgoing);
    hash(program, fields.target, seed);
    program.jump(mix);
}

/// The peer is the one outside the home networks. With both or neither outside there is no peer: the
/// pair of addresses decides, in whichever order.
fn outside(program: &mut Program, fields: Fields, home: &[(IpAddr, u8)], seed: Seed, mix: Label) {
    let Fields { source, target } = fields;
    let [from_home, take_source, pair] = std::array::from_fn(|_| program.label());
    go_if_home(program, source, home, from_home);
    go_if_home(program, target, home, take_source);
    program.jump(pair);
    program.place(from_home);
    go_if_home(program, target, home, pair);
    hash(program, target, seed);
    program.jump(mix);
    program.place(take_source);
    hash(program, source, seed);
    program.jump(mix);
    program.place(pair);
    hash(program, source, seed);
    program.store(SOURCE);
    hash(program, target, seed);
    program.recall_x(SOURCE);
    program.add_x();
    program.jump(mix);
}

/// Goes to `label` if the address is in one of the networks. X stays.
fn go_if_home(program: &mut Program, field: Field, home: &[(IpAddr, u8)], label: Label) {
    for (address, length) in home {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        if bytes.len() != field.words as usize * 4 {
            continue;
        }
        let next = program.label();
        let mut bits = u32::from(*length);
        for (word, at) in bytes.as_chunks::<4>().0.iter().zip((field.offset..).step_by(4)) {
            let in_word = bits.min(32);
            if in_word == 0 {
                break;
            }
            let mask = u32::MAX << (32 - in_word);
            program.load_word_behind_x(at);
            program.and(mask);
            program.jump_unless(u32::from_be_bytes(*word) & mask, next);
            bits -= in_word;
        }
        program.jump(label);
        program.place(next);
    }
}

/// A = a hash of the address. X stays.
fn hash(program: &mut Program, field: Field, seed: Seed) {
    for word in 0..field.words {
        program.load_word_behind_x(field.offset + word * 4);
        if word == 0 {
            program.xor(seed.key);
        } else {
            program.recall_x(HASH);
            program.xor_x();
        }
        program.multiply(seed.factor);
        program.store(HASH);
        program.recall_x(BASE);
    }
}
