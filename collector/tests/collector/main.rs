//! The whole program over loopback: real sockets, real certificates, real files.

mod connecting;
mod lab;
mod sensor;
mod starting;
mod storing;
