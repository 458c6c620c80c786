//! Flows as Suricata has them, for every capture of the corpus that it was run on.
//!
//! Suricata's flows of one key (protocol and both ends) are added up, and so are ours: packets, bytes
//! and TCP flags each way, first and last time, VLAN ids. What differs has one of the [`Reason`]s, each
//! of which is checked against the frames of the capture, or the test fails.
//!
//! The corpus is found by `RINGWATCH_CORPUS`; without it there is nothing to compare with, and the test
//! says so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use packet::{FiveTuple, Kind, parse};
use perf::events::Events;
use perf::programs;
use sensor::file::CaptureFile;
use serde_json::Value;

/// Why a flow of Suricata's may differ from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// Suricata counts tunnels as flows, each level apart, and of the packets in them the bytes from their
    /// own IP header on, without the VLAN ids of the frame. Here a frame is a packet of its innermost flow.
    Tunnel,
    /// Suricata enters Teredo.
    Teredo,
    /// Suricata counts an ICMP error in the flow that it quotes. Here it is a flow of its own, as for
    /// Community ID.
    IcmpError,
    /// Suricata puts fragments together. Here they are a flow of their own, without ports.
    Fragments,
    /// Suricata drops packets that were cut short, or counts the bytes that are left. Here they are counted
    /// with their length on the wire.
    Cut,
    /// Suricata has flows of a few IP protocols only.
    Protocol,
    /// Suricata notes flags only of connections whose opening it has seen.
    FlagsWithoutOpening,
    /// Suricata turns a flow round when it knows the application protocol by the port.
    TurnedByPort,
    /// The time-outs differ.
    Timeout,
    /// Time runs backwards in the capture. Here the clock of a file does not.
    Backwards,
}

/// How many keys of all captures differ for each reason.
const EXPECTED: [(Reason, usize); 10] = [
    (Reason::Tunnel, 44),
    (Reason::Teredo, 2),
    (Reason::IcmpError, 9),
    (Reason::Fragments, 16),
    (Reason::Cut, 3),
    (Reason::Protocol, 3),
    (Reason::FlagsWithoutOpening, 86),
    (Reason::TurnedByPort, 4),
    (Reason::Timeout, 3),
    (Reason::Backwards, 17),
];

/// Keys whose flows are the same.
const ALIKE: usize = 447;

type End = (IpAddr, u64);

/// Whose flows they are: protocol, then both ends, the lower one first.
type Key = (String, End, End);

/// All flows of one key, added up. Pairs: by the lower end, by the other one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sum {
    flows: usize,
    openers: BTreeSet<End>,
    packets: [u64; 2],
    bytes: [u64; 2],
    flags: [u64; 2],
    vlans: BTreeSet<Vec<u64>>,
    first: String,
    last: String,
}

fn end(event: &Value, side: &str) -> End {
    let address = event[format!("{side}_ip")].as_str().unwrap().parse().unwrap();
    (address, event[format!("{side}_port")].as_u64().unwrap_or(0))
}

fn sums<'a>(events: impl IntoIterator<Item = &'a Value>) -> BTreeMap<Key, Sum> {
    let mut sums = BTreeMap::<Key, Sum>::new();
    for event in events {
        let (opener, other) = (end(event, "src"), end(event, "dest"));
        let protocol = event["proto"].as_str().unwrap().to_owned();
        let sum = sums.entry((protocol, opener.min(other), opener.max(other))).or_default();
        let sides = if opener <= other { [0, 1] } else { [1, 0] };
        let flow = &event["flow"];
        for (side, way, short) in [(sides[0], "toserver", "ts"), (sides[1], "toclient", "tc")] {
            sum.packets[side] += flow[format!("pkts_{way}")].as_u64().unwrap();
            sum.bytes[side] += flow[format!("bytes_{way}")].as_u64().unwrap();
            let flags = event["tcp"][format!("tcp_flags_{short}")].as_str().unwrap_or("0");
            sum.flags[side] |= u64::from_str_radix(flags, 16).unwrap();
        }
        sum.flows += 1;
        sum.openers.insert(opener);
        // A third id is not kept here; an id of 0 stands for none.
        let ids = event["vlan"].as_array().into_iter().flatten().map(|id| id.as_u64().unwrap());
        sum.vlans.insert(ids.take(2).filter(|id| *id != 0).collect());
        let [start, end] = ["start", "end"].map(|name| flow[name].as_str().unwrap().to_owned());
        sum.first = if sum.flows == 1 { start } else { sum.first.clone().min(start) };
        sum.last = sum.last.clone().max(end);
    }
    sums
}

/// What the frames of a capture tell of the reasons, by addresses or by flow.
#[derive(Default)]
struct Facts {
    is_backwards: bool,
    tunnelled: BTreeSet<(IpAddr, IpAddr)>,
    fragmented: BTreeSet<(IpAddr, IpAddr)>,
    cut: BTreeMap<(IpAddr, IpAddr), u64>,
    /// ICMP errors that quote a flow: how many.
    quoted: BTreeMap<(End, End), u64>,
    /// ICMP errors between two hosts.
    errors: BTreeMap<(IpAddr, IpAddr), u64>,
}

fn addresses(tuple: &FiveTuple) -> (IpAddr, IpAddr) {
    let (source, target) = (tuple.source.to_ip(), tuple.target.to_ip());
    (source.min(target), source.max(target))
}

/// Is an IP packet right behind an Ethernet header longer than the frame?
fn is_short(frame: &[u8]) -> bool {
    let word = |at: usize| {
        frame.get(at..at + 2).map_or(0, |two| usize::from(two[0]) << 8 | usize::from(two[1]))
    };
    match word(12) {
        0x0800 => frame.len() < 14 + word(16),
        0x86dd => frame.len() < 54 + word(18),
        _ => false,
    }
}

impl Facts {
    fn of(path: &Path) -> Self {
        let (mut facts, mut latest) = (Self::default(), 0);
        let mut file = CaptureFile::open(path).unwrap();
        while let Some(found) = file.next_frame().unwrap() {
            let frame = found.frame;
            let packet = parse(&frame);
            facts.is_backwards |= frame.time.0 < latest;
            latest = latest.max(frame.time.0);
            let ends = addresses(&packet.tuple);
            if packet.tunnel_depth > 0 {
                facts.tunnelled.insert(ends);
            }
            if packet.is_fragment {
                facts.fragmented.insert(ends);
            }
            if frame.data.len() < frame.wire_len.0 as usize || is_short(frame.data) {
                *facts.cut.entry(ends).or_default() += 1;
            }
            if let Kind::Icmp { quoted: Some(quoted), .. } = packet.kind {
                let source = (quoted.source.to_ip(), u64::from(quoted.source_port));
                let target = (quoted.target.to_ip(), u64::from(quoted.target_port));
                *facts.quoted.entry((source.min(target), source.max(target))).or_default() += 1;
                *facts.errors.entry(ends).or_default() += 1;
            }
        }
        facts
    }

    /// The reasons for which Suricata's flows of a key may differ from ours; `None` if they may not.
    fn reasons(&self, key: &Key, theirs: Option<&Sum>, ours: Option<&Sum>) -> Option<Vec<Reason>> {
        match (theirs, ours) {
            (Some(theirs), Some(ours)) => self.differences(key, theirs, ours),
            (Some(_), None) => self.only_theirs(key).map(|reason| vec![reason]),
            (None, Some(_)) => self.only_ours(key).map(|reason| vec![reason]),
            (None, None) => None,
        }
    }

    fn only_theirs(&self, (protocol, low, high): &Key) -> Option<Reason> {
        const TUNNEL_PORTS: [u64; 2] = [4789, 6081];
        let is_tunnel_port = |end: &End| TUNNEL_PORTS.contains(&end.1);
        let is_teredo = |end: &End| end.0.to_string().starts_with("2001:0:");
        if self.fragmented.contains(&(low.0, high.0)) {
            Some(Reason::Fragments)
        } else if !self.tunnelled.is_empty()
            && (["IPv4", "IPv6", "GRE"].contains(&protocol.as_str())
                || is_tunnel_port(low)
                || is_tunnel_port(high))
        {
            Some(Reason::Tunnel)
        } else if is_teredo(low) || is_teredo(high) {
            Some(Reason::Teredo)
        } else {
            None
        }
    }

    fn only_ours(&self, (protocol, low, high): &Key) -> Option<Reason> {
        const WITH_FLOWS: [&str; 5] = ["TCP", "UDP", "SCTP", "ICMP", "IPv6-ICMP"];
        let ends = (low.0, high.0);
        if !WITH_FLOWS.contains(&protocol.as_str()) {
            Some(Reason::Protocol)
        } else if (low.1, high.1) == (0, 0) && self.fragmented.contains(&ends) {
            Some(Reason::Fragments)
        } else if protocol.contains("ICMP") && self.errors.contains_key(&ends) {
            Some(Reason::IcmpError)
        } else if self.cut.contains_key(&ends) {
            Some(Reason::Cut)
        } else {
            None
        }
    }

    fn differences(&self, key: &Key, theirs: &Sum, ours: &Sum) -> Option<Vec<Reason>> {
        let (protocol, low, high) = key;
        let ends = (low.0, high.0);
        let is_tunnelled = self.tunnelled.contains(&ends);
        let total = |pair: [u64; 2]| pair[0] + pair[1];
        let mut reasons = Vec::new();
        // Then nothing else can be compared.
        if theirs.packets != ours.packets || (theirs.bytes != ours.bytes && !is_tunnelled) {
            let quoted = self.quoted.get(&(*low, *high)).copied().unwrap_or(0);
            let cut = self.cut.get(&ends).copied().unwrap_or(0);
            let errors = self.errors.get(&ends).copied().unwrap_or(0);
            let missing = total(ours.packets).checked_sub(total(theirs.packets));
            return if self.fragmented.contains(&ends) {
                Some(vec![Reason::Fragments])
            } else if quoted > 0 && total(theirs.packets) == total(ours.packets) + quoted
                || protocol.contains("ICMP") && errors > 0 && missing == Some(errors)
            {
                Some(vec![Reason::IcmpError])
            } else if cut > 0 && missing.is_some_and(|missing| missing <= cut) {
                Some(vec![Reason::Cut])
            } else {
                None
            };
        }
        if theirs.bytes != ours.bytes || (theirs.vlans != ours.vlans && is_tunnelled) {
            reasons.push(Reason::Tunnel);
        } else if theirs.vlans != ours.vlans {
            return None;
        }
        if theirs.flows != ours.flows {
            reasons.push(if is_tunnelled { Reason::Tunnel } else { Reason::Timeout });
        } else if theirs.openers != ours.openers {
            if !(low.1 == 53 || high.1 == 53 || low.1 == 5353)
                || ours.packets.iter().all(|n| *n > 0)
            {
                return None;
            }
            reasons.push(Reason::TurnedByPort);
        }
        if theirs.flags != ours.flags {
            const SYN: u64 = 2;
            if total(theirs.flags) != 0 || (ours.flags[0] | ours.flags[1]) & SYN != 0 {
                return None;
            }
            reasons.push(Reason::FlagsWithoutOpening);
        }
        if (&theirs.first, &theirs.last) != (&ours.first, &ours.last) {
            if !self.is_backwards {
                return None;
            }
            reasons.push(Reason::Backwards);
        }
        reasons.dedup();
        Some(reasons)
    }
}

/// The captures that Suricata was run on, each with what it wrote.
fn runs(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let captures = corpus::captures();
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(folder.join("eve/suricata-7.0.10")).unwrap() {
        let written = entry.unwrap().path();
        let name = written.file_stem().unwrap().to_str().unwrap();
        let names = [name.to_owned(), format!("{name}.pcap")];
        let capture = captures.iter().find(|path| names.iter().any(|name| path.ends_with(name)));
        runs.push((capture.unwrap_or_else(|| panic!("no capture for {name}")).clone(), written));
    }
    runs.sort();
    runs
}

#[test]
fn flows_are_those_of_suricata_but_for_named_reasons() {
    let Some(folder) = corpus::folder() else { return };
    let (mut alike, mut found) = (0, BTreeMap::<Reason, usize>::new());
    let mut unexplained = Vec::new();
    for (capture, written) in runs(&folder) {
        let theirs = Events::parse(&std::fs::read_to_string(&written).unwrap());
        let output = programs::sensor().arg("--read").arg(&capture).output().unwrap();
        let ours = Events::parse(&String::from_utf8(output.stdout).unwrap());
        let (theirs, ours) = (sums(theirs.of_type("flow")), sums(ours.ended_flows()));
        let facts = Facts::of(&capture);
        for key in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
            let (theirs, ours) = (theirs.get(key), ours.get(key));
            match facts.reasons(key, theirs, ours) {
                Some(reasons) if reasons.is_empty() => alike += 1,
                Some(reasons) => {
                    reasons.iter().for_each(|one| *found.entry(*one).or_default() += 1)
                }
                None => unexplained.push(format!("{capture:?} {key:?}\n {theirs:?}\n {ours:?}")),
            }
        }
    }
    assert!(unexplained.is_empty(), "differences without a reason:\n{}", unexplained.join("\n"));
    let found: Vec<_> = found.into_iter().collect();
    assert_eq!((alike, found.as_slice()), (ALIKE, &EXPECTED[..]));
}
