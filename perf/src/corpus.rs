//! Captures with known content that are no part of this tree, where somebody has them.

use std::env;
use std::path::PathBuf;

use crate::tools;

/// Names the folder of the captures.
pub const CORPUS: &str = "RINGWATCH_CORPUS";

/// The folder that [`CORPUS`] names. Without it the test goes on with its own data, and what it did not
/// test is said and counted as skipped.
///
/// # Panics
/// If the variable names something that is no folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let Some(folder) = env::var_os(CORPUS).map(PathBuf::from) else {
        tools::skipped(&format!("{CORPUS}, a folder of captures with known content"));
        return None;
    };
    assert!(folder.is_dir(), "{CORPUS}={} is no folder", folder.display());
    Some(folder)
}
