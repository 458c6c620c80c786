//! Whether answers are seen here at all.
//!
//! On a tap of one direction, clients go on to talk without anybody being seen to answer. Silence and missing
//! refusals say little then. A scanner can talk to nobody as well, so what it sends proves nothing by itself: an
//! acknowledgement alone does not count, and of one source no more than a few contacts do.

use super::groups::Group;
use crate::evidence::{Flags, Observation};

/// Handshakes of the window, by what was seen of them.
#[derive(Debug, Default)]
pub(super) struct View {
    both_ways: u32,
    /// Of each source up to [`VOTES`].
    one_way: u32,
    /// By an acknowledgement alone.
    claimed: u32,
    /// Somebody who attempted something here was answered, or refused, since the start.
    has_seen_answers: bool,
}

/// What was seen of the handshake of one contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Handshake {
    /// It was not completed.
    #[default]
    None,
    /// Its source acknowledges an answer, and nothing else was seen.
    Claimed,
    /// Its answer and its completion.
    BothWays,
    /// Its source sent data as well.
    OneWay,
}

/// What a contact is for which no answer was seen in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Due {
    /// Its time is not up.
    #[default]
    NotYet,
    /// It was silent.
    Silent,
    /// Frames were lost: the answer may have been among them.
    Lost,
    /// Its source acknowledges an answer, which may have taken another way.
    Unclear,
    /// The same, where answers do take another way: it was answered.
    Unseen,
}

/// Fewer handshakes than this tell nothing.
const LEAST: u32 = 20;

/// Contacts of one source that count as handshakes without an answer.
const VOTES: u32 = 5;

impl Handshake {
    const fn of(flags: Flags) -> Self {
        if !flags.has_completed() {
            Self::None
        } else if flags.has(Observation::Answered) {
            Self::BothWays
        } else if flags.has(Observation::Refused) {
            Self::None
        } else if flags.has(Observation::Carried) {
            Self::OneWay
        } else {
            Self::Claimed
        }
    }
}

impl View {
    /// Brings the counts up to what is known of a contact, the group of whose source is `of_source`.
    pub(super) fn settle(
        &mut self,
        seen: &mut Handshake,
        flags: Flags,
        of_source: Option<&mut Group>,
    ) {
        self.has_seen_answers |= flags.has_attempt()
            && (flags.has(Observation::Answered) || flags.has(Observation::Refused));
        let now = Handshake::of(flags);
        if now == *seen {
            return;
        }
        let Some(of_source) = of_source else { return };
        self.forget(*seen, of_source);
        *seen = now;
        match now {
            Handshake::None => {}
            Handshake::Claimed => self.claimed += 1,
            Handshake::BothWays => self.both_ways += 1,
            Handshake::OneWay => {
                of_source.one_way += 1;
                self.one_way += (of_source.one_way <= VOTES) as u32;
            }
        }
    }

    /// A contact leaves the window.
    pub(super) const fn forget(&mut self, seen: Handshake, of_source: &mut Group) {
        match seen {
            Handshake::None => {}
            Handshake::Claimed => self.claimed -= 1,
            Handshake::BothWays => self.both_ways -= 1,
            Handshake::OneWay => {
                self.one_way -= (of_source.one_way <= VOTES) as u32;
                of_source.one_way -= 1;
            }
        }
    }

    /// Answers are taken not to be seen here: of ten handshakes, nine were without one; or there never was any, and an
    /// acknowledgement alone says as much as may be.
    pub(super) const fn is_one_way(&self) -> bool {
        self.has_one_way_data() || !self.has_seen_answers && self.claimed + self.one_way >= LEAST
    }

    /// Of ten handshakes, nine were those of clients that send data and get no answer.
    const fn has_one_way_data(&self) -> bool {
        let all = self.both_ways + self.one_way;
        all >= LEAST && self.one_way * 10 >= all * 9
    }

    /// Some answers are not seen here: of several sources, and of a quarter of all handshakes.
    const fn misses_some(&self) -> bool {
        self.one_way > VOTES && self.one_way * 4 >= self.both_ways + self.one_way
    }

    /// Some answers, or all, are not seen here.
    pub(super) const fn misses_answers(&self) -> bool {
        self.is_one_way() || self.misses_some()
    }

    /// What a contact is with these flags, none of which is an answer, when its time is up.
    pub(super) const fn of_unanswered(&self, flags: Flags) -> Due {
        let has_data = flags.has(Observation::Carried);
        if !flags.has_completed() {
            Due::Silent
        } else if self.has_one_way_data() {
            Due::Unseen
        } else if !self.has_seen_answers || has_data && self.misses_some() {
            Due::Unclear
        } else {
            Due::Silent
        }
    }
}
