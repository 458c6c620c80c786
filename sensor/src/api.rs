//! The local HTTP API, on loopback: `/metrics` and `/healthz`.
//!
//! One thread with its own tokio runtime, apart from everything that touches packets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::oneshot;

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
}

impl Api {
    /// Serves on `address` until stopped.
    ///
    /// # Errors
    /// The address is taken, or the thread cannot be started.
    pub fn start(
        address: SocketAddr,
        registry: Arc<Registry>,
        health: Arc<Health>,
    ) -> Result<Self, ApiError> {
        let refuse = |source| ApiError { address, source };
        let listener = TcpListener::bind(address).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let (stop, stopped) = oneshot::channel();
        let router = router(Shared { registry, health });
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
    Router::new().route("/metrics", get(scrape)).route("/healthz", get(healthz)).with_state(shared)
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
