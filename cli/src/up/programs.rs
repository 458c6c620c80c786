//! The programs that `up` starts: how they are found, started, watched and ended.
//!
//! Each runs in a process group of its own, so that Ctrl-C at the terminal reaches `up` alone, which
//! then ends the sensor before the collector. Should `up` itself be killed, the
//! [watchdog](mod@super::watchdog) ends them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::UpError;
use crate::text::harmless;

/// How often a wait looks again.
pub const GLANCE: Duration = Duration::from_millis(50);
/// How long a dropped program has to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Lines of a dead program's log that are shown.
const TAIL_LINES: usize = 12;
/// Bytes of the log that are looked at for them.
const TAIL_BYTES: u64 = 8 * 1024;

/// A running program and its log. Dropping it ends the program.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts `ringwatch-NAME`, found beside this executable, with its configuration; what it prints
    /// goes to `log`, which starts empty.
    ///
    /// # Errors
    /// [`UpError::NoProgram`] if it is not there, [`UpError::Start`] if it does not run.
    pub fn start(name: &'static str, configuration: &Path, log: &Path) -> Result<Self, UpError> {
        let executable = beside_us(&format!("ringwatch-{name}"))?;
        let file = |source| UpError::File { path: log.to_owned(), source };
        let output = File::create(log).map_err(file)?;
        let errors = output.try_clone().map_err(file)?;
        let child = Command::new(&executable)
            .arg("--config")
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|source| UpError::Start { executable, source })?;
        Ok(Self { name, child, log: log.to_owned(), ended: None })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error here means that there is no such child any more, which cannot be: only this
            // function waits for it.
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// The error that tells of its end, if it has ended, with the last lines of its log.
    pub fn death(&mut self) -> Option<UpError> {
        let status = self.ended()?;
        Some(UpError::Ended { program: self.name, status, tail: tail(&self.log) })
    }

    /// Asks it to end (SIGINT).
    pub fn interrupt(&mut self) {
        self.signal(Signal::SIGINT);
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&mut self, signal: Signal) {
        // Not reaped yet, so the id cannot belong to anyone else.
        if self.ended().is_none()
            && let Ok(id) = i32::try_from(self.child.id())
        {
            // It may have ended a moment ago; the next look finds out.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    fn wait_until(&mut self, deadline: Instant) {
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
    }
}

/// No way out of `up` leaves a program behind.
impl Drop for Program {
    fn drop(&mut self) {
        self.interrupt();
        self.wait_until(Instant::now() + GRACE);
        self.kill();
        // A killed process ends, unless the kernel itself holds it; then init gets it.
        self.wait_until(Instant::now() + GRACE);
    }
}

/// The path of a program that lies in the same folder as this one.
fn beside_us(name: &str) -> Result<PathBuf, UpError> {
    let path = std::env::current_exe().unwrap_or_default().with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(UpError::NoProgram(path)) }
}

/// The last lines of a log, indented, harmless to a terminal.
fn tail(log: &Path) -> String {
    let mut bytes = Vec::new();
    let length = fs::metadata(log).map_or(0, |metadata| metadata.len());
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        file.take(TAIL_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() || bytes.is_empty() {
        return "  (it printed nothing)".to_owned();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    let shown: Vec<String> =
        lines[first..].iter().map(|line| format!("  {}", harmless(line, 500))).collect();
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        let lines: Vec<String> = (0..5000).map(|number| format!("line {number}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        let shown = tail(&log);
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("  line 4999"), "{shown}");
    }

    #[test]
    fn a_log_that_is_empty_or_missing_is_said_to_be() {
        assert_eq!(tail(Path::new("/nonexistent")), "  (it printed nothing)");
    }

    #[test]
    fn a_program_that_is_not_beside_us_is_named() {
        let error = beside_us("ringwatch-nonexistent").unwrap_err();
        assert!(error.to_string().contains("ringwatch-nonexistent"), "{error}");
        assert_eq!(error.exit_code(), 4);
    }
}
