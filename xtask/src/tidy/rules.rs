//! Rules for Rust code: sizes, and words that have one place or none.

use super::{File, Finding};

/// Longest function, in lines from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Longest file, in lines above its test module.
const FILE_LINES: usize = 700;
/// The places with unsafe code; why is in docs/decisions: 0001, 0003, and the load generator's.
const UNSAFE_PLACES: [&str; 4] =
    ["sensor/src/afpacket/", "sensor/src/hardware.rs", "packet/src/libpcap.rs", "perf/src/bpf.rs"];

/// Applies the rules to one file.
pub(super) fn check(file: &File) -> Vec<Finding> {
    let Some(source) = &file.source else { return Vec::new() };
    let mut findings = Vec::new();
    let lines = production_lines(&source.code);
    if lines > FILE_LINES {
        findings.push(file.finding(
            0,
            format!("{lines} lines, more than {FILE_LINES}; split it by concept into files"),
        ));
    }
    for function in functions(&source.code) {
        if function.lines > FUNCTION_LINES {
            findings.push(file.finding(
                function.line,
                format!(
                    "function {} has {} lines, more than {FUNCTION_LINES}; give its parts names",
                    function.name, function.lines
                ),
            ));
        }
    }
    for (index, line) in source.code.lines().enumerate() {
        let mut found = |text: &str| findings.push(file.finding(index + 1, text.to_owned()));
        if has_word(line, "unsafe")
            && !UNSAFE_PLACES.iter().any(|place| file.path.starts_with(place))
        {
            found(
                "unsafe code outside the places that docs/architecture.md names; use a safe crate",
            );
        }
        let attribute = line.replace(' ', "");
        if attribute.contains("#[ignore") {
            found("ignored test; make it skip by itself with a reason that is counted");
        }
        if attribute.contains("[allow(") {
            found(
                "bare allow; write #[expect(…, reason = \"…\")], which goes when it is not needed",
            );
        }
    }
    findings
}

/// Lines above the test module at the end of a file.
fn production_lines(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "))
        .unwrap_or(lines.len())
}

struct Function<'a> {
    name: &'a str,
    /// From 1.
    line: usize,
    lines: usize,
}

/// All functions with a body, nested ones as well.
fn functions(code: &str) -> Vec<Function<'_>> {
    let mut functions = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].ends_with(is_name) {
            continue;
        }
        let behind = &code[at + 3..];
        let name = behind.split(|c| !is_name(c)).next().unwrap_or_default();
        if let Some(length) = body_end(behind)
            && !name.is_empty()
        {
            functions.push(Function {
                name,
                line: 1 + code[..at].matches('\n').count(),
                lines: 1 + behind[..length].matches('\n').count(),
            });
        }
    }
    functions
}

/// Where the body of the function whose signature `code` begins with ends; `None` without a body.
fn body_end(code: &str) -> Option<usize> {
    let mut braces = 0;
    // Parentheses and brackets of the signature: a `;` in `[u8; 4]` ends nothing.
    let mut others = 0;
    for (at, character) in code.char_indices() {
        match character {
            '(' | '[' if braces == 0 => others += 1,
            ')' | ']' if braces == 0 => others -= 1,
            ';' if braces == 0 && others == 0 => return None,
            '{' if others == 0 => braces += 1,
            '}' if others == 0 => {
                braces -= 1;
                if braces <= 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Does the text hold this word, not as a part of a longer one?
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_name) && !text[at + word.len()..].starts_with(is_name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        check(&file(path, text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_function_of_seventy_lines_passes_and_one_more_does_not() {
        let function =
            |body: usize| format!("\nfn f(a: [u8; 4]) {{\n{}}}\n", "    a();\n".repeat(body));
        assert!(texts("a.rs", &function(68)).is_empty());
        let found = texts("a.rs", &function(69));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a.rs:2: function f has 71 lines"), "{}", found[0]);
    }

    #[test]
    fn braces_in_strings_and_declarations_do_not_confuse_the_count() {
        let trait_ = format!("trait T {{\n    fn a();\n{}}}\n", "// a line\n".repeat(80));
        assert!(texts("a.rs", &trait_).is_empty());
        let text = format!("fn f() {{\n    g(\"}}\");\n{}}}\n", "\n".repeat(80));
        assert_eq!(texts("a.rs", &text).len(), 1);
    }

    #[test]
    fn only_lines_above_the_tests_count_for_a_file() {
        let short =
            format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(700), "\n".repeat(700));
        assert!(texts("a.rs", &short).is_empty());
        assert!(texts("a.rs", &"\n".repeat(701))[0].contains("701 lines"));
    }

    #[test]
    fn unsafe_code_has_four_places() {
        let text = "fn f() {\n    unsafe { g() }\n}\n";
        for place in [
            "sensor/src/afpacket/sys.rs",
            "sensor/src/hardware.rs",
            "packet/src/libpcap.rs",
            "perf/src/bpf.rs",
        ] {
            assert!(texts(place, text).is_empty());
        }
        assert!(
            texts("sensor/src/worker.rs", text)[0].starts_with("sensor/src/worker.rs:2: unsafe")
        );
        assert!(texts("wire/src/lib.rs", "#![forbid(unsafe_code)]\n// unsafe\n").is_empty());
    }

    #[test]
    fn ignored_tests_and_bare_allows_are_found() {
        assert_eq!(texts("a.rs", "#[ignore]\nfn f() {}\n").len(), 1);
        assert_eq!(texts("a.rs", "#[ignore = \"slow\"]\nfn f() {}\n").len(), 1);
        assert_eq!(texts("a.rs", "#![allow(dead_code)]\n").len(), 1);
        assert_eq!(
            texts("a.rs", "#[cfg_attr(test, allow(x))]\n#[expect(x, reason = \"\")]\n").len(),
            0
        );
    }
}
