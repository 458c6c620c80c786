//! Indexes of files that were written as segments are.

use std::io::Write;

use proptest::prelude::*;
use wire::units::WireLen;

use super::*;

/// Frames as bytes that begin where tests want.
fn ethernet(from: &str, to: &str) -> Vec<u8> {
    perf::frames::udp(from.parse().unwrap(), to.parse().unwrap(), b"question")
}

fn frame(time: u64, interface: u32, data: &[u8]) -> StoredFrame<'_> {
    let wire_len = WireLen(data.len() as u32);
    StoredFrame { interface, time: UnixNanos(time), wire_len, data }
}

/// A segment of two interfaces with these frames.
fn segment(frames: &[StoredFrame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pcapng::push_section_header(&mut bytes);
    pcapng::push_interface(&mut bytes, "web-1/eth0", 1, "");
    pcapng::push_interface(&mut bytes, "db-1/eth0", 1, "1 conversation in 8");
    frames.iter().for_each(|frame| pcapng::push_frame(&mut bytes, frame));
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn index_of(bytes: &[u8]) -> Index {
    Index::of(&file(bytes), bytes.len() as u64).unwrap().index
}

fn address(text: &str) -> Option<Address> {
    Some(text.parse::<std::net::IpAddr>().unwrap().into())
}

#[test]
fn an_index_says_whose_frames_of_what_time_there_are_and_who_talks_in_them() {
    let question = ethernet("192.0.2.1:40000", "198.51.100.7:53");
    let inside = perf::frames::udp(
        "10.0.0.1:50000".parse().unwrap(),
        "10.0.0.2:4789".parse().unwrap(),
        &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &ethernet("[2001:db8::1]:1234", "[2001:db8::2]:80")]
            .concat(),
    );
    let bytes = segment(&[frame(30, 1, &question), frame(20, 0, &inside), frame(25, 0, b"odd")]);
    let index = index_of(&bytes);
    let names: Vec<_> = index.interfaces.iter().map(IndexedInterface::sensor).collect();
    assert_eq!(names, ["web-1", "db-1"]);
    let span = Span { first: UnixNanos(20), last: UnixNanos(30), frames: 3 };
    assert_eq!(index.span(), Some(span));
    for (host, port, is_there) in [
        (address("192.0.2.1"), Some(53), true),
        (address("198.51.100.7"), None, true),
        (address("2001:db8::2"), Some(80), true),
        // Of a tunnel, what is inside.
        (address("10.0.0.1"), None, false),
        (None, Some(4789), false),
        (None, Some(54), false),
        (address("192.0.2.2"), None, false),
        (None, None, true),
    ] {
        assert_eq!(index.may_have(host, port), is_there, "{host:?} {port:?}");
    }
}

#[test]
fn long_files_have_strides_that_cover_every_frame_once() {
    let data = vec![7; 60_000];
    let frames: Vec<_> = (0..100).map(|n| frame(1000 + n, 0, &data)).collect();
    let bytes = segment(&frames);
    let index = index_of(&bytes);
    assert!(index.strides.len() > 5, "{} strides of 6 MB", index.strides.len());
    assert_eq!(index.span().unwrap().frames, 100);
    let ends = index.strides.iter().map(|stride| stride.offset + u64::from(stride.length));
    let begins = index.strides[1..].iter().map(|stride| stride.offset);
    assert!(ends.zip(begins.chain([bytes.len() as u64])).all(|(end, begin)| end == begin));
    let spans: Vec<_> = index.strides.iter().map(|stride| (stride.first, stride.last)).collect();
    assert!(spans.is_sorted() && spans.iter().all(|(first, last)| first <= last));
}

#[test]
fn a_sealed_file_gives_the_index_that_was_written() {
    let question = ethernet("192.0.2.1:40000", "198.51.100.7:53");
    let mut bytes = segment(&[frame(30, 1, &question)]);
    let index = index_of(&bytes);
    assert_eq!(Index::read(&file(&bytes)).unwrap(), None, "not sealed");
    pcapng::push_index(&mut bytes, &index.encode());
    let sealed = file(&bytes);
    assert_eq!(Index::read(&sealed).unwrap().as_ref(), Some(&index));
    assert_eq!(Span::read(&sealed).unwrap(), index.span());
    let again = Index::of(&sealed, bytes.len() as u64).unwrap();
    assert!(again.has_index && again.index == index && again.end == bytes.len() as u64);
}

#[test]
fn a_segment_with_too_many_addresses_is_searched_for_each() {
    let mut builder = Builder::default();
    for number in 0..MOST_ADDRESSES as u32 + 1 {
        let address = Address::from_v4(number.to_be_bytes());
        builder.note(&Ends { addresses: Some([address; 2]), ports: None });
    }
    let index = builder.index();
    assert_eq!(index.addresses, None);
    assert!(index.may_have(address("203.0.113.1"), None));
    assert_eq!(Index::decode(&index.encode()), Some(index));
}

#[test]
fn other_programs_read_a_file_with_an_index() {
    assert!(perf::tools::require(&["tshark", "tcpdump"]), "tshark and tcpdump are needed");
    let question = ethernet("192.0.2.1:40000", "198.51.100.7:53");
    let mut bytes = segment(&[frame(30, 1, &question), frame(31, 0, &question)]);
    let index = index_of(&bytes).encode();
    pcapng::push_index(&mut bytes, &index);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pcapng");
    std::fs::write(&path, &bytes).unwrap();
    for program in ["tshark", "tcpdump"] {
        let output = std::process::Command::new(program).args(["-n", "-r"]).arg(&path).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program}: {output:?}");
        assert_eq!(text.lines().count(), 2, "{program}: {text}");
    }
}

proptest! {
    #[test]
    fn a_cut_file_has_an_index_of_its_whole_frames(cut in any::<prop::sample::Index>()) {
        let question = ethernet("192.0.2.1:40000", "198.51.100.7:53");
        let frames: Vec<_> = (0..20).map(|n| frame(n, 0, &question)).collect();
        let bytes = segment(&frames);
        let cut = cut.index(bytes.len());
        let found = index_of(&bytes[..cut]).span().map_or(0, |span| span.frames);
        let block = bytes.len() - segment(&frames[..19]).len();
        prop_assert_eq!(found, (cut.saturating_sub(segment(&[]).len()) / block) as u64);
    }

    #[test]
    fn a_changed_index_is_none_and_never_a_panic(
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        cut in any::<prop::sample::Index>(),
    ) {
        let question = ethernet("192.0.2.1:40000", "198.51.100.7:53");
        let encoded = index_of(&segment(&[frame(30, 1, &question)])).encode();
        let mut changed = encoded.clone();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        prop_assert_eq!(Index::decode(&changed), None);
        prop_assert_eq!(Index::decode(&encoded[..cut.index(encoded.len())]), None);
    }
}
