//! What the system says about a network interface.

use std::io;
use std::os::fd::AsFd;

use packet::frame::LinkType;

use super::error::{OpenError, Step};
use super::sys::{self, InterfaceRequest};

/// A network interface, as it was when it was looked up. Its index names it until it is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, such as `eth0`.
    pub name: String,
    /// Index of the interface in its network namespace.
    pub index: u32,
    /// How its frames begin.
    pub link: LinkType,
    /// Frames sent to itself: every frame passes a packet socket twice, out and in.
    pub is_loopback: bool,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
}

impl Interface {
    /// Looks up an interface by name, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`OpenError::NoSuchInterface`] with the names that exist; [`OpenError::UnsupportedHardware`];
    /// [`OpenError::System`] if the kernel does not answer.
    pub fn find(name: &str) -> Result<Self, OpenError> {
        let query = |error| OpenError::at(Step::Query, name, error);
        let socket = sys::query_socket().map_err(query)?;
        let ask = |what| sys::interface(socket.as_fd(), name, what);
        let index = match ask(InterfaceRequest::Index) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                let existing = Self::names().map_err(query)?;
                return Err(OpenError::NoSuchInterface { name: name.to_owned(), existing });
            }
            other => other.map_err(query)?,
        };
        let hardware = ask(InterfaceRequest::Hardware).map_err(query)?;
        let mtu = ask(InterfaceRequest::Mtu).map_err(query)?;
        let hardware = u16::try_from(hardware).unwrap_or(libc::ARPHRD_VOID);
        let Some(link) = link_type(hardware) else {
            return Err(OpenError::UnsupportedHardware { name: name.to_owned(), hardware });
        };
        Ok(Self {
            name: name.to_owned(),
            index: u32::try_from(index).unwrap_or(0),
            link,
            is_loopback: hardware == libc::ARPHRD_LOOPBACK,
            mtu: u32::try_from(mtu).unwrap_or(0),
        })
    }

    /// Names of all interfaces of the calling thread's network namespace, by index.
    ///
    /// # Errors
    /// The kernel's, if it does not list them.
    pub fn names() -> io::Result<Vec<String>> {
        let interfaces = nix::net::if_::if_nameindex()?;
        Ok(interfaces.iter().map(|one| one.name().to_string_lossy().into_owned()).collect())
    }
}

/// The link type of frames that begin in a way that is not analysed. No capture file has this number.
pub const UNKNOWN_LINK: LinkType = LinkType(u16::MAX);

/// How frames of this hardware begin; `None` where that is neither Ethernet nor IP.
///
/// Source: Linux `include/uapi/linux/if_arp.h`.
#[inline]
pub(super) fn link_type(hardware: u16) -> Option<LinkType> {
    const ARPHRD_RAWIP: u16 = 519;
    const ARPHRD_TUNNEL6: u16 = 769;
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(LinkType::ETHERNET),
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_SIT
        | ARPHRD_RAWIP
        | ARPHRD_TUNNEL6 => Some(LinkType::RAW),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ethernet_and_marked() {
        let lo = Interface::find("lo").unwrap();
        assert!(lo.is_loopback && lo.index > 0 && lo.mtu >= 1280, "{lo:?}");
        assert_eq!(lo.link, LinkType::ETHERNET);
    }

    #[test]
    fn unknown_name_lists_the_names_that_exist() {
        for name in ["nosuch0", "", "a-name-of-more-than-fifteen-bytes", "lo\0"] {
            let error = Interface::find(name).unwrap_err();
            let OpenError::NoSuchInterface { existing, .. } = &error else { panic!("{error:?}") };
            assert!(existing.iter().any(|one| one == "lo"), "{error}");
        }
    }

    #[test]
    fn hardware_that_cannot_be_parsed_is_refused() {
        assert_eq!(link_type(libc::ARPHRD_NONE), Some(LinkType::RAW));
        assert_eq!(link_type(libc::ARPHRD_CAN), None);
    }
}
