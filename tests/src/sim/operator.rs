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

use super::cluster::Cluster;
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
        Order::Split { at } => return split(cluster, &at).await,
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
        return matches!(ask(&node, what).await, Some(ClusterResponse::Done));
    }
    false
}

/// Splits the range that holds a key.
async fn split(cluster: &Cluster, key: &[u8]) -> bool {
    thread_local! { static NEXT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) }; }
    let looks = cluster.looks();
    let Some(look) = looks
        .iter()
        .find(|l| l.status.leads && !l.status.system && l.status.route.keys.contains(key))
    else {
        return false;
    };
    let shards = cluster.shards();
    let Some((host, shard)) = shards
        .into_iter()
        .find(|(host, shard)| *host == look.host && shard.location() == look.at)
    else {
        return false;
    };
    let range = look.status.route.range;
    let contents = executor::current().on_host(host, || shard.contents());
    let Ok(contents) = contents else { return false };
    let Some(content) = contents.iter().find(|c| c.group.range == range) else {
        return false;
    };
    let n = NEXT.get() + 1;
    NEXT.set(n);
    let child = RangeId(1000 + n);
    let replicas = content
        .state
        .descriptor
        .replicas
        .iter()
        .enumerate()
        .map(|(i, place)| {
            (
                place.replica,
                rangedb_engine::types::ReplicaId((1 << 40) + n * 100 + i as u64),
            )
        })
        .collect();
    let request = ClusterRequest::Split {
        range,
        version: look.status.route.epoch.version,
        key: key.to_vec(),
        child,
        replicas,
    };
    let message = rangedb_engine::raft::Message::Cluster(
        rangedb_engine::cluster::message::encode_request(&request).into(),
    );
    let bytes = rangedb_engine::raft::encode(&message);
    let asked = OnHost::new(host, async move { shard.answer(bytes).await });
    let Ok(bytes) = SimRuntime::timeout(TIMEOUT, asked).await else {
        return false;
    };
    matches!(
        rangedb_engine::cluster::message::decode_response(&bytes),
        Some(ClusterResponse::Done)
    )
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
