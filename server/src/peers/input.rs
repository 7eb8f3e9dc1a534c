//! The receiving half of a connection between nodes: turns its bytes into frames.
//!
//! Short frames gather in one buffer per connection, and each body is copied out of it once, so
//! that a body that is kept holds no more memory than its own. The body of a long frame is read
//! from the connection to where it stays, and is not copied at all.

use std::io;
#[cfg(test)]
use std::io::Read;

use bytes::Bytes;
use futures_util::io::{AsyncRead, AsyncReadExt};
use rangedb_engine::frame::{self, BadFrame, Header};

/// Bytes of the buffer in which short frames gather.
pub const RECEIVE_LEN: usize = 64 << 10;
/// Most bytes of the first frame of a connection, whose sender is not known yet.
pub(super) const HELLO_LEN_MAX: usize = 64 << 10;
/// A body of which a part has come, and that is longer than this, gets memory of its own.
const SHORT_LEN_MAX: usize = 16 << 10;

/// Most bytes of a frame.
const FRAME_LEN_MAX: usize = frame::HEADER_LEN + frame::BODY_LEN_MAX;

const _: () = assert!(frame::HEADER_LEN + SHORT_LEN_MAX <= RECEIVE_LEN);

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The number of its request.
    pub id: u64,
    /// One of [`super::kind`].
    pub kind: u16,
    /// Its body; the checksum is verified.
    pub body: Bytes,
}

/// Whether a connection ended because a frame was damaged on its way.
pub fn is_damage(error: &io::Error) -> bool {
    let bad = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(bad, Some(BadFrame::Damaged(_)))
}

/// The bytes of a connection that were received and not yet handled.
pub struct Input {
    /// Holds what was received at `taken..filled`.
    buffer: Box<[u8]>,
    taken: usize,
    filled: usize,
    /// The long frame that is being received.
    long: Option<Long>,
    /// A frame may have at most this many bytes.
    frame_len_max: usize,
}

/// A frame whose body is read to where it stays.
struct Long {
    header: Header,
    body: Vec<u8>,
    filled: usize,
}

impl Default for Input {
    fn default() -> Input {
        Input::new(FRAME_LEN_MAX)
    }
}

impl Input {
    /// A frame may have at most `frame_len_max` bytes.
    pub fn new(frame_len_max: usize) -> Input {
        Input {
            buffer: vec![0; RECEIVE_LEN].into_boxed_slice(),
            taken: 0,
            filled: 0,
            long: None,
            frame_len_max,
        }
    }

    /// Accepts frames of full length from now on.
    pub fn accept_long(&mut self) {
        self.frame_len_max = FRAME_LEN_MAX;
    }

    /// Receives until there is a whole frame, and takes it.
    ///
    /// # Errors
    /// The connection has ended, or its bytes are not a frame. [`is_damage`] tells whether a frame
    /// was damaged on its way.
    pub async fn receive(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Received> {
        loop {
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            let len = reader.read(self.room()).await?;
            self.count(len)?;
        }
    }

    /// The same for a blocking connection.
    #[cfg(test)]
    pub fn receive_blocking(&mut self, reader: &mut impl Read) -> io::Result<Received> {
        loop {
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            let len = reader.read(self.room())?;
            self.count(len)?;
        }
    }

    /// Takes a whole frame, or makes room for what it lacks.
    fn take(&mut self) -> io::Result<Option<Received>> {
        if let Some(long) = self.long.take_if(|long| long.filled == long.body.len()) {
            return received(long.header, long.body.into()).map(Some);
        }
        if self.long.is_some() {
            return Ok(None);
        }
        let rest = self.buffer.get(self.taken..self.filled).unwrap_or_default();
        let header = Header::decode(rest).map_err(io::Error::other)?;
        if let Some(header) = header {
            let len = frame::HEADER_LEN + header.len;
            if len > self.frame_len_max {
                return Err(io::Error::other("a frame that is too long"));
            }
            let body = rest.get(frame::HEADER_LEN..).unwrap_or_default();
            if let Some(body) = body.get(..header.len) {
                self.taken += len;
                return received(header, Bytes::copy_from_slice(body)).map(Some);
            }
            if header.len > SHORT_LEN_MAX {
                let filled = body.len();
                let mut whole = vec![0; header.len];
                whole.split_at_mut(filled).0.copy_from_slice(body);
                self.long = Some(Long {
                    header,
                    body: whole,
                    filled,
                });
                self.taken = self.filled;
            }
        }
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        Ok(None)
    }

    /// Where the next read puts its bytes.
    fn room(&mut self) -> &mut [u8] {
        match &mut self.long {
            Some(long) => long.body.split_at_mut(long.filled).1,
            None => self.buffer.split_at_mut(self.filled).1,
        }
    }

    /// Counts the bytes of a read; 0 means that the connection has ended.
    fn count(&mut self, len: usize) -> io::Result<()> {
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.long {
            Some(long) => long.filled += len,
            None => self.filled += len,
        }
        Ok(())
    }
}

/// The frame with this header and body, if the body is the one that was sent.
fn received(header: Header, body: Bytes) -> io::Result<Received> {
    header.check(&body).map_err(io::Error::other)?;
    Ok(Received {
        id: header.id,
        kind: header.kind,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::kind;

    #[test]
    fn a_damaged_frame_ends_the_connection_and_is_told_from_other_ends() {
        let mut bytes = Vec::new();
        frame::encode(1, kind::RESPONSE, b"answer", &mut bytes);
        let end = bytes.len();
        frame::encode(2, kind::RESPONSE, &[7; RECEIVE_LEN], &mut bytes);
        bytes[end + RECEIVE_LEN] ^= 4;
        let mut input = Input::default();
        let mut reader = &bytes[..];
        let first = input.receive_blocking(&mut reader).expect("a frame");
        assert_eq!(first.body, &b"answer"[..]);
        let error = input.receive_blocking(&mut reader).expect_err("damage");
        assert!(is_damage(&error), "{error}");
        let mut nothing = &b""[..];
        let end = Input::default().receive_blocking(&mut nothing);
        assert!(!is_damage(&end.expect_err("the end")));
    }

    #[test]
    fn frames_are_taken_one_by_one_however_they_come() {
        let sent: Vec<_> = [
            3,
            RECEIVE_LEN * 2,
            0,
            SHORT_LEN_MAX,
            SHORT_LEN_MAX + 1,
            RECEIVE_LEN,
        ]
        .into_iter()
        .enumerate()
        .map(|(id, len)| Received {
            id: id as u64,
            kind: kind::REQUEST,
            body: vec![id as u8; len].into(),
        })
        .collect();
        let mut bytes = Vec::new();
        for frame in &sent {
            frame::encode(frame.id, frame.kind, &frame.body, &mut bytes);
        }
        let all = bytes.len();
        bytes.extend_from_slice(&bytes.clone()[..10]);
        for cut in [0, 1, 5, 30, all / 2, all - 1, all] {
            let (first, second) = bytes.split_at(cut);
            let mut reader = Read::chain(first, second);
            let mut input = Input::default();
            for frame in &sent {
                let received = input.receive_blocking(&mut reader).expect("a frame");
                assert_eq!(received, *frame);
            }
            let end = input
                .receive_blocking(&mut reader)
                .expect_err("a part of one");
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
