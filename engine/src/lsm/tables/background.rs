//! The background threads of a shard's tables: the flusher, the compactor, and those that fetch
//! blocks. What they publish is described in [`super`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::failure::unreadable;
use super::fetcher::Fetcher;
use super::levels::{TABLE_BYTES, strategy};
use super::list::Tables;
use super::retry::{Compaction, Retries};
use super::table::DataBlock;
use super::table_reader::TableReader;
use super::{AbstractTree, InternalValue, Shared, Slice, TableOptions, TreeError, ValueType, lock};
use crate::lsm::memtable::Memtable;
use crate::lsm::version_gc::VersionFilter;
use crate::lsm::{FROZEN_MAX, Fetched, row};
use crate::types::ColdBlock;

/// Cleared memtables that are kept for reuse, with their pages: as many as may be frozen at once,
/// and two more.
const SPARE_MEMTABLES: usize = FROZEN_MAX + 2;

/// A store is idle when it was opened, or when the compactions behind the last flush have ended, so long ago.
const IDLE_AFTER: Duration = Duration::from_secs(5);

/// Reads blocks from a table, or none if the table has left the list by then.
pub(super) type BlockFetcher = Fetcher<Option<Arc<TableReader>>, DataBlock>;

/// What the flusher has to do.
pub(super) enum Job {
    /// Flushes a memtable.
    Flush(Arc<Memtable>),
    /// Drops memtables and a list of tables that the shard no longer needs.
    Discard(Vec<Arc<Memtable>>, Option<Arc<Tables>>),
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
    let read = |table: &Option<Arc<TableReader>>, blocks: &[ColdBlock]| {
        let Some(table) = table else {
            let gone = blocks.iter().map(|block| (*block, Ok(None)));
            return gone.collect::<Vec<Fetched<DataBlock>>>();
        };
        let contents = table.read_blocks(blocks).into_iter();
        let contents = contents.map(|content| {
            let content = content.map_err(|error| unreadable(&table.table, &error));
            content.map(Some)
        });
        blocks.iter().copied().zip(contents).collect()
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
                        self.counts.flushes.fetch_add(1, Ordering::Relaxed);
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

    fn compact(&self, what: Compaction) -> Result<bool, TreeError> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let before = self.tree.current_version().id();
        match what {
            Compaction::Levels | Compaction::Idle => {
                let strategy = strategy(what == Compaction::Idle);
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
        let mut retries = Retries::default();
        let mut idle_at = Some(Instant::now() + IDLE_AFTER);
        while let Some(what) = next_compaction(kicks, &retries, &mut idle_at) {
            let compacted = self.compact_on(what);
            if what == Compaction::Levels {
                idle_at = Some(Instant::now() + IDLE_AFTER);
            }
            let pause = retries.ended(what, compacted.is_err());
            let fails = retries.holds_back(Compaction::Levels);
            self.compaction_fails.store(fails, Ordering::SeqCst);
            let Some(pause) = pause else {
                continue;
            };
            self.counts
                .compactions_failed
                .fetch_add(1, Ordering::Relaxed);
            if let Err(error) = compacted {
                tracing::error!(
                    event = "compaction_failed",
                    folder = %self.options.folder.display(),
                    error = ?error,
                    "a compaction has failed, and has changed nothing: it is tried again in {} s. If a \
                     table file cannot be read or is damaged, that goes on until the node has another \
                     disk: replace the node, and its replicas are made anew from those of other nodes",
                    pause.as_secs()
                );
            }
        }
    }

    /// Compacts, until there is nothing more to do of this kind.
    ///
    /// # Errors
    /// A compaction has failed, and is to be tried again.
    fn compact_on(&self, what: Compaction) -> Result<(), TreeError> {
        while !self.stop.load(Ordering::SeqCst) && self.write_compacted(|| self.compact(what))? {
            self.counts.compactions.fetch_add(1, Ordering::Relaxed);
            self.publish(None);
            if what == Compaction::All {
                break;
            }
        }
        Ok(())
    }
}

/// Waits for the next compaction: one that is asked for, one that has failed and is due again, or at `idle_at` the
/// one of an idle store. What has failed is not tried before it is due, however often it is asked for. `None`: the
/// store is closed.
fn next_compaction(
    kicks: &mpsc::Receiver<Compaction>,
    retries: &Retries,
    idle_at: &mut Option<Instant>,
) -> Option<Compaction> {
    loop {
        let idle = idle_at.map(|at| (at, Compaction::Idle));
        let due = retries.next().into_iter().chain(idle);
        let asked = match due.min_by_key(|(at, _)| *at) {
            None => kicks.recv().ok()?,
            Some((at, due)) => {
                let left = at.saturating_duration_since(Instant::now());
                match kicks.recv_timeout(left) {
                    Ok(asked) => asked,
                    Err(RecvTimeoutError::Timeout) if due == Compaction::Idle => {
                        *idle_at = None;
                        due
                    }
                    Err(RecvTimeoutError::Timeout) => return Some(due),
                    Err(RecvTimeoutError::Disconnected) => return None,
                }
            }
        };
        if !retries.holds_back(asked) {
            return Some(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_store_is_compacted_once_and_not_while_compactions_fail() {
        let (kick, kicks) = mpsc::channel();
        let mut retries = Retries::default();
        let mut idle_at = Some(Instant::now());
        let next = next_compaction(&kicks, &retries, &mut idle_at);
        assert_eq!((next, idle_at), (Some(Compaction::Idle), None));

        idle_at = Some(Instant::now() + IDLE_AFTER);
        kick.send(Compaction::Levels).expect("it is received");
        let next = next_compaction(&kicks, &retries, &mut idle_at);
        assert_eq!(
            next,
            Some(Compaction::Levels),
            "what is asked for does not wait"
        );
        assert!(idle_at.is_some());

        idle_at = Some(Instant::now());
        retries.ended(Compaction::Idle, true);
        let next = next_compaction(&kicks, &retries, &mut idle_at);
        assert_eq!(next, Some(Compaction::Levels), "the one that has failed");
        assert_eq!(idle_at, None);
    }
}
