//! The admin commands. Pure.

use rangedb_engine::cluster::View;
use rangedb_engine::types::{Location, NodeId, ShardId};
use serde::Deserialize;

/// An admin command; the protocol's documentation describes each.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Command {
    Nodes {},
    Ranges {},
    Status {},
    TransferLeader {
        range: u64,
        to: Option<u64>,
    },
    MoveReplica {
        range: u64,
        from: u64,
        to_node: u64,
        to_shard: Option<u16>,
    },
    ConfigGet {
        name: Option<String>,
    },
    ConfigSet {
        name: String,
        value: String,
    },
    ConfigHistory {},
}

impl Command {
    /// Parses a command.
    pub fn parse(text: &str) -> Result<Command, String> {
        serde_json::from_str(text).map_err(|error| format!("this is no admin command: {error}"))
    }

    /// Whether the command changes something.
    pub fn is_order(&self) -> bool {
        matches!(
            self,
            Command::TransferLeader { .. }
                | Command::MoveReplica { .. }
                | Command::ConfigSet { .. }
        )
    }
}

pub(super) fn location(node: u64, shard: u16) -> Location {
    Location {
        node: NodeId(node),
        shard: ShardId(shard),
    }
}

/// The shard of a node with the fewest replicas; the first of several.
pub(super) fn roomiest(view: &View, node: NodeId) -> Result<Location, String> {
    let found = view.nodes.iter().find(|known| known.record.id == node);
    let Some(found) = found else {
        return Err(format!("there is no node {node}"));
    };
    let held = |shard: u16| {
        let here = location(node.0, shard);
        let ranges = view.ranges.iter().map(|range| &range.descriptor.replicas);
        let replicas = ranges.flatten();
        replicas.filter(|replica| replica.location == here).count()
    };
    let shard = (0..found.record.shards).min_by_key(|shard| held(*shard));
    let shard = shard.ok_or_else(|| format!("node {node} has no shard"))?;
    Ok(location(node.0, shard))
}
