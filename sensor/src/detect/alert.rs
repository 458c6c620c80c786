//! What is told about a scan.

use wire::units::UnixNanos;

use packet::Address;

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
    /// What it is done with; `None` of several techniques at once, and of floods of several.
    pub technique: Option<Technique>,
    /// Who does it; `None` where many do.
    pub source: Option<Address>,
    /// Whom it is done to; `None` where it is done to many.
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
    /// Distinct sources over the alert's life.
    pub distinct_sources: u64,
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
    /// Where there are many: the lowest addresses of sources, up to [`SAMPLES`].
    pub sample_sources: Vec<Address>,
    /// Of floods: how much came.
    pub flood: Option<FloodFigures>,
    /// Answers are not seen here, only attempts: thresholds were higher.
    pub is_one_way: bool,
    /// Frames were lost while it was open: silence in that time was no evidence.
    pub had_losses: bool,
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

/// How much a flood brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodFigures {
    /// Packets of the flood over the alert's life.
    pub packets: u64,
    /// Most of them in one second.
    pub peak_pps: u64,
    /// Of a SYN flood: handshakes that were completed meanwhile.
    pub completed: u64,
}

/// What is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Many ports of one target, by SYN.
    Vertical,
    /// One port, or a few, of many targets.
    Horizontal,
    /// Many ports of many targets.
    Block,
    /// Ports of one target, by segments that no connection begins with.
    Stealth,
    /// Many UDP ports of one target.
    Udp,
    /// Many hosts, by requests of ICMP.
    IcmpSweep,
    /// Many hosts, by ARP.
    ArpSweep,
    /// Many IP protocols of one target.
    Protocol,
    /// Few contacts at a time, over a quarter of an hour or a day.
    Slow,
    /// One target, by many sources of which each does little.
    Distributed,
    /// One target, by one of several sources that all do the same at once.
    Decoy,
    /// More SYNs than the target completes handshakes.
    SynFlood,
    /// Far more datagrams than usual.
    UdpFlood,
    /// Far more ICMP than usual.
    IcmpFlood,
    /// Far more resets than usual, which answer nothing.
    RstFlood,
    /// Far more fragments than usual.
    FragmentFlood,
}

impl Kind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::Vertical,
        Self::Horizontal,
        Self::Block,
        Self::Stealth,
        Self::Udp,
        Self::IcmpSweep,
        Self::ArpSweep,
        Self::Protocol,
        Self::Slow,
        Self::Distributed,
        Self::Decoy,
        Self::SynFlood,
        Self::UdpFlood,
        Self::IcmpFlood,
        Self::RstFlood,
        Self::FragmentFlood,
    ];

    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vertical => "vertical",
            Self::Horizontal => "horizontal",
            Self::Block => "block",
            Self::Stealth => "stealth",
            Self::Udp => "udp",
            Self::IcmpSweep => "icmp_sweep",
            Self::ArpSweep => "arp_sweep",
            Self::Protocol => "protocol",
            Self::Slow => "slow",
            Self::Distributed => "distributed",
            Self::Decoy => "decoy",
            Self::SynFlood => "syn_flood",
            Self::UdpFlood => "udp_flood",
            Self::IcmpFlood => "icmp_flood",
            Self::RstFlood => "rst_flood",
            Self::FragmentFlood => "fragment_flood",
        }
    }

    /// What a person reads.
    #[must_use]
    pub const fn signature(self) -> &'static str {
        match self {
            Self::Vertical => "Ringwatch vertical port scan",
            Self::Horizontal => "Ringwatch horizontal port scan",
            Self::Block => "Ringwatch block scan of many ports and hosts",
            Self::Stealth => "Ringwatch stealth port scan",
            Self::Udp => "Ringwatch UDP port scan",
            Self::IcmpSweep => "Ringwatch ICMP sweep",
            Self::ArpSweep => "Ringwatch ARP sweep",
            Self::Protocol => "Ringwatch IP protocol scan",
            Self::Slow => "Ringwatch slow scan",
            Self::Distributed => "Ringwatch distributed port scan",
            Self::Decoy => "Ringwatch port scan among decoys",
            Self::SynFlood => "Ringwatch SYN flood",
            Self::UdpFlood => "Ringwatch UDP flood",
            Self::IcmpFlood => "Ringwatch ICMP flood",
            Self::RstFlood => "Ringwatch RST flood",
            Self::FragmentFlood => "Ringwatch fragment flood",
        }
    }

    /// Is it a flood, and no scan?
    #[must_use]
    pub const fn is_flood(self) -> bool {
        matches!(
            self,
            Self::SynFlood
                | Self::UdpFlood
                | Self::IcmpFlood
                | Self::RstFlood
                | Self::FragmentFlood
        )
    }

    /// What MITRE ATT&CK calls it (Source: <https://attack.mitre.org/techniques/enterprise/>).
    #[must_use]
    pub const fn attack(self) -> Attack {
        match self {
            Self::SynFlood => Attack::OS_EXHAUSTION,
            Self::UdpFlood | Self::IcmpFlood | Self::RstFlood | Self::FragmentFlood => {
                Attack::NETWORK_FLOOD
            }
            Self::IcmpSweep | Self::ArpSweep => Attack::SYSTEM_DISCOVERY,
            _ => Attack::SERVICE_DISCOVERY,
        }
    }
}

/// A technique of MITRE ATT&CK and its tactic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// Id of the technique.
    pub technique: &'static str,
    /// Name of the technique, with underscores.
    pub technique_name: &'static str,
    /// Id of the tactic.
    pub tactic: &'static str,
    /// Name of the tactic.
    pub tactic_name: &'static str,
}

impl Attack {
    const SERVICE_DISCOVERY: Self = Self::discovery("T1046", "Network_Service_Discovery");
    const SYSTEM_DISCOVERY: Self = Self::discovery("T1018", "Remote_System_Discovery");
    const OS_EXHAUSTION: Self = Self::impact("T1499.001", "OS_Exhaustion_Flood");
    const NETWORK_FLOOD: Self = Self::impact("T1498.001", "Direct_Network_Flood");

    const fn discovery(technique: &'static str, technique_name: &'static str) -> Self {
        Self { technique, technique_name, tactic: "TA0007", tactic_name: "Discovery" }
    }

    const fn impact(technique: &'static str, technique_name: &'static str) -> Self {
        Self { technique, technique_name, tactic: "TA0040", tactic_name: "Impact" }
    }
}

/// What a contact is attempted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Technique {
    /// TCP: no flag at all.
    Null,
    /// TCP: FIN alone.
    Fin,
    /// TCP: FIN, PSH and URG.
    Xmas,
    /// TCP: SYN and FIN at once.
    SynFin,
    /// TCP: FIN and ACK.
    Maimon,
    /// TCP: ACK.
    Ack,
    /// TCP: SYN, as every connection begins.
    Syn,
    /// A datagram.
    Udp,
    /// A request of ICMP.
    Echo,
    /// An ARP request.
    Arp,
    /// A packet of another IP protocol.
    Ip,
}

impl Technique {
    /// The word in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN",
            Self::Null => "NULL",
            Self::Fin => "FIN",
            Self::Xmas => "XMAS",
            Self::SynFin => "SYN-FIN",
            Self::Maimon => "MAIMON",
            Self::Ack => "ACK",
            Self::Udp => "UDP",
            Self::Echo => "ECHO",
            Self::Arp => "ARP",
            Self::Ip => "IP",
        }
    }

    /// EVE's name of the protocol, if there is one for it.
    #[must_use]
    pub const fn transport(self) -> Option<&'static str> {
        match self {
            Self::Syn
            | Self::Null
            | Self::Fin
            | Self::Xmas
            | Self::SynFin
            | Self::Maimon
            | Self::Ack => Some("TCP"),
            Self::Udp => Some("UDP"),
            Self::Echo => Some("ICMP"),
            Self::Arp | Self::Ip => None,
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
