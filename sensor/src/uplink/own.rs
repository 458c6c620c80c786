//! Where collectors are reached, so that workers never export what goes there or comes from there.
//!
//! Exporting the uplink would feed on itself: each exported frame makes a new one. So would the uplink of another
//! sensor on the same wire, or on the collector's host: two sensors that export each other's uplinks are a
//! loop as well. Workers compare the parsed 5-tuple of each packet that they are about to export, whatever
//! interface or tunnel it came by, with every address that a collector of the configuration has, or lately had,
//! together with its port. An address is known before the first packet to it leaves. What gets by, because it was
//! rewritten on its way, is found by the [guard](super::guard).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use crossbeam_channel::{Receiver, TryRecvError};
use packet::{Address, FiveTuple, protocol};

use super::target::CollectorAddress;
use crate::host;

/// An address that is no longer among those of its name is remembered this long: other sensors may still
/// be connected there.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Conversations that are remembered as our own rewritten ones, and for how long: one connection after the
/// other, or one that comes by two ways.
const MOST_REWRITTEN: usize = 8;
const REWRITTEN_FOR: Duration = Duration::from_secs(600);
/// So long, frames that were copied before a conversation was known are still under way: a pool of 64 MiB to a
/// collector that takes 1 MB a second.
const UNDER_WAY: Duration = Duration::from_secs(120);
/// Time between two rounds of asking for addresses.
const REFRESH: Duration = Duration::from_secs(60);
/// Bound of the list; the one that was heard of first is forgotten.
const REMEMBERED: usize = 64;

/// What workers look at: where collectors are reached now.
#[derive(Debug, Default)]
pub struct OwnSnapshot {
    /// In order.
    endpoints: Vec<(Address, u16)>,
    /// As our own connections are addressed after somebody rewrote them.
    rewritten: Vec<FiveTuple>,
}

impl OwnSnapshot {
    /// Does this packet go to a collector, or come from one, as far as is known?
    #[must_use]
    pub fn contains(&self, tuple: &FiveTuple) -> bool {
        let ends = [(tuple.source, tuple.source_port), (tuple.target, tuple.target_port)];
        let is_rewritten = |own: &FiveTuple| own == tuple || own.reversed() == *tuple;
        tuple.protocol == protocol::TCP
            && (ends.iter().any(|end| self.endpoints.binary_search(end).is_ok())
                || self.rewritten.iter().any(is_rewritten))
    }
}

/// The shared list: written by the uplink, read by every worker once per block.
#[derive(Debug, Default)]
pub struct OwnConnections {
    current: ArcSwap<OwnSnapshot>,
}

impl OwnConnections {
    /// The list as it is now. Costs a few nanoseconds and never waits.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<OwnSnapshot>> {
        self.current.load()
    }
}

/// The uplink's side of the list.
#[derive(Debug)]
pub(super) struct OwnRegister {
    shared: Arc<OwnConnections>,
    /// With each the time when it was last heard of.
    known: Vec<(SocketAddr, Instant)>,
    /// Conversations that turned out to be our own, and when each was found.
    rewritten: Vec<(FiveTuple, Instant)>,
    /// The addresses of this host, when the list was last published.
    host: Vec<IpAddr>,
    /// The answer that is waited for.
    answer: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    /// The collector that is asked for next, of those of the configuration.
    turn: usize,
    due: Instant,
}

impl OwnRegister {
    pub(super) const fn new(shared: Arc<OwnConnections>, now: Instant) -> Self {
        Self {
            shared,
            known: Vec::new(),
            rewritten: Vec::new(),
            host: Vec::new(),
            answer: None,
            turn: 0,
            due: now,
        }
    }

    /// Asks for the addresses of every collector, one after the other, over and over: other sensors may use
    /// one that this sensor does not, or an address that a name got since this one connected.
    /// Keeps `connected`, where this sensor is connected now, in mind as well.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        collectors: &[CollectorAddress],
        connected: Option<SocketAddr>,
    ) {
        match self.answer.as_ref().map(Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return,
            Some(Ok(Ok(addresses))) => self.know(now, &addresses),
            // What is known stays; the next round asks again.
            Some(Ok(Err(_)) | Err(TryRecvError::Disconnected)) | None => {}
        }
        self.answer = None;
        if now >= self.due {
            self.answer = collectors.get(self.turn).map(CollectorAddress::resolve);
            self.turn += 1;
            if self.turn >= collectors.len() {
                (self.turn, self.due) = (0, now + REFRESH);
                self.know(now, connected.as_slice());
            }
        }
    }

    /// A collector is reached at these addresses.
    pub(super) fn know(&mut self, now: Instant, addresses: &[SocketAddr]) {
        self.note(now, addresses);
        self.host = host::addresses();
        self.publish();
    }

    /// This conversation is our own, as it is addressed where it was captured. False if that does not help: it is
    /// known already, for so long that no worker takes part in it any more, or there are too many.
    pub(super) fn learn(&mut self, now: Instant, tuple: FiveTuple) -> bool {
        let age = |found: Instant| now.saturating_duration_since(found);
        self.rewritten.retain(|(_, found)| age(*found) < REWRITTEN_FOR);
        if let Some((_, found)) = self.rewritten.iter().find(|(known, _)| *known == tuple) {
            return age(*found) < UNDER_WAY;
        }
        if self.rewritten.len() == MOST_REWRITTEN {
            return false;
        }
        self.rewritten.push((tuple, now));
        self.publish();
        let FiveTuple { source, target, source_port, target_port, .. } = tuple;
        tracing::info!(
            %source,
            source_port,
            %target,
            target_port,
            "the uplink is rewritten on its way; this conversation is left out of the frames as well"
        );
        true
    }

    fn note(&mut self, now: Instant, addresses: &[SocketAddr]) {
        self.known.retain(|(address, heard)| {
            !addresses.contains(address) && now.saturating_duration_since(*heard) < REMEMBERED_FOR
        });
        self.known.extend(addresses.iter().map(|address| (*address, now)));
        let surplus = self.known.len().saturating_sub(REMEMBERED);
        self.known.drain(..surplus);
    }

    /// A collector on this host is reached by each of its addresses, if by one.
    fn publish(&self) {
        let own = &self.host;
        let is_here = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
        let mut endpoints = Vec::new();
        for (address, _) in &self.known {
            let (ip, port) = (address.ip(), address.port());
            endpoints.push((Address::from(ip), port));
            if is_here(ip) {
                endpoints.extend(own.iter().map(|own| (Address::from(*own), port)));
            }
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        let rewritten = self.rewritten.iter().map(|(tuple, _)| *tuple).collect();
        self.shared.current.store(Arc::new(OwnSnapshot { endpoints, rewritten }));
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

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_goes_to_a_collector_or_comes_from_it_is_recognised_whosever_it_is() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone(), Instant::now());
        register.know(Instant::now(), &addresses(&["192.0.2.1:4750", "[2001:db8::1]:4750"]));
        for client in ["198.51.100.7:50000", "203.0.113.9:1"] {
            let out = tuple(client, "192.0.2.1:4750");
            assert!(shared.load().contains(&out));
            assert!(shared.load().contains(&out.reversed()));
            assert!(!shared.load().contains(&FiveTuple { protocol: protocol::UDP, ..out }));
            assert!(!shared.load().contains(&tuple(client, "192.0.2.1:443")));
            assert!(!shared.load().contains(&tuple(client, "192.0.2.2:4750")));
        }
        assert!(shared.load().contains(&tuple("[2001:db8::7]:5", "[2001:db8::1]:4750")));
    }

    #[test]
    fn a_collector_on_this_host_is_known_by_all_of_its_addresses() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone(), Instant::now());
        let own = ["127.0.0.1", "192.0.2.5", "2001:db8::5"].map(|text| text.parse().unwrap());
        register.host = own.to_vec();
        register.note(Instant::now(), &addresses(&["127.0.0.1:4750"]));
        register.publish();
        assert!(shared.load().contains(&tuple("198.51.100.7:50000", "192.0.2.5:4750")));
        assert!(shared.load().contains(&tuple("[2001:db8::5]:4750", "[2001:db8::9]:50000")));
        register.note(Instant::now(), &addresses(&["192.0.2.1:4751"]));
        register.publish();
        assert!(!shared.load().contains(&tuple("198.51.100.7:50000", "192.0.2.5:4751")));
    }

    #[test]
    fn a_rewritten_conversation_is_left_out_and_one_that_comes_all_the_same_is_beyond_help() {
        let shared = Arc::new(OwnConnections::default());
        let start = Instant::now();
        let mut register = OwnRegister::new(shared.clone(), start);
        let rewritten = tuple("10.0.0.7:50000", "10.0.0.9:14750");
        assert!(register.learn(start, rewritten));
        assert!(shared.load().contains(&rewritten.reversed()));
        let other = tuple("10.0.0.7:50001", "10.0.0.9:14750");
        assert!(!shared.load().contains(&other), "nobody else's conversation");
        assert!(register.learn(start + UNDER_WAY - Duration::from_millis(1), rewritten));
        assert!(!register.learn(start + UNDER_WAY, rewritten));
        assert!(register.learn(start + REWRITTEN_FOR, rewritten), "forgotten meanwhile");
        for port in 1..MOST_REWRITTEN as u16 {
            assert!(
                register.learn(start + REWRITTEN_FOR, FiveTuple { source_port: port, ..other })
            );
        }
        assert!(!register.learn(start + REWRITTEN_FOR, other), "too many");
    }

    #[test]
    fn addresses_are_remembered_for_a_day_and_the_list_is_bounded() {
        let shared = Arc::new(OwnConnections::default());
        let mut register = OwnRegister::new(shared.clone(), Instant::now());
        let start = Instant::now();
        let old = tuple("198.51.100.7:50000", "192.0.2.1:4750");
        let known_after = |register: &mut OwnRegister, after| {
            register.know(start + after, &addresses(&["192.0.2.2:4750"]));
            shared.load().contains(&old)
        };
        register.know(start, &addresses(&["192.0.2.1:4750"]));
        assert!(known_after(&mut register, REMEMBERED_FOR - Duration::from_secs(1)));
        assert!(!known_after(&mut register, REMEMBERED_FOR));
        for port in 1000..2000 {
            register.know(start, &[SocketAddr::new([192, 0, 2, 1].into(), port)]);
        }
        assert_eq!(register.known.len(), REMEMBERED);
    }
}
