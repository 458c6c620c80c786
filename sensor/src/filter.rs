//! The operator's packet filter: a tcpdump expression, compiled by libpcap.
//!
//! ```text
//!   live   compiled at the start for each link type, as a device may be made anew with another one ─▶
//!          attached to the rings: the kernel runs it, and what it rejects is in no counter
//!   file   compiled once for each link type ─▶ libpcap's interpreter; what it rejects is skipped
//! ```
//!
//! It decides what is analysed. It has no part in what is never exported: the worker compares each
//! frame with the sensor's own connections whatever the filter lets in.

use packet::frame::{Frame, LinkType};
use packet::libpcap::{CompileError, Libpcap, Program};

/// An expression and where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// In the language of tcpdump.
    pub text: String,
    /// Such as `/etc/ringwatch/sensor.toml:12: capture.filter`, or `--filter`.
    pub origin: String,
}

/// Why a filter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// libpcap is missing.
    #[error("{origin}")]
    Missing {
        /// Where the filter was given.
        origin: String,
        /// What cannot be loaded.
        source: CompileError,
    },
    /// The expression is wrong, for this link type at least.
    #[error("{} = {:?}: {fault} (for link type {})", .expression.origin, .expression.text, .link.0)]
    Expression {
        /// The expression.
        expression: Expression,
        /// What it was to be compiled for.
        link: LinkType,
        /// What is wrong.
        fault: String,
    },
}

/// What is said of a VLAN tag in the filter of a ring.
const VLAN_FAULT: &str = "it tests a VLAN tag, which the kernel takes out of a frame before the filter \
                          runs; leave it out, frames of all VLANs match by what is behind the tag";
/// What is said of a direction in the filter of a file.
const DIRECTION_FAULT: &str =
    "it tests what a file does not say of its frames, such as their direction";

/// Compiles filters.
#[derive(Debug)]
pub struct Compiler {
    libpcap: Libpcap,
    expression: Expression,
}

impl Compiler {
    /// Loads libpcap.
    ///
    /// # Errors
    /// [`FilterError::Missing`].
    pub fn new(expression: &Expression) -> Result<Self, FilterError> {
        let libpcap = Libpcap::load()
            .map_err(|source| FilterError::Missing { origin: expression.origin.clone(), source })?;
        Ok(Self { libpcap, expression: expression.clone() })
    }

    /// The program for rings on interfaces of this link type. Of a frame that it lets in it keeps
    /// `snaplen` bytes.
    ///
    /// # Errors
    /// [`FilterError::Expression`] if libpcap refuses the expression, or if it tests a VLAN tag.
    pub fn for_ring(&self, link: LinkType, snaplen: u32) -> Result<Program, FilterError> {
        let program = self.compile(link, snaplen)?;
        if link == LinkType::ETHERNET && program.looks_for_vlan_tag() {
            return Err(self.fault(link, VLAN_FAULT.to_owned()));
        }
        Ok(program)
    }

    /// The program for rings on all interfaces. Of raw IP it lets nothing in where the expression makes
    /// sense for Ethernet alone, such as `ether host`.
    ///
    /// # Errors
    /// As for [`Compiler::for_ring`] with Ethernet.
    pub fn for_all(&self, snaplen: u32) -> Result<Program, FilterError> {
        let ethernet = self.for_ring(LinkType::ETHERNET, snaplen)?;
        let raw = self.compile(LinkType::RAW, snaplen).unwrap_or_else(|error| {
            tracing::info!(%error, "the filter lets in no frame of an interface without Ethernet");
            Program::nothing()
        });
        Program::by_hardware(&ethernet, &raw)
            .map_err(|error| self.fault(LinkType::ETHERNET, error.to_string()))
    }

    /// The program for frames of a file.
    fn for_file(&self, link: LinkType) -> Result<Program, FilterError> {
        let program = self.compile(link, crate::file::MAX_CAPTURED)?;
        if program.asks_the_kernel() {
            return Err(self.fault(link, DIRECTION_FAULT.to_owned()));
        }
        Ok(program)
    }

    fn compile(&self, link: LinkType, snaplen: u32) -> Result<Program, FilterError> {
        let compiled = self.libpcap.compile(&self.expression.text, link, snaplen);
        compiled.map_err(|error| self.fault(link, error.to_string()))
    }

    fn fault(&self, link: LinkType, fault: String) -> FilterError {
        FilterError::Expression { expression: self.expression.clone(), link, fault }
    }
}

/// What the rings on one interface let in, also after it was deleted and made anew with another link
/// type: then nobody is left who could compile or ask.
#[derive(Clone, Debug)]
pub struct RingFilter {
    known: Vec<(LinkType, Result<Option<Program>, String>)>,
}

impl RingFilter {
    /// For each link type its program, where `None` lets everything in, or why frames of it cannot be
    /// taken in.
    #[must_use]
    pub const fn new(known: Vec<(LinkType, Result<Option<Program>, String>)>) -> Self {
        Self { known }
    }

    /// The program for a ring on an interface of this link type; `None` lets everything in.
    ///
    /// # Errors
    /// Why its frames cannot be taken in.
    pub fn for_link(&self, link: LinkType) -> Result<Option<&Program>, &str> {
        let found = self.known.iter().find(|(of, _)| *of == link);
        let (_, program) = found.ok_or("its frames cannot be analysed")?;
        program.as_ref().map(Option::as_ref).map_err(String::as_str)
    }
}

/// The filter of a file, whose frames may be of several link types.
#[derive(Debug)]
pub struct FileFilter {
    compiler: Compiler,
    /// A few at most: a file has few link types.
    programs: Vec<(LinkType, Program)>,
    skipped: u64,
}

impl FileFilter {
    /// Compiles for the link types that are known already; others are compiled when they come.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn new(
        expression: &Expression,
        known: impl IntoIterator<Item = LinkType>,
    ) -> Result<Self, FilterError> {
        let compiler = Compiler::new(expression)?;
        let mut filter = Self { compiler, programs: Vec::new(), skipped: 0 };
        for link in known {
            filter.program(link)?;
        }
        Ok(filter)
    }

    /// Whether a frame passes. Counts those that do not.
    ///
    /// # Errors
    /// [`FilterError::Expression`] at the first frame of a link type for which the expression makes no
    /// sense.
    pub fn lets_in(&mut self, frame: &Frame<'_>) -> Result<bool, FilterError> {
        let at = self.program(frame.link)?;
        let Self { compiler, programs, skipped } = self;
        let passes = compiler.libpcap.matches(&programs[at].1, frame.data, frame.wire_len.0);
        *skipped += u64::from(!passes);
        Ok(passes)
    }

    /// Frames that did not pass.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Index of the program for a link type.
    fn program(&mut self, link: LinkType) -> Result<usize, FilterError> {
        if let Some(at) = self.programs.iter().position(|(of, _)| *of == link) {
            return Ok(at);
        }
        self.programs.push((link, self.compiler.for_file(link)?));
        Ok(self.programs.len() - 1)
    }
}
