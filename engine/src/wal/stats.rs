//! Statistics of the log: its durable writes, its contents, and its space on disk.

use std::io;

use hdrhistogram::Histogram;

use crate::env::{Disk, Env};
use crate::limits::{ENTRY_LEN_MAX, WAL_BATCH_LEN_MAX};
use crate::wal::{Group, LogId, LogState, Space, Wal, WalStats};

/// Counts since the start.
pub struct Counters {
    writes: u64,
    bytes: u64,
    records: u64,
    write_micros: Histogram<u64>,
    batch_records: Histogram<u64>,
    batch_bytes: Histogram<u64>,
}

/// Most microseconds of a write in the histogram, a minute; longer ones count as this.
const MICROS_MAX: u64 = 60_000_000;
/// Most records of a write in the histogram; more count as this.
const RECORDS_MAX: u64 = 1 << 20;

fn histogram(max: u64) -> Histogram<u64> {
    Histogram::new_with_max(max, 2).expect("these bounds are allowed")
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            writes: 0,
            bytes: 0,
            records: 0,
            write_micros: histogram(MICROS_MAX),
            batch_records: histogram(RECORDS_MAX),
            batch_bytes: histogram(WAL_BATCH_LEN_MAX as u64 * 2),
        }
    }
}

impl Counters {
    /// Counts one durable write of `len` bytes, padding included.
    pub fn count(&mut self, micros: u64, records: u64, len: usize) {
        self.writes += 1;
        self.bytes += len as u64;
        self.records += records;
        self.write_micros.saturating_record(micros.max(1));
        self.batch_records.saturating_record(records.max(1));
        self.batch_bytes.saturating_record(len as u64);
    }

    /// The counters; the caller fills in the sizes.
    pub fn stats(&self) -> WalStats {
        WalStats {
            writes: self.writes,
            bytes: self.bytes,
            records: self.records,
            pending_bytes: 0,
            segments: 0,
            live_bytes: 0,
            cached_bytes: 0,
            write_micros: self.write_micros.clone(),
            batch_records: self.batch_records.clone(),
            batch_bytes: self.batch_bytes.clone(),
        }
    }
}

impl<E: Env> Wal<E> {
    /// Most bytes of an entry, except for an entry of a single write: several of them fit into a
    /// segment.
    pub fn entry_len_max(&self) -> usize {
        ENTRY_LEN_MAX.min(self.core.options.segment_bytes as usize / 16)
    }

    /// The state of every group's log, and the ids of its entries.
    pub fn contents(&self) -> Vec<(Group, LogState, Vec<LogId>)> {
        let logs = self.core.logs.borrow();
        let contents = logs.iter().map(|(group, log)| {
            let log = log.borrow();
            (*group, log.state(), log.ids().collect())
        });
        contents.collect()
    }

    /// How many bytes the log's disk still has room for.
    ///
    /// # Errors
    /// The disk cannot tell.
    pub async fn free_bytes(&self) -> io::Result<u64> {
        self.core.disk.free_bytes().await
    }

    /// The space that the log takes on its disk.
    pub fn space(&self) -> Space {
        let segments = self.core.segments.borrow();
        Space {
            segments: segments.len(),
            segment_bytes: self.core.options.segment_bytes,
            live_bytes: segments.live_bytes(),
        }
    }

    /// The counters and sizes of the log.
    pub fn stats(&self) -> WalStats {
        let cached = self
            .core
            .logs
            .borrow()
            .values()
            .map(|log| log.borrow().cached_bytes())
            .sum();
        let mut stats = self.core.counters.borrow().stats();
        stats.pending_bytes = self.core.pending_bytes.get();
        {
            let segments = self.core.segments.borrow();
            stats.segments = segments.len();
            stats.live_bytes = segments.live_bytes();
        }
        stats.cached_bytes = cached;
        stats
    }
}
