//! Ordinary traffic raises no alert with the default profile: an hour of each sort, by the clock of the
//! packets.
//!
//! What each sort consists of, and how much of it fails, is said where it is made (`scenarios/sites.rs`).

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use perf::events::AlertLife;
use scenarios::replayed::Capture;
use scenarios::sites::{self, Site};
use scenarios::{HOUR, MINUTE, Stage};

/// The alerts that this traffic raises; the same with one worker and with three.
#[track_caller]
fn alerts_of(seed: u64, length: u64, sites: &[Site]) -> Vec<AlertLife> {
    let mut stage = Stage::new(seed);
    for site in sites {
        site(&mut stage, length);
    }
    stage.frames.retain(|passing| passing.time <= length);
    let frames = stage.frames.len();
    let capture = Capture::of(&mut stage);
    let events = capture.events(1, "");
    assert_eq!(events.ledger().kernel_packets(), frames as u64);
    let alerts = events.alerts();
    assert_eq!(capture.events(3, "").alerts(), alerts);
    alerts
}

#[track_caller]
fn assert_quiet(seed: u64, site: Site) {
    let alerts = alerts_of(seed, HOUR, &[site]);
    assert_eq!(alerts, [], "{alerts:#?}");
}

#[test]
fn people_who_read_pages_over_many_parallel_connections_raise_nothing() {
    assert_quiet(1, sites::web);
}

#[test]
fn a_resolver_and_its_clients_raise_nothing() {
    assert_quiet(2, sites::name_resolution);
}

#[test]
fn clients_and_servers_of_time_raise_nothing() {
    assert_quiet(3, sites::time_service);
}

#[test]
fn health_checks_of_fifty_backends_with_two_of_them_down_raise_nothing() {
    assert_quiet(4, sites::health_checks);
}

#[test]
fn a_host_that_watches_two_hundred_others_of_which_five_refuse_raises_nothing() {
    assert_quiet(5, sites::monitoring);
}

#[test]
fn file_sharing_with_peers_of_which_two_in_five_are_gone_raises_at_most_one_low_alert() {
    assert_at_most_one_low(&alerts_of(6, HOUR, &[sites::file_sharing]));
}

/// Severity 3 is the lowest. File sharing does fail at many hosts, as a slow scan does.
#[track_caller]
fn assert_at_most_one_low(alerts: &[AlertLife]) {
    assert!(alerts.len() <= 1, "{alerts:#?}");
    for alert in alerts {
        assert_eq!((alert.severity, alert.source.as_str()), (3, "10.4.0.7"), "{alert:#?}");
    }
}

#[test]
fn five_hundred_clients_behind_one_address_raise_nothing() {
    assert_quiet(7, sites::address_translation);
}

#[test]
fn a_port_forwarder_that_starts_anew_raises_nothing() {
    assert_quiet(8, sites::port_forwarder);
}

#[test]
fn traceroutes_by_udp_icmp_and_tcp_raise_nothing() {
    assert_quiet(9, sites::traceroutes);
}

#[test]
fn discovery_and_routing_on_a_local_network_raise_nothing() {
    assert_quiet(10, sites::local_chatter);
}

#[test]
fn everything_at_once_raises_at_most_one_low_alert() {
    let all = [&sites::QUIET[..], &[sites::file_sharing]].concat();
    for seed in [11, 12, 13] {
        assert_at_most_one_low(&alerts_of(seed, 15 * MINUTE, &all));
    }
}

#[test]
fn ordinary_traffic_that_is_cut_lost_and_reordered_raises_nothing() {
    for (seed, site) in (20..).zip(sites::QUIET) {
        let mut stage = Stage::new(seed);
        site(&mut stage, 10 * MINUTE);
        stage.begin_at(MINUTE + stage.random.clone().below(MINUTE));
        stage.repeat(20);
        stage.lose(30);
        stage.reorder(5 * scenarios::MS);
        let alerts = Capture::of(&mut stage).events(2, "").alerts();
        assert_eq!(alerts, [], "seed {seed}: {alerts:#?}");
    }
}
