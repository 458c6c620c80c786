//! `cargo xtask up | test | lint | check | bench`: what cargo alone cannot say.
//!
//! ```text
//!   up         builds everything and starts it on this machine
//!   test       installs what the tests need, runs all of them, counts
//!   tools      the programs that tests need, and the packages they come in
//!   lint       fmt, clippy, docs, tidy, licences
//!   tidy       rules of this tree that no other tool checks
//!   licences   licences of dependencies, and crates that must not come in
//!   bench      Ringwatch beside its peers, in one run
//! ```
#![forbid(unsafe_code)]

mod bench;
mod licences;
mod lint;
mod test;
mod tidy;
/// The table of the tests themselves. Only the file is shared: depending on the crate would make the
/// first `cargo xtask` wait for all that tests need.
#[path = "../../perf/src/tool_table.rs"]
mod tool_table;
mod tools;
mod up;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Builds, runs and checks Ringwatch.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build in release mode and start collector and sensor here (`--help`: see `ringwatch up`)
    #[command(disable_help_flag = true)]
    Up {
        /// Arguments of `ringwatch up`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Install what tests need, and run every test of the workspace
    #[command(after_help = "Examples:
  cargo xtask test                 as root: installs missing Debian packages first
  cargo xtask test --no-install    only names them; tests that need them are skipped, and counted")]
    Test {
        /// Install nothing, only name what is missing
        #[arg(long)]
        no_install: bool,
    },
    /// Formatting, clippy and docs with warnings denied, tidy, licences
    Lint,
    /// Build in release mode and measure beside other programs (`--help`: see `ringwatch-bench`)
    #[command(disable_help_flag = true)]
    Bench {
        /// Arguments of `ringwatch-bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Only the rules of this tree, without the compiler
    Tidy,
    /// All of `lint`, then `test`: what CI runs
    Check {
        /// Install nothing, only name what is missing
        #[arg(long)]
        no_install: bool,
    },
}

/// Why a task failed; printed as it is. Empty if the task has said it itself.
type Failure = String;

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Up { arguments } => up::run(&arguments),
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Test { no_install } => test::run(tools::Install::unless(no_install)),
        Task::Lint => lint::run(),
        Task::Tidy => lint::tidy(),
        Task::Check { no_install } => {
            lint::run().and_then(|()| test::run(tools::Install::unless(no_install)))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_empty() {
                eprintln!("xtask: {failure}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).to_owned()
}

/// The target folder that cargo uses for us: this program lies in its `debug`.
fn target() -> Result<PathBuf, Failure> {
    let executable = std::env::current_exe().map_err(|error| error.to_string())?;
    match executable.parent().and_then(Path::parent) {
        Some(target) => Ok(target.to_owned()),
        None => Err(format!("{} is not in a target folder", executable.display())),
    }
}

/// Cargo, in the root of the workspace.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Says what runs, runs it, and turns anything but success into a failure.
fn run(command: &mut Command) -> Result<(), Failure> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let line = format!("{} {}", program.to_string_lossy(), words.join(" "));
    eprintln!("\n» {line}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed ({status})")),
        Err(error) => Err(format!("cannot run `{line}`: {error}")),
    }
}
