//! Handlers of requests: each turns a frame into a call of the engine's
//! [gateway](rangedb_engine::gateway), and [`crate::net::reply`] turns the answer into a frame.
//! Requests without a key (directory, status, orders of an operator) have files of their own.
//!
//! Hot path: a get under a lease allocates nothing. A write allocates one buffer for its keys and
//! values if its frame lies in the shard's receive buffer, which is used again; a long one keeps the
//! buffer into which its frame was gathered ([`batch`]). A multi-get allocates for its list of keys and
//! for its values together, and not for each. Runs on a shard's thread.

mod admin;
mod batch;
mod directory;
pub mod status;

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::gateway::request::{Call, Caller};
use rangedb_engine::request::{RequestId, Target};
use rangedb_engine::types::{ClientId, Epoch, RangeId, Timestamp};
use rangedb_protocol::{BadRequest, Request, RequestBody, Session};

use crate::context::Context;
use crate::net::connection::Connection;
use crate::net::frames::{Decoded, Malformed, Times};
use crate::net::input::OwnBuffer;
use crate::net::refusal::Refusal;
use crate::net::reply::{self, Head};
use crate::net::scan;
use crate::operation::{Operation, PendingRequest};

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
    call: &Call,
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
