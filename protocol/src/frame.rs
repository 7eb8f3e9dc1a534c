//! Frames, which divide the byte stream of a connection into messages. This module does no I/O.

use crate::limits::FRAME_LEN_MAX;

/// Length of a frame's header: length field, request id, kind and two zero bytes.
pub const HEADER_LEN: usize = 16;
/// Length of the length field.
pub const LENGTH_LEN: usize = 4;

/// A frame found at the beginning of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The request id, which a reply has in common with its request.
    pub id: u64,
    /// The kind, which says what table the body is.
    pub kind: u16,
    /// The table's bytes.
    pub body: &'a [u8],
    /// Length of the whole frame.
    pub len: usize,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// It is longer than the limit.
    #[error("the frame has {len} bytes; a frame has at most {FRAME_LEN_MAX}")]
    TooLarge {
        /// The length in its length field.
        len: usize,
        /// Its request id, if that has arrived.
        id: Option<u64>,
    },
    /// It is too short to have a header.
    #[error("the frame has {0} bytes, which is too few for its header")]
    TooShort(usize),
}

/// Finds the frame at the beginning of `bytes`. `None` means that more bytes are needed.
///
/// # Errors
/// The bytes are not a frame, and nothing after them can be read.
pub fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_LEN>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*length) as usize;
    let id = rest.first_chunk::<8>().map(|id| u64::from_le_bytes(*id));
    if len > FRAME_LEN_MAX {
        return Err(BadFrame::TooLarge { len, id });
    }
    if len + LENGTH_LEN < HEADER_LEN {
        return Err(BadFrame::TooShort(len));
    }
    let (Some(frame), Some(id)) = (rest.get(..len), id) else {
        return Ok(None);
    };
    let kind = frame
        .get(8..10)
        .and_then(|k| k.try_into().ok())
        .map_or(0, u16::from_le_bytes);
    let body = frame.get(HEADER_LEN - LENGTH_LEN..).unwrap_or_default();
    Ok(Some(Frame {
        id,
        kind,
        body,
        len: len + LENGTH_LEN,
    }))
}

/// Length of the whole frame that begins here. While its length field is incomplete, this is the
/// length of a header.
pub fn expected_len(bytes: &[u8]) -> usize {
    bytes
        .first_chunk::<LENGTH_LEN>()
        .map_or(HEADER_LEN, |length| {
            u32::from_le_bytes(*length) as usize + LENGTH_LEN
        })
}

/// Appends a frame to `to`.
pub fn encode(id: u64, kind: u16, body: &[u8], to: &mut Vec<u8>) {
    let len = (HEADER_LEN - LENGTH_LEN + body.len()) as u32;
    to.reserve(HEADER_LEN + body.len());
    to.extend_from_slice(&len.to_le_bytes());
    to.extend_from_slice(&id.to_le_bytes());
    to.extend_from_slice(&kind.to_le_bytes());
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(body);
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
            (7, 3, &b"body"[..], 20)
        );
        let second = decode(&bytes[first.len..]).expect("good").expect("whole");
        assert_eq!((second.id, second.kind, second.body), (8, 4, &b""[..]));
        for cut in 0..first.len {
            assert_eq!(decode(&bytes[..cut]), Ok(None));
        }
        assert_eq!(expected_len(&bytes), 20);
    }

    #[test]
    fn the_layout_is_fixed() {
        let mut bytes = Vec::new();
        encode(0x0102, 3, b"xy", &mut bytes);
        assert_eq!(bytes, b"\x0e\0\0\0\x02\x01\0\0\0\0\0\0\x03\0\0\0xy");
    }

    #[test]
    fn bad_lengths_are_errors() {
        let mut bytes = (FRAME_LEN_MAX as u32 + 1).to_le_bytes().to_vec();
        let len = FRAME_LEN_MAX + 1;
        assert_eq!(decode(&bytes), Err(BadFrame::TooLarge { len, id: None }));
        bytes.extend_from_slice(&9u64.to_le_bytes());
        assert_eq!(decode(&bytes), Err(BadFrame::TooLarge { len, id: Some(9) }));
        assert_eq!(decode(&11u32.to_le_bytes()), Err(BadFrame::TooShort(11)));
    }
}
