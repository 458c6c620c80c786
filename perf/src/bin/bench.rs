//! `ringwatch-bench`: Ringwatch beside its peers, in one run. `cargo xtask bench` builds and starts it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use perf::bench::{Scale, Section, report, sections};
use perf::flood;

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                          capture, three rounds of 30 million frames: a quarter of an hour
  cargo xtask bench --quick                  the same with a tenth of the frames, one round
  cargo xtask bench flows rings fanout read memory  the other sections
Nothing else should run on the machine. Needs root and two processors.";

/// Measures Ringwatch beside its peers, and writes down the results with machine and commit.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value = "capture")]
    sections: Vec<Section>,
    /// A tenth of the frames, and one round
    #[arg(long)]
    quick: bool,
    /// How often each program takes its turn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Frames of one load
    #[arg(long, value_name = "N", value_parser = flood::number)]
    frames: Option<u64>,
    /// Bytes of a capture file
    #[arg(long, value_name = "N", value_parser = flood::number)]
    file_bytes: Option<u64>,
    /// Seconds after the last frame that still count
    #[arg(long, value_name = "SECONDS")]
    settle: Option<u64>,
    /// Where the results go [default: a new file in perf/results]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Arguments {
    fn scale(&self) -> Scale {
        let base = if self.quick { Scale::QUICK } else { Scale::FULL };
        Scale {
            frames: self.frames.unwrap_or(base.frames),
            file_bytes: self.file_bytes.unwrap_or(base.file_bytes),
            rounds: self.rounds.unwrap_or(base.rounds),
            settle: self.settle.map_or(base.settle, Duration::from_secs),
            ..base
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwatch-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let scale = arguments.scale();
    let output = arguments.output.clone().unwrap_or_else(report::file);
    let written = |text: &str| {
        fs::write(&output, text).map_err(|error| format!("{}: {error}", output.display()))
    };
    let mut text = report::head();
    // A folder that cannot be written to is found out now, not after an hour.
    written(&text)?;
    for section in &arguments.sections {
        let found = sections::run(*section, &scale)?;
        println!("{found}");
        text.push_str(&found);
        written(&text)?;
    }
    text.push_str(&report::foot());
    written(&text)?;
    eprintln!("written to {}", output.display());
    Ok(())
}
