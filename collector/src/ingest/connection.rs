//! One connection: socket, TLS, and after the handshake the conversation with a sensor.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use rustls::pki_types::UnixTime;
use trust::{CollectorTls, PeerError, Role, Validity, words};

use super::allowance::Answer;
use super::capacity::Place;
use super::intake::{Conversation, Progress};
use super::roster::{Account, Roster, locked};
use super::secure::Secure;
use crate::committer::Queue;
use crate::session::{Now, SessionError};
use crate::status::{self, Sensor};

/// Time that a peer has for the handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes that one read of the socket takes at most: several frame batches, and little enough to stay
/// in the cache until they are decrypted.
const READ: usize = 128 << 10;
/// Encrypted bytes for a peer that does not read them, from which it is no longer read itself.
const MOST_OUTGOING: usize = 256 << 10;

/// What the connections of one event loop share.
pub struct Common {
    /// What event loops know together.
    pub roster: Arc<Roster>,
    /// Number of the event loop.
    pub number: usize,
    /// The way to the store.
    pub queue: Queue,
    /// Where sockets are read into.
    pub scratch: Vec<u8>,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The sensor said goodbye, or closed in an orderly way.
    #[error("closed by the sensor")]
    Orderly,
    /// The peer is gone without a word.
    #[error("connection lost")]
    Lost(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    Handshake(#[source] rustls::Error),
    /// The peer's certificate is not that of a sensor.
    #[error("not a sensor")]
    NotASensor(#[source] PeerError),
    /// The handshake took too long.
    #[error("no handshake within {} s", HANDSHAKE.as_secs())]
    HandshakeTimeout,
    /// Too many peers were in their handshake, and this one for longest.
    #[error("too many connections in their handshake")]
    Crowded,
    /// The certificate of a live session is no longer taken: revoked, expired, or of an authority
    /// that is trusted no more.
    #[error("certificate is no longer trusted")]
    Distrusted(#[source] rustls::Error),
    /// TLS failed after the handshake.
    #[error("TLS failed")]
    Tls(#[source] rustls::Error),
    /// What the sensor sent, or did not send.
    #[error("protocol error")]
    Session(#[from] SessionError),
    /// A newer connection of the same sensor took its place.
    #[error("replaced by a newer connection of the same sensor")]
    Replaced,
}

/// What a connection wants after it was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be told when the socket is readable or writable.
    Readiness,
    /// To be served again soon: there may be more to read.
    Turn,
    /// To be served again when the store has taken something.
    Room,
    /// To be served again a moment later: the sensor has had its share.
    Rest,
}

/// See the module.
pub struct Connection {
    id: u64,
    peer: SocketAddr,
    socket: TcpStream,
    secure: Secure,
    since: Instant,
    /// By whose rules the peer's certificate was verified last, or is to be.
    verified_by: Arc<CollectorTls>,
    /// Who the peer is, once the handshake is done.
    sensor: Option<Known>,
    /// When its certificate expires, in seconds since 1970.
    certificate_until: i64,
    /// Begins when all that was taken on an earlier connection of the sensor is stored.
    conversation: Option<Box<Conversation>>,
    /// Plain bytes that came with the end of the handshake, before the conversation began. Filled by
    /// one read at most.
    early: Vec<u8>,
    /// Something arrived since the last tick.
    is_active: bool,
}

/// A peer that has shown who it is.
struct Known {
    sensor: Arc<Sensor>,
    account: Arc<Mutex<Account>>,
    /// The connection whose place this one took, until somebody asks.
    older: Option<Place>,
}

impl CloseReason {
    /// The word in metrics and logs; none where nothing is wrong with the peer.
    #[must_use]
    pub const fn name(&self) -> Option<&'static str> {
        match self {
            Self::Orderly | Self::Lost(_) | Self::Replaced => None,
            Self::Handshake(_) | Self::NotASensor(_) => Some("tls_handshake"),
            Self::HandshakeTimeout => Some("handshake_timeout"),
            Self::Crowded => Some("handshake_crowded"),
            Self::Distrusted(_) => Some("distrusted"),
            Self::Tls(_) => Some("tls"),
            Self::Session(error) => Some(error.name()),
        }
    }

    /// For a failed handshake: the word for what failed in it.
    #[must_use]
    pub fn handshake_failure(&self) -> Option<&'static str> {
        match self {
            Self::Handshake(error) => Some(words::failure(error)),
            Self::NotASensor(_) => Some("wrong_role"),
            _ => None,
        }
    }

    /// What TLS has to do with it, if anything.
    #[must_use]
    pub const fn tls_error(&self) -> Option<&rustls::Error> {
        match self {
            Self::Handshake(error) | Self::Distrusted(error) | Self::Tls(error) => Some(error),
            _ => None,
        }
    }
}

impl Connection {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn new(
        id: u64,
        peer: SocketAddr,
        socket: TcpStream,
        identity: Arc<CollectorTls>,
        now: Now,
    ) -> Result<Self, rustls::Error> {
        Ok(Self {
            id,
            peer,
            socket,
            secure: Secure::new(Arc::clone(&identity.config))?,
            since: now.instant,
            verified_by: identity,
            sensor: None,
            certificate_until: i64::MAX,
            conversation: None,
            early: Vec::new(),
            is_active: true,
        })
    }

    /// Whether the certificate of a live session is to be verified anew: the rules are other ones
    /// than those by which it was, or it has expired since.
    #[must_use]
    pub fn is_verification_due(&self, identity: &Arc<CollectorTls>, now: Now) -> bool {
        let is_expired =
            i64::try_from(now.wall.0 / 1_000_000_000).unwrap_or(i64::MAX) > self.certificate_until;
        self.sensor.is_some() && (is_expired || !Arc::ptr_eq(&self.verified_by, identity))
    }

    /// Verifies the certificate of a live session by the rules of now.
    ///
    /// # Errors
    /// [`CloseReason::Distrusted`]; the sensor has been told, as far as its socket takes it.
    pub fn verify(&mut self, identity: &Arc<CollectorTls>) -> Result<(), CloseReason> {
        self.verified_by = Arc::clone(identity);
        let chain = self.secure.peer_certificates();
        let Err(error) = identity.verify_peer(chain, UnixTime::now()) else { return Ok(()) };
        if let Some(conversation) = &mut self.conversation {
            // It is closed next in any case.
            let _ = conversation.session().close("certificate no longer trusted");
            let _ = self.flush();
        }
        Err(CloseReason::Distrusted(error))
    }

    /// Reads once, takes what came, and writes what there is to say.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub fn serve(&mut self, common: &mut Common, now: Now) -> Result<Wish, CloseReason> {
        self.flush()?;
        if self.conversation.is_none() && !self.begin(common, now)? {
            return Ok(Wish::Room);
        }
        let progress = self.digest(common, now)?;
        if progress == Progress::Waiting {
            status::add(&common.roster.shared.counters.store_waits, 1);
            self.flush()?;
            return Ok(Wish::Room);
        }
        if !self.has_allowance(now) {
            self.flush()?;
            return Ok(Wish::Rest);
        }
        // If so, the socket was full just now, and says when it is not.
        let is_blocked = self.secure.outgoing().len() > MOST_OUTGOING;
        let has_read = !is_blocked && self.read(common)?;
        if self.sensor.is_none() && !self.secure.is_handshaking() {
            self.identify(common, now)?;
            self.flush()?;
            return Ok(Wish::Turn);
        }
        let progress = self.digest(common, now)?;
        self.flush()?;
        match progress {
            Progress::Over => Err(CloseReason::Orderly),
            Progress::Waiting => Ok(Wish::Room),
            Progress::Drained if self.secure.is_closed_by_peer() => Err(CloseReason::Orderly),
            Progress::Drained if has_read => Ok(Wish::Turn),
            Progress::Drained => Ok(Wish::Readiness),
        }
    }

    /// Does what the passing of time asks for.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub fn tick(&mut self, is_listening: bool, now: Now) -> Result<(), CloseReason> {
        match &mut self.conversation {
            Some(conversation) => conversation.session().tick(now, is_listening)?,
            None if self.sensor.is_none()
                && now.instant.duration_since(self.since) >= HANDSHAKE =>
            {
                return Err(CloseReason::HandshakeTimeout);
            }
            None => {}
        }
        self.flush()?;
        if !std::mem::take(&mut self.is_active) {
            self.rest();
        }
        Ok(())
    }

    /// Gives back the memory of buffers in which nothing waits: most sensors say little most of the time.
    fn rest(&mut self) {
        self.secure.rest();
        self.early.shrink_to_fit();
        if let Some(conversation) = &mut self.conversation {
            conversation.rest();
        }
    }

    /// Tells the sensor what is stored.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub fn acknowledge(&mut self) -> Result<(), CloseReason> {
        if let Some(conversation) = &mut self.conversation {
            conversation.acknowledge()?;
        }
        self.flush()
    }

    /// Says goodbye and that nothing follows.
    ///
    /// # Errors
    /// Why the connection has to be closed without it.
    pub fn say_goodbye(&mut self) -> Result<(), CloseReason> {
        if let Some(conversation) = &mut self.conversation {
            conversation.session().close("shutdown")?;
        }
        self.flush()
    }

    /// Writes what there is to say, as far as the socket takes it.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub fn flush(&mut self) -> Result<(), CloseReason> {
        if let Some(conversation) = &mut self.conversation {
            let output = conversation.session().output();
            if !output.is_empty() {
                self.secure.send(output).map_err(CloseReason::Tls)?;
                output.clear();
            }
        }
        self.write_out().map_err(CloseReason::Lost)
    }

    /// Whether bytes for the peer wait.
    pub fn has_output(&mut self) -> bool {
        !self.secure.outgoing().is_empty()
    }

    /// Ends the connection: what can still be said is said, the sensor counts as gone.
    pub fn close(mut self, now: Now) {
        // The peer learns why (a TLS alert) if its socket takes it; if not, it is gone anyway.
        let _ = self.write_out();
        let _ = self.socket.shutdown(Shutdown::Write);
        if let Some(conversation) = &self.conversation {
            conversation.close(now.wall);
        }
        if let Some(Known { account, .. }) = &self.sensor {
            let mut account = locked(account);
            account.holder = account.holder.filter(|holder| holder.id != self.id);
        }
    }

    /// Name of the sensor, once it is known.
    #[must_use]
    pub fn sensor(&self) -> Option<&str> {
        self.sensor.as_ref().map(|known| known.sensor.name())
    }

    /// The older connection of the same sensor, which this one replaces and the caller closes; once.
    pub fn take_older(&mut self) -> Option<Place> {
        self.sensor.as_mut().and_then(|known| known.older.take())
    }

    /// The other end.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The socket, to be registered.
    pub const fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Takes what arrived, unless a newer connection of the sensor is there: what the older one brings
    /// from then on would come behind what the newer one is told.
    fn digest(&mut self, common: &Common, now: Now) -> Result<Progress, CloseReason> {
        let (Some(conversation), Some(known)) = (&mut self.conversation, &self.sensor) else {
            return Ok(Progress::Drained);
        };
        let mut account = held(known, self.id)?;
        let (queue, shared) = (&common.queue, &common.roster.shared);
        let progress = conversation.digest(queue, shared, &mut account.taken, now)?;
        account.allowance.take(0, conversation.count_records());
        Ok(progress)
    }

    /// Whether the sensor has not had its share of this second. Peers that are not known yet are
    /// limited by their number.
    fn has_allowance(&self, now: Now) -> bool {
        let Some(Known { sensor, account, .. }) = &self.sensor else { return true };
        let answer = locked(account).allowance.ask(now.instant);
        if answer == Answer::Pause {
            sensor.state().pauses += 1;
        }
        answer == Answer::Go
    }

    /// Reads once from the socket. False if there was nothing.
    fn read(&mut self, common: &mut Common) -> Result<bool, CloseReason> {
        let partial = self.secure.partial();
        let start = partial.len();
        common.scratch.resize(start + READ, 0);
        common.scratch[..start].copy_from_slice(partial);
        let count = match self.socket.read(&mut common.scratch[start..]) {
            Ok(0) => return Err(CloseReason::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(CloseReason::Lost(error)),
        };
        self.is_active = true;
        common.count(count as u64);
        if let Some(Known { account, .. }) = &self.sensor {
            locked(account).allowance.take(count as u64, 0);
        }
        let was_handshaking = self.secure.is_handshaking();
        let arrived = &mut common.scratch[..start + count];
        let (conversation, early) = (&mut self.conversation, &mut self.early);
        let result = self.secure.receive(arrived, |plain| match conversation {
            Some(conversation) => conversation.push(plain),
            None => early.extend_from_slice(plain),
        });
        result.map_err(|error| match was_handshaking {
            true => CloseReason::Handshake(error),
            false => CloseReason::Tls(error),
        })?;
        Ok(true)
    }

    /// The handshake is done: finds out who the peer is, and takes the place of an older connection of
    /// the same sensor, in whichever event loop that is.
    fn identify(&mut self, common: &Common, now: Now) -> Result<(), CloseReason> {
        let certificate = self.secure.peer_certificates().first().ok_or(PeerError::NoCertificate);
        let (name, validity) = certificate
            .and_then(|certificate| {
                let validity = Validity::of(certificate).ok_or(PeerError::Unreadable)?;
                Ok((trust::name_in(certificate, Role::Sensor)?, validity))
            })
            .map_err(CloseReason::NotASensor)?;
        let sensor = common.roster.shared.sensor(&name);
        sensor.state().certificate_until = Some(validity.until);
        self.certificate_until = validity.until;
        let account = common.roster.account(&name, now.instant);
        let mut held = locked(&account);
        let older = held.holder.replace(Place { id: self.id, event_loop: common.number });
        sensor.settle(common.number);
        drop(held);
        self.sensor = Some(Known { sensor, account, older });
        Ok(())
    }

    /// Greets a peer that is known. False if it has to wait, because batches of an earlier connection
    /// are on their way to the store: the greeting would not know of them.
    fn begin(&mut self, common: &Common, now: Now) -> Result<bool, CloseReason> {
        let Some(known) = &self.sensor else { return Ok(true) };
        let account = held(known, self.id)?;
        if !account.taken.is_stored(&known.sensor.state()) {
            return Ok(false);
        }
        let connection = status::Connection { id: self.id, peer: self.peer };
        let (sensor, collector) = (Arc::clone(&known.sensor), &common.roster.shared.name);
        let mut conversation = Conversation::open(sensor, collector, connection, now)?;
        drop(account);
        conversation.push(&std::mem::take(&mut self.early));
        self.conversation = Some(Box::new(conversation));
        Ok(true)
    }

    fn write_out(&mut self) -> io::Result<()> {
        let outgoing = self.secure.outgoing();
        let mut sent = 0;
        let result = loop {
            if sent == outgoing.len() {
                break Ok(());
            }
            match self.socket.write(&outgoing[sent..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => sent += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        outgoing.drain(..sent);
        result
    }
}

impl Common {
    /// Counts bytes from sockets.
    fn count(&self, bytes: u64) {
        let own = self.roster.shared.loops.get().and_then(|loops| loops.get(self.number));
        if let Some(own) = own {
            status::add(&own.bytes, bytes);
        }
    }
}

/// The sensor's account, held by the connection with this id; or a newer connection has it.
fn held(known: &Known, id: u64) -> Result<MutexGuard<'_, Account>, CloseReason> {
    let account = locked(&known.account);
    match account.holder {
        Some(holder) if holder.id == id => Ok(account),
        _ => Err(CloseReason::Replaced),
    }
}
