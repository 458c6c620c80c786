//! A small disk of its own for a program, which can be full for a while.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

/// A small disk, mounted for as long as this lives.
pub struct SmallDisk {
    path: PathBuf,
    kib: u64,
}

impl SmallDisk {
    /// Mounts it on a folder, which is made.
    pub fn mount(path: &Path, kib: u64) -> Self {
        fs::create_dir_all(path).unwrap();
        let disk = Self { path: path.to_owned(), kib };
        disk.set(MsFlags::empty(), kib).unwrap();
        disk
    }

    /// Makes it larger or smaller for good.
    pub fn resize(&mut self, kib: u64) {
        self.kib = kib;
        self.set(MsFlags::MS_REMOUNT, kib).unwrap();
    }

    /// Takes away all that is free, for as long as nothing on it is removed. To be called again and again.
    pub fn fill(&self) {
        for _ in 0..100 {
            let space = statvfs(&self.path).unwrap();
            let used = (space.blocks() - space.blocks_free()) * space.fragment_size();
            match self.set(MsFlags::MS_REMOUNT, used.div_ceil(1024).max(4)) {
                Ok(()) => return,
                // More was written meanwhile.
                Err(Errno::EINVAL) => {}
                Err(error) => panic!("{}: {error}", self.path.display()),
            }
        }
    }

    /// Gives the room back that [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        self.set(MsFlags::MS_REMOUNT, self.kib).unwrap();
    }

    fn set(&self, flags: MsFlags, kib: u64) -> nix::Result<()> {
        let size = format!("size={kib}k");
        mount(Some("none"), &self.path, Some("tmpfs"), flags, Some(size.as_str()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may leave a program that has files open there.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
