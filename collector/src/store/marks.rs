//! Marks: what was stored last of each sensor, so that a sensor learns it after a restart of the
//! collector and nothing is stored twice.
//!
//! The file is replaced as a whole, and only after the records that it speaks of are on the disk: it
//! may lag behind them (then a little is stored twice), it is never ahead of them. Of frames it says
//! what was written: they reach the disk when their segment is sealed, or when the kernel sees fit, so
//! after a crash of the machine, not of the collector, the mark may be ahead of them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::message::Resume;

/// Marks by sensor name.
pub type Marks = BTreeMap<String, Resume>;

/// Version of the file's layout.
const VERSION: u32 = 1;

/// The file that keeps the marks.
#[derive(Debug)]
pub struct MarksFile {
    path: PathBuf,
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Content<M> {
    version: u32,
    sensors: M,
}

/// Why the marks of an earlier run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarksError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of ours.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version wrote it.
    #[error("{} has version {found}, this program knows version {VERSION}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

impl MarksFile {
    /// The file in this folder, whether it exists or not.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join("marks.json"), folder: folder.to_owned() }
    }

    /// Reads the marks; none where there is no file.
    ///
    /// # Errors
    /// See [`MarksError`].
    pub fn read(&self) -> Result<Marks, MarksError> {
        let path = self.path.clone();
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marks::new()),
            Err(source) => return Err(MarksError::Unreadable { path, source }),
        };
        let content: Content<Marks> = serde_json::from_slice(&text)
            .map_err(|source| MarksError::Damaged { path: path.clone(), source })?;
        if content.version != VERSION {
            return Err(MarksError::Unsupported { path, found: content.version });
        }
        Ok(content.sensors)
    }

    /// Replaces the file; when this returns, the new content is on the disk.
    ///
    /// # Errors
    /// What the file system says; the old content then still stands.
    pub fn write(&self, marks: &Marks) -> io::Result<()> {
        let hidden = self.folder.join(".marks.json.part");
        let text = serde_json::to_vec(&Content { version: VERSION, sensors: marks })?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o640).open(&hidden)?;
        file.write_all(&text)?;
        file.sync_data()?;
        std::fs::rename(&hidden, &self.path)?;
        File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use wire::units::Sequence;

    use super::*;

    #[test]
    fn marks_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let file = MarksFile::new(folder.path());
        assert_eq!(file.read().unwrap(), Marks::new());
        let resume = Resume {
            boot_epoch: 7,
            records: Sequence(8),
            frames: Sequence(9),
            spool_epoch: 5,
            alerts: Sequence(3),
        };
        let marks = Marks::from([("a".to_owned(), resume)]);
        file.write(&marks).unwrap();
        assert_eq!(file.read().unwrap(), marks);
    }

    #[test]
    fn marks_of_a_collector_that_knew_one_stream_of_records_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"sensors":{"a":{"boot_epoch":7,"records":8,"frames":9}}}"#;
        std::fs::write(folder.path().join("marks.json"), text).unwrap();
        let marks = MarksFile::new(folder.path()).read().unwrap();
        assert_eq!(
            (marks["a"].record_epoch(), marks["a"].records.0, marks["a"].alerts.0),
            (7, 8, 0)
        );
    }

    #[test]
    fn damaged_marks_are_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("marks.json"), "{\"version\":1,").unwrap();
        let error = MarksFile::new(folder.path()).read().unwrap_err().to_string();
        assert!(error.ends_with("marks.json is damaged"), "{error}");
    }

    #[test]
    fn marks_of_another_version_are_not_guessed_at() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("marks.json"), r#"{"version":2,"sensors":{}}"#).unwrap();
        let error = MarksFile::new(folder.path()).read().unwrap_err().to_string();
        assert!(error.ends_with("has version 2, this program knows version 1"), "{error}");
    }
}
