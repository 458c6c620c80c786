//! How long it takes from the frame that makes a scan one to the alert on disk.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use super::Scale;
use super::place::Place;
use super::program::Contender;
use super::report::Table;
use crate::frames::{self, ACK, RST, SYN};
use crate::inject::Injector;

/// Ports that each scanner attempts, all refused: as many as make a vertical scan.
const PORTS: u16 = 10;

/// Time between two scans: no multiple of a tick, so that they end at all times of one.
const GAP: Duration = Duration::from_millis(137);

/// Scans by one source after the other. Each is over with the refusal that crosses the threshold; the clock
/// stops when the file of events has the alert.
///
/// # Errors
/// The lab cannot be made.
pub fn alerts(scale: &Scale) -> Result<String, String> {
    let place = Place::with_hosts()?;
    let contender = Contender::sensor(&place, 1, None);
    let command = contender.command.as_ref().map_err(Clone::clone)?;
    let mut process = place.start(command, &[place.processors()[1]]);
    contender.wait_until_it_captures(&mut process);
    let mut injector = Injector::within(place.lab().generator(), "g0");
    let events = File::open(place.file("eve.json"));
    let mut events = BufReader::new(events.map_err(|error| format!("no events: {error}"))?);
    let mut delays = Vec::new();
    for scan in 0..scale.scans {
        let scanner = Ipv4Addr::from_bits(0xc612_0000 + scan);
        for frame in scan_by(scanner) {
            injector.send(&frame).map_err(|error| format!("cannot send: {error}"))?;
        }
        let crossed = SystemTime::now();
        let on_disk = wait_for_alert(&mut events, scanner)?;
        delays.push(on_disk.duration_since(crossed).unwrap_or_default());
        thread::sleep(GAP);
    }
    process.stop(Signal::SIGINT, Duration::from_secs(60));
    delays.sort_unstable();
    let mut text = String::from("\n## Alerts\n\n");
    let _ = writeln!(
        text,
        "{} scans of {PORTS} refused ports, one after the other; time from the last refusal, sent, until the file of events \
         has the alert, looked at every millisecond.\n",
        delays.len()
    );
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    let cell = |delay: Duration| format!("{:.0}", delay.as_secs_f64() * 1e3);
    let mut table = Table::new(&["least, ms", "median, ms", "99 of 100, ms", "most, ms"]);
    let row = [at(0.0), at(0.5), at(0.99), at(1.0)].map(cell);
    eprintln!("{}", row.join(" | "));
    table.add(row);
    Ok(text + &table.text())
}

fn scan_by(scanner: Ipv4Addr) -> impl Iterator<Item = Vec<u8>> {
    let ends = move |port| {
        let source = SocketAddr::new(scanner.into(), 40_000);
        (source, SocketAddr::new(Ipv4Addr::new(198, 51, 100, 7).into(), port))
    };
    (1..=PORTS).flat_map(move |port| {
        let (source, target) = ends(port);
        [frames::tcp(source, target, SYN, b""), frames::tcp(target, source, RST | ACK, b"")]
    })
}

/// When the file of events first had the alert about this source.
fn wait_for_alert(events: &mut BufReader<File>, scanner: Ipv4Addr) -> Result<SystemTime, String> {
    let wanted = format!("\"src_ip\":\"{scanner}\"");
    let mut text = String::new();
    for _ in 0..10_000 {
        events.read_to_string(&mut text).map_err(|error| format!("no events: {error}"))?;
        let now = SystemTime::now();
        let is_it =
            |line: &str| line.contains("\"event_type\":\"alert\"") && line.contains(&wanted);
        if text.lines().any(is_it) {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(format!("no alert about {scanner} within ten seconds"))
}
