//! Scanners that know the rules, and what they send to get by: packets of their own make no success of a probe
//! that nobody answered, nor do they hide it. And what looks the same where answers take another way is none.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::net::{IpAddr, SocketAddr};

use perf::events::AlertLife;
use perf::frames::{self, ACK, FIN, PSH, RST, SYN};
use scenarios::ordinary::{Error, Fate, icmp_error};
use scenarios::replayed::{Capture, alerts_without_workers};
use scenarios::{MINUTE, MS, SECOND, Stage, host, sites};

const SCANNER: &str = "192.0.2.99";
const VICTIM: &str = "198.51.100.250";
const PORTS: u16 = 100;

fn scanner() -> IpAddr {
    host(SCANNER, 0)
}

/// The alerts of one worker, which are those of several.
#[track_caller]
fn alerts_of(stage: &mut Stage) -> Vec<AlertLife> {
    let capture = Capture::of(stage);
    let one = capture.events(1, "");
    for workers in [2, 4] {
        let several = capture.events(workers, "");
        let [several, one] = [&several, &one].map(alerts_without_workers);
        assert_eq!(several, one, "{workers} workers");
    }
    one.alerts()
}

/// Somebody who asks for a page and gets it, so that answers are seen.
fn page(stage: &mut Stage) {
    stage.connection(0, host("10.1.1.1", 0), SocketAddr::new(host(VICTIM, 1), 443), 2);
}

/// A silent port for each probe: a SYN, and then what `more` makes of the two ends.
fn probe_silent_ports(
    stage: &mut Stage,
    more: impl Fn(SocketAddr, SocketAddr) -> Vec<(u64, Vec<u8>)>,
) {
    for port in 1..=PORTS {
        let (from, to) = (stage.from(scanner()), SocketAddr::new(host(VICTIM, 0), port));
        let time = 5 * SECOND + u64::from(port) * 20 * MS;
        stage.add(time, frames::tcp_numbered(from, to, SYN, 9, 0, b""));
        for (later, frame) in more(from, to) {
            stage.add(time + later, frame);
        }
    }
}

#[track_caller]
fn assert_is_the_scan(alerts: &[AlertLife]) {
    let [alert] = alerts else { panic!("{alerts:#?}") };
    assert_eq!((&*alert.kind, &*alert.source), ("vertical", SCANNER), "{alert:#?}");
    let counts = ["attempted", "silent", "answered"].map(|name| alert.count(name));
    assert_eq!(counts, [u64::from(PORTS), u64::from(PORTS), 0], "{alert:#?}");
    assert_eq!(alert.context["spoofable"], true, "{alert:#?}");
}

#[test]
fn an_acknowledgement_that_answers_nothing_makes_no_success_of_a_silent_port() {
    let mut stage = Stage::new(1);
    page(&mut stage);
    probe_silent_ports(&mut stage, |from, to| {
        vec![(MS, frames::tcp_numbered(from, to, ACK, 10, 78, b""))]
    });
    assert_is_the_scan(&alerts_of(&mut stage));
}

#[test]
fn data_and_farewells_to_a_silent_port_make_no_success_of_it() {
    let mut stage = Stage::new(2);
    sites::web(&mut stage, MINUTE);
    probe_silent_ports(&mut stage, |from, to| {
        let data = frames::tcp_numbered(from, to, PSH | ACK, 10, 78, b"GET / HTTP/1.0\r\n\r\n");
        let end = frames::tcp_numbered(from, to, FIN | ACK, 28, 78, b"");
        let reset = frames::tcp_numbered(from, to, RST, 29, 0, b"");
        vec![(MS, data), (2 * MS, end), (3 * MS, reset)]
    });
    assert_is_the_scan(&alerts_of(&mut stage));
}

/// As many as are needed to take the tap for one of a single direction, were each one to count.
#[test]
fn one_source_that_talks_to_nobody_does_not_make_answers_seem_to_be_missing() {
    let mut stage = Stage::new(3);
    for number in 0..3 {
        let server = SocketAddr::new(host(VICTIM, 1 + number), 443);
        stage.connection(u64::from(number) * SECOND, host("10.1.1.1", 0), server, 2);
    }
    probe_silent_ports(&mut stage, |from, to| {
        vec![(MS, frames::tcp_numbered(from, to, PSH | ACK, 10, 78, b"hello"))]
    });
    assert_is_the_scan(&alerts_of(&mut stage));
}

/// Each SYN of a flood has an acknowledgement behind it.
#[test]
fn acknowledgements_that_answer_nothing_hide_no_flood() {
    let mut stage = Stage::new(11);
    sites::web(&mut stage, MINUTE);
    for number in 0..8000 {
        let from = SocketAddr::new(scanner(), 1024 + number as u16);
        let to = SocketAddr::new(host(VICTIM, 0), 80);
        let time = 20 * SECOND + number * MS / 2;
        stage.add(time, frames::tcp_numbered(from, to, SYN, 9, 0, b""));
        stage.add(time + MS / 5, frames::tcp_numbered(from, to, ACK, 10, 78, b""));
    }
    let alerts = alerts_of(&mut stage);
    let [alert] = &alerts[..] else { panic!("{alerts:#?}") };
    assert_eq!((&*alert.kind, alert.target.as_deref()), ("syn_flood", Some(VICTIM)), "{alert:#?}");
    assert_eq!(alert.count("completed"), 0, "{alert:#?}");
}

/// A service with 1 000 connections a second whose answers take another way.
#[test]
fn a_busy_service_whose_answers_are_not_seen_is_not_flooded() {
    let mut stage = Stage::new(12);
    for number in 0..6000 {
        let client = host("10.1.1.0", (number % 200) as u32);
        let server = SocketAddr::new(host(VICTIM, 0), 80);
        stage.connection(number * MS, client, server, 1);
    }
    stage.see_only_from(|one| one.to_string().starts_with("10.1.1."));
    assert_eq!(alerts_of(&mut stage), []);
}

/// The scanner sends the target errors about its own probes.
#[test]
fn errors_that_go_to_somebody_else_than_whom_they_quote_decide_nothing() {
    for error in [Error::TimeExceeded, Error::PortUnreachable] {
        let mut stage = Stage::new(4);
        page(&mut stage);
        probe_silent_ports(&mut stage, |from, to| {
            let quoted = frames::tcp_numbered(from, to, SYN, 9, 0, b"");
            // To the one who sent it, as it should be; the header then says something else.
            let mut forged = icmp_error(host(SCANNER, 1), &quoted, error);
            let IpAddr::V4(victim) = to.ip() else { panic!("{to} is not IPv4") };
            forged[30..34].copy_from_slice(&victim.octets());
            forged[24..26].fill(0);
            let sum = frames::checksum(&[&forged[14..34]]);
            forged[24..26].copy_from_slice(&sum.to_be_bytes());
            vec![(MS, forged)]
        });
        assert_is_the_scan(&alerts_of(&mut stage));
    }
}

/// A SYN+ACK may be lost; whoever then speaks for the target proves as much.
#[test]
fn what_the_target_says_is_a_success_though_its_syn_ack_was_lost() {
    for flags in [ACK, PSH | ACK, FIN | ACK] {
        let mut stage = Stage::new(5);
        page(&mut stage);
        probe_silent_ports(&mut stage, |from, to| {
            let data = frames::tcp_numbered(from, to, PSH | ACK, 10, 78, b"hello");
            let answer = frames::tcp_numbered(to, from, flags, 78, 15, b"");
            vec![
                (MS, frames::tcp_numbered(from, to, ACK, 10, 78, b"")),
                (MS, data),
                (2 * MS, answer),
            ]
        });
        assert_eq!(alerts_of(&mut stage), []);
    }
}

#[test]
fn clients_whose_answers_take_another_way_raise_nothing() {
    // Pages alone, checks without data alone, and both.
    let some: [&[sites::Site]; 3] =
        [&[sites::web], &[sites::health_checks], &[sites::web, sites::health_checks]];
    for (number, sites) in some.into_iter().enumerate() {
        let mut stage = Stage::new(6 + number as u64);
        sites.iter().for_each(|site| site(&mut stage, 3 * MINUTE));
        let is_client = |one: IpAddr| {
            ["10.1.1.", "2001:db8:1::", "10.2.0."]
                .iter()
                .any(|net| one.to_string().starts_with(net))
        };
        stage.see_only_from(is_client);
        assert_eq!(alerts_of(&mut stage), []);
    }
}

/// Names are asked for and told here; pages go out here and come back elsewhere.
#[test]
fn clients_of_which_only_some_answers_take_another_way_raise_nothing() {
    let mut stage = Stage::new(9);
    sites::web(&mut stage, 3 * MINUTE);
    let outside = |one: IpAddr| {
        ["198.51.100.", "2001:db8:2::"].iter().any(|net| one.to_string().starts_with(net))
    };
    stage.see_only_from(|one| !outside(one));
    for number in 0..12 {
        let server = SocketAddr::new(host("10.1.0.80", 0), 8080);
        stage.connection(number * 10 * SECOND, host("10.1.1.1", number as u32), server, 1);
    }
    assert_eq!(alerts_of(&mut stage), []);
}

/// Of a tap of one direction only refusals could tell a scan from what is not seen: it takes more ports.
#[test]
fn a_scan_is_found_where_answers_take_another_way() {
    let mut stage = Stage::new(10);
    sites::web(&mut stage, 2 * MINUTE);
    for port in 1..=PORTS {
        let to = SocketAddr::new(host(VICTIM, 0), port);
        stage.attempt(30 * SECOND + u64::from(port) * 20 * MS, scanner(), to, Fate::Silent);
    }
    stage.see_only_from(|one| one == scanner() || one.to_string().starts_with("10.1.1."));
    let alerts = alerts_of(&mut stage);
    let [alert] = &alerts[..] else { panic!("{alerts:#?}") };
    assert_eq!((&*alert.kind, alert.count("silent")), ("vertical", u64::from(PORTS)), "{alert:#?}");
}
