//! Names and globs of interfaces.

use glob::Pattern;

/// Interfaces by their names: those that match one of the patterns, but for those that are excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns {
    wanted: Vec<Pattern>,
    excluded: Vec<Pattern>,
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no name or glob of interfaces: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Longest name of all patterns together, in bytes: a collector takes 255.
const LONGEST_NAME: usize = 200;

impl Patterns {
    /// Checks the patterns. In a glob, `*` stands for any characters, `?` for one, and `[a-c]` for one of
    /// those.
    ///
    /// # Errors
    /// The first one that cannot be used.
    pub fn new(wanted: &[String], excluded: &[String]) -> Result<Self, PatternError> {
        let parse = |texts: &[String]| -> Result<Vec<Pattern>, PatternError> {
            texts.iter().map(|text| parse(text)).collect()
        };
        Ok(Self { wanted: parse(wanted)?, excluded: parse(excluded)? })
    }

    /// One of the names is a glob, so that interfaces which do not exist yet may match.
    #[must_use]
    pub fn has_glob(&self) -> bool {
        self.wanted.iter().any(|one| one.as_str().contains(['*', '?', '[']))
    }

    /// Is an interface of this name captured?
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.wanted.iter().any(|one| one.matches(name)) && !self.excludes(name)
    }

    /// Is an interface of this name excluded?
    #[must_use]
    pub fn excludes(&self, name: &str) -> bool {
        self.excluded.iter().any(|one| one.matches(name))
    }

    /// What the ring is called: the patterns as they were written, with commas between them.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = self.wanted.iter().map(Pattern::as_str).collect::<Vec<_>>().join(",");
        if name.len() > LONGEST_NAME {
            name.truncate(name.floor_char_boundary(LONGEST_NAME));
            name.push('…');
        }
        name
    }
}

fn parse(text: &str) -> Result<Pattern, PatternError> {
    let refuse = |reason: &str| Err(PatternError { pattern: text.into(), reason: reason.into() });
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.contains(|one: char| one.is_control() || one.is_whitespace() || one == '/') {
        return refuse("names of interfaces have no spaces and no slashes");
    }
    Pattern::new(text).or_else(|error| refuse(error.msg))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(wanted: &[&str], excluded: &[&str]) -> Patterns {
        let owned = |texts: &[&str]| texts.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        Patterns::new(&owned(wanted), &owned(excluded)).unwrap()
    }

    #[test]
    fn names_and_globs_match_and_exclusions_come_last() {
        let patterns = patterns(&["veth*", "eth0", "b?[0-2]"], &["veth9*", "br1"]);
        assert!(patterns.has_glob());
        for name in ["veth", "veth0", "eth0", "br0", "br2"] {
            assert!(patterns.matches(name), "{name}");
        }
        for name in ["veth9", "veth99", "br1", "br3", "eth01", "aveth0", "lo", ""] {
            assert!(!patterns.matches(name), "{name}");
        }
        assert_eq!(patterns.name(), "veth*,eth0,b?[0-2]");
    }

    #[test]
    fn a_star_is_everything_and_a_name_is_no_glob() {
        let all = patterns(&["*"], &[]);
        assert!(all.matches("lo") && all.matches(".hidden") && all.matches("eth0.7"));
        assert!(!patterns(&["eth0", "lo"], &["veth*"]).has_glob());
    }

    #[test]
    fn what_cannot_be_a_pattern_is_named_with_its_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            ("eth0 eth1", "names of interfaces have no spaces"),
            ("eth[", "invalid range pattern"),
            ("a**b", "recursive wildcards must form a single path component"),
        ] {
            let error = Patterns::new(&[text.to_owned()], &[]).unwrap_err();
            assert_eq!(error.pattern, text);
            assert!(error.reason.starts_with(reason), "{error}");
            assert_eq!(Patterns::new(&["*".into()], &[text.to_owned()]), Err(error));
        }
    }

    #[test]
    fn many_patterns_make_a_name_of_bounded_length() {
        let many: Vec<String> = (0..100).map(|one| format!("ü{one}*")).collect();
        let name = Patterns::new(&many, &[]).unwrap().name();
        assert!(name.len() < 255 && name.ends_with('…'), "{name}");
    }
}
