//! Ordinary traffic of one sort, over some time from the begin of the capture on: what networks are full of
//! without anybody looking for anything.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use perf::frames::{self, ACK, RST, SYN};

use super::ordinary::{Fate, Trace};
use super::{HOUR, MINUTE, MS, SECOND, Stage, host};

/// One sort of traffic, from the begin of the capture to `length`.
pub type Site = fn(stage: &mut Stage, length: u64);

/// All of them but [`file_sharing`], which really meets many hosts that are not there.
pub const QUIET: [Site; 9] = [
    web,
    name_resolution,
    time_service,
    health_checks,
    monitoring,
    address_translation,
    port_forwarder,
    traceroutes,
    local_chatter,
];

/// The resolver of all clients.
const RESOLVER: &str = "10.1.0.53";

fn ipv4(base: &str, number: u32) -> Ipv4Addr {
    match host(base, number) {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is not IPv4"),
    }
}

/// A dozen people who read pages: each page is some hosts with up to six connections to each, at once,
/// some over QUIC and some over IPv6. A few of the hosts are gone.
pub fn web(stage: &mut Stage, length: u64) {
    for client in 1..=12 {
        let mut time = stage.random.below(60 * SECOND);
        while time < length {
            let hosts = stage.random.between(2, 6);
            for _ in 0..hosts {
                page_part(stage, time, client);
            }
            time += stage.random.between(60, 420) * SECOND;
        }
    }
}

fn page_part(stage: &mut Stage, time: u64, client: u32) {
    let number = stage.random.below(220) as u32;
    let reader = host("10.1.1.0", client);
    let resolver = SocketAddr::new(host(RESOLVER, 0), 53);
    let from = stage.from(reader);
    stage.question(time, from, resolver, Fate::Open);
    let time = time + stage.random.between(60, 900) * MS;
    let fate = match number {
        217 => Fate::Refused,
        218 | 219 => Fate::Silent,
        _ => Fate::Open,
    };
    if number.is_multiple_of(5) && fate == Fate::Open {
        let from = stage.from(reader);
        let server = SocketAddr::new(host("198.51.100.0", number), 443);
        return stage.question(time, from, server, Fate::Open);
    }
    let is_v6 = number % 7 == 3;
    let (reader, server) = if is_v6 {
        (host("2001:db8:1::", client), host("2001:db8:2::", number))
    } else {
        (reader, host("198.51.100.0", number))
    };
    let server = SocketAddr::new(server, if number % 11 == 1 { 80 } else { 443 });
    for _ in 0..stage.random.between(1, 6) {
        let time = time + stage.random.below(300) * MS;
        let questions = stage.random.between(1, 3);
        if fate == Fate::Open {
            stage.connection(time, reader, server, questions);
        } else {
            stage.attempt(time, reader, server, fate);
        }
    }
}

/// A resolver with 200 clients: it asks name servers all over the world, of which one in thirty does not
/// answer, and asks again over TCP now and then.
pub fn name_resolution(stage: &mut Stage, length: u64) {
    let resolver = SocketAddr::new(host(RESOLVER, 0), 53);
    let mut time = 0;
    while time < length {
        let client = stage.random.below(200) as u32;
        let from = stage.from(host("10.1.2.0", client));
        stage.question(time, from, resolver, Fate::Open);
        if stage.random.in_thousand(300) {
            let number = stage.random.below(1500) as u32;
            let server = SocketAddr::new(host("203.0.100.0", number), 53);
            let from = stage.from(resolver.ip());
            let fate = match number % 90 {
                0 => Fate::Refused,
                1 | 2 => Fate::Silent,
                _ => Fate::Open,
            };
            stage.question(time + MS, from, server, fate);
            if number % 90 == 5 {
                stage.connection(time + 100 * MS, resolver.ip(), server, 1);
            }
        }
        time += stage.random.between(10, 600) * MS;
    }
}

/// Clients that ask four servers for the time, one of which is gone; and a server that is asked by very
/// many, some hundred of them behind one address.
pub fn time_service(stage: &mut Stage, length: u64) {
    for client in 0..100 {
        for server in 0..4 {
            let interval = stage.random.pick(&[64, 128, 256, 1024]) * SECOND;
            let fate = if server == 3 { Fate::Silent } else { Fate::Open };
            let mut time = stage.random.below(interval);
            while time < length {
                let ends = [host("10.1.3.0", client), host("198.41.0.120", server)];
                let [client, server] = ends.map(|end| SocketAddr::new(end, 123));
                stage.question(time, client, server, fate);
                time += interval;
            }
        }
    }
    let mut time = 0;
    while time < length {
        let client = host("203.0.113.100", stage.random.below(3) as u32);
        let from = stage.from(client);
        let server = SocketAddr::new(host("10.1.0.123", 0), 123);
        stage.question(time, from, server, Fate::Open);
        time += stage.random.between(50, 1500) * MS;
    }
}

/// A handshake and its end at once, as load balancers look whether somebody is there.
fn check(stage: &mut Stage, time: u64, source: IpAddr, target: SocketAddr, fate: Fate) {
    if fate != Fate::Open {
        return stage.attempt(time, source, target, fate);
    }
    let from = stage.from(source);
    let (x, y) = (stage.random.number() as u32, stage.random.number() as u32);
    let (x1, y1) = (x.wrapping_add(1), y.wrapping_add(1));
    stage.add(time, frames::tcp_numbered(from, target, SYN, x, 0, b""));
    stage.add(time + MS, frames::tcp_numbered(target, from, SYN | ACK, y, x1, b""));
    stage.add(time + MS * 11 / 10, frames::tcp_numbered(from, target, ACK, x1, y1, b""));
    stage.add(time + 2 * MS, frames::tcp_numbered(from, target, RST | ACK, x1, y1, b""));
}

/// A load balancer that looks every 10 s whether its 50 backends are there: one refuses, one is silent.
pub fn health_checks(stage: &mut Stage, length: u64) {
    let balancer = host("10.2.0.10", 0);
    for backend in 1..=50_u32 {
        let fate = match backend {
            7 => Fate::Refused,
            23 => Fate::Silent,
            _ => Fate::Open,
        };
        let target = SocketAddr::new(host("10.2.1.0", backend), 8080);
        let mut time = u64::from(backend) * 90 * MS;
        while time < length {
            check(stage, time, balancer, target, fate);
            time += 10 * SECOND;
        }
    }
}

/// A host that asks 200 others every two minutes whether they live: ping, a TCP service (five refuse),
/// SNMP.
pub fn monitoring(stage: &mut Stage, length: u64) {
    let watcher = host("10.3.0.5", 0);
    let mut round = 0;
    while round < length {
        for number in 0..200_u32 {
            let time = round + u64::from(number) * 200 * MS;
            let watched = host("10.3.1.0", number);
            stage.ping(time, watcher, watched, 3, Fate::Open);
            let port = [22, 80, 443, 3306][number as usize % 4];
            let fate = if number % 40 == 9 { Fate::Refused } else { Fate::Open };
            check(stage, time + 20 * MS, watcher, SocketAddr::new(watched, port), fate);
            if number % 3 == 0 {
                let from = stage.from(watcher);
                let agent = SocketAddr::new(watched, 161);
                stage.question(time + 40 * MS, from, agent, Fate::Open);
            }
        }
        round += 2 * MINUTE;
    }
}

/// A host that shares files with 300 others, each at a port of its own, by TCP, UDP or both. Two in five
/// are not there any more. Others connect to it.
pub fn file_sharing(stage: &mut Stage, length: u64) {
    let us = host("10.4.0.7", 0);
    let from = SocketAddr::new(us, 51_413);
    let peers: Vec<_> = (0..300_u32)
        .map(|number| {
            let port = match stage.random.below(10) {
                0 => 51_413,
                1 | 2 => stage.random.between(6881, 6889) as u16,
                _ => stage.random.between(10_000, 65_000) as u16,
            };
            let peer = host("192.88.0.0", 37 + number * 211);
            let fate = match stage.random.below(10) {
                0 => Fate::Refused,
                1..=3 => Fate::Silent,
                _ => Fate::Open,
            };
            (SocketAddr::new(peer, port), fate)
        })
        .collect();
    for (number, (peer, fate)) in peers.iter().enumerate() {
        // Fifty at the begin, the others as trackers tell of them; again after half an hour.
        let first = if number < 50 { number as u64 * 400 * MS } else { number as u64 * 8 * SECOND };
        for time in [first, first + HOUR / 2] {
            if time >= length {
                continue;
            }
            let way = stage.random.below(3);
            if way != 0 {
                stage.attempt(time, us, *peer, *fate);
            }
            if way != 1 {
                stage.question(time + 30 * MS, from, *peer, *fate);
            }
        }
    }
    let mut time = 0;
    while time < length {
        let (peer, fate) = stage.random.pick(&peers);
        if fate == Fate::Open {
            stage.connection(time, peer.ip(), from, 2);
        }
        time += stage.random.between(5, 40) * SECOND;
    }
}

/// The one address of 500 people: pages, mail, names, calls. One connection in seventy fails.
pub fn address_translation(stage: &mut Stage, length: u64) {
    let gateway = host("203.0.113.80", 0);
    let mut time = 0;
    while time < length {
        let number = stage.random.below(900) as u32;
        let server = host("198.18.0.0", number);
        let port = stage.random.pick(&[443, 443, 443, 443, 80, 993, 587, 8443]);
        let fate = match stage.random.below(140) {
            0 => Fate::Refused,
            1 => Fate::Silent,
            _ => Fate::Open,
        };
        stage.attempt(time, gateway, SocketAddr::new(server, port), fate);
        let from = stage.from(gateway);
        let resolver = host("198.41.1.53", number % 4);
        stage.question(time, from, SocketAddr::new(resolver, 53), Fate::Open);
        if number.is_multiple_of(8) {
            let from = stage.from(gateway);
            let port = stage.random.between(16_000, 32_000) as u16;
            stage.question(time, from, SocketAddr::new(server, port), Fate::Open);
        }
        time += stage.random.between(100, 1600) * MS;
    }
}

/// Forty clients of eight forwarded ports. Every twenty minutes the forwarder starts anew: all
/// connections break, and for a quarter of a minute everybody is refused again and again.
pub fn port_forwarder(stage: &mut Stage, length: u64) {
    const LIFE: u64 = 20 * MINUTE;
    let forwarder = host("10.5.0.9", 0);
    for client in 0..40_u32 {
        let source = host("10.5.1.0", client);
        // One of them, which looks after all, uses every port.
        let count = if client == 0 { 8 } else { stage.random.between(1, 3) };
        let first = stage.random.below(8);
        for number in 0..count {
            let port = 8001 + ((first + number) % 8) as u16;
            let target = SocketAddr::new(forwarder, port);
            let mut begin = 0;
            while begin < length {
                let time = begin + stage.random.between(1, 900) * MS;
                stage.session(time, source, target, (LIFE - SECOND, MINUTE), true);
                begin += LIFE;
                if begin < length {
                    for again in 0..7 {
                        stage.refused(begin + again * 2 * SECOND, source, target);
                    }
                    begin += 15 * SECOND;
                }
            }
        }
    }
}

/// A traceroute every minute and a half: each way, to targets that answer, refuse and are silent.
pub fn traceroutes(stage: &mut Stage, length: u64) {
    let mut time = SECOND;
    let mut number = 0;
    while time < length {
        let is_v6 = number % 4 == 3;
        let (sources, targets) =
            if is_v6 { ("2001:db8:9::", "2001:db8:a::") } else { ("10.1.9.0", "198.18.100.0") };
        let (source, target) = (host(sources, number % 3), host(targets, number));
        let how = [Trace::Udp, Trace::Icmp, Trace::Tcp(80)][number as usize % 3];
        let fate = [Fate::Open, Fate::Refused, Fate::Silent, Fate::Open][number as usize / 3 % 4];
        let hops = stage.random.between(5, 18) as u8;
        stage.traceroute(time, source, target, how, (hops, fate));
        number += 1;
        time += 90 * SECOND;
    }
}

/// What hosts of one network say to all others, and to nobody: ARP, discovery, routing.
pub fn local_chatter(stage: &mut Stage, length: u64) {
    let router = ipv4("10.6.0.1", 0);
    let mut time = 0;
    while time < length {
        let number = stage.random.below(60) as u32;
        let station = ipv4("10.6.0.10", number);
        let is_gone = number % 20 == 7;
        stage.arp(time, router, station, if is_gone { Fate::Silent } else { Fate::Open });
        stage.arp(time + 10 * MS, station, router, Fate::Open);
        let mut shout = |port: u16, to: &str, to_port: u16| {
            let ends =
                (SocketAddr::new(station.into(), port), SocketAddr::new(host(to, 0), to_port));
            stage.add(time + 20 * MS, frames::udp(ends.0, ends.1, &[0x11; 90]));
        };
        shout(5353, "224.0.0.251", 5353);
        shout(50_000 + number as u16, "239.255.255.250", 1900);
        shout(137, "10.6.0.255", 137);
        shout(138, "10.6.0.255", 138);
        shout(17_500, "255.255.255.255", 17_500);
        let multicast =
            [(2, "224.0.0.22"), (89, "224.0.0.5"), (103, "224.0.0.13"), (112, "224.0.0.18")];
        for (protocol, group) in multicast {
            let router: IpAddr = router.into();
            stage.add(time + 30 * MS, frames::ip(router, host(group, 0), protocol, &[0x21; 24]));
        }
        time += stage.random.between(1, 6) * SECOND;
    }
}
