//! `ringwatch-load`: frames onto an interface, generated or out of a capture file, or into a file.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use perf::blast;
use perf::flood::{self, Flood};
use perf::inject::{Injected, Injector, Limit};
use perf::pcap::{self, CaptureFile, Format};

const EXAMPLES: &str = "\
Examples:
  A flood of SYN from any address and port to any port, as if s0 had received it:
    ringwatch-load blast -i s0 --count 3e7 --sources 2**32 --source-ports 2**16 --target-ports 2**16
  Exactly a million flows of UDP, 512 bytes, 200 000 frames a second for a minute, from CPU 0:
    ringwatch-load blast -i s0 --kind udp --size 512 --sources 1024 --source-ports 1024 \\
      --order sequential --flows 1000000 --rate 200000 --seconds 60 --cpu 0
  A SYN scan of 1000 ports, out of g0 through a raw socket:
    ringwatch-load blast -i g0 --raw --target 10.99.0.2 --target-port 1 --target-ports 1024 \\
      --order sequential --flows 1000 --count 1000 --rate 500
  A capture file, ten times as fast as it was, three times over:
    ringwatch-load replay -i g0 scan.pcapng --speed 10 --loop 3
  A capture file of a gigabyte:
    ringwatch-load pcap --bytes 1e9 --kind udp --size 512 --sources 2**16 big.pcap

Frames go to a MAC address that is nobody's: taps see them, the IP stack drops them.
Each ends with one line of JSON on standard output.
Exit codes: 0 done, 1 failed while running, 2 bad usage.";

/// Makes load for tests and for measurements.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Frames as if the interface had received them, millions a second; with --raw out of it
    Blast(BlastArguments),
    /// The frames of a pcap or pcapng file out of an interface, at a multiple of their speed
    Replay(Replay),
    /// A capture file of generated frames
    Pcap(Pcap),
}

#[derive(Debug, Args)]
struct BlastArguments {
    /// Interface that receives the frames; with --raw, that sends them
    #[arg(short, long)]
    interface: String,
    /// Frames to send
    #[arg(long, value_name = "N", value_parser = flood::number, conflicts_with = "seconds")]
    count: Option<u64>,
    /// Seconds to go on for; without it and --count, one frame is sent
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Frames a second; without it, as many as it can
    #[arg(long, value_name = "N", value_parser = flood::number)]
    rate: Option<u64>,
    /// CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// Send through a raw socket: slower, needs CAP_NET_RAW only, and checksums are right
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    flood: Flood,
}

#[derive(Debug, Args)]
struct Replay {
    /// The capture file
    path: PathBuf,
    /// Interface that sends the frames
    #[arg(short, long)]
    interface: String,
    /// How many times as fast as they were captured; `max`: as fast as it goes
    #[arg(long, default_value = "1", value_parser = speed)]
    speed: Speed,
    /// How often to play the file
    #[arg(long = "loop", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..))]
    times: u64,
}

#[derive(Debug, Args)]
struct Pcap {
    /// The file to write
    path: PathBuf,
    /// Frames to write
    #[arg(long, value_name = "N", value_parser = flood::number,
          required_unless_present = "bytes", conflicts_with = "bytes")]
    count: Option<u64>,
    /// As many frames as fit into so many bytes
    #[arg(long, value_name = "BYTES", value_parser = flood::number)]
    bytes: Option<u64>,
    /// Frames a second, by their time stamps
    #[arg(long, value_name = "N", value_parser = flood::number, default_value = "1e6")]
    rate: u64,
    #[command(flatten)]
    flood: Flood,
}

#[derive(Clone, Copy, Debug)]
enum Speed {
    Times(f64),
    Max,
}

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.parse::<f64>() {
        Ok(times) if times.is_normal() && times > 0.0 => Ok(Speed::Times(times)),
        _ => Err("expected a number above 0, or max".to_owned()),
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Blast(arguments) => send(&arguments),
        What::Replay(arguments) => replay(&arguments),
        What::Pcap(arguments) => pcap(&arguments),
    };
    match done {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ringwatch-load: {error}");
            ExitCode::FAILURE
        }
    }
}

type Report = Result<serde_json::Value, Box<dyn Error>>;

fn send(arguments: &BlastArguments) -> Report {
    let BlastArguments { interface, count, seconds, rate, cpu, raw, flood } = arguments;
    flood.check()?;
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        let pinned = set.set(*cpu).and_then(|()| sched_setaffinity(Pid::this(), &set));
        pinned.map_err(|error| format!("cannot run on CPU {cpu}: {error}"))?;
    }
    let limit = match (count, seconds) {
        (Some(count), _) => Limit::Frames(*count),
        (None, Some(seconds)) => Limit::Time(Duration::from_secs(*seconds)),
        (None, None) => Limit::Frames(1),
    };
    if *raw {
        let begin = Instant::now();
        let numbers = flood.numbers().zip(0..);
        let wanted = numbers.take_while(|(_, done)| limit.left(*done, begin).is_some());
        let frames = wanted.map(|(number, _)| flood.frame(number));
        return Ok(sent(&open(interface)?.send_all(frames, *rate)?));
    }
    let named = |error: std::io::Error| {
        format!("cannot make frames on {interface}: {error}; --raw needs less of the kernel")
    };
    Ok(sent(&blast::run(flood, interface, limit, *rate).map_err(named)?))
}

fn open(interface: &str) -> Result<Injector, String> {
    Injector::open(interface).map_err(|error| format!("cannot open {interface}: {error}"))
}

fn sent(sent: &Injected) -> serde_json::Value {
    serde_json::json!({
        "frames": sent.frames,
        "refused": sent.refused,
        "seconds": sent.elapsed.as_secs_f64(),
        "mpps": sent.rate() / 1e6,
    })
}

fn replay(arguments: &Replay) -> Report {
    let Replay { path, interface, speed, times } = arguments;
    let named = |error: &dyn Error| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(|error| named(&error))?;
    let packets = pcap::packets(&bytes).map_err(|error| named(&error))?;
    let begin = packets.first().map_or(0, |packet| packet.time);
    let end = packets.iter().map(|packet| packet.time).max().unwrap_or(0);
    // As long as the file is, and a frame's mean distance more.
    let span = end.saturating_sub(begin);
    let period = span + span / (packets.len() as u64).max(2).saturating_sub(1);
    let due = |round: u64, time: u64| match speed {
        Speed::Max => Duration::ZERO,
        Speed::Times(times) => {
            let nanoseconds = (round * period + time.saturating_sub(begin)) as f64 / times;
            Duration::from_secs_f64(nanoseconds / 1e9)
        }
    };
    let rounds = (0..*times).flat_map(|round| packets.iter().map(move |packet| (round, packet)));
    let timed = rounds.map(|(round, packet)| (due(round, packet.time), packet.frame));
    let done = open(interface)?.send_timed(timed)?;
    let mut report = sent(&done);
    let last = times.checked_sub(1).map_or(Duration::ZERO, |round| due(round, end));
    let cut = packets.iter().filter(|packet| (packet.frame.len() as u64) < packet.wire_len.into());
    report["cut"] = (cut.count() as u64 * times).into();
    report["late_seconds"] = done.elapsed.saturating_sub(last).as_secs_f64().into();
    if matches!(speed, Speed::Max) {
        report["late_seconds"] = 0.into();
    }
    Ok(report)
}

/// Bytes that are collected before they are written.
const CHUNK: usize = 1 << 20;
/// 2025-01-01: the time of the first frame.
const FIRST_FRAME: u64 = 1_735_689_600_000_000_000;

fn pcap(arguments: &Pcap) -> Report {
    let Pcap { path, count, bytes, rate, flood } = arguments;
    flood.check()?;
    let begin = Instant::now();
    let frame_bytes = flood.frame(0).len() as u64;
    let (header, record) = pcap_sizes();
    let fitting = |bytes: u64| bytes.saturating_sub(header) / (record + frame_bytes);
    let count = count.or(bytes.map(fitting)).unwrap_or(0);
    write_frames(path, flood, count, *rate)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::json!({
        "frames": count,
        "bytes": header + count * (record + frame_bytes),
        "seconds": begin.elapsed().as_secs_f64(),
    }))
}

fn write_frames(path: &Path, flood: &Flood, count: u64, rate: u64) -> std::io::Result<()> {
    let mut writer = BufWriter::new(File::create(path)?);
    let mut file = CaptureFile::new(Format::USUAL);
    for (number, done) in flood.numbers().zip(0..count) {
        let since = u128::from(done) * 1_000_000_000 / u128::from(rate.max(1));
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        file.add(FIRST_FRAME.saturating_add(since), &flood.frame(number));
        if file.bytes().len() >= CHUNK {
            file.write_to(&mut writer)?;
        }
    }
    file.write_to(&mut writer)?;
    writer.flush()
}

/// Bytes of the file's header and of a frame's.
fn pcap_sizes() -> (u64, u64) {
    let empty = CaptureFile::new(Format::USUAL);
    let mut one = empty.clone();
    one.add(0, &[]);
    let header = empty.bytes().len() as u64;
    (header, one.bytes().len() as u64 - header)
}
