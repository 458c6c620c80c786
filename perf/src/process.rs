//! A child process with its output in files. Killed when dropped, so that none outlives its test.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tempfile::TempDir;

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running child.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    /// Removed, with the output in it, after the child was killed.
    folder: TempDir,
}

impl Process {
    /// Starts `command` with no input, and its output in files.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[must_use]
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with_input(command, Stdio::null())
    }

    /// Starts `command` with this as its input, and its output in files.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[must_use]
    pub fn spawn_with_input(mut command: Command, input: Stdio) -> Self {
        let label = format!("{command:?}");
        let folder = TempDir::new().unwrap_or_else(|error| panic!("temporary folder: {error}"));
        let file = |name| {
            let path = folder.path().join(name);
            File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let child = command
            .stdin(input)
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {label}: {error}"));
        Self { label, child, folder }
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that standard output goes to.
    #[must_use]
    pub fn stdout_path(&self) -> PathBuf {
        self.folder.path().join("stdout")
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Complete lines of standard output so far.
    #[must_use]
    pub fn stdout_lines(&self) -> Vec<String> {
        complete_lines(&self.stdout())
    }

    /// Waits for a complete line that contains `pattern`, on standard output or standard error, and
    /// returns it.
    ///
    /// # Panics
    /// If the child ends or `timeout` passes without one; shows the output.
    pub fn wait_for_line(&mut self, pattern: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.status();
            let found = [self.stdout(), self.stderr()]
                .iter()
                .flat_map(|text| complete_lines(text))
                .find(|line| line.contains(pattern));
            if let Some(line) = found {
                return line;
            }
            if let Some(status) = ended {
                panic!("{status} without a line {pattern:?}{}", self.describe());
            }
            if Instant::now() >= deadline {
                panic!("no line {pattern:?} within {timeout:?}{}", self.describe());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the child has ended already.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{signal} for a child that has ended{}", self.describe());
        let id = Pid::from_raw(self.child.id().cast_signed());
        if let Err(error) = signal::kill(id, signal) {
            panic!("{signal}: {error}{}", self.describe());
        }
    }

    /// Whether the child has not ended yet.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// Waits until the child has ended.
    ///
    /// # Panics
    /// If it still runs after `timeout`; shows the output.
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(Instant::now() < deadline, "still runs after {timeout:?}{}", self.describe());
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal and waits until the child has ended.
    ///
    /// # Panics
    /// If it had ended before, or still runs after `timeout`.
    pub fn stop(&mut self, signal: Signal, timeout: Duration) -> ExitStatus {
        self.signal(signal);
        self.wait(timeout)
    }

    /// Kills the child and waits for its end, as a crash test does.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Command line and output, for the message of a failing test.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("\n--- {}", self.label);
        for (name, output) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<_> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            // Writing to a String cannot fail.
            let _ = write!(text, "\n--- {name}, {} lines:\n{tail}", lines.len());
        }
        text
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("{}: {error}", self.label))
    }

    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn complete_lines(text: &str) -> Vec<String> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command)
    }

    #[test]
    fn waits_for_lines_and_for_the_end() {
        let mut child = shell("echo one; echo two >&2; printf rest; exec sleep 60");
        assert_eq!(child.wait_for_line("tw", Duration::from_secs(5)), "two");
        assert_eq!(child.stdout_lines(), ["one"]);
        assert!(child.is_running());
        let status = child.stop(Signal::SIGTERM, Duration::from_secs(5));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[test]
    fn child_ends_with_its_guard() {
        let child = shell("exec sleep 60");
        let id = Pid::from_raw(child.id().cast_signed());
        drop(child);
        assert_eq!(signal::kill(id, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    #[should_panic(expected = "without a line \"never\"")]
    fn a_child_that_ends_too_early_is_a_failure_with_its_output() {
        shell("echo something").wait_for_line("never", Duration::from_secs(5));
    }
}
