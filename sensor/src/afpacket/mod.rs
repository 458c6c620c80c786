//! Frames from an interface through a TPACKET_V3 ring. Unsafe code lives here (and in `hardware`).
//!
//! ```text
//!   interface   what the system says about an interface: index, link type, MTU
//!   scope       what a ring listens to: one interface, or all
//!   sys         one system call per safe function
//!   socket      the packet socket: options in the one order that leaks no foreign frame
//!   filter      classic BPF programs: reject everything, or accept what is wanted
//!   program     classic BPF out of instructions and labels
//!   peer        the program that deals frames by the peer's address
//!   fanout      a group of rings that share the frames of one scope
//!   order       the order of the members of a group, before and after the link was down
//!   symmetry    does this kernel deal both directions of a flow to the same ring?
//!   ring        socket and memory together: open, begin, next block, stop
//!   block       the right to read one block, and the checked walk over its frames
//!   ethtool     what a driver says about itself
//!   stats       the kernel's clear-on-read counters, summed
//! ```
//!
//! The ring is memory shared with the kernel, cut into blocks that change hands:
//!
//! ```text
//!             kernel fills ──▶
//!   ┌─────────┬─────────┬─────────┬─────────┐     status USER    ours, from an Acquire load ...
//!   │ block 0 │ block 1 │ block 2 │ block 3 │     status KERNEL  the kernel's, from the Release store
//!   │  USER   │  USER   │ KERNEL  │ KERNEL  │                    in the drop of `Block`
//!   └─────────┴─────────┴─────────┴─────────┘
//!     ──▶ we read
//! ```
//!
//! No Rust reference ever covers memory that the kernel may write, the status word excepted, which is
//! an atomic. Nothing that a block says is trusted: offsets and lengths are checked once, here, and
//! what fails is counted as corrupt and skipped.
//!
//! Source: Linux `Documentation/networking/packet_mmap.rst`, `include/uapi/linux/if_packet.h`.
#![expect(
    unsafe_code,
    reason = "shares memory with the kernel; this module is where that is allowed"
)]

mod block;
mod error;
mod ethtool;
#[cfg(test)]
mod fake;
mod fanout;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod interface;
mod order;
mod peer;
mod program;
mod ring;
mod scope;
mod socket;
mod stats;
mod symmetry;
mod sys;

pub use block::{Block, Captured, Cut, Direction, Frames};
pub use error::{OpenError, Step};
pub use ethtool::{Channels, Coalesce, Driver, Ethtool, Feature, Pause, Rss, RxRing};
pub use fanout::{Fanout, FanoutGroup, PeerRule};
pub use interface::{Interface, UNKNOWN_LINK};
pub use order::creation_order;
pub use ring::{LinkEvent, Ring, RingConfig, Wake, wait};
pub use scope::Scope;
pub use socket::{Promiscuity, Rejector, Reserve, Unbound};
pub use stats::Statistics;
pub use symmetry::{Symmetry, probe_symmetry};
