//! The file that is sent, piece by piece.

use std::collections::HashMap;
use std::rc::Rc;

use wire::units::UnixNanos;

use super::merge::Waiting;
use super::{PIECE, ReaderGone};
use crate::store::index::IndexedInterface;
use crate::store::pcapng;

/// A pcapng file on its way. It begins with its first frame.
pub(super) struct Answer<S> {
    send: S,
    piece: Vec<u8>,
    /// Numbers of the interfaces that the file describes.
    interfaces: HashMap<Rc<IndexedInterface>, u32>,
    frames: u64,
    /// Time of the frame that was sent last.
    latest: UnixNanos,
}

impl<S: FnMut(Vec<u8>) -> Result<(), ReaderGone>> Answer<S> {
    pub(super) fn new(send: S) -> Self {
        let (piece, interfaces, latest) = (Vec::new(), HashMap::new(), UnixNanos(0));
        Self { send, piece, interfaces, frames: 0, latest }
    }

    pub(super) const fn frames(&self) -> u64 {
        self.frames
    }

    pub(super) fn push(&mut self, frame: &Waiting) -> Result<(), ReaderGone> {
        if self.frames == 0 {
            pcapng::push_section_header(&mut self.piece);
        }
        let number = self.number(frame);
        let frame = frame.frame(number);
        pcapng::push_frame(&mut self.piece, &frame);
        self.frames += 1;
        self.latest = frame.time;
        // The first frame at once: it tells that there is one.
        if self.piece.len() >= PIECE || self.frames == 1 {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what is left, with a remark at the end, if there is one and it is about frames that were sent.
    pub(super) fn finish(mut self, remark: Option<String>) -> Result<(), ReaderGone> {
        if let Some(remark) = remark.filter(|_| self.frames > 0) {
            pcapng::push_comment(&mut self.piece, 0, self.latest, &remark);
        }
        if self.piece.is_empty() { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), ReaderGone> {
        (self.send)(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE + (64 << 10))))
    }

    /// Number of the frame's interface; a new one is described.
    fn number(&mut self, frame: &Waiting) -> u32 {
        // As many as all sensors have.
        let next = self.interfaces.len() as u32;
        *self.interfaces.entry(Rc::clone(&frame.interface)).or_insert_with(|| {
            let IndexedInterface { name, linktype, description } = &*frame.interface;
            pcapng::push_interface(&mut self.piece, name, *linktype, description);
            next
        })
    }
}
