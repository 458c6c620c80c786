//! The programs that are measured, and how each says what it saw and what it lost.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::place::{INTERFACE, Place};
use crate::events::Events;
use crate::process::Process;
use crate::programs;
use crate::tools;

/// What a program says at its end. Unit: frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Seen by the kernel for this program, those that it dropped included.
    pub seen: u64,
    /// Dropped by the kernel.
    pub dropped: u64,
}

/// How a program says it.
#[derive(Clone, Debug)]
enum Language {
    /// In the last event of a file.
    Events(PathBuf),
    /// `N packets …`, on standard error.
    Tcpdump,
    /// `N  packets …`, on standard output.
    NetsniffNg,
    /// One line of JSON.
    Walk,
}

/// A program that captures.
#[derive(Debug)]
pub struct Contender {
    /// As in the tables.
    pub name: String,
    /// How to start it, or what is missing and where to get it.
    pub command: Result<Command, String>,
    language: Language,
}

impl Contender {
    /// The sensor with full analysis, its events in a file of the scratch folder.
    #[must_use]
    pub fn sensor(place: &Place, workers: u16, configuration: Option<&Path>) -> Self {
        let events = place.file("eve.json");
        let mut command = programs::sensor();
        if let Some(file) = configuration {
            command.arg("--config").arg(file);
        }
        command.args(["-i", INTERFACE, "--workers", &workers.to_string()]);
        command.arg("--events").arg(&events);
        let language = Language::Events(events);
        Self { name: "ringwatch-sensor".to_owned(), command: Ok(command), language }
    }

    /// tcpdump with a buffer of 64 MiB.
    #[must_use]
    pub fn tcpdump() -> Self {
        let words = format!("-ni {INTERFACE} -B 65536 -w /dev/null");
        Self::peer("tcpdump", "tcpdump", &words, Language::Tcpdump)
    }

    /// netsniff-ng with a ring of 64 MiB.
    #[must_use]
    pub fn netsniff_ng() -> Self {
        let words = format!("-i {INTERFACE} -o /dev/null -s -S 64MiB");
        Self::peer("netsniff-ng", "netsniff-ng", &words, Language::NetsniffNg)
    }

    /// The walk over a ring that looks at three bytes of each frame: the least that any use costs.
    #[must_use]
    pub fn bare_walk() -> Self {
        const BUILD: &str = "cargo build --release -p ringwatch-sensor --example capture_cost";
        let program = env::current_exe().ok().and_then(|program| {
            let program = program.parent()?.join("examples/capture_cost");
            program.is_file().then_some(program)
        });
        let command = match program.as_deref().map(|program| (program, newer_source(program))) {
            Some((program, None)) => {
                let mut command = Command::new(program);
                command.args(["ring", INTERFACE]);
                Ok(command)
            }
            Some((_, Some(source))) => {
                Err(format!("{BUILD}, as {} has changed since", source.display()))
            }
            None => Err(BUILD.to_owned()),
        };
        Self { name: "bare ring walk".to_owned(), command, language: Language::Walk }
    }

    fn peer(program: &str, package: &str, words: &str, language: Language) -> Self {
        let command = peer(program, package, words);
        Self { name: program.to_owned(), command, language }
    }

    /// Waits until a program that says when it captures has said so. Its sockets are there before: a sensor
    /// makes its tables first, and lets the frames of all its rings in at once.
    ///
    /// # Panics
    /// If it ends, or does not say it for a minute; shows what it said.
    pub fn wait_until_it_captures(&self, process: &mut Process) {
        if matches!(self.language, Language::Events(_)) {
            process.wait_for_line("capturing;", Duration::from_secs(60));
        }
    }

    /// What the program said, after its end.
    ///
    /// # Panics
    /// If it said nothing of the kind; shows what it said. The sensor's ledger has to add up.
    #[must_use]
    pub fn counts(&self, process: &Process) -> Counts {
        let counts = match &self.language {
            Language::Events(file) => Some(last_event(file)),
            Language::Tcpdump => tcpdump_counts(&process.stderr()),
            Language::NetsniffNg => netsniff_ng_counts(&process.stdout()),
            Language::Walk => walk_counts(&process.stdout()),
        };
        counts.unwrap_or_else(|| panic!("no counts{}", process.describe()))
    }
}

/// A source of a program that is newer than it, by the list that Cargo writes beside the program. `cargo
/// xtask bench` builds what it measures; somebody who starts the bench by hand may have an old one.
fn newer_source(program: &Path) -> Option<PathBuf> {
    let modified = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    let built = modified(program)?;
    // `PROGRAM: SOURCE SOURCE ...`, with a backslash before a space in a path.
    let list = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = list.lines().next()?.split_once(": ")?;
    let sources = sources.replace("\\ ", "\0");
    let mut sources = sources.split(' ').map(|path| PathBuf::from(path.replace('\0', " ")));
    // One that is gone has changed as well.
    sources.find(|source| modified(source).is_none_or(|changed| changed > built))
}

/// A Debian program with its arguments, or what is missing.
///
/// # Errors
/// The package that has the program.
pub fn peer(program: &str, package: &str, words: &str) -> Result<Command, String> {
    let found = tools::find(program).ok_or_else(|| format!("package {package}"))?;
    let mut command = Command::new(found);
    command.args(words.split_whitespace());
    Ok(command)
}

/// The sensor's last event. Only its last line is read: there may be many events.
#[must_use]
pub fn last_event(file: &Path) -> Counts {
    let text = fs::read_to_string(file).unwrap_or_default();
    let last = text.lines().next_back().unwrap_or_default();
    let ledger = Events::parse(&format!("{last}\n")).ledger();
    Counts { seen: ledger.kernel_packets(), dropped: ledger.kernel_drops() }
}

fn tcpdump_counts(text: &str) -> Option<Counts> {
    let number = |what: &str| number_before(text, what);
    let seen = number("packets received by filter")?;
    Some(Counts { seen, dropped: number("packets dropped by kernel")? })
}

fn netsniff_ng_counts(text: &str) -> Option<Counts> {
    let number = |what: &str| number_before(text, what);
    Some(Counts { seen: number("packets incoming")?, dropped: number("packets failed filter")? })
}

fn walk_counts(text: &str) -> Option<Counts> {
    let report: serde_json::Value = serde_json::from_str(text.trim()).ok()?;
    let dropped = report["drops"].as_u64()?;
    Some(Counts { seen: report["frames"].as_u64()? + dropped, dropped })
}

/// The number before the first occurrence of some words. One packet is `1 packet`.
fn number_before(text: &str, what: &str) -> Option<u64> {
    let one = what.replacen("packets", "packet", 1);
    let at = text.find(what).or_else(|| text.find(&one))?;
    text[..at].split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_is_read() {
        let said = "tcpdump: listening on s0, link-type EN10MB\n100 packets captured\n\
            130 packets received by filter\n30 packets dropped by kernel\n";
        assert_eq!(tcpdump_counts(said), Some(Counts { seen: 130, dropped: 30 }));
        let said = "1 packet captured\n1 packet received by filter\n0 packets dropped by kernel\n";
        assert_eq!(tcpdump_counts(said), Some(Counts { seen: 1, dropped: 0 }));
        let said = "Running! Hang up with ^C!\n\n\r         200  packets incoming (0 unread on exit)\n\
            \r         150  packets passed filter\n\r          50  packets failed filter (out of space)\n";
        assert_eq!(netsniff_ng_counts(said), Some(Counts { seen: 200, dropped: 50 }));
        let said = "{\"drops\":2,\"frames\":5,\"mode\":\"ring\"}\n";
        assert_eq!(walk_counts(said), Some(Counts { seen: 7, dropped: 2 }));
        assert_eq!(tcpdump_counts("tcpdump: s0: no such device"), None);
    }

    #[test]
    fn a_program_that_is_older_than_a_source_is_found_out() {
        let folder = tempfile::TempDir::new().unwrap();
        let [program, one, other] =
            ["walk", "one.rs", "an other.rs"].map(|name| folder.path().join(name));
        let now = std::time::SystemTime::now();
        let touch = |path: &Path, seconds| {
            let file = fs::File::create(path).unwrap();
            file.set_modified(now + std::time::Duration::from_secs(seconds)).unwrap();
        };
        touch(&program, 10);
        touch(&one, 1);
        touch(&other, 2);
        assert_eq!(newer_source(&program), None, "no list says what it was made of");
        let escaped = other.to_str().unwrap().replace(' ', "\\ ");
        let list = format!("{}: {} {escaped}\n", program.display(), one.display());
        fs::write(folder.path().join("walk.d"), list).unwrap();
        assert_eq!(newer_source(&program), None);
        touch(&other, 11);
        assert_eq!(newer_source(&program), Some(other));
        fs::remove_file(&one).unwrap();
        assert_eq!(newer_source(&program), Some(one));
    }

    #[test]
    fn a_missing_peer_names_its_package() {
        let missing = peer("no-such-program", "some-package", "").unwrap_err();
        assert_eq!(missing, "package some-package");
    }
}
