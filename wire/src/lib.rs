//! What travels between a Ringwatch sensor and its collector, and the few types that both share.
//!
//! ```text
//!   text      error chains and names, said in the same way everywhere
//!   units     newtypes for numbers that must not be swapped
//!   ledger    where every frame and record went; the sums that must hold
//!   header    the fixed header of every message, and the limits
//!   message   the typed messages behind the header
//!   codec     bytes to messages, incremental, every length checked before it is used
//!   frames    layout of a batch of captured frames
//!   records   layout of a batch of event records
//! ```
//!
//! This crate does no I/O, reads no clock, starts no thread and has no unsafe code.
#![forbid(unsafe_code)]

pub mod codec;
pub mod frames;
pub mod header;
pub mod ledger;
pub mod message;
pub mod records;
pub mod text;
pub mod units;
