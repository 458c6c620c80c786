//! What the interfaces themselves dropped, before any packet socket saw it.
//!
//! A ring counts what it was offered. Frames that the network card or its driver lost are in the
//! interface's own counters, which belong to the whole ledger of a capture: without them "no drops" is
//! said of frames that never came so far.
//!
//! Source: Linux `Documentation/networking/statistics.rst`; the columns of `/proc/net/dev` are made in
//! `net/core/net-procfs.c`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::sync::{Mutex, PoisonError};

use nix::net::if_::if_nameindex;
use serde::Serialize;

use crate::interfaces::Patterns;
use crate::metrics::{Families, Source};

/// The receiving side of one interface, as its driver counts it. Unit: frames, unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceCounters {
    /// Received.
    pub packets: u64,
    /// Received. Unit: bytes.
    pub bytes: u64,
    /// Bad on the wire, all reasons together.
    pub errors: u64,
    /// Dropped for want of room in the host (`rx_dropped` and `rx_missed_errors`). Includes frames of
    /// protocols that nothing on the host takes, which packet sockets saw nevertheless.
    pub dropped: u64,
    /// Dropped because a queue of the card was full.
    pub fifo: u64,
}

impl DeviceCounters {
    /// What was added since `before`. A counter that went back belongs to a new device of the same name,
    /// or was reset: all of it is new.
    fn since(&self, before: &Self) -> Self {
        let is_reset = self.packets < before.packets || self.bytes < before.bytes;
        let before = if is_reset { &Self::default() } else { before };
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            errors: self.errors.saturating_sub(before.errors),
            dropped: self.dropped.saturating_sub(before.dropped),
            fifo: self.fifo.saturating_sub(before.fifo),
        }
    }

    fn add(&mut self, more: &Self) {
        let Self { packets, bytes, errors, dropped, fifo } = more;
        self.packets += packets;
        self.bytes += bytes;
        self.errors += errors;
        self.dropped += dropped;
        self.fifo += fifo;
    }
}

/// One interface and its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    name: String,
    /// Stays the same when it is renamed.
    index: u32,
    counters: DeviceCounters,
}

/// The counters of all interfaces of this network namespace. Empty if the kernel does not say.
fn read() -> Vec<Device> {
    let Ok(indexes) = if_nameindex() else { return Vec::new() };
    let indexes =
        indexes.iter().map(|one| (one.name().to_string_lossy().into_owned(), one.index()));
    let indexes: HashMap<String, u32> = indexes.collect();
    // Of the thread: a process may have threads in several namespaces.
    let counters = parse(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default());
    let device = |(name, counters): (String, DeviceCounters)| {
        let index = *indexes.get(&name)?;
        Some(Device { name, index, counters })
    };
    counters.into_iter().filter_map(device).collect()
}

fn parse(text: &str) -> HashMap<String, DeviceCounters> {
    let rows = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (bytes, packets, errors, dropped, fifo) = (next()?, next()?, next()?, next()?, next()?);
        let counters = DeviceCounters { packets, bytes, errors, dropped, fifo };
        Some((name.trim().to_owned(), counters))
    });
    rows.collect()
}

/// What is remembered of devices that are not there: they may come back from another namespace, with
/// their index and all that they had counted.
const MOST_ABSENT: usize = 1024;

/// The counters of the captured interfaces since the start. They only grow, also when a device is
/// deleted and made again.
#[derive(Debug)]
pub struct Devices {
    names: Vec<String>,
    /// What the only name stands for, if it is no interface: those that match, all together.
    patterns: Option<Patterns>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By index.
    last: HashMap<u32, DeviceCounters>,
    sums: Vec<DeviceCounters>,
}

impl Devices {
    /// Counts from now on the interfaces of these names, or those that match.
    #[must_use]
    pub fn new(names: Vec<String>, patterns: Option<Patterns>) -> Self {
        Self::at(read(), names, patterns)
    }

    fn at(now: Vec<Device>, names: Vec<String>, patterns: Option<Patterns>) -> Self {
        let sums = vec![DeviceCounters::default(); names.len()];
        let last = now.into_iter().map(|one| (one.index, one.counters)).collect();
        Self { names, patterns, state: Mutex::new(State { last, sums }) }
    }

    /// The names with their sums as they are now. To be called now and then, so that what a device
    /// counted before it was deleted is not missed.
    pub fn refresh(&self) -> BTreeMap<&str, DeviceCounters> {
        let names = self.names.iter().map(String::as_str);
        names.zip(self.take_in(read())).collect()
    }

    fn take_in(&self, now: Vec<Device>) -> Vec<DeviceCounters> {
        // A reader that panicked left whole numbers behind.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { last, sums } = &mut *state;
        let present = now.len();
        for Device { name, index, counters } in &now {
            // Also of those that are not captured: they may be renamed.
            let before = last.insert(*index, *counters).unwrap_or_default();
            if let Some(place) = self.place_of(name) {
                sums[place].add(&counters.since(&before));
            }
        }
        if last.len() > present + MOST_ABSENT {
            *last = now.into_iter().map(|one| (one.index, one.counters)).collect();
        }
        sums.clone()
    }

    /// Which of the names an interface belongs to.
    fn place_of(&self, name: &str) -> Option<usize> {
        match &self.patterns {
            Some(patterns) => patterns.matches(name).then_some(0),
            None => self.names.iter().position(|one| one == name),
        }
    }
}

impl Source for Devices {
    fn write(&self, families: &mut Families<'_>) -> fmt::Result {
        let sums = self.refresh();
        let rows = |of: fn(&DeviceCounters) -> u64| {
            let row = |(name, sum): (&&str, _)| (vec![("interface", (*name).to_owned())], of(sum));
            sums.iter().map(row).collect::<Vec<_>>()
        };
        families.counter(
            "ringwatch_interface_packets",
            "Frames that the interface itself counts as received",
            rows(|sum| sum.packets),
        )?;
        families.counter(
            "ringwatch_interface_bytes",
            "Bytes that the interface itself counts as received",
            rows(|sum| sum.bytes),
        )?;
        families.counter(
            "ringwatch_interface_errors",
            "Frames that the interface received damaged",
            rows(|sum| sum.errors),
        )?;
        families.counter(
            "ringwatch_interface_dropped",
            "Frames that the interface or the host dropped, those that no protocol took included",
            rows(|sum| sum.dropped),
        )?;
        families.counter(
            "ringwatch_interface_fifo_dropped",
            "Frames that the interface dropped because one of its queues was full",
            rows(|sum| sum.fifo),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    9600     120    0    0    0     0          0         0     9600     120    0    0    0     0       0          0
  eth0: 1234567     890    1    2    3     0          0         0        7       1    0    0    0     0       0          0
";

    fn counters(packets: u64, dropped: u64) -> DeviceCounters {
        DeviceCounters { packets, bytes: packets * 60, dropped, ..DeviceCounters::default() }
    }

    #[test]
    fn the_columns_of_the_receiving_side_are_read() {
        let read = parse(TEXT);
        let expected =
            DeviceCounters { packets: 890, bytes: 1_234_567, errors: 1, dropped: 2, fifo: 3 };
        assert_eq!((read.len(), read["eth0"]), (2, expected));
        assert!(super::read().iter().any(|one| one.name == "lo"), "this system says as much");
    }

    #[test]
    fn lines_that_no_kernel_writes_are_passed_over() {
        assert!(parse("eth0: 1 2 three 4 5\neth1 1 2 3 4 5\neth2:\n").is_empty());
    }

    fn device(name: &str, index: u32, packets: u64, dropped: u64) -> Device {
        Device { name: name.into(), index, counters: counters(packets, dropped) }
    }

    #[test]
    fn sums_go_on_when_a_device_is_deleted_and_made_again() {
        let at = |index, packets, dropped| vec![device("eth0", index, packets, dropped)];
        let devices = Devices::at(at(2, 1000, 5), vec!["eth0".into()], None);
        assert_eq!(devices.take_in(at(2, 1100, 6)), [counters(100, 1)]);
        assert_eq!(devices.take_in(Vec::new()), [counters(100, 1)], "deleted");
        assert_eq!(devices.take_in(at(3, 30, 2)), [counters(130, 3)], "made again");
        assert_eq!(devices.take_in(at(3, 40, 2)), [counters(140, 3)]);
        assert_eq!(devices.take_in(at(3, 7, 0)), [counters(147, 3)], "made again with its index");
    }

    #[test]
    fn what_a_glob_matches_is_counted_together_also_what_comes_later_or_is_renamed() {
        let patterns = Patterns::new(&["d*".to_owned()], &["d9".to_owned()]).unwrap();
        let start = vec![device("d0", 2, 1000, 5), device("d9", 3, 70, 0), device("e0", 4, 10, 0)];
        let devices = Devices::at(start, vec![patterns.name()], Some(patterns));
        let now = vec![device("d0", 2, 1001, 6), device("d9", 3, 90, 0), device("d1", 5, 20, 0)];
        assert_eq!(devices.take_in(now), [counters(21, 1)]);
        let now = vec![device("d7", 2, 1003, 6), device("d1", 3, 91, 0)];
        assert_eq!(devices.take_in(now), [counters(24, 1)], "what it counted before is not new");
        let now = vec![device("d1", 5, 22, 0)];
        assert_eq!(devices.take_in(now), [counters(26, 1)], "back from another namespace");
    }

    #[test]
    fn devices_that_come_and_go_are_not_remembered_for_ever() {
        let patterns = Patterns::new(&["*".to_owned()], &[]).unwrap();
        let devices = Devices::at(Vec::new(), vec![patterns.name()], Some(patterns));
        for index in 1..10_000 {
            devices.take_in(vec![device("d0", index, 1, 0)]);
            assert!(devices.state.lock().unwrap().last.len() <= MOST_ABSENT + 1);
        }
        assert_eq!(devices.take_in(Vec::new()), [counters(9999, 0)]);
    }
}
