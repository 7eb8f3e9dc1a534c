//! The LSM tree of a shard. One tree holds every MVCC version of every row of all its ranges. The
//! commit timestamp of a write is the version.
//!
//! The shard's thread writes to the active [`memtable`]. Full memtables are frozen and wait, oldest
//! first, to be flushed to immutable SSTables, called *tables* here. The shard holds a list of the
//! tables and replaces it when the background threads have installed new ones. A read looks in the
//! active memtable, then in the frozen ones from the newest to the oldest, then in the tables. A read
//! of the newest version looks in the [row cache](row_cache) first. The
//! shard's thread never waits for a lock that is held during I/O: it takes over the work of the
//! background threads in [`TableStore::poll`], which only tries the lock.
//!
//! A get computes the hash of its key once, [`keys::row_hash`]. The [row cache](row_cache) finds a row
//! by it; the [`filter`] of each memtable and the filters of the tables use it to pass over what does
//! not hold the key.
//!
//! Neither a read of a client nor one for a snapshot waits for the disk on the shard's thread:
//! [`get`](mod@get) and [`scan`](mod@scan) say which block they would have to wait for. Only apply,
//! recovery, and the reads that must be done before a write goes into the log wait for it.
//!
//! There are two implementations of [`TableStore`]. [`tables`] uses `lsm-tree`, the engine inside
//! fjall, with threads for flushes, compactions and fetched blocks. [`memory_tables`] keeps tables in memory
//! for the simulator. After a crash both hold exactly the tables that were installed.
//! [`version_gc`] decides which old versions a flush or a compaction drops.
//!
//! The caller must insert the versions of a key in ascending order, and each version once.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod filter;
#[cfg(test)]
mod fuzz;
mod get;
pub mod keys;
mod memory_tables;
mod memtable;
mod prefetch;
pub mod row;
mod row_cache;
mod scan;
mod size;
mod tables;
#[cfg(test)]
mod tests;
mod verify;
mod version_gc;
mod write_back;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use crate::memory::MemoryUse;
use crate::mutant::{self, Mutant};
use crate::types::{ColdBlock, Timestamp};
use filter::Filter;
pub use get::Lookup;
pub use memory_tables::{CacheObserver, MemoryDisk, MemoryTables, SlowDisk};
pub use memtable::{Entry, Memtable, MemtableId};
use row::Row;
pub use row_cache::PREFETCH_MAX;
use row_cache::RowCache;
pub use scan::{BlockReads, ColdStop, Direction, HeldBlocks, Scan, ScanRow, ScanStop, Step};
pub use size::{Interval, Samples, Size};
pub use tables::{
    FreeBytes, LsmTables, ReadFault, TABLE_FORMAT, TableOptions, no_read_fault, unbounded,
};
pub use version_gc::{GcRules, LiveData, VersionFilter};
pub use write_back::PushOut;

/// With this many frozen memtables, nothing is applied that needs a new memtable until one is
/// flushed.
pub const FROZEN_MAX: usize = 4;
/// Most memtables that have memory: the active one, the frozen ones, and two that are cleared, or wait
/// to be.
const MEMTABLES_MAX: usize = FROZEN_MAX + 3;
/// With more frozen memtables than this, writers are slowed down.
const FROZEN_SLOW: usize = 1;
/// With more runs in level 0 than this, writers are slowed down.
const RUNS_SLOW: usize = 12;
/// With this many runs in level 0, nothing is applied that needs a new memtable until a compaction
/// has merged some of them.
const RUNS_MAX: usize = 32;

/// The memory of all memtables together, if each is for `memtable_bytes` of rows.
pub const fn memtables_len_max(memtable_bytes: usize) -> usize {
    MEMTABLES_MAX * (memtable_bytes + Filter::len_max(memtable_bytes))
}

/// The lower and the upper bound of an interval of keys.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// One version of a row, as it is stored in a table.
pub struct TableRow<S> {
    /// The row's key.
    pub key: S,
    /// Its commit timestamp.
    pub version: Timestamp,
    /// Header and value; see [`row`].
    pub row: S,
}

/// A block that was read beside the shard's thread: its content, which is none if its table is gone, or
/// [`LsmError::Unreadable`] if it cannot be read.
pub type Fetched<B> = (ColdBlock, Result<Option<B>, LsmError>);

/// The tables of a shard, the flushes to them and their compactions.
pub trait TableStore: Sized + 'static {
    /// Bytes read from a table. They are not copied but share the memory of their block.
    type Slice: AsRef<[u8]> + Clone;
    /// The content of a block. Clones share its memory.
    type Block: Clone + 'static;
    /// Iterates over an interval of one run of tables; see [`TableStore::next`]. It may be moved to
    /// another thread.
    type Iter: Send + 'static;

    /// The newest version of a key at or below `at`: header and value. `hash` is the key's
    /// [`keys::row_hash`].
    ///
    /// # Errors
    /// A file cannot be read or is damaged.
    fn get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Option<Self::Slice>, LsmError>;
    /// Like [`TableStore::get`], but never waits for the disk: it names the first block that it would
    /// have to wait for.
    ///
    /// # Errors
    /// A file cannot be read or is damaged.
    fn try_get(
        &self,
        key: &[u8],
        hash: u64,
        at: Timestamp,
    ) -> Result<Lookup<Self::Slice>, LsmError>;
    /// Has blocks of one table, which lie close together, read at once beside the shard's thread. The caller
    /// asks for a block once until [`TableStore::fetched`] gives it.
    fn fetch(&self, blocks: &[ColdBlock]);
    /// The blocks that have been read; never waits for others. A block of a table that is gone is given, too:
    /// the next read looks in the tables that have replaced it.
    fn fetched(&mut self) -> Vec<Fetched<Self::Block>>;
    /// Puts a block that was fetched where [`TableStore::try_get`] finds it.
    fn cache(&self, block: ColdBlock, content: Self::Block);
    /// Sets a callback for when [`TableStore::fetched`] has something to give. Any thread may call it.
    fn on_fetched(&mut self, call: Arc<dyn Fn() + Send + Sync>);
    /// One iterator for each run that may have keys in the interval.
    fn runs(&self, bounds: Bounds<'_>, direction: Direction) -> Vec<Self::Iter>;
    /// The next version in a run, in the order of its [`Direction`]. On the shard's thread, the store that
    /// gave the iterator is that of `reads`, and its cached blocks are used.
    ///
    /// # Errors
    /// A file cannot be read or is damaged, or a block is not in memory and `reads` does not wait. The
    /// iterator is of no use after that.
    fn next(
        run: &mut Self::Iter,
        reads: BlockReads<'_, Self, Self::Block>,
    ) -> Result<Option<TableRow<Self::Slice>>, ScanStop>;
    /// About how many bytes of rows the tables have in an interval that is not empty, without I/O.
    fn size_of(&self, interval: Interval<'_>) -> Size;
    /// Passes on keys of the rows in the interval of `samples`, without I/O.
    fn sample(&self, samples: &mut Samples<'_>);
    /// An empty memtable.
    fn fresh_memtable(&mut self) -> Memtable;
    /// Queues a frozen memtable, to be flushed after those queued before it.
    fn flush(&mut self, memtable: Arc<Memtable>);
    /// Takes over what the background threads have installed, and never waits for them. Returns the
    /// newest memtable whose rows are in tables, or `None` if nothing is new. The same memtable may
    /// be returned again after a compaction.
    ///
    /// # Errors
    /// A flush or a compaction has failed in a way that a retry does not help.
    fn poll(&mut self) -> Result<Option<MemtableId>, LsmError>;
    /// Gives back flushed memtables, so that their memory can be reused.
    fn recycle(&mut self, memtables: Vec<Arc<Memtable>>);
    /// Sets a callback for when [`TableStore::poll`] has something to do. Any thread may call it.
    fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>);
    /// Sets the rules by which flushes and compactions that start from now on drop versions.
    fn set_gc(&mut self, rules: GcRules);
    /// Starts a compaction of all tables.
    fn collect_garbage(&mut self);
    /// Counters of the tables and of the work on them.
    fn stats(&self) -> TableStats;
    /// Whether the disk may not have room for what memory can hold.
    fn is_short_of_room(&self) -> bool {
        self.stats().disk_full
    }
    /// Called when the row cache has answered a read with `cached`. `tree` reads the same from
    /// memtables and tables: the simulator's store has the two compared, another does nothing.
    ///
    /// # Errors
    /// A table cannot be read.
    #[inline(always)]
    fn cache_answered<'a>(
        &self,
        _key: &[u8],
        _cached: Row<'_>,
        _tree: impl FnOnce() -> Result<Option<Found<'a, Self::Slice>>, LsmError>,
    ) -> Result<(), LsmError> {
        Ok(())
    }
    /// The memory of cached blocks of tables.
    fn block_cache(&self) -> MemoryUse;
}

/// Counters of a [`TableStore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Number of tables.
    pub tables: usize,
    /// Runs in level 0. Each may hold any key.
    pub level0_runs: usize,
    /// Size of all tables in bytes.
    pub bytes: u64,
    /// Bytes in levels that hold more than they should, beyond what they should hold.
    pub compaction_pending_bytes: u64,
    /// Flushes done by this process.
    pub flushes: u64,
    /// Compactions done by this process.
    pub compactions: u64,
    /// Compactions that have failed and are tried again.
    pub compactions_failed: u64,
    /// The compactions that keep level 0 small have failed, and wait until they are tried again.
    pub compaction_fails: bool,
    /// The last write failed because the disk is full, or it has less room than the rows in memory may need.
    pub disk_full: bool,
    /// The last write failed because the process could not get a file descriptor or memory.
    pub starved: bool,
}

/// How far flushes and compactions are behind the writers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// From 0, not behind, to 1, at the limit.
    pub level: f32,
    /// Nothing may be applied that needs a new memtable.
    pub stopped: bool,
    /// That does not pass by itself, because compactions fail.
    pub stuck: bool,
    /// The disk is full.
    pub disk_full: bool,
}

/// Counters of a tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct LsmStats {
    /// Bytes in the active memtable.
    pub memtable_bytes: usize,
    /// Memtables that wait to be flushed.
    pub frozen: usize,
    /// Whether nothing may be applied that needs a new memtable, because compactions fail.
    pub stuck: bool,
    /// What is known of the files.
    pub tables: TableStats,
    /// Rows that the row cache has evicted.
    pub row_evictions: u64,
}

fn advice(damaged: bool) -> String {
    match damaged {
        true => format!(": a file is damaged; {}", crate::disk_fault::DAMAGED_ADVICE),
        false => String::new(),
    }
}

/// An error in the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LsmError {
    /// A block of a table cannot be read, or is damaged. Only reads that need the block meet it: it
    /// concerns the replicas that have rows there ([`crate::shard`] gives them up), and not the process.
    #[error("a block of the table file {file} cannot be read or is damaged: {message}")]
    Unreadable {
        /// The table's file.
        file: String,
        /// The cause.
        message: String,
    },
    /// A file cannot be opened or written, or is damaged. It ends the process.
    #[error("tables in {folder}: {action} failed: {message}{}", advice(*.damaged))]
    Failed {
        /// The tables' folder.
        folder: String,
        /// The operation that failed.
        action: &'static str,
        /// The cause.
        message: String,
        /// Whether the file is damaged.
        damaged: bool,
    },
    /// A row has a header that this version of RangeDB does not know. It ends the process.
    #[error(
        "a row in the tables has a header unknown to this version of rangedb; \
         start the version that wrote it"
    )]
    UnknownRow,
}

impl LsmError {
    /// What helps a process that cannot do without what it has tried to read; empty if the error says so
    /// itself.
    pub(crate) fn advice(&self) -> String {
        match self {
            LsmError::Unreadable { .. } => format!("; {}", crate::disk_fault::DAMAGED_ADVICE),
            LsmError::Failed { .. } | LsmError::UnknownRow => String::new(),
        }
    }
}

/// A version of a row, borrowed from the memtable or the table that holds it.
pub enum Found<'a, S> {
    /// In a memtable.
    Memtable(Entry<'a>),
    /// In a table: the version, whether it has a value (a tombstone has none), and the row's bytes.
    Table(Timestamp, bool, S),
}

impl<S: AsRef<[u8]>> Found<'_, S> {
    /// Its version.
    pub fn version(&self) -> Timestamp {
        match self {
            Found::Memtable(entry) => entry.version,
            Found::Table(version, _, _) => *version,
        }
    }

    /// Its version and value.
    pub fn row(&self) -> Row<'_> {
        Row {
            version: self.version(),
            value: self.value(),
        }
    }

    /// Its value, or `None` for a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Found::Memtable(entry) => entry.value,
            Found::Table(_, false, _) => None,
            Found::Table(_, true, row) => row::decode(row.as_ref()).and_then(|row| row.value),
        }
    }
}

/// An interval of the frozen memtables and the tables, as they were when [`Lsm::part`] took it.
pub struct Part<T: TableStore> {
    memtables: Vec<Arc<Memtable>>,
    runs: Vec<T::Iter>,
}

impl<T: TableStore> Part<T> {
    /// Scans the interval as of `at`. The bounds must be those that it was taken with.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn scan<R>(
        self,
        bounds: Bounds<'_>,
        at: Timestamp,
        visit: impl FnOnce(&mut Scan<'_, T>) -> Result<R, ScanStop>,
    ) -> Result<R, LsmError> {
        let memtables = self.memtables.iter().map(|memtable| &**memtable);
        let (direction, reads) = (Direction::Forward, BlockReads::Beside);
        let scan = Scan::new(memtables, self.runs, bounds, at, direction, reads);
        let visited = scan.and_then(|mut scan| visit(&mut scan));
        visited.map_err(ScanStop::of_waiting)
    }
}

/// The tree of one shard.
pub struct Lsm<T: TableStore> {
    active: Memtable,
    /// Oldest first.
    frozen: VecDeque<Arc<Memtable>>,
    store: T,
    row_cache: RefCell<RowCache>,
    next_id: u64,
}

/// The hash by which the row cache knows a row: that of its key.
fn hash_in_cache(key: &[u8], hash: u64) -> u64 {
    match mutant::is(Mutant::RowOfRemovedReplica) {
        true => keys::row_hash(keys::after_data_id(key).unwrap_or(key)),
        false => hash,
    }
}

impl<T: TableStore> Lsm<T> {
    /// A tree on an open store, with a row cache of so many bytes; 0 turns the cache off.
    pub fn new(mut store: T, row_cache_bytes: usize) -> Lsm<T> {
        Lsm {
            active: store.fresh_memtable(),
            frozen: VecDeque::new(),
            store,
            row_cache: RefCell::new(RowCache::new(row_cache_bytes)),
            next_id: 1,
        }
    }

    /// Whether `rows` more versions with `bytes` of keys and values fit without a freeze.
    pub fn has_room(&self, rows: usize, bytes: usize) -> bool {
        self.active.has_room(rows, bytes)
    }

    /// Adds a version of a row. A value of `None` adds a tombstone.
    pub fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        let hash = keys::row_hash(key);
        self.active.insert(key, hash, version, value);
        if !mutant::is(Mutant::CachedRowNotUpdated) {
            let row_cache = self.row_cache.get_mut();
            row_cache.update(hash_in_cache(key, hash), key, Row { version, value });
        }
    }

    /// All memtables, newest first.
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|frozen| &**frozen))
    }

    /// A scan of the rows in an interval as of `at`, in ascending order of keys. May wait for the disk.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn scan<'a>(&'a self, bounds: Bounds<'a>, at: Timestamp) -> Result<Scan<'a, T>, ScanStop> {
        self.scan_by(BlockReads::Wait(self), Direction::Forward, bounds, at)
    }

    /// A scan in either direction that never waits for the disk. It uses blocks that were fetched for it.
    ///
    /// # Errors
    /// A table cannot be read, or a block is not in memory.
    pub fn try_scan<'a>(
        &'a self,
        direction: Direction,
        bounds: Bounds<'a>,
        at: Timestamp,
        held: &'a HeldBlocks<T::Block>,
    ) -> Result<Scan<'a, T>, ScanStop> {
        self.scan_by(BlockReads::NoWait(self, held), direction, bounds, at)
    }

    fn scan_by<'a>(
        &'a self,
        reads: BlockReads<'a, Lsm<T>, T::Block>,
        direction: Direction,
        bounds: Bounds<'a>,
        at: Timestamp,
    ) -> Result<Scan<'a, T>, ScanStop> {
        let runs = self.store.runs(bounds, direction);
        Scan::new(self.memtables(), runs, bounds, at, direction, reads)
    }

    /// An interval of everything but the active memtable, which another thread may scan.
    pub fn part(&self, bounds: Bounds<'_>) -> Part<T> {
        Part {
            memtables: self.frozen.iter().cloned().collect(),
            runs: self.store.runs(bounds, Direction::Forward),
        }
    }

    /// Whether the active memtable holds nothing.
    pub fn is_fresh(&self) -> bool {
        self.active.rows() == 0
    }

    /// Freezes the active memtable and queues it for the flusher. Reads still look in it until its
    /// rows are in tables.
    pub fn freeze(&mut self) -> MemtableId {
        let id = MemtableId(self.next_id);
        self.next_id += 1;
        let fresh = self.store.fresh_memtable();
        let mut full = std::mem::replace(&mut self.active, fresh);
        full.id = id;
        let full = Arc::new(full);
        self.frozen.push_back(full.clone());
        self.store.flush(full);
        id
    }

    /// Takes over what the background threads have installed, and drops the memtables that are
    /// flushed. Returns the newest of those as [`TableStore::poll`] does.
    ///
    /// # Errors
    /// A flush or a compaction has failed in a way that a retry does not help.
    pub fn poll(&mut self) -> Result<Option<MemtableId>, LsmError> {
        let Some(installed) = self.store.poll()? else {
            return Ok(None);
        };
        let done = self
            .frozen
            .partition_point(|memtable| memtable.id <= installed);
        let flushed = self.frozen.drain(..done).collect();
        self.store.recycle(flushed);
        Ok(Some(installed))
    }

    /// Sets a callback for when [`Lsm::poll`] has something to do. Any thread may call it.
    pub fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.store.on_install(call);
    }

    /// Has blocks read beside the shard's thread; see [`TableStore::fetch`].
    pub fn fetch(&self, blocks: &[ColdBlock]) {
        self.store.fetch(blocks);
    }

    /// The blocks that have been read; see [`TableStore::fetched`].
    pub fn fetched(&mut self) -> Vec<Fetched<T::Block>> {
        self.store.fetched()
    }

    /// Puts a block that was fetched where gets find it.
    pub fn cache(&self, block: ColdBlock, content: T::Block) {
        self.store.cache(block, content);
    }

    /// Sets a callback for when [`Lsm::fetched`] has something to give. Any thread may call it.
    pub fn on_fetched(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.store.on_fetched(call);
    }

    /// Whether the disk may not have room for what memory can hold, or is full.
    pub fn is_short_of_room(&self) -> bool {
        self.store.is_short_of_room()
    }

    /// What the memtables take, beside `coming` bytes of rows, before a flush or a compaction must have made
    /// room, in parts of one memtable.
    pub fn room_left(&self, coming: usize) -> f32 {
        let stats = self.store.stats();
        let more = match stats.level0_runs >= RUNS_MAX {
            true => 0,
            false => FROZEN_MAX.saturating_sub(self.frozen.len()),
        };
        let capacity = self.active.capacity();
        let left = capacity.saturating_sub(self.active.size()) + more * capacity;
        (left as f32 - coming as f32) / capacity as f32
    }

    /// How far flushes and compactions are behind the writers.
    pub fn pressure(&self) -> Pressure {
        pressure(self.frozen.len(), self.store.stats())
    }

    /// Sets the rules by which flushes and compactions that start from now on drop versions.
    pub fn set_gc(&mut self, rules: GcRules) {
        self.store.set_gc(rules);
    }

    /// Starts a compaction of all tables, which drops old versions also where nothing is written.
    pub fn collect_garbage(&mut self) {
        self.store.collect_garbage();
    }

    /// The memory that the tree uses.
    pub fn memory(&self) -> Vec<MemoryUse> {
        let lens = self
            .memtables()
            .map(|memtable| memtable.memory_len() as u64);
        let memtables = MemoryUse {
            name: "memtables",
            used: lens.sum(),
            bound: memtables_len_max(self.active.capacity()) as u64,
            ..MemoryUse::default()
        };
        let row_cache = self.row_cache.borrow().memory();
        vec![row_cache, self.store.block_cache(), memtables]
    }

    /// The counters of the tree.
    pub fn stats(&self) -> LsmStats {
        LsmStats {
            memtable_bytes: self.active.size(),
            frozen: self.frozen.len(),
            stuck: self.pressure().stuck,
            tables: self.store.stats(),
            row_evictions: self.row_cache.borrow().evictions(),
        }
    }
}

/// The pressure rises linearly with the backlog, so that writers slow down before they must stop.
fn pressure(frozen: usize, tables: TableStats) -> Pressure {
    let part = |have: usize, slow: usize, max: usize| {
        (have.saturating_sub(slow) as f32 / (max - slow) as f32).min(1.0)
    };
    let level =
        part(frozen, FROZEN_SLOW, FROZEN_MAX).max(part(tables.level0_runs, RUNS_SLOW, RUNS_MAX));
    let is_full = tables.level0_runs >= RUNS_MAX;
    Pressure {
        level,
        stopped: frozen >= FROZEN_MAX || is_full,
        stuck: is_full && tables.compaction_fails,
        disk_full: tables.disk_full,
    }
}
