//! How a scan handles blocks of tables that are not in memory.
//!
//! A scan of a client, or for a snapshot, never waits for the disk on the shard's thread. Where it needs a
//! block that is in no cache it stops with a [`ColdStop`]: the block, a few more that come next in its
//! direction, and the key at which to go on. Its caller has the blocks fetched beside the thread, lets
//! others run, and opens a new scan at that key. The [`HeldBlocks`] go from one of these scans to the next.
//! The block cache may drop what was fetched before it is used, and a scan of several runs needs a block of
//! each at the same time: held blocks stay until the scan has passed them, so it always advances.
//!
//! What is read ahead is held alone and does not go into the block cache, so that a long scan does not push
//! out the blocks that gets use. Pure; lives on the shard's thread.

use std::cell::Cell;

use rustc_hash::FxHashMap;

use crate::lsm::LsmError;
use crate::types::ColdBlock;

/// Most blocks of a table that are fetched ahead at once.
const AHEAD_MAX: usize = 8;
/// How many further turns a block is held that was fetched and not used: a run of few rows has the next one used
/// when the scan has passed many blocks of the others.
const TURNS_UNUSED: u8 = 64;
/// How many further turns a block is held that was used: the next turn begins where this one has stopped.
const TURNS_USED: u8 = 1;

/// How a scan reads the blocks that it needs. `S` is the shard's part of the tables, whose block cache only
/// the shard's thread may touch; `B` is a block's content.
pub enum BlockReads<'a, S, B> {
    /// On another thread: from the files. May wait for the disk.
    Beside,
    /// On the shard's thread. May wait for the disk.
    Wait(&'a S),
    /// On the shard's thread. Never waits: what is in no cache must be among the held blocks.
    NoWait(&'a S, &'a HeldBlocks<B>),
}

impl<S, B> Clone for BlockReads<'_, S, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, B> Copy for BlockReads<'_, S, B> {}

impl<'a, S, B> BlockReads<'a, S, B> {
    /// The shard's part, if this is its thread.
    #[inline]
    pub(in crate::lsm) fn shard(self) -> Option<&'a S> {
        match self {
            BlockReads::Beside => None,
            BlockReads::Wait(shard) | BlockReads::NoWait(shard, _) => Some(shard),
        }
    }

    /// The same for a part of the shard's part.
    #[inline]
    pub(in crate::lsm) fn of<P>(self, part: impl FnOnce(&'a S) -> &'a P) -> BlockReads<'a, P, B> {
        match self {
            BlockReads::Beside => BlockReads::Beside,
            BlockReads::Wait(shard) => BlockReads::Wait(part(shard)),
            BlockReads::NoWait(shard, held) => BlockReads::NoWait(part(shard), held),
        }
    }
}

/// A block that a scan needs before it can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdStop {
    /// The block to fetch first.
    pub block: ColdBlock,
    /// Whether the block cache takes it in, as for a get: short scans begin where others began.
    pub is_cached: bool,
    /// Blocks of the same table that come next.
    pub ahead: Vec<ColdBlock>,
    /// The row key at which to go on; `None`: the scan has read nothing, and goes on where it began.
    pub next: Option<Vec<u8>>,
}

/// Why a scan gives no next row yet, or never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// It needs a block that is not in memory.
    Cold(Box<ColdStop>),
    /// A table cannot be read.
    Failed(LsmError),
}

impl ScanStop {
    /// The stop of a scan that goes on at this row key.
    pub(super) fn at(mut self, key: &[u8]) -> ScanStop {
        if let ScanStop::Cold(stop) = &mut self {
            stop.next = Some(key.to_vec());
        }
        self
    }

    /// The error of a scan that waits for its blocks.
    pub(crate) fn of_waiting(self) -> LsmError {
        match self {
            ScanStop::Failed(error) => error,
            ScanStop::Cold(_) => unreachable!("this scan waits"),
        }
    }
}

impl From<LsmError> for ScanStop {
    fn from(error: LsmError) -> ScanStop {
        ScanStop::Failed(error)
    }
}

struct Held<B> {
    content: B,
    /// How many further turns it is held without being used.
    turns_left: Cell<u8>,
}

/// Blocks that were fetched for one scan, and that it has not passed yet.
pub struct HeldBlocks<B>(FxHashMap<ColdBlock, Held<B>>);

impl<B> Default for HeldBlocks<B> {
    fn default() -> HeldBlocks<B> {
        HeldBlocks(FxHashMap::default())
    }
}

impl<B> HeldBlocks<B> {
    /// A block that the scan uses now.
    pub(in crate::lsm) fn get(&self, block: ColdBlock) -> Option<&B> {
        let held = self.0.get(&block)?;
        held.turns_left.set(TURNS_USED);
        Some(&held.content)
    }

    /// The stop of a scan that needs a block: `next` gives the blocks that come after it in its table, with
    /// their numbers, and `is_cached` says which of them are in the block cache.
    pub(in crate::lsm) fn stop<N>(
        &self,
        block: ColdBlock,
        next: impl Iterator<Item = (N, ColdBlock)>,
        is_cached: impl Fn(N) -> bool,
    ) -> ScanStop {
        let of_table = self.0.keys().filter(|held| held.table == block.table);
        let held = of_table.count();
        // As many as were needed of this table lately, so that a short scan reads little ahead.
        let ahead = next.take(held.clamp(1, AHEAD_MAX));
        let ahead = ahead.filter_map(|(number, next)| {
            let is_lacking = !self.0.contains_key(&next) && !is_cached(number);
            is_lacking.then_some(next)
        });
        ScanStop::Cold(Box::new(ColdStop {
            block,
            is_cached: held == 0,
            ahead: ahead.collect(),
            next: None,
        }))
    }

    /// Takes in a block that was fetched.
    pub(crate) fn insert(&mut self, block: ColdBlock, content: B) {
        let turns_left = Cell::new(TURNS_UNUSED);
        self.0.insert(
            block,
            Held {
                content,
                turns_left,
            },
        );
    }

    /// Ends a turn in which the scan has come further. Where it has not, all blocks are needed again.
    pub(crate) fn end_turn(&mut self) {
        self.0.retain(|_, held| {
            let left = held.turns_left.get().checked_sub(1);
            held.turns_left.set(left.unwrap_or_default());
            left.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64) -> ColdBlock {
        ColdBlock {
            table: 1,
            offset: number * 4096,
            len: 4096,
        }
    }

    fn stop(held: &HeldBlocks<u64>, number: u64) -> ColdStop {
        let next = (number + 1..40).map(|next| (next, block(next)));
        match held.stop(block(number), next, |_| false) {
            ScanStop::Cold(stop) => *stop,
            ScanStop::Failed(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_a_scan_has_passed_is_dropped_and_what_it_may_need_again_is_kept() {
        let mut held = HeldBlocks::default();
        (0..4).for_each(|number| held.insert(block(number), number));
        assert_eq!(held.get(block(0)), Some(&0));
        held.end_turn();
        // The next turn begins in the last block that was used.
        assert_eq!(held.get(block(0)), Some(&0));
        assert_eq!(held.get(block(1)), Some(&1));
        held.end_turn();
        assert_eq!(held.get(block(1)), Some(&1));
        held.end_turn();
        assert_eq!(held.get(block(0)), None);
        assert_eq!(held.get(block(1)), Some(&1));
        (0..4).for_each(|_| held.end_turn());
        assert_eq!(held.get(block(1)), None);
        assert_eq!(held.get(block(2)), Some(&2), "not used yet");
        (0..TURNS_UNUSED).for_each(|_| held.end_turn());
        assert_eq!(held.get(block(3)), None);
    }

    #[test]
    fn a_scan_reads_ahead_more_and_more_of_a_table_and_caches_its_first_block_alone() {
        let mut held = HeldBlocks::default();
        let first = stop(&held, 0);
        assert!(first.is_cached);
        assert_eq!(first.ahead, [block(1)]);
        (0..2).for_each(|number| held.insert(block(number), number));
        let second = stop(&held, 2);
        assert!(!second.is_cached);
        assert_eq!(second.ahead, [block(3), block(4)]);
        (2..30).for_each(|number| held.insert(block(number), number));
        assert_eq!(stop(&held, 30).ahead.len(), AHEAD_MAX);
        assert!(stop(&held, 10).ahead.is_empty(), "they are held");
        assert!(stop(&held, 39).ahead.is_empty(), "there are no more");
    }
}
