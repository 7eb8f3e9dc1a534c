//! An open table: its file, its index, and how a block of it is read.
//!
//! It is made by the background threads when they publish a list of tables. It never changes, and any
//! thread may read blocks with it. It caches nothing; see [`super::reader`].

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::ReadWriteFlags;

use super::index::{Index, of_type};
use super::table::block::BlockType;
use super::table::{Block, BlockHandle, BlockOffset, DataBlock};
use super::{AbstractTree, AnyTree, GlobalTableId, Table, TreeError};
use crate::types::ColdBlock;

/// An open table.
pub(super) struct TableReader {
    pub(super) table: Table,
    file: Arc<File>,
    /// Which block holds a key; `None` if the table is read through `lsm-tree`.
    pub(super) index: Option<Index>,
}

impl TableReader {
    /// Opens a table of the tree. `lsm-tree` gets the same descriptor for its own reads, so a table
    /// needs one.
    ///
    /// # Errors
    /// The file cannot be opened, or its index is damaged.
    pub(super) fn open(tree: &AnyTree, table: &Table) -> Result<TableReader, TreeError> {
        let file = Arc::new(File::open(&**table.path)?);
        if let Some(descriptors) = &tree.tree_config().descriptor_table {
            let id = GlobalTableId::from((tree.id(), table.id()));
            descriptors.insert_for_table(id, file.clone());
        }
        Ok(TableReader {
            index: Index::read(table, &file)?,
            file,
            table: table.clone(),
        })
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
        let mut bytes = vec![0; block.len as usize];
        let to = &mut [IoSliceMut::new(&mut bytes)];
        let read = rustix::io::preadv2(&self.file, to, block.offset, ReadWriteFlags::NOWAIT);
        if read != Ok(bytes.len()) {
            return Ok(None);
        }
        self.decode_block(&bytes).map(Some)
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
