//! Every certificate that was ever issued: `issued.json`, a line each. A certificate that was
//! renewed is valid until its end, and only its serial number can revoke it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::inventory::Entry;
use super::{Name, PkiError, files};

#[derive(Serialize, Deserialize)]
struct Line {
    /// `sensor/NAME`, `collector/NAME`
    identity: String,
    /// In hexadecimal digits.
    serial: String,
    not_before: String,
    not_after: String,
}

/// Where the journal of `folder` lies.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("issued.json")
}

/// Notes a certificate.
///
/// # Errors
/// What the system says.
pub fn note(folder: &Path, entry: &Entry) -> Result<(), PkiError> {
    let line = Line {
        identity: entry.identity.clone(),
        serial: entry.serial_text(),
        not_before: entry.not_before.to_string(),
        not_after: entry.not_after.to_string(),
    };
    let path = file(folder);
    let text = serde_json::to_string(&line)
        .map_err(|error| files::failure("write", &path, error.into()))?;
    files::append(&path, &format!("{text}\n"))
}

/// Serial numbers of all certificates that were noted for `name`, in whichever role.
///
/// # Errors
/// [`PkiError::Journal`] for a line that is none of ours: to pass over it could leave a certificate
/// unrevoked.
pub fn serials_of(folder: &Path, name: &Name) -> Result<Vec<Vec<u8>>, PkiError> {
    let path = file(folder);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut serials = Vec::new();
    for (index, text) in files::read(&path)?.lines().enumerate() {
        let bad = || PkiError::Journal { path: path.clone(), line: index + 1 };
        let line: Line = serde_json::from_str(text).map_err(|_| bad())?;
        let serial = bytes_of(&line.serial).ok_or_else(bad)?;
        if line.identity.split_once('/').is_some_and(|(_, noted)| noted == name.as_str()) {
            serials.push(serial);
        }
    }
    Ok(serials)
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (hex.len().is_multiple_of(2) && !hex.is_empty())
        .then(|| (0..hex.len()).step_by(2).map(pair).collect())?
}
