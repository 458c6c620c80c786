//! `ringwatch-fleet`: many simulated sensors in one process, as load for a collector.
//!
//! ```text
//!   standard input ──▶ main ──rate──▶ threads ── uplinks of the real sensor ══ TLS ══▶ collector
//!                      main ◀─counts── threads
//!   standard output ◀──┘
//! ```
//!
//! What connects, waits, dials again and delivers is the uplink of `ringwatch-sensor` itself, one for
//! each simulated sensor, each with a certificate of its own. Two things are not as in a sensor: many
//! uplinks share a thread and are looked at every 20 ms, not every 10; and records wait in memory,
//! as with `[spool] path = ""`, because a thousand spools would wait for one disk.

mod pki;
mod sensors;

use std::io::BufRead;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sensors::{Count, Fleet};

/// Many simulated sensors in one process, as load for a collector.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a folder with an authority, a collector's certificate and one for each sensor
    Prepare {
        /// The folder; made when missing
        folder: PathBuf,
        /// How many sensors
        #[arg(long, default_value = "1000")]
        sensors: NonZero<u32>,
    },
    /// Connect all sensors, and say twice a second how they are
    Run {
        /// The folder that `prepare` made
        folder: PathBuf,
        /// The collector, HOST:PORT
        #[arg(long, value_name = "HOST:PORT")]
        collector: String,
        /// How many sensors
        #[arg(long, default_value = "1000")]
        sensors: NonZero<u32>,
        /// Threads that they share
        #[arg(long, default_value = "2")]
        threads: NonZero<u32>,
    },
}

const EXAMPLES: &str = "\
Examples:
  ringwatch-fleet prepare /tmp/fleet --sensors 1000
  ringwatch-fleet run /tmp/fleet --sensors 1000 --collector 127.0.0.1:4750

`run` reads lines from standard input: `rate N`: from now on, N records a second, of all sensors
together; `stop`, or the end of the input: deliver what waits, for at most 10 s, and end. It writes
one JSON object a line: the time, the sensors that are connected, and what they all together have
done since the start.";

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Prepare { folder, sensors } => pki::prepare(&folder, sensors.get())
            .map_err(|error| format!("{}: {error}", folder.display())),
        Command::Run { folder, collector, sensors, threads } => {
            run(&Fleet { folder, collector, sensors: sensors.get() }, threads.get())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwatch-fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the threads are told.
pub struct Orders {
    /// Records a second, of all sensors together.
    pub rate: AtomicU64,
    /// Deliver what waits, and end.
    pub is_stopping: AtomicBool,
}

fn run(fleet: &Fleet, threads: u32) -> Result<(), String> {
    raise_file_limit(fleet.sensors)?;
    let orders = Orders { rate: AtomicU64::new(0), is_stopping: AtomicBool::new(false) };
    let orders = Arc::new(orders);
    let counts: Vec<_> = (0..threads).map(|_| Arc::new(Count::default())).collect();
    thread::scope(|scope| {
        let groups: Vec<_> = (0..threads)
            .zip(&counts)
            .map(|(group, count)| {
                let (orders, count) = (Arc::clone(&orders), Arc::clone(count));
                scope.spawn(move || sensors::run(fleet, (group, threads), &orders, &count))
            })
            .collect();
        let for_input = Arc::clone(&orders);
        // Waits for input for as long as the process lives.
        thread::spawn(move || take_orders(&for_input));
        while groups.iter().any(|group| !group.is_finished()) {
            thread::sleep(REPORT);
            println!("{}", report(&counts));
        }
        let ended = groups.into_iter().map(|group| {
            group.join().map_err(|_| "a thread panicked".to_owned()).and_then(|ended| ended)
        });
        ended.collect::<Result<Vec<()>, _>>()
    })?;
    println!("{}", report(&counts));
    Ok(())
}

fn take_orders(orders: &Orders) {
    for line in std::io::stdin().lock().lines() {
        match line.as_deref().map(str::trim) {
            Ok("stop") | Err(_) => break,
            Ok(line) => match line.strip_prefix("rate ").map(str::parse) {
                Some(Ok(rate)) => orders.rate.store(rate, Ordering::Relaxed),
                _ => eprintln!("{line:?} is neither \"rate N\" nor \"stop\""),
            },
        }
    }
    orders.is_stopping.store(true, Ordering::Relaxed);
}

/// What all threads counted, as one line of JSON.
fn report(counts: &[Arc<Count>]) -> serde_json::Value {
    let sum = |value: fn(&Count) -> &AtomicU64| -> u64 {
        counts.iter().map(|count| value(count).load(Ordering::Relaxed)).sum()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serde_json::json!({
        "unix_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        "connected": sum(|count| &count.connected),
        "connects": sum(|count| &count.connects),
        "failed_dials": sum(|count| &count.failed_dials),
        "made": sum(|count| &count.made),
        "not_taken": sum(|count| &count.not_taken),
        "acknowledged": sum(|count| &count.acknowledged),
        "lost": sum(|count| &count.lost),
    })
}

/// Raises the limit of open files as far as the system lets us: two for each sensor, a socket and a
/// poll.
fn raise_file_limit(sensors: u32) -> Result<(), String> {
    let needed = u64::from(sensors) * 2 + OTHER_FILES;
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    let (soft, hard) = limit.map_err(|error| format!("limit of open files: {error}"))?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        return Err(format!(
            "{sensors} sensors need {needed} open files, and the system allows {hard}: raise the hard \
             limit (ulimit -Hn {needed}, or LimitNOFILE={needed} in a unit)"
        ));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .map_err(|error| format!("cannot raise the limit of open files to {hard}: {error}"))
}

/// Files of the process itself.
const OTHER_FILES: u64 = 64;
/// Time between two lines.
const REPORT: Duration = Duration::from_millis(500);
