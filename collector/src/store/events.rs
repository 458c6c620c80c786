//! The event log: JSON lines, appended, never a torn line.
//!
//! It may be rotated: when the file was renamed or removed, a new one is made before the next lines
//! are appended, and on request. A file that was truncated is appended to where it ends then.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Owner may write, group may read.
const MODE: u32 = 0o640;
/// How much is read at once while looking for the end of the last line.
const STEP: u64 = 64 << 10;

/// The open event log.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// Bytes at the start of the file that are whole lines.
    length: u64,
    /// Something may lie behind them that a failed write left and that could not be cut off.
    is_torn: bool,
    /// Something was appended that is not surely on the disk.
    is_dirty: bool,
}

impl EventLog {
    /// Opens or creates the log, and cuts off a last line that a crash left torn. Says how many
    /// bytes that were.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<(Self, u64)> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(MODE).open(path)?;
        if is_new {
            super::sync_folder_of(path)?;
        }
        let found = file.metadata()?.len();
        let length = whole_lines(&mut file, found)?;
        if length < found {
            file.set_len(length)?;
            file.sync_all()?;
        }
        let path = path.to_owned();
        Ok((Self { path, file, length, is_torn: false, is_dirty: false }, found - length))
    }

    /// Appends whole lines. After an error nothing of them stays, and the same call may be made again.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if !self.is_dirty && !self.is_torn {
            self.reopen_if_moved()?;
        }
        self.cut()?;
        self.is_dirty = true;
        let mut written = 0;
        while written < lines.len() {
            let error = match self.file.write(&lines[written..]) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(more) => {
                    written += more;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.is_torn = written > 0;
            // If this fails as well, the next call does it first.
            let _ = self.cut();
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    /// Opens the log anew if its path no longer leads to the open file. What was appended must have
    /// been brought to the disk before.
    ///
    /// # Errors
    /// What the file system says; the same call may be made again.
    pub fn reopen_if_moved(&mut self) -> io::Result<()> {
        let open = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (open.dev(), open.ino()) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        (*self, _) = Self::open(&self.path)?;
        tracing::info!(path = %self.path.display(), "the event log was moved; began a new one");
        Ok(())
    }

    /// Cuts off what a failed write left, and takes note of the length.
    fn cut(&mut self) -> io::Result<()> {
        let found = self.file.metadata()?.len();
        // Shorter: somebody else truncated it meanwhile.
        if self.is_torn && found > self.length {
            self.file.set_len(self.length)?;
        } else {
            self.length = found;
        }
        self.is_torn = false;
        Ok(())
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// What the file system says. A later call then proves nothing about what was appended before:
    /// Linux reports a failed write-back once, and may drop the pages.
    /// Source: fsync(2), "EIO", and Documentation/filesystems/vfs.rst, "Handling errors during writeback".
    pub fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            self.file.sync_data()?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

/// How many bytes at the start of a file are whole lines.
fn whole_lines(file: &mut (impl Read + Seek), length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
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
    use super::*;

    fn reopened(content: &[u8]) -> (Vec<u8>, u64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        std::fs::write(&path, content).unwrap();
        let (_, cut) = EventLog::open(&path).unwrap();
        (std::fs::read(&path).unwrap(), cut)
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_counted() {
        assert_eq!(reopened(b"{\"a\":1}\n{\"b\""), (b"{\"a\":1}\n".to_vec(), 4));
    }

    #[test]
    fn a_log_that_is_one_torn_line_becomes_empty() {
        assert_eq!(reopened(b"{\"a\""), (Vec::new(), 4));
    }

    #[test]
    fn whole_lines_stay_as_they_are() {
        assert_eq!(reopened(b"1\n2\n"), (b"1\n2\n".to_vec(), 0));
        assert_eq!(reopened(b""), (Vec::new(), 0));
    }

    #[test]
    fn a_torn_line_longer_than_one_step_is_cut_off() {
        let mut content = b"first\n".to_vec();
        content.resize(content.len() + 3 * STEP as usize, b'x');
        assert_eq!(reopened(&content), (b"first\n".to_vec(), 3 * STEP));
    }

    #[test]
    fn lines_are_appended_to_those_of_an_earlier_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        for line in ["1\n", "2\n"] {
            let (mut log, _) = EventLog::open(&path).unwrap();
            log.append(line.as_bytes()).unwrap();
            log.sync().unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_panic() {
        let (mut log, _) = EventLog::open(Path::new("/dev/full")).unwrap();
        let error = log.append(b"line\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_a_failed_write_left_is_cut_off_before_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        let (mut log, _) = EventLog::open(&path).unwrap();
        log.append(b"1\n").unwrap();
        log.file.write_all(b"torn").unwrap();
        log.is_torn = true;
        log.append(b"2\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n2\n");
        // Truncated by somebody else.
        log.file.set_len(0).unwrap();
        log.is_torn = true;
        log.append(b"3\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"3\n");
    }

    #[test]
    fn a_log_that_was_renamed_or_removed_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, older) = (folder.path().join("eve.json"), folder.path().join("eve.json.1"));
        let (mut log, _) = EventLog::open(&path).unwrap();
        log.append(b"1\n").unwrap();
        std::fs::rename(&path, &older).unwrap();
        // Not before what belongs together is on the disk.
        log.append(b"2\n").unwrap();
        log.sync().unwrap();
        log.append(b"3\n").unwrap();
        assert_eq!(std::fs::read(&older).unwrap(), b"1\n2\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"3\n");
        log.sync().unwrap();
        std::fs::remove_file(&path).unwrap();
        log.reopen_if_moved().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
