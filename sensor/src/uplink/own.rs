//! The uplink's own connections, so that workers never export them.
//!
//! Exporting the uplink would feed on itself: each exported frame makes a new one. Workers compare
//! the parsed 5-tuple of each packet that they are about to export, whatever interface it came by.
//! The tuple is known before the first packet leaves, because the socket is bound first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

use packet::{Address, FiveTuple, protocol};

/// A closed connection is remembered this long: its last segments, and retransmissions of them,
/// are still under way. 60 s is how long Linux keeps TIME_WAIT.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Bound of the list. Dialling backs off, so that hardly more connections are made in 60 s; the
/// oldest is forgotten.
const REMEMBERED: usize = 32;

/// One connection of the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnConnection {
    remote: Address,
    remote_port: u16,
    /// Known once the route is chosen; until then any address matches.
    local: Option<Address>,
    local_port: u16,
}

impl OwnConnection {
    /// From socket addresses. An unspecified local address matches any.
    #[must_use]
    pub fn new(remote: SocketAddr, local: SocketAddr) -> Self {
        Self {
            remote: Address::from(remote.ip()),
            remote_port: remote.port(),
            local: (!local.ip().is_unspecified()).then(|| Address::from(local.ip())),
            local_port: local.port(),
        }
    }

    fn sends(&self, tuple: &FiveTuple) -> bool {
        tuple.target_port == self.remote_port
            && tuple.source_port == self.local_port
            && tuple.target == self.remote
            && self.local.is_none_or(|local| local == tuple.source)
    }
}

/// What workers look at: the connections as they are now.
#[derive(Debug, Default)]
pub struct OwnSnapshot {
    connections: Vec<OwnConnection>,
}

impl OwnSnapshot {
    /// Is this a packet of the uplink itself, in either direction?
    #[must_use]
    pub fn contains(&self, tuple: &FiveTuple) -> bool {
        tuple.protocol == protocol::TCP
            && self.connections.iter().any(|own| own.sends(tuple) || own.sends(&tuple.reversed()))
    }
}

/// The shared list: written by the uplink, read by every worker once per block.
#[derive(Debug, Default)]
pub struct OwnConnections {
    current: ArcSwap<OwnSnapshot>,
}

impl OwnConnections {
    /// The connections as they are now. Costs a few nanoseconds and never waits.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<OwnSnapshot>> {
        self.current.load()
    }
}

/// The uplink's side of the list.
#[derive(Debug)]
pub(super) struct OwnRegister {
    shared: Arc<OwnConnections>,
    /// Oldest first; `None`: still open.
    entries: Vec<(OwnConnection, Option<Instant>)>,
}

impl OwnRegister {
    pub(super) const fn new(shared: Arc<OwnConnections>) -> Self {
        Self { shared, entries: Vec::new() }
    }

    /// Publishes a connection; it counts as open until [`OwnRegister::closed`].
    pub(super) fn open(&mut self, now: Instant, connection: OwnConnection) {
        self.entries.retain(|(_, closed)| {
            closed.is_none_or(|closed| now.saturating_duration_since(closed) < REMEMBERED_FOR)
        });
        if self.entries.len() == REMEMBERED {
            self.entries.remove(0);
        }
        self.entries.push((connection, None));
        self.publish();
    }

    /// Makes the local address of the open connection known.
    pub(super) fn learn(&mut self, connection: OwnConnection) {
        if let Some((last, None)) = self.entries.last_mut() {
            *last = connection;
            self.publish();
        }
    }

    /// The open connection was closed.
    pub(super) fn closed(&mut self, now: Instant) {
        if let Some((_, closed @ None)) = self.entries.last_mut() {
            *closed = Some(now);
        }
    }

    fn publish(&self) {
        let connections = self.entries.iter().map(|(connection, _)| *connection).collect();
        self.shared.current.store(Arc::new(OwnSnapshot { connections }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, target: &str) -> FiveTuple {
        let (source, target): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), target.parse().unwrap());
        FiveTuple {
            source: source.ip().into(),
            target: target.ip().into(),
            source_port: source.port(),
            target_port: target.port(),
            protocol: protocol::TCP,
        }
    }

    fn own(remote: &str, local: &str) -> OwnConnection {
        OwnConnection::new(remote.parse().unwrap(), local.parse().unwrap())
    }

    #[test]
    fn both_directions_are_recognised_before_the_local_address_is_known() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone());
        register.open(Instant::now(), own("192.0.2.1:4750", "0.0.0.0:50000"));
        let out = tuple("198.51.100.7:50000", "192.0.2.1:4750");
        assert!(shared.load().contains(&out));
        assert!(shared.load().contains(&out.reversed()));
        assert!(!shared.load().contains(&tuple("198.51.100.7:50001", "192.0.2.1:4750")));
        assert!(!shared.load().contains(&FiveTuple { protocol: protocol::UDP, ..out }));
    }

    #[test]
    fn another_host_with_the_same_ports_is_not_ours_once_the_address_is_known() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone());
        register.open(Instant::now(), own("192.0.2.1:4750", "0.0.0.0:50000"));
        register.learn(own("192.0.2.1:4750", "198.51.100.7:50000"));
        assert!(shared.load().contains(&tuple("198.51.100.7:50000", "192.0.2.1:4750")));
        assert!(!shared.load().contains(&tuple("198.51.100.8:50000", "192.0.2.1:4750")));
    }

    #[test]
    fn closed_connections_are_remembered_for_a_minute_and_the_list_is_bounded() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone());
        let start = Instant::now();
        register.open(start, own("192.0.2.1:4750", "0.0.0.0:50000"));
        register.closed(start);
        let old = tuple("198.51.100.7:50000", "192.0.2.1:4750");
        register.open(start + Duration::from_secs(59), own("192.0.2.1:4750", "0.0.0.0:1"));
        assert!(shared.load().contains(&old));
        register.open(start + Duration::from_secs(60), own("192.0.2.1:4750", "0.0.0.0:2"));
        assert!(!shared.load().contains(&old));
        for port in 1000..2000 {
            register.open(start, own("192.0.2.1:4750", &format!("0.0.0.0:{port}")));
        }
        assert_eq!(shared.load().connections.len(), REMEMBERED);
    }
}
