//! What can be wrong with a configuration, said so that it can be mended without a manual.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is wrong with a configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in the file.
    #[error("{path}:{line}: {what}")]
    At {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key, its value, and what is wrong with it.
        what: String,
    },
}

impl ConfigError {
    /// An error at a place in the file.
    pub(super) fn at(path: &Path, text: &str, span: Range<usize>, what: String) -> Self {
        Self::At { path: path.to_owned(), line: line_of(text, span.start), what }
    }

    /// An error of the TOML reader, in the words of an operator.
    pub(super) fn toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().trim_end();
        let what = match UnknownField::read(message) {
            Some(unknown) => unknown.describe(&section_before(text, span.start)),
            None => match assignment_around(text, span.start) {
                Some(assignment) => format!("{assignment}: {message}"),
                None => message.to_owned(),
            },
        };
        Self::at(path, text, span, what)
    }
}

/// What serde says of a key that no struct has.
struct UnknownField<'a> {
    name: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownField<'a> {
    fn read(message: &'a str) -> Option<Self> {
        let rest = message.strip_prefix("unknown field `")?;
        let (name, rest) = rest.split_once('`')?;
        Some(Self { name, known: rest.split('`').skip(1).step_by(2).collect() })
    }

    fn describe(&self, section: &str) -> String {
        let subject = if self.known.contains(&"capture") {
            format!("unknown section `{}`", self.name)
        } else {
            format!("unknown key `{}` in [{section}]", self.name)
        };
        let nearest =
            self.known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, self.name));
        match nearest {
            Some(nearest) => format!("{subject}; did you mean `{nearest}`?"),
            None => subject,
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// The name of the section in which `offset` lies.
fn section_before(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let header = before.lines().rev().find_map(|line| line.trim().strip_prefix('['));
    // A table of a list has two brackets.
    let name = header.map(|rest| rest.trim_start_matches('['));
    name.and_then(|rest| rest.split(']').next()).unwrap_or("top level").to_owned()
}

/// `section.key = value` of the line in which `offset` lies, if it has this form.
fn assignment_around(text: &str, offset: usize) -> Option<String> {
    let line = text.lines().nth(line_of(text, offset) - 1)?.trim();
    let (key, value) = line.split_once('=')?;
    Some(format!("{}.{} = {}", section_before(text, offset), key.trim(), value.trim()))
}
