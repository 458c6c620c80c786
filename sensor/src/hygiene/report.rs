//! Verdicts as text, as JSON, and as lines of the log.

use std::fmt;

use serde::Serialize;

use super::verdicts::{Finding, Verdict};

/// All findings about one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the interface.
    pub interface: String,
    /// The findings, always the same items in the same order.
    pub items: Vec<Finding>,
}

impl Report {
    /// Something should be mended.
    #[must_use]
    pub fn has_warnings(&self) -> bool {
        self.count(Verdict::Warning) > 0
    }

    /// As one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and lists of strings are JSON")
    }

    /// One line of the log for each finding that is not good.
    pub fn log(&self) {
        let Self { interface, items } = self;
        for Finding { item, verdict, found, why, remedy } in items {
            let remedy = remedy.as_deref().unwrap_or("none");
            match verdict {
                Verdict::Good => {}
                Verdict::Warning => {
                    tracing::warn!(interface, item, found, why, remedy, "interface set up badly");
                }
                Verdict::Unknown => {
                    tracing::info!(interface, item, why, "interface set up in a way not known");
                }
            }
        }
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.items.iter().filter(|one| one.verdict == verdict).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} warnings, {} unknown, {} good",
            self.interface,
            self.count(Verdict::Warning),
            self.count(Verdict::Unknown),
            self.count(Verdict::Good)
        )?;
        for Finding { item, verdict, found, why, remedy } in &self.items {
            let verdict = match verdict {
                Verdict::Good => "good",
                Verdict::Warning => "WARNING",
                Verdict::Unknown => "unknown",
            };
            let found = if found == verdict { "" } else { found.as_str() };
            let separator = if found.is_empty() || why.is_empty() { "" } else { ": " };
            writeln!(f, "  {verdict:<8} {item:<16} {found}{separator}{why}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "  {:<25} {remedy}", "")?;
            }
        }
        Ok(())
    }
}
