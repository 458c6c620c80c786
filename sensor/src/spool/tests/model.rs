//! Anything in any order, against what a collector and a bystander know.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What the spool does at random. Times are in tenths of a second.
#[derive(Clone, Debug)]
enum Act {
    Push(bool, usize),
    Turn,
    Pass(u64),
    Send,
    Acknowledge(bool, u8),
    Reconnect,
    Kill,
    CutPower(u64),
    End,
    Fail(bool),
    FillUp(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (any::<bool>(), 0usize..40_000).prop_map(|(is_alert, len)| Act::Push(is_alert, len)),
        4 => Just(Act::Turn),
        3 => (1u64..25).prop_map(Act::Pass),
        4 => Just(Act::Send),
        4 => (any::<bool>(), 0u8..=255).prop_map(|(is_alert, share)| Act::Acknowledge(is_alert, share)),
        2 => Just(Act::Reconnect),
        2 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::CutPower),
        1 => Just(Act::End),
        2 => any::<bool>().prop_map(Act::Fail),
        1 => (0u64..100_000).prop_map(Act::FillUp),
    ]
}

/// A spool, and what a collector and a bystander know of it.
struct Model {
    bench: Bench,
    /// Every record ever pushed by its text: is it an alert?
    pushed: BTreeMap<String, bool>,
    /// What the collector has stored, by spool, stream and number.
    stored: BTreeMap<(u64, bool, u64), String>,
    /// Sent on this connection and not yet stored.
    sent: Vec<(bool, u64, String)>,
    /// Highest number sent on this connection, by lane.
    cursor: [u64; 2],
    /// The disk failed, or the power: records may be lost.
    has_failed: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            bench: Bench::with(4 << 20, Duration::from_secs(1_000_000)),
            pushed: BTreeMap::new(),
            stored: BTreeMap::new(),
            sent: Vec::new(),
            cursor: [0; 2],
            has_failed: false,
        }
    }

    fn act(&mut self, act: &Act) {
        let bench = &mut self.bench;
        match act {
            Act::Push(is_alert, len) => {
                let text = format!("{}:{}", self.pushed.len(), "x".repeat(*len));
                self.pushed.insert(text.clone(), *is_alert);
                bench.push(if *is_alert { Alert } else { Flow }, text);
                // The uplink flushes in the turn in which a record came.
                bench.turn();
            }
            Act::Turn => bench.turn(),
            Act::Pass(tenths) => bench.pass(Duration::from_millis(tenths * 100)),
            Act::Send => {
                self.send();
            }
            Act::Acknowledge(is_alert, share) => self.acknowledge(*is_alert, *share),
            Act::Reconnect => self.reconnect(),
            Act::Kill => self.restart(|_| {}),
            Act::End => {
                let now = bench.now();
                bench.spool().close(now);
                self.restart(|_| {});
            }
            Act::CutPower(seed) => {
                self.has_failed = true;
                let mut random = *seed;
                self.restart(|disk| {
                    disk.cut_power(|below| {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (random >> 33) % below
                    });
                });
            }
            Act::Fail(is_failing) => {
                self.has_failed |= is_failing;
                bench.disk.fail(is_failing.then_some(io::ErrorKind::StorageFull));
            }
            Act::FillUp(room) => {
                self.has_failed = true;
                bench.disk.fill_up(Some(*room));
            }
        }
    }

    /// A collector takes what it is sent: in order, and no number for two records.
    fn send(&mut self) -> usize {
        let (epoch, sent) = (self.bench.spool().epoch(), self.bench.sent());
        let count = sent.len();
        for (stream, number, text) in sent {
            let is_alert = stream == Stream::Alerts;
            assert_eq!(self.pushed.get(&text), Some(&is_alert), "{text} was never pushed there");
            let cursor = &mut self.cursor[usize::from(!is_alert)];
            assert!(number > *cursor, "order");
            *cursor = number;
            if let Some(before) = self.stored.get(&(epoch, is_alert, number)) {
                assert_eq!(*before, text, "one number for two records");
            }
            self.sent.push((is_alert, number, text));
        }
        count
    }

    /// It stores a share of what it was sent on a stream, in 256ths.
    fn acknowledge(&mut self, is_alert: bool, share: u8) {
        let lane: Vec<_> = self.sent.iter().filter(|it| it.0 == is_alert).collect();
        let Some(last) = lane.get(lane.len() * usize::from(share) / 256) else { return };
        let through = last.1;
        let stream = if is_alert { Stream::Alerts } else { Stream::Records };
        assert!(self.bench.spool().acknowledge(stream, Sequence(through)));
        let (stored, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|it| it.0 == is_alert && it.1 <= through);
        self.sent = left;
        let epoch = self.bench.spool().epoch();
        let stored = stored.into_iter();
        self.stored.extend(stored.map(|(lane, number, text)| ((epoch, lane, number), text)));
    }

    fn reconnect(&mut self) {
        self.bench.spool().rewind();
        (self.cursor, self.sent) = ([0; 2], Vec::new());
    }

    fn restart(&mut self, meanwhile: impl FnOnce(&MemoryDisk)) {
        self.bench.kill();
        meanwhile(&self.bench.disk);
        self.bench.passed += Duration::from_millis(100);
        self.bench.open();
        (self.cursor, self.sent) = ([0; 2], Vec::new());
    }

    /// What holds at any time.
    fn check(&self) {
        let spool = self.bench.spool.as_ref().unwrap();
        let ledger = spool.delivery().to_ledger();
        let lost: u64 = ledger.lost.values().sum();
        assert_eq!(ledger.produced, ledger.acknowledged + ledger.in_flight + lost);
        assert_eq!(spool.pending(), ledger.in_flight);
    }

    /// The disk is well again: all that is left is delivered.
    fn settle(&mut self) {
        self.bench.disk.fail(None);
        self.bench.disk.fill_up(None);
        self.bench.pass(INTERVAL * 2);
        self.bench.pass(INTERVAL * 2);
        self.reconnect();
        let in_flight = self.bench.spool().delivery().in_flight();
        assert_eq!(self.send() as u64, in_flight, "what is in flight can be sent");
        let left = self.sent.iter().map(|(_, _, text)| text);
        let all: BTreeSet<&String> = self.stored.values().chain(left).collect();
        let is_full = self.bench.lost(LossReason::SpoolFull) > 0;
        assert!(self.has_failed || is_full || all.len() == self.pushed.len(), "records are gone");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens in whatever order: no number is ever used for two records, order holds, the sums
    /// hold at any time, and as long as the disk neither fails nor loses power nothing is lost.
    #[test]
    fn whatever_happens_every_record_is_accounted_for(
        acts in proptest::collection::vec(act(), 1..120),
    ) {
        let mut model = Model::new();
        for act in &acts {
            model.act(act);
            model.check();
        }
        model.settle();
    }
}
