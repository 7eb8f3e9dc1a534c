//! Admin: shows the state of the cluster and changes it. Commands and answers are JSON, as
//! `rangedb_protocol::admin` defines them. Every command goes to the cluster's manager, on whichever node
//! it is, except the one for the history, which this node answers itself.
//!
//! Not on the hot path. Runs on a shard's thread; [`render`] is pure.

mod render;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::boot_time::BootTime;
use rangedb_engine::cluster::{MembershipStatus, View};
use rangedb_engine::env::{AsyncRuntime, Clock};
use rangedb_engine::error::Error;
use rangedb_engine::gateway::Order;
use rangedb_engine::gateway::responder::Responder;
use rangedb_engine::types::{KeyRange, NodeId, RangeId, ShardId};
use rangedb_protocol::Reply;
use rangedb_protocol::admin::{Command, Done, HOLD_MS_DEFAULT, Merged, Scattered};
use rangedb_protocol::limits::ADMIN_JSON_LEN_MAX;
use serde::Serialize;

use crate::context::{AnsweredBy, Context};
use crate::env::reactor::cross_thread;
use crate::env::{self, GlommioRuntime, SystemClock, reactor};
use crate::history::Query;
use crate::net::connection::Connection;
use crate::net::refusal::Refusal;
use crate::net::reply::{self, Head};
use crate::operation::PendingRequest;

/// How long to wait for the manager if the client sets no deadline.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn handle(
    context: &Rc<Context>,
    connection: &Rc<Connection>,
    pending: PendingRequest,
    (command, deadline): (&str, Option<BootTime>),
) -> Result<(), Refusal> {
    let command = Command::parse(command).map_err(Error::Invalid)?;
    let token = connection.hold(pending)?;
    let until = deadline.unwrap_or_else(|| env::now() + TIMEOUT);
    let (context, connection) = (context.clone(), connection.clone());
    reactor::spawn_local(async move {
        let done = perform(&context, command, until).await;
        let Some(pending) = connection.release(token) else {
            return;
        };
        match done {
            Ok(text) => {
                context.answered(&pending, AnsweredBy::ThisShard);
                let reply = Reply::Admin { json: &text };
                connection.send(|to| reply::write(&context, Head::of(pending.request), &reply, to));
            }
            Err(refusal) => {
                connection
                    .send(|to| reply::refusal(&context, Head::of(pending.request), &refusal, to));
            }
        }
    })
    .detach();
    Ok(())
}

/// An answer in JSON, if it is not too long for a reply.
fn text(answer: &impl Serialize) -> Result<String, Refusal> {
    let text =
        serde_json::to_string(answer).map_err(|error| Refusal::internal(error.to_string()))?;
    if text.len() > ADMIN_JSON_LEN_MAX {
        let message = format!(
            "the answer has {} bytes; too much for one reply",
            text.len()
        );
        return Err(Refusal::internal(message));
    }
    Ok(text)
}

/// A part of this node's history, in JSON.
async fn history(
    context: &Context,
    wanted: Option<u64>,
    query: Query,
    until: BootTime,
) -> Result<String, Refusal> {
    let own = context.node.id.0;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != own) {
        let message = format!("this is node {own}; only node {wanted} knows its history");
        return Err(Error::Invalid(message).into());
    }
    let left = until - env::now();
    let told = cross_thread(context.node.history.ask(query));
    match GlommioRuntime::timeout(left, told).await {
        Ok(told) => text(&told.map_err(Refusal::busy)?),
        Err(_) => Err(Error::DeadlineExceeded.into()),
    }
}

/// Has this node read its settings again; gives what has changed, in JSON.
async fn reload(context: &Context) -> Result<String, Refusal> {
    let told = context.node.settings.reload_apart();
    let reloaded = reactor::cross_thread(told).await;
    let no_thread = |_| Refusal::internal("there is no thread for a reload".to_owned());
    text(&reloaded.map_err(no_thread)?)
}

/// Performs a command; gives the answer in JSON.
async fn perform(context: &Context, command: Command, until: BootTime) -> Result<String, Refusal> {
    let (gateway, cluster) = (&context.gateway, context.node.cluster);
    let view = || gateway.view(until);
    let order = match command {
        Command::Nodes {} => return text(&render::nodes(&view().await?)),
        Command::Ranges {} => return text(&render::ranges(&view().await?)),
        Command::Status {} => return text(&render::status(&view().await?, cluster)),
        Command::ConfigGet { name } => return settings(&view().await?, name.as_deref()),
        Command::ConfigHistory {} => return settings_history(context, until).await,
        Command::NodeConfig {} => return text(&context.node.settings.shown()),
        Command::Reload {} => return reload(context).await,
        Command::NodeLeaving { node, dry_run } => {
            return leaving(context, NodeId(node), dry_run, until).await;
        }
        Command::DrainNode { node } => membership(node, MembershipStatus::Draining),
        Command::UndrainNode { node } => membership(node, MembershipStatus::Active),
        Command::DecommissionNode { node } => membership(node, MembershipStatus::Decommissioning),
        Command::RemoveNode { node } => membership(node, MembershipStatus::Removed),
        Command::History {
            node,
            from_ms,
            to_ms,
            step,
            histograms,
        } => {
            let query = Query::of((from_ms, to_ms), step, histograms);
            return history(context, node, query, until).await;
        }
        Command::Balance {} => return text(&render::balance(gateway.decisions(until).await?)),
        Command::ScatterRanges { start, end } => {
            return scatter(context, KeyRange { start, end }, until).await;
        }
        Command::SplitRange { range, at, hold_ms } => {
            let split = gateway.split_range(RangeId(range), at, held_until_ms(hold_ms), until);
            return text(&render::split(split.await?));
        }
        Command::SplitInto {
            range,
            parts,
            hold_ms,
        } => {
            let split = gateway.split_into(RangeId(range), parts, held_until_ms(hold_ms), until);
            return text(&render::split(split.await?));
        }
        Command::HotRanges { top } => return hot_ranges(context, top, until).await,
        Command::MergeRange { range } => return merge(context, range, until).await,
        Command::ReleaseRange { range } => Order::ReleaseRange {
            range: RangeId(range),
        },
        Command::ConfigSet { name, value } => Order::Set { name, value },
        Command::TransferLeader { range, to } => Order::TransferLeader {
            range: RangeId(range),
            to: to.map(NodeId),
        },
        Command::MoveReplica {
            range,
            from,
            to_node,
            to_shard,
        } => Order::MoveReplica {
            range: RangeId(range),
            from: NodeId(from),
            to: NodeId(to_node),
            shard: to_shard.map(ShardId),
        },
    };
    gateway.order(order, until).await?;
    text(&Done { done: true })
}

/// The setting of this name, or all, in JSON.
fn settings(view: &View, name: Option<&str>) -> Result<String, Refusal> {
    match name {
        None => text(&render::settings(view)),
        Some(name) => text(&render::setting(view, name)?),
    }
}

/// All changes of the cluster's settings, in JSON.
async fn settings_history(context: &Context, until: BootTime) -> Result<String, Refusal> {
    text(&render::history(&context.gateway.settings(until).await?))
}

/// How far a node has left, or what keeps it from leaving, in JSON.
async fn leaving(
    context: &Context,
    node: NodeId,
    dry_run: bool,
    until: BootTime,
) -> Result<String, Refusal> {
    let leaving = context.gateway.leaving(node, dry_run, until).await?;
    text(&render::leaving(&leaving, dry_run))
}

/// The ranges with most CPU time and their hottest keys, in JSON.
async fn hot_ranges(context: &Context, top: u32, until: BootTime) -> Result<String, Refusal> {
    let ranges = context.gateway.hot_ranges(top, until).await?;
    text(&render::hot_ranges(&ranges))
}

/// Has a range take over its right neighbour; gives its id, in JSON.
async fn merge(context: &Context, range: u64, until: BootTime) -> Result<String, Refusal> {
    let order = Order::MergeRange {
        range: RangeId(range),
    };
    context.gateway.order(order, until).await?;
    text(&Merged { range })
}

/// Has the ranges of an interval scattered; gives how many orders that takes, in JSON.
async fn scatter(context: &Context, keys: KeyRange, until: BootTime) -> Result<String, Refusal> {
    let orders = context.gateway.scatter(keys, until).await?;
    text(&Scattered { orders })
}

/// Until when a range is held that is held for so long from now on.
fn held_until_ms(hold_ms: Option<u64>) -> Option<u64> {
    match hold_ms.unwrap_or(HOLD_MS_DEFAULT) {
        0 => None,
        hold_ms => Some(SystemClock.wall_ms().saturating_add(hold_ms)),
    }
}

fn membership(node: u64, status: MembershipStatus) -> Order {
    let node = NodeId(node);
    Order::SetMembership { node, status }
}
