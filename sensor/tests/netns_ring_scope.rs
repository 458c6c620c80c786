//! Rings on all interfaces, filters, and the reserve of sockets, against the real kernel.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "each test uses a part")]
mod rings;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use caps::CapSet;
use libc::sock_filter;
use packet::frame::LinkType;
use perf::inject::Injector;
use perf::lab::Lab;
use rings::{
    CONFIG, assert_ledger, drain, interface, is_ours, open, probe, read_ours, send, started,
    started_on, udp,
};
use sensor::afpacket::{
    Direction, Fanout, Interface, OpenError, PeerRule, Promiscuity, Reserve, Ring, RingConfig,
    Scope, Statistics, Unbound, creation_order,
};

fn all() -> Scope {
    Scope::All { excluded: Vec::new() }
}

/// Adds a veth pair whose sides are both in the sensor's namespace.
fn add_pair(lab: &Lab, near: &str, far: &str) {
    lab.sensor().ip(&format!("link add {near} type veth peer name {far}"));
    lab.sensor().ip(&format!("link set {near} up"));
    lab.sensor().ip(&format!("link set {far} up"));
}

/// How many of our frames came, by interface and direction.
fn count_by_interface(ring: &mut Ring) -> BTreeMap<(u32, bool), u32> {
    let mut counts = BTreeMap::new();
    let analysed = drain(ring, |captured| {
        if is_ours(captured) {
            let key = (captured.interface_index, captured.direction() == Direction::Incoming);
            *counts.entry(key).or_default() += 1;
        }
    });
    assert_ledger(ring, analysed);
    counts
}

#[test]
fn ring_on_all_interfaces_names_the_interface_and_sees_later_ones() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started(&CONFIG, &all());
        send(&lab, &probe(), 3);
        add_pair(&lab, "late0", "late1");
        let mut injector = Injector::open("late1").unwrap();
        (0..5).for_each(|_| injector.send(&probe()).unwrap());
        let [s0, late0, late1] = ["s0", "late0", "late1"].map(|name| interface(name).index);
        let expected = [((s0, true), 3), ((late0, true), 5), ((late1, false), 5)];
        assert_eq!(count_by_interface(&mut ring), BTreeMap::from(expected));
    });
}

/// How many users want the interface to be promiscuous.
fn promiscuity(lab: &Lab, name: &str) -> String {
    let text = lab.sensor().ip(&format!("-d link show {name}")).stdout;
    let text = String::from_utf8(text).unwrap();
    text.split_whitespace().skip_while(|word| *word != "promiscuity").nth(1).unwrap().to_owned()
}

#[test]
fn promiscuous_mode_is_that_of_the_scope_and_ends_with_the_ring() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        add_pair(&lab, "other0", "other1");
        let of_each = |names: [&str; 3]| names.map(|name| promiscuity(&lab, name));
        let ring = open(&CONFIG, &Scope::One(interface("s0")));
        assert_eq!(of_each(["s0", "other0", "lo"]), ["1", "0", "0"]);
        drop(ring);
        let ring = open(&CONFIG, &Scope::All { excluded: vec![interface("other0").index] });
        assert_eq!(of_each(["s0", "other0", "other1"]), ["1", "0", "1"]);
        add_pair(&lab, "late0", "late1");
        let promiscuity = Promiscuity::new().unwrap();
        assert_eq!(of_each(["late0", "late1", "lo"]), ["0", "0", "0"]);
        for name in ["late0", "late1"] {
            promiscuity.begin(interface(name).index).unwrap();
        }
        promiscuity.end(interface("late1").index).unwrap();
        assert_eq!(of_each(["late0", "late1", "lo"]), ["1", "0", "0"]);
        drop(promiscuity);
        assert_eq!(of_each(["s0", "late0", "late1"]), ["1", "0", "0"]);
        drop(ring);
        let ring = open(&RingConfig { promiscuous: false, ..CONFIG }, &all());
        assert_eq!(of_each(["s0", "other1", "late0"]), ["0", "0", "0"]);
        drop(ring);
    });
}

#[test]
fn deleted_interface_leaves_a_ring_on_all_as_it_is() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        add_pair(&lab, "brief0", "brief1");
        let mut ring = started(&CONFIG, &all());
        lab.sensor().ip("link delete brief0");
        assert_eq!(ring.link_event(), None);
        send(&lab, &probe(), 4);
        let expected = [((interface("s0").index, true), 4)];
        assert_eq!(count_by_interface(&mut ring), BTreeMap::from(expected));
    });
}

#[test]
fn excluded_interfaces_are_neither_seen_nor_counted() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let s0 = interface("s0").index;
        let mut ring = started(&CONFIG, &Scope::All { excluded: vec![s0] });
        send(&lab, &probe(), 5);
        assert!(count_by_interface(&mut ring).is_empty());
        let mut ring = started(&CONFIG, &all());
        ring.set_excluded(&[s0]).unwrap();
        send(&lab, &probe(), 5);
        // Indexes that far away jumps must reach, and one that is meant.
        let many: Vec<u32> = (1000..2500).collect();
        ring.set_excluded(&many).unwrap();
        send(&lab, &probe(), 7);
        assert_eq!(count_by_interface(&mut ring), BTreeMap::from([((s0, true), 7)]));
        ring.begin().unwrap();
        ring.set_excluded(&[many, vec![s0]].concat()).unwrap();
        send(&lab, &probe(), 9);
        assert!(count_by_interface(&mut ring).is_empty());
    });
}

#[test]
fn too_many_excluded_interfaces_are_refused_and_the_filter_before_stays() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started(&CONFIG, &all());
        let s0 = interface("s0").index;
        ring.set_excluded(&[s0]).unwrap();
        let error = ring.set_excluded(&(1000..4000).collect::<Vec<u32>>()).unwrap_err();
        let OpenError::FilterTooLong { instructions, .. } = error else { panic!("{error}") };
        assert!(instructions > 4096, "{error}");
        assert!(error.to_string().contains("exclude fewer interfaces"), "{error}");
        send(&lab, &probe(), 5);
        assert!(count_by_interface(&mut ring).is_empty());
    });
}

#[test]
fn loopback_comes_once_beside_other_interfaces_whose_outgoing_frames_stay() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for scope in [Scope::One(interface("lo")), all()] {
            let mut ring = started(&CONFIG, &scope);
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            (0..5).for_each(|_| {
                socket.send_to(b"loopback once", socket.local_addr().unwrap()).unwrap();
            });
            Injector::open("s0").unwrap().send(&probe()).unwrap();
            let (mut echoes, mut outgoing) = (0, 0);
            let analysed = drain(&mut ring, |captured| {
                if captured.frame.data.ends_with(b"loopback once") {
                    assert_eq!(captured.direction(), Direction::Incoming);
                    echoes += 1;
                }
                outgoing += u32::from(is_ours(captured));
            });
            assert_ledger(&ring, analysed);
            assert_eq!((echoes, outgoing), (5, u32::from(scope == all())));
        }
    });
}

#[test]
fn link_type_is_that_of_the_frame_not_of_the_ring() {
    let Some(lab) = Lab::new() else { return };
    if !perf::tools::require(&["socat"]) {
        return;
    }
    let mut tunnel = Command::new("socat");
    // Whatever is sent into the tunnel comes out of it again.
    tunnel.args(["TUN:192.0.2.1/24,iff-no-pi,iff-up,tun-name=tun7", "PIPE"]);
    let _tunnel = lab.sensor().spawn(&tunnel);
    let begin = Instant::now();
    let index = lab.sensor().within(|| {
        loop {
            match Interface::find("tun7") {
                Ok(found) => break found.index,
                Err(error) => assert!(begin.elapsed() < rings::PATIENCE, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
    lab.sensor().within(|| {
        let scopes = [all(), Scope::One(interface("tun7"))];
        for scope in &scopes {
            // In a group that deals by peer, which must find it without a link header.
            let mut rings = rings::group_of(scope, &Fanout::Peer(PeerRule::Direction), 2);
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for host in 2..34 {
                let sent = socket.send_to(b"no link header", (Ipv4Addr::new(192, 0, 2, host), 9));
                sent.unwrap();
                // One by one: what waits in the pipe together comes out as one.
                thread::sleep(Duration::from_millis(3));
            }
            // The other end has its time to give back the last ones.
            thread::sleep(Duration::from_millis(300));
            send(&lab, &probe(), 1);
            let mut from_tunnel = BTreeMap::new();
            rings::stop(&mut rings);
            for (number, ring) in rings.iter_mut().enumerate() {
                rings::read_the_rest(ring, |captured| {
                    if is_ours(captured) {
                        assert_eq!(captured.frame.link, LinkType::ETHERNET);
                    } else if captured.frame.data.ends_with(b"no link header") {
                        assert_eq!(captured.frame.link, LinkType::RAW);
                        assert_eq!(
                            (captured.interface_index, captured.frame.data[0]),
                            (index, 0x45)
                        );
                        let key = (captured.direction() == Direction::Incoming, number);
                        *from_tunnel.entry(key).or_insert(0) += 1;
                    }
                });
            }
            let total = |incoming| -> u32 {
                (0..2).filter_map(|ring| from_tunnel.get(&(incoming, ring))).sum()
            };
            // The pipe behind the tunnel joins packets that come quickly.
            assert!(total(false) == 32 && total(true) > 0, "{from_tunnel:?}");
            // What comes back has our address as its source: one peer, and so one ring.
            let used = |incoming| from_tunnel.keys().filter(|key| key.0 == incoming).count();
            assert_eq!((used(false), used(true)), (2, 1), "{from_tunnel:?}");
        }
    });
}

/// A program that keeps `bytes` of UDP over IPv4 to `port` and rejects the rest.
fn udp_to(port: u16, bytes: u32) -> Vec<sock_filter> {
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(0x28, 0, 0, 12),              // ldh [12]
        step(0x15, 0, 3, 0x0800),          // is it IPv4?
        step(0x28, 0, 0, 36),              // ldh [36]
        step(0x15, 0, 1, u32::from(port)), // is it the port?
        step(0x06, 0, 0, bytes),
        step(0x06, 0, 0, 0),
    ]
}

#[test]
fn program_of_the_user_decides_after_our_own() {
    let Some(lab) = Lab::new() else { return };
    let to = |port| udp("198.18.0.1:9", &format!("198.19.0.1:{port}"), &[port as u8; 60]);
    lab.sensor().within(|| {
        for scope in [Scope::One(interface("s0")), all()] {
            let mut ring = open(&RingConfig { snaplen: 80, ..CONFIG }, &scope);
            ring.set_filter(&udp_to(7, 0x4_0000)).unwrap();
            ring.begin().unwrap();
            send(&lab, &to(7), 3);
            send(&lab, &to(8), 5);
            let mut lengths = Vec::new();
            read_ours(&mut ring, 3, |captured| lengths.push(captured.frame.data.len()));
            assert_eq!(lengths, [80; 3], "the ring's own limit holds");
            ring.set_filter(&udp_to(8, 50)).unwrap();
            send(&lab, &to(7), 3);
            send(&lab, &to(8), 2);
            read_ours(&mut ring, 2, |captured| assert_eq!(captured.frame.data.len(), 50));
            ring.set_filter(&[]).unwrap();
            send(&lab, &to(7), 1);
            send(&lab, &to(8), 1);
            read_ours(&mut ring, 2, |_| {});
        }
    });
}

#[test]
fn program_that_the_kernel_refuses_leaves_the_one_before() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        ring.set_filter(&udp_to(2000, 65535)).unwrap();
        let error = ring.set_filter(&udp_to(1, 1)[..5]).unwrap_err();
        assert_eq!(error.to_string(), "cannot attach a packet filter on s0");
        send(&lab, &probe(), 1); // to port 2000
        send(&lab, &udp("198.18.0.1:1", "198.19.0.1:2", b"other"), 1);
        read_ours(&mut ring, 1, |captured| assert_eq!(captured.frame.data, probe()));
    });
}

#[test]
fn program_that_rejects_everything_leaves_the_statistics_at_zero() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = open(&CONFIG, &all());
        ring.set_filter(&[sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }]).unwrap();
        ring.begin().unwrap();
        send(&lab, &probe(), 1000);
        assert_eq!(drain(&mut ring, |_| {}), 0);
        assert_eq!(ring.statistics(), Statistics::default());
    });
}

#[test]
fn rejector_silences_a_ring_from_another_thread_and_keeps_none_alive() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        send(&lab, &probe(), 2);
        let rejector = ring.rejector();
        let other = rejector.clone();
        thread::spawn(move || other.reject_all().unwrap()).join().unwrap();
        send(&lab, &probe(), 50);
        ring.set_filter(&[]).unwrap();
        ring.set_excluded(&[12345]).unwrap();
        send(&lab, &probe(), 50);
        let mut ours = 0;
        let analysed = drain(&mut ring, |captured| ours += u32::from(is_ours(captured)));
        assert_ledger(&ring, analysed);
        assert_eq!(ours, 2);
        let inode = ring.inode().unwrap();
        drop(ring);
        // A program that another test starts just now has a copy until it runs.
        let deadline = Instant::now() + Duration::from_secs(5);
        while !creation_order(&[inode]).unwrap().is_empty() {
            assert!(Instant::now() < deadline, "socket lives on");
            thread::sleep(Duration::from_millis(10));
        }
        rejector.reject_all().unwrap();
    });
}

#[test]
fn rings_are_made_of_the_reserve_after_all_capabilities_are_gone() {
    let Some(lab) = Lab::new() else { return };
    let reserve = lab.sensor().within(|| Reserve::fill(3).unwrap());
    let program = udp_to(2000, 65535);
    let mut injector = Injector::within(lab.generator(), "g0");
    // Capabilities belong to the thread, which ends after this.
    lab.sensor().within(|| {
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set).unwrap();
        }
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        assert!(matches!(Unbound::new(), Err(OpenError::Permission)));
        let scopes = [Scope::One(interface("s0")), Scope::One(interface("s0")), all()];
        let mut rings: Vec<_> = scopes
            .iter()
            .map(|scope| Ring::open(reserve.take().unwrap(), &CONFIG, scope).unwrap())
            .collect();
        assert_eq!(reserve.left(), 0);
        assert!(reserve.take().is_none());
        let peer = Fanout::Peer(PeerRule::Direction);
        let group = rings[0].start_group(&peer, 2).unwrap();
        rings[1].join(&group).unwrap();
        for ring in &mut rings {
            ring.set_filter(&program).unwrap();
            ring.begin().unwrap();
        }
        (0..10).for_each(|_| injector.send(&probe()).unwrap());
        let mut ours = [0; 3];
        for (ring, ours) in rings.iter_mut().zip(&mut ours) {
            drain(ring, |captured| *ours += u32::from(is_ours(captured)));
        }
        assert_eq!((ours[0] + ours[1], ours[2]), (10, 10));
    });
}

#[test]
fn reserve_gives_its_sockets_in_the_order_in_which_they_were_made() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let reserve = Reserve::fill(4).unwrap();
        assert_eq!(reserve.left(), 4);
        let config = RingConfig { block_bytes: 4096, block_count: 4, ..CONFIG };
        let rings: Vec<_> = std::iter::from_fn(|| reserve.take())
            .map(|socket| Ring::open(socket, &config, &all()).unwrap())
            .collect();
        let inodes: Vec<_> = rings.iter().map(|ring| ring.inode().unwrap()).collect();
        assert_eq!(creation_order(&inodes).unwrap(), [0, 1, 2, 3]);
    });
}
