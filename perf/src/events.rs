//! What a sensor said: its EVE lines, read back.

use serde_json::Value;
use wire::ledger::Ledger;

/// The events of one run, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events(Vec<Value>);

/// The life of one alert, from all its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertLife {
    /// What was found, such as `vertical`: as the last step says.
    pub kind: String,
    /// Every kind that it had, in order: a `vertical` may turn out to be a `decoy`.
    pub kinds: Vec<String>,
    /// Who scans, as the last step says; empty if it is not one host.
    pub source: String,
    /// Who is scanned, if it is one host, as the last step says.
    pub target: Option<String>,
    /// EVE severity of the last step: 1 is the highest, 3 the lowest.
    pub severity: u64,
    /// `open`, `update`, …, `close`.
    pub phases: Vec<String>,
    /// `alert.context` of the last step.
    pub context: Value,
}

impl AlertLife {
    /// A number of the last step, such as `distinct_ports`.
    ///
    /// # Panics
    /// If there is no such number.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        let count = self.context[name].as_u64();
        count.unwrap_or_else(|| panic!("no number {name} in {:#}", self.context))
    }

    /// Takes over the next step.
    fn go_on(&mut self, step: Self, phase: &str) {
        let Self { kind, mut kinds, source, target, severity, phases: _, context } = step;
        if self.kind == kind {
            assert_eq!((&source, &target), (&self.source, &self.target), "{context:#}");
        } else {
            self.kinds.append(&mut kinds);
        }
        (self.kind, self.source, self.target) = (kind, source, target);
        (self.severity, self.context) = (severity, context);
        self.phases.push(phase.to_owned());
    }
}

impl Events {
    /// Reads lines; a last line without its end is left out.
    ///
    /// # Panics
    /// If a line is no JSON object.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let read = |line: &str| match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => value,
            other => panic!("{other:?} in event line {line:?}"),
        };
        Self(whole.lines().map(read).collect())
    }

    /// All events.
    #[must_use]
    pub fn all(&self) -> &[Value] {
        &self.0
    }

    /// Events of one `event_type`.
    #[must_use]
    pub fn of_type(&self, event_type: &str) -> Vec<&Value> {
        self.0.iter().filter(|event| event["event_type"] == event_type).collect()
    }

    /// New connections: `flow` events that have no end.
    #[must_use]
    pub fn connections(&self) -> Vec<&Value> {
        let flows = self.of_type("flow").into_iter();
        flows.filter(|event| event["flow"]["reason"].is_null()).collect()
    }

    /// Flows that ended: `flow` events with a reason.
    #[must_use]
    pub fn ended_flows(&self) -> Vec<&Value> {
        let flows = self.of_type("flow").into_iter();
        flows.filter(|event| !event["flow"]["reason"].is_null()).collect()
    }

    /// Anomalies of one name, such as `link_down`.
    #[must_use]
    pub fn anomalies(&self, name: &str) -> Vec<&Value> {
        let anomalies = self.of_type("anomaly").into_iter();
        anomalies.filter(|event| event["anomaly"]["event"] == name).collect()
    }

    /// Alerts, each with its whole life: `open` first, revisions counted up from 1, nothing after
    /// `close`, the same source and target as long as it has the same kind.
    ///
    /// # Panics
    /// If a life is another one than that.
    #[must_use]
    pub fn alerts(&self) -> Vec<AlertLife> {
        let mut lives: Vec<(Value, AlertLife)> = Vec::new();
        for event in self.of_type("alert") {
            let context = &event["alert"]["context"];
            let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
            let phase = text(&context["phase"]).unwrap_or_default();
            let kind = text(&context["kind"]).unwrap_or_default();
            let step = AlertLife {
                kind: kind.clone(),
                kinds: vec![kind],
                source: text(&event["src_ip"]).unwrap_or_default(),
                target: text(&event["dest_ip"]),
                severity: event["alert"]["severity"].as_u64().unwrap_or_default(),
                phases: vec![phase.clone()],
                context: context.clone(),
            };
            let id = &context["alert_id"];
            match lives.iter_mut().find(|(known, _)| known == id) {
                None => {
                    assert_eq!((phase.as_str(), context["revision"].as_u64()), ("open", Some(1)));
                    lives.push((id.clone(), step));
                }
                Some((_, life)) => {
                    assert_ne!(phase, "open", "{id} opens twice");
                    assert_ne!(life.phases.last().map(String::as_str), Some("close"), "{id}");
                    assert_eq!(step.count("revision"), life.count("revision") + 1, "{id}");
                    life.go_on(step, &phase);
                }
            }
        }
        lives.into_iter().map(|(_, life)| life).collect()
    }

    /// The last event, which is a `stats` event.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn last_stats(&self) -> &Value {
        match self.0.last() {
            Some(last) if last["event_type"] == "stats" => last,
            last => panic!("the last event is no stats event: {last:?}"),
        }
    }

    /// The ledger of the last event. Its sums hold, and the figures beside it are its own.
    ///
    /// # Panics
    /// If not, or if that is no `stats` event.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let stats = self.last_stats();
        let ledger: Ledger = serde_json::from_value(stats["ringwatch"]["ledger"].clone())
            .unwrap_or_else(|error| panic!("{error} in the ledger of {stats}"));
        if let Err(imbalance) = ledger.check() {
            panic!("{imbalance}: {ledger:#?}");
        }
        let capture = &stats["stats"]["capture"];
        assert_eq!(capture["kernel_packets"], ledger.kernel_packets(), "{stats}");
        assert_eq!(capture["kernel_drops"], ledger.kernel_drops(), "{stats}");
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(phase: &str, revision: u64) -> String {
        let context = format!(
            r#"{{"alert_id":"a","phase":"{phase}","revision":{revision},"kind":"vertical"}}"#
        );
        format!(r#"{{"event_type":"alert","src_ip":"s","alert":{{"context":{context}}}}}"#) + "\n"
    }

    #[test]
    fn a_line_without_its_end_is_not_read() {
        assert_eq!(Events::parse("{\"a\":1}\n{\"b\":").all().len(), 1);
        assert_eq!(Events::parse("{").all().len(), 0);
    }

    #[test]
    fn the_steps_of_an_alert_are_one_life() {
        let lives = Events::parse(&(step("open", 1) + &step("close", 2))).alerts();
        assert_eq!(lives.len(), 1);
        assert_eq!(lives[0].phases, ["open", "close"]);
    }

    #[test]
    fn a_kind_that_changes_is_told_and_a_source_that_changes_without_it_is_a_fault() {
        let decoy = step("update", 2).replace("vertical", "decoy").replace(r#""src_ip":"s","#, "");
        let lives = Events::parse(&(step("open", 1) + &decoy)).alerts();
        assert_eq!((lives[0].kind.as_str(), lives[0].source.as_str()), ("decoy", ""));
        assert_eq!(lives[0].kinds, ["vertical", "decoy"]);
        let other = step("update", 2).replace(r#""src_ip":"s""#, r#""src_ip":"t""#);
        let events = Events::parse(&(step("open", 1) + &other));
        assert!(std::panic::catch_unwind(|| events.alerts()).is_err());
    }

    #[test]
    #[should_panic(expected = "close")]
    fn nothing_follows_a_close() {
        let _ = Events::parse(&(step("open", 1) + &step("close", 2) + &step("update", 3))).alerts();
    }

    #[test]
    #[should_panic(expected = "does not add up")]
    fn a_ledger_that_does_not_add_up_is_found() {
        let ledger = r#"{"interfaces":[{"name":"eth0","kernel_packets":1}]}"#;
        let line = format!(r#"{{"event_type":"stats","ringwatch":{{"ledger":{ledger}}}}}"#) + "\n";
        let _ = Events::parse(&line).ledger();
    }
}
