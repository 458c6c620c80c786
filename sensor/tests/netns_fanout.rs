//! Fanout groups against the real kernel, in network namespaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "each test uses a part")]
mod rings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use perf::frames;
use perf::inject::Injector;
use perf::lab::Lab;
use rings::{CONFIG, assert_ledger, drain, group, is_ours, open_on, send_all, udp};
use sensor::afpacket::{
    Fanout, OpenError, PeerRule, Ring, Scope, Symmetry, Unbound, creation_order, probe_symmetry,
};

/// Where each of our frames came out: the ring, and the frame.
fn deal(rings: &mut [Ring]) -> Vec<(usize, Vec<u8>)> {
    let mut dealt = Vec::new();
    rings::stop(rings);
    for (number, ring) in rings.iter_mut().enumerate() {
        let analysed = rings::read_the_rest(ring, |captured| {
            if is_ours(captured) {
                dealt.push((number, captured.frame.data.to_vec()));
            }
        });
        assert_ledger(ring, analysed);
    }
    dealt
}

/// The rings that each key was found on.
fn rings_by<K: Ord>(
    dealt: &[(usize, Vec<u8>)],
    key: impl Fn(&[u8]) -> K,
) -> BTreeMap<K, BTreeSet<usize>> {
    let mut rings: BTreeMap<K, BTreeSet<usize>> = BTreeMap::new();
    for (number, frame) in dealt {
        rings.entry(key(frame)).or_default().insert(*number);
    }
    rings
}

fn assert_each_on_one_ring<K: Ord + std::fmt::Debug>(
    found: &BTreeMap<K, BTreeSet<usize>>,
    of: usize,
) {
    assert!(found.values().all(|rings| rings.len() == 1), "{found:?}");
    let used: BTreeSet<_> = found.values().flatten().collect();
    assert_eq!(used.len(), of, "some rings got nothing: {found:?}");
}

/// The last four bytes of the payload, by which the tests mark flows.
fn mark(frame: &[u8]) -> [u8; 4] {
    *frame.last_chunk().unwrap()
}

/// Both directions of flows from one client to one server, each marked by its client port.
fn both_ways(client: &str, server: &str, flows: u16) -> Vec<Vec<u8>> {
    let address = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port);
    (1..=flows)
        .flat_map(|port| {
            let (from, to) = (address(client, 1000 + port), address(server, 443));
            let payload = [b"flow".as_slice(), &u32::from(port).to_be_bytes()].concat();
            [frames::udp(from, to, &payload), frames::udp(to, from, &payload)]
        })
        .collect()
}

#[test]
fn hash_keeps_both_directions_of_a_flow_on_one_ring() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for (client, server) in [("198.18.0.1", "198.19.0.1"), ("2001:db8::1", "2001:db8:1::1")] {
            let mut rings = group("s0", &Fanout::Hash, 3);
            send_all(&lab, both_ways(client, server, 64));
            let dealt = deal(&mut rings);
            assert_eq!(dealt.len(), 128);
            assert_each_on_one_ring(&rings_by(&dealt, mark), 3);
        }
    });
}

#[test]
fn hash_keeps_the_fragments_of_a_pair_on_one_ring() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Hash, 3);
        let datagrams: Vec<_> = (1..=48_u8)
            .flat_map(|host| (1..=4_u16).map(move |port| (host, port)))
            .map(|(host, port)| {
                let source = format!("198.18.0.{host}:{port}");
                udp(&source, "198.19.0.1:9", &[host; 2400])
            })
            .collect();
        let fragments: Vec<_> =
            datagrams.iter().flat_map(|frame| frames::ipv4_fragments(frame, 800)).collect();
        assert!(fragments.len() >= 3 * datagrams.len());
        send_all(&lab, &fragments);
        let dealt = deal(&mut rings);
        assert_eq!(dealt.len(), fragments.len(), "each fragment is counted once");
        assert_each_on_one_ring(&rings_by(&dealt, |frame| frame[26..34].to_vec()), 3);
    });
}

fn peer_outside(home: &[(&str, u8)]) -> Fanout {
    let home = home.iter().map(|(address, length)| (address.parse().unwrap(), *length));
    Fanout::Peer(PeerRule::Outside(home.collect()))
}

/// Frames from and to 64 hosts at many ports of many targets, marked by the host.
fn scans(source: impl Fn(u16) -> IpAddr, target: impl Fn(u16) -> IpAddr) -> Vec<Vec<u8>> {
    (1..=64_u16)
        .flat_map(|host| (1..=6_u16).map(move |probe| (host, probe)))
        .flat_map(|(host, probe)| {
            let from = SocketAddr::new(source(host), 1000 + probe);
            let to = SocketAddr::new(target(probe), 443 + probe);
            let payload = [b"scan".as_slice(), &u32::from(host).to_be_bytes()].concat();
            [frames::udp(from, to, &payload), frames::udp(to, from, &payload)]
        })
        .collect()
}

fn v4(network: u8) -> impl Fn(u16) -> IpAddr {
    move |host| IpAddr::from([198, network, (host >> 8) as u8, host as u8])
}

fn v6(network: u16) -> impl Fn(u16) -> IpAddr {
    // The hosts differ in different words of the address.
    move |host| {
        let mut parts = [0x2001, 0xdb8, network, 0, 0, 0, 0, 1];
        parts[3 + usize::from(host % 5)] = host;
        IpAddr::from(parts)
    }
}

#[test]
fn peer_outside_the_home_networks_stays_on_one_ring() {
    let Some(lab) = Lab::new() else { return };
    let home = [("192.0.2.0", 24), ("198.19.0.0", 16), ("2001:db8:2::", 47)];
    lab.sensor().within(|| {
        for frames in [scans(v4(18), v4(19)), scans(v6(1), v6(2)), scans(v6(1), v6(3))] {
            let mut rings = group("s0", &peer_outside(&home), 3);
            send_all(&lab, &frames);
            let dealt = deal(&mut rings);
            assert_eq!(dealt.len(), frames.len());
            assert_each_on_one_ring(&rings_by(&dealt, mark), 3);
        }
    });
}

#[test]
fn peers_are_found_behind_vlan_tags() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let plain = scans(v4(18), v4(19));
        let tags: [&[(u16, u16)]; 4] = [
            &[],
            &[(0x8100, 0x2064)],
            &[(0x88a8, 10), (0x8100, 20)],
            &[(0x88a8, 10), (0x8100, 20), (0x8100, 30)],
        ];
        let frames: Vec<_> =
            plain.iter().flat_map(|frame| tags.map(|tags| frames::tagged(frame, tags))).collect();
        let mut rings = group("s0", &peer_outside(&[("198.19.0.0", 16)]), 3);
        send_all(&lab, &frames);
        let dealt = deal(&mut rings);
        assert_eq!(dealt.len(), frames.len());
        assert_each_on_one_ring(&rings_by(&dealt, mark), 3);
    });
}

#[test]
fn more_home_networks_than_a_program_holds_are_refused() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let home = |count: u16| {
            let network = |number: u16| IpAddr::from([10, (number >> 8) as u8, number as u8, 0]);
            Fanout::Peer(PeerRule::Outside((0..count).map(|one| (network(one), 24)).collect()))
        };
        let ring = open_on(&CONFIG, "s0");
        let error = ring.start_group(&home(1000), 2).unwrap_err();
        assert!(matches!(error, OpenError::FilterTooLong { .. }), "{error:?}");
        assert!(error.to_string().contains("fewer home networks"), "{error}");
        ring.start_group(&home(250), 2).unwrap();
    });
}

#[test]
fn flows_within_home_and_beyond_it_stay_together() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for home in [&[("198.0.0.0", 8)][..], &[("192.0.2.0", 24)], &[]] {
            let mut rings = group("s0", &peer_outside(home), 3);
            let flows =
                (1..=64).map(|host| both_ways(&format!("198.18.0.{host}"), "198.19.0.1", 1));
            let frames: Vec<_> = flows.flatten().collect();
            send_all(&lab, &frames);
            let dealt = deal(&mut rings);
            assert_eq!(dealt.len(), frames.len());
            let pair = |frame: &[u8]| {
                let mut pair = [frame[26..30].to_vec(), frame[30..34].to_vec()];
                pair.sort();
                pair
            };
            assert_each_on_one_ring(&rings_by(&dealt, pair), 3);
        }
    });
}

#[test]
fn peer_by_direction_is_source_coming_in_and_target_going_out() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for (peers, own) in [(scans(v4(18), v4(19)), 0), (scans(v6(1), v6(2)), 1)] {
            let mut rings = group("s0", &Fanout::Peer(PeerRule::Direction), 3);
            // From the peers over the link; the answers from the sensor's own side, plain and tagged.
            let mut out = Injector::open("s0").unwrap();
            let incoming: Vec<_> = peers.iter().step_by(2).collect();
            send_all(&lab, &incoming);
            for answer in peers.iter().skip(1).step_by(2) {
                out.send(answer).unwrap();
                out.send(&frames::tagged(answer, &[(0x8100, 7)])).unwrap();
            }
            let dealt = deal(&mut rings);
            assert_eq!(dealt.len(), 3 * incoming.len(), "case {own}");
            assert_each_on_one_ring(&rings_by(&dealt, mark), 3);
        }
    });
}

#[test]
fn what_has_no_peer_reaches_the_first_ring() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &peer_outside(&[("198.19.0.0", 16)]), 3);
        let mut frames: Vec<Vec<u8>> = (0..32_u16)
            .map(|kind| {
                frames::tagged(&frames::ethernet(0x9999, &kind.to_be_bytes().repeat(30)), &[])
            })
            .collect();
        // An IPv4 header that ends before its addresses do.
        frames.push(frames::ethernet(frames::IPV4, &[0x45; 10]));
        send_all(&lab, &frames);
        let dealt = deal(&mut rings);
        assert_eq!(dealt.len(), frames.len());
        assert!(dealt.iter().all(|(ring, _)| *ring == 0), "{dealt:?}");
    });
}

#[test]
fn cpu_and_queue_deliver_every_frame_once() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for fanout in [Fanout::Cpu, Fanout::Queue] {
            let mut rings = group("s0", &fanout, 2);
            let frames = both_ways("198.18.0.1", "198.19.0.1", 500);
            send_all(&lab, &frames);
            let mut dealt: Vec<_> = deal(&mut rings).into_iter().map(|(_, frame)| frame).collect();
            let mut sent = frames;
            dealt.sort();
            sent.sort();
            assert!(dealt == sent, "{fanout:?}: {} of {}", dealt.len(), sent.len());
        }
    });
}

#[test]
fn cpu_deals_by_the_cpu_that_took_the_frame() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Cpu, 2);
        let cpus: Vec<_> = core_affinity::get_core_ids().unwrap().into_iter().take(2).collect();
        // Over a veth pair a frame is taken by the CPU that sent it.
        for cpu in &cpus {
            let payload = [b"cpu".as_slice(), &(cpu.id as u32).to_be_bytes()].concat();
            let frame = udp("198.18.0.1:1", "198.19.0.1:2", &payload);
            let lab = &lab;
            thread::scope(|scope| {
                scope.spawn(move || {
                    let mut set = CpuSet::new();
                    set.set(cpu.id).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
                    let mut injector = Injector::within(lab.generator(), "g0");
                    (0..50).for_each(|_| injector.send(&frame).unwrap());
                });
            });
        }
        let dealt = deal(&mut rings);
        assert_eq!(dealt.len(), 50 * cpus.len());
        for (ring, frame) in &dealt {
            assert_eq!(*ring, u32::from_be_bytes(mark(frame)) as usize % 2);
        }
    });
}

#[test]
fn group_with_room_for_more_than_256_rings_is_made_and_joined() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings: Vec<_> = (0..3).map(|_| open_on(&CONFIG, "s0")).collect();
        let group = rings[0].start_group(&Fanout::Hash, 300).unwrap();
        rings[1..].iter().for_each(|ring| ring.join(&group).unwrap());
        rings.iter_mut().for_each(|ring| ring.begin().unwrap());
        send_all(&lab, both_ways("198.18.0.1", "198.19.0.1", 64));
        let dealt = deal(&mut rings);
        assert_eq!(dealt.len(), 128);
        assert_each_on_one_ring(&rings_by(&dealt, mark), 3);
    });
}

#[test]
fn group_on_all_interfaces_deals_the_frames_of_later_ones_too() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = rings::group_of(&Scope::All { excluded: Vec::new() }, &Fanout::Hash, 2);
        lab.sensor().ip("link add late0 type veth peer name late1");
        lab.sensor().ip("link set late0 up");
        lab.sensor().ip("link set late1 up");
        send_all(&lab, both_ways("198.18.0.1", "198.19.0.1", 32));
        let mut injector = Injector::open("late1").unwrap();
        let frames = both_ways("198.18.0.2", "198.19.0.2", 32);
        frames.iter().for_each(|frame| injector.send(frame).unwrap());
        let dealt = deal(&mut rings);
        // What goes out of late1 is seen there, and again as it comes in on late0.
        assert_eq!(dealt.len(), 64 + 2 * 64);
        let found = rings_by(&dealt, |frame| (frame[29].max(frame[33]), mark(frame)));
        assert_each_on_one_ring(&found, 2);
    });
}

#[test]
fn loopback_comes_once_in_every_kind_of_group() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let kinds = [Fanout::Hash, Fanout::Cpu, Fanout::Queue, Fanout::Peer(PeerRule::Direction)];
        let scopes = [Scope::One(rings::interface("lo")), Scope::All { excluded: Vec::new() }];
        for (scope, fanout) in scopes.iter().flat_map(|scope| kinds.iter().map(move |f| (scope, f)))
        {
            let mut rings = rings::group_of(scope, fanout, 2);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..5 {
                socket.send_to(b"loopback once", socket.local_addr().unwrap()).unwrap();
            }
            let mut seen = 0;
            for ring in &mut rings {
                let analysed = drain(ring, |captured| {
                    seen += u32::from(captured.frame.data.ends_with(b"loopback once"));
                });
                assert_ledger(ring, analysed);
            }
            assert_eq!(seen, 5, "{fanout:?} on {}", scope.name());
        }
    });
}

#[test]
fn this_kernel_deals_flows_symmetrically_and_the_probe_finds_out_quickly() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let probe = || probe_symmetry([Unbound::new().unwrap(), Unbound::new().unwrap()]);
        // Traffic of others on loopback must not matter, and the probe must not be seen by them.
        let own = UdpSocket::bind("127.0.0.1:0").unwrap();
        own.send_to(b"somebody else's", own.local_addr().unwrap()).unwrap();
        // The quickest of some: the others may have waited for a processor.
        let times = (0..5).map(|_| {
            let begin = Instant::now();
            assert_eq!(probe(), Symmetry::Symmetric { flows: 32 });
            begin.elapsed()
        });
        let quickest = times.min().unwrap();
        assert!(quickest < Duration::from_millis(500), "{quickest:?}");
        eprintln!("symmetry was found out in {quickest:?}");
        lab.sensor().ip("link set lo down");
        assert!(matches!(probe(), Symmetry::NotTested { .. }), "{:?}", probe());
    });
}

#[test]
fn creation_order_is_found_and_is_what_a_link_flap_restores() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings: Vec<_> = (0..2).map(|_| open_on(&CONFIG, "s0")).collect();
        let inodes: Vec<_> = rings.iter().map(|ring| ring.inode().unwrap()).collect();
        assert_eq!(creation_order(&inodes).unwrap(), [0, 1]);
        // Made in one order, joined in the other.
        rings.swap(0, 1);
        let inodes: Vec<_> = rings.iter().map(|ring| ring.inode().unwrap()).collect();
        assert_eq!(creation_order(&inodes).unwrap(), [1, 0]);
        let group = rings[0].start_group(&Fanout::Queue, 2).unwrap();
        rings[1].join(&group).unwrap();
        rings.iter_mut().for_each(|ring| ring.begin().unwrap());
        // One queue: every frame is dealt to whoever stands in the first place.
        let first_place = |rings: &mut [Ring]| {
            send_all(&lab, both_ways("198.18.0.1", "198.19.0.1", 5));
            let mut ours = vec![0; rings.len()];
            let begin = Instant::now();
            while ours.iter().sum::<usize>() < 10 {
                assert!(begin.elapsed() < rings::PATIENCE, "{ours:?}");
                for (ring, ours) in rings.iter_mut().zip(&mut ours) {
                    while let Some(block) = ring.next_block() {
                        *ours += block.frames().filter(is_ours).count();
                    }
                }
                thread::sleep(Duration::from_millis(1));
            }
            ours.iter().position(|ours| *ours == 10)
        };
        assert_eq!(first_place(&mut rings), Some(0));
        lab.sensor().ip("link set s0 down");
        lab.sensor().ip("link set s0 up");
        rings::wait_for_carrier(&lab);
        assert_eq!(first_place(&mut rings), Some(1));
    });
}
