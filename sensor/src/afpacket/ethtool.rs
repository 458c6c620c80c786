//! What a network driver says about itself through `ioctl(SIOCETHTOOL)`. Only questions are asked; the
//! kernel answers all of them to everybody.
//!
//! The ioctl rather than generic netlink: one structure per question instead of a message protocol, no
//! crate, and older kernels know all of it.
//!
//! Source: Linux `include/uapi/linux/ethtool.h`, `net/ethtool/ioctl.c`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use super::sys;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// A question whose structure has a fixed size.
struct Question {
    command: u32,
    /// Size of the kernel's structure, in words of 32 bits, the command included.
    words: usize,
}

const DRIVER: Question = Question { command: 0x03, words: 49 };
const COALESCE: Question = Question { command: 0x0e, words: 23 };
const RING: Question = Question { command: 0x10, words: 9 };
const PAUSE: Question = Question { command: 0x12, words: 4 };
/// `ethtool_sset_info` for one string set.
const STRING_SET: Question = Question { command: 0x37, words: 5 };
const CHANNELS: Question = Question { command: 0x3c, words: 9 };

const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const GET_RSS: u32 = 0x46;

/// The string set with the names of features.
const FEATURE_NAMES: u32 = 4;
/// Bytes of a name in a string set.
const NAME_BYTES: usize = 32;
/// More features than any kernel has (2026: 64).
const MOST_FEATURES: usize = 1024;
/// Larger indirection tables and keys than any device has.
const MOST_RSS_WORDS: usize = 1 << 16;

/// An interface that can be asked.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    interface: String,
}

/// What drives an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Name of the driver.
    pub name: String,
    /// Where the device is, such as `0000:00:03.0`; empty for virtual ones.
    pub bus: String,
}

/// Queues of an interface, and the most that it can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    /// Queues for receiving only.
    pub rx: u32,
    /// Most of them.
    pub rx_max: u32,
    /// Queues for both directions.
    pub combined: u32,
    /// Most of them.
    pub combined_max: u32,
}

/// Descriptors of a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRing {
    /// Now.
    pub now: u32,
    /// At most.
    pub max: u32,
}

/// Flow control of IEEE 802.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Obeys pause frames.
    pub rx: bool,
    /// Sends pause frames when its ring is full.
    pub tx: bool,
}

/// When a device interrupts for frames that it received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalesce {
    /// After so many microseconds.
    pub rx_usecs: u32,
    /// After so many frames, if that is sooner; 0 for no such limit.
    pub rx_frames: u32,
    /// The driver changes both by load.
    pub is_adaptive: bool,
}

/// One feature of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name, such as `rx-gro`.
    pub name: String,
    /// Whether it is on.
    pub is_on: bool,
    /// Whether it stays so whatever one asks for.
    pub is_fixed: bool,
}

/// How received frames are spread over queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// The hash function, as the kernel's bit: 1 Toeplitz, 2 XOR, 4 CRC32; 0 if none is said.
    pub function: u8,
    /// The device makes both directions of a connection alike before it hashes.
    pub is_input_symmetric: bool,
    /// Its key; empty if the device has none to show.
    pub key: Vec<u8>,
    /// Queue of each hash value; empty if the device has none to show.
    pub table: Vec<u32>,
}

impl Ethtool {
    /// Asks about this interface, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's, if it gives no socket.
    pub fn new(interface: &str) -> io::Result<Self> {
        Ok(Self { socket: sys::query_socket()?, interface: interface.to_owned() })
    }

    /// Driver and place of the device.
    ///
    /// # Errors
    /// The kernel's, as for all questions: `EOPNOTSUPP` where the driver does not say.
    pub fn driver(&self) -> io::Result<Driver> {
        let answer = self.ask(&DRIVER, &[])?;
        // command, driver[32], version[32], firmware[32], bus[32], ...
        Ok(Driver { name: text(&answer[1..9]), bus: text(&answer[25..33]) })
    }

    /// Queues.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn channels(&self) -> io::Result<Channels> {
        let [_, rx_max, _, _, combined_max, rx, _, _, combined] = first(self.ask(&CHANNELS, &[])?);
        Ok(Channels { rx, rx_max, combined, combined_max })
    }

    /// Size of the receive queues.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn rx_ring(&self) -> io::Result<RxRing> {
        let [_, max, _, _, _, now] = first(self.ask(&RING, &[])?);
        Ok(RxRing { now, max })
    }

    /// Flow control.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn pause(&self) -> io::Result<Pause> {
        let [_, _, rx, tx] = first(self.ask(&PAUSE, &[])?);
        Ok(Pause { rx: rx != 0, tx: tx != 0 })
    }

    /// Interrupt coalescing.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn coalesce(&self) -> io::Result<Coalesce> {
        let answer = self.ask(&COALESCE, &[])?;
        let [_, rx_usecs, rx_frames] = first(answer);
        Ok(Coalesce { rx_usecs, rx_frames, is_adaptive: answer[10] != 0 })
    }

    /// All features that this kernel knows.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn features(&self) -> io::Result<Vec<Feature>> {
        let sets = self.ask(&STRING_SET, &[0, 1 << FEATURE_NAMES])?;
        let count = sets[4] as usize;
        if count > MOST_FEATURES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let blocks = count.div_ceil(32);
        let mut names = vec![0; 3 + MOST_FEATURES * NAME_BYTES / 4];
        names[..2].copy_from_slice(&[GET_STRINGS, FEATURE_NAMES]);
        // SAFETY: the kernel writes three words and a name for each feature; how many it has is a
        // constant of the running kernel, which was just found to be at most MOST_FEATURES.
        unsafe { self.exchange(&mut names)? };
        let mut states = vec![0; 2 + blocks * 4];
        states[..2].copy_from_slice(&[GET_FEATURES, u32::try_from(blocks).unwrap_or(0)]);
        // SAFETY: the kernel writes two words and at most as many blocks of four words as the second
        // word says.
        unsafe { self.exchange(&mut states)? };
        let names = names[3..].chunks_exact(NAME_BYTES / 4).take(count);
        let features = names.enumerate().map(|(index, name)| {
            // available, requested, active, never changed
            let block = &states[2 + index / 32 * 4..][..4];
            let has = |word: u32| word >> (index % 32) & 1 == 1;
            let is_fixed = !has(block[0]) || has(block[3]);
            Feature { name: text(name), is_on: has(block[2]), is_fixed }
        });
        Ok(features.filter(|feature| !feature.name.is_empty()).collect())
    }

    /// Receive side scaling.
    ///
    /// # Errors
    /// As for [`Ethtool::driver`].
    pub fn rss(&self) -> io::Result<Rss> {
        const HEADER: usize = 6;
        let mut sizes = vec![0; HEADER];
        sizes[0] = GET_RSS;
        // SAFETY: asked with sizes of 0, the kernel writes the header alone.
        unsafe { self.exchange(&mut sizes)? };
        let (table_words, key_bytes) = (sizes[2] as usize, sizes[3] as usize);
        let words = table_words.saturating_add(key_bytes.div_ceil(4));
        if words > MOST_RSS_WORDS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; HEADER + words];
        answer[0] = GET_RSS;
        answer[2..4].copy_from_slice(&sizes[2..4]);
        if words > 0 {
            // SAFETY: behind the header, the kernel writes a table and a key of the sizes in the
            // header, for which there is room; it refuses sizes that are not the device's own.
            unsafe { self.exchange(&mut answer)? };
        } else {
            answer.copy_from_slice(&sizes);
        }
        let (table, key) = answer[HEADER..].split_at(table_words);
        let key = key.iter().flat_map(|word| word.to_ne_bytes()).take(key_bytes).collect();
        let [function, transform, ..] = answer[4].to_ne_bytes();
        // RXH_XFRM_SYM_XOR and RXH_XFRM_SYM_OR_XOR; 0xff says that nothing is to be changed.
        let is_input_symmetric = transform != 0xff && transform & 3 != 0;
        Ok(Rss { function, is_input_symmetric, key, table: table.to_vec() })
    }

    /// Asks a question of fixed size; `arguments` follow the command.
    fn ask(&self, question: &Question, arguments: &[u32]) -> io::Result<[u32; 64]> {
        let mut words = [0; 64];
        words[0] = question.command;
        words[1..=arguments.len()].copy_from_slice(arguments);
        assert!(question.words <= words.len(), "command {:#x}", question.command);
        // SAFETY: the kernel reads and writes the structure of the command, which has
        // `question.words` words by the constants above, no more than there are.
        unsafe { self.exchange(&mut words)? };
        Ok(words)
    }

    /// `ioctl(SIOCETHTOOL)`.
    ///
    /// # Safety
    /// `words` is at least as long as what the kernel reads and writes for the command in `words[0]`.
    unsafe fn exchange(&self, words: &mut [u32]) -> io::Result<()> {
        let mut request = sys::interface_request(&self.interface)?;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        let pointer = ptr::from_mut(&mut request);
        // SAFETY: `pointer` is valid for an ifreq, whose data is valid for what this command reads and
        // writes by the caller's promise; both are borrowed until the call returns.
        sys::checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, pointer) })?;
        Ok(())
    }
}

fn first<const N: usize>(words: [u32; 64]) -> [u32; N] {
    std::array::from_fn(|index| words[index])
}

/// A C string in words.
fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_neither_queues_nor_a_ring() {
        let lo = Ethtool::new("lo").unwrap();
        let features = lo.features().unwrap();
        let of = |name: &str| features.iter().find(|one| one.name == name).unwrap();
        assert!(of("loopback").is_on && of("loopback").is_fixed, "{features:?}");
        assert!(!of("rx-gro").is_fixed);
        for refused in [lo.channels().err(), lo.rx_ring().err(), lo.pause().err()] {
            assert_eq!(refused.unwrap().raw_os_error(), Some(libc::EOPNOTSUPP));
        }
    }

    #[test]
    fn an_unknown_interface_is_an_error() {
        for name in ["nosuch0", "", "a-name-of-more-than-fifteen-bytes"] {
            let error = Ethtool::new(name).unwrap().features().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name}");
        }
    }

    #[test]
    fn texts_end_at_the_first_zero() {
        assert_eq!(text(&[u32::from_ne_bytes(*b"veth"), 0, 7]), "veth");
        assert_eq!(text(&[u32::from_ne_bytes(*b"full")]), "full");
    }
}
