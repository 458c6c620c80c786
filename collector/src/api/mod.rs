//! The HTTP API: `/healthz`, `/metrics`, `/api/v1/status`, and questions for what is stored: `/api/v1/frames`,
//! `/api/v1/alerts`, `/api/v1/flows`, `/api/v1/dns`. Reads what the other threads wrote down; changes nothing. One
//! thread; a slow reader delays nobody but other readers. Who may see what, [`access`] decides, for every route.

pub mod access;
mod events;
mod frames;
mod listener;
mod metrics;
mod rates;
mod report;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Json, Router};
use tokio::sync::{Semaphore, oneshot, watch};
use trust::{ApiTls, Keeper};

use crate::archive::query::Archive;
use crate::committer::wall_clock;
use crate::health;
use crate::status::Shared;
use access::{Caller, Gate};
use listener::Bounds;
use rates::Rates;

/// What the handlers share.
struct Context {
    shared: Arc<Shared>,
    rates: Mutex<Rates>,
    /// Places for answers with frames.
    answering: Arc<Semaphore>,
    /// Where events are found.
    archive: Archive,
    /// Places for searches of events.
    searching: Arc<Semaphore>,
}

/// Opens the API's socket.
///
/// # Errors
/// What the system says.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What stands between the network and the handlers.
pub struct Entrance {
    /// The API's socket, of [`bind`].
    pub listener: TcpListener,
    /// Its certificate; `None`: no TLS.
    pub identity: Option<Keeper<ApiTls>>,
    /// Who may see what.
    pub gate: Gate,
}

/// Serves requests until `stop` is sent or dropped, and then for a moment longer those that have
/// begun.
///
/// # Errors
/// What the system says about setting up.
pub fn serve(
    entrance: Entrance,
    shared: Arc<Shared>,
    archive: Archive,
    stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let Entrance { listener, identity, gate } = entrance;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answering = Arc::new(Semaphore::new(frames::MOST_AT_ONCE));
    let searching = Arc::new(Semaphore::new(events::MOST_AT_ONCE));
    let rates = Mutex::default();
    let callers = Arc::clone(&shared);
    let context = Arc::new(Context { shared, rates, answering, archive, searching });
    let sampler = Arc::clone(&context);
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", get(status))
        .route("/api/v1/frames", get(frames::frames))
        .route("/api/v1/alerts", get(events::alerts))
        .route("/api/v1/flows", get(events::flows))
        .route("/api/v1/dns", get(events::dns))
        .route_layer(axum::middleware::from_fn_with_state(Arc::new(gate), access::check))
        .with_state(context);
    let result = runtime.block_on(async {
        let sampling = tokio::spawn(sample(sampler));
        let (stopping, until) = watch::channel(false);
        let server = listener::serve(listener, identity, routes, callers, Bounds::default(), until);
        let deadline = async {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stop.await;
            let _ = stopping.send(true);
            tokio::time::sleep(FAREWELL).await;
        };
        let result = tokio::select! {
            result = server => result,
            () = deadline => Ok(()),
        };
        sampling.abort();
        result
    });
    // Threads that still answer find nobody who takes it.
    runtime.shutdown_timeout(FAREWELL);
    result
}

/// Takes samples, from which rates are computed, for ever.
async fn sample(context: Arc<Context>) {
    let mut interval = tokio::time::interval(rates::STEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        context.rates().sample(&context.shared.sensors(), Instant::now());
    }
}

async fn health(
    State(context): State<Arc<Context>>,
    caller: Option<Extension<Caller>>,
) -> impl IntoResponse {
    let problems = health::problems(&context.shared, now_seconds());
    if problems.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    if caller.is_none() {
        // Problems name files, sensors and times.
        let why = "not all is well; a token is needed to see what\n".to_owned();
        return (StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let lines = problems.into_iter().map(|problem| format!("{problem}\n"));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn metrics_text(State(context): State<Arc<Context>>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics::render(&context.shared) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(error) => {
            let text = error.to_string();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn status(State(context): State<Arc<Context>>) -> Json<report::Status> {
    Json(report::status(&context.shared, &context.rates()))
}

/// The wall clock, in seconds since 1970.
fn now_seconds() -> i64 {
    i64::try_from(wall_clock().0 / 1_000_000_000).unwrap_or(i64::MAX)
}

impl Context {
    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long requests that have begun may take at a stop.
const FAREWELL: Duration = Duration::from_secs(1);
