//! The rows of one data block, one after the other in either direction.
//!
//! The iterator of `lsm-tree` borrows its block, walks in both directions at once, and panics over a
//! block that is not well formed. This one holds its block, walks in one direction, and gives an error.
//! Rows share the memory of the block where it holds their whole keys.
//!
//! A block begins with its rows, and a byte of 255 behind them. One row in some has its whole key; it
//! is the head of an interval. The others of the interval leave out what their keys share with the
//! head's. Then come the binary index, which is an array of the places of the heads, the hash index,
//! and the trailer. A row is its type, version, key and value; numbers are varints.
//!
//! Pure; a run's iterator holds it, on any thread.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::table::block::decoder::ParsedItem;
use super::table::data_block::DataBlockParsedItem;
use super::table::util::SliceIndexes;
use super::{InternalValue, Slice, TreeError, ValueType};
use crate::lsm::Direction;
use crate::lsm::prefetch::{lines, prefetch};

/// The byte behind the last row.
const END_OF_ROWS: u8 = 255;
/// Bytes of the trailer at the end of a block.
const TRAILER_LEN: usize = 31;

/// How much of a block is brought into the processor's caches when it is opened. Rows are parsed one after the
/// other, and each would wait for its own lines of memory.
const PREFETCHED_LEN_MAX: usize = 8 << 10;

const MALFORMED: TreeError = TreeError::InvalidHeader("row of a data block");

/// Reads the fields of a row.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at)?;
        self.at += 1;
        Some(*byte)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// Where bytes lie whose length stands before them.
    fn sized(&mut self) -> Option<SliceIndexes> {
        let len = usize::try_from(self.varint()?).ok()?;
        let start = self.at;
        self.at = start
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len())?;
        Some(SliceIndexes(start, self.at))
    }

    /// A row. `head` is where the key of the interval's head lies; the head itself has none.
    fn row(&mut self, head: Option<&Range<usize>>) -> Option<DataBlockParsedItem> {
        let value_type = ValueType::try_from(self.byte()?).ok()?;
        let seqno = self.varint()?;
        let prefix = match head {
            Some(head) => {
                let shared = usize::try_from(self.varint()?).ok()?;
                let shared = (shared <= head.len()).then_some(shared)?;
                (shared > 0).then_some(SliceIndexes(head.start, head.start + shared))
            }
            None => None,
        };
        let key = self.sized()?;
        // `lsm-tree` panics over a key that is longer.
        let shared = prefix.as_ref().map_or(0, |shared| shared.1 - shared.0);
        u16::try_from(shared + (key.1 - key.0)).ok()?;
        Some(DataBlockParsedItem {
            value_type,
            seqno,
            prefix,
            key,
            value: match value_type.is_tombstone() {
                true => None,
                false => Some(self.sized()?),
            },
        })
    }
}

/// The places of the heads in a block.
struct Heads {
    /// Where the array begins.
    start: usize,
    /// Bytes of an entry.
    step: usize,
    count: usize,
}

impl Heads {
    /// Reads the trailer of a block.
    fn of(block: &[u8]) -> Option<Heads> {
        let trailer = block.len().checked_sub(TRAILER_LEN)?;
        let number = |at: usize| {
            let bytes = block.get(trailer + at..)?.first_chunk()?;
            usize::try_from(u32::from_le_bytes(*bytes)).ok()
        };
        let heads = Heads {
            step: usize::from(*block.get(trailer + 1)?),
            count: number(2)?,
            start: number(6)?,
        };
        let end = heads.count.checked_mul(heads.step)?;
        let end = end.checked_add(heads.start)?;
        let is_marked = block.get(heads.start.checked_sub(1)?) == Some(&END_OF_ROWS);
        let is_known = matches!(heads.step, 2 | 4) && heads.count > 0;
        (is_marked && is_known && end <= trailer).then_some(heads)
    }

    /// Where the rows end.
    fn end_of_rows(&self) -> usize {
        self.start - 1
    }

    /// Where the head of an interval lies. The interval behind the last one begins where the rows end.
    fn place(&self, block: &[u8], interval: usize) -> Option<usize> {
        if interval == self.count {
            return Some(self.end_of_rows());
        }
        let at = self.start + interval * self.step;
        match *block.get(at..at + self.step)? {
            [a, b] => Some(usize::from(u16::from_le_bytes([a, b]))),
            [a, b, c, d] => usize::try_from(u32::from_le_bytes([a, b, c, d])).ok(),
            _ => None,
        }
    }
}

/// Iterates over the rows of a block.
pub(super) struct BlockRows {
    block: Slice,
    direction: Direction,
    heads: Heads,
    /// The intervals that were not begun yet.
    intervals: Range<usize>,
    /// Where the rows of the current interval lie that were not parsed yet.
    left: Range<usize>,
    /// Where the key of its head lies, once that was parsed.
    head: Option<Range<usize>>,
    /// The rows of the current interval that are to be given yet, in ascending order. Only
    /// [`Direction::Reverse`] uses it.
    parsed: Vec<DataBlockParsedItem>,
}

impl BlockRows {
    /// All rows of a block.
    ///
    /// # Errors
    /// The block is not well formed.
    pub(super) fn new(block: Slice, direction: Direction) -> Result<BlockRows, TreeError> {
        let begin = block.get(..PREFETCHED_LEN_MAX).unwrap_or(&block);
        prefetch(lines(begin));
        let heads = Heads::of(&block).ok_or(TreeError::InvalidTrailer)?;
        Ok(BlockRows {
            block,
            direction,
            intervals: 0..heads.count,
            heads,
            left: 0..0,
            head: None,
            parsed: Vec::new(),
        })
    }

    /// Passes over the intervals that have no row but those for which `is_before` is true. It must be
    /// true for the first rows in the direction, and false for all others. Call it before
    /// [`BlockRows::next`].
    ///
    /// # Errors
    /// The block is not well formed.
    pub(super) fn seek(&mut self, is_before: impl Fn(&[u8]) -> bool) -> Result<(), TreeError> {
        // In ascending order the heads up to `start` lie before, or, in reverse, do not.
        let low_side = self.direction == Direction::Forward;
        let Range { mut start, mut end } = self.intervals.clone();
        while start < end {
            let middle = start + (end - start) / 2;
            let key = self.head_key(middle).ok_or(MALFORMED)?;
            match is_before(key) == low_side {
                true => start = middle + 1,
                false => end = middle,
            }
        }
        match self.direction {
            // The last head that lies before may have rows behind it that do not.
            Direction::Forward => self.intervals.start = start.saturating_sub(1),
            Direction::Reverse => self.intervals.end = start,
        }
        Ok(())
    }

    fn head_key(&self, interval: usize) -> Option<&[u8]> {
        let at = self.heads.place(&self.block, interval)?;
        let bytes = self.block.get(..self.heads.end_of_rows())?;
        let row = Fields { bytes, at }.row(None)?;
        bytes.get(row.key.0..row.key.1)
    }

    /// The next row in the direction.
    ///
    /// # Errors
    /// The block is not well formed.
    pub(super) fn next(&mut self) -> Result<Option<InternalValue>, TreeError> {
        let row = match self.direction {
            Direction::Forward => match self.left.is_empty() && !self.begin_interval()? {
                true => None,
                false => Some(self.parse()?),
            },
            Direction::Reverse => {
                if self.parsed.is_empty() && self.begin_interval()? {
                    while !self.left.is_empty() {
                        let row = self.parse()?;
                        self.parsed.push(row);
                    }
                }
                self.parsed.pop()
            }
        };
        Ok(row.map(|row| row.materialize(&self.block)))
    }

    /// Goes to the next interval in the direction. Returns false if there is none.
    fn begin_interval(&mut self) -> Result<bool, TreeError> {
        let Some(interval) = self.direction.take(&mut self.intervals) else {
            return Ok(false);
        };
        let place = |interval| self.heads.place(&self.block, interval).ok_or(MALFORMED);
        self.left = place(interval)?..place(interval + 1)?;
        self.head = None;
        match self.left.is_empty() {
            true => Err(MALFORMED),
            false => Ok(true),
        }
    }

    /// The next row of the current interval in ascending order. There must be one.
    fn parse(&mut self) -> Result<DataBlockParsedItem, TreeError> {
        let bytes = self.block.get(..self.left.end).ok_or(MALFORMED)?;
        let at = self.left.start;
        let mut fields = Fields { bytes, at };
        let row = fields.row(self.head.as_ref()).ok_or(MALFORMED)?;
        self.left.start = fields.at;
        if self.head.is_none() {
            self.head = Some(row.key.0..row.key.1);
        }
        Ok(row)
    }
}
