//! The disk under [`MemoryTables`](super::MemoryTables): the runs that were installed, and its faults. Pure.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use crate::types::Timestamp;

/// The key of a row and its version.
pub(super) type RunKey = (Bytes, Reverse<Timestamp>);
/// The rows of a run.
pub(super) type Rows = Arc<BTreeMap<RunKey, Bytes>>;

/// A run as it lies on the disk.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) rows: Rows,
    /// A bit for each of its blocks that cannot be read.
    bad: Arc<AtomicU8>,
}

impl Stored {
    pub(super) fn new(rows: Rows) -> Stored {
        Stored {
            rows,
            bad: Arc::default(),
        }
    }

    pub(super) fn is_bad(&self, number: u64) -> bool {
        self.bad.load(Ordering::Relaxed) >> number & 1 == 1
    }

    pub(super) fn has_bad(&self) -> bool {
        self.bad.load(Ordering::Relaxed) != 0
    }
}

/// The content of a simulated disk, and its faults.
#[derive(Default)]
pub struct MemoryDisk {
    /// The installed runs, newest first.
    pub(super) runs: RefCell<Vec<Stored>>,
    /// The disk is full: flushes and compactions wait.
    pub full: Cell<bool>,
    /// Writes fail with an error.
    pub failing: Cell<bool>,
    /// A write has failed because of `failing`.
    pub has_failed: Cell<bool>,
    /// Flushes and compactions do nothing.
    pub stuck: Cell<bool>,
    /// Compactions fail, as they do if they meet a bad block that no read meets.
    pub compactions_fail: Cell<bool>,
    /// How many times a byte counts in the sizes that the tables tell; 0 counts as once.
    pub byte_counts: Cell<u64>,
}

impl MemoryDisk {
    /// Copies the tables to another disk. The simulated machine must be switched off.
    pub fn copy(&self) -> MemoryDisk {
        MemoryDisk {
            runs: self.runs.clone(),
            ..MemoryDisk::default()
        }
    }

    /// Replaces the tables with those of another disk. No store may be open on this one.
    pub fn put_back(&self, other: &MemoryDisk) {
        self.runs.replace(other.runs.borrow().clone());
    }

    /// Corrupts rows, as a bad disk does: `change` gets the key and the bytes of each row, and may
    /// change the bytes. No store may be open on this disk.
    pub fn spoil(&self, mut change: impl FnMut(&[u8], &mut Vec<u8>)) {
        for run in self.runs.borrow_mut().iter_mut() {
            let rows = run.rows.iter().map(|(key, row)| {
                let mut row = row.to_vec();
                change(&key.0, &mut row);
                (key.clone(), Bytes::from(row))
            });
            run.rows = Arc::new(rows.collect());
        }
    }

    /// Makes blocks of the present runs bad: `choose` gives a bit for each of the 8 blocks of a run.
    pub fn damage(&self, mut choose: impl FnMut() -> u8) {
        for run in self.runs.borrow().iter() {
            run.bad.fetch_or(choose(), Ordering::Relaxed);
        }
    }

    /// Makes all blocks readable again.
    pub fn mend(&self) {
        for run in self.runs.borrow().iter() {
            run.bad.store(0, Ordering::Relaxed);
        }
    }
}
