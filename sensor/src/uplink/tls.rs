//! TLS as the uplink wants it: version 1.3, both certificates verified, roles checked, nothing
//! resumed and nothing that could be switched off.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use wire::text::is_name;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Where certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the authority that issued both ends' certificates, PEM.
    pub ca: PathBuf,
    /// The sensor's certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What the sensor shows and demands in a handshake.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// The name in the sensor's certificate.
    pub name: String,
}

/// The role that a certificate gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `ringwatch://sensor/NAME`, for TLS clients only.
    Sensor,
    /// `ringwatch://collector/NAME`, for TLS servers only.
    Collector,
}

impl Role {
    const fn uri_prefix(self) -> &'static str {
        match self {
            Self::Sensor => "ringwatch://sensor/",
            Self::Collector => "ringwatch://collector/",
        }
    }
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of the right type.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificate is not one of a sensor.
    #[error("{} is no sensor's certificate", path.display())]
    WrongRole {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// rustls refuses what the files hold, such as a key that does not fit the certificate.
    #[error("cannot use {} with its key", certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority's certificate cannot be a trust anchor.
    #[error("cannot trust {}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Why a certificate does not give a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is no X.509 certificate, or has an extension twice.
    #[error("certificate cannot be parsed")]
    Unparsable,
    /// It does not have exactly one URI among its alternative names.
    #[error("certificate has {count} URIs among its names instead of one")]
    UriCount {
        /// How many it has.
        count: usize,
    },
    /// The URI is that of another role, or of none, or the name in it is not allowed.
    #[error("certificate is for {uri:?}, wanted is {}NAME", wanted.uri_prefix())]
    WrongUri {
        /// The URI.
        uri: String,
        /// The role wanted.
        wanted: Role,
    },
    /// Its extended key usage is not that of the role alone.
    #[error("extended key usage is not that of a {wanted:?} alone")]
    WrongUsage {
        /// The role wanted.
        wanted: Role,
    },
}

/// Reads the files and makes an identity of them.
///
/// # Errors
/// Any [`TlsError`].
pub fn load(files: &TlsFiles) -> Result<TlsIdentity, TlsError> {
    let chain = read_certificates(&files.certificate)?;
    let name = chain
        .first()
        .ok_or(IdentityError::Unparsable)
        .and_then(|certificate| name_in(certificate, Role::Sensor))
        .map_err(|source| TlsError::WrongRole { path: files.certificate.clone(), source })?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Unreadable { path: files.key.clone(), source })?;
    let untrusted = |source| TlsError::Untrusted { path: files.ca.clone(), source };
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&files.ca)? {
        roots.add(certificate).map_err(untrusted)?;
    }
    let provider = Arc::new(provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| untrusted(rustls::Error::General(error.to_string())))?;
    let unusable = |source| TlsError::Unusable { certificate: files.certificate.clone(), source };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CollectorVerifier { inner }))
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    config.resumption = Resumption::disabled();
    Ok(TlsIdentity { config: Arc::new(config), name })
}

/// The name that a certificate gives to its owner, if it is one of this role.
///
/// # Errors
/// Any [`IdentityError`].
pub fn name_in(certificate: &CertificateDer<'_>, role: Role) -> Result<String, IdentityError> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Err(IdentityError::Unparsable);
    };
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unparsable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else { return Err(IdentityError::UriCount { count: uris.len() }) };
    let Some(name) = uri.strip_prefix(role.uri_prefix()).filter(|name| is_name(name)) else {
        return Err(IdentityError::WrongUri { uri: uri.to_owned(), wanted: role });
    };
    let usage = parsed.extended_key_usage().map_err(|_| IdentityError::Unparsable)?;
    let is_right = usage.is_some_and(|usage| {
        let usage = usage.value;
        let (own, other) = match role {
            Role::Sensor => (usage.client_auth, usage.server_auth),
            Role::Collector => (usage.server_auth, usage.client_auth),
        };
        own && !other && !usage.any
    });
    if is_right { Ok(name.to_owned()) } else { Err(IdentityError::WrongUsage { wanted: role }) }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|all| {
            if all.is_empty() { Err(rustls_pki_types::pem::Error::NoItemsFound) } else { Ok(all) }
        })
        .map_err(unreadable)
}

/// The suites of TLS 1.3, AES-128 first. Measured 2026-11-21 on a VM of 2 cores, 512-byte frames,
/// both ends together, medians of 3: 399 ns a frame with AES-128, 433 ns with AES-256.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let is_first = |suite: &rustls::SupportedCipherSuite| {
        suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    };
    provider.cipher_suites.sort_by_key(|suite| !is_first(suite));
    provider
}

/// Everything that webpki checks (chain, validity, host, key usage), then the role.
#[derive(Debug)]
struct CollectorVerifier {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for CollectorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        name_in(end_entity, Role::Collector)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
