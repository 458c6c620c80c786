//! The configuration: what the file says (`raw`), and what the program may rely on ([`Config`]).
//!
//! Checking needs no system call, so `check-config` says everything that a start would say about
//! the file. Limits and defaults stand together in this file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::detect::{Allowed, FloodConfig, Network, NetworkRule, Profile, Thresholds};
use crate::filter::Expression;
use crate::spool::SpoolSettings;
use crate::uplink::CollectorAddress;

mod detect;
mod error;
mod raw;

pub use error::ConfigError;

/// Everything the sensor needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this sensor; empty: from the certificate, else the host's name.
    pub sensor_name: String,
    /// What is captured and how.
    pub capture: Capture,
    /// What counts as a scan.
    pub detect: Detect,
    /// The table of flows.
    pub flow: Flow,
    /// Which frames go to the collector.
    pub export: Export,
    /// Where to; `None`: local analysis only.
    pub uplink: Option<Uplink>,
    /// Where records wait for the collector; `None`: in memory alone. Used with an uplink.
    pub spool: Option<SpoolSettings>,
    /// Local output of events.
    pub events: Events,
    /// Address of the local HTTP API; `None`: off.
    pub api_listen: Option<SocketAddr>,
}

/// What is captured and how.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Names and globs of interfaces.
    pub interfaces: Vec<String>,
    /// Names and globs of interfaces that are not captured, whatever else says so.
    pub exclude: Vec<String>,
    /// Number of workers; `None`: one per usable CPU.
    pub workers: Option<usize>,
    /// CPUs of the workers, in their order; empty: the usable ones, counted up.
    pub cpus: Vec<usize>,
    /// Memory of all rings together, MiB.
    pub ring_mib: u32,
    /// Size of a ring block, KiB.
    pub block_kib: u32,
    /// A block that is not full is handed over after this many milliseconds.
    pub retire_ms: u32,
    /// Ask the interface for frames to other stations too.
    pub promiscuous: bool,
    /// Which frames are looked at; `None`: all.
    pub filter: Option<Expression>,
    /// How the kernel deals the frames of an interface to the workers.
    pub fanout: FanoutMode,
    /// A worker looks for frames for so long before it sleeps, microseconds.
    pub busy_poll_us: u32,
    /// Packet sockets that are made at the start for rings that are opened later; `None`: as many as
    /// the first rings, and four.
    pub reserve_sockets: Option<usize>,
}

/// How the kernel deals the frames of an interface to the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanoutMode {
    /// By a symmetric hash of the flow.
    Hash,
    /// By the CPU that received the frame.
    Cpu,
    /// By the receive queue of the interface.
    Queue,
    /// By the address of the peer: one source lands on one worker.
    Peer,
}

/// What counts as a scan.
#[derive(Clone, Debug, PartialEq)]
pub struct Detect {
    /// Which rule set.
    pub profile: Profile,
    /// Sources that never alert, at all ports of others or at one.
    pub allow: Vec<Allowed>,
    /// Networks of this site: the peer of a frame that passes by is the side outside of them.
    pub home_networks: Vec<Network>,
    /// How many contacts make an alert.
    pub thresholds: Thresholds,
    /// Networks whose sources have thresholds of their own.
    pub networks: Vec<NetworkRule>,
    /// Length of the sliding window.
    pub window: Duration,
    /// A contact without an answer for so long is silent.
    pub silent_after: Duration,
    /// An alert without new contacts for so long is closed.
    pub close_after: Duration,
    /// Memory of evidence, all workers and the detector together, MiB.
    pub memory_mib: u32,
    /// What makes a flood.
    pub floods: FloodConfig,
}

/// The table of flows: its size, and after how long without a packet a flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Flows that the tables of all workers together hold; 0: there is no table.
    pub flows: u32,
    /// TCP that was not acknowledged by both sides.
    pub tcp_new: Duration,
    /// TCP that was.
    pub tcp_established: Duration,
    /// TCP after FIN from both sides, or RST.
    pub tcp_closed: Duration,
    /// Others with packets of one side only.
    pub new: Duration,
    /// Others with packets of both sides.
    pub established: Duration,
}

/// Which frames go to the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Which.
    pub frames: ExportFrames,
    /// Bytes of a frame that are exported at most.
    pub snaplen: u32,
    /// Memory of the batches, MiB.
    pub pool_mib: u32,
}

/// Which frames are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFrames {
    /// None.
    None,
    /// Those of one conversation in so many, whole conversations always.
    OneIn(u32),
    /// All.
    All,
}

/// The connection to the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// `host:port`, in order of preference.
    pub collectors: Vec<CollectorAddress>,
    /// Certificates, key and revocation lists.
    pub tls: trust::Files,
    /// How long before it expires a certificate or revocation list is a problem, in days.
    pub expiry_warning_days: u32,
}

/// Local output of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// Where lines go.
    pub output: EventOutput,
    /// One `flow` event in state `new` for each new TCP connection.
    pub new_connections: bool,
    /// More new connections than this in a second are counted, not written.
    pub connections_per_second: u32,
    /// One `flow` event for each flow that ends. Without them there is no table of flows.
    pub flows: bool,
    /// More ended flows than this in a second are counted, not written.
    pub flows_per_second: u32,
}

/// Where event lines go on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventOutput {
    /// Nowhere.
    None,
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// Port of a collector that names none.
pub const COLLECTOR_PORT: u16 = 4750;
/// Rings of all interfaces and workers together, MiB.
const RING_MIB: (u32, u32, u32) = (1, 256, 65_536);
/// A ring block must hold a 64 KiB super-frame and its header.
const BLOCK_KIB: (u32, u32, u32) = (128, 1024, 65_536);
const BUSY_POLL_US: (u32, u32, u32) = (0, 0, 10_000);
const RESERVE_SOCKETS: (u32, u32) = (1, 4096);
const RETIRE_MS: (u32, u32, u32) = (1, 10, 1000);
const WORKERS: (u32, u32) = (1, 256);
/// What can be set as a threshold; the defaults are those of [`Thresholds`].
const THRESHOLD: (u32, u32) = (2, 10_000);
/// Slow scans: of a source 64 contacts are kept.
const SLOW_THRESHOLD: (u32, u32) = (2, 63);
/// By what thresholds of a network can be multiplied: above the first, up to the second.
const NETWORK_FACTOR: (f64, f64) = (0.0, 1000.0);
const WINDOW: (Duration, Duration, Duration) =
    (Duration::from_secs(5), Duration::from_secs(60), Duration::from_secs(600));
const SILENT_AFTER: (Duration, Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(3), Duration::from_secs(30));
const CLOSE_AFTER: (Duration, Duration, Duration) =
    (Duration::from_secs(5), Duration::from_secs(60), Duration::from_secs(3600));
const DETECT_MIB: (u32, u32, u32) = (4, 64, 65_536);
/// Rates at which a flood begins: SYN, UDP, ICMP, RST, fragments. Packets a second; 0: off.
const SYN_FLOOD_RATE: (u32, u32, u32) = flood_rate(500);
const UDP_FLOOD_RATE: (u32, u32, u32) = flood_rate(100_000);
const ICMP_FLOOD_RATE: (u32, u32, u32) = flood_rate(5_000);
const RST_FLOOD_RATE: (u32, u32, u32) = flood_rate(5_000);
const FRAGMENT_FLOOD_RATE: (u32, u32, u32) = flood_rate(100_000);
const SYN_FLOOD_COMPLETION: (u32, u32, u32) = (1, 20, 100);
const SYN_FLOOD_SOURCES: (u32, u32, u32) = (2, 64, 1_000_000);
const FLOOD_RATIO: (u32, u32, u32) = (2, 10, 1_000);
const FLOOD_LEARNING: (Duration, Duration, Duration) =
    (Duration::ZERO, Duration::from_secs(10), Duration::from_secs(3600));
const SAMPLE_ONE_IN: (u32, u32, u32) = (2, 64, 1_000_000);
const SNAPLEN: (u32, u32, u32) = (64, 65_535, 65_535);
const EXPIRY_WARNING_DAYS: (u32, u32, u32) = (0, 14, 365);
const POOL_MIB: (u32, u32, u32) = (1, 64, 4096);
const CONNECTIONS_PER_SECOND: (u32, u32, u32) = (0, 10_000, 1_000_000);
const FLOWS_PER_SECOND: (u32, u32, u32) = (0, 10_000, 1_000_000);
const FLOWS: (u32, u32, u32) = (1024, 1_000_000, 100_000_000);
const FLOW_TCP_NEW: (Duration, Duration, Duration) = flow_timeout(30);
const FLOW_TCP_ESTABLISHED: (Duration, Duration, Duration) = flow_timeout(600);
const FLOW_TCP_CLOSED: (Duration, Duration, Duration) = flow_timeout(10);
const FLOW_NEW: (Duration, Duration, Duration) = flow_timeout(30);
const FLOW_ESTABLISHED: (Duration, Duration, Duration) = flow_timeout(300);
/// The folder that the unit's StateDirectory makes is its parent.
const SPOOL_PATH: &str = "/var/lib/ringwatch/sensor/spool";
/// The least holds sixteen segments of the smallest size in each lane.
const SPOOL_MIB: (u32, u32, u32) = (4, 1024, 1 << 20);
const SPOOL_AGE: (Duration, Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(7 * 86_400), Duration::from_secs(365 * 86_400));
const API_LISTEN: &str = "127.0.0.1:8475";

/// Least and most of a rate, with its default.
const fn flood_rate(default: u32) -> (u32, u32, u32) {
    (0, default, 1_000_000_000)
}

/// A time-out of flows: the whole table is looked at within the shortest, which costs the less the
/// longer it is.
const fn flow_timeout(default_seconds: u64) -> (Duration, Duration, Duration) {
    let least_and_most = (Duration::from_secs(1), Duration::from_secs(86_400));
    (least_and_most.0, Duration::from_secs(default_seconds), least_and_most.1)
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key or a value out of range. The
    /// error names file, line, key and value.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The configuration of a run without a file.
    #[must_use]
    pub fn without_file() -> Self {
        raw::check(Path::new("(defaults)"), "", raw::RawConfig::default())
            .expect("the defaults pass their own checks, as a unit test shows")
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw = toml::from_str(text).map_err(|error| ConfigError::toml(path, text, &error))?;
        raw::check(path, text, raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("sensor.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_pass_their_own_checks() {
        let config = Config::without_file();
        assert_eq!(config.detect.thresholds, Thresholds::default());
        assert_eq!(config.export.frames, ExportFrames::None);
        assert_eq!(config.uplink, None);
    }

    #[test]
    fn the_shipped_file_says_the_defaults() {
        let shipped = check(include_str!("../../../config/sensor.toml")).unwrap();
        let defaults = Config::without_file();
        assert_eq!(shipped.detect, defaults.detect);
        assert_eq!(shipped.flow, defaults.flow);
        assert_eq!(shipped.events, defaults.events);
        assert_eq!(shipped.spool, defaults.spool);
        assert_eq!(shipped.capture.ring_mib, defaults.capture.ring_mib);
        assert_eq!(shipped.capture.block_kib, defaults.capture.block_kib);
        assert_eq!(shipped.capture.retire_ms, defaults.capture.retire_ms);
        assert_eq!(shipped.capture.fanout, defaults.capture.fanout);
        assert_eq!(shipped.capture.busy_poll_us, defaults.capture.busy_poll_us);
    }

    #[test]
    fn the_way_of_dealing_is_one_of_four() {
        let modes = [
            ("hash", FanoutMode::Hash),
            ("cpu", FanoutMode::Cpu),
            ("queue", FanoutMode::Queue),
            ("peer", FanoutMode::Peer),
        ];
        for (word, mode) in modes {
            let text = format!("[capture]\nfanout = '{word}'");
            assert_eq!(check(&text).unwrap().capture.fanout, mode);
        }
        assert_eq!(
            check("[capture]\nfanout = 'rollover'").unwrap_err(),
            "sensor.toml:2: capture.fanout = rollover is not one of: hash, cpu, queue, peer"
        );
    }

    #[test]
    fn time_and_sockets_have_limits_too() {
        assert_eq!(
            check("[capture]\nbusy_poll_us = 10001").unwrap_err(),
            "sensor.toml:2: capture.busy_poll_us = 10001 is out of range: 0 to 10000 microseconds"
        );
        assert_eq!(
            check("[capture]\nreserve_sockets = 5000").unwrap_err(),
            "sensor.toml:2: capture.reserve_sockets = 5000 is out of range: 1 to 4096 sockets"
        );
        assert_eq!(check("").unwrap().capture.reserve_sockets, None);
    }

    #[test]
    fn a_home_network_that_is_none_is_named_by_its_key() {
        let said = check("[detect]\nhome_networks = ['10.0.0.0/40']").unwrap_err();
        assert!(said.starts_with("sensor.toml:2: detect.home_networks: `10.0.0.0/40`"), "{said}");
    }

    #[test]
    fn one_interface_or_several() {
        assert_eq!(check("[capture]\ninterface = 'a'").unwrap().capture.interfaces, ["a"]);
        let several = check("[capture]\ninterface = ['a', 'b']").unwrap();
        assert_eq!(several.capture.interfaces, ["a", "b"]);
        let globs = check("[capture]\ninterface = '*'\nexclude = ['veth*', 'lo']").unwrap();
        assert_eq!(globs.capture.interfaces, ["*"]);
        assert_eq!(globs.capture.exclude, ["veth*", "lo"]);
        let wrong = check("[capture]\nexclude = ['lo', 'a b']").unwrap_err();
        let expected = "sensor.toml:2: capture.exclude = a b is no name or glob of interfaces: names \
                        of interfaces have no spaces and no slashes";
        assert_eq!(wrong, expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_key() {
        assert_eq!(
            check("[capture]\ninterface = 'a'\nring_mb = 3\n").unwrap_err(),
            "sensor.toml:3: unknown key `ring_mb` in [capture]; did you mean `ring_mib`?"
        );
    }

    #[test]
    fn an_unknown_section_is_named() {
        assert_eq!(
            check("[captur]\n").unwrap_err(),
            "sensor.toml:1: unknown section `captur`; did you mean `capture`?"
        );
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_limits() {
        assert_eq!(
            check("[capture]\n\nretire_ms = 0").unwrap_err(),
            "sensor.toml:3: capture.retire_ms = 0 is out of range: 1 to 1000 milliseconds"
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named() {
        let said = check("[capture]\nretire_ms = 'soon'").unwrap_err();
        assert!(said.starts_with("sensor.toml:2: capture.retire_ms = 'soon'"), "{said}");
    }

    #[test]
    fn text_that_is_no_toml_is_refused_with_its_line() {
        let said = check("[capture\n").unwrap_err();
        assert!(said.starts_with("sensor.toml:1: "), "{said}");
    }

    #[test]
    fn an_uplink_needs_all_three_files() {
        assert_eq!(
            check("[uplink]\ncollectors = ['ids:4750']\nca = 'ca.pem'").unwrap_err(),
            "sensor.toml:2: uplink.collectors = [\"ids:4750\"] needs uplink.certificate as well"
        );
    }

    #[test]
    fn frames_need_a_collector_to_go_to() {
        assert_eq!(
            check("[export]\nframes = 'all'").unwrap_err(),
            "sensor.toml:2: export.frames = all needs uplink.collectors as well"
        );
    }

    #[test]
    fn a_collector_that_is_no_address_is_named() {
        let said = check("[uplink]\n\ncollectors = ['a b']").unwrap_err();
        assert!(said.starts_with("sensor.toml:3: uplink.collectors: \"a b:4750\""), "{said}");
    }

    #[test]
    fn silence_must_fall_into_the_window() {
        assert_eq!(
            check("[detect]\nwindow = '5s'\nsilent_after = '5s'").unwrap_err(),
            "sensor.toml:3: detect.silent_after = 5s is not shorter than detect.window"
        );
    }

    #[test]
    fn a_collector_without_a_port_gets_the_default_port() {
        let text = "[uplink]\ncollectors = ['ids', '[fd99::1]:1', '::1']\nca = 'a'\n\
                    certificate = 'b'\nkey = 'c'";
        let uplink = check(text).unwrap().uplink.unwrap();
        let collectors: Vec<String> = uplink.collectors.iter().map(ToString::to_string).collect();
        assert_eq!(collectors, ["ids:4750", "[fd99::1]:1", "[::1]:4750"]);
    }

    #[test]
    fn relative_paths_count_from_the_folder_of_the_file() {
        let text = "[uplink]\ncollectors = ['ids']\nca = 'pki/ca.pem'\ncertificate = '/b'\n\
                    key = 'c'\n[events]\nfile = 'eve.json'";
        let config = Config::parse(Path::new("/etc/ringwatch/sensor.toml"), text).unwrap();
        let uplink = config.uplink.unwrap();
        assert_eq!(uplink.tls.ca, Path::new("/etc/ringwatch/pki/ca.pem"));
        assert_eq!(uplink.tls.certificate, Path::new("/b"));
        assert_eq!(config.events.output, EventOutput::File("/etc/ringwatch/eve.json".into()));
    }

    #[test]
    fn the_spool_has_a_folder_or_is_memory() {
        let spool = check("").unwrap().spool.unwrap();
        assert_eq!(spool.path, Path::new("/var/lib/ringwatch/sensor/spool"));
        assert_eq!((spool.max_bytes, spool.max_age.as_secs()), (1 << 30, 7 * 86_400));
        assert_eq!(check("[spool]\npath = ''").unwrap().spool, None);
        let text = "[spool]\npath = 'spool'\nmax_mib = 8\nmax_age = '2h'";
        let spool = Config::parse(Path::new("/etc/ringwatch/s.toml"), text).unwrap().spool.unwrap();
        assert_eq!(spool.path, Path::new("/etc/ringwatch/spool"));
        assert_eq!((spool.max_bytes, spool.max_age.as_secs()), (8 << 20, 7200));
        assert_eq!(
            check("[spool]\nmax_mib = 3").unwrap_err(),
            "sensor.toml:2: spool.max_mib = 3 is out of range: 4 to 1048576 MiB"
        );
    }

    #[test]
    fn a_bad_network_is_named() {
        assert_eq!(
            check("[detect]\nallow = ['10.0.0.0/33']").unwrap_err(),
            "sensor.toml:2: detect.allow: `10.0.0.0/33` is no network: prefix length must be 0 to 32"
        );
    }
}
