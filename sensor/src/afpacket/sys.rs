//! One system call per safe function. The result -1 becomes an [`io::Error`] in [`checked`] alone.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::time::Duration;

use libc::{c_int, c_void, sockaddr_ll, socklen_t};

/// A C structure or integer without pointers, for which every pattern of bytes is a value.
///
/// # Safety
/// The type has no padding that matters, no pointer, and no invalid bit pattern.
pub(super) unsafe trait PlainData: Copy {}
// SAFETY: an integer: every bit pattern is a value.
unsafe impl PlainData for c_int {}
// SAFETY: seven integers without padding.
unsafe impl PlainData for libc::tpacket_req3 {}
// SAFETY: three integers without padding.
unsafe impl PlainData for libc::tpacket_stats_v3 {}
// SAFETY: three integers without padding.
unsafe impl PlainData for libc::fanout_args {}
// SAFETY: integers and an array of bytes without padding.
unsafe impl PlainData for libc::packet_mreq {}

/// Turns the result -1 of a system call into the error that the thread's `errno` names.
fn checked(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn length_of<T>() -> socklen_t {
    const { assert!(size_of::<T>() <= 256) };
    size_of::<T>() as socklen_t
}

/// `socket(family, kind | SOCK_CLOEXEC, 0)`.
pub(super) fn socket(family: c_int, kind: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointer.
    let fd = checked(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call succeeded, so `fd` is open, and nobody else has its number yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `setsockopt(2)` with a plain value.
pub(super) fn set_option<T: PlainData>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let pointer = ptr::from_ref(value).cast::<c_void>();
    // SAFETY: `pointer` is valid for reads of `length_of::<T>()` bytes during the call (a borrow).
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, length_of::<T>()) })?;
    Ok(())
}

/// `getsockopt(2)` of a plain value. The kernel must fill it completely.
pub(super) fn option<T: PlainData>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = length_of::<T>();
    let pointer = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: `pointer` is valid for writes of `length` bytes, and `length` for a write, during the call.
    checked(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, pointer, &mut length) })?;
    // SAFETY: the value was zeroed above, and every bit pattern is a value of `T: PlainData`.
    Ok(unsafe { value.assume_init() })
}

/// `setsockopt(SO_ATTACH_FILTER)`: replaces the socket's classic BPF program at once.
pub(super) fn attach_filter(fd: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    set_program(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

/// `setsockopt(PACKET_FANOUT_DATA)`: replaces the program of a group that deals by classic BPF.
pub(super) fn set_fanout_program(
    fd: BorrowedFd<'_>,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    set_program(fd, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, program)
}

/// `setsockopt(2)` of an option that takes a classic BPF program.
fn set_program(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let pointer = ptr::from_ref(&program).cast::<c_void>();
    let bytes = length_of::<libc::sock_fprog>();
    // SAFETY: `pointer` is valid for reads of a sock_fprog; its `filter` points to `len` instructions
    // that outlive the call (a borrow), and the kernel only reads them.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, pointer, bytes) })?;
    Ok(())
}

/// Size of a memory page.
pub(super) fn page_bytes() -> u32 {
    // SAFETY: sysconf(3) takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(4096)
}

/// `bind(2)` of a packet socket.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &sockaddr_ll) -> io::Result<()> {
    let pointer = ptr::from_ref(address).cast::<libc::sockaddr>();
    // SAFETY: `pointer` is valid for reads of a sockaddr_ll during the call (a borrow).
    checked(unsafe { libc::bind(fd.as_raw_fd(), pointer, length_of::<sockaddr_ll>()) })?;
    Ok(())
}

/// `getsockname(2)` of a packet socket.
pub(super) fn bound_address(fd: BorrowedFd<'_>) -> io::Result<sockaddr_ll> {
    let mut address = MaybeUninit::<sockaddr_ll>::zeroed();
    let mut length = length_of::<sockaddr_ll>();
    let pointer = address.as_mut_ptr().cast::<libc::sockaddr>();
    // SAFETY: `pointer` is valid for writes of `length` bytes, and `length` for a write, during the call.
    checked(unsafe { libc::getsockname(fd.as_raw_fd(), pointer, &mut length) })?;
    // SAFETY: zeroed above; a sockaddr_ll is integers only.
    Ok(unsafe { address.assume_init() })
}

/// What an interface request answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum InterfaceRequest {
    /// Index.
    Index,
    /// ARPHRD_ number of the hardware.
    Hardware,
    /// Maximum transmission unit in bytes.
    Mtu,
    /// IFF_ flags.
    Flags,
}

/// `ioctl(SIOCGIF…)` for the interface `name`, in the network namespace of the socket.
pub(super) fn interface(
    fd: BorrowedFd<'_>,
    name: &str,
    what: InterfaceRequest,
) -> io::Result<c_int> {
    let mut request = MaybeUninit::<libc::ifreq>::zeroed();
    // SAFETY: an ifreq is a name and a union of plain data, for all of which zero is a value.
    let request = unsafe { request.assume_init_mut() };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let number = match what {
        InterfaceRequest::Index => libc::SIOCGIFINDEX,
        InterfaceRequest::Hardware => libc::SIOCGIFHWADDR,
        InterfaceRequest::Mtu => libc::SIOCGIFMTU,
        InterfaceRequest::Flags => libc::SIOCGIFFLAGS,
    };
    // SAFETY: all four requests read and write one ifreq, for which the pointer is valid.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), number, ptr::from_mut(request)) })?;
    // SAFETY: each arm reads the member that the request filled; all members are plain data.
    Ok(unsafe {
        match what {
            InterfaceRequest::Index => request.ifr_ifru.ifru_ifindex,
            InterfaceRequest::Hardware => c_int::from(request.ifr_ifru.ifru_hwaddr.sa_family),
            InterfaceRequest::Mtu => request.ifr_ifru.ifru_mtu,
            InterfaceRequest::Flags => c_int::from(request.ifr_ifru.ifru_flags),
        }
    })
}

/// `ioctl(SIOCGIFNAME)`: the name that the interface `index` has now.
pub(super) fn interface_name(fd: BorrowedFd<'_>, index: c_int) -> io::Result<String> {
    let mut request = MaybeUninit::<libc::ifreq>::zeroed();
    // SAFETY: an ifreq is a name and a union of plain data, for all of which zero is a value.
    let request = unsafe { request.assume_init_mut() };
    request.ifr_ifru.ifru_ifindex = index;
    let pointer = ptr::from_mut(request);
    // SAFETY: the request reads and writes one ifreq, for which the pointer is valid.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME, pointer) })?;
    let name = request.ifr_name.iter().map(|byte| byte.to_ne_bytes()[0]);
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `poll(2)`. An interrupting signal is an ordinary early return. The timeout is rounded up: rounded
/// down, a short one would spin.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Duration) -> io::Result<()> {
    let count = libc::nfds_t::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let milliseconds = timeout.as_micros().div_ceil(1000);
    let milliseconds = c_int::try_from(milliseconds).unwrap_or(c_int::MAX);
    // SAFETY: the pointer is valid for reads and writes of `count` entries during the call (a borrow).
    match checked(unsafe { libc::poll(fds.as_mut_ptr(), count, milliseconds) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Memory shared with the kernel; unmapped on drop. Never seen through a reference.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// `mmap(2)` of the first `bytes` of `fd`, for reading and writing, all pages present.
    pub(super) fn new(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a null hint lets the kernel choose unused addresses, so no memory of ours changes.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }

    /// First byte of the mapping.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    /// Unmaps. A packet socket that is closed but still mapped stays in its fanout group.
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mmap in `new`; the owner of this value hands out
        // pointers only under a borrow of itself, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A datagram socket that exists to ask about interfaces; needs no privilege.
pub(super) fn query_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_INET, libc::SOCK_DGRAM)
}

/// The pending error of a socket, which this call clears.
pub(super) fn take_error(fd: &impl AsFd) -> io::Result<c_int> {
    option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)
}
