//! Iterates over the blocks of one table, in either direction.
//!
//! The table's [`Index`] names the blocks of the interval. A block comes from the shard's block cache if it
//! is there. The first one that is missing is read alone, and goes into the cache, as for a get: short
//! scans begin where others began. Those behind it are read ahead, more each time up to [`READ_AHEAD_MAX`]
//! bytes at once, and do not go into the cache, so that a long scan does not push out the blocks that gets
//! use. Without the shard's [`Reader`], on another thread, no cache is touched.
//!
//! If it must not wait for the disk, it takes blocks from the page cache and from those that were fetched for
//! the scan. A block that is in neither stops it, and those that come next in the table are named with it.
//!
//! It may be moved to any thread.

use std::ops::Range;
use std::sync::Arc;

use super::block_rows::BlockRows;
use super::index::Index;
use super::interval::Interval;
use super::list::Tables;
use super::reader::{Reader, TablePlace};
use super::table::DataBlock;
use super::table_reader::{TableReader, part_of};
use super::{InternalValue, Slice, Table, TreeError};
use crate::lsm::{BlockReads, HeldBlocks, ScanStop};
use crate::types::ColdBlock;

/// Most bytes that are read ahead at once, unless one block alone has more.
const READ_AHEAD_MAX: u64 = 64 << 10;
/// What is read at once when a second block is missing. Each further read is for twice as much.
const READ_AHEAD_MIN: u64 = 8 << 10;

/// How blocks are read.
pub(super) type Reads<'a> = BlockReads<'a, Reader, DataBlock>;

/// Why there is no next row.
pub(super) enum IterStop {
    /// It needs a block that is not in memory.
    Cold(ScanStop),
    /// A block cannot be read or is damaged.
    Failed(TreeError),
}

impl From<TreeError> for IterStop {
    fn from(error: TreeError) -> IterStop {
        IterStop::Failed(error)
    }
}

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
    /// last ones beyond it. `list` is the list to which the table belongs.
    ///
    /// # Errors
    /// A block cannot be read or is damaged, or is not in memory and `reads` does not wait.
    pub(super) fn next(
        &mut self,
        interval: &Interval,
        reads: Reads<'_>,
        list: &Arc<Tables>,
    ) -> Result<Option<InternalValue>, IterStop> {
        loop {
            if let Some(rows) = &mut self.rows
                && let Some(row) = rows.next()?
            {
                return Ok(Some(row));
            }
            let Some(number) = interval.direction.take(&mut self.left) else {
                return Ok(None);
            };
            // The cache knows blocks by the places of their tables in the newest list.
            let shard = reads.shard();
            let shard = shard.filter(|shard| Arc::ptr_eq(&shard.tables, list));
            let cached = shard.and_then(|shard| shard.cached_block(self.place, number));
            let block = match (cached, reads) {
                (Some(block), _) => block,
                (None, BlockReads::NoWait(_, held)) => {
                    self.block_in_memory(number, interval, shard, held)?
                }
                (None, _) => self.block(number, interval, shard)?,
            };
            let mut rows = BlockRows::new(block, interval.direction)?;
            if self.rows.is_none() {
                rows.seek(|key| interval.is_before(key))?;
            }
            self.rows = Some(rows);
        }
    }

    /// The content of a block that is not in the block cache. May wait for the disk.
    fn block(
        &mut self,
        number: usize,
        interval: &Interval,
        shard: Option<&Reader>,
    ) -> Result<Slice, TreeError> {
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
            let span = self.span_ahead(cold, interval);
            self.reader.read_bytes(span, &mut self.ahead.bytes)?;
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

    /// The content of a block that is not in the block cache, if the scan holds it or the page cache has it.
    fn block_in_memory(
        &mut self,
        number: usize,
        interval: &Interval,
        shard: Option<&Reader>,
        held: &HeldBlocks<DataBlock>,
    ) -> Result<Slice, IterStop> {
        let cold = self.cold_block(number);
        if let Some(block) = held.get(cold) {
            return Ok(block.as_slice().clone());
        }
        let is_first = self.ahead.next_len == 0;
        if !is_first && self.ahead.get(cold).is_none() {
            let span = self.span_ahead(cold, interval);
            if !self.reader.read_cached_bytes(&span, &mut self.ahead.bytes) {
                self.ahead.bytes.clear();
            }
        }
        if let Some(bytes) = self.ahead.get(cold) {
            return Ok(self.reader.decode_block(bytes)?.as_slice().clone());
        }
        let Some(block) = self.reader.read_page_cache(cold)? else {
            return Err(IterStop::Cold(self.stop(cold, interval, shard, held)));
        };
        let content = block.as_slice().clone();
        if is_first {
            self.ahead.next_len = READ_AHEAD_MIN;
            if let Some(shard) = shard {
                shard.cache_block(self.place, number, block);
            }
        }
        Ok(content)
    }

    /// The stop at a block that is not in memory, with those that come next as far as they are wanted.
    fn stop(
        &self,
        cold: ColdBlock,
        interval: &Interval,
        shard: Option<&Reader>,
        held: &HeldBlocks<DataBlock>,
    ) -> ScanStop {
        let (mut left, mut len) = (self.left.clone(), u64::from(cold.len));
        let next = std::iter::from_fn(|| {
            let number = interval.direction.take(&mut left)?;
            let next = self.cold_block(number);
            len += u64::from(next.len);
            (len <= READ_AHEAD_MAX).then_some((number, next))
        });
        let is_there =
            |number| shard.is_some_and(|shard: &Reader| shard.has_block(self.place, number));
        held.stop(cold, next, is_there)
    }

    /// The part of the file that has a block, and those that come next as far as they are wanted. The read
    /// ahead begins there.
    fn span_ahead(&mut self, block: ColdBlock, interval: &Interval) -> Range<u64> {
        let mut span = part_of(block);
        let mut left = self.left.clone();
        while let Some(number) = interval.direction.take(&mut left) {
            let next = part_of(self.cold_block(number));
            let longer = span.start.min(next.start)..span.end.max(next.end);
            if longer.end - longer.start > self.ahead.next_len {
                break;
            }
            span = longer;
        }
        self.ahead.next_len = (self.ahead.next_len * 2).min(READ_AHEAD_MAX);
        self.ahead.offset = span.start;
        span
    }
}
