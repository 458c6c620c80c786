//! Certificates of `ringwatch pki`, looked at with other eyes: x509-parser, and rustls as the
//! verifier that both programs use.
#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows only test functions")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

fn ringwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringwatch")).args(arguments).output().unwrap()
}

/// Runs the command and expects success.
fn done(arguments: &[&str]) -> String {
    let output = ringwatch(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the command and expects this exit code; gives what it said.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = ringwatch(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// An authority, a sensor `web` and a collector `ids` that answers as ids.example and 192.0.2.7.
fn installation() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki").to_str().unwrap().to_owned();
    done(&["pki", "init", &dir]);
    done(&["pki", "issue", &dir, "sensor", "web"]);
    let hosts = ["--host", "ids.example", "--host", "192.0.2.7"];
    done(&[&["pki", "issue", &dir, "collector", "ids"], &hosts[..]].concat());
    (folder, dir)
}

fn certificate(dir: &str, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(format!("{dir}/{name}.pem")).unwrap()
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn roots(dir: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(dir, "ca")).unwrap();
    Arc::new(roots)
}

fn verifies_as_client(dir: &str, name: &str) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(dir), provider).build().unwrap();
    verifier.verify_client_cert(&certificate(dir, name), &[], UnixTime::now()).is_ok()
}

fn verifies_as_server(dir: &str, name: &str, host: &str) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(dir), provider).build().unwrap();
    let host = ServerName::try_from(host.to_owned()).unwrap();
    verifier.verify_server_cert(&certificate(dir, name), &[], &host, &[], UnixTime::now()).is_ok()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extension = certificate.subject_alternative_name().unwrap().unwrap();
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        GeneralName::DNSName(host) => (*host).to_owned(),
        GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
        other => panic!("unexpected name {other:?}"),
    };
    extension.value.general_names.iter().map(text).collect()
}

#[test]
fn role_and_name_stand_in_the_certificate() {
    let (_folder, dir) = installation();
    let sensor = certificate(&dir, "web");
    let (_, sensor) = X509Certificate::from_der(&sensor).unwrap();
    assert_eq!(names(&sensor), ["ringwatch://sensor/web"]);
    let usage = sensor.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(!sensor.is_ca());

    let collector = certificate(&dir, "ids");
    let (_, collector) = X509Certificate::from_der(&collector).unwrap();
    assert_eq!(
        names(&collector),
        [
            "ringwatch://collector/ids",
            "localhost",
            "[127, 0, 0, 1]",
            "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]",
            "ids.example",
            "[192, 0, 2, 7]"
        ]
    );
    let usage = collector.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
}

#[test]
fn each_certificate_verifies_in_its_own_role_only() {
    let (_folder, dir) = installation();
    assert!(verifies_as_client(&dir, "web"));
    assert!(!verifies_as_client(&dir, "ids"), "a collector must not pass as a sensor");
    for host in ["localhost", "127.0.0.1", "::1", "ids.example", "192.0.2.7"] {
        assert!(verifies_as_server(&dir, "ids", host), "{host}");
    }
    assert!(!verifies_as_server(&dir, "ids", "other.example"));
    assert!(!verifies_as_server(&dir, "web", "localhost"), "a sensor must not pass as a collector");
}

#[test]
fn certificates_of_another_authority_do_not_verify() {
    let (_ours, dir) = installation();
    let (_theirs, other) = installation();
    fs::copy(format!("{other}/web.pem"), format!("{dir}/stranger.pem")).unwrap();
    assert!(!verifies_as_client(&dir, "stranger"));
}

#[test]
fn the_authority_lasts_ten_years_and_a_leaf_one() {
    let (_folder, dir) = installation();
    for (name, years) in [("ca", 10), ("web", 1), ("ids", 1)] {
        let der = certificate(&dir, name);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let validity = parsed.validity();
        let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
        assert!((years * 365 + 1..=years * 366 + 1).contains(&days), "{name}: {days} days");
        assert!(validity.is_valid(), "{name}");
    }
}

#[test]
fn keys_are_for_their_owner_only_and_fit_their_certificates() {
    let (_folder, dir) = installation();
    assert_eq!(mode(&dir), 0o700);
    for name in ["ca", "web", "ids"] {
        assert_eq!(mode(&format!("{dir}/{name}.key.pem")), 0o600, "{name}");
        assert_eq!(mode(&format!("{dir}/{name}.pem")), 0o644, "{name}");
    }
    let key = PrivateKeyDer::from_pem_file(format!("{dir}/web.key.pem")).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![certificate(&dir, "web")], key);
    certified.keys_match().unwrap();
}

#[test]
fn nothing_is_written_over_without_force() {
    let (_folder, dir) = installation();
    let before = fs::read(format!("{dir}/ca.key.pem")).unwrap();
    assert!(refused(&["pki", "init", &dir], 1).contains("--force"));
    assert!(refused(&["pki", "issue", &dir, "sensor", "web"], 1).contains("web.pem exists"));
    assert_eq!(fs::read(format!("{dir}/ca.key.pem")).unwrap(), before);

    let web = fs::read(format!("{dir}/web.pem")).unwrap();
    done(&["pki", "issue", &dir, "sensor", "web", "--force"]);
    assert_ne!(fs::read(format!("{dir}/web.pem")).unwrap(), web);
    assert!(verifies_as_client(&dir, "web"));
    assert_eq!(mode(&format!("{dir}/web.key.pem")), 0o600);
}

#[test]
fn a_key_that_is_left_over_is_not_written_over_either() {
    let (_folder, dir) = installation();
    fs::remove_file(format!("{dir}/web.pem")).unwrap();
    assert!(refused(&["pki", "issue", &dir, "sensor", "web"], 1).contains("web.key.pem exists"));
}

#[test]
fn an_authority_with_the_wrong_key_issues_nothing() {
    let (_ours, dir) = installation();
    let (_theirs, other) = installation();
    fs::copy(format!("{other}/ca.key.pem"), format!("{dir}/ca.key.pem")).unwrap();
    let said = refused(&["pki", "issue", &dir, "sensor", "db"], 1);
    assert!(said.contains("does not belong to"), "{said}");
    assert!(!Path::new(&format!("{dir}/db.pem")).exists());
}

#[test]
fn bad_usage_is_exit_code_two_and_says_why() {
    let (folder, dir) = installation();
    let said = refused(&["pki", "issue", &dir, "sensor", "db", "--host", "a.example"], 2);
    assert!(said.contains("nobody dials a sensor"), "{said}");
    for name in ["ca", "x.key", "../x", "UPPER", ""] {
        refused(&["pki", "issue", &dir, "sensor", name], 2);
    }
    refused(&["pki", "issue", &dir, "collector", "c", "--host", "192.0.2.256"], 2);
    let empty = folder.path().to_str().unwrap();
    let said = refused(&["pki", "issue", empty, "sensor", "db"], 1);
    assert!(said.contains("ringwatch pki init"), "{said}");
    let said = refused(&["pki", "list", empty], 1);
    assert!(said.contains("ringwatch pki init"), "{said}");
}

#[test]
fn the_list_names_every_certificate_once() {
    let (_folder, dir) = installation();
    fs::remove_file(format!("{dir}/web.key.pem")).unwrap();
    let text = done(&["pki", "list", &dir]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("CERTIFICATE "), "{text}");
    assert!(lines[1].starts_with("authority "), "{text}");
    assert!(lines[2].starts_with("collector/ids "), "{text}");
    assert!(lines[2].ends_with("localhost 127.0.0.1 ::1 ids.example 192.0.2.7"), "{text}");
    assert!(lines[3].starts_with("sensor/web "), "{text}");
    assert!(lines[3].ends_with(" days left (no key here)"), "{text}");
    assert!(lines[3].contains(&serial(&dir, "web")), "{text}");
    assert!(lines[4].starts_with("revocation list 1: 0 revoked, next due "), "{text}");
}

/// Serial number in hexadecimal digits.
fn serial(dir: &str, name: &str) -> String {
    let der = certificate(dir, name);
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Number of the revocation list, days until the next, and the serial numbers on it.
fn revocation_list(dir: &str) -> (u64, i64, Vec<String>) {
    let pem = CertificateRevocationListDer::from_pem_file(format!("{dir}/crl.pem")).unwrap();
    let (_, list) = CertificateRevocationList::from_der(&pem).unwrap();
    let number = list.crl_number().unwrap().try_into().unwrap();
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap();
    // Rounded: the second may have turned meanwhile.
    let days = (list.next_update().unwrap().timestamp() - now + 43_200) / 86_400;
    let hex = |serial: &[u8]| serial.iter().map(|byte| format!("{byte:02x}")).collect();
    (number, days, list.iter_revoked_certificates().map(|one| hex(one.raw_serial())).collect())
}

/// Whether the sensor's certificate is refused as revoked by what both programs verify with.
fn is_revoked(dir: &str, certificate: &CertificateDer<'_>) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let list = CertificateRevocationListDer::from_pem_file(format!("{dir}/crl.pem")).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir), provider)
        .with_crls([list])
        .build()
        .unwrap();
    match verifier.verify_client_cert(certificate, &[], UnixTime::now()) {
        Ok(_) => false,
        Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => true,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_renewed_certificate_keeps_name_role_and_hosts_and_has_a_new_key() {
    let (_folder, dir) = installation();
    let (before, key) = (certificate(&dir, "ids"), fs::read(format!("{dir}/ids.key.pem")).unwrap());
    done(&["pki", "renew", &dir, "ids"]);
    let after = certificate(&dir, "ids");
    assert_ne!(after, before);
    assert_ne!(fs::read(format!("{dir}/ids.key.pem")).unwrap(), key);
    assert_eq!(mode(&format!("{dir}/ids.key.pem")), 0o600);
    let (_, before) = X509Certificate::from_der(&before).unwrap();
    let (_, after) = X509Certificate::from_der(&after).unwrap();
    assert_eq!(names(&after), names(&before));
    assert!(verifies_as_server(&dir, "ids", "ids.example") && !verifies_as_client(&dir, "ids"));
}

#[test]
fn a_renewed_certificate_with_its_key_kept_has_a_serial_number_of_its_own() {
    let (_folder, dir) = installation();
    let (before, key) = (serial(&dir, "web"), fs::read(format!("{dir}/web.key.pem")).unwrap());
    done(&["pki", "renew", &dir, "web", "--keep-key", "--days", "10"]);
    assert_ne!(serial(&dir, "web"), before);
    assert_eq!(fs::read(format!("{dir}/web.key.pem")).unwrap(), key);
    let der = certificate(&dir, "web");
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    let validity = parsed.validity();
    // Valid from a day before its issue.
    let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(seconds, 11 * 86_400);
}

#[test]
fn nothing_outlives_its_authority() {
    let (_folder, dir) = installation();
    done(&["pki", "issue", &dir, "sensor", "old", "--days", "3650"]);
    done(&["pki", "renew", &dir, "old", "--days", "3650"]);
    let end = |name: &str| {
        let der = certificate(&dir, name);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        parsed.validity().not_after.timestamp()
    };
    assert!(end("old") <= end("ca"));
}

#[test]
fn revoking_a_name_revokes_all_certificates_that_it_ever_had() {
    let (_folder, dir) = installation();
    let first = certificate(&dir, "web");
    done(&["pki", "renew", &dir, "web"]);
    let second = certificate(&dir, "web");
    assert!(!is_revoked(&dir, &first) && !is_revoked(&dir, &second));
    let said = done(&["pki", "revoke", &dir, "web"]);
    assert!(said.starts_with("2 certificates newly revoked\n"), "{said}");
    assert!(is_revoked(&dir, &first) && is_revoked(&dir, &second));
    let (number, days, serials) = revocation_list(&dir);
    assert_eq!((number, days, serials.len()), (2, 90, 2));
    let text = done(&["pki", "list", &dir]);
    assert!(text.lines().any(|line| line.starts_with("sensor/web ") && line.contains("REVOKED")));
    // Once more changes nothing but the number, and the name can have a new certificate.
    assert!(done(&["pki", "revoke", &dir, "web"]).starts_with("0 certificates newly revoked\n"));
    done(&["pki", "issue", &dir, "sensor", "web", "--force"]);
    assert!(!is_revoked(&dir, &certificate(&dir, "web")));
    assert!(is_revoked(&dir, &first));
}

#[test]
fn a_lost_key_can_be_revoked_after_its_certificate_was_replaced() {
    let (_folder, dir) = installation();
    let lost = certificate(&dir, "web");
    done(&["pki", "renew", &dir, "web"]);
    done(&["pki", "revoke", &dir, "web", "--earlier"]);
    assert!(is_revoked(&dir, &lost));
    assert!(!is_revoked(&dir, &certificate(&dir, "web")));
}

#[test]
fn a_revocation_list_signed_anew_keeps_what_it_lists_and_counts_on() {
    let (_folder, dir) = installation();
    done(&["pki", "revoke", &dir, "web"]);
    let (number, _, serials) = revocation_list(&dir);
    let said = done(&["pki", "crl", &dir, "--days", "30"]);
    assert!(said.contains("(number 3, 1 revoked, next due "), "{said}");
    assert_eq!(revocation_list(&dir), (number + 1, 30, serials));
    assert_eq!(mode(&format!("{dir}/crl.pem")), 0o644);
}

#[test]
fn what_was_never_issued_cannot_be_renewed_or_revoked() {
    let (_folder, dir) = installation();
    for command in ["renew", "revoke"] {
        let said = refused(&["pki", command, &dir, "db"], 1);
        assert!(said.contains("no certificate called db"), "{said}");
    }
    fs::write(format!("{dir}/issued.json"), "{}\n").unwrap();
    let said = refused(&["pki", "revoke", &dir, "web"], 1);
    assert!(said.contains("issued.json:1: cannot be read"), "{said}");
}

#[test]
fn a_collector_that_is_not_there_is_exit_code_one_with_advice() {
    // Port 9 of loopback (discard): nobody listens in a test environment.
    let said = refused(&["status", "--collector", "http://127.0.0.1:9"], 1);
    assert!(said.contains("http://127.0.0.1:9/api/v1/status"), "{said}");
    assert!(said.contains("Is the collector running"), "{said}");
}
