//! Point reads in the tables, past `lsm-tree`'s index search, locks and block cache.
//!
//! A get asks each run, newest first. The run's array of last keys names the only table that may hold
//! the key, the table's filter says whether it does, the table's [`Index`] names the block, and the
//! block comes from the shard's own [`BlockCache`] or from the file. Within a block `lsm-tree`
//! searches. Against [`Table::get`](super::Table::get) this halves the time over a million rows.
//!
//! Tables of a form that the reader does not know, which older settings wrote, are read through
//! [`Table::get`](super::Table::get) until a compaction writes them again; see [`Index::read`]. Such a read may wait for
//! the disk in any mode.
//!
//! The [`Reader`] and its cache belong to the shard's thread.
//!
//! Scans find the blocks of gets in the cache, too; see [`super::table_iter`] for what they add. The cache
//! gets all of the shard's budget for blocks but a part in 32. That part is `lsm-tree`'s own cache, which
//! tables of unknown forms use. Compactions use no cache.

mod block_cache;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::Arc;

use super::failure::unreadable;
use super::index::Index;
use super::list::Tables;
use super::table::DataBlock;
use super::table_reader::TableReader;
use super::{Slice, TreeError};
use crate::lsm::{Lookup, LsmError};
use crate::types::{ColdBlock, Timestamp};
use block_cache::BlockCache;

/// What a lookup does about a block that is not in the block cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It reads the block from the file, and may wait for the disk.
    Wait,
    /// It takes the block from the page cache, or answers [`Lookup::Cold`].
    NoWait,
}

/// The budgets of the block cache and of `lsm-tree`'s cache; see the module.
pub(super) fn split_budget(cache_bytes: u64) -> (u64, u64) {
    let foreign = cache_bytes / 32;
    (cache_bytes - foreign, foreign)
}

/// Which table of the list is meant.
#[derive(Clone, Copy)]
pub(super) struct TablePlace {
    pub(super) run: usize,
    pub(super) table: usize,
}

/// Where the block cache keeps the blocks of a table.
struct Place {
    table: u64,
    slots: u32,
}

/// The tables of a shard, and its cached blocks.
pub(super) struct Reader {
    pub(super) tables: Arc<Tables>,
    /// One for each table of each run.
    places: Vec<Vec<Place>>,
    cache: RefCell<BlockCache>,
}

impl Reader {
    pub(super) fn new(tables: Arc<Tables>, cache_bytes: u64) -> Reader {
        let mut reader = Reader {
            tables: Arc::default(),
            places: Vec::new(),
            cache: RefCell::new(BlockCache::new(cache_bytes)),
        };
        reader.set_tables(tables);
        reader
    }

    /// Takes over a new list of tables. Returns the old one, which another thread should drop: the
    /// last holder of a table unlinks its file.
    pub(super) fn set_tables(&mut self, tables: Arc<Tables>) -> Option<Arc<Tables>> {
        if Arc::ptr_eq(&tables, &self.tables) {
            return None;
        }
        let all = tables.runs.iter().flat_map(|run| &run.tables);
        let all = all.map(|reader| {
            let blocks = reader.index.as_ref().map_or(0, Index::len);
            (reader.table.id(), blocks)
        });
        let mut slots = self.cache.get_mut().set_tables(all).into_iter();
        let places = tables.runs.iter().map(|run| {
            let places = run.tables.iter().zip(&mut slots);
            let places = places.map(|(reader, slots)| Place {
                table: reader.table.id(),
                slots,
            });
            places.collect()
        });
        self.places = places.collect();
        Some(std::mem::replace(&mut self.tables, tables))
    }

    /// The newest version of a key at or below `at`, as [`TableStore::get`](super::TableStore::get)
    /// gives it.
    ///
    /// # Errors
    /// A block cannot be read or is damaged.
    pub(super) fn get(
        &self,
        key: &[u8],
        hash: u64,
        at: Timestamp,
        mode: Mode,
    ) -> Result<Lookup<Slice>, LsmError> {
        // `lsm-tree` takes an exclusive upper bound.
        let bound = at.0 + 1;
        for (run, places) in self.tables.runs.iter().zip(&self.places) {
            let Some(table) = run.table_of(key) else {
                continue;
            };
            let (Some(reader), Some(place)) = (run.tables.get(table), places.get(table)) else {
                continue;
            };
            let answer = match &reader.index {
                Some(index) => match reader.may_contain(hash) {
                    Ok(true) => self.search(reader, index, place, key, bound, mode),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                },
                None => {
                    let found = reader.table.get(key, bound, hash);
                    found.map(|found| Lookup::Found(found.map(|row| row.value)))
                }
            };
            let answer = answer.map_err(|error| unreadable(&reader.table, &error))?;
            if !matches!(answer, Lookup::Found(None)) {
                return Ok(answer);
            }
        }
        Ok(Lookup::Found(None))
    }

    /// Searches the blocks of one table for the newest version of a key below a bound.
    fn search(
        &self,
        reader: &TableReader,
        index: &Index,
        place: &Place,
        key: &[u8],
        bound: u64,
        mode: Mode,
    ) -> Result<Lookup<Slice>, TreeError> {
        let mut cache = self.cache.borrow_mut();
        for number in index.blocks_of(key, bound) {
            let found = match cache.get(place.slots, number) {
                Some(block) => block.point_read(key, bound),
                None => {
                    let Some(cold) = index.place(place.table, number) else {
                        unreachable!("the index named the block");
                    };
                    let block = match mode {
                        Mode::Wait => reader.read_block(cold)?,
                        Mode::NoWait => match reader.read_page_cache(cold)? {
                            Some(block) => block,
                            None => return Ok(Lookup::Cold(cold)),
                        },
                    };
                    let found = block.point_read(key, bound);
                    cache.insert(place.slots, number, block);
                    found
                }
            };
            if let Some(found) = found {
                return Ok(Lookup::Found(Some(found.value)));
            }
        }
        Ok(Lookup::Found(None))
    }

    fn place(&self, at: TablePlace) -> Option<&Place> {
        self.places.get(at.run)?.get(at.table)
    }

    /// The content of a block, if it is in the cache.
    pub(super) fn cached_block(&self, table: TablePlace, number: usize) -> Option<Slice> {
        let slots = self.place(table)?.slots;
        let mut cache = self.cache.borrow_mut();
        Some(cache.get(slots, number)?.as_slice().clone())
    }

    /// Whether a block is in the cache. This counts as no use of it.
    pub(super) fn has_block(&self, table: TablePlace, number: usize) -> bool {
        let cache = self.cache.borrow();
        (self.place(table)).is_some_and(|place| cache.has(place.slots, number))
    }

    /// Puts a block into the cache.
    pub(super) fn cache_block(&self, table: TablePlace, number: usize, block: DataBlock) {
        if let Some(place) = self.place(table) {
            let mut cache = self.cache.borrow_mut();
            cache.insert(place.slots, number, block);
        }
    }

    /// The table with this id, and its place in the block cache; `None` if it is not in the list.
    fn table(&self, id: u64) -> Option<(&Arc<TableReader>, &Place)> {
        let runs = self.tables.runs.iter().zip(&self.places);
        runs.into_iter().find_map(|(run, places)| {
            let at = places.iter().position(|place| place.table == id)?;
            Some((run.tables.get(at)?, places.get(at)?))
        })
    }

    /// The table that [`TableReader::read_block`] reads a block from; `None` if it has left the list.
    pub(super) fn table_of(&self, block: ColdBlock) -> Option<Arc<TableReader>> {
        self.table(block.table).map(|(reader, _)| reader.clone())
    }

    /// Puts a block that another thread has read into the cache, unless its table has left the list.
    pub(super) fn insert(&self, cold: ColdBlock, block: DataBlock) {
        let Some((reader, place)) = self.table(cold.table) else {
            return;
        };
        let index = reader.index.as_ref();
        if let Some(number) = index.and_then(|index| index.block_at(cold.offset)) {
            let mut cache = self.cache.borrow_mut();
            cache.insert(place.slots, number, block);
        }
    }

    /// Bytes in use and the budget of the block cache, its hits and its misses.
    pub(super) fn cache_use(&self) -> [u64; 4] {
        let cache = self.cache.borrow();
        [cache.used(), cache.budget(), cache.hits, cache.misses]
    }
}
