//! What went wrong in a handshake: a word for metrics, and a sentence for the operator.

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use crate::identity::Validity;
use crate::role::{PeerError, Role};

/// The word for a failed handshake, in metrics and logs.
#[must_use]
pub fn failure(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_issuer",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "not_valid_yet"
            }
            CertificateError::Revoked => "revoked",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "wrong_purpose"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "wrong_host"
            }
            CertificateError::Other(other) if other.0.is::<PeerError>() => "wrong_role",
            _ => "bad_certificate",
        },
        Error::InvalidMessage(_) => "not_tls",
        Error::AlertReceived(_) => "refused_by_peer",
        Error::PeerIncompatible(_) => "incompatible",
        _ => "other",
    }
}

/// What an operator reads about a failed handshake or an ended session. `peer` is the role of the
/// other end, `own` the validity of our certificate, `now` our clock.
#[must_use]
pub fn explain(error: &Error, peer: Role, own: Validity, now: UnixTime) -> String {
    match error {
        Error::InvalidCertificate(reason) => refusal(reason, peer),
        Error::AlertReceived(alert) => {
            alert_in_words(*alert, peer, own, now).unwrap_or_else(|| error.to_string())
        }
        Error::NoCertificatesPresented => format!("the {peer} showed no certificate"),
        Error::InvalidMessage(_) => format!("the other end does not speak TLS: {error}"),
        _ => error.to_string(),
    }
}

/// Why we refuse the peer's certificate.
fn refusal(reason: &CertificateError, peer: Role) -> String {
    match reason {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the {peer}'s certificate expired at {}, and the clock here shows {}, {} later; renew \
             it (ringwatch pki renew DIR NAME), or set the clock right",
            utc(seconds(*not_after)),
            utc(seconds(*time)),
            span(seconds(*time).saturating_sub(seconds(*not_after))),
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the {peer}'s certificate is not valid before {}, and the clock here shows {}, {} \
             earlier; set the clock right here or where certificates are issued",
            utc(seconds(*not_before)),
            utc(seconds(*time)),
            span(seconds(*not_before).saturating_sub(seconds(*time))),
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the {peer}'s certificate is of no authority in our `ca` file; issue it with this \
             authority, or add its authority to the file"
        ),
        CertificateError::Revoked => format!("the {peer}'s certificate is revoked"),
        CertificateError::UnknownRevocationStatus => format!(
            "whether the {peer}'s certificate is revoked cannot be told: our `crl` file has no list of the authority \
             between it and those in our `ca` file; add that authority to the one, and its list to the other"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!(
                "the certificate of the other end may not act as a {peer}: its extended key usage \
                 lacks {}",
                peer.usage()
            )
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the {peer}'s certificate is not for the host that was dialled, {}; it is for {}; \
             issue it with --host, or dial another name",
            expected.to_str(),
            presented.join(", "),
        ),
        CertificateError::Other(other) => match other.0.downcast_ref::<PeerError>() {
            Some(role) => format!("the other end is no {peer}: {role}"),
            None => reason.to_string(),
        },
        other => format!("the {peer}'s certificate is refused: {other}"),
    }
}

/// Why the peer refuses ours; `None` for what has nothing to do with certificates.
fn alert_in_words(
    alert: AlertDescription,
    peer: Role,
    own: Validity,
    now: UnixTime,
) -> Option<String> {
    let ours = peer.peer();
    let why = match alert {
        AlertDescription::CertificateExpired => format!(
            "as expired or not yet valid; it is valid from {} until {}, and the clock here shows \
             {}: renew it, or set the clock right here or at the {peer}",
            utc(own.from),
            utc(own.until),
            utc(seconds(now)),
        ),
        AlertDescription::CertificateRevoked => "as revoked".to_owned(),
        AlertDescription::UnknownCA => {
            format!("as one of an authority that the {peer} does not know (its `ca` file)")
        }
        AlertDescription::DecryptError => format!(
            "for its signature: perhaps of another authority than that in the `ca` file of the \
             {peer}"
        ),
        AlertDescription::BadCertificate => "as one for another host or a damaged one".to_owned(),
        AlertDescription::UnsupportedCertificate => format!("as one that may not act as a {ours}"),
        AlertDescription::CertificateUnknown => format!("as none of a {ours}"),
        AlertDescription::CertificateRequired => "because it got none".to_owned(),
        AlertDescription::AccessDenied => "for reasons of its own".to_owned(),
        _ => return None,
    };
    Some(format!("the {peer} refused our certificate {why}"))
}

/// A time in seconds since 1970, as people write it.
#[must_use]
pub fn utc(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// A number of seconds in the unit that people would choose.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds.max(0) {
        short @ 0..120 => format!("{short} s"),
        minutes @ 120..7200 => format!("{} min", minutes / 60),
        hours @ 7200..172_800 => format!("{} h", hours / 3600),
        long => format!("{} days", long / 86_400),
    }
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OWN: Validity = Validity { from: 1_000_000_000, until: 1_100_000_000 };

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_clock_that_is_behind_is_told_with_both_times() {
        let reason = CertificateError::NotValidYetContext {
            time: at(1_000_000_000),
            not_before: at(1_000_000_600),
        };
        let said = explain(&reason.into(), Role::Collector, OWN, at(1_000_000_000));
        assert_eq!(
            said,
            "the collector's certificate is not valid before 2001-09-09T01:56:40Z, and the clock \
             here shows 2001-09-09T01:46:40Z, 10 min earlier; set the clock right here or where \
             certificates are issued"
        );
    }

    #[test]
    fn the_end_that_was_refused_reads_its_validity_and_its_clock() {
        let error = Error::AlertReceived(AlertDescription::CertificateExpired);
        let said = explain(&error, Role::Collector, OWN, at(1_000_000_000));
        for part in [
            "the collector refused our certificate as expired or not yet valid",
            "valid from 2001-09-09T01:46:40Z until 2004-11-09T11:33:20Z",
            "the clock here shows 2001-09-09T01:46:40Z",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn spans_are_in_the_unit_that_fits() {
        for (seconds, text) in
            [(-5, "0 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2 days")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
