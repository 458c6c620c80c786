//! What packets say about contacts, and what the table keeps of it under load.

use std::collections::BTreeMap;

use packet::{FiveTuple, Kind, Packet, mix, protocol, tcp};
use wire::units::UnixNanos;

use super::*;
use crate::flow::Change;

const SECOND: u64 = 1_000_000_000;

fn address(n: u32) -> Address {
    Address::from_v4(n.to_be_bytes())
}

fn key(source: u32, target: u32, port: u16) -> ContactKey {
    ContactKey { source: address(source), target: address(target), class: Class::Tcp, port }
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

/// The contact of TUPLE's ends.
fn contact(class: Class, port: u16) -> ContactKey {
    ContactKey { source: TUPLE.source, target: TUPLE.target, class, port }
}

fn check(tuple: FiveTuple, kind: Kind, expected: Option<(ContactKey, Observation)>) {
    let packet = Packet { tuple, kind, ..Packet::default() };
    assert_eq!(observe(&packet), expected, "{tuple:?} {kind:?}");
}

fn check_change(
    tuple: FiveTuple,
    kind: Kind,
    change: Change,
    expected: Option<(ContactKey, Observation)>,
) {
    let packet = Packet { tuple, kind, ..Packet::default() };
    assert_eq!(observe_change(&packet, change), expected, "{tuple:?} {kind:?} {change:?}");
}

const fn segment(flags: u8) -> Kind {
    Kind::Tcp { flags, sequence: 1, acknowledgement: 2 }
}

#[test]
fn flags_of_a_segment_decide_what_it_says() {
    use tcp::{ACK, FIN, PSH, RST, SYN, URG};
    const ECE_CWR: u8 = 0xc0;
    let https = contact(Class::Tcp, 443);
    for (flags, expected) in [
        (SYN, Some(Observation::Attempted)),
        (SYN | ECE_CWR, Some(Observation::Attempted)),
        (SYN | PSH, Some(Observation::Attempted)),
        (SYN | FIN, Some(Observation::SynFin)),
        (FIN, Some(Observation::Fin)),
        (FIN | PSH | URG, Some(Observation::Xmas)),
        (0, Some(Observation::Null)),
        (SYN | RST, None),
        (PSH, None),
        (FIN | URG, None),
        (ACK, None),
        (ACK | PSH, None),
        (FIN | ACK, None),
    ] {
        check(TUPLE, segment(flags), expected.map(|what| (https, what)));
    }
    for (flags, expected) in [
        (SYN | ACK, Some(Observation::Answered)),
        (SYN | ACK | ECE_CWR, Some(Observation::Answered)),
        (RST, Some(Observation::Refused)),
        (RST | ACK, Some(Observation::Refused)),
        (ACK, None),
    ] {
        check(TUPLE.reversed(), segment(flags), expected.map(|what| (https, what)));
    }
}

#[test]
fn stray_segments_are_told_by_the_flow_that_they_begin() {
    let https = contact(Class::Tcp, 443);
    for (flags, expected) in [
        (tcp::ACK, Some(Observation::Ack)),
        (tcp::ACK | tcp::PSH, Some(Observation::Ack)),
        (tcp::FIN | tcp::ACK, Some(Observation::Maimon)),
        (tcp::SYN, None),
        (tcp::SYN | tcp::ACK, None),
        (tcp::RST | tcp::ACK, None),
    ] {
        let expected = expected.map(|what| (https, what));
        check_change(TUPLE, segment(flags), Change::Began, expected);
        check_change(TUPLE, segment(flags), Change::Nothing, None);
    }
    let completed = Some((https, Observation::Completed));
    check_change(TUPLE, segment(tcp::ACK), Change::Completed, completed);
    let carried = Some((https, Observation::Carried));
    check_change(TUPLE, segment(tcp::PSH | tcp::ACK), Change::Completed, carried);
    check_change(TUPLE, segment(tcp::PSH | tcp::ACK), Change::Carried, carried);
    check_change(TUPLE, segment(tcp::ACK), Change::Claimed, completed);
}

#[test]
fn the_first_datagram_of_each_side_is_attempt_and_answer() {
    let query = FiveTuple { protocol: protocol::UDP, target_port: 53, ..TUPLE };
    let dns = contact(Class::Udp, 53);
    check(query, Kind::Udp, None);
    check_change(query, Kind::Udp, Change::Began, Some((dns, Observation::Attempted)));
    let answer = query.reversed();
    check_change(answer, Kind::Udp, Change::Answered, Some((dns, Observation::Answered)));
    check_change(answer, Kind::Udp, Change::Began, Some((dns, Observation::Answered)));
    let between_users = FiveTuple { target_port: 4000, ..query };
    let attempt = Some((contact(Class::Udp, 4000), Observation::Attempted));
    check_change(between_users, Kind::Udp, Change::Began, attempt);
    for target_port in [33_434, 33_534] {
        let step = FiveTuple { target_port, ..query };
        check_change(step, Kind::Udp, Change::Began, None);
    }
    for target in [[224, 0, 0, 251], [239, 255, 255, 250], [255; 4]].map(Address::from_v4) {
        let to_many = FiveTuple { target, ..query };
        check_change(to_many, Kind::Udp, Change::Began, None);
    }
}

#[test]
fn errors_speak_of_the_contact_that_they_quote() {
    let from_router = |protocol| FiveTuple {
        source: address(9),
        target: TUPLE.source,
        source_port: 0,
        target_port: 0,
        protocol,
    };
    let (v4, v6) = (from_router(protocol::ICMP), from_router(protocol::ICMPV6));
    let message = |kind, code, protocol| {
        let quoted = FiveTuple { protocol, ..TUPLE };
        Kind::Icmp { kind, code, quoted: Some(quoted) }
    };
    let [tcp, udp] = [Class::Tcp, Class::Udp].map(|class| contact(class, 443));
    let (host, gre) = (contact(Class::Icmp, 0), contact(Class::Ip, 47));
    let refused = |key| Some((key, Observation::Refused));
    let exceeded = |key| Some((key, Observation::Exceeded));
    for code in (0..16).filter(|code| ![2, 4].contains(code)) {
        check(v4, message(3, code, protocol::TCP), refused(tcp));
    }
    check(v4, message(3, 2, protocol::TCP), refused(contact(Class::Ip, 6)));
    check(v4, message(3, 4, protocol::TCP), None);
    check(v4, message(3, 3, protocol::UDP), refused(udp));
    check(v4, message(3, 1, protocol::ICMP), refused(host));
    check(v4, message(3, 2, protocol::GRE), refused(gre));
    check(v4, message(11, 0, protocol::UDP), exceeded(udp));
    check(v4, message(11, 1, protocol::UDP), None);
    check(v4, message(1, 4, protocol::TCP), None);
    check(v6, message(1, 4, protocol::TCP), refused(tcp));
    check(v6, message(3, 0, protocol::TCP), exceeded(tcp));
    check(v6, message(4, 1, protocol::GRE), refused(gre));
    check(v6, message(4, 0, protocol::GRE), None);
    check(v4, Kind::Icmp { kind: 3, code: 1, quoted: None }, None);
}

#[test]
fn requests_for_a_host_are_attempts_and_replies_answers() {
    let icmp = |kind| Kind::Icmp { kind, code: 0, quoted: None };
    let host = contact(Class::Icmp, 0);
    let tuple = |protocol| FiveTuple { protocol, source_port: 0, target_port: 0, ..TUPLE };
    let (v4, v6) = (tuple(protocol::ICMP), tuple(protocol::ICMPV6));
    for (tuple, request, reply) in [(v4, 8, 0), (v4, 13, 14), (v4, 17, 18), (v6, 128, 129)] {
        check(tuple, icmp(request), Some((host, Observation::Attempted)));
        check(tuple.reversed(), icmp(reply), Some((host, Observation::Answered)));
    }
    check(v4, icmp(128), None);
    check(v6, icmp(135), None);
    let tuple = tuple(0);
    let arp = |operation| Kind::Arp { operation };
    let host = contact(Class::Arp, 0);
    check(tuple, arp(1), Some((host, Observation::Attempted)));
    check(tuple.reversed(), arp(2), Some((host, Observation::Answered)));
    check(tuple, arp(3), None);
    check(FiveTuple { source: tuple.target, ..tuple }, arp(1), None);
    check(FiveTuple { source: Address::from_v4([0; 4]), ..tuple }, arp(1), None);
    check(FiveTuple::default(), arp(1), None);
}

#[test]
fn other_protocols_are_contacts_of_their_number() {
    let esp = FiveTuple { protocol: 50, source_port: 0, target_port: 0, ..TUPLE };
    let key = contact(Class::Ip, 50);
    check(esp, Kind::OtherIp, None);
    check_change(esp, Kind::OtherIp, Change::Began, Some((key, Observation::Attempted)));
    let back = Some((key, Observation::Answered));
    check_change(esp.reversed(), Kind::OtherIp, Change::Answered, back);
    let bare = FiveTuple { protocol: protocol::IPV4, ..esp };
    let cut = Kind::Malformed(packet::Malformed::Ipv4Header);
    check(bare, cut, Some((contact(Class::Ip, 4), Observation::Attempted)));
    check(FiveTuple { protocol: protocol::TCP, ..esp }, cut, None);
    check(FiveTuple::default(), cut, None);
    let hello = FiveTuple { target: Address::from_v4([224, 0, 0, 5]), protocol: 89, ..esp };
    check_change(hello, Kind::OtherIp, Change::Began, None);
}

#[test]
fn other_packets_say_nothing() {
    for kind in [Kind::Udp, Kind::OtherIp, Kind::LaterFragment, Kind::Other] {
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
