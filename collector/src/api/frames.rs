//! `GET /api/v1/frames`: stored frames as a pcapng file that is made while it is sent.
//!
//! ```text
//!   200  frames; cut off at the end if some of them cannot be read
//!   204  there are none
//!   400  the question is wrong, and why
//!   404  the sensor is not known
//!   410  what was asked for is so old that it was deleted
//!   429  as many questions are answered as may be at one time
//!   500  none of them can be read
//! ```
//!
//! What cannot be read is said in a comment at the end of the file, and the connection is cut behind that, so that
//! every client sees that the answer is not complete.
//!
//! Where a part of the time that was asked for may be deleted, the header `ringwatch-expired` says up to when.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use packet::Address;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_stream::{Stream, StreamExt};
use wire::text::error_chain;
use wire::units::UnixNanos;

use super::Context;
use crate::frames::{self, AnswerError, Filter, Question, ReaderGone};
use crate::status::{Shared, add};

/// Questions that are answered at one time; each takes up to 70 MiB and a thread.
pub(super) const MOST_AT_ONCE: usize = 4;
/// Pieces that wait for whoever asked. When that many wait, the answer waits as well.
const PIECES: usize = 4;
/// Whoever takes no piece for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the last piece of an answer has to get out before the connection is cut.
const LAST_PIECE: Duration = Duration::from_secs(1);
/// Header: up to when what was asked for may be deleted.
pub(super) const EXPIRED: &str = "ringwatch-expired";

/// What an error looks like.
#[derive(Serialize)]
struct Refusal {
    error: &'static str,
    detail: String,
}

/// An error as all questions show it.
pub(super) fn refuse(status: StatusCode, error: &'static str, detail: String) -> Response {
    (status, Json(Refusal { error, detail })).into_response()
}

/// What the thread that answers gives.
enum Piece {
    /// Some of the file.
    Bytes(Bytes),
    /// That was not all that was asked for, and why.
    Incomplete(String),
    /// That was all.
    End,
}

/// The file behind its first piece. Without [`Piece::End`] it was given up: it then ends with an error, so that nobody
/// takes it for all.
struct Rest {
    pieces: Receiver<Piece>,
    is_over: bool,
}

impl Stream for Rest {
    type Item = io::Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let why = match ready!(self.pieces.poll_recv(context)) {
            Some(Piece::Bytes(bytes)) => return Poll::Ready(Some(Ok(bytes))),
            Some(Piece::End) => None,
            Some(Piece::Incomplete(why)) => Some(why),
            None => Some("given up, as nobody took it".to_owned()),
        };
        self.is_over = true;
        Poll::Ready(why.map(|why| Err(io::Error::other(why))))
    }
}

/// Answers a question for frames.
pub(super) async fn frames(
    State(context): State<Arc<Context>>,
    Query(parameters): Query<BTreeMap<String, String>>,
) -> Response {
    // Before the question is read: a filter may ask for the address of a name, which can take long.
    let Ok(permit) = Arc::clone(&context.answering).try_acquire_owned() else {
        let detail = format!("{MOST_AT_ONCE} questions for frames are being answered; try again");
        return refuse(StatusCode::TOO_MANY_REQUESTS, "busy", detail);
    };
    let parsed = tokio::task::spawn_blocking(move || (parse(&parameters), permit)).await;
    let (question, permit) = match parsed {
        Ok((Ok(question), permit)) => (question, permit),
        Ok((Err(detail), _)) => return refuse(StatusCode::BAD_REQUEST, "bad_request", detail),
        Err(_) => {
            let detail = "the question cannot be read".to_owned();
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", detail);
        }
    };
    let shared = Arc::clone(&context.shared);
    if let Some(sensor) = &question.sensor
        && !shared.sensors().iter().any(|known| known.name() == sensor)
    {
        let detail = format!("no sensor {sensor:?} has ever connected to this collector");
        return refuse(StatusCode::NOT_FOUND, "sensor_unknown", detail);
    }
    add(&shared.counters.frame_questions, 1);
    let (from, to) = (question.from, question.to);
    let mut pieces = begin(question, shared, permit);
    let first = pieces.recv().await;
    // After the search: what was deleted meanwhile is none of what there never was.
    let expired = context.shared.catalog.expired();
    let mut response = match first {
        Some(Piece::Bytes(first)) => {
            let rest = Rest { pieces, is_over: false };
            let body = Body::from_stream(tokio_stream::once(Ok(first)).chain(rest));
            ([(header::CONTENT_TYPE, "application/x-pcapng")], body).into_response()
        }
        Some(Piece::Incomplete(why)) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", why)
        }
        None => {
            let detail = "the answer was given up; the log says why".to_owned();
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", detail)
        }
        Some(Piece::End) if to < expired => {
            let detail = format!("frames that came before {} were deleted", text(expired));
            refuse(StatusCode::GONE, "expired", detail)
        }
        Some(Piece::End) => StatusCode::NO_CONTENT.into_response(),
    };
    if from < expired
        && let Ok(value) = HeaderValue::from_str(&text(expired))
    {
        response.headers_mut().insert(EXPIRED, value);
    }
    response
}

/// Has a thread answer, which keeps its place as long.
fn begin(question: Question, shared: Arc<Shared>, permit: OwnedSemaphorePermit) -> Receiver<Piece> {
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let told = frames::answer(
            &question,
            &shared.catalog,
            || !sender.is_closed(),
            |piece| send(&sender, Piece::Bytes(piece.into())),
        );
        match told {
            Ok(told) => {
                add(&shared.counters.frames_answered, told.frames);
                // Who is gone does not hear it, and who is too slow gets less than all.
                let _ = send(&sender, Piece::End);
            }
            Err(AnswerError::ReaderGone) => {}
            Err(error @ AnswerError::Incomplete { .. }) => cut_off(&sender, &error, &shared),
        }
        drop(permit);
    });
    pieces
}

/// Ends an answer that lacks frames.
fn cut_off(sender: &Sender<Piece>, error: &AnswerError, shared: &Shared) {
    let AnswerError::Incomplete { told, missing } = error else { return };
    add(&shared.counters.frames_answered, told.frames);
    add(&shared.counters.answers_incomplete, 1);
    add(&shared.counters.frames_unreadable, missing.frames);
    if told.frames > 0 {
        // What was not written when the connection is cut never is: until all pieces were taken, and a moment for
        // the last one. A reader that is slower sees that the answer is cut off, and not why.
        Handle::current().block_on(async {
            let _ = tokio::time::timeout(PATIENCE, sender.reserve_many(PIECES)).await;
            tokio::time::sleep(LAST_PIECE).await;
        });
    }
    // Nobody may be there any more to hear it.
    let _ = send(sender, Piece::Incomplete(error.to_string()));
}

/// Waits until there is room for another piece.
fn send(sender: &Sender<Piece>, piece: Piece) -> Result<(), ReaderGone> {
    let sent = Handle::current().block_on(tokio::time::timeout(PATIENCE, sender.send(piece)));
    sent.map_err(|_| ReaderGone)?.map_err(|_| ReaderGone)
}

pub(super) fn text(time: UnixNanos) -> String {
    let nanos = i128::from(time.0);
    jiff::Timestamp::from_nanosecond(nanos).map_or_else(|_| time.0.to_string(), |t| t.to_string())
}

/// The parameters that there are.
const PARAMETERS: [&str; 7] = ["from", "to", "sensor", "host", "port", "filter", "limit"];

fn parse(parameters: &BTreeMap<String, String>) -> Result<Question, String> {
    if let Some(unknown) = parameters.keys().find(|name| !PARAMETERS.contains(&name.as_str())) {
        return Err(format!("no parameter {unknown:?}; there are {}", PARAMETERS.join(", ")));
    }
    let given = |name: &str| parameters.get(name).map(String::as_str);
    let number = |name: &str, text: &str| {
        let number = text.parse::<u64>().ok().filter(|number| *number > 0);
        number.ok_or_else(|| format!("{name}={text}: is no number above 0"))
    };
    let address = |text: &str| {
        let parsed = text.parse::<std::net::IpAddr>();
        parsed.map(Address::from).map_err(|_| format!("host={text}: is no IPv4 or IPv6 address"))
    };
    let port = |text: &str| {
        text.parse::<u16>().map_err(|_| format!("port={text}: is no port, 0 to 65535"))
    };
    let time = |name: &str| given(name).map(|text| parse_time(name, text)).transpose();
    let question = Question {
        from: time("from")?.unwrap_or(UnixNanos(0)),
        to: time("to")?.unwrap_or(UnixNanos(u64::MAX)),
        sensor: given("sensor").map(ToOwned::to_owned),
        host: given("host").map(address).transpose()?,
        port: given("port").map(port).transpose()?,
        filter: given("filter")
            .map(Filter::new)
            .transpose()
            .map_err(|error| error_chain(&error))?,
        limit: given("limit").map(|text| number("limit", text)).transpose()?,
    };
    if question.from > question.to {
        return Err("from is after to".to_owned());
    }
    Ok(question)
}

/// A time: RFC 3339, or seconds since 1970.
pub(super) fn parse_time(name: &str, text: &str) -> Result<UnixNanos, String> {
    let wrong =
        || format!("{name}={text}: is no time; write 2026-11-21T10:15:00Z, or seconds since 1970");
    let timestamp = match text.parse::<i64>() {
        Ok(seconds) => jiff::Timestamp::from_second(seconds).map_err(|_| wrong())?,
        Err(_) => text.parse::<jiff::Timestamp>().map_err(|_| wrong())?,
    };
    u64::try_from(timestamp.as_nanosecond()).map(UnixNanos).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Question, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        parse(&pairs.iter().map(own).collect())
    }

    #[test]
    fn only_an_answer_that_was_ended_ends_without_an_error() {
        let piece = || Piece::Bytes(Bytes::from_static(b"x"));
        for (pieces, is_whole) in [
            (vec![piece(), Piece::End], true),
            (vec![piece()], false),
            (vec![piece(), Piece::Incomplete("damaged".into())], false),
        ] {
            let (sender, receiver) = mpsc::channel(PIECES);
            for piece in pieces {
                assert!(sender.try_send(piece).is_ok());
            }
            // The thread ended, in order or because nobody took what it had.
            drop(sender);
            let rest = Rest { pieces: receiver, is_over: false };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let came: Vec<_> = runtime.block_on(rest.map(|piece| piece.is_ok()).collect());
            let expected: &[bool] = if is_whole { &[true] } else { &[true, false] };
            assert_eq!(came, expected);
        }
    }

    #[test]
    fn a_question_without_conditions_asks_for_everything() {
        let question = parsed(&[]).unwrap();
        assert_eq!((question.from, question.to), (UnixNanos(0), UnixNanos(u64::MAX)));
        assert!(question.sensor.is_none() && question.limit.is_none());
    }

    #[test]
    fn times_are_of_rfc_3339_or_seconds() {
        let question =
            parsed(&[("from", "1970-01-01T00:00:01.5Z"), ("to", "1970-01-01T01:00:03+01:00")]);
        let question = question.unwrap();
        assert_eq!((question.from.0, question.to.0), (1_500_000_000, 3_000_000_000));
        assert_eq!(parsed(&[("from", "7")]).unwrap().from.0, 7_000_000_000);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (pair, said) in [
            (("form", "1"), "no parameter \"form\"; there are from, to, "),
            (("from", "yesterday"), "from=yesterday: is no time; write 2026-11-21T10:15:00Z"),
            (("from", "-5"), "from=-5: is no time"),
            (("host", "web-1"), "host=web-1: is no IPv4 or IPv6 address"),
            (("port", "70000"), "port=70000: is no port, 0 to 65535"),
            (("limit", "many"), "limit=many: is no number above 0"),
            (("limit", "0"), "limit=0: is no number above 0"),
            (("filter", "hots 1"), "filter \"hots 1\": "),
        ] {
            let error = parsed(&[pair]).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
        assert_eq!(parsed(&[("from", "2"), ("to", "1")]).unwrap_err(), "from is after to");
    }
}
