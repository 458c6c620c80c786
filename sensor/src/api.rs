//! The local HTTP API, on loopback: `/metrics`, `/healthz`, and `/v1/explain?source=ADDRESS`.
//!
//! One thread with its own tokio runtime, apart from everything that touches packets.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use crossbeam_channel::{Sender, TrySendError};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use crate::detect::Explanation;
use crate::detection::Question;
use crate::explain;
use crate::health::Health;
use crate::metrics;

/// The running API; it ends when [`stopped`](Api::stop).
#[derive(Debug)]
pub struct Api {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
    address: SocketAddr,
}

/// The API cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the local API on {address}; is another sensor running? set api.listen")]
pub struct ApiError {
    address: SocketAddr,
    source: io::Error,
}

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    health: Arc<Health>,
    questions: Sender<Question>,
}

/// How long a question waits for the detector, which looks for questions 40 times a second.
const DETECTOR_PATIENCE: Duration = Duration::from_secs(5);

impl Api {
    /// Serves on `address` until stopped. `questions` go to the detector.
    ///
    /// # Errors
    /// The address is taken, or the thread cannot be started.
    pub fn start(
        address: SocketAddr,
        registry: Arc<Registry>,
        health: Arc<Health>,
        questions: Sender<Question>,
    ) -> Result<Self, ApiError> {
        let refuse = |source| ApiError { address, source };
        let listener = TcpListener::bind(address).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let (stop, stopped) = oneshot::channel();
        let router = router(Shared { registry, health, questions });
        let thread = std::thread::Builder::new()
            .name("api".into())
            .spawn(move || serve(listener, router, stopped))
            .map_err(refuse)?;
        Ok(Self { stop, thread, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub fn stop(self) {
        // Both fail only if the thread is gone already, which is what is wanted.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn serve(listener: TcpListener, router: Router, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "local api cannot start"),
    };
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::select! {
            served = axum::serve(listener, router) => served,
            _ = stopped => Ok(()),
        }
    });
    if let Err(error) = served {
        tracing::error!(%error, "local api ended");
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(healthz))
        .route("/v1/explain", get(explain_source))
        .with_state(shared)
}

async fn scrape(State(shared): State<Shared>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&shared.registry))
}

async fn healthz(State(shared): State<Shared>) -> impl IntoResponse {
    let problems = shared.health.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if problems.is_empty() { "ok" } else { "degraded" };
    (status, Json(json!({ "status": word, "problems": problems })))
}

#[derive(Deserialize)]
struct About {
    source: Option<String>,
}

/// Text where it is asked for (`Accept: text/plain`), else JSON. Errors are text.
async fn explain_source(
    State(shared): State<Shared>,
    Query(About { source }): Query<About>,
    headers: HeaderMap,
) -> Response {
    let source = source.unwrap_or_default();
    let Ok(address) = source.parse::<IpAddr>() else {
        let why = format!("source = {source:?} is no IPv4 or IPv6 address\n");
        return (StatusCode::BAD_REQUEST, why).into_response();
    };
    let explanation = match ask_detector(&shared.questions, address).await {
        Ok(explanation) => explanation,
        Err((status, why)) => return (status, format!("{why}\n")).into_response(),
    };
    let is_plain = headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/plain");
    if is_plain {
        explain::text(&explanation).into_response()
    } else {
        Json(explain::json(&explanation)).into_response()
    }
}

const ENDING: &str = "the sensor is about to end";

async fn ask_detector(
    questions: &Sender<Question>,
    source: IpAddr,
) -> Result<Explanation, (StatusCode, &'static str)> {
    let (answer, answered) = oneshot::channel();
    let question = Question { source: source.into(), answer };
    let refuse = |why| Err((StatusCode::SERVICE_UNAVAILABLE, why));
    match questions.try_send(question) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return refuse("too many questions wait; ask again"),
        Err(TrySendError::Disconnected(_)) => return refuse(ENDING),
    }
    match tokio::time::timeout(DETECTOR_PATIENCE, answered).await {
        Ok(Ok(explanation)) => Ok(explanation),
        Ok(Err(_)) => refuse(ENDING),
        Err(_) => Err((StatusCode::GATEWAY_TIMEOUT, "the detector does not answer; see its log")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::thread;

    use super::*;
    use crate::counters::Counters;
    use crate::detect::{Detector, DetectorConfig};
    use crate::explain::{AskError, ask};

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn serve_with(questions: Sender<Question>) -> Api {
        let counters = Arc::new(Counters::new(Vec::new(), 1));
        let registry = Arc::new(metrics::registry(Arc::clone(&counters), Vec::new()));
        let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
        Api::start(anywhere, registry, Arc::new(Health::new(counters)), questions).unwrap()
    }

    #[test]
    fn the_detector_answers_through_the_api_as_text_and_as_json() {
        let (questions, asked) = crossbeam_channel::bounded(1);
        let detector = thread::spawn(move || {
            let detector = Detector::new(DetectorConfig { memory_mib: 1, ..Default::default() });
            for Question { source, answer } in asked {
                answer.send(detector.explain(source)).unwrap();
            }
        });
        let api = serve_with(questions);
        let text = ask(api.address(), SOURCE, false).unwrap();
        assert!(text.starts_with("192.0.2.1 at 1970-01-01T00:00:00.000Z\n"), "{text}");
        let line = ask(api.address(), SOURCE, true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["source"], &value["covers"]), (&json!("192.0.2.1"), &json!("now")));
        api.stop();
        detector.join().unwrap();
    }

    #[test]
    fn a_detector_that_has_ended_and_one_that_is_overrun_are_told_at_once() {
        let (questions, asked) = crossbeam_channel::bounded(1);
        let (answer, _) = oneshot::channel();
        questions.send(Question { source: SOURCE.into(), answer }).unwrap();
        let api = serve_with(questions);
        let why = |error: AskError| match error {
            AskError::Refused { why, .. } => why,
            other => panic!("{other}"),
        };
        let refused = why(ask(api.address(), SOURCE, false).unwrap_err());
        assert_eq!(refused, "too many questions wait; ask again");
        drop(asked);
        let refused = why(ask(api.address(), SOURCE, false).unwrap_err());
        assert_eq!(refused, "the sensor is about to end");
        api.stop();
    }
}
