//! The certificates of a Ringwatch installation: one authority, one certificate per sensor and
//! collector, in one folder.
//!
//! ```text
//!   DIR/ca.pem  DIR/ca.key.pem        the authority; the key signs and is needed nowhere else
//!   DIR/NAME.pem  DIR/NAME.key.pem    go to the host of that sensor or collector
//!   DIR/crl.pem                       what is revoked; goes to everyone
//!   DIR/issued.json                   one line for each certificate that was ever issued
//! ```
//!
//! Role and name stand in the certificate itself (a URI in the subject alternative name, and the
//! extended key usage), so that a sensor's certificate cannot act as a collector.

mod authority;
mod files;
mod identity;
mod inventory;
mod journal;
mod revocation;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use trust::Role;

use authority::{Authority, moment, serial_number};
pub use identity::{Host, IdentityError, Name};
pub use inventory::{Entry, Inventory, list, render};
pub use revocation::{CRL_DAYS, Revoked, crl_file};

/// Life of the authority's certificate, in days: ten years.
const AUTHORITY_DAYS: u32 = 3653;
/// Life of a sensor's or collector's certificate, in days, unless another is asked for.
pub const LEAF_DAYS: u32 = 365;
/// How long before its issue a certificate is valid, in seconds: clocks differ between hosts.
const BACKDATED: i64 = 86_400;

/// What to do about files that are already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave them and fail.
    Keep,
    /// Write over them.
    Replace,
}

/// What becomes of the private key when a certificate is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewedKey {
    /// A new one, so that one that leaked unnoticed ends with its certificate.
    New,
    /// The one before, where it cannot be replaced.
    Same,
}

/// Which certificates of a name are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that were ever issued.
    All,
    /// All but the one that lies in the folder.
    Earlier,
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
    #[error("{} exists already; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// There is no authority in the folder.
    #[error("{0} has no authority yet; `ringwatch pki init {0}` makes one")]
    NoAuthority(PathBuf),
    /// No certificate of this name was issued.
    #[error("{} has no certificate called {name}; `ringwatch pki list` shows those it has", folder.display())]
    Unknown {
        /// The folder.
        folder: PathBuf,
        /// The name.
        name: String,
    },
    /// A certificate has no role, so it is not one that this program made.
    #[error("{} is no certificate of a sensor or collector", .0.display())]
    NotOurs(PathBuf),
    /// `ca.key.pem` is not the key of `ca.pem`.
    #[error("{} does not belong to {}", key.display(), certificate.display())]
    WrongKey {
        /// The authority's certificate.
        certificate: PathBuf,
        /// The key beside it.
        key: PathBuf,
    },
    /// The authority's own certificate has expired.
    #[error("the authority in {} expired at {until}; make a new one in another folder", folder.display())]
    AuthorityOver {
        /// The folder.
        folder: PathBuf,
        /// When.
        until: String,
    },
    /// Only collectors are dialled, so only they have hosts.
    #[error("--host is for collectors: nobody dials a sensor")]
    HostOfSensor,
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, `create`, `lock`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{} does not hold a {expected} in PEM form", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// `certificate`, `private key` or `revocation list`.
        expected: &'static str,
    },
    /// A line of `issued.json` cannot be read.
    #[error("{}:{line}: cannot be read as a certificate that was issued", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// The library could not make a key or a certificate.
    #[error("cannot make the certificate")]
    Generate(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The system clock shows a year that certificates cannot express.
    #[error("the system clock gives no usable date")]
    Clock(#[from] jiff::Error),
}

/// Makes the authority of a new installation in `folder`, which is created (mode 0700) if missing,
/// with an empty revocation list.
///
/// # Errors
/// [`PkiError::Exists`] if there is one and `existing` says to keep it; otherwise what the system
/// says.
pub fn init(folder: &Path, existing: Existing) -> Result<Issued, PkiError> {
    let target = files_of(folder, "ca");
    refuse_existing(&target, existing)?;
    files::create_private_folder(folder)?;
    let now = Timestamp::now();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // A name of its own for each authority: verifiers look up issuers by name, and two authorities
    // of one name give errors that nobody understands.
    let number: [u8; 2] = trust::random().map_err(|_| PkiError::Random)?;
    let number = u16::from_be_bytes(number);
    let name = format!("Ringwatch CA {} {number:04x}", now.strftime("%Y-%m-%dT%H:%M:%SZ"));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial_number()?);
    set_validity(&mut params, now, AUTHORITY_DAYS, i64::MAX);
    let certificate = params.self_signed(&key)?;
    files::write(&target.key, &key.serialize_pem(), files::Access::Owner, existing)?;
    files::write(&target.certificate, &certificate.pem(), files::Access::All, existing)?;
    // Those of an authority before speak of certificates that are worth nothing now.
    for leftover in [crl_file(folder), journal::file(folder)] {
        files::remove(&leftover)?;
    }
    let authority = Authority::open(folder)?;
    Revoked::default().sign(&authority, folder, now, CRL_DAYS)?;
    Ok(target)
}

/// Issues the certificate of one sensor or collector from the authority in `folder`, for so many
/// days, but for no longer than the authority's own.
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
    days: u32,
    existing: Existing,
) -> Result<Issued, PkiError> {
    let target = files_of(folder, name.as_str());
    if role == Role::Sensor && !hosts.is_empty() {
        return Err(PkiError::HostOfSensor);
    }
    refuse_existing(&target, existing)?;
    let authority = Authority::open(folder)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = Request { role, name, names: alternative_names(role, name, hosts)?, days };
    sign(folder, &authority, request, &key, existing)?;
    Ok(target)
}

/// Issues the certificate called `name` anew: same role, same hosts. Both files are replaced, each
/// at once; programs that have them open go on with those before until both have changed.
///
/// # Errors
/// [`PkiError::Unknown`] if there is none of that name.
pub fn renew(folder: &Path, name: &Name, key: RenewedKey, days: u32) -> Result<Issued, PkiError> {
    let target = files_of(folder, name.as_str());
    let authority = Authority::open(folder)?;
    if !target.certificate.exists() {
        return Err(unknown(folder, name));
    }
    let entry = inventory::describe(&target.certificate)?;
    let role = entry.role.ok_or_else(|| PkiError::NotOurs(target.certificate.clone()))?;
    let hosts: Vec<Host> = entry.hosts.iter().filter_map(|host| host.parse().ok()).collect();
    let key = match key {
        RenewedKey::New => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        RenewedKey::Same => KeyPair::from_pem(&files::read(&target.key)?)
            .map_err(|_| PkiError::Content { path: target.key.clone(), expected: "private key" })?,
    };
    let request = Request { role, name, names: alternative_names(role, name, &hosts)?, days };
    sign(folder, &authority, request, &key, Existing::Replace)?;
    Ok(target)
}

/// Revokes certificates called `name`, and signs the list with them. Gives the list, and how many
/// certificates were not on it before.
///
/// # Errors
/// [`PkiError::Unknown`] if none of that name was ever issued.
pub fn revoke(
    folder: &Path,
    name: &Name,
    which: Which,
    days: u32,
) -> Result<(Revoked, usize), PkiError> {
    let authority = Authority::open(folder)?;
    let present = files_of(folder, name.as_str()).certificate;
    let current = if present.exists() { Some(inventory::describe(&present)?.serial) } else { None };
    let mut serials = journal::serials_of(folder, name)?;
    // Of an earlier version, which kept no journal.
    serials.extend(current.clone());
    if serials.is_empty() {
        return Err(unknown(folder, name));
    }
    if which == Which::Earlier {
        serials.retain(|serial| Some(serial) != current.as_ref());
    }
    let mut revoked = Revoked::read(folder)?;
    let now = Timestamp::now();
    let added = serials.iter().filter(|serial| revoked.insert(serial, now)).count();
    revoked.sign(&authority, folder, now, days)?;
    Ok((revoked, added))
}

/// Signs the revocation list anew, so that it is good for so many days from now.
///
/// # Errors
/// What the system says.
pub fn sign_crl(folder: &Path, days: u32) -> Result<Revoked, PkiError> {
    let authority = Authority::open(folder)?;
    let mut revoked = Revoked::read(folder)?;
    revoked.sign(&authority, folder, Timestamp::now(), days)?;
    Ok(revoked)
}

/// The files that the certificate called `name` has in `folder`.
#[must_use]
pub fn files_of(folder: &Path, name: &str) -> Issued {
    Issued {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key.pem")),
    }
}

/// What a certificate is to say.
struct Request<'a> {
    role: Role,
    name: &'a Name,
    names: Vec<SanType>,
    days: u32,
}

/// Signs a certificate, notes it, and writes its two files.
fn sign(
    folder: &Path,
    authority: &Authority,
    request: Request<'_>,
    key: &KeyPair,
    existing: Existing,
) -> Result<(), PkiError> {
    let Request { role, name, names, days } = request;
    let now = Timestamp::now();
    if authority.until <= now.as_second() {
        let until = trust::words::utc(authority.until);
        return Err(PkiError::AuthorityOver { folder: folder.to_owned(), until });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name.as_str());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Sensor => ExtendedKeyUsagePurpose::ClientAuth,
        Role::Collector => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    params.subject_alt_names = names;
    params.serial_number = Some(serial_number()?);
    set_validity(&mut params, now, days, authority.until);
    let issuer: &Issuer<'_, KeyPair> = &authority.issuer;
    let pem = params.signed_by(key, issuer)?.pem();
    let target = files_of(folder, name.as_str());
    // Noted first: what was issued and not noted could not be revoked once it is replaced.
    journal::note(folder, &inventory::entry_of(&target.certificate, &pem)?)?;
    files::write(&target.key, &key.serialize_pem(), files::Access::Owner, existing)?;
    files::write(&target.certificate, &pem, files::Access::All, existing)
}

fn unknown(folder: &Path, name: &Name) -> PkiError {
    PkiError::Unknown { folder: folder.to_owned(), name: name.as_str().to_owned() }
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

fn alternative_names(role: Role, name: &Name, hosts: &[Host]) -> Result<Vec<SanType>, PkiError> {
    let mut names = vec![SanType::URI(format!("{}{name}", role.uri_prefix()).try_into()?)];
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

/// Valid from yesterday for so many days from now, but not after `limit` (seconds since 1970).
fn set_validity(params: &mut CertificateParams, now: Timestamp, days: u32, limit: i64) {
    let now = now.as_second();
    params.not_before = moment(now - BACKDATED);
    params.not_after = moment(now.saturating_add(i64::from(days) * 86_400).min(limit));
}
