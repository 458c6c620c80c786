//! One scan, one story: what a scan is made of, or what a flood looks like besides, is no alert of its own; and
//! nothing hides behind another's story.

#[expect(dead_code, reason = "each test uses a part")]
mod scenarios;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use perf::events::AlertLife;
use perf::frames;
use perf::programs;
use scenarios::ordinary::{Error, Fate, icmp_error};
use scenarios::probing::{Pace, Technique, ports_of, ports_of_hosts};
use scenarios::replayed::{Capture, alerts_without_workers};
use scenarios::{MINUTE, MS, SECOND, Stage, host};

const SCANNER: &str = "192.0.2.99";
const VICTIM: &str = "198.51.100.250";

fn scanner() -> IpAddr {
    host(SCANNER, 0)
}

/// The alerts of one worker, which are those of several.
#[track_caller]
fn alerts_of(stage: &mut Stage, configuration: &str) -> Vec<AlertLife> {
    let capture = Capture::of(stage);
    let one = capture.events(1, configuration);
    for workers in [2, 4] {
        let several = capture.events(workers, configuration);
        let [several, one] = [&several, &one].map(alerts_without_workers);
        assert_eq!(several, one, "{workers} workers");
    }
    one.alerts()
}

/// Kind, source and distinct contacts of each.
fn told(alerts: &[AlertLife]) -> Vec<(&str, &str, u64)> {
    alerts.iter().map(|it| (&*it.kind, &*it.source, it.count("attempted"))).collect()
}

/// Forty ports of one host, and nine of each of four others, in 20 s.
fn five_hosts(stage: &mut Stage, fate: Fate) {
    let mut contacts: Vec<SocketAddr> = ports_of(host(VICTIM, 0), 1..=40);
    (1..5).for_each(|number| contacts.extend(ports_of(host(VICTIM, number), 1..=9)));
    stage.random.shuffle(&mut contacts);
    let pace = Pace { at: 5 * SECOND, gap: 250 * MS };
    stage.scan("vertical", Technique::Syn, (scanner(), &contacts), pace, |_| fate);
}

/// Thirty contacts, one in half a minute, from that time on.
fn slowly(stage: &mut Stage, at: u64) {
    let contacts = ports_of_hosts("198.51.101.0", 6, &[22, 23, 80, 445, 3389]);
    let pace = Pace { at, gap: 30 * SECOND };
    stage.scan("slow", Technique::Syn, (scanner(), &contacts), pace, |_| Fate::Refused);
}

#[test]
fn what_a_source_did_beside_a_vertical_scan_is_no_slow_scan_when_that_is_over() {
    for fate in [Fate::Refused, Fate::Silent] {
        let mut stage = Stage::new(1);
        five_hosts(&mut stage, fate);
        let alerts = alerts_of(&mut stage, "");
        assert_eq!(told(&alerts), [("vertical", SCANNER, 40)], "{alerts:#?}");
    }
}

#[test]
fn a_slow_scan_after_a_fast_one_is_found() {
    let mut stage = Stage::new(2);
    five_hosts(&mut stage, Fate::Refused);
    slowly(&mut stage, 3 * MINUTE);
    let alerts = alerts_of(&mut stage, "");
    assert_eq!(told(&alerts), [("vertical", SCANNER, 40), ("slow", SCANNER, 30)], "{alerts:#?}");
}

/// One of its hosts is scanned fast, or fast enough, all the time.
#[test]
fn a_slow_scan_does_not_hide_beside_a_fast_one_that_does_not_end() {
    let mut stage = Stage::new(3);
    let loud = ports_of(host(VICTIM, 0), 1..=900);
    let pace = Pace { at: 5 * SECOND, gap: 4 * SECOND };
    stage.scan("vertical", Technique::Syn, (scanner(), &loud), pace, |_| Fate::Refused);
    let contacts = ports_of_hosts("198.51.101.0", 20, &[22, 23, 80, 445, 3389]);
    let pace = Pace { at: MINUTE, gap: 30 * SECOND };
    stage.scan("slow", Technique::Syn, (scanner(), &contacts), pace, |_| Fate::Refused);
    let alerts = alerts_of(&mut stage, "");
    let kinds: Vec<_> = alerts.iter().map(|alert| &*alert.kind).collect();
    assert_eq!(kinds, ["vertical", "slow"], "{alerts:#?}");
}

/// Bots that probe ports of one target at random, each its own and some of the others'.
fn bots(stage: &mut Stage, count: u32, apart: u64) -> BTreeSet<IpAddr> {
    let sources: BTreeSet<IpAddr> = (0..count).map(|n| host(SCANNER, n * 7)).collect();
    for (number, source) in sources.iter().enumerate() {
        let mut ports: Vec<u16> = (1..=200).collect();
        stage.random.shuffle(&mut ports);
        let contacts = ports_of(host(VICTIM, 0), ports.into_iter().take(60));
        let pace = Pace { at: 5 * SECOND + number as u64 * apart, gap: 300 * MS };
        stage.scan("vertical", Technique::Syn, (*source, &contacts), pace, |_| Fate::Refused);
    }
    sources
}

#[test]
fn bots_that_scan_one_target_together_are_one_distributed_alert_with_all_of_them() {
    for (count, apart) in [(3, 0), (3, 4 * SECOND), (8, 100 * MS), (20, SECOND)] {
        let mut stage = Stage::new(4);
        let sources = bots(&mut stage, count, apart);
        let alerts = alerts_of(&mut stage, "");
        let (story, others) = alerts.split_first().expect("an alert");
        assert_eq!((&*story.kind, &*story.source), ("distributed", ""), "{alerts:#?}");
        assert_eq!(story.target.as_deref(), Some(VICTIM), "{alerts:#?}");
        assert_eq!(story.count("distinct_sources"), u64::from(count), "{story:#?}");
        assert_eq!(story.count("attempted"), u64::from(count) * 60, "{story:#?}");
        assert!(story.count("distinct_ports") <= 200, "{story:#?}");
        let listed = story.context["sources"].as_array().expect("a list").iter();
        let listed: BTreeSet<IpAddr> =
            listed.filter_map(|one| one.as_str()?.parse().ok()).collect();
        assert_eq!(listed, sources, "{story:#?}");
        // Of two it was not known yet that they are not alone; the second one's alert ends at once.
        assert!(others.len() <= 1, "{alerts:#?}");
        for other in others {
            let life = (&*other.kind, &other.phases[..]);
            assert_eq!(life, ("vertical", &["open".into(), "close".into()][..]), "{alerts:#?}");
        }
    }
}

#[test]
fn two_scanners_of_one_target_and_three_at_different_times_are_as_many_stories() {
    for (count, apart) in [(2, 0), (3, 3 * MINUTE)] {
        let mut stage = Stage::new(5);
        bots(&mut stage, count, apart);
        let alerts = alerts_of(&mut stage, "");
        let kinds: Vec<_> = alerts.iter().map(|alert| &*alert.kind).collect();
        assert_eq!(kinds, vec!["vertical"; count as usize], "{alerts:#?}");
    }
}

/// Passers-by try a port of the target all the time.
#[test]
fn passers_by_keep_no_story_open_and_hide_no_later_scan() {
    let mut stage = Stage::new(8);
    bots(&mut stage, 3, 0);
    for number in 0..24 {
        let contact = ports_of(host(VICTIM, 0), [445]);
        let pace = Pace { at: (30 + u64::from(number) * 30) * SECOND, gap: SECOND };
        let stranger = host("203.0.113.1", number);
        stage.scan("stray", Technique::Syn, (stranger, &contact), pace, |_| Fate::Refused);
    }
    let late = host("192.0.2.200", 0);
    let contacts = ports_of(host(VICTIM, 0), 1..=100);
    let pace = Pace { at: 8 * MINUTE, gap: 50 * MS };
    stage.scan("vertical", Technique::Syn, (late, &contacts), pace, |_| Fate::Refused);
    let alerts = alerts_of(&mut stage, "");
    let story = alerts.iter().find(|alert| alert.kind == "distributed").expect("a story");
    assert_eq!(story.count("distinct_sources"), 3, "{story:#?}");
    let scans = alerts.iter().filter(|alert| alert.source == "192.0.2.200");
    let scans: Vec<_> = scans.map(|it| (&*it.kind, it.count("attempted"))).collect();
    assert_eq!(scans, [("vertical", 100)], "{alerts:#?}");
}

const FLOODS: &str = "[detect]\nudp_flood_rate = 1000\nflood_learning = '2s'\n";

/// Time to learn what is usual.
fn nothing_unusual(stage: &mut Stage) {
    let server = SocketAddr::new(host(VICTIM, 1), 443);
    (0..10).for_each(|n| _ = stage.connection(n * SECOND, host("10.1.1.1", 0), server, 1));
}

/// Four seconds of datagrams to random ports of the target, 4 000 a second, by so many sources. The target
/// refuses as many as a host does: some hundred at the begin, then a thousand a second.
fn flood(stage: &mut Stage, sources: u32) {
    nothing_unusual(stage);
    for number in 0..16_000_u64 {
        let source = host("203.0.113.7", stage.random.below(u64::from(sources)) as u32);
        let from = SocketAddr::new(source, stage.random.between(2000, 60_000) as u16);
        let to = SocketAddr::new(host(VICTIM, 0), stage.random.between(1, 30_000) as u16);
        let time = 10 * SECOND + number * MS / 4;
        let frame = frames::udp(from, to, &[0x55; 20]);
        if number < 200 || number % 4 == 0 {
            let error = icmp_error(to.ip(), &frame, Error::PortUnreachable);
            stage.add(time + MS / 10, error);
        }
        stage.add(time, frame);
    }
}

#[test]
fn a_flood_of_datagrams_to_random_ports_is_no_udp_scan_besides() {
    for sources in [1, 3] {
        let mut stage = Stage::new(6);
        flood(&mut stage, sources);
        let alerts = alerts_of(&mut stage, FLOODS);
        let kinds: Vec<_> = alerts.iter().map(|alert| &*alert.kind).collect();
        assert_eq!(kinds, ["udp_flood"], "{sources} sources: {alerts:#?}");
    }
}

#[test]
fn explain_says_that_the_flood_tells_about_its_ports() {
    let mut stage = Stage::new(6);
    flood(&mut stage, 1);
    let capture = Capture::of(&mut stage);
    let file = capture.path().with_extension("toml");
    std::fs::write(&file, FLOODS).expect("a file can be written");
    let mut command = programs::sensor();
    command.arg("explain").arg("--config").arg(&file).arg("--read").arg(capture.path());
    let output = command.args(["--source", "203.0.113.7"]).output().expect("the sensor starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("the flood of the target tells about it"), "{text}");
}

#[test]
fn a_udp_scan_that_hides_in_a_flood_of_its_target_is_found() {
    // From before the flood until it is over, and while it lasts.
    for (at, gap) in [(8 * SECOND, 80 * MS), (11 * SECOND, 20 * MS)] {
        for sources in [1, 3, 100_000] {
            let mut stage = Stage::new(7);
            flood(&mut stage, sources);
            let contacts = ports_of(host(VICTIM, 0), 40_001..=40_100);
            let ends = (scanner(), &contacts[..]);
            stage.scan("udp", Technique::Udp, ends, Pace { at, gap }, |_| Fate::Refused);
            let alerts = alerts_of(&mut stage, FLOODS);
            let mut all: Vec<_> = alerts.iter().map(|it| (&*it.kind, &*it.source)).collect();
            all.sort_unstable();
            assert_eq!(all, [("udp", SCANNER), ("udp_flood", "")], "{sources}: {alerts:#?}");
        }
    }
}

/// The rate is that of a flood for less than two seconds.
#[test]
fn a_fast_udp_scan_that_is_no_flood_is_found() {
    let mut stage = Stage::new(8);
    nothing_unusual(&mut stage);
    let mut ports: Vec<u16> = (1..=2000).collect();
    stage.random.shuffle(&mut ports);
    let contacts = ports_of(host(VICTIM, 0), ports);
    let pace = Pace { at: 10 * SECOND, gap: MS / 2 };
    stage.scan("udp", Technique::Udp, (scanner(), &contacts), pace, |_| Fate::Refused);
    let alerts = alerts_of(&mut stage, FLOODS);
    assert_eq!(told(&alerts), [("udp", SCANNER, 2000)], "{alerts:#?}");
}
