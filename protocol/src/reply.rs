//! Replies: typed views of the tables, which borrow from the frame, and their encoding.

use std::borrow::Cow;

use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, WIPOffset};

use crate::error_code::{ErrorCode, Fate};
use crate::frame;
use crate::generated::wire;
use crate::multi_get::Values;

/// The kinds of reply frames.
pub mod kind {
    /// See [`super::Reply::Value`].
    pub const VALUE: u16 = 0x8001;
    /// See [`super::Reply::Written`].
    pub const WRITTEN: u16 = 0x8002;
    /// See [`super::Reply::ConditionFailed`].
    pub const CONDITION_FAILED: u16 = 0x8003;
    // 0x8004 was version 1's reply to an increment.
    /// See [`super::Reply::Rows`].
    pub const ROWS: u16 = 0x8005;
    /// See [`super::Reply::Routes`].
    pub const ROUTES: u16 = 0x8006;
    /// See [`super::Reply::Node`].
    pub const NODE: u16 = 0x8007;
    /// See [`super::Reply::Admin`].
    pub const ADMIN: u16 = 0x8008;
    /// See [`super::Reply::Values`].
    pub const VALUES: u16 = 0x8009;
    /// See [`super::Reply::Error`].
    pub const ERROR: u16 = 0x80ff;
}

/// Where to send requests for the keys of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The range.
    pub range: u64,
    /// The version in the range's epoch.
    pub version: u32,
    /// The membership in the range's epoch.
    pub conf: u32,
    /// First key of the range.
    pub start: Vec<u8>,
    /// End of its keys, exclusive; `None` if they reach to the end of the key space.
    pub end: Option<Vec<u8>>,
    /// Node and shard of the leader, if they are known.
    pub leader: Option<(u64, u16)>,
    /// The address that the leader's node advertises. It is empty if no useful one is known; a
    /// client then uses the address of the node that sent the route.
    pub address: String,
}

/// A row of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value; empty if the scan asked for keys only.
    pub value: &'a [u8],
    /// Its version.
    pub version: u64,
}

/// The state of a range on a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub struct ShardState {
    /// Its number on the node.
    pub shard: u16,
    /// Its ranges.
    pub ranges: Vec<RangeState>,
    /// Bytes of the log that a restart would replay.
    pub replay_bytes: u64,
    /// How far the shard is behind its writers, from 0 to 1.
    pub pressure: f32,
    /// Writes are refused because the disk is full.
    pub disk_full: bool,
    /// Durable writes to the log since the node started.
    pub log_writes: u64,
    /// Bytes of these writes.
    pub log_bytes: u64,
    /// Bytes of its tables.
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
pub struct MemoryUse {
    /// Its name.
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
    /// Its shards.
    pub shards: Vec<ShardState>,
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum Reply<'a> {
    /// Answers a get.
    Value {
        value: Option<&'a [u8]>,
        version: u64,
    },
    /// Answers a multi-get.
    Values(Values<'a>),
    /// Answers a write that was applied.
    Written {
        version: u64,
        existed: bool,
        numbers: Cow<'a, [i64]>,
    },
    /// Answers a write that was not applied, with the first condition that does not hold and the
    /// version of the current value of its key.
    ConditionFailed {
        current: Option<u64>,
        condition: u32,
    },
    /// Answers a scan.
    Rows {
        rows: Vec<Row<'a>>,
        continuation: Option<&'a [u8]>,
        at: u64,
    },
    /// Answers a request for the directory.
    Routes(Vec<Route>),
    /// Answers a request for the node's state.
    Node(Box<NodeState>),
    /// Answers an admin request, in JSON.
    Admin { json: &'a str },
    /// Answers any request that failed.
    Error(Box<ErrorReply>),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    /// The error code; if this version does not know it, its number.
    pub code: Result<ErrorCode, u16>,
    /// What became of a write.
    pub fate: Fate,
    /// Milliseconds after which to try again; 0 if that is not known.
    pub retry_after_ms: u32,
    /// A message for people.
    pub message: String,
    /// The route to use instead, if there is one.
    pub route: Option<Route>,
}

/// Why a reply cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BadReply {
    /// The kind is unknown.
    #[error("replies of kind {0} are unknown")]
    UnknownKind(u16),
    /// The table is not one of this kind.
    #[error("the reply's table cannot be read: {0}")]
    BadTable(#[from] InvalidFlatbuffer),
    /// The results of a multi-get do not fit its values and errors.
    #[error("the results of the keys do not fit the values and errors beside them")]
    BadValues,
}

fn route(r: &wire::Route<'_>) -> Route {
    Route {
        range: r.range(),
        version: r.version(),
        conf: r.conf(),
        start: r.start().bytes().to_vec(),
        end: r.end().map(|end| end.bytes().to_vec()),
        leader: r.led().then(|| (r.node(), r.shard())),
        address: r.address().unwrap_or_default().to_owned(),
    }
}

fn build_route<'b>(b: &mut FlatBufferBuilder<'b>, route: &Route) -> WIPOffset<wire::Route<'b>> {
    let start = Some(b.create_vector(&route.start));
    let end = route.end.as_ref().map(|end| b.create_vector(end));
    let address = Some(b.create_string(&route.address));
    let (node, shard) = route.leader.unwrap_or_default();
    let args = wire::RouteArgs {
        range: route.range,
        version: route.version,
        conf: route.conf,
        start,
        end,
        led: route.leader.is_some(),
        node,
        shard,
        address,
    };
    wire::Route::create(b, &args)
}

impl<'a> Reply<'a> {
    /// Decodes the table of a reply frame. The table is verified once, here. Returns the cluster's
    /// time, too.
    ///
    /// # Errors
    /// See [`BadReply`].
    pub fn decode(kind: u16, table: &'a [u8]) -> Result<(Reply<'a>, u64), BadReply> {
        Ok(match kind {
            kind::VALUE => {
                let t = flatbuffers::root::<wire::Value<'a>>(table)?;
                let value = t.value().map(|v| v.bytes());
                (
                    Reply::Value {
                        value,
                        version: t.version(),
                    },
                    t.now(),
                )
            }
            kind::VALUES => {
                let t = flatbuffers::root::<wire::Values<'a>>(table)?;
                (Reply::Values(Values::decode(&t)?), t.now())
            }
            kind::WRITTEN => {
                let t = flatbuffers::root::<wire::Written<'a>>(table)?;
                (
                    Reply::Written {
                        version: t.version(),
                        existed: t.existed(),
                        numbers: t.numbers().into_iter().flatten().collect(),
                    },
                    t.now(),
                )
            }
            kind::CONDITION_FAILED => {
                let t = flatbuffers::root::<wire::ConditionFailed<'a>>(table)?;
                let current = Some(t.current()).filter(|version| *version != 0);
                let condition = t.condition();
                (Reply::ConditionFailed { current, condition }, t.now())
            }
            kind::ROWS => {
                let t = flatbuffers::root::<wire::Rows<'a>>(table)?;
                let rows = t.rows().iter().map(|row| Row {
                    key: row.key().bytes(),
                    value: row.value().bytes(),
                    version: row.version(),
                });
                let continuation = t.continuation().map(|c| c.bytes());
                (
                    Reply::Rows {
                        rows: rows.collect(),
                        continuation,
                        at: t.at(),
                    },
                    t.now(),
                )
            }
            kind::ROUTES => {
                let t = flatbuffers::root::<wire::Routes<'a>>(table)?;
                (
                    Reply::Routes(t.routes().iter().map(|r| route(&r)).collect()),
                    t.now(),
                )
            }
            kind::NODE => {
                let t = flatbuffers::root::<wire::NodeState<'a>>(table)?;
                (Reply::Node(Box::new(node_state(&t))), t.now())
            }
            kind::ADMIN => {
                let t = flatbuffers::root::<wire::AdminDone<'a>>(table)?;
                (Reply::Admin { json: t.json() }, t.now())
            }
            kind::ERROR => {
                let t = flatbuffers::root::<wire::Error<'a>>(table)?;
                (Reply::Error(Box::new(error_reply(&t))), t.now())
            }
            other => return Err(BadReply::UnknownKind(other)),
        })
    }

    /// The kind of this reply's frame.
    pub fn kind(&self) -> u16 {
        match self {
            Reply::Value { .. } => kind::VALUE,
            Reply::Values(_) => kind::VALUES,
            Reply::Written { .. } => kind::WRITTEN,
            Reply::ConditionFailed { .. } => kind::CONDITION_FAILED,
            Reply::Rows { .. } => kind::ROWS,
            Reply::Routes(_) => kind::ROUTES,
            Reply::Node(_) => kind::NODE,
            Reply::Admin { .. } => kind::ADMIN,
            Reply::Error(_) => kind::ERROR,
        }
    }

    /// Appends this reply's frame to `to`. `now` is the cluster's time. `builder` is scratch space,
    /// passed in to reuse its memory.
    pub fn encode(&self, id: u64, now: u64, builder: &mut FlatBufferBuilder<'_>, to: &mut Vec<u8>) {
        builder.reset();
        self.build(now, builder);
        frame::encode(id, self.kind(), builder.finished_data(), to);
    }

    fn build(&self, now: u64, b: &mut FlatBufferBuilder<'_>) {
        match self {
            Reply::Value { value, version } => {
                let value = value.map(|value| b.create_vector(value));
                let args = wire::ValueArgs {
                    value,
                    version: *version,
                    now,
                };
                let root = wire::Value::create(b, &args);
                b.finish_minimal(root);
            }
            Reply::Values(values) => values.build(b, now),
            Reply::Written {
                version,
                existed,
                numbers,
            } => {
                let numbers = (!numbers.is_empty()).then(|| b.create_vector(numbers));
                let args = wire::WrittenArgs {
                    numbers,
                    version: *version,
                    existed: *existed,
                    now,
                };
                let root = wire::Written::create(b, &args);
                b.finish_minimal(root);
            }
            Reply::ConditionFailed { current, condition } => {
                let args = wire::ConditionFailedArgs {
                    condition: *condition,
                    current: current.unwrap_or(0),
                    now,
                };
                let root = wire::ConditionFailed::create(b, &args);
                b.finish_minimal(root);
            }
            Reply::Rows {
                rows,
                continuation,
                at,
            } => {
                let rows: Vec<WIPOffset<wire::Row<'_>>> = rows
                    .iter()
                    .map(|row| {
                        let value = Some(b.create_vector(row.value));
                        let key = Some(b.create_vector(row.key));
                        wire::Row::create(
                            b,
                            &wire::RowArgs {
                                key,
                                value,
                                version: row.version,
                            },
                        )
                    })
                    .collect();
                let rows = Some(b.create_vector(&rows));
                let continuation = continuation.map(|token| b.create_vector(token));
                let root = wire::Rows::create(
                    b,
                    &wire::RowsArgs {
                        rows,
                        continuation,
                        at: *at,
                        now,
                    },
                );
                b.finish_minimal(root);
            }
            Reply::Routes(routes) => {
                let routes: Vec<_> = routes.iter().map(|r| build_route(b, r)).collect();
                let routes = Some(b.create_vector(&routes));
                let root = wire::Routes::create(b, &wire::RoutesArgs { routes, now });
                b.finish_minimal(root);
            }
            Reply::Node(node) => build_node(b, node, now),
            Reply::Admin { json } => {
                let json = Some(b.create_string(json));
                let root = wire::AdminDone::create(b, &wire::AdminDoneArgs { json, now });
                b.finish_minimal(root);
            }
            Reply::Error(error) => {
                let root = build_error(b, error, now);
                b.finish_minimal(root);
            }
        }
    }
}

pub(crate) fn error_reply(t: &wire::Error<'_>) -> ErrorReply {
    ErrorReply {
        code: ErrorCode::from_u16(t.code()).ok_or(t.code()),
        fate: Fate::from_u8(t.fate()),
        retry_after_ms: t.retry_after_ms(),
        message: t.message().unwrap_or_default().to_owned(),
        route: t.route().map(|r| route(&r)),
    }
}

pub(crate) fn build_error<'b>(
    b: &mut FlatBufferBuilder<'b>,
    error: &ErrorReply,
    now: u64,
) -> WIPOffset<wire::Error<'b>> {
    let route = error.route.as_ref().map(|route| build_route(b, route));
    let message = Some(b.create_string(&error.message));
    let args = wire::ErrorArgs {
        code: error.code.map_or_else(|code| code, |code| code as u16),
        fate: error.fate as u8,
        retry_after_ms: error.retry_after_ms,
        message,
        route,
        now,
    };
    wire::Error::create(b, &args)
}

fn build_node(b: &mut FlatBufferBuilder<'_>, node: &NodeState, now: u64) {
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

fn node_state(t: &wire::NodeState<'_>) -> NodeState {
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
