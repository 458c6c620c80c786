//! Ids of interfaces: small numbers that frames, flows and events carry in place of a name.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use wire::message::{Interface, MAX_INTERFACES};

use crate::metrics::{Families, Source};
use packet::frame::LinkType;

/// An interface that frames refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Arc<str>,
    /// How its frames begin.
    pub link: LinkType,
}

/// The interfaces by their ids, which are places in a list that only grows: an id means the same for as
/// long as the process lives. One thread adds, anyone reads.
#[derive(Debug)]
pub struct InterfaceNames {
    list: ArcSwap<Vec<Listed>>,
    over_limit: AtomicU64,
}

impl InterfaceNames {
    /// The interfaces that are known at the start, of which there are at most [`MAX_INTERFACES`].
    #[must_use]
    pub fn new<N: Into<Arc<str>>>(list: impl IntoIterator<Item = (N, LinkType)>) -> Self {
        let listed = |(name, link): (N, LinkType)| Listed { name: name.into(), link };
        let list: Vec<Listed> = list.into_iter().map(listed).collect();
        Self { list: ArcSwap::from_pointee(list), over_limit: AtomicU64::new(0) }
    }

    /// All, by id. What a frame refers to was added before the frame was taken out of its ring.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Vec<Listed>>> {
        self.list.load()
    }

    /// The id of an interface that was added before.
    #[must_use]
    pub fn id_of(&self, name: &str, link: LinkType) -> Option<u32> {
        let list = self.list.load();
        let id = list.iter().position(|one| &*one.name == name && one.link == link);
        // No more than MAX_INTERFACES.
        id.map(|id| id as u32)
    }

    /// The id of an interface, which is added if it is new. `None`, counted, where there is no room. To
    /// be called by one thread.
    pub fn add(&self, name: &str, link: LinkType) -> Option<u32> {
        if let Some(id) = self.id_of(name, link) {
            return Some(id);
        }
        let mut list = Vec::clone(&self.list.load());
        if list.len() >= MAX_INTERFACES {
            self.over_limit.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        list.push(Listed { name: name.into(), link });
        let id = list.len() - 1;
        self.list.store(Arc::new(list));
        // As above.
        Some(id as u32)
    }

    /// Interfaces that found no room.
    #[must_use]
    pub fn over_limit(&self) -> u64 {
        self.over_limit.load(Ordering::Relaxed)
    }

    /// What a collector is told of those from the id `from` on. A name may have any characters; those
    /// that end a line or steer a terminal are replaced.
    #[must_use]
    pub fn declaration(&self, from: usize, snaplen: u32) -> Vec<Interface> {
        let list = self.list.load();
        let numbered = (0..).zip(list.iter()).skip(from);
        let declared = |(id, one): (u32, &Listed)| Interface {
            id,
            name: one.name.replace(char::is_control, "?"),
            linktype: one.link.0,
            snaplen,
        };
        numbered.map(declared).collect()
    }
}

impl Source for InterfaceNames {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        families.gauge(
            "ringwatch_interface_names",
            "Names that frames, flows and events have been given for their interface",
            [(vec![], self.list.load().len() as f64)],
        )?;
        families.counter(
            "ringwatch_interfaces_over_limit",
            "Interfaces that got no name of their own, because there were too many",
            [(vec![], self.over_limit())],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_id_and_another_link_type_is_another_interface() {
        let names = InterfaceNames::new([("*", LinkType::ETHERNET)]);
        assert_eq!(names.add("veth0", LinkType::ETHERNET), Some(1));
        assert_eq!(names.add("tun0", LinkType::RAW), Some(2));
        assert_eq!(names.add("veth0", LinkType::ETHERNET), Some(1));
        assert_eq!(names.add("tun0", LinkType::ETHERNET), Some(3));
        assert_eq!(&*names.load()[2].name, "tun0");
        assert_eq!(names.id_of("veth1", LinkType::ETHERNET), None);
    }

    #[test]
    fn names_beyond_the_limit_are_counted_and_get_no_id() {
        let names = InterfaceNames::new([("*", LinkType::ETHERNET)]);
        for number in 1..MAX_INTERFACES {
            assert_eq!(names.add(&format!("v{number}"), LinkType::ETHERNET), Some(number as u32));
        }
        assert_eq!((names.add("more", LinkType::ETHERNET), names.over_limit()), (None, 1));
        assert_eq!(names.add("v7", LinkType::ETHERNET), Some(7), "those before stay");
    }

    #[test]
    fn a_declaration_has_no_control_characters() {
        let names = InterfaceNames::new([("a", LinkType::ETHERNET), ("b\x1b\n", LinkType::RAW)]);
        let declared = names.declaration(1, 100);
        assert_eq!((declared.len(), declared[0].id, declared[0].linktype), (1, 1, 101));
        assert_eq!(declared[0].name, "b??");
    }
}
