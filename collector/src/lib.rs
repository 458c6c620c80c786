//! The collector: takes events and frames from sensors over mutual TLS, and stores them.
//!
//! ```text
//!   sensors ═ TLS ═▶ ingest ──queue──▶ committer ──▶ store ─┬─ records/*.log ──▶ following ──▶ eve.json
//!                      ▲                  │                  └─ frames/*.pcapng ◀── sealer
//!                      └── mailbox ◀──────┘
//!                          (stored: acknowledge)     status ◀── all of them
//!                                                       └────▶ api: /api/v1/… /metrics /healthz
//!
//!   config      the configuration, checked
//!   preflight   everything that can be wrong, checked before anything starts
//!   session     the conversation with a sensor, without I/O and clock
//!   ingest      event loop: sockets, TLS, sessions
//!   committer   the one thread that writes what sensors send
//!   following   threads that make something else from the record log
//!   store       record log, event log; segments, their indexes and how long they are kept
//!   frames      questions for stored frames
//!   archive     index of stored records, questions for them, how long they are kept
//!   status      counters and what is known about sensors
//!   beats       whether threads still work
//!   health      what an operator has to do something about
//!   limit       one log line per peer and minute
//!   api         HTTP, and who may see what
//!   audit       who looked at the contents of frames
//!   pipeline    the only place where threads and queues are made
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod archive;
pub mod audit;
pub mod beats;
pub mod committer;
pub mod config;
pub mod following;
pub mod frames;
pub mod health;
pub mod ingest;
pub mod limit;
pub mod pipeline;
pub mod preflight;
pub mod session;
pub mod status;
pub mod store;
