//! SSTables on disk, by the crate `lsm-tree`. Only this module and its submodules use that crate.
//!
//! `lsm-tree` is the engine inside fjall. It is used directly because fjall's journal would be a
//! second log, and because fjall assigns the sequence numbers itself. Here the sequence number is
//! the commit timestamp. The crate's version is pinned, because several functions that are called
//! here are not documented.
//!
//! Flushes and compactions run on two background threads of each shard, the flusher and the compactor. They
//! publish the list of tables in a slot, and the shard takes it from there in [`TableStore::poll`] with
//! `try_lock`. Reads use the shard's own list and never the tree, because the tree's lock is held over
//! fsyncs while a new version of the tree is installed. The flusher drops the lists and memtables that the
//! shard no longer needs: the last holder of a table unlinks its file, which takes too long for the shard's
//! thread. Point reads go through our own [`reader`], scans through a [`run_iter`]; `lsm-tree` itself reads
//! only the tables of a form that these two do not know. All of them share one open file for each table of
//! a published list, because a read must not open a file by a name that may be gone: `lsm-tree` takes the
//! descriptor from its descriptor table, which never evicts one.
//!
//! A flush kicks the compactor. Once nothing was flushed for a few seconds, it merges more runs of level 0 than
//! otherwise ([`levels`]): what is read after a load should not be looked for in each of them.
//!
//! Flushes and compactions pass the tree's own counter, a small number, plus one to `lsm-tree` as
//! the threshold for garbage collection. With a timestamp `lsm-tree` would drop versions that
//! readers need; with the counter itself it would keep files that were replaced.

mod background;
mod block_rows;
mod block_sizes;
mod failure;
mod fetcher;
mod form;
#[cfg(test)]
mod fuzz;
mod gc;
mod index;
mod interval;
mod levels;
mod list;
mod reader;
mod retry;
mod room;
mod run_iter;
mod table_iter;
mod table_reader;
#[cfg(test)]
mod test_fixture;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;

use lsm_tree::Error as TreeError;
use lsm_tree::compaction::filter;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, DescriptorTable, FormatVersion,
    GlobalTableId, InternalValue, SequenceNumberCounter, Slice, Table, ValueType, compaction,
    config, table,
};

use crate::lsm::memtable::{Memtable, MemtableId};
use crate::lsm::size::{Interval, Samples, Size};
use crate::lsm::version_gc::GcRules;
use crate::lsm::write_back::{PushOut, WriteBack};
use crate::lsm::{
    BlockReads, Bounds, Direction, Fetched, Lookup, LsmError, ScanStop, TableRow, TableStats,
    TableStore, verify,
};
use crate::memory::MemoryUse;
use crate::types::{ColdBlock, Timestamp};
use background::{BlockFetcher, Job};
use failure::failed;
use gc::GcFactory;
use list::Tables;
use reader::{Mode, Reader};
use retry::Compaction;
use room::Room;
pub use room::{FreeBytes, unbounded};
pub use run_iter::RunIter;
use table::DataBlock;
use table::block::BlockType;
pub use table_reader::{ReadFault, no_read_fault};

/// The format of the files that `lsm-tree` writes and reads.
pub const TABLE_FORMAT: u8 = FormatVersion::V3 as u8;
/// More than the tables that a shard can have open.
const DESCRIPTORS: usize = 1 << 24;

/// Options of a store.
#[derive(Clone)]
pub struct TableOptions {
    /// Folder of the tables; it is created if it is missing.
    pub folder: PathBuf,
    /// Size of a memtable in bytes.
    pub memtable_bytes: usize,
    /// Capacity of the block caches in bytes; see [`reader`].
    pub cache_bytes: u64,
    /// Called first on each background thread with the thread's name, to set up its name, its
    /// processors and its priority: "flush", "compact", and "fetch" for those that clients wait for.
    pub on_start: Arc<dyn Fn(&str) + Send + Sync>,
    /// Called on table files while they are written, to spread the disk's work over time.
    pub push_out: PushOut,
    /// Called before blocks of a table are read, for tests that let reads fail or take long;
    /// [`no_read_fault`] otherwise.
    pub read_fault: ReadFault,
    /// How much this shard may still write to the disk.
    pub free_bytes: FreeBytes,
}

/// The news of the background threads for the shard.
#[derive(Default)]
struct Published {
    /// The newest list.
    tables: Arc<Tables>,
    flushed: MemtableId,
    failed: Option<LsmError>,
}

/// What the background threads have done.
#[derive(Default)]
struct Counts {
    flushes: AtomicU64,
    compactions: AtomicU64,
    compactions_failed: AtomicU64,
}

/// What the tables lack at the moment.
#[derive(Default)]
struct Lacks {
    /// A flush or a compaction has found the disk full.
    disk_full: AtomicBool,
    /// The disk has less room than the rows in memory may need.
    room: AtomicBool,
    /// The process cannot get a file descriptor or memory.
    resources: AtomicBool,
}

struct Shared {
    tree: AnyTree,
    counter: SequenceNumberCounter,
    options: TableOptions,
    slot: Mutex<Published>,
    news: AtomicBool,
    stop: AtomicBool,
    lacks: Lacks,
    compaction_fails: AtomicBool,
    counts: Counts,
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

/// Checks the type of a block.
fn of_type(wanted: BlockType, block: table::Block) -> Result<table::Block, TreeError> {
    match block.header.block_type {
        found if found == wanted => Ok(block),
        found => Err(TreeError::InvalidTag(("BlockType", found.into()))),
    }
}

impl Shared {
    /// Opens the tree's new tables, and publishes the list of all.
    fn publish(&self, flushed: Option<MemtableId>) {
        if self.write("open tables", || self.put_tables(flushed)) {
            self.tell();
        }
    }

    /// Puts the tree's current tables into the slot. The slot is locked before the tree is read, so
    /// that a list is never replaced by an older one.
    fn put_tables(&self, flushed: Option<MemtableId>) -> Result<(), TreeError> {
        // While this is locked, no file of the tree is removed.
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let mut slot = lock(&self.slot);
        let tables = Tables::of(&self.tree, &slot.tables, self.options.read_fault)?;
        let tables = Arc::new(tables);
        let before = std::mem::replace(&mut slot.tables, tables);
        slot.flushed = slot.flushed.max(flushed.unwrap_or_default());
        drop(slot);
        // If nothing else holds a table of the list, this unlinks its file.
        drop(before);
        Ok(())
    }

    /// Reports an error to the shard.
    fn report(&self, error: LsmError) {
        let mut slot = lock(&self.slot);
        slot.failed = slot.failed.take().or(Some(error));
        drop(slot);
        self.tell();
    }

    /// Tells the shard that there is news.
    fn tell(&self) {
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
}

/// The tables of one shard on disk.
pub struct LsmTables {
    reader: Reader,
    /// The cache of `lsm-tree`.
    cache: Arc<Cache>,
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    kick: Option<mpsc::Sender<Compaction>>,
    threads: Vec<JoinHandle<()>>,
    fetcher: BlockFetcher,
    room: Room,
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
        let (cache_bytes, foreign_cache_bytes) = reader::split_budget(options.cache_bytes);
        let cache = Arc::new(Cache::with_capacity_bytes(foreign_cache_bytes));
        let config = Config::new(
            &options.folder,
            counter.clone(),
            SequenceNumberCounter::default(),
        )
        .use_cache(cache.clone())
        .use_descriptor_table(Some(Arc::new(DescriptorTable::new(DESCRIPTORS))))
        .with_compaction_filter_factory(Some(Arc::new(gc)));
        // `lsm-tree` does not compare the checksum of its list of tables when it opens a folder.
        let checked = verify::verify(&options.folder).map_err(TreeError::Io);
        let tree = checked.and_then(|()| form::set(config).open());
        let opened = tree.and_then(|tree| {
            let tables = Tables::of(&tree, &Tables::default(), options.read_fault)?;
            Ok((tables, tree))
        });
        let (tables, tree) = opened.map_err(|e| failed(&options.folder, "open", &e))?;
        let tables = Arc::new(tables);
        let published = Published {
            tables: tables.clone(),
            ..Published::default()
        };
        let (jobs, job_queue) = mpsc::channel();
        let (kick, kicks) = mpsc::channel();
        let shared = Arc::new(Shared {
            tree,
            counter,
            slot: Mutex::new(published),
            news: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            lacks: Lacks::default(),
            compaction_fails: AtomicBool::new(false),
            counts: Counts::default(),
            spare: Mutex::default(),
            rules,
            write_back,
            tell: Mutex::default(),
            writing: RwLock::default(),
            options,
        });
        let started = background::start(&shared, job_queue, kick.clone(), kicks)
            .and_then(|threads| Ok((threads, background::start_fetcher(&shared.options)?)));
        let (threads, fetcher) =
            started.map_err(|e| failed(&shared.options.folder, "start a thread", &e.into()))?;
        Ok(LsmTables {
            reader: Reader::new(tables, cache_bytes),
            cache,
            shared,
            jobs: Some(jobs),
            kick: Some(kick),
            threads,
            fetcher,
            room: Room::new(),
        })
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Sending cannot fail: the flusher runs until this sender is dropped.
            let _ = jobs.send(job);
        }
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

impl TableStore for LsmTables {
    type Slice = Slice;
    type Block = DataBlock;
    type Iter = RunIter;

    fn get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Option<Slice>, LsmError> {
        match self.reader.get(key, hash, at, Mode::Wait)? {
            Lookup::Found(found) => Ok(found),
            Lookup::Cold(_) => unreachable!("this mode waits"),
        }
    }

    fn try_get(&self, key: &[u8], hash: u64, at: Timestamp) -> Result<Lookup<Slice>, LsmError> {
        self.reader.get(key, hash, at, Mode::NoWait)
    }

    fn fetch(&self, blocks: &[ColdBlock]) {
        if let Some(first) = blocks.first() {
            let table = self.reader.table_of(*first);
            self.fetcher.fetch(table, blocks.to_vec());
        }
    }

    fn fetched(&mut self) -> Vec<Fetched<DataBlock>> {
        self.fetcher.fetched().collect()
    }

    fn cache(&self, block: ColdBlock, content: DataBlock) {
        self.reader.insert(block, content);
    }

    fn on_fetched(&mut self, call: Arc<dyn Fn() + Send + Sync>) {
        self.fetcher.on_fetched(call);
    }

    fn runs(&self, bounds: Bounds<'_>, direction: Direction) -> Vec<RunIter> {
        run_iter::runs(&self.reader.tables, bounds, direction)
    }

    fn next(
        run: &mut RunIter,
        reads: BlockReads<'_, LsmTables, DataBlock>,
    ) -> Result<Option<TableRow<Slice>>, ScanStop> {
        let row = run.next(reads.of(|shard| &shard.reader))?;
        Ok(row.map(|row| TableRow {
            version: Timestamp(row.key.seqno),
            key: row.key.user_key,
            row: row.value,
        }))
    }

    fn size_of(&self, interval: Interval<'_>) -> Size {
        self.reader.tables.size_of(interval)
    }

    fn sample(&self, samples: &mut Samples<'_>) {
        self.reader.tables.sample(samples);
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
        self.room.frozen(&memtable, &self.shared);
        self.send(Job::Flush(memtable));
    }

    fn poll(&mut self) -> Result<Option<MemtableId>, LsmError> {
        self.room.look(&self.shared);
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
        let (tables, flushed) = (slot.tables.clone(), slot.flushed);
        drop(slot);
        self.room.flushed(flushed);
        if let Some(old) = self.reader.set_tables(tables) {
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
        let tables = &self.reader.tables;
        TableStats {
            tables: tables.count,
            level0_runs: tables.level0_runs,
            bytes: tables.bytes,
            compaction_pending_bytes: tables.compaction_pending_bytes,
            flushes: self.shared.counts.flushes.load(Ordering::Relaxed),
            compactions: self.shared.counts.compactions.load(Ordering::Relaxed),
            compactions_failed: self
                .shared
                .counts
                .compactions_failed
                .load(Ordering::Relaxed),
            compaction_fails: self.shared.compaction_fails.load(Ordering::SeqCst),
            disk_full: self.shared.lacks.disk_full.load(Ordering::SeqCst)
                || self.shared.lacks.room.load(Ordering::SeqCst),
            starved: self.shared.lacks.resources.load(Ordering::SeqCst),
        }
    }

    fn is_short_of_room(&self) -> bool {
        self.room.is_short() || self.shared.lacks.disk_full.load(Ordering::SeqCst)
    }

    fn block_cache(&self) -> MemoryUse {
        let [used, budget, hits, misses] = self.reader.cache_use();
        let foreign = self.shared.tree.metrics();
        MemoryUse {
            name: "block_cache",
            used: used + self.cache.size(),
            bound: budget + self.cache.capacity(),
            hits: hits + foreign.block_load_cached_count() as u64,
            misses: misses + foreign.block_load_io_count() as u64,
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
