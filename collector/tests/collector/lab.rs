//! A collector of its own for each test: PKI, configuration, the real program, and its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::Value;
use trust::tokens::{Access, Tokens};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An authority and what it issued, as PEM.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    pub fn sensor(&self, name: &str) -> Issued {
        self.issue(&[&format!("ringwatch://sensor/{name}")], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    pub fn collector(&self, name: &str) -> Issued {
        let uri = format!("ringwatch://collector/{name}");
        self.issue(&[&uri], &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A sensor's certificate that expires in so many seconds.
    pub fn sensor_until(&self, name: &str, seconds: u64) -> Issued {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(seconds);
        let uri = format!("ringwatch://sensor/{name}");
        self.sign(params, &[&uri], &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    pub fn issue(&self, uris: &[&str], purposes: &[ExtendedKeyUsagePurpose]) -> Issued {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        self.sign(params, uris, purposes)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        uris: &[&str],
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Issued {
        params.extended_key_usages = purposes.to_vec();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// Folder with everything that a collector needs; gone when dropped.
pub struct Lab {
    pub authority: Authority,
    /// What opens the API of its collectors.
    token: String,
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let own = authority.collector("ids");
        write(&folder.path().join("ca.pem"), &authority.certificate(), 0o644);
        write(&folder.path().join("ids.pem"), &own.certificate, 0o644);
        write(&folder.path().join("ids.key.pem"), &own.key, 0o600);
        let mut tokens = Tokens::default();
        let token = tokens.create("test", Access::Admin, 0, None).unwrap();
        write(&folder.path().join("tokens"), &tokens.render(), 0o644);
        let lab = Self { authority, folder, token };
        lab.configure("segment_age = \"24h\"");
        lab
    }

    /// Writes the configuration, with `store` in its last section.
    pub fn configure(&self, store: &str) {
        self.configure_listen("", store);
    }

    /// Writes the configuration, with the lines `listen` in its first section and `store` in its last.
    pub fn configure_listen(&self, listen: &str, store: &str) {
        let text = format!(
            "[listen]\nsensors = \"127.0.0.1:0\"\napi = \"127.0.0.1:0\"\n{listen}\
             [tls]\nca = \"ca.pem\"\ncertificate = \"ids.pem\"\nkey = \"ids.key.pem\"\n\
             [api]\ntokens = \"tokens\"\n\
             [store]\npath = \"store\"\n{store}\n"
        );
        write(&self.config(), &text, 0o644);
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("collector.toml")
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The event log, once all is in it that is stored.
    pub fn events_of(&self, collector: &Collector) -> String {
        collector.wait_for_status("event log that is complete", |status| {
            status["store"]["events_behind"] == 0
        });
        self.events()
    }

    /// The event log.
    pub fn events(&self) -> String {
        std::fs::read_to_string(self.store().join("events/eve.json")).unwrap_or_default()
    }

    /// Sealed segments, oldest first.
    pub fn segments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.store().join("frames")).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "pcapng"));
        paths.sort();
        paths
    }

    /// Runs the program to its end, without a configuration of ours.
    pub fn command(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Starts the collector and waits until it listens.
    pub fn start(&self) -> Collector {
        self.start_after(":")
    }

    /// Like [`Lab::start`], from a shell that has run `prelude`.
    pub fn start_after(&self, prelude: &str) -> Collector {
        let log = self.folder.path().join("log");
        let _ = std::fs::remove_file(&log);
        let child = Command::new("sh")
            .args(["-c", &format!("{prelude}; exec \"$@\""), "sh", PROGRAM, "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut collector = Collector {
            child,
            log,
            sensors: String::new(),
            api: String::new(),
            token: self.token.clone(),
        };
        let line = collector.wait_for_line("collector started");
        collector.sensors = field(&line, "sensors=");
        collector.api = field(&line, "api=");
        collector
    }
}

/// A running collector; killed when dropped.
pub struct Collector {
    child: Child,
    log: PathBuf,
    /// Where sensors connect.
    pub sensors: String,
    pub api: String,
    /// What opens its API.
    pub token: String,
}

impl Collector {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_for_line(&self, part: &str) -> String {
        let find = || self.log().lines().find(|line| line.contains(part)).map(str::to_owned);
        wait_until(&format!("log line with {part:?}"), find, || self.log())
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/api/v1/status").1).unwrap()
    }

    /// Waits until the status satisfies `is_good`, and returns it.
    pub fn wait_for_status(&self, what: &str, is_good: impl Fn(&Value) -> bool) -> Value {
        let find = || Some(self.status()).filter(&is_good);
        wait_until(what, find, || format!("{:#}\n{}", self.status(), self.log()))
    }

    /// Status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let answer = String::from_utf8(self.bytes(path)).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// All that comes back, until the connection ends.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.api).unwrap();
        let token = &self.token;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }

    /// The soft and the hard limit of open files.
    pub fn file_limits(&self) -> (String, String) {
        let path = format!("/proc/{}/limits", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let mut words = line.split_whitespace().map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    }

    /// Number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that it has, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse().unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let log = self.log.clone();
        let child = &mut self.child;
        wait_until(
            "end of the collector",
            || child.try_wait().unwrap(),
            || std::fs::read_to_string(&log).unwrap(),
        )
    }

    /// Asks for the end, and checks that it is an orderly one.
    pub fn stop(mut self) -> String {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.log()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls `find` until it gives something; fails with what `context` says.
pub fn wait_until<T>(
    what: &str,
    mut find: impl FnMut() -> Option<T>,
    context: impl Fn() -> String,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}: {}", context());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What stands behind `name` in a log line, without quotes.
fn field(line: &str, name: &str) -> String {
    let (_, rest) = line.split_once(name).unwrap();
    rest.split(' ').next().unwrap().trim_matches('"').to_owned()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringwatch-collector");
