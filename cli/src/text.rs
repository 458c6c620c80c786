//! Numbers, rates and times as people read them, and text from outside made harmless.

use std::time::Duration;

/// `1234567` as `1 234 567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A count or rate with a decimal prefix and its unit: `1.5 kB`, `0.0 frames/s`.
#[must_use]
pub fn scaled(value: f64, unit: &str) -> String {
    let mut value = value;
    for prefix in ["", "k", "M", "G"] {
        if value < 999.5 {
            return match prefix {
                "" if value.fract() == 0.0 => format!("{value:.0} {unit}"),
                _ => format!("{value:.1} {prefix}{unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} T{unit}")
}

/// Hours, minutes and seconds: `1:02:03`, `02:03`.
#[must_use]
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes:02}:{seconds:02}"),
        hours => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// The noun with its number: `1 port`, `2 ports`.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        number => format!("{} {noun}s", grouped(number)),
    }
}

/// Text that a peer, a log or the network had a hand in: control characters (a terminal would obey
/// them) become `?`, and what is longer than `limit` characters is cut.
#[must_use]
pub fn harmless(text: &str, limit: usize) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    let mut clean: String = text.chars().take(limit).map(visible).collect();
    if text.chars().nth(limit).is_some() {
        clean.push('…');
    }
    clean
}

/// Rows under their heads, columns padded to the widest cell; cells of `right` columns end flush.
#[must_use]
pub fn table<const N: usize>(heads: [&str; N], right: [bool; N], rows: &[[String; N]]) -> String {
    let heads = heads.map(str::to_owned);
    let lines = || std::iter::once(&heads).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|column| {
        lines().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in lines() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            line +=
                &if right[column] { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn prefixes_change_before_four_digits_show() {
        assert_eq!(scaled(0.0, "B"), "0 B");
        assert_eq!(scaled(12.0, "frames/s"), "12 frames/s");
        assert_eq!(scaled(0.25, "frames/s"), "0.2 frames/s");
        assert_eq!(scaled(1500.0, "B"), "1.5 kB");
        assert_eq!(scaled(999_999.0, "bit/s"), "1.0 Mbit/s");
        assert_eq!(scaled(5e15, "B"), "5000.0 TB");
    }

    #[test]
    fn text_from_outside_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\nc\u{9b}", 100), "a?[2Jb?c?");
        assert_eq!(harmless("abcdef", 3), "abc…");
        assert_eq!(harmless("äöü", 3), "äöü");
    }

    #[test]
    fn columns_line_up_by_their_widest_cell() {
        let rows = [["web".into(), "7".into()], ["db".into(), "1 000".into()]];
        assert_eq!(
            table(["NAME", "N"], [false, true], &rows),
            "NAME      N\nweb       7\ndb    1 000\n"
        );
    }

    #[test]
    fn one_is_not_plural() {
        assert_eq!(counted(1, "port"), "1 port");
        assert_eq!(counted(0, "port"), "0 ports");
    }

    #[test]
    fn hours_show_only_when_there_are_some() {
        assert_eq!(clock(Duration::from_secs(61)), "01:01");
        assert_eq!(clock(Duration::from_secs(3661)), "1:01:01");
    }
}
