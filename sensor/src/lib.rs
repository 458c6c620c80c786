//! The Ringwatch sensor: from frames in a kernel ring to events and frames at a collector.
//!
//! ```text
//!   life        args ─▶ config ─▶ setup ─▶ pipeline (threads and queues), or replay (a file)
//!
//!   sources     afpacket   TPACKET_V3 rings: unsafe code lives here (and in `hardware`, two hints)
//!               file       pcap and pcapng files
//!               filter     which frames are looked at: tcpdump's expressions, compiled by libpcap
//!   a worker    worker     the thread: rings in turns, a tick each 250 ms
//!               analyse    vectors of frames: parse, count, evidence, new connections
//!               evidence   its contacts: attempted, answered, refused
//!               flood      its targets: how much arrives at each
//!               flow       its flows: who talks to whom, how much, until when
//!               connections, export, counters
//!   watched     supervisor the thread that calls workers to open rings; gathering: how they join
//!   together    detection  the detector's thread ─▶ detect: evidence merged, scans found
//!               recording  the recorder's thread ─▶ recorder, event (EVE JSON lines), output
//!               spool      records on the disk, until a collector has stored them
//!               uplink     the TLS connection to the collector; uplink_thread starts it
//!   seen        announce, ledger, metrics, timing, devices, health, api
//!   advised     hygiene    whether an interface is set up well
//!   given up    sandbox    every thread drops its capabilities
//! ```

pub mod afpacket;
pub mod analyse;
pub mod announce;
pub mod api;
pub mod args;
pub mod config;
pub mod connections;
pub mod counters;
pub mod detect;
pub mod detection;
pub mod devices;
pub mod event;
pub mod evidence;
pub mod explain;
pub mod export;
pub mod file;
pub mod filter;
pub mod flood;
pub mod flow;
pub mod gathering;
pub mod hardware;
pub mod health;
pub mod host;
pub mod hygiene;
pub mod interfaces;
pub mod ledger;
pub mod metrics;
pub mod output;
pub mod pipeline;
pub mod recorder;
pub mod recording;
pub mod replay;
pub mod sandbox;
pub mod setup;
pub mod spool;
pub mod strain;
pub mod supervisor;
pub mod timing;
pub mod uplink;
pub mod uplink_thread;
pub mod worker;
