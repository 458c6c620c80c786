//! Questions for frames: which of the stored ones, as one pcapng file in the order of time.
//!
//! ```text
//!   question   what is asked for, and whether a frame is that
//!   sources    the segments that may have such frames, opened when their time comes
//!   merge      frames of all segments in the order of time
//!   answer     the file that is sent, piece by piece
//! ```
//!
//! An answer is made by a thread of its own, while it is sent. It reads segments that the committer writes and
//! retention deletes, and waits for nobody: an open segment is read as far as it was written when its turn came, a deleted one is
//! left out. A damaged one costs what is damaged. The answer says when it is not complete. Memory is bounded by `merge::MOST_WAITING` and one stride of a segment.

mod answer;
mod merge;
mod question;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, io};

use crate::store::catalog::{Catalog, Entry};
use answer::Answer;
use merge::Merge;
pub use question::{Filter, FilterError, Question};
use sources::Sources;

/// Bytes of a piece of an answer, about.
const PIECE: usize = 256 << 10;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Frames that were sent.
    pub frames: u64,
    /// The limit of frames was reached.
    pub is_limited: bool,
    /// Frames that came too late to be put in order: see `merge`.
    pub late: u64,
}

/// Nobody takes the answer any more.
#[derive(Debug)]
pub struct ReaderGone;

/// Why an answer is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Whoever asked is gone.
    #[error("the reader is gone")]
    ReaderGone,
    /// All was sent that can be read, and in the end, behind frames, what is missing.
    #[error("not complete: {missing}")]
    Incomplete {
        /// What was sent.
        told: Told,
        /// What was not.
        missing: Missing,
    },
}

/// What cannot be read: because segments are damaged, or were deleted when their turn came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Frames, of all sensors and hosts, as far as indexes tell.
    pub frames: u64,
    /// Parts of segments in which they were.
    pub parts: u64,
    /// The first of these segments. Bounded: `MOST_NAMED`.
    segments: Vec<String>,
    /// The others.
    others: u64,
    /// Segments that there were when the question came, and that are deleted.
    deleted: u64,
}

/// Damaged segments that are named.
const MOST_NAMED: usize = 8;

impl Missing {
    /// Is anything missing in an answer with so many frames? Before the first one, deletion is told otherwise: see
    /// [`Catalog::expired`].
    const fn is_any(&self, frames: u64) -> bool {
        self.parts > 0 || (self.deleted > 0 && frames > 0)
    }

    /// Takes note of a damaged part with so many frames; 0 if it is not known how many.
    fn note(&mut self, entry: &Entry, frames: u64, error: Option<&io::Error>) {
        self.frames += frames;
        self.parts += 1;
        let segment = entry.path.file_name().unwrap_or_default().to_string_lossy();
        if self.segments.iter().any(|known| *known == segment) {
            return;
        }
        if self.segments.len() < MOST_NAMED {
            let error = error.map(ToString::to_string);
            tracing::error!(segment = %entry.path.display(), frames, error, "a segment is damaged");
            self.segments.push(segment.into_owned());
        } else {
            // Strides of segments are mixed, so that one may count more than once.
            self.others += 1;
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, parts, segments, others, deleted } = self;
        let gone = match deleted {
            1 => "1 segment was deleted meanwhile",
            _ => &format!("{deleted} segments were deleted meanwhile"),
        };
        if *parts == 0 {
            return formatter.write_str(gone);
        }
        let damaged =
            if *parts == 1 { "1 damaged part" } else { &format!("{parts} damaged parts") };
        match frames {
            0 => write!(formatter, "{damaged} of ")?,
            1 => write!(formatter, "1 frame in {damaged} of ")?,
            _ => write!(formatter, "{frames} frames in {damaged} of ")?,
        }
        formatter.write_str(&segments.join(", "))?;
        if *others > 0 {
            formatter.write_str(" and others")?;
        }
        formatter.write_str(" cannot be read")?;
        if *deleted > 0 {
            write!(formatter, ", {gone}")?;
        }
        Ok(())
    }
}

impl From<ReaderGone> for AnswerError {
    fn from(_: ReaderGone) -> Self {
        Self::ReaderGone
    }
}

/// Answers a question: gives pieces of a pcapng file to `send`, none if there is no such frame. Ends early when nobody
/// `is_waiting` any more.
///
/// # Errors
/// See [`AnswerError`].
pub fn answer(
    question: &Question,
    catalog: &Catalog,
    is_waiting: impl Fn() -> bool,
    send: impl FnMut(Vec<u8>) -> Result<(), ReaderGone>,
) -> Result<Told, AnswerError> {
    let mut answer = Answer::new(send);
    let mut merge = Merge::default();
    let mut sources = Sources::new(catalog, question);
    let mut is_limited = false;
    'strides: while let Some(stride) = sources.next_stride() {
        if !is_waiting() {
            return Err(AnswerError::ReaderGone);
        }
        sources.read(&stride, |interface, frame| {
            if question.wants(&frame, interface.linktype) {
                merge.push(interface, &frame);
            }
        });
        while let Some(frame) = merge.pop(sources.earliest()) {
            answer.push(&frame)?;
            is_limited = question.limit.is_some_and(|limit| answer.frames() >= limit);
            if is_limited {
                break 'strides;
            }
        }
    }
    let told = Told { frames: answer.frames(), is_limited, late: merge.late() };
    let missing = sources.into_missing();
    let is_whole = !missing.is_any(told.frames);
    let error = AnswerError::Incomplete { told, missing };
    answer.finish((!is_whole).then(|| error.to_string()))?;
    if is_whole { Ok(told) } else { Err(error) }
}
