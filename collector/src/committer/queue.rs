//! What waits for the committer, and how it tells the event loop what is stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use wire::message::Interface;
use wire::units::Sequence;

use crate::session::NewRecords;
use crate::status::Sensor;
use crate::store::segment::Rate;

/// Something to store, and whose it is.
pub struct Command {
    /// The sensor.
    pub sensor: Arc<Sensor>,
    /// The connection that it came on.
    pub connection: u64,
    /// The run of the sensor that the sequence of frames belongs to.
    pub boot_epoch: u64,
    /// The spool that the sequences of records belong to.
    pub spool_epoch: u64,
    /// What to store.
    pub body: Body,
}

/// What to store.
pub enum Body {
    /// A batch of frames.
    Frames(Frames),
    /// Records.
    Records(NewRecords),
}

/// A batch of frames, laid out as pcapng packets.
pub struct Frames {
    /// Position of the batch.
    pub sequence: Sequence,
    /// Interfaces that the packets refer to.
    pub interfaces: Arc<Vec<Interface>>,
    /// At which rate they were exported.
    pub rate: Rate,
    /// The packets, see [`crate::store::pcapng::push_frames`].
    pub blocks: Vec<u8>,
    /// How many.
    pub count: u64,
    /// Their captured bytes.
    pub bytes: u64,
}

impl Body {
    /// Bytes that this holds while it waits. Interfaces count with each batch: a sensor may declare others
    /// between any two.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Frames(frames) => {
                let size =
                    |interface: &Interface| size_of::<Interface>() + interface.name.capacity();
                frames.blocks.capacity() + frames.interfaces.iter().map(size).sum::<usize>()
            }
            Self::Records(records) => records.records.capacity(),
        }
    }
}

/// The way to the committer.
///
/// Bounded: `MOST_COMMANDS` batches and `MOST_BYTES`. When full, the event loop stops reading
/// from the sensor that has the next batch, until there is room; `store_waits` counts that.
pub struct Queue {
    commands: Sender<Command>,
    bytes: Arc<AtomicUsize>,
    /// Buffers that were written. Bounded: `MOST_SPARE`; when full, a buffer is freed instead.
    spare: Receiver<Vec<u8>>,
}

/// The committer's end of the queue.
pub struct QueueEnd {
    pub(super) commands: Receiver<Command>,
    pub(super) bytes: Arc<AtomicUsize>,
    pub(super) spare: Sender<Vec<u8>>,
}

/// Both ends of a new queue.
#[must_use]
pub fn queue() -> (Queue, QueueEnd) {
    let (commands, commands_end) = crossbeam_channel::bounded(MOST_COMMANDS);
    let (spare_end, spare) = crossbeam_channel::bounded(MOST_SPARE);
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue = Queue { commands, bytes: Arc::clone(&bytes), spare };
    (queue, QueueEnd { commands: commands_end, bytes, spare: spare_end })
}

impl Queue {
    /// Whether the next [`Queue::send`] finds room. Only true for a single sender.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < MOST_BYTES && !self.commands.is_full()
    }

    /// Hands a batch over. Waits if there is no room; ask [`Queue::has_room`] first.
    pub fn send(&self, command: Command) {
        self.bytes.fetch_add(command.body.size(), Ordering::Relaxed);
        // Fails only when the committer is gone, which ends the process: nothing is acknowledged.
        let _ = self.commands.send(command);
        if self.commands.len() >= BEHIND {
            std::thread::yield_now();
        }
    }

    /// An empty buffer for the packets of a batch.
    #[must_use]
    pub fn buffer(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_default()
    }
}

/// Tells the event loop for which sensors more is stored now.
pub struct Mailbox {
    /// Bounded by the number of sensors: each is in it at most once.
    changed: Mutex<BTreeMap<usize, Arc<Sensor>>>,
    is_drained: AtomicBool,
    waker: mio::Waker,
}

impl Mailbox {
    /// An empty mailbox; `waker` wakes its reader.
    #[must_use]
    pub const fn new(waker: mio::Waker) -> Self {
        let changed = Mutex::new(BTreeMap::new());
        Self { changed, is_drained: AtomicBool::new(false), waker }
    }

    /// The sensors of which more is stored since the last call.
    #[must_use]
    pub fn take(&self) -> BTreeMap<usize, Arc<Sensor>> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the committer has stored all there was, and ended.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        // Acquire, with the Release in `post`: what was posted before is seen by the `take` after.
        self.is_drained.load(Ordering::Acquire)
    }

    /// Says that nothing more comes, whatever became of the committer.
    pub fn close(&self) {
        self.is_drained.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the reader, whether there is anything for it or not.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the event loop");
        }
    }

    pub(super) fn post(&self, changed: &mut BTreeMap<usize, Arc<Sensor>>, is_last: bool) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).append(changed);
        self.is_drained.fetch_or(is_last, Ordering::Release);
        self.wake();
    }
}

/// Batches in the queue: some milliseconds at full rate.
const MOST_COMMANDS: usize = 1024;
/// Batches from which on the committer is given the processor, in case it shares one with the event
/// loop: it then finds the batches still in the cache.
const BEHIND: usize = 8;
/// Bytes in the queue. One batch may exceed it, by at most 4 MiB.
const MOST_BYTES: usize = 64 << 20;
/// Written buffers kept for reuse.
const MOST_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_thousands_of_interfaces_fill_the_queue() {
        let (queue, end) = queue();
        let shared = crate::status::Shared::new("c".into(), wire::units::UnixNanos(0), "/".into());
        let command = |id| {
            let interface =
                |id| Interface { id, name: "x".repeat(255), linktype: 1, snaplen: 65_535 };
            // Others with each batch.
            let interfaces = Arc::new((id..id + 4096).map(interface).collect());
            let rate = Rate { one_in: 1, snaplen: 65_535 };
            let (sequence, blocks) = (Sequence(1), vec![0; 100]);
            let body =
                Body::Frames(Frames { sequence, interfaces, rate, blocks, count: 1, bytes: 60 });
            let sensor = shared.sensor("a");
            Command { sensor, connection: 1, boot_epoch: 1, spool_epoch: 1, body }
        };
        let mut sent = 0;
        while queue.has_room() {
            queue.send(command(sent));
            sent += 1;
        }
        assert!((50..70).contains(&sent), "{sent} batches of about 1.1 MB");
        for command in end.commands.try_iter() {
            end.bytes.fetch_sub(command.body.size(), Ordering::Relaxed);
        }
        assert_eq!(end.bytes.load(Ordering::Relaxed), 0);
    }
}
