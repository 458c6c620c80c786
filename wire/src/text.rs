//! Words that all programs say in the same way.

use std::error::Error;

/// An error and its causes on one line: `cannot read ca.pem: permission denied`.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What [`is_name`] asks for, in words.
pub const NAME_RULE: &str = "1 to 63 of a-z 0-9 . _ -, a letter or digit first";

/// Can this be the name of a sensor or collector, as a certificate carries it?
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 63
        && name.bytes().next().is_some_and(is_alphanumeric)
        && name.bytes().all(|byte| is_alphanumeric(byte) || b".-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_on_the_same_line() {
        assert_eq!(
            error_chain(&Outer(std::io::Error::other("disk is gone"))),
            "cannot start: disk is gone"
        );
    }

    #[test]
    fn names_are_those_that_a_certificate_can_carry() {
        for good in ["a", "0", "web-7", "db_1.example", &"a".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "A", "a b", "ä", "a/b", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
