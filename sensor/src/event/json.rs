//! JSON written straight into a buffer: ASCII only, nothing allocated when the buffer has room.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use wire::units::UnixNanos;

use packet::Address;

/// An object being written. Commas are set where they belong.
pub(super) struct Json<'a> {
    line: &'a mut Vec<u8>,
}

impl<'a> Json<'a> {
    /// Begins the outermost object.
    pub(super) fn begin(line: &'a mut Vec<u8>) -> Self {
        line.push(b'{');
        Self { line }
    }

    /// Ends the outermost object and the line.
    pub(super) fn end(self) {
        self.line.extend_from_slice(b"}\n");
    }

    /// Begins an object or array (`bracket`) under `key`; [`Json::leave`] ends it.
    pub(super) fn enter(&mut self, key: &str, bracket: u8) {
        self.key(key);
        self.line.push(bracket);
    }

    /// Ends an object or array.
    pub(super) fn leave(&mut self, bracket: u8) {
        self.line.push(bracket);
    }

    pub(super) fn number(&mut self, key: &str, number: u64) {
        self.key(key);
        push_decimal(self.line, number);
    }

    pub(super) fn boolean(&mut self, key: &str, boolean: bool) {
        self.key(key);
        self.line.extend_from_slice(if boolean { b"true" } else { b"false" });
    }

    pub(super) fn string(&mut self, key: &str, text: &str) {
        self.key(key);
        self.line.push(b'"');
        push_escaped(self.line, text);
        self.line.push(b'"');
    }

    /// A string: `parts`, then a number.
    pub(super) fn numbered(&mut self, key: &str, parts: &[&str], number: u64) {
        self.key(key);
        self.line.push(b'"');
        parts.iter().for_each(|part| push_escaped(self.line, part));
        push_decimal(self.line, number);
        self.line.push(b'"');
    }

    pub(super) fn address(&mut self, key: &str, address: Address) {
        self.key(key);
        push_address(self.line, address);
    }

    pub(super) fn time(&mut self, key: &str, time: UnixNanos) {
        self.key(key);
        self.line.push(b'"');
        push_time(self.line, time);
        self.line.push(b'"');
    }

    /// Two digits, as EVE has TCP flags.
    pub(super) fn hexadecimal(&mut self, key: &str, byte: u8) {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
        self.key(key);
        self.line.extend_from_slice(&[b'"', digit(byte >> 4), digit(byte), b'"']);
    }

    /// A string of three digits.
    pub(super) fn three_digits(&mut self, key: &str, number: u8) {
        self.key(key);
        let digits = [number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit);
        self.line.push(b'"');
        self.line.extend_from_slice(&digits);
        self.line.push(b'"');
    }

    /// VLAN ids, outer first, where there are any.
    pub(super) fn vlan(&mut self, ids: [u16; 2]) {
        match ids {
            [0, 0] => {}
            [outer, 0] => self.ports("vlan", &[outer]),
            both => self.ports("vlan", &both),
        }
    }

    pub(super) fn list_of_one(&mut self, key: &str, text: &str) {
        self.enter(key, b'[');
        self.line.push(b'"');
        push_escaped(self.line, text);
        self.line.extend_from_slice(b"\"]");
    }

    pub(super) fn ports(&mut self, key: &str, ports: &[u16]) {
        self.list(key, ports, |line, &port| push_decimal(line, u64::from(port)));
    }

    pub(super) fn addresses(&mut self, key: &str, addresses: &[Address]) {
        self.list(key, addresses, |line, &address| push_address(line, address));
    }

    /// The numbers of the bits that are set.
    pub(super) fn bits(&mut self, key: &str, bits: u64) {
        self.enter(key, b'[');
        for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
            if self.line.last() != Some(&b'[') {
                self.line.push(b',');
            }
            push_decimal(self.line, bit);
        }
        self.leave(b']');
    }

    /// Anything that serde can write; `null` if it cannot.
    pub(super) fn value(&mut self, key: &str, value: &impl Serialize) {
        self.key(key);
        let before = self.line.len();
        let mut serializer = Serializer::with_formatter(&mut *self.line, Ascii);
        if value.serialize(&mut serializer).is_err() {
            self.line.truncate(before);
            self.line.extend_from_slice(b"null");
        }
    }

    fn list<T>(&mut self, key: &str, items: &[T], push: impl Fn(&mut Vec<u8>, &T)) {
        self.enter(key, b'[');
        for (place, item) in items.iter().enumerate() {
            if place > 0 {
                self.line.push(b',');
            }
            push(self.line, item);
        }
        self.leave(b']');
    }

    /// Keys are our own words: nothing in them needs escaping.
    fn key(&mut self, key: &str) {
        if self.line.last() != Some(&b'{') {
            self.line.push(b',');
        }
        self.line.push(b'"');
        self.line.extend_from_slice(key.as_bytes());
        self.line.extend_from_slice(b"\":");
    }
}

/// Compact JSON in ASCII.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut escaped = Vec::with_capacity(fragment.len());
        push_escaped(&mut escaped, fragment);
        writer.write_all(&escaped)
    }
}

/// Source: RFC 8259 section 7; beyond ASCII as UTF-16 escapes.
fn push_escaped(line: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        return line.extend_from_slice(text.as_bytes());
    }
    for character in text.chars() {
        match character {
            '"' | '\\' => line.extend_from_slice(&[b'\\', character as u8]),
            ' '..='~' => line.push(character as u8),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    line.extend_from_slice(b"\\u");
                    for shift in [12, 8, 4, 0] {
                        line.push(b"0123456789abcdef"[usize::from(*unit >> shift & 15)]);
                    }
                }
            }
        }
    }
}

fn push_address(line: &mut Vec<u8>, address: Address) {
    line.push(b'"');
    if address.is_v4() {
        for (place, octet) in (address.low() as u32).to_be_bytes().into_iter().enumerate() {
            if place > 0 {
                line.push(b'.');
            }
            push_decimal(line, u64::from(octet));
        }
    } else {
        // Writing to a vector cannot fail.
        let _ = write!(line, "{}", address.to_ip());
    }
    line.push(b'"');
}

fn push_decimal(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    line.extend_from_slice(&digits[first..]);
}

/// As EVE has it: `2026-11-21T08:00:00.123456+0000`.
fn push_time(line: &mut Vec<u8>, time: UnixNanos) {
    let (seconds, micros) = (time.0 / 1_000_000_000, time.0 % 1_000_000_000 / 1000);
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000000+0000";
    for (place, number) in [
        (0, year / 100),
        (2, year),
        (5, month),
        (8, day),
        (11, of_day / 3600),
        (14, of_day / 60 % 60),
        (17, of_day % 60),
        (20, micros / 10_000),
        (22, micros / 100),
        (24, micros),
    ] {
        let [tens, ones] = [number / 10 % 10, number % 10].map(|digit| b'0' + digit as u8);
        text[place..place + 2].copy_from_slice(&[tens, ones]);
    }
    line.extend_from_slice(&text);
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last day of its year; 719 468 days
    // lie between 0000-03-01 and 1970-01-01, 146 097 days are 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March, or from August, have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_the_calendar_says() {
        let mut time = 0;
        while time < 18_000_000_000 {
            let mut line = Vec::new();
            push_time(&mut line, UnixNanos(time * 1_000_000_000 + 1_002_003));
            let jiff = jiff::Timestamp::from_second(time as i64).unwrap();
            let expected = format!("{}.001002+0000", jiff.strftime("%Y-%m-%dT%H:%M:%S"));
            assert_eq!(String::from_utf8(line).unwrap(), expected);
            time += 86_400 * 3 + 12_347;
        }
    }

    #[test]
    fn leap_days_and_ends_of_centuries_are_right() {
        for (text, expected) in [
            ("1970-01-01", (1970, 1, 1)),
            ("2000-02-29", (2000, 2, 29)),
            ("2024-02-29", (2024, 2, 29)),
            ("2100-02-28", (2100, 2, 28)),
            ("2100-03-01", (2100, 3, 1)),
            ("2399-12-31", (2399, 12, 31)),
            ("2400-02-29", (2400, 2, 29)),
        ] {
            let days = text.parse::<jiff::civil::Date>().unwrap();
            let since = days.since(jiff::civil::date(1970, 1, 1)).unwrap().get_days();
            assert_eq!(date(since as u64), expected, "{text}");
        }
    }

    #[test]
    fn any_text_survives_the_way_through_ascii() {
        for text in ["eth0", "a\"b\\c", "tab\tnul\0del\u{7f}", "grüße", "\u{1f980}", "\u{ffff}"] {
            let mut line = Vec::new();
            let mut json = Json::begin(&mut line);
            json.string("text", text);
            json.value("by_serde", &text);
            json.end();
            assert!(line.is_ascii());
            let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(
                (value["text"].as_str(), value["by_serde"].as_str()),
                (Some(text), Some(text))
            );
        }
    }

    #[test]
    fn numbers_and_addresses_are_written_as_the_standard_library_does() {
        for number in [0, 9, 10, 4750, u64::MAX] {
            let mut line = Vec::new();
            push_decimal(&mut line, number);
            assert_eq!(String::from_utf8(line).unwrap(), number.to_string());
        }
        for text in ["0.0.0.0", "192.0.2.255", "::1", "2001:db8::1", "fe80::ff:fe00:1"] {
            let ip: std::net::IpAddr = text.parse().unwrap();
            let mut line = Vec::new();
            push_address(&mut line, ip.into());
            assert_eq!(String::from_utf8(line).unwrap(), format!("\"{text}\""));
        }
    }
}
