//! The block cache of a shard.
//!
//! Every table in the list has an array with an entry for each of its blocks, so a block is found by
//! its number, without a hash table. Only the shard's thread touches the cache: there are no locks
//! and no atomics. The blocks themselves lie in frames. When the budget is used up, a clock hand goes
//! over the frames and evicts the first block that was not read since the hand came by last. The
//! blocks of tables that have left the list go before all others; each block that comes in drives
//! out some of them, so that the shard's thread never frees a whole table's blocks at once.
//!
//! A frame and its allocations count towards the budget. The arrays do not: they take four bytes for
//! each block of a table, whether it is cached or not.

use std::num::NonZeroU32;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::lsm::tables::table::DataBlock;
use crate::lsm::tables::table::block::Header;

/// Bytes of a block for which a frame is expected.
const BLOCK_LEN: u64 = 4 << 10;
/// Bytes that a cached block takes besides its content: the frame, the header in front of the
/// content, and what the allocator keeps.
const OVERHEAD: u64 = (size_of::<Frame>() + Header::serialized_len() + 16) as u64;

/// For each block of a table, the number of its frame plus one.
type Slots = Vec<Option<NonZeroU32>>;

#[derive(Default)]
struct Frame {
    block: Option<DataBlock>,
    /// The array of its table, and the number of the block.
    slots: u32,
    number: u32,
    /// Whether it was read since the hand came by.
    visited: bool,
}

/// The cached blocks of a shard's tables.
pub(super) struct BlockCache {
    budget: u64,
    used: u64,
    frames: Vec<Frame>,
    free: Vec<NonZeroU32>,
    hand: usize,
    tables: Slab<Slots>,
    /// The arrays by the ids of their tables.
    by_table: FxHashMap<u64, u32>,
    /// The arrays of tables that have left the list. Their last entries are dropped first.
    leaving: Vec<Slots>,
    pub(super) hits: u64,
    pub(super) misses: u64,
}

fn weight(block: &DataBlock) -> u64 {
    block.inner.size() as u64 + OVERHEAD
}

impl BlockCache {
    pub(super) fn new(budget: u64) -> BlockCache {
        // If they grew, the shard would have to wait until they are copied.
        let frames = budget / (BLOCK_LEN + OVERHEAD) + 1;
        BlockCache {
            budget,
            used: 0,
            frames: Vec::with_capacity(frames as usize),
            free: Vec::new(),
            hand: 0,
            tables: Slab::new(),
            by_table: FxHashMap::default(),
            leaving: Vec::new(),
            hits: 0,
            misses: 0,
        }
    }

    /// The bytes that it may take.
    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// The bytes that it takes.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Takes over a new list of tables, each by its id and its number of blocks. Returns the numbers
    /// of their arrays.
    pub(super) fn set_tables(&mut self, list: impl Iterator<Item = (u64, usize)>) -> Vec<u32> {
        let mut before = std::mem::take(&mut self.by_table);
        let mut arrays = Vec::new();
        for (table, blocks) in list {
            let known = before.remove(&table);
            let slots = known.unwrap_or_else(|| self.tables.insert(vec![None; blocks]) as u32);
            self.by_table.insert(table, slots);
            arrays.push(slots);
        }
        for slots in before.into_values() {
            self.leaving.push(self.tables.remove(slots as usize));
        }
        arrays
    }

    fn slot(&mut self, slots: u32, number: usize) -> Option<&mut Option<NonZeroU32>> {
        self.tables.get_mut(slots as usize)?.get_mut(number)
    }

    /// A block of the table with this array.
    #[inline]
    pub(super) fn get(&mut self, slots: u32, number: usize) -> Option<&DataBlock> {
        let frame = self.tables.get(slots as usize)?.get(number)?;
        let frame = frame.and_then(|frame| self.frames.get_mut(frame.get() as usize - 1));
        match frame {
            Some(frame) => {
                self.hits += 1;
                frame.visited = true;
                frame.block.as_ref()
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// Whether it has a block of the table with this array.
    pub(super) fn has(&self, slots: u32, number: usize) -> bool {
        let slots = self.tables.get(slots as usize);
        slots.is_some_and(|slots| matches!(slots.get(number), Some(Some(_))))
    }

    /// Adds a block that was read from the file. One that is larger than the budget is cached alone:
    /// otherwise a reader that waits for it would never find it.
    pub(super) fn insert(&mut self, slots: u32, number: usize, block: DataBlock) {
        if self.slot(slots, number).is_none_or(|slot| slot.is_some()) {
            return;
        }
        let weight = weight(&block);
        while self.used > 0 && self.used + weight > self.budget {
            self.evict();
        }
        let frame = self.free.pop().unwrap_or_else(|| {
            self.frames.push(Frame::default());
            let count = self.frames.len() as u32;
            NonZeroU32::new(count).unwrap_or(NonZeroU32::MAX)
        });
        if let Some(to) = self.frames.get_mut(frame.get() as usize - 1) {
            *to = Frame {
                block: Some(block),
                slots,
                number: number as u32,
                visited: false,
            };
            self.used += weight;
        }
        if let Some(slot) = self.slot(slots, number) {
            *slot = Some(frame);
        }
    }

    /// Empties a frame. Returns the array and the number of its block.
    fn clear(&mut self, frame: NonZeroU32) -> Option<(u32, usize)> {
        let from = self.frames.get_mut(frame.get() as usize - 1)?;
        let block = from.block.take()?;
        self.used -= weight(&block);
        self.free.push(frame);
        Some((from.slots, from.number as usize))
    }

    /// Removes one block. There must be one.
    fn evict(&mut self) {
        while let Some(slots) = self.leaving.last_mut() {
            match slots.pop() {
                Some(Some(frame)) => {
                    // The array is not in the slab any more, so no entry of it is to be cleared.
                    self.clear(frame);
                    return;
                }
                Some(None) => (),
                None => drop(self.leaving.pop()),
            }
        }
        loop {
            self.hand = (self.hand + 1) % self.frames.len();
            let Some(frame) = self.frames.get_mut(self.hand) else {
                unreachable!("the hand stays within the frames");
            };
            if frame.block.is_some() && !std::mem::take(&mut frame.visited) {
                break;
            }
        }
        let frame = NonZeroU32::new(self.hand as u32 + 1);
        if let Some((slots, number)) = frame.and_then(|frame| self.clear(frame))
            && let Some(slot) = self.slot(slots, number)
        {
            *slot = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsm::tables::CompressionType;
    use crate::lsm::tables::table::Block;
    use crate::lsm::tables::table::block::BlockType;
    use crate::lsm::tests::Random;

    const BLOCKS: usize = 20;

    /// A block that says which one it is.
    fn block(table: u64, number: usize) -> DataBlock {
        let mut data = vec![0; 1000];
        data.splice(..16, [table, number as u64].map(u64::to_le_bytes).concat());
        let (mut file, none) = (Vec::new(), CompressionType::None);
        Block::write_into(&mut &mut file, &data, BlockType::Data, none).expect("written");
        DataBlock::new(Block::from_reader(&mut &file[..], none).expect("readable"))
    }

    fn room_for(blocks: u64) -> BlockCache {
        BlockCache::new(blocks * weight(&block(0, 0)))
    }

    #[test]
    fn the_hand_spares_what_was_read_since_it_came_by() {
        let mut cache = room_for(10);
        let [slots] = cache.set_tables([(7, BLOCKS)].into_iter())[..] else {
            panic!("one table")
        };
        (0..10).for_each(|number| cache.insert(slots, number, block(7, number)));
        for number in (0..10).step_by(2) {
            assert!(cache.get(slots, number).is_some());
        }
        (10..15).for_each(|number| cache.insert(slots, number, block(7, number)));
        let kept: Vec<_> = (0..BLOCKS)
            .filter(|n| cache.get(slots, *n).is_some())
            .collect();
        assert_eq!(kept, [0, 2, 4, 6, 8, 10, 11, 12, 13, 14]);
        assert_eq!((cache.hits, cache.misses), (15, 10));
    }

    #[test]
    fn blocks_of_tables_that_have_left_go_first() {
        let mut cache = room_for(10);
        let slots = cache.set_tables([(1, BLOCKS), (2, BLOCKS)].into_iter());
        for number in 0..5 {
            cache.insert(slots[0], number, block(1, number));
            cache.insert(slots[1], number, block(2, number));
            assert!(cache.get(slots[0], number).is_some());
        }
        let slots = cache.set_tables([(3, BLOCKS), (2, BLOCKS)].into_iter());
        (0..5).for_each(|number| cache.insert(slots[0], number, block(3, number)));
        for number in 0..5 {
            assert!(cache.get(slots[0], number).is_some() && cache.get(slots[1], number).is_some());
        }
        assert_eq!(cache.used(), cache.budget());
    }

    #[test]
    fn every_block_is_the_one_that_was_inserted() {
        for seed in 1..=20 {
            let mut random = Random::new(seed);
            let room = 1 + random.below(60);
            let mut cache = room_for(room);
            let mut list: Vec<u64> = vec![0];
            let mut slots = cache.set_tables([(0, BLOCKS)].into_iter());
            for step in 1..5_000 {
                if random.below(100) == 0 {
                    list.retain(|_| random.below(3) > 0);
                    list.push(step);
                    slots = cache.set_tables(list.iter().map(|table| (*table, BLOCKS)));
                }
                let at = random.below(list.len() as u64) as usize;
                let number = random.below(BLOCKS as u64) as usize;
                let expected = block(list[at], number);
                match cache.get(slots[at], number) {
                    Some(found) => assert_eq!(found.as_slice(), expected.as_slice()),
                    None => cache.insert(slots[at], number, expected),
                }
                let full = cache.frames.iter().filter(|frame| frame.block.is_some());
                assert_eq!(full.count() as u64 * weight(&block(0, 0)), cache.used());
                assert!(cache.used() <= cache.budget());
            }
            assert!(cache.hits > 500 && cache.misses > 500);
        }
    }
}
