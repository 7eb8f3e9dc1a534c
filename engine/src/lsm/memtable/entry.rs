//! Entries of a memtable in its arena: bytes that lie one behind the other in the order in which they came.
//!
//! | bytes | field of an entry, numbers little endian |
//! |---|---|
//! | 4 | length of the key |
//! | 4 | length of the value, and [`LIVE`] |
//! | 8 | version |
//! | n | key, value |

use crate::types::Timestamp;

/// Bytes of an entry before its key.
pub(super) const HEADER_LEN: usize = 16;
/// Set in the length field of a value; clear for a tombstone.
const LIVE: u32 = 1 << 31;

/// A version of a row in a memtable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The row's key.
    pub key: &'a [u8],
    /// The commit timestamp of this version.
    pub version: Timestamp,
    /// The value, or `None` for a tombstone.
    pub value: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// The entry at an offset.
    pub(super) fn at(arena: &'a [u8], at: u32) -> Entry<'a> {
        let entry = arena.get(at as usize..).unwrap_or_default();
        let Some((header, rest)) = entry.split_first_chunk::<HEADER_LEN>() else {
            unreachable!("a slot names an entry");
        };
        let field = |from: usize| -> u32 {
            let bytes = header.get(from..from + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let (key, rest) = rest.split_at(field(0) as usize);
        let len = field(4);
        let version = u64::from(field(8)) | u64::from(field(12)) << 32;
        let value = (len & LIVE != 0).then(|| rest.split_at((len & !LIVE) as usize).0);
        Entry {
            key,
            version: Timestamp(version),
            value,
        }
    }

    /// Appends it to the arena; gives its offset.
    pub(super) fn append_to(&self, arena: &mut Vec<u8>) -> u32 {
        let at = arena.len();
        assert!(
            at + self.key.len() < u32::MAX as usize / 2,
            "an arena is far smaller than 4 GiB"
        );
        let value = self.value.unwrap_or(&[]);
        let live = if self.value.is_some() { LIVE } else { 0 };
        arena.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        arena.extend_from_slice(&(value.len() as u32 | live).to_le_bytes());
        arena.extend_from_slice(&self.version.0.to_le_bytes());
        arena.extend_from_slice(self.key);
        arena.extend_from_slice(value);
        at as u32
    }
}
