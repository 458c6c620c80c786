//! A disk in memory that forgets what was not synced when the power is cut, and fails on demand.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile, Lock};

/// See the module. Copies are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<PathBuf, MemoryFile>,
    /// Names that outlast a power cut.
    lasting: BTreeMap<PathBuf, MemoryFile>,
    folders: std::collections::BTreeSet<PathBuf>,
    is_locked: bool,
    /// All writing fails so.
    fault: Option<io::ErrorKind>,
    /// After so many bytes, in the middle of what is written.
    room: Option<u64>,
    syncs: u64,
    /// Whoever reads or syncs waits.
    hangs: bool,
    /// Reading fails.
    is_unreadable: bool,
}

/// What a file has, and what of it is on the disk.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    disk: MemoryDisk,
    content: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

impl MemoryDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets all writing fail from now on, or work again.
    pub fn fail(&self, fault: Option<io::ErrorKind>) {
        self.state().fault = fault;
    }

    /// Lets writing fail after so many further bytes.
    pub fn fill_up(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// Lets whoever reads a file or syncs one wait, or go on.
    pub fn hang(&self, hangs: bool) {
        self.state().hangs = hangs;
    }

    /// Lets reading fail from now on, or work again.
    pub fn break_reads(&self, are_broken: bool) {
        self.state().is_unreadable = are_broken;
    }

    fn wait(&self) {
        while self.state().hangs {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// The process is killed: its lock is gone, what it wrote is there.
    pub fn kill(&self) {
        self.state().is_locked = false;
    }

    /// The power is cut. Of what was not synced, `luck` says how much is there all the same: a number below
    /// its argument.
    pub fn cut_power(&self, mut luck: impl FnMut(u64) -> u64) {
        let mut state = self.state();
        state.is_locked = false;
        state.files = state.lasting.clone();
        for file in state.files.values() {
            let mut content = file.content.lock().unwrap();
            let Content { now, synced } = &mut *content;
            let kept =
                synced.len() + luck((now.len().saturating_sub(synced.len()) + 1) as u64) as usize;
            let mut left = now[..kept.min(now.len())].to_vec();
            // What was overwritten is old or new, by what a disk writes at once.
            for (at, old) in synced.chunks(512).enumerate() {
                if luck(2) == 0 && left.len() >= at * 512 + old.len() {
                    left[at * 512..at * 512 + old.len()].copy_from_slice(old);
                }
            }
            *content = Content { now: left.clone(), synced: left };
        }
    }

    /// Somebody removes all folders and files.
    pub fn wipe(&self) {
        let mut state = self.state();
        (state.files, state.lasting, state.folders) = Default::default();
    }

    /// Paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().files.keys().cloned().collect()
    }

    /// What a file has.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        self.state().files[path].content.lock().unwrap().now.clone()
    }

    /// Gives a file this content, made if it is not there.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        let file = self.file(path.to_owned());
        let mut content = file.content.lock().unwrap();
        *content = Content { now: bytes.to_vec(), synced: bytes.to_vec() };
    }

    /// A copy of all that is there, as another disk.
    pub fn copy(&self) -> Self {
        let copy = Self::default();
        copy.state().folders = self.state().folders.clone();
        for path in self.paths() {
            copy.put(&path, &self.content(&path));
        }
        copy
    }

    /// Times that a file was synced.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    fn file(&self, path: PathBuf) -> MemoryFile {
        let new = || MemoryFile { disk: self.clone(), content: Arc::default() };
        self.state().files.entry(path).or_insert_with(new).clone()
    }

    fn check(&self) -> io::Result<()> {
        self.state().fault.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

impl Disk for MemoryDisk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if self.state().folders.contains(folder) {
            return Ok(());
        }
        self.check()?;
        self.state().folders.insert(folder.to_owned());
        Ok(())
    }

    fn is_folder(&self, path: &Path) -> bool {
        self.state().folders.contains(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.files.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        let is_there = path.parent().is_none_or(|it| it == Path::new("/") || self.list(it).is_ok());
        if !is_there {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = self.file(path.to_owned());
        file.content.lock().unwrap().now.clear();
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.state().files.get(path).cloned();
        Ok(Arc::new(file.ok_or(io::ErrorKind::NotFound)?))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check()?;
        self.open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        self.state().files.remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        let file = self.state().files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.state().files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.check()?;
        let mut state = self.state();
        let State { files, lasting, .. } = &mut *state;
        lasting.retain(|path, _| path.parent() != Some(folder));
        let inside = files.iter().filter(|(path, _)| path.parent() == Some(folder));
        lasting.extend(inside.map(|(path, file)| (path.clone(), file.clone())));
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Lock>> {
        self.check()?;
        if std::mem::replace(&mut self.state().is_locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock(self.clone())))
    }
}

struct MemoryLock(MemoryDisk);

impl Lock for MemoryLock {
    fn is_at(&self, path: &Path) -> bool {
        path.parent().is_some_and(|folder| self.0.state().folders.contains(folder))
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
    }
}

impl DiskFile for MemoryFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.wait();
        if self.disk.state().is_unreadable {
            return Err(io::Error::other("it cannot be read"));
        }
        let content = self.content.lock().unwrap();
        let there = content.now.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(buffer.len());
        buffer[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.check()?;
        let (offset, mut bytes) = (offset as usize, bytes);
        let mut is_full = false;
        if let Some(room) = &mut self.disk.state().room {
            // As on a full disk, some of it is written.
            let len = bytes.len().min(*room as usize);
            (is_full, bytes) = (len < bytes.len(), &bytes[..len]);
            *room -= len as u64;
        }
        let mut content = self.content.lock().unwrap();
        let end = offset + bytes.len();
        if content.now.len() < end {
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(bytes);
        if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check()?;
        self.content.lock().unwrap().now.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.wait();
        self.disk.check()?;
        self.disk.state().syncs += 1;
        let mut content = self.content.lock().unwrap();
        content.synced = content.now.clone();
        Ok(())
    }
}
