//! Where programs are measured: a silent veth pair, the generator on one processor and the program on
//! another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::sched_getaffinity;
use nix::unistd::{Pid, SysconfVar, sysconf};
use tempfile::TempDir;

use crate::lab::Lab;
use crate::process::Process;
use crate::programs;

/// How long a program may take to start, and to end after its signal.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for a program to settle after it has opened its socket.
const WARM: Duration = Duration::from_secs(1);
/// The interface in the lab.
pub const INTERFACE: &str = "s0";

/// A lab in which nothing is sent but the load.
#[derive(Debug)]
pub struct Place {
    lab: Lab,
    folder: TempDir,
    /// Of the generator, and of the program. The same if there is only one.
    processors: [usize; 2],
}

/// What the generator reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offered {
    /// Frames that the stack was handed.
    pub frames: u64,
    /// Millions a second, over the time of the generator that took longest.
    pub mpps: f64,
}

impl Place {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// Not root, no `ip`, no scratch folder, no processors.
    pub fn new() -> Result<Self, String> {
        let place = Self::with_hosts()?;
        place.lab.silence();
        Ok(place)
    }

    /// Makes the namespaces, with hosts that send what hosts send.
    ///
    /// # Errors
    /// As [`Place::new`].
    pub fn with_hosts() -> Result<Self, String> {
        let lab = Lab::new().ok_or("the bench needs root, and ip (package iproute2)")?;
        let folder = TempDir::new().map_err(|error| format!("cannot make a folder: {error}"))?;
        let usable = sched_getaffinity(Pid::this()).map_err(|error| error.to_string())?;
        let mut usable = (0..nix::sched::CpuSet::count())
            .filter(|cpu| usable.is_set(*cpu).is_ok_and(|is_set| is_set));
        let first = usable.next().ok_or("no processor may be used")?;
        let processors = [first, usable.next().unwrap_or(first)];
        Ok(Self { lab, folder, processors })
    }

    /// The hosts.
    #[must_use]
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A file in the scratch folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Processors of the generator and of the program.
    #[must_use]
    pub const fn processors(&self) -> [usize; 2] {
        self.processors
    }

    /// Starts a program on `processors` and waits until it captures.
    ///
    /// # Panics
    /// If it ends before, or never does; shows what it said.
    #[must_use]
    pub fn start(&self, command: &Command, processors: &[usize]) -> Process {
        let before = self.capturing();
        let mut pinned = Command::new("taskset");
        let list: Vec<_> = processors.iter().map(ToString::to_string).collect();
        pinned.arg("-c").arg(list.join(",")).arg(command.get_program()).args(command.get_args());
        let mut process = self.lab.sensor().spawn(&pinned);
        let deadline = Instant::now() + PATIENCE;
        while self.capturing() <= before {
            assert!(process.is_running(), "ended before the load began{}", process.describe());
            assert!(Instant::now() < deadline, "does not capture{}", process.describe());
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(WARM);
        process
    }

    /// Stops a program as Ctrl-C does.
    ///
    /// # Panics
    /// If it had ended before, or does not end.
    pub fn stop(&self, process: &mut Process) {
        process.stop(nix::sys::signal::Signal::SIGINT, PATIENCE);
    }

    /// Starts the generator on this CPU, with these options.
    #[must_use]
    pub fn generate(&self, cpu: usize, options: &str) -> Process {
        let mut command = Command::new(programs::path("ringwatch-load"));
        command.args(["blast", "-i", INTERFACE, "--cpu", &cpu.to_string()]);
        command.args(options.split_whitespace());
        self.lab.sensor().spawn(&command)
    }

    /// Runs a generator on each of these CPUs, all at once, to their end. Gives what they offered together.
    ///
    /// # Panics
    /// If one fails; shows what it said.
    #[must_use]
    pub fn blast(&self, cpus: &[usize], options: &str) -> Offered {
        let generators: Vec<_> = cpus.iter().map(|cpu| self.generate(*cpu, options)).collect();
        let (mut frames, mut longest) = (0, 0.0_f64);
        for mut generator in generators {
            let (offered, seconds) = report_of(&mut generator);
            (frames, longest) = (frames + offered, longest.max(seconds));
        }
        Offered { frames, mpps: frames as f64 / longest / 1e6 }
    }

    /// Frames on the interface that are not the generator's: those are not in the counters of the
    /// device, which only frames from the other end and frames sent change.
    #[must_use]
    pub fn foreign_frames(&self) -> u64 {
        let read = |name: &str| {
            let path = format!("/sys/class/net/{INTERFACE}/statistics/{name}");
            let output = self.lab.sensor().run("cat", &[&path]);
            String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap_or(u64::MAX)
        };
        read("rx_packets").saturating_add(read("tx_packets"))
    }

    /// Packet sockets in the namespace that take frames.
    fn capturing(&self) -> usize {
        let output = self.lab.sensor().run("cat", &["/proc/net/packet"]);
        running_sockets(&String::from_utf8_lossy(&output.stdout))
    }
}

/// What a generator offered, at its end.
///
/// # Panics
/// If it failed; shows what it said.
#[must_use]
pub fn offered_by(generator: &mut Process) -> Offered {
    let (frames, seconds) = report_of(generator);
    Offered { frames, mpps: frames as f64 / seconds / 1e6 }
}

/// Frames and seconds of a generator, at its end.
fn report_of(generator: &mut Process) -> (u64, f64) {
    let status = generator.wait(Duration::from_secs(3600));
    assert!(status.success(), "{status}{}", generator.describe());
    reported(&generator.stdout()).unwrap_or_else(|| panic!("{}", generator.describe()))
}

/// Frames and seconds of a generator.
fn reported(report: &str) -> Option<(u64, f64)> {
    let report: serde_json::Value = serde_json::from_str(report.trim()).ok()?;
    Some((report["frames"].as_u64()?, report["seconds"].as_f64()?))
}

/// Lines of `/proc/net/packet` whose column `R` (running) is 1.
fn running_sockets(table: &str) -> usize {
    let is_running = |line: &&str| line.split_whitespace().nth(5) == Some("1");
    table.lines().skip(1).filter(is_running).count()
}

/// User and system time of a process, of all its threads, and of its children.
#[must_use]
pub fn processor_time(process: u32) -> Duration {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1);
    let ticks: u64 = family(process).into_iter().filter_map(ticks).sum();
    Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64)
}

/// Resident memory of a process, in KiB; 0 if there is none.
#[must_use]
pub fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The process and all that descends from it.
fn family(process: u32) -> Vec<u32> {
    let mut family = vec![process];
    let threads = fs::read_dir(Path::new("/proc").join(process.to_string()).join("task"));
    for thread in threads.into_iter().flatten().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        family.extend(children.flat_map(self::family));
    }
    family
}

/// Ticks of user and system time, out of `/proc/PROCESS/stat`.
fn ticks(process: u32) -> Option<u64> {
    ticks_in(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

fn ticks_in(stat: &str) -> Option<u64> {
    // The name may have spaces and parentheses in it; the fields behind it begin with the third.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 120 34 9 9 20 0 1 0";
        assert_eq!(ticks_in(stat), Some(154));
        assert_eq!(ticks_in("7 (a"), None);
    }

    #[test]
    fn only_sockets_that_run_count() {
        let table = "sk RefCnt Type Proto Iface R Rmem User Inode\n\
            ffff 3 3 0003 12 1 0 0 55\nffff 3 3 0000 0 0 0 0 56\n";
        assert_eq!(running_sockets(table), 1);
    }

    #[test]
    fn time_of_children_counts() {
        let mut command = Command::new("sh");
        command.args(["-c", "(while :; do :; done) & echo ready; wait"]);
        let mut process = Process::spawn(command);
        process.wait_for_line("ready", Duration::from_secs(5));
        let deadline = Instant::now() + Duration::from_secs(20);
        while processor_time(process.id()) < Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "no time is spent");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(family(process.id()).len() > 1);
        assert!(resident_kib(process.id()) > 0);
        // The child of the shell outlives it otherwise.
        for child in family(process.id()).into_iter().skip(1) {
            let child = Pid::from_raw(child.cast_signed());
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
}
