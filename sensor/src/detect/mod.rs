//! Where the evidence of all workers meets: scans found, alerts opened, updated, closed.
//!
//! ```text
//!   config     thresholds, networks with their own, windows, memory
//!   allow      sources that never count
//!   alert      what is told about a scan or a flood
//!   contacts   every contact of the window, and which groups it is in
//!   groups     contacts with something in common: source, target, service, technique
//!   wheel      when a contact falls due: silent after 3 s, gone after the window
//!   view       whether answers are seen here at all
//!   losses     times in which silence proves nothing
//!   held       how much evidence a source held that gave way
//!   decide     which groups are a scan, and of what kind
//!   slow       what left the window unnoticed, for a day
//!   outcomes   distinct contacts of one alert with their outcome, exact to 65 536
//!   open       one open alert: what it counted, what it tells
//!   alerts     all open alerts, and the limit on what is told of them
//!   detector   the order of a tick
//!   explain    what is known of one source, and why it did or did not alert
//!   floods     more arrives at a target than it answers, or than is usual
//! ```
//!
//! Outcomes are derived here and only here: answered ⇒ success; else refused ⇒ failed; else silent
//! once it is old enough ⇒ failed. A contact that nobody attempted is no evidence. Alerts are decided
//! on counts that can only be too low: table pressure and lost frames delay an alert or hide it, both
//! counted, and never invent one.
//!
//! Nothing here depends on the number of workers, on the order of contacts within a tick, or on hash
//! seeds: contacts merge by OR, minimum and maximum, and what is emitted is sorted.

mod alert;
mod alerts;
mod allow;
mod config;
mod contacts;
mod decide;
mod detector;
mod explain;
mod floods;
mod groups;
mod held;
mod losses;
mod open;
mod outcomes;
mod slow;
mod view;
mod wheel;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

pub use alert::{
    Alert, AlertSummary, Attack, Confidence, FloodFigures, Kind, Phase, SAMPLES, Technique,
};
pub use allow::{AllowList, Allowed, Network, ParseNetworkError};
pub use config::{DetectorConfig, NetworkRule, Profile, Thresholds};
pub use detector::{Budget, Detector, DetectorCounters};
pub use explain::{
    AlertBrief, Breadth, ContactCounts, Covers, Explanation, Finding, Grouping, HeldBack,
    MOST_FINDINGS, Standing,
};
pub use floods::{FloodConfig, FloodCounters, SynFlood};
pub use held::{GivenWay, Held};
