//! What an earlier run left behind: read once, a buffer at a time.
//!
//! Nothing found here stops the sensor. A segment that ends in the middle of a record is cut off there; a
//! record whose checksum does not fit is passed over and counted; a segment that is damaged at its
//! beginning, or of another spool, is set aside under another name with one log line.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use wire::message::UNUSED;
use wire::units::{Sequence, UnixNanos};

use super::clock::EARLIEST;
use super::disk::{Disk, DiskFile};
use super::format::{
    HeaderError, LaneName, RECORD_HEADER, Records, SEGMENT_HEADER, SegmentHeader, Step,
};
use super::lane::{Lane, Segment};
use super::reading::Progress;
use super::runs::{Hole, Runs};
use super::status::{SpoolStatus, add};
use crate::uplink::LossReason;

/// What is added to the name of a segment that is set aside.
const ASIDE: &str = "aside";
/// Segments of a lane that are kept aside; beyond them the oldest are removed.
const MOST_ASIDE: usize = 8;
/// The reason of holes that an earlier run left, and counted in its ledger.
const EARLIER_RUN: &str = "earlier_run";

/// What was found of a lane.
#[derive(Debug, Default)]
pub struct Found {
    segments: VecDeque<Segment>,
    pending: Runs,
    holes: Vec<Hole>,
    /// Records that were there once and are damaged.
    pub corrupt: u64,
    /// The last record of all.
    pub last: Sequence,
    /// When the newest record so far was taken.
    newest: UnixNanos,
}

impl Found {
    /// The lane that goes on from here. Its next record has the number `next`.
    pub fn into_lane(self, name: LaneName, acked: Sequence, next: Sequence) -> Lane {
        let mut lane = Lane::new(name, next);
        lane.restore(acked, self.segments, self.pending);
        self.holes.into_iter().for_each(|hole| lane.note_hole(hole));
        let (first, last) = (self.last.max(acked).next(), Sequence(next.0 - 1));
        if first <= last {
            lane.note_hole(Hole { first, last, reason: UNUSED });
        }
        lane
    }
}

/// The spool that the segments in these folders are of, if there is one and no position says it: that of
/// the segment made last.
pub fn epoch_of_segments(disk: &dyn Disk, folders: [&Path; 2]) -> Option<u64> {
    let headers = folders.into_iter().flat_map(|folder| {
        let paths = segments_in(disk, folder).unwrap_or_default();
        paths.into_iter().filter_map(|path| read_header(disk.open(&path).ok()?.as_ref()).ok()?.ok())
    });
    headers.max_by_key(|header| header.made_at).map(|header| header.spool_epoch)
}

/// Reads a lane. What is acknowledged is removed.
///
/// # Errors
/// The folder cannot be read.
pub fn lane(
    disk: &dyn Disk,
    (name, folder): (LaneName, &Path),
    (spool_epoch, acked): (u64, Sequence),
    expires: Instant,
    status: &SpoolStatus,
    progress: &mut Progress<'_>,
) -> io::Result<Found> {
    let mut found = Found::default();
    let mut has_set_aside = false;
    for path in segments_in(disk, folder)? {
        progress.note_segment();
        let before = (found.pending.clone(), found.holes.len(), found.corrupt, found.last);
        let newest = found.newest;
        // What cannot be written can still be delivered.
        let opened = disk.open_to_write(&path).or_else(|_| disk.open(&path));
        let outcome = opened.and_then(|file| {
            let header = read_header(file.as_ref())?;
            let header = match header {
                Ok(header) if (header.spool_epoch, header.lane) == (spool_epoch, name) => header,
                Ok(_) => return Ok(Some("it is of another spool or lane".to_owned())),
                // Nothing was ever in it.
                Err(HeaderError::Short) => {
                    add(&status.torn_bytes, file.size()?);
                    disk.remove(&path)?;
                    return Ok(None);
                }
                Err(error) => return Ok(Some(error.to_string())),
            };
            let file = progress.watch(file.as_ref());
            let segment = found.read(&file, (&path, header), acked, expires, status)?;
            if segment.last <= acked || segment.last < segment.first {
                disk.remove(&path)?;
            } else {
                found.segments.push_back(segment);
            }
            Ok(None)
        });
        let fault = match outcome {
            _ if progress.is_stopped() => return Ok(found),
            Ok(None) => continue,
            Ok(Some(fault)) => fault,
            Err(error) => {
                // What was read of it before is none of this spool's either: it would wait for ever.
                found.holes.truncate(before.1);
                (found.pending, found.corrupt, found.last) = (before.0, before.2, before.3);
                found.newest = newest;
                error.to_string()
            }
        };
        set_aside(disk, &path, &fault, status);
        has_set_aside = true;
    }
    // Not at a start that finds new ones: a disk with one fault may show it in every segment.
    if !has_set_aside {
        remove_old_asides(disk, folder);
    }
    Ok(found)
}

impl Found {
    /// Reads a segment to its end and cuts off what is unfinished.
    fn read(
        &mut self,
        file: &dyn DiskFile,
        (path, header): (&Path, SegmentHeader),
        acked: Sequence,
        expires: Instant,
        status: &SpoolStatus,
    ) -> io::Result<Segment> {
        let before = self.last.max(Sequence(header.first.0.saturating_sub(1)));
        let mut records = Records::new(SEGMENT_HEADER as u64, file.size()?, before);
        let mut segment = Segment {
            path: path.to_owned(),
            first: header.first,
            last: Sequence(header.first.0.saturating_sub(1)),
            bytes: 0,
            oldest: header.made_at,
            expires,
            newest: None,
        };
        self.newest = self.newest.max(header.made_at);
        let tail = loop {
            match records.next(file)? {
                Step::Record { record, damaged } => {
                    self.take(record.sequence, damaged, (acked, header.run_begins));
                    segment.last = record.sequence;
                    self.newest = self.newest.max(record.taken_at);
                }
                Step::End(tail) => break tail,
            }
        };
        segment.bytes = tail.good_end;
        // No older than any record before it: then the clock was set back. One that was never set says nothing.
        segment.newest = Some(self.newest).filter(|newest| *newest >= EARLIEST);
        if tail.torn > 0 {
            add(&status.torn_bytes, tail.torn);
            self.corrupt += u64::from(tail.has_record);
            // On a disk that takes nothing, it is passed over again at the next start.
            let _ = file.set_len(tail.good_end);
        }
        Ok(segment)
    }

    /// A whole record, and what lies before it.
    fn take(
        &mut self,
        sequence: Sequence,
        damaged: u64,
        (acked, run_begins): (Sequence, Sequence),
    ) {
        let before = Sequence(sequence.0 - 1);
        let begin = self.last.max(acked).next();
        // What lies before the run was never used, what lies within it was.
        let unused = (begin, before.min(Sequence(run_begins.0.saturating_sub(1))));
        let gone = (begin.max(run_begins), before);
        let count = |(first, last): (Sequence, Sequence)| (last.0 + 1).saturating_sub(first.0);
        if damaged > 0 && sequence > acked {
            // The numbers say how many there were, but never more than had room.
            self.corrupt += count(gone).clamp(1, (damaged / RECORD_HEADER as u64).max(1));
        }
        let reason = if damaged > 0 { LossReason::SpoolCorrupt.name() } else { EARLIER_RUN };
        for ((first, last), reason) in [(unused, UNUSED), (gone, reason)] {
            if first <= last {
                self.holes.push(Hole { first, last, reason });
            }
        }
        self.last = sequence;
        if sequence > acked {
            self.pending.push(sequence);
        }
    }
}

/// The files of a folder that have the name of a segment, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn segments_in(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = disk.list(folder)?;
    names.retain(|name| {
        let number = name.strip_suffix(".seg");
        number.is_some_and(|it| it.len() == 20 && it.bytes().all(|byte| byte.is_ascii_digit()))
    });
    names.sort_unstable();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn read_header(file: &dyn DiskFile) -> io::Result<Result<SegmentHeader, HeaderError>> {
    let mut bytes = [0; SEGMENT_HEADER];
    let mut have = 0;
    while have < SEGMENT_HEADER {
        match file.read_at(&mut bytes[have..], have as u64)? {
            0 => break,
            read => have += read,
        }
    }
    Ok(SegmentHeader::from_bytes(&bytes[..have]))
}

fn set_aside(disk: &dyn Disk, path: &Path, fault: &str, status: &SpoolStatus) {
    add(&status.set_aside, 1);
    let aside = path.with_extension(ASIDE);
    let renamed = disk.rename(path, &aside);
    let error = renamed.err().map(|error| error.to_string());
    tracing::warn!(segment = %path.display(), fault, error, "segment of the spool set aside");
}

fn remove_old_asides(disk: &dyn Disk, folder: &Path) {
    let mut names = disk.list(folder).unwrap_or_default();
    names.retain(|name| name.ends_with(".aside"));
    names.sort_unstable();
    for name in names.iter().rev().skip(MOST_ASIDE) {
        // Tried again at the next start.
        let _ = disk.remove(&folder.join(name));
    }
}
