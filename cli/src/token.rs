//! `ringwatch token`: who may use a collector's API. The collector reads the file when it changes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use trust::tokens::{Access, CreateError, TokenError, Tokens};

use crate::text::table;

/// Why a file of tokens was not changed or shown.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read as one.
    #[error(transparent)]
    Unusable(#[from] TokenError),
    /// The token cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// There is none of that name.
    #[error("{} has no token called {name}; `ringwatch token list` shows those it has", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Makes a token called `name`, adds it to `path` (made if it is missing), and gives what its holder
/// has to show. `days`: for how long it is good; `None`: until it is revoked.
///
/// # Errors
/// See [`TokenFileError`].
pub fn create(
    path: &Path,
    name: &str,
    access: Access,
    days: Option<u32>,
) -> Result<String, TokenFileError> {
    let now = Timestamp::now().as_second();
    let until = days.map(|days| now.saturating_add(i64::from(days) * 86_400));
    change(path, |tokens| Ok(tokens.create(name, access, now, until)?))
}

/// Takes the token called `name` out of `path`.
///
/// # Errors
/// [`TokenFileError::Unknown`] if there is none.
pub fn revoke(path: &Path, name: &str) -> Result<(), TokenFileError> {
    let unknown = || TokenFileError::Unknown { path: path.to_owned(), name: name.to_owned() };
    change(path, |tokens| tokens.revoke(name).then_some(()).ok_or_else(unknown))
}

/// The tokens of `path` as a table for people.
///
/// # Errors
/// [`TokenFileError::Unusable`].
pub fn list(path: &Path, now: Timestamp) -> Result<String, TokenFileError> {
    let day = |seconds: i64| {
        let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        time.strftime("%Y-%m-%d").to_string()
    };
    let tokens = Tokens::read(path)?;
    let rows: Vec<_> = tokens
        .all()
        .iter()
        .map(|token| {
            let until = match token.until {
                None => "it is revoked".to_owned(),
                Some(until) if until < now.as_second() => format!("{} EXPIRED", day(until)),
                Some(until) => day(until),
            };
            [token.name.clone(), token.access.to_string(), day(token.created), until]
        })
        .collect();
    Ok(table(["TOKEN", "ACCESS", "CREATED", "UNTIL"], [false; 4], &rows))
}

/// Changes a file of tokens, one program at a time, and replaces it at once.
fn change<T>(
    path: &Path,
    body: impl FnOnce(&mut Tokens) -> Result<T, TokenFileError>,
) -> Result<T, TokenFileError> {
    let failure = |source| TokenFileError::Write { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(parent.unwrap_or(Path::new("."))).map_err(failure)?;
    let _lock =
        Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| failure(error.into()))?;
    let mut tokens = if path.exists() { Tokens::read(path)? } else { Tokens::default() };
    let result = body(&mut tokens)?;
    write(path, &tokens.render()).map_err(failure)?;
    Ok(result)
}

/// Readable by all, because the collector has another user, and hashes of random numbers give nothing
/// away.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = PathBuf::from(format!("{}.new", path.display()));
    // A draft left by an interrupted run is nobody's.
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(draft, path)
}
