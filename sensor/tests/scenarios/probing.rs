//! Scans, each with the truth about itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use perf::frames::{self, ACK, FIN, PSH, RST, SYN};

use super::ordinary::{self, Error, Fate, icmp_error};
use super::{MS, SECOND, Stage};

/// TCP flag URG.
const URG: u8 = 0x20;

/// How a scan asks for ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Technique {
    /// As a connection begins.
    Syn,
    /// FIN alone.
    Fin,
    /// No flag at all.
    Null,
    /// FIN, PSH and URG.
    Xmas,
    /// What no host sends together.
    SynFin,
    /// FIN and ACK out of nothing.
    Maimon,
    /// ACK out of nothing.
    Ack,
    /// Datagrams.
    Udp,
}

impl Technique {
    /// Those by TCP flags that no ordinary packet has, or has out of nothing.
    pub const STEALTH: [Self; 6] =
        [Self::Fin, Self::Null, Self::Xmas, Self::SynFin, Self::Maimon, Self::Ack];

    /// The word in alerts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "SYN",
            Self::Fin => "FIN",
            Self::Null => "NULL",
            Self::Xmas => "XMAS",
            Self::SynFin => "SYN-FIN",
            Self::Maimon => "MAIMON",
            Self::Ack => "ACK",
            Self::Udp => "UDP",
        }
    }

    const fn flags(self) -> u8 {
        match self {
            Self::Syn | Self::Udp => SYN,
            Self::Fin => FIN,
            Self::Null => 0,
            Self::Xmas => FIN | PSH | URG,
            Self::SynFin => SYN | FIN,
            Self::Maimon => FIN | ACK,
            Self::Ack => ACK,
        }
    }

    /// Only the RST that answers it tells it from ordinary traffic.
    pub const fn needs_answer(self) -> bool {
        matches!(self, Self::Maimon | Self::Ack)
    }

    /// What a port with this fate does: with odd flags an open one says nothing, and those with ACK meet
    /// RST wherever somebody is.
    ///
    /// Source: RFC 9293, 3.10.7.
    fn effect(self, fate: Fate) -> Fate {
        match (self, fate) {
            (Self::Maimon | Self::Ack, Fate::Open) => Fate::Refused,
            (Self::Fin | Self::Null | Self::Xmas | Self::SynFin, Fate::Open) => Fate::Silent,
            _ => fate,
        }
    }
}

/// What there is to find.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Word in alerts.
    pub kind: &'static str,
    /// Word in alerts.
    pub technique: &'static str,
    /// Who scans.
    pub sources: Vec<IpAddr>,
    /// Who is scanned, if it is one host.
    pub target: Option<IpAddr>,
    /// When its first probe is sent.
    pub begin: u64,
    /// The numbers of its contacts.
    pub contacts: Range<u32>,
    /// Distinct ports (or protocols).
    pub ports: u64,
    /// Distinct hosts.
    pub hosts: u64,
    /// What became of each contact, in the order of their numbers.
    pub ends: Vec<Fate>,
}

impl Truth {
    /// Contacts that ended so.
    pub fn count_of(&self, fate: Fate) -> u64 {
        self.ends.iter().filter(|end| **end == fate).count() as u64
    }

    /// What became of the contact with this number.
    pub fn end_of(&self, contact: u32) -> Fate {
        self.ends[(contact - self.contacts.start) as usize]
    }
}

/// When a scan begins, and how long it waits from probe to probe.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Begin.
    pub at: u64,
    /// From one probe to the next.
    pub gap: u64,
}

impl Pace {
    /// The time of probe `number`.
    pub const fn time(self, number: usize) -> u64 {
        self.at + self.gap * number as u64
    }
}

/// These ports of one host.
pub fn ports_of(target: IpAddr, ports: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
    ports.into_iter().map(|port| SocketAddr::new(target, port)).collect()
}

/// These ports of so many hosts from `base` on, host by host within each port.
pub fn ports_of_hosts(base: &str, hosts: u32, ports: &[u16]) -> Vec<SocketAddr> {
    let of_port = |port: &u16| {
        let port = *port;
        (0..hosts).map(move |number| SocketAddr::new(super::host(base, number), port))
    };
    ports.iter().flat_map(of_port).collect()
}

impl Stage {
    /// Asks for ports, each with the fate that `fate` gives it. A probe without an answer is sent once more
    /// a second later, from another port, as nmap does.
    pub fn scan(
        &mut self,
        kind: &'static str,
        technique: Technique,
        (source, contacts): (IpAddr, &[SocketAddr]),
        pace: Pace,
        fate: impl Fn(SocketAddr) -> Fate,
    ) -> Truth {
        let mut truth = self.truth(kind, technique.name(), source, (contacts, pace));
        let from = self.from(source);
        for (number, (target, contact)) in contacts.iter().zip(truth.contacts.clone()).enumerate() {
            let fate = technique.effect(fate(*target));
            truth.ends.push(fate);
            self.ask(technique, (from, *target), pace.time(number), fate, contact);
        }
        truth
    }

    /// Many sources ask for the same ports in the same order, some milliseconds apart; all are answered.
    pub fn decoy_scan(
        &mut self,
        sources: &[IpAddr],
        contacts: &[SocketAddr],
        pace: Pace,
        fate: impl Fn(SocketAddr) -> Fate,
    ) -> Truth {
        self.asked_by_many("decoy", sources, (contacts, pace), fate, |_| 0..sources.len())
    }

    /// Each source asks for a share of the ports of one host.
    pub fn distributed_scan(
        &mut self,
        sources: &[IpAddr],
        contacts: &[SocketAddr],
        pace: Pace,
        fate: impl Fn(SocketAddr) -> Fate,
    ) -> Truth {
        let turn = |number| number % sources.len();
        let share = |number| turn(number)..turn(number) + 1;
        self.asked_by_many("distributed", sources, (contacts, pace), fate, share)
    }

    /// Of each contact, `askers` says which of the sources ask for it, some milliseconds apart.
    fn asked_by_many(
        &mut self,
        kind: &'static str,
        sources: &[IpAddr],
        (contacts, pace): (&[SocketAddr], Pace),
        fate: impl Fn(SocketAddr) -> Fate,
        askers: impl Fn(usize) -> Range<usize>,
    ) -> Truth {
        let mut truth = self.truth(kind, "SYN", sources[0], (contacts, pace));
        truth.sources = sources.to_vec();
        let from: Vec<_> = sources.iter().map(|source| self.from(*source)).collect();
        for (number, (target, contact)) in contacts.iter().zip(truth.contacts.clone()).enumerate() {
            let fate = fate(*target);
            truth.ends.push(fate);
            for (later, asker) in askers(number).enumerate() {
                let time = pace.time(number) + later as u64 * 2 * MS;
                self.ask(Technique::Syn, (from[asker], *target), time, fate, contact);
            }
        }
        truth
    }

    /// One echo request to each host.
    pub fn icmp_sweep(
        &mut self,
        source: IpAddr,
        hosts: &[IpAddr],
        pace: Pace,
        fate: impl Fn(IpAddr) -> Fate,
    ) -> Truth {
        let contacts: Vec<_> = hosts.iter().map(|host| SocketAddr::new(*host, 0)).collect();
        let mut truth = self.truth("icmp_sweep", "ECHO", source, (&contacts, pace));
        let id = self.ephemeral_port();
        for (number, (target, contact)) in hosts.iter().zip(truth.contacts.clone()).enumerate() {
            let time = pace.time(number);
            let [request, answer] = ordinary::echo(source, *target, id, number as u16);
            self.add_probe(time, request, contact);
            let fate = fate(*target);
            truth.ends.push(fate);
            if fate == Fate::Open {
                self.add(time + 5 * MS, answer);
            }
        }
        truth
    }

    /// One ARP request for each address, and a second one where nobody answers.
    pub fn arp_sweep(
        &mut self,
        source: Ipv4Addr,
        targets: &[Ipv4Addr],
        pace: Pace,
        fate: impl Fn(Ipv4Addr) -> Fate,
    ) -> Truth {
        let contacts: Vec<_> =
            targets.iter().map(|target| SocketAddr::new((*target).into(), 0)).collect();
        let mut truth = self.truth("arp_sweep", "ARP", source.into(), (&contacts, pace));
        for (number, (target, contact)) in targets.iter().zip(truth.contacts.clone()).enumerate() {
            let time = pace.time(number);
            self.add_probe(time, frames::arp_request(source, *target), contact);
            let fate = fate(*target);
            truth.ends.push(fate);
            if fate == Fate::Open {
                self.add(time + MS, ordinary::arp_answer(*target, source));
            } else {
                self.add_probe(time + SECOND, frames::arp_request(source, *target), contact);
            }
        }
        truth
    }

    /// One packet of each IP protocol, as nmap sends it: a header of its own for ICMP, TCP and UDP, nothing
    /// but the IP header for any other. A host that is there answers ping and refuses TCP, as it does
    /// always.
    pub fn protocol_scan(
        &mut self,
        source: IpAddr,
        target: IpAddr,
        protocols: Range<u8>,
        pace: Pace,
        is_there: bool,
    ) -> Truth {
        let contacts = ports_of(target, protocols.clone().map(u16::from));
        let mut truth = self.truth("protocol", "IP", source, (&contacts, pace));
        let (from, to) = (self.from(source), SocketAddr::new(target, 80));
        for (number, (protocol, contact)) in protocols.zip(truth.contacts.clone()).enumerate() {
            let [echo, echoed] = ordinary::echo(source, target, from.port(), 0);
            let probe = match protocol {
                frames::ICMP => echo,
                frames::TCP => frames::tcp(from, to, ACK, b""),
                frames::UDP => frames::udp(from, SocketAddr::new(target, 40_125), b""),
                _ => frames::ip(source, target, protocol, b""),
            };
            let answer = match protocol {
                frames::ICMP => echoed,
                frames::TCP => frames::tcp(to, from, RST, b""),
                frames::UDP => icmp_error(target, &probe, Error::PortUnreachable),
                _ => icmp_error(target, &probe, Error::ProtocolUnreachable),
            };
            let fate = match (is_there, protocol) {
                (false, _) => Fate::Silent,
                (true, frames::ICMP) => Fate::Open,
                (true, _) => Fate::Refused,
            };
            truth.ends.push(fate);
            self.add_probe(pace.time(number), probe, contact);
            if is_there {
                self.add(pace.time(number) + MS, answer);
            }
        }
        truth
    }

    /// One probe, its answer, and what follows them.
    fn ask(
        &mut self,
        technique: Technique,
        (from, to): (SocketAddr, SocketAddr),
        at: u64,
        fate: Fate,
        contact: u32,
    ) {
        let number = self.random.number() as u32;
        let probe = |from: SocketAddr, number: u32| match technique {
            Technique::Udp => frames::udp(from, to, b"probe"),
            _ => frames::tcp_numbered(from, to, technique.flags(), number, 0, b""),
        };
        let answered_at = at + 4 * MS;
        let first = probe(from, number);
        let error = icmp_error(to.ip(), &first, Error::PortUnreachable);
        self.add_probe(at, first, contact);
        let tcp = |flags, sequence, number: u32| {
            frames::tcp_numbered(to, from, flags, sequence, number, b"")
        };
        match (fate, technique) {
            (Fate::Open, Technique::Udp) => self.add(answered_at, frames::udp(to, from, b"answer")),
            (Fate::Refused, Technique::Udp) => self.add(answered_at, error),
            (Fate::Open, _) => {
                self.add(answered_at, tcp(SYN | ACK, 77, number.wrapping_add(1)));
                let goodbye = frames::tcp_numbered(from, to, RST, number.wrapping_add(1), 0, b"");
                self.add(answered_at + MS / 10, goodbye);
            }
            (Fate::Refused, Technique::Maimon | Technique::Ack) => {
                self.add(answered_at, tcp(RST, 0, 0));
            }
            (Fate::Refused, _) => {
                self.add(answered_at, tcp(RST | ACK, 0, number.wrapping_add(1)));
            }
            (Fate::Silent, _) => {
                let other = SocketAddr::new(from.ip(), from.port() ^ 1);
                self.add_probe(at + SECOND, probe(other, number.wrapping_add(1)), contact);
            }
        }
    }

    fn truth(
        &mut self,
        kind: &'static str,
        technique: &'static str,
        source: IpAddr,
        (contacts, pace): (&[SocketAddr], Pace),
    ) -> Truth {
        // Sweeps by ping and ARP have no ports.
        let ports =
            contacts.iter().map(SocketAddr::port).filter(|port| *port > 0 || kind == "protocol");
        let ports: BTreeSet<_> = ports.collect();
        let hosts: BTreeSet<_> = contacts.iter().map(SocketAddr::ip).collect();
        let is_of_target = !matches!(kind, "horizontal" | "block" | "slow") && hosts.len() == 1;
        Truth {
            kind,
            technique,
            sources: vec![source],
            target: hosts.first().copied().filter(|_| is_of_target),
            begin: pace.at,
            contacts: self.number_contacts(contacts.len()),
            ports: ports.len() as u64,
            hosts: hosts.len() as u64,
            ends: Vec::new(),
        }
    }
}
