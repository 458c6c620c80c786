//! Does the kernel deal both directions of a flow to the same ring? Some kernels (4.2 to 4.4, for
//! instance) do not, and then no worker sees a whole conversation.
//!
//! Found out without a frame on any wire: two small rings on the loopback interface form a group by
//! hash, and sockets there say a few words to each other. A filter lets in only frames with a random
//! mark, so nobody else's traffic is looked at.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use libc::sock_filter;

use super::error::OpenError;
use super::fanout::Fanout;
use super::interface::Interface;
use super::program::Program;
use super::ring::{Ring, RingConfig, wait};
use super::scope::Scope;
use super::socket::Unbound;
use super::sys;

/// Flows of each address family.
const FLOWS: u32 = 16;
/// The answers to a few words on loopback come within microseconds, and blocks within milliseconds.
const LIMIT: Duration = Duration::from_millis(60);
const ETHERNET_HEADER_BYTES: usize = 14;
const UDP_HEADER_BYTES: usize = 8;
/// Where the mark stands in a frame: IPv4, IPv6.
const MARK_AT: [usize; 2] =
    [ETHERNET_HEADER_BYTES + 20 + UDP_HEADER_BYTES, ETHERNET_HEADER_BYTES + 40 + UDP_HEADER_BYTES];

/// What was found out about fanout by hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Symmetry {
    /// Both directions of every flow reached the same ring.
    Symmetric {
        /// How many flows there were.
        flows: usize,
    },
    /// The directions of some flows parted.
    Asymmetric {
        /// How many flows there were.
        flows: usize,
        /// How many of them parted.
        split: usize,
    },
    /// It could not be found out.
    NotTested {
        /// Why.
        reason: String,
    },
}

/// Finds out whether fanout by hash keeps both directions of a flow together on this kernel. Takes
/// two sockets, which are closed in the end. Sends nothing but a few datagrams on the loopback
/// interface, to sockets of its own.
///
/// Took 67 to 80 ms in a debug build on two busy cores (2026-11-21, kernel 6.18), nearly all of it the
/// kernel's waiting as the two sockets are closed; gives up on missing frames after 60 ms more.
#[must_use]
pub fn probe_symmetry(sockets: [Unbound; 2]) -> Symmetry {
    match probe(sockets) {
        Ok(symmetry) => symmetry,
        Err(error) => Symmetry::NotTested { reason: wire::text::error_chain(&error) },
    }
}

/// Why the question stays open.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot talk on the loopback interface")]
    Talk(#[from] io::Error),
}

fn probe(sockets: [Unbound; 2]) -> Result<Symmetry, ProbeError> {
    let mark = std::hash::RandomState::new().hash_one("symmetry").to_be_bytes();
    let mut rings = open(sockets, mark)?;
    let begin = Instant::now();
    let mut expected = talk(Ipv4Addr::LOCALHOST.into(), 0, mark)?;
    // A host may have no IPv6.
    expected += talk(Ipv6Addr::LOCALHOST.into(), FLOWS, mark).unwrap_or(0);
    let mut rings_of_flow: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut seen = 0;
    while seen < expected && begin.elapsed() < LIMIT {
        wait(&rings, Duration::from_millis(1))?;
        for (number, ring) in rings.iter_mut().enumerate() {
            seen += read(ring, mark, |flow| rings_of_flow.entry(flow).or_default().push(number));
        }
    }
    Ok(judge(&rings_of_flow, seen, expected))
}

fn judge(rings_of_flow: &BTreeMap<u32, Vec<usize>>, seen: u32, expected: u32) -> Symmetry {
    let flows = rings_of_flow.len();
    let split = rings_of_flow.values().filter(|rings| rings.iter().any(|one| *one != rings[0]));
    let split = split.count();
    let is_dealt = rings_of_flow.values().flatten().any(|ring| *ring == 0)
        && rings_of_flow.values().flatten().any(|ring| *ring == 1);
    if split > 0 {
        Symmetry::Asymmetric { flows, split }
    } else if seen < expected {
        Symmetry::NotTested { reason: format!("{seen} of {expected} datagrams came") }
    } else if !is_dealt {
        Symmetry::NotTested { reason: "one ring got every flow".to_owned() }
    } else {
        Symmetry::Symmetric { flows }
    }
}

/// A group of two rings on loopback that see only frames with the mark.
fn open(sockets: [Unbound; 2], mark: [u8; 8]) -> Result<Vec<Ring>, OpenError> {
    let config = RingConfig {
        block_bytes: sys::page_bytes(),
        block_count: 64,
        least_blocks: 64,
        retire_ms: 1,
        snaplen: 128,
        promiscuous: false,
    };
    let scope = Scope::One(Interface::find("lo")?);
    let rings = sockets.map(|socket| Ring::open(socket, &config, &scope));
    let mut rings: Vec<_> = rings.into_iter().collect::<Result<_, _>>()?;
    let group = rings[0].start_group(&Fanout::Hash, 2)?;
    rings[1].join(&group)?;
    for ring in &mut rings {
        ring.set_filter(&marked(mark))?;
        ring.begin()?;
    }
    Ok(rings)
}

/// Accepts frames with the mark.
fn marked(mark: [u8; 8]) -> Vec<sock_filter> {
    let [high, low] =
        [0, 4].map(|at| u32::from_be_bytes([mark[at], mark[at + 1], mark[at + 2], mark[at + 3]]));
    let mut program = Program::default();
    program.set_x(0);
    for at in MARK_AT {
        let other = program.label();
        let at = at as u32; // below 100
        program.load_word_behind_x(at);
        program.jump_unless(high, other);
        program.load_word_behind_x(at + 4);
        program.jump_unless(low, other);
        program.give(u32::MAX);
        program.place(other);
    }
    program.give(0);
    program.finish()
}

/// Lets clients and a server at `address` say one datagram each to each other. The datagrams carry
/// the mark and the number of their flow, from `first` on. Gives the number of datagrams.
fn talk(address: IpAddr, first: u32, mark: [u8; 8]) -> io::Result<u32> {
    let server = UdpSocket::bind((address, 0))?;
    for flow in first..first + FLOWS {
        let client = UdpSocket::bind((address, 0))?;
        let words = [mark.as_slice(), &flow.to_be_bytes(), &[0; 16]].concat();
        client.send_to(&words, server.local_addr()?)?;
        server.send_to(&words, client.local_addr()?)?;
    }
    Ok(2 * FLOWS)
}

/// Reads the frames with the mark that are there, and gives the flow of each to `each`.
fn read(ring: &mut Ring, mark: [u8; 8], mut each: impl FnMut(u32)) -> u32 {
    let mut seen = 0;
    while let Some(block) = ring.next_block() {
        for captured in block.frames() {
            let flow = MARK_AT.iter().find_map(|at| {
                let words = captured.frame.data.get(*at..)?.strip_prefix(&mark)?;
                words.first_chunk().map(|flow| u32::from_be_bytes(*flow))
            });
            if let Some(flow) = flow {
                seen += 1;
                each(flow);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rings: &[(u32, &[usize])], seen: u32, expected: Symmetry) {
        let rings = rings.iter().map(|(flow, rings)| (*flow, rings.to_vec())).collect();
        assert_eq!(judge(&rings, seen, 4), expected);
    }

    #[test]
    fn a_flow_on_two_rings_is_asymmetry() {
        let together: &[(u32, &[usize])] = &[(0, &[1, 1]), (1, &[0, 0])];
        check(together, 4, Symmetry::Symmetric { flows: 2 });
        let parted: &[(u32, &[usize])] = &[(0, &[1, 0]), (1, &[0])];
        check(parted, 3, Symmetry::Asymmetric { flows: 2, split: 1 });
    }

    #[test]
    fn what_was_not_seen_is_not_called_symmetric() {
        let reason = "3 of 4 datagrams came".to_owned();
        check(&[(0, &[1, 1]), (1, &[0])], 3, Symmetry::NotTested { reason });
        let reason = "one ring got every flow".to_owned();
        check(&[(0, &[1, 1]), (1, &[1, 1])], 4, Symmetry::NotTested { reason });
    }
}
