//! What certificates a folder holds, and which of them are revoked.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use trust::Role;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::{Pem, parse_x509_pem};

use super::revocation::Revoked;
use super::{PkiError, files};
use crate::text::table;

/// One certificate of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// `authority`, or the role and name that its URI gives (`sensor/NAME`).
    pub identity: String,
    /// Its role; `None` for the authority, and for what is not of Ringwatch.
    pub role: Option<Role>,
    /// Serial number, most significant byte first.
    pub serial: Vec<u8>,
    /// DNS names and addresses that it answers as.
    pub hosts: Vec<String>,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// Is the private key beside it?
    pub has_key: bool,
}

/// All certificates of a folder, and its revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The authority first, then by file name.
    pub entries: Vec<Entry>,
    /// What is revoked.
    pub revoked: Revoked,
}

impl Entry {
    /// The serial number in hexadecimal digits, as other tools show it.
    #[must_use]
    pub fn serial_text(&self) -> String {
        self.serial.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// All certificates in `folder`.
///
/// # Errors
/// [`PkiError::NoAuthority`] if `folder` has no `ca.pem`; [`PkiError::Content`] for a `.pem` file
/// that is no certificate.
pub fn list(folder: &Path) -> Result<Inventory, PkiError> {
    if !folder.join("ca.pem").exists() {
        return Err(PkiError::NoAuthority(folder.to_owned()));
    }
    let read = |source| files::failure("read", folder, source);
    let mut entries = Vec::new();
    for file in fs::read_dir(folder).map_err(read)? {
        let path = file.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".pem") && !name.ends_with(".key.pem") && name != "crl.pem" {
            entries.push(describe(&path)?);
        }
    }
    entries.sort_by_key(|entry| (entry.identity != AUTHORITY, entry.path.clone()));
    Ok(Inventory { entries, revoked: Revoked::read(folder)? })
}

/// The inventory as a table for people. `now` decides what counts as expired.
#[must_use]
pub fn render(inventory: &Inventory, now: Timestamp) -> String {
    let Inventory { entries, revoked } = inventory;
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            let mut state = days_left(entry.not_after, now);
            if revoked.contains(&entry.serial) {
                state = "REVOKED".to_owned();
            } else if entry.not_before > now {
                state = "NOT YET".to_owned();
            }
            if !entry.has_key {
                state.push_str(" (no key here)");
            }
            [
                entry.identity.clone(),
                entry.serial_text(),
                day(entry.not_before),
                day(entry.not_after),
                state,
                entry.hosts.join(" "),
            ]
        })
        .collect();
    let mut text = table(HEADS, [false; HEADS.len()], &rows);
    if revoked.number > 0 {
        text += &format!(
            "revocation list {}: {} revoked, next due {}, {}\n",
            revoked.number,
            revoked.serials.len(),
            day(revoked.due),
            days_left(revoked.due, now),
        );
    }
    text
}

const HEADS: [&str; 6] = ["CERTIFICATE", "SERIAL", "FROM", "UNTIL", "STATE", "HOSTS"];

fn days_left(until: Timestamp, now: Timestamp) -> String {
    match until.duration_since(now).as_secs() {
        ..0 => "EXPIRED".to_owned(),
        left => format!("{} days left", left / 86_400),
    }
}

const AUTHORITY: &str = "authority";

/// What stands in a certificate's file.
///
/// # Errors
/// [`PkiError::Content`] if that is no certificate.
pub fn describe(path: &Path) -> Result<Entry, PkiError> {
    entry_of(path, &files::read(path)?)
}

/// What stands in a certificate that is, or will be, the file `path`.
///
/// # Errors
/// [`PkiError::Content`] if the text is no certificate.
pub fn entry_of(path: &Path, text: &str) -> Result<Entry, PkiError> {
    let pem = pem_of(path, text)?;
    let certificate = certificate_of(path, &pem)?;
    let mut identity = None;
    let mut hosts = Vec::new();
    for name in certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map_or(&[][..], |extension| &extension.value.general_names)
    {
        match name {
            GeneralName::URI(uri) => identity = uri.strip_prefix("ringwatch://"),
            GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
            GeneralName::IPAddress(bytes) => hosts.extend(address(bytes)),
            _ => {}
        }
    }
    let unknown = if certificate.is_ca() { AUTHORITY } else { "not of ringwatch" };
    let identity = identity.unwrap_or(unknown).to_owned();
    let validity = certificate.validity();
    let serial = certificate.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    Ok(Entry {
        role: identity.split_once('/').and_then(|(role, _)| role.parse().ok()),
        identity,
        serial: serial.get(zeros..).unwrap_or_default().to_owned(),
        hosts,
        not_before: Timestamp::from_second(validity.not_before.timestamp())?,
        not_after: Timestamp::from_second(validity.not_after.timestamp())?,
        has_key: path.with_extension("key.pem").exists(),
        path: path.to_owned(),
    })
}

/// The subject public key info (DER) of the first certificate in `text`, and the last second of its
/// validity since 1970.
///
/// # Errors
/// [`PkiError::Content`] if the text is no certificate.
pub fn key_and_end(path: &Path, text: &str) -> Result<(Vec<u8>, i64), PkiError> {
    let pem = pem_of(path, text)?;
    let certificate = certificate_of(path, &pem)?;
    let until = certificate.validity().not_after.timestamp();
    Ok((certificate.public_key().raw.to_vec(), until))
}

fn pem_of(path: &Path, text: &str) -> Result<Pem, PkiError> {
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|_| no_certificate(path))?;
    Ok(pem)
}

fn certificate_of<'a>(path: &Path, pem: &'a Pem) -> Result<X509Certificate<'a>, PkiError> {
    pem.parse_x509().map_err(|_| no_certificate(path))
}

fn no_certificate(path: &Path) -> PkiError {
    PkiError::Content { path: path.to_owned(), expected: "certificate" }
}

/// The text of an address in a certificate: 4 or 16 bytes, or nothing sensible.
fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or(v6).ok().map(|address| address.to_string())
}
