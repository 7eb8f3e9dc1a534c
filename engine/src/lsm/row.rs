//! How a version of a row is stored as a value in a table: a header, and the row's value.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | flags: bit 0 is set for a value, clear for a tombstone; bit 1 is reserved for an expiry |
//! | 8 | commit timestamp, big endian: a compaction filter sees values, not sequence numbers |
//! | n | the value |

use crate::types::Timestamp;

const LIVE: u8 = 1;
const HEADER_LEN: usize = 9;

/// A version of a row, as a table holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The commit timestamp.
    pub version: Timestamp,
    /// The value, or `None` for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// The bytes of a row: of its row key, its header and its value.
pub fn len(key: &[u8], value: &[u8]) -> u32 {
    u32::try_from(key.len() + HEADER_LEN + value.len()).unwrap_or(u32::MAX)
}

/// Encodes a version of a row for a table.
pub fn encode(version: Timestamp, value: Option<&[u8]>) -> Vec<u8> {
    let bytes = value.unwrap_or(&[]);
    let mut row = Vec::with_capacity(HEADER_LEN + bytes.len());
    row.push(if value.is_some() { LIVE } else { 0 });
    row.extend_from_slice(&version.0.to_be_bytes());
    row.extend_from_slice(bytes);
    row
}

/// Decodes a row of a table. `None` means that its header is unknown to this version of RangeDB.
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
