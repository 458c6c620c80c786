//! Where collectors are: `host:port`, resolved without holding up the uplink.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crossbeam_channel::{Receiver, bounded};
use rustls::pki_types::ServerName;

/// A collector as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorAddress {
    host: String,
    port: u16,
    /// What the collector's certificate must cover.
    server_name: ServerName<'static>,
}

/// The text is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no collector address, wanted is host:port, such as ids.example.net:4750")]
pub struct AddressError {
    /// The text.
    pub text: String,
}

impl FromStr for CollectorAddress {
    type Err = AddressError;

    /// Reads `host:port`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(error());
        }
        let host = bracketed.unwrap_or(host);
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| error())?;
        Ok(Self { host: host.to_owned(), port, server_name })
    }
}

impl fmt::Display for CollectorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl CollectorAddress {
    /// What the collector's certificate must cover.
    #[must_use]
    pub const fn server_name(&self) -> &ServerName<'static> {
        &self.server_name
    }

    /// Asks for the addresses of the host. The answer comes on the channel, at once for an address.
    ///
    /// A name is resolved in a thread of its own, because the system's resolver can wait for many
    /// seconds, in which the uplink has batches to give back. The thread ends with the answer; the
    /// uplink asks for one name at a time.
    pub(super) fn resolve(&self) -> Receiver<io::Result<Vec<SocketAddr>>> {
        let (answer, receiver) = bounded(1);
        if let Ok(address) = self.host.parse::<IpAddr>() {
            // Room for one, and nothing sent before.
            let _ = answer.try_send(Ok(vec![SocketAddr::new(address, self.port)]));
            return receiver;
        }
        let (host, port) = (self.host.clone(), self.port);
        let refused = answer.clone();
        let ask = move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
            // Nobody waits any more if the sensor stops meanwhile.
            let _ = answer.try_send(found);
        };
        if let Err(error) = std::thread::Builder::new().name("resolve".to_owned()).spawn(ask) {
            let _ = refused.try_send(Err(error));
        }
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_read_and_written_alike() {
        for text in ["localhost:4750", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(text.parse::<CollectorAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_the_text() {
        for text in ["", "host", "host:", "host:0", "host:65536", "2001:db8::1:4750", "a b:1"] {
            let error = text.parse::<CollectorAddress>().unwrap_err();
            assert_eq!(error, AddressError { text: text.to_owned() });
        }
    }

    #[test]
    fn addresses_are_resolved_at_once_and_names_in_time() {
        let ask = |text: &str| text.parse::<CollectorAddress>().unwrap().resolve();
        let found = ask("[::1]:7").try_recv().unwrap().unwrap();
        assert_eq!(found, ["[::1]:7".parse().unwrap()]);
        let found = ask("localhost:7").recv().unwrap().unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
