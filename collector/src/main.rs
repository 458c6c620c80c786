//! `ringwatch-collector`: arguments, configuration, checks, threads, wait, stop, exit code.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use collector::config::Config;
use collector::pipeline::{Pipeline, PipelineError};
use collector::preflight;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;
use wire::text::error_chain;

/// Takes events and frames from Ringwatch sensors over mutual TLS, and stores them.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Option<ConfigFile>,
}

#[derive(Subcommand)]
enum Command {
    /// Check configuration, certificates and store, and start nothing
    CheckConfig(ConfigFile),
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  ringwatch-collector --config /etc/ringwatch/collector.toml
  ringwatch-collector check-config --config collector.toml
  RINGWATCH_LOG=debug ringwatch-collector --config collector.toml

Signals: SIGINT and SIGTERM store and acknowledge what was taken, seal the open segment and end; a
second one ends at once.

Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration, 3 missing privilege.";

const FAILED: u8 = 1;
const BAD_CONFIGURATION: u8 = 2;
const MISSING_PRIVILEGE: u8 = 3;
/// How often the threads are looked after.
const WATCH: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    let (file, is_check) = match (arguments.command, arguments.run) {
        (Some(Command::CheckConfig(file)), _) => (file.config, true),
        (None, Some(file)) => (file.config, false),
        (None, None) => {
            eprintln!("error: --config FILE is missing; see --help");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let config = Config::load(&file).and_then(|config| {
        let checked = preflight::check(&config)?;
        Ok((config, checked))
    });
    match config {
        Err(error) => fail(&error, BAD_CONFIGURATION),
        Ok((_, checked)) if is_check => {
            println!("{} is valid for collector {:?}", file.display(), checked.name);
            ExitCode::SUCCESS
        }
        Ok((config, checked)) => match run(&config, checked) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, exit_code(&error)),
        },
    }
}

/// Runs until a signal comes or a thread fails.
fn run(config: &Config, checked: preflight::Checked) -> Result<(), PipelineError> {
    let system = |source| PipelineError::System { action: "handle signals", source };
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(system)?;
    let pipeline = Pipeline::start(config, checked)?;
    while signals.pending().next().is_none() && !pipeline.is_broken() {
        std::thread::sleep(WATCH);
    }
    // From here on a signal ends the process at once.
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAILED), always())
            .map_err(system)?;
    }
    tracing::info!("stopping: storing what was taken");
    pipeline.stop()?;
    tracing::info!("stopped");
    Ok(())
}

fn always() -> std::sync::Arc<std::sync::atomic::AtomicBool> {
    std::sync::Arc::new(true.into())
}

/// Logs go to standard error; `RINGWATCH_LOG` chooses levels, such as `debug`.
fn start_log() {
    let filter = EnvFilter::try_from_env("RINGWATCH_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Prints an error with its causes.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    eprintln!("ringwatch-collector: {}", error_chain(error));
    ExitCode::from(code)
}

fn exit_code(error: &PipelineError) -> u8 {
    match error {
        PipelineError::Listen { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            MISSING_PRIVILEGE
        }
        _ => FAILED,
    }
}
