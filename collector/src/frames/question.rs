//! What is asked for, and whether a frame is that.

use std::collections::BTreeMap;

use packet::Address;
use packet::frame::LinkType;
use packet::libpcap::{CompileError, Libpcap, Program};
use wire::units::UnixNanos;

use crate::store::blocks::StoredFrame;
use crate::store::index::{Ends, Index};

/// Which frames. All conditions must hold.
#[derive(Debug)]
pub struct Question {
    /// Not earlier.
    pub from: UnixNanos,
    /// Not later.
    pub to: UnixNanos,
    /// Of this sensor.
    pub sensor: Option<String>,
    /// From or to this host, in the innermost packet.
    pub host: Option<Address>,
    /// From or to this TCP, UDP or SCTP port, in the innermost packet.
    pub port: Option<u16>,
    /// What passes this filter.
    pub filter: Option<Filter>,
    /// The first so many.
    pub limit: Option<u64>,
}

/// A tcpdump expression, compiled for every link type for which it makes sense.
#[derive(Debug)]
pub struct Filter {
    libpcap: Libpcap,
    programs: BTreeMap<u16, Program>,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The expression is wrong, or there is no libpcap.
    #[error("filter {expression:?}: {source}")]
    Refused {
        /// The expression.
        expression: String,
        /// Why.
        source: CompileError,
    },
    /// It asks what no file says.
    #[error(
        "filter {expression:?} tests what a stored frame does not say of itself, such as its direction"
    )]
    NotOfFiles {
        /// The expression.
        expression: String,
    },
}

/// Link types that a sensor may have.
const LINKTYPES: [LinkType; 7] = [
    LinkType::ETHERNET,
    LinkType::RAW,
    LinkType::IPV4,
    LinkType::IPV6,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::NULL,
];
/// More than any frame has.
const WHOLE_FRAME: u32 = 262_144;

impl Filter {
    /// Compiles an expression. Frames of a link type for which libpcap refuses it do not pass; it must make sense for
    /// Ethernet, or for raw IP.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn new(expression: &str) -> Result<Self, FilterError> {
        let refused = |source| FilterError::Refused { expression: expression.to_owned(), source };
        let libpcap = Libpcap::load().map_err(refused)?;
        let mut programs = BTreeMap::new();
        let mut first_error = None;
        for link in LINKTYPES {
            match libpcap.compile(expression, link, WHOLE_FRAME) {
                Ok(program) if program.asks_the_kernel() => {
                    return Err(FilterError::NotOfFiles { expression: expression.to_owned() });
                }
                Ok(program) => {
                    programs.insert(link.0, program);
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let makes_sense =
            [LinkType::ETHERNET, LinkType::RAW].iter().any(|link| programs.contains_key(&link.0));
        match first_error.filter(|_| !makes_sense) {
            Some(error) => Err(refused(error)),
            None => Ok(Self { libpcap, programs }),
        }
    }

    fn passes(&self, frame: &StoredFrame<'_>, linktype: u16) -> bool {
        let program = self.programs.get(&linktype);
        program.is_some_and(|program| self.libpcap.matches(program, frame.data, frame.wire_len.0))
    }
}

impl Question {
    /// May a segment with this index have such frames, whatever their time?
    #[must_use]
    pub fn may_be_in(&self, index: &Index) -> bool {
        let is_of_sensor = self.sensor.as_ref().is_none_or(|sensor| {
            index.interfaces.iter().any(|interface| interface.sensor() == sensor)
        });
        is_of_sensor && index.may_have(self.host, self.port)
    }

    /// Does it ask for frames of an interface of this sensor?
    #[must_use]
    pub fn is_about(&self, sensor: &str) -> bool {
        self.sensor.as_ref().is_none_or(|wanted| wanted == sensor)
    }

    /// Is this frame, of a sensor that the question [is about](Self::is_about), one of those?
    #[must_use]
    pub fn wants(&self, frame: &StoredFrame<'_>, linktype: u16) -> bool {
        if frame.time < self.from || self.to < frame.time {
            return false;
        }
        let has_ends = self.host.is_none() && self.port.is_none() || {
            let ends = Ends::of(frame, linktype);
            let has_host = |host| ends.addresses.is_some_and(|both| both.contains(&host));
            let has_port = |port| ends.ports.is_some_and(|both| both.contains(&port));
            self.host.is_none_or(has_host) && self.port.is_none_or(has_port)
        };
        has_ends && self.filter.as_ref().is_none_or(|filter| filter.passes(frame, linktype))
    }
}
