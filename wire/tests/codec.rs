//! The codec on what its own writers produce, and on what they never would.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use proptest::collection::vec;
use proptest::prelude::*;
use wire::codec::{DecodeError, Decoder};
use wire::frames::{BatchFull, FrameBatchWriter, MAX_SNAPLEN};
use wire::header::{HEADER_LEN, Header, Kind, MAX_PAYLOAD, Stream, flags};
use wire::message::{
    Ack, CollectorHello, Control, Echo, Gap, Goodbye, Heartbeat, Interface, Interfaces, Limits,
    Message, RecordGap, Resume, SensorHello,
};
use wire::records::{MAX_RECORD, PushError, RecordBatchWriter, RecordKind};
use wire::units::{Sequence, UnixNanos, WireLen};

/// A message with everything in it owned, so that it can outlive the decoder.
#[derive(Clone, Debug, PartialEq)]
enum Owned {
    Control(Control),
    Records { stream: Stream, first: u64, records: Vec<(RecordKind, String)> },
    Frames { sequence: u64, sample_one_in: u32, frames: Vec<OwnedFrame> },
}

#[derive(Clone, Debug, PartialEq)]
struct OwnedFrame {
    time: u64,
    wire_len: u32,
    interface: u32,
    data: Vec<u8>,
}

impl Owned {
    fn copy(message: &Message<'_>) -> Self {
        match message {
            Message::Control(control) => Self::Control(control.clone()),
            Message::Records(batch) => {
                assert_eq!(batch.iter().count(), batch.len() as usize);
                assert_eq!(batch.iter().last().unwrap().sequence, batch.last());
                let records = batch.iter().map(|it| (it.kind, it.json.to_owned())).collect();
                Self::Records { stream: batch.stream, first: batch.first.0, records }
            }
            Message::Frames(batch) => {
                assert_eq!(batch.iter().count(), batch.len() as usize);
                let frames = batch.iter().map(|frame| OwnedFrame {
                    time: frame.time.0,
                    wire_len: frame.wire_len.0,
                    interface: frame.interface,
                    data: frame.data.to_vec(),
                });
                Self::Frames {
                    sequence: batch.sequence.0,
                    sample_one_in: batch.sample_one_in,
                    frames: frames.collect(),
                }
            }
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Control(control) => control.encode(out).unwrap(),
            Self::Records { stream, first, records } => {
                let mut writer = match stream {
                    Stream::Alerts => RecordBatchWriter::of_alerts(),
                    _ => RecordBatchWriter::new(),
                };
                for (kind, json) in records {
                    writer.try_push(*kind, json.as_bytes()).unwrap();
                }
                writer.finish(Sequence(*first), out);
            }
            Self::Frames { sequence, sample_one_in, frames } => {
                let mut writer = FrameBatchWriter::new(*sample_one_in, MAX_SNAPLEN);
                for frame in frames {
                    // In two parts, as a worker does that puts a VLAN tag back.
                    let (head, tail) = frame.data.split_at(frame.data.len() / 3);
                    writer
                        .try_push(
                            UnixNanos(frame.time),
                            WireLen(frame.wire_len),
                            frame.interface,
                            &[head, tail],
                        )
                        .unwrap();
                }
                out.extend_from_slice(writer.finish(Sequence(*sequence)));
            }
        }
    }
}

/// Feeds `bytes` in pieces of the given lengths (over and over) and collects what comes out.
fn decode(bytes: &[u8], pieces: &[usize]) -> (Vec<Owned>, Option<DecodeError>) {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    let mut rest = bytes;
    for piece in pieces.iter().cycle() {
        let mut piece = &rest[..rest.len().min(*piece)];
        rest = &rest[piece.len()..];
        while !piece.is_empty() {
            let taken = decoder.push(piece);
            piece = &piece[taken..];
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => found.push(Owned::copy(&message)),
                    Ok(None) => break,
                    Err(error) => {
                        assert_eq!(decoder.next_message().unwrap_err(), error, "stays failed");
                        return (found, Some(error));
                    }
                }
            }
            assert!(taken > 0, "no space although no message waits");
        }
        if rest.is_empty() {
            break;
        }
    }
    (found, None)
}

fn word() -> impl Strategy<Value = String> {
    "[ -~äß☃]{0,20}"
}

fn control() -> impl Strategy<Value = Control> {
    let sequence = || any::<u64>().prop_map(Sequence);
    let time = || any::<u64>().prop_map(UnixNanos);
    let resume = (any::<u64>(), sequence(), sequence(), any::<u64>(), sequence()).prop_map(
        |(boot_epoch, records, frames, spool_epoch, alerts)| Resume {
            boot_epoch,
            records,
            frames,
            spool_epoch,
            alerts,
        },
    );
    let stream = || prop_oneof![Just(Stream::Records), Just(Stream::Frames), Just(Stream::Alerts)];
    let record_gap = (stream(), sequence(), sequence())
        .prop_map(|(stream, first, last)| RecordGap { stream, first, last });
    let interface = (any::<u32>(), word(), any::<u16>(), any::<u32>())
        .prop_map(|(id, name, linktype, snaplen)| Interface { id, name, linktype, snaplen });
    prop_oneof![
        (any::<u16>(), word(), proptest::option::of(resume)).prop_map(
            |(minor, collector, resume)| Control::CollectorHello(CollectorHello {
                minor,
                collector,
                limits: Limits::default(),
                resume,
            })
        ),
        (any::<u16>(), word(), any::<u64>(), any::<u64>(), word(), word()).prop_map(
            |(minor, sensor, boot_epoch, spool_epoch, host, version)| Control::SensorHello(
                SensorHello { minor, sensor, boot_epoch, spool_epoch, host, version }
            )
        ),
        vec(interface, 0..4).prop_map(|interfaces| Control::Interfaces(Interfaces { interfaces })),
        (stream(), sequence(), any::<u64>())
            .prop_map(|(stream, sequence, count)| Control::Ack(Ack { stream, sequence, count })),
        (time(), proptest::option::of((time(), any::<u64>()))).prop_map(|(sent_at, echo)| {
            let echo = echo.map(|(sent_at, held_for)| Echo { sent_at, held_for });
            Control::Heartbeat(Heartbeat { sent_at, echo })
        }),
        (
            word(),
            word(),
            any::<u64>(),
            any::<u64>(),
            time(),
            time(),
            proptest::option::of(record_gap)
        )
            .prop_map(|(stage, reason, frames, bytes, from, to, records)| Control::Gap(
                Gap { stage, reason, frames, bytes, from, to, records }
            )),
        word().prop_map(|reason| Control::Goodbye(Goodbye { reason })),
    ]
}

fn message() -> impl Strategy<Value = Owned> {
    let record =
        (1u8..=6, "[ -~äß☃]{0,300}").prop_map(|(kind, json)| (RecordKind::from_u8(kind), json));
    let frame = (any::<u64>(), 0u32..100, any::<u32>(), vec(any::<u8>(), 0..300)).prop_map(
        |(time, beyond, interface, data)| OwnedFrame {
            time,
            wire_len: data.len() as u32 + beyond,
            interface,
            data,
        },
    );
    prop_oneof![
        control().prop_map(Owned::Control),
        (any::<bool>(), 1..u64::MAX >> 1, vec(record, 1..20)).prop_map(
            |(is_alerts, first, records)| {
                let stream = if is_alerts { Stream::Alerts } else { Stream::Records };
                Owned::Records { stream, first, records }
            }
        ),
        (1..u64::MAX, any::<u32>(), vec(frame, 0..20)).prop_map(
            |(sequence, sample_one_in, frames)| Owned::Frames { sequence, sample_one_in, frames }
        ),
    ]
}

proptest! {
    #[test]
    fn messages_survive_the_round_trip_however_they_are_cut(
        messages in vec(message(), 0..12),
        pieces in vec(1usize..5000, 1..8),
    ) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        prop_assert_eq!(decode(&bytes, &pieces), (messages, None));
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        bytes in vec(any::<u8>(), 0..3000),
        pieces in vec(1usize..100, 1..8),
    ) {
        decode(&bytes, &pieces);
    }

    /// Random bytes seldom look like a header; these always do, with a right checksum.
    #[test]
    fn any_payload_behind_a_valid_header_is_decoded_or_refused(
        kind in 0u8..=13,
        is_packed in any::<bool>(),
        raw_len in 0u32..100_000,
        stream in 0u8..=4,
        sequence in any::<u64>(),
        payload in vec(any::<u8>(), 0..2000),
    ) {
        let wire_len = payload.len() as u32;
        let header = Header {
            kind,
            flags: if is_packed { flags::LZ4 } else { 0 },
            stream,
            sequence: Sequence(sequence),
            raw_len: if is_packed { raw_len } else { wire_len },
            wire_len,
            crc: 0,
        };
        decode(&sealed(header, &payload), &[1 << 20]);
    }

    #[test]
    fn a_single_flipped_bit_is_never_accepted(
        first in message(),
        second in message(),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = Vec::new();
        first.encode(&mut bytes);
        let at = position.index(bytes.len());
        second.encode(&mut bytes);
        bytes[at] ^= 1 << bit;
        // Refused, or still waited for because the length became longer.
        let (found, _) = decode(&bytes, &[1 << 20]);
        prop_assert_eq!(found, vec![]);
    }
}

/// Header with the right checksum, and payload. Written anew from the specification, because the
/// library seals only what its writers made.
fn sealed(header: Header, payload: &[u8]) -> Vec<u8> {
    let zeroed = Header { crc: 0, ..header }.to_bytes();
    let all: Vec<u8> = [&zeroed[..], payload].concat();
    let mut crc = u32::MAX;
    for byte in &all {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            // The Castagnoli polynomial, reflected.
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    [&Header { crc: !crc, ..header }.to_bytes()[..], payload].concat()
}

fn plain(kind: Kind, stream: u8, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    sealed(
        Header {
            kind: kind as u8,
            flags: 0,
            stream,
            sequence: Sequence(sequence),
            raw_len: len,
            wire_len: len,
            crc: 0,
        },
        payload,
    )
}

fn refusal(bytes: &[u8]) -> String {
    let (found, error) = decode(bytes, &[bytes.len()]);
    assert_eq!(found, []);
    error.expect("must be refused").to_string()
}

#[test]
fn garbage_is_refused_by_its_first_four_bytes() {
    assert_eq!(refusal(b"GET "), "bad magic [47, 45, 54, 20]");
}

#[test]
fn another_major_version_is_refused() {
    let mut bytes = plain(Kind::Goodbye, 0, 0, b"{}");
    bytes[4] = 2;
    assert_eq!(refusal(&bytes), "unsupported version 2, this is version 1");
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_bytes_arrive() {
    let header = Header {
        kind: 77,
        flags: 0,
        stream: 0,
        sequence: Sequence(0),
        raw_len: 0,
        wire_len: MAX_PAYLOAD as u32 + 1,
        crc: 0,
    };
    assert_eq!(
        refusal(&header.to_bytes()),
        "message of kind 77 has 1048577 bytes, the limit is 1048576"
    );
}

#[test]
fn kinds_of_later_versions_are_skipped_by_their_length() {
    let header = Header {
        kind: 99,
        flags: 0x80,
        stream: 9,
        sequence: Sequence(5),
        raw_len: 1,
        wire_len: 70_000,
        crc: 0,
    };
    let mut unknown = sealed(header, &[7; 70_000]);
    let goodbye = Owned::Control(Control::Goodbye(Goodbye { reason: "shutdown".into() }));
    goodbye.encode(&mut unknown);
    assert_eq!(decode(&unknown, &[1000]), (vec![goodbye], None));
}

#[test]
fn a_message_longer_than_the_read_buffer_is_decoded() {
    let records: Vec<_> =
        (0..3u8).map(|n| (RecordKind::Flow, noise(120_000 + usize::from(n)))).collect();
    let message = Owned::Records { stream: Stream::Records, first: 1, records };
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    assert!(bytes.len() > wire::codec::READ_BUFFER, "{}", bytes.len());
    assert_eq!(decode(&bytes, &[1500]), (vec![message], None));
}

#[test]
fn a_decoder_takes_as_much_memory_as_its_peer_sends_and_gives_it_back_at_rest() {
    let goodbye = Owned::Control(Control::Goodbye(Goodbye { reason: "shutdown".into() }));
    let mut small = Vec::new();
    goodbye.encode(&mut small);
    let records = vec![(RecordKind::Flow, noise(100_000))];
    let batch = Owned::Records { stream: Stream::Records, first: 1, records };
    let mut large = Vec::new();
    batch.encode(&mut large);
    let mut decoder = Decoder::new();
    let take = |decoder: &mut Decoder, bytes: &[u8], expected: &Owned| {
        assert_eq!(decoder.push(bytes), bytes.len());
        let message = decoder.next_message().unwrap().unwrap();
        assert_eq!(Owned::copy(&message), *expected);
    };
    let memory = allocation_counter::measure(|| {
        (0..100).for_each(|_| take(&mut decoder, &small, &goodbye));
    });
    assert!(memory.bytes_max < 4 << 10, "{} bytes for goodbyes", memory.bytes_max);
    let memory = allocation_counter::measure(|| {
        take(&mut decoder, &large, &batch);
        decoder.rest();
    });
    assert!(memory.bytes_current <= 0, "{} bytes are kept", memory.bytes_current);
    // Half a message is kept, and the rest of it follows.
    assert_eq!(decoder.push(&large[..50_000]), 50_000);
    assert!(decoder.next_message().unwrap().is_none());
    decoder.rest();
    take(&mut decoder, &large[50_000..], &batch);
    take(&mut decoder, &small, &goodbye);
}

#[test]
fn unknown_fields_of_control_messages_are_ignored() {
    let bytes = plain(Kind::Goodbye, 0, 0, br#"{"reason":"x","until":3}"#);
    let goodbye = Owned::Control(Control::Goodbye(Goodbye { reason: "x".into() }));
    assert_eq!(decode(&bytes, &[100]), (vec![goodbye], None));
}

#[test]
fn contradictions_inside_a_payload_are_named() {
    let records = |payload: &[u8]| refusal(&plain(Kind::Records, 1, 1, payload));
    let frames = |payload: &[u8]| refusal(&plain(Kind::Frames, 2, 1, payload));
    let prefix = |count: u32| [&count.to_le_bytes()[..], &[0; 12]].concat();
    let entry = |wire_len: u32, captured: u32| {
        [&[0; 8][..], &wire_len.to_le_bytes(), &captured.to_le_bytes(), &[0; 8]].concat()
    };
    let check = |found: String, expected: &str| assert!(found.ends_with(expected), "{found}");
    check(records(&[]), "batch without a record");
    check(records(&[1, 5, 0, 0, 0, b'{', b'}']), "record reaches beyond the payload");
    check(records(&[1, 2, 0, 0, 0, b'\n', b'}']), "line break in a record");
    check(records(&[1, 2, 0, 0, 0, 0xff, 0xff]), "record is not UTF-8");
    check(frames(&[0; 15]), "payload shorter than its prefix");
    check(frames(&prefix(1)), "number of frames is not the stated one");
    check(frames(&[prefix(1), entry(8, 8)].concat()), "frame reaches beyond the payload");
    check(frames(&[prefix(1), entry(7, 8), vec![0; 8]].concat()), "captured longer than it was");
    check(refusal(&plain(Kind::Frames, 2, 0, &prefix(0))), "sequence out of range");
    check(refusal(&plain(Kind::Frames, 1, 1, &prefix(0))), "stream 1 is not its own");
    check(refusal(&plain(Kind::Ack, 0, 0, b"{}")), "missing field `stream` at line 1 column 2");
}

#[test]
fn a_batch_that_unpacks_to_another_length_is_refused() {
    let mut bytes = Vec::new();
    let records = vec![(RecordKind::Alert, "a".repeat(5000))];
    Owned::Records { stream: Stream::Records, first: 1, records }.encode(&mut bytes);
    let header = Header::from_bytes(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(header.flags, flags::LZ4);
    for raw_len in [header.raw_len - 1, header.raw_len + 1] {
        let message = refusal(&sealed(Header { raw_len, ..header }, &bytes[HEADER_LEN..]));
        assert!(message.starts_with("malformed Records message"), "{message}");
    }
}

#[test]
fn a_frame_is_cut_to_the_snap_length_and_keeps_its_length_on_the_wire() {
    let mut writer = FrameBatchWriter::new(64, 10);
    writer.try_push(UnixNanos(5), WireLen(1518), 3, &[&[1; 4], &[2; 4], &[3; 4]]).unwrap();
    assert_eq!((writer.frames(), writer.frame_bytes()), (1, 10));
    let (found, error) = decode(writer.finish(Sequence(9)), &[7]);
    let data = vec![1, 1, 1, 1, 2, 2, 2, 2, 3, 3];
    let frame = OwnedFrame { time: 5, wire_len: 1518, interface: 3, data };
    assert_eq!(error, None);
    assert_eq!(found, [Owned::Frames { sequence: 9, sample_one_in: 64, frames: vec![frame] }]);
}

#[test]
fn an_empty_batch_takes_any_frame_and_a_full_one_none() {
    let mut writer = FrameBatchWriter::new(1, u32::MAX);
    let push = |writer: &mut FrameBatchWriter, len: usize| {
        writer.try_push(UnixNanos(0), WireLen(0), 0, &[&vec![0; len]])
    };
    assert_eq!(push(&mut writer, 300_000), Ok(()));
    assert_eq!(writer.frame_bytes(), u64::from(MAX_SNAPLEN));
    assert_eq!(push(&mut writer, 2000), Err(BatchFull));
    assert_eq!(writer.frames(), 1);
    writer.clear();
    assert!(writer.is_empty());
    assert_eq!(push(&mut writer, 2000), Ok(()));
    let (found, _) = decode(writer.finish(Sequence(1)), &[1 << 20]);
    let Owned::Frames { frames, .. } = &found[0] else { panic!("{found:?}") };
    // The source said 0; the writer knows better.
    assert_eq!(frames[0].wire_len, 2000);
}

#[test]
fn records_are_taken_until_the_batch_has_its_size() {
    let mut writer = RecordBatchWriter::new();
    let too_long = vec![b'x'; MAX_RECORD + 1];
    assert_eq!(
        writer.try_push(RecordKind::Flow, &too_long),
        Err(PushError::TooLong { len: MAX_RECORD + 1 })
    );
    assert_eq!(writer.try_push(RecordKind::Flow, &too_long[1..]), Ok(()));
    assert_eq!(writer.try_push(RecordKind::Flow, b"{}"), Err(PushError::BatchFull));
    let mut out = Vec::new();
    writer.finish(Sequence(1), &mut out);
    assert!(out.len() < 10_000, "lz4 must have packed {} bytes", out.len());
    assert_eq!(writer.try_push(RecordKind::Flow, b"{}"), Ok(()));
}

/// The exact bytes of version 1. If this test has to change, so has [`wire::header::VERSION`] or
/// [`wire::header::MINOR`], and `docs/wire-format.md`.
#[test]
fn the_bytes_of_version_1_do_not_change() {
    let mut bytes = Vec::new();
    Control::Ack(Ack { stream: Stream::Records, sequence: Sequence(7), count: 7 })
        .encode(&mut bytes)
        .unwrap();
    let body = br#"{"stream":"records","sequence":7,"count":7}"#;
    assert_eq!(bytes, plain(Kind::Ack, 0, 0, body));
    assert_eq!(
        hex(&bytes[..HEADER_LEN]),
        "52574631 01 06 00 00 0000000000000000 2b000000 2b000000 56c82086 00000000"
    );

    let mut writer = FrameBatchWriter::new(1, 65535);
    writer.try_push(UnixNanos(1_000_000_000), WireLen(60), 2, &[&[0xaa, 0xbb, 0xcc]]).unwrap();
    let bytes = writer.finish(Sequence(1)).to_vec();
    let payload = [
        1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, // count, sampling, snaplen
        0, 0xca, 0x9a, 0x3b, 0, 0, 0, 0, // time
        60, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // lengths, interface
        0xaa, 0xbb, 0xcc, 0, // data
    ];
    assert_eq!(bytes, plain(Kind::Frames, 2, 1, &payload));
    assert_eq!(
        hex(&bytes[..HEADER_LEN]),
        "52574631 01 05 00 02 0100000000000000 2c000000 2c000000 ad7a021d 00000000"
    );
}

fn hex(header: &[u8]) -> String {
    let digits = |range: std::ops::Range<usize>| -> String {
        header[range].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    [0..4, 4..5, 5..6, 6..7, 7..8, 8..16, 16..20, 20..24, 24..28, 28..32].map(digits).join(" ")
}

/// Text that LZ4 cannot pack.
fn noise(len: usize) -> String {
    let mut state = 1u64 + len as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state % 95) as u8)
    };
    (0..len).map(|_| next()).collect()
}
