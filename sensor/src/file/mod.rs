//! Capture files (pcap and pcapng) as a source of frames.

mod deal;

pub use deal::worker_of;

use std::io::Read;
use std::path::Path;

use crate::frame::{Frame, LinkType};

/// Why a capture file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be opened or read.
    #[error("cannot read {file}")]
    Io {
        /// Name of the file.
        file: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A capture file, read from its start to its end.
pub struct CaptureFile {
    interfaces: Vec<Interface>,
    truncated: bool,
}

/// An interface that the file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, where the file gives one.
    pub name: Option<String>,
    /// How its frames begin.
    pub link: LinkType,
    /// Longest capture of a frame in bytes, 0 for no limit.
    pub snaplen: u32,
}

/// A frame out of a file.
#[derive(Clone, Copy, Debug)]
pub struct FileFrame<'a> {
    /// The frame.
    pub frame: Frame<'a>,
    /// Index into [`CaptureFile::interfaces`].
    pub interface: u32,
}

impl CaptureFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened, or is no capture file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let _ = path;
        Ok(Self { interfaces: Vec::new(), truncated: false })
    }

    /// Reads from anything; `name` stands in error messages.
    ///
    /// # Errors
    /// When it is no capture file.
    pub fn from_reader(reader: impl Read + Send + 'static, name: &str) -> Result<Self, FileError> {
        let _ = (reader, name);
        Ok(Self { interfaces: Vec::new(), truncated: false })
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read on.
    pub fn next_frame(&mut self) -> Result<Option<FileFrame<'_>>, FileError> {
        Ok(None)
    }

    /// The interfaces seen so far.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Did the file end in the middle of a record?
    #[must_use]
    pub const fn truncated(&self) -> bool {
        self.truncated
    }
}
