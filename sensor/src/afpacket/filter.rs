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

use libc::{SKF_AD_HATYPE, SKF_AD_IFINDEX, SKF_AD_PKTTYPE, sock_filter};

use super::program::Program;

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
        let mut program = Program::default();
        if *has_loopback || !excluded.is_empty() {
            let [reject, foreign, pass] = std::array::from_fn(|_| program.label());
            if *has_loopback {
                // The option PACKET_IGNORE_OUTGOING would hide what other interfaces send as well,
                // and has no effect in a fanout group: see docs/decisions/0008.
                program.load(SKF_AD_HATYPE);
                program.jump_unless(u32::from(libc::ARPHRD_LOOPBACK), foreign);
                program.load(SKF_AD_PKTTYPE);
                program.jump_if(u32::from(libc::PACKET_OUTGOING), reject);
                program.place(foreign);
            }
            program.load(SKF_AD_IFINDEX);
            excluded.iter().for_each(|index| program.jump_if(*index, reject));
            program.jump(pass);
            program.place(reject);
            program.give(0);
            program.place(pass);
        }
        if user.is_empty() {
            program.give(*snaplen);
        }
        program.append(user.iter().map(|instruction| cut(*instruction, *snaplen)));
        program.finish()
    }
}

/// Rejects every frame.
pub(super) fn reject_all() -> Vec<sock_filter> {
    let mut program = Program::default();
    program.give(0);
    program.finish()
}

/// A return of more than `snaplen` bytes becomes one of `snaplen`.
fn cut(instruction: sock_filter, snaplen: u32) -> sock_filter {
    const RETURN_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let sock_filter { code, jt, jf, k } = instruction;
    let k = if code == RETURN_CONSTANT { k.min(snaplen) } else { k };
    sock_filter { code, jt, jf, k }
}
