//! `ringwatch alerts`, `flows` and `dns` against a collector that answers what a test says, as an
//! operator sees it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

/// An HTTP server that gives these answers, one after the other, and tells what it was asked.
struct Collector {
    address: String,
    thread: JoinHandle<Vec<String>>,
}

impl Collector {
    fn start(answers: Vec<(&'static str, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            let mut connection = None;
            for (head, body) in answers {
                let reader =
                    connection.get_or_insert_with(|| BufReader::new(listener.accept().unwrap().0));
                let mut lines = String::new();
                while !lines.ends_with("\r\n\r\n") {
                    assert_ne!(reader.read_line(&mut lines).unwrap(), 0, "{lines}");
                }
                asked.push(lines.split(' ').nth(1).unwrap().to_owned());
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                );
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            // The client closes.
            if let Some(mut reader) = connection {
                let _ = reader.read_to_end(&mut Vec::new());
            }
            asked
        });
        Self { address, thread }
    }

    /// Runs the command against this collector; what was asked, exit code, output, errors.
    fn run(self, arguments: &[&str]) -> (Vec<String>, Option<i32>, String, String) {
        let url = format!("http://{}", self.address);
        let mut all = arguments.to_vec();
        all.extend(["--collector", &url]);
        let (code, output, errors) = ringwatch(&all);
        (self.thread.join().unwrap(), code, output, errors)
    }
}

fn ringwatch(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringwatch")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn page(items: &[&str], next: Option<&str>) -> (&'static str, String) {
    let next = next.map_or("null".to_owned(), |next| format!("\"{next}\""));
    ("200 OK", format!("{{\"items\":[{}],\"next\":{next}}}", items.join(",")))
}

const FLOW: &str = r#"{"timestamp":"2023-11-14T22:13:20.000000+0000","src_ip":"192.0.2.1","src_port":1024,"dest_ip":"192.0.2.2","dest_port":22,"proto":"TCP","flow":{"state":"new"},"ringwatch":{"sensor":"web-1"}}"#;

#[test]
fn filters_are_passed_on_and_events_shown_as_a_table() {
    let collector = Collector::start(vec![page(&[FLOW], None)]);
    let (asked, code, output, errors) = collector.run(&[
        "flows",
        "--host",
        "2001:db8::1",
        "--port",
        "22",
        "--sensor",
        "web-1",
        "--from",
        "1700000000",
        "--to",
        "2023-11-15",
        "--oldest-first",
        "--limit",
        "7",
    ]);
    assert_eq!(
        asked,
        ["/api/v1/flows?from=2023-11-14T22%3A13%3A20Z&to=2023-11-15T00%3A00%3A00Z&sensor=web-1\
          &host=2001%3Adb8%3A%3A1&port=22&order=oldest&limit=7"]
    );
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(
        output,
        "TIME (UTC)               SENSOR  PROTO  SOURCE          TARGET        STATE  PACKETS  BYTES\n\
         2023-11-14 22:13:20.000  web-1   TCP    192.0.2.1:1024  192.0.2.2:22  new          -      -\n"
    );
}

#[test]
fn pages_are_asked_for_until_there_are_enough() {
    let many = vec![FLOW; 1000];
    let answers = vec![page(&many, Some("c1")), page(&many, Some("c2")), page(&[FLOW], Some("c3"))];
    let (asked, code, output, errors) =
        Collector::start(answers).run(&["flows", "--json", "--limit", "2001"]);
    assert_eq!(
        asked,
        [
            "/api/v1/flows?limit=1000",
            "/api/v1/flows?limit=1000&cursor=c1",
            "/api/v1/flows?limit=1&cursor=c2"
        ]
    );
    assert_eq!((code, output.lines().count()), (Some(0), 2001));
    let line: serde_json::Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
    assert_eq!(line, serde_json::from_str::<serde_json::Value>(FLOW).unwrap());
    assert!(errors.starts_with("there are more: raise --limit"), "{errors}");
}

#[test]
fn nothing_found_is_said_and_is_no_error() {
    let collector = Collector::start(vec![page(&[], None)]);
    let (asked, code, output, errors) = collector.run(&["dns", "--name", "*.example.org"]);
    assert_eq!(asked, ["/api/v1/dns?name=*.example.org&limit=50"]);
    assert_eq!((code, output.as_str(), errors.as_str()), (Some(0), "no DNS records found\n", ""));
}

#[test]
fn what_is_missing_in_an_answer_is_said() {
    let head = "200 OK\r\nringwatch-expired: 2026-01-01T00:00:00Z";
    let body = r#"{"items":[],"next":null,"not_indexed_yet":1200,"unreadable":1}"#.to_owned();
    let (_, _, _, errors) = Collector::start(vec![(head, body)]).run(&["alerts", "--json"]);
    assert_eq!(
        errors,
        "not complete: 1 200 stored records still to be indexed by the collector\n\
         not complete: 1 event cannot be read; the collector's log says why\n\
         events that were stored before 2026-01-01T00:00:00Z were deleted\n"
    );
}

#[test]
fn what_is_missing_in_any_page_is_said_once_for_all() {
    let first = r#"{"items":[],"next":"c1","unreadable":2}"#.to_owned();
    let second = r#"{"items":[],"next":"c2","unreadable":3}"#.to_owned();
    let answers = vec![("200 OK", first), ("200 OK", second), page(&[FLOW], None)];
    let (_, code, output, errors) = Collector::start(answers).run(&["flows", "--json"]);
    assert_eq!((code, output.lines().count()), (Some(0), 1));
    let expected = "not complete: 5 events cannot be read; the collector's log says why\n";
    assert_eq!(errors, expected);
}

#[test]
fn a_record_that_is_odd_json_costs_no_other_one() {
    let deep = format!(r#"{{"deep":{}{}}}"#, "[".repeat(500), "]".repeat(500));
    let odd = [r#"{"number":1e999}"#, r#"{"text":"\ud800"}"#, &deep];
    for arguments in [&["flows"][..], &["flows", "--json"]] {
        let items = [odd[0], FLOW, odd[1], odd[2], FLOW];
        let (_, code, output, errors) = Collector::start(vec![page(&items, None)]).run(arguments);
        assert_eq!(code, Some(0), "{errors}");
        assert_eq!(output.matches("192.0.2.2").count(), 2, "{output}");
        assert_eq!(errors, "not complete: 3 events cannot be shown, being odd JSON\n");
    }
}

#[test]
fn a_refusal_says_what_the_collector_says() {
    for (status, error, detail, code) in [
        ("404 Not Found", "sensor_unknown", "no sensor \\\"web-9\\\" has ever connected", 1),
        ("410 Gone", "expired", "events that were stored before X were deleted", 1),
        ("400 Bad Request", "bad_request", "from is after to", 2),
        ("503 Service Unavailable", "too_slow", "the search took too long", 1),
    ] {
        let body = format!("{{\"error\":\"{error}\",\"detail\":\"{detail}\"}}");
        let collector = Collector::start(vec![(status, body)]);
        let (_, found, output, errors) = collector.run(&["alerts", "--sensor", "web-9"]);
        let number = &status[..3];
        let detail = detail.replace('\\', "");
        assert_eq!(errors, format!("ringwatch: {detail} ({error}, status {number})\n"));
        assert_eq!((found, output.as_str()), (Some(code), ""));
    }
}

#[test]
fn a_collector_that_cannot_be_reached_is_named_with_what_to_check() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, errors) = ringwatch(&["alerts", "--collector", &format!("http://{nobody}")]);
    assert_eq!(code, Some(1));
    let expected = format!("ringwatch: no usable answer from http://{nobody}/api/v1/alerts: ");
    assert!(errors.starts_with(&expected), "{errors}");
    assert!(errors.contains("Is the collector running"), "{errors}");
}

#[test]
fn wrong_usage_is_said_before_anything_is_asked() {
    for (arguments, said) in [
        (["alerts", "--from", "yesterday"], "write 2026-11-21T10:15:00Z"),
        (["flows", "--host", "web-1"], "invalid value 'web-1' for '--host <ADDRESS>'"),
        (["flows", "--kind", "vertical"], "unexpected argument '--kind'"),
        (["dns", "--limit", "0"], "invalid value '0' for '--limit <NUMBER>'"),
    ] {
        let (code, _, errors) = ringwatch(&arguments);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(said), "{errors}");
    }
}

#[test]
fn help_has_examples() {
    for command in ["alerts", "flows", "dns"] {
        let (code, output, _) = ringwatch(&[command, "--help"]);
        assert_eq!(code, Some(0));
        assert!(output.contains("Examples:\n  ringwatch"), "{output}");
        assert!(output.contains("UTC"), "{output}");
    }
}
