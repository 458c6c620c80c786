//! What a collector says of itself over HTTP.
//!
//! The types here are the reader's side of `GET /api/v1/status`: fields that a collector of another
//! version lacks are zero, those it adds are ignored.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use wire::ledger::{Imbalance, Ledger};

use crate::text::harmless;

/// State of a collector and of every sensor it knows.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Status {
    /// Name out of the collector's certificate.
    pub collector: String,
    /// Its version.
    pub version: String,
    /// Since when it runs, RFC 3339.
    pub started: String,
    /// For how long it runs, in seconds.
    pub uptime_seconds: f64,
    /// What an operator has to do something about.
    pub problems: Vec<String>,
    /// What lies on its disk.
    pub store: Store,
    /// Sensors seen in this run, connected or not.
    pub sensors: Vec<Sensor>,
    /// Connections that it closed, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// What a collector stored.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Store {
    /// The store's folder.
    pub path: String,
    /// The EVE JSON-lines log.
    pub events: String,
    /// Segments that are complete.
    pub segments_sealed: u64,
    /// Frames stored in this run.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Event records stored in this run.
    pub records: u64,
    /// Bytes free on the store's file system.
    pub free_bytes: u64,
    /// Stored records that are not in the event log yet.
    pub events_behind: u64,
    /// Stored records that are not in the index yet, so that no search finds them.
    pub index_behind: u64,
    /// Bytes of the record log that cannot be read.
    pub damaged_bytes: u64,
}

/// One sensor as the collector sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Sensor {
    /// Name out of the sensor's certificate.
    pub name: String,
    /// Is there a connection now?
    pub connected: bool,
    /// It said goodbye: its last ledger is final.
    #[serde(default)]
    pub ended: bool,
    /// Its address and port.
    pub peer: Option<String>,
    /// Since when it is (or was last) connected, RFC 3339.
    pub since: Option<String>,
    /// Start of the sensor's run, as it counts runs.
    pub boot_epoch: u64,
    /// Host name that the sensor gives.
    pub host: String,
    /// Its version.
    pub version: String,
    /// Frames stored of it.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Records stored of it.
    pub records: u64,
    /// Alert records among them.
    pub alerts: u64,
    /// Records and frame batches that never came, and of which the sensor did not say why.
    pub missing: u64,
    /// Frames of which the sensor said that they are lost.
    pub gap_frames: u64,
    /// Records of which the sensor said that they are lost.
    pub gap_records: u64,
    /// Frames arriving.
    pub frames_per_second: f64,
    /// Bytes of frames arriving.
    pub bytes_per_second: f64,
    /// Records arriving.
    pub records_per_second: f64,
    /// When the last frame came, RFC 3339.
    pub last_frame: Option<String>,
    /// When the last record came, RFC 3339.
    pub last_record: Option<String>,
    /// By how much the sensor's clock is ahead, in milliseconds.
    pub clock_offset_ms: Option<f64>,
    /// When the certificate of its last connection expires, RFC 3339.
    pub certificate_until: Option<String>,
    /// The sensor's last ledger.
    pub ledger: Option<Ledger>,
}

/// What a ledger tells about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Every frame and record is accounted for.
    AddsUp,
    /// So many frames still wait in the rings of a running sensor; the rest adds up.
    Waiting(u64),
    /// Something is missing, or counted twice.
    Off(Imbalance),
    /// The sensor has sent no ledger yet.
    Unknown,
}

impl Sensor {
    /// Do the sums of the sensor's ledger hold? Until it has ended in order, frames that the kernel
    /// counted and no worker has read yet are no fault.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let Some(ledger) = &self.ledger else { return Balance::Unknown };
        let Err(imbalance) = ledger.check() else { return Balance::AddsUp };
        if self.ended {
            return Balance::Off(imbalance);
        }
        let mut settled = ledger.clone();
        let mut waiting = 0;
        for interface in &mut settled.interfaces {
            let counts = [
                interface.kernel_drops,
                interface.corrupt,
                interface.unread,
                interface.not_wanted,
                interface.analysed,
            ];
            let read = counts.into_iter().fold(0, u64::saturating_add);
            waiting = interface.kernel_packets.saturating_sub(read).saturating_add(waiting);
            interface.kernel_packets = interface.kernel_packets.min(read);
        }
        match settled.check() {
            Ok(()) => Balance::Waiting(waiting),
            Err(imbalance) => Balance::Off(imbalance),
        }
    }
}

/// A page of stored events, as a collector sends it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    items: Vec<Box<RawValue>>,
    next: Option<String>,
    not_indexed_yet: u64,
    unreadable: u64,
}

/// A page of stored events.
#[derive(Debug, Default)]
pub struct Events {
    /// The events, as they were stored.
    pub items: Vec<serde_json::Value>,
    /// What leads to the next page.
    pub next: Option<String>,
    /// Stored records that are not in the collector's index yet.
    pub not_indexed_yet: u64,
    /// Events that were found and cannot be read.
    pub unreadable: u64,
    /// Events that came and are no JSON as this program has it, such as numbers that are too large.
    pub odd: u64,
    /// Up to when events were deleted, if the question reaches that far back.
    pub expired: Option<String>,
}

impl Events {
    /// What the reader should know who takes this for everything there is.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.not_indexed_yet > 0 {
            let count = crate::text::counted(self.not_indexed_yet, "stored record");
            remarks.push(format!("not complete: {count} still to be indexed by the collector"));
        }
        if self.unreadable > 0 {
            let count = crate::text::counted(self.unreadable, "event");
            remarks.push(format!(
                "not complete: {count} cannot be read; the collector's log says why"
            ));
        }
        if self.odd > 0 {
            let count = crate::text::counted(self.odd, "event");
            remarks.push(format!("not complete: {count} cannot be shown, being odd JSON"));
        }
        if let Some(expired) = &self.expired {
            let expired = crate::text::harmless(expired, 40);
            remarks.push(format!("events that were stored before {expired} were deleted"));
        }
        remarks
    }
}

/// Why a program's HTTP interface gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It answered that it does not answer this.
    #[error("{detail} ({error}, status {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The word for it.
        error: String,
        /// What is wrong.
        detail: String,
    },
    /// Nobody answered, or not in time, or not as expected.
    #[error("no usable answer from {url}")]
    Request {
        /// What was asked.
        url: String,
        /// What the HTTP client says.
        source: Box<ureq::Error>,
    },
    /// A token would be seen by whoever is on the way.
    #[error("{url} is not encrypted: a token goes to https://, or to this machine")]
    TokenInClear {
        /// What was to be asked.
        url: String,
    },
    /// There is nothing to verify the other end's certificate with.
    #[error("{url} needs the authority of its certificate: --ca FILE")]
    NoAuthority {
        /// What was to be asked.
        url: String,
    },
    /// The token's file cannot be read.
    #[error("cannot read the token in {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The authority's file has no certificates.
    #[error("cannot read certificates in {}: {problem}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What the HTTP interface of a collector asks for beyond loopback.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The token to show.
    pub token: Option<String>,
    /// Certificates of the authorities that the collector's certificate may be of (PEM).
    pub authority: Option<PathBuf>,
}

/// Asks the HTTP interface of one program. Keeps its connection open between questions, so that a
/// view which asks every second does not fill the sensor's own connection log.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    /// Header `Authorization`.
    authorization: Option<String>,
}

impl Client {
    /// A client of the program at `base` (`http://HOST:PORT`), which waits at most `patience` for
    /// an answer. Proxies of the environment are not used.
    #[must_use]
    pub fn new(base: &str, patience: Duration) -> Self {
        let agent = agent(patience, TlsConfig::default());
        Self { agent, base: base.trim_end_matches('/').to_owned(), authorization: None }
    }

    /// [`Client::new`] with what a collector beyond this machine asks for.
    ///
    /// # Errors
    /// [`ApiError::TokenInClear`], [`ApiError::NoAuthority`], [`ApiError::Authority`].
    pub fn with(
        base: &str,
        patience: Duration,
        credentials: &Credentials,
    ) -> Result<Self, ApiError> {
        let mut client = Self::new(base, patience);
        if client.base.starts_with("https://") && credentials.authority.is_none() {
            return Err(ApiError::NoAuthority { url: client.base });
        }
        if let Some(path) = &credentials.authority {
            let roots = RootCerts::Specific(Arc::new(certificates(path)?));
            let tls = TlsConfig::builder()
                .unversioned_rustls_crypto_provider(trust::provider())
                .root_certs(roots)
                .build();
            client.agent = agent(patience, tls);
        }
        if let Some(token) = &credentials.token {
            if !client.base.starts_with("https://") && !is_local(&client.base) {
                return Err(ApiError::TokenInClear { url: client.base });
            }
            client.authorization = Some(format!("Bearer {}", token.trim()));
        }
        Ok(client)
    }

    /// Asks a collector for its state.
    ///
    /// # Errors
    /// [`ApiError::Request`] if there is no answer, or none that is a collector's;
    /// [`ApiError::Refused`].
    pub fn status(&self) -> Result<Status, ApiError> {
        let (url, mut answer) = self.ask("/api/v1/status", &[])?;
        answer.body_mut().read_json().map_err(|source| request(url, source))
    }

    /// Asks a collector for stored events.
    ///
    /// # Errors
    /// [`ApiError::Refused`] if it says why not, [`ApiError::Request`] if there is no answer.
    pub fn events(&self, path: &str, query: &[(&str, String)]) -> Result<Events, ApiError> {
        let (url, mut answer) = self.ask(path, query)?;
        let expired = expired(&answer);
        let body = answer.body_mut().with_config().limit(MOST_BYTES);
        let page: Page = body.read_json().map_err(|source| request(url, source))?;
        let Page { items, next, not_indexed_yet, unreadable } = page;
        let came = items.len();
        // One that is odd costs no other.
        let read = |item: Box<RawValue>| serde_json::from_str(item.get()).ok();
        let items: Vec<_> = items.into_iter().filter_map(read).collect();
        let odd = (came - items.len()) as u64;
        Ok(Events { items, next, not_indexed_yet, unreadable, odd, expired })
    }

    /// Asks a collector for stored frames: a pcapng file, `None` if there are none; and up to when they were deleted,
    /// if the question reaches that far back.
    ///
    /// # Errors
    /// [`ApiError::Refused`] if it says why not, [`ApiError::Request`] if there is no answer.
    pub fn frames(
        &self,
        query: &[(&str, String)],
    ) -> Result<(Option<impl std::io::Read + use<>>, Option<String>), ApiError> {
        let (_, answer) = self.ask("/api/v1/frames", query)?;
        let expired = expired(&answer);
        let has_frames = answer.status().as_u16() == 200;
        Ok((has_frames.then(|| answer.into_body().into_reader()), expired))
    }

    /// The text behind `path`, such as `/metrics`.
    ///
    /// # Errors
    /// [`ApiError::Request`] if there is no answer; [`ApiError::Refused`].
    pub fn text(&self, path: &str) -> Result<String, ApiError> {
        let (url, mut answer) = self.ask(path, &[])?;
        answer.body_mut().read_to_string().map_err(|source| request(url, source))
    }

    fn ask(&self, path: &str, query: &[(&str, String)]) -> Result<(String, Answer), ApiError> {
        let url = format!("{}{path}", self.base);
        let mut question = self.agent.get(&url);
        for (name, value) in query {
            question = question.query(name, value);
        }
        if let Some(authorization) = &self.authorization {
            question = question.header("Authorization", authorization);
        }
        let answer = match question.call() {
            Ok(answer) => answer,
            Err(source) => return Err(request(url, source)),
        };
        match answer.status().as_u16() {
            200..300 => Ok((url, answer)),
            status => Err(refused(&url, status, answer)),
        }
    }
}

/// What a program says of why it does not answer: JSON, or plain text.
fn refused(url: &str, status: u16, mut answer: Answer) -> ApiError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Refusal {
        error: String,
        detail: String,
    }
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    let said: Refusal = serde_json::from_str(&text)
        .unwrap_or_else(|_| Refusal { detail: text.trim().to_owned(), ..Refusal::default() });
    let or = |text: &str, otherwise: &str| match text {
        "" => otherwise.to_owned(),
        text => harmless(text, 300),
    };
    let error = or(&said.error, "refused");
    let detail = or(&said.detail, &format!("no answer from {url}"));
    ApiError::Refused { status, error, detail }
}

/// Up to when what was asked for may be deleted.
fn expired(answer: &Answer) -> Option<String> {
    let header = answer.headers().get("ringwatch-expired")?;
    header.to_str().ok().map(ToOwned::to_owned)
}

type Answer = ureq::http::Response<ureq::Body>;

fn agent(patience: Duration, tls: TlsConfig) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .proxy(None)
        .http_status_as_error(false)
        // A token is for the collector that was named.
        .max_redirects(0)
        .tls_config(tls);
    config.build().into()
}

/// Whether a URL leads to this machine, over its loopback.
fn is_local(url: &str) -> bool {
    let host = url.strip_prefix("http://").unwrap_or(url).split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // Nobody needs a user's name there, which would hide where it leads.
    !url.contains('@')
        && (host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback()))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ApiError> {
    let bad = |problem: String| ApiError::Authority { path: path.to_owned(), problem };
    let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let found: Vec<_> = ureq::tls::parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(bad("there are none".to_owned())) } else { Ok(found) }
}

/// Longest answer with events: a collector stops at 16 MiB, and one event.
const MOST_BYTES: u64 = 32 << 20;

fn request(url: String, source: ureq::Error) -> ApiError {
    ApiError::Request { url, source: Box::new(source) }
}

/// Sum of all samples of one metric in the Prometheus text format; `None` if it has none.
#[must_use]
pub fn metric_sum(exposition: &str, name: &str) -> Option<u64> {
    let samples = exposition.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.starts_with(' ').then_some(rest)?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    // A float holds counters exactly up to 2^53; the view rounds to three digits anyway.
    samples.map(|value| value as u64).reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ledger::InterfaceLedger;

    fn sensor(kernel: u64, analysed: u64) -> Sensor {
        let interface = InterfaceLedger {
            name: "eth0".into(),
            kernel_packets: kernel,
            analysed,
            not_selected: analysed,
            ..Default::default()
        };
        let ledger = Ledger { interfaces: vec![interface], ..Default::default() };
        Sensor { connected: true, ledger: Some(ledger), ..Default::default() }
    }

    #[test]
    fn frames_in_the_rings_are_no_fault_while_the_sensor_runs() {
        assert_eq!(sensor(10, 10).balance(), Balance::AddsUp);
        assert_eq!(sensor(10, 7).balance(), Balance::Waiting(3));
        let stopped = Sensor { ended: true, ..sensor(10, 7) };
        assert!(matches!(stopped.balance(), Balance::Off(_)));
    }

    #[test]
    fn frames_counted_twice_are_a_fault_also_while_the_sensor_runs() {
        assert!(matches!(sensor(7, 10).balance(), Balance::Off(_)));
    }

    #[test]
    fn an_answer_with_missing_and_new_fields_is_read() {
        let status: Status =
            serde_json::from_str(r#"{"sensors":[{"name":"web","new":1}],"newer":{}}"#).unwrap();
        assert_eq!(status.sensors[0].name, "web");
        assert_eq!(status.sensors[0].balance(), Balance::Unknown);
    }

    #[test]
    fn a_token_is_not_sent_in_clear_to_another_machine() {
        let credentials = Credentials { token: Some("x".into()), authority: None };
        let open = |url: &str| Client::with(url, Duration::from_secs(1), &credentials);
        for url in ["http://127.0.0.1:8480", "http://[::1]:1/", "http://localhost"] {
            assert!(open(url).is_ok(), "{url}");
        }
        assert!(matches!(open("https://a:1"), Err(ApiError::NoAuthority { .. })));
        for url in
            ["http://192.0.2.1:8480", "http://localhost.example:1", "http://127.0.0.1.example"]
        {
            assert!(matches!(open(url), Err(ApiError::TokenInClear { .. })), "{url}");
        }
    }

    #[test]
    fn samples_of_one_metric_are_added_up_and_of_others_left_out() {
        let text = "# TYPE a_total counter\na_total{worker=\"0\"} 3\na_total{worker=\"1\"} 4\n\
                    a_total_more 9\nb 5\n";
        assert_eq!(metric_sum(text, "a_total"), Some(7));
        assert_eq!(metric_sum(text, "b"), Some(5));
        assert_eq!(metric_sum(text, "c"), None);
    }
}
