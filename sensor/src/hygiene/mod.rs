//! `check-interface`: whether an interface is set up so that a sensor sees what is on the wire and
//! loses nothing that need not be lost. It only looks, and says how to mend what it finds.
//!
//! ```text
//!   sysfs     files below /sys and /proc, with a root that tests replace   ─┐
//!   xdp       one question to rtnetlink                                     ├─▶ facts ─▶ verdicts ─▶ report
//!   afpacket::ethtool   the driver's answers                               ─┘
//! ```
//!
//! Verdicts are pure: from facts and the workers' CPUs to one line per item. What the system does not
//! say is unknown, with the reason, and never taken for good.

mod facts;
mod report;
mod sysfs;
#[cfg(test)]
mod tests;
mod verdicts;
mod xdp;

pub use facts::Facts;
pub use report::Report;
pub use verdicts::{Finding, Verdict};

use std::path::Path;

/// Looks at an interface of the calling thread's network namespace. `workers` are the CPUs that read
/// it.
#[must_use]
pub fn check(interface: &str, workers: &[usize]) -> Report {
    let facts = Facts::gather(interface, Path::new("/"));
    Report { interface: interface.to_owned(), items: verdicts::all(&facts, workers) }
}
