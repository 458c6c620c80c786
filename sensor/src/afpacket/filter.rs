//! Classic BPF programs of one instruction. A filter can be exchanged at any time by attaching another.
//!
//! The number that a program returns is how many bytes of the frame are kept; 0 rejects it before it
//! is counted, so that what a rejecting ring does not see is in none of its statistics.

use libc::sock_filter;

/// Rejects every frame.
pub(super) fn reject_all() -> [sock_filter; 1] {
    keep(0)
}

/// Accepts every frame and keeps its first `snaplen` bytes.
pub(super) fn accept(snaplen: u32) -> [sock_filter; 1] {
    keep(snaplen)
}

fn keep(bytes: u32) -> [sock_filter; 1] {
    const RETURN_CONSTANT: u16 = 0x06; // BPF_RET | BPF_K
    const { assert!(libc::BPF_RET | libc::BPF_K == RETURN_CONSTANT as u32) };
    [sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: bytes }]
}
