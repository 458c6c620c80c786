//! What befalls the appliance in a round: drawn from a seed, so that a run can be repeated.

use std::time::Duration;

/// SplitMix64.
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Sensor,
    Collector,
    Both,
}

impl Victim {
    pub fn is_sensor(self) -> bool {
        self != Self::Collector
    }

    pub fn is_collector(self) -> bool {
        self != Self::Sensor
    }
}

/// What lasts for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The link to the collector swallows everything.
    Silence,
    /// The link to the collector resets every connection.
    Reset,
    /// The disk of the spool is full.
    SpoolFull,
    /// The disk of the collector is full.
    StoreFull,
}

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// It begins with all well again, not in the middle of what the one before left.
    pub is_calm: bool,
    /// How long it takes until something happens.
    pub moment: Duration,
    /// What, and for how long.
    pub fault: Option<(Fault, Duration)>,
    /// Who is killed, how long after the beginning of the fault, and how long before the programs are
    /// started again.
    pub kill: Option<(Victim, Duration, Duration)>,
}

impl Round {
    /// The next round of a run.
    pub fn draw(dice: &mut Dice) -> Self {
        let victim = match dice.below(3) {
            0 => Victim::Sensor,
            1 => Victim::Collector,
            _ => Victim::Both,
        };
        // Longer than memory holds the records of the load, no disk is full.
        let fault = match dice.below(4) {
            0 => (Fault::Silence, dice.millis(4000)),
            1 => (Fault::Reset, dice.millis(2000)),
            2 => (Fault::SpoolFull, dice.millis(2000)),
            _ => (Fault::StoreFull, dice.millis(3000)),
        };
        let (is_calm, moment) = (dice.below(2) == 0, dice.millis(1500));
        let kill = (victim, dice.millis(1 + fault.1.as_millis() as u64), dice.millis(800));
        // Half of them only kill, a quarter only disturbs, a quarter does both at once.
        match dice.below(4) {
            0 | 1 => {
                Self { is_calm, moment, fault: None, kill: Some((kill.0, Duration::ZERO, kill.2)) }
            }
            2 => Self { is_calm, moment, fault: Some(fault), kill: None },
            _ => Self { is_calm, moment, fault: Some(fault), kill: Some(kill) },
        }
    }
}
