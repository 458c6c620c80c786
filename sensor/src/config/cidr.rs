//! Networks in CIDR notation (Source: RFC 4632 section 3.1, RFC 4291 section 2.3).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::packet::Address;

/// A network: all addresses that share its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// The part before the slash.
    #[error("it does not begin with an IP address")]
    Address,
    /// The part behind the slash.
    #[error("what follows the slash is no number")]
    Prefix,
    /// The number behind the slash.
    #[error("prefix length is above {0}")]
    PrefixTooLong(u8),
}

impl Cidr {
    /// The network of this one address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Does the network hold the address?
    #[must_use]
    pub fn contains(&self, address: Address) -> bool {
        let bits = |a: Address| u128::from(a.high()) << 64 | u128::from(a.low());
        let own = Address::from(self.address);
        if own.is_v4() != address.is_v4() {
            return false;
        }
        let skipped = if own.is_v4() { 96 } else { 0 };
        let mask = u128::MAX.checked_shl(128 - skipped - u32::from(self.prefix)).unwrap_or(0);
        // For IPv4 the mapped prefix is equal on both sides, so comparing it costs nothing.
        bits(own) & mask == bits(address) & mask
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address)?;
        let longest = Self::host(address).prefix;
        let prefix = match prefix {
            Some(digits) => digits.parse().map_err(|_| CidrError::Prefix)?,
            None => longest,
        };
        if prefix > longest {
            return Err(CidrError::PrefixTooLong(longest));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(network: &str, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        network.parse::<Cidr>().unwrap().contains(address.into())
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        assert!(check("10.0.0.0/8", "10.255.0.1"));
        assert!(!check("10.0.0.0/8", "11.0.0.0"));
        assert!(check("0.0.0.0/0", "203.0.113.9"));
        assert!(check("192.0.2.7", "192.0.2.7"));
        assert!(!check("192.0.2.7/32", "192.0.2.6"));
        assert!(check("fd99::/64", "fd99::1:2"));
        assert!(!check("fd99::/64", "fd99:0:0:1::"));
        assert!(check("::/0", "fe80::1"));
    }

    #[test]
    fn the_families_do_not_mix() {
        assert!(!check("::/0", "10.0.0.1"));
        assert!(!check("0.0.0.0/0", "fe80::1"));
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        assert_eq!("ten/8".parse::<Cidr>(), Err(CidrError::Address));
        assert_eq!("10.0.0.0/x".parse::<Cidr>(), Err(CidrError::Prefix));
        assert_eq!("10.0.0.0/33".parse::<Cidr>(), Err(CidrError::PrefixTooLong(32)));
        assert_eq!("::/129".parse::<Cidr>(), Err(CidrError::PrefixTooLong(128)));
    }
}
