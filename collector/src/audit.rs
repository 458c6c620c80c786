//! Who looked at what: a line for each look at the contents of frames.
//!
//! The form is that of events (EVE JSON lines), the place a file of its own, which only its owner
//! can read. A line is on the disk before anything is shown.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use trust::tokens::Access;

/// Where looks are written down.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    collector: String,
    /// Lines are written one after the other.
    turn: Mutex<()>,
}

/// Somebody asked for the contents of frames.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Name of the token.
    pub caller: &'a str,
    /// What it is good for.
    pub access: Access,
    /// Where the question came from.
    pub peer: Option<SocketAddr>,
    /// Method of HTTP.
    pub method: &'a str,
    /// Path, without the query.
    pub path: &'a str,
    /// The query, as it was asked.
    pub query: &'a str,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Allowed,
    /// The token is not good for it.
    Refused,
}

impl Audit {
    /// Lines go to `path`, in the name of this collector.
    #[must_use]
    pub const fn new(path: PathBuf, collector: String) -> Self {
        Self { path, collector, turn: Mutex::new(()) }
    }

    /// The line about a look.
    #[must_use]
    pub fn line(&self, look: &Look<'_>) -> String {
        let Look { caller, access, peer, method, path, query, outcome } = look;
        let outcome = match outcome {
            Outcome::Allowed => "allowed",
            Outcome::Refused => "refused",
        };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6f+0000").to_string();
        let record = json!({
            "timestamp": now,
            "event_type": "anomaly",
            "anomaly": { "type": "ringwatch", "event": "contents_asked_for" },
            "ringwatch": {
                "collector": self.collector,
                "caller": caller,
                "access": access.to_string(),
                "peer": peer.map(|peer| peer.to_string()),
                "method": method,
                "path": path,
                "query": query,
                "outcome": outcome,
            },
        });
        format!("{record}\n")
    }

    /// Writes a [line](Self::line) down, and brings it to the disk, which may take its time.
    ///
    /// # Errors
    /// What the system says; then nothing may be shown.
    pub fn write(&self, line: &str) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Opened for each line: the file may be moved away at any time, as the event log may.
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        file.write_all(line.as_bytes())?;
        file.sync_data()
    }
}
