//! Events as rows. What stands in an event came from the network: it is made harmless.

use serde_json::Value;

use super::time;
use crate::text::{grouped, harmless, table};

/// Longest cell.
const CELL: usize = 80;

/// Alerts, one a line.
#[must_use]
pub fn alerts(items: &[Value]) -> String {
    let heads =
        ["TIME (UTC)", "SENSOR", "SEVERITY", "KIND", "PHASE", "SOURCE", "TARGET", "PORTS", "HOSTS"];
    let right = [false, false, true, false, false, false, false, true, true];
    let row = |item: &Value| {
        [
            when(item),
            text(item, "/ringwatch/sensor"),
            text(item, "/alert/severity"),
            text(item, "/alert/context/kind"),
            text(item, "/alert/context/phase"),
            text(item, "/src_ip"),
            text(item, "/dest_ip"),
            number(item, "/alert/context/distinct_ports"),
            number(item, "/alert/context/distinct_hosts"),
        ]
    };
    table(heads, right, &items.iter().map(row).collect::<Vec<_>>())
}

/// Flows, one a line.
#[must_use]
pub fn flows(items: &[Value]) -> String {
    let heads = ["TIME (UTC)", "SENSOR", "PROTO", "SOURCE", "TARGET", "STATE", "PACKETS", "BYTES"];
    let right = [false, false, false, false, false, false, true, true];
    let row = |item: &Value| {
        [
            when(item),
            text(item, "/ringwatch/sensor"),
            text(item, "/proto"),
            end(item, "/src_ip", "/src_port"),
            end(item, "/dest_ip", "/dest_port"),
            text(item, "/flow/state"),
            sum(item, ["/flow/pkts_toserver", "/flow/pkts_toclient"]),
            sum(item, ["/flow/bytes_toserver", "/flow/bytes_toclient"]),
        ]
    };
    table(heads, right, &items.iter().map(row).collect::<Vec<_>>())
}

/// DNS records, one a line.
#[must_use]
pub fn dns(items: &[Value]) -> String {
    let heads = ["TIME (UTC)", "SENSOR", "SOURCE", "TARGET", "TYPE", "NAME", "RECORD", "CODE"];
    let row = |item: &Value| {
        let question = |field: &str| {
            let own = format!("/dns/{field}");
            let listed = format!("/dns/queries/0/{field}");
            if item.pointer(&own).is_some() { text(item, &own) } else { text(item, &listed) }
        };
        [
            when(item),
            text(item, "/ringwatch/sensor"),
            text(item, "/src_ip"),
            text(item, "/dest_ip"),
            text(item, "/dns/type"),
            question("rrname"),
            question("rrtype"),
            text(item, "/dns/rcode"),
        ]
    };
    table(heads, [false; 8], &items.iter().map(row).collect::<Vec<_>>())
}

fn when(item: &Value) -> String {
    let written = item.pointer("/timestamp").and_then(Value::as_str).unwrap_or("-");
    time::show(written).unwrap_or_else(|| harmless(written, CELL))
}

/// A text or a number; `-` where there is none.
fn text(item: &Value, pointer: &str) -> String {
    match item.pointer(pointer) {
        Some(Value::String(text)) => harmless(text, CELL),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    }
}

fn number(item: &Value, pointer: &str) -> String {
    item.pointer(pointer).and_then(Value::as_u64).map_or_else(|| "-".to_owned(), grouped)
}

/// Both directions together.
fn sum(item: &Value, pointers: [&str; 2]) -> String {
    let [one, other] = pointers.map(|pointer| item.pointer(pointer).and_then(Value::as_u64));
    match (one, other) {
        (None, None) => "-".to_owned(),
        (one, other) => grouped(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
    }
}

/// Address and port, as in a URL.
fn end(item: &Value, address: &str, port: &str) -> String {
    let address = text(item, address);
    match item.pointer(port).and_then(Value::as_u64) {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(render: fn(&[Value]) -> String, json: &str) -> String {
        render(&[serde_json::from_str(json).unwrap()])
    }

    #[test]
    fn an_alert_is_a_line_with_what_matters() {
        let shown = rows(
            alerts,
            r#"{"timestamp":"2023-11-14T22:13:20.000000+0000","src_ip":"192.0.2.1",
                "dest_ip":"192.0.2.2","alert":{"severity":2,"context":{"kind":"vertical",
                "phase":"close","distinct_ports":1500,"distinct_hosts":1}},
                "ringwatch":{"sensor":"web-1"}}"#,
        );
        assert_eq!(
            shown.lines().nth(1).unwrap(),
            "2023-11-14 22:13:20.000  web-1          2  vertical  close  192.0.2.1  192.0.2.2  1 500      1"
        );
    }

    #[test]
    fn a_flow_shows_both_directions_together_and_what_is_not_there_as_a_dash() {
        let shown = rows(
            flows,
            r#"{"timestamp":"2023-11-14T22:13:20.000000+0000","proto":"TCP","src_ip":"2001:db8::1",
                "src_port":4711,"dest_ip":"192.0.2.2","flow":{"state":"closed","pkts_toserver":3,
                "pkts_toclient":4,"bytes_toserver":600,"bytes_toclient":500}}"#,
        );
        assert_eq!(
            shown.lines().nth(1).unwrap(),
            "2023-11-14 22:13:20.000  -       TCP    [2001:db8::1]:4711  192.0.2.2  closed        7  1 100"
        );
    }

    #[test]
    fn a_dns_record_of_either_version_shows_its_name() {
        for dns_object in [
            r#"{"type":"query","rrname":"example.org","rrtype":"A"}"#,
            r#"{"type":"query","queries":[{"rrname":"example.org","rrtype":"A"}]}"#,
        ] {
            let shown = rows(dns, &format!("{{\"dns\":{dns_object}}}"));
            assert!(shown.contains("query  example.org  A       -"), "{shown}");
        }
    }

    #[test]
    fn what_came_from_the_network_cannot_steer_the_terminal() {
        let shown = rows(dns, r#"{"timestamp":"\u001b[2J","dns":{"rrname":"a\u001b[31mb\n"}}"#);
        assert!(!shown.contains('\u{1b}'), "{shown}");
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }
}
