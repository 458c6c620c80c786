//! Files are built in memory, byte by byte, in both byte orders.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;

use super::order::ByteOrder;
use super::*;

/// Owned copy of a frame: time in ns, length on the wire, bytes, interface, link type.
type Owned = (u64, u32, Vec<u8>, u32, u16);

/// All frames, and whether the last record was cut.
fn read_all(bytes: &[u8]) -> Result<(Vec<Owned>, bool), FileError> {
    read_from(Cursor::new(bytes.to_vec()))
}

fn read_from(reader: impl Read + Send + 'static) -> Result<(Vec<Owned>, bool), FileError> {
    let mut file = CaptureFile::from_reader(reader, "memory")?;
    let mut frames = Vec::new();
    while let Some(FileFrame { frame, interface }) = file.next_frame()? {
        let data = frame.data.to_vec();
        frames.push((frame.time.0, frame.wire_len.0, data, interface, frame.link.0));
    }
    Ok((frames, file.truncated()))
}

fn fault(bytes: &[u8]) -> (u64, Fault) {
    match read_all(bytes) {
        Err(FileError::Corrupt { offset, fault, .. }) => (offset, fault),
        other => panic!("{other:?}"),
    }
}

/// Writes numbers in one byte order.
struct Writer {
    order: ByteOrder,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(order: ByteOrder) -> Self {
        Self { order, bytes: Vec::new() }
    }

    fn u16(mut self, value: u16) -> Self {
        self.bytes.extend(match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        });
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.bytes.extend(match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        });
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn pcap_header(self, magic: u32) -> Self {
        self.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65_535).u32(1)
    }

    fn pcap_record(self, seconds: u32, ticks: u32, wire_len: u32, data: &[u8]) -> Self {
        self.u32(seconds).u32(ticks).u32(data.len() as u32).u32(wire_len).bytes(data)
    }

    fn block(self, kind: u32, body: &dyn Fn(Self) -> Self) -> Self {
        let mut body = body(Self::new(self.order)).bytes;
        body.resize(body.len().next_multiple_of(4), 0);
        let total = body.len() as u32 + 12;
        self.u32(kind).u32(total).bytes(&body).u32(total)
    }

    fn section(self) -> Self {
        self.block(0x0a0d_0d0a, &|body| {
            body.u32(0x1a2b_3c4d).u16(1).u16(0).u32(u32::MAX).u32(u32::MAX)
        })
    }

    fn interface(self, link: u16, snaplen: u32, options: &[(u16, &[u8])]) -> Self {
        self.block(1, &|body| {
            let mut body = body.u16(link).u16(0).u32(snaplen);
            for (code, value) in options {
                let padding = value.len().next_multiple_of(4) - value.len();
                body = body.u16(*code).u16(value.len() as u16).bytes(value);
                body = body.bytes(&vec![0; padding]);
            }
            body.u32(0)
        })
    }

    fn packet(self, interface: u32, ticks: u64, wire_len: u32, data: &[u8]) -> Self {
        self.block(6, &|body| {
            let body = body.u32(interface).u32((ticks >> 32) as u32).u32(ticks as u32);
            body.u32(data.len() as u32).u32(wire_len).bytes(data)
        })
    }
}

const BOTH: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

#[test]
fn pcap_is_read_in_both_byte_orders_and_resolutions() {
    for order in BOTH {
        for (magic, time) in [(0xa1b2_c3d4, 7_000_005_000), (0xa1b2_3c4d, 7_000_000_005)] {
            let bytes = Writer::new(order)
                .pcap_header(magic)
                .pcap_record(7, 5, 60, b"frame")
                .pcap_record(u32::MAX, 0, 0, b"")
                .bytes;
            let late = 4_294_967_295_000_000_000;
            let expected = vec![(time, 60, b"frame".to_vec(), 0, 1), (late, 0, Vec::new(), 0, 1)];
            assert_eq!(read_all(&bytes).unwrap(), (expected, false));
        }
    }
}

#[test]
fn records_of_the_patched_libpcap_have_a_longer_header() {
    for order in BOTH {
        let record = Writer::new(order).pcap_header(0xa1b2_cd34).u32(1).u32(2).u32(3).u32(9);
        let bytes = record.u32(4).u32(5).bytes(b"abc").bytes;
        let expected = vec![(1_000_002_000, 9, b"abc".to_vec(), 0, 1)];
        assert_eq!(read_all(&bytes).unwrap(), (expected, false));
    }
}

#[test]
fn pcapng_is_read_over_sections_interfaces_and_unknown_blocks() {
    for order in BOTH {
        let other = if order == ByteOrder::Big { ByteOrder::Little } else { ByteOrder::Big };
        let first = Writer::new(order)
            .section()
            .interface(1, 0, &[(2, b"eth0"), (9, &[9])])
            .interface(101, 0, &[(2, b"tun0")])
            .packet(1, 5, 3, b"tun")
            .block(0x0bad, &|body| body.bytes(&[7; 2_000_000]))
            .packet(0, 1 << 33, 60, b"ether")
            .bytes;
        let second = Writer::new(other)
            .section()
            .interface(113, 2, &[])
            .block(2, &|body| body.u16(0).u16(1).u32(0).u32(6).u32(2).u32(2).bytes(b"pb"))
            .block(3, &|body| body.u32(9).bytes(b"sp"))
            .bytes;
        let (frames, cut) = read_all(&[first, second].concat()).unwrap();
        let expected = vec![
            (5_000, 3, b"tun".to_vec(), 1, 101),
            (1 << 33, 60, b"ether".to_vec(), 0, 1),
            (6_000, 2, b"pb".to_vec(), 2, 113),
            (6_000, 9, b"sp".to_vec(), 2, 113),
        ];
        assert_eq!((frames, cut), (expected, false));
    }
}

#[test]
fn interfaces_have_their_names() {
    let bytes = Writer::new(ByteOrder::Little)
        .section()
        .interface(1, 96, &[(2, b"eth0")])
        .packet(0, 0, 1, b"x")
        .bytes;
    let mut file = CaptureFile::from_reader(Cursor::new(bytes), "memory").unwrap();
    assert!(file.next_frame().unwrap().is_some());
    let expected =
        Interface { name: Some("eth0".to_owned()), link: LinkType::ETHERNET, snaplen: 96 };
    assert_eq!(file.interfaces(), [expected]);
}

#[test]
fn time_follows_resolution_and_offset_of_the_interface() {
    let check = |options: &[(u16, &[u8])], ticks: u64, expected: u64| {
        let writer = Writer::new(ByteOrder::Little).section().interface(1, 0, options);
        let (frames, _) = read_all(&writer.packet(0, ticks, 1, b"x").bytes).unwrap();
        assert_eq!(frames[0].0, expected, "{options:?}");
    };
    check(&[], 3, 3_000);
    check(&[(9, &[0])], 3, 3_000_000_000);
    check(&[(9, &[9])], 3, 3);
    check(&[(9, &[12])], 3_999, 3);
    check(&[(9, &[127])], u64::MAX, 1);
    check(&[(9, &[0x80 | 10])], 1 << 11, 2_000_000_000);
    check(&[(9, &[0x80])], u64::MAX, u64::MAX);
    check(&[(9, &[0xff])], u64::MAX, 0);
    check(&[(9, &[0])], u64::MAX, u64::MAX);
    check(&[(14, &2_i64.to_le_bytes())], 3, 2_000_003_000);
    check(&[(14, &(-2_i64).to_le_bytes())], 3, 0);
    check(&[(14, &i64::MAX.to_le_bytes())], 3, i64::MAX as u64 + 3_000);
}

#[test]
fn a_file_that_ends_within_a_record_gives_what_is_before_it() {
    let pcap = Writer::new(ByteOrder::Little).pcap_header(0xa1b2_c3d4);
    let pcapng = Writer::new(ByteOrder::Little).section().interface(1, 0, &[]);
    let pcap_start = pcap.bytes.len();
    let pcapng_start = pcapng.bytes.len();
    let pcap = pcap.pcap_record(1, 0, 4, b"full").pcap_record(1, 0, 4, b"half").bytes;
    let pcapng = pcapng.packet(0, 0, 4, b"full").packet(0, 0, 4, b"half").bytes;
    let unknown = Writer::new(ByteOrder::Little).block(99, &|body| body.bytes(&[0; 24])).bytes;
    let pcapng = [pcapng, unknown].concat();
    for (bytes, start, records) in
        [(pcap, pcap_start, [20, 20, 0]), (pcapng, pcapng_start, [36, 36, 36])]
    {
        for len in start..bytes.len() {
            let (frames, cut) = read_all(&bytes[..len]).unwrap();
            let ends = [start, start + records[0], start + records[0] + records[1]];
            assert_eq!(cut, !ends.contains(&len), "{len}");
            let whole = ends[1..].iter().filter(|end| **end <= len).count();
            assert_eq!(frames.len(), whole, "{len}");
        }
    }
}

#[test]
fn a_file_that_ends_within_its_header_is_corrupt() {
    for bytes in [
        Writer::new(ByteOrder::Little).pcap_header(0xa1b2_c3d4).bytes,
        Writer::new(ByteOrder::Little).section().bytes,
    ] {
        for len in 4..bytes.len() {
            assert_eq!(fault(&bytes[..len]).1, Fault::HeaderTruncated, "{len}");
        }
    }
}

#[test]
fn what_is_no_capture_file_is_refused_with_what_it_begins_with() {
    let gzip = ", as what gzip compressed does: uncompress it first";
    let xz = ", as what xz compressed does: uncompress it first";
    let snoop = ", as a snoop capture does: convert it with editcap first";
    for (bytes, found, remark) in [
        (b"\x1f\x8b\x08\0".as_slice(), "1f8b0800", gzip),
        (b"\xfd7zXZ\0", "fd377a58", xz),
        (b"snoop\0\0\0", "736e6f6f", snoop),
        (b"", "", "; it is empty"),
        (b"ab", "6162", ""),
    ] {
        match read_all(bytes) {
            Err(error @ FileError::NotCapture { .. }) => {
                let text =
                    format!("memory is no pcap or pcapng file: it begins with `{found}`{remark}");
                assert_eq!(error.to_string(), text);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn errors_name_file_place_and_fault() {
    let bytes = Writer::new(ByteOrder::Little)
        .pcap_header(0xa1b2_c3d4)
        .pcap_record(1, 0, 4, b"full")
        .u32(1)
        .u32(2)
        .u32(MAX_CAPTURED + 1)
        .u32(5)
        .bytes;
    assert_eq!(
        read_all(&bytes).unwrap_err().to_string(),
        "memory is corrupt at byte 44: a length of 262145 bytes is above the limit of 262144"
    );
}

#[test]
fn blocks_that_make_no_sense_have_their_fault() {
    let start = || Writer::new(ByteOrder::Little).section().interface(1, 0, &[]);
    let place = start().bytes.len() as u64;
    let check = |writer: Writer, expected: Fault| {
        assert_eq!(fault(&writer.bytes), (place, expected));
    };
    check(start().u32(6).u32(8).u32(0), Fault::BlockLength { length: 8 });
    check(start().u32(6).u32(30).u32(0), Fault::BlockLength { length: 30 });
    check(
        start().u32(6).u32(1 << 21).u32(0),
        Fault::TooLong { length: 1 << 21, limit: MAX_BLOCK as u32 },
    );
    check(start().u32(6).u32(12).u32(16), Fault::Trailer { length: 12, trailer: 16 });
    check(start().block(6, &|body| body), Fault::BodyTooShort);
    check(start().packet(7, 0, 1, b"x"), Fault::UnknownInterface { interface: 7 });
    check(
        start().block(6, &|body| body.u32(0).u32(0).u32(0).u32(9).u32(9).u32(0)),
        Fault::CapturedLength { length: 9, room: 4 },
    );
    check(
        start().block(1, &|body| body.u32(1).u32(0).u16(2).u16(5)),
        Fault::Option { code: 2, length: 5 },
    );
    check(start().u32(0x0a0d_0d0a).u32(28).u32(0).u32(0).u32(0).u32(0).u32(28), Fault::ByteOrder);
}

#[test]
fn a_packet_may_not_name_an_interface_of_another_section() {
    let bytes = Writer::new(ByteOrder::Little)
        .section()
        .interface(1, 0, &[])
        .section()
        .packet(0, 0, 1, b"x")
        .bytes;
    assert_eq!(fault(&bytes).1, Fault::UnknownInterface { interface: 0 });
}

#[test]
fn a_reader_that_fails_is_an_error_with_its_place() {
    struct Broken(Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("broken")),
                count => Ok(count),
            }
        }
    }
    let bytes = Writer::new(ByteOrder::Little).pcap_header(0xa1b2_c3d4).bytes;
    match read_from(Broken(Cursor::new(bytes))) {
        Err(FileError::Read { offset, .. }) => assert_eq!(offset, 24),
        other => panic!("{other:?}"),
    }
}

/// Gives a few bytes at a time, and is interrupted in between.
struct Trickle {
    bytes: Cursor<Vec<u8>>,
    calls: usize,
}

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(7);
        self.bytes.read(&mut buffer[..count])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_slow_reader_gives_the_same_frames_as_a_fast_one(
        lengths in proptest::collection::vec(0usize..3_000, 1..60),
        is_pcapng in any::<bool>(),
    ) {
        let mut writer = Writer::new(ByteOrder::Little);
        writer = if is_pcapng {
            writer.section().interface(1, 0, &[])
        } else {
            writer.pcap_header(0xa1b2_c3d4)
        };
        for (index, length) in lengths.iter().enumerate() {
            let data = vec![index as u8; *length];
            writer = if is_pcapng {
                writer.packet(0, index as u64, *length as u32, &data)
            } else {
                writer.pcap_record(0, index as u32, *length as u32, &data)
            };
        }
        let fast = read_all(&writer.bytes).unwrap();
        prop_assert_eq!(fast.0.len(), lengths.len());
        for (frame, (index, length)) in fast.0.iter().zip(lengths.iter().enumerate()) {
            prop_assert_eq!(frame.0, index as u64 * 1_000);
            prop_assert_eq!(&frame.2, &vec![index as u8; *length]);
        }
        let slow = read_from(Trickle { bytes: Cursor::new(writer.bytes), calls: 0 }).unwrap();
        prop_assert_eq!(fast, slow);
    }
}

#[test]
fn a_long_file_passes_through_the_window() {
    let mut writer = Writer::new(ByteOrder::Little).pcap_header(0xa1b2_c3d4);
    for index in 0..40_u32 {
        writer = writer.pcap_record(index, 0, 1, &vec![index as u8; 200_000]);
    }
    let (frames, cut) = read_all(&writer.bytes).unwrap();
    assert_eq!((frames.len(), cut), (40, false));
    for (index, frame) in frames.iter().enumerate() {
        assert_eq!(frame.2, vec![index as u8; 200_000]);
    }
}

/// Reads as the threads of a replay do: pieces are read ahead of their turn.
fn read_in_pieces(bytes: &[u8]) -> Result<(Vec<Owned>, bool), FileError> {
    let mut stored = tempfile::NamedTempFile::new().unwrap();
    stored.write_all(bytes).unwrap();
    let mut file = CaptureFile::open(stored.path())?;
    let mut pieces = file.pieces().unwrap();
    let mut frames = Vec::new();
    while !file.has_ended() {
        let mut chunks = [Chunk::default(), Chunk::default(), Chunk::default()];
        let claimed = [pieces.claim(), pieces.claim(), pieces.claim()];
        for (piece, chunk) in claimed.into_iter().zip(&mut chunks).rev() {
            piece.read(chunk);
        }
        for mut chunk in chunks {
            file.scan(&mut chunk);
            for (index, frame) in chunk.frames().enumerate() {
                let (data, interface) = (frame.data.to_vec(), chunk.interface(index));
                frames.push((frame.time.0, frame.wire_len.0, data, interface, frame.link.0));
            }
        }
    }
    file.end()?;
    Ok((frames, file.truncated()))
}

#[test]
fn pieces_read_ahead_give_what_a_stream_gives_wherever_the_file_ends() {
    let mut pcap = Writer::new(ByteOrder::Big).pcap_header(0xa1b2_3c4d);
    let mut pcapng = Writer::new(ByteOrder::Little).section().interface(1, 0, &[]);
    // Small and long records, some longer than a piece, and blocks to be skipped.
    for (index, len) in [60, 1500, 200_000, 9, 262_144, 0, 65_000].repeat(3).into_iter().enumerate()
    {
        let (ticks, data) = (index as u32, vec![index as u8; len]);
        pcap = pcap.pcap_record(ticks, 7, len as u32, &data);
        pcapng = pcapng.packet(0, u64::from(ticks), len as u32, &data);
        pcapng = pcapng.block(0x0bad, &|body| body.bytes(&vec![7; len * 3]));
    }
    for bytes in [pcap.bytes, pcapng.bytes] {
        let whole = read_in_pieces(&bytes).unwrap();
        assert_eq!((whole.0.len(), whole.1), (21, false));
        for cut in [0, 1, 3, 4, 11, 12, 70_000, 300_000, 600_001, 1 << 20] {
            let bytes = &bytes[..bytes.len() - cut];
            let pieces = read_in_pieces(bytes).unwrap();
            assert!(pieces == read_all(bytes).unwrap(), "{cut} bytes are missing");
            assert_eq!(pieces.1, cut > 0, "{cut}");
        }
        let corrupt = [&bytes[..], &[0xff; 64]].concat();
        let error = read_in_pieces(&corrupt).unwrap_err().to_string();
        assert!(error.contains(&format!("corrupt at byte {}", bytes.len())), "{error}");
    }
}

#[test]
fn a_snaplen_that_is_none_or_too_small_cuts_nothing() {
    let data = [5; 100];
    for snaplen in [0, 1, 96] {
        let header = |w: Writer| w.u32(0xa1b2_c3d4).u16(2).u16(4).u32(0).u32(0).u32(snaplen).u32(1);
        let pcap = header(Writer::new(ByteOrder::Little)).pcap_record(0, 0, 1500, &data).bytes;
        let pcapng = Writer::new(ByteOrder::Little).section().interface(1, snaplen, &[]);
        let pcapng = pcapng.packet(0, 0, 1500, &data).bytes;
        for bytes in [pcap, pcapng] {
            let expected = vec![(0, 1500, data.to_vec(), 0, 1)];
            assert_eq!(read_all(&bytes).unwrap(), (expected, false), "{snaplen}");
        }
    }
}

#[test]
fn damaged_files_end_in_frames_or_an_error() {
    let pcap = (0..20).fold(Writer::new(ByteOrder::Little).pcap_header(0xa1b2_c3d4), |w, index| {
        w.pcap_record(index, 0, 60, &[index as u8; 60])
    });
    let pcapng = (0..20).fold(
        Writer::new(ByteOrder::Big).section().interface(1, 0, &[(2, b"eth0"), (9, &[9])]),
        |w, index| w.packet(0, index, 60, &[index as u8; 60]),
    );
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut ends, mut errors) = (0, 0);
    for original in [pcap.bytes, pcapng.bytes] {
        for _ in 0..1_000 {
            let mut bytes = original.clone();
            for _ in 0..3 {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let position = (random >> 32) as usize % bytes.len();
                bytes[position] = (random >> 56) as u8;
            }
            match read_all(&bytes) {
                Ok((frames, _)) => {
                    ends += 1;
                    assert!(frames.len() <= bytes.len() / 12);
                }
                Err(_) => errors += 1,
            }
        }
    }
    assert!(ends > 100 && errors > 100, "{ends} {errors}");
}
