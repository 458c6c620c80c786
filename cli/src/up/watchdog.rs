//! Ends the programs of an `up` that was killed.
//!
//! A killed process cannot clean up, and the kernel's parent-death signal is lost when the program
//! has file capabilities, as `setcap` gives the sensor. So `up` starts itself once more as a
//! watchdog: it reads the ids of the programs from its standard input, a pipe that only `up` holds
//! open, and when that closes it ends those that are still there. An id is taken together with the
//! start time of its process, so that a later process of the same id is left alone.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::UpError;
use super::programs::{GLANCE, Program};

/// How long a program has to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The side of `up`. Dropping it lets the watchdog end.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// Starts the watchdog, in a process group of its own: Ctrl-C must not reach it.
    ///
    /// # Errors
    /// [`UpError::Start`] if this executable cannot be started again.
    pub fn start() -> Result<Self, UpError> {
        let executable = std::env::current_exe().unwrap_or_else(|_| "ringwatch".into());
        let child = Command::new(&executable)
            .arg("watchdog")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| UpError::Start { executable, source })?;
        Ok(Self { child })
    }

    /// Puts a program under its care.
    pub fn guard(&mut self, program: &Program) {
        let Some(process) = Process::of(program.id()) else { return };
        if let Some(input) = &mut self.child.stdin {
            // A watchdog that is gone guards nothing; `up` itself works without it.
            let _ = writeln!(input, "{} {}", process.id, process.started);
        }
    }
}

/// Closes the pipe and waits for the watchdog to see it.
impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The side of the watchdog: reads `ID STARTED` lines until the input closes, then ends those
/// processes, the last named first. Lines that make no sense are passed over.
pub fn watch(input: impl BufRead) {
    let named = input.lines().map_while(Result::ok);
    let mut processes: Vec<Process> = named.filter_map(|line| Process::parse(&line)).collect();
    while let Some(process) = processes.pop() {
        process.end(Signal::SIGINT);
        if process.is_alive() {
            process.end(Signal::SIGKILL);
        }
    }
}

/// A process, told apart from later ones of the same id by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    id: i32,
    started: u64,
}

impl Process {
    fn of(id: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        Some(Self { id: i32::try_from(id).ok()?, started: start_time(&stat)? })
    }

    fn parse(line: &str) -> Option<Self> {
        let (id, started) = line.split_once(' ')?;
        let id = id.parse().ok().filter(|id| *id > 1)?;
        Some(Self { id, started: started.trim().parse().ok()? })
    }

    fn is_alive(self) -> bool {
        u32::try_from(self.id).ok().and_then(Self::of) == Some(self)
    }

    fn end(self, signal: Signal) {
        if !self.is_alive() {
            return;
        }
        // It may end between the look and the signal.
        let _ = kill(Pid::from_raw(self.id), signal);
        let deadline = Instant::now() + GRACE;
        while self.is_alive() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
    }
}

/// Start time in the text of `/proc/ID/stat`; `None` for a zombie, which is as good as gone.
/// Source: proc_pid_stat(5), fields 3 and 22. Field 2 may hold spaces and brackets.
fn start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn processes_end_when_the_input_closes() {
        let mut child = sleeper();
        let process = Process::of(child.id()).unwrap();
        watch(format!("nonsense\n{} {}\n", process.id, process.started).as_bytes());
        assert!(!process.is_alive());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_later_process_of_the_same_id_is_left_alone() {
        let mut child = sleeper();
        let process = Process::of(child.id()).unwrap();
        watch(format!("{} {}\n", process.id, process.started - 1).as_bytes());
        assert!(process.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn init_is_never_named() {
        assert_eq!(Process::parse("1 7"), None);
        assert_eq!(Process::parse("-1 7"), None);
    }

    #[test]
    fn the_start_time_is_found_behind_an_odd_program_name() {
        let rest = (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time(&format!("7 (a) b) S {rest} 4711 23")), Some(4711));
        assert_eq!(start_time(&format!("7 (a) Z {rest} 4711 23")), None);
    }
}
