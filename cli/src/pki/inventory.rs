//! What certificates a folder holds.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::{Pem, parse_x509_pem};

use super::{PkiError, files};

/// One certificate of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// `authority`, or the role and name that its URI gives (`ringwatch://sensor/NAME`).
    pub identity: String,
    /// DNS names and addresses that it answers as.
    pub hosts: Vec<String>,
    /// Last moment of validity.
    pub not_after: Timestamp,
    /// Is the private key beside it?
    pub has_key: bool,
}

/// All certificates in `folder`, the authority first, then by file name.
///
/// # Errors
/// [`PkiError::NoAuthority`] if `folder` has no `ca.pem`; [`PkiError::Content`] for a `.pem` file
/// that is no certificate.
pub fn list(folder: &Path) -> Result<Vec<Entry>, PkiError> {
    if !folder.join("ca.pem").exists() {
        return Err(PkiError::NoAuthority(folder.to_owned()));
    }
    let read = |source| files::failure("read", folder, source);
    let mut entries = Vec::new();
    for file in fs::read_dir(folder).map_err(read)? {
        let path = file.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".pem") && !name.ends_with(".key.pem") && name != "crl.pem" {
            entries.push(describe(path)?);
        }
    }
    entries.sort_by_key(|entry| (entry.identity != AUTHORITY, entry.path.clone()));
    Ok(entries)
}

/// The list as a table for people. `now` decides what counts as expired.
#[must_use]
pub fn render(entries: &[Entry], now: Timestamp) -> String {
    let width = entries.iter().map(|entry| entry.identity.len()).max().unwrap_or(0);
    let mut text = String::new();
    for entry in entries {
        let days = entry.not_after.duration_since(now).as_hours() / 24;
        let life = match days {
            ..0 => "EXPIRED".to_owned(),
            days => format!("{days} days left"),
        };
        let key = if entry.has_key { "" } else { "  (no key here)" };
        let until = entry.not_after.strftime("%Y-%m-%d");
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:width$}  until {until}  {life:>14}  {}{key}",
            entry.identity,
            entry.hosts.join(" ")
        );
    }
    text
}

const AUTHORITY: &str = "authority";

fn describe(path: PathBuf) -> Result<Entry, PkiError> {
    let pem = pem_of(&path, &files::read(&path)?)?;
    let certificate = certificate_of(&path, &pem)?;
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
    let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())?;
    let has_key = path.with_extension("key.pem").exists();
    let identity = identity.unwrap_or(unknown).to_owned();
    Ok(Entry { identity, hosts, not_after, has_key, path })
}

/// The subject public key info (DER) of the first certificate in `text`.
pub(super) fn public_key(path: &Path, text: &str) -> Result<Vec<u8>, PkiError> {
    let pem = pem_of(path, text)?;
    Ok(certificate_of(path, &pem)?.public_key().raw.to_vec())
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
