//! What a start makes of the log that it finds.
//!
//! The checkpoint says up to where the marks are known; the headers of the batches behind it say the
//! rest. The last segment may end in batches that were written and never synced: of those, a killed
//! process leaves all but the torn last one, and a power cut leaves any of them, in pieces. None of
//! them was acknowledged. Each batch says how much of its segment was on the disk for certain when it
//! was written (`synced`), and so:
//!
//! ```text
//!   ├── on the disk for certain ──────────────┤── written, perhaps never synced ─────┤
//!   batch  batch  ▒▒▒▒▒▒▒  batch  batch  batch  batch  ▒▒▒▒  batch  batch  ▒
//!                 damaged: skipped, counted            torn: all from here is cut off, counted
//! ```
//!
//! If what lies behind the first torn batch stayed, a sensor would send the torn records again, and
//! those behind them too, which then are stored twice. What is cut off is not kept: its sensors have it.
//!
//! What stays of that part is written once more and synced: after a failed sync the kernel may show
//! bytes that never got to the disk.

use std::io;

use wire::units::UnixNanos;

use super::batch::Batch;
use super::catalog::{Catalog, SegmentInfo};
use super::disk::Disk;
use super::marks::{Checkpoint, Marks};
use super::scan::{Damage, Scan};
use super::{file_name, first_number};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Marks of all that is stored.
    pub marks: Marks,
    /// Number of the next record.
    pub next_number: u64,
    /// Bytes that were cut off from the last segment; none of them was acknowledged.
    pub torn_bytes: u64,
    /// Bytes that the checkpoint speaks of and that are gone.
    pub missing_bytes: u64,
    /// A damage that nobody counted before lies in front of the next batch, of this segment or a later one: its number
    /// tells how many records were in it.
    pub(super) is_behind_damage: bool,
}

/// What a walk over a segment comes to.
enum Step<'s> {
    Batch(&'s Batch<'s>),
    Damage(Damage),
}

/// Reads what is behind the checkpoint, and mends the end. The segments that there are go into the
/// `catalog`, and what is damaged in them.
///
/// # Errors
/// What the system says.
pub fn recover(disk: &dyn Disk, checkpoint: Checkpoint, catalog: &Catalog) -> io::Result<Recovery> {
    let Checkpoint { position, marks } = checkpoint;
    let next_number = position.number.max(1);
    catalog.lock().checkpointed = position.number;
    let mut recovery = Recovery { marks, next_number, ..Recovery::default() };
    let mut segments: Vec<u64> =
        disk.names()?.iter().filter_map(|name| first_number(name)).collect();
    segments.sort_unstable();
    for (index, &segment) in segments.iter().enumerate() {
        let following = segments.get(index + 1).copied();
        let mut length = disk.open(&file_name(segment))?.length()?;
        if segment >= position.segment {
            let from = if segment == position.segment { position.offset } else { 0 };
            recovery.missing_bytes += from.saturating_sub(length);
            let from = from.min(length);
            if following.is_none() {
                length = recovery.mend(disk, segment, from, length)?;
            }
            recovery.take_marks(disk, segment, from..length, catalog)?;
        }
        // Of a segment in front of the checkpoint, only the next one tells.
        let next_number = following.unwrap_or(recovery.next_number).min(recovery.next_number);
        if let Some(stored_at) = first_stored(disk, segment, length)? {
            let info = SegmentInfo { length, stored_at, next_number };
            catalog.lock().segments.insert(segment, info);
        } else if length == 0 {
            disk.remove(&file_name(segment))?;
            disk.sync_names()?;
        }
    }
    catalog.lock().next_number = recovery.next_number;
    Ok(recovery)
}

impl Recovery {
    /// Cuts off the torn end of the last segment, and has what stays on the disk. Returns the length.
    /// What lies before `from` is there for certain.
    fn mend(&mut self, disk: &dyn Disk, segment: u64, from: u64, length: u64) -> io::Result<u64> {
        let mut synced = from;
        let mut damages = Vec::new();
        walk(disk, segment, from..length, |step| match step {
            Step::Batch(batch) => synced = synced.max(batch.placed.synced),
            Step::Damage(damage) => damages.push(damage.at),
        })?;
        let whole = damages.into_iter().find(|&at| at >= synced).unwrap_or(length);
        self.torn_bytes += length - whole;
        let file = disk.open(&file_name(segment))?;
        if whole < length {
            file.set_len(whole)?;
        }
        let mut bytes = vec![0; REWRITTEN];
        let mut at = synced;
        while at < whole {
            let wanted = usize::try_from(whole - at).map_or(REWRITTEN, |rest| rest.min(REWRITTEN));
            let count = file.read_at(&mut bytes[..wanted], at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_at(&bytes[..count], at)?;
            at += count as u64;
        }
        file.sync()?;
        disk.sync_names()?;
        Ok(whole)
    }

    fn take_marks(
        &mut self,
        disk: &dyn Disk,
        segment: u64,
        range: std::ops::Range<u64>,
        catalog: &Catalog,
    ) -> io::Result<()> {
        walk(disk, segment, range, |step| match step {
            Step::Damage(damage) => {
                self.is_behind_damage |= catalog.note_damage(segment, damage.at, damage.bytes);
            }
            Step::Batch(batch) => {
                let Batch { sensor, stream, epoch, last, .. } = *batch;
                self.marks.advance(sensor, stream, epoch, last);
                if std::mem::take(&mut self.is_behind_damage) {
                    catalog.note_lost(batch.placed.number.saturating_sub(self.next_number));
                }
                self.next_number = self.next_number.max(batch.next_number());
            }
        })
    }
}

/// All batches and damages in a part of a segment.
fn walk(
    disk: &dyn Disk,
    segment: u64,
    range: std::ops::Range<u64>,
    mut take: impl FnMut(Step<'_>),
) -> io::Result<()> {
    let mut scan = Scan::new(disk.open(&file_name(segment))?, range.start);
    while scan.at() < range.end {
        if let Some(damage) = scan.skip_damage(range.end)? {
            take(Step::Damage(damage));
        }
        if let Some(batch) = scan.batch() {
            take(Step::Batch(&batch));
        }
    }
    Ok(())
}

/// When the first batch of a segment was stored; `None` without a batch.
fn first_stored(disk: &dyn Disk, segment: u64, length: u64) -> io::Result<Option<UnixNanos>> {
    let mut scan = Scan::new(disk.open(&file_name(segment))?, 0);
    scan.skip_damage(length)?;
    Ok(scan.batch().map(|batch| batch.placed.stored_at))
}

/// Bytes written anew at once.
const REWRITTEN: usize = 1 << 20;
