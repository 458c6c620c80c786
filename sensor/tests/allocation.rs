//! What a worker does for a packet allocates nothing, whatever the packets are and however its tables
//! are pressed: not even the first time.

use packet::frame::{Frame, LinkType, VlanTag};
use perf::frames::{self, ACK, ARP, DOT1AD, DOT1Q, FIN, IPV4, IPV6, RST, SYN};
use sensor::afpacket::Captured;
use sensor::analyse::{Analyser, FlowSettings, Settings, VECTOR};
use sensor::config::{Export, ExportFrames};
use sensor::connections::NewConnection;
use sensor::counters::Counters;
use sensor::detection::Evidence;
use sensor::export::Exporter;
use sensor::flood;
use sensor::flow::{EndedFlow, State, Timeouts};
use sensor::interfaces::{Finder, Places};
use sensor::uplink::OwnConnections;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use wire::units::{UnixNanos, WireLen};

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 24
    }

    fn socket(&mut self, is_v4: bool) -> SocketAddr {
        let address = if is_v4 {
            IpAddr::V4(Ipv4Addr::from_bits(self.next() as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(u128::from(self.next()) << 64 | 1))
        };
        SocketAddr::new(address, self.next() as u16)
    }
}

/// A flood from random sources, with everything else in between.
fn traffic(count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(1);
    let mut traffic = Vec::new();
    while traffic.len() < count {
        let is_v4 = !random.next().is_multiple_of(4);
        let (source, target) = (random.socket(is_v4), random.socket(is_v4));
        let probe = frames::tcp(source, target, SYN, b"");
        traffic.push(match random.next() % 16 {
            0 => frames::tcp(target, source, SYN | ACK, b""),
            1 => frames::tcp(target, source, RST | ACK, b""),
            2 => frames::tcp(source, target, FIN | ACK, &[0; 1000]),
            3 => frames::udp(source, target, &[0; 400]),
            4 => frames::port_unreachable(target.ip(), &probe),
            5 => frames::arp_request(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
            6 => frames::tagged(&probe, &[(DOT1AD, 5), (DOT1Q, 6)]),
            7 => {
                let bytes: Vec<u8> =
                    (0..random.next() % 200).map(|_| random.next() as u8).collect();
                let ether_type = [IPV4, IPV6, ARP, DOT1Q][random.next() as usize % 4];
                frames::ethernet(ether_type, &bytes)
            }
            _ => probe,
        });
    }
    traffic
}

/// A worker's tables and outlets, without its ring.
struct Desk {
    counters: Counters,
    analyser: Analyser,
    exporter: Exporter,
    batches: sensor::uplink::BatchRing,
    own: OwnConnections,
    places: Places,
    connections: (rtrb::Producer<NewConnection>, rtrb::Consumer<NewConnection>),
    flows: (rtrb::Producer<EndedFlow>, rtrb::Consumer<EndedFlow>),
    evidence: (rtrb::Producer<Evidence>, rtrb::Consumer<Evidence>),
    targets: (rtrb::Producer<flood::Report>, rtrb::Consumer<flood::Report>),
    clock: u64,
}

impl Desk {
    fn new() -> Self {
        let counters = Counters::new(vec!["eth0".into()], 1);
        // Small tables, so that they overflow: what gives way may not allocate either.
        let settings = Settings {
            new_connections: true,
            connections_per_second: 10_000,
            contacts: 1 << 12,
            flows: Some(FlowSettings {
                flows: 1024,
                grows: false,
                timeouts: Timeouts::new([Duration::from_millis(5); State::ALL.len()]),
                per_second: Some(4000),
            }),
            splits_flows: true,
            key: 1,
        };
        let export = Export { frames: ExportFrames::All, snaplen: 256, pool_mib: 1 };
        let (exporter, batches) = Exporter::new(&export, 2, 1 << 20);
        Self {
            analyser: Analyser::new(&settings, counters.workers()[0].clone()),
            counters,
            exporter,
            batches,
            own: OwnConnections::default(),
            places: Places::default(),
            connections: rtrb::RingBuffer::new(1 << 10),
            flows: rtrb::RingBuffer::new(1 << 10),
            evidence: rtrb::RingBuffer::new(1 << 10),
            targets: rtrb::RingBuffer::new(1 << 8),
            clock: 1_700_000_000_000_000_000,
        }
    }

    /// One vector, as a worker takes it out of a block.
    fn work_through(&mut self, vector: &[Vec<u8>]) {
        let mut frames = [Frame::EMPTY; VECTOR];
        let places = self.places.load();
        let mut finder = Finder::new(&places);
        for (frame, data) in frames.iter_mut().zip(vector) {
            self.clock += 400;
            let vlan = (data.len() % 2 == 0).then_some(VlanTag { protocol: DOT1Q, control: 7 });
            let (time, wire_len) = (UnixNanos(self.clock), WireLen(data.len() as u32));
            let link = if data.len() % 8 == 0 { LinkType::RAW } else { LinkType::ETHERNET };
            *frame = Frame { data, wire_len, time, vlan, link: LinkType::ETHERNET, interface: 0 };
            let captured = Captured {
                frame: Frame { link, ..*frame },
                packet_type: 0,
                interface_index: u32::from(data.len() as u8),
            };
            frame.interface = finder.id_of(&captured).unwrap_or_default();
        }
        let frames = &frames[..vector.len()];
        let own = self.own.load();
        let Self {
            analyser,
            connections: (connections, _),
            flows: (flows, _),
            exporter,
            counters,
            ..
        } = self;
        // A full ring is no reason to allocate: what finds no room is counted and forgotten.
        let connection = |connection| connections.push(connection).unwrap_or_default();
        let mut taken = [Frame::EMPTY; VECTOR];
        let packets =
            analyser.analyse(0, &mut frames.iter().copied(), &mut taken, connection, |flow| {
                flows.push(flow).unwrap_or_default()
            });
        let counted = &counters.workers()[0].interfaces[0];
        exporter.take(frames, packets, counted, |tuple| own.contains(tuple));
    }

    /// What a worker does four times a second.
    fn tick(&mut self) {
        let evidence = &mut self.evidence.0;
        let _ = self.analyser.publish(|one| evidence.push(Evidence::Contact(*one)).is_ok());
        let targets = &mut self.targets.0;
        self.analyser.publish_targets(|one| targets.push(*one).is_ok());
        let flows = &mut self.flows.0;
        self.analyser
            .end_idle_flows(UnixNanos(self.clock), |flow| flows.push(flow).unwrap_or_default());
        let _ = evidence.push(Evidence::Tick(UnixNanos(self.clock)));
        self.exporter.flush();
    }

    /// What the threads at the other ends do.
    fn take_out(&mut self) {
        while self.connections.1.pop().is_ok() {}
        while self.evidence.1.pop().is_ok() {}
        while self.targets.1.pop().is_ok() {}
        while self.flows.1.pop().is_ok() {}
        while let Ok(mut batch) = self.batches.filled.pop() {
            batch.clear();
            assert!(self.batches.empty.push(batch).is_ok());
        }
    }
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![0_u8; 100])));
    assert_eq!(counted.count_total, 1);
}

#[test]
fn no_packet_makes_a_worker_allocate() {
    let traffic = traffic(40_000);
    let mut desk = Desk::new();
    // The first look of a thread at the own connections registers the thread, once.
    drop(desk.own.load());
    let counted = allocation_counter::measure(|| {
        for (number, vector) in traffic.chunks(VECTOR).enumerate() {
            desk.work_through(vector);
            if number % 40 == 39 {
                desk.tick();
            }
            // Now and then the other ends are late, and everything is full.
            if number % 400 == 399 {
                desk.take_out();
            }
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?}");
    let worker = &desk.counters.workers()[0];
    let interface = &worker.interfaces[0];
    assert_eq!(interface.analysed.read(), 40_000);
    // Every way was gone: exported, pool dry, evidence published, given way or gated, over the limit.
    let counters = &worker.worker;
    let ways = [
        interface.exported.read(),
        interface.lost_pool_empty.read(),
        counters.connections.read(),
        counters.connections_over_limit.read(),
        counters.contacts_published.read(),
        counters.evidence_lost.read() + counters.contacts_gated.read(),
        counters.targets_published.read(),
        counters.targets_evicted.read(),
        counters.flows.half_open_evicted.read(),
        counters.flows.openings_skipped.read(),
        counters.flows.over_limit.read(),
        counters.flows.evicted[State::New as usize].read(),
        counters.flows.ended[0].read(),
    ];
    assert!(ways.iter().all(|count| *count > 0), "{ways:?}");
}
