//! The batch: the unit of one durable write.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `RDBW` |
//! | 4 | 2 | format version, 3, little endian as all numbers |
//! | 6 | 2 | zero |
//! | 8 | 8 | checksum: XXH3-64, seeded with the segment's secret, of all that follows to the end of the records |
//! | 16 | 8 | generation of the segment |
//! | 24 | 8 | running number of the batch, over all segments |
//! | 32 | 4 | length of the records |
//! | 36 | 4 | zero |
//! | 40 | n | records, then zeros up to a multiple of 4 KiB |
//!
//! A batch counts only with the right generation and number, and with a checksum that only this
//! process can make. A recycled segment still holds, block by block, what clients wrote before, and
//! a client may have written something that looks like a batch. The secret is 64 random bits. It is
//! chosen when the segment is taken into use, so it is younger than everything the segment held
//! before, and it leaves the process only to the segment's first block. A forger has to guess 64
//! bits for each block.
//!
//! The checksum is not a CRC with a secret seed. A CRC is linear: whatever the seed is, two texts
//! can be made that have the same CRC. A client could write one of them, later the other at the
//! same place, and a torn write that mixes both would be taken for a whole one. In XXH3 the effect
//! of a changed byte depends on the seed.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::limits::{BLOCK_LEN, WAL_BATCH_LEN_MAX};
use crate::wal::sealed::{self, MAGIC, Opened, field};

/// Bytes before the records.
pub const HEADER_LEN: usize = 40;
/// Most bytes of records in one batch.
pub const RECORDS_LEN_MAX: usize = WAL_BATCH_LEN_MAX - HEADER_LEN;
/// The format that this version writes. Its batches are those of format 2; the entries in them may
/// be such that an older version cannot apply.
pub const FORMAT: u16 = 3;
/// The first format with secrets, which this version reads.
pub const FORMAT_WITH_OLDER_ENTRIES: u16 = 2;
/// The format of a log without secrets, which this version reads.
pub const FORMAT_WITHOUT_KEY: u16 = 1;

const CHECKSUM_AT: usize = 8;
/// The checksum covers everything from this offset to the end of the records.
const COVERED_FROM: usize = 16;

/// The key to the batches of one segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The segment's secret.
    Secret(u64, u16),
    /// No key: the segment is of format 1.
    None,
}

impl Key {
    /// Bytes before the records of a batch.
    pub fn header_len(self) -> usize {
        match self {
            Key::Secret(..) => HEADER_LEN,
            Key::None => sealed::HEADER_LEN,
        }
    }

    /// Length on disk of a batch with `len` bytes of records.
    pub fn padded_len(self, len: usize) -> usize {
        (self.header_len() + len).next_multiple_of(BLOCK_LEN)
    }
}

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Generation of the segment that it was written to.
    pub generation: u64,
    /// Its number, counted over all segments.
    pub number: u64,
    /// Length of the records in bytes.
    pub len: usize,
}

/// What lies at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole batch.
    Batch(Header),
    /// A header whose batch has this many bytes, more than were given.
    Longer(usize),
    /// No batch.
    Nothing,
}

/// Length on disk of a batch with `len` bytes of records.
pub fn padded_len(len: usize) -> usize {
    (HEADER_LEN + len).next_multiple_of(BLOCK_LEN)
}

/// Fills `buffer` with a batch; its length is the padded length. The records come in pieces, which
/// are copied one after the other.
pub fn encode<'a>(
    secret: u64,
    header: Header,
    records: impl IntoIterator<Item = &'a [u8]>,
    buffer: &mut [u8],
) {
    assert_eq!(buffer.len(), padded_len(header.len), "it is the batch's");
    let mut head = [0; HEADER_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(location) = head.get_mut(at..at + bytes.len()) {
            location.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC);
    put(4, &FORMAT.to_le_bytes());
    put(16, &header.generation.to_le_bytes());
    put(24, &header.number.to_le_bytes());
    put(32, &(header.len as u32).to_le_bytes());
    let (location, mut rest) = buffer.split_at_mut(HEADER_LEN);
    location.copy_from_slice(&head);
    for piece in records {
        let (location, after) = rest.split_at_mut(piece.len());
        location.copy_from_slice(piece);
        rest = after;
    }
    rest.fill(0);
    let padding = rest.len();
    let end = HEADER_LEN + header.len;
    assert_eq!(buffer.len() - padding, end, "these are its records");
    let checksum = checksum(secret, buffer.get(..end).unwrap_or_default());
    if let Some(location) = buffer.get_mut(CHECKSUM_AT..COVERED_FROM) {
        location.copy_from_slice(&checksum.to_le_bytes());
    }
}

fn checksum(secret: u64, batch: &[u8]) -> u64 {
    let covered = batch.get(COVERED_FROM..).unwrap_or_default();
    xxh3_64_with_seed(covered, secret)
}

/// Reads what lies where a batch of a segment may begin.
pub fn decode(key: Key, bytes: &[u8]) -> Found {
    match key {
        Key::Secret(secret, format) => decode_keyed(secret, format, bytes),
        Key::None => match sealed::open(bytes) {
            Opened::Whole(sealed) if sealed.format == FORMAT_WITHOUT_KEY => Found::Batch(Header {
                generation: sealed.generation,
                number: sealed.number,
                len: sealed.body.len(),
            }),
            Opened::Whole(_) | Opened::Nothing => Found::Nothing,
            Opened::Longer(len) => Found::Longer(len),
        },
    }
}

fn decode_keyed(secret: u64, format: u16, bytes: &[u8]) -> Found {
    let Some(head) = bytes.get(..HEADER_LEN) else {
        return Found::Nothing;
    };
    if !head.starts_with(&MAGIC)
        || field(head, 4) != format.to_le_bytes()
        || field(head, 6) != [0; 2]
    {
        return Found::Nothing;
    }
    let len = u32::from_le_bytes(field(head, 32)) as usize;
    if len > RECORDS_LEN_MAX {
        return Found::Nothing;
    }
    let Some(batch) = bytes.get(..HEADER_LEN + len) else {
        return Found::Longer(padded_len(len));
    };
    if checksum(secret, batch) != u64::from_le_bytes(field(head, CHECKSUM_AT)) {
        return Found::Nothing;
    }
    Found::Batch(Header {
        generation: u64::from_le_bytes(field(head, 16)),
        number: u64::from_le_bytes(field(head, 24)),
        len,
    })
}

/// Whether bytes begin like a batch of this format. Not a proof: the checksum is not compared.
pub fn seems_keyed(bytes: &[u8]) -> bool {
    let format = u16::from_le_bytes(field(bytes, 4));
    bytes.starts_with(&MAGIC) && (FORMAT_WITH_OLDER_ENTRIES..=FORMAT).contains(&format)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: u64 = 0x0123_4567_89ab_cdef;
    const HEADER: Header = Header {
        generation: 3,
        number: 17,
        len: 12,
    };

    fn sample() -> Vec<u8> {
        let records = b"some records";
        let mut buffer = vec![0xaa; padded_len(records.len())];
        encode(SECRET, HEADER, [&records[..]], &mut buffer);
        buffer
    }

    #[test]
    fn round_trips_and_any_flipped_bit_is_seen() {
        let good = sample();
        let key = Key::Secret(SECRET, FORMAT);
        assert_eq!(decode(key, &good), Found::Batch(HEADER));
        for bit in 0..(HEADER_LEN + 12) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode(key, &bad), Found::Batch(_)), "bit {bit}");
        }
    }

    #[test]
    fn no_other_key_opens_a_batch() {
        let good = sample();
        for bit in 0..64 {
            let other = Key::Secret(SECRET ^ 1 << bit, FORMAT);
            assert_eq!(decode(other, &good), Found::Nothing);
        }
        assert_eq!(decode(Key::None, &good), Found::Nothing);
        let mut old = vec![0; sealed::padded_len(12)];
        let sealed = sealed::Sealed {
            format: FORMAT_WITHOUT_KEY,
            generation: 3,
            number: 17,
            body: b"some records",
        };
        sealed::seal(sealed, &mut old);
        assert_eq!(decode(Key::None, &old), Found::Batch(HEADER));
        assert_eq!(decode(Key::Secret(SECRET, FORMAT), &old), Found::Nothing);
    }

    #[test]
    fn the_format_is_fixed() {
        let head: Vec<u8> = sample().into_iter().take(52).collect();
        assert_eq!(head.get(..8), Some(&b"RDBW\x03\0\0\0"[..]));
        let covered: &[u8] = b"\x03\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0some records";
        assert_eq!(head.get(16..), Some(covered));
        let checksum = xxh3_64_with_seed(covered, SECRET);
        assert_eq!(head.get(8..16), Some(&checksum.to_le_bytes()[..]));
    }

    #[test]
    fn cut_batches_are_nothing_or_longer() {
        let good = sample();
        let key = Key::Secret(SECRET, FORMAT);
        assert_eq!(decode(key, &good[..10]), Found::Nothing);
        assert_eq!(decode(key, &good[..48]), Found::Longer(4096));
    }

    #[test]
    fn texts_that_a_checksum_without_a_key_confuses_are_told_apart() {
        // The CRC's polynomial, added anywhere, leaves a CRC as it is, whatever its seed.
        let polynomial = 0x1_05ec_76f1_u64.to_le_bytes();
        let (one, mut other) = (vec![7_u8; 600], vec![7_u8; 600]);
        let location = other.iter_mut().skip(200);
        location
            .zip(polynomial)
            .for_each(|(byte, with)| *byte ^= with);
        for seed in [0, 1, 0xdead_beef] {
            let crc = |text| crc32c::crc32c_append(seed, text);
            assert_eq!(crc(&one), crc(&other));
        }
        assert_ne!(checksum(SECRET, &one), checksum(SECRET, &other));
    }
}
