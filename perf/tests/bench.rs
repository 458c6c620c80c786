//! A small run of the bench: no figure of it means anything, but every step is taken.

use std::fs;
use std::process::Command;
use std::time::Duration;

use perf::process::Process;
use perf::tools;

/// The cells of the rows of a table, without its head.
fn rows(text: &str) -> Vec<Vec<String>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn every_program_has_its_row_and_accounts_for_every_frame() {
    if !tools::require_root() || !tools::require(&["ip"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("bench.md");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch-bench"));
    command.args(["capture", "--frames", "200000", "--rounds", "1", "--settle", "1", "--output"]);
    command.arg(&output);
    let mut bench = Process::spawn(command);
    let status = bench.wait(Duration::from_secs(300));
    assert!(status.success(), "{}", bench.describe());

    let text = fs::read_to_string(&output).unwrap();
    let rows = rows(&text);
    let programs = ["ringwatch-sensor", "tcpdump", "netsniff-ng", "bare ring walk"];
    let found: Vec<_> = rows.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(found, programs.repeat(3), "{text}");
    for row in &rows {
        let is_missing = row[2].starts_with("missing (");
        assert!(is_missing || row[3].parse::<f64>().is_ok(), "{row:?}");
        if row[1] == "ringwatch-sensor" {
            // Offered by the generator = analysed + dropped by the kernel; the ledger was checked.
            assert_eq!(row[6], "yes", "{row:?}{}", bench.describe());
        }
    }
    assert!(text.contains("Commit ") && text.contains("Load average at the end"), "{text}");
}
