//! The certificates of a Ringwatch installation: one authority, one certificate per sensor and
//! collector, in one folder.
//!
//! ```text
//!   DIR/ca.pem  DIR/ca.key.pem        the authority; the key signs and is needed nowhere else
//!   DIR/NAME.pem  DIR/NAME.key.pem    go to the host of that sensor or collector
//! ```
//!
//! Role and name stand in the certificate itself (a URI in the subject alternative name, and the
//! extended key usage), so that a sensor's certificate cannot act as a collector.

mod files;
mod identity;
mod inventory;

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};

pub use identity::{Host, IdentityError, Name, Role};
pub use inventory::{Entry, list, render};

/// Life of the authority's certificate, in years.
const AUTHORITY_YEARS: i32 = 10;
/// Life of a sensor's or collector's certificate, in years.
const LEAF_YEARS: i32 = 1;

/// What to do about files that are already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave them and fail.
    Keep,
    /// Write over them.
    Replace,
}

/// The two files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Certificate, readable by all.
    pub certificate: PathBuf,
    /// Private key, mode 0600.
    pub key: PathBuf,
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file would be written over.
    #[error("{0} exists already; --force replaces it")]
    Exists(PathBuf),
    /// There is no authority in the folder.
    #[error("{0} has no authority yet; `ringwatch pki init {0}` makes one")]
    NoAuthority(PathBuf),
    /// `ca.key.pem` is not the key of `ca.pem`.
    #[error("{key} does not belong to {certificate}")]
    WrongKey {
        /// The authority's certificate.
        certificate: PathBuf,
        /// The key beside it.
        key: PathBuf,
    },
    /// Only collectors are dialled, so only they have hosts.
    #[error("--host is for collectors: nobody dials a sensor")]
    HostOfSensor,
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path} does not hold a {expected} in PEM form")]
    Content {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        expected: &'static str,
    },
    /// The library could not make a key or a certificate.
    #[error("cannot make the certificate")]
    Generate(#[from] rcgen::Error),
    /// The system clock shows a year that certificates cannot express.
    #[error("the system clock gives no usable date")]
    Clock(#[from] jiff::Error),
}

/// Makes the authority of a new installation in `folder`, which is created (mode 0700) if missing.
///
/// # Errors
/// [`PkiError::Exists`] if there is one and `existing` says to keep it; otherwise what the system
/// says.
pub fn init(folder: &Path, existing: Existing) -> Result<Issued, PkiError> {
    let target = files_of(folder, "ca");
    refuse_existing(&target, existing)?;
    files::create_private_folder(folder)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // A name of its own for each authority: verifiers look up issuers by name, and two authorities
    // of one name give errors that nobody understands.
    let name = format!("Ringwatch CA {}", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, AUTHORITY_YEARS)?;
    let certificate = params.self_signed(&key)?;
    files::write(&target.key, &key.serialize_pem(), files::Access::Owner, existing)?;
    files::write(&target.certificate, &certificate.pem(), files::Access::All, existing)?;
    Ok(target)
}

/// Issues the certificate of one sensor or collector from the authority in `folder`.
///
/// A collector always answers as `localhost`, 127.0.0.1 and ::1; `hosts` come on top.
///
/// # Errors
/// [`PkiError::NoAuthority`] before [`init`]; [`PkiError::Exists`] if the name is taken and
/// `existing` says to keep it; [`PkiError::HostOfSensor`] if a sensor is given hosts.
pub fn issue(
    folder: &Path,
    role: Role,
    name: &Name,
    hosts: &[Host],
    existing: Existing,
) -> Result<Issued, PkiError> {
    let target = files_of(folder, name.as_str());
    if role == Role::Sensor && !hosts.is_empty() {
        return Err(PkiError::HostOfSensor);
    }
    refuse_existing(&target, existing)?;
    let issuer = load_authority(folder)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Sensor => ExtendedKeyUsagePurpose::ClientAuth,
        Role::Collector => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    params.subject_alt_names = alternative_names(role, name, hosts)?;
    set_validity(&mut params, LEAF_YEARS)?;
    let certificate = params.signed_by(&key, &issuer)?;
    files::write(&target.key, &key.serialize_pem(), files::Access::Owner, existing)?;
    files::write(&target.certificate, &certificate.pem(), files::Access::All, existing)?;
    Ok(target)
}

/// The files that the certificate called `name` has in `folder`.
#[must_use]
pub fn files_of(folder: &Path, name: &str) -> Issued {
    Issued {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key.pem")),
    }
}

fn refuse_existing(target: &Issued, existing: Existing) -> Result<(), PkiError> {
    if existing == Existing::Replace {
        return Ok(());
    }
    match [&target.certificate, &target.key].into_iter().find(|path| path.exists()) {
        Some(path) => Err(PkiError::Exists(path.clone())),
        None => Ok(()),
    }
}

fn load_authority(folder: &Path) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let Issued { certificate, key } = files_of(folder, "ca");
    if !certificate.exists() || !key.exists() {
        return Err(PkiError::NoAuthority(folder.to_owned()));
    }
    let key_pair = KeyPair::from_pem(&files::read(&key)?)
        .map_err(|_| PkiError::Content { path: key.clone(), expected: "private key" })?;
    let pem = files::read(&certificate)?;
    // Without this check everything issued would look fine and verify nowhere.
    if inventory::public_key(&certificate, &pem)? != key_pair.subject_public_key_info() {
        return Err(PkiError::WrongKey { certificate, key });
    }
    Ok(Issuer::from_ca_cert_pem(&pem, key_pair)?)
}

fn alternative_names(role: Role, name: &Name, hosts: &[Host]) -> Result<Vec<SanType>, PkiError> {
    let mut names = vec![SanType::URI(format!("ringwatch://{role}/{name}").try_into()?)];
    if role == Role::Collector {
        let always = ["localhost", "127.0.0.1", "::1"].into_iter().filter_map(|h| h.parse().ok());
        for host in always.chain(hosts.iter().cloned()) {
            let entry = match host {
                Host::Address(address) => SanType::IpAddress(address),
                Host::Name(name) => SanType::DnsName(name.try_into()?),
            };
            if !names.contains(&entry) {
                names.push(entry);
            }
        }
    }
    Ok(names)
}

/// Valid from yesterday (clocks differ between hosts) for so many years.
fn set_validity(params: &mut CertificateParams, years: i32) -> Result<(), PkiError> {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let start = today.checked_sub(jiff::Span::new().days(1))?;
    let end = today.checked_add(jiff::Span::new().years(years))?;
    let midnight = |date: jiff::civil::Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = midnight(start);
    params.not_after = midnight(end);
    Ok(())
}
