//! Key and certificate files: who may read them, and never a half-written one.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Existing, PkiError};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Mode 0600.
    Owner,
    /// Mode 0644.
    All,
}

pub(super) fn create_private_folder(folder: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| failure("create", folder, source))
}

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| failure("read", path, source))
}

/// Writes a file beside its place and moves it there, so that a reader sees all of it or nothing.
/// The mode is right from the first moment.
pub(super) fn write(
    path: &Path,
    text: &str,
    access: Access,
    existing: Existing,
) -> Result<(), PkiError> {
    let draft = PathBuf::from(format!("{}.new", path.display()));
    // A draft left by an interrupted run is nobody's.
    let _ = fs::remove_file(&draft);
    write_draft(&draft, text, access).map_err(|source| failure("write", path, source))?;
    let moved = match existing {
        Existing::Replace => fs::rename(&draft, path),
        // A hard link fails if the name is taken, also by someone who was faster.
        Existing::Keep => fs::hard_link(&draft, path).and_then(|()| fs::remove_file(&draft)),
    };
    moved.map_err(|source| {
        let _ = fs::remove_file(&draft);
        match source.kind() {
            std::io::ErrorKind::AlreadyExists => PkiError::Exists(path.to_owned()),
            _ => failure("write", path, source),
        }
    })
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failure("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Adds a line to a file that only its owner reads, and brings it to the disk.
pub(super) fn append(path: &Path, line: &str) -> Result<(), PkiError> {
    let add = || {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    add().map_err(|source| failure("write", path, source))
}

fn write_draft(draft: &Path, text: &str, access: Access) -> std::io::Result<()> {
    let mode = match access {
        Access::Owner => 0o600,
        Access::All => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(text.as_bytes())?;
    // Also against an unusual umask: a certificate that the service cannot read helps nobody.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

pub(super) fn failure(action: &'static str, path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { action, path: path.to_owned(), source }
}
