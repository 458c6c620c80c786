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

use serde::Serialize;

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

/// The counters of all interfaces of this network namespace, by name. Empty if the kernel does not say.
#[must_use]
pub fn read() -> HashMap<String, DeviceCounters> {
    // Of the thread: a process may have threads in several namespaces.
    parse(&fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
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

/// The counters of the captured interfaces since the start. They only grow, also when a device is
/// deleted and made again.
#[derive(Debug)]
pub struct Devices {
    names: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: HashMap<String, DeviceCounters>,
    sums: Vec<DeviceCounters>,
}

impl Devices {
    /// Counts from now on.
    #[must_use]
    pub fn new(names: Vec<String>) -> Self {
        let sums = vec![DeviceCounters::default(); names.len()];
        Self { names, state: Mutex::new(State { last: read(), sums }) }
    }

    /// The names with their sums as they are now. To be called now and then, so that what a device
    /// counted before it was deleted is not missed.
    pub fn refresh(&self) -> BTreeMap<&str, DeviceCounters> {
        let names = self.names.iter().map(String::as_str);
        names.zip(self.take_in(read())).collect()
    }

    fn take_in(&self, now: HashMap<String, DeviceCounters>) -> Vec<DeviceCounters> {
        // A reader that panicked left whole numbers behind.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { last, sums } = &mut *state;
        for (name, sum) in self.names.iter().zip(sums.iter_mut()) {
            let Some(counted) = now.get(name) else { continue };
            sum.add(&counted.since(&last.get(name).copied().unwrap_or_default()));
            last.insert(name.clone(), *counted);
        }
        sums.clone()
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
        assert!(super::read().contains_key("lo"), "this system says as much");
    }

    #[test]
    fn lines_that_no_kernel_writes_are_passed_over() {
        assert!(parse("eth0: 1 2 three 4 5\neth1 1 2 3 4 5\neth2:\n").is_empty());
    }

    #[test]
    fn sums_go_on_when_a_device_is_deleted_and_made_again() {
        let devices = Devices {
            names: vec!["eth0".into()],
            state: Mutex::new(State {
                last: HashMap::from([("eth0".into(), counters(1000, 5))]),
                sums: vec![DeviceCounters::default()],
            }),
        };
        let at = |packets, dropped| HashMap::from([("eth0".into(), counters(packets, dropped))]);
        assert_eq!(devices.take_in(at(1100, 6)), [counters(100, 1)]);
        assert_eq!(devices.take_in(HashMap::new()), [counters(100, 1)], "deleted");
        assert_eq!(devices.take_in(at(30, 2)), [counters(130, 3)], "made again");
        assert_eq!(devices.take_in(at(40, 2)), [counters(140, 3)]);
    }
}
