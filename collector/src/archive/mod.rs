//! The index of events: a SQLite file for each day, made from the record log by a thread that follows
//! it. A day is that of the storing, so that the files of a day and its segments go together.
//!
//! ```text
//!   row     what is kept of a record
//!   day     one file, written
//!   query   all files, read
//!   retention  removes the oldest records
//! ```
//!
//! The newest day goes first: an index that is missing, damaged or of another version is made anew in
//! the time that the records of today leave.

pub mod day;
pub mod query;
pub mod retention;
pub mod row;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::log::catalog::{Catalog, Day};
use crate::store::log::disk::Disk;
use crate::store::log::marks::Position;
use crate::store::log::reader::{Next, Reader};
use day::{DayIndex, Times};

/// Records of one transaction, at most: pages of addresses change once in each.
pub const MOST_ROWS: u64 = 30_000;
/// Time between two lines about an index that is made anew.
const PROGRESS: Duration = Duration::from_secs(10);
/// Records from which making an index anew is said.
const MANY: u64 = 10_000;

/// Why the index cannot be written at the moment.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The index itself.
    #[error("cannot write the index of {day}")]
    Write {
        /// Which day.
        day: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The record log.
    #[error("cannot read the record log")]
    Read(#[from] io::Error),
    /// The folder.
    #[error("cannot list {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How far the index is; shared with those who ask it.
#[derive(Debug, Default)]
pub struct Progress {
    /// What is indexed of each day.
    positions: Mutex<BTreeMap<Day, Position>>,
    /// Times of the first and the last event of a day, as of when it was indexed so far: found by who asked.
    times: Mutex<BTreeMap<Day, (Position, Times)>>,
    /// Days whose index somebody found damaged.
    suspects: Mutex<BTreeSet<Day>>,
}

impl Progress {
    /// Has the index of a day made anew.
    pub fn suspect(&self, day: Day) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).insert(day);
    }

    /// Stored records that are not in the index.
    #[must_use]
    pub fn behind(&self, catalog: &Catalog) -> u64 {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let days = days(catalog);
        days.iter().map(|(day, work)| work.behind(positions.get(day))).sum()
    }

    /// Whether all records of a segment are in the index, of which the last is in front of
    /// `next_number`.
    #[must_use]
    pub fn has(&self, day: Day, next_number: u64) -> bool {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        positions.get(&day).is_some_and(|position| position.number >= next_number)
    }

    /// Records of a segment that are not in the index, of those from `first` to in front of
    /// `next_number`.
    #[must_use]
    pub fn missing(&self, day: Day, first: u64, next_number: u64) -> u64 {
        let positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = positions.get(&day).map_or(first, |position| position.number);
        next_number.saturating_sub(reached.max(first))
    }

    /// Times of the first and the last event of a day, if nothing was indexed since somebody [noted](Self::note)
    /// them.
    fn times(&self, day: Day) -> Option<Times> {
        let position =
            self.positions.lock().unwrap_or_else(PoisonError::into_inner).get(&day).copied()?;
        let known = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&day).filter(|(at, _)| *at == position).map(|(_, times)| *times)
    }

    /// Takes note of the times of a day that is indexed up to `position`.
    fn note(&self, day: Day, position: Position, times: Times) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).insert(day, (position, times));
    }

    fn set(&self, day: Day, position: Position) {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).insert(day, position);
    }

    fn forget(&self, day: Day) {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).remove(&day);
        self.times.lock().unwrap_or_else(PoisonError::into_inner).remove(&day);
    }
}

/// The index, following the record log.
pub struct Index {
    folder: PathBuf,
    catalog: Arc<Catalog>,
    progress: Arc<Progress>,
    current: Option<DayIndex>,
    reader: Reader,
    scratch: Vec<u8>,
    /// Number of the next record when it was last looked for work.
    seen: u64,
    /// An index that is made anew: its day, the records of it, and when that was last said.
    rebuilding: Option<(Day, u64, Instant)>,
}

/// What the record log has of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    start: Position,
    end: Position,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Records that came into the index.
    pub rows: u64,
    /// Records among them that could not be read.
    pub unreadable: u64,
    /// Nothing is left to do.
    pub is_done: bool,
}

impl Work {
    fn behind(&self, position: Option<&Position>) -> u64 {
        let from = position.map_or(self.start.number, |position| position.number);
        self.end.number.saturating_sub(from.max(self.start.number))
    }
}

impl Index {
    /// An index in `folder`, which exists.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn open(
        folder: PathBuf,
        disk: Arc<dyn Disk>,
        catalog: Arc<Catalog>,
        progress: Arc<Progress>,
    ) -> Result<Self, IndexError> {
        let reader = Reader::new(disk, Arc::clone(&catalog), Position::default());
        let (current, scratch, seen, rebuilding) = (None, Vec::new(), 0, None);
        let mut index =
            Self { folder, catalog, progress, current, reader, scratch, seen, rebuilding };
        index.remove_old_days()?;
        index.remove_days_ahead();
        Ok(index)
    }

    /// Indexes some of what is not indexed, of the newest day that has such.
    ///
    /// # Errors
    /// See [`IndexError`]; the same call may be made again.
    pub fn turn(&mut self) -> Result<Indexed, IndexError> {
        self.make_suspects_anew();
        self.seen = self.catalog.lock().next_number;
        let Some((day, work)) = self.next_work()? else {
            return Ok(Indexed { is_done: true, ..Indexed::default() });
        };
        let result = self.index_some(day, &work);
        if result.is_err() {
            // The transaction goes with the connection.
            self.current = None;
        }
        match result {
            Err(IndexError::Write { source, .. }) if day::is_damage(&source) => {
                tracing::warn!(day = day::name(day), error = %source, "the index is damaged");
                self.make_anew(day);
                Ok(Indexed::default())
            }
            result => result,
        }
    }

    /// Waits until there is more, or time is up.
    pub fn wait(&self, patience: Duration) {
        self.catalog.wait_for(self.seen, patience);
    }

    /// Leaves the files as small as they get. What is not indexed yet is so at the next start.
    pub fn close(self) {
        if let Some(current) = self.current
            && let Err(error) = current.rest()
        {
            tracing::debug!(%error, "the index keeps its journal");
        }
    }

    /// Removes the indexes of days whose records are gone.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn remove_old_days(&mut self) -> Result<(), IndexError> {
        let unlisted = |source| IndexError::List { path: self.folder.clone(), source };
        let known = days(&self.catalog);
        for entry in std::fs::read_dir(&self.folder).map_err(unlisted)? {
            let name = entry.map_err(unlisted)?.file_name();
            let day = name.to_str().and_then(day::day_of);
            if let Some(day) = day.filter(|day| !known.contains_key(day)) {
                if self.current.as_ref().is_some_and(|current| current.day() == day) {
                    self.current = None;
                }
                self.progress.forget(day);
                day::remove(&self.folder, day);
                tracing::info!(day = day::name(day), "removed the index of records that are gone");
            }
        }
        Ok(())
    }

    /// Removes the indexes of days that know more than the record log has: somebody put an older copy in its
    /// place. The numbers of what it lacks are given again, to other records.
    fn remove_days_ahead(&mut self) {
        for (day, work) in days(&self.catalog) {
            let Some(position) = day::position(&self.folder, day) else { continue };
            let place = |position: &Position| (position.segment, position.offset);
            if place(&position) > place(&work.end) {
                let missing = position.number.saturating_sub(work.end.number);
                tracing::error!(
                    day = day::name(day),
                    missing,
                    "the index has records that the record log does not have; making it anew"
                );
                self.make_anew(day);
            }
        }
    }

    /// The newest day that has records which are not indexed.
    fn next_work(&mut self) -> Result<Option<(Day, Work)>, IndexError> {
        for (day, work) in days(&self.catalog).into_iter().rev() {
            let known = self
                .progress
                .positions
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&day)
                .copied();
            let position = match known {
                Some(position) => position,
                None => self.switch_to(day, &work)?,
            };
            if (position.segment, position.offset) < (work.end.segment, work.end.offset) {
                return Ok(Some((day, work)));
            }
        }
        Ok(None)
    }

    /// Has the index of this day open. Says how far it is.
    fn switch_to(&mut self, day: Day, work: &Work) -> Result<Position, IndexError> {
        if let Some(current) = &self.current
            && current.day() == day
            && day::file_path(&self.folder, day).exists()
        {
            return Ok(current.position());
        }
        let write = |source| IndexError::Write { day: day::name(day), source };
        if let Some(earlier) = self.current.take() {
            earlier.rest().map_err(write)?;
        }
        let (index, is_new) = DayIndex::open(&self.folder, day, work.start).map_err(write)?;
        if is_new && work.behind(None) > MANY {
            let (day, records) = (day::name(day), work.behind(None));
            tracing::info!(day, records, "making an index from the record log");
        }
        if is_new {
            self.rebuilding = Some((day, work.behind(None), Instant::now()));
        }
        let position = index.position();
        self.progress.set(day, position);
        self.current = Some(index);
        Ok(position)
    }

    fn index_some(&mut self, day: Day, work: &Work) -> Result<Indexed, IndexError> {
        let position = self.switch_to(day, work)?;
        if self.reader.position() != position {
            self.reader.seek(position);
        }
        let write = |source| IndexError::Write { day: day::name(day), source };
        let Self { current: Some(index), reader, scratch, catalog, .. } = self else {
            return Ok(Indexed::default());
        };
        index.begin().map_err(write)?;
        let mut rows = 0;
        let reached = loop {
            if rows >= MOST_ROWS {
                break reader.position();
            }
            let before = reader.position();
            match reader.read()? {
                Next::Batch { at, batch, .. } => {
                    let segment = catalog.lock().segments.get(&at.segment).copied();
                    let other = segment.filter(|segment| segment.day() != day);
                    if at.segment > work.end.segment {
                        break further(before, work.end);
                    }
                    if let Some(other) = other {
                        // The clock was set back over the end of a day.
                        let (segment, offset) = (at.segment, other.length);
                        reader.seek(Position { segment, offset, number: other.next_number });
                        continue;
                    }
                    index.add(at, &batch, scratch).map_err(write)?;
                    rows += u64::from(batch.count);
                }
                Next::Nothing | Next::End => break further(before, work.end),
            }
        };
        let (rows, unreadable) = index.commit(reached).map_err(write)?;
        self.progress.set(day, reached);
        self.say_progress(day, work, reached);
        Ok(Indexed { rows, unreadable, is_done: false })
    }

    fn say_progress(&mut self, day: Day, work: &Work, reached: Position) {
        let Some((rebuilt, records, said)) = &mut self.rebuilding else { return };
        if *rebuilt != day || *records <= MANY {
            return;
        }
        let left = work.behind(Some(&reached));
        if left == 0 {
            tracing::info!(day = day::name(day), records = *records, "the index is made");
            self.rebuilding = None;
        } else if said.elapsed() >= PROGRESS {
            *said = Instant::now();
            tracing::info!(day = day::name(day), left, of = *records, "making an index");
        }
    }

    fn make_suspects_anew(&mut self) {
        let mut suspects = self.progress.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let days = std::mem::take(&mut *suspects);
        drop(suspects);
        days.into_iter().for_each(|day| self.make_anew(day));
    }

    fn make_anew(&mut self, day: Day) {
        self.current = None;
        day::remove(&self.folder, day);
        self.progress.forget(day);
    }
}

/// The one of two places that is further on in the record log. What lies between a place where
/// reading ended and the end of the day is damaged.
fn further(one: Position, other: Position) -> Position {
    let place = |position: &Position| (position.segment, position.offset);
    if place(&one) < place(&other) { other } else { one }
}

/// What the record log has of each day.
fn days(catalog: &Catalog) -> BTreeMap<Day, Work> {
    let content = catalog.lock();
    let mut days = BTreeMap::<Day, Work>::new();
    for (&segment, info) in &content.segments {
        let start = Position { segment, offset: 0, number: segment };
        let end = Position { segment, offset: info.length, number: info.next_number };
        days.entry(info.day()).and_modify(|work| work.end = end).or_insert(Work { start, end });
    }
    days
}
