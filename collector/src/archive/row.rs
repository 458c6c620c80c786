//! What the index keeps of a record.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;
use wire::units::UnixNanos;

/// What of a record can be asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row<'e> {
    /// Nanoseconds since 1970.
    pub time: i64,
    /// `src_ip`.
    pub source: Option<IpAddr>,
    /// `dest_ip`.
    pub target: Option<IpAddr>,
    /// `src_port`.
    pub source_port: Option<u16>,
    /// `dest_port`.
    pub target_port: Option<u16>,
    /// `proto`.
    pub protocol: Option<Cow<'e, str>>,
    /// `community_id`.
    pub community_id: Option<Cow<'e, str>>,
    /// Of an alert.
    pub alert: Option<AlertRow<'e>>,
    /// Of a DNS record: the name asked for, in lower case, without a point at its end.
    pub name: Option<String>,
}

/// What of an alert can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertRow<'e> {
    /// One for all revisions.
    pub alert_id: Cow<'e, str>,
    /// Counts up.
    pub revision: u32,
    /// What was found.
    pub kind: Cow<'e, str>,
    /// 1 is the worst.
    pub severity: u8,
}

#[derive(Deserialize)]
struct Event<'e> {
    #[serde(borrow, default)]
    timestamp: Cow<'e, str>,
    src_ip: Option<IpAddr>,
    dest_ip: Option<IpAddr>,
    src_port: Option<u16>,
    dest_port: Option<u16>,
    #[serde(borrow)]
    proto: Option<Cow<'e, str>>,
    #[serde(borrow)]
    community_id: Option<Cow<'e, str>>,
    #[serde(borrow)]
    alert: Option<Alert<'e>>,
    #[serde(borrow)]
    dns: Option<Dns<'e>>,
}

#[derive(Deserialize)]
struct Alert<'e> {
    #[serde(default)]
    severity: u8,
    #[serde(borrow, default)]
    context: Context<'e>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context<'e> {
    #[serde(borrow)]
    alert_id: Cow<'e, str>,
    revision: u32,
    #[serde(borrow)]
    kind: Cow<'e, str>,
}

/// Version 2 has the name beside the answers, version 3 a list of questions.
#[derive(Deserialize)]
struct Dns<'e> {
    #[serde(borrow)]
    rrname: Option<Cow<'e, str>>,
    #[serde(borrow, default)]
    queries: Vec<Question<'e>>,
}

#[derive(Deserialize)]
struct Question<'e> {
    #[serde(borrow)]
    rrname: Option<Cow<'e, str>>,
}

impl<'e> Row<'e> {
    /// What is in this record, which came at `stored_at`. `None` if a field has another type than EVE
    /// gives it.
    #[must_use]
    pub fn read(json: &'e str, stored_at: UnixNanos) -> Option<Self> {
        let event: Event<'e> = serde_json::from_str(json).ok()?;
        let name = event.dns.and_then(|dns| {
            let asked = dns.queries.into_iter().find_map(|question| question.rrname);
            dns.rrname.or(asked).map(|name| normal_name(&name))
        });
        let alert = event.alert.map(|Alert { severity, context }| AlertRow {
            alert_id: context.alert_id,
            revision: context.revision,
            kind: context.kind,
            severity,
        });
        Some(Self {
            time: parse_time(&event.timestamp).unwrap_or_else(|| nanos(stored_at)),
            source: event.src_ip,
            target: event.dest_ip,
            source_port: event.src_port,
            target_port: event.dest_port,
            protocol: event.proto,
            community_id: event.community_id,
            alert,
            name,
        })
    }

    /// What can be said of a record that cannot be read.
    #[must_use]
    pub fn unreadable(stored_at: UnixNanos) -> Self {
        Self { time: nanos(stored_at), ..Self::default() }
    }
}

/// A DNS name as it is kept and looked for.
#[must_use]
pub fn normal_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// As bytes of the network; 4 or 16 of them.
#[must_use]
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A time as SQLite keeps it, until 2262.
#[must_use]
pub fn nanos(time: UnixNanos) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// `2026-11-21T10:15:00.123456+0000`, as EVE has it; with `Z` or `+00:00` as well.
fn parse_time(text: &str) -> Option<i64> {
    let time = jiff::fmt::strtime::parse("%Y-%m-%dT%H:%M:%S%.f%z", text)
        .and_then(|parsed| parsed.to_timestamp())
        .or_else(|_| text.parse::<jiff::Timestamp>());
    i64::try_from(time.ok()?.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: UnixNanos = UnixNanos(5);

    #[test]
    fn an_alert_is_read() {
        let json = r#"{"timestamp":"2023-11-14T22:13:20.123456+0000","event_type":"alert",
            "src_ip":"192.0.2.1","dest_ip":"2001:db8::1","proto":"TCP","alert":{"severity":2,
            "signature":"x","context":{"alert_id":"a-1-a7","revision":3,"kind":"vertical"}}}"#;
        let row = Row::read(json, STORED).unwrap();
        assert_eq!(row.time, 1_700_000_000_123_456_000);
        assert_eq!(row.source, "192.0.2.1".parse().ok());
        assert_eq!(row.target, "2001:db8::1".parse().ok());
        let (alert_id, kind) = ("a-1-a7".into(), "vertical".into());
        assert_eq!(row.alert, Some(AlertRow { alert_id, revision: 3, kind, severity: 2 }));
    }

    #[test]
    fn names_of_both_versions_of_dns_are_read() {
        for dns in [
            r#"{"version":2,"type":"query","rrname":"WWW.Example.org."}"#,
            r#"{"version":3,"queries":[{"rrname":"www.example.org","rrtype":"A"}]}"#,
        ] {
            let json = format!("{{\"dns\":{dns}}}");
            let row = Row::read(&json, STORED).unwrap();
            assert_eq!(row.name.as_deref(), Some("www.example.org"));
            assert_eq!(row.time, 5);
        }
    }

    #[test]
    fn times_of_all_spellings_are_the_same() {
        for text in [
            "2023-11-14T22:13:20+0000",
            "2023-11-14T22:13:20.000Z",
            "2023-11-15T00:13:20.000000+0200",
            "2023-11-14T22:13:20.000000000+00:00",
        ] {
            assert_eq!(parse_time(text), Some(1_700_000_000_000_000_000), "{text}");
        }
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(parse_time("9999-11-14T22:13:20Z"), None);
    }

    #[test]
    fn a_field_of_another_type_makes_a_record_unreadable() {
        assert_eq!(Row::read(r#"{"src_port":"http"}"#, STORED), None);
        assert_eq!(Row::read(r#"{"src_port":70000}"#, STORED), None);
        assert_eq!(Row::read("{}", STORED), Some(Row::unreadable(STORED)));
    }
}
