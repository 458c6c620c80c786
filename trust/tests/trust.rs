//! Identities of real certificates: what is taken, what is refused and with which words, and what
//! becomes of files that change. Handshakes run over memory, so that each end's words can be read.
#![expect(clippy::unwrap_used, reason = "helpers of tests; clippy knows only test functions")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use time::OffsetDateTime;
use trust::{CollectorTls, FileError, FileKind, Files, Identity, Keeper, Look, Role, SensorTls};

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;
const WARNING: Duration = Duration::from_secs(14 * 86_400);

/// An authority of a name of its own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says.
struct Request {
    uri: &'static str,
    usage: ExtendedKeyUsagePurpose,
    hosts: Vec<&'static str>,
    /// Validity, in seconds from now.
    from: i64,
    until: i64,
    serial: u8,
}

impl Request {
    fn sensor() -> Self {
        Self {
            uri: "ringwatch://sensor/web",
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            hosts: vec![],
            from: -DAY,
            until: 100 * DAY,
            serial: 1,
        }
    }

    fn collector() -> Self {
        Self {
            uri: "ringwatch://collector/ids",
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            hosts: vec!["ids.example"],
            serial: 2,
            ..Self::sensor()
        }
    }
}

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap()
}

fn moment(from_now: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(now() + from_now).unwrap())
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_after = moment(1000 * DAY);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// The two files of a certificate called `name`.
    fn issue(&self, folder: &Path, name: &str, request: &Request) {
        let hosts: Vec<String> = request.hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.subject_alt_names.push(SanType::URI(request.uri.try_into().unwrap()));
        params.extended_key_usages = vec![request.usage.clone()];
        params.not_before = moment(request.from);
        params.not_after = moment(request.until);
        params.serial_number = Some(SerialNumber::from_slice(&[request.serial]));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        write(&folder.join(format!("{name}.pem")), &certificate.pem(), 0o644);
        write(&folder.join(format!("{name}.key.pem")), &key.serialize_pem(), 0o600);
    }

    /// A revocation list, the next one of which is due in `due` seconds.
    fn crl(&self, serials: &[u8], due: i64) -> String {
        let entry = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: moment(-DAY),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: moment(-300 * DAY),
            next_update: moment(due),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// Writes a file anew beside its place and moves it there.
fn write(path: &Path, text: &str, mode: u32) {
    let draft = path.with_extension("new");
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(draft, path).unwrap();
}

/// A folder with the files of one sensor and one collector.
struct Site {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap(), authority: Authority::new("one") };
        site.write("ca.pem", &site.authority.0.pem());
        site.write("crl.pem", &site.authority.crl(&[], 90 * DAY));
        site.authority.issue(site.folder.path(), "web", &Request::sensor());
        site.authority.issue(site.folder.path(), "ids", &Request::collector());
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.path(name), text, 0o644);
    }

    fn files(&self, name: &str) -> Files {
        Files {
            ca: self.path("ca.pem"),
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key.pem")),
            crl: Some(self.path("crl.pem")),
        }
    }

    fn sensor(&self) -> Keeper<SensorTls> {
        Keeper::open(self.files("web"), WARNING).unwrap()
    }

    fn collector(&self) -> Keeper<CollectorTls> {
        Keeper::open(self.files("ids"), WARNING).unwrap()
    }

    /// A handshake of both; what the operator of each end reads if it fails.
    fn meet(&self) -> Result<(), (String, String)> {
        shake(&self.sensor(), &self.collector(), "ids.example")
    }
}

fn shake(
    sensor: &Keeper<SensorTls>,
    collector: &Keeper<CollectorTls>,
    host: &str,
) -> Result<(), (String, String)> {
    let host = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(sensor.current().config.clone(), host).unwrap();
    let mut server = ServerConnection::new(collector.current().config.clone()).unwrap();
    let (mut said_client, mut said_server) = (None, None);
    for _ in 0..6 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && said_server.is_none() {
            server.read_tls(&mut rest).unwrap();
            said_server = server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && said_client.is_none() {
            client.read_tls(&mut rest).unwrap();
            said_client = client.process_new_packets().err();
        }
    }
    match (said_client, said_server) {
        (None, None) => {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            Ok(())
        }
        (client, server) => {
            let of = |error: Option<rustls::Error>, explain: &dyn Fn(&rustls::Error) -> String| {
                error.map_or_else(|| "nothing".to_owned(), |error| explain(&error))
            };
            Err((
                of(client, &|error| sensor.explain(error)),
                of(server, &|error| collector.explain(error)),
            ))
        }
    }
}

/// The handshake fails, and each operator reads all of these parts.
fn check_refused(site: &Site, sensor_reads: &[&str], collector_reads: &[&str]) {
    let (sensor, collector) = site.meet().unwrap_err();
    for part in sensor_reads {
        assert!(sensor.contains(part), "the sensor's operator reads: {sensor}");
    }
    for part in collector_reads {
        assert!(collector.contains(part), "the collector's operator reads: {collector}");
    }
}

fn utc(from_now: i64) -> String {
    trust::words::utc(now() + from_now)
}

#[test]
fn a_sensor_and_a_collector_of_one_authority_meet() {
    assert_eq!(Site::new().meet(), Ok(()));
}

#[test]
fn no_session_is_resumed() {
    let site = Site::new();
    let (sensor, collector) = (site.sensor(), site.collector());
    for _ in 0..2 {
        let host = ServerName::try_from("ids.example").unwrap();
        let mut client = ClientConnection::new(sensor.current().config.clone(), host).unwrap();
        let mut server = ServerConnection::new(collector.current().config.clone()).unwrap();
        for _ in 0..6 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn an_expired_certificate_of_a_sensor_is_told_on_both_ends_with_both_times() {
    let site = Site::new();
    let request = Request { until: -10 * MINUTE, ..Request::sensor() };
    let until = utc(-10 * MINUTE);
    site.authority.issue(site.folder.path(), "web", &request);
    check_refused(
        &site,
        &["the collector refused our certificate as expired", &until, "the clock here shows 20"],
        &["the sensor's certificate expired at", &until, "10 min later", "in the name of web)"],
    );
}

#[test]
fn each_thread_that_shakes_hands_is_told_the_name_that_it_refused_itself() {
    let site = Site::new();
    let collector = site.collector();
    let names = ["web", "db"];
    for (name, uri) in names.into_iter().zip(["ringwatch://sensor/web", "ringwatch://sensor/db"]) {
        let request = Request { uri, until: -MINUTE, ..Request::sensor() };
        site.authority.issue(site.folder.path(), name, &request);
    }
    let both_refused = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for name in names {
            let (site, collector, both_refused) = (&site, collector.current(), &both_refused);
            scope.spawn(move || {
                let file = site.path(&format!("{name}.pem"));
                let certificate = CertificateDer::from_pem_file(file).unwrap();
                collector.verify_peer(&[certificate], UnixTime::now()).unwrap_err();
                both_refused.wait();
                assert_eq!(collector.take_refused().as_deref(), Some(name));
                assert_eq!(collector.take_refused(), None);
            });
        }
    });
}

#[test]
fn an_expired_certificate_of_a_collector_is_told_on_both_ends_with_both_times() {
    let site = Site::new();
    let request = Request { from: -9 * DAY, until: -3 * DAY, ..Request::collector() };
    let until = utc(-3 * DAY);
    site.authority.issue(site.folder.path(), "ids", &request);
    check_refused(
        &site,
        &["the collector's certificate expired at", &until, "3 days later"],
        &["the sensor refused our certificate as expired or not yet valid", &until],
    );
}

#[test]
fn a_clock_ten_minutes_off_is_told_on_both_ends_with_both_times() {
    // As if the clock of who looks were ten minutes behind that of the authority.
    let site = Site::new();
    let from = utc(10 * MINUTE);
    let early = Request { from: 10 * MINUTE, ..Request::sensor() };
    site.authority.issue(site.folder.path(), "web", &early);
    check_refused(
        &site,
        &["as expired or not yet valid; it is valid from", &from, "the clock here shows 20"],
        &["the sensor's certificate is not valid before", &from, "earlier; set the clock right"],
    );
    site.authority.issue(site.folder.path(), "web", &Request::sensor());
    let early = Request { from: 10 * MINUTE, ..Request::collector() };
    site.authority.issue(site.folder.path(), "ids", &early);
    check_refused(
        &site,
        &["the collector's certificate is not valid before", &from, "earlier; set the clock right"],
        &["the sensor refused our certificate as expired or not yet valid", &from],
    );
}

#[test]
fn a_certificate_of_another_authority_is_told_on_both_ends() {
    let site = Site::new();
    Authority::new("other").issue(site.folder.path(), "web", &Request::sensor());
    check_refused(
        &site,
        &["the collector refused our certificate as one of an authority that the collector does"],
        &["the sensor's certificate is of no authority in our `ca` file"],
    );
}

#[test]
fn a_certificate_of_another_authority_of_the_same_name_is_told_on_both_ends() {
    let site = Site::new();
    Authority::new("one").issue(site.folder.path(), "ids", &Request::collector());
    check_refused(
        &site,
        &["the collector's certificate is of no authority in our `ca` file"],
        &["the sensor refused our certificate"],
    );
}

#[test]
fn a_collector_that_is_dialled_by_another_name_is_told_with_the_names_it_has() {
    let site = Site::new();
    let refused = shake(&site.sensor(), &site.collector(), "192.0.2.7").unwrap_err();
    for part in ["not for the host that was dialled, 192.0.2.7", "ids.example", "--host"] {
        assert!(refused.0.contains(part), "{}", refused.0);
    }
    assert!(refused.1.contains("as one for another host"), "{}", refused.1);
}

#[test]
fn neither_end_can_pose_as_the_other() {
    let site = Site::new();
    let (client, server) =
        (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    // The own end does not even begin with it.
    for (name, request, role) in [
        ("web", Request { usage: client.clone(), ..Request::collector() }, Role::Sensor),
        ("ids", Request { usage: server.clone(), ..Request::sensor() }, Role::Collector),
    ] {
        site.authority.issue(site.folder.path(), name, &request);
        let error = match role {
            Role::Sensor => SensorTls::load(&site.files(name)).unwrap_err(),
            Role::Collector => CollectorTls::load(&site.files(name)).unwrap_err(),
        };
        assert!(matches!(error, FileError::WrongRole { wanted, .. } if wanted == role), "{error}");
    }
    // And one that does is refused: rules applied to a chain as a handshake does.
    let chain = |name: &str| {
        use rustls::pki_types::pem::PemObject;
        vec![rustls::pki_types::CertificateDer::from_pem_file(site.path(name)).unwrap()]
    };
    let host = ServerName::try_from("ids.example").unwrap();
    site.authority.issue(site.folder.path(), "web", &Request::sensor());
    site.authority.issue(site.folder.path(), "ids", &Request::collector());
    let (sensor, collector) = (site.sensor(), site.collector());
    for (uri, usage, serial) in [
        ("ringwatch://sensor/web", client.clone(), 3),
        ("ringwatch://sensor/web", server.clone(), 4),
        ("ringwatch://collector/ids", client, 5),
    ] {
        let hosts = vec!["ids.example"];
        let request = Request { uri, usage, hosts, serial, ..Request::collector() };
        site.authority.issue(site.folder.path(), "impostor", &request);
        let impostor = chain("impostor.pem");
        assert!(sensor.current().verify_peer(&impostor, &host, UnixTime::now()).is_err(), "{uri}");
    }
    for (uri, usage) in [
        ("ringwatch://collector/ids", server.clone()),
        ("ringwatch://sensor/web", server),
        ("ringwatch://collector/ids", ExtendedKeyUsagePurpose::ClientAuth),
        ("ringwatch://sensor/web", ExtendedKeyUsagePurpose::Any),
    ] {
        site.authority.issue(
            site.folder.path(),
            "impostor",
            &Request { uri, usage, ..Request::sensor() },
        );
        let impostor = chain("impostor.pem");
        assert!(collector.current().verify_peer(&impostor, UnixTime::now()).is_err(), "{uri}");
    }
    assert_eq!(collector.current().verify_peer(&chain("web.pem"), UnixTime::now()), Ok(()));
    assert_eq!(sensor.current().verify_peer(&chain("ids.pem"), &host, UnixTime::now()), Ok(()));
}

#[test]
fn a_revoked_sensor_is_told_on_both_ends() {
    let site = Site::new();
    site.write("crl.pem", &site.authority.crl(&[1], 90 * DAY));
    check_refused(
        &site,
        &["the collector refused our certificate as revoked"],
        &["the sensor's certificate is revoked"],
    );
}

#[test]
fn a_revoked_collector_is_told_on_both_ends() {
    let site = Site::new();
    site.write("crl.pem", &site.authority.crl(&[2], 90 * DAY));
    check_refused(
        &site,
        &["the collector's certificate is revoked"],
        &["the sensor refused our certificate as revoked"],
    );
}

#[test]
fn an_overdue_list_still_revokes_lets_others_in_and_is_a_problem() {
    let site = Site::new();
    site.write("crl.pem", &site.authority.crl(&[7], -DAY));
    assert_eq!(site.meet(), Ok(()));
    let problems = site.collector().status().problems(now());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("crl.pem expired at"), "{problems:?}");
    assert!(problems[0].ends_with("ringwatch pki crl DIR"), "{problems:?}");
    site.write("crl.pem", &site.authority.crl(&[1, 7], -DAY));
    assert!(site.meet().unwrap_err().1.contains("revoked"));
}

#[test]
fn what_expires_within_the_warning_is_a_problem_with_its_remedy() {
    let site = Site::new();
    let (sensor, now) = (site.sensor().status(), now());
    assert_eq!(sensor.problems(now), Vec::<String>::new());
    let problems = sensor.problems(now + 87 * DAY);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("web.pem expires at"), "{problems:?}");
    assert!(problems[0].ends_with("ringwatch pki renew DIR NAME"), "{problems:?}");
    let left = sensor.read().expiry;
    assert!((left.certificate.until - now - 100 * DAY).abs() < MINUTE, "{left:?}");
    assert!((left.crl.unwrap() - now - 90 * DAY).abs() < MINUTE, "{left:?}");
    assert!((left.ca.unwrap() - now - 1000 * DAY).abs() < MINUTE, "{left:?}");
}

#[test]
fn one_authority_takes_the_place_of_another_without_a_gap() {
    let site = Site::new();
    let new = Authority::new("two");
    let (mut sensor, mut collector) = (site.sensor(), site.collector());
    let mut meet = |what: &str| {
        let later = Instant::now() + Duration::from_secs(60);
        assert!(!matches!(sensor.look(later), Look::Refused(_)), "{what}");
        assert!(!matches!(collector.look(later), Look::Refused(_)), "{what}");
        assert_eq!(shake(&sensor, &collector, "ids.example"), Ok(()), "{what}");
    };
    meet("before");
    site.write("ca.pem", &(site.authority.0.pem() + &new.0.pem()));
    site.write("crl.pem", &(site.authority.crl(&[9], DAY) + &new.crl(&[], DAY)));
    meet("both are trusted");
    new.issue(site.folder.path(), "web", &Request::sensor());
    meet("a sensor of the new one, a collector of the old one");
    new.issue(site.folder.path(), "ids", &Request::collector());
    meet("both of the new one");
    site.write("crl.pem", &new.crl(&[], DAY));
    site.write("ca.pem", &new.0.pem());
    meet("the old one is gone");
    site.authority.issue(site.folder.path(), "web", &Request::sensor());
    assert!(site.meet().unwrap_err().1.contains("no authority in our `ca` file"));
}

#[test]
fn a_broken_file_keeps_the_identity_before_and_is_said_once() {
    let site = Site::new();
    let mut keeper = site.sensor();
    let (before, start) = (keeper.current().clone(), Instant::now());
    site.write("web.pem", "-----BEGIN CERTIFICATE-----\nhalf");
    assert!(matches!(keeper.look(start), Look::Same), "it may be on its way");
    let later = start + Duration::from_secs(3);
    match keeper.look(later) {
        Look::Refused(error) => assert_eq!(error.file(), FileKind::Certificate, "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(keeper.look(later + Duration::from_secs(60)), Look::Same), "said before");
    assert!(std::sync::Arc::ptr_eq(&before, keeper.current()));
    let known = keeper.status().read();
    assert_eq!((known.reloads, known.refusals), (0, 1));
    assert!(known.fault.unwrap().contains("web.pem holds no certificate"));
    let problems = keeper.status().problems(now());
    assert!(problems[0].contains("are not in use"), "{problems:?}");
    assert_eq!(shake(&keeper, &site.collector(), "ids.example"), Ok(()));

    site.authority.issue(site.folder.path(), "web", &Request::sensor());
    assert!(matches!(keeper.look(later + Duration::from_secs(61)), Look::Changed));
    assert_eq!(keeper.status().problems(now()), Vec::<String>::new());
    assert_eq!(keeper.status().read().reloads, 1);
}

#[test]
fn a_file_that_cannot_be_read_for_a_while_is_read_later_without_being_changed() {
    const NAME: &str = "a_file_that_cannot_be_read_for_a_while_is_read_later_without_being_changed";
    const MARK: &str = "RINGWATCH_TEST_FEW_FILES";
    if std::env::var_os(MARK).is_none() {
        // In a process of its own, which has few files to open and no other test that needs one.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 64; exec \"$@\"", "sh"]);
        command.arg(std::env::current_exe().unwrap()).args(["--exact", NAME]).env(MARK, "1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let site = Site::new();
    let mut keeper = site.sensor();
    let start = Instant::now();
    site.authority.issue(site.folder.path(), "web", &Request::sensor());
    let mut files = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        files.push(file);
    }
    assert!(matches!(keeper.look(start), Look::Same), "it may be on its way");
    let later = |seconds| start + Duration::from_secs(seconds);
    match keeper.look(later(3)) {
        Look::Refused(FileError::Unreadable { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(keeper.look(later(4)), Look::Same), "said before");
    assert_eq!(keeper.status().read().refusals, 1);
    drop(files);
    assert!(matches!(keeper.look(later(5)), Look::Changed));
    assert_eq!(keeper.status().problems(now()), Vec::<String>::new());
}

#[test]
fn a_key_that_comes_after_its_certificate_is_no_fault() {
    let site = Site::new();
    let mut keeper = site.sensor();
    let other = tempfile::tempdir().unwrap();
    site.authority.issue(other.path(), "web", &Request::sensor());
    let start = Instant::now();
    fs::copy(other.path().join("web.pem"), site.path("web.pem")).unwrap();
    assert!(matches!(keeper.look(start), Look::Same));
    fs::copy(other.path().join("web.key.pem"), site.path("web.key.pem")).unwrap();
    assert!(matches!(keeper.look(start + Duration::from_secs(1)), Look::Changed));
    assert_eq!(keeper.status().read().refusals, 0);
}

#[test]
fn a_certificate_of_another_name_waits_for_a_restart() {
    let site = Site::new();
    let mut keeper = site.sensor();
    let request = Request { uri: "ringwatch://sensor/db", ..Request::sensor() };
    site.authority.issue(site.folder.path(), "web", &request);
    let start = Instant::now();
    assert!(matches!(keeper.look(start), Look::Same));
    match keeper.look(start + Duration::from_secs(3)) {
        Look::Refused(error) => assert!(error.to_string().contains("now for \"db\""), "{error}"),
        other => panic!("{other:?}"),
    }
}

/// What `load` says of the sensor's files.
fn check_unusable(site: &Site, kind: FileKind, part: &str) {
    let error = SensorTls::load(&site.files("web")).unwrap_err();
    assert_eq!(error.file(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let site = Site::new();
    let key = site.path("web.key.pem");
    for (mode, is_taken) in [
        (0o600, true),
        (0o640, true),
        (0o400, true),
        (0o644, false),
        (0o604, false),
        (0o620, false),
        (0o660, false),
    ] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        if is_taken {
            SensorTls::load(&site.files("web")).unwrap();
        } else {
            check_unusable(&site, FileKind::Key, &format!("run: chmod 600 {}", key.display()));
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let site = Site::new();
    site.write("crl.pem", "nothing");
    check_unusable(&site, FileKind::Crl, "crl.pem holds no revocation list in PEM form");
    site.write("crl.pem", &Authority::new("other").crl(&[], DAY));
    check_unusable(&site, FileKind::Crl, "signed by no authority");
    site.write("crl.pem", &Authority::new("one").crl(&[], DAY));
    check_unusable(&site, FileKind::Crl, "signed by no authority");
    fs::remove_file(site.path("crl.pem")).unwrap();
    check_unusable(&site, FileKind::Crl, "cannot read");
    site.write("crl.pem", &site.authority.crl(&[], DAY));
    site.authority.issue(site.folder.path(), "other", &Request::sensor());
    fs::copy(site.path("other.key.pem"), site.path("web.key.pem")).unwrap();
    check_unusable(&site, FileKind::Key, "does not fit the certificate");
    site.write("ca.pem", "nothing");
    check_unusable(&site, FileKind::Ca, "ca.pem holds no certificate in PEM form");
}

#[test]
fn an_authority_of_several_that_has_no_list_is_refused_and_named() {
    let site = Site::new();
    let other = Authority::new("other");
    let mut keeper = site.collector();
    let before = keeper.current().clone();
    site.write("ca.pem", &(site.authority.0.pem() + &other.0.pem()));
    // While it runs: the rules of before stay, and whoever is asked says so.
    let start = Instant::now();
    assert!(matches!(keeper.look(start), Look::Same), "the list may be on its way");
    match keeper.look(start + Duration::from_secs(3)) {
        Look::Refused(error) => assert_eq!(error.file(), FileKind::Crl, "{error}"),
        found => panic!("{found:?}"),
    }
    assert!(std::sync::Arc::ptr_eq(&before, keeper.current()));
    let problems = keeper.status().problems(now());
    assert!(problems[0].contains("crl.pem has no revocation list of \"CN=other\""), "{problems:?}");
    // At a start.
    check_unusable(&site, FileKind::Crl, "has no revocation list of \"CN=other\", an authority in");
    check_unusable(&site, FileKind::Crl, "add its list");
    site.write("crl.pem", &(other.crl(&[1], 90 * DAY) + &site.authority.crl(&[], 90 * DAY)));
    assert!(matches!(keeper.look(start + Duration::from_secs(60)), Look::Changed));
    assert_eq!(site.meet(), Ok(()));
    // The list of the other one counts for what that one issued, and for nothing else.
    other.issue(site.folder.path(), "web", &Request::sensor());
    assert!(site.meet().unwrap_err().1.contains("the sensor's certificate is revoked"));
}

#[test]
fn what_an_authority_in_between_issued_is_not_let_in_without_its_list() {
    let site = Site::new();
    let between = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_after = moment(1000 * DAY);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::signed_by(params, key, &site.authority.0).unwrap())
    };
    let between = between("between");
    between.issue(site.folder.path(), "web", &Request::sensor());
    let own = fs::read_to_string(site.path("web.pem")).unwrap();
    site.write("web.pem", &(own + &between.0.pem()));
    let (_, collector) = site.meet().unwrap_err();
    assert!(
        collector.contains("the sensor's certificate is revoked cannot be told"),
        "{collector}"
    );
    let both = site.authority.0.pem() + &between.0.pem();
    site.write("ca.pem", &both);
    site.write("crl.pem", &(site.authority.crl(&[], DAY) + &between.crl(&[], DAY)));
    assert_eq!(site.meet(), Ok(()));
}
