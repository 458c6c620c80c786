//! Who may talk to whom: real programs with the wrong certificates.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use perf::programs;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};

use trust::Role;

use crate::site::{PATIENCE, Settings, Site, wait_until};
use crate::traffic;

/// Files of the first sensor's identity.
const FILES: [&str; 4] = ["web-0.ca.pem", "web-0.crl.pem", "pki/web-0.pem", "pki/web-0.key.pem"];

/// An authority of its own with a sensor `web-0`, in a folder of its own.
fn make_strangers(site: &Site) -> String {
    let dir = site.path("stranger");
    site.ringwatch(&["pki", "init", &dir]);
    site.ringwatch(&["pki", "issue", &dir, "sensor", "web-0"]);
    dir
}

/// A certificate of the site's own authority for `name`, valid between two times, in seconds from
/// now.
fn replace_by_shifted(site: &Site, role: Role, name: &str, from: i64, until: i64) {
    let read = |file: &str| fs::read_to_string(site.path(&format!("pki/{file}"))).unwrap();
    let authority_key = KeyPair::from_pem(&read("ca.key.pem")).unwrap();
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), authority_key).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let moment = |from_now: i64| {
        let seconds = u64::try_from(now + from_now).unwrap();
        date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    let mut params = CertificateParams::new(vec!["10.150.0.1".to_owned()]).unwrap();
    let uri = format!("{}{name}", role.uri_prefix());
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![match role {
        Role::Sensor => ExtendedKeyUsagePurpose::ClientAuth,
        Role::Collector => ExtendedKeyUsagePurpose::ServerAuth,
    }];
    params.not_before = moment(from);
    params.not_after = moment(until);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    fs::write(site.path(&format!("pki/{name}.pem")), certificate.pem()).unwrap();
    fs::write(site.path(&format!("pki/{name}.key.pem")), key.serialize_pem()).unwrap();
}

/// What an operator reads on either side.
struct Words {
    sensor: &'static str,
    collector: &'static str,
}

/// With the files that `spoil` leaves, the first sensor is refused for `failure`, again and again
/// and with one line on either side, while the second one is served. With the right files, the
/// first one gets in, without a restart.
fn check_refused(spoil: impl Fn(&Site), failure: &str, words: &Words) {
    let Some(site) = Site::new(2) else { return };
    let collector = site.start_collector();
    let second = Settings {
        collector: "10.151.0.1:4750".into(),
        name: "web-1".into(),
        ..Settings::frames("all")
    };
    let good = site.start_sensor_in(&site.lab.links()[1].sensor, &second);
    site.wait_connected(&good);
    site.copy_to_host("web-0", "ca");
    site.copy_to_host("web-0", "crl");
    let right = FILES.map(|file| fs::read(site.path(file)).unwrap());
    spoil(&site);
    let sensor = site.start_sensor(&Settings::frames("all"));
    let refused = || site.status()["handshake_failures"][failure].as_u64().unwrap_or(0);
    wait_until(failure, PATIENCE, || refused() >= 3, || site.status().to_string());
    assert_eq!(site.status()["refused"]["tls_handshake"], refused());
    let said = collector.process.stderr();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("10.150.0.2") && warnings[0].contains("tls_handshake"), "{said}");
    assert!(warnings[0].contains(words.collector), "{said}");
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
    assert!(log.contains(words.sensor), "{log}");
    assert_eq!(site.metric(&sensor, "ringwatch_uplink_connects_total", ""), 0);

    traffic::connection(&site.lab, 1, 7101);
    collector.wait_for_event(&["\"dest_port\":7101", "web-1"]);
    for (file, bytes) in FILES.iter().zip(right) {
        fs::write(site.path(file), bytes).unwrap();
    }
    let is_in = || site.metric(&sensor, "ringwatch_uplink_connected", "") == 1;
    wait_until("connection", Duration::from_secs(60), is_in, || sensor.process.describe());
    let outcome = site.finish(vec![sensor, good], collector);
    assert_eq!(outcome.ended[1].lost_frames("disconnected"), 0);
    assert_eq!(outcome.ended[1].log.matches("collector is away").count(), 0);
}

#[test]
fn a_sensor_that_trusts_another_authority_refuses_the_collector() {
    let spoil = |site: &Site| {
        let dir = make_strangers(site);
        for kind in ["ca", "crl"] {
            let text = fs::read_to_string(format!("{dir}/{kind}.pem")).unwrap();
            site.write_to_host("web-0", kind, &text);
        }
    };
    let words = Words {
        sensor: "the collector's certificate is of no authority in our `ca` file",
        collector: "the sensor refused our certificate as one of an authority",
    };
    check_refused(spoil, "refused_by_peer", &words);
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_the_collector() {
    let spoil = |site: &Site| {
        let dir = make_strangers(site);
        for file in ["web-0.pem", "web-0.key.pem"] {
            fs::copy(format!("{dir}/{file}"), site.path(&format!("pki/{file}"))).unwrap();
        }
    };
    let words = Words {
        sensor: "the collector refused our certificate as one of an authority",
        collector: "the sensor's certificate is of no authority in our `ca` file",
    };
    check_refused(spoil, "unknown_issuer", &words);
}

#[test]
fn an_expired_certificate_is_refused_by_the_collector() {
    let spoil = |site: &Site| replace_by_shifted(site, Role::Sensor, "web-0", -9000, -600);
    let words = Words {
        sensor: "the collector refused our certificate as expired or not yet valid; it is valid from",
        collector: "10 min later; renew it (ringwatch pki renew DIR NAME), or set the clock right",
    };
    check_refused(spoil, "expired", &words);
}

#[test]
fn a_clock_that_is_ten_minutes_behind_refuses_a_new_certificate() {
    // The certificate of an authority whose clock is ten minutes ahead of the collector's.
    let spoil = |site: &Site| replace_by_shifted(site, Role::Sensor, "web-0", 620, 9000);
    let words = Words {
        sensor: "the collector refused our certificate as expired or not yet valid; it is valid from",
        collector: "10 min earlier; set the clock right here or where certificates are issued",
    };
    check_refused(spoil, "not_valid_yet", &words);
}

/// With what `spoil` does to the collector's files, the sensor refuses the collector and says so;
/// with a new certificate they meet, without a restart of either.
fn check_refused_collector(spoil: impl Fn(&Site), words: &Words) {
    let Some(site) = Site::new(1) else { return };
    spoil(&site);
    let running = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("none"));
    let refused = || site.status()["handshake_failures"]["refused_by_peer"] != 0;
    wait_until("refusal", PATIENCE, refused, || sensor.process.describe());
    let said = running.process.stderr();
    assert!(said.contains(words.collector), "{said}");
    let said = sensor.process.stderr();
    assert!(said.contains(words.sensor), "{said}");
    site.ringwatch(&[
        "pki",
        "issue",
        &site.path("pki"),
        "collector",
        "ids",
        "--host",
        "10.150.0.1",
        "--force",
    ]);
    site.wait_connected(&sensor);
    site.finish(vec![sensor], running);
}

#[test]
fn an_expired_collector_is_refused_by_the_sensor() {
    let spoil = |site: &Site| replace_by_shifted(site, Role::Collector, "ids", -9000, -600);
    let words = Words {
        sensor: "the collector's certificate expired at",
        collector: "the sensor refused our certificate as expired or not yet valid; it is valid from",
    };
    check_refused_collector(spoil, &words);
}

#[test]
fn a_collector_without_the_name_that_is_dialled_is_refused_by_the_sensor() {
    let spoil = |site: &Site| {
        let pki = site.path("pki");
        site.ringwatch(&["pki", "issue", &pki, "collector", "ids", "--force"]);
    };
    let words = Words {
        sensor: "not for the host that was dialled, 10.150.0.1; it is for",
        collector: "the sensor refused our certificate as one for another host",
    };
    check_refused_collector(spoil, &words);
}

/// A sensor that is connected loses its session within seconds after `revoked` was revoked, does
/// not come back, and does after the name was issued anew.
fn check_revoked_while_connected(revoked: &str, reissue: &[&str], words: &Words) {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let pki = site.path("pki");
    site.ringwatch(&["pki", "revoke", &pki, revoked]);
    for name in ["ids", "web-0"] {
        site.copy_to_host(name, "crl");
    }
    let start = Instant::now();
    let is_cut = || site.metric(&sensor, "ringwatch_uplink_connected", "") == 0;
    wait_until("end of the session", PATIENCE, is_cut, || sensor.process.describe());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    let dials = || site.metric(&sensor, "ringwatch_uplink_failed_dials_total", "\"tls\"");
    wait_until("failed dials", PATIENCE, || dials() >= 2, || sensor.process.describe());
    assert_eq!(site.metric(&sensor, "ringwatch_uplink_connects_total", ""), 1);
    let (theirs, ours) = (collector.process.stderr(), sensor.process.stderr());
    assert!(theirs.contains(words.collector), "{theirs}");
    assert!(ours.contains(words.sensor), "{ours}");
    site.ringwatch(&[&["pki", "issue", &pki], reissue, &["--force"]].concat());
    let is_in = || site.metric(&sensor, "ringwatch_uplink_connected", "") == 1;
    wait_until("connection", Duration::from_secs(60), is_in, || sensor.process.describe());
    site.finish(vec![sensor], collector);
}

#[test]
fn a_sensor_that_is_revoked_while_connected_is_cut_off() {
    let words = Words {
        sensor: "the collector refused our certificate as revoked",
        collector: "reason=\"distrusted\" cause=\"the sensor's certificate is revoked (it is in the \
                    name of web-0)\"",
    };
    check_revoked_while_connected("web-0", &["sensor", "web-0"], &words);
}

#[test]
fn a_collector_that_is_revoked_while_connected_is_left() {
    let words = Words {
        sensor: "the collector's certificate is revoked",
        collector: "the sensor refused our certificate as revoked",
    };
    let reissue = ["collector", "ids", "--host", "10.150.0.1"];
    check_revoked_while_connected("ids", &reissue, &words);
}

#[test]
fn renewed_certificates_are_taken_without_a_restart_and_without_a_gap() {
    let Some(site) = Site::new(1) else { return };
    let mut collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let until = || site.status()["sensors"][0]["certificate_until"].clone();
    let before = until();
    let pki = site.path("pki");
    site.ringwatch(&["pki", "renew", &pki, "web-0", "--days", "700"]);
    site.ringwatch(&["pki", "renew", &pki, "ids"]);
    let reloads = |body: &str| crate::site::sum_of(body, "ringwatch_tls_reloads_total", "");
    let have_read = || {
        reloads(&site.ask_sensor(&sensor, "/metrics").body) == 1
            && reloads(&site.ask_collector("/metrics").body) == 1
    };
    wait_until("new certificates", PATIENCE, have_read, || sensor.process.describe());
    for said in [sensor.process.stderr(), collector.process.stderr()] {
        let line = said.lines().find(|line| line.contains("certificates were read anew"));
        assert!(line.is_some_and(|line| line.contains("certificate_until=\"20")), "{said}");
    }
    assert_eq!(site.metric(&sensor, "ringwatch_uplink_connects_total", ""), 1);
    assert_eq!(until(), before, "the session is that of before");
    // The next session has the new one.
    collector.process.signal(Signal::SIGKILL);
    drop(collector);
    let collector = site.start_collector();
    site.wait_connected(&sensor);
    assert_ne!(until(), before);
    site.finish(vec![sensor], collector);
}

#[test]
fn an_authority_takes_the_place_of_another_while_all_runs() {
    let Some(site) = Site::new(1) else { return };
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("all"));
    site.wait_connected(&sensor);
    let new = site.path("new");
    site.ringwatch(&["pki", "init", &new]);
    site.ringwatch(&["pki", "issue", &new, "sensor", "web-0"]);
    site.ringwatch(&["pki", "issue", &new, "collector", "ids", "--host", "10.150.0.1"]);
    let read = |path: &str| fs::read_to_string(site.path(path)).unwrap();
    let write = |kind: &str, text: String| {
        for name in ["ids", "web-0"] {
            site.write_to_host(name, kind, &text);
        }
    };
    let settle = |what: &str, least: u64| {
        let reloads = |body: &str| crate::site::sum_of(body, "ringwatch_tls_reloads_total", "");
        let have_read = || {
            reloads(&site.ask_sensor(&sensor, "/metrics").body) >= least
                && reloads(&site.ask_collector("/metrics").body) >= least
        };
        wait_until(what, PATIENCE, have_read, || sensor.process.describe());
    };
    write("ca", read("pki/ca.pem") + &read("new/ca.pem"));
    write("crl", read("pki/crl.pem") + &read("new/crl.pem"));
    settle("both are trusted", 1);
    for name in ["web-0", "ids"] {
        for file in [format!("{name}.key.pem"), format!("{name}.pem")] {
            fs::copy(site.path(&format!("new/{file}")), site.path(&format!("pki/{file}"))).unwrap();
        }
    }
    settle("new certificates", 2);
    assert_eq!(site.metric(&sensor, "ringwatch_uplink_connects_total", ""), 1);
    write("crl", read("new/crl.pem"));
    write("ca", read("new/ca.pem"));
    settle("the old authority is gone", 3);
    // The session had a certificate of the old one: it ends, and the next one has the new one.
    let connects = || site.metric(&sensor, "ringwatch_uplink_connects_total", "");
    let is_back = || connects() >= 2 && site.metric(&sensor, "ringwatch_uplink_connected", "") == 1;
    wait_until("a new session", PATIENCE, is_back, || sensor.process.describe());
    assert!(site.ask_collector("/healthz").status == 200);
    site.finish(vec![sensor], collector);
}

#[test]
fn a_certificate_that_expires_soon_is_said_by_health_metrics_and_status() {
    let Some(site) = Site::new(1) else { return };
    replace_by_shifted(&site, Role::Sensor, "web-0", -9000, 13 * 86_400);
    let collector = site.start_collector();
    let sensor = site.start_sensor(&Settings::frames("none"));
    site.wait_connected(&sensor);
    let health = site.ask_sensor(&sensor, "/healthz");
    assert_eq!(health.status, 503);
    let problem = health.json()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains("web-0.pem expires at 20"), "{problem}");
    assert!(problem.ends_with("ringwatch pki renew DIR NAME"), "{problem}");
    let left = site.metric(&sensor, "ringwatch_tls_expiry_seconds", "\"certificate\"");
    assert!((12 * 86_400..=13 * 86_400).contains(&left), "{left}");
    let status = site.ringwatch(&["status"]);
    assert!(status.contains("\n! the certificate of sensor web-0 expires at 20"), "{status}");
    // Renewed, all is well without a restart of either.
    site.ringwatch(&["pki", "issue", &site.path("pki"), "sensor", "web-0", "--force"]);
    let is_well = || site.ask_sensor(&sensor, "/healthz").status == 200;
    wait_until("health", PATIENCE, is_well, || sensor.process.describe());
    site.finish(vec![sensor], collector);
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
