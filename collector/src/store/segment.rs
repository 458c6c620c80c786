//! One segment: a pcapng file of the frames of one [`Group`], hidden while it grows, renamed when it is
//! sealed.
//!
//! ```text
//!   frames/.20251121T101500.000001Z.pcapng.part ── full, old or stop ──▶ statistics ──▶ fsync ──▶
//!   frames/20251121T101500.000001Z.pcapng
//! ```
//!
//! Writing is in two steps, so that a failed write can be tried again: [`Segment::stage`] numbers
//! the interfaces, [`Segment::write`] puts bytes at a known place.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use wire::message::Interface;
use wire::units::UnixNanos;

use super::index::{Index, Walk};
use super::pcapng::{self, KernelStatistics, Statistics};
use crate::status::Sensor;

/// What the name of a sealed segment ends with.
pub const SUFFIX: &str = ".pcapng";
/// What the name of an open segment ends with; it begins with a point.
pub const OPEN_SUFFIX: &str = ".pcapng.part";
/// What follows the name of a segment in that of the file with what a repair cut off.
pub const TORN_SUFFIX: &str = ".torn";
/// How much of a segment is read at once in a repair.
const REPAIR_BUFFER: usize = 256 << 10;
/// The link type of interfaces that were never declared.
const LINKTYPE_ETHERNET: u16 = 1;
const LINKTYPE_RAW: u16 = 101;
/// Owner may write, group may read: frames are nobody else's business.
const MODE: u32 = 0o640;

/// Frames that share segments: those of one link type, because libpcap reads no file that has two.
///
/// Frames of type RAW share one only with those of the same interface: libpcap (1.10.3) compares the
/// number that the first interface has in memory, 12 for RAW, with that of each further one in the
/// file, 101, and refuses all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    linktype: u16,
    /// Number of the sensor, and the interface, where they matter.
    interface: Option<(usize, u32)>,
}

impl Group {
    /// The group of the frames of a sensor's interface.
    #[must_use]
    pub fn of(sensor: &Sensor, interface: &Interface) -> Self {
        let Interface { id, linktype, .. } = *interface;
        let interface = (linktype == LINKTYPE_RAW).then(|| (sensor.number(), id));
        Self { linktype, interface }
    }
}

/// How many groups the frames of these interfaces of one sensor would be.
#[must_use]
pub fn count_groups(interfaces: &[Interface]) -> usize {
    let types = interfaces.iter().map(|interface| interface.linktype);
    let raw = types.clone().filter(|linktype| *linktype == LINKTYPE_RAW).count();
    let others: BTreeSet<u16> = types.filter(|linktype| *linktype != LINKTYPE_RAW).collect();
    raw + others.len()
}

/// The interface with this number, of some that are in the order of their numbers.
#[must_use]
pub fn interface(interfaces: &[Interface], id: u32) -> Option<&Interface> {
    let at = interfaces.binary_search_by_key(&id, |interface| interface.id).ok()?;
    interfaces.get(at)
}

/// At which rate frames were exported; it changes while a sensor's collector is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// They are those of one conversation in so many.
    pub one_in: u32,
    /// So many bytes of each were kept, at most.
    pub snaplen: u32,
}

impl Rate {
    /// What a reader of such frames has to know, to scale; empty if they are all there is.
    fn description(self) -> String {
        let sampled = (self.one_in > 1).then(|| format!("1 conversation in {}", self.one_in));
        let cut = (self.snaplen < WHOLE).then(|| format!("{} bytes of each frame", self.snaplen));
        sampled.into_iter().chain(cut).collect::<Vec<_>>().join(", ")
    }
}

/// Frames of this length were not cut.
const WHOLE: u32 = 65_535;

/// An open segment.
pub struct Segment {
    file: File,
    path: PathBuf,
    /// Bytes that are surely written; whatever lies behind is overwritten.
    length: u64,
    started: UnixNanos,
    opened: Instant,
    interfaces: Vec<SegmentInterface>,
    /// Where among them the latest is of a sensor's number, an interface's number and a rate: there may be thousands.
    numbers: HashMap<(usize, u32, Rate), usize>,
    /// Header and interface blocks that go in front of the next frames.
    head: Vec<u8>,
}

/// An interface as this segment knows it; its number is its position.
struct SegmentInterface {
    sensor: Arc<Sensor>,
    interface: Interface,
    /// Frames of it in this segment.
    delivered: u64,
    /// What the kernel had counted when the interface appeared here.
    base: Option<KernelStatistics>,
}

impl Segment {
    /// Creates an empty segment in `folder`, named after `now`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(folder: &Path, now: UnixNanos, opened: Instant) -> io::Result<Self> {
        let mut micros = now.0 / 1000;
        loop {
            let path = folder.join(format!(".{}{OPEN_SUFFIX}", stem(micros)));
            let mut options = OpenOptions::new();
            // Read, too, for its index.
            let created = options.read(true).write(true).create_new(true).mode(MODE).open(&path);
            match created {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => micros += 1,
                Ok(_) if sealed_path(&path).exists() => {
                    std::fs::remove_file(&path)?;
                    micros += 1;
                }
                created => return Ok(Self::new(created?, path, now, opened)),
            }
        }
    }

    fn new(file: File, path: PathBuf, started: UnixNanos, opened: Instant) -> Self {
        let mut head = Vec::new();
        pcapng::push_section_header(&mut head);
        let (interfaces, numbers) = (Vec::new(), HashMap::new());
        Self { file, path, length: 0, started, opened, interfaces, numbers, head }
    }

    /// Gives the packets in `blocks` (see [`pcapng::push_frames`]), all of this segment's group,
    /// its interface numbers, and prepares an interface block for each that is new here. `interfaces`
    /// are in the order of their numbers.
    /// Frames that were exported at another rate have an interface of their own, which says so.
    pub fn stage(
        &mut self,
        sensor: &Arc<Sensor>,
        interfaces: &[Interface],
        rate: Rate,
        blocks: &mut [u8],
    ) {
        // Nearly all frames of a batch are of one interface.
        let mut last = None;
        pcapng::renumber_interfaces(blocks, |id| {
            let number = match last {
                Some((known, number)) if known == id => number,
                _ => self.number(sensor, interfaces, (id, rate)),
            };
            last = Some((id, number));
            if let Some(interface) = self.interfaces.get_mut(number) {
                interface.delivered += 1;
            }
            // There are fewer interfaces than frames in a segment of at most 16 GiB.
            number as u32
        });
    }

    /// Position of an interface in this segment; new ones are added.
    fn number(
        &mut self,
        sensor: &Arc<Sensor>,
        interfaces: &[Interface],
        (id, rate): (u32, Rate),
    ) -> usize {
        let interface = interface(interfaces, id);
        let key = (sensor.number(), id, rate);
        let known = self.numbers.get(&key).copied();
        // It may have been declared anew, as another.
        let is_same = |number: usize| interface == Some(&self.interfaces[number].interface);
        if let Some(number) = known.filter(|number| is_same(*number)) {
            return number;
        }
        // The session lets no frame of an undeclared interface through.
        let interface = interface.cloned().unwrap_or_else(|| undeclared(id));
        let name = format!("{}/{}", sensor.name(), interface.name);
        let description = rate.description();
        pcapng::push_interface(&mut self.head, &name, interface.linktype, &description);
        let base = sensor.kernel_statistics(&interface.name);
        let sensor = Arc::clone(sensor);
        self.interfaces.push(SegmentInterface { sensor, interface, delivered: 0, base });
        let number = self.interfaces.len() - 1;
        self.numbers.insert(key, number);
        number
    }

    /// Writes staged blocks. After an error, the same call may be made again.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        if !self.head.is_empty() {
            self.file.write_all_at(&self.head, self.length)?;
            self.length += self.head.len() as u64;
            self.head.clear();
        }
        self.file.write_all_at(blocks, self.length)?;
        self.length += blocks.len() as u64;
        Ok(())
    }

    /// Writes the statistics. After an error, the same call may be made again. The segment then is
    /// complete and can be given to [`Segment::seal`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(&mut self, now: UnixNanos) -> io::Result<()> {
        let mut blocks = Vec::new();
        for (number, known) in self.interfaces.iter().enumerate() {
            let SegmentInterface { sensor, interface, delivered, base, .. } = known;
            let kernel = base.zip(sensor.kernel_statistics(&interface.name)).map(grown);
            let (start, end) = (self.started, now);
            let statistics = Statistics { start, end, kernel, delivered: *delivered };
            pcapng::push_statistics(&mut blocks, number as u32, &statistics);
        }
        self.write(&blocks)
    }

    /// Gives a finished segment its index, brings it to the disk and gives it its lasting name.
    ///
    /// # Errors
    /// What the file system says; the file then stays hidden, and is repaired at the next start.
    pub fn seal(self) -> io::Result<PathBuf> {
        self.file.set_len(self.length)?;
        seal_file(&self.file, &self.path)
    }

    /// The name that it gets when it is sealed.
    #[must_use]
    pub fn sealed_path(&self) -> PathBuf {
        sealed_path(&self.path)
    }

    /// Bytes written.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Interfaces that it describes.
    #[must_use]
    pub const fn interfaces(&self) -> usize {
        self.interfaces.len()
    }

    /// When it was created.
    #[must_use]
    pub const fn opened(&self) -> Instant {
        self.opened
    }

    /// The hidden file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What became of a left-over open segment.
#[derive(Debug)]
pub enum Repair {
    /// Cut at its last whole block and sealed.
    Sealed {
        /// Its lasting name.
        path: PathBuf,
        /// Bytes that were no whole block; kept beside it, in a file with [`TORN_SUFFIX`].
        cut: u64,
        /// Why they could not be kept.
        lost: Option<io::Error>,
    },
    /// It had no whole block, and was renamed.
    Renamed {
        /// Its new name, with [`TORN_SUFFIX`].
        path: PathBuf,
    },
    /// It stays as it is, and its frames are not found. The next start tries again.
    Failed {
        /// The hidden file.
        path: PathBuf,
        /// What the file system says.
        error: io::Error,
    },
    /// It was empty, and is gone.
    Removed {
        /// The name it had.
        path: PathBuf,
    },
}

/// Seals the open segments that a collector left behind when it was killed. One that cannot be sealed costs no other.
///
/// # Errors
/// What the file system says of the folder.
pub fn repair_all(folder: &Path) -> io::Result<Vec<Repair>> {
    let mut repairs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(OPEN_SUFFIX) {
            let repaired = repair(&path);
            repairs.push(repaired.unwrap_or_else(|error| Repair::Failed { path, error }));
        }
    }
    Ok(repairs)
}

fn repair(path: &Path) -> io::Result<Repair> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut reader = io::BufReader::with_capacity(REPAIR_BUFFER, &mut file);
    let whole = pcapng::whole_blocks(&mut reader, length)?;
    if length == 0 {
        std::fs::remove_file(path)?;
        return Ok(Repair::Removed { path: path.to_owned() });
    }
    let torn = torn_path(path);
    if whole == 0 {
        std::fs::rename(path, &torn)?;
        return Ok(Repair::Renamed { path: torn });
    }
    // A disk without room for the rest must not keep the collector from starting.
    let lost = keep_rest(&mut file, whole, length, &torn).err();
    file.set_len(whole)?;
    Ok(Repair::Sealed { path: seal_file(&file, path)?, cut: length - whole, lost })
}

/// Copies what lies behind the whole blocks of a file, if anything does.
fn keep_rest(file: &mut File, whole: u64, length: u64, torn: &Path) -> io::Result<()> {
    if whole == length {
        return Ok(());
    }
    file.seek(SeekFrom::Start(whole))?;
    let mut options = OpenOptions::new();
    let mut kept = options.write(true).create(true).truncate(true).mode(MODE).open(torn)?;
    let copied = io::copy(&mut file.take(length - whole), &mut kept).and_then(|_| kept.sync_all());
    if copied.is_err() {
        // Half of it helps nobody; what matters is the error.
        let _ = std::fs::remove_file(torn);
    }
    copied
}

/// Renames a file once its bytes are on the disk, and makes the name last as well. A disk that has no room for the
/// index, which only saves work, gets none.
fn seal_file(file: &File, path: &Path) -> io::Result<PathBuf> {
    let length = file.metadata()?.len();
    if let Err(error) = append_index(file, length) {
        tracing::warn!(segment = %path.display(), %error, "sealed a segment without an index");
        file.set_len(length)?;
    }
    file.sync_all()?;
    let sealed = sealed_path(path);
    std::fs::rename(path, &sealed)?;
    super::sync_folder_of(path)?;
    Ok(sealed)
}

/// Says at the end of a segment what is in it, unless a start before this one did.
fn append_index(file: &File, length: u64) -> io::Result<()> {
    let Walk { index, has_index, end } = Index::of(file, length)?;
    if end < length {
        let problem = format!("damaged at byte {end} of {length}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    if has_index {
        return Ok(());
    }
    let mut block = Vec::new();
    pcapng::push_index(&mut block, &index.encode());
    file.write_all_at(&block, length)
}

/// Is it the name of a sealed segment?
#[must_use]
pub fn is_sealed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

/// The name that a segment had before it was sealed.
#[must_use]
pub fn hidden_path(sealed: &Path) -> PathBuf {
    let name = sealed.file_name().unwrap_or_default().to_string_lossy();
    sealed.with_file_name(format!(".{}{OPEN_SUFFIX}", name.trim_end_matches(SUFFIX)))
}

/// The lasting name of a hidden file: without point and `.part`.
fn sealed_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.trim_start_matches('.').trim_end_matches(OPEN_SUFFIX);
    path.with_file_name(format!("{stem}{SUFFIX}"))
}

/// Where the rest of a hidden file is kept that is no whole block.
fn torn_path(path: &Path) -> PathBuf {
    let mut name = sealed_path(path).into_os_string();
    name.push(TORN_SUFFIX);
    name.into()
}

/// `20251121T101500.000001Z`: sorts by time, and is a file name everywhere.
fn stem(micros: u64) -> String {
    let micros = i64::try_from(micros).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
    time.strftime("%Y%m%dT%H%M%S.%6fZ").to_string()
}

/// What an interface is taken for that was never declared.
#[must_use]
pub fn undeclared(id: u32) -> Interface {
    Interface { id, name: format!("interface-{id}"), linktype: LINKTYPE_ETHERNET, snaplen: 0 }
}

/// What was counted between two readings; a sensor that was started anew counts from zero.
fn grown((base, now): (KernelStatistics, KernelStatistics)) -> KernelStatistics {
    let since = |base: u64, now: u64| now.checked_sub(base).unwrap_or(now);
    KernelStatistics {
        packets: since(base.packets, now.packets),
        drops: since(base.drops, now.drops),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_cannot_be_sealed_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let hidden = |stem: &str| folder.path().join(format!(".{stem}{OPEN_SUFFIX}"));
        std::fs::create_dir(hidden("1")).unwrap();
        let mut bytes = Vec::new();
        pcapng::push_section_header(&mut bytes);
        pcapng::push_interface(&mut bytes, "a/eth0", LINKTYPE_ETHERNET, "");
        std::fs::write(hidden("2"), bytes).unwrap();
        let mut repairs = repair_all(folder.path()).unwrap();
        repairs.sort_by_key(|repair| matches!(repair, Repair::Sealed { .. }));
        let [Repair::Failed { path, .. }, Repair::Sealed { path: sealed, cut: 0, .. }] =
            &repairs[..]
        else {
            panic!("{repairs:?}")
        };
        assert_eq!((path, sealed), (&hidden("1"), &folder.path().join("2.pcapng")));
        assert!(hidden("1").is_dir() && sealed.exists());
    }
}
