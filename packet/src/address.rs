//! One 128-bit type for IPv4 and IPv6 addresses, so that keys compare without a branch.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address. IPv4 is held as its IPv4-mapped form (RFC 4291 section 2.5.5.2), so
/// that an IPv4 address and its mapped twin in a real IPv6 packet are one and the same here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    high: u64,
    low: u64,
}

const MAPPED: u64 = 0x0000_ffff_0000_0000;

impl Address {
    /// From the four bytes of an IPv4 header.
    #[must_use]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        Self { high: 0, low: MAPPED | u32::from_be_bytes(bytes) as u64 }
    }

    /// From the sixteen bytes of an IPv6 header.
    #[must_use]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    /// The upper 64 bits.
    #[must_use]
    pub const fn high(self) -> u64 {
        self.high
    }

    /// The lower 64 bits.
    #[must_use]
    pub const fn low(self) -> u64 {
        self.low
    }

    /// Is it IPv4?
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == MAPPED >> 32
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from_bits(self.low as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits((self.high as u128) << 64 | self.low as u128))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["0.0.0.0", "192.0.2.7", "255.255.255.255", "::", "fd99::1", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(), ip, "{text}");
            assert_eq!(Address::from(ip).to_string(), text);
        }
    }

    #[test]
    fn ipv4_sorts_in_numerical_order() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert!(address("9.255.255.255") < address("10.0.0.0"));
        assert!(address("10.0.0.9") < address("10.0.0.10"));
    }
}
