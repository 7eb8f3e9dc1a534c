//! The person in a run, who gives orders to the cluster's manager and replaces a node that has lost
//! its disk.
//!
//! As with the command line, an order goes to any running node, which finds the manager. An order
//! that is refused or lost is not repeated.

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::cluster::{ClusterRequest, ClusterResponse, MembershipStatus};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::shard::Shard;
use rangedb_engine::types::{NodeId, RangeId, ShardId};

use super::cluster::{Cluster, Look};
use super::executor::{self, OnHost};
use super::faults::Order;
use super::node::SimNode;
use super::runtime::SimRuntime;

/// How long to wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new node asks for a place in the cluster, and how often.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
const ENROLL_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Asks the manager through a node; `None` if there is no answer.
pub async fn ask(node: &SimNode, request: ClusterRequest) -> Option<ClusterResponse> {
    let shard = node.shards()?.first()?.clone();
    let asked = OnHost::new(node.host(), async move { shard.manage(request).await });
    SimRuntime::timeout(TIMEOUT, asked).await.ok()?.ok()
}

/// Gives an order; returns whether the manager has followed it.
pub async fn order(cluster: &Cluster, order: Order, by: u16) -> bool {
    let id = |machine: u16| {
        let node = cluster.on(machine);
        NodeId(node.map_or(0, |node| u64::from(node.id)))
    };
    let what = match order {
        Order::Split { at } => ClusterRequest::SplitRange {
            range: range_of(cluster, &at),
            keys: vec![at.to_vec()],
            held_until_ms: None,
        },
        Order::Merge { at } => ClusterRequest::MergeRange {
            range: range_of(cluster, &at),
        },
        Order::Lead { range, to } => ClusterRequest::TransferLeader {
            range: RangeId(range),
            to: to.map(id),
        },
        Order::Move {
            range,
            from,
            to,
            shard,
        } => ClusterRequest::MoveReplica {
            range: RangeId(range),
            from: id(from),
            to: id(to),
            shard: Some(ShardId(shard)),
        },
        Order::MoveAt {
            at,
            from,
            to,
            shard,
        } => ClusterRequest::MoveReplica {
            range: range_of(cluster, &at),
            from: id(from),
            to: id(to),
            shard: Some(ShardId(shard)),
        },
        Order::LeadAt { at, to } => ClusterRequest::TransferLeader {
            range: range_of(cluster, &at),
            to: Some(id(to)),
        },
        Order::Set { name, value } => ClusterRequest::Set {
            name: name.to_owned(),
            value: value.to_owned(),
        },
        Order::DeadAfter { seconds } => ClusterRequest::Set {
            name: "dead-after".to_owned(),
            value: format!("{seconds}s"),
        },
        Order::Drain { node } => ClusterRequest::SetMembership {
            node: id(node),
            status: MembershipStatus::Draining,
        },
        Order::Undrain { node } => ClusterRequest::SetMembership {
            node: id(node),
            status: MembershipStatus::Active,
        },
        Order::Decommission { node } => ClusterRequest::SetMembership {
            node: id(node),
            status: MembershipStatus::Decommissioning,
        },
    };
    if let Some(node) = cluster.on(by) {
        return matches!(
            ask(&node, what).await,
            Some(ClusterResponse::Done | ClusterResponse::Split { failed: None, .. })
        );
    }
    false
}

/// The range that holds a key of users, as the newest of the running replicas know it.
fn range_of(cluster: &Cluster, key: &[u8]) -> RangeId {
    let looks = cluster.looks();
    let holds = |look: &&Look| !look.status.system && look.status.route.keys.contains(key);
    let newest = looks.iter().filter(holds);
    let newest = newest.max_by_key(|look| look.status.route.epoch.version);
    newest.map_or(RangeId(0), |look| look.status.route.range)
}

/// Gets a place in the cluster for a node that replaces one with a lost disk. The same token always
/// gets the same place.
pub async fn enroll(cluster: &Cluster, lost: &SimNode, token: u128) -> Option<Rc<SimNode>> {
    let until = executor::current().now() + JOIN_TIMEOUT;
    while executor::current().now() < until {
        for node in cluster.nodes() {
            let shards = node.shards();
            let Some(shard) = shards.as_ref().and_then(|shards| shards.first()) else {
                continue;
            };
            if let Some(ClusterResponse::Joined(id)) =
                ask(&node, ClusterRequest::Join { token }).await
            {
                let system = executor::current().on_host(node.host(), || Shard::system(shard));
                let successor = lost.successor(id.0 as u16, system);
                cluster.replace(successor.clone());
                return Some(successor);
            }
        }
        SimRuntime::sleep(ENROLL_RETRY_INTERVAL).await;
    }
    None
}
