//! Programs and rights that a test needs. A test that lacks one says so and is counted as skipped;
//! where everything must run (`RINGWATCH_REQUIRE_TOOLS=1`) it fails instead.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use crate::tool_table::TOOLS;

/// Set to `1`, it turns every missing tool into a failure.
pub const REQUIRE: &str = "RINGWATCH_REQUIRE_TOOLS";

/// A file to which a line is added for everything that a test lacked.
pub const SKIP_LOG: &str = "RINGWATCH_SKIP_LOG";

/// Whether all `tools` are installed. Where one is missing, says which package has it.
///
/// # Panics
/// If one is missing and [`REQUIRE`] is `1`, or is not in the table.
#[must_use]
pub fn require(tools: &[&str]) -> bool {
    let mut has_all = true;
    for tool in tools {
        let package = package(tool);
        if find(tool).is_none() {
            lacking(&format!("{tool} (package {package})"));
            has_all = false;
        }
    }
    has_all
}

/// Whether the test runs as root, which namespaces and packet sockets need.
///
/// # Panics
/// If it does not and [`REQUIRE`] is `1`.
#[must_use]
pub fn require_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        lacking("root (network namespaces and packet sockets)");
    }
    is_root
}

/// The Debian package of a tool.
///
/// # Panics
/// If the tool is not in the table, so that nothing would install it.
#[must_use]
pub fn package(tool: &str) -> &'static str {
    let found = TOOLS.iter().find(|one| one.program == tool);
    let Some(found) = found else { panic!("{tool} is not in perf/src/tool_table.rs; add it") };
    found.package
}

/// Where a tool is installed. The folders of root are looked at in any case.
#[must_use]
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(tool))
        .find(|file| file.is_file())
}

fn lacking(what: &str) {
    let must_be_there = env::var_os(REQUIRE).is_some_and(|value| value == "1");
    assert!(!must_be_there, "{}: needs {what}", test_name());
    skipped(what);
}

fn test_name() -> String {
    thread::current().name().unwrap_or("test").to_owned()
}

/// Says and counts that a test left something out for want of `what`.
pub fn skipped(what: &str) {
    let line = format!("{}: needs {what}", test_name());
    eprintln!("skipped: {line}");
    if let Some(log) = env::var_os(SKIP_LOG) {
        append(Path::new(&log), &line);
    }
}

fn append(log: &Path, line: &str) {
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        panic!("cannot add to {}: {error}", log.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_installed_and_names_the_package_of_what_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-tool").is_none());
        assert_eq!(package("capinfos"), "wireshark-common");
        assert_eq!(package("nmap"), "nmap");
    }
}
