//! The supervisor in virtual time, with workers that exist in name only and files in the place of sockets.

use crossbeam_channel::{Receiver, bounded};
use perf::lab::Lab;

use super::*;
use crate::afpacket::{Ring, RingConfig};
use crate::pipeline::ToRecorder;

const WORKERS: usize = 2;

/// A supervisor of two workers on loopback, and what its workers would see.
struct Scene {
    supervisor: Supervisor,
    board: Arc<Board>,
    counters: Arc<Counters>,
    reserve: Reserve,
    now: Instant,
    /// Kept, so that news finds a queue.
    _news: Receiver<ToRecorder>,
}

impl Scene {
    fn new(sockets: usize) -> Self {
        let names = vec!["lo".to_owned()];
        let board = Arc::new(Board::new(WORKERS, 1));
        board.open();
        let counters = Arc::new(Counters::new(names.clone(), WORKERS));
        let reserve = Reserve::default();
        (0..sockets).for_each(|_| reserve.give_back(Unbound::of_file()));
        let (say, news) = bounded(1024);
        let supervisor = Supervisor::new(Parts {
            board: Arc::clone(&board),
            health: Arc::new(Health::new(Arc::clone(&counters))),
            announcer: Arc::new(Announcer::new(names.clone(), WORKERS, say)),
            status: Arc::new(SupervisorStatus::new(names, None)),
            counters: Arc::clone(&counters),
            reserve: reserve.clone(),
            fanout: None,
            scopes: vec![("lo".into(), Scope::One(Interface::find("lo").unwrap()))],
            lookout: None,
        });
        Self { supervisor, board, counters, reserve, now: Instant::now(), _news: news }
    }

    /// Time goes on, with a look every tenth of a second; the workers whose heart beats are named.
    fn pass(&mut self, time: Duration, alive: &[usize]) {
        let end = self.now + time;
        while self.now < end {
            self.now += LOOK_EVERY;
            for worker in alive {
                self.counters.workers()[*worker].worker.heartbeat.add(1);
            }
            let _ = self.supervisor.look(self.now);
        }
    }

    fn call(&self, worker: usize) -> Arc<Gathering> {
        self.board.call_of(worker, 0).unwrap()
    }

    /// A worker opens its ring, joins and begins, as far as it is let.
    fn follow(&self, worker: usize) {
        let call = self.call(worker);
        if call.stage(worker) == Stage::Called {
            assert!(call.take_socket(worker).is_some());
            assert!(call.advance(worker, Stage::Called, Stage::Opened));
            assert!(call.advance(worker, Stage::Opened, Stage::Joined));
        }
        if call.is_released() {
            let _ = call.advance(worker, Stage::Joined, Stage::Live);
        }
    }

    /// All workers read.
    fn begin(&mut self) {
        for _ in 0..3 {
            self.pass(LOOK_EVERY, &[0, 1]);
            (0..WORKERS).for_each(|worker| self.follow(worker));
        }
        self.pass(LOOK_EVERY, &[0, 1]);
        assert_eq!(self.supervisor.interfaces[0].live(), [0, 1]);
    }

    fn uncaptured(&self) -> Duration {
        Duration::from_nanos(self.supervisor.status.uncaptured[0].load(Ordering::Relaxed))
    }
}

#[test]
fn rings_that_find_no_memory_cost_no_socket_and_are_tried_again_after_1_2_and_4_seconds() {
    let mut scene = Scene::new(3);
    for seconds in [1, 2, 4] {
        scene.pass(LOOK_EVERY, &[0, 1]);
        let call = scene.call(0);
        assert_eq!((call.stage(0), scene.reserve.left()), (Stage::Called, 1));
        for worker in 0..WORKERS {
            call.put_back(worker, call.take_socket(worker).unwrap());
            call.fail(worker, "no memory".into());
        }
        scene.pass(Duration::from_secs(seconds), &[0, 1]);
        assert_eq!(scene.reserve.left(), 3);
        assert!(Arc::ptr_eq(&scene.call(0), &call), "too early");
        let said = scene.supervisor.problems(scene.now);
        assert_eq!(said, ["interface lo is not read: no memory"]);
    }
}

#[test]
fn a_worker_that_panicked_is_called_after_a_second_into_the_group_that_there_is() {
    let mut scene = Scene::new(8);
    scene.begin();
    scene.board.note_panic(1);
    let first = scene.call(1);
    first.leave(1, Stage::Left);
    scene.pass(Duration::from_millis(900), &[0, 1]);
    assert!(Arc::ptr_eq(&scene.call(1), &first), "too early");
    assert_eq!(scene.supervisor.problems(scene.now)[0], "worker 1 panicked and is not back yet");
    scene.pass(Duration::from_millis(300), &[0, 1]);
    let back = scene.call(1);
    assert_eq!((back.stage(0), back.stage(1)), (Stage::Absent, Stage::Called));
    assert!(back.is_released(), "it need not wait for anybody");
    assert!(Arc::ptr_eq(&scene.call(0), &first), "the other reads on");
    scene.follow(1);
    scene.pass(LOOK_EVERY, &[0, 1]);
    assert!(scene.supervisor.workers[1].is_fit());
    assert_eq!(scene.uncaptured(), Duration::ZERO, "the other had its share");
}

#[test]
fn the_share_of_a_worker_that_stands_still_is_taken_over_by_a_new_group() {
    let mut scene = Scene::new(8);
    scene.begin();
    let before = scene.call(0);
    scene.pass(STALL_AFTER, &[0]);
    assert!(Arc::ptr_eq(&scene.call(0), &before), "too early");
    scene.pass(LOOK_EVERY * 2, &[0]);
    let after = scene.call(1);
    assert_eq!((after.stage(0), after.stage(1)), (Stage::Called, Stage::Absent));
    let said = scene.supervisor.problems(scene.now);
    assert_eq!(
        said,
        [
            "worker 1 has not read its rings for 3 s",
            "a part of the flows of interface lo is not read"
        ]
    );
    for _ in 0..3 {
        scene.follow(0);
        scene.pass(LOOK_EVERY, &[0]);
    }
    let missed = scene.uncaptured();
    assert!(missed >= STALL_AFTER && missed < STALL_AFTER * 2, "{missed:?}");
    // It goes on, and has a place again.
    scene.pass(LOOK_EVERY * 2, &[0, 1]);
    assert_eq!(scene.call(1).stage(1), Stage::Called);
    assert_eq!(scene.uncaptured(), missed);
}

#[test]
fn health_names_a_worker_that_stands_still_and_no_other_whatever_the_wall_clock_says() {
    let mut scene = Scene::new(8);
    scene.begin();
    // Heartbeats are far from any time of the wall clock: before, behind and across its range.
    let heartbeats = [0, u64::MAX - 1, 1 << 62];
    for heartbeat in heartbeats {
        for worker in scene.counters.workers() {
            worker.worker.heartbeat.set(heartbeat);
        }
        scene.pass(Duration::from_secs(1), &[0, 1]);
        assert_eq!(scene.supervisor.health.problems(), Vec::<String>::new(), "{heartbeat}");
    }
    scene.pass(STALL_AFTER + LOOK_EVERY * 2, &[0]);
    let said = scene.supervisor.health.problems();
    assert_eq!(said[0], "worker 1 has not read its rings for 3 s", "{said:?}");
    assert!(!said.iter().any(|problem| problem.starts_with("worker 0")), "{said:?}");
}

#[test]
fn rings_that_are_read_on_while_new_ones_are_opened_are_no_hole() {
    let mut scene = Scene::new(8);
    scene.begin();
    // In a group by CPU, a worker that comes back needs a new one.
    scene.supervisor.fanout = Some(Fanout::Cpu);
    scene.board.note_panic(1);
    let first = scene.call(1);
    first.leave(1, Stage::Left);
    for _ in 0..2 {
        scene.pass(Duration::from_millis(2100), &[0, 1]);
        let call = scene.call(0);
        assert!(!Arc::ptr_eq(&call, &first) && call.stage(0) == Stage::Called);
        (0..WORKERS).for_each(|worker| call.fail(worker, "no memory".into()));
        scene.pass(LOOK_EVERY, &[0, 1]);
        let said = scene.supervisor.problems(scene.now);
        assert_eq!(said[1], "rings of interface lo are to be replaced: no memory");
        assert_eq!(scene.uncaptured(), Duration::ZERO);
    }
    // The worker that reads on loses its ring as well.
    first.leave(0, Stage::Left);
    scene.pass(Duration::from_millis(300), &[0, 1]);
    assert!(scene.uncaptured() >= Duration::from_millis(300));
}

/// A packet socket of each worker, of which the one of `first` was made before the other.
fn sockets_made_by(first: usize) -> [(Ring, u64); WORKERS] {
    let config = RingConfig {
        block_bytes: 4096,
        block_count: 1,
        least_blocks: 1,
        retire_ms: 1,
        snaplen: 1,
        promiscuous: false,
    };
    let made = || {
        let scope = Scope::One(Interface::find("lo").unwrap());
        let ring = Ring::open(Unbound::new().unwrap(), &config, &scope).unwrap();
        let inode = ring.inode().unwrap();
        (ring, inode)
    };
    let (before, after) = (made(), made());
    if first == 0 { [before, after] } else { [after, before] }
}

#[test]
fn a_link_that_comes_up_again_makes_a_new_group_only_where_the_order_matters_and_is_wrong() {
    let Some(lab) = Lab::new() else { return };
    let orders = [
        // How frames are dealt, whose socket was made first, sockets in the reserve: is there a new group?
        (Fanout::Cpu, 0, 8, false),
        (Fanout::Cpu, 1, 8, true),
        (Fanout::Queue, 1, 8, true),
        (Fanout::Hash, 1, 8, false),
        // Rather a wrong order than fewer readers.
        (Fanout::Cpu, 1, 3, false),
    ];
    lab.sensor().within(|| {
        for (fanout, first, sockets, expected) in orders {
            let mut scene = Scene::new(sockets);
            scene.supervisor.fanout = Some(fanout.clone());
            scene.begin();
            let rings = sockets_made_by(first);
            let before = scene.call(0);
            for (worker, (_, inode)) in rings.iter().enumerate() {
                before.keep_inode(worker, *inode);
            }
            scene.pass(Duration::from_secs(1), &[0, 1]);
            scene.supervisor.health.set_link(0, Link::Down);
            scene.pass(Duration::from_secs(1), &[0, 1]);
            let is_new = |scene: &Scene| !Arc::ptr_eq(&scene.call(0), &before);
            assert!(!is_new(&scene), "{fanout:?}: the order changes as the link comes up");
            scene.supervisor.health.set_link(0, Link::Up);
            scene.pass(LOOK_EVERY, &[0, 1]);
            assert_eq!(is_new(&scene), expected, "{fanout:?}, {first} first, {sockets} sockets");
            if expected {
                (0..WORKERS).for_each(|worker| scene.follow(worker));
                scene.pass(LOOK_EVERY, &[0, 1]);
                (0..WORKERS).for_each(|worker| scene.follow(worker));
                scene.pass(LOOK_EVERY, &[0, 1]);
            }
            assert_eq!(scene.supervisor.interfaces[0].live(), [0, 1]);
            assert_eq!(scene.uncaptured() > Duration::ZERO, expected, "the rings change over");
        }
    });
}

#[test]
fn rings_that_were_replaced_do_not_hide_that_the_new_ones_are_gone() {
    let mut scene = Scene::new(8);
    scene.begin();
    scene.supervisor.interfaces[0].is_other = true;
    scene.begin();
    let newest = scene.call(0);
    let missed = scene.uncaptured();
    (0..WORKERS).for_each(|worker| newest.leave(worker, Stage::Left));
    scene.pass(Duration::from_secs(1), &[0, 1]);
    assert!(scene.uncaptured() >= missed + Duration::from_secs(1));
}

#[test]
fn without_sockets_nobody_is_called_and_the_remedy_is_said() {
    let mut scene = Scene::new(2);
    scene.begin();
    let before = scene.call(0);
    before.leave(0, Stage::Left);
    before.leave(1, Stage::Left);
    scene.pass(Duration::from_secs(2), &[0, 1]);
    assert!(Arc::ptr_eq(&scene.call(0), &before));
    let said = scene.supervisor.problems(scene.now);
    assert_eq!(said[0], "interface lo is not read");
    assert!(said[1].contains("capture.reserve_sockets"), "{said:?}");
    assert!(scene.uncaptured() >= Duration::from_secs(2));
}
