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
    /// Time from the first to the last.
    pub elapsed: Duration,
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
    /// As [`Injector::send`].
    pub fn send_all<F: AsRef<[u8]>>(
        &mut self,
        frames: impl IntoIterator<Item = F>,
        rate: Option<u64>,
    ) -> io::Result<Injected> {
        let begin = Instant::now();
        let mut count: u64 = 0;
        for frame in frames {
            if let Some(rate) = rate {
                wait_until(begin + due_after(count, rate));
            }
            self.send(frame.as_ref())?;
            count += 1;
        }
        Ok(Injected { frames: count, elapsed: begin.elapsed() })
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
    fn unknown_interface_is_an_error() {
        if !crate::tools::require_root() {
            return;
        }
        assert!(Injector::open("nosuch0").is_err());
        assert!(Injector::open("a-name-of-16-byt").is_err());
    }
}
