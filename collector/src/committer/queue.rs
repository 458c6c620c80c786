//! What waits for the committer, and how it tells the event loops what is stored.

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

/// The way to the committer; each event loop has one.
///
/// Bounded: `MOST_COMMANDS` batches and `MOST_BYTES`. When full, an event loop stops reading
/// from the sensor that has the next batch, until there is room; `store_waits` counts that.
#[derive(Clone)]
pub struct Queue {
    commands: Sender<Command>,
    bytes: Arc<AtomicUsize>,
    spare: Arc<SpareBuffers>,
}

/// The committer's end of the queue.
pub struct QueueEnd {
    pub(super) commands: Receiver<Command>,
    pub(super) bytes: Arc<AtomicUsize>,
    pub(super) spare: Arc<SpareBuffers>,
}

/// Both ends of a new queue, for at most so many senders.
#[must_use]
pub fn queue(senders: usize) -> (Queue, QueueEnd) {
    // Each sender asks before it sends, and all of them may be told in the same moment that there is
    // room for one: there is, for one of each.
    let (commands, commands_end) = crossbeam_channel::bounded(MOST_COMMANDS + senders);
    let spare = Arc::new(SpareBuffers::default());
    let bytes = Arc::new(AtomicUsize::new(0));
    let queue = Queue { commands, bytes: Arc::clone(&bytes), spare: Arc::clone(&spare) };
    (queue, QueueEnd { commands: commands_end, bytes, spare })
}

/// Buffers that were written, to be filled again; the last one first, because it is still in the cache.
/// Bounded: `MOST_SPARE`; when full, a buffer is freed instead.
#[derive(Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn put(&self, buffer: Vec<u8>) {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < MOST_SPARE {
            buffers.push(buffer);
        }
    }
}

impl Queue {
    /// Whether the next [`Queue::send`] finds room. Others may send in between, each one batch.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < MOST_BYTES && self.commands.len() < MOST_COMMANDS
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
        self.spare.take()
    }
}

/// Tells an event loop for which of its sensors more is stored now.
pub struct Mailbox {
    /// Bounded by the number of sensors: each is in it at most once.
    changed: Mutex<BTreeMap<usize, Arc<Sensor>>>,
    /// The loop has connections that wait for room in the queue, or for what is in it to be stored.
    is_waiting: AtomicBool,
    is_drained: AtomicBool,
    waker: Arc<mio::Waker>,
}

impl Mailbox {
    /// An empty mailbox; `waker` wakes its reader.
    #[must_use]
    pub const fn new(waker: Arc<mio::Waker>) -> Self {
        let (is_waiting, is_drained) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { changed: Mutex::new(BTreeMap::new()), is_waiting, is_drained, waker }
    }

    /// The sensors of which more is stored since the last call.
    #[must_use]
    pub fn take(&self) -> BTreeMap<usize, Arc<Sensor>> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks to be woken when the committer has stored something, whoever it is of; once. False if that
    /// was asked for already. What was stored just before is not told: the caller looks again.
    pub fn ask_for_room(&self) -> bool {
        !self.is_waiting.swap(true, Ordering::AcqRel)
    }

    /// Whether the committer has stored all there was, and ended.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        // Acquire, with the Release in `close`: what was posted before is seen by the `take` after.
        self.is_drained.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.is_drained.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake an event loop");
        }
    }
}

/// The mailboxes of all event loops, by number.
#[derive(Clone)]
pub struct Mailboxes(Arc<[Mailbox]>);

impl Mailboxes {
    /// These.
    #[must_use]
    pub fn new(mailboxes: impl IntoIterator<Item = Mailbox>) -> Self {
        Self(mailboxes.into_iter().collect())
    }

    /// That of one loop.
    ///
    /// # Panics
    /// If there is no such loop.
    #[must_use]
    pub fn of(&self, event_loop: usize) -> &Mailbox {
        &self.0[event_loop]
    }

    /// Says that nothing more comes, whatever became of the committer.
    pub fn close(&self) {
        self.0.iter().for_each(Mailbox::close);
    }

    /// Wakes all readers, whether there is anything for them or not.
    pub fn wake(&self) {
        self.0.iter().for_each(Mailbox::wake);
    }

    /// Tells each loop of its sensors, and those that wait for room that there may be some.
    ///
    /// A sensor that moves to another loop meanwhile is not forgotten: its place changes before its new
    /// session looks at its state, and its state was changed before its place is asked for here; both
    /// under the lock of the state. So either that session sees what is stored, or it is told.
    pub(super) fn post(&self, changed: &mut BTreeMap<usize, Arc<Sensor>>) {
        for (number, mailbox) in self.0.iter().enumerate() {
            let is_here = |_: &usize, sensor: &mut Arc<Sensor>| sensor.place() == Some(number);
            let mut own: BTreeMap<_, _> = changed.extract_if(.., is_here).collect();
            let has_mail = !own.is_empty();
            mailbox.changed.lock().unwrap_or_else(PoisonError::into_inner).append(&mut own);
            let is_waiting = mailbox.is_waiting.swap(false, Ordering::AcqRel);
            if has_mail || is_waiting {
                mailbox.wake();
            }
        }
    }
}

/// Batches in the queue: some milliseconds of frames at full rate, and of records what a fleet sends, a record or
/// two at a time, while the disk takes a second for a sync.
const MOST_COMMANDS: usize = 16_384;
/// Batches from which on the committer is given the processor, in case it shares one with an event
/// loop: it then finds the batches still in the cache.
const BEHIND: usize = 8;
/// Bytes in the queue. One batch may exceed it, by at most 4 MiB.
const MOST_BYTES: usize = 64 << 20;
/// Written buffers kept for reuse.
const MOST_SPARE: usize = 64;

#[cfg(test)]
mod tests {
    use wire::header::Stream;
    use wire::units::UnixNanos;

    use super::*;
    use crate::status::Shared;

    fn mailboxes(count: usize) -> (Vec<mio::Poll>, Mailboxes) {
        let polls: Vec<_> = (0..count).map(|_| mio::Poll::new().unwrap()).collect();
        let waker = |poll: &mio::Poll| mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let mailboxes = Mailboxes::new(polls.iter().map(|poll| Mailbox::new(waker(poll).into())));
        (polls, mailboxes)
    }

    fn is_woken(poll: &mut mio::Poll) -> bool {
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(std::time::Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    #[test]
    fn an_event_loop_hears_of_its_own_sensors_and_is_not_woken_for_others() {
        let (mut polls, mailboxes) = mailboxes(3);
        let shared = Shared::new("ids".into(), UnixNanos(0), "/".into());
        let sensors = ["a", "b", "c"].map(|name| shared.sensor(name));
        [0, 2, 2].into_iter().zip(&sensors).for_each(|(place, sensor)| sensor.settle(place));
        let all = sensors.map(|sensor| (sensor.number(), sensor));
        mailboxes.post(&mut BTreeMap::from(all));
        let woken: Vec<_> = polls.iter_mut().map(is_woken).collect();
        assert_eq!(woken, [true, false, true]);
        let names = |event_loop: usize| -> Vec<_> {
            let mail = mailboxes.of(event_loop).take();
            mail.values().map(|sensor| sensor.name().to_owned()).collect()
        };
        assert_eq!([names(0), names(1), names(2)], [vec!["a"], vec![], vec!["b", "c"]]);
    }

    #[test]
    fn a_loop_that_waits_for_room_is_woken_once_whoever_was_stored() {
        let (mut polls, mailboxes) = mailboxes(2);
        let shared = Shared::new("ids".into(), UnixNanos(0), "/".into());
        let sensor = shared.sensor("a");
        sensor.settle(0);
        assert!(mailboxes.of(1).ask_for_room());
        assert!(!mailboxes.of(1).ask_for_room(), "asked already");
        for is_told in [true, false] {
            mailboxes.post(&mut BTreeMap::from([(0, Arc::clone(&sensor))]));
            assert!(is_woken(&mut polls[0]));
            assert_eq!(is_woken(&mut polls[1]), is_told);
        }
        assert!(mailboxes.of(1).ask_for_room());
    }

    #[test]
    fn senders_that_all_found_room_for_one_batch_do_not_wait() {
        let (queue, end) = queue(3);
        let shared = Shared::new("ids".into(), UnixNanos(0), "/".into());
        let send = || {
            let records = NewRecords {
                stream: Stream::Records,
                records: Vec::new(),
                count: 0,
                alerts: 0,
                first: Sequence(1),
                last: Sequence(1),
                missing: 0,
                duplicates: 0,
            };
            let (sensor, body) = (shared.sensor("a"), Body::Records(records));
            queue.send(Command { sensor, connection: 1, boot_epoch: 1, spool_epoch: 1, body });
        };
        (1..MOST_COMMANDS).for_each(|_| send());
        assert!(queue.has_room());
        // A wait would be for ever: nobody takes.
        (0..3).for_each(|_| send());
        assert!(!queue.has_room());
        assert_eq!(end.commands.len(), MOST_COMMANDS + 2);
    }

    #[test]
    fn the_names_of_thousands_of_interfaces_fill_the_queue() {
        let (queue, end) = queue(1);
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
