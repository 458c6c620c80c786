//! `ringwatch`: arguments to a command, its result to an exit code.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use cli::access::Collector;
use cli::api::ApiError;
use cli::frames::{self, FramesError};
use cli::pki::{self, Existing, Host, Name, PkiError, RenewedKey, Which};
use cli::search::{self, SearchError};
use cli::text::counted;
use cli::token::{self, TokenFileError};
use cli::{status, up};
use trust::Role;
use trust::tokens::Access;
use wire::text::error_chain;

/// Drives Ringwatch: certificates, state, and the whole appliance on one machine.
#[derive(Parser)]
#[command(name = "ringwatch", version, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  ringwatch up                                   see this machine's traffic, Ctrl-C ends
  ringwatch pki init /etc/ringwatch/pki          make the authority of an installation
  ringwatch status                               ask the collector of this machine
  ringwatch alerts --from 2h                     what was found in the last two hours

Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration,
            3 missing privilege, 4 missing dependency";

#[derive(Subcommand)]
enum Command {
    /// Run a collector and a sensor on this machine and watch what they see
    Up(up::Options),
    /// Make, renew, revoke and list certificates
    #[command(subcommand)]
    Pki(Pki),
    /// Make, list and revoke tokens of a collector's HTTP interface
    #[command(subcommand)]
    Token(Token),
    /// Show a collector and its sensors
    Status(StatusArguments),
    /// Search the stored alerts of a collector
    Alerts(search::Alerts),
    /// Search the stored flows of a collector
    Flows(search::Flows),
    /// Search the stored DNS records of a collector
    Dns(search::Dns),
    /// Save stored frames of a collector as a pcapng file
    Frames(frames::Frames),
    /// Ends the processes named on standard input when it closes (`up` starts this)
    #[command(hide = true)]
    Watchdog,
}

#[derive(Subcommand)]
enum Pki {
    /// Make the authority of a new installation
    ///
    /// Writes DIR/ca.pem and DIR/ca.key.pem (ECDSA P-256, 10 years), and an empty revocation list,
    /// DIR/crl.pem. The key signs and is needed nowhere else: keep it off the sensors and the
    /// collector.
    #[command(after_help = "Example:\n  ringwatch pki init /etc/ringwatch/pki")]
    Init {
        /// Folder of the certificates; created if missing
        dir: PathBuf,
        /// Replace an authority that is there; everything it issued stops working
        #[arg(long)]
        force: bool,
    },
    /// Issue the certificate of one sensor or collector
    ///
    /// Writes DIR/NAME.pem and DIR/NAME.key.pem (ECDSA P-256). Copy both, and ca.pem, to that host.
    #[command(after_help = "Examples:
  ringwatch pki issue /etc/ringwatch/pki sensor web-7
  ringwatch pki issue /etc/ringwatch/pki collector ids --host ids.example --host 192.0.2.7")]
    Issue {
        /// Folder with the authority
        dir: PathBuf,
        /// What the certificate may act as
        #[arg(value_parser = PossibleValuesParser::new(["sensor", "collector"])
            .try_map(|role| role.parse::<Role>()))]
        role: Role,
        /// 1 to 63 of a-z 0-9 . - _, a letter or digit first
        name: Name,
        /// Collector only: a DNS name or address that sensors dial (repeatable; localhost,
        /// 127.0.0.1 and ::1 are always in)
        #[arg(long = "host", value_name = "NAME_OR_IP")]
        hosts: Vec<Host>,
        #[command(flatten)]
        life: LeafLife,
        /// Replace the certificate of that name
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate anew: same name, role and hosts, new key
    ///
    /// Replaces DIR/NAME.pem and DIR/NAME.key.pem. Copy both to that host; its program reads them
    /// without a restart. The certificate before is good until its end: revoke it with
    /// `ringwatch pki revoke DIR NAME --earlier` if its key is lost.
    #[command(after_help = "Example:\n  ringwatch pki renew /etc/ringwatch/pki web-7")]
    Renew {
        /// Folder with the authority
        dir: PathBuf,
        /// Name of the certificate
        name: Name,
        #[command(flatten)]
        life: LeafLife,
        /// Keep the private key
        #[arg(long)]
        keep_key: bool,
    },
    /// Revoke all certificates that were ever issued under a name
    ///
    /// Writes DIR/crl.pem. Copy it to every collector (for sensors) or sensor (for collectors), to the
    /// file that its configuration names: it is read without a restart, and live sessions of what is
    /// revoked end within seconds. The name can be issued again.
    #[command(after_help = "Example:\n  ringwatch pki revoke /etc/ringwatch/pki web-7")]
    Revoke {
        /// Folder with the authority
        dir: PathBuf,
        /// Name of the certificates
        name: Name,
        /// Leave the one that lies in DIR
        #[arg(long)]
        earlier: bool,
        #[command(flatten)]
        life: CrlLife,
    },
    /// Sign the revocation list anew, before the next one is due
    ///
    /// Writes DIR/crl.pem. Copy it to every host whose configuration names one.
    #[command(after_help = "Example:\n  ringwatch pki crl /etc/ringwatch/pki")]
    Crl {
        /// Folder with the authority
        dir: PathBuf,
        #[command(flatten)]
        life: CrlLife,
    },
    /// List the certificates of a folder, with role, serial number, expiry and hosts
    #[command(after_help = "Example:\n  ringwatch pki list /etc/ringwatch/pki")]
    List {
        /// Folder with the authority
        dir: PathBuf,
    },
}

#[derive(Args)]
struct LeafLife {
    /// Days for which the certificate is valid, at most until that of the authority ends
    #[arg(long, default_value_t = pki::LEAF_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

#[derive(Args)]
struct CrlLife {
    /// Days until the next list is due
    #[arg(long, default_value_t = pki::CRL_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

#[derive(Subcommand)]
enum Token {
    /// Make a token, add its hash to FILE, and print it: it stands nowhere else
    #[command(after_help = "Examples:
  ringwatch token create /etc/ringwatch/tokens board viewer > board.token
  ringwatch token create /etc/ringwatch/tokens anna analyst --days 90")]
    Create {
        /// File of tokens, `tokens` of the section `api` in collector.toml; made if missing
        file: PathBuf,
        /// Whose it is: 1 to 63 of a-z 0-9 . - _, a letter or digit first
        name: String,
        /// viewer: status and events; analyst: contents of frames as well, each look recorded;
        /// admin: everything
        #[arg(value_parser = PossibleValuesParser::new(Access::WORDS)
            .try_map(|access| access.parse::<Access>()))]
        access: Access,
        /// Days for which it is good. Default: until it is revoked
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: Option<u32>,
    },
    /// List the tokens of FILE
    List {
        /// File of tokens
        file: PathBuf,
    },
    /// Take a token out of FILE; a running collector refuses it within a second
    Revoke {
        /// File of tokens
        file: PathBuf,
        /// Its name
        name: String,
    },
}

#[derive(Args)]
#[command(after_help = "Examples:
  ringwatch status
  ringwatch status --json
  ringwatch status --collector https://ids.example:8480 --ca ca.pem --token-file board.token")]
struct StatusArguments {
    #[command(flatten)]
    collector: Collector,
    /// Print the collector's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Why a command failed. Decides the exit code.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Token(#[from] TokenFileError),
    #[error(transparent)]
    Status(#[from] ApiError),
    #[error(transparent)]
    Search(ApiError),
    #[error(transparent)]
    Frames(FramesError),
    #[error(transparent)]
    Up(#[from] up::UpError),
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl From<FramesError> for CommandError {
    fn from(error: FramesError) -> Self {
        match error {
            FramesError::Api(error) => Self::Search(error),
            FramesError::Unwritable { path, source } if path == Path::new("-") => {
                Self::Output(source)
            }
            error => Self::Frames(error),
        }
    }
}

impl From<SearchError> for CommandError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Api(error) => Self::Search(error),
            SearchError::Output(error) => Self::Output(error),
        }
    }
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Pki(PkiError::HostOfSensor)
            | Self::Search(ApiError::Refused { status: 400, .. }) => 2,
            Self::Up(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// What to check, where the error alone does not tell.
    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Status(ApiError::Refused { status: 401 | 403, .. })
            | Self::Search(ApiError::Refused { status: 401 | 403, .. }) => Some(
                "`ringwatch token create FILE NAME viewer` on the collector's host makes a token; \
                 show it with --token-file FILE or in RINGWATCH_TOKEN.",
            ),
            Self::Status(ApiError::Request { .. }) | Self::Search(ApiError::Request { .. }) => {
                Some(
                    "Is the collector running (systemctl status ringwatch-collector)? Does it listen \
                 there ([listen] api in collector.toml; ss -ltn)? --collector URL asks another.",
                )
            }
            _ => None,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough (`ringwatch status | head`).
        Err(CommandError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // A closed standard error leaves nobody to tell.
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "ringwatch: {}", error_chain(&error));
            let _ = error.advice().map(|advice| writeln!(stderr, "{advice}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Up(options) => Ok(up::run(options)?),
        Command::Pki(command) => run_pki(command),
        Command::Token(command) => run_token(command),
        Command::Status(arguments) => run_status(&arguments),
        Command::Alerts(arguments) => Ok(arguments.run()?),
        Command::Flows(arguments) => Ok(arguments.run()?),
        Command::Dns(arguments) => Ok(arguments.run()?),
        Command::Frames(arguments) => Ok(arguments.run()?),
        Command::Watchdog => {
            up::watchdog();
            Ok(())
        }
    }
}

fn run_pki(command: Pki) -> Result<(), CommandError> {
    let output = match command {
        Pki::Init { dir, force } => {
            let made = pki::init(&dir, existing(force))?;
            format!(
                "authority   {}\nprivate key {}\nNext: ringwatch pki issue {} collector NAME\n",
                made.certificate.display(),
                made.key.display(),
                dir.display()
            )
        }
        Pki::Issue { dir, role, name, hosts, life, force } => {
            let made = pki::issue(&dir, role, &name, &hosts, life.days, existing(force))?;
            format!(
                "certificate {}\nprivate key {}\nCopy both, and {}, to {name}.\n",
                made.certificate.display(),
                made.key.display(),
                dir.join("ca.pem").display()
            )
        }
        Pki::Renew { dir, name, life, keep_key } => {
            let key = if keep_key { RenewedKey::Same } else { RenewedKey::New };
            let made = pki::renew(&dir, &name, key, life.days)?;
            format!(
                "certificate {}\nprivate key {}\nCopy both to {name}; it takes them without a \
                 restart.\n",
                made.certificate.display(),
                made.key.display(),
            )
        }
        Pki::Revoke { dir, name, earlier, life } => {
            let which = if earlier { Which::Earlier } else { Which::All };
            let (list, added) = pki::revoke(&dir, &name, which, life.days)?;
            format!(
                "{} newly revoked\n{}",
                counted(added as u64, "certificate"),
                crl_made(&dir, &list)
            )
        }
        Pki::Crl { dir, life } => crl_made(&dir, &pki::sign_crl(&dir, life.days)?),
        Pki::List { dir } => pki::render(&pki::list(&dir)?, jiff::Timestamp::now()),
    };
    print(&output)
}

fn crl_made(dir: &Path, list: &pki::Revoked) -> String {
    format!(
        "revocation list {} (number {}, {} revoked, next due {})\nCopy it to the collectors and \
         sensors.\n",
        pki::crl_file(dir).display(),
        list.number,
        list.serials.len(),
        list.due.strftime("%Y-%m-%d"),
    )
}

fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Keep }
}

fn run_token(command: Token) -> Result<(), CommandError> {
    let output = match command {
        Token::Create { file, name, access, days } => {
            let secret = token::create(&file, &name, access, days)?;
            // Not on standard output, which is the token alone, to be kept in a file.
            let mut stderr = std::io::stderr();
            let _ =
                writeln!(stderr, "{access} {name}; shown once, {} has its hash", file.display());
            format!("{secret}\n")
        }
        Token::List { file } => token::list(&file, jiff::Timestamp::now())?,
        Token::Revoke { file, name } => {
            token::revoke(&file, &name)?;
            format!("{name} is revoked\n")
        }
    };
    print(&output)
}

fn run_status(arguments: &StatusArguments) -> Result<(), CommandError> {
    let client = arguments.collector.client(Duration::from_secs(5))?;
    if arguments.json {
        // As the collector gave it, fields that this version does not know included.
        let answer = client.text("/api/v1/status")?;
        return print(&format!("{}\n", answer.trim_end()));
    }
    print(&status::render(&client.status()?))
}

fn print(output: &str) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(output.as_bytes())?;
    Ok(stdout.flush()?)
}
