//! Random mixes of scans and ordinary traffic, seen as bad taps see them: no alert without a scan that
//! explains it, and hardly a scan of twice the threshold without its alert.
//!
//! Each seed decides what there is and what becomes of it. `RINGWATCH_TRUTH_SEEDS=1000` tries so many seeds instead
//! of 60, `RINGWATCH_TRUTH_SEED=7` only that one, and tells more.
//!
//! What truth allows, and what it demands:
//!
//! - **Ordinary traffic** raises nothing, whatever the damage: a lost answer is no failure of more than its own
//!   contact, and of what is asked once only so little is lost that it stays below any threshold. File sharing
//!   is not among it: it really fails at many hosts (`quiet.rs`).
//! - **A scan** may raise one alert, of its kind (a vertical may turn out to be part of a decoy, and either may
//!   turn out to be part of a block), once the tap has seen as many failed contacts as its kind needs at the
//!   least; fewer must raise nothing. It must raise it from twice the threshold on.
//!   Twenty-five failed contacts are a slow scan too, in however little time: where a fast kind is not raised,
//!   that is right as well, but not found.
//! - **Loss, repeats, reordering, a late begin**: what counts is what the tap still saw of the probes. A
//!   refusal that was lost leaves a silent contact, which failed too.
//! - **A tap that sees only those who ask** sees no answer at all: everything is silent. Ordinary traffic
//!   shows by its own acknowledgements that it is answered, so only such is there: questions by UDP
//!   and pings that nobody is seen to answer are what a sweep looks like, and no rule can tell them apart.
//!   Thresholds rise threefold where answers are missing while data flows; scans are
//!   demanded from twice of that on. Techniques that only a RST tells from ordinary traffic
//!   must raise nothing.
//! - **A tap that sees only those who answer** sees no attempt. Nothing may be raised.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::collections::BTreeSet;
use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use perf::events::{AlertLife, Events};
use scenarios::ordinary::Fate;
use scenarios::probing::{Pace, Technique, Truth, ports_of, ports_of_hosts};
use scenarios::replayed::Capture;
use scenarios::sites::{self, Site};
use scenarios::{MINUTE, MS, SECOND, Stage, host};
use sensor::config::{Config, EventOutput};

/// What is captured.
const LENGTH: u64 = 4 * MINUTE;
/// A scan takes no longer, so that all of it lies within one window, whatever its panes.
const SCAN_LENGTH: u64 = 40 * SECOND;

/// Ports of each host of a block.
const BLOCK_PORTS: u16 = 20;
/// Ports that the sources of a distributed scan share.
const SHARED_PORTS: u16 = 256;

/// Failed contacts of one source that make a slow scan.
const SLOW_CONTACTS: u64 = 25;

/// Which frames the tap sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tap {
    Both,
    /// Those of clients and scanners.
    OnlyAsking,
    /// Those of servers and of what is scanned.
    OnlyAnswering,
}

/// What a seed makes.
struct Mix {
    stage: Stage,
    scans: Vec<Scan>,
    tap: Tap,
    damage: Vec<String>,
}

struct Scan {
    truth: Truth,
    /// Failed contacts below which no alert is explained.
    least: u64,
    /// Failed contacts of which its kind needs one half.
    enough: u64,
    /// Nothing but a RST tells it from ordinary traffic.
    needs_answer: bool,
}

impl Mix {
    fn new(seed: u64) -> Self {
        let mut stage = Stage::new(seed);
        let tap = match stage.random.below(10) {
            0 => Tap::OnlyAsking,
            1 => Tap::OnlyAnswering,
            _ => Tap::Both,
        };
        let some: &[Site] = match tap {
            Tap::Both => &sites::QUIET,
            _ => &[sites::web, sites::health_checks, sites::port_forwarder],
        };
        for _ in 0..stage.random.between(1, 3) {
            stage.random.pick(some)(&mut stage, LENGTH);
        }
        stage.frames.retain(|passing| passing.time <= LENGTH);
        let count = stage.random.below(4) as u32;
        let scans = (0..count).map(|number| scan(&mut stage, number)).collect();
        let mut mix = Self { stage, scans, tap, damage: Vec::new() };
        mix.harm();
        mix
    }

    fn harm(&mut self) {
        let stage = &mut self.stage;
        match self.tap {
            Tap::Both => {}
            Tap::OnlyAsking => stage.see_only_from(asks),
            Tap::OnlyAnswering => stage.see_only_from(|one| !asks(one)),
        }
        let mut harm = |name: &str, stage: &mut Stage, most: u64, act: fn(&mut Stage, u64)| {
            if stage.random.in_thousand(330) {
                let amount = stage.random.between(1, most);
                act(stage, amount);
                self.damage.push(format!("{name} {amount}"));
            }
        };
        harm("repeat, in a thousand", stage, 30, Stage::repeat);
        harm("lose, in a thousand", stage, 50, Stage::lose);
        harm("reorder, by ms", stage, 5, |stage, ms| stage.reorder(ms * MS));
        harm("begin, at s", stage, 100, |stage, at| stage.begin_at(at * SECOND));
    }

    /// Contacts of a scan that failed before the eyes of the tap: at the least, and at the most. An answer
    /// that the tap did not see makes a failure of a success.
    fn visible_failures(&self, scan: &Scan) -> (u64, u64) {
        let visible = self.stage.visible_contacts(&scan.truth.contacts);
        let all = visible.len() as u64;
        let failed = visible.into_iter().filter(|contact| match scan.truth.end_of(*contact) {
            Fate::Open => false,
            Fate::Refused => true,
            Fate::Silent => !scan.needs_answer,
        });
        let failed = failed.count() as u64;
        match self.tap {
            Tap::OnlyAsking | Tap::OnlyAnswering if scan.needs_answer => (0, 0),
            Tap::OnlyAsking => (failed, all),
            Tap::OnlyAnswering => (0, 0),
            Tap::Both if scan.needs_answer => (failed, failed),
            // Of the answers, no more than one in twenty is lost.
            Tap::Both => (failed, failed + (all - failed).div_ceil(5)),
        }
    }
}

/// Is it a client or a scanner? Of ordinary traffic only that which is there with one-way taps.
fn asks(address: IpAddr) -> bool {
    let networks =
        ["192.0.2.", "2001:db8:99:", "10.1.1.", "2001:db8:1:", "10.2.0.", "10.5.1.", "10.8."];
    let text = address.to_string();
    networks.iter().any(|network| text.starts_with(network))
}

const KINDS: [&str; 10] = [
    "vertical",
    "horizontal",
    "block",
    "stealth",
    "udp",
    "icmp_sweep",
    "arp_sweep",
    "protocol",
    "decoy",
    "distributed",
];

/// A scan of a kind and size that chance decides, from addresses of its own.
fn scan(stage: &mut Stage, number: u32) -> Scan {
    let kind = stage.random.pick(&KINDS);
    let size = match stage.random.below(4) {
        0 => stage.random.between(2, 4),
        1 => stage.random.between(5, 60),
        _ => stage.random.between(60, 120),
    };
    let is_v6 = !matches!(kind, "arp_sweep" | "protocol") && stage.random.in_thousand(250);
    let (sources, targets) =
        if is_v6 { ("2001:db8:99::", "2001:db8:7::") } else { ("192.0.2.0", "198.51.101.0") };
    let (source, target) =
        (host(sources, number * 70), format!("{}", host(targets, number * 5000)));
    // Few hosts with many ports each would be as many vertical scans, with as much right.
    let size = if kind == "block" { 12 + size / 3 } else { size };
    let contacts = match kind {
        "block" => size * u64::from(BLOCK_PORTS),
        "distributed" => u64::from(SHARED_PORTS),
        _ => size,
    };
    let most = SCAN_LENGTH / contacts;
    let at = stage.random.between(5 * SECOND, LENGTH - SCAN_LENGTH - 10 * SECOND);
    let pace = Pace { at, gap: stage.random.between(MS, most) };
    if stage.random.in_thousand(300) {
        for number in 0..20 {
            let server = SocketAddr::new(host("198.51.100.0", number as u32), 443);
            let server = if is_v6 { SocketAddr::new(host(targets, 60_000), 443) } else { server };
            stage.connection(number * 10 * SECOND, source, server, 1);
        }
    }
    let (least, enough) = match kind {
        "stealth" | "protocol" => (5, 20),
        "block" => (10, 100),
        "icmp_sweep" => (10, 30),
        "arp_sweep" => (10, 60),
        "distributed" => (30, 200),
        _ => (10, 20),
    };
    let technique = match kind {
        "stealth" => stage.random.pick(&Technique::STEALTH),
        "udp" => Technique::Udp,
        _ => Technique::Syn,
    };
    let truth = made(stage, (kind, technique), (source, &target), size, pace);
    Scan { truth, least, enough, needs_answer: technique.needs_answer() }
}

/// The frames of a scan of this size.
fn made(
    stage: &mut Stage,
    (kind, technique): (&'static str, Technique),
    (source, base): (IpAddr, &str),
    size: u64,
    pace: Pace,
) -> Truth {
    let target = host(base, 0);
    let style = stage.random.below(3);
    // Of those that answer now and then, a third does.
    let fate = |number: u64| match (style, number % 3) {
        (0, _) => Fate::Refused,
        (1, _) | (_, 1) => Fate::Silent,
        (_, 2) => Fate::Refused,
        _ => Fate::Open,
    };
    let of_port = |contact: SocketAddr| fate(u64::from(contact.port()));
    let first = stage.random.between(1, 50_000) as u16;
    let ports = first..first + size as u16;
    let mut contacts = match kind {
        "horizontal" => ports_of_hosts(base, size as u32, &[first]),
        "block" => {
            ports_of_hosts(base, size as u32, &(first..first + BLOCK_PORTS).collect::<Vec<_>>())
        }
        "distributed" => ports_of(target, first..first + SHARED_PORTS),
        _ => ports_of(target, ports),
    };
    stage.random.shuffle(&mut contacts);
    let hosts: Vec<_> = (0..size as u32).map(|number| host(base, number)).collect();
    let silent = |_| Fate::Silent;
    let several = |count: u32| (0..count).map(|n| host(&source.to_string(), n)).collect::<Vec<_>>();
    match kind {
        "icmp_sweep" => stage.icmp_sweep(source, &hosts, pace, silent),
        "arp_sweep" => {
            let targets: Vec<_> =
                (0..size as u32).map(|n| Ipv4Addr::from(0x0a07_0000 + n)).collect();
            let IpAddr::V4(source) = source else { panic!("{source} cannot send ARP requests") };
            let [.., last] = source.octets();
            stage.arp_sweep(Ipv4Addr::new(10, 8, 0, last), &targets, pace, |_| Fate::Silent)
        }
        "protocol" => {
            let last = size.min(100) as u8;
            stage.protocol_scan(source, target, 0..last, pace, style == 0)
        }
        "decoy" => stage.decoy_scan(&several(6), &contacts, pace, of_port),
        "distributed" => stage.distributed_scan(&several(64), &contacts, pace, of_port),
        "horizontal" => {
            let (one, ends) = (fate(1 + style), (source, &contacts[..]));
            stage.scan(kind, technique, ends, pace, |_| one)
        }
        _ => stage.scan(kind, technique, (source, &contacts), pace, of_port),
    }
}

/// Kinds that an alert about such a scan may have had.
fn stages_of(kind: &str) -> &'static [&'static str] {
    match kind {
        "decoy" => &["vertical", "decoy"],
        "block" => &["vertical", "horizontal", "block"],
        "vertical" => &["vertical"],
        "horizontal" => &["horizontal"],
        "stealth" => &["stealth"],
        "udp" => &["udp"],
        "icmp_sweep" => &["icmp_sweep"],
        "arp_sweep" => &["arp_sweep"],
        "protocol" => &["protocol"],
        _ => &["distributed"],
    }
}

/// Is the alert about this scan, of which the tap saw so many failed contacts?
fn is_about(alert: &AlertLife, scan: &Scan, failures: u64) -> bool {
    let truth = &scan.truth;
    if alert.kinds == ["slow"] {
        let is_by = matches!(&truth.sources[..], [one] if one.to_string() == alert.source);
        return is_by && failures >= SLOW_CONTACTS;
    }
    let is_by = alert.source.is_empty() && matches!(truth.kind, "decoy" | "distributed")
        || truth.sources.iter().any(|source| source.to_string() == alert.source);
    let is_at = match &alert.target {
        Some(target) => truth.target.is_some_and(|one| one.to_string() == *target),
        None => !matches!(truth.kind, "vertical" | "stealth" | "udp" | "decoy" | "distributed"),
    };
    let known: BTreeSet<_> = stages_of(truth.kind).iter().map(|kind| (*kind).to_owned()).collect();
    let is_so = truth.kind != "stealth" || alert.context["technique"] == truth.technique;
    failures >= scan.least
        && is_by
        && is_at
        && is_so
        && alert.kinds.iter().all(|kind| known.contains(kind))
}

/// What a seed gave.
#[derive(Default)]
struct Found {
    demanded: u64,
    missed: Vec<String>,
    unexplained: Vec<String>,
}

fn told(alert: &AlertLife) -> String {
    let AlertLife { kinds, source, target, phases, context, .. } = alert;
    let [ports, hosts, refused, silent] =
        ["distinct_ports", "distinct_hosts", "refused", "silent"].map(|name| &context[name]);
    format!(
        "{kinds:?} {source} -> {target:?} {phases:?} ports {ports}, hosts {hosts}, refused \
         {refused}, silent {silent}, technique {}",
        context["technique"]
    )
}

/// A scan, for the message of a failing test.
fn described(truth: &Truth) -> String {
    let Truth { kind, technique, sources, target, begin, ports, hosts, .. } = truth;
    let [open, refused, silent] =
        [Fate::Open, Fate::Refused, Fate::Silent].map(|fate| truth.count_of(fate));
    format!(
        "{kind} {technique} by {} and {} more of {target:?} from second {} on: ports {ports}, \
         hosts {hosts}, open {open}, refused {refused}, silent {silent}",
        sources[0],
        sources.len() - 1,
        begin / SECOND
    )
}

/// The alerts of the library on these frames, in this process: a thousand runs of the program would take
/// their time.
fn alerts_of(stage: &mut Stage, workers: usize) -> Vec<AlertLife> {
    let capture = Capture::of(stage);
    let file = capture.path().with_extension("json");
    let mut config = Config::without_file();
    config.events.output = EventOutput::File(file.clone());
    config.events.new_connections = false;
    sensor::replay::run(&config, "truth", capture.path(), workers).expect("the capture is whole");
    let text = std::fs::read_to_string(file).expect("there are events");
    let alerts = text.lines().filter(|line| line.contains(r#""event_type":"alert""#));
    Events::parse(&alerts.map(|line| format!("{line}\n")).collect::<String>()).alerts()
}

fn try_seed(seed: u64, is_told: bool) -> Found {
    let mut mix = Mix::new(seed);
    let workers = 1 + (seed % 4) as usize;
    let alerts = alerts_of(&mut mix.stage, workers);
    let setting = format!("seed {seed}, {workers} workers, tap {:?}, {:?}", mix.tap, mix.damage);
    let mut found = Found::default();
    let mut left: Vec<_> = alerts.iter().collect();
    for scan in &mix.scans {
        let (failures, at_most) = mix.visible_failures(scan);
        let Scan { truth, enough, .. } = scan;
        let about = left.iter().position(|alert| is_about(alert, scan, at_most));
        let alert = about.map(|index| left.remove(index));
        let enough = enough * if mix.tap == Tap::Both { 1 } else { 3 };
        let is_found = alert.is_some_and(|alert| alert.kind == truth.kind);
        let what = format!(
            "{setting}: {failures} to {at_most} failures seen of {}, found: {is_found}",
            described(truth)
        );
        if is_told {
            eprintln!("{what}");
        }
        if failures >= enough {
            found.demanded += 1;
            if !is_found {
                let alert = alert.map(told);
                found.missed.push(format!("{what}: {alert:?}"));
            }
        }
    }
    if is_told {
        alerts.iter().for_each(|alert| eprintln!("{}", told(alert)));
    }
    found.unexplained =
        left.into_iter().map(|alert| format!("{setting}: {}", told(alert))).collect();
    found
}

fn number_of(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

#[test]
fn no_alert_is_without_its_scan_and_hardly_a_scan_without_its_alert() {
    let one = number_of("RINGWATCH_TRUTH_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number_of("RINGWATCH_TRUTH_SEEDS").unwrap_or(60),
    };
    let (next, all) = (AtomicU64::new(seeds.start), Mutex::new(Found::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    let found = std::panic::catch_unwind(|| try_seed(seed, one.is_some()));
                    let found = found.unwrap_or_else(|_| panic!("seed {seed} panicked"));
                    let mut all = all.lock().expect("nobody panics with it");
                    all.demanded += found.demanded;
                    all.missed.extend(found.missed);
                    all.unexplained.extend(found.unexplained);
                }
            });
        }
    });
    let Found { demanded, missed, unexplained } = all.into_inner().expect("nobody panicked");
    eprintln!(
        "{demanded} scans demanded, {} missed, {} alerts too many",
        missed.len(),
        unexplained.len()
    );
    let is_enough = missed.len() as u64 * 100 <= demanded;
    assert!(
        unexplained.is_empty() && is_enough,
        "alerts without a scan:\n{}\nscans without their alert, of {demanded}:\n{}",
        unexplained.join("\n"),
        missed.join("\n")
    );
}
