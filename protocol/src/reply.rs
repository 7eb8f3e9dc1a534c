//! Replies: typed views of the tables, which borrow from the frame, and their encoding.

use std::borrow::Cow;

use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, WIPOffset};

use crate::error_code::{ErrorCode, Fate};
use crate::frame;
use crate::generated::wire;
use crate::multi_get::Values;
use crate::node_state::{self, NodeState};

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The range that holds the keys.
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
    /// The key, as it was written.
    pub key: &'a [u8],
    /// Its value; empty if the scan asked for keys only.
    pub value: &'a [u8],
    /// The commit timestamp of the value.
    pub version: u64,
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
    /// The routes to use instead: that of the key, then those of other ranges that hold keys of the
    /// request's target. Empty if none is known.
    pub routes: Vec<Route>,
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

pub(crate) fn route(r: &wire::Route<'_>) -> Route {
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

pub(crate) fn build_route<'b>(
    b: &mut FlatBufferBuilder<'b>,
    route: &Route,
) -> WIPOffset<wire::Route<'b>> {
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
                (Reply::Node(Box::new(node_state::read(&t))), t.now())
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
            Reply::Node(node) => node_state::build(b, node, now),
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
    let more = t.more_routes().into_iter().flatten();
    let routes = t.route().into_iter().chain(more);
    ErrorReply {
        code: ErrorCode::from_u16(t.code()).ok_or(t.code()),
        fate: Fate::from_u8(t.fate()),
        retry_after_ms: t.retry_after_ms(),
        message: t.message().unwrap_or_default().to_owned(),
        routes: routes.map(|r| route(&r)).collect(),
    }
}

pub(crate) fn build_error<'b>(
    b: &mut FlatBufferBuilder<'b>,
    error: &ErrorReply,
    now: u64,
) -> WIPOffset<wire::Error<'b>> {
    let route = error.routes.first().map(|route| build_route(b, route));
    let more = error.routes.iter().skip(1);
    let more: Vec<_> = more.map(|route| build_route(b, route)).collect();
    let more_routes = (!more.is_empty()).then(|| b.create_vector(&more));
    let message = Some(b.create_string(&error.message));
    let args = wire::ErrorArgs {
        code: error.code.map_or_else(|code| code, |code| code as u16),
        fate: error.fate as u8,
        retry_after_ms: error.retry_after_ms,
        message,
        route,
        now,
        more_routes,
    };
    wire::Error::create(b, &args)
}
