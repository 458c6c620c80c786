//! Every capture of the corpus, read to its end, parsed, dealt and damaged.
//!
//! The corpus is found by `RINGWATCH_CORPUS`; without it the test says
//! so, and has nothing to read.

mod corpus;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::time::{Duration, Instant};

use packet::frame::LinkType;
use packet::{Kind, Malformed, Packet, community_id, parse};
use sensor::file::{CaptureFile, FileError, MAX_CAPTURED, worker_of};

/// What a walk over a file counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Totals {
    frames: u64,
    bytes: u64,
    /// By the name of the reason.
    malformed: BTreeMap<&'static str, u64>,
    /// Frames of link types that are not supported.
    unsupported: BTreeMap<LinkType, u64>,
    kinds: BTreeMap<&'static str, u64>,
    workers: [u64; 4],
}

impl Totals {
    fn add(&mut self, packet: &Packet, link: LinkType, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
        self.workers[worker_of(packet, 4)] += 1;
        let name = match packet.kind {
            Kind::Malformed(Malformed::LinkUnsupported) => {
                *self.unsupported.entry(link).or_default() += 1;
                return;
            }
            Kind::Malformed(reason) => {
                *self.malformed.entry(reason.name()).or_default() += 1;
                return;
            }
            Kind::Tcp { .. } => "tcp",
            Kind::Udp => "udp",
            Kind::Sctp { .. } => "sctp",
            Kind::Icmp { .. } => "icmp",
            Kind::LaterFragment => "later fragment",
            Kind::OtherIp => "other ip",
            Kind::Arp { .. } => "arp",
            Kind::Other => "other",
        };
        *self.kinds.entry(name).or_default() += 1;
    }
}

/// Reads a file to its end, or to the error that ends it.
fn walk(mut file: CaptureFile, totals: &mut Totals) -> Result<(), FileError> {
    while let Some(found) = file.next_frame()? {
        let frame = found.frame;
        assert!(frame.data.len() <= MAX_CAPTURED as usize);
        assert!(frame.data.len() <= frame.wire_len.0 as usize);
        totals.add(&parse(&frame), frame.link, frame.data.len());
        let (interface, link) = (found.interface as usize, frame.link);
        assert_eq!(file.interfaces()[interface].link, link);
    }
    Ok(())
}

/// All files; those that end in an error are named with it.
fn walk_all() -> (Totals, BTreeMap<String, String>) {
    let (mut totals, mut errors) = (Totals::default(), BTreeMap::new());
    for path in corpus::captures() {
        if let Err(error) = CaptureFile::open(&path).and_then(|file| walk(file, &mut totals)) {
            errors.insert(path.display().to_string(), error.to_string());
        }
    }
    (totals, errors)
}

#[test]
fn every_file_is_read_to_its_end_and_twice_alike() {
    let (totals, errors) = walk_all();
    if totals.frames == 0 {
        return;
    }
    assert_eq!((totals.clone(), errors.clone()), walk_all());
    assert_eq!(errors, BTreeMap::new());
    assert_eq!(totals.frames, FRAMES, "{totals:#?}");
    let ended = totals.kinds.values().chain(totals.malformed.values());
    assert_eq!(totals.frames, ended.chain(totals.unsupported.values()).sum::<u64>());
    assert_eq!(totals.frames, totals.workers.iter().sum::<u64>());
    assert!(totals.unsupported.keys().len() > 20, "{totals:#?}");
    eprintln!("{totals:#?}");
}

/// Frames of all captures, as `capinfos -c` counts them too wherever it knows the link type.
const FRAMES: u64 = 22_233;

#[test]
fn packets_have_the_community_ids_that_the_specification_gives_them() {
    let Some(folder) = corpus::folder() else { return };
    let folder = folder.join("community-id");
    let baseline = std::fs::read_to_string(folder.join("baseline_deflt.json")).unwrap();
    let baseline: serde_json::Value = serde_json::from_str(&baseline).unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let expected: BTreeSet<_> = baseline
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (text(entry, "saddr"), text(entry, "daddr"), text(entry, "communityid")))
        .collect();
    let mut found = BTreeSet::new();
    for name in ["icmp", "icmp6", "ipv6", "rsvp", "sctp", "tcp", "udp", "arp"] {
        let mut file = CaptureFile::open(&folder.join(format!("{name}.pcap"))).unwrap();
        while let Some(next) = file.next_frame().unwrap() {
            let packet = parse(&next.frame);
            if let Some(id) = community_id(&packet) {
                let tuple = packet.tuple;
                found.insert((tuple.source.to_string(), tuple.target.to_string(), id));
            }
        }
    }
    assert_eq!(found, expected);
}

#[test]
fn damaged_captures_end_in_frames_or_an_error() {
    let Some(folder) = corpus::folder() else { return };
    let sources = [
        "scans/maltrail-mixed_soup.pcap",
        "protocols/zeek-vlan-pcp-dei.pcapng",
        "protocols/zeek-icmp_icmp6-nd-options.pcap",
        "protocols/zeek-ipv4_fragmented-1.pcap",
        "protocols/zeek-linux_dlt_sll2.pcap",
        "protocols/zeek-ipv6-mobility-dst-opts.pcap",
        "malformed/OSPFv2_Capture_FINAL.pcapng",
    ];
    let started = Instant::now();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 32) as usize
    };
    let (mut totals, mut errors) = (Totals::default(), 0);
    for source in sources.iter().cycle().take(4_200) {
        let mut bytes = std::fs::read(folder.join(source)).unwrap();
        for _ in 0..1 + next() % 40 {
            let position = next() % bytes.len();
            bytes[position] = next() as u8;
        }
        bytes.truncate(bytes.len() - next() % (bytes.len() / 8));
        let file = CaptureFile::from_reader(Cursor::new(bytes), *source);
        errors += usize::from(file.and_then(|file| walk(file, &mut totals)).is_err());
    }
    assert!(totals.frames > 10_000 && errors > 100, "{errors} errors, {totals:#?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
