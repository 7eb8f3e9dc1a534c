//! The value of a row in tables: a header and the bytes.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | flags: bit 0 set for a value, clear for a delete mark; bit 1 is kept for an expiry |
//! | 8 | timestamp, big endian: a compaction filter sees values, not sequence numbers |
//! | n | the value |

use crate::types::Timestamp;

const LIVE: u8 = 1;
const HEADER_LEN: usize = 9;

/// A row's version and its value, unless it is a delete mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Commit timestamp.
    pub version: Timestamp,
    /// The value, or `None` for a delete mark.
    pub value: Option<&'a [u8]>,
}

/// The bytes of a row in tables.
pub fn encode(version: Timestamp, value: Option<&[u8]>) -> Vec<u8> {
    let bytes = value.unwrap_or(&[]);
    let mut row = Vec::with_capacity(HEADER_LEN + bytes.len());
    row.push(if value.is_some() { LIVE } else { 0 });
    row.extend_from_slice(&version.0.to_be_bytes());
    row.extend_from_slice(bytes);
    row
}

/// Reads a row of the tables; `None` if this version of rangedb did not write it.
pub fn decode(bytes: &[u8]) -> Option<Row<'_>> {
    let (flags, rest) = bytes.split_first()?;
    let (version, value) = rest.split_first_chunk::<8>()?;
    let version = Timestamp(u64::from_be_bytes(*version));
    match *flags {
        LIVE => Some(Row {
            version,
            value: Some(value),
        }),
        0 => Some(Row {
            version,
            value: None,
        }),
        _ => None,
    }
}
