//! Why a ring could not be opened.

use std::fmt;
use std::io;

use packet::frame::LinkType;

/// Why a ring could not be opened. Each variant asks for another remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The thread lacks the capability to open packet sockets.
    #[error("cannot open a packet socket: CAP_NET_RAW is missing")]
    Permission,
    /// Each packet socket is an open file, and no more may be opened.
    #[error(
        "cannot open a packet socket: the limit of open files is reached; raise it (LimitNOFILE= of \
         the unit, ulimit -n), or set capture.reserve_sockets or capture.workers lower"
    )]
    Files(#[source] io::Error),
    /// The kernel has no packet sockets.
    #[error(
        "cannot open a packet socket: the kernel has none; load its module (modprobe af_packet)"
    )]
    NoPacketSockets(#[source] io::Error),
    /// There is no interface of this name.
    #[error("there is no interface {name:?}; there are {}", existing.join(", "))]
    NoSuchInterface {
        /// The name that was asked for.
        name: String,
        /// Names of the interfaces that exist.
        existing: Vec<String>,
    },
    /// Frames of this kind of hardware cannot be analysed.
    #[error(
        "interface {name} has hardware type {hardware}, which is neither Ethernet nor raw \
         IP; name another interface"
    )]
    UnsupportedHardware {
        /// Name of the interface.
        name: String,
        /// The ARPHRD_ number that the kernel gives.
        hardware: u16,
    },
    /// A size of the ring that no kernel accepts.
    #[error("ring setting {key} = {value} is not usable: {reason}")]
    Setting {
        /// Field of [`RingConfig`](super::RingConfig).
        key: &'static str,
        /// Its value.
        value: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel has no memory for the ring.
    #[error(
        "no memory for a ring of {bytes} bytes on {interface}, nor for the least, {least_bytes} bytes; \
         make capture.ring_mib smaller"
    )]
    Memory {
        /// Name of the interface.
        interface: String,
        /// Size of the ring that was asked for.
        bytes: u64,
        /// Size of the smallest ring that would have done.
        least_bytes: u64,
    },
    /// The packet filter is longer than the kernel takes.
    #[error(
        "packet filter on {interface} has {instructions} instructions; the kernel takes 4096 at \
         most, and less where net.core.optmem_max is small: shorten capture.filter, exclude fewer \
         interfaces, name fewer home networks"
    )]
    FilterTooLong {
        /// Name of the interface.
        interface: String,
        /// Instructions of the filter.
        instructions: usize,
    },
    /// The interface was deleted and made anew as another kind of device.
    #[error(
        "{interface} has link type {} now: {reason}; make it as it was, or restart the sensor",
        link.0
    )]
    LinkType {
        /// Name of the interface.
        interface: String,
        /// How its frames begin.
        link: LinkType,
        /// Why they cannot be taken in.
        reason: String,
    },
    /// No fanout group can be joined while the interface is down, on kernels before 6.13.
    #[error(
        "cannot join a fanout group on {interface}, which is down: set it up (ip link set {interface} \
         up), or capture with one worker"
    )]
    Down {
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another step failed.
    #[error("cannot {step} on {interface}")]
    System {
        /// The step.
        step: Step,
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The steps of opening a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Asking about the interface.
    Query,
    /// `socket(2)`.
    Socket,
    /// `PACKET_VERSION`.
    Version,
    /// `PACKET_RESERVE`.
    Reserve,
    /// `PACKET_TIMESTAMP`.
    Timestamp,
    /// `SO_ATTACH_FILTER`.
    Filter,
    /// `PACKET_RX_RING`.
    RxRing,
    /// `mmap(2)`.
    Map,
    /// `PACKET_ADD_MEMBERSHIP`.
    Promiscuous,
    /// `bind(2)`.
    Bind,
    /// `PACKET_FANOUT`.
    Fanout,
    /// `PACKET_FANOUT_DATA`.
    FanoutProgram,
    /// `PACKET_STATISTICS`.
    Statistics,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "read the properties of the interface",
            Self::Socket => "open a packet socket",
            Self::Version => "choose TPACKET_V3",
            Self::Reserve => "reserve room for a VLAN tag",
            Self::Timestamp => "choose the time stamps",
            Self::Filter => "attach a packet filter",
            Self::RxRing => "make a receive ring",
            Self::Map => "map the receive ring",
            Self::Promiscuous => "set promiscuous mode",
            Self::Bind => "bind a packet socket",
            Self::Fanout => "join a fanout group",
            Self::FanoutProgram => "set the program of a fanout group",
            Self::Statistics => "read the packet statistics",
        })
    }
}

impl OpenError {
    /// The error of `socket(2)`.
    pub(super) fn at_socket(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Permission,
            Some(libc::EMFILE | libc::ENFILE) => Self::Files(source),
            Some(libc::EAFNOSUPPORT) => Self::NoPacketSockets(source),
            _ => Self::at(Step::Socket, "any interface", source),
        }
    }

    /// The error of `PACKET_FANOUT` on one interface, or on all.
    pub(super) fn at_fanout(interface: &str, is_up: bool, source: io::Error) -> Self {
        let is_of_link = matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENETDOWN));
        if is_of_link && !is_up {
            Self::Down { interface: interface.to_owned(), source }
        } else {
            Self::at(Step::Fanout, interface, source)
        }
    }

    /// The error of `step`.
    pub(super) fn at(step: Step, interface: &str, source: io::Error) -> Self {
        Self::System { step, interface: interface.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_cannot_be_made_names_the_remedy() {
        let said = |errno| OpenError::at_socket(io::Error::from_raw_os_error(errno)).to_string();
        for (errno, remedy) in [
            (libc::EPERM, "CAP_NET_RAW"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::EAFNOSUPPORT, "modprobe af_packet"),
        ] {
            assert!(said(errno).contains(remedy), "{}", said(errno));
        }
    }

    #[test]
    fn a_group_that_cannot_be_joined_for_want_of_a_link_names_the_remedy() {
        for errno in [libc::EINVAL, libc::ENETDOWN] {
            let at = |is_up| {
                OpenError::at_fanout("eth0", is_up, io::Error::from_raw_os_error(errno)).to_string()
            };
            assert_eq!(
                at(false),
                "cannot join a fanout group on eth0, which is down: set it up (ip link set eth0 up), \
                 or capture with one worker"
            );
            assert_eq!(at(true), "cannot join a fanout group on eth0");
        }
        let other = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(
            OpenError::at_fanout("eth0", false, other).to_string(),
            "cannot join a fanout group on eth0"
        );
    }
}
