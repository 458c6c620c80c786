//! Links that go and come while frames flow. Alone in its file: it counts the descriptors and mappings
//! of the whole process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "each test uses a part")]
mod rings;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use perf::inject::Injector;
use perf::lab::Lab;
use rings::{assert_ledger, group, is_ours, probe, read_the_rest, stop};
use sensor::afpacket::{Fanout, LinkEvent, Ring, Wake, creation_order, wait};

/// Descriptors of the process, and its mappings of packet sockets.
fn held() -> (usize, usize) {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors, maps.lines().filter(|line| line.contains("socket:[")).count())
}

/// Reads what is there; gives the number of frames, and of those that are ours.
fn read(ring: &mut Ring) -> (u64, u64) {
    let mut read = (0, 0);
    while let Some(block) = ring.next_block() {
        for captured in block.frames() {
            read.0 += 1;
            read.1 += u64::from(is_ours(&captured));
        }
    }
    read
}

/// Waits until the ring says that its link is in this state, and reads meanwhile.
fn await_link(rings: &mut [Ring], event: LinkEvent, analysed: &mut [u64]) {
    let begin = Instant::now();
    let mut is_told = vec![false; rings.len()];
    while !is_told.iter().all(|told| *told) {
        assert!(begin.elapsed() < rings::PATIENCE, "{event:?} was never told");
        let wake = wait(&*rings, Duration::from_millis(1)).unwrap();
        for ((ring, told), analysed) in rings.iter_mut().zip(&mut is_told).zip(&mut *analysed) {
            *analysed += read(ring).0;
            if wake == Wake::Link || event == LinkEvent::Up {
                *told |= ring.link_event() == Some(event);
            }
        }
    }
}

#[test]
fn a_hundred_link_flaps_under_load_leak_nothing_and_lose_no_count() {
    const FLAPS: usize = 100;
    let Some(lab) = Lab::new() else { return };
    let before = held();
    lab.sensor().within(|| {
        let mut rings = group("s0", &Fanout::Queue, 2);
        let inodes: Vec<_> = rings.iter().map(|ring| ring.inode().unwrap()).collect();
        let while_open = held();
        assert_eq!(while_open.1, before.1 + 2, "the mappings of rings are not found");
        let mut analysed = vec![0; 2];
        let is_sending = AtomicBool::new(true);
        let sent = AtomicU64::new(0);
        let mut injector = Injector::within(lab.generator(), "g0");
        thread::scope(|scope| {
            scope.spawn(|| {
                while is_sending.load(Ordering::Relaxed) {
                    // While the link is down the kernel may refuse.
                    sent.fetch_add(u64::from(injector.send(&probe()).is_ok()), Ordering::Relaxed);
                }
            });
            for _ in 0..FLAPS {
                lab.sensor().ip("link set s0 down");
                await_link(&mut rings, LinkEvent::Down, &mut analysed);
                lab.sensor().ip("link set s0 up");
                await_link(&mut rings, LinkEvent::Up, &mut analysed);
            }
            is_sending.store(false, Ordering::Relaxed);
        });
        let mut last = Injector::within(lab.generator(), "g0");
        rings::wait_for_carrier(&lab);
        rings.iter_mut().zip(&mut analysed).for_each(|(ring, sum)| *sum += read(ring).0);
        (0..10).for_each(|_| last.send(&probe()).unwrap());
        stop(&mut rings);
        let mut ours = [0, 0];
        for ((ring, analysed), ours) in rings.iter_mut().zip(&mut analysed).zip(&mut ours) {
            *analysed += read_the_rest(ring, |captured| *ours += u32::from(is_ours(captured)));
            ring.settle().unwrap();
            assert_ledger(ring, *analysed);
            assert_eq!(ring.corrupt(), 0);
        }
        assert!(ours[0] >= 10 && ours[1] == 0, "members changed places: {ours:?}");
        assert_eq!(creation_order(&inodes).unwrap(), [0, 1]);
        assert!(sent.load(Ordering::Relaxed) > 0 && analysed[0] > 0, "{sent:?} {analysed:?}");
        drop((injector, last));
        assert_eq!(held().1, while_open.1);
    });
    assert_eq!(held(), before);

    // The interface itself comes and goes: rings are made anew each time.
    lab.sensor().within(|| {
        for _ in 0..20 {
            lab.sensor().ip("link add brief0 type veth peer name brief1");
            lab.sensor().ip("link set brief0 up");
            let mut rings = group("brief0", &Fanout::Hash, 2);
            lab.sensor().ip("link delete brief0");
            await_link(&mut rings, LinkEvent::Gone, &mut [0, 0]);
        }
    });
    assert_eq!(held(), before);
}
