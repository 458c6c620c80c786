//! Where frames belong, by the kernel's index of the interface that they passed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use packet::frame::LinkType;

use crate::afpacket::{Captured, UNKNOWN_LINK};

/// The newest [`PlaceMap`]. One thread replaces it, workers read it without waiting.
#[derive(Debug, Default)]
pub struct Places {
    current: ArcSwap<PlaceMap>,
    version: AtomicU64,
}

impl Places {
    /// The newest map.
    #[inline]
    #[must_use]
    pub fn load(&self) -> Guard<Arc<PlaceMap>> {
        self.current.load()
    }

    /// Grows with every map.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Replaces the map.
    pub fn store(&self, map: PlaceMap) {
        self.current.store(Arc::new(map));
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Where frames belong, by the interface that they passed. The first two ids are those of the patterns:
/// [`PlaceMap::ETHERNET`] and [`PlaceMap::RAW`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PlaceMap {
    /// By index, in its order.
    places: Vec<(u32, Place)>,
    unwanted: Vec<u32>,
}

/// What becomes of the frames of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// They are analysed under this id, if they begin as the interface says.
    Id(u32, LinkType),
    /// They are analysed under the id of the patterns.
    Unnamed,
    /// They are not looked at.
    NotWanted,
}

impl PlaceMap {
    /// Id of Ethernet frames that passed an interface without an id of its own.
    pub const ETHERNET: u32 = 0;
    /// Id of such frames that begin with an IP header: a capture file has one link type for each id.
    pub const RAW: u32 = 1;

    /// The map of these interfaces, and of those that the filter is to reject.
    pub(super) fn new(places: BTreeMap<u32, Place>, unwanted: Vec<u32>) -> Self {
        Self { places: places.into_iter().collect(), unwanted }
    }

    /// Indexes of interfaces whose frames are not wanted.
    #[must_use]
    pub fn unwanted(&self) -> &[u32] {
        &self.unwanted
    }

    /// The id of frames that passed the interface `index` and begin like this; `None`: not wanted.
    #[must_use]
    pub fn id_of(&self, index: u32, link: LinkType) -> Option<u32> {
        let unnamed = match link {
            // Neither a parser nor a capture file has a use for these.
            UNKNOWN_LINK => return None,
            LinkType::RAW => Self::RAW,
            _ => Self::ETHERNET,
        };
        let place = self.places.binary_search_by_key(&index, |(index, _)| *index);
        match place.map(|at| self.places[at].1) {
            Ok(Place::NotWanted) => None,
            Ok(Place::Id(id, declared)) if declared == link => Some(id),
            Ok(Place::Id(..) | Place::Unnamed) | Err(_) => Some(unnamed),
        }
    }
}

/// Finds the id of one frame after the other. Most have the interface of the one before.
#[derive(Debug)]
pub struct Finder<'a> {
    map: &'a PlaceMap,
    last: (u32, LinkType),
    id: Option<u32>,
}

impl<'a> Finder<'a> {
    /// By this map.
    #[inline]
    #[must_use]
    pub const fn new(map: &'a PlaceMap) -> Self {
        // Frames of such a link are not wanted, whatever interface they passed.
        Self { map, last: (0, UNKNOWN_LINK), id: None }
    }

    /// The id of a frame; `None`: it is not wanted.
    #[inline]
    pub fn id_of(&mut self, captured: &Captured<'_>) -> Option<u32> {
        let now = (captured.interface_index, captured.frame.link);
        if now != self.last {
            self.last = now;
            self.id = self.map.id_of(now.0, now.1);
        }
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use packet::frame::Frame;

    fn map() -> PlaceMap {
        let places = [
            (9, Place::NotWanted),
            (2, Place::Id(5, LinkType::ETHERNET)),
            (7, Place::Id(6, LinkType::RAW)),
            (3, Place::Unnamed),
        ];
        PlaceMap::new(places.into(), vec![9])
    }

    #[test]
    fn every_frame_has_one_place() {
        let map = map();
        let of = |index, link| map.id_of(index, link);
        assert_eq!(of(2, LinkType::ETHERNET), Some(5));
        assert_eq!(of(7, LinkType::RAW), Some(6));
        assert_eq!(of(9, LinkType::ETHERNET), None);
        // Of an interface that nobody looked at, beyond the limit, or that turned into another.
        assert_eq!(of(4, LinkType::ETHERNET), Some(PlaceMap::ETHERNET));
        assert_eq!(of(4, LinkType::RAW), Some(PlaceMap::RAW));
        assert_eq!(of(3, LinkType::ETHERNET), Some(PlaceMap::ETHERNET));
        assert_eq!(of(2, LinkType::RAW), Some(PlaceMap::RAW));
        assert_eq!(of(4, UNKNOWN_LINK), None);
        assert_eq!(of(2, UNKNOWN_LINK), None);
        assert_eq!(map.unwanted(), [9]);
    }

    #[test]
    fn a_finder_remembers_one_interface_and_is_not_fooled_by_the_next() {
        let map = map();
        let captured = |index, link| Captured {
            frame: Frame { link, ..Frame::EMPTY },
            packet_type: 0,
            interface_index: index,
        };
        let mut finder = Finder::new(&map);
        for _ in 0..2 {
            assert_eq!(finder.id_of(&captured(2, LinkType::ETHERNET)), Some(5));
            assert_eq!(finder.id_of(&captured(2, LinkType::ETHERNET)), Some(5));
            assert_eq!(finder.id_of(&captured(9, LinkType::ETHERNET)), None);
            assert_eq!(finder.id_of(&captured(9, LinkType::ETHERNET)), None);
            assert_eq!(finder.id_of(&captured(0, LinkType::RAW)), Some(PlaceMap::RAW));
        }
        assert_eq!(finder.id_of(&captured(2, UNKNOWN_LINK)), None);
    }

    #[test]
    fn a_new_map_is_seen_with_a_new_version() {
        let places = Places::default();
        let version = places.version();
        assert_eq!(places.load().id_of(2, LinkType::ETHERNET), Some(PlaceMap::ETHERNET));
        places.store(map());
        assert!(places.version() > version);
        assert_eq!(places.load().id_of(2, LinkType::ETHERNET), Some(5));
    }
}
