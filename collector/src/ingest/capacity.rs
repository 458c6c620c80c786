//! How many connections there may be, and how many of them whose peer has not shown a certificate:
//! whoever cannot authenticate must not keep sensors out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mio::Token;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Connections in their handshake, oldest first, because tokens only grow.
///
/// Bounded: [`MOST_HANDSHAKES`], [`MOST_OF_ADDRESS`] of one address. When full, the oldest one is
/// closed for the new one and counted as `handshake_crowded`: a sensor's handshake takes milliseconds,
/// a peer that only holds the place is always the older one.
#[derive(Debug, Default)]
pub struct Handshakes {
    peers: BTreeMap<Token, IpAddr>,
}

impl Handshakes {
    /// The connection that must be closed before another one of `peer` may begin, if any. `is_full`:
    /// there is no room for any further connection.
    #[must_use]
    pub fn in_the_way(&self, peer: IpAddr, is_full: bool) -> Option<Token> {
        let mut own = self.peers.iter().filter(|(_, known)| **known == peer);
        let oldest_own = own.next().map(|(token, _)| *token);
        if own.count() + 1 >= MOST_OF_ADDRESS {
            return oldest_own;
        }
        let is_crowded = is_full || self.peers.len() >= MOST_HANDSHAKES;
        self.peers.keys().next().copied().filter(|_| is_crowded)
    }

    /// A handshake begins.
    pub fn begin(&mut self, token: Token, peer: IpAddr) {
        self.peers.insert(token, peer);
    }

    /// Whether a connection is in its handshake.
    #[must_use]
    pub fn contains(&self, token: Token) -> bool {
        self.peers.contains_key(&token)
    }

    /// A handshake is over, whether it succeeded or not; or it was over before.
    pub fn end(&mut self, token: Token) {
        self.peers.remove(&token);
    }
}

/// Raises the process's soft limit of open files to the hard one, and returns the number of
/// connections that leave enough files for everything else.
#[must_use]
pub fn most_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return MOST_CONNECTIONS };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            soft
        }
    };
    let left = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    let most = left.clamp(LEAST_CONNECTIONS, MOST_CONNECTIONS);
    if most < MOST_CONNECTIONS {
        tracing::warn!(files = limit, connections = most, "few files may be open; see ulimit -n");
    }
    most
}

/// Each takes up to 0.5 MiB of buffers while its sensor sends.
const MOST_CONNECTIONS: usize = 1024;
const LEAST_CONNECTIONS: usize = 8;
/// Files for the store, the API and the libraries.
const OTHER_FILES: usize = 128;
const MOST_HANDSHAKES: usize = 128;
const MOST_OF_ADDRESS: usize = 16;
