//! Replies: turns the engine's results into frames of the wire protocol.

use std::borrow::Cow;
use std::net::SocketAddr;

use rangedb_engine::error::Error;
use rangedb_engine::range;
use rangedb_engine::request::{Outcome, ScanReply};
use rangedb_engine::types::Timestamp;
use rangedb_protocol::{ErrorReply, Reply, Route, Row};

use crate::handler::refusal::Refusal;
use crate::handler::{Asked, scan};
use crate::shard::context::Context;

/// Appends a reply's frame.
pub fn write(context: &Context, request: u64, reply: &Reply<'_>, to: &mut Vec<u8>) {
    let now = context.shard.now().0;
    reply.encode(request, now, &mut context.builder.borrow_mut(), to);
}

/// Appends the reply to a get.
pub fn value(
    context: &Context,
    asked: &Asked,
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
    context.answered(asked);
    write(context, asked.request, &reply, to);
}

/// Appends the reply to a write that was decided, or the refusal.
pub fn outcome(context: &Context, asked: &Asked, result: Result<Outcome, Error>, to: &mut Vec<u8>) {
    let written = |version: Timestamp, existed, numbers| Reply::Written {
        version: version.0,
        existed,
        numbers: Cow::Borrowed(numbers),
    };
    let error = match &result {
        Ok(Outcome::Done { version, existed }) => {
            return good(context, asked, &written(*version, *existed, &[]), to);
        }
        Ok(Outcome::Number { version, value }) => {
            let numbers = std::slice::from_ref(value);
            return good(context, asked, &written(*version, false, numbers), to);
        }
        Ok(Outcome::Numbers { version, values }) => {
            return good(context, asked, &written(*version, false, values), to);
        }
        Ok(Outcome::ConditionFailed { current, condition }) => {
            let (current, condition) = (current.map(|version| version.0), *condition);
            let reply = Reply::ConditionFailed { current, condition };
            return good(context, asked, &reply, to);
        }
        Ok(Outcome::NotANumber) => Error::NotANumber,
        Ok(Outcome::NumberOverflow) => Error::NumberOverflow,
        Ok(Outcome::Moved) => Error::Moved(None),
        Ok(Outcome::SessionExpired) => Error::SessionExpired,
        Err(error) => error.clone(),
    };
    refusal(context, asked.request, &error.into(), to);
}

/// Appends the reply to a scan.
pub fn rows(context: &Context, asked: &Asked, scanned: &ScanReply, to: &mut Vec<u8>) {
    let rows = scanned.rows.iter().map(|(key, found)| Row {
        key,
        value: &found.value,
        version: found.version.0,
    });
    let continuation = scanned.next.as_ref().map(scan::continuation);
    let reply = Reply::Rows {
        rows: rows.collect(),
        continuation: continuation.as_deref(),
        at: scanned.at.0,
    };
    good(context, asked, &reply, to);
}

fn good(context: &Context, asked: &Asked, reply: &Reply<'_>, to: &mut Vec<u8>) {
    context.answered(asked);
    write(context, asked.request, reply, to);
}

/// Appends a refusal.
pub fn refusal(context: &Context, request: u64, refusal: &Refusal, to: &mut Vec<u8>) {
    context.refused(refusal.code);
    let error = ErrorReply {
        code: Ok(refusal.code),
        fate: refusal.fate,
        retry_after_ms: refusal.retry_after_ms,
        message: refusal.message.clone(),
        route: refusal.route.as_deref().map(|r| route(context, r)),
    };
    write(context, request, &Reply::Error(Box::new(error)), to);
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
