//! Handlers of requests: each turns a frame into a call of the engine's
//! [gateway](rangedb_engine::gateway), and [`reply`] turns the answer into a frame. Requests without
//! a key (directory, status, orders of an operator) have files of their own.
//!
//! Hot path: a get under a lease allocates nothing. A write allocates one buffer for its keys and
//! values if its frame lies in the shard's receive buffer, which is used again; a long one keeps the
//! buffer into which its frame was gathered ([`batch`]). A multi-get allocates for its list of keys and
//! for its values together, and not for each. Runs on a shard's thread.

mod admin;
mod batch;
mod directory;
pub mod refusal;
pub mod reply;
pub mod scan;
pub mod status;

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::gateway::request::{Call, Caller};
use rangedb_engine::request::{RequestId, Target};
use rangedb_engine::types::{ClientId, Epoch, RangeId, Timestamp};
use rangedb_protocol::frame::Frame;
use rangedb_protocol::{BadRequest, Batch, Change, Request, RequestBody, Session};

use crate::env::Now;
use crate::handler::refusal::Refusal;
use crate::handler::reply::Head;
use crate::net::connection::Connection;
use crate::net::input::OwnBuffer;
use crate::shard::context::Context;
use crate::world::GlommioEnv;

/// The kinds of requests that counters distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's chapter says what each is")]
pub enum Operation {
    Get,
    MultiGet,
    Put,
    Delete,
    CompareAndSwap,
    Increment,
    Write,
    Scan,
    Directory,
    Status,
    Admin,
}

impl Operation {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Operation; 11] = [
        Operation::Get,
        Operation::MultiGet,
        Operation::Put,
        Operation::Delete,
        Operation::CompareAndSwap,
        Operation::Increment,
        Operation::Write,
        Operation::Scan,
        Operation::Directory,
        Operation::Status,
        Operation::Admin,
    ];

    /// The kind's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::MultiGet => "multi_get",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::CompareAndSwap => "cas",
            Operation::Increment => "incr",
            Operation::Write => "write",
            Operation::Scan => "scan",
            Operation::Directory => "directory",
            Operation::Status => "status",
            Operation::Admin => "admin",
        }
    }

    fn of(body: &RequestBody<'_>) -> Operation {
        match body {
            RequestBody::Get { .. } => Operation::Get,
            RequestBody::MultiGet { .. } => Operation::MultiGet,
            RequestBody::Batch { batch, .. } => Operation::of_batch(batch),
            RequestBody::Scan { .. } => Operation::Scan,
            RequestBody::Directory => Operation::Directory,
            RequestBody::Status => Operation::Status,
            RequestBody::Admin { .. } => Operation::Admin,
        }
    }

    /// Batches are counted by what they are made for.
    fn of_batch(batch: &Batch<'_>) -> Operation {
        match (batch.conditions.as_slice(), batch.mutations.as_slice()) {
            ([], [only]) => match only.change {
                Change::Put(_) => Operation::Put,
                Change::Delete => Operation::Delete,
                Change::Add(_) => Operation::Increment,
            },
            ([condition], [only]) if condition.key == only.key => Operation::CompareAndSwap,
            _ => Operation::Write,
        }
    }

    /// Whether it goes through the log of a range.
    pub fn writes(self) -> bool {
        match self {
            Operation::Put
            | Operation::Delete
            | Operation::CompareAndSwap
            | Operation::Increment
            | Operation::Write => true,
            Operation::Get
            | Operation::MultiGet
            | Operation::Scan
            | Operation::Directory
            | Operation::Status
            | Operation::Admin => false,
        }
    }

    /// The room that a reply of this kind may need, in units of the longest value.
    pub fn weight(self) -> usize {
        match self {
            // The rows of a scan, the values of many keys, or the state of the whole cluster.
            Operation::Scan | Operation::MultiGet | Operation::Admin => 4,
            _ => 1,
        }
    }
}

/// The part of a request that is kept until its reply.
#[derive(Clone, Copy, Debug)]
pub struct PendingRequest {
    /// The client's id of the request.
    pub request: u64,
    /// The request's kind.
    pub operation: Operation,
    /// The time when the request arrived.
    pub received: Now,
    /// The time when it was handled.
    pub handled: Now,
}

/// The times that belong to a frame.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The time when its bytes arrived.
    pub received: Now,
    /// The present.
    pub now: Now,
}

/// A frame of a client, and the request in it.
pub struct Decoded<'a> {
    /// The frame.
    pub frame: Frame<'a>,
    request: Result<Request<'a>, BadRequest>,
}

impl<'a> Decoded<'a> {
    /// Decodes the request of a frame.
    pub fn of(frame: Frame<'a>) -> Decoded<'a> {
        Decoded {
            frame,
            request: Request::decode(frame.kind, frame.body),
        }
    }

    /// The key, if the request is a get.
    fn key_to_get(&self) -> Option<&'a [u8]> {
        match &self.request {
            Ok(request) => match request.body {
                RequestBody::Get { key } => Some(key),
                _ => None,
            },
            Err(_) => None,
        }
    }
}

/// Prepares requests that are handled next, one after the other: those that are gets wait for memory
/// together.
pub fn prepare(context: &Context, requests: &[Decoded<'_>]) {
    if requests.len() > 1 {
        let keys = requests.iter().filter_map(Decoded::key_to_get);
        context.gateway.prefetch(keys);
    }
}

/// A frame's table does not match its kind; the connection must be closed.
#[derive(Debug)]
pub struct Malformed;

/// Handles one request of a client, whose frame may lie in the connection's own buffer. The reply goes to the
/// connection, at once or later.
///
/// # Errors
/// The frame's table cannot be decoded.
pub fn handle(
    context: &Rc<Context>,
    connection: &Rc<Connection>,
    (decoded, own): (Decoded<'_>, Option<OwnBuffer<'_>>),
    times: Times,
) -> Result<(), Malformed> {
    let found = decoded.frame;
    let request = match decoded.request {
        Ok(request) => request,
        Err(BadRequest::BadTable(_)) => return Err(Malformed),
        Err(bad) => {
            let refusal = Refusal::from(bad);
            connection.send(|to| reply::refusal(context, Head::of(found.id), &refusal, to));
            return Ok(());
        }
    };
    let pending = PendingRequest {
        request: found.id,
        operation: Operation::of(&request.body),
        received: times.received,
        handled: times.now,
    };
    let limit = Duration::from_millis(u64::from(request.deadline_ms));
    let call = Call {
        caller: Caller {
            follows_routes: connection.is_smart(),
        },
        deadline: (!limit.is_zero()).then(|| times.received + limit),
        token: Timestamp(request.token),
        target: target(&request),
    };
    let admitted = context.gateway.admit(&call, times.now);
    let handled = admitted
        .map_err(Refusal::from)
        .and_then(|()| serve(context, connection, &call, (pending, own), request.body));
    if let Err(refusal) = handled {
        connection.send(|to| reply::refusal(context, Head::of(found.id), &refusal, to));
    }
    Ok(())
}

fn serve(
    context: &Rc<Context>,
    connection: &Rc<Connection>,
    call: &Call<GlommioEnv>,
    (pending, own): (PendingRequest, Option<OwnBuffer<'_>>),
    body: RequestBody<'_>,
) -> Result<(), Refusal> {
    let gateway = &context.gateway;
    // Replies of the others are short.
    if !matches!(body, RequestBody::Batch { .. }) {
        context.check_unsent()?;
    }
    match body {
        RequestBody::Get { key } => gateway.get(connection, call, pending, key),
        RequestBody::MultiGet { keys } => gateway.multi_get(connection, call, pending, &keys),
        RequestBody::Batch { batch, session } => {
            let write = (batch::of(&batch, own)?, request_id(session));
            gateway.write(connection, call, pending, write)
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
            let limits = (rows_max, bytes_max);
            let scan = match continuation {
                Some(token) => scan::continued(token, limits)?,
                None => scan::first((start, end), limits, (reverse, keys_only)),
            };
            gateway.scan(connection, call, pending, scan)
        }
        RequestBody::Directory => {
            directory::handle(context, connection, pending);
            Ok(())
        }
        RequestBody::Status => status::handle(context, connection, pending),
        RequestBody::Admin { command } => {
            admin::handle(context, connection, pending, (command, call.deadline))
        }
    }
}

fn request_id(session: Session) -> RequestId {
    RequestId {
        client: ClientId(session.client),
        sequence: session.sequence,
        lowest_unanswered: session.lowest_unanswered,
        first_tried: Timestamp(session.first_tried),
    }
}

fn target(request: &Request<'_>) -> Option<Target> {
    request.target.map(|target| Target {
        range: RangeId(target.range),
        epoch: Epoch {
            version: target.version,
            conf: target.conf,
        },
    })
}
