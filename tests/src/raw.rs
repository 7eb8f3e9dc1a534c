//! A connection of the client protocol that sends only the bytes of the test.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rangedb_protocol::handshake::{ANY_SHARD, HANDSHAKE_REPLY_LEN, Handshake, HandshakeReply};
use rangedb_protocol::{FlatBufferBuilder, Request, RequestBody, frame};

/// How long to wait for a reply.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection after its handshake.
#[derive(Debug)]
pub struct RawClient {
    /// The blocking socket.
    pub stream: TcpStream,
    /// The node's answer to the handshake.
    pub answer: HandshakeReply,
}

impl RawClient {
    /// Connects and sends a plain client's handshake.
    ///
    /// # Errors
    /// The node does not listen, or closes without an answer.
    pub fn connect(address: &str) -> io::Result<RawClient> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let handshake = Handshake {
            smart: false,
            ..Handshake::client(ANY_SHARD)
        };
        stream.write_all(&handshake.encode())?;
        let mut bytes = [0; HANDSHAKE_REPLY_LEN];
        stream.read_exact(&mut bytes)?;
        let answer = HandshakeReply::decode(&bytes);
        let answer = answer.ok_or_else(|| io::Error::other("an answer of another protocol"))?;
        Ok(RawClient { stream, answer })
    }

    /// Reads the frame of a reply; returns its id and its bytes.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn receive(&mut self) -> io::Result<(u64, Vec<u8>)> {
        let mut length = [0; frame::LENGTH_LEN];
        self.stream.read_exact(&mut length)?;
        let mut bytes = length.to_vec();
        bytes.resize(frame::expected_len(&length), 0);
        let rest = bytes.get_mut(frame::LENGTH_LEN..).unwrap_or_default();
        self.stream.read_exact(rest)?;
        let found = frame::decode(&bytes).map_err(io::Error::other)?;
        let found = found.ok_or_else(|| io::Error::other("a short frame"))?;
        Ok((found.id, bytes.clone()))
    }
}

/// The frame of a request.
pub fn request(id: u64, body: RequestBody<'_>) -> Vec<u8> {
    let request = Request {
        body,
        target: None,
        deadline_ms: 0,
        token: 0,
    };
    let mut bytes = Vec::new();
    request.encode(id, &mut FlatBufferBuilder::new(), &mut bytes);
    bytes
}
