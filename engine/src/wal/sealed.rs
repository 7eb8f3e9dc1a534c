//! The sealed block: block 0 of a segment in formats 2 and 3, the clean mark in every format, and
//! the batch of format 1.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `RDBW` |
//! | 4 | 2 | format version, little endian as all numbers |
//! | 6 | 2 | zero |
//! | 8 | 8 | generation of the segment |
//! | 16 | 8 | running number of a batch |
//! | 24 | 4 | length of the body |
//! | 28 | 4 | CRC-32C of the 32 bytes of this header with this field zero, and the body |
//! | 32 | n | body, then zeros up to a multiple of 4 KiB |
//!
//! | use | format | number | body |
//! |---|---|---|---|
//! | block 0 of a segment | 2, 3 | of the segment's first batch | the segment's secret, 8 bytes, and the length of its file, 8 bytes |
//! | the file `clean` | 1, 2, 3 | that the next batch would have | the number before it, 8 bytes |
//! | a batch of format 1 | 1 | its own | records |
//!
//! The checksum has no key: anybody can make such a block. So in formats 2 and 3 one is looked for
//! only where nothing else is ever written: at the first byte of a segment, and in a file of its
//! own. A log of format 1 has its batches in this form; this version reads them and writes none.
//! Version 1 finds a sealed block of another format where it looks for its first batch, and refuses
//! the log.

use crate::limits::{BLOCK_LEN, WAL_BATCH_LEN_MAX};

/// Bytes before the body.
pub const HEADER_LEN: usize = 32;
/// Most bytes of a block's body.
const BODY_LEN_MAX: usize = WAL_BATCH_LEN_MAX - HEADER_LEN;

/// The first bytes of a sealed block and of a batch.
pub const MAGIC: [u8; 4] = *b"RDBW";
const CRC_AT: usize = 28;

/// A block whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// Its format version.
    pub format: u16,
    /// Generation of the segment.
    pub generation: u64,
    /// The number of a batch; see the table above.
    pub number: u64,
    /// Its body, without padding.
    pub body: &'a [u8],
}

/// What lies at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// A whole block.
    Whole(Sealed<'a>),
    /// A header whose block has this many bytes, more than were given.
    Longer(usize),
    /// No block.
    Nothing,
}

/// Length on disk of a block with a body of `len` bytes.
pub fn padded_len(len: usize) -> usize {
    (HEADER_LEN + len).next_multiple_of(BLOCK_LEN)
}

/// Fills `buffer` with a block; its length is the padded length.
pub fn seal(sealed: Sealed<'_>, buffer: &mut [u8]) {
    let body = sealed.body;
    assert_eq!(buffer.len(), padded_len(body.len()), "it is the block's");
    let mut head = Vec::with_capacity(HEADER_LEN);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&sealed.format.to_le_bytes());
    head.extend_from_slice(&[0; 2]);
    head.extend_from_slice(&sealed.generation.to_le_bytes());
    head.extend_from_slice(&sealed.number.to_le_bytes());
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), body);
    let (location, rest) = buffer.split_at_mut(HEADER_LEN);
    location.copy_from_slice(&head);
    location
        .split_at_mut(CRC_AT)
        .1
        .copy_from_slice(&crc.to_le_bytes());
    let (location, padding) = rest.split_at_mut(body.len());
    location.copy_from_slice(body);
    padding.fill(0);
}

/// Reads what lies where a block may begin.
pub fn open(bytes: &[u8]) -> Opened<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Opened::Nothing;
    };
    if !head.starts_with(&MAGIC) {
        return Opened::Nothing;
    }
    let len = u32::from_le_bytes(field(head, 24)) as usize;
    let crc = u32::from_le_bytes(field(head, CRC_AT));
    if len > BODY_LEN_MAX {
        return Opened::Nothing;
    }
    let Some(body) = rest.get(..len) else {
        return Opened::Longer(padded_len(len));
    };
    let mut unsealed = *head;
    unsealed.split_at_mut(CRC_AT).1.fill(0);
    if crc32c::crc32c_append(crc32c::crc32c(&unsealed), body) != crc {
        return Opened::Nothing;
    }
    Opened::Whole(Sealed {
        format: u16::from_le_bytes(field(head, 4)),
        generation: u64::from_le_bytes(field(head, 8)),
        number: u64::from_le_bytes(field(head, 16)),
        body,
    })
}

/// The field at an offset of a header, which must lie within it.
pub fn field<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    head.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Sealed<'static> = Sealed {
        format: 1,
        generation: 3,
        number: 17,
        body: b"some records",
    };

    fn sample() -> Vec<u8> {
        let mut buffer = vec![0xaa; padded_len(SAMPLE.body.len())];
        seal(SAMPLE, &mut buffer);
        buffer
    }

    #[test]
    fn blocks_are_read_back_and_any_flipped_bit_is_seen() {
        let good = sample();
        assert_eq!(open(&good), Opened::Whole(SAMPLE));
        for bit in 0..(HEADER_LEN + 12) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(open(&bad), Opened::Whole(_)), "bit {bit}");
        }
    }

    #[test]
    fn the_form_is_fixed() {
        let head: Vec<u8> = sample().into_iter().take(44).collect();
        let expected: &[u8] = b"RDBW\x01\0\0\0\x03\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0\x0c\0\0\0";
        assert_eq!(head.get(..28), Some(expected));
        assert_eq!(head.get(32..), Some(&b"some records"[..]));
    }

    #[test]
    fn cut_blocks_are_nothing_or_longer() {
        let good = sample();
        assert_eq!(open(&good[..10]), Opened::Nothing);
        assert_eq!(open(&good[..40]), Opened::Longer(4096));
    }
}
