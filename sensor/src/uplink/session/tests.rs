//! The session in virtual time, against a collector that stores what it is sent, over a link that
//! delays, cuts and goes silent as a seed decides.

use std::collections::{BTreeMap, VecDeque};

use packet::frame::LinkType;
use wire::codec::Decoder;
use wire::message::MAX_INTERFACES;
use wire::units::WireLen;

use super::*;

const EPOCH: u64 = 1_700_000_000_000_000_000;
const NAME: &str = "ids";

fn session() -> Session {
    let hello = SensorHello {
        minor: MINOR,
        sensor: "edge".into(),
        boot_epoch: EPOCH,
        spool_epoch: EPOCH,
        host: "host".into(),
        version: "0".into(),
    };
    let interfaces = Arc::new(InterfaceNames::new([("eth0", LinkType::ETHERNET)]));
    let spool = Spool::in_memory(EPOCH, 1 << 20, Arc::default());
    Session::new(hello, (interfaces, 65535), Timing::default(), spool)
}

struct Clock {
    start: Instant,
    passed: Duration,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), passed: Duration::ZERO }
    }

    fn advance(&mut self, by: Duration) -> Now {
        self.passed += by;
        Now { monotonic: self.start + self.passed, unix: UnixNanos(EPOCH).plus(self.passed) }
    }
}

/// Stores what a sensor sends, as a collector must.
#[derive(Default)]
struct Collector {
    /// By stream and number.
    records: BTreeMap<(bool, u64), String>,
    /// Numbers of records that it was told not to wait for.
    holes: Vec<(Stream, u64, u64)>,
    duplicates: u64,
    batches: BTreeMap<u64, u32>,
    heard: Vec<Kind>,
    heartbeat: Option<Heartbeat>,
}

impl Collector {
    fn resume(&self) -> Resume {
        let last = |key: Option<&u64>| Sequence(key.copied().unwrap_or(0));
        let record = |is_alert| {
            let range = (is_alert, 0)..=(is_alert, u64::MAX);
            last(self.records.range(range).next_back().map(|((_, number), _)| number))
        };
        Resume {
            boot_epoch: EPOCH,
            spool_epoch: EPOCH,
            alerts: record(true),
            records: record(false),
            frames: last(self.batches.keys().next_back()),
        }
    }

    fn hello(&self) -> Control {
        Control::CollectorHello(CollectorHello {
            minor: MINOR,
            collector: NAME.into(),
            limits: Limits::default(),
            resume: Some(self.resume()),
        })
    }

    fn acks(&self) -> [Control; 3] {
        let Resume { records, frames, alerts, .. } = self.resume();
        [(Stream::Alerts, alerts), (Stream::Records, records), (Stream::Frames, frames)]
            .map(|(stream, sequence)| Control::Ack(Ack { stream, sequence, count: 0 }))
    }

    fn frames(&self) -> u64 {
        self.batches.values().map(|frames| u64::from(*frames)).sum()
    }

    fn take(&mut self, decoder: &mut Decoder) {
        while let Some(message) = decoder.next_message().unwrap() {
            match message {
                Message::Control(control) => {
                    self.heard.push(control.kind());
                    match control {
                        Control::Heartbeat(heartbeat) => self.heartbeat = Some(heartbeat),
                        Control::Gap(Gap { records: Some(gap), .. }) => {
                            self.holes.push((gap.stream, gap.first.0, gap.last.0));
                        }
                        _ => {}
                    }
                }
                Message::Records(batch) => {
                    let is_alert = batch.stream == Stream::Alerts;
                    self.heard.push(if is_alert { Kind::Alerts } else { Kind::Records });
                    for record in &batch {
                        let number = (is_alert, record.sequence.0);
                        let before = self.records.insert(number, record.json.into());
                        self.duplicates += u64::from(before.is_some());
                    }
                }
                Message::Frames(batch) => {
                    self.heard.push(Kind::Frames);
                    assert_eq!(self.batches.insert(batch.sequence.0, batch.len()), None);
                }
            }
        }
    }
}

fn tell(session: &mut Session, now: Now, control: Control) -> Result<(), SessionError> {
    session.receive(now, &Message::Control(control))
}

/// Everything that the session has to say, decoded.
fn drain(session: &mut Session, collector: &mut Collector) {
    let mut out = Vec::new();
    while session.next_output(&mut out).unwrap() {}
    let mut decoder = Decoder::new();
    assert_eq!(decoder.push(&out), out.len());
    collector.take(&mut decoder);
}

fn batch(frames: u32) -> FrameBatchWriter {
    let mut batch = FrameBatchWriter::new(1, 65535);
    for _ in 0..frames {
        batch.try_push(UnixNanos(1), WireLen(60), 0, &[&[7; 60]]).unwrap();
    }
    batch
}

#[test]
fn nothing_is_said_before_the_collector_is_heard() {
    let (mut session, mut clock) = (session(), Clock::new());
    let now = clock.advance(Duration::ZERO);
    session.push_record(now, RecordKind::Alert, b"{}".to_vec());
    session.connected(now, NAME.into());
    session.tick(clock.advance(Duration::from_secs(14))).unwrap();
    session.report_ledger(now, Ledger::default()).unwrap();
    session.say_goodbye().unwrap();
    assert!(!session.next_output(&mut Vec::new()).unwrap());
    assert!(!session.can_send_frames());
}

#[test]
fn hello_and_interfaces_come_first_then_alerts_then_records_then_frames() {
    let (mut session, mut clock) = (session(), Clock::new());
    let mut collector = Collector::default();
    let now = clock.advance(Duration::ZERO);
    session.push_record(now, RecordKind::Flow, b"{}".to_vec());
    session.push_record(now, RecordKind::Alert, b"{}".to_vec());
    session.connected(now, NAME.into());
    tell(&mut session, now, collector.hello()).unwrap();
    assert!(!session.can_send_frames(), "hello and a record wait");
    drain(&mut session, &mut collector);
    let expected = [Kind::SensorHello, Kind::Interfaces, Kind::Alerts, Kind::Records];
    assert_eq!(collector.heard, expected);
    assert!(session.can_send_frames());
    session.push_record(now, RecordKind::Alert, b"{}".to_vec());
    assert!(!session.can_send_frames(), "a record waits");
}

#[test]
fn interfaces_that_came_later_are_declared_once_before_the_next_batch_and_all_at_a_reconnect() {
    let (mut session, mut clock) = (session(), Clock::new());
    let names = Arc::clone(&session.interfaces);
    let declared = |out: &[u8]| {
        let (mut decoder, mut rest) = (Decoder::new(), out);
        let (mut messages, mut ids) = (0, Vec::new());
        while !rest.is_empty() {
            rest = &rest[decoder.push(rest)..];
            while let Some(message) = decoder.next_message().unwrap() {
                if let Message::Control(Control::Interfaces(Interfaces { interfaces })) = message {
                    messages += 1;
                    ids.extend(interfaces.iter().map(|one| one.id));
                }
            }
        }
        (messages, ids)
    };
    let mut connect = |session: &mut Session| {
        let now = clock.advance(Duration::ZERO);
        session.connected(now, NAME.into());
        tell(session, now, Collector::default().hello()).unwrap();
        let mut out = Vec::new();
        while session.next_output(&mut out).unwrap() {}
        declared(&out)
    };
    assert_eq!(connect(&mut session), (1, vec![0]));
    let mut out = Vec::new();
    session.declare(&mut out).unwrap();
    assert!(out.is_empty(), "nothing is new");
    // As many as there can be, with names that JSON makes six times as long.
    for number in 1..MAX_INTERFACES {
        names.add(&format!("{}{number}", "\u{1}".repeat(15)), LinkType::RAW).unwrap();
    }
    session.declare(&mut out).unwrap();
    let later: Vec<u32> = (1..MAX_INTERFACES as u32).collect();
    assert_eq!(declared(&out), (8, later));
    out.clear();
    session.declare(&mut out).unwrap();
    assert!(out.is_empty(), "all is declared");
    session.disconnected();
    assert_eq!(connect(&mut session), (8, (0..MAX_INTERFACES as u32).collect()));
}

#[test]
fn a_collector_silent_for_fifteen_seconds_is_given_up_and_not_before() {
    for is_open in [false, true] {
        let (mut session, mut clock) = (session(), Clock::new());
        let now = clock.advance(Duration::ZERO);
        session.connected(now, NAME.into());
        if is_open {
            tell(&mut session, now, Collector::default().hello()).unwrap();
        }
        session.tick(clock.advance(Duration::from_millis(14_999))).unwrap();
        let error = session.tick(clock.advance(Duration::from_millis(1))).unwrap_err();
        assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    }
}

#[test]
fn an_acknowledgement_or_a_heartbeat_proves_life() {
    let (mut session, mut clock) = (session(), Clock::new());
    let collector = Collector::default();
    let now = clock.advance(Duration::ZERO);
    session.connected(now, NAME.into());
    tell(&mut session, now, collector.hello()).unwrap();
    let [ack, ..] = collector.acks();
    let heartbeat = Control::Heartbeat(Heartbeat { sent_at: UnixNanos(1), echo: None });
    for control in [ack.clone(), heartbeat, ack] {
        let now = clock.advance(Duration::from_secs(14));
        session.tick(now).unwrap();
        tell(&mut session, now, control).unwrap();
    }
}

#[test]
fn heartbeats_leave_every_five_seconds_and_echo_the_collectors() {
    let (mut session, mut clock) = (session(), Clock::new());
    let mut collector = Collector::default();
    let now = clock.advance(Duration::ZERO);
    session.connected(now, NAME.into());
    tell(&mut session, now, collector.hello()).unwrap();
    drain(&mut session, &mut collector);
    collector.heard.clear();
    session.tick(clock.advance(Duration::from_millis(4_999))).unwrap();
    drain(&mut session, &mut collector);
    assert_eq!(collector.heard, []);
    session.tick(clock.advance(Duration::from_millis(1))).unwrap();
    drain(&mut session, &mut collector);
    let first = collector.heartbeat.unwrap();
    assert_eq!(first.echo, None);

    // The collector answers 40 ms later, of which it held the heartbeat for 30 ms.
    let echo = Some(Echo { sent_at: first.sent_at, held_for: 30_000_000 });
    let answer = Heartbeat { sent_at: UnixNanos(77), echo };
    let now = clock.advance(Duration::from_millis(40));
    tell(&mut session, now, Control::Heartbeat(answer)).unwrap();
    assert_eq!(session.round_trip(), Some(Duration::from_millis(10)));
    // Half of the way back, 5 ms, is less than the clocks are apart: its clock began in 1970.
    let expected = 77 - (i128::from(now.unix.0) - 5_000_000);
    assert_eq!(i128::from(session.clock_offset().unwrap()), expected);
    session.tick(clock.advance(Duration::from_millis(4_960))).unwrap();
    drain(&mut session, &mut collector);
    let expected = Echo { sent_at: UnixNanos(77), held_for: 4_960_000_000 };
    assert_eq!(collector.heartbeat.unwrap().echo, Some(expected));
}

#[test]
fn what_a_collector_must_not_say_ends_the_connection() {
    let check = |control: Control, expected: &str| {
        let (mut session, mut clock) = (session(), Clock::new());
        let now = clock.advance(Duration::ZERO);
        session.connected(now, NAME.into());
        tell(&mut session, now, Collector::default().hello()).unwrap();
        let error = tell(&mut session, now, control).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(Collector::default().hello(), "unexpected CollectorHello");
    check(Control::LedgerReport(Ledger::default()), "unexpected LedgerReport");
    check(Control::Goodbye(Goodbye { reason: "x".into() }), "collector says goodbye: \"x\"");
    let ack = |stream| Control::Ack(Ack { stream, sequence: Sequence(1), count: 0 });
    check(ack(Stream::Records), "collector acknowledges Records up to 1, which was never sent");
    check(ack(Stream::Alerts), "collector acknowledges Alerts up to 1, which was never sent");
    check(ack(Stream::Frames), "collector acknowledges Frames up to 1, which was never sent");
    check(ack(Stream::Control), "collector acknowledges Control up to 1, which was never sent");
}

#[test]
fn a_hello_that_does_not_fit_is_refused() {
    let check = |hello: CollectorHello, expected: &str| {
        let (mut session, mut clock) = (session(), Clock::new());
        let now = clock.advance(Duration::ZERO);
        session.connected(now, NAME.into());
        let error = tell(&mut session, now, Control::CollectorHello(hello)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!session.is_open());
    };
    let Control::CollectorHello(hello) = Collector::default().hello() else { panic!() };
    check(
        CollectorHello { collector: "other".into(), ..hello.clone() },
        "collector says it is \"other\", its certificate says \"ids\"",
    );
    let limits = Limits { max_frame_batch: 1000, ..Limits::default() };
    check(CollectorHello { limits, ..hello.clone() }, "collector accepts too little");
    let resume = Resume { records: Sequence(5), ..hello.resume.unwrap() };
    check(CollectorHello { resume: Some(resume), ..hello.clone() }, "which was never sent");
    check(
        CollectorHello { minor: 0, ..hello },
        "collector speaks version 1.0 of the wire format, this sensor 1.1; upgrade it first",
    );
}

#[test]
fn frames_of_a_broken_connection_are_lost_beyond_the_resume_point_and_acknowledged_up_to_it() {
    for (resume_epoch, acknowledged) in [(EPOCH, 5), (EPOCH + 1, 0)] {
        let (mut session, mut clock) = (session(), Clock::new());
        let now = clock.advance(Duration::ZERO);
        session.connected(now, NAME.into());
        tell(&mut session, now, Collector::default().hello()).unwrap();
        session.send_frames(&mut batch(2));
        session.send_frames(&mut batch(3));
        session.send_frames(&mut batch(4));
        session.disconnected();
        assert_eq!(session.deliveries().frames.in_flight(), 9);
        session.connected(now, NAME.into());
        let resume = Resume {
            boot_epoch: resume_epoch,
            records: Sequence(0),
            frames: Sequence(2),
            spool_epoch: resume_epoch,
            alerts: Sequence(0),
        };
        let Control::CollectorHello(hello) = Collector::default().hello() else { panic!() };
        let hello = CollectorHello { resume: Some(resume), ..hello };
        tell(&mut session, now, Control::CollectorHello(hello)).unwrap();
        let frames = session.deliveries().frames;
        assert_eq!(frames.in_flight(), 0);
        assert_eq!(frames.to_ledger().acknowledged, acknowledged);
        assert_eq!(frames.lost(LossReason::Disconnected), 9 - acknowledged);
    }
}

#[test]
fn a_collector_that_does_not_acknowledge_is_not_sent_frames_without_bound() {
    let (mut session, mut clock) = (session(), Clock::new());
    let mut collector = Collector::default();
    let now = clock.advance(Duration::ZERO);
    session.connected(now, NAME.into());
    tell(&mut session, now, collector.hello()).unwrap();
    drain(&mut session, &mut collector);
    let mut batch = batch(1);
    let mut sent = 0;
    while session.can_send_frames() {
        session.send_frames(&mut batch);
        sent += 1;
    }
    assert_eq!(sent, 4096);
    let ack = Ack { stream: Stream::Frames, sequence: Sequence(1), count: 1 };
    tell(&mut session, now, Control::Ack(ack)).unwrap();
    assert!(session.can_send_frames());
}

/// A small deterministic generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % sides
    }
}

/// Sensor, link and collector. Bytes on the link arrive in pieces, or never if it is cut.
struct World {
    dice: Dice,
    clock: Clock,
    session: Session,
    collector: Collector,
    decoder: Decoder,
    to_collector: VecDeque<u8>,
    to_sensor: VecDeque<Control>,
    is_up: bool,
    pushed_records: u64,
    pushed_frames: u64,
    timeouts: u64,
    cuts: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            clock: Clock::new(),
            session: session(),
            collector: Collector::default(),
            decoder: Decoder::new(),
            to_collector: VecDeque::new(),
            to_sensor: VecDeque::new(),
            is_up: false,
            pushed_records: 0,
            pushed_frames: 0,
            timeouts: 0,
            cuts: 0,
        }
    }

    fn connect(&mut self, now: Now) {
        self.session.connected(now, NAME.into());
        self.decoder = Decoder::new();
        self.to_collector.clear();
        self.to_sensor = VecDeque::from([self.collector.hello()]);
        self.is_up = true;
    }

    fn cut(&mut self) {
        self.session.disconnected();
        self.is_up = false;
        self.cuts += 1;
    }

    fn produce(&mut self) {
        for _ in 0..self.dice.roll(4) {
            self.pushed_records += 1;
            let kind = RecordKind::from_u8(1 + self.dice.roll(6) as u8);
            let text = self.pushed_records.to_string().into_bytes();
            self.session.push_record(self.clock.advance(Duration::ZERO), kind, text);
        }
        for _ in 0..self.dice.roll(3) {
            let frames = 1 + self.dice.roll(20) as u32;
            self.pushed_frames += u64::from(frames);
            let mut batch = batch(frames);
            if !self.session.is_open() {
                self.session.lose_frames(&batch, LossReason::NotConnected);
                continue;
            }
            self.send_all_but_frames();
            assert!(self.session.can_send_frames());
            self.to_collector.extend(self.session.send_frames(&mut batch));
        }
    }

    fn send_all_but_frames(&mut self) {
        let mut out = Vec::new();
        while self.session.next_output(&mut out).unwrap() {}
        self.to_collector.extend(out);
    }

    /// Some bytes arrive at the collector, some answers at the sensor.
    fn carry(&mut self, now: Now, is_silent: bool) {
        self.send_all_but_frames();
        let len = self.dice.roll(self.to_collector.len() as u64 + 1) as usize;
        let piece: Vec<u8> = self.to_collector.drain(..len).collect();
        let mut piece = &piece[..];
        while !piece.is_empty() {
            let taken = self.decoder.push(piece);
            piece = &piece[taken..];
            self.collector.take(&mut self.decoder);
        }
        if is_silent {
            return;
        }
        if self.dice.roll(3) == 0 {
            self.to_sensor.extend(self.collector.acks());
        }
        for _ in 0..self.dice.roll(4) {
            let Some(control) = self.to_sensor.pop_front() else { break };
            // An acknowledgement may overtake the sensor's answer to the hello, but not the hello.
            tell(&mut self.session, now, control).unwrap();
        }
    }

    fn step(&mut self, is_silent: bool) {
        let by = Duration::from_millis(self.dice.roll(900));
        let now = self.clock.advance(by);
        if !self.is_up && self.dice.roll(3) == 0 {
            self.connect(now);
        }
        self.produce();
        if self.is_up {
            self.carry(now, is_silent);
            if self.session.tick(now).is_err() {
                self.timeouts += 1;
                self.cut();
            }
        }
        if self.is_up && self.dice.roll(25) == 0 {
            self.cut();
        }
        self.check();
    }

    /// What holds at any time.
    fn check(&self) {
        let Deliveries { frames, records } = self.session.deliveries();
        for (delivery, pushed) in [(frames, self.pushed_frames), (records, self.pushed_records)] {
            let ledger = delivery.to_ledger();
            let lost: u64 = ledger.lost.values().sum();
            assert_eq!(ledger.produced, pushed);
            assert_eq!(ledger.acknowledged + ledger.in_flight + lost, pushed);
        }
        assert!(frames.to_ledger().acknowledged <= self.collector.frames());
        assert!(records.to_ledger().acknowledged <= self.collector.records.len() as u64);
    }

    /// The link heals, production ends, everything arrives.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let now = self.clock.advance(Duration::from_millis(10));
            if !self.is_up {
                self.connect(now);
            }
            self.carry(now, false);
            self.session.tick(now).unwrap();
            if self.session.is_open() && self.session.is_settled() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.session.deliveries());
    }
}

#[test]
fn over_a_link_that_cuts_every_record_is_stored_and_every_frame_accounted_for() {
    let (mut cuts, mut timeouts, mut disconnected) = (0, 0, 0);
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..150 {
            // Now and then the collector falls silent for longer than it may.
            let is_silent = world.clock.passed.as_secs() / 20 % 3 == 2;
            world.step(is_silent);
        }
        world.settle();
        let Deliveries { frames, records } = world.session.deliveries();
        assert_eq!(records.to_ledger().acknowledged, world.pushed_records, "seed {seed}");
        let mut stored: Vec<u64> =
            world.collector.records.values().map(|text| text.parse().unwrap()).collect();
        for lane in [true, false] {
            let range = world.collector.records.range((lane, 0)..=(lane, u64::MAX));
            let order: Vec<u64> = range.map(|(_, text)| text.parse().unwrap()).collect();
            assert!(order.is_sorted(), "seed {seed}: order within a stream");
        }
        stored.sort_unstable();
        assert!(stored.iter().copied().eq(1..=world.pushed_records), "seed {seed}");
        assert_eq!(world.collector.holes, [], "seed {seed}");
        assert_eq!(world.collector.duplicates, 0, "seed {seed}: the resume point prevents them");
        assert_eq!(frames.to_ledger().acknowledged, world.collector.frames(), "seed {seed}");
        cuts += world.cuts;
        timeouts += world.timeouts;
        disconnected += frames.lost(LossReason::Disconnected);
    }
    // The simulation does meet what it is about.
    assert!(
        cuts > 500 && timeouts > 100 && disconnected > 1000,
        "{cuts} {timeouts} {disconnected}"
    );
}

#[test]
fn a_gap_that_was_on_its_way_when_the_connection_broke_is_told_on_the_next_one() {
    let (mut session, mut clock) = (session(), Clock::new());
    let mut collector = Collector::default();
    let lost = |frames| {
        let interface =
            wire::ledger::InterfaceLedger { kernel_drops: frames, ..Default::default() };
        Ledger { interfaces: vec![interface], ..Ledger::default() }
    };
    let mut gaps_told = |session: &mut Session, now: Now, frames, is_cut: bool| {
        session.report_ledger(now, lost(frames)).unwrap();
        let mut heard = Collector::default();
        drain(session, &mut heard);
        if is_cut {
            session.disconnected();
        }
        collector.heartbeat = heard.heartbeat.or(collector.heartbeat);
        heard.heard.iter().filter(|kind| **kind == Kind::Gap).count()
    };
    let connect = |session: &mut Session, now: Now| {
        session.connected(now, NAME.into());
        tell(session, now, Collector::default().hello()).unwrap();
        drain(session, &mut Collector::default());
    };
    let now = clock.advance(Duration::ZERO);
    connect(&mut session, now);
    // It left, and nobody knows whether it came.
    assert_eq!(gaps_told(&mut session, now, 5, true), 1);
    let now = clock.advance(Duration::from_secs(1));
    connect(&mut session, now);
    assert_eq!(gaps_told(&mut session, now, 5, false), 1);
    let now = clock.advance(Duration::from_secs(5));
    session.tick(now).unwrap();
    assert_eq!(gaps_told(&mut session, now, 5, false), 0);
    drain(&mut session, &mut Collector::default());
    let echo = Some(Echo { sent_at: now.unix, held_for: 0 });
    let answer = Heartbeat { sent_at: UnixNanos(77), echo };
    tell(&mut session, now, Control::Heartbeat(answer)).unwrap();
    session.disconnected();
    connect(&mut session, now);
    assert_eq!(gaps_told(&mut session, now, 5, false), 0);
}
