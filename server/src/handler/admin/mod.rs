//! Admin: shows the state of the cluster and changes it. A command, in JSON, goes to the cluster's
//! manager, wherever it is; its answer becomes JSON again.
//!
//! Not on the hot path. Runs on a shard's thread; [`command`] and [`render`] are pure.

mod command;
mod render;
#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::cluster::{Ask, Told, View};
use rangedb_engine::env::{AsyncRuntime, Instant};
use rangedb_engine::error::Error;
use rangedb_engine::types::{NodeId, RangeId, ShardId};
use rangedb_protocol::Reply;
use rangedb_protocol::limits::ADMIN_JSON_LEN_MAX;
use serde_json::{Value, json};

use self::command::Command;
use crate::env::{GlommioRuntime, Now, reactor};
use crate::handler::refusal::Refusal;
use crate::handler::{Call, Origin, reply};
use crate::shard::context::Context;

/// How long to wait for the manager if the client sets no deadline.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn handle<O: Origin>(
    context: &Rc<Context>,
    origin: &Rc<O>,
    call: &Call<'_>,
    command: &str,
) -> Result<(), Refusal> {
    context.check_unsent()?;
    let command = Command::parse(command).map_err(Error::Invalid)?;
    let token = origin.hold(call.asked)?;
    let until = call.deadline.unwrap_or_else(|| Now::now() + TIMEOUT);
    let (context, origin) = (context.clone(), origin.clone());
    reactor::spawn_local(async move {
        let late = if command.is_order() {
            Error::Unknown("the cluster's manager did not answer in time")
        } else {
            Error::DeadlineExceeded
        };
        let done = GlommioRuntime::timeout_at(until, perform(&context, command)).await;
        let done = done.unwrap_or_else(|_| Err(late.into()));
        let Some(asked) = origin.release(token) else {
            return;
        };
        let text = done.and_then(|json| bounded(json.to_string()));
        match text {
            Ok(text) => {
                context.answered(&asked);
                let reply = Reply::Admin { json: &text };
                origin.send(|to| reply::write(&context, asked.request, &reply, to));
            }
            Err(refusal) => {
                origin.send(|to| reply::refusal(&context, asked.request, &refusal, to));
            }
        }
    })
    .detach();
    Ok(())
}

fn bounded(text: String) -> Result<String, Refusal> {
    if text.len() > ADMIN_JSON_LEN_MAX {
        let message = format!(
            "the answer has {} bytes; too much for one reply",
            text.len()
        );
        return Err(Refusal::internal(message));
    }
    Ok(text)
}

/// Performs a command and renders the answer.
async fn perform(context: &Context, command: Command) -> Result<Value, Refusal> {
    let cluster = context.node.cluster;
    match command {
        Command::Nodes {} => Ok(render::nodes(&view(context).await?)),
        Command::Ranges {} => Ok(render::ranges(&view(context).await?)),
        Command::Status {} => Ok(render::status(&view(context).await?, cluster)),
        Command::ConfigGet { name: None } => Ok(render::settings(&view(context).await?)),
        Command::ConfigGet { name: Some(name) } => {
            Ok(render::setting(&view(context).await?, &name)?)
        }
        Command::ConfigHistory {} => match context.shard.manage(Ask::History).await? {
            Told::Settings(settings) => Ok(render::history(&settings)),
            told => Err(refused(told)),
        },
        Command::ConfigSet { name, value } => order(context, Ask::Set { name, value }).await,
        Command::TransferLeader { range, to } => {
            let (range, to) = (RangeId(range), to.map(NodeId));
            order(context, Ask::TransferLeader { range, to }).await
        }
        Command::MoveReplica {
            range,
            from,
            to_node,
            to_shard,
        } => {
            let ask = Ask::MoveReplica {
                range: RangeId(range),
                from: NodeId(from),
                to: NodeId(to_node),
                shard: to_shard.map(ShardId),
            };
            order(context, ask).await
        }
    }
}

async fn view(context: &Context) -> Result<View, Refusal> {
    match context.shard.manage(Ask::View).await? {
        Told::View(view) => Ok(view),
        told => Err(refused(told)),
    }
}

async fn order(context: &Context, ask: Ask) -> Result<Value, Refusal> {
    match context.shard.manage(ask).await? {
        Told::Done => Ok(json!({ "done": true })),
        told => Err(refused(told)),
    }
}

/// The refusal for an answer of the manager that is not the expected one.
fn refused(told: Told) -> Refusal {
    match told {
        Told::Refused(why) => why.into(),
        Told::NotHere { .. } => Error::NotLeader(None).into(),
        _ => Refusal::internal("the manager answered something else".to_owned()),
    }
}
