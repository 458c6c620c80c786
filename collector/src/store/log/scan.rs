//! Batch after batch out of one segment, over whatever is damaged in between.

use std::io;

use super::batch::{Batch, Fault, HEADER_LEN, MAGIC};
use super::disk::DiskFile;

/// How much is read at once.
const STEP: usize = 256 << 10;

/// Reads one segment from a place on.
pub struct Scan {
    file: Box<dyn DiskFile>,
    /// Bytes of the file from `base` on.
    buffer: Vec<u8>,
    base: u64,
    /// Where the next batch begins.
    at: u64,
    /// Length of the batch there, once it was checked.
    checked: Option<usize>,
}

/// Bytes that are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin.
    pub at: u64,
    /// How many.
    pub bytes: u64,
}

impl Scan {
    /// A scan of `file` that begins at `at`.
    #[must_use]
    pub const fn new(file: Box<dyn DiskFile>, at: u64) -> Self {
        Self { file, buffer: Vec::new(), base: at, at, checked: None }
    }

    /// Where the next batch begins.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Goes to the next batch before `limit`, over what is none; says what that was.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn skip_damage(&mut self, limit: u64) -> io::Result<Option<Damage>> {
        let start = self.at;
        let mut at = start;
        while at < limit {
            self.checked = self.check(at, limit)?;
            if self.checked.is_some() {
                break;
            }
            at = self.candidate(at + 1, limit)?;
        }
        self.at = at;
        Ok((at > start).then_some(Damage { at: start, bytes: at - start }))
    }

    /// The batch that [`Scan::skip_damage`] found, if there is one.
    pub fn batch(&mut self) -> Option<Batch<'_>> {
        let length = self.checked.take()?;
        let start = (self.at - self.base) as usize;
        self.at += length as u64;
        Batch::read(&self.buffer[start..start + length]).ok().map(|(batch, _)| batch)
    }

    /// The batch right here, if there is one and it ends before `limit`; what is behind a damage is not looked for.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn batch_here(&mut self, limit: u64) -> io::Result<Option<Batch<'_>>> {
        self.checked = self.check(self.at, limit)?;
        Ok(self.batch())
    }

    /// Length of the batch at `at`, if one is there and ends before `limit`.
    fn check(&mut self, at: u64, limit: u64) -> io::Result<Option<usize>> {
        let mut wanted = HEADER_LEN;
        loop {
            let there = self.load(at, wanted, limit)?;
            if there < wanted {
                return Ok(None);
            }
            match Batch::parse(&self.buffer[(at - self.base) as usize..]) {
                Ok((_, length)) => return Ok(Some(length)),
                Err(Fault::Short(more)) if more > there => wanted = more,
                Err(Fault::Short(_) | Fault::Damaged(_)) => return Ok(None),
            }
        }
    }

    /// The first place from `from` on where a batch may begin; `limit` if there is none.
    fn candidate(&mut self, from: u64, limit: u64) -> io::Result<u64> {
        let mut from = from;
        while self.load(from, MAGIC.len(), limit)? >= MAGIC.len() {
            let rest = &self.buffer[(from - self.base) as usize..];
            match rest.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
                Some(skipped) => return Ok(from + skipped as u64),
                // The last bytes may be the beginning of a magic.
                None => from += (rest.len() - MAGIC.len() + 1) as u64,
            }
        }
        Ok(limit)
    }

    /// Has at least `wanted` bytes from `at` on in the buffer, if there are so many before `limit`.
    /// Says how many there are.
    fn load(&mut self, at: u64, wanted: usize, limit: u64) -> io::Result<usize> {
        let end = self.base + self.buffer.len() as u64;
        if !(self.base..=end).contains(&at) {
            self.buffer.clear();
            self.base = at;
        }
        let known = self.buffer.len() - (at - self.base) as usize;
        if known >= wanted {
            return Ok(known);
        }
        self.buffer.drain(..(at - self.base) as usize);
        self.base = at;
        let there = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
        self.buffer.resize(wanted.max(STEP).min(there).max(known), 0);
        let mut filled = known;
        while filled < self.buffer.len() {
            match self.file.read_at(&mut self.buffer[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) => {
                    self.buffer.truncate(filled);
                    return Err(error);
                }
            }
        }
        self.buffer.truncate(filled);
        Ok(filled)
    }
}
