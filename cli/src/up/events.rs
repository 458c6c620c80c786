//! Follows the collector's event log and picks the alerts out of it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use crate::text::{counted, harmless};

/// Bytes read at one look. What is beyond waits for the next one, so that a flood of events slows
/// the alerts down and not the view.
const READ_LIMIT: u64 = 4 * 1024 * 1024;
/// A line that is longer is no event; it is passed over without being held.
const LINE_LIMIT: usize = 1024 * 1024;
/// Open alerts that are told apart; the sensor's own limit is far below.
const OPEN_LIMIT: usize = 65_536;

/// Reads what a growing file of lines gained since the last look.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    line: Vec<u8>,
    /// The line that is being read is beyond [`LINE_LIMIT`].
    overlong: bool,
}

impl Follower {
    /// Follows `path`, which may not exist yet, from its present end on.
    #[must_use]
    pub fn from_end(path: PathBuf) -> Self {
        let offset = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, file: None, offset, line: Vec::new(), overlong: false }
    }

    /// Calls `each` with every line that was completed since the last call, without its end.
    ///
    /// # Errors
    /// What the system says; a file that does not exist yet is no error.
    pub fn poll(&mut self, mut each: impl FnMut(&[u8])) -> std::io::Result<()> {
        let Some(file) = self.open()? else { return Ok(()) };
        let mut chunk = Vec::new();
        let read = file.take(READ_LIMIT).read_to_end(&mut chunk)?;
        self.offset += read as u64;
        let mut rest = chunk.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend_line(&rest[..end]);
            if !self.overlong {
                each(&self.line);
            }
            self.line.clear();
            self.overlong = false;
            rest = &rest[end + 1..];
        }
        self.extend_line(rest);
        Ok(())
    }

    /// The file at the place where the last look ended; at its start if it became shorter.
    fn open(&mut self) -> std::io::Result<Option<&File>> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        if let Some(mut file) = self.file.as_ref() {
            if file.metadata()?.len() < self.offset {
                self.offset = 0;
                self.line.clear();
            }
            file.seek(SeekFrom::Start(self.offset))?;
        }
        Ok(self.file.as_ref())
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        if self.overlong || self.line.len() + bytes.len() > LINE_LIMIT {
            self.overlong = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(bytes);
        }
    }
}

/// The part of an EVE alert that the view shows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Event {
    event_type: String,
    timestamp: String,
    src_ip: String,
    dest_ip: String,
    dest_port: Option<u16>,
    alert: Alert,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Alert {
    context: Context,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    alert_id: serde_json::Value,
    phase: String,
    kind: String,
    technique: String,
    distinct_ports: u64,
    distinct_hosts: u64,
    answered: u64,
    refused: u64,
    silent: u64,
}

/// Alerts of this run: which are open, and how many came and went.
#[derive(Debug, Default)]
pub struct Alerts {
    open: HashSet<String>,
    closed: u64,
}

impl Alerts {
    /// Alerts that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Alerts that have closed.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed
    }

    /// Takes one line of the log. If it is an alert: how to say it in one line.
    pub fn take(&mut self, line: &[u8]) -> Option<String> {
        // Most lines are flows; only what may be an alert is worth parsing.
        if !line.windows(ALERT.len()).any(|window| window == ALERT) {
            return None;
        }
        let event: Event = serde_json::from_slice(line).ok()?;
        if event.event_type != "alert" {
            return None;
        }
        let context = &event.alert.context;
        let id = context.alert_id.to_string();
        match context.phase.as_str() {
            "close" => {
                self.open.remove(&id);
                self.closed += 1;
            }
            _ if self.open.len() < OPEN_LIMIT => {
                self.open.insert(id);
            }
            _ => {}
        }
        Some(event.in_words())
    }
}

const ALERT: &[u8] = b"\"alert\"";

impl Event {
    fn in_words(&self) -> String {
        let Context { kind, technique, phase, .. } = &self.alert.context;
        let Context { distinct_ports, distinct_hosts, answered, refused, silent, .. } =
            self.alert.context;
        let time = self.timestamp.split(['T', '.', '+', 'Z']).nth(1).unwrap_or("");
        let phase = match phase.as_str() {
            "open" => "opened",
            "update" => "update",
            "close" => "closed",
            other => other,
        };
        let target = match (self.dest_ip.as_str(), self.dest_port) {
            ("", _) => counted(distinct_hosts, "host"),
            (host, _) if distinct_hosts <= 1 => host.to_owned(),
            (_, Some(port)) => format!("{}, port {port}", counted(distinct_hosts, "host")),
            (_, None) => counted(distinct_hosts, "host"),
        };
        let ports = counted(distinct_ports, "port");
        harmless(
            &format!(
                "{time} ALERT {phase:6}  {kind} scan  {} → {target}, {ports}  \
                 ({refused} refused, {silent} silent, {answered} answered; {technique})",
                self.src_ip
            ),
            300,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn lines_of(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower.poll(|line| lines.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        lines
    }

    #[test]
    fn only_lines_written_later_and_ended_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        std::fs::write(&path, "old\n").unwrap();
        let mut follower = Follower::from_end(path.clone());
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines_of(&mut follower), ["one"]);
        file.write_all(b"o\n").unwrap();
        assert_eq!(lines_of(&mut follower), ["two"]);
        std::fs::write(&path, "a\n").unwrap();
        assert_eq!(lines_of(&mut follower), ["a"]);
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        let mut follower = Follower::from_end(path.clone());
        assert!(lines_of(&mut follower).is_empty());
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(lines_of(&mut follower), ["first"]);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eve.json");
        let mut follower = Follower::from_end(path.clone());
        let mut text = vec![b'x'; LINE_LIMIT + 1];
        text.extend_from_slice(b"\nnext\n");
        std::fs::write(&path, text).unwrap();
        assert_eq!(lines_of(&mut follower), ["next"]);
        assert!(follower.line.is_empty());
    }

    fn alert(phase: &str, id: &str) -> String {
        format!(
            r#"{{"timestamp":"2026-11-21T10:00:01.5+0000","event_type":"alert",
               "src_ip":"10.0.0.1","dest_ip":"10.0.0.2","alert":{{"signature":"s","context":{{
               "alert_id":"{id}","revision":1,"phase":"{phase}","kind":"vertical",
               "technique":"T1046","distinct_ports":10,"distinct_hosts":1,"attempted":10,
               "answered":0,"refused":10,"silent":0}}}}}}"#
        )
    }

    #[test]
    fn an_alert_is_open_until_it_closes() {
        let mut alerts = Alerts::default();
        let said = alerts.take(alert("open", "a").as_bytes()).unwrap();
        assert_eq!(
            said,
            "10:00:01 ALERT opened  vertical scan  10.0.0.1 → 10.0.0.2, 10 ports  \
             (10 refused, 0 silent, 0 answered; T1046)"
        );
        alerts.take(alert("update", "a").as_bytes());
        alerts.take(alert("open", "b").as_bytes());
        assert_eq!((alerts.open(), alerts.closed()), (2, 0));
        alerts.take(alert("close", "a").as_bytes());
        assert_eq!((alerts.open(), alerts.closed()), (1, 1));
    }

    #[test]
    fn other_events_and_broken_lines_are_no_alerts() {
        let mut alerts = Alerts::default();
        for line in
            [r#"{"event_type":"flow"}"#, r#"{"event_type":"stats","alert":{}}"#, "\"alert\""]
        {
            assert_eq!(alerts.take(line.as_bytes()), None, "{line}");
        }
    }
}
