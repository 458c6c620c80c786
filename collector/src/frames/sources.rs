//! The segments that may have what is asked for, and their strides in the order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use wire::units::UnixNanos;

use super::{Missing, Question};
use crate::store::blocks::{self, Block, Next, StoredFrame};
use crate::store::catalog::{Catalog, Entry};
use crate::store::index::{Index, IndexedInterface, Stride, Walk};

/// Segments, and strides of those that are open.
pub(super) struct Sources<'q> {
    question: &'q Question,
    /// Not opened yet, in the order of their first frames. With each, its place in the order of age.
    segments: VecDeque<(usize, Entry)>,
    /// Strides of opened segments, the earliest on top.
    strides: BinaryHeap<Reverse<Pending>>,
    buffer: Vec<u8>,
    missing: Missing,
}

/// A segment that is read.
struct Source {
    entry: Entry,
    file: File,
    /// By number.
    interfaces: Vec<Rc<IndexedInterface>>,
}

/// A stride that is to be read.
pub(super) struct Pending {
    stride: Stride,
    /// Tells those apart that begin at the same time: the older segment first.
    order: (usize, u64),
    source: Rc<Source>,
}

impl<'q> Sources<'q> {
    pub(super) fn new(catalog: &Catalog, question: &'q Question) -> Self {
        let may_have = |(_, entry): &(_, Entry)| entry.may_have(question.from, question.to);
        let mut segments: Vec<_> =
            catalog.segments().into_iter().enumerate().filter(may_have).collect();
        segments.sort_by_key(|(_, entry)| first(entry));
        let (strides, buffer, missing) = (BinaryHeap::new(), Vec::new(), Missing::default());
        Self { question, segments: segments.into(), strides, buffer, missing }
    }

    /// The stride with the earliest frame of all that are left.
    pub(super) fn next_stride(&mut self) -> Option<Pending> {
        loop {
            let next = self.strides.peek().map(|Reverse(pending)| pending.stride.first);
            let is_due = |entry: &Entry| next.is_none_or(|next| first(entry) <= next);
            match self.segments.pop_front_if(|(_, entry)| is_due(entry)) {
                Some((age, entry)) => self.open(age, entry),
                None => return self.strides.pop().map(|Reverse(pending)| pending),
            }
        }
    }

    /// No frame of a stride that is left is earlier.
    pub(super) fn earliest(&self) -> UnixNanos {
        let stride = self.strides.peek().map(|Reverse(pending)| pending.stride.first);
        let segment = self.segments.front().map(|(_, entry)| first(entry));
        stride.into_iter().chain(segment).min().unwrap_or(UnixNanos(u64::MAX))
    }

    /// What could not be read.
    pub(super) fn into_missing(self) -> Missing {
        self.missing
    }

    /// Gives every frame of a stride that is of a sensor that the question is about, with its interface. A damaged
    /// block is skipped, if what follows it is whole; otherwise the rest of the stride is missing.
    pub(super) fn read(
        &mut self,
        pending: &Pending,
        mut give: impl FnMut(&Rc<IndexedInterface>, StoredFrame<'_>),
    ) {
        let Pending { stride, source, .. } = pending;
        self.buffer.resize(stride.length as usize, 0);
        if let Err(error) = source.file.read_exact_at(&mut self.buffer, stride.offset) {
            return self.missing.note(&source.entry, u64::from(stride.frames), Some(&error));
        }
        let (mut rest, mut found) = (&self.buffer[..], 0);
        while !rest.is_empty() {
            let length = match blocks::next(rest) {
                Next::Whole(Block::Packet(frame), length) => {
                    if let Some(interface) = source.interfaces.get(frame.interface as usize) {
                        found += 1;
                        if self.question.is_about(interface.sensor()) {
                            give(interface, frame);
                        }
                    }
                    length
                }
                Next::Whole(_, length) => length,
                Next::Cut(_) | Next::Broken => match blocks::damaged_length(rest) {
                    Some(length) => length,
                    None => break,
                },
            };
            rest = &rest[length..];
        }
        if found < stride.frames {
            self.missing.note(&source.entry, u64::from(stride.frames - found), None);
        }
    }

    /// Has the strides of a segment among those that are to be read.
    fn open(&mut self, age: usize, entry: Entry) {
        let file = match entry.open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.missing.deleted += 1;
                return;
            }
            opened => opened,
        };
        // Of a sealed one, the catalog may know how many there were.
        let span = entry.sealed.and_then(|sealed| sealed.span);
        let frames = span.map_or(0, |span| span.frames);
        let found = file.and_then(|file| Ok((index_of(&entry, &file)?, file)));
        let ((index, is_whole), file) = match found {
            Ok(found) => found,
            Err(error) => return self.missing.note(&entry, frames, Some(&error)),
        };
        if !is_whole {
            let found = index.strides.iter().map(|stride| u64::from(stride.frames)).sum();
            self.missing.note(&entry, frames.saturating_sub(found), None);
        }
        if !self.question.may_be_in(&index) {
            return;
        }
        let Question { from, to, .. } = *self.question;
        let wanted = |stride: &&Stride| stride.first <= to && from <= stride.last;
        let strides: Vec<_> = index.strides.iter().filter(wanted).copied().collect();
        let interfaces = index.interfaces.into_iter().map(Rc::new).collect();
        let source = Rc::new(Source { entry, file, interfaces });
        for stride in strides {
            let order = (age, stride.offset);
            self.strides.push(Reverse(Pending { stride, order, source: Rc::clone(&source) }));
        }
    }
}

/// The index that a sealed segment has, or what would be one of the others; false if a sealed one is damaged, so
/// that something is missing in it.
fn index_of(entry: &Entry, file: &File) -> io::Result<(Index, bool)> {
    if entry.sealed.is_some()
        && let Some(index) = Index::read(file)?
    {
        return Ok((index, true));
    }
    let length = file.metadata()?.len();
    let Walk { index, end, .. } = Index::of(file, length)?;
    // An open one is written meanwhile.
    Ok((index, end == length || entry.sealed.is_none()))
}

/// When its frames begin; of one that does not say so, in 1970.
fn first(entry: &Entry) -> UnixNanos {
    let span = entry.sealed.and_then(|sealed| sealed.span);
    span.map_or(UnixNanos(0), |span| span.first)
}

impl Pending {
    const fn key(&self) -> (UnixNanos, (usize, u64)) {
        (self.stride.first, self.order)
    }
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Pending {}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
