//! Statistics of the log: its durable writes, and its entries in memory.

use crate::distribution::Distribution;
use crate::limits::WAL_BATCH_LEN_MAX;
use crate::memory::MemoryUse;
use crate::wal::WalStats;

/// Counts since the start.
pub struct Counters {
    hits: u64,
    misses: u64,
    write_micros: Distribution,
    batch_records: Distribution,
    batch_bytes: Distribution,
}

/// Most microseconds of a write in the histogram, a minute; longer ones count as this.
const MICROS_MAX: u64 = 60_000_000;
/// Most records of a write in the histogram; more count as this.
const RECORDS_MAX: u64 = 1 << 20;

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            hits: 0,
            misses: 0,
            write_micros: Distribution::new(MICROS_MAX),
            batch_records: Distribution::new(RECORDS_MAX),
            batch_bytes: Distribution::new(WAL_BATCH_LEN_MAX as u64 * 2),
        }
    }
}

impl Counters {
    /// Counts one durable write of `len` bytes, padding included.
    pub fn count(&mut self, micros: u64, records: u64, len: usize) {
        self.write_micros.record(micros);
        self.batch_records.record(records);
        self.batch_bytes.record(len as u64);
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
            writes: self.write_micros.count(),
            bytes: self.batch_bytes.sum(),
            records: self.batch_records.sum(),
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
