//! The few things that the spool asks of a file system. Behind a trait, because the tests have a disk
//! that forgets what was not synced, and one that fails on demand.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::unistd::{Uid, geteuid};

/// A file system.
pub trait Disk: Send + Sync {
    /// Makes a folder and those above it, unless it is there.
    ///
    /// # Errors
    /// What the system says.
    fn make_folder(&self, folder: &Path) -> io::Result<()>;

    /// Is this a folder?
    fn is_folder(&self, path: &Path) -> bool;

    /// Names of the files in a folder, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Opens a file to read and write, empty: what was in it is gone.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file to read it.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file to read and write it.
    ///
    /// # Errors
    /// What the system says.
    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name in the same folder.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder last over a crash of the machine.
    ///
    /// # Errors
    /// What the system says.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Takes the lock of the spool: makes this file, and holds it for as long as the answer lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if somebody else has it; else what the system says.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Reads what there is at this offset, as much as fits; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at this offset. After an error, some of them may be written.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file off, or makes it longer with zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the content last over a crash of the machine.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
}

/// A lock that ends when it is dropped, or when the process ends in whatever way.
pub trait Lock: Send + Sync {
    /// Is the locked file still the one of this path?
    fn is_at(&self, path: &Path) -> bool;
}

/// A file of the spool is never a link to elsewhere, nor a device or pipe that one would wait for.
const NO_LINK: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Can nobody else put something in the place of this folder, or into it? `user` is who is to own it, if that is
/// known; root may as well.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] with what is wrong; else what the system says.
pub fn check_folder(folder: &Path, user: Option<Uid>) -> io::Result<()> {
    const OTHERS_WRITE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let refuse = |problem: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    let metadata = std::fs::metadata(folder)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if mode & OTHERS_WRITE != 0 {
        return refuse(format!("everybody may write to it (mode {mode:04o}); chmod 0750"));
    }
    if let Some(user) = user
        && ![0, user.as_raw()].contains(&owner)
    {
        return refuse(format!(
            "it belongs to user {owner}, the sensor runs as user {user}; chown it"
        ));
    }
    let above = folder.canonicalize()?.parent().map(std::fs::metadata).transpose()?;
    match above.map(|above| above.mode()) {
        Some(mode) if mode & (OTHERS_WRITE | STICKY) == OTHERS_WRITE => {
            refuse("everybody may replace it: the folder above is writable by all".to_owned())
        }
        _ => Ok(()),
    }
}

/// The file system of this machine.
#[derive(Debug, Default)]
pub struct RealDisk;

impl RealDisk {
    /// Makes a file that is not there.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::AlreadyExists`] where there is a file or a link.
    pub fn make(&self, path: &Path) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).mode(0o640).open(path).map(|_| ())
    }
}

impl Disk for RealDisk {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        if !folder.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
        }
        check_folder(folder, Some(geteuid()))
    }

    fn is_folder(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            // A name that is no text is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o640);
        Ok(Arc::new(options.custom_flags(NO_LINK).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).custom_flags(NO_LINK).open(path)?))
    }

    fn open_to_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Arc::new(options.read(true).write(true).custom_flags(NO_LINK).open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o640);
        let options = options.custom_flags(NO_LINK);
        // On a disk that is read-only, what is there can still be delivered.
        let read = || OpenOptions::new().read(true).custom_flags(NO_LINK).open(path);
        let file = options.open(path).or_else(|error| read().map_err(|_| error))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Lock for File {
    fn is_at(&self, path: &Path) -> bool {
        let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.metadata().map(place);
        matches!((own, std::fs::metadata(path).map(place)), (Ok(own), Ok(there)) if own == there)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_may_change_is_refused_with_what_to_do() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("spool");
        RealDisk.make_folder(&folder).unwrap();
        let said = || RealDisk.make_folder(&folder).unwrap_err().to_string();
        set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(said(), "everybody may write to it (mode 0777); chmod 0750");
        set_permissions(&folder, Permissions::from_mode(0o770)).unwrap();
        RealDisk.make_folder(&folder).unwrap();
        set_permissions(above.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(said(), "everybody may replace it: the folder above is writable by all");
        set_permissions(above.path(), Permissions::from_mode(0o1777)).unwrap();
        RealDisk.make_folder(&folder).unwrap();
        if geteuid().is_root() {
            chown(&folder, Some(4711), None).unwrap();
            assert_eq!(said(), "it belongs to user 4711, the sensor runs as user 0; chown it");
        }
    }

    #[test]
    fn a_check_says_what_is_wrong_with_a_folder_and_leaves_nothing() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("spool");
        super::super::check(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        // As another program of the same number may have left behind.
        let planted = folder.join(format!(".ringwatch-check-{}", std::process::id()));
        symlink(above.path().join("precious"), &planted).unwrap();
        super::super::check(&folder).unwrap();
        assert!(!above.path().join("precious").exists(), "the check wrote through a link");
        set_permissions(&folder, Permissions::from_mode(0o757)).unwrap();
        let refused = super::super::check(&folder).unwrap_err();
        let said = wire::text::error_chain(&refused);
        assert!(
            said.starts_with(&format!("cannot use the spool {}; ", folder.display())),
            "{said}"
        );
        assert!(said.ends_with("everybody may write to it (mode 0757); chmod 0750"), "{said}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn no_file_of_the_spool_is_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::fs::write(&target, "precious").unwrap();
        symlink(&target, &link).unwrap();
        assert!(RealDisk.create(&link).is_err());
        assert!(RealDisk.open(&link).is_err());
        assert!(RealDisk.open_to_write(&link).is_err());
        assert!(RealDisk.lock(&link).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }
}
