//! `ringwatch frames`: stored frames of a collector as a pcapng file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use crate::access::Collector;
use crate::api::ApiError;
use crate::selection::Selection;
use crate::text::{harmless, scaled};

/// Longest that an answer may take as a whole. It is made while it is sent, however much it is.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Time between two looks at how much has come.
const PROGRESS: Duration = Duration::from_secs(1);
/// What is read at once.
const PIECE: usize = 256 << 10;

/// Which frames, and where to.
#[derive(Args, Debug)]
#[command(
    after_help = "Frames come in the order of time, of all sensors; each interface is named SENSOR/INTERFACE. A collector asks for
a token of an analyst, also on this machine (ringwatch token create), and records who looked at what.

Examples:
  ringwatch frames --from 15m --host 192.0.2.7 -w scan.pcapng
  ringwatch frames --sensor web-1 --from '2026-11-21 10:00' --to '2026-11-21 10:05' -w - | tshark -r -
  ringwatch frames --from 1h --filter 'tcp port 22 and net 10.0.0.0/8' --limit 1000 -w ssh.pcapng"
)]
pub struct Frames {
    #[command(flatten)]
    collector: Collector,
    #[command(flatten)]
    selection: Selection,
    /// Those that pass this tcpdump expression
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// The first so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<NonZeroU64>,
    /// The file to write; - is standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
}

/// Why there is no file, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// The collector.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The answer broke off.
    #[error("the collector's answer broke off after {bytes} bytes; what came is in {}", path.display())]
    BrokeOff {
        /// How much came.
        bytes: u64,
        /// Where it is.
        path: PathBuf,
        /// What the HTTP client says.
        source: io::Error,
    },
    /// Some of them cannot be read on the collector's disk.
    #[error("{remark}; what came is in {}", path.display())]
    Incomplete {
        /// What the collector says is missing.
        remark: String,
        /// Where the others are.
        path: PathBuf,
    },
    /// The file.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Frames {
    /// Asks, and writes what comes. The file is made when there is something to write.
    ///
    /// # Errors
    /// See [`FramesError`].
    pub fn run(&self) -> Result<(), FramesError> {
        let (frames, expired) = self.collector.client(PATIENCE)?.frames(&self.parameters())?;
        match frames {
            None => eprintln!("no frames found"),
            Some(frames) => {
                let bytes = self.save(frames)?;
                eprintln!("\r{} written   ", scaled(bytes as f64, "B"));
            }
        }
        if let Some(expired) = expired {
            eprintln!("frames that came before {} were deleted", harmless(&expired, 40));
        }
        Ok(())
    }

    fn save(&self, mut frames: impl Read) -> Result<u64, FramesError> {
        let path = &self.write;
        let unwritable = |source| FramesError::Unwritable { path: path.clone(), source };
        let mut file: Box<dyn Write> = match path == Path::new("-") {
            true => Box::new(io::stdout().lock()),
            false => Box::new(File::create(path).map_err(unwritable)?),
        };
        let mut piece = vec![0; PIECE];
        let (mut bytes, mut tail) = (0, Vec::new());
        let mut shown = Instant::now();
        loop {
            let length = match frames.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(source) => {
                    file.flush().map_err(unwritable)?;
                    let path = path.clone();
                    return Err(match remark(&tail) {
                        Some(remark) => FramesError::Incomplete { remark, path },
                        None => FramesError::BrokeOff { bytes, path, source },
                    });
                }
            };
            file.write_all(&piece[..length]).map_err(unwritable)?;
            tail.extend_from_slice(&piece[..length]);
            tail.drain(..tail.len().saturating_sub(TAIL));
            bytes += length as u64;
            if shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                eprint!("\r{}", scaled(bytes as f64, "B"));
            }
        }
        file.flush().map_err(unwritable)?;
        Ok(bytes)
    }

    fn parameters(&self) -> Vec<(&'static str, String)> {
        let own =
            [("filter", self.filter.clone()), ("limit", self.limit.map(|limit| limit.to_string()))];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        self.selection.parameters().into_iter().chain(own).collect()
    }
}

/// Bytes at the end of an answer that are looked at for a remark.
const TAIL: usize = 4096;

/// What a collector says behind the frames of an answer that lacks some: the comment of the last block of the file,
/// which is one of statistics (type 5, with an interface and a time) with this option alone.
///
/// Source: PCAP Next Generation (pcapng) Capture File Format, draft-ietf-opsawg-pcapng, section 4.6.
fn remark(tail: &[u8]) -> Option<String> {
    const STATISTICS: u32 = 5;
    const COMMENT: u16 = 1;
    let number = |bytes: &[u8]| Some(u32::from_le_bytes(*bytes.first_chunk()?));
    let length = number(tail.get(tail.len().checked_sub(4)?..)?)? as usize;
    let block = tail.get(tail.len().checked_sub(length)?..)?;
    if number(block)? != STATISTICS || number(block.get(4..)?)? as usize != length {
        return None;
    }
    let (head, value) = block.get(20..)?.split_first_chunk::<4>()?;
    let [code, length] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_le_bytes);
    let text = std::str::from_utf8(value.get(..usize::from(length))?).ok()?;
    (code == COMMENT).then(|| harmless(text, 1000))
}
