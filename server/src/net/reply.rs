//! Replies: turns the engine's results into frames of the wire protocol.

use std::borrow::Cow;
use std::net::SocketAddr;

use rangedb_engine::error::Error;
use rangedb_engine::gateway::values;
use rangedb_engine::range;
use rangedb_engine::request::{Outcome, ScanReply};
use rangedb_engine::types::Timestamp;
use rangedb_protocol::{ErrorReply, KeyResult, Reply, Route, Row, Values};

use crate::context::{AnsweredBy, Context};
use crate::net::refusal::Refusal;
use crate::net::scan;
use crate::operation::PendingRequest;

/// What a reply says besides its content.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The client's id of the request.
    pub request: u64,
    /// The time of the cluster where the request was answered, if another shard has answered it.
    pub now: Option<Timestamp>,
}

impl Head {
    /// That of a reply of this shard.
    pub fn of(request: u64) -> Head {
        Head { request, now: None }
    }
}

/// Appends a reply's frame.
pub fn write(context: &Context, head: Head, reply: &Reply<'_>, to: &mut Vec<u8>) {
    let now = head.now.unwrap_or_else(|| context.gateway.shard().now());
    reply.encode(head.request, now.0, &mut context.builder.borrow_mut(), to);
}

/// Appends the reply to a get.
pub fn value(
    context: &Context,
    (pending, now): (&PendingRequest, Option<Timestamp>),
    found: Option<(&[u8], Timestamp)>,
    to: &mut Vec<u8>,
) {
    let reply = match found {
        Some((value, version)) => Reply::Value {
            value: Some(value),
            version: version.0,
        },
        None => Reply::Value {
            value: None,
            version: 0,
        },
    };
    good(context, (pending, now), &reply, to);
}

/// Appends the reply to a write that was decided, or the refusal.
pub fn outcome(
    context: &Context,
    pending: (&PendingRequest, Option<Timestamp>),
    outcome: &Outcome,
    to: &mut Vec<u8>,
) {
    let written = |version: Timestamp, existed, numbers| Reply::Written {
        version: version.0,
        existed,
        numbers: Cow::Borrowed(numbers),
    };
    let error = match outcome {
        Outcome::Done { version, existed } => {
            return good(context, pending, &written(*version, *existed, &[]), to);
        }
        Outcome::Number { version, value } => {
            let numbers = std::slice::from_ref(value);
            return good(context, pending, &written(*version, false, numbers), to);
        }
        Outcome::Numbers { version, values } => {
            return good(context, pending, &written(*version, false, values), to);
        }
        Outcome::ConditionFailed { current, condition } => {
            let (current, condition) = (current.map(|version| version.0), *condition);
            let reply = Reply::ConditionFailed { current, condition };
            return good(context, pending, &reply, to);
        }
        Outcome::NotANumber => Error::NotANumber,
        Outcome::NumberOverflow => Error::NumberOverflow,
        Outcome::Moved => Error::Moved(Vec::new()),
        Outcome::SessionExpired => Error::SessionExpired,
    };
    let (PendingRequest { request, .. }, now) = (*pending.0, pending.1);
    refusal(context, Head { request, now }, &error.into(), to);
}

/// Appends the reply to a scan.
pub fn rows(
    context: &Context,
    pending: (&PendingRequest, Option<Timestamp>),
    scanned: &ScanReply,
    to: &mut Vec<u8>,
) {
    let rows = scanned.rows.iter().map(|row| Row {
        key: row.key,
        value: row.value,
        version: row.version.0,
    });
    let continuation = scanned.next.as_ref().map(scan::continuation);
    let reply = Reply::Rows {
        rows: rows.collect(),
        continuation: continuation.as_deref(),
        at: scanned.at.0,
    };
    good(context, pending, &reply, to);
}

/// Appends the reply to a multi-get. Keys that cannot be read count as refusals besides.
pub fn values(
    context: &Context,
    pending: (&PendingRequest, Option<Timestamp>),
    found: &values::Values,
    to: &mut Vec<u8>,
) {
    let errors = found.errors().iter().map(|error| {
        let refusal = Refusal::from(error.clone());
        context.refused(refusal.code);
        error_reply(context, &refusal)
    });
    let reply = Reply::Values(Values {
        results: found.results().iter().map(key_result).collect(),
        values: found.bytes(),
        errors: errors.collect(),
    });
    good(context, pending, &reply, to);
}

/// The result of a key as clients see it.
pub fn key_result(result: &values::KeyResult) -> KeyResult {
    match result {
        values::KeyResult::Absent => KeyResult::Absent,
        values::KeyResult::Value { version, len } => KeyResult::Value {
            version: version.0,
            len: *len,
        },
        values::KeyResult::Failed { error } => KeyResult::Failed(*error),
        values::KeyResult::NotRead => KeyResult::NotRead,
    }
}

fn good(
    context: &Context,
    (pending, now): (&PendingRequest, Option<Timestamp>),
    reply: &Reply<'_>,
    to: &mut Vec<u8>,
) {
    context.answered(pending, AnsweredBy::of(now));
    let request = pending.request;
    write(context, Head { request, now }, reply, to);
}

/// Appends a refusal.
pub fn refusal(context: &Context, head: Head, refusal: &Refusal, to: &mut Vec<u8>) {
    context.refused(refusal.code);
    let error = error_reply(context, refusal);
    write(context, head, &Reply::Error(Box::new(error)), to);
}

fn error_reply(context: &Context, refusal: &Refusal) -> ErrorReply {
    ErrorReply {
        code: Ok(refusal.code),
        fate: refusal.fate,
        retry_after_ms: refusal.retry_after_ms,
        message: refusal.message.clone(),
        routes: refusal.routes.iter().map(|r| route(context, r)).collect(),
    }
}

/// A route as clients see it. Its address is the one that the leader's node advertises. It stays
/// empty if clients could not use it: a node that is alone may listen on all addresses of its
/// machine and name none.
pub fn route(context: &Context, route: &range::Route) -> Route {
    let addresses = context.addresses();
    let address = route.leader.and_then(|leader| addresses.get(&leader.node));
    let address = address.filter(|address| !is_wildcard(address));
    Route {
        range: route.range.0,
        version: route.epoch.version,
        conf: route.epoch.conf,
        start: route.keys.start.clone(),
        end: route.keys.end.clone(),
        leader: route.leader.map(|leader| (leader.node.0, leader.shard.0)),
        address: address.cloned().unwrap_or_default(),
    }
}

fn is_wildcard(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_unspecified(),
        // The text is a host's name, or `*:PORT` or `:PORT`, which do not parse.
        Err(_) => address.starts_with(['*', ':']),
    }
}
