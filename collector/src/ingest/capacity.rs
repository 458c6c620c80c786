//! How many connections there may be, and how many of them whose peer has not shown a certificate:
//! whoever cannot authenticate must not keep sensors out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Who is connected, in which event loop, and which of them have not shown who they are.
///
/// Bounded, over all loops: the most connections that it is told; [`MOST_HANDSHAKES`], and
/// [`MOST_OF_ADDRESS`] of one address. When full, a caller waits until a handshake ends or the oldest
/// one has had its time, [`GRACE`]; that one is then closed for the new one and counted as
/// `handshake_crowded`: a sensor's handshake takes a few round trips, a peer that only holds the place
/// is always an older one. Were they closed at once, the sensors behind one address that come back
/// together would throw each other out.
#[derive(Debug)]
pub struct Admission {
    most_connections: usize,
    /// The event loop of each connection.
    connections: BTreeMap<u64, usize>,
    /// Those of them whose peer is not known, oldest first, because ids only grow.
    handshakes: BTreeMap<u64, (IpAddr, Instant)>,
    /// Connections of each event loop.
    counts: Vec<usize>,
    next_id: u64,
}

/// A connection, and the event loop that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Unique within this run of the collector.
    pub id: u64,
    /// Number of the event loop.
    pub event_loop: usize,
}

/// What becomes of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It gets this place.
    Free(Place),
    /// It gets this place when the connection with this id, of the same event loop, was closed.
    After(u64, Place),
    /// There will be a place when a handshake of its address ends, or is old enough to make way.
    Later,
    /// The same, of any address.
    LaterForAll,
    /// There is no room.
    Full,
}

impl Admission {
    /// Nobody is connected.
    #[must_use]
    pub fn new(event_loops: usize, most_connections: usize) -> Self {
        Self {
            most_connections,
            connections: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            counts: vec![0; event_loops],
            next_id: 1,
        }
    }

    /// Most connections at once.
    #[must_use]
    pub const fn most_connections(&self) -> usize {
        self.most_connections
    }

    /// A caller is to be taken: by the event loop with the fewest connections, and of several by the
    /// one that `burden` says the least of; or in the place of the oldest handshake, once that has had
    /// its time, or if the caller `is_urgent`.
    pub fn enter(
        &mut self,
        peer: IpAddr,
        (now, is_urgent): (Instant, bool),
        burden: impl Fn(usize) -> u64,
    ) -> Entry {
        let is_full = self.connections.len() >= self.most_connections;
        let is_young = |began: Instant| !is_urgent && now.duration_since(began) < GRACE;
        let oldest = match self.in_the_way(peer, is_full) {
            None => None,
            Some((_, began, is_own)) if is_young(began) => {
                return if is_own { Entry::Later } else { Entry::LaterForAll };
            }
            Some((oldest, ..)) => Some(oldest),
        };
        let event_loop = match oldest.and_then(|oldest| self.connections.get(&oldest)) {
            Some(event_loop) => *event_loop,
            None if is_full => return Entry::Full,
            None => self.lightest(burden),
        };
        if let Some(oldest) = oldest {
            self.leave(oldest);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, event_loop);
        self.handshakes.insert(id, (peer, now));
        self.counts[event_loop] += 1;
        let place = Place { id, event_loop };
        oldest.map_or(Entry::Free(place), |oldest| Entry::After(oldest, place))
    }

    /// The peer of a connection has shown who it is.
    pub fn introduce(&mut self, id: u64) {
        self.handshakes.remove(&id);
    }

    /// A connection is closed; or it was displaced before.
    pub fn leave(&mut self, id: u64) {
        self.handshakes.remove(&id);
        if let Some(event_loop) = self.connections.remove(&id) {
            self.counts[event_loop] -= 1;
        }
    }

    /// The handshake that must end before one of `peer` may begin, if any: its number, when it began, and
    /// whether it is in the way as one of the same address.
    fn in_the_way(&self, peer: IpAddr, is_full: bool) -> Option<(u64, Instant, bool)> {
        let mut own = self.handshakes.iter().filter(|(_, (known, _))| *known == peer);
        let oldest_own = own.next().map(|(id, (_, began))| (*id, *began, true));
        if own.count() + 1 >= MOST_OF_ADDRESS {
            return oldest_own;
        }
        let is_crowded = is_full || self.handshakes.len() >= MOST_HANDSHAKES;
        let oldest = self.handshakes.first_key_value().filter(|_| is_crowded);
        oldest.map(|(id, (_, began))| (*id, *began, false))
    }

    fn lightest(&self, burden: impl Fn(usize) -> u64) -> usize {
        let loops = self.counts.iter().enumerate();
        let lightest = loops.min_by_key(|(number, count)| (**count, burden(*number)));
        lightest.map_or(0, |(number, _)| number)
    }
}

/// Raises the process's soft limit of open files to the hard one, and returns the number of
/// connections that leave enough files for everything else.
#[must_use]
pub fn most_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return MOST_CONNECTIONS };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            soft
        }
    };
    let left = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    let most = left.clamp(LEAST_CONNECTIONS, MOST_CONNECTIONS);
    if most < MOST_CONNECTIONS {
        tracing::warn!(files = limit, connections = most, "few files may be open; see ulimit -n");
    }
    most
}

/// Each takes up to 0.5 MiB of buffers while its sensor sends, and gives them back when it does not.
const MOST_CONNECTIONS: usize = 2048;
const LEAST_CONNECTIONS: usize = 8;
/// Files for the store, the API and the libraries.
const OTHER_FILES: usize = 128;
const MOST_HANDSHAKES: usize = 128;
const MOST_OF_ADDRESS: usize = 16;
/// Time that a handshake has before it must make way: several round trips around the earth.
const GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn place(id: u64, event_loop: usize) -> Place {
        Place { id, event_loop }
    }

    /// The place of a caller that finds room.
    fn enter(admission: &mut Admission, number: u32) -> Place {
        match admission.enter(address(number), (Instant::now(), false), |_| 0) {
            Entry::Free(place) => place,
            other => panic!("{other:?}"),
        }
    }

    /// What becomes of one that comes so much later.
    fn enter_after(admission: &mut Admission, number: u32, wait: Duration) -> Entry {
        admission.enter(address(number), (Instant::now() + wait, false), |_| 0)
    }

    #[test]
    fn callers_go_to_the_loop_with_the_fewest_connections_however_old_they_are() {
        let mut admission = Admission::new(3, 100);
        let loops: Vec<_> = (0..6).map(|n| enter(&mut admission, n).event_loop).collect();
        assert_eq!(loops, [0, 1, 2, 0, 1, 2]);
        // Both of the second loop: ids count from 1.
        admission.leave(2);
        admission.leave(5);
        let loops: Vec<_> = (6..9).map(|n| enter(&mut admission, n).event_loop).collect();
        assert_eq!(loops, [1, 1, 0]);
    }

    #[test]
    fn among_loops_with_as_many_connections_the_least_busy_one_is_chosen() {
        let mut admission = Admission::new(3, 100);
        let mut enter = || {
            let now = (Instant::now(), false);
            admission.enter(address(1), now, |number| [7, 3, 5][number])
        };
        assert_eq!(enter(), Entry::Free(place(1, 1)));
        assert_eq!(enter(), Entry::Free(place(2, 2)));
    }

    #[test]
    fn the_limits_of_handshakes_hold_over_all_loops_together() {
        let mut admission = Admission::new(4, 1000);
        for _ in 0..MOST_OF_ADDRESS {
            enter(&mut admission, 7);
        }
        // The oldest one of the address goes, and the new one comes to the same loop.
        assert_eq!(enter_after(&mut admission, 7, GRACE), Entry::After(1, place(17, 0)));
        for number in 100..100 + (MOST_HANDSHAKES - MOST_OF_ADDRESS) as u32 {
            enter(&mut admission, number);
        }
        let entry = enter_after(&mut admission, 8, GRACE);
        assert!(matches!(entry, Entry::After(2, Place { event_loop: 1, .. })), "{entry:?}");
        assert_eq!(admission.handshakes.len(), MOST_HANDSHAKES);
        // Who is known is in nobody's way.
        admission.introduce(3);
        enter(&mut admission, 9);
    }

    #[test]
    fn a_handshake_has_its_time_unless_there_is_no_room_to_wait() {
        let mut admission = Admission::new(1, 1000);
        let early = GRACE - Duration::from_millis(100);
        for _ in 0..MOST_OF_ADDRESS {
            enter(&mut admission, 7);
        }
        assert_eq!(enter_after(&mut admission, 7, early), Entry::Later);
        let urgent = admission.enter(address(7), (Instant::now(), true), |_| 0);
        assert!(matches!(urgent, Entry::After(1, _)), "{urgent:?}");
        // Others do not wait for that address, until all places are taken.
        for number in 100..100 + (MOST_HANDSHAKES - MOST_OF_ADDRESS) as u32 {
            enter(&mut admission, number);
        }
        assert_eq!(enter_after(&mut admission, 8, early), Entry::LaterForAll);
        // One of them is through.
        admission.introduce(2);
        assert!(matches!(enter_after(&mut admission, 8, early), Entry::Free(_)));
    }

    #[test]
    fn handshakes_make_way_when_there_is_no_connection_left_and_sessions_do_not() {
        let mut admission = Admission::new(2, 3);
        let ids: Vec<_> = (0..3).map(|number| enter(&mut admission, number).id).collect();
        admission.introduce(ids[0]);
        let enter_late = |admission: &mut Admission| enter_after(admission, 9, GRACE);
        assert!(matches!(enter_late(&mut admission), Entry::After(id, _) if id == ids[1]));
        admission.introduce(ids[2]);
        assert!(matches!(enter_after(&mut admission, 9, GRACE * 2), Entry::After(4, _)));
        admission.introduce(5);
        assert_eq!(enter_late(&mut admission), Entry::Full);
        // The loop says so later than the door; only once does it count.
        admission.leave(ids[1]);
        admission.leave(ids[1]);
        assert_eq!(enter_late(&mut admission), Entry::Full);
        admission.leave(ids[0]);
        enter(&mut admission, 9);
        assert_eq!(admission.counts.iter().sum::<usize>(), 3);
    }
}
