//! One captured frame, borrowed from where it lies: a ring block, a capture file, a test's vector.

use wire::units::{UnixNanos, WireLen};

/// One captured frame. Its bytes are checked by nobody yet.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Captured bytes from the link-layer header on, without the tag in [`Frame::vlan`].
    pub data: &'a [u8],
    /// Length on the wire, without the tag in [`Frame::vlan`].
    pub wire_len: WireLen,
    /// When the kernel (or the file) says that the frame was seen.
    pub time: UnixNanos,
    /// The outer VLAN tag, where the kernel took it out of the bytes.
    pub vlan: Option<VlanTag>,
    /// How the bytes begin.
    pub link: LinkType,
    /// The interface that it passed: a number that whoever captured it gave it; 0
    /// for the frames of a file.
    pub interface: u32,
}

// A vector of frames is copied for every block: the interface lies where padding was.
const _: () = assert!(size_of::<Frame<'_>>() == 40);

impl Frame<'_> {
    /// No bytes at no time: what a vector holds where no frame was put yet.
    pub const EMPTY: Self = Self {
        data: &[],
        wire_len: WireLen(0),
        time: UnixNanos(0),
        vlan: None,
        link: LinkType::ETHERNET,
        interface: 0,
    };
}

/// A VLAN tag as IEEE 802.1Q lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag protocol identifier: 0x8100, 0x88a8, or what the sender used.
    pub protocol: u16,
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub control: u16,
}

impl VlanTag {
    /// The VLAN id, 0 for a priority tag.
    #[must_use]
    pub const fn id(self) -> u16 {
        self.control & 0x0fff
    }
}

/// How the bytes of a frame begin: the LINKTYPE_ number of capture files
/// (Source: <https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    /// BSD loopback: a 4-byte address family in host order.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// Raw IPv4 or IPv6, told apart by the version nibble.
    pub const RAW: Self = Self(101);
    /// Linux cooked capture.
    pub const LINUX_SLL: Self = Self(113);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);
}
