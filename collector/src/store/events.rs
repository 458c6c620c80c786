//! The event log: JSON lines, appended, never a torn line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Owner may write, group may read.
const MODE: u32 = 0o640;
/// How much is read at once while looking for the end of the last line.
const STEP: u64 = 64 << 10;

/// The open event log.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    is_dirty: bool,
}

impl EventLog {
    /// Opens or creates the log, and cuts off a last line that a crash left torn. Says how many
    /// bytes that were.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<(Self, u64)> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(MODE).open(path)?;
        let length = file.metadata()?.len();
        let whole = whole_lines(&mut file, length)?;
        if whole < length {
            file.set_len(whole)?;
            file.sync_all()?;
        }
        Ok((Self { file, is_dirty: false }, length - whole))
    }

    /// Appends whole lines. After an error nothing of them is there, and the same call may be made
    /// again.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.is_dirty = true;
        let mut written = 0;
        while written < lines.len() {
            match self.file.write(&lines[written..]) {
                Ok(0) => return self.take_back(written, io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.take_back(written, error),
            }
        }
        Ok(())
    }

    /// Removes the part of a line that was written before `error`, which it returns.
    fn take_back(&self, written: usize, error: io::Error) -> io::Result<()> {
        if written > 0 {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.saturating_sub(written as u64))?;
        }
        Err(error)
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
        let mut log = EventLog {
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            is_dirty: false,
        };
        let error = log.append(b"line\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
