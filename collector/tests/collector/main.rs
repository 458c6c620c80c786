//! The whole program over loopback: real sockets, real certificates, real files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod asking;
mod connecting;
mod failing_disk;
mod killing;
mod lab;
mod loops;
mod searching;
mod sensor;
mod starting;
mod storing;
