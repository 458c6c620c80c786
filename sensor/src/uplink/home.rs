//! The way back to the collector that is named first, after a fail-over.
//!
//! Now and then, at a time drawn anew, somebody knocks at its door: a TCP connection that is closed at
//! once. Only when it opens is the connection to the other collector given up. If the preferred one
//! then fails all the same (a certificate), the next attempts come later and later.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::backoff::Backoff;

/// How long a door may take to open.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts in a row that failed make the pause between two so many times longer at most.
const LONGEST: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Home {
    /// Mean pause between two attempts.
    pause: Duration,
    due: Option<Instant>,
    knock: Option<Receiver<bool>>,
    /// Ways back in a row that ended at the other collector again.
    failures: u32,
}

impl Home {
    pub(super) const fn new(pause: Duration) -> Self {
        Self { pause, due: None, knock: None, failures: 0 }
    }

    /// A collector is connected: the preferred one, or another.
    pub(super) fn connected(&mut self, now: Instant, is_preferred: bool, dice: &mut Backoff) {
        self.knock = None;
        if is_preferred {
            (self.due, self.failures) = (None, 0);
            return;
        }
        let pause = self.pause * (1 << self.failures.min(LONGEST.ilog2()));
        // From half to one and a half, so that a fleet does not come back at once.
        self.due = Some(now + pause / 2 + dice.spread(pause));
    }

    /// Is it time to knock? Said once.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| now >= due);
        if is_due {
            self.due = None;
        }
        is_due
    }

    /// Knocks at these addresses, in a thread that ends with the answer. One at a time.
    pub(super) fn knock(&mut self, addresses: Vec<SocketAddr>) {
        let (say, answer) = bounded(1);
        let try_all = move || {
            let opens =
                |address: &SocketAddr| TcpStream::connect_timeout(address, PATIENCE).is_ok();
            // Nobody waits any more if the connection ended meanwhile.
            let _ = say.try_send(addresses.iter().any(opens));
        };
        // Without a thread the channel is closed, which is an answer too.
        let _ = std::thread::Builder::new().name("knock".to_owned()).spawn(try_all);
        self.knock = Some(answer);
    }

    /// Has the door opened? If it stays shut, the next attempt is put off.
    pub(super) fn has_opened(&mut self, now: Instant, dice: &mut Backoff) -> bool {
        let Some(answer) = &self.knock else { return false };
        match answer.try_recv() {
            Ok(true) => {
                self.knock = None;
                // Taken back when the preferred collector is connected.
                self.failures = (self.failures + 1).min(LONGEST);
                true
            }
            Ok(false) | Err(TryRecvError::Disconnected) => {
                self.connected(now, false, dice);
                false
            }
            Err(TryRecvError::Empty) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(600);

    #[test]
    fn attempts_are_spread_and_come_later_after_each_that_failed() {
        let now = Instant::now();
        let mut dues = Vec::new();
        for seed in 0..100 {
            let (mut home, mut dice) = (Home::new(PAUSE), Backoff::new(seed));
            home.connected(now, false, &mut dice);
            assert!(!home.is_due(now + PAUSE / 2 - Duration::from_millis(1)));
            dues.push(home.due.unwrap());
            assert!(home.is_due(now + PAUSE * 3 / 2) && !home.is_due(now + PAUSE * 3), "once");
            home.failures = 2;
            home.connected(now, false, &mut dice);
            assert!(home.due.unwrap() >= now + PAUSE * 2);
            home.connected(now, true, &mut dice);
            assert_eq!((home.due, home.failures), (None, 0));
        }
        let span = *dues.iter().max().unwrap() - *dues.iter().min().unwrap();
        assert!(span > PAUSE * 3 / 4, "{span:?}");
    }
}
