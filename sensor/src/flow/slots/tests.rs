//! The slots against a map, where there is no room for all, and what the map does not have: marks.

use std::collections::BTreeMap;

use packet::mix;
use proptest::prelude::*;

use super::*;

/// Two groups: less than any flow table has, so that most steps make somebody give way.
const SLOTS: usize = 2 * GROUP;

/// What is known of a flow beside its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    hash: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
}

/// Slots, and a map of the flows that are in them, by a number that they carry as their interface.
struct Desk {
    slots: Slots,
    flows: BTreeMap<u32, Known>,
    begun: u32,
}

#[derive(Clone, Debug)]
enum Step {
    /// A flow of one of few homes, with one of few marks, and with one packet.
    Begin { home: u32, mark: u64 },
    /// Packets of one of the flows. Each way, and its length.
    Count { which: usize, packets: Vec<(bool, u32)> },
    /// One of the flows ends.
    End { which: usize },
    /// All flows end that have a number divisible by this, and whose turn is in a part of the pass.
    Sweep { from: u32, length: u32, divisor: u32 },
}

fn steps() -> impl Strategy<Value = Step> {
    // Homes at both ends and in the middle of the groups. Now one home is crowded, now all.
    let home = prop_oneof![3 => Just(0_u32), 2 => 30..34_u32, 1 => Just(63), 2 => 0..64_u32];
    let len = prop_oneof![3 => 60..1515_u32, 1 => Just((1 << 22) - 1), 1 => any::<u32>()];
    let packets = prop::collection::vec((any::<bool>(), len), 1..4);
    prop_oneof![
        12 => (home, 0..3_u64).prop_map(|(home, mark)| Step::Begin { home, mark }),
        6 => (any::<usize>(), packets).prop_map(|(which, packets)| Step::Count { which, packets }),
        4 => any::<usize>().prop_map(|which| Step::End { which }),
        1 => (any::<u32>(), 0..u32::MAX / 8, 2..9_u32)
            .prop_map(|(from, length, divisor)| Step::Sweep { from, length, divisor }),
    ]
}

impl Desk {
    fn new() -> Self {
        Self { slots: Slots::new(SLOTS), flows: BTreeMap::new(), begun: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Begin { home, mark } => self.begin(*home, *mark),
            Step::Count { which, packets } => {
                let Some(number) = self.number(*which) else { return };
                packets.iter().for_each(|(is_back, len)| self.count(number, *is_back, *len));
            }
            Step::End { which } => {
                let Some(number) = self.number(*which) else { return };
                let slot = self.slots.find(self.flows[&number].hash).unwrap();
                let over = self.slots.remove(slot);
                assert_eq!(self.forget(&over), number);
            }
            Step::Sweep { from, length, divisor } => {
                self.sweep(*from, from.saturating_add(*length), *divisor);
            }
        }
    }

    fn number(&self, which: usize) -> Option<u32> {
        self.flows.keys().nth(which % self.flows.len().max(1)).copied()
    }

    fn begin(&mut self, home: u32, mark: u64) {
        self.begun += 1;
        let number = self.begun;
        let hash = hash(home, mark, number);
        let slot = self.slots.choose(hash);
        if self.slots.is_taken(slot) {
            let over = self.slots.take(slot);
            self.forget(&over);
        }
        let key = FlowKey::of_hash(hash, true);
        let hot = Hot::new(&key, false, false, UnixNanos(0));
        let cold = Cold::new(&key, &Packet::default(), false, number, UnixNanos(0));
        self.slots.put(slot, &Whole::new(hot, cold));
        self.flows.insert(number, Known { hash, packets: [0; 2], bytes: [0; 2] });
        self.count(number, false, 60);
    }

    fn count(&mut self, number: u32, is_back: bool, len: u32) {
        let known = self.flows.get_mut(&number).unwrap();
        let slot = self.slots.find(known.hash).unwrap();
        let sight = Sight { flags: None, len: WireLen(len), time: UnixNanos(0) };
        self.slots.count(slot, &FlowKey::of_hash(known.hash, !is_back), &sight);
        known.packets[usize::from(is_back)] += 1;
        known.bytes[usize::from(is_back)] += u64::from(len);
    }

    fn sweep(&mut self, from: u32, to: u32, divisor: u32) {
        let is_over = |number: u32| number.is_multiple_of(divisor);
        let mut ended = Vec::new();
        let settle = |hot: &mut Hot| {
            let number = number_of(hot.tag());
            let idle = Duration::from_secs(u64::from(number) * 7 % 1000);
            (!is_over(number)).then(|| Worth::of(hot, idle))
        };
        self.slots.sweep(from, to, settle, &mut |over| ended.push(*over));
        let expected = self.flows.iter().filter(|(number, known)| {
            is_over(**number) && (from..=to).contains(&((known.hash >> 32) as u32))
        });
        let expected: Vec<u32> = expected.map(|(number, _)| *number).collect();
        let mut ended: Vec<u32> = ended.iter().map(|over| self.forget(over)).collect();
        ended.sort_unstable();
        assert_eq!(ended, expected);
    }

    /// Gives the number of a flow that was taken out, which has all that it counted.
    fn forget(&mut self, over: &Whole) -> u32 {
        let number = over.cold.interface;
        let known = self.flows.remove(&number).expect("it was there, once");
        let Totals { packets, bytes } = over.totals();
        assert_eq!((packets, bytes), (known.packets, known.bytes));
        assert_eq!(number_of(over.hot.tag()), number);
        number
    }

    /// Every flow is found, nothing else is, and each that lives outside its home has one mark there.
    fn check(&self) {
        let Self { slots, flows, begun } = self;
        let taken = (0..SLOTS).filter(|slot| slots.is_taken(*slot)).count();
        assert_eq!((slots.live(), taken), (flows.len(), flows.len()));
        let mut guests = 0;
        for (number, known) in flows {
            let slot = slots.find(known.hash).expect("a live flow is found");
            assert_eq!(slots.cold[slot].interface, *number);
            let likely = slots.locate(slots.prefetch(known.hash), known.hash);
            assert_eq!(slots.find_at(likely as usize, known.hash), Some(slot));
            guests += usize::from(slot / PAIR != slots.home(known.hash));
            let other = hash(slots.home(known.hash) as u32, known.hash >> 1 & 3, begun + 1);
            assert_eq!(slots.find(other), None);
        }
        let marks: usize = slots.lines.iter().map(|line| line.guests.all().count()).sum();
        assert_eq!(marks, guests);
        for slot in (0..SLOTS).filter(|slot| !slots.is_taken(*slot)) {
            assert_eq!(slots.lines[slot / PAIR].guests.all().next(), None, "guests come home");
        }
    }
}

/// A hash that has its home there, one of four marks, and is no other flow's.
fn hash(home: u32, mark: u64, number: u32) -> u64 {
    u64::from(home << 26 | number) << 32 | u64::from(number) << 10 | mark << 1 | 1
}

fn number_of(tag: u64) -> u32 {
    (tag >> 10) as u32 & 0x3f_ffff
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_flow_is_found_and_has_one_mark_where_it_is_a_guest(
        steps in prop::collection::vec(steps(), 1..600)
    ) {
        let mut desk = Desk::new();
        for step in &steps {
            desk.take(step);
            desk.check();
        }
        desk.sweep(0, u32::MAX, 1);
        desk.check();
        prop_assert_eq!(desk.slots.live(), 0);
    }
}

#[test]
fn a_home_has_its_own_two_slots_and_eight_guests_and_further_flows_make_one_of_those_give_way() {
    let mut desk = Desk::new();
    for number in 0..40 {
        desk.begin(5, number % 2);
        desk.check();
    }
    assert_eq!(desk.flows.len(), PAIR + GUESTS);
    // The home of others is where guests of the first one live.
    (0..40).for_each(|_| desk.begin(6, 0));
    desk.check();
    assert!(desk.flows.len() > PAIR + GUESTS && desk.flows.len() <= 2 * (PAIR + GUESTS));
}

#[test]
fn flows_that_come_and_go_leave_three_in_four_at_home_and_few_without_room() {
    const BIG: usize = 1 << 14;
    let full = u32::try_from(BIG * 3 / 4).unwrap();
    let mut slots = Slots::new(BIG);
    let mut forced = 0_u32;
    let hash = |number: u32| mix(u64::from(number) ^ 0x9e37_79b9_7f4a_7c15, !u64::from(number)) | 1;
    for number in 0..8 * full {
        if let Some(slot) = number.checked_sub(full).and_then(|old| slots.find(hash(old))) {
            slots.remove(slot);
        }
        let slot = slots.choose(hash(number));
        if slots.is_taken(slot) {
            forced += u32::from(number >= full);
            slots.take(slot);
        }
        let key = FlowKey::of_hash(hash(number), true);
        let hot = Hot::new(&key, false, false, UnixNanos(0));
        let cold = Cold::new(&key, &Packet::default(), false, number, UnixNanos(0));
        slots.put(slot, &Whole::new(hot, cold));
    }
    let guests: usize = slots.lines.iter().map(|line| line.guests.all().count()).sum();
    assert!(guests * 4 < slots.live(), "{guests} of {}", slots.live());
    assert!((1..7 * full / 150).contains(&forced), "{forced} of {}", 7 * full);
}
