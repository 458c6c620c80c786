//! TLS: our certificate, the rules for that of a peer, and who a peer is.
//!
//! TLS 1.3 only, certificates on both sides, no resumption: each connection verifies the peer anew.
//! There is no switch that skips it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use wire::text::is_name;

use crate::config::TlsFiles;

/// Our identity, ready to accept connections with.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name in our certificate.
    pub name: String,
    /// What rustls needs.
    pub server: Arc<ServerConfig>,
}

/// Which of the three files is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `[tls] ca`
    Ca,
    /// `[tls] certificate`
    Certificate,
    /// `[tls] key`
    Key,
}

/// Why the files of the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
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
    /// A file has no certificate or key in PEM form.
    #[error("{} holds no {wanted} in PEM form: {source}", path.display())]
    NoPem {
        /// Which file.
        kind: FileKind,
        /// Its path.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What the reader said.
        source: rustls::pki_types::pem::Error,
    },
    /// Others than the owner may read the private key.
    #[error("{} may be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The authority's certificate cannot be used as one.
    #[error("{} is no certificate of an authority: {source}", path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// The certificate does not name a collector.
    #[error("{}: {source}; issue one with: ringwatch pki issue DIR collector NAME", path.display())]
    NotACollector {
        /// The certificate.
        path: PathBuf,
        /// What it says instead.
        source: PeerError,
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
    /// TLS cannot be set up with these files.
    #[error("cannot set up TLS: {source}")]
    Setup {
        /// What rustls said.
        source: rustls::Error,
    },
}

impl IdentityError {
    /// Which file is to blame.
    #[must_use]
    pub const fn file(&self) -> FileKind {
        match self {
            Self::Unreadable { kind, .. } | Self::NoPem { kind, .. } => *kind,
            Self::KeyExposed { .. } | Self::Mismatch { .. } => FileKind::Key,
            Self::BadAuthority { .. } => FileKind::Ca,
            Self::NotACollector { .. } | Self::Setup { .. } => FileKind::Certificate,
        }
    }
}

/// Reads and checks the files of the identity.
///
/// # Errors
/// See [`IdentityError`].
pub fn load(files: &TlsFiles) -> Result<Identity, IdentityError> {
    let chain = read_certificates(FileKind::Certificate, &files.certificate)?;
    let key = read_key(&files.key)?;
    let not_a_collector =
        |source| IdentityError::NotACollector { path: files.certificate.clone(), source };
    let own = chain.first().ok_or(PeerError::NoCertificate).map_err(not_a_collector)?;
    let name = name_in(own, Role::Collector).map_err(not_a_collector)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(read_roots(&files.ca)?, Arc::clone(&provider))
            .build()
            .map_err(|error| IdentityError::BadAuthority {
                path: files.ca.clone(),
                source: rustls::Error::General(error.to_string()),
            })?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| IdentityError::Setup { source })?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|source| IdentityError::Mismatch {
            key: files.key.clone(),
            certificate: files.certificate.clone(),
            source,
        })?;
    // A resumed session would not verify the peer's certificate again.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Identity { name, server: Arc::new(server) })
}

fn read_roots(path: &Path) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(FileKind::Ca, path)? {
        roots
            .add(certificate)
            .map_err(|source| IdentityError::BadAuthority { path: path.to_owned(), source })?;
    }
    Ok(Arc::new(roots))
}

fn read_certificates(
    kind: FileKind,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read(kind, path)?;
    let no_pem = |source| IdentityError::NoPem {
        kind,
        path: path.to_owned(),
        wanted: "certificate",
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found.map_err(no_pem)? {
        none if none.is_empty() => Err(no_pem(rustls::pki_types::pem::Error::NoItemsFound)),
        certificates => Ok(certificates),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let text = read(FileKind::Key, path)?;
    let metadata = std::fs::metadata(path).map_err(|source| IdentityError::Unreadable {
        kind: FileKind::Key,
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    // A group may read it: that is how a service user gets a key that root owns.
    if mode & 0o037 != 0 {
        return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|source| IdentityError::NoPem {
        kind: FileKind::Key,
        path: path.to_owned(),
        wanted: "private key",
        source,
    })
}

fn read(kind: FileKind, path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Unreadable {
        kind,
        path: path.to_owned(),
        source,
    })
}

/// What a certificate lets its owner be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `ringwatch://sensor/NAME`
    Sensor,
    /// `ringwatch://collector/NAME`
    Collector,
}

impl Role {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Sensor => "ringwatch://sensor/",
            Self::Collector => "ringwatch://collector/",
        }
    }
}

/// Why a verified certificate does not identify its owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is none.
    #[error("no certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("certificate cannot be read")]
    Unreadable,
    /// It has not exactly one URI of ours.
    #[error("certificate names {found} identities, not one")]
    NotOneIdentity {
        /// How many there are.
        found: usize,
    },
    /// It is for another role, or the name is none.
    #[error("certificate is for {found}, not for {}NAME", wanted.prefix())]
    WrongRole {
        /// The URI in it.
        found: String,
        /// The role that was wanted.
        wanted: Role,
    },
}

/// Name of the owner of a certificate that was verified, if it has this role. The name stands in the
/// one subject alternative name that is a `ringwatch` URI.
///
/// # Errors
/// See [`PeerError`].
pub fn name_in(certificate: &CertificateDer<'_>, role: Role) -> Result<String, PeerError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| PeerError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("ringwatch:") => Some(*uri),
            _ => None,
        })
        .collect();
    let &[uri] = uris.as_slice() else {
        return Err(PeerError::NotOneIdentity { found: uris.len() });
    };
    match uri.strip_prefix(role.prefix()) {
        Some(name) if is_name(name) => Ok(name.to_owned()),
        _ => Err(PeerError::WrongRole { found: uri.to_owned(), wanted: role }),
    }
}

/// The word for a failed handshake, in metrics and logs.
#[must_use]
pub fn handshake_failure(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::NoCertificatesPresented => "no_certificate",
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_issuer",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "not_valid_yet"
            }
            CertificateError::Revoked => "revoked",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "wrong_purpose"
            }
            _ => "bad_certificate",
        },
        rustls::Error::InvalidMessage(_) => "not_tls",
        rustls::Error::AlertReceived(_) => "refused_by_peer",
        rustls::Error::PeerIncompatible(_) => "incompatible",
        _ => "other",
    }
}
