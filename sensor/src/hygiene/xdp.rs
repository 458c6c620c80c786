//! Whether an XDP program sees the frames of an interface first: one question to rtnetlink.
//!
//! Source: `rtnetlink(7)`, Linux `include/uapi/linux/if_link.h`.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// An XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    pub(super) mode: Mode,
    /// Number of the program; 0 where several are attached.
    pub(super) program: u32,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Driver,
    Generic,
    Hardware,
    Several,
}

const NETLINK_ERROR: u16 = libc::NLMSG_ERROR as u16;
const HEADER_BYTES: usize = 16;
/// `struct ifinfomsg`, which stands in front of the attributes.
const LINK_BYTES: usize = 16;
const NESTED: u16 = 0x3fff; // without NLA_F_NESTED and NLA_F_NET_BYTEORDER

/// The XDP program of an interface.
///
/// # Errors
/// The kernel's: no such interface, no netlink.
pub(super) fn attached(interface: &str) -> io::Result<Option<Xdp>> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let request = question(index);
    sendto(fd.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    // The kernel's answer about one interface has less than 8 KiB unless virtual functions are asked for.
    let mut answer = vec![0; 64 * 1024];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read(&answer[..length.min(answer.len())])
}

/// RTM_GETLINK for one interface.
fn question(index: u32) -> [u8; HEADER_BYTES + LINK_BYTES] {
    const LENGTH: u32 = (HEADER_BYTES + LINK_BYTES) as u32;
    let mut bytes = [0; HEADER_BYTES + LINK_BYTES];
    bytes[0..4].copy_from_slice(&LENGTH.to_ne_bytes());
    bytes[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes[20..24].copy_from_slice(&index.to_ne_bytes());
    bytes
}

fn read(answer: &[u8]) -> io::Result<Option<Xdp>> {
    const ATTACHED: u16 = 2; // IFLA_XDP_ATTACHED
    const PROGRAM: u16 = 4; // IFLA_XDP_PROG_ID
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = u16_at(answer, 4).ok_or_else(malformed)?;
    if kind == NETLINK_ERROR {
        let error = u32_at(answer, HEADER_BYTES).ok_or_else(malformed)?.cast_signed();
        return Err(io::Error::from_raw_os_error(error.saturating_neg()));
    }
    let attributes = answer.get(HEADER_BYTES + LINK_BYTES..).ok_or_else(malformed)?;
    let Some(xdp) = attribute(attributes, libc::IFLA_XDP) else { return Ok(None) };
    let mode = match attribute(xdp, ATTACHED).and_then(|value| value.first()) {
        None | Some(0) => return Ok(None),
        Some(1) => Mode::Driver,
        Some(2) => Mode::Generic,
        Some(3) => Mode::Hardware,
        Some(_) => Mode::Several,
    };
    let program = attribute(xdp, PROGRAM).and_then(|value| u32_at(value, 0)).unwrap_or(0);
    Ok(Some(Xdp { mode, program }))
}

/// The value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const HEADER: usize = 4;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & NESTED;
        let value = attributes.get(HEADER..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_ne_bytes(*word))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + LINK_BYTES];
        bytes[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn a_program_is_read_with_its_mode_and_number() {
        let nested = [packed(2, &[2]), packed(4, &77_u32.to_ne_bytes())].concat();
        let said = answer(&[packed(3, b"eth0\0"), packed(libc::IFLA_XDP | 0x8000, &nested)]);
        let expected = Xdp { mode: Mode::Generic, program: 77 };
        assert_eq!(read(&said).unwrap(), Some(expected));
        let none = answer(&[packed(libc::IFLA_XDP, &packed(2, &[0]))]);
        assert_eq!(read(&none).unwrap(), None);
        assert_eq!(read(&answer(&[])).unwrap(), None);
    }

    #[test]
    fn no_cut_or_garbled_answer_panics_or_loops() {
        let whole = answer(&[packed(3, b"eth0\0"), packed(libc::IFLA_XDP, &packed(2, &[1]))]);
        for length in 0..whole.len() {
            let _ = read(&whole[..length]);
            let mut garbled = whole.clone();
            garbled[length] = 0;
            let _ = read(&garbled);
            garbled[length] = 0xff;
            let _ = read(&garbled);
        }
        assert!(read(&[]).is_err());
    }

    #[test]
    fn loopback_has_no_program_and_an_unknown_interface_is_an_error() {
        assert_eq!(attached("lo").unwrap(), None);
        assert!(attached("nosuch0").is_err());
    }
}
