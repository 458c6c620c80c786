//! `ringwatch frames` against a collector that answers what a test says, as an operator sees it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

/// Runs the command against a collector that sends these bytes. Exit code, errors, and what was saved.
fn save(answer: Vec<u8>) -> (Option<i32>, String, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        stream.write_all(&answer).unwrap();
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("found.pcapng");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringwatch"));
    command.args(["frames", "--collector", &url, "-w"]).arg(&path);
    let output = command.output().unwrap();
    thread.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).replace(path.to_str().unwrap(), "FILE");
    (output.status.code(), errors, std::fs::read(&path).unwrap())
}

/// An answer that brings these bytes and ends, or is cut off.
fn answer(bytes: &[u8], is_whole: bool) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut answer = format!("{head}{:x}\r\n", bytes.len()).into_bytes();
    answer.extend_from_slice(bytes);
    answer.extend_from_slice(if is_whole { b"\r\n0\r\n\r\n" } else { b"\r\n" });
    answer
}

/// A block of statistics with this comment, as a collector ends a file with.
fn comment(text: &str) -> Vec<u8> {
    let mut body = [0; 12].to_vec();
    body.extend_from_slice(&1_u16.to_le_bytes());
    body.extend_from_slice(&u16::try_from(text.len()).unwrap().to_le_bytes());
    body.extend_from_slice(text.as_bytes());
    body.resize(body.len().next_multiple_of(4) + 4, 0);
    let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
    [&5_u32.to_le_bytes(), &length[..], &body, &length].concat()
}

#[test]
fn an_answer_that_lacks_frames_is_a_failure_that_says_what_is_missing() {
    let said = "not complete: 3 frames in 1 damaged part of 1.pcapng cannot be read";
    let file = [&[0xa5; 100_000][..], &comment(said)].concat();
    let (code, errors, saved) = save(answer(&file, false));
    assert_eq!(code, Some(1), "{errors}");
    assert_eq!(errors, format!("ringwatch: {said}; what came is in FILE\n"));
    assert!(saved == file, "{} bytes of {}", saved.len(), file.len());
}

#[test]
fn an_answer_that_breaks_off_without_a_word_is_a_failure() {
    let (code, errors, saved) = save(answer(&[0xa5; 1000], false));
    assert_eq!((code, saved.len()), (Some(1), 1000), "{errors}");
    let expected =
        "ringwatch: the collector's answer broke off after 1000 bytes; what came is in FILE";
    assert!(errors.starts_with(expected), "{errors}");
}

#[test]
fn an_answer_that_ends_in_order_is_none() {
    let (code, errors, saved) = save(answer(&[0xa5; 1000], true));
    assert_eq!((code, saved.len()), (Some(0), 1000), "{errors}");
}
