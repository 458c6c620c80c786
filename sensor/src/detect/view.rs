//! Whether answers are seen here at all.
//!
//! On a tap of one direction, handshakes complete without their SYN+ACK being seen. Silence and missing
//! refusals say little then.

use crate::evidence::{Flags, Observation};

/// Handshakes of the window, by what was seen of them.
#[derive(Debug, Default)]
pub(super) struct View {
    both_ways: u32,
    one_way: u32,
}

/// What was seen of the handshake of one contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Handshake {
    /// It was not completed.
    #[default]
    None,
    /// Its answer and its completion.
    BothWays,
    /// Only its completion.
    OneWay,
}

/// Fewer completed handshakes than this tell nothing.
const LEAST: u32 = 20;

impl View {
    /// Brings the counts up to what is known of a contact.
    pub(super) fn settle(&mut self, seen: &mut Handshake, flags: Flags) {
        let now = match (flags.has(Observation::Completed), flags.has(Observation::Answered)) {
            (false, _) => Handshake::None,
            (true, true) => Handshake::BothWays,
            (true, false) => Handshake::OneWay,
        };
        if now != *seen {
            self.forget(*seen);
            match now {
                Handshake::None => {}
                Handshake::BothWays => self.both_ways += 1,
                Handshake::OneWay => self.one_way += 1,
            }
            *seen = now;
        }
    }

    /// A contact leaves the window.
    pub(super) const fn forget(&mut self, seen: Handshake) {
        match seen {
            Handshake::None => {}
            Handshake::BothWays => self.both_ways -= 1,
            Handshake::OneWay => self.one_way -= 1,
        }
    }

    /// Of ten completed handshakes, nine were completed without an answer in sight.
    pub(super) const fn is_one_way(&self) -> bool {
        let all = self.both_ways + self.one_way;
        all >= LEAST && self.one_way * 10 >= all * 9
    }
}
