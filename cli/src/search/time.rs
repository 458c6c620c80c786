//! Times as an operator writes them.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A time in one of the ways that people write it, as RFC 3339.
///
/// # Errors
/// What would be right.
pub fn parse(text: &str) -> Result<String, String> {
    parse_at(text, Timestamp::now()).map(|time| time.to_string()).ok_or_else(|| {
        "write 2026-11-21T10:15:00Z, '2026-11-21 10:15' (UTC), seconds since 1970, \
         or 90m, 2h or 7d for so long ago"
            .to_owned()
    })
}

fn parse_at(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds).ok();
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok();
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let time = text.parse::<DateTime>().ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
}

/// A time of an event as a table shows it: UTC, to the millisecond.
#[must_use]
pub fn show(eve: &str) -> Option<String> {
    let time =
        jiff::fmt::strtime::parse("%Y-%m-%dT%H:%M:%S%.f%z", eve).ok()?.to_timestamp().ok()?;
    Some(time.strftime("%Y-%m-%d %H:%M:%S.%3f").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_written_in_several_ways() {
        let now = "2026-11-21T10:15:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-11-21T10:15:00Z", "2026-11-21T10:15:00Z"),
            ("2026-11-21T12:15:00+02:00", "2026-11-21T10:15:00Z"),
            ("2026-11-21 10:15", "2026-11-21T10:15:00Z"),
            ("2026-11-21", "2026-11-21T00:00:00Z"),
            ("1700000000", "2023-11-14T22:13:20Z"),
            ("90m", "2026-11-21T08:45:00Z"),
            ("7d", "2026-11-14T10:15:00Z"),
        ] {
            let parsed = parse_at(text, now).map(|time| time.to_string());
            assert_eq!(parsed.as_deref(), Some(expected), "{text}");
        }
        for text in ["", "yesterday", "10:15", "7", "99999999999999999999"] {
            assert_eq!(parse_at(text, now).is_some(), text == "7", "{text:?}");
        }
    }

    #[test]
    fn times_of_events_are_shown_in_utc() {
        let shown = show("2023-11-14T23:13:20.123456+0100");
        assert_eq!(shown.as_deref(), Some("2023-11-14 22:13:20.123"));
        assert_eq!(show("soon"), None);
    }
}
