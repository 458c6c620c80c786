//! The parser against `tshark`, frame by frame, over the captures of the corpus.
//!
//! The frames of all captures go into one file per link type, so that a handful of processes reads
//! them: starting one for each of a thousand captures would take minutes. tshark puts nothing together
//! here (fragments, segments), as the parser does not.
//!
//! The corpus is found by `RINGWATCH_CORPUS`; without it frames in tunnels made here are compared, and
//! the test says so.

mod corpus;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use packet::frame::{Frame, LinkType};
use packet::{Address, FiveTuple, Kind, Malformed, Packet, parse, protocol};
use perf::pcap::{CaptureFile as Writer, Format};
use perf::tunnels::Tunnel;
use perf::{frames, tools};
use sensor::file::CaptureFile;
use wire::units::{UnixNanos, WireLen};

const LINKS: [LinkType; 7] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::NULL,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
];

/// A frame's packet as the parser has it, and where the frame comes from.
struct Ours {
    packet: Packet,
    place: String,
}

/// The frames of one link type.
struct Batch {
    capture: Writer,
    ours: Vec<Ours>,
}

impl Batch {
    fn new(link: LinkType) -> Self {
        let capture = Writer::new(Format { link_type: link.0, ..Format::USUAL });
        Self { capture, ours: Vec::new() }
    }

    fn add(&mut self, frame: &Frame<'_>, place: String) {
        self.capture.add_cut(self.ours.len() as u64, frame.data, frame.wire_len.0);
        self.ours.push(Ours { packet: parse(frame), place });
    }
}

fn own_frames(batch: &mut Batch) {
    for (source, target) in
        [("192.0.2.1:1000", "198.51.100.2:22"), ("[fd00::1]:1000", "[fd00::2]:22")]
    {
        let pair: [SocketAddr; 2] = [
            source.parse().expect("a value of its kind"),
            target.parse().expect("a value of its kind"),
        ];
        let bare = frames::tcp(pair[0], pair[1], frames::SYN, b"");
        let tagged = frames::tagged(&bare, &[(frames::DOT1AD, 5), (frames::DOT1Q, 6)]);
        let labelled = perf::tunnels::mpls(&bare, &[16, 17, 18]);
        let mut all = vec![tagged, labelled, perf::tunnels::pppoe(&bare)];
        for tunnel in Tunnel::ALL {
            let v4: (IpAddr, IpAddr) = ([203, 0, 113, 1].into(), [203, 0, 113, 2].into());
            let v6: (IpAddr, IpAddr) = ([0xfd; 16].into(), [0xfc; 16].into());
            all.extend([tunnel.around(v4, &bare), tunnel.around(v6, &bare)]);
            all.extend(Tunnel::ALL.map(|outer| outer.around(v4, &tunnel.around(v6, &bare))));
        }
        for (number, data) in all.iter().enumerate() {
            let wire_len = WireLen(data.len() as u32);
            let link = LinkType::ETHERNET;
            let frame =
                Frame { data, wire_len, time: UnixNanos(0), vlan: None, link, interface: 0 };
            batch.add(&frame, format!("own frame {number}"));
        }
    }
}

/// What tshark says of a frame.
#[derive(Debug)]
struct Theirs {
    /// IP headers from the outermost one on, without what ICMP quotes.
    levels: Vec<Level>,
    vlan_ids: Vec<u16>,
    layers: String,
    /// A length of UDP or IPv6 is 0.
    has_zero_length: bool,
}

#[derive(Clone, Debug)]
struct Level {
    source: IpAddr,
    target: IpAddr,
    /// As the header or the layers tell; not where only IPv6 extension headers do.
    protocol: Option<u8>,
    ports: Option<(u16, u16)>,
    /// Layers between this IP header and the next.
    carries: Vec<String>,
}

/// Layers that tshark follows to an IP header and the parser does not.
const NOT_ENTERED: [(&str, &str); 15] = [
    ("gtp", "we do not enter GTP"),
    ("gtpprime", "we do not enter GTP"),
    ("teredo", "we do not enter Teredo"),
    ("ayiya", "we do not enter AYIYA"),
    ("wlan", "we do not enter the wireless frames of an access point in GRE"),
    ("cmd", "we do not enter Cisco metadata in GRE"),
    ("0x883e", "we do not enter WCCP in GRE"),
    ("nhrp", "we do not enter NHRP, which quotes a packet"),
    ("pim", "we do not enter PIM, which carries a packet to register"),
    ("sflow", "we do not enter sFlow, which samples packets"),
    ("openflow", "we do not enter OpenFlow, which carries packets"),
    ("nsh", "we do not enter NSH"),
    ("avsp", "we do not enter Arista's vendor protocol"),
    ("macsec", "we do not enter MACsec"),
    ("ipv6.routing", "we do not enter Ethernet in IPv6"),
];

const FIELDS: [&str; 18] = [
    "frame.protocols",
    "ip.src",
    "ip.dst",
    "ip.proto",
    "ipv6.src",
    "ipv6.dst",
    "tcp.srcport",
    "tcp.dstport",
    "udp.srcport",
    "udp.dstport",
    "sctp.srcport",
    "sctp.dstport",
    "vlan.id",
    "ieee8021ad.id",
    "gre.proto",
    "udp.length",
    "ipv6.plen",
    "frame.number",
];

fn ask(batch: &Batch, link: LinkType) -> Vec<Theirs> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(format!("link-{}.pcap", link.0));
    std::fs::write(&path, batch.capture.bytes()).expect("room for it");
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]);
    for preference in ["ip.defragment", "ipv6.defragment", "tcp.desegment_tcp_streams"] {
        command.args(["-o", &format!("{preference}:FALSE")]);
    }
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.arg("-r").arg(&path).output().expect("tshark starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "link type {}: {said}", link.0);
    String::from_utf8(output.stdout).expect("fields are text").lines().map(read_line).collect()
}

/// Walks over the layers and takes the next value of a field wherever its layer is met.
fn read_line(line: &str) -> Theirs {
    let columns: HashMap<_, _> = FIELDS.into_iter().zip(line.split('|')).collect();
    let mut values: HashMap<_, _> = columns
        .iter()
        .map(|(field, text)| (*field, text.split(',').filter(|value| !value.is_empty())))
        .collect();
    let mut next = |field: &str| values.get_mut(field).and_then(Iterator::next);
    let layers = columns["frame.protocols"].to_owned();
    let lengths = ["udp.length", "ipv6.plen"].map(|field| columns[field].split(','));
    let has_zero_length = lengths.into_iter().flatten().any(|length| length == "0");
    let (mut levels, mut vlan_ids): (Vec<Level>, _) = (Vec::new(), Vec::new());
    for layer in layers.split(':') {
        let version = match layer {
            "ip" => Some(("ip.src", "ip.dst")),
            "ipv6" => Some(("ipv6.src", "ipv6.dst")),
            _ => None,
        };
        if let Some((source, target)) = version {
            let protocol = if layer == "ip" { next("ip.proto") } else { None };
            // A header that is cut short has no addresses.
            let (Some(source), Some(target)) = (next(source), next(target)) else { break };
            let (source, target) = (
                source.parse().expect("a value of its kind"),
                target.parse().expect("a value of its kind"),
            );
            let protocol = protocol.map(|number| number.parse().expect("a value of its kind"));
            levels.push(Level { source, target, protocol, ports: None, carries: Vec::new() });
            continue;
        }
        let Some(level) = levels.last_mut() else {
            let id = match layer {
                "vlan" => next("vlan.id"),
                "ieee8021ad" => next("ieee8021ad.id"),
                _ => None,
            };
            vlan_ids.extend(id.map(|id| id.parse::<u16>().expect("a value of its kind")));
            continue;
        };
        level.carries.push(layer.to_owned());
        if layer == "gre" {
            level.carries.extend(next("gre.proto").map(str::to_owned));
        }
        let (fields, number) = match layer {
            "tcp" => (Some(("tcp.srcport", "tcp.dstport")), protocol::TCP),
            "udp" => (Some(("udp.srcport", "udp.dstport")), protocol::UDP),
            "sctp" => (Some(("sctp.srcport", "sctp.dstport")), protocol::SCTP),
            "icmp" => (None, protocol::ICMP),
            "icmpv6" => (None, protocol::ICMPV6),
            "gre" => (None, protocol::GRE),
            _ => continue,
        };
        level.protocol.get_or_insert(number);
        if let Some((source, target)) = fields {
            let ports = next(source).zip(next(target));
            level.ports = ports.map(|(source, target)| {
                (
                    source.parse().expect("a value of its kind"),
                    target.parse().expect("a value of its kind"),
                )
            });
        } else if number != protocol::GRE {
            break;
        }
    }
    Theirs { levels, vlan_ids, layers, has_zero_length }
}

/// How the two agree on a frame.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Same,
    /// Neither found IP.
    NoIp,
    /// They differ for a reason that is right.
    Explained(&'static str),
    Contradiction(String),
}

fn compare(ours: &Packet, theirs: &Theirs) -> Verdict {
    let Some(level) = theirs.levels.get(usize::from(ours.tunnel_depth)) else {
        return compare_without_level(ours, theirs);
    };
    if ours.kind == Kind::Other {
        return not_entered(theirs.layers.split(':')).unwrap_or_else(|| differ("IP", ours, theirs));
    }
    let ends = (Address::from(level.source), Address::from(level.target));
    if (ours.tuple.source, ours.tuple.target) != ends {
        return differ("addresses", ours, theirs);
    }
    if level.protocol.is_some_and(|protocol| protocol != ours.tuple.protocol) {
        return differ("protocol", ours, theirs);
    }
    let mut kept = theirs.vlan_ids.clone();
    kept.resize(2, 0);
    if ours.vlan_ids[..] != kept {
        return differ("vlan ids", ours, theirs);
    }
    let ports = (ours.tuple.source_port, ours.tuple.target_port);
    match (level.ports, ours.kind) {
        (Some(theirs), _) if theirs == ports => {}
        (None, _) if ports == (0, 0) => {}
        (Some(_), Kind::Malformed(_)) if ports == (0, 0) => {
            return Verdict::Explained("tshark reads the ports of a header that is cut short");
        }
        (None, _) if theirs.has_zero_length => {
            return Verdict::Explained(
                "tshark believes a length of 0, which stands for a larger one",
            );
        }
        (None, Kind::Udp) if level.carries == ["ipv6.dstopts"] => {
            return Verdict::Explained("tshark gives up at an option that it finds malformed");
        }
        _ => return differ("ports", ours, theirs),
    }
    if usize::from(ours.tunnel_depth) + 1 == theirs.levels.len() {
        return Verdict::Same;
    }
    let carries = level.carries.iter().map(String::as_str);
    if ours.is_fragment {
        Verdict::Explained("we do not enter a tunnel by its first fragment")
    } else if level.carries == ["udp", "mpls"] {
        Verdict::Explained("we do not enter MPLS in UDP")
    } else if level.carries.starts_with(&["udp".into(), "gre".into()]) {
        Verdict::Explained("we do not enter GRE in UDP")
    } else {
        not_entered(carries).unwrap_or_else(|| differ("tunnel not entered", ours, theirs))
    }
}

/// tshark has no such IP header.
fn compare_without_level(ours: &Packet, theirs: &Theirs) -> Verdict {
    match ours.kind {
        _ if ours.tuple == FiveTuple::default() => Verdict::NoIp,
        // It has addresses of another kind of header.
        Kind::Arp { .. } => Verdict::NoIp,
        Kind::Malformed(Malformed::Ipv4Header | Malformed::Ipv4TotalLength) => {
            Verdict::Explained("we keep the addresses of a header whose length cannot be")
        }
        _ if theirs.has_zero_length => {
            Verdict::Explained("tshark believes a length of 0, which stands for a larger one")
        }
        _ => differ("only we see this IP header", ours, theirs),
    }
}

fn not_entered<'a>(layers: impl IntoIterator<Item = &'a str>) -> Option<Verdict> {
    let reason = |layer| NOT_ENTERED.iter().find(|(other, _)| *other == layer);
    layers.into_iter().find_map(reason).map(|(_, reason)| Verdict::Explained(reason))
}

fn differ(what: &str, ours: &Packet, theirs: &Theirs) -> Verdict {
    Verdict::Contradiction(format!("{what}: {ours:?} / {theirs:?}"))
}

#[test]
fn innermost_flows_and_vlan_ids_are_those_of_tshark() {
    if !tools::require(&["tshark"]) {
        return;
    }
    let mut batches: BTreeMap<_, _> = LINKS.map(|link| (link, Batch::new(link))).into();
    let ethernet = batches.get_mut(&LinkType::ETHERNET).unwrap();
    own_frames(ethernet);
    // Of our own frames there is nothing to explain; captures with known content add to them.
    let own = ethernet.ours.len() as u64;
    let least = if corpus::folder().is_some() { own + 500 } else { own };
    for path in corpus::captures() {
        let Ok(mut file) = CaptureFile::open(&path) else { continue };
        let mut number = 0;
        while let Ok(Some(found)) = file.next_frame() {
            number += 1;
            if let Some(batch) = batches.get_mut(&found.frame.link) {
                batch.add(&found.frame, format!("{} #{number}", path.display()));
            }
        }
    }
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    for (link, batch) in batches.iter().filter(|(_, batch)| !batch.ours.is_empty()) {
        let theirs = ask(batch, *link);
        assert_eq!(theirs.len(), batch.ours.len(), "link type {}", link.0);
        for (ours, theirs) in batch.ours.iter().zip(&theirs) {
            let verdict = match compare(&ours.packet, theirs) {
                Verdict::Contradiction(text) => {
                    Verdict::Contradiction(format!("{}: {text}", ours.place))
                }
                verdict => verdict,
            };
            *verdicts.entry(verdict).or_default() += 1;
        }
    }
    let contradictions: Vec<_> =
        verdicts.keys().filter(|key| matches!(key, Verdict::Contradiction(_))).collect();
    assert!(contradictions.is_empty(), "{contradictions:#?}");
    assert!(verdicts.get(&Verdict::Same).is_some_and(|count| *count >= least), "{verdicts:#?}");
    eprintln!("{verdicts:#?}");
}
