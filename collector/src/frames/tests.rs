//! Answers out of segments that lie in a folder.

use std::net::SocketAddr;
use std::path::Path;

use proptest::prelude::*;
use wire::units::{UnixNanos, WireLen};

use super::*;
use crate::store::blocks::{self, Block, Next, StoredFrame};
use crate::store::catalog::Sealed;
use crate::store::index::{Index, IndexedInterface};
use crate::store::{pcapng, segment};

/// A frame as tests know it: time, interface, bytes.
type Known = (u64, String, Vec<u8>);

const ALL: Question = Question {
    from: UnixNanos(0),
    to: UnixNanos(u64::MAX),
    sensor: None,
    host: None,
    port: None,
    filter: None,
    limit: None,
};

fn udp(from: &str, to: &str) -> Vec<u8> {
    let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
    perf::frames::udp(parse(from), parse(to), b"datagram")
}

/// Writes a segment with frames of these interfaces, sealed or not.
fn write(folder: &Path, catalog: &Catalog, name: &str, frames: &[Known], is_sealed: bool) {
    let mut bytes = Vec::new();
    pcapng::push_section_header(&mut bytes);
    let mut names: Vec<&str> = Vec::new();
    for (time, interface, data) in frames {
        let number = names.iter().position(|name| name == interface).unwrap_or_else(|| {
            pcapng::push_interface(&mut bytes, interface, 1, "");
            names.push(interface);
            names.len() - 1
        });
        let wire_len = WireLen(data.len() as u32);
        let (interface, time) = (number as u32, UnixNanos(*time));
        pcapng::push_frame(&mut bytes, &StoredFrame { interface, time, wire_len, data });
    }
    let path = folder.join(name);
    catalog.begin(path.clone());
    let hidden = segment::hidden_path(&path);
    std::fs::write(&hidden, &bytes).unwrap();
    if is_sealed {
        let file = std::fs::File::open(&hidden).unwrap();
        let index = Index::of(&file, bytes.len() as u64).unwrap().index;
        pcapng::push_index(&mut bytes, &index.encode());
        std::fs::write(&path, &bytes).unwrap();
        std::fs::remove_file(hidden).unwrap();
        catalog.seal(path.clone(), Sealed::read(&path).unwrap());
    }
}

/// All frames of an answer.
fn ask(question: &Question, catalog: &Catalog) -> (Vec<Known>, Told) {
    let mut file = Vec::new();
    let told = answer(
        question,
        catalog,
        || true,
        |piece| {
            assert!(!piece.is_empty());
            file.extend_from_slice(&piece);
            Ok(())
        },
    );
    (read(&file), told.unwrap())
}

fn read(mut file: &[u8]) -> Vec<Known> {
    let (mut names, mut frames) = (Vec::new(), Vec::new());
    while let Next::Whole(block, length) = blocks::next(file) {
        match block {
            Block::Interface(interface) => names.push(interface.name.to_owned()),
            Block::Packet(frame) => {
                let name = names[frame.interface as usize].clone();
                frames.push((frame.time.0, name, frame.data.to_vec()));
            }
            _ => {}
        }
        file = &file[length..];
    }
    assert!(file.is_empty());
    frames
}

fn known(time: u64, interface: &str, data: &[u8]) -> Known {
    (time, interface.to_owned(), data.to_vec())
}

#[test]
fn frames_of_sealed_and_open_segments_come_in_the_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    let data = udp("192.0.2.1:1", "192.0.2.2:2");
    let first =
        [known(50, "a/eth0", &data), known(10, "b/eth0", &data), known(40, "a/eth1", &data)];
    let second = [known(30, "b/eth0", &data), known(45, "c/eth0", &data)];
    let third = [known(20, "c/eth0", &data), known(60, "a/eth0", &data)];
    write(folder.path(), &catalog, "1.pcapng", &first, true);
    write(folder.path(), &catalog, "2.pcapng", &second, true);
    write(folder.path(), &catalog, "3.pcapng", &third, false);
    let (frames, told) = ask(&ALL, &catalog);
    let times: Vec<_> = frames.iter().map(|(time, name, _)| (*time, name.as_str())).collect();
    let expected = [
        (10, "b/eth0"),
        (20, "c/eth0"),
        (30, "b/eth0"),
        (40, "a/eth1"),
        (45, "c/eth0"),
        (50, "a/eth0"),
        (60, "a/eth0"),
    ];
    assert_eq!(times, expected);
    assert_eq!(told, Told { frames: 7, is_limited: false, late: 0 });
    let (frames, told) = ask(&Question { limit: Some(3), ..ALL }, &catalog);
    assert_eq!((frames.len(), told.is_limited), (3, true));
}

#[test]
fn each_condition_leaves_out_what_does_not_meet_it() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    let outer = udp("10.0.0.1:50000", "10.0.0.2:4789");
    let inner = udp("192.0.2.9:5000", "198.51.100.7:53");
    let tunnel = perf::frames::udp(
        "10.0.0.1:50000".parse().unwrap(),
        "10.0.0.2:4789".parse().unwrap(),
        &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat(),
    );
    let frames = [
        known(1, "a/eth0", &inner),
        known(2, "b/eth0", &outer),
        known(3, "b/eth0", &tunnel),
        known(4, "a/eth0", &[0; 60]),
    ];
    write(folder.path(), &catalog, "1.pcapng", &frames, true);
    let times = |question: Question| -> Vec<u64> {
        ask(&question, &catalog).0.iter().map(|(time, ..)| *time).collect()
    };
    let host = |text: &str| Some(text.parse::<std::net::IpAddr>().unwrap().into());
    assert_eq!(times(Question { from: UnixNanos(2), to: UnixNanos(3), ..ALL }), [2, 3]);
    assert_eq!(times(Question { sensor: Some("a".into()), ..ALL }), [1, 4]);
    assert_eq!(times(Question { sensor: Some("a/eth0".into()), ..ALL }), [0; 0]);
    assert_eq!(times(Question { host: host("192.0.2.9"), ..ALL }), [1, 3]);
    assert_eq!(times(Question { host: host("10.0.0.2"), ..ALL }), [2]);
    assert_eq!(times(Question { port: Some(53), ..ALL }), [1, 3]);
    assert_eq!(times(Question { host: host("10.0.0.1"), port: Some(53), ..ALL }), [0; 0]);
    let filter = |text| Some(Filter::new(text).unwrap());
    assert_eq!(times(Question { filter: filter("host 10.0.0.2"), ..ALL }), [2, 3]);
    assert_eq!(times(Question { filter: filter("not ip"), ..ALL }), [4]);
    assert_eq!(times(Question { filter: filter("udp"), port: Some(53), ..ALL }), [1, 3]);
}

#[test]
fn where_nothing_is_found_nothing_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    let none = Told { frames: 0, is_limited: false, late: 0 };
    assert_eq!(ask(&ALL, &catalog), (Vec::new(), none));
    write(folder.path(), &catalog, "1.pcapng", &[known(1, "a/eth0", b"x")], true);
    assert_eq!(ask(&Question { from: UnixNanos(2), ..ALL }, &catalog), (Vec::new(), none));
    // Deleted, and the catalog does not know it yet.
    std::fs::remove_file(folder.path().join("1.pcapng")).unwrap();
    assert_eq!(ask(&ALL, &catalog), (Vec::new(), none));
}

/// What comes of a question for everything: frames, and what is missing, as the file and the error say it.
fn ask_damaged(catalog: &Catalog) -> (Vec<Known>, String) {
    let mut file = Vec::new();
    let told = answer(
        &ALL,
        catalog,
        || true,
        |piece| {
            file.extend_from_slice(&piece);
            Ok(())
        },
    );
    let error = told.unwrap_err();
    let frames = read(&file);
    let AnswerError::Incomplete { told, .. } = &error else { panic!("{error}") };
    assert_eq!(told.frames, frames.len() as u64);
    let said = error.to_string();
    let is_in_file = file.windows(said.len()).any(|bytes| bytes == said.as_bytes());
    assert_eq!(is_in_file, !frames.is_empty(), "{said}");
    (frames, said)
}

/// Where frame number `number` begins in a file of frames with this content.
fn place(file: &[u8], data: &[u8], number: usize) -> usize {
    let mut places = file.windows(data.len()).enumerate().filter(|(_, bytes)| *bytes == data);
    places.nth(number).unwrap().0 - 28
}

#[test]
fn any_damage_to_the_length_or_kind_of_a_block_costs_frames_and_is_said() {
    let data = udp("192.0.2.1:1", "192.0.2.2:2");
    let frames: Vec<_> = (1..=5).map(|time| known(time, "a/eth0", &data)).collect();
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    write(folder.path(), &catalog, "1.pcapng", &frames, true);
    let path = folder.path().join("1.pcapng");
    let whole = std::fs::read(&path).unwrap();
    let third = place(&whole, &data, 2);
    let end = place(&whole, &data, 3) - 4;
    // Interface, length in front, captured length, length behind; each bit of them.
    for at in [4..8, 8..12, 20..24, end - third..end - third + 4].into_iter().flatten() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[third + at] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            if blocks::next(&damaged[third..]) == blocks::next(&whole[third..]) {
                continue;
            }
            if let Next::Whole(Block::Packet(frame), _) = blocks::next(&damaged[third..])
                && frame.interface == 0
            {
                // A shorter frame is one, too.
                assert!((20..24).contains(&at), "{at}");
                continue;
            }
            let (found, said) = ask_damaged(&catalog);
            let times: Vec<_> = found.iter().map(|(time, ..)| *time).collect();
            let is_one = times == [1, 2, 4, 5] && said.starts_with("not complete: 1 frame in 1 ");
            let is_rest = times == [1, 2] && said.starts_with("not complete: 3 frames in 1 ");
            assert!(is_one || is_rest, "byte {at}, bit {bit}: {times:?} {said}");
            let ends = "damaged part of 1.pcapng cannot be read";
            assert!(said.ends_with(ends), "{said}");
        }
    }
}

#[test]
fn a_damaged_part_costs_no_other_part_and_no_other_segment() {
    let data = vec![7; 60_000];
    let frames: Vec<_> = (1..=40).map(|time| known(time, "a/eth0", &data)).collect();
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    write(folder.path(), &catalog, "1.pcapng", &frames, true);
    write(folder.path(), &catalog, "2.pcapng", &[known(50, "b/eth0", b"other")], true);
    let path = folder.path().join("1.pcapng");
    let mut bytes = std::fs::read(&path).unwrap();
    let length_of_first = bytes.windows(4).position(|four| four == [7; 4]).unwrap() - 24;
    bytes[length_of_first..length_of_first + 4].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let (found, said) = ask_damaged(&catalog);
    let times: Vec<_> = found.iter().map(|(time, ..)| *time).collect();
    // 17 frames make a stride.
    assert_eq!(times, (18..=40).chain([50]).collect::<Vec<_>>());
    assert_eq!(said, "not complete: 17 frames in 1 damaged part of 1.pcapng cannot be read");
}

#[test]
fn segments_that_are_deleted_while_an_answer_is_sent_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    for time in 1..=3 {
        let frames = [known(time, "a/eth0", b"x")];
        write(folder.path(), &catalog, &format!("{time}.pcapng"), &frames, true);
    }
    let mut file = Vec::new();
    let told = answer(
        &ALL,
        &catalog,
        || true,
        |piece| {
            // Gone when its turn comes; it may be gone already.
            let _ = std::fs::remove_file(folder.path().join("3.pcapng"));
            file.extend_from_slice(&piece);
            Ok(())
        },
    );
    assert_eq!(read(&file).len(), 2);
    let said = told.unwrap_err().to_string();
    assert_eq!(said, "not complete: 1 segment was deleted meanwhile");
}

#[test]
fn segments_that_are_cut_short_or_have_no_index_and_a_damage_are_said() {
    let data = udp("192.0.2.1:1", "192.0.2.2:2");
    let frames: Vec<_> = (1..=5).map(|time| known(time, "a/eth0", &data)).collect();
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    write(folder.path(), &catalog, "1.pcapng", &frames, true);
    let path = folder.path().join("1.pcapng");
    let whole = std::fs::read(&path).unwrap();
    let fourth = place(&whole, &data, 3);
    std::fs::write(&path, &whole[..fourth + 10]).unwrap();
    let (found, said) = ask_damaged(&catalog);
    assert_eq!(found, frames[..3]);
    assert_eq!(said, "not complete: 2 frames in 1 damaged part of 1.pcapng cannot be read");
    // Found so at a start, it says nothing of what was in it.
    catalog.seal(path.clone(), Sealed::read(&path).unwrap());
    let (found, said) = ask_damaged(&catalog);
    assert_eq!(found, frames[..3]);
    assert_eq!(said, "not complete: 1 damaged part of 1.pcapng cannot be read");
    std::fs::write(&path, &whole[..20]).unwrap();
    assert_eq!(ask_damaged(&catalog).0, []);
    // An open one is cut where it is written just now.
    let hidden = segment::hidden_path(&path);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(hidden, &whole[..fourth + 10]).unwrap();
    catalog.begin(path);
    assert_eq!(ask(&ALL, &catalog).0, frames[..3]);
}

#[test]
fn an_answer_ends_when_nobody_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::default();
    write(folder.path(), &catalog, "1.pcapng", &[known(1, "a/eth0", b"x")], true);
    let told = answer(&ALL, &catalog, || true, |_| Err(ReaderGone));
    assert!(matches!(told, Err(AnswerError::ReaderGone)), "{told:?}");
    // Before anything is found.
    let nothing = Question { from: UnixNanos(0), host: None, port: Some(9), ..ALL };
    let data = udp("192.0.2.1:9", "192.0.2.2:9");
    write(folder.path(), &catalog, "2.pcapng", &[known(1, "a/eth0", &data)], true);
    let told = answer(&nothing, &catalog, || false, |_| panic!("nobody waits"));
    assert!(matches!(told, Err(AnswerError::ReaderGone)), "{told:?}");
}

#[test]
fn filters_that_no_file_can_answer_are_refused_with_the_reason() {
    let said = |text: &str| Filter::new(text).unwrap_err().to_string();
    assert!(said("hots 10.0.0.1").starts_with("filter \"hots 10.0.0.1\": "), "{}", said("hots 1"));
    assert!(said("inbound").contains("direction"), "{}", said("inbound"));
    // Makes sense for Ethernet alone.
    Filter::new("ether host 02:00:00:00:00:01").unwrap();
}

#[test]
fn frames_far_apart_in_time_leave_before_memory_is_full_and_count_as_late() {
    let mut merge = Merge::default();
    let data = vec![0; 60_000];
    let (name, description) = ("a/eth0".to_owned(), String::new());
    let interface = std::rc::Rc::new(IndexedInterface { name, linktype: 1, description });
    let frame = |time| {
        let wire_len = WireLen(60_000);
        StoredFrame { interface: 0, time: UnixNanos(time), wire_len, data: &data }
    };
    let mut popped = 0;
    // Each could still be preceded by others.
    for time in 0..2000 {
        merge.push(&interface, &frame(1000 + time));
        while merge.pop(UnixNanos(0)).is_some() {
            popped += 1;
        }
    }
    assert!((800..1000).contains(&popped), "{popped} of 2000 left for want of room");
    merge.push(&interface, &frame(5));
    assert!(merge.pop(UnixNanos(u64::MAX)).is_some());
    assert_eq!(merge.late(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_answer_is_all_frames_of_the_time_sorted(
        segments in prop::collection::vec(
            (prop::collection::vec((0..1000_u64, 0..3_u8), 0..40), any::<bool>()),
            0..6,
        ),
        from in 0..1000_u64,
        length in 0..1000_u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::default();
        let mut expected = Vec::new();
        for (number, (frames, is_sealed)) in segments.iter().enumerate() {
            let frames: Vec<_> = frames
                .iter()
                .enumerate()
                .map(|(place, (time, sensor))| {
                    known(*time, &format!("{sensor}/eth0"), &[number as u8, place as u8])
                })
                .collect();
            write(folder.path(), &catalog, &format!("{number}.pcapng"), &frames, *is_sealed);
            expected.extend(frames.into_iter().filter(|(time, ..)| (from..=from + length).contains(time)));
        }
        let question = Question { from: UnixNanos(from), to: UnixNanos(from + length), ..ALL };
        let (mut frames, told) = ask(&question, &catalog);
        prop_assert!(frames.is_sorted_by_key(|(time, ..)| *time));
        prop_assert_eq!(told.late, 0);
        frames.sort();
        expected.sort();
        prop_assert_eq!(frames, expected);
    }
}
