//! The batch: the unit of one durable write.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `RDBW` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 8 | generation of the segment |
//! | 16 | 8 | running number of the batch, over all segments |
//! | 24 | 4 | length of the records |
//! | 28 | 4 | CRC-32C of the 32 bytes of this header with this field zero, and the records |
//! | 32 | n | records, then zeros up to a multiple of 4 KiB |
//!
//! A batch counts only under the right generation and number, so what a recycled segment held
//! before never does.

use crate::limits::{BLOCK_LEN, WAL_BATCH_LEN_MAX};

/// Bytes before the records.
pub const HEADER_LEN: usize = 32;
/// Records of one batch, at most.
pub const RECORDS_LEN_MAX: usize = WAL_BATCH_LEN_MAX - HEADER_LEN;

const MAGIC: [u8; 4] = *b"RDBW";
/// The format that this version writes.
pub const FORMAT: u16 = 1;
const CRC_AT: usize = 28;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Generation of the segment it was written to.
    pub generation: u64,
    /// Running number.
    pub number: u64,
    /// Length of the records.
    pub len: usize,
}

/// What the bytes at a place are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole batch.
    Batch(Header),
    /// A header whose batch is longer than the bytes given.
    Longer(usize),
    /// No batch.
    Nothing,
    /// A whole batch of another format.
    OtherFormat(u16),
}

/// Length on disk of a batch with `len` bytes of records.
pub fn padded_len(len: usize) -> usize {
    (HEADER_LEN + len).next_multiple_of(BLOCK_LEN)
}

/// Fills `buffer`, which has the padded length, with a batch.
pub fn encode(header: Header, records: &[u8], buffer: &mut [u8]) {
    assert_eq!(
        header.len,
        records.len(),
        "the header speaks of these records"
    );
    assert_eq!(
        buffer.len(),
        padded_len(records.len()),
        "the buffer is the batch"
    );
    let mut head = [0; HEADER_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        if let Some(place) = head.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        at += bytes.len();
    };
    put(&MAGIC);
    put(&FORMAT.to_le_bytes());
    put(&[0; 2]);
    put(&header.generation.to_le_bytes());
    put(&header.number.to_le_bytes());
    put(&(header.len as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), records);
    let (place, rest) = buffer.split_at_mut(HEADER_LEN);
    place.copy_from_slice(&head);
    place
        .split_at_mut(CRC_AT)
        .1
        .copy_from_slice(&crc.to_le_bytes());
    let (place, padding) = rest.split_at_mut(records.len());
    place.copy_from_slice(records);
    padding.fill(0);
}

/// Looks at the bytes of a place where a batch may begin.
pub fn decode(bytes: &[u8]) -> Found {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Found::Nothing;
    };
    if !head.starts_with(&MAGIC) {
        return Found::Nothing;
    }
    let len = u32::from_le_bytes(field(head, 24)) as usize;
    let crc = u32::from_le_bytes(field(head, CRC_AT));
    if len > RECORDS_LEN_MAX {
        return Found::Nothing;
    }
    let Some(records) = rest.get(..len) else {
        return Found::Longer(padded_len(len));
    };
    let mut unsealed = *head;
    unsealed.split_at_mut(CRC_AT).1.fill(0);
    if crc32c::crc32c_append(crc32c::crc32c(&unsealed), records) != crc {
        return Found::Nothing;
    }
    let format = u16::from_le_bytes(field(head, 4));
    if format != FORMAT {
        return Found::OtherFormat(format);
    }
    let generation = u64::from_le_bytes(field(head, 8));
    let number = u64::from_le_bytes(field(head, 16));
    Found::Batch(Header {
        generation,
        number,
        len,
    })
}

/// A field that lies within the header.
fn field<const N: usize>(head: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    head.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let records = b"some records";
        let header = Header {
            generation: 3,
            number: 17,
            len: records.len(),
        };
        let mut buffer = vec![0xaa; padded_len(records.len())];
        encode(header, records, &mut buffer);
        buffer
    }

    #[test]
    fn round_trips_and_any_flipped_bit_is_seen() {
        let good = sample();
        let header = Header {
            generation: 3,
            number: 17,
            len: 12,
        };
        assert_eq!(decode(&good), Found::Batch(header));
        for bit in 0..(HEADER_LEN + 12) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode(&bad), Found::Batch(_)), "bit {bit}");
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let head: Vec<u8> = sample().into_iter().take(44).collect();
        let expected: &[u8] = b"RDBW\x01\0\0\0\x03\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0\x0c\0\0\0";
        assert_eq!(head.get(..28), Some(expected));
        assert_eq!(head.get(32..), Some(&b"some records"[..]));
    }

    #[test]
    fn cut_batches_are_nothing_or_longer() {
        let good = sample();
        assert_eq!(decode(&good[..10]), Found::Nothing);
        assert_eq!(decode(&good[..40]), Found::Longer(4096));
    }
}
