//! The Ringwatch sensor: from frames in a kernel ring to events and frames at a collector.
//!
//! ```text
//!   afpacket   TPACKET_V3 rings: the only place with unsafe code
//!   file       pcap and pcapng files as a source of frames
//!   frame      one captured frame, borrowed from where it lies
//!   packet     headers parsed in place
//!   evidence   a worker's sets of contacts: attempted, answered, refused
//!   detect     evidence of all workers merged; scans found; alerts opened, updated, closed
//!   event      what happened, as Suricata EVE JSON lines
//!   uplink     the TLS connection to the collector
//! ```

pub mod afpacket;
pub mod analyse;
pub mod api;
pub mod args;
pub mod config;
pub mod connections;
pub mod counters;
pub mod detect;
pub mod detection;
pub mod event;
pub mod evidence;
pub mod export;
pub mod file;
pub mod frame;
pub mod hardware;
pub mod health;
pub mod ledger;
pub mod metrics;
pub mod output;
pub mod packet;
pub mod pipeline;

pub mod recorder;
pub mod recording;
pub mod replay;
pub mod sandbox;
pub mod setup;
pub mod uplink;
pub mod uplink_thread;
pub mod worker;
