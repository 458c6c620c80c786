//! `cargo xtask test`: every test of the workspace, and one line that counts them.
//!
//! A test that cannot run here (no root, a tool is missing) prints why and adds a line
//! `NAME: REASON` to the file named by `RINGWATCH_SKIP_LOG`; the Rust runner counts it as
//! passed, so it is moved over here. `RINGWATCH_REQUIRE_TOOLS=1` turns such a skip into a failure.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::tools::{Install, Presence};
use crate::{Failure, cargo, target, tools};

/// Sums over all test programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Prepares the tools, builds the programs that tests drive, runs all tests.
///
/// # Errors
/// A test failed, none ran, something did not build, or apt-get failed.
pub fn run(install: Install) -> Result<(), Failure> {
    let presence = tools::prepare(install)?;
    crate::run(&mut cargo(&["build", "--workspace", "--bins"]))?;
    let log = target()?.join("skipped-tests.log");
    fs::write(&log, "").map_err(|error| format!("cannot write {}: {error}", log.display()))?;
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.env("RINGWATCH_SKIP_LOG", &log);
    if presence == Presence::Complete || std::env::var_os("CI").is_some() {
        command.env("RINGWATCH_REQUIRE_TOOLS", "1");
    }
    let (mut count, failures, succeeded) = stream(&mut command)?;
    let log = fs::read_to_string(&log).unwrap_or_default();
    let skips = skips(&log);
    count.passed = count.passed.saturating_sub(skips.len() as u64);
    count.skipped += skips.len() as u64;
    if !succeeded && count.failed == 0 {
        eprintln!("cargo test failed although no test did: see above for what did not compile");
        eprintln!("or which test program ended early; it counts as one failure");
        count.failed = 1;
    }
    println!();
    for (name, reasons) in &skips {
        println!("skipped {name}: {}", reasons.join(", "));
    }
    for name in &failures {
        println!("failed {name}");
    }
    let Count { passed, failed, skipped } = count;
    if passed + failed == 0 {
        eprintln!("no test ran");
    }
    // The last line of all, also of a failure.
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 && passed > 0 { Ok(()) } else { Err(Failure::new()) }
}

/// Runs cargo test, shows every line at once, and reads the results along the way.
fn stream(command: &mut Command) -> Result<(Count, Vec<String>, bool), Failure> {
    eprintln!("\n» cargo test --workspace --no-fail-fast");
    let failure = |error: std::io::Error| format!("cannot run cargo test: {error}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failure)?;
    let mut count = Count::default();
    let mut failures = Vec::new();
    if let Some(output) = child.stdout.take() {
        // Bytes, not text: a test may print anything.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let mut stdout = std::io::stdout().lock();
            // If nobody reads any more, the count still decides the exit code.
            let _ = stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n"));
            let text = String::from_utf8_lossy(&line);
            count.add(&text);
            failures.extend(failed_test(&text).map(str::to_owned));
        }
    }
    let status = child.wait().map_err(failure)?;
    Ok((count, failures, status.success()))
}

impl Count {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`.
    fn add(&mut self, line: &str) {
        let Some(results) = line.strip_prefix("test result: ") else { return };
        let results = results.split_once(". ").map_or(results, |(_, numbers)| numbers);
        for part in results.split("; ") {
            let Some((number, word)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// The name in a line such as `test session::tests::refuses_x ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// Every skipped test with what it lacks.
fn skips(log: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut skips: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let (name, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
        skips.entry(name).or_default().push(reason);
    }
    skips
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Count {
        let mut count = Count::default();
        lines.iter().for_each(|line| count.add(line));
        count
    }

    #[test]
    fn results_of_all_programs_add_up() {
        let count = counted(&[
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
            "test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 9 filtered out; finished in 1s",
        ]);
        assert_eq!(count, Count { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_tests_print_is_not_counted() {
        let count = counted(&["99 passed; 1 failed", " test result: ok. 5 passed;", ""]);
        assert_eq!(count, Count::default());
    }

    #[test]
    fn a_test_that_lacks_two_things_counts_once() {
        let log = "a::b: needs root\nc: needs nmap\na::b: needs nft\n\nodd\n";
        assert_eq!(
            skips(log),
            BTreeMap::from([
                ("a::b", vec!["needs root", "needs nft"]),
                ("c", vec!["needs nmap"]),
                ("odd", vec!["no reason given"])
            ])
        );
    }

    #[test]
    fn failed_tests_are_named() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_test("test a::b ... ok"), None);
    }
}
