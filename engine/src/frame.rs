//! Frames between nodes: where one message ends and the next begins, and whether it came as it was
//! sent.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of the body |
//! | 4 | 8 | number of the request; its response has the same |
//! | 12 | 2 | kind |
//! | 14 | 2 | zero |
//! | 16 | 4 | CRC-32C of the body |
//! | 20 | 4 | CRC-32C of the 20 bytes before |
//! | 24 | n | body |
//!
//! Numbers are little endian. TCP's own sum of 16 bits lets one damaged segment in 65,536 pass, and
//! nothing guards the memory of what lies between two nodes. So no byte is used before it is checked:
//! the header before its length is believed, the body before it is handed on. After a frame that does
//! not match nothing more of its connection can be read. Pure: bytes only.

use crate::mutant::{self, Mutant};

/// Bytes of a frame before its body.
pub const HEADER_LEN: usize = 24;
/// Longest body of a frame.
pub const BODY_LEN_MAX: usize = 8 << 20;

/// A frame found at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The number of the request.
    pub id: u64,
    /// The kind of the body.
    pub kind: u16,
    /// The message.
    pub body: &'a [u8],
    /// Bytes of the whole frame.
    pub len: usize,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Bytes were changed on the way.
    #[error("a frame was damaged on its way: the checksum of its {0} does not match")]
    Damaged(&'static str),
    /// It is longer than the limit.
    #[error("a frame's body has {0} bytes; it may have {BODY_LEN_MAX}")]
    TooLong(usize),
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of the request.
    pub id: u64,
    /// The kind of the body.
    pub kind: u16,
    /// Bytes of the body.
    pub len: usize,
    checksum: u32,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; `None`: more bytes are needed.
    ///
    /// # Errors
    /// What is there is no header; nothing after it can be read.
    pub fn decode(bytes: &[u8]) -> Result<Option<Header>, BadFrame> {
        let header = bytes.first_chunk::<HEADER_LEN>();
        let Some((head, sum)) = header.and_then(|header| header.split_last_chunk::<4>()) else {
            return Ok(None);
        };
        check("header", head, u32::from_le_bytes(*sum))?;
        let len = u32::from_le_bytes(field(head, 0)) as usize;
        if len > BODY_LEN_MAX {
            return Err(BadFrame::TooLong(len));
        }
        Ok(Some(Header {
            id: u64::from_le_bytes(field(head, 4)),
            kind: u16::from_le_bytes(field(head, 12)),
            len,
            checksum: u32::from_le_bytes(field(head, 16)),
        }))
    }

    /// Checks that a body of this length is the one that was sent.
    ///
    /// # Errors
    /// It was changed on the way.
    pub fn check(&self, body: &[u8]) -> Result<(), BadFrame> {
        check("body", body, self.checksum)
    }
}

/// Appends the header of a frame with this body, which must follow it.
pub fn encode_header(id: u64, kind: u16, body: &[u8], to: &mut Vec<u8>) {
    let begin = to.len();
    to.extend_from_slice(&(body.len() as u32).to_le_bytes());
    to.extend_from_slice(&id.to_le_bytes());
    to.extend_from_slice(&kind.to_le_bytes());
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let head = crc32c::crc32c(to.get(begin..).unwrap_or_default());
    to.extend_from_slice(&head.to_le_bytes());
}

/// Appends a frame.
pub fn encode(id: u64, kind: u16, body: &[u8], to: &mut Vec<u8>) {
    to.reserve(HEADER_LEN + body.len());
    encode_header(id, kind, body, to);
    to.extend_from_slice(body);
}

/// Looks for a frame at the beginning of `bytes`; `None`: more bytes are needed.
///
/// # Errors
/// What is there is no frame; nothing after it can be read.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let Some(header) = Header::decode(bytes)? else {
        return Ok(None);
    };
    let len = HEADER_LEN + header.len;
    let Some(body) = bytes.get(HEADER_LEN..len) else {
        return Ok(None);
    };
    header.check(body)?;
    Ok(Some(Frame {
        id: header.id,
        kind: header.kind,
        body,
        len,
    }))
}

fn check(what: &'static str, bytes: &[u8], sum: u32) -> Result<(), BadFrame> {
    if crc32c::crc32c(bytes) == sum || mutant::is(Mutant::DamagedFrameTaken) {
        return Ok(());
    }
    Err(BadFrame::Damaged(what))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_one_after_the_other() {
        let mut bytes = Vec::new();
        encode(7, 3, b"body", &mut bytes);
        encode(8, 4, b"", &mut bytes);
        let first = decode(&bytes).expect("good").expect("whole");
        assert_eq!(
            (first.id, first.kind, first.body, first.len),
            (7, 3, &b"body"[..], 28)
        );
        let second = decode(&bytes[first.len..]).expect("good").expect("whole");
        assert_eq!((second.id, second.kind, second.body), (8, 4, &b""[..]));
        for cut in 0..first.len {
            assert_eq!(decode(&bytes[..cut]), Ok(None));
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let mut bytes = Vec::new();
        encode(0x0102, 101, b"123456789", &mut bytes);
        let fixed = [
            9, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 101, 0, 0, 0, // length, number, kind, zero
            0x83, 0x92, 0x06, 0xe3, // the check value of CRC-32C
        ];
        assert_eq!(bytes[..20], fixed);
        assert_eq!(bytes[20..24], crc32c::crc32c(&fixed).to_le_bytes());
        assert_eq!(&bytes[24..], b"123456789");
    }

    #[test]
    fn a_frame_with_any_one_bit_changed_is_none() {
        for body in [&b""[..], b"x", &[0; 300], &[0xff; 300]] {
            let mut bytes = Vec::new();
            encode(u64::MAX, 102, body, &mut bytes);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let found = decode(&bytes);
                assert!(
                    matches!(found, Err(BadFrame::Damaged(_))),
                    "bit {bit}: {found:?}"
                );
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_damaged_length_is_seen_before_it_is_waited_for() {
        let mut bytes = Vec::new();
        encode(1, 101, b"short", &mut bytes);
        // As long as nothing is: 4 MiB more.
        bytes[2] ^= 0x40;
        assert_eq!(decode(&bytes), Err(BadFrame::Damaged("header")));
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..4].copy_from_slice(&(BODY_LEN_MAX as u32 + 1).to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..20]);
        bytes[20..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(&bytes), Err(BadFrame::TooLong(BODY_LEN_MAX + 1)));
    }
}
