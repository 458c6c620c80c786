//! Medians, tables, and of which machine and commit they are.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A table in Markdown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        Self { rows: vec![columns.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<_> = cells.into_iter().collect();
        row.resize(self.rows[0].len(), String::new());
        self.rows.push(row);
    }

    /// Its text: columns are as wide as their widest cell, so that it is read without a renderer too.
    #[must_use]
    pub fn text(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let lengths = self.rows.iter().map(|row| row[column].chars().count());
            lengths.max().unwrap_or(0).max(3)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String cannot fail.
                let _ = write!(text, "| {cell:width$} ");
            }
            text.push_str("|\n");
            if index == 0 {
                let rule = |width: &usize| format!("|{}", "-".repeat(width + 2));
                text.extend(widths.iter().map(rule));
                text.push_str("|\n");
            }
        }
        text
    }
}

/// The middle value; of an even number, the mean of the two in the middle. 0 of none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Load average of the last minute.
#[must_use]
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// Of what the results are: commit, machine, time.
#[must_use]
pub fn head() -> String {
    let now = jiff::Zoned::now();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "# Bench, {}\n\nCommit {}. {}, {cores} usable cores, {} GiB, Linux {}.\n\
         Load average at the begin: {}. Method: [../README.md](../README.md).\n",
        now.strftime("%Y-%m-%d %H:%M %Z"),
        commit(),
        value(&cpuinfo, "model name").unwrap_or("processor without a name"),
        memory_gib(&meminfo),
        kernel.trim(),
        load_average(),
    )
}

/// The last line of the results.
#[must_use]
pub fn foot() -> String {
    format!("\nLoad average at the end: {}.\n", load_average())
}

/// A new file among the results of this tree.
#[must_use]
pub fn file() -> PathBuf {
    let name = jiff::Zoned::now().strftime("%Y-%m-%d-%H%M-bench.md").to_string();
    Path::new("perf/results").join(name)
}

/// The commit of the working folder, and whether files differ from it.
#[must_use]
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "not known".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]).as_deref() {
        Some("") => commit,
        _ => format!("{commit} with changes that are not committed"),
    }
}

/// The first value of a key in lines such as `key : value`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| (name.trim(), value.trim()))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

/// Memory of the host, rounded.
fn memory_gib(meminfo: &str) -> u64 {
    let total = value(meminfo, "MemTotal").and_then(|text| text.split(' ').next());
    let kib: u64 = total.and_then(|number| number.parse().ok()).unwrap_or(0);
    (kib + (1 << 19)) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_in_any_order() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!((median([7.0]) - 7.0).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }

    #[test]
    fn tables_are_aligned_and_short_rows_filled_up() {
        let mut table = Table::new(&["load", "ns"]);
        table.add(["64 B".to_owned(), "120.5".to_owned()]);
        table.add(["µ".to_owned()]);
        let expected = "| load | ns    |\n|------|-------|\n| 64 B | 120.5 |\n| µ    |       |\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn the_machine_is_read_out_of_the_kernel_s_files() {
        assert_eq!(
            value("processor\t: 0\nmodel name\t: Some CPU\n", "model name"),
            Some("Some CPU")
        );
        assert_eq!(memory_gib("MemTotal:       24600000 kB\nMemFree: 1 kB\n"), 23);
    }
}
