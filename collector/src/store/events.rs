//! The event log `eve.json`: every record as a line, made from the record log by a thread that follows
//! it. Whatever becomes of it, acknowledgements do not wait.
//!
//! Its content is a function of the record log, so that each record is in it once, also over a kill:
//! the cursor says to which place of the record log a length of the file belongs, and what the file has
//! beyond that length is compared with what should be there. The follower goes on behind it, in the
//! middle of a line if need be.
//!
//! A record log that ends in front of the cursor is an older copy that somebody put in its place: the event log goes on
//! at its end, with an error in the log. Numbers behind it are given again, to other records.
//!
//! It may be rotated: when the file was renamed or removed, a new one is made before the next lines are
//! written, and on request. A file that was truncated is written on where it ends then; the place that
//! belongs to that is only known with the next cursor, so that after a kill within a second of the
//! truncation some lines may be written again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::log::batch::Batch;
use super::log::catalog::Catalog;
use super::log::disk::Disk;
use super::log::marks::Position;
use super::log::reader::{Next, Reader};

/// Owner may write, group may read.
const MODE: u32 = 0o640;
/// Time between two cursors while something is written.
const CURSOR_INTERVAL: Duration = Duration::from_secs(1);
/// How much of the file is compared at once.
const STEP: usize = 256 << 10;
/// Version of the cursor's layout.
const VERSION: u32 = 1;

/// The event log, following the record log.
pub struct EventLog {
    path: PathBuf,
    reader: Reader,
    scratch: Vec<u8>,
    file: File,
    /// Device and number of the file.
    identity: (u64, u64),
    /// Bytes in the file, as far as we know.
    length: u64,
    /// Lines of the last batch that was read, and how much of them is written.
    lines: Vec<u8>,
    written: usize,
    /// Cursor on the disk.
    saved: Cursor,
    saved_at: Instant,
}

/// Which length of the file belongs to which place of the record log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    version: u32,
    position: Position,
    device: u64,
    file: u64,
    length: u64,
}

/// What one turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A batch was written. So many records before it are gone from the record log.
    Written {
        /// Records that are missing in the event log for ever.
        gone: u64,
    },
    /// All is written that is stored.
    Idle,
    /// All is written, and nothing follows.
    End,
}

impl EventLog {
    /// Opens or creates the file and finds out how far it got. Says how many bytes of it were not what
    /// should be there, and were cut off.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        catalog: Arc<Catalog>,
    ) -> io::Result<(Self, u64)> {
        let cursor = read_cursor(path)?;
        let (file, is_new) = open_file(path)?;
        let metadata = file.metadata()?;
        let stored = end_of(&catalog);
        let is_ahead = cursor.as_ref().is_some_and(|cursor| cursor.position.number > stored.number);
        let position = match &cursor {
            Some(cursor) if is_ahead => {
                let missing = cursor.position.number - stored.number;
                tracing::error!(
                    path = %path.display(),
                    missing,
                    "the record log is older than the event log, whose last records it does not have: somebody put a \
                     copy in its place; what is in the copy is not written again, what is stored from now on is"
                );
                stored
            }
            Some(cursor) => cursor.position,
            // To be written anew, as a whole.
            None if metadata.len() == 0 => Position { number: 1, ..Position::default() },
            None => stored,
        };
        let mut log = Self {
            path: path.to_owned(),
            reader: Reader::new(disk, catalog, position),
            scratch: Vec::new(),
            identity: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            file,
            lines: Vec::new(),
            written: 0,
            saved: cursor.unwrap_or_default(),
            saved_at: Instant::now(),
        };
        let cut = match &cursor {
            None => log.cut_torn_line()?,
            Some(_) if is_ahead => log.cut_torn_line()?,
            Some(cursor) if (cursor.device, cursor.file) != log.identity => {
                log.complete_moved(cursor)?;
                0
            }
            Some(cursor) if cursor.length <= log.length => log.compare(cursor.length)?,
            // Truncated.
            Some(_) => 0,
        };
        if is_new {
            super::sync_folder_of(path)?;
        }
        // Before the first line: without a cursor, a file with lines is one of an earlier version.
        match log.save() {
            // The cursor that is there still holds. A full disk must not keep the collector from starting.
            Err(error) if cursor.is_some() && !is_ahead => {
                tracing::warn!(path = %log.path.display(), %error, "cannot write the cursor");
            }
            saved => saved?,
        }
        Ok((log, cut))
    }

    /// Number of the first record that is not written.
    #[must_use]
    pub const fn next_number(&self) -> u64 {
        self.reader.position().number
    }

    /// Writes the next batch, if there is one.
    ///
    /// # Errors
    /// What the system says; the same call may be made again, and goes on where this one stopped.
    pub fn turn(&mut self) -> io::Result<Turn> {
        let mut gone = 0;
        if self.written == self.lines.len() {
            self.reopen_if_moved()?;
            self.note_truncation()?;
            match self.reader.read()? {
                Next::Batch { batch, gone: before, .. } => {
                    gone = before;
                    lay_out(&batch, &mut self.scratch, &mut self.lines);
                    self.written = 0;
                }
                ending => {
                    let turn = if matches!(ending, Next::End) { Turn::End } else { Turn::Idle };
                    let is_due = self.saved_at.elapsed() >= CURSOR_INTERVAL;
                    if turn == Turn::End || is_due {
                        self.save()?;
                    }
                    return Ok(turn);
                }
            }
        }
        self.write()?;
        if self.saved_at.elapsed() >= CURSOR_INTERVAL {
            self.save()?;
        }
        Ok(Turn::Written { gone })
    }

    /// Waits until there is more, or time is up.
    pub fn wait(&self, patience: Duration) {
        self.reader.wait(patience);
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.lines.len() {
            match self.file.write(&self.lines[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => {
                    self.written += more;
                    self.length += more as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the file anew if its path no longer leads to it. Nothing may be half written.
    ///
    /// # Errors
    /// What the system says; the same call may be made again.
    pub fn reopen_if_moved(&mut self) -> io::Result<()> {
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == self.identity => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.written < self.lines.len() {
            return Ok(());
        }
        sync(&self.file)?;
        let (file, _) = open_file(&self.path)?;
        super::sync_folder_of(&self.path)?;
        let metadata = file.metadata()?;
        self.identity = (metadata.dev(), metadata.ino());
        (self.file, self.length) = (file, metadata.len());
        self.save()?;
        tracing::info!(path = %self.path.display(), "the event log was moved; began a new one");
        Ok(())
    }

    /// Takes note of what others did to the length of the file.
    fn note_truncation(&mut self) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.is_file() && metadata.len() != self.length {
            self.length = metadata.len();
            self.save()?;
        }
        Ok(())
    }

    /// Writes the cursor, if it moved, behind what it speaks of.
    fn save(&mut self) -> io::Result<()> {
        self.saved_at = Instant::now();
        let (device, file) = self.identity;
        let position = self.reader.position();
        let cursor = Cursor { version: VERSION, position, device, file, length: self.length };
        if cursor != self.saved && self.written == self.lines.len() {
            sync(&self.file)?;
            write_cursor(&self.path, &cursor)?;
            self.saved = cursor;
        }
        Ok(())
    }

    /// Compares the file from `from` on with what should be there, cuts off what differs, and goes on
    /// where it ends. Says how much that was.
    fn compare(&mut self, from: u64) -> io::Result<u64> {
        let mut file = OpenOptions::new().read(true).open(&self.path)?;
        let length = self.length;
        let same = self.follow(&mut file, from)?;
        if same < length {
            self.file.set_len(same)?;
            self.length = same;
        }
        Ok(length - same)
    }

    /// The file was moved while nobody followed: finds it beside its path, and completes its last
    /// batch there.
    fn complete_moved(&mut self, cursor: &Cursor) -> io::Result<()> {
        let Some(path) = find_moved(&self.path, cursor)? else {
            tracing::warn!(
                path = %self.path.display(),
                "the event log was moved out of its folder while no collector ran; \
                 up to a second of events may be in it and in the new one"
            );
            return Ok(());
        };
        let mut moved = OpenOptions::new().read(true).append(true).open(&path)?;
        if moved.metadata()?.len() >= cursor.length {
            let same = self.follow(&mut moved, cursor.length)?;
            moved.set_len(same)?;
            moved.write_all(&self.lines[self.written..])?;
            moved.sync_data()?;
            self.written = self.lines.len();
        }
        Ok(())
    }

    /// Reads the record log as long as `file`, from `from` on, has what should be there. Returns the
    /// length up to which it has.
    fn follow(&mut self, file: &mut File, from: u64) -> io::Result<u64> {
        let mut found = vec![0; STEP];
        let mut at = from;
        file.seek(SeekFrom::Start(at))?;
        loop {
            if self.written == self.lines.len() {
                let Next::Batch { batch, .. } = self.reader.read()? else { return Ok(at) };
                lay_out(&batch, &mut self.scratch, &mut self.lines);
                self.written = 0;
            }
            let rest = &self.lines[self.written..];
            let wanted = rest.len().min(STEP);
            let count = match file.read(&mut found[..wanted])? {
                0 => return Ok(at),
                count => count,
            };
            let same = rest.iter().zip(&found[..count]).take_while(|(a, b)| a == b).count();
            self.written += same;
            at += same as u64;
            if same < count {
                return Ok(at);
            }
        }
    }

    /// Cuts off the last line of a file that knows no cursor, if it is torn.
    fn cut_torn_line(&mut self) -> io::Result<u64> {
        let mut file = OpenOptions::new().read(true).open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Ok(0);
        }
        let whole = whole_lines(&mut file, self.length)?;
        let cut = self.length - whole;
        if cut > 0 {
            self.file.set_len(whole)?;
            self.length = whole;
        }
        Ok(cut)
    }
}

/// The lines of a batch.
fn lay_out(batch: &Batch<'_>, scratch: &mut Vec<u8>, lines: &mut Vec<u8>) {
    lines.clear();
    match batch.records(scratch) {
        Ok(records) => {
            for record in records.iter() {
                lines.extend_from_slice(record.json.as_bytes());
                lines.push(b'\n');
            }
        }
        Err(fault) => tracing::error!(number = batch.placed.number, fault, "unreadable batch"),
    }
}

fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let is_new = !path.exists();
    let file = OpenOptions::new().append(true).create(true).mode(MODE).open(path)?;
    Ok((file, is_new))
}

/// Brings a file to the disk; a device has none.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_data() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// The end of what is stored.
fn end_of(catalog: &Catalog) -> Position {
    let content = catalog.lock();
    let number = content.next_number.max(1);
    let last = content.segments.last_key_value();
    last.map_or(Position { number, ..Position::default() }, |(segment, info)| Position {
        segment: *segment,
        offset: info.length,
        number,
    })
}

fn cursor_path(path: &Path) -> PathBuf {
    path.with_extension("cursor")
}

/// The cursor of a file; `None` if there is none, or none that can be used.
fn read_cursor(path: &Path) -> io::Result<Option<Cursor>> {
    let text = match std::fs::read(cursor_path(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice::<Cursor>(&text) {
        Ok(cursor) if cursor.version == VERSION => Ok(Some(cursor)),
        _ => {
            let path = cursor_path(path);
            tracing::warn!(
                path = %path.display(),
                "the cursor of the event log is damaged; it goes on with what is stored from now on. \
                 To have all of it written anew, stop the collector and remove eve.json and eve.cursor"
            );
            Ok(None)
        }
    }
}

fn write_cursor(path: &Path, cursor: &Cursor) -> io::Result<()> {
    let hidden = path.with_extension("cursor.part");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(&hidden)?;
    file.write_all(&serde_json::to_vec(cursor)?)?;
    file.sync_data()?;
    std::fs::rename(&hidden, cursor_path(path))
}

/// The file of a cursor under another name in the same folder.
fn find_moved(path: &Path, cursor: &Cursor) -> io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new("/")))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() && (metadata.dev(), metadata.ino()) == (cursor.device, cursor.file) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// How many bytes at the start of a file are whole lines.
fn whole_lines(file: &mut (impl Read + Seek), length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP as u64);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.by_ref().take(end - start).read_to_end(&mut chunk)?;
        if let Some(found) = chunk.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + found as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use wire::header::Stream;
    use wire::records::RecordKind;
    use wire::units::{Sequence, UnixNanos};

    use super::super::log::RecordLog;
    use super::super::log::batch::{NewBatch, push_record};
    use super::super::log::disk::Folder;
    use super::*;

    struct Lab {
        folder: tempfile::TempDir,
        log: RecordLog,
        stored: u64,
    }

    impl Lab {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let disk = Arc::new(Folder::new(folder.path().to_owned()));
            let (log, _) = RecordLog::open(disk, Arc::default(), 300).unwrap();
            Self { folder, log, stored: 0 }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("eve.json")
        }

        fn content(&self) -> String {
            std::fs::read_to_string(self.path()).unwrap()
        }

        /// Stores batches of `count` records.
        fn store(&mut self, batches: u64, count: u32) {
            for _ in 0..batches {
                let mut records = Vec::new();
                let first = Sequence(self.stored + 1);
                for _ in 0..count {
                    self.stored += 1;
                    push_record(&mut records, RecordKind::Flow, &line(self.stored));
                }
                let last = Sequence(self.stored);
                let (sensor, stream, epoch) = ("a", Stream::Records, 1);
                let records = &records;
                let batch = NewBatch { sensor, stream, epoch, first, last, count, records };
                self.log.stage(&batch, UnixNanos(1));
                self.log.write().unwrap();
                self.log.sync().unwrap();
                if self.log.is_due(UnixNanos(1)) {
                    self.log.seal();
                }
            }
        }

        /// A follower, and how many bytes it cut off.
        fn open(&self) -> (EventLog, u64) {
            let (disk, catalog) = self.log.source();
            EventLog::open(&self.path(), disk, catalog).unwrap()
        }

        fn expected(&self, from: u64) -> String {
            (from..=self.stored).map(|number| line(number) + "\n").collect()
        }
    }

    fn line(number: u64) -> String {
        format!("{{\"n\":{number}}}")
    }

    /// Writes all that is stored.
    fn run(events: &mut EventLog) {
        while events.turn().unwrap() != Turn::Idle {}
    }

    #[test]
    fn a_file_left_at_any_byte_by_a_kill_goes_on_there() {
        let mut lab = Lab::new();
        lab.store(3, 3);
        let (mut events, _) = lab.open();
        run(&mut events);
        events.save().unwrap();
        let known = lab.content().len();
        lab.store(6, 4);
        drop(events);
        let expected = lab.expected(1);
        let cursor = std::fs::read(cursor_path(&lab.path())).unwrap();
        for length in known..=expected.len() {
            std::fs::write(lab.path(), &expected[..length]).unwrap();
            std::fs::write(cursor_path(&lab.path()), &cursor).unwrap();
            let (mut events, cut) = lab.open();
            assert_eq!(cut, 0);
            run(&mut events);
            assert_eq!(lab.content(), expected, "killed at {length}");
        }
    }

    #[test]
    fn what_a_power_cut_left_in_place_of_lines_is_cut_off_and_written_again() {
        let mut lab = Lab::new();
        lab.store(2, 2);
        let (mut events, _) = lab.open();
        run(&mut events);
        events.save().unwrap();
        lab.store(2, 2);
        run(&mut events);
        drop(events);
        let expected = lab.content();
        let mut broken = expected.clone().into_bytes();
        let at = broken.len() - 5;
        broken[at..].fill(0);
        std::fs::write(lab.path(), broken).unwrap();
        let (mut events, cut) = lab.open();
        assert_eq!(cut, 5);
        run(&mut events);
        assert_eq!(lab.content(), expected);
    }

    #[test]
    fn a_file_moved_while_nobody_followed_is_completed_and_a_new_one_begun() {
        let mut lab = Lab::new();
        lab.store(1, 3);
        let (mut events, _) = lab.open();
        run(&mut events);
        events.save().unwrap();
        lab.store(2, 3);
        run(&mut events);
        drop(events);
        let older = lab.path().with_extension("json.1");
        std::fs::rename(lab.path(), &older).unwrap();
        // Killed in the middle of the sixth line.
        let torn = lab.expected(1).find("\"n\":6").unwrap() as u64;
        File::options().write(true).open(&older).unwrap().set_len(torn).unwrap();
        let (mut events, _) = lab.open();
        run(&mut events);
        let moved = std::fs::read_to_string(&older).unwrap();
        assert!(moved.ends_with("{\"n\":6}\n"), "{moved}");
        assert_eq!(moved + &lab.content(), lab.expected(1));
    }

    #[test]
    fn a_file_that_is_renamed_removed_or_truncated_is_gone_on_with() {
        let mut lab = Lab::new();
        let (mut events, _) = lab.open();
        let older = lab.path().with_extension("json.1");
        lab.store(1, 2);
        run(&mut events);
        std::fs::rename(lab.path(), &older).unwrap();
        lab.store(1, 2);
        run(&mut events);
        assert_eq!(std::fs::read_to_string(&older).unwrap(), "{\"n\":1}\n{\"n\":2}\n");
        assert_eq!(lab.content(), lab.expected(3));
        std::fs::remove_file(lab.path()).unwrap();
        events.reopen_if_moved().unwrap();
        assert_eq!(lab.content(), "");
        lab.store(1, 1);
        run(&mut events);
        File::options().write(true).open(lab.path()).unwrap().set_len(0).unwrap();
        lab.store(1, 1);
        run(&mut events);
        assert_eq!(lab.content(), lab.expected(6));
        drop(events);
        let (mut events, cut) = lab.open();
        lab.store(1, 1);
        run(&mut events);
        assert_eq!((cut, lab.content()), (0, lab.expected(6)));
    }

    #[test]
    fn without_file_and_cursor_all_that_is_stored_is_written() {
        let mut lab = Lab::new();
        lab.store(4, 2);
        let (mut events, _) = lab.open();
        run(&mut events);
        assert_eq!(lab.content(), lab.expected(1));
    }

    #[test]
    fn a_file_of_an_earlier_version_is_gone_on_with_behind_its_last_whole_line() {
        let mut lab = Lab::new();
        std::fs::write(lab.path(), "{\"old\":1}\n{\"to").unwrap();
        let (mut events, cut) = lab.open();
        lab.store(1, 2);
        run(&mut events);
        assert_eq!(cut, 4);
        assert_eq!(lab.content(), format!("{{\"old\":1}}\n{}", lab.expected(1)));
    }

    #[test]
    fn with_a_damaged_cursor_nothing_is_written_twice() {
        let mut lab = Lab::new();
        lab.store(1, 2);
        let (mut events, _) = lab.open();
        run(&mut events);
        drop(events);
        std::fs::write(cursor_path(&lab.path()), "{").unwrap();
        let (mut events, _) = lab.open();
        lab.store(1, 2);
        run(&mut events);
        assert_eq!(lab.content(), lab.expected(1));
    }

    #[test]
    fn over_an_older_copy_of_the_record_log_it_goes_on_at_its_end_and_writes_nothing_twice() {
        let mut lab = Lab::new();
        lab.store(4, 3);
        let (mut events, _) = lab.open();
        run(&mut events);
        events.save().unwrap();
        let copy: Vec<_> = lab
            .log
            .source()
            .0
            .names()
            .unwrap()
            .into_iter()
            .filter(|name| name.ends_with(".log"))
            .map(|name| {
                (lab.folder.path().join(&name), std::fs::read(lab.folder.path().join(name)))
            })
            .collect();
        lab.store(20, 3);
        run(&mut events);
        events.save().unwrap();
        drop(events);
        let written = lab.content();
        for entry in std::fs::read_dir(lab.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "log") {
                std::fs::remove_file(path).unwrap();
            }
        }
        copy.into_iter().for_each(|(path, bytes)| std::fs::write(path, bytes.unwrap()).unwrap());
        let disk = Arc::new(Folder::new(lab.folder.path().to_owned()));
        (lab.log, _) = RecordLog::open(disk, Arc::default(), 300).unwrap();
        let (mut events, cut) = lab.open();
        assert_eq!((cut, events.next_number()), (0, 13));
        run(&mut events);
        assert_eq!(lab.content(), written);
        // Numbers that were given before, to others.
        lab.stored = 1000;
        lab.store(2, 3);
        run(&mut events);
        assert_eq!(lab.content(), written + &lab.expected(1001));
        // From here on all is as ever.
        drop(events);
        let expected = lab.content();
        let (mut events, _) = lab.open();
        run(&mut events);
        assert_eq!(lab.content(), expected);
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_panic() {
        let mut lab = Lab::new();
        std::os::unix::fs::symlink("/dev/full", lab.path()).unwrap();
        lab.store(1, 2);
        let (mut events, _) = lab.open();
        for _ in 0..2 {
            let error = events.turn().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn a_torn_line_longer_than_one_step_is_found() {
        let mut content = b"first\n".to_vec();
        content.resize(content.len() + 3 * STEP, b'x');
        let length = content.len() as u64;
        assert_eq!(whole_lines(&mut io::Cursor::new(content), length).unwrap(), 6);
    }
}
