//! The receiving half of a connection between nodes: turns its bytes into frames.

use std::io;
#[cfg(test)]
use std::io::Read;

use bytes::Bytes;
use futures_util::io::{AsyncRead, AsyncReadExt};
use rangedb_engine::frame::{self, BadFrame};

/// Bytes are read in pieces of at most this size.
pub const RECEIVE_LEN: usize = 64 << 10;

/// Most bytes of a frame.
const FRAME_LEN_MAX: usize = frame::HEADER_LEN + frame::BODY_LEN_MAX;

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
    bytes: Vec<u8>,
    /// How many bytes of `bytes` were taken already.
    taken: usize,
    /// The buffer for one read.
    piece: Box<[u8]>,
    /// An incomplete frame may have at most this many bytes.
    frame_len_max: usize,
}

impl Default for Input {
    fn default() -> Input {
        Input::new(FRAME_LEN_MAX)
    }
}

impl Input {
    /// An incomplete frame may have at most `frame_len_max` bytes.
    pub fn new(frame_len_max: usize) -> Input {
        Input {
            bytes: Vec::new(),
            taken: 0,
            piece: vec![0; RECEIVE_LEN].into_boxed_slice(),
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
            let len = reader.read(&mut self.piece).await?;
            self.append(len)?;
        }
    }

    /// The same for a blocking connection.
    #[cfg(test)]
    pub fn receive_blocking(&mut self, reader: &mut impl Read) -> io::Result<Received> {
        loop {
            if let Some(received) = self.take()? {
                return Ok(received);
            }
            let len = reader.read(&mut self.piece)?;
            self.append(len)?;
        }
    }

    fn take(&mut self) -> io::Result<Option<Received>> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some(found) = frame::decode(rest).map_err(io::Error::other)? else {
            return match rest.len() > self.frame_len_max {
                true => Err(io::Error::other("a frame that is too long")),
                false => Ok(None),
            };
        };
        self.taken += found.len;
        Ok(Some(Received {
            id: found.id,
            kind: found.kind,
            body: Bytes::copy_from_slice(found.body),
        }))
    }

    /// Adds the bytes of a read; 0 means that the connection has ended.
    fn append(&mut self, len: usize) -> io::Result<()> {
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        let piece = self.piece.get(..len).unwrap_or_default();
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::kind;

    #[test]
    fn a_damaged_frame_ends_the_connection_and_is_told_from_other_ends() {
        let mut bytes = Vec::new();
        frame::encode(1, kind::ANSWER, b"answer", &mut bytes);
        let end = bytes.len();
        frame::encode(2, kind::ANSWER, &[7; RECEIVE_LEN], &mut bytes);
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
        let sent: Vec<_> = [3, RECEIVE_LEN * 2, 0]
            .into_iter()
            .enumerate()
            .map(|(id, len)| Received {
                id: id as u64,
                kind: kind::QUESTION,
                body: vec![id as u8; len].into(),
            })
            .collect();
        let mut bytes = Vec::new();
        for frame in &sent {
            frame::encode(frame.id, frame.kind, &frame.body, &mut bytes);
        }
        let all = bytes.len();
        bytes.extend_from_slice(&bytes.clone()[..10]);
        for cut in [0, 1, 5, all / 2, all] {
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
