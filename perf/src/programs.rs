//! Ringwatch's own programs, out of the target folder of the running test.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Command for `ringwatch-sensor`.
#[must_use]
pub fn sensor() -> Command {
    Command::new(path("ringwatch-sensor"))
}

/// Command for `ringwatch-collector`.
#[must_use]
pub fn collector() -> Command {
    Command::new(path("ringwatch-collector"))
}

/// Command for `ringwatch`.
#[must_use]
pub fn ringwatch() -> Command {
    Command::new(path("ringwatch"))
}

/// Where a program of this workspace lies: beside the running test executable.
///
/// # Panics
/// If it was not built; names the remedy.
#[must_use]
pub fn path(program: &str) -> PathBuf {
    let test = env::current_exe().unwrap_or_else(|error| panic!("path of this test: {error}"));
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM
    let found = test.ancestors().skip(1).take(2).map(|folder| folder.join(program));
    let found = found.into_iter().find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{program} is not built beside {}: run `cargo build --workspace --bins`",
            test.display()
        )
    })
}

/// Answer to a request over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    /// Status code.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

impl HttpReply {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

/// Asks `url` with GET, for 5 s at most. In another namespace: wrap it in
/// [`Namespace::within`](crate::lab::Namespace::within).
///
/// # Errors
/// What the connection said, as text; an error status is a reply.
pub fn http_get(url: &str) -> Result<HttpReply, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .into();
    let mut reply = agent.get(url).call().map_err(|error| error.to_string())?;
    let body = reply.body_mut().read_to_string().map_err(|error| error.to_string())?;
    Ok(HttpReply { status: reply.status().as_u16(), body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    #[should_panic(expected = "cargo build --workspace --bins")]
    fn a_program_that_was_not_built_is_a_failure_with_its_remedy() {
        let _ = path("no-such-program");
    }

    #[test]
    fn an_error_status_is_a_reply_and_a_closed_port_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            let reply = "HTTP/1.1 503 Busy\r\ncontent-length: 12\r\n\r\n{\"ok\":false}";
            stream.write_all(reply.as_bytes()).unwrap();
        });
        let reply = http_get(&format!("http://{address}/healthz")).unwrap();
        server.join().unwrap();
        assert_eq!((reply.status, reply.json()["ok"].as_bool()), (503, Some(false)));
        assert!(http_get(&format!("http://{address}/healthz")).is_err());
    }
}
