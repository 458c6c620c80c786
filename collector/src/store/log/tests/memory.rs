//! A disk in memory that forgets at a power cut what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::disk::{Disk, DiskFile};

/// Bytes that get to the disk together or not at all.
const SECTOR: usize = 64;

/// Clones are the same disk.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    /// Names as they were synced last, and the states since.
    durable_names: Vec<BTreeMap<String, u64>>,
    created: u64,
    fails_writes: bool,
    fails_syncs: bool,
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync.
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

struct OpenFile {
    disk: Memory,
    file: u64,
}

/// Numbers that look random, from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // Source: SplitMix64, by Vigna.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes fail half way.
    pub fn fail_writes(&self, fails: bool) {
        self.state().fails_writes = fails;
    }

    /// Syncs fail, and what they were to bring to the disk will never get there.
    pub fn fail_syncs(&self, fails: bool) {
        self.state().fails_syncs = fails;
    }

    /// A disk of its own with the same content.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().clone())))
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[name]].now.clone()
    }

    /// Replaces a file's content, as if it had always been so.
    pub fn set_content(&self, name: &str, content: Vec<u8>) {
        let mut state = self.state();
        let file = state.names[name];
        state
            .files
            .insert(file, Content { now: content.clone(), durable: content, changes: Vec::new() });
    }

    /// What was not synced is there in part, or not at all.
    pub fn cut_power(&self, random: &mut Random) {
        let mut state = self.state();
        for content in state.files.values_mut() {
            content.forget(random);
        }
        let kept = random.below(state.durable_names.len().max(1) as u64) as usize;
        let names = state.durable_names.get(kept).cloned().unwrap_or_default();
        state.names.clone_from(&names);
        state.durable_names = vec![names];
        (state.fails_writes, state.fails_syncs) = (false, false);
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }

    fn forget(&mut self, random: &mut Random) {
        // Nothing, everything, or any sectors of it.
        let mode = random.below(3);
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Bytes(offset, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if mode == 1 || (mode == 2 && random.below(2) == 0) {
                            let at = offset + index * SECTOR;
                            Change::Bytes(at, sector.to_vec()).apply(&mut self.durable);
                        }
                    }
                }
                length if mode > 0 => length.apply(&mut self.durable),
                Change::Length(_) => {}
            }
        }
        self.now.clone_from(&self.durable);
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Length(length) => content.resize(*length, 0),
            Self::Bytes(offset, bytes) => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        if !state.names.contains_key(name) {
            if state.durable_names.is_empty() {
                state.durable_names.push(BTreeMap::new());
            }
            state.created += 1;
            let file = state.created;
            state.files.insert(file, Content::default());
            state.names.insert(name.to_owned(), file);
            let names = state.names.clone();
            state.durable_names.push(names);
        }
        drop(state);
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.state().names.get(name).copied();
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(OpenFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        let names = state.names.clone();
        state.durable_names.push(names);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        let names = state.names.clone();
        state.durable_names.push(names);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        let names = state.names.clone();
        state.durable_names = vec![names];
        Ok(())
    }
}

impl OpenFile {
    fn with<T>(&self, act: impl FnOnce(&mut Content) -> T) -> T {
        act(self.disk.state().files.get_mut(&self.file).unwrap())
    }
}

impl DiskFile for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap();
        let count = self.with(|content| {
            let rest = content.now.get(offset..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            count
        });
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        if self.disk.state().fails_writes {
            let half = bytes[..bytes.len() / 2].to_vec();
            self.with(|content| content.change(Change::Bytes(offset, half)));
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.with(|content| content.change(Change::Bytes(offset, bytes.to_vec())));
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).unwrap();
        self.with(|content| content.change(Change::Length(length)));
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.with(|content| content.now.len() as u64))
    }

    fn sync(&self) -> io::Result<()> {
        if self.disk.state().fails_syncs {
            // The pages count as clean, and are not on the disk.
            self.with(|content| content.changes.clear());
            return Err(io::Error::other("failed sync"));
        }
        self.with(|content| {
            for change in std::mem::take(&mut content.changes) {
                change.apply(&mut content.durable);
            }
        });
        Ok(())
    }
}
