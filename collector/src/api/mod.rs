//! The HTTP API: `/healthz`, `/metrics`, `/api/v1/status`, and questions for what is stored: `/api/v1/frames`,
//! `/api/v1/alerts`, `/api/v1/flows`, `/api/v1/dns`. Reads what the other threads wrote down; changes nothing. One thread; a slow reader delays nobody but other readers.

mod events;
mod frames;
mod metrics;
mod rates;
mod report;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::{Semaphore, oneshot};

use crate::archive::query::Archive;
use crate::status::Shared;
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

/// Serves requests until `stop` is sent or dropped, and then for a moment longer those that have
/// begun.
///
/// # Errors
/// What the system says about setting up.
pub fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    archive: Archive,
    stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answering = Arc::new(Semaphore::new(frames::MOST_AT_ONCE));
    let searching = Arc::new(Semaphore::new(events::MOST_AT_ONCE));
    let rates = Mutex::default();
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
        // Who may ask what is decided in one layer here, around all routes.
        .with_state(context);
    let result = runtime.block_on(async {
        let sampling = tokio::spawn(sample(sampler));
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (stopping, stopped) = oneshot::channel();
        let server = axum::serve(listener, routes).with_graceful_shutdown(async {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stop.await;
            let _ = stopping.send(());
        });
        let deadline = async {
            let _ = stopped.await;
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

async fn health(State(context): State<Arc<Context>>) -> impl IntoResponse {
    if context.shared.is_store_failing.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the store fails\n");
    }
    if context.shared.is_disk_short.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the disk of the store is nearly full\n");
    }
    if context.shared.events.is_failing.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the event log cannot be written\n");
    }
    (StatusCode::OK, "ok\n")
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

impl Context {
    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long requests that have begun may take at a stop.
const FAREWELL: Duration = Duration::from_secs(1);
