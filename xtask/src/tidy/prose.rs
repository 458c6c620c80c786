//! Rules for what is not code, and for what documentation and code must agree on.

use super::rules::has_word;
use super::{File, Finding};

/// Words for work that is not done. Written apart, so that this file is not found itself.
const UNFINISHED: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
/// Folders of some machine.
const MACHINE_PATHS: [&str; 3] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
/// What a changelog's sections may be called (Source: Keep a Changelog 1.1.0).
const SECTIONS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
/// The page that lists every metric.
const METRICS_PAGE: &str = "docs/operations.md";

/// Applies the rules that need one file only.
pub(super) fn check(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for word in UNFINISHED {
            if has_word(line, word) {
                findings.push(file.finding(
                    index + 1,
                    format!("{word}; do it now, or describe it where work is planned"),
                ));
            }
        }
        for path in MACHINE_PATHS {
            if line.contains(path) {
                findings.push(file.finding(
                    index + 1,
                    format!("{path} exists on some machine only; use a path inside the tree"),
                ));
            }
        }
    }
    if file.path == "CHANGELOG.md" {
        findings.extend(check_changelog(file));
    }
    findings
}

fn check_changelog(file: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line: usize, text: String| findings.push(file.finding(line, text));
    if file.text.lines().next() != Some("# Changelog") {
        found(1, "begin with `# Changelog`".to_owned());
    }
    if !file.text.lines().any(|line| line == "## [Unreleased]") {
        found(0, "add a section `## [Unreleased]`".to_owned());
    }
    for (index, line) in file.text.lines().enumerate() {
        let is_release = |title: &str| title == "[Unreleased]" || is_dated_version(title);
        if line.strip_prefix("## ").is_some_and(|title| !is_release(title)) {
            found(index + 1, "write releases as `## [1.2.3] - 2026-01-31`".to_owned());
        }
        if line.strip_prefix("### ").is_some_and(|section| !SECTIONS.contains(&section)) {
            found(index + 1, format!("sections are {}", SECTIONS.join(", ")));
        }
    }
    findings
}

/// `[1.2.3] - 2026-01-31`
fn is_dated_version(title: &str) -> bool {
    let numbers = |text: &str, separator: char, count: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        parts.len() == count && parts.iter().all(is_number)
    };
    title
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] - "))
        .is_some_and(|(version, date)| numbers(version, '.', 3) && numbers(date, '-', 3))
}

/// Every key of a program's configuration stands in its example file.
pub(super) fn check_configuration(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for program in ["sensor", "collector"] {
        let example = format!("config/{program}.toml");
        let documented: Vec<&str> = files
            .iter()
            .filter(|file| file.path == example)
            .flat_map(|file| file.text.lines().filter_map(documented_key))
            .collect();
        let prefix = format!("{program}/src/");
        for file in files.iter().filter(|file| file.path.starts_with(&prefix)) {
            for (line, key) in raw_keys(file) {
                if !documented.contains(&key) {
                    findings.push(file.finding(
                        line,
                        format!("key {key} is not in {example}; add it with unit, default, limits"),
                    ));
                }
            }
        }
    }
    findings
}

/// The key or section in a line such as `ring_mib = 256`, `# cpus = [0]` or `[capture]`.
fn documented_key(line: &str) -> Option<&str> {
    let line = line.trim_start_matches(['#', ' ']);
    if let Some(section) = line.strip_prefix('[') {
        return section.trim_start_matches('[').split(']').next();
    }
    line.split_once('=').map(|(key, _)| key.trim())
}

/// Fields, with their lines, of all structs called `Raw…`: what a configuration file may hold.
fn raw_keys(file: &File) -> Vec<(usize, &str)> {
    let Some(source) = &file.source else { return Vec::new() };
    let mut keys = Vec::new();
    let mut inside = false;
    for (index, line) in source.code.lines().enumerate() {
        if has_prefix_word(line, "struct Raw") && line.ends_with('{') {
            inside = true;
        } else if line.starts_with('}') {
            inside = false;
        } else if inside
            && let Some((name, _)) = without_visibility(line.trim()).split_once(':')
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            keys.push((index + 1, name));
        }
    }
    keys
}

fn has_prefix_word(line: &str, words: &str) -> bool {
    without_visibility(line.trim()).starts_with(words)
}

fn without_visibility(line: &str) -> &str {
    ["pub(crate) ", "pub(super) ", "pub "]
        .into_iter()
        .find_map(|visibility| line.strip_prefix(visibility))
        .unwrap_or(line)
}

/// Every metric that a program names is listed for operators.
pub(super) fn check_metrics(files: &[File]) -> Vec<Finding> {
    let page = files.iter().find(|file| file.path == METRICS_PAGE);
    let page = page.map_or("", |file| file.text.as_str());
    // Counters get their `_total` when they are written out.
    let is_listed =
        |metric: &str| has_word(page, metric) || has_word(page, &format!("{metric}_total"));
    let mut findings = Vec::new();
    for file in files {
        let is_program = ["sensor/src/", "collector/src/"].iter().any(|p| file.path.starts_with(p));
        let Some(source) = file.source.as_ref().filter(|_| is_program) else { continue };
        for (line, literal) in &source.strings {
            for metric in metrics(literal) {
                if !is_listed(metric) {
                    findings.push(file.finding(
                        *line,
                        format!(
                            "metric {metric} is not in {METRICS_PAGE}; list it with its meaning"
                        ),
                    ));
                }
            }
        }
    }
    findings
}

/// Metric names in a string: `ringwatch_` and what follows, but for the names of the programs.
fn metrics(literal: &str) -> impl Iterator<Item = &str> {
    literal
        .split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("ringwatch_") && word.len() > "ringwatch_".len())
        .filter(|word| !matches!(*word, "ringwatch_sensor" | "ringwatch_collector"))
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unfinished_work_and_machine_paths_are_found() {
        let text = format!("a {}\n{}main\n", UNFINISHED[0], MACHINE_PATHS[0]);
        let found = texts(&check(&file("docs/a.md", &text)));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("docs/a.md:1: "), "{}", found[0]);
        assert!(found[1].starts_with("docs/a.md:2: "), "{}", found[1]);
    }

    #[test]
    fn a_changelog_of_the_agreed_form_passes() {
        let text =
            "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- x\n\n## [0.1.0] - 2026-11-21\n";
        assert!(check(&file("CHANGELOG.md", text)).is_empty());
    }

    #[test]
    fn a_changelog_of_another_form_is_found() {
        for text in [
            "# Changes\n## [Unreleased]\n",
            "# Changelog\n",
            "# Changelog\n## [Unreleased]\n### New\n",
            "# Changelog\n## [Unreleased]\n## 0.1.0\n",
            "# Changelog\n## [Unreleased]\n## [0.1.0] - soon\n",
        ] {
            assert_eq!(check(&file("CHANGELOG.md", text)).len(), 1, "{text:?}");
        }
    }

    const CONFIG: &str = "pub struct RawConfig {\n    pub capture: RawCapture,\n}\n\
        struct RawCapture {\n    /// Size.\n    #[serde(default)]\n    ring_mib: Option<u64>,\n    cpus: Vec<u8>,\n}\n\
        struct Other {\n    field: u8,\n}\n";

    #[test]
    fn keys_missing_in_the_example_are_found() {
        let code = file("sensor/src/config.rs", CONFIG);
        let example = file("config/sensor.toml", "[capture]\n# ring_mib = 256\n");
        let found = texts(&check_configuration(&[code, example]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("sensor/src/config.rs:8: key cpus is not in"), "{}", found[0]);
    }

    #[test]
    fn the_example_of_another_program_does_not_count() {
        let code = file("collector/src/config.rs", CONFIG);
        let example = file("config/sensor.toml", "[capture]\nring_mib = 1\ncpus = []\n");
        assert_eq!(check_configuration(&[code, example]).len(), 3);
    }

    #[test]
    fn metrics_missing_in_the_documentation_are_found() {
        let code = "f(\"ringwatch_frames_total{{worker=\\\"0\\\"}}\", \"ringwatch_drops\");\n\
                    g(\"ringwatch_sensor=info\");\n// \"ringwatch_comment\"\n";
        let code = file("sensor/src/api.rs", code);
        let page = file(METRICS_PAGE, "| `ringwatch_drops_total` | x |\n");
        let found = texts(&check_metrics(&[code, page]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("metric ringwatch_frames_total is not in"), "{}", found[0]);
    }
}
