//! Licences of everything that is built in, and crates that must not come in at all.
//!
//! Asked of `cargo tree`, because it shows what is really built for this platform with the features
//! that are on; the lock file also names crates that are optional everywhere.

use crate::{Failure, cargo};

/// Licences that may be mixed into a program under MIT or Apache-2.0: they ask for attribution and
/// nothing else.
const ALLOWED: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0", // data tables of the Unicode consortium, in the icu_ crates below `url`
];

/// Single crates with another licence, each for a reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Permissive and short; the raw socket of the load generator and of tests.
    ("afpacket", "MirOS"),
];

/// Crates that must not be built, with the reason.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "needs OpenSSL's headers to build; TLS is rustls here"),
    ("native-tls", "brings OpenSSL; TLS is rustls here"),
    ("ring", "a second cryptography provider beside aws-lc-rs makes rustls refuse to choose"),
];

/// Checks every package in the dependency tree of the workspace.
///
/// # Errors
/// Each package that breaks a rule, or why cargo could not be asked.
pub fn check() -> Result<(), Failure> {
    eprintln!("\n» licences of dependencies");
    let mut command = cargo(&["tree", "--workspace", "--prefix", "none", "--no-dedupe"]);
    let output = command
        .args(["--edges", "normal,build,dev", "--format", "{p}|{l}"])
        .output()
        .map_err(|error| format!("cannot run cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let problems = problems(&String::from_utf8_lossy(&output.stdout));
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

/// What is wrong with the packages in lines of the form `NAME vVERSION …|LICENCE`.
fn problems(tree: &str) -> Vec<String> {
    let mut lines: Vec<&str> = tree.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    let mut problems = Vec::new();
    for (package, licence) in lines.iter().filter_map(|line| line.split_once('|')) {
        let name = package.split(' ').next().unwrap_or(package);
        if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            problems.push(format!(
                "{name} must not be built ({reason}); `cargo tree -i {name}` shows who brings it"
            ));
        }
        if !EXCEPTIONS.contains(&(name, licence)) && !is_allowed(licence) {
            problems.push(format!(
                "{name} is under {licence:?}, which xtask/src/licences.rs does not allow; \
                 replace it, or add the exception with its reason"
            ));
        }
    }
    problems
}

/// Does an SPDX expression leave a way that is allowed? (Source: SPDX specification 2.3, annex D;
/// `/` is what cargo took for OR in old manifests.) AND binds tighter than OR.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut tokens = spaced.split_whitespace().peekable();
    any_of(&mut tokens) && tokens.peek().is_none()
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(tokens: &mut Tokens<'_>) -> bool {
    let mut allowed = all_of(tokens);
    while tokens.next_if_eq(&"OR").is_some() {
        // Not `||`: the right side must be read in any case.
        allowed |= all_of(tokens);
    }
    allowed
}

fn all_of(tokens: &mut Tokens<'_>) -> bool {
    let mut allowed = one(tokens);
    while tokens.next_if_eq(&"AND").is_some() {
        allowed &= one(tokens);
    }
    allowed
}

fn one(tokens: &mut Tokens<'_>) -> bool {
    match tokens.next() {
        Some("(") => {
            let allowed = any_of(tokens);
            tokens.next_if_eq(&")").is_some() && allowed
        }
        Some(licence) => {
            // An exception (`WITH …`) only adds permissions.
            if tokens.next_if_eq(&"WITH").is_some() {
                tokens.next();
            }
            ALLOWED.contains(&licence)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_way_is_enough() {
        for licence in [
            "MIT",
            "GPL-3.0 OR MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "ISC AND (Apache-2.0 OR ISC) AND OpenSSL OR MIT",
        ] {
            assert!(is_allowed(licence), "{licence}");
        }
    }

    #[test]
    fn every_part_of_a_conjunction_counts() {
        for licence in ["GPL-3.0", "MIT AND GPL-2.0", "MIT AND (GPL-2.0 OR GPL-3.0)", "", "(MIT"] {
            assert!(!is_allowed(licence), "{licence}");
        }
    }

    #[test]
    fn banned_crates_and_unknown_licences_are_named() {
        let problems = problems("ring v0.17.14|Apache-2.0 AND ISC\nx v1.0.0|GPL-3.0\ny v1|MIT\n");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("ring must not be built"), "{}", problems[0]);
        assert!(problems[1].starts_with("x is under \"GPL-3.0\""), "{}", problems[1]);
    }

    #[test]
    fn an_exception_is_for_one_crate_only() {
        assert!(problems("afpacket v0.2.3|MirOS\n").is_empty());
        assert_eq!(problems("other v1.0.0|MirOS\n").len(), 1);
    }
}
