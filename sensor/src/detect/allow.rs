//! Sources that never count.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use packet::Address;

/// A network in CIDR notation. IPv4 networks live in the IPv4-mapped range, as [`Address`] does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    base: u128,
    /// Bits of the 128 that count.
    length: u8,
}

/// Text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseNetworkError {
    /// The part before the slash is no address.
    #[error("`{text}` is no network: `{address}` is no IPv4 or IPv6 address")]
    Address {
        /// The whole text.
        text: String,
        /// What should be an address.
        address: String,
    },
    /// The part after the slash is no prefix length, or too long for the address.
    #[error("`{text}` is no network: prefix length must be 0 to {limit}")]
    Length {
        /// The whole text.
        text: String,
        /// Longest prefix of that address family.
        limit: u8,
    },
    /// What follows `port` is none.
    #[error("`{text}` names no port: it must be 0 to 65535, as in `10.0.0.0/8 port 161`")]
    Port {
        /// The whole text.
        text: String,
    },
}

impl Network {
    /// Is `address` in this network?
    #[must_use]
    pub const fn contains(self, address: Address) -> bool {
        (bits(address) ^ self.base) & mask(self.length) == 0
    }

    /// Bits of the 128 that count: the more, the smaller the network.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.length
    }

    /// Its address and prefix length, those of IPv4 where it is within IPv4.
    #[must_use]
    pub fn parts(self) -> (IpAddr, u8) {
        const MAPPED_BITS: u8 = 96;
        let v6 = std::net::Ipv6Addr::from_bits(self.base);
        match v6.to_ipv4_mapped() {
            Some(v4) if self.length >= MAPPED_BITS => (v4.into(), self.length - MAPPED_BITS),
            _ => (v6.into(), self.length),
        }
    }
}

impl From<Address> for Network {
    fn from(address: Address) -> Self {
        Self { base: bits(address), length: 128 }
    }
}

impl FromStr for Network {
    type Err = ParseNetworkError;

    /// `192.0.2.0/24`, `fd00::/8`, or a bare address. Bits after the prefix are ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let ip: IpAddr = address.parse().map_err(|_| ParseNetworkError::Address {
            text: text.to_owned(),
            address: address.to_owned(),
        })?;
        let limit = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Some(limit), |length| length.parse().ok());
        let length = length
            .filter(|&length| length <= limit)
            .ok_or_else(|| ParseNetworkError::Length { text: text.to_owned(), limit })?;
        let length = 128 - limit + length;
        Ok(Self { base: bits(ip.into()) & mask(length), length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Address::from_v6(self.base.to_be_bytes());
        let is_v4 = address.is_v4() && self.length >= 96;
        write!(f, "{address}/{}", if is_v4 { self.length - 96 } else { self.length })
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sources that never count, at all ports of others or at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The sources.
    pub network: Network,
    /// The port, of TCP or UDP; `None`: all that they do.
    pub port: Option<u16>,
}

impl FromStr for Allowed {
    type Err = ParseNetworkError;

    /// A [`Network`], and perhaps a port: `10.0.0.0/8 port 161`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((network, port)) = text.split_once(" port ") else {
            return Ok(Self::from(text.parse::<Network>()?));
        };
        let port = port.parse().map_err(|_| ParseNetworkError::Port { text: text.to_owned() })?;
        Ok(Self { network: network.parse()?, port: Some(port) })
    }
}

impl From<Network> for Allowed {
    fn from(network: Network) -> Self {
        Self { network, port: None }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.network.fmt(f)?;
        self.port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

/// Sources that never count.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    /// Whole networks, few: they are tried one after the other.
    networks: Vec<Allowed>,
    /// Single addresses, sorted.
    addresses: Vec<Address>,
}

impl AllowList {
    /// Networks from the configuration, and single addresses: those of the host itself.
    #[must_use]
    pub fn new(networks: Vec<Allowed>, mut addresses: Vec<Address>) -> Self {
        addresses.sort_unstable();
        Self { networks, addresses }
    }

    /// Is `source` one of the single addresses?
    #[must_use]
    pub fn holds(&self, source: Address) -> bool {
        self.addresses.binary_search(&source).is_ok()
    }

    /// The networks of the list that `source` is in.
    pub fn rules_of(&self, source: Address) -> impl Iterator<Item = Allowed> {
        self.networks.iter().filter(move |rule| rule.network.contains(source)).copied()
    }

    /// Does `source` never count, at this port of others?
    #[must_use]
    pub fn contains(&self, source: Address, port: u16) -> bool {
        self.holds(source)
            || self.networks.iter().any(|rule| {
                rule.network.contains(source) && rule.port.is_none_or(|allowed| allowed == port)
            })
    }
}

const fn bits(address: Address) -> u128 {
    (address.high() as u128) << 64 | address.low() as u128
}

const fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(network: &str, address: &str, inside: bool) {
        let network: Network = network.parse().unwrap();
        let address = Address::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(network.contains(address), inside, "{address} in {network}");
    }

    #[test]
    fn networks_contain_their_addresses_and_no_others() {
        check("192.0.2.0/24", "192.0.2.255", true);
        check("192.0.2.0/24", "192.0.3.0", false);
        check("192.0.2.7", "192.0.2.7", true);
        check("192.0.2.7", "192.0.2.8", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "fd00::1", false);
        check("::/0", "203.0.113.9", true);
        check("fd00::/8", "fd99::1", true);
        check("fd00::/8", "fe80::1", false);
        check("10.1.2.3/8", "10.200.0.1", true);
    }

    #[test]
    fn networks_print_as_they_are_written() {
        for text in ["192.0.2.0/24", "fd00::/8", "0.0.0.0/0", "::/0", "10.0.0.1/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_text_named() {
        for (text, message) in [
            ("web/24", "`web/24` is no network: `web` is no IPv4 or IPv6 address"),
            ("10.0.0.0/33", "`10.0.0.0/33` is no network: prefix length must be 0 to 32"),
            ("fd00::/129", "`fd00::/129` is no network: prefix length must be 0 to 128"),
            ("10.0.0.0/", "`10.0.0.0/` is no network: prefix length must be 0 to 32"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_list_holds_networks_and_addresses() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let list = AllowList::new(
            vec!["10.0.0.0/8".parse().unwrap()],
            vec![address("192.0.2.9"), address("192.0.2.1")],
        );
        for (text, inside) in
            [("10.9.9.9", true), ("192.0.2.1", true), ("192.0.2.9", true), ("192.0.2.5", false)]
        {
            assert_eq!(list.contains(address(text), 22), inside, "{text}");
        }
        let list = AllowList::new(vec!["192.0.2.0/24 port 161".parse().unwrap()], Vec::new());
        assert!(list.contains(address("192.0.2.1"), 161));
        assert!(!list.contains(address("192.0.2.1"), 162));
        for text in ["10.0.0.0/8 port 65536", "10.0.0.0/8 port snmp", "port 161"] {
            assert!(text.parse::<Allowed>().unwrap_err().to_string().contains(text));
        }
    }
}
