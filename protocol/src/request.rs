//! Requests: typed views of the tables, borrowed from the frame, and their encoding.

use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, WIPOffset};

use crate::frame;
use crate::generated::wire;
use crate::limits::ADMIN_COMMAND_LEN_MAX;

/// The kinds of request frames.
pub mod kind {
    /// See [`super::RequestBody::Get`].
    pub const GET: u16 = 1;
    /// See [`super::RequestBody::Put`].
    pub const PUT: u16 = 2;
    /// See [`super::RequestBody::Delete`].
    pub const DELETE: u16 = 3;
    /// See [`super::RequestBody::CompareAndSwap`].
    pub const COMPARE_AND_SWAP: u16 = 4;
    /// See [`super::RequestBody::Increment`].
    pub const INCREMENT: u16 = 5;
    /// See [`super::RequestBody::Write`].
    pub const WRITE: u16 = 6;
    /// See [`super::RequestBody::Scan`].
    pub const SCAN: u16 = 7;
    /// See [`super::RequestBody::Directory`].
    pub const DIRECTORY: u16 = 8;
    /// See [`super::RequestBody::Status`].
    pub const STATUS: u16 = 9;
    /// See [`super::RequestBody::Admin`].
    pub const ADMIN: u16 = 10;
}

/// The name of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Made at random by the client.
    pub client: u128,
    /// The client's number of this write, from 1.
    pub sequence: u64,
    /// Below this every write of the client has been answered, and no try of it is under way.
    pub lowest_unanswered: u64,
    /// The cluster's time when the client first tried this write, as it reckons.
    pub first_tried: u64,
}

/// The range that the sender believes to own the first key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The range.
    pub range: u64,
    /// Its epoch: version.
    pub version: u32,
    /// Its epoch: membership.
    pub conf: u32,
}

/// When a compare-and-swap writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// The key has no value.
    Absent,
    /// The key has exactly this value.
    Value(&'a [u8]),
    /// The key's value has this version.
    Version(u64),
}

/// One change of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its new value; `None` deletes it.
    pub value: Option<&'a [u8]>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum RequestBody<'a> {
    /// Reads a key.
    Get { key: &'a [u8] },
    /// Sets a key.
    Put {
        key: &'a [u8],
        value: &'a [u8],
        session: Session,
    },
    /// Removes a key.
    Delete { key: &'a [u8], session: Session },
    /// Sets or, without a value, removes a key if the condition holds.
    CompareAndSwap {
        key: &'a [u8],
        condition: Condition<'a>,
        value: Option<&'a [u8]>,
        session: Session,
    },
    /// Adds to a number in decimal text.
    Increment {
        key: &'a [u8],
        delta: i64,
        session: Session,
    },
    /// Several changes, all or nothing.
    Write {
        mutations: Vec<Mutation<'a>>,
        session: Session,
    },
    /// Reads rows in key order.
    Scan {
        start: Option<&'a [u8]>,
        end: Option<&'a [u8]>,
        rows_max: u32,
        bytes_max: u32,
        continuation: Option<&'a [u8]>,
    },
    /// Asks where ranges are.
    Directory,
    /// Asks for the node's state.
    Status,
    /// Shows or steers the cluster: a command in JSON.
    Admin { command: &'a str },
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is asked.
    pub body: RequestBody<'a>,
    /// The range the sender believes in; `None`: it does not know.
    pub target: Option<Target>,
    /// Milliseconds that the sender will wait; 0: it does not say.
    pub deadline_ms: u32,
    /// The newest cluster timestamp that the sender has seen; 0: none.
    pub token: u64,
}

/// Why a request cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BadRequest {
    /// The kind is unknown: the connection can go on.
    #[error("requests of kind {0} are unknown to this server")]
    UnknownKind(u16),
    /// The table is not what its kind says.
    #[error("the request's table cannot be read: {0}")]
    BadTable(#[from] InvalidFlatbuffer),
    /// A compare-and-swap names a condition that this server does not know.
    #[error("condition {0} is unknown; a condition is 0 (absent), 1 (value) or 2 (version)")]
    UnknownCondition(u8),
    /// A compare-and-swap under `Value` does not say which.
    #[error("the condition Value needs expected_value")]
    NoExpectedValue,
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

/// The fields that all requests about keys share.
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
    /// Reads a request frame's table; verifies it once.
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
            kind::PUT => {
                let t = flatbuffers::root::<wire::Put<'a>>(table)?;
                let session = session(t.session());
                let (key, value) = (t.key().bytes(), t.value().bytes());
                common!(
                    t,
                    RequestBody::Put {
                        key,
                        value,
                        session
                    }
                )
            }
            kind::DELETE => {
                let t = flatbuffers::root::<wire::Delete<'a>>(table)?;
                let session = session(t.session());
                common!(
                    t,
                    RequestBody::Delete {
                        key: t.key().bytes(),
                        session
                    }
                )
            }
            kind::COMPARE_AND_SWAP => decode_compare_and_swap(table)?,
            kind::INCREMENT => {
                let t = flatbuffers::root::<wire::Increment<'a>>(table)?;
                let (key, delta) = (t.key().bytes(), t.delta());
                let session = session(t.session());
                common!(
                    t,
                    RequestBody::Increment {
                        key,
                        delta,
                        session
                    }
                )
            }
            kind::WRITE => {
                let t = flatbuffers::root::<wire::Write<'a>>(table)?;
                let mutation = |m: wire::Mutation<'a>| Mutation {
                    key: m.key().bytes(),
                    value: m.value().map(|v| v.bytes()),
                };
                // One more than the limit is enough to be refused for it.
                let most = crate::limits::BATCH_OPS_MAX + 1;
                let mutations = t.mutations().iter().take(most).map(mutation).collect();
                let session = session(t.session());
                common!(t, RequestBody::Write { mutations, session })
            }
            kind::SCAN => {
                let t = flatbuffers::root::<wire::Scan<'a>>(table)?;
                let body = RequestBody::Scan {
                    start: t.start().map(|b| b.bytes()),
                    end: t.end().map(|b| b.bytes()),
                    rows_max: t.rows_max(),
                    bytes_max: t.bytes_max(),
                    continuation: t.continuation().map(|b| b.bytes()),
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
            RequestBody::Put { .. } => kind::PUT,
            RequestBody::Delete { .. } => kind::DELETE,
            RequestBody::CompareAndSwap { .. } => kind::COMPARE_AND_SWAP,
            RequestBody::Increment { .. } => kind::INCREMENT,
            RequestBody::Write { .. } => kind::WRITE,
            RequestBody::Scan { .. } => kind::SCAN,
            RequestBody::Directory => kind::DIRECTORY,
            RequestBody::Status => kind::STATUS,
            RequestBody::Admin { .. } => kind::ADMIN,
        }
    }

    /// Appends this request's frame. `builder` is only scratch, kept for its memory.
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
            RequestBody::Put {
                key,
                value,
                session,
            } => {
                let (key, value) = (Some(b.create_vector(key)), Some(b.create_vector(value)));
                let session = Some(&wire_session(session));
                let args = wire::PutArgs {
                    key,
                    value,
                    session,
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Put::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::Delete { key, session } => {
                let key = Some(b.create_vector(key));
                let session = Some(&wire_session(session));
                let args = wire::DeleteArgs {
                    key,
                    session,
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Delete::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::CompareAndSwap { .. } => self.build_compare_and_swap(b),
            RequestBody::Increment {
                key,
                delta,
                session,
            } => {
                let (key, delta) = (Some(b.create_vector(key)), *delta);
                let session = Some(&wire_session(session));
                let args = wire::IncrementArgs {
                    key,
                    delta,
                    session,
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Increment::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::Write { mutations, session } => {
                let mutations: Vec<WIPOffset<wire::Mutation<'_>>> = mutations
                    .iter()
                    .map(|m| {
                        let value = m.value.map(|value| b.create_vector(value));
                        let key = Some(b.create_vector(m.key));
                        wire::Mutation::create(b, &wire::MutationArgs { key, value })
                    })
                    .collect();
                let mutations = Some(b.create_vector(&mutations));
                let session = Some(&wire_session(session));
                let args = wire::WriteArgs {
                    mutations,
                    session,
                    target,
                    deadline_ms,
                    token,
                };
                let root = wire::Write::create(b, &args);
                b.finish_minimal(root);
            }
            RequestBody::Scan {
                start,
                end,
                rows_max,
                bytes_max,
                continuation,
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

    fn build_compare_and_swap(&self, b: &mut FlatBufferBuilder<'_>) {
        let RequestBody::CompareAndSwap {
            key,
            condition,
            value,
            session,
        } = &self.body
        else {
            return;
        };
        let (number, expected_value, expected_version) = match condition {
            Condition::Absent => (wire::Condition::Absent, None, 0),
            Condition::Value(value) => (wire::Condition::Value, Some(b.create_vector(value)), 0),
            Condition::Version(version) => (wire::Condition::Version, None, *version),
        };
        let target = self
            .target
            .map(|t| wire::Target::new(t.range, t.version, t.conf));
        let args = wire::CompareAndSwapArgs {
            key: Some(b.create_vector(key)),
            condition: number,
            expected_value,
            expected_version,
            value: value.map(|value| b.create_vector(value)),
            session: Some(&wire_session(session)),
            target: target.as_ref(),
            deadline_ms: self.deadline_ms,
            token: self.token,
        };
        let root = wire::CompareAndSwap::create(b, &args);
        b.finish_minimal(root);
    }
}

fn decode_compare_and_swap(table: &[u8]) -> Result<Request<'_>, BadRequest> {
    let t = flatbuffers::root::<wire::CompareAndSwap<'_>>(table)?;
    let condition = match t.condition() {
        wire::Condition::Absent => Condition::Absent,
        wire::Condition::Value => {
            let value = t.expected_value().ok_or(BadRequest::NoExpectedValue)?;
            Condition::Value(value.bytes())
        }
        wire::Condition::Version => Condition::Version(t.expected_version()),
        other => return Err(BadRequest::UnknownCondition(other.0)),
    };
    let body = RequestBody::CompareAndSwap {
        key: t.key().bytes(),
        condition,
        value: t.value().map(|v| v.bytes()),
        session: session(t.session()),
    };
    Ok(common!(t, body))
}
