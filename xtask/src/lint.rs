//! Everything that is checked without running a test.

use crate::{Failure, cargo, licences, root, tidy};

/// Tests, benches and binaries as well, every warning an error.
const CLIPPY: [&str; 4] = ["--all-targets", "--", "-D", "warnings"];

/// Runs all checks, also after one failed, and names those that did.
///
/// # Errors
/// The names of the checks that failed.
pub fn run() -> Result<(), Failure> {
    let docs = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    let checks = [
        ("tidy", tidy()),
        ("licences", licences::check()),
        ("fmt", crate::run(&mut cargo(&["fmt", "--all", "--check"]))),
        ("clippy", crate::run(cargo(&["clippy", "--workspace"]).args(CLIPPY))),
        ("docs", crate::run(cargo(&docs).env("RUSTDOCFLAGS", "-D warnings"))),
    ];
    let mut failed = Vec::new();
    for (name, result) in checks {
        if let Err(failure) = result {
            eprintln!("\n{failure}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        eprintln!("\nlint: all checks passed");
        return Ok(());
    }
    Err(format!("failed: {}", failed.join(", ")))
}

/// The rules of this tree.
///
/// # Errors
/// Every finding, with its remedy.
pub fn tidy() -> Result<(), Failure> {
    eprintln!("\n» tidy");
    let findings = tidy::check(&root())?;
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    Err(format!("{}\ntidy: {} findings", lines.join("\n"), findings.len()))
}
