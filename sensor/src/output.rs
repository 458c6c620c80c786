//! Where event lines go on this host: nowhere, standard output, or a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::config::EventOutput;

/// Writes whole lines, many with one write.
#[derive(Debug)]
pub struct Output {
    target: Target,
    /// Lines that are not written yet; never part of a line.
    lines: Vec<u8>,
}

#[derive(Debug)]
enum Target {
    None,
    Stdout,
    File { file: File, path: PathBuf },
}

/// Lines are collected up to here before they are written without being asked to.
const COLLECT: usize = 64 << 10;

/// The output cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The file cannot be opened.
    #[error(
        "cannot open events file {path}; name one that can be written, with events.file or --events"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever read standard output is gone.
    #[error("the reader of standard output is gone")]
    ReaderGone,
    /// Writing failed; the lines that were collected are lost.
    #[error("cannot write {lines} events to {place}")]
    Write {
        /// `standard output` or the file.
        place: String,
        /// Lines lost.
        lines: usize,
        /// Why.
        source: io::Error,
    },
}

impl Output {
    /// Opens the output; a file is created or appended to.
    ///
    /// # Errors
    /// [`OutputError::Open`].
    pub fn open(output: &EventOutput) -> Result<Self, OutputError> {
        let target = match output {
            EventOutput::None => Target::None,
            EventOutput::Stdout => Target::Stdout,
            EventOutput::File(path) => open_file(path)?,
        };
        Ok(Self { target, lines: Vec::with_capacity(COLLECT * 2) })
    }

    /// Takes one line or some, their line feeds included.
    ///
    /// # Errors
    /// See [`Output::flush`], which is called when much has been collected.
    pub fn lines(&mut self, lines: &[u8]) -> Result<(), OutputError> {
        if matches!(self.target, Target::None) {
            return Ok(());
        }
        self.lines.extend_from_slice(lines);
        if self.lines.len() >= COLLECT { self.flush() } else { Ok(()) }
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// [`OutputError::ReaderGone`] or [`OutputError::Write`]; what could not be written is given up.
    pub fn flush(&mut self) -> Result<(), OutputError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = match &mut self.target {
            Target::None => Ok(()),
            Target::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(&self.lines).and_then(|()| stdout.flush());
                written.map_err(|source| (0, source))
            }
            Target::File { file, .. } => append(file, &self.lines),
        };
        let written = written.map_err(|(end, source)| {
            let lines = self.lines[end..].iter().filter(|byte| **byte == b'\n').count();
            self.target.failed(lines, source)
        });
        self.lines.clear();
        written
    }
}

impl Target {
    fn failed(&self, lines: usize, source: io::Error) -> OutputError {
        let place = match self {
            Self::Stdout if source.kind() == io::ErrorKind::BrokenPipe => {
                return OutputError::ReaderGone;
            }
            Self::File { path, .. } => path.display().to_string(),
            Self::Stdout | Self::None => "standard output".into(),
        };
        OutputError::Write { place, lines, source }
    }
}

/// Appends lines. If the system takes only some of them, tells where those end, and takes back what
/// it took of the next one: a later line must not be glued to half of this one.
fn append(file: &mut File, lines: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut end = 0;
    let source = loop {
        match file.write(&lines[end..]) {
            Ok(0) => break io::ErrorKind::WriteZero.into(),
            Ok(count) => end += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error,
        }
        if end == lines.len() {
            return Ok(());
        }
    };
    let whole = lines[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if end > whole
        && let Ok(now) = file.metadata()
    {
        // If not even this works, the half line stays, and readers find one line that is none.
        let _ = file.set_len(now.len().saturating_sub((end - whole) as u64));
    }
    Err((whole, source))
}

fn open_file(path: &Path) -> Result<Target, OutputError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    match file {
        Ok(file) => Ok(Target::File { file, path: path.to_owned() }),
        Err(source) => Err(OutputError::Open { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        std::fs::write(&path, "before\n").unwrap();
        let mut output = Output::open(&EventOutput::File(path.clone())).unwrap();
        output.lines(b"one\n").unwrap();
        output.lines(b"two\n").unwrap();
        output.flush().unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "before\none\ntwo\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let said = Output::open(&EventOutput::File("/nowhere/eve.json".into())).unwrap_err();
        assert_eq!(
            said.to_string(),
            "cannot open events file /nowhere/eve.json; name one that can be written, with events.file \
             or --events"
        );
    }

    #[test]
    fn lost_lines_are_counted_and_the_next_write_starts_afresh() {
        let mut output = Output::open(&EventOutput::File("/dev/full".into())).unwrap();
        output.lines(b"one\n").unwrap();
        output.lines(b"two\n").unwrap();
        let said = output.flush().unwrap_err();
        assert_eq!(said.to_string(), "cannot write 2 events to /dev/full");
        output.flush().unwrap();
    }
}
