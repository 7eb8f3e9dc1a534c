//! Tables in memory, for the simulator. They keep after a crash what the real ones keep, without
//! files.
//!
//! A [`MemoryDisk`] outlives the store, as a disk outlives a process: a store that is opened on it
//! later finds exactly the tables that were installed. All work is done in [`TableStore::poll`],
//! one flush or compaction at a time, so that a crash can come between any two and nothing depends
//! on threads. The store is too slow for real data: each flush and compaction visits all rows of the run that
//! it makes once more, to add up their sizes.
//!
//! With a [`SlowDisk`], blocks may be missing in memory for reads that must not wait. A block is a part of
//! a run's rows, chosen by the hash of the key. It is cold until it was fetched; then it stays at least
//! until a read has used it, so that a reader that asks again and again comes to an end. A scan needs the
//! blocks in random order, as it would need those of many runs.
//!
//! Blocks of a [`MemoryDisk`] may be bad: reads of their rows fail, half of the blocks at once and the others
//! when they are fetched, and so do compactions, until the disk is mended.

mod disk;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::lsm::memtable::{Memtable, MemtableId};
use crate::lsm::row::Row;
use crate::lsm::version_gc::{GcRules, VersionFilter};
use crate::lsm::{
    BlockReads, Bounds, Direction, Fetched, Found, HeldBlocks, Interval, Lookup, LsmError, Samples,
    ScanStop, Size, TableRow, TableStats, TableStore, keys, row,
};
use crate::memory::MemoryUse;
use crate::types::{ColdBlock, Timestamp};
pub use disk::MemoryDisk;
use disk::{RunKey, Stored};

/// With this many runs, a compaction merges them into one.
const RUNS_BEFORE_COMPACTION: usize = 4;
/// Rows of a run between two keys of which it is known how many bytes lie before them.
const ROWS_OF_SAMPLE: usize = 8;
/// Blocks of a run.
const BLOCKS_OF_RUN: u64 = 8;
/// Length of a block.
const BLOCK_LEN: u32 = 4096;
/// The filter of a run passes one in so many keys that the run does not hold.
const FALSE_POSITIVE_ONE_IN: u64 = 16;

/// Called with each answer of the row cache: the row's key, the answer, and what memtables and tables
/// hold.
pub type CacheObserver = fn(&[u8], Row<'_>, Option<Row<'_>>);

/// A disk from which blocks are read so slowly that reads wait for them.
pub trait SlowDisk {
    /// Whether a block that was just used leaves the memory.
    fn evicts(&self) -> bool;
    /// Calls `done` when the disk has read some blocks, which it reads at once.
    fn read(&self, done: Box<dyn FnOnce()>);
}

/// The number of the block of a row, by the hash of its key.
fn block_of(hash: u64) -> u64 {
    (hash >> 32) % BLOCKS_OF_RUN
}

/// A block of the run with this number.
fn block(run: u64, number: u64) -> ColdBlock {
    ColdBlock {
        table: run,
        offset: number * u64::from(BLOCK_LEN),
        len: BLOCK_LEN,
    }
}

fn unreadable() -> LsmError {
    LsmError::Unreadable {
        file: "memory".to_owned(),
        message: "input/output error".to_owned(),
    }
}

/// A run of tables, which counts as one table.
#[derive(Clone)]
struct Run {
    /// Its number in this store.
    number: u64,
    stored: Stored,
    /// One in [`ROWS_OF_SAMPLE`] keys, and the size of the rows before it.
    sizes: Rc<[(Bytes, Size)]>,
    /// Of all rows.
    size: Size,
}

impl Run {
    fn new(number: u64, stored: Stored) -> Run {
        let (mut sizes, mut size) = (Vec::new(), Size::default());
        let mut last: Option<&Bytes> = None;
        for (at, ((key, _), row)) in stored.rows.iter().enumerate() {
            if at.is_multiple_of(ROWS_OF_SAMPLE) {
                sizes.push((key.clone(), size));
            }
            let bytes = (key.len() + row.len()) as u64;
            size.bytes += bytes;
            if last.replace(key) != Some(key) {
                size.live_bytes += bytes;
            }
        }
        Run {
            number,
            sizes: sizes.into(),
            size,
            stored,
        }
    }

    /// The size of the rows before a key, to a few rows.
    fn size_before(&self, key: &[u8]) -> Size {
        let at = self
            .sizes
            .partition_point(|(sample, _)| sample.as_ref() < key);
        self.sizes.get(at).map_or(self.size, |(_, before)| *before)
    }

    fn sample(&self, samples: &mut Samples<'_>) {
        let (low, high) = samples.interval();
        let mut before = self.size_before(low);
        let begin = self
            .sizes
            .partition_point(|(sample, _)| sample.as_ref() < low);
        let within = self.sizes.iter().skip(begin);
        for (key, now) in within.take_while(|(key, _)| key.as_ref() < high) {
            samples.begin(key);
            if now.minus(before).bytes >= samples.step {
                samples.take(key.to_vec(), now.minus(before).bytes);
                before = *now;
            }
        }
    }

    /// Whether the filter lets a key pass of which this was found. It has to do with the key alone, not with
    /// the version.
    fn passes(&self, hash: u64, found: Option<&Bytes>) -> bool {
        found.is_some() || hash.is_multiple_of(FALSE_POSITIVE_ONE_IN)
    }

    fn get(&self, key: &[u8], from: &RunKey) -> Option<&Bytes> {
        let (found, row) = self.stored.rows.range(from..).next()?;
        (found.0 == key).then_some(row)
    }
}

/// Blocks in memory, and those that are read.
struct Blocks {
    disk: Box<dyn SlowDisk>,
    in_memory: RefCell<BTreeSet<ColdBlock>>,
    fetched: Rc<RefCell<Vec<ColdBlock>>>,
}

impl Blocks {
    /// Uses a block; gives whether it is in memory.
    fn take(&self, block: ColdBlock) -> bool {
        let mut in_memory = self.in_memory.borrow_mut();
        let is_there = in_memory.contains(&block);
        if is_there && self.disk.evicts() {
            in_memory.remove(&block);
        }
        is_there
    }
}

/// A store on a [`MemoryDisk`].
pub struct MemoryTables {
    disk: Rc<MemoryDisk>,
    /// Newest first.
    runs: Vec<Run>,
    /// How many runs this store has numbered.
    numbered: u64,
    /// Blocks of the runs; without a slow disk all are in memory.
    blocks: Option<Blocks>,
    memtable_bytes: usize,
    jobs: VecDeque<Arc<Memtable>>,
    collect: bool,
    rules: Option<GcRules>,
    news: Option<Arc<dyn Fn() + Send + Sync>>,
    on_fetched: Option<Arc<dyn Fn() + Send + Sync>>,
    cache_observer: Option<CacheObserver>,
    stats: TableStats,
}

impl MemoryTables {
    /// Opens the tables on a disk.
    pub fn open(disk: Rc<MemoryDisk>, memtable_bytes: usize) -> MemoryTables {
        let stored = disk.runs.borrow().clone();
        let mut tables = MemoryTables {
            runs: Vec::new(),
            numbered: 0,
            blocks: None,
            disk,
            memtable_bytes,
            jobs: VecDeque::new(),
            collect: false,
            rules: None,
            news: None,
            on_fetched: None,
            cache_observer: None,
            stats: TableStats::default(),
        };
        tables.runs = stored.into_iter().map(|run| tables.number(run)).collect();
        tables
    }

    /// Has reads wait for blocks that are not in memory.
    pub fn read_from(&mut self, disk: Box<dyn SlowDisk>) {
        self.blocks = Some(Blocks {
            disk,
            in_memory: RefCell::default(),
            fetched: Rc::default(),
        });
    }

    fn number(&mut self, stored: Stored) -> Run {
        self.numbered += 1;
        Run::new(self.numbered, stored)
    }

    /// Has the answers of the row cache compared with the tree by an observer.
    pub fn observe_cache(&mut self, observer: CacheObserver) {
        self.cache_observer = Some(observer);
    }

    fn tell(&self) {
        if let Some(news) = &self.news {
            news();
        }
    }

    /// Whether writes succeed at the moment.
    fn writes(&mut self) -> Result<bool, LsmError> {
        if self.disk.failing.get() {
            self.disk.has_failed.set(true);
            return Err(LsmError::Failed {
                folder: "memory".to_owned(),
                action: "write",
                message: "input/output error".to_owned(),
                damaged: false,
            });
        }
        self.stats.disk_full = self.disk.full.get();
        Ok(!self.stats.disk_full)
    }

    fn install(&mut self, runs: Vec<Run>) {
        *self.disk.runs.borrow_mut() = runs.iter().map(|run| run.stored.clone()).collect();
        if let Some(blocks) = &self.blocks {
            let is_live = |block: &ColdBlock| runs.iter().any(|run| run.number == block.table);
            blocks.in_memory.borrow_mut().retain(is_live);
        }
        self.stats.tables = runs.len();
        self.stats.level0_runs = runs.len();
        self.stats.bytes = runs.iter().map(|run| run.size.bytes).sum();
        self.runs = runs;
    }

    fn compact(&mut self) {
        let mut filter = VersionFilter::new(self.rules.as_ref());
        let mut all = BTreeMap::new();
        for run in &self.runs {
            all.extend(
                run.stored
                    .rows
                    .iter()
                    .map(|(key, row)| (key.clone(), row.clone())),
            );
        }
        all.retain(|(key, Reverse(version)), bytes| {
            let is_value = row::decode(bytes).is_none_or(|row| row.value.is_some());
            filter.keeps(key, *version, is_value, true)
        });
        let merged = self.number(Stored::new(Arc::new(all)));
        self.install(vec![merged]);
        self.stats.compactions += 1;
    }
}

/// An iterator over an interval of one run. It holds the bounds of what it has not yielded yet.
pub struct RunIter {
    run: u64,
    stored: Stored,
    /// A bit for each block that it has opened: these stay open.
    open: u8,
    direction: Direction,
    front: Bound<RunKey>,
    back: Bound<RunKey>,
}

impl RunIter {
    /// The rows that it has not yielded yet.
    fn left(&self) -> Option<btree_map::Range<'_, RunKey, Bytes>> {
        // `BTreeMap::range` panics if its bounds are reversed.
        let is_empty = match (&self.front, &self.back) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(front), Bound::Included(back)) => front > back,
            (
                Bound::Included(front) | Bound::Excluded(front),
                Bound::Included(back) | Bound::Excluded(back),
            ) => front >= back,
        };
        (!is_empty).then(|| {
            self.stored
                .rows
                .range((self.front.as_ref(), self.back.as_ref()))
        })
    }
}

fn table_row((key, row): (&RunKey, &Bytes)) -> TableRow<Bytes> {
    TableRow {
        key: key.0.clone(),
        version: key.1.0,
        row: row.clone(),
    }
}

impl RunIter {
    fn next(&mut self, reads: Reads<'_>) -> Result<Option<TableRow<Bytes>>, ScanStop> {
        let row = self.left().and_then(|mut rows| match self.direction {
            Direction::Forward => rows.next(),
            Direction::Reverse => rows.next_back(),
        });
        let Some(row) = row.map(table_row) else {
            return Ok(None);
        };
        if self.stored.has_bad() || matches!(reads, BlockReads::NoWait(..)) {
            self.open_block(block_of(keys::row_hash(&row.key)), reads)?;
        }
        let taken = Bound::Excluded((row.key.clone(), Reverse(row.version)));
        match self.direction {
            Direction::Forward => self.front = taken,
            Direction::Reverse => self.back = taken,
        }
        Ok(Some(row))
    }

    /// Opens a block, if it can be read and is in memory.
    fn open_block(&mut self, number: u64, reads: Reads<'_>) -> Result<(), ScanStop> {
        let is_bad = self.stored.is_bad(number);
        let cold = match reads {
            _ if self.open >> number & 1 == 1 && !is_bad => None,
            BlockReads::NoWait(tables, held) => (tables.blocks.as_ref())
                .filter(|blocks| !self.is_in_memory(number, blocks, held))
                .map(|_| held),
            _ => None,
        };
        match cold {
            // Of the bad blocks half fail at once, and the others when they are fetched.
            _ if is_bad && (cold.is_none() || !number.is_multiple_of(2)) => {
                Err(unreadable().into())
            }
            None => {
                self.open |= 1 << number;
                Ok(())
            }
            Some(held) => {
                let next = (number + 1..BLOCKS_OF_RUN).map(|next| (next, block(self.run, next)));
                let is_open = |number| self.open >> number & 1 == 1;
                Err(held.stop(block(self.run, number), next, is_open))
            }
        }
    }

    /// Uses a block; gives whether it can be read without waiting.
    fn is_in_memory(&self, number: u64, blocks: &Blocks, held: &HeldBlocks<()>) -> bool {
        let block = block(self.run, number);
        !self.stored.is_bad(number) && (held.get(block).is_some() || blocks.take(block))
    }
}

/// How blocks are read.
type Reads<'a> = BlockReads<'a, MemoryTables, ()>;

impl TableStore for MemoryTables {
    type Slice = Bytes;
    /// The rows are in memory: a block is that they may be used.
    type Block = ();
    type Iter = RunIter;

    fn get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Option<Bytes>, LsmError> {
        let from = (Bytes::copy_from_slice(key), Reverse(at));
        for run in &self.runs {
            let found = run.get(key, &from);
            if run.passes(hash, found) && run.stored.is_bad(block_of(hash)) {
                return Err(unreadable());
            }
            if found.is_some() {
                return Ok(found.cloned());
            }
        }
        Ok(None)
    }

    fn try_get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Lookup<Bytes>, LsmError> {
        let from = (Bytes::copy_from_slice(key), Reverse(at));
        for run in &self.runs {
            let found = run.get(key, &from);
            let passes = run.passes(hash, found);
            let number = block_of(hash);
            let block = block(run.number, number);
            if passes && run.stored.is_bad(number) {
                return match self.blocks.is_some() && number.is_multiple_of(2) {
                    true => Ok(Lookup::Cold(block)),
                    false => Err(unreadable()),
                };
            }
            if passes
                && self
                    .blocks
                    .as_ref()
                    .is_some_and(|blocks| !blocks.take(block))
            {
                return Ok(Lookup::Cold(block));
            }
            if found.is_some() {
                return Ok(Lookup::Found(found.cloned()));
            }
        }
        Ok(Lookup::Found(None))
    }

    fn fetch(&self, wanted: &[ColdBlock]) {
        let Some(blocks) = &self.blocks else { return };
        let (fetched, tell) = (blocks.fetched.clone(), self.on_fetched.clone());
        let wanted = wanted.to_vec();
        blocks.disk.read(Box::new(move || {
            fetched.borrow_mut().extend(wanted);
            if let Some(tell) = tell {
                tell();
            }
        }));
    }

    fn fetched(&mut self) -> Vec<Fetched<()>> {
        let Some(blocks) = &self.blocks else {
            return Vec::new();
        };
        let read = |block: ColdBlock| {
            let mut runs = self.runs.iter().filter(|run| run.number == block.table);
            if runs.any(|run| run.stored.is_bad(block.offset / u64::from(BLOCK_LEN))) {
                return (block, Err(unreadable()));
            }
            (block, Ok(Some(())))
        };
        blocks.fetched.take().into_iter().map(read).collect()
    }

    fn cache(&self, block: ColdBlock, (): ()) {
        if let Some(blocks) = &self.blocks
            && self.runs.iter().any(|run| run.number == block.table)
        {
            blocks.in_memory.borrow_mut().insert(block);
        }
    }

    fn on_fetched(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.on_fetched = Some(call);
    }

    fn runs(&self, bounds: Bounds<'_>, direction: Direction) -> Vec<RunIter> {
        // Within a key, a run is ordered from the newest version to the oldest.
        let newest = |key| (Bytes::copy_from_slice(key), Reverse(Timestamp::MAX));
        let oldest = |key| (Bytes::copy_from_slice(key), Reverse(Timestamp::ZERO));
        let front = match bounds.0 {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Included(start) => Bound::Included(newest(start)),
            Bound::Excluded(start) => Bound::Excluded(oldest(start)),
        };
        let back = match bounds.1 {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Included(end) => Bound::Included(oldest(end)),
            Bound::Excluded(end) => Bound::Excluded(newest(end)),
        };
        let runs = self.runs.iter().map(|run| RunIter {
            run: run.number,
            open: 0,
            stored: run.stored.clone(),
            direction,
            front: front.clone(),
            back: back.clone(),
        });
        runs.collect()
    }

    fn next(run: &mut RunIter, reads: Reads<'_>) -> Result<Option<TableRow<Bytes>>, ScanStop> {
        run.next(reads)
    }

    fn size_of(&self, (low, high): Interval<'_>) -> Size {
        let runs = self.runs.iter();
        let sizes = runs.map(|run| run.size_before(high).minus(run.size_before(low)));
        let size = sizes.fold(Size::default(), Size::plus);
        let times = self.disk.byte_counts.get().max(1);
        Size {
            bytes: size.bytes * times,
            live_bytes: size.live_bytes * times,
        }
    }

    fn sample(&self, samples: &mut Samples<'_>) {
        self.runs.iter().for_each(|run| run.sample(samples));
    }

    fn fresh_memtable(&mut self) -> Memtable {
        Memtable::new(self.memtable_bytes)
    }

    fn flush(&mut self, memtable: Arc<Memtable>) {
        self.jobs.push_back(memtable);
        self.tell();
    }

    fn poll(&mut self) -> Result<Option<MemtableId>, LsmError> {
        if self.disk.stuck.get() || (self.jobs.is_empty() && !self.collect) || !self.writes()? {
            return Ok(None);
        }
        // Flushes go first. A compaction runs when no memtable waits.
        let Some(memtable) = self.jobs.pop_front() else {
            let has_bad = self.runs.iter().any(|run| run.stored.has_bad());
            self.stats.compaction_fails = has_bad || self.disk.compactions_fail.get();
            if self.stats.compaction_fails {
                self.stats.compactions_failed += 1;
                return Ok(None);
            }
            self.collect = false;
            self.compact();
            return Ok(None);
        };
        let rows = memtable.iter().map(|entry| {
            let key = (Bytes::copy_from_slice(entry.key), Reverse(entry.version));
            (key, Bytes::from(row::encode(entry.version, entry.value)))
        });
        let mut runs = vec![self.number(Stored::new(Arc::new(rows.collect())))];
        runs.extend(self.runs.iter().cloned());
        self.install(runs);
        self.stats.flushes += 1;
        if self.runs.len() >= RUNS_BEFORE_COMPACTION {
            self.collect = true;
        }
        if !self.jobs.is_empty() || self.collect {
            self.tell();
        }
        Ok(Some(memtable.id))
    }

    fn recycle(&mut self, _: Vec<Arc<Memtable>>) {}

    fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.news = Some(call);
    }

    fn set_gc(&mut self, rules: GcRules) {
        self.rules = Some(rules);
    }

    fn collect_garbage(&mut self) {
        self.collect = true;
        self.tell();
    }

    fn stats(&self) -> TableStats {
        self.stats
    }

    fn cache_answered<'a>(
        &self,
        key: &[u8],
        cached: Row<'_>,
        tree: impl FnOnce() -> Result<Option<Found<'a, Bytes>>, LsmError>,
    ) -> Result<(), LsmError> {
        if let Some(observer) = self.cache_observer {
            let tree = tree()?;
            observer(key, cached, tree.as_ref().map(Found::row));
        }
        Ok(())
    }

    /// Memory is the only place of these tables: nothing is cached.
    fn block_cache(&self) -> MemoryUse {
        MemoryUse {
            name: "block_cache",
            ..MemoryUse::default()
        }
    }
}
