//! Whom a certificate speaks for: its name, and the hosts a collector answers as.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use wire::text::{NAME_RULE, is_name};

/// Name of a sensor or collector: 1 to 63 of `a-z 0-9 . - _`, a letter or digit first. It is also
/// the name of the files, so names that would collide with other files of the folder are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

/// Why a text is not a [`Name`] or a [`Host`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A character outside the set, a wrong first one, none or too many.
    #[error("name {0:?} is none: {NAME_RULE}")]
    Name(String),
    /// `ca`, `crl` and `….key` name other files of the folder.
    #[error("name {0:?} is taken by another file of the folder (ca, crl, *.key)")]
    Reserved(String),
    /// Neither an IP address nor a DNS name.
    #[error("{0:?} is neither an IP address nor a DNS name")]
    Host(String),
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !is_name(text) {
            return Err(IdentityError::Name(text.to_owned()));
        }
        if matches!(text, "ca" | "crl") || text.ends_with(".key") {
            return Err(IdentityError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A host that sensors dial: it goes into the collector's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// IPv4 or IPv6 address.
    Address(IpAddr),
    /// DNS name (Source: RFC 1123 section 2.1), without a final dot.
    Name(String),
}

impl FromStr for Host {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let fits = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        // A last label of digits only is a mistyped IPv4 address, never a host name.
        let last_is_number = text
            .rsplit('.')
            .next()
            .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if text.len() > 253 || last_is_number || !text.split('.').all(fits) {
            return Err(IdentityError::Host(text.to_owned()));
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_documented_form_are_taken() {
        for text in ["a", "0", "web-7.eu_1", &"x".repeat(63)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_outside_the_documented_form_are_refused() {
        for text in ["", "-a", ".a", "_a", "A", "a/b", "../a", "a b", "ä", &"x".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_that_would_hide_another_file_are_refused() {
        for text in ["ca", "crl", "ca.key", "web.key"] {
            assert_eq!(text.parse::<Name>(), Err(IdentityError::Reserved(text.into())));
        }
    }

    #[test]
    fn hosts_are_addresses_or_dns_names() {
        assert_eq!("::1".parse(), Ok(Host::Address("::1".parse().unwrap())));
        assert_eq!("192.0.2.7".parse(), Ok(Host::Address("192.0.2.7".parse().unwrap())));
        assert_eq!("IDS.example".parse(), Ok(Host::Name("ids.example".into())));
        for text in ["", "192.0.2.256", "a..b", "-a", "a_b", "a:4750", "*.example"] {
            assert_eq!(text.parse::<Host>(), Err(IdentityError::Host(text.into())), "{text:?}");
        }
    }
}
