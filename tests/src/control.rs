//! A VM's control socket, without the command line in between: HTTP/1.1 with JSON bodies, one request a connection.
//!
//! In the host box, starting a program costs an emulated processor a good part of a second; a test that asks for the
//! statistics again and again asks here.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::wait::DEADLINE;

/// Sends one request and answers the status and the body.
///
/// # Errors
/// Nobody listens at `socket`, or the VM ended, or was silent beyond the deadline: in words.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<(u16, Value), String> {
    let mut stream = UnixStream::connect(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    let answer = stream
        .set_read_timeout(Some(DEADLINE))
        .and_then(|()| {
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        })
        .and_then(|()| {
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        })
        .map_err(|error| format!("{method} {path}: {error}"))?;
    parse(&answer).ok_or_else(|| format!("{method} {path} was answered with {answer:?}"))
}

/// The status and the JSON body of an answer.
fn parse(answer: &str) -> Option<(u16, Value)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_a_json_object() {
        let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 20\r\n\r\n{\"fault_message\":\"\"}";
        let (status, body) = parse(answer).unwrap();
        assert_eq!((status, body["fault_message"].as_str()), (400, Some("")));
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\n{"), None);
    }
}
