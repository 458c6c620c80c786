//! Asks the local API of a running sensor. One request of HTTP/1.0: the answer ends with the connection.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// The sensor did not explain.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers.
    #[error(
        "no sensor answers on {api}: start one with api.listen = \"{api}\", name another address with \
         --api, or explain a capture file with --read"
    )]
    Silent {
        /// Where.
        api: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Somebody answers, but no sensor.
    #[error("what answers on {api} is no sensor's API: name its address with --api")]
    Stranger {
        /// Where.
        api: SocketAddr,
    },
    /// The sensor says why it does not explain.
    #[error("the sensor on {api} does not explain: {why}")]
    Refused {
        /// Where.
        api: SocketAddr,
        /// What it says.
        why: String,
    },
}

/// Longer than the sensor waits for its detector.
const PATIENCE: Duration = Duration::from_secs(10);

/// An explanation is far smaller.
const MOST_BYTES: u64 = 4 << 20;

/// What a running sensor knows of `source`, as text or as one line of JSON.
///
/// # Errors
/// See [`AskError`].
pub fn ask(api: SocketAddr, source: IpAddr, as_json: bool) -> Result<String, AskError> {
    let answer =
        exchange(api, source, as_json).map_err(|source| AskError::Silent { api, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(AskError::Stranger { api })?;
    let mut words = head.split_whitespace();
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    match (is_http, words.next()) {
        (true, Some("200")) => Ok(body.to_owned()),
        // Of a sensor that cannot explain now, the body is what it says; a stranger knows no such page.
        (true, Some("503" | "504")) => Err(AskError::Refused { api, why: body.trim().to_owned() }),
        _ => Err(AskError::Stranger { api }),
    }
}

fn exchange(api: SocketAddr, source: IpAddr, as_json: bool) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&api, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let accept = if as_json { "application/json" } else { "text/plain" };
    let request = format!(
        "GET /v1/explain?source={source} HTTP/1.0\r\nHost: {api}\r\nAccept: {accept}\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// What is made of this answer.
    fn asked_of(answer: &'static str) -> Result<String, AskError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let api = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let asked = ask(api, SOURCE, true);
        let request = server.join().unwrap();
        assert!(request.starts_with("GET /v1/explain?source=192.0.2.1 HTTP/1.0\r\n"), "{request}");
        asked
    }

    #[test]
    fn an_answer_is_given_as_it_came() {
        let answer = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"a\":1}\n";
        assert_eq!(asked_of(answer).unwrap(), "{\"a\":1}\n");
    }

    #[test]
    fn a_sensor_that_cannot_explain_is_quoted() {
        let error = asked_of("HTTP/1.0 503 X\r\n\r\nthe detector has ended\n").unwrap_err();
        assert!(error.to_string().ends_with("does not explain: the detector has ended"), "{error}");
    }

    #[test]
    fn strangers_and_closed_ports_are_told_apart() {
        for answer in ["SSH-2.0-x\r\n", "HTTP/1.1 404 Not Found\r\n\r\n"] {
            assert!(matches!(asked_of(answer), Err(AskError::Stranger { .. })), "{answer}");
        }
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let error = ask(closed, SOURCE, false).unwrap_err();
        assert!(matches!(error, AskError::Silent { .. }));
        assert!(error.to_string().contains("--read"), "{error}");
    }
}
