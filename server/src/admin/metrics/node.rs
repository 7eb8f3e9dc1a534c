//! Metrics of the node, of its process and of its shards' threads.

use std::collections::BTreeMap;

use super::{Buckets, Metric, Scrape, Source, counter, counter_by, gauge, gauge_by, histogram};
use crate::admin::{Phase, Serving};
use crate::env::discipline;
use crate::logging;

/// The version of this binary.
const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The commit that it is built from.
const COMMIT: &str = env!("RANGEDB_BUILD_COMMIT");
/// Stalls begin at 5 ms.
const STALLS: Buckets = Buckets {
    bounds: &[0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0],
    scale: 1e-6,
};

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// Of the node and its process.
pub(super) const METRICS: &[Metric] = &[
    gauge_by(
        "rangedb_build_info",
        &["version", "commit", "cluster", "node"],
        "The release and commit that run, and which node of which cluster this is, once it is one; always 1.",
        Source::NodeBy(|scrape, samples| {
            let id = |node: &Serving| node.peers.incarnations.node().to_string();
            let node = scrape.node.map(id).unwrap_or_default();
            let cluster = scrape.node.map_or("", |node| &node.cluster);
            samples.value(&[RELEASE, COMMIT, cluster, &node], 1.0);
        }),
    ),
    gauge(
        "rangedb_node_ready",
        "1 if the node serves: it is neither starting nor stopping.",
        Source::Node(|scrape| Some(flag(scrape.phase == Phase::Ready))),
    ),
    counter(
        "rangedb_log_lines_lost_total",
        "Lines for standard error or output that could not be written.",
        Source::Node(|_| Some(logging::lines_lost() as f64)),
    ),
    gauge(
        "rangedb_clock_synchronized",
        "1 if the kernel says that a time service keeps the wall clock.",
        Source::Node(|_| Some(flag(discipline::of_clock().ok()?.is_synchronized))),
    ),
    gauge(
        "rangedb_clock_error_max_seconds",
        "The largest error that the wall clock may have, as the kernel believes.",
        Source::Node(|_| Some(discipline::of_clock().ok()?.error_max.as_secs_f64())),
    ),
    gauge(
        "rangedb_disk_size_bytes",
        "Size of the file system of the data folder.",
        Source::Node(|scrape| Some(scrape.disk?.size as f64)),
    ),
    gauge(
        "rangedb_disk_free_bytes",
        "Bytes of it that the node may still write.",
        Source::Node(|scrape| Some(scrape.disk?.free as f64)),
    ),
    gauge(
        "rangedb_disk_free_inodes",
        "Files that may still be made on it.",
        Source::Node(|scrape| Some(scrape.disk?.free_inodes as f64)),
    ),
    gauge_by(
        "rangedb_file_descriptors_share",
        &["user"],
        "Shares of the limit on descriptors, by what they are for.",
        Source::NodeBy(|scrape, samples| {
            let shares = scrape.node.map(|node| node.descriptors.named());
            for (user, share) in shares.into_iter().flatten() {
                samples.value(&[user], share as f64);
            }
        }),
    ),
    counter(
        "process_cpu_seconds_total",
        "Processor time of all threads of the process.",
        Source::Node(|scrape| Some(scrape.process?.cpu.as_secs_f64())),
    ),
    gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        Source::Node(|scrape| Some(scrape.process?.started)),
    ),
    gauge(
        "process_resident_memory_bytes",
        "Memory that the process has in use.",
        Source::Node(|scrape| Some(scrape.process?.resident_bytes as f64)),
    ),
    gauge(
        "process_virtual_memory_bytes",
        "Addresses that the process has reserved.",
        Source::Node(|scrape| Some(scrape.process?.virtual_bytes as f64)),
    ),
    gauge(
        "process_open_fds",
        "Open files and sockets of the process.",
        Source::Node(|scrape| Some(scrape.process?.open_files as f64)),
    ),
    gauge(
        "process_max_fds",
        "How many files and sockets the process may open.",
        Source::Node(|scrape| Some(scrape.node?.descriptors.limit as f64)),
    ),
];

/// Of the shards' threads.
pub(super) const SHARDS: &[Metric] = &[
    gauge_by(
        "rangedb_shard_up",
        &["shard"],
        "1 if the shard answered for this page. One that did not has no other series on it.",
        Source::NodeBy(|scrape, samples| {
            for (shard, report) in scrape.reports.iter().enumerate() {
                samples.value(&[&shard.to_string()], flag(report.is_some()));
            }
        }),
    ),
    counter(
        "rangedb_shard_busy_seconds_total",
        "Time that a shard's thread did not sleep.",
        Source::Shard(|report| report.load.busy.as_secs_f64()),
    ),
    gauge(
        "rangedb_shard_cpu_ratio",
        "The part of a core that a shard's thread has used over the last 10 s.",
        Source::Shard(|report| report.cpu),
    ),
    histogram(
        "rangedb_shard_stall_duration_seconds",
        STALLS,
        "How long tasks held the shard's thread that held it for 5 ms or longer.",
        Source::ShardSpread(|report| report.load.stall_micros.clone()),
    ),
    gauge(
        "rangedb_shard_stall_longest_seconds",
        "The longest time by which a shard's timer was late in this run.",
        Source::Shard(|report| report.load.longest_stall.as_secs_f64()),
    ),
    counter_by(
        "rangedb_shard_stalls_total",
        &["task"],
        "How often a task held a shard's thread for 5 ms or longer, by task.",
        Source::NodeBy(|scrape, samples| {
            for (task, count) in stalls(scrape) {
                samples.value(&[task], count as f64);
            }
        }),
    ),
];

/// The stalls of all shards, by task.
fn stalls<'a>(scrape: &'a Scrape<'_>) -> BTreeMap<&'a str, u64> {
    let mut stalls = BTreeMap::new();
    for (_, report) in scrape.shards() {
        for (task, count) in &report.load.stalls {
            *stalls.entry(task.as_str()).or_default() += count;
        }
    }
    stalls
}
