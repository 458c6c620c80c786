//! What packets say about contacts, and what the table keeps of it under load.

use std::collections::BTreeMap;

use wire::units::UnixNanos;

use super::*;
use crate::packet::mix;

const SECOND: u64 = 1_000_000_000;

fn address(n: u32) -> Address {
    Address::from_v4(n.to_be_bytes())
}

fn key(source: u32, target: u32, port: u16) -> ContactKey {
    ContactKey { source: address(source), target: address(target), port }
}

fn see(table: &mut ContactTable, key: ContactKey, what: Observation, time: u64) {
    let hash = table.hash(&key);
    table.prefetch(hash, what);
    if !table.holds_back(hash, what) {
        table.take_in(hash, &key, what, UnixNanos(time));
    }
}

fn published(table: &mut ContactTable) -> Vec<Contact> {
    let mut contacts = Vec::new();
    let published = table.publish(|contact| {
        contacts.push(*contact);
        true
    });
    assert_eq!(published.contacts as usize, contacts.len());
    contacts
}

const TUPLE: FiveTuple = FiveTuple {
    source: Address::from_v4([192, 0, 2, 1]),
    target: Address::from_v4([198, 51, 100, 1]),
    source_port: 40_000,
    target_port: 443,
    protocol: protocol::TCP,
};

fn check(tuple: FiveTuple, kind: Kind, expected: Option<Observation>) {
    let contact = contact_of(&TUPLE);
    let packet = Packet { tuple, kind, ..Packet::default() };
    assert_eq!(observe(&packet), expected.map(|what| (contact, what)), "{kind:?}");
}

#[test]
fn flags_of_a_segment_decide_what_it_says() {
    use tcp::{ACK, FIN, RST, SYN};
    const PUSH: u8 = 0x08;
    const ECE_CWR: u8 = 0xc0;
    let segment = |flags| Kind::Tcp { flags, sequence: 1, acknowledgement: 2 };
    for (flags, expected) in [
        (SYN, Some(Observation::Attempted)),
        (SYN | ECE_CWR, Some(Observation::Attempted)),
        (SYN | FIN, None),
        (SYN | RST, None),
        (ACK, None),
        (ACK | PUSH, None),
        (FIN | ACK, None),
        (0, None),
    ] {
        check(TUPLE, segment(flags), expected);
    }
    for (flags, expected) in [
        (SYN | ACK, Some(Observation::Answered)),
        (SYN | ACK | ECE_CWR, Some(Observation::Answered)),
        (RST, Some(Observation::Refused)),
        (RST | ACK, Some(Observation::Refused)),
        (ACK, None),
    ] {
        check(TUPLE.reversed(), segment(flags), expected);
    }
}

#[test]
fn unreachable_messages_refuse_the_contact_that_they_quote() {
    let from_router = |protocol| FiveTuple {
        source: address(9),
        target: TUPLE.source,
        source_port: 0,
        target_port: 0,
        protocol,
    };
    let message = |kind, code, quoted| Kind::Icmp { kind, code, quoted };
    let refused = Some(Observation::Refused);
    for code in 0..16 {
        check(from_router(protocol::ICMP), message(3, code, Some(TUPLE)), refused);
    }
    check(from_router(protocol::ICMPV6), message(1, 4, Some(TUPLE)), refused);
    check(from_router(protocol::ICMPV6), message(3, 0, Some(TUPLE)), None);
    check(from_router(protocol::ICMP), message(11, 0, Some(TUPLE)), None);
    check(from_router(protocol::ICMP), message(3, 1, None), None);
    let udp = FiveTuple { protocol: protocol::UDP, ..TUPLE };
    check(from_router(protocol::ICMP), message(3, 3, Some(udp)), None);
}

#[test]
fn other_packets_say_nothing() {
    for kind in [Kind::Udp, Kind::Arp, Kind::OtherIp, Kind::LaterFragment, Kind::Other] {
        check(TUPLE, kind, None);
    }
}

#[test]
fn both_halves_of_a_handshake_are_handed_out_together_and_once() {
    let mut table = ContactTable::new(64, 1);
    see(&mut table, key(1, 2, 80), Observation::Attempted, 5);
    see(&mut table, key(1, 2, 80), Observation::Answered, 9);
    let [contact] = published(&mut table)[..] else { panic!("one contact") };
    assert_eq!((contact.first, contact.last), (UnixNanos(5), UnixNanos(5)));
    assert!(contact.flags.has(Observation::Attempted) && contact.flags.has(Observation::Answered));
    assert_eq!(published(&mut table), []);
}

#[test]
fn repeats_within_a_pane_are_not_handed_out_again_and_in_the_next_pane_they_are() {
    let mut table = ContactTable::new(64, 1);
    see(&mut table, key(1, 2, 80), Observation::Attempted, 0);
    assert_eq!(published(&mut table).len(), 1);
    see(&mut table, key(1, 2, 80), Observation::Attempted, SECOND / 2);
    assert_eq!(published(&mut table), []);
    see(&mut table, key(1, 2, 80), Observation::Attempted, SECOND + 7);
    see(&mut table, key(1, 2, 80), Observation::Attempted, SECOND + 8);
    let [contact] = published(&mut table)[..] else { panic!("one contact") };
    assert_eq!((contact.first.0, contact.last.0), (SECOND + 7, SECOND + 7));
}

#[test]
fn an_answer_after_the_attempt_was_handed_out_is_handed_out_alone() {
    let mut table = ContactTable::new(64, 1);
    see(&mut table, key(1, 2, 80), Observation::Attempted, 0);
    let _ = published(&mut table);
    see(&mut table, key(1, 2, 80), Observation::Refused, 9);
    let [contact] = published(&mut table)[..] else { panic!("one contact") };
    assert_eq!(contact, Contact::new(key(1, 2, 80), Observation::Refused, UnixNanos(9)));
}

#[test]
fn contacts_without_room_downstream_are_handed_out_next_time() {
    let mut table = ContactTable::new(64, 1);
    (0..10).for_each(|port| see(&mut table, key(1, 2, port), Observation::Attempted, 0));
    let mut room = 4;
    let first = table.publish(|_| {
        room -= 1;
        room >= 0
    });
    assert_eq!(first.contacts, 4);
    let rest: Vec<u16> = published(&mut table).iter().map(|contact| contact.key.port).collect();
    assert_eq!(rest, [4, 5, 6, 7, 8, 9]);
}

#[test]
fn backscatter_cannot_push_attempts_out_and_what_it_loses_is_said() {
    let mut table = ContactTable::new(1024, 1);
    see(&mut table, key(1, 2, 80), Observation::Attempted, 0);
    (0..100_000).for_each(|n| see(&mut table, key(n, 3, 4), Observation::Answered, 1));
    see(&mut table, key(1, 2, 81), Observation::Attempted, 2);
    let mut attempts = 0;
    let result = table.publish(|contact| {
        attempts += u32::from(contact.flags.has(Observation::Attempted));
        true
    });
    assert_eq!((attempts, result.answers_lost), (2, true));
    let counters = table.counters();
    assert_eq!(counters.evicted_unpublished, 0);
    assert_eq!(counters.published + counters.answers_dropped, 100_002);
    assert!(!table.publish(|_| true).answers_lost, "said once");
}

#[test]
fn a_flood_of_sources_that_come_once_is_held_back_and_a_scanner_in_it_is_not() {
    let mut table = ContactTable::new(1 << 14, 1);
    let mut found = BTreeMap::new();
    let (mut handed_out, flood_ticks, per_tick) = (0, 40, 50_000);
    for tick in 0..flood_ticks {
        for n in 0..per_tick {
            let random = mix(tick * per_tick + n, 77);
            let flood = key(random as u32, 2, (random >> 32) as u16);
            see(&mut table, flood, Observation::Attempted, tick * SECOND / 4);
        }
        let scanned = key(0xfeed, 2, tick as u16);
        see(&mut table, scanned, Observation::Attempted, tick * SECOND / 4);
        for contact in published(&mut table) {
            handed_out += 1;
            if contact.key.source == address(0xfeed) {
                found.insert(contact.key.port, ());
            }
        }
    }
    let counters = table.counters();
    assert!(found.len() > 25, "{} of {flood_ticks} ports", found.len());
    assert!(handed_out < flood_ticks * per_tick / 10, "{handed_out} handed out");
    assert_eq!(counters.engaged, 1);
    assert_eq!(
        counters.observed,
        counters.published + counters.gated + counters.evicted_unpublished
    );
}

#[test]
fn the_door_opens_again_after_quiet() {
    let mut table = ContactTable::new(64, 1);
    (0..1000).for_each(|n| see(&mut table, key(n, 2, 80), Observation::Attempted, 0));
    (0..10).for_each(|_| drop(published(&mut table)));
    let gated = table.counters().gated;
    see(&mut table, key(5000, 2, 80), Observation::Attempted, SECOND);
    assert_eq!((published(&mut table).len(), table.counters().gated), (1, gated));
}

#[test]
fn a_full_log_gives_up_its_oldest_and_counts_it() {
    let mut table = ContactTable::new(64, 1);
    (0..100).for_each(|port| see(&mut table, key(1, 2, port), Observation::Attempted, 0));
    let contacts = published(&mut table);
    let counters = table.counters();
    assert_eq!(contacts.len(), 64);
    assert_eq!(contacts.last().unwrap().key.port, 99, "the newest is never refused");
    assert_eq!(counters.evicted_unpublished + counters.gated, 36);
}

#[test]
fn what_is_handed_out_adds_up_to_what_was_observed() {
    let kinds = [Observation::Attempted, Observation::Answered, Observation::Refused];
    for seed in 0..50 {
        let mut table = ContactTable::new(4096, seed);
        let (mut exact, mut merged) = (BTreeMap::new(), BTreeMap::new());
        let add = |sum: &mut BTreeMap<ContactKey, Contact>, contact: Contact| {
            sum.entry(contact.key).and_modify(|held| held.merge(&contact)).or_insert(contact);
        };
        for n in 0..20_000 {
            let random = mix(n, seed);
            let contact =
                key(random as u32 & 7, (random >> 8) as u32 & 7, (random >> 16) as u16 & 31);
            let (what, time) = (kinds[(random >> 40) as usize % 3], n * SECOND / 4000);
            see(&mut table, contact, what, time);
            add(&mut exact, Contact::new(contact, what, UnixNanos(time)));
            if n % 1000 == 0 {
                published(&mut table).into_iter().for_each(|contact| add(&mut merged, contact));
            }
        }
        published(&mut table).into_iter().for_each(|contact| add(&mut merged, contact));
        assert_eq!(merged, exact, "seed {seed}");
        assert!(table.counters().published < 20_000);
    }
}

#[test]
fn contacts_merge_in_any_order() {
    let kinds = [Observation::Attempted, Observation::Answered, Observation::Refused];
    for seed in 0..200 {
        let contacts: Vec<Contact> = (0..6)
            .map(|n| {
                let random = mix(n, seed);
                let time = UnixNanos((random >> 20) % (3 * SECOND));
                Contact::new(key(1, 2, 3), kinds[random as usize % 3], time)
            })
            .collect();
        let merged = |contacts: &mut dyn Iterator<Item = &Contact>| {
            let mut sum = *contacts.next().unwrap();
            contacts.for_each(|contact| sum.merge(contact));
            sum
        };
        assert_eq!(merged(&mut contacts.iter()), merged(&mut contacts.iter().rev()), "seed {seed}");
    }
}
