//! The background threads of a shard's tables: the flusher, the compactor, and those that fetch
//! blocks. What they publish is described in [`super`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::JoinHandle;

use super::compaction::Leveled;
use super::failure::failed;
use super::fetcher::Fetcher;
use super::levels::TABLE_BYTES;
use super::list::Tables;
use super::table::DataBlock;
use super::table_reader::TableReader;
use super::{AbstractTree, InternalValue, Shared, Slice, TableOptions, TreeError, ValueType, lock};
use crate::lsm::memtable::Memtable;
use crate::lsm::version_gc::VersionFilter;
use crate::lsm::{FROZEN_MAX, row};

/// Cleared memtables that are kept for reuse, with their pages: as many as may be frozen at once,
/// and two more.
const SPARE_MEMTABLES: usize = FROZEN_MAX + 2;

/// Reads blocks from a table, or none if the table has left the list by then.
pub(super) type BlockFetcher = Fetcher<Option<Arc<TableReader>>, Option<DataBlock>>;

/// What the flusher has to do.
pub(super) enum Job {
    /// Flushes a memtable.
    Flush(Arc<Memtable>),
    /// Drops memtables and a list of tables that the shard no longer needs.
    Discard(Vec<Arc<Memtable>>, Option<Arc<Tables>>),
}

/// What the compactor has to do.
pub(super) enum Compaction {
    /// The compactions that the leveled strategy chooses, until it chooses none.
    Levels,
    /// One compaction of all tables.
    All,
}

/// Starts the flusher, which also kicks the compactor, and the compactor.
///
/// # Errors
/// A thread cannot be started.
pub(super) fn start(
    shared: &Arc<Shared>,
    jobs: mpsc::Receiver<Job>,
    kick: mpsc::Sender<Compaction>,
    kicks: mpsc::Receiver<Compaction>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let (flusher, compactor) = (shared.clone(), shared.clone());
    let thread = std::thread::Builder::new;
    let flusher = thread().spawn(move || flusher.run_flusher(&jobs, &kick))?;
    let compactor = thread().spawn(move || compactor.run_compactor(&kicks))?;
    Ok(vec![flusher, compactor])
}

/// Starts the threads that fetch blocks.
///
/// # Errors
/// A thread cannot be started.
pub(super) fn start_fetcher(options: &TableOptions) -> io::Result<BlockFetcher> {
    let folder = options.folder.clone();
    let read = move |table: &Option<Arc<TableReader>>, block| {
        let block = table.as_ref().map(|table| table.read_block(block));
        (block.transpose()).map_err(|error| failed(&folder, "read", &error))
    };
    Fetcher::start(&options.on_start, Arc::new(read))
}

impl Shared {
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
                        self.publish(Some(memtable.id));
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
                let strategy = Leveled::default().with_table_target_size(TABLE_BYTES);
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
                    self.publish(None);
                }
                if matches!(what, Compaction::All) {
                    break;
                }
            }
        }
    }
}
