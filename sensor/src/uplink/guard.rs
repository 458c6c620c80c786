//! Finds the uplink's own traffic among the frames that are about to be sent, whatever was rewritten on its way: a copy
//! that comes back behind an address translation, from a mirror port, or out of a tunnel that nobody parses.
//! Workers leave out what they [know](super::own); what they cannot know ends here before it feeds on itself.
//!
//! TLS records are random to everybody but the two ends. So of each record that is written some bytes are kept
//! as its mark, and a frame that has them is a copy of our own, with certainty. One frame of each batch is looked at: a loop
//! that feeds on itself consists of such frames, and is found within some batches.
//!
//! A copy tells how it was addressed after all. Workers leave out that conversation from then on, and nothing else; a
//! collector behind the virtual address of a load balancer needs no more. Where that does not help, frame export is cut for
//! [`PAUSE`].

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use packet::frame::{Frame, LinkType};
use packet::{FiveTuple, protocol};
use wire::units::{UnixNanos, WireLen};

/// Records of which the marks are kept: at 16 KiB each, what was written in the last 64 MiB.
const MARKS: usize = 4096;
/// Bytes of a record's header. Source: RFC 8446, section 5.2.
const HEADER: usize = 5;
/// How a record of application data begins: its type, and the version that all of them claim.
const RECORD: [u8; 3] = [23, 3, 3];
/// Bytes of a mark.
const MARK: usize = 16;
/// So much of a frame is looked at: a frame of most networks.
const LOOKED_AT: usize = 2048;
/// Places that look like a record, at which the mark is compared, of one frame.
const MOST_CANDIDATES: usize = 8;
/// For so long no frame is sent after a copy was seen.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// Marks of what was written lately, and whether a copy of it was seen.
#[derive(Debug, Default)]
pub(super) struct LoopGuard {
    marks: HashSet<[u8; MARK]>,
    /// In the order in which they were written.
    order: VecDeque<[u8; MARK]>,
    paused_until: Option<Instant>,
}

impl LoopGuard {
    /// Is frame export cut?
    pub(super) fn is_cut(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Cuts frame export for [`PAUSE`].
    pub(super) fn cut(&mut self, now: Instant) {
        self.paused_until = Some(now + PAUSE);
    }

    /// Is this frame, which is about to be sent, a copy of our own traffic?
    pub(super) fn catches(&self, frame: &[u8]) -> bool {
        let looked_at = &frame[..frame.len().min(LOOKED_AT)];
        candidates(looked_at).any(|mark| self.marks.contains(mark))
    }

    /// `socket`, of which the guard notes what is written to it.
    pub(super) const fn watch<'g, W>(&'g mut self, socket: &'g mut W) -> Watched<'g, W> {
        Watched { guard: self, socket }
    }

    /// TLS was given these bytes to write, and wrote all of them.
    fn note(&mut self, record: &[u8]) {
        // TLS writes each record by itself. Of what begins amid a record after the socket was full, the mark is
        // one that no frame has.
        let Some(mark) = record.get(HEADER..).and_then(|rest| rest.first_chunk::<MARK>()) else {
            return;
        };
        if self.order.len() == MARKS
            && let Some(oldest) = self.order.pop_front()
        {
            self.marks.remove(&oldest);
        }
        if self.marks.insert(*mark) {
            self.order.push_back(*mark);
        }
    }
}

/// The conversation that a frame of TCP belongs to, whether it begins with Ethernet or with IP.
pub(super) fn conversation(frame: &[u8]) -> Option<FiveTuple> {
    let parse = |link| {
        let (wire_len, time) = (WireLen(frame.len() as u32), UnixNanos(0));
        packet::parse(&Frame { data: frame, wire_len, time, vlan: None, link, interface: 0 })
    };
    let links = [LinkType::ETHERNET, LinkType::RAW].into_iter();
    let mut tuples = links.map(|link| parse(link).tuple);
    tuples.find(|tuple| tuple.protocol == protocol::TCP)
}

/// What stands where a mark would, at the places of a frame that look like the beginning of a record.
fn candidates(frame: &[u8]) -> impl Iterator<Item = &[u8; MARK]> {
    let begins = |place: &usize| frame[*place..].starts_with(&RECORD);
    let places = (0..frame.len().saturating_sub(HEADER + MARK - 1)).filter(begins);
    places.take(MOST_CANDIDATES).filter_map(|place| frame[place + HEADER..].first_chunk())
}

/// A socket of which it is noted what is written.
pub(super) struct Watched<'g, W> {
    guard: &'g mut LoopGuard,
    socket: &'g mut W,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.socket.write_vectored(records)?;
        let mut left = written;
        for record in records {
            if left < record.len().min(HEADER + MARK) {
                break;
            }
            self.guard.note(record);
            left = left.saturating_sub(record.len());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that looks random, of this length.
    fn record(seed: u8, length: u16) -> Vec<u8> {
        let body = (0..length).map(|n| (n as u8).wrapping_mul(31) ^ seed.wrapping_mul(17));
        let [high, low] = length.to_be_bytes();
        [23, 3, 3, high, low].into_iter().chain(body).collect()
    }

    /// A guard that watched records being written.
    fn watching(records: &[Vec<u8>]) -> LoopGuard {
        let mut guard = LoopGuard::default();
        let mut socket = Vec::new();
        let slices: Vec<_> = records.iter().map(|record| IoSlice::new(record)).collect();
        let written = guard.watch(&mut socket).write_vectored(&slices).unwrap();
        assert_eq!(written, socket.len());
        guard
    }

    /// A frame with `payload` behind headers that were rewritten.
    fn frame(payload: &[u8]) -> Vec<u8> {
        [&[0x55; 90], payload].concat()
    }

    #[test]
    fn a_copy_of_what_was_written_is_found_wherever_it_begins_in_a_frame() {
        let records = [record(1, 300), record(2, 16_384)];
        let guard = watching(&records);
        assert!(!guard.catches(&frame(&record(3, 300))), "somebody else's TLS");
        assert!(!guard.catches(&frame(&records[1][400..1800])), "the middle of a record");
        assert!(guard.catches(&frame(&records[1][..1400])));
        assert!(guard.catches(&frame(&[&records[0][100..], &records[1][..600]].concat())));
    }

    #[test]
    fn export_is_cut_for_a_minute() {
        let mut guard = LoopGuard::default();
        let now = Instant::now();
        assert!(!guard.is_cut(now));
        guard.cut(now);
        assert!(guard.is_cut(now + PAUSE - Duration::from_millis(1)));
        assert!(!guard.is_cut(now + PAUSE));
    }

    #[test]
    fn a_copy_tells_how_it_was_addressed() {
        let (source, target) =
            ("10.1.2.3:40000".parse().unwrap(), "10.4.5.6:4750".parse().unwrap());
        let frame = perf::frames::tcp(source, target, 0x18, &record(1, 300));
        for frame in [&frame[..], &frame[14..]] {
            let tuple = conversation(frame).unwrap();
            assert_eq!((tuple.source_port, tuple.target_port), (40_000, 4750));
        }
        assert_eq!(conversation(&perf::frames::udp(source, target, b"")), None);
        assert_eq!(conversation(b"short"), None);
    }

    #[test]
    fn marks_are_bounded_and_the_oldest_are_forgotten() {
        let records: Vec<_> = (0..=MARKS as u32)
            .map(|number| [&[23, 3, 3, 0, 16][..], &u128::from(number).to_be_bytes()].concat())
            .collect();
        let guard = watching(&records);
        assert_eq!((guard.marks.len(), guard.order.len()), (MARKS, MARKS));
        assert!(!guard.catches(&records[0]));
        assert!(guard.catches(&records[1]));
        assert!(guard.catches(&records[MARKS]));
    }

    #[test]
    fn no_frame_is_too_short_or_too_long() {
        let guard = watching(&[record(1, 300)]);
        for length in 0..40 {
            assert!(!guard.catches(&record(2, 300)[..length]));
        }
        let far_behind = [vec![0; LOOKED_AT], record(1, 300)].concat();
        assert!(!guard.catches(&far_behind));
        assert!(!guard.catches(&[RECORD; 1000].concat()));
    }
}
