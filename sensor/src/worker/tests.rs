//! What a panic of a worker costs, and that it comes back: the whole pipeline in this process, with
//! frames that make analysis fail on purpose.

use crate::frame::Frame;

/// A frame with these bytes makes the worker panic that works on it.
const POISON: &[u8] = b"this frame makes its worker panic";

pub(super) fn fail_on_purpose(frames: &[Frame<'_>]) {
    let is_poison = |frame: &Frame<'_>| frame.data.windows(POISON.len()).any(|it| it == POISON);
    assert!(!frames.iter().any(is_poison), "on purpose");
}
