//! `ringwatch-inject`: frames onto an interface, generated or out of a capture file.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use perf::frames;
use perf::inject::{Injected, Injector};

const EXAMPLES: &str = "\
Examples:
  A SYN scan of 1000 ports:
    ringwatch-inject -i g0 syn --target 10.99.0.2:1 --ports 1000 --count 1000 --rate 500
  A million UDP frames of 512 bytes from 4096 sources, as fast as it goes:
    ringwatch-inject -i g0 udp --target 10.99.0.2:53 --sources 4096 --size 512 --count 1000000
  With two VLAN tags, the outer one first:
    ringwatch-inject -i g0 udp --target 10.99.0.2:53 --vlan 88a8:10 --vlan 8100:20
  A capture file, ten times:
    ringwatch-inject -i g0 file scan.pcap --repeat 10

Needs CAP_NET_RAW. Frames go to a MAC address that is nobody's: taps see them, the IP stack drops them.
Exit codes: 0 done, 1 failed while running, 2 bad usage.";

/// Sends frames into an interface, for tests and for measurements.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Interface to send to
    #[arg(short, long)]
    interface: String,
    /// Frames a second; without it, as many as it can
    #[arg(long, global = true)]
    rate: Option<u64>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// TCP connection attempts
    Syn(Generated),
    /// UDP datagrams
    Udp(Generated),
    /// The frames of a pcap or pcapng file
    File {
        /// The capture file
        path: PathBuf,
        /// How often to send it
        #[arg(long, default_value_t = 1)]
        repeat: u64,
    },
}

#[derive(Debug, Args)]
struct Generated {
    /// Frames to send
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Bytes of a frame, tags not counted; at least its headers
    #[arg(long, default_value_t = 60)]
    size: u16,
    /// Address and port of the first sender
    #[arg(long, default_value = "198.18.0.1:40000")]
    source: SocketAddr,
    /// Address and port of the first receiver
    #[arg(long, default_value = "198.19.0.2:80")]
    target: SocketAddr,
    /// Senders' addresses, counted up from the first and taken in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    sources: u32,
    /// Receivers' ports, counted up from the first and taken in turn
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    ports: u32,
    /// VLAN tag as PROTOCOL:CONTROL, protocol in hexadecimal; repeat for more, the outer one first
    #[arg(long, value_parser = tag)]
    vlan: Vec<(u16, u16)>,
}

fn tag(text: &str) -> Result<(u16, u16), String> {
    let (protocol, control) = text.split_once(':').ok_or("expected PROTOCOL:CONTROL")?;
    let protocol = u16::from_str_radix(protocol, 16).map_err(|error| error.to_string())?;
    let control = control.parse().map_err(|error: std::num::ParseIntError| error.to_string())?;
    Ok((protocol, control))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringwatch-inject: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let sent = match &arguments.what {
        What::Syn(wanted) => wanted.send(true, arguments)?,
        What::Udp(wanted) => wanted.send(false, arguments)?,
        What::File { path, repeat } => send_file(path, *repeat, arguments)?,
    };
    let report = serde_json::json!({
        "frames": sent.frames,
        "seconds": sent.elapsed.as_secs_f64(),
        "frames_per_second": sent.rate(),
    });
    println!("{report}");
    Ok(())
}

fn open(interface: &str) -> Result<Injector, String> {
    Injector::open(interface).map_err(|error| format!("cannot open {interface}: {error}"))
}

fn send_file(path: &Path, repeat: u64, arguments: &Arguments) -> Result<Injected, Box<dyn Error>> {
    let named = |error: &dyn Error| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(|error| named(&error))?;
    let frames = perf::pcap::frames(&bytes).map_err(|error| named(&error))?;
    let repeated = (0..repeat).flat_map(|_| frames.iter());
    Ok(open(&arguments.interface)?.send_all(repeated, arguments.rate)?)
}

impl Generated {
    /// Sends the frames, which are made before: each differs from the one before in its source and
    /// port, and they repeat after at most 65 536.
    fn send(&self, is_syn: bool, arguments: &Arguments) -> Result<Injected, Box<dyn Error>> {
        if self.source.is_ipv4() != self.target.is_ipv4() {
            return Err(
                format!("{} and {} are of different kinds", self.source, self.target).into()
            );
        }
        let different = u64::from(self.sources).max(u64::from(self.ports)).min(self.count.max(1));
        let made: Vec<_> = (0..different).map(|number| self.frame(number, is_syn)).collect();
        let count = usize::try_from(self.count)?;
        let mut injector = open(&arguments.interface)?;
        Ok(injector.send_all(made.iter().cycle().take(count), arguments.rate)?)
    }

    fn frame(&self, number: u64, is_syn: bool) -> Vec<u8> {
        let mut source = self.source;
        source.set_ip(plus(source, number % u64::from(self.sources)));
        let mut target = self.target;
        let port = u64::from(target.port()) + number % u64::from(self.ports);
        target.set_port((port & 0xffff) as u16);
        let headers = 14 + if source.is_ipv4() { 20 } else { 40 } + if is_syn { 20 } else { 8 };
        let payload = vec![b'x'; usize::from(self.size).saturating_sub(headers)];
        let frame = if is_syn {
            frames::tcp(source, target, frames::SYN, &payload)
        } else {
            frames::udp(source, target, &payload)
        };
        frames::tagged(&frame, &self.vlan)
    }
}

/// The address `number` behind that of `source`.
fn plus(source: SocketAddr, number: u64) -> std::net::IpAddr {
    match source {
        SocketAddr::V4(source) => {
            std::net::Ipv4Addr::from_bits(source.ip().to_bits().wrapping_add(number as u32)).into()
        }
        SocketAddr::V6(source) => {
            let bits = source.ip().to_bits().wrapping_add(u128::from(number));
            std::net::Ipv6Addr::from_bits(bits).into()
        }
    }
}
