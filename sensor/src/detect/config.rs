//! Thresholds, windows and memory of the detector.

use std::time::Duration;

use packet::Address;

use super::{AllowList, FloodConfig, Network};

/// What counts as a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Distinct failed contacts reach the configured thresholds.
    #[default]
    Default,
    /// As [`Profile::Default`], but more than 3 distinct ports of one target are a vertical scan by
    /// SYN alone, whatever became of them.
    Strict,
}

/// How many distinct failed contacts of one source make an alert, each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// TCP ports of one target, by SYN.
    pub vertical_ports: u32,
    /// Hosts on one port.
    pub horizontal_hosts: u32,
    /// Pairs of host and port, more than five of both.
    pub block_contacts: u32,
    /// Hosts of which the first contact failed, beyond those of which it succeeded; more than five ports too.
    pub sequential_hosts: u32,
    /// TCP ports of one target, by one technique that no connection has: NULL, FIN, XMAS, SYN-FIN. By ACK and
    /// Maimon it is as many as by SYN.
    pub stealth_ports: u32,
    /// UDP ports of one target.
    pub udp_ports: u32,
    /// Hosts by requests of ICMP.
    pub icmp_hosts: u32,
    /// Hosts by ARP.
    pub arp_hosts: u32,
    /// IP protocols of one target.
    pub protocols: u32,
    /// Pairs of host and port within a quarter of an hour that were in no other alert.
    pub slow_contacts: u32,
    /// The same within a day.
    pub slow_day_contacts: u32,
    /// Sources of a distributed scan of one target.
    pub distributed_sources: u32,
    /// Ports of one target that they attempt together.
    pub distributed_ports: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            vertical_ports: 10,
            horizontal_hosts: 10,
            block_contacts: 25,
            sequential_hosts: 9,
            stealth_ports: 5,
            udp_ports: 10,
            icmp_hosts: 10,
            arp_hosts: 30,
            protocols: 5,
            slow_contacts: 25,
            slow_day_contacts: 50,
            distributed_sources: 10,
            distributed_ports: 30,
        }
    }
}

/// Thresholds of sources in one network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetworkRule {
    /// The sources.
    pub network: Network,
    /// Thresholds are multiplied by this, above 0; `None`: these sources never count.
    pub factor: Option<f64>,
}

/// Configuration of a [`super::Detector`].
#[derive(Clone, Debug)]
pub struct DetectorConfig {
    /// What counts as a scan.
    pub profile: Profile,
    /// How many contacts make an alert.
    pub thresholds: Thresholds,
    /// Networks whose sources have thresholds of their own; the longest prefix decides.
    pub networks: Vec<NetworkRule>,
    /// A contact counts for this long after its last attempt. Whole seconds, 1 s to 1 h; rounded to
    /// [`crate::evidence::pane`]s, so that it counts up to 1 s less and never more.
    pub window: Duration,
    /// An attempt without answer is silence after this long.
    pub silent_after: Duration,
    /// An alert closes this long after its last failed contact.
    pub close_after: Duration,
    /// Memory of the detector's tables. Unit: MiB, at least 1.
    pub memory_mib: u32,
    /// Sources that never count, the host's own addresses among them.
    pub allow: AllowList,
    /// What makes a flood.
    pub floods: FloodConfig,
    /// An answer and what it answers may come from different workers.
    pub splits_flows: bool,
    /// Seeds the hashes: random, or fixed for repeatable runs (results are the same with any key).
    pub key: u64,
}

impl DetectorConfig {
    /// By what thresholds of this source are multiplied; `None`: it never counts.
    #[must_use]
    pub fn factor(&self, source: Address) -> Option<f64> {
        self.network_of(source).map_or(Some(1.0), |rule| rule.factor)
    }

    /// The network whose thresholds this source has, if there is one.
    #[must_use]
    pub fn network_of(&self, source: Address) -> Option<&NetworkRule> {
        let matching = self.networks.iter().filter(|rule| rule.network.contains(source));
        matching.max_by_key(|rule| rule.network.prefix())
    }
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Default,
            thresholds: Thresholds::default(),
            networks: Vec::new(),
            window: Duration::from_secs(60),
            silent_after: Duration::from_secs(3),
            close_after: Duration::from_secs(60),
            memory_mib: 64,
            allow: AllowList::default(),
            floods: FloodConfig::default(),
            splits_flows: false,
            key: 0,
        }
    }
}
