//! Rings at their limits, against the real kernel: long frames, little memory, slow readers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "each test uses a part")]
mod rings;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use libc::sock_filter;
use perf::frames;
use perf::lab::Lab;
use rings::{
    CONFIG, PATIENCE, assert_ledger, drain, interface, is_ours, open_on, probe, read_ours, send,
    send_all, started_on, udp,
};
use sensor::afpacket::{Fanout, Interface, OpenError, Ring, RingConfig, Scope, Unbound, wait};

const KIB: u32 = 1024;

/// Sends `bytes` over TCP to the sensor's side of the link.
fn stream(lab: &Lab, bytes: usize) {
    let listener = lab.sensor().within(|| TcpListener::bind("10.99.0.2:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = lab.generator().within(|| TcpStream::connect(address)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || client.write_all(&vec![7; bytes]).unwrap());
        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        while received < bytes {
            received += server.read(&mut buffer).unwrap();
        }
    });
}

/// Lengths of the frames that a TCP stream makes: captured and on the wire.
fn lengths_of_a_stream(lab: &Lab, ring: &mut Ring) -> Vec<(usize, usize)> {
    stream(lab, 4 << 20);
    let mut lengths = Vec::new();
    let analysed = drain(ring, |captured| {
        lengths.push((captured.frame.data.len(), captured.frame.wire_len.0 as usize));
    });
    assert_ledger(ring, analysed);
    lengths
}

#[test]
fn frames_that_the_kernel_put_together_are_whole() {
    let Some(lab) = Lab::new() else { return };
    let config =
        RingConfig { block_bytes: 256 * KIB, block_count: 256, snaplen: 1 << 18, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        let lengths = lengths_of_a_stream(&lab, &mut ring);
        let longest = lengths.iter().map(|(_, wire)| *wire).max().unwrap();
        assert!(longest > 32_000, "segments were not put together: {longest}");
        assert!(lengths.iter().all(|(captured, wire)| captured == wire));
        assert_eq!(ring.cut(), sensor::afpacket::Cut::default());
    });
}

#[test]
fn frames_longer_than_a_block_are_cut_counted_and_measured() {
    let Some(lab) = Lab::new() else { return };
    let config =
        RingConfig { block_bytes: 16 * KIB, block_count: 2048, snaplen: 1 << 18, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        let lengths = lengths_of_a_stream(&lab, &mut ring);
        let cut: Vec<_> = lengths.iter().filter(|(captured, wire)| captured < wire).collect();
        assert!(!cut.is_empty(), "no frame was longer than a block");
        // The header of the block, those of the frame, and room for a VLAN tag.
        let room = 16 * 1024 - 48 - 86;
        assert!(cut.iter().all(|(captured, _)| *captured == room), "{cut:?}");
        assert_eq!(ring.cut().frames, cut.len() as u64);
        assert_eq!(ring.cut().longest_bytes as usize, cut.iter().map(|one| one.1).max().unwrap());
        assert_eq!(ring.corrupt(), 0);
    });
}

#[test]
fn frames_cut_by_the_snap_length_do_not_count_as_cut() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&RingConfig { snaplen: 64, ..CONFIG }, "s0");
        send(&lab, &udp("198.18.0.1:1", "198.19.0.1:2", &[7; 1400]), 10);
        read_ours(&mut ring, 10, |captured| assert_eq!(captured.frame.data.len(), 64));
        assert_eq!(ring.cut().frames, 0);
    });
}

#[test]
fn blocks_that_were_full_and_those_whose_time_was_up_are_told_apart() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        send(&lab, &probe(), 1);
        read_ours(&mut ring, 1, |_| {});
        let statistics = ring.statistics();
        assert!(statistics.blocks_timed_out > 0 && statistics.blocks_full == 0, "{statistics:?}");
        // 1 400 bytes, and 45 of them to a block: all but the last few blocks are full.
        let mut ring = started_on(&RingConfig { retire_ms: 1000, ..CONFIG }, "s0");
        send(&lab, &udp("198.18.0.1:1", "198.19.0.1:2", &[7; 1358]), 45 * 20);
        drain(&mut ring, |_| {});
        let statistics = ring.statistics();
        assert!(statistics.blocks_full >= 18 && statistics.blocks_timed_out <= 2, "{statistics:?}");
    });
}

#[test]
fn high_water_is_how_many_blocks_waited_for_us() {
    let Some(lab) = Lab::new() else { return };
    let config = RingConfig { block_bytes: 4 * KIB, block_count: 16, retire_ms: 1000, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        assert_eq!(ring.take_high_water(), 0);
        send(&lab, &udp("198.18.0.1:1", "198.19.0.1:2", &[7; 1358]), 500);
        assert_eq!(ring.take_high_water(), 16, "a stalled reader is seen without a block read");
        while ring.next_block().is_some() {}
        assert!(ring.take_high_water() > 0);
        assert_eq!(ring.take_high_water(), 0);
    });
}

#[test]
fn newest_frame_of_a_block_tells_its_delay() {
    let Some(lab) = Lab::new() else { return };
    let now = || jiff::Timestamp::now().as_nanosecond();
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        for _ in 0..5 {
            let before = now();
            send_all(&lab, std::iter::repeat_n(probe(), 3));
            let begin = Instant::now();
            let mut seen = 0;
            while seen < 3 {
                assert!(begin.elapsed() < rings::PATIENCE);
                wait([&ring], Duration::from_millis(10)).unwrap();
                while let Some(block) = ring.next_block() {
                    let newest = block.frames().map(|captured| captured.frame.time).max();
                    assert_eq!(Some(block.last_frame()), newest);
                    if block.frames().any(|captured| is_ours(&captured)) {
                        seen += block.frames().filter(is_ours).count();
                        let last = i128::from(block.last_frame().0);
                        assert!((before..=now()).contains(&last), "{last}");
                    }
                }
            }
        }
    });
}

#[test]
fn ring_beyond_all_memory_is_refused_with_its_figures() {
    let Some(lab) = Lab::new() else { return };
    // The kernel refuses the list of so many blocks, before it takes a single one.
    let config = RingConfig {
        block_bytes: 4 * KIB,
        block_count: 16_000_000,
        least_blocks: 15_000_000,
        ..CONFIG
    };
    lab.sensor().within(|| {
        let scope = Scope::One(interface("s0"));
        let socket = Unbound::new().unwrap();
        let error = Ring::open(socket, &config, &scope).unwrap_err();
        assert!(matches!(error, OpenError::Memory { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "no memory for a ring of 65536000000 bytes on s0, nor for the least, 61440000000 bytes; \
             make capture.ring_mib smaller"
        );
    });
}

/// Interfaces count who wants to see all frames.
fn is_promiscuous(lab: &Lab) -> bool {
    let flags = lab.sensor().run("cat", &["/sys/class/net/s0/flags"]).stdout;
    let flags = String::from_utf8(flags).unwrap();
    u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap() & 0x100 != 0
}

#[test]
fn a_socket_of_which_no_ring_came_is_as_good_as_new() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let s0 = Scope::One(interface("s0"));
        let gone = Scope::One(Interface { index: 4711, ..interface("s0") });
        let no_memory = RingConfig {
            block_bytes: 4 * KIB,
            block_count: 16_000_000,
            least_blocks: 15_000_000,
            ..CONFIG
        };
        // A jump to where nothing is.
        let refused = [sock_filter { code: libc::BPF_JMP as u16, jt: 0, jf: 0, k: 9 }];
        let open = |spare: &Unbound, config, scope| Ring::open(spare.spare(), config, scope);
        type Attempt<'a> = &'a dyn Fn(&Unbound) -> Result<(), OpenError>;
        let no_way: [(&str, Attempt<'_>); 5] = [
            ("no memory", &|spare| open(spare, &no_memory, &s0).map(drop)),
            ("no such interface", &|spare| open(spare, &CONFIG, &gone).map(drop)),
            ("a group that cannot be", &|spare| {
                open(spare, &CONFIG, &s0)?.start_group(&Fanout::Hash, 1 << 17).map(drop)
            }),
            ("a filter that cannot be, alone", &|spare| {
                let mut ring = open(spare, &CONFIG, &s0)?;
                ring.set_filter(&refused)?;
                ring.begin()
            }),
            ("a filter that cannot be, in a group", &|spare| {
                let mut ring = open(spare, &CONFIG, &s0)?;
                ring.set_filter(&refused)?;
                ring.start_group(&Fanout::Hash, 2).map(drop)
            }),
        ];
        let socket = Unbound::new().unwrap();
        for (what, attempt) in no_way.iter().cycle().take(20) {
            assert!(attempt(&socket).is_err(), "{what}");
            socket.reset(&s0).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!is_promiscuous(&lab), "{what}");
        }
        let mut ring = Ring::open(socket, &CONFIG, &s0).unwrap();
        ring.begin().unwrap();
        send(&lab, &probe(), 5);
        read_ours(&mut ring, 5, |_| {});
        assert!(is_promiscuous(&lab));
    });
}

#[test]
fn a_socket_in_a_group_cannot_serve_again() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let socket = Unbound::new().unwrap();
        let ring = Ring::open(socket.spare(), &CONFIG, &Scope::One(interface("s0"))).unwrap();
        ring.start_group(&Fanout::Hash, 2).unwrap();
        drop(ring);
        assert!(socket.reset(&Scope::One(interface("s0"))).is_err());
    });
}

#[test]
fn ring_says_how_many_blocks_it_got() {
    let Some(lab) = Lab::new() else { return };
    lab.sensor().within(|| {
        let ring = open_on(&CONFIG, "s0");
        assert_eq!(*ring.config(), CONFIG);
    });
}

#[test]
fn fragments_are_counted_each_once() {
    let Some(lab) = Lab::new() else { return };
    let whole = udp("198.18.0.1:1000", "198.19.0.1:2000", &[7; 3000]);
    let fragments = frames::ipv4_fragments(&whole, 1000);
    lab.sensor().within(|| {
        let mut ring = started_on(&CONFIG, "s0");
        send_all(&lab, &fragments);
        let mut seen = Vec::new();
        let analysed = drain(&mut ring, |captured| {
            if is_ours(captured) {
                seen.push(captured.frame.data.to_vec());
            }
        });
        assert_ledger(&ring, analysed);
        assert_eq!(seen, fragments, "nothing is put together, nothing comes twice");
    });
}

#[test]
fn account_is_settled_exactly_after_overload() {
    let Some(lab) = Lab::new() else { return };
    let config = RingConfig { block_bytes: 4 * KIB, block_count: 2, retire_ms: 1, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        send(&lab, &probe(), 20_000);
        let analysed = drain(&mut ring, |_| {});
        ring.settle().unwrap();
        assert_ledger(&ring, analysed);
        assert_eq!((ring.corrupt(), ring.corrupt_blocks(), ring.waiting()), (0, 0, 0));
        assert!(ring.statistics().drops > 0);
    });
}

#[test]
fn what_is_left_in_a_ring_is_unread_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    let config = RingConfig { block_bytes: 4 * KIB, block_count: 8, retire_ms: 600_000, ..CONFIG };
    lab.sensor().within(|| {
        let mut ring = started_on(&config, "s0");
        // Two frames fill a block: four of them are handed over, and one is not.
        send(&lab, &udp("198.18.0.1:1", "198.19.0.1:2", &[7; 1358]), 9);
        let begin = Instant::now();
        while ring.take_high_water() < 4 {
            assert!(begin.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(1));
        }
        let read = ring.next_block().unwrap().frames().count() as u64;
        rings::stop(std::slice::from_mut(&mut ring));
        ring.settle().unwrap();
        assert_eq!((ring.corrupt(), ring.corrupt_blocks(), ring.waiting()), (0, 0, 0));
        let statistics = ring.statistics();
        assert_eq!(statistics.packets, statistics.drops + read + ring.unread(), "{statistics:?}");
        // The stacks of both sides may have said something as well.
        assert!((1..=4).contains(&read) && ring.unread() >= 6, "{read}, {}", ring.unread());
    });
}
