//! What an outage left is sent with little memory.

use super::*;

/// The number of the last record of a message.
fn last_of(message: &[u8]) -> Sequence {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.push(message), message.len());
    match decoder.next_message().unwrap() {
        Some(Message::Records(batch)) => batch.last(),
        other => panic!("{other:?}"),
    }
}

/// A spool on the real disk with so many records, sent and acknowledged in pieces. Says how many bytes it
/// allocated at most.
fn replay(records: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let settings = SpoolSettings { path, max_bytes: 1 << 30, max_age: Duration::from_secs(3600) };
    let reopen = || {
        let now = Now { monotonic: Instant::now(), unix: UnixNanos(START) };
        let (settings, disk) = (settings.clone(), Arc::new(RealDisk));
        (open(settings, disk, MEMORY, now, Arc::default()).unwrap(), now)
    };
    let (mut spool, now) = reopen();
    for number in 0..records {
        spool.push(Flow, format!("{number:0500}").into_bytes(), now.unix);
        if number % 500 == 0 {
            spool.work(now);
        }
    }
    spool.work(now);
    drop(spool);
    let mut sent = 0;
    let memory = allocation_counter::measure(|| {
        let (mut spool, now) = reopen();
        let mut out = Vec::new();
        while let Some(batch) = spool.next_batch(now.monotonic) {
            out.clear();
            spool.finish_batch(&batch, &mut out);
            sent += 1;
            if sent % 8 == 0 {
                assert!(spool.acknowledge(Stream::Records, last_of(&out)));
            }
        }
        assert!(spool.acknowledge(Stream::Records, last_of(&out)));
        assert!(spool.is_empty());
    });
    memory.bytes_max
}

#[test]
fn a_replay_takes_the_same_memory_however_much_there_is() {
    let (little, much) = (replay(10_000), replay(80_000));
    assert!(much < 4 << 20, "{much}");
    assert!(much <= little + little / 4, "{little} for 5 MB, {much} for 40 MB");
}
