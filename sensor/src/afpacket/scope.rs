//! What a ring listens to.

use std::io;

use super::interface::Interface;

/// What a ring listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One interface.
    One(Interface),
    /// All interfaces of the network namespace, those that appear later included. A frame that
    /// passes several (a bridge and its port, say) is seen on each.
    All {
        /// Indexes of interfaces whose frames are rejected, by the packet filter.
        excluded: Vec<u32>,
    },
}

impl Scope {
    /// Name of the interface, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::One(interface) => &interface.name,
            Self::All { .. } => "all interfaces",
        }
    }

    /// The index to bind to.
    pub(super) fn index(&self) -> u32 {
        match self {
            Self::One(interface) => interface.index,
            Self::All { .. } => 0,
        }
    }

    /// Frames may pass the loopback interface.
    pub(super) fn has_loopback(&self) -> bool {
        match self {
            Self::One(interface) => interface.is_loopback,
            Self::All { .. } => true,
        }
    }

    /// Indexes whose frames are rejected.
    pub(super) fn excluded(&self) -> &[u32] {
        match self {
            Self::One(_) => &[],
            Self::All { excluded } => excluded,
        }
    }

    /// Indexes of the interfaces that a promiscuous ring changes. On loopback it has no effect.
    pub(super) fn to_be_promiscuous(&self) -> io::Result<Vec<u32>> {
        Ok(match self {
            Self::One(interface) if interface.is_loopback => Vec::new(),
            Self::One(interface) => vec![interface.index],
            Self::All { excluded } => {
                let all = nix::net::if_::if_nameindex()?;
                let all = all.iter().map(|one| one.index());
                all.filter(|index| *index != LOOPBACK_INDEX && !excluded.contains(index)).collect()
            }
        })
    }
}

/// The kernel gives every network namespace its loopback interface first.
/// Source: Linux `include/net/net_namespace.h`, `LOOPBACK_IFINDEX`.
const LOOPBACK_INDEX: u32 = 1;
