//! Under fire: a scan hidden in a flood, beside connections that were there before.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Scale;
use super::place::{self, Place};
use super::program::Contender;
use super::report::Table;
use crate::events::{AlertLife, Events};
use crate::lab::Namespace;
use crate::process::Process;
use crate::tools;

/// Floods that arrive at 198.19.0.2, with the frames that each has at full scale.
const FLOODS: [(&str, &str); 2] = [
    (
        "SYN from random sources",
        "--kind syn --sources 2**32 --source-ports 2**16 --target-ports 2**16",
    ),
    ("8.4 M sources, 2 SYNs each", "--kind syn --sources 2**23 --target-ports 2 --source-ports 1"),
];

/// Who is scanned meanwhile, and what it does.
const HOSTS: [(&str, &str); 2] = [("10.98.0.7", "refuses"), ("10.98.1.7", "is silent")];

/// Ports of the scan.
const PORTS: u64 = 100;

/// Connections that are there before the flood, to this address.
const CONNECTIONS: usize = 50;
const SERVICE: &str = "10.99.0.2:8080";

/// What was seen under one flood.
struct Outcome {
    events: Events,
    offered: place::Offered,
    resident: [u64; 2],
}

/// Each flood with each scan.
///
/// # Errors
/// The lab cannot be made.
pub fn fire(scale: &Scale) -> Result<String, String> {
    if !tools::require(&["nmap"]) {
        return Err("the section needs nmap (package nmap)".to_owned());
    }
    let mut text = String::from("\n## Under fire\n\n");
    let _ = writeln!(
        text,
        "{} frames of a flood at full speed; {CONNECTIONS} connections, each with a byte both ways in half a second, are \
         there before; a second after the flood has begun: `nmap -n -Pn -sS -T4 --max-retries 1 --max-rate 50 -p \
         1-{PORTS} HOST`. One worker.\n",
        scale.fire_frames
    );
    let mut table = Table::new(&[
        "flood",
        "scanned host",
        "offered Mpps",
        "dropped",
        "alerts of floods",
        "alerts of scans",
        "connections kept whole",
        "resident MiB before, most",
    ]);
    for (flood, options) in FLOODS {
        for (host, does) in HOSTS {
            let place = Place::with_hosts()?;
            let blast = format!("{options} --count {}", scale.fire_frames);
            let outcome = under_fire(&place, &blast, host)?;
            let row = row(&outcome);
            eprintln!("{flood}, {host} {does}: {}", row.join(" | "));
            table.add([flood.to_owned(), format!("{host} {does}")].into_iter().chain(row));
        }
    }
    Ok(text + &table.text())
}

fn under_fire(place: &Place, flood: &str, host: &str) -> Result<Outcome, String> {
    let [generator_cpu, sensor_cpu] = place.processors();
    let (generator, sensor) = (place.lab().generator(), place.lab().sensor());
    let contender = Contender::sensor(place, 1, None);
    let command = contender.command.as_ref().map_err(Clone::clone)?;
    let mut process = place.start(command, &[sensor_cpu]);
    contender.wait_until_it_captures(&mut process);
    let is_over = AtomicBool::new(false);
    let connections = connect(generator, sensor).map_err(|error| format!("{SERVICE}: {error}"))?;
    let (offered, resident) = thread::scope(|scope| {
        let talk = scope.spawn(|| keep_talking(connections, &is_over));
        thread::sleep(Duration::from_secs(2));
        let before = place::resident_kib(process.id());
        let mut blast = place.generate(generator_cpu, flood);
        thread::sleep(Duration::from_secs(1));
        let mut scan = scan(generator, host);
        let mut most = before;
        while blast.is_running() || scan.is_running() {
            most = most.max(place::resident_kib(process.id()));
            thread::sleep(Duration::from_millis(200));
        }
        // Silence is known after three seconds, and an alert is over after a minute.
        thread::sleep(Duration::from_secs(70));
        most = most.max(place::resident_kib(process.id()));
        is_over.store(true, Ordering::Relaxed);
        let talked = talk.join().map_err(|_| "the connections' thread panicked".to_owned())?;
        talked.map_err(|error| format!("a connection broke: {error}"))?;
        Ok::<_, String>((place::offered_by(&mut blast), [before, most]))
    })?;
    thread::sleep(Duration::from_secs(1));
    process.stop(Signal::SIGINT, Duration::from_secs(60));
    let events = std::fs::read_to_string(place.file("eve.json"));
    let events = Events::parse(&events.map_err(|error| format!("no events: {error}"))?);
    Ok(Outcome { events, offered, resident })
}

fn scan(generator: &Namespace, host: &str) -> Process {
    let ports = format!("1-{PORTS}");
    let mut command = std::process::Command::new("nmap");
    command.args(["-n", "-Pn", "-sS", "-T4", "--max-retries", "1", "--max-rate", "50", "-p"]);
    command.args([&ports, host]);
    generator.spawn(&command)
}

/// Both ends of every connection.
fn connect(generator: &Namespace, sensor: &Namespace) -> io::Result<Vec<[TcpStream; 2]>> {
    let listener = sensor.within(|| TcpListener::bind(SERVICE))?;
    let connect = |_| {
        let client = generator.within(|| TcpStream::connect(SERVICE))?;
        let (server, _) = listener.accept()?;
        Ok([client, server])
    };
    (0..CONNECTIONS).map(connect).collect()
}

/// A byte both ways, over and over; closes them at the end.
fn keep_talking(mut connections: Vec<[TcpStream; 2]>, is_over: &AtomicBool) -> io::Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        for [client, server] in &mut connections {
            for (from, to) in [(&*client, &*server), (&*server, &*client)] {
                let mut byte = [7];
                let (mut from, mut to) = (from, to);
                from.write_all(&byte)?;
                to.read_exact(&mut byte)?;
            }
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn row(outcome: &Outcome) -> Vec<String> {
    let Outcome { events, offered, resident } = outcome;
    let ledger = events.ledger();
    let (floods, scans): (Vec<AlertLife>, Vec<AlertLife>) =
        events.alerts().into_iter().partition(|alert| alert.kind.ends_with("_flood"));
    let of_flood = |alert: &AlertLife| {
        let target = alert.target.as_deref().unwrap_or("-");
        format!("{} of {target}, {} packets", alert.kind, alert.count("packets"))
    };
    let of_scan = |alert: &AlertLife| {
        let target = alert.target.as_deref().unwrap_or("-");
        let AlertLife { kind, source, .. } = alert;
        format!("{kind} {source} to {target}, {} ports", alert.count("distinct_ports"))
    };
    let words =
        |list: Vec<String>| if list.is_empty() { "none".to_owned() } else { list.join("; ") };
    let flows = events.ended_flows().into_iter().filter(|flow| flow["dest_port"] == 8080);
    let whole = flows.filter(|event| {
        // A byte and its acknowledgement each way, twice a second, for more than 70 s.
        let packets = |name| event["flow"][name].as_u64().unwrap_or(0);
        packets("pkts_toserver") > 140 && packets("pkts_toclient") > 140
    });
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    vec![
        format!("{:.2}", offered.mpps),
        format!("{} of {}", ledger.kernel_drops(), ledger.kernel_packets()),
        words(floods.iter().map(of_flood).collect()),
        words(scans.iter().map(of_scan).collect()),
        format!("{} of {CONNECTIONS}", whole.count()),
        resident.map(mib).join(", "),
    ]
}
