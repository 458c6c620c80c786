//! Fanout groups: rings that share the frames of one interface. The kernel deals by a symmetric hash
//! of the flow, so both directions of a flow reach the same ring.

use libc::{PACKET_FANOUT_FLAG_IGNORE_OUTGOING, PACKET_FANOUT_FLAG_UNIQUEID, PACKET_FANOUT_HASH};

/// A fanout group of one interface and network namespace. Made by the first ring that joins
/// ([`Ring::start_group`](super::Ring::start_group)); the others join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanoutGroup {
    id: u16,
    ignores_outgoing: bool,
}

impl FanoutGroup {
    /// The group that the kernel gave `id` to.
    pub(super) fn new(id: u16, ignores_outgoing: bool) -> Self {
        Self { id, ignores_outgoing }
    }

    /// The argument of `PACKET_FANOUT` with which a further ring joins: type and flags above the id.
    pub(super) fn join_argument(self) -> u32 {
        u32::from(self.id) | kind(self.ignores_outgoing) << 16
    }

    /// The argument of `PACKET_FANOUT` with which the first ring asks for an id that nobody has.
    pub(super) fn start_argument(ignores_outgoing: bool) -> u32 {
        (kind(ignores_outgoing) | PACKET_FANOUT_FLAG_UNIQUEID) << 16
    }
}

/// Type and flags, which must be the same for all members. The option `PACKET_IGNORE_OUTGOING` of a
/// member has no effect (the kernel's hook is the group's), so the group carries the flag.
fn kind(ignores_outgoing: bool) -> u32 {
    let flag = if ignores_outgoing { PACKET_FANOUT_FLAG_IGNORE_OUTGOING } else { 0 };
    PACKET_FANOUT_HASH | flag
}
