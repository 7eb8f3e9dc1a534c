//! Status: the state of the node, gathered from all its shards.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::gateway::responder::Responder;
use rangedb_engine::memory;
use rangedb_engine::shard::RangeStatus;
use rangedb_engine::types::NodeId;
use rangedb_protocol::{MemoryUse, NodeState, RangeState, Reply, ShardState};

use crate::context::Context;
use crate::env::{GlommioRuntime, reactor};
use crate::net::connection::Connection;
use crate::net::refusal::Refusal;
use crate::net::reply::{self, Head};
use crate::operation::PendingRequest;

/// How long to wait for the other shards; the reply omits one that does not answer.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn handle(
    context: &Rc<Context>,
    connection: &Rc<Connection>,
    pending: PendingRequest,
) -> Result<(), Refusal> {
    let token = connection.hold(pending)?;
    let (context, connection) = (context.clone(), connection.clone());
    reactor::spawn_local(async move {
        let node = gather(&context).await;
        if let Some(pending) = connection.release(token) {
            let reply = Reply::Node(Box::new(node));
            connection.send(|to| reply::write(&context, Head::of(pending.request), &reply, to));
        }
    })
    .detach();
    Ok(())
}

async fn gather(context: &Context) -> NodeState {
    let pending = context.mesh.others().map(|other| async move {
        let told = GlommioRuntime::timeout(TIMEOUT, context.mesh.status(other));
        told.await.ok().flatten()
    });
    let mut shards: Vec<ShardState> = join_all(pending).await.into_iter().flatten().collect();
    shards.push(shard_state(context));
    shards.sort_by_key(|shard| shard.shard);
    let missing = usize::from(context.node.shards) - shards.len();
    let health = if shards.iter().any(|shard| shard.disk_full) {
        "the disk is full".to_owned()
    } else if shards.iter().any(|shard| shard.stuck) {
        "compactions fail, and writes are refused: see the event compaction_failed in the node's log".to_owned()
    } else if missing == 1 {
        "1 shard does not answer".to_owned()
    } else if missing > 0 {
        format!("{missing} shards do not answer")
    } else {
        refusals(&context.peers.refused_by()).unwrap_or_else(|| "ok".to_owned())
    };
    let uptime = context.node.started.elapsed();
    let mut state = NodeState::default();
    state.cluster = format!("{:032x}", context.node.cluster);
    state.node = context.node.id.0;
    state.release = env!("CARGO_PKG_VERSION").to_owned();
    state.health = health;
    state.uptime_ms = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
    state.shards = shards;
    state
}

/// Which nodes refuse this one, and why; `None` if none does.
pub fn refusals(refused_by: &BTreeMap<NodeId, String>) -> Option<String> {
    let reasons = refused_by.iter();
    let reasons: Vec<String> = reasons
        .map(|(node, why)| format!("node {node}: {why}"))
        .collect();
    (!reasons.is_empty()).then(|| format!("refused by {}", reasons.join("; ")))
}

/// A shard's state in terms of the wire protocol.
pub fn shard_state(context: &Context) -> ShardState {
    let (status, connections) = (context.status(), context.connected.get());
    let mut state = ShardState::default();
    state.shard = context.here().0;
    state.ranges = (status.ranges.iter())
        .map(|range| range_state(context, range))
        .collect();
    state.replay_bytes = status.replay_bytes;
    state.pressure = status.pressure;
    state.disk_full = status.disk_full;
    state.stuck = status.lsm.stuck;
    state.log_writes = status.wal.writes;
    state.log_bytes = status.wal.bytes;
    state.table_bytes = status.lsm.tables.bytes;
    state.tables = count(status.lsm.tables.tables);
    state.frozen_memtables = count(status.lsm.frozen);
    state.connections = count(connections);
    state.memory = status.memory.into_iter().map(memory_use).collect();
    state
}

fn range_state(context: &Context, range: &RangeStatus) -> RangeState {
    let mut state = RangeState::default();
    state.route = reply::route(context, &range.route);
    state.system = range.system;
    state.replica = range.replica.0;
    state.term = range.term;
    state.applied = range.applied;
    state.durable = range.durable;
    state.last_timestamp = range.last_ts.0;
    state.gc_threshold = range.gc_threshold.0;
    state.waiting = count(range.load.waiting);
    state.sessions = count(range.session_clients);
    state
}

fn memory_use(of: memory::MemoryUse) -> MemoryUse {
    let mut used = MemoryUse::default();
    used.name = of.name.to_owned();
    used.used = of.used;
    used.bound = of.bound;
    used.hits = of.hits;
    used.misses = of.misses;
    used
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
