//! Tables in memory, for the simulator: the crash rule of the real ones without files.
//!
//! A [`MemoryDisk`] outlives the store, as a disk outlives a process: what was installed last is
//! what a store opened on it later finds. Work is done in [`TableStore::poll`], one step at a
//! time, so that a crash may come between any two, and nothing depends on threads. Not for data:
//! every install copies the list of rows.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
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

type Run = Arc<BTreeMap<(Bytes, Reverse<Timestamp>), Bytes>>;

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

/// An interval of one run.
pub struct RunIter {
    run: Run,
    next: Option<(Bytes, Reverse<Timestamp>)>,
    end: Bound<Bytes>,
}

impl Iterator for RunIter {
    type Item = Result<TableRow<Bytes>, LsmError>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        let mut rows = self.run.range(from..);
        let (key, bytes) = rows.next()?;
        let inside = match &self.end {
            Bound::Unbounded => true,
            Bound::Included(end) => key.0 <= *end,
            Bound::Excluded(end) => key.0 < *end,
        };
        if !inside {
            return None;
        }
        self.next = rows.next().map(|(key, _)| key.clone());
        Some(Ok(TableRow {
            key: key.0.clone(),
            version: key.1.0,
            row: bytes.clone(),
        }))
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
        let start = match bounds.0 {
            Bound::Unbounded => Bytes::new(),
            Bound::Included(start) => Bytes::copy_from_slice(start),
            Bound::Excluded(start) => [start, &[0]].concat().into(),
        };
        let runs = self.runs.iter().map(|run| RunIter {
            run: run.clone(),
            next: Some((start.clone(), Reverse(Timestamp::MAX))),
            end: bounds.1.map(Bytes::copy_from_slice),
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
