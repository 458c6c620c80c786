//! The load: each fifth frame opens a connection, which makes a record; one in a hundred of those who
//! connect scans ports, which makes an alert.

use std::net::SocketAddr;

use perf::frames::{self, SYN};

/// Records a second. A debug build does not take more beside everything else on two CPUs.
pub const RECORD_RATE: u64 = if cfg!(debug_assertions) { 4_000 } else { 20_000 };
/// Frames a second.
pub const RATE: u64 = FRAMES_OF_RECORD * RECORD_RATE;
const FRAMES_OF_RECORD: u64 = 5;
/// Ports that a scan touches.
const PORTS: u64 = 12;
/// One in so many sources scans.
const SCAN_ONE_IN: u64 = 100;

/// The frame of this number.
pub fn frame(number: u64) -> Vec<u8> {
    let [.., a, b, c] = (number / FRAMES_OF_RECORD).to_be_bytes();
    if !number.is_multiple_of(FRAMES_OF_RECORD) {
        let (client, server) = (
            SocketAddr::from(([192, 0, 2, c % 64], 5000)),
            SocketAddr::from(([198, 51, 100, 1], 6000)),
        );
        return frames::udp(client, server, &[a; 22]);
    }
    let opened = number / FRAMES_OF_RECORD;
    let source = opened / PORTS;
    if source.is_multiple_of(SCAN_ONE_IN) {
        let [.., a, b, c] = source.to_be_bytes();
        let port = 1000 + (opened % PORTS) as u16;
        let client = SocketAddr::from(([12, a, b, c], 40_000));
        return frames::tcp(client, SocketAddr::from(([203, 0, 113, 6], port)), SYN, b"");
    }
    let client = SocketAddr::from(([11, a, b, c], 30_000));
    frames::tcp(client, SocketAddr::from(([203, 0, 113, 5], 443)), SYN, b"")
}
