//! TLS over bytes: encrypted bytes in, plain bytes out, and the other way round. No I/O.
//!
//! Uses the interface of rustls that leaves all buffers to the caller: one read of the socket fills
//! many TLS records, which are decrypted where they lie (the other interface reads 4 KiB at a time).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};

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
            self.take_alert(incoming.get_mut(taken..).unwrap_or_default());
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

    /// Gives back the memory of buffers in which little or nothing waits.
    pub fn rest(&mut self) {
        self.partial.shrink_to_fit();
        self.outgoing.shrink_to_fit();
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

    /// The peer's certificate chain, its own certificate first, verified; empty before the handshake
    /// is done.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// Fetches the alert that tells the peer what was wrong. Exactly one call: rustls panics when it
    /// is shown the same fault once more after it has sent an alert for it.
    fn take_alert(&mut self, rest: &mut [u8]) {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(data)) = state {
            encode(data, &mut self.outgoing);
        }
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
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing),
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

/// Appends a handshake message or alert.
fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) {
    append(out, |space| match data.encode(space) {
        Err(EncodeError::InsufficientSize(needed)) => Err(needed.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
        Ok(written) => Ok(written),
    });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// Both ends; the client's certificate is not asked for here.
    fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let own = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![own.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    /// Gives `bytes` to the server in pieces of at most `piece`, as sockets do.
    fn give(
        server: &mut Secure,
        bytes: &[u8],
        piece: usize,
        plain: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        for piece in bytes.chunks(piece) {
            let mut incoming = server.partial().to_vec();
            incoming.extend_from_slice(piece);
            server.receive(&mut incoming, |bytes| plain.extend_from_slice(bytes))?;
        }
        Ok(())
    }

    /// Handshake, then `message` from the client; one byte of all that the client sends is changed
    /// by `mask` at `place`. Gives what arrived.
    fn converse(
        message: &[u8],
        piece: usize,
        place: usize,
        mask: u8,
    ) -> Result<Vec<u8>, rustls::Error> {
        let (server, client) = configs();
        let mut server = Secure::new(server)?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(client, name).unwrap();
        let (mut plain, mut sent) = (Vec::new(), 0);
        let mut has_spoken = false;
        loop {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            if let Some(byte) = place.checked_sub(sent).and_then(|at| bytes.get_mut(at)) {
                *byte ^= mask;
            }
            sent += bytes.len();
            give(&mut server, &bytes, piece, &mut plain)?;
            let answer = std::mem::take(server.outgoing());
            let mut answer = answer.as_slice();
            while !answer.is_empty() {
                client.read_tls(&mut answer).unwrap();
                client.process_new_packets()?;
            }
            if !client.is_handshaking() && !has_spoken {
                has_spoken = true;
                std::io::Write::write_all(&mut client.writer(), message).unwrap();
            } else if !client.wants_write() {
                return Ok(plain);
            }
        }
    }

    #[test]
    fn plain_bytes_arrive_in_order_however_the_socket_cuts_them() {
        let message: Vec<u8> = (0..40_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        for piece in [1, 7, 4096, 100_000] {
            assert_eq!(converse(&message, piece, usize::MAX, 0), Ok(message.clone()));
        }
    }

    #[test]
    fn an_alert_tells_the_peer_what_was_wrong() {
        let mut server = Secure::new(configs().0).unwrap();
        let result = give(&mut server, b"GET / HTTP/1.1", 100, &mut Vec::new());
        assert!(matches!(result, Err(rustls::Error::InvalidMessage(_))), "{result:?}");
        // Type alert, TLS 1.2 as all records say, two bytes: fatal, decode_error.
        assert_eq!(server.outgoing().as_slice(), [21, 3, 3, 0, 2, 2, 50]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn no_changed_byte_is_a_panic_or_changes_the_message(
            place in 0_usize..900,
            mask in 1_u8..,
            piece in prop::sample::select(vec![1, 100, 100_000]),
        ) {
            if let Ok(plain) = converse(b"hello, this is a message", piece, place, mask) {
                prop_assert!(b"hello, this is a message".starts_with(&plain));
            }
        }

        #[test]
        fn no_bytes_at_all_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut server = Secure::new(configs().0).unwrap();
            let _ = give(&mut server, &bytes, 50, &mut Vec::new());
        }
    }
}
