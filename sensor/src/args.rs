//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, EventOutput};
use crate::filter::Expression;

/// Reads network interfaces, finds port scans while they happen, and sends events and frames to a
/// collector.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Command {
    /// What to do instead of capturing.
    #[command(subcommand)]
    pub action: Option<Action>,
    /// How to capture.
    #[command(flatten)]
    pub run: Run,
}

/// What the sensor does beside capturing.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Check a configuration file, say what is wrong with it, start nothing
    CheckConfig {
        /// The file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say what stands in the way of a good capture on an interface and how to mend it; change nothing
    CheckInterface {
        /// The interface
        #[arg(value_name = "IFACE")]
        interface: String,
        /// Configuration file, for the workers' number and CPUs
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Number of workers that are to read it [default: as configured]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
        workers: Option<u16>,
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what the detector knows of a source: its contacts, counts beside their thresholds, why it did or
    /// did not alert
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// The source
        #[arg(long, value_name = "ADDRESS")]
        source: IpAddr,
        /// Analyse this capture file; without it, a running sensor is asked
        #[arg(long, value_name = "FILE", conflicts_with = "api")]
        read: Option<PathBuf>,
        /// Where the running sensor serves its API [default: as configured, 127.0.0.1:8475]
        #[arg(long, value_name = "ADDRESS:PORT")]
        api: Option<SocketAddr>,
        /// Configuration file: thresholds for a capture file, else api.listen
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  ringwatch-sensor explain --read capture.pcapng --source 192.0.2.7
  ringwatch-sensor explain --read capture.pcapng --source 192.0.2.7 --config sensor.toml --json
  ringwatch-sensor explain --source 2001:db8::7          of the sensor that runs on this host

Exit codes: 0 explained, 1 the file cannot be read to its end or no sensor answers, 2 bad usage or
configuration, or no capture file.";

/// How to capture. What is given here goes before what the file says.
#[derive(Debug, Args)]
pub struct Run {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Interface to capture on: a name, or a glob such as 'veth*' or '*'; may be repeated
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Vec<String>,
    /// Analyse a capture file (pcap, pcapng) instead of an interface; `-` reads standard input
    #[arg(long, value_name = "FILE", conflicts_with = "interface")]
    pub read: Option<PathBuf>,
    /// Number of workers [default: one per usable CPU; with --read: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Look only at frames that match this tcpdump expression, of an interface or a file
    #[arg(long, value_name = "EXPRESSION")]
    pub filter: Option<String>,
    /// Write events to this file, `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Seconds between `stats` events
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub stats_interval: u64,
}

const EXAMPLES: &str = "\
Examples:
  ringwatch-sensor -i eth0                       analyse eth0, print events on standard output
  ringwatch-sensor -i eth0 -i lo --events eve.json
  ringwatch-sensor -i 'veth*' -i eth0            also interfaces that appear later
  ringwatch-sensor --read capture.pcapng         the same analysis on a file, by the file's clock
  ringwatch-sensor -i eth0 --filter 'not port 22'
  ringwatch-sensor --config /etc/ringwatch/sensor.toml
  ringwatch-sensor check-config --config /etc/ringwatch/sensor.toml
  ringwatch-sensor explain --read capture.pcapng --source 192.0.2.7
  ringwatch-sensor check-interface eth0          what loses or changes frames before they are seen

Events are Suricata EVE JSON lines. Logs go to standard error; RINGWATCH_LOG=debug says more.
Capturing needs CAP_NET_RAW; reading a file needs nothing.

Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration, 3 missing privilege,
4 missing dependency. check-interface: 1 if it has a warning.";

impl Run {
    /// The configuration with the command line laid over it.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn configuration(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config {
                // The smallest useful run: print what is seen, serve nothing.
                events: crate::config::Events {
                    output: EventOutput::Stdout,
                    ..Config::without_file().events
                },
                api_listen: None,
                ..Config::without_file()
            },
        };
        if !self.interface.is_empty() {
            config.capture.interfaces.clone_from(&self.interface);
        }
        if let Some(workers) = self.workers {
            config.capture.workers = Some(usize::from(workers));
        }
        if let Some(text) = &self.filter {
            let expression = Expression { text: text.clone(), origin: "--filter".into() };
            config.capture.filter = (!text.trim().is_empty()).then_some(expression);
        }
        match &self.events {
            None => {}
            Some(path) if path.as_os_str() == "-" => config.events.output = EventOutput::Stdout,
            Some(path) => config.events.output = EventOutput::File(path.clone()),
        }
        Ok(config)
    }

    /// Time between `stats` events.
    #[must_use]
    pub const fn stats_interval(&self) -> Duration {
        Duration::from_secs(self.stats_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Run {
        Command::try_parse_from([&["ringwatch-sensor"], words].concat()).unwrap().run
    }

    #[test]
    fn without_a_file_events_go_to_standard_output_and_nothing_is_served() {
        let config = run(&["-i", "eth0", "-i", "lo"]).configuration().unwrap();
        assert_eq!(config.capture.interfaces, ["eth0", "lo"]);
        assert_eq!(config.events.output, EventOutput::Stdout);
        assert_eq!(config.api_listen, None);
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let config = run(&["--events", "x.json", "--workers", "3"]).configuration().unwrap();
        assert_eq!(config.events.output, EventOutput::File("x.json".into()));
        assert_eq!(config.capture.workers, Some(3));
    }

    #[test]
    fn a_filter_of_the_command_line_goes_before_that_of_the_file_and_an_empty_one_is_none() {
        let filter = |words: &[&str]| run(words).configuration().unwrap().capture.filter;
        let expected = Expression { text: "tcp".into(), origin: "--filter".into() };
        assert_eq!(filter(&["--filter", "tcp"]), Some(expected));
        assert_eq!(filter(&["--filter", " "]), None);
        assert_eq!(filter(&[]), None);
    }

    #[test]
    fn a_file_and_an_interface_do_not_go_together() {
        let parsed = Command::try_parse_from(["s", "--read", "a.pcap", "-i", "eth0"]);
        assert_eq!(parsed.unwrap_err().kind(), clap::error::ErrorKind::ArgumentConflict);
    }
}
