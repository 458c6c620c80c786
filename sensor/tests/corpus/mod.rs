//! Where the captures with known content lie.

use std::path::{Path, PathBuf};

/// The folder, or `None` with a line on standard error that says what is therefore not tested.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("RINGWATCH_CORPUS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus"),
        PathBuf::from,
    );
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("no corpus at {} (RINGWATCH_CORPUS): only own data is tested", folder.display());
    None
}

/// Every capture file in it, sorted.
pub fn captures() -> Vec<PathBuf> {
    let Some(folder) = folder() else { return Vec::new() };
    let mut captures = Vec::new();
    for part in ["scans", "protocols", "malformed", "community-id"] {
        let entries = std::fs::read_dir(folder.join(part)).expect("the corpus has this folder");
        captures.extend(entries.map(|entry| entry.expect("the folder can be read").path()).filter(
            |path| {
                path.extension()
                    .is_some_and(|extension| extension == "pcap" || extension == "pcapng")
            },
        ));
    }
    captures.sort();
    captures
}
