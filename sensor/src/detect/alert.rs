//! What is told about a scan.

use wire::units::UnixNanos;

use crate::packet::Address;

/// One step in the life of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The same over the whole life of the alert, never used again in one run. Starts at 1.
    pub id: u64,
    /// Grows with every step that is told. Starts at 1.
    pub revision: u32,
    /// Which step this is.
    pub phase: Phase,
    /// What was found.
    pub kind: Kind,
    /// Who scans.
    pub source: Address,
    /// Who is scanned; `None` of a horizontal scan.
    pub target: Option<Address>,
    /// How sure it is.
    pub confidence: Confidence,
    /// EVE severity: 1 is the highest, 3 the lowest.
    pub severity: u8,
    /// The source address may be forged: nothing proved that answers reach it.
    pub spoofable: bool,
    /// Distinct ports attempted over the alert's life.
    pub distinct_ports: u64,
    /// Distinct hosts attempted over the alert's life.
    pub distinct_hosts: u64,
    /// Distinct contacts (host and port) attempted over the alert's life.
    pub attempted: u64,
    /// Of those: answered.
    pub answered: u64,
    /// Of those: refused and not answered.
    pub refused: u64,
    /// Of those: neither answered nor refused in time. The rest is not decided.
    pub silent: u64,
    /// There were more contacts than are counted one by one: the counts are estimates.
    pub is_estimated: bool,
    /// The lowest ports attempted, up to [`SAMPLES`]; of a horizontal scan: the ports that are swept.
    pub sample_ports: Vec<u16>,
    /// The lowest addresses attempted, up to [`SAMPLES`].
    pub sample_hosts: Vec<Address>,
    /// The lowest ports that answered, up to [`SAMPLES`].
    pub answered_ports: Vec<u16>,
    /// Time of the first packet.
    pub start: UnixNanos,
    /// Time of the last new or repeated attempt (of a repeat: to the second).
    pub end: UnixNanos,
    /// When this step was decided.
    pub time: UnixNanos,
    /// Bit `n`: worker `n` contributed (workers from 63 on share the last bit).
    pub workers: u64,
}

/// Samples of ports and hosts in an alert.
pub const SAMPLES: usize = 20;

/// A step in the life of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// It was found.
    Open,
    /// It grew past the next power of ten.
    Update,
    /// It is over.
    Close,
}

impl Phase {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Update => "update",
            Self::Close => "close",
        }
    }
}

/// Kinds of scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Many ports of one target.
    Vertical,
    /// One port, or a few, of many targets.
    Horizontal,
}

impl Kind {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vertical => "vertical",
            Self::Horizontal => "horizontal",
        }
    }

    /// ATT&CK technique (Source: <https://attack.mitre.org/techniques/T1046/>).
    #[must_use]
    pub const fn technique(self) -> &'static str {
        match self {
            Self::Vertical | Self::Horizontal => "T1046",
        }
    }
}

/// How sure an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// By SYN alone.
    Low,
    /// Nothing but silence: answers may take another way.
    Medium,
    /// Somebody answered or refused.
    High,
}

impl Confidence {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// Alerts that could not be told one by one, over one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AlertSummary {
    /// Openings and closings that had to wait.
    pub delayed: u64,
    /// Updates that were left out; the next step of the alert has their counts.
    pub skipped_updates: u64,
    /// Scans that opened no alert, because too many are open.
    pub not_opened: u64,
}
