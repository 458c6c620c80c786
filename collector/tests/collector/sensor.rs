//! A sensor as the collector sees one: TLS, hello, batches, acknowledgements.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use wire::codec::Decoder;
use wire::frames::FrameBatchWriter;
use wire::header::Stream;
use wire::message::{
    CollectorHello, Control, Goodbye, Heartbeat, Interface, Interfaces, Message, SensorHello,
};
use wire::records::{RecordBatchWriter, RecordKind};
use wire::units::{Sequence, UnixNanos, WireLen};

use crate::lab::{Issued, PATIENCE};

/// A connected sensor.
pub struct Sensor {
    stream: StreamOwned<ClientConnection, TcpStream>,
    decoder: Decoder,
    pub hello: CollectorHello,
    /// Last acknowledged record and batch.
    pub acknowledged: (u64, u64),
    /// Last acknowledged record of the stream of alerts.
    pub acknowledged_alerts: u64,
    /// Counts in the last acknowledgements.
    pub counts: (u64, u64),
    pub heartbeats: Vec<Heartbeat>,
    /// Why the collector said goodbye.
    pub goodbye: Option<String>,
}

/// TLS up to and including the handshake.
pub fn handshake(
    address: &str,
    authority: &str,
    own: Option<&Issued>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    handshake_over(TcpStream::connect(address)?, authority, own)
}

/// The same, over a connection that is there.
pub fn handshake_over(
    socket: TcpStream,
    authority: &str,
    own: Option<&Issued>,
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(Issued { certificate, key }) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

impl Sensor {
    /// Connects and waits for the collector's hello.
    pub fn connect(address: &str, authority: &str, own: &Issued) -> io::Result<Self> {
        let stream = handshake(address, authority, Some(own))?;
        let mut sensor = Self {
            stream,
            decoder: Decoder::new(),
            hello: CollectorHello {
                minor: 0,
                collector: String::new(),
                limits: wire::message::Limits::default(),
                resume: None,
            },
            acknowledged: (0, 0),
            acknowledged_alerts: 0,
            counts: (0, 0),
            heartbeats: Vec::new(),
            goodbye: None,
        };
        while sensor.hello.collector.is_empty() {
            sensor.receive()?;
        }
        Ok(sensor)
    }

    /// Connects and introduces itself, with one interface, number 7, called `eth0`.
    pub fn join(address: &str, authority: &str, own: &Issued, name: &str, boot_epoch: u64) -> Self {
        Self::introduce(address, authority, own, hello(name, boot_epoch))
    }

    /// The same, with a hello of its own.
    pub fn introduce(address: &str, authority: &str, own: &Issued, hello: SensorHello) -> Self {
        let mut sensor = Self::connect(address, authority, own).unwrap();
        sensor.send(&Control::SensorHello(hello));
        sensor.send(&Control::Interfaces(Interfaces {
            interfaces: vec![Interface { id: 7, name: "eth0".into(), linktype: 1, snaplen: 65535 }],
        }));
        sensor
    }

    pub fn send(&mut self, control: &Control) {
        let mut bytes = Vec::new();
        control.encode(&mut bytes).unwrap();
        self.send_bytes(&bytes);
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends, and takes what came, for which it waits a millisecond at most.
    pub fn exchange(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.sock.set_read_timeout(Some(std::time::Duration::from_millis(1)))?;
        match self.receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    pub fn send_frames(&mut self, sequence: u64, frames: &[Vec<u8>]) {
        let bytes = frame_batch(sequence, frames);
        self.send_bytes(&bytes);
    }

    /// Sends records numbered from `first`.
    pub fn send_records(&mut self, first: u64, records: &[(RecordKind, &str)]) {
        let bytes = record_batch(first, records);
        self.send_bytes(&bytes);
    }

    /// Sends records on the stream of alerts, numbered from `first`.
    pub fn send_alerts(&mut self, first: u64, records: &[(RecordKind, &str)]) {
        let bytes = pack(RecordBatchWriter::of_alerts(), first, records);
        self.send_bytes(&bytes);
    }

    /// Waits until this alert is acknowledged.
    pub fn wait_for_alert(&mut self, sequence: u64) {
        while self.acknowledged_alerts < sequence {
            self.receive().unwrap();
        }
    }

    /// Waits until this record and this batch are acknowledged.
    pub fn wait_for_ack(&mut self, records: u64, frames: u64) {
        while self.acknowledged.0 < records || self.acknowledged.1 < frames {
            self.receive().unwrap();
        }
    }

    pub fn leave(mut self) {
        self.send(&Control::Goodbye(Goodbye { reason: "shutdown".into() }));
    }

    /// Reads until the collector closes the connection.
    pub fn read_to_end(&mut self) {
        while self.receive().is_ok() {}
    }

    /// Reads once and takes what came.
    pub fn receive(&mut self) -> io::Result<()> {
        match self.stream.read(self.decoder.spare())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.decoder.filled(count),
        }
        while let Some(message) = self.decoder.next_message().unwrap() {
            match message {
                Message::Control(Control::CollectorHello(hello)) => self.hello = hello,
                Message::Control(Control::Ack(ack)) => match ack.stream {
                    Stream::Frames => {
                        (self.acknowledged.1, self.counts.1) = (ack.sequence.0, ack.count);
                    }
                    Stream::Alerts => self.acknowledged_alerts = ack.sequence.0,
                    _ => (self.acknowledged.0, self.counts.0) = (ack.sequence.0, ack.count),
                },
                Message::Control(Control::Heartbeat(beat)) => self.heartbeats.push(beat),
                Message::Control(Control::Goodbye(goodbye)) => self.goodbye = Some(goodbye.reason),
                other => panic!("unexpected {other:?}"),
            }
        }
        Ok(())
    }
}

pub fn hello(name: &str, boot_epoch: u64) -> SensorHello {
    SensorHello {
        minor: 0,
        sensor: name.to_owned(),
        boot_epoch,
        spool_epoch: 0,
        host: "host".into(),
        version: "0.1.0".into(),
    }
}

/// A batch of frames of interface 7, one microsecond apart.
pub fn frame_batch(sequence: u64, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut batch = FrameBatchWriter::new(1, 65535);
    for (number, frame) in frames.iter().enumerate() {
        let time = UnixNanos(1_700_000_000_000_000_001 + 1000 * number as u64);
        let wire_len = WireLen(u32::try_from(frame.len()).unwrap());
        batch.try_push(time, wire_len, 7, &[frame]).unwrap();
    }
    batch.finish(Sequence(sequence)).to_vec()
}

pub fn record_batch(first: u64, records: &[(RecordKind, &str)]) -> Vec<u8> {
    pack(RecordBatchWriter::new(), first, records)
}

fn pack(mut batch: RecordBatchWriter, first: u64, records: &[(RecordKind, &str)]) -> Vec<u8> {
    for (kind, json) in records {
        batch.try_push(*kind, json.as_bytes()).unwrap();
    }
    let mut bytes = Vec::new();
    batch.finish(Sequence(first), &mut bytes);
    bytes
}
