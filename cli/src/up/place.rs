//! What this machine offers: the interfaces worth watching, and ports that are free.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

/// Interface of the default routes (IPv4, then IPv6), then loopback; none twice.
#[must_use]
pub fn default_interfaces() -> Vec<String> {
    // Without /proc there is no route to be found; loopback is always worth a look.
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let mut interfaces = Vec::new();
    let found = [default_route_v4(&v4), default_route_v6(&v6), Some("lo".to_owned())];
    for interface in found.into_iter().flatten() {
        if !interfaces.contains(&interface) {
            interfaces.push(interface);
        }
    }
    interfaces
}

/// Route is usable. Source: `linux/route.h`.
const RTF_UP: u32 = 0x0001;
/// Route answers with "unreachable".
const RTF_REJECT: u32 = 0x0200;

/// Interface of the IPv4 default route with the smallest metric in the text of `/proc/net/route`.
fn default_route_v4(routes: &str) -> Option<String> {
    let candidates = routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, flags, _, _, metric, mask, ..] = columns[..] else {
            return None;
        };
        let usable = is_usable(flags) && destination == "00000000" && mask == "00000000";
        usable.then_some((metric.parse::<u32>().ok()?, interface))
    });
    smallest(candidates)
}

/// The same for IPv6 out of the text of `/proc/net/ipv6_route`.
fn default_route_v6(routes: &str) -> Option<String> {
    let candidates = routes.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, prefix, _, _, _, metric, _, _, flags, interface] = columns[..] else {
            return None;
        };
        let is_default = prefix == "00" && destination.bytes().all(|digit| digit == b'0');
        // The kernel keeps a rejecting default route on loopback.
        let usable = is_usable(flags) && is_default && interface != "lo";
        usable.then_some((u32::from_str_radix(metric, 16).ok()?, interface))
    });
    smallest(candidates)
}

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (RTF_UP | RTF_REJECT) == RTF_UP)
}

fn smallest<'a>(candidates: impl Iterator<Item = (u32, &'a str)>) -> Option<String> {
    candidates.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface.to_owned())
}

/// The ports of one appliance, all on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Sensors to the collector.
    pub sensors: u16,
    /// The collector's HTTP interface.
    pub collector_api: u16,
    /// The sensor's HTTP interface.
    pub sensor_api: u16,
}

/// The standard ports.
pub const STANDARD: Ports = Ports { sensors: 4750, collector_api: 8480, sensor_api: 8475 };

/// How many ports after the standard one are tried.
const TRIES: u16 = 200;

impl Ports {
    /// The standard ports, or the next ones that nobody listens on. `None` if all are taken.
    #[must_use]
    pub fn free() -> Option<Self> {
        // Held until all are chosen, so that no port is given out twice.
        let sensors = listen(STANDARD.sensors)?;
        let collector_api = listen(STANDARD.collector_api)?;
        let sensor_api = listen(STANDARD.sensor_api)?;
        let port = |listener: &TcpListener| Some(listener.local_addr().ok()?.port());
        Some(Self {
            sensors: port(&sensors)?,
            collector_api: port(&collector_api)?,
            sensor_api: port(&sensor_api)?,
        })
    }
}

fn listen(first: u16) -> Option<TcpListener> {
    (first..first.saturating_add(TRIES))
        .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";

    #[test]
    fn the_default_route_with_the_smallest_metric_wins() {
        let routes = format!(
            "{HEAD}wlan0 00000000 0100000A 0003 0 0 600 00000000 0 0 0\n\
             eth0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n\
             eth1 0000000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
        );
        assert_eq!(default_route_v4(&routes), Some("eth0".into()));
    }

    #[test]
    fn rejecting_and_half_default_routes_are_no_default() {
        let routes = format!(
            "{HEAD}eth0 00000000 00000000 0201 0 0 0 00000000 0 0 0\n\
             tun0 00000000 00000000 0001 0 0 0 00000080 0 0 0\n"
        );
        assert_eq!(default_route_v4(&routes), None);
        assert_eq!(default_route_v4(""), None);
    }

    #[test]
    fn the_ipv6_default_route_is_found_and_that_of_loopback_is_not() {
        let zero = "0".repeat(32);
        let route = |flags: &str, interface: &str| {
            format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 {flags} {interface}\n")
        };
        let routes = route("00200200", "lo") + &route("00000003", "eth0");
        assert_eq!(default_route_v6(&routes), Some("eth0".into()));
        assert_eq!(default_route_v6(&route("00000001", "lo")), None);
    }

    #[test]
    fn a_taken_port_gives_the_next_one() {
        let held = listen(46_000).unwrap();
        let next = listen(held.local_addr().unwrap().port()).unwrap();
        assert!(next.local_addr().unwrap().port() > held.local_addr().unwrap().port());
    }
}
