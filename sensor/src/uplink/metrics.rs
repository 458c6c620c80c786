//! Counters of the uplink. Written by its thread alone, read by anyone.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Why a connection, or an attempt to make one, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum EndReason {
    /// The host name has no address.
    Resolve,
    /// TCP could not connect.
    Connect,
    /// TLS failed: certificates, or a broken record.
    Tls,
    /// The connection broke.
    Io,
    /// The collector closed it without a word.
    Closed,
    /// The collector said goodbye.
    Goodbye,
    /// The collector was silent for too long.
    TimedOut,
    /// The collector sent what it must not.
    Protocol,
    /// The sensor stops.
    Shutdown,
    /// The preferred collector is there again.
    Preferred,
    /// The uplink panicked and starts over.
    Panic,
}

impl EndReason {
    /// Every reason, in the order of their discriminants.
    pub const ALL: [Self; 11] = [
        Self::Resolve,
        Self::Connect,
        Self::Tls,
        Self::Io,
        Self::Closed,
        Self::Goodbye,
        Self::TimedOut,
        Self::Protocol,
        Self::Shutdown,
        Self::Preferred,
        Self::Panic,
    ];

    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Io => "io",
            Self::Closed => "closed",
            Self::Goodbye => "goodbye",
            Self::TimedOut => "timed_out",
            Self::Protocol => "protocol",
            Self::Shutdown => "shutdown",
            Self::Preferred => "preferred",
            Self::Panic => "panic",
        }
    }
}

/// Counters since the sensor started.
#[derive(Debug, Default)]
pub struct Metrics {
    connected: AtomicBool,
    connects: AtomicU64,
    failed_dials: [AtomicU64; EndReason::ALL.len()],
    disconnects: [AtomicU64; EndReason::ALL.len()],
    bytes_sent: AtomicU64,
    round_trip_ns: AtomicU64,
    clock_offset_ns: AtomicI64,
    loops: AtomicU64,
}

impl Metrics {
    /// Is a collector connected, and has it said hello?
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Connections on which the collector said hello.
    #[must_use]
    pub fn connects_total(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// Attempts that ended before the collector said hello.
    #[must_use]
    pub fn failed_dials_total(&self, reason: EndReason) -> u64 {
        self.failed_dials[reason as usize].load(Ordering::Relaxed)
    }

    /// Connections that ended after the collector had said hello.
    #[must_use]
    pub fn disconnects_total(&self, reason: EndReason) -> u64 {
        self.disconnects[reason as usize].load(Ordering::Relaxed)
    }

    /// Collectors given up because they were silent.
    #[must_use]
    pub fn peer_timeouts_total(&self) -> u64 {
        self.disconnects_total(EndReason::TimedOut) + self.failed_dials_total(EndReason::TimedOut)
    }

    /// Bytes written to sockets, TLS included.
    #[must_use]
    pub fn bytes_sent_total(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// Last round trip of a heartbeat; none before the first.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        match self.round_trip_ns.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Times that a copy of the uplink's own traffic was among the frames to be sent.
    #[must_use]
    pub fn loops_total(&self) -> u64 {
        self.loops.load(Ordering::Relaxed)
    }

    pub(super) fn loop_seen(&self) {
        self.loops.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connection_opened(&self) {
        self.connected.store(true, Ordering::Relaxed);
        self.connects.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connection_ended(&self, was_open: bool, reason: EndReason) {
        self.connected.store(false, Ordering::Relaxed);
        let counters = if was_open { &self.disconnects } else { &self.failed_dials };
        counters[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bytes_written(&self, count: usize) {
        self.bytes_sent.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The collector's clock minus this one, in nanoseconds, as the last heartbeat had it; 0 before the first.
    #[must_use]
    pub fn clock_offset_ns(&self) -> i64 {
        self.clock_offset_ns.load(Ordering::Relaxed)
    }

    pub(super) fn clock_offset_measured(&self, nanos: i64) {
        self.clock_offset_ns.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn round_trip_measured(&self, round_trip: Duration) {
        let nanos = u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.round_trip_ns.store(nanos, Ordering::Relaxed);
    }
}
