//! Finds the records of a file, piece by piece.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use super::chunk::{Chunk, Entry, READ};
use super::pcap::{self, Pcap};
use super::pcapng::{self, Pcapng};
use super::{Fault, FileError, FileFrame, Interface, Record, Step, kind};

/// A capture file, read from its start to its end.
pub struct CaptureFile {
    source: Source,
    scan: Scan,
    /// For [`CaptureFile::next_frame`]: what was read, and the next frame in it.
    at_hand: Option<(Box<Chunk>, usize)>,
}

enum Source {
    /// Can be read at any place, by any thread.
    File(Arc<File>),
    /// Can be read on only.
    Stream(Box<dyn Read + Send>),
}

enum Format {
    Pcap(Pcap),
    Pcapng(Pcapng),
}

/// Where in the file we are.
struct Scan {
    /// Stands in error messages.
    name: String,
    format: Format,
    interfaces: Vec<Interface>,
    /// The beginning of a record whose end was not read yet.
    rest: Vec<u8>,
    /// Bytes that this record takes at least, `rest` included.
    needed: usize,
    /// Bytes to leave behind before the next record.
    skip: u64,
    /// Position in the file of the next record, or of what is to be skipped.
    offset: u64,
    is_cut: bool,
    /// Nothing more can be read: told by [`CaptureFile::end`].
    ended: Option<Result<(), FileError>>,
}

/// Pieces of a file that threads may read on their own. They are to be scanned in the order in
/// which they are claimed.
pub struct Pieces {
    file: Arc<File>,
    /// Where the next one begins.
    offset: u64,
}

/// A piece that is to be read by whoever holds this.
pub struct Piece {
    file: Arc<File>,
    offset: u64,
}

impl Pieces {
    /// The next piece. Behind the end of the file they are empty.
    pub fn claim(&mut self) -> Piece {
        let piece = Piece { file: Arc::clone(&self.file), offset: self.offset };
        self.offset += READ as u64;
        piece
    }
}

impl Piece {
    /// Reads the piece. What goes wrong is told when it is scanned.
    pub fn read(self, chunk: &mut Chunk) {
        chunk.read_at(&self.file, self.offset);
    }
}

impl CaptureFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`FileError::Open`] and those of [`CaptureFile::from_reader`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let name = path.display().to_string();
        match File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file))) {
            Ok((true, file)) => {
                let scan = Scan::begin(&mut &file, name)?;
                Ok(Self { source: Source::File(Arc::new(file)), scan, at_hand: None })
            }
            // A pipe or a device.
            Ok((false, file)) => Self::from_reader(file, name),
            Err(source) => Err(FileError::Open { file: name, source }),
        }
    }

    /// Reads from anything, standard input for one. `name` stands in error messages.
    ///
    /// # Errors
    /// [`FileError::NotCapture`] if it begins like no capture file, [`FileError::Corrupt`] if its
    /// header is cut short or of an unknown version, [`FileError::Read`] if reading fails.
    pub fn from_reader(
        mut reader: impl Read + Send + 'static,
        name: impl Into<String>,
    ) -> Result<Self, FileError> {
        let scan = Scan::begin(&mut reader, name.into())?;
        Ok(Self { source: Source::Stream(Box::new(reader)), scan, at_hand: None })
    }

    /// The pieces of a regular file, for threads to read on their own; each is to be given to
    /// [`CaptureFile::scan`]. `None` for what has to be read in one go: then there is
    /// [`CaptureFile::next_chunk`]. To be called before anything else.
    #[must_use]
    pub fn pieces(&self) -> Option<Pieces> {
        match &self.source {
            Source::File(file) => {
                let offset = self.scan.offset + self.scan.rest.len() as u64;
                Some(Pieces { file: Arc::clone(file), offset })
            }
            Source::Stream(_) => None,
        }
    }

    /// Finds the frames of a piece that was read: the one behind the piece of the call before.
    pub fn scan(&mut self, chunk: &mut Chunk) {
        self.scan.scan(chunk);
    }

    /// Reads on and finds the frames. Fewer than a piece if no more are to be had without waiting;
    /// none at the end, or where a record is longer.
    pub fn next_chunk(&mut self, chunk: &mut Chunk) {
        let missing = self.scan.needed.saturating_sub(self.scan.rest.len()).max(1);
        match &mut self.source {
            Source::File(file) => {
                chunk.read_at(file, self.scan.offset + self.scan.rest.len() as u64);
            }
            Source::Stream(reader) => chunk.read_from(reader.as_mut(), missing),
        }
        self.scan.scan(chunk);
    }

    /// Was the end reached, or a place from which the file cannot be read on?
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.scan.ended.is_some()
    }

    /// How the file ended. An error is given once.
    ///
    /// # Errors
    /// [`FileError::Corrupt`] if the last record makes no sense, [`FileError::Read`] if reading
    /// failed. The frames before were all delivered.
    pub fn end(&mut self) -> Result<(), FileError> {
        match &mut self.scan.ended {
            Some(ended) => std::mem::replace(ended, Ok(())),
            None => Ok(()),
        }
    }

    /// The next frame, `None` at the end of the file: then [`CaptureFile::truncated`] tells whether
    /// the last record was whole. For those who read alone; not to be mixed with the calls above.
    ///
    /// # Errors
    /// See [`CaptureFile::end`].
    pub fn next_frame(&mut self) -> Result<Option<FileFrame<'_>>, FileError> {
        let (mut chunk, mut next) = self.at_hand.take().unwrap_or_default();
        while next == chunk.len() {
            if self.has_ended() {
                return self.end().map(|()| None);
            }
            self.next_chunk(&mut chunk);
            next = 0;
        }
        let (chunk, after) = self.at_hand.insert((chunk, next + 1));
        let index = *after - 1;
        Ok(Some(FileFrame { frame: chunk.frame(index), interface: chunk.interface(index) }))
    }

    /// The interfaces of all sections, in the order of the file, as far as it was scanned.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.scan.interfaces
    }

    /// Did the file end within a record? The frames before it were all delivered.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        self.scan.is_cut
    }
}

impl Scan {
    fn begin(reader: &mut dyn Read, name: String) -> Result<Self, FileError> {
        let mut scan = Self {
            name,
            format: Format::Pcapng(Pcapng::default()),
            interfaces: Vec::new(),
            rest: Vec::new(),
            needed: 0,
            skip: 0,
            offset: 0,
            is_cut: false,
            ended: None,
        };
        scan.read_head(reader, 4)?;
        let Some(magic) = scan.rest.first_chunk().copied() else { return Err(scan.not_capture()) };
        if let Some(mut pcap) = Pcap::of_magic(magic) {
            scan.read_head(reader, pcap::HEADER_LEN)?;
            let header = scan.rest.first_chunk().ok_or(Fault::HeaderTruncated);
            let interface = header.and_then(|header| pcap.read_header(header));
            scan.interfaces.push(interface.map_err(|fault| scan.corrupt(fault))?);
            scan.rest.clear();
            scan.offset = pcap::HEADER_LEN as u64;
            scan.format = Format::Pcap(pcap);
        } else if pcapng::MAGIC == magic {
            // The section header is read as a block when the first piece is scanned.
            scan.read_head(reader, pcapng::SHORTEST_FILE)?;
            if scan.rest.len() < pcapng::SHORTEST_FILE {
                return Err(scan.corrupt(Fault::HeaderTruncated));
            }
        } else {
            return Err(scan.not_capture());
        }
        Ok(scan)
    }

    /// Reads until the first `len` bytes of the file are there, if it has so many.
    fn read_head(&mut self, reader: &mut dyn Read, len: usize) -> Result<(), FileError> {
        let mut end = self.rest.len();
        self.rest.resize(len, 0);
        while end < len {
            match reader.read(&mut self.rest[end..]) {
                Ok(0) => break,
                Ok(count) => end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    let (file, offset) = (self.name.clone(), end as u64);
                    return Err(FileError::Read { file, offset, source });
                }
            }
        }
        self.rest.truncate(end);
        Ok(())
    }

    fn scan(&mut self, chunk: &mut Chunk) {
        if self.ended.is_some() {
            return;
        }
        chunk.put_in_front(&self.rest);
        let last = chunk.take_last();
        let (range, buffer, entries) = chunk.parts();
        let Self { format, interfaces, skip, .. } = self;
        let bytes = buffer.get(..range.end).unwrap_or_default();
        let mut walk = Walk { bytes, at: range.start, skip: *skip, entries };
        let stopped = match format {
            Format::Pcap(pcap) => walk.walk(|bytes| pcap.step(bytes)),
            Format::Pcapng(pcapng) => walk.walk(|bytes| pcapng.step(bytes, interfaces)),
        };
        let Walk { at, skip, .. } = walk;
        self.skip = skip;
        self.offset += (at - range.start) as u64;
        self.rest.clear();
        self.rest.extend_from_slice(&bytes[at..]);
        match stopped {
            Ok(needed) => self.needed = needed,
            Err(fault) => self.ended = Some(Err(self.corrupt(fault))),
        }
        if let (None, Some(last)) = (&self.ended, last) {
            self.ended = Some(self.end_of_file(last));
        }
    }

    fn end_of_file(&mut self, last: std::io::Result<()>) -> Result<(), FileError> {
        let offset = self.offset + self.rest.len() as u64;
        last.map_err(|source| FileError::Read { file: self.name.clone(), offset, source })?;
        let is_within = match &self.format {
            Format::Pcap(_) => false,
            Format::Pcapng(pcapng) => pcapng.is_within_block(),
        };
        self.is_cut = is_within || self.skip > 0 || !self.rest.is_empty();
        Ok(())
    }

    fn corrupt(&self, fault: Fault) -> FileError {
        FileError::Corrupt { file: self.name.clone(), offset: self.offset, fault }
    }

    fn not_capture(&self) -> FileError {
        let found = self.rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let remark = kind::remark(&self.rest);
        FileError::NotCapture { file: self.name.clone(), found, remark }
    }
}

/// A walk over the records of a piece.
struct Walk<'a> {
    bytes: &'a [u8],
    /// Position of the next record.
    at: usize,
    skip: u64,
    entries: &'a mut Vec<Entry>,
}

impl Walk<'_> {
    /// Walks until a record is not whole; gives the bytes that it takes at least.
    #[inline]
    fn walk(&mut self, mut step: impl FnMut(&[u8]) -> Result<Step, Fault>) -> Result<usize, Fault> {
        while self.leave_behind() {
            match step(self.bytes.get(self.at..).unwrap_or_default())? {
                Step::Frame(record) => self.note(&record),
                Step::Skip { bytes } => self.skip = bytes,
                Step::More { needed } => return Ok(needed),
            }
        }
        Ok(1)
    }

    /// Skips as far as the piece goes. False if it does not go far enough.
    #[inline]
    fn leave_behind(&mut self) -> bool {
        let here = self.skip.min((self.bytes.len() - self.at) as u64);
        self.at += here as usize;
        self.skip -= here;
        self.skip == 0
    }

    /// The buffer of a piece is no longer than its read, its room and a block, so positions fit.
    #[inline]
    fn note(&mut self, record: &Record) {
        let &Record { start, captured, total, wire_len, time, link, interface } = record;
        let start = (self.at + start) as u32;
        let interface = interface as u16;
        self.entries.push(Entry { time, start, len: captured, wire_len, link, interface });
        self.at += total;
    }
}
