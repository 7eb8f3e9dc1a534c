//! Status: the state of the node, gathered from all its shards.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::gateway::responder::Responder;
use rangedb_engine::memory;
use rangedb_engine::types::ShardId;
use rangedb_protocol::{MemoryUse, NodeState, RangeState, Reply, ShardState};

use crate::env::{GlommioRuntime, reactor};
use crate::handler::refusal::Refusal;
use crate::handler::reply::Head;
use crate::handler::{PendingRequest, reply};
use crate::net::connection::Connection;
use crate::shard::context::Context;

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
    shards.push(context.state());
    shards.sort_by_key(|shard| shard.shard);
    let missing = usize::from(context.node.shards) - shards.len();
    let health = if shards.iter().any(|shard| shard.disk_full) {
        "the disk is full".to_owned()
    } else if missing > 0 {
        format!("{missing} shards do not answer")
    } else {
        "ok".to_owned()
    };
    NodeState {
        cluster: format!("{:032x}", context.node.cluster),
        node: context.node.id.0,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        health,
        uptime_ms: u64::try_from(context.node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        shards,
    }
}

/// A shard's state in terms of the wire protocol.
pub fn shard_state(context: &Context, shard: ShardId) -> ShardState {
    let (status, connections) = (context.status(), context.connected.get());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let ranges = status.ranges.iter().map(|range| RangeState {
        route: reply::route(context, &range.route),
        system: range.system,
        replica: range.replica.0,
        term: range.term,
        applied: range.applied,
        durable: range.durable,
        last_timestamp: range.last_ts.0,
        gc_threshold: range.gc_threshold.0,
        waiting: count(range.waiting),
        sessions: count(range.session_clients),
    });
    ShardState {
        shard: shard.0,
        ranges: ranges.collect(),
        replay_bytes: status.replay_bytes,
        pressure: status.pressure,
        disk_full: status.disk_full,
        log_writes: status.wal.writes,
        log_bytes: status.wal.bytes,
        table_bytes: status.lsm.tables.bytes,
        tables: count(status.lsm.tables.tables),
        frozen_memtables: count(status.lsm.frozen),
        connections: count(connections),
        memory: status.memory.into_iter().map(memory_use).collect(),
    }
}

fn memory_use(of: memory::MemoryUse) -> MemoryUse {
    MemoryUse {
        name: of.name.to_owned(),
        used: of.used,
        bound: of.bound,
        hits: of.hits,
        misses: of.misses,
    }
}
