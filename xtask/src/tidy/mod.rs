//! Rules of this tree that no other tool checks. Each finding names its remedy.
//!
//! ```text
//!   source   a Rust file without comments and strings
//!   rules    what is looked for in code
//!   prose    what is looked for in documentation, and between documentation and code
//! ```

mod prose;
mod rules;
mod source;

use std::fmt;
use std::fs;
use std::path::Path;

use crate::Failure;
use source::Source;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the root of the tree.
    path: String,
    /// Line, from 1; 0 if it is about the whole file.
    line: usize,
    /// What is wrong, and what to do about it.
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

/// A text file of the tree.
#[derive(Debug)]
struct File {
    /// Path from the root, with `/`.
    path: String,
    text: String,
    /// Of a Rust file: its code.
    source: Option<Source>,
}

impl File {
    fn new(path: String, text: String) -> Self {
        let source = path.ends_with(".rs").then(|| Source::read(&text));
        Self { path, text, source }
    }

    fn finding(&self, line: usize, text: String) -> Finding {
        Finding { path: self.path.clone(), line, text }
    }
}

/// What is not ours: built, generated at run time, or of version control.
const SKIPPED: [&str; 4] = [".git", "target", "ringwatch-data", "shared"];

/// Applies every rule to the tree below `root`.
///
/// # Errors
/// A file cannot be read.
pub fn check(root: &Path) -> Result<Vec<Finding>, Failure> {
    let mut files = Vec::new();
    collect(root, root, &mut files)?;
    let mut findings = findings(&files);
    findings.sort();
    Ok(findings)
}

fn findings(files: &[File]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = files
        .iter()
        .flat_map(|file| rules::check(file).into_iter().chain(prose::check(file)))
        .collect();
    findings.extend(prose::check_configuration(files));
    findings.extend(prose::check_metrics(files));
    findings
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<(), Failure> {
    let failure = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failure)? {
        let entry = entry.map_err(failure)?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().map_err(failure)?;
        // In a worktree of git, `.git` is a file.
        if SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        if kind.is_dir() {
            collect(root, &path, files)?;
        } else if kind.is_file()
            && name != "Cargo.lock"
            && let Ok(text) = fs::read_to_string(&path)
        {
            // What is not text (golden files, captures) has no rules.
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(File::new(path, text));
        }
    }
    Ok(())
}

#[cfg(test)]
fn file(path: &str, text: &str) -> File {
    File::new(path.to_owned(), text.to_owned())
}
