//! The segments that may have what is asked for, and their strides in the order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use wire::units::UnixNanos;

use super::{AnswerError, Question};
use crate::store::blocks::{self, Block, Next, StoredFrame};
use crate::store::catalog::{Catalog, Entry};
use crate::store::index::{Index, IndexedInterface, Stride};

/// Segments, and strides of those that are open.
pub(super) struct Sources<'q> {
    question: &'q Question,
    /// Not opened yet, in the order of their first frames. With each, its place in the order of age.
    segments: VecDeque<(usize, Entry)>,
    /// Strides of opened segments, the earliest on top.
    strides: BinaryHeap<Reverse<Pending>>,
    buffer: Vec<u8>,
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
        Self { question, segments: segments.into(), strides: BinaryHeap::new(), buffer: Vec::new() }
    }

    /// The stride with the earliest frame of all that are left.
    pub(super) fn next_stride(&mut self) -> Result<Option<Pending>, AnswerError> {
        loop {
            let next = self.strides.peek().map(|Reverse(pending)| pending.stride.first);
            let is_due = |entry: &Entry| next.is_none_or(|next| first(entry) <= next);
            match self.segments.pop_front_if(|(_, entry)| is_due(entry)) {
                Some((age, entry)) => self.open(age, entry)?,
                None => return Ok(self.strides.pop().map(|Reverse(pending)| pending)),
            }
        }
    }

    /// No frame of a stride that is left is earlier.
    pub(super) fn earliest(&self) -> UnixNanos {
        let stride = self.strides.peek().map(|Reverse(pending)| pending.stride.first);
        let segment = self.segments.front().map(|(_, entry)| first(entry));
        stride.into_iter().chain(segment).min().unwrap_or(UnixNanos(u64::MAX))
    }

    /// Gives every frame of a stride that is of a sensor that the question is about, with its interface.
    pub(super) fn read(
        &mut self,
        pending: &Pending,
        mut give: impl FnMut(&Rc<IndexedInterface>, StoredFrame<'_>),
    ) -> Result<(), AnswerError> {
        let Pending { stride, source, .. } = pending;
        self.buffer.resize(stride.length as usize, 0);
        let read = source.file.read_exact_at(&mut self.buffer, stride.offset);
        read.map_err(|error| unreadable(&source.entry, error))?;
        let mut rest = &self.buffer[..];
        while let Next::Whole(block, length) = blocks::next(rest) {
            rest = &rest[length..];
            let Block::Packet(frame) = block else { continue };
            let interface = source.interfaces.get(frame.interface as usize);
            if let Some(interface) = interface
                && self.question.is_about(interface.sensor())
            {
                give(interface, frame);
            }
        }
        Ok(())
    }

    fn open(&mut self, age: usize, entry: Entry) -> Result<(), AnswerError> {
        let file = match entry.open() {
            // Deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|error| unreadable(&entry, error))?,
        };
        let index = index_of(&entry, &file).map_err(|error| unreadable(&entry, error))?;
        if !self.question.may_be_in(&index) {
            return Ok(());
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
        Ok(())
    }
}

/// The index that a sealed segment has, or what would be one of the others.
fn index_of(entry: &Entry, file: &File) -> io::Result<Index> {
    if entry.sealed.is_some()
        && let Some(index) = Index::read(file)?
    {
        return Ok(index);
    }
    Ok(Index::of(file, file.metadata()?.len())?.0)
}

/// When its frames begin; of one that does not say so, in 1970.
fn first(entry: &Entry) -> UnixNanos {
    let span = entry.sealed.and_then(|sealed| sealed.span);
    span.map_or(UnixNanos(0), |span| span.first)
}

fn unreadable(entry: &Entry, source: io::Error) -> AnswerError {
    AnswerError::Unreadable { path: entry.path.display().to_string(), source }
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
