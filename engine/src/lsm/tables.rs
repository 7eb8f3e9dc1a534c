//! SSTables on disk, by the crate `lsm-tree`. Only this module and its submodules use that crate.
//!
//! `lsm-tree` is the engine inside fjall. It is used directly because fjall's journal would be a
//! second log, and because fjall assigns the sequence numbers itself. Here the sequence number is
//! the commit timestamp. The crate's version is pinned, because several functions that are called
//! here are not documented.
//!
//! Flushes and compactions run on two background threads of each shard, the flusher and the
//! compactor. They publish the list of tables in a slot, and the shard takes it from there in
//! [`TableStore::poll`] with `try_lock`. Reads use the shard's own list and never the tree, because
//! the tree's lock is held over fsyncs while a new version of the tree is installed. The flusher
//! drops the lists and memtables that the shard no longer needs: the last holder of a table unlinks
//! its file, which takes too long for the shard's thread. There is no descriptor table. Each table
//! keeps its file open, because a reader must not open a file by a name that may be gone.
//!
//! Flushes and compactions pass the tree's own counter, a small number, plus one to `lsm-tree` as
//! the threshold for garbage collection. With a timestamp `lsm-tree` would drop versions that
//! readers need; with the counter itself it would keep files that were replaced.

mod form;
mod gc;
mod retry;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;

use lsm_tree::Error as TreeError;
use lsm_tree::compaction::filter;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, FormatVersion, InternalValue,
    SequenceNumberCounter, Slice, Table, ValueType, config,
};

use crate::lsm::memtable::{Memtable, MemtableId};
use crate::lsm::version_gc::{GcRules, VersionFilter};
use crate::lsm::write_back::{PushOut, WriteBack};
use crate::lsm::{Bounds, FROZEN_MAX, LsmError, TableRow, TableStats, TableStore, row, verify};
use crate::memory::MemoryUse;
use crate::types::Timestamp;
use gc::GcFactory;

/// Cleared memtables that are kept for reuse, with their pages: as many as may be frozen at once,
/// and two more.
const SPARE_MEMTABLES: usize = FROZEN_MAX + 2;
/// The format of the files that `lsm-tree` writes and reads.
pub const TABLE_FORMAT: u8 = FormatVersion::V3 as u8;
/// Target size of the tables that a compaction writes.
const TABLE_BYTES: u64 = 32 << 20;

/// Options of a store.
#[derive(Clone)]
pub struct TableOptions {
    /// Folder of the tables; it is created if it is missing.
    pub folder: PathBuf,
    /// Size of a memtable in bytes.
    pub memtable_bytes: usize,
    /// Capacity of the block cache in bytes.
    pub cache_bytes: u64,
    /// Called first on each background thread with the thread's name, to set up its name, its
    /// processors and its priority.
    pub on_start: Arc<dyn Fn(&str) + Send + Sync>,
    /// Called on table files while they are written, to spread the disk's work over time.
    pub push_out: PushOut,
}

/// The runs of tables, newest first. The files stay on disk as long as somebody holds the list.
struct Tables {
    runs: Vec<Vec<Table>>,
    level0_runs: usize,
    /// Number of all tables. It is computed once because every write asks for the pressure.
    count: usize,
    /// Bytes of their files.
    bytes: u64,
}

impl Tables {
    fn of(tree: &AnyTree) -> Tables {
        let version = tree.current_version();
        let level0_runs = version
            .iter_levels()
            .next()
            .map_or(0, |level| level.iter().count());
        let runs = version.iter_levels().flat_map(|level| level.iter());
        let runs: Vec<Vec<Table>> = runs.map(|run| run.to_vec()).collect();
        let all = || runs.iter().flatten();
        Tables {
            count: all().count(),
            bytes: all().map(|table| table.metadata.file_size).sum(),
            level0_runs,
            runs,
        }
    }
}

enum Job {
    Flush(Arc<Memtable>),
    /// Drops memtables and a list of tables that the shard no longer needs.
    Discard(Vec<Arc<Memtable>>, Option<Arc<Tables>>),
}

enum Compaction {
    /// The compactions that the leveled strategy chooses, until it chooses none.
    Levels,
    /// One compaction of all tables.
    All,
}

/// The news of the background threads for the shard.
#[derive(Default)]
struct Published {
    tables: Option<Arc<Tables>>,
    flushed: MemtableId,
    failed: Option<LsmError>,
}

struct Shared {
    tree: AnyTree,
    counter: SequenceNumberCounter,
    options: TableOptions,
    slot: Mutex<Published>,
    news: AtomicBool,
    stop: AtomicBool,
    disk_full: AtomicBool,
    starved: AtomicBool,
    flushes: AtomicU64,
    compactions: AtomicU64,
    spare: Mutex<Vec<Memtable>>,
    rules: Arc<Mutex<Option<GcRules>>>,
    write_back: WriteBack,
    tell: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// Read-locked while table files are written, write-locked while unfinished ones are removed.
    writing: RwLock<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic aborts the process, so a mutex is never poisoned.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error means that a file is damaged, not that the system refused an operation. A file
/// that is missing, and one that is too short for an offset in it (`EINVAL`), is damaged, too: it
/// was written once.
fn is_damage(error: &TreeError) -> bool {
    let TreeError::Io(error) = error else {
        return true;
    };
    matches!(
        error.kind(),
        ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
    )
}

fn failed(folder: &Path, action: &'static str, error: &TreeError) -> LsmError {
    LsmError::Failed {
        folder: folder.display().to_string(),
        action,
        message: format!("{error:?}"),
        damaged: is_damage(error),
    }
}

impl Shared {
    /// Puts the tree's current tables into the slot. The slot is locked before the tree is read, so
    /// that a list is never replaced by an older one.
    fn publish(&self, flushed: Option<MemtableId>, error: Option<LsmError>) {
        {
            let mut slot = lock(&self.slot);
            slot.tables = Some(Arc::new(Tables::of(&self.tree)));
            slot.flushed = slot.flushed.max(flushed.unwrap_or_default());
            slot.failed = slot.failed.take().or(error);
        }
        self.news.store(true, Ordering::SeqCst);
        let tell = lock(&self.tell).clone();
        if let Some(tell) = tell {
            tell();
        }
    }

    /// The threshold for garbage collection by `lsm-tree`; see the module.
    fn threshold(&self) -> u64 {
        self.counter.get() + 1
    }

    fn rules(&self) -> Option<GcRules> {
        lock(&self.rules).clone()
    }

    fn flush(&self, memtable: &Memtable) -> Result<(), TreeError> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let rules = self.rules();
        let mut filter = VersionFilter::new(rules.as_ref());
        let mut write_back = self.write_back.clone();
        let rows = memtable
            .iter()
            .filter(|e| filter.keeps(e.key, e.version, e.value.is_some(), false))
            .map(|e| {
                let row = Slice::from(row::encode(e.version, e.value));
                let key = Slice::from(e.key);
                write_back.wrote(key.len() + row.len());
                Ok(InternalValue::from_components(
                    key,
                    row,
                    e.version.0,
                    ValueType::Value,
                ))
            });
        if let Some((tables, _)) = self.tree.flush_to_tables(rows)? {
            self.tree
                .register_tables(&tables, None, None, &[], self.threshold())?;
        }
        Ok(())
    }

    fn run_flusher(&self, jobs: &mpsc::Receiver<Job>, kick: &mpsc::Sender<Compaction>) {
        (self.options.on_start)("flush");
        for job in jobs {
            match job {
                Job::Flush(memtable) => {
                    if self.write("flush", || self.flush(&memtable)) {
                        self.flushes.fetch_add(1, Ordering::Relaxed);
                        self.publish(Some(memtable.id), None);
                        // Sending cannot fail: the compactor runs until all senders are dropped.
                        let _ = kick.send(Compaction::Levels);
                    }
                }
                Job::Discard(memtables, tables) => {
                    // If nothing else holds a table of the list, this unlinks its file.
                    drop(tables);
                    // A memtable that a reader still holds is not reused.
                    for mut memtable in memtables.into_iter().filter_map(Arc::into_inner) {
                        memtable.clear();
                        let mut spare = lock(&self.spare);
                        if spare.len() < SPARE_MEMTABLES {
                            spare.push(memtable);
                        }
                    }
                }
            }
        }
    }

    fn compact(&self, what: &Compaction) -> Result<bool, TreeError> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let before = self.tree.current_version().id();
        match what {
            Compaction::Levels => {
                let strategy =
                    lsm_tree::compaction::Leveled::default().with_table_target_size(TABLE_BYTES);
                self.tree.compact(Arc::new(strategy), self.threshold())?;
            }
            Compaction::All => {
                self.tree.major_compact(TABLE_BYTES, self.threshold())?;
            }
        }
        Ok(self.tree.current_version().id() != before)
    }

    fn run_compactor(&self, kicks: &mpsc::Receiver<Compaction>) {
        (self.options.on_start)("compact");
        for what in kicks {
            let mut changed = true;
            while changed && !self.stop.load(Ordering::SeqCst) {
                let done = self.write("compaction", || {
                    changed = self.compact(&what)?;
                    Ok(())
                });
                if !done {
                    break;
                }
                if changed {
                    self.compactions.fetch_add(1, Ordering::Relaxed);
                    self.publish(None, None);
                }
                if matches!(what, Compaction::All) {
                    break;
                }
            }
        }
    }
}

/// The tables of one shard on disk.
pub struct LsmTables {
    tables: Arc<Tables>,
    folder: Arc<Path>,
    cache: Arc<Cache>,
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    kick: Option<mpsc::Sender<Compaction>>,
    threads: Vec<JoinHandle<()>>,
}

impl LsmTables {
    /// Opens the tables in a folder, or creates an empty store there, and starts the background
    /// threads.
    ///
    /// # Errors
    /// The folder cannot be read or written, or a file in it is damaged.
    pub fn open(options: TableOptions) -> Result<LsmTables, LsmError> {
        let counter = SequenceNumberCounter::default();
        let rules = Arc::new(Mutex::new(None));
        let write_back = WriteBack::new(&options.folder, options.push_out);
        let gc = GcFactory::new(rules.clone(), write_back.clone());
        let cache = Arc::new(Cache::with_capacity_bytes(options.cache_bytes));
        let config = Config::new(
            &options.folder,
            counter.clone(),
            SequenceNumberCounter::default(),
        )
        .use_cache(cache.clone())
        .use_descriptor_table(None)
        .with_compaction_filter_factory(Some(Arc::new(gc)));
        // `lsm-tree` does not compare the checksum of its list of tables when it opens a folder.
        let checked = verify::verify(&options.folder).map_err(TreeError::Io);
        let tree = checked.and_then(|()| form::set(config).open());
        let tree = tree.map_err(|e| failed(&options.folder, "open", &e))?;
        let tables = Arc::new(Tables::of(&tree));
        let (jobs, job_queue) = mpsc::channel();
        let (kick, kicks) = mpsc::channel();
        let shared = Arc::new(Shared {
            tree,
            counter,
            slot: Mutex::default(),
            news: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            spare: Mutex::default(),
            rules,
            write_back,
            tell: Mutex::default(),
            writing: RwLock::default(),
            options,
        });
        let (flusher, compactor) = (shared.clone(), shared.clone());
        let flusher_kick = kick.clone();
        let thread = std::thread::Builder::new;
        let flusher = thread().spawn(move || flusher.run_flusher(&job_queue, &flusher_kick));
        let compactor = thread().spawn(move || compactor.run_compactor(&kicks));
        let threads = flusher.and_then(|flusher| Ok(vec![flusher, compactor?]));
        let threads =
            threads.map_err(|e| failed(&shared.options.folder, "start a thread", &e.into()))?;
        Ok(LsmTables {
            tables,
            folder: shared.options.folder.as_path().into(),
            cache,
            shared,
            jobs: Some(jobs),
            kick: Some(kick),
            threads,
        })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Sending cannot fail: the flusher runs until this sender is dropped.
            let _ = jobs.send(job);
        }
    }

    fn failed(&self, error: &TreeError) -> LsmError {
        failed(&self.shared.options.folder, "read", error)
    }
}

impl Drop for LsmTables {
    /// Stops the background threads after their current step. Memtables that are not in tables are
    /// lost, as in a crash.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.jobs = None;
        self.kick = None;
        for thread in self.threads.drain(..) {
            // Joining cannot fail: a panic would have aborted the process.
            let _ = thread.join();
        }
    }
}

type RangeIter = Box<dyn DoubleEndedIterator<Item = Result<InternalValue, TreeError>> + Send>;

/// Iterates over an interval of one run of tables. It opens a table when it reaches it.
pub struct RunIter {
    /// The list that keeps the tables' files.
    held: Arc<Tables>,
    folder: Arc<Path>,
    run: usize,
    /// Indexes of the tables between `front` and `back`, which are not open yet.
    left: VecDeque<usize>,
    bounds: (Bound<Slice>, Bound<Slice>),
    /// The open table before those in `left`.
    front: Option<RangeIter>,
    /// The open table after those in `left`.
    back: Option<RangeIter>,
}

impl RunIter {
    fn open(&self, table: usize) -> Option<RangeIter> {
        let table = self.held.runs.get(self.run)?.get(table)?;
        Some(Box::new(table.range(self.bounds.clone())))
    }

    fn row(&self, item: Result<InternalValue, TreeError>) -> Result<TableRow<Slice>, LsmError> {
        match item {
            Ok(item) => Ok(TableRow {
                version: Timestamp(item.key.seqno),
                key: item.key.user_key,
                row: item.value,
            }),
            Err(error) => Err(failed(&self.folder, "scan", &error)),
        }
    }
}

impl Iterator for RunIter {
    type Item = Result<TableRow<Slice>, LsmError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.front.as_mut().and_then(Iterator::next) {
                return Some(self.row(item));
            }
            let Some(table) = self.left.pop_front() else {
                let item = self.back.as_mut()?.next()?;
                return Some(self.row(item));
            };
            self.front = Some(self.open(table)?);
        }
    }
}

impl DoubleEndedIterator for RunIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = (self.back.as_mut()).and_then(DoubleEndedIterator::next_back) {
                return Some(self.row(item));
            }
            let Some(table) = self.left.pop_back() else {
                let item = self.front.as_mut()?.next_back()?;
                return Some(self.row(item));
            };
            self.back = Some(self.open(table)?);
        }
    }
}

/// The index of the first table in a run that ends at or after `key`.
fn first_at_or_after(run: &[Table], key: &[u8]) -> usize {
    run.partition_point(|table| table.metadata.key_range.max().as_ref() < key)
}

impl TableStore for LsmTables {
    type Slice = Slice;
    type Iter = RunIter;

    fn get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Option<Slice>, LsmError> {
        for run in &self.tables.runs {
            let table = run.get(first_at_or_after(run, key));
            let Some(table) = table.filter(|t| t.metadata.key_range.min().as_ref() <= key) else {
                continue;
            };
            // `lsm-tree` takes an exclusive upper bound.
            let found = table
                .get(key, at.0 + 1, hash)
                .map_err(|e| self.failed(&e))?;
            if let Some(found) = found {
                return Ok(Some(found.value));
            }
        }
        Ok(None)
    }

    fn runs(&self, bounds: Bounds<'_>) -> Vec<RunIter> {
        // Only the tables from `low` to `high` can have keys in the interval.
        let runs = self.tables.runs.iter().enumerate().filter_map(|(at, run)| {
            let low = match bounds.0 {
                Bound::Unbounded => 0,
                Bound::Included(start) | Bound::Excluded(start) => first_at_or_after(run, start),
            };
            let high = match bounds.1 {
                Bound::Unbounded => run.len(),
                Bound::Included(end) | Bound::Excluded(end) => {
                    run.partition_point(|table| table.metadata.key_range.min().as_ref() <= end)
                }
            };
            (low < high).then(|| RunIter {
                held: self.tables.clone(),
                folder: self.folder.clone(),
                run: at,
                left: (low..high).collect(),
                bounds: (bounds.0.map(Slice::from), bounds.1.map(Slice::from)),
                front: None,
                back: None,
            })
        });
        runs.collect()
    }

    fn fresh_memtable(&mut self) -> Memtable {
        let spare = self
            .shared
            .spare
            .try_lock()
            .ok()
            .and_then(|mut spare| spare.pop());
        spare.unwrap_or_else(|| Memtable::new(self.shared.options.memtable_bytes))
    }

    fn flush(&mut self, memtable: Arc<Memtable>) {
        self.send(Job::Flush(memtable));
    }

    fn poll(&mut self) -> Result<Option<MemtableId>, LsmError> {
        if !self.shared.news.load(Ordering::SeqCst) {
            return Ok(None);
        }
        // The background may wait for the disk while it holds the slot; the next poll tries again.
        let Ok(mut slot) = self.shared.slot.try_lock() else {
            return Ok(None);
        };
        self.shared.news.store(false, Ordering::SeqCst);
        if let Some(error) = slot.failed.take() {
            return Err(error);
        }
        let (tables, flushed) = (slot.tables.take(), slot.flushed);
        drop(slot);
        if let Some(tables) = tables {
            let old = std::mem::replace(&mut self.tables, tables);
            self.send(Job::Discard(Vec::new(), Some(old)));
        }
        Ok((flushed > MemtableId(0)).then_some(flushed))
    }

    fn recycle(&mut self, memtables: Vec<Arc<Memtable>>) {
        self.send(Job::Discard(memtables, None));
    }

    fn on_install(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        *lock(&self.shared.tell) = Some(call);
    }

    fn set_gc(&mut self, rules: GcRules) {
        *lock(&self.shared.rules) = Some(rules);
    }

    fn collect_garbage(&mut self) {
        if let Some(kick) = &self.kick {
            // Sending cannot fail: the compactor runs until all senders are dropped.
            let _ = kick.send(Compaction::All);
        }
    }

    fn stats(&self) -> TableStats {
        TableStats {
            tables: self.tables.count,
            level0_runs: self.tables.level0_runs,
            bytes: self.tables.bytes,
            flushes: self.shared.flushes.load(Ordering::Relaxed),
            compactions: self.shared.compactions.load(Ordering::Relaxed),
            disk_full: self.shared.disk_full.load(Ordering::SeqCst),
            starved: self.shared.starved.load(Ordering::SeqCst),
        }
    }

    fn block_cache(&self) -> MemoryUse {
        let metrics = self.shared.tree.metrics();
        MemoryUse {
            name: "block_cache",
            used: self.cache.size(),
            bound: self.cache.capacity(),
            hits: metrics.block_load_cached_count() as u64,
            misses: metrics.block_load_io_count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use lsm_tree::table::filter::standard_bloom::Builder as Bloom;

    use crate::lsm::keys::row_hash;

    #[test]
    fn the_hash_of_a_key_is_that_of_the_filters() {
        for len in [0, 1, 3, 16, 17, 200, 300, 5000] {
            let key = [len as u8; 5000];
            let key = key.get(..len).unwrap_or_default();
            assert_eq!(row_hash(key), Bloom::get_hash(key), "{len}");
        }
    }
}
