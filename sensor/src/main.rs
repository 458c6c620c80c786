//! `ringwatch-sensor`: arguments, configuration, rings, threads, and the end of it all.

use std::error::Error;
use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use sensor::afpacket::{Interface, OpenError, RingConfig};
use sensor::args::{Action, Command, Run};
use sensor::config::{Config, ConfigError};
use sensor::explain::{self, AskError};
use sensor::file::FileError;
use sensor::filter::FilterError;
use sensor::host;
use sensor::hygiene;
use sensor::pipeline::{Pipeline, Start, StartError, Stopped};
use sensor::replay::{self, ReplayError};
use sensor::setup::{self, Captured, SetupError};
use sensor::spool::{self, SpoolError};
use sensor::uplink_thread::UplinkStartError;
use sensor::worker::WorkerError;
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let command = Command::parse();
    start_log();
    let ended = match &command.action {
        Some(Action::CheckConfig { config }) => check_config(config),
        Some(Action::CheckInterface { interface, config, workers, json }) => {
            match check_interface(interface, config.as_deref(), *workers, *json) {
                Ok(false) => Ok(()),
                // The report says why.
                Ok(true) => return ExitCode::FAILURE,
                Err(failure) => Err(failure),
            }
        }
        Some(Action::Explain { source, read, api, config, json }) => {
            explain(*source, read.as_deref(), *api, config.as_deref(), *json)
        }
        None => match &command.run.read {
            Some(path) => read(&command.run, path),
            None => capture(&command.run),
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ringwatch-sensor: {}", failure.chain());
            ExitCode::from(failure.code())
        }
    }
}

/// Captures until a signal comes, or nobody reads the events any more.
fn capture(run: &Run) -> Result<(), Failure> {
    let stopped = Arc::new(AtomicBool::new(false));
    listen_for_signals(&stopped)?;
    let config = run.configuration()?;
    let captured = setup::captured(&config.capture)?;
    let names = captured.names();
    let cpus = setup::cpus(&config.capture)?;
    let ring = setup::ring(&config.capture, names.len() * cpus.len())?;
    let filters = setup::filters(&config, &captured)?;
    let sensor = setup::sensor_name(&config)?;
    tracing::info!(
        sensor,
        interfaces = ?names,
        workers = cpus.len(),
        ?cpus,
        ring_bytes = ring.ring_bytes(),
        blocks = ring.block_count,
        stall_tolerance_ms = setup::stall_tolerance_ms(&ring),
        "starting; ring sizes are for each interface and worker"
    );
    describe(&captured, &cpus, &ring);
    let stats_interval = run.stats_interval();
    let pipeline =
        Pipeline::start(Start { config, sensor, captured, filters, cpus, ring, stats_interval })?;
    tracing::info!("capturing; SIGINT or SIGTERM ends it");
    while !stopped.load(Ordering::Relaxed) && !pipeline.is_reader_gone() {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    tracing::info!("stopping: draining rings, delivering what is under way; again to end at once");
    let Stopped { ledger, is_whole } = pipeline.stop();
    ledger.check().map_err(|imbalance| Failure::Running(Box::new(imbalance)))?;
    if !is_whole {
        return Err(Failure::Running(
            "a worker stood still, or a thread panicked, as the log says".into(),
        ));
    }
    tracing::info!(
        packets = ledger.kernel_packets(),
        drops = ledger.kernel_drops(),
        "stopped, the ledger adds up"
    );
    Ok(())
}

/// Says how the interfaces are set up, and for how long their rings last.
fn describe(captured: &Captured, cpus: &[usize], ring: &RingConfig) {
    /// Of more than these that match a glob, a log is no place for the details.
    const MOST_MATCHES: usize = 16;
    let present = match captured {
        Captured::Named(_) => captured.names(),
        Captured::Matching(patterns) => {
            let mut names = Interface::names().unwrap_or_default();
            names.retain(|name| patterns.matches(name));
            names
        }
    };
    for name in present.iter().take(MOST_MATCHES) {
        hygiene::check(name, cpus).log();
    }
    if present.len() > MOST_MATCHES {
        let unchecked = present.len() - MOST_MATCHES;
        tracing::info!(unchecked, "see check-interface for the set-up of further interfaces");
    }
    for name in captured.names() {
        let bytes = ring.ring_bytes() * cpus.len() as u64;
        let ms_at = |megabits| setup::line_rate_ms(bytes, megabits);
        match setup::link_speed(&name) {
            Some(mbit_s) => tracing::info!(
                interface = name,
                bytes,
                mbit_s,
                line_rate_ms = ms_at(mbit_s),
                "what its rings hold"
            ),
            None => tracing::info!(
                interface = name,
                bytes,
                ms_at_1_gbit_s = ms_at(1000),
                ms_at_10_gbit_s = ms_at(10_000),
                "what its rings hold; the interface says no speed"
            ),
        }
    }
}

/// Analyses a capture file.
fn read(run: &Run, path: &std::path::Path) -> Result<(), Failure> {
    let config = run.configuration()?;
    let workers = config.capture.workers.unwrap_or(1);
    let name = match config.sensor_name.as_str() {
        "" => host::name(),
        name => name.to_owned(),
    };
    replay::run(&config, &name, path, workers)?;
    Ok(())
}

/// Says everything that a start would say about the configuration. Whether the interfaces exist is
/// left to the start: they may come later, or be named on the command line.
fn check_config(path: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    let workers = setup::cpus(&config.capture)?.len();
    setup::ring(&config.capture, setup::rings_of_worker(&config.capture)? * workers)?;
    // Of the interfaces, nothing is known here: the filter for all of them has what that for one has.
    setup::filter_for_all(&config.capture)?;
    setup::sensor_name(&config)?;
    if let (Some(_), Some(spool)) = (&config.uplink, &config.spool) {
        spool::check(&spool.path)?;
    }
    println!("{} is good", path.display());
    Ok(())
}

/// Prints how an interface is set up. Says whether something should be mended.
fn check_interface(
    interface: &str,
    config: Option<&std::path::Path>,
    workers: Option<u16>,
    json: bool,
) -> Result<bool, Failure> {
    let mut config = config.map_or_else(|| Ok(Config::without_file()), Config::load)?;
    if workers.is_some() {
        config.capture.workers = workers.map(usize::from);
    }
    let workers = setup::cpus(&config.capture)?;
    Interface::find(interface)?;
    let report = hygiene::check(interface, &workers);
    if json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(report.has_warnings())
}

/// Prints what the detector knows of a source, from a file or from a running sensor.
fn explain(
    source: IpAddr,
    read: Option<&std::path::Path>,
    api: Option<SocketAddr>,
    config: Option<&std::path::Path>,
    json: bool,
) -> Result<(), Failure> {
    let config = config.map_or_else(|| Ok(Config::without_file()), Config::load)?;
    let said = match read {
        Some(path) => {
            let explanation = replay::explain(&config, path, source.into())?;
            if json { explain::json(&explanation).to_string() } else { explain::text(&explanation) }
        }
        None => {
            let off = "api.listen is off in this configuration; name the sensor's API with --api";
            let api = api.or(config.api_listen).ok_or(Failure::Usage(off.into()))?;
            explain::ask(api, source, json)?
        }
    };
    println!("{}", said.trim_end());
    Ok(())
}

/// The first signal asks for an orderly end, a second one ends at once.
fn listen_for_signals(stopped: &Arc<AtomicBool>) -> Result<(), Failure> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset, the second one finds it set.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(stopped))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(stopped)))
            .map_err(|error| Failure::Running(Box::new(error)))?;
    }
    Ok(())
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RINGWATCH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal)
        .with_writer(std::io::stderr)
        .init();
}

/// Why the program ends, by its exit code.
enum Failure {
    Running(Box<dyn Error>),
    Usage(Box<dyn Error>),
    Privilege(Box<dyn Error>),
    Dependency(Box<dyn Error>),
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Self::Running(_) => 1,
            Self::Usage(_) => 2,
            Self::Privilege(_) => 3,
            Self::Dependency(_) => 4,
        }
    }

    /// The error with its causes, and the remedy where there is one for all cases.
    fn chain(&self) -> String {
        let (Self::Running(error)
        | Self::Usage(error)
        | Self::Privilege(error)
        | Self::Dependency(error)) = self;
        let mut text = wire::text::error_chain(error.as_ref());
        if matches!(self, Self::Privilege(_)) {
            let program = std::env::current_exe().unwrap_or_else(|_| "ringwatch-sensor".into());
            text = format!(
                "{text}; run as root, or once: setcap cap_net_raw=ep {}",
                program.display()
            );
        }
        text
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(Box::new(error))
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::Running(Box::new(error))
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        match error {
            SetupError::Interface(error) => error.into(),
            error => Self::Usage(Box::new(error)),
        }
    }
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Unusable { .. } => Self::Usage(Box::new(error)),
            SpoolError::InUse { .. } | SpoolError::Thread { .. } => Self::Running(Box::new(error)),
        }
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::Missing { .. } => Self::Dependency(Box::new(error)),
            FilterError::Expression { .. } => Self::Usage(Box::new(error)),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Permission => Self::Privilege(Box::new(error)),
            OpenError::NoSuchInterface { .. }
            | OpenError::UnsupportedHardware { .. }
            | OpenError::Setting { .. }
            | OpenError::FilterTooLong { .. } => Self::Usage(Box::new(error)),
            OpenError::Files(_)
            | OpenError::NoPacketSockets(_)
            | OpenError::Memory { .. }
            | OpenError::LinkType { .. }
            | OpenError::Down { .. }
            | OpenError::System { .. } => Self::Running(Box::new(error)),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Worker(WorkerError::Open(error)) | StartError::Reserve(error) => {
                error.into()
            }
            StartError::Uplink(UplinkStartError::Spool(error)) => error.into(),
            error => Self::Running(Box::new(error)),
        }
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::File(FileError::Open { .. } | FileError::NotCapture { .. }) => {
                Self::Usage(Box::new(error))
            }
            ReplayError::Filter(error) => error.into(),
            error => Self::Running(Box::new(error)),
        }
    }
}
