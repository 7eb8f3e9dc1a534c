//! The shard's tree: one for all its ranges, every version of every row.
//!
//! In front, on the shard's thread, a [`memtable`]; behind it frozen ones that wait to be flushed,
//! oldest first; behind them tables, immutable, in a list that the shard holds and swaps when the
//! background has installed new ones. The shard never takes a lock under which anybody does I/O:
//! it meets the background in [`TableStore::poll`] alone. A read looks through them in that order;
//! the commit timestamp is the version.
//!
//! Two stores of tables: [`tables`] on `lsm-tree`, the engine inside fjall, with threads of its own
//! for flushes and compactions, and [`memory_tables`] for the simulator, with the same rule for
//! crashes: what was installed last is what there is. Old versions go by [`version_gc`].
//!
//! What a caller must keep to: of a key, versions are inserted in rising order, each once.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod fuzz;
pub mod keys;
mod memory_tables;
mod memtable;
pub mod row;
mod scan;
mod tables;
#[cfg(test)]
mod tests;
mod verify;
mod version_gc;
mod write_back;

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use crate::types::Timestamp;
pub use memory_tables::{MemoryDisk, MemoryTables};
pub use memtable::{Entry, Memtable, MemtableId};
pub use scan::{Direction, Scan, ScanRow};
pub use tables::{LsmTables, TableOptions};
pub use version_gc::{GcRules, Judge, LiveData};
pub use write_back::PushOut;

/// Memtables that may wait for the flusher; with more, nothing is applied until one is flushed.
pub const FROZEN_MAX: usize = 4;
/// From so many frozen memtables on, writers are slowed down.
const FROZEN_SLOW: usize = 1;
/// From so many runs in level 0 on, writers are slowed down.
const RUNS_SLOW: usize = 12;
/// With so many, nothing is applied until some are compacted.
const RUNS_MAX: usize = 32;

/// Bounds of a scan.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A row as tables hold it.
pub struct TableRow<S> {
    /// The row's key.
    pub key: S,
    /// Its version.
    pub version: Timestamp,
    /// Header and value, see [`row`].
    pub row: S,
}

/// Files of tables, and the work on them.
pub trait TableStore: Sized + 'static {
    /// Bytes in a table, shared with its block.
    type Slice: AsRef<[u8]> + Clone;
    /// Goes through an interval of one run of tables, from either end: all versions, newest of a
    /// key first. Other threads may use it, too.
    type Iter: DoubleEndedIterator<Item = Result<TableRow<Self::Slice>, LsmError>> + Send + 'static;

    /// The newest row of a key at or below `at`: header and value.
    ///
    /// # Errors
    /// A file cannot be read or is damaged.
    fn get(&self, key: &[u8], at: Timestamp) -> Result<Option<Self::Slice>, LsmError>;
    /// One iterator for each run that has keys in the interval.
    fn runs(&self, bounds: Bounds<'_>) -> Vec<Self::Iter>;
    /// An empty memtable.
    fn fresh_memtable(&mut self) -> Memtable;
    /// Has a frozen memtable flushed, after those before it.
    fn flush(&mut self, memtable: Arc<Memtable>);
    /// Takes over what was installed; gives the newest memtable that is in tables, if that is
    /// news. Never waits.
    ///
    /// # Errors
    /// The background has failed for good.
    fn poll(&mut self) -> Result<Option<MemtableId>, LsmError>;
    /// Gives back memtables that are in tables, to be used again.
    fn recycle(&mut self, memtables: Vec<Arc<Memtable>>);
    /// Has `call` called, from any thread, when [`TableStore::poll`] has news.
    fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>);
    /// What compactions that start from now on go by.
    fn set_gc(&mut self, rules: GcRules);
    /// Has everything compacted once.
    fn collect_garbage(&mut self);
    /// What is known of the files.
    fn stats(&self) -> TableStats;
}

/// What is known of a store's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Tables.
    pub tables: usize,
    /// Runs in level 0: each may hold any key.
    pub level0_runs: usize,
    /// Bytes of all tables.
    pub bytes: u64,
    /// Flushes done by this process.
    pub flushes: u64,
    /// Compactions done by this process.
    pub compactions: u64,
    /// The last write failed because the disk is full.
    pub disk_full: bool,
    /// The last write failed because there were no file descriptors, or no memory for one.
    pub starved: bool,
}

/// How far the background is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// 0: not at all; 1: as far as it may be.
    pub level: f32,
    /// Nothing may be applied that needs a new memtable.
    pub stopped: bool,
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
    /// What is known of the files.
    pub tables: TableStats,
}

fn advice(damaged: bool) -> String {
    match damaged {
        true => format!(": a file is damaged; {}", crate::disk_fault::DAMAGED_ADVICE),
        false => String::new(),
    }
}

/// What can go wrong in the tree. Each ends the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LsmError {
    /// A file cannot be read or written, or is not what was written.
    #[error("tables in {folder}: {action} failed: {message}{}", advice(*.damaged))]
    Failed {
        /// The tables' folder.
        folder: String,
        /// What was tried.
        action: &'static str,
        /// The cause.
        message: String,
        /// Whether the file is damaged.
        damaged: bool,
    },
    /// A row's header is none that this version knows.
    #[error(
        "a row in the tables has a header unknown to this version of rangedb; \
         start the version that wrote it"
    )]
    UnknownRow,
}

/// A row found, borrowed from where it is.
pub enum Found<'a, S> {
    /// In a memtable.
    Memtable(Entry<'a>),
    /// In a table.
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

    /// Its value, or `None` if it is a delete mark.
    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Found::Memtable(entry) => entry.value,
            Found::Table(_, false, _) => None,
            Found::Table(_, true, row) => row::decode(row.as_ref()).and_then(|row| row.value),
        }
    }
}

/// An interval of frozen memtables and tables, as they were when it was taken.
pub struct Part<T: TableStore> {
    memtables: Vec<Arc<Memtable>>,
    runs: Vec<T::Iter>,
}

impl<T: TableStore> Part<T> {
    /// Goes through its rows as of `at`; the bounds are those it was taken with.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn scan<R>(
        self,
        bounds: Bounds<'_>,
        at: Timestamp,
        visit: impl FnOnce(&mut Scan<'_, T>) -> Result<R, LsmError>,
    ) -> Result<R, LsmError> {
        let memtables = self.memtables.iter().map(|memtable| &**memtable);
        visit(&mut Scan::new(
            memtables,
            self.runs,
            bounds,
            at,
            Direction::Forward,
        )?)
    }
}

/// The tree of one shard.
pub struct Lsm<T: TableStore> {
    active: Memtable,
    /// Oldest first.
    frozen: VecDeque<Arc<Memtable>>,
    store: T,
    next_id: u64,
}

impl<T: TableStore> Lsm<T> {
    /// A tree on an open store.
    pub fn new(mut store: T) -> Lsm<T> {
        Lsm {
            active: store.fresh_memtable(),
            frozen: VecDeque::new(),
            store,
            next_id: 1,
        }
    }

    /// Whether `rows` more with `bytes` of keys and values fit without freezing.
    pub fn has_room(&self, rows: usize, bytes: usize) -> bool {
        self.active.has_room(rows, bytes)
    }

    /// Adds a version; `None` is a delete mark.
    pub fn insert(&mut self, key: &[u8], version: Timestamp, value: Option<&[u8]>) {
        self.active.insert(key, version, value);
    }

    /// The newest version of a row at or below `at`.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn get(&self, key: &[u8], at: Timestamp) -> Result<Option<Found<'_, T::Slice>>, LsmError> {
        for memtable in self.memtables() {
            if let Some(entry) = memtable.get(key, at) {
                return Ok(Some(Found::Memtable(entry)));
            }
        }
        let Some(row) = self.store.get(key, at)? else {
            return Ok(None);
        };
        let (version, is_value) = match row::decode(row.as_ref()) {
            Some(row) => (row.version, row.value.is_some()),
            None => return Err(LsmError::UnknownRow),
        };
        Ok(Some(Found::Table(version, is_value, row)))
    }

    /// Newest first.
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|frozen| &**frozen))
    }

    /// The rows of an interval as of `at`, in key order; delete marks are not shown.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn scan(&self, bounds: Bounds<'_>, at: Timestamp) -> Result<Scan<'_, T>, LsmError> {
        self.scan_in(Direction::Forward, bounds, at)
    }

    /// As [`Lsm::scan`], in this direction.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn scan_in(
        &self,
        direction: Direction,
        bounds: Bounds<'_>,
        at: Timestamp,
    ) -> Result<Scan<'_, T>, LsmError> {
        let runs = self.store.runs(bounds);
        Scan::new(self.memtables(), runs, bounds, at, direction)
    }

    /// An interval of all that is not in the active memtable, for another thread to go through.
    pub fn part(&self, bounds: Bounds<'_>) -> Part<T> {
        Part {
            memtables: self.frozen.iter().cloned().collect(),
            runs: self.store.runs(bounds),
        }
    }

    /// Whether the active memtable holds nothing.
    pub fn is_fresh(&self) -> bool {
        self.active.rows() == 0
    }

    /// Hands the active memtable to the flusher; it is read from here until it is in tables.
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

    /// Takes over what the background has installed; gives the newest memtable that is in tables,
    /// if that is news.
    ///
    /// # Errors
    /// The background has failed for good.
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

    /// Has `call` called, from any thread, when [`Lsm::poll`] has news.
    pub fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.store.on_install(call);
    }

    /// How far the background is behind.
    pub fn pressure(&self) -> Pressure {
        pressure(self.frozen.len(), self.store.stats())
    }

    /// What compactions that start from now on go by.
    pub fn set_gc(&mut self, rules: GcRules) {
        self.store.set_gc(rules);
    }

    /// Has everything compacted once, so that old versions go where nobody writes.
    pub fn collect_garbage(&mut self) {
        self.store.collect_garbage();
    }

    /// Counters.
    pub fn stats(&self) -> LsmStats {
        LsmStats {
            memtable_bytes: self.active.size(),
            frozen: self.frozen.len(),
            tables: self.store.stats(),
        }
    }
}

/// Rises smoothly with what waits, so that writers slow down before they must stop.
fn pressure(frozen: usize, tables: TableStats) -> Pressure {
    let part = |have: usize, slow: usize, max: usize| {
        (have.saturating_sub(slow) as f32 / (max - slow) as f32).min(1.0)
    };
    let level =
        part(frozen, FROZEN_SLOW, FROZEN_MAX).max(part(tables.level0_runs, RUNS_SLOW, RUNS_MAX));
    Pressure {
        level,
        stopped: frozen >= FROZEN_MAX || tables.level0_runs >= RUNS_MAX,
        disk_full: tables.disk_full,
    }
}
