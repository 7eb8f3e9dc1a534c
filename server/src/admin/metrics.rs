//! The page of metrics, in Prometheus' text format. Units are seconds and bytes.

use std::fmt::Write;

use hdrhistogram::Histogram;
use rangedb_engine::memory::MemoryUse;
use rangedb_engine::shard::{Availability, RangeStatus};

use super::Serving;
use crate::logging;
use crate::probe::ShardReport;

/// Upper bounds of a latency histogram's buckets, in seconds.
const LATENCY_BOUNDS: [f64; 16] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 1.0, 5.0,
];
/// Upper bounds of the buckets of records of one durable write.
const RECORDS_BOUNDS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0, 4096.0];
/// Upper bounds of the buckets of bytes of one durable write.
const BYTES_BOUNDS: [f64; 6] = [
    4096.0,
    8192.0,
    32_768.0,
    131_072.0,
    1_048_576.0,
    8_388_608.0,
];

struct Exposition(String);

impl Exposition {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    /// Writes a histogram. `unit` is the recorded unit in terms of the shown one.
    fn histogram(
        &mut self,
        name: &str,
        labels: &str,
        bounds: &[f64],
        unit: f64,
        recorded: &Histogram<u64>,
    ) {
        let mut values = recorded.iter_recorded().peekable();
        let (mut count, mut sum) = (0, 0.0);
        for bound in bounds {
            while let Some(value) =
                values.next_if(|v| v.value_iterated_to() as f64 * unit <= *bound)
            {
                count += value.count_at_value();
                sum += value.value_iterated_to() as f64 * unit * value.count_at_value() as f64;
            }
            let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
        }
        for value in values {
            count += value.count_at_value();
            sum += value.value_iterated_to() as f64 * unit * value.count_at_value() as f64;
        }
        let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(
            self.0,
            "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
        );
    }
}

/// A number of a shard: its name, kind and help text, and where it comes from.
type Number = (
    &'static str,
    &'static str,
    &'static str,
    fn(&ShardReport) -> f64,
);

const NUMBERS: &[Number] = &[
    ("rangedb_connections", "gauge", "Open connections.", |r| {
        r.connections as f64
    }),
    (
        "rangedb_connections_evicted_total",
        "counter",
        "Connections closed before their handshake, to make room for others.",
        |r| r.handshakes_evicted as f64,
    ),
    (
        "rangedb_connections_stalled_total",
        "counter",
        "Connections closed because an incomplete frame made no progress.",
        |r| r.stalled as f64,
    ),
    (
        "rangedb_requests_in_flight",
        "gauge",
        "Requests without a reply.",
        |r| r.in_flight as f64,
    ),
    (
        "rangedb_peer_frames_damaged_total",
        "counter",
        "Frames from other nodes whose checksum did not match.",
        |r| r.damaged_frames as f64,
    ),
    (
        "rangedb_shard_busy_seconds_total",
        "counter",
        "Time that a shard's thread did not sleep.",
        |r| r.load.busy.as_secs_f64(),
    ),
    (
        "rangedb_shard_stall_longest_seconds",
        "gauge",
        "The longest time by which a shard's timer was late.",
        |r| r.load.longest_stall.as_secs_f64(),
    ),
    (
        "rangedb_ranges",
        "gauge",
        "Range replicas of a shard.",
        |r| r.status.ranges.len() as f64,
    ),
    (
        "rangedb_ranges_led",
        "gauge",
        "Range replicas of a shard that lead.",
        |r| r.status.ranges.iter().filter(|range| range.leads).count() as f64,
    ),
    (
        "rangedb_ranges_under_replicated",
        "gauge",
        "Ranges of the cluster with too few voters that live and are up to date; told by the shard \
         that manages the cluster, 0 elsewhere.",
        |r| {
            r.status
                .cluster
                .map_or(0, |cluster| cluster.under_replicated) as f64
        },
    ),
    (
        "rangedb_ranges_unavailable",
        "gauge",
        "Ranges of the cluster without a leader or a majority; told by the shard that manages the \
         cluster, 0 elsewhere.",
        |r| r.status.cluster.map_or(0, |cluster| cluster.unavailable) as f64,
    ),
    (
        "rangedb_replicas_in_trouble",
        "gauge",
        "Replicas that have lost entries, are missing or take none; told by the shard that manages \
         the cluster, 0 elsewhere.",
        |r| r.status.cluster.map_or(0, |cluster| cluster.in_trouble) as f64,
    ),
    (
        "rangedb_proposals_waiting",
        "gauge",
        "Writes that wait to be proposed.",
        |r| {
            r.status
                .ranges
                .iter()
                .map(|range| range.load.waiting)
                .sum::<usize>() as f64
        },
    ),
    (
        "rangedb_entries_in_flight",
        "gauge",
        "Log entries proposed and not applied.",
        |r| {
            r.status
                .ranges
                .iter()
                .map(|range| range.load.in_flight)
                .sum::<usize>() as f64
        },
    ),
    (
        "rangedb_session_clients",
        "gauge",
        "Clients in the session tables.",
        |r| {
            r.status
                .ranges
                .iter()
                .map(|range| range.session_clients)
                .sum::<usize>() as f64
        },
    ),
    (
        "rangedb_replay_bytes",
        "gauge",
        "Log bytes that a start would apply again.",
        |r| r.status.replay_bytes as f64,
    ),
    (
        "rangedb_write_pressure_ratio",
        "gauge",
        "How far the tree is behind its writers.",
        |r| f64::from(r.status.pressure),
    ),
    (
        "rangedb_disk_full",
        "gauge",
        "1 while writes are refused because the disk is full.",
        |r| f64::from(u8::from(r.status.disk_full)),
    ),
    (
        "rangedb_files_starved",
        "gauge",
        "1 while the log or tables wait for file descriptors or memory.",
        |r| f64::from(u8::from(r.status.starved)),
    ),
    (
        "rangedb_wal_writes_total",
        "counter",
        "Durable writes of the log.",
        |r| r.status.wal.writes as f64,
    ),
    (
        "rangedb_wal_records_total",
        "counter",
        "Records written to the log.",
        |r| r.status.wal.records as f64,
    ),
    (
        "rangedb_wal_bytes_total",
        "counter",
        "Bytes written to the log.",
        |r| r.status.wal.bytes as f64,
    ),
    (
        "rangedb_wal_pending_bytes",
        "gauge",
        "Log bytes that wait for a write.",
        |r| r.status.wal.pending_bytes as f64,
    ),
    (
        "rangedb_wal_segments",
        "gauge",
        "Log segments in use.",
        |r| r.status.wal.segments as f64,
    ),
    (
        "rangedb_wal_live_bytes",
        "gauge",
        "Log entries that are not purged.",
        |r| r.status.wal.live_bytes as f64,
    ),
    (
        "rangedb_wal_pinned_bytes",
        "gauge",
        "Log kept for replicas that install a snapshot.",
        |r| r.status.pinned_bytes as f64,
    ),
    (
        "rangedb_memtables_frozen",
        "gauge",
        "Memtables that wait to be flushed.",
        |r| r.status.lsm.frozen as f64,
    ),
    (
        "rangedb_row_cache_evictions_total",
        "counter",
        "Rows that the row cache has evicted.",
        |r| r.status.lsm.row_evictions as f64,
    ),
    (
        "rangedb_cold_reads_total",
        "counter",
        "Reads of clients that had to wait for a block of a table.",
        |r| r.status.cold_reads.reads as f64,
    ),
    (
        "rangedb_cold_blocks_waiting",
        "gauge",
        "Blocks of tables that reads wait for: queued, or being read from the disk.",
        |r| r.status.cold_reads.blocks as f64,
    ),
    ("rangedb_tables", "gauge", "Tables on disk.", |r| {
        r.status.lsm.tables.tables as f64
    }),
    (
        "rangedb_table_bytes",
        "gauge",
        "Bytes of tables on disk.",
        |r| r.status.lsm.tables.bytes as f64,
    ),
    (
        "rangedb_level0_runs",
        "gauge",
        "Runs of tables in level 0.",
        |r| r.status.lsm.tables.level0_runs as f64,
    ),
    (
        "rangedb_flushes_total",
        "counter",
        "Memtables flushed.",
        |r| r.status.lsm.tables.flushes as f64,
    ),
    (
        "rangedb_digest_comparisons_total",
        "counter",
        "Ranges led by this shard whose replicas were compared.",
        |r| r.status.digests.compared as f64,
    ),
    (
        "rangedb_digest_different_total",
        "counter",
        "Replicas that were found to hold other rows than the majority, or without one.",
        |r| r.status.digests.different as f64,
    ),
    (
        "rangedb_digest_bytes_total",
        "counter",
        "Bytes of rows that were read to compare replicas.",
        |r| r.status.digests.bytes as f64,
    ),
    (
        "rangedb_ranges_halted",
        "gauge",
        "Replicas that serve nothing, since the range's replicas differ and no majority agrees.",
        |r| halted(&r.status.ranges) as f64,
    ),
    (
        "rangedb_compactions_total",
        "counter",
        "Compactions that changed something.",
        |r| r.status.lsm.tables.compactions as f64,
    ),
];

/// The number of ranges that have stopped.
fn halted(ranges: &[RangeStatus]) -> usize {
    let halted = |range: &&RangeStatus| range.availability == Availability::Halted;
    ranges.iter().filter(halted).count()
}

/// Renders the page from the shards' reports.
pub fn render(node: &Serving, reports: &[Option<ShardReport>]) -> String {
    let mut page = Exposition(String::with_capacity(32 << 10));
    page.metric("rangedb_build_info", "gauge", "The running version.");
    let labels = format!(
        "version=\"{}\",cluster=\"{}\"",
        env!("CARGO_PKG_VERSION"),
        node.cluster
    );
    page.value("rangedb_build_info", &labels, 1.0);
    let name = "rangedb_log_lines_lost_total";
    page.metric(
        name,
        "counter",
        "Lines for standard error or output that could not be written.",
    );
    page.line(&format!("{name} {}", logging::lines_lost()));
    connection_limits(&mut page, node);
    page.metric(
        "rangedb_shard_up",
        "gauge",
        "1 if the shard answered for this page.",
    );
    for (shard, report) in reports.iter().enumerate() {
        let up = f64::from(u8::from(report.is_some()));
        page.value("rangedb_shard_up", &format!("shard=\"{shard}\""), up);
    }
    let shards: Vec<(String, &ShardReport)> = reports
        .iter()
        .enumerate()
        .filter_map(|(shard, report)| Some((format!("shard=\"{shard}\""), report.as_ref()?)))
        .collect();
    for (name, kind, help, number) in NUMBERS {
        page.metric(name, kind, help);
        for (labels, report) in &shards {
            page.value(name, labels, number(report));
        }
    }
    memory(&mut page, &shards);
    histograms(&mut page, &shards);
    let name = "rangedb_shard_stalls_total";
    let help = "How often a task held the shard's thread for 5 ms or longer, by task.";
    page.metric(name, "counter", help);
    for (labels, report) in &shards {
        for (task, count) in &report.load.stalls {
            page.value(name, &format!("{labels},task=\"{task}\""), *count as f64);
        }
    }
    page.metric(
        "rangedb_requests_refused_total",
        "counter",
        "Requests refused, by code.",
    );
    for (labels, report) in &shards {
        for (code, count) in &report.probe.refused {
            let labels = format!("{labels},code=\"{code}\"");
            page.value("rangedb_requests_refused_total", &labels, *count as f64);
        }
    }
    page.0
}

/// Connections and descriptors of the whole node.
fn connection_limits(page: &mut Exposition, node: &Serving) {
    let kinds = [("client", &node.client_limit), ("peer", &node.peer_limit)];
    let name = "rangedb_connections_limit";
    page.metric(name, "gauge", "Limit of connections, by role.");
    for (role, limit) in &kinds {
        page.value(name, &format!("role=\"{role}\""), limit.max() as f64);
    }
    let name = "rangedb_connections_taken";
    page.metric(name, "gauge", "Open connections, by role.");
    for (role, limit) in &kinds {
        page.value(name, &format!("role=\"{role}\""), limit.taken() as f64);
    }
    let name = "rangedb_connections_refused_total";
    page.metric(
        name,
        "counter",
        "Connections refused because of the limit, by role.",
    );
    for (role, limit) in &kinds {
        page.value(name, &format!("role=\"{role}\""), limit.refused() as f64);
    }
    let name = "rangedb_file_descriptors_share";
    page.metric(
        name,
        "gauge",
        "Shares of the limit on descriptors, by user.",
    );
    for (user, share) in node.descriptors.named() {
        page.value(name, &format!("user=\"{user}\""), share as f64);
    }
}

/// What each budget of memory has in use, its bound, and what its cache did.
fn memory(page: &mut Exposition, shards: &[(String, &ShardReport)]) {
    type Shown = (
        &'static str,
        &'static str,
        &'static str,
        fn(&MemoryUse) -> u64,
    );
    let shown: [Shown; 4] = [
        (
            "rangedb_memory_used_bytes",
            "gauge",
            "Memory in use, by budget.",
            |memory| memory.used,
        ),
        (
            "rangedb_memory_bound_bytes",
            "gauge",
            "The most memory that a budget allows.",
            |memory| memory.bound,
        ),
        (
            "rangedb_cache_hits_total",
            "counter",
            "Lookups that a cache answered, by budget.",
            |memory| memory.hits,
        ),
        (
            "rangedb_cache_misses_total",
            "counter",
            "Lookups that a cache did not answer, by budget.",
            |memory| memory.misses,
        ),
    ];
    for (name, kind, help, number) in shown {
        page.metric(name, kind, help);
        for (labels, report) in shards {
            for memory in &report.status.memory {
                let labels = format!("{labels},budget=\"{}\"", memory.name);
                page.value(name, &labels, number(memory) as f64);
            }
        }
    }
}

fn histograms(page: &mut Exposition, shards: &[(String, &ShardReport)]) {
    let name = "rangedb_request_duration_seconds";
    page.metric(
        name,
        "histogram",
        "Time from a request's arrival to its reply.",
    );
    for (labels, report) in shards {
        for (operation, latency) in &report.probe.latency {
            let labels = format!("{labels},op=\"{}\"", operation.name());
            page.histogram(name, &labels, &LATENCY_BOUNDS, 1e-9, latency);
        }
    }
    let mut of_shards = |name, help, (bounds, scale), of: fn(&ShardReport) -> &Histogram<u64>| {
        page.metric(name, "histogram", help);
        for (labels, report) in shards {
            page.histogram(name, labels, bounds, scale, of(report));
        }
    };
    let micros = (&LATENCY_BOUNDS[..], 1e-6);
    of_shards(
        "rangedb_wal_write_duration_seconds",
        "Duration of a durable write of the log.",
        micros,
        |report| &report.status.wal.write_micros,
    );
    of_shards(
        "rangedb_cold_read_wait_seconds",
        "Time for which a read of a client waited for a block of a table.",
        micros,
        |report| &report.status.cold_reads.wait_micros,
    );
    of_shards(
        "rangedb_wal_write_records",
        "Records of a durable write of the log.",
        (&RECORDS_BOUNDS, 1.0),
        |report| &report.status.wal.batch_records,
    );
    of_shards(
        "rangedb_wal_write_bytes",
        "Bytes of a durable write of the log.",
        (&BYTES_BOUNDS, 1.0),
        |report| &report.status.wal.batch_bytes,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let mut recorded = Histogram::new_with_max(60_000_000_000, 2).expect("allowed");
        for nanos in [9_000, 80_000, 80_000, 900_000_000, 9_000_000_000] {
            recorded.saturating_record(nanos);
        }
        let mut page = Exposition(String::new());
        page.histogram("x", "shard=\"0\"", &LATENCY_BOUNDS, 1e-9, &recorded);
        for line in [
            "x_bucket{shard=\"0\",le=\"0.00001\"} 1",
            "x_bucket{shard=\"0\",le=\"0.0001\"} 3",
            "x_bucket{shard=\"0\",le=\"1\"} 4",
            "x_bucket{shard=\"0\",le=\"+Inf\"} 5",
            "x_count{shard=\"0\"} 5",
        ] {
            assert!(page.0.contains(line), "{line} in\n{}", page.0);
        }
    }
}
