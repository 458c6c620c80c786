//! Each kind of scan, among ordinary traffic, is found as one alert with the right numbers, the same with
//! one, two and four workers; and what only looks like a scan is none.
//!
//! What counts: the last step of the alert's life. Contacts by their ends are compared where they can be
//! told: a stealth probe without an answer is odd at once, whether or not it is called silent too.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use perf::events::{AlertLife, Events};
use perf::frames::{self, ACK, RST, SYN};
use scenarios::ordinary::{Error, Fate, icmp_error};
use scenarios::probing::{Pace, Technique, Truth, ports_of, ports_of_hosts};
use scenarios::replayed::{BEGIN, Capture, alerts_without_workers};
use scenarios::{HOUR, MINUTE, MS, SECOND, Stage, host, sites};

const SCANNER: &str = "192.0.2.99";
const VICTIM: &str = "198.51.100.250";

fn address(text: &str) -> IpAddr {
    host(text, 0)
}

/// A stage with five minutes of ordinary traffic.
fn stage(seed: u64) -> Stage {
    let mut stage = Stage::new(seed);
    for site in [sites::web, sites::name_resolution, sites::local_chatter, sites::time_service] {
        site(&mut stage, 5 * MINUTE);
    }
    sites::address_translation(&mut stage, 5 * MINUTE);
    stage
}

const fn pace(gap: u64) -> Pace {
    Pace { at: 20 * SECOND, gap }
}

/// The events of one worker, which raises the alerts that several raise.
#[track_caller]
fn events_of(stage: &mut Stage, configuration: &str) -> Events {
    let capture = Capture::of(stage);
    let one = capture.events(1, configuration);
    for workers in [2, 4] {
        let several = capture.events(workers, configuration);
        let [several, one] = [&several, &one].map(alerts_without_workers);
        assert_eq!(several, one, "{workers} workers");
    }
    one
}

#[track_caller]
fn assert_near(alert: &AlertLife, name: &str, wanted: u64) {
    let found = alert.count(name);
    assert!(found.abs_diff(wanted) * 100 <= wanted * 5, "{found} {name} for {wanted}: {alert:#?}");
}

/// The one alert that there is, from its opening to its end.
#[track_caller]
fn only_alert(events: &Events) -> AlertLife {
    let mut alerts = events.alerts();
    assert_eq!(alerts.len(), 1, "{alerts:#?}");
    let alert = alerts.remove(0);
    let ends = [alert.phases.first(), alert.phases.last()];
    assert_eq!(ends.map(|phase| phase.map(String::as_str)), [Some("open"), Some("close")]);
    alert
}

/// The traffic raises one alert, which says what the truth says.
#[track_caller]
fn assert_found(stage: &mut Stage, truth: &Truth) -> AlertLife {
    assert_found_with(stage, truth, "")
}

#[track_caller]
fn assert_found_with(stage: &mut Stage, truth: &Truth, configuration: &str) -> AlertLife {
    let alert = only_alert(&events_of(stage, configuration));
    assert_eq!(alert.kind, truth.kind, "{alert:#?}");
    assert_eq!(alert.target, truth.target.map(|target| target.to_string()), "{alert:#?}");
    let source = match &truth.sources[..] {
        [source] => source.to_string(),
        _ => String::new(),
    };
    assert_eq!(alert.source, source, "{alert:#?}");
    // A slow scan may mix techniques, and a distributed one has many hands.
    if !matches!(truth.kind, "slow" | "distributed") {
        assert_eq!(alert.context["technique"], truth.technique, "{alert:#?}");
    }
    if !matches!(truth.kind, "icmp_sweep" | "arp_sweep") {
        assert_near(&alert, "distinct_ports", truth.ports);
    }
    assert_near(&alert, "distinct_hosts", truth.hosts);
    if truth.sources.len() == 1 {
        assert_near(&alert, "attempted", truth.ends.len() as u64);
        assert_near(&alert, "refused", truth.count_of(Fate::Refused));
        if truth.kind != "stealth" {
            assert_near(&alert, "answered", truth.count_of(Fate::Open));
            assert_near(&alert, "silent", truth.count_of(Fate::Silent));
        }
    }
    let is_graded = (1..=3).contains(&alert.severity)
        && alert.context["confidence"].is_string()
        && alert.context["spoofable"].is_boolean()
        && alert.context["mitre_technique"].as_str().is_some_and(|text| text.starts_with('T'));
    assert!(is_graded, "{alert:#?}");
    let start: jiff::Timestamp =
        alert.context["start"].as_str().unwrap_or_default().parse().expect("a time");
    let off = start.as_nanosecond() - i128::from(BEGIN + truth.begin);
    assert!(off.abs() <= i128::from(SECOND), "{off} ns from the first probe: {alert:#?}");
    alert
}

#[track_caller]
fn assert_nothing(mut stage: Stage) {
    let alerts = events_of(&mut stage, "").alerts();
    assert_eq!(alerts, [], "{alerts:#?}");
}

/// A scan of ports of one host.
#[track_caller]
fn assert_found_on_one_host(
    seed: u64,
    (kind, technique): (&'static str, Technique),
    (source, target): (&str, &str),
    fate: impl Fn(SocketAddr) -> Fate,
) -> AlertLife {
    let mut stage = stage(seed);
    let mut ports: Vec<u16> = (1..=100).collect();
    stage.random.shuffle(&mut ports);
    let contacts = ports_of(address(target), ports);
    let truth = stage.scan(kind, technique, (address(source), &contacts), pace(20 * MS), fate);
    assert_found(&mut stage, &truth)
}

fn mixed(contact: SocketAddr) -> Fate {
    [Fate::Open, Fate::Refused, Fate::Silent, Fate::Silent][usize::from(contact.port() % 4)]
}

// Ports of one host.

#[test]
fn ports_that_refuse_are_one_vertical_alert() {
    assert_found_on_one_host(1, ("vertical", Technique::Syn), (SCANNER, VICTIM), |_| Fate::Refused);
}

#[test]
fn ports_that_are_silent_are_one_vertical_alert() {
    assert_found_on_one_host(2, ("vertical", Technique::Syn), (SCANNER, VICTIM), |_| Fate::Silent);
}

#[test]
fn a_host_that_answers_here_and_refuses_there_is_one_vertical_alert_with_what_answered() {
    let alert = assert_found_on_one_host(3, ("vertical", Technique::Syn), (SCANNER, VICTIM), mixed);
    let answered = alert.context["answered_ports"].as_array().map(Vec::len);
    assert_eq!(answered, Some(20), "as many as an alert shows: {alert:#?}");
}

#[test]
fn a_scan_over_ipv6_is_one_vertical_alert() {
    let ends = ("2001:db8:99::9", "2001:db8:2::fa");
    for fate in [|_| Fate::Refused, |_| Fate::Silent, mixed] {
        assert_found_on_one_host(4, ("vertical", Technique::Syn), ends, fate);
    }
}

#[test]
fn odd_flags_are_one_stealth_alert_with_the_technique_on_a_host_that_refuses() {
    for technique in Technique::STEALTH {
        assert_found_on_one_host(5, ("stealth", technique), (SCANNER, VICTIM), |_| Fate::Refused);
    }
}

#[test]
fn odd_flags_are_one_stealth_alert_on_a_host_that_drops_unless_only_an_answer_tells() {
    for technique in Technique::STEALTH {
        if technique.needs_answer() {
            let mut stage = stage(6);
            let contacts = ports_of(address(VICTIM), 1..=100);
            let ends = (address(SCANNER), &contacts[..]);
            stage.scan("stealth", technique, ends, pace(20 * MS), |_| Fate::Silent);
            assert_nothing(stage);
        } else {
            let ends = (SCANNER, VICTIM);
            assert_found_on_one_host(6, ("stealth", technique), ends, |_| Fate::Silent);
        }
    }
}

#[test]
fn datagrams_to_ports_that_refuse_or_are_silent_are_one_udp_alert() {
    for fate in [|_| Fate::Refused, |_| Fate::Silent, mixed] {
        for ends in [(SCANNER, VICTIM), ("2001:db8:99::9", "2001:db8:2::fa")] {
            assert_found_on_one_host(7, ("udp", Technique::Udp), ends, fate);
        }
    }
}

#[test]
fn packets_of_fifty_protocols_are_one_protocol_alert() {
    for is_there in [true, false] {
        let mut stage = stage(8);
        let ends = (address(SCANNER), address(VICTIM));
        let truth = stage.protocol_scan(ends.0, ends.1, 0..50, pace(50 * MS), is_there);
        assert_found(&mut stage, &truth);
    }
}

// Many hosts.

#[test]
fn one_port_of_hosts_that_refuse_or_are_silent_is_one_horizontal_alert() {
    for base in ["198.51.101.0", "2001:db8:3::"] {
        let scanner = if base.contains(':') { "2001:db8:99::9" } else { SCANNER };
        for fate in [Fate::Refused, Fate::Silent] {
            let mut stage = stage(9);
            let contacts = ports_of_hosts(base, 64, &[445]);
            let ends = (address(scanner), &contacts[..]);
            let truth = stage.scan("horizontal", Technique::Syn, ends, pace(40 * MS), |_| fate);
            let alert = assert_found(&mut stage, &truth);
            assert_eq!(alert.context["ports"], serde_json::json!([445]));
        }
    }
}

#[test]
fn three_ports_of_sixty_four_hosts_are_one_horizontal_alert_in_any_order() {
    for is_shuffled in [true, false] {
        let mut stage = stage(10);
        let mut contacts = ports_of_hosts("198.51.101.0", 64, &[22, 80, 443]);
        if is_shuffled {
            stage.random.shuffle(&mut contacts);
        }
        let ends = (address(SCANNER), &contacts[..]);
        let truth = stage.scan("horizontal", Technique::Syn, ends, pace(50 * MS), |_| Fate::Silent);
        let alert = assert_found(&mut stage, &truth);
        assert_eq!(alert.context["ports"], serde_json::json!([22, 80, 443]));
    }
}

#[test]
fn forty_ports_of_thirty_two_hosts_are_one_block_alert() {
    for fate in [Fate::Silent, Fate::Refused] {
        let mut stage = stage(11);
        let ports: Vec<u16> = (1000..1040).collect();
        let mut contacts = ports_of_hosts("198.51.101.0", 32, &ports);
        stage.random.shuffle(&mut contacts);
        let ends = (address(SCANNER), &contacts[..]);
        let truth = stage.scan("block", Technique::Syn, ends, pace(10 * MS), |_| fate);
        assert_found(&mut stage, &truth);
    }
}

/// Each of the first hosts makes a vertical scan, as long as there is nothing else to see. The oldest of these
/// alerts goes on as the block, and the others end.
#[test]
fn a_block_that_is_scanned_host_by_host_begins_as_verticals() {
    let mut stage = stage(12);
    let contacts: Vec<_> =
        (0..32).flat_map(|number| ports_of(host("198.51.101.0", number), 1000..1040)).collect();
    let ends = (address(SCANNER), &contacts[..]);
    let truth = stage.scan("block", Technique::Syn, ends, pace(10 * MS), |_| Fate::Refused);
    let alerts = events_of(&mut stage, "").alerts();
    let (block, others) = alerts.split_first().unwrap();
    assert_eq!((&*block.kind, &*block.source), ("block", SCANNER), "{alerts:#?}");
    assert_eq!(block.kinds.first().map(String::as_str), Some("vertical"));
    assert_near(block, "attempted", truth.ends.len() as u64);
    assert_near(block, "distinct_hosts", 32);
    assert!(others.len() <= 5, "{alerts:#?}");
    for other in others {
        assert_eq!(
            (&*other.kind, &other.phases[..]),
            ("vertical", &["open".into(), "close".into()][..])
        );
    }
}

#[test]
fn pings_of_hosts_that_are_mostly_gone_are_one_icmp_sweep() {
    for (scanner, base) in [(SCANNER, "198.51.101.0"), ("2001:db8:99::9", "2001:db8:3::")] {
        for answering in [0, 20] {
            let mut stage = stage(13);
            let hosts: Vec<_> = (0..64).map(|number| host(base, number)).collect();
            let there: BTreeSet<_> = hosts.iter().copied().take(answering).collect();
            let fate = |one| if there.contains(&one) { Fate::Open } else { Fate::Silent };
            let truth = stage.icmp_sweep(address(scanner), &hosts, pace(30 * MS), fate);
            assert_found(&mut stage, &truth);
        }
    }
}

#[test]
fn requests_for_addresses_that_nobody_has_are_one_arp_sweep() {
    for answering in [0, 20] {
        let mut stage = stage(14);
        let base = u32::from(Ipv4Addr::new(10, 7, 0, 10));
        let targets: Vec<_> = (0..64).map(|number| Ipv4Addr::from(base + number)).collect();
        let there: BTreeSet<_> = targets.iter().copied().take(answering).collect();
        let fate = |one| if there.contains(&one) { Fate::Open } else { Fate::Silent };
        let truth = stage.arp_sweep(Ipv4Addr::new(10, 7, 0, 9), &targets, pace(30 * MS), fate);
        assert_found(&mut stage, &truth);
    }
}

// Many hands, much time.

#[test]
fn six_sources_that_ask_for_the_same_ports_are_one_decoy_alert_within_five_seconds() {
    let mut stage = stage(15);
    let sources: Vec<_> = (0..6).map(|number| host("192.0.2.101", number * 17)).collect();
    let mut ports: Vec<u16> = (1..=100).collect();
    stage.random.shuffle(&mut ports);
    let contacts = ports_of(address(VICTIM), ports);
    let truth = stage.decoy_scan(&sources, &contacts, pace(100 * MS), |_| Fate::Refused);
    let events = events_of(&mut stage, "");
    let alert = only_alert(&events);
    // At first nothing but one of them may be seen.
    assert!(["vertical", "decoy"].contains(&alert.kinds[0].as_str()), "{alert:#?}");
    assert_eq!(alert.kind, "decoy", "{alert:#?}");
    let ends = (alert.source.as_str(), alert.target.as_deref());
    assert_eq!(ends, ("", Some(VICTIM)), "{alert:#?}");
    assert_eq!(alert.context["technique"], "SYN");
    if !matches!(truth.kind, "icmp_sweep" | "arp_sweep") {
        assert_near(&alert, "distinct_ports", truth.ports);
    }
    assert_eq!(alert.count("distinct_sources"), 6, "{alert:#?}");
    let listed = alert.context["sources"].as_array().expect("a list").iter();
    let listed: BTreeSet<_> = listed.filter_map(|one| one.as_str()?.parse().ok()).collect();
    assert_eq!(listed, sources.iter().copied().collect::<BTreeSet<IpAddr>>());
    let time = |kind: Option<&str>| -> jiff::Timestamp {
        let mut alerts = events.of_type("alert").into_iter();
        let is_it = |context: &serde_json::Value| kind.is_none_or(|kind| context["kind"] == kind);
        let found = alerts.find(|event| is_it(&event["alert"]["context"]));
        let time = found.and_then(|event| event["timestamp"].as_str());
        time.unwrap_or_default().parse().expect("a time")
    };
    let until_told = time(Some("decoy")).duration_since(time(None));
    assert!(until_told.as_millis() <= 5000, "{until_told:#}");
}

#[test]
fn forty_sources_that_share_the_ports_of_one_host_are_one_distributed_alert() {
    for fate in [Fate::Refused, Fate::Silent] {
        let mut stage = stage(16);
        let sources: Vec<_> = (0..40).map(|number| host("192.0.2.101", number * 3)).collect();
        let contacts = ports_of(address(VICTIM), 2000..2160);
        let truth = stage.distributed_scan(&sources, &contacts, pace(SECOND), |_| fate);
        let alert = assert_found(&mut stage, &truth);
        assert_near(&alert, "distinct_sources", 40);
        assert_near(&alert, "attempted", 160);
    }
}

#[test]
fn thirty_contacts_in_a_quarter_of_an_hour_are_one_slow_alert() {
    for fate in [Fate::Refused, Fate::Silent] {
        let mut stage = stage(17);
        let contacts = ports_of_hosts("198.51.101.0", 6, &[22, 23, 80, 445, 3389]);
        let ends = (address(SCANNER), &contacts[..]);
        let truth = stage.scan("slow", Technique::Syn, ends, pace(29 * SECOND), |_| fate);
        assert_found(&mut stage, &truth);
    }
}

#[test]
fn sixty_contacts_in_twenty_hours_are_one_slow_alert() {
    for fate in [Fate::Refused, Fate::Silent] {
        let mut stage = stage(18);
        for number in 0..120 {
            let time = number * 10 * MINUTE;
            stage.connection(time, host("10.1.1.1", 0), SocketAddr::new(host(VICTIM, 1), 443), 2);
        }
        let contacts = ports_of_hosts("198.51.101.0", 12, &[22, 23, 80, 445, 3389]);
        let ends = (address(SCANNER), &contacts[..]);
        let truth = stage.scan("slow", Technique::Syn, ends, pace(20 * MINUTE), |_| fate);
        assert_found(&mut stage, &truth);
    }
}

#[test]
fn the_profile_strict_takes_four_ports_that_answer_for_a_scan() {
    let strict = "[detect]\nprofile = 'strict'\n";
    let mut four = stage(19);
    let ports = ports_of(address(VICTIM), 1..=4);
    let ends = (address(SCANNER), &ports[..]);
    let truth = four.scan("vertical", Technique::Syn, ends, pace(SECOND), |_| Fate::Open);
    assert_found_with(&mut four, &truth, strict);
    let mut three = stage(19);
    let ends = (address(SCANNER), &ports[..3]);
    three.scan("vertical", Technique::Syn, ends, pace(SECOND), |_| Fate::Open);
    let alerts = events_of(&mut three, strict).alerts();
    assert_eq!(alerts, [], "{alerts:#?}");
}

// What is none.

#[test]
fn answers_to_packets_with_a_forged_sender_raise_nothing() {
    let mut stage = stage(30);
    let (forged, victim) = (address(SCANNER), SocketAddr::new(address(VICTIM), 80));
    for number in 0..300_u16 {
        let time = u64::from(number) * 30 * MS;
        let asker = SocketAddr::new(forged, 1000 + number);
        stage.add(time, frames::tcp(victim, asker, SYN | ACK, b""));
        let closed = SocketAddr::new(victim.ip(), 1 + number);
        stage.add(time + MS, frames::tcp(closed, asker, RST | ACK, b""));
        let never_seen = frames::tcp(asker, closed, SYN, b"");
        let error = icmp_error(victim.ip(), &never_seen, Error::PortUnreachable);
        stage.add(time + 2 * MS, error);
        let error = icmp_error(host(VICTIM, 1), &never_seen, Error::TimeExceeded);
        stage.add(time + 3 * MS, error);
    }
    assert_nothing(stage);
}

#[test]
fn repeated_syns_and_packets_of_nine_silent_ports_and_hosts_raise_nothing() {
    let mut stage = stage(31);
    let few = [ports_of(address(VICTIM), 1..=9), ports_of_hosts("198.51.101.0", 9, &[445])];
    for (source, contacts) in few.iter().enumerate() {
        for (number, target) in contacts.iter().enumerate() {
            let from = stage.from(host(SCANNER, source as u32));
            let at = number as u64 * SECOND;
            for seconds in [0, 1, 3, 7, 15, 31] {
                let syn = frames::tcp_numbered(from, *target, SYN, 9, 0, b"");
                stage.add(at + seconds * SECOND, syn);
            }
        }
    }
    assert_nothing(stage);
}

#[test]
fn acknowledgements_out_of_nothing_without_an_answer_raise_nothing() {
    let mut stage = stage(32);
    for number in 0..500_u16 {
        let from = SocketAddr::new(address(SCANNER), 443);
        let to = SocketAddr::new(address(VICTIM), 1024 + number);
        stage.add(u64::from(number) * 20 * MS, frames::tcp(from, to, ACK, &[0; 100]));
    }
    assert_nothing(stage);
}

#[test]
fn answers_of_a_service_that_was_asked_before_the_begin_raise_nothing() {
    let mut stage = stage(33);
    for (number, port) in [53, 123, 443].into_iter().enumerate() {
        let service = SocketAddr::new(host(SCANNER, number as u32), port);
        for late in 0..200_u16 {
            let time = u64::from(late) * 10 * MS;
            let client = SocketAddr::new(address("10.1.1.200"), 20_000 + late);
            let answer = frames::udp(service, client, &[0x55; 120]);
            // Some come too late even for the client, which says so.
            let error = icmp_error(client.ip(), &answer, Error::PortUnreachable);
            stage.add(time, answer);
            if late.is_multiple_of(4) {
                stage.add(time + MS, error);
            }
        }
    }
    assert_nothing(stage);
}

/// The forwarder breaks all connections, which the sensor saw for a minute and never saw open: its RSTs
/// answer no probes.
#[test]
fn connections_that_break_soon_after_the_begin_raise_nothing() {
    let mut stage = Stage::new(38);
    sites::port_forwarder(&mut stage, 25 * MINUTE);
    let client = address("10.1.1.206");
    for number in 0..60 {
        let server = SocketAddr::new(host("198.51.101.0", number % 20), 9000 + number as u16);
        stage.session(0, client, server, (20 * MINUTE, 20 * SECOND), true);
    }
    stage.begin_at(18 * MINUTE + 40 * SECOND);
    assert_nothing(stage);
}

#[test]
fn a_client_that_tries_one_dead_server_for_hours_raises_nothing() {
    let mut stage = stage(34);
    for number in 0..1000 {
        let time = number * 10 * SECOND;
        let server = SocketAddr::new(address(VICTIM), 5432);
        stage.unanswered(time, address("10.1.1.201"), server);
        stage.refused(time, address("10.1.1.202"), server);
        let from = stage.from(address("10.1.1.203"));
        stage.question(time, from, server, Fate::Refused);
        let from = stage.from(address("10.1.1.204"));
        stage.question(time, from, server, Fate::Silent);
        stage.ping(time, address("10.1.1.205"), server.ip(), 1, Fate::Silent);
    }
    assert_nothing(stage);
}

#[test]
fn nine_failures_of_each_sort_raise_nothing() {
    let mut stage = stage(35);
    let scanner = |number| host(SCANNER, number);
    let ports = ports_of(address(VICTIM), 1..=9);
    let mut number = 0;
    for technique in [Technique::Syn, Technique::Udp] {
        for fate in [Fate::Refused, Fate::Silent] {
            stage.scan("none", technique, (scanner(number), &ports), pace(MS), |_| fate);
            number += 1;
        }
    }
    let hosts = ports_of_hosts("198.51.101.0", 9, &[445]);
    stage.scan("none", Technique::Syn, (scanner(number), &hosts), pace(MS), |_| Fate::Silent);
    let hosts: Vec<_> = hosts.iter().map(SocketAddr::ip).collect();
    stage.icmp_sweep(scanner(number + 1), &hosts, pace(MS), |_| Fate::Silent);
    assert_nothing(stage);
}

#[test]
fn pings_and_connections_that_are_answered_raise_nothing_however_many() {
    let mut stage = stage(36);
    let hosts: Vec<_> = (0..200).map(|number| host("198.51.101.0", number)).collect();
    stage.icmp_sweep(address(SCANNER), &hosts, pace(10 * MS), |_| Fate::Open);
    let ports = ports_of(address(VICTIM), 1..=200);
    let ends = (host(SCANNER, 1), &ports[..]);
    stage.scan("none", Technique::Syn, ends, pace(10 * MS), |_| Fate::Open);
    let ends = (host(SCANNER, 2), &ports[..]);
    stage.scan("none", Technique::Udp, ends, pace(10 * MS), |_| Fate::Open);
    let contacts = ports_of_hosts("198.51.101.0", 200, &[443]);
    let ends = (host(SCANNER, 3), &contacts[..]);
    stage.scan("none", Technique::Syn, ends, pace(10 * MS), |_| Fate::Open);
    let targets: Vec<_> = (0..200).map(|number| Ipv4Addr::from(0x0a07_0000 + number)).collect();
    stage.arp_sweep(Ipv4Addr::new(10, 7, 1, 1), &targets, pace(10 * MS), |_| Fate::Open);
    assert_nothing(stage);
}

#[test]
fn a_scan_at_less_than_the_slowest_rate_raises_nothing() {
    let mut stage = Stage::new(37);
    let contacts = ports_of(address(VICTIM), 1..=20);
    let ends = (address(SCANNER), &contacts[..]);
    stage.scan("none", Technique::Syn, ends, pace(2 * HOUR), |_| Fate::Refused);
    assert_nothing(stage);
}
