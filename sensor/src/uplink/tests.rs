//! The uplink's thread against a collector in this process, over real TLS on loopback.

mod panics;

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use packet::frame::LinkType;
use packet::{FiveTuple, protocol};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use wire::codec::Decoder;
use wire::frames::FrameBatchWriter;
use wire::header::Stream;
use wire::message::{
    Ack, CollectorHello, Control, Heartbeat, Limits, Message, Resume, SensorHello,
};
use wire::units::{Sequence, UnixNanos, WireLen};

use trust::{FileError, Files, Identity};

use super::*;

const EPOCH: u64 = 42;
/// Longer than anything here takes, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(10);
const POOL: usize = 64;

/// A throw-away authority and a folder for the sensor's files.
struct Pki {
    folder: tempfile::TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self { folder: tempfile::tempdir().unwrap(), ca };
        std::fs::write(pki.path("ca.pem"), pki.ca.pem()).unwrap();
        pki.issue_sensor("ringwatch://sensor/edge", ExtendedKeyUsagePurpose::ClientAuth);
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Files {
        Files {
            ca: self.path("ca.pem"),
            certificate: self.path("edge.pem"),
            key: self.path("edge.key.pem"),
            crl: None,
        }
    }

    fn issue_sensor(&self, uri: &str, usage: ExtendedKeyUsagePurpose) {
        let (certificate, key) = self.issue(uri, usage);
        std::fs::write(self.path("edge.pem"), certificate.pem()).unwrap();
        let key_file = self.path("edge.key.pem");
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    }

    fn issue(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap(), key)
    }

    /// A server that shows a certificate with this URI and usage, and demands one of ours.
    fn server(&self, uri: &str, usage: ExtendedKeyUsagePurpose) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue(uri, usage);
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        Arc::new(config)
    }
}

/// A collector that does as the test says.
struct Collector {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
}

impl Collector {
    fn new(pki: &Pki) -> Self {
        let tls = pki.server("ringwatch://collector/ids", ExtendedKeyUsagePurpose::ServerAuth);
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), tls }
    }

    fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let tls = ServerConnection::new(self.tls.clone()).unwrap();
        let mut stream = StreamOwned::new(tls, stream);
        while stream.conn.is_handshaking() {
            if stream.conn.complete_io(&mut stream.sock).is_err() {
                break;
            }
        }
        Peer { stream, decoder: Decoder::new() }
    }

    /// Accepts, greets, and takes the sensor's answer.
    fn meet(&self, resume: Option<Resume>) -> Peer {
        let mut peer = self.accept();
        peer.greet(resume);
        let Seen::Control(Control::SensorHello(hello)) = peer.next_but_beats() else { panic!() };
        assert_eq!((hello.sensor.as_str(), hello.boot_epoch), ("edge", EPOCH));
        let interfaces = peer.next_but_beats();
        assert!(matches!(interfaces, Seen::Control(Control::Interfaces(_))), "{interfaces:?}");
        peer
    }
}

/// The collector's end of one connection.
struct Peer {
    stream: StreamOwned<ServerConnection, TcpStream>,
    decoder: Decoder,
}

/// What arrived.
#[derive(Debug, PartialEq)]
enum Seen {
    Control(Control),
    Records { first: u64, json: Vec<String> },
    Frames { sequence: u64, count: u32 },
}

impl Peer {
    fn say(&mut self, control: &Control) {
        let mut bytes = Vec::new();
        control.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
        self.stream.flush().unwrap();
    }

    fn greet(&mut self, resume: Option<Resume>) {
        self.say(&Control::CollectorHello(CollectorHello {
            minor: 1,
            collector: "ids".into(),
            limits: Limits::default(),
            resume,
        }));
    }

    fn ack(&mut self, stream: Stream, sequence: u64) {
        self.say(&Control::Ack(Ack { stream, sequence: Sequence(sequence), count: 0 }));
    }

    /// The next message; an error when the connection ends or nothing comes for long.
    fn next(&mut self) -> io::Result<Seen> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Ok(match message {
                    Message::Control(control) => Seen::Control(control),
                    Message::Records(batch) => Seen::Records {
                        first: batch.first.0,
                        json: batch.iter().map(|record| record.json.to_owned()).collect(),
                    },
                    Message::Frames(batch) => {
                        Seen::Frames { sequence: batch.sequence.0, count: batch.len() }
                    }
                });
            }
            let len = self.stream.read(self.decoder.spare())?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.filled(len);
        }
    }

    /// The next message that is neither ledger nor heartbeat.
    fn next_but_beats(&mut self) -> Seen {
        loop {
            match self.next().expect("connection must live") {
                Seen::Control(Control::LedgerReport(_) | Control::Heartbeat(_)) => {}
                seen => return seen,
            }
        }
    }

    fn expect_records(&mut self, first: u64, json: &[&str]) {
        let json = json.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(self.next_but_beats(), Seen::Records { first, json });
    }
}

/// The uplink's thread, and the other ends of its inputs.
struct Running {
    thread: JoinHandle<Deliveries>,
    status: Arc<UplinkStatus>,
    records: Sender<OutgoingRecord>,
    filled: rtrb::Producer<FrameBatchWriter>,
    empty: rtrb::Consumer<FrameBatchWriter>,
    stop: Sender<Duration>,
    /// Lets the ledger panic, once.
    panics: Arc<AtomicBool>,
}

impl Running {
    fn start(pki: &Pki, collectors: &[String], timing: Timing) -> Self {
        let status = Arc::new(UplinkStatus::default());
        let spool = Spool::in_memory(EPOCH, RECORD_QUEUE_BYTES, Arc::clone(&status.spool));
        Self::start_with(pki, collectors, timing, (spool, status))
    }

    fn start_with(
        pki: &Pki,
        collectors: &[String],
        timing: Timing,
        (spool, status): (Spool, Arc<UplinkStatus>),
    ) -> Self {
        let interfaces = Arc::new(InterfaceNames::new([("eth0", LinkType::ETHERNET)]));
        let config = UplinkConfig {
            collectors: collectors.iter().map(|text| text.parse().unwrap()).collect(),
            identity: Keeper::open(pki.files(), Duration::ZERO).unwrap(),
            hello: SensorHello {
                minor: 1,
                sensor: "edge".into(),
                boot_epoch: EPOCH,
                spool_epoch: EPOCH,
                host: "host".into(),
                version: "0".into(),
            },
            interfaces,
            snaplen: 65535,
            timing,
        };
        let (records, records_in) = bounded(1024);
        let (stop, stop_in) = bounded(1);
        let (filled, filled_in) = rtrb::RingBuffer::new(POOL);
        let (mut empty_out, empty) = rtrb::RingBuffer::new(POOL);
        for _ in 0..POOL {
            empty_out.push(FrameBatchWriter::new(1, 65535)).unwrap();
        }
        let in_ledger = status.clone();
        let panics = Arc::new(AtomicBool::new(false));
        let panics_in = Arc::clone(&panics);
        let inputs = UplinkInputs {
            spool,
            records: records_in,
            batches: vec![BatchRing { filled: filled_in, empty: empty_out }],
            ledger: Box::new(move || {
                assert!(!panics_in.swap(false, Ordering::Relaxed), "on purpose");
                let Deliveries { frames, records } = in_ledger.deliveries();
                let (frames, records) = (frames.to_ledger(), records.to_ledger());
                Ledger { interfaces: vec![], frames, records }
            }),
            stop: stop_in,
        };
        let in_thread = status.clone();
        let thread = std::thread::spawn(move || run(config, inputs, in_thread).unwrap());
        Self { thread, status, records, filled, empty, stop, panics }
    }

    fn with_default_timing(pki: &Pki, collector: &Collector) -> Self {
        Self::start(pki, &[collector.address()], quick())
    }

    fn record(&self, kind: RecordKind, json: &str) {
        self.records.send(OutgoingRecord { kind, json: json.into() }).unwrap();
    }

    /// Hands over a batch of frames, as a worker does. False if the pool is dry.
    fn frames(&mut self, count: u32) -> bool {
        let Ok(mut batch) = self.empty.pop() else { return false };
        assert!(batch.is_empty());
        for _ in 0..count {
            batch.try_push(UnixNanos(1), WireLen(1000), 0, &[&[7; 1000]]).unwrap();
        }
        self.filled.push(batch).unwrap();
        true
    }

    fn stop(self, drain: Duration) -> Deliveries {
        self.stop.send(drain).unwrap();
        self.thread.join().unwrap()
    }
}

/// Without the spread of a fleet.
fn quick() -> Timing {
    Timing { spread: Duration::ZERO, ..Timing::default() }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An address where nobody listens.
fn closed_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn no_byte_of_data_leaves_before_the_collectors_hello() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let uplink = Running::with_default_timing(&pki, &collector);
    uplink.record(RecordKind::Alert, r#"{"n":1}"#);
    let mut peer = collector.accept();
    peer.stream.sock.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = peer.stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(!uplink.status.metrics.is_connected());

    peer.stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.greet(None);
    assert!(matches!(peer.next_but_beats(), Seen::Control(Control::SensorHello(_))));
    assert!(matches!(peer.next_but_beats(), Seen::Control(Control::Interfaces(_))));
    peer.expect_records(1, &[r#"{"n":1}"#]);
    assert!(uplink.status.metrics.is_connected());
    uplink.stop(Duration::ZERO);
}

#[test]
fn after_a_cut_only_what_the_collector_lacks_is_sent_again() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let mut uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    for json in ["{}", "[1]", "[2]"] {
        uplink.record(RecordKind::Flow, json);
        assert!(matches!(peer.next_but_beats(), Seen::Records { .. }));
    }
    for sequence in 1..=3 {
        assert!(uplink.frames(5));
        assert_eq!(peer.next_but_beats(), Seen::Frames { sequence, count: 5 });
    }
    peer.ack(Stream::Records, 1);
    drop(peer);

    // It had stored the second record and batch as well, and could not say so.
    let resume = Resume {
        boot_epoch: EPOCH,
        records: Sequence(2),
        frames: Sequence(2),
        spool_epoch: EPOCH,
        alerts: Sequence(0),
    };
    let mut peer = collector.meet(Some(resume));
    peer.expect_records(3, &["[2]"]);
    peer.ack(Stream::Records, 3);
    assert!(uplink.frames(4));
    assert_eq!(peer.next_but_beats(), Seen::Frames { sequence: 4, count: 4 });
    peer.ack(Stream::Frames, 4);
    let metrics = &uplink.status.metrics;
    assert_eq!(metrics.connects_total(), 2);
    let disconnects = EndReason::ALL.map(|reason| metrics.disconnects_total(reason));
    assert_eq!(disconnects.iter().sum::<u64>(), 1);

    eventually("all settled", || uplink.status.deliveries().frames.in_flight() == 0);
    let Deliveries { frames, records } = uplink.stop(PATIENCE);
    assert_eq!(records.to_ledger().acknowledged, 3);
    assert_eq!(frames.to_ledger().acknowledged, 14);
    assert_eq!(frames.lost(LossReason::Disconnected), 5);
    assert_eq!(frames.to_ledger().produced, 19);
}

#[test]
fn an_alert_overtakes_the_frames_that_wait() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let mut uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    // The collector does not read: the socket fills, then the pool runs dry.
    let start = Instant::now();
    let mut handed = 0;
    while start.elapsed() < Duration::from_secs(1) {
        while uplink.frames(60) {
            handed += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    uplink.record(RecordKind::Alert, "{}");
    std::thread::sleep(Duration::from_millis(100));
    let mut before = 0;
    while let Seen::Frames { .. } = peer.next_but_beats() {
        before += 1;
    }
    let mut after = 0;
    while before + after < handed {
        assert!(matches!(peer.next_but_beats(), Seen::Frames { .. }));
        after += 1;
    }
    // Behind the alert are all that were in the rings.
    assert!(after >= POOL - 8, "{before} batches before the alert, {after} after it");
    uplink.stop(Duration::ZERO);
}

#[test]
fn a_silent_collector_is_given_up_and_dialled_again() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let timing = Timing {
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_millis(400),
        ..quick()
    };
    let mut uplink = Running::start(&pki, &[collector.address()], timing);
    let mut peer = collector.meet(None);
    // As long as it beats, it is kept, whether there is traffic or not.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        peer.say(&Control::Heartbeat(Heartbeat { sent_at: UnixNanos(5), echo: None }));
        uplink.frames(1);
    }
    assert!(uplink.status.metrics.is_connected());
    assert_eq!(uplink.status.metrics.peer_timeouts_total(), 0);
    let silent_since = Instant::now();
    let echo = loop {
        if let Seen::Control(Control::Heartbeat(Heartbeat { echo: Some(echo), .. })) =
            peer.next().unwrap()
        {
            break echo;
        }
    };
    assert_eq!(echo.sent_at, UnixNanos(5));
    eventually("given up", || uplink.status.metrics.peer_timeouts_total() == 1);
    assert!(silent_since.elapsed() >= Duration::from_millis(300));
    let _again = collector.meet(None);
    uplink.stop(Duration::ZERO);
}

#[test]
fn a_collector_with_the_wrong_certificate_is_refused() {
    let pki = Pki::new();
    let other_pki = Pki::new();
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let collector = "ringwatch://collector/ids";
    for (what, tls) in [
        ("a sensor's certificate", pki.server("ringwatch://sensor/edge", client.clone())),
        ("a sensor's name", pki.server("ringwatch://sensor/edge", server.clone())),
        ("a client's usage", pki.server(collector, client)),
        ("a name that is none", pki.server("ringwatch://collector/UP", server.clone())),
        ("another authority", other_pki.server(collector, server)),
    ] {
        let impostor = Collector { tls, ..Collector::new(&pki) };
        let uplink = Running::with_default_timing(&pki, &impostor);
        uplink.record(RecordKind::Alert, "{}");
        let mut peer = impostor.accept();
        assert!(!matches!(peer.stream.read(&mut [0]), Ok(1..)), "{what}");
        eventually(what, || uplink.status.metrics.failed_dials_total(EndReason::Tls) > 0);
        assert_eq!(uplink.status.metrics.connects_total(), 0, "{what}");
        uplink.stop(Duration::ZERO);
    }
}

#[test]
fn the_sensors_own_certificate_must_be_one_of_a_sensor() {
    let pki = Pki::new();
    let load = || SensorTls::load(&pki.files());
    assert_eq!(load().unwrap().name(), "edge");
    pki.issue_sensor("ringwatch://collector/ids", ExtendedKeyUsagePurpose::ClientAuth);
    let error = load().unwrap_err().to_string();
    let expected = "certificate is for ringwatch://collector/ids, not for ringwatch://sensor/NAME";
    assert!(error.contains(expected), "{error}");
    pki.issue_sensor("ringwatch://sensor/edge", ExtendedKeyUsagePurpose::ServerAuth);
    let error = load().unwrap_err().to_string();
    assert!(error.contains("must have the extended key usage clientAuth"), "{error}");
    std::fs::write(pki.path("ca.pem"), "no pem").unwrap();
    pki.issue_sensor("ringwatch://sensor/edge", ExtendedKeyUsagePurpose::ClientAuth);
    let error = load().unwrap_err();
    assert!(matches!(&error, FileError::NoPem { path, .. } if path.ends_with("ca.pem")));
}

#[test]
fn the_preferred_collector_is_gone_back_to_once_it_is_there_again() {
    let pki = Pki::new();
    let (mut preferred, other) = (Collector::new(&pki), Collector::new(&pki));
    let address = preferred.address();
    // Nobody listens there any more.
    preferred.listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let timing = Timing { preferred: Duration::from_millis(300), ..quick() };
    let uplink = Running::start(&pki, &[address.clone(), other.address()], timing);
    uplink.record(RecordKind::Flow, "1");
    let mut peer = other.meet(None);
    peer.expect_records(1, &["1"]);
    peer.ack(Stream::Records, 1);
    // It knocks in vain some times, and stays where it is.
    std::thread::sleep(Duration::from_millis(1000));
    uplink.record(RecordKind::Flow, "2");
    peer.expect_records(2, &["2"]);
    assert_eq!(uplink.status.metrics.connects_total(), 1);
    preferred.listener = TcpListener::bind(&address).unwrap();
    let (knock, _) = preferred.listener.accept().unwrap();
    drop(knock);
    // It has heard of one record: the other one comes again.
    let mut peer = preferred.meet(None);
    peer.expect_records(2, &["2"]);
    peer.ack(Stream::Records, 2);
    assert_eq!(uplink.status.metrics.disconnects_total(EndReason::Preferred), 1);
    uplink.stop(PATIENCE);
}

#[test]
fn while_the_collector_is_away_records_wait_and_buffers_go_back() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    // Nobody listens at the first address; the second is tried next.
    let mut uplink = Running::start(&pki, &[closed_port(), collector.address()], quick());
    for number in 0..200 {
        uplink.record(RecordKind::Dns, &number.to_string());
        eventually("a buffer comes back", || uplink.frames(1));
    }
    eventually("counted", || uplink.status.deliveries().frames.to_ledger().produced == 200);
    assert_eq!(uplink.status.deliveries().frames.lost(LossReason::NotConnected), 200);
    let mut peer = collector.meet(None);
    assert_eq!(uplink.status.metrics.failed_dials_total(EndReason::Connect), 1);
    let mut received = 0;
    while received < 200 {
        let Seen::Records { first, json } = peer.next_but_beats() else { panic!() };
        assert_eq!(first, received + 1);
        received += json.len() as u64;
    }
    peer.ack(Stream::Records, 200);
    let records = uplink.stop(PATIENCE).records.to_ledger();
    assert_eq!((records.produced, records.acknowledged), (200, 200));
}

#[test]
fn a_stop_delivers_what_waits_and_says_goodbye_with_the_last_ledger() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let mut uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    uplink.record(RecordKind::Stats, "{}");
    for _ in 0..10 {
        assert!(uplink.frames(7));
    }
    let stopping = std::thread::spawn(move || uplink.stop(PATIENCE));
    let mut last_ledger = None;
    let mut frames = 0;
    loop {
        match peer.next().unwrap() {
            Seen::Records { first, .. } => peer.ack(Stream::Records, first),
            Seen::Frames { sequence, count } => {
                frames += count;
                peer.ack(Stream::Frames, sequence);
            }
            Seen::Control(Control::LedgerReport(ledger)) => last_ledger = Some(ledger),
            Seen::Control(Control::Goodbye(goodbye)) => {
                assert_eq!(goodbye.reason, "shutdown");
                break;
            }
            Seen::Control(_) => {}
        }
    }
    assert_eq!(frames, 70);
    // A clean end of TLS, not a broken connection.
    assert_eq!(peer.stream.read(&mut [0; 1]).unwrap(), 0);
    drop(peer);
    let Deliveries { frames, records } = stopping.join().unwrap();
    assert_eq!((frames.to_ledger().acknowledged, frames.in_flight()), (70, 0));
    assert_eq!((records.to_ledger().acknowledged, records.in_flight()), (1, 0));
    let last_ledger = last_ledger.unwrap();
    assert_eq!(
        (last_ledger.frames, last_ledger.records),
        (frames.to_ledger(), records.to_ledger())
    );
}

#[test]
fn what_is_not_acknowledged_when_time_is_up_is_lost_by_shutdown() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let mut uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    uplink.record(RecordKind::Stats, "{}");
    assert!(uplink.frames(3));
    assert!(matches!(
        (peer.next_but_beats(), peer.next_but_beats()),
        (Seen::Records { .. }, Seen::Frames { .. }) | (Seen::Frames { .. }, Seen::Records { .. })
    ));
    let begin = Instant::now();
    let Deliveries { frames, records } = uplink.stop(Duration::from_millis(300));
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(begin.elapsed() < Duration::from_secs(3));
    assert_eq!((frames.in_flight(), frames.lost(LossReason::Shutdown)), (0, 3));
    assert_eq!((records.in_flight(), records.lost(LossReason::Shutdown)), (0, 1));
}

#[test]
fn a_stop_without_a_collector_does_not_wait() {
    let pki = Pki::new();
    let uplink = Running::start(&pki, &[closed_port()], quick());
    uplink.record(RecordKind::Stats, "{}");
    eventually("an attempt failed", || {
        uplink.status.metrics.failed_dials_total(EndReason::Connect) > 0
    });
    let begin = Instant::now();
    let records = uplink.stop(PATIENCE).records;
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(records.lost(LossReason::Shutdown), 1);
}

#[test]
fn workers_know_the_collector_before_it_is_dialled() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let uplink = Running::with_default_timing(&pki, &collector);
    let (stream, local) = collector.listener.accept().unwrap();
    let remote = collector.listener.local_addr().unwrap();
    let tuple = FiveTuple {
        source: local.ip().into(),
        target: remote.ip().into(),
        source_port: local.port(),
        target_port: remote.port(),
        protocol: protocol::TCP,
    };
    let own = uplink.status.own.load();
    assert!(own.contains(&tuple) && own.contains(&tuple.reversed()));
    assert!(!own.contains(&FiveTuple { target_port: tuple.target_port ^ 1, ..tuple }));
    drop(stream);
    uplink.stop(Duration::ZERO);
}

#[test]
fn a_server_that_does_not_speak_tls_is_given_up() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let timing = Timing { silence: Duration::from_millis(300), ..quick() };
    let uplink = Running::start(&pki, &[collector.address()], timing);
    let (_mute, _) = collector.listener.accept().unwrap();
    let metrics = &uplink.status.metrics;
    eventually("given up", || metrics.failed_dials_total(EndReason::TimedOut) == 1);
    let (mut babbler, _) = collector.listener.accept().unwrap();
    babbler.write_all(b"220 mail.example.net ESMTP\r\n").unwrap();
    eventually("refused", || metrics.failed_dials_total(EndReason::Tls) == 1);
    uplink.stop(Duration::ZERO);
}

#[test]
fn a_collector_that_sends_an_invalid_message_is_left_and_dialled_again() {
    let pki = Pki::new();
    let collector = Collector::new(&pki);
    let uplink = Running::with_default_timing(&pki, &collector);
    let mut peer = collector.meet(None);
    peer.stream.write_all(&[b'x'; 32]).unwrap();
    let metrics = &uplink.status.metrics;
    eventually("left", || metrics.disconnects_total(EndReason::Protocol) == 1);
    assert!(!metrics.is_connected());
    collector.meet(None);
    uplink.stop(Duration::ZERO);
}
