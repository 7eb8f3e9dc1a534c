//! Get: copies the value from where it lies into the output, at once. If the leader's lease has run
//! out, a majority must confirm the leader first.

use std::rc::Rc;

use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::error::{Error, Fate};
use rangedb_engine::range::Route;

use crate::env::{GlommioRuntime, reactor};
use crate::handler::refusal::Refusal;
use crate::handler::{Call, Origin, elsewhere, reply};
use crate::shard::context::Context;
use crate::shard::router::Place;

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    key: &[u8],
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let answered = context.shard.get(key, call.target, |found| {
        origin.send(|to| reply::value(context, &call.asked, found, to));
    });
    match answered {
        Ok(()) => Ok(()),
        // The shard is asked before the directory, since most requests come to the right shard.
        Err(Error::Moved(None)) => elsewhere(context, origin, call, context.place(key)),
        Err(Error::NotLeader(Some(route))) if origin.may_leave() => {
            elsewhere_or(context, origin, call, *route)
        }
        Err(Error::LeaseExpired) => confirm(context, origin, call, key),
        Err(error) => Err(error.into()),
    }
}

/// Passes the request on to the leader, if it is known and on another node.
fn elsewhere_or<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    route: Route,
) -> Result<(), Refusal> {
    match route.leader {
        Some(leader) if leader.node != context.node.id => {
            elsewhere(context, origin, call, Place::Node(route))
        }
        _ => Err(Error::NotLeader(Some(Box::new(route))).into()),
    }
}

/// Answers after a majority has confirmed that this replica leads.
fn confirm<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    key: &[u8],
) -> Result<(), Refusal> {
    let token = origin.hold(call.asked)?;
    let deadline = call.deadline;
    let (context, origin) = (context.clone(), origin.clone());
    let (key, target) = (key.to_vec(), call.target);
    reactor::spawn_local(async move {
        let shard = &context.shard;
        let confirming = shard.confirm(&key, target);
        let confirmed = match deadline {
            // Without a deadline the confirmation ends by itself if no majority answers for a
            // while.
            None => confirming.await,
            Some(until) => {
                let confirmed = GlommioRuntime::timeout_at(until, confirming).await;
                confirmed.unwrap_or_else(|_| {
                    Err(if shard.lacks_quorum(&key) {
                        Error::NoQuorum(Fate::NotApplied)
                    } else {
                        Error::DeadlineExceeded
                    })
                })
            }
        };
        let Some(asked) = origin.release(token) else {
            return;
        };
        let answered = confirmed.and_then(|()| {
            shard.get_confirmed(&key, target, |found| {
                origin.send(|to| reply::value(&context, &asked, found, to));
            })
        });
        if let Err(error) = answered {
            origin.send(|to| reply::refusal(&context, asked.request, &error.into(), to));
        }
    })
    .detach();
    Ok(())
}
