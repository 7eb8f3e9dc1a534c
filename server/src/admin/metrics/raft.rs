//! Metrics of ranges, of their replication, and of the links between nodes.

use rangedb_engine::shard::{Availability, RangeStatus};

use super::{Buckets, Metric, Source, counter, counter_by, gauge, gauge_by, histogram};
use crate::probe::ShardReport;

/// Heartbeats are given up after a second.
const ROUND_TRIPS: Buckets = Buckets {
    bounds: &[0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5],
    scale: 1e-6,
};
/// A split takes a few durable writes, a merge a little longer.
const BOUNDS_CHANGES: Buckets = Buckets {
    bounds: &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 1.0, 5.0],
    scale: 1e-6,
};
/// The states of a replica's range, with their names.
const STATES: [(Availability, &str); 3] = [
    (Availability::Available, "available"),
    (Availability::NoQuorum, "no_quorum"),
    (Availability::Halted, "halted"),
];

fn sum(report: &ShardReport, of: fn(&RangeStatus) -> usize) -> f64 {
    report.status.ranges.iter().map(of).sum::<usize>() as f64
}

fn count(report: &ShardReport, is: impl Fn(&RangeStatus) -> bool) -> f64 {
    let ranges = report.status.ranges.iter();
    ranges.filter(|range| is(range)).count() as f64
}

pub(super) const METRICS: &[Metric] = &[
    gauge_by(
        "rangedb_replicas",
        &["state"],
        "Replicas of a shard, by the state of their range as the shard knows it: available, without \
         a majority, or halted because replicas differ and no majority agrees.",
        Source::ShardBy(|report, samples| {
            for (state, name) in STATES {
                let is_in_it = |range: &RangeStatus| range.availability == state;
                samples.value(&[name], count(report, is_in_it));
            }
        }),
    ),
    gauge(
        "rangedb_ranges_led",
        "Replicas of a shard that lead.",
        Source::Shard(|report| count(report, |range| range.leads)),
    ),
    gauge(
        "rangedb_replica_lag_entries",
        "How many entries the replica lacks that is furthest behind, of the ranges that the shard \
         leads.",
        Source::Shard(|report| report.status.replication.lag as f64),
    ),
    gauge(
        "rangedb_proposals_waiting",
        "Writes that wait to be proposed.",
        Source::Shard(|report| sum(report, |range| range.load.waiting)),
    ),
    gauge(
        "rangedb_entries_in_flight",
        "Log entries proposed and not applied.",
        Source::Shard(|report| sum(report, |range| range.load.in_flight)),
    ),
    counter(
        "rangedb_range_overloaded_total",
        "Requests that were refused because their range has its fair share of what the ranges of the shard share.",
        Source::Shard(|report| report.overloaded as f64),
    ),
    gauge(
        "rangedb_session_clients",
        "Clients in the session tables.",
        Source::Shard(|report| sum(report, |range| range.session_clients)),
    ),
    counter(
        "rangedb_raft_elections_total",
        "Elections that replicas of the shard began.",
        Source::Shard(|report| report.status.replication.stats.elections as f64),
    ),
    counter(
        "rangedb_raft_leader_changes_total",
        "How often a replica of the shard learnt of another leader of its range.",
        Source::Shard(|report| report.status.replication.stats.leader_changes as f64),
    ),
    gauge(
        "rangedb_raft_member_changes_active",
        "Changes of members that leaders of the shard are carrying out.",
        Source::Shard(|report| report.status.replication.changing as f64),
    ),
    counter_by(
        "rangedb_raft_member_changes_total",
        &["result"],
        "Changes of members that leaders of the shard carried out or gave up; a move is one.",
        Source::ShardBy(|report, samples| {
            samples.value(
                &["done"],
                report.status.replication.stats.changes_done as f64,
            );
            samples.value(
                &["failed"],
                report.status.replication.stats.changes_failed as f64,
            );
        }),
    ),
    counter_by(
        "rangedb_splits_total",
        &["reason"],
        "Splits of ranges that leaders of the shard have made, by why: an operator's order, size or load.",
        Source::ShardBy(|report, samples| {
            for (reason, count) in report.status.replication.bounds_changes.splits {
                samples.value(&[reason.name()], count as f64);
            }
        }),
    ),
    counter_by(
        "rangedb_merges_total",
        &["outcome"],
        "Merges of ranges with their right neighbours that leaders of the shard have begun, by whether they \
         took place.",
        Source::ShardBy(|report, samples| {
            let changes = &report.status.replication.bounds_changes;
            samples.value(&["done"], changes.merges_done as f64);
            samples.value(&["failed"], changes.merges_failed as f64);
        }),
    ),
    counter_by(
        "rangedb_moves_total",
        &["kind"],
        "Changes of leaders and replicas that the cluster's manager has ordered and leaders have begun, by \
         kind, while the shard hosted it: for balance, to replace replicas, and by operators.",
        Source::ShardBy(|report, samples| {
            for (kind, count) in report.status.replication.moves.0 {
                samples.value(&[kind.name()], count as f64);
            }
        }),
    ),
    histogram(
        "rangedb_range_bounds_change_seconds",
        BOUNDS_CHANGES,
        "How long keys were not served while a leader of the shard changed the bounds of their range.",
        Source::ShardSpread(|report| report.status.replication.bounds_changes.took_micros.clone()),
    ),
    counter(
        "rangedb_raft_snapshots_sent_total",
        "Snapshots that another replica has installed.",
        Source::Shard(|report| report.status.replication.stats.snapshots_sent as f64),
    ),
    counter(
        "rangedb_raft_snapshots_failed_total",
        "Snapshots that were begun and did not arrive.",
        Source::Shard(|report| report.status.replication.stats.snapshots_failed as f64),
    ),
    counter(
        "rangedb_raft_snapshot_sent_bytes_total",
        "Bytes of keys and values that were sent in snapshots.",
        Source::Shard(|report| report.status.replication.stats.snapshot_bytes_sent as f64),
    ),
    gauge(
        "rangedb_raft_snapshots_receiving",
        "Snapshots that the shard is receiving.",
        Source::Shard(|report| report.status.replication.receiving as f64),
    ),
    counter(
        "rangedb_raft_snapshots_installed_total",
        "Snapshots that replicas of the shard have installed.",
        Source::Shard(|report| report.status.replication.stats.snapshots_installed as f64),
    ),
    histogram(
        "rangedb_heartbeat_duration_seconds",
        ROUND_TRIPS,
        "How long heartbeats to the shards of other nodes took to be answered.",
        Source::ShardSpread(|report| report.status.replication.round_trip_micros.clone()),
    ),
    counter(
        "rangedb_peer_links_broken_total",
        "Connections to other nodes that have broken.",
        Source::Shard(|report| report.links_broken as f64),
    ),
    counter(
        "rangedb_peer_frames_damaged_total",
        "Frames from other nodes whose checksum did not match.",
        Source::Shard(|report| report.damaged_frames as f64),
    ),
    counter(
        "rangedb_peer_received_bytes_total",
        "Bytes received from other nodes.",
        Source::Shard(|report| report.peer_bytes.received as f64),
    ),
    counter(
        "rangedb_peer_sent_bytes_total",
        "Bytes sent to other nodes.",
        Source::Shard(|report| report.peer_bytes.sent as f64),
    ),
    counter(
        "rangedb_digest_comparisons_total",
        "Ranges led by the shard whose replicas were compared.",
        Source::Shard(|report| report.status.digests.compared as f64),
    ),
    counter(
        "rangedb_digest_different_total",
        "Replicas that were found to hold other rows than the majority, or without one.",
        Source::Shard(|report| report.status.digests.different as f64),
    ),
    counter(
        "rangedb_digest_bytes_total",
        "Bytes of rows that were read to compare replicas.",
        Source::Shard(|report| report.status.digests.bytes as f64),
    ),
    counter(
        "rangedb_replicas_given_up_total",
        "Replicas that were removed here because a block with their rows cannot be read or is damaged.",
        Source::Shard(|report| report.status.replication.stats.given_up as f64),
    ),
];
