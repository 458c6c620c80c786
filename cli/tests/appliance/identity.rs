//! Who may talk to whom: real programs with the wrong certificates.

use std::fs;
use std::process::Command;
use std::time::Duration;

use perf::programs;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::traffic;

/// Files of the first sensor's identity.
const FILES: [&str; 3] = ["ca.pem", "web-0.pem", "web-0.key.pem"];

/// An authority of its own with a sensor `web-0`: replaces these files of the site.
fn replace_by_strangers(site: &Site, files: &[&str]) {
    let dir = site.path("stranger");
    site.ringwatch(&["pki", "init", &dir]);
    site.ringwatch(&["pki", "issue", &dir, "sensor", "web-0"]);
    for file in files {
        fs::copy(format!("{dir}/{file}"), site.path(&format!("pki/{file}"))).unwrap();
    }
}

/// A sensor's certificate of the site's own authority that ended in 2021.
fn replace_by_expired(site: &Site) {
    let read = |file: &str| fs::read_to_string(site.path(&format!("pki/{file}"))).unwrap();
    let authority_key = KeyPair::from_pem(&read("ca.key.pem")).unwrap();
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), authority_key).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = vec![SanType::URI("ringwatch://sensor/web-0".try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    fs::write(site.path("pki/web-0.pem"), certificate.pem()).unwrap();
    fs::write(site.path("pki/web-0.key.pem"), key.serialize_pem()).unwrap();
}

/// With the files that `spoil` leaves, the first sensor is refused for `failure`, again and again
/// and with one line on either side, while the second one is served. With the right files, the
/// first one gets in, without a restart.
fn check_refused(spoil: impl Fn(&Site), failure: &str) {
    let Some(site) = Site::new(2) else { return };
    let collector = site.start_collector();
    let second = Settings {
        collector: "10.151.0.1:4750".into(),
        name: "web-1".into(),
        ..Settings::frames("all")
    };
    let good = site.start_sensor_in(&site.lab.links()[1].sensor, &second);
    site.wait_connected(&good);
    let right = FILES.map(|file| fs::read(site.path(&format!("pki/{file}"))).unwrap());
    spoil(&site);
    let sensor = site.start_sensor(&Settings::frames("all"));
    let refused = || site.status()["handshake_failures"][failure].as_u64().unwrap_or(0);
    wait_until(failure, PATIENCE, || refused() >= 3, || site.status().to_string());
    assert_eq!(site.status()["refused"]["tls_handshake"], refused());
    let said = collector.process.stderr();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("10.150.0.2") && warnings[0].contains("tls_handshake"), "{said}");
    let metrics = site.ask_collector("/metrics").body;
    let suppressed = crate::site::sum_of(&metrics, "ringwatch_suppressed_lines_total", "");
    assert!(suppressed >= 2, "{suppressed}");
    let dials = || {
        let name = "ringwatch_uplink_failed_dials_total";
        site.metric(&sensor, name, "\"tls\"")
    };
    wait_until("failed dials", PATIENCE, || dials() >= 2, || sensor.process.describe());
    let log = sensor.process.stderr();
    assert_eq!(log.matches("collector is away").count(), 1, "{log}");
    assert_eq!(site.metric(&sensor, "ringwatch_uplink_connects_total", ""), 0);

    traffic::connection(&site.lab, 1, 7101);
    collector.wait_for_event(&["\"dest_port\":7101", "web-1"]);
    for (file, bytes) in FILES.iter().zip(right) {
        fs::write(site.path(&format!("pki/{file}")), bytes).unwrap();
    }
    let is_in = || site.metric(&sensor, "ringwatch_uplink_connected", "") == 1;
    wait_until("connection", Duration::from_secs(60), is_in, || sensor.process.describe());
    let outcome = site.finish(vec![sensor, good], collector);
    assert_eq!(outcome.ended[1].lost_frames("disconnected"), 0);
    assert_eq!(outcome.ended[1].log.matches("collector is away").count(), 0);
}

#[test]
fn a_sensor_that_trusts_another_authority_refuses_the_collector() {
    check_refused(|site| replace_by_strangers(site, &["ca.pem"]), "refused_by_peer");
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_the_collector() {
    let own = ["web-0.pem", "web-0.key.pem"];
    check_refused(|site| replace_by_strangers(site, &own), "unknown_issuer");
}

#[test]
fn an_expired_certificate_is_refused_by_the_collector() {
    check_refused(replace_by_expired, "expired");
}

#[test]
fn a_sensor_cannot_start_as_a_collector() {
    let Some(site) = Site::new(1) else { return };
    let settings = Settings { name: "ids".into(), ..Settings::frames("all") };
    let mut sensor = site.spawn_sensor(site.lab.sensor(), &settings);
    assert_eq!(sensor.process.wait(PATIENCE).code(), Some(2), "{}", sensor.process.describe());
    let said = sensor.process.stderr();
    assert!(said.contains("ids.pem") && said.contains("ringwatch://collector/ids"), "{said}");
    let config = site.path("ids.toml");
    let mut check = Command::new(programs::path("ringwatch-sensor"));
    let output = check.args(["check-config", "--config", &config]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.ends_with(&*String::from_utf8_lossy(&output.stderr)), "{said}");
}
