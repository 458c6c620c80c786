//! The operator's command, `ringwatch`.
//!
//! ```text
//!   pki      certificates: one authority, one certificate per sensor and collector
//!   api      what a collector says of itself over HTTP
//!   status   that, as a table
//!   search   what it stored: alerts, flows, DNS records
//!   frames   stored frames, saved as a file
//!   selection, access  arguments that these share
//!   up       a collector and a sensor on this machine, with a live view
//!   token    who may use a collector's HTTP interface
//!   text     numbers, rates and times as people read them
//! ```
#![forbid(unsafe_code)]

pub mod access;
pub mod api;
pub mod frames;
pub mod pki;
pub mod search;
pub mod selection;
pub mod status;
pub mod text;
pub mod token;
pub mod up;
