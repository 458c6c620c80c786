//! Real scanners against real hosts, each beside a fresh sensor with the default profile: exactly the
//! alerts that there should be.
//!
//! ```text
//!   10.99.0.2  fd99::2   listens on ports 22 and 80, refuses all others
//!   10.99.0.3  fd99::3   drops everything
//!   10.98.0.0/24         answers on every address, refuses
//!   10.98.1.0/24         nobody is there
//! ```
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "each test uses a part")]
mod settled;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use perf::events::AlertLife;
use perf::lab::{Lab, Namespace};
use perf::sensor::Sensor;
use perf::tools;
use settled::{alerts_before, all_silent};

const REFUSES: &str = "10.99.0.2";
const DROPS: &str = "10.99.0.3";
/// What nmap needs not to ask about, and not to wait long for.
const QUICK: [&str; 6] = ["-n", "-Pn", "-T4", "--max-retries", "1", "--host-timeout=60s"];

/// A lab with the hosts that stand above.
fn lab() -> Option<Lab> {
    if !tools::require(&["nft", "nmap"]) {
        return None;
    }
    let lab = Lab::new()?;
    let host = lab.sensor();
    host.ip(&format!("addr add {DROPS}/16 dev s0"));
    host.ip("-6 addr add fd99::3/64 dev s0 nodad");
    host.run(
        "nft",
        &["add table inet lab; add chain inet lab drops { type filter hook input priority 0 ; }; \
           add rule inet lab drops ip daddr 10.99.0.3 drop; \
           add rule inet lab drops ip6 daddr fd99::3 icmpv6 type echo-request drop; \
           add rule inet lab drops ip6 daddr fd99::3 meta l4proto { tcp, udp } drop"],
    );
    // Answers to whatever sender go out, and as many ICMP errors as there is cause for.
    host.ip("route add default via 10.99.0.1");
    host.run("sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"]);
    Some(lab)
}

/// Two services in a namespace, for as long as the test runs.
fn listen(namespace: &Namespace) -> Vec<TcpListener> {
    let open = |port: u16| namespace.within(|| TcpListener::bind(("::", port)).unwrap());
    [22, 80].map(open).into()
}

/// What a fresh sensor says while `work` goes on in a fresh lab.
fn alerts_of(work: impl FnOnce(&Lab)) -> Option<Vec<AlertLife>> {
    let lab = lab()?;
    let _services = listen(lab.sensor());
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, Sensor::SMALL);
    work(&lab);
    all_silent(&lab, &mut sensor);
    Some(alerts_before(&sensor.stop(Signal::SIGINT)))
}

/// What the one alert is to say.
#[derive(Clone, Copy)]
struct Expected<'a> {
    kind: &'a str,
    technique: &'a str,
    source: &'a str,
    target: Option<&'a str>,
    /// Numbers, each to 5 in 100.
    counts: &'a [(&'a str, u64)],
}

/// `work` raises this one alert.
#[track_caller]
fn check(expected: &Expected<'_>, work: impl FnOnce(&Lab)) -> Option<AlertLife> {
    let mut alerts = alerts_of(work)?;
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    let alert = alerts.remove(0);
    let Expected { kind, technique, source, target, counts } = *expected;
    assert_eq!((alert.kind.as_str(), alert.source.as_str()), (kind, source), "{alert:#?}");
    assert_eq!(alert.target.as_deref(), target, "{alert:#?}");
    assert_eq!(alert.context["technique"], technique, "{alert:#?}");
    assert_eq!(alert.phases.last().map(String::as_str), Some("close"), "{alert:#?}");
    for (name, wanted) in counts {
        let found = alert.count(name);
        assert!(found.abs_diff(*wanted) * 100 <= wanted * 5, "{found} for {wanted}: {alert:#?}");
    }
    Some(alert)
}

fn nmap(lab: &Lab, arguments: &[&str]) {
    lab.generator().run("nmap", &[&QUICK[..], arguments].concat());
}

/// `nmap` with these arguments against each of these targets, at the same time, is one alert each.
#[track_caller]
fn check_nmap((kind, technique): (&str, &str), targets: &[&str], ports: u64, arguments: &[&str]) {
    thread::scope(|scope| {
        let runs: Vec<_> = targets
            .iter()
            .map(|target| {
                let name = thread::current().name().unwrap_or("test").to_owned();
                let run = move || {
                    let is_v6 = target.contains(':');
                    let expected = Expected {
                        kind,
                        technique,
                        source: if is_v6 { "fd99::1" } else { "10.99.0.1" },
                        target: Some(target),
                        counts: &[("distinct_ports", ports)],
                    };
                    let version: &[&str] = if is_v6 { &["-6"] } else { &[] };
                    let all = [version, arguments, &[target]].concat();
                    check(&expected, |lab| nmap(lab, &all));
                };
                thread::Builder::new().name(name).spawn_scoped(scope, run).unwrap()
            })
            .collect();
        for run in runs {
            if let Err(panic) = run.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

const SYN_SCAN: (&str, &str) = ("vertical", "SYN");

// Ports of one host.

#[test]
fn a_syn_scan_is_one_vertical_alert() {
    let arguments = ["-sS", "-p1-1000", "--min-rate", "400"];
    check_nmap(SYN_SCAN, &[REFUSES, DROPS], 1000, &arguments);
}

#[test]
fn a_connect_scan_is_one_vertical_alert() {
    check_nmap(SYN_SCAN, &[REFUSES, DROPS], 200, &["-sT", "-p1-200", "--min-rate", "100"]);
}

#[test]
fn a_syn_scan_over_ipv6_is_one_vertical_alert() {
    let arguments = ["-sS", "-p1-200", "--min-rate", "100"];
    check_nmap(SYN_SCAN, &["fd99::2", "fd99::3"], 200, &arguments);
}

#[test]
fn a_polite_scan_is_one_vertical_alert() {
    // Two and a half ports a second, whether or not somebody answers.
    let polite = ["-T2", "-sS", "-p1-100", "--max-retries", "0", "--max-rtt-timeout", "100ms"];
    check_nmap(SYN_SCAN, &[REFUSES, DROPS], 100, &polite);
}

#[test]
fn a_fin_scan_is_one_stealth_alert() {
    check_nmap(("stealth", "FIN"), &[REFUSES, DROPS], 100, &["-sF", "-p1-100"]);
}

#[test]
fn a_null_scan_is_one_stealth_alert() {
    check_nmap(("stealth", "NULL"), &[REFUSES, DROPS], 100, &["-sN", "-p1-100"]);
}

#[test]
fn an_xmas_scan_is_one_stealth_alert() {
    check_nmap(("stealth", "XMAS"), &[REFUSES, DROPS], 100, &["-sX", "-p1-100"]);
}

#[test]
fn an_ack_scan_is_one_stealth_alert_where_rst_answers() {
    check_nmap(("stealth", "ACK"), &[REFUSES], 100, &["-sA", "-p1-100"]);
}

#[test]
fn a_maimon_scan_is_one_stealth_alert_where_rst_answers() {
    check_nmap(("stealth", "MAIMON"), &[REFUSES], 100, &["-sM", "-p1-100"]);
}

#[test]
fn ack_and_maimon_scans_of_a_host_that_drops_raise_nothing() {
    let alerts = alerts_of(|lab| {
        nmap(lab, &["-sA", "-p1-100", DROPS]);
        nmap(lab, &["-sM", "-p1-100", DROPS]);
    });
    assert_eq!(alerts.unwrap_or_default(), []);
}

#[test]
fn a_udp_scan_is_one_udp_alert() {
    check_nmap(("udp", "UDP"), &[REFUSES, DROPS], 50, &["-sU", "--top-ports", "50"]);
}

#[test]
fn a_protocol_scan_is_one_protocol_alert() {
    check_nmap(("protocol", "IP"), &[REFUSES, DROPS], 50, &["-sO", "-p", "0-49"]);
}

// Many hosts.

/// What a sweep from the generator is to be.
const fn sweep<'a>(
    kind: &'a str,
    technique: &'a str,
    counts: &'a [(&'a str, u64)],
) -> Expected<'a> {
    Expected { kind, technique, source: "10.99.0.1", target: None, counts }
}

#[test]
fn one_port_of_sixty_four_hosts_that_refuse_is_one_horizontal_alert() {
    let counts = [("distinct_hosts", 64), ("distinct_ports", 1), ("refused", 64)];
    check(&sweep("horizontal", "SYN", &counts), |lab| nmap(lab, &["-sS", "-p443", "10.98.0.0/26"]));
}

#[test]
fn one_port_of_sixty_four_silent_hosts_is_one_horizontal_alert() {
    let counts = [("distinct_hosts", 64), ("distinct_ports", 1), ("silent", 64)];
    check(&sweep("horizontal", "SYN", &counts), |lab| nmap(lab, &["-sS", "-p443", "10.98.1.0/26"]));
}

/// Masscan has an IP stack of its own, which has to be told the way.
fn masscan(lab: &Lab, arguments: &[&str]) {
    let address = lab.sensor().run("cat", &["/sys/class/net/s0/address"]);
    let router = String::from_utf8(address.stdout).unwrap();
    let own = ["--interface", "g0", "--adapter-ip", "10.99.0.1", "--adapter-port", "40000"];
    let way = ["--router-mac", router.trim(), "--wait", "1"];
    lab.generator().run("masscan", &[&own[..], &way, arguments].concat());
}

#[test]
fn three_ports_of_sixty_four_silent_hosts_are_one_horizontal_alert() {
    if !tools::require(&["masscan"]) {
        return;
    }
    let counts = [("distinct_hosts", 64), ("distinct_ports", 3), ("attempted", 192)];
    let alert = check(&sweep("horizontal", "SYN", &counts), |lab| {
        masscan(lab, &["10.98.1.0/26", "-p22,80,443", "--rate", "100"]);
    });
    if let Some(alert) = alert {
        assert_eq!(alert.context["ports"], serde_json::json!([22, 80, 443]));
    }
}

#[test]
fn forty_ports_of_thirty_two_silent_hosts_are_one_block_alert() {
    if !tools::require(&["masscan"]) {
        return;
    }
    let counts = [("distinct_hosts", 32), ("distinct_ports", 40), ("attempted", 1280)];
    check(&sweep("block", "SYN", &counts), |lab| {
        masscan(lab, &["10.98.1.0/27", "-p1000-1039", "--rate", "300"]);
    });
}

const PING_SCAN: [&str; 5] = ["-n", "-sn", "-T4", "--max-retries", "1"];

#[test]
fn pings_of_sixty_four_silent_hosts_are_one_icmp_sweep() {
    check(&sweep("icmp_sweep", "ECHO", &[("distinct_hosts", 64)]), |lab| {
        lab.generator().run("nmap", &[&PING_SCAN[..], &["-PE", "10.98.1.0/26"]].concat());
    });
}

#[test]
fn requests_for_sixty_four_addresses_that_nobody_has_are_one_arp_sweep() {
    check(&sweep("arp_sweep", "ARP", &[("distinct_hosts", 64)]), |lab| {
        lab.generator().run("nmap", &[&PING_SCAN[..], &["10.99.7.0/26"]].concat());
    });
}

// Many senders.

#[test]
fn a_scan_with_five_decoys_is_one_decoy_alert_with_all_six() {
    let decoys = (11..=15).map(|last| format!("192.0.2.{last}")).collect::<Vec<_>>();
    let expected = Expected {
        kind: "decoy",
        technique: "SYN",
        source: "",
        target: Some(REFUSES),
        counts: &[("distinct_ports", 100), ("distinct_sources", 6)],
    };
    let alert = check(&expected, |lab| {
        nmap(lab, &["-sS", "-D", &decoys.join(","), "-p1-100", REFUSES]);
    });
    let Some(alert) = alert else { return };
    let listed = alert.context["sources"].as_array().unwrap().iter();
    let listed: BTreeSet<_> = listed.map(|one| one.as_str().unwrap()).collect();
    let all = decoys.iter().map(String::as_str).chain(["10.99.0.1"]);
    assert_eq!(listed, all.collect::<BTreeSet<_>>());
    assert!(["vertical", "decoy"].contains(&alert.kinds[0].as_str()), "{alert:#?}");
}

/// A flood of SYN for some seconds is one alert about its target, and what its target answers none.
#[track_caller]
fn check_flood(port: &str, pace: &[&str], arguments: &[&str], sources: impl Fn(u64) -> bool) {
    if !tools::require(&["hping3"]) {
        return;
    }
    let alerts = alerts_of(|lab| {
        let mut command = Command::new("hping3");
        command.args(["-q", "-S", "-p", port]).args(pace).args(arguments).arg(REFUSES);
        let mut flood = lab.generator().spawn(&command);
        thread::sleep(Duration::from_secs(4));
        // It says by its status that not all was answered.
        flood.stop(Signal::SIGINT, Duration::from_secs(10));
    });
    let Some(alerts) = alerts else { return };
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    let alert = &alerts[0];
    assert_eq!((alert.kind.as_str(), alert.target.as_deref()), ("syn_flood", Some(REFUSES)));
    assert!(alert.count("packets") >= 1000 && alert.count("peak_pps") >= 500, "{alert:#?}");
    assert!(sources(alert.count("distinct_sources")), "{alert:#?}");
}

#[test]
fn a_flood_of_syn_to_an_open_or_a_closed_port_is_one_syn_flood() {
    for port in ["80", "81"] {
        check_flood(port, &["--flood"], &[], |sources| sources == 1);
    }
}

#[test]
fn a_flood_of_syn_from_random_senders_is_one_syn_flood_too() {
    // A detector that was not optimised cannot take in 100 000 new contacts a second, and then falls behind.
    let pace: &[&str] = if cfg!(debug_assertions) { &["-i", "u100"] } else { &["--flood"] };
    for port in ["80", "81"] {
        check_flood(port, pace, &["--rand-source"], |sources| sources >= 1000);
    }
}

// What is none.

#[test]
fn a_ping_scan_that_only_meets_hosts_that_live_raises_nothing() {
    let alerts = alerts_of(|lab| {
        for arguments in [&["-PE", "10.98.0.0/26"][..], &[REFUSES, "10.99.0.1"]] {
            lab.generator().run("nmap", &[&PING_SCAN[..], arguments].concat());
        }
    });
    assert_eq!(alerts.unwrap_or_default(), []);
}

/// Joins the host of the sensor to two more, one behind the other, the last of which is 10.97.2.2.
fn make_way(lab: &mut Lab) {
    lab.add_sensor();
    lab.add_sensor();
    lab.generator().ip("route add 10.97.0.0/16 via 10.99.0.2");
    let hosts: Vec<_> = lab.links().iter().map(|link| &link.sensor).collect();
    for (number, pair) in (1..).zip(hosts.windows(2)) {
        let [near, far] = pair else { continue };
        near.ip(&format!("link add far type veth peer name near netns {}", far.name()));
        for (host, name, last) in [(near, "far", 1), (far, "near", 2)] {
            host.ip(&format!("link set {name} up"));
            host.ip(&format!("addr add 10.97.{number}.{last}/24 dev {name}"));
            host.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0"]);
        }
        far.ip(&format!("route replace default via 10.97.{number}.1"));
    }
    hosts[0].ip("route add 10.97.2.0/24 via 10.97.1.2");
}

#[test]
fn traceroutes_by_udp_icmp_and_tcp_raise_nothing() {
    if !tools::require(&["traceroute"]) {
        return;
    }
    let Some(mut lab) = lab() else { return };
    make_way(&mut lab);
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, Sensor::SMALL);
    for how in [&[][..], &["-I"], &["-T", "-p", "80"], &["-T", "-p", "443", "-m", "30"]] {
        let way = ["-n", "-w", "1", "10.97.2.2"];
        let output = lab.generator().run("traceroute", &[how, &way].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let hops = ["10.99.0.2", "10.97.1.2", "10.97.2.2"];
        assert!(hops.iter().all(|hop| text.contains(hop)), "{how:?}: {text}");
    }
    all_silent(&lab, &mut sensor);
    assert_eq!(alerts_before(&sensor.stop(Signal::SIGINT)), []);
}
