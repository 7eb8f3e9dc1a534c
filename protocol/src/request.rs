//! Requests: typed views of the tables, which borrow from the frame, and their encoding.

use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, WIPOffset};
use rangedb_limits::{BrokenLimit, OperationKind};
use smallvec::SmallVec;

use crate::frame;
use crate::generated::wire;
use crate::limits::ADMIN_COMMAND_LEN_MAX;
use crate::multi_get;

/// The kinds of request frames.
pub mod kind {
    /// See [`super::RequestBody::Get`].
    pub const GET: u16 = 1;
    // 2 to 5 were version 1's writes of one key.
    /// See [`super::RequestBody::Batch`].
    pub const BATCH: u16 = 6;
    /// See [`super::RequestBody::Scan`].
    pub const SCAN: u16 = 7;
    /// See [`super::RequestBody::Directory`].
    pub const DIRECTORY: u16 = 8;
    /// See [`super::RequestBody::Status`].
    pub const STATUS: u16 = 9;
    /// See [`super::RequestBody::Admin`].
    pub const ADMIN: u16 = 10;
    /// See [`super::RequestBody::MultiGet`].
    pub const MULTI_GET: u16 = 11;
}

/// Identifies a write, so that retries of it are applied at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The client's id, which it has chosen at random.
    pub client: u128,
    /// The number of this write among the writes of the client, from 1.
    pub sequence: u64,
    /// Every write of the client below this sequence has been answered and is not being retried.
    pub lowest_unanswered: u64,
    /// The cluster's time when the client first tried this write, as the client estimates it.
    pub first_tried: u64,
}

/// The range that the sender believes to own the first key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The id of that range.
    pub range: u64,
    /// The version in the range's epoch.
    pub version: u32,
    /// The membership in the range's epoch.
    pub conf: u32,
}

/// A condition that a key must meet for a batch to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// The key that the condition is about.
    pub key: &'a [u8],
    /// What is expected of it.
    pub expected: Expected<'a>,
}

/// What a condition expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected<'a> {
    /// The key has no value.
    Absent,
    /// The key has exactly this value.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
    /// The key has a value.
    Exists,
}

/// One change of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// The key that is changed.
    pub key: &'a [u8],
    /// The change of its value.
    pub change: Change<'a>,
}

/// What a mutation does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Sets its value.
    Put(&'a [u8]),
    /// Removes it.
    Delete,
    /// Adds to its value, a number in decimal text. An absent key counts as 0.
    Add(i64),
}

impl<'a> Change<'a> {
    /// A put of this value, or a delete if there is none.
    pub fn to(value: Option<&'a [u8]>) -> Change<'a> {
        value.map_or(Change::Delete, Change::Put)
    }

    /// The value that a put carries.
    pub fn value(&self) -> Option<&'a [u8]> {
        match self {
            Change::Put(value) => Some(value),
            Change::Delete | Change::Add(_) => None,
        }
    }
}

/// A write to one range. If all conditions hold, all mutations are made; otherwise none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Conditions, in the order in which they are checked.
    pub conditions: Vec<Condition<'a>>,
    /// Mutations, at least one. Most batches have exactly one, which needs no allocation.
    pub mutations: SmallVec<[Mutation<'a>; 1]>,
}

impl<'a> Batch<'a> {
    /// A batch that changes one key.
    pub fn of(key: &'a [u8], change: Change<'a>) -> Batch<'a> {
        Batch {
            conditions: Vec::new(),
            mutations: SmallVec::from_buf([Mutation { key, change }]),
        }
    }

    /// The same batch under one more condition.
    #[must_use]
    pub fn when(mut self, key: &'a [u8], expected: Expected<'a>) -> Batch<'a> {
        self.conditions.push(Condition { key, expected });
        self
    }

    /// Checks the batch against the limits.
    ///
    /// # Errors
    /// See [`BrokenLimit`].
    pub fn check(&self) -> Result<(), BrokenLimit> {
        let conditions = self.conditions.iter().map(|c| rangedb_limits::Operation {
            kind: OperationKind::Condition,
            key: c.key,
            value: c.expected.value(),
        });
        let mutations = self.mutations.iter().map(|m| rangedb_limits::Operation {
            kind: match m.change {
                Change::Put(_) | Change::Delete => OperationKind::Mutation,
                Change::Add(_) => OperationKind::Addition,
            },
            key: m.key,
            value: m.change.value().unwrap_or_default(),
        });
        rangedb_limits::check_write(conditions.chain(mutations))
    }

    /// All its keys and values, those that conditions expect included: first those of the
    /// conditions, then those of the mutations, each key before its value.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + Clone + '_ {
        let conditions = self
            .conditions
            .iter()
            .flat_map(|c| [c.key, c.expected.value()]);
        let mutation = |m: &Mutation<'a>| [m.key, m.change.value().unwrap_or_default()];
        conditions.chain(self.mutations.iter().flat_map(mutation))
    }
}

impl<'a> Expected<'a> {
    /// The value that is expected, or an empty one if none is.
    fn value(&self) -> &'a [u8] {
        match self {
            Expected::Value(value) => value,
            Expected::Absent | Expected::Version(_) | Expected::Exists => &[],
        }
    }
}

/// The body of a request, by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum RequestBody<'a> {
    /// Reads a key.
    Get { key: &'a [u8] },
    /// Reads keys of any ranges.
    MultiGet { keys: Vec<&'a [u8]> },
    /// Writes a batch.
    Batch { batch: Batch<'a>, session: Session },
    /// Reads rows in key order.
    Scan {
        start: Option<&'a [u8]>,
        end: Option<&'a [u8]>,
        rows_max: u32,
        bytes_max: u32,
        continuation: Option<&'a [u8]>,
        reverse: bool,
        keys_only: bool,
    },
    /// Asks for the routes of all ranges.
    Directory,
    /// Asks for the node's state.
    Status,
    /// Runs an admin command, which is JSON.
    Admin { command: &'a str },
}

impl<'a> RequestBody<'a> {
    /// Sets a key.
    pub fn put(key: &'a [u8], value: &'a [u8], session: Session) -> RequestBody<'a> {
        let batch = Batch::of(key, Change::Put(value));
        RequestBody::Batch { batch, session }
    }

    /// Removes a key.
    pub fn delete(key: &'a [u8], session: Session) -> RequestBody<'a> {
        let batch = Batch::of(key, Change::Delete);
        RequestBody::Batch { batch, session }
    }

    /// Adds to a number.
    pub fn add(key: &'a [u8], delta: i64, session: Session) -> RequestBody<'a> {
        let batch = Batch::of(key, Change::Add(delta));
        RequestBody::Batch { batch, session }
    }

    /// Sets a key, or removes it without a value, if the key is as expected.
    pub fn compare_and_swap(
        key: &'a [u8],
        expected: Expected<'a>,
        value: Option<&'a [u8]>,
        session: Session,
    ) -> RequestBody<'a> {
        let batch = Batch::of(key, Change::to(value)).when(key, expected);
        RequestBody::Batch { batch, session }
    }

    /// Makes several changes atomically.
    pub fn write(
        mutations: impl IntoIterator<Item = Mutation<'a>>,
        session: Session,
    ) -> RequestBody<'a> {
        let batch = Batch {
            conditions: Vec::new(),
            mutations: mutations.into_iter().collect(),
        };
        RequestBody::Batch { batch, session }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The body, whose kind is the kind of the frame.
    pub body: RequestBody<'a>,
    /// The range that the sender believes to own the first key; `None` if it does not know.
    pub target: Option<Target>,
    /// Milliseconds that the sender will wait; 0 if it does not say.
    pub deadline_ms: u32,
    /// The newest cluster timestamp that the sender has seen; 0 if it has seen none.
    pub token: u64,
}

/// Why a request cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BadRequest {
    /// The kind is unknown. The connection can still be used.
    #[error("requests of kind {0} are unknown to this server")]
    UnknownKind(u16),
    /// The table is not one of this kind.
    #[error("the request's table cannot be read: {0}")]
    BadTable(#[from] InvalidFlatbuffer),
    /// The lengths of a multi-get's keys are not those of its bytes.
    #[error("the lengths of the keys do not add up to the bytes of the keys")]
    KeyLengths,
    /// A condition expects something that this server does not know.
    #[error(
        "condition {0} is unknown; a condition is 0 (absent), 1 (value), 2 (version) or 3 (exists)"
    )]
    UnknownCondition(u8),
    /// A condition that expects a value has none.
    #[error("a condition that expects a value needs the field value")]
    NoExpectedValue,
    /// A mutation is of a kind that this server does not know.
    #[error("change {0} is unknown; a change is 0 (put), 1 (delete) or 2 (add)")]
    UnknownChange(u8),
    /// A put has no value.
    #[error("a put needs the field value; it may be empty")]
    NoValue,
    /// A mutation has an expiry.
    #[error("expires_at is {0}; this server does not support expiry, so it must be 0")]
    Expiry(u64),
    /// An admin command is longer than the limit.
    #[error("the admin command has {0} bytes; a command has at most {ADMIN_COMMAND_LEN_MAX}")]
    LongCommand(usize),
}

fn session(s: &wire::Session) -> Session {
    Session {
        client: u128::from(s.client_high()) << 64 | u128::from(s.client_low()),
        sequence: s.sequence(),
        lowest_unanswered: s.lowest_unanswered(),
        first_tried: s.first_tried(),
    }
}

fn wire_session(s: &Session) -> wire::Session {
    let (high, low) = ((s.client >> 64) as u64, s.client as u64);
    wire::Session::new(high, low, s.sequence, s.lowest_unanswered, s.first_tried)
}

fn target(t: Option<&wire::Target>) -> Option<Target> {
    t.map(|t| Target {
        range: t.range(),
        version: t.version(),
        conf: t.conf(),
    })
}

/// Builds a request from a table with the fields that all requests about keys share.
macro_rules! common {
    ($table:expr, $body:expr) => {
        Request {
            body: $body,
            target: target($table.target()),
            deadline_ms: $table.deadline_ms(),
            token: $table.token(),
        }
    };
}

impl<'a> Request<'a> {
    /// Decodes the table of a request frame. The table is verified once, here.
    ///
    /// # Errors
    /// See [`BadRequest`].
    pub fn decode(kind: u16, table: &'a [u8]) -> Result<Request<'a>, BadRequest> {
        Ok(match kind {
            kind::GET => {
                let t = flatbuffers::root::<wire::Get<'a>>(table)?;
                common!(
                    t,
                    RequestBody::Get {
                        key: t.key().bytes()
                    }
                )
            }
            kind::MULTI_GET => multi_get::decode(table)?,
            kind::BATCH => decode_batch(table)?,
            kind::SCAN => {
                let t = flatbuffers::root::<wire::Scan<'a>>(table)?;
                let body = RequestBody::Scan {
                    start: t.start().map(|b| b.bytes()),
                    end: t.end().map(|b| b.bytes()),
                    rows_max: t.rows_max(),
                    bytes_max: t.bytes_max(),
                    continuation: t.continuation().map(|b| b.bytes()),
                    reverse: t.reverse(),
                    keys_only: t.keys_only(),
                };
                common!(t, body)
            }
            kind::DIRECTORY => {
                let t = flatbuffers::root::<wire::Directory<'a>>(table)?;
                let body = RequestBody::Directory;
                Request {
                    body,
                    target: None,
                    deadline_ms: 0,
                    token: t.token(),
                }
            }
            kind::STATUS => {
                let t = flatbuffers::root::<wire::Status<'a>>(table)?;
                let body = RequestBody::Status;
                Request {
                    body,
                    target: None,
                    deadline_ms: 0,
                    token: t.token(),
                }
            }
            kind::ADMIN => {
                let t = flatbuffers::root::<wire::Admin<'a>>(table)?;
                let command = t.command();
                if command.len() > ADMIN_COMMAND_LEN_MAX {
                    return Err(BadRequest::LongCommand(command.len()));
                }
                Request {
                    body: RequestBody::Admin { command },
                    target: None,
                    deadline_ms: t.deadline_ms(),
                    token: t.token(),
                }
            }
            other => return Err(BadRequest::UnknownKind(other)),
        })
    }

    /// The kind of this request's frame.
    pub fn kind(&self) -> u16 {
        match &self.body {
            RequestBody::Get { .. } => kind::GET,
            RequestBody::MultiGet { .. } => kind::MULTI_GET,
            RequestBody::Batch { .. } => kind::BATCH,
            RequestBody::Scan { .. } => kind::SCAN,
            RequestBody::Directory => kind::DIRECTORY,
            RequestBody::Status => kind::STATUS,
            RequestBody::Admin { .. } => kind::ADMIN,
        }
    }

    /// Appends this request's frame to `to`. `builder` is scratch space, passed in to reuse its
    /// memory.
    pub fn encode(&self, id: u64, builder: &mut FlatBufferBuilder<'_>, to: &mut Vec<u8>) {
        builder.reset();
        self.build(builder);
        frame::encode(id, self.kind(), builder.finished_data(), to);
    }

    fn build(&self, b: &mut FlatBufferBuilder<'_>) {
        let target = self
            .target
            .map(|t| wire::Target::new(t.range, t.version, t.conf));
        let target = target.as_ref();
        let (deadline_ms, token) = (self.deadline_ms, self.token);
        match &self.body {
            RequestBody::Get { key } => {
                let key = Some(b.create_vector(key));
                let args = wire::GetArgs {
                    key,
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Get::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::MultiGet { keys } => multi_get::build(keys, self, b),
            RequestBody::Batch { batch, session } => {
                let conditions = (!batch.conditions.is_empty()).then(|| {
                    let conditions: Vec<_> = batch
                        .conditions
                        .iter()
                        .map(|c| build_condition(b, c))
                        .collect();
                    b.create_vector(&conditions)
                });
                let mutations = match batch.mutations.as_slice() {
                    [mutation] => {
                        let mutation = build_mutation(b, mutation);
                        b.create_vector(&[mutation])
                    }
                    mutations => {
                        let mutations: Vec<_> =
                            mutations.iter().map(|m| build_mutation(b, m)).collect();
                        b.create_vector(&mutations)
                    }
                };
                let session = wire_session(session);
                let args = wire::BatchArgs {
                    conditions,
                    mutations: Some(mutations),
                    session: Some(&session),
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Batch::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::Scan {
                start,
                end,
                rows_max,
                bytes_max,
                continuation,
                reverse,
                keys_only,
            } => {
                let args = wire::ScanArgs {
                    start: start.map(|bytes| b.create_vector(bytes)),
                    end: end.map(|bytes| b.create_vector(bytes)),
                    rows_max: *rows_max,
                    bytes_max: *bytes_max,
                    continuation: continuation.map(|bytes| b.create_vector(bytes)),
                    target,
                    deadline_ms,
                    token,
                    reverse: *reverse,
                    keys_only: *keys_only,
                };
                let root = wire::Scan::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::Directory => {
                let root = wire::Directory::create(b, &wire::DirectoryArgs { token });
                b.finish_minimal(root);
            }
            RequestBody::Status => {
                let root = wire::Status::create(b, &wire::StatusArgs { token });
                b.finish_minimal(root);
            }
            RequestBody::Admin { command } => {
                let args = wire::AdminArgs {
                    command: Some(b.create_string(command)),
                    deadline_ms,
                    token,
                };
                let root = wire::Admin::create(b, &args);
                b.finish_minimal(root);
            }
        }
    }
}

fn build_condition<'b>(
    b: &mut FlatBufferBuilder<'b>,
    condition: &Condition<'_>,
) -> WIPOffset<wire::Condition<'b>> {
    let (expected, value, version) = match condition.expected {
        Expected::Absent => (wire::Expected::Absent, None, 0),
        Expected::Value(value) => (wire::Expected::Value, Some(b.create_vector(value)), 0),
        Expected::Version(version) => (wire::Expected::Version, None, version),
        Expected::Exists => (wire::Expected::Exists, None, 0),
    };
    let args = wire::ConditionArgs {
        key: Some(b.create_vector(condition.key)),
        expected,
        value,
        version,
    };
    wire::Condition::create(b, &args)
}

fn build_mutation<'b>(
    b: &mut FlatBufferBuilder<'b>,
    mutation: &Mutation<'_>,
) -> WIPOffset<wire::Mutation<'b>> {
    let (change, delta) = match mutation.change {
        Change::Put(_) => (wire::Change::Put, 0),
        Change::Delete => (wire::Change::Delete, 0),
        Change::Add(delta) => (wire::Change::Add, delta),
    };
    let args = wire::MutationArgs {
        value: mutation.change.value().map(|value| b.create_vector(value)),
        key: Some(b.create_vector(mutation.key)),
        change,
        delta,
        expires_at: 0,
    };
    wire::Mutation::create(b, &args)
}

fn decode_batch(table: &[u8]) -> Result<Request<'_>, BadRequest> {
    // One operation more than the limit is enough for the batch to be refused later.
    const MOST: usize = crate::limits::BATCH_OPS_MAX + 1;
    let t = flatbuffers::root::<wire::Batch<'_>>(table)?;
    let conditions = t
        .conditions()
        .into_iter()
        .flat_map(|all| all.iter().take(MOST));
    let mutations = t.mutations().iter().take(MOST);
    let batch = Batch {
        conditions: conditions.map(condition).collect::<Result<_, _>>()?,
        mutations: mutations.map(mutation).collect::<Result<_, _>>()?,
    };
    let session = session(t.session());
    Ok(common!(t, RequestBody::Batch { batch, session }))
}

fn condition(c: wire::Condition<'_>) -> Result<Condition<'_>, BadRequest> {
    let expected = match c.expected() {
        wire::Expected::Absent => Expected::Absent,
        wire::Expected::Value => {
            Expected::Value(c.value().ok_or(BadRequest::NoExpectedValue)?.bytes())
        }
        wire::Expected::Version => Expected::Version(c.version()),
        wire::Expected::Exists => Expected::Exists,
        other => return Err(BadRequest::UnknownCondition(other.0)),
    };
    let key = c.key().bytes();
    Ok(Condition { key, expected })
}

fn mutation(m: wire::Mutation<'_>) -> Result<Mutation<'_>, BadRequest> {
    if m.expires_at() != 0 {
        return Err(BadRequest::Expiry(m.expires_at()));
    }
    let change = match m.change() {
        wire::Change::Put => Change::Put(m.value().ok_or(BadRequest::NoValue)?.bytes()),
        wire::Change::Delete => Change::Delete,
        wire::Change::Add => Change::Add(m.delta()),
        other => return Err(BadRequest::UnknownChange(other.0)),
    };
    let key = m.key().bytes();
    Ok(Mutation { key, change })
}
