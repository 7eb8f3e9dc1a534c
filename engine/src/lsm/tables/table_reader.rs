//! An open table: its file, its index, and how a block of it is read.
//!
//! It is made by the background threads when they publish a list of tables. It never changes, and any
//! thread may read blocks with it. It caches nothing; see [`super::reader`].

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::ReadWriteFlags;

use super::block_sizes::TableRows;
use super::index::Index;
use super::table::block::BlockType;
use super::table::{Block, BlockHandle, BlockOffset, DataBlock};
use super::{AbstractTree, AnyTree, GlobalTableId, Samples, Size, Table, TreeError, of_type};
use crate::types::ColdBlock;

/// What tests do to a read of blocks: it gets the table's file, where the read begins in it, and whether the
/// read may wait. Its error is that of the read; instead of a delay a read that may not wait gets an error.
pub type ReadFault = fn(&Path, u64, bool) -> io::Result<()>;

/// Reads are left as they are.
///
/// # Errors
/// None.
pub fn no_read_fault(_: &Path, _: u64, _: bool) -> io::Result<()> {
    Ok(())
}

/// The part of the file where a block lies.
pub(super) fn part_of(block: ColdBlock) -> Range<u64> {
    block.offset..block.offset + u64::from(block.len)
}

/// An open table.
pub(super) struct TableReader {
    pub(super) table: Table,
    file: Arc<File>,
    read_fault: ReadFault,
    /// Which block holds a key; `None` if the table is read through `lsm-tree`.
    pub(super) index: Option<Index>,
    rows: TableRows,
}

impl TableReader {
    /// Opens a table of the tree. `lsm-tree` gets the same descriptor for its own reads, so a table
    /// needs one.
    ///
    /// # Errors
    /// The file cannot be opened, or its index is damaged.
    pub(super) fn open(
        tree: &AnyTree,
        table: &Table,
        read_fault: ReadFault,
    ) -> Result<TableReader, TreeError> {
        let file = Arc::new(File::open(&**table.path)?);
        if let Some(descriptors) = &tree.tree_config().descriptor_table {
            let id = GlobalTableId::from((tree.id(), table.id()));
            descriptors.insert_for_table(id, file.clone());
        }
        let rows = TableRows::read(table, &file)?;
        Ok(TableReader {
            index: Index::read(table, &file, rows)?,
            rows,
            file,
            read_fault,
            table: table.clone(),
        })
    }

    /// The size of all its rows.
    pub(super) fn size(&self) -> Size {
        self.rows.size()
    }

    /// The size of its rows before a key: to a block, or of a table that is read through `lsm-tree`, to
    /// half the table.
    pub(super) fn size_before(&self, key: &[u8]) -> Size {
        let range = &self.table.metadata.key_range;
        match &self.index {
            _ if key <= range.min().as_ref() => Size::default(),
            _ if key > range.max().as_ref() => self.size(),
            Some(index) => index.size_before(key),
            None => self.rows.half(),
        }
    }

    /// Passes on keys of its rows in the interval of `samples`.
    pub(super) fn sample(&self, samples: &mut Samples<'_>) {
        let range = &self.table.metadata.key_range;
        let (low, high) = samples.interval();
        let end = self.index.as_ref().and_then(|index| index.end_from(low));
        match end {
            _ if range.min().as_ref() >= low => samples.begin(range.min()),
            Some(end) if end.as_slice() < high => samples.begin(&end),
            _ => {}
        }
        match &self.index {
            Some(index) => index.sample(samples),
            None if range.max().as_ref() < high => {
                let before = self.size_before(low);
                let bytes = self.size().minus(before).bytes;
                samples.take(range.max().to_vec(), bytes);
            }
            None => {}
        }
    }

    /// Whether the filter lets a key with this hash pass.
    ///
    /// # Errors
    /// The filter is damaged.
    pub(super) fn may_contain(&self, hash: u64) -> Result<bool, TreeError> {
        match &self.table.pinned_filter_block {
            Some(filter) => filter.maybe_contains_hash(hash),
            None => Ok(true),
        }
    }

    /// Reads a block of this table from its file, and checks it. Any thread may call it; it may wait
    /// for the disk.
    ///
    /// # Errors
    /// The block cannot be read or is damaged.
    pub(super) fn read_block(&self, block: ColdBlock) -> Result<DataBlock, TreeError> {
        (self.read_fault)(&self.table.path, block.offset, true)?;
        let handle = BlockHandle::new(BlockOffset(block.offset), block.len);
        let compression = self.table.metadata.data_block_compression;
        let block = Block::from_file(&self.file, handle, compression)?;
        of_type(BlockType::Data, block).map(DataBlock::new)
    }

    /// Like [`TableReader::read_block`], but `None` if the page cache does not hold the block. A
    /// system call that fails counts as that, too: the read that waits will meet the same error.
    ///
    /// # Errors
    /// The block is damaged.
    pub(super) fn read_page_cache(&self, block: ColdBlock) -> Result<Option<DataBlock>, TreeError> {
        let mut bytes = Vec::new();
        match self.read_cached_bytes(&part_of(block), &mut bytes) {
            true => self.decode_block(&bytes).map(Some),
            false => Ok(None),
        }
    }

    /// Reads blocks that lie close together at once, and checks them. Any thread may call it; it may wait for
    /// the disk. Where one cannot be read, the others are.
    pub(super) fn read_blocks(&self, blocks: &[ColdBlock]) -> Vec<Result<DataBlock, TreeError>> {
        let parts = || blocks.iter().map(|block| part_of(*block));
        let start = parts().map(|part| part.start).min().unwrap_or_default();
        let end = parts().map(|part| part.end).max().unwrap_or_default();
        let mut bytes = Vec::new();
        if blocks.len() == 1 || self.read_bytes(start..end, &mut bytes).is_err() {
            return blocks.iter().map(|block| self.read_block(*block)).collect();
        }
        let contents = parts().map(|part| {
            let within = (part.start - start) as usize..(part.end - start) as usize;
            self.decode_block(bytes.get(within).unwrap_or_default())
        });
        contents.collect()
    }

    /// Reads a part of the file in place of what `bytes` holds, if the page cache has all of it.
    pub(super) fn read_cached_bytes(&self, part: &Range<u64>, bytes: &mut Vec<u8>) -> bool {
        if (self.read_fault)(&self.table.path, part.start, false).is_err() {
            return false;
        }
        bytes.resize((part.end - part.start) as usize, 0);
        let to = &mut [IoSliceMut::new(bytes)];
        let read = rustix::io::preadv2(&self.file, to, part.start, ReadWriteFlags::NOWAIT);
        read == Ok(bytes.len())
    }

    /// Reads a part of the file in place of what `bytes` holds. It may wait for the disk.
    ///
    /// # Errors
    /// The file cannot be read or is too short.
    pub(super) fn read_bytes(
        &self,
        part: Range<u64>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), TreeError> {
        (self.read_fault)(&self.table.path, part.start, true)?;
        bytes.resize((part.end - part.start) as usize, 0);
        Ok(self.file.read_exact_at(bytes, part.start)?)
    }

    /// A block of this table from its bytes in the file.
    ///
    /// # Errors
    /// The block is damaged.
    pub(super) fn decode_block(&self, mut bytes: &[u8]) -> Result<DataBlock, TreeError> {
        let compression = self.table.metadata.data_block_compression;
        let block = Block::from_reader(&mut bytes, compression)?;
        of_type(BlockType::Data, block).map(DataBlock::new)
    }
}
