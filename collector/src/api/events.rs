//! `GET /api/v1/alerts`, `/api/v1/flows`, `/api/v1/dns`: stored events, a page at a time.
//!
//! ```text
//!   200  {"items": […], "next": "…"}; no items: there are none
//!   400  the question is wrong, and why
//!   404  the sensor is not known
//!   410  what was asked for is so old that it was deleted
//!   429  as many questions are answered as may be at one time
//!   500  index or record log cannot be read
//!   503  the search took too long
//! ```
//!
//! A question runs in a thread of its own, on connections that only read, and ends when its time is up:
//! it holds up nothing but other questions.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use wire::records::RecordKind;
use wire::text::error_chain;
use wire::units::UnixNanos;

use super::Context;
use super::frames::{EXPIRED, parse_time, refuse, text};
use crate::archive::query::{Filter, Page, Place, QueryError};
use crate::archive::row::nanos;

/// Questions that are answered at one time; each takes a thread and up to 50 MiB.
pub(super) const MOST_AT_ONCE: usize = 4;
/// How long a search may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest pattern of a name: that of a domain name, and as much of `*`. Source: RFC 1035, section 2.3.4.
const LONGEST_NAME: usize = 510;
/// Events of a page, if the question does not say.
const ITEMS: usize = 100;
/// Events of a page, at most.
const MOST_ITEMS: usize = 1000;

/// What is asked for.
#[derive(Debug)]
struct Question {
    filter: Filter,
    after: Option<Place>,
    limit: usize,
}

type Parameters = BTreeMap<String, String>;

/// Answers a question for alerts.
pub(super) async fn alerts(
    State(context): State<Arc<Context>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    answer(context, RecordKind::Alert, &["kind", "severity", "revisions"], &parameters).await
}

/// Answers a question for flows.
pub(super) async fn flows(
    State(context): State<Arc<Context>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    answer(context, RecordKind::Flow, &[], &parameters).await
}

/// Answers a question for DNS records.
pub(super) async fn dns(
    State(context): State<Arc<Context>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    answer(context, RecordKind::Dns, &["name"], &parameters).await
}

async fn answer(
    context: Arc<Context>,
    kind: RecordKind,
    own: &[&str],
    parameters: &Parameters,
) -> Response {
    let question = match parse(own, parameters) {
        Ok(question) => question,
        Err(detail) => return refuse(StatusCode::BAD_REQUEST, "bad_request", detail),
    };
    if let Some(sensor) = &question.filter.sensor
        && !context.shared.sensors().iter().any(|known| known.name() == sensor)
    {
        let detail = format!("no sensor {sensor:?} has ever connected to this collector");
        return refuse(StatusCode::NOT_FOUND, "sensor_unknown", detail);
    }
    let Ok(permit) = Arc::clone(&context.searching).try_acquire_owned() else {
        let detail = format!("{MOST_AT_ONCE} questions for events are being answered; try again");
        return refuse(StatusCode::TOO_MANY_REQUESTS, "busy", detail);
    };
    let archive = context.archive.clone();
    let is_early = question.filter.from;
    let searched = tokio::task::spawn_blocking(move || {
        let Question { filter, after, limit } = &question;
        let deadline = Instant::now() + PATIENCE;
        let found = archive.find(kind, filter, *after, *limit, deadline);
        drop(permit);
        found
    });
    match searched.await {
        Ok(Ok(page)) => show(&page, is_early),
        Ok(Err(error)) => explain(&error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", error.to_string()),
    }
}

/// An answer, with a header where a part of the time that was asked for may be gone.
fn show(page: &Page, from: Option<i64>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (json, render(page)).into_response();
    if let Some(kept_since) = page.kept_since
        && from.is_none_or(|from| from < nanos(kept_since))
        && let Ok(value) = HeaderValue::from_str(&text(kept_since))
    {
        response.headers_mut().insert(EXPIRED, value);
    }
    response
}

/// Items are JSON as it was stored.
fn render(page: &Page) -> String {
    let Page { items, next, unreadable, kept_since: _, behind } = page;
    let mut body = format!("{{\"items\":[{}],\"next\":", items.join(","));
    // Writing to a string does not fail.
    let _ = match next {
        Some(place) => write!(body, "\"{}\"", cursor(*place)),
        None => write!(body, "null"),
    };
    if *behind > 0 {
        let _ = write!(body, ",\"not_indexed_yet\":{behind}");
    }
    if *unreadable > 0 {
        let _ = write!(body, ",\"unreadable\":{unreadable}");
    }
    body.push('}');
    body
}

fn explain(error: &QueryError) -> Response {
    let detail = error_chain(error);
    match error {
        QueryError::Expired { kept_since } => {
            let detail =
                format!("events that were stored before {} were deleted", text(*kept_since));
            refuse(StatusCode::GONE, "expired", detail)
        }
        QueryError::TooSlow => refuse(StatusCode::SERVICE_UNAVAILABLE, "too_slow", detail),
        QueryError::Damaged { .. } | QueryError::Index(_) | QueryError::Log(_) => {
            tracing::error!(error = detail, "cannot answer a question for events");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", detail)
        }
    }
}

/// The parameters of every question.
const COMMON: [&str; 8] = ["from", "to", "sensor", "host", "port", "order", "limit", "cursor"];

fn parse(own: &[&str], parameters: &Parameters) -> Result<Question, String> {
    let known: Vec<&str> = COMMON.iter().chain(own).copied().collect();
    if let Some(unknown) = parameters.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("no parameter {unknown:?}; there are {}", known.join(", ")));
    }
    let given = |name: &str| parameters.get(name).map(String::as_str);
    let time = |name: &str| given(name).map(|text| parse_time(name, text)).transpose();
    let (from, to) = (time("from")?, time("to")?);
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        return Err("from is after to".to_owned());
    }
    // The last moment that was asked for is part of it.
    let to = to.map(|to| nanos(UnixNanos(to.0.saturating_add(1))));
    let filter = Filter {
        from: from.map(nanos),
        to,
        sensor: given("sensor").map(ToOwned::to_owned),
        host: read(given("host"), "host", "no IPv4 or IPv6 address")?,
        port: read(given("port"), "port", "no port, 0 to 65535")?,
        alert_kind: given("kind").map(ToOwned::to_owned),
        severity: read(given("severity"), "severity", "no severity, 1 (worst) to 255")?,
        name: given("name").map(ToOwned::to_owned),
        has_all_revisions: choice(given("revisions"), "revisions", ["latest", "all"])?,
        is_ascending: choice(given("order"), "order", ["newest", "oldest"])?,
    };
    if let Some(long) = filter.name.as_ref().filter(|name| name.len() > LONGEST_NAME) {
        return Err(format!("name: {} bytes; no name has more than {LONGEST_NAME}", long.len()));
    }
    let limit = read(given("limit"), "limit", "no number")?.unwrap_or(ITEMS);
    if !(1..=MOST_ITEMS).contains(&limit) {
        return Err(format!("limit={limit}: out of range; 1 to {MOST_ITEMS} are allowed"));
    }
    let wrong = || "cursor: is none of this collector; take `next` of the page before".to_owned();
    let after = given("cursor").map(|text| place(text).ok_or_else(wrong)).transpose()?;
    Ok(Question { filter, after, limit })
}

/// A value of a type, if it is given.
fn read<T: FromStr>(given: Option<&str>, name: &str, wrong: &str) -> Result<Option<T>, String> {
    let parsed = given.map(|text| text.parse().map_err(|_| format!("{name}={text}: is {wrong}")));
    parsed.transpose()
}

/// Whether the second of two words is given; the first one may be left out.
fn choice(given: Option<&str>, name: &str, words: [&str; 2]) -> Result<bool, String> {
    match given {
        Some(word) if word == words[1] => Ok(true),
        None => Ok(false),
        Some(word) if word == words[0] => Ok(false),
        Some(word) => Err(format!("{name}={word}: is neither {} nor {}", words[0], words[1])),
    }
}

/// A place as the reader keeps it, who makes nothing of it.
fn cursor(Place { time, number }: Place) -> String {
    format!("{:016x}{number:016x}", time.cast_unsigned())
}

fn place(cursor: &str) -> Option<Place> {
    let (time, number) = cursor.split_at_checked(16).filter(|(_, rest)| rest.len() == 16)?;
    let read = |digits| u64::from_str_radix(digits, 16).ok();
    Some(Place { time: read(time)?.cast_signed(), number: read(number)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Question, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        parse(&["kind", "severity", "revisions"], &pairs.iter().map(own).collect())
    }

    #[test]
    fn a_question_without_conditions_asks_for_the_newest_of_everything() {
        let Question { filter, after, limit } = parsed(&[]).unwrap();
        assert_eq!((after, limit, filter.is_ascending), (None, 100, false));
        assert!(filter.from.is_none() && filter.to.is_none() && !filter.has_all_revisions);
    }

    #[test]
    fn both_ends_of_a_time_are_part_of_it() {
        let filter = parsed(&[("from", "1"), ("to", "1")]).unwrap().filter;
        assert_eq!((filter.from, filter.to), (Some(1_000_000_000), Some(1_000_000_001)));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (pair, said) in [
            (("name", "x"), "no parameter \"name\"; there are from, to, sensor, host, port, "),
            (("from", "yesterday"), "from=yesterday: is no time; write 2026-11-21T10:15:00Z"),
            (("host", "web-1"), "host=web-1: is no IPv4 or IPv6 address"),
            (("port", "70000"), "port=70000: is no port, 0 to 65535"),
            (("severity", "bad"), "severity=bad: is no severity, 1 (worst) to 255"),
            (("revisions", "some"), "revisions=some: is neither latest nor all"),
            (("limit", "0"), "limit=0: out of range; 1 to 1000 are allowed"),
            (("limit", "many"), "limit=many: is no number"),
            (("cursor", "7"), "cursor: is none of this collector"),
            (("cursor", "ä1234567890123456789012345678901"), "cursor: is none of this collector"),
        ] {
            let error = parsed(&[pair]).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
        assert_eq!(parsed(&[("from", "2"), ("to", "1")]).unwrap_err(), "from is after to");
    }

    #[test]
    fn a_pattern_longer_than_any_name_never_reaches_the_index() {
        let parsed = |name: String| parse(&["name"], &BTreeMap::from([("name".to_owned(), name)]));
        assert!(parsed("_".repeat(LONGEST_NAME)).is_ok());
        let error = parsed("_".repeat(LONGEST_NAME + 1)).unwrap_err();
        assert_eq!(error, "name: 511 bytes; no name has more than 510");
    }

    #[test]
    fn a_cursor_leads_back_to_its_place() {
        for time in [i64::MIN, -1, 0, 1_700_000_000_000_000_000, i64::MAX] {
            let here = Place { time, number: 77 };
            assert_eq!(place(&cursor(here)), Some(here));
        }
    }

    #[test]
    fn an_answer_says_what_is_missing_in_it() {
        let page = Page { items: vec!["{\"a\":1}".into(), "{}".into()], ..Page::default() };
        assert_eq!(render(&page), r#"{"items":[{"a":1},{}],"next":null}"#);
        let page = Page { behind: 3, unreadable: 1, ..Page::default() };
        let expected = r#"{"items":[],"next":null,"not_indexed_yet":3,"unreadable":1}"#;
        assert_eq!(render(&page), expected);
    }
}
