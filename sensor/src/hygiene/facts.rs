//! What is known about an interface.

use std::io;
use std::path::Path;

use super::sysfs::{Interrupt, Link, Node, Tree};
use super::xdp::{self, Xdp};
use crate::afpacket::{Channels, Coalesce, Driver, Ethtool, Feature, Pause, Rss, RxRing};

/// A fact, or why it is not known.
pub(super) type Known<T> = Result<T, String>;

/// Everything that verdicts are made from.
#[derive(Clone, Debug)]
pub struct Facts {
    pub(super) interface: String,
    /// Frames sent to itself; no hardware.
    pub(super) is_loopback: bool,
    /// It has a device behind it. Veth, bridges, tunnels and loopback have none.
    pub(super) has_device: bool,
    pub(super) driver: Known<Driver>,
    pub(super) link: Known<Link>,
    /// Receive queues that exist now.
    pub(super) rx_queues: Known<usize>,
    pub(super) channels: Known<Channels>,
    pub(super) rss: Known<Rss>,
    pub(super) features: Known<Vec<Feature>>,
    pub(super) rx_ring: Known<RxRing>,
    pub(super) pause: Known<Pause>,
    pub(super) coalesce: Known<Coalesce>,
    /// Interrupts of the receive queues.
    pub(super) interrupts: Known<Vec<Interrupt>>,
    pub(super) runs_irqbalance: Known<bool>,
    /// The memory node of the device; `None` where the machine has only one.
    pub(super) node: Known<Option<Node>>,
    pub(super) xdp: Known<Option<Xdp>>,
}

impl Facts {
    /// Asks the kernel, and reads below `root`, which is `/` but in tests.
    #[must_use]
    pub fn gather(interface: &str, root: &Path) -> Self {
        let tree = Tree::new(root, interface);
        let ethtool = Ethtool::new(interface);
        let ethtool = ethtool.as_ref().map_err(|error| io::Error::from(error.kind()));
        let index = nix::net::if_::if_nametoindex(interface).map_err(|error| error.to_string());
        // What the files say is used only if they are about this interface.
        let is_ours = index.and_then(|index| tree.shows_index(index));
        let ours = || is_ours.clone();
        let link = ours().and_then(|()| tree.link());
        Self {
            interface: interface.to_owned(),
            is_loopback: link.as_ref().is_ok_and(|link| link.is_loopback),
            has_device: is_ours.is_ok() && tree.has_device(),
            driver: ask(&ethtool, Ethtool::driver),
            link,
            rx_queues: ours().and_then(|()| tree.rx_queues()),
            channels: ask(&ethtool, Ethtool::channels),
            rss: ask(&ethtool, Ethtool::rss),
            features: ask(&ethtool, Ethtool::features),
            rx_ring: ask(&ethtool, Ethtool::rx_ring),
            pause: ask(&ethtool, Ethtool::pause),
            coalesce: ask(&ethtool, Ethtool::coalesce),
            interrupts: ours().and_then(|()| tree.interrupts()),
            runs_irqbalance: tree.runs_irqbalance(),
            node: ours().map(|()| tree.node()),
            xdp: xdp::attached(interface).map_err(|error| error.to_string()),
        }
    }
}

fn ask<T>(
    ethtool: &Result<&Ethtool, io::Error>,
    question: impl FnOnce(&Ethtool) -> io::Result<T>,
) -> Known<T> {
    match ethtool {
        Ok(ethtool) => question(ethtool).map_err(|error| reason(&error)),
        Err(error) => Err(error.to_string()),
    }
}

/// An error of a question, as why something is unknown.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver does not say".to_owned(),
        Some(libc::EPERM | libc::EACCES) => "only a process with CAP_NET_ADMIN may ask".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let of = |number| reason(&io::Error::from_raw_os_error(number));
        assert_eq!(of(libc::EOPNOTSUPP), "the driver does not say");
        assert!(of(libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(of(libc::EBUSY).contains("busy"));
    }
}
