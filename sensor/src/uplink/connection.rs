//! One TCP and TLS connection to a collector, without ever waiting.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use rustls::pki_types::{ServerName, UnixTime};
use socket2::{Domain, Protocol, Socket, Type};
use trust::{Keeper, PeerError, Role, SensorTls, Validity, name_in};
use wire::codec::{DecodeError, Decoder};
use wire::frames::FrameBatchWriter;

use super::batches::BatchRings;
use super::delivery::LossReason;
use super::guard::{LoopGuard, PAUSE, conversation};
use super::metrics::{EndReason, Metrics};
use super::own::OwnRegister;
use super::session::{Now, Session, SessionError};

/// The kernel gives up a connection whose data nobody acknowledges for so long.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes in the socket that are not yet sent: an alert waits behind no more.
const NOT_SENT_LOW_WATER: u32 = 128 << 10;
/// Plaintext that is encrypted before the socket is written: two frame batches, ten TLS records,
/// one system call.
const FILL: usize = 128 << 10;
/// Rounds of filling and writing (1 MiB) after which acknowledgements and new records are looked at.
const ROUNDS: usize = 8;
/// Reads after which the rest has to wait for its turn.
const READS: usize = 16;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("cannot connect to {address}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no TLS connection after {waited:?}")]
    SetupTimedOut { waited: Duration },
    #[error("TLS failed")]
    Tls(#[from] rustls::Error),
    /// As [`ConnectionError::Tls`], in words.
    #[error("TLS failed: {0}")]
    Refused(String),
    #[error("collector has no usable certificate")]
    Identity(#[from] PeerError),
    #[error("connection broke")]
    Io(#[source] io::Error),
    #[error("collector closed the connection")]
    Closed,
    #[error("collector sent an invalid message")]
    Decode(#[from] DecodeError),
    #[error("session ended")]
    Session(#[from] SessionError),
}

impl ConnectionError {
    pub(super) fn reason(&self) -> EndReason {
        match self {
            Self::Connect { .. } => EndReason::Connect,
            Self::SetupTimedOut { .. } | Self::Session(SessionError::TimedOut { .. }) => {
                EndReason::TimedOut
            }
            Self::Tls(_) | Self::Refused(_) | Self::Identity(_) => EndReason::Tls,
            Self::Io(error) if error.kind() == io::ErrorKind::TimedOut => EndReason::TimedOut,
            Self::Io(_) => EndReason::Io,
            Self::Closed => EndReason::Closed,
            Self::Session(SessionError::Goodbye { .. }) => EndReason::Goodbye,
            Self::Decode(_) | Self::Session(_) => EndReason::Protocol,
        }
    }
}

/// What [`Connection::write`] takes from, and tells.
pub(super) struct Load<'u> {
    pub(super) now: Instant,
    pub(super) session: &'u mut Session,
    pub(super) batches: &'u mut BatchRings,
    pub(super) guard: &'u mut LoopGuard,
    pub(super) own: &'u mut OwnRegister,
    pub(super) metrics: &'u Metrics,
}

/// What [`Connection::write`] leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All that there was; nothing waits in TLS.
    All,
    /// The socket takes no more for now.
    Blocked,
    /// There is more to do right away.
    More,
}

/// One connection, from the first SYN on.
pub(super) struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    tls: ClientConnection,
    server_name: ServerName<'static>,
    /// By whose rules the collector's certificate was verified last, or is to be.
    verified_by: Arc<SensorTls>,
    /// When that certificate expires, in seconds since 1970.
    certificate_until: i64,
    decoder: Decoder,
    stage: Stage,
    started: Instant,
    is_readable: bool,
    is_writable: bool,
    out: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Handshaking,
    Established,
}

impl Connection {
    /// Begins to connect. Workers must know the address already.
    pub(super) fn dial(
        now: Instant,
        address: SocketAddr,
        server_name: ServerName<'static>,
        identity: Arc<SensorTls>,
        (registry, token): (&Registry, Token),
    ) -> Result<Self, ConnectionError> {
        let mut tls = ClientConnection::new(Arc::clone(&identity.config), server_name.clone())?;
        // `write` bounds what is in there: it adds only once all was written.
        tls.set_buffer_limit(None);
        let cannot_connect = |source| ConnectionError::Connect { address, source };
        let mut stream = connect(address).map_err(cannot_connect)?;
        registry
            .register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)
            .map_err(cannot_connect)?;
        Ok(Self {
            stream,
            address,
            tls,
            server_name,
            verified_by: identity,
            certificate_until: i64::MAX,
            decoder: Decoder::new(),
            stage: Stage::Connecting,
            started: now,
            is_readable: false,
            is_writable: false,
            out: Vec::new(),
        })
    }

    /// Takes what the poll said.
    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// The other end.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How long it has been since dialling began.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Gives up a connection that has not come to TLS within `limit`.
    pub(super) fn check_setup(&self, now: Instant, limit: Duration) -> Result<(), ConnectionError> {
        if self.stage != Stage::Established && self.age(now) >= limit {
            return Err(ConnectionError::SetupTimedOut { waited: limit });
        }
        Ok(())
    }

    /// Verifies the collector's certificate anew if the rules are other ones than those by which it
    /// was verified, or if it has expired since.
    pub(super) fn check_trust(
        &mut self,
        now: Now,
        identity: &Keeper<SensorTls>,
    ) -> Result<(), ConnectionError> {
        let identity = identity.current();
        let seconds = i64::try_from(now.unix.0 / 1_000_000_000).unwrap_or(i64::MAX);
        let is_due = !Arc::ptr_eq(&self.verified_by, identity) || seconds > self.certificate_until;
        if self.stage != Stage::Established || !is_due {
            return Ok(());
        }
        self.verified_by = Arc::clone(identity);
        let chain = self.tls.peer_certificates().unwrap_or_default();
        Ok(identity.verify_peer(chain, &self.server_name, UnixTime::now())?)
    }

    /// Reads what has arrived and hands it to the session.
    pub(super) fn read(&mut self, now: Now, session: &mut Session) -> Result<(), ConnectionError> {
        if self.stage == Stage::Connecting && !self.finish_connecting()? {
            return Ok(());
        }
        for _ in 0..READS {
            if !self.is_readable {
                return Ok(());
            }
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(_) => self.process(now, session)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectionError::Io(error)),
            }
        }
        Ok(())
    }

    /// Writes what the session has to say, then frames, until there is no more or the socket is
    /// full.
    pub(super) fn write(&mut self, load: &mut Load<'_>) -> Result<Written, ConnectionError> {
        for _ in 0..ROUNDS {
            if !self.flush(load.guard, load.metrics)? {
                return Ok(Written::Blocked);
            }
            if self.stage != Stage::Established || self.fill(load)? == 0 {
                return Ok(Written::All);
            }
        }
        Ok(Written::More)
    }

    /// Announces the end to TLS; [`Connection::write`] still has to send it.
    pub(super) fn send_close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    /// Says that nothing more will be written. The peer sees the end after all data.
    pub(super) fn finish_writing(&self) {
        // Fails only if the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Removes the connection from the poll; dropping it closes the socket.
    pub(super) fn deregister(&mut self, registry: &Registry) {
        // Closing the socket removes it as well.
        let _ = registry.deregister(&mut self.stream);
    }

    fn finish_connecting(&mut self) -> Result<bool, ConnectionError> {
        if !self.is_writable {
            return Ok(false);
        }
        let cannot_connect = |source| ConnectionError::Connect { address: self.address, source };
        if let Some(error) = self.stream.take_error().map_err(cannot_connect)? {
            return Err(cannot_connect(error));
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                self.stage = Stage::Handshaking;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.is_writable = false;
                Ok(false)
            }
            Err(error) => Err(cannot_connect(error)),
        }
    }

    /// Decrypts what was read and hands it on.
    fn process(&mut self, now: Now, session: &mut Session) -> Result<(), ConnectionError> {
        if let Err(error) = self.tls.process_new_packets() {
            // The alert tells the peer why; it may not get it.
            let _ = self.tls.write_tls(&mut self.stream);
            return Err(error.into());
        }
        if self.stage == Stage::Handshaking && !self.tls.is_handshaking() {
            let certificate = self.tls.peer_certificates().and_then(<[_]>::first);
            let certificate = certificate.ok_or(PeerError::NoCertificate)?;
            let validity = Validity::of(certificate).ok_or(PeerError::Unreadable)?;
            self.certificate_until = validity.until;
            session.connected(now, name_in(certificate, Role::Collector)?);
            self.stage = Stage::Established;
        }
        loop {
            match self.tls.reader().read(self.decoder.spare()) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(len) => self.decoder.filled(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ConnectionError::Closed);
                }
                Err(error) => return Err(ConnectionError::Io(error)),
            }
            while let Some(message) = self.decoder.next_message()? {
                session.receive(now, &message)?;
            }
        }
    }

    /// Encrypts messages and batches, whole ones, up to about [`FILL`] bytes.
    fn fill(&mut self, load: &mut Load<'_>) -> Result<usize, ConnectionError> {
        let Load { now, session, batches, guard, own, metrics } = load;
        let mut filled = 0;
        let mut failed: Result<(), ConnectionError> = Ok(());
        while filled < FILL {
            self.out.clear();
            if session.next_output(&mut self.out)? {
                filled += self.out.len();
                self.tls.writer().write_all(&self.out).map_err(ConnectionError::Io)?;
                continue;
            }
            let mut writer = self.tls.writer();
            let is_sent = session.can_send_frames()
                && batches.serve_one(|batch| {
                    if is_looping(*now, batch, (guard, own), metrics) {
                        return session.lose_frames(batch, LossReason::OwnTraffic);
                    }
                    failed = session.declare(&mut self.out).map_err(ConnectionError::from);
                    let bytes = session.send_frames(batch);
                    filled += self.out.len() + bytes.len();
                    if failed.is_ok() {
                        let written = writer.write_all(&self.out);
                        let written = written.and_then(|()| writer.write_all(bytes));
                        failed = written.map_err(ConnectionError::Io);
                    }
                });
            if !is_sent || failed.is_err() {
                break;
            }
        }
        failed?;
        Ok(filled)
    }

    /// Writes what TLS holds. True if nothing is left.
    fn flush(&mut self, guard: &mut LoopGuard, metrics: &Metrics) -> Result<bool, ConnectionError> {
        while self.tls.wants_write() {
            if !self.is_writable || self.stage == Stage::Connecting {
                return Ok(false);
            }
            match self.tls.write_tls(&mut guard.watch(&mut self.stream)) {
                Ok(len) => metrics.bytes_written(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ConnectionError::Io(error)),
            }
        }
        Ok(true)
    }
}

/// Must this batch not be sent, because the uplink's own traffic is among the frames, or lately was?
fn is_looping(
    now: Instant,
    batch: &FrameBatchWriter,
    (guard, own): (&mut LoopGuard, &mut OwnRegister),
    metrics: &Metrics,
) -> bool {
    if guard.is_cut(now) {
        return true;
    }
    let Some(frame) = batch.first_frame().filter(|frame| guard.catches(frame)) else {
        return false;
    };
    metrics.loop_seen();
    if conversation(frame).is_some_and(|tuple| own.learn(now, tuple)) {
        return true;
    }
    guard.cut(now);
    tracing::error!(
        pause = ?PAUSE,
        "a copy of the uplink's own traffic is among the frames to be exported, by a mirror port, an address \
         translation or a tunnel; no frames are sent meanwhile. Leave out where it comes from, by \
         capture.exclude or capture.filter"
    );
    true
}

/// A socket on its way to `address`.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(TcpStream::from_std(socket.into()))
}
