//! Who a peer is, and TLS as sensor and collector speak it with each other.
//!
//! ```text
//!   ca ──────────┐
//!   certificate ─┤   files     identity                         keeper
//!   key ─────────┼──▶ read ──▶ SensorTls | CollectorTls ──▶ the last good one, read anew when a
//!   crl ─────────┘             (rules for the peer)         file changes
//!
//!   role      what a certificate lets its owner be, and under which name
//!   tokens    who may use a collector's API
//!   words     what went wrong, for people: both times where a clock or a validity is to blame
//! ```
//!
//! TLS 1.3 only, certificates on both sides, no resumption: each connection verifies its peer anew.
//! There is no switch that skips it. It opens no socket and starts no thread.
#![forbid(unsafe_code)]

mod files;
mod identity;
mod keeper;
mod role;
pub mod tokens;
pub mod words;

pub use files::{FileError, FileKind, Files};
pub use identity::{ApiTls, CollectorTls, Expiry, Identity, SensorTls, Validity, provider};
pub use keeper::{Keeper, KeeperStatus, Known, Look, Stamp};
pub use role::{PeerError, Role, name_in};

/// Bytes that nobody can foresee.
///
/// # Errors
/// The system gives none.
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

/// The system gives no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandom;

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    let found = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.copy_from_slice(found.as_ref());
    digest
}
