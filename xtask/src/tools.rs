//! The programs that tests need and a fresh Debian machine lacks.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::Failure;
use crate::tool_table::{TOOLS, Tool};

/// May packages be installed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// Install what is missing, where we may.
    Missing,
    /// Only name it.
    Nothing,
}

impl Install {
    /// From the flag `--no-install`.
    pub fn unless(no_install: bool) -> Self {
        if no_install { Self::Nothing } else { Self::Missing }
    }
}

/// What the tests find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Every tool is there, and we may use them all (root).
    Complete,
    /// Some tests will have to be skipped.
    Partial,
}

/// Names what is missing and installs it if it may.
///
/// # Errors
/// apt-get failed.
pub fn prepare(install: Install) -> Result<Presence, Failure> {
    let is_root = nix::unistd::geteuid().is_root();
    let absent = missing();
    if !is_root {
        eprintln!("not root: tests that need network namespaces and raw sockets are skipped");
    }
    if absent.is_empty() {
        eprintln!("test tools: all {} are here", TOOLS.len());
        return Ok(if is_root { Presence::Complete } else { Presence::Partial });
    }
    eprintln!("test tools that are missing here:");
    for tool in &absent {
        eprintln!("  {:10} (Debian package {:16}) {}", tool.program, tool.package, tool.why);
    }
    let packages = packages(&absent);
    if install == Install::Nothing || !is_root || !exists("apt-get") {
        eprintln!(
            "tests that need them are skipped; to install them: sudo apt-get install {}",
            packages.join(" ")
        );
        return Ok(Presence::Partial);
    }
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], packages.as_slice()].concat())?;
    match missing().as_slice() {
        [] => Ok(Presence::Complete),
        [tool, ..] => Err(format!("{} is missing even after the install", tool.program)),
    }
}

fn missing() -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| !exists(tool.program)).collect()
}

/// Packages of the tools, each once, in the order of the table.
fn packages(tools: &[&Tool]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for tool in tools {
        if !packages.contains(&tool.package) {
            packages.push(tool.package);
        }
    }
    packages
}

/// Is the program in the search path, or where Debian keeps those of the administrator?
fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    let system = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_owned());
    folders.chain(system).any(|folder| folder.join(program).is_file())
}

/// Questions that packages ask (tshark: may ordinary users capture?) get their default answer.
fn apt_get(arguments: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    crate::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_once() {
        let tool = |program, package| Tool { program, package, why: "" };
        let tools = [tool("a", "one"), tool("b", "two"), tool("c", "one")];
        assert_eq!(packages(&tools.iter().collect::<Vec<_>>()), ["one", "two"]);
    }

    #[test]
    fn programs_are_found_where_they_are() {
        assert!(exists("sh"));
        assert!(!exists("ringwatch-no-such-program"));
    }
}
