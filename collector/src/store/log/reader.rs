//! Follows the log: every batch that is on the disk, in order, waiting for more.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::batch::Batch;
use super::catalog::Catalog;
use super::disk::Disk;
use super::file_name;
use super::marks::Position;
use super::scan::Scan;

/// Follows the log from a place on.
pub struct Reader {
    disk: Arc<dyn Disk>,
    catalog: Arc<Catalog>,
    position: Position,
    scan: Option<Scan>,
    /// A damage that nobody counted before lies in front of the next batch.
    is_behind_damage: bool,
}

/// What a reader found.
#[derive(Debug)]
pub enum Next<'r> {
    /// A batch.
    Batch {
        /// Where it begins.
        at: Position,
        /// What lies behind it.
        end: Position,
        /// Records between the last batch and this one that are gone: with their segment, or damaged.
        gone: u64,
        /// The batch.
        batch: Batch<'r>,
    },
    /// All was read that is on the disk.
    Nothing,
    /// All was read, and nothing follows.
    End,
}

impl Reader {
    /// A reader that begins at `position`; before the first segment, it begins with that.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, catalog: Arc<Catalog>, position: Position) -> Self {
        Self { disk, catalog, position, scan: None, is_behind_damage: false }
    }

    /// Where the next batch is looked for.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Goes to another place.
    pub fn seek(&mut self, position: Position) {
        self.position = position;
        self.scan = None;
        self.is_behind_damage = false;
    }

    /// Waits until there is more, or time is up.
    pub fn wait(&self, patience: Duration) {
        self.catalog.wait_for(self.position.number, patience);
    }

    /// The next batch.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn read(&mut self) -> io::Result<Next<'_>> {
        let is_closed = self.find()?;
        let segment = self.position.segment;
        let found = self.scan.as_mut().and_then(|scan| {
            let at = scan.at();
            let batch = scan.batch()?;
            Some((at, batch))
        });
        let Some((at, batch)) = found else {
            return Ok(if is_closed { Next::End } else { Next::Nothing });
        };
        let gone = batch.placed.number.saturating_sub(self.position.number);
        if std::mem::take(&mut self.is_behind_damage) {
            self.catalog.note_lost(gone);
        }
        let end = Position { segment, offset: at + batch.length(), number: batch.next_number() };
        let at = Position { segment, offset: at, number: batch.placed.number };
        self.position = end;
        Ok(Next::Batch { at, end, gone, batch })
    }

    /// Has the next batch in `scan`, if there is one. Says whether nothing follows the log.
    fn find(&mut self) -> io::Result<bool> {
        loop {
            let Position { segment, offset, .. } = self.position;
            let content = self.catalog.lock();
            let limit = content.segments.get(&segment).map_or(0, |info| info.length);
            let following = content.segments.range(segment + 1..).next().map(|(first, _)| *first);
            let is_closed = content.is_closed;
            drop(content);
            if offset < limit && self.open()? {
                let Some(scan) = &mut self.scan else { continue };
                if let Some(damage) = scan.skip_damage(limit)? {
                    self.is_behind_damage |=
                        self.catalog.note_damage(segment, damage.at, damage.bytes);
                    self.position.offset = scan.at();
                }
                if scan.at() < limit {
                    return Ok(is_closed);
                }
                continue;
            }
            self.scan = None;
            let Some(following) = following else { return Ok(is_closed) };
            self.position = Position { segment: following, offset: 0, ..self.position };
        }
    }

    /// Opens the segment of the position. False if it is gone.
    fn open(&mut self) -> io::Result<bool> {
        if self.scan.as_ref().is_some_and(|scan| scan.at() == self.position.offset) {
            return Ok(true);
        }
        match self.disk.open(&file_name(self.position.segment)) {
            Ok(file) => {
                self.scan = Some(Scan::new(file, self.position.offset));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
