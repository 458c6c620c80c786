//! TLS over bytes: encrypted bytes in, plain bytes out, and the other way round. No I/O.
//!
//! Uses the interface of rustls that leaves all buffers to the caller: one read of the socket fills
//! many TLS records, which are decrypted where they lie (the other interface reads 4 KiB at a time).

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;

/// The TLS end of one connection.
pub struct Secure {
    connection: UnbufferedServerConnection,
    /// The start of a TLS record whose rest has not arrived. Shorter than one record, but in a
    /// handshake, where rustls limits it to 64 KiB.
    partial: Vec<u8>,
    /// Encrypted bytes for the peer.
    outgoing: Vec<u8>,
    is_closed_by_peer: bool,
}

impl Secure {
    /// Waits for the peer's first message.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config)?,
            partial: Vec::new(),
            outgoing: Vec::new(),
            is_closed_by_peer: false,
        })
    }

    /// Bytes that must stand in front of the next ones from the socket; the caller copies them.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes all that arrived: `incoming` begins with [`Secure::partial`]. `deliver` gets the plain
    /// bytes in order.
    ///
    /// # Errors
    /// What rustls says. An alert for the peer is then in [`Secure::outgoing`].
    pub fn receive(
        &mut self,
        incoming: &mut [u8],
        mut deliver: impl FnMut(&[u8]),
    ) -> Result<(), rustls::Error> {
        let mut taken = 0;
        let result = self.advance(incoming, &mut taken, &mut deliver, &[]);
        if result.is_err() {
            // The alert that tells the peer why comes with the next call.
            let _ = self.advance(incoming, &mut taken, &mut deliver, &[]);
        }
        self.partial.clear();
        self.partial.extend_from_slice(incoming.get(taken..).unwrap_or_default());
        result
    }

    /// Encrypts `plain` into [`Secure::outgoing`]. The handshake must be done.
    ///
    /// # Errors
    /// What rustls says.
    pub fn send(&mut self, plain: &[u8]) -> Result<(), rustls::Error> {
        // Nothing but a partial record waits, so this delivers nothing and ends where it may write.
        let mut partial = std::mem::take(&mut self.partial);
        let result = self.advance(&mut partial, &mut 0, &mut |_| (), plain);
        self.partial = partial;
        result
    }

    /// Encrypted bytes for the peer. The caller takes out what it has sent.
    pub const fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Whether the handshake goes on.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the peer said that nothing more comes.
    #[must_use]
    pub const fn is_closed_by_peer(&self) -> bool {
        self.is_closed_by_peer
    }

    /// The peer's own certificate, verified; none before the handshake is done.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// Lets rustls go as far as it can. Where it may write, `plain` is encrypted.
    fn advance(
        &mut self,
        incoming: &mut [u8],
        taken: &mut usize,
        deliver: &mut impl FnMut(&[u8]),
        plain: &[u8],
    ) -> Result<(), rustls::Error> {
        loop {
            let rest = incoming.get_mut(*taken..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(rest);
            let mut is_done = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        deliver(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.outgoing, |space| match data.encode(space) {
                        Err(EncodeError::InsufficientSize(needed)) => Err(needed.required_size),
                        Err(EncodeError::AlreadyEncoded) => Ok(0),
                        Ok(written) => Ok(written),
                    });
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.is_closed_by_peer = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    is_done = true;
                    if !plain.is_empty() {
                        append(&mut self.outgoing, |space| match traffic.encrypt(plain, space) {
                            Err(EncryptError::InsufficientSize(needed)) => {
                                Err(needed.required_size)
                            }
                            // After 2^64 records; the peer then misses messages and gives up.
                            Err(EncryptError::EncryptExhausted) => Ok(0),
                            Ok(written) => Ok(written),
                        });
                    }
                }
                Ok(_) => is_done = true,
                Err(error) => {
                    *taken += discard;
                    return Err(error);
                }
            }
            *taken += discard;
            if is_done {
                return Ok(());
            }
        }
    }
}

/// Appends what `write` puts into the space it is given; it says how much that was, or how much
/// space it needs.
fn append(out: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = out.len();
    let mut space = 0;
    loop {
        out.resize(start + space, 0);
        match write(&mut out[start..]) {
            Ok(written) => return out.truncate(start + written),
            // The same answer twice would never end.
            Err(needed) if needed <= space => return out.truncate(start),
            Err(needed) => space = needed,
        }
    }
}
