//! A ring of rows, oldest first: one of the two in which the row cache keeps its rows.
//!
//! | bytes | field of an entry |
//! |---|---|
//! | 8 | version, little endian |
//! | 4 | hash of the key |
//! | 4 | length of the value (13 bits), of the key (13 bits), flags |
//! | n | key, value, zero to seven bytes of padding |
//!
//! Entries begin at multiples of eight bytes and do not wrap: before the end of the ring's bytes, a
//! dead entry fills what is too short for the next entry. Where not even a header fits, reading goes
//! on at the start.

use crate::lsm::prefetch;
use crate::lsm::row::Row;
use crate::types::Timestamp;

const HEADER_LEN: usize = 16;
/// Entries begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;
const LEN_BITS: u32 = 13;
const LEN_MASK: u32 = (1 << LEN_BITS) - 1;
/// The row was read since it was put here.
const VISITED: u32 = 1 << 31;
/// The entry is no row any more, or never was one.
const DEAD: u32 = 1 << 30;
/// The row is a tombstone.
const MARK: u32 = 1 << 29;

/// The header of an entry.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) version: Timestamp,
    pub(super) hash: u32,
    lengths: u32,
}

impl Header {
    /// The header of a row that was not read yet. Key and value are far shorter than 2^13 bytes.
    pub(super) fn of(hash: u32, key: &[u8], row: Row<'_>) -> Header {
        let value_len = row.value.map_or(0, <[u8]>::len);
        let mark = if row.value.is_none() { MARK } else { 0 };
        Header {
            version: row.version,
            hash,
            lengths: value_len as u32 | ((key.len() as u32) << LEN_BITS) | mark,
        }
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Header {
        let all = u128::from_le_bytes(*bytes);
        Header {
            version: Timestamp(all as u64),
            hash: (all >> 64) as u32,
            lengths: (all >> 96) as u32,
        }
    }

    fn encode(self) -> [u8; HEADER_LEN] {
        let high = (u128::from(self.lengths) << 96) | (u128::from(self.hash) << 64);
        (high | u128::from(self.version.0)).to_le_bytes()
    }

    fn key_len(self) -> usize {
        ((self.lengths >> LEN_BITS) & LEN_MASK) as usize
    }

    fn value_len(self) -> usize {
        (self.lengths & LEN_MASK) as usize
    }

    /// Bytes of the whole entry.
    pub(super) fn len(self) -> usize {
        entry_len(self.key_len() + self.value_len())
    }

    /// Whether the row was read since it was put into its ring.
    pub(super) fn is_visited(self) -> bool {
        self.lengths & VISITED != 0
    }

    /// Whether the entry is to be skipped.
    pub(super) fn is_dead(self) -> bool {
        self.lengths & DEAD != 0
    }

    /// The same row, read or not since.
    pub(super) fn visited(self, visited: bool) -> Header {
        let others = self.lengths & !VISITED;
        Header {
            lengths: others | if visited { VISITED } else { 0 },
            ..self
        }
    }
}

/// Bytes of an entry with so many bytes of key and value.
pub(super) fn entry_len(key_and_value: usize) -> usize {
    (HEADER_LEN + key_and_value).next_multiple_of(ALIGNMENT)
}

/// A ring of rows.
pub(super) struct Ring {
    bytes: Vec<u8>,
    /// Where the next entry goes.
    head: usize,
    /// The oldest entry.
    tail: usize,
    /// Bytes from tail to head.
    used: usize,
}

impl Ring {
    /// A ring of so many bytes. The kernel provides their pages as they are filled.
    pub(super) fn new(bytes: usize) -> Ring {
        Ring {
            bytes: vec![0; bytes - bytes % ALIGNMENT],
            head: 0,
            tail: 0,
            used: 0,
        }
    }

    /// Bytes that it has.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that are in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    #[inline]
    fn part(&self, at: usize, len: usize) -> &[u8] {
        let Some(part) = self.bytes.get(at..at + len) else {
            unreachable!("an entry lies within its ring");
        };
        part
    }

    fn part_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        let Some(part) = self.bytes.get_mut(at..at + len) else {
            unreachable!("an entry lies within its ring");
        };
        part
    }

    /// The header of the entry at a place.
    #[inline]
    pub(super) fn header(&self, at: usize) -> Header {
        let header = self.part(at, HEADER_LEN).first_chunk();
        Header::decode(header.unwrap_or(&[0; HEADER_LEN]))
    }

    /// A byte in each of the first lines of the entry at a place.
    #[inline]
    pub(super) fn first_lines(&self, at: usize) -> impl Iterator<Item = &u8> {
        prefetch::first_lines(&self.bytes, at)
    }

    /// Replaces the header of the entry at a place by one of the same length.
    pub(super) fn set_header(&mut self, at: usize, header: Header) {
        self.part_mut(at, HEADER_LEN)
            .copy_from_slice(&header.encode());
    }

    /// The key of the row at a place.
    #[inline]
    pub(super) fn key(&self, at: usize) -> &[u8] {
        self.part(at + HEADER_LEN, self.header(at).key_len())
    }

    /// The row at a place.
    #[inline]
    pub(super) fn row(&self, at: usize) -> Row<'_> {
        let header = self.header(at);
        let value = self.part(at + HEADER_LEN + header.key_len(), header.value_len());
        Row {
            version: header.version,
            value: (header.lengths & MARK == 0).then_some(value),
        }
    }

    /// Marks the entry at a place as dead.
    pub(super) fn kill(&mut self, at: usize) {
        let header = self.header(at);
        let lengths = header.lengths | DEAD;
        self.set_header(at, Header { lengths, ..header });
    }

    /// Takes `len` bytes for a new entry at the head; `None` if so many are not free.
    pub(super) fn reserve(&mut self, len: usize) -> Option<usize> {
        let rest = self.bytes.len() - self.head;
        let (at, skipped) = match rest < len {
            true => (0, rest),
            false => (self.head, 0),
        };
        if self.used + skipped + len > self.bytes.len() {
            return None;
        }
        if skipped >= HEADER_LEN {
            let filler = Header {
                version: Timestamp::ZERO,
                hash: 0,
                lengths: (skipped - HEADER_LEN) as u32 | DEAD,
            };
            self.set_header(self.head, filler);
        }
        self.head = at + len;
        self.used += skipped + len;
        Some(at)
    }

    /// Writes a row at a place that was taken for it, or over one whose entry has the same length.
    pub(super) fn write(&mut self, at: usize, header: Header, key: &[u8], value: Option<&[u8]>) {
        self.set_header(at, header);
        let value = value.unwrap_or(&[]);
        let entry = self.part_mut(at + HEADER_LEN, key.len() + value.len());
        let (to_key, to_value) = entry.split_at_mut(key.len());
        to_key.copy_from_slice(key);
        to_value.copy_from_slice(value);
    }

    /// The place and the header of the oldest entry.
    pub(super) fn oldest(&mut self) -> Option<(usize, Header)> {
        if self.used == 0 {
            return None;
        }
        let rest = self.bytes.len() - self.tail;
        if rest < HEADER_LEN {
            self.tail = 0;
            self.used -= rest;
        }
        Some((self.tail, self.header(self.tail)))
    }

    /// Gives back the oldest entry, of this length. Its bytes stay until others are written.
    pub(super) fn pop(&mut self, len: usize) {
        self.tail += len;
        self.used -= len;
        if self.used == 0 {
            (self.head, self.tail) = (0, 0);
        }
    }

    /// Copies an entry within the ring. The two places may overlap.
    pub(super) fn copy_within(&mut self, from: usize, to: usize, len: usize) {
        self.bytes.copy_within(from..from + len, to);
    }

    /// Copies an entry of another ring.
    pub(super) fn copy_from(&mut self, other: &Ring, from: usize, to: usize, len: usize) {
        self.part_mut(to, len)
            .copy_from_slice(other.part(from, len));
    }

    /// The headers of all entries, oldest first.
    #[cfg(test)]
    pub(super) fn headers(&self) -> impl Iterator<Item = Header> {
        let (mut at, mut left) = (self.tail, self.used);
        std::iter::from_fn(move || {
            let rest = self.bytes.len() - at;
            if left > 0 && rest < HEADER_LEN {
                (at, left) = (0, left - rest);
            }
            let header = (left > 0).then(|| self.header(at))?;
            at += header.len();
            left -= header.len();
            Some(header)
        })
    }
}
