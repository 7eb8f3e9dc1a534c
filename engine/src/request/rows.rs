//! The rows of a page of a scan. Their keys and values stand in one buffer, one right behind the other,
//! so that nothing is allocated for each row: a row is copied into it from where it lies, and from it
//! into the reply. On its way to another shard the buffer is part of the message. Pure.

use bytes::Bytes;

use crate::codec::Shared;
use crate::types::Timestamp;

/// Bytes of a row's key and value for which there is room at once.
const ROW_LEN_EXPECTED: usize = 128;

/// What there is of a row apart from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Head {
    version: Timestamp,
    key_len: u32,
    value_len: u32,
}

impl Head {
    fn len(&self) -> usize {
        self.key_len as usize + self.value_len as usize
    }
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The user's key.
    pub key: &'a [u8],
    /// The value; empty if only keys were asked for.
    pub value: &'a [u8],
    /// The value's version.
    pub version: Timestamp,
}

/// The rows of a page.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct Rows {
    heads: Vec<Head>,
    #[rkyv(with = Shared)]
    bytes: Bytes,
}

impl Rows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The rows in their order.
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let mut bytes = &*self.bytes;
        self.heads.iter().map_while(move |head| {
            let (key, rest) = bytes.split_at_checked(head.key_len as usize)?;
            let (value, rest) = rest.split_at_checked(head.value_len as usize)?;
            bytes = rest;
            let version = head.version;
            Some(Row {
                key,
                value,
                version,
            })
        })
    }

    /// Bytes that they take in memory and in a message, about.
    pub fn len_in_bytes(&self) -> usize {
        self.heads.len() * size_of::<Head>() + self.bytes.len()
    }

    /// Whether the bytes are those of all rows. They may have come from another node.
    pub fn is_whole(&self) -> bool {
        self.heads.iter().map(Head::len).sum::<usize>() == self.bytes.len()
    }
}

/// Rows in the making.
#[derive(Default)]
pub struct RowsBuilder {
    heads: Vec<Head>,
    bytes: Vec<u8>,
}

impl RowsBuilder {
    /// Room for so many rows.
    pub fn with_capacity(rows: usize) -> RowsBuilder {
        RowsBuilder {
            heads: Vec::with_capacity(rows),
            bytes: Vec::with_capacity(rows * ROW_LEN_EXPECTED),
        }
    }

    /// Adds a row behind those that are there.
    pub fn push(&mut self, row: Row<'_>) {
        self.bytes.extend_from_slice(row.key);
        self.bytes.extend_from_slice(row.value);
        self.heads.push(Head {
            version: row.version,
            // The limits of keys and values are far below.
            key_len: row.key.len() as u32,
            value_len: row.value.len() as u32,
        });
    }

    /// How many rows were added.
    pub fn count(&self) -> usize {
        self.heads.len()
    }

    /// Bytes of the keys and values that were added.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// The rows.
    pub fn build(self) -> Rows {
        Rows {
            heads: self.heads,
            bytes: self.bytes.into(),
        }
    }
}

impl<'a> FromIterator<Row<'a>> for Rows {
    fn from_iter<I: IntoIterator<Item = Row<'a>>>(rows: I) -> Rows {
        let mut builder = RowsBuilder::default();
        rows.into_iter().for_each(|row| builder.push(row));
        builder.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    const VERSION: u8 = 1;

    fn row<'a>(key: &'a [u8], value: &'a [u8], version: u64) -> Row<'a> {
        Row {
            key,
            value,
            version: Timestamp(version),
        }
    }

    #[test]
    fn rows_are_read_as_they_were_added_also_from_a_message() {
        let long = vec![7; 70_000];
        let added = [
            row(b"a", b"value", 3),
            row(b"b", b"", 9),
            row(b"", b"v", 1),
            row(b"c", &long, 4),
        ];
        for count in 0..=added.len() {
            let added = added.get(..count).unwrap_or_default();
            let rows: Rows = added.iter().copied().collect();
            assert_eq!(rows.iter().collect::<Vec<_>>(), added);
            assert_eq!((rows.len(), rows.is_empty()), (count, count == 0));
            assert!(rows.is_whole());

            let message = Bytes::from(codec::encode(VERSION, &rows, rows.len_in_bytes()));
            let read: Rows = codec::decode_shared(VERSION, &message).expect("of this version");
            assert_eq!(read, rows);
            // The bytes were not copied out of the message.
            let within = message.as_ptr_range();
            assert!(read.is_empty() || within.contains(&read.bytes.as_ptr()));
        }
    }

    #[test]
    fn rows_that_name_other_bytes_than_are_there_are_not_whole() {
        let rows: Rows = [row(b"key", b"value", 3), row(b"k", b"v", 4)]
            .into_iter()
            .collect();
        for len in 0..rows.bytes.len() {
            let cut = Rows {
                bytes: rows.bytes.slice(..len),
                ..rows.clone()
            };
            assert!(!cut.is_whole(), "{len}");
            assert!(cut.iter().count() < rows.len(), "{len}");
        }
        let more = Rows {
            heads: rows.heads.iter().take(1).copied().collect(),
            ..rows
        };
        assert!(!more.is_whole());
    }
}
