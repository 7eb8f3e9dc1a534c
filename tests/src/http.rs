//! Requests to a node's API over HTTP, as bytes.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::process::Home;

/// A response over HTTP.
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body, without the head.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    ///
    /// # Panics
    /// The body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The value of a header; `None`: it is not there.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

/// Sends a head and a body, and reads to the end of the connection.
///
/// # Panics
/// The node does not answer.
pub fn exchange(home: &Home, head: &str, body: &[u8]) -> Response {
    let mut stream = TcpStream::connect(&home.http).expect("the API is there");
    stream.write_all(head.as_bytes()).expect("it is sent");
    // A body that is too long may be refused before all of it is taken.
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let body = bytes.split_off(end.expect("a head") + 4);
    let head = String::from_utf8(bytes).expect("text");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Response {
        status: status.expect("a status"),
        head,
        body,
    }
}

/// Sends a request to `/api/v1/` and `path`.
///
/// # Panics
/// The node does not answer.
pub fn request(home: &Home, method: &str, path: &str, body: &[u8]) -> Response {
    let len = body.len();
    let head = format!(
        "{method} /api/v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: {len}\r\n\r\n"
    );
    exchange(home, &head, body)
}
