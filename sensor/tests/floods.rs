//! Floods on live interfaces, by hping3: one alert each, and none for what answers them, or for fast traffic
//! of the ordinary kind. Each has network namespaces and a fresh sensor of its own.

use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use perf::events::{AlertLife, Events};
use perf::lab::Lab;
use perf::sensor::Sensor;
use perf::tools;

const TARGET: &str = "10.99.0.2";
const PATIENCE: Duration = Duration::from_secs(20);
/// The port that is open.
const OPEN: u16 = 80;

/// Runs hping3 for some seconds.
fn hping3(lab: &Lab, arguments: &[&str], time: Duration) {
    let mut command = Command::new("hping3");
    command.args(["-q", "-n"]).args(arguments).arg(TARGET);
    let mut flood = lab.generator().spawn(&command);
    thread::sleep(time);
    assert!(flood.is_running(), "hping3 ended by itself{}", flood.describe());
    let _ = flood.stop(Signal::SIGINT, PATIENCE);
}

fn is_flood(alert: &AlertLife) -> bool {
    alert.kind.ends_with("_flood")
}

/// The one alert of a run, which is a flood of the target, and was told as a whole.
fn only_flood(events: &Events, kind: &str) -> AlertLife {
    let alerts = events.alerts();
    let [alert] = &alerts[..] else { panic!("{alerts:#?}") };
    assert_eq!((alert.kind.as_str(), alert.source.as_str()), (kind, ""));
    assert_eq!(alert.target.as_deref(), Some(TARGET));
    assert_eq!(alert.phases.last().map(String::as_str), Some("close"));
    alert.clone()
}

/// One flood of SYNs: how many sources it seems to have.
fn syn_flood(workers: u16, port: u16, more: &[&str]) -> Option<u64> {
    if !tools::require(&["hping3"]) {
        return None;
    }
    let lab = Lab::new()?;
    let listener = lab.sensor().within(|| TcpListener::bind((TARGET, OPEN)));
    assert!(listener.is_ok(), "{listener:?}");
    let mut sensor = Sensor::start(lab.sensor(), "s0", workers, Sensor::SMALL);
    let port = port.to_string();
    hping3(&lab, &[&["--flood", "-S", "-p", &port], more].concat(), Duration::from_secs(5));
    let events = sensor.stop(Signal::SIGINT);
    let flood = only_flood(&events, "syn_flood");
    let (packets, peak) = (flood.count("packets"), flood.count("peak_pps"));
    assert!(packets > 2000 && peak > 500 && packets >= peak, "{:#}", flood.context);
    assert_eq!(flood.count("distinct_ports"), 1, "{:#}", flood.context);
    // What the kernel offered is what hping3 sent and what was answered.
    let ledger = events.ledger();
    assert!(packets <= ledger.kernel_packets() * 11 / 10, "{packets} of {ledger:#?}");
    Some(flood.count("distinct_sources"))
}

#[test]
fn a_syn_flood_of_an_open_port_is_one_alert() {
    for workers in [1, 2] {
        let sources = syn_flood(workers, OPEN, &[]);
        assert!(sources.is_none_or(|sources| sources == 1), "{sources:?}");
    }
}

#[test]
fn a_syn_flood_of_a_closed_port_is_one_alert_and_its_resets_are_none() {
    for workers in [1, 2] {
        let sources = syn_flood(workers, OPEN + 1, &[]);
        assert!(sources.is_none_or(|sources| sources == 1), "{sources:?}");
    }
}

#[test]
fn a_syn_flood_from_random_sources_is_one_alert() {
    for (workers, port) in [(1, OPEN), (2, OPEN + 1)] {
        let sources = syn_flood(workers, port, &["--rand-source"]);
        assert!(sources.is_none_or(|sources| sources > 1000), "{sources:?}");
    }
}

/// A flood of another kind than SYN, with rates that a test machine reaches.
fn other_flood(kind: &str, arguments: &[&str]) {
    if !tools::require(&["hping3"]) {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let configuration = format!(
        "{}[detect]\nudp_flood_rate = 3000\nicmp_flood_rate = 3000\nrst_flood_rate = 3000\n\
         fragment_flood_rate = 3000\nflood_learning = '2s'\n",
        Sensor::SMALL
    );
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
    // Time to learn that nothing is usual.
    thread::sleep(Duration::from_secs(4));
    hping3(&lab, arguments, Duration::from_secs(5));
    let events = sensor.stop(Signal::SIGINT);
    let flood = only_flood(&events, kind);
    assert_eq!(flood.context["sources"], serde_json::json!(["10.99.0.1"]));
}

#[test]
fn a_flood_of_datagrams_is_one_alert() {
    other_flood("udp_flood", &["--flood", "--udp", "-p", "5000"]);
}

#[test]
fn a_flood_of_datagrams_to_ever_other_ports_is_one_alert_and_no_scan() {
    other_flood("udp_flood", &["--flood", "--udp", "-p", "++5000"]);
}

#[test]
fn a_flood_of_requests_for_an_echo_is_one_alert_and_the_replies_are_none() {
    other_flood("icmp_flood", &["--flood", "--icmp"]);
}

#[test]
fn a_flood_of_resets_is_one_alert() {
    other_flood("rst_flood", &["--flood", "-R", "-p", "5000"]);
}

#[test]
fn fast_ordinary_traffic_and_fast_scans_are_no_floods() {
    if !tools::require(&["iperf3", "nmap", "hping3"]) {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let configuration = format!("{}[detect]\nflood_learning = '1s'\n", Sensor::SMALL);
    let mut sensor = Sensor::start(lab.sensor(), "s0", 2, &configuration);
    thread::sleep(Duration::from_secs(3));
    let mut server = lab.sensor().spawn(Command::new("iperf3").args(["-s", "--forceflush"]));
    server.wait_for_line("listening", PATIENCE);
    let near = lab.generator();
    // A gigabit of datagrams, and as much the other way, in one stream each.
    near.run("iperf3", &["-c", TARGET, "-u", "-b", "900M", "-t", "4"]);
    near.run("iperf3", &["-c", TARGET, "-u", "-b", "900M", "-t", "4", "-R"]);
    near.run("iperf3", &["-c", TARGET, "-t", "3", "-P", "8"]);
    near.run("hping3", &["-q", "-n", "--icmp", "-i", "u2000", "-c", "1000", TARGET]);
    near.run("nmap", &["-n", "-Pn", "-T5", "--min-rate", "20000", "-sS", "-p-", TARGET]);
    let events = sensor.stop(Signal::SIGINT);
    let alerts = events.alerts();
    assert!(!alerts.iter().any(is_flood), "{alerts:#?}");
    // The scan was seen, so nothing was silent for want of packets.
    assert!(alerts.iter().any(|alert| alert.kind == "vertical"), "{alerts:#?}");
}
