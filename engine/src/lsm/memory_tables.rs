//! Tables in memory, for the simulator: the crash rule of the real ones without files.
//!
//! A [`MemoryDisk`] outlives the store, as a disk outlives a process: what was installed last is
//! what a store opened on it later finds. Work is done in [`TableStore::poll`], one step at a
//! time, so that a crash may come between any two, and nothing depends on threads. Not for data:
//! every install copies the list of rows.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use crate::lsm::memtable::{Memtable, MemtableId};
use crate::lsm::version_gc::{GcRules, Judge};
use crate::lsm::{Bounds, LsmError, TableRow, TableStats, TableStore, row};
use crate::types::Timestamp;

/// With so many runs a compaction makes one of them.
const RUNS_BEFORE_COMPACTION: usize = 4;

type RunKey = (Bytes, Reverse<Timestamp>);
type Run = Arc<BTreeMap<RunKey, Bytes>>;

/// What there is on the simulated disk, and how it behaves.
#[derive(Default)]
pub struct MemoryDisk {
    /// Newest first.
    runs: RefCell<Vec<Run>>,
    /// No write has room.
    pub full: Cell<bool>,
    /// The next write fails.
    pub failing: Cell<bool>,
    /// A write has failed as asked.
    pub has_failed: Cell<bool>,
    /// Nothing is flushed meanwhile.
    pub stuck: Cell<bool>,
}

impl MemoryDisk {
    /// Copies the tables. The machine must be switched off.
    pub fn copy(&self) -> MemoryDisk {
        MemoryDisk {
            runs: self.runs.clone(),
            ..MemoryDisk::default()
        }
    }

    /// Everything is as on another disk. No store may be open on it.
    pub fn put_back(&self, other: &MemoryDisk) {
        self.runs.replace(other.runs.borrow().clone());
    }

    /// Changes rows behind the back of everybody, as a bad disk does: `change` is given each row's
    /// key and bytes. No store may be open on it.
    pub fn spoil(&self, mut change: impl FnMut(&[u8], &mut Vec<u8>)) {
        for run in self.runs.borrow_mut().iter_mut() {
            let rows = run.iter().map(|(key, row)| {
                let mut row = row.to_vec();
                change(&key.0, &mut row);
                (key.clone(), Bytes::from(row))
            });
            *run = Arc::new(rows.collect());
        }
    }
}

/// A store on a [`MemoryDisk`].
pub struct MemoryTables {
    disk: Rc<MemoryDisk>,
    runs: Vec<Run>,
    memtable_bytes: usize,
    jobs: VecDeque<Arc<Memtable>>,
    collect: bool,
    rules: Option<GcRules>,
    news: Option<Arc<dyn Fn() + Send + Sync>>,
    stats: TableStats,
}

impl MemoryTables {
    /// Opens what the disk has.
    pub fn open(disk: Rc<MemoryDisk>, memtable_bytes: usize) -> MemoryTables {
        let runs = disk.runs.borrow().clone();
        MemoryTables {
            runs,
            disk,
            memtable_bytes,
            jobs: VecDeque::new(),
            collect: false,
            rules: None,
            news: None,
            stats: TableStats::default(),
        }
    }

    fn tell(&self) {
        if let Some(news) = &self.news {
            news();
        }
    }

    /// Whether a write would succeed now.
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
        *self.disk.runs.borrow_mut() = runs.clone();
        self.stats.tables = runs.len();
        self.stats.level0_runs = runs.len();
        self.stats.bytes = runs
            .iter()
            .flat_map(|r| r.iter())
            .map(|((k, _), v)| (k.len() + v.len()) as u64)
            .sum();
        self.runs = runs;
    }

    fn compact(&mut self) {
        let mut judge = Judge::new(self.rules.as_ref());
        let mut all = BTreeMap::new();
        for run in &self.runs {
            all.extend(run.iter().map(|(key, row)| (key.clone(), row.clone())));
        }
        all.retain(|(key, Reverse(version)), bytes| {
            let is_value = row::decode(bytes).is_none_or(|row| row.value.is_some());
            judge.keeps(key, *version, is_value, true)
        });
        self.install(vec![Arc::new(all)]);
        self.stats.compactions += 1;
    }
}

/// What is left of an interval of one run.
pub struct RunIter {
    run: Run,
    front: Bound<RunKey>,
    back: Bound<RunKey>,
}

impl RunIter {
    /// The rows that are left.
    fn rows(&self) -> Option<btree_map::Range<'_, RunKey, Bytes>> {
        // A map refuses such bounds.
        let is_empty = match (&self.front, &self.back) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(front), Bound::Included(back)) => front > back,
            (
                Bound::Included(front) | Bound::Excluded(front),
                Bound::Included(back) | Bound::Excluded(back),
            ) => front >= back,
        };
        (!is_empty).then(|| self.run.range((self.front.as_ref(), self.back.as_ref())))
    }
}

fn table_row((key, row): (&RunKey, &Bytes)) -> TableRow<Bytes> {
    TableRow {
        key: key.0.clone(),
        version: key.1.0,
        row: row.clone(),
    }
}

impl Iterator for RunIter {
    type Item = Result<TableRow<Bytes>, LsmError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = table_row(self.rows()?.next()?);
        self.front = Bound::Excluded((row.key.clone(), Reverse(row.version)));
        Some(Ok(row))
    }
}

impl DoubleEndedIterator for RunIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        let row = table_row(self.rows()?.next_back()?);
        self.back = Bound::Excluded((row.key.clone(), Reverse(row.version)));
        Some(Ok(row))
    }
}

impl TableStore for MemoryTables {
    type Slice = Bytes;
    type Iter = RunIter;

    fn get(&self, key: &[u8], at: Timestamp) -> Result<Option<Bytes>, LsmError> {
        let from = (Bytes::copy_from_slice(key), Reverse(at));
        for run in &self.runs {
            if let Some((found, row)) = run.range(from.clone()..).next()
                && found.0 == key
            {
                return Ok(Some(row.clone()));
            }
        }
        Ok(None)
    }

    fn runs(&self, bounds: Bounds<'_>) -> Vec<RunIter> {
        // The newest version of a key comes first.
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
            run: run.clone(),
            front: front.clone(),
            back: back.clone(),
        });
        runs.collect()
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
        let Some(memtable) = self.jobs.pop_front() else {
            self.collect = false;
            self.compact();
            return Ok(None);
        };
        let rows = memtable.iter().map(|entry| {
            let key = (Bytes::copy_from_slice(entry.key), Reverse(entry.version));
            (key, Bytes::from(row::encode(entry.version, entry.value)))
        });
        let mut runs = vec![Arc::new(rows.collect())];
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
}
