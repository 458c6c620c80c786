//! The whole appliance by its own programs: sensors and a collector in network namespaces, real
//! traffic, and the ledger checked at the end of every test.
//!
//! ```text
//!   site      namespaces, certificates, configuration; the running programs and how they end
//!   captures  what was captured, read by code that is not Ringwatch's own
//!   traffic   frames of many kinds
//!   disk      a disk that can be full
//! ```
#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows only test functions")]

mod captures;
mod disk;
mod ending;
mod faults;
mod frames;
mod identity;
mod kills;
mod monitoring;
mod operator;
mod scan;
mod searching;
mod site;
mod slow;
mod soak;
mod spool;
mod traffic;
