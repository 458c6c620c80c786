//! Where questions arrive: plain, or over TLS.
//!
//! ```text
//!   accept ─▶ place? ─▶ handshake ─▶ request ─▶ answer ─▶ request …
//!             per address,   10 s       10 s      what waits for nobody: 300 s
//!             and in all
//! ```
//!
//! Bounded, because all of it comes before a token is checked: [`Bounds::all`] connections at a time,
//! handshakes included, and further callers wait at the socket; [`Bounds::of_address`] of one address.
//! Whoever takes longer than [`Bounds::request`] for the head of a request, or sends none, loses its
//! connection, as does one on which nothing moves for [`IDLE`] while it is answered. No handler reads the
//! body of a request: hyper closes the connection of a caller who sends one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use trust::{ApiTls, Keeper};

use super::access::Peer;
use crate::status::{Shared, add};

/// How much callers may take before they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at a time.
    pub all: usize,
    /// Those of one address, or of one IPv6 network of 64 bits.
    pub of_address: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long the head of a request may take, and how long a connection may be without one.
    pub request: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        let patience = Duration::from_secs(10);
        Self { all: 256, of_address: 64, handshake: patience, request: patience }
    }
}

/// How long nothing may move: longer than the search for frames takes that finds none.
const IDLE: Duration = Duration::from_secs(300);
/// How long to wait after the system refused to accept.
const ACCEPT_FAILED: Duration = Duration::from_millis(100);

/// Answers callers until `stopping` says so, and then those requests that have begun. Needs a runtime.
///
/// # Errors
/// What the system says of the socket.
pub async fn serve(
    listener: std::net::TcpListener,
    mut identity: Option<Keeper<ApiTls>>,
    routes: Router,
    shared: Arc<Shared>,
    bounds: Bounds,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(bounds.all));
    let callers = Arc::new(Callers::default());
    loop {
        let (stream, peer, permit) = tokio::select! {
            accepted = accept(&listener, &room, &shared) => accepted,
            () = until_stop(&mut stopping) => break,
        };
        let Some(place) = callers.enter(peer.ip(), bounds.of_address) else {
            shared.api.refused.count("too_many_of_address");
            tracing::debug!(%peer, "caller of the api refused: too many connections of its address");
            continue;
        };
        add(&shared.api.accepted, 1);
        let acceptor = identity.as_mut().map(|identity| {
            identity.refresh(Instant::now());
            TlsAcceptor::from(Arc::clone(&identity.current().config))
        });
        let caller =
            Caller { peer, bounds, shared: Arc::clone(&shared), _place: place, _permit: permit };
        tokio::spawn(caller.serve(stream, acceptor, routes.clone(), stopping.clone()));
    }
    drop(listener);
    // All permits are back when the last caller is gone.
    let all = u32::try_from(bounds.all).unwrap_or(u32::MAX);
    let _ = room.acquire_many(all).await;
    Ok(())
}

/// Waits until the API is stopped.
async fn until_stop(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopping.wait_for(|is_stopping| *is_stopping).await;
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    shared: &Shared,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let permit = match Arc::clone(room).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                add(&shared.api.full, 1);
                // Never closed.
                let Ok(permit) = Arc::clone(room).acquire_owned().await else { continue };
                permit
            }
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                tracing::debug!(%error, "cannot accept a caller of the api");
                tokio::time::sleep(ACCEPT_FAILED).await;
            }
        }
    }
}

/// Connections by address. Bounded by the connections that there are.
#[derive(Debug, Default)]
struct Callers(Mutex<HashMap<IpAddr, usize>>);

/// A connection of an address; counts until it is dropped.
struct Place {
    callers: Arc<Callers>,
    address: IpAddr,
}

impl Callers {
    /// One more connection of an address; `None` if it has `most`.
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Place> {
        let address = network(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { callers: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.callers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What one caller can have many addresses of: for IPv6 the network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// One connection.
struct Caller {
    peer: SocketAddr,
    bounds: Bounds,
    shared: Arc<Shared>,
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

impl Caller {
    /// Answers its requests, one after the other.
    async fn serve(
        self,
        stream: TcpStream,
        acceptor: Option<TlsAcceptor>,
        routes: Router,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Some(stream) = self.shake_hands(stream, acceptor).await else { return };
        let is_resting = Arc::new(AtomicBool::new(false));
        let idle = Box::pin(tokio::time::sleep(IDLE));
        let io = TokioIo::new(Io { stream, idle, is_resting: Arc::clone(&is_resting) });
        let routes = routes.layer(Extension(ConnectInfo(Peer(self.peer))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.request)
            .serve_connection(io, TowerToHyperService::new(routes));
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = until_stop(&mut stopping) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        let Err(error) = result else { return };
        tracing::debug!(peer = %self.peer, %error, "connection of a caller of the api ended");
        let is_idle = std::error::Error::source(&error)
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut);
        if is_idle {
            self.shared.api.refused.count("idle");
        } else if error.is_timeout() && !is_resting.load(Ordering::Relaxed) {
            // One that rests after an answer is only closed.
            self.shared.api.refused.count("request_timeout");
        }
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        acceptor: Option<TlsAcceptor>,
    ) -> Option<Stream> {
        let Some(acceptor) = acceptor else { return Some(Stream::Plain(stream)) };
        let peer = self.peer;
        match tokio::time::timeout(self.bounds.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "caller of the api refused");
                self.shared.api.refused.count("handshake");
                None
            }
            Err(_) => {
                tracing::debug!(%peer, "caller of the api is too slow");
                self.shared.api.refused.count("handshake_timeout");
                None
            }
        }
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// A connection that gives up when nothing moves.
struct Io {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    /// What moved last was an answer.
    is_resting: Arc<AtomicBool>,
}

impl Io {
    /// Passes on what the stream says; pending for too long is an error.
    fn or_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE);
            return result;
        }
        ready!(self.idle.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        if result.is_ready() {
            self.is_resting.store(false, Ordering::Relaxed);
        }
        self.or_idle(context, result)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        };
        self.is_resting.store(true, Ordering::Relaxed);
        self.or_idle(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        self.or_idle(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        };
        self.or_idle(context, result)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    const REQUEST: Duration = Duration::from_millis(300);

    /// An API with one route, which answers `ok`, until it is dropped.
    struct Site {
        address: SocketAddr,
        shared: Arc<Shared>,
        stopping: watch::Sender<bool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Site {
        fn new(all: usize, of_address: usize) -> Self {
            let shared = Shared::new("ids".into(), wire::units::UnixNanos(0), "/".into());
            let shared = Arc::new(shared);
            let (stopping, until) = watch::channel(false);
            let listener = super::super::bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            let bounds = Bounds { all, of_address, request: REQUEST, ..Bounds::default() };
            let routes = Router::new().route("/healthz", axum::routing::get(|| async { "ok" }));
            let known = Arc::clone(&shared);
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let served = serve(listener, None, routes, known, bounds, until);
                runtime.unwrap().block_on(served).unwrap();
            });
            Self { address, shared, stopping, thread: Some(thread) }
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        fn refused(&self, reason: &str) -> u64 {
            self.shared.api.refused.snapshot()[reason]
        }

        /// Waits until so many were refused for this reason: counted after the connection ended.
        fn wait_for_refused(&self, reason: &str, count: u64) {
            let deadline = Instant::now() + Duration::from_secs(20);
            while self.refused(reason) != count {
                assert!(Instant::now() < deadline, "{:?}", self.shared.api.refused.snapshot());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    impl Drop for Site {
        fn drop(&mut self) {
            self.stopping.send(true).unwrap();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    /// Whether a whole answer comes.
    fn is_answered(stream: &mut TcpStream) -> bool {
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 512];
        while !answer.ends_with(b"\r\n\r\nok") {
            match stream.read(&mut piece) {
                Ok(count) if count > 0 => answer.extend_from_slice(&piece[..count]),
                _ => return false,
            }
        }
        true
    }

    /// Sends bytes one by one until the other end closes.
    fn drip(mut stream: TcpStream, bytes: &[u8]) {
        let mut reader = stream.try_clone().unwrap();
        let closed = std::thread::spawn(move || {
            let began = Instant::now();
            let _ = reader.read_to_end(&mut Vec::new());
            began.elapsed()
        });
        for byte in bytes {
            if closed.is_finished() || stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(REQUEST / 10);
        }
        // Some time for a busy machine; the bytes take eight times as long as a request may.
        let took = closed.join().unwrap();
        assert!(took < REQUEST * 6, "closed after {took:?}");
    }

    #[test]
    fn who_sends_no_request_or_a_slow_one_loses_its_connection() {
        let site = Site::new(2, 2);
        let silent = site.connect();
        let slow = site.connect();
        drip(slow, format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(60)).as_bytes());
        assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
        site.wait_for_refused("request_timeout", 2);
        assert!(is_answered(&mut site.connect()), "its place is free again");
    }

    #[test]
    fn who_sends_a_slow_body_loses_its_connection() {
        let site = Site::new(2, 2);
        let mut stream = site.connect();
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 80\r\n\r\n").unwrap();
        drip(stream, &[b'x'; 80]);
    }

    #[test]
    fn a_connection_that_rests_between_requests_is_closed_and_no_fault() {
        let site = Site::new(2, 2);
        let mut stream = site.connect();
        assert!(is_answered(&mut stream));
        assert!(is_answered(&mut stream), "a second request on the same connection");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(site.refused("request_timeout"), 0);
    }

    #[test]
    fn an_address_has_so_many_connections_and_no_more() {
        let site = Site::new(9, 2);
        let mut first = site.connect();
        let mut second = site.connect();
        assert!(is_answered(&mut first) && is_answered(&mut second));
        assert!(!is_answered_or_reset(&mut site.connect()));
        site.wait_for_refused("too_many_of_address", 1);
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_answered_or_reset(&mut site.connect()) {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(site.shared.api.full.load(Ordering::Relaxed), 0);
    }

    /// Like [`is_answered`] for a connection that may be closed before the request is written.
    fn is_answered_or_reset(stream: &mut TcpStream) -> bool {
        let is_written = write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").is_ok();
        is_written && stream.read(&mut [0; 512]).is_ok_and(|count| count > 0)
    }

    #[test]
    fn further_callers_wait_for_a_place_and_are_counted() {
        let site = Site::new(1, 9);
        let mut first = site.connect();
        assert!(is_answered(&mut first));
        // Answered when the first one, which rests, is closed.
        assert!(is_answered(&mut site.connect()));
        assert!(site.shared.api.full.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        let callers = Arc::new(Callers::default());
        let enter = |address: &str| callers.enter(address.parse().unwrap(), 1);
        let one = enter("2001:db8::1");
        assert!(one.is_some() && enter("2001:db8::ffff").is_none());
        let others = [enter("2001:db8:0:1::1"), enter("192.0.2.1"), enter("192.0.2.2")];
        assert!(others.iter().all(Option::is_some));
        assert!(enter("::ffff:192.0.2.1").is_none(), "the same in other words");
        drop((one, others));
        assert!(callers.0.lock().unwrap().is_empty());
    }
}
