//! Where each value of a configuration file stands, so that an error can point at it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// A fault in the configuration. Displays as `FILE:LINE: [section] key = value: what is wrong`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself cannot be read.
    #[error("{}: cannot read the configuration: {source}", file.display())]
    Unreadable {
        /// The configuration file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{}:{line}: {problem}", file.display())]
    Syntax {
        /// The configuration file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// A section that does not exist.
    #[error("{place}: unknown section; {hint}")]
    UnknownSection {
        /// File, line and section.
        place: String,
        /// The nearest known section, or all of them.
        hint: String,
    },
    /// A key that does not exist in its section.
    #[error("{place}: unknown key; {hint}")]
    UnknownKey {
        /// File, line, section, key and value.
        place: String,
        /// The nearest known key, or all of them.
        hint: String,
    },
    /// A value of the wrong type, out of its range, or naming something unusable.
    #[error("{place}: {problem}")]
    Value {
        /// File, line, section, key and value.
        place: String,
        /// What is wrong, and what helps.
        problem: String,
    },
}

/// A section and the keys that it may have.
pub struct Section {
    /// Name, without brackets.
    pub name: &'static str,
    /// Its keys.
    pub keys: &'static [&'static str],
}

/// Line and text of one value.
#[derive(Clone, Debug)]
struct Written {
    line: usize,
    text: String,
    span: Range<usize>,
}

/// Where each value of one configuration file stands.
#[derive(Clone, Debug)]
pub struct Origin {
    file: PathBuf,
    values: BTreeMap<(String, String), Written>,
}

impl Origin {
    /// Finds the place of every value, and refuses sections and keys that are not in `known`.
    ///
    /// # Errors
    /// Text that is no TOML; an unknown section or key, with the nearest known one.
    pub fn parse(file: &Path, text: &str, known: &[Section]) -> Result<Self, ConfigError> {
        let document = DeTable::parse(text).map_err(|error| syntax(file, text, &error))?;
        let mut origin = Self { file: file.to_owned(), values: BTreeMap::new() };
        for (name, value) in document.get_ref() {
            let section = name.get_ref().as_ref();
            let line = line_at(text, name.span().start);
            let keys = known.iter().find(|known| known.name == section).map(|known| known.keys);
            let (Some(keys), DeValue::Table(table)) = (keys, value.get_ref()) else {
                return Err(origin.unknown_section(line, section, known));
            };
            for (key, value) in table {
                let text_of_value = text.get(value.span()).unwrap_or_default().to_owned();
                let line = line_at(text, key.span().start);
                let key = key.get_ref().as_ref();
                if !keys.contains(&key) {
                    return Err(origin.unknown_key(line, section, key, &text_of_value, keys));
                }
                let written = Written { line, text: text_of_value, span: value.span() };
                origin.values.insert((section.to_owned(), key.to_owned()), written);
            }
        }
        Ok(origin)
    }

    /// An error about the value of a key, wherever it comes from: written, or a default.
    #[must_use]
    pub fn fault(&self, section: &str, key: &str, default: &str, problem: String) -> ConfigError {
        let file = self.file.display();
        let place = match self.values.get(&(section.to_owned(), key.to_owned())) {
            Some(Written { line, text, .. }) => {
                format!("{file}:{line}: [{section}] {key} = {text}")
            }
            None => format!("{file}: [{section}] {key} = {default} (default)"),
        };
        ConfigError::Value { place, problem }
    }

    /// Turns an error of the TOML reader into one that names section and key.
    #[must_use]
    pub fn locate(&self, text: &str, error: &toml::de::Error) -> ConfigError {
        let start = error.span().map_or(0, |span| span.start);
        let found = self
            .values
            .iter()
            .find(|(_, written)| written.span.contains(&start) || written.span.start == start);
        match found {
            Some(((section, key), _)) => {
                self.fault(section, key, "", error.message().replace('\n', " "))
            }
            None => syntax(&self.file, text, error),
        }
    }

    fn unknown_section(&self, line: usize, section: &str, known: &[Section]) -> ConfigError {
        let names: Vec<String> = known.iter().map(|known| format!("[{}]", known.name)).collect();
        let hint = hint(&format!("[{section}]"), names.iter().map(String::as_str));
        let place = format!("{}:{line}: [{section}]", self.file.display());
        ConfigError::UnknownSection { place, hint }
    }

    fn unknown_key(
        &self,
        line: usize,
        section: &str,
        key: &str,
        value: &str,
        known: &[&str],
    ) -> ConfigError {
        let place = format!("{}:{line}: [{section}] {key} = {value}", self.file.display());
        ConfigError::UnknownKey { place, hint: hint(key, known.iter().copied()) }
    }
}

/// `did you mean X?` where a known word is near, else all known words.
fn hint<'w>(word: &str, known: impl Iterator<Item = &'w str> + Clone) -> String {
    let nearest = known
        .clone()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .max_by(|left, right| left.0.total_cmp(&right.0));
    match nearest {
        Some((likeness, candidate)) if likeness >= NEAR => format!("did you mean {candidate}?"),
        _ => format!("known: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = line_at(text, error.span().map_or(0, |span| span.start));
    let problem = error.message().replace('\n', " ");
    ConfigError::Syntax { file: file.to_owned(), line, problem }
}

/// Line number, from 1, of a byte position.
fn line_at(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|&byte| byte == b'\n').count() + 1
}

/// Jaro-Winkler likeness from which a word counts as a misspelling of another.
const NEAR: f64 = 0.75;
