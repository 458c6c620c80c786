//! The system call bpf(2), as far as the load generator needs it: load an XDP program, run it on
//! frames as if an interface had received them, and read the counter that it keeps.
//!
//! Source: include/uapi/linux/bpf.h, `union bpf_attr`; Documentation/bpf/bpf_prog_run.rst.
#![expect(unsafe_code, reason = "no safe crate has bpf(2) without a C library beneath it")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
/// Frames that the kernel makes and hands to the stack together.
const BATCH: u32 = 64;

/// One instruction of an eBPF program (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination and source register, four bits each, in the host's order of bit fields.
    pub registers: u8,
    /// Offset of a jump, in instructions, or of a memory access, in bytes.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// A number in the kernel that a program counts up.
#[derive(Debug)]
pub struct Counter(OwnedFd);

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program(OwnedFd);

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// What an XDP program is told of a frame (`struct xdp_md`).
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(size_of::<MapCreate>() == 20);
const _: () = assert!(size_of::<MapElement>() == 32);
const _: () = assert!(size_of::<ProgLoad>() == 48);
const _: () = assert!(size_of::<TestRun>() == 80);
const _: () = assert!(size_of::<XdpContext>() == 24);

impl Counter {
    /// A counter that is 0.
    ///
    /// # Errors
    /// The kernel's: no CAP_BPF.
    pub fn new() -> io::Result<Self> {
        let mut attributes = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            map_flags: 0,
        };
        // SAFETY: the attributes of this command hold no address.
        let result = unsafe { bpf(MAP_CREATE, &mut attributes) }?;
        Ok(Self(owned(result)?))
    }

    /// Its value now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn value(&self) -> io::Result<u64> {
        let key: u32 = 0;
        let mut value: u64 = 0;
        let mut attributes = MapElement {
            map_fd: descriptor(&self.0)?,
            key: (&raw const key).expose_provenance() as u64,
            value: (&raw mut value).expose_provenance() as u64,
            ..MapElement::default()
        };
        // SAFETY: the kernel reads key_size = 4 bytes of `key` and writes value_size = 8 bytes of
        // `value`, as `new` made the map; both variables live until behind the call.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes) }?;
        Ok(value)
    }

    /// The descriptor, as an instruction that loads the counter's address names it.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Program {
    /// Loads a program.
    ///
    /// # Errors
    /// The kernel's: no CAP_BPF, or its verifier refuses the instructions.
    pub fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let mut attributes = ProgLoad {
            prog_type: PROG_TYPE_XDP,
            insn_cnt: length(instructions.len())?,
            insns: instructions.as_ptr().expose_provenance() as u64,
            license: c"Dual MIT/GPL".as_ptr().expose_provenance() as u64,
            ..ProgLoad::default()
        };
        // SAFETY: the kernel reads insn_cnt instructions of 8 bytes, which is the length of the
        // slice, and the licence up to its NUL. Both outlive the call.
        let result = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
        Ok(Self(owned(result)?))
    }

    /// Makes `count` frames out of `frame`, runs the program on each, and hands those that it passes
    /// to the stack as if `interface_index` had received them. Waits until that is done.
    ///
    /// # Errors
    /// The kernel's: Linux older than 5.18, no such interface, a frame longer than a page has room
    /// for (about 3 500 bytes) or shorter than 14 bytes.
    pub fn run_live(&self, frame: &[u8], interface_index: u32, count: u32) -> io::Result<()> {
        let bytes = length(frame.len())?;
        let context = XdpContext {
            data_end: bytes,
            ingress_ifindex: interface_index,
            ..XdpContext::default()
        };
        let mut attributes = TestRun {
            prog_fd: descriptor(&self.0)?,
            data_size_in: bytes,
            data_in: frame.as_ptr().expose_provenance() as u64,
            repeat: count,
            ctx_size_in: length(size_of::<XdpContext>())?,
            ctx_in: (&raw const context).expose_provenance() as u64,
            flags: TEST_XDP_LIVE_FRAMES,
            batch_size: BATCH,
            ..TestRun::default()
        };
        // SAFETY: the kernel reads data_size_in bytes of `frame` and ctx_size_in bytes of `context`,
        // which are their sizes, and writes to neither: the addresses of both outputs are null. Both
        // outlive the call.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        Ok(())
    }
}

/// The system call; -1 becomes the error.
///
/// # Safety
/// `T` is the structure of `command` without implicit padding, and every address in it is valid for
/// what the kernel reads or writes there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes at most the size that it is given, which is that of
    // `attributes`; the caller answers for the addresses in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: called once for each result of a command that returns a new descriptor, so nobody
    // else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn descriptor(fd: &OwnedFd) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(io::Error::other)
}
