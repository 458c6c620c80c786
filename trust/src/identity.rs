//! An identity: our certificate and key, ready for handshakes, and the rules for that of a peer.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use crate::files::{self, FileError, FileKind, Files};
use crate::role::{PeerError, Role, name_in};

/// The time in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from: i64,
    /// Last second.
    pub until: i64,
}

impl Validity {
    /// That of a certificate; `None` if it cannot be read.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() })
    }
}

/// When the files of an identity expire, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The own certificate.
    pub certificate: Validity,
    /// The authority's certificate: of several the first one to expire. `None`: there is none.
    pub ca: Option<i64>,
    /// When a newer revocation list is due: of several the first one.
    pub crl: Option<i64>,
}

impl Expiry {
    /// Each file that expires, and when.
    #[must_use]
    pub fn all(&self) -> Vec<(FileKind, i64)> {
        let mut all = vec![(FileKind::Certificate, self.certificate.until)];
        all.extend(self.ca.map(|ca| (FileKind::Ca, ca)));
        all.extend(self.crl.map(|crl| (FileKind::Crl, crl)));
        all
    }
}

/// What [`Keeper`](crate::Keeper) keeps: something made of [`Files`].
pub trait Identity: Sized {
    /// Whose identity it is.
    const ROLE: Role;

    /// Reads and checks the files.
    ///
    /// # Errors
    /// See [`FileError`].
    fn load(files: &Files) -> Result<Self, FileError>;

    /// The name in the own certificate.
    fn name(&self) -> &str;

    /// When its files expire.
    fn expiry(&self) -> &Expiry;

    /// The name in the peer's certificate that was refused last by this thread, if it has one; once. What
    /// it says is not verified. To be asked by the thread that shakes hands, before it does so with
    /// another peer.
    fn take_refused(&self) -> Option<String>;
}

/// The identity of a sensor.
#[derive(Clone, Debug)]
pub struct SensorTls {
    name: String,
    expiry: Expiry,
    /// What rustls needs to dial a collector.
    pub config: Arc<ClientConfig>,
    verifier: Arc<PeerVerifier<WebPkiServerVerifier>>,
}

/// The identity of a collector.
#[derive(Clone, Debug)]
pub struct CollectorTls {
    name: String,
    expiry: Expiry,
    /// What rustls needs to accept sensors.
    pub config: Arc<ServerConfig>,
    verifier: Arc<PeerVerifier<dyn ClientCertVerifier>>,
}

impl SensorTls {
    /// Verifies the collector's certificate chain, own one first, by the rules of now: whether a
    /// session that has begun may go on.
    ///
    /// # Errors
    /// As a handshake would fail.
    pub fn verify_peer(
        &self,
        chain: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (own, others) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_server_cert(own, others, host, &[], now).map(|_| ())
    }
}

impl CollectorTls {
    /// Verifies a sensor's certificate chain, own one first, by the rules of now: whether a session
    /// that has begun may go on.
    ///
    /// # Errors
    /// As a handshake would fail.
    pub fn verify_peer(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (own, others) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(own, others, now).map(|_| ())
    }
}

impl Identity for SensorTls {
    const ROLE: Role = Role::Sensor;

    fn load(files: &Files) -> Result<Self, FileError> {
        let Material { name, chain, key, roots, crls, expiry } = Material::read(files, Self::ROLE)?;
        let provider = provider();
        let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(crls)
            .build()
            .map_err(|error| unusable_rules(files, &error))?;
        let verifier = PeerVerifier::new(inner, Self::ROLE.peer());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
                    .with_client_auth_cert(chain, key)
            })
            .map_err(|source| mismatch(files, source))?;
        config.resumption = Resumption::disabled();
        Ok(Self { name, expiry, config: Arc::new(config), verifier })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    fn take_refused(&self) -> Option<String> {
        self.verifier.take_refused()
    }
}

impl Identity for CollectorTls {
    const ROLE: Role = Role::Collector;

    fn load(files: &Files) -> Result<Self, FileError> {
        let Material { name, chain, key, roots, crls, expiry } = Material::read(files, Self::ROLE)?;
        let provider = provider();
        let inner = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(crls)
            .build()
            .map_err(|error| unusable_rules(files, &error))?;
        let verifier = PeerVerifier::new(inner, Self::ROLE.peer());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(Arc::clone(&verifier) as _)
                    .with_single_cert(chain, key)
            })
            .map_err(|source| mismatch(files, source))?;
        // A resumed session would not verify the peer's certificate again.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { name, expiry, config: Arc::new(config), verifier })
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    fn take_refused(&self) -> Option<String> {
        self.verifier.take_refused()
    }
}

/// The certificate of a collector's HTTP API. It may be of any authority: who asks shows a token, and
/// no certificate.
#[derive(Clone, Debug)]
pub struct ApiTls {
    expiry: Expiry,
    /// What rustls needs to serve HTTP/1.1.
    pub config: Arc<ServerConfig>,
}

impl Identity for ApiTls {
    const ROLE: Role = Role::Collector;

    /// Looks at certificate and key alone.
    fn load(files: &Files) -> Result<Self, FileError> {
        let chain = files::certificates(FileKind::Certificate, &files.certificate)?;
        let key = files::private_key(&files.key)?;
        let bad = || mismatch(files, CertificateError::BadEncoding.into());
        let certificate = chain.first().and_then(Validity::of).ok_or_else(bad)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|source| mismatch(files, source))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let expiry = Expiry { certificate, ca: None, crl: None };
        Ok(Self { expiry, config: Arc::new(config) })
    }

    /// It has none that means something.
    fn name(&self) -> &'static str {
        ""
    }

    fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    /// It asks nobody for a certificate.
    fn take_refused(&self) -> Option<String> {
        None
    }
}

/// The only provider of cryptography, with the suites of TLS 1.3, AES-128 first. Measured 2026-11-21
/// on a VM of 2 cores, 512-byte frames, both ends together, medians of 3: 399 ns a frame with
/// AES-128, 433 ns with AES-256.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let is_first = |suite: &rustls::SupportedCipherSuite| {
        suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
    };
    provider.cipher_suites.sort_by_key(|suite| !is_first(suite));
    Arc::new(provider)
}

/// What the files hold.
struct Material {
    name: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
    expiry: Expiry,
}

impl Material {
    fn read(files: &Files, role: Role) -> Result<Self, FileError> {
        let chain = files::certificates(FileKind::Certificate, &files.certificate)?;
        let wrong_role =
            |source| FileError::WrongRole { path: files.certificate.clone(), wanted: role, source };
        let own = chain.first().ok_or(PeerError::NoCertificate).map_err(wrong_role)?;
        let name = name_in(own, role).map_err(wrong_role)?;
        let certificate = Validity::of(own).ok_or_else(|| wrong_role(PeerError::Unreadable))?;
        let key = files::private_key(&files.key)?;
        let authorities = files::certificates(FileKind::Ca, &files.ca)?;
        let bad_authority = |source| FileError::BadAuthority { path: files.ca.clone(), source };
        let mut roots = RootCertStore::empty();
        let mut ca = i64::MAX;
        for authority in &authorities {
            roots.add(authority.clone()).map_err(bad_authority)?;
            let validity = Validity::of(authority).ok_or_else(|| {
                bad_authority(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))
            })?;
            ca = ca.min(validity.until);
        }
        let (crls, crl) = match &files.crl {
            None => (Vec::new(), None),
            Some(path) => {
                let crls = files::revocation_lists(path)?;
                let due = check_crls(path, &crls, &files.ca, &authorities)?;
                (crls, due)
            }
        };
        let expiry = Expiry { certificate, ca: Some(ca), crl };
        Ok(Self { name, chain, key, roots: Arc::new(roots), crls, expiry })
    }
}

/// Whether the lists are what webpki takes, each is signed by one of the authorities, and each authority has one.
/// When the first of them is to be renewed, if that is said.
///
/// Without it, a list that is no good would show at the next handshake, and fail it; and so would one that is missing,
/// for all that its authority has issued.
fn check_crls(
    path: &Path,
    crls: &[CertificateRevocationListDer<'_>],
    ca: &Path,
    authorities: &[CertificateDer<'_>],
) -> Result<Option<i64>, FileError> {
    let bad = |problem: String| FileError::BadCrl { path: path.to_owned(), problem };
    let mut due: Option<i64> = None;
    let mut has_list = vec![false; authorities.len()];
    for crl in crls {
        let (_, parsed) = CertificateRevocationList::from_der(crl)
            .map_err(|_| bad("a revocation list cannot be read".to_owned()))?;
        let next = parsed
            .next_update()
            .ok_or_else(|| bad("a revocation list does not say when the next is due".to_owned()))?
            .timestamp();
        let mut is_foreign = true;
        for (authority, has_list) in authorities.iter().zip(&mut has_list) {
            let is_own = is_signed_by(&parsed, authority);
            (*has_list, is_foreign) = (*has_list || is_own, is_foreign && !is_own);
        }
        if is_foreign {
            return Err(FileError::ForeignCrl { path: path.to_owned(), ca: ca.to_owned() });
        }
        due = Some(due.map_or(next, |due| due.min(next)));
    }
    if let Some(at) = has_list.iter().position(|has_list| !has_list) {
        let parsed = X509Certificate::from_der(&authorities[at]);
        let authority = parsed.map_or_else(|_| String::new(), |(_, it)| it.subject().to_string());
        return Err(FileError::MissingCrl { path: path.to_owned(), ca: ca.to_owned(), authority });
    }
    Ok(due)
}

/// Whether the list is signed by this authority, with any algorithm that we take.
fn is_signed_by(crl: &CertificateRevocationList<'_>, authority: &CertificateDer<'_>) -> bool {
    let Ok((_, authority)) = X509Certificate::from_der(authority) else { return false };
    if crl.issuer().as_raw() != authority.subject().as_raw() {
        return false;
    }
    let key = &authority.public_key().subject_public_key.data;
    let signed = crl.tbs_cert_list.as_ref();
    let signature = &crl.signature_value.data;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    algorithms.all.iter().any(|one| one.verify_signature(key, signed, signature).is_ok())
}

fn mismatch(files: &Files, source: rustls::Error) -> FileError {
    FileError::Mismatch { key: files.key.clone(), certificate: files.certificate.clone(), source }
}

/// webpki refuses what was read as the rules for peers.
fn unusable_rules(files: &Files, error: &rustls::server::VerifierBuilderError) -> FileError {
    match (error, &files.crl) {
        (rustls::server::VerifierBuilderError::InvalidCrl(error), Some(path)) => {
            FileError::BadCrl { path: path.clone(), problem: format!("revocation list: {error:?}") }
        }
        _ => FileError::BadAuthority {
            path: files.ca.clone(),
            source: rustls::Error::General(error.to_string()),
        },
    }
}

/// Everything that webpki checks (chain, validity, revocation, host, key usage), then the role.
#[derive(Debug)]
struct PeerVerifier<V: ?Sized> {
    peer: Role,
    /// The name in the certificate that a thread refused last, until that thread asks. Bounded by the
    /// number of threads that shake hands.
    refused: Mutex<HashMap<ThreadId, String>>,
    inner: Arc<V>,
}

impl<V: ?Sized> PeerVerifier<V> {
    fn new(inner: Arc<V>, peer: Role) -> Arc<Self> {
        Arc::new(Self { peer, refused: Mutex::default(), inner })
    }

    /// Adds the role to what webpki found, and remembers who was refused.
    fn conclude<T>(
        &self,
        certificate: &CertificateDer<'_>,
        verified: Result<T, rustls::Error>,
    ) -> Result<T, rustls::Error> {
        let name = name_in(certificate, self.peer);
        if verified.is_err() {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let thread = thread::current().id();
            match name {
                Ok(name) => _ = refused.insert(thread, name),
                Err(_) => _ = refused.remove(&thread),
            }
            return verified;
        }
        match name {
            Ok(_) => verified,
            Err(error) => Err(CertificateError::Other(OtherError(Arc::new(error))).into()),
        }
    }

    fn take_refused(&self) -> Option<String> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.remove(&thread::current().id())
    }
}

impl ServerCertVerifier for PeerVerifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let inner = &self.inner;
        let verified =
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        self.conclude(end_entity, verified)
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

impl ClientCertVerifier for PeerVerifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        self.conclude(end_entity, verified)
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
