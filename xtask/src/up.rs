//! `cargo xtask up`: from a fresh clone to a running appliance.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::{Failure, cargo, target};

/// Packages whose programs `ringwatch up` starts, and its own.
const PACKAGES: [&str; 3] = ["ringwatch", "ringwatch-collector", "ringwatch-sensor"];

/// Builds the programs in release mode, with cargo's own progress, and becomes `ringwatch up`.
pub fn run(arguments: &[OsString]) -> Result<(), Failure> {
    let mut build = cargo(&["build", "--release", "--bins"]);
    for package in PACKAGES {
        build.args(["--package", package]);
    }
    crate::run(&mut build)?;
    let program = target()?.join("release/ringwatch");
    // Replaces this process: signals, terminal and exit code are those of `ringwatch up`.
    let error = Command::new(&program).arg("up").args(arguments).exec();
    Err(format!("cannot start {}: {error}", program.display()))
}
