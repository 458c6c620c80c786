//! Sensors that send again what was not acknowledged, a log that is killed, cut from power and denied
//! room at any moment: at each start everything that was acknowledged is there, once.

use super::memory::Random;
use super::*;

/// What the sensors know: acknowledged records by sensor and epoch.
type Acknowledged = BTreeMap<(String, u64), u64>;

struct World {
    disk: Memory,
    random: Random,
    log: Option<RecordLog>,
    /// What is stored, as the committer keeps it.
    marks: Marks,
    /// What is staged behind it.
    taken: Marks,
    acknowledged: Acknowledged,
    epochs: [u64; 3],
    clock: u64,
}

const SENSORS: [&str; 3] = ["a", "b", "c"];

impl World {
    fn new(seed: u64) -> Self {
        let disk = Memory::default();
        let (log, _) = open(&disk);
        let (marks, taken) = (Marks::default(), Marks::default());
        Self {
            disk,
            random: Random(seed),
            log: Some(log),
            marks,
            taken,
            acknowledged: Acknowledged::new(),
            epochs: [1; 3],
            clock: 1,
        }
    }

    fn step(&mut self) {
        self.clock += 1 + self.random.below(3_600_000_000_000);
        match self.random.below(16) {
            0..=6 => self.send(),
            7 => _ = self.log().write(),
            8..=10 => self.commit(),
            11 => self.checkpoint(),
            12 => {
                // Its spool was lost.
                let sensor = self.random.below(3) as usize;
                self.epochs[sensor] += 1;
            }
            13 => self.refuse(),
            14 => self.fail_sync(),
            _ => self.crash(),
        }
    }

    fn log(&mut self) -> &mut RecordLog {
        self.log.as_mut().unwrap()
    }

    fn send(&mut self) {
        let index = self.random.below(3) as usize;
        let (sensor, epoch) = (SENSORS[index], self.epochs[index]);
        let first = self.taken.last(sensor, Stream::Records, epoch).0 + 1;
        let count = 1 + self.random.below(6) as u32;
        let now = UnixNanos(self.clock);
        stage(self.log(), sensor, epoch, first, count, now);
        let last = Sequence(first + u64::from(count) - 1);
        self.taken.advance(sensor, Stream::Records, epoch, last);
    }

    fn commit(&mut self) {
        let now = UnixNanos(self.clock);
        let log = self.log.as_mut().unwrap();
        commit(log);
        if log.is_due(now) {
            log.seal();
        }
        self.marks = self.taken.clone();
        for (sensor, epoch) in SENSORS.iter().zip(self.epochs) {
            let last = self.marks.last(sensor, Stream::Records, epoch).0;
            self.acknowledged.insert(((*sensor).to_owned(), epoch), last);
        }
    }

    fn checkpoint(&mut self) {
        let marks = self.marks.clone();
        self.log().write_checkpoint(&marks).unwrap();
    }

    /// A full disk, for a moment.
    fn refuse(&mut self) {
        self.disk.fail_writes(true);
        let _ = self.log().write();
        self.disk.fail_writes(false);
    }

    /// Ends the collector, and the machine perhaps soon after it.
    fn fail_sync(&mut self) {
        self.disk.fail_syncs(true);
        self.log().write().unwrap();
        let _ = self.log().sync();
        self.disk.fail_syncs(false);
        self.crash();
    }

    fn crash(&mut self) {
        self.log = None;
        if self.random.below(2) == 0 {
            self.disk.cut_power(&mut self.random);
        }
        self.start();
        // A start may be cut from power as well.
        if self.random.below(3) == 0 {
            self.log = None;
            self.disk.cut_power(&mut self.random);
            self.start();
        }
    }

    fn start(&mut self) {
        let (log, recovery) = open(&self.disk);
        assert_eq!(recovery.missing_bytes, 0);
        let stored = assert_stored_once(&log, &recovery.marks);
        for ((sensor, epoch), &last) in &self.acknowledged {
            let found = stored.get(&(sensor.clone(), *epoch)).map_or(0, |all| all.len() as u64);
            assert!(found >= last, "{sensor} {epoch}: {found} of {last} acknowledged records");
        }
        let (_, catalog) = log.source();
        assert_eq!(catalog.damaged_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
        self.marks = recovery.marks.clone();
        self.taken = recovery.marks;
        self.log = Some(log);
    }
}

#[test]
fn every_acknowledged_record_is_found_once_after_kills_power_cuts_and_failed_syncs() {
    for seed in 0..300 {
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..120).for_each(|_| world.step());
            world.crash();
        });
        assert!(result.is_ok(), "seed {seed}");
    }
}
