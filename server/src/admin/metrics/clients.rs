//! Metrics of clients, their connections and their requests.

use std::sync::Arc;

use rangedb_engine::distribution::Distribution;
use rangedb_protocol::ErrorCode;

use super::{
    Buckets, Kind, Metric, Scrape, Source, counter, counter_by, gauge, gauge_by, histogram,
};
use crate::admin::Serving;
use crate::descriptors::ConnectionLimit;
use crate::operation::Operation;
use crate::probe::{LATENCY_NANOS_MAX, ShardReport};

const LATENCY: Buckets = Buckets {
    bounds: &[
        0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01,
        0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
    ],
    scale: 1e-9,
};
const COLD_READS: Buckets = Buckets {
    bounds: &[0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0],
    scale: 1e-6,
};

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "rangedb_request_duration_seconds",
        kind: Kind::Histogram(LATENCY),
        labels: &["op"],
        help: "Time from a request's arrival to its reply, by operation.",
        source: Source::NodeBy(|scrape, samples| {
            for operation in Operation::ALL {
                samples.spread(&[operation.name()], &latency(scrape, operation));
            }
        }),
    },
    histogram(
        "rangedb_shard_request_duration_seconds",
        LATENCY,
        "Time from a request's arrival to its reply, by shard.",
        Source::ShardSpread(latency_of_shard),
    ),
    counter_by(
        "rangedb_requests_refused_total",
        &["code"],
        "Requests refused, by code.",
        Source::NodeBy(|scrape, samples| {
            for code in ErrorCode::ALL {
                let refused = |(_, report): (usize, &ShardReport)| {
                    report.probe.refused.get(code).copied().unwrap_or(0)
                };
                let refused: u64 = scrape.shards().map(refused).sum();
                samples.value(&[code.name()], refused as f64);
            }
        }),
    ),
    gauge(
        "rangedb_requests_in_flight",
        "Requests without a reply.",
        Source::Shard(|report| report.in_flight as f64),
    ),
    gauge(
        "rangedb_connections",
        "Open connections of clients and other nodes.",
        Source::Shard(|report| report.connections as f64),
    ),
    counter(
        "rangedb_connections_evicted_total",
        "Connections closed before their handshake, to make room for others.",
        Source::Shard(|report| report.handshakes_evicted as f64),
    ),
    counter(
        "rangedb_connections_stalled_total",
        "Connections closed because an incomplete frame made no progress.",
        Source::Shard(|report| report.stalled as f64),
    ),
    gauge_by(
        "rangedb_connections_limit",
        &["role"],
        "Limit of connections, by role.",
        Source::NodeBy(|scrape, samples| {
            for (role, limit) in limits(scrape) {
                samples.value(&[role], limit.max() as f64);
            }
        }),
    ),
    gauge_by(
        "rangedb_connections_taken",
        &["role"],
        "Open connections, by role.",
        Source::NodeBy(|scrape, samples| {
            for (role, limit) in limits(scrape) {
                samples.value(&[role], limit.taken() as f64);
            }
        }),
    ),
    counter_by(
        "rangedb_connections_refused_total",
        &["role"],
        "Connections refused because of the limit, by role.",
        Source::NodeBy(|scrape, samples| {
            for (role, limit) in limits(scrape) {
                samples.value(&[role], limit.refused() as f64);
            }
        }),
    ),
    counter(
        "rangedb_client_received_bytes_total",
        "Bytes received from clients.",
        Source::Shard(|report| report.client_bytes.received as f64),
    ),
    counter(
        "rangedb_client_sent_bytes_total",
        "Bytes sent to clients.",
        Source::Shard(|report| report.client_bytes.sent as f64),
    ),
    counter(
        "rangedb_cold_reads_total",
        "How often reads of clients and for snapshots had to wait for a block of a table.",
        Source::Shard(|report| report.status.cold_reads.reads as f64),
    ),
    counter(
        "rangedb_unreadable_reads_total",
        "Reads that failed because a block of a table could not be read, or was damaged.",
        Source::Shard(|report| report.status.cold_reads.failed as f64),
    ),
    gauge(
        "rangedb_cold_blocks_waiting",
        "Blocks of tables that reads wait for: queued, or being read from the disk.",
        Source::Shard(|report| report.status.cold_reads.blocks as f64),
    ),
    histogram(
        "rangedb_cold_read_wait_seconds",
        COLD_READS,
        "Time for which reads of clients and for snapshots waited for a block of a table.",
        Source::ShardSpread(|report| report.status.cold_reads.wait_micros.clone()),
    ),
];

/// The limits on connections, by role.
fn limits<'a>(
    scrape: &Scrape<'a>,
) -> impl Iterator<Item = (&'static str, &'a Arc<ConnectionLimit>)> {
    let of_node = |node: &'a Serving| [("client", &node.client_limit), ("peer", &node.peer_limit)];
    scrape.node.map(of_node).into_iter().flatten()
}

/// How long requests of one operation took, on all shards.
fn latency(scrape: &Scrape<'_>, operation: Operation) -> Distribution {
    let mut all = Distribution::new(LATENCY_NANOS_MAX);
    for (_, report) in scrape.shards() {
        let of_shard = report.probe.latency.iter();
        let of_operation = of_shard.filter(|(of, _)| *of == operation);
        of_operation.for_each(|(_, latency)| all.add(latency));
    }
    all
}

/// How long requests of all operations took on one shard.
fn latency_of_shard(report: &ShardReport) -> Distribution {
    let mut all = Distribution::new(LATENCY_NANOS_MAX);
    let of_operations = report.probe.latency.iter();
    of_operations.for_each(|(_, latency)| all.add(latency));
    all
}
