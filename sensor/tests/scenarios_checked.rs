//! The traffic that the tests of the detector make is what it says: another program finds nothing wrong
//! with its headers, and the same seed gives the same frames.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::process::Command;

use perf::tools;
use scenarios::ordinary::Fate;
use scenarios::probing::{Pace, Technique, ports_of};
use scenarios::replayed::Capture;
use scenarios::sites::{self, Site};
use scenarios::{MINUTE, MS, SECOND, Stage, host};

/// Every site and every scan, one beside the other.
fn everything(seed: u64) -> Stage {
    let mut stage = Stage::new(seed);
    let all: Vec<Site> = [&sites::QUIET[..], &[sites::file_sharing]].concat();
    for site in all {
        site(&mut stage, MINUTE);
    }
    let pace = Pace { at: SECOND, gap: 10 * MS };
    for base in ["192.0.2.", "2001:db8:77::"] {
        let [source, target] = ["9", "7"].map(|last| host(&format!("{base}{last}"), 0));
        let fate = |to: std::net::SocketAddr| {
            [Fate::Open, Fate::Refused, Fate::Silent][usize::from(to.port() % 3)]
        };
        let ports = ports_of(target, 1..30);
        for technique in [&Technique::STEALTH[..], &[Technique::Syn, Technique::Udp]].concat() {
            stage.scan("any", technique, (source, &ports), pace, fate);
        }
        let hosts: Vec<_> = (0..20).map(|number| host(&format!("{base}1"), number)).collect();
        stage.icmp_sweep(source, &hosts, pace, |_| Fate::Open);
        stage.decoy_scan(&hosts[..5], &ports, pace, fate);
        stage.distributed_scan(&hosts, &ports, pace, fate);
    }
    let [source, target] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(std::net::Ipv4Addr::from);
    stage.arp_sweep(source, &[target; 3], pace, |_| Fate::Open);
    stage.protocol_scan(source.into(), target.into(), 0..50, pace, true);
    stage
}

#[test]
fn tshark_finds_no_wrong_length_and_no_wrong_checksum() {
    if !tools::require(&["tshark"]) {
        return;
    }
    let mut stage = everything(1);
    let frames = stage.frames.len();
    let capture = Capture::of(&mut stage);
    let read = |filter: &str| {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(capture.path()).args(["-Y", filter]);
        command.args(["-T", "fields", "-e", "frame.protocols"]);
        for protocol in ["ip", "tcp", "udp"] {
            command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        let output = command.output().expect("tshark can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let wrong =
        ["ip", "tcp", "udp", "icmp", "icmpv6"].map(|one| format!("{one}.checksum.status==0"));
    assert_eq!(read(&wrong.join(" || ")), "");
    // What is behind the headers is not meant to be anything, whatever tshark takes it for.
    let malformed = read("_ws.malformed");
    for protocols in malformed.lines() {
        let last = protocols.rsplit(':').find(|one| *one != "_ws.malformed").unwrap_or_default();
        let headers = ["eth", "arp", "ip", "ipv6", "icmp", "icmpv6", "tcp", "udp"];
        assert!(!headers.contains(&last), "{protocols}");
    }
    assert_eq!(read("frame").lines().count(), frames);
}

#[test]
fn the_same_seed_gives_the_same_frames_and_another_one_gives_others() {
    let [one, again, other] = [5, 5, 6].map(|seed| everything(seed).frames);
    assert!(one == again);
    assert!(one != other);
}
