//! What a certificate lets its owner be, and the name that it gives.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use wire::text::is_name;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the holder of a certificate may act as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `ringwatch://sensor/NAME`: dials collectors, extended key usage clientAuth alone.
    Sensor,
    /// `ringwatch://collector/NAME`: takes sensors, extended key usage serverAuth alone.
    Collector,
}

impl Role {
    /// What stands before the name in the URI of a certificate.
    #[must_use]
    pub const fn uri_prefix(self) -> &'static str {
        match self {
            Self::Sensor => "ringwatch://sensor/",
            Self::Collector => "ringwatch://collector/",
        }
    }

    /// Its extended key usage.
    #[must_use]
    pub const fn usage(self) -> &'static str {
        match self {
            Self::Sensor => "clientAuth",
            Self::Collector => "serverAuth",
        }
    }

    /// The role at the other end of a connection.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::Sensor => Self::Collector,
            Self::Collector => Self::Sensor,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sensor => "sensor",
            Self::Collector => "collector",
        })
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "sensor" => Ok(Self::Sensor),
            "collector" => Ok(Self::Collector),
            _ => Err(UnknownRole { text: text.to_owned() }),
        }
    }
}

/// The text names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no role, known are sensor and collector")]
pub struct UnknownRole {
    /// The text.
    pub text: String,
}

/// Why a certificate does not identify its owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is none.
    #[error("no certificate")]
    NoCertificate,
    /// It is no X.509 certificate, or has an extension twice.
    #[error("certificate cannot be read")]
    Unreadable,
    /// It does not have exactly one URI among its alternative names.
    #[error("certificate has {found} URIs among its names, not one")]
    NotOneIdentity {
        /// How many there are.
        found: usize,
    },
    /// It is for another role, or the name is none.
    #[error("certificate is for {found}, not for {}NAME", wanted.uri_prefix())]
    WrongRole {
        /// The URI in it.
        found: String,
        /// The role that was wanted.
        wanted: Role,
    },
    /// Its extended key usage is missing, or allows more than the role.
    #[error("certificate must have the extended key usage {} and no other", wanted.usage())]
    WrongUsage {
        /// The role that was wanted.
        wanted: Role,
    },
}

/// Name of the owner of a certificate, if it has this role and no other. The name stands in the one
/// subject alternative name that is a URI. Verifying the certificate is not done here.
///
/// # Errors
/// See [`PeerError`].
pub fn name_in(certificate: &CertificateDer<'_>, role: Role) -> Result<String, PeerError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| PeerError::Unreadable)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let &[uri] = uris.as_slice() else {
        return Err(PeerError::NotOneIdentity { found: uris.len() });
    };
    let Some(name) = uri.strip_prefix(role.uri_prefix()).filter(|name| is_name(name)) else {
        return Err(PeerError::WrongRole { found: uri.to_owned(), wanted: role });
    };
    let usage = parsed.extended_key_usage().map_err(|_| PeerError::Unreadable)?;
    let is_right = usage.is_some_and(|usage| {
        let usage = usage.value;
        let (own, other) = match role {
            Role::Sensor => (usage.client_auth, usage.server_auth),
            Role::Collector => (usage.server_auth, usage.client_auth),
        };
        own && !other && !usage.any
    });
    if is_right { Ok(name.to_owned()) } else { Err(PeerError::WrongUsage { wanted: role }) }
}
