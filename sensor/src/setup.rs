//! From the configuration and the machine to what each part of the sensor is made with.

use std::path::PathBuf;

use packet::Address;
use packet::frame::LinkType;
use packet::libpcap::Program;
use trust::{FileError, Identity, SensorTls};

use crate::afpacket::{Fanout, Interface, OpenError, PeerRule, RingConfig, Scope};
use crate::analyse::FlowSettings;
use crate::config::{Capture, Config, Detect, ExportFrames, FanoutMode, Flow};
use crate::detect::{AllowList, DetectorConfig};
use crate::evidence::ContactTable;
use crate::filter::{Compiler, FilterError, RingFilter};
use crate::flow::Timeouts;
use crate::host;
use crate::interfaces::{InterfaceNames, PatternError, Patterns};

/// What stands against a start, before anything was started.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Nothing to capture on.
    #[error("no interface is named: use -i IFACE or capture.interface; there are {}", existing.join(", "))]
    NoInterface {
        /// Names of the interfaces that exist.
        existing: Vec<String>,
    },
    /// All interfaces that are named are excluded as well.
    #[error("capture.exclude leaves none of the interfaces {}", named.join(", "))]
    AllExcluded {
        /// The interfaces.
        named: Vec<String>,
    },
    /// What is named is no name of an interface and no glob.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// An interface cannot be captured on.
    #[error(transparent)]
    Interface(#[from] OpenError),
    /// A worker is to run where it may not.
    #[error("capture.cpus: CPU {cpu} is not usable; usable are {usable:?}")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// CPUs that this process may use.
        usable: Vec<usize>,
    },
    /// The rings would be too small to work.
    #[error(
        "capture.ring_mib = {ring_mib} is too little for {rings} rings: \
         each needs {least_kib} KiB, {least_mib} MiB in all"
    )]
    RingTooSmall {
        /// Memory of all rings.
        ring_mib: u32,
        /// How many rings.
        rings: usize,
        /// What one needs.
        least_kib: u32,
        /// What all need.
        least_mib: u32,
    },
    /// The rings would take memory that the host needs.
    #[error(
        "capture.ring_mib = {ring_mib} is more than a quarter of this host's memory, \
         {memory_mib} MiB; set it to {most_mib} at most",
        most_mib = memory_mib / 4
    )]
    RingTooLarge {
        /// Memory of all rings.
        ring_mib: u32,
        /// Memory of the host, or what the control group leaves of it.
        memory_mib: u64,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] FileError),
    /// The configured name is another one than that of the certificate.
    #[error(
        "sensor.name = {name} is not the name in {certificate}, which is {certified}; \
         leave it out, or issue a certificate for it"
    )]
    Name {
        /// The configured name.
        name: String,
        /// The certificate.
        certificate: PathBuf,
        /// The name in it.
        certified: String,
    },
}

/// Blocks of a ring: one is read while others fill.
const LEAST_BLOCKS: u32 = 4;
/// At low rates every retire time uses up a block, however empty: a reader that is held up for half
/// a second must find blocks left.
const STALL_TOLERANCE_MS: u32 = 500;
/// Sockets that are reserved at most: each is a file descriptor.
const MOST_RESERVED: usize = 4096;
/// Smallest block: it holds the largest frame that the kernel puts together, 64 KiB and headers.
const LEAST_BLOCK_KIB: u32 = 128;

/// What is captured on.
#[derive(Clone, Debug)]
pub enum Captured {
    /// Interfaces that exist, each with a ring for each worker.
    Named(Vec<Interface>),
    /// Whatever interfaces match, now or later, with one ring for each worker.
    Matching(Patterns),
}

impl Captured {
    /// The names under which frames are counted: one for each ring of a worker.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Named(interfaces) => interfaces.iter().map(|one| one.name.clone()).collect(),
            Self::Matching(patterns) => vec![patterns.name()],
        }
    }

    /// What those match that are captured together under one name; `None` where each has its own.
    #[must_use]
    pub fn patterns(&self) -> Option<&Patterns> {
        match self {
            Self::Named(_) => None,
            Self::Matching(patterns) => Some(patterns),
        }
    }

    /// What the rings of each of these listen to.
    #[must_use]
    pub fn scopes(&self) -> Vec<Scope> {
        match self {
            Self::Named(interfaces) => interfaces.iter().cloned().map(Scope::One).collect(),
            Self::Matching(_) => vec![Scope::All { excluded: Vec::new() }],
        }
    }

    /// The ids that frames begin with. Those of named interfaces are their places.
    #[must_use]
    pub fn interface_names(&self) -> InterfaceNames {
        match self {
            Self::Named(interfaces) => {
                InterfaceNames::new(interfaces.iter().map(|one| (one.name.as_str(), one.link)))
            }
            Self::Matching(patterns) => {
                // In the order of `PlaceMap::ETHERNET` and `PlaceMap::RAW`.
                let links = [LinkType::ETHERNET, LinkType::RAW];
                InterfaceNames::new(links.map(|link| (patterns.name(), link)))
            }
        }
    }
}

/// What to capture on. Named interfaces are looked up; a glob among the names may match nothing yet.
///
/// # Errors
/// None is named, or one does not exist; both list those that do. All are excluded. A name or glob
/// cannot be one.
pub fn captured(capture: &Capture) -> Result<Captured, SetupError> {
    let named = &capture.interfaces;
    if named.is_empty() {
        return Err(SetupError::NoInterface { existing: Interface::names().unwrap_or_default() });
    }
    let patterns = Patterns::new(named, &capture.exclude)?;
    if patterns.has_glob() {
        return Ok(Captured::Matching(patterns));
    }
    let wanted = named.iter().filter(|name| !patterns.excludes(name));
    let mut found: Vec<Interface> =
        wanted.map(|name| Interface::find(name)).collect::<Result<_, _>>()?;
    if found.is_empty() {
        return Err(SetupError::AllExcluded { named: named.clone() });
    }
    let mut seen = std::collections::HashSet::new();
    // The same interface twice, under whatever name, would count every frame twice.
    found.retain(|interface| seen.insert(interface.index));
    Ok(Captured::Named(found))
}

/// How many rings a worker has, as far as that can be told without a look at the system.
///
/// # Errors
/// A name or glob cannot be one.
pub fn rings_of_worker(capture: &Capture) -> Result<usize, SetupError> {
    let patterns = Patterns::new(&capture.interfaces, &capture.exclude)?;
    Ok(if patterns.has_glob() { 1 } else { capture.interfaces.len().max(1) })
}

/// The CPU of each worker.
///
/// # Errors
/// A configured CPU is not one that this process may use.
pub fn cpus(capture: &Capture) -> Result<Vec<usize>, SetupError> {
    let usable: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    if let Some(cpu) = capture.cpus.iter().find(|cpu| !usable.contains(cpu)) {
        return Err(SetupError::Cpu { cpu: *cpu, usable });
    }
    let chosen = if capture.cpus.is_empty() { &usable } else { &capture.cpus };
    let workers = capture.workers.unwrap_or(chosen.len()).max(1);
    // More workers than CPUs share them; a system that names no CPU has at least the first.
    Ok((0..workers)
        .map(|worker| chosen.get(worker % chosen.len().max(1)).copied().unwrap_or(0))
        .collect())
}

/// Sizes of each ring: the memory of the process shared evenly, blocks small enough that there are
/// many.
///
/// # Errors
/// There is not enough memory for the smallest rings, or it is more than a quarter of the host's.
pub fn ring(capture: &Capture, rings: usize) -> Result<RingConfig, SetupError> {
    let &Capture { ring_mib, block_kib, retire_ms, promiscuous, .. } = capture;
    if let Some(memory_mib) = memory_mib().filter(|all| u64::from(ring_mib) > all / 4) {
        return Err(SetupError::RingTooLarge { ring_mib, memory_mib });
    }
    let rings_u64 = rings.max(1) as u64;
    // At most 64 GiB in KiB, divided: fits.
    let ring_kib = u32::try_from(u64::from(ring_mib) * 1024 / rings_u64).unwrap_or(u32::MAX);
    let wanted_blocks = STALL_TOLERANCE_MS.div_ceil(retire_ms).max(LEAST_BLOCKS);
    let mut block_kib = block_kib.next_power_of_two();
    while block_kib > LEAST_BLOCK_KIB && ring_kib / block_kib < wanted_blocks {
        block_kib /= 2;
    }
    let block_count = ring_kib / block_kib;
    if block_count < LEAST_BLOCKS {
        let least_kib = LEAST_BLOCKS * LEAST_BLOCK_KIB;
        let least_mib = (u64::from(least_kib) * rings_u64).div_ceil(1024);
        let least_mib = u32::try_from(least_mib).unwrap_or(u32::MAX);
        return Err(SetupError::RingTooSmall { ring_mib, rings, least_kib, least_mib });
    }
    let block_bytes = block_kib * 1024;
    Ok(RingConfig {
        block_bytes,
        block_count,
        least_blocks: LEAST_BLOCKS,
        retire_ms,
        snaplen: WHOLE_FRAME,
        promiscuous,
    })
}

/// The filter of each ring of a worker, in the order of [`Captured::names`].
///
/// # Errors
/// See [`FilterError`]: the expression makes no sense for one of these link types.
pub fn filters(config: &Config, captured: &Captured) -> Result<Vec<RingFilter>, FilterError> {
    match captured {
        Captured::Matching(_) => {
            // A ring on all interfaces goes by the hardware of each frame, whatever it is.
            let program = filter_for_all(&config.capture)?;
            Ok(vec![RingFilter::new(vec![(LinkType::ETHERNET, Ok(program))])])
        }
        Captured::Named(interfaces) => {
            filters_by_link(config, interfaces.iter().map(|one| one.link))
        }
    }
}

/// The filter of a ring on each of these interfaces, whose link types are given.
pub(crate) fn filters_by_link(
    config: &Config,
    links: impl IntoIterator<Item = LinkType>,
) -> Result<Vec<RingFilter>, FilterError> {
    let compiler = config.capture.filter.as_ref().map(Compiler::new).transpose()?;
    let compile = |link| compiler.as_ref().map(|it| it.for_ring(link, WHOLE_FRAME)).transpose();
    let is_exported = config.uplink.is_some() && config.export.frames != ExportFrames::None;
    let filter = |link: LinkType| {
        let mut known = vec![(link, Ok(compile(link)?))];
        for other in [LinkType::ETHERNET, LinkType::RAW].into_iter().filter(|one| *one != link) {
            let program = if is_exported {
                Err(format!("the collector was told link type {} for its frames", link.0))
            } else {
                compile(other).map_err(|error| error.to_string())
            };
            known.push((other, program));
        }
        Ok(RingFilter::new(known))
    };
    links.into_iter().map(filter).collect()
}

/// The filter of rings on all interfaces; `None` where all frames are wanted.
///
/// # Errors
/// See [`FilterError`].
pub fn filter_for_all(capture: &Capture) -> Result<Option<Program>, FilterError> {
    let compile = |expression| Compiler::new(expression)?.for_all(WHOLE_FRAME);
    capture.filter.as_ref().map(compile).transpose()
}

/// May the directions of a flow come to different ones of so many workers?
#[must_use]
pub fn splits_flows(config: &Config, workers: usize) -> bool {
    matches!(fanout(config, workers), Some(Fanout::Cpu | Fanout::Queue))
}

/// How frames are dealt to so many workers; one gets them all.
#[must_use]
pub fn fanout(config: &Config, workers: usize) -> Option<Fanout> {
    let mode = match config.capture.fanout {
        FanoutMode::Hash => Fanout::Hash,
        FanoutMode::Cpu => Fanout::Cpu,
        FanoutMode::Queue => Fanout::Queue,
        FanoutMode::Peer if config.detect.home_networks.is_empty() => {
            Fanout::Peer(PeerRule::Direction)
        }
        FanoutMode::Peer => {
            let home = config.detect.home_networks.iter().map(|network| network.parts());
            Fanout::Peer(PeerRule::Outside(home.collect()))
        }
    };
    (workers > 1).then_some(mode)
}

/// Packet sockets to make at the start: those of the first rings, and a reserve for later ones.
#[must_use]
pub fn reserve_sockets(capture: &Capture, rings: usize) -> usize {
    rings + capture.reserve_sockets.unwrap_or((rings + 4).min(MOST_RESERVED))
}

/// Memory that this process may use: that of the host, or less if its control group has a limit.
fn memory_mib() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo")
        .and_then(|text| text.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map(|kib| kib / 1024);
    let group = read("/proc/self/cgroup")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned)))
        .and_then(|group| read(&format!("/sys/fs/cgroup{group}/memory.max")))
        .and_then(|text| text.trim().parse::<u64>().ok())
        .map(|bytes| bytes >> 20);
    total.into_iter().chain(group).min()
}

/// More than any frame has: the kernel keeps what fits a block.
const WHOLE_FRAME: u32 = 0x4_0000;

/// How long a reader may be held up before a ring of this size drops frames at a low rate.
#[must_use]
pub const fn stall_tolerance_ms(ring: &RingConfig) -> u32 {
    ring.block_count * ring.retire_ms
}

/// For how many milliseconds the rings of an interface take in what comes at a rate, before a frame is
/// read. `bytes` is that of all of them together.
#[must_use]
pub const fn line_rate_ms(bytes: u64, megabits_per_second: u64) -> u64 {
    // Millions of bits a second are thousands of bits a millisecond.
    bytes.saturating_mul(8)
        / (if megabits_per_second == 0 { 1 } else { megabits_per_second * 1000 })
}

/// The speed that an interface says it has, in Mbit/s; many virtual ones say none.
#[must_use]
pub fn link_speed(interface: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?;
    text.trim().parse().ok().filter(|speed| *speed > 0)
}

/// What the detector is made with: half the memory of evidence. A live sensor does not suspect its
/// own host; a file has none. Both directions of a flow come to one worker.
#[must_use]
pub fn detector(detect: &Detect, key: u64, is_live: bool) -> DetectorConfig {
    let own = if is_live { host::addresses() } else { Vec::new() };
    DetectorConfig {
        profile: detect.profile,
        thresholds: detect.thresholds,
        networks: detect.networks.clone(),
        window: detect.window,
        silent_after: detect.silent_after,
        close_after: detect.close_after,
        memory_mib: detect.memory_mib / 2,
        allow: AllowList::new(detect.allow.clone(), own.into_iter().map(Address::from).collect()),
        floods: detect.floods.clone(),
        splits_flows: false,
        key,
    }
}

/// New contacts that a worker's table takes between two publishes: the other half of the memory of
/// evidence, shared evenly.
#[must_use]
pub fn contacts(detect: &Detect, workers: usize) -> usize {
    let bytes = ((detect.memory_mib as usize) << 20) / 2 / workers.max(1);
    let mut contacts = 64;
    while contacts < 1 << 20 && ContactTable::memory(contacts * 2) <= bytes {
        contacts *= 2;
    }
    contacts
}

/// What a worker's table of flows is made with: the flows shared evenly. `None`: there is none. Detection needs it,
/// whether flows are told or not.
#[must_use]
pub fn flows(config: &Config, workers: usize) -> Option<FlowSettings> {
    let Flow { flows, tcp_new, tcp_established, tcp_closed, new, established } = config.flow;
    (flows > 0).then(|| FlowSettings {
        flows: (flows as usize).div_ceil(workers.max(1)),
        grows: false,
        timeouts: Timeouts::new([new, established, tcp_closed, tcp_new, tcp_established]),
        per_second: config.events.flows.then_some(config.events.flows_per_second),
    })
}

/// Says what is not found, if there is no table of flows.
pub fn warn_without_flows(config: &Config) {
    if config.flow.flows == 0 {
        tracing::warn!(
            "no table of flows (flow.flows = 0): scans by UDP, ACK, FIN+ACK and of IP protocols are not found, nor floods \
             of SYN to open ports; a tap of one direction is not recognised"
        );
    }
}

/// The name of this sensor: that of its certificate, else the configured one, else the host's.
///
/// # Errors
/// The certificates cannot be used, or name another sensor than the configuration.
pub fn sensor_name(config: &Config) -> Result<String, SetupError> {
    let configured = config.sensor_name.clone();
    let Some(uplink) = &config.uplink else {
        return Ok(if configured.is_empty() { host::name() } else { configured });
    };
    let certified = SensorTls::load(&uplink.tls)?.name().to_owned();
    if !configured.is_empty() && configured != certified {
        let certificate = uplink.tls.certificate.clone();
        return Err(SetupError::Name { name: configured, certificate, certified });
    }
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Uplink;

    fn capture(ring_mib: u32) -> Capture {
        Capture { ring_mib, ..Config::without_file().capture }
    }

    #[test]
    fn blocks_shrink_until_the_ring_bears_half_a_second() {
        let one = ring(&capture(256), 1).unwrap();
        assert_eq!((one.block_bytes, one.block_count), (1 << 20, 256));
        let many = ring(&capture(256), 16).unwrap();
        assert_eq!((many.block_bytes, many.block_count), (256 << 10, 64));
        assert!(stall_tolerance_ms(&many) >= 500);
    }

    #[test]
    fn too_little_memory_is_refused_with_what_is_needed() {
        let said = ring(&capture(1), 4).unwrap_err().to_string();
        assert_eq!(
            said,
            "capture.ring_mib = 1 is too little for 4 rings: each needs 512 KiB, 2 MiB in all"
        );
        assert_eq!(ring(&capture(1), 2).unwrap().block_count, 4);
    }

    #[test]
    fn rings_above_a_quarter_of_the_memory_are_refused() {
        let memory = u32::try_from(memory_mib().unwrap()).unwrap();
        let said = ring(&capture(memory / 4 + 1), 1).unwrap_err().to_string();
        assert!(said.contains("is more than a quarter of this host's memory"), "{said}");
    }

    #[test]
    fn one_worker_needs_no_group_and_home_networks_make_the_peer_the_other_side() {
        let mut config = Config::without_file();
        assert_eq!((fanout(&config, 1), fanout(&config, 2)), (None, Some(Fanout::Hash)));
        config.capture.fanout = FanoutMode::Peer;
        assert_eq!(fanout(&config, 2), Some(Fanout::Peer(PeerRule::Direction)));
        config.detect.home_networks =
            vec!["10.0.0.0/8".parse().unwrap(), "fd00::/7".parse().unwrap()];
        let home = [("10.0.0.0", 8), ("fc00::", 7)]
            .map(|(address, length)| (address.parse::<std::net::IpAddr>().unwrap(), length));
        let expected = Fanout::Peer(PeerRule::Outside(home.to_vec()));
        assert_eq!(fanout(&config, 2), Some(expected));
    }

    #[test]
    fn the_reserve_bears_a_new_ring_for_each_and_more() {
        assert_eq!(reserve_sockets(&capture(64), 4), 12);
        let one = Capture { reserve_sockets: Some(1), ..capture(64) };
        assert_eq!(reserve_sockets(&one, 4), 5);
    }

    #[test]
    fn a_ring_of_125_megabytes_holds_a_second_of_a_gigabit() {
        assert_eq!(
            (line_rate_ms(125_000_000, 1000), line_rate_ms(125_000_000, 10_000)),
            (1000, 100)
        );
        assert_eq!(link_speed("lo"), None);
    }

    #[test]
    fn an_interface_named_twice_is_captured_once() {
        let twice = Capture { interfaces: vec!["lo".into(), "lo".into()], ..capture(1) };
        assert_eq!(captured(&twice).unwrap().names(), ["lo"]);
    }

    #[test]
    fn a_glob_makes_one_ring_of_all_and_may_match_nothing() {
        let interfaces = vec!["nosuch*".into(), "lo".into()];
        let globs = Capture { interfaces, ..capture(1) };
        let captured = captured(&globs).unwrap();
        assert_eq!(captured.names(), ["nosuch*,lo"]);
        assert_eq!(captured.scopes(), [Scope::All { excluded: Vec::new() }]);
        assert_eq!(rings_of_worker(&globs).unwrap(), 1);
        let declared = captured.interface_names().declaration(0, 9);
        let links: Vec<u16> = declared.iter().map(|one| one.linktype).collect();
        assert_eq!(links, [LinkType::ETHERNET.0, LinkType::RAW.0]);
    }

    #[test]
    fn names_that_are_excluded_are_left_out_until_none_is_left() {
        let exclude = vec!["no*".into()];
        let interfaces: Vec<String> = vec!["lo".into(), "nosuch0".into()];
        let named = Capture { interfaces: interfaces.clone(), exclude, ..capture(1) };
        assert_eq!(captured(&named).unwrap().names(), ["lo"]);
        let none = Capture { interfaces, exclude: vec!["*".into()], ..capture(1) };
        let error = captured(&none).unwrap_err().to_string();
        assert_eq!(error, "capture.exclude leaves none of the interfaces lo, nosuch0");
    }

    #[test]
    fn frames_are_not_exported_with_another_link_type_than_the_collector_was_told() {
        let mut config = Config::without_file();
        let filter = |config: &Config| filters_by_link(config, [LinkType::RAW]).unwrap().remove(0);
        config.export.frames = ExportFrames::All;
        assert!(matches!(filter(&config).for_link(LinkType::ETHERNET), Ok(None)), "no uplink");
        config.uplink = Some(Uplink {
            collectors: Vec::new(),
            tls: trust::Files {
                ca: PathBuf::new(),
                certificate: PathBuf::new(),
                key: PathBuf::new(),
                crl: None,
            },
            expiry_warning_days: 14,
        });
        assert!(matches!(filter(&config).for_link(LinkType::RAW), Ok(None)));
        let reason = filter(&config).for_link(LinkType::ETHERNET).unwrap_err().to_owned();
        assert_eq!(reason, "the collector was told link type 101 for its frames");
        config.export.frames = ExportFrames::None;
        assert!(matches!(filter(&config).for_link(LinkType::ETHERNET), Ok(None)));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        let wrong = Capture { cpus: vec![4096], ..capture(1) };
        assert!(cpus(&wrong).unwrap_err().to_string().starts_with("capture.cpus: CPU 4096 is not"));
    }

    #[test]
    fn the_tables_of_all_workers_stay_within_their_memory() {
        let detect = Config::without_file().detect;
        for workers in [1, 2, 8] {
            let bytes = ContactTable::memory(contacts(&detect, workers)) * workers;
            assert!(bytes <= 32 << 20, "{workers} workers take {bytes} bytes");
        }
    }

    #[test]
    fn whole_huge_pages_cost_no_worker_half_of_its_contacts() {
        let detect = Config::without_file().detect;
        let of_all = [1, 2, 4, 8, 16, 32].map(|workers| contacts(&detect, workers) * workers);
        assert_eq!(of_all, [1 << 18; 6]);
    }
}
