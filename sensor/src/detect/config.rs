//! Thresholds, windows and memory of the detector.

use std::time::Duration;

use super::AllowList;

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

/// Configuration of a [`super::Detector`].
#[derive(Clone, Debug)]
pub struct DetectorConfig {
    /// What counts as a scan.
    pub profile: Profile,
    /// Distinct failed ports of one target that make a vertical scan. At least 1.
    pub vertical_ports: u32,
    /// Distinct hosts that failed on one port that make a horizontal scan. At least 1.
    pub horizontal_hosts: u32,
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
    /// Seeds the hashes: random, or fixed for repeatable runs (results are the same with any key).
    pub key: u64,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            profile: Profile::Default,
            vertical_ports: 10,
            horizontal_hosts: 10,
            window: Duration::from_secs(60),
            silent_after: Duration::from_secs(3),
            close_after: Duration::from_secs(60),
            memory_mib: 64,
            allow: AllowList::default(),
            key: 0,
        }
    }
}
