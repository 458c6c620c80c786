//! The files of an identity: read, and checked one by one.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::role::{PeerError, Role};

/// Where the files of an identity lie, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authorities that issue peers' certificates: one, or several while one
    /// takes the place of another.
    pub ca: PathBuf,
    /// The own certificate, followed by intermediate ones if there are any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What the authorities have revoked: one list for each of them. `None`: nothing is.
    pub crl: Option<PathBuf>,
}

/// Which of the files is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// [`Files::ca`]
    Ca,
    /// [`Files::certificate`]
    Certificate,
    /// [`Files::key`]
    Key,
    /// [`Files::crl`]
    Crl,
}

impl FileKind {
    /// Its key in the configuration, and its word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Crl => "crl",
        }
    }

    /// What it holds.
    const fn content(self) -> &'static str {
        match self {
            Self::Ca | Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Crl => "revocation list",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the files of an identity cannot be used. Says the cause itself.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        kind: FileKind,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should, in PEM form.
    #[error("{} holds no {} in PEM form: {source}", path.display(), kind.content())]
    NoPem {
        /// Which file.
        kind: FileKind,
        /// Its path.
        path: PathBuf,
        /// What the reader said.
        source: pem::Error,
    },
    /// Others than the owner may read the private key.
    #[error("{path} may be read by others (mode {mode:04o}); run: chmod 600 {path}", path = path.display())]
    KeyExposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// An authority's certificate cannot be used as one.
    #[error("{} is no certificate of an authority: {source}", path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The own certificate is not that of the role and nothing else.
    #[error("{}: {source}; issue one with: ringwatch pki issue DIR {wanted} NAME", path.display())]
    WrongRole {
        /// The certificate.
        path: PathBuf,
        /// The role.
        wanted: Role,
        /// What the certificate says instead.
        source: PeerError,
    },
    /// The own certificate has another name than the one before.
    #[error("{} is now for {found:?}, and was for {before:?}; a restart takes a new name", path.display())]
    Renamed {
        /// The certificate.
        path: PathBuf,
        /// The name that is in use.
        before: String,
        /// The name in the new certificate.
        found: String,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("{} does not fit the certificate {}: {source}", key.display(), certificate.display())]
    Mismatch {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// A revocation list cannot be read as one.
    #[error("{}: {problem}", path.display())]
    BadCrl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A revocation list is signed by none of the authorities.
    #[error(
        "a revocation list in {} is signed by no authority in {}; make it anew with: ringwatch pki crl DIR",
        path.display(), ca.display()
    )]
    ForeignCrl {
        /// The file.
        path: PathBuf,
        /// The authorities.
        ca: PathBuf,
    },
    /// One of several authorities has no list: what it issued could not be refused.
    #[error(
        "{} has no revocation list of {authority:?}, an authority in {}, so nobody whom that one revokes would be \
         refused; add its list (DIR/crl.pem; ringwatch pki crl DIR), or take it out of the `ca` file",
        path.display(), ca.display()
    )]
    MissingCrl {
        /// The file with the lists.
        path: PathBuf,
        /// The authorities.
        ca: PathBuf,
        /// The authority, as its certificate says.
        authority: String,
    },
}

impl FileError {
    /// Which file is to blame.
    #[must_use]
    pub const fn file(&self) -> FileKind {
        match self {
            Self::Unreadable { kind, .. } | Self::NoPem { kind, .. } => *kind,
            Self::KeyExposed { .. } | Self::Mismatch { .. } => FileKind::Key,
            Self::BadAuthority { .. } => FileKind::Ca,
            Self::WrongRole { .. } | Self::Renamed { .. } => FileKind::Certificate,
            Self::BadCrl { .. } | Self::ForeignCrl { .. } | Self::MissingCrl { .. } => {
                FileKind::Crl
            }
        }
    }
}

/// All certificates of a file; at least one.
pub(crate) fn certificates(
    kind: FileKind,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = read(kind, path)?;
    let found = CertificateDer::pem_slice_iter(&text).collect();
    not_empty(kind, path, found)
}

/// All revocation lists of a file; at least one.
pub(crate) fn revocation_lists(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, FileError> {
    let text = read(FileKind::Crl, path)?;
    let found = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    not_empty(FileKind::Crl, path, found)
}

/// The key, if nobody else can read it.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let kind = FileKind::Key;
    let text = read(kind, path)?;
    let metadata = std::fs::metadata(path).map_err(|source| FileError::Unreadable {
        kind,
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    // A group may read it: that is how a service user gets a key that root owns.
    if mode & 0o037 != 0 {
        return Err(FileError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|source| FileError::NoPem {
        kind,
        path: path.to_owned(),
        source,
    })
}

fn not_empty<T>(
    kind: FileKind,
    path: &Path,
    found: Result<Vec<T>, pem::Error>,
) -> Result<Vec<T>, FileError> {
    let no_pem = |source| FileError::NoPem { kind, path: path.to_owned(), source };
    match found.map_err(no_pem)? {
        none if none.is_empty() => Err(no_pem(pem::Error::NoItemsFound)),
        some => Ok(some),
    }
}

fn read(kind: FileKind, path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Unreadable {
        kind,
        path: path.to_owned(),
        source,
    })
}
