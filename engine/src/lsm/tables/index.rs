//! Which block of a table holds a key, and which table of a run: a search in an array of numbers.
//!
//! `lsm-tree` searches the index block of a table itself, by a binary search each of whose steps
//! follows an offset and decodes five varints. Here the first eight bytes of each block's last key,
//! after the bytes that all keys of the table share, are numbers in one array. The rest of a last
//! key is looked at only where these eight bytes are equal to those of the wanted key. An index
//! takes 16 bytes for each block, and its last key less the shared bytes.

use std::fs::File;
use std::ops::{Bound, Range};

use super::block_sizes::{BlockSizes, TableRows};
use super::table::block::BlockType;
use super::table::block::decoder::ParsedItem;
use super::table::{Block, IndexBlock};
use super::{Samples, Size, Table, TreeError, of_type};
use crate::lsm::Bounds;
use crate::types::ColdBlock;

/// The first eight bytes as a number. Where two numbers differ, the keys are in the same order.
fn prefix(rest: &[u8]) -> u64 {
    if let Some(bytes) = rest.first_chunk() {
        return u64::from_be_bytes(*bytes);
    }
    let bytes = rest.iter().chain(std::iter::repeat(&0)).take(8);
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The first index in `range` for which `is_before` is false. It must be true for all those before.
fn partition_point(range: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start + (end - start) / 2;
        match is_before(middle) {
            true => start = middle + 1,
            false => end = middle,
        }
    }
    start
}

/// The last keys of intervals of keys, in ascending order.
pub(super) struct Ends {
    /// The bytes that all keys of all intervals begin with.
    shared: Box<[u8]>,
    prefixes: Vec<u64>,
    /// The last keys without the shared bytes, one behind the other.
    rests: Vec<u8>,
    /// Where each of them stops in `rests`.
    stops: Vec<u32>,
}

impl Ends {
    /// No intervals yet. All keys of all intervals lie between `lowest` and `highest`.
    pub(super) fn new(lowest: &[u8], highest: &[u8]) -> Ends {
        let same = lowest.iter().zip(highest).take_while(|(a, b)| a == b);
        Ends {
            shared: same.map(|(byte, _)| *byte).collect(),
            prefixes: Vec::new(),
            rests: Vec::new(),
            stops: Vec::new(),
        }
    }

    /// Adds the last key of the next interval. Returns false, and adds nothing, if the key does not
    /// lie between the lowest and the highest.
    pub(super) fn push(&mut self, end: &[u8]) -> bool {
        let Some(rest) = end.strip_prefix(&*self.shared) else {
            return false;
        };
        let Ok(stop) = u32::try_from(self.rests.len() + rest.len()) else {
            return false;
        };
        self.prefixes.push(prefix(rest));
        self.rests.extend_from_slice(rest);
        self.stops.push(stop);
        true
    }

    fn shrink_to_fit(&mut self) {
        self.prefixes.shrink_to_fit();
        self.rests.shrink_to_fit();
        self.stops.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// A key without the shared bytes, or `None` if it lies in no interval.
    pub(super) fn rest<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        key.strip_prefix(&*self.shared)
    }

    /// The last key of an interval, without the shared bytes.
    fn end(&self, at: usize) -> &[u8] {
        let stop = |at: usize| self.stops.get(at).map_or(0, |stop| *stop as usize);
        let start = at.checked_sub(1).map_or(0, stop);
        self.rests.get(start..stop(at)).unwrap_or_default()
    }

    /// The intervals whose last keys are equal to the key in the first eight bytes. Those before end
    /// below the key, those behind end above it.
    fn ties(&self, rest: &[u8]) -> Range<usize> {
        let wanted = prefix(rest);
        let start = self.prefixes.partition_point(|prefix| *prefix < wanted);
        if self.prefixes.get(start) != Some(&wanted) {
            return start..start;
        }
        let behind = |at: usize| self.prefixes.get(at) == Some(&wanted);
        start..partition_point(start + 1..self.len(), behind)
    }

    /// The last key of an interval.
    fn whole_end(&self, at: usize) -> Vec<u8> {
        [&*self.shared, self.end(at)].concat()
    }

    /// The first interval that ends at or after a key without the shared bytes.
    pub(super) fn first_at_or_after(&self, rest: &[u8]) -> usize {
        partition_point(self.ties(rest), |at| self.end(at) < rest)
    }
}

/// The index of a table.
pub(super) struct Index {
    ends: Ends,
    /// Where each block begins in the file, and where the last one stops.
    offsets: Vec<u32>,
    /// The version of each block's last row; empty if no two blocks end with the same key.
    versions: Vec<u64>,
    sizes: BlockSizes,
}

impl Index {
    /// Reads the index of a table with these rows. `None` means that the table has a form that this reader does not
    /// know: an index or a filter in parts, a filter that is not in memory, versions that are
    /// counted from another number than 0, or blocks that are not one behind the other.
    ///
    /// # Errors
    /// The index cannot be read or is damaged.
    pub(super) fn read(
        table: &Table,
        file: &File,
        rows: TableRows,
    ) -> Result<Option<Index>, TreeError> {
        let regions = &table.regions;
        let in_parts = regions.index.is_some() || regions.filter_tli.is_some();
        let has_filter = regions.filter.is_some();
        let unpinned = has_filter && table.pinned_filter_block.is_none();
        if in_parts || unpinned || table.global_seqno() != 0 {
            return Ok(None);
        }
        let block = Block::from_file(file, regions.tli, table.metadata.index_block_compression)?;
        let block = IndexBlock::new(of_type(BlockType::Index, block)?);
        let range = &table.metadata.key_range;
        let mut index = Index {
            ends: Ends::new(range.min(), range.max()),
            offsets: Vec::with_capacity(block.len() + 1),
            versions: Vec::with_capacity(block.len()),
            sizes: BlockSizes::new(rows, &[]),
        };
        for item in block.iter() {
            let handle = item.materialize(block.as_slice());
            let Ok(start) = u32::try_from(*handle.offset()) else {
                return Ok(None);
            };
            let Some(stop) = start.checked_add(handle.size()) else {
                return Ok(None);
            };
            if index.offsets.is_empty() {
                index.offsets.push(start);
            }
            if index.offsets.last() != Some(&start) || !index.ends.push(handle.end_key()) {
                return Ok(None);
            }
            index.offsets.push(stop);
            index.versions.push(handle.seqno());
        }
        let same_end = |at: usize| index.ends.end(at - 1) == index.ends.end(at);
        if !(1..index.len()).any(same_end) {
            index.versions = Vec::new();
        }
        index.ends.shrink_to_fit();
        index.sizes = BlockSizes::new(rows, &index.offsets);
        Ok(Some(index))
    }

    /// The number of blocks.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The blocks that may hold a version of the key below `bound`, newest versions first. More than
    /// one comes only if a block ends with the key, so that its versions may go on in the next.
    pub(super) fn blocks_of(&self, key: &[u8], bound: u64) -> Range<usize> {
        let Some(rest) = self.ends.rest(key) else {
            return 0..0;
        };
        let ties = self.ends.ties(rest);
        let too_new = |at: usize| self.versions.get(at).is_some_and(|last| *last >= bound);
        let first = partition_point(ties.clone(), |at| {
            let end = self.ends.end(at);
            end < rest || (end == rest && too_new(at))
        });
        let last = partition_point(first..ties.end, |at| self.ends.end(at) <= rest);
        first..(last + 1).min(self.len())
    }

    /// The first block that ends at or after a key, or only after it.
    fn first_from(&self, key: &[u8], at_or_after: bool) -> usize {
        let ends = &self.ends;
        let Some(rest) = ends.rest(key) else {
            // All keys of the table lie on the same side of a key without their shared bytes.
            return if key < &*ends.shared { 0 } else { self.len() };
        };
        partition_point(ends.ties(rest), |at| match at_or_after {
            true => ends.end(at) < rest,
            false => ends.end(at) <= rest,
        })
    }

    /// The blocks that may hold rows of an interval. Those between the first and the last one hold
    /// nothing else.
    pub(super) fn blocks_in(&self, (low, high): Bounds<'_>) -> Range<usize> {
        let first = match low {
            Bound::Unbounded => 0,
            Bound::Included(low) => self.first_from(low, true),
            Bound::Excluded(low) => self.first_from(low, false),
        };
        // A block that ends beyond the interval may begin within it.
        let last = match high {
            Bound::Unbounded => self.len(),
            Bound::Included(high) => self.first_from(high, false),
            Bound::Excluded(high) => self.first_from(high, true),
        };
        first..(last + 1).min(self.len())
    }

    /// The size of the rows before a block; see [`super::block_sizes`].
    fn size_before_block(&self, block: usize) -> Size {
        self.sizes.before(block, &self.offsets)
    }

    /// The size of the rows before a key, to a block.
    pub(super) fn size_before(&self, key: &[u8]) -> Size {
        self.size_before_block(self.first_from(key, true))
    }

    /// Passes on last keys of blocks that lie in the interval of `samples`.
    pub(super) fn sample(&self, samples: &mut Samples<'_>) {
        let (low, high) = samples.interval();
        let blocks = self.first_from(low, true)..self.first_from(high, true);
        let bytes = |block: usize| self.size_before_block(block).bytes;
        let mut before = bytes(blocks.start);
        let steps = (bytes(blocks.end) - before) / samples.step;
        let stride = blocks.len() / usize::try_from(steps).unwrap_or(usize::MAX).max(1);
        for block in blocks.step_by(stride.max(1)) {
            let now = bytes(block + 1);
            samples.take(self.ends.whole_end(block), now - before);
            before = now;
        }
    }

    /// The last key of the block that holds or follows a key.
    pub(super) fn end_from(&self, key: &[u8]) -> Option<Vec<u8>> {
        let block = self.first_from(key, true);
        (block < self.len()).then(|| self.ends.whole_end(block))
    }

    /// Where a block lies in the file of the table with this id.
    pub(super) fn place(&self, table: u64, block: usize) -> Option<ColdBlock> {
        let (start, stop) = (self.offsets.get(block)?, self.offsets.get(block + 1)?);
        Some(ColdBlock {
            table,
            offset: u64::from(*start),
            len: stop - start,
        })
    }

    /// The number of the block that begins at this place in the file.
    pub(super) fn block_at(&self, offset: u64) -> Option<usize> {
        let offset = u32::try_from(offset).ok()?;
        let block = self.offsets.binary_search(&offset).ok()?;
        (block < self.len()).then_some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsm::tests::Random;

    /// A key of few different bytes, so that many are equal in their first bytes.
    fn key(random: &mut Random) -> Vec<u8> {
        let len = 2 + random.below(12) as usize;
        let bytes = (2..len).map(|_| [0, 0, 1, 255][random.below(4) as usize]);
        b"ab".iter().copied().chain(bytes).collect()
    }

    #[test]
    fn the_search_agrees_with_one_over_whole_keys() {
        for seed in 1..=200 {
            let mut random = Random::new(seed);
            let count = 1 + random.below(60);
            let mut keys: Vec<Vec<u8>> = (0..count).map(|_| key(&mut random)).collect();
            keys.sort();
            let lowest = keys.first().expect("there is a key");
            let mut ends = Ends::new(lowest, keys.last().expect("there is a key"));
            assert!(keys.iter().all(|key| ends.push(key)));
            for (at, key) in keys.iter().enumerate() {
                assert_eq!(ends.end(at), ends.rest(key).expect("it is shared"));
            }
            for _ in 0..200 {
                let wanted = key(&mut random);
                let expected = keys.partition_point(|key| *key < wanted);
                match ends.rest(&wanted) {
                    Some(rest) => assert_eq!(ends.first_at_or_after(rest), expected, "{seed}"),
                    None => assert!([0, keys.len()].contains(&expected), "{seed}"),
                }
            }
        }
    }
}
