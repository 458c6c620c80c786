//! `cargo xtask bench`: Ringwatch beside its peers, release builds, in one run.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::{Failure, cargo, root, target};

/// What the bench drives, and the bench.
const BUILD: [&str; 13] = [
    "build",
    "--release",
    "--package",
    "ringwatch-sensor",
    "--package",
    "ringwatch-perf",
    "--package",
    "ringwatch-collector",
    "--package",
    "ringwatch-fleet",
    "--bins",
    "--example",
    "capture_cost",
];

/// Builds everything in release mode and becomes `ringwatch-bench`, in the root of the tree.
///
/// # Errors
/// It does not build, or the bench cannot be started.
pub fn run(arguments: &[OsString]) -> Result<(), Failure> {
    crate::run(&mut cargo(&BUILD))?;
    let program = target()?.join("release/ringwatch-bench");
    let error = Command::new(&program).args(arguments).current_dir(root()).exec();
    Err(format!("cannot start {}: {error}", program.display()))
}
