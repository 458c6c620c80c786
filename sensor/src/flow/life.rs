//! States of a flow, after how long without a packet it ends, and what it is worth meanwhile.

use std::time::Duration;

use packet::tcp;
use wire::units::UnixNanos;

use super::hot::Hot;
use super::record::EndReason;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Packets of one side only; of TCP: no acknowledgement from both sides yet.
    #[default]
    New,
    /// Packets of both sides; of TCP: acknowledgements from both.
    Established,
    /// TCP with a FIN from both sides, or an RST from either.
    Closed,
    /// As [`State::New`], of TCP.
    TcpNew,
    /// As [`State::Established`], of TCP.
    TcpEstablished,
}

/// What is new about a flow by one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that matters.
    Nothing,
    /// The flow began with it.
    Began,
    /// It is the first of the other side, and no RST; of TCP, where a SYN was seen: no SYN+ACK either, which was lost.
    Answered,
    /// Of TCP, with a SYN and an answer seen before: it is the opener's first acknowledgement.
    Completed,
    /// The same, with no answer seen: whether one reached the opener, its word alone does not prove.
    Claimed,
    /// Of TCP, with a SYN seen before and nothing from the other side: the opener pushes data for the first time.
    Carried,
}

impl State {
    /// Every state, in the order of their discriminants.
    pub const ALL: [Self; 5] =
        [Self::New, Self::Established, Self::Closed, Self::TcpNew, Self::TcpEstablished];

    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Closed => "tcp_closed",
            Self::TcpNew => "tcp_new",
            Self::TcpEstablished => "tcp_established",
        }
    }

    /// The state of a TCP flow with these flags seen each way.
    #[inline]
    pub(super) const fn of_tcp(flags: [u8; 2]) -> Self {
        let (either, both) = (flags[0] | flags[1], flags[0] & flags[1]);
        if either & tcp::RST != 0 || both & tcp::FIN != 0 {
            Self::Closed
        } else if both & tcp::ACK != 0 {
            Self::TcpEstablished
        } else {
            Self::TcpNew
        }
    }
}

/// After how long without a packet a flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    nanoseconds: [u64; State::ALL.len()],
}

impl Timeouts {
    /// For each state, in the order of [`State::ALL`].
    #[must_use]
    pub fn new(timeouts: [Duration; State::ALL.len()]) -> Self {
        let nanoseconds = |one: Duration| u64::try_from(one.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self { nanoseconds: timeouts.map(nanoseconds) }
    }

    /// The shortest of them.
    #[must_use]
    pub fn shortest(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.into_iter().fold(u64::MAX, u64::min))
    }

    /// Of a flow in this state.
    #[must_use]
    pub const fn of(&self, state: State) -> Duration {
        Duration::from_nanos(self.nanoseconds[state as usize])
    }

    /// Is this flow over when a packet of it comes at `time`? An opening begins a new flow in the place
    /// of a closed one.
    #[inline]
    pub(super) const fn end_of(
        &self,
        flow: &Hot,
        time: UnixNanos,
        opens: bool,
    ) -> Option<EndReason> {
        let idle = time.0.saturating_sub(flow.last.0);
        if idle > self.nanoseconds[flow.state() as usize] {
            Some(EndReason::Timeout)
        } else if opens && matches!(flow.state(), State::Closed) {
            Some(EndReason::Reuse)
        } else {
            None
        }
    }
}

/// What a flow is worth where memory is short: of its neighbours, the one worth least gives way.
///
/// ```text
///   bit 7 6   0 empty, 1 one packet or closed, 2 packets of one side, 3 packets of both sides
///   bit 5..0  63 less the age in units of 10 s when it was last looked at, at most 63; of a closed
///             flow: 0, as nothing is lost with it
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth(pub(super) u8);

impl Worth {
    /// An empty slot.
    pub(super) const NOTHING: Self = Self(0);

    /// Of a flow that had no packet for a time of `idle`.
    pub(super) fn of(flow: &Hot, idle: Duration) -> Self {
        const AGE_UNIT_SECONDS: u64 = 10;
        const OLDEST: u64 = 63;
        let rank = match flow.state() {
            State::Closed => return Self(1 << 6),
            State::Established | State::TcpEstablished => 3,
            State::New | State::TcpNew if flow.is_single() => 1,
            State::New | State::TcpNew => 2,
        };
        let age = (idle.as_secs() / AGE_UNIT_SECONDS).min(OLDEST);
        Self(rank << 6 | (OLDEST - age) as u8)
    }
}
