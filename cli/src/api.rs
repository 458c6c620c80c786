//! What a collector says of itself over HTTP.
//!
//! The types here are the reader's side of `GET /api/v1/status`: fields that a collector of another
//! version lacks are zero, those it adds are ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wire::ledger::{Imbalance, Ledger};

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

/// Why a program's HTTP interface gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody answered, or not in time, or not as expected.
    #[error("no usable answer from {url}")]
    Request {
        /// What was asked.
        url: String,
        /// What the HTTP client says.
        source: Box<ureq::Error>,
    },
}

/// Asks the HTTP interface of one program. Keeps its connection open between questions, so that a
/// view which asks every second does not fill the sensor's own connection log.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    /// A client of the program at `base` (`http://HOST:PORT`), which waits at most `patience` for
    /// an answer. Proxies of the environment are not used.
    #[must_use]
    pub fn new(base: &str, patience: Duration) -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(patience)).proxy(None).build();
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned() }
    }

    /// Asks a collector for its state.
    ///
    /// # Errors
    /// [`ApiError::Request`] if there is no answer, or none that is a collector's.
    pub fn status(&self) -> Result<Status, ApiError> {
        let url = format!("{}/api/v1/status", self.base);
        let answer = self.agent.get(&url).call();
        answer
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(|source| request(url, source))
    }

    /// The text behind `path`, such as `/metrics`.
    ///
    /// # Errors
    /// [`ApiError::Request`] if there is no answer.
    pub fn text(&self, path: &str) -> Result<String, ApiError> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.get(&url).call();
        answer
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .map_err(|source| request(url, source))
    }
}

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
    fn samples_of_one_metric_are_added_up_and_of_others_left_out() {
        let text = "# TYPE a_total counter\na_total{worker=\"0\"} 3\na_total{worker=\"1\"} 4\n\
                    a_total_more 9\nb 5\n";
        assert_eq!(metric_sum(text, "a_total"), Some(7));
        assert_eq!(metric_sum(text, "b"), Some(5));
        assert_eq!(metric_sum(text, "c"), None);
    }
}
