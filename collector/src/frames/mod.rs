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
//! left out. Memory is bounded by `merge::MOST_WAITING` and one stride of a segment.

mod answer;
mod merge;
mod question;
mod sources;
#[cfg(test)]
mod tests;

use std::io;

use crate::store::catalog::Catalog;
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

/// Why an answer ended early.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Whoever asked is gone.
    #[error("the reader is gone")]
    ReaderGone,
    /// A segment cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The segment.
        path: String,
        /// What the system said.
        source: io::Error,
    },
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
/// See [`AnswerError`]; what was sent until then is a file that is cut off.
pub fn answer(
    question: &Question,
    catalog: &Catalog,
    is_waiting: impl Fn() -> bool,
    send: impl FnMut(Vec<u8>) -> Result<(), ReaderGone>,
) -> Result<Told, AnswerError> {
    let mut answer = Answer::new(send);
    let mut merge = Merge::default();
    let mut sources = Sources::new(catalog, question);
    while let Some(stride) = sources.next_stride()? {
        if !is_waiting() {
            return Err(AnswerError::ReaderGone);
        }
        sources.read(&stride, |interface, frame| {
            if question.wants(&frame, interface.linktype) {
                merge.push(interface, &frame);
            }
        })?;
        while let Some(frame) = merge.pop(sources.earliest()) {
            answer.push(&frame)?;
            if question.limit.is_some_and(|limit| answer.frames() >= limit) {
                return Ok(Told { is_limited: true, ..answer.finish(merge.late())? });
            }
        }
    }
    Ok(answer.finish(merge.late())?)
}
