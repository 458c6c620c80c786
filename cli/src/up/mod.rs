//! `ringwatch up`: a collector and a sensor on this machine, watched until they are told to end.
//!
//! ```text
//!   folder     certificates, configuration, store and logs of one appliance
//!   place      interfaces worth watching, free ports
//!   programs   the two programs as children
//!   watchdog   ends them should `up` be killed
//!   events     alerts out of the collector's event log
//!   view       the live block, the plain lines, the summary
//! ```
//!
//! One thread: it looks for signals and dead children, reads new events, asks the collector once a
//! second, and draws. The order of the end is sensor, then collector, so that the last events and
//! frames are stored.

mod events;
mod folder;
mod place;
mod programs;
mod view;
mod watchdog;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::api::Client;
use crate::pki::{IdentityError, PkiError};
use events::{Alerts, Follower};
use folder::{Certificates, Folder};
use place::{Ports, STANDARD};
use programs::{GLANCE, Program};
use view::{Figures, Place, Screen};
use watchdog::Watchdog;

/// How long a program has to become ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a program has to end after it was asked to.
const END_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer on loopback may take before the view goes on without it.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two redraws.
const TICK: Duration = Duration::from_millis(200);
/// Between two questions to the collector.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Between two plain lines.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Alert lines shown per tick; a burst beyond is summed up and is in the log.
const ALERT_LINES: usize = 50;

/// How `ringwatch up` is called.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwatch up                          default-route interface and lo, until Ctrl-C
  ringwatch up -i eth1 --frames all     one interface, every frame stored
  ringwatch up --duration 20 | cat      plain lines, ends by itself

Capturing needs CAP_NET_RAW: run as root, or once
  sudo setcap cap_net_raw=ep target/release/ringwatch-sensor")]
pub struct Options {
    /// Folder for certificates, configuration, store and logs; made if missing
    #[arg(long, value_name = "DIR", default_value = "./ringwatch-data")]
    data: PathBuf,
    /// Interface to watch (repeatable) [default: that of the default route, and lo]
    #[arg(short = 'i', long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Frames to store: none, whole flows (one in eight), or all
    #[arg(long, value_enum, default_value_t = Frames::Sampled)]
    frames: Frames,
}

/// Which frames the sensor forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Frames {
    /// Events only.
    None,
    /// All frames of some flows.
    Sampled,
    /// All frames of all flows.
    All,
}

impl Frames {
    const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sampled => "sampled",
            Self::All => "all",
        }
    }
}

/// Why `up` failed. Nothing that it started runs on.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration cannot carry the folder's name.
    #[error("{} is not a UTF-8 path; choose another folder with --data", .0.display())]
    PathText(PathBuf),
    /// Two appliances cannot share a folder.
    #[error("another `ringwatch up` uses {0}; end it, or choose another folder with --data")]
    InUse(PathBuf),
    /// Certificates could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A built-in certificate name is not one.
    #[error(transparent)]
    Name(IdentityError),
    /// Every port in a wide range is taken.
    #[error("no free ports after {}, {} and {}",
        STANDARD.sensors, STANDARD.collector_api, STANDARD.sensor_api)]
    NoPort,
    /// A program of Ringwatch is not installed beside this one.
    #[error("{} is missing; build all programs (cargo build --release), they belong in one folder",
        .0.display())]
    NoProgram(PathBuf),
    /// A program does not start.
    #[error("cannot start {}", .executable.display())]
    Start {
        /// Which.
        executable: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program ended although nobody asked it to.
    #[error("the {program} ended ({status}); it said last:\n{tail}")]
    Ended {
        /// `sensor` or `collector`.
        program: &'static str,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// A program runs and is not ready.
    #[error("the {program} is not ready after {} s; its log is {log}", READY_WITHIN.as_secs())]
    NotReady {
        /// `sensor` or `collector`.
        program: &'static str,
        /// Its log.
        log: PathBuf,
    },
    /// A program had to be killed.
    #[error("the {program} did not end within {} s and was killed; its log is {log}",
        END_WITHIN.as_secs())]
    Stuck {
        /// `sensor` or `collector`.
        program: &'static str,
        /// Its log.
        log: PathBuf,
    },
    /// Ctrl-C came a second time.
    #[error("killed on the second signal; the last events and frames may be missing")]
    Killed,
    /// Nobody reads what is shown, or signals cannot be taken.
    #[error("cannot talk to the terminal")]
    Terminal(#[from] std::io::Error),
}

impl UpError {
    /// The exit code of the command. What a program says about usage, privilege and dependencies
    /// (2, 3, 4) is passed on.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PathText(_) => 2,
            Self::NoProgram(_) => 4,
            Self::Ended { status, .. } => match status.code() {
                Some(code @ 2..=4) => code as u8,
                _ => 1,
            },
            _ => 1,
        }
    }
}

/// Ends the processes named on standard input when it closes. See `watchdog`.
pub fn watchdog() {
    watchdog::watch(std::io::stdin().lock());
}

/// Runs a collector and a sensor until a signal comes or the time is over.
///
/// # Errors
/// See [`UpError`]; whatever was started has ended then.
pub fn run(options: Options) -> Result<(), UpError> {
    // First of all, so that no signal from now on leaves a program behind.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut screen = Screen::of_stdout();
    let interfaces = match options.interfaces.is_empty() {
        true => place::default_interfaces(),
        false => options.interfaces.clone(),
    };
    let folder = Folder::open(&options.data)?;
    let ports = prepare(&folder, &interfaces, options.frames, &mut screen)?;
    let mut appliance = Appliance {
        place: Place {
            interfaces: interfaces.join(", "),
            root: folder.root(),
            api: format!("http://127.0.0.1:{}", ports.collector_api),
        },
        ports,
        folder: &folder,
        figures: Figures::default(),
        alerts: Alerts::default(),
        follower: Follower::from_end(folder.store().join("events/eve.json")),
        started: Instant::now(),
        screen,
    };
    let Some(mut programs) = appliance.start(&mut signals)? else { return Ok(()) };
    // Time and rates count from here on.
    appliance.started = Instant::now();
    appliance.figures = Figures::default();
    appliance.watch(&mut programs, &mut signals, options.duration.map(Duration::from_secs))?;
    appliance.end(programs, &mut signals)
}

/// Certificates, ports and configuration.
fn prepare(
    folder: &Folder,
    interfaces: &[String],
    frames: Frames,
    screen: &mut Screen,
) -> Result<Ports, UpError> {
    screen.say(&format!("data          {}", folder.root().display()))?;
    let made = match folder.prepare_certificates()? {
        Certificates::Kept => "kept from the last run",
        Certificates::Made => "made now, good for this machine only",
    };
    screen.say(&format!("certificates  {made}"))?;
    let ports = Ports::free().ok_or(UpError::NoPort)?;
    folder.write_configuration(interfaces, frames, ports)?;
    for (what, port, standard) in [
        ("sensors", ports.sensors, STANDARD.sensors),
        ("the collector's API", ports.collector_api, STANDARD.collector_api),
        ("the sensor's API", ports.sensor_api, STANDARD.sensor_api),
    ] {
        if port != standard {
            screen.say(&format!("port          {port} for {what}, because {standard} is taken"))?;
        }
    }
    Ok(ports)
}

/// The running programs. The order of the fields is the order of the end: the watchdog last, because
/// until then it may be needed.
struct Programs {
    sensor: Program,
    collector: Program,
    watchdog: Watchdog,
}

/// One run, as far as it is not a process.
struct Appliance<'a> {
    folder: &'a Folder,
    place: Place<'a>,
    ports: Ports,
    figures: Figures,
    alerts: Alerts,
    follower: Follower,
    started: Instant,
    screen: Screen,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Ready,
    Signalled,
}

impl Appliance<'_> {
    /// Starts collector and sensor, one after the other is ready. `None` if a signal came first.
    fn start(&mut self, signals: &mut Signals) -> Result<Option<Programs>, UpError> {
        let mut watchdog = Watchdog::start()?;
        let mut collector = self.start_program("collector", &mut watchdog)?;
        let client = self.collector_client();
        let answers = |_: &mut Self| client.status().is_ok();
        if self.wait_ready("collector", &mut [&mut collector], signals, answers)? == Wait::Signalled
        {
            return Ok(None);
        }
        self.screen.say(&format!(
            "collector     {}, sensors on 127.0.0.1:{}",
            self.place.api, self.ports.sensors
        ))?;
        let mut sensor = self.start_program("sensor", &mut watchdog)?;
        let connected = |appliance: &mut Self| {
            appliance.ask(&client, None);
            appliance.figures.is_connected()
        };
        let both = &mut [&mut sensor, &mut collector];
        if self.wait_ready("sensor", both, signals, connected)? == Wait::Signalled {
            return Ok(None);
        }
        self.screen.say(&format!("sensor        on {}, connected", self.place.interfaces))?;
        let (store, logs) = (self.folder.store(), self.folder.log("*"));
        self.screen.say(&format!("events        {}", store.join("events/eve.json").display()))?;
        self.screen.say(&format!("frames        {}", store.join("frames").display()))?;
        self.screen.say(&format!("logs          {}", logs.display()))?;
        Ok(Some(Programs { sensor, collector, watchdog }))
    }

    fn start_program(
        &mut self,
        name: &'static str,
        watchdog: &mut Watchdog,
    ) -> Result<Program, UpError> {
        let log = self.folder.log(name);
        let program = Program::start(name, &self.folder.configuration(name), &log)?;
        watchdog.guard(&program);
        Ok(program)
    }

    fn collector_client(&self) -> Client {
        Client::new(&self.place.api, PATIENCE)
    }

    fn wait_ready(
        &mut self,
        program: &'static str,
        running: &mut [&mut Program],
        signals: &mut Signals,
        mut is_ready: impl FnMut(&mut Self) -> bool,
    ) -> Result<Wait, UpError> {
        let start = Instant::now();
        let mut said = false;
        loop {
            if let Some(death) = running.iter_mut().find_map(|program| program.death()) {
                return Err(death);
            }
            if signals.pending().next().is_some() {
                return Ok(Wait::Signalled);
            }
            if is_ready(self) {
                return Ok(Wait::Ready);
            }
            if start.elapsed() > READY_WITHIN {
                return Err(UpError::NotReady { program, log: self.folder.log(program) });
            }
            if !said && start.elapsed() > Duration::from_secs(1) {
                self.screen.say(&format!("{program:13} starting …"))?;
                said = true;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Shows what happens until a signal comes or the time is over.
    fn watch(
        &mut self,
        programs: &mut Programs,
        signals: &mut Signals,
        duration: Option<Duration>,
    ) -> Result<(), UpError> {
        let collector = self.collector_client();
        let sensor = Client::new(&format!("http://127.0.0.1:{}", self.ports.sensor_api), PATIENCE);
        let mut asked: Option<Instant> = None;
        let mut said = Instant::now();
        while duration.is_none_or(|duration| self.started.elapsed() < duration) {
            if signals.pending().next().is_some() {
                break;
            }
            if let Some(death) = programs.sensor.death().or_else(|| programs.collector.death()) {
                return Err(death);
            }
            self.show_alerts()?;
            if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                asked = Some(Instant::now());
                self.ask(&collector, Some(&sensor));
            }
            if self.screen.is_terminal() {
                self.draw()?;
            } else if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                let line = self.figures.line(self.started.elapsed(), self.alert_counts());
                self.screen.say(&line)?;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Ends the sensor, takes its last words from the collector, ends that, and sums up.
    fn end(&mut self, programs: Programs, signals: &mut Signals) -> Result<(), UpError> {
        let elapsed = self.started.elapsed();
        let Programs { mut sensor, mut collector, watchdog } = programs;
        self.screen.say("ending …      (Ctrl-C again kills)")?;
        self.end_program("sensor", &mut sensor, signals)?;
        // The last ledger arrives with the sensor's goodbye.
        let client = self.collector_client();
        let deadline = Instant::now() + Duration::from_secs(3);
        self.ask(&client, None);
        while self.figures.is_connected() && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
            self.ask(&client, None);
        }
        self.end_program("collector", &mut collector, signals)?;
        drop(watchdog);
        self.show_alerts()?;
        let summary = self.figures.summary(elapsed, self.alert_counts(), &self.place);
        self.screen.say(summary.trim_end())?;
        Ok(())
    }

    fn end_program(
        &mut self,
        name: &'static str,
        program: &mut Program,
        signals: &mut Signals,
    ) -> Result<(), UpError> {
        program.interrupt();
        let deadline = Instant::now() + END_WITHIN;
        let status = loop {
            if let Some(status) = program.ended() {
                break status;
            }
            if signals.pending().next().is_some() {
                program.kill();
                return Err(UpError::Killed);
            }
            if Instant::now() > deadline {
                program.kill();
                return Err(UpError::Stuck { program: name, log: self.folder.log(name) });
            }
            std::thread::sleep(GLANCE);
        };
        match program.death() {
            Some(death) if !status.success() => Err(death),
            _ => Ok(()),
        }
    }

    /// Asks the collector, and the sensor if given. An answer that does not come changes nothing.
    fn ask(&mut self, collector: &Client, sensor: Option<&Client>) {
        let metrics = sensor.and_then(|sensor| sensor.text("/metrics").ok());
        if let Ok(status) = collector.status() {
            let at = self.started.elapsed();
            self.figures.update(at, folder::SENSOR, &status, metrics.as_deref());
        }
    }

    fn show_alerts(&mut self) -> Result<(), UpError> {
        let mut lines = Vec::new();
        let alerts = &mut self.alerts;
        self.follower.poll(|line| lines.extend(alerts.take(line)))?;
        for line in lines.iter().take(ALERT_LINES) {
            self.screen.say(line)?;
        }
        if let Some(more) = lines.len().checked_sub(ALERT_LINES).filter(|more| *more > 0) {
            self.screen.say(&format!("… and {more} more alert events, see the event log"))?;
        }
        Ok(())
    }

    fn draw(&mut self) -> Result<(), UpError> {
        let lines = self.figures.block(self.started.elapsed(), self.alert_counts(), &self.place);
        Ok(self.screen.draw(&lines)?)
    }

    fn alert_counts(&self) -> (usize, u64) {
        (self.alerts.open(), self.alerts.closed())
    }
}
