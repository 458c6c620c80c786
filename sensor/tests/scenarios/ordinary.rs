//! What hosts do with each other all day, one piece at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use perf::frames::{self, ACK, FIN, PSH, RST, SYN};

use super::{MS, SECOND, Stage};

/// How a host answers what is sent to one of its ports, or to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// There is something that answers.
    Open,
    /// There is a host, which says that there is nothing.
    Refused,
    /// Nobody says anything.
    Silent,
}

/// The router that takes part in traceroutes as hop `number`.
fn hop(target: IpAddr, number: u8) -> IpAddr {
    match target {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 0, 8 + number).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, u16::from(number)).into(),
    }
}

/// How a traceroute asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// By UDP to ports from 33434 up, another one each time.
    Udp,
    /// By echo requests.
    Icmp,
    /// By SYN to one port.
    Tcp(u16),
}

impl Stage {
    /// A port of a client that has not been used for long.
    pub fn from(&mut self, client: IpAddr) -> SocketAddr {
        SocketAddr::new(client, self.ephemeral_port())
    }

    fn round_trip(&mut self) -> u64 {
        self.random.between(1000, 50_000) * 1000
    }

    /// A TCP connection with so many questions and answers, closed by the client. Gives its end.
    pub fn connection(
        &mut self,
        at: u64,
        client: IpAddr,
        server: SocketAddr,
        questions: u64,
    ) -> u64 {
        let client = self.from(client);
        let trip = self.round_trip();
        let mut talk = Talk::open(self, at, client, server, trip);
        for _ in 0..questions {
            let (question, answer) = (talk.size(60, 300), talk.size(80, 900));
            talk.say(true, PSH | ACK, question);
            talk.pause(trip);
            talk.say(false, PSH | ACK, answer);
            talk.pause(MS);
            talk.say(true, ACK, 0);
            let pause = talk.stage.random.between(1, 400) * MS;
            talk.pause(pause);
        }
        talk.say(true, FIN | ACK, 0);
        talk.pause(trip);
        talk.say(false, FIN | ACK, 0);
        talk.pause(MS);
        talk.say(true, ACK, 0);
        talk.time
    }

    /// A connection that is open for `duration`, with a word each way every `interval`; then `reset` by
    /// the server, or left open.
    pub fn session(
        &mut self,
        at: u64,
        client: IpAddr,
        server: SocketAddr,
        (duration, interval): (u64, u64),
        is_reset: bool,
    ) {
        let client = self.from(client);
        let trip = self.round_trip();
        let mut talk = Talk::open(self, at, client, server, trip);
        while talk.time + interval < at + duration {
            talk.pause(interval - trip - MS);
            talk.say(true, PSH | ACK, 40);
            talk.pause(trip);
            talk.say(false, PSH | ACK, 60);
            talk.pause(MS);
            talk.say(true, ACK, 0);
        }
        if is_reset {
            talk.pause(MS);
            talk.say(false, RST | ACK, 0);
        }
    }

    /// A connection that is refused.
    pub fn refused(&mut self, at: u64, client: IpAddr, server: SocketAddr) {
        let (client, trip) = (self.from(client), self.round_trip());
        let number = self.random.number() as u32;
        self.add(at, frames::tcp_numbered(client, server, SYN, number, 0, b""));
        let refusal =
            frames::tcp_numbered(server, client, RST | ACK, 0, number.wrapping_add(1), b"");
        self.add(at + trip, refusal);
    }

    /// A connection to a host that says nothing: the SYN comes again after 1 s and 3 s.
    pub fn unanswered(&mut self, at: u64, client: IpAddr, server: SocketAddr) {
        let client = self.from(client);
        let number = self.random.number() as u32;
        for again in [0, SECOND, 3 * SECOND] {
            self.add(at + again, frames::tcp_numbered(client, server, SYN, number, 0, b""));
        }
    }

    /// An attempt at a connection, with one question if somebody is there.
    pub fn attempt(&mut self, at: u64, client: IpAddr, server: SocketAddr, fate: Fate) {
        match fate {
            Fate::Open => drop(self.connection(at, client, server, 1)),
            Fate::Refused => self.refused(at, client, server),
            Fate::Silent => self.unanswered(at, client, server),
        }
    }

    /// A question by UDP, and what becomes of it.
    pub fn question(&mut self, at: u64, client: SocketAddr, server: SocketAddr, fate: Fate) {
        let (trip, bytes) = (self.round_trip(), self.random.between(30, 60) as usize);
        let question = frames::udp(client, server, &vec![0x2a; bytes]);
        match fate {
            Fate::Open => {
                self.add(at, question);
                let answer = frames::udp(server, client, &vec![0x55; bytes * 3]);
                self.add(at + trip, answer);
            }
            Fate::Refused => {
                let error = icmp_error(server.ip(), &question, Error::PortUnreachable);
                self.add(at, question);
                self.add(at + trip, error);
            }
            Fate::Silent => self.add(at, question),
        }
    }

    /// So many echo requests, one a second, answered or not.
    pub fn ping(&mut self, at: u64, source: IpAddr, target: IpAddr, count: u16, fate: Fate) {
        let trip = self.round_trip();
        let id = self.ephemeral_port();
        for number in 0..count {
            let time = at + u64::from(number) * SECOND;
            let [request, answer] = echo(source, target, id, number);
            self.add(time, request);
            if fate == Fate::Open {
                self.add(time + trip, answer);
            }
        }
    }

    /// An ARP request and, if somebody has the address, the answer.
    pub fn arp(&mut self, at: u64, source: Ipv4Addr, target: Ipv4Addr, fate: Fate) {
        self.add(at, frames::arp_request(source, target));
        if fate == Fate::Open {
            self.add(at + MS / 2, arp_answer(target, source));
        }
    }

    /// A traceroute with three probes a hop. Every sixth hop says nothing. The target answers, or
    /// the probes go on up to 30 hops without a word.
    pub fn traceroute(
        &mut self,
        at: u64,
        source: IpAddr,
        target: IpAddr,
        how: Trace,
        (hops, fate): (u8, Fate),
    ) {
        let from = self.from(source);
        let id = self.ephemeral_port();
        let last = if fate == Fate::Silent { 30 } else { hops };
        for number in 0..u16::from(last) * 3 {
            let ttl = 1 + (number / 3) as u8;
            let time = at + u64::from(number) * 60 * MS;
            let (probe, answer) = match how {
                Trace::Udp => {
                    let to = SocketAddr::new(target, 33_434 + number);
                    let probe = frames::udp(from, to, &[0x40; 32]);
                    let answer = icmp_error(target, &probe, Error::PortUnreachable);
                    (probe, answer)
                }
                Trace::Icmp => {
                    let [probe, answer] = echo(source, target, id, number);
                    (probe, answer)
                }
                Trace::Tcp(port) => {
                    let to = SocketAddr::new(target, port);
                    let from = SocketAddr::new(source, from.port() ^ number);
                    let flags = if fate == Fate::Open { SYN | ACK } else { RST | ACK };
                    let answer = frames::tcp_numbered(to, from, flags, 1, 2, b"");
                    (frames::tcp(from, to, SYN, b""), answer)
                }
            };
            let probe = with_ttl(probe, ttl);
            let exceeded = icmp_error(hop(target, ttl), &probe, Error::TimeExceeded);
            self.add(time, probe);
            if ttl < hops && ttl % 6 != 5 {
                self.add(time + u64::from(ttl) * 3 * MS, exceeded);
            } else if ttl >= hops && fate != Fate::Silent {
                self.add(time + u64::from(ttl) * 3 * MS, answer);
            }
        }
    }
}

/// A connection while it lasts, with the numbers of its bytes.
struct Talk<'a> {
    stage: &'a mut Stage,
    ends: [SocketAddr; 2],
    /// What each end sends next.
    next: [u32; 2],
    time: u64,
}

impl<'a> Talk<'a> {
    /// The three packets that open a connection.
    fn open(
        stage: &'a mut Stage,
        at: u64,
        client: SocketAddr,
        server: SocketAddr,
        trip: u64,
    ) -> Self {
        let next = [stage.random.number() as u32, stage.random.number() as u32];
        let mut talk = Self { stage, ends: [client, server], next, time: at };
        let first = frames::tcp_numbered(client, server, SYN, next[0], 0, b"");
        talk.stage.add(at, first);
        talk.next[0] = next[0].wrapping_add(1);
        talk.pause(trip);
        talk.say(false, SYN | ACK, 0);
        talk.next[1] = next[1].wrapping_add(1);
        talk.pause(MS / 10);
        talk.say(true, ACK, 0);
        talk
    }

    fn size(&mut self, least: u64, most: u64) -> usize {
        self.stage.random.between(least, most) as usize
    }

    const fn pause(&mut self, duration: u64) {
        self.time += duration;
    }

    /// One segment with so many bytes.
    fn say(&mut self, by_client: bool, flags: u8, bytes: usize) {
        let [client, server] = self.ends;
        let (own, other) = if by_client { (0, 1) } else { (1, 0) };
        let (source, target) = if by_client { (client, server) } else { (server, client) };
        let payload = vec![0x78; bytes];
        let frame =
            frames::tcp_numbered(source, target, flags, self.next[own], self.next[other], &payload);
        self.stage.add(self.time, frame);
        let fin = u32::from(flags & FIN != 0);
        self.next[own] = self.next[own].wrapping_add(bytes as u32 + fin);
    }
}

/// An echo request and its answer.
pub fn echo(source: IpAddr, target: IpAddr, id: u16, number: u16) -> [Vec<u8>; 2] {
    let body = [&id.to_be_bytes()[..], &number.to_be_bytes(), &[0x61; 24]].concat();
    let [request, answer] = if source.is_ipv4() { [8, 0] } else { [128, 129] };
    [
        frames::icmp(source, target, request, 0, &body),
        frames::icmp(target, source, answer, 0, &body),
    ]
}

/// `owner` tells `asker` that it has its address.
pub fn arp_answer(owner: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 2]; // Ethernet, IPv4, lengths of their addresses, answer
    let macs = [frames::TARGET_MAC, frames::SOURCE_MAC];
    let payload = [&fixed[..], &macs[0], &owner.octets(), &macs[1], &asker.octets()].concat();
    frames::ethernet(frames::ARP, &payload)
}

/// What can be wrong with a packet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody has the port.
    PortUnreachable,
    /// The host does not speak the protocol.
    ProtocolUnreachable,
    /// Too many hops.
    TimeExceeded,
}

/// The ICMP error that `reporter` sends to the sender of an untagged IP frame: quotes its IP header and
/// 8 bytes more.
///
/// Source: RFC 792, RFC 4443.
pub fn icmp_error(reporter: IpAddr, frame: &[u8], error: Error) -> Vec<u8> {
    let (source, _) = ends_of(frame).expect("an IP frame");
    let (kind, code, header) = match (source, error) {
        (IpAddr::V4(_), Error::PortUnreachable) => (3, 3, 20),
        (IpAddr::V4(_), Error::ProtocolUnreachable) => (3, 2, 20),
        (IpAddr::V4(_), Error::TimeExceeded) => (11, 0, 20),
        (IpAddr::V6(_), Error::PortUnreachable) => (1, 4, 40),
        (IpAddr::V6(_), Error::ProtocolUnreachable) => (4, 1, 40),
        (IpAddr::V6(_), Error::TimeExceeded) => (3, 0, 40),
    };
    let packet = &frame[14..];
    let quoted = &packet[..packet.len().min(header + 8)];
    frames::icmp(reporter, source, kind, code, &[&[0; 4], quoted].concat())
}

/// Source and target of an untagged IP or ARP frame of this generator.
pub fn ends_of(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| -> IpAddr {
        Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]).into()
    };
    let v6 = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&frame[at..at + 16]);
        Ipv6Addr::from(octets).into()
    };
    match u16::from_be_bytes([frame[12], frame[13]]) {
        frames::IPV4 => Some((v4(26), v4(30))),
        frames::IPV6 => Some((v6(22), v6(38))),
        frames::ARP => Some((v4(28), v4(38))),
        _ => None,
    }
}

/// The frame with another time to live.
fn with_ttl(mut frame: Vec<u8>, ttl: u8) -> Vec<u8> {
    if frame[14] >> 4 == 4 {
        frame[22] = ttl;
        frame[24..26].fill(0);
        let sum = frames::checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[21] = ttl;
    }
    frame
}
