//! Metrics of the log, of memory, and of tables and their caches.

use rangedb_engine::memory::MemoryUse;
use rangedb_engine::range::usage::RangeLoad;

use super::{Buckets, Metric, Source, counter, counter_by, gauge, gauge_by, histogram};
use crate::probe::ShardReport;

const WRITES: Buckets = Buckets {
    bounds: &[
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
    ],
    scale: 1e-6,
};
const RECORDS: Buckets = Buckets {
    bounds: &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0],
    scale: 1.0,
};
const BYTES: Buckets = Buckets {
    bounds: &[4096.0, 32_768.0, 131_072.0, 1_048_576.0, 8_388_608.0],
    scale: 1.0,
};

/// Of the log.
pub(super) const LOG: &[Metric] = &[
    histogram(
        "rangedb_wal_write_duration_seconds",
        WRITES,
        "Duration of a durable write of the log.",
        Source::ShardSpread(|report| report.status.wal.write_micros.clone()),
    ),
    histogram(
        "rangedb_wal_write_records",
        RECORDS,
        "Records of a durable write of the log.",
        Source::ShardSpread(|report| report.status.wal.batch_records.clone()),
    ),
    histogram(
        "rangedb_wal_write_bytes",
        BYTES,
        "Bytes of a durable write of the log.",
        Source::ShardSpread(|report| report.status.wal.batch_bytes.clone()),
    ),
    counter(
        "rangedb_wal_writes_total",
        "Durable writes of the log.",
        Source::Shard(|report| report.status.wal.writes as f64),
    ),
    counter(
        "rangedb_wal_records_total",
        "Records written to the log.",
        Source::Shard(|report| report.status.wal.records as f64),
    ),
    counter(
        "rangedb_wal_bytes_total",
        "Bytes written to the log.",
        Source::Shard(|report| report.status.wal.bytes as f64),
    ),
    gauge(
        "rangedb_wal_pending_bytes",
        "Log bytes that wait for a write.",
        Source::Shard(|report| report.status.wal.pending_bytes as f64),
    ),
    gauge(
        "rangedb_wal_segments",
        "Log segments in use.",
        Source::Shard(|report| report.status.wal.segments as f64),
    ),
    gauge(
        "rangedb_wal_live_bytes",
        "Log entries that are not purged.",
        Source::Shard(|report| report.status.wal.live_bytes as f64),
    ),
    gauge(
        "rangedb_wal_pinned_bytes",
        "Log kept for replicas that install a snapshot.",
        Source::Shard(|report| report.status.pinned_bytes as f64),
    ),
    gauge(
        "rangedb_replay_bytes",
        "Log bytes that a start would apply again.",
        Source::Shard(|report| report.status.replay_bytes as f64),
    ),
    gauge(
        "rangedb_disk_full",
        "1 while writes are refused because the disk is full.",
        Source::Shard(|report| f64::from(u8::from(report.status.disk_full))),
    ),
    gauge(
        "rangedb_tables_stuck",
        "1 while writes are refused because compactions fail and level 0 of the tables is full.",
        Source::Shard(|report| f64::from(u8::from(report.status.lsm.stuck))),
    ),
    gauge(
        "rangedb_files_starved",
        "1 while the log or tables wait for file descriptors or memory.",
        Source::Shard(|report| f64::from(u8::from(report.status.starved))),
    ),
    gauge(
        "rangedb_slow_disk",
        "1 while the shard accepts no leadership, because its disk was slow within the last minute.",
        Source::Shard(|report| f64::from(u8::from(report.status.slow_disk.stays_away))),
    ),
    counter(
        "rangedb_slow_disk_transfers_total",
        "Leaderships that the shard handed over because its disk was slow.",
        Source::Shard(|report| report.status.slow_disk.handed_over as f64),
    ),
];

/// Of memory, tables and caches.
pub(super) const TABLES: &[Metric] = &[
    gauge(
        "rangedb_range_bytes",
        "About how many bytes the newest versions of all keys have, in the ranges that the shard leads: \
         before compression, and at most.",
        Source::Shard(|report| of_led(report, |load| load.size.live_bytes)),
    ),
    gauge(
        "rangedb_range_read_bytes_per_second",
        "Bytes of keys and values that are read a second in the ranges that the shard leads, over about 10 s.",
        Source::Shard(|report| of_led(report, |load| load.read_bytes_per_second)),
    ),
    gauge(
        "rangedb_range_written_bytes_per_second",
        "Bytes of keys and values that are written a second in the ranges that the shard leads, over about 10 s.",
        Source::Shard(|report| of_led(report, |load| load.written_bytes_per_second)),
    ),
    gauge_by(
        "rangedb_memory_used_bytes",
        &["budget"],
        "Memory in use, by what it is for.",
        Source::ShardBy(|report, samples| {
            for memory in &report.status.memory {
                samples.value(&[memory.name], memory.used as f64);
            }
        }),
    ),
    gauge_by(
        "rangedb_memory_bound_bytes",
        &["budget"],
        "The most memory that may be in use, by what it is for.",
        Source::ShardBy(|report, samples| {
            for memory in &report.status.memory {
                samples.value(&[memory.name], memory.bound as f64);
            }
        }),
    ),
    counter_by(
        "rangedb_cache_hits_total",
        &["cache"],
        "Lookups that a cache answered.",
        Source::ShardBy(|report, samples| {
            for cache in caches(report) {
                samples.value(&[cache.name], cache.hits as f64);
            }
        }),
    ),
    counter_by(
        "rangedb_cache_misses_total",
        &["cache"],
        "Lookups that a cache did not answer.",
        Source::ShardBy(|report, samples| {
            for cache in caches(report) {
                samples.value(&[cache.name], cache.misses as f64);
            }
        }),
    ),
    counter(
        "rangedb_row_cache_evictions_total",
        "Rows that the row cache has evicted.",
        Source::Shard(|report| report.status.lsm.row_evictions as f64),
    ),
    gauge(
        "rangedb_memtables_frozen",
        "Memtables that wait to be flushed.",
        Source::Shard(|report| report.status.lsm.frozen as f64),
    ),
    gauge(
        "rangedb_write_pressure_ratio",
        "How far flushes and compactions are behind: from 0, not at all, to 1, when writes wait.",
        Source::Shard(|report| f64::from(report.status.pressure)),
    ),
    gauge(
        "rangedb_tables",
        "Tables on disk.",
        Source::Shard(|report| report.status.lsm.tables.tables as f64),
    ),
    gauge(
        "rangedb_table_bytes",
        "Bytes of tables on disk.",
        Source::Shard(|report| report.status.lsm.tables.bytes as f64),
    ),
    gauge(
        "rangedb_level0_runs",
        "Runs of tables in level 0.",
        Source::Shard(|report| report.status.lsm.tables.level0_runs as f64),
    ),
    gauge(
        "rangedb_compaction_pending_bytes",
        "Bytes of tables that compactions have yet to move to a lower level.",
        Source::Shard(|report| report.status.lsm.tables.compaction_pending_bytes as f64),
    ),
    counter(
        "rangedb_flushes_total",
        "Memtables flushed.",
        Source::Shard(|report| report.status.lsm.tables.flushes as f64),
    ),
    counter(
        "rangedb_compactions_total",
        "Compactions that changed something.",
        Source::Shard(|report| report.status.lsm.tables.compactions as f64),
    ),
    counter(
        "rangedb_compactions_failed_total",
        "Compactions that have failed and are tried again.",
        Source::Shard(|report| report.status.lsm.tables.compactions_failed as f64),
    ),
];

/// The budgets of memory that are caches.
const CACHES: [&str; 3] = ["row_cache", "block_cache", "log_entries"];

/// A figure of all ranges that a shard leads, added up.
fn of_led(report: &ShardReport, of: impl Fn(&RangeLoad) -> u64) -> f64 {
    let led = report.status.ranges.iter().filter(|range| range.leads);
    led.map(|range| of(&range.load) as f64).sum()
}

fn caches(report: &ShardReport) -> impl Iterator<Item = &MemoryUse> {
    let budgets = report.status.memory.iter();
    budgets.filter(|memory| CACHES.contains(&memory.name))
}
