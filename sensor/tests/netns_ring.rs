//! The ring against the real kernel, in network namespaces.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use packet::frame::VlanTag;
use perf::frames;
use perf::inject::Injector;
use perf::lab::{Lab, Namespace};
use rings::{
    CONFIG, PATIENCE, assert_ledger, drain, group, is_ours, open_on, probe, read_ours, send,
    send_all, started_on, udp,
};
use sensor::afpacket::{
    Direction, Fanout, Interface, LinkEvent, OpenError, RingConfig, Unbound, Wake, wait,
};

#[test]
fn every_frame_sent_is_read_once_and_counted_once() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        send(&lab, &probe(), 20_000);
        let mut ours = 0;
        let analysed = drain(&mut ring, |captured| ours += u64::from(is_ours(captured)));
        assert_eq!(ours, 20_000);
        assert_ledger(&ring, analysed);
        assert_eq!((ring.statistics().drops, ring.corrupt()), (0, 0));
    });
}

#[test]
fn nothing_enters_before_begin() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = open_on(&CONFIG, "s0");
        send(&lab, &probe(), 100);
        thread::sleep(Duration::from_millis(20));
        assert!(ring.next_block().is_none());
        assert_eq!(ring.refresh_statistics().unwrap().packets, 0);
        ring.begin().unwrap();
        send(&lab, &probe(), 7);
        let mut ours = 0;
        drain(&mut ring, |captured| ours += u64::from(is_ours(captured)));
        assert_eq!(ours, 7);
    });
}

#[test]
fn frame_has_its_bytes_time_and_direction() {
    let Some(lab) = Lab::new() else { return };
    let before = jiff::Timestamp::now().as_nanosecond();
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        send(&lab, &probe(), 1);
        Injector::open("s0").unwrap().send(&probe()).unwrap();
        let mut directions = Vec::new();
        read_ours(&mut ring, 2, |captured| {
            assert_eq!(captured.frame.data, probe());
            assert_eq!(captured.frame.wire_len.0 as usize, probe().len());
            let time = i128::from(captured.frame.time.0);
            assert!((before..=jiff::Timestamp::now().as_nanosecond()).contains(&time), "{time}");
            directions.push(captured.direction());
        });
        assert_eq!(directions, [Direction::Incoming, Direction::Outgoing]);
    });
}

#[test]
fn outer_vlan_tag_comes_beside_the_bytes() {
    let Some(lab) = Lab::new() else { return };
    let tag = |protocol, control| VlanTag { protocol, control };
    let cases: [(&[(u16, u16)], VlanTag); 4] = [
        (&[(0x8100, 0x2064)], tag(0x8100, 0x2064)),
        (&[(0x8100, 0)], tag(0x8100, 0)),
        (&[(0x88a8, 10)], tag(0x88a8, 10)),
        (&[(0x88a8, 10), (0x8100, 20)], tag(0x88a8, 10)),
    ];
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        for (tags, outer) in cases {
            send(&lab, &frames::tagged(&probe(), tags), 1);
            read_ours(&mut ring, 1, |captured| {
                assert_eq!(captured.frame.vlan, Some(outer), "{tags:?}");
                assert_eq!(captured.frame.data, frames::tagged(&probe(), &tags[1..]));
                assert_eq!(captured.frame.wire_len.0 as usize, captured.frame.data.len());
            });
        }
        send(&lab, &probe(), 1);
        read_ours(&mut ring, 1, |captured| assert_eq!(captured.frame.vlan, None));
    });
}

#[test]
fn snaplen_cuts_the_bytes_and_not_the_length() {
    let Some(lab) = Lab::new() else { return };
    let long = udp("198.18.0.1:1000", "198.19.0.1:2000", &[7; 1000]);
    lab.sensor().within(|| {
        let mut ring = started_on(&RingConfig { snaplen: 64, ..CONFIG }, "s0");
        send(&lab, &long, 1);
        read_ours(&mut ring, 1, |captured| {
            assert_eq!(captured.frame.data, &long[..64]);
            assert_eq!(captured.frame.wire_len.0 as usize, long.len());
        });
    });
}

#[test]
fn group_keeps_both_directions_of_a_flow_together() {
    const FLOWS: u16 = 64;
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Hash, 2);
        let both_ways = (1..=FLOWS).flat_map(|port| {
            let (client, server) = (format!("198.18.0.1:{port}"), "198.19.0.1:443");
            [udp(&client, server, b"question"), udp(server, &client, b"answer")]
        });
        send_all(&lab, both_ways);
        let mut rings_of_flow: BTreeMap<u16, BTreeSet<usize>> = BTreeMap::new();
        let mut total = 0;
        for (number, ring) in rings.iter_mut().enumerate() {
            let analysed = drain(ring, |captured| {
                if is_ours(captured) {
                    let ports = [34, 36].map(|at| {
                        u16::from_be_bytes([captured.frame.data[at], captured.frame.data[at + 1]])
                    });
                    rings_of_flow.entry(ports[0].min(ports[1])).or_default().insert(number);
                    total += 1;
                }
            });
            assert_ledger(ring, analysed);
        }
        assert_eq!(total, 2 * FLOWS);
        let used: BTreeSet<_> = rings_of_flow.values().flatten().collect();
        assert_eq!(used.len(), 2, "one ring got all flows");
        assert!(rings_of_flow.values().all(|rings| rings.len() == 1), "{rings_of_flow:?}");
    });
}

#[test]
fn two_groups_on_one_interface_see_everything_each() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut groups = [group("s0", &Fanout::Hash, 2), group("s0", &Fanout::Hash, 2)];
        send(&lab, &probe(), 50);
        for rings in &mut groups {
            let mut ours = 0;
            for ring in rings {
                drain(ring, |captured| ours += u64::from(is_ours(captured)));
            }
            assert_eq!(ours, 50);
        }
    });
}

#[test]
fn loopback_frames_come_once() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        for count in [1, 2] {
            let mut rings = if count == 1 {
                vec![started_on(&CONFIG, "lo")]
            } else {
                group("lo", &Fanout::Hash, count)
            };
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let target: SocketAddr = socket.local_addr().unwrap();
            for _ in 0..5 {
                socket.send_to(b"loopback once", target).unwrap();
            }
            let mut seen = 0;
            for ring in &mut rings {
                let analysed = drain(ring, |captured| {
                    seen += u32::from(captured.frame.data.ends_with(b"loopback once"));
                    assert_eq!(captured.direction(), Direction::Incoming);
                });
                assert_ledger(ring, analysed);
            }
            assert_eq!(seen, 5, "with {count} rings");
        }
    });
}

#[test]
fn smallest_ring_under_overload_has_an_exact_ledger() {
    const SENT: u64 = 50_000;
    let Some(lab) = Lab::new() else { return };
    let config =
        RingConfig { block_bytes: 4096, block_count: 2, least_blocks: 2, retire_ms: 1, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        let is_sending = AtomicBool::new(true);
        let mut analysed = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&lab, &probe(), SENT as usize);
                is_sending.store(false, Ordering::Release);
            });
            while is_sending.load(Ordering::Acquire) {
                if let Some(block) = ring.next_block() {
                    analysed += block.frames().count() as u64;
                    thread::sleep(Duration::from_micros(100)); // a reader that is too slow
                }
            }
        });
        analysed += drain(&mut ring, |_| {});
        let statistics = ring.statistics();
        assert_ledger(&ring, analysed);
        assert_eq!(ring.corrupt(), 0);
        assert!(statistics.packets >= SENT && statistics.packets < SENT + 50, "{statistics:?}");
        assert!(statistics.drops > 0 && statistics.freezes > 0, "{statistics:?}");
    });
}

#[test]
fn ledger_is_exact_when_the_ring_is_stopped_under_load() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let is_sending = AtomicBool::new(true);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut injector = Injector::within(lab.generator(), "g0");
                while is_sending.load(Ordering::Acquire) {
                    injector.send(&probe()).unwrap();
                }
            });
            for _ in 0..10 {
                let mut ring = started_on(&CONFIG, "s0");
                thread::sleep(Duration::from_millis(5));
                let analysed = drain(&mut ring, |_| {});
                assert_ledger(&ring, analysed);
                thread::sleep(Duration::from_millis(10));
                assert!(ring.next_block().is_none());
            }
            is_sending.store(false, Ordering::Release);
        });
    });
}

#[test]
fn ring_goes_on_when_the_link_comes_up_again() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Hash, 2);
        assert!(rings.iter_mut().all(|ring| ring.link_event().is_none()));
        lab.sensor().ip("link set s0 down");
        assert_eq!(wait(&rings, PATIENCE).unwrap(), Wake::Link);
        for ring in &mut rings {
            assert_eq!(ring.link_event(), Some(LinkEvent::Down));
            assert_eq!(ring.link_event(), None);
        }
        assert_ne!(wait(&rings, Duration::from_millis(10)).unwrap(), Wake::Link);
        lab.sensor().ip("link set s0 up");
        for ring in &mut rings {
            assert_eq!(ring.link_event(), Some(LinkEvent::Up));
            assert_eq!(ring.link_event(), None);
        }
        send_when_up(&lab);
        let mut ours = 0;
        for ring in &mut rings {
            let analysed = drain(ring, |captured| ours += u32::from(is_ours(captured)));
            assert_ledger(ring, analysed);
        }
        assert_eq!(ours, 10);
    });
}

fn send_when_up(lab: &Lab) {
    rings::wait_for_carrier(lab);
    send(lab, &probe(), 10);
}

#[test]
fn ring_on_an_interface_that_is_down_says_so_and_starts_when_it_comes_up() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        lab.sensor().ip("link set s0 down");
        let mut ring = started_on(&CONFIG, "s0");
        assert_eq!(ring.link_event(), Some(LinkEvent::Down));
        lab.sensor().ip("link set s0 up");
        assert_eq!(ring.link_event(), Some(LinkEvent::Up));
        send_when_up(&lab);
        read_ours(&mut ring, 10, |_| {});
    });
}

#[test]
fn ring_follows_an_interface_that_was_renamed() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        lab.sensor().ip("link set s0 down");
        assert_eq!(ring.link_event(), Some(LinkEvent::Down));
        lab.sensor().ip("link set s0 name other0");
        // The name that it had belongs to another interface now.
        lab.sensor().ip("link add s0 type veth peer name s1");
        lab.sensor().ip("link set s0 up");
        assert_eq!(ring.link_event(), None);
        lab.sensor().ip("link set other0 up");
        assert_eq!(ring.link_event(), Some(LinkEvent::Up));
        send_when_up(&lab);
        read_ours(&mut ring, 10, |_| {});
    });
}

#[test]
fn deleted_interface_is_told() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        lab.sensor().ip("link delete s0");
        assert_eq!(wait([&ring], PATIENCE).unwrap(), Wake::Link);
        assert_eq!(ring.link_event(), Some(LinkEvent::Gone));
        // One of the same name is another interface.
        lab.sensor().ip("link add s0 type veth peer name s1");
        lab.sensor().ip("link set s0 up");
        assert_eq!(ring.link_event(), None);
    });
}

#[test]
fn ring_leaves_its_group_when_dropped() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Hash, 3);
        rings.truncate(1);
        let flow = |port| udp(&format!("198.18.0.1:{port}"), "198.19.0.1:443", b"flow");
        send_all(&lab, (1..=32).map(flow));
        read_ours(&mut rings[0], 32, |_| {});
    });
}

#[test]
fn unknown_interface_names_those_that_exist() {
    let Some(lab) = Lab::new() else { return };
    let error = lab.sensor().within(|| Interface::find("eth7").unwrap_err());
    assert_eq!(error.to_string(), "there is no interface \"eth7\"; there are lo, s0");
}

#[test]
fn missing_capability_is_named() {
    let Some(lab) = Lab::new() else { return };
    let error = without_net_raw(lab.sensor(), || Unbound::new().unwrap_err());
    assert!(matches!(error, OpenError::Permission), "{error:?}");
    assert_eq!(error.to_string(), "cannot open a packet socket: CAP_NET_RAW is missing");
}

fn without_net_raw<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    namespace.within(|| {
        // Capabilities belong to the thread, which ends after this.
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_RAW).unwrap();
        work()
    })
}

#[test]
fn ring_of_another_interface_cannot_join() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let first = open_on(&CONFIG, "s0");
        let group = first.start_group(&Fanout::Hash, 2).unwrap();
        let error = open_on(&CONFIG, "lo").join(&group).unwrap_err();
        assert_eq!(error.to_string(), "cannot join a fanout group on lo");
    });
}
