//! Classic BPF programs of a ring. A filter can be exchanged at any time by attaching another.
//!
//! The number that a program returns is how many bytes of the frame are kept; 0 rejects it before it
//! is counted, so that what a rejecting ring does not see is in none of its statistics.
//!
//! ```text
//!   (loopback may occur)  reject what it sends: the same frame comes back as an incoming one
//!   (all interfaces)      reject what passes an excluded interface
//!   (a user's program)    jumps are relative, so it stands here as it is
//!   (else)                keep `snaplen` bytes
//! ```
//!
//! Source: Linux `Documentation/networking/filter.rst`.

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SKF_AD_HATYPE, SKF_AD_IFINDEX,
    SKF_AD_OFF, SKF_AD_PKTTYPE, c_int, sock_filter,
};

/// What a ring lets in after [`begin`](super::Ring::begin).
#[derive(Clone, Debug)]
pub(super) struct Filter {
    /// Bytes kept of a frame.
    pub(super) snaplen: u32,
    /// Frames may pass the loopback interface, which shows each of them twice.
    pub(super) has_loopback: bool,
    /// Indexes of interfaces whose frames are rejected.
    pub(super) excluded: Vec<u32>,
    /// A program that has the last word.
    pub(super) user: Vec<sock_filter>,
}

impl Filter {
    /// The whole program.
    pub(super) fn program(&self) -> Vec<sock_filter> {
        let Self { snaplen, has_loopback, excluded, user } = self;
        let mut program = Vec::new();
        if *has_loopback {
            // The option PACKET_IGNORE_OUTGOING would hide what other interfaces send as well, and
            // has no effect in a fanout group.
            program.extend([
                load(SKF_AD_HATYPE),
                skip_unless(u32::from(libc::ARPHRD_LOOPBACK), 3),
                load(SKF_AD_PKTTYPE),
                skip_unless(u32::from(libc::PACKET_OUTGOING), 1),
                keep(0),
            ]);
        }
        if !excluded.is_empty() {
            program.push(load(SKF_AD_IFINDEX));
            // A return behind each comparison: jumps over a list would reach 255 instructions only.
            program.extend(excluded.iter().flat_map(|index| [skip_unless(*index, 1), keep(0)]));
        }
        if user.is_empty() {
            program.push(keep(*snaplen));
        }
        program.extend(user.iter().map(|instruction| cut(*instruction, *snaplen)));
        program
    }
}

/// Rejects every frame.
pub(super) fn reject_all() -> [sock_filter; 1] {
    [keep(0)]
}

const RETURN_CONSTANT: u16 = (BPF_RET | BPF_K) as u16;

/// A return of more than `snaplen` bytes becomes one of `snaplen`.
fn cut(instruction: sock_filter, snaplen: u32) -> sock_filter {
    let sock_filter { code, jt, jf, k } = instruction;
    let k = if code == RETURN_CONSTANT { k.min(snaplen) } else { k };
    sock_filter { code, jt, jf, k }
}

fn keep(bytes: u32) -> sock_filter {
    sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: bytes }
}

/// Loads what the kernel knows of the frame.
fn load(what: c_int) -> sock_filter {
    let k = (SKF_AD_OFF + what).cast_unsigned();
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k }
}

/// Skips `count` instructions unless the loaded word is `value`.
fn skip_unless(value: u32, count: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf: count, k: value }
}
