//! libpcap's compiler and interpreter of packet filters, loaded when a filter is asked for.
//!
//! The language of tcpdump is defined by what libpcap makes of it, so libpcap itself compiles it, and
//! runs it on the frames of files. It is no dependency of a sensor without a filter: it is looked for
//! at run time, and its absence has a name.
//!
//! Source: `pcap_compile(3PCAP)`, `pcap_offline_filter(3PCAP)`, `pcap-filter(7)`.
#![expect(unsafe_code, reason = "calls a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::mem::{MaybeUninit, size_of};
use std::ptr::{self, NonNull};

use libc::sock_filter;
use libloading::Library;

use crate::frame::LinkType;

/// Names of the library: Debian's, and what others call the same.
const NAMES: [&str; 2] = ["libpcap.so.0.8", "libpcap.so.1"];
/// The netmask of `ip broadcast` is not known.
const NETMASK_UNKNOWN: u32 = 0xffff_ffff;
/// Longest program that a kernel takes. Source: `BPF_MAXINSNS` in `include/uapi/linux/bpf_common.h`.
const MOST_INSTRUCTIONS: usize = 4096;
/// Words of a program's memory. Source: `BPF_MEMWORDS`, the same file.
const MEMORY_WORDS: u32 = 16;

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// There is no libpcap that can be loaded.
    #[error(
        "a packet filter needs libpcap; install the package libpcap0.8 (libpcap0.8t64 from Debian 13 and \
         Ubuntu 24.04 on)"
    )]
    Missing(#[source] libloading::Error),
    /// libpcap refuses the expression.
    #[error("{0}")]
    Refused(String),
    /// The program is longer than the kernel takes.
    #[error("it makes a program of {count} instructions, and the kernel takes {MOST_INSTRUCTIONS}")]
    TooLong {
        /// How many.
        count: usize,
    },
    /// libpcap made a program that cannot be run.
    #[error("libpcap makes a program of it that is broken at instruction {at}")]
    Broken {
        /// Index of the instruction.
        at: usize,
    },
}

const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const GO: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

#[repr(C)]
struct PcapProgram {
    length: c_uint,
    instructions: *mut sock_filter,
}

#[repr(C)]
struct PacketHeader {
    time: libc::timeval,
    captured: u32,
    length: u32,
}

// libpcap's bpf_insn and the kernel's sock_filter are the same: u16, u8, u8, u32.
const _: () = assert!(size_of::<sock_filter>() == 8);

type OpenDead = unsafe extern "C" fn(c_int, c_int) -> *mut Handle;
type Compile =
    unsafe extern "C" fn(*mut Handle, *mut PcapProgram, *const c_char, c_int, u32) -> c_int;
type LastError = unsafe extern "C" fn(*mut Handle) -> *const c_char;
type FreeCode = unsafe extern "C" fn(*mut PcapProgram);
type Close = unsafe extern "C" fn(*mut Handle);
type OfflineFilter =
    unsafe extern "C" fn(*const PcapProgram, *const PacketHeader, *const u8) -> c_int;

/// libpcap, loaded.
#[derive(Debug)]
pub struct Libpcap {
    open_dead: OpenDead,
    compile: Compile,
    last_error: LastError,
    free_code: FreeCode,
    close: Close,
    offline_filter: OfflineFilter,
    // The functions above lie in it: it stays loaded as long as they can be called.
    _library: Library,
}

/// A compiled filter, checked: no jump leaves it, and it ends with a return.
#[derive(Clone, Debug)]
pub struct Program {
    instructions: Vec<sock_filter>,
}

impl Libpcap {
    /// Loads the library.
    ///
    /// # Errors
    /// [`CompileError::Missing`].
    pub fn load() -> Result<Self, CompileError> {
        let open = |name: &&str| {
            // SAFETY: libpcap has no initialisers that need anything of this process; the name is one
            // that only libpcap bears, in folders that only the administrator writes to.
            unsafe { Library::new(*name) }
        };
        let library = open(&NAMES[0]).or_else(|error| open(&NAMES[1]).map_err(|_| error));
        Self::of(library.map_err(CompileError::Missing)?).map_err(CompileError::Missing)
    }

    fn of(library: Library) -> Result<Self, libloading::Error> {
        // SAFETY: each type is that of the function of this name in pcap/pcap.h, unchanged since
        // libpcap 1.0; the functions are kept together with their library, which outlives all calls.
        unsafe {
            Ok(Self {
                open_dead: *library.get::<OpenDead>(c"pcap_open_dead")?,
                compile: *library.get::<Compile>(c"pcap_compile")?,
                last_error: *library.get::<LastError>(c"pcap_geterr")?,
                free_code: *library.get::<FreeCode>(c"pcap_freecode")?,
                close: *library.get::<Close>(c"pcap_close")?,
                offline_filter: *library.get::<OfflineFilter>(c"pcap_offline_filter")?,
                _library: library,
            })
        }
    }

    /// Compiles an expression for frames of a link type, of which it keeps `snaplen` bytes.
    ///
    /// # Errors
    /// [`CompileError::Refused`] with what libpcap says; the others if its program cannot be used.
    pub fn compile(
        &self,
        expression: &str,
        link: LinkType,
        snaplen: u32,
    ) -> Result<Program, CompileError> {
        let refused = |said: &str| CompileError::Refused(said.to_owned());
        let text = CString::new(expression).map_err(|_| refused("it has a zero byte in it"))?;
        let snaplen = c_int::try_from(snaplen).unwrap_or(c_int::MAX);
        // SAFETY: takes no pointer.
        let handle = unsafe { (self.open_dead)(data_link(link), snaplen) };
        let handle = NonNull::new(handle).ok_or_else(|| refused("libpcap has no memory"))?;
        let mut program = PcapProgram { length: 0, instructions: ptr::null_mut() };
        // SAFETY: the handle is open, `program` is valid for a write, `text` is a C string; all three
        // are borrowed until the call returns, which keeps none of them.
        let result = unsafe {
            (self.compile)(handle.as_ptr(), &mut program, text.as_ptr(), 1, NETMASK_UNKNOWN)
        };
        let compiled = if result == 0 {
            // SAFETY: the call succeeded.
            Program::checked(unsafe { self.take(program) })
        } else {
            // SAFETY: the handle is open; the text that it gives is a C string in the handle.
            let said = unsafe { CStr::from_ptr((self.last_error)(handle.as_ptr())) };
            Err(CompileError::Refused(said.to_string_lossy().into_owned()))
        };
        // SAFETY: the handle is open, and nothing refers to it any more.
        unsafe { (self.close)(handle.as_ptr()) };
        compiled
    }

    /// Copies the instructions and frees libpcap's.
    ///
    /// # Safety
    /// `program` was filled by a successful call of `pcap_compile`.
    unsafe fn take(&self, mut program: PcapProgram) -> Vec<sock_filter> {
        let length = program.length as usize;
        let mut copy = Vec::with_capacity(length);
        if !program.instructions.is_null() {
            // SAFETY: by the caller's promise there are `length` instructions, and they stay until
            // they are freed below.
            copy.extend_from_slice(unsafe {
                std::slice::from_raw_parts(program.instructions, length)
            });
        }
        // SAFETY: the program is libpcap's own, and the copy does not refer to it.
        unsafe { (self.free_code)(&mut program) };
        copy
    }

    /// Whether a frame of `wire_len` bytes, of which `data` was captured, passes a program.
    #[must_use]
    pub fn matches(&self, program: &Program, data: &[u8], wire_len: u32) -> bool {
        let raw = PcapProgram {
            // At most MOST_INSTRUCTIONS.
            length: program.instructions.len() as c_uint,
            instructions: program.instructions.as_ptr().cast_mut(),
        };
        let time = MaybeUninit::<libc::timeval>::zeroed();
        let header = PacketHeader {
            // SAFETY: a timeval is two integers.
            time: unsafe { time.assume_init() },
            captured: u32::try_from(data.len()).unwrap_or(u32::MAX),
            length: wire_len,
        };
        // SAFETY: the interpreter only reads. The program's codes are libpcap's own, and it was checked
        // that it ends, that no jump leaves it and that no memory cell is beyond its 16; loads beyond
        // `captured` bytes, for which `data` is valid, make it reject the frame.
        unsafe { (self.offline_filter)(&raw, &header, data.as_ptr()) != 0 }
    }
}

impl Program {
    fn checked(instructions: Vec<sock_filter>) -> Result<Self, CompileError> {
        let count = instructions.len();
        if count > MOST_INSTRUCTIONS {
            return Err(CompileError::TooLong { count });
        }
        let is_last_return =
            instructions.last().is_some_and(|last| class(last) == libc::BPF_RET as u16);
        if !is_last_return {
            return Err(CompileError::Broken { at: count.saturating_sub(1) });
        }
        for (at, instruction) in instructions.iter().enumerate() {
            let is_inside = |target: Option<usize>| target.is_some_and(|target| target < count);
            if !successors(at, instruction).iter().all(|next| is_inside(*next))
                || !is_memory_inside(instruction)
            {
                return Err(CompileError::Broken { at });
            }
        }
        Ok(Self { instructions })
    }

    /// Rejects every frame.
    #[must_use]
    pub fn nothing() -> Self {
        Self { instructions: vec![instruction(RETURN, 0, 0, 0)] }
    }

    /// For a ring on all interfaces: one program for frames of Ethernet and loopback, and another for
    /// frames of all other hardware, which the kernel tells of each frame.
    ///
    /// ```text
    ///   0  load the hardware type
    ///   1  Ethernet?  3
    ///   2  loopback?  3, else 4
    ///   3  go to 5
    ///   4  go behind `ethernet`
    ///   5  ethernet ...
    ///      others ...
    /// ```
    ///
    /// # Errors
    /// [`CompileError::TooLong`].
    pub fn by_hardware(ethernet: &Self, others: &Self) -> Result<Self, CompileError> {
        let hardware = (libc::SKF_AD_OFF + libc::SKF_AD_HATYPE).cast_unsigned();
        let length = u32::try_from(ethernet.instructions.len()).unwrap_or(u32::MAX);
        let mut instructions = vec![
            instruction(LOAD_WORD, 0, 0, hardware),
            instruction(EQUAL, 1, 0, libc::ARPHRD_ETHER.into()),
            instruction(EQUAL, 0, 1, libc::ARPHRD_LOOPBACK.into()),
            instruction(GO, 0, 0, 1),
            instruction(GO, 0, 0, length),
        ];
        instructions.extend_from_slice(&ethernet.instructions);
        instructions.extend_from_slice(&others.instructions);
        Self::checked(instructions)
    }

    /// The instructions, as the kernel takes them.
    #[must_use]
    pub fn instructions(&self) -> &[sock_filter] {
        &self.instructions
    }

    /// It asks for a VLAN tag in the bytes of an Ethernet frame: the two bytes behind the addresses are
    /// compared with a tag's protocol. In a ring they never are one, because the kernel takes the
    /// outer tag out before a filter runs.
    #[must_use]
    pub fn looks_for_vlan_tag(&self) -> bool {
        const TYPE_OFFSET: u32 = 12;
        const TAGS: [u32; 3] = [0x8100, 0x88a8, 0x9100];
        // Whether the accumulator may hold the type on the way to each instruction. Jumps lead
        // forward only, so that one pass knows all ways.
        let mut may_hold_type = vec![false; self.instructions.len()];
        for (at, instruction) in self.instructions.iter().enumerate() {
            let is_transfer = class(instruction) == libc::BPF_MISC as u16
                && instruction.code & 0xf8 == libc::BPF_TXA as u16;
            let holds = match class(instruction) {
                0x00 => instruction.code == LOAD_HALF && instruction.k == TYPE_OFFSET, // BPF_LD
                0x04 => false,                                                         // BPF_ALU
                _ => may_hold_type[at] && !is_transfer,
            };
            if holds && instruction.code == EQUAL && TAGS.contains(&instruction.k) {
                return true;
            }
            for next in successors(at, instruction).into_iter().flatten() {
                if let Some(entry) = may_hold_type.get_mut(next) {
                    *entry |= holds;
                }
            }
        }
        false
    }

    /// It asks for what only a live kernel knows of a frame, such as its direction.
    #[must_use]
    pub fn asks_the_kernel(&self) -> bool {
        let first = libc::SKF_AD_OFF.cast_unsigned();
        self.instructions.iter().any(|instruction| {
            class(instruction) <= libc::BPF_LDX as u16
                && instruction.code & 0xe0 == libc::BPF_ABS as u16
                && instruction.k >= first
        })
    }
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn class(instruction: &sock_filter) -> u16 {
    instruction.code & 0x07
}

/// The instructions that may follow: two (the same twice if there is one). `None` stands for none
/// that could exist; a return is followed by itself.
fn successors(at: usize, instruction: &sock_filter) -> [Option<usize>; 2] {
    let behind = |distance: u32| (at + 1).checked_add(distance as usize);
    if class(instruction) == libc::BPF_RET as u16 {
        return [Some(at); 2];
    }
    if class(instruction) != libc::BPF_JMP as u16 {
        return [behind(0); 2];
    }
    match u32::from(instruction.code & 0xf0) {
        libc::BPF_JA => [behind(instruction.k); 2],
        _ => [behind(instruction.jt.into()), behind(instruction.jf.into())],
    }
}

/// Memory cells that the instruction uses exist.
fn is_memory_inside(instruction: &sock_filter) -> bool {
    let is_load = class(instruction) <= libc::BPF_LDX as u16;
    let is_store = [libc::BPF_ST, libc::BPF_STX].contains(&class(instruction).into());
    let uses_memory = is_store || is_load && instruction.code & 0xe0 == libc::BPF_MEM as u16;
    !uses_memory || instruction.k < MEMORY_WORDS
}

/// libpcap's number of a link type inside a process; in files raw IP has another.
fn data_link(link: LinkType) -> c_int {
    const DLT_RAW: c_int = 12;
    if link == LinkType::RAW { DLT_RAW } else { link.0.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Result<Program, CompileError> {
        let made = instructions.iter().map(|(code, jt, jf, k)| instruction(*code, *jt, *jf, *k));
        Program::checked(made.collect())
    }

    const KEEP: (u16, u8, u8, u32) = (0x06, 0, 0, 1);

    #[test]
    fn programs_that_leave_themselves_are_refused() {
        assert!(program(&[KEEP]).is_ok());
        assert!(program(&[(0x15, 0, 1, 5), KEEP, KEEP]).is_ok());
        let broken: [&[(u16, u8, u8, u32)]; 7] = [
            &[],
            &[(0x28, 0, 0, 12)],
            &[(0x15, 0, 1, 5), KEEP],
            &[(0x15, 255, 0, 5), KEEP],
            &[(0x05, 0, 0, u32::MAX), KEEP],
            &[(0x02, 0, 0, 16), KEEP],
            &[(0x61, 0, 0, 16), KEEP],
        ];
        for instructions in broken {
            let error = program(instructions).unwrap_err();
            assert!(matches!(error, CompileError::Broken { .. }), "{instructions:?}: {error}");
        }
        let error = program(&[KEEP; 4097]).unwrap_err();
        assert!(matches!(error, CompileError::TooLong { count: 4097 }), "{error}");
    }

    #[test]
    fn a_port_with_the_number_of_a_tag_is_not_taken_for_one() {
        let is_equal = (0x15, 0, 0, 0x8100);
        assert!(program(&[(0x28, 0, 0, 12), is_equal, KEEP]).unwrap().looks_for_vlan_tag());
        let port = program(&[(0x28, 0, 0, 12), (0x28, 0, 0, 36), is_equal, KEEP]);
        assert!(!port.unwrap().looks_for_vlan_tag());
        let behind_jump = program(&[(0x28, 0, 0, 12), (0x15, 1, 0, 0x800), KEEP, is_equal, KEEP]);
        assert!(behind_jump.unwrap().looks_for_vlan_tag());
        let masked = program(&[(0x28, 0, 0, 12), (0x54, 0, 0, 1), is_equal, KEEP]);
        assert!(!masked.unwrap().looks_for_vlan_tag());
    }

    #[test]
    fn what_only_the_kernel_knows_is_recognised() {
        let direction = program(&[(0x28, 0, 0, 0xffff_f004), KEEP]);
        assert!(direction.unwrap().asks_the_kernel());
        assert!(!program(&[(0x28, 0, 0, 12), KEEP]).unwrap().asks_the_kernel());
    }

    #[test]
    fn each_hardware_goes_to_its_own_program() {
        let ethernet = program(&[(0x28, 0, 0, 12), (0x15, 0, 1, 0x800), KEEP, KEEP]).unwrap();
        let both = Program::by_hardware(&ethernet, &Program::nothing()).unwrap();
        let enters = |hardware: u32| {
            let mut at = 1;
            while at < 5 {
                let is_equal = both.instructions[at].k == hardware;
                let [then, otherwise] = successors(at, &both.instructions[at]);
                at = if is_equal { then } else { otherwise }.unwrap();
            }
            at
        };
        assert_eq!([enters(1), enters(772), enters(776)], [5, 5, 9]);
        assert_eq!(both.instructions.len(), 10);
        let long = program(&[KEEP; 4091]).unwrap();
        assert!(Program::by_hardware(&long, &Program::nothing()).is_err());
    }
}
