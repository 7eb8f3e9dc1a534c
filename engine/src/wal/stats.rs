//! Statistics of the log: its durable writes, and its entries in memory.

use hdrhistogram::Histogram;

use crate::limits::WAL_BATCH_LEN_MAX;
use crate::memory::MemoryUse;
use crate::wal::WalStats;

/// Counts since the start.
pub struct Counters {
    writes: u64,
    bytes: u64,
    records: u64,
    hits: u64,
    misses: u64,
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
            hits: 0,
            misses: 0,
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

    /// Counts entries that were read and found in memory.
    pub fn found(&mut self, entries: usize) {
        self.hits += entries as u64;
    }

    /// Counts entries that had to be read from the disk.
    pub fn missed(&mut self, entries: usize) {
        self.misses += entries as u64;
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
            cache: MemoryUse {
                name: "log_entries",
                hits: self.hits,
                misses: self.misses,
                ..MemoryUse::default()
            },
            write_micros: self.write_micros.clone(),
            batch_records: self.batch_records.clone(),
            batch_bytes: self.batch_bytes.clone(),
        }
    }
}
