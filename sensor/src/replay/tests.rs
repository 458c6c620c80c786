//! What a panic of a worker costs: a capture with a frame that makes its worker fail on purpose.

use std::fs;

use perf::events::Events;
use perf::frames::{self, SYN};
use perf::pcap::{CaptureFile, Format};

use super::*;
use crate::config::EventOutput;
use crate::worker::tests::POISON;

#[test]
fn events_until_a_panic_are_written_and_the_end_is_an_error() {
    const BEGIN: u64 = 1_700_000_000_000_000_000;
    const MILLISECOND: u64 = 1_000_000;
    // More than what is under way between two workers, with a connection now and then.
    const FRAMES: u64 = 12_000;
    let mut capture = CaptureFile::new(Format::USUAL);
    for number in 0..FRAMES {
        let source = format!("198.18.0.1:{}", 1 + number).parse().unwrap();
        let target = "198.19.0.2:80".parse().unwrap();
        let is_new = number % 400 == 0;
        let frame = match is_new {
            true => frames::tcp(source, target, SYN, b""),
            false => frames::udp(source, target, &[0; 1400]),
        };
        capture.add(BEGIN + number * 10 * MILLISECOND, &frame);
    }
    let (from, to) = ("198.18.0.1:7".parse().unwrap(), "198.19.0.2:7".parse().unwrap());
    capture.add(BEGIN + FRAMES * 10 * MILLISECOND, &frames::udp(from, to, POISON));
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("capture");
    fs::write(&path, capture.bytes()).unwrap();
    for workers in [1, 2] {
        let events = folder.path().join(format!("eve-{workers}.json"));
        let mut config = Config::without_file();
        config.events.output = EventOutput::File(events.clone());
        let error = run(&config, "test", &path, workers).unwrap_err();
        assert!(matches!(error, ReplayError::WorkerGone), "{error}");
        let text = fs::read_to_string(&events).unwrap();
        assert!(text.ends_with('\n'), "{workers} workers: {text}");
        let found = Events::parse(&text).connections().len();
        assert!((1..=30).contains(&found), "{workers} workers: {found}");
    }
}
