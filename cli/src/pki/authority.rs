//! The authority of a folder: its key signs, one program at a time.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rcgen::{Issuer, KeyPair, PublicKeyData, SerialNumber};
use time::OffsetDateTime;

use super::{Issued, PkiError, files, files_of, inventory};

/// The authority, while nobody else signs with it.
pub struct Authority {
    /// What signs.
    pub issuer: Issuer<'static, KeyPair>,
    /// Last second of its certificate: nothing it issues may outlive it.
    pub until: i64,
    /// Two runs at once would lose a revocation; released by the end of the program as well.
    _lock: Flock<File>,
}

impl Authority {
    /// Reads the authority in `folder`, and waits until no other program signs with it.
    ///
    /// # Errors
    /// [`PkiError::NoAuthority`] if there is none; [`PkiError::WrongKey`] if its files do not belong
    /// together.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let Issued { certificate, key } = files_of(folder, "ca");
        if !certificate.exists() || !key.exists() {
            return Err(PkiError::NoAuthority(folder.to_owned()));
        }
        let file = File::open(&key).map_err(|source| files::failure("read", &key, source))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| files::failure("lock", &key, error.into()))?;
        let key_pair = KeyPair::from_pem(&files::read(&key)?)
            .map_err(|_| PkiError::Content { path: key.clone(), expected: "private key" })?;
        let pem = files::read(&certificate)?;
        let (public_key, until) = inventory::key_and_end(&certificate, &pem)?;
        // Without this check everything issued would look fine and verify nowhere.
        if public_key != key_pair.subject_public_key_info() {
            return Err(PkiError::WrongKey { certificate, key });
        }
        let issuer = Issuer::from_ca_cert_pem(&pem, key_pair)?;
        Ok(Self { issuer, until, _lock: lock })
    }
}

/// A serial number that no other certificate has: 127 random bits, and not zero. The library would
/// derive it from the key, which a renewed certificate may keep.
///
/// # Errors
/// The system gives no random numbers.
pub fn serial_number() -> Result<SerialNumber, PkiError> {
    let mut bytes: [u8; 16] = trust::random().map_err(|_| PkiError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A time for the library, from seconds since 1970; times before that are 1970.
#[must_use]
pub fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
