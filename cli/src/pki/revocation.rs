//! What an authority has revoked: the list in `crl.pem`, signed by it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::authority::{Authority, moment};
use super::{Existing, PkiError, files};

/// Days after which a new list is due, unless another number is asked for. A list says by itself
/// until when a reader may rely on it; 90 days are long enough for a job that runs once a month to fail
/// twice.
pub const CRL_DAYS: u32 = 90;

/// The revocation list of an authority, as it lies in its folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Grows by one with each list.
    pub number: u64,
    /// When the next one is due.
    pub due: Timestamp,
    /// When each serial number was revoked, in seconds since 1970.
    pub serials: BTreeMap<Vec<u8>, i64>,
}

/// Where the list of the authority in `folder` lies.
#[must_use]
pub fn crl_file(folder: &Path) -> PathBuf {
    folder.join("crl.pem")
}

impl Revoked {
    /// Reads the list in `folder`. An authority of an earlier version has none: then it is empty.
    ///
    /// # Errors
    /// [`PkiError::Content`] if the file holds no revocation list.
    pub fn read(folder: &Path) -> Result<Self, PkiError> {
        let path = crl_file(folder);
        if !path.exists() {
            return Ok(Self::default());
        }
        let no_list = || PkiError::Content { path: path.clone(), expected: "revocation list" };
        let text = files::read(&path)?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).map_err(|_| no_list())?;
        let (_, list) =
            CertificateRevocationList::from_der(&pem.contents).map_err(|_| no_list())?;
        let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
        let due = list.next_update().ok_or_else(no_list)?.timestamp();
        let serials = list.iter_revoked_certificates().map(|entry| {
            (stripped(entry.raw_serial()).to_owned(), entry.revocation_date.timestamp())
        });
        Ok(Self {
            number: number.ok_or_else(no_list)?,
            due: Timestamp::from_second(due)?,
            serials: serials.collect(),
        })
    }

    /// Whether a serial number is on the list.
    #[must_use]
    pub fn contains(&self, serial: &[u8]) -> bool {
        self.serials.contains_key(stripped(serial))
    }

    /// Puts a serial number on the list; false if it was there.
    pub fn insert(&mut self, serial: &[u8], now: Timestamp) -> bool {
        let is_new = !self.contains(serial);
        self.serials.entry(stripped(serial).to_owned()).or_insert(now.as_second());
        is_new
    }

    /// Signs the list and writes it, as the one after that which was read.
    ///
    /// # Errors
    /// What the system or the library says.
    pub fn sign(
        &mut self,
        authority: &Authority,
        folder: &Path,
        now: Timestamp,
        days: u32,
    ) -> Result<(), PkiError> {
        let next = self.number.saturating_add(1);
        let now = now.as_second();
        let due = now.saturating_add(i64::from(days) * 86_400);
        let entry = |(serial, at): (&Vec<u8>, &i64)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: moment(*at),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            // As certificates: clocks differ between hosts.
            this_update: moment(now - super::BACKDATED),
            next_update: moment(due),
            crl_number: SerialNumber::from(next),
            issuing_distribution_point: None,
            revoked_certs: self.serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let text = list.signed_by(&authority.issuer)?.pem()?;
        files::write(&crl_file(folder), &text, files::Access::All, Existing::Replace)?;
        (self.number, self.due) = (next, Timestamp::from_second(due)?);
        Ok(())
    }
}

/// Without the zeros in front: DER has one before a number whose highest bit is set.
fn stripped(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}
