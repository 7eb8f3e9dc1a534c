//! What users do with a range at this replica: when they last wrote, and how often they read and write.
//! Plain cells of the shard's thread; others see copies in the shard's status.

use std::cell::Cell;

use crate::types::Timestamp;

/// What users did with a range.
pub struct Usage {
    /// When a user last wrote, to know whether old versions may exist.
    pub last_write: Cell<Timestamp>,
    reads: Cell<u64>,
    writes: Cell<u64>,
}

/// How busy a replica of a range is. Only a leader's has any work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeLoad {
    /// Keys that were read and pages of scans, since the replica is here.
    pub reads: u64,
    /// Writes that were taken to be proposed, since the replica is here.
    pub writes: u64,
    /// Writes that wait to be proposed.
    pub waiting: usize,
    /// Entries in flight.
    pub in_flight: usize,
}

impl Usage {
    /// No use yet; the last write may have been at this time.
    pub fn new(last_write: Timestamp) -> Usage {
        Usage {
            last_write: Cell::new(last_write),
            reads: Cell::new(0),
            writes: Cell::new(0),
        }
    }

    /// Counts the read of a key, or of a page of a scan.
    pub fn has_read(&self) {
        self.reads.set(self.reads.get().wrapping_add(1));
    }

    /// Counts a write.
    pub fn has_written(&self) {
        self.writes.set(self.writes.get().wrapping_add(1));
    }

    /// The numbers of reads and writes.
    pub fn counts(&self) -> (u64, u64) {
        (self.reads.get(), self.writes.get())
    }
}
