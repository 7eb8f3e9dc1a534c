//! Handlers of requests, one file for each kind. Each finds the shard that owns the key, asks the
//! engine, and lets [`reply`] write the answer.
//!
//! Hot path: a get under a lease allocates nothing. A write allocates one buffer for its keys and
//! values, since the receive buffer that its frame lies in is used again. Runs on a shard's thread.

mod admin;
mod batch;
mod directory;
mod get;
pub mod refusal;
pub mod reply;
pub mod scan;
pub mod status;

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::error::Error;
use rangedb_engine::limits;
use rangedb_engine::range::Route;
use rangedb_engine::request::{self, ScanRequest, SessionPair};
use rangedb_engine::shard::{WriteRequest, WriteSink};
use rangedb_engine::types::{Blob, ClientId, Epoch, RangeId, ShardId, Timestamp};
use rangedb_protocol::frame::Frame;
use rangedb_protocol::{BadRequest, Batch, Change, Request, RequestBody, Session};

use crate::env::Now;
use crate::handler::refusal::Refusal;
use crate::handler::scan::LocalScan;
use crate::peers::carry;
use crate::shard::context::Context;
use crate::shard::router::Place;

// The engine's limits equal the protocol's.
const _: () = {
    assert!(limits::KEY_LEN_MAX == rangedb_protocol::limits::KEY_LEN_MAX);
    assert!(limits::VALUE_LEN_MAX == rangedb_protocol::limits::VALUE_LEN_MAX);
    assert!(limits::BATCH_LEN_MAX == rangedb_protocol::limits::BATCH_LEN_MAX);
    assert!(limits::BATCH_OPS_MAX == rangedb_protocol::limits::BATCH_OPS_MAX);
    assert!(limits::BATCH_ADDITIONS_MAX == rangedb_protocol::limits::BATCH_ADDITIONS_MAX);
    assert!(limits::SCAN_ROWS_MAX == rangedb_protocol::limits::SCAN_ROWS_MAX);
    assert!(limits::SCAN_BYTES_MAX == rangedb_protocol::limits::SCAN_BYTES_MAX);
};

/// The kinds of requests that counters distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's chapter says what each is")]
pub enum Operation {
    Get,
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
    pub const ALL: [Operation; 10] = [
        Operation::Get,
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

    /// Whether a request of this kind changes keys.
    pub fn is_write(self) -> bool {
        match self {
            Operation::Put
            | Operation::Delete
            | Operation::CompareAndSwap
            | Operation::Increment
            | Operation::Write => true,
            Operation::Get
            | Operation::Scan
            | Operation::Directory
            | Operation::Status
            | Operation::Admin => false,
        }
    }

    /// The room that a reply of this kind may need, in units of the longest value.
    pub fn weight(self) -> usize {
        match self {
            // The rows of a scan, or the state of the whole cluster.
            Operation::Scan | Operation::Admin => 4,
            _ => 1,
        }
    }
}

/// The part of a request that is kept until its reply.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The client's id of the request.
    pub request: u64,
    /// The request's kind.
    pub operation: Operation,
    /// The time when the request arrived.
    pub received: Now,
}

/// A request, together with what its handler needs to know about it.
pub struct Call<'a> {
    /// The part that is kept if the reply comes later.
    pub asked: Asked,
    /// The time when the client gives up.
    pub deadline: Option<Now>,
    /// The range and epoch that the client expects.
    pub target: Option<request::Target>,
    /// The whole frame, in case it is forwarded.
    pub frame: &'a [u8],
}

/// The sender of a request, which also receives its reply: a client's connection, or another shard.
pub trait Origin: WriteSink + Sized + 'static {
    /// Whether it follows routes: then a request for a key that is elsewhere is answered with the
    /// route.
    fn is_smart(&self) -> bool;

    /// Whether its requests may be carried to another node. This happens once, and only for clients
    /// that do not follow routes.
    fn may_leave(&self) -> bool;

    /// Called when a request has left for another shard or node; its reply will need room.
    fn departed(&self, _operation: Operation) {}

    /// Called when the reply to such a request is here.
    fn returned(&self, _operation: Operation) {}

    /// Appends a reply's frame to the output.
    fn send(&self, write: impl FnOnce(&mut Vec<u8>));

    /// Keeps a request whose reply comes later. [`Origin::release`] takes it back by the returned
    /// token.
    ///
    /// # Errors
    /// Too many requests are waiting.
    fn hold(&self, asked: Asked) -> Result<u64, Refusal>;

    /// Forgets a request since its reply is due now; `None` if it was forgotten before.
    fn release(&self, token: u64) -> Option<Asked>;

    /// Forwards a request to the shard of this node that holds its key.
    ///
    /// # Errors
    /// The request may not be forwarded, or too many have been.
    fn forward(self: &Rc<Self>, to: ShardId, call: &Call<'_>) -> Result<(), Refusal>;

    /// Runs a scan and sends its reply.
    fn scan(self: &Rc<Self>, scan: LocalScan);
}

/// The times that belong to a frame.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The time when its bytes arrived.
    pub received: Now,
    /// The present.
    pub now: Now,
    /// The time when the client gives up, if another shard has computed it already.
    pub deadline: Option<Now>,
}

/// A frame's table does not match its kind; the connection must be closed.
#[derive(Debug)]
pub struct Malformed;

/// Handles one frame. The reply goes to `origin`, at once or later.
///
/// # Errors
/// The frame's table cannot be decoded.
pub fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    found: Frame<'_>,
    frame: &[u8],
    times: Times,
) -> Result<(), Malformed> {
    let request = match Request::decode(found.kind, found.body) {
        Ok(request) => request,
        Err(BadRequest::BadTable(_)) => return Err(Malformed),
        Err(bad) => {
            let refusal = Refusal::from(bad);
            origin.send(|to| reply::refusal(context, found.id, &refusal, to));
            return Ok(());
        }
    };
    let operation = Operation::of(&request.body);
    let asked = Asked {
        request: found.id,
        operation,
        received: times.received,
    };
    let limit = Duration::from_millis(u64::from(request.deadline_ms));
    let reckoned = (!limit.is_zero()).then(|| times.received + limit);
    let call = Call {
        asked,
        deadline: times.deadline.or(reckoned),
        target: target(&request),
        frame,
    };
    let checked = context.check(&call, request.token, times.now);
    let handled = checked.and_then(|()| pass_on(context, origin, &call, request.body));
    if let Err(refusal) = handled {
        origin.send(|to| reply::refusal(context, found.id, &refusal, to));
    }
    Ok(())
}

fn pass_on<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    body: RequestBody<'_>,
) -> Result<(), Refusal> {
    let write = match body {
        RequestBody::Get { key } => return get::handle(context, origin, call, key),
        RequestBody::Scan {
            start,
            end,
            rows_max,
            bytes_max,
            continuation,
            reverse,
            keys_only,
        } => {
            let scan = match continuation {
                Some(token) => scan::continued(token, (rows_max, bytes_max))?,
                None => ScanRequest {
                    start: start.map(Blob::copy_from_slice),
                    end: end.map(Blob::copy_from_slice),
                    reverse,
                    keys_only,
                    rows_max: rows_max as usize,
                    bytes_max: bytes_max as usize,
                    at: None,
                },
            };
            return scan::handle(context, origin, call, scan);
        }
        RequestBody::Directory => return directory::handle(context, origin, call),
        RequestBody::Status => return status::handle(context, origin, call),
        RequestBody::Admin { command } => return admin::handle(context, origin, call, command),
        RequestBody::Batch { batch, session } => (batch::of(&batch)?, session),
    };
    propose(context, origin, call, write)
}

/// Proposes a write to the engine, or passes it to the shard that holds its first key.
fn propose<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    (write, session): (request::Batch, Session),
) -> Result<(), Refusal> {
    if let Some(key) = write.first_key() {
        let place = place(context, origin.as_ref(), key);
        if !matches!(place, Place::Here) {
            return elsewhere(context, origin, call, place);
        }
    }
    let session = SessionPair {
        client: ClientId(session.client),
        sequence: session.sequence,
        lowest_unanswered: session.lowest_unanswered,
        first_tried: Timestamp(session.first_tried),
    };
    let request = WriteRequest {
        target: call.target,
        session,
        deadline: call.deadline,
    };
    let token = origin.hold(call.asked)?;
    context.shard.write(write, request, origin.clone(), token);
    Ok(())
}

fn target(request: &Request<'_>) -> Option<request::Target> {
    request.target.map(|target| request::Target {
        range: RangeId(target.range),
        epoch: Epoch {
            version: target.version,
            conf: target.conf,
        },
    })
}

/// The place that answers a request for a key. A request that may leave the node goes to the
/// leader. Any other is answered by the replica on this shard, if there is one, which knows best
/// why it does not serve.
fn place<O: Origin>(context: &Context, origin: &O, key: &[u8]) -> Place {
    if !origin.may_leave() && context.shard.holds(key) {
        return Place::Here;
    }
    let place = context.place(key);
    if !matches!(place, Place::Here) || !origin.may_leave() {
        return place;
    }
    context
        .shard
        .led_elsewhere(key)
        .map_or(Place::Here, Place::Node)
}

/// Handles a request whose key is not on this shard: forwards it within the node, carries it to
/// another node, or refuses it with the route.
fn elsewhere<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    place: Place,
) -> Result<(), Refusal> {
    match place {
        Place::Shard(shard, _) if !origin.is_smart() => origin.forward(shard, call),
        Place::Node(Route {
            leader: Some(to), ..
        }) if origin.may_leave() && to.node != context.node.id => {
            carry::send(context, origin, call, to)
        }
        Place::Shard(_, route) | Place::Node(route) => {
            Err(Error::Moved(Some(Box::new(route))).into())
        }
        Place::Here | Place::Unknown => Err(Error::Moved(None).into()),
    }
}
