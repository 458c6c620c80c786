//! Where the captures with known content lie.

use std::path::PathBuf;

pub use perf::corpus::folder;

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
