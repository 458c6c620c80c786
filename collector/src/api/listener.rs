//! Where questions arrive: plain, or over TLS.
//!
//! Bounded: [`MOST_CONNECTIONS`] at a time, handshakes included; further callers wait at the socket.
//! A connection on which nothing moves for [`IDLE`] is closed, so that silent callers hold no place
//! for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use trust::{ApiTls, Keeper};

use super::access::Peer;

/// Callers at a time.
const MOST_CONNECTIONS: usize = 256;
/// How long nothing may move: longer than the search for frames takes that finds none.
const IDLE: Duration = Duration::from_secs(300);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait after the system refused to accept.
const ACCEPT_FAILED: Duration = Duration::from_millis(100);

/// Gives connections that are ready for HTTP.
pub struct Listener {
    ready: mpsc::Receiver<(Io, SocketAddr)>,
    address: SocketAddr,
}

impl Listener {
    /// Accepts from `listener` in a task of its own. Needs a runtime.
    ///
    /// # Errors
    /// What the system says of the socket.
    pub fn new(
        listener: std::net::TcpListener,
        identity: Option<Keeper<ApiTls>>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        // Holds none: who is ready waits in its own task, and counts as a connection.
        let (give, ready) = mpsc::channel(1);
        tokio::spawn(accept(listener, identity, give));
        Ok(Self { ready, address })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // The task that accepts ends with the runtime only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

async fn accept(
    listener: TcpListener,
    mut identity: Option<Keeper<ApiTls>>,
    give: mpsc::Sender<(Io, SocketAddr)>,
) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a caller of the api");
                tokio::time::sleep(ACCEPT_FAILED).await;
                continue;
            }
        };
        let acceptor = identity.as_mut().map(|identity| {
            identity.refresh(Instant::now());
            TlsAcceptor::from(Arc::clone(&identity.current().config))
        });
        let give = give.clone();
        tokio::spawn(async move {
            let stream = match acceptor {
                None => Stream::Plain(stream),
                Some(acceptor) => {
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => Stream::Tls(Box::new(stream)),
                        Ok(Err(error)) => {
                            return tracing::debug!(%peer, %error, "caller of the api refused");
                        }
                        Err(_) => return tracing::debug!(%peer, "caller of the api is too slow"),
                    }
                }
            };
            let idle = Box::pin(tokio::time::sleep(IDLE));
            // Nobody takes it any more at a stop.
            let _ = give.send((Io { stream, idle, _permit: permit }, peer)).await;
        });
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// A connection that gives up when nothing moves.
pub struct Io {
    stream: Stream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
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
