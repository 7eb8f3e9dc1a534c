//! Metrics of the cluster: what its manager knows, and how this node reaches the others.

use std::collections::BTreeMap;
use std::time::Duration;

use rangedb_engine::types::NodeId;

use super::{Metric, Scrape, Source, gauge, gauge_by};

pub(super) const METRICS: &[Metric] = &[
    gauge(
        "rangedb_cluster_manager",
        "1 if a shard of this node manages the cluster. One node of the cluster does, and only that \
         one has the other metrics whose names begin with rangedb_cluster.",
        Source::Node(|scrape| Some(f64::from(u8::from(scrape.cluster().is_some())))),
    ),
    gauge_by(
        "rangedb_cluster_nodes",
        &["state"],
        "Nodes of the cluster, by state.",
        Source::NodeBy(|scrape, samples| {
            for (state, count) in scrape.cluster().iter().flat_map(|cluster| &cluster.nodes) {
                samples.value(&[state.name()], *count as f64);
            }
        }),
    ),
    gauge(
        "rangedb_cluster_ranges",
        "Ranges of the cluster.",
        Source::Node(|scrape| Some(scrape.cluster()?.ranges as f64)),
    ),
    gauge(
        "rangedb_cluster_ranges_under_replicated",
        "Ranges with too few voters that live and are up to date.",
        Source::Node(|scrape| Some(scrape.cluster()?.under_replicated as f64)),
    ),
    gauge(
        "rangedb_cluster_ranges_unavailable",
        "Ranges without a leader or a majority.",
        Source::Node(|scrape| Some(scrape.cluster()?.unavailable as f64)),
    ),
    gauge(
        "rangedb_cluster_replicas_in_trouble",
        "Replicas that have lost entries, are missing or take none.",
        Source::Node(|scrape| Some(scrape.cluster()?.in_trouble as f64)),
    ),
    gauge(
        "rangedb_cluster_moves",
        "Moves of replicas that were ordered and are not done.",
        Source::Node(|scrape| Some(scrape.cluster()?.moves as f64)),
    ),
    gauge_by(
        "rangedb_peer_up",
        &["peer"],
        "1 if each shard of that node with which this one shares a range has answered lately.",
        Source::NodeBy(|scrape, samples| {
            for (node, link) in links(scrape) {
                let up = f64::from(u8::from(link.answers));
                samples.value(&[&node.to_string()], up);
            }
        }),
    ),
    gauge_by(
        "rangedb_peer_round_trip_seconds",
        &["peer"],
        "How long the last heartbeat to that node took to be answered, by the slowest of its shards.",
        Source::NodeBy(|scrape, samples| {
            for (node, link) in links(scrape) {
                if let Some(took) = link.slowest {
                    samples.value(&[&node.to_string()], took.as_secs_f64());
                }
            }
        }),
    ),
];

/// How this node reaches another one.
struct Link {
    answers: bool,
    slowest: Option<Duration>,
}

/// The other nodes with which a shard of this one exchanges heartbeats.
fn links(scrape: &Scrape<'_>) -> BTreeMap<NodeId, Link> {
    let mut links = BTreeMap::new();
    let here = scrape.node.map(|node| node.peers.incarnations.node());
    let peers = scrape
        .shards()
        .flat_map(|(_, report)| &report.status.replication.peers);
    for peer in peers.filter(|peer| Some(peer.at.node) != here) {
        let link = links.entry(peer.at.node).or_insert(Link {
            answers: true,
            slowest: None,
        });
        link.answers &= peer.answers;
        link.slowest = link.slowest.max(peer.round_trip);
    }
    links
}
