//! The state of a node as a reply shows it: its shards, their ranges and their memory.

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use crate::generated::wire;
use crate::reply::{Route, build_route, route};

/// The state of a range on a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeState {
    /// Its bounds, its epoch and its leader.
    pub route: Route,
    /// Whether it holds the cluster's own records.
    pub system: bool,
    /// The range's replica on the shard.
    pub replica: u64,
    /// The term in which this replica leads; 0 if it does not lead.
    pub term: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Index of the last entry that is durable in tables.
    pub durable: u64,
    /// Timestamp of the last command.
    pub last_timestamp: u64,
    /// Versions up to this timestamp may have been garbage-collected.
    pub gc_threshold: u64,
    /// Writes that wait to be proposed.
    pub waiting: u32,
    /// Clients in the session table.
    pub sessions: u32,
}

/// The state of a shard.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ShardState {
    /// Its number on the node.
    pub shard: u16,
    /// The ranges of which the shard has a replica.
    pub ranges: Vec<RangeState>,
    /// Bytes of the log that a restart would replay.
    pub replay_bytes: u64,
    /// How far the shard is behind its writers, from 0 to 1.
    pub pressure: f32,
    /// Writes are refused because the disk is full.
    pub disk_full: bool,
    /// Writes are refused because compactions fail and level 0 of the tables is full.
    pub stuck: bool,
    /// Durable writes to the log since the node started.
    pub log_writes: u64,
    /// Bytes of these writes.
    pub log_bytes: u64,
    /// Bytes of all its tables together.
    pub table_bytes: u64,
    /// Number of its tables.
    pub tables: u32,
    /// Memtables that wait to be flushed.
    pub frozen_memtables: u32,
    /// Open connections.
    pub connections: u32,
    /// The memory of each use that has a budget.
    pub memory: Vec<MemoryUse>,
}

/// A use of memory that has a budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// What the memory is used for.
    pub name: String,
    /// Bytes in use.
    pub used: u64,
    /// The budget in bytes.
    pub bound: u64,
    /// How often a cache held what was looked for; 0 if this is no cache.
    pub hits: u64,
    /// How often a cache did not hold what was looked for.
    pub misses: u64,
}

impl MemoryUse {
    /// The share of what was looked for that the cache held; `None` if nothing was looked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let lookups = self.hits + self.misses;
        (lookups > 0).then(|| self.hits as f64 / lookups as f64)
    }
}

/// The state of a node.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NodeState {
    /// The cluster's id.
    pub cluster: String,
    /// The node's id.
    pub node: u64,
    /// The release of the server.
    pub release: String,
    /// `ok`, or a description of what is wrong.
    pub health: String,
    /// Milliseconds since the node started.
    pub uptime_ms: u64,
    /// The state of each shard.
    pub shards: Vec<ShardState>,
}

/// Builds the table of a node's state, and ends the message with it.
pub(crate) fn build(b: &mut FlatBufferBuilder<'_>, node: &NodeState, now: u64) {
    let shards: Vec<_> = node
        .shards
        .iter()
        .map(|shard| build_shard(b, shard))
        .collect();
    let shards = Some(b.create_vector(&shards));
    let args = wire::NodeStateArgs {
        cluster: Some(b.create_string(&node.cluster)),
        node: node.node,
        release: Some(b.create_string(&node.release)),
        health: Some(b.create_string(&node.health)),
        uptime_ms: node.uptime_ms,
        shards,
        now,
    };
    let root = wire::NodeState::create(b, &args);
    b.finish_minimal(root);
}

fn build_shard<'b>(
    b: &mut FlatBufferBuilder<'b>,
    shard: &ShardState,
) -> WIPOffset<wire::ShardState<'b>> {
    let ranges: Vec<_> = shard
        .ranges
        .iter()
        .map(|range| {
            let args = wire::RangeStateArgs {
                route: Some(build_route(b, &range.route)),
                system: range.system,
                replica: range.replica,
                term: range.term,
                applied: range.applied,
                durable: range.durable,
                last_timestamp: range.last_timestamp,
                gc_threshold: range.gc_threshold,
                waiting: range.waiting,
                sessions: range.sessions,
            };
            wire::RangeState::create(b, &args)
        })
        .collect();
    let memory: Vec<_> = (shard.memory.iter())
        .map(|memory| build_memory(b, memory))
        .collect();
    let args = wire::ShardStateArgs {
        shard: shard.shard,
        ranges: Some(b.create_vector(&ranges)),
        replay_bytes: shard.replay_bytes,
        pressure: shard.pressure,
        disk_full: shard.disk_full,
        stuck: shard.stuck,
        log_writes: shard.log_writes,
        log_bytes: shard.log_bytes,
        table_bytes: shard.table_bytes,
        tables: shard.tables,
        frozen_memtables: shard.frozen_memtables,
        connections: shard.connections,
        // Without uses the table is the one of releases that did not know this field.
        memory: (!memory.is_empty()).then(|| b.create_vector(&memory)),
    };
    wire::ShardState::create(b, &args)
}

fn build_memory<'b>(
    b: &mut FlatBufferBuilder<'b>,
    memory: &MemoryUse,
) -> WIPOffset<wire::MemoryUse<'b>> {
    let args = wire::MemoryUseArgs {
        name: Some(b.create_string(&memory.name)),
        used: memory.used,
        bound: memory.bound,
        hits: memory.hits,
        misses: memory.misses,
    };
    wire::MemoryUse::create(b, &args)
}

/// Reads the table of a node's state.
pub(crate) fn read(t: &wire::NodeState<'_>) -> NodeState {
    NodeState {
        cluster: t.cluster().to_owned(),
        node: t.node(),
        release: t.release().to_owned(),
        health: t.health().to_owned(),
        uptime_ms: t.uptime_ms(),
        shards: t.shards().iter().map(|shard| shard_state(&shard)).collect(),
    }
}

fn shard_state(t: &wire::ShardState<'_>) -> ShardState {
    let ranges = t.ranges().iter().map(|range| RangeState {
        route: route(&range.route()),
        system: range.system(),
        replica: range.replica(),
        term: range.term(),
        applied: range.applied(),
        durable: range.durable(),
        last_timestamp: range.last_timestamp(),
        gc_threshold: range.gc_threshold(),
        waiting: range.waiting(),
        sessions: range.sessions(),
    });
    ShardState {
        shard: t.shard(),
        ranges: ranges.collect(),
        replay_bytes: t.replay_bytes(),
        pressure: t.pressure(),
        disk_full: t.disk_full(),
        stuck: t.stuck(),
        log_writes: t.log_writes(),
        log_bytes: t.log_bytes(),
        table_bytes: t.table_bytes(),
        tables: t.tables(),
        frozen_memtables: t.frozen_memtables(),
        connections: t.connections(),
        memory: t.memory().into_iter().flatten().map(memory_use).collect(),
    }
}

fn memory_use(t: wire::MemoryUse<'_>) -> MemoryUse {
    MemoryUse {
        name: t.name().to_owned(),
        used: t.used(),
        bound: t.bound(),
        hits: t.hits(),
        misses: t.misses(),
    }
}
