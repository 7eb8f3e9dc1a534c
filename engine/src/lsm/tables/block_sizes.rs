//! How many bytes of rows a table has before a key, from its index and two numbers that `lsm-tree` keeps
//! in every table: no sample of keys need be kept beside it.
//!
//! The index says where each block lies in the file, and the table's metadata how long all blocks are
//! together before compression, and how many rows and keys they hold. Less what the encoding adds to each
//! row, that is how many bytes of rows the table has. They are shared out among the blocks by their
//! length in the file; but `lsm-tree` cuts a block only when its rows have reached [`BLOCK_BYTES`],
//! so each gets at least that. This is right for rows that are small, however well each compresses, and
//! for large rows that compress equally well. Where large rows of a table compress differently, it is
//! right for the whole table and wrong within it. Pure.

use std::fs::File;

use super::table::block::BlockType;
use super::table::{Block, DataBlock};
use super::{CompressionType, Size, Table, TreeError, of_type};

/// The bytes of rows with which a block is full, unless an older form says otherwise.
const BLOCK_BYTES: u64 = 4096;
/// What the encoding adds to each row besides its version: the kind of entry (1), the length of the key (1)
/// and of the value (2), and its places in the block's two indexes (3).
const ROW_OVERHEAD: u64 = 7;
/// What the encoding adds to each block: its trailer.
const BLOCK_OVERHEAD: u64 = 32;
/// Blocks in a group. Of a group the size is known, of its blocks it is shared out by their length.
const GROUP: usize = 16;

/// The rows of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableRows {
    /// Bytes of their keys, headers and values.
    bytes: u64,
    /// How many rows there are, one for each version of each key.
    rows: u64,
    /// How many keys there are.
    keys: u64,
}

impl TableRows {
    /// Reads what the table's metadata says.
    ///
    /// # Errors
    /// The metadata cannot be read or is damaged.
    pub(super) fn read(table: &Table, file: &File) -> Result<TableRows, TreeError> {
        let block = Block::from_file(file, table.regions.metadata, CompressionType::None)?;
        let block = DataBlock::new(of_type(BlockType::Meta, block)?);
        let number = |name: &str| {
            let found = block.point_read(name.as_bytes(), u64::MAX);
            let bytes = found.and_then(|found| found.value.as_ref().try_into().ok());
            bytes.map(u64::from_le_bytes)
        };
        let (rows, blocks) = (table.metadata.item_count, table.metadata.data_block_count);
        let version_len =
            u64::from(64 - (table.get_highest_seqno() | 1).leading_zeros()).div_ceil(7);
        let overhead = rows * (ROW_OVERHEAD + version_len) + blocks * BLOCK_OVERHEAD;
        let encoded = number("user_data_size").unwrap_or(table.metadata.file_size);
        Ok(TableRows {
            bytes: encoded.saturating_sub(overhead).max(rows),
            rows,
            keys: number("key_count").unwrap_or(rows).clamp(1, rows.max(1)),
        })
    }

    /// So many of its bytes.
    fn part(&self, bytes: u64) -> Size {
        let live = u128::from(bytes) * u128::from(self.keys) / u128::from(self.rows.max(1));
        Size {
            bytes,
            live_bytes: live as u64,
        }
    }

    /// All of it.
    pub(super) fn size(&self) -> Size {
        self.part(self.bytes)
    }

    /// Half of it.
    pub(super) fn half(&self) -> Size {
        self.part(self.bytes / 2)
    }
}

/// How the rows of a table are spread over its blocks.
pub(super) struct BlockSizes {
    rows: TableRows,
    /// The bytes of rows before each group, and of all.
    before: Vec<u64>,
}

impl BlockSizes {
    /// Shares out the rows among blocks that lie one behind the other in the file: `offsets` are where
    /// each begins, and where the last one stops.
    pub(super) fn new(rows: TableRows, offsets: &[u32]) -> BlockSizes {
        let ends = offsets.iter().skip(1);
        let lens = || {
            offsets
                .iter()
                .zip(ends.clone())
                .map(|(start, stop)| f64::from(stop - start))
        };
        let total = rows.bytes as f64;
        let least = (BLOCK_BYTES as f64).min(total / lens().count().max(1) as f64);
        let factor = factor(total, least, lens);
        let mut before = vec![0];
        let mut sum = 0.0;
        for (at, len) in lens().enumerate() {
            if at > 0 && at.is_multiple_of(GROUP) {
                before.push(sum as u64);
            }
            sum += least.max(factor * len);
        }
        before.push(rows.bytes);
        BlockSizes { rows, before }
    }

    /// The size of all rows of the table.
    pub(super) fn all(&self) -> Size {
        self.rows.size()
    }

    /// The size of the rows before a block.
    pub(super) fn before(&self, block: usize, offsets: &[u32]) -> Size {
        let offset = |block: usize| {
            let offset = offsets.get(block).or(offsets.last());
            u64::from(offset.copied().unwrap_or_default())
        };
        let group = block / GROUP;
        let first = group * GROUP;
        let (Some(start), Some(stop)) = (self.before.get(group), self.before.get(group + 1)) else {
            return self.all();
        };
        let (from, to) = (offset(first), offset(first + GROUP));
        let part = (offset(block) - from) * (stop.saturating_sub(*start)) / (to - from).max(1);
        self.rows.part(start + part)
    }
}

/// The factor by which blocks of these lengths, each made at least so long, have a total.
fn factor<L: Iterator<Item = f64>>(total: f64, least: f64, lens: impl Fn() -> L) -> f64 {
    let (mut low, mut high) = (0.0, total / lens().sum::<f64>().max(1.0));
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        let sum: f64 = lens().map(|len| least.max(middle * len)).sum();
        match sum < total {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(bytes: u64, lens: &[u32]) -> Vec<u64> {
        let rows = TableRows {
            bytes,
            rows: 100,
            keys: 50,
        };
        let mut offsets = vec![0];
        for len in lens {
            offsets.push(offsets[offsets.len() - 1] + len);
        }
        let sizes = BlockSizes::new(rows, &offsets);
        assert_eq!(sizes.before(0, &offsets), Size::default());
        assert_eq!(sizes.before(lens.len(), &offsets), rows.size());
        assert_eq!(rows.size().live_bytes, bytes / 2);
        let groups = (0..lens.len()).step_by(GROUP);
        let before = |block: usize| sizes.before(block.min(lens.len()), &offsets).bytes;
        groups.map(|at| before(at + GROUP) - before(at)).collect()
    }

    #[test]
    fn small_rows_fill_blocks_however_well_they_compress() {
        let lens = [[1000; 16], [4200; 16]].concat();
        let found = sizes(32 * 4150, &lens);
        assert!(
            found.iter().all(|part| (65_000..68_000).contains(part)),
            "{found:?}"
        );
    }

    #[test]
    fn large_rows_have_the_length_of_their_blocks() {
        let lens = [[1000; 16], [50_000; 16]].concat();
        let found = sizes(16 * 4096 + 16 * 200_000, &lens);
        let parts = [65_000..67_000, 3_199_000..3_201_000];
        assert!(
            found
                .iter()
                .zip(parts)
                .all(|(found, part)| part.contains(found)),
            "{found:?}"
        );
    }
}
