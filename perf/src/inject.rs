//! Frames onto an interface, one `write` each, through a plain raw socket of the crate `afpacket`.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use afpacket::sync::RawPacketStream;

use crate::lab::Namespace;

/// Writes frames to one interface.
#[derive(Debug)]
pub struct Injector {
    // Never cloned: a clone of this type shares its descriptor, and the first of them to go closes it.
    socket: RawPacketStream,
}

/// What an injection achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Injected {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Frames that it did not take because they are longer than the interface allows.
    pub refused: u64,
    /// Time from the first to the last.
    pub elapsed: Duration,
}

/// When an injection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// After so many frames.
    Frames(u64),
    /// After so much time.
    Time(Duration),
}

impl Limit {
    /// Frames that may still follow `done` frames since `begin`; `None` if that was the end.
    #[must_use]
    pub fn left(self, done: u64, begin: Instant) -> Option<u64> {
        match self {
            Self::Frames(frames) => frames.checked_sub(done).filter(|left| *left > 0),
            Self::Time(time) => (begin.elapsed() < time).then_some(u64::MAX),
        }
    }
}

impl Injected {
    /// Frames per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Injector {
    /// Opens a socket on an interface of the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel's: no CAP_NET_RAW, no such interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        // The crate copies up to 16 bytes into a C string of 16 with no room for its end.
        if interface.len() >= 16 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut socket = RawPacketStream::new()?;
        // The socket is open for every frame of every interface. It is only written to: reject all.
        socket.set_bpf_filter(vec![(0x06, 0, 0, 0)])?;
        socket.bind(interface)?;
        Ok(Self { socket })
    }

    /// Opens a socket on an interface of a namespace.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn within(namespace: &Namespace, interface: &str) -> Self {
        namespace.within(|| Self::open(interface)).unwrap_or_else(|error| {
            panic!("cannot inject into {interface} of {}: {error}", namespace.name())
        })
    }

    /// Sends one frame, waiting while the interface's queue is full.
    ///
    /// # Errors
    /// The kernel's: interface down, frame longer than the MTU allows.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        const QUEUE_FULL: i32 = nix::libc::ENOBUFS;
        loop {
            match self.socket.write(frame) {
                Err(error) if error.raw_os_error() == Some(QUEUE_FULL) => thread::yield_now(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    /// Sends `frames` at `rate` per second, or as fast as it goes.
    ///
    /// # Errors
    /// As [`Injector::send`], but for frames that are too long, which are counted.
    pub fn send_all<F: AsRef<[u8]>>(
        &mut self,
        frames: impl IntoIterator<Item = F>,
        rate: Option<u64>,
    ) -> io::Result<Injected> {
        let due = |count| rate.map_or(Duration::ZERO, |rate| due_after(count, rate));
        self.send_timed(frames.into_iter().zip(0..).map(|(frame, count)| (due(count), frame)))
    }

    /// Sends each frame when it is due, counted from the call, or at once if that is past.
    ///
    /// # Errors
    /// As [`Injector::send_all`].
    pub fn send_timed<F: AsRef<[u8]>>(
        &mut self,
        frames: impl IntoIterator<Item = (Duration, F)>,
    ) -> io::Result<Injected> {
        const TOO_LONG: i32 = nix::libc::EMSGSIZE;
        let begin = Instant::now();
        let (mut sent, mut refused) = (0, 0);
        for (due, frame) in frames {
            if !due.is_zero() {
                wait_until(begin + due);
            }
            match self.send(frame.as_ref()) {
                Ok(()) => sent += 1,
                Err(error) if error.raw_os_error() == Some(TOO_LONG) => refused += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(Injected { frames: sent, refused, elapsed: begin.elapsed() })
    }
}

/// When frame `count` is due at this rate.
fn due_after(count: u64, rate: u64) -> Duration {
    let nanos = u128::from(count) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn wait_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    // Shorter sleeps oversleep; at high rates frames go out in small bursts instead.
    if left > Duration::from_micros(100) {
        thread::sleep(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames;
    use crate::lab::Lab;

    #[test]
    fn every_frame_reaches_the_other_side() {
        let Some(lab) = Lab::new() else { return };
        let counter = "/sys/class/net/s0/statistics/rx_packets";
        let received = || {
            let output = lab.sensor().run("cat", &[counter]);
            String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
        };
        let frame = frames::udp("10.1.0.1:1".parse().unwrap(), "10.1.0.2:2".parse().unwrap(), b"x");
        let mut injector = Injector::within(lab.generator(), "g0");
        let before = received();
        let sent = injector.send_all(std::iter::repeat_n(&frame, 1000), Some(100_000)).unwrap();
        assert_eq!(sent.frames, 1000);
        assert!(sent.elapsed >= Duration::from_millis(9), "{sent:?}");
        assert!(received() - before >= 1000);
    }

    #[test]
    fn frames_longer_than_the_mtu_are_counted_as_refused() {
        let Some(lab) = Lab::new() else { return };
        let mut injector = Injector::within(lab.generator(), "g0");
        let frames = [vec![0; 1514], vec![0; 1600], vec![0; 60]];
        let sent = injector.send_all(&frames, None).unwrap();
        assert_eq!((sent.frames, sent.refused), (2, 1));
    }

    #[test]
    fn unknown_interface_is_an_error() {
        if !crate::tools::require_root() {
            return;
        }
        assert!(Injector::open("nosuch0").is_err());
        assert!(Injector::open("a-name-of-16-byt").is_err());
    }
}
