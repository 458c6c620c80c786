//! One log line per peer and minute, for everything that a peer can provoke.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Remembers which peers had a line lately.
#[derive(Debug, Default)]
pub struct LineLimit {
    /// Bounded: [`MOST_PEERS`] entries. When full, peers that are not in it get no line until old
    /// entries expire; the caller counts what is left out.
    peers: BTreeMap<IpAddr, Entry>,
    /// When expired entries were looked for last: not for each of many spoofed callers.
    purged: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    began: Instant,
    suppressed: u64,
}

impl LineLimit {
    /// Whether this peer may have a line now: `Some` with the number of lines left out since its
    /// last one.
    pub fn allow(&mut self, peer: IpAddr, now: Instant) -> Option<u64> {
        if let Some(entry) = self.peers.get_mut(&peer) {
            if now.duration_since(entry.began) < WINDOW {
                entry.suppressed += 1;
                return None;
            }
            let suppressed = std::mem::take(&mut entry.suppressed);
            entry.began = now;
            return Some(suppressed);
        }
        let is_purge_due =
            self.purged.is_none_or(|purged| now.duration_since(purged) >= PURGE_INTERVAL);
        if self.peers.len() >= MOST_PEERS && is_purge_due {
            self.purged = Some(now);
            self.peers.retain(|_, entry| now.duration_since(entry.began) < WINDOW);
        }
        if self.peers.len() >= MOST_PEERS {
            return None;
        }
        self.peers.insert(peer, Entry { began: now, suppressed: 0 });
        Some(0)
    }
}

const WINDOW: Duration = Duration::from_secs(60);
const PURGE_INTERVAL: Duration = Duration::from_secs(1);
const MOST_PEERS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_peer_has_one_line_a_minute_and_then_hears_how_many_were_left_out() {
        let (mut limit, start) = (LineLimit::default(), Instant::now());
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(limit.allow(peer, start), Some(0));
        assert_eq!(limit.allow(peer, start + WINDOW / 2), None);
        assert_eq!(limit.allow(peer, start + WINDOW / 2), None);
        assert_eq!(limit.allow(peer, start + WINDOW), Some(2));
        assert_eq!(limit.allow(peer, start + WINDOW * 2), Some(0));
    }

    #[test]
    fn many_peers_do_not_take_more_memory_or_lines() {
        let (mut limit, start) = (LineLimit::default(), Instant::now());
        let lines = (0..100_000_u32)
            .filter(|&number| limit.allow(IpAddr::V4(number.into()), start).is_some())
            .count();
        assert_eq!((lines, limit.peers.len()), (MOST_PEERS, MOST_PEERS));
        assert_eq!(limit.allow(IpAddr::V4(200_000.into()), start + WINDOW), Some(0));
    }
}
