//! Verdicts on interfaces that are made up.

use super::facts::Facts;
use super::sysfs::{Interrupt, Link, Node};
use super::verdicts::{self, Finding, Verdict};
use super::xdp::{Mode, Xdp};
use crate::afpacket::{Channels, Coalesce, Driver, Feature, Pause, Rss, RxRing};

const NOT_SAID: &str = "the driver does not say";

fn feature(name: &str, is_on: bool) -> Feature {
    Feature { name: name.into(), is_on, is_fixed: false }
}

/// A 10 Gbit/s device with four queues, set up as it should be for workers on CPUs 0 to 3.
fn good_device() -> Facts {
    let link = Link {
        is_up: true,
        has_carrier: true,
        speed_mbit: Some(10_000),
        duplex: Some("full".into()),
        mtu: 1500,
        ..Link::default()
    };
    Facts {
        interface: "eth9".into(),
        is_loopback: false,
        has_device: true,
        driver: Ok(Driver { name: "ixgbe".into(), bus: "0000:03:00.0".into() }),
        link: Ok(link),
        rx_queues: Ok(4),
        channels: Ok(Channels { rx: 0, rx_max: 0, combined: 4, combined_max: 16 }),
        rss: Ok(Rss {
            function: 1,
            is_input_symmetric: false,
            key: [0x6d, 0x5a].repeat(20),
            table: (0..128).map(|at| at % 4).collect(),
        }),
        features: Ok(vec![
            feature("rx-gro", false),
            feature("rx-lro", false),
            feature("rx-gro-hw", false),
            feature("rx-vlan-hw-parse", true),
        ]),
        rx_ring: Ok(RxRing { now: 4096, max: 4096 }),
        pause: Ok(Pause { rx: false, tx: false }),
        coalesce: Ok(Coalesce { rx_usecs: 50, rx_frames: 0, is_adaptive: false }),
        interrupts: Ok((0..4)
            .map(|at| Interrupt { number: 40 + at, cpus: vec![at as usize] })
            .collect()),
        runs_irqbalance: Ok(false),
        node: Ok(Some(Node { number: 0, cpus: (0..8).collect() })),
        xdp: Ok(None),
    }
}

const WORKERS: [usize; 4] = [0, 1, 2, 3];

fn find(facts: &Facts, item: &str) -> Finding {
    let all = verdicts::all(facts, &WORKERS);
    all.into_iter().find(|one| one.item == item).unwrap_or_else(|| panic!("no item {item}"))
}

/// Only `item` is not good, with this verdict, and this in its remedy.
#[track_caller]
fn assert_only(facts: &Facts, item: &str, verdict: Verdict, remedy: Option<&str>) {
    for finding in verdicts::all(facts, &WORKERS) {
        let expected = if finding.item == item { verdict } else { Verdict::Good };
        assert_eq!(finding.verdict, expected, "{finding:?}");
        if finding.item == item {
            assert_eq!(finding.remedy.as_deref(), remedy, "{finding:?}");
            assert!(!finding.why.is_empty(), "{finding:?}");
        }
    }
}

#[track_caller]
fn assert_warning(facts: &Facts, item: &str, remedy: &str) {
    assert_only(facts, item, Verdict::Warning, Some(remedy));
}

#[test]
fn a_device_that_is_set_up_well_has_only_good_items() {
    for finding in verdicts::all(&good_device(), &WORKERS) {
        assert_eq!((finding.verdict, &finding.remedy), (Verdict::Good, &None), "{finding:?}");
    }
}

#[test]
fn an_asymmetric_key_of_several_queues_is_a_warning_with_the_whole_new_key() {
    let mut facts = good_device();
    facts.rss.as_mut().unwrap().key = vec![0x11, 0x22, 0x33, 0x44];
    assert_warning(&facts, "rss-hash", "ethtool -X eth9 hkey 6d:5a:6d:5a");
    facts.rss.as_mut().unwrap().is_input_symmetric = true;
    assert_eq!(find(&facts, "rss-hash").verdict, Verdict::Good);
}

#[test]
fn one_queue_needs_no_symmetric_key() {
    let mut facts = good_device();
    facts.rss.as_mut().unwrap().key = vec![0x11, 0x22, 0x33, 0x44];
    facts.channels = Ok(Channels { combined: 1, combined_max: 1, ..Channels::default() });
    facts.interrupts.as_mut().unwrap().truncate(1);
    assert_eq!(find(&facts, "rss-hash").verdict, Verdict::Good);
    assert_eq!(find(&facts, "queues").verdict, Verdict::Good, "it cannot have more");
}

#[test]
fn a_key_that_is_not_shown_is_unknown_and_xor_needs_none() {
    let mut facts = good_device();
    facts.rss.as_mut().unwrap().key.clear();
    assert_only(&facts, "rss-hash", Verdict::Unknown, None);
    facts.rss.as_mut().unwrap().function = 2;
    assert_eq!(find(&facts, "rss-hash").verdict, Verdict::Good);
    facts.rss.as_mut().unwrap().function = 4;
    assert_warning(&facts, "rss-hash", "ethtool -X eth9 hfunc toeplitz");
}

#[test]
fn a_table_that_leaves_queues_out_is_a_warning() {
    let mut facts = good_device();
    facts.rss.as_mut().unwrap().table = (0..128).map(|at| at % 2).collect();
    assert_warning(&facts, "rss-table", "ethtool -X eth9 equal 4");
    assert!(find(&facts, "rss-table").found.contains("2 of 4 queues"));
}

#[test]
fn merging_is_a_warning_with_the_switch_that_ends_it() {
    for (index, (item, switch)) in
        [("gro", "gro"), ("lro", "lro"), ("hw-gro", "rx-gro-hw")].into_iter().enumerate()
    {
        let mut facts = good_device();
        facts.features.as_mut().unwrap()[index].is_on = true;
        assert_warning(&facts, item, &format!("ethtool -K eth9 {switch} off"));
        facts.features.as_mut().unwrap()[index].is_fixed = true;
        assert_only(&facts, item, Verdict::Warning, None);
    }
}

#[test]
fn fewer_queues_than_workers_is_a_warning_if_the_device_has_more() {
    let mut facts = good_device();
    facts.channels = Ok(Channels { combined: 2, combined_max: 3, ..Channels::default() });
    assert_eq!(find(&facts, "queues").remedy.as_deref(), Some("ethtool -L eth9 combined 3"));
    facts.channels = Ok(Channels { rx: 2, rx_max: 8, ..Channels::default() });
    assert_eq!(find(&facts, "queues").remedy.as_deref(), Some("ethtool -L eth9 rx 4"));
    facts.channels = Err(NOT_SAID.into());
    facts.rx_queues = Ok(1);
    assert_eq!(find(&facts, "queues").verdict, Verdict::Unknown);
}

#[test]
fn workers_on_another_node_than_the_device_are_a_warning_with_cpus_that_fit() {
    let mut facts = good_device();
    facts.node = Ok(Some(Node { number: 1, cpus: (8..16).collect() }));
    assert_warning(&facts, "numa", "in sensor.toml, [capture]: cpus = [8, 9, 10, 11]");
}

#[test]
fn a_small_ring_is_a_warning_unless_it_is_as_large_as_can_be() {
    let mut facts = good_device();
    facts.rx_ring = Ok(RxRing { now: 512, max: 4096 });
    assert_warning(&facts, "rx-ring", "ethtool -G eth9 rx 4096");
    facts.rx_ring = Ok(RxRing { now: 256, max: 256 });
    assert_eq!(find(&facts, "rx-ring").verdict, Verdict::Good);
    facts.rx_ring = Ok(RxRing { now: 512, max: 4096 });
    facts.link.as_mut().unwrap().speed_mbit = Some(1000);
    assert_eq!(find(&facts, "rx-ring").verdict, Verdict::Good, "1488 frames in 4 queues fit");
}

#[test]
fn interrupts_that_come_too_late_for_the_ring_are_a_warning() {
    let mut facts = good_device();
    facts.coalesce = Ok(Coalesce { rx_usecs: 400, rx_frames: 0, is_adaptive: false });
    assert_warning(&facts, "coalescing", "ethtool -C eth9 rx-usecs 50");
    assert!(find(&facts, "coalescing").why.contains("5952 frames"));
    facts.coalesce = Ok(Coalesce { rx_usecs: 400, rx_frames: 256, is_adaptive: false });
    assert_eq!(find(&facts, "coalescing").verdict, Verdict::Good);
    facts.coalesce = Ok(Coalesce { rx_usecs: 4000, rx_frames: 0, is_adaptive: true });
    assert_eq!(find(&facts, "coalescing").verdict, Verdict::Good);
    facts.coalesce = Ok(Coalesce { rx_usecs: 4000, rx_frames: 256, is_adaptive: false });
    assert_warning(&facts, "coalescing", "ethtool -C eth9 rx-usecs 50");
}

#[test]
fn pause_frames_that_the_device_sends_are_a_warning() {
    let mut facts = good_device();
    facts.pause = Ok(Pause { rx: true, tx: false });
    assert_eq!(find(&facts, "pause-frames").verdict, Verdict::Good);
    facts.pause = Ok(Pause { rx: true, tx: true });
    assert_warning(&facts, "pause-frames", "ethtool -A eth9 rx off tx off");
}

#[test]
fn irqbalance_is_a_warning_where_there_are_queues_to_move() {
    let mut facts = good_device();
    facts.runs_irqbalance = Ok(true);
    assert_warning(&facts, "irqbalance", "systemctl disable --now irqbalance");
    facts.interrupts.as_mut().unwrap().truncate(1);
    assert_eq!(find(&facts, "irqbalance").verdict, Verdict::Good);
}

#[test]
fn queues_that_leave_a_worker_out_are_a_warning_with_a_place_for_each() {
    let mut facts = good_device();
    for interrupt in facts.interrupts.as_mut().unwrap() {
        interrupt.cpus = vec![0];
    }
    let remedy = "echo 0 > /proc/irq/40/smp_affinity_list; echo 1 > /proc/irq/41/smp_affinity_list; \
                  echo 2 > /proc/irq/42/smp_affinity_list; echo 3 > /proc/irq/43/smp_affinity_list";
    assert_warning(&facts, "irq-affinity", remedy);
    assert!(find(&facts, "irq-affinity").why.contains("CPU 1-3"));
    facts.interrupts = Ok(Vec::new());
    assert_only(&facts, "irq-affinity", Verdict::Unknown, None);
}

#[test]
fn a_link_that_brings_nothing_or_loses_frames_is_a_warning() {
    let mut facts = good_device();
    facts.link.as_mut().unwrap().duplex = Some("half".into());
    assert_warning(&facts, "link", "ethtool -s eth9 autoneg on");
    facts.link.as_mut().unwrap().has_carrier = false;
    assert_only(&facts, "link", Verdict::Warning, None);
    facts.link.as_mut().unwrap().is_up = false;
    assert_warning(&facts, "link", "ip link set dev eth9 up");
    let mut facts = good_device();
    facts.link.as_mut().unwrap().length_errors = 3;
    assert_warning(&facts, "mtu", "ip link set dev eth9 mtu 9000");
}

#[test]
fn an_xdp_program_is_a_warning_with_the_switch_of_its_mode() {
    let mut facts = good_device();
    facts.xdp = Ok(Some(Xdp { mode: Mode::Generic, program: 7 }));
    assert_warning(&facts, "xdp", "ip link set dev eth9 xdpgeneric off");
    facts.xdp = Err("no netlink".into());
    assert_only(&facts, "xdp", Verdict::Unknown, None);
}

#[test]
fn what_a_virtual_interface_lacks_is_not_asked_of_it() {
    let nothing = || NOT_SAID.to_owned();
    let mut facts = good_device();
    facts.has_device = false;
    facts.rx_queues = Ok(1);
    facts.channels = Err(nothing());
    facts.rss = Err(nothing());
    facts.rx_ring = Err(nothing());
    facts.pause = Err(nothing());
    facts.coalesce = Err(nothing());
    facts.interrupts = Ok(Vec::new());
    facts.node = Ok(None);
    for finding in verdicts::all(&facts, &WORKERS) {
        assert_eq!(finding.verdict, Verdict::Good, "{finding:?}");
    }
}

#[test]
fn where_nothing_can_be_read_everything_is_unknown_and_nothing_good() {
    let nothing = || NOT_SAID.to_owned();
    let facts = Facts {
        interface: "eth9".into(),
        is_loopback: false,
        has_device: false,
        driver: Err(nothing()),
        link: Err(nothing()),
        rx_queues: Err(nothing()),
        channels: Err(nothing()),
        rss: Err(nothing()),
        features: Err(nothing()),
        rx_ring: Err(nothing()),
        pause: Err(nothing()),
        coalesce: Err(nothing()),
        interrupts: Err(nothing()),
        runs_irqbalance: Err(nothing()),
        node: Err(nothing()),
        xdp: Err(nothing()),
    };
    for finding in verdicts::all(&facts, &WORKERS) {
        assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
        assert_eq!(finding.why, NOT_SAID, "{finding:?}");
    }
}
