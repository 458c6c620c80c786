//! Marks: what was stored last of each stream of each sensor. The truth is in the headers of the
//! batches; the file keeps a copy, up to a place in the log, so that a start need not read all of it.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use wire::header::Stream;
use wire::message::Resume;
use wire::units::Sequence;

use super::disk::Disk;

/// Positions kept of one stream of one sensor. A sensor has a new epoch when its spool was lost, and
/// with an old version at each start; two of the same name would take turns.
const MOST_EPOCHS: usize = 8;
/// Version of the file's layout. Version 1 had no record log beside it.
const VERSION: u32 = 2;
const NAME: &str = "marks.json";
const HIDDEN: &str = ".marks.json.part";

/// Where the last record of one stream is, in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which stream.
    pub stream: Stream,
    /// What its sequence belongs to.
    pub epoch: u64,
    /// Last record, or batch of frames, that is stored.
    pub last: Sequence,
}

/// All marks, by name of the sensor, in the order in which they were used last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(BTreeMap<String, Vec<Mark>>);

/// How far the log goes that a copy of the marks speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The segment, by the number of its first record; 0 before there is one.
    pub segment: u64,
    /// Bytes of it.
    pub offset: u64,
    /// Number of the next record.
    pub number: u64,
}

/// Marks and how far they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Up to where the log was read.
    pub position: Position,
    /// What was found up to there.
    pub marks: Marks,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read.
    #[error("cannot read {NAME}")]
    Unreadable(#[source] io::Error),
    /// The file is not one of ours.
    #[error("{NAME} is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Another version wrote it.
    #[error("{NAME} has version {found}, this program knows versions 1 and {VERSION}")]
    Unsupported {
        /// Its version.
        found: u32,
    },
}

#[derive(Serialize, Deserialize)]
struct Content<M> {
    version: u32,
    position: Position,
    sensors: M,
}

impl Marks {
    /// Takes note that a stream is stored up to `last`.
    pub fn advance(&mut self, sensor: &str, stream: Stream, epoch: u64, last: Sequence) {
        let marks = match self.0.get_mut(sensor) {
            Some(marks) => marks,
            None => self.0.entry(sensor.to_owned()).or_default(),
        };
        let is_same = |mark: &Mark| (mark.stream, mark.epoch) == (stream, epoch);
        // Nearly always it is the one that was used last.
        let known = marks.iter().rposition(is_same);
        let last = known.map_or(last, |at| marks.remove(at).last.max(last));
        marks.push(Mark { stream, epoch, last });
        if marks.iter().filter(|mark| mark.stream == stream).count() > MOST_EPOCHS
            && let Some(oldest) = marks.iter().position(|mark| mark.stream == stream)
        {
            marks.remove(oldest);
        }
    }

    /// What is stored of a stream in this epoch; 0 if nothing is known of it.
    #[must_use]
    pub fn last(&self, sensor: &str, stream: Stream, epoch: u64) -> Sequence {
        let is_same = |mark: &&Mark| (mark.stream, mark.epoch) == (stream, epoch);
        let found = self.0.get(sensor).and_then(|marks| marks.iter().find(is_same));
        found.map_or(Sequence(0), |mark| mark.last)
    }

    /// The mark that was used last, of these streams.
    #[must_use]
    pub fn latest(&self, sensor: &str, streams: &[Stream]) -> Option<Mark> {
        self.0.get(sensor)?.iter().rfind(|mark| streams.contains(&mark.stream)).copied()
    }

    /// Names of all sensors.
    pub fn sensors(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Checkpoint {
    /// Reads the file; the beginning of everything where there is none.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn read(disk: &dyn Disk) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        #[derive(Deserialize)]
        struct Earlier {
            sensors: BTreeMap<String, Resume>,
        }
        let text = match super::read_all(disk, NAME) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(CheckpointError::Unreadable(error)),
        };
        let damaged = CheckpointError::Damaged;
        match serde_json::from_slice(&text).map_err(damaged)? {
            Version { version: 1 } => {
                let Earlier { sensors } = serde_json::from_slice(&text).map_err(damaged)?;
                Ok(Self { position: Position::default(), marks: earlier(&sensors) })
            }
            Version { version: VERSION } => {
                let content: Content<Marks> = serde_json::from_slice(&text).map_err(damaged)?;
                Ok(Self { position: content.position, marks: content.sensors })
            }
            Version { version: found } => Err(CheckpointError::Unsupported { found }),
        }
    }

    /// Replaces the file; when this returns, the new content is on the disk. What it speaks of must
    /// be there before.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        let Self { position, marks } = self;
        let content = Content { version: VERSION, position: *position, sensors: marks };
        super::replace(disk, HIDDEN, NAME, &serde_json::to_vec(&content)?)
    }
}

/// Marks of a version that kept one epoch of each sensor.
fn earlier(sensors: &BTreeMap<String, Resume>) -> Marks {
    let mut marks = Marks::default();
    for (sensor, resume) in sensors {
        marks.advance(sensor, Stream::Records, resume.record_epoch(), resume.records);
        marks.advance(sensor, Stream::Alerts, resume.record_epoch(), resume.alerts);
        marks.advance(sensor, Stream::Frames, resume.boot_epoch, resume.frames);
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::super::disk::Folder;
    use super::*;

    fn checkpoint(text: &str) -> Result<Checkpoint, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), text).unwrap();
        Checkpoint::read(&Folder::new(folder.path().to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn marks_survive_the_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::new(folder.path().to_owned());
        assert_eq!(Checkpoint::read(&disk).unwrap(), Checkpoint::default());
        let mut marks = Marks::default();
        marks.advance("a", Stream::Records, 7, Sequence(8));
        marks.advance("a", Stream::Frames, 7, Sequence(9));
        let position = Position { segment: 1, offset: 2, number: 3 };
        let written = Checkpoint { position, marks };
        written.write(&disk).unwrap();
        assert_eq!(Checkpoint::read(&disk).unwrap(), written);
    }

    #[test]
    fn marks_of_the_version_before_are_taken_over() {
        let text = r#"{"version":1,"sensors":{"a":{"boot_epoch":5,"records":6,"frames":7}}}"#;
        let Checkpoint { position, marks } = checkpoint(text).unwrap();
        assert_eq!(position, Position::default());
        assert_eq!(marks.last("a", Stream::Records, 5), Sequence(6));
        assert_eq!(marks.last("a", Stream::Frames, 5), Sequence(7));
    }

    #[test]
    fn damaged_and_newer_marks_are_named() {
        assert_eq!(checkpoint("{\"version\":1,").unwrap_err(), "marks.json is damaged");
        let newer = checkpoint(r#"{"version":3,"sensors":{}}"#).unwrap_err();
        assert_eq!(newer, "marks.json has version 3, this program knows versions 1 and 2");
    }

    #[test]
    fn a_mark_never_goes_back() {
        let mut marks = Marks::default();
        marks.advance("a", Stream::Records, 1, Sequence(9));
        marks.advance("a", Stream::Records, 1, Sequence(3));
        assert_eq!(marks.last("a", Stream::Records, 1), Sequence(9));
        assert_eq!(marks.last("a", Stream::Records, 2), Sequence(0));
        assert_eq!(marks.last("b", Stream::Records, 1), Sequence(0));
    }

    #[test]
    fn the_epochs_used_last_are_kept_for_each_stream() {
        let mut marks = Marks::default();
        marks.advance("a", Stream::Frames, 1, Sequence(1));
        for epoch in 1..=20 {
            marks.advance("a", Stream::Records, 1, Sequence(epoch));
            marks.advance("a", Stream::Records, 100 + epoch, Sequence(5));
        }
        assert_eq!(marks.last("a", Stream::Records, 1), Sequence(20));
        assert_eq!(marks.last("a", Stream::Records, 101), Sequence(0));
        assert_eq!(marks.last("a", Stream::Records, 120), Sequence(5));
        assert_eq!(marks.latest("a", &[Stream::Records]).unwrap().epoch, 120);
        assert_eq!(marks.latest("a", &[Stream::Frames]).unwrap().last, Sequence(1));
    }
}
