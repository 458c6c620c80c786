//! From what is known to what is right, wrong or unknown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::facts::{Facts, Known};
use super::xdp::Mode;
use crate::afpacket::{Coalesce, Feature, Rss};

/// What is to be said of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Frames may be lost, changed or counted wrongly because of it.
    Warning,
    /// The system does not say.
    Unknown,
}

/// One item of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; stable.
    pub item: &'static str,
    /// The judgement.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// Why that is so judged; empty where there is nothing to say.
    pub why: String,
    /// The command (or the configuration) that mends it.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(item: &'static str, found: impl Into<String>) -> Self {
        let (found, why) = (found.into(), String::new());
        Self { item, verdict: Verdict::Good, found, why, remedy: None }
    }

    fn warning(item: &'static str, found: impl Into<String>, why: impl Into<String>) -> Self {
        let (found, why) = (found.into(), why.into());
        Self { item, verdict: Verdict::Warning, found, why, remedy: None }
    }

    fn unknown(item: &'static str, why: impl Into<String>) -> Self {
        let (found, why) = ("unknown".to_owned(), why.into());
        Self { item, verdict: Verdict::Unknown, found, why, remedy: None }
    }

    fn because(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    fn mended_by(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// Hash functions of RSS by the kernel's bit. Source: `ETH_RSS_HASH_*` in `include/linux/ethtool.h`.
const TOEPLITZ: u8 = 1;
const XOR: u8 = 2;

/// What is said of hardware that is not there.
const VIRTUAL: &str = "none: no hardware of its own";

/// Smallest frame on the wire with preamble and gap, in bits.
const SMALLEST_FRAME_BITS: u64 = 84 * 8;

/// Judges everything, in the order of the report. `workers` are the CPUs of the workers.
pub(super) fn all(facts: &Facts, workers: &[usize]) -> Vec<Finding> {
    let mut findings = vec![driver(facts), link(facts), mtu(facts), promiscuous(facts), xdp(facts)];
    findings.extend(features(facts));
    findings.extend([
        queues(facts, workers),
        rss_hash(facts),
        rss_table(facts),
        rx_ring(facts),
        pause(facts),
        coalescing(facts),
        irqbalance(facts),
        irq_affinity(facts, workers),
        numa(facts, workers),
    ]);
    findings
}

fn driver(facts: &Facts) -> Finding {
    const ITEM: &str = "driver";
    match &facts.driver {
        Ok(driver) if driver.bus.is_empty() => Finding::good(ITEM, driver.name.clone()),
        Ok(driver) => Finding::good(ITEM, format!("{} at {}", driver.name, driver.bus)),
        Err(_) if facts.is_loopback => Finding::good(ITEM, "loopback"),
        Err(why) => Finding::unknown(ITEM, why),
    }
}

fn link(facts: &Facts) -> Finding {
    const ITEM: &str = "link";
    let name = &facts.interface;
    let link = match &facts.link {
        Ok(link) => link,
        Err(why) => return Finding::unknown(ITEM, why),
    };
    if !link.is_up {
        return Finding::warning(ITEM, "down", "an interface that is down receives nothing")
            .mended_by(format!("ip link set dev {name} up"));
    }
    if !link.has_carrier {
        return Finding::warning(
            ITEM,
            "no carrier",
            "nothing answers at the other end: cable, port",
        );
    }
    let speed = link.speed_mbit.map_or("speed not told".into(), |mbit| format!("{mbit} Mbit/s"));
    let duplex = link.duplex.as_ref().map_or(String::new(), |duplex| format!(", {duplex} duplex"));
    let found = format!("up, {speed}{duplex}");
    if link.duplex.as_deref() == Some("half") {
        return Finding::warning(ITEM, found, "a half-duplex link loses frames to collisions")
            .mended_by(format!("ethtool -s {name} autoneg on"));
    }
    Finding::good(ITEM, found)
}

fn mtu(facts: &Facts) -> Finding {
    const ITEM: &str = "mtu";
    match &facts.link {
        Ok(link) if link.length_errors > 0 => {
            let found = format!("{} bytes, {} length errors", link.mtu, link.length_errors);
            let why =
                "the device dropped frames for their length; a mirror port may carry longer ones";
            let name = &facts.interface;
            Finding::warning(ITEM, found, why).mended_by(format!("ip link set dev {name} mtu 9000"))
        }
        Ok(link) => Finding::good(ITEM, format!("{} bytes", link.mtu)),
        Err(why) => Finding::unknown(ITEM, why),
    }
}

fn promiscuous(facts: &Facts) -> Finding {
    const ITEM: &str = "promiscuous";
    match &facts.link {
        Ok(link) if link.is_promiscuous => Finding::good(ITEM, "already").because(
            "something asked for all frames: another capture, a bridge, or a sensor that runs",
        ),
        Ok(_) => Finding::good(ITEM, "not yet"),
        Err(why) => Finding::unknown(ITEM, why),
    }
}

fn xdp(facts: &Facts) -> Finding {
    const ITEM: &str = "xdp";
    let attached = match &facts.xdp {
        Ok(None) => return Finding::good(ITEM, "none"),
        Ok(Some(attached)) => attached,
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let (mode, switch) = match attached.mode {
        Mode::Driver => ("in the driver", "xdpdrv"),
        Mode::Generic => ("generic", "xdpgeneric"),
        Mode::Hardware => ("in the device", "xdpoffload"),
        Mode::Several => ("in several places", "xdp"),
    };
    let found = format!("program {}, {mode}", attached.program);
    let why = "an XDP program sees frames first; what it drops or redirects reaches no ring";
    Finding::warning(ITEM, found, why)
        .mended_by(format!("ip link set dev {} {switch} off", facts.interface))
}

/// A feature that should be off: name of the item, the kernel's name, that of `ethtool -K`, and why.
const MERGING: [(&str, &str, &str, &str); 3] = [
    (
        "gro",
        "rx-gro",
        "gro",
        "the kernel merges frames before the sensor sees them: sizes and counts are not the wire's",
    ),
    (
        "lro",
        "rx-lro",
        "lro",
        "the device merges frames and rewrites headers before the sensor sees them",
    ),
    (
        "hw-gro",
        "rx-gro-hw",
        "rx-gro-hw",
        "the device merges frames before the sensor sees them: sizes and counts are not the wire's",
    ),
];

fn features(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = MERGING
        .into_iter()
        .map(|(item, kernel, switch, why)| match feature(facts, kernel) {
            Err(unknown) => Finding::unknown(item, unknown),
            Ok(Feature { is_on: false, .. }) => Finding::good(item, "off"),
            Ok(_) if facts.is_loopback => {
                Finding::good(item, "on").because("loopback merges nothing, whatever this says")
            }
            Ok(Feature { is_fixed: true, .. }) => Finding::warning(
                item,
                "on",
                format!("{why}; the driver does not let it be changed"),
            ),
            Ok(_) => Finding::warning(item, "on", why)
                .mended_by(format!("ethtool -K {} {switch} off", facts.interface)),
        })
        .collect();
    findings.push(match feature(facts, "rx-vlan-hw-parse") {
        Err(unknown) => Finding::unknown("rx-vlan-offload", unknown),
        Ok(Feature { is_on, .. }) => Finding::good("rx-vlan-offload", on_off(*is_on))
            .because("the kernel keeps the outer tag beside the frame in either case"),
    });
    findings
}

fn feature<'a>(facts: &'a Facts, name: &str) -> Result<&'a Feature, String> {
    let features = facts.features.as_ref().map_err(Clone::clone)?;
    let found = features.iter().find(|feature| feature.name == name);
    found.ok_or_else(|| format!("this kernel knows no feature {name}"))
}

const fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// Receive queues in use, from the driver, or else as many as there are.
fn rx_queues(facts: &Facts) -> Known<usize> {
    match &facts.channels {
        Ok(channels) if channels.rx + channels.combined > 0 => {
            Ok((channels.rx + channels.combined) as usize)
        }
        _ => facts.rx_queues.clone(),
    }
}

/// Hardware whose settings do not matter, because there is none.
fn is_virtual(facts: &Facts) -> bool {
    facts.link.is_ok() && !facts.has_device
}

fn queues(facts: &Facts, workers: &[usize]) -> Finding {
    const ITEM: &str = "queues";
    let queues = match rx_queues(facts) {
        Ok(queues) => queues,
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let found = format!("{queues} for {} workers", workers.len());
    if queues >= workers.len() || is_virtual(facts) {
        return Finding::good(ITEM, found);
    }
    let channels = match &facts.channels {
        Ok(channels) => channels,
        Err(why) => return Finding::unknown(ITEM, why).because(format!("{found}; {why}")),
    };
    let (switch, most) = match channels.combined_max {
        0 => ("rx", channels.rx_max),
        most => ("combined", most),
    };
    let most = most as usize;
    if most <= queues {
        return Finding::good(ITEM, found).because(
            "the device has no more; the kernel spreads frames over workers all the same",
        );
    }
    let why = "fewer CPUs take frames from the device than there are workers";
    Finding::warning(ITEM, found, why).mended_by(format!(
        "ethtool -L {} {switch} {}",
        facts.interface,
        workers.len().min(most)
    ))
}

/// What stands instead of a judgement on receive side scaling where there is nothing to spread.
fn without_rss(facts: &Facts, item: &'static str) -> Option<Finding> {
    if is_virtual(facts) {
        return Some(Finding::good(item, VIRTUAL));
    }
    match rx_queues(facts) {
        Ok(0 | 1) => Some(Finding::good(item, "one queue: nothing is spread")),
        _ => None,
    }
}

fn rss_hash(facts: &Facts) -> Finding {
    const ITEM: &str = "rss-hash";
    if let Some(finding) = without_rss(facts, ITEM) {
        return finding;
    }
    let rss = match &facts.rss {
        Ok(rss) => rss,
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let function = match rss.function {
        TOEPLITZ => "toeplitz",
        XOR => "xor",
        4 => "crc32",
        0 => "function not told",
        _ => "another function",
    };
    if rss.is_input_symmetric {
        return Finding::good(ITEM, format!("{function}, symmetric input"));
    }
    let split = "the two directions of a connection arrive on different queues: with fanout by CPU \
                 or queue they go to different workers, otherwise from one CPU to another";
    let symmetric_key = || {
        let key: Vec<_> = (0..rss.key.len()).map(|at| ["6d", "5a"][at % 2]).collect();
        format!("ethtool -X {} hkey {}", facts.interface, key.join(":"))
    };
    match rss.function {
        XOR => Finding::good(ITEM, "xor, symmetric"),
        TOEPLITZ | 0 if rss.key.is_empty() => {
            Finding::unknown(ITEM, format!("{function}; the driver does not show its key"))
        }
        TOEPLITZ | 0 if is_symmetric(rss) => {
            Finding::good(ITEM, format!("{function}, symmetric key"))
        }
        TOEPLITZ | 0 => Finding::warning(ITEM, format!("{function}, asymmetric key"), split)
            .mended_by(symmetric_key()),
        _ => Finding::warning(ITEM, function, split)
            .mended_by(format!("ethtool -X {} hfunc toeplitz", facts.interface)),
    }
}

/// A Toeplitz key that repeats every 16 bits: addresses and ports then add up to the same hash in
/// either order.
fn is_symmetric(rss: &Rss) -> bool {
    rss.key.windows(3).all(|bytes| bytes[0] == bytes[2])
}

fn rss_table(facts: &Facts) -> Finding {
    const ITEM: &str = "rss-table";
    if let Some(finding) = without_rss(facts, ITEM) {
        return finding;
    }
    let (rss, queues) = match (&facts.rss, rx_queues(facts)) {
        (Ok(rss), Ok(queues)) => (rss, queues),
        (Err(why), _) => return Finding::unknown(ITEM, why),
        (_, Err(why)) => return Finding::unknown(ITEM, why),
    };
    if rss.table.is_empty() {
        return Finding::unknown(ITEM, "the driver does not show its table");
    }
    let mut entries = vec![0_usize; queues];
    for queue in &rss.table {
        if let Some(count) = entries.get_mut(*queue as usize) {
            *count += 1;
        }
    }
    let used = entries.iter().filter(|count| **count > 0).count();
    let least = entries.iter().min().copied().unwrap_or(0);
    let most = entries.iter().max().copied().unwrap_or(0);
    let found = format!("{} entries over {used} of {queues} queues", rss.table.len());
    if most <= 2 * least {
        return Finding::good(ITEM, found);
    }
    Finding::warning(ITEM, found, "some queues get much more of the traffic than others")
        .mended_by(format!("ethtool -X {} equal {queues}", facts.interface))
}

/// Smallest frames that the line brings in so many microseconds.
fn frames_at_line_rate(facts: &Facts, microseconds: u64) -> Option<u64> {
    let speed = facts.link.as_ref().ok()?.speed_mbit?;
    Some(speed.saturating_mul(microseconds) / SMALLEST_FRAME_BITS)
}

fn rx_ring(facts: &Facts) -> Finding {
    /// Enough where the speed is not known.
    const USUAL: u64 = 1024;
    const ITEM: &str = "rx-ring";
    let ring = match &facts.rx_ring {
        Ok(ring) => ring,
        Err(_) if is_virtual(facts) => return Finding::good(ITEM, VIRTUAL),
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let found = format!("{} of at most {} descriptors", ring.now, ring.max);
    let queues = rx_queues(facts).unwrap_or(1).max(1) as u64;
    let wanted = frames_at_line_rate(facts, 1000).map_or(USUAL, |frames| frames / queues);
    if ring.now >= ring.max || u64::from(ring.now) >= wanted {
        return Finding::good(ITEM, found);
    }
    let why = "it holds less than a millisecond of the smallest frames; more is lost in the device, \
               before the sensor can count it";
    let name = &facts.interface;
    Finding::warning(ITEM, found, why).mended_by(format!("ethtool -G {name} rx {}", ring.max))
}

fn pause(facts: &Facts) -> Finding {
    const ITEM: &str = "pause-frames";
    let pause = match &facts.pause {
        Ok(pause) => pause,
        Err(_) if is_virtual(facts) => return Finding::good(ITEM, VIRTUAL),
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let found = format!("rx {}, tx {}", on_off(pause.rx), on_off(pause.tx));
    if !pause.tx {
        return Finding::good(ITEM, found);
    }
    let why = "when the device is full, it stops the switch, which then drops frames where no \
               counter of this host sees it";
    let name = &facts.interface;
    Finding::warning(ITEM, found, why).mended_by(format!("ethtool -A {name} rx off tx off"))
}

fn coalescing(facts: &Facts) -> Finding {
    /// Longer waits add to the time until an event.
    const MOST_USECS: u32 = 1000;
    /// What drivers for fast devices choose by themselves.
    const USUAL_USECS: u32 = 50;
    const ITEM: &str = "coalescing";
    let coalesce = match &facts.coalesce {
        Ok(coalesce) => coalesce,
        Err(_) if is_virtual(facts) => return Finding::good(ITEM, VIRTUAL),
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let Coalesce { rx_usecs, rx_frames, is_adaptive } = *coalesce;
    let found =
        format!("rx-usecs {rx_usecs}, rx-frames {rx_frames}, adaptive-rx {}", on_off(is_adaptive));
    if is_adaptive {
        return Finding::good(ITEM, found);
    }
    let mend = || format!("ethtool -C {} rx-usecs {USUAL_USECS}", facts.interface);
    let ring = facts.rx_ring.as_ref().map_or(u64::MAX, |ring| u64::from(ring.now));
    let pending = frames_at_line_rate(facts, u64::from(rx_usecs)).unwrap_or(0);
    let pending = if rx_frames == 0 { pending } else { pending.min(u64::from(rx_frames)) };
    if pending > ring && rx_usecs > USUAL_USECS {
        let why = format!("{pending} frames can come between interrupts, and {ring} have room");
        return Finding::warning(ITEM, found, why).mended_by(mend());
    }
    if rx_usecs > MOST_USECS && rx_frames != 1 {
        let why = "frames wait more than a millisecond before the kernel takes them";
        return Finding::warning(ITEM, found, why).mended_by(mend());
    }
    Finding::good(ITEM, found)
}

fn irqbalance(facts: &Facts) -> Finding {
    const ITEM: &str = "irqbalance";
    let has_one_queue = matches!(&facts.interrupts, Ok(interrupts) if interrupts.len() <= 1);
    match &facts.runs_irqbalance {
        Ok(false) => Finding::good(ITEM, "not running"),
        _ if has_one_queue => Finding::good(ITEM, "no set of queues to move about"),
        Ok(true) => {
            let why = "it moves queues to other CPUs while frames come: they change order, and with \
                       fanout by CPU their worker";
            Finding::warning(ITEM, "running", why).mended_by("systemctl disable --now irqbalance")
        }
        Err(why) => Finding::unknown(ITEM, why),
    }
}

fn irq_affinity(facts: &Facts, workers: &[usize]) -> Finding {
    const ITEM: &str = "irq-affinity";
    let interrupts = match &facts.interrupts {
        _ if is_virtual(facts) => return Finding::good(ITEM, VIRTUAL),
        Ok(interrupts) if interrupts.is_empty() => {
            return Finding::unknown(ITEM, "/proc/interrupts names none of this device");
        }
        Ok(interrupts) => interrupts,
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let served: BTreeSet<usize> = interrupts.iter().flat_map(|one| one.cpus.clone()).collect();
    let wanted: BTreeSet<usize> = workers.iter().copied().collect();
    let found = format!("{} queues on CPUs {}", interrupts.len(), list(&served));
    let idle: Vec<usize> = wanted.difference(&served).copied().collect();
    if interrupts.len() <= 1 || idle.is_empty() {
        return Finding::good(ITEM, found);
    }
    if interrupts.len() < wanted.len() && served.is_subset(&wanted) && served.len() > 1 {
        return Finding::good(ITEM, found).because("there are fewer queues than workers");
    }
    let idle: BTreeSet<usize> = idle.into_iter().collect();
    let why = format!(
        "no queue interrupts CPU {}, where a worker reads: frames come from another CPU",
        list(&idle)
    );
    let mut remedy = String::new();
    for (interrupt, cpu) in interrupts.iter().zip(wanted.iter().cycle()) {
        let separator = if remedy.is_empty() { "" } else { "; " };
        let number = interrupt.number;
        // Writing to a String cannot fail.
        let _ = write!(remedy, "{separator}echo {cpu} > /proc/irq/{number}/smp_affinity_list");
    }
    Finding::warning(ITEM, found, why).mended_by(remedy)
}

fn numa(facts: &Facts, workers: &[usize]) -> Finding {
    const ITEM: &str = "numa";
    let node = match &facts.node {
        Ok(Some(node)) => node,
        Ok(None) => return Finding::good(ITEM, "one node"),
        Err(why) => return Finding::unknown(ITEM, why),
    };
    let wanted: BTreeSet<usize> = workers.iter().copied().collect();
    let near: BTreeSet<usize> = node.cpus.iter().copied().collect();
    let found = format!("device on node {}, workers on CPUs {}", node.number, list(&wanted));
    if wanted.is_subset(&near) {
        return Finding::good(ITEM, found);
    }
    let why = "workers on another node reach the device's memory over the link between nodes";
    let cpus: Vec<_> = near.iter().take(wanted.len()).map(ToString::to_string).collect();
    Finding::warning(ITEM, found, why)
        .mended_by(format!("in sensor.toml, [capture]: cpus = [{}]", cpus.join(", ")))
}

/// CPUs as the kernel lists them: `0-3,8`.
fn list(cpus: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let texts = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}
