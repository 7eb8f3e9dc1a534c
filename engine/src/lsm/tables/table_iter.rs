//! Iterates over the blocks of one table, in either direction.
//!
//! The table's [`Index`] names the blocks of the interval. A block comes from the shard's block cache
//! if it is there. The first one that is missing is read alone, and goes into the cache, as for a get:
//! short scans begin where others began. Those behind it are read ahead, more each time up to
//! [`READ_AHEAD_MAX`] bytes at once, and do not go into the cache, so that a long scan does not push
//! out what gets use. Without the shard's [`Reader`], on another thread, no cache is touched.
//!
//! It may be moved to any thread.

use std::ops::Range;
use std::sync::Arc;

use super::block_rows::BlockRows;
use super::index::Index;
use super::interval::Interval;
use super::reader::{Reader, TablePlace};
use super::table_reader::TableReader;
use super::{InternalValue, Slice, Table, TreeError};
use crate::types::ColdBlock;

/// Most bytes that are read ahead at once, unless one block alone has more.
const READ_AHEAD_MAX: u64 = 64 << 10;
/// What is read at once when a second block is missing. Each further read is for twice as much.
const READ_AHEAD_MIN: u64 = 8 << 10;

/// A part of the file that was read at once.
#[derive(Default)]
struct ReadAhead {
    offset: u64,
    bytes: Vec<u8>,
    /// How much to read next. It is 0 until a block was missing.
    next_len: u64,
}

impl ReadAhead {
    /// The bytes of a block, if they are there.
    fn get(&self, block: ColdBlock) -> Option<&[u8]> {
        let start = usize::try_from(block.offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(start..start + block.len as usize)
    }
}

/// Iterates over the rows of a table that may lie in an interval.
pub(super) struct TableIter {
    reader: Arc<TableReader>,
    place: TablePlace,
    /// The blocks that were not opened yet.
    left: Range<usize>,
    rows: Option<BlockRows>,
    ahead: ReadAhead,
}

impl TableIter {
    /// The rows of a table of a known form.
    pub(super) fn new(
        reader: &Arc<TableReader>,
        index: &Index,
        place: TablePlace,
        interval: &Interval,
    ) -> TableIter {
        TableIter {
            reader: reader.clone(),
            place,
            left: index.blocks_in(interval.bounds()),
            rows: None,
            ahead: ReadAhead::default(),
        }
    }

    /// The table.
    pub(super) fn table(&self) -> &Table {
        &self.reader.table
    }

    /// Whether rows beyond the interval may come.
    pub(super) fn is_in_last_block(&self) -> bool {
        self.left.is_empty()
    }

    /// The next row in the interval's direction. The first rows may lie before the interval, and the
    /// last ones beyond it.
    ///
    /// # Errors
    /// A block cannot be read or is damaged.
    pub(super) fn next(
        &mut self,
        interval: &Interval,
        shard: Option<&Reader>,
    ) -> Result<Option<InternalValue>, TreeError> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(row) = rows.next()?
            {
                return Ok(Some(row));
            }
            let Some(number) = interval.direction.take(&mut self.left) else {
                return Ok(None);
            };
            let block = self.block(number, interval, shard)?;
            let mut rows = BlockRows::new(block, interval.direction)?;
            if self.rows.is_none() {
                rows.seek(|key| interval.is_before(key))?;
            }
            self.rows = Some(rows);
        }
    }

    /// The content of a block.
    fn block(
        &mut self,
        number: usize,
        interval: &Interval,
        shard: Option<&Reader>,
    ) -> Result<Slice, TreeError> {
        let cached = shard.and_then(|shard| shard.cached_block(self.place, number));
        if let Some(block) = cached {
            return Ok(block);
        }
        let cold = self.cold_block(number);
        if self.ahead.next_len == 0 {
            self.ahead.next_len = READ_AHEAD_MIN;
            let block = self.reader.read_block(cold)?;
            let content = block.as_slice().clone();
            if let Some(shard) = shard {
                shard.cache_block(self.place, number, block);
            }
            return Ok(content);
        }
        if self.ahead.get(cold).is_none() {
            self.read_ahead(cold, interval)?;
        }
        let bytes = self.ahead.get(cold).unwrap_or_default();
        Ok(self.reader.decode_block(bytes)?.as_slice().clone())
    }

    fn cold_block(&self, number: usize) -> ColdBlock {
        let index = self.reader.index.as_ref();
        let place = index.and_then(|index| index.place(self.reader.table.id(), number));
        let Some(place) = place else {
            unreachable!("the index named the block");
        };
        place
    }

    /// Reads a block, and those that come next as far as they are wanted.
    fn read_ahead(&mut self, block: ColdBlock, interval: &Interval) -> Result<(), TreeError> {
        let end = |block: ColdBlock| block.offset + u64::from(block.len);
        let mut span = block.offset..end(block);
        let mut left = self.left.clone();
        while let Some(number) = interval.direction.take(&mut left) {
            let next = self.cold_block(number);
            let longer = span.start.min(next.offset)..span.end.max(end(next));
            if longer.end - longer.start > self.ahead.next_len {
                break;
            }
            span = longer;
        }
        self.ahead.next_len = (self.ahead.next_len * 2).min(READ_AHEAD_MAX);
        self.ahead.offset = span.start;
        self.reader.read_bytes(span, &mut self.ahead.bytes)
    }
}
